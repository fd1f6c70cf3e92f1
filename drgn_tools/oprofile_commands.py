# SPDX-License-Identifier: LGPL-2.1-or-later
"""The oprofile command: parse, call, print."""

from __future__ import annotations

import sys

import click

from drgn_tools import options
from drgn_tools.decoding import decoder

_EPILOG = """\b
--by takes some of these, separated by commas:
  cpu, task, program, mode, event, image, symbol, offset
"""


@click.command(epilog=_EPILOG)
@click.argument("dump")
@options.symbols
@click.option(
    "--sysroot",
    metavar="DIR",
    help="Has the target's programs at their paths: names their functions.",
)
@click.option(
    "--by",
    default="image,symbol",
    metavar="COLUMN,…",
    help="What the report tells apart.",
)
@click.option("--samples", is_flag=True, help="Print each sample, too.")
@click.option("--callgraph", is_flag=True, help="Print who called what, too.")
@options.as_json
@options.quiet
def oprofile(
    dump: str,
    symbols: tuple[str, ...],
    sysroot: str | None,
    by: str,
    samples: bool,
    callgraph: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Print what oprofile had sampled: counters, and where the time went."""
    from drgn_tools.errors import DumpError
    from drgn_tools.oprofile_text import COLUMNS

    if not set(by.split(",")) <= set(COLUMNS):
        raise click.UsageError(f"--by: some of {', '.join(COLUMNS)}, not {by!r}")

    if as_json and (samples or callgraph):
        raise click.UsageError("--json has everything, without --samples, --callgraph")
    if sys.stdout is None:
        raise DumpError("cannot print: standard output is closed")
    decoder("oprofile").print_dump(
        dump,
        symbols=symbols,
        sysroot=sysroot,
        by=by,
        samples=samples,
        callgraph=callgraph,
        as_json=as_json,
    )
