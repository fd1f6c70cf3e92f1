# SPDX-License-Identifier: LGPL-2.1-or-later
"""
How fast a task's memory is read from a dump
--------------------------------------------

    python -m benchmarks.swap [--size 256] [--runs 3] [--algorithm lz4 ...]

A guest's task holds so many MiB of kernels with their debugging symbols, every fourth
page random, and all of it is swapped out to zram; another holds as much that is not,
which drgn's own helper reads as well. Time is that of the CPU. Needs the test bench.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import deque
from pathlib import Path
from typing import Callable

from drgn import Object
from drgn.helpers.linux.mm import access_process_vm

from benchmarks.report import machine, table
from benchmarks.zram import content, seconds
from drgn_tools.program import open_dump
from drgn_tools.swap import find_task, swap_map, swap_read
from tests.vm import kernels, qemu

KERNEL = "6.12-bench"
ALGORITHMS = ("lz4", "zstd", "lzo-rle")
PAGE = 4096


def dump(source: Path, target: Path, mib: int, algorithm: str) -> dict[str, list[str]]:
    """Make a dump; what the tasks hold, as fill.c says it, by kind."""
    with qemu.booted(
        kernels.get(KERNEL),
        memory_mib=3 * mib + 512,
        disks=[qemu.Disk(source, "source")],
        programs=["fill"],
    ) as vm:
        block = "/sys/block/zram0"
        vm.run(
            f"set -e; echo {algorithm} > {block}/comp_algorithm; "
            f"echo {2 * mib}M > {block}/disksize; "
            "mkswap /dev/zram0; swapon /dev/zram0"
        )
        for kind in ("swap", "anon"):
            vm.run(f"fill {kind} {mib} /dev/vda /run/{kind} >> /run/fill 2>&1 &")
            vm.run(f"while [ ! -e /run/{kind} ]; do sleep 0.1; done", seconds=600)
        said = vm.run("cat /run/fill").text
        vm.dump(target)
    return {words[3]: words for words in map(str.split, said.splitlines())}


def measured(runs: int, work: Callable[[], object]) -> float:
    """CPU seconds, the median."""
    times = []
    for _ in range(runs):
        start = seconds()
        work()
        times.append(seconds() - start)
    return statistics.median(times)


def check(read: bytes, source: Path) -> None:
    """Compare with what the task read, but for the random pages."""
    with source.open("rb") as file:
        for at in range(0, len(read), PAGE):
            page = file.read(PAGE)
            assert at // PAGE % 4 == 3 or read[at : at + PAGE] == page, hex(at)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--algorithm", action="append")
    chosen = parser.parse_args()
    print(machine(["drgn", "numpy", "zstandard"]), end="\n\n")
    rows = []

    def row(
        memory: str, what: str, task: Object, size: int, work: Callable[[], object]
    ) -> None:
        taken = measured(chosen.runs, work)
        pages = size // PAGE
        rows.append([memory, what, f"{taken:.2f}", f"{1e6 * taken / pages:.1f}"])

    with tempfile.TemporaryDirectory(prefix="swap-") as folder:
        source, target = Path(folder) / "source", Path(folder) / "dump"
        content(source, chosen.size)
        for algorithm in chosen.algorithm or ALGORITHMS:
            held = dump(source, target, chosen.size, algorithm)
            prog = open_dump(str(target), [str(kernels.get(KERNEL).vmlinux)])
            for kind, memory in (("swap", f"zram, {algorithm}"), ("anon", "resident")):
                pid, start, size = (int(word, 0) for word in held[kind][:3])
                task = find_task(prog, pid)
                check(swap_read(task, start, size), source)
                row(
                    memory,
                    "swap_read",
                    task,
                    size,
                    lambda: swap_read(task, start, size),  # noqa: B023
                )
                row(
                    memory,
                    "swap_map",
                    task,
                    size,
                    lambda: deque(swap_map(task, start, size), 0),  # noqa: B023
                )
                if kind == "anon":
                    row(
                        memory,
                        "access_process_vm (drgn)",
                        task,
                        size,
                        lambda: access_process_vm(task, start, size),  # noqa: B023
                    )
    print(f"{chosen.size} MiB:\n")
    print(table(["memory", "helper", "CPU seconds>", "us/page>"], rows))


if __name__ == "__main__":
    main()
