# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What goes into the output
-------------------------

The pages of a plan as a kdump-compressed file, as a set of them that share the
work, or as an ELF core. All is cut into items; whoever works on one compresses
its pages, reserves room at the end of the output and writes them. Nobody waits
for an order, because the formats need none.
"""

from __future__ import annotations

import abc
import bisect
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Callable, NamedTuple

import numpy as np
import numpy.typing as npt

from drgn_tools.checksums import ROW, Row, crc32, pack_trailer, rows_of
from drgn_tools.codecs import Buffer, Codec, Compress
from drgn_tools.errors import DumpError, OutputBroken, OutputFull
from drgn_tools.formats import elf, kdump
from drgn_tools.formats.notes import SNAP
from drgn_tools.output import Output
from drgn_tools.pages import PageClass, dump_level
from drgn_tools.plan import UNIT_PFNS, Plan
from drgn_tools.vmcore import Run, Vmcore, bitmap_runs, runs_mask
from drgn_tools.vmcoreinfo import if_sound
from drgn_tools.workers import Counters, SharedBytes

# Pages a worker takes at a time: few writes, and no worker left alone for long.
_ITEM_PAGES = 1024
# Bytes of bitmap written at once; pieces that are all zero become holes.
_BITMAP_PIECE = 1 << 16
# Items whose descriptors are written at once. Of a stream that is cut, the pages
# are lost whose descriptors have not come; but crash, which sorts the pieces of a
# flattened file one by one, takes long over many of them.
_FLUSHED_ITEMS = 8
# Fewer excluded pages than this do not end an ELF segment, as in makedumpfile:
# they read as zeros.
_ELF_GAP = 256
# For more program headers than planned, where pages turn out to be missing: a hole
# in the file.
_ELF_SPARE = 1 << 16
# Of a page of an ELF core: its data is in the file; it is zero, and a hole.
_WRITTEN, _HOLE = 1, 2

# What workers count: whether there is no more room, errno of what else was in the
# way, and then, per output, where its end is.
_FULL, _ERRNO, _ENDS = range(3)

Pfns = npt.NDArray[np.int64]


class Tally(NamedTuple):
    """Pages of some items."""

    written: int
    zero: int
    """Of these, pages of zeros that take no room of their own."""


class Writer(abc.ABC):
    """
    Writes the pages of a plan.

    :meth:`start` and :meth:`finish` are for the process that made it, with
    :meth:`write_item`, by any process, for each item in between.
    """

    def __init__(
        self,
        vmcore: Vmcore,
        plan: Plan,
        outputs: Sequence[Output],
        limit: int | None,
    ) -> None:
        self.vmcore = vmcore
        self.plan = plan
        self._outputs = outputs
        self._limit = limit
        #: Why some of the output, nobody knows what, may not be on the disk.
        self.doubt = ""
        # Whether the output says that pages are missing: a file does until it is
        # known that none is, whatever becomes of this process.
        self._marked = outputs[0].sparse
        self._counters = Counters(_ENDS + len(outputs))
        ranks = plan.units[:, 1]
        # A part ends where a unit does, so that no two have a bit in one byte.
        shares = [plan.pages * n // len(outputs) for n in range(1, len(outputs))]
        self._part_rows = [0, *np.searchsorted(ranks, shares).tolist(), len(ranks)]
        numbers = ranks // _ITEM_PAGES
        begins = np.diff(numbers, prepend=-1) != 0
        begins[[row for row in self._part_rows if row < len(ranks)]] = True
        starts = np.flatnonzero(begins).tolist()
        self._rows = list(zip(starts, [*starts[1:], len(ranks)]))
        urgency = [plan.urgency[a:b].max(initial=0) for a, b in self._rows]
        #: Numbers of the items, as they are to be written.
        self.order: list[int] = np.argsort(
            -np.array(urgency, np.int64), kind="stable"
        ).tolist()
        #: Pages before each item, and all of them.
        self.before: list[int] = [*ranks[starts].tolist(), plan.pages]
        sizes = np.diff(np.array(self.before, np.int64))
        self._written_pages = np.concatenate(([0], np.cumsum(sizes[self.order])))

    @property
    def items(self) -> int:
        """How many items there are."""
        return len(self._rows)

    @property
    def full(self) -> bool:
        """There was no room for all."""
        return bool(self._counters[_FULL])

    @property
    def fault(self) -> str:
        """Why pages could not be written, if not for want of room; or empty."""
        number = self._counters[_ERRNO]
        return os.strerror(number) if number else ""

    @abc.abstractmethod
    def start(self) -> None:
        """
        Write all that is known before a page is read.

        :raises OutputFull: if there is no room even for that.
        """

    def write_item(self, number: int) -> None:
        """
        Write the pages of an item; nothing if there is no more room.

        :raises MissingMemory: if one of them cannot be read.
        """
        self._write(number, self._pages(number))

    def write_page(self, number: int, index: int) -> None:
        """Write one page of an item that :meth:`write_item` failed at."""
        for pfns, rank in self._pages(number):
            if index < len(pfns):
                page = [(pfns[index : index + 1], rank + index)]
                self._write(number, page, alone=True)
                return
            index -= len(pfns)

    def pfns(self, number: int) -> list[int]:
        """Page frames of an item."""
        return [pfn for pfns, _ in self._pages(number) for pfn in pfns.tolist()]

    def pages_of(self, done: int) -> int:
        """How many pages the first items of :attr:`order` have."""
        return int(self._written_pages[done])

    @abc.abstractmethod
    def flush(self, done: int) -> None:
        """Write what the first items of :attr:`order` have left to be written."""

    @abc.abstractmethod
    def rewrite(self, number: int) -> None:
        """Do so again for an item whose pages were written one by one."""

    @abc.abstractmethod
    def has(self, number: int, index: int) -> bool:
        """
        Whether a page was written, by someone who could not say so any more;
        before :meth:`rewrite`.
        """

    @abc.abstractmethod
    def tally(self) -> Tally:
        """What was written."""

    def finish(self, incomplete: bool, keep: bool) -> int:
        """
        Write what is left, and bring it all to where it belongs.

        :param incomplete: say in the output that pages are missing.
        :param keep: if there is no room for some of it after all, the rest is kept,
            and said to be incomplete: :attr:`doubt`. So it is if the disk has a fault.
        :return: size of the output.
        :raises OutputFull: if there is no room for it after all, unless it is kept.
        :raises DumpError: if it cannot be brought there.
        """
        sizes = self._complete(incomplete)
        try:
            self._sync(sizes)
        except (OutputFull, OutputBroken) as error:
            if isinstance(error, OutputFull) and not keep:
                raise
            # What is written again is brought to the disk again, or that is said
            # again: then nothing of it is trusted.
            self._marked = False
            sizes = self._complete(True)
            self._sync(sizes)
            self.doubt = str(error)
        # None before all are whole, and none beside one of an earlier set.
        for output in self._outputs[1:]:
            output.make_way()
        _try_all(output.publish for output in self._outputs)
        return sum(sizes)

    def _sync(self, sizes: list[int]) -> None:
        _try_all(
            functools.partial(output.sync, size)
            for output, size in zip(self._outputs, sizes)
        )

    @abc.abstractmethod
    def _complete(self, incomplete: bool) -> list[int]:
        """
        Write what is left, and put the mark or take it away; returns the sizes of the
        outputs.
        """

    def close(self) -> None:
        self._counters.close()

    def _pages(self, number: int) -> list[tuple[Pfns, int]]:
        """Page frames to write, per unit, and how many there are before them."""
        first, end = self._rows[number]
        dumpable = self.plan.dumpable
        pages = []
        for pfn, rank in self.plan.units[first:end].tolist():
            bits = dumpable[pfn // 8 : (pfn + UNIT_PFNS) // 8]
            pfns = pfn + np.flatnonzero(np.unpackbits(bits, bitorder="little"))
            pages.append((pfns, rank))
        return pages

    @abc.abstractmethod
    def _write(
        self, number: int, pieces: list[tuple[Pfns, int]], alone: bool = False
    ) -> None:
        """
        Write pages of an item, given as :meth:`_pages` gives them.

        :param alone: it is one page, which others follow.
        """

    def _put(self, output: Output, data: bytes, offset: int) -> int:
        """Write data; returns for how many bytes there was room."""
        try:
            output.write(data, offset)
        except (OutputFull, OutputBroken) as error:
            self._note(error)
            return error.written
        # Pages wait for the disk as soon as there are some.
        output.start_writeback(offset, len(data))
        return len(data)

    def _note(self, error: OutputFull | OutputBroken) -> None:
        if isinstance(error, OutputFull):
            self._counters[_FULL] = 1
        else:
            # There may be sound blocks behind it.
            self._counters[_ERRNO] = error.number


def _try_all(actions: Iterable[Callable[[], None]]) -> None:
    failed = None
    for action in actions:
        try:
            action()
        except (OutputFull, OutputBroken) as error:
            failed = error
    if failed:
        raise failed


class _Part(NamedTuple):
    """One file of a kdump-compressed dump, nearly always the only one."""

    number: int
    output: Output
    header: kdump.Header
    first: int
    """Pages before the first one in this part."""
    pages: int
    zero_page: int
    """0 if zero pages are pages like all others."""
    data: int
    """Where page data begins."""

    def descriptor_at(self, rank: int) -> int:
        size: int = kdump.DESCRIPTOR.itemsize
        return self.header.descriptors_offset + (rank - self.first) * size


class KdumpWriter(Writer):
    """
    Writes a kdump-compressed file, or one for each of several outputs.

    Workers leave the descriptors in a table that all share; the process that
    made it writes them out.

    :param excluded: classes that the plan leaves out.
    :param codec: None stores pages as they are.
    :param limit: bytes that no file is to exceed.
    """

    def __init__(
        self,
        vmcore: Vmcore,
        plan: Plan,
        outputs: Sequence[Output],
        limit: int | None,
        excluded: frozenset[PageClass],
        codec: Codec | None,
        compress: Compress | None,
    ) -> None:
        super().__init__(vmcore, plan, outputs, limit)
        self._flag = codec.flag if codec else 0
        self._compress = compress
        self._shared_table = SharedBytes(plan.pages * kdump.DESCRIPTOR.itemsize)
        self._table = self._shared_table.array.view(kdump.DESCRIPTOR)
        self._flushed = 0
        self._tallies = np.zeros((self.items, 2), np.int64)
        # Where the data that descriptors lead to ends, per part.
        self._data_ends = [0] * len(outputs)
        # Checksums of what workers wrote: for each item; for each page, where one
        # was written by itself, which costs nothing where none was.
        self._item_rows = SharedBytes(self.items * ROW.itemsize).array.view(ROW)
        self._page_rows = SharedBytes(plan.pages * ROW.itemsize).array.view(ROW)
        # Of the items' descriptors.
        self._descriptor_rows = np.zeros(self.items, ROW)
        self._rewritten: list[int] = []
        # Of all the rest: per part, by where it is.
        self._checksums: list[dict[int, Row]] = [{} for _ in outputs]
        self._share_zeros = PageClass.ZERO in excluded
        self._parts = self._make_parts(dump_level(excluded))
        self._part_of = [
            max(n for n, at in enumerate(self._part_rows[:-1]) if at <= row)
            for row, _ in self._rows
        ]

    def _make_parts(self, level: int) -> list[_Part]:
        header = self._header(level)
        units, rows = self.plan.units, self._part_rows
        ends = [0]
        for row in rows[1:-1]:
            at = units[row, 0] if row < len(units) else header.max_mapnr
            ends.append(int(at))
        ends.append(header.max_mapnr)
        firsts = [int(units[r, 1]) if r < len(units) else self.plan.pages for r in rows]
        parts = []
        for number, output in enumerate(self._outputs):
            if len(self._outputs) > 1:
                header = header._replace(
                    split=1, start_pfn=ends[number], end_pfn=ends[number + 1]
                )
            pages = firsts[number + 1] - firsts[number]
            # makedumpfile --reassemble looks for the page of zeros behind as many
            # descriptors as all parts have.
            size = self.plan.pages * kdump.DESCRIPTOR.itemsize
            data = header.descriptors_offset + size
            zero_page = data if self._share_zeros else 0
            if zero_page:
                data += self.vmcore.page_size
            parts.append(
                _Part(number, output, header, firsts[number], pages, zero_page, data)
            )
        return parts

    def _header(self, level: int) -> kdump.Header:
        vmcore = self.vmcore
        info = vmcore.vmcoreinfo
        crash_time = if_sound(lambda: info.decimal("CRASHTIME")) if info else None
        phys_base = if_sound(lambda: info.number("phys_base")) if info else None
        old = vmcore.header
        incomplete = kdump.STATUS_INCOMPLETE if vmcore.lost_bytes else 0
        if old is not None:
            incomplete |= old.status & kdump.STATUS_INCOMPLETE
        return kdump.new_header(
            utsname=vmcore.utsname(),
            timestamp=crash_time or (old.timestamp if old else 0),
            status=self._flag | incomplete,
            block_size=vmcore.page_size,
            nr_cpus=vmcore.nr_cpus,
            phys_base=phys_base or (old.phys_base if old else 0),
            dump_level=level,
            notes=vmcore.notes,
            vmcoreinfo=vmcore.vmcoreinfo_place,
            max_mapnr=self.plan.max_mapnr,
        )

    def _put_checked(self, part: _Part, data: bytes, offset: int) -> None:
        """Write what is not data of pages."""
        part.output.write(data, offset)
        self._checksums[part.number][offset] = Row(offset, len(data), crc32(data))

    def start(self) -> None:
        for part in self._parts:
            if self._limit is not None and part.data > self._limit:
                raise OutputFull(f"the limit of {self._limit} bytes is too small")
            self._counters[_ENDS + part.number] = part.data
            self._write_headers(part, self._marked)
            self._write_bitmaps(part)
            if part.pages:
                size = part.pages * kdump.DESCRIPTOR.itemsize
                part.output.reserve(part.header.descriptors_offset, size)
            if part.zero_page:
                zeros = bytes(self.vmcore.page_size)
                self._put_checked(part, zeros, part.zero_page)
            # Of the room for the other parts' descriptors, which stays empty.
            begin = part.descriptor_at(part.first + part.pages)
            for row in rows_of(lambda n, _: bytes(n), begin, part.zero_page or begin):
                self._checksums[part.number][row.offset] = row

    def _write_headers(self, part: _Part, incomplete: bool) -> None:
        status = part.header.status | (kdump.STATUS_INCOMPLETE if incomplete else 0)
        header = part.header._replace(status=status)
        self._put_checked(part, kdump.pack_headers(header, self.vmcore.notes), 0)

    def _write_bitmaps(self, part: _Part) -> None:
        header = part.header
        start = header.bitmap_offset + header.bitmap_size
        # The bitmap of what exists is made as it is written: it may be large.
        for at in range(0, header.bitmap_size, _BITMAP_PIECE):
            size = min(_BITMAP_PIECE, header.bitmap_size - at)
            end = min(8 * (at + size), header.max_mapnr)
            mask = runs_mask(self.vmcore.ram_runs, 8 * at, max(8 * at, end))
            exists = np.packbits(mask, bitorder="little").tobytes()
            dumped = self.plan.dumpable[at : at + size].tobytes()
            for bits, offset in ((exists, header.bitmap_offset), (dumped, start)):
                data = bits.ljust(size, b"\0")
                if not part.output.sparse or any(bits):
                    self._put_checked(part, data, offset + at)
                else:
                    row = Row(offset + at, size, crc32(data))
                    self._checksums[part.number][row.offset] = row

    def _write(
        self, number: int, pieces: list[tuple[Pfns, int]], alone: bool = False
    ) -> None:
        if self.full:
            return
        part = self._parts[self._part_of[number]]
        page_size = self.vmcore.page_size
        compress = self._compress
        # No page equals nothing.
        zeros = bytes(page_size) if part.zero_page else b""
        data: list[Buffer] = []
        for pfns, _ in pieces:
            for page in self.vmcore.pages(pfns):
                if page == zeros:
                    data.append(b"")
                elif compress is None:
                    data.append(page)
                else:
                    packed = compress(page)
                    data.append(packed if len(packed) < page_size else page)
        lengths = np.fromiter(map(len, data), np.int64, len(data))
        blob = b"".join(data)
        base = room = 0
        if blob:
            end = _ENDS + part.number
            with self._counters.locked():
                base = self._counters[end]
                if self._limit is not None and base + len(blob) > self._limit:
                    self._counters[_FULL] = 1
                    return
                self._counters[end] = base + len(blob)
            room = self._put(part.output, blob, base)
        empty = lengths == 0
        rank = pieces[0][1]
        ends = np.cumsum(lengths)
        # Of a page for which there was no room, nothing counts.
        room = int(ends[ends <= room].max(initial=0))
        row = (self._page_rows, rank) if alone else (self._item_rows, number)
        crc = crc32(memoryview(blob)[:room])
        # Its size last: without it, the row is none.
        row[0][row[1]] = base, 0, crc
        row[0]["size"][row[1]] = room
        rows = self._table[rank : rank + len(data)]
        rows["size"] = np.where(empty, page_size, lengths)
        rows["flags"] = np.where(empty | (lengths == page_size), 0, self._flag)
        # Last: where there is an offset, all the rest is there too, whatever
        # becomes of this process.
        offsets = np.where(empty, part.zero_page, base + ends - lengths)
        rows["offset"] = np.where(ends <= room, offsets, 0)

    def flush(self, done: int) -> None:
        size = kdump.DESCRIPTOR.itemsize
        # In the same pieces whenever it is called.
        while self._flushed < done:
            first, end = self._flushed, self._flushed + _FLUSHED_ITEMS
            if end > done:
                if done < self.items:
                    break
                end = done
            numbers = np.sort(self.order[first:end])
            cuts = np.flatnonzero(np.diff(numbers) != 1) + 1
            pieces = [
                (int(piece[0]), int(piece[-1]) + 1)
                for piece in np.split(numbers, cuts)
                if len(piece)
            ]
            for begin, stop in pieces:
                self._write_descriptors(begin, stop)
            # Not before: a signal may end it anywhere, and then it is done again.
            self._flushed = end
            for begin, stop in pieces:
                self._shared_table.give_back(
                    self.before[begin] * size, self.before[stop] * size
                )

    def rewrite(self, number: int) -> None:
        self._rewritten.append(number)
        self._write_descriptors(number, number + 1)

    def has(self, number: int, index: int) -> bool:
        return bool(self._table["offset"][self.before[number] + index])

    def _write_descriptors(self, first: int, end: int) -> None:
        for number in range(first, end):
            rows = self._table[self.before[number] : self.before[number + 1]]
            part_number = self._part_of[number]
            zero_page = self._parts[part_number].zero_page
            offsets = rows["offset"]
            zeros = np.count_nonzero(offsets == zero_page) if zero_page else 0
            self._tallies[number] = np.count_nonzero(offsets), zeros
            data_end = int(np.max(np.where(offsets, offsets + rows["size"], 0)))
            self._data_ends[part_number] = max(self._data_ends[part_number], data_end)
            at = self._parts[part_number].descriptor_at(self.before[number])
            self._descriptor_rows[number] = at, rows.nbytes, crc32(rows.tobytes())
        for part in self._parts:
            start = max(self.before[first], part.first)
            stop = min(self.before[end], part.first + part.pages)
            if start < stop:
                data = self._table[start:stop].tobytes()
                try:
                    part.output.write(data, part.descriptor_at(start))
                except (OutputFull, OutputBroken) as error:
                    # They read as zeros: pages that are missing.
                    self._note(error)
                    self._tallies[first:end] = 0
                    self._descriptor_rows[first:end] = 0

    def tally(self) -> Tally:
        return Tally(*self._tallies.sum(axis=0).tolist())

    def _complete(self, incomplete: bool) -> list[int]:
        if incomplete != self._marked:
            for part in self._parts:
                self._write_headers(part, incomplete)
            self._marked = incomplete
        sizes = []
        for part in self._parts:
            end = max(part.data, self._data_ends[part.number])
            sizes.append(end + self._write_checksums(part, end))
        return sizes

    def _write_checksums(self, part: _Part, end: int) -> int:
        """Write the table of checksums at the end of a part; returns its size."""
        mine = np.array(self._part_of, np.int64) == part.number
        found = [
            np.array(list(self._checksums[part.number].values()), ROW),
            self._descriptor_rows[mine],
            self._item_rows[mine],
        ]
        for number in self._rewritten:
            if self._part_of[number] == part.number:
                pages = slice(self.before[number], self.before[number + 1])
                found.append(self._page_rows[pages])
        rows = np.concatenate(found)
        # What workers that were killed wrote is of no page.
        ends = rows["offset"] + rows["size"]
        table = pack_trailer(rows[(rows["size"] > 0) & (ends <= end)], end)
        if self._limit is not None and end + len(table) > self._limit:
            return 0
        try:
            part.output.write(table, end)
        except (OutputFull, OutputBroken):
            return 0
        return len(table)


class ElfWriter(Writer):
    """
    Writes an ELF core. Excluded pages read as zeros where they are few between
    others: a program header each would be too many. Where pages are missing for
    another reason, there is no memory.

    :raises DumpError: if *vmcore* has no program headers to go by.
    """

    def __init__(
        self, vmcore: Vmcore, plan: Plan, outputs: Sequence[Output], limit: int | None
    ) -> None:
        super().__init__(vmcore, plan, outputs, limit)
        if not vmcore.loads:
            raise DumpError(
                f"{vmcore.path} is {vmcore.format}: an ELF core needs virtual "
                "addresses, which only an ELF core has"
            )
        self._runs = _joined(bitmap_runs(plan.dumpable, plan.max_mapnr))
        lengths = [run.end_pfn - run.pfn for run in self._runs]
        self._file_pages = sum(lengths)
        # Of each run, the pages of the file before it.
        pages_before = [0, *np.cumsum(lengths).tolist()]
        self._starts = np.array([run.pfn for run in self._runs], np.int64)
        self._was_incomplete = vmcore.lost_bytes > 0
        size = vmcore.page_size
        self._notes = vmcore.notes
        if vmcore.live:
            # In an ELF core, crash 9.0.2 finds no kernel beside this one.
            self._notes = self._notes.replace(SNAP, b"")
        data = self._make_header(self._runs, pages_before, 0).data + _ELF_SPARE
        self._header = self._make_header(self._runs, pages_before, data)
        self._shifts = self._header.data + size * (
            np.array(pages_before[:-1], np.int64) - self._starts
        )
        self._counters[_ENDS] = self._header.data + self._file_pages * size
        # Which pages are in the file, set by whoever writes them.
        self._there = SharedBytes(plan.pages).array

    def _make_header(
        self,
        runs: list[Run],
        pages_before: list[int],
        least: int,
        missing: Sequence[int] = (),
    ) -> elf.Header:
        size = self.vmcore.page_size
        segments = []
        for load in self.vmcore.loads:
            for segment in _segments(load, runs, pages_before, size):
                first = (segment.paddr + segment.filesz) // size
                end = -(-(segment.paddr + segment.memsz) // size)
                index = bisect.bisect_left(missing, first)
                if index < len(missing) and missing[index] < end:
                    # Readers take memory without data for zeros.
                    segment = segment._replace(memsz=segment.filesz)
                if segment.memsz:
                    segments.append(segment)
        return elf.new_header(segments, self._notes, size, least)

    def start(self) -> None:
        if self._limit is not None and self._header.data > self._limit:
            raise OutputFull(f"the limit of {self._limit} bytes is too small")
        flags = elf.DUMP_INCOMPLETE if self._marked else 0
        self._outputs[0].write(elf.pack_header(self._header, flags), 0)

    def write_item(self, number: int) -> None:
        super().write_item(number)
        if not self._outputs[0].sparse:
            for pfn, _ in self.plan.units[slice(*self._rows[number])].tolist():
                self._write_gaps(pfn)

    def _write_gaps(self, pfn: int) -> None:
        """Write zeros for the excluded pages that a unit has in the file."""
        bits = self.plan.dumpable[pfn // 8 : (pfn + UNIT_PFNS) // 8]
        in_file = runs_mask(self._runs, pfn, pfn + UNIT_PFNS)
        in_file[: 8 * len(bits)] &= np.unpackbits(bits, bitorder="little") == 0
        gaps = pfn + np.flatnonzero(in_file)
        zeros = bytes(self.vmcore.page_size)
        for start, stop in self._in_one_place(gaps):
            offset = self._offsets(gaps[start : start + 1])[0]
            self._put(self._outputs[0], zeros * (stop - start), int(offset))

    def _write(
        self, number: int, pieces: list[tuple[Pfns, int]], alone: bool = False
    ) -> None:
        output = self._outputs[0]
        zeros = bytes(self.vmcore.page_size)
        for pfns, rank in pieces:
            ranks = rank + np.arange(len(pfns))
            pages = list(self.vmcore.pages(pfns))
            if output.sparse:
                is_zero = np.fromiter((page == zeros for page in pages), np.bool_)
                self._there[ranks[is_zero]] = _HOLE
                pages = [page for page in pages if page != zeros]
                pfns, ranks = pfns[~is_zero], ranks[~is_zero]
            offsets = self._offsets(pfns)
            for start, stop in self._in_one_place(pfns):
                data, offset = b"".join(pages[start:stop]), int(offsets[start])
                if self._limit is not None and offset + len(data) > self._limit:
                    self._counters[_FULL] = 1
                if not self.full:
                    room = self._put(output, data, offset)
                    written = ranks[start : start + room // self.vmcore.page_size]
                    self._there[written] = _WRITTEN

    def _offsets(self, pfns: Pfns) -> Pfns:
        runs = np.searchsorted(self._starts, pfns, "right") - 1
        return pfns * self.vmcore.page_size + self._shifts[runs]

    def _in_one_place(self, pfns: Pfns) -> Iterator[tuple[int, int]]:
        """Indices of page frames that are consecutive in the file."""
        if len(pfns):
            breaks = np.diff(self._offsets(pfns)) != self.vmcore.page_size
            starts = [0, *(np.flatnonzero(breaks) + 1).tolist()]
            yield from zip(starts, [*starts[1:], len(pfns)])

    def flush(self, done: int) -> None:
        pass

    def rewrite(self, number: int) -> None:
        pass

    def has(self, number: int, index: int) -> bool:
        return bool(self._there[self.before[number] + index])

    def tally(self) -> Tally:
        return Tally(
            int(np.count_nonzero(self._there)),
            int(np.count_nonzero(self._there == _HOLE)),
        )

    def _complete(self, incomplete: bool) -> list[int]:
        size = self._header.data + self._file_pages * self.vmcore.page_size
        if self._limit is not None and self.full:
            size = min(size, self._limit)
        if incomplete or self._was_incomplete:
            header = self._header_of_what_is_there()
            self._outputs[0].write(elf.pack_header(header, elf.DUMP_INCOMPLETE), 0)
        elif self._marked:
            self._outputs[0].write(elf.pack_header(self._header, 0), 0)
            self._marked = False
        return [size]

    def _header_of_what_is_there(self) -> elf.Header:
        """The header, but for memory of which pages are missing."""
        missing = [np.empty(0, np.int64)]
        for number in range(self.items):
            there = self._there[self.before[number] : self.before[number + 1]]
            if not there.all():
                missing.append(np.array(self.pfns(number), np.int64)[there == 0])
        pfns = np.concatenate(missing)
        if not len(pfns):
            return self._header
        bitmap = self.plan.dumpable.copy()
        bits = np.left_shift(1, pfns & 7).astype(np.uint8)
        np.bitwise_and.at(bitmap, pfns >> 3, ~bits)
        runs = _joined(bitmap_runs(bitmap, self.plan.max_mapnr), pfns)
        while True:
            starts = np.array([run.pfn for run in runs], np.int64)
            before = (self._offsets(starts) - self._header.data) // (
                self.vmcore.page_size
            )
            header = self._make_header(
                runs, before.tolist(), self._header.data, pfns.tolist()
            )
            if header.data == self._header.data:
                return header
            # More holes than there is room to tell of: better nothing than zeros.
            runs = runs[: len(runs) * 3 // 4]
            end = runs[-1].end_pfn if runs else 0
            kept = np.flatnonzero(np.unpackbits(self.plan.dumpable, bitorder="little"))
            pfns = np.concatenate((pfns[pfns < end], kept[kept >= end]))


def _joined(runs: list[Run], missing: Pfns | None = None) -> list[Run]:
    """Runs with the short gaps between them, but for those where pages are missing."""
    before = np.zeros(len(runs), np.int64)
    if missing is not None:
        before = np.searchsorted(missing, [run.pfn for run in runs])
    joined: list[Run] = []
    for index, run in enumerate(runs):
        if (
            joined
            and run.pfn - joined[-1].end_pfn < _ELF_GAP
            and before[index] == before[index - 1]
        ):
            joined[-1] = Run(joined[-1].pfn, run.end_pfn)
        else:
            joined.append(run)
    return joined


def _segments(
    load: elf.Load, runs: list[Run], pages_before: list[int], page_size: int
) -> Iterator[elf.Segment]:
    """
    What becomes of a PT_LOAD: one from each run of pages to the next, whose
    excluded tail is memory without data.
    """
    end = load.paddr + load.memsz
    first = max(0, bisect.bisect_right(runs, (load.paddr // page_size, 1 << 64)) - 1)
    at = load.paddr
    data, filesz = 0, 0
    for index in range(first, len(runs)):
        start, stop = (pfn * page_size for pfn in runs[index])
        start, stop = max(start, load.paddr), min(stop, end)
        if start >= end:
            break
        if start >= stop:
            continue
        if start > at:
            yield elf.Segment(
                load.vaddr + at - load.paddr, at, data, filesz, start - at
            )
        at = start
        data = pages_before[index] * page_size + start - runs[index].pfn * page_size
        filesz = stop - start
    yield elf.Segment(load.vaddr + at - load.paddr, at, data, filesz, end - at)
