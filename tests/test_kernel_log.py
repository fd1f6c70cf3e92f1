# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel log: both formats, wrapped, torn and damaged."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from drgn_tools.errors import DumpError
from drgn_tools.kernel_log import LogRecord, log_records, panic_line
from drgn_tools.vmcore import open_vmcore
from tests.synthetic import BY_NAME, MIB, Machine, write_elf

eras = pytest.mark.parametrize("name", ["4.18", "5.10", "6.12", "7.2"])
Lines = list[tuple[int, str]]


def machine_with(name: str, log: Lines) -> Machine:
    return Machine(BY_NAME[name], ram=((0, 6 * MIB),), log=log)


def records(machine: Machine, path: Path) -> list[LogRecord]:
    write_elf(path, machine.loads()[1:], machine.notes())
    with open_vmcore(str(path)) as vmcore:
        assert vmcore.vmcoreinfo is not None
        return list(log_records(vmcore.vmcoreinfo, vmcore.kernel))


@eras
def test_log(name: str, tmp_path: Path) -> None:
    log = [(i * 1000, f"line {i} " + "x" * (i * 7 % 40)) for i in range(10)]
    assert records(machine_with(name, log), tmp_path / "dump") == log


@eras
def test_empty_log(name: str, tmp_path: Path) -> None:
    assert records(machine_with(name, []), tmp_path / "dump") == []


@pytest.mark.parametrize("name", ["5.10", "7.2"])
def test_wrapped_ring(name: str, tmp_path: Path) -> None:
    """The last 16 records, in order, wherever their text lies."""
    log = [(i, f"{i:04d} " + "y" * (i % 5 * 8)) for i in range(100)]
    assert records(machine_with(name, log), tmp_path / "dump") == log[-16:]


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
    texts = [record.text for record in records(machine, tmp_path / "dump")]
    assert texts == (["one", "two", "three"] if there else ["one", "three"])


def test_recycled_descriptor(tmp_path: Path) -> None:
    """One with another's id is being written anew."""
    machine = machine_with("7.2", [(1, "one"), (2, "two")])
    place = machine.log_places["descs"]
    (word,) = struct.unpack("<Q", machine.read(place, 8))
    machine.write(place, struct.pack("<Q", word + 16))
    assert [r.text for r in records(machine, tmp_path / "dump")] == ["two"]


def test_record_without_text(tmp_path: Path) -> None:
    machine = machine_with("7.2", [(1, "one"), (2, "two")])
    machine.write(machine.log_places["descs"] + 8, struct.pack("<QQ", 1, 1))
    assert [r.text for r in records(machine, tmp_path / "dump")] == ["two"]


@eras
def test_text_that_is_no_text(name: str, tmp_path: Path) -> None:
    machine = machine_with(name, [(1, "grüße\nzwei")])
    assert [r.text for r in records(machine, tmp_path / "dump")] == ["grüße\nzwei"]
    raw = machine.read(machine.log_places["text"], 64)
    at = machine.log_places["text"] + raw.index("ü".encode())
    machine.write(at, b"\xff")
    (record,) = records(machine, tmp_path / "dump")
    assert record.text.startswith("gr\ufffd")


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
            try:
                with open_vmcore(str(path)) as vmcore:
                    assert vmcore.vmcoreinfo is not None
                    found = list(log_records(vmcore.vmcoreinfo, vmcore.kernel))
                assert len(found) <= 1024
                outcomes.add("log")
            except DumpError:
                outcomes.add("error")
        with open(path, "r+b") as file:
            file.seek(data + paddr)
            file.write(original)
    assert outcomes == {"log", "error"}


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
    assert panic_line([LogRecord(0, line) for line in lines]) == wanted
