# SPDX-License-Identifier: LGPL-2.1-or-later
"""
ELF64 cores
-----------

The program headers of a core file, wherever in the file they are and however
many: QEMU puts them behind the section headers, and past 65534 their number is
in the first section header.
"""

from __future__ import annotations

import io
from typing import Any, Callable, NamedTuple

from elftools.common.exceptions import ELFError
from elftools.common.utils import struct_parse
from elftools.elf.structs import ELFStructs

from drgn_tools.errors import DumpError

MAGIC = b"\x7fELF"
_EHDR_SIZE = 64
_PHDR_SIZE = 56
_SHDR_SIZE = 64
_PN_XNUM = 0xFFFF
# More segments than any machine has memory ranges: damage.
_MAX_SEGMENTS = 1 << 20


class Segment(NamedTuple):
    """A program header."""

    type: str
    """``"PT_LOAD"``, ``"PT_NOTE"`` or anything else."""
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int


def read_segments(pread: Callable[[int, int], bytes]) -> list[Segment]:
    """
    Program headers of an x86-64 core file.

    :param pread: reads the file: (size, offset) to at most that many bytes.
    :raises DumpError: if it is no such file, or if its headers are cut short.
    """
    structs = ELFStructs(little_endian=True, elfclass=64)
    structs.create_basic_structs()
    structs.create_advanced_structs()

    def parse(struct: Any, data: bytes, size: int, what: str) -> Any:
        if len(data) < size:
            raise DumpError(f"the file is cut short: no whole {what}")
        try:
            return struct_parse(struct, io.BytesIO(data))
        except ELFError as error:
            raise DumpError(f"the {what} is damaged: {error}") from None

    raw = pread(_EHDR_SIZE, 0)
    if len(raw) > 5 and raw[4] == 1:
        raise DumpError("a 32-bit ELF file; only x86-64 dumps are known")
    if len(raw) > 5 and (raw[4], raw[5]) != (2, 1):
        raise DumpError("not a little-endian ELF64 file; only x86-64 dumps are known")
    ehdr = parse(structs.Elf_Ehdr, raw, _EHDR_SIZE, "ELF header")
    if ehdr["e_type"] != "ET_CORE":
        raise DumpError("an ELF file, but not a core dump")
    if ehdr["e_machine"] != "EM_X86_64":
        raise DumpError(f"a dump of {ehdr['e_machine']}; only x86-64 dumps are known")

    count, size = ehdr["e_phnum"], ehdr["e_phentsize"]
    if count == _PN_XNUM and ehdr["e_shoff"]:
        section = pread(_SHDR_SIZE, ehdr["e_shoff"])
        count = parse(structs.Elf_Shdr, section, _SHDR_SIZE, "section header")[
            "sh_info"
        ]
    if count > _MAX_SEGMENTS or size < _PHDR_SIZE or size > 4096:
        raise DumpError("the ELF header is damaged: impossible program headers")
    table = pread(count * size, ehdr["e_phoff"])
    segments = []
    for i in range(count):
        entry = table[i * size : i * size + _PHDR_SIZE]
        phdr = parse(structs.Elf_Phdr, entry, _PHDR_SIZE, "program header")
        segments.append(
            Segment(
                str(phdr["p_type"]),
                phdr["p_offset"],
                phdr["p_vaddr"],
                phdr["p_paddr"],
                phdr["p_filesz"],
                phdr["p_memsz"],
            )
        )
    return segments
