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
import shlex
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
    Picture,
    Report,
    Section,
    Table,
)
from drgn_tools.kernel_log import dump_log, log_records, panic_line
from drgn_tools.printing import one_line
from drgn_tools.program import missing_symbols, open_dump
from drgn_tools.text import binary_size
from drgn_tools.vmcore import Vmcore, open_vmcore

if TYPE_CHECKING:
    from drgn import Object, Program, StackTrace

    from drgn_tools.info import DumpInfo
    from drgn_tools.kernel_log import LogRecord
    from drgn_tools.oprofile import OprofilePlace, OprofileSample
    from drgn_tools.page_map import PageMap, Total

_T = TypeVar("_T")

# Seconds that a loop over what a dump has may take; hardly any takes one, but for the
# stacks of thousands of tasks.
_PATIENCE = 15
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
        self.lacking: dict[str, list[str]] = {}
        # What is missing of whom, by the reason.
        self.absent = False
        # The kernel has nothing of the kind.

    def add(self, *blocks: Block) -> None:
        self.blocks += blocks

    def note(self, text: str) -> None:
        # There may be one for each of a million records.
        if text in self.notes or len(self.notes) < _NOTES:
            self.notes[text] = self.notes.get(text, 0) + 1

    def lack(self, who: str, why: str) -> None:
        if why in self.lacking or len(self.lacking) < _NOTES:
            self.lacking.setdefault(why, []).append(who)

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
        for why, who in self.lacking.items():
            more = f" and {len(who) - 8} more" if len(who) > 8 else ""
            notes.append(f"{', '.join(who[:8])}{more}: {why}")
        if self.absent:
            return Section(key, title, "none", ", ".join(self.notes), [], [])
        if notes:
            status = "partly" if self.blocks else "missing"
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


def _command(dump: _Dump, *words: str) -> str:
    return shlex.join(("drgn-tools", *words, dump.path))


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
        draft.add(Lines("Its last lines", lines[-30:]))
    caption = f"The kernel log, {_plural(count, 'line')}"
    if left_out:
        caption += f"; {left_out} in between are left out here"
        lines.insert(len(start), f"    … {left_out} lines …")
    draft.add(Lines(caption, lines, folded=True))
    draft.add(Hint("The whole log:", _command(dump, "dmesg")))


def _log_lines(dump: _Dump, draft: _Draft) -> Iterator[str]:
    for record in dump.records:
        yield from _log_text(record)
    if not dump.records and dump.vmcore.vmcoreinfo is not None:
        text = b"".join(dump_log(dump.vmcore, warn=draft.note))
        yield from _decoded(text).splitlines()


# --- tasks


class _Task(NamedTuple):
    task: Object
    pid: int
    comm: str
    state: str
    cpu: int | None
    kernel: bool


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


def _stack(prog: Program, task: Object) -> tuple[tuple[str, ...], str]:
    # And if there is none, why.
    try:
        return _stack_lines(prog.stack_trace(task)), ""
    except Exception as error:
        return (), _reason(error)


def _task(task: Object) -> _Task:
    from drgn.helpers.linux.sched import get_task_state, task_cpu

    from drgn_tools.swap import comm

    pid = _value(lambda: task.pid.value_())
    return _Task(
        task,
        -1 if pid is None else pid,
        _value(comm, task) or "?",
        _value(get_task_state, task) or "?",
        _value(task_cpu, task),
        _value(lambda: not task.mm.value_()) or False,
    )


def _running(prog: Program) -> dict[int, tuple[Object, int]]:
    # The tasks that CPUs run, by their addresses.
    from drgn.helpers.linux.cpumask import for_each_online_cpu
    from drgn.helpers.linux.sched import cpu_curr

    found = {}
    for cpu in islice(for_each_online_cpu(prog), 1 << 16):
        task = _value(cpu_curr, prog, cpu)
        if task is not None:
            found[task.value_()] = (task, cpu)
    return found


def _crashed(prog: Program) -> Object | None:
    # The task that panicked, if any did.
    return _value(lambda: prog.crashed_thread().object.read_())


