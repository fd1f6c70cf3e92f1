# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Checksums of a dump
-------------------

A table at the very end of a dump file, which no reader looks at: rows of
(offset, size, CRC-32) for pieces of the file in front of it, and a footer that
tells where the rows are. A CRC-32 finds every single changed bit, and any
change within 32 bits. Of the codecs only zlib has a checksum of its own.

All little-endian. A row: offset u64, size u32, CRC u32; rows are in order and
do not overlap. The footer: magic, version u32, 0 u32, offset of the rows u64,
size of the file u64, CRC of the rows u32, CRC of the footer so far u32. The
rows end where the footer starts.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any, Callable, NamedTuple, Union

import numpy as np
import numpy.typing as npt

from drgn_tools.errors import DumpError

try:
    # Three times as fast as zlib's, which is there even where ISA-L is not.
    from isal.isal_zlib import crc32 as _crc32
except ImportError:
    from zlib import crc32 as _crc32

#: One row.
ROW = np.dtype([("offset", "<u8"), ("size", "<u4"), ("crc", "<u4")])
#: Bytes that are read at once, and what a row is about.
PIECE = 1 << 20
_MAGIC = b"DRGN_TOOLS CRC32"
_VERSION = 1
_FOOTER = struct.Struct("<16sIIQQII")
_SEALED = _FOOTER.size - 4
# A footer with a flipped bit or two is a damaged one, not none. By chance one
# in 2**60 files ends so.
_MAGIC_BITS = 16
# 256 MiB of rows: more is damage.
_MAX_ROWS = 1 << 24

Buffer = Union[bytes, bytearray, memoryview]


class Row(NamedTuple):
    """The checksum of a piece of the file."""

    offset: int
    size: int
    """Below 4 GiB."""
    crc: int


class Trailer(NamedTuple):
    """The table of a file."""

    offset: int
    """Where it starts: end of all that it is about."""
    rows: npt.NDArray[np.void]
    """Of :data:`ROW`, in order."""


def crc32(data: Buffer, value: int = 0) -> int:
    """CRC-32 as zlib has it; *value* is that of what comes before *data*."""
    return _crc32(data, value)


def rows_of(pread: Callable[[int, int], bytes], offset: int, end: int) -> Iterator[Row]:
    """
    Rows for what a file has from *offset* to *end*: for what is written
    piecemeal, such as headers, bitmaps and descriptors.

    :param pread: reads the file: (size, offset) to bytes.
    :raises DumpError: if it ends before *end*.
    """
    while offset < end:
        data = pread(min(PIECE, end - offset), offset)
        if not data:
            raise DumpError(f"it ends at {offset:#x}, before {end:#x}")
        yield Row(offset, len(data), crc32(data))
        offset += len(data)


def pack_trailer(rows: npt.ArrayLike, offset: int) -> bytes:
    """
    What to write at *offset*, the end of the file so far.

    :param rows: of :data:`ROW`, in any order. What none is about is not checked later.
    :raises ValueError: if rows overlap, reach beyond *offset* or are too many.
    """
    table = np.array(rows, ROW)
    table = table[np.argsort(table["offset"], kind="stable")]
    if not _in_order(table, offset) or len(table) > _MAX_ROWS:
        raise ValueError("rows that do not fit the file or each other")
    raw = table.tobytes()
    size = offset + len(raw) + _FOOTER.size
    footer = _FOOTER.pack(_MAGIC, _VERSION, 0, offset, size, zlib.crc32(raw), 0)
    sealed = footer[:_SEALED]
    return raw + sealed + struct.pack("<I", zlib.crc32(sealed))


def read_trailer(pread: Callable[[int, int], bytes], size: int) -> Trailer | None:
    """
    The table of a file, None if it has none.

    :param pread: reads the file: (size, offset) to bytes.
    :param size: of the file.
    :raises DumpError: if there is one and it is damaged, or of a later version.
    """
    raw = pread(_FOOTER.size, max(0, size - _FOOTER.size))
    if len(raw) < _FOOTER.size:
        return None
    magic, version, _, offset, claimed, rows_crc, crc = _FOOTER.unpack(raw)
    different = int.from_bytes(magic, "big") ^ int.from_bytes(_MAGIC, "big")
    if bin(different).count("1") > _MAGIC_BITS:
        return None
    if crc32(raw[:_SEALED]) != crc or different:
        raise DumpError("the table of checksums is damaged: its footer")
    if version != _VERSION:
        raise DumpError(f"checksums of version {version}, which is not known here")
    length = size - _FOOTER.size - offset
    if (
        claimed != size
        or not 0 <= length <= _MAX_ROWS * ROW.itemsize
        or length % ROW.itemsize
    ):
        raise DumpError("the table of checksums is of a file of another size")
    table = pread(length, offset)
    if len(table) < length or crc32(table) != rows_crc:
        raise DumpError("the table of checksums is damaged: its rows")
    rows = np.frombuffer(table, ROW)
    if not _in_order(rows, offset):
        raise DumpError("the table of checksums is damaged: rows out of order")
    return Trailer(offset, rows)


def _in_order(rows: Any, end: int) -> bool:
    """Whether each row ends before the next starts, and the last before *end*."""
    starts, sizes = rows["offset"], rows["size"].astype(np.uint64)
    if not len(rows):
        return True
    # In this order nothing can overflow.
    return bool(
        end < 1 << 63
        and (starts <= end).all()
        and (starts[:-1] + sizes[:-1] <= starts[1:]).all()
        and int(starts[-1]) + int(sizes[-1]) <= end
    )


def uncovered(trailer: Trailer) -> npt.NDArray[np.int64]:
    """What no row is about: (start, end) rows, in order."""
    starts = trailer.rows["offset"].astype(np.int64)
    ends = starts + trailer.rows["size"]
    holes = np.column_stack(
        (np.concatenate(([0], ends)), np.concatenate((starts, [trailer.offset])))
    )
    found: npt.NDArray[np.int64] = holes[holes[:, 0] < holes[:, 1]].astype(np.int64)
    return found
