# SPDX-License-Identifier: LGPL-2.1-or-later
"""Samples of oprofile in dumps, against what the kernel said and handed over."""

from __future__ import annotations

import collections
import functools
import io
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import drgn
import pytest
from drgn import FindObjectFlags, Program

from drgn_tools import oprofile
from drgn_tools.oprofile import OprofileSample
from drgn_tools.oprofile_memory import read_event_buffer
from drgn_tools.oprofile_records import (
    KERNEL,
    Format,
    SyncedSample,
    decode_event_buffer,
    synced_samples,
)
from drgn_tools.ring_buffer import ring_buffer_stats

from . import kernels, live_drgn, oprofile_guests, oprofile_seen, qemu
from .oprofile_guests import MATRIX, Guest, Spec

PROGRAM = "/bin/oprofile"
ESCAPE = (1 << 64) - 1
# On x86-64 modules are loaded from here on or higher, and the kernel is below.
_MODULES = 0xFFFFFFFFA0000000


class Case(NamedTuple):
    """A dump, opened."""

    guest: Guest
    kind: str
    """qemu, vmcore; with -d31, what extract made of it."""
    prog: Program
    path: Path

    @property
    def spec(self) -> Spec:
        return self.guest.spec

    @property
    def stats(self) -> dict[str, int]:
        """What the guest said just before the dump."""
        return self.guest.stats(self.kind.partition("-")[0])


CASES = [
    (spec, kind)
    for spec in MATRIX
    for kind in ("qemu", "vmcore", "vmcore-d31")
    if kind == "qemu" or spec.vmcore
]
STARVED = [(spec, kind) for spec, kind in CASES if spec.starve]
READ = [(spec, kind) for spec, kind in CASES if not spec.starve]
TRACED = [(spec, kind) for spec, kind in CASES if spec.depth]


def named(case: tuple[Spec, str]) -> str:
    return f"{case[0].name}-{case[1]}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("oprofile")


@pytest.fixture(scope="module")
def sysroot(folder: Path) -> str:
    """The guest's programs, as far as they matter."""
    root = folder / "sysroot"
    (root / "bin").mkdir(parents=True)
    guest = oprofile_guests.get(MATRIX[0])
    shutil.copy(guest.program, root / PROGRAM.lstrip("/"))
    return str(root)


@functools.cache
def opened(spec: Spec, kind: str, folder: Path) -> Case:
    guest = oprofile_guests.get(spec)
    path = guest.dump if kind == "qemu" else guest.vmcore
    if kind.endswith("-d31"):
        whole, path = path, folder / named((spec, kind))
        argv = [sys.executable, "-m", "drgn_tools", "extract", "-d", "31"]
        subprocess.run([*argv, str(whole), str(path)], check=True)
        assert path.stat().st_size < whole.stat().st_size / 2
    prog = drgn.Program()
    prog.set_core_dump(path)
    prog.load_debug_info(guest.kernel.debug_files())
    return Case(guest, kind, prog, path)


@pytest.fixture(params=CASES, ids=named)
def case(request: pytest.FixtureRequest, folder: Path) -> Case:
    return opened(*request.param, folder)


@pytest.fixture(params=STARVED, ids=named)
def starved(request: pytest.FixtureRequest, folder: Path) -> Case:
    return opened(*request.param, folder)


@pytest.fixture(params=READ, ids=named)
def readable(request: pytest.FixtureRequest, folder: Path) -> Case:
    return opened(*request.param, folder)


@pytest.fixture(params=TRACED, ids=named)
def traced(request: pytest.FixtureRequest, folder: Path) -> Case:
    return opened(*request.param, folder)


def unsynced(case: Case, sysroot: str | None = None) -> list[OprofileSample]:
    return list(
        oprofile.for_each_oprofile_sample(case.prog, source="cpu", sysroot=sysroot)
    )


def synced(case: Case, sysroot: str | None = None) -> list[OprofileSample]:
    return list(
        oprofile.for_each_oprofile_sample(
            case.prog, source="event_buffer", sysroot=sysroot
        )
    )


# --- how many


