# SPDX-License-Identifier: LGPL-2.1-or-later
"""
ELF64 cores
-----------

The program headers of a core file, wherever in the file they are and however
many: QEMU puts them behind the section headers, and past 65534 their number is
in the first section header. And the same, written.

As arrays: through pyelftools, thousands of segments take seconds, and one of
them a tenth of the start-up.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple

import numpy as np
import numpy.typing as npt

from drgn_tools.errors import DumpError

MAGIC = b"\x7fELF"
PT_LOAD, PT_NOTE = 1, 4
_ELFCLASS32, _ELFCLASS64, _ELFDATA2LSB = 1, 2, 1
_ET_CORE = 4
_EM_X86_64 = 62
_PN_XNUM = 0xFFFF
# More segments than any machine has memory ranges: damage.
_MAX_SEGMENTS = 1 << 20

#: Bit of e_flags that makedumpfile sets in an incomplete core.
DUMP_INCOMPLETE = 0x1

# Elf64_Ehdr: e_ident, e_type, e_machine, e_version, e_entry, e_phoff, e_shoff,
# e_flags, e_ehsize, e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx.
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_SHDR_SIZE = 64
# sh_info in Elf64_Shdr.
_SH_INFO = struct.Struct("<44xI")
#: Elf64_Phdr.
PHDR = np.dtype(
    [
        ("type", "<u4"),
        ("flags", "<u4"),
        ("offset", "<u8"),
        ("vaddr", "<u8"),
        ("paddr", "<u8"),
        ("filesz", "<u8"),
        ("memsz", "<u8"),
        ("align", "<u8"),
    ]
)


def read_segments(
    pread: Callable[[int, int], bytes],
) -> npt.NDArray[np.void]:
    """
    Program headers of an x86-64 core file.

    :param pread: reads the file: (size, offset) to at most that many bytes.
    :return: array of :data:`PHDR`.
    :raises DumpError: if it is no such file, or if its headers are cut short.
    """

    def header(size: int, offset: int, what: str) -> bytes:
        raw = pread(size, offset)
        if len(raw) < size:
            raise DumpError(f"the file is cut short: no whole {what}")
        return raw

    ident = pread(6, 0)[4:]
    if ident[:1] == bytes([_ELFCLASS32]):
        raise DumpError("a 32-bit ELF file; only x86-64 dumps are known")
    if len(ident) == 2 and ident != bytes([_ELFCLASS64, _ELFDATA2LSB]):
        raise DumpError("not a little-endian ELF64 file; only x86-64 dumps are known")
    ehdr = _EHDR.unpack(header(_EHDR.size, 0, "ELF header"))
    _, file_type, machine, _, _, phoff, shoff, _, _, size, count, _, _, _ = ehdr
    if file_type != _ET_CORE:
        raise DumpError("an ELF file, but not a core dump")
    if machine != _EM_X86_64:
        raise DumpError(f"a dump of {_machine(machine)}; only x86-64 dumps are known")
    if count == _PN_XNUM and shoff:
        (count,) = _SH_INFO.unpack_from(header(_SHDR_SIZE, shoff, "section header"))
    if count > _MAX_SEGMENTS or not PHDR.itemsize <= size <= 4096:
        raise DumpError("the ELF header is damaged: impossible program headers")
    table = header(count * size, phoff, "program header")
    fields: Any = PHDR.fields
    entry = np.dtype(
        {
            "names": list(fields),
            "formats": [field[0] for field in fields.values()],
            "offsets": [field[1] for field in fields.values()],
            "itemsize": size,
        }
    )
    return np.frombuffer(table, entry)


def _machine(number: int) -> str:
    from elftools.elf.enums import ENUM_E_MACHINE

    names = {value: name for name, value in ENUM_E_MACHINE.items()}
    return str(names.get(number, f"machine {number}"))


class Load(NamedTuple):
    """A PT_LOAD of a dump: memory, whether or not there is data for it."""

    paddr: int
    memsz: int
    vaddr: int


class Segment(NamedTuple):
    """A PT_LOAD to be written."""

    vaddr: int
    paddr: int
    data: int
    """Where its data is, from where all data begins."""
    filesz: int
    memsz: int


class Header(NamedTuple):
    """What a core file has before its data."""

    program_headers: bytes
    segments: int
    notes: bytes
    data: int
    """Offset of the data."""


def new_header(
    segments: Sequence[Segment], notes: bytes, page_size: int, least: int = 0
) -> Header:
    """
    Program headers of a new core file.

    The data begins off a page boundary. Were it on one, makedumpfile would map the
    file, and take what follows a segment's data there for the rest of its memory:
    wrong pages when it filters an ELF core further, told by nothing.

    :param least: the data does not begin before this.
    """
    count = 1 + len(segments)
    sections = _SHDR_SIZE if count >= _PN_XNUM else 0
    notes_at = _EHDR.size + sections + count * PHDR.itemsize
    data = max(least, -(-(notes_at + len(notes)) // 8) * 8)
    data += 8 * (data % page_size == 0)
    table = np.zeros(count, PHDR)
    table[0] = (PT_NOTE, 0, notes_at, 0, 0, len(notes), len(notes), 0)
    loads = table[1:]
    if segments:
        vaddr, paddr, at, filesz, memsz = np.array(segments, np.uint64).T
        loads["type"] = PT_LOAD
        # Readable, writable, executable, as in /proc/vmcore.
        loads["flags"] = 7
        loads["vaddr"], loads["paddr"] = vaddr, paddr
        loads["filesz"], loads["memsz"] = filesz, memsz
        # A segment without data has no place either.
        loads["offset"] = np.where(filesz > 0, at + np.uint64(data), np.uint64(0))
    return Header(table.tobytes(), count, notes, data)


def pack_header(header: Header, flags: int) -> bytes:
    """
    The start of a core file, up to its data.

    :param flags: e_flags, 0 or :data:`DUMP_INCOMPLETE`.
    """
    many = header.segments >= _PN_XNUM
    ehdr = _EHDR.pack(
        MAGIC + bytes([_ELFCLASS64, _ELFDATA2LSB, 1]),
        _ET_CORE,
        _EM_X86_64,
        1,
        0,
        _EHDR.size + (_SHDR_SIZE if many else 0),
        _EHDR.size if many else 0,
        flags,
        _EHDR.size,
        PHDR.itemsize,
        _PN_XNUM if many else header.segments,
        _SHDR_SIZE if many else 0,
        1 if many else 0,
        0,
    )
    section = b""
    if many:
        section = _SH_INFO.pack(header.segments).ljust(_SHDR_SIZE, b"\0")
    parts = ehdr, section, header.program_headers, header.notes
    return b"".join(parts).ljust(header.data, b"\0")
