# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Swapped-out memory
------------------

The ``drgn_tools.swap`` module provides helpers that read a task's memory wherever it
is: resident, in the swap cache, known to be zero, compressed in zswap or on a zram
device. What cannot be had is named: on another device, left out of the dump, poisoned.
x86-64 only.

The names need no import in ``drgn -e`` and in interactive sessions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from drgn import FaultError, IntegerLike, Object, Program, ProgramFlags
from drgn.helpers.common.prog import takes_program_or_default

if TYPE_CHECKING:
    from drgn_tools.page_tables import Entries
    from drgn_tools.printing import File
    from drgn_tools.swap_areas import Place, Swap

# numpy and the decoders are imported by those who need them: every drgn imports this.

__all__ = (
    "for_each_swap_task",
    "swap_map",
    "swap_pages",
    "swap_read",
    "swap_tasks",
    "swap_where",
)

_PAGE_SIZE = 4096
# How many times over a task maps all of the machine's memory, at the most.
_MAPPED = 16
# Pages decompressed together.
_BATCH = 256
# PID_MAX_LIMIT (:linux:`include/linux/threads.h`).
_MOST_TASKS = 1 << 22
# Of a running kernel: how often a page may move while it is read.
_TRIES = 8


class SwapFault(FaultError):  # type: ignore[misc]
    """
    Memory of a task that cannot be had.

    ``address`` is virtual, of the first byte of it.
    """


class SwapPage(NamedTuple):
    """A page of a task, and where it is."""

    address: int
    """Virtual."""
    kind: str
    """
    * resident: in memory, mapped
    * page cache: of a file or shared, in memory, not mapped
    * swap cache: in memory, on its way to swap or back
    * zero: all zeros when it was swapped out, and stored nowhere
    * zswap, zram: compressed in memory
    * device: on a device that is not zram
    * migration: in memory, and being moved there
    * device exclusive, device private: lent to a device; in its memory
    * file: of a file, and not in memory
    * untouched: there never was a page; of anonymous memory the task would read zeros
    * unmapped: nothing is mapped there
    * marker: no page, but a mark: guard, poisoned, uffd-wp or swapin error
    * hwpoison: lost to an error of the hardware
    * excluded: it is not in the dump, or what leads to it is not
    * damaged: what leads to it cannot be
    """
    where: str
    """The swap area that it has a slot in: zram0, vda2, swapfile; else empty."""
    slot: int | None
    """Its number there, in pages."""
    data: bytes | None
    """All 4096 bytes; None if they cannot be had."""
    note: str
    """Why not; or why they may not be right, for the kernel was changing them. Empty if
    all is well."""


class SwapRange(NamedTuple):
    """Neighbouring pages of a task that are in the same place."""

    start: int
    """Virtual address."""
    end: int
    """Virtual address behind it."""
    kind: str
    """See :attr:`SwapPage.kind`."""
    where: str
    """See :attr:`SwapPage.where`."""
    slot: int | None
    """Of the first page; those of the others follow."""
    note: str
    """Why it cannot be had, as far as that shows without decompressing."""

    @property
    def pages(self) -> int:
        """How many pages of 4096 bytes."""
        return (self.end - self.start) // _PAGE_SIZE


class SwapTask(NamedTuple):
    """
    A process, and how much of its own memory is swapped out. What it shares (tmpfs,
    SysV, shared anonymous mappings) is no process's and not counted;
    :func:`swap_map` has it.
    """

    pid: int
    comm: str
    pages: int | None
    """Anonymous pages in swap, as ``VmSwap`` counts them; None if that is not in the
    dump."""


def _memory_of(task: Object) -> Object:
    mm = task.mm.read_()
    if not mm:
        raise ValueError(f"task {task.pid.value_()} has no memory of its own")
    return mm


def _swap(prog: Program) -> Swap:
    from drgn_tools.swap_areas import Swap

    if prog.flags & ProgramFlags.IS_LIVE:
        return Swap(prog)
    # Of a dump, once.
    swap = prog.cache.get("drgn_tools_swap")
    if not isinstance(swap, Swap):
        swap = prog.cache["drgn_tools_swap"] = Swap(prog)
    return swap


class _Span(NamedTuple):
    # Neighbouring pages whose entries are alike.
    address: int
    pages: int
    # none, present, swap or unreadable.
    state: str
    # How many of them an entry is for.
    unit: int
    # Of a swap entry.
    type: int
    # The first page frame or offset, and how far each page's is from the one before.
    first: int
    step: int
    error: str


_STATES = ("none", "present", "swap")


