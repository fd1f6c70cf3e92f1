# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What a report says of any kernel
--------------------------------

Its log, its tasks and its memory.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Callable, NamedTuple

from drgn_tools.errors import DumpError
from drgn_tools.export.report_page import Hint, Lines, Picture, Table
from drgn_tools.kernel_log import dump_log, log_records, panic_line
from drgn_tools.last_words import last_words, log_text
from drgn_tools.program import missing_symbols
from drgn_tools.report_draft import (
    Draft,
    Dump,
    command,
    opened,
    reason,
    value,
)
from drgn_tools.text import binary_size, decoded, plural
from drgn_tools.vmcore import Vmcore

if TYPE_CHECKING:
    from drgn import Object, Program, StackTrace

    from drgn_tools.kernel_log import LogRecord
    from drgn_tools.page_map import PageMap, Total

# What is shown of a log: its start, and its end.
_LOG_START = 200
_LOG_END = 5000
_TASKS = 20000
_STACK_FRAMES = 64


# --- the kernel log


def read_log(vmcore: Vmcore) -> tuple[list[LogRecord], list[str]]:
    """The records of the kernel log, and why not all are there."""
    faults: list[str] = []
    info = vmcore.vmcoreinfo
    if info is None:
        return [], ["the log cannot be found: the dump has no VMCOREINFO"]
    if info.symbol("prb") is None and info.symbol("log_end") is not None:
        # Until 3.5 it has no records.
        return [], faults
    try:
        records = list(log_records(info, vmcore.kernel, warn=faults.append))
    except Exception as error:
        return [], [f"the log cannot be read: {reason(error)}"]
    return records, faults


def log_section(dump: Dump, draft: Draft) -> None:
    """Add the kernel log: what it said last, and all of it."""
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
    draft.summary = plural(count, "line")
    words = last_words(lines, panic_line(dump.records))
    if words is not None:
        first, last, at = words
        mark = frozenset((at - first,))
        draft.add(Lines("What it said last", lines[first:last], mark))
    else:
        draft.add(Lines("Its last lines", lines[-30:]))
    caption = f"The kernel log, {plural(count, 'line')}"
    if left_out:
        caption += f"; {left_out} in between are left out here"
        lines.insert(len(start), f"    … {left_out} lines …")
    draft.add(Lines(caption, lines, folded=True))
    draft.add(Hint("The whole log:", command(dump, "dmesg")))


def _log_lines(dump: Dump, draft: Draft) -> Iterator[str]:
    for record in dump.records:
        yield from log_text(record)
    if not dump.records and dump.vmcore.vmcoreinfo is not None:
        text = b"".join(dump_log(dump.vmcore, warn=draft.note))
        yield from decoded(text).splitlines()


# --- tasks


class Task(NamedTuple):
    """A task, as far as it is in the dump."""

    task: Object
    pid: int
    comm: str
    state: str
    cpu: int | None
    kernel: bool


def _stack_lines(trace: StackTrace) -> tuple[str, ...]:
    lines = []
    for frame in islice(trace, _STACK_FRAMES):
        name = frame.name
        if name is None:
            symbol = value(frame.symbol)
            if symbol is None:
                name = value(lambda at: f"{at.pc:#x}", frame) or "?"
            else:
                name = f"{symbol.name}+{frame.pc - symbol.address:#x}"
        source = value(frame.source)
        lines.append(f"{name} ({source[0]}:{source[1]})" if source else name)
    if len(trace) > _STACK_FRAMES:
        lines.append(f"… {len(trace) - _STACK_FRAMES} frames more")
    return tuple(lines)


# Functions that every task that waits is in, and every one that panics.
_SWITCHING = re.compile(
    r"context_switch|__schedule|__schedule_loop|schedule(_\w+)?|__switch_to(_asm)?|"
    r"crash_setup_regs|__crash_kexec|io_schedule(_\w+)?"
)


class Stack(NamedTuple):
    """A task's stack, or why there is none."""

    lines: tuple[str, ...] = ()
    place: str = ""
    """The innermost function that is none of the scheduler's."""
    why: str = ""


def stack_of(prog: Program, task: Object, scheduler: range = range(0)) -> Stack:
    """
    A task's stack.

    :param scheduler: Of :func:`scheduler_text()`.
    """
    try:
        trace = prog.stack_trace(task)
        lines = _stack_lines(trace)
    except Exception as error:
        return Stack(why=reason(error))
    for frame, line in zip(trace, lines):
        function = line.partition(" (")[0]
        pc = value(getattr, frame, "pc")
        if pc not in scheduler and not _SWITCHING.fullmatch(function):
            return Stack(lines, function)
    return Stack(lines)


