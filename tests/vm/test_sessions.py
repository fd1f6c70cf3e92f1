# SPDX-License-Identifier: LGPL-2.1-or-later
"""Somebody at the prompts of drgn and drgn-crash, on dumps of guests."""

from __future__ import annotations

import contextlib
import functools
import io
import pydoc
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import drgn
import pytest

from drgn_tools import _plugin, session
from drgn_tools.pstore import pstore_ftrace, pstore_zones
from drgn_tools.zram import zram_devices
from tests.command import environment
from tests.terminal import Terminal

from . import ftrace_guests, old_drgn, oprofile_guests, pstore_guests, zram_guests


class Dump(NamedTuple):
    """A dump, and where its symbols are."""

    path: Path
    symbols: tuple[Path, ...]

    def opened(self) -> drgn.Program:
        prog = drgn.Program()
        prog.set_core_dump(self.path)
        prog.load_debug_info(self.symbols)
        return prog


def pstore() -> Dump:
    (spec,) = (one for one in pstore_guests.MATRIX if one.name == "7.2-bench-wrapped")
    guest = pstore_guests.get(spec)
    return Dump(guest.vmcore, (guest.kernel.vmlinux,))


def zram() -> Dump:
    (spec,) = (one for one in zram_guests.MATRIX if one.name == "7.2-bench-zram")
    guest = zram_guests.get(spec)
    return Dump(guest.dump("vmcore"), tuple(guest.kernel.debug_files()))


def oprofile() -> Dump:
    (spec,) = (one for one in oprofile_guests.MATRIX if one.name == "starved")
    guest = oprofile_guests.get(spec)
    symbols = (guest.kernel.vmlinux, guest.kernel.module_debug("oprofile"))
    return Dump(guest.vmcore, symbols)


def ftrace() -> Dump:
    guest = ftrace_guests.get("6.12")
    return Dump(guest.dump("vmcore"), (guest.kernel.vmlinux,))


def text(helper: Callable[..., None], *arguments: Any, **named: Any) -> str:
    out = io.StringIO()
    helper(*arguments, **named, file=out)
    return out.getvalue()


# --- every command, and the code that --drgn prints


@contextlib.contextmanager
def default(prog: drgn.Program) -> Iterator[None]:
    drgn.set_default_prog(prog)
    try:
        yield
    finally:
        drgn.set_default_prog(None)


def command(prog: drgn.Program, line: str) -> str:
    """Return what a command prints."""
    name, _, arguments = line.partition(" ")
    one = session.helper_command(name, _plugin._function(name))
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        one.run(prog, name, one.parse(arguments).args, globals={})
    return out.getvalue()


def executed(prog: drgn.Program, code: str) -> tuple[str, dict[str, Any]]:
    """Run code as a script; return what it prints, and its names."""
    out = io.StringIO()
    names: dict[str, Any] = {}
    with default(prog), contextlib.redirect_stdout(out):
        exec(compile(code, "script", "exec"), names)
    return out.getvalue(), names


class Line(NamedTuple):
    """A command as it is typed."""

    dump: Callable[[], Dump]
    line: str
    """{} is a file that it writes, {pid} a process."""
    records: str = ""
    """A name that the code has given to a field of the last record."""


