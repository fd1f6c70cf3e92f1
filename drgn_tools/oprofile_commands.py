# SPDX-License-Identifier: LGPL-2.1-or-later
"""The oprofile command: parse, call, print."""

from __future__ import annotations

import sys

import click

from drgn_tools import options
from drgn_tools.decoding import decoder

# As oprofile_text.COLUMNS has them.
_COLUMNS = (
    *("cpu", "task", "program", "mode"),
    *("event", "image", "symbol", "offset"),
)

_EPILOG = f"""\b
--by takes some of these, separated by commas:
  {", ".join(_COLUMNS)}

\b
Examples:
  drgn-tools oprofile vmcore
  drgn-tools oprofile --by cpu,symbol --sysroot /srv/target vmcore
"""


@click.command(epilog=_EPILOG)
@options.dump
@options.symbols
@click.option(
    "--sysroot",
    type=click.Path(),
    metavar="DIR",
    help="Has the target's programs at their paths: names their functions.",
)
@click.option(
    "--by",
    default="image,symbol",
    metavar="COLUMN,…",
    show_default=True,
    shell_complete=options.some_of(_COLUMNS),
    help="What the report tells apart.",
)
@click.option("--samples", is_flag=True, help="Print each sample, too.")
@click.option("--callgraph", is_flag=True, help="Print who called what, too.")
@options.as_json
@options.output(
    "Write a file for other tools instead, by its ending: .folded for flame graphs, "
    ".speedscope.json for speedscope, .pb.gz for pprof.",
    family="oprofile",
)
@options.force
@options.quiet
def oprofile(
    dump: str,
    symbols: tuple[str, ...],
    sysroot: str | None,
    by: str,
    samples: bool,
    callgraph: bool,
    as_json: bool,
    output: str | None,
    force: bool,
    quiet: bool,
) -> None:
    """Print what oprofile had sampled: where the time went.

    Debugging symbols of the kernel and of oprofile are needed.

    \f
    Prints oprofile's counters, and how many samples there are of what: those in the
    CPUs' buffers, and those in the event buffer that its daemon has not read. What is
    torn or missing is said on standard error.
    """
    from drgn_tools.errors import DumpError
    from drgn_tools.oprofile_text import COLUMNS

    if not set(by.split(",")) <= set(COLUMNS):
        raise click.UsageError(f"--by: some of {', '.join(COLUMNS)}, not {by!r}")

    if as_json and (samples or callgraph):
        raise click.UsageError("--json has everything, without --samples, --callgraph")
    if output is not None and (as_json or samples or callgraph):
        raise click.UsageError("--output is without --json, --samples, --callgraph")
    if force and output is None:
        raise click.UsageError("--force needs --output")
    if output is None and sys.stdout is None:
        raise DumpError("cannot print: standard output is closed")
    decoder("oprofile").print_dump(
        dump,
        symbols=symbols,
        sysroot=sysroot,
        by=by,
        samples=samples,
        callgraph=callgraph,
        as_json=as_json,
        output=output,
        force=force,
    )
