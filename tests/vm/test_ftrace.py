# SPDX-License-Identifier: LGPL-2.1-or-later
"""Trace buffers in dumps, against the guests' own trace files."""

from __future__ import annotations

import collections
import contextlib
import functools
import io
import random
import re
import subprocess
import sys
from pathlib import Path

import drgn
import pytest

from drgn_tools.export.trace_dat import event_format
from drgn_tools.ftrace import (
    for_each_ftrace_buffer,
    for_each_ftrace_event,
    ftrace_dump,
    ftrace_export,
)
from drgn_tools.ftrace_memory import Commands, TraceEvents, trace_buffers
from drgn_tools.ftrace_text import Kernel, Printer
from drgn_tools.ring_buffer import for_each_ring_buffer_event
from tests import command

from . import ftrace_guests, kernels, live_drgn, peers, qemu, zram_guests
from .ftrace_guests import KERNELS, Guest

KINDS = ("qemu", "vmcore", "d31")

CASES = [(kernel, kind) for kernel in KERNELS for kind in KINDS]


@functools.cache
def guest(kernel: str) -> Guest:
    return ftrace_guests.get(kernel)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ftrace")


def dump(kernel: str, kind: str, folder: Path) -> Path:
    """Return a dump; that without what is no kernel's is made here."""
    if kind != "d31":
        return guest(kernel).dump(kind)
    path = folder / f"{kernel}.kdump"
    if not path.exists():
        vmcore = guest(kernel).dump("vmcore")
        argv = [sys.executable, "-m", "drgn_tools", "extract", "-d", "31", "-l"]
        subprocess.run([*argv, vmcore, path], check=True, capture_output=True)
    return path


@functools.cache
def opened(path: Path, kernel: str) -> drgn.Program:
    prog = drgn.Program()
    prog.set_core_dump(path)
    with contextlib.suppress(drgn.MissingDebugInfoError):
        prog.load_debug_info(guest(kernel).kernel.debug_files())
    return prog


@pytest.fixture(params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest, folder: Path) -> tuple[Guest, drgn.Program]:
    kernel, kind = request.param
    return guest(kernel), opened(dump(kernel, kind, folder), kernel)


def printed(prog: drgn.Program, instance: str | None) -> str:
    out = io.StringIO()
    ftrace_dump(prog, instance, file=out)
    return out.getvalue()


# --- as the trace file


@pytest.mark.verified(
    "ftrace: the text, line by line", by="the `trace` files of the same guest"
)
def test_it_is_the_trace_file(
    case: tuple[Guest, drgn.Program], capsys: pytest.CaptureFixture[str]
) -> None:
    guest, prog = case
    for instance in guest.instances:
        assert (
            printed(prog, instance).splitlines() == guest.trace(instance).splitlines()
        )
    # Nothing was missing, torn or not understood.
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kernel", KERNELS[:1])
def test_all_buffers_are_printed(kernel: str, folder: Path) -> None:
    prog = opened(dump(kernel, "qemu", folder), kernel)
    first, *others = printed(prog, None).split("\n== instance ")
    assert first == guest(kernel).trace("")
    found = dict(other.split("\n", 1) for other in others)
    assert sorted(found) == [name for name in guest(kernel).instances if name]
    for name, text in found.items():
        assert text == guest(kernel).trace(name)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_guests_did_what_they_should(kernel: str) -> None:
    """So that what is compared covers what it should."""
    trace = {name: guest(kernel).trace(name) for name in guest(kernel).instances}
    own = trace[""]
    for expected in (
        r": vfs_read <-ksys_read",
        r": sched_switch: prev_comm=",
        r": sys_openat\(dfd: ",
        r": sys_openat -> 0x",
        r": tracing_mark_write: round 1 of 6",
        r"# 1 buf: 72 61 77",
        r": probe: \(do_sys_openat2\+0x0/0x[0-9a-f]+\) dfd=-100 name=\"/proc/self/",
        r": returned: \(.* <- do_sys_openat2\) ret=3",
        r": array: \(vfs_read\+0x[04]/0x[0-9a-f]+\) bytes=\{0x",
        r"<stack trace>\n => ",
        r": with_format: 1 then -1099511627776 and 2 18446744073709551615\n",
        r": with_pointers: with_pointers \[trace_printk\] with_pointers\+0x0/",
        r": with_text: a constant\n",
        # The size that is said is not what 7.2 goes by.
        r": with_text: cut?\n",
        r": with_any_format: 1 two 3\n",
        r": without_end: 1 without an end +insmod-",
    ):
        assert re.search(expected, own), expected
    assert re.search(r"CPU \d buffer started", trace["wrapped"])
    entries = r"entries-in-buffer/entries-written: (\d+)/(\d+)"
    match = re.search(entries, trace["wrapped"])
    assert match
    assert int(match[1]) < int(match[2])
    assert re.search(r"\+0x[0-9a-f]+/0x[0-9a-f]+ <[0-9a-f]{16}> <-", trace["options"])
    # Time stamp counters, not seconds.
    assert re.search(r"\] \S{4,5} +\d{7,}: ", trace["clock"])
    assert ("persistent" in trace) == ("large" in trace) == (kernel in ("6.12", "7.2"))


