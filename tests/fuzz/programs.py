# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Readers of a program's memory
-----------------------------

Kernels made of bytes, whose memory is the input: the number of a kernel and of what to
do with it, then what is in its memory beside zeros, in pieces of 64 bytes with their
numbers in front.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import struct
from collections.abc import Iterable, Sequence
from typing import Any, Callable, NamedTuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Program

from drgn_tools import ftrace, oprofile, pstore, ring_buffer, swap, zram, zsmalloc
from drgn_tools.errors import DumpError
from drgn_tools.ftrace_memory import Commands, TraceEvents
from drgn_tools.kernel_symbols import KernelSymbols
from tests import test_oprofile, test_pstore, test_swap, test_zram
from tests.fuzz.kernels import EventsKernel, SymbolsKernel
from tests.oprofile_kernel import ESCAPE, OprofileKernel, words
from tests.pstore_kernel import KERNEL
from tests.ring_kernel import Data, Extend, PageOf, RingKernel, Stamp
from tests.swap_kernel import PAGE, START, SwapKernel
from tests.zram_kernel import ILP32, LP64, ZramKernel

_SIZE = 64
_PIECE = 4 + _SIZE


#: What all of them say of memory that cannot be read.
ANSWERS = (DumpError, LookupError, ValueError, FaultError)


class Fake(NamedTuple):
    """A kernel and what reads it."""

    prog: Program
    areas: Sequence[bytearray]
    works: Sequence[Callable[[], object]]


class _Loaded:
    # A kernel whose memory changes.

    def __init__(self, fake: Fake) -> None:
        self.fake = fake
        for area in fake.areas:
            area += bytes(-len(area) % _SIZE)
        self._rows = [
            np.frombuffer(area, np.uint8).reshape(-1, _SIZE) for area in fake.areas
        ]
        self._starts = np.cumsum([0, *map(len, self._rows)])
        self._used: list[npt.NDArray[np.int64]] = []

    def seed(self) -> bytes:
        pieces = []
        for start, rows in zip(self._starts.tolist(), self._rows):
            used = np.flatnonzero(rows.any(axis=1))
            self._used.append(used)
            places = (used + start).astype("<u4").view(np.uint8).reshape(-1, 4)
            pieces.append(np.hstack([places, rows[used]]))
        return np.concatenate(pieces).tobytes()

    def load(self, data: memoryview) -> None:
        count = len(data) // _PIECE
        pieces = np.frombuffer(data, np.uint8, count * _PIECE).reshape(-1, _PIECE)
        places = np.ascontiguousarray(pieces[:, :4]).view("<u4").reshape(-1)
        places = places.astype(np.int64) % int(self._starts[-1])
        for number, rows in enumerate(self._rows):
            rows[self._used[number]] = 0
            start, end = self._starts[number : number + 2].tolist()
            here = (places >= start) & (places < end)
            self._used[number] = places[here] - start
            rows[self._used[number]] = pieces[here, 4:]


class Family:
    """Kernels that one reader reads."""

    def __init__(self, make: Callable[[], Iterable[Fake]]) -> None:
        self._make = make

    @functools.cached_property
    def _made(self) -> list[tuple[_Loaded, bytes]]:
        kernels = [_Loaded(fake) for fake in self._make()]
        return [(kernel, kernel.seed()) for kernel in kernels]

    def seeds(self) -> list[bytes]:
        return [
            struct.pack("<HH", number, work) + seed
            for number, (kernel, seed) in enumerate(self._made)
            for work in range(len(kernel.fake.works))
        ]

    def read(self, data: bytes) -> None:
        number, work = struct.unpack("<HH", data[:4].ljust(4, b"\0"))
        kernel, _ = self._made[number % len(self._made)]
        kernel.load(memoryview(data)[4:])
        kernel.fake.prog.cache.clear()
        with contextlib.redirect_stderr(io.StringIO()):
            works = kernel.fake.works
            works[work % len(works)]()


def _quick(kernel: Any) -> None:
    # Its types are made again and again; where they are does not change.
    kernel._type = functools.lru_cache(maxsize=None)(kernel._type)
    kernel.layout = functools.lru_cache(maxsize=None)(kernel.layout)


