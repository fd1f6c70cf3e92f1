# SPDX-License-Identifier: LGPL-2.1-or-later
"""Options that several commands have, each spelled in one way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable

import click

_Decorator = Callable[[Any], Any]

#: ``dump``, an argument.
dump: _Decorator = click.argument("dump", type=click.Path())

#: ``symbols``, a tuple of names.
symbols: _Decorator = click.option(
    "-s",
    "--symbols",
    type=click.Path(),
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
    help="Processes that work on it; by default, one for each CPU it may run on.",
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


def output(help: str, required: bool = False, family: str = "") -> _Decorator:
    """
    ``output``, None unless given: the file that is written.

    :param family: of helpers, if the file's name has to end in one of theirs.
    """

    def check(
        ctx: click.Context, param: click.Parameter, value: str | None
    ) -> str | None:
        if value is not None and family:
            from drgn_tools.export.endings import format_of

            try:
                format_of(family, value)
            except ValueError as error:
                raise click.UsageError(f"--output: {error}", ctx) from None
        return value

    return click.option(
        "-o",
        "--output",
        type=click.Path(),
        metavar="FILE",
        required=required,
        help=help,
        callback=check,
    )


def one_of(
    names: Sequence[str],
) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """For ``shell_complete``, of an option that takes other values, too."""

    def complete(ctx: click.Context, param: click.Parameter, typed: str) -> list[str]:
        return [name for name in names if name.startswith(typed)]

    return complete


def some_of(
    names: Sequence[str],
) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """For ``shell_complete``, of an option that takes names, separated by commas."""

    def complete(ctx: click.Context, param: click.Parameter, typed: str) -> list[str]:
        *before, last = typed.split(",")
        rest = [name for name in names if name not in before]
        return [",".join([*before, name]) for name in rest if name.startswith(last)]

    return complete
