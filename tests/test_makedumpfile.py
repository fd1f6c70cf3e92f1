# SPDX-License-Identifier: LGPL-2.1-or-later
"""drgn-makedumpfile: makedumpfile's command line, words and exit status."""

from __future__ import annotations

import io
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from drgn_tools import makedumpfile, progress
from drgn_tools.formats import flattened
from drgn_tools.pages import PageClass, excluded_classes
from tests.command import Outcome, environment, makedumpfile_forked
from tests.command_lines import CHECKED, CHECKED_DIFFERENTLY
from tests.synthetic import (
    MIB,
    PAGE,
    KdumpFile,
    Load,
    Machine,
    note,
    populate,
    prstatus,
    read_kdump,
    text_page,
    vmcoreinfo_text,
    write_elf,
)

COMMAND = (sys.executable, "-m", "drgn_tools.makedumpfile")
LOG = [
    (1_000_000_000, "Linux version"),
    (2_500_000_000, "Kernel panic - not syncing: test"),
]
INVALID = (
    "Commandline parameter is invalid.\n"
    "Try `drgn-makedumpfile --help' for more information.\n"
)
SAVED = "The dumpfile is saved to"
COMPLETED, FAILED = "\nmakedumpfile Completed.\n", "\nmakedumpfile Failed.\n"