def _tasks(dump: _Dump, draft: _Draft) -> None:
    from drgn.helpers.linux.pid import for_each_task

    prog = _prog(dump)
    if missing := missing_symbols(prog, dump.path):
        raise DumpError(missing)
    crashed = _value(lambda: prog.crashed_thread().object.value_())
    running = _running(prog)
    found: dict[int, _Task] = {}
    try:
        for task in draft.some(for_each_task(prog), "tasks", _TASKS):
            found[task.value_()] = _task(task)
    except Exception as error:
        draft.note(_reason(error))
    # Idle tasks are in no list.
    for address, (task, _) in running.items():
        found.setdefault(address, _task(task))
    if not found:
        return

    def rank(address: int) -> tuple[bool, bool, bool, bool, int]:
        task = found[address]
        uninteresting = not task.state.startswith("D")
        return (
            address != crashed,
            address not in running,
            task.pid == 0,
            uninteresting,
            task.pid,
        )

    order = sorted(found, key=rank)
    draft.summary = f"{_plural(len(found), 'task')}, {len(running)} on CPUs"
    if crashed not in found:
        draft.summary += "; none is said to have panicked"
    stacks: dict[int, tuple[str, ...]] = {}
    for address in draft.some(order, "stacks of tasks", _TASKS):
        task = found[address]
        stacks[address], why = _stack(prog, task.task)
        if why:
            draft.lack(f"stack of {_task_name(task)}", why)
        if address == crashed or address in running:
            cpu = running[address][1] if address in running else task.cpu
            caption = f"CPU {cpu}: {_task_name(task)}"
            if address == crashed:
                caption += ", which panicked"
            draft.add(Lines(caption, stacks[address] or (f"no stack: {why}",)))
    draft.add(
        Table(
            "All tasks; what they are in is the function that they wait or run in",
            ("PID", "COMM", "STATE", "CPU", "KIND", "IN"),
            [
                _task_row(found[a], stacks.get(a, ()), a == crashed, a in running)
                for a in order
            ],
            frozenset((0, 3)),
            frozenset(i for i, address in enumerate(order) if address == crashed),
        )
    )
    waiting = [a for a in order if a not in running and a != crashed]
    _group_stacks([(found[a], stacks.get(a, ())) for a in waiting], draft)


def _task_name(task: _Task) -> str:
    return f"{task.comm}[{task.pid}]"


# Functions that every task that waits is in, and every one that panics.
_SWITCHING = re.compile(
    r"(context_switch|__schedule|schedule(_\w+)?|__switch_to(_asm)?|"
    r"crash_setup_regs|__crash_kexec|io_schedule(_\w+)?) "
)


def _task_row(
    task: _Task, stack: tuple[str, ...], crashed: bool, running: bool
) -> tuple[str, ...]:
    place = next((f for f in stack if not _SWITCHING.match(f"{f} ")), "")
    state = task.state
    if crashed:
        state += ", panicked"
    elif running:
        state += ", on CPU"
    return (
        str(task.pid),
        task.comm,
        state,
        "" if task.cpu is None else str(task.cpu),
        "kernel" if task.kernel else "user",
        place.partition(" (")[0],
    )


def _group_stacks(
    tasks: Iterable[tuple[_Task, tuple[str, ...]]], draft: _Draft
) -> None:
    # Many wait in the same place; who waits elsewhere comes first.
    groups: dict[tuple[str, ...], list[str]] = {}
    for task, stack in tasks:
        if stack:
            groups.setdefault(stack, []).append(_task_name(task))
    for stack, names in sorted(groups.items(), key=lambda item: len(item[1])):
        who = ", ".join(names[:40])
        if len(names) > 40:
            who += f" and {len(names) - 40} more"
        count = "1 task" if len(names) == 1 else f"{len(names)} tasks with this stack"
        draft.add(Lines(f"{count}: {who}", stack, folded=True))


# --- memory


