# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What is printed of dumps and of names drives no terminal. tests/vm/test_printed.py does
the same with dumps of guests, for what needs debugging symbols.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import pytest
from drgn import Program

from drgn_tools import progress
from drgn_tools.__main__ import commands
from drgn_tools.errors import DumpError
from drgn_tools.printing import printing
from drgn_tools.pstore import pstore_console
from drgn_tools.text import json_line, printable, printable_lines, verbatim
from tests.command import drgn_tools_forked, makedumpfile_forked
from tests.printed import HOSTILE, HOSTILE_BYTES, Tty, at_terminal, harmless
from tests.pstore_kernel import FakeKernel
from tests.regions import TEXT, region, rings
from tests.synthetic import BY_NAME, MIB, NEWEST, Machine, write_elf
from tests.test_pstore_raw import DIVISION, call, made
from tests.test_pstore_records import logcat

CONTEXT = click.Context(commands, info_name="drgn-tools")
NAMES = commands.list_commands(CONTEXT)
# Of a file.
NAME = HOSTILE.replace("/", "") + "\n"
# Of all planes that have any but private ones.
EVERY = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x18000)]))
EVERY += "".join(map(chr, range(0xE0000, 0xE0200)))


# --- the one place


def test_every_character() -> None:
    assert "\n" not in harmless(printable(EVERY)) and "\t" not in printable(EVERY)
    lines = harmless(printable_lines(EVERY))
    assert "\t\n" in lines
    for shown in (printable, printable_lines):
        assert shown("plain, Ä, 漢") == "plain, Ä, 漢"
        # What cannot be printed can be, in the end.
        assert shown("\ud800") == r"\ud800"
        # As it is in a file's name.
        assert shown(os.fsdecode(b"a\xffb")) == r"a\xffb"
    assert harmless(json_line({EVERY: EVERY})).isascii()
    assert json.loads(json_line([EVERY])) == [EVERY]


def test_verbatim() -> None:
    """As it is, but on terminals."""
    assert verbatim(HOSTILE_BYTES, io.StringIO()) == HOSTILE_BYTES
    harmless(verbatim(HOSTILE_BYTES, Tty()))
    latin = io.TextIOWrapper(io.BytesIO(), "latin-1")
    latin.isatty = lambda: True  # type: ignore[method-assign]
    # Of this, UTF-8 would have been a control character there.
    assert verbatim("Û\u2fdb".encode(), latin) == b"\xdb\\u2fdb"


def test_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that are written over have names of devices."""
    err = Tty()
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(progress, "_INTERVAL", -1.0)
    with progress.Progress(HOSTILE, 10) as shown:
        shown.begin()
        shown.update(5)
    said = err.getvalue()
    assert "50%" in said
    for own in (" ...\r", "\r\x1b[K", "\x1b[K", "\r"):
        said = said.replace(own, "", 1)
    harmless(said)


def test_end_of_a_script() -> None:
    """With what an error says, drgn -e ends; Python prints that."""

    def work(out: object) -> None:
        raise DumpError(HOSTILE + "\n")

    with pytest.raises(SystemExit) as caught:
        printing("family", Program(), None, work)
    assert "\n" not in harmless(str(caught.value.code))


def test_helper_that_prints_verbatim(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """To a pipe what the kernel's own file has."""
    kernel = FakeKernel("6.12")
    kernel.ramoops([("console", _ring(HOSTILE_BYTES + b"\n"))])
    pstore_console(kernel.prog)
    assert capfdbinary.readouterr().out == HOSTILE_BYTES + b"\n"
    out = Tty()
    pstore_console(kernel.prog, file=out)
    assert harmless(out.getvalue()).startswith("\\x9b2J\\xff\\xc3")


def _ring(data: bytes) -> bytes:
    from tests.regions import SIG, Ring

    ring = Ring(4096, SIG)
    ring.write(data)
    return ring.image()


# --- names that are given


def _values(name: str) -> list[tuple[str, ...]]:
    command = commands.get_command(CONTEXT, name)
    assert command is not None
    return [
        (option.opts[0], NAME)
        for option in command.params
        if isinstance(option, click.Option) and not option.is_flag
    ]


