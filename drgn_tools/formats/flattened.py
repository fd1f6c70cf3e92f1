# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The flattened format
--------------------

What ``makedumpfile -F`` writes where nothing can seek, and QEMU's kdump formats:
a header of one page, then records, each an offset and a size in the dump and that
much data, then an end mark. All numbers are big-endian. Records may come in any
order; where they overlap, the later one holds.
"""

from __future__ import annotations

import bisect
import heapq
import os
import struct
from array import array
from collections.abc import Iterator
from typing import Any, Callable, NamedTuple

import numpy as np
import numpy.typing as npt

from drgn_tools.errors import DumpError

SIGNATURE = b"makedumpfile"
HEADER_SIZE = 4096
# struct makedumpfile_header: signature, type, version.
_START = struct.Struct(">16sqq")
_TYPE, _VERSION = 1, 1
#: What a stream starts with.
HEADER = _START.pack(SIGNATURE, _TYPE, _VERSION).ljust(HEADER_SIZE, b"\0")
# struct makedumpfile_data_header: offset, size.
_RECORD = struct.Struct(">qq")
RECORD_SIZE = _RECORD.size
_END_MARK = (-1, -1)
#: What it ends with.
END = _RECORD.pack(*_END_MARK)

# x86-64 has 52 bits of physical address: no dump is larger than all of it.
_MAX_END = 1 << 52
# 24 bytes of memory for each. makedumpfile's have up to 64 KiB: 1 TiB of dump.
_MAX_RECORDS = 1 << 24
# Parts that no record has are zeros, which cost a hostile file nothing and us
# memory. Real ones are in bitmaps: of all that 46 bits can address, two of 2 GiB. But
# then there are struct pages, hundreds of times as many bytes as the bitmaps have.
_MAX_HOLES = 1 << 32
_FREE_HOLES = 1 << 26

_Longs = npt.NDArray[np.int64]


class Record(NamedTuple):
    """A piece of the dump, whose data follows in the stream."""

    offset: int
    size: int

    @property
    def end(self) -> int:
        return self.offset + self.size


class CutShort(DumpError):
    """A stream that ends without its end mark."""

    def __init__(self) -> None:
        super().__init__("cut short: a flattened dump without its end mark")


def record(offset: int, size: int) -> bytes:
    """What goes in front of *size* bytes of data for *offset*."""
    return _RECORD.pack(offset, size)


def check_header(raw: bytes) -> None:
    """
    See whether a stream starts as one.

    :param raw: its first :data:`HEADER_SIZE` bytes.
    :raises CutShort: if they are fewer.
    :raises DumpError: if they are something else.
    """
    if not raw.startswith(SIGNATURE):
        raise DumpError("not a flattened dump")
    if len(raw) < HEADER_SIZE:
        raise CutShort()
    signature, kind, version = _START.unpack_from(raw)
    if signature.rstrip(b"\0") != SIGNATURE or (kind, version) != (_TYPE, _VERSION):
        raise DumpError(f"a flattened dump of unknown type {kind}, version {version}")


def unpack_record(raw: bytes) -> Record | None:
    """
    A record.

    :param raw: :data:`RECORD_SIZE` bytes.
    :return: None at the end mark.
    :raises CutShort: if they are fewer.
    :raises DumpError: if no dump can have it.
    """
    if len(raw) < RECORD_SIZE:
        raise CutShort()
    offset, size = _RECORD.unpack(raw)
    if (offset, size) == _END_MARK:
        return None
    if offset < 0 or size <= 0 or offset + size > _MAX_END:
        raise DumpError(
            f"damaged: a record of {size} bytes for offset {offset:#x} "
            "in a flattened dump"
        )
    return Record(offset, size)


def records(read: Callable[[int], bytes]) -> Iterator[Record]:
    """
    Records of a stream. Whoever takes one reads its data before the next.

    :param read: reads so many bytes, fewer only at the end.
    :raises CutShort: if the stream ends without its end mark.
    :raises DumpError: if it is no flattened dump, or is damaged.
    """
    check_header(read(HEADER_SIZE))
    while True:
        found = unpack_record(read(RECORD_SIZE))
        if found is None:
            return
        yield found


class Index:
    """
    A flattened file as the dump that it holds.

    :param fd: the file, which stays the caller's.
    :raises CutShort: if it ends without its end mark.
    :raises DumpError: if it is no flattened dump, or is damaged.
    :raises OSError: if it cannot be read.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        file_size = os.lseek(fd, 0, os.SEEK_END)
        check_header(os.pread(fd, HEADER_SIZE, 0))
        starts, ends, places = array("q"), array("q"), array("q")
        at = HEADER_SIZE
        while True:
            found = unpack_record(os.pread(fd, RECORD_SIZE, at))
            if found is None:
                break
            at += RECORD_SIZE
            if at + found.size > file_size:
                raise CutShort()
            if len(starts) == _MAX_RECORDS:
                raise DumpError("a flattened dump of too many records; rearrange it")
            starts.append(found.offset)
            ends.append(found.end)
            places.append(at)
            at += found.size
        self._starts, self._ends, self._places = _resolve(starts, ends, places)
        if not self._ends:
            raise DumpError("a flattened dump of nothing")
        self.size = self._ends[-1]
        """Of the dump."""
        holes = self.size - file_size
        if holes > min(_MAX_HOLES, max(file_size, _FREE_HOLES)):
            raise DumpError("damaged: a flattened dump that is mostly holes")

    def pread(self, size: int, offset: int) -> bytes:
        """
        What the dump has at *offset*: as of :func:`os.pread`, maybe less than
        *size* bytes, and none at its end. What no record has is zeros.

        :raises OSError: if the file cannot be read.
        """
        index = bisect.bisect_right(self._starts, offset) - 1
        if index >= 0 and offset < self._ends[index]:
            size = min(size, self._ends[index] - offset)
            place = self._places[index] + offset - self._starts[index]
            return os.pread(self._fd, size, place)
        if index + 1 == len(self._starts):
            return b""
        return bytes(min(size, self._starts[index + 1] - offset))


