# SPDX-License-Identifier: LGPL-2.1-or-later
"""Options that several commands have, each spelled in one way."""

from __future__ import annotations

from typing import Any, Callable

import click

_Decorator = Callable[[Any], Any]

#: ``symbols``, a tuple of names.
symbols: _Decorator = click.option(
    "--symbols",
    metavar="FILE",
    multiple=True,
    help="A vmlinux or module with debugging symbols; may be given more than once.",
)

#: ``as_json``.
as_json: _Decorator = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object."
)

#: ``jobs``, None unless given.
jobs: _Decorator = click.option(
    "--jobs",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes that work on it.  [default: all CPUs it may run on]",
)

#: ``force``.
force: _Decorator = click.option(
    "-f", "--force", is_flag=True, help="Replace a file that exists."
)


def _silence(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
    if value:
        from drgn_tools.progress import silence

        silence()
    return value


#: ``quiet``. That no progress is shown is done by itself.
quiet: _Decorator = click.option(
    "-q",
    "--quiet",
    is_flag=True,
    callback=_silence,
    help="No progress and no summary; errors and warnings stay.",
)


def output(help: str, required: bool = False) -> _Decorator:
    """``output``, None unless given: the file that is written."""
    return click.option("-o", "--output", metavar="FILE", required=required, help=help)
