# SPDX-License-Identifier: LGPL-2.1-or-later
"""
How the cost of ``extract`` grows with memory
---------------------------------------------

The cost per page frame on dumps of machines of several sizes: the time of whole
processes, less their start-up, which a dump of next to nothing tells; and the time
of planning alone, by a clock of its own. A dump is in the page cache and the output
goes to memory where there is room.

Then the same pages 1, 4 and 16 times over, so that nothing but the size differs: the
smallest of the dumps, each piece of which is the data of many segments.

Then planning and what little is left of writing on a synthetic dump of 1 TiB, of
which nothing or one page in each section is kept, with the memory that this takes.

Without arguments, dumps are those of the test bench, which makes them if need be.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import struct
import sys
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks import memory, report
from benchmarks.extract import output_folder, run_process, warm
from benchmarks.vast import RARE, Vast
from drgn_tools.formats import elf, kdump
from drgn_tools.pages import PageClass, excluded_classes
from drgn_tools.vmcore import open_vmcore
from tests.synthetic import MIB, PAGE, Machine, write_elf

_PACKAGES = ("numpy", "python-lzo")
_JOBS = len(os.sched_getaffinity(0))
_OURS = (sys.executable, "-m", "drgn_tools", "extract")
_EXTRACT = (*_OURS, "-l", "--jobs", str(_JOBS))
_PLAN = (sys.executable, "-m", "benchmarks.planning")


class Task(NamedTuple):
    """Something to measure."""

    title: str
    level: int
    options: tuple[str, ...] = ()
    """More for ``extract``."""


class Dump(NamedTuple):
    """Something to measure it on."""

    title: str
    path: str
    frames: int
    """Page frames with data."""
    sparse: bool = False
    """Nearly all holes, too many to read them."""


class Sample(NamedTuple):
    """What one run took."""

    seconds: float
    user: float
    system: float
    """Of the processor's, all processes together."""
    major_faults: int
    """Waits for a disk, of which there should be none."""
    kept: int
    """Pages in the output."""
    written: int
    """Of these, pages that are not zero."""


class Cost(NamedTuple):
    """What all runs of a task on a dump took, less start-up."""

    task: Task
    dump: Dump
    median: float
    least: float
    """Seconds."""
    samples: list[Sample]

    def per_frame(self) -> float:
        """Nanoseconds, of the median."""
        return self.median * 1e9 / self.dump.frames

    def per_page(self) -> float | None:
        """Nanoseconds per page written, if any."""
        written = self.samples[0].written
        return self.median * 1e9 / written if written else None


class _Tiny(Machine):
    """Nothing but a kernel's tables, so that a run is all start-up."""

    def fill(self) -> None:
        """Its pages are zero."""


PLANNING = Task("planning", 31)
TASKS = (PLANNING, Task("-d 31", 31), Task("-d 1", 1))
_OTHERS = sorted(set(PageClass) - excluded_classes(31))
NOTHING = Task(
    "nothing kept", 31, ("--exclude", ",".join(other.label for other in _OTHERS))
)
SAME = Task("the same pages again, -d 1", 1)
TIMES = (1, 4, 16)
FEW = Task("a page per section kept", 31, (*NOTHING.options, "--keep", RARE.label))


def describe(title: str, path: str, sparse: bool = False) -> Dump:
    """A dump, and how many page frames it has."""
    with open_vmcore(path) as vmcore:
        frames = sum(found.end_pfn - found.pfn for found in vmcore.data_runs)
    return Dump(title, path, frames, sparse)


def bench_dumps() -> list[Dump]:
    """The test bench's dumps of several sizes, made if need be."""
    from tests.vm import dumps

    specs = (
        dumps.LARGE._replace(memory_mib=1024),
        dumps.LARGE,
        # Well filled, it and its output would not fit into 24 GiB together.
        dumps.LARGE._replace(memory_mib=16384, filled=50),
    )
    found = []
    for spec in specs:
        path = next(d.path for d in dumps.both(spec) if d.kind == "vmcore")
        title = f"{spec.memory_mib >> 10} GiB, {spec.filled} % filled"
        found.append(describe(title, str(path)))
    return found