def _printed(helper: Callable[..., None], prog: Program, **options: Any) -> Any:
    return lambda: helper(prog, **options, file=io.StringIO())


def _drained(make: Callable[[], Iterable[object]], most: int = 20_000) -> Any:
    def work() -> None:
        for number, _ in enumerate(make()):
            assert number < most

    return work


def _begun(make: Callable[[], Iterable[object]], most: int = 20_000) -> Any:
    # There may be millions, and most alike.
    def work() -> None:
        for _ in itertools.islice(make(), most):
            pass

    return work


def _ring_kernels() -> Iterable[Fake]:
    for era in ("2.6.28", "2.6.31", "5.10", "7.2"):
        kernel = RingKernel(era, size=1 << 17)
        items = [Data(bytes([n]) * (4 * (n % 9 + 1)), 10) for n in range(1, 20)]
        pages = [
            PageOf([*items, Extend(1 << 20), *items], time=1000),
            PageOf([*items, Stamp(1 << 40)] if kernel.era.packed else items, time=5000),
            PageOf(items[:3], time=9000),
            PageOf(),
        ]
        kernel.cpu(0, PageOf(items[:2], read=16), pages, commit=2, entries=80)
        kernel.cpu(1, PageOf(), pages[:2], commit=1, entries=60)
        buffer = kernel.buffer

        def events(buffer: Any = buffer) -> Iterable[object]:
            return ring_buffer.for_each_ring_buffer_event(
                buffer, read=True, uncommitted=True, note=lambda _: None
            )

        def stats(buffer: Any = buffer) -> object:
            return ring_buffer.ring_buffer_stats(buffer, 0)

        yield Fake(kernel.prog, [kernel.memory], [_drained(events), stats])


def _pstore_kernels() -> Iterable[Fake]:
    for era, cpus, ecc in (
        ("6.12", 2, 0),
        ("5.10", 1, 16),
        ("4.9", 1, 0),
        ("7.2", 2, 0),
    ):
        kernel, _ = test_pstore.full(era, cpus, ecc, 24)
        _quick(kernel)
        prog = kernel.prog
        works = [
            _drained(functools.partial(pstore.for_each_pstore_zone, prog)),
            _printed(pstore.pstore_zones, prog),
            _printed(pstore.pstore_dmesg, prog),
            _printed(pstore.pstore_console, prog),
            _printed(pstore.pstore_pmsg, prog),
            _printed(pstore.pstore_ftrace, prog, last=50),
        ]
        yield Fake(prog, [kernel.memory], works)


def _leave_out_empty_classes(kernel: ZramKernel) -> None:
    # They take most of the time, one like the other.
    array = kernel.layout("struct zs_pool")[1]["size_class"][0] // 8
    size = kernel.layout("struct size_class")[0]
    for index, (_, _, merged) in enumerate(kernel.classes):
        if not kernel.zspages[merged]:
            kernel.write(kernel.pool + array + index * kernel.word, 0, kernel.word)
            kernel.poke(kernel.class_at[merged], bytes(size))


def _zram_kernels() -> Iterable[Fake]:
    for era, algorithm, platform in (
        ("6.12", "lz4", LP64),
        ("7.2", "zstd", ILP32),
        ("5.10", "lzo-rle", ILP32),
    ):
        kernel = ZramKernel(
            era, algorithms=[algorithm], frames=256, slots=6, platform=platform
        )
        _quick(kernel)
        test_zram.filled(kernel, algorithm)
        kernel.streams([b"stream" * 100])
        _leave_out_empty_classes(kernel)
        device, pool, prog = kernel.device, kernel.zs_pool, kernel.prog
        works = [
            _begun(functools.partial(zram.for_each_zram_slot, device)),
            functools.partial(zram.zram_read_many, device, 0, 6),
            _drained(functools.partial(zram.for_each_zram_stream, device)),
            _drained(functools.partial(zram.for_each_zram_orphan, device)),
            _printed(zram.zram_devices, prog),
            _drained(functools.partial(zsmalloc.for_each_zs_object, pool)),
        ]
        yield Fake(prog, [kernel.memory, kernel.memmap], works)


