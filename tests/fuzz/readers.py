# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Everything that reads
---------------------

One table: each reader's name, what its inputs may begin with, the function that reads
one, and the exceptions that its documentation promises for what cannot be read. Any
other exception, a crash, a hang or a lot of memory is a fault.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import random
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple

import numpy as np
import numpy.typing as npt

from drgn_tools import (
    checksums,
    codecs,
    decompress,
    kernel_log,
    oprofile_records,
    pages,
    pstore_records,
    ramoops,
    reed_solomon,
    verify,
)
from drgn_tools.errors import DumpError, MissingMemory
from drgn_tools.formats import flattened, notes
from drgn_tools.ftrace_text import binary_printf
from drgn_tools.plan import find_struct_pages, page_classes
from drgn_tools.print_fmt import Unsupported, compile_print_fmt
from drgn_tools.rearrange import rearrange
from drgn_tools.symbols import ElfFile, load
from drgn_tools.translate import Translator
from drgn_tools.vmcore import bitmap_runs, bitmap_slice, merge_runs, open_vmcore
from drgn_tools.vmcoreinfo import Vmcoreinfo, if_sound
from tests import hostile_streams, regions, synthetic
from tests.fuzz import command_line, programs
from tests.synthetic import MIB, PAGE
from tests.test_print_fmt import FIELDS, Kernel
from tests.test_pstore_raw import elf_with_symbols


class Reader(NamedTuple):
    """Something that reads."""

    seeds: Callable[[], list[bytes]]
    """Inputs that it can read."""
    read: Callable[[bytes], object]
    """Reads one, as far as that goes."""
    answers: tuple[type[BaseException], ...] = (DumpError,)
    """What it says of inputs that it cannot read."""
    most: int = 1 << 16
    """Bytes that an input may have."""
    fixed: bool = False
    """Inputs are memory: they keep their length."""


# --- files ------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _memory_file() -> int:
    return os.memfd_create("fuzz")


@contextlib.contextmanager
def as_file(data: bytes) -> Iterator[str]:
    """An input as a file, which is gone afterwards; it is in memory."""
    fd = _memory_file()
    os.ftruncate(fd, 0)
    os.pwrite(fd, data, 0)
    yield f"/proc/self/fd/{fd}"


@functools.lru_cache(maxsize=4)
def machine(generation: str) -> synthetic.Machine:
    """A small one, with a log."""
    log = [(n * 1000, f"line {n} of the log") for n in range(20)]
    made = synthetic.Machine(
        synthetic.BY_NAME[generation], ram=((0, 6 * MIB),), log=log
    )
    for pfn in range(8):
        made.pages[0].anon(700 + pfn)
    made.pages[0].free(1024, 5)
    made.pages[0].slab(800, 3)
    return made


@functools.lru_cache(maxsize=4)
def _kept_pages(generation: str) -> dict[int, bytes]:
    # What leads to the rest: tables, the log, some of the struct pages.
    of = machine(generation)
    of.loads()
    first, last = of.image // PAGE, of.used_end // PAGE
    chosen = [*range(first, last), *range(4)]
    start = of.struct_page_paddr(704) // PAGE
    chosen += [start, start + 1]
    return {pfn: of.page(pfn) for pfn in sorted(set(chosen))}


def _made(write: Callable[[Path], object]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "dump")
        write(path)
        return path.read_bytes()


@functools.lru_cache(maxsize=1)
def elf_seeds() -> list[bytes]:
    found = []
    options: dict[str, Any]
    for generation, options in (
        ("7.2", {}),
        ("5.10", {"note_place": "last", "qemu": True}),
    ):
        kept = _kept_pages(generation)
        runs: list[list[int]] = []
        for pfn in kept:
            if runs and runs[-1][-1] + 1 == pfn:
                runs[-1].append(pfn)
            else:
                runs.append([pfn])
        loads = [
            synthetic.Load(
                run[0] * PAGE,
                b"".join(kept[pfn] for pfn in run),
                vaddr=synthetic.PAGE_OFFSET + run[0] * PAGE,
            )
            for run in runs
        ]
        write = functools.partial(_write_elf, loads, machine(generation).notes())
        found.append(_made(functools.partial(write, options)))
    small = [synthetic.Load(MIB * n, b"m" * 64) for n in range(4)]
    for align in (PAGE, 8):
        options = {"align": align}
        found.append(
            _made(functools.partial(_write_elf, small, synthetic.prstatus(1), options))
        )
    return found


