# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Function and Event Tracing
--------------------------

The ``drgn_tools.ftrace`` module provides helpers for the kernel's trace buffers: what
the ``trace`` files of tracefs would show, of a dump or a live kernel, and files of it
that trace-cmd, KernelShark and Perfetto read. Reading consumes nothing.

The printing helpers' names need no import in ``drgn -e`` and in interactive sessions.
"""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Callable, NamedTuple, TypeVar

from drgn import FaultError, Program
from drgn.helpers.common.prog import takes_program_or_default

from drgn_tools.printing import one_line, printing, say

if TYPE_CHECKING:
    from drgn_tools.export import trace_dat
    from drgn_tools.ftrace_memory import Commands, TraceBuffer, TraceEvents
    from drgn_tools.ftrace_text import Kernel, Printer
    from drgn_tools.printing import File
    from drgn_tools.ring_buffer import RingEvent

__all__ = (
    "for_each_ftrace_buffer",
    "for_each_ftrace_event",
    "ftrace_dump",
    "ftrace_export",
)

_T = TypeVar("_T")

# Lines that are printed at once.
_LINES = 1 << 12


class FtraceEvent(NamedTuple):
    """A record of a trace buffer."""

    instance: str
    """Empty for the kernel's own buffer."""
    cpu: int
    time: int
    """In the units of the buffer's clock, mostly nanoseconds."""
    pid: int
    comm: str
    """Of the task, ``<...>`` if the kernel no longer had it."""
    system: str
    name: str
    """Empty if the kernel has no such event."""
    text: str
    """As the ``trace`` file shows it, without what comes before the event."""
    state: str
    """unread, read or uncommitted."""


class FtraceBuffer(NamedTuple):
    """A trace buffer, all CPUs taken together."""

    instance: str
    """Empty for the kernel's own."""
    tracer: str
    clock: str
    unread: int
    """Events that there are to read, by its counters."""
    overrun: int
    """Events that newer ones have overwritten."""
    read: int
    """Events that have been read."""


class FtraceExport(NamedTuple):
    """What was exported."""

    events: int
    cpus: int
    """That these events are of."""
    buffers: int
    """That they are in: the kernel's own, and instances'."""


class _Notes:
    # Told once each, at the end: a torn buffer may have many.
    def __init__(self) -> None:
        self.texts: dict[str, int] = {}

    def __call__(self, text: str) -> None:
        if len(self.texts) < 100 or text in self.texts:
            self.texts[text] = self.texts.get(text, 0) + 1


class _Reader:
    # What all buffers of a program share.
    def __init__(self, prog: Program) -> None:
        from drgn_tools.ftrace_memory import Commands, TraceEvents
        from drgn_tools.ftrace_text import Kernel

        self.prog = prog
        self.kernel: Kernel = Kernel(prog)
        self.events: TraceEvents = TraceEvents(prog)
        self.commands: Commands = Commands(prog)

    def printer(self, buffer: TraceBuffer) -> Printer:
        from drgn_tools.ftrace_text import Printer

        return Printer(self.prog, buffer, self.kernel, self.events, self.commands)


def _chosen(prog: Program, instance: str | None) -> list[TraceBuffer]:
    from drgn_tools.ftrace_memory import FtraceError, trace_buffers

    buffers = trace_buffers(prog)
    if instance is None:
        return buffers
    found = [buffer for buffer in buffers if buffer.name == instance]
    if not found:
        names = ", ".join(buffer.name for buffer in buffers if buffer.name)
        raise FtraceError(
            f"there is no instance {instance}"
            + (f"; there are {names}" if names else "; there are none")
        )
    return found


def _cpu_streams(
    buffer: TraceBuffer,
    cpu: int | None,
    note: Callable[[str], object],
    *,
    read: bool = False,
    uncommitted: bool = False,
) -> dict[int, Iterator[RingEvent]]:
    from drgn_tools.ring_buffer import for_each_ring_buffer_event, ring_buffer_cpus

    cpus = ring_buffer_cpus(buffer.buffer) if cpu is None else [cpu]
    return {
        number: _since(
            for_each_ring_buffer_event(
                buffer.buffer, number, read=read, uncommitted=uncommitted, note=note
            ),
            buffer.time_start,
        )
        for number in cpus
    }


def _since(events: Iterator[RingEvent], start: int) -> Iterator[RingEvent]:
    # The kernel leaves out what is older than the last reset.
    for event in events:
        if event.time >= start:
            yield event
            break
    yield from events


def _checked(work: Callable[[], _T]) -> _T:
    # Errors of the kernel's structures as one line.
    from drgn_tools.ftrace_memory import FtraceError

    try:
        return work()
    except (LookupError, FaultError, ValueError) as error:
        raise FtraceError(f"the trace cannot be read: {one_line(error)}") from None


