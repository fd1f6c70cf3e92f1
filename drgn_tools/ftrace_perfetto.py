# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Trace buffers for Perfetto
--------------------------

What is to be seen of a trace buffer: a track for each CPU with a mark for each event,
one for each task with the calls of the function graph, and the events that Perfetto
shows scheduling by.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator, Mapping
from heapq import merge
from operator import attrgetter
from typing import NamedTuple, Union

from drgn import FaultError
from drgn.helpers.linux.pid import find_task

from drgn_tools.export.perfetto import (
    SCHEDULING,
    Event,
    KernelEvent,
    Sequence,
    Thread,
    Track,
)
from drgn_tools.ftrace_memory import TraceBuffer, TraceEvent
from drgn_tools.ftrace_text import TORN, Printer
from drgn_tools.ring_buffer import RingEvent
from drgn_tools.text import printable

_Item = Union[Track, Event, Thread, KernelEvent]
# Ranks of tracks that come behind those of CPUs.
_IDLE, _TASKS = 1 << 20, 1 << 21
_MASK = (1 << 63) - 1
# Deeper than calls are recorded.
_MAX_DEPTH = 1000


class Source(NamedTuple):
    """A trace buffer, and what reads its records."""

    buffer: TraceBuffer
    printer: Printer
    cpus: Mapping[int, Iterator[RingEvent]]
    """Of each CPU, in the order of their times."""


def perfetto_trace(sources: list[Source]) -> Iterator[bytes]:
    """Return the content of a file for Perfetto, in pieces."""
    first = 1
    for number, source in enumerate(sources, 1):
        picture = _Picture(source, first)
        sequence = Sequence(number, often=("caller", "task"))
        yield from sequence.packets(picture.items())
        first = picture.next


