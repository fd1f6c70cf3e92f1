# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command line as one whole: spellings, help, colour, quiet, JSON, manual pages."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from contrib import man
from drgn_tools import capture_commands, codecs, makedumpfile, oprofile_commands
from drgn_tools.__main__ import GROUPS, commands
from drgn_tools.debug_packages import debug_package
from drgn_tools.oprofile_text import COLUMNS
from drgn_tools.pages import CLASSES_BY_LABEL
from drgn_tools.text import binary_size
from tests.command import (
    COMMAND,
    ROOT,
    assert_done,
    assert_refused,
    drgn_tools,
    environment,
)
from tests.synthetic import MIB, Machine, read_kdump, write_elf
from tests.terminal import rest

CONTEXT = click.Context(commands, info_name="drgn-tools")
NAMES = commands.list_commands(CONTEXT)
LOG = [(1000, "Linux version"), (2000, "Kernel panic - not syncing: \x1b[31mtest")]


def command(name: str) -> click.Command:
    found = commands.get_command(CONTEXT, name)
    assert found is not None
    return found


def options(name: str) -> Iterator[click.Option]:
    for param in command(name).params:
        if isinstance(param, click.Option):
            yield param


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    machine = Machine(ram=((0, 6 * MIB),), log=LOG)
    machine.pages[0].anon(5)
    path = tmp_path_factory.mktemp("source") / "vmcore"
    write_elf(path, machine.loads()[1:], machine.notes())
    return path


# --- spellings --------------------------------------------------------------------


def test_one_spelling() -> None:
    """What an option is called, in all commands that have it."""
    spellings: dict[str, set[tuple[object, ...]]] = {}
    for name in NAMES:
        for option in options(name):
            key = max(option.opts, key=len)
            told = (*sorted(option.opts), option.metavar, option.multiple)
            spellings.setdefault(key, set()).add(told)
    assert {key for key, told in spellings.items() if len(told) > 1} <= {"--partial"}
    shared = ("--json", "--output", "--quiet", "--jobs", "--force", "--symbols")
    assert set(shared) <= spellings.keys()


def test_what_goes_together() -> None:
    for name in NAMES:
        known = {max(option.opts, key=len) for option in options(name)}
        assert "--quiet" in known
        if "--output" in known:
            assert "--force" in known


def test_names_that_help_and_completion_have() -> None:
    """They are written down again, for what has them takes long to import."""
    kept = {"offline", "hwpoison"}
    assert set(capture_commands._CLASSES) == CLASSES_BY_LABEL.keys() - kept
    assert tuple(COLUMNS) == oprofile_commands._COLUMNS
    for name in capture_commands._CODECS:
        codecs.parse(name)
    assert set(codecs.CODECS) <= set(capture_commands._CODECS)


# --- help -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", *NAMES])
def test_help_fits(name: str) -> None:
    said = drgn_tools(*name.split(), "--help").stdout
    assert max(map(len, said.splitlines())) <= 80
    assert "..." not in re.sub(r"\[ARGS\]\.\.\.", "", said)
    assert "Examples:" in said
    if name:
        assert said == drgn_tools("help", name).stdout


def test_commands_are_listed() -> None:
    said = drgn_tools("--help").stdout
    assert {name for group in GROUPS.values() for name in group} >= set(NAMES)
    for name in NAMES:
        assert re.search(rf"^  {name} +[A-Z].*\.$", said, re.MULTILINE)
    assert drgn_tools("help").stdout == said
    alone = drgn_tools()
    assert (alone.status, alone.stdout, alone.stderr) == (2, "", said)


@pytest.mark.parametrize(
    ("word", "answer"), [("zrm", ": zram?"), ("extrakt", ": extract?"), ("qqq", "")]
)
def test_no_such_command(word: str, answer: str) -> None:
    for arguments in ([word], [word, "dump"], ["help", word]):
        line = assert_refused(drgn_tools(*arguments), 2)
        expected = f"drgn-tools: no command {word}{answer} (see drgn-tools --help)\n"
        assert line == expected


