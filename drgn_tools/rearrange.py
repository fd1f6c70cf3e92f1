# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Flattened dumps and split dumps made whole
------------------------------------------

:func:`rearrange` turns a flattened stream into the dump that it carries,
:func:`reassemble` the parts of a split dump into one. No page is compressed
again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import struct
from collections.abc import Iterator
from typing import Callable, NamedTuple

import numpy as np
import numpy.typing as npt

from drgn_tools.checksums import read_trailer
from drgn_tools.errors import DumpError, OutputBroken, OutputFull
from drgn_tools.formats import elf, flattened, kdump
from drgn_tools.output import File, check_target, files
from drgn_tools.progress import Progress
from drgn_tools.text import binary_size
from drgn_tools.vmcore import BITS_SET, Run, Vmcore, merge_runs, open_vmcore

# Bytes read and written at once.
_PIECE = 1 << 20
# Descriptors handled at once; in a split dump with all their data.
_DESCRIPTORS = 4096
# What a file begins with that is a dump: written last.
_MAGIC_SIZE = 8
# Ranges in a stream that are not neighbours. A writer has a few at a time.
_MAX_RANGES = 1 << 20
# Of the main header and of the sub header, what their fields take.
_MAIN_SIZE, _SUB_SIZE = 464, 104
_EHDR_SIZE = 64
# e_phoff, e_shoff, e_flags in Elf64_Ehdr.
_E_PHOFF, _E_FLAGS = struct.Struct("<32xQQ"), struct.Struct("<I")
_E_FLAGS_AT = 48
_ELF_INCOMPLETE = 0x1
_MAX_ERASEINFO = 1 << 24
# The notes are with the headers, and may hold device dumps.
_MAX_HEADERS = 1 << 30

_Longs = npt.NDArray[np.int64]
_Bools = npt.NDArray[np.bool_]


# --- Flattened streams --------------------------------------------------------


def rearrange(source_fd: int, target: str, force: bool) -> None:
    """
    Write the dump that a flattened stream carries.

    :param source_fd: where the stream is read: a pipe, a file, a disk. What
        follows its end mark does not matter.
    :param target: file to write; see :class:`~drgn_tools.output.File`.
    :param force: it may replace a file.
    :raises DumpError: if it cannot be done. If the stream ends early, or the disk
        is full or has a fault, *target* is there nevertheless as soon as the stream's
        headers are: marked incomplete, and without what has not come.
    """
    _check_source(source_fd, target)
    check_target(target, force)
    with files(target, force=force) as (output,):
        arrived = _Arrived()
        try:
            _replay(source_fd, output, arrived)
        except (flattened.CutShort, OutputFull, OutputBroken, _Unreadable) as error:
            try:
                size, missing = _make_incomplete(output, arrived)
            except DumpError as why:
                raise DumpError(f"{error}; nothing of it can be used: {why}") from None
            output.finish(size)
            raise DumpError(f"{target} is incomplete, {missing}: {error}") from None
        _finish(output, arrived.end, lambda: _make_incomplete(output, arrived)[0])


def _finish(output: File, size: int, mark: Callable[[], int]) -> None:
    """
    Bring a dump to the disk, and then under its name.

    :param mark: says in it that it is incomplete; returns its size.
    :raises DumpError: if some of it may not be on the disk. It has its name
        nevertheless if the mark gets there.
    """
    try:
        output.sync(size)
    except (OutputFull, OutputBroken) as error:
        output.finish(mark())
        raise DumpError(
            f"{output.target} is incomplete: some of it may not be on the disk: {error}"
        ) from None
    output.publish()


class _Unreadable(DumpError):
    """The stream cannot be read on."""


def _check_source(source_fd: int, target: str) -> None:
    with contextlib.suppress(OSError):
        if os.path.samestat(os.fstat(source_fd), os.stat(target)):
            raise DumpError(f"{target} is the input itself")


def _input_size(source_fd: int) -> int | None:
    """How much there is to read, if that can be known."""
    with contextlib.suppress(OSError):
        status = os.fstat(source_fd)
        if stat.S_ISREG(status.st_mode):
            return status.st_size - os.lseek(source_fd, 0, os.SEEK_CUR)
    return None


