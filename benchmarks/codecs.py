# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Which library compresses pages best
-----------------------------------

Takes pages at random from a dump and gives each of them to every library that
speaks a page format of kdump-compressed files. :mod:`drgn_tools.codecs` takes
the fastest well-kept one of each format that compresses no worse than the
library makedumpfile uses, which is the one called the reference here.
"""

from __future__ import annotations

import argparse
import importlib
import random
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple

import numpy as np

from benchmarks import report
from benchmarks.extract import bench_dump
from drgn_tools import codecs
from drgn_tools.errors import DumpError
from drgn_tools.vmcore import Vmcore, open_vmcore

Compress = Callable[[bytes], Any]
Decompress = Callable[[bytes], Any]
Pair = tuple[Compress, Decompress]

_PAGE = 4096


class Candidate(NamedTuple):
    """One way to compress and decompress a page."""

    format: str
    name: str
    package: str | None
    """Python package; None is the standard library or the project itself."""
    make: Callable[[], Pair]
    """Raises ImportError if the library is not installed."""
    reference: bool = False
    """Compresses as makedumpfile does: the same library, the same level."""


def _library(name: str) -> Any:
    return importlib.import_module(name)


def _ours(name: str) -> Callable[[], Pair]:
    def make() -> Pair:
        codec = codecs.CODECS[name]
        decompress = codec.decompressor()
        compress = codec.compressor(codec.default_level)
        return compress, lambda data: decompress(data, _PAGE)

    return make


def _zlib(module: str, level: int = 1) -> Callable[[], Pair]:
    """Modules with the interface of the standard library's zlib."""

    def make() -> Pair:
        compress, decompress = _library(module).compress, _library(module).decompress
        return lambda page: compress(page, level), decompress

    return make


def _deflate(level: int) -> Callable[[], Pair]:
    def make() -> Pair:
        deflate = _library("deflate")
        compress, decompress = deflate.zlib_compress, deflate.zlib_decompress
        return lambda page: compress(page, level), lambda data: decompress(data, _PAGE)

    return make


def _cramjam(name: str, *level: int) -> Callable[[], Pair]:
    def make() -> Pair:
        module = getattr(_library("cramjam"), name, None)
        if module is None:  # cramjam 2.7 has no zlib.
            raise ImportError(name)
        return lambda page: module.compress(page, *level), module.decompress

    return make


def _lzo() -> Pair:
    lzo = _library("lzo")
    compress, decompress = lzo.compress, lzo.decompress
    return (
        lambda page: compress(page, 1, False),
        lambda data: decompress(data, False, _PAGE),
    )


def _lzallright() -> Pair:
    lzo = _library("lzallright").LZOCompressor()
    return lzo.compress, lambda data: lzo.decompress(data, _PAGE)


def _cramjam_snappy() -> Pair:
    snappy = _library("cramjam").snappy
    return snappy.compress_raw, snappy.decompress_raw


def _cramjam_snappy_into() -> Pair:
    snappy = _library("cramjam").snappy
    room = bytearray(snappy.compress_raw_max_len(bytes(_PAGE)))
    view = memoryview(room)
    page = bytearray(_PAGE)

    def compress(data: bytes) -> bytes:
        return bytes(view[: snappy.compress_raw_into(data, room)])

    def decompress(data: bytes) -> bytes:
        snappy.decompress_raw_into(data, page)
        return bytes(page)

    return compress, decompress


def _python_snappy() -> Pair:
    snappy = _library("snappy")
    return snappy.compress, snappy.decompress


def _zstandard(level: int, **options: bool) -> Callable[[], Pair]:
    def make() -> Pair:
        zstandard = _library("zstandard")
        context = zstandard.ZstdDecompressor()
        return (
            zstandard.ZstdCompressor(level=level, **options).compress,
            lambda data: context.decompress(data, max_output_size=_PAGE),
        )

    return make


