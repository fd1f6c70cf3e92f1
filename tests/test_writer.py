# SPDX-License-Identifier: LGPL-2.1-or-later
"""The same pages as a file, a stream, a set of files, an ELF core, or not at all."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import drgn
import pytest
from elftools.elf.elffile import ELFFile

from drgn_tools import writer
from drgn_tools.codecs import CODECS
from drgn_tools.errors import DumpError, OutputFull
from drgn_tools.extract import Summary, extract
from drgn_tools.formats import elf, flattened
from drgn_tools.pages import excluded_classes, parse_levels
from drgn_tools.rearrange import rearrange, reassemble
from drgn_tools.verify import verify
from drgn_tools.vmcore import open_vmcore
from tests.command import COMMAND, assert_refused, drgn_tools, environment
from tests.synthetic import (
    GENERATIONS,
    MIB,
    PAGE,
    Generation,
    Load,
    Machine,
    populate,
    prstatus,
    read_kdump,
    text_page,
    write_elf,
)


@pytest.fixture(scope="module")
def machine() -> Machine:
    machine = Machine(ram=((0, 24 * MIB), (64 * MIB, 4 * MIB)))
    populate(machine.pages[0], 2048)
    machine.pages[1].free(64 * MIB // PAGE, 8)
    return machine


@pytest.fixture(scope="module")
def dump(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "vmcore"
    write_elf(path, machine.loads(), machine.notes())
    return path


def run(
    source: Path, targets: Sequence[Path], levels: str = "31", **options: Any
) -> Summary:
    settings: dict[str, Any] = {
        "excluded": [excluded_classes(level) for level in parse_levels(levels)],
        "codec": CODECS["zstd"],
        "codec_level": None,
        "jobs": 2,
    }
    return extract(str(source), list(map(str, targets)), **{**settings, **options})


def stream(source: Path, target: Path, **options: Any) -> Summary:
    """Write a stream into a file, as with ``> target``."""
    kept = os.dup(1)
    with target.open("wb") as file:
        os.dup2(file.fileno(), 1)
        try:
            return run(source, [], **options)
        finally:
            os.dup2(kept, 1)
            os.close(kept)


def pages(path: Path) -> dict[int, bytes]:
    return read_kdump(path).pages


@pytest.fixture(scope="module")
def plain(dump: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is written to a file."""
    path = tmp_path_factory.mktemp("plain") / "out"
    run(dump, [path])
    return path


# --- streams ----------------------------------------------------------------------


@pytest.mark.parametrize("codec", [*CODECS, None])
@pytest.mark.parametrize("jobs", [1, 3])
def test_stream(jobs: int, codec: str | None, dump: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"codec": codec and CODECS[codec], "jobs": jobs}
    run(dump, [tmp_path / "file"], **options)
    stream(dump, tmp_path / "stream", **options)
    with (tmp_path / "stream").open("rb") as file:
        rearrange(file.fileno(), str(tmp_path / "made"), False)
    assert pages(tmp_path / "made") == pages(tmp_path / "file")
    assert verify(str(tmp_path / "made"), 1).sound
    # As it is, too.
    with open_vmcore(str(tmp_path / "stream")) as vmcore:
        assert vmcore.dumped_pages == len(pages(tmp_path / "file"))


def test_stream_is_few_records_without_holes(dump: Path, tmp_path: Path) -> None:
    """crash sorts them one by one, and does not know what is in none."""
    stream(dump, tmp_path / "stream", levels="0")
    with (tmp_path / "stream").open("rb") as file:
        found = []
        for record in flattened.records(file.read):
            found.append((record.offset, record.end))
            file.seek(record.size, os.SEEK_CUR)
        assert file.read() == b""
    # 7168 pages in units of 1024, headers, bitmaps, descriptors, checksums.
    assert len(found) < 20
    found.sort()
    assert found[0][0] == 0
    assert all(end == start for (_, end), (start, _) in zip(found, found[1:]))


