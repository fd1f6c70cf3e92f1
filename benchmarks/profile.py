# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Where the time of ``extract`` goes
----------------------------------

The job is done in one process step by step: the plan alone, then all kept pages
copied out of the mapping, then compared with zeros too, then compressed too,
then all of it as extract() does it. What a step takes more than the one before
is its share. Start-up is a whole run on a dump with next to nothing in it.

Beside that, the command as users have it, with all CPUs: the codec's time
divided by the CPUs is the least that it could take.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks import extract as whole
from benchmarks import report
from drgn_tools.codecs import CODECS, Codec
from drgn_tools.extract import extract, level_for
from drgn_tools.pages import excluded_classes
from drgn_tools.plan import UNIT_PFNS, Plan, make_plan
from drgn_tools.vmcore import Pfns, Vmcore, open_vmcore
from tests.synthetic import Machine, write_elf

_PACKAGES = ("numpy", "deflate", "isal", "python-lzo", "cramjam", "zstandard")
STEPS = ("start-up", "plan", "copy", "zero test", "codec", "write and the rest")


def _kept(plan: Plan) -> Iterator[Pfns]:
    pfns = np.flatnonzero(np.unpackbits(plan.dumpable, bitorder="little"))
    cuts = np.flatnonzero(np.diff(pfns // UNIT_PFNS)) + 1
    yield from np.split(pfns, cuts)


def _copy(vmcore: Vmcore, plan: Plan) -> None:
    for pfns in _kept(plan):
        for _page in vmcore.pages(pfns):
            pass


def _test(vmcore: Vmcore, plan: Plan) -> int:
    zeros = bytes(vmcore.page_size)
    found = 0
    for pfns in _kept(plan):
        for page in vmcore.pages(pfns):
            if page == zeros:
                found += 1
    return found


def _compress(vmcore: Vmcore, plan: Plan, codec: Codec, level: int) -> None:
    zeros = bytes(vmcore.page_size)
    compress = codec.compressor(level)
    for pfns in _kept(plan):
        for page in vmcore.pages(pfns):
            if page != zeros:
                compress(page)


def steps(dump: str, codec: Codec, level: int, folder: Path) -> list[float]:
    """Seconds of each of :data:`STEPS` but the first, in one process."""
    whole.warm(dump)
    excluded = excluded_classes(level)
    times = [time.perf_counter()]
    with open_vmcore(dump) as vmcore:
        plan = make_plan(vmcore, excluded)
        times.append(time.perf_counter())
        _copy(vmcore, plan)
        times.append(time.perf_counter())
        _test(vmcore, plan)
        times.append(time.perf_counter())
        _compress(vmcore, plan, codec, level_for(codec, plan))
        times.append(time.perf_counter())
    target = folder / "out"
    summary = extract(
        dump,
        [str(target)],
        excluded=[excluded],
        codec=codec,
        codec_level=None,
        jobs=1,
    )
    target.unlink()
    planned, copied, tested, compressed = np.diff(times).tolist()
    return [
        planned,
        copied,
        tested - copied,
        compressed - tested,
        summary.seconds - planned - compressed,
    ]


def row(
    dump: str, tiny: str, codec: Codec, level: int, runs: int, folder: Path
) -> tuple[str, ...]:
    """One line of the table."""
    cpus = len(os.sched_getaffinity(0))
    _, here = whole.contenders((), (), (1, cpus))
    startups: list[float] = []
    walls: list[float] = []
    all_steps = []
    for _ in range(runs):
        for path, walls_of in ((tiny, startups), (dump, walls)):
            result = whole.run(here, path, codec, level, folder)
            assert result is not None
            walls_of.append(result.wall)
        (folder / "out").unlink()
        all_steps.append(steps(dump, codec, level, folder))
    times = [statistics.median(startups)]
    times += [statistics.median(column) for column in zip(*all_steps)]
    total = sum(times)
    wall = statistics.median(walls)
    share = times[STEPS.index("codec")] / cpus / wall
    parts = (f"{time:.2f} ({time / total:.0%})" for time in times)
    names = (str(level), codec.name)
    return (*names, *parts, f"{total:.2f}", f"{wall:.2f}", f"{share:.2f}")


def main(args: Sequence[str] | None = None) -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(prog="benchmarks.profile", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("dump", nargs="?", help="default: the test bench's large dump")
    add("--runs", type=int, default=5, help="default: 5")
    add("--codecs", default="lzo,zstd,zlib,snappy", metavar="NAME,…")
    add("--levels", default="31,1", metavar="LEVEL,…")
    chosen = parser.parse_args(args)
    dump = os.path.abspath(chosen.dump or whole.bench_dump())
    print(report.machine(_PACKAGES))
    table = []
    with tempfile.TemporaryDirectory(dir=whole.output_folder(dump)) as temp:
        tiny = Path(temp, "tiny")
        machine = Machine()
        write_elf(tiny, machine.loads(), machine.notes())
        for level in map(int, chosen.levels.split(",")):
            for name in chosen.codecs.split(","):
                codec = CODECS[name]
                table.append(
                    row(dump, str(tiny), codec, level, chosen.runs, Path(temp))
                )
    cpus = len(os.sched_getaffinity(0))
    head = ("-d>", "codec", *(f"{step} s>" for step in STEPS), "one process s>")
    print(report.table((*head, f"{cpus} CPUs s>", "codec / CPUs / wall>"), table))


if __name__ == "__main__":
    main()