def _memory(dump: _Dump, draft: _Draft) -> None:
    from drgn_tools.export.page_image import page_svg
    from drgn_tools.page_map import read_page_map
    from drgn_tools.pages import PageClass

    found = read_page_map(dump.vmcore, dump.jobs)
    lacking = any(total.kind == PageClass.UNKNOWN for total in found.classes)
    remarks = []
    for warning in found.warnings:
        if dump.vmcore.live or lacking:
            draft.note(warning)
        else:
            # What its pages never tell.
            remarks.append(warning)
    if found.why_no_zones:
        draft.note(f"zones are told by address alone: {found.why_no_zones}")

    def size(pages: int) -> str:
        return binary_size(pages * found.page_size)

    def row(total: Total) -> tuple[str, ...]:
        first, end = total.longest
        return (
            total.label,
            str(total.pages),
            size(total.pages),
            f"{100 * total.pages / found.pages:.1f}",
            str(total.dumped),
            f"{size(end - first)} at {first * found.page_size:#x}",
        )

    whole = f"{size(found.pages)} in {_plural(found.pages, 'page')}"
    draft.summary = "; ".join((whole, *remarks))
    draft.add(
        Table(
            "By class",
            ("CLASS", "PAGES", "SIZE", "%", "IN THE DUMP", "LONGEST RUN"),
            [row(total) for total in sorted(found.classes, key=lambda t: -t.pages)],
            frozenset(range(1, 6)),
        )
    )
    if found.zones:
        draft.add(_zones(found, size))
    draft.add(Picture("Physical memory by class", page_svg(found)))
    draft.add(
        Hint("As a picture of its own:", _command(dump, "pages", "--image", "map.svg"))
    )


def _zones(found: PageMap, size: Callable[[int], str]) -> Table:
    from drgn_tools.pages import PageClass

    rows = []
    for zone, pages in found.zones:
        most = sorted(range(len(pages)), key=lambda c: -pages[c])[:4]
        rows.append(
            (
                "-" if zone.node is None else str(zone.node),
                zone.name,
                "-" if zone.present is None else size(zone.present),
                "-" if zone.managed is None else size(zone.managed),
                size(pages[PageClass.FREE]),
                ", ".join(
                    f"{PageClass(c).label} {size(pages[c])}" for c in most if pages[c]
                ),
            )
        )
    head = ("NODE", "ZONE", "PRESENT", "MANAGED", "FREE", "MOST OF IT")
    return Table("By zone", head, rows, frozenset((0, 2, 3, 4)))


# --- pstore


def _pstore(dump: _Dump, draft: _Draft) -> None:
    from drgn_tools import pstore

    prog = _prog(dump)
    zones = list(draft.some(pstore.for_each_pstore_zone(prog), "zones", 4096))
    for zone in zones:
        for why in (zone.live_error, zone.old_log_error):
            if why:
                draft.lack(zone.label, why)
    used = [z for z in zones if z.state != "empty" or z.old_log is not None]
    if used:
        draft.add(
            Table(
                "Zones, but for those that are empty",
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
                    for zone in used
                ],
                frozenset((2, 3, 4, 7)),
            )
        )
    count = 0
    for record in draft.some(pstore.for_each_pstore_record(prog), "records", 1000):
        count += 1
        if record.error:
            draft.lack(record.label, record.error)
        draft.add(_pstore_lines(record))
    draft.summary = (
        f"{_plural(len(zones), 'zone')}, {len(zones) - len(used)} of them empty; "
        f"{_plural(count, 'record')}"
    )
    if any(zone.kind == "ftrace" for zone in zones):
        _pstore_trace(prog, draft)
    draft.add(Hint("All of it:", _command(dump, "pstore", "--boot", "all")))


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


def _pstore_trace(prog: Program, draft: _Draft) -> None:
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
        Lines(f"Function trace: the newest {_plural(len(lines), 'record')}", lines)
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
            draft.lack(name, _reason(error))
    if not rows:
        draft.summary = "" if draft.lacking else "no zram devices"
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
    draft.add(Hint("What is in them:", _command(dump, "zram", "--json")))


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
    if not name:
        name = "idle" if sample.pid == 0 else "?"
    task = f"{name}[{sample.pid}]" if sample.pid >= 0 else "?"
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
        draft.note(_reason(error))
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
        Hint("Each sample:", _command(dump, "oprofile", "--samples")),
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
            draft.lack(name, _reason(error))
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
        Hint("All events:", _command(dump, "ftrace")),
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
# What needs debugging symbols, and of which modules beside the kernel.
_MODULES = {
    "tasks": (),
    "pstore": ("ramoops", "pstore_zone"),
    "zram": ("zram", "zsmalloc"),
    "oprofile": ("oprofile",),
    "trace": (),
}


# --- the whole


def _open_program(path: str, symbols: Sequence[str]) -> tuple[Program | None, str]:
    try:
        return open_dump(path, symbols), ""
    except DumpError as error:
        if symbols:
            raise
        return None, str(error)


