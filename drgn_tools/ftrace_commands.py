# SPDX-License-Identifier: LGPL-2.1-or-later
"""The ftrace command: parse, call, print."""

from __future__ import annotations

import sys

import click

from drgn_tools import options
from drgn_tools.decoding import decoder


@click.command()
@click.argument("dump")
@options.symbols
@options.output("Write a trace.dat for trace-cmd and KernelShark instead.")
@options.force
@click.option(
    "--instance",
    metavar="NAME",
    help="Only this instance's buffer; an empty NAME is the kernel's own.",
)
@click.option("--cpu", type=click.IntRange(0), metavar="N", help="Only this CPU's.")
@options.quiet
def ftrace(
    dump: str,
    symbols: tuple[str, ...],
    output: str | None,
    force: bool,
    instance: str | None,
    cpu: int | None,
    quiet: bool,
) -> None:
    """Print the kernel's trace buffers as the trace file of tracefs shows them."""
    from drgn_tools.errors import DumpError

    if output is not None and (instance is not None or cpu is not None):
        raise click.UsageError("--output takes all instances and CPUs")
    if force and output is None:
        raise click.UsageError("--force needs --output")
    if output is None and sys.stdout is None:
        raise DumpError("cannot print: standard output is closed")
    decoder("ftrace").print_dump(
        dump,
        symbols=symbols,
        instance=instance,
        cpu=cpu,
        trace_dat=output,
        force=force,
    )
