# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Which pages of a dump to keep
-----------------------------

:func:`make_plan` goes over the memory of a dump, section by section, asks the
page model for each page's class and sets a bit for each page to keep. That
bitmap is all that grows with the size of the machine.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from drgn_tools.errors import DumpError
from drgn_tools.pages import (
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
from drgn_tools.vmcore import Run, Vmcore

# Page frames per unit: the widest piece of input that is mapped at once.
_UNIT_PFNS = 1024
# Without struct pages, the plan goes in steps of this many frames.
_STEP_PFNS = 1 << 15
# mmap.MAP_NORESERVE is new in Python 3.11.
_MAP_NORESERVE = 0x4000
# Levels that need to know nothing about a page but its bytes.
_UNFILTERED = excluded_classes(1)


class Plan(NamedTuple):
    """Which pages of a dump are to be written."""

    max_mapnr: int
    """End of the page frames that the output speaks of."""
    dumpable: npt.NDArray[np.uint8]
    """Bitmap of the page frames to write."""
    units: npt.NDArray[np.int64]
    """Rows of first page frame, end, and pages to write before this unit."""
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
    sections = mem_map(info, vmcore.kernel.read, vmcore.page_size, vmcore.max_pfn)
    if not sections:
        raise DumpError(f"{vmcore.path}: its memory map is empty")
    return StructPages(layout, sections)


def page_classes(
    vmcore: Vmcore, found: StructPages | None, max_pfn: int
) -> Iterator[Classes]:
    """
    Classes of all page frames that may have data, piece by piece.

    :param found: None if they are not known: all are then
        :attr:`PageClass.UNKNOWN`.
    :param max_pfn: no frame at or beyond this one matters.
    """
    spills: list[Spill] = []
    sections = found.sections if found else []
    for (pfn, end_pfn), section in _pieces(vmcore.data_runs, sections, max_pfn):
        classes = np.full(end_pfn - pfn, PageClass.UNKNOWN, np.uint8)
        if section is None or found is None:
            yield Classes(pfn, classes, True)
            continue
        try:
            words = _struct_pages(vmcore, Run(pfn, end_pfn), section, found.layout)
        except DumpError:
            yield Classes(pfn, classes, False)
            continue
        classes, spills = classify(words, pfn, found.layout, spills)
        yield Classes(pfn, classes, True)


def make_plan(vmcore: Vmcore, excluded: frozenset[PageClass]) -> Plan:
    """
    Decide which pages of a dump to keep.

    :param excluded: classes to leave out.
    :raises DumpError: if VMCOREINFO does not say enough to tell them.
    """
    warnings = []
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
    dumpable = new_bitmap(max_mapnr)
    leave_out = np.zeros(len(PageClass), np.bool_)
    leave_out[list(excluded)] = True

    found = np.zeros(len(PageClass), np.int64)
    kept = np.zeros(len(PageClass), np.int64)
    unreadable = pages = 0
    units = []
    total = sum(run.end_pfn - run.pfn for run in vmcore.data_runs)
    done = 0
    with Progress("classifying pages", total) as progress:
        for pfn, classes, readable in page_classes(vmcore, struct_pages, max_mapnr):
            end_pfn = pfn + len(classes)
            if not readable:
                # Better a dump too large than one that lacks the page that
                # somebody needs.
                unreadable += len(classes)
            present = vmcore.present(pfn, end_pfn)
            keep = present & ~leave_out[classes]
            found += np.bincount(classes[present], minlength=len(PageClass))
            kept += np.bincount(classes[keep], minlength=len(PageClass))
            set_bits(dumpable, pfn, keep)
            starts = np.arange(pfn - pfn % _UNIT_PFNS, end_pfn, _UNIT_PFNS)
            starts[0] = pfn
            counts = np.add.reduceat(keep, starts - pfn, dtype=np.int64)
            ends = np.append(starts[1:], end_pfn)
            before = pages + np.cumsum(counts) - counts
            units.append(np.stack((starts, ends, before), axis=1)[counts > 0])
            pages += int(counts.sum())
            done += len(classes)
            progress.update(done)
    if unreadable:
        warnings.append(
            f"struct pages of {unreadable} page frames cannot be read: all kept"
        )
    return Plan(
        max_mapnr,
        dumpable,
        np.concatenate(units) if units else np.empty((0, 3), np.int64),
        pages,
        found,
        kept,
        tuple(warnings),
    )


def _pieces(
    runs: list[Run], sections: list[Section], max_mapnr: int
) -> Iterator[tuple[Run, Section | None]]:
    """*runs* below *max_mapnr*, cut where sections begin and end."""
    index = 0
    for run in runs:
        pfn, end_pfn = run.pfn, min(run.end_pfn, max_mapnr)
        while pfn < end_pfn:
            while index < len(sections) and sections[index].end_pfn <= pfn:
                index += 1
            stop = min(end_pfn, (pfn // _STEP_PFNS + 1) * _STEP_PFNS)
            section = None
            if index < len(sections) and sections[index].pfn <= pfn:
                section = sections[index]
                stop = min(stop, section.end_pfn)
            elif index < len(sections):
                stop = min(stop, sections[index].pfn)
            yield Run(pfn, stop), section
            pfn = stop


def _struct_pages(
    vmcore: Vmcore, piece: Run, section: Section, layout: PageLayout
) -> npt.NDArray[np.uint8]:
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


def new_bitmap(bits: int) -> npt.NDArray[np.uint8]:
    """
    A bitmap of zeros that costs memory only where bits are set.

    Physical memory may lie at very high addresses.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    size = max(1, -(-bits // 8))
    try:
        return np.frombuffer(mmap.mmap(-1, size, flags=flags), np.uint8)
    except (OSError, OverflowError, MemoryError):
        raise DumpError(
            f"no room for a bitmap of {size >> 20} MiB: so much memory the dump claims"
        ) from None


def set_bits(
    bitmap: npt.NDArray[np.uint8], pfn: int, bits: npt.NDArray[np.bool_]
) -> None:
    front = pfn % 8
    packed = np.packbits(
        np.concatenate((np.zeros(front, np.bool_), bits)), bitorder="little"
    )
    bitmap[pfn // 8 : pfn // 8 + len(packed)] |= packed
