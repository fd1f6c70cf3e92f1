# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command line: finds the command, turns errors into one line."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

import click

from drgn_tools.errors import STOP_SIGNALS, DumpError, Stopped
from drgn_tools.text import printable

# Each command's module, imported when the command is used.
_COMMANDS = {
    "dmesg": "drgn_tools.capture_commands",
    "extract": "drgn_tools.capture_commands",
    "info": "drgn_tools.capture_commands",
    "pstore": "drgn_tools.pstore_commands",
    "verify": "drgn_tools.capture_commands",
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


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=False,
)
@click.version_option(package_name="drgn-tools", prog_name="drgn-tools")
def commands() -> None:
    """What a dead kernel leaves behind, taken out fast and read in full."""


def _stop(signum: int, frame: FrameType | None) -> None:
    for number in STOP_SIGNALS:
        # Tidying up is not to be stopped.
        signal.signal(number, signal.SIG_IGN)
    raise Stopped(signum)


def _complain(message: str) -> None:
    with contextlib.suppress(OSError):
        print(printable(message), file=sys.stderr)


def _discard_stdout() -> None:
    """What could not be printed, Python would try to print again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def main() -> NoReturn:
    """Run ``drgn-tools``. Exit status: 0 done, 1 failed, 2 wrong usage."""
    status = _run()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    # Nothing is left to tidy up, and Python would take 15 ms to find that out.
    os._exit(status)


def _run() -> int:
    # numpy's linear algebra, which nothing here uses, starts a thread per CPU.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # As under nohup.
            signal.signal(number, _stop)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names and logs may have any character.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = commands(prog_name="drgn-tools", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.UsageError as error:
        name = error.ctx.command_path if error.ctx else "drgn-tools"
        _complain(f"{name}: {error.format_message()} (see {name} --help)")
        return 2
    except (DumpError, click.ClickException) as error:
        _complain(f"drgn-tools: {error}")
        return 1
    except Stopped as stopped:
        number = signal.Signals(stopped.signum)
        _complain(f"drgn-tools: stopped by {number.name}")
        return 128 + number
    except BrokenPipeError:
        # Whoever read our output has enough of it.
        _discard_stdout()
        return 1
    except OSError as error:
        # With files, that is a DumpError.
        _complain(f"drgn-tools: cannot print: {error.strerror}")
        _discard_stdout()
        return 1


if __name__ == "__main__":
    main()
