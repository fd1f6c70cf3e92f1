# SPDX-License-Identifier: LGPL-2.1-or-later
"""What bash, zsh and fish complete, asked of the shells themselves."""

from __future__ import annotations

import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from drgn_tools.__main__ import commands
from tests.command import ROOT
from tests.terminal import rest
from tests.test_command_line import CONTEXT, NAMES, assert_imports_little

FILES = ROOT / "contrib/completion"
# Prints the words of the line that is there, and what became of them.
_SHOW = "printf '<%s>\\n'"
_END = "that is all"

# Each makes its own settings and reads no user's.
SHELLS = {
    "bash": (
        ["bash", "--norc", "--noprofile", "-i"],
        f"PS1=; bind 'set enable-bracketed-paste off'; . {FILES}/drgn-tools.bash; "
        f". {FILES}/drgn-makedumpfile.bash",
    ),
    "zsh": (
        ["zsh", "-f", "-i"],
        f"PS1=; unset zle_bracketed_paste; fpath=({FILES} $fpath); "
        "autoload -U compinit; compinit -D -u; bindkey -e",
    ),
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with the program, on the PATH, and some dumps."""
    program = tmp_path / "bin/drgn-tools"
    program.parent.mkdir()
    program.write_text(
        f"#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} "
        f'exec {shlex.quote(sys.executable)} -m drgn_tools "$@"\n'
    )
    program.chmod(0o755)
    (tmp_path / "vmcore.kdump").write_text("")
    (tmp_path / "vm dump").write_text("")
    (tmp_path / "symbols").mkdir()
    return tmp_path


def environment(home: Path) -> dict[str, str]:
    path = f"{home}/bin:{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(home), "TERM": "xterm", "LC_ALL": "C.UTF-8"}


def typed(shell: str, home: Path, line: str) -> list[str]:
    """The words that are in a terminal's line when TAB was pressed behind *line*."""
    argv, settings = SHELLS[shell]
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(home)
        os.execvpe(argv[0], argv, environment(home))
    # ^A goes to the line's start: what was completed becomes something to print.
    keys = f"{settings}\n{line}\t\x01{_SHOW} \n echo {_END[:4]}''{_END[4:]}; exit\n"
    os.write(terminal, keys.encode())
    said = rest(pid, terminal)
    assert _END.encode() in said, said
    lines = said.decode().splitlines()
    return [one[1:-1] for one in lines if one[:1] == "<" and one[-1:] == ">"]


def fish(home: Path, line: str) -> list[str]:
    """What fish offers."""
    script = f"source {FILES}/drgn-tools.fish; complete -C {shlex.quote(line)}"
    done = subprocess.run(
        ["fish", "--no-config", "-c", script],
        capture_output=True,
        text=True,
        cwd=home,
        env=environment(home),
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [offer.partition("\t")[0] for offer in done.stdout.splitlines()]


# What is typed, and the last word when TAB was pressed.
CASES = {
    "drgn-tools zra": "zram",
    "drgn-tools extract --exc": "--exclude",
    "drgn-tools extract --exclude unac": "unaccepted",
    "drgn-tools extract --exclude free,unac": "free,unaccepted",
    "drgn-tools extract --keep=hug": "--keep=hugetlb",
    "drgn-tools extract --compress zs": "zstd",
    "drgn-tools zram --stat mm": "mm-stat",
    "drgn-tools oprofile --by image,sy": "image,symbol",
    "drgn-tools info vmc": "vmcore.kdump",
    "drgn-tools zram --symbols sym": "symbols/",
    "drgn-tools zram -s sym": "symbols/",
    "drgn-tools zram -o vmc": "vmcore.kdump",
    "drgn-tools pstore --raw vmc": "vmcore.kdump",
}


@pytest.mark.parametrize("line", CASES)
@pytest.mark.parametrize("shell", SHELLS)
def test_unique(shell: str, line: str, home: Path) -> None:
    *before, last = typed(shell, home, line)
    assert before == line.split()[:-1]
    # zsh takes the slash back when something follows.
    assert last.rstrip("/") == CASES[line].rstrip("/")


@pytest.mark.parametrize("shell", SHELLS)
def test_space_in_a_name(shell: str, home: Path) -> None:
    assert typed(shell, home, "drgn-tools info vm\\ ")[-1] == "vm dump"


@pytest.mark.parametrize("line", CASES)
def test_fish(line: str, home: Path) -> None:
    assert fish(home, line) == [CASES[line]]


def test_fish_offers_all_commands(home: Path) -> None:
    assert sorted(fish(home, "drgn-tools ")) == sorted(NAMES)
    assert commands.list_commands(CONTEXT) == NAMES


@pytest.mark.parametrize("shell", ["bash"])
def test_makedumpfile(shell: str, home: Path) -> None:
    for line, last in (
        ("drgn-makedumpfile --dump", "--dump-dmesg"),
        ("drgn-makedumpfile -d 31 vmc", "vmcore.kdump"),
    ):
        assert typed(shell, home, line)[-1] == last


@pytest.mark.parametrize(
    "words",
    ["drgn-tools z", "drgn-tools extract --exclude f", "drgn-tools oprofile --by c"],
)
def test_costs_little(words: str) -> None:
    assert_imports_little(
        [],
        _DRGN_TOOLS_COMPLETE="bash_complete",
        COMP_WORDS=words.replace(" ", "\n"),
        COMP_CWORD=str(words.count(" ")),
    )