def scheduler_text(prog: Program) -> range:
    """
    Where the functions are that wait on behalf of others, schedule_timeout() for one.

    What is there is no answer to what a task waits in; the kernel goes by it for
    ``/proc/PID/wchan``, too (:linux:`kernel/sched/core.c`, in_sched_functions()).
    """
    edges = [
        value(lambda name: prog.symbol(name).address, f"__sched_text_{edge}")
        for edge in ("start", "end")
    ]
    return range(0) if None in edges else range(*edges)


def read_task(task: Object) -> Task:
    """What there is of a task."""
    from drgn.helpers.linux.sched import get_task_state, task_cpu

    from drgn_tools.swap import comm

    pid = value(lambda: task.pid.value_())
    return Task(
        task,
        -1 if pid is None else pid,
        value(comm, task) or "?",
        value(get_task_state, task) or "?",
        value(task_cpu, task),
        value(lambda: not task.mm.value_()) or False,
    )


def _running(prog: Program) -> dict[int, tuple[Object, int]]:
    # The tasks that CPUs run, by their addresses.
    from drgn.helpers.linux.cpumask import for_each_online_cpu
    from drgn.helpers.linux.sched import cpu_curr

    found = {}
    for cpu in islice(for_each_online_cpu(prog), 1 << 16):
        task = value(cpu_curr, prog, cpu)
        if task is not None:
            found[task.value_()] = (task, cpu)
    return found


def crashed_task(prog: Program) -> Object | None:
    """The task that panicked, if any did."""
    return value(lambda: prog.crashed_thread().object.read_())


def tasks_section(dump: Dump, draft: Draft) -> None:
    """Add the tasks: stacks of those on CPUs, a table of all, stacks of the others."""
    from drgn.helpers.linux.pid import for_each_task

    prog = opened(dump)
    if missing := missing_symbols(prog, dump.path):
        raise DumpError(missing)
    crashed = value(lambda: prog.crashed_thread().object.value_())
    running = _running(prog)
    found: dict[int, Task] = {}
    try:
        for task in draft.some(for_each_task(prog), "tasks", _TASKS):
            found[task.value_()] = read_task(task)
    except Exception as error:
        draft.note(reason(error))
    # Idle tasks are in no list.
    for address, (task, _) in running.items():
        found.setdefault(address, read_task(task))
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
    draft.summary = f"{plural(len(found), 'task')}, {len(running)} on CPUs"
    if crashed not in found:
        draft.summary += "; none is said to have panicked"
    stacks: dict[int, Stack] = {}
    scheduler = scheduler_text(prog)
    for address in draft.some(order, "stacks of tasks", _TASKS):
        task = found[address]
        stack = stacks[address] = stack_of(prog, task.task, scheduler)
        if stack.why:
            draft.lack(f"stack of {task_name(task)}", stack.why)
        if address == crashed or address in running:
            cpu = running[address][1] if address in running else task.cpu
            caption = f"CPU {cpu}: {task_name(task)}"
            if address == crashed:
                caption += ", which panicked"
            draft.add(Lines(caption, stack.lines or (f"no stack: {stack.why}",)))
    places = {address: stack.place for address, stack in stacks.items()}
    draft.add(
        Table(
            "All tasks; what they are in is the function that they wait or run in",
            ("PID", "COMM", "STATE", "CPU", "KIND", "IN"),
            [
                _task_row(found[a], places.get(a, ""), a == crashed, a in running)
                for a in order
            ],
            frozenset((0, 3)),
            frozenset(i for i, address in enumerate(order) if address == crashed),
        )
    )
    waiting = [a for a in order if a not in running and a != crashed]
    _group_stacks([(found[a], stacks[a].lines) for a in waiting if a in stacks], draft)


def task_name(task: Task) -> str:
    """Its name and number."""
    return f"{task.comm}[{task.pid}]"


def _task_row(task: Task, place: str, crashed: bool, running: bool) -> tuple[str, ...]:
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
        place,
    )


def _group_stacks(tasks: Iterable[tuple[Task, tuple[str, ...]]], draft: Draft) -> None:
    # Many wait in the same place; who waits elsewhere comes first.
    groups: dict[tuple[str, ...], list[str]] = {}
    for task, stack in tasks:
        if stack:
            groups.setdefault(stack, []).append(task_name(task))
    for stack, names in sorted(groups.items(), key=lambda item: len(item[1])):
        who = ", ".join(names[:40])
        if len(names) > 40:
            who += f" and {len(names) - 40} more"
        count = "1 task" if len(names) == 1 else f"{len(names)} tasks with this stack"
        draft.add(Lines(f"{count}: {who}", stack, folded=True))


# --- memory


def memory_section(dump: Dump, draft: Draft) -> None:
    """Add what memory is used for: by class and by zone, and a map."""
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

    whole = f"{size(found.pages)} in {plural(found.pages, 'page')}"
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
        Hint("As a picture of its own:", command(dump, "pages", "--image", "map.svg"))
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