def _zstd(module: str, level: int) -> Callable[[], Pair]:
    """Modules with the interface of the standard library's compression.zstd."""

    def make() -> Pair:
        zstd = _library(module)
        compressor = zstd.ZstdCompressor(level)
        mode = zstd.ZstdCompressor.FLUSH_FRAME
        return lambda page: compressor.compress(page, mode), zstd.decompress

    return make


CANDIDATES = (
    Candidate("zlib", "drgn_tools.codecs", None, _ours("zlib")),
    Candidate("zlib", "deflate 1", "deflate", _deflate(1)),
    Candidate("zlib", "deflate 2", "deflate", _deflate(2)),
    Candidate("zlib", "isal 0", "isal", _zlib("isal.isal_zlib", 0)),
    Candidate("zlib", "isal 1", "isal", _zlib("isal.isal_zlib", 1)),
    Candidate("zlib", "isal 2", "isal", _zlib("isal.isal_zlib", 2)),
    Candidate("zlib", "zlib-ng 1", "zlib-ng", _zlib("zlib_ng.zlib_ng", 1)),
    Candidate("zlib", "zlib-ng 2", "zlib-ng", _zlib("zlib_ng.zlib_ng", 2)),
    Candidate("zlib", "cramjam.zlib 1", "cramjam", _cramjam("zlib", 1)),
    Candidate("zlib", "zlib 1", None, _zlib("zlib"), reference=True),
    Candidate("lzo", "drgn_tools.codecs", None, _ours("lzo")),
    Candidate("lzo", "python-lzo", "python-lzo", _lzo, reference=True),
    Candidate("lzo", "lzallright", "lzallright", _lzallright),
    Candidate("snappy", "drgn_tools.codecs", None, _ours("snappy")),
    Candidate("snappy", "cramjam compress_raw", "cramjam", _cramjam_snappy),
    Candidate("snappy", "cramjam …_raw_into", "cramjam", _cramjam_snappy_into),
    Candidate("snappy", "python-snappy", "python-snappy", _python_snappy),
    Candidate("zstd", "drgn_tools.codecs", None, _ours("zstd")),
    Candidate("zstd", "zstandard 1", "zstandard", _zstandard(1), reference=True),
    Candidate(
        "zstd",
        "zstandard 1, no size",
        "zstandard",
        _zstandard(1, write_content_size=False),
    ),
    Candidate("zstd", "zstandard -1", "zstandard", _zstandard(-1)),
    Candidate("zstd", "zstandard 3", "zstandard", _zstandard(3)),
    Candidate("zstd", "cramjam.zstd 1", "cramjam", _cramjam("zstd", 1)),
    Candidate("zstd", "pyzstd 1", "pyzstd", _zstd("pyzstd", 1)),
    Candidate("zstd", "backports.zstd 1", "backports.zstd", _zstd("backports.zstd", 1)),
    Candidate("zstd", "compression.zstd 1", None, _zstd("compression.zstd", 1)),
)


class Result(NamedTuple):
    """A candidate, measured."""

    candidate: Candidate
    compress: float
    """Microseconds per page."""
    decompress: float
    ratio: float
    """Compressed size by size; pages that do not shrink count whole."""


def sample(vmcore: Vmcore, count: int, seed: int = 1) -> list[bytes]:
    """*count* pages at random, or all there are, that are not zero."""
    pieces = []
    for run in vmcore.data_runs:
        pieces.append(run.pfn + np.flatnonzero(vmcore.present(run.pfn, run.end_pfn)))
    pfns = np.concatenate(pieces) if pieces else np.empty(0, np.int64)
    order = random.Random(seed).sample(range(len(pfns)), len(pfns))
    pages: list[bytes] = []
    for index in order:
        if len(pages) == count:
            break
        (page,) = vmcore.pages(pfns[index : index + 1])
        if any(page):
            pages.append(page)
    return pages


