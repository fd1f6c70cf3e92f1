# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Verifying a dump
----------------

Reads a dump in full and says what is missing, damaged or inconsistent:
whatever a writer fills in twice must agree, what it leaves empty must be
empty, each page must be there and decompress, and no two pages may share
bytes. With the table of :mod:`drgn_tools.checksums` every changed bit is
found; without it, page data of codecs that have no checksum is only known to
decompress.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from drgn_tools import checksums, codecs
from drgn_tools.errors import DumpError
from drgn_tools.formats import elf, flattened, kdump
from drgn_tools.formats.notes import NT_PRSTATUS, NT_TASKSTRUCT
from drgn_tools.progress import Progress
from drgn_tools.vmcore import BITS_SET, Vmcore, open_vmcore
from drgn_tools.vmcoreinfo import Vmcoreinfo, if_sound
from drgn_tools.workers import Counters, run

#: Findings of a kind that a report holds; the rest is only counted.
LISTED = 20
# Of what processes find, this many of a kind are kept, the first of them shown.
_KEPT = 256
_PAGE_SIZE = 4096
# Bytes read at once.
_PIECE = 1 << 20
# Bytes of bitmap that a worker takes at a time: up to 32 MiB of memory.
_ITEM = 1024
# Descriptors looked at together: 1.5 MiB.
_CHUNK = 1 << 16
_MAX_NOTES = 1 << 30

# What can be wrong with a page: kind, and what to say of it.
_FAULTS = (
    ("missing", "has no data, and the dump is incomplete"),
    ("missing", "has no data, though the dump is not marked incomplete"),
    ("missing", "has its data beyond the end of the file, at {0:#x}"),
    ("descriptor", "has an impossible size, {0}"),
    ("descriptor", "has its data in front of all page data, at {0:#x}"),
    ("descriptor", "has its data behind all page data, at {0:#x}"),
    ("descriptor", "has unknown flags, {0:#x}"),
    ("descriptor", "is compressed otherwise than the header says, flags {0:#x}"),
    ("descriptor", "is not compressed, but has {0} bytes"),
    ("descriptor", "is compressed to {0} bytes, no fewer than it has"),
    ("descriptor", "has page_flags {0:#x}, which no writer sets"),
    ("page", "does not decompress to a page, from offset {0:#x}"),
    ("page", "cannot be read, at offset {0:#x}"),
    ("zero page", "is zero and has data of its own, unlike the dump level says"),
    ("zero page", "is zero and not compressed: shared, unlike the dump level says"),
)
(
    _MISSING,
    _UNMARKED,
    _BEYOND,
    _SIZE,
    _BEFORE,
    _BEHIND,
    _FLAGS,
    _CODEC,
    _RAW,
    _LARGE,
    _PAGE_FLAGS,
    _DATA,
    _UNREAD,
    _ZERO,
    _ZERO_RAW,
) = range(len(_FAULTS))
# What makes a page one that is lost to readers; the rest is inconsistent.
_MISSES = (_MISSING, _UNMARKED, _BEYOND)
_DAMAGES = (_SIZE, _BEFORE, _BEHIND, _FLAGS, _CODEC, _RAW, _LARGE, _DATA, _UNREAD)


class Finding(NamedTuple):
    """Something that is wrong."""

    kind: str
    text: str


class Report(NamedTuple):
    """What :func:`verify` found."""

    path: str
    format: str
    pages: int
    """That the dump should hold."""
    zero_pages: int
    """Of these, how many share the page of zeros."""
    missing: int
    damaged: int
    """Pages that are there and cannot be read."""
    findings: list[Finding]
    """At most :data:`LISTED` of a kind."""
    counts: dict[str, int]
    """All findings, by kind."""
    remarks: list[str]
    """What is no damage, but good to know."""

    @property
    def sound(self) -> bool:
        return not self.counts

    def lines(self) -> Iterator[str]:
        """The report for people; the last line is the verdict."""
        yield f"format:       {self.format}"
        yield f"pages:        {self.pages}"
        yield f"zero, shared: {self.zero_pages}"
        yield f"missing:      {self.missing}"
        yield f"damaged:      {self.damaged}"
        for remark in self.remarks:
            yield f"note:         {remark}"
        for kind, count in self.counts.items():
            listed = [finding for finding in self.findings if finding.kind == kind]
            for finding in listed:
                yield f"{kind}: {finding.text}"
            if count > len(listed):
                yield f"{kind}: and {count - len(listed)} more"
        if self.sound:
            yield f"{self.path}: sound"
        else:
            wrong = (f"{kind} ({count})" for kind, count in self.counts.items())
            yield f"{self.path}: NOT sound: {', '.join(wrong)}"


def verify(path: str, jobs: int) -> Report:
    """
    Read a dump in full and say what is wrong with it.

    :param path: an ELF core or a kdump-compressed file, also one part of a
        split one.
    :param jobs: how many processes work on it.
    :raises DumpError: if it is no dump, or damaged beyond reading any of it.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DumpError(f"cannot open {path}: {error.strerror}") from None
    try:
        try:
            file = _File(path, fd, os.lseek(fd, 0, os.SEEK_END))
        except OSError as error:
            raise DumpError(f"{path}: cannot read: {error.strerror}") from None
        magic = file.pread(len(flattened.SIGNATURE), 0)
        if magic == flattened.SIGNATURE:
            raise DumpError(
                f"{path}: a flattened dump; make it whole first (drgn-makedumpfile -R)"
            )
        if magic.startswith(kdump.SIGNATURE):
            try:
                return _verify_kdump(file, jobs)
            except DumpError as error:
                raise DumpError(f"{path}: {error}") from None
        with open_vmcore(path) as vmcore:
            return _verify_elf(file, vmcore, jobs)
    finally:
        os.close(fd)


class _File(NamedTuple):
    path: str
    fd: int
    size: int

    def pread(self, size: int, offset: int) -> bytes:
        # As much as is asked for is allocated.
        size = min(size, self.size - offset)
        parts = []
        while size > 0:
            try:
                part = os.pread(self.fd, size, offset)
            except (OSError, OverflowError) as error:
                why = getattr(error, "strerror", None) or "impossible offset"
                raise DumpError(f"cannot read at offset {offset:#x}: {why}") from None
            if not part:
                break
            parts.append(part)
            size -= len(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


class _Found:
    """Findings so far."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.counts: dict[str, int] = {}
        self.remarks: list[str] = []

    def add(self, kind: str, text: str, count: int = 1) -> None:
        before = self.counts.get(kind, 0)
        self.counts[kind] = before + count
        if before < LISTED:
            self.findings.append(Finding(kind, text))

    def more(self, kind: str, count: int) -> None:
        """Count what is not listed."""
        if count:
            self.counts[kind] = self.counts.get(kind, 0) + count

    def expect(self, kind: str, what: str, value: object, expected: object) -> None:
        if value != expected:
            self.add(kind, f"{what} is {value}, not {expected}")


