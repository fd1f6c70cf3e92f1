# SPDX-License-Identifier: LGPL-2.1-or-later
"""The mapping benchmark: its program goes where it should, its table says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import mapping
from benchmarks.mapping import SIZES, Pass
from tests.synthetic import MIB, PAGE, Load, write_elf
from tests.vm.bench import BenchError


@pytest.fixture(autouse=True)
def compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing of the user's is used, and nothing left there.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_core(path: Path, qemu: bool = False) -> Path:
    """A core whose largest segment is 31 pages, and is neither first nor last."""
    sizes = {0: 3, MIB: 31, 2 * MIB: 5}
    loads = [Load(paddr, b"m" * (count * PAGE)) for paddr, count in sizes.items()]
    write_elf(path, loads, qemu=qemu)
    return path


def output(milliseconds: int) -> str:
    """What one run prints if all but read() takes the same time."""
    lines = []
    for size in SIZES:
        lines.append(f"read {size} {100 * MIB} 100000000")
        for way in ("touch", "copy"):
            lines.append(f"{way} {size} {100 * MIB} {milliseconds}000000")
        lines.append(f"sparse {size} {10 * MIB} {milliseconds}000000")
    lines.append(f"single {PAGE} {10 * MIB} {2 * milliseconds}000000")
    return "\n".join(lines) + "\n"


def test_parse() -> None:
    log = "[    0.1] Linux 6.1\n" + output(200) + "bench: mapping done\n"
    found = mapping.parse(log.replace("\n", "\r\n"), 1)
    assert len(found) == 4 * len(SIZES) + 1
    assert found[1] == Pass("touch", 4096, 100 * MIB, 200_000_000)
    assert found[-1] == Pass("single", 4096, 10 * MIB, 400_000_000)


@pytest.mark.parametrize("lost", ["copy 65536 ", "single 4096 "])
def test_parse_damaged(lost: str) -> None:
    text = output(200) * 2
    cut = text.replace(lost, f"[    9.9] a word of the kernel\n{lost[2:]}", 1)
    assert len(mapping.parse(text, 2)) == 2 * (4 * len(SIZES) + 1)
    with pytest.raises(ValueError, match=f"1 of 2 runs of {lost}in"):
        mapping.parse(cut, 2)


def test_show() -> None:
    said = mapping.show(mapping.parse(output(200) + output(50) + output(9999), 3))
    lines = said.splitlines()
    assert len(lines) == 2 + len(SIZES) + 2
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        *("4 KiB", "1000", "500", "500", "0.50", "78.12", "2.00")
    ]
    assert lines[9].startswith("|  64 MiB |")
    assert lines[-1].endswith(": 156.25 us a page.")


@pytest.mark.parametrize("qemu", [False, True])
def test_program(tmp_path: Path, qemu: bool) -> None:
    found = mapping.run_file(str(write_core(tmp_path / "core", qemu)), 2)
    # QEMU's segments begin and end within pages of the file.
    pages, wanted = (30, 3) if qemu else (31, 4)
    for one in found:
        dense = one.way in ("read", "touch", "copy")
        assert one.bytes == (pages if dense else wanted) * PAGE, one
        assert one.nanoseconds > 0


def test_program_refuses(tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(b"KDUMP   " + bytes(PAGE))
    with pytest.raises(BenchError, match="mapping: not an ELF core"):
        mapping.run_file(str(path), 1)
    # The end of the file is before its largest segment.
    path.write_bytes(write_core(tmp_path / "core").read_bytes()[: 4 * PAGE])
    with pytest.raises(BenchError, match="mapping: no memory in the file"):
        mapping.run_file(str(path), 1)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    core = write_core(tmp_path / "core")
    mapping.main([str(core), "--no-guest", "--runs", "1"])
    said = capsys.readouterr().out
    assert said.startswith("Machine: ")
    assert said.count("|  64 MiB |") == 1
    assert "/proc/vmcore" not in said
