# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command line: finds the command, turns errors into one line."""

from __future__ import annotations

import importlib
from typing import NoReturn

import click

from drgn_tools.errors import DumpError
from drgn_tools.start import complain, start

# Each command's module, imported when the command is used.
_COMMANDS = {
    "dmesg": "drgn_tools.capture_commands",
    "extract": "drgn_tools.capture_commands",
    "ftrace": "drgn_tools.ftrace_commands",
    "info": "drgn_tools.capture_commands",
    "oprofile": "drgn_tools.oprofile_commands",
    "pages": "drgn_tools.pages_commands",
    "pstore": "drgn_tools.pstore_commands",
    "report": "drgn_tools.report_commands",
    "swap": "drgn_tools.swap_commands",
    "verify": "drgn_tools.capture_commands",
    "zram": "drgn_tools.zram_commands",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in sorted(_COMMANDS) if self.get_command(ctx, name)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        try:
            command: click.Command = getattr(importlib.import_module(module), cmd_name)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            return None
        return command


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=False,
)
@click.version_option(package_name="drgn-tools", prog_name="drgn-tools")
def commands() -> None:
    """What a dead kernel leaves behind, taken out fast and read in full."""


def main() -> NoReturn:
    """Run ``drgn-tools``. Exit status: 0 done, 1 failed, 2 wrong usage."""
    start("drgn-tools", _run)


def _run() -> int:
    try:
        status = commands(prog_name="drgn-tools", standalone_mode=False)
    except click.UsageError as error:
        name = error.ctx.command_path if error.ctx else "drgn-tools"
        complain(name, f"{error.format_message()} (see {name} --help)")
        return 2
    except click.ClickException as error:
        raise DumpError(str(error)) from None
    return status if isinstance(status, int) else 0


if __name__ == "__main__":
    main()
