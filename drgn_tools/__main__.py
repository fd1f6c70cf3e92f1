# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command line: finds the command, turns errors into one line."""

from __future__ import annotations

import importlib
import signal
import sys
from types import FrameType
from typing import NoReturn

import click

from drgn_tools.errors import DumpError

# Each command's module, imported when the command is used.
_COMMANDS = {
    "extract": "drgn_tools.capture_commands",
    "info": "drgn_tools.capture_commands",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = getattr(importlib.import_module(module), cmd_name)
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="drgn-tools", prog_name="drgn-tools")
def commands() -> None:
    """What a dead kernel leaves behind, taken out fast and read in full."""


def _terminated(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(signal.Signals(signum).name)


def main() -> NoReturn:
    """Run ``drgn-tools``. Exit status: 0 done, 1 failed, 2 wrong usage."""
    signal.signal(signal.SIGTERM, _terminated)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # As under nohup.
        signal.signal(signal.SIGHUP, _terminated)
    try:
        status = commands(prog_name="drgn-tools", standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except click.UsageError as error:
        name = error.ctx.command_path if error.ctx else "drgn-tools"
        print(f"{name}: {error.format_message()} (see {name} --help)", file=sys.stderr)
        sys.exit(2)
    except (DumpError, click.ClickException) as error:
        print(f"drgn-tools: {error}", file=sys.stderr)
        sys.exit(1)
    except (KeyboardInterrupt, click.Abort) as error:
        # Python's own KeyboardInterrupt, for Ctrl-C, has no text.
        name = str(error) or "SIGINT"
        print(f"drgn-tools: stopped by {name}", file=sys.stderr)
        sys.exit(128 + signal.Signals[name])
    except BrokenPipeError:
        # Whoever read our output has enough of it.
        sys.stderr.close()
        sys.exit(1)


if __name__ == "__main__":
    main()