@pytest.mark.verified(
    "oprofile: statistics", by="/dev/oprofile/stats of the same guest", on="5.10"
)
def test_statistics_are_the_kernels(case: Case) -> None:
    text = io.StringIO()
    oprofile.oprofile_stats(case.prog, file=text)
    lines = dict(line.split() for line in text.getvalue().splitlines())
    stats = {
        name.partition("/")[2]: int(value)
        for name, value in lines.items()
        if name.startswith("stats/")
    }
    # It has no file for this one where counters do not take turns.
    assert stats.pop("multiplex_counter") == 0
    assert stats == case.stats
    assert lines["cpu_type"] == "timer"
    assert lines["enable"] == "0"
    assert int(lines["cpu_buffer_size"]) == case.spec.buffer
    assert int(lines["backtrace_depth"]) == case.spec.depth


def daemons(case: Case) -> list[SyncedSample]:
    """What the guest's daemon had been given of what is counted."""
    # Counters start again when the sampling does, after QEMU's dump.
    reads = case.guest.reads
    return [
        sample
        for content in (reads[:1] if case.kind == "qemu" else reads[2:])
        for sample in pieced(content)
    ]


def pieced(content: bytes) -> Iterator[SyncedSample]:
    return synced_samples(decode_event_buffer(whole(content), Format()), Format())