@pytest.mark.parametrize("name", NAMES)
def test_exit_status(name: str, dump: Path, tmp_path: Path) -> None:
    assert_refused(drgn_tools(name, dump, "--no-such-option"), 2)
    assert_refused(drgn_tools(name, dump, "-o"), 2)
    if name != "extract":
        assert_refused(drgn_tools(name), 2)
    out = ["-fo", tmp_path / "out.html"] if name in ("extract", "report") else []
    text = tmp_path / "text"
    text.write_text("no dump\n")
    for wrong in (tmp_path / "nowhere", text):
        assert_refused(drgn_tools(name, wrong, *out))
    assert list(tmp_path.iterdir()) == [text]


def test_a_dump_for_a_command(dump: Path) -> None:
    line = assert_refused(drgn_tools(dump), 2)
    assert f"drgn-tools info {dump}" in line


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["help"], ["nosuch"], ["extract", "--help"], ["pstore", "--help"]],
    ids=" ".join,
)
def test_help_costs_little(arguments: list[str]) -> None:
    assert_imports_little(arguments)


def assert_imports_little(arguments: list[str], **changes: str) -> None:
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "drgn_tools", *arguments],
        capture_output=True,
        text=True,
        env=environment(**changes),
    )
    modules = set(re.findall(r"^import time:.*\| +([\w.]+)$", run.stderr, re.MULTILINE))
    assert "drgn_tools.start" in modules
    assert not modules & {"numpy", "drgn", "drgn_tools.pages", "drgn_tools.vmcore"}


# --- output -----------------------------------------------------------------------


def test_info_as_json(dump: Path) -> None:
    told = json.loads(drgn_tools("info", "--json", dump).stdout)
    assert told["panic"] == LOG[1][1]
    assert (told["memory"], told["size"]) == (6 * MIB, dump.stat().st_size)
    lines = drgn_tools("info", dump).stdout.splitlines()
    by_label = dict(re.split(r": +", line, maxsplit=1) for line in lines)
    assert by_label["release"] == told["release"]
    assert by_label["memory"] == "6.0 MiB in 1 range"


def test_what_was_written_is_said(dump: Path, tmp_path: Path) -> None:
    words: tuple[object, ...]
    for words in (("dmesg", "-o"), ("pages", "--image"), ("report", "-o")):
        out = tmp_path / f"{words[0]}.html"
        if words[0] == "pages":
            out = out.with_suffix(".svg")
        command = (words[0], dump, words[1], out)
        said = drgn_tools(*command).stderr.splitlines()
        assert said[-1] == f"{out}: {binary_size(out.stat().st_size)}"
        quiet = drgn_tools(*command, "-f", "-q").stderr
        assert str(out) not in quiet


def test_dry_run_says_what_would_be(dump: Path, tmp_path: Path) -> None:
    for words, name in (((), "standard output"), ((tmp_path / "a",), tmp_path / "a")):
        done = drgn_tools("extract", "--dry-run", dump, *words)
        assert_done(done)
        assert f"\n{name} would be " in done.stderr
    assert not (tmp_path / "a").exists()


def test_wrong_options_are_one_sentence(dump: Path) -> None:
    line = assert_refused(drgn_tools("info", "--foo", dump), 2)
    assert "--foo" in line and line.endswith(" (see drgn-tools info --help)\n")
    assert ". (" not in line


