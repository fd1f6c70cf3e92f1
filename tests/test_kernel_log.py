# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel log: all its formats, wrapped, torn, damaged and with pages missing."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from drgn_tools.errors import DumpError
from drgn_tools.kernel_log import LogRecord, dump_log, log_records, panic_line
from drgn_tools.vmcore import open_vmcore
from tests.command import COMMAND, Outcome, assert_refused, drgn_tools, environment
from tests.synthetic import (
    BY_NAME,
    MIB,
    PAGE,
    Load,
    LogLine,
    Machine,
    write_elf,
    write_kdump,
)

eras = pytest.mark.parametrize("name", ["4.18", "5.10", "6.12", "7.2"])
rings = pytest.mark.parametrize("name", ["5.10", "7.2"])
Lines = Sequence["tuple[int, str] | LogLine"]


def machine_with(
    name: str, log: Lines, bits: tuple[int, int] = (4, 10), caller: bool = False
) -> Machine:
    return Machine(
        BY_NAME[name], ram=((0, 6 * MIB),), log=log, log_bits=bits, log_caller=caller
    )


def without(machine: Machine, *places: int) -> list[Load]:
    """The machine's memory without the pages at *places*."""
    (memory,) = machine.loads()[1:]
    loads = []
    start = 0
    for place in [*sorted(place & -PAGE for place in places), len(memory.data)]:
        loads.append(Load(start, memory.data[start:place]))
        start = place + PAGE
    return [load for load in loads if len(load.data)]


def records(machine: Machine, path: Path, partial: bool = False) -> list[LogRecord]:
    """All records of a log that must be whole."""
    found, faults = read(machine, path, partial=partial)
    assert faults == []
    return found


def read(
    machine: Machine, path: Path, *missing: int, partial: bool = False
) -> tuple[list[LogRecord], list[str]]:
    """Records of a log in spite of its faults, and those."""
    write_elf(path, without(machine, *missing), machine.notes())
    faults: list[str] = []
    with open_vmcore(str(path)) as vmcore:
        info = vmcore.vmcoreinfo
        assert info is not None
        found = log_records(info, vmcore.kernel, partial=partial, warn=faults.append)
        return list(found), faults


def texts(found: Sequence[LogRecord]) -> list[str]:
    return [record.text for record in found]


def dumped(machine: Machine, path: Path, partial: bool = False) -> bytes:
    write_elf(path, machine.loads()[1:], machine.notes())
    with open_vmcore(str(path)) as vmcore:
        return b"".join(dump_log(vmcore, partial))


@eras
def test_log(name: str, tmp_path: Path) -> None:
    log = [(i * 1000, f"line {i} " + "x" * (i * 7 % 40)) for i in range(10)]
    found = records(machine_with(name, log), tmp_path / "dump")
    assert [(record.timestamp_ns, record.text) for record in found] == log


@eras
def test_empty_log(name: str, tmp_path: Path) -> None:
    assert records(machine_with(name, []), tmp_path / "dump") == []
    assert dumped(machine_with(name, []), tmp_path / "dump") == b""


@rings
@pytest.mark.parametrize("step", [8, 5, 3])
def test_wrapped_ring(name: str, step: int, tmp_path: Path) -> None:
    """The last 16 records, in order, wherever their text lies."""
    log = [(i, f"{i:04d} " + "y" * (i % 5 * step)) for i in range(100)]
    found = records(machine_with(name, log), tmp_path / "dump")
    assert [(record.timestamp_ns, record.text) for record in found] == log[-16:]


@rings
def test_record_that_ends_with_the_buffer(name: str, tmp_path: Path) -> None:
    """At the end of the buffer in newer kernels, at its start in older ones."""
    # 64 bytes each with the id, so that 16 of them fill it.
    log = [(i, f"{i:056d}") for i in range(32)]
    machine = machine_with(name, log)
    at_the_end = machine.read(machine.log_places["text"] + 1024 - 56, 56)
    assert (at_the_end == log[-1][1].encode()) == (name == "7.2")
    count = 16 if name == "7.2" else 15
    found = records(machine, tmp_path / "dump")
    assert texts(found)[-count:] == [text for _, text in log[-count:]]


