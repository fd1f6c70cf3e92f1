# SPDX-License-Identifier: LGPL-2.1-or-later
"""The report command: parse, call, print."""

from __future__ import annotations

import os
import sys

import click

from drgn_tools import options


@click.command()
@click.argument("dump")
@options.output("The page.  [default: report.html]")
@options.force
@options.symbols
@options.jobs
@options.quiet
def report(
    dump: str,
    output: str | None,
    force: bool,
    symbols: tuple[str, ...],
    jobs: int | None,
    quiet: bool,
) -> None:
    """Write one HTML page with all that DUMP tells: what died, when and of what.

    The page needs no network and no other file. It has the panic and the kernel log,
    tasks and their stacks, a map of the memory, pstore, zram, oprofile and trace
    buffers, and what of these was missing and why.
    """
    from drgn_tools.decoding import decoder
    from drgn_tools.progress import silence
    from drgn_tools.text import binary_size, printable

    if quiet:
        silence()
    path = output or "report.html"
    size = decoder("report").write_report(
        dump,
        path,
        symbols=symbols,
        force=force,
        jobs=jobs or len(os.sched_getaffinity(0)),
    )
    if not quiet:
        print(printable(f"{path}: {binary_size(size)}"), file=sys.stderr)
