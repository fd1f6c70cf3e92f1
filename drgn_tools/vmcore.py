# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Dumps as physical memory
------------------------

:func:`open_vmcore` opens an ELF64 core (/proc/vmcore, a copy of it, what QEMU
writes) or a kdump-compressed file and gives its physical memory: which page
frames there are, which of them have data, and the data itself. Nothing but
what is asked for is read; struct pages come without copying where they can,
through bounded mappings.
"""

from __future__ import annotations

import abc
import bisect
import contextlib
import functools
import mmap
import os
from collections.abc import Iterator
from typing import Any, Callable, NamedTuple

import numpy as np
import numpy.typing as npt

from drgn_tools import codecs
from drgn_tools.errors import DumpError, MissingMemory
from drgn_tools.formats import elf, flattened, kdump
from drgn_tools.formats.notes import (
    NT_LIVE,
    NT_PRSTATUS,
    SNAP,
    iter_notes,
    pack_note,
)
from drgn_tools.progress import Progress
from drgn_tools.text import binary_size
from drgn_tools.translate import Translator
from drgn_tools.vmcoreinfo import Vmcoreinfo

_PAGE_SIZE = 4096
# x86-64 has 52 bits of physical address.
_MAX_PADDR = 1 << 52
# A dump holds at least the kernel's struct pages, a 64th of its memory. One
# that holds less than a bit per page lies; a small one may, it costs nothing.
_MIN_BITMAP = 1 << 20
# How often an ELF core's segments may have the same data, on average.
_MAX_SHARED = 64
# Device dumps are among the notes and may be large; more than this is damage.
_MAX_NOTES = 1 << 30
# The kernel keeps VMCOREINFO in one page; QEMU takes up to 1 MiB.
_MAX_VMCOREINFO = 1 << 20
# struct new_utsname: six fields.
_UTS_FIELD = 65
_UTS_FIELDS = 6
# What a dump of a running kernel says of itself.
_LIVE_NOTE = (
    b"Taken from a running kernel through /proc/kcore: memory changed meanwhile, so "
    b"that no two pages need to be of one moment."
)
# Reads before which it is seen whether the file has so much.
_LARGE = 1 << 20
# Pages read at once: they stay in the processor's cache until they are used.
_READ_PAGES = 32
# And where nobody uses them twice.
_SEARCH_PAGES = 1024
# Why memory is missing whose data should come later in the file.
_CUT = "beyond the end of the file: the dump is cut short"
# Descriptors looked at together: 1.5 MiB.
_DESCRIPTORS = 1 << 16
# What the kernel puts before its own copy of VMCOREINFO: namesz, (descsz,) type, name.
_NOTE_NAMESZ = (11).to_bytes(4, "little")
_NOTE_REST = bytes(4) + b"VMCOREINFO\0\0"
_NOTE_SIZE = 8 + len(_NOTE_REST)
# Decompressed pages that a kdump-compressed input keeps: the page tables and
# the descriptions of one section.
_CACHED_PAGES = 1024

Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]
Pfns = npt.NDArray[np.int64]


class Run(NamedTuple):
    """Consecutive page frames."""

    pfn: int
    end_pfn: int


def merge_runs(runs: list[Run]) -> list[Run]:
    """Union of *runs*, in order, neighbours joined."""
    merged: list[Run] = []
    for run in sorted(runs):
        if run.pfn >= run.end_pfn:
            continue
        if merged and run.pfn <= merged[-1].end_pfn:
            if run.end_pfn > merged[-1].end_pfn:
                merged[-1] = Run(merged[-1].pfn, run.end_pfn)
        else:
            merged.append(run)
    return merged


def clip_runs(runs: list[Run], clip: Run) -> list[Run]:
    """What of *runs* is in *clip*."""
    clipped = [
        Run(max(run.pfn, clip.pfn), min(run.end_pfn, clip.end_pfn)) for run in runs
    ]
    return [run for run in clipped if run.pfn < run.end_pfn]


class Vmcore(abc.ABC):
    """
    The physical memory of a dump. Made by :func:`open_vmcore`.

    Only page frames in :attr:`data_runs` can be read, and of these only the
    ones that :meth:`present` tells.
    """

    format: str
    """What the file is, for people."""
    page_size: int
    notes: bytes
    """ELF notes, verbatim."""
    vmcoreinfo: Vmcoreinfo | None = None
    vmcoreinfo_place: tuple[int, int] = (0, 0)
    """Offset of the VMCOREINFO text in :attr:`notes`, and its size."""
    nr_cpus: int = 0
    """CPUs whose registers are in the notes."""
    ram_runs: list[Run]
    """Page frames that the machine had, as far as the dump tells."""
    data_runs: list[Run]
    """Page frames that may have data."""
    loads: tuple[elf.Load, ...] = ()
    """PT_LOADs of an ELF core, as they are there."""
    live: bool = False
    """It is the running kernel, whose memory changes."""
    _lost_bytes: int = 0
    header: kdump.Header | None = None
    """Of a kdump-compressed file."""
    dumped_pages: int = 0
    """Pages with a descriptor in a kdump-compressed file."""
    part: Run | None = None
    """Page frames that one part of a split dump is of."""

    def __init__(
        self, path: str, fd: int, size: int, flat: flattened.Index | None
    ) -> None:
        self.path = path
        self.size = size
        self._file_size = size
        self._fd = fd
        self._flat = flat

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Vmcore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def max_pfn(self) -> int:
        """End of the last run of memory."""
        return self.ram_runs[-1].end_pfn if self.ram_runs else 0

    @property
    def lost_bytes(self) -> int:
        """How much of the data the file should hold and does not."""
        return self._lost_bytes

    @property
    def lost_pages(self) -> int:
        """How many pages that is."""
        return -(-self._lost_bytes // self.page_size)

    @abc.abstractmethod
    def present(self, pfn: int, end_pfn: int) -> Bools:
        """Which page frames of a range have data."""

    @abc.abstractmethod
    def pages(self, pfns: Pfns) -> Iterator[bytes]:
        """
        Copies of pages, one after the other.

        :param pfns: page frames with data, ascending, close together.
        :raises MissingMemory: if a page frame has no data.
        """

    @abc.abstractmethod
    def read(self, paddr: int, size: int) -> bytes:
        """
        Copy of physical memory.

        :raises MissingMemory: if a page of it has no data.
        """

    def cut_off(self, paddr: int) -> bool:
        """Whether a page is one that the file should hold and is too short for."""
        run = _pages_of(paddr, paddr + 1)
        return bool(
            self.lost_bytes
            and runs_mask(self.ram_runs, *run)[0]
            and not runs_mask(self.data_runs, *run)[0]
        )

    def view(self, paddr: int, size: int) -> Bytes:
        """Like :meth:`read`, as an array, without copying where possible."""
        return np.frombuffer(self.read(paddr, size), np.uint8)

    @functools.cached_property
    def kernel(self) -> Translator:
        """
        Kernel virtual memory.

        :raises DumpError: if the dump does not say where page tables are.
        """
        if self.vmcoreinfo is None:
            raise DumpError(f"{self.path} has no VMCOREINFO")
        return Translator(self.vmcoreinfo, self.read)

    def utsname(self) -> tuple[bytes, ...]:
        """
        ``struct new_utsname`` of the crashed kernel; empty fields if unknown.
        """
        unknown = (b"Linux", b"", b"", b"", b"x86_64", b"")
        info = self.vmcoreinfo
        if info is None or info.text("SYMBOL(init_uts_ns)") is None:
            return self.header.utsname if self.header else unknown
        try:
            return _read_utsname(info, self.kernel)
        except DumpError:
            release = info.text("OSRELEASE") or ""
            return (b"Linux", b"", release.encode(), b"", b"x86_64", b"")

    def use_vmcoreinfo(self, text: bytes | None) -> None:
        """
        Go by another VMCOREINFO, which becomes the first of the notes.

        :param text: None looks for one in memory: the kernel keeps a copy in a
            page of its own. If there is none, all is as before.
        """
        text = text or self._find_vmcoreinfo()
        if text is not None:
            nr_cpus, self.nr_cpus = self.nr_cpus, 0
            self.vmcoreinfo = None
            self._set_notes(pack_note(b"VMCOREINFO", 0, text) + self.notes)
            self.nr_cpus = self.nr_cpus or nr_cpus

    def _find_vmcoreinfo(self) -> bytes | None:
        runs = self.data_runs
        with Progress(
            "looking for VMCOREINFO", sum(run.end_pfn - run.pfn for run in runs)
        ) as progress:
            done = 0
            for run in runs:
                for pfn in range(run.pfn, run.end_pfn, _SEARCH_PAGES):
                    end_pfn = min(run.end_pfn, pfn + _SEARCH_PAGES)
                    for page in self._readable_pages(pfn, end_pfn):
                        text = _vmcoreinfo_in(page)
                        if text is not None and self._is_of(Vmcoreinfo(text)):
                            return text
                    done += end_pfn - pfn
                    progress.update(done)
        return None

    def _readable_pages(self, pfn: int, end_pfn: int) -> Iterator[bytes]:
        pfns = pfn + np.flatnonzero(self.present(pfn, end_pfn))
        try:
            yield from list(self.pages(pfns))
        except MissingMemory:
            for at in range(len(pfns)):
                with contextlib.suppress(MissingMemory):
                    yield from self.pages(pfns[at : at + 1])

    def _is_of(self, info: Vmcoreinfo) -> bool:
        """Whether it is this kernel's: its page tables lead to its name."""
        release = info.text("OSRELEASE")
        try:
            found = _read_utsname(info, Translator(info, self.read))
        except DumpError:
            return False
        return bool(release) and found[2] == str(release).encode()

    def file_data(self, size: int, offset: int) -> bytes:
        """
        What the dump's file has at *offset*: less than *size* bytes only at its end.

        :raises DumpError: if it cannot be read.
        """
        return self._pread(size, offset)

    def _pread(self, size: int, offset: int) -> bytes:
        """What the file has at *offset*: less than *size* bytes only at its end."""
        if size > _LARGE:
            # As much as is asked for is allocated, and a damaged header asks for a lot.
            size = min(size, self._file_size - offset)
        parts = []
        while size > 0:
            try:
                if self._flat is not None:
                    part = self._flat.pread(size, offset)
                else:
                    part = os.pread(self._fd, size, offset)
            except (OSError, OverflowError) as error:
                why = getattr(error, "strerror", None) or "impossible offset"
                raise DumpError(f"cannot read at offset {offset:#x}: {why}") from None
            if not part:
                break
            parts.append(part)
            size -= len(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_memory(self, paddr: int, size: int, offset: int) -> bytes:
        try:
            data = self._pread(size, offset)
        except DumpError as error:
            # Bad memory, a bad disk: of one page, nothing said of others.
            raise MissingMemory(paddr, f"unreadable: {error}") from None
        if len(data) < size:
            raise MissingMemory(paddr, _CUT)
        return data

    def _set_notes(self, notes: bytes) -> None:
        self.notes = notes
        for note in iter_notes(notes):
            if note.name == b"CORE" and note.type == NT_PRSTATUS:
                self.nr_cpus += 1
            elif (
                note.name == b"VMCOREINFO"
                and self.vmcoreinfo is None
                and len(note.desc) <= _MAX_VMCOREINFO
            ):
                self.vmcoreinfo = Vmcoreinfo(note.desc)
                self.vmcoreinfo_place = (note.offset, len(note.desc))


def _read_utsname(info: Vmcoreinfo, kernel: Translator) -> tuple[bytes, ...]:
    # OFFSET(uts_namespace.name) since 5.11 (9a56493f6942); before, a 4-byte kref
    # was in front of it.
    offset = info.offset("uts_namespace.name")
    raw = kernel.read(
        (info.symbol("init_uts_ns") or 0) + (4 if offset is None else offset),
        _UTS_FIELD * _UTS_FIELDS,
    )
    return tuple(
        raw[i : i + _UTS_FIELD].split(b"\0", 1)[0]
        for i in range(0, len(raw), _UTS_FIELD)
    )


def _vmcoreinfo_in(page: bytes) -> bytes | None:
    """The text of VMCOREINFO, if it is what a page begins with."""
    start = 0
    if page[:4] == _NOTE_NAMESZ and page[8:_NOTE_SIZE] == _NOTE_REST:
        start = _NOTE_SIZE
    if not page.startswith(b"OSRELEASE=", start):
        return None
    text = page[start:].split(b"\0", 1)[0]
    # A copy that ends in the middle of a line is torn.
    return text if text.endswith(b"\n") else None


class _Extent(NamedTuple):
    """Physical memory and where it is in the file."""

    paddr: int
    end: int
    offset: int


def _without(extent: _Extent, start: int, end: int) -> Iterator[_Extent]:
    # What of an extent is not in [start, end).
    paddr, stop, offset = extent
    for first, last in ((paddr, min(stop, start)), (max(paddr, end), stop)):
        if first < last:
            yield _Extent(first, last, offset + first - paddr)


def _crash_kernel() -> Iterator[tuple[int, int]]:
    with contextlib.suppress(OSError), open("/proc/iomem") as file:
        for line in file:
            place, _, what = line.partition(" : ")
            if what.strip() == "Crash kernel":
                first, _, last = place.strip().partition("-")
                yield int(first, 16), int(last, 16) + 1


def _pages_of(paddr: int, end: int) -> Run:
    """Page frames that hold any byte of [*paddr*, *end*)."""
    return Run(paddr // _PAGE_SIZE, -(-end // _PAGE_SIZE))


class _ElfVmcore(Vmcore):
    """An ELF64 core file, or /proc/vmcore."""

    format = "ELF core"

    def __init__(
        self, path: str, fd: int, size: int, flat: flattened.Index | None
    ) -> None:
        super().__init__(path, fd, size, flat)
        self._opener = os.getpid()
        notes: list[bytes] = []
        notes_size = 0
        loads = []
        places = []
        segments = elf.read_segments(self._pread)
        for kind, _, offset, vaddr, paddr, filesz, memsz, _ in segments.tolist():
            # /proc/kcore gives -1 for what is not in the direct map.
            if kind == elf.PT_LOAD and memsz and paddr + memsz <= _MAX_PADDR:
                loads.append(elf.Load(paddr, memsz, vaddr))
                places.append((offset, min(filesz, memsz)))
            elif kind == elf.PT_NOTE:
                part = b""
                if filesz <= _MAX_NOTES:
                    part = self._pread(filesz, offset)
                notes_size += len(part)
                # More than the file has: the same ones again and again.
                if filesz > _MAX_NOTES or notes_size > min(_MAX_NOTES, size):
                    raise DumpError("its notes are too large: damaged")
                self._lost_bytes += filesz - len(part)
                notes.append(part)
        with contextlib.suppress(OSError):
            self.live = os.path.samestat(os.fstat(fd), os.stat("/proc/kcore"))
        if self.live:
            self.format = "live kernel"
            # At the end: nobody's offsets change. The first is what crash takes for
            # the sign of a live dump, with the task that wrote it, here none: it then
            # does not look for a panic on all stacks, and give up at one in motion.
            notes += (SNAP, pack_note(b"DRGN_TOOLS", NT_LIVE, _LIVE_NOTE))
        self._set_notes(b"".join(notes))
        self.loads = tuple(loads)
        # x86-64 has no other page size.
        self.page_size = _PAGE_SIZE
        self._mappable = not self.live and flat is None
        self._in_proc = False
        with contextlib.suppress(OSError):
            self._in_proc = os.fstat(fd).st_dev == os.stat("/proc").st_dev

        ram = []
        extents = []
        for (paddr, memsz, _), (offset, filesz) in zip(loads, places):
            ram.append(_pages_of(paddr, paddr + memsz))
            in_file = max(0, min(filesz, size - offset))
            if in_file < filesz:
                # Of a page that is cut, the rest is lost, not zero.
                cut = (paddr + in_file) & -_PAGE_SIZE
                in_file = max(0, cut - paddr)
            self._lost_bytes += filesz - in_file
            if in_file:
                extents.append(_Extent(paddr, paddr + in_file, offset))
        self.ram_runs = merge_runs(ram)
        if not self.ram_runs:
            raise DumpError("an ELF core without memory segments")
        claimed = sum(run.end_pfn - run.pfn for run in self.ram_runs)
        if claimed // 8 > max(size, _MIN_BITMAP):
            memory = binary_size(claimed * _PAGE_SIZE)
            raise DumpError(f"damaged: {memory} of memory in a file of {size} bytes")
        if self.live:
            # What is set aside for the kernel after this one is not its own.
            for hole in _crash_kernel():
                extents = [part for e in extents for part in _without(e, *hole)]
            # The file's own is all that addresses can be.
            self.size = sum(extent.end - extent.paddr for extent in extents)
        # The kernel image is in two segments: take every byte once.
        self._extents: list[_Extent] = []
        taken = 0
        for paddr, end, offset in sorted(extents):
            start = max(paddr, taken)
            if start < end:
                self._extents.append(_Extent(start, end, offset + start - paddr))
                taken = end
        # One may be damaged and overlap others, and whoever makes a large dump of a
        # small one may use its pages again. If all do, a small file is a lot of memory.
        held = sum(extent.end - extent.paddr for extent in self._extents)
        if not self.live and held > _MAX_SHARED * size:
            raise DumpError("damaged: segments share their data")
        self.data_runs = merge_runs([_pages_of(e.paddr, e.end) for e in self._extents])
        self._starts = [extent.paddr for extent in self._extents]
        # Per extent, the page frames that lie in it whole.
        self._whole = [
            Run(-(-e.paddr // _PAGE_SIZE), e.end // _PAGE_SIZE) for e in self._extents
        ]

    def _pread(self, size: int, offset: int) -> bytes:
        if self.live and self._opener != os.getpid():
            # All that is read of /proc/kcore goes through one page per open file:
            # processes that share one get each other's memory.
            try:
                self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise DumpError(f"cannot open {self.path}: {error.strerror}") from None
            self._opener = os.getpid()
        return super()._pread(size, offset)

    def present(self, pfn: int, end_pfn: int) -> Bools:
        return runs_mask(self.data_runs, pfn, end_pfn)

    def pages(self, pfns: Pfns) -> Iterator[bytes]:
        size = self.page_size
        done = 0
        while done < len(pfns):
            first = int(pfns[done])
            index = bisect.bisect_right(self._whole, (first, _MAX_PADDR)) - 1
            if index < 0 or first >= self._whole[index].end_pfn:
                # At the edge of an extent: rare, put together piece by piece.
                yield self.read(first * size, size)
                done += 1
                continue
            stop = int(np.searchsorted(pfns, self._whole[index].end_pfn))
            extent = self._extents[index]
            yield from self._whole_pages(pfns[done:stop], extent.offset - extent.paddr)
            done = stop

    def _whole_pages(self, pfns: Pfns, shift: int) -> Iterator[bytes]:
        """
        Pages of one extent, each whole.

        :param shift: from physical addresses to offsets in the file.
        """
        size = self.page_size
        first, last = int(pfns[0]), int(pfns[-1])
        # To read /proc/vmcore, the kernel maps and unmaps each page, which takes
        # several times as long as one mapping of all.
        window = None
        if self._in_proc:
            window = self._map(first * size + shift, (last + 1 - first) * size)
        if window is not None:
            # As one opaque value each, numpy makes bytes objects of pages:
            # cheaper than a slice and a copy, and nothing else is touched.
            yield from map(window.view(f"V{size}").item, (pfns - first).tolist())
            return
        # Run by run: of a file in the page cache, that takes a third less than
        # the page faults of a mapping do.
        starts = [0, *(np.flatnonzero(np.diff(pfns) != 1) + 1).tolist()]
        for start, stop in zip(starts, [*starts[1:], len(pfns)]):
            for at in range(start, stop, _READ_PAGES):
                length = min(stop - at, _READ_PAGES) * size
                paddr = int(pfns[at]) * size
                data = self._read_memory(paddr, length, paddr + shift)
                for page in range(0, length, size):
                    yield data[page : page + size]

    def view(self, paddr: int, size: int) -> Bytes:
        index = bisect.bisect_right(self._starts, paddr) - 1
        if index >= 0 and paddr + size <= self._extents[index].end:
            extent = self._extents[index]
            window = self._map(extent.offset + paddr - extent.paddr, size)
            if window is not None:
                return window
        return super().view(paddr, size)

    def read(self, paddr: int, size: int) -> bytes:
        parts = []
        end = paddr + size
        page_mask = ~(self.page_size - 1)
        while paddr < end:
            index = bisect.bisect_right(self._starts, paddr) - 1
            if index >= 0 and paddr < self._extents[index].end:
                extent = self._extents[index]
                length = min(end, extent.end) - paddr
                offset = extent.offset + paddr - extent.paddr
                parts.append(self._read_memory(paddr, length, offset))
            else:
                # Bytes beside memory, in a page that is partly memory, are
                # zero: as every reader of ELF cores has it.
                if not self.present(
                    paddr // self.page_size, paddr // self.page_size + 1
                )[0]:
                    raise MissingMemory(paddr)
                stop = min(end, (paddr & page_mask) + self.page_size)
                if index + 1 < len(self._starts):
                    stop = min(stop, self._starts[index + 1])
                length = stop - paddr
                parts.append(bytes(length))
            paddr += length
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _map(self, offset: int, size: int) -> Bytes | None:
        """A piece of the file, mapped, if it can be."""
        if not self._mappable:
            return None
        start = offset & -mmap.ALLOCATIONGRANULARITY
        try:
            window = mmap.mmap(
                self._fd,
                offset + size - start,
                flags=mmap.MAP_PRIVATE,
                prot=mmap.PROT_READ,
                offset=start,
            )
        except (OSError, ValueError):
            # /proc/vmcore before 3.10, FUSE files and the like.
            self._mappable = False
            return None
        return np.frombuffer(window, np.uint8, size, offset - start)


class _KdumpVmcore(Vmcore):
    """A kdump-compressed file."""

    format = "kdump-compressed"

    def __init__(
        self, path: str, fd: int, size: int, flat: flattened.Index | None
    ) -> None:
        super().__init__(path, fd, size, flat)
        block0 = self._pread(4096, 0)
        # QEMU fills in nothing else of utsname.
        machine = kdump.machine(block0)
        if machine not in (b"x86_64", b""):
            name = machine.decode(errors="replace")
            raise DumpError(f"a dump of {name}; only x86-64 dumps are known")
        block = kdump.block_size(block0)
        header = kdump.unpack_headers(block0, self._pread(4096, block), size)
        self.header = header
        self.page_size = header.block_size
        if header.size_note > _MAX_NOTES or header.size_vmcoreinfo > _MAX_VMCOREINFO:
            raise DumpError("the kdump header is damaged: its notes are too large")
        self._set_notes(self._pread(header.size_note, header.offset_note))
        if self.vmcoreinfo is None and header.size_vmcoreinfo:
            # Version 3 has the text without the note; whoever writes the notes
            # on wants it among them.
            text = self._pread(header.size_vmcoreinfo, header.offset_vmcoreinfo)
            self.nr_cpus = 0
            self._set_notes(pack_note(b"VMCOREINFO", 0, text) + self.notes)
        if not self.nr_cpus:
            self.nr_cpus = header.nr_cpus
        size_in_use = -(-header.max_mapnr // 8)
        self.ram_runs = bitmap_runs(
            self._pread(size_in_use, header.bitmap_offset),
            header.max_mapnr,
            _MAX_RUNS,
        )
        self.data_runs = self.ram_runs
        self._bitmap = np.frombuffer(
            self._pread(size_in_use, header.bitmap_offset + header.bitmap_size),
            np.uint8,
        )
        if header.split:
            self._set_part(header)
        # Descriptors before each piece of the bitmap.
        padded = np.zeros(-(-len(self._bitmap) // _RANK_STEP) * _RANK_STEP, np.uint8)
        padded[: len(self._bitmap)] = BITS_SET[self._bitmap]
        counts = padded.reshape(-1, _RANK_STEP).sum(axis=1, dtype=np.int64)
        self._rank = np.concatenate(([0], np.cumsum(counts)))
        self.dumped_pages = int(self._rank[-1])
        # Whatever is said to be behind that is damage: no page takes more than this.
        each = self.page_size + kdump.DESCRIPTOR.itemsize
        self._most = header.descriptors_offset + (header.max_mapnr + 1) * each
        self._decompress: dict[int, codecs.Decompress] = {}
        self._cache: dict[int, bytes] = {}

    def _set_part(self, header: kdump.Header) -> None:
        """Bitmaps are of the whole dump; descriptors and data of the part only."""
        pfn, end_pfn = header.start_pfn, header.end_pfn
        if not pfn <= end_pfn <= header.max_mapnr:
            raise DumpError("the kdump header is damaged: no such part of a dump")
        self.part = Run(pfn, end_pfn)
        self.data_runs = clip_runs(self.ram_runs, self.part)
        bitmap = np.zeros_like(self._bitmap)
        first, end = pfn // 8, -(-end_pfn // 8)
        bitmap[first:end] = self._bitmap[first:end]
        if first < len(bitmap):
            bitmap[first] &= 0xFF << pfn % 8 & 0xFF
        if end_pfn % 8 and end <= len(bitmap):
            bitmap[end - 1] &= (1 << end_pfn % 8) - 1
        self._bitmap = bitmap

    @property
    def lost_bytes(self) -> int:
        return self._lost[0]

    @property
    def lost_pages(self) -> int:
        return self._lost[1]

    @functools.cached_property
    def _lost(self) -> tuple[int, int]:
        # Bytes and pages. All descriptors are read: 6 MiB for each GiB of pages.
        assert self.header is not None
        item = kdump.DESCRIPTOR.itemsize
        lost = count = 0
        for first in range(0, self.dumped_pages, _DESCRIPTORS):
            size = item * min(self.dumped_pages - first, _DESCRIPTORS)
            try:
                raw = self._pread(size, self.header.descriptors_offset + item * first)
            except DumpError:
                # A bad disk: nothing is known of these.
                continue
            whole = len(raw) // item
            found = np.frombuffer(raw, kdump.DESCRIPTOR, whole)
            beyond = found[self._is_lost(found)]
            # Pages of zeros share one.
            _, at = np.unique(beyond["offset"], return_index=True)
            lost += int(beyond["size"][at].sum()) + size - len(raw)
            count += len(beyond) + size // item - whole
        return lost, count

    def _is_lost(self, descriptors: Any) -> Any:
        """Whether data is where a file that is not cut short would have it."""
        sizes = descriptors["size"].astype(np.int64)
        offsets = descriptors["offset"]
        # Offsets may be any 64 bits.
        far = (offsets > self.size - sizes) & (offsets <= self._most - sizes)
        return far & (sizes > 0) & (sizes <= self.page_size)

    def present(self, pfn: int, end_pfn: int) -> Bools:
        has = np.zeros(end_pfn - pfn, np.bool_)
        end = min(end_pfn, len(self._bitmap) * 8)
        if pfn < end:
            has[: end - pfn] = bitmap_slice(self._bitmap, pfn, end)
            assert self.header is not None
            may_lack = self.header.status & kdump.STATUS_INCOMPLETE or self.lost_pages
            if may_lack and has.any():
                found = pfn + np.flatnonzero(has)
                # What cannot be read now is no different when it is wanted.
                with contextlib.suppress(MissingMemory):
                    descriptors = self._descriptors(found)
                    has[found - pfn] = (descriptors["offset"] != 0) & ~self._is_lost(
                        descriptors
                    )
        return has

    def pages(self, pfns: Pfns) -> Iterator[bytes]:
        return map(self._page_data, pfns.tolist(), self._descriptors(pfns))

    def read(self, paddr: int, size: int) -> bytes:
        parts = []
        end = paddr + size
        while paddr < end:
            pfn, skip = divmod(paddr, self.page_size)
            length = min(end - paddr, self.page_size - skip)
            page = self._cache.get(pfn)
            if page is None:
                pfns = np.array([pfn], np.int64)
                page = self._page_data(pfn, self._descriptors(pfns)[0])
                if len(self._cache) >= _CACHED_PAGES:
                    self._cache.clear()
                self._cache[pfn] = page
            parts.append(page[skip : skip + length])
            paddr += length
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def cut_off(self, paddr: int) -> bool:
        pfn = paddr // self.page_size
        if pfn >= len(self._bitmap) * 8 or not bitmap_slice(self._bitmap, pfn, pfn + 1):
            return False
        try:
            (descriptor,) = self._descriptors(np.array([pfn], np.int64))
        except MissingMemory:
            # The descriptor itself.
            return True
        return bool(self._is_lost(descriptor))

    def _descriptors(self, pfns: Pfns) -> Any:
        if not len(pfns):
            return np.empty(0, kdump.DESCRIPTOR)
        assert self.header is not None
        if not 0 <= pfns[0] <= pfns[-1] < self.header.max_mapnr:
            raise MissingMemory(int(pfns[-1]) * self.page_size)
        first, last = int(pfns[0]), int(pfns[-1])
        # Number the dumped pages from the start of first's piece.
        piece = first // (8 * _RANK_STEP)
        start = piece * 8 * _RANK_STEP
        dumped = bitmap_slice(self._bitmap, start, last + 1)
        missing = np.flatnonzero(~dumped[pfns - start])
        if len(missing):
            pfn = int(pfns[missing[0]])
            elsewhere = self.part and not self.part.pfn <= pfn < self.part.end_pfn
            why = "in another part of this split dump" if elsewhere else "excluded"
            raise MissingMemory(pfn * self.page_size, why)
        ranks = np.cumsum(dumped)[pfns - start] - 1 + int(self._rank[piece])
        base, count = int(ranks[0]), int(ranks[-1] - ranks[0]) + 1
        item = kdump.DESCRIPTOR.itemsize
        paddr = first * self.page_size
        offset = self.header.descriptors_offset + item * base
        raw = self._read_memory(paddr, item * count, offset)
        descriptors = np.frombuffer(raw, kdump.DESCRIPTOR)
        return descriptors[ranks - base]

    def _page_data(self, pfn: int, descriptor: Any) -> bytes:
        offset, size = int(descriptor["offset"]), int(descriptor["size"])
        flags = int(descriptor["flags"])
        paddr = pfn * self.page_size
        if not offset:
            raise MissingMemory(paddr, "missing from this incomplete dump")
        if not 0 < size <= self.page_size or offset < 0 or offset + size > self.size:
            if self._is_lost(descriptor):
                raise MissingMemory(paddr, _CUT)
            raise MissingMemory(paddr, "unreadable: its descriptor is damaged")
        data = self._read_memory(paddr, size, offset)
        if not flags and size == self.page_size:
            return data
        decompress = self._decompress.get(flags)
        if decompress is None:
            codec = codecs.BY_FLAG.get(flags)
            if codec is None:
                raise MissingMemory(paddr, "unreadable: its descriptor is damaged")
            decompress = self._decompress[flags] = codec.decompressor()
        try:
            page = decompress(data, self.page_size)
        except Exception:  # Each library has an exception of its own.
            page = b""
        if len(page) != self.page_size:
            raise MissingMemory(paddr, "unreadable: its data is damaged")
        return page


#: Bits set in each byte value.
BITS_SET = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(
    axis=1, dtype=np.uint8
)
# Pieces of a machine's memory: Linux takes 3200 of firmware. In a bitmap they take two
# bits, here hundreds of bytes, and to classify each a fraction of a millisecond.
_MAX_RUNS = 1 << 13
# Bytes of bitmap per entry of the rank table.
_RANK_STEP = 512


def bitmap_slice(bitmap: Bytes, pfn: int, end_pfn: int) -> Bools:
    """Bits *pfn* to *end_pfn* of a bitmap (lowest bit first)."""
    first = pfn // 8
    bits = np.unpackbits(bitmap[first : -(-end_pfn // 8)], bitorder="little")
    return bits[pfn - 8 * first : end_pfn - 8 * first].astype(np.bool_)


def bitmap_runs(
    bitmap: bytes | Bytes, max_mapnr: int, most: int | None = None
) -> list[Run]:
    """
    Runs of set bits.

    :raises DumpError: if there are more than *most*.
    """
    runs: list[Run] = []
    step = 1 << 13
    for start in range(0, len(bitmap), step):
        piece = bytes(bitmap[start : start + step])
        if not any(piece):
            continue
        bits = np.unpackbits(np.frombuffer(piece, np.uint8), bitorder="little")
        edges = np.flatnonzero(np.diff(bits, prepend=0, append=0)) + 8 * start
        runs += [
            Run(first, min(end, max_mapnr))
            for first, end in edges.reshape(-1, 2).tolist()
        ]
        if most is not None and len(runs) > most:
            raise DumpError("damaged: its memory is in too many pieces")
    return merge_runs(runs)


def runs_mask(runs: list[Run], pfn: int, end_pfn: int) -> Bools:
    """Which page frames of a range are in *runs*."""
    mask = np.zeros(end_pfn - pfn, np.bool_)
    index = max(0, bisect.bisect_right(runs, (pfn, end_pfn)) - 1)
    for run in runs[index:]:
        if run.pfn >= end_pfn:
            break
        mask[max(0, run.pfn - pfn) : max(0, run.end_pfn - pfn)] = True
    return mask


def open_vmcore(
    path: str, vmcoreinfo: bytes | None = None, *, part: bool = False
) -> Vmcore:
    """
    Open a dump of any known format, flattened or not.

    :param vmcoreinfo: text to go by instead of the dump's own.
    :param part: it may be one part of a split dump: see :attr:`Vmcore.part`.
    :raises DumpError: if the file cannot be read or is no dump.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DumpError(f"cannot open {path}: {error.strerror}") from None
    try:
        try:
            magic = os.pread(fd, 16, 0)
            size = os.lseek(fd, 0, os.SEEK_END)
        except OSError as error:
            raise DumpError(f"cannot read: {error.strerror}") from None
        flat = None
        if magic.startswith(flattened.SIGNATURE):
            flat = _flat_index(fd)
            magic, size = flat.pread(16, 0), flat.size
        for known, opener in _FORMATS.items():
            if magic.startswith(known):
                vmcore = opener(path, fd, size, flat)
                if vmcore.part and not part:
                    raise DumpError(
                        "one part of a split dump; reassemble it first "
                        "(drgn-makedumpfile --reassemble)"
                    )
                if vmcoreinfo is not None or vmcore.vmcoreinfo is None:
                    vmcore.use_vmcoreinfo(vmcoreinfo)
                return vmcore
        if not magic:
            raise DumpError("an empty file")
        raise DumpError("not a dump: neither an ELF core nor kdump-compressed")
    except BaseException as error:
        os.close(fd)
        if isinstance(error, DumpError):
            raise DumpError(f"{path}: {error}") from None
        raise


def _flat_index(fd: int) -> flattened.Index:
    try:
        return flattened.Index(fd)
    except flattened.CutShort as error:
        raise DumpError(f"{error} (drgn-makedumpfile -R keeps what it has)") from None
    except OSError as error:
        raise DumpError(f"cannot read: {error.strerror}") from None


_FORMATS: dict[bytes, Callable[[str, int, int, flattened.Index | None], Vmcore]] = {
    elf.MAGIC: _ElfVmcore,
    kdump.SIGNATURE: _KdumpVmcore,
}