LINES = [
    Line(ftrace, "ftrace_dump --cpu 1 --instance=", "system"),
    Line(ftrace, "ftrace_export {}.dat --force", "time"),
    Line(oprofile, "oprofile_callgraph --source cpu", "comm"),
    Line(oprofile, "oprofile_event_buffer --read", "tgid"),
    Line(oprofile, "oprofile_export {}.folded --cpu 0", "trace"),
    Line(oprofile, "oprofile_report --by mode", "mode"),
    Line(oprofile, "oprofile_samples --cpu 1 --uncommitted", "program"),
    Line(oprofile, "oprofile_stats", "cpu_type"),
    Line(pstore, "pages_image {}.svg", "page_class"),
    Line(pstore, "pages_summary", "pfn"),
    Line(pstore, "pstore_console --boot previous", "source"),
    Line(pstore, "pstore_dmesg", "seconds"),
    Line(pstore, "pstore_export {}.pftrace --boot -1", "counter"),
    Line(pstore, "pstore_ftrace --last 20 --cpu 1", "parent_ip"),
    Line(pstore, "pstore_pmsg --no-logcat", "text"),
    Line(pstore, "pstore_zones", "old_log"),
    Line(zram, "swap_tasks", "comm"),
    Line(zram, "swap_where {pid} --size 0x7fffffffffff", "kind"),
    Line(zram, "zram_bd_stat zram15", "stats"),
    Line(zram, "zram_block_state zram1", "flags"),
    Line(zram, "zram_devices", "disksize"),
    Line(zram, "zram_export zram2 {}.img --jobs 1"),
    Line(zram, "zram_io_stat zram1", "stats"),
    Line(zram, "zram_mm_stat zram1", "most_used"),
    Line(zram, "zram_pools zram0"),
    Line(zram, "zram_streams", "writer"),
    Line(zram, "zram_table zram1 {}.csv --force", "ac_time"),
]


@functools.cache
def program(made: Callable[[], Dump]) -> drgn.Program:
    return made().opened()


def test_all_commands_are_here() -> None:
    assert {one.line.split()[0] for one in LINES} == {*_plugin._COMMANDS.split()}


@pytest.mark.parametrize("line", LINES, ids=lambda line: str(line.line))
def test_code_does_what_the_command_does(line: Line, tmp_path: Path) -> None:
    """Prints the same, writes the same, and has records of it."""
    prog = program(line.dump)
    (spec,) = (one for one in zram_guests.MATRIX if one.name == "7.2-bench-zram")
    pid = zram_guests.get(spec).processes()[0].pid
    file = tmp_path / "file"
    typed = line.line.format(file, pid=pid)
    printed = command(prog, typed)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert bool(written) == ("{}" in line.line) and all(written.values())
    assert printed or written
    for path in tmp_path.iterdir():
        path.unlink()
    code = command(prog, f"{typed} --drgn")
    assert not [*tmp_path.iterdir()]
    shown, names = executed(prog, code)
    # How much an export has is no text of the helper's.
    counted = typed.startswith(("ftrace_export", "zram_export"))
    assert shown == ("" if counted else printed)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == written
    assert line.records in names or not line.records


# --- somebody types

LAST = "--boot -1 --last 3"


def settings(home: Path) -> dict[str, str]:
    # No history of earlier tests, and no pager: that would want keys.
    # What Python 3.13 has paints a screen, which is no stream of lines.
    plain = {"HOME": str(home), "PAGER": "cat", "PYTHON_BASIC_REPL": "1"}
    return environment(DRGN_PLUGINS="drgn_tools=_drgn_tools", **plain)


@pytest.fixture(scope="module")
def opened() -> drgn.Program:
    return program(pstore)


@pytest.fixture(scope="module")
def in_drgn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    found = pstore()
    symbols = [word for path in found.symbols for word in ("-s", str(path))]
    argv = [sys.executable, "-m", "drgn", "-q", "-c", str(found.path), *symbols]
    with Terminal(argv, settings(tmp_path_factory.mktemp("home")), ">>> ") as terminal:
        yield terminal


