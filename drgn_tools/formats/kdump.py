# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The kdump-compressed format
---------------------------

What makedumpfile writes and crash, drgn and libkdumpfile read: main header,
sub header with the ELF notes, two bitmaps, a descriptor per dumped page, page
data. LP64, little-endian, in blocks of one page. Page data may lie in any
order, anywhere behind the descriptors.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

from drgn_tools.errors import DumpError

SIGNATURE = b"KDUMP   "
VERSION = 6

# DUMP_DH_* bits of the header's status, beside those of the codecs.
STATUS_INCOMPLETE = 0x8
#: Where the status is in the main header.
STATUS_OFFSET = 424

# struct disk_dump_header: signature, version, six utsname fields of 65 bytes,
# padding, timestamp (sec, usec), status, block_size, sub_hdr_size,
# bitmap_blocks, max_mapnr, total_ram_blocks, device_blocks, written_blocks,
# current_cpu, nr_cpus.
_HEADER = struct.Struct("<8si390s6xqqIiiIIIIIIi")
_MACHINE = 12 + 4 * 65
# struct kdump_sub_header: phys_base, dump_level, split, start_pfn, end_pfn,
# offset and size of vmcoreinfo, of the notes, of eraseinfo, start_pfn_64,
# end_pfn_64, max_mapnr_64.
_SUB_HEADER = struct.Struct("<qiiQQqQqQqQQQQ")

#: struct page_desc.
DESCRIPTOR = np.dtype(
    [("offset", "<i8"), ("size", "<u4"), ("flags", "<u4"), ("page_flags", "<u8")]
)


class Header(NamedTuple):
    """Both headers of a kdump-compressed file."""

    version: int
    utsname: tuple[bytes, ...]
    """sysname, nodename, release, version, machine, domainname."""
    timestamp: int
    """Seconds since 1970, of the crash."""
    status: int
    block_size: int
    sub_hdr_size: int
    """In blocks."""
    bitmap_blocks: int
    """Both bitmaps together."""
    nr_cpus: int
    phys_base: int
    dump_level: int
    split: int
    offset_vmcoreinfo: int
    size_vmcoreinfo: int
    offset_note: int
    size_note: int
    start_pfn: int
    end_pfn: int
    max_mapnr: int

    @property
    def bitmap_offset(self) -> int:
        return (1 + self.sub_hdr_size) * self.block_size

    @property
    def bitmap_size(self) -> int:
        """Of one bitmap, in bytes."""
        return self.bitmap_blocks * self.block_size // 2

    @property
    def descriptors_offset(self) -> int:
        return self.bitmap_offset + self.bitmap_blocks * self.block_size