def test_wrapped_log_buf(tmp_path: Path) -> None:
    machine = machine_with("4.18", [(i, f"{i:04d}" + "z" * 32) for i in range(30)])
    # 52 bytes each, 19 of which fit. The last is in the place of record 10, and
    # the kernel always leaves room for one more.
    machine.write(machine.log_places["log_first_idx"], struct.pack("<I", 12 * 52))
    found = records(machine, tmp_path / "dump")
    assert [record.timestamp_ns for record in found] == list(range(12, 30))


@pytest.mark.parametrize(("state", "there"), [(0, 0), (1, 1), (2, 1), (3, 0)])
def test_states(state: int, there: int, tmp_path: Path) -> None:
    """Reserved and reusable records are not there."""
    machine = machine_with("7.2", [(1, "one"), (2, "two"), (3, "three")])
    place = machine.log_places["descs"] + 24 * 1
    (word,) = struct.unpack("<Q", machine.read(place, 8))
    word = word & (1 << 62) - 1 | state << 62
    machine.write(place, struct.pack("<Q", word))
    found = texts(records(machine, tmp_path / "dump"))
    assert found == (["one", "two", "three"] if there else ["one", "three"])


def test_recycled_descriptor(tmp_path: Path) -> None:
    """One with another's id is being written anew."""
    machine = machine_with("7.2", [(1, "one"), (2, "two")])
    place = machine.log_places["descs"]
    (word,) = struct.unpack("<Q", machine.read(place, 8))
    machine.write(place, struct.pack("<Q", word + 16))
    assert texts(records(machine, tmp_path / "dump")) == ["two"]


@pytest.mark.parametrize("lpos", [1, 3, 8, 2048])
def test_record_without_text(lpos: int, tmp_path: Path) -> None:
    machine = machine_with("7.2", [(1, "one"), (2, "two"), (3, ""), (4, "four")])
    machine.write(machine.log_places["descs"] + 8, struct.pack("<QQ", lpos, lpos))
    assert texts(records(machine, tmp_path / "dump")) == ["two", "four"]


@eras
def test_text_that_is_no_text(name: str, tmp_path: Path) -> None:
    raw = b"gr\xffe\nzwei\0"
    (record,) = records(machine_with(name, [LogLine(1, raw)]), tmp_path / "dump")
    assert record.raw == raw
    assert record.text == "gr\ufffde\nzwei\0"


# What makedumpfile 1.7.8 --dump-dmesg makes of each; tests/vm/test_dmesg.py runs it.
FORMATS: list[tuple[int, bytes | str, bytes]] = [
    (0, "", b""),
    (0, "plain", b"[    0.000000] %splain\n"),
    (1_999_999, "cut, not rounded", b"[    0.001999] %scut, not rounded\n"),
    (123456_000001_000, "late", b"[123456.000001] %slate\n"),
    ((1 << 64) - 1, "last", b"[18446744073.709551] %slast\n"),
    (1, "a\tb\rc\vd\fe ~", b"[    0.000000] %sa\tb\rc\vd\fe ~\n"),
    (1, "\0\a\x1b[0m\x7f", b"[    0.000000] %s\\x00\\x07\\x1b[0m\\x7f\n"),
    (1, "\u00fc", b"[    0.000000] %s\\xffffffc3\\xffffffbc\n"),
    (1, b"\x80\xff\\xff", b"[    0.000000] %s\\xffffff80\\xffffffff\\xff\n"),
    (1, "a\n b\n\n", b"[    0.000000] %sa\n%i b\n%i\n%i\n"),
    (1 << 50, "a\nb", b"[1125899.906842] %sa\n%ib\n"),
]
CALLERS = {
    None: b"",
    0: b"[      T0] ",
    4194303: b"[T4194303] ",
    (1 << 31) - 1: b"[T2147483647] ",
    1 << 31 | 5: b"[      C5] ",
}


