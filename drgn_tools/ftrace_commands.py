# SPDX-License-Identifier: LGPL-2.1-or-later
"""The ftrace command: parse, call, print."""

from __future__ import annotations

import sys

import click

from drgn_tools.decoding import decoder
from drgn_tools.options import symbols as symbols_option


@click.command()
@click.argument("dump")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Write a trace.dat for trace-cmd and KernelShark instead.",
)
@click.option("-f", "--force", is_flag=True, help="Replace FILE.")
@click.option(
    "--instance",
    metavar="NAME",
    help="Only this instance's buffer; an empty NAME is the kernel's own.",
)
@click.option("--cpu", type=click.IntRange(0), metavar="N", help="Only this CPU's.")
@symbols_option
def ftrace(
    dump: str,
    output: str | None,
    force: bool,
    instance: str | None,
    cpu: int | None,
    symbols: tuple[str, ...],
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