def _spans(entries: Entries, start: int, end: int, mask: int) -> Iterator[_Span]:
    # What of *entries* is from start to end.
    import numpy as np

    from drgn_tools import page_tables

    shift = entries.shift
    if entries.words is None:
        pages = entries.size // _PAGE_SIZE
        error = entries.error
        span = _Span(entries.address, pages, "unreadable", pages, 0, 0, 0, error)
        yield _clipped(span, start, end)
        return
    words = entries.words
    pages = 1 << (shift - 12)
    none = page_tables.is_none(words)
    present = page_tables.is_present(words, shift) & ~none
    types, offsets = page_tables.swap_entries(words)
    frames = page_tables.page_frames(words, shift, mask)
    states = np.where(none, 0, np.where(present, 1, 2))
    types = np.where(states == 2, types, 0)
    values = np.where(present, frames, np.where(none, 0, offsets)).astype(np.int64)
    # Where each would lead if all were neighbours; of none, all are.
    bases = values - np.arange(len(words)) * np.where(none, 0, pages)
    breaks = (np.diff(states) != 0) | (np.diff(types) != 0) | (np.diff(bases) != 0)
    begins = [0, *(np.flatnonzero(breaks) + 1).tolist()]
    for begin, stop in zip(begins, [*begins[1:], len(words)]):
        state = _STATES[int(states[begin])]
        span = _Span(
            entries.address + (begin << shift),
            (stop - begin) * pages,
            state,
            pages,
            int(types[begin]),
            int(values[begin]),
            0 if state == "none" else 1,
            "",
        )
        yield _clipped(span, start, end)


def _clipped(span: _Span, start: int, end: int) -> _Span:
    cut = max(0, start - span.address) // _PAGE_SIZE
    stop = min(span.address + span.pages * _PAGE_SIZE, end)
    address = span.address + cut * _PAGE_SIZE
    return span._replace(
        address=address,
        pages=(stop - address) // _PAGE_SIZE,
        first=span.first + cut * span.step,
    )