@pytest.mark.parametrize("name", ["4.18", "7.2"])
@pytest.mark.parametrize("caller_id", CALLERS)
def test_format(caller_id: int | None, name: str, tmp_path: Path) -> None:
    log = [LogLine(stamp, text, caller_id or 0) for stamp, text, _ in FORMATS]
    machine = machine_with(name, log, caller=caller_id is not None)
    if caller_id is None:
        machine.keys.pop("OFFSET(printk_info.caller_id)", None)
    caller = CALLERS[caller_id]
    lines = []
    for stamp, text, expected in FORMATS:
        if not text and name == "4.18":
            # Only the ring has a way to say that there is no text.
            expected = b"[    0.000000] %s\n"
        indent = b" " * (len(f"[{stamp // 10**9:5}.000000] ") + len(caller))
        lines.append(expected.replace(b"%s", caller).replace(b"%i", indent))
    assert dumped(machine, tmp_path / "dump") == b"".join(lines)


@eras
@pytest.mark.parametrize("latch", [0, 1, 2, 7])
@pytest.mark.parametrize("first", [0, 3, 9])
def test_partial(first: int, latch: int, name: str, tmp_path: Path) -> None:
    log = [(i, f"line {i}") for i in range(10)]
    machine = machine_with(name, log)
    machine.clear_log(first, latch)
    path = tmp_path / "dump"
    assert texts(records(machine, path, partial=True)) == [s for _, s in log[first:]]
    assert texts(records(machine, path)) == [s for _, s in log]


@rings
@pytest.mark.parametrize(
    ("cleared", "expected"),
    [(0, 84), (50, 84), (90, 90), (97, 97), (99, 99), (100, 100), (1 << 63, 100)],
)
def test_partial_of_a_wrapped_ring(
    cleared: int, expected: int, name: str, tmp_path: Path
) -> None:
    """From a record on that is gone, in an earlier lap, the last, or to come."""
    machine = machine_with(name, [(i, f"line {i}") for i in range(100)])
    machine.clear_log(cleared)
    found = records(machine, tmp_path / "dump", partial=True)
    assert [record.timestamp_ns for record in found] == list(range(expected, 100))


@eras
def test_partial_without_a_mark(name: str, tmp_path: Path) -> None:
    machine = machine_with(name, [(1, "one"), (2, "two")])
    machine.clear_log(1)
    machine.keys.pop("SYMBOL(clear_seq)", None)
    machine.keys.pop("SYMBOL(clear_idx)", None)
    found = records(machine, tmp_path / "dump", partial=True)
    assert texts(found) == ["one", "two"]


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 1025, 5000])
def test_plain_text(size: int, tmp_path: Path) -> None:
    written = bytes(i % 251 for i in range(size))
    machine = machine_with("4.18", [])
    machine.plain_log(written)
    assert dumped(machine, tmp_path / "dump") == written[-1024:]
    machine.write(machine.log_places["log_buf_len"], struct.pack("<I", 1000))
    with pytest.raises(DumpError, match="log_buf_len is 1000"):
        dumped(machine, tmp_path / "dump")


def test_plain_text_with_a_hole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = machine_with("4.18", [])
    machine.plain_log(b"a" * PAGE + b"b" * PAGE + b"c" * 100, size=4 * PAGE)
    path = tmp_path / "dump"
    hole = machine.log_places["text"] + PAGE
    write_elf(path, without(machine, hole), machine.notes())
    with open_vmcore(str(path)) as vmcore:
        assert b"".join(dump_log(vmcore)) == b"a" * PAGE + b"c" * 100
    said = capsys.readouterr().err
    assert said == "warning: 4096 bytes of the kernel log could not be read\n"