@pytest.mark.verified("ftrace: records that were read", by="the buffer's own counters")
@pytest.mark.parametrize("kernel", KERNELS)
def test_some_was_read(kernel: str, folder: Path) -> None:
    """What trace_pipe took is still there, and comes only when asked for."""
    prog = opened(dump(kernel, "qemu", folder), kernel)
    (buffer,) = (b for b in for_each_ftrace_buffer(prog) if b.instance == "read")
    events = list(for_each_ftrace_event(prog, "read", read=True))
    states = collections.Counter(event.state for event in events)
    assert states["unread"] == buffer.unread > 0
    # Each that was read is in a page that nobody has written to since.
    assert states["read"] >= min(buffer.read, 40) > 0
    before = [event for event in events if event.state == "read" and event.name]
    assert before


@pytest.mark.verified(
    "ftrace: formats of events", by="the `format` files of the same guest"
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_formats_are_those_of_tracefs(kernel: str, folder: Path) -> None:
    events = TraceEvents(opened(dump(kernel, "qemu", folder), kernel))
    formats = guest(kernel).formats
    assert len(formats) > 50
    for name, text in formats.items():
        match = re.search(r"^ID: (\d+)$", text, re.MULTILINE)
        assert match
        event = events.get(int(match[1]))
        assert event
        assert f"{event.system}/{event.name}" == name
        assert event_format(event, events.common) == text


@pytest.mark.parametrize("kernel", KERNELS)
def test_mutated_records(kernel: str, folder: Path) -> None:
    """Whatever is in a record, it makes a line."""
    prog = opened(dump(kernel, "qemu", folder), kernel)
    seed = random.Random(kernel)
    own, *_ = trace_buffers(prog)
    printer = Printer(prog, own, Kernel(prog), TraceEvents(prog), Commands(prog))
    whole = list(for_each_ring_buffer_event(own.buffer))
    events = []
    for _ in range(10_000):
        event = seed.choice(whole)
        data = bytearray(event.data)
        for _ in range(seed.choice([1, 2, 8])):
            # Mostly of the same type.
            data[seed.randrange(seed.choice([0, 8]), len(data))] = seed.randrange(256)
        if seed.random() < 0.1:
            del data[seed.randrange(len(data)) :]
        events.append(event._replace(data=bytes(data)))
    lines = list(printer.lines(iter(events)))
    assert len(lines) == len(events)
    for line in lines:
        assert len(line) < 1 << 17
        assert all(c.isprintable() or c in "\t\n" for c in line)


# --- trace.dat

LINE = re.compile(
    r" *(?:(?P<instance>\w+): )? *(?P<task>\S.*?-\d+) +\[(?P<cpu>\d+)\] "
    r"(?:\S{4,5} )? *(?P<time>[\d.]+): (?P<what>.*)"
)

# A line that the next one continues.
UNENDED = ": 1 without an end"


def events_of(text: str) -> list[tuple[str, str, str, str]]:
    """Task, CPU, time and event of each line of a trace file."""
    found = []
    for line in text.replace(UNENDED, f"{UNENDED}\n").splitlines():
        match = LINE.match(line)
        if match:
            task = match["task"].replace(" ", "")
            name = name_of(match["what"])
            found.append((task, match["cpu"], match["time"], name))
    return found


def name_of(what: str) -> str:
    """What trace-cmd calls the event of a trace file's line."""
    for pattern, name in (
        (r"sys_(\w+)\(", "sys_enter_"),
        (r"sys_(\w+) -> ", "sys_exit_"),
    ):
        match = re.match(pattern, what)
        if match:
            return name + match[1]
    for start, name in (
        ("tracing_mark_write", "print"),
        ("# ", "raw_data"),
        # What the module calls, and from where.
        ("with_format: ", "bprint"),
        ("with_pointers: ", "bprint"),
        ("without_end: ", "bprint"),
        ("with_text: not a constant", "print"),
        ("with_text: cu", "print"),
        ("with_text: ", "bputs"),
        ("with_any_format: ", "print"),
    ):
        if what.startswith(start):
            return name
    if "<stack trace>" in what:
        return "kernel_stack"
    if " <-" in what and ": " not in what:
        return "function"
    return what.partition(":")[0]


def report(path: Path) -> dict[str, list[tuple[str, str, str, str]]]:
    """What trace-cmd shows, by instance."""
    argv = [*peers.argv("trace-cmd"), "report", "-i", str(path)]
    done = subprocess.run(argv, capture_output=True, check=True)
    found: dict[str, list[tuple[str, str, str, str]]] = collections.defaultdict(list)
    for line in done.stdout.decode(errors="backslashreplace").splitlines():
        match = LINE.match(line)
        if match:
            name = match["what"].partition(":")[0]
            task = match["task"].replace(" ", "")
            event = task, match["cpu"], match["time"], name
            found[match["instance"] or ""].append(event)
            if name == "funcgraph_entry" and line.endswith(";"):
                # A call and its return, which are two events.
                found[match["instance"] or ""].append(event)
    return found


# Without a task, with another clock than the file's, or as a graph.
OTHERWISE = ("plain", "options", "clock", "graph")


@pytest.mark.verified(
    "ftrace: trace.dat", by="trace-cmd report, and the `trace` files of the same guest"
)
def test_trace_cmd_shows_the_same(
    case: tuple[Guest, drgn.Program], tmp_path: Path
) -> None:
    guest, prog = case
    path = tmp_path / "trace.dat"
    ftrace_export(prog, str(path))
    shown = report(path)
    for instance in guest.instances:
        expected = events_of(guest.trace(instance))
        if instance not in OTHERWISE:
            assert sorted(shown[instance]) == sorted(expected)
            assert len(expected) > 50
        else:
            count = sum(1 for _ in for_each_ftrace_event(prog, instance))
            assert len(shown[instance]) == count > 50


# --- the command


@pytest.mark.parametrize("kernel", KERNELS[:1])
def test_the_command(kernel: str, folder: Path) -> None:
    path = dump(kernel, "qemu", folder)
    argv = [sys.executable, "-m", "drgn_tools", "ftrace", str(path)]
    argv += ["--symbols", str(guest(kernel).kernel.vmlinux)]
    done = subprocess.run([*argv, "--instance", ""], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == guest(kernel).trace("")
    done = subprocess.run([*argv, "--instance", "none"], capture_output=True)
    assert done.returncode == 1
    assert done.stderr.startswith(b"drgn-tools: there is no instance none; there are ")
    out = folder / "command.dat"
    done = subprocess.run([*argv, "-o", str(out)], capture_output=True, check=True)
    assert report(out)
    events = list(for_each_ftrace_event(opened(path, kernel)))
    cpus, names = ({event[part] for event in events} for part in (1, 0))
    told = f"{len(events)} events of {len(cpus)} CPUs in {len(names)} buffers\n"
    assert done.stderr.decode() == f"{out}: {told}"
    for ending in (".dat", ".pftrace"):
        other = out.with_name(f"other{ending}")
        done = subprocess.run([*argv, "-qo", str(other)], capture_output=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    done = subprocess.run([*argv, "-o", str(out)], capture_output=True)
    assert done.returncode == 1
    assert done.stderr.endswith(b"exists (-f replaces it)\n")


def test_a_kernel_that_traced_nothing(tmp_path: Path) -> None:
    (spec,) = (one for one in zram_guests.MATRIX if one.name == "6.12-bench-zram")
    quiet = zram_guests.get(spec)
    words = [f"-s{quiet.kernel.vmlinux}", "-o", str(tmp_path / "a.dat")]
    done = command.drgn_tools("ftrace", quiet.dump("vmcore"), *words)
    assert done == (0, "", f"{tmp_path}/a.dat: no events\n")


@pytest.mark.parametrize("kernel", KERNELS[:1])
def test_in_drgn(kernel: str, folder: Path) -> None:
    """Names that need no import, and a command."""
    path = dump(kernel, "qemu", folder)
    code = "ftrace_dump('clock')\n"
    code += "from drgn.commands import run_command\n"
    code += "run_command(prog, 'ftrace_dump --instance clock --cpu 0')"
    argv = [sys.executable, "-m", "drgn", "-q", "-c", str(path)]
    argv += ["-s", str(guest(kernel).kernel.vmlinux), "-e", code]
    environment = command.environment(DRGN_PLUGINS="drgn_tools=drgn_tools._plugin")
    done = subprocess.run(argv, capture_output=True, env=environment, check=True)
    trace = guest(kernel).trace("clock")
    shown = done.stdout.decode()
    assert shown.startswith(trace)
    rest = shown[len(trace) :].splitlines()
    lines = [line for line in trace.splitlines() if " [000] " in line]
    assert [line for line in rest if line[0] != "#"] == lines


@pytest.mark.parametrize("kernel", KERNELS[:1])
def test_one_cpu(kernel: str, folder: Path) -> None:
    prog = opened(dump(kernel, "qemu", folder), kernel)
    out = io.StringIO()
    ftrace_dump(prog, "", 1, file=out)
    lines = guest(kernel).trace("").splitlines()
    shown = [line for line in out.getvalue().splitlines() if LINE.match(line)]
    assert shown == [line for line in lines if LINE.match(line) and " [001] " in line]


# --- live

# A little of everything: emulated drgn takes its time.
_TRACED = """
set -e
mount -t tracefs tracefs /sys/kernel/tracing
cd /sys/kernel/tracing
echo 'vfs_*' > set_ftrace_filter
echo 'p:probe do_sys_openat2 name=+0(%si):ustring' > kprobe_events
mkdir instances/small
echo 4 > instances/small/buffer_size_kb
for on in events/kprobes events/sched instances/small/events/syscalls; do
    echo 1 > $on/enable
done
echo function > current_tracer
for i in 1 2 3; do cat /proc/stat > /dev/null; echo $i > trace_marker; done
for on in tracing_on instances/small/tracing_on; do echo 0 > $on; done
for on in events instances/small/events; do echo 0 > $on/enable; done
"""
_SEEN = """
import sys
from drgn_tools.ftrace import ftrace_dump
ftrace_dump(prog, file=sys.stdout)
"""


@pytest.mark.verified(
    "ftrace: the running kernel",
    by="the `trace` files of the same guest, before and after",
    on="6.12-bench",
)
def test_live_is_the_trace_file_and_stays(tmp_path: Path) -> None:
    kernel = kernels.get("6.12-bench")
    with qemu.booted(
        kernel,
        smp=2,
        disks=[qemu.Disk(live_drgn.image(kernel), "live")],
        files=live_drgn.files(),
        memory_mib=live_drgn.MEMORY_MIB,
        append="no_timer_check",
        folder=tmp_path,
    ) as vm:
        vm.run(_TRACED)
        shown = ftrace_guests.read(vm)
        live_drgn.mount(vm)
        done = live_drgn.run(vm, _SEEN)
        again = ftrace_guests.read(vm)
    assert done.status == 0, done.stderr.decode()
    first, *others = done.stdout.decode().split("\n== instance ")
    found = {"": first, **dict(other.split("\n", 1) for other in others)}
    assert found == {name: text.decode() for name, text in shown.items()}
    assert again == shown
    assert all(text.count(b"\n") > 50 for text in shown.values())