def _is_absent(prog: Program, dump: str, key: str, reason: str) -> bool:
    # Whether what was not found is not in this kernel, for certain.
    if not reason.startswith("this kernel has no "):
        return False
    if key == "zram":
        # It may be that its own symbols are missing.
        loaded = {module.name for module in prog.modules()}
        return key not in loaded and missing_symbols(prog, dump) is None
    return key == "pstore" or missing_symbols(prog, dump) is None


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
                draft.note(_reason(error))
            if prog is not None and (draft.notes or draft.lacking):
                reason = next(iter(draft.notes), "")
                draft.absent = _is_absent(prog, dump, key, reason)
                if key in _MODULES and not draft.absent:
                    missing = missing_symbols(prog, dump, _MODULES[key])
                    if missing:
                        draft.note(missing)
            sections.append(draft.section(key, title))
        return _report(opened, sections)


# In the log, of the task that died.
_DIED = re.compile(
    r"CPU: (?P<cpu>\d+) (?:UID: \d+ )?PID: (?P<pid>\d+) Comm: (?P<comm>.{0,15}?) "
    r"(?:Kdump: loaded )?(?P<taint>Not tainted|Tainted: .*?) \d"
)


def _report(dump: _Dump, sections: list[Section]) -> Report:
    from drgn_tools.info import as_text, read_info

    lines = [line for record in dump.records for line in _log_text(record)]
    panic = panic_line(dump.records)
    words = _last_words(lines, panic)
    info = read_info(dump.path)
    title = f"Linux {info.release or 'of an unknown release'}"
    if info.node not in (None, "(none)"):
        title += f" on {info.node}"
    # The panic is the headline; and first comes what people ask first.
    about = dict(as_text(info))
    rows = [("crash time", about["crash time"]), *_death(lines, words)]
    known = {"panic", *(label for label, _ in rows)}
    rows += [row for row in about.items() if row[0] not in known]
    died = panic is not None or info.crash_time is not None
    return Report(
        title,
        panic or _no_panic(dump),
        died,
        _verdicts(dump, info, sections),
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
_CALLED = re.compile(r"\] {1,3}(?:\[<[0-9a-f]+>\] )?([\w.]+\+0x\S+.*)")
_LOG_FRAME = re.compile(r"\] {1,3}(<|\?|\[<|[\w.]+\+0x)")


def _headline_trace(
    dump: _Dump, lines: list[str], words: tuple[int, int, int] | None
) -> Lines:
    if dump.prog is not None and (task := _crashed(dump.prog)) is not None:
        stack, _ = _stack(dump.prog, task)
        if stack:
            seen = _task(task)
            caption = f"Stack of {_task_name(seen)} on CPU {seen.cpu}, which panicked"
            return Lines(caption, stack)
    if words is not None:
        start, end, at = words
        for number in range(start, end):
            if _CALL_TRACE.search(lines[number]):
                functions = []
                for line in lines[number + 1 : end]:
                    if not _LOG_FRAME.search(line):
                        break
                    # Those with a question mark were there before.
                    if called := _CALLED.search(line):
                        functions.append(called[1])
                return Lines("Call trace in the kernel log", functions)
        return Lines("Around it in the log", lines[max(0, at - 8) : at + 8])
    return Lines("The end of the kernel log", lines[-12:])


def _verdicts(
    dump: _Dump, info: DumpInfo, sections: list[Section]
) -> list[tuple[str, str]]:
    lacks = []
    if info.lost_bytes:
        lacks.append(f"cut short: {binary_size(info.lost_bytes)} are missing")
    if info.incomplete:
        lacks.append("marked incomplete: pages are missing that it should have")
    if info.part:
        lacks.append("one of several files: the others have the rest")
    if lacks:
        found = [("missing", f"The dump is {'; it is '.join(lacks)}")]
    elif info.dump_level:
        found = [("ok", f"The dump is whole, filtered with -d {info.dump_level}")]
    else:
        found = [("ok", "The dump is whole, and not filtered")]
    if dump.vmcore.live:
        found.append(("partly", "The kernel was running while it was read"))
    if dump.prog is None:
        found.append(("partly", f"drgn cannot open it: {dump.why_no_prog}"))
    elif missing := missing_symbols(dump.prog, dump.path):
        found.append(("partly", missing[0].upper() + missing[1:]))
    else:
        found.append(("ok", "Debugging symbols of this kernel were found"))
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