# 512 records in 32 KiB: 3 pages of descriptors, 11 of infos, 8 of text.
LONG = [(i, f"line {i} " + "x" * (i * 7 % 40)) for i in range(500)]


@rings
@pytest.mark.parametrize("place", ["descs", "infos", "text"])
def test_ring_with_a_hole(place: str, name: str, tmp_path: Path) -> None:
    """What is in the other pages is there, in order, and the rest is told."""
    machine = machine_with(name, LONG, (9, 15))
    hole = machine.log_places[place] + PAGE
    found, faults = read(machine, tmp_path / "dump", hole)
    numbers = [record.timestamp_ns for record in found]
    assert numbers == sorted(set(numbers))
    assert [(r.timestamp_ns, r.text) for r in found] == [LONG[i] for i in numbers]
    lost = len(LONG) - len(found)
    per_page = {"descs": PAGE // 24, "infos": PAGE // 88, "text": PAGE // 48}[place]
    assert per_page - 2 <= lost <= per_page * 2
    assert faults == [
        f"{lost} records of the kernel log could not be read, the first because "
        f"physical address {hole:#x} is not in the dump"
    ]


@rings
def test_ring_without_its_text(name: str, tmp_path: Path) -> None:
    machine = machine_with(name, [(1, "one"), (2, "two")])
    found, (fault,) = read(machine, tmp_path / "dump", machine.log_places["text"])
    assert found == []
    assert fault.startswith("2 records of the kernel log could not be read")


def test_log_buf_with_a_hole(tmp_path: Path) -> None:
    """Where the next record is, nobody knows then."""
    machine = machine_with("4.18", LONG, (9, 15))
    hole = machine.log_places["text"] + PAGE
    found, faults = read(machine, tmp_path / "dump", hole)
    assert [(r.timestamp_ns, r.text) for r in found] == LONG[: len(found)]
    assert len(found) > 60
    why = f"physical address {hole:#x} is not in the dump"
    assert faults[-1] == f"the kernel log breaks off because {why}"


def test_log_buf_with_a_hole_in_a_text(tmp_path: Path) -> None:
    log = [(1, "x" * 4000), (2, "y" * (PAGE + 500)), (3, "three")]
    machine = machine_with("4.18", log, (9, 15))
    hole = machine.log_places["text"] + PAGE
    found, (fault,) = read(machine, tmp_path / "dump", hole)
    assert [record.timestamp_ns for record in found] == [1, 3]
    assert fault.startswith("1 records of the kernel log could not be read")


@rings
@pytest.mark.parametrize("tail", [0, 1, 1 << 20, (1 << 64) - 1])
def test_more_ids_than_room(tail: int, name: str, tmp_path: Path) -> None:
    """The last ones that there is room for."""
    machine = machine_with(name, [(i, f"line {i}") for i in range(20)])
    # tail_id.
    machine.write(machine.log_places["ring"] + 32, struct.pack("<Q", tail))
    found, faults = read(machine, tmp_path / "dump")
    assert texts(found) == [f"line {i}" for i in range(4, 20)]
    assert faults == ["the kernel log is damaged: more records than there is room for"]


@rings
def test_records_that_share_their_text(name: str, tmp_path: Path) -> None:
    """So that a small ring cannot make a log without end."""
    machine = machine_with(name, [(i, "x") for i in range(16)])
    for index in range(16):
        at = machine.log_places["descs"] + 24 * index + 8
        machine.write(at, struct.pack("<QQ", 0, 1016))
        machine.write(
            machine.log_places["infos"] + 88 * index + 16, struct.pack("<H", 900)
        )
    found, faults = read(machine, tmp_path / "dump")
    assert len(found) == 1
    assert faults == ["the kernel log is damaged: records share their text"]


@rings
@pytest.mark.parametrize(("at", "bits"), [(0, 24), (0, 1 << 31), (48, 29), (48, 99)])
def test_impossible_rings(at: int, bits: int, name: str, tmp_path: Path) -> None:
    machine = machine_with(name, [(1, "one")])
    machine.write(machine.log_places["ring"] + at, struct.pack("<I", bits))
    with pytest.raises(DumpError, match="impossible ring sizes"):
        records(machine, tmp_path / "dump")


@rings
@pytest.mark.parametrize("begin", [0, 8, 1016])
@pytest.mark.parametrize("length", [5, 0xFFFF])
def test_impossible_blocks(begin: int, length: int, name: str, tmp_path: Path) -> None:
    """A block that is too small for its text, or for its id: nothing beside it."""
    machine = machine_with(name, [(1, "one" * 20), (2, "two")])
    descs, infos = machine.log_places["descs"], machine.log_places["infos"]
    machine.write(descs + 8, struct.pack("<QQ", begin, begin + 4))
    machine.write(infos + 16, struct.pack("<H", length))
    assert texts(records(machine, tmp_path / "dump")) == ["", "two"]


@pytest.mark.parametrize(
    ("length", "fault"),
    [
        (1, "an impossible record"),
        (15, "an impossible record"),
        (1020, "an impossible record"),
        (0, "its records lead nowhere"),
    ],
)
def test_impossible_log_buf_records(length: int, fault: str, tmp_path: Path) -> None:
    machine = machine_with("4.18", [(1, "one"), (2, "two"), (3, "three")])
    at = machine.log_places["text"] + machine.log_indexes[1] + 8
    machine.write(at, struct.pack("<H", length))
    found, faults = read(machine, tmp_path / "dump")
    assert texts(found)[0] == "one"
    assert len(found) < 100
    assert faults == [f"the kernel log is damaged: {fault}"]


def test_log_buf_text_beyond_its_record(tmp_path: Path) -> None:
    machine = machine_with("4.18", [(1, "four"), (2, "two")])
    at = machine.log_places["text"] + 10
    machine.write(at, struct.pack("<H", 0xFFFF))
    assert texts(records(machine, tmp_path / "dump")) == ["four", "two"]


@eras
def test_damaged_log(name: str, tmp_path: Path) -> None:
    """Any bytes in any of its tables: records or one error, and an end."""
    log = [(i * 1000, f"line {i}") for i in range(12)]
    random = np.random.default_rng(0)
    machine = machine_with(name, log)
    path = tmp_path / "dump"
    write_elf(path, machine.loads()[1:], machine.notes())
    data = path.stat().st_size - 6 * MIB
    sizes = {"descs": 384, "infos": 1408, "text": 1024, "ring": 88}
    outcomes = set()
    for place, paddr in machine.log_places.items():
        size = sizes.get(place, 4)
        original = machine.read(paddr, size)
        for _ in range(60):
            changed = bytearray(original)
            for at in random.integers(0, size, 4).tolist():
                changed[at] = int(random.choice([0, 1, 0x7F, 0x80, 0xFF]))
            with open(path, "r+b") as file:
                file.seek(data + paddr)
                file.write(changed)
            faults: list[str] = []
            try:
                with open_vmcore(str(path)) as vmcore:
                    pieces = list(dump_log(vmcore, warn=faults.append))
                    pieces += dump_log(vmcore, True, warn=faults.append)
                assert len(pieces) <= 2048
                assert len(b"".join(pieces)) < 1 << 16
                outcomes.add("damaged log" if faults else "log")
            except DumpError:
                outcomes.add("error")
        with open(path, "r+b") as file:
            file.seek(data + paddr)
            file.write(original)
    assert outcomes == {"log", "damaged log", "error"}


@eras
def test_no_log(name: str, tmp_path: Path) -> None:
    machine = machine_with(name, [(1, "one")])
    for key in list(machine.keys):
        if "prb" in key or "log_buf" in key:
            del machine.keys[key]
    with pytest.raises(DumpError, match="VMCOREINFO lacks"):
        records(machine, tmp_path / "dump")


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        ([], None),
        (["all is well"], None),
        (
            ["BUG: unable to handle page fault", "Kernel panic - not syncing: Fatal"],
            "Kernel panic - not syncing: Fatal",
        ),
        (["sysrq: Trigger a crash", "more"], "sysrq: Trigger a crash"),
        (["kernel BUG at mm/slub.c:1!\nfoo"], "kernel BUG at mm/slub.c:1!"),
        # The last one is what it died of.
        (
            ["Kernel panic - not syncing: a", "Kernel panic - not syncing: b"],
            "Kernel panic - not syncing: b",
        ),
    ],
)
def test_panic_line(lines: list[str], wanted: str | None) -> None:
    assert panic_line([LogRecord(0, line.encode()) for line in lines]) == wanted