def _swap_kernels() -> Iterable[Fake]:
    for era in ("6.12", "5.10", "6.1", "7.2"):
        kernel = SwapKernel(era)
        _quick(kernel)
        for number in range(2):
            pfn = kernel.frame(test_swap.content(number))
            kernel.entry(START + number * PAGE, pfn << 12 | 0x67)
        for number, slot in enumerate((3, 64, 700)):
            kernel.swap_out(START + (2 + number) * PAGE, slot)
        kernel.swap_cache(3, kernel.frame(test_swap.content(9)))
        data = test_swap.lz4(64)
        pfn = kernel.frame(bytes(64) + (64).to_bytes(8, "little") + data)
        entry = {"handle": KERNEL + pfn * PAGE + 64, "length": len(data)}
        kernel.zswap({64: entry})
        task = kernel.task
        works = [
            _drained(functools.partial(swap.swap_pages, task, START, 6 * PAGE)),
            functools.partial(swap.swap_read, task, START + 9, 4 * PAGE),
            _drained(functools.partial(swap.swap_map, task)),
        ]
        yield Fake(kernel.prog, [kernel.memory], works)


def _oprofile_kernels() -> Iterable[Fake]:
    for era in ("2.6.28", "2.6.33", "5.10"):
        kernel = OprofileKernel(era)
        _quick(kernel)
        task = test_oprofile.busy(kernel)
        some = [words(test_oprofile.KERNEL_PC + i, i % 3) for i in range(12)]
        more = [words(test_oprofile.USER_PC + i, i % 3) for i in range(6)]
        head = test_oprofile.context(kernel, 1, task)
        test_oprofile.put(kernel, [*head, *some, *more])
        cookies = kernel.cookies(["/usr/bin/busy", "/lib/libc.so.6"])
        kernel.event_buffer(
            [ESCAPE, 2, 0, ESCAPE, 3, cookies[0], 0x1234, 1, ESCAPE, 4, 42, 42, 5, 6]
        )
        prog = kernel.prog
        works = [
            _drained(functools.partial(oprofile.for_each_oprofile_sample, prog)),
            functools.partial(oprofile.get_oprofile_stats, prog),
            _printed(oprofile.oprofile_event_buffer, prog, read=True),
            _printed(oprofile.oprofile_report, prog),
            _printed(oprofile.oprofile_callgraph, prog),
        ]
        yield Fake(prog, [kernel.memory], works)


def _event_kernels() -> Iterable[Fake]:
    for tracer in ("nop", "function_graph"):
        kernel = EventsKernel(tracer)
        prog = kernel.prog

        def tables(prog: Program = prog) -> None:
            events, commands = TraceEvents(prog), Commands(prog)
            assert len(events.common) <= 1024
            for number in range(12):
                events.get(number)
                commands.get(39 + number)
            commands.known()

        works = [
            tables,
            _printed(ftrace.ftrace_dump, prog),
            _drained(functools.partial(ftrace.for_each_ftrace_event, prog)),
            _drained(functools.partial(ftrace.for_each_ftrace_buffer, prog)),
        ]
        yield Fake(prog, [kernel.memory], works)


def _symbol_kernels() -> Iterable[Fake]:
    for absolute in (False, True):
        kernel = SymbolsKernel(absolute=absolute)
        _quick(kernel)

        def symbols(prog: Program = kernel.prog) -> None:
            found = KernelSymbols(prog)
            for address in (KERNEL + 0x1050, 0xFFFFFFFFC0004010, 0):
                found.find(address)
            for _ in found.all():
                pass

        yield Fake(kernel.prog, [kernel.memory], [symbols])


#: By name.
FAMILIES = {
    "ring buffer": Family(_ring_kernels),
    "pstore memory": Family(_pstore_kernels),
    "zram memory": Family(_zram_kernels),
    "swap memory": Family(_swap_kernels),
    "oprofile memory": Family(_oprofile_kernels),
    "ftrace events": Family(_event_kernels),
    "kallsyms": Family(_symbol_kernels),
}