def _write_elf(
    loads: list[synthetic.Load], notes: bytes, options: dict[str, Any], path: Path
) -> None:
    synthetic.write_elf(path, loads, notes, **options)


@functools.lru_cache(maxsize=1)
def kdump_seeds() -> list[bytes]:
    found = []
    for codec, version, generation in (
        ("zlib", 6, "7.2"),
        ("lzo", 6, "5.10"),
        ("snappy", 5, "7.2"),
        ("zstd", 6, "4.18"),
    ):
        kept = _kept_pages(generation)
        found.append(
            _made(functools.partial(_write_kdump, kept, generation, codec, version))
        )
    few = {pfn: synthetic.text_page(pfn) for pfn in range(0, 12, 3)}
    for version in (1, 2, 3, 4):
        found.append(
            _made(
                lambda path, version=version: synthetic.write_kdump(  # type: ignore[misc]
                    path,
                    few,
                    synthetic.prstatus(1),
                    version=version,
                    missing=[6] if version == 2 else (),
                    excluded=range(20, 30),
                    bare_vmcoreinfo=b"OSRELEASE=5\n",
                )
            )
        )
    return found


def _write_kdump(
    kept: dict[int, bytes], generation: str, codec: str, version: int, path: Path
) -> None:
    # The struct pages are at 4 MiB: half of the bitmap.
    synthetic.write_kdump(
        path,
        kept,
        machine(generation).notes(),
        codec=codec,
        version=version,
        excluded=range(1536),
    )


#: Of so many dumps, one is read in depth.
DEEP = 4


def read_dump(data: bytes) -> None:
    """Any dump, through all that capture and info do with it but writing."""
    # What is in its memory has readers of its own below.
    deep = zlib.crc32(data) % DEEP == 0
    with as_file(data) as path, open_vmcore(path, part=True) as vmcore:
        attempt(vmcore.utsname)
        for run in vmcore.data_runs[:4]:
            end = min(run.end_pfn, run.pfn + 16)
            pfns = run.pfn + np.flatnonzero(vmcore.present(run.pfn, end))
            attempt(lambda pfns=pfns: [len(page) for page in vmcore.pages(pfns)])  # type: ignore[misc]
            attempt(lambda run=run: vmcore.read(run.pfn * vmcore.page_size + 9, 9000))  # type: ignore[misc]
            attempt(lambda run=run: vmcore.view(run.pfn * vmcore.page_size, 5000))  # type: ignore[misc]
        if not deep:
            return
        attempt(lambda: list(vmcore.kernel.image()))
        found: Any = attempt(lambda: find_struct_pages(vmcore))
        for run in vmcore.data_runs[:4]:
            end = min(run.end_pfn, run.pfn + 4096)
            for _ in page_classes(vmcore, found, run.pfn, end):
                pass
        attempt(lambda: list(kernel_log.dump_log(vmcore, warn=lambda _: None)))


def attempt(work: Callable[[], Any]) -> Any:
    """What comes of *work*, None if it refuses: the next may do."""
    try:
        return work()
    except DumpError:
        return None


def flattened_seeds() -> list[bytes]:
    found = []
    for dump in (kdump_seeds()[4], elf_seeds()[2]):
        pieces = [
            (at, dump[at : at + 1500]) for at in range(0, min(len(dump), 40000), 1500)
        ]
        # The first bytes come last, as writers do; and one piece twice.
        pieces = [*pieces[1:], pieces[0], pieces[2]]
        body = b"".join(
            flattened.record(at, len(piece)) + piece for at, piece in pieces if piece
        )
        found.append(flattened.HEADER + body + flattened.END)
    return found