class _Picture:
    # Of one buffer.

    def __init__(self, source: Source, first: int) -> None:
        self._buffer, self._printer, self._cpus = source
        self._top = first
        #: The track after the last one.
        self.next = first + 1
        self._tasks: dict[int, str] = {}
        self._tracks: dict[tuple[str, int], int] = {}
        # By track: how deep the calls are that have not returned.
        self._calls: dict[int, list[int]] = {}
        self._readers: dict[int, Callable[[bytes], dict[str, int | str]]] = {}
        self._functions: dict[int, str] = {}
        self._seen: set[int] = {0}

    def items(self) -> Iterator[_Item]:
        buffer = self._buffer
        name = "ftrace"
        if buffer.name:
            name += f", instance {printable(buffer.name)}"
        what = f"Its clock is {buffer.clock}"
        if not buffer.in_ns:
            name += f" (1 ns = 1 of clock {buffer.clock})"
            what += ", which does not count nanoseconds"
        yield Track(self._top, name, rank=self._top, description=f"{what}.")
        for cpu in sorted(self._cpus):
            yield self._track("cpu", cpu, f"CPU {cpu}", cpu)
        scheduled = not buffer.name and buffer.in_ns
        for record in merge(*self._cpus.values(), key=attrgetter("time")):
            record = record._replace(time=record.time & _MASK)
            event = self._printer.event_of(record.data)
            name = printable(event.name) if event else "unknown"
            ftrace = event is not None and event.system == "ftrace"
            try:
                if event and ftrace and name in ("funcgraph_entry", "funcgraph_exit"):
                    yield from self._call(record, event)
                    continue
                if event and ftrace and name == "function":
                    yield self._function(record, event)
                    continue
                if event and scheduled and event.name in SCHEDULING:
                    yield from self._scheduling(record, event)
            except TORN:
                # It is shown as what can be told of it.
                pass
            yield self._mark(record, name)

    def _track(self, kind: str, number: int, name: str, rank: int) -> Track:
        track = Track(self.next, name, self._top, rank)
        self._tracks[kind, number] = self.next
        self.next += 1
        return track

    def _task(self, pid: int) -> str:
        task = self._tasks.get(pid)
        if task is None:
            comm = printable(self._printer.commands.get(pid))
            task = self._tasks[pid] = f"{comm}-{pid}"
        return task

    def _by(self, record: RingEvent) -> tuple[str, str]:
        return "task", self._task(self._printer.pid_of(record.data))

    def _mark(self, record: RingEvent, name: str) -> Event:
        text = self._printer.body(record).strip("\n")
        track = self._tracks["cpu", record.cpu]
        details = (self._by(record), ("text", text))
        return Event(record.time, track, "instant", name, details)

    # --- functions

    def _values(self, record: RingEvent, event: TraceEvent) -> dict[str, int | str]:
        read = self._readers.get(event.type)
        if read is None:
            read = self._readers[event.type] = _reader(
                event, self._printer.kernel.little
            )
        return read(record.data)

    def _name(self, address: int) -> str:
        name = self._functions.get(address)
        if name is None:
            kernel = self._printer.kernel
            mask = (1 << 8 * kernel.word) - 1
            moved = address + self._buffer.text_delta & mask
            name = self._functions[address] = kernel.symbol(moved)
        return name

    def _function(self, record: RingEvent, event: TraceEvent) -> Event:
        values = self._values(record, event)
        name = self._name(int(values["ip"]))
        caller = self._name(int(values["parent_ip"]))
        track = self._tracks["cpu", record.cpu]
        details = (self._by(record), ("caller", caller))
        return Event(record.time, track, "instant", name, details)

    def _call(self, record: RingEvent, event: TraceEvent) -> Iterator[_Item]:
        values = self._values(record, event)
        function = self._name(int(values["func"]))
        # Above the low bits some kernels keep flags.
        depth = min(int(values["depth"]) & 0xFFFF, _MAX_DEPTH)
        pid = self._printer.pid_of(record.data)
        # Each CPU has an idle task.
        key = ("task", pid) if pid else ("idle", record.cpu)
        if key not in self._tracks:
            if pid:
                yield self._track(*key, self._task(pid), _TASKS + pid)
            else:
                name = f"<idle>, CPU {record.cpu}"
                yield self._track(*key, name, _IDLE + record.cpu)
        track = self._tracks[key]
        calls = self._calls.setdefault(track, [])
        entry = event.name == "funcgraph_entry"
        # What has no return in the buffer.
        least = depth if entry else depth + 1
        while calls and calls[-1] >= least:
            calls.pop()
            yield Event(record.time, track, "end")
        if entry:
            calls.append(depth)
            yield Event(record.time, track, "begin", function)
        elif calls and calls[-1] == depth:
            calls.pop()
            yield Event(record.time, track, "end")
        else:
            # Nor has this its call.
            details = (("text", "returned; its call is not in the buffer"),)
            yield Event(record.time, track, "instant", function, details)

    # --- scheduling

    def _scheduling(self, record: RingEvent, event: TraceEvent) -> Iterator[_Item]:
        values = self._values(record, event)
        for name in ("", "prev_", "next_"):
            pid = values.get(f"{name}pid")
            if isinstance(pid, int) and pid not in self._seen:
                self._seen.add(pid)
                comm = str(values.get(f"{name}comm", ""))
                yield Thread(record.time, pid, self._tgid(pid), comm)
        pid = self._printer.pid_of(record.data)
        yield KernelEvent(record.time, record.cpu, pid, event.name, values)

    def _tgid(self, pid: int) -> int:
        # As the trace has it, or as it is now; else it is taken for one of its own.
        tgid = self._printer.commands.tgid(pid)
        if not tgid:
            with contextlib.suppress(LookupError, FaultError):
                task = find_task(self._printer.prog, pid)
                if task:
                    tgid = int(task.tgid.value_())
        return tgid or pid


_CODES = {(1, 0): "B", (2, 0): "H", (4, 0): "I", (8, 0): "Q"}
_CODES.update({(size, 1): code.lower() for (size, _), code in _CODES.items()})


def _reader(event: TraceEvent, little: bool) -> Callable[[bytes], dict[str, int | str]]:
    # What takes a record's numbers and texts of fixed length.
    order = "<" if little else ">"
    numbers = []
    texts = []
    for field in event.fields:
        code = _CODES.get((field.size, int(field.signed)))
        if field.type.startswith("char["):
            texts.append((field.name, field.offset, field.size))
        elif code and "[" not in field.type:
            unpack = struct.Struct(order + code).unpack_from
            numbers.append((field.name, field.offset, unpack))

    def read(data: bytes) -> dict[str, int | str]:
        values: dict[str, int | str] = {
            name: unpack(data, offset)[0] for name, offset, unpack in numbers
        }
        for name, offset, size in texts:
            raw = data[offset : offset + size].split(b"\0", 1)[0]
            values[name] = printable(raw.decode("utf-8", "backslashreplace"))
        return values

    return read
