# SPDX-License-Identifier: LGPL-2.1-or-later
"""One dump through four readers: ours, libkdumpfile, crash and makedumpfile.

Every page, byte by byte, and that none has a page that another has not.
python -m tests.vm readers does so with all dumps, and with all that we make of those
that are there for their pages; the others are there for what is decoded of them.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from elftools.elf.elffile import ELFFile

from drgn_tools.vmcore import open_vmcore
from drgn_tools.vmcoreinfo import Vmcoreinfo
from tests.synthetic import read_kdump

from . import (
    dumps,
    ftrace_guests,
    libkdumpfile,
    oprofile_guests,
    peers,
    pstore_guests,
    zram_guests,
)
from .dumps import Dump
from .kernels import Kernel
from .relayout import ordinary

PAGE = 4096
# Pages that are compared at once.
_CHUNK = 2048

Bools = npt.NDArray[np.bool_]

SOURCE = "source"
"""A dump of the bench as it is; beside it there are OUTPUTS."""

OUTPUTS = {
    "zstd": ["--compress", "zstd"],
    "lzo": ["--compress", "lzo"],
    "snappy": ["--compress", "snappy"],
    "zlib": ["--compress", "zlib"],
    "none": ["--compress", "none"],
    "elf": ["-E"],
}
"""Options of extract for each kind of file that it writes."""

# No Debian makedumpfile has snappy.
_NOT_BY_MAKEDUMPFILE = ("snappy",)


def runs(present: Bools, longest: int) -> Iterator[tuple[int, int]]:
    """First page frame and length of each run of pages."""
    edges = np.flatnonzero(np.diff(present, prepend=False, append=False)).tolist()
    for start, end in zip(edges[::2], edges[1::2]):
        for pfn in range(start, end, longest):
            yield pfn, min(longest, end - pfn)


class Kdumpfile:
    """libkdumpfile: the one that we built, or another; it takes several files."""

    # kdump_addrspace_t: physical addresses of the machine.
    _MACHPHYSADDR = 1
    _BITMAP = 5

    def __init__(self, *paths: Path, library: Path | None = None) -> None:
        if library is None:
            folder = libkdumpfile.get().libraries
            # By the name by which the next one asks for it.
            ctypes.CDLL(str(folder / "libaddrxlat.so.3"))
            library = folder / "libkdumpfile.so.10"
        self._lib = lib = ctypes.CDLL(str(library))
        lib.kdump_new.restype = ctypes.c_void_p
        lib.kdump_get_err.restype = ctypes.c_char_p
        lib.kdump_get_err.argtypes = [ctypes.c_void_p]
        lib.kdump_free.argtypes = [ctypes.c_void_p]
        lib.kdump_open_fdset.argtypes = [
            ctypes.c_void_p,
            ctypes.c_uint,
            ctypes.c_void_p,
        ]
        lib.kdump_read.argtypes = [
            ctypes.c_void_p,
            ctypes.c_int,
            ctypes.c_uint64,
            ctypes.c_void_p,
            ctypes.POINTER(ctypes.c_size_t),
        ]
        self._context = ctypes.c_void_p(lib.kdump_new())
        self._fds = [os.open(path, os.O_RDONLY) for path in paths]
        array = (ctypes.c_int * len(paths))(*self._fds)
        status = lib.kdump_open_fdset(self._context, len(paths), array)
        assert status == 0, lib.kdump_get_err(self._context)

    def close(self) -> None:
        self._lib.kdump_free(self._context)
        for fd in self._fds:
            os.close(fd)

    def read(self, paddr: int, size: int) -> bytes | str:
        """Memory, or why there is none."""
        buffer = ctypes.create_string_buffer(size)
        length = ctypes.c_size_t(size)
        status = self._lib.kdump_read(
            self._context, self._MACHPHYSADDR, paddr, buffer, ctypes.byref(length)
        )
        if status:
            return bytes(self._lib.kdump_get_err(self._context)).decode()
        assert length.value == size
        return buffer.raw

    def present(self, end_pfn: int) -> Bools:
        """Which page frames have data: its attribute file.pagemap."""
        lib = self._lib
        lib.kdump_get_attr.argtypes = [
            ctypes.c_void_p,
            ctypes.c_char_p,
            ctypes.c_void_p,
        ]
        lib.kdump_bmp_get_bits.argtypes = [
            ctypes.c_void_p,
            ctypes.c_uint64,
            ctypes.c_uint64,
            ctypes.c_void_p,
        ]
        # kdump_attr_t: a type, and a value of 8 bytes.
        attribute = (ctypes.c_uint64 * 2)()
        status = lib.kdump_get_attr(self._context, b"file.pagemap", attribute)
        assert status == 0, lib.kdump_get_err(self._context)
        assert attribute[0] & 0xFFFFFFFF == self._BITMAP
        bits = ctypes.create_string_buffer(-(-end_pfn // 8))
        assert lib.kdump_bmp_get_bits(attribute[1], 0, end_pfn - 1, bits) == 0
        packed = np.frombuffer(bits.raw, np.uint8)
        return np.unpackbits(packed, count=end_pfn, bitorder="little").astype(np.bool_)


def _crash(
    kernel: Kernel, path: Path, present: Bools, work: Path
) -> Iterator[tuple[int, bytes]]:
    """What crash reads: page frame and data of each of runs(present, _CHUNK)."""
    places = list(runs(present, len(present)))
    script = work / "script"
    script.write_text(
        "".join(
            f"rd -r {work}/pages-{pfn} -p {pfn * PAGE:#x} {count * PAGE}\n"
            for pfn, count in places
        )
    )
    # Without tasks and modules, for which it would look.
    argv = [*peers.argv("crash-sid"), "--minimal", "-s"]
    done = subprocess.run(
        [*argv, kernel.vmlinux, path],
        input=f"< {script}\nquit\n",
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for pfn, count in places:
        place = work / f"pages-{pfn}"
        with place.open("rb") as file:
            for at in range(pfn, pfn + count, _CHUNK):
                yield at, file.read(_CHUNK * PAGE)
        place.unlink()


def _by_makedumpfile(path: Path, whole: bool, work: Path) -> dict[int, bytes]:
    """
    What makedumpfile reads, as it writes it.

    :param whole: the dump is not filtered. Only of such ones it makes an ELF core:
        kdump-compressed it takes none, and of an ELF core none that has segments
        without data. Of these it makes a file of pages as they are.
    """
    out = work / "by-makedumpfile"
    source = ordinary(path, work) if whole else path
    argv = [*peers.argv("makedumpfile-sid"), "--message-level", "4", "-d", "0"]
    argv += ["-E"] if whole else []
    done = subprocess.run([*argv, source, out], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    if source != path:
        source.unlink()
    pages = _elf_pages(out) if whole else read_kdump(out).pages
    out.unlink()
    return dict(pages)


def _elf_pages(path: Path) -> dict[int, bytes]:
    pages = {}
    with path.open("rb") as file:
        for segment in ELFFile(file).iter_segments("PT_LOAD"):
            start, size = segment["p_paddr"], segment["p_filesz"]
            if start % PAGE or size % PAGE:
                raise ValueError(f"{path}: a segment off page boundaries")
            os.lseek(file.fileno(), segment["p_offset"], os.SEEK_SET)
            for pfn in range(start // PAGE, (start + size) // PAGE):
                pages[pfn] = os.read(file.fileno(), PAGE)
    return pages


class Compared(NamedTuple):
    """How many pages were equal: in three, and of these in makedumpfile."""

    pages: int
    makedumpfile: int


def _compare(
    path: Path,
    kernel: Kernel,
    work: Path,
    *,
    flags: bytes = b"",
    makedumpfile: bool = True,
    made_of: tuple[Path, Bools] | None = None,
) -> Compared:
    """
    Compare what readers have of a file.

    :param flags: the guest's /proc/kpageflags, if it was read.
    :param made_of: the file is not a dump itself, but made of this one: and which of
        its pages must be there.
    """
    with open_vmcore(str(path)) as vmcore:
        end = vmcore.max_pfn
        present = vmcore.present(0, end)
        theirs = Kdumpfile(path)
        assert (theirs.present(end) == present).all(), "libkdumpfile's file.pagemap"
        # First, because what it writes is gone before crash writes.
        made = _by_makedumpfile(path, not made_of, work) if makedumpfile else {}
        crashed = _crash(kernel, path, present, work)
        left_out = []
        for pfn, count in runs(present, _CHUNK):
            single = list(vmcore.pages(np.arange(pfn, pfn + count)))
            data = b"".join(single)
            where = f"page frames {pfn:#x}+{count:#x}"
            assert len(data) == count * PAGE
            assert theirs.read(pfn * PAGE, count * PAGE) == data, where
            assert next(crashed) == (pfn, data), f"crash: {where}"
            for number, page in enumerate(single, pfn) if makedumpfile else ():
                its = made.pop(number, None)
                if its is None:
                    left_out.append(number)
                else:
                    assert its == page, f"makedumpfile: {number:#x}"
        assert next(crashed, None) is None
        assert not made, "makedumpfile has more"
        theirs.close()
        if made_of is not None:
            source = Kdumpfile(made_of[0])
            for pfn, count in runs(made_of[1], _CHUNK):
                data = vmcore.read(pfn * PAGE, count * PAGE)
                assert source.read(pfn * PAGE, count * PAGE) == data, hex(pfn)
            source.close()
        assert vmcore.vmcoreinfo is not None
        rest = _unexplained(flags, left_out, vmcore.vmcoreinfo)
    assert not rest, f"makedumpfile leaves out {rest[:3]}"
    pages = int(present.sum())
    return Compared(pages, pages - len(left_out) if makedumpfile else 0)


# Bits of /proc/kpageflags: what makedumpfile leaves out at any level.
_KPF_HWPOISON, _KPF_OFFLINE = 19, 23
# And what 1.7.8 does not know since 7.1, where OFFSET(page.compound_head) is gone: it
# takes tails of slabs for user pages. It filters what is filtered once more.
_KPF_COMPOUND_TAIL = 16
# QEMU's firmware, of which the kernel has no struct pages. Where its memory ends within
# a section, makedumpfile has no bits for it: "is_dumpable_file: Can't read the bitmap".
_FIRMWARE = range(0xFFFC0, 0x100000)


def _unexplained(flags: bytes, left_out: Sequence[int], info: Vmcoreinfo) -> list[int]:
    """Of what makedumpfile left out, what the guest does not say is such."""
    said: Any = np.frombuffer(flags, "<u8")
    if not len(said):
        return [n for n in left_out if n not in _FIRMWARE]
    bits = 1 << _KPF_HWPOISON | 1 << _KPF_OFFLINE
    if info.offset("page.compound_head") is None:
        bits |= 1 << _KPF_COMPOUND_TAIL
    return [n for n in left_out if n >= len(said) or not int(said[n]) & bits]


def _write(dump: Dump, kind: str, target: Path) -> Path:
    """Our dump of one, at level 31, of one of OUTPUTS."""
    command = [sys.executable, "-m", "drgn_tools", "extract", "-d", "31"]
    done = subprocess.run(
        [*command, *OUTPUTS[kind], dump.path, target], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return target


def compare(dump: Dump, kind: str, work: Path) -> Compared:
    """
    Compare what readers have of a dump, or of what we make of it.

    :param kind: SOURCE or a key of OUTPUTS.
    :param work: a folder with room for twice the dump; nothing large is left in it.
    :raises AssertionError: if it is not the same.
    """
    flags = dump.fact("kpageflags")
    if kind == SOURCE:
        return _compare(dump.path, dump.kernel, work, flags=flags)
    path = kept = _write(dump, kind, work / "dump")
    if kind == "elf":
        # Small gaps between what it keeps are in the file, as zeros.
        kept = _write(dump, "none", work / "kept")
    with open_vmcore(str(kept)) as vmcore:
        present = vmcore.present(0, vmcore.max_pfn)
    found = _compare(
        path,
        dump.kernel,
        work,
        flags=flags,
        makedumpfile=kind not in _NOT_BY_MAKEDUMPFILE,
        made_of=(dump.path, present),
    )
    for made in {path, kept}:
        made.unlink()
    return found


def _decoded() -> Iterator[tuple[str, Path, Kernel]]:
    """Name, path and kernel of the dumps that are there for what is decoded of them."""
    guests: dict[str, Sequence[Any]] = {
        "ftrace": list(map(ftrace_guests.get, ftrace_guests.KERNELS)),
        "pstore": pstore_guests.matrix(),
        "zram": zram_guests.matrix(),
        "oprofile": oprofile_guests.matrix(),
    }
    for family, left in guests.items():
        for guest in left:
            for kind, name in dumps.KINDS.items():
                path = guest.folder / name
                if path.exists():
                    yield f"{family} {guest.folder.name} {kind}", path, guest.kernel


def _comparisons(kind: str, work: Path) -> Iterator[tuple[str, Compared]]:
    large = (dumps.LARGE,) if kind == SOURCE else ()
    for spec in (*dumps.MATRIX, *large):
        for dump in dumps.both(spec):
            yield f"{spec.name}-{dump.kind}", compare(dump, kind, work)
    if kind == SOURCE:
        for name, path, kernel in _decoded():
            yield name, _compare(path, kernel, work)


def compare_all(kinds: Sequence[str]) -> Iterator[str]:
    """Compare everything of the bench; a line for each file, and what it comes to."""
    for kind in kinds:
        files = 0
        totals = Compared(0, 0)
        with tempfile.TemporaryDirectory() as work:
            for name, found in _comparisons(kind, Path(work)):
                files += 1
                totals = Compared(*map(sum, zip(totals, found)))
                yield f"{name} {kind}: {_said(found)}"
        yield f"{files} files, {kind}: {_said(totals)}"


def _said(found: Compared) -> str:
    return (
        f"{found.pages} pages equal in ours, libkdumpfile and crash,"
        f" {found.makedumpfile} also in makedumpfile"
    )
