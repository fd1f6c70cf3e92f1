# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What memory was used for
------------------------

All page frames of a dump by class, by zone and node, their longest runs, and a grid of
them for a picture: what :func:`read_page_map` finds in one go over the struct pages,
with VMCOREINFO alone. What it keeps does not grow with the machine, but for some bytes
for each 128 MiB.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from drgn_tools.errors import DumpError
from drgn_tools.pages import PageClass, mem_map
from drgn_tools.plan import (
    CELL_PFNS,
    Classes,
    StructPages,
    cells_of,
    find_struct_pages,
    page_classes,
    visit_cells,
)
from drgn_tools.vmcore import Run, Vmcore, merge_runs, runs_mask
from drgn_tools.workers import SharedBytes
from drgn_tools.zones import Zone, Zones, find_zones

# What a page frame may be, besides a PageClass.

#: It has a struct page, but is not among the dump's memory: the capture kernel's own,
#: firmware's, or a hole in a section.
RESERVED = len(PageClass)
#: It is among the dump's memory, but this kernel has no struct page for it: firmware's,
#: a video card's.
FOREIGN = RESERVED + 1
#: Nothing is known to be there.
HOLE = FOREIGN + 1
#: Added to what is not in the dump, in :attr:`Grid.tiles`.
LEFT_OUT = 0x80

_KINDS = HOLE + 1
#: Names of all of these, as users read them.
LABELS = (
    *(page_class.label for page_class in PageClass),
    "reserved",
    "no-struct-page",
    "hole",
)
# Squares of the grid: enough for a picture, and a page each for 2.6 GiB.
_MAX_SQUARES = 21 << 15
# Page frames, 1 TiB, between pieces of memory that may have struct pages.
_MAX_RESERVED = 1 << 28
# Behind all page frames that x86-64 can have.
_END = 1 << 40
# Zones that a cell may have pages of; nearly every one has one.
_CELL_ZONES = 6

_TALLY = np.dtype(
    [
        ("pages", "<i4", _KINDS),
        ("dumped", "<i4", _KINDS),
        # Longest run of each kind, and its first page frame in the cell.
        ("longest", "<i4", _KINDS),
        ("longest_at", "<i4", _KINDS),
        # The runs that the cell begins and ends with.
        ("first", "<i4"),
        ("first_kind", "u1"),
        ("last", "<i4"),
        ("last_kind", "u1"),
        # Zones by their number plus one, and the pages that they have.
        ("zones", "<i4", _CELL_ZONES),
        ("zone_pages", "<i4", (_CELL_ZONES, len(PageClass))),
    ]
)


class PageRun(NamedTuple):
    """Consecutive page frames of one class."""

    pfn: int
    pages: int
    page_class: PageClass


class Total(NamedTuple):
    """All page frames of a kind."""

    kind: int
    """A :class:`~drgn_tools.pages.PageClass`, or one of the numbers above."""
    pages: int
    dumped: int
    """Of these, pages with data in the dump."""
    longest: Run
    """The longest run of them; of several, the first."""

    @property
    def label(self) -> str:
        return LABELS[self.kind]


class ZoneMap(NamedTuple):
    """A zone, and what it was used for."""

    zone: Zone
    pages: tuple[int, ...]
    """Pages per :class:`~drgn_tools.pages.PageClass`."""


class Grid(NamedTuple):
    """Memory in squares of equal numbers of page frames, for a picture."""

    square_pfns: int
    """Page frames in a square, a power of 2."""
    numbers: npt.NDArray[np.int64]
    """Which tiles there are, ascending: number 0 begins at page frame 0, number 1
    where it ends. Where none is, there is no memory."""
    tiles: npt.NDArray[np.uint8]
    """A row for each of these: what is in each of its squares, one of the numbers
    above. A square of several page frames is what most of them are; a poisoned one
    decides for all. :data:`LEFT_OUT` is added where most of them have no data, but
    never to poisoned ones."""

    @property
    def tile_pfns(self) -> int:
        return self.square_pfns * int(self.tiles.shape[1])


class PageMap(NamedTuple):
    """What all of a dump's memory was used for."""

    release: str
    """Of the kernel."""
    page_size: int
    ram: tuple[Run, ...]
    """Memory that the machine had, as far as the dump tells."""
    classes: tuple[Total, ...]
    """The kernel's memory, by class, those that there are."""
    beside: tuple[Total, ...]
    """What is not its memory: reserved and without struct page."""
    zones: tuple[ZoneMap, ...]
    zoneless: int
    """Pages that no zone has: their struct pages are damaged or missing."""
    why_no_zones: str
    """Why zones are told by address alone; empty if the kernel told them."""
    grid: Grid
    warnings: tuple[str, ...]
    untyped: bool
    """Pages do not tell page tables, zsmalloc and large kmalloc from kernel: before
    Linux 6.12."""

    @property
    def pages(self) -> int:
        """The kernel's memory, in pages."""
        return sum(total.pages for total in self.classes)

    @property
    def filtered(self) -> bool:
        """Whether some of the kernel's pages are not in the dump."""
        return any(total.dumped < total.pages for total in self.classes)


