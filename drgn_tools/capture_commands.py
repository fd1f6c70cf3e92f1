# SPDX-License-Identifier: LGPL-2.1-or-later
"""The capture half's commands: parse, call, print."""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from drgn_tools.extract import Summary
    from drgn_tools.pages import PageClass

_EPILOG = """\b
-d adds up what to leave out:
  1 zero pages, 2 page cache, 4 page cache with private data,
  8 user memory, 16 free pages
Classes: kernel, slab, page-table, zsmalloc, large-kmalloc, cache,
  cache-private, anon, hugetlb, free, unaccepted, zero, unknown
Offline and poisoned pages are never read.
"""


@click.command(epilog=_EPILOG)
@click.argument("vmcore")
@click.argument("output")
@click.option(
    "-d",
    "dump_level",
    type=click.IntRange(0, 31),
    default=31,
    show_default=True,
    metavar="LEVEL",
    help="Which pages to leave out, 0 (none) to 31 (all that can be).",
)
@click.option("-c", "codecs", flag_value="zlib", help="Compress with zlib.")
@click.option("-l", "codecs", flag_value="lzo", help="Compress with lzo.")
@click.option("-p", "codecs", flag_value="snappy", help="Compress with snappy.")
@click.option("-z", "codecs", flag_value="zstd", help="Compress with zstd.")
@click.option(
    "--compress",
    "codec_name",
    metavar="NAME[:LEVEL]",
    help="Codec and its level.  [default: zstd]",
)
@click.option("--exclude", metavar="CLASS,…", help="Leave out these classes too.")
@click.option("--keep", metavar="CLASS,…", help="Keep these classes after all.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes that work on it.  [default: all CPUs it may run on]",
)
@click.option(
    "--partial", is_flag=True, help="Take what is there of a cut-short VMCORE."
)
@click.option("-f", "force", is_flag=True, help="Replace OUTPUT if it exists.")
def extract(
    vmcore: str,
    output: str,
    dump_level: int,
    codecs: str | None,
    codec_name: str | None,
    exclude: str | None,
    keep: str | None,
    jobs: int | None,
    partial: bool,
    force: bool,
) -> None:
    """Write the pages of VMCORE that matter to OUTPUT.

    VMCORE is /proc/vmcore, an ELF core, or a kdump-compressed file to filter
    further. OUTPUT is kdump-compressed, for crash and drgn.
    """
    # What it makes are arrays and pages: nothing that needs a search for cycles.
    gc.disable()
    from drgn_tools import codecs as known
    from drgn_tools.errors import DumpError
    from drgn_tools.extract import extract
    from drgn_tools.pages import ALWAYS_EXCLUDED, excluded_classes

    if codecs and codec_name:
        raise click.UsageError(f"--compress {codec_name} and another codec")
    try:
        codec, codec_level = known.parse(codec_name or codecs or "zstd")
    except DumpError as error:
        raise click.UsageError(str(error)) from None
    excluded = excluded_classes(dump_level) | _classes(exclude, "--exclude")
    excluded -= _classes(keep, "--keep") - ALWAYS_EXCLUDED
    summary = extract(
        vmcore,
        output,
        excluded=excluded,
        codec=codec,
        codec_level=codec_level,
        jobs=jobs or len(os.sched_getaffinity(0)),
        force=force,
        partial=partial,
    )
    _print_summary(summary, output)
    if summary.lost:
        pfn, why = next(iter(summary.lost.items()))
        raise DumpError(
            f"{output} is incomplete: {len(summary.lost)} pages could not be read, "
            f"the first at {pfn * summary.page_size:#x}: {why}"
        )


def _classes(text: str | None, option: str) -> frozenset[PageClass]:
    from drgn_tools.pages import CLASSES_BY_LABEL

    labels = text.split(",") if text else []
    for label in labels:
        if label not in CLASSES_BY_LABEL:
            raise click.UsageError(f"{option}: no page class {label!r}")
    return frozenset(CLASSES_BY_LABEL[label] for label in labels)


def _print_summary(summary: Summary, output: str) -> None:
    from drgn_tools.pages import PageClass
    from drgn_tools.text import binary_size, printable

    def say(line: str) -> None:
        print(printable(line), file=sys.stderr)

    plan = summary.plan
    for warning in plan.warnings:
        say(f"warning: {warning}")
    for pfn, why in summary.retried.items():
        paddr = pfn * summary.page_size
        say(f"warning: {why}; read again page by page from {paddr:#x} on")
    say(f"{'class':<14}{'pages':>12}{'kept':>12}{'left out':>12}")
    for page_class in PageClass:
        found, kept = int(plan.found[page_class]), int(plan.kept[page_class])
        if found:
            say(f"{page_class.label:<14}{found:>12}{kept:>12}{found - kept:>12}")
    found, kept = int(plan.found.sum()), int(plan.kept.sum())
    say(f"{'all':<14}{found:>12}{kept:>12}{found - kept:>12}")
    if summary.zero_pages:
        say(f"{summary.zero_pages} of the kept pages are zero and share one page")
    if summary.missing_pages:
        say(f"{summary.missing_pages} pages are missing: the input is cut short")
    memory = [binary_size(pages * summary.page_size) for pages in (kept, found)]
    say(f"kept {memory[0]} of {memory[1]} of memory")
    sizes = binary_size(summary.output_size), binary_size(summary.input_size)
    say(f"{output}: {sizes[0]} from {sizes[1]} in {summary.seconds:.1f} s")


@click.command()
@click.argument("dump")
def info(dump: str) -> None:
    """Say what DUMP is: kernel, crash time, memory, filtering, panic."""
    from drgn_tools.info import describe
    from drgn_tools.text import printable

    for label, value in describe(dump):
        print(f"{label + ':':<13}{printable(value)}")


@click.command()
@click.argument("dump")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes that work on it.  [default: all CPUs it may run on]",
)
def verify(dump: str, jobs: int | None) -> int:
    """Read all of DUMP and say what is missing, damaged or inconsistent."""
    from drgn_tools.text import printable
    from drgn_tools.verify import verify

    report = verify(dump, jobs or len(os.sched_getaffinity(0)))
    for line in report.lines():
        print(printable(line))
    return 0 if report.sound else 1