def read_flattened(data: bytes) -> None:
    with as_file(data) as path:
        fd = os.open(path, os.O_RDONLY)
        try:
            index = flattened.Index(fd)
            at = 0
            for _ in range(200):
                part = index.pread(4096, at)
                if not part:
                    break
                at += len(part)
            assert len(index.pread(100, max(0, index.size - 50))) <= 50
        finally:
            os.close(fd)
    read_dump(data)


@functools.lru_cache(maxsize=1)
def room() -> str:
    """
    A folder for files that are written, in memory where there is some. It goes with
    the process that first asks for it; those that it forks have it too.
    """
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    made = tempfile.mkdtemp(prefix="drgn-tools-fuzz-", dir=base)
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def _output_folder() -> str:
    # For this process alone.
    folder = os.path.join(room(), str(os.getpid()))
    os.makedirs(folder, exist_ok=True)
    return folder


def read_stream(data: bytes) -> None:
    """A flattened stream, made whole."""
    target = os.path.join(_output_folder(), "whole")
    fd = os.memfd_create("stream")
    try:
        os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
        rearrange(fd, target, True)
    finally:
        os.close(fd)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target)


def read_verify(data: bytes) -> None:
    with as_file(data) as path:
        for line in verify.verify(path, 1).lines():
            assert line


def checked_seeds() -> list[bytes]:
    found = []
    for dump in (kdump_seeds()[0], elf_seeds()[0], elf_seeds()[2]):
        rows = [
            (at, len(dump[at : at + 8192]), zlib.crc32(dump[at : at + 8192]))
            for at in range(0, len(dump), 8192)
        ]
        found.append(dump + checksums.pack_trailer(rows, len(dump)))
    few = b"few bytes" * 20
    rows_of_few = [(n * 9, 9, zlib.crc32(few[n * 9 : n * 9 + 9])) for n in range(20)]
    found.append(few + checksums.pack_trailer(rows_of_few, len(few)))
    return found


def read_checksums(data: bytes) -> None:
    # The checksum of the table itself would hide the rest of it from chance.
    footer = 48
    if len(data) >= footer:
        (offset,) = struct.unpack_from("<Q", data, len(data) - 24)
        sealed = bytearray(data[-footer:-4])
        if offset <= len(data):
            crc = zlib.crc32(data[offset : len(data) - footer])
            sealed[-4:] = struct.pack("<I", crc)
        data = data[:-footer] + sealed + struct.pack("<I", zlib.crc32(sealed))
    trailer = checksums.read_trailer(lambda n, at: data[at : at + n], len(data))
    if trailer is not None:
        checksums.uncovered(trailer)


def read_notes(data: bytes) -> None:
    for note in notes.iter_notes(data):
        assert len(note.desc) <= len(data)
    verify._check_notes(data, verify._Found())


# --- a kernel's memory, by VMCOREINFO alone ---------------------------------------

# An input is a line of numbers, VMCOREINFO and pieces of memory.
# Each piece is of 64 bytes, with its number in front.
_PIECE = 68
_MEMORY = 6 * MIB


@functools.lru_cache(maxsize=1)
def kernel_seeds() -> list[bytes]:
    found = []
    for generation in ("7.2", "6.6", "5.10", "4.18"):
        of = machine(generation)
        text = synthetic.vmcoreinfo_text(of.keys)
        memory = np.zeros(_MEMORY, np.uint8)
        for pfn, data in _kept_pages(generation).items():
            if pfn >= 4:
                memory[pfn * PAGE : (pfn + 1) * PAGE] = np.frombuffer(data, np.uint8)
        rows = memory.reshape(-1, 64)
        used = np.flatnonzero(rows.any(axis=1))
        places = used.astype("<u4").view(np.uint8).reshape(-1, 4)
        pieces = np.hstack([places, rows[used]])
        found.append(struct.pack("<H", len(text)) + text + pieces.tobytes())
    return found


