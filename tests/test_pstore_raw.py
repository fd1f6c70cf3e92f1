# SPDX-License-Identifier: LGPL-2.1-or-later
"""drgn-tools pstore --raw: what it prints, as text and as JSON, and how it fails."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.command import COMMAND, assert_done, assert_refused, drgn_tools, environment
from tests.regions import TEXT, Division, Ring, record64, region, rings, write_trace
from tests.test_pstore_records import COMPRESSED, LOG, logcat

DIVISION = Division(mem=0x10000, console=0x1000, pmsg=0x1000, ftrace=0x4000, cpus=2)
LAYOUT = "record_size=0x4000,console_size=4k,pmsg_size=0x1000,ftrace_size=16k,cpus=2"
FUNCTIONS = [(TEXT + 64 * n, f"function_{n}") for n in range(4000)]


def call(counter: int, cpu: int, callee: int, caller: int, moved: int = 0) -> bytes:
    """function_<callee> called by function_<caller>."""
    ip, parent = TEXT + 64 * callee + 4, TEXT + 64 * caller + 0x20
    return record64(counter, cpu, ip + moved, parent + moved)


def made(zones: Sequence[tuple[str, Ring]]) -> dict[str, list[Ring]]:
    by_kind: dict[str, list[Ring]] = {}
    for kind, ring in zones:
        by_kind.setdefault(kind, []).append(ring)
    return by_kind


def write_region(path: Path, moved: Sequence[int] = (0,)) -> Path:
    """With a boot for each distance that its kernel was moved by."""
    zones = rings(DIVISION)
    by_kind = made(zones)
    by_kind["dmesg"][0].write(b"====5.000042-C\n" + COMPRESSED["deflate"])
    by_kind["dmesg"][1].write(b"====6.000043-D\nPanic#1 Part1\n<0>\x1b[31mend\n")
    turned = "\u202e\x9b".encode()
    by_kind["console"][0].write(b"console line\n" + turned + b"\nno end")
    by_kind["pmsg"][0].write(logcat(0, b"\x05tag\0message\0"))
    chance = random.Random(1)
    for slide in moved:
        for n in range(100):
            callee, caller = chance.randrange(3000), chance.randrange(3000)
            by_kind["ftrace"][n % 2].write(call(n, n % 2, callee, caller, slide))
    path.write_bytes(region(zones, DIVISION.mem))
    return path


def write_system_map(path: Path) -> Path:
    lines = ["0000000000000000 A fixed_percpu_data\n"]
    lines += [f"{address:016x} T {name}\n" for address, name in FUNCTIONS]
    # Aliases, data, and what is no symbol.
    lines += [f"{FUNCTIONS[0][0]:016x} T __alias_of_0\n", "nonsense\n"]
    lines += [f"{TEXT + 0x1000001:016x} D data\n"]
    path.write_text("".join(sorted(lines)))
    return path


@pytest.mark.parametrize("layout", [[], ["--layout", LAYOUT]])
def test_text(tmp_path: Path, layout: list[str]) -> None:
    path = write_region(tmp_path / "region")
    outcome = drgn_tools("pstore", "--raw", path, *layout)
    assert_done(outcome)
    out = outcome.stdout
    assert LOG.decode() in out
    assert "== dmesg 0: at 5.000042, deflate\nOops#2 Part1\n" in out
    assert "<0>\\x1b[31mend\n" in out
    assert "== console 0\nconsole line\n\\u202e\\x9b\nno end\n" in out
    assert "5.000000999   200   201 W tag: message\n" in out
    assert "== ftrace: boot 0, 100 records\n" in out
    lines = [line for line in out.splitlines() if line.startswith("CPU:")]
    assert [line.split()[1] for line in lines] == [f"ts:{n}" for n in range(100)]
    assert "made by Linux 6.12.107" in out


@pytest.mark.parametrize("layout", [[], ["--layout", LAYOUT]])
def test_json(tmp_path: Path, layout: list[str]) -> None:
    path = write_region(tmp_path / "region", [0, 0x2000000])
    outcome = drgn_tools("pstore", "--raw", path, "--json", "--boot", "all", *layout)
    assert_done(outcome)
    document = json.loads(outcome.stdout)
    assert document["version"] == [6, 12, 107]
    assert document["dmesg"][0]["text"] == LOG.decode()
    assert document["dmesg"][1]["reason"] == "Panic"
    text = "console line\n\u202e\x9b\nno end"
    assert document["console"] == [{"zone": 0, "text": text}]
    assert document["pmsg"][0]["messages"][0]["tag"] == "tag"
    assert [zone["kind"] for zone in document["zones"]].count("ftrace") == 2
    ftrace = document["ftrace"]
    assert [boot["records"] for boot in ftrace["boots"]] == [100, 100]
    assert [record["boot"] for record in ftrace["records"]] == [-1] * 100 + [0] * 100
    assert ftrace["lost_total"] == 0


def test_symbols(tmp_path: Path) -> None:
    """Each boot's kernel was elsewhere."""
    moved = [0x1C000000, 0x3200000]
    path = write_region(tmp_path / "region", moved)
    names = write_system_map(tmp_path / "System.map")
    outcome = drgn_tools("pstore", "--raw", path, "--symbols", names, "--boot", "all")
    assert_done(outcome)
    lines = [line for line in outcome.stdout.splitlines() if line.startswith("CPU:")]
    chance = random.Random(1)
    for number, line in enumerate(lines):
        slide = moved[number // 100]
        callee, caller = chance.randrange(3000), chance.randrange(3000)
        ip, parent = TEXT + 64 * callee + 4 + slide, TEXT + 64 * caller + 32 + slide
        assert line == (
            f"CPU:{number % 2} ts:{number % 100} {ip:x}  {parent:x}  "
            f"function_{callee} <- function_{caller}+0x20/0x40"
        )
    only = drgn_tools("pstore", "--raw", path, "--symbols", names, "--boot", "-1")
    assert only.stdout.count("\nCPU:") == 100
    document = json.loads(
        drgn_tools("pstore", "--raw", path, "--symbols", names, "--json").stdout
    )
    boots = document["ftrace"]["boots"]
    assert [boot["kaslr_offset"] for boot in boots] == moved[::-1]
    assert document["ftrace"]["records"][0]["function"].startswith("function_")


def test_symbols_of_another_kernel(tmp_path: Path) -> None:
    path = write_region(tmp_path / "region")
    other = tmp_path / "System.map"
    chance = random.Random(7)
    address = TEXT
    lines = []
    for n in range(3000):
        address += chance.randrange(100, 3000)
        lines.append(f"{address:016x} T other_{n}\n")
    other.write_text("".join(lines))
    outcome = drgn_tools("pstore", "--raw", path, "--symbols", other)
    assert outcome.status == 0
    assert "the symbols do not fit boot 0" in outcome.stderr
    assert "other_" not in outcome.stdout


def elf_with_symbols(functions: Sequence[tuple[int, str]]) -> bytes:
    """A vmlinux: sections for code, symbols and their names."""
    names = b"\0"
    symbols = bytes(24)
    for address, name in functions:
        symbols += struct.pack("<IBBHQQ", len(names), 0x12, 0, 1, address, 64)
        names += name.encode() + b"\0"
    titles = b"\0.text\0.symtab\0.strtab\0.shstrtab\0"
    parts = [symbols, names, titles]
    offsets = [64]
    for part in parts:
        offsets.append(offsets[-1] + len(part))
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        *(2, 62, 1, 0, 0, offsets[-1], 0, 64, 56, 0, 64, 5, 4),
    )
    sections = bytes(64)
    text = (1, 1, 6, TEXT, 64, 0, 0, 0, 16, 0)
    symtab = (7, 2, 0, 0, offsets[0], len(symbols), 3, 1, 8, 24)
    strtab = (15, 3, 0, 0, offsets[1], len(names), 0, 0, 1, 0)
    shstrtab = (23, 3, 0, 0, offsets[2], len(titles), 0, 0, 1, 0)
    for section in (text, symtab, strtab, shstrtab):
        sections += struct.pack("<IIQQQQIIQQ", *section)
    return header + b"".join(parts) + sections