@pytest.mark.parametrize(
    ("name", "option"),
    [(name, option) for name in NAMES for option in [(), *_values(name)]],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:1]),
)
def test_names(
    name: str,
    option: Sequence[str],
    dump: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of files that are there and are not, and whatever options take."""
    text = tmp_path / NAME
    text.write_text("no dump\n")
    folder = tmp_path / ("folder" + NAME)
    folder.mkdir()
    # Where report.html would be.
    monkeypatch.chdir(tmp_path)
    paths = (dump, text, folder, tmp_path / "none" / NAME)
    there = [word.replace(NAME, str(text)) for word in option]
    for path in (dump,) if option else paths:
        for given in (option, there) if option else ((),):
            said = harmless(at_terminal("drgn-tools", name, *given, path))
            assert "Traceback" not in said
            # One line, but for what is printed.
            if not said.startswith("drgn-tools"):
                assert path == dump


@pytest.mark.parametrize("name", [HOSTILE, "help", "--"])
def test_no_command(name: str) -> None:
    said = harmless(at_terminal("drgn-tools", name, NAME))
    assert said.count("\n") == 1


# --- dumps


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return machine(tmp_path_factory.mktemp("dump") / f"dump{NAME}")


def machine(path: Path, plain: bool = False) -> Path:
    """Everything that a dump says of its kernel drives a terminal."""
    died = f"CPU: 1 PID: 7 Comm: {HOSTILE[:12]} Tainted: {HOSTILE} 7.2.0"
    log = [
        (1, f"Kernel panic - not syncing: {HOSTILE}\nmore"),
        (2, died),
        (3, EVERY[:300]),
    ]
    made = Machine(BY_NAME["4.18"] if plain else NEWEST, ram=((0, 8 * MIB),), log=log)
    if plain:
        made.plain_log(HOSTILE_BYTES * 3 + b"\n")
    names = b"".join(HOSTILE_BYTES[n * 7 :][:64].ljust(65, b"\0") for n in range(6))
    uts = int(made.keys["SYMBOL(init_uts_ns)"], 16) - made.text
    made.write(made.image + uts, names)
    made.loads()
    made.keys["OSRELEASE"] = "6.6" + HOSTILE.replace("\r", "")
    made.keys[f"SYMBOL({HOSTILE})"] = HOSTILE
    write_elf(path, made.loads()[1:], made.notes())
    return path


PRINTED = [
    *("info", "info --json", "dmesg", "dmesg --partial", "verify", "verify --json"),
    *("pages", "pages --json", "pstore", "pstore --json", "extract --dry-run"),
    *("extract --dry-run --json", "extract --verify --sha256 -f -o {out}"),
    *("extract -E --json -f -o {out}", "extract --split {out} {out}2 -f"),
    *("report -f -o {out}.html", "pages --image {out}.svg", "dmesg -f -o {out}"),
    *("ftrace", "oprofile", "zram", "swap", "extract -F", "extract"),
]


def test_all_commands_are_here() -> None:
    assert {one.split()[0] for one in PRINTED} == {*NAMES}


@pytest.mark.parametrize("line", PRINTED)
def test_dump(line: str, dump: Path, tmp_path: Path) -> None:
    name, *words = (word.format(out=tmp_path / NAME) for word in line.split(" "))
    said = harmless(at_terminal("drgn-tools", name, *words, dump))
    assert said and "Traceback" not in said
    if line not in ("extract", "extract -F"):
        # In a pipe, too, but for what is a copy.
        outcome = drgn_tools_forked(name, *words, dump)
        harmless(outcome.stderr)
        if name != "dmesg":
            harmless(outcome.stdout)


@pytest.mark.parametrize(
    "options",
    [
        *(
            "-F --dump-dmesg",
            "-F",
            "-F --dry-run",
            "--mem-usage",
            "-D --message-level 31",
        ),
        *("-i {name}", "-d {name}", "-x {name}", "--{name}", "-L {name}"),
        *("--message-level {name}", "--num-threads {name}", "--reassemble {name}"),
    ],
)
def test_makedumpfile(options: str, dump: Path, tmp_path: Path) -> None:
    words = [word.format(name=NAME) for word in options.split(" ")]
    names = [dump] if {"-F", "--mem-usage"} & {*words} else [dump, tmp_path / NAME]
    said = harmless(at_terminal("drgn-makedumpfile", *words, *names))
    assert said and "Traceback" not in said


def test_plain_log(tmp_path: Path) -> None:
    """What kernels before 3.5 had: in a file and a pipe as makedumpfile writes it."""
    path, out = machine(tmp_path / "vmcore", plain=True), tmp_path / "out"
    raw = HOSTILE_BYTES * 3 + b"\n"
    said = at_terminal("drgn-tools", "dmesg", path)
    assert harmless(said).startswith("\\x9b2J\\xff") and said.count(b"\n") == 1
    at_terminal("drgn-tools", "dmesg", path, "-o", out)
    assert out.read_bytes() == raw
    said = at_terminal("drgn-makedumpfile", "-F", "--dump-dmesg", path)
    assert "\\x9b2J\\xff" in harmless(said)
    makedumpfile_forked("--dump-dmesg", "-f", path, out)
    assert out.read_bytes() == raw


@pytest.mark.parametrize("options", [[], ["--json"], ["--symbols"]])
def test_region(options: list[str], tmp_path: Path) -> None:
    zones = rings(DIVISION)
    by_kind = made(zones)
    text = HOSTILE_BYTES
    by_kind["dmesg"][0].write(b"====6.000043-D\n" + text + b"#1 Part1\n" + text)
    by_kind["console"][0].write(text)
    by_kind["pmsg"][0].write(logcat(0, b"\x05" + text + b"\n\0" + text + b"\0"))
    for n in range(100):
        by_kind["ftrace"][n % 2].write(call(n, n % 2, n, n + 7))
    path, symbols = tmp_path / NAME, tmp_path / "System.map"
    path.write_bytes(region(zones, DIVISION.mem))
    # No white space, which ends a name there.
    name = b"".join(text.split())
    lines = (b"%016x T f%d%s\n" % (TEXT + 64 * n, n, name) for n in range(4000))
    symbols.write_bytes(b"".join(lines))
    if options == ["--symbols"]:
        options.append(str(symbols))
    said = harmless(at_terminal("drgn-tools", "pstore", "--raw", path, *options))
    assert ("\\u001b" if options == ["--json"] else "\\x1b") in said
    if len(options) > 1:
        assert "f1\\x9b2J" in said
    # No tag begins a line.
    assert "\n\\x1b" not in said
