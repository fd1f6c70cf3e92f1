# SPDX-License-Identifier: LGPL-2.1-or-later
"""The ftrace command: parse, call, print."""

from __future__ import annotations

import sys

import click

from drgn_tools import options
from drgn_tools.decoding import decoder

_EPILOG = """\b
Examples:
  drgn-tools ftrace vmcore | less
  drgn-tools ftrace vmcore -o trace.dat && trace-cmd report trace.dat
"""


@click.command(epilog=_EPILOG)
@options.dump
@options.symbols
@options.output(
    "Write a file for other tools instead, by its ending: .dat for trace-cmd and "
    "KernelShark, .pftrace or .perfetto-trace for Perfetto.",
    family="ftrace",
)
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
    """Print the trace buffers, or write them for other tools.

    They are printed as the trace file of tracefs shows them. Debugging symbols of the
    kernel are needed.

    \f
    That is what /sys/kernel/tracing/trace would have shown when the dump was taken,
    and after it the buffer of each instance. What is missing, torn or shown otherwise
    than the kernel does is said on standard error.

    SEE ALSO

    drgn(1), drgn-tools(1), trace-cmd-report(1)
    """
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
        output=output,
        force=force,
        quiet=quiet,
    )