def test_symbols_of_a_vmlinux(tmp_path: Path) -> None:
    path = write_region(tmp_path / "region", [0x5000000])
    vmlinux = tmp_path / "vmlinux"
    vmlinux.write_bytes(elf_with_symbols(FUNCTIONS))
    names = write_system_map(tmp_path / "System.map")
    outcomes = [
        drgn_tools("pstore", "--raw", path, "--symbols", file)
        for file in (vmlinux, names)
    ]
    assert_done(outcomes[0])
    assert "function_" in outcomes[0].stdout
    assert outcomes[0].stdout == outcomes[1].stdout


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ([], 2),
        (["--raw", "{region}", "dump"], 2),
        (["--layout", "ecc=1", "dump"], 2),
        (["--raw", "{region}", "--symbols", "x", "--symbols", "y"], 2),
        (["--raw", "{region}", "--layout", "nonsense"], 2),
        (["--raw", "{region}", "--boot", "first"], 2),
        (["--raw", "{region}", "--only", "first"], 2),
        (["--raw", "{region}", "--only", "dmesg", "--last", "1"], 2),
        (["--raw", "{region}", "--only", "ftrace", "-o", "x.dat"], 2),
        (["--raw", "{region}", "--layout", "record_size=1g"], 1),
        (["--raw", "/does/not/exist"], 1),
        (["--raw", "/"], 1),
        (["--raw", "{empty}"], 1),
        (["--raw", "{zeros}"], 1),
        (["--raw", "{region}", "--symbols", "/does/not/exist"], 1),
        (["--raw", "{region}", "--symbols", "{zeros}"], 1),
        (["--raw", "{region}", "--symbols", "{elf}"], 1),
    ],
)
def test_failures(tmp_path: Path, arguments: list[str], status: int) -> None:
    files = {"region": write_region(tmp_path / "region")}
    contents = {"empty": b"", "zeros": bytes(4096), "elf": b"\x7fELF" + bytes(100)}
    for name, content in contents.items():
        files[name] = tmp_path / name
        files[name].write_bytes(content)
    wanted = [argument.format(**files) for argument in arguments]
    assert_refused(drgn_tools("pstore", *wanted), status)


