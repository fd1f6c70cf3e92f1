# SPDX-License-Identifier: LGPL-2.1-or-later
"""CPUs of kernels whose variables are damaged."""

from __future__ import annotations

import struct

import pytest

from drgn_tools.ring_buffer import for_each_ring_buffer_event
from drgn_tools.variables import for_each_possible_cpu
from tests.oprofile_kernel import OprofileKernel
from tests.ring_kernel import RingKernel


@pytest.mark.parametrize("count", [0, 2, 4, 63, 64, 1 << 20, (1 << 32) - 1])
def test_no_more_cpus_than_bits(count: int) -> None:
    kernel = OprofileKernel("5.10")
    mask = kernel.prog["__cpu_possible_mask"].address_
    assert mask is not None
    kernel.poke(mask, b"\xff" * 8)
    # What is behind the mask is none of it.
    kernel.poke(mask + 8, b"\xff" * 8)
    address = kernel.prog["nr_cpu_ids"].address_
    assert address is not None
    kernel.poke(address, struct.pack("<I", count))
    assert list(for_each_possible_cpu(kernel.prog)) == list(range(min(count, 64)))


@pytest.mark.parametrize("size", [0, 1, 4095, 4097, 1 << 19, 1 << 40])
def test_page_size_that_cannot_be(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.ring_kernel.PAGE", size)
    kernel = RingKernel("7.2")
    with pytest.raises(LookupError, match="cannot be"):
        for_each_ring_buffer_event(kernel.buffer)
