# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command line: finds the command, turns errors into one line."""

from __future__ import annotations

import importlib
import os
import sys
from typing import NoReturn

import click

from drgn_tools.errors import DumpError
from drgn_tools.start import complain, start

#: Each command's module, imported when the command is used; as --help lists them.
GROUPS = {
    "Take a dump": {
        "extract": "drgn_tools.capture_commands",
        "verify": "drgn_tools.capture_commands",
    },
    "See what it is": {
        "info": "drgn_tools.capture_commands",
        "dmesg": "drgn_tools.capture_commands",
        "pages": "drgn_tools.pages_commands",
        "report": "drgn_tools.report_commands",
    },
    "Read what is in it": {
        "pstore": "drgn_tools.pstore_commands",
        "ftrace": "drgn_tools.ftrace_commands",
        "oprofile": "drgn_tools.oprofile_commands",
        "zram": "drgn_tools.zram_commands",
        "swap": "drgn_tools.swap_commands",
    },
}
_COMMANDS = {
    name: module for group in GROUPS.values() for name, module in group.items()
}

_EPILOG = """\b
Examples:
  drgn-tools extract /proc/vmcore dump   in a capture kernel
  drgn-tools info dump
  drgn-tools help extract                what drgn-tools extract --help says
"""


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in _COMMANDS if self.get_command(ctx, name)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        try:
            command: click.Command = getattr(importlib.import_module(module), cmd_name)
        except ModuleNotFoundError as error:
            # A folder for a capture kernel lacks what needs drgn.
            if error.name != module:
                raise
            return None
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] == "help" and not ctx.resilient_parsing:
            if len(args) == 1:
                click.echo(ctx.get_help())
                ctx.exit()
            args = [args[1], "--help"]
        if (
            args[0] not in _COMMANDS
            and args[0][:1] != "-"
            and not ctx.resilient_parsing
        ):
            raise click.UsageError(_no_command(args[0]), ctx)
        return super().resolve_command(ctx, args)

    def format_commands(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        width = max(map(len, _COMMANDS))
        for title, names in GROUPS.items():
            rows = []
            for name in names:
                command = self.get_command(ctx, name)
                if command is not None:
                    short = command.get_short_help_str(formatter.width - width - 4)
                    rows.append((name.ljust(width), short))
            with formatter.section(title):
                formatter.write_dl(rows)


def _no_command(name: str) -> str:
    if os.path.exists(name):
        return (
            f"{name} is a file, not a command: drgn-tools info {name} says what it is"
        )
    # Takes a while to import.
    import difflib

    close = difflib.get_close_matches(name, _COMMANDS)
    return f"no command {name}" + (f": {' or '.join(close)}?" if close else "")


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_EPILOG,
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
)
@click.version_option(package_name="drgn-tools", prog_name="drgn-tools")
@click.pass_context
def commands(ctx: click.Context) -> int:
    """What a dead kernel leaves behind, taken out fast and read in full.

    \f
    DUMP is a dump of an x86-64 Linux kernel: /proc/vmcore in a capture kernel or a
    copy of it, an ELF core of QEMU's or libvirt's, or a kdump-compressed file of
    makedumpfile's or drgn-tools extract's.

    extract, verify, info, dmesg and pages need no debugging symbols. The others read
    a dump with drgn, which looks for them where distributions install them; where
    they are missing, one line says which package has them. --symbols names files.

    Colour is for terminals, unless NO_COLOR is set, and so are lines that show how
    far the work is, which -q leaves out.

    FILES

    Shells complete commands, options, page classes and file names with the files in
    share/bash-completion/completions, share/zsh/site-functions and
    share/fish/vendor_completions.d. In a checkout they are in contrib/completion: for
    bash, source drgn-tools.bash in ~/.bashrc; for zsh, put _drgn-tools into a folder
    of fpath; for fish, put drgn-tools.fish into ~/.config/fish/completions.

    SEE ALSO

    crash(8), drgn(1), drgn-makedumpfile(1), makedumpfile(8)
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        return 2
    return 0


def main() -> NoReturn:
    """Run ``drgn-tools``. Exit status: 0 done, 1 failed, 2 wrong usage."""
    start("drgn-tools", _run)


def _run() -> int:
    try:
        status = commands(prog_name="drgn-tools", standalone_mode=False)
    except click.UsageError as error:
        name = error.ctx.command_path if error.ctx else _named()
        # click ends most of what it says with a full stop.
        what = error.format_message().removesuffix(".")
        complain(name, f"{what} (see {name} --help)")
        return 2
    except click.ClickException as error:
        raise DumpError(str(error)) from None
    return status if isinstance(status, int) else 0


def _named() -> str:
    # click does not say everywhere whose options are wrong.
    return " ".join(["drgn-tools", *(x for x in sys.argv[1:2] if x in _COMMANDS)])


if __name__ == "__main__":
    main()
