# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Which pages of a dump to keep
-----------------------------

:func:`make_plan` goes over the memory of a dump, cell by cell, asks the page
model for each page's class and sets a bit for each page to keep. That bitmap
is all that grows with the size of the machine. No cell needs to know of
another, so that all CPUs can work on them.
"""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Iterator
from typing import Callable, NamedTuple

import numpy as np
import numpy.typing as npt

from drgn_tools.errors import DumpError
from drgn_tools.pages import (
    KERNEL_CLASSES,
    TYPED_CLASSES,
    PageClass,
    PageLayout,
    Section,
    Spill,
    classify,
    excluded_classes,
    mem_map,
    page_layout,
)
from drgn_tools.progress import Progress
from drgn_tools.vmcore import BITS_SET, Run, Vmcore, merge_runs, runs_mask
from drgn_tools.workers import SharedBytes, run

#: Page frames classified at a time: a section of x86-64, 2 MiB of struct pages.
CELL_PFNS = 1 << 15
#: Page frames per unit of a plan: the widest piece of input mapped at once.
UNIT_PFNS = 1024
# Cells that are worth another process.
_CELLS_PER_WORKER = 8
# Levels that need to know nothing about a page but its bytes.
_UNFILTERED = excluded_classes(1)
# No compound page that classify() believes in has a higher order.
_MAX_ORDER = 40

# Urgencies: how much of a unit is the kernel's own, in so many steps; then what no
# reader can do without.
_SHARES, _TABLE, _IMAGE = 16, 17, 18

# What comes out of a cell.
_TALLY = np.dtype(
    [
        ("found", "<i8", len(PageClass)),
        ("kept", "<i8", len(PageClass)),
        ("unreadable", "<i8"),
        ("units", "<i4", CELL_PFNS // UNIT_PFNS),
        ("kernel", "<i4", CELL_PFNS // UNIT_PFNS),
    ]
)


class Plan(NamedTuple):
    """Which pages of a dump are to be written."""

    max_mapnr: int
    """End of the page frames that the output speaks of."""
    dumpable: npt.NDArray[np.uint8]
    """Bitmap of the page frames to write."""
    units: npt.NDArray[np.int64]
    """A row for each :data:`UNIT_PFNS` page frames of which some are to be
    written: the first page frame, and the pages to write before it."""
    urgency: npt.NDArray[np.uint8]
    """What is to be written first, per row of *units*, in case that not all can
    be: the higher, the sooner. Readers need the kernel's image and page tables to
    find anything, and most of the rest of its own memory before any other."""
    pages: int
    """How many pages that is."""
    found: npt.NDArray[np.int64]
    """Pages with data, per :class:`PageClass`."""
    kept: npt.NDArray[np.int64]
    """Of these, pages to write."""
    warnings: tuple[str, ...]


class Classes(NamedTuple):
    """Classes of consecutive page frames."""

    pfn: int
    classes: npt.NDArray[np.uint8]
    """A :class:`PageClass` per page frame."""
    readable: bool
    """False if there are struct pages for them, but not in the dump."""
    words: npt.NDArray[np.uint8] | None = None
    """Their struct pages, where they were read."""


#: What is done with a cell: its number, its first page frame, its page frames' classes.
Visit = Callable[[int, int, Iterator[Classes]], None]


class StructPages(NamedTuple):
    """Where a kernel's struct pages are and how to read them."""

    layout: PageLayout
    sections: list[Section]


def find_struct_pages(vmcore: Vmcore) -> StructPages:
    """
    Where the struct pages of a dumped kernel are.

    :raises DumpError: if VMCOREINFO does not say enough to find them, or if
        the tables that lead there are missing.
    """
    info = vmcore.vmcoreinfo
    if info is None:
        raise DumpError(f"{vmcore.path} has no VMCOREINFO")
    layout = page_layout(info)
    sections = mem_map(info, vmcore.kernel.read, vmcore.page_size, vmcore.ram_runs)
    if not sections:
        raise DumpError(f"{vmcore.path}: its memory map is empty")
    return StructPages(layout, sections)


def page_classes(
    vmcore: Vmcore,
    found: StructPages | None,
    pfn: int,
    end_pfn: int,
    runs: list[Run] | None = None,
) -> Iterator[Classes]:
    """
    Classes of the page frames in a range that may have data, piece by piece.

    :param found: None if they are not known: all are then
        :attr:`PageClass.UNKNOWN`.
    :param runs: the page frames to tell of, instead of those.
    """
    runs = vmcore.data_runs if runs is None else runs
    for piece, section in _pieces(runs, found, pfn, end_pfn):
        count = piece.end_pfn - piece.pfn
        classes = np.full(count, PageClass.UNKNOWN, np.uint8)
        if section is None or found is None:
            yield Classes(piece.pfn, classes, True)
            continue
        try:
            words = _struct_pages(vmcore, piece, section, found.layout)
        except DumpError:
            yield Classes(piece.pfn, classes, False)
            continue
        spills: list[Spill] = []
        first = words[: found.layout.dtype.itemsize].view(found.layout.dtype)
        if int(first["tail"][0]) & 1:
            spills = _spills_into(vmcore, found, piece.pfn)
        classes, _ = classify(words, piece.pfn, found.layout, spills)
        yield Classes(piece.pfn, classes, True, words)