def read_page_map(vmcore: Vmcore, jobs: int = 1) -> PageMap:
    """
    Find out what all memory of a dump was used for.

    :param jobs: how many processes may work on it; 0 for this one alone.
    :raises DumpError: if VMCOREINFO does not say enough to find struct pages.
    """
    # Found out once: those that work on it need it, too.
    lost = vmcore.lost_pages
    found = find_struct_pages(vmcore)
    zones = find_zones(vmcore, found)
    sections = _with_struct_pages(vmcore, found)
    cells = cells_of(merge_runs(vmcore.ram_runs + sections), _END)
    square = 1
    while square < CELL_PFNS and len(cells) * (CELL_PFNS // square) > _MAX_SQUARES:
        square *= 2
    per_tile = CELL_PFNS // square
    tallies = SharedBytes(len(cells) * _TALLY.itemsize).array.view(_TALLY)
    tiles = SharedBytes(len(cells) * per_tile).array.reshape(-1, per_tile)

    def count(number: int, start: int, pieces: Iterator[Classes]) -> None:
        end = start + CELL_PFNS
        kinds = np.full(CELL_PFNS, HOLE, np.uint8)
        kinds[runs_mask(sections, start, end)] = RESERVED
        lacking = np.zeros(CELL_PFNS, np.bool_)
        zone_pages = np.zeros((len(zones.zones) + 1, len(PageClass)), np.int64)
        for piece in pieces:
            at = slice(piece.pfn - start, piece.pfn - start + len(piece.classes))
            ours = kinds[at] == RESERVED
            kinds[at] = np.where(ours, piece.classes, FOREIGN)
            lacking[at] = ~vmcore.present(piece.pfn, piece.pfn + len(piece.classes))
            _count_zones(zone_pages, zones, found, piece)
        tally = _tally(kinds, lacking)
        some = np.flatnonzero(zone_pages[:-1].any(axis=1))[:_CELL_ZONES]
        tally["zones"][: len(some)] = some + 1
        tally["zone_pages"][: len(some)] = zone_pages[some]
        tallies[number] = tally
        tiles[number] = _squares(kinds, lacking, square)

    visit_cells(vmcore, found, cells, vmcore.max_pfn, jobs, count, runs=vmcore.ram_runs)
    info = vmcore.vmcoreinfo
    pages = tallies["pages"].sum(axis=0, dtype=np.int64)
    dumped = tallies["dumped"].sum(axis=0, dtype=np.int64)
    longest = _longest(tallies, cells)
    totals = [
        Total(kind, int(pages[kind]), int(dumped[kind]), longest[kind])
        for kind in range(HOLE)
        if pages[kind]
    ]
    zone_maps = _zone_maps(zones, tallies)
    classes = tuple(total for total in totals if total.kind < RESERVED)
    zoned = sum(sum(zone_map.pages) for zone_map in zone_maps)
    return PageMap(
        (info and info.text("OSRELEASE")) or "",
        vmcore.page_size,
        tuple(vmcore.ram_runs),
        classes,
        tuple(total for total in totals if total.kind >= RESERVED),
        zone_maps,
        sum(total.pages for total in classes) - zoned,
        zones.why,
        Grid(square, cells, tiles),
        _warnings(vmcore, int(pages[PageClass.UNKNOWN]), lost),
        not found.layout.typed,
    )


def _with_struct_pages(vmcore: Vmcore, found: StructPages) -> list[Run]:
    # Page frames that have struct pages, those between pieces of memory included.
    gaps = []
    left = _MAX_RESERVED
    end = 0
    for run in vmcore.ram_runs:
        gap = Run(end, min(run.pfn, end + left))
        left -= gap.end_pfn - gap.pfn
        gaps.append(gap)
        end = run.end_pfn
    sections = list(found.sections)
    info = vmcore.vmcoreinfo
    with contextlib.suppress(DumpError):
        if info is not None:
            between = mem_map(info, vmcore.kernel.read, vmcore.page_size, gaps)
            sections += [section for section in between if section.vaddr is not None]
    return merge_runs([Run(s.pfn, s.end_pfn) for s in sections])


def page_runs(vmcore: Vmcore) -> Iterator[PageRun]:
    """
    All memory of a dump as runs, as long as they can be, in order.

    :raises DumpError: if VMCOREINFO does not say enough to find struct pages.
    """
    found = find_struct_pages(vmcore)
    last: PageRun | None = None
    for pfn, classes, _, _ in page_classes(
        vmcore, found, 0, vmcore.max_pfn, vmcore.ram_runs
    ):
        edges = np.flatnonzero(classes[1:] != classes[:-1]) + 1
        starts = [0, *edges.tolist()]
        for start, end in zip(starts, [*starts[1:], len(classes)]):
            run = PageRun(pfn + start, end - start, PageClass(classes[start]))
            if last and (last.pfn + last.pages, last.page_class) == (run.pfn, run[2]):
                last = last._replace(pages=last.pages + run.pages)
                continue
            if last:
                yield last
            last = run
    if last:
        yield last


def _count_zones(
    zone_pages: npt.NDArray[np.int64], zones: Zones, found: StructPages, piece: Classes
) -> None:
    if piece.words is None:
        return
    flags = piece.words.view(found.layout.dtype)["flags"]
    of = zones.of(piece.pfn, len(flags), flags)
    kinds = len(PageClass)
    if len(of) == 1:
        zone_pages[of[0]] += np.bincount(piece.classes, minlength=kinds)
    else:
        both = np.bincount(of * kinds + piece.classes, minlength=zone_pages.size)
        zone_pages += both.reshape(zone_pages.shape)


def _tally(kinds: npt.NDArray[np.uint8], lacking: npt.NDArray[np.bool_]) -> Any:
    tally = np.zeros((), _TALLY)
    pages = np.bincount(kinds, minlength=_KINDS)
    tally["pages"] = pages
    tally["dumped"] = pages - np.bincount(kinds[lacking], minlength=_KINDS)
    tally["dumped"][[RESERVED, HOLE]] = 0
    edges = np.flatnonzero(kinds[1:] != kinds[:-1]) + 1
    starts = np.concatenate(([0], edges))
    lengths = np.diff(starts, append=len(kinds))
    of = kinds[starts]
    for kind in np.flatnonzero(pages).tolist():
        ours = np.flatnonzero(of == kind)
        best = ours[lengths[ours].argmax()]
        tally["longest"][kind] = lengths[best]
        tally["longest_at"][kind] = starts[best]
    tally["first"], tally["first_kind"] = lengths[0], of[0]
    tally["last"], tally["last_kind"] = lengths[-1], of[-1]
    return tally


def _squares(
    kinds: npt.NDArray[np.uint8], lacking: npt.NDArray[np.bool_], pfns: int
) -> npt.NDArray[np.uint8]:
    count = len(kinds) // pfns
    squares = kinds
    left_out = lacking
    if pfns > 1:
        number = np.repeat(np.arange(count) * _KINDS, pfns)
        pages = np.bincount(number + kinds, minlength=count * _KINDS)
        pages = pages.reshape(count, _KINDS)
        # What is beside memory shows where there is nothing else.
        known = pages[:, :HOLE].sum(axis=1)
        squares = pages[:, :HOLE].argmax(axis=1).astype(np.uint8)
        squares[known == 0] = HOLE
        squares[pages[:, PageClass.HWPOISON] > 0] = PageClass.HWPOISON
        left_out = lacking.reshape(count, pfns).sum(axis=1) * 2 > known
    # What is poisoned is in no dump, and is to be seen.
    left_out = left_out & (squares != PageClass.HWPOISON)
    return np.where(left_out, squares | np.uint8(LEFT_OUT), squares)


def _longest(tallies: npt.NDArray[np.void], cells: npt.NDArray[np.int64]) -> list[Run]:
    # The longest run of each kind, those over the edges of cells included.
    longest = [Run(0, 0)] * _KINDS
    pfn, pages, kind = 0, 0, HOLE

    def ended(kind: int, pfn: int, pages: int) -> None:
        if pages > longest[kind].end_pfn - longest[kind].pfn:
            longest[kind] = Run(pfn, pfn + pages)

    for tally, start in zip(tallies, (cells * CELL_PFNS).tolist()):
        first, first_kind = int(tally["first"]), int(tally["first_kind"])
        if pfn + pages == start and kind == first_kind:
            pages += first
        else:
            ended(kind, pfn, pages)
            pfn, pages, kind = start, first, first_kind
        if first == CELL_PFNS:
            continue
        ended(kind, pfn, pages)
        for within in np.flatnonzero(tally["longest"]).tolist():
            ended(
                within,
                start + int(tally["longest_at"][within]),
                int(tally["longest"][within]),
            )
        pages, kind = int(tally["last"]), int(tally["last_kind"])
        pfn = start + CELL_PFNS - pages
    ended(kind, pfn, pages)
    return longest


def _zone_maps(zones: Zones, tallies: npt.NDArray[np.void]) -> tuple[ZoneMap, ...]:
    pages = np.zeros((len(zones.zones), len(PageClass)), np.int64)
    rows, slots = np.nonzero(tallies["zones"])
    np.add.at(
        pages, tallies["zones"][rows, slots] - 1, tallies["zone_pages"][rows, slots]
    )
    return tuple(
        ZoneMap(zone, tuple(counts))
        for zone, counts in zip(zones.zones, pages.tolist())
        # By address alone, there may be none.
        if zone.present or any(counts)
    )


def _warnings(vmcore: Vmcore, unknown: int, lost: int) -> tuple[str, ...]:
    warnings = []
    if lost:
        warnings.append(f"pages are missing, {lost} of them: the dump is cut short")
    if vmcore.live:
        warnings.append("memory changed while it was read: pages may not fit together")
    if unknown:
        warnings.append(f"struct pages of {unknown} page frames cannot be read")
    return tuple(warnings)
