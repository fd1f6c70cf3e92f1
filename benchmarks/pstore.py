# SPDX-License-Identifier: LGPL-2.1-or-later
"""
How fast function traces of ramoops are decoded, merged, printed and written
----------------------------------------------------------------------------

    python -m benchmarks.pstore [--records 1000000] [--cpus 4] [--runs 5]

One boot's records on as many zones as there are CPUs, in no order among them, of
4,000 functions, each called by any other, which is the worst there can be for what
remembers names. Printing is as ``drgn-tools pstore --raw --symbols`` does it, to
/dev/null; files are those of its ``-o``. Seconds are those of a CPU.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from itertools import islice

import numpy as np

from benchmarks.report import machine, table
from drgn_tools.export import function_trace
from drgn_tools.pstore_records import (
    LP64,
    Trace,
    decode_ftrace,
    format_ftrace,
    merge_ftrace,
)
from drgn_tools.symbols import Symbols

TEXT = 0xFFFFFFFF81000000
FUNCTIONS = 4000


def zones(count: int, cpus: int) -> list[bytes]:
    """What the rings of a boot have."""
    chance = np.random.default_rng(1)
    raw = np.zeros(count, [("ip", "<u8"), ("parent_ip", "<u8"), ("ts", "<u8")])
    for name, offset in (("ip", 4), ("parent_ip", 32)):
        numbers = chance.integers(0, FUNCTIONS, count, np.uint64)
        raw[name] = np.uint64(TEXT + offset) + numbers * np.uint64(64)
    cpu = chance.integers(0, cpus, count, np.uint64)
    raw["ts"] = np.arange(count, dtype=np.uint64) << np.uint64(8) | cpu
    return [raw[cpu == number].tobytes() for number in range(cpus)]


def decode(contents: list[bytes]) -> Trace:
    """As for a region whose format is known."""
    return merge_ftrace(
        [
            decode_ftrace(content, LP64, zone=number, cpu=number)
            for number, content in enumerate(contents)
        ],
        LP64,
    )


def show(trace: Trace, symbols: Symbols) -> None:
    """All of it, to nowhere."""
    lines = format_ftrace(
        trace.records, function=symbols.function, caller=symbols.place
    )
    with open(os.devnull, "w") as out:
        while chunk := list(islice(lines, 4096)):
            out.write("\n".join(chunk) + "\n")


def write(trace: Trace, symbols: Symbols, kind: str, path: str) -> None:
    """All of it, for another tool."""
    records = trace.records
    boot = function_trace.Boot(
        0,
        records,
        records["ip"],
        records["parent_ip"],
        symbols.function,
        symbols.place,
    )
    function_trace.write(path, kind, [boot], LP64)


# Kinds of files, and what they are for.
_FILES = {"perfetto": "write for Perfetto", "trace.dat": "write for trace-cmd"}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--cpus", type=int, default=4)
    parser.add_argument("--runs", type=int, default=5)
    chosen = parser.parse_args()
    contents = zones(chosen.records, chosen.cpus)
    symbols = Symbols([(TEXT + 64 * n, f"function_{n}") for n in range(FUNCTIONS + 1)])
    print(machine(["numpy"]), end="\n\n")
    times: dict[str, list[float]] = {"decode and merge": [], "print": []}
    times.update({what: [] for what in _FILES.values()})
    sizes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "trace")
        for _ in range(chosen.runs):
            start = time.process_time()
            trace = decode(contents)
            middle = time.process_time()
            show(trace, symbols)
            times["decode and merge"].append(middle - start)
            times["print"].append(time.process_time() - middle)
            for kind, what in _FILES.items():
                start = time.process_time()
                write(trace, symbols, kind, path)
                times[what].append(time.process_time() - start)
                sizes[what] = os.path.getsize(path)
            assert len(trace.records) == chosen.records
            assert not trace.lost_total
    rows = [
        [
            what,
            f"{statistics.median(seconds):.2f}",
            f"{min(seconds):.2f}",
            f"{chosen.records / statistics.median(seconds):,.0f}",
            f"{sizes[what] / 1e6:.0f}" if what in sizes else "-",
        ]
        for what, seconds in times.items()
    ]
    print(f"{chosen.records:,} records in {chosen.cpus} zones:\n")
    print(table(["what", "median CPU s>", "least>", "records/s>", "MB>"], rows))


if __name__ == "__main__":
    main()
