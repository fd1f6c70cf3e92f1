# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Names for kernel addresses, from a file
---------------------------------------

A kernel's System.map, or the symbol table of its vmlinux, where there is no drgn
program to ask; and programs of user space. Functions only.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from drgn_tools.errors import DumpError
from drgn_tools.text import printable

# A System.map has 150,000 lines.
_MAX_FILE = 1 << 28
# Bytes of a name; those of C++ are the longest.
_MAX_NAME = 1 << 14
_LINE = re.compile(rb"([0-9a-f]{8,16}) [tTwW] (\S{1,512})\n")
# How far behind a function's start its call of ftrace is: ENDBR, or on other
# machines a few instructions.
_ENTRY = 16
# By multiples of what kernels are moved, and how far: x86-64, and all others.
_MOVES = ((1 << 21, 1 << 31), (1 << 16, 1 << 48))
# Of functions, that may be modules' in part.
_NEARLY_ALL = 0.95
# Addresses that are tried.
_SAMPLE = 512


class Symbols:
    """Functions of a kernel, where it was linked to be."""

    def __init__(self, functions: Sequence[tuple[int, str]]) -> None:
        # Of aliases, the kernel names the one with fewest underscores in front.
        ordered = sorted(
            functions, key=lambda f: (f[0], len(f[1]) - len(f[1].lstrip("_")))
        )
        self._addresses: list[int] = []
        self._names: list[str] = []
        for address, name in ordered:
            if not self._addresses or self._addresses[-1] != address:
                self._addresses.append(address)
                self._names.append(name)
        self._starts = np.array(self._addresses, np.uint64)

    def _find(self, address: int) -> tuple[str, int, int] | None:
        at = bisect_right(self._addresses, address)
        # Where the last function ends, nothing says.
        if not 0 < at < len(self._addresses):
            return None
        start = self._addresses[at - 1]
        return self._names[at - 1], address - start, self._addresses[at] - start

    def function(self, address: int, offset: int = 0) -> str:
        """
        The name as ``%ps`` prints it: of the function alone.

        :param offset: how far the kernel was moved from where it was linked.
        """
        found = self._find(address - offset)
        return f"{address:#x}" if found is None else found[0]

    def place(self, address: int, offset: int = 0) -> str:
        """The name as ``%pS`` prints it: function, offset and size."""
        found = self._find(address - offset)
        if found is None:
            return f"{address:#x}"
        return f"{found[0]}+{found[1]:#x}/{found[2]:#x}"

    def fit(self, entries: npt.NDArray[np.uint64]) -> int | None:
        """
        How far the kernel was moved, from addresses where functions call ftrace.

        :return: None if no distance explains nearly all; modules may be among them.
        """
        if not len(self._starts):
            return None
        entries = np.unique(entries)
        step = max(1, len(entries) // _SAMPLE)
        entries = entries[::step][:_SAMPLE]
        if self._hits(entries) >= _NEARLY_ALL:
            return 0
        for alignment, reach in _MOVES:
            offset = self._fit(entries, alignment, reach)
            if offset is not None:
                return offset
        return None

    def _fit(
        self, entries: npt.NDArray[np.uint64], alignment: int, reach: int
    ) -> int | None:
        best = 0.0
        offsets: set[int] = set()
        for pivot in entries[:: max(1, len(entries) // 8)]:
            tries = []
            for entry in range(0, _ENTRY + 1, 4):
                away = pivot - self._starts - np.uint64(entry)
                tries.append(away[(away % np.uint64(alignment) == 0) & (away < reach)])
            for offset in np.unique(np.concatenate(tries)):
                hits = self._hits(entries - offset)
                if hits > best:
                    best, offsets = hits, set()
                if hits == best:
                    offsets.add(int(offset))
            if best >= _NEARLY_ALL and len(entries) >= 8:
                break
        # One address fits somewhere, and of a few there may be several ways.
        if len(entries) < 2 or len(offsets) != 1:
            return None
        return offsets.pop() if best >= (0.6 if len(entries) >= 8 else 1) else None

    def _hits(self, entries: npt.NDArray[np.uint64]) -> float:
        at = np.searchsorted(self._starts, entries, side="right")
        starts = self._starts[np.maximum(at, 1) - 1]
        return float(((at > 0) & (entries - starts <= _ENTRY)).mean())


def load(path: str) -> Symbols:
    """
    Symbols of a System.map or a vmlinux.

    :raises DumpError: if it cannot be read or has none.
    """
    try:
        with open(path, "rb") as file:
            is_elf = file.read(4) == b"\x7fELF"
            file.seek(0)
            content = b"" if is_elf else file.read(_MAX_FILE)
    except OSError as error:
        raise DumpError(f"cannot read {path}: {error.strerror}") from None
    if is_elf:
        functions = _elf(path)
    else:
        functions = [
            (int(address, 16), printable(name.decode("ascii", "backslashreplace")))
            for address, name in _LINE.findall(content)
        ]
    if not functions:
        raise DumpError(f"{path} has no symbols: not a System.map or a vmlinux")
    return Symbols(functions)


class ElfFile:
    """A program or library, for look-ups by where something is in the file."""

    def __init__(self, path: str) -> None:
        """:raises DumpError: if it cannot be read or has no symbols."""
        from elftools.common.exceptions import ELFError
        from elftools.elf.elffile import ELFFile

        self._symbols = load(path)
        # Offset in the file, size and address.
        self._segments: list[tuple[int, int, int]] = []
        try:
            with open(path, "rb") as file:
                for segment in ELFFile(file).iter_segments("PT_LOAD"):
                    names = ("p_offset", "p_filesz", "p_vaddr")
                    offset, size, address = (segment[name] for name in names)
                    self._segments.append((offset, size, address))
        except (ELFError, OSError, ValueError, KeyError) as error:
            raise DumpError(f"cannot read {path}: {error}") from None

    def find(self, offset: int) -> tuple[str, int] | None:
        """The function that is at an offset in the file, and how far in it is."""
        for start, size, address in self._segments:
            if start <= offset < start + size:
                found = self._symbols._find(address + offset - start)
                return None if found is None else found[:2]
        return None


def _elf(path: str) -> list[tuple[int, str]]:
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    functions = []
    try:
        with open(path, "rb") as file:
            elf = ELFFile(file)
            # Stripped libraries still have those that others use.
            for table_name, strings in ((".symtab", ".strtab"), (".dynsym", ".dynstr")):
                table = elf.get_section_by_name(table_name)
                names_section = elf.get_section_by_name(strings)
                if table is not None and names_section is not None:
                    break
            else:
                return []
            room = os.fstat(file.fileno()).st_size
            for section in (table, names_section):
                # What a section claims is allocated.
                if section.compressed or section["sh_size"] > room:
                    raise ValueError("its symbols are damaged")
            code = {
                number
                for number, section in enumerate(elf.iter_sections())
                if section["sh_flags"] & 4  # SHF_EXECINSTR
            }
            # One by one, they would take seconds.
            order = "<" if elf.little_endian else ">"
            if elf.elfclass == 64:
                fields = [("name", "u4"), ("info", "u1"), ("other", "u1")]
                fields += [("shndx", "u2"), ("value", "u8"), ("size", "u8")]
            else:
                fields = [("name", "u4"), ("value", "u4"), ("size", "u4")]
                fields += [("info", "u1"), ("other", "u1"), ("shndx", "u2")]
            dtype = np.dtype([(name, order + width) for name, width in fields])
            data, names = table.data(), names_section.data()
            symbols = np.frombuffer(data, dtype, len(data) // dtype.itemsize)
            wanted = np.isin(symbols["shndx"], list(code))
            # STT_NOTYPE and STT_FUNC.
            wanted &= np.isin(symbols["info"] & 15, [0, 2])
            for start, value in zip(
                symbols["name"][wanted].tolist(), symbols["value"][wanted].tolist()
            ):
                end = names.find(b"\0", start, start + _MAX_NAME)
                raw = names[start : max(end, start)]
                name = printable(raw.decode("ascii", "replace"))
                if name:
                    functions.append((value, name))
    except (ELFError, OSError, ValueError, KeyError) as error:
        raise DumpError(f"cannot read {path}: {error}") from None
    return functions