def test_stream_of_an_elf_core(dump: Path, tmp_path: Path) -> None:
    run(dump, [tmp_path / "file"], elf=True)
    stream(dump, tmp_path / "stream", elf=True)
    with (tmp_path / "stream").open("rb") as file:
        rearrange(file.fileno(), str(tmp_path / "made"), False)
    assert (tmp_path / "made").read_bytes() == (tmp_path / "file").read_bytes()


def test_reader_of_the_stream_is_gone(dump: Path) -> None:
    reader, end = os.pipe()
    os.close(reader)
    kept = os.dup(1)
    os.dup2(end, 1)
    try:
        with pytest.raises(DumpError, match="Broken pipe"):
            run(dump, [])
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(end)


# --- split dumps ------------------------------------------------------------------


@pytest.mark.parametrize("level", ["0", "31"])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_split(count: int, level: str, dump: Path, tmp_path: Path) -> None:
    parts = [tmp_path / str(number) for number in range(count)]
    summary = run(dump, parts, level, jobs=3)
    run(dump, [tmp_path / "whole"], level)
    assert summary.output_size == sum(part.stat().st_size for part in parts)
    reached = shared = 0
    for part in parts:
        with open_vmcore(str(part), part=True) as vmcore:
            assert vmcore.part is not None
            assert vmcore.part.pfn == reached
            reached = vmcore.part.end_pfn
            shared += vmcore.dumped_pages
            # About the same number of pages.
            assert abs(vmcore.dumped_pages - summary.plan.pages / count) <= 1024
        assert verify(str(part), 1).sound
    assert reached == summary.plan.max_mapnr
    assert shared == summary.plan.pages
    reassemble(list(map(str, parts)), str(tmp_path / "made"), False)
    assert pages(tmp_path / "made") == pages(tmp_path / "whole")


def test_more_parts_than_pages(tmp_path: Path) -> None:
    machine = Machine(ram=((0, 8 * MIB),))
    write_elf(tmp_path / "in", machine.loads(), machine.notes())
    parts = [tmp_path / str(number) for number in range(6)]
    run(tmp_path / "in", parts)
    run(tmp_path / "in", [tmp_path / "whole"])
    reassemble(list(map(str, parts)), str(tmp_path / "made"), False)
    assert pages(tmp_path / "made") == pages(tmp_path / "whole")


def test_parts_need_names_of_their_own(dump: Path, tmp_path: Path) -> None:
    with pytest.raises(DumpError, match="different names"):
        run(dump, [tmp_path / "a", tmp_path / "a"])
    with pytest.raises(DumpError, match="cannot be split"):
        run(dump, [tmp_path / "a", tmp_path / "b"], elf=True)
    assert os.listdir(tmp_path) == []


# --- ELF cores --------------------------------------------------------------------


@pytest.mark.parametrize("level", ["0", "1", "31"])
def test_elf(level: str, machine: Machine, dump: Path, tmp_path: Path) -> None:
    target, kdump = tmp_path / "core", tmp_path / "kdump"
    summary = run(dump, [target], level, elf=True)
    run(dump, [kdump], level)
    expected = pages(kdump)
    assert summary.plan.pages == len(expected)
    with open_vmcore(str(target)) as vmcore, open_vmcore(str(dump)) as source:
        assert vmcore.notes == source.notes
        # All memory is there, whether or not it has data.
        assert vmcore.ram_runs == source.ram_runs
        for pfn in machine.pfns():
            page = expected.get(pfn, bytes(PAGE))
            if vmcore.present(pfn, pfn + 1)[0]:
                assert vmcore.read(pfn * PAGE, PAGE) == page
            else:
                assert not any(page)
        # Where the direct map and the kernel's image have them.
        for segment in vmcore.loads:
            (load,) = (
                load
                for load in source.loads
                if load.vaddr <= segment.vaddr < load.vaddr + load.memsz
            )
            assert segment.vaddr - load.vaddr == segment.paddr - load.paddr