class _Arrived:
    """What of a dump has been received and written."""

    def __init__(self) -> None:
        self._ranges: list[Run] = []
        self._limit = 1 << 16
        self.end = 0

    def add(self, offset: int, end: int) -> None:
        if self._ranges and self._ranges[-1].end_pfn == offset:
            self._ranges[-1] = Run(self._ranges[-1].pfn, end)
        else:
            self._ranges.append(Run(offset, end))
        self.end = max(self.end, end)
        if len(self._ranges) >= self._limit:
            self._ranges = merge_runs(self._ranges)
            if len(self._ranges) > _MAX_RANGES:
                raise DumpError("damaged: a flattened dump in too many pieces")
            self._limit = 2 * len(self._ranges) + (1 << 16)

    def ranges(self) -> list[Run]:
        """Offsets, as if they were page frames: in order, no neighbours."""
        self._ranges = merge_runs(self._ranges)
        return self._ranges

    def within(self, start: int, end: int) -> list[Run]:
        """What of a range has come."""
        clipped = (
            Run(max(run.pfn, start), min(run.end_pfn, end)) for run in self.ranges()
        )
        return [run for run in clipped if run.pfn < run.end_pfn]

    def has(self, start: int, size: int) -> bool:
        return not size or self.within(start, start + size) == [
            Run(start, start + size)
        ]


def _replay(source_fd: int, output: File, arrived: _Arrived) -> None:
    """
    Write what the records say.

    :raises flattened.CutShort: if the stream ends too early.
    :raises OutputFull: if there is no more room.
    :raises OutputBroken: if some could not be written; what was behind it is.
    :raises _Unreadable: if the stream cannot be read on.
    :raises DumpError: if it is no flattened stream, or impossible.
    """
    done = 0
    broken = None
    # If this process is killed, what is left looks like no dump.
    magic = bytearray(_MAGIC_SIZE)
    try:
        stream = os.fdopen(source_fd, "rb", _PIECE, closefd=False)
    except OSError as error:
        raise DumpError(f"cannot read the input: {error.strerror}") from None
    with stream, Progress("rearranging", _input_size(source_fd)) as progress:

        def read(size: int) -> bytes:
            nonlocal done
            try:
                data = stream.read(size)
            except OSError as error:
                raise _Unreadable(f"cannot read the input: {error.strerror}") from None
            done += len(data)
            progress.update(done)
            return data

        try:
            for record in flattened.records(read):
                at = record.offset
                while at < record.end:
                    data = read(min(_PIECE, record.end - at))
                    if not data:
                        raise flattened.CutShort()
                    end = at + len(data)
                    kept = max(0, min(_MAGIC_SIZE - at, len(data)))
                    magic[at : at + kept] = data[:kept]
                    try:
                        output.write(data[kept:], at + kept)
                    except OutputBroken as error:
                        broken = error
                        arrived.add(at, at + kept + error.written)
                    else:
                        arrived.add(at, end)
                    at = end
        finally:
            output.write(magic, 0)
    if broken:
        raise broken


def _make_incomplete(output: File, arrived: _Arrived) -> tuple[int, str]:
    """
    Make a dump of the start of one.

    :return: its size, and what is missing.
    :raises DumpError: if not even its headers are there.
    """
    magic = output.read(len(kdump.SIGNATURE), 0)
    if magic == kdump.SIGNATURE:
        return _make_incomplete_kdump(output, arrived)
    if magic.startswith(elf.MAGIC):
        return _make_incomplete_elf(output, arrived)
    raise DumpError("it ends before the dump's headers")


def _kdump_header(output: File) -> kdump.Header:
    block0 = output.read(_MAIN_SIZE, 0)
    block1 = output.read(_SUB_SIZE, kdump.block_size(block0))
    # What the header speaks of may be still to come.
    return kdump.unpack_headers(block0, block1, 1 << 62)


def _need(arrived: _Arrived, places: list[tuple[int, int]]) -> None:
    if not all(arrived.has(offset, size) for offset, size in places):
        raise DumpError("it ends before the dump's headers do")