# The command

WILD = [LogLine(1000, b"gr\xfc\xdfe\n\0", 7), LogLine(2000, "two", 1 << 31 | 1)]


def run(*arguments: object) -> subprocess.CompletedProcess[bytes]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, env=environment())


@pytest.mark.parametrize("kind", ["elf", "kdump"])
def test_command(kind: str, tmp_path: Path) -> None:
    machine = machine_with("7.2", WILD)
    machine.clear_log(1)
    path = tmp_path / "dump"
    if kind == "elf":
        write_elf(path, machine.loads(), machine.notes())
    else:
        pages = {pfn: machine.page(pfn) for pfn in machine.pfns()}
        write_kdump(path, pages, machine.notes())
    second = b"[    0.000002] [      C1] two\n"
    first = b"[    0.000001] [      T7] gr\\xfffffffc\\xffffffdfe\n"
    first += b" " * 26 + b"\\x00\n"
    done = run("dmesg", path)
    assert (done.returncode, done.stdout, done.stderr) == (0, first + second, b"")
    done = run("dmesg", "--partial", path)
    assert (done.returncode, done.stdout, done.stderr) == (0, second, b"")


def test_command_on_an_incomplete_log(tmp_path: Path) -> None:
    """All that there is, and status 1."""
    machine = machine_with("7.2", LONG, (9, 15))
    path = tmp_path / "dump"
    hole = machine.log_places["text"] + PAGE
    write_elf(path, without(machine, hole), machine.notes())
    done = run("dmesg", path)
    assert done.returncode == 1
    assert done.stdout.startswith(b"[    0.000000] [      T0] line 0 \n")
    assert b" line 499 " in done.stdout
    assert done.stdout.count(b"\n") > 300
    said = done.stderr.decode()
    assert said.startswith(f"drgn-tools: {path}: the log is incomplete: ")
    assert said.count("\n") == 1
    info = drgn_tools("info", path)
    assert info.status == 0
    assert "panic:       none in what can be read of the log (" in info.stdout


def test_command_without_a_log(tmp_path: Path) -> None:
    machine = machine_with("7.2", WILD)
    path = tmp_path / "dump"
    loads = without(machine, machine.log_places["ring"])
    write_elf(path, loads, machine.notes())
    assert "is not in the dump" in assert_refused(drgn_tools("dmesg", path))
    write_elf(path, machine.loads())
    assert "has no VMCOREINFO" in assert_refused(drgn_tools("dmesg", path))
    assert_refused(drgn_tools("dmesg", tmp_path / "nothing"))
    assert_refused(drgn_tools("dmesg"), 2)


def test_command_with_stdout_closed(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    machine = machine_with("7.2", WILD)
    write_elf(path, machine.loads(), machine.notes())
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, "dmesg", str(path)]
    done = subprocess.run(command, capture_output=True, env=environment(), text=True)
    outcome = Outcome(done.returncode, done.stdout, done.stderr)
    assert "cannot print" in assert_refused(outcome)
