# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A dump of a machine that nobody has
-----------------------------------

An ELF core that claims any amount of memory, such as 1 TiB, and takes a few MiB
on the disk. All of the memory is in the file, nearly all as holes. All of it has
struct pages, too, but few are real: those of a section are one of ten blocks,
which the page tables map again and again.
"""

from __future__ import annotations

import os
from typing import Callable, NamedTuple

import numpy as np
import numpy.typing as npt

from drgn_tools.pages import PageClass
from tests.synthetic import (
    BY_NAME,
    GIB,
    MIB,
    PAGE,
    Load,
    Machine,
    StructPages,
    write_elf,
)

#: The class of the first page of nearly every section, and of no other: to keep
#: only this is to keep few pages, and yet some everywhere.
RARE = PageClass.CACHE_PRIVATE

# 128 MiB, as on x86-64. Its struct pages are one huge page.
_SECTION_BITS = 27
_SECTION_PFNS = 1 << _SECTION_BITS - 12
_BLOCK_SIZE = 2 * MIB
# Memory that is really there: the kernel's tables, and the blocks.
_LOW = 32 * MIB
# Where devices are.
_HOLE = 3 * GIB, 4 * GIB
# A huge page of 1 GiB, and the sections that it spans.
_GIGANTIC_ORDER = 18
_GIGANTIC_SECTIONS = 8
# The front of a section: a RARE page and free ones.
_FRONT_ORDER = 10

Fill = Callable[[StructPages, int, int], None]
# What the rest of a section is, in pages of which order.
_FILLS: tuple[tuple[Fill, int], ...] = (
    (StructPages.free, 10),
    (StructPages.anon, 0),
    (StructPages.anon, 9),
    (StructPages.cache, 0),
    (StructPages.slab, 3),
    (StructPages.kernel, 0),
    (StructPages.hugetlb, 9),
)
# Or these in turn, in orders 0 to 3.
_MIXED: tuple[Fill, ...] = (
    StructPages.free,
    StructPages.anon,
    StructPages.cache,
    StructPages.slab,
    StructPages.kernel,
)


class _Block(NamedTuple):
    """Struct pages of a section."""

    paddr: int
    counts: npt.NDArray[np.int64]
    """Pages per class."""


class Vast(Machine):
    """
    A machine with much memory.

    :param size: of its memory, in GiB; at least 8, to have all that there is.
    """

    def __init__(self, size: int) -> None:
        # In two parts behind the hole, as if each were a node's.
        middle = _HOLE[1] + size // 2 * GIB
        end = _HOLE[1] + size * GIB - _HOLE[0]
        self.claimed = [(0, _HOLE[0]), (_HOLE[1], middle), (middle, end)]
        super().__init__(BY_NAME["6.1"], ram=[(0, _LOW)], section_bits=_SECTION_BITS)
        self._last_block = self.struct_page_paddr(0)
        blocks = [self._block(self._filled(*fill)) for fill in _FILLS]
        blocks.append(self._block(self._mixed()))
        head, tails = (self._block(self._gigantic(pfn)) for pfn in (0, _SECTION_PFNS))
        gigantic = [head] + [tails] * (_GIGANTIC_SECTIONS - 1)
        #: Pages per class, as they must be found.
        self.counts = np.zeros(len(PageClass), np.int64)
        # The first section is the kernel's own; Machine describes it.
        self.counts[PageClass.KERNEL] = _SECTION_PFNS
        for pfn in self.pfns()[1:]:
            place, index = divmod(pfn // _SECTION_PFNS, _GIGANTIC_SECTIONS)
            # Every eighth GiB is one page, not the first.
            block = (gigantic if place % 8 == 7 else blocks)[index]
            self.map(self.vmemmap + 64 * pfn, block.paddr, 21)
            self.counts += block.counts

    def fill(self) -> None:
        """Nobody looks at what its pages hold."""

    def pfns(self) -> list[int]:
        """The first page frame of each section."""
        return [
            pfn
            for start, end in self.claimed
            for pfn in range(start // PAGE, end // PAGE, _SECTION_PFNS)
        ]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the dump."""
        image, low = self.loads()
        (start, end), *others = self.claimed
        loads = [image, low._replace(room=end - start)]
        for start, end in others:
            vaddr = self.page_offset + start
            loads.append(Load(start, bytes(PAGE), vaddr=vaddr, room=end - start))
        write_elf(path, loads, self.notes())

    def _block(self, pages: StructPages) -> _Block:
        self._last_block += _BLOCK_SIZE
        self.write(self._last_block, pages.raw)
        counts = np.bincount(pages.expected, minlength=len(PageClass))
        return _Block(self._last_block, counts)

    def _front(self) -> StructPages:
        pages = StructPages(self.generation, 0, _SECTION_PFNS)
        pages.cache(0, private=True)
        for order in range(_FRONT_ORDER):
            pages.free(1 << order, order)
        return pages

    def _filled(self, fill: Fill, order: int) -> StructPages:
        pages = self._front()
        for pfn in range(1 << _FRONT_ORDER, _SECTION_PFNS, 1 << order):
            fill(pages, pfn, order)
        return pages

    def _mixed(self) -> StructPages:
        pages = self._front()
        for number in range((1 << _FRONT_ORDER) // 8, _SECTION_PFNS // 8):
            _MIXED[number % len(_MIXED)](pages, 8 * number, number % 4)
        return pages

    def _gigantic(self, pfn: int) -> StructPages:
        """The section at *pfn* of a huge page that starts at page frame 0."""
        pages = StructPages(self.generation, pfn, _SECTION_PFNS)
        if pfn:
            pages.tails(0, _GIGANTIC_ORDER)
            pages.expect(0, 1 << _GIGANTIC_ORDER, PageClass.HUGETLB)
        else:
            pages.hugetlb(0, _GIGANTIC_ORDER)
        return pages
