# SPDX-License-Identifier: LGPL-2.1-or-later
"""
How fast ring buffers are decoded and traces printed
----------------------------------------------------

    python -m benchmarks.ring_buffer [--events 1000000] [--kernel 6.12] [--runs 5]

Decoding is of one CPU's buffer in memory, of events of 20 to 60 bytes. Printing, to
/dev/null, is of the trace of a guest of the test bench, again and again, and of some
kinds of its events alone. Beside it, what trace-cmd takes for what was exported.
Times are those of a CPU, so that what else runs does not matter much.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Callable

import drgn

from benchmarks.report import machine, table
from drgn_tools.ftrace import for_each_ftrace_buffer, ftrace_export
from drgn_tools.ftrace_memory import Commands, TraceEvents, trace_buffers
from drgn_tools.ftrace_text import Kernel, Printer
from drgn_tools.ring_buffer import RingEvent, for_each_ring_buffer_event
from tests.ring_kernel import Data, PageOf, RingKernel
from tests.vm import ftrace_guests, peers

SIZES = (16, 24, 56, 24, 32)


def ring(events: int) -> RingKernel:
    """A kernel whose ring buffer has so many."""
    per_page = 4080 // (sum(SIZES) // len(SIZES) + 5)
    items = [Data(bytes(SIZES[i % len(SIZES)])) for i in range(per_page)]
    pages = [PageOf(items, 1000 * n) for n in range(-(-events // per_page))]
    kernel = RingKernel("7.2", size=(len(pages) + 16) * (8192 + 256))
    kernel.cpu(0, PageOf(), pages, commit=len(pages) - 1, entries=len(pages) * per_page)
    return kernel


def measured(runs: int, work: Callable[[], int]) -> tuple[list[float], int]:
    """Seconds of a CPU that each run took, and how many things each did."""
    seconds, count = [], 0
    for _ in range(runs):
        start = sum(os.times()[:4])
        count = work()
        seconds.append(sum(os.times()[:4]) - start)
    return seconds, count


def row(what: str, seconds: list[float], count: int) -> list[str]:
    """Of the table."""
    median = statistics.median(seconds)
    return [
        what,
        f"{count:,}",
        f"{median:.2f}",
        f"{min(seconds):.2f}",
        f"{count / median:,.0f}",
    ]


def opened(kernel: str) -> drgn.Program:
    """A guest's dump."""
    guest = ftrace_guests.get(kernel)
    prog = drgn.Program()
    prog.set_core_dump(guest.dump("qemu"))
    with contextlib.suppress(drgn.MissingDebugInfoError):
        prog.load_debug_info([guest.kernel.vmlinux])
    return prog


def again(events: list[RingEvent], count: int) -> Iterator[RingEvent]:
    """Them, as often as it takes."""
    return islice(chain.from_iterable(repeat(events)), count)


def show(printer: Printer, events: Iterator[RingEvent]) -> int:
    """Print to nowhere, as ftrace_dump() does."""
    lines = printer.lines(events)
    count = 0
    with open(os.devnull, "w") as out:
        while part := list(islice(lines, 4096)):
            out.write("".join(part))
            count += len(part)
    return count


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--kernel", choices=ftrace_guests.KERNELS, default="6.12")
    parser.add_argument("--runs", type=int, default=5)
    chosen = parser.parse_args()
    rows = []
    buffer = ring(chosen.events).buffer

    def decode() -> int:
        return sum(1 for _ in for_each_ring_buffer_event(buffer, 0))

    rows.append(row("decode", *measured(chosen.runs, decode)))
    prog = opened(chosen.kernel)
    events = TraceEvents(prog)
    (own, *_) = trace_buffers(prog)
    printer = Printer(prog, own, Kernel(prog), events, Commands(prog))
    found = list(for_each_ring_buffer_event(own.buffer))
    kinds: dict[str, list[RingEvent]] = {"all": found}
    for event in found:
        known = printer.event_of(event.data)
        if known and known.system in ("ftrace", "sched", "syscalls", "kprobes"):
            kinds.setdefault(known.system, []).append(event)
    for system, some in kinds.items():

        def work(some: list[RingEvent] = some) -> int:
            return show(printer, again(some, chosen.events))

        rows.append(row(f"print {system}", *measured(chosen.runs, work)))
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "trace.dat")

        def export() -> int:
            ftrace_export(prog, path, force=True)
            return sum(buffer.unread for buffer in for_each_ftrace_buffer(prog))

        rows.append(row("export all buffers", *measured(chosen.runs, export)))
        argv = [*peers.argv("trace-cmd"), "report", "-i", path]

        def peer() -> int:
            done = subprocess.run(argv, capture_output=True, check=True)
            return done.stdout.count(b"\n")

        rows.append(row("trace-cmd report", *measured(chosen.runs, peer)))
    print(machine(["drgn"]), end="\n\n")
    head = ["what", "events>", "median CPU s>", "least>", "events/s>"]
    print(table(head, rows))


if __name__ == "__main__":
    main()
