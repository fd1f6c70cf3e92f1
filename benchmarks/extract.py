# SPDX-License-Identifier: LGPL-2.1-or-later
"""
``extract`` beside makedumpfile
-------------------------------

Both filter the same dump in the same run, in turn, as whole processes, so that
what slows the machine down slows both down. The dump is read into the page
cache before each run and the output goes to memory where there is room: no disk
is measured. One job has one CPU.

Without arguments, dump and makedumpfile are those of the test bench, which
makes or fetches them if need be.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import report
from drgn_tools.codecs import CODECS, Codec
from drgn_tools.vmcore import open_vmcore

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("numpy", "deflate", "isal", "python-lzo", "cramjam", "zstandard")
_PEER = "makedumpfile-sid"
# Whoever takes this many times as long as the fastest of its kind, in its
# first run, is not asked again: makedumpfile's threads on few CPUs. More runs
# of it would take most of the time, and it is not what is compared with.
_HOPELESS = 2.0
# Major faults that the programs themselves may come to.
_FAULTS = 100

_OPTIONS = {"zlib": "-c", "lzo": "-l", "snappy": "-p", "zstd": "-z"}


class Contender(NamedTuple):
    """One way to run one of the programs."""

    title: str
    ours: bool
    command: tuple[str, ...]
    """Begins a command line; options that choose the output follow."""
    cpus: int | None = None
    """How many CPUs it may use, if not all."""


class Run(NamedTuple):
    """What one run took."""

    wall: float
    """Seconds."""
    processor: float
    """Seconds, of all its processes and threads."""
    size: int
    """Of the output."""
    major_faults: int
    """Waits for a disk, of which there should be none."""


class Record(NamedTuple):
    """What all runs of a contender took."""

    runs: list[Run]
    failures: list[str]
    """What makedumpfile said when it failed."""


def contenders(
    peer: Sequence[str], threads: Sequence[int], jobs: Sequence[int]
) -> list[Contender]:
    """
    The programs, each with each number of threads or jobs.

    :param threads: makedumpfile's; 0 is without, which is not the same as one.
    """
    found = []
    for count in threads if peer else ():
        options = ("--num-threads", str(count)) if count else ()
        title = f"makedumpfile{f', {count} threads' if count else ''}"
        found.append(Contender(title, False, (*peer, *options)))
    ours = (sys.executable, "-m", "drgn_tools", "extract")
    for count in jobs:
        command = (*ours, "--jobs", str(count))
        cpus = 1 if count == 1 else None
        found.append(Contender(f"extract --jobs {count}", True, command, cpus))
    return found


class Process(NamedTuple):
    """What a process and its children took."""

    wall: float
    user: float
    system: float
    """Seconds."""
    major_faults: int
    said: str
    """On stdout and stderr."""


def run_process(command: Sequence[str], cpus: int | None = None) -> Process:
    """
    Run a command to its end.

    :param cpus: how many CPUs it may use, if not all.
    :raises subprocess.CalledProcessError: if it fails.
    """
    allowed = sorted(os.sched_getaffinity(0))[:cpus]
    # A file takes what it says: a pipe would have to be emptied.
    with tempfile.TemporaryFile() as file:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=file,
            cwd=_ROOT,
            preexec_fn=lambda: os.sched_setaffinity(0, allowed),
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        file.seek(0)
        said = file.read().decode(errors="replace")
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, said)
    return Process(wall, usage.ru_utime, usage.ru_stime, usage.ru_majflt, said)


def run(
    contender: Contender, dump: str, codec: Codec, level: int, folder: Path
) -> Run | None:
    """
    Run a program once.

    :return: None if it cannot compress that way.
    :raises subprocess.CalledProcessError: if it fails.
    """
    output = folder / "out"
    output.unlink(missing_ok=True)
    options = [_OPTIONS[codec.name], "-d", str(level), dump, str(output)]
    warm(dump)
    taken = run_process([*contender.command, *options], contender.cpus)
    # makedumpfile without a codec says so and does not compress.
    with open_vmcore(str(output)) as made:
        assert made.header is not None
        if not made.header.status & codec.flag:
            return None
    size = output.stat().st_size
    return Run(taken.wall, taken.user + taken.system, size, taken.major_faults)


def measure(
    who: Sequence[Contender],
    dump: str,
    codec: Codec,
    level: int,
    runs: int,
    folder: Path,
) -> dict[Contender, Record]:
    """
    Let all run in turn, *runs* times; those who cannot are not in the result.

    :raises subprocess.CalledProcessError: if ``extract`` fails. A failure of
        makedumpfile is recorded.
    """
    results = {contender: Record([], []) for contender in who}
    for _ in range(runs):
        for contender in who:
            if contender not in results or _hopeless(contender, results):
                continue
            try:
                result = run(contender, dump, codec, level, folder)
            except subprocess.CalledProcessError as error:
                if contender.ours:
                    raise
                results[contender].failures.append(f"{error}\n{error.output}")
                continue
            if result is None:
                del results[contender]
            else:
                results[contender].runs.append(result)
    return results


def _hopeless(contender: Contender, results: dict[Contender, Record]) -> bool:
    times = [
        record.runs[0].wall
        for other, record in results.items()
        if other.ours == contender.ours and record.runs
    ]
    own = results[contender].runs
    return bool(own) and own[0].wall > _HOPELESS * min(times)


def rows(
    results: dict[Contender, Record], codec: Codec, level: int
) -> list[tuple[str, ...]]:
    """Rows of the table: one per program."""
    peers = [
        (statistics.median(run.wall for run in record.runs), record.runs[0].size)
        for contender, record in results.items()
        if record.runs and not contender.ours
    ]
    lines: list[tuple[str, ...]] = []
    for contender, (runs, failures) in results.items():
        count = str(len(runs))
        if failures:
            count += f", {len(failures)} failed"
        names = (str(level), codec.name, contender.title)
        if not runs:
            lines.append((*names, "", "", "", "", "", "", count))
            continue
        wall = statistics.median(run.wall for run in runs)
        size = runs[0].size
        best, its_size = min(peers) if peers and contender.ours else (0.0, 0)
        lines.append(
            (
                *names,
                f"{wall:.2f}",
                f"{min(run.wall for run in runs):.2f}",
                f"{statistics.median(run.processor for run in runs):.2f}",
                f"{size / (1 << 20):.1f}",
                f"{best / wall:.2f}" if best else "",
                f"{size / its_size:.4f}" if best else "",
                count,
            )
        )
    return lines


HEAD = (
    "-d>",
    "codec",
    "program",
    "median s>",
    "least s>",
    "processor s>",
    "output MiB>",
    "x makedumpfile>",
    "x its size>",
    "runs>",
)


def bench_dump() -> str:
    """The test bench's large dump, made if need be."""
    from tests.vm import dumps

    both = dumps.both(dumps.LARGE)
    return str(next(dump.path for dump in both if dump.kind == "vmcore"))


