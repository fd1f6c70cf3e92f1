# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Dumps of guests, in which everything that is printed drives terminals, on a terminal:
every command with each of its options, and every helper that prints.
"""

from __future__ import annotations

import contextlib
import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import drgn
import pytest

from drgn_tools import _plugin, session
from drgn_tools.__main__ import commands
from drgn_tools.oprofile_text import COLUMNS
from tests.command import drgn_tools
from tests.printed import Tty, at_terminal, harmless, spoil, words

from . import zram_guests
from .test_sessions import LINES, Dump, Line, ftrace, oprofile, pstore, zram

CONTEXT = click.Context(commands, info_name="drgn-tools")
NAMES = commands.list_commands(CONTEXT)
DUMPS = {"ftrace": ftrace, "oprofile": oprofile, "pstore": pstore}
# Values of options that are neither flags nor choices; {pid} is a process's.
VALUES = {
    "oprofile": [f"--by={','.join(COLUMNS)}"],
    "pstore": ["--boot=-1 --last=100", "--only=console,pmsg"],
    "swap": ["--pid={pid}", "--pid={pid} --json"],
    "zram": ["--device=zram1", "--stat=mm-stat --device=zram1"],
}
# What they print has no words of a kernel's, but for its release.
OF_NO_KERNEL = ("extract", "pages", "report", "verify")
# By which commands name devices.
KEPT = {f"zram{number}".encode() for number in (0, 1, 2, 15)}


def pid() -> int:
    (spec,) = (one for one in zram_guests.MATRIX if one.name == "7.2-bench-zram")
    return zram_guests.get(spec).processes()[0].pid


def lines(name: str, dump: Dump, folder: Path) -> Iterator[list[object]]:
    """A command with nothing, with each flag, each choice and each output."""
    command = commands.get_command(CONTEXT, name)
    assert command is not None
    known = {param.name for param in command.params}
    plain: list[object] = [name, dump.path]
    if "symbols" in known:
        plain += [f"--symbols={path}" for path in dump.symbols]
    written = folder / f"{name}.html"
    if name in ("extract", "report"):
        plain += ["-fo", written]
    yield plain
    for option in command.params:
        if not isinstance(option, click.Option):
            continue
        if option.is_flag:
            yield [*plain, option.opts[0]]
        elif isinstance(option.type, click.Choice):
            for choice in option.type.choices:
                yield [*plain, option.opts[0], choice]
    for value in VALUES.get(name, ()):
        yield [*plain, *value.format(pid=pid()).split()]


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Dump]]:
    """A dump for each command."""
    found: dict[str, Dump] = {}
    folder = tmp_path_factory.mktemp("spoiled")
    for made in {DUMPS.get(name, zram) for name in NAMES}:
        dump = made()
        names = [name for name in NAMES if DUMPS.get(name, zram) == made]
        said = ""
        for name in names:
            if name not in OF_NO_KERNEL:
                for line in lines(name, dump, folder):
                    said += drgn_tools(*line).stdout
        path = folder / made.__name__
        subprocess.run(["cp", "--sparse=always", dump.path, path], check=True)
        path.chmod(0o600)
        assert spoil(path, words(said) - KEPT) > 100
        found.update(dict.fromkeys(names, Dump(path, dump.symbols)))
    yield found


@pytest.mark.parametrize("name", NAMES)
def test_commands(name: str, spoiled: dict[str, Dump], tmp_path: Path) -> None:
    said = ""
    for line in lines(name, spoiled[name], tmp_path):
        one = at_terminal("drgn-tools", *line, fresh=True)
        assert b"Traceback" not in one, line
        said += harmless(one)
    assert "\\x1b" in said or name in OF_NO_KERNEL


@pytest.mark.parametrize("line", LINES, ids=lambda line: str(line.line))
def test_helpers(line: Line, spoiled: dict[str, Dump], tmp_path: Path) -> None:
    """As commands of a session, in which errors end nothing."""
    prog = program(spoiled[line.dump.__name__])
    name, _, arguments = line.line.partition(" ")
    arguments = arguments.format(tmp_path / "file", pid=pid())
    one = session.helper_command(name, _plugin._function(name))
    out, err = Tty(), Tty()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            one.run(prog, name, one.parse(arguments).args, globals={})
        except SystemExit as error:
            err.write(str(error.code))
    said = harmless(out.getvalue()) + harmless(err.getvalue())
    assert said or "{}" in line.line


@functools.cache
def program(dump: Dump) -> drgn.Program:
    return dump.opened()
