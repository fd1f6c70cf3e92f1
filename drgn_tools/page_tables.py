# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Page tables of a task
---------------------

The raw entries of a user address space: x86-64, 4 and 5 levels, any page size. An
entry that is not present says where the page went; drgn's own walk ends there.

Tables are read whole, so that a walk costs one read for 512 pages.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from drgn import Architecture, FaultError, Object, Program

from drgn_tools.translate import ADDRESS_MASK, PAGE_PRESENT, PAGE_PSE

_U64 = (1 << 64) - 1
# Of an entry without PAGE_PRESENT: the page is there, but nobody may touch it
# (:linux:`arch/x86/include/asm/pgtable_types.h`).
_PAGE_PROTNONE = 1 << 8
# Accessed and dirty, which some processors set in entries that are none.
_ERRATUM = 0x60
_TABLE_SIZE = 4096

Words = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]


class Entries(NamedTuple):
    """Neighbouring entries of one table."""

    address: int
    """Virtual, of the first one's memory."""
    shift: int
    """Each is for 1 << shift bytes of memory: 12, 21, 30, …"""
    words: Words | None
    """As they are; none of them leads to another table. None if they cannot be
    read."""
    size: int
    """How much memory they are for, in bytes, read or not."""
    error: str
    """Why they cannot be read; empty if they can."""


def is_none(words: Words) -> Bools:
    """Which entries are empty."""
    # Only those for small pages have to do with the erratum, but nor do the others
    # have these bits alone.
    none: Bools = (words & np.uint64(_U64 & ~_ERRATUM)) == 0
    return none


def is_present(words: Words, shift: int) -> Bools:
    """
    Which entries have a page, whether or not it may be touched.

    :param shift: of these entries. One of a huge page that is being split is marked
        as such, and as nothing else.
    """
    bits = PAGE_PRESENT | _PAGE_PROTNONE | (PAGE_PSE if shift > 12 else 0)
    present: Bools = (words & np.uint64(bits)) != 0
    return present


def page_frames(words: Words, shift: int, mask: int) -> Words:
    """
    The first page frames of present entries.

    :param mask: bits of an entry that are an address; see :func:`address_mask`.
    """
    # What processors take for not present has its address inverted, against L1TF
    # (:linux:`arch/x86/include/asm/pgtable-invert.h`).
    seen = np.where(words & np.uint64(PAGE_PRESENT), words, ~words)
    return (seen & np.uint64(mask & -(1 << shift))) >> np.uint64(12)


def swap_entries(words: Words) -> tuple[Words, Words]:
    """
    Decode entries that are neither none nor present: types and offsets.

    As since 4.19, which has offsets inverted, against L1TF
    (:linux:`arch/x86/include/asm/pgtable_64.h`). Types beyond those of swap areas say
    what else an entry is, and the offset then is a page frame, or a mark.
    """
    return words >> np.uint64(59), (~words << np.uint64(5)) >> np.uint64(14)


def levels(prog: Program) -> int:
    """
    How many levels the page tables have: 4 or 5.

    :raises ValueError: if this is no x86-64 kernel.
    """
    if prog.platform is None or prog.platform.arch != Architecture.X86_64:
        raise ValueError("page tables can be read on x86-64 only")
    try:
        return 5 if prog["__pgtable_l5_enabled"].value_() else 4
    except LookupError:
        # Kernels before 4.14, and until 6.16 those without CONFIG_X86_5LEVEL.
        return 4


def address_mask(prog: Program) -> int:
    """The bits of an entry that are an address: without the one for encryption."""
    try:
        return ADDRESS_MASK & ~int(prog["sme_me_mask"].value_())
    except LookupError:
        # Since 4.14, with CONFIG_AMD_MEM_ENCRYPT.
        return ADDRESS_MASK


def walk(mm: Object, start: int, end: int) -> Iterator[Entries]:
    """
    Iterate over the raw entries for an address range, in order and without gaps.

    Each comes from the lowest table that there is: where a whole table is absent, from
    the one above, with its entry that is none; a huge page from where it is mapped.
    The first and the last may reach beyond the range.

    :param mm: ``struct mm_struct *``
    :param start: the first address.
    :param end: the address behind the last one; what is beyond user space is left out.
    :raises ValueError: if this is no x86-64 kernel.
    :raises FaultError: if *mm* or its uppermost table is not in the dump.
    """
    prog = mm.prog_
    depth = levels(prog)
    end = min(end, 1 << (9 * depth + 11))
    if start >= end or start < 0:
        return
    root = prog.read(mm.pgd.value_(), _TABLE_SIZE)
    yield from _Walk(prog, start, end).table(root, depth - 1, 0)


def _entries(address: int, shift: int, words: Words) -> Entries:
    return Entries(address, shift, words, len(words) << shift, "")


class _Walk:
    def __init__(self, prog: Program, start: int, end: int) -> None:
        self._prog = prog
        self._start = start
        self._end = end
        self._mask = address_mask(prog)
        # Tables that have been used, and at which level.
        self._seen: dict[int, int] = {}

    def table(self, data: bytes, level: int, base: int) -> Iterator[Entries]:
        shift = 12 + 9 * level
        first = max(self._start - base, 0) >> shift
        last = min((self._end - 1 - base) >> shift, 511)
        words = np.frombuffer(data, "<u8")[first : last + 1]
        base += first << shift
        at = 0
        for index in [*np.flatnonzero(_lead_on(words, level)).tolist(), len(words)]:
            if at < index:
                yield _entries(base + (at << shift), shift, words[at:index])
            if index < len(words):
                word, address = int(words[index]), base + (index << shift)
                yield from self._lower(word & self._mask, level - 1, address)
            at = index + 1

    def _lower(self, paddr: int, level: int, base: int) -> Iterator[Entries]:
        try:
            data = self._prog.read(paddr, _TABLE_SIZE, physical=True)
        except FaultError:
            why = f"the page table at {paddr:#x} is not in the dump"
        else:
            why = self._used_twice(paddr, level, data)
        if why:
            shift = 12 + 9 * (level + 1)
            yield Entries(base, shift, None, 1 << shift, why)
            return
        yield from self.table(data, level, base)

    def _used_twice(self, paddr: int, level: int, data: bytes) -> str:
        # In an address space a table has one place, but for those of huge pages that
        # hugetlbfs shares. Others would make a walk without end.
        used = self._seen.get(paddr)
        self._seen.setdefault(paddr, level)
        shared = level == used == 1
        if used is None or (
            shared and not _lead_on(np.frombuffer(data, "<u8"), level).any()
        ):
            return ""
        return f"the page table at {paddr:#x} is used twice: damaged"


def _lead_on(words: Words, level: int) -> Bools:
    # Which entries lead to another table.
    lower: Bools = (words & np.uint64(PAGE_PRESENT)) != 0
    if level < 3:
        lower &= (words & np.uint64(PAGE_PSE)) == 0
    return lower if level else np.zeros(len(words), np.bool_)