def measure(
    pages: Sequence[bytes], candidates: Sequence[Candidate], rounds: int
) -> tuple[list[Result], list[Candidate]]:
    """
    Give *pages* to all *candidates*, in turn, *rounds* times.

    Time is the processor's, so that other processes matter little.

    :return: results, and the candidates that are not installed.
    :raises ValueError: if one does not give back what it was given.
    """
    installed, missing = [], []
    for candidate in candidates:
        try:
            pair = candidate.make()
        except (ImportError, DumpError):
            missing.append(candidate)
            continue
        installed.append((candidate, pair, _check(candidate, pair, pages)))
    times: list[tuple[list[float], list[float]]] = [([], []) for _ in installed]
    for _ in range(rounds):
        for (_, (compress, decompress), packed), taken in zip(installed, times):
            taken[0].append(_time(compress, pages))
            taken[1].append(_time(decompress, packed))
    results = []
    for (candidate, _, packed), taken in zip(installed, times):
        sizes = sum(min(_PAGE, len(data)) for data in packed)
        results.append(
            Result(
                candidate,
                statistics.median(taken[0]),
                statistics.median(taken[1]),
                sizes / (len(pages) * _PAGE),
            )
        )
    return results, missing


def _check(candidate: Candidate, pair: Pair, pages: Sequence[bytes]) -> list[bytes]:
    """The compressed pages, which the project's own reader must understand."""
    packed = [bytes(pair[0](page)) for page in pages]
    read = _ours(candidate.format)()[1]
    for data, page in zip(packed, pages):
        if bytes(pair[1](data)) != page:
            raise ValueError(f"{candidate.name} does not give back a page")
        if read(data) != page:
            raise ValueError(f"a page of {candidate.name} cannot be read")
    return packed


def _time(call: Callable[[Any], Any], items: Sequence[Any]) -> float:
    start = time.thread_time_ns()
    for item in items:
        call(item)
    return (time.thread_time_ns() - start) / 1000 / len(items)


def show(results: Sequence[Result]) -> str:
    """All results as a table; in bold what drgn_tools.codecs does."""
    reference = {r.candidate.format: r for r in results if r.candidate.reference}
    rows = []
    for result in results:
        beside = reference.get(result.candidate.format)
        faster = f"{beside.compress / result.compress:.2f}" if beside else ""
        rows.append(
            (
                result.candidate.format,
                f"{result.candidate.name}{' (reference)' * result.candidate.reference}",
                f"{result.compress:.1f}",
                faster,
                f"{result.decompress:.1f}",
                f"{result.ratio:.3f}",
            )
        )
    head = ("format", "library, level", "compress us>", "x reference>")
    return report.table((*head, "decompress us>", "ratio>"), rows)


def main(args: Sequence[str] | None = None) -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(prog="benchmarks.codecs", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "dump",
        nargs="?",
        help="any dump (default: the test bench's); at -d 31 it has kernel pages only",
    )
    parser.add_argument("--pages", type=int, default=20000, help="default: 20000")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--format", action="append", choices=list(codecs.CODECS))
    chosen = parser.parse_args(args)
    dump = chosen.dump or bench_dump()
    packages = dict.fromkeys(c.package for c in CANDIDATES if c.package)
    print(report.machine(packages))
    with open_vmcore(dump) as vmcore:
        pages = sample(vmcore, chosen.pages)
    if not pages:
        sys.exit(f"{dump} has no page that is not zero")
    wanted = [c for c in CANDIDATES if c.format in (chosen.format or codecs.CODECS)]
    results, missing = measure(pages, wanted, chosen.rounds)
    print(
        f"{len(pages)} pages that are not zero; processor time per page, "
        f"median of {chosen.rounds} rounds.\n"
    )
    print(show(results))
    if missing:
        print("\nNot installed:", ", ".join(c.name for c in missing))


if __name__ == "__main__":
    main()