@takes_program_or_default
def for_each_ftrace_buffer(prog: Program) -> Iterator[FtraceBuffer]:
    """
    Iterate over the trace buffers, the kernel's own first.

    :raises DumpError: if this kernel has no trace, or it cannot be found.
    """
    from drgn_tools.ring_buffer import ring_buffer_cpus, ring_buffer_stats

    for buffer in _chosen(prog, None):
        cpus = ring_buffer_cpus(buffer.buffer)
        stats = [ring_buffer_stats(buffer.buffer, cpu) for cpu in cpus]
        yield FtraceBuffer(
            buffer.name,
            buffer.tracer,
            buffer.clock,
            sum(each.unread for each in stats),
            sum(each.overrun for each in stats),
            sum(each.read for each in stats),
        )


@takes_program_or_default
def for_each_ftrace_event(
    prog: Program,
    instance: str | None = None,
    cpu: int | None = None,
    *,
    read: bool = False,
    uncommitted: bool = False,
    last: int | None = None,
    note: Callable[[str], object] | None = None,
) -> Iterator[FtraceEvent]:
    """
    Iterate over the records of trace buffers, in the order of their times.

    :param instance: Of this one only; empty for the kernel's own buffer.
    :param cpu: Of this one only.
    :param read: Also those that were read and are still there.
    :param uncommitted: Also those that were being written.
    :param last: Of each buffer only so many, the newest ones.
    :param note: Called with what is missing or torn, a line each.
    :raises DumpError: if this kernel has no trace, or it cannot be found.
    """
    from heapq import merge
    from operator import attrgetter

    buffers = _chosen(prog, instance)
    reader = _Reader(prog)
    for buffer in buffers:
        printer = reader.printer(buffer)
        streams = _cpu_streams(
            buffer,
            cpu,
            note or (lambda text: None),
            read=read,
            uncommitted=uncommitted,
        )
        events: Iterable[RingEvent] = merge(*streams.values(), key=attrgetter("time"))
        if last is not None:
            events = deque(events, last)
        for event in events:
            known = printer.event_of(event.data)
            if known is None and event.state == "read":
                # What is left of an older event, or nothing at all.
                continue
            pid = printer.pid_of(event.data)
            yield FtraceEvent(
                buffer.name,
                event.cpu,
                event.time,
                pid,
                reader.commands.get(pid),
                known.system if known else "",
                known.name if known else "",
                printer.body(event).rstrip("\n"),
                event.state,
            )


@takes_program_or_default
def ftrace_dump(
    prog: Program,
    instance: str | None = None,
    cpu: int | None = None,
    *,
    file: File | None = None,
) -> None:
    """
    Print the trace buffers as the ``trace`` files of tracefs show them, the kernel's
    own first. The name of an instance stands before its buffer.

    What is missing or torn is said on standard error.

    :param instance: Of this one only; empty for the kernel's own buffer.
    :param cpu: Of this one only.
    :param file: File to print to. Defaults to :data:`sys.stdout`.
    :raises DumpError: if this kernel has no trace, or it cannot be found.
    """

    def work(out: File) -> None:
        _checked(lambda: _dump(prog, instance, cpu, out))

    printing("ftrace", prog, file, work)


def _dump(prog: Program, instance: str | None, cpu: int | None, out: File) -> None:
    buffers = _chosen(prog, instance)
    reader = _Reader(prog)
    for buffer in buffers:
        notes = _Notes()
        if buffer.name and instance is None:
            from drgn_tools.text import printable

            out.write(f"\n== instance {printable(buffer.name)}\n")
        printer = reader.printer(buffer)
        _print_buffer(printer, buffer, cpu, notes, out)
        for text, count in notes.texts.items():
            of = f"instance {buffer.name}: " if buffer.name else ""
            say("ftrace", f"{of}{text}" + (f" ({count} times)" if count > 1 else ""))
        for text in printer.notes():
            say("ftrace", text)


def _print_buffer(
    printer: Printer,
    buffer: TraceBuffer,
    cpu: int | None,
    notes: _Notes,
    out: File,
) -> None:
    from heapq import merge
    from operator import attrgetter

    from drgn_tools.ring_buffer import ring_buffer_cpus, ring_buffer_stats

    streams = _cpu_streams(buffer, cpu, notes)
    if buffer.tracer == "function_graph":
        from drgn_tools.ftrace_graph import Graph

        graph = Graph(printer, buffer)
        header, lines = graph.header(), graph.lines(graph.items(streams))
    else:
        stats = [ring_buffer_stats(buffer.buffer, number) for number in streams]
        entries = sum(each.unread for each in stats)
        header = printer.header(
            entries, sum(each.entries - each.read for each in stats)
        )
        # Said of each CPU's first record where records have been overwritten, but
        # for the first of all.
        annotate = "ANNOTATE" in buffer.options and any(
            ring_buffer_stats(buffer.buffer, number).overrun
            for number in ring_buffer_cpus(buffer.buffer)
        )
        events = merge(*streams.values(), key=attrgetter("time"))
        lines = printer.lines(events, annotate=annotate)
    for line in header:
        out.write(line + "\n")
    while chunk := list(islice(lines, _LINES)):
        out.write("".join(chunk))


