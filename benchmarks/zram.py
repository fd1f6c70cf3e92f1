# SPDX-License-Identifier: LGPL-2.1-or-later
"""
How fast zram devices are read from a dump
------------------------------------------

    python -m benchmarks.zram [--size 1024] [--runs 3] [--algorithm lz4 ...]

A guest writes kernels with their debugging symbols to a device of so many MiB, with one
algorithm after the other, and QEMU dumps it. Time is that of the CPU, of all processes.
Every image is compared with what was written. Needs the test bench.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from benchmarks.report import machine, table
from drgn_tools import zram
from drgn_tools.program import open_dump
from tests.vm import kernels, qemu

KERNEL = "6.12-bench"
ALGORITHMS = ("lz4", "zstd", "lzo", "lzo-rle", "deflate", "842")
MIB = 1 << 20


def content(path: Path, mib: int) -> None:
    """Write a file of real data: kernels with their debugging symbols."""
    with path.open("wb") as file:
        left = mib * MIB
        while left:
            for name in ("6.12-bench", "7.2-bench"):
                with kernels.get(name).vmlinux.open("rb") as source:
                    while left and (piece := source.read(min(left, MIB))):
                        left -= file.write(piece)


def dumps(
    source: Path, dump: Path, mib: int, algorithms: list[str]
) -> Iterator[tuple[str, Path]]:
    """A dump for each algorithm; each takes the place of the one before."""
    with qemu.booted(
        kernels.get(KERNEL), memory_mib=mib + 512, disks=[qemu.Disk(source, "source")]
    ) as vm:
        block = "/sys/block/zram0"
        for algorithm in algorithms:
            vm.run(
                f"set -e; echo 1 > {block}/reset; "
                f"echo {algorithm} > {block}/comp_algorithm; "
                f"echo {mib}M > {block}/disksize",
            )
            # In pieces, for the agent is not that patient.
            for start in range(0, mib, 32):
                vm.run(
                    f"dd if=/dev/vda of=/dev/zram0 bs=1M count=32 "
                    f"skip={start} seek={start} conv=notrunc 2>&1; sync"
                )
            vm.run("echo 3 > /proc/sys/vm/drop_caches")
            dump.unlink(missing_ok=True)
            vm.dump(dump)
            yield algorithm, dump


def seconds() -> float:
    """CPU time until now, of processes that are done as well."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def same(one: Path, other: Path) -> bool:
    """Whether two files have the same bytes."""
    with one.open("rb") as first, other.open("rb") as second:
        while piece := first.read(MIB):
            if second.read(MIB) != piece:
                return False
        return not second.read(1)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--algorithm", action="append", choices=ALGORITHMS)
    chosen = parser.parse_args()
    print(machine(["drgn", "numpy", "zstandard"]), end="\n\n")
    rows = []
    with tempfile.TemporaryDirectory(prefix="zram-") as folder:
        source, image = Path(folder) / "source", Path(folder) / "image"
        content(source, chosen.size)
        made = dumps(
            source,
            Path(folder) / "dump",
            chosen.size,
            chosen.algorithm or list(ALGORITHMS[:4]),
        )
        for algorithm, dump in made:
            prog = open_dump(str(dump), [str(kernels.get(KERNEL).vmlinux)])
            device = zram.find_zram(prog)
            scans, exports = [], []
            for _ in range(chosen.runs):
                start = seconds()
                deque(zram.for_each_zram_slot(device), 0)
                middle = seconds()
                result = zram.zram_export(device, str(image))
                scans.append(middle - start)
                exports.append(seconds() - middle)
                assert not result.missing and not result.doubtful
            assert same(source, image)
            slots = result.size // 4096
            rows.append(
                [
                    algorithm,
                    f"{zram.zram_device(device).ratio:.2f}",
                    f"{slots / statistics.median(scans):,.0f}",
                    f"{result.size / 1e6 / statistics.median(exports):.0f}",
                    f"{result.size / 1e6 / max(exports):.0f}",
                ]
            )
    print(f"A device of {chosen.size} MiB:\n")
    head = ["algorithm", "ratio>", "slots/s>", "MB/s per CPU>", "least>"]
    print(table(head, rows))


if __name__ == "__main__":
    main()
