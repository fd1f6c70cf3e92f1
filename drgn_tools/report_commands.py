# SPDX-License-Identifier: LGPL-2.1-or-later
"""The report command: parse, call, print."""

from __future__ import annotations

import os

import click

from drgn_tools import options
from drgn_tools.decoding import decoder

_EPILOG = """\b
Examples:
  drgn-tools report vmcore
  drgn-tools report -o report.html --symbols vmlinux vmcore
"""


@click.command(epilog=_EPILOG)
@options.dump
@options.output("The page, .html or .htm.  [default: report.html]", family="report")
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
    """Write a page with all that DUMP tells, for a browser.

    First what died, when and of what; then the kernel log, tasks and their stacks, a
    map of the memory, pstore, zram, oprofile and the trace buffers, and what of these
    was missing and why. The page is one file and needs no network. Tasks, and most of
    what comes after them, need debugging symbols.

    \f
    Whatever strings are in the dump are shown as text: what cannot be seen is escaped,
    and the page lets no script run but its own.

    The page has at most 5 MB. Of each section, what there is no room for is left out,
    and that is said there, with the command that prints all of it.

    It has what was in the kernel's memory, and so it is written with mode 0600.

    KEYS

    In the page, / goes to the search, Enter to the next hit, Shift-Enter to the one
    before, and Esc ends it. A click on a frame of the flame graph makes it as wide as
    the page.
    """
    from drgn_tools.progress import say_written

    path = output or "report.html"
    size = decoder("report").write_report(
        dump,
        path,
        symbols=symbols,
        force=force,
        jobs=jobs or len(os.sched_getaffinity(0)),
    )
    say_written(path, size, quiet)