@takes_program_or_default
def ftrace_export(prog: Program, path: str, *, force: bool = False) -> FtraceExport:
    """
    Write the trace buffers for other tools.

    :param path: Of the file, which appears when all has been written. What it ends in
        says what it is: ``.dat`` for trace-cmd and KernelShark, ``.pftrace`` or
        ``.perfetto-trace`` for Perfetto.
    :param force: It may replace a file.
    :return: how much that was.
    :raises DumpError: if this kernel has no trace, it cannot be found, or the file
        cannot be written.
    :raises ValueError: if the file's name ends in something else.
    """
    from drgn_tools.export.endings import format_of

    kind = format_of("ftrace", path)
    return _checked(lambda: _export(prog, path, kind, force))


def _export(prog: Program, path: str, kind: str, force: bool) -> FtraceExport:
    from drgn_tools.output import check_target

    check_target(path, force)
    notes = _Notes()
    reader = _Reader(prog)
    counts: Counter[tuple[str, int]] = Counter()
    streams = [
        (
            buffer,
            {
                cpu: _counted(events, counts, (buffer.name, cpu))
                for cpu, events in _cpu_streams(buffer, None, notes).items()
            },
        )
        for buffer in _chosen(prog, None)
    ]
    if kind == "perfetto":
        from drgn_tools.ftrace_perfetto import Source, perfetto_trace
        from drgn_tools.output import write_file

        sources = [Source(b, reader.printer(b), cpus) for b, cpus in streams]
        write_file(path, perfetto_trace(sources), force)
        for source in sources:
            for text in source.printer.notes():
                notes(text)
    else:
        from drgn_tools.export.trace_dat import write_trace_dat

        buffers = [_trace_dat_buffer(buffer, cpus) for buffer, cpus in streams]
        write_trace_dat(path, _trace_dat_kernel(reader), buffers, force)
    for text, count in notes.texts.items():
        say("ftrace", text + (f" ({count} times)" if count > 1 else ""))
    # Of those that there are any of.
    names, cpus = ({key[part] for key in counts} for part in (0, 1))
    return FtraceExport(sum(counts.values()), len(cpus), len(names))


def _counted(
    events: Iterator[RingEvent], counts: Counter[tuple[str, int]], key: tuple[str, int]
) -> Iterator[RingEvent]:
    for event in events:
        counts[key] += 1
        yield event


def _trace_dat_buffer(
    buffer: TraceBuffer, cpus: dict[int, Iterator[RingEvent]]
) -> trace_dat.Buffer:
    from drgn_tools.export.trace_dat import Buffer
    from drgn_tools.ring_buffer import ring_buffer_stats

    sizes = [ring_buffer_stats(buffer.buffer, cpu).subbuf_size for cpu in cpus]
    return Buffer(buffer.name, buffer.clock, max(sizes, default=0), cpus)


def _trace_dat_kernel(reader: _Reader) -> trace_dat.Kernel:
    from drgn_tools.export.trace_dat import Kernel

    kernel = reader.kernel
    return Kernel(
        kernel.little,
        kernel.word,
        _uname(reader.prog),
        reader.events.common,
        reader.events.get,
        kernel.string,
        kernel.symbols,
        reader.commands.known,
    )


def _uname(prog: Program) -> str:
    try:
        name = prog["init_uts_ns"].name
        parts = [
            member.string_().decode("utf-8", "backslashreplace")
            for member in (name.sysname, name.nodename, name.release, name.machine)
        ]
    except (LookupError, FaultError):
        return ""
    return " ".join(parts)


def _told(written: FtraceExport) -> str:
    if not written.events:
        return "no events"
    parts = (
        f"{number} {one}{'s' * (number != 1)}"
        for number, one in zip(written, ("event", "CPU", "buffer"))
    )
    return "{} of {} in {}".format(*parts)


def print_dump(
    dump: str,
    *,
    instance: str | None = None,
    cpu: int | None = None,
    symbols: tuple[str, ...] = (),
    output: str | None = None,
    force: bool = False,
    quiet: bool = False,
) -> None:
    """
    Print the trace buffers of a dump, as ``drgn-tools ftrace DUMP`` does.

    :param symbols: Files with debugging symbols.
    :param output: Write this file instead: see :func:`ftrace_export()`.
    :param force: It may replace a file.
    :param quiet: Do not say how much was written.
    :raises DumpError: if the dump cannot be read or has no trace.
    """
    from drgn_tools.output import check_target
    from drgn_tools.program import open_dump, require_symbols
    from drgn_tools.progress import printed
    from drgn_tools.text import printable

    if output is not None:
        check_target(output, force, (dump,))
    prog = open_dump(dump, symbols)
    require_symbols(prog, dump, "ftrace")
    if output is not None:
        written = ftrace_export(prog, output, force=force)
        if not quiet:
            print(printable(f"{output}: {_told(written)}"), file=sys.stderr)
    else:
        with printed() as out:
            ftrace_dump(prog, instance, cpu, file=out)