def whole(content: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(content) // 8}Q", content)


@pytest.mark.verified(
    "oprofile: samples in the CPUs' buffers",
    by="/dev/oprofile/stats of the same guest",
    on="5.10",
)
def test_no_sample_is_missing(case: Case) -> None:
    """Of each CPU, received are those lost, those gone on, and those still here."""
    stats = case.stats
    here = collections.Counter(sample.cpu for sample in unsynced(case))
    gone = collections.Counter(sample.cpu for sample in synced(case))
    if not case.spec.starve:
        gone += collections.Counter(sample.cpu for sample in daemons(case))
    # Which the kernel counts for all CPUs together.
    unresolved = stats["sample_lost_no_mm"] + stats["sample_lost_no_mapping"]
    missing = 0
    for cpu in range(case.spec.smp):
        received, overflow, invalid = (
            stats[f"cpu{cpu}/sample_{name}"]
            for name in ("received", "lost_overflow", "invalid_eip")
        )
        left = received - overflow - invalid - here[cpu] - gone[cpu]
        assert left >= 0
        missing += left
    # Of the CPU on which a task exited, they may all have gone on.
    assert bool(+here) == bool(case.spec.starve)
    # Of a trace, callers may be without mapping as well.
    assert missing <= unresolved if case.spec.depth else missing == unresolved
    assert not stats["event_lost_overflow"]


@pytest.mark.verified(
    "oprofile: samples in the CPUs' buffers",
    by="the ring buffer's own counters",
    on="5.10",
)
def test_the_ring_buffer_promises_as_many(starved: Case) -> None:
    """Its own counters know nothing of oprofile's."""
    ring = starved.prog.object(
        "op_ring_buffer", FindObjectFlags.VARIABLE, "cpu_buffer.c"
    )
    for cpu in range(starved.spec.smp):
        counters = ring_buffer_stats(ring, cpu)
        lost = starved.stats[f"cpu{cpu}/sample_lost_overflow"]
        full = starved.spec.buffer < 1000
        # Of two records that one sample takes, either may find no room.
        assert (counters.dropped_events >= lost > 0) if full else not lost
        if full:
            # Every page has been used more than once.
            room = (counters.nr_pages + 1) * counters.subbuf_size
            assert counters.entries_bytes > room
            assert counters.read_bytes > counters.subbuf_size
        samples = [s for s in unsynced(starved) if s.cpu == cpu]
        records = sum(1 + len(sample.trace) for sample in samples)
        assert records <= counters.unread <= 2 * records


def test_times_go_forward(starved: Case) -> None:
    times = [sample.time for sample in unsynced(starved)]
    assert None not in times
    assert times == sorted(times, key=lambda time: time or 0)
    assert {sample.state for sample in unsynced(starved)} == {"unread"}
    assert not any(sample.note for sample in unsynced(starved))


# --- of what


@pytest.mark.verified(
    "oprofile: tasks, places and functions of samples",
    by="programs that are busy where is known",
    on="5.10",
)
def test_tasks_are_those_that_were_busy(starved: Case) -> None:
    found = {(s.pid, s.cpu): s.comm for s in unsynced(starved)}
    # When a task exits, what its CPU has goes on; and without a name.
    gone = {(s.pid, s.cpu): "" for s in synced(starved)}
    for name, pid, cpu in starved.guest.tasks:
        assert {**gone, **found}[pid, cpu] in (f"op-{name}", "")
    assert {f"op-{name}" for name, _, _ in starved.guest.tasks} <= {*found.values()}
    programs = {s.program for s in unsynced(starved) if s.comm.startswith("op-")}
    # An exited task has none.
    assert programs == {PROGRAM, ""}


def of_task(
    case: Case, name: str, sysroot: str
) -> collections.Counter[tuple[str, str]]:
    """Images and symbols of those that were busy in one way."""
    return collections.Counter(
        (s.place.image, s.place.symbol)
        for s in unsynced(case, sysroot)
        if s.comm == f"op-{name}"
    )


@pytest.mark.verified(
    "oprofile: tasks, places and functions of samples",
    by="programs that are busy where is known",
    on="5.10",
)
def test_each_is_where_it_was_busy(starved: Case, sysroot: str) -> None:
    def mostly(name: str, image: str, symbol: str, least: float) -> None:
        counts = of_task(starved, name, sysroot)
        assert counts[image, symbol] > least * sum(counts.values()), counts

    mostly("user", PROGRAM, "busy_in_user", 0.8)
    mostly("kernel", "vmlinux", "__clear_user", 0.8)
    mostly("anon", "[anon]", "", 0.7)
    mostly("vdso", "[vdso]", "", 0.5)
    modules = of_task(starved, "module", sysroot)
    assert modules["lz4hc_compress.ko", "LZ4HC_compress_generic"] > 5


def test_exited_tasks_leave_their_names(starved: Case) -> None:
    ((_, pid, cpu),) = [t for t in starved.guest.tasks if t[0] == "exited"]
    left = [s for s in unsynced(starved) if s.pid == pid and s.mode == "user"]
    assert {s.place.image for s in left} == {"[exited]"}
    # On the CPU that it left before it exited.
    assert {s.cpu for s in left} == {cpu}
    assert {s.comm for s in left} == {"op-exited"}


@pytest.mark.verified(
    "oprofile: tasks, places and functions of samples", by="nm", on="5.10"
)
def test_offsets_are_of_the_file(starved: Case, sysroot: str) -> None:
    """nm knows where the function is; what is not in a file has no offset."""
    said = subprocess.run(
        ["nm", "-S", str(starved.guest.program)], capture_output=True, text=True
    )
    rows = [line.split() for line in said.stdout.splitlines()]
    ((start, size),) = [
        (int(row[0], 16), int(row[1], 16)) for row in rows if row[-1] == "busy_in_user"
    ]
    busy = [s for s in unsynced(starved, sysroot) if s.place.symbol == "busy_in_user"]
    assert busy
    for sample in busy:
        assert start <= sample.place.address < start + size
        assert sample.place.symbol_offset == sample.place.address - start
        # That it is linked at, no matter where KASLR put the kernel.
        assert sample.place.offset == sample.place.address - 0x400000
    anonymous = [s.place for s in unsynced(starved) if s.place.image == "[anon]"]
    assert {place.offset for place in anonymous} == {None}


@pytest.mark.verified(
    "oprofile: report", by="programs that are busy where is known", on="5.10"
)
def test_known_functions_dominate_the_report(starved: Case, sysroot: str) -> None:
    text = io.StringIO()
    oprofile.oprofile_report(starved.prog, source="cpu", sysroot=sysroot, file=text)
    head, first, second, *_ = [line.split() for line in text.getvalue().splitlines()]
    assert head == ["samples", "%", "image", "symbol"]
    assert {tuple(first[2:]), tuple(second[2:])} == {
        (PROGRAM, "busy_in_user"),
        ("vmlinux", "__clear_user"),
    }
    assert float(first[1]) + float(second[1]) > 40


@pytest.mark.verified(
    "oprofile: tasks, places and functions of samples", by="drgn's symbols", on="5.10"
)
def test_kernel_symbols_are_drgns(starved: Case) -> None:
    for sample in unsynced(starved)[::10]:
        if sample.place.image == "vmlinux":
            symbol = starved.prog.symbol(sample.place.address)
            assert symbol.address == sample.place.address - sample.place.symbol_offset


# --- call chains

IN_USER = ["busy_in_user", "calls_busy_in_user", "in_user"]
IN_KERNEL = ["__clear_user", "__clear_user", "read_zero", "vfs_read", "ksys_read"]


@pytest.mark.verified(
    "oprofile: call chains", by="programs that are busy where is known", on="5.10"
)
def test_callers_are_found(traced: Case, sysroot: str) -> None:
    """Frame pointers lead from one known function to the next."""
    samples = unsynced(traced, sysroot) or synced(traced, sysroot)

    def chains(first: str, length: int) -> list[list[str]]:
        return [
            [p.symbol for p in (s.place, *s.trace)][:length]
            for s in samples
            if s.place.symbol == first and s.trace
        ]

    users = chains("busy_in_user", 3)
    assert users and users.count(IN_USER) > 0.9 * len(users)
    if traced.spec.starve:
        kernels = chains("__clear_user", 5)
        assert kernels and kernels.count(IN_KERNEL) > 0.9 * len(kernels)
    else:
        idle = chains("native_safe_halt", 9)
        assert idle and sum("do_idle" in chain for chain in idle) > 0.9 * len(idle)
    assert max(len(s.trace) for s in samples) >= 7


@pytest.mark.verified(
    "oprofile: call chains", by="programs that are busy where is known", on="5.10"
)
def test_callgraph_has_them(traced: Case, sysroot: str) -> None:
    def printed(folded: bool) -> list[str]:
        text = io.StringIO()
        oprofile.oprofile_callgraph(
            traced.prog, folded=folded, sysroot=sysroot, file=text
        )
        return text.getvalue().splitlines()

    total = len(unsynced(traced)) + len(synced(traced))
    chains = printed(True)
    assert sum(int(line.rsplit(" ", 1)[1]) for line in chains) == total
    assert any("in_user;calls_busy_in_user;busy_in_user" in line for line in chains)
    lines = printed(False)
    (at,) = [
        i
        for i, line in enumerate(lines)
        if " busy_in_user (" in line and "self" in line
    ]
    assert "calls_busy_in_user" in lines[at - 1]


# --- the event buffer


@pytest.mark.verified(
    "oprofile: the event buffer",
    by="what read(2) of it returned in the same guest",
    on="5.10",
)
def test_event_buffer_is_what_read_returns(readable: Case) -> None:
    """The same words, and so the same pieces."""
    notes: list[str] = []
    memory = read_event_buffer(readable.prog, notes.append)
    assert not notes
    if readable.kind == "qemu":
        # Read just afterwards: only that workers came by is new.
        read = whole(readable.guest.reads[1])
        count = len(memory.words)
        assert memory.words == read[:count]
        more = read[count:]
        assert more[::3] == (ESCAPE,) * (len(more) // 3) and set(more[1::3]) <= {2}
        kinds = [e.kind for e in decode_event_buffer(memory.words, Format())]
        assert "module_loaded" in kinds and kinds.count("sample") > 50
        return
    # Read just before: what has not been overwritten since is still there.
    read = whole(readable.guest.reads[3])
    count = len(memory.words)
    assert set(memory.words[1::3]) <= {2}
    assert memory.rest[: len(read) - count] == read[count:]
    assert len(read) - count > 500


@pytest.mark.verified(
    "oprofile: the event buffer",
    by="what read(2) of it returned in the same guest",
    on="5.10",
)
def test_event_buffer_prints_the_same(readable: Case) -> None:
    text = io.StringIO()
    oprofile.oprofile_event_buffer(readable.prog, read=True, file=text)
    lines = text.getvalue().splitlines()
    reads = readable.guest.reads[1 if readable.kind == "qemu" else 3]
    pieces = list(decode_event_buffer(whole(reads), Format()))
    offsets = {hex(p.values[0]) for p in pieces if p.kind == "sample"}
    shown = {
        word[7:]
        for line in lines
        for word in line.split()
        if word.startswith("offset=")
    }
    # Some of it may be gone, and some of earlier reads be behind it.
    assert len(offsets & shown) > 0.9 * len(offsets)
    paths = {
        word[10:]
        for line in lines
        for word in line.split()
        if word.startswith("exec_path=")
    }
    assert PROGRAM in paths and "[unknown]" not in paths


def test_synced_samples_have_names(starved: Case, sysroot: str) -> None:
    """What workers had taken from the CPUs' buffers before there were no workers."""
    counts = collections.Counter(
        (s.place.image, s.place.symbol) for s in synced(starved, sysroot)
    )
    assert counts[PROGRAM, "busy_in_user"] > 10
    assert counts["vmlinux", "__clear_user"] > 10
    assert counts["lz4hc_compress.ko", "LZ4HC_compress_generic"] > 0
    assert {s.state for s in synced(starved)} == {"synced"}


@pytest.mark.verified(
    "oprofile: samples that were read",
    by="what read(2) of it returned in the same guest",
    on="5.10",
)
def test_what_was_read_is_still_there(readable: Case) -> None:
    """In the CPUs' buffers: of all that was synced, as far as it is not overwritten."""
    assert not unsynced(readable)
    left = list(
        oprofile.for_each_oprofile_sample(readable.prog, source="cpu", read=True)
    )
    assert left and {s.state for s in left} == {"read"}
    kernel = {s.place.address for s in left if s.mode == "kernel"}
    gone = synced(readable)
    handed = {s.place.address for s in gone if s.mode == "kernel"}
    # Those of earlier reads are behind them.
    reads = readable.guest.reads
    for content in reads[:1] if readable.kind == "qemu" else reads:
        handed |= {s.offset for s in pieced(content) if s.mode == KERNEL}
    assert kernel and len(kernel & handed) > 0.9 * len(kernel)


# --- by the command


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "drgn_tools", "oprofile", *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, text=True)


COMMANDS = [(MATRIX[0], "qemu"), (MATRIX[3], "vmcore-d31")]


@pytest.fixture(params=COMMANDS, ids=named)
def commanded(request: pytest.FixtureRequest, folder: Path) -> Case:
    return opened(*request.param, folder)


def symbols(case: Case) -> list[object]:
    kernel = case.guest.kernel
    files = (kernel.vmlinux, kernel.module_debug("oprofile"))
    return [word for file in files for word in ("--symbols", file)]


def test_command(commanded: Case, sysroot: str) -> None:
    options = ["--sysroot", sysroot, "--callgraph", "--samples"]
    done = command(commanded.path, *symbols(commanded), *options)
    assert done.returncode == 0, done.stderr
    total = len(unsynced(commanded)) + len(synced(commanded))
    assert done.stdout.count("\n") > total
    assert (
        f"stats/cpu0/sample_received {commanded.stats['cpu0/sample_received']}\n"
        in done.stdout
    )
    if commanded.kind == "qemu":
        assert "busy_in_user" in done.stdout


def test_command_json(commanded: Case, sysroot: str) -> None:
    done = command(commanded.path, *symbols(commanded), "--json", "--by", "mode,image")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    samples = synced(commanded) + unsynced(commanded)
    assert [s["place"]["address"] for s in said["samples"]] == [
        s.place.address for s in samples
    ]
    assert sum(row["samples"] for row in said["report"]) == len(samples)
    assert said["notes"] == []
    assert (
        said["stats"]["stats"]["cpu0/sample_received"]
        == (commanded.stats["cpu0/sample_received"])
    )


def test_names_in_drgn(commanded: Case) -> None:
    """In drgn -e, and as commands."""
    kernel = commanded.guest.kernel
    code = (
        "oprofile_report(by='mode')\n"
        "from drgn.commands import run_command\n"
        "run_command(prog, 'oprofile_report --by mode --source all')\n"
        "run_command(prog, 'oprofile_stats')\n"
        "run_command(prog, 'oprofile_samples --cpu 1 --read')\n"
        "run_command(prog, 'oprofile_callgraph --folded')\n"
        "run_command(prog, 'oprofile_event_buffer --read')\n"
    )
    argv = [sys.executable, "-m", "drgn", "-q", "-c", commanded.path, "-e", code]
    for file in (kernel.vmlinux, kernel.module_debug("oprofile")):
        argv += ["-s", file]
    done = subprocess.run(
        list(map(str, argv)),
        capture_output=True,
        text=True,
        env={**os.environ, "DRGN_PLUGINS": "drgn_tools=drgn_tools._plugin"},
    )
    assert done.returncode == 0, done.stderr
    report = io.StringIO()
    oprofile.oprofile_report(commanded.prog, by="mode", file=report)
    assert done.stdout.startswith(2 * report.getvalue() + "cpu_type timer\n")
    events = io.StringIO()
    oprofile.oprofile_event_buffer(commanded.prog, read=True, file=events)
    assert done.stdout.endswith(events.getvalue())


def test_without_symbols_it_says_so(folder: Path) -> None:
    """One line; of the module's symbols, if only those are missing."""
    case = opened(MATRIX[0], "qemu", folder)
    done = command(case.path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("drgn-tools: ") and done.stderr.count("\n") == 1
    done = command(case.path, "--symbols", case.guest.kernel.vmlinux)
    assert (done.returncode, done.stdout) == (1, "")
    assert "oprofile.ko" in done.stderr and done.stderr.count("\n") == 1


# --- and on a running kernel, through /proc/kcore


@pytest.mark.verified(
    "oprofile: the running kernel",
    by="what read(2) of it returned in the same guest",
    on="5.10",
)
def test_live_is_what_read_returns(tmp_path: Path) -> None:
    """Looking takes nothing away: read(2) returns afterwards what was seen."""
    spec = next(spec for spec in MATRIX if spec.name == "read")
    kernel = kernels.get(oprofile_guests.KERNEL)
    symbols = f"{live_drgn.HERE}/oprofile.ko"
    ours = {symbols: kernel.module_debug("oprofile")}
    with oprofile_guests.booted(
        spec._replace(kaslr=False),
        kernel,
        disks=[qemu.Disk(live_drgn.image(kernel), "live")],
        files={**live_drgn.files(), **ours},
        memory_mib=live_drgn.MEMORY_MIB,
        folder=tmp_path,
    ) as vm:
        live_drgn.mount(vm)
        stats = oprofile_guests.stop(vm, tmp_path, 0)
        source = Path(oprofile_seen.__file__).read_text()
        done = live_drgn.run(vm, source, symbols=[symbols], seconds=600)
        oprofile_guests.read(vm, tmp_path, 1)
    assert done.status == 0, done.stderr.decode()
    seen = json.loads(done.stdout)
    lines = dict(line.split() for line in seen["stats"])
    assert {name: int(lines[f"stats/{name}"]) for name in stats} == stats
    read = (tmp_path / "read-1").read_bytes()
    pieces = list(decode_event_buffer(whole(read), Format()))
    samples = [p for p in pieces if p.kind == "sample"]
    assert len(samples) > 50
    assert [line.split()[:3] for line in seen["pieces"] if " sample " in line] == [
        [str(p.position), "sample", f"offset={p.values[0]:#x}"] for p in samples
    ]
    handed = {s.offset for s in pieced((tmp_path / "read-0").read_bytes() + read)}
    kernel_side = [row for row in seen["read"] if row[0] == "kernel"]
    assert len(kernel_side) > 10
    assert sum(row[1] in handed for row in kernel_side) > 0.9 * len(kernel_side)
    # Of other modules than oprofile's, that guest has no symbols.
    unnamed = [address for _, address, symbol in kernel_side if not symbol]
    assert len(unnamed) < 0.2 * len(kernel_side)
    assert all(address >= _MODULES for address in unnamed), [*map(hex, unnamed)]
