# SPDX-License-Identifier: LGPL-2.1-or-later
"""
How fast the kernel's compressed pages are decompressed
-------------------------------------------------------

    python -m benchmarks.decompress [DUMP] [--pages 3000] [--runs 5]

Takes pages at random from a dump, compresses them as the kernel would by each of its
algorithms, and gives those that zram would keep compressed to
:mod:`drgn_tools.decompress` and to the library that it calls, if there is one.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
import zlib
from collections.abc import Sequence
from typing import Any, Callable

import cramjam
import lzo
import zstandard

from benchmarks import report
from benchmarks.codecs import sample
from benchmarks.extract import bench_dump
from drgn_tools import lz4_block, lzo1x
from drgn_tools.decompress import decompress, decompress_prefix
from drgn_tools.vmcore import open_vmcore
from tests import lzo_rle, packed842

_PAGE = 4096
# What is larger is kept as it is (zsmalloc's huge classes, chains of 8 pages).
_MOST = 3625

Read = Callable[[bytes], Any]


def _ours(algorithm: str) -> Read:
    return lambda data: decompress(algorithm, data, _PAGE)


def _deflated(page: bytes) -> bytes:
    stream = zlib.compressobj(6, zlib.DEFLATED, -11)
    return stream.compress(page) + stream.flush()


def _zstd() -> Read:
    context = zstandard.ZstdDecompressor()
    return lambda data: context.decompress(data, max_output_size=_PAGE)


def _lz4(page: bytes) -> bytes:
    return bytes(cramjam.lz4.compress_block(page, store_size=False))


def _pages(dump: str, count: int) -> list[bytes]:
    with open_vmcore(dump) as vmcore:
        return sample(vmcore, count)


#: Algorithm, how pages of it are made, what reads them, by name.
CASES: Sequence[tuple[str, Callable[[bytes], bytes], dict[str, Read]]] = (
    (
        "lzo",
        lambda page: lzo.compress(page, 1, False),
        {
            "drgn_tools": _ours("lzo"),
            "python-lzo": lambda data: lzo.decompress(data, False, _PAGE),
        },
    ),
    (
        "lzo-rle",
        lzo_rle.encode,
        {
            "drgn_tools": _ours("lzo-rle"),
            "drgn_tools, by itself": lambda data: lzo1x.decode(
                data, _PAGE, bytearray()
            ),
        },
    ),
    (
        "lz4",
        _lz4,
        {
            "drgn_tools": _ours("lz4"),
            "drgn_tools, by itself": lambda data: lz4_block.decode(
                data, _PAGE, bytearray()
            ),
            "cramjam": lambda data: cramjam.lz4.decompress_block_into(
                data, bytearray(_PAGE)
            ),
        },
    ),
    (
        "zstd",
        zstandard.ZstdCompressor().compress,
        {"drgn_tools": _ours("zstd"), "zstandard": _zstd()},
    ),
    (
        "deflate",
        _deflated,
        {
            "drgn_tools": _ours("deflate"),
            "zlib": lambda data: zlib.decompress(data, -15, _PAGE),
        },
    ),
    (
        "842",
        lambda page: packed842.pack(page, random.Random(1)),
        {"drgn_tools": _ours("842")},
    ),
)


def measure(streams: Sequence[bytes], read: Read, runs: int) -> float:
    """Microseconds per stream of the processor's time, as the median of all runs."""
    times = []
    for _ in range(runs):
        start = time.thread_time_ns()
        for data in streams:
            read(data)
        times.append((time.thread_time_ns() - start) / 1000 / len(streams))
    return statistics.median(times)


def main(args: Sequence[str] | None = None) -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(prog="benchmarks.decompress")
    parser.add_argument("dump", nargs="?", help="default: the test bench's")
    parser.add_argument("--pages", type=int, default=3000, help="default: 3000")
    parser.add_argument("--runs", type=int, default=5, help="default: 5")
    chosen = parser.parse_args(args)
    pages = _pages(chosen.dump or bench_dump(), chosen.pages)
    print(report.machine(["python-lzo", "cramjam", "zstandard"]), end="\n\n")
    rows = []
    for algorithm, compress, readers in CASES:
        # Encoding in Python takes long.
        some = pages if algorithm != "842" else pages[: len(pages) // 10 + 1]
        both = [(compress(page), page) for page in some]
        kept = [(data, page) for data, page in both if len(data) <= _MOST]
        if not kept:
            sys.exit(f"of {len(some)} pages, none can be kept in {_MOST} bytes")
        for data, page in kept:
            assert decompress(algorithm, data) == page
            assert decompress_prefix(algorithm, data) == (page, len(data))
        streams = [data for data, _ in kept]
        for name, read in readers.items():
            taken = measure(streams, read, chosen.runs)
            rate = f"{_PAGE / taken:.0f}"
            rows.append([algorithm, name, str(len(kept)), f"{taken:.1f}", rate])
    print(report.table(["algorithm", "by", "pages>", "us/page>", "MB/s>"], rows))


if __name__ == "__main__":
    main()