def _make_incomplete_kdump(output: File, arrived: _Arrived) -> tuple[int, str]:
    """
    Take back descriptors whose data has not come, or that have not come whole:
    an offset of 0 says that a page is missing. Of pages whose bits have not come,
    nothing is known.
    """
    header = _kdump_header(output)
    _need(
        arrived,
        [
            (0, _MAIN_SIZE),
            (header.block_size, _SUB_SIZE),
            (header.offset_note, header.size_note),
            (header.offset_vmcoreinfo, header.size_vmcoreinfo),
        ],
    )
    bitmap = header.bitmap_offset + header.bitmap_size
    came = arrived.within(bitmap, header.descriptors_offset)
    pages = 0
    if came and came[0].pfn == bitmap:
        for at, size in _pieces(came.pop(0)):
            bits = np.frombuffer(output.read(size, at), np.uint8)
            pages += int(BITS_SET[bits].sum(dtype=np.int64))
    # Behind a hole nobody knows whose descriptor is whose.
    for run in came:
        for at, size in _pieces(run):
            output.write(bytes(size), at)
    good = 0
    start, item = header.descriptors_offset, kdump.DESCRIPTOR.itemsize
    ranges = np.array(arrived.ranges(), np.int64)
    for run in arrived.within(start, start + pages * item):
        first, last = (run.pfn - start) // item, -(-(run.end_pfn - start) // item)
        for number in range(first, last, _DESCRIPTORS):
            count = min(_DESCRIPTORS, last - number)
            at = start + number * item
            raw = output.read(count * item, at).ljust(count * item, b"\0")
            descriptors = np.frombuffer(raw, kdump.DESCRIPTOR).copy()
            places = at + item * np.arange(count, dtype=np.int64)
            sound = _cover(ranges, places, np.full(count, item, np.int64)) & _cover(
                ranges, descriptors["offset"], descriptors["size"].astype(np.int64)
            )
            sound &= descriptors["offset"] > 0
            good += int(np.count_nonzero(sound))
            descriptors[~sound] = 0
            output.write(descriptors.tobytes(), at)
    status = struct.pack("<I", header.status | kdump.STATUS_INCOMPLETE)
    output.write(status, kdump.STATUS_OFFSET)
    size = arrived.end
    with contextlib.suppress(DumpError):
        # Checksums are of what should have come.
        trailer = read_trailer(output.read, size)
        size = trailer.offset if trailer else size
    # Readers map the bitmaps, and take a short file for another damage.
    size = max(size, start + pages * item)
    return size, f"{pages - good} of {pages} pages are missing"


def _pieces(run: Run) -> Iterator[tuple[int, int]]:
    """Offsets and sizes of pieces of a range."""
    for at in range(run.pfn, run.end_pfn, _PIECE):
        yield at, min(_PIECE, run.end_pfn - at)


def _cover(ranges: _Longs, offsets: _Longs, sizes: _Longs) -> _Bools:
    """Which pieces lie whole in one of *ranges*."""
    index = np.searchsorted(ranges[:, 0], offsets, "right") - 1
    # Without an overflow: offsets may be anything.
    room = ranges[index, 1] - sizes
    covered: _Bools = (index >= 0) & (offsets <= room)
    return covered


def _make_incomplete_elf(output: File, arrived: _Arrived) -> tuple[int, str]:
    """
    Cut the file off where data of a segment has not come: an ELF core has no
    other way to say that memory is missing.
    """
    _need(arrived, [(0, _EHDR_SIZE)])
    ehdr = output.read(_EHDR_SIZE, 0)
    phoff, _ = _E_PHOFF.unpack_from(ehdr)
    segments = elf.read_segments(output.read)
    rows = [
        (int(row["type"]), int(row["offset"]), int(row["filesz"])) for row in segments
    ]
    _need(arrived, [(phoff, len(segments) * segments.dtype.itemsize)])
    _need(
        arrived, [(offset, size) for kind, offset, size in rows if kind != elf.PT_LOAD]
    )
    size, lost = arrived.end, 0
    loads = [(offset, size) for kind, offset, size in rows if kind == elf.PT_LOAD]
    for offset, filesz in loads:
        if filesz and not arrived.has(offset, filesz):
            came = arrived.within(offset, offset + filesz)
            whole = came and came[0].pfn == offset
            size = min(size, came[0].end_pfn if whole else offset)
    for offset, filesz in loads:
        lost += max(0, offset + filesz - max(offset, size))
    (flags,) = _E_FLAGS.unpack_from(ehdr, _E_FLAGS_AT)
    output.write(_E_FLAGS.pack(flags | _ELF_INCOMPLETE), _E_FLAGS_AT)
    return size, f"{binary_size(lost)} are missing"


# --- Split dumps --------------------------------------------------------------


class _Part(NamedTuple):
    """One part of a split dump."""

    path: str
    header: kdump.Header
    pages: int
    digest: bytes
    """Of all that must be the same in every part."""