class _Reader:
    # One task's pages.
    def __init__(self, mm: Object) -> None:
        from drgn_tools import mappings, page_tables

        self._mm = mm
        self._swap = _swap(mm.prog_)
        self._mask = page_tables.address_mask(mm.prog_)
        self._mappings = mappings.Mappings(mm)
        self._looked_at = 0

    def spans(self, start: int, end: int) -> Iterator[_Span]:
        from drgn_tools import page_tables

        for entries in page_tables.walk(self._mm, start, end):
            yield from _spans(entries, start, end, self._mask)

    def places(self, span: _Span) -> Iterator[tuple[int, int, Place]]:
        # Parts of a span: address, pages, where the first of them is. Page frames of
        # the others follow.
        from drgn_tools.swap_areas import Place

        if span.state == "unreadable":
            yield span.address, span.pages, Place("excluded", note=span.error)
        elif span.state == "present":
            yield span.address, span.pages, Place("resident", pfn=span.first)
        elif span.state == "none":
            yield from self._absent(span.address, span.pages)
        else:
            number = 0
            while number < span.pages:
                place = self._swap.place(span.type, span.first + number * span.step)
                address, count = span.address + number * _PAGE_SIZE, 1
                if place.pfn is None and place.slot is None:
                    # All that an entry is for is nowhere, which may be terabytes.
                    count = span.unit - address // _PAGE_SIZE % span.unit
                    count = min(count, span.pages - number)
                yield address, count, place
                number += count

    def _absent(self, address: int, pages: int) -> Iterator[tuple[int, int, Place]]:
        # Where there is no entry, the mapping says what would be.
        from drgn_tools.swap_areas import Place

        end = address + pages * _PAGE_SIZE
        while address < end:
            mapping = self._mappings.behind(address)
            begin = end if mapping is None else min(mapping.start, end)
            if address < begin:
                place = Place("unmapped", note="nothing is mapped there")
                if mapping is None and self._mappings.error:
                    place = Place("damaged", note=self._mappings.error)
                yield address, (begin - address) // _PAGE_SIZE, place
                address = begin
                continue
            assert mapping is not None
            stop = min(end, mapping.end)
            if mapping.pages is None:
                place = Place("untouched", note="it was never touched")
                yield address, (stop - address) // _PAGE_SIZE, place
            else:
                yield from self._swap.file_places(mapping, address, stop)
            address = stop

    def read(
        self, pages: int, place: Place
    ) -> Iterator[tuple[Place, bytes | None, str]]:
        # The pages of one of places().
        if place.pfn is not None:
            for data, why in self._swap.frames.read(place.pfn, pages):
                if data is None and place.otherwise is not None:
                    yield from self.read(1, place.otherwise())
                elif data is None:
                    yield place._replace(kind="excluded"), None, why
                else:
                    yield place, data, ""
        elif place.store is not None:
            ((data, why),) = place.store([place.item])
            yield place, data, why
        else:
            for _ in range(pages):
                yield place, None, place.note

    def pages(self, start: int, end: int) -> Iterator[SwapPage]:
        # What one store has is asked for together, which is much faster.
        waiting: list[tuple[int, Place]] = []
        for span in self.spans(start, end):
            for address, count, place in self.places(span):
                if waiting and (
                    place.store != waiting[0][1].store or len(waiting) == _BATCH
                ):
                    yield from _stored(waiting)
                    waiting = []
                if place.store is not None:
                    waiting.append((address, place))
                    continue
                for number, found in enumerate(self.read(count, place)):
                    yield _page(address + number * _PAGE_SIZE, *found)
        if waiting:
            yield from _stored(waiting)

    def ranges(self, start: int, end: int) -> Iterator[SwapRange]:
        for span in self.spans(start, end):
            for address, count, place in self.places(span):
                if place.pfn is None:
                    stop = address + count * _PAGE_SIZE
                    yield _range(address, stop, place, place.note)
                    continue
                self._looked_at += count
                if self._looked_at > _MAPPED * self._swap.max_pfn:
                    raise ValueError("the task maps more than there can be: damaged")
                # Whether the dump has it.
                for number, (found, _, why) in enumerate(self.read(count, place)):
                    page = address + number * _PAGE_SIZE
                    yield _range(page, page + _PAGE_SIZE, found, why)

    def live_pages(self, start: int, end: int) -> Iterator[SwapPage]:
        for first in range(start, end, _BATCH * _PAGE_SIZE):
            stop = min(first + _BATCH * _PAGE_SIZE, end)
            yield from self._steady(first, stop, _TRIES)

    def _steady(self, start: int, end: int, tries: int) -> Iterator[SwapPage]:
        # Of a running kernel: a page counts if it is where it was before it was read.
        before = self._identity(start, end)
        pages = list(self.pages(start, end))
        middle = (start + end) // 2 // _PAGE_SIZE * _PAGE_SIZE
        if self._identity(start, end) == before:
            yield from pages
        elif start < middle:
            yield from self._steady(start, middle, tries)
            yield from self._steady(middle, end, tries)
        elif tries:
            yield from self._steady(start, end, tries - 1)
        else:
            note = "it is in another place at each look"
            yield SwapPage(start, "damaged", "", None, None, note)

    def _identity(self, start: int, end: int) -> list[Any]:
        return [
            (address, place.kind, place.where, place.slot, place.pfn)
            for span in self.spans(start, end)
            for address, _, place in self.places(span)
        ]


def _page(address: int, place: Place, data: bytes | None, why: str) -> SwapPage:
    return SwapPage(address, place.kind, place.where, place.slot, data, why)


def _stored(waiting: list[tuple[int, Place]]) -> Iterator[SwapPage]:
    store = waiting[0][1].store
    assert store is not None
    results = store([place.item for _, place in waiting])
    for (address, place), found in zip(waiting, results):
        yield _page(address, place, *found)


def _range(start: int, end: int, place: Place, why: str) -> SwapRange:
    return SwapRange(start, end, place.kind, place.where, place.slot, why)


def as_range(page: SwapPage) -> SwapRange:
    """A page as a range of its own."""
    end = page.address + _PAGE_SIZE
    return SwapRange(page.address, end, page.kind, page.where, page.slot, page.note)


def joined(ranges: Iterable[SwapRange]) -> Iterator[SwapRange]:
    """Ranges in order, neighbours that are in the same place made one."""
    last: SwapRange | None = None
    for one in ranges:
        if last is not None:
            slot = None if last.slot is None else last.slot + last.pages
            if (last.kind, last.where, slot) == (one.kind, one.where, one.slot) and (
                last.note == one.note or one.kind == "excluded"
            ):
                last = last._replace(end=one.end)
                continue
            yield last
        last = one
    if last is not None:
        yield last


