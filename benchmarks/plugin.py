# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What the plugin adds to the start of drgn
-----------------------------------------

    python -m benchmarks.plugin [--runs 60]

``drgn -e pass`` on a dump, by turns with and without the plugin; and in drgn what drgn
does with it, of which starts differ by more. Needs the test bench.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.report import machine, table
from tests.vm import dumps


def start(dump: Path, disabled: str) -> tuple[float, float]:
    """Run drgn once; return seconds by the clock, and of a CPU."""
    environment = {**os.environ, "DRGN_DISABLE_PLUGINS": disabled}
    # Modules are compiled once, as they are where they are installed.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    argv = [sys.executable, "-m", "drgn", "-q", "--no-default-symbols"]
    begin = time.perf_counter()
    process = subprocess.Popen(
        [*argv, "-c", dump, "-e", "pass"], env=environment, stderr=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return seconds, used.ru_utime + used.ru_stime


_HOOK = """
import sys, time, importlib, logging
import drgn.cli, drgn.helpers.linux, drgn.commands._builtin, drgn.commands._crash
prog = drgn.Program()
prog.set_core_dump(sys.argv[1])
start = time.process_time()
importlib.import_module("_drgn_tools").drgn_prog_set(prog)
print(time.process_time() - start)
"""


def hook(dump: Path) -> float:
    """Return the seconds of a CPU that the plugin takes in a process of drgn's."""
    environment = {**os.environ, "DRGN_DISABLE_PLUGINS": "*"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    argv = [sys.executable, "-c", _HOOK, str(dump)]
    return float(subprocess.check_output(argv, env=environment))


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=60)
    chosen = parser.parse_args()
    dump = dumps.get("6.1", levels=4, kaslr=False, kind="vmcore").path
    with_it, without = [], []
    # The first ones fill caches.
    for _ in range(chosen.runs + 1):
        with_it.append(start(dump, ""))
        without.append(start(dump, "drgn_tools"))
    rows = []
    for name, column in (("clock", 0), ("CPU", 1)):
        pairs = [(a[column], b[column]) for a, b in zip(with_it[1:], without[1:])]
        ours, others = zip(*pairs)
        figures = (
            statistics.median(ours),
            statistics.median(others),
            statistics.median(a - b for a, b in pairs),
        )
        rows.append([name, *(f"{1000 * figure:.1f}" for figure in figures)])
    print(machine(["drgn"]), end="\n\n")
    head = ["ms by the", "with>", "without>", "median of differences>"]
    print(table(head, rows), end="\n\n")
    taken = [1000 * hook(dump) for _ in range(chosen.runs)]
    print(
        f"The plugin: median {statistics.median(taken):.1f}, least {min(taken):.1f} ms"
    )


if __name__ == "__main__":
    main()