def reassemble(sources: list[str], target: str, force: bool) -> None:
    """
    Join the parts of a split dump.

    :param sources: all parts, in any order.
    :param target: file to write; see :class:`~drgn_tools.output.File`.
    :param force: it may replace a file.
    :raises DumpError: if it cannot be done. If pages of a part cannot be read,
        *target* is there nevertheless, marked incomplete, without them.
    """
    check_target(target, force, tuple(sources))
    parts = sorted(map(_look_at, sources), key=lambda part: part.header.start_pfn)
    _check_set(parts)
    header = parts[0].header
    item = kdump.DESCRIPTOR.itemsize
    pages = sum(part.pages for part in parts)
    data = header.descriptors_offset + pages * item
    zero_page = 0
    lost = 0
    eraseinfo = b""
    with files(target, force=force) as (output,):
        with open_vmcore(parts[0].path, part=True) as vmcore:
            headers = bytearray(vmcore.file_data(header.bitmap_offset, 0))
            bitmaps = Run(header.bitmap_offset, header.descriptors_offset)
            for at, size in _pieces(bitmaps):
                output.write(vmcore.file_data(size, at), at)
        if header.dump_level & 1:
            # Where makedumpfile looks for the page that all zero pages share.
            zero_page = data
            output.write(bytes(header.block_size), data)
            data += header.block_size
        rank = 0
        with Progress("reassembling", pages) as progress:
            for part in parts:
                with open_vmcore(part.path, part=True) as vmcore:
                    shared = _shared_zeros(vmcore) if zero_page else 0
                    for first in range(0, part.pages, _DESCRIPTORS):
                        descriptors, data, bad = _copy_pages(
                            vmcore, output, first, (shared, zero_page), data
                        )
                        lost += bad
                        at = header.descriptors_offset + rank * item
                        output.write(descriptors.tobytes(), at)
                        rank += len(descriptors)
                        progress.update(rank)
                    eraseinfo += _eraseinfo(vmcore)
        status = 0
        for part in parts:
            status |= part.header.status
        output.write(eraseinfo, data)
        size = data + len(eraseinfo)

        def write_headers(status: int) -> int:
            kdump.set_fields(
                headers,
                header.block_size,
                status=status,
                split=0,
                start_pfn_32=0,
                end_pfn_32=0,
                start_pfn=0,
                end_pfn=0,
                offset_eraseinfo=data if eraseinfo else 0,
                size_eraseinfo=len(eraseinfo),
            )
            output.write(bytes(headers), 0)
            return size

        write_headers(status | (kdump.STATUS_INCOMPLETE if lost else 0))
        _finish(output, size, lambda: write_headers(status | kdump.STATUS_INCOMPLETE))
    if lost:
        raise DumpError(f"{target} is incomplete: {lost} pages could not be read")


def _look_at(path: str) -> _Part:
    with open_vmcore(path, part=True) as vmcore:
        header = vmcore.header
        if header is None or not vmcore.part:
            raise DumpError(f"{path} is not one part of a split dump")
        if header.version < kdump.VERSION:
            raise DumpError(f"{path}: a split dump of version {header.version}")
        end = header.offset_note + header.size_note
        if header.size_note and not header.block_size < end <= header.bitmap_offset:
            raise DumpError(f"{path}: the kdump header is damaged: notes elsewhere")
        if header.bitmap_offset > _MAX_HEADERS:
            raise DumpError(f"{path}: the kdump header is damaged: it is too large")
        headers = bytearray(vmcore.file_data(header.bitmap_offset, 0))
        kdump.set_fields(
            headers,
            header.block_size,
            status=header.status & ~kdump.STATUS_INCOMPLETE,
            start_pfn_32=0,
            end_pfn_32=0,
            start_pfn=0,
            end_pfn=0,
            offset_eraseinfo=0,
            size_eraseinfo=0,
        )
        digest = hashlib.sha256(headers)
        for at, size in _pieces(Run(header.bitmap_offset, header.descriptors_offset)):
            digest.update(vmcore.file_data(size, at))
        return _Part(path, header, vmcore.dumped_pages, digest.digest())