def new_header(
    *,
    utsname: tuple[bytes, ...],
    timestamp: int,
    status: int,
    block_size: int,
    nr_cpus: int,
    phys_base: int,
    dump_level: int,
    notes: bytes,
    vmcoreinfo: tuple[int, int],
    max_mapnr: int,
) -> Header:
    """
    The headers of a new file, sizes worked out.

    :param vmcoreinfo: offset in *notes* and size of the VMCOREINFO text;
        (0, 0) if there is none.
    """
    # The notes follow the sub header; every offset in it is one in the file.
    offset_note = block_size + _SUB_HEADER.size
    bits_per_block = 8 * block_size
    bitmap = (max_mapnr + bits_per_block - 1) // bits_per_block
    return Header(
        version=VERSION,
        utsname=utsname,
        timestamp=timestamp,
        status=status,
        block_size=block_size,
        sub_hdr_size=-(-(_SUB_HEADER.size + len(notes)) // block_size),
        bitmap_blocks=2 * bitmap,
        nr_cpus=nr_cpus,
        phys_base=phys_base,
        dump_level=dump_level,
        split=0,
        offset_vmcoreinfo=offset_note + vmcoreinfo[0] if vmcoreinfo[1] else 0,
        size_vmcoreinfo=vmcoreinfo[1],
        offset_note=offset_note if notes else 0,
        size_note=len(notes),
        start_pfn=0,
        end_pfn=0,
        max_mapnr=max_mapnr,
    )


def pack_headers(header: Header, notes: bytes) -> bytes:
    """Blocks 0 to *header*.sub_hdr_size of a file."""
    small = 0xFFFFFFFF
    main = _HEADER.pack(
        SIGNATURE,
        header.version,
        b"".join(field[:64].ljust(65, b"\0") for field in header.utsname),
        header.timestamp,
        0,
        header.status,
        header.block_size,
        header.sub_hdr_size,
        header.bitmap_blocks,
        min(header.max_mapnr, small),
        0,
        0,
        0,
        0,
        header.nr_cpus,
    )
    sub = _SUB_HEADER.pack(
        header.phys_base,
        header.dump_level,
        header.split,
        min(header.start_pfn, small),
        min(header.end_pfn, small),
        header.offset_vmcoreinfo,
        header.size_vmcoreinfo,
        header.offset_note,
        header.size_note,
        0,
        0,
        header.start_pfn,
        header.end_pfn,
        header.max_mapnr,
    )
    size = header.sub_hdr_size * header.block_size
    return main.ljust(header.block_size, b"\0") + (sub + notes).ljust(size, b"\0")


def machine(block0: bytes) -> bytes:
    """
    ``uname -m`` in a main header: it is at one place in those of all architectures,
    and what else there is is not.
    """
    return block0[_MACHINE : _MACHINE + 65].split(b"\0", 1)[0]


def block_size(block0: bytes) -> int:
    """
    Block size in a main header, which says where the sub header is.

    :raises DumpError: if it is impossible.
    """
    if len(block0) < _HEADER.size:
        raise DumpError("the kdump header is cut short")
    size: int = _HEADER.unpack_from(block0)[6]
    if not 4096 <= size <= 65536 or size & (size - 1):
        raise DumpError(f"the kdump header is damaged: blocks of {size} bytes")
    return size


def unpack_headers(block0: bytes, block1: bytes, file_size: int) -> Header:
    """
    Headers of an existing file.

    :param block0: at least 464 bytes from the start of the file.
    :param block1: at least 104 bytes from the second block, which
        :func:`block_size` finds.
    :raises DumpError: if they are no headers that can be used.
    """
    try:
        (
            signature,
            version,
            names,
            timestamp,
            _usec,
            status,
            block_size,
            sub_hdr_size,
            bitmap_blocks,
            max_mapnr,
            _total,
            _device,
            _written,
            _cpu,
            nr_cpus,
        ) = _HEADER.unpack_from(block0)
        sub = _SUB_HEADER.unpack_from(block1)
    except struct.error:
        raise DumpError("the kdump header is cut short") from None
    if signature != SIGNATURE:
        raise DumpError("not a kdump-compressed file")
    if version < 6:
        # Versions 1 to 5 lack the fields, one version after the other.
        known = {0: 0, 1: 2, 2: 5, 3: 7, 4: 9, 5: 11}.get(version, 0)
        sub = sub[:known] + (0,) * (len(sub) - known)
        sub = (*sub[:11], sub[3], sub[4], max_mapnr)
    header = Header(
        version=version,
        utsname=tuple(names[i : i + 65].split(b"\0", 1)[0] for i in range(0, 390, 65)),
        timestamp=timestamp,
        status=status,
        block_size=block_size,
        sub_hdr_size=sub_hdr_size,
        bitmap_blocks=bitmap_blocks,
        nr_cpus=nr_cpus,
        phys_base=sub[0],
        dump_level=sub[1],
        split=sub[2],
        offset_vmcoreinfo=sub[5],
        size_vmcoreinfo=sub[6],
        offset_note=sub[7],
        size_note=sub[8],
        start_pfn=sub[11],
        end_pfn=sub[12],
        max_mapnr=sub[13],
    )
    if (
        sub_hdr_size < 1
        or header.descriptors_offset > file_size
        or header.bitmap_size * 8 < header.max_mapnr
    ):
        raise DumpError("the kdump header is damaged or the file is cut short")
    for offset, size in (
        (header.offset_note, header.size_note),
        (header.offset_vmcoreinfo, header.size_vmcoreinfo),
    ):
        if offset < 0 or offset + size > file_size:
            raise DumpError("the kdump header is damaged: notes beyond the end")
    return header


# Fields that change in a file that is there: struct format, block, offset in it.
_FIELDS = {
    "status": ("<I", 0, STATUS_OFFSET),
    "split": ("<i", 1, 12),
    "start_pfn_32": ("<Q", 1, 16),
    "end_pfn_32": ("<Q", 1, 24),
    "offset_eraseinfo": ("<q", 1, 64),
    "size_eraseinfo": ("<Q", 1, 72),
    "start_pfn": ("<Q", 1, 80),
    "end_pfn": ("<Q", 1, 88),
}


def get_field(headers: bytes | bytearray, block_size: int, name: str) -> int:
    """One field of the headers of a version 6 file."""
    form, block, offset = _FIELDS[name]
    value: int = struct.unpack_from(form, headers, block * block_size + offset)[0]
    return value


def set_fields(headers: bytearray, block_size: int, **values: int) -> None:
    """Change fields of the headers of a version 6 file, and nothing else."""
    for name, value in values.items():
        form, block, offset = _FIELDS[name]
        struct.pack_into(form, headers, block * block_size + offset, value)