def swap_pages(
    task: Object, address: IntegerLike, size: IntegerLike
) -> Iterator[SwapPage]:
    """
    Iterate over the pages of a task's memory, wherever they are.

    :param task: ``struct task_struct *``
    :param address: virtual, of the first byte.
    :param size: in bytes. Pages are whole, even if only a part of them is asked for.
    :raises ValueError: if the task has no memory of its own, *address* or *size* are
        negative, or this is no x86-64 kernel.
    :raises FaultError: if the task is not in the dump.
    """
    start, length = int(address), int(size)
    if start < 0 or length < 0:
        raise ValueError("an address and a size are not negative")
    mm = _memory_of(task)
    end = -(-(start + length) // _PAGE_SIZE) * _PAGE_SIZE
    start = start // _PAGE_SIZE * _PAGE_SIZE
    if not length:
        return iter(())
    reader = _Reader(mm)
    if task.prog_.flags & ProgramFlags.IS_LIVE:
        return reader.live_pages(start, end)
    return reader.pages(start, end)


def swap_read(task: Object, address: IntegerLike, size: IntegerLike) -> bytes:
    """
    Read a task's memory, wherever it is.

    Like :func:`drgn.helpers.linux.mm.access_process_vm()`, but what is swapped out is
    found in the order in which the kernel would: in the swap cache, in the zero map,
    in zswap, on a zram device.

    >>> swap_read(find_task(1490152), 0x7f8a62b56da0, 12)
    b'hello, world'

    :param task: ``struct task_struct *``
    :param address: virtual.
    :param size: in bytes.
    :raises SwapFault: at the first byte that cannot be had, with its address and why.
        :func:`swap_pages()` gives those that can, and says which the kernel was
        changing.
    :raises ValueError: like :func:`swap_pages()`.
    :raises FaultError: likewise.
    """
    start, length = int(address), int(size)
    parts = []
    at = start
    for page in swap_pages(task, start, length):
        if page.data is None:
            raise SwapFault(f"{page.kind}: {page.note}", max(start, page.address))
        part = page.data[at - page.address : start + length - page.address]
        parts.append(part)
        at += len(part)
    if at < start + length:
        raise SwapFault("no address of user space", at)
    return b"".join(parts)


def swap_map(
    task: Object, address: IntegerLike = 0, size: IntegerLike | None = None
) -> Iterator[SwapRange]:
    """
    Iterate over what a task has mapped, saying where each page is.

    Nothing is decompressed: of zswap and zram it says that a page is there, not that
    it is sound.

    :param task: ``struct task_struct *``
    :param address: virtual; only mappings from there on.
    :param size: in bytes; None for all.
    :raises LookupError: where the task's mappings are damaged, after those in front.
    :raises ValueError: like :func:`swap_pages()`.
    :raises FaultError: likewise, or where mappings are not in the dump.
    """
    from drgn_tools.mappings import for_each_mapping

    mm = _memory_of(task)
    start = int(address) // _PAGE_SIZE * _PAGE_SIZE
    end = 1 << 64 if size is None else int(address) + int(size)
    reader = _Reader(mm)
    for mapping in for_each_mapping(mm):
        first, stop = max(mapping.start, start), min(mapping.end, end)
        if first < stop:
            yield from joined(reader.ranges(first, -(-stop // _PAGE_SIZE) * _PAGE_SIZE))


def find_task(prog: Program, pid: int) -> Object:
    """
    ``struct task_struct *`` of a process ID.

    :raises LookupError: if there is none.
    """
    from drgn.helpers.linux import pid as pids

    task = pids.find_task(prog, pid)
    if not task:
        raise LookupError(f"there is no task {pid}")
    return task


def comm(task: Object) -> str:
    """A task's name, printable."""
    from drgn_tools.text import printable

    return printable(task.comm.string_().decode("utf-8", "backslashreplace"))


@takes_program_or_default
def for_each_swap_task(prog: Program) -> Iterator[SwapTask]:
    """
    Iterate over processes that have memory in swap, by their counters
    (:linux:`include/linux/mm_types.h`, ``mm_struct.rss_stat``). Shared memory does not
    count: those that have nothing else in swap are left out.

    :raises LookupError: if the tasks are damaged.
    :raises FaultError: if they are not in the dump.
    """
    from itertools import islice

    from drgn.helpers.linux.pid import for_each_task

    for task in islice(for_each_task(prog), _MOST_TASKS):
        try:
            # Threads share what their process has.
            if task.pid.value_() != task.tgid.value_() or not task.mm.value_():
                continue
            pid, name = task.pid.value_(), comm(task)
        except FaultError:
            continue
        try:
            pages = _swapped(task)
        except FaultError:
            pages = None
        if pages != 0:
            yield SwapTask(pid, name, pages)


# drgn 0.0.31 has neither task_rss() nor for_each_task_in_group().
def _swapped(task: Object) -> int:
    from itertools import islice

    from drgn.helpers.linux.list import list_for_each_entry
    from drgn.helpers.linux.percpu import percpu_counter_sum

    number = task.prog_.constant("MM_SWAPENTS")
    stat = task.mm.rss_stat
    if hasattr(stat, "count"):
        # Until 6.2 (f1a7941243c1).
        pages = stat.count[number].counter.value_()
        threads = list_for_each_entry(
            "struct task_struct", task.signal.thread_head.address_of_(), "thread_node"
        )
        for thread in islice(threads, _MOST_TASKS):
            # What it has not added yet, on machines with locks that need that.
            if not hasattr(thread, "rss_stat"):
                break
            pages += thread.rss_stat.count[number].value_()
    else:
        pages = percpu_counter_sum(stat[number].address_of_())
    # Of a running kernel, they are of different moments.
    return max(0, int(pages))


@takes_program_or_default
def swap_tasks(prog: Program, *, file: File | None = None) -> None:
    """
    Print the processes that have memory in swap, those with the most first. Shared
    memory does not count, so :func:`swap_where` may find more, and those that have
    nothing else in swap are left out.

    :param file: File to print to. Defaults to :data:`sys.stdout`.
    :raises LookupError: if the tasks are damaged.
    :raises FaultError: if they are not in the dump.
    """
    from drgn_tools.older_drgn import print_table
    from drgn_tools.printing import printing, say

    def work(out: File) -> None:
        tasks = sorted(for_each_swap_task(prog), key=lambda task: -(task.pages or 0))
        if not tasks:
            say("swap", "no task has memory in swap")
            return
        rows: list[list[Any]] = [["PID", "PAGES", "COMM"]]
        for task in tasks:
            pages = "-" if task.pages is None else task.pages
            rows.append([task.pid, pages, task.comm])
        print_table(rows, out)

    printing("swap", prog, file, work)


@takes_program_or_default
def swap_where(
    prog: Program,
    pid: int,
    *,
    address: int = 0,
    size: int | None = None,
    file: File | None = None,
) -> None:
    """
    Print where a task's pages are: how many in each kind of place, and every range.

    >>> swap_where(182)
    task 182 (fill-swap)
    PAGES  KIND
      174  resident
     1280  zram
      583  untouched

    START           END             PAGES  KIND       WHERE  SLOT
    0x400000        0x401000            1  resident   -      -
    0x7f72c5200000  0x7f72c5700000   1280  zram       zram0  1

    :param pid: process ID.
    :param address: virtual; only mappings from there on. As a command's, hexadecimal
        with or without 0x.
    :param size: of what is looked at, in bytes; by default, all. As a command's, with
        0x, or with k, m or g behind it.
    :param file: File to print to. Defaults to :data:`sys.stdout`.
    :raises LookupError: if there is no such task, nothing is mapped there, or its
        mappings are damaged; what is in front is printed.
    :raises ValueError: like :func:`swap_pages()`.
    :raises FaultError: likewise.
    """
    from drgn_tools.printing import printing

    def work(out: File) -> None:
        task = find_task(prog, pid)
        found: list[SwapRange] = []
        try:
            found.extend(swap_map(task, address, size))
        finally:
            if found:
                out.write(f"task {pid} ({comm(task)})\n")
                _print_ranges(found, out)
        if not found:
            raise LookupError(nothing_mapped(address, size))

    printing("swap", prog, file, work)


def nothing_mapped(address: int, size: int | None) -> str:
    """That no mapping is there, for a person."""
    where = f"{address:#x}"
    if size is not None:
        return f"nothing is mapped at {where}-{address + size:#x}"
    return f"nothing is mapped at {where} or behind it"


def totals(ranges: Iterable[SwapRange]) -> dict[str, int]:
    """How many pages there are of each kind."""
    counts: dict[str, int] = {}
    for one in ranges:
        counts[one.kind] = counts.get(one.kind, 0) + one.pages
    return counts


def _print_ranges(ranges: list[SwapRange], out: File) -> None:
    from drgn_tools.older_drgn import print_table
    from drgn_tools.text import printable

    rows: list[list[Any]] = [["PAGES", "KIND"]]
    rows += [[pages, kind] for kind, pages in totals(ranges).items()]
    print_table(rows, out)
    out.write("\n")
    rows = [["START", "END", "PAGES", "KIND", "WHERE", "SLOT", "NOTE"]]
    for one in ranges:
        rows.append(
            [
                f"{one.start:#x}",
                f"{one.end:#x}",
                one.pages,
                one.kind,
                printable(one.where) or "-",
                "-" if one.slot is None else one.slot,
                # Of untouched pages, the kind says it all.
                "" if one.kind == "untouched" else printable(one.note),
            ]
        )
    print_table(rows, out)