@pytest.fixture(scope="module")
def in_crash(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    found = pstore()
    argv = [sys.executable, "-m", "drgn.internal.crashcli"]
    argv += [*map(str, found.symbols), str(found.path)]
    home = tmp_path_factory.mktemp("home")
    with Terminal(argv, settings(home), "%crash> ") as terminal:
        # Nor a pager of its own.
        terminal.ask("set scroll off")
        yield terminal


@pytest.fixture(params=["drgn", "crash"])
def prompt(request: pytest.FixtureRequest) -> tuple[Terminal, str]:
    """A session, and what commands begin with."""
    if request.param == "drgn":
        return request.getfixturevalue("in_drgn"), "%"
    return request.getfixturevalue("in_crash"), ""


def test_names(in_drgn: Terminal, opened: drgn.Program) -> None:
    assert in_drgn.ask("pstore_zones()") == text(pstore_zones, opened)
    assert in_drgn.ask("zram_devices()") == text(zram_devices, opened)
    # By the time drgn has completed it, too, with the bracket.
    assert in_drgn.ask("pstore_z\t)") == text(pstore_zones, opened)
    shown = in_drgn.ask("next(for_each_pstore_zone()).kind")
    assert shown == "'dmesg'\n"


def test_help(in_drgn: Terminal) -> None:
    shown = pydoc.plain(in_drgn.ask("help(pstore_ftrace)"))
    assert "pstore_ftrace(prog: 'Program', *, boot: 'Boot' = 'newest', cpu: " in shown
    assert ":param last: Only so many records" in shown


def test_commands(
    prompt: tuple[Terminal, str], opened: drgn.Program, tmp_path: Path
) -> None:
    terminal, sign = prompt
    zones = text(pstore_zones, opened)
    assert terminal.ask(f"{sign}pstore_zones") == zones
    first = "".join(zones.splitlines(keepends=True)[:2])
    assert terminal.ask(f"{sign}pstore_zones | head -2") == first
    file = tmp_path / "zones"
    assert terminal.ask(f"{sign}pstore_zones > {file}") == ""
    assert file.read_text() == zones
    last = text(pstore_ftrace, opened, boot=-1, last=3)
    assert terminal.ask(f"{sign}pstore_ftrace {LAST}") == last


def test_completion(prompt: tuple[Terminal, str], opened: drgn.Program) -> None:
    terminal, sign = prompt
    last = text(pstore_ftrace, opened, boot=-1, last=3)
    keys = f"{sign}pstore_f\t --b\t -1 --la\t 3"
    assert terminal.ask(keys) == last
    assert terminal.hints(f"{sign}zram_b") == ["zram_bd_stat", "zram_block_state"]
    # The dashes stand already.
    offered = terminal.hints(f"{sign}pstore_ftrace --")
    assert offered == ["boot", "cpu", "drgn", "help", "last"]
    # Other people's commands.
    assert "sh" in terminal.hints("%s") if sign else "swap" in terminal.hints("swap")


def test_help_of_commands(prompt: tuple[Terminal, str]) -> None:
    terminal, sign = prompt
    listed = terminal.ask(f"{sign}help").split()
    # drgn-crash has less room between them.
    assert all(name in " ".join(listed) for name in _plugin._COMMANDS.split())
    for line in ("help pstore_pmsg", "pstore_pmsg --help"):
        shown = terminal.ask(f"{sign}{line}")
        assert "[--logcat | --no-logcat]" in shown and "--drgn" in shown
        assert "Print what user space wrote to /dev/pmsg0." in shown
        assert "error" not in shown


def test_code_of_commands(prompt: tuple[Terminal, str], opened: drgn.Program) -> None:
    terminal, sign = prompt
    code = terminal.ask(f"{sign}pstore_ftrace {LAST} --drgn")
    assert code.startswith("from drgn_tools.pstore import for_each_pstore_ftrace")
    assert executed(opened, code)[0] == text(pstore_ftrace, opened, boot=-1, last=3)


def test_errors_are_a_line(prompt: tuple[Terminal, str]) -> None:
    """And the session goes on."""
    terminal, sign = prompt
    no_task = "swap: there is no task 4000000\n"
    assert terminal.ask(f"{sign}swap_where 4000000") == no_task
    assert terminal.ask(f"{sign}zram_mm_stat zram7").startswith("zram: ")
    assert terminal.ask(f"{sign}ftrace_export /none/a.dat").startswith(
        "ftrace: cannot "
    )
    shown = terminal.ask(f"{sign}swap_where")
    assert shown.splitlines()[-1].endswith("required: pid")
    assert "Traceback" not in shown
    if sign:
        assert terminal.ask("swap_where(4000000)") == no_task
    assert terminal.ask(f"{sign}swap_where 1").startswith("task 1 (init)\n")


def test_crash_keeps_its_commands(in_crash: Terminal) -> None:
    assert in_crash.ask("swap").startswith("SWAP_INFO_STRUCT ")
    assert in_crash.ask("sys").lstrip().startswith("KERNEL: ")


def test_drgn_inside_crash(in_crash: Terminal, opened: drgn.Program) -> None:
    try:
        in_crash.to_prompt(">>> ", "drgn\n")
        zones = text(pstore_zones, opened)
        assert in_crash.ask("pstore_z\t)") == zones
        assert in_crash.ask("%pstore_zo\t") == zones
        assert in_crash.ask("swap_where(4000000)") == "swap: there is no task 4000000\n"
    finally:
        in_crash.to_prompt("%crash> ", "\x04")
    assert in_crash.ask("pstore_zones") == text(pstore_zones, opened)


def test_in_one_line(tmp_path: Path) -> None:
    """A command that fails in drgn -e ends it, as the helper does."""
    found = pstore()
    argv = [sys.executable, "-m", "drgn", "-q", "-c", str(found.path)]
    for code in (
        "swap_where(4000000)",
        "import drgn.commands; drgn.commands.run_command(prog, 'swap_where 4000000')",
    ):
        done = subprocess.run(
            [*argv, "-s", str(found.symbols[0]), "-e", f"{code}; print('goes on')"],
            capture_output=True,
            text=True,
            env=settings(tmp_path),
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "swap: there is no task 4000000\n"


# --- other versions of drgn

PRINTED = """
import sys
for helper in (pstore_zones, pstore_dmesg, pstore_console, zram_devices, pages_summary):
    helper()
pstore_ftrace(boot=-1, last=3)
swap_where(1)
help(pstore_pmsg)
try:
    from drgn.commands import run_command
except ImportError:
    print("no commands")
    sys.exit()
for line in (
    "pstore_zones | head -2",
    "pstore_ftrace --boot -1 --last 3",
    "pstore_ftrace --boot -1 --last 3 --drgn",
    "swap_where --help",
    "swap_where 1 > file",
    "help pstore_pmsg",
):
    print("==", line, flush=True)
    run_command(prog, line)
print(open("file").read())
try:
    run_command(prog, "swap_where 4000000")
except SystemExit as error:
    print(error)
"""


def printed(path: Path | None, folder: Path) -> str:
    """Return what a version of drgn prints, by default the one that is installed."""
    found = pstore()
    env = settings(folder)
    if path is not None:
        env["PYTHONPATH"] = f"{path}:{env['PYTHONPATH']}"
    argv = [sys.executable, "-m", "drgn", "-q", "-c", found.path]
    argv += ["-s", found.symbols[0], "-e", PRINTED]
    done = subprocess.run(
        list(map(str, argv)), capture_output=True, text=True, env=env, cwd=folder
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture(scope="module")
def newest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return printed(None, tmp_path_factory.mktemp("newest"))


@pytest.mark.parametrize("version", old_drgn.VERSIONS)
def test_other_versions_print_the_same(
    version: str, newest: str, tmp_path: Path
) -> None:
    shown = printed(old_drgn.get(version), tmp_path)
    if version in ("0.0.31", "0.0.32"):
        names, commands, _ = newest.partition("== pstore_zones | head")
        assert commands and shown == f"{names}no commands\n"
    else:
        assert shown == newest


@pytest.mark.parametrize("version", old_drgn.VERSIONS)
def test_other_versions_complete(version: str, tmp_path: Path) -> None:
    found = pstore()
    env = settings(tmp_path)
    env["PYTHONPATH"] = f"{old_drgn.get(version)}:{env['PYTHONPATH']}"
    argv = [sys.executable, "-m", "drgn", "-q", "-c", str(found.path)]
    zones = text(pstore_zones, program(pstore))
    with Terminal([*argv, "-s", str(found.symbols[0])], env, ">>> ") as terminal:
        assert terminal.ask("pstore_z\t)") == zones
        assert terminal.ask("swap_where(4000000)") == "swap: there is no task 4000000\n"
        if version not in ("0.0.31", "0.0.32"):
            assert terminal.ask("%pstore_z\t") == zones
            shown = terminal.ask("%pstore_ftrace --he\t")
            assert "print how to do the equivalent operation" in shown
            no_task = "swap: there is no task 4000000\n"
            assert terminal.ask("%swap_where 4000000") == no_task
