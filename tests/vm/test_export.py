# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files for other tools, by those tools, against the guests' own words."""

from __future__ import annotations

import collections
import contextlib
import csv
import functools
import hashlib
import io
import json
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import drgn
import pytest

from drgn_tools import zram_csv
from drgn_tools.export import function_trace, stacks
from drgn_tools.ftrace import for_each_ftrace_event, ftrace_export
from drgn_tools.ftrace_memory import Commands, TraceEvents, trace_buffers
from drgn_tools.ftrace_perfetto import Source, perfetto_trace
from drgn_tools.ftrace_text import Kernel, Printer
from drgn_tools.oprofile import (
    for_each_oprofile_sample,
    oprofile_callgraph,
    oprofile_export,
)
from drgn_tools.oprofile_text import call_chain, task_name
from drgn_tools.output import write_file
from drgn_tools.pstore import pstore_export, pstore_ftrace
from drgn_tools.pstore_records import FtraceFormat
from drgn_tools.ring_buffer import for_each_ring_buffer_event
from drgn_tools.zram import find_zram, zram_table
from tests import speedscope, test_export, trace_processor
from tests.command import drgn_tools

from . import ftrace_guests, oprofile_guests, peers, pstore_guests, zram_guests
from .ftrace_guests import KERNELS
from .oprofile_guests import MATRIX as PROFILED
from .pstore_guests import MATRIX, Spec
from .test_zram import expected, state

TRACED = [spec for spec in MATRIX if spec.writes_all]


@functools.cache
def opened(path: Path, *symbols: Path) -> drgn.Program:
    prog = drgn.Program()
    prog.set_core_dump(path)
    with contextlib.suppress(drgn.MissingDebugInfoError):
        prog.load_debug_info(symbols)
    return prog


# --- function traces of pstore

LINE = re.compile(
    r"CPU:(\d+) ts:(\d+) [0-9a-f]+  [0-9a-f]+  (\S+)(?: \[\w+\])? <- (\S+)"
)


@functools.cache
def traced(spec: Spec) -> tuple[drgn.Program, dict[int, list[tuple[str, ...]]]]:
    """A dump, and what its trace is as text, by boot: CPU, counter, names."""
    guest = pstore_guests.get(spec)
    prog = opened(guest.dump, guest.kernel.vmlinux)
    found = {}
    for boot in (0, -1):
        text = io.StringIO()
        pstore_ftrace(prog, boot=boot, file=text)
        if text.getvalue():
            matches = [LINE.match(line) for line in text.getvalue().splitlines()]
            found[boot] = [match.groups() for match in matches if match]
            assert len(found[boot]) == len(matches) > 50
    return prog, found


REPORT = re.compile(
    r" *(?:(?P<instance>[\w-]+): +)?\S+ +\[(?P<cpu>\d+)\] +(?P<time>\d+): "
    r"function: +(?P<ip>\S+) <-- (?P<parent>\S+)"
)


def report(path: Path) -> dict[str, list[tuple[str, ...]]]:
    """What trace-cmd shows, by instance: CPU, time, names."""
    argv = [*peers.argv("trace-cmd"), "report", "-i", str(path)]
    done = subprocess.run(argv, capture_output=True, check=True)
    found = collections.defaultdict(list)
    for line in done.stdout.decode().splitlines():
        if "function:" in line:
            match = REPORT.match(line)
            assert match, line
            instance, cpu, *rest = match.groups()
            found[instance or ""].append((str(int(cpu)), *rest))
    return found


@pytest.mark.verified(
    "pstore: trace.dat", by="trace-cmd report, and the text of the same trace"
)
@pytest.mark.parametrize("spec", TRACED, ids=lambda spec: spec.name)
def test_trace_cmd_shows_pstores_trace(spec: Spec, tmp_path: Path) -> None:
    prog, boots = traced(spec)
    path = tmp_path / "pstore.dat"
    pstore_export(prog, str(path), boot="all")
    found = report(path)
    newest = max(boots)
    assert len(found) == len(boots)
    for boot, lines in boots.items():
        shown = found["" if boot == newest else f"boot{boot}"]
        # It names functions, and not how far in their callers they were called.
        assert shown == [
            (cpu, counter, ip, parent.partition("+")[0])
            for cpu, counter, ip, parent in lines
        ]


