# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The function graph as text
--------------------------

What the tracer ``function_graph`` recorded, as the ``trace`` file of tracefs shows it:
:linux:`kernel/trace/trace_functions_graph.c`. Calls are indented, with the time that
they took; other events are comments among them.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Mapping
from heapq import merge
from typing import NamedTuple

from drgn import FaultError

from drgn_tools.ftrace_memory import TraceBuffer, TraceEvent
from drgn_tools.ftrace_text import TORN, Printer
from drgn_tools.ring_buffer import RingEvent
from drgn_tools.text import printable, printable_lines

# Options of the tracer, in struct tracer_flags.
_OVERRUN, _CPU, _OVERHEAD, _PROC, _DURATION, _ABS_TIME = (1 << i for i in range(6))
_TAIL = 1 << 8
# As funcgraph-cpu, -overhead, -duration and -irqs are set by default.
_DEFAULT = _CPU | _OVERHEAD | _DURATION
_MARKS = ((9, "$"), (8, "@"), (7, "*"), (6, "#"), (5, "!"), (4, "+"))
_INDENT = 2
_MAX_DEPTH = 1000
_FULL = " " * 14 + "|  "
_RULE = " " + "-" * 42 + "\n"


class _Call(NamedTuple):
    func: int
    depth: int
    # Of a return only.
    overrun: int
    duration: int


class _Item(NamedTuple):
    time: int
    event: RingEvent
    # The call that it is, and the return that follows at once.
    entry: _Call | None
    leaf: _Call | None
    exit: _Call | None


def _duration(nanoseconds: int) -> str:
    whole, rest = divmod(nanoseconds, 1000)
    shown = str(whole)
    if len(shown) < 7:
        # No more than seven digits in all.
        shown += "." + f"{rest:03d}"[: min(4, 7 - len(shown))]
    return f"{shown} us ".ljust(12)


def _mark(nanoseconds: int) -> str:
    return next((mark for power, mark in _MARKS if nanoseconds > 10**power), " ")