def _check_set(parts: list[_Part]) -> None:
    if not parts:
        raise DumpError("no part of a split dump is given")
    first = parts[0]
    reached = 0
    for part in parts:
        header = part.header
        if part.digest != first.digest:
            raise DumpError(f"{first.path} and {part.path} are not of one dump")
        if header.start_pfn > reached:
            raise DumpError(
                f"a part is missing: no page frames {reached} to {header.start_pfn}"
            )
        if header.start_pfn < reached:
            raise DumpError(f"{part.path}: its pages are in another part, too")
        reached = header.end_pfn
    if reached < first.header.max_mapnr:
        end = first.header.max_mapnr
        raise DumpError(f"a part is missing: no page frames {reached} to {end}")


def _read_descriptors(vmcore: Vmcore, first: int) -> npt.NDArray[np.void]:
    """Some descriptors of a part, from number *first* on; zero if cut off."""
    assert vmcore.header is not None
    item = kdump.DESCRIPTOR.itemsize
    size = item * min(_DESCRIPTORS, vmcore.dumped_pages - first)
    raw = vmcore.file_data(size, vmcore.header.descriptors_offset + item * first)
    return np.frombuffer(raw.ljust(size, b"\0"), kdump.DESCRIPTOR).copy()


def _shared_zeros(vmcore: Vmcore) -> int:
    """Offset of the page that a part's zero pages share; 0 if there is none."""
    assert vmcore.header is not None
    lowest = 0
    size = vmcore.header.block_size
    for first in range(0, vmcore.dumped_pages, _DESCRIPTORS):
        descriptors = _read_descriptors(vmcore, first)
        raw = (descriptors["flags"] == 0) & (descriptors["size"] == size)
        offsets = descriptors["offset"][raw & (descriptors["offset"] > 0)]
        if len(offsets):
            found = int(offsets.min())
            lowest = min(lowest, found) if lowest else found
    # Writers have it in front of all data, so that it can be known by that.
    if lowest and vmcore.file_data(size, lowest) == bytes(size):
        return lowest
    return 0


def _copy_pages(
    vmcore: Vmcore, output: File, first: int, zeros: tuple[int, int], data: int
) -> tuple[npt.NDArray[np.void], int, int]:
    """
    Copy the data of some pages.

    :param zeros: where the shared page of zeros is in the part and in the output.
    :param data: where in the output data goes.
    :return: their new descriptors, the end of data, how many were unreadable.
    """
    assert vmcore.header is not None
    block_size = vmcore.header.block_size
    descriptors = _read_descriptors(vmcore, first)
    offsets = descriptors["offset"].copy()
    sizes = descriptors["size"].astype(np.int64)
    sound = (offsets > 0) & (sizes > 0) & (sizes <= block_size)
    sound &= offsets <= vmcore.size - sizes
    lost = int(np.count_nonzero(~sound & (offsets != 0)))
    descriptors[~sound] = 0
    shared = sound & (offsets == zeros[0]) & (descriptors["flags"] == 0)
    shared &= sizes == block_size
    descriptors["offset"][shared] = zeros[1]
    copied = np.flatnonzero(sound & ~shared)
    lengths = sizes[copied]
    offsets = offsets[copied]
    ends = np.cumsum(lengths)
    descriptors["offset"][copied] = data + ends - lengths
    # What lies together in the part is read together.
    apart = np.flatnonzero(offsets[1:] != offsets[:-1] + lengths[:-1]) + 1
    edges = [0, *apart.tolist(), len(copied)] if len(copied) else []
    blob = []
    for a, b in zip(edges, edges[1:]):
        size = int(lengths[a:b].sum())
        try:
            piece = vmcore.file_data(size, int(offsets[a]))
        except DumpError:
            piece = b""
        if len(piece) < size:
            descriptors[copied[a:b]] = 0
            lost += b - a
            piece = bytes(size)
        blob.append(piece)
    output.write(b"".join(blob), data)
    return descriptors, data + sum(map(len, blob)), lost


def _eraseinfo(vmcore: Vmcore) -> bytes:
    """What was erased of the pages, in words."""
    assert vmcore.header is not None
    block_size = vmcore.header.block_size
    headers = vmcore.file_data(block_size + _SUB_SIZE, 0)
    offset = kdump.get_field(headers, block_size, "offset_eraseinfo")
    size = kdump.get_field(headers, block_size, "size_eraseinfo")
    if not size:
        return b""
    if offset < 0 or size > min(_MAX_ERASEINFO, vmcore.size - offset):
        raise DumpError(f"{vmcore.path}: the kdump header is damaged: eraseinfo")
    return vmcore.file_data(size, offset)