@pytest.mark.verified(
    "pstore: Perfetto's trace",
    by="Perfetto's trace_processor, and the text of the same trace",
)
@pytest.mark.parametrize("spec", TRACED, ids=lambda spec: spec.name)
def test_perfetto_shows_pstores_trace(spec: Spec, tmp_path: Path) -> None:
    prog, boots = traced(spec)
    path = tmp_path / "pstore.pftrace"
    pstore_export(prog, str(path), boot="all")
    found = collections.defaultdict(list)
    for time, function, track, above, caller, _ in trace_processor.marks(path):
        cpu = track.removeprefix("CPU ")
        found[above].append((cpu, str(time // 1000), function, caller))
    assert len(found) == len(boots)
    for boot, lines in boots.items():
        assert found[f"pstore, boot {boot} (1 us = 1 record)"] == lines


@pytest.mark.verified("pstore: trace.dat", by="trace-cmd report", on="bytes")
@pytest.mark.parametrize("word", [8, 4])
@pytest.mark.parametrize("byteorder", ["little", "big"])
def test_trace_cmd_shows_what_no_guest_has(
    word: int, byteorder: str, tmp_path: Path
) -> None:
    """Machines of the other byte order and of 32 bits, names that are no names."""
    fmt = FtraceFormat(word, True, byteorder=byteorder)  # type: ignore[arg-type]
    records = test_export.records(3000, [0, 3, 300], 500, 0)
    records["ip"] &= (1 << 31) - 1
    records["parent_ip"] &= (1 << 31) - 1
    boot = test_export.boot_of(records)
    path = tmp_path / "a.dat"
    assert function_trace.write(str(path), "trace.dat", [boot], fmt) == []
    (found,) = report(path).values()
    assert [line[:2] for line in found] == [
        (str(cpu), str(counter))
        for counter, cpu in records[["counter", "cpu"]].tolist()
    ]


def test_commands_of_pstore(tmp_path: Path) -> None:
    """Of a dump, and of a copy of the region."""
    spec = next(spec for spec in TRACED if spec.vmcore)
    guest = pstore_guests.get(spec)
    (_, lines), *_ = sorted(traced(spec)[1].items(), reverse=True)
    path, other = tmp_path / "a.dat", tmp_path / "a.perfetto-trace"
    symbols = ["--symbols", str(guest.kernel.vmlinux)]
    done = drgn_tools("pstore", guest.dump, *symbols, "-o", path)
    assert done.status == 0, done.stderr
    assert [line[:3] for line in report(path)[""]] == [line[:3] for line in lines]
    region = tmp_path / "region"
    region.write_bytes(guest.live)
    done = drgn_tools("pstore", "--raw", region, *symbols, "-o", other)
    assert done.status == 0, done.stderr
    assert other.stat().st_mode & 0o777 == 0o600
    marks = trace_processor.marks(other)
    assert {mark[1] for mark in marks} == {line[2] for line in lines}
    done = drgn_tools("pstore", "--raw", region, "-o", other)
    assert done.status == 1
    assert done.stderr.endswith("exists (-f replaces it)\n")


# --- trace buffers

FUNCTION = re.compile(
    r".*\[(\d+)\] (?:\S{4,5} )? *([\d.]+): (\S+)(?: \[\w+\])? <-(\S+)"
)
CALL = re.compile(r" *(\d+)\) .*\|  *(\S+)(?: \[\w+\])?\(\)(?:;| \{)")
SWITCH = re.compile(
    r".*\[(\d+)\] (?:\S{4,5} )? *([\d.]+): sched_switch: .* next_comm=(.*) "
    r"next_pid=(\d+)"
)


def microseconds(nanoseconds: int) -> int:
    """As the trace file rounds them."""
    return (nanoseconds + 500) // 1000


@pytest.mark.verified(
    "ftrace: Perfetto's trace",
    by="Perfetto's trace_processor, and the `trace` files of the same guest",
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_perfetto_shows_trace_buffers(kernel: str, tmp_path: Path) -> None:
    guest = ftrace_guests.get(kernel)
    prog = opened(guest.dump("qemu"), *guest.kernel.debug_files())
    path = tmp_path / "ftrace.pftrace"
    ftrace_export(prog, str(path))
    errors, marks, calls, switches = trace_processor.query(
        path,
        trace_processor.ERRORS,
        trace_processor.MARKS,
        "select slice.name as name, parent.name as above, slice.depth as depth "
        "from slice join track on slice.track_id = track.id "
        "join track parent on track.parent_id = parent.id "
        "where slice.dur != 0",
        "select sched.ts as ts, ucpu, thread.name as name, tid "
        "from sched join thread using (utid) order by ts",
    )
    assert errors == []
    own = guest.trace("").splitlines()
    # Functions, by the kernel's own file.
    shown = collections.Counter(
        (track, microseconds(time), function)
        for time, function, track, above, caller, _ in marks
        if above == "ftrace" and caller
    )
    expected = collections.Counter(
        (f"CPU {int(match[1])}", int(match[2].replace(".", "")), match[3])
        for match in map(FUNCTION.match, own)
        if match and ": " not in match[3]
    )
    assert shown == expected
    assert len(expected) > 50
    # All others: as many on each track as there are events.
    for instance in guest.instances:
        of = "ftrace" if not instance else f"ftrace, instance {instance}"
        events = list(for_each_ftrace_event(prog, instance))
        name = re.compile(re.escape(of) + r"( \(1 ns = 1 of clock .*\))?")
        count = sum(1 for mark in marks if mark[3] and name.fullmatch(mark[3]))
        graph = [event for event in events if event.name.startswith("funcgraph_")]
        if not graph:
            assert count == len(events)
            texts = collections.Counter(
                (event.name, event.text.strip("\n"))
                for event in events
                if event.name != "function"
            )
            assert texts == collections.Counter(
                (mark[1], mark[5])
                for mark in marks
                if mark[5] and name.fullmatch(mark[3])
            )
    # Calls of the function graph, where the kernel has it.
    graph_file = guest.trace("graph") if "graph" in guest.instances else ""
    in_file = collections.Counter(
        match[2] for match in map(CALL.match, graph_file.splitlines()) if match
    )
    assert collections.Counter(call[0] for call in calls) == in_file
    assert (max((call[2] for call in calls), default=0) > 2) == bool(graph_file)
    # Scheduling.
    expected_switches = sorted(
        (int(match[2].replace(".", "")), int(match[1]), match[3], int(match[4]))
        for match in map(SWITCH.match, own)
        if match
    )
    names = {(tid, name) for _, _, name, tid in switches}
    assert sorted(
        (microseconds(ts), cpu, tid) for ts, cpu, _, tid in switches
    ) == sorted((ts, cpu, tid) for ts, cpu, _, tid in expected_switches)
    assert {tid for tid, _ in names} == {tid for *_, tid in expected_switches}


@pytest.mark.parametrize("kernel", KERNELS[-2:])
def test_perfetto_reads_mutated_records(kernel: str, tmp_path: Path) -> None:
    """Whatever is in a record, it is a mark, a call or its end."""
    guest = ftrace_guests.get(kernel)
    prog = opened(guest.dump("qemu"), *guest.kernel.debug_files())
    seed = random.Random(kernel)
    buffers = trace_buffers(prog)
    (graph,) = (buffer for buffer in buffers if buffer.name == "graph")
    whole = [list(for_each_ring_buffer_event(b.buffer)) for b in (buffers[0], graph)]
    records = []
    for _ in range(5000):
        record = seed.choice(seed.choice(whole))
        data = bytearray(record.data)
        for _ in range(seed.choice([1, 2, 8])):
            # Mostly of the same type.
            data[seed.randrange(seed.choice([0, 8]), len(data))] = seed.randrange(256)
        if seed.random() < 0.1:
            del data[seed.randrange(len(data)) :]
        records.append(record._replace(data=bytes(data), cpu=seed.randrange(2)))
    records.sort(key=lambda record: record.time)
    kernel_, events, commands = Kernel(prog), TraceEvents(prog), Commands(prog)
    printer = Printer(prog, buffers[0], kernel_, events, commands)
    cpus = {n: iter([r for r in records if r.cpu == n]) for n in range(2)}
    path = tmp_path / "a.pftrace"
    source = Source(buffers[0], printer, cpus)
    write_file(str(path), perfetto_trace([source]))
    errors, marks = trace_processor.query(
        path, trace_processor.ERRORS, trace_processor.MARKS
    )
    # Tasks that cannot have run are no fault of the file.
    assert {name for name, _ in errors} <= {"mismatched_sched_switch_tids"}
    known = [printer.event_of(record.data) for record in records]
    calls = sum(1 for e in known if e and e.name.startswith("funcgraph_"))
    on_cpus = sum(1 for mark in marks if mark[2].startswith("CPU "))
    # Of torn calls there are marks as well.
    assert 1000 < len(records) - calls <= on_cpus <= len(records)
    for mark in marks:
        assert all(c.isprintable() or c in "\t\n" for c in mark[5] or "")


# --- profiles


@pytest.fixture(params=PROFILED, ids=lambda spec: spec.name)
def profiled(request: pytest.FixtureRequest) -> drgn.Program:
    guest = oprofile_guests.get(request.param)
    return opened(guest.dump, *guest.kernel.debug_files())


@pytest.mark.verified(
    "oprofile: speedscope's file",
    by="what speedscope's published schema asks for",
    on="5.10",
)
def test_speedscopes_stacks(profiled: drgn.Program, tmp_path: Path) -> None:
    path = tmp_path / "a.speedscope.json"
    oprofile_export(profiled, str(path))
    (counts,) = speedscope.stacks(json.loads(path.read_text())).values()
    text = io.StringIO()
    oprofile_callgraph(profiled, folded=True, file=text)
    folded = dict(line.rsplit(" ", 1) for line in text.getvalue().splitlines())
    assert {";".join(stack): str(count) for stack, count in counts.items()} == folded
    oprofile_export(profiled, str(tmp_path / "a.folded"))
    assert (tmp_path / "a.folded").read_text() == text.getvalue()


def pprof(*arguments: str | Path) -> list[str]:
    argv = [*peers.argv("pprof"), *arguments]
    done = subprocess.run(argv, capture_output=True, check=True)
    return done.stdout.decode().splitlines()


def raw(path: Path) -> Iterator[tuple[list[int], list[str], dict[str, str]]]:
    """Values, functions (or files) and labels of samples, as pprof prints them."""
    lines = iter(pprof("-raw", path))
    samples: list[tuple[list[int], list[int], dict[str, str]]] = []
    names: dict[int, str] = {}
    for line in lines:
        if line == "Locations":
            break
        match = re.match(r" +([\d ]+): ([\d ]+)$", line)
        if match:
            values, places = (
                [int(n) for n in group.split()] for group in match.groups()
            )
            samples.append((values, places, {}))
        elif line.startswith("                ") and samples:
            name, _, value = line.strip().partition(":")
            samples[-1][2][name] = value.removeprefix("[").removesuffix("]")
    for line in lines:
        if line == "Mappings":
            break
        match = re.match(r" +(\d+): 0x[0-9a-f]+ M=(\d+) ?(\S*)", line)
        assert match, line
        names[int(match[1])] = match[3]
    for values, places, labels in samples:
        yield values, [names[place] for place in places], labels


@pytest.mark.verified("oprofile: pprof's file", by="go tool pprof", on="5.10")
def test_pprof_reads_it(profiled: drgn.Program, tmp_path: Path) -> None:
    path = tmp_path / "a.pb.gz"
    oprofile_export(profiled, str(path))
    samples = list(for_each_oprofile_sample(profiled))
    top = pprof("-top", "-nodecount=100000", "-nodefraction=0", path)
    assert "Type: event0" in top
    (total,) = (line for line in top if line.startswith("Showing nodes"))
    assert total.endswith(f" of {len(samples)} total")
    flat = collections.Counter(s.place.symbol for s in samples if s.place.symbol)
    shown = {
        line.split()[5]: int(line.split()[0])
        for line in top
        if re.match(r" +\d+ .*%", line) and not line.split()[5].startswith("[")
    }
    assert {name: count for name, count in shown.items() if count} == flat
    # Each stack, with its task.
    found: collections.Counter[tuple[str, ...]] = collections.Counter()
    for (value,), names, labels in raw(path):
        found[(labels["task"], *names)] += value
    assert found == collections.Counter(
        (task_name(sample), *(place.symbol for place in call_chain(sample)))
        for sample in samples
    )


@pytest.mark.verified("oprofile: pprof's file", by="go tool pprof", on="bytes")
def test_pprof_reads_what_no_guest_has(tmp_path: Path) -> None:
    """Several events, and names that are no names."""
    samples = test_export.profile()
    path = tmp_path / "a.pb.gz"
    path.write_bytes(b"".join(stacks.pprof(stacks.count_stacks(samples))))
    sums = [0, 0, 0]
    for values, _, _ in raw(path):
        sums = [a + b for a, b in zip(sums, values)]
    plain = [sample for sample in samples if sample.kind == "sample"]
    events = collections.Counter(sample.event for sample in plain)
    assert sums == [events[0], events[1], len(samples) - len(plain)]


def test_the_command_of_oprofile(tmp_path: Path) -> None:
    guest = oprofile_guests.get(PROFILED[0])
    symbols = [
        f"--symbols={path}"
        for path in guest.kernel.debug_files()
        if path.stem in ("vmlinux", "oprofile")
    ]
    for ending in (".folded", ".speedscope.json", ".pb.gz"):
        path = tmp_path / f"a{ending}"
        done = drgn_tools("oprofile", guest.dump, *symbols, "-o", path)
        assert done.status == 0, done.stderr
        assert not done.stdout
        assert path.stat().st_size > 100


# --- tables of zram


@pytest.mark.verified(
    "zram: tables (`-o`)",
    by="pyarrow, block_state of the same guest, and what it wrote, page by page",
)
@pytest.mark.parametrize(
    "spec",
    [spec for spec in zram_guests.MATRIX if spec.devices],
    ids=lambda spec: spec.name,
)
def test_tables_of_zram(spec: zram_guests.Spec, tmp_path: Path) -> None:
    guest = zram_guests.get(spec)
    prog = opened(guest.dump("qemu"), *guest.kernel.debug_files())
    for number in range(len(spec.devices)):
        device = find_zram(prog, f"zram{number}")
        path, pages = tmp_path / f"{number}.csv", tmp_path / f"{number}.pages.csv"
        zram_table(device, str(path))
        # The kernel's own file: times and flags.
        said = guest.facts()[f"zram{number}/block_state"].decode().splitlines()
        shown = []
        for row in test_export.typed(path).to_pylist():
            if row["kind"] == "empty":
                continue
            # The kernel has 0 where nobody has accessed it since.
            seconds, rest = divmod(row["ac_time_ns"] or 0, 10**9)
            flags = zram_csv.SLOTS[7:13]
            letters = "".join(
                letter if row[flag] else "."
                for letter, flag in zip("swhirn", flags)
                if row[flag] is not None
            )
            shown.append(
                f"{row['index']:12d} {seconds:12d}.{rest // 1000:06d} {letters}"
            )
        assert shown == said
        # What the guest had written.
        zram_table(device, str(pages))
        with pages.open(newline="") as file:
            rows = list(csv.DictReader(file))
        flags_of = state(guest, number)
        for row, data in zip(rows, expected(number)):
            there = "w" not in flags_of.get(int(row["index"]), "")
            assert bool(row["sha256"]) == there
            if there:
                assert row["sha256"] == hashlib.sha256(data).hexdigest()
            else:
                assert row["note"].startswith("written back to ")
