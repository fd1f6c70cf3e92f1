# SPDX-License-Identifier: LGPL-2.1-or-later
"""What SECURITY.md promises: of files, of terminals, and of the code itself."""

from __future__ import annotations

import ast
import os
import re
import stat
from pathlib import Path

import pytest

from tests.command import ROOT, Outcome, drgn_tools_forked, makedumpfile_forked
from tests.synthetic import MIB, Machine, write_elf

SOURCES = sorted([*ROOT.glob("drgn_tools/**/*.py"), ROOT / "_drgn_tools.py"])
# What makes code, commands or objects of data.
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "system", "popen"}
FORBIDDEN_MODULES = {
    *("pickle", "marshal", "shelve", "dill", "yaml", "subprocess", "pty", "ctypes"),
    *("socket", "http", "urllib", "ftplib", "smtplib", "ssl", "asyncio", "code"),
}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_code_from_data(path: Path) -> None:
    """No shell, no pickle, no eval; no network."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            function = node.func
            # re.compile() is no other.
            module = ast.unparse(function.value) if hasattr(function, "value") else ""
            name = getattr(function, "attr", getattr(function, "id", ""))
            if module != "re":
                assert name not in FORBIDDEN_CALLS, f"{name}, line {node.lineno}"
            # numpy.load() may unpickle.
            assert (module, name) != ("np", "load")
            for keyword in node.keywords:
                assert keyword.arg not in ("shell", "allow_pickle")
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            assert name.partition(".")[0] not in FORBIDDEN_MODULES, name


def test_names_of_temporary_files() -> None:
    """Files are made in one place, with a name that nobody can guess."""
    for path in SOURCES:
        text = path.read_text()
        if "O_CREAT |" in text or "O_CREAT\n" in text:
            assert path.name == "output.py"
            assert "os.O_EXCL | os.O_NOFOLLOW" in text and "os.urandom(8)" in text
        for line in text.splitlines():
            if re.search(r"\bopen\(.*, \"[wax]", line):
                assert "os.devnull" in line or "/proc/self/" in line, line
        assert "mktemp" not in text and ".write_bytes(" not in text


@pytest.fixture(scope="module")
def machine() -> Machine:
    machine = Machine(ram=((0, 8 * MIB),))
    machine.loads()
    return machine


@pytest.fixture(scope="module")
def dump(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "vmcore"
    write_elf(path, machine.loads()[1:], machine.notes())
    return path


def write(command: str, dump: Path, out: Path, *force: str) -> Outcome:
    """Have a command write a file."""
    if command == "makedumpfile":
        return makedumpfile_forked("-d1", *force, dump, out)
    arguments = {
        "extract": ("extract", "-d1", dump, out),
        "elf": ("extract", "-d1", "-E", dump, out),
        "split": ("extract", "-d1", "--split", dump, out, f"{out}2"),
        "image": ("pages", "--image", out, dump),
    }[command]
    return drgn_tools_forked(*arguments, *force)


WRITERS = ["extract", "elf", "split", "image", "makedumpfile"]


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.parametrize("there", ["nothing", "link", "dangling", "hard link"])
def test_target(command: str, there: str, dump: Path, tmp_path: Path) -> None:
    """Links are replaced, with -f, and never followed; the file is its owner's."""
    other, out = tmp_path / "other", tmp_path / "out.png"
    if there != "dangling":
        other.write_bytes(b"precious")
    if there in ("link", "dangling"):
        out.symlink_to(other)
    elif there == "hard link":
        out.hardlink_to(other)
    old = os.umask(0)
    try:
        if there != "nothing":
            before = out.lstat()
            content = other.exists() and other.read_bytes()
            outcome = write(command, dump, out)
            assert outcome.status == 1
            assert outcome.stderr.count("\n") == 1, outcome
            after = out.lstat()
            assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
            assert (other.exists() and other.read_bytes()) == content
        outcome = write(command, dump, out, "-f")
    finally:
        os.umask(old)
    if there == "dangling":
        # What is no regular file stays.
        assert outcome.status == 1
        assert out.is_symlink() and not other.exists()
        return
    assert outcome.status == 0, outcome
    status = out.lstat()
    assert stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o600
    assert other.read_bytes() == b"precious"
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize(
    ("command", "there"),
    [
        *((command, there) for command in WRITERS for there in ("directory", "fifo")),
        # Pictures need a name that says what they are.
        *((command, "device") for command in WRITERS if command != "image"),
    ],
)
def test_target_that_is_no_file(
    command: str, there: str, dump: Path, tmp_path: Path
) -> None:
    """Not even with -f."""
    out = tmp_path / "out.png"
    if there == "directory":
        out.mkdir()
    elif there == "fifo":
        os.mkfifo(out)
    else:
        out = Path("/dev/null")
    outcome = write(command, dump, out, "-f")
    assert outcome.status == 1
    assert "exists and is no regular file" in outcome.stderr
    assert outcome.stderr.count("\n") == 1
    assert not out.is_file()
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_dependencies_are_bounded() -> None:
    """Each has a lowest version that is known to do, and SECURITY.md tells of it."""
    text = (ROOT / "pyproject.toml").read_text()
    block = text[text.index("\ndependencies = [") : text.index("[project.optional")]
    found = re.findall(r'^ {4}"([\w-]+)(.*?)"', block, re.M)
    assert len(found) == 9
    told = (ROOT / "SECURITY.md").read_text()
    for name, bounds in found:
        assert re.fullmatch(r">=[\d.]+,<[\d.]+", bounds), name
        assert f"| {name} |" in told
