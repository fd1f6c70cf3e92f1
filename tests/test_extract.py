# SPDX-License-Identifier: LGPL-2.1-or-later
"""What extract writes, read by drgn and by a plain reader of the format."""

from __future__ import annotations

import faulthandler
import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import drgn
import numpy as np
import pytest

from drgn_tools.checksums import read_trailer
from drgn_tools.codecs import CODECS
from drgn_tools.errors import DumpError
from drgn_tools.extract import Summary, extract
from drgn_tools.pages import PageClass, excluded_classes
from drgn_tools.vmcore import open_vmcore
from drgn_tools.workers import SharedBytes
from tests.synthetic import (
    MIB,
    PAGE,
    KdumpFile,
    Load,
    Machine,
    populate,
    read_kdump,
    vmcoreinfo_text,
    write_elf,
    write_kdump,
)


def run(
    source: Path,
    target: Path,
    *,
    level: int = 31,
    codec: str = "zstd",
    jobs: int = 1,
    partial: bool = False,
    force: bool = False,
) -> Summary:
    return extract(
        str(source),
        [str(target)],
        excluded=[excluded_classes(level)],
        codec=CODECS[codec],
        codec_level=CODECS[codec].default_level,
        jobs=jobs,
        partial=partial,
        force=force,
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


def wanted(machine: Machine, level: int) -> dict[int, bytes]:
    leave_out = excluded_classes(level)
    return {
        pfn: machine.page(pfn)
        for pfn in machine.pfns()
        if machine.expected(pfn) not in leave_out
    }


def check_file(path: Path, level: int) -> KdumpFile:
    """A file that any reader of the format takes."""
    found = read_kdump(path)
    spans = sorted({(offset, size) for offset, size, _ in found.places.values()})
    for (offset, size), (following, _) in zip(spans, spans[1:]):
        assert offset + size <= following
    # Behind the data is the table of checksums.
    raw = path.read_bytes()
    trailer = read_trailer(lambda size, at: raw[at : at + size], len(raw))
    assert trailer is not None
    assert trailer.offset == sum(spans[-1])
    assert found.exists.issuperset(found.places)
    assert set(found.pages) == set(found.places)
    zeros = [pfn for pfn, page in found.pages.items() if not any(page)]
    if level & 1:
        # All share the first page of data, which is not compressed.
        assert {found.places[pfn] for pfn in zeros} <= {(spans[0][0], PAGE, 0)}
    else:
        assert len({found.places[pfn] for pfn in zeros}) == len(zeros)
    return found


# --- every codec, any number of processes -----------------------------------------


@pytest.mark.parametrize("jobs", [1, 2, 3, 7])
@pytest.mark.parametrize("codec", CODECS)
def test_drgn_reads_what_was_there(
    machine: Machine, dump: Path, codec: str, jobs: int, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    summary = run(dump, target, codec=codec, jobs=jobs)
    expected = wanted(machine, 31)

    found = check_file(target, 31)
    assert found.pages == expected
    assert found.exists == set(machine.pfns())
    assert {flags for _, _, flags in found.places.values()} == {0, CODECS[codec].flag}
    assert summary.zero_pages == sum(not any(page) for page in expected.values())
    assert summary.output_size == target.stat().st_size
    assert summary.missing_pages == 0

    prog = drgn.Program()
    prog.set_core_dump(str(target))
    assert prog["UTS_RELEASE"].string_() == machine.keys["OSRELEASE"].encode()
    for pfn, page in expected.items():
        assert prog.read(pfn * PAGE, PAGE, physical=True) == page
    for pfn in machine.pfns()[::7]:
        if pfn not in expected:
            with pytest.raises(drgn.FaultError):
                prog.read(pfn * PAGE, PAGE, physical=True)
    # And its virtual memory, through the page tables in the dump.
    assert prog.read(machine.page_offset + 3 * MIB, PAGE) == machine.page(768)


@pytest.mark.parametrize("level", [0, 1, 2, 8, 16, 23, 30])
def test_levels(machine: Machine, dump: Path, level: int, tmp_path: Path) -> None:
    target = tmp_path / "out"
    run(dump, target, level=level, jobs=2)
    found = check_file(target, level)
    assert found.pages == wanted(machine, level)
    assert found.dump_level == level


def test_headers(machine: Machine, dump: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    run(dump, target, codec="lzo")
    found = read_kdump(target)
    assert found.status == 2
    assert found.dump_level == 31
    assert found.nr_cpus == 2
    assert found.timestamp == 1700000000
    assert found.utsname == machine.utsname
    assert found.vmcoreinfo == vmcoreinfo_text(machine.keys)
    with open_vmcore(str(target)) as vmcore:
        assert vmcore.notes == machine.notes()
        assert vmcore.header is not None
        assert vmcore.header.phys_base == machine.phys_base


def test_output_is_private_and_alone(dump: Path, tmp_path: Path) -> None:
    """Nobody else may read it, whatever the umask; no other file is left."""
    target = tmp_path / "out"
    old = os.umask(0)
    try:
        run(dump, target, jobs=2)
    finally:
        os.umask(old)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["out"]


def test_force_replaces(machine: Machine, dump: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_text("precious")
    with pytest.raises(DumpError, match="exists"):
        run(dump, target)
    assert target.read_text() == "precious"
    run(dump, target, force=True)
    assert read_kdump(target).pages == wanted(machine, 31)
    assert os.listdir(tmp_path) == ["out"]


def test_incompressible_pages_are_raw(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 256, 8 * PAGE, np.uint8).tobytes()
    source, target = tmp_path / "vmcore", tmp_path / "out"
    write_elf(source, [Load(MIB, data)])
    for codec in CODECS:
        run(source, target, level=1, codec=codec, force=True)
        found = check_file(target, 1)
        assert {place[1:] for place in found.places.values()} == {(PAGE, 0)}
        assert b"".join(found.pages.values()) == data


def test_nothing_to_keep(tmp_path: Path) -> None:
    source, target = tmp_path / "vmcore", tmp_path / "out"
    write_elf(source, [Load(MIB, b"", memsz=8 * PAGE)])
    for level in (0, 1):
        for jobs in (1, 4):
            run(source, target, level=level, jobs=jobs, force=True)
            found = read_kdump(target)
            assert not found.places
            assert found.exists == set(range(256, 264))


def test_sparse_and_high_memory(tmp_path: Path) -> None:
    """Small pieces of memory far apart: the bitmaps are mostly holes."""
    source, target = tmp_path / "vmcore", tmp_path / "out"
    random = np.random.default_rng(0)
    starts = [0, 5 * PAGE, 1 << 32, (1 << 38) + 3 * PAGE, (1 << 40) - PAGE]
    loads = [
        Load(start, random.integers(0, 4, PAGE, np.uint8).tobytes()) for start in starts
    ]
    write_elf(source, loads)
    run(source, target, level=0, jobs=3)
    with open_vmcore(str(target)) as vmcore:
        for load in loads:
            assert vmcore.read(load.paddr, PAGE) == load.data
        assert [run.pfn * PAGE for run in vmcore.ram_runs] == starts
    # 64 MiB of bitmaps, and next to none of it on the disk.
    assert target.stat().st_size > 64 * MIB
    assert target.stat().st_blocks * 512 < 2 * MIB


# --- further filtering ------------------------------------------------------------


@pytest.mark.parametrize("codec", ["raw", "zlib", "lzo", "snappy", "zstd"])
def test_kdump_in_kdump_out(machine: Machine, codec: str, tmp_path: Path) -> None:
    """makedumpfile's file at level 1, filtered to 31."""
    source, target = tmp_path / "dump", tmp_path / "out"
    machine.loads()
    pages = {pfn: machine.page(pfn) for pfn in machine.pfns()}
    write_kdump(source, pages, machine.notes(), codec=codec, dump_level=1)
    run(source, target, level=31, jobs=2)
    found = check_file(target, 31)
    assert found.pages == wanted(machine, 31)
    assert found.exists == set(machine.pfns())
    assert found.vmcoreinfo == vmcoreinfo_text(machine.keys)


def test_filtered_stays_filtered(machine: Machine, dump: Path, tmp_path: Path) -> None:
    """What the input left out does not come back, and the level says so."""
    first, second = tmp_path / "first", tmp_path / "second"
    run(dump, first, level=9)
    run(first, second, level=16)
    found = check_file(second, 25)
    assert found.dump_level == 25
    assert found.pages == wanted(machine, 25)
    assert found.exists == set(machine.pfns())


def test_incomplete_stays_incomplete(machine: Machine, tmp_path: Path) -> None:
    source, target = tmp_path / "dump", tmp_path / "out"
    machine.loads()
    pages = {pfn: machine.page(pfn) for pfn in machine.pfns()}
    missing = [700, 701, 5000]
    for pfn in missing:
        del pages[pfn]
    write_kdump(source, pages, machine.notes(), missing=missing)
    run(source, target, level=31)
    found = read_kdump(target)
    assert found.status & 0x8
    expected = wanted(machine, 31)
    assert found.pages == {p: page for p, page in expected.items() if p in pages}


def test_partial(machine: Machine, tmp_path: Path) -> None:
    source, target = tmp_path / "vmcore", tmp_path / "out"
    write_elf(source, machine.loads(), machine.notes())
    lost = 5 * MIB + 100
    os.truncate(source, source.stat().st_size - lost)
    with pytest.raises(DumpError, match="cut short"):
        run(source, target)
    summary = run(source, target, level=1, partial=True, jobs=2)
    assert summary.missing_pages == -(-lost // PAGE)
    found = check_file(target, 1)
    assert found.status & 0x8
    # The page that is cut is lost, for its rest is not zero.
    end_pfn = (23 * MIB - 100) // PAGE
    expected = {p: page for p, page in wanted(machine, 1).items() if p < end_pfn}
    assert end_pfn in wanted(machine, 1)
    assert found.pages == expected
    prog = drgn.Program()
    prog.set_core_dump(str(target))
    assert prog.read(3 * MIB, PAGE, physical=True) == machine.page(768)
    with pytest.raises(drgn.FaultError):
        prog.read(64 * MIB, PAGE, physical=True)


def test_poisoned_and_offline_are_not_read(
    machine: Machine, dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To touch them may stop the machine: not even at level 0."""
    # By whichever process.
    seen = SharedBytes(machine.pfns()[-1] + 1).array
    from drgn_tools import vmcore as module

    real = module._ElfVmcore.pages

    def watch(self: module._ElfVmcore, pfns: module.Pfns) -> Iterator[bytes]:
        seen[pfns] = 1
        return real(self, pfns)

    monkeypatch.setattr(module._ElfVmcore, "pages", watch)
    run(dump, tmp_path / "out", level=0)
    bad = {
        pfn
        for pfn in machine.pfns()
        if machine.expected(pfn) in (PageClass.HWPOISON, PageClass.OFFLINE)
    }
    assert len(bad) > 512
    assert set(np.flatnonzero(seen).tolist()) == set(machine.pfns()) - bad


@pytest.mark.parametrize(("users", "level"), [(0, 2), (1200, 2), (1300, 1)])
def test_zlib_level_follows_what_is_kept(
    users: int, level: int, tmp_path: Path
) -> None:
    """The kernel's own pages take a higher one to be as small as zlib's."""
    source, target = tmp_path / "vmcore", tmp_path / "out"
    machine = Machine(ram=((0, 6 * MIB),))
    for pfn in range(1536 - users, 1536):
        machine.pages[0].anon(pfn)
    write_elf(source, machine.loads(), machine.notes())
    extract(
        str(source),
        [str(target)],
        excluded=[excluded_classes(1)],
        codec=CODECS["zlib"],
        codec_level=None,
        jobs=1,
    )
    compress = CODECS["zlib"].compressor(level)
    found = read_kdump(target)
    sizes = {p: size for p, (_, size, flags) in found.places.items() if flags}
    assert sizes == {pfn: len(compress(found.pages[pfn])) for pfn in sizes}
    other = CODECS["zlib"].compressor(3 - level)
    assert sizes != {pfn: len(other(found.pages[pfn])) for pfn in sizes}


# --- the same, however the work is shared -----------------------------------------


def pages_and_sizes(path: Path) -> dict[int, tuple[bytes, int, int]]:
    found = read_kdump(path)
    return {p: (page, *found.places[p][1:]) for p, page in found.pages.items()}


@pytest.mark.parametrize("item", [1, 3, 1024])
@pytest.mark.parametrize("jobs", [2, 3, 5, 16])
def test_same_output_however_it_is_shared(
    dump: Path, jobs: int, item: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Odd numbers of jobs, tiny pieces, writers that are slow now and then."""
    from drgn_tools import plan
    from drgn_tools import writer as module

    alone, shared = tmp_path / "alone", tmp_path / "shared"
    run(dump, alone, level=1)

    real = os.pwrite

    def slow(fd: int, data: memoryview, offset: int) -> int:
        if os.getpid() % 3 == 0:
            time.sleep(0.001)
        # As if interrupted: not all of it at once.
        return real(fd, data[: max(1, len(data) // 2)], offset)

    monkeypatch.setattr(os, "pwrite", slow)
    monkeypatch.setattr(module, "_ITEM_PAGES", item)
    monkeypatch.setattr(plan, "_CELLS_PER_WORKER", 0.01)
    summary = run(dump, shared, level=1, jobs=jobs)
    monkeypatch.undo()
    assert pages_and_sizes(shared) == pages_and_sizes(alone)
    check_file(shared, 1)
    assert summary.zero_pages == run(dump, alone, level=1, force=True).zero_pages
    assert summary.lost == summary.retried == {}


# --- pages that kill --------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGBUS, signal.SIGKILL])
@pytest.mark.parametrize("jobs", [2, 5])
def test_pages_that_kill(
    machine: Machine,
    dump: Path,
    number: signal.Signals,
    jobs: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As memory does that turned bad: the dump lacks these pages and no other."""
    from drgn_tools import vmcore as module

    real = module._ElfVmcore.pages
    expected = wanted(machine, 0)
    bad = [*sorted(expected)[100:1900:450], max(expected)]

    def deadly(self: module._ElfVmcore, pfns: module.Pfns) -> Iterator[bytes]:
        for pfn, page in zip(pfns.tolist(), real(self, pfns)):
            if pfn in bad:
                faulthandler.disable()  # pytest's would print where this was.
                os.kill(os.getpid(), number)
            yield page

    monkeypatch.setattr(module._ElfVmcore, "pages", deadly)
    target = tmp_path / "out"
    summary = run(dump, target, level=0, jobs=jobs)
    assert summary.lost == dict.fromkeys(bad, f"a worker was killed ({number.name})")
    assert 0 < len(summary.retried) <= len(bad)
    found = read_kdump(target)
    assert found.status & 0x8
    assert set(found.places) == set(expected)
    for pfn in bad:
        del expected[pfn]
    assert found.pages == expected
    assert os.listdir(tmp_path) == ["out"]
    # Missing is not zero.
    with open_vmcore(str(target)) as vmcore:
        for pfn in bad:
            assert not vmcore.present(pfn, pfn + 1)[0]
    prog = drgn.Program()
    prog.set_core_dump(str(target))
    for pfn in bad:
        with pytest.raises(drgn.FaultError):
            prog.read(pfn * PAGE, PAGE, physical=True)
    assert prog.read((bad[0] + 1) * PAGE, PAGE, physical=True) == expected[bad[0] + 1]


def test_struct_pages_that_kill(
    machine: Machine, dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they describe is kept whole."""
    from drgn_tools import pages, plan

    real = pages.classify

    def deadly(words: Any, pfn: int, *rest: Any) -> Any:
        if pfn == 0:
            faulthandler.disable()
            os.kill(os.getpid(), signal.SIGBUS)
        return real(words, pfn, *rest)

    monkeypatch.setattr(plan, "classify", deadly)
    monkeypatch.setattr(plan, "_CELLS_PER_WORKER", 0.01)
    summary = run(dump, tmp_path / "out", jobs=2)
    assert summary.plan.warnings == (
        f"struct pages of {len(machine.pfns())} page frames cannot be read: all kept",
    )
    found = read_kdump(tmp_path / "out")
    assert found.pages == {pfn: machine.page(pfn) for pfn in machine.pfns()}