def repeat(source: str, path: str, times: int) -> None:
    """
    Write a dump that has the memory of another one several times, one after the
    other, and its data once. It has no notes, so all pages are kept.
    """
    with open(source, "rb") as file:
        segments = elf.read_segments(lambda n, at: os.pread(file.fileno(), n, at))
        loads = segments[segments["type"] == elf.PT_LOAD].astype(elf.PHDR)
        step = int((loads["paddr"] + loads["memsz"]).max()) + PAGE - 1 & -PAGE
        front = 64 + times * loads.nbytes + PAGE - 1 & -PAGE
        loads["offset"] += np.uint64(front)
        header = bytearray(file.read(64))
        # e_phoff, and e_phentsize with e_phnum.
        struct.pack_into("<Q", header, 32, 64)
        struct.pack_into("<HH", header, 54, elf.PHDR.itemsize, times * len(loads))
        file.seek(0)
        with open(path, "wb") as made:
            made.write(header)
            for _ in range(times):
                made.write(loads.tobytes())
                loads["paddr"] += np.uint64(step)
            made.seek(front)
            shutil.copyfileobj(file, made, 1 << 22)


def sample(task: Task, dump: Dump, folder: str) -> Sample:
    """
    Run a task once.

    :param folder: where the output goes for a while.
    :raises subprocess.CalledProcessError: if it fails.
    """
    if not dump.sparse:
        warm(dump.path)
    if task == PLANNING:
        taken = run_process([*_PLAN, dump.path, str(task.level), str(_JOBS)])
        times = float(taken.said), taken.user, taken.system
        return Sample(*times, taken.major_faults, 0, 0)
    with tempfile.TemporaryDirectory(dir=folder) as temp:
        output = f"{temp}/out"
        taken = run_process(_extract(task, dump, output))
        times = taken.wall, taken.user, taken.system
        return Sample(*times, taken.major_faults, *_pages(output))


def _extract(task: Task, dump: Dump, output: str) -> list[str]:
    return [*_EXTRACT, "-d", str(task.level), *task.options, dump.path, output]


def _pages(path: str) -> tuple[int, int]:
    """How many pages an output has, and how many of them are not zero."""
    with open_vmcore(path) as made:
        assert made.header is not None
        start, kept = made.header.descriptors_offset, made.dumped_pages
    descriptors = np.fromfile(path, kdump.DESCRIPTOR, kept, offset=start)
    # Zero pages share the one right behind the descriptors.
    end = start + kept * kdump.DESCRIPTOR.itemsize
    return kept, int(np.count_nonzero(descriptors["offset"] != end))


def measure(
    pairs: Sequence[tuple[Task, Dump]], tiny: Dump, runs: int, folder: str
) -> tuple[list[Cost], dict[Task, float]]:
    """
    Run all in turn, *runs* times.

    :param tiny: the dump that tells the time of a start.
    :return: costs, in the order of *pairs*; and start-up, in seconds.
    """
    starts = [(task, tiny) for task in dict.fromkeys(task for task, _ in pairs)]
    samples: dict[tuple[Task, Dump], list[Sample]] = {}
    for number in range(runs):
        print(f"run {number + 1} of {runs} ...", file=sys.stderr)
        for pair in (*starts, *pairs):
            samples.setdefault(pair, []).append(sample(*pair, folder))
    taken = {
        task: statistics.median(found.seconds for found in samples[task, dump])
        for task, dump in starts
    }
    costs = []
    for task, dump in pairs:
        seconds = [found.seconds - taken[task] for found in samples[task, dump]]
        median, least = statistics.median(seconds), min(seconds)
        costs.append(Cost(task, dump, median, least, samples[task, dump]))
    return costs, taken


HEAD = (
    "task",
    "dump",
    "page frames>",
    "kept>",
    "not zero>",
    "median s>",
    "least s>",
    "user s>",
    "system s>",
    "ns per frame>",
    "ns per page written>",
    "major faults>",
)


def row(cost: Cost) -> tuple[str, ...]:
    """A row of the table."""
    first = cost.samples[0]
    per_page = cost.per_page()
    planning = cost.task == PLANNING
    return (
        cost.task.title,
        cost.dump.title,
        f"{cost.dump.frames:,}",
        "" if planning else f"{first.kept:,}",
        "" if planning else f"{first.written:,}",
        f"{cost.median:.3f}",
        f"{cost.least:.3f}",
        f"{statistics.median(found.user for found in cost.samples):.2f}",
        f"{statistics.median(found.system for found in cost.samples):.2f}",
        f"{cost.per_frame():.1f}",
        "" if per_page is None else f"{per_page:.0f}",
        str(max(found.major_faults for found in cost.samples)),
    )


