# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Memory that ``extract`` and makedumpfile take
---------------------------------------------

While a program runs, what all its processes have is added up every few
milliseconds, pages that they share counted once; a peak is the largest sum. To
look so often makes a run slower: this says nothing about time.

Without arguments, dump and makedumpfile are those of the test bench, which
makes or fetches them if need be.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import report
from benchmarks.extract import (
    Contender,
    bench_dump,
    bench_peer,
    contenders,
    output_folder,
)

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("numpy", "deflate", "isal", "python-lzo", "cramjam", "zstandard")
_OPTIONS = {"zlib": "-c", "lzo": "-l", "zstd": "-z"}
# Seconds between looks, to which looking adds some more.
_INTERVAL = 0.005


class Peak(NamedTuple):
    """The most that the processes of a run had, each at its own moment."""

    own: int
    """Bytes of memory that is theirs: anonymous and shared."""
    total: int
    """Bytes with what they map of files, which is page cache."""
    processes: int
    looks: int
    """How many times it was looked."""


def peak(command: Sequence[str]) -> Peak:
    """
    Run a program and watch its memory.

    :raises subprocess.CalledProcessError: if it fails.
    """
    most = Peak(0, 0, 0, 0)
    # A file takes what it says: a pipe would have to be emptied.
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, cwd=_ROOT)
        while process.poll() is None:
            seen = [_memory(pid) for pid in _family(process.pid)]
            own, total = (sum(sizes) for sizes in zip(*seen)) if seen else (0, 0)
            most = Peak(
                max(most.own, own),
                max(most.total, total),
                max(most.processes, len(seen)),
                most.looks + 1,
            )
            time.sleep(_INTERVAL)
        if process.returncode:
            said.seek(0)
            text = said.read().decode(errors="replace")
            raise subprocess.CalledProcessError(process.returncode, command, text)
    return most


def _family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    # The name in front of the last parenthesis may be anything.
                    parent = int(file.read().rpartition(")")[2].split()[1])
            except OSError:
                continue  # It has ended.
            children.setdefault(parent, []).append(int(name))
    found = [pid]
    for member in found:
        found += children.get(member, [])
    return found


def _memory(pid: int) -> tuple[int, int]:
    """What a process has, in bytes: its own and all."""
    sizes = {"Pss": 0, "Pss_Anon": 0, "Pss_Shmem": 0}
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            for line in file:
                name, _, rest = line.partition(":")
                if name in sizes:
                    sizes[name] = int(rest.split()[0]) << 10
    except OSError:
        pass  # It has ended.
    return sizes["Pss_Anon"] + sizes["Pss_Shmem"], sizes["Pss"]


def measure(
    contender: Contender, dump: str, codec: str, level: int, runs: int, folder: str
) -> Peak:
    """
    The most that a program had in any of its runs.

    :raises subprocess.CalledProcessError: if it fails.
    """
    peaks = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory(dir=folder, prefix="drgn-tools-") as temp:
            options = (_OPTIONS[codec], "-d", str(level), dump, f"{temp}/out")
            peaks.append(peak([*contender.command, *options]))
    return Peak(*map(max, zip(*peaks)))


HEAD = ("own MiB>", "with files MiB>", "processes>", "looks>")


def cells(most: Peak) -> tuple[str, ...]:
    """A peak in a row of a table."""
    return (
        f"{most.own / (1 << 20):.1f}",
        f"{most.total / (1 << 20):.1f}",
        str(most.processes),
        str(most.looks),
    )


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main(args: Sequence[str] | None = None) -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(prog="benchmarks.memory", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("dump", nargs="?", help="an ELF core that makedumpfile can read")
    add("--runs", type=int, default=3, help="default: 3")
    add("--codecs", default="lzo,zstd", metavar="NAME,…")
    add("--levels", type=_numbers, default="31,1", metavar="LEVEL,…")
    add("--threads", type=_numbers, default="0,2,4", metavar="N,…")
    add("--jobs", type=_numbers, default="1,2,4", metavar="N,…")
    add("--peer", help="makedumpfile's command; empty: none")
    add("--output", help="folder to write to")
    chosen = parser.parse_args(args)
    if chosen.peer is None:
        peer, peer_version = bench_peer()
    else:
        peer, peer_version = shlex.split(chosen.peer), chosen.peer
    dump = os.path.abspath(chosen.dump or bench_dump())
    programs = contenders(peer, chosen.threads, chosen.jobs)
    print(report.machine(_PACKAGES, [peer_version] if peer_version else []) + "\n")
    folder = chosen.output or output_folder(dump)
    table = []
    for level in chosen.levels:
        for codec in chosen.codecs.split(","):
            print(f"-d {level}, {codec} ...", file=sys.stderr)
            for who in programs:
                most = measure(who, dump, codec, level, chosen.runs, folder)
                table.append((str(level), codec, who.title, *cells(most)))
    print(report.table(("-d>", "codec", "program", *HEAD), table))


if __name__ == "__main__":
    main()
