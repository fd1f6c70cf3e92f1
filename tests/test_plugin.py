# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names of helpers and commands, which the plugin has without importing them."""

from __future__ import annotations

import argparse
import importlib
import inspect
import pydoc
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from drgn import Program

from drgn_tools import _plugin, session

from . import session_table
from .command import environment


def helper(name: str) -> Any:
    return getattr(
        importlib.import_module(f"drgn_tools.{_plugin._MODULES[name]}"), name
    )


@pytest.mark.parametrize("module", _plugin._HELPERS)
def test_names_are_the_modules(module: str) -> None:
    helpers = importlib.import_module(f"drgn_tools.{module}")
    names = _plugin._HELPERS[module].split()
    assert names == sorted(helpers.__all__)
    for name in names:
        function, lazy = getattr(helpers, name), _plugin._Helper(name)
        assert isinstance(function, types.FunctionType)
        assert inspect.signature(lazy) == inspect.signature(function)
        told = pydoc.plain(pydoc.render_doc(lazy))
        assert f"module drgn_tools.{module}" in told.splitlines()[0]
        # In full, which help() shows of routines alone.
        assert f"{name}{inspect.signature(function)}" in told
        for line in (inspect.getdoc(function) or "no text").splitlines():
            assert line in told


def test_commands_are_what_prints_or_writes() -> None:
    """All of it, and nothing else."""
    ends = {"file", "path"}
    found = [
        name
        for name in _plugin._MODULES
        if ends & set(inspect.signature(helper(name)).parameters)
    ]
    assert sorted(_plugin._COMMANDS.split()) == sorted(found)
    assert set(session._RECORDS) <= set(found)


@pytest.mark.parametrize("name", _plugin._COMMANDS.split())
def test_commands_tell_what_they_take(name: str) -> None:
    """Every parameter of the helper, as an argument with a text of its own."""
    function = helper(name)
    command = session.helper_command(name, function)
    parser: argparse.ArgumentParser = command._parser
    actions = {action.dest: action for action in parser._actions}
    taken = set(inspect.signature(function).parameters) - {"prog", "file"}
    if "zram" in taken:
        taken = taken - {"zram"} | {"device"}
    assert set(actions) == taken | {"help", "drgn"}
    for action in actions.values():
        assert re.search(r"[a-z]", action.help or "")
        # Not what only the docstring of another helper would tell.
        assert not re.match("(As of|See) ", action.help or "")
    assert re.fullmatch(r"[a-z][^\n`:]*[^\n`.:]", command.description())
    assert "``" not in command.format_help() and ":func:" not in command.format_help()


def test_help_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Even where an argument is missing."""
    command = session.helper_command("swap_where", helper("swap_where"))
    for given in ("--help", "-h"):
        command.run(Program(), "swap_where", command.parse(given).args, globals={})
        out, err = capsys.readouterr()
        assert out.startswith("usage: swap_where ") and err == ""
        assert command.format_help() in out


SIDE_EFFECTS = """
import importlib, logging, os, pkgutil, signal, sys, threading
before = set(sys.modules)
import drgn_tools
assert set(sys.modules) - before == {"drgn_tools"}

import drgn.cli, drgn.helpers.linux as helpers
from drgn.commands import DEFAULT_COMMAND_NAMESPACE
from drgn.commands._crash import CRASH_COMMAND_NAMESPACE, _CrashCompleter
from drgn.internal.rlcompleter import Completer

def state():
    loggers = [logging.root, logging.getLogger("drgn")]
    umask = os.umask(0)
    os.umask(umask)
    return {
        "names": (sorted(helpers.__all__), sorted(vars(helpers))),
        "commands": sorted(DEFAULT_COMMAND_NAMESPACE._commands),
        "crash": sorted(CRASH_COMMAND_NAMESPACE._commands),
        "completion": (Completer.complete, _CrashCompleter.complete),
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "logging": [(one.level, list(one.handlers)) for one in loggers],
        "hooks": (sys.excepthook, sys.displayhook, sys.unraisablehook),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "process": (os.getcwd(), umask, dict(os.environ), list(sys.path)),
        "threads": threading.enumerate(),
    }

first = state()
imported = []
for module in pkgutil.walk_packages(drgn_tools.__path__, "drgn_tools."):
    importlib.import_module(module.name)
    imported.append(module.name)
    now = state()
    for what in first:
        assert now[what] == first[what], (module.name, what)
import _drgn_tools
assert state() == first
assert {"drgn_tools._plugin", "drgn_tools.__main__"} <= set(imported)

# And what drgn calls has them, which the test would see.
core = sys.argv[1]
prog = drgn.Program()
prog.set_core_dump(core)
_drgn_tools.drgn_prog_set(prog)
now = state()
changed = {what for what in first if now[what] != first[what]}
assert changed == {"names", "commands", "crash", "completion"}, changed
_drgn_tools.drgn_prog_set(prog)
assert state() == now
for what in ("commands", "crash"):
    assert set(first[what]) <= set(now[what])
print("fine")
"""


def test_importing_does_nothing(core: Path) -> None:
    """Any module, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", SIDE_EFFECTS, core],
        capture_output=True,
        text=True,
        env=environment(DRGN_DISABLE_PLUGINS="*"),
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_page_has_all_of_them() -> None:
    # If not: python -m tests.session_table
    assert session_table.PAGE.read_text() == session_table.page()