def deviation(what: str, costs: Sequence[tuple[str, float]]) -> str:
    """
    A line on how far costs that should be the same are from their mean.

    :param costs: what each is of, and nanoseconds.
    """
    mean = statistics.mean(cost for _, cost in costs)
    title, worst = max(costs, key=lambda cost: abs(cost[1] - mean))
    return (
        f"{what}: mean {mean:.1f}, largest deviation {worst / mean - 1:+.1%} ({title})."
    )


def deviations(costs: Sequence[Cost]) -> list[str]:
    """Lines on how the dumps of one task differ, those of real machines."""
    lines = []
    real = [cost for cost in costs if not cost.dump.sparse]
    for task in dict.fromkeys(cost.task for cost in real):
        same = [cost for cost in real if cost.task == task]
        frames = [(cost.dump.title, cost.per_frame()) for cost in same]
        lines.append(deviation(f"{task.title}, ns per frame", frames))
        pages = [
            (cost.dump.title, found)
            for cost in same
            if (found := cost.per_page()) is not None
        ]
        if pages:
            lines.append(deviation(f"{task.title}, ns per page written", pages))
    return lines


def peak(task: Task, dump: Dump, folder: str) -> memory.Peak:
    """Memory that a task takes, in one more run."""
    with tempfile.TemporaryDirectory(dir=folder) as temp:
        return memory.peak(_extract(task, dump, f"{temp}/out"))


def main(args: Sequence[str] | None = None) -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(prog="benchmarks.growth", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("dump", nargs="*", help="dumps of machines of several sizes")
    add("--runs", type=int, default=5, help="default: 5")
    add("--synthetic", type=int, default=1024, metavar="GIB", help="default: 1024")
    add("--output", help="folder to write to")
    chosen = parser.parse_args(args)
    dumps = [describe(path, os.path.abspath(path)) for path in chosen.dump]
    dumps = dumps or bench_dumps()
    print(report.machine(_PACKAGES) + "\n")
    largest = max(dumps, key=lambda dump: dump.frames)
    folder = chosen.output or output_folder(largest.path)
    with tempfile.TemporaryDirectory(dir=folder, prefix="drgn-tools-") as temp:
        machine = _Tiny(ram=[(0, 6 * MIB)])
        write_elf(f"{temp}/tiny", machine.loads(), machine.notes())
        tiny = describe("tiny", f"{temp}/tiny")
        Vast(chosen.synthetic).save(f"{temp}/vast")
        title = f"{chosen.synthetic} GiB, synthetic"
        vast = describe(title, f"{temp}/vast", sparse=True)
        pairs = [(task, dump) for task in TASKS for dump in dumps]
        pairs += [(task, vast) for task in (PLANNING, NOTHING, FEW)]
        for part in sorted({max(8, chosen.synthetic // n) for n in (64, 8)}):
            Vast(part).save(f"{temp}/vast{part}")
            title = f"{part} GiB, synthetic, less of it"
            pairs.append((PLANNING, describe(title, f"{temp}/vast{part}", sparse=True)))
        smallest = min(dumps, key=lambda dump: dump.frames)
        for times in TIMES:
            again = f"{temp}/again{times}"
            repeat(smallest.path, again, times)
            title = f"{smallest.title}, {times} times"
            pairs.append((SAME, describe(title, again)))
        costs, starts = measure(pairs, tiny, chosen.runs, temp)
        peaks = [(task, peak(task, vast, temp)) for task in (NOTHING, FEW)]
    print(report.table(HEAD, map(row, costs)) + "\n")
    taken = [f"{task.title} {seconds:.3f} s" for task, seconds in starts.items()]
    print(f"Taken off for the start: {', '.join(taken)}.\n")
    print(*deviations(costs), sep="\n", end="\n\n")
    rows = [(task.title, *memory.cells(most)) for task, most in peaks]
    print(f"Memory, {vast.title}:\n\n{report.table(('task', *memory.HEAD), rows)}")


if __name__ == "__main__":
    main()
