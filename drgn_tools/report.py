# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What a dump tells, for one page
-------------------------------

Each section is a function that adds what it finds to a draft. Whatever goes wrong there
costs the rest of that section, and is said: the others, and the page, are not lost.
"""

from __future__ import annotations

import datetime
import re
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, TypeVar

from drgn import FaultError

from drgn_tools.errors import DumpError
from drgn_tools.export.report_page import (
    Block,
    Chain,
    Facts,
    Flame,
    Frame,
    Hint,
    Lines,
    Report,
    Section,
    Table,
)
from drgn_tools.formats import kdump
from drgn_tools.kernel_log import dump_log, log_records, panic_line
from drgn_tools.printing import one_line
from drgn_tools.program import open_dump
from drgn_tools.text import binary_size
from drgn_tools.vmcore import Vmcore, open_vmcore

if TYPE_CHECKING:
    from drgn import Object, Program, StackTrace

    from drgn_tools.kernel_log import LogRecord
    from drgn_tools.oprofile import OprofilePlace, OprofileSample

_T = TypeVar("_T")

# Seconds that a loop over what a dump has may take, and then it is cut short: of a
# dump as a kernel leaves it, hardly any takes one.
_PATIENCE = 30
# What is shown of a log: its start, and its end.
_LOG_START = 200
_LOG_END = 5000
_TASKS = 20000
_STACK_FRAMES = 64
# Records of function traces and events of each buffer.
_TRACE_RECORDS = 200
_EVENTS = 100
# Notes of one section.
_NOTES = 40


class _Dump(NamedTuple):
    path: str
    vmcore: Vmcore
    prog: Program | None
    why_no_prog: str
    jobs: int
    records: list[LogRecord]
    # Of the kernel log, and why not all are there.
    log_faults: list[str]


class _Draft:
    # A section as it grows.
    def __init__(self) -> None:
        self.summary = ""
        self.blocks: list[Block] = []
        self.notes: dict[str, int] = {}
        self.failed = False
        self.absent = False
        # The kernel has nothing of the kind.

    def add(self, *blocks: Block) -> None:
        self.blocks += blocks

    def note(self, text: str) -> None:
        # There may be one for each of a million records.
        if text in self.notes or len(self.notes) < _NOTES:
            self.notes[text] = self.notes.get(text, 0) + 1

    def fail(self, error: Exception) -> None:
        self.failed = True
        self.note(_reason(error))

    def some(self, things: Iterable[_T], what: str, most: int) -> Iterator[_T]:
        # As many as there is time for.
        end = time.monotonic() + _PATIENCE
        for number, thing in enumerate(things):
            if number == most:
                self.note(f"only {most} {what} are looked at")
                return
            if time.monotonic() > end:
                self.note(f"after {_PATIENCE} s, only {number} {what} are looked at")
                return
            yield thing

    def section(self, key: str, title: str) -> Section:
        notes = [
            f"{text} ({count} times)" if count > 1 else text
            for text, count in self.notes.items()
        ]
        if self.absent:
            return Section(key, title, "none", ", ".join(self.notes), [], [])
        if self.failed and not self.blocks:
            status = "missing"
        elif notes:
            status = "partly"
        else:
            status = "ok" if self.blocks else "none"
        return Section(key, title, status, self.summary, self.blocks, notes)


def _reason(error: Exception) -> str:
    # What our own code and drgn raise says what is wrong with the dump; what else a
    # damaged one leads to needs its name.
    if isinstance(error, (DumpError, FaultError, LookupError, ValueError)):
        return one_line(error) or type(error).__name__
    return f"{type(error).__name__}: {one_line(error)}"


def _decoded(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def _plural(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _prog(dump: _Dump) -> Program:
    if dump.prog is None:
        raise DumpError(dump.why_no_prog)
    return dump.prog


# --- the kernel log


def _log_text(record: LogRecord) -> list[str]:
    seconds, rest = divmod(record.timestamp_ns, 1_000_000_000)
    prefix = f"[{seconds:5}.{rest // 1000:06}] "
    if record.caller is not None:
        prefix += f"[{record.caller:>8}] "
    lines = _decoded(record.raw).split("\n")
    return [prefix + lines[0], *(" " * len(prefix) + line for line in lines[1:])]


def _read_log(vmcore: Vmcore) -> tuple[list[LogRecord], list[str]]:
    faults: list[str] = []
    info = vmcore.vmcoreinfo
    if info is None:
        return [], ["the log cannot be found: the dump has no VMCOREINFO"]
    if info.symbol("prb") is None and info.symbol("log_end") is not None:
        # Until 3.5 it has no records.
        return [], faults
    try:
        records = list(log_records(info, vmcore.kernel, warn=faults.append))
    except DumpError as error:
        return [], [f"the log cannot be read: {error}"]
    return records, faults


# Where what the kernel says of its death begins, and where that ends.
_LAST_WORDS = re.compile(
    r"-+\[ cut here \]|BUG: |Unable to handle|general protection fault|Oops: |"
    r"sysrq: (SysRq : )?Trigger a crash|watchdog: |Kernel panic"
)
_END = re.compile(r"---\[ end ")
# How far before the line that says it.
_BEFORE = 120


def _last_words(lines: list[str], panic: str | None) -> tuple[int, int, int] | None:
    # Start, end and the line itself, of what the log says of the panic.
    if panic is None:
        return None
    at = next((i for i in range(len(lines) - 1, -1, -1) if panic in lines[i]), None)
    if at is None:
        return None
    start = next(
        (i for i in range(max(0, at - _BEFORE), at) if _LAST_WORDS.search(lines[i])),
        max(0, at - 5),
    )
    end = next((i for i in range(at, len(lines)) if _END.search(lines[i])), None)
    return start, len(lines) if end is None else end + 1, at


def _log(dump: _Dump, draft: _Draft) -> None:
    for fault in dump.log_faults:
        draft.note(fault)
    start: list[str] = []
    end: deque[str] = deque(maxlen=_LOG_END)
    count = 0
    for line in _log_lines(dump, draft):
        count += 1
        if len(start) < _LOG_START:
            start.append(line)
        else:
            end.append(line)
    left_out = count - len(start) - len(end)
    lines = [*start, *end]
    if not lines:
        return
    draft.summary = _plural(count, "line")
    words = _last_words(lines, panic_line(dump.records))
    if words is not None:
        first, last, at = words
        mark = frozenset((at - first,))
        draft.add(Lines("What it said last", lines[first:last], mark))
    else:
        draft.add(Lines("Its last lines", lines[-60:]))
    caption = f"The kernel log, {_plural(count, 'line')}"
    if left_out:
        caption += f"; {left_out} in between are left out here"
        lines.insert(len(start), f"    … {left_out} lines …")
    draft.add(Lines(caption, lines, folded=True))
    draft.add(Hint("All of it:", f"drgn-tools dmesg {dump.path}"))


def _log_lines(dump: _Dump, draft: _Draft) -> Iterator[str]:
    for record in dump.records:
        yield from _log_text(record)
    if not dump.records and dump.vmcore.vmcoreinfo is not None:
        text = b"".join(dump_log(dump.vmcore, warn=draft.note))
        yield from _decoded(text).splitlines()


# --- tasks


class _Task(NamedTuple):
    pid: int
    comm: str
    state: str
    cpu: int | None
    kernel: bool
    stack: tuple[str, ...]
    why: str
    # That there is no stack.


def _value(read: Callable[..., Any], *args: Any) -> Any:
    # None of what this kernel has not, or the dump not.
    try:
        return read(*args)
    except (LookupError, FaultError, AttributeError, TypeError, ValueError):
        return None


def _stack_lines(trace: StackTrace) -> tuple[str, ...]:
    lines = []
    for frame in islice(trace, _STACK_FRAMES):
        name = frame.name
        if name is None:
            symbol = _value(frame.symbol)
            if symbol is None:
                name = _value(lambda at: f"{at.pc:#x}", frame) or "?"
            else:
                name = f"{symbol.name}+{frame.pc - symbol.address:#x}"
        source = _value(frame.source)
        lines.append(f"{name} ({source[0]}:{source[1]})" if source else name)
    if len(trace) > _STACK_FRAMES:
        lines.append(f"… {len(trace) - _STACK_FRAMES} frames more")
    return tuple(lines)


def _task(prog: Program, task: Object) -> _Task:
    from drgn.helpers.linux.sched import get_task_state, task_cpu

    from drgn_tools.swap import comm

    stack: tuple[str, ...] = ()
    why = ""
    try:
        stack = _stack_lines(prog.stack_trace(task))
    except Exception as error:
        why = _reason(error)
    pid = _value(lambda: task.pid.value_())
    return _Task(
        -1 if pid is None else pid,
        _value(comm, task) or "?",
        _value(get_task_state, task) or "?",
        _value(task_cpu, task),
        _value(lambda: not task.mm.value_()) or False,
        stack,
        why,
    )


def _running(prog: Program) -> dict[int, int]:
    # The task that each CPU runs, by its address.
    from drgn.helpers.linux.cpumask import for_each_online_cpu
    from drgn.helpers.linux.sched import cpu_curr

    found = {}
    for cpu in islice(for_each_online_cpu(prog), 1 << 16):
        task = _value(cpu_curr, prog, cpu)
        if task is not None:
            found[task.value_()] = cpu
    return found


def _crashed(prog: Program) -> Object | None:
    # The task that panicked, if any did.
    return _value(lambda: prog.crashed_thread().object.read_())


def _tasks(dump: _Dump, draft: _Draft) -> None:
    from drgn.helpers.linux.pid import for_each_task
    from drgn.helpers.linux.sched import idle_task

    prog = _prog(dump)
    _need_debug_info(prog, "tasks and their stacks are not shown")
    crashed = _value(lambda: prog.crashed_thread().object.value_())
    running = _running(prog)
    idle = {
        address: task
        for address, cpu in running.items()
        if (task := _value(idle_task, prog, cpu)) is not None
        and task.value_() == address
    }
    found: dict[int, _Task] = {}
    try:
        for task in draft.some(for_each_task(prog), "tasks", _TASKS):
            found[task.value_()] = _task(prog, task)
    except Exception as error:
        draft.fail(error)
    for address, task in idle.items():
        found.setdefault(address, _task(prog, task))
    if not found:
        return
    order = sorted(
        found,
        key=lambda a: (a != crashed, a not in running, a in idle, found[a].pid),
    )
    for why, count in Counter(t.why for t in found.values() if t.why).items():
        draft.note(f"no stack of {_plural(count, 'task')}: {why}")
    draft.summary = f"{_plural(len(found), 'task')}, {len(running)} on CPUs" + (
        "" if crashed in found else "; none is said to have panicked"
    )
    for address in order:
        if address == crashed or address in running:
            cpu = running.get(address, found[address].cpu)
            draft.add(_stack_block(found[address], cpu, address == crashed))
    marks = frozenset(i for i, a in enumerate(order) if a == crashed)
    draft.add(
        Table(
            "All tasks; what they are in is the function that they wait or run in",
            ("PID", "COMM", "STATE", "CPU", "KIND", "IN"),
            [_task_row(found[a], a == crashed, a in running) for a in order],
            frozenset((0, 3)),
            marks,
        )
    )
    _group_stacks([found[a] for a in order if a not in running], draft)


def _task_name(task: _Task) -> str:
    return f"{task.comm}[{task.pid}]"


def _stack_block(task: _Task, cpu: int | None, crashed: bool) -> Lines:
    caption = f"CPU {cpu}: {_task_name(task)}"
    if crashed:
        caption += ", which panicked"
    return Lines(caption, task.stack or (f"no stack: {task.why}",))


# Functions that every task that waits is in.
_SWITCHING = re.compile(
    r"(context_switch|__schedule|schedule(_\w+)?|__switch_to(_asm)?|"
    r"crash_setup_regs|__crash_kexec|io_schedule(_\w+)?) "
)


def _task_row(task: _Task, crashed: bool, running: bool) -> tuple[str, ...]:
    place = next((f for f in task.stack if not _SWITCHING.match(f"{f} ")), "")
    kind = "kernel" if task.kernel else "user"
    state = task.state
    if crashed:
        state += ", panicked"
    elif running:
        state += ", on CPU"
    cpu = "" if task.cpu is None else str(task.cpu)
    return str(task.pid), task.comm, state, cpu, kind, place.partition(" (")[0]


def _group_stacks(tasks: list[_Task], draft: _Draft) -> None:
    # Many wait in the same place.
    groups: dict[tuple[str, ...], list[_Task]] = {}
    for task in tasks:
        if task.stack:
            groups.setdefault(task.stack, []).append(task)
    ranked = sorted(groups.items(), key=lambda item: (len(item[1]), item[1][0].pid))
    for stack, members in ranked:
        names = ", ".join(_task_name(task) for task in members[:40])
        if len(members) > 40:
            names += f" and {len(members) - 40} more"
        who = "1 task" if len(members) == 1 else f"{len(members)} tasks with this stack"
        draft.add(Lines(f"{who}: {names}", stack, folded=True))


def _has_debug_info(prog: Program) -> bool:
    from drgn_tools.pstore_memory import has_debug_info

    return has_debug_info(prog)


def _need_debug_info(prog: Program, what: str) -> None:
    if not _has_debug_info(prog):
        raise DumpError(
            f"{what}: no debugging symbols of this kernel were found, and none given "
            "with --symbols"
        )


# --- memory


def _memory(dump: _Dump, draft: _Draft) -> None:
    draft.summary = "not done yet"


# --- pstore


def _pstore(dump: _Dump, draft: _Draft) -> None:
    from drgn_tools import pstore

    prog = _prog(dump)
    zones = list(draft.some(pstore.for_each_pstore_zone(prog), "zones", 4096))
    for zone in zones:
        for why in (zone.live_error, zone.old_log_error):
            if why:
                draft.note(f"{zone.label}: {why}")
    if zones:
        draft.add(
            Table(
                "Zones",
                ("ZONE", "TYPE", "ADDRESS", "SIZE", "USED", "WRAPPED", "STATE", "OLD"),
                [
                    (
                        zone.label,
                        zone.kind,
                        f"{zone.address:#x}",
                        binary_size(zone.size),
                        binary_size(zone.used) if zone.live is not None else "-",
                        "yes" if zone.wrapped else "no",
                        zone.state,
                        "-" if zone.old_log is None else binary_size(len(zone.old_log)),
                    )
                    for zone in zones
                ],
                frozenset((2, 3, 4, 7)),
            )
        )
    count = 0
    for record in draft.some(pstore.for_each_pstore_record(prog), "records", 1000):
        count += 1
        if record.error:
            draft.note(f"{record.label}: {record.error}")
        draft.add(_pstore_lines(record))
    draft.summary = f"{_plural(len(zones), 'zone')}, {_plural(count, 'record')}"
    draft.add(Hint("All of it:", f"drgn-tools pstore {dump.path}"))
    if any(zone.kind == "ftrace" for zone in zones):
        _pstore_trace(dump, prog, draft)


def _pstore_lines(record: Any) -> Lines:
    title = f"{record.kind}: {record.label}, {record.source}"
    if record.reason:
        title += f", {record.reason}#{record.oops_count} part {record.part}"
    if record.seconds:
        title += f", {_utc(record.seconds)}"
    lines = _decoded(record.text).split("\n")
    if not lines[-1]:
        del lines[-1]
    return Lines(f"{title}; {_plural(len(lines), 'line')}", lines, folded=True)


def _utc(seconds: int) -> str:
    try:
        when = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    except (OverflowError, ValueError, OSError):
        return str(seconds)
    return f"{when:%Y-%m-%d %H:%M:%S} UTC"


def _pstore_trace(dump: _Dump, prog: Program, draft: _Draft) -> None:
    import contextlib
    import io

    from drgn_tools import pstore

    counts: Counter[tuple[int, int]] = Counter()
    records = pstore.for_each_pstore_ftrace(prog)
    for record in draft.some(records, "records of the function trace", 1 << 24):
        counts[record.boot, record.cpu] += 1
    if not counts:
        return
    draft.summary += f", {_plural(sum(counts.values()), 'function call')}"
    draft.add(
        Table(
            "Function trace: records of each boot (0 is the newest) and CPU",
            ("BOOT", "CPU", "RECORDS"),
            [
                (str(boot), str(cpu), str(number))
                for (boot, cpu), number in sorted(
                    counts.items(), key=lambda item: (-item[0][0], item[0][1])
                )
            ],
            frozenset((0, 1, 2)),
        )
    )
    out, said = io.StringIO(), io.StringIO()
    # What it says there of missing records belongs on the page.
    with contextlib.redirect_stderr(said):
        pstore.pstore_ftrace(prog, last=_TRACE_RECORDS, file=out)
    for line in said.getvalue().splitlines():
        draft.note(line.removeprefix("pstore: "))
    lines = out.getvalue().splitlines()
    draft.add(
        Lines(f"Function trace: the newest {_plural(len(lines), 'record')}", lines),
        Hint("All boots:", f"drgn-tools pstore --boot all {dump.path}"),
    )


# --- zram


def _zram(dump: _Dump, draft: _Draft) -> None:
    from drgn_tools import zram

    prog = _prog(dump)
    rows = []
    streams: list[tuple[str, ...]] = []
    for device in draft.some(zram.for_each_zram(prog), "devices", 1000):
        name = zram.device_name(device)
        try:
            rows.append(_zram_row(zram.zram_device(device)))
            if rows[-1][1] != "-":
                streams += _stream_rows(name, device)
        except Exception as error:
            draft.note(f"{name}: {_reason(error)}")
    if not rows:
        draft.summary = "no zram devices"
        return
    used = sum(row[1] != "-" for row in rows)
    draft.summary = f"{_plural(len(rows), 'device')}, {used} set up"
    head = "NAME DISKSIZE ALGORITHM DATA COMPR USED RATIO SAME HUGE WRITTEN BACKING"
    draft.add(Table("Devices", head.split(), rows, frozenset((1, *range(3, 10)))))
    if streams:
        draft.add(
            Table(
                "What each CPU compressed last",
                ("DEVICE", "CPU", "ALGORITHM", "STATE", "SIZE", "WRITER", "PAGE"),
                streams,
                frozenset((1, 4)),
                frozenset(i for i, row in enumerate(streams) if row[5] != "-"),
            )
        )
    draft.add(Hint("More of them:", f"drgn-tools zram --help, {dump.path}"))


def _zram_row(device: Any) -> tuple[str, ...]:
    return (
        device.name,
        binary_size(device.disksize) if device.disksize else "-",
        ", ".join(device.algorithms) or "-",
        binary_size(device.stored),
        binary_size(device.compressed),
        binary_size(device.used),
        "-" if device.ratio is None else f"{device.ratio:.2f}",
        str(device.same),
        str(device.huge),
        str(device.written_back),
        device.backing or "-",
    )


def _stream_rows(name: str, device: Object) -> Iterator[tuple[str, ...]]:
    from drgn_tools import zram

    for stream in islice(zram.for_each_zram_stream(device), 4096):
        start = (stream.data or b"")[:48]
        yield (
            name,
            "-" if stream.cpu is None else str(stream.cpu),
            stream.algorithm,
            stream.state,
            str(stream.size or "-"),
            stream.writer or "-",
            "".join(chr(b) if 32 <= b < 127 else "." for b in start)
            or stream.note
            or "-",
        )


# --- oprofile


def _kind(place: OprofilePlace) -> str:
    image = place.image
    if image in ("vmlinux", "[kernel]", "[xen]") or image.endswith(".ko"):
        return "kernel"
    return "user"


def _chain(sample: OprofileSample) -> Chain:
    places = [sample.place, *sample.trace]
    # A kernel's trace may begin with where the sample was taken.
    if sample.trace and sample.trace[0].address == sample.place.address:
        del places[1]
    name = sample.comm or sample.program.rpartition("/")[2]
    task = f"{name or '?'}[{sample.pid}]" if sample.pid >= 0 else "?"
    frames = [Frame(place.symbol or place.image, _kind(place)) for place in places]
    return (Frame(task, "task"), *reversed(frames))


def _oprofile(dump: _Dump, draft: _Draft) -> None:
    from drgn_tools import oprofile
    from drgn_tools.oprofile_text import count, stats_lines

    prog = _prog(dump)
    stats = list(stats_lines(oprofile.get_oprofile_stats(prog)))
    chains: Counter[Chain] = Counter()
    functions: Counter[tuple[str, ...]] = Counter()
    samples = oprofile.for_each_oprofile_sample(prog, note=draft.note)
    columns = ("image", "symbol")
    try:
        for sample in draft.some(samples, "samples", 1 << 22):
            chains[_chain(sample)] += 1
            functions.update(count((sample,), columns))
    except Exception as error:
        draft.fail(error)
    total = sum(chains.values())
    draft.summary = f"{_plural(total, 'sample')} that nobody had read"
    if total:
        callers = any(len(chain) > 2 for chain in chains)
        draft.add(
            Flame(
                f"{_plural(total, 'sample')} by task"
                + (", caller and function" if callers else " and function")
                + "; the wider, the more",
                chains,
            ),
            Table(
                "Functions",
                ("SAMPLES", "%", "FUNCTION", "IMAGE"),
                [
                    (str(number), f"{100 * number / total:.2f}", symbol, image)
                    for (image, symbol), number in functions.most_common(200)
                ],
                frozenset((0, 1)),
            ),
        )
    draft.add(
        Lines("Counters and settings", stats, folded=True),
        Hint("Each sample:", f"drgn-tools oprofile --samples {dump.path}"),
    )


# --- trace buffers


def _trace(dump: _Dump, draft: _Draft) -> None:
    from drgn_tools import ftrace
    from drgn_tools.ftrace_memory import trace_buffers

    prog = _prog(dump)
    buffers = trace_buffers(prog)
    rows: list[tuple[str, ...]] = []
    unread = 0
    events = []
    for buffer in draft.some(buffers, "instances", 1000):
        name = buffer.name or "(the kernel's own)"
        try:
            for row, count in _cpu_rows(buffer, name, draft):
                rows.append(row)
                unread += count
            last = deque(
                draft.some(
                    ftrace.for_each_ftrace_event(
                        prog, buffer.name, last=_EVENTS, note=draft.note
                    ),
                    "events",
                    _EVENTS,
                )
            )
        except Exception as error:
            draft.note(f"{name}: {_reason(error)}")
            continue
        if last:
            events.append(_event_lines(name, buffer, list(last)))
    draft.summary = (
        f"{_plural(len(buffers), 'buffer')}, {_plural(unread, 'event')} to read"
    )
    if not unread and not events:
        # Every kernel has the buffer.
        return
    head = "INSTANCE CPU UNREAD OVERRUN DROPPED READ BYTES OLDEST NEWEST"
    draft.add(
        Table("Buffers of each CPU", head.split(), rows, frozenset(range(1, 9))),
        *events,
        Hint("All events:", f"drgn-tools ftrace {dump.path}"),
    )


def _cpu_rows(
    buffer: Any, name: str, draft: _Draft
) -> Iterator[tuple[tuple[str, ...], int]]:
    from drgn_tools.ring_buffer import (
        for_each_ring_buffer_event,
        ring_buffer_cpus,
        ring_buffer_stats,
    )

    for cpu in ring_buffer_cpus(buffer.buffer):
        stats = ring_buffer_stats(buffer.buffer, cpu)
        if not stats.entries:
            continue
        oldest = newest = None
        events = for_each_ring_buffer_event(buffer.buffer, cpu, note=lambda text: None)
        for event in draft.some(events, f"events of CPU {cpu}", 1 << 24):
            oldest = event.time if oldest is None else oldest
            newest = event.time
        yield (
            (
                name,
                str(cpu),
                str(stats.unread),
                str(stats.overrun),
                str(stats.dropped_events),
                str(stats.read),
                str(stats.entries_bytes),
                _clock(oldest, buffer.in_ns),
                _clock(newest, buffer.in_ns),
            ),
            stats.unread,
        )


def _clock(time: int | None, in_ns: bool) -> str:
    if time is None:
        return "-"
    return f"{time / 1e9:.6f}" if in_ns else str(time)


def _event_lines(name: str, buffer: Any, events: list[Any]) -> Lines:
    lines = [
        f"{event.comm}-{event.pid} [{event.cpu:03}] "
        f"{_clock(event.time, buffer.in_ns)}: {event.text}"
        for event in events
    ]
    return Lines(
        f"{name}: the newest {_plural(len(lines), 'event')} (tracer {buffer.tracer}, "
        f"clock {buffer.clock})",
        lines,
        folded=bool(buffer.name),
    )


_SECTIONS: tuple[tuple[str, str, Callable[[_Dump, _Draft], None]], ...] = (
    ("log", "Kernel log", _log),
    ("tasks", "Tasks", _tasks),
    ("memory", "Memory", _memory),
    ("pstore", "Persistent storage", _pstore),
    ("zram", "Compressed memory", _zram),
    ("oprofile", "Profile", _oprofile),
    ("trace", "Trace buffers", _trace),
)


# --- the whole


def _open_program(path: str, symbols: Sequence[str]) -> tuple[Program | None, str]:
    try:
        return open_dump(path, symbols), ""
    except DumpError as error:
        if symbols:
            raise
        return None, str(error)


def _is_absent(dump: _Dump, key: str, reason: str) -> bool:
    # Whether what was not found is not in this kernel, for certain.
    prog = dump.prog
    if prog is None or not reason.startswith("this kernel has no "):
        return False
    if key == "zram":
        # It may be that its own symbols are missing.
        modules = {module.name for module in prog.modules()}
        return _has_debug_info(prog) and key not in modules
    return key == "pstore" or _has_debug_info(prog)


def make_report(dump: str, symbols: Sequence[str] = (), jobs: int = 1) -> Report:
    """
    Gather what a dump tells.

    :param symbols: Files with debugging symbols, of the kernel and its modules, that
        are tried before those that drgn finds.
    :param jobs: How many processes may work on it.
    :raises DumpError: if it is no dump, or a file has no symbols of its kernel. What
        else is wrong with it is in the report.
    """
    from drgn_tools.progress import Progress

    with (
        open_vmcore(dump, part=True) as vmcore,
        Progress("making the report", len(_SECTIONS) + 1) as progress,
    ):
        prog, why = _open_program(dump, symbols)
        records, faults = _read_log(vmcore)
        opened = _Dump(dump, vmcore, prog, why, jobs, records, faults)
        sections = []
        for number, (key, title, gather) in enumerate(_SECTIONS):
            progress.update(number + 1)
            draft = _Draft()
            try:
                gather(opened, draft)
            except Exception as error:
                # Nobody knows what a damaged dump leads to.
                draft.fail(error)
                draft.absent = _is_absent(opened, key, _reason(error))
            sections.append(draft.section(key, title))
        return _report(opened, sections)


# In the log, of the task that died.
_DIED = re.compile(
    r"CPU: (?P<cpu>\d+) (?:UID: \d+ )?PID: (?P<pid>\d+) Comm: (?P<comm>.{0,15}?) "
    r"(?:Kdump: loaded )?(?P<taint>Not tainted|Tainted: .*?) \d"
)


def _report(dump: _Dump, sections: list[Section]) -> Report:
    from drgn_tools.info import describe

    lines = [line for record in dump.records for line in _log_text(record)]
    panic = panic_line(dump.records)
    words = _last_words(lines, panic)
    about = dict(describe(dump.path))
    where = about.get("node", "(none)")
    release = about.get("release", "unknown kernel")
    title = f"Linux {release}" + ("" if where == "(none)" else f" on {where}")
    # The panic is the headline; and first comes what people ask first.
    rows = [("crash time", about.get("crash time", "")), *_death(lines, words)]
    known = {"panic", *(label for label, _ in rows)}
    rows += [row for row in about.items() if row[0] not in known]
    return Report(
        title,
        panic or _no_panic(dump),
        _verdicts(dump, sections),
        Facts(rows),
        _headline_trace(dump, lines, words),
        sections,
        f"Made {_utc(int(time.time()))} by drgn-tools report from {dump.path}. "
        "It has what was in the kernel's memory: mind who may read it.",
    )


def _no_panic(dump: _Dump) -> str:
    if dump.prog is not None and (task := _crashed(dump.prog)) is not None:
        return (
            f"Task {_value(lambda: task.pid.value_())} panicked; the log does not say"
        )
    if not dump.records:
        return "What it died of is unknown: the kernel log cannot be read"
    return "No panic in the kernel log"


def _death(
    lines: list[str], words: tuple[int, int, int] | None
) -> Iterator[tuple[str, str]]:
    if lines:
        stamp = re.match(r"\[ *(\d+)\.", lines[-1])
        if stamp:
            up = datetime.timedelta(seconds=int(stamp[1]))
            yield "last words", f"{up} after boot"
    if words is None:
        return
    start, end, at = words
    if start != at:
        yield "began with", re.sub(r"^\[.*?\] (\[.*?\] )?", "", lines[start])
    for line in lines[start:end]:
        if died := _DIED.search(line):
            yield "task", f"{died['comm']}[{died['pid']}] on CPU {died['cpu']}"
            yield "taint", died["taint"]
            break


# Of the stack in the log.
_CALL_TRACE = re.compile(r"Call Trace:|Call trace:")
_LOG_FRAME = re.compile(r"\] {1,3}(<|\?|\[<|[\w.]+\+0x)")


def _headline_trace(
    dump: _Dump, lines: list[str], words: tuple[int, int, int] | None
) -> Lines:
    if dump.prog is not None and (task := _crashed(dump.prog)) is not None:
        seen = _task(dump.prog, task)
        if seen.stack:
            return Lines(
                f"Stack of {_task_name(seen)} on CPU {seen.cpu}, which panicked",
                seen.stack,
            )
    if words is not None:
        start, end, at = words
        for number in range(start, end):
            if _CALL_TRACE.search(lines[number]):
                stop = number + 1
                while stop < end and _LOG_FRAME.search(lines[stop]):
                    stop += 1
                return Lines("Call trace in the kernel log", lines[number:stop])
        return Lines("Around it in the log", lines[max(0, at - 8) : at + 8])
    return Lines("The end of the kernel log", lines[-12:])


def _verdicts(dump: _Dump, sections: list[Section]) -> list[tuple[str, str]]:
    vmcore = dump.vmcore
    header = vmcore.header
    lacks = []
    if vmcore.lost_bytes:
        lacks.append(f"cut short: {binary_size(vmcore.lost_bytes)} are missing")
    if header is not None and header.status & kdump.STATUS_INCOMPLETE:
        lacks.append("marked incomplete: pages are missing that it should have")
    if vmcore.part:
        lacks.append("one of several files: the others have the rest")
    if lacks:
        found = [("missing", f"The dump is {'; it is '.join(lacks)}")]
    elif header is not None and header.dump_level:
        found = [("ok", f"The dump is whole, filtered with -d {header.dump_level}")]
    else:
        found = [("ok", "The dump is whole, and not filtered")]
    if vmcore.live:
        found.append(("partly", "The kernel was running while it was read"))
    symbols = dump.prog is not None and _has_debug_info(dump.prog)
    found.append(
        ("ok", "Debugging symbols of this kernel were found")
        if symbols
        else ("partly", "No debugging symbols of this kernel: see What was missing")
    )
    lacking = [s.title for s in sections if s.status in ("partly", "missing")]
    if lacking:
        found.append(("partly", f"Not whole: {', '.join(lacking)}"))
    return found


def write_report(
    dump: str,
    path: str,
    *,
    symbols: Sequence[str] = (),
    force: bool = False,
    jobs: int = 1,
) -> int:
    """
    Write the report on a dump as an HTML page.

    :param path: Of the file, which appears when all has been written.
    :param symbols: As of :func:`make_report()`.
    :param force: It may replace a file.
    :return: How many bytes it has.
    :raises DumpError: if it is no dump, a file has no symbols of its kernel, or the
        page cannot be written.
    """
    from drgn_tools.export.report_page import page
    from drgn_tools.output import check_target, files

    check_target(path, force, (dump, *symbols))
    with files(path) as (file,):
        data = page(make_report(dump, symbols, jobs)).encode()
        file.write(data, 0)
        file.finish(len(data))
    return len(data)