_WORD = 1 << 64
_SIGN = 1 << 63


class _Faults:
    """Faults that workers find: how many of each, and some of them."""

    # Of one kept fault: page frame or number, and what to say.
    _WORDS = 2

    def __init__(self, kinds: int) -> None:
        self._kinds = kinds
        self._counters = Counters(kinds * (1 + _KEPT * self._WORDS))

    def add(self, kind: int, number: int, value: int) -> None:
        self.add_all(kind, [number], [value])

    def add_all(self, kind: int, numbers: Sequence[int], values: Sequence[int]) -> None:
        """Those at once: of an incomplete dump there may be millions."""
        before = self.add_count(kind, len(numbers))
        for index in range(min(len(numbers), _KEPT - before)):
            at = self._kinds + (kind * _KEPT + before + index) * self._WORDS
            self._counters[at] = numbers[index]
            # Any 64 bits, in a signed word.
            self._counters[at + 1] = (values[index] + _SIGN) % _WORD - _SIGN

    def add_count(self, kind: int, amount: int) -> int:
        """Count only; returns how many there were."""
        return self._counters.add(kind, amount)

    def count(self, kind: int) -> int:
        return self._counters[kind]

    def some(self, kind: int) -> list[tuple[int, int]]:
        """Those with the lowest numbers, of what was kept."""
        at = self._kinds + kind * _KEPT * self._WORDS
        kept = min(_KEPT, self.count(kind))
        places = range(at, at + kept * self._WORDS, self._WORDS)
        words = self._counters
        return sorted((words[place], words[place + 1] % _WORD) for place in places)

    def close(self) -> None:
        self._counters.close()


def _trailer(file: _File, found: _Found) -> checksums.Trailer | None:
    try:
        return checksums.read_trailer(file.pread, file.size)
    except DumpError as error:
        found.add("checksum", str(error))
        return None


def _check_sums(
    file: _File, trailer: checksums.Trailer, jobs: int, found: _Found
) -> None:
    """Compare the file with its checksums."""
    rows = trailer.rows
    sizes = rows["size"].astype(np.int64)
    # Some rows at a time: as many bytes as are read at once.
    groups = np.concatenate(([0], np.cumsum(sizes)[:-1])) // _PIECE
    starts = np.flatnonzero(np.diff(groups, prepend=-1)).tolist()
    ends = [*starts[1:], len(rows)]

    with contextlib.closing(_Faults(1)) as faults:

        def work(number: int) -> None:
            for index in range(starts[number], ends[number]):
                offset, size, crc = rows[index].tolist()
                value = 0
                try:
                    for at in range(offset, offset + size, _PIECE):
                        length = min(_PIECE, offset + size - at)
                        value = checksums.crc32(file.pread(length, at), value)
                except DumpError:
                    value = ~crc
                if value != crc:
                    faults.add(0, offset, size)

        with Progress("comparing checksums", len(starts)) as progress:
            failed = run(
                len(starts), work, _workers(jobs, len(starts)), progress.update
            )
        for number, why in failed.items():
            start, end = starts[number], ends[number] - 1
            whole = int(rows["offset"][end]) + int(sizes[end])
            found.add("checksum", f"{_range(int(rows['offset'][start]), whole)}: {why}")
        for offset, size in faults.some(0)[:LISTED]:
            found.add("checksum", f"{_range(offset, offset + size)} has changed")
        found.more("checksum", faults.count(0) - min(LISTED, faults.count(0)))


def _workers(jobs: int, count: int) -> int:
    return 0 if jobs == 1 else min(jobs, count)


def _range(start: int, end: int) -> str:
    return f"offsets {start:#x} to {end - 1:#x}"


# --- kdump-compressed -------------------------------------------------------------

# What every writer leaves zero: name, offset and size. In the main header...
_MAIN_ZERO = (
    ("padding", 402, 6),
    ("timestamp's microseconds", 416, 8),
    ("total_ram_blocks", 444, 4),
    ("device_blocks", 448, 4),
    ("written_blocks", 452, 4),
    ("current_cpu", 456, 4),
)
_MAIN_SIZE = 464
# ... and, if the dump is not split, in the sub header, from version 2 and 6 on.
_SPLIT_ZERO = ((2, "start_pfn", 16), (2, "end_pfn", 24))
_SPLIT_ZERO_64 = ((6, "start_pfn_64", 80), (6, "end_pfn_64", 88))
_UTS_FIELDS = ("sysname", "nodename", "release", "version", "machine", "domainname")
_CODEC_FLAGS = sum(codecs.BY_FLAG)
# DUMP_DH_EXCLUDED_VMEMMAP: makedumpfile -e.
_EXCLUDED_VMEMMAP = 0x10
_KNOWN_STATUS = _CODEC_FLAGS | kdump.STATUS_INCOMPLETE | _EXCLUDED_VMEMMAP
_SMALL = 0xFFFFFFFF


class _Kdump(NamedTuple):
    """A kdump-compressed file as far as every worker needs it."""

    file: _File
    header: kdump.Header
    bitmap: npt.NDArray[np.uint8]
    """Of the pages that this file has descriptors of."""
    pages: int
    room: int
    """End of what makedumpfile keeps for descriptors, of all parts if it is split."""
    data: int
    """Where page data starts, behind the shared page of zeros."""
    data_end: int
    zero_at: int
    """Where the shared page of zeros is; 0 if there is none."""