class Graph:
    """Prints one trace buffer of the function graph."""

    def __init__(self, printer: Printer, buffer: TraceBuffer) -> None:
        self._printer = printer
        self._context = "CONTEXT_INFO" in buffer.options
        self._flags = _DEFAULT
        self._delta = buffer.text_delta
        with contextlib.suppress(LookupError, FaultError, AttributeError):
            # Of each instance since 7.x.
            tr = buffer.trace_array
            if tr.type_.type.has_member("current_trace_flags"):
                self._flags = int(tr.current_trace_flags.val.value_())
            else:
                self._flags = int(tr.current_trace.flags.val.value_())
        prog = printer.prog
        cpus = 1
        with contextlib.suppress(LookupError, FaultError):
            cpus = int(prog["nr_cpu_ids"].value_())
        self._cpu_width = len(str(cpus - 1))
        self._irq = (0, 0)
        with contextlib.suppress(LookupError):
            names = ("__irqentry_text_start", "__irqentry_text_end")
            begin, end = (prog.symbol(name).address for name in names)
            self._irq = begin, end
        self._last: dict[int, int] = {}
        self._depth: dict[int, int] = {}
        # Functions that are under way, by CPU and depth.
        self._entered: dict[tuple[int, int], int] = {}

    def header(self) -> Iterator[str]:
        """The lines that the trace file begins with."""
        yield f"# tracer: {printable(self._printer.style.buffer.tracer)}"
        yield "#"
        if not self._context:
            return
        flags = self._flags
        columns = (
            (_ABS_TIME, ("     TIME       ", "      |         ")),
            (_CPU, (" CPU", " |  ")),
            (_PROC, ("  TASK/PID       ", "   |    |        ")),
            (_DURATION, ("  DURATION   ", "   |   |      ")),
        )
        for i, last in enumerate(("FUNCTION CALLS", "|   |   |   |")):
            shown = "".join(names[i] for flag, names in columns if flags & flag)
            yield f"#{shown}{' ' * 15}{last}"

    # --- what belongs together

    def items(self, streams: Mapping[int, Iterator[RingEvent]]) -> Iterator[_Item]:
        """The events of all CPUs, a call and its return at once as one."""
        return merge(*map(self._paired, streams.values()), key=lambda item: item.time)

    def _paired(self, events: Iterator[RingEvent]) -> Iterator[_Item]:
        before: _Item | None = None
        pid_of = self._printer.pid_of
        for event in events:
            item = self._item(event)
            if before is not None:
                entry, back = before.entry, item.exit
                if (
                    entry
                    and back
                    and entry.func == back.func
                    and pid_of(before.event.data) == pid_of(event.data)
                ):
                    yield before._replace(leaf=back)
                    before = None
                    continue
                yield before
            before = item
        if before is not None:
            yield before

    def _item(self, event: RingEvent) -> _Item:
        known = self._printer.event_of(event.data)
        entry = back = None
        if known is not None and known.system == "ftrace":
            with contextlib.suppress(*TORN):
                if known.name == "funcgraph_entry":
                    entry = self._call(known, event.data)
                elif known.name == "funcgraph_exit":
                    back = self._call(known, event.data)
        return _Item(event.time, event, entry, None, back)

    def _call(self, known: TraceEvent, data: bytes) -> _Call:
        order = "<" if self._printer.kernel.little else ">"
        values = {}
        for field in known.fields:
            if field.name in ("func", "depth", "overrun", "calltime", "rettime"):
                code = {4: "I", 8: "Q"}[field.size]
                values[field.name] = int(
                    struct.unpack_from(order + code, data, field.offset)[0]
                )
        duration = values.get("rettime", 0) - values.get("calltime", 0)
        return _Call(
            values["func"],
            # Above the low bits some kernels keep flags.
            min(values["depth"] & 0xFFFF, _MAX_DEPTH),
            values.get("overrun", 0),
            duration & (1 << 64) - 1,
        )

    # --- lines

    def lines(self, items: Iterator[_Item]) -> Iterator[str]:
        """Each as its lines, with their ends."""
        for item in items:
            event = item.event
            pid = self._printer.pid_of(event.data)
            if item.entry:
                shown = self._entry(event, pid, item.entry, item.leaf)
            elif item.exit:
                shown = self._exit(event, pid, item.exit)
            else:
                shown = self._comment(event, pid)
            yield printable_lines(shown)

    def _cpu(self, cpu: int) -> str:
        return f" {cpu:{self._cpu_width}d}) "

    def _proc(self, pid: int) -> str:
        name = f"{printable(self._printer.commands.get(pid))[:7]}-{pid}"
        spaces = max(14 - len(name), 0)
        return " " * (spaces // 2) + name + " " * (spaces - spaces // 2)

    def _columns(self, event: RingEvent, pid: int) -> str:
        if not self._context:
            return ""
        flags = self._flags
        shown = ""
        if flags & _ABS_TIME:
            us = event.time // 1000
            shown += f"{us // 1000000:5d}.{us % 1000000:06d} |  "
        if flags & _CPU:
            shown += self._cpu(event.cpu)
        if flags & _PROC:
            shown += f"{self._proc(pid)} | "
        return shown

    def _switched(self, cpu: int, pid: int) -> str:
        before = self._last.get(cpu)
        self._last[cpu] = pid
        if before in (None, pid):
            return ""
        assert before is not None
        shown = f"{self._cpu(cpu)}{self._proc(before)} => {self._proc(pid)}\n"
        return f"{_RULE}{shown}{_RULE}\n"

    def _interrupt(self, event: RingEvent, pid: int, func: int, arrow: str) -> str:
        if not self._irq[0] <= func < self._irq[1]:
            return ""
        shown = self._columns(event, pid)
        if self._context and self._flags & _DURATION:
            return f"{shown}  {arrow} |\n"
        return f"{shown}{arrow}\n"

    def _time(self, duration: int | None) -> str:
        if not self._flags & _DURATION or not self._context:
            return ""
        if duration is None:
            return _FULL
        mark = _mark(duration) if self._flags & _OVERHEAD else " "
        return f"{mark} {_duration(duration)}|  "

    def _name(self, func: int) -> str:
        mask = (1 << 8 * self._printer.kernel.word) - 1
        return self._printer.kernel.symbol(func + self._delta & mask)

    def _entry(
        self, event: RingEvent, pid: int, call: _Call, leaf: _Call | None
    ) -> str:
        cpu = event.cpu
        shown = self._switched(cpu, pid)
        shown += self._interrupt(event, pid, call.func, "==========>")
        shown += self._columns(event, pid)
        indent = " " * (call.depth * _INDENT)
        if leaf is None:
            self._depth[cpu] = call.depth
            self._entered[cpu, call.depth] = call.func
            return f"{shown}{self._time(None)}{indent}{self._name(call.func)}() {{\n"
        self._depth[cpu] = call.depth - 1
        self._entered.pop((cpu, call.depth), None)
        shown += f"{self._time(leaf.duration)}{indent}{self._name(call.func)}();\n"
        return shown + self._interrupt(event, pid, leaf.func, "<==========")

    def _exit(self, event: RingEvent, pid: int, back: _Call) -> str:
        cpu = event.cpu
        self._depth[cpu] = back.depth - 1
        entered = self._entered.pop((cpu, back.depth), 0)
        shown = self._switched(cpu, pid) + self._columns(event, pid)
        shown += self._time(back.duration) + " " * (back.depth * _INDENT) + "}"
        if entered != back.func or self._flags & _TAIL:
            # Where it was entered is not in the buffer.
            shown += f" /* {self._name(back.func)} */"
        shown += "\n"
        if self._flags & _OVERRUN:
            shown += f" (Overruns: {back.overrun})\n"
        return shown + self._interrupt(event, pid, back.func, "<==========")

    def _comment(self, event: RingEvent, pid: int) -> str:
        known = self._printer.event_of(event.data)
        body = self._printer.body(event)
        if known is not None and known.system == "ftrace":
            if known.name in ("function", "kernel_stack"):
                return "".join(self._printer.lines(iter((event,))))
            if known.name in ("print", "bprint", "bputs"):
                # Without where it was said.
                body = body.partition(": ")[2]
        shown = self._switched(event.cpu, pid) + self._columns(event, pid)
        depth = self._depth.get(event.cpu, 0)
        indent = " " * ((depth + 1) * _INDENT) if depth > 0 else ""
        body = body[:-1] if body.endswith("\n") else body
        return f"{shown}{self._time(None)}{indent}/* {body} */\n"