@functools.lru_cache(maxsize=1)
def _rows() -> npt.NDArray[np.uint8]:
    return np.zeros((_MEMORY // 64, 64), np.uint8)


class KernelMemory:
    """What an input of these says; there is one at a time."""

    _used: npt.NDArray[np.uint32] = np.zeros(0, np.uint32)

    def __init__(self, data: bytes) -> None:
        (length,) = struct.unpack("<H", data[:2].ljust(2, b"\0"))
        self.info = Vmcoreinfo(data[2 : 2 + length])
        rest = memoryview(data)[2 + length :]
        count = len(rest) // _PIECE
        pieces = np.frombuffer(rest, np.uint8, count * _PIECE).reshape(-1, _PIECE)
        self.memory = _rows()
        self.memory[KernelMemory._used] = 0
        places = np.ascontiguousarray(pieces[:, :4]).view("<u4").reshape(-1)
        KernelMemory._used = places % len(self.memory)
        self.memory[KernelMemory._used] = pieces[:, 4:]

    def read(self, paddr: int, size: int) -> bytes:
        if paddr < 0 or paddr + size > _MEMORY:
            raise MissingMemory(paddr)
        return self.memory.reshape(-1)[paddr : paddr + size].tobytes()


def read_page_tables(data: bytes) -> None:
    of = KernelMemory(data)
    kernel = Translator(of.info, of.read)
    attempt(lambda: list(kernel.image()))
    attempt(lambda: list(kernel.tables()))
    for vaddr in (0, synthetic.PAGE_OFFSET, synthetic.VMEMMAP, 0xFFFFFFFF81000000):
        attempt(lambda vaddr=vaddr: kernel.translate(vaddr))  # type: ignore[misc]
        attempt(lambda vaddr=vaddr: kernel.read(vaddr + 0xFF0, 3 * PAGE))  # type: ignore[misc]


def read_mem_section(data: bytes) -> None:
    of = KernelMemory(data)
    kernel = Translator(of.info, of.read)
    runs = [(0, _MEMORY // PAGE), (1 << 22, 1 << 23), ((1 << 40) - 9, 1 << 40)]
    pages.mem_map(of.info, kernel.read, PAGE, runs)


def read_struct_pages(data: bytes) -> None:
    of = KernelMemory(data)
    layout = pages.page_layout(of.info)
    size = layout.dtype.itemsize
    rows = of.memory.reshape(-1)
    # Where those of the seeds are, and a few before them.
    first, count = 700, 70
    spills: Sequence[pages.Spill] = ()
    for pfn in (first, first + count):
        start = 4 * MIB + 64 * pfn
        words = rows[start : start + count * size]
        classes, spills = pages.classify(words, pfn, layout, spills)
        assert int(classes.max()) <= pages.PageClass.ZERO


def read_log(data: bytes) -> None:
    of = KernelMemory(data)
    kernel = Translator(of.info, of.read)
    for partial in (False, True):
        found: Any = attempt(
            lambda partial=partial: list(  # type: ignore[misc]
                kernel_log.log_records(
                    of.info, kernel, partial=partial, warn=lambda _: None
                )
            )
        )
        for record in found or ():
            kernel_log._format(record)
    attempt(lambda: list(kernel_log._plain_text(of.info, kernel, lambda _: None)))


def vmcoreinfo_seeds() -> list[bytes]:
    plain = synthetic.Machine(synthetic.BY_NAME["5.10"], ram=((0, 6 * MIB),))
    plain.plain_log(b"old text\n" * 300)
    return [
        *(
            synthetic.vmcoreinfo_text(machine(generation).keys)
            for generation in ("7.2", "6.6", "6.3", "5.10", "4.18")
        ),
        synthetic.vmcoreinfo_text(plain.keys),
    ]


_NAMES = (
    *("page", "mem_section", "printk_log", "phys_base", "sme_mask", "init_uts_ns"),
    *("PG_lru", "zone.free_area", "page.flags", "mem_section.section_mem_map"),
)


def read_vmcoreinfo(data: bytes) -> None:
    info = Vmcoreinfo(data)
    for name in _NAMES:
        for way in (info.symbol, info.size, info.offset, info.length, info.number):
            if_sound(lambda way=way, name=name: way(name))  # type: ignore[misc]
    if_sound(lambda: info.decimal("CRASHTIME"))

    def missing(paddr: int, size: int) -> bytes:
        raise MissingMemory(paddr)

    attempt(lambda: pages.page_layout(info))
    attempt(lambda: pages.mem_map(info, missing, PAGE, [(0, 1 << 20)]))
    kernel: Any = attempt(lambda: Translator(info, missing))
    if kernel is not None:
        attempt(lambda: list(kernel_log.log_records(info, kernel)))
    verify._check_vmcoreinfo(data, verify._Found())


def bitmap_seeds() -> list[bytes]:
    return [
        bytes(8) + b"\xff" * 100,
        bytes(4) + b"\x0f\xf0" * 50 + bytes(100) + b"\xff" * 9,
        struct.pack("<II", 77, 900) + b"\x55" * 50,
    ]


def read_bitmap(data: bytes) -> None:
    first, second = struct.unpack("<II", data[:8].ljust(8, b"\0"))
    bitmap = np.frombuffer(data[8:], np.uint8)
    most = 8 * len(bitmap)
    runs = bitmap_runs(bitmap, first if first < most else most)
    assert runs == merge_runs(runs)
    low, high = sorted((first % (most + 1), second % (most + 1)))
    assert len(bitmap_slice(bitmap, low, high)) == high - low


def _decompressor(name: str) -> Callable[[bytes], object]:
    codec = codecs.CODECS[name]

    def read(data: bytes) -> None:
        # Each library has an exception of its own, which the readers of pages catch;
        # what matters is that nothing else happens.
        try:
            page = codec.decompressor()(data, PAGE)
        except MemoryError:
            raise
        except Exception:
            return
        assert len(page) <= PAGE

    return read


def _codec_seeds(name: str) -> Callable[[], list[bytes]]:
    codec = codecs.CODECS[name]

    def seeds() -> list[bytes]:
        compress = codec.compressor(codec.default_level)
        source = hostile_streams.pages(random.Random(name))
        return [bytes(compress(next(source))) for _ in range(12)]

    return seeds


def _stream_seeds(algorithm: str, size: int) -> Callable[[], list[bytes]]:
    def seeds() -> list[bytes]:
        chance = random.Random(algorithm)
        source = hostile_streams.pages(chance, size)
        return [
            hostile_streams.compressed(algorithm, next(source), chance)
            for _ in range(20)
        ]

    return seeds


def _stream(algorithm: str, size: int) -> Callable[[bytes], object]:
    def read(data: bytes) -> None:
        page = None
        with contextlib.suppress(decompress.BadStream):
            page = decompress.decompress(algorithm, data, size)
            assert len(page) == size
        prefix, used = decompress.decompress_prefix(algorithm, data, size)
        assert len(prefix) == size and used <= len(data)
        assert page is None or (prefix, used) == (page, len(data))

    return read


# --- persistent memory ------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def ramoops_seeds() -> list[bytes]:
    found = []
    for ecc, sig in ((0, "7.2.13"), (16, "5.10.262"), (0, "4.9.0")):
        zones: list[bytes] = []
        for kind, size, signature, text in (
            (
                "dmesg",
                1024,
                regions.SIG,
                b"====1700000000.000042-D\nOops#1 Part1\ntext\n",
            ),
            ("dmesg", 1024, regions.SIG, b""),
            ("console", 512, regions.SIG, b"[    0.0] console\n" * 80),
            ("ftrace", 512, regions.FTRACE_SIG[sig], b""),
            ("ftrace", 512, regions.FTRACE_SIG[sig], b""),
            ("pmsg", 512, regions.SIG, b"from user space"),
        ):
            ring = regions.Ring(size, signature, ecc=ecc)
            if text:
                ring.write(text)
            elif kind == "ftrace":
                for counter in range(60):
                    ring.write(regions.record64(counter, len(zones) - 3))
            zones.append(ring.image())
        found.append(b"".join(zones))
    return found


_LAYOUTS = (
    None,
    ramoops.Layout(1024, 512, 1024, 512, cpus=2),
    ramoops.Layout(1024, 512, 1024, 512, ecc=reed_solomon.Ecc(16), cpus=2),
)


def read_region(data: bytes) -> None:
    layout = _LAYOUTS[(data[0] if data else 0) % len(_LAYOUTS)]
    region = ramoops.read_region(data[1:], layout)
    traces = []
    for zone in region.zones:
        assert len(zone.content) <= zone.size
        if zone.kind == "ftrace":
            traces.append(zone.content)
        elif zone.kind == "dmesg":
            pstore_records.decode_dmesg(zone.content)
    _merge(traces, region.version)


def region_seeds() -> list[bytes]:
    """The first byte says which of :data:`_LAYOUTS`."""
    plain, with_ecc, old = ramoops_seeds()
    of = ((plain, with_ecc, old), (plain, old), (with_ecc,))
    return [
        bytes([number]) + region
        for number, regions_ in enumerate(of)
        for region in regions_
    ]


def _merge(traces: list[bytes], version: Any) -> None:
    fmt = pstore_records.guess_format(traces, version)
    arrays = [
        pstore_records.decode_ftrace(content, fmt, zone=n)
        for n, content in enumerate(traces)
    ]
    merged = pstore_records.merge_ftrace(arrays, fmt)
    for _ in pstore_records.format_ftrace(merged.records[:30], fmt):
        pass


def layout_seeds() -> list[bytes]:
    return [
        b"record_size=0x10000,console_size=64k,ecc=1,cpus=4",
        b"mem_size=1m,mem_address=0x1000,ftrace_size=4096,pmsg_size=4K,exact=yes",
        b"pmsg_first=no,staging=1,byteorder=big,ecc=16",
    ]


def read_layout(data: bytes) -> None:
    layout = ramoops.parse_layout(data.decode("latin-1"))
    ramoops.places(layout, 1 << 20)
    ramoops.read_region(b"DBGC" + bytes(5000), layout)


def oops_seeds() -> list[bytes]:
    text = b"Oops#1 Part1\n" + b"<4>[    1.0] what happened\n" * 30
    plain = b"====1700000000.000042-D\n" + text
    packed = [
        zlib.compress(text),
        hostile_streams.deflated(text, -15),
        *(
            hostile_streams.compressed(name, text, random.Random(1))
            for name in ("lzo", "lz4", "zstd", "842")
        ),
    ]
    return [plain, *(b"====1700000000.000042-C\n" + part for part in packed)]


def read_oops(data: bytes) -> None:
    record = pstore_records.decode_dmesg(data, max_size=1 << 14)
    assert record is None or len(record.text) <= max(1 << 14, len(data))


def trace_seeds() -> list[bytes]:
    records = b"".join(regions.record64(n, n % 4) for n in range(30))
    old = b"".join(
        struct.pack("<QQQ", regions.TEXT + n, regions.TEXT, n % 4) for n in range(30)
    )
    return [
        records,
        records[:360] + records[180:],
        records[5:],
        old,
        struct.pack("<90I", *(0xC0100000 + n for n in range(90))),
    ]


def read_trace(data: bytes) -> None:
    third = len(data) // 3
    parts = [data[:third], data[third : 2 * third], data[2 * third :]]
    _merge(parts, (None, (4, 9, 0))[zlib.crc32(data) % 2])


def logcat_seeds() -> list[bytes]:
    found = b""
    for n in range(6):
        body = b"\x04tag\0" + b"message %d\0" % n
        head = struct.pack("<BHHHBHII", ord("l"), 18 + len(body), 0, 42, 0, 43, n, n)
        found += head + body
    return [found, b"plain text\n" + found]


def read_logcat(data: bytes) -> None:
    list(pstore_records.logcat_messages(data))
    pstore_records.is_logcat(data)


# --- traces and samples -----------------------------------------------------------

_FORMATS = (
    oprofile_records.Format(),
    oprofile_records.Format(data=False),
    oprofile_records.Format(data=False, xen=True),
    oprofile_records.Format(word=4, byteorder="big"),
)


def sample_seeds() -> list[bytes]:
    escape = (1 << 64) - 1
    rows = (
        *((escape, 11, 0xFFFF888000000000), (0xFFFFFFFF81000000, 0)),
        *((escape, 4), (0x401000, 1), (escape, 0xF0000000, 4, 1, 2, 3, 4)),
        *((escape, 1), (escape, 2, 0x1234), (0x401000, 0), (0x402000, 0)),
        *((escape, 5, 7), (escape, 3, 1, 2, 3, 4), (escape, 10), (escape, 6)),
    )
    flat = [word for row in rows for word in row]
    events = [escape, 2, 0, escape, 4, 7, 8, 9, escape, 1, 0x401000, 3, escape, 12, 1]
    return [
        struct.pack(f"<{len(flat)}Q", *flat),
        struct.pack(f"<{2 * len(events)}Q", *events, *reversed(events)),
    ]


def read_samples(data: bytes) -> None:
    for fmt in _FORMATS:
        size = 2 * fmt.word
        records: list[Any] = [
            (0, at, data[at : at + (size if data[at] % 3 else 4 * size)], "unread", "")
            for at in range(0, len(data), size)
        ]
        list(oprofile_records.decode_samples(records, fmt))
        words = fmt.words(data)
        for cell in (False, True):
            entries = oprofile_records.decode_event_buffer(
                words, fmt, cell=cell, targets=cell
            )
            list(oprofile_records.synced_samples(entries, fmt))


_RECORD = bytes(range(64)) + b"text\0" * 8


def print_fmt_seeds() -> list[bytes]:
    return [
        b'"%s %d", REC->comm, REC->i',
        b'"a=%lx %p[0x%pS]", (unsigned long)(REC->l & ~(1 << 3)), (void *)REC->q, '
        b"(void *)REC->q",
        b'"%s", __print_flags(REC->u, "|", { 1, "A" }, { (1UL << 2), "B" })',
        b'"%s", __print_symbolic(REC->h, { 0, "X" }, { SOME, "Y" })',
        b'"%s %s", __get_str(text), REC->i ? "yes" : "no" "more"',
        b'"%*d %-*.*s|", REC->i, 5, 3, 2, __get_rel_str(rel)',
        b'"%s", __print_array(__get_dynamic_array(words), 4, sizeof(u32))',
        b'"%s %pM %*phC", __print_hex(REC->comm, 3), REC->comm, 6, REC->comm',
        b'"%llu", (u64)jiffies_to_msecs(REC->q) * 3 % 7 - -REC->c',
        b'"%s", __get_bitmask(words)',
        b'"%d:%d %#x", MAJOR(REC->u), MINOR(REC->u), be32_to_cpu(REC->u)',
    ]


def read_print_fmt(data: bytes) -> None:
    printer = compile_print_fmt(data.decode("latin-1"), FIELDS, Kernel())
    for record in (_RECORD, _RECORD[:40], b""):
        with contextlib.suppress(ValueError, struct.error, IndexError, OverflowError):
            printer(record)


def bprintf_seeds() -> list[bytes]:
    return [
        b"%s: %d\0name\0\0\0\0\x09\0\0\0",
        b"%llx %*d|%-*d %c\0" + bytes(range(40)),
        b"%ps %pS %lu %#o %+x\0" + bytes(range(60)),
        b"%hhd %hd %.*s %pI4\0" + b"ab\0" * 20,
    ]


def read_bprintf(data: bytes) -> None:
    form, _, raw = data.partition(b"\0")
    for widened in (False, True):
        with contextlib.suppress(struct.error):
            binary_printf(form.decode("latin-1"), raw, Kernel(), widened=widened)


def symbol_seeds() -> list[bytes]:
    lines = b"".join(
        b"ffffffff81%06x T function_%d\n" % (n * 64, n) for n in range(200)
    )
    functions = [(0xFFFFFFFF81000000 + 64 * n, f"function_{n}") for n in range(50)]
    return [lines, lines.replace(b" T ", b" t "), elf_with_symbols(functions)]


def read_symbols(data: bytes) -> None:
    with as_file(data) as path:
        found = load(path)
        if data.startswith(b"\x7fELF"):
            ElfFile(path).find(64)
    found.function(0xFFFFFFFF81000010)
    found.place(0xFFFFFFFF81000010)


# --- commands ---------------------------------------------------------------------


def command_seeds() -> list[bytes]:
    found = []
    for number, line in enumerate(command_line.LINES):
        dumps = [kdump_seeds()[0], elf_seeds()[1], kdump_seeds()[5]]
        if "-R" in line.words:
            dumps = flattened_seeds()
        elif "--raw" in line.words:
            dumps = ramoops_seeds()
        found += [bytes([number]) + dump for dump in dumps]
    return found


def read_command(data: bytes) -> None:
    out = os.path.join(_output_folder(), "out")
    with as_file(data[1:]) as dump:
        command_line.read_line(data, dump, out)


def read_arguments(data: bytes) -> None:
    folder = _output_folder()
    dump = os.path.join(folder, "dump")
    if not os.path.exists(dump):
        Path(dump).write_bytes(elf_seeds()[2])
    command_line.read_arguments(data, folder)


#: By name, in the order in which they are tried.
READERS: dict[str, Reader] = {
    "elf": Reader(elf_seeds, read_dump, most=1 << 18),
    "kdump": Reader(kdump_seeds, read_dump, most=1 << 18),
    "flattened": Reader(flattened_seeds, read_flattened),
    "rearrange": Reader(flattened_seeds, read_stream),
    "notes": Reader(
        lambda: [machine("7.2").notes(), synthetic.prstatus(1) * 3], read_notes
    ),
    "vmcoreinfo": Reader(vmcoreinfo_seeds, read_vmcoreinfo),
    "page tables": Reader(kernel_seeds, read_page_tables, most=1 << 17),
    "mem_section": Reader(kernel_seeds, read_mem_section, most=1 << 17),
    "struct pages": Reader(kernel_seeds, read_struct_pages, most=1 << 17),
    "kernel log": Reader(kernel_seeds, read_log, most=1 << 17),
    "bitmaps": Reader(bitmap_seeds, read_bitmap, most=1 << 10),
    "checksums": Reader(checked_seeds, read_checksums, most=1 << 18),
    "verify": Reader(
        lambda: [*checked_seeds(), *kdump_seeds()[4:]], read_verify, most=1 << 18
    ),
    **{
        f"page codec {name}": Reader(_codec_seeds(name), _decompressor(name))
        for name in codecs.CODECS
    },
    **{
        f"stream {name}": Reader(
            _stream_seeds(name, size), _stream(name, size), (decompress.BadStream,)
        )
        for name, size in (
            ("lzo", 4096),
            ("lzo-rle", 4096),
            ("lz4", 4096),
            ("zstd", 4096),
            ("deflate", 4096),
            ("842", 512),
        )
    },
    "ramoops region": Reader(region_seeds, read_region),
    "ramoops layout": Reader(layout_seeds, read_layout),
    "pstore oops": Reader(oops_seeds, read_oops, ()),
    "pstore ftrace": Reader(trace_seeds, read_trace, ()),
    "pmsg logcat": Reader(logcat_seeds, read_logcat, ()),
    "oprofile records": Reader(sample_seeds, read_samples, ()),
    "print formats": Reader(print_fmt_seeds, read_print_fmt, (Unsupported,)),
    "trace_printk": Reader(bprintf_seeds, read_bprintf, (ValueError,)),
    "symbols": Reader(symbol_seeds, read_symbols),
    **{
        name: Reader(
            family.seeds, family.read, programs.ANSWERS, most=1 << 20, fixed=True
        )
        for name, family in programs.FAMILIES.items()
    },
    "commands": Reader(command_seeds, read_command, (), most=1 << 18),
    "arguments": Reader(command_line.argument_seeds, read_arguments, (), most=1 << 10),
}


def corpus(name: str) -> list[bytes]:
    """Short inputs that long runs found: together they reach most of a reader."""
    folder = Path(__file__).parent / "corpus" / name.replace(" ", "-")
    return [path.read_bytes() for path in sorted(folder.glob("*"))]