@pytest.fixture(scope="module")
def machine() -> Machine:
    machine = Machine(ram=((0, 24 * MIB), (64 * MIB, 4 * MIB)), log=LOG)
    populate(machine.pages[0], 2048)
    machine.pages[1].free(64 * MIB // PAGE, 8)
    machine.keys["CRASHTIME"] = "1700000000"
    return machine


@pytest.fixture(scope="module")
def dump(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "vmcore"
    write_elf(path, machine.loads(), machine.notes())
    return path


class Bytes(NamedTuple):
    status: int
    stdout: bytes
    stderr: str


def piped(*arguments: object, stdin: bytes = b"") -> Bytes:
    """The real command, with pipes on both sides."""
    return piped_with({}, *arguments, stdin=stdin)


def piped_with(
    changes: dict[str, str], *arguments: object, stdin: bytes = b""
) -> Bytes:
    """The same in another environment."""
    run = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        env=environment(**changes),
    )
    return Bytes(run.returncode, run.stdout, run.stderr.decode())


def done(outcome: Outcome) -> str:
    """It went well without a complaint; what it said on stdout is returned."""
    assert (outcome.status, outcome.stderr) == (0, ""), outcome
    assert outcome.stdout.endswith(COMPLETED)
    return outcome.stdout


def failed(outcome: Outcome, status: int = 1) -> str:
    """It failed with one line on stderr, which is returned."""
    assert outcome.status == status, outcome
    assert outcome.stdout == FAILED, outcome
    assert outcome.stderr.count("\n") == 1, outcome
    assert outcome.stderr.startswith("drgn-makedumpfile: "), outcome
    return outcome.stderr


def wanted(machine: Machine, level: int) -> dict[int, bytes]:
    leave_out = excluded_classes(level)
    return {
        pfn: machine.page(pfn)
        for pfn in machine.pfns()
        if machine.expected(pfn) not in leave_out
    }


def check(path: Path, machine: Machine, level: int) -> KdumpFile:
    found = read_kdump(path)
    assert found.pages == wanted(machine, level)
    return found


# --- the command line -------------------------------------------------------------


@pytest.mark.parametrize("line", [*CHECKED, *CHECKED_DIFFERENTLY])
def test_check_params(line: str) -> None:
    """Taken silently or refused with a reason, and nothing else happens."""
    status = CHECKED[line] if line in CHECKED else CHECKED_DIFFERENTLY[line][1]
    outcome = makedumpfile_forked("--check-params", *line.split())
    assert outcome.status == status, outcome
    if line in ("-h", "--help", "-v"):
        assert "lzo" in outcome.stdout and outcome.stderr == ""
    elif status == 0:
        assert outcome.stdout == outcome.stderr == ""
    else:
        said = outcome.stdout + outcome.stderr
        assert "invalid" in said or "there is no" in said
        assert FAILED not in outcome.stdout


def test_nothing_is_said_where_it_is_checked() -> None:
    outcome = makedumpfile_forked("--check-params", "--message-level", "0", "a")
    assert outcome == (0, "", "")
    outcome = makedumpfile_forked("--check-params", "-d", "32", "a", "b")
    assert outcome == (1, "Dump_level(32) is invalid.\n", "")
    # A space, for Python.
    outcome = makedumpfile_forked("--check-params", "-d", "\x1f31", "a", "b")
    assert outcome == (1, "Dump_level(\\x1f31) is invalid.\n", "")
    outcome = makedumpfile_forked("--message-level", "0", "-d", "32", "a", "b")
    assert outcome == (1, "", "")


@pytest.mark.parametrize("line", ["--frobnicate a b", "a b -d", "--s a b", "-y a"])
def test_unknown_options(line: str) -> None:
    outcome = makedumpfile_forked(*line.split())
    assert (outcome.status, outcome.stdout) == (1, "")
    name, *rest = outcome.stderr.split("\n", 1)
    assert name.startswith("drgn-makedumpfile: option ")
    assert rest == [INVALID + FAILED]


@pytest.mark.parametrize("option", makedumpfile._INSTEAD)
def test_options_that_are_not_there(option: str, dump: Path, tmp_path: Path) -> None:
    """One line names the option, and says what to do."""
    out = tmp_path / "out"
    takes = option in ("-g", "-x") or f"{option[2:]}=" in makedumpfile._LONG
    words = [option, *(["/bin/true"] if takes else []), dump, out]
    line = failed(makedumpfile_forked(*words))
    assert f"there is no {option} here: " in line
    outcome = makedumpfile_forked("--check-params", *words)
    assert outcome == (1, "", line)
    assert not out.exists()


def test_every_option_means_something() -> None:
    """Taken as makedumpfile does, or told to be missing, but known."""
    short = re.findall(r"(\w)(:?)", makedumpfile._SHORT)
    options = [(f"-{name}", bool(takes)) for name, takes in short]
    options += [(f"--{o.rstrip('=')}", o.endswith("=")) for o in makedumpfile._LONG]
    assert len(options) == 19 + 23
    for option, takes in options:
        words = [option, *(["7"] if takes else []), "vmcore", "out"]
        outcome = makedumpfile_forked("--check-params", *words)
        # On the names that are right for it, it is taken; see CHECKED.
        assert "not recognized" not in outcome.stderr
        assert ("there is no" in outcome.stderr) == (option in makedumpfile._INSTEAD)


def test_help_and_version() -> None:
    for option in ("-h", "--help"):
        outcome = makedumpfile_forked(option)
        assert (outcome.status, outcome.stderr) == (0, "")
        options = {o.rstrip("=") for o in makedumpfile._LONG}
        for name in options - {o[2:] for o in makedumpfile._INSTEAD}:
            assert f"--{name}" in outcome.stdout
    outcome = makedumpfile_forked("-v")
    assert (outcome.status, outcome.stderr) == (0, "")
    first, *libraries = outcome.stdout.splitlines()
    assert re.fullmatch(r"drgn-makedumpfile: version [0-9.]+", first)
    assert libraries == ["lzo\tenabled", "snappy\tenabled", "zstd\tenabled", ""]


HIDE = """
import os, sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in os.environ["HIDDEN_MODULES"].split():
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
"""


def test_needs_no_click(dump: Path, machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDE)
    changes = {
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{environment()['PYTHONPATH']}",
        "HIDDEN_MODULES": "click argparse drgn multiprocessing",
    }
    out = tmp_path / "out"
    outcome = piped_with(changes, "-l", "-d31", dump, out)
    assert (outcome.status, outcome.stderr) == (0, "")
    check(out, machine, 31)
    # The line that is checked at boot loads nothing that takes long.
    changes["HIDDEN_MODULES"] += " numpy elftools"
    assert piped_with(changes, "--check-params", "-d31", "a", "b") == (0, b"", "")


# --- dumps ------------------------------------------------------------------------


def test_defaults(dump: Path, machine: Machine, tmp_path: Path) -> None:
    """-d 0, and pages as they are."""
    out = tmp_path / "out"
    said = done(makedumpfile_forked(dump, out))
    assert said == f"\n{SAVED} {out}.\n{COMPLETED}"
    found = check(out, machine, 0)
    assert (found.status, found.dump_level) == (0, 0)
    assert {flags for _, _, flags in found.places.values()} == {0}
    assert out.stat().st_mode & 0o777 == 0o600
    # It may be run with as many as there are.
    for threads in ("0", "1", "2"):
        done(makedumpfile_forked("-f", "--num-threads", threads, dump, out))
        check(out, machine, 0)


@pytest.mark.parametrize(
    ("options", "flag"),
    [("-c", 1), ("-l", 2), ("-p", 4), ("-z", 0x20), ("-clpz", 0x20), ("-z -c", 1)],
)
def test_codecs(
    options: str, flag: int, dump: Path, machine: Machine, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done(makedumpfile_forked(*options.split(), "-d", "31", dump, out))
    found = check(out, machine, 31)
    assert found.status == flag
    assert {flags for _, _, flags in found.places.values()} == {0, flag}


@pytest.mark.parametrize("level", [1, 2, 4, 8, 16, 23])
def test_levels(level: int, dump: Path, machine: Machine, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done(makedumpfile_forked("-l", "-d", level, dump, out))
    check(out, machine, level)


def test_is_extract(dump: Path, tmp_path: Path) -> None:
    """The same code: the same bytes. Hints change none of them."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    hints = "-b 1 --cyclic-buffer 9 --work-dir /nowhere --non-mmap --splitblock-size 1"
    words = ["-l", "-d31", "--num-threads", "0", *hints.split()]
    done(makedumpfile_forked(*words, dump, ours))
    extract = [sys.executable, "-m", "drgn_tools", "extract", "-l", "--jobs", "1"]
    subprocess.run([*extract, dump, theirs], check=True, env=environment())
    assert ours.read_bytes() == theirs.read_bytes()


def test_existing_file(dump: Path, machine: Machine, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("precious")
    assert "exists" in failed(makedumpfile_forked("-d31", dump, out))
    assert out.read_text() == "precious"
    done(makedumpfile_forked("-f", "-d31", dump, out))
    check(out, machine, 31)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{room}/missing {room}/out", "No such file"),
        ("/bin/true {room}/out", "not a core"),
        ("{dump} {room}/no/out", "No such file"),
        ("-E -d 31 {dump} {dump}", "input itself"),
        ("--split {dump} {room}/1 {room}/1", "different names"),
        ("--dump-dmesg {room}/missing {room}/out", "No such file"),
        ("--mem-usage {room}/missing", "No such file"),
        ("--reassemble {room}/missing {room}/two {room}/out", "No such file"),
    ],
)
def test_failures(line: str, why: str, dump: Path, tmp_path: Path) -> None:
    words = line.format(room=tmp_path, dump=dump).split()
    assert why in failed(makedumpfile_forked(*words))
    assert os.listdir(tmp_path) == []


def test_elf(dump: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done(makedumpfile_forked("-E", "-d", "31", dump, out))
    assert out.read_bytes()[:4] == b"\x7fELF"


def test_filtered_further(dump: Path, machine: Machine, tmp_path: Path) -> None:
    step, out = tmp_path / "step", tmp_path / "out"
    done(makedumpfile_forked("-l", "-d16", dump, step))
    said = done(makedumpfile_forked("-z", "-d", "8,31", step, out))
    assert f"dump_level is changed to 24, because {step} was filtered" in said
    found = check(out, machine, 24)
    assert found.dump_level == 24
    said = done(makedumpfile_forked("-f", "-d31", step, out))
    assert "changed" not in said
    check(out, machine, 31)


# --- streams ----------------------------------------------------------------------


@pytest.mark.parametrize("flatten", [["-F"], []], ids=["-F", "piped"])
def test_flattened_and_rearranged(
    flatten: list[str], dump: Path, machine: Machine, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    stream = piped(*flatten, "-z", "-d31", "--num-threads", "2", dump)
    assert stream.status == 0
    assert stream.stdout.startswith(b"makedumpfile\0")
    # All that is said goes elsewhere.
    assert stream.stderr == f"\n{SAVED} STDOUT.\n{COMPLETED}"
    again = piped("-R", out, stdin=stream.stdout)
    assert again == (0, f"\n{SAVED} {out}.\n{COMPLETED}".encode(), "")
    check(out, machine, 31)

    outcome = piped("-R", out, stdin=stream.stdout)
    assert (outcome.status, outcome.stdout) == (1, FAILED.encode())
    assert "exists" in outcome.stderr
    assert piped("-R", "-f", out, stdin=stream.stdout).status == 0
    check(out, machine, 31)
    for bad in (b"", b"no dump" * 1000, stream.stdout[:5000]):
        outcome = piped("-R", tmp_path / "bad", stdin=bad)
        assert (outcome.status, outcome.stdout) == (1, FAILED.encode())
        assert outcome.stderr.count("\n") == 1


def test_closed_streams(dump: Path, machine: Machine, tmp_path: Path) -> None:
    """What is opened next gets their numbers, and must not be taken for them."""
    line = 'exec "$0" -m drgn_tools.makedumpfile "$@"'
    for closed, words, status in (
        (">&-", ["-F"], 1),
        (">&-", ["-F", "--dump-dmesg"], 1),
        (">&-", [tmp_path / "out1"], 0),
        ("<&- >&- 2>&-", ["-D", "-l", tmp_path / "out2"], 0),
    ):
        command = ["sh", "-c", f"{line} {closed}", sys.executable, *words, dump]
        if not status:
            command[-2:] = reversed(command[-2:])
        run = subprocess.run(command, env=environment(), stderr=subprocess.PIPE)
        assert run.returncode == status
        assert (b"standard output is closed" in run.stderr) == bool(status)
    for name in ("out1", "out2"):
        check(tmp_path / name, machine, 0)


def test_stopped(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "-R", tmp_path / "out"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as run:
        assert run.stdin is not None
        # The start of a stream, and of the dump in it.
        run.stdin.write(flattened.HEADER + flattened.record(0, PAGE) + bytes(PAGE))
        run.stdin.flush()
        while not any(path.stat().st_size for path in tmp_path.iterdir()):
            assert run.poll() is None
        run.terminate()
        out, err = run.communicate()
    assert (run.returncode, out.decode()) == (128 + signal.SIGTERM, FAILED)
    assert err == b"drgn-makedumpfile: stopped by SIGTERM\n"
    assert os.listdir(tmp_path) == []


def test_a_terminal_gets_no_dump(dump: Path) -> None:
    ours, theirs = pty.openpty()
    try:
        run = subprocess.run(
            [*COMMAND, dump], stdout=theirs, stderr=subprocess.PIPE, env=environment()
        )
        said = os.read(ours, 4096).replace(b"\r\n", b"\n").decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert (run.returncode, run.stderr) == (1, b"")
    assert said == INVALID + FAILED


def test_messages_are_not_what_counts(
    dump: Path, machine: Machine, tmp_path: Path
) -> None:
    """A console that takes nothing costs no dump. A help text needs its reader."""
    out = tmp_path / "out"
    with open("/dev/full", "w") as full:
        for arguments, status in (([dump, out], 0), (["-h"], 1), (["-v"], 1)):
            command = [*COMMAND, *map(str, arguments)]
            run = subprocess.run(command, stdout=full, stderr=full, env=environment())
            assert run.returncode == status
    check(out, machine, 0)


# --- messages ---------------------------------------------------------------------


@pytest.mark.parametrize("level", range(32))
def test_message_levels(level: int, dump: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--message-level", level, "-d31", dump, out]
    good, bad = makedumpfile_forked(*words), makedumpfile_forked(*words)
    assert (good.status, bad.status) == (0, 1)
    for said, text in ((good.stdout, SAVED), (good.stdout, COMPLETED)):
        assert (text in said) == bool(level & 2)
    assert (bad.stdout.endswith(FAILED)) == bool(level & 2)
    assert bool(bad.stderr) == bool(level & 4)
    for outcome in (good, bad):
        assert ("command line: " in outcome.stdout) == bool(level & 8)
    assert ("  OSRELEASE=" in good.stdout) == bool(level & 8)
    assert ("Original pages" in good.stdout) == bool(level & 16)
    assert good.stderr == ""
    if not level & 26:
        assert good.stdout == ""


def test_other_ways_to_message_levels(dump: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "OSRELEASE" in done(makedumpfile_forked("-D", dump, out))
    assert "Free pages" in done(makedumpfile_forked("--show-stats", "-f", dump, out))


def test_progress_can_be_silenced(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(progress, "_INTERVAL", -1)
    monkeypatch.setattr(progress, "_silent", False)
    for silent in (False, True):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        if silent:
            progress.silence()
        with progress.Progress("working", 2) as shown:
            shown.update(1)
        assert ("working" in terminal.getvalue()) == (not silent)


def test_report(dump: Path, machine: Machine, tmp_path: Path) -> None:
    """Numbers in makedumpfile's words."""
    out = tmp_path / "out"
    words = ["--show-stats", "-d31", dump, out]
    said = done(makedumpfile_forked("--dry-run", *words))
    assert not out.exists()
    again = done(makedumpfile_forked(*words))
    report = said[: said.index("Write bytes")]
    assert report == again[: again.index("Write bytes")]
    numbers = dict(re.findall(r"^ *(\S.*?) *: 0x([0-9a-f]{16})$", report, re.M))
    counts = dict.fromkeys(PageClass, 0)
    for pfn in machine.pfns():
        counts[machine.expected(pfn)] += 1
    zeros = sum(not any(page) for page in wanted(machine, 31).values())
    expected = {
        "Original pages": len(machine.pfns()),
        "Excluded pages": len(machine.pfns()) - len(wanted(machine, 31)) + zeros,
        "Pages filled with zero": zeros,
        "Non-private cache pages": counts[PageClass.CACHE],
        "Private cache pages": counts[PageClass.CACHE_PRIVATE],
        "User process data pages": counts[PageClass.ANON] + counts[PageClass.HUGETLB],
        "Free pages": counts[PageClass.FREE] + counts[PageClass.UNACCEPTED],
        "Hwpoison pages": counts[PageClass.HWPOISON],
        "Offline pages": counts[PageClass.OFFLINE],
        "Remaining pages": len(wanted(machine, 31)) - zeros,
        "Memory Hole": 40 * MIB // PAGE,
        "Total pages": 68 * MIB // PAGE,
    }
    assert {label: int(value, 16) for label, value in numbers.items()} == expected
    assert all(expected.values())
    share = expected["Excluded pages"] * 100 // expected["Original pages"]
    assert f"  (The number of pages is reduced to {share}%.)\n" in report


def test_dry_run(dump: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["-z", "-d31", "--num-threads", "1", dump, out]
    said = done(makedumpfile_forked("--dry-run", *words))
    assert os.listdir(tmp_path) == []
    done(makedumpfile_forked(*words))
    size = out.stat().st_size
    flat = makedumpfile_forked("--dry-run", "-F", *words[:-1])
    assert (flat.status, flat.stdout) == (0, "")
    assert flat.stderr.startswith("\nNothing is written: STDOUT would have ")
    set_of = makedumpfile_forked("--dry-run", "--split", dump, f"{out}1", f"{out}2")
    assert "\nNothing is written: the set would have " in done(set_of)
    assert os.listdir(tmp_path) == ["out"]
    assert said == f"\nNothing is written: {out} would have {size} bytes.\n{COMPLETED}"


def test_memory_usage(dump: Path, machine: Machine) -> None:
    outcome = makedumpfile_forked("--mem-usage", dump)
    assert (outcome.status, outcome.stderr) == (0, "")
    counts = dict.fromkeys(PageClass, 0)
    for pfn in machine.pfns():
        counts[machine.expected(pfn)] += 1
    kept = wanted(machine, 31).values()
    zeros = sum(not any(page) for page in kept)
    total = len(machine.pfns())
    user = counts[PageClass.ANON] + counts[PageClass.HUGETLB]
    free = counts[PageClass.FREE] + counts[PageClass.UNACCEPTED]
    assert outcome.stdout == (
        "\n"
        "TYPE\t\tPAGES\t\t\tEXCLUDABLE\tDESCRIPTION\n"
        "------------------------------------------------------------------"
        "----\n"
        f"ZERO\t\t{zeros:<16}\tyes\t\tPages filled with zero\n"
        f"NON_PRI_CACHE\t{counts[PageClass.CACHE]:<16}\tyes\t\t"
        "Cache pages without private flag\n"
        f"PRI_CACHE\t{counts[PageClass.CACHE_PRIVATE]:<16}\tyes\t\t"
        "Cache pages with private flag\n"
        f"USER\t\t{user:<16}\tyes\t\tUser process pages\n"
        f"FREE\t\t{free:<16}\tyes\t\tFree pages\n"
        f"KERN_DATA\t{len(kept) - zeros:<16}\tno\t\tDumpable kernel data \n"
        "\n"
        "page size:\t\t4096            \n"
        f"Total pages on system:\t{total:<16}\n"
        f"Total size on system:\t{total * PAGE:<16} Byte\n"
        "\n"
    )


# --- room -------------------------------------------------------------------------


def test_next_level_where_there_is_no_room(
    dump: Path, machine: Machine, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done(makedumpfile_forked("-d31", dump, out))
    limit = out.stat().st_size + 16 * PAGE
    said = done(makedumpfile_forked("-f", "-L", limit, "-d", "0,16,31", dump, out))
    assert said == (
        "Retry to create a dumpfile by dump_level(16).\n"
        "Retry to create a dumpfile by dump_level(31).\n"
        f"\n{SAVED} {out}.\n{COMPLETED}"
    )
    check(out, machine, 31)


def test_incomplete(dump: Path, machine: Machine, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = makedumpfile_forked("-L", "3M", "-d", "0,1", dump, out)
    assert outcome.status == 1
    assert outcome.stdout == (
        "Retry to create a dumpfile by dump_level(1).\n"
        f"This is an incomplete dumpfile, but might analyzable.\n{FAILED}"
    )
    assert outcome.stderr.count("\n") == 1
    assert f"{out} is incomplete: no room for" in outcome.stderr
    assert out.stat().st_size <= 3 * MIB
    found = read_kdump(out)
    assert found.status & 0x8
    assert found.pages.items() < wanted(machine, 1).items()


# --- sets -------------------------------------------------------------------------


def test_split_and_reassemble(dump: Path, machine: Machine, tmp_path: Path) -> None:
    parts = [tmp_path / name for name in "abc"]
    out = tmp_path / "out"
    words = ["--split", "--splitblock-size", "1024", "-l", "-d31", dump]
    said = done(makedumpfile_forked(*words, *parts))
    first, second, last = parts
    assert said == (
        f"\nThe dumpfiles are saved to {first}, {second}, and {last}.\n{COMPLETED}"
    )
    assert all(part.exists() for part in parts)
    said = done(makedumpfile_forked("--reassemble", *parts, out))
    assert said == f"\n{SAVED} {out}.\n{COMPLETED}"
    check(out, machine, 31)
    assert "exists" in failed(makedumpfile_forked("--reassemble", *parts, out))
    done(makedumpfile_forked("--reassemble", "-f", *reversed(parts), out))
    check(out, machine, 31)


# --- the log ----------------------------------------------------------------------

LOG_TEXT = (
    b"[    1.000000] [      T0] Linux version\n"
    b"[    2.500000] [      T0] Kernel panic - not syncing: test\n"
)


def test_log(dump: Path, tmp_path: Path) -> None:
    out = tmp_path / "dmesg"
    said = done(makedumpfile_forked("--dump-dmesg", dump, out))
    assert said == f"\nThe dmesg log is saved to {out}.\n{COMPLETED}"
    assert out.read_bytes() == LOG_TEXT
    assert out.stat().st_mode & 0o777 == 0o600
    assert "exists" in failed(makedumpfile_forked("--dump-dmesg", dump, out))
    done(makedumpfile_forked("--dump-dmesg", "--partial-dmesg", "-f", dump, out))
    # The limit is for logs as well.
    outcome = makedumpfile_forked("--dump-dmesg", "-f", "-L", "40", dump, out)
    assert "limit" in failed(outcome)
    assert out.read_bytes() == LOG_TEXT[:40]


# How SUSE's kdump-save reads what is said, by its own rules.
READ_KEYS = """
IFS=" ="
while read KEY VALUE; do
    [ CRASHTIME = "$KEY" ] && CRASHTIME=$VALUE
    [ OSRELEASE = "$KEY" ] && OSRELEASE=$VALUE
done
printf '%s %s' "$OSRELEASE" "$CRASHTIME"
"""


def test_log_on_a_pipe(dump: Path, machine: Machine) -> None:
    outcome = piped("-F", "--message-level", "8", "--dump-dmesg", dump)
    assert (outcome.status, outcome.stdout) == (0, LOG_TEXT)
    lines = outcome.stderr.splitlines()
    start = lines.index("VMCOREINFO   :") + 1
    keys = vmcoreinfo_text(machine.keys).decode().splitlines()
    assert lines[start : start + len(keys)] == [f"  {key}" for key in keys]
    read = subprocess.run(
        ["sh", "-c", READ_KEYS], input=outcome.stderr, capture_output=True, text=True
    )
    assert read.stdout == f"{machine.keys['OSRELEASE']} 1700000000"
    outcome = piped("--dump-dmesg", dump)
    assert (outcome.status, outcome.stdout) == (0, LOG_TEXT)
    assert outcome.stderr == f"\nThe dmesg log is saved to STDOUT.\n{COMPLETED}"


# --- VMCOREINFO from a file -------------------------------------------------------


def test_vmcoreinfo_file(machine: Machine, dump: Path, tmp_path: Path) -> None:
    bare, text, out = (tmp_path / name for name in ("in", "text", "out"))
    write_elf(bare, machine.loads(), prstatus(1))
    assert "no VMCOREINFO" in failed(makedumpfile_forked("-d31", bare, out))
    text.write_bytes(vmcoreinfo_text(machine.keys))
    done(makedumpfile_forked("-i", text, "-d31", bare, out))
    check(out, machine, 31)
    log = tmp_path / "log"
    done(makedumpfile_forked("-i", text, "--dump-dmesg", bare, log))
    assert log.read_bytes() == LOG_TEXT
    # What the dump itself has goes first.
    broken = {"OSRELEASE": machine.keys["OSRELEASE"]}
    text.write_bytes(vmcoreinfo_text(broken))
    done(makedumpfile_forked("-f", "-i", text, "-d31", dump, out))
    check(out, machine, 31)


def test_vmcoreinfo_that_is_damaged(machine: Machine, tmp_path: Path) -> None:
    """A file replaces what is there and says nothing."""
    torn, text, out = (tmp_path / name for name in ("in", "text", "out"))
    write_elf(torn, machine.loads(), note(b"VMCOREINFO", 0, b"PAGESIZE=4096\n"))
    text.write_bytes(vmcoreinfo_text(machine.keys))
    failed(makedumpfile_forked("-d31", torn, out))
    done(makedumpfile_forked("-i", text, "-d31", torn, out))
    check(out, machine, 31)


def test_vmcoreinfo_of_another_kernel(
    machine: Machine, dump: Path, tmp_path: Path
) -> None:
    bare, text, out = (tmp_path / name for name in ("in", "text", "out"))
    write_elf(bare, machine.loads(), prstatus(1))
    text.write_bytes(vmcoreinfo_text({**machine.keys, "OSRELEASE": "6.6.6"}))
    for source in (dump, bare):
        for mode in ("-d31", "--dump-dmesg"):
            line = failed(makedumpfile_forked(mode, "-i", text, source, out), 2)
            assert line == f"drgn-makedumpfile: {text} and {source} don't match.\n"
    for data in (b"", b"\0" * 99, b"PAGESIZE=4096\n"):
        text.write_bytes(data)
        line = failed(makedumpfile_forked("-d31", "-i", text, bare, out))
        assert "no VMCOREINFO" in line
    line = failed(makedumpfile_forked("-i", tmp_path / "none", bare, out))
    assert "No such file" in line
    assert not out.exists()


def test_names_do_not_drive_the_terminal(tmp_path: Path) -> None:
    source, out = tmp_path / "in\x1b[2J\n", tmp_path / "out\x1b[2J\n"
    write_elf(source, [Load(MIB, text_page(1))])
    outcome = makedumpfile_forked("-D", source, out)
    assert outcome.status == 0
    assert out.exists()
    outcome = Outcome(0, outcome.stdout, makedumpfile_forked(source, out).stderr)
    assert "\x1b" not in outcome.stdout + outcome.stderr
    assert outcome.stderr.count("\n") == 1
