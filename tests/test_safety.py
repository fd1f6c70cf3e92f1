# SPDX-License-Identifier: LGPL-2.1-or-later
"""What SECURITY.md promises: of files, of terminals, and of the code itself."""

from __future__ import annotations

import ast
import os
import re
import stat
from pathlib import Path

import click
import pytest
from drgn import Program

from drgn_tools import ftrace, output, program
from drgn_tools.__main__ import commands
from tests.command import ROOT, Outcome, drgn_tools_forked, makedumpfile_forked
from tests.oprofile_kernel import OprofileKernel, words
from tests.pstore_kernel import FakeKernel
from tests.swap_kernel import START, SwapKernel
from tests.synthetic import MIB, Machine, write_elf
from tests.test_oprofile import KERNEL_PC, busy, context, put
from tests.test_pstore_raw import write_region
from tests.test_zram import filled
from tests.zram_kernel import ZramKernel

SOURCES = sorted([*ROOT.glob("drgn_tools/**/*.py"), ROOT / "_drgn_tools.py"])
# What makes code, commands, objects or files of data, called or not.
FORBIDDEN_NAMES = {
    *("eval", "exec", "compile", "__import__", "breakpoint", "input"),
    *("popen", "startfile", "posix_spawn", "posix_spawnp"),
    *(f"exec{how}" for how in ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")),
    *(f"spawn{how}" for how in ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")),
    *("mktemp", "mkstemp", "extractall", "unpack_archive", "exec_module"),
    *("find_spec", "spec_from_file_location", "ctypeslib"),
}
FORBIDDEN_MODULES = {
    *("pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "dbm"),
    *("subprocess", "pty", "ctypes", "cffi", "runpy", "imp", "code", "codeop"),
    # These pickle, or take apart what they are given.
    *("multiprocessing", "concurrent", "xml", "tarfile", "zipfile", "shutil"),
    *("socket", "http", "urllib", "ftplib", "smtplib", "ssl", "asyncio", "webbrowser"),
}
# Modules that are imported, formats and expressions that are used, by names: each is
# of a table of ours.
BY_NAME = {
    "import_module(f'drgn_tools.{module}')",
    "import_module(f'drgn_tools.{_MODULES[name]}')",
    "import_module(where)",
    "import_module(module)",
    "form.format(name, 'enabled')",
    "form.format(name, 'disabled')",
    "text.format(value)",
    "_RECORDS[name].format",
    "re.fullmatch(named.release, release)",
    "re.search(named.version, version)",
    "re.match(pattern, last)",
    "re.search(pattern, inspect.getdoc(other) or '', flags=re.MULTILINE)",
    "re.compile(pattern)",
}


def is_ours(node: ast.expr | None) -> bool:
    """A text that is in the source, the only ones that tell what is to be done."""
    if isinstance(node, ast.BinOp):
        return is_ours(node.left) and is_ours(node.right)
    return isinstance(node, ast.Constant)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_code_from_data(path: Path) -> None:
    """No shell, no pickle, no eval; no network; no formats, expressions or modules."""
    for node in ast.walk(ast.parse(path.read_text())):
        where = f"line {getattr(node, 'lineno', 0)}"
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            forbidden = {*FORBIDDEN_NAMES, "system"}
            assert not forbidden & {alias.name for alias in node.names}, where
        for name in names:
            assert name.partition(".")[0] not in FORBIDDEN_MODULES, where
        if isinstance(node, ast.Name):
            assert node.id not in FORBIDDEN_NAMES, where
        elif isinstance(node, ast.Attribute):
            # re.compile() is no other.
            told = ast.unparse(node)
            assert node.attr not in FORBIDDEN_NAMES or told == "re.compile", where
            # They may unpickle.
            assert told not in ("os.system", "np.load", "np.memmap", "np.fromregex"), (
                where
            )
        elif isinstance(node, ast.Call):
            keywords = {keyword.arg for keyword in node.keywords}
            assert not keywords & {"shell", "allow_pickle", "preexec_fn"}, where
            told = ast.unparse(node)
            function = ast.unparse(node.func)
            text: ast.expr | None = node.args[0] if node.args else None
            if isinstance(node.func, ast.Attribute) and node.func.attr == "format":
                text = node.func.value
            elif not re.fullmatch(r"re\.[a-z]+|(.*\.)?import_module", function):
                continue
            if function != "re.escape" and not is_ours(text):
                assert any(one in told for one in BY_NAME), f"{told}, {where}"


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


# --- files that are written


# Parameters of commands that are names of files.
READ = {"dump", "vmcore", "symbols", "raw", "vmcoreinfo", "sysroot"}
WRITTEN = {"outputs", "output", "image"}
# Command lines that write, as often as there are ways to; {in} is a dump's folder.
WRITERS = {
    ("extract", "outputs"): [
        "extract -d1 {in}/vmcore {out}",
        "extract -d1 -E {in}/vmcore {out}",
        "extract -d1 --split {in}/vmcore {out} {out}2",
    ],
    ("extract", "output"): ["extract -d1 {in}/vmcore -o {out}"],
    ("dmesg", "output"): ["dmesg {in}/vmcore -o {out}"],
    ("pages", "image"): ["pages {in}/vmcore --image {out}.png"],
    ("report", "output"): ["report {in}/vmcore -o {out}.html"],
    ("pstore", "output"): [
        "pstore --raw {in}/region -o {out}.pftrace",
        "pstore --raw {in}/region -o {out}.dat",
    ],
    ("ftrace", "output"): ["ftrace {in}/ring -o {out}.pftrace"],
    ("oprofile", "output"): ["oprofile {in}/oprofile -o {out}.folded"],
    ("zram", "output"): [
        "zram {in}/zram -o {out}.img",
        "zram {in}/zram -o {out}.csv",
        "zram {in}/zram -o {out}.pages.csv",
    ],
    ("swap", "output"): [
        f"swap {{in}}/swap --pid 7 --address {START:x} --size 8k -o {{out}}"
    ],
    ("makedumpfile", ""): [
        "makedumpfile -d1 {in}/vmcore {out}",
        "makedumpfile -d1 --split {in}/vmcore {out} {out}2",
        "makedumpfile --dump-dmesg {in}/vmcore {out}",
        "makedumpfile --reassemble {in}/part1 {in}/part2 {out}",
    ],
}
LINES = [line for lines in WRITERS.values() for line in lines]


def test_all_writers_are_here() -> None:
    context = click.Context(commands, info_name="drgn-tools")
    found = set()
    for name in commands.list_commands(context):
        command = commands.get_command(context, name)
        assert command is not None
        for param in command.params:
            if isinstance(param.type, click.Path):
                assert param.name in READ | WRITTEN
                if param.name in WRITTEN:
                    found.add((name, param.name))
    assert found == WRITERS.keys() - {("makedumpfile", "")}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with dumps; those of kernels made of bytes are empty."""
    folder = tmp_path_factory.mktemp("source")
    machine = Machine(ram=((0, 8 * MIB),), log=[(1, "text")])
    machine.loads()
    write_elf(folder / "vmcore", machine.loads()[1:], machine.notes())
    parts = folder / "part1", folder / "part2"
    drgn_tools_forked("extract", "--split", folder / "vmcore", *parts)
    write_region(folder / "region")
    for name in ("ring", "oprofile", "zram", "swap"):
        (folder / name).touch()
    return folder


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these are as programs of drgn."""
    oprofile, zram, swap = OprofileKernel(), ZramKernel("6.12"), SwapKernel("6.12")
    put(oprofile, [*context(oprofile, 1, busy(oprofile)), words(KERNEL_PC, 0)])
    filled(zram, "lz4")
    opened = {
        "oprofile": oprofile.prog,
        "zram": zram.prog,
        "swap": swap.prog,
        "ring": FakeKernel("6.12").prog,
    }

    def open_dump(dump: str, symbols: object = ()) -> Program:
        found = opened.get(os.path.basename(dump))
        return really(dump, ()) if found is None else found

    really = program.open_dump
    monkeypatch.setattr(program, "open_dump", open_dump)
    monkeypatch.setattr(program, "require_symbols", lambda *args: None)
    monkeypatch.setattr("drgn.helpers.linux.pid.find_task", lambda prog, pid: swap.task)
    monkeypatch.setattr(ftrace, "_chosen", lambda prog, instance: [])
    monkeypatch.setattr(ftrace, "_Reader", lambda prog: None)


def write(line: str, source: Path, out: Path, *force: str) -> Outcome:
    """Have a command write a file."""
    words = (word.format(**{"in": source, "out": out}) for word in line.split())
    name, *rest = words
    if name == "makedumpfile":
        return makedumpfile_forked(*force, *rest)
    return drgn_tools_forked(name, *rest, *force)


def target(line: str, out: Path) -> Path:
    """The (first) file that it writes."""
    (ending, *_) = re.findall(r"\{out\}([.\w]*)", line)
    return out.with_name(out.name + ending)


def hidden(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith(".")]


def assert_refused(outcome: Outcome) -> None:
    assert outcome.status == 1, outcome
    lines = outcome.stderr.splitlines()
    # Those that write for long say what they do.
    assert [line for line in lines if not line.startswith("note: ")][0:] == lines[-1:]
    assert "Traceback" not in outcome.stderr


each_line = pytest.mark.parametrize("line", LINES)


def each_line_and(name: str, *values: object) -> pytest.MarkDecorator:
    """Each with the first value; for what one module does, the first with all."""
    cases = [(line, values[0]) for line in LINES]
    cases += [(LINES[0], value) for value in values[1:]]
    return pytest.mark.parametrize(("line", name), cases)


@pytest.mark.usefixtures("programs")
@each_line
def test_mode(line: str, source: Path, tmp_path: Path) -> None:
    """A file is its owner's, whatever the umask, and where everybody may write."""
    tmp_path.chmod(0o1777)
    old = os.umask(0)
    try:
        outcome = write(line, source, tmp_path / "out")
    finally:
        os.umask(old)
    assert outcome.status == 0, outcome
    assert target(line, tmp_path / "out").exists()
    for path in tmp_path.iterdir():
        status = path.lstat()
        assert stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o600
        assert status.st_nlink == 1


@pytest.mark.usefixtures("programs")
@each_line_and("there", "link", "file", "hard link")
def test_what_is_replaced(line: str, there: str, source: Path, tmp_path: Path) -> None:
    """With -f alone; a link is, and not what it leads to."""
    other, path = tmp_path / "other", target(line, tmp_path / "out")
    other.write_bytes(b"precious")
    if there == "file":
        path.write_bytes(b"precious")
    elif there == "link":
        path.symlink_to(other)
    else:
        path.hardlink_to(other)
    before = path.lstat()
    outcome = write(line, source, tmp_path / "out")
    assert_refused(outcome)
    assert f"{path} exists (-f replaces it)" in outcome.stderr
    after = path.lstat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert path.read_bytes() == b"precious"
    outcome = write(line, source, tmp_path / "out", "-f")
    assert outcome.status == 0, outcome
    status = path.lstat()
    assert stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o600
    assert path.read_bytes() != b"precious" == other.read_bytes()
    assert not hidden(tmp_path)


@pytest.mark.usefixtures("programs")
@each_line_and("there", "dangling", "directory", "link to one", "fifo")
def test_what_is_no_file(line: str, there: str, source: Path, tmp_path: Path) -> None:
    """Stays, even with -f."""
    other, path = tmp_path / "other", target(line, tmp_path / "out")
    if there == "directory":
        path.mkdir()
    elif there == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(other)
        if there == "link to one":
            other.mkdir()
    before = path.lstat()
    outcome = write(line, source, tmp_path / "out", "-f")
    assert_refused(outcome)
    assert f"{path} exists and is no regular file" in outcome.stderr
    after = path.lstat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert not hidden(tmp_path) and (not other.exists() or not [*other.iterdir()])


def test_devices(source: Path, tmp_path: Path) -> None:
    """Of those that are files' names as they are."""
    for line in LINES:
        if target(line, tmp_path / "out").name == "out" and "--split" not in line:
            outcome = write(line.replace("{out}", "/dev/null"), source, tmp_path, "-f")
            assert_refused(outcome)
            assert "/dev/null exists and is no regular file" in outcome.stderr


@pytest.mark.usefixtures("programs")
@each_line_and("links", True, False)
def test_what_appears_meanwhile(
    line: str,
    links: bool,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After somebody has looked, it is not replaced; and what was written is kept."""
    other, path = tmp_path / "other", target(line, tmp_path / "out")
    other.write_bytes(b"precious")
    publish = output.File.publish

    def appear(file: output.File) -> None:
        if file.target == str(path):
            path.symlink_to(other)
        publish(file)

    def no_link(*args: object) -> None:
        raise PermissionError

    monkeypatch.setattr(output.File, "publish", appear)
    if not links:
        # As on FAT.
        monkeypatch.setattr(os, "link", no_link)
    outcome = write(line, source, tmp_path / "out")
    assert outcome.status == 1
    assert path.is_symlink() and other.read_bytes() == b"precious"
    (kept,) = hidden(tmp_path)
    assert f"{path} exists by now: what was written is {kept}\n" in outcome.stderr
    assert stat.S_IMODE(kept.lstat().st_mode) == 0o600
    kept.unlink()
    path.unlink()
    outcome = write(line, source, tmp_path / "out", "-f")
    assert outcome.status == 0, outcome
    assert not path.is_symlink() and other.read_bytes() == b"precious"
    monkeypatch.setattr(output.File, "publish", publish)
    for old in (path, *tmp_path.glob("out2")):
        old.unlink()
    assert write(line, source, tmp_path / "out").status == 0
    assert not hidden(tmp_path)


def test_part_that_appears_meanwhile(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a split dump that is written for the first time, nothing makes way either."""
    (line,) = (line for line in LINES if line.startswith("extract -d1 --split"))
    other = tmp_path / "out2"
    make_way = output.File.make_way

    def appear(file: output.File) -> None:
        other.write_bytes(b"precious")
        make_way(file)

    monkeypatch.setattr(output.File, "make_way", appear)
    outcome = write(line, source, tmp_path / "out")
    assert outcome.status == 1
    assert f"{other} exists by now" in outcome.stderr
    assert other.read_bytes() == b"precious"


@pytest.mark.usefixtures("programs")
@each_line
def test_temporary_name_that_is_there(
    line: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If somebody has guessed it, after all."""
    other, path = tmp_path / "other", target(line, tmp_path / "out")
    other.write_bytes(b"precious")
    monkeypatch.setattr(os, "urandom", bytes)
    guessed = path.with_name(f".{path.name}.{bytes(8).hex()}")
    guessed.symlink_to(other)
    outcome = write(line, source, tmp_path / "out")
    assert_refused(outcome)
    assert other.read_bytes() == b"precious" and hidden(tmp_path) == [guessed]
    assert guessed.is_symlink() and not path.exists()


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