def test_elf_of_many_segments(
    dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than the ELF header can count: the first section header does."""
    run(dump, [tmp_path / "few"], elf=True)
    monkeypatch.setattr(writer, "_ELF_GAP", 0)
    monkeypatch.setattr(elf, "_PN_XNUM", 8)
    run(dump, [tmp_path / "many"], elf=True)
    with (
        open_vmcore(str(tmp_path / "few")) as few,
        open_vmcore(str(tmp_path / "many")) as many,
    ):
        assert len(many.loads) >= 8 > 1 + len(few.loads)
        assert many.ram_runs == few.ram_runs
        for run_ in many.data_runs:
            for pfn in range(*run_):
                assert many.read(pfn * PAGE, PAGE) == few.read(pfn * PAGE, PAGE)


def test_elf_that_only_a_section_header_can_count(tmp_path: Path) -> None:
    """drgn's libelf reads what it holds."""
    count = 66_000
    loads = [Load(MIB + 2 * PAGE * n, b"", memsz=PAGE) for n in range(count)]
    for n in (0, 40_000, count - 1):
        loads[n] = Load(loads[n].paddr, text_page(n))
    write_elf(tmp_path / "source", loads, prstatus(1), align=8)
    run(tmp_path / "source", [tmp_path / "core"], "0", elf=True)
    prog = drgn.Program()
    prog.set_core_dump(tmp_path / "core")
    for n in (0, 40_000, count - 1):
        assert prog.read(loads[n].paddr, PAGE, physical=True) == text_page(n)
    with open_vmcore(str(tmp_path / "core")) as vmcore:
        assert [load[:2] for load in vmcore.loads] == [
            (load.paddr, PAGE) for load in loads
        ]
    with (tmp_path / "core").open("rb") as file:
        segments = ELFFile(file).num_segments()
    assert segments == 1 + count


def test_elf_is_sound(tmp_path: Path) -> None:
    """The kernel's image shares its data with the direct map."""
    machine = Machine()
    write_elf(tmp_path / "source", machine.loads(), machine.notes())
    run(tmp_path / "source", [tmp_path / "core"], elf=True)
    assert verify(str(tmp_path / "core"), 1).sound


def test_elf_needs_addresses(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(DumpError, match="virtual addresses"):
        run(plain, [tmp_path / "core"], elf=True)
    assert os.listdir(tmp_path) == []


# --- limits -----------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("limit", [200_000, 1_000_000, 3_000_000])
def test_limit(limit: int, parts: int, dump: Path, plain: Path, tmp_path: Path) -> None:
    targets = [tmp_path / str(number) for number in range(parts)]
    limit //= parts
    summary = run(dump, targets, limit=limit)
    expected = pages(plain)
    found: dict[int, bytes] = {}
    for target in targets:
        assert target.stat().st_size <= limit
        report = verify(str(target), 1)
        assert report.damaged == 0
        if parts == 1:
            found = pages(target)
            assert read_kdump(target).status & 0x8
            assert report.missing == summary.unwritten
    if parts == 1:
        assert len(found) == summary.plan.pages - summary.unwritten < len(expected)
        assert all(page == expected[pfn] for pfn, page in found.items())
    assert summary.incomplete
    assert summary.tried == 0


def test_limit_that_fits(dump: Path, plain: Path, tmp_path: Path) -> None:
    size = plain.stat().st_size
    assert not run(dump, [tmp_path / "a"], limit=size).incomplete
    assert (tmp_path / "a").stat().st_size == size
    # No room for the checksums: the pages matter more.
    summary = run(dump, [tmp_path / "b"], limit=size - 1)
    assert not summary.incomplete
    assert pages(tmp_path / "b") == pages(plain)


def test_limit_of_an_elf_core(dump: Path, tmp_path: Path) -> None:
    summary = run(dump, [tmp_path / "core"], elf=True, limit=5_000_000)
    assert summary.incomplete
    assert (tmp_path / "core").stat().st_size <= 5_000_000
    with (tmp_path / "core").open("rb") as file:
        assert file.read(52)[48] == elf.DUMP_INCOMPLETE
    with open_vmcore(str(tmp_path / "core")) as vmcore:
        assert vmcore.lost_bytes > 0


def test_no_room_for_the_headers(dump: Path, tmp_path: Path) -> None:
    for elf_too in (False, True):
        with pytest.raises(OutputFull, match="limit of 4000 bytes"):
            run(dump, [tmp_path / "out"], limit=4000, elf=elf_too)
    assert os.listdir(tmp_path) == []


def test_next_level(dump: Path, plain: Path, tmp_path: Path) -> None:
    limit = plain.stat().st_size
    summary = run(dump, [tmp_path / "out"], "0,1,31", limit=limit)
    assert (summary.tried, summary.incomplete) == (2, False)
    assert summary.excluded == excluded_classes(31)
    assert os.listdir(tmp_path) == ["out"]
    assert pages(tmp_path / "out") == pages(plain)
    # Not even the last.
    summary = run(dump, [tmp_path / "less"], "0,31", limit=limit // 2)
    assert (summary.tried, summary.incomplete) == (1, True)


@pytest.mark.parametrize("text", ["", "32", "1,", "1,,31", "-1", "1.0", "x", "\uff11"])
def test_no_levels(text: str) -> None:
    with pytest.raises(DumpError, match="levels go from 0 to 31"):
        parse_levels(text)


# --- nothing at all ---------------------------------------------------------------


def test_dry_run(dump: Path, plain: Path, tmp_path: Path) -> None:
    summary = run(dump, [tmp_path / "out"], dry_run=True)
    assert summary.output_size == plain.stat().st_size
    assert os.listdir(tmp_path) == []
    assert run(dump, [], dry_run=True, elf=True).output_size > summary.output_size


# --- the command ------------------------------------------------------------------


def test_command_writes_a_stream(dump: Path, plain: Path, tmp_path: Path) -> None:
    for options in ([], ["-F"]):
        done = subprocess.run(
            [*COMMAND, "extract", *options, dump],
            capture_output=True,
            env=environment(),
        )
        assert done.returncode == 0, done.stderr
        (tmp_path / "stream").write_bytes(done.stdout)
        with (tmp_path / "stream").open("rb") as file:
            rearrange(file.fileno(), str(tmp_path / "made"), True)
        assert pages(tmp_path / "made") == pages(plain)
        assert b"standard output: " in done.stderr


def test_command_and_its_levels(dump: Path, plain: Path, tmp_path: Path) -> None:
    limit = plain.stat().st_size
    out = tmp_path / "out"
    done = drgn_tools("extract", "-d", "1,31", "-L", limit, dump, out)
    assert done.status == 0
    assert "warning: no room at -d 1: taken with -d 31\n" in done.stderr
    done = drgn_tools("extract", "-f", "-d", "1,31", "-L", limit // 2, dump, out)
    assert done.status == 1
    missing = len(read_kdump(out).places) - len(pages(out))
    assert done.stderr.endswith(f"{out} is incomplete: no room for {missing} pages\n")
    assert_refused(drgn_tools("extract", "-d", "1,32", dump, tmp_path / "no"), 2)


def test_command_verifies_and_hashes(dump: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = drgn_tools("extract", "--verify", "--sha256", dump, out)
    assert done.status == 0
    assert f"SHA-256 {hashlib.sha256(out.read_bytes()).hexdigest()}" in done.stderr
    assert f"{out}: sound\n" in done.stderr
    assert_refused(drgn_tools("extract", "--verify", "--dry-run", dump, out), 2)


@pytest.mark.parametrize("generation", GENERATIONS, ids=str)
def test_classes_that_no_page_tells(generation: Generation, tmp_path: Path) -> None:
    """--exclude zsmalloc where no page type says so: nothing is left out."""
    machine = Machine(generation)
    write_elf(tmp_path / "in", machine.loads(), machine.notes())
    options = ("--exclude", "zsmalloc", "--dry-run")
    said = drgn_tools("extract", *options, tmp_path / "in").stderr
    told = generation.name in ("6.12", "7.1", "7.2")
    assert ("warning: zsmalloc is not left out" in said) == (not told)
