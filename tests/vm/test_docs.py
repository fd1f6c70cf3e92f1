# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every example in README.md and docs runs, and prints what is shown."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Callable, NamedTuple

import pytest

from tests import command, documents
from tests.documents import Block, Example

from . import dumps, ftrace_guests, oprofile_guests, peers, pstore_guests, zram_guests
from .kernels import Kernel


class Machine(NamedTuple):
    """What an example finds in its folder, by the names that the pages use."""

    kernel: Kernel
    files: dict[str, Path]
    words: dict[str, str]
    """What is another number wherever the guest runs, by name."""


def _dump(name: str, kind: str) -> Machine:
    spec = next(spec for spec in dumps.MATRIX if spec.name == name)
    dump = next(dump for dump in dumps.both(spec) if dump.kind == kind)
    return Machine(dump.kernel, {"vmcore": dump.path}, {})


def _pstore(name: str, kind: str) -> Machine:
    spec = next(spec for spec in pstore_guests.MATRIX if spec.name == name)
    guest = pstore_guests.get(spec)
    path = guest.dump if kind == "qemu" else guest.vmcore
    files = {"vmcore": path, "region": guest.folder / "region-2"}
    return Machine(guest.kernel, files, {})


def _zram(name: str, kind: str) -> Machine:
    spec = next(spec for spec in zram_guests.MATRIX if spec.name == name)
    guest = zram_guests.get(spec)
    words = {}
    for process in guest.processes():
        words[f"{process.name}.pid"] = str(process.pid)
        words[f"{process.name}.start"] = f"{process.start:x}"
    return Machine(guest.kernel, {"vmcore": guest.dump(kind)}, words)


def _ftrace(name: str, kind: str) -> Machine:
    guest = ftrace_guests.get(name)
    return Machine(guest.kernel, {"vmcore": guest.dump(kind)}, {})


def _oprofile(name: str, kind: str) -> Machine:
    spec = next(spec for spec in oprofile_guests.MATRIX if spec.name == name)
    guest = oprofile_guests.get(spec)
    path = guest.dump if kind == "qemu" else guest.vmcore
    return Machine(guest.kernel, {"vmcore": path, "program": guest.program}, {})


GUESTS: dict[str, Callable[[str, str], Machine]] = {
    "dump": _dump,
    "pstore": _pstore,
    "zram": _zram,
    "ftrace": _ftrace,
    "oprofile": _oprofile,
}
"""What a page's `dump:` may name: a family of the bench, then a guest and its dump."""


class Place(NamedTuple):
    """Where examples run."""

    folder: Path
    symbols: list[str]
    words: dict[str, str]
    """What is to be put in place of words that are shown."""


def place(said: str, folder: Path) -> Place:
    """Make a folder with the files that examples name.

    :param said: what a `dump:` says, or nothing for no dump.
    """
    folder.mkdir()
    if not said:
        return Place(folder, [], {})
    where, *renamed = said.split(", ")
    family, name, kind = where.split(" ")
    machine = GUESTS[family](name, kind)
    symbols = machine.kernel.debug_files()
    for name, path in (*machine.files.items(), *((p.name, p) for p in symbols)):
        (folder / name).symlink_to(path)
    # A tool of the bench is found with PATH as if it were installed.
    (folder / "bin").mkdir()
    for name in ("trace-cmd", "pprof"):
        tool = folder / "bin" / name
        tool.write_text(f'#!/bin/sh\nexec {shlex.join(peers.argv(name))} "$@"\n')
        tool.chmod(0o755)
    words = {}
    for word in renamed:
        shown, _, name = word.partition(" = ")
        words[shown] = machine.words[name]
    return Place(folder, [path.name for path in symbols], words)


def environment(folder: Path) -> dict[str, str]:
    places = (folder / "bin", Path(sys.executable).parent, os.environ["PATH"])
    return command.environment(
        PATH=os.pathsep.join(map(str, places)),
        COLUMNS="80",
        LC_ALL="C.UTF-8",
        TERM="dumb",
        # Only what an example names.
        DEBUGINFOD_URLS="",
    )


def run(argv: list[str], folder: Path) -> tuple[int, str]:
    """Return the exit status, and all that was printed."""
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env=environment(folder),
    )
    return done.returncode, done.stdout.decode(errors="replace")


# What drgn's prompt does with each, without a terminal.
_SESSION = """
import drgn.cli, json, sys, traceback
from drgn.commands import run_command
sys.displayhook = drgn.cli._displayhook
for example in json.loads({examples!r}):
    try:
        if example.startswith("%"):
            run_command(prog, example[1:])
        else:
            exec(compile(example + "\\n", "<stdin>", "single"), globals())
    except Exception as e:
        print(*traceback.format_exception_only(type(e), e), end="")
    print({end!r}, flush=True)
"""
_END = "-- the end of an example --"


def results(block: Block, found: list[Example], where: Place) -> list[tuple[int, str]]:
    """Run the commands of a block; return what each has printed."""

    def here(text: str) -> str:
        for shown, real in where.words.items():
            # A formatter may have made its letters capitals.
            text = re.sub(rf"(?i)(?<![1-9a-f]){shown}\b", real, text)
        return text

    commands = [here(example.command) for example in found]
    if block.kind != "pycon":
        return [run(["sh", "-c", command], where.folder) for command in commands]
    code = _SESSION.format(examples=json.dumps(commands), end=_END)
    symbols = [word for name in where.symbols for word in ("-s", name)]
    drgn = [sys.executable, "-m", "drgn", "-q", "-c", "vmcore", *symbols]
    status, printed = run([*drgn, "-e", code], where.folder)
    parts = printed.split(f"{_END}\n")
    assert len(parts) == len(commands) + 1, printed
    return [(status, part) for part in parts[:-1]]


def failures(block: Block, where: Place) -> list[str]:
    """Return what an example does otherwise than it is shown."""
    if block.kind == "python":
        status, printed = run([sys.executable, "-c", "\n".join(block.lines)], where[0])
        return [f"{block}: {printed}"] if status else []
    found = documents.examples(block)
    said = []
    for example, (status, printed) in zip(found, results(block, found, where)):
        expected = block.status if example is found[-1] else 0
        missing = None
        if block.kind != "sh":
            missing = documents.difference(example.output, printed.splitlines())
        if status != expected:
            missing = f"exit status {expected}, and not {status}"
        if missing is not None:
            said.append(f"{block}: {example.command}\n! {missing}\n{printed}")
    return said


@pytest.mark.parametrize("page", documents.PAGES, ids=lambda page: page.name)
def test_examples_print_what_is_shown(page: Path, tmp_path: Path) -> None:
    places: dict[str, Place] = {}
    said = []
    for block in documents.blocks(page):
        if block.kind not in documents.RUN or block.not_run:
            continue
        if block.dump not in places:
            places[block.dump] = place(block.dump, tmp_path / str(len(places)))
        said += failures(block, places[block.dump])
    assert not said, "\n".join(said)