def _resolve(
    starts: array[int], ends: array[int], places: array[int]
) -> tuple[array[int], array[int], array[int]]:
    """Pieces in order and without overlap, of records in the order they came."""
    if not starts:
        return starts, ends, places
    by_start = np.argsort(np.frombuffer(starts, np.int64), kind="stable")
    columns: list[_Longs] = [
        np.frombuffer(column, np.int64)[by_start] for column in (starts, ends, places)
    ]
    first, end, place = columns
    # Records that overlap, also through others, are a cluster.
    reach = np.maximum.accumulate(end)
    cluster = np.concatenate(([True], first[1:] >= reach[:-1]))
    if not cluster.all():
        edges = [*np.flatnonzero(cluster).tolist(), len(first)]
        pieces: list[tuple[int, int, int]] = []
        for a, b in zip(edges, edges[1:]):
            if b - a == 1:
                pieces.append((int(first[a]), int(end[a]), int(place[a])))
            else:
                rows = zip(*(column[a:b].tolist() for column in columns))
                pieces += _sweep(list(rows))
        table = np.array(pieces, np.int64)
        columns = [table[:, 0], table[:, 1], table[:, 2]]
    result: Any = tuple(array("q", column.tobytes()) for column in columns)
    return result  # type: ignore[no-any-return]


def _sweep(rows: list[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """
    Pieces of records that overlap.

    :param rows: start, end and place in the file, by start. A place further on
        is of a later record.
    """
    points = sorted({point for row in rows for point in row[:2]})
    # Those that reach over the current point, the latest first.
    active: list[tuple[int, int, int]] = []
    following = 0
    for point, stop in zip(points, points[1:]):
        while following < len(rows) and rows[following][0] <= point:
            start, end, place = rows[following]
            heapq.heappush(active, (-place, start, end))
            following += 1
        while active and active[0][2] <= point:
            heapq.heappop(active)
        if active:
            place, start, _ = active[0]
            yield point, stop, point - start - place
