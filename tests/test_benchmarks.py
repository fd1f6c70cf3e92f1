# SPDX-License-Identifier: LGPL-2.1-or-later
"""The benchmarks run, and say what they should; not how fast anything is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as everything
from benchmarks import codecs, decompress, extract, profile, report
from drgn_tools.codecs import CODECS
from drgn_tools.vmcore import open_vmcore
from tests.synthetic import Machine, write_elf


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    machine = Machine()
    path = tmp_path_factory.mktemp("dump") / "vmcore"
    write_elf(path, machine.loads(), machine.notes())
    return path


def test_report_table() -> None:
    assert report.table(("name", "us>"), [("a", "1.5"), ("long name", "10.0")]) == (
        "| name      |   us |\n"
        "| --------- | ---: |\n"
        "| a         |  1.5 |\n"
        "| long name | 10.0 |"
    )


def test_codecs_sample(dump: Path) -> None:
    with open_vmcore(str(dump)) as vmcore:
        pages = codecs.sample(vmcore, 20)
        assert len(pages) == 20
        assert all(len(page) == 4096 and any(page) for page in pages)
        assert codecs.sample(vmcore, 20) == pages
        assert len(codecs.sample(vmcore, 1 << 20)) < vmcore.max_pfn


def test_codecs(dump: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codecs.main([str(dump), "--pages", "30", "--rounds", "1"])
    said = capsys.readouterr().out
    assert said.startswith("Machine: ")
    for name in CODECS:
        # The project's own choice is always there.
        assert f"| {name:<6} | drgn_tools.codecs" in said


def test_decompress(dump: Path, capsys: pytest.CaptureFixture[str]) -> None:
    decompress.main([str(dump), "--pages", "30", "--runs", "1"])
    said = capsys.readouterr().out
    for algorithm, _, readers in decompress.CASES:
        for name in readers:
            assert f"| {algorithm:<9} | {name:<21} |" in said


def test_codecs_not_installed() -> None:
    def make() -> codecs.Pair:
        raise ImportError

    absent = codecs.Candidate("zstd", "none such", "none-such", make)
    assert codecs.measure([bytes(4096)], [absent], 1) == ([], [absent])


def test_codecs_wrong() -> None:
    def make() -> codecs.Pair:
        return lambda page: b"", lambda data: b""

    wrong = codecs.Candidate("zstd", "wrong", None, make)
    with pytest.raises(ValueError, match="wrong does not give back"):
        codecs.measure([bytes(4096)], [wrong], 1)


def test_extract(
    dump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # In makedumpfile's place: this project's own, which takes the same options.
    peer = f"{sys.executable} -m drgn_tools extract"
    extract.main(
        [
            *(str(dump), "--runs", "2", "--levels", "31", "--codecs", "zstd"),
            *("--threads", "0", "--jobs", "1,2"),
            *("--peer", peer, "--output", str(tmp_path)),
        ]
    )
    said = capsys.readouterr().out
    assert "| zstd  | makedumpfile     |" in said
    assert "| zstd  | extract --jobs 1 |" in said
    assert list(tmp_path.iterdir()) == []


def test_extract_contenders() -> None:
    found = extract.contenders(["peer"], [0, 1, 2], [1, 2])
    assert [(c.title, c.ours, c.cpus) for c in found] == [
        ("makedumpfile", False, None),
        ("makedumpfile, 1 threads", False, None),
        ("makedumpfile, 2 threads", False, None),
        ("extract --jobs 1", True, 1),
        ("extract --jobs 2", True, None),
    ]
    assert found[2].command == ("peer", "--num-threads", "2")
    assert [c.ours for c in extract.contenders([], [0], [3])] == [True]


def test_extract_fails(tmp_path: Path) -> None:
    broken = extract.Contender("broken", False, ("false",))
    with pytest.raises(subprocess.CalledProcessError):
        extract.run(broken, __file__, CODECS["lzo"], 31, tmp_path)


def test_extract_peer_fails(dump: Path, tmp_path: Path) -> None:
    broken = extract.Contender("makedumpfile", False, ("false",))
    found = extract.measure([broken], str(dump), CODECS["lzo"], 31, 2, tmp_path)
    assert len(found[broken].failures) == 2
    assert extract.rows(found, CODECS["lzo"], 31)[0][-1] == "0, 2 failed"


def test_profile(dump: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile.main([str(dump), "--runs", "1", "--codecs", "zlib", "--levels", "31"])
    *_, head, _, row = capsys.readouterr().out.splitlines()
    titles = [cell.strip() for cell in head.split("|")]
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[titles.index("codec")] == "zlib"
    shares = [float(cell.split("(")[1][:-2]) for cell in cells if "(" in cell]
    assert len(shares) == len(profile.STEPS)
    assert sum(shares) == pytest.approx(100, abs=len(shares))


def test_all_of_them() -> None:
    """python -m benchmarks leaves none out."""
    folder = Path(everything.__file__).parent
    texts = {path.stem: path.read_text() for path in folder.glob("*.py")}
    commands = {name for name, text in texts.items() if "--runs" in text}
    assert set(everything.NAMES) == commands | {"codecs"}
