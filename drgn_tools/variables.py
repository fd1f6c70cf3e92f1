# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What much goes by
-----------------

The size of a page and the CPUs, like drgn's own but with limits: the first is from
VMCOREINFO, and drgn takes any power of two; ``nr_cpu_ids``, which drgn goes by, is a
variable. In a damaged dump they may be billions.
"""

from __future__ import annotations

from collections.abc import Iterator

from drgn import Object, Program, sizeof
from drgn.helpers.linux.bitops import for_each_set_bit
from drgn.helpers.linux.cpumask import cpu_online_mask, cpu_possible_mask


def page_size(prog: Program) -> int:
    """
    Return the size of a page, in bytes.

    :raises LookupError: if it cannot be.
    """
    size: int = prog["PAGE_SIZE"].value_()
    if not 1 << 12 <= size <= 1 << 18 or size & (size - 1):
        raise LookupError(f"pages of {size} bytes cannot be")
    return size


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