def _pieces(
    runs: list[Run], found: StructPages | None, pfn: int, end_pfn: int
) -> Iterator[tuple[Run, Section | None]]:
    """A range's page frames in *runs*, cut where cells and sections end."""
    first = max(0, bisect.bisect_right(runs, (pfn, end_pfn)) - 1)
    for index in range(first, len(runs)):
        at, stop = max(pfn, runs[index].pfn), min(end_pfn, runs[index].end_pfn)
        if runs[index].pfn >= end_pfn:
            break
        while at < stop:
            end = min(stop, (at // CELL_PFNS + 1) * CELL_PFNS)
            section = None
            if found is not None:
                section, following = _section_of(found.sections, at)
                end = min(end, section.end_pfn if section else following)
            yield Run(at, end), section
            at = end


def _section_of(sections: list[Section], pfn: int) -> tuple[Section | None, int]:
    """The section that has a page frame, if any; and where the next one begins."""
    index = bisect.bisect_right(sections, (pfn, 1 << 64)) - 1
    section = sections[index] if index >= 0 else None
    if section is not None and pfn >= section.end_pfn:
        section = None
    following = sections[index + 1].pfn if index + 1 < len(sections) else 1 << 64
    return section, following


def _struct_pages(
    vmcore: Vmcore, piece: Run, section: Section, layout: PageLayout
) -> npt.NDArray[np.uint8]:
    if section.vaddr is None:
        raise DumpError("where its struct pages are cannot be read")
    size = layout.dtype.itemsize
    start = section.vaddr + (piece.pfn - section.pfn) * size
    parts = [
        vmcore.view(paddr, length)
        for paddr, length in vmcore.kernel.ranges(
            start, (piece.end_pfn - piece.pfn) * size
        )
    ]
    # Nearly always one huge page, so that nothing is copied.
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _spills_into(vmcore: Vmcore, found: StructPages, pfn: int) -> list[Spill]:
    """
    What compound pages that start before a page frame cover from there on.

    They are aligned to their size, so there are few places where one may start,
    and its first two struct pages say all.
    """
    spills = []
    heads = {pfn & -(1 << order) for order in range(1, _MAX_ORDER + 1)} - {pfn}
    for head in sorted(heads):
        section, _ = _section_of(found.sections, head)
        if section is None:
            continue
        try:
            words = _struct_pages(vmcore, Run(head, head + 2), section, found.layout)
        except DumpError:
            continue
        _, beyond = classify(words, head, found.layout)
        spills += [spill for spill in beyond if spill.end_pfn > pfn]
    return spills


def cells_of(runs: list[Run], end_pfn: int) -> npt.NDArray[np.int64]:
    """Numbers of the cells that have page frames of *runs* below *end_pfn*."""
    cells = [
        np.arange(run.pfn // CELL_PFNS, -(-end // CELL_PFNS))
        for run in runs
        if run.pfn < (end := min(run.end_pfn, end_pfn))
    ]
    numbers = np.concatenate(cells) if cells else np.empty(0, np.int64)
    # Runs are in order. np.unique() would import numpy.ma, 6 ms.
    return numbers[np.diff(numbers, prepend=-1) > 0]


def visit_cells(
    vmcore: Vmcore,
    struct_pages: StructPages | None,
    cells: npt.NDArray[np.int64],
    end_pfn: int,
    jobs: int,
    visit: Visit,
    runs: list[Run] | None = None,
) -> None:
    """
    Classify the page frames of cells, each once, whoever dies of it.

    :param end_pfn: no page frame at or beyond this one matters.
    :param jobs: how many processes may work on it; 0 for this one alone.
    :param visit: called in any order, by any process. A cell that none survives is
        visited with struct pages that are not readable.
    :param runs: as for :func:`page_classes`.
    """

    def work(number: int, deadly: bool = False) -> None:
        start = int(cells[number]) * CELL_PFNS
        end = min(start + CELL_PFNS, end_pfn)
        found = None if deadly else struct_pages
        pieces = page_classes(vmcore, found, start, end, runs)
        if deadly:
            pieces = (piece._replace(readable=False) for piece in pieces)
        visit(number, start, pieces)

    with Progress("classifying pages", len(cells)) as progress:
        failed = run(
            len(cells),
            work,
            min(jobs, max(1, len(cells) // _CELLS_PER_WORKER)),
            progress.update,
        )
    # Whoever was killed may have been killed for something else.
    again = list(failed)
    for index in run(
        len(again), lambda n: work(again[n]), min(jobs, 1), lambda _: None
    ):
        work(again[index], True)


def make_plan(vmcore: Vmcore, excluded: frozenset[PageClass], jobs: int = 1) -> Plan:
    """
    Decide which pages of a dump to keep.

    :param excluded: classes to leave out.
    :param jobs: how many processes may work on it.
    :raises DumpError: if VMCOREINFO does not say enough to tell them.
    """
    warnings = []
    if vmcore.live:
        warnings.append("memory changed while it was read: pages may not fit together")
    struct_pages = None
    max_mapnr = vmcore.max_pfn
    try:
        struct_pages = find_struct_pages(vmcore)
        # What lies behind the last struct page is no memory of this kernel:
        # firmware, video memory.
        max_mapnr = min(max_mapnr, struct_pages.sections[-1].end_pfn)
    except DumpError as error:
        if not excluded <= _UNFILTERED:
            raise DumpError(f"{error}; only -d 0 and -d 1 are possible") from None
        warnings.append(f"{error}; pages are kept whatever their class")
    if struct_pages is None or not struct_pages.layout.typed:
        for page_class in sorted(excluded & TYPED_CLASSES):
            warnings.append(
                f"{page_class.label} is not left out: this kernel's pages do not "
                "tell it from kernel"
            )
    kernels = np.zeros(len(PageClass), np.bool_)
    kernels[list(KERNEL_CLASSES)] = True
    memmap = _memmap(vmcore, struct_pages)
    leave_out = np.zeros(len(PageClass), np.bool_)
    leave_out[list(excluded)] = True
    cells = cells_of(vmcore.data_runs, max_mapnr)
    # Whole cells, so that no two of them share a byte.
    dumpable = SharedBytes(-(-max_mapnr // CELL_PFNS) * CELL_PFNS // 8).array
    tallies = SharedBytes(len(cells) * _TALLY.itemsize).array.view(_TALLY)

    def fill(number: int, start: int, pieces: Iterator[Classes]) -> None:
        tally = np.zeros((), _TALLY)
        kept = np.zeros(CELL_PFNS, np.bool_)
        own = np.zeros(CELL_PFNS, np.bool_)
        for pfn, classes, readable, _ in pieces:
            if not readable:
                # Better a dump too large than one that lacks the page that
                # somebody needs.
                tally["unreadable"] += len(classes)
            present = vmcore.present(pfn, pfn + len(classes))
            keep = present & ~leave_out[classes]
            kept[pfn - start : pfn - start + len(classes)] = keep
            own[pfn - start : pfn - start + len(classes)] = keep & kernels[classes]
            tally["found"] += np.bincount(classes[present], minlength=len(PageClass))
            tally["kept"] += np.bincount(classes[keep], minlength=len(PageClass))
        if kept.any():
            bits = np.packbits(kept, bitorder="little")
            dumpable[start // 8 : start // 8 + len(bits)] = bits
            tally["units"] = BITS_SET[bits].reshape(-1, UNIT_PFNS // 8).sum(axis=1)
            own &= ~runs_mask(memmap, start, start + CELL_PFNS)
            tally["kernel"] = own.reshape(-1, UNIT_PFNS).sum(axis=1)
        tallies[number] = tally

    visit_cells(vmcore, struct_pages, cells, max_mapnr, jobs, fill)
    if unreadable := int(tallies["unreadable"].sum()):
        warnings.append(
            f"struct pages of {unreadable} page frames cannot be read: all kept"
        )
    rows, columns = np.nonzero(tallies["units"])
    counts = tallies["units"][rows, columns].astype(np.int64)
    starts = cells[rows] * CELL_PFNS + columns * UNIT_PFNS
    urgency = -(-_SHARES * tallies["kernel"][rows, columns] // counts)
    numbers = starts // UNIT_PFNS
    for value, paddrs in ((_TABLE, _tables(vmcore)), (_IMAGE, _image(vmcore))):
        units = np.array(list(paddrs), np.int64) // vmcore.page_size // UNIT_PFNS
        # They are in order. np.isin() would import numpy.ma, too.
        at = np.searchsorted(numbers, units)
        found_at = at[at < len(numbers)]
        urgency[found_at[numbers[found_at] == units[at < len(numbers)]]] = value
    return Plan(
        max_mapnr,
        dumpable[: -(-max_mapnr // 8)],
        np.stack((starts, np.cumsum(counts) - counts), axis=1),
        urgency.astype(np.uint8),
        int(counts.sum()),
        tallies["found"].sum(axis=0),
        tallies["kept"].sum(axis=0),
        tuple(warnings),
    )


def _image(vmcore: Vmcore) -> Iterator[int]:
    with contextlib.suppress(DumpError):
        yield from vmcore.kernel.image()


def _tables(vmcore: Vmcore) -> Iterator[int]:
    with contextlib.suppress(DumpError):
        yield from vmcore.kernel.tables()


def _memmap(vmcore: Vmcore, found: StructPages | None) -> list[Run]:
    """Page frames that hold struct pages: many, and of little use by themselves."""
    runs: list[Run] = []
    if found is None:
        return runs
    for section in found.sections:
        if section.vaddr is None:
            continue
        size = (section.end_pfn - section.pfn) * found.layout.dtype.itemsize
        with contextlib.suppress(DumpError):
            for paddr, length in vmcore.kernel.ranges(section.vaddr, size):
                first = paddr // vmcore.page_size
                runs.append(Run(first, first + length // vmcore.page_size))
    return merge_runs(runs)