def _verify_kdump(file: _File, jobs: int) -> Report:
    found = _Found()
    block0 = file.pread(4096, 0)
    block_size = kdump.block_size(block0)
    block1 = file.pread(4096, block_size)
    header = kdump.unpack_headers(block0, block1, file.size)
    trailer = _trailer(file, found)
    if header.size_note > _MAX_NOTES:
        raise DumpError("the kdump header is damaged: its notes are too large")
    eraseinfo = _check_headers(file, header, block0, block1, found)
    notes = file.pread(header.size_note, header.offset_note)
    _check_kdump_notes(file, header, notes, found)
    dump = _check_bitmaps(file, header, eraseinfo, trailer, found)
    with contextlib.closing(_Faults(len(_FAULTS) + 1)) as faults:
        _check_pages(dump, jobs, faults, found)
        missing = sum(faults.count(fault) for fault in _MISSES)
        damaged = sum(faults.count(fault) for fault in _DAMAGES)
        zero_pages = faults.count(len(_FAULTS))
    _check_extents(dump, trailer, found)
    if header.status & kdump.STATUS_INCOMPLETE:
        found.add("incomplete", "the header says that pages are missing")
    if trailer is not None:
        _check_sums(file, trailer, jobs, found)
    _say_what_is_proven(file, header, trailer, found)
    kind = f"kdump-compressed, version {header.version}"
    if header.split:
        kind += f", part from page frame {header.start_pfn:#x} on"
    return Report(
        file.path,
        kind,
        dump.pages,
        zero_pages,
        missing,
        damaged,
        found.findings,
        found.counts,
        found.remarks,
    )


def _say_what_is_proven(
    file: _File,
    header: kdump.Header | None,
    trailer: checksums.Trailer | None,
    found: _Found,
) -> None:
    if trailer is not None:
        found.remarks.append(f"{len(trailer.rows)} checksums of its content compared")
    elif header is not None and header.status & codecs.CODECS["zlib"].flag:
        found.remarks.append(
            "without checksums: page data is proven by zlib's own, but a changed "
            "bit in a page that is not compressed may go unseen"
        )
    else:
        found.remarks.append(
            "without checksums: page data is read in full, but a changed bit in it "
            "may go unseen"
        )


