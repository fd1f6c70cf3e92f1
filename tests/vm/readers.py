# SPDX-License-Identifier: LGPL-2.1-or-later
"""One dump through four readers: ours, libkdumpfile, crash and makedumpfile.

Every page, byte by byte, and that none has a page that another has not.
python -m tests.vm readers does so with all dumps, and with all that we make of them.
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

from . import dumps, libkdumpfile, peers
from .dumps import Dump
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
    dump: Dump, path: Path, present: Bools, work: Path
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
        [*argv, dump.kernel.vmlinux, path],
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
    dump: Dump,
    path: Path,
    work: Path,
    *,
    makedumpfile: bool,
    made_of: Bools | None = None,
) -> Compared:
    """
    Compare what readers have of a file.

    :param dump: the boot that it is of.
    :param made_of: it is not the dump itself, but made of it: which pages must be the
        dump's.
    """
    with open_vmcore(str(path)) as vmcore:
        end = vmcore.max_pfn
        present = vmcore.present(0, end)
        theirs = Kdumpfile(path)
        assert (theirs.present(end) == present).all(), "libkdumpfile's file.pagemap"
        before = None if made_of is None else Kdumpfile(dump.path)
        # First, because what it writes is gone before crash writes.
        made = _by_makedumpfile(path, before is None, work) if makedumpfile else {}
        crashed = _crash(dump, path, present, work)
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
        if before and made_of is not None:
            for pfn, count in runs(made_of, _CHUNK):
                data = vmcore.read(pfn * PAGE, count * PAGE)
                assert before.read(pfn * PAGE, count * PAGE) == data, hex(pfn)
            before.close()
        assert next(crashed, None) is None
        assert not made, "makedumpfile has more"
        theirs.close()
        assert vmcore.vmcoreinfo is not None
        rest = _unexplained(dump, left_out, vmcore.vmcoreinfo)
    assert not rest, f"makedumpfile leaves out {rest[:3]}"
    pages = int(present.sum())
    return Compared(pages, pages - len(left_out) if makedumpfile else 0)


# Bits of /proc/kpageflags: what makedumpfile leaves out at any level.
_KPF_HWPOISON, _KPF_OFFLINE = 19, 23
# And what 1.7.8 does not know since 7.1, where OFFSET(page.compound_head) is gone: it
# takes tails of slabs for user pages. It filters what is filtered once more.
_KPF_COMPOUND_TAIL = 16


def _unexplained(dump: Dump, left_out: Sequence[int], info: Vmcoreinfo) -> list[int]:
    """Of what makedumpfile left out, what the guest does not say is such."""
    flags: Any = np.frombuffer(dump.fact("kpageflags"), "<u8")
    bits = 1 << _KPF_HWPOISON | 1 << _KPF_OFFLINE
    if info.offset("page.compound_head") is None:
        bits |= 1 << _KPF_COMPOUND_TAIL
    return [n for n in left_out if n >= len(flags) or not int(flags[n]) & bits]


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
    :param work: an empty folder, with room for twice the dump.
    :raises AssertionError: if it is not the same.
    """
    if kind == SOURCE:
        return _compare(dump, dump.path, work, makedumpfile=True)
    path = kept = _write(dump, kind, work / "dump")
    if kind == "elf":
        # Small gaps between what it keeps are in the file, as zeros.
        kept = _write(dump, "none", work / "kept")
    with open_vmcore(str(kept)) as vmcore:
        made_of = vmcore.present(0, vmcore.max_pfn)
    taken = kind not in _NOT_BY_MAKEDUMPFILE
    return _compare(dump, path, work, makedumpfile=taken, made_of=made_of)


def compare_all(kinds: Sequence[str]) -> Iterator[str]:
    """Compare everything of the bench; a line for each file, and what it comes to."""
    files = 0
    totals = Compared(0, 0)
    for kind in kinds:
        for spec in dumps.MATRIX:
            for dump in dumps.both(spec):
                with tempfile.TemporaryDirectory() as work:
                    found = compare(dump, kind, Path(work))
                files += 1
                totals = Compared(*map(sum, zip(totals, found)))
                yield f"{spec.name}-{dump.kind} {kind}: {_said(found)}"
    yield f"{files} files: {_said(totals)}"


def _said(found: Compared) -> str:
    return (
        f"{found.pages} pages equal in ours, libkdumpfile and crash,"
        f" {found.makedumpfile} also in makedumpfile"
    )
