# SPDX-License-Identifier: LGPL-2.1-or-later
"""The same ELF core, laid out in another way.

makedumpfile takes program headers only right behind the ELF header, PT_NOTE first and
data on page boundaries; QEMU and others write cores that are otherwise. Made with
pyelftools and plain copies, not with the code under test.
"""

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

from elftools.elf.elffile import ELFFile

_PAGE = 4096
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_PT_LOAD, _PT_NOTE = 1, 4


class _Phdr(NamedTuple):
    type: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int


def _phdrs(file: IO[bytes]) -> list[_Phdr]:
    kinds = {"PT_LOAD": _PT_LOAD, "PT_NOTE": _PT_NOTE}
    phdrs = []
    for segment in ELFFile(file).iter_segments():
        h = segment.header
        if h["p_type"] in kinds:
            phdrs.append(
                _Phdr(
                    kinds[h["p_type"]],
                    h["p_offset"],
                    h["p_vaddr"],
                    h["p_paddr"],
                    h["p_filesz"],
                    h["p_memsz"],
                )
            )
    return phdrs


def relayout(
    source: Path, target: Path, skew: int = 0, notes_first: bool = True
) -> Path:
    """Write *source*'s segments to *target*.

    :param skew: how far from a page boundary data lies.
    :param notes_first: whether PT_NOTE is the first program header.
    """
    with source.open("rb") as old, target.open("wb") as new:
        phdrs = sorted(_phdrs(old), key=lambda h: h.type != _PT_NOTE)
        if not notes_first:
            phdrs.reverse()
        offset = _EHDR.size + len(phdrs) * _PHDR.size
        placed = []
        for phdr in phdrs:
            offset = -(-offset // _PAGE) * _PAGE
            placed.append(phdr._replace(offset=offset + skew))
            offset += skew + phdr.filesz
        new.write(_header(placed))
        for before, after in zip(phdrs, placed):
            old.seek(before.offset)
            new.seek(after.offset)
            _copy(old, new, before.filesz)
        new.truncate(offset)
    return target


def _header(phdrs: Sequence[_Phdr]) -> bytes:
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    ehdr = _EHDR.pack(
        ident,
        4,
        62,
        1,
        0,
        _EHDR.size,
        0,
        0,
        _EHDR.size,
        _PHDR.size,
        len(phdrs),
        0,
        0,
        0,
    )
    return ehdr + b"".join(
        _PHDR.pack(h.type, 7, h.offset, h.vaddr, h.paddr, h.filesz, h.memsz, 0)
        for h in phdrs
    )


def _copy(old: IO[bytes], new: IO[bytes], size: int) -> None:
    """Copy, leaving holes where there is nothing but zeros."""
    zeros = bytes(1 << 20)
    while size:
        chunk = old.read(min(size, len(zeros)))
        if not chunk:
            raise EOFError("the source is cut short")
        if chunk == zeros[: len(chunk)]:
            new.seek(len(chunk), os.SEEK_CUR)
        else:
            new.write(chunk)
        size -= len(chunk)


def is_ordinary(path: Path) -> bool:
    """Whether makedumpfile takes *path* as it is."""
    with path.open("rb") as file:
        elf = ELFFile(file)
        aligned = all(h.offset % _PAGE == h.paddr % _PAGE for h in _phdrs(file)[1:])
        return bool(elf["e_phoff"] == _EHDR.size and aligned)


def ordinary(path: Path, work: Path) -> Path:
    """*path*, or a copy of it in *work* that makedumpfile takes."""
    if is_ordinary(path):
        return path
    return relayout(path, work / "ordinary.elf")
