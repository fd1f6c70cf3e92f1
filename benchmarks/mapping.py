# SPDX-License-Identifier: LGPL-2.1-or-later
"""
read() beside mmap()
--------------------

Goes over the memory in a dump in windows of many sizes: reads them, maps them,
maps and copies them, and copies one page in ten out of them, as a filtered dump
needs it. One C program does so on a dump file in the page cache, and on
/proc/vmcore in the capture kernel of a guest that crashed.

Without arguments, the file is the test bench's large dump. The program and the
guest are the bench's in any case.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import extract, report
from tests.vm import bench, dumps, guest, kernels, qemu

SIZES = tuple(4096 << shift for shift in range(0, 16, 2))
"""Of windows: 4 KiB to 64 MiB."""

_PAGE = 4096
_SOURCE = guest.SOURCES / "mapping.c"
_WAYS = ("read", "touch", "copy", "sparse")
# Bounds what a round takes: a second or two.
_FILE_MIB = 512
# Nearly all that the guest has in one piece.
_GUEST_MIB = 256
_KERNEL = "6.1"
_GUEST_SECONDS = 900
# Memory that the guest never wrote would be one page of the host, in its cache.
_OPTIONS = ("-mem-prealloc",)
# An emulated "rep movsb" goes byte by byte: without it, what the kernel copies in
# read() costs no more than what the program copies.
_TCG_OPTIONS = ("-cpu", "max,la57=off,erms=off")

_LINE = re.compile(r"^([a-z]+) (\d+) (\d+) (\d+)\r?$", re.MULTILINE)


class Pass(NamedTuple):
    """One way to go over the data, once; a line of the C program."""

    way: str
    """As mapping.c has it."""
    size: int
    """Of a window."""
    bytes: int
    """That were read, mapped or copied."""
    nanoseconds: int


def parse(text: str, runs: int) -> list[Pass]:
    """
    Passes in what the program printed, or in a console's log with that in it.

    :raises ValueError: if any of them is not there *runs* times.
    """
    found = [
        Pass(way, int(size), int(count), int(time))
        for way, size, count, time in _LINE.findall(text)
    ]
    for way, size in [*((way, s) for s in SIZES for way in _WAYS), ("single", _PAGE)]:
        count = sum(p.way == way and p.size == size for p in found)
        if count != runs:
            raise ValueError(f"{count} of {runs} runs of {way} {size} in the output")
    return found


def run_file(dump: str, runs: int) -> list[Pass]:
    """
    Measure on a dump file.

    :raises BenchError: if it is not an ELF core.
    """
    program = guest.program(_SOURCE)
    said = bench.run([program, dump, *_arguments(_FILE_MIB, runs)], what="mapping")
    return parse(said, runs)


def run_guest(kernel: kernels.Kernel, runs: int) -> list[Pass]:
    """
    Measure on /proc/vmcore in a capture kernel.

    :raises BenchError: if a guest does not do what it should.
    """
    emulated = qemu.accelerator(kernel) == "tcg"
    options = (*_OPTIONS, *(_TCG_OPTIONS if emulated else ()))
    with tempfile.TemporaryDirectory(prefix="drgn-tools-") as temp:
        capture = guest.initramfs(
            Path(temp) / "capture",
            kernel,
            init="mapping-init.sh",
            programs=(_SOURCE,),
            load=(),
            modules=(),
            files={"etc/mapping": " ".join(_arguments(_GUEST_MIB, runs)).encode()},
        )
        # The disk is for those who copy; it stays empty here.
        disk = Path(temp) / "out"
        with dumps.armed(kernel, disk, capture=capture, options=options) as vm:
            dumps.crash(vm)
            end = vm.wait_for(
                r"bench: mapping (done|failed)", _GUEST_SECONDS, panic=True
            )
            if end.group(1) != b"done":
                raise vm.error("the capture kernel could not measure")
            return parse(vm.log.read_text(errors="replace"), runs)


def _arguments(mib: int, runs: int) -> list[str]:
    return [str(number) for number in (mib, runs, *SIZES)]


HEAD = (
    "window>",
    "read() MiB/s>",
    "mmap() MiB/s>",
    "mmap(), copy MiB/s>",
    "x read()>",
    "1 page in 10 us>",
    "x pread()>",
)


def show(passes: Sequence[Pass]) -> str:
    """The table of one input, and what stands below it."""
    single = _page_time(passes, "single", _PAGE)
    rows = []
    for size in SIZES:
        read, touch, copy = (_rate(passes, way, size) for way in _WAYS[:3])
        sparse = _page_time(passes, "sparse", size)
        rows.append(
            (
                _size_name(size),
                f"{read:.0f}",
                f"{touch:.0f}",
                f"{copy:.0f}",
                f"{copy / read:.2f}",
                f"{sparse:.2f}",
                f"{single / sparse:.2f}",
            )
        )
    note = f"One page in ten, each with a pread() of its own: {single:.2f} us a page."
    return f"{report.table(HEAD, rows)}\n\n{note}"


def _seconds_per_byte(passes: Sequence[Pass], way: str, size: int) -> float:
    return statistics.median(
        p.nanoseconds / p.bytes / 1e9 for p in passes if (p.way, p.size) == (way, size)
    )


def _rate(passes: Sequence[Pass], way: str, size: int) -> float:
    """MiB per second."""
    return 1 / _seconds_per_byte(passes, way, size) / (1 << 20)


def _page_time(passes: Sequence[Pass], way: str, size: int) -> float:
    """Microseconds per page that was copied out."""
    return _seconds_per_byte(passes, way, size) * _PAGE * 1e6


def _size_name(size: int) -> str:
    return f"{size >> 20} MiB" if size >> 20 else f"{size >> 10} KiB"


def main(args: Sequence[str] | None = None) -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(prog="benchmarks.mapping", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("dump", nargs="?", help="an ELF core")
    parser.add_argument("--runs", type=int, default=5, help="default: 5")
    parser.add_argument("--no-guest", action="store_true", help="the file only")
    chosen = parser.parse_args(args)
    dump = chosen.dump or extract.bench_dump()
    print(report.machine(()))
    passes = run_file(dump, chosen.runs)
    print(f"\nA dump file, {_data(passes)}, median of {chosen.runs} runs:\n")
    print(show(passes))
    if chosen.no_guest:
        return
    kernel = kernels.get(_KERNEL)
    print("booting a guest and crashing it ...", file=sys.stderr)
    passes = run_guest(kernel, chosen.runs)
    print(
        f"\n/proc/vmcore of Linux {kernel.release} in QEMU "
        f"({qemu.accelerator(kernel)}), {_data(passes)}, "
        f"median of {chosen.runs} runs:\n"
    )
    print(show(passes))


def _data(passes: Sequence[Pass]) -> str:
    return f"{max(p.bytes for p in passes) >> 20} MiB of it"


if __name__ == "__main__":
    main()