def test_selection(tmp_path: Path) -> None:
    path = write_region(tmp_path / "region", [0, 0x2000000])

    def shown(*arguments: str) -> str:
        outcome = drgn_tools("pstore", "--raw", path, *arguments)
        assert_done(outcome)
        return outcome.stdout

    every = shown("--boot", "all")
    ftrace = every[every.index("== ftrace") :]
    assert shown("--boot", "all", "--only", "ftrace") == ftrace
    last = shown("--only=ftrace", "--last=3", "--boot=-1").splitlines()
    assert last[0] == "== ftrace: boot -1, 100 records, the last 3"
    assert last[1:] == ftrace.split("\n== ")[0].splitlines()[-3:]
    both = shown("--only", "pmsg,dmesg")
    assert both == shown("--only", "dmesg", "--only", "pmsg")
    assert [line[:8] for line in both.splitlines() if line[:2] == "=="] == [
        *("== dmesg", "== dmesg"),
        "== pmsg ",
    ]
    document = json.loads(shown("--json", "--only", "zones"))
    assert set(document) == {"layout", "version", "notes", "zones"}
    table = every[: every.index("\n\n")].splitlines()[1:]
    told = shown("--layout", LAYOUT, "--only", "zones").splitlines()[1:]
    assert len(document["zones"]) == len(table) == 6, table
    assert told == table


def test_boots_that_are_not_there(tmp_path: Path) -> None:
    path = write_region(tmp_path / "region", [0, 0x2000000])
    written = tmp_path / "a.dat"
    for more in ([], ["--json"], ["-o", written]):
        for boot in ("-5", "1"):
            argv = ["pstore", "--raw", path, "--boot", boot, *more]
            said = assert_refused(drgn_tools(*argv))
            assert said.endswith("in the function trace; it has boots 0, -1\n")
    assert not written.exists()


def test_what_was_written_is_said(tmp_path: Path) -> None:
    path = write_region(tmp_path / "region", [0, 0x2000000])
    written = tmp_path / "a.dat"
    argv = ["pstore", "--raw", path, "--boot", "all", "-f", "-o", written]
    outcome = drgn_tools(*argv)
    assert (outcome.status, outcome.stdout) == (0, "")
    assert outcome.stderr == f"{written}: 200 records of boots 0, -1\n"
    outcome = drgn_tools(*argv, "--last", "1", "-q")
    assert (outcome.status, outcome.stdout, outcome.stderr) == (0, "", "")


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    path = write_region(tmp_path / "region")
    path.write_bytes(path.read_bytes()[:-0x3000])
    outcome = drgn_tools("pstore", "--raw", path, "--layout", LAYOUT + ",mem_size=64k")
    assert outcome.status == 0
    assert "note: 12288 bytes are missing at the end" in outcome.stderr


def test_a_reader_that_has_enough(tmp_path: Path) -> None:
    zones = rings(DIVISION._replace(mem=0x100000, ftrace=0x80000))
    write_trace(made(zones)["ftrace"], 20_000)
    path = tmp_path / "region"
    path.write_bytes(region(zones, 0x100000))
    layout = LAYOUT.replace("16k", "512k")
    with subprocess.Popen(
        [*COMMAND, "pstore", "--raw", path, "--layout", layout],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""


def test_a_dump_needs_drgn() -> None:
    program = (
        "import sys; sys.modules['drgn'] = None; sys.argv[0] = 'drgn-tools'\n"
        "from drgn_tools.__main__ import main; main()"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, "pstore", "dump"],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert run.returncode == 1
    assert run.stderr.startswith("drgn-tools: reading a dump needs drgn: ")
    assert run.stderr.count("\n") == 1


def test_no_drgn_is_imported(tmp_path: Path) -> None:
    path = write_region(tmp_path / "region")
    program = (
        "import sys; sys.modules['drgn'] = None; sys.argv[0] = 'drgn-tools'\n"
        "from drgn_tools.__main__ import main; main()"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, "pstore", "--raw", str(path)],
        capture_output=True,
        env=environment(),
    )
    assert (run.returncode, run.stderr) == (0, b"")
