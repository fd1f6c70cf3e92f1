# SPDX-License-Identifier: LGPL-2.1-or-later
"""
ELF64 cores
-----------

The program headers of a core file, wherever in the file they are and however
many: QEMU puts them behind the section headers, and past 65534 their number is
in the first section header.

As arrays: through pyelftools, thousands of segments take seconds, and one of
them a tenth of the start-up.
"""

from __future__ import annotations

import struct
from typing import Any, Callable

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