def bench_peer() -> tuple[list[str], str]:
    """The test bench's makedumpfile, fetched if need be: command and version."""
    from tests.vm import peers

    return peers.argv(_PEER), f"makedumpfile {peers.version(_PEER)}"


def warm(path: str) -> None:
    """Read a file, so that it is in the page cache."""
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 22):
            pass


def output_folder(dump: str) -> str:
    """Memory if it has room for all that is in a dump, holes aside."""
    memory = "/dev/shm"
    room = os.stat(dump).st_blocks * 512
    if os.path.isdir(memory) and shutil.disk_usage(memory).free > room:
        return memory
    return tempfile.gettempdir()


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main(args: Sequence[str] | None = None) -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(prog="benchmarks.extract", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("dump", nargs="?", help="an ELF core that makedumpfile can read")
    add("--runs", type=int, default=5, help="default: 5")
    add("--codecs", default="lzo,zlib,zstd,snappy", metavar="NAME,…")
    add("--levels", type=_numbers, default="31,1", metavar="LEVEL,…")
    add("--threads", type=_numbers, default="0,2", metavar="N,…")
    add("--jobs", type=_numbers, default="1,2", metavar="N,…")
    add("--peer", help="makedumpfile's command; empty: none")
    add("--output", help="folder to write to")
    chosen = parser.parse_args(args)
    codecs = [CODECS[name] for name in chosen.codecs.split(",")]
    if chosen.peer is None:
        peer, peer_version = bench_peer()
    else:
        peer, peer_version = shlex.split(chosen.peer), chosen.peer
    dump = os.path.abspath(chosen.dump or bench_dump())
    who = contenders(peer, chosen.threads, chosen.jobs)
    others = [peer_version] if peer_version else []
    print(report.machine(_PACKAGES, others))
    folder = chosen.output or output_folder(dump)
    with open_vmcore(dump) as vmcore:
        info = vmcore.vmcoreinfo
        release = info.text("OSRELEASE") if info else None
        print(f"Dump: {vmcore.size / (1 << 30):.1f} GiB of Linux {release}.\n")
    table = []
    with tempfile.TemporaryDirectory(dir=folder, prefix="drgn-tools-") as temp:
        for level in chosen.levels:
            for codec in codecs:
                print(f"-d {level}, {codec.name} ...", file=sys.stderr)
                found = measure(who, dump, codec, level, chosen.runs, Path(temp))
                table += rows(found, codec, level)
                for contender, record in found.items():
                    print(*record.failures, sep="\n", end="", file=sys.stderr)
                    if any(run.major_faults > _FAULTS for run in record.runs):
                        print(f"{contender.title} had to read", file=sys.stderr)
    print(report.table(HEAD, table))


if __name__ == "__main__":
    main()
