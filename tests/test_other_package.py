# SPDX-License-Identifier: LGPL-2.1-or-later
"""Beside Oracle's package, which is called drgn_tools as well."""

from __future__ import annotations

import re
import shutil
import subprocess
import venv
from collections.abc import Callable
from pathlib import Path

import drgn
import pytest

import drgn_tools

from .command import ROOT, environment

MODULES = ("block", "corelens", "logging", "mm", "module", "table", "util", "workqueue")
HOOK = "import sys\n\ndef drgn_prog_set(prog):\n    print('theirs', file=sys.stderr)\n"
CODE = "import sys; p = drgn.Program(); p.set_core_dump(sys.argv[1])"
CODE += "; print('pstore_zones' in globals())"


def metadata(site: Path, name: str, version: str, entry_points: str) -> None:
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (folder / "METADATA").write_text(text)
    (folder / "entry_points.txt").write_text(entry_points)


def ours(site: Path) -> None:
    """Install this one, as pip does."""
    ignored = shutil.ignore_patterns("__pycache__")
    package = site / "drgn_tools"
    shutil.copytree(ROOT / "drgn_tools", package, dirs_exist_ok=True, ignore=ignored)
    text = (ROOT / "pyproject.toml").read_text()
    (modules,) = re.findall(r'^py-modules = \["(\w+)"\]$', text, re.MULTILINE)
    shutil.copy(ROOT / f"{modules}.py", site)
    (hook,) = re.findall(r'^drgn_tools = "(\w+)"$', text, re.MULTILINE)
    metadata(site, "drgn-tools", "0.1.0", f"[drgn.plugins]\ndrgn_tools = {hook}\n")


def theirs(site: Path, distribution: str = "drgn-tools") -> None:
    """Install files with the names of Oracle's."""
    package = site / "drgn_tools"
    package.mkdir(exist_ok=True)
    (package / "__init__.py").write_text("")
    for name in MODULES:
        (package / f"{name}.py").write_text("")
    (package / "debuginfo.py").write_text(HOOK)
    metadata(
        site, distribution, "2.2.1", "[drgn.plugins]\noracle = drgn_tools.debuginfo\n"
    )


def repacked(site: Path) -> None:
    """The same from elsewhere; pip would replace what is called the same."""
    theirs(site, "oracle-drgn-tools")


def without_metadata(site: Path) -> None:
    """The same as a checkout, whose plugin drgn does not know."""
    theirs(site)
    shutil.rmtree(site / "drgn_tools-2.2.1.dist-info")


class Place:
    """An environment of its own, and a folder that comes first."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder / "venv")
        (self.site,) = (folder / "venv").glob("lib/python*/site-packages")
        self.first = folder / "first"
        self.first.mkdir()
        # drgn and what we need is where it is for the tests.
        found = Path(drgn.__file__).parent.parent
        (self.site / "others.pth").write_text(f"{found}\n")
        self._python = folder / "venv/bin/python"

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self._python), *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=self.first.parent,
            env=environment(PYTHONPATH=str(self.first)),
        )


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


Install = Callable[[Path], None]
CASES: dict[str, tuple[list[Install], list[Install], str, str]] = {
    # What is installed; what is in the folder that comes first; what drgn says of
    # Oracle's; and the command.
    "alone": ([ours], [], "", ""),
    "before": ([repacked, ours], [], "damages", "damages"),
    "after": ([ours, repacked], [], "damages", "damages"),
    "hidden": ([theirs], [ours], "hidden by this one", "hidden by this one"),
    "checkout": ([ours], [without_metadata], "hides this one", "hides this one"),
    # Python knows one distribution of a name, and drgn its plugin.
    "hides": ([ours], [theirs], "", "hides this one"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_tells_of_it(case: str, place: Place, core: Path) -> None:
    installed, first, in_drgn, in_command = CASES[case]
    for install in installed:
        install(place.site)
    for install in first:
        install(place.first)
    works = "hides" not in (in_drgn.split() + in_command.split())

    options = ("--no-default-symbols", "-c", core, "-e", CODE, core)
    done = place.run("-m", "drgn", *options)
    assert done.returncode == 0
    assert done.stdout == f"{works}\n"
    said = [line for line in done.stderr.splitlines() if "Oracle" in line]
    # Once, though there are two programs.
    assert len(said) == bool(in_drgn) and in_drgn in "".join(said)
    assert all(line.startswith("warning: ") for line in said)
    assert "Traceback" not in done.stderr
    if case in ("before", "after", "hides"):
        assert done.stderr.count("theirs\n") == 2
    # drgn's -q is about warnings, too.
    assert "Oracle" not in place.run("-m", "drgn", "-q", *options).stderr

    none = core.parent / "none"
    for program, arguments in (
        ("drgn_tools", ["verify", none]),
        ("drgn_makedumpfile", [none, core.parent / "out"]),
    ):
        script = f"import _drgn_tools; _drgn_tools.{program}()"
        done = place.run("-c", script, *arguments)
        assert done.returncode == 1
        lines = done.stderr.splitlines()
        if works:
            assert lines.pop().startswith(program.replace("_", "-") + ": ")
        assert len(lines) == bool(in_command) and in_command in "".join(lines)
        assert all(line.startswith("drgn-tools: warning: ") for line in lines)


def test_processes_have_nothing_to_do_with_it(place: Place) -> None:
    """Whoever looks at a process is not told of a kernel's helpers."""
    for install in (repacked, ours):
        install(place.site)
    # Of itself: that needs no permission.
    done = place.run("-m", "drgn", "--no-default-symbols", "-p", "0", "-e", "pass")
    assert done.returncode == 0 and "Oracle" not in done.stderr


def test_the_import_name_is_all_they_share() -> None:
    """So that the heart of theirs tells which it is."""
    names = {path.stem for path in (ROOT / "drgn_tools").iterdir()}
    assert not names & set(MODULES) and "_plugin" in names
    assert [*drgn_tools.__path__] == [str(ROOT / "drgn_tools")]
