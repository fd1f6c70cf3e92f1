# SPDX-License-Identifier: LGPL-2.1-or-later
"""
CPUs of a kernel
----------------

Like drgn's helpers, but no more CPUs than a mask has bits: ``nr_cpu_ids``, which those
go by, is a variable, and in a damaged dump may be billions.
"""

from __future__ import annotations

from collections.abc import Iterator

from drgn import Object, Program, sizeof
from drgn.helpers.linux.bitops import for_each_set_bit
from drgn.helpers.linux.cpumask import cpu_online_mask, cpu_possible_mask


def for_each_cpu_in(mask: Object) -> Iterator[int]:
    """
    Iterate over the CPUs in a mask.

    :param mask: ``struct cpumask *``
    :raises FaultError: if it is not in the dump.
    """
    try:
        count = mask.prog_["nr_cpu_ids"].value_()
    except KeyError:
        # Without CONFIG_SMP.
        count = 1
    bits = mask.bits
    yield from for_each_set_bit(bits, min(count, 8 * sizeof(bits)))


def for_each_possible_cpu(prog: Program) -> Iterator[int]:
    """
    Iterate over the CPUs that there may be.

    :raises LookupError: if this kernel has no mask of them under a name of today.
    """
    return for_each_cpu_in(cpu_possible_mask(prog))


def for_each_online_cpu(prog: Program) -> Iterator[int]:
    """
    Iterate over the CPUs that are in use.

    :raises LookupError: if this kernel has no mask of them under a name of today.
    """
    return for_each_cpu_in(cpu_online_mask(prog))
