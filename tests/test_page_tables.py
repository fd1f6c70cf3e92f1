# SPDX-License-Identifier: LGPL-2.1-or-later
"""Walks of page tables: raw entries, of every level."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from drgn_tools import page_tables
from drgn_tools.page_tables import Entries

from .swap_kernel import PAGE, START, SwapKernel, swap_word

MASK = (1 << 52) - PAGE


def walked(kernel: SwapKernel, start: int, end: int) -> list[Entries]:
    found = list(page_tables.walk(kernel.task.mm, start, end))
    # In order, and without gaps.
    for one, then in zip(found, found[1:]):
        assert one.address + one.size == then.address
    assert not found or found[0].address <= start < found[0].address + found[0].size
    end = min(end, 1 << (47 if kernel.levels == 4 else 56))
    assert not found or found[-1].address + found[-1].size >= end
    return found


def words(found: list[Entries]) -> dict[int, tuple[int, int]]:
    """Entries that are not none, by address: what they are, and how large."""
    seen = {}
    for entries in found:
        assert entries.words is not None and not entries.error
        assert entries.size == len(entries.words) << entries.shift
        for index, word in enumerate(entries.words.tolist()):
            if word:
                seen[entries.address + (index << entries.shift)] = word, entries.shift
    return seen


@pytest.fixture(params=[4, 5])
def kernel(request: pytest.FixtureRequest) -> SwapKernel:
    return SwapKernel("6.12", levels=request.param)


def test_entries_of_every_level(kernel: SwapKernel) -> None:
    wanted = {
        START: (0x1000 | 0x67, 12),
        START + 5 * PAGE: (swap_word(0, 77), 12),
        START + 511 * PAGE: (0x5000 | 0x67, 12),
        START + (4 << 21): (0x200000 | 0xE7, 21),
        START + (5 << 21): (swap_word(28, 0x400), 21),
        START + (3 << 30): (0x40000000 | 0xE7, 30),
        START + (1 << 39): (0x9000 | 0x67, 12),
    }
    for address, (word, shift) in wanted.items():
        kernel.entry(address, word, (shift - 12) // 9)
    found = walked(kernel, START, START + (1 << 40))
    assert words(found) == wanted
    # Each at its own: the first page alone, and up to it.
    assert words(walked(kernel, START, START + PAGE)) == {START: wanted[START]}
    assert not words(walked(kernel, START + PAGE, START + 5 * PAGE))


def test_all_of_user_space_is_few_entries(kernel: SwapKernel) -> None:
    kernel.entry(START, 0x1067)
    end = 1 << (47 if kernel.levels == 4 else 56)
    found = walked(kernel, 0, end)
    assert found[-1].address + found[-1].size == end
    assert len(found) < 16
    assert [one.address for one in page_tables.walk(kernel.task.mm, 0, 1 << 64)] == [
        one.address for one in found
    ]
    assert not list(page_tables.walk(kernel.task.mm, end, 1 << 64))


def test_five_levels_reach_further() -> None:
    kernel = SwapKernel("6.12", levels=5)
    high = (1 << 55) + START
    kernel.entry(high, 0x1067)
    assert words(walked(kernel, high, high + PAGE)) == {high: (0x1067, 12)}
    assert kernel.levels == page_tables.levels(kernel.prog)


def test_tables_that_the_dump_lacks(kernel: SwapKernel) -> None:
    kernel.entry(START, 0x1067)
    kernel.entry(START + (1 << 21), 0x2067)
    last = kernel.next_frame + 1
    kernel.missing.add(last)
    there, lost = walked(kernel, START, START + (2 << 21))
    assert there.words is not None and there.words[0] == 0x1067
    assert lost.words is None and lost.address == START + (1 << 21)
    assert f"{last * PAGE:#x} is not in the dump" in lost.error


def test_loops_end(kernel: SwapKernel) -> None:
    # Each table of user space leads to itself.
    entries = [kernel.pgd << 12 | 0x67] * 512
    kernel.fill(kernel.pgd, np.array(entries, "<u8").tobytes())
    end = 1 << (47 if kernel.levels == 4 else 56)
    found = walked(kernel, 0, end)
    assert len(found) < 4096
    assert "used twice" in found[0].error


def test_page_tables_of_hugetlbfs_may_be_shared() -> None:
    kernel = SwapKernel("6.12")
    kernel.entry(START, 0x200000 | 0xE7, 1)
    shared = kernel.next_frame + 1
    kernel.entry(START + (1 << 30), shared << 12 | 0x67, 2)
    found = words(walked(kernel, START, START + (2 << 30)))
    assert found == {
        START: (0x2000E7, 21),
        START + (1 << 30): (0x2000E7, 21),
    }


@pytest.mark.parametrize(
    ("word", "shift", "present", "frame"),
    [
        (0x1234067, 12, True, 0x1234),
        # Nobody may touch it: not present for the processor, and so inverted.
        (~0x1234000 & MASK | 0x160, 12, True, 0x1234),
        (0x80000001234065, 12, True, 0x1234),
        # Bit 12 of a huge page's entry says how it is cached.
        (0x40001000 | 0xE7, 21, True, 0x40000),
        (~0x40000000 & MASK & -(1 << 21) | 0x1E0, 21, True, 0x40000),
        # While it is split.
        (~0x40000000 & MASK & -(1 << 21) | 0xE0, 21, True, 0x40000),
        (swap_word(0, 1), 12, False, None),
        (swap_word(28, 0x1234), 21, False, None),
    ],
)
def test_what_is_present(word: int, shift: int, present: bool, frame: Any) -> None:
    array = np.array([word], np.uint64)
    assert not page_tables.is_none(array)[0]
    assert page_tables.is_present(array, shift)[0] == present
    if present:
        assert page_tables.page_frames(array, shift, MASK)[0] == frame


def test_what_is_none() -> None:
    # Some processors set two bits in what is none.
    array = np.array([0, 0x20, 0x40, 0x60, 0x80, 1], np.uint64)
    assert page_tables.is_none(array).tolist() == [True] * 4 + [False] * 2


def test_swap_entries() -> None:
    # As a kernel writes type 0, offset 0x1234.
    entries = np.array([0x07FFFFFFFFDB9600, swap_word(31, (1 << 50) - 1)], np.uint64)
    types, offsets = page_tables.swap_entries(entries)
    assert types.tolist() == [0, 31]
    assert offsets.tolist() == [0x1234, (1 << 50) - 1]
    # Soft-dirty, uffd-wp and exclusive are no part of it.
    types, offsets = page_tables.swap_entries(entries | np.uint64(0xE))
    assert offsets.tolist() == [0x1234, (1 << 50) - 1]


def test_encrypted_memory() -> None:
    kernel = SwapKernel("6.12")
    assert page_tables.address_mask(kernel.prog) == MASK
    kernel.variable("sme_me_mask", "u64", "arch/x86/mm", 1 << 47)
    assert page_tables.address_mask(kernel.prog) == MASK & ~(1 << 47)
    kernel.entry(START, 0x1067)
    pfn = kernel.pgd
    for level in range(3, 0, -1):
        at = pfn * PAGE + (START >> 12 + 9 * level & 511) * 8
        found = int.from_bytes(kernel.memory[at : at + 8], "little")
        pfn = found >> 12
        kernel.memory[at : at + 8] = (found | 1 << 47).to_bytes(8, "little")
    assert words(walked(kernel, START, START + PAGE)) == {START: (0x1067, 12)}


def test_damaged_tables_have_an_end() -> None:
    """Whatever is in them, a walk ends, and covers what it was asked for."""
    kernel = SwapKernel("6.12")
    for index in range(200):
        kernel.entry(START + index * 7 * PAGE, (index + 1) << 12 | 0x67)
    first = kernel.next_frame + 1
    tables = [*range(first, kernel.pgd + 1)]
    sound = bytes(kernel.memory)
    chance = random.Random(1)
    for _ in range(300):
        for _ in range(chance.choice([1, 3, 60])):
            at = chance.choice(tables) * PAGE + chance.randrange(512) * 8
            kinds = (
                chance.getrandbits(64),
                chance.choice(tables) << 12 | 0x67,
                chance.choice(tables) << 12 | 0xE7,
            )
            kernel.memory[at : at + 8] = chance.choice(kinds).to_bytes(8, "little")
        start = chance.choice([START, 0])
        found = walked(kernel, start, START + (1 << chance.choice([21, 30, 46])))
        assert len(found) < 512 * (len(tables) + 1)
        kernel.memory[:] = sound