def test_extract_as_json(dump: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = drgn_tools("extract", "--json", "--sha256", "-d8", dump, "-o", out)
    assert (done.status, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    (written,) = told["outputs"]
    digest = subprocess.run(["sha256sum", out], capture_output=True, text=True)
    assert digest.stdout.split() == [written["sha256"], written["path"]]
    kept = sum(one["kept"] for one in told["classes"].values())
    assert kept == len(read_kdump(out).pages)
    assert told["classes"]["anon"]["kept"] == 0 < told["classes"]["anon"]["pages"]
    assert told["output_size"] == out.stat().st_size
    assert "--json" in assert_refused(drgn_tools("extract", "--json", dump), 2)


def test_verify_as_json(dump: Path, tmp_path: Path) -> None:
    told = json.loads(drgn_tools("verify", "--json", dump).stdout)
    assert told["sound"] and told["findings"] == []
    cut = tmp_path / "cut"
    cut.write_bytes(dump.read_bytes()[: 4 * MIB])
    done = drgn_tools("verify", "--json", cut)
    told = json.loads(done.stdout)
    assert done.status == 1 and not told["sound"] and told["missing"] > 0
    assert sum(told["counts"].values()) >= len(told["findings"]) > 0


def test_quiet(dump: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = drgn_tools("extract", "-q", "--verify", dump, out)
    assert (done.status, done.stdout, done.stderr) == (0, "", "")
    assert drgn_tools("verify", "-q", out).stdout == f"{out}: sound\n"
    line = assert_refused(drgn_tools("extract", "-q", dump, out))
    assert line == f"drgn-tools: {out} exists (-f replaces it)\n"


def test_dmesg_to_a_file(dump: Path, tmp_path: Path) -> None:
    out = tmp_path / "log"
    printed = drgn_tools("dmesg", dump).stdout
    done = drgn_tools("dmesg", dump, "-q", "-o", out)
    assert (done.status, done.stdout, done.stderr) == (0, "", "")
    assert out.read_text() == printed
    assert "-f replaces it" in assert_refused(drgn_tools("dmesg", dump, "-o", out))
    assert_done(drgn_tools("dmesg", dump, "-fo", out))
    assert "the input itself" in assert_refused(
        drgn_tools("dmesg", dump, "-f", "-o", dump)
    )


@pytest.mark.parametrize("arguments", ["info", "info --json", "verify", "dmesg"])
def test_closed_pipe(arguments: str, dump: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    run = subprocess.run(
        [*COMMAND, *arguments.split(), str(dump)],
        stdout=write_end,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    os.close(write_end)
    assert (run.returncode, run.stderr) == (1, b"")


def test_nowhere_to_complain(dump: Path, tmp_path: Path) -> None:
    """What is for standard error gets into no stream."""
    streams = []
    for number, redirection in enumerate(("2>/dev/null", "2>&-")):
        path = tmp_path / str(number)
        script = f'exec "$@" {redirection} >{path}'
        argv = [*COMMAND, "extract", "--jobs=1", str(dump)]
        run = subprocess.run(["sh", "-c", script, "sh", *argv], env=environment())
        assert run.returncode == 0
        streams.append(path.stat().st_size)
    assert streams[0] == streams[1]


# --- colour -----------------------------------------------------------------------


def on_a_terminal(*arguments: object, **changes: str) -> str:
    """What the command writes to a terminal, which is all three streams."""
    variables = {"TERM": "xterm", **changes}
    env = {k: v for k, v in environment(**variables).items() if v}
    pid, terminal = pty.fork()
    if not pid:
        os.execve(COMMAND[0], [*COMMAND, *map(str, arguments)], env)
    return rest(pid, terminal).decode()


@pytest.mark.parametrize(
    ("arguments", "coloured"),
    [
        ("info {}", "\x1b[1;31mKernel panic"),
        ("verify {}", ": sound\x1b[0m"),
        ("info /nonexistent", "\x1b[1;31mdrgn-tools:\x1b[0m cannot"),
    ],
)
def test_colour(arguments: str, coloured: str, dump: Path) -> None:
    words = arguments.format(dump).split()
    assert coloured in on_a_terminal(*words, NO_COLOR="")
    for quiet in ({"NO_COLOR": "1"}, {"NO_COLOR": "", "TERM": "dumb"}):
        assert "\x1b" not in on_a_terminal(*words, **quiet)
    done = drgn_tools(*words, NO_COLOR="", TERM="xterm")
    assert "\x1b" not in done.stdout + done.stderr


# --- packages ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "version", "package"),
    [
        (
            "6.1.0-13-amd64",
            "#1 SMP PREEMPT_DYNAMIC Debian 6.1.55-1 (2023-09-29)",
            "linux-image-6.1.0-13-amd64-dbg",
        ),
        (
            "5.15.0-91-generic",
            "#101~20.04.1-Ubuntu SMP Thu Nov 16 14:22:28 UTC 2023",
            "linux-image-5.15.0-91-generic-dbgsym",
        ),
        (
            "6.5.6-300.fc39.x86_64",
            "#1 SMP PREEMPT_DYNAMIC Fri Oct  6 19:57:21 UTC 2023",
            "kernel-debuginfo-6.5.6-300.fc39.x86_64",
        ),
        (
            "5.14.0-362.8.1.el9_3.x86_64+debug",
            "#1 SMP PREEMPT_DYNAMIC Tue Oct 3 11:12:36 EDT 2023",
            "kernel-debug-debuginfo-5.14.0-362.8.1.el9_3.x86_64",
        ),
        (
            "4.18.0-193.rt13.51.el8.x86_64",
            "#1 SMP PREEMPT RT Fri Mar 27 14:03:23 UTC 2020",
            "kernel-rt-debuginfo-4.18.0-193.rt13.51.el8.x86_64",
        ),
        (
            "5.4.17-2136.300.7.el8uek.x86_64",
            "#2 SMP Fri Oct 8 16:23:01 PDT 2021",
            "kernel-uek-debuginfo-5.4.17-2136.300.7.el8uek.x86_64",
        ),
        (
            "5.14.21-150500.55.39-default",
            "#1 SMP PREEMPT_DYNAMIC Tue Dec 5 10:06:35 UTC 2023 (2e4092e)",
            "kernel-default-debuginfo-5.14.21-150500.55.39",
        ),
        ("6.12.0", "#1 SMP", None),
        ("6.1.0-" + "1" * 4096, "Debian 6", None),
    ],
)
def test_debug_packages(release: str, version: str, package: str | None) -> None:
    assert debug_package(release, version) == package


# --- manual pages -----------------------------------------------------------------


def test_manual_pages_are_what_the_commands_say() -> None:
    """python -m contrib.man writes them."""
    written = {
        path.name: path.read_text() for path in (ROOT / "docs/man").glob("drgn-tools*")
    }
    assert written == man.pages()


@pytest.mark.parametrize(
    "page", sorted(path.name for path in (ROOT / "docs/man").iterdir())
)
def test_manual_page(page: str) -> None:
    path = ROOT / "docs/man" / page
    lint = subprocess.run(["mandoc", "-Tlint", path], capture_output=True, text=True)
    # Whether others are installed is not this page's business.
    said = [line for line in lint.stdout.splitlines() if "not found: Xr" not in line]
    assert (said, lint.stderr) == ([], "")
    shown = subprocess.run(
        ["man", "--warnings", "-l", path],
        capture_output=True,
        text=True,
        env={**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8", "MANPAGER": "cat"},
    )
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "SYNOPSIS" in shown.stdout


def test_drgn_makedumpfile_is_told_as_it_is() -> None:
    """Options of the parser, in its manual page, its help and its completion."""
    short = set(re.sub(":", "", makedumpfile._SHORT))
    known = {f"-{letter}" for letter in short}
    known |= {f"--{name.rstrip('=')}" for name in makedumpfile._LONG}
    page = (ROOT / "docs/man/drgn-makedumpfile.1").read_text()
    told = set()
    for line in page.partition(".Sh DESCRIPTION")[2].splitlines():
        # After Fl come options, up to another macro.
        for _, words in re.findall(r"(\.|\b)Fl ((?:(?!\b[A-Z][a-z]\b).)*)", line):
            told |= {f"-{word}" for word in words.replace(",", " ").split()}
    assert told == known
    mine = known - makedumpfile._INSTEAD.keys()
    option = r"(?<![\w-])-(?:[A-Za-z]\b|-[a-z][\w-]+)"
    assert set(re.findall(option, makedumpfile._USAGE)) == mine
    completed = (ROOT / "contrib/completion/drgn-makedumpfile.bash").read_text()
    (listed,) = re.findall(r"-W '(.*?)'", completed, re.DOTALL)
    assert set(listed.split()) == mine