def _check_headers(
    file: _File, header: kdump.Header, block0: bytes, block1: bytes, found: _Found
) -> int:
    """What headers say against each other; returns where eraseinfo is, or 0."""
    version = header.version
    if not 1 <= version <= kdump.VERSION:
        found.add("header", f"version {version} is not known")
    found.expect("header", "block_size", header.block_size, _PAGE_SIZE)
    for name, offset, size in _MAIN_ZERO:
        if any(block0[offset : offset + size]):
            found.add("header", f"{name} is not zero, at offset {offset:#x}")
    _check_zeros(file, _MAIN_SIZE, header.block_size, "header", found)
    names = block0[12 : 12 + 390]
    for index, name in enumerate(_UTS_FIELDS):
        field = names[65 * index : 65 * index + 65]
        text, _, rest = field.partition(b"\0")
        if any(rest) or not _is_text(text):
            found.add("header", f"{name} is no name: {text!r}")
    _check_names(file.path, header, found)
    for index, expected in ((0, b"Linux"), (4, b"x86_64")):
        # QEMU knows but the machine.
        if header.utsname[index] not in (expected, b""):
            name, value = _UTS_FIELDS[index], header.utsname[index]
            found.add("header", f"{name} is {value!r}, not {expected!r}")

    status = header.status
    if status & ~_KNOWN_STATUS:
        found.add("header", f"unknown status bits: {status & ~_KNOWN_STATUS:#x}")
    if bin(status & _CODEC_FLAGS).count("1") > 1:
        found.add("header", f"more than one codec in status {status:#x}")
    per_block = 8 * header.block_size
    blocks = 2 * -(-header.max_mapnr // per_block)
    found.expect("header", "bitmap_blocks", header.bitmap_blocks, blocks)
    (small,) = struct.unpack_from("<I", block0, 440)
    found.expect("header", "max_mapnr", small, min(header.max_mapnr, _SMALL))
    if version >= 1 and not 0 <= header.dump_level <= 31:
        found.add("header", f"dump_level {header.dump_level} is not one")

    ends = [header.offset_note + header.size_note] if header.size_note else []
    if header.size_vmcoreinfo:
        ends.append(header.offset_vmcoreinfo + header.size_vmcoreinfo)
    used = max(ends, default=header.block_size + 1)
    blocks = -(-used // header.block_size) - 1
    found.expect("header", "sub_hdr_size", header.sub_hdr_size, blocks)
    if ends:
        end = (1 + header.sub_hdr_size) * header.block_size
        _check_zeros(file, used, end, "header", found)
    for offset, size, name in (
        (header.offset_note, header.size_note, "note"),
        (header.offset_vmcoreinfo, header.size_vmcoreinfo, "vmcoreinfo"),
    ):
        if bool(offset) != bool(size):
            found.add("header", f"offset_{name} is {offset:#x}, its size {size}")
    if version == kdump.VERSION and header.size_note:
        found.expect(
            "header", "offset_note", header.offset_note, header.block_size + 104
        )
    # A newer file whose version has changed.
    (newer,) = struct.unpack_from("<Q", block1, 96)
    if (
        version < kdump.VERSION
        and newer == header.max_mapnr
        and header.offset_note in (0, header.block_size + 104)
    ):
        found.add("header", f"version is {version}, the sub header that of 6")

    if header.split not in (0, 1):
        found.add("header", f"split is {header.split}, not 0 or 1")
    if not header.split:
        for since, name, offset in (*_SPLIT_ZERO, *_SPLIT_ZERO_64):
            if version >= since and any(block1[offset : offset + 8]):
                found.add("header", f"{name} is not zero, but nothing is split")
    elif not header.start_pfn <= header.end_pfn <= header.max_mapnr:
        found.add(
            "header",
            f"a part from {header.start_pfn:#x} to {header.end_pfn:#x} of "
            f"{header.max_mapnr:#x} page frames",
        )
    elif version >= 6:
        for name, offset, whole in (
            ("start_pfn", 16, header.start_pfn),
            ("end_pfn", 24, header.end_pfn),
        ):
            (small,) = struct.unpack_from("<Q", block1, offset)
            found.expect("header", name, small, min(whole, _SMALL))
    return _check_eraseinfo(file, header, block1, found)


def _is_text(text: bytes) -> bool:
    return text.isascii() and text.decode("ascii").isprintable()


def _check_zeros(file: _File, start: int, end: int, kind: str, found: _Found) -> None:
    """A range that is empty in all dumps."""
    end = min(end, file.size)
    for at in range(start, end, _PIECE):
        piece = np.frombuffer(file.pread(min(_PIECE, end - at), at), np.uint8)
        changed = np.flatnonzero(piece)
        if len(changed):
            offset = at + int(changed[0])
            found.add(kind, f"offset {offset:#x} is not zero, where nothing is kept")
            return


def _check_eraseinfo(
    file: _File, header: kdump.Header, block1: bytes, found: _Found
) -> int:
    offset, size = struct.unpack_from("<qQ", block1, 64)
    if header.version < 5 or not (offset or size):
        return 0
    if not (header.descriptors_offset <= offset <= file.size) or (
        not 0 < size <= file.size - offset
    ):
        found.add("header", f"eraseinfo of {size} bytes at {offset:#x}")
        return 0
    return int(offset)


def _check_names(path: str, header: kdump.Header, found: _Found) -> None:
    """The header's names against the kernel's own, in memory."""
    with contextlib.suppress(DumpError), open_vmcore(path) as vmcore:
        info = vmcore.vmcoreinfo
        if info is None or info.text("SYMBOL(init_uts_ns)") is None:
            return
        names = vmcore.utsname()
        # Without memory it gives the release only.
        if not names[3]:
            return
        for name, ours, its in zip(_UTS_FIELDS, header.utsname, names):
            # QEMU fills in nothing but the machine.
            if ours != its[:64] and any(header.utsname[:4]):
                found.add("header", f"{name} is {ours!r}, in memory {its!r}")


def _check_kdump_notes(
    file: _File, header: kdump.Header, notes: bytes, found: _Found
) -> None:
    cpus, text, place = _check_notes(notes, found)
    if cpus:
        found.expect("header", "nr_cpus", header.nr_cpus, cpus)
    elif not 0 <= header.nr_cpus <= 1 << 16:
        found.add("header", f"nr_cpus is {header.nr_cpus}")
    size, offset = header.size_vmcoreinfo, header.offset_vmcoreinfo
    if text is not None:
        found.expect("header", "offset_vmcoreinfo", offset, header.offset_note + place)
        found.expect("header", "size_vmcoreinfo", size, len(text))
    elif size and size <= 1 << 20:
        text = file.pread(size, offset)
        if notes:
            found.add("notes", "no VMCOREINFO, but the header says where it is")
        _check_vmcoreinfo(text, found)
    if text is None:
        return
    info = Vmcoreinfo(text)
    # makedumpfile has both from here; QEMU's dumps are of a live kernel.
    crash_time = if_sound(lambda: info.decimal("CRASHTIME"))
    if crash_time is not None or header.timestamp:
        found.expect("header", "timestamp", header.timestamp, crash_time or 0)
    phys_base = if_sound(lambda: info.number("phys_base"))
    if phys_base is not None:
        found.expect("header", "phys_base", header.phys_base, phys_base)
    release = info.text("OSRELEASE")
    if release and header.utsname[2]:
        name = header.utsname[2].decode("ascii", "replace")
        found.expect("header", "release", name, release)


_NHDR = struct.Struct("<III")
_PRSTATUS_SIZE = 336
# What /proc/kcore has beside it: NT_PRPSINFO.
_KCORE_NOTES = (3, NT_TASKSTRUCT)


def _check_notes(notes: bytes, found: _Found) -> tuple[int, bytes | None, int]:
    """How many CPUs have registers there; VMCOREINFO's text and its offset."""
    cpus = 0
    text = None
    place = 0
    at = 0
    while at < len(notes):
        if at + _NHDR.size > len(notes):
            found.add("notes", f"they end within a note, at {at:#x}")
            break
        namesz, descsz, kind = _NHDR.unpack_from(notes, at)
        name_at = at + _NHDR.size
        desc_at = name_at + (namesz + 3 & ~3)
        end = desc_at + descsz
        padded = end + (-descsz & 3)
        if end > len(notes) or not namesz:
            found.add("notes", f"the note at {at:#x} of them does not fit")
            break
        name = notes[name_at : name_at + namesz]
        if (
            not name.endswith(b"\0")
            or not _is_text(name[:-1])
            or any(notes[name_at + namesz : desc_at])
            or any(notes[end:padded])
        ):
            found.add("notes", f"the note at {at:#x} of them is damaged: {name!r}")
        elif name == b"CORE\0":
            cpus += kind == NT_PRSTATUS
            if kind not in _KCORE_NOTES and (kind, descsz) != (
                NT_PRSTATUS,
                _PRSTATUS_SIZE,
            ):
                found.add("notes", f"the note at {at:#x} of them is no NT_PRSTATUS")
        elif name == b"VMCOREINFO\0":
            if kind or text is not None:
                found.add("notes", f"the note at {at:#x} of them is no VMCOREINFO")
            text = notes[desc_at:end]
            place = desc_at
            _check_vmcoreinfo(text, found)
        at = padded
    return cpus, text, place


def _check_vmcoreinfo(text: bytes, found: _Found) -> None:
    lines, _, rest = text.partition(b"\0")
    if any(rest):
        found.add("notes", "VMCOREINFO has something behind its end")
    keys = set()
    for line in lines.split(b"\n"):
        key, separator, value = line.partition(b"=")
        if line and (not _is_text(line) or not separator or not key or key in keys):
            found.add("notes", f"a line of VMCOREINFO is damaged: {line[:60]!r}")
        elif _not_a_number(key, value):
            found.add("notes", f"VMCOREINFO has no number: {line[:60]!r}")
        keys.add(key)


# Bases of the values of VMCOREINFO's keys, by what the key starts with.
_BASES = {b"SYMBOL(": 16, b"SIZE(": 10, b"OFFSET(": 10, b"LENGTH(": 10, b"NUMBER(": 0}


def _not_a_number(key: bytes, value: bytes) -> bool:
    for prefix, base in _BASES.items():
        if key.startswith(prefix):
            try:
                int(value, base)
            except ValueError:
                return True
            return not key.endswith(b")")
    return False


def _check_bitmaps(
    file: _File,
    header: kdump.Header,
    eraseinfo: int,
    trailer: checksums.Trailer | None,
    found: _Found,
) -> _Kdump:
    size = -(-header.max_mapnr // 8)
    first = header.bitmap_offset
    second = first + header.bitmap_size
    bitmap = np.frombuffer(file.pread(size, second), np.uint8)
    dangling = 0
    for at in range(0, len(bitmap), _PIECE):
        exists = file.pread(min(_PIECE, len(bitmap) - at), first + at)
        beside = bitmap[at : at + len(exists)] & ~np.frombuffer(exists, np.uint8)
        where = np.flatnonzero(beside)
        for index in where[: max(0, LISTED - dangling)].tolist():
            bits = int(beside[index])
            pfn = 8 * (at + index) + (bits & -bits).bit_length() - 1
            paddr = pfn * header.block_size
            found.add("bitmap", f"page {paddr:#x} is dumped but does not exist")
        found.more("bitmap", max(0, len(where) - max(0, LISTED - dangling)))
        dangling += len(where)
    for name, start in (("first", first), ("second", second)):
        if header.max_mapnr % 8:
            last = file.pread(1, start + size - 1)
            if last and last[0] >> header.max_mapnr % 8:
                found.add("bitmap", f"the {name} has bits beyond max_mapnr")
        _check_zeros(file, start + size, start + header.bitmap_size, "bitmap", found)
    # Room for the descriptors of all parts is in each of them.
    room = header.descriptors_offset + _ones(bitmap) * kdump.DESCRIPTOR.itemsize
    if header.split:
        # But there are only those of the pages of this part.
        bitmap = bitmap.copy()
        start, end = header.start_pfn, min(header.end_pfn, 8 * len(bitmap))
        bitmap[: start // 8] = 0
        bitmap[-(-end // 8) :] = 0
        if start % 8 and start < 8 * len(bitmap):
            bitmap[start // 8] &= 0xFF << start % 8 & 0xFF
        if end % 8:
            bitmap[end // 8] &= (1 << end % 8) - 1
    pages = _ones(bitmap)
    descriptors_end = header.descriptors_offset + pages * kdump.DESCRIPTOR.itemsize
    if descriptors_end > file.size:
        found.add("descriptor", f"their end, {descriptors_end:#x}, is beyond the file")
    data = descriptors_end
    zero_at = 0
    if header.dump_level & 1:
        # It is there even if no page is zero, and behind all room: by that
        # makedumpfile --reassemble finds it.
        _check_zeros(file, descriptors_end, room, "descriptor", found)
        zero_at = room
        data = room + header.block_size
        if any(file.pread(header.block_size, zero_at)):
            found.add("descriptor", f"no page of zeros at {zero_at:#x}, where they end")
    data_end = min(
        place
        for place in (trailer.offset if trailer else file.size, eraseinfo or file.size)
    )
    return _Kdump(file, header, bitmap, pages, room, data, data_end, zero_at)


def _ones(bitmap: npt.NDArray[np.uint8]) -> int:
    return sum(
        int(BITS_SET[bitmap[at : at + _PIECE]].sum(dtype=np.int64))
        for at in range(0, len(bitmap), _PIECE)
    )


def _items(dump: _Kdump) -> npt.NDArray[np.int64]:
    """Pieces of the bitmap that have pages: (piece, descriptors before it)."""
    parts = []
    rank = 0
    for at in range(0, len(dump.bitmap), _PIECE):
        counts = BITS_SET[dump.bitmap[at : at + _PIECE]]
        sums = np.add.reduceat(counts, np.arange(0, len(counts), _ITEM), dtype=np.int64)
        used = np.flatnonzero(sums)
        before = rank + np.cumsum(sums) - sums
        parts.append(np.column_stack((used + at // _ITEM, before[used])))
        rank += int(sums.sum())
    return np.concatenate(parts) if parts else np.empty((0, 2), np.int64)


def _pfns(dump: _Kdump, piece: int) -> npt.NDArray[np.int64]:
    bits = dump.bitmap[piece * _ITEM : (piece + 1) * _ITEM]
    pfns: npt.NDArray[np.int64] = piece * _ITEM * 8 + np.flatnonzero(
        np.unpackbits(bits, bitorder="little")
    )
    return pfns


def _read_descriptors(dump: _Kdump, rank: int, count: int) -> npt.NDArray[np.void]:
    """Fewer than *count* where the file ends."""
    item = kdump.DESCRIPTOR.itemsize
    raw = dump.file.pread(item * count, dump.header.descriptors_offset + item * rank)
    return np.frombuffer(raw, kdump.DESCRIPTOR, len(raw) // item)


def _faults_of(dump: _Kdump, descriptors: Any) -> npt.NDArray[np.int8]:
    """The first fault of each descriptor, -1 if there is none."""
    page_size = dump.header.block_size
    offset = descriptors["offset"]
    size = descriptors["size"].astype(np.int64)
    flags = descriptors["flags"]
    status = dump.header.status
    incomplete = status & kdump.STATUS_INCOMPLETE
    known = flags == 0
    for flag in codecs.BY_FLAG:
        known |= flags == flag
    # No writer takes another codec for some pages than the header says.
    other = (flags & ~np.uint32(status & _CODEC_FLAGS)) != 0
    start = dump.zero_at or dump.data
    end = np.minimum(offset, dump.file.size) + size
    tests = (
        (offset == 0, _MISSING if incomplete else _UNMARKED),
        ((size < 1) | (size > page_size), _SIZE),
        ((offset < start), _BEFORE),
        (end > dump.file.size, _BEYOND),
        (end > dump.data_end, _BEHIND),
        (~known, _FLAGS),
        (other, _CODEC),
        ((flags == 0) & (size != page_size), _RAW),
        ((flags != 0) & (size >= page_size), _LARGE),
    )
    faults = np.full(len(descriptors), -1, np.int8)
    for wrong, fault in reversed(tests):
        faults[wrong] = fault
    return faults


# What is said of a fault beside the page: a field of the descriptor.
_SAID = {
    _SIZE: "size",
    _RAW: "size",
    _LARGE: "size",
    _FLAGS: "flags",
    _CODEC: "flags",
}


def _check_pages(dump: _Kdump, jobs: int, faults: _Faults, found: _Found) -> None:
    """Read and decompress every page."""
    items = _items(dump)
    before = [*items[:, 1].tolist(), dump.pages]
    with Progress("reading pages", dump.pages) as progress:
        failed = run(
            len(items),
            lambda number: _check_some(
                dump, int(items[number, 0]), int(items[number, 1]), faults
            ),
            _workers(jobs, len(items)),
            lambda taken: progress.update(before[taken]),
        )
    for number, why in failed.items():
        paddr = int(items[number, 0]) * _ITEM * 8 * dump.header.block_size
        count = before[number + 1] - before[number]
        found.add("page", f"{count} pages from {paddr:#x} on cannot be read: {why}")
    for fault, (kind, text) in enumerate(_FAULTS):
        for pfn, value in faults.some(fault)[:LISTED]:
            paddr = pfn * dump.header.block_size
            found.add(kind, f"page {paddr:#x} {text.format(value)}")
        found.more(kind, max(0, faults.count(fault) - LISTED))


def _check_some(dump: _Kdump, piece: int, rank: int, faults: _Faults) -> None:
    """Read and decompress the pages of one piece of the bitmap."""
    pfns = _pfns(dump, piece)
    descriptors = _read_descriptors(dump, rank, len(pfns))
    cut = pfns[len(descriptors) :].tolist()
    if cut:
        faults.add_all(_BEYOND, cut, [dump.file.size] * len(cut))
    pfns = pfns[: len(descriptors)]
    kinds = _faults_of(dump, descriptors)
    for fault in range(len(_FAULTS)):
        which = kinds == fault
        if which.any():
            values = descriptors[_SAID.get(fault, "offset")][which].tolist()
            faults.add_all(fault, pfns[which].tolist(), values)
    which = descriptors["page_flags"] != 0
    if which.any():
        values = descriptors["page_flags"][which].tolist()
        faults.add_all(_PAGE_FLAGS, pfns[which].tolist(), values)
    is_zero = (
        (descriptors["offset"] == dump.zero_at)
        & (descriptors["size"] == dump.header.block_size)
        & bool(dump.zero_at)
        & (kinds < 0)
    )
    if is_zero.any():
        faults.add_count(len(_FAULTS), int(np.count_nonzero(is_zero)))
    good = np.flatnonzero((kinds < 0) & ~is_zero)
    page_size = dump.header.block_size
    zeros = bytes(page_size)
    compressed = bool(dump.header.status & _CODEC_FLAGS)
    decompress: dict[int, codecs.Decompress] = {}
    for index, data in _page_data(dump, descriptors, good):
        flags = int(descriptors["flags"][index])
        page: bytes | None = data
        if data is None:
            faults.add(_UNREAD, int(pfns[index]), int(descriptors["offset"][index]))
            continue
        if flags:
            if flags not in decompress:
                codec = codecs.BY_FLAG[flags]
                is_zlib = codec.name == "zlib"
                decompress[flags] = _inflate if is_zlib else codec.decompressor()
            try:
                page = decompress[flags](data, page_size)
            except Exception:  # Each library has an exception of its own.
                page = b""
        if page is None or len(page) != page_size:
            faults.add(_DATA, int(pfns[index]), int(descriptors["offset"][index]))
        elif page == zeros and (dump.zero_at or (compressed and not flags)):
            faults.add(_ZERO if dump.zero_at else _ZERO_RAW, int(pfns[index]), 0)


def _inflate(data: bytes, size: int) -> bytes:
    """By zlib itself, as crash does: libdeflate takes some streams that it does not."""
    stream = zlib.decompressobj()
    page = stream.decompress(data, size + 1)
    if not stream.eof or stream.unused_data:
        raise ValueError("not one whole stream")
    return page


def _page_data(
    dump: _Kdump, descriptors: Any, indices: npt.NDArray[np.int64]
) -> Iterator[tuple[int, bytes | None]]:
    """What the file has of some pages; None if that cannot be read."""
    order = indices[np.argsort(descriptors["offset"][indices], kind="stable")]
    offsets = descriptors["offset"][order].tolist()
    ends = (descriptors["offset"] + descriptors["size"])[order].tolist()
    at = 0
    while at < len(order):
        # As many as lie together.
        start, stop = offsets[at], at + 1
        end = ends[at]
        while stop < len(order) and offsets[stop] <= end and end - start < _PIECE:
            end = max(end, ends[stop])
            stop += 1
        try:
            blob: bytes | None = dump.file.pread(end - start, start)
        except DumpError:
            blob = None
        for index in range(at, stop):
            first, last = offsets[index] - start, ends[index] - start
            if blob is None:
                with contextlib.suppress(DumpError):
                    yield (
                        int(order[index]),
                        dump.file.pread(last - first, start + first),
                    )
                    continue
                yield int(order[index]), None
            else:
                yield int(order[index]), blob[first:last]
        at = stop


def _check_extents(
    dump: _Kdump, trailer: checksums.Trailer | None, found: _Found
) -> None:
    """Where page data lies: nothing twice, nothing in between."""
    extents = _extents(dump)
    starts, ends = extents[:, 0], extents[:, 1]
    if not len(extents):
        reached = np.array([dump.data])
    else:
        reached = np.maximum.accumulate(np.concatenate(([dump.data], ends)))
    overlapping = np.flatnonzero(starts < reached[:-1])
    if len(overlapping):
        regions = np.column_stack(
            (starts[overlapping], np.minimum(ends, reached[:-1])[overlapping])
        )
        _check_overlaps(dump, regions, found)
    gap_starts = reached
    gap_ends = np.concatenate((starts, [dump.data_end]))
    gaps = np.flatnonzero(gap_starts < gap_ends)
    incomplete = dump.header.status & kdump.STATUS_INCOMPLETE
    unknown_end = "checksum" in found.counts and trailer is None
    unused = 0
    for index in gaps.tolist():
        start, end = int(gap_starts[index]), int(gap_ends[index])
        if start == dump.data and end == dump.room:
            continue
        # A changed bit in a descriptor leaves less than a page over; more is
        # what a killed worker had no use for.
        small = end - start <= dump.header.block_size
        last = index == len(gap_ends) - 1
        if small and trailer is None and not incomplete and not (last and unknown_end):
            found.add("unused", f"{_range(start, end)} are of no page")
        else:
            unused += end - start
    if unused:
        found.remarks.append(f"{unused} bytes are of no page")
    if trailer is not None:
        _check_covered(dump, trailer, extents, found)


def _extents(dump: _Kdump) -> npt.NDArray[np.int64]:
    """Where page data is, but for the page of zeros, in order: (start, end)."""
    parts = [np.empty((0, 2), np.int64)]
    for rank in range(0, dump.pages, _CHUNK):
        places = _places(dump, rank)
        if not len(places):
            continue
        breaks = np.flatnonzero(places[1:, 0] != places[:-1, 1])
        first = np.concatenate(([0], breaks + 1))
        last = np.concatenate((breaks, [len(places) - 1]))
        parts.append(np.column_stack((places[first, 0], places[last, 1])))
    extents = np.concatenate(parts)
    ordered: npt.NDArray[np.int64] = extents[np.argsort(extents[:, 0], kind="stable")]
    return ordered


def _places(dump: _Kdump, rank: int) -> npt.NDArray[np.int64]:
    """(start, end, rank) of the page data of a chunk, but for the page of zeros."""
    descriptors = _read_descriptors(dump, rank, min(_CHUNK, dump.pages - rank))
    faults = _faults_of(dump, descriptors)
    offset = descriptors["offset"].astype(np.int64)
    size = descriptors["size"].astype(np.int64)
    # What is wrong in another way says enough.
    good = (faults < 0) & ~((offset == dump.zero_at) & bool(dump.zero_at))
    ranks = rank + np.flatnonzero(good)
    places: npt.NDArray[np.int64] = np.column_stack(
        (offset[good], offset[good] + size[good], ranks)
    )
    return places


def _check_overlaps(
    dump: _Kdump, regions: npt.NDArray[np.int64], found: _Found
) -> None:
    """Pages whose data overlap; the same data for many is no fault."""
    # Regions that touch, as one.
    regions = regions[np.argsort(regions[:, 0], kind="stable")]
    reach = np.maximum.accumulate(regions[:, 1])
    heads = np.flatnonzero(np.concatenate(([True], regions[1:, 0] > reach[:-1])))
    starts = regions[heads, 0]
    ends = reach[np.concatenate((heads[1:] - 1, [len(regions) - 1]))]
    parts = []
    for rank in range(0, dump.pages, _CHUNK):
        places = _places(dump, rank)
        index = np.searchsorted(ends, places[:, 0], "right")
        inside = index < len(starts)
        inside[inside] = starts[index[inside]] < places[inside, 1]
        parts.append(places[inside])
    places = np.concatenate(parts)
    places = places[np.lexsort((places[:, 2], places[:, 1], places[:, 0]))]
    same = np.concatenate(([False], (places[1:, :2] == places[:-1, :2]).all(axis=1)))
    shared = int(same.sum())
    if shared:
        found.remarks.append(f"{shared} pages share the data of others")
    places = places[~same]
    reach = np.maximum.accumulate(places[:, 1])
    wrong = np.flatnonzero(places[1:, 0] < reach[:-1]) + 1
    first_pages = np.flatnonzero(places[:, 0] < dump.data)
    for index in wrong[:LISTED].tolist():
        start, rank = int(places[index, 0]), int(places[index, 2])
        paddr = _paddr(dump, rank)
        before = _paddr(dump, int(places[index - 1, 2]))
        found.add(
            "overlap",
            f"page {paddr:#x} has its data at {start:#x}, within that of {before:#x}",
        )
    found.more("overlap", max(0, len(wrong) - LISTED))
    for index in first_pages[:LISTED].tolist():
        paddr = _paddr(dump, int(places[index, 2]))
        found.add("overlap", f"page {paddr:#x} has its data within the page of zeros")


def _paddr(dump: _Kdump, rank: int) -> int:
    """Address of the page that has the descriptor *rank*."""
    items = _items(dump)
    index = int(np.searchsorted(items[:, 1], rank, "right")) - 1
    pfn = int(_pfns(dump, int(items[index, 0]))[rank - int(items[index, 1])])
    return pfn * dump.header.block_size


def _check_covered(
    dump: _Kdump,
    trailer: checksums.Trailer,
    extents: npt.NDArray[np.int64],
    found: _Found,
) -> None:
    """All that matters must have a checksum."""
    frame = np.array([[0, dump.data]])
    used = np.concatenate((frame, extents))
    starts = used[:, 0]
    reach = np.maximum.accumulate(used[:, 1])
    unproven = []
    for start, end in checksums.uncovered(trailer).tolist():
        before = int(np.searchsorted(starts, end)) - 1
        if before >= 0 and reach[before] > start:
            unproven.append((start, min(end, int(reach[before]))))
    for start, end in unproven[:LISTED]:
        found.add("checksum", f"{_range(start, end)} have none")
    found.more("checksum", max(0, len(unproven) - LISTED))


# --- ELF --------------------------------------------------------------------------

# What writers of cores fill in: name, format, offset, values. QEMU's e_ehsize is 8.
_EHDR_FIELDS = (
    ("e_ident[EI_VERSION]", "<B", 6, (1,)),
    ("e_ident[EI_OSABI]", "<B", 7, (0,)),
    ("e_ident's padding", "<Q", 8, (0,)),
    ("e_version", "<I", 20, (1,)),
    ("e_entry", "<Q", 24, (0,)),
    ("e_ehsize", "<H", 52, (64, 8)),
    ("e_phentsize", "<H", 54, (56,)),
    ("e_shentsize", "<H", 58, (0, 64)),
    ("e_shstrndx", "<H", 62, (0, 1)),
)
_E_FLAGS = 48
# makedumpfile's DUMP_ELF_INCOMPLETE.
_ELF_INCOMPLETE = 1
_PF_ALL = 7


def _verify_elf(file: _File, vmcore: Vmcore, jobs: int) -> Report:
    found = _Found()
    trailer = _trailer(file, found)
    ehdr = file.pread(64, 0)
    for name, form, offset, values in _EHDR_FIELDS:
        (value,) = struct.unpack_from(form, ehdr, offset)
        if value not in values:
            found.add("header", f"{name} is {value:#x}")
    (flags,) = struct.unpack_from("<I", ehdr, _E_FLAGS)
    if flags & ~_ELF_INCOMPLETE:
        found.add("header", f"e_flags is {flags:#x}")
    elif flags:
        found.add("incomplete", "the header says that pages are missing")
    end = trailer.offset if trailer else file.size
    loads = _check_segments(file, end, found)
    _check_notes(vmcore.notes, found)
    pages = sum(run.end_pfn - run.pfn for run in vmcore.ram_runs)
    in_file = sum(run.end_pfn - run.pfn for run in vmcore.data_runs)
    lost = vmcore.lost_pages
    if pages > in_file + lost:
        found.remarks.append(f"{pages - in_file - lost} pages are not in the file")
    damaged = _read_segments(file, loads, end, jobs, found)
    if trailer is not None:
        _check_sums(file, trailer, jobs, found)
        for start, stop in checksums.uncovered(trailer).tolist():
            found.add("checksum", f"{_range(start, stop)} have none")
    _say_what_is_proven(file, None, trailer, found)
    return Report(
        file.path,
        vmcore.format,
        in_file + lost,
        0,
        lost,
        damaged,
        found.findings,
        found.counts,
        found.remarks,
    )


def _check_segments(file: _File, end: int, found: _Found) -> list[tuple[int, int, int]]:
    """
    Segments against the file and each other.

    :return: offset, size and paddr of the memory in the file, in order.
    """
    loads = []
    used = []
    notes = 0
    for index, segment in enumerate(elf.read_segments(file.pread).tolist()):
        kind, flags, offset, vaddr, paddr, filesz, memsz, _ = segment
        what = f"program header {index}"
        if kind not in (elf.PT_LOAD, elf.PT_NOTE):
            found.add("segment", f"{what} is of type {kind:#x}")
            continue
        notes += kind == elf.PT_NOTE
        if flags & ~_PF_ALL:
            found.add("segment", f"{what} has flags {flags:#x}")
        if kind == elf.PT_LOAD and filesz > memsz:
            found.add("segment", f"{what} has {filesz} bytes of {memsz} of memory")
        if kind == elf.PT_LOAD and (vaddr ^ paddr) % _PAGE_SIZE:
            found.add("segment", f"{what} is of {paddr:#x} at {vaddr:#x}")
        if offset + filesz > end:
            past = offset + filesz - max(offset, min(end, offset + filesz))
            kind_of = "missing" if kind == elf.PT_LOAD else "notes"
            found.add(kind_of, f"{what} ends {past} bytes beyond the file")
        if filesz:
            # The direct map and the kernel's image may share what they both have.
            place = paddr - offset if kind == elf.PT_LOAD else -1
            used.append((offset, offset + filesz, index, place))
        if kind == elf.PT_LOAD and filesz:
            loads.append((offset, filesz, paddr))
    if notes != 1:
        found.add("segment", f"{notes} of them have notes, not one")
    used.sort()
    for before, after in zip(used, used[1:]):
        if after[0] < before[1] and after[3] != before[3]:
            found.add(
                "overlap",
                f"program headers {before[2]} and {after[2]} share bytes of the file",
            )
    # Each byte once, however often segments claim it.
    once = []
    taken = 0
    for offset, size, paddr in sorted(loads):
        skip = max(0, taken - offset)
        if skip < size:
            once.append((offset + skip, size - skip, paddr + skip))
            taken = offset + size
    return once


def _read_segments(
    file: _File,
    loads: list[tuple[int, int, int]],
    end: int,
    jobs: int,
    found: _Found,
) -> int:
    """Read all memory; returns how many pages cannot be read."""
    counts = [
        max(0, -(-min(size, end - offset) // _PIECE)) for offset, size, _ in loads
    ]
    before = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    total = int(before[-1])

    def piece(number: int) -> tuple[int, int, int]:
        index = int(np.searchsorted(before, number, "right")) - 1
        offset, size, paddr = loads[index]
        skip = (number - int(before[index])) * _PIECE
        length = min(_PIECE, size - skip, end - offset - skip)
        return offset + skip, length, paddr + skip

    with contextlib.closing(_Faults(1)) as faults:

        def work(number: int) -> None:
            offset, size, paddr = piece(number)
            with contextlib.suppress(DumpError):
                if len(file.pread(size, offset)) == size:
                    return
            for at in range(0, size, _PAGE_SIZE):
                length = min(_PAGE_SIZE, size - at)
                with contextlib.suppress(DumpError):
                    if len(file.pread(length, offset + at)) == length:
                        continue
                faults.add(0, paddr + at, offset + at)

        with Progress("reading memory", total) as progress:
            failed = run(total, work, _workers(jobs, total), progress.update)
        for paddr, offset in faults.some(0)[:LISTED]:
            found.add("page", f"page {paddr:#x} cannot be read, at offset {offset:#x}")
        found.more("page", max(0, faults.count(0) - LISTED))
        damaged = faults.count(0)
    for number, why in failed.items():
        _, size, paddr = piece(number)
        damaged += -(-size // _PAGE_SIZE)
        found.add("page", f"{size} bytes from {paddr:#x} on cannot be read: {why}")
    return damaged
