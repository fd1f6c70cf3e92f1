# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What is broken in a crashed machine, injected: each fault ends as its policy says, and
nothing is lost that could be read.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import faulthandler
import mmap
import os
import resource
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import drgn
import numpy as np
import pytest

from drgn_tools import output, plan, rearrange, vmcore, workers, writer
from drgn_tools.errors import DumpError
from drgn_tools.pages import excluded_classes
from drgn_tools.plan import make_plan
from drgn_tools.verify import verify
from drgn_tools.vmcore import open_vmcore
from drgn_tools.workers import Counters
from tests import kill_points
from tests.bad_file import bad_file
from tests.command import Outcome, assert_refused
from tests.synthetic import (
    BY_NAME,
    GIB,
    MIB,
    PAGE,
    Machine,
    note,
    prstatus,
    read_kdump,
    vmcoreinfo_text,
    write_elf,
    write_kdump,
)
from tests.test_bad_input import in_a_namespace


@pytest.fixture(scope="module")
def machine() -> Machine:
    machine = Machine(ram=((0, 8 * MIB), (64 * MIB, 2 * MIB)))
    for pfn in range(100, 400, 3):
        machine.pages[0].anon(pfn)
    machine.loads()
    return machine


@pytest.fixture(scope="module")
def dump(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "vmcore"
    write_elf(path, machine.loads()[1:], machine.notes())
    return path


@pytest.fixture(autouse=True)
def tidy() -> Iterator[None]:
    """No process or blocked signal is left, however it ends."""
    yield
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


def place_of(path: Path, pfn: int) -> int:
    """Where in an ELF core a page is."""
    with open_vmcore(str(path)) as source:
        assert isinstance(source, vmcore._ElfVmcore)
        for extent in source._extents:
            if extent.paddr <= pfn * PAGE < extent.end:
                return extent.offset + pfn * PAGE - extent.paddr
    raise AssertionError


def wanted(machine: Machine, level: int) -> dict[int, bytes]:
    leave_out = excluded_classes(level)
    return {
        pfn: machine.page(pfn)
        for pfn in machine.pfns()
        if machine.expected(pfn) not in leave_out
    }


def start(*arguments: object, stdout: int, stderr: int, close: int = -1) -> int:
    """The command in a copy of this process, with all that was patched here."""
    from drgn_tools.__main__ import main

    pid = os.fork()
    if not pid:
        status = 99
        try:
            os.setsid()
            if close >= 0:
                os.close(close)
            faulthandler.disable()
            os.dup2(stdout, 1)
            os.dup2(stderr, 2)
            sys.stdout = os.fdopen(1, "w", buffering=1)
            sys.stderr = os.fdopen(2, "w", buffering=1)
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            sys.argv = ["drgn-tools", *map(str, arguments)]
            main()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def command(*arguments: object, stdout: Path | None = None) -> Outcome:
    """Run it to its end. No process outlives it."""
    with tempfile.TemporaryFile() as err, open(stdout or os.devnull, "wb") as out:
        pid = start(*arguments, stdout=out.fileno(), stderr=err.fileno())
        _, status = os.waitpid(pid, 0)
        assert session(pid) == []
        err.seek(0)
        return Outcome(os.waitstatus_to_exitcode(status), "", err.read().decode())


def session(number: int) -> list[int]:
    """Processes of a session that still are."""
    alive = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            text = Path("/proc", str(int(name)), "stat").read_text()
            state, _, _, owner = text.rpartition(")")[2].split()[:4]
            if int(owner) == number and state != "Z":
                alive.append(int(name))
    return alive


def wait_for(condition: Callable[[], object]) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to that in 60 s")


def last_line(outcome: Outcome, status: int = 1) -> str:
    assert outcome.status == status, outcome
    assert "Traceback" not in outcome.stderr, outcome
    return outcome.stderr.splitlines()[-1]


def check_verified(path: Path, missing: int) -> None:
    """Nothing is damaged or inconsistent; so many pages are missing, and it says so."""
    report = verify(str(path), 1)
    kinds = {finding.kind for finding in report.findings}
    assert kinds <= ({"missing", "incomplete"} if missing else set()), report.findings
    assert (report.damaged, report.missing) == (0, missing)


def check_kdump(path: Path, expected: dict[int, bytes], missing: set[int]) -> None:
    """All of *expected* but what is missing, which is not zero but missing."""
    found = read_kdump(path)
    assert set(found.places) == set(expected)
    assert {pfn for pfn, place in found.places.items() if not place[0]} == missing
    assert found.pages == {p: d for p, d in expected.items() if p not in missing}
    assert bool(found.status & 0x8) == bool(missing)
    check_verified(path, len(missing))
    # Where the search for this kernel meets a missing page, libkdumpfile keeps what it
    # has not read, and gives it later. tests/vm has it open real dumps.
    if not missing:
        check_drgn(path, expected)


def check_drgn(path: Path, expected: dict[int, bytes]) -> None:
    prog = drgn.Program()
    prog.set_core_dump(str(path))
    for pfn, page in expected.items():
        assert prog.read(pfn * PAGE, PAGE, physical=True) == page


def check_elf(path: Path, expected: dict[int, bytes], missing: set[int]) -> None:
    with open_vmcore(str(path)) as found:
        for pfn, page in expected.items():
            assert bool(found.present(pfn, pfn + 1)[0]) == (pfn not in missing)
            if pfn not in missing:
                assert found.read(pfn * PAGE, PAGE) == page
    flags = int.from_bytes(path.read_bytes()[48:52], "little")
    assert flags == (1 if missing else 0)
    # Where the search for this kernel meets a missing page, libkdumpfile keeps what it
    # has not read, and gives it later. tests/vm has it open real dumps.
    if not missing:
        check_drgn(path, expected)


def rearranged(stream: Path) -> Path:
    target = stream.with_suffix(".whole")
    fd = os.open(stream, os.O_RDONLY)
    try:
        rearrange.rearrange(fd, str(target), True)
    finally:
        os.close(fd)
    return target


# --- pages that cannot be read ----------------------------------------------------


@contextlib.contextmanager
def source_with(
    fault: str, dump: Path, pfns: Sequence[int], path: Path, patch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """
    A dump of which some pages cannot be read.

    :param fault: "eio": read() says so; "sigbus": so does touching the page in a
        mapping; "efault": a patched read, for where nothing can be mounted.
    """
    places = {place_of(dump, pfn) for pfn in pfns}
    if fault == "efault":
        real = os.pread

        def pread(fd: int, size: int, offset: int) -> bytes:
            hit = [p - offset for p in places if offset - PAGE < p < offset + size]
            if not hit or not os.path.samestat(os.fstat(fd), os.stat(dump)):
                return real(fd, size, offset)
            if min(hit) <= 0:
                raise OSError(errno.EFAULT, "Bad address")
            return real(fd, min(hit), offset)

        patch.setattr(os, "pread", pread)
        yield dump
        patch.undo()
        return
    if fault == "sigbus":
        init = vmcore._ElfVmcore.__init__

        def in_proc(self: Any, *arguments: Any) -> None:
            init(self, *arguments)
            self._in_proc = True

        patch.setattr(vmcore._ElfVmcore, "__init__", in_proc)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(bad_file(dump, path, places))
        except OSError as error:
            pytest.skip(f"no FUSE: {error}")
        yield path
    patch.undo()


@pytest.mark.parametrize("kind", ["file", "stream", "elf"])
@pytest.mark.parametrize("jobs", [1, 2, 3])
@pytest.mark.parametrize("fault", ["eio", "sigbus", "efault"])
def test_pages(
    fault: str,
    jobs: int,
    kind: str,
    machine: Machine,
    dump: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """These alone are missing. The first and the last, neighbours, and single ones."""
    expected = wanted(machine, 8)
    pfns = sorted(expected)
    bad = {0, 149, 150, 1000, 1500, 64 * MIB // PAGE, pfns[-1]}
    assert bad <= set(expected)
    monkeypatch.setattr(writer, "_ITEM_PAGES", 300)
    out = tmp_path / "out"
    options = ["-d8", "--jobs", jobs, *(["-E"] if kind == "elf" else [])]
    with source_with(fault, dump, sorted(bad), tmp_path / "bad", monkeypatch) as source:
        if kind == "stream":
            outcome = command("extract", *options, "-F", source, stdout=out)
        else:
            outcome = command("extract", *options, source, out)
    line = last_line(outcome)
    assert f"{len(bad)} pages could not be read, the first at 0x0: " in line
    why = {"eio": "Input/output error", "efault": "Bad address", "sigbus": "SIGBUS"}
    assert line.endswith((why[fault], f"({why[fault]})"))
    if kind == "elf":
        check_elf(out, expected, bad)
    else:
        check_kdump(rearranged(out) if kind == "stream" else out, expected, bad)


def test_many_bad_pages_of_an_elf_core(
    machine: Machine, dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than there is room to tell of: then less is there, but no zeros."""
    expected = wanted(machine, 0)
    bad = set(sorted(expected)[1000:1200:2])
    with source_with("efault", dump, sorted(bad), tmp_path / "b", monkeypatch) as path:
        command("extract", "-d0", "-E", path, tmp_path / "out")
    with source_with("efault", dump, sorted(bad), tmp_path / "b", monkeypatch) as path:
        monkeypatch.setattr(writer, "_ELF_SPARE", 4096)
        command("extract", "-d0", "-E", path, tmp_path / "less")
    check_elf(tmp_path / "out", expected, bad)
    there = 0
    with open_vmcore(str(tmp_path / "less")) as found:
        for pfn, page in expected.items():
            if found.present(pfn, pfn + 1)[0]:
                there += 1
                assert pfn not in bad
                assert found.read(pfn * PAGE, PAGE) == page
    assert there > 20


def test_pages_of_a_kdump(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a compressed input: pages that share a bad block, and a bad descriptor."""
    pages = {pfn: machine.page(pfn) for pfn in machine.pfns()}
    source = tmp_path / "in"
    places = write_kdump(source, pages, machine.notes(), dump_level=0)
    kdump = read_kdump(source).places
    offset, size, _ = kdump[700]
    data = range(offset // PAGE * PAGE, (offset + size - 1) // PAGE * PAGE + 1, PAGE)
    # Behind the place of all that the kernel's tables are described by.
    first = (places.descriptors + 24 * 1800) // PAGE * PAGE
    expected = wanted(machine, 8)
    missing = {
        pfn
        for pfn in expected
        for at, length, _ in [kdump[pfn]]
        if at < data[-1] + PAGE and at + length > data[0]
    } | {
        pfn
        for n, pfn in enumerate(places.pfns)
        if first - 24 < places.descriptors + 24 * n < first + PAGE
    }
    assert 100 < len(missing) < 300 and missing <= set(expected)
    out = tmp_path / "out"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(bad_file(source, tmp_path / "bad", {*data, first}))
        except OSError as error:
            pytest.skip(f"no FUSE: {error}")
        outcome = command("extract", "-d8", "--jobs", 2, tmp_path / "bad", out)
    assert f"{len(missing)} pages could not be read" in last_line(outcome)
    check_kdump(out, expected, missing)


# --- struct pages and the tables that lead to them --------------------------------


@pytest.fixture(scope="module")
def large() -> Machine:
    """
    Memory of two cells, and some so high that another page of section tables is
    for it.
    """
    machine = Machine(
        ram=((0, 12 * MIB), (128 * MIB, 2 * MIB), (40 * GIB, 2 * MIB)),
        section_bits=27,
        mapping="2M",
    )
    for pages in machine.pages:
        for pfn in range(pages.pfn + 100, pages.pfn + 400, 3):
            pages.anon(pfn)
    machine.loads()
    return machine


@pytest.fixture(scope="module")
def large_dump(large: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "vmcore"
    write_elf(path, large.loads()[1:], large.notes())
    return path


def kept_whole(machine: Machine, parts: Sequence[int]) -> dict[int, bytes]:
    """What a dump of level 8 has if the pages of some parts of memory are unknown."""
    expected = wanted(machine, 8)
    for part in parts:
        pages = machine.pages[part]
        for pfn in range(pages.pfn, pages.pfn + len(pages.words)):
            expected[pfn] = machine.page(pfn)
    return expected


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("fault", ["eio", "sigbus"])
def test_struct_pages(
    fault: str,
    jobs: int,
    large: Machine,
    large_dump: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What they describe is kept whole. They are themselves missing."""
    monkeypatch.setattr(plan, "_CELLS_PER_WORKER", 1)
    bad = large.struct_page_paddr(large.pages[1].pfn + 200) // PAGE
    out = tmp_path / "out"
    with source_with(fault, large_dump, [bad], tmp_path / "bad", monkeypatch) as path:
        # What is read piece by piece is not mapped; so is the dump's own file.
        outcome = command("extract", "-d8", "--jobs", jobs, path, out)
    expected = kept_whole(large, [1])
    assert "warning: struct pages of 512 page frames cannot be read: all kept\n" in (
        outcome.stderr
    )
    assert "1 pages could not be read" in last_line(outcome)
    check_kdump(out, expected, {bad})


def test_struct_pages_that_a_kdump_excluded(large: Machine, tmp_path: Path) -> None:
    pages = {pfn: large.page(pfn) for pfn in large.pfns()}
    bad = large.struct_page_paddr(large.pages[2].pfn) // PAGE
    del pages[bad]
    write_kdump(tmp_path / "in", pages, large.notes(), excluded=[bad])
    outcome = command("extract", "-d8", tmp_path / "in", tmp_path / "out")
    assert outcome.status == 0
    assert "struct pages of 512 page frames cannot be read" in outcome.stderr
    expected = kept_whole(large, [2])
    del expected[bad]
    check_kdump(tmp_path / "out", expected, set())


def section_tables(machine: Machine) -> list[int]:
    """Page frames of mem_section's pages: the roots', then what they point to."""
    at = machine.mem_section - machine.page_offset
    roots = np.frombuffer(machine.read(at, PAGE), "<u8")
    return [at // PAGE] + [
        (int(root) - machine.page_offset) // PAGE for root in roots[roots > 0]
    ]


@pytest.mark.parametrize("which", [1, 2])
def test_section_table(
    which: int,
    large: Machine,
    large_dump: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All that it may describe is kept, be it the last that there is."""
    tables = section_tables(large)
    assert len(tables) == 3
    bad = tables[which]
    parts = [[0, 1], [2]][which - 1]
    out = tmp_path / "out"
    with source_with("eio", large_dump, [bad], tmp_path / "bad", monkeypatch) as path:
        outcome = command("extract", "-d8", path, out)
    count = sum(len(large.pages[part].words) for part in parts)
    assert f"struct pages of {count} page frames cannot be read" in outcome.stderr
    assert "1 pages could not be read" in last_line(outcome)
    check_kdump(out, kept_whole(large, parts), {bad})
    assert f"unknown{count:>19}{count:>12}{0:>12}\n" in outcome.stderr


@pytest.mark.parametrize("what", ["roots", "tables", "pointers"])
def test_no_section_table(
    what: str,
    large: Machine,
    large_dump: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is known of any page: the line says what is possible, and it is."""
    tables = section_tables(large)
    bad = {"roots": tables[:1], "tables": tables[1:], "pointers": []}[what]
    out = tmp_path / "out"
    if what == "pointers":
        # They lead nowhere.
        large_dump = Path(shutil.copy(large_dump, tmp_path / "in"))
        with open(large_dump, "r+b") as file:
            file.seek(place_of(large_dump, tables[0]))
            file.write(b"\x11" * PAGE)
    with source_with("eio", large_dump, bad, tmp_path / "bad", monkeypatch) as path:
        line = assert_refused(command("extract", "-d8", path, out))
        assert "only -d 0 and -d 1 are possible" in line
        assert not out.exists()
        outcome = command("extract", "-d1", path, out)
    assert outcome.status == (1 if bad else 0)
    assert "pages are kept whatever their class" in outcome.stderr
    assert set(read_kdump(out).places) == set(large.pfns())


# --- corrupt page descriptions ----------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["5.10", "6.6", "7.2"])
def test_garbage_memory_map(seed: int, name: str, tmp_path: Path) -> None:
    """
    Whatever it says, a page that is left out says itself that it may be, is a tail,
    or lies in what its neighbours say is a free block: all else is kept.
    """
    generation = BY_NAME[name]
    machine = Machine(generation, ram=((0, 16 * MIB),))
    random = np.random.default_rng(seed)
    words = machine.pages[0].words
    raw = words.view(np.uint8).reshape(len(words), -1)
    share = [1.0, 0.5, 0.1, 0.01, 1.0, 0.1][seed]
    hit = np.flatnonzero(random.random(len(words)) < share)
    noise = random.integers(0, 256, (len(hit), raw.shape[1]), np.uint8)
    if seed >= 4:
        # Lies that look like the truth: heads, free blocks, of any order.
        noise[:] = raw[hit]
        raw[hit] = noise
        head = np.uint64(1 << generation.bits["head"])
        words["flags"][hit] |= np.where(
            random.random(len(hit)) < 0.5, head, np.uint64(0)
        )
        words["order"][hit] = random.integers(0, 256, len(hit))
        buddy = random.random(len(hit)) < 0.3
        words["mapcount"][hit[buddy]] = generation.types["buddy"] & 0xFFFFFFFF
        words["private"][hit] = random.integers(
            0, 1 << random.integers(1, 63), len(hit)
        )
        mapped = random.random(len(hit)) < 0.3
        words["mapping"][hit[mapped]] = 0xFFFF888000000001
    else:
        raw[hit] = noise
    source = tmp_path / "in"
    write_elf(source, machine.loads()[1:], machine.notes())
    with open_vmcore(str(source)) as vmcore:
        chosen = make_plan(vmcore, excluded_classes(30))
    kept = np.unpackbits(chosen.dumpable, bitorder="little")[: len(words)]
    untouched = np.ones(len(words), bool)
    untouched[hit] = False
    # A free block has at most 2^10 frames and is aligned; an entry that was not hit
    # and that no block that says to be free covers is the kernel's, as it was.
    free = np.zeros(len(words), bool)
    buddy_value = generation.types["buddy"] & 0xFFFFFFFF
    is_free = words["mapcount"] == buddy_value
    if generation.types["buddy"] > 0:
        is_free = words["mapcount"] >> 24 == buddy_value >> 24
        if "unaccepted" in generation.types:
            is_free |= words["mapcount"] >> 24 == generation.types["unaccepted"] >> 24
            for pfn in np.flatnonzero(words["mapcount"] >> 24 == 0xF7).tolist():
                if pfn % 1024 == 0:
                    free[pfn : pfn + 1024] = True
    for pfn in np.flatnonzero(is_free).tolist():
        order = int(words["private"][pfn])
        if order <= 10 and pfn % (1 << order) == 0:
            free[pfn : pfn + (1 << order)] = True
    assert kept[untouched & ~free].all()
    outcome = command("extract", "-d31", "--jobs", 2, source, tmp_path / "out")
    assert outcome.status == 0, outcome
    found = read_kdump(tmp_path / "out")
    assert all(page == machine.page(pfn) for pfn, page in found.pages.items())


# --- no VMCOREINFO ----------------------------------------------------------------


def info_page(machine: Machine, kind: str, **changes: str | None) -> bytes:
    keys: dict[str, str] = dict(machine.keys)
    for key, value in changes.items():
        if value is None:
            del keys[key]
        else:
            keys[key] = value
    text = vmcoreinfo_text(keys)
    page = note(b"VMCOREINFO", 0, text) if kind == "note" else text
    assert len(page) <= PAGE
    return page.ljust(PAGE, b"\0")


def without_note(machine: Machine, path: Path, pages: dict[int, bytes]) -> None:
    """A core without VMCOREINFO, but with some pages of memory as given."""
    loads = []
    for load in machine.loads()[1:]:
        data = bytearray(np.asarray(load.data).tobytes())
        for pfn, page in pages.items():
            at = pfn * PAGE - load.paddr
            if 0 <= at < len(data):
                data[at : at + PAGE] = page
        loads.append(load._replace(data=bytes(data)))
    write_elf(path, loads, prstatus(1))


@pytest.mark.parametrize("kind", ["note", "text"])
def test_vmcoreinfo_in_memory(kind: str, machine: Machine, tmp_path: Path) -> None:
    """Found behind all that only looks like it; and drgn opens the output."""
    good = info_page(machine, kind)
    text = vmcoreinfo_text(machine.keys)
    rng = np.random.default_rng(0)
    garbage = rng.integers(0, 256, PAGE, np.uint8).tobytes()
    fakes = [
        # Another kernel's, as after kexec; another release at the same place.
        info_page(machine, kind, **{"SYMBOL(init_uts_ns)": "ffffffff82345678"}),
        info_page(machine, kind, OSRELEASE="5.5.5-other"),
        info_page(machine, kind, **{"SYMBOL(init_top_pgt)": "ffffffff81abc000"}),
        info_page(machine, kind, **{"NUMBER(phys_base)": "-9" * 1}),
        # Torn.
        text[: text.index(b"NUMBER(phys_base)")].ljust(PAGE, b"\0"),
        text[: len(text) - 3].ljust(PAGE, b"\0"),
        b"OSRELEASE=" + garbage[10:],
        b"OSRELEASE=".ljust(PAGE, b"\xff"),
        # Hostile: numbers that are none, or lead anywhere.
        info_page(machine, kind, **{"SYMBOL(init_uts_ns)": "f" * 300}),
        info_page(machine, kind, **{"SYMBOL(init_uts_ns)": "-1"}),
        info_page(machine, kind, **{"OFFSET(uts_namespace.name)": "9" * 40}),
        info_page(machine, kind, **{"OFFSET(uts_namespace.name)": "-5"}),
        info_page(machine, kind, **{"NUMBER(phys_base)": "x"}),
        info_page(machine, kind, **{"NUMBER(sme_mask)": "-1"}),
        info_page(machine, kind, **{"NUMBER(pgtable_l5_enabled)": "1"}),
        info_page(machine, kind, **{"SYMBOL(init_top_pgt)": "ffffffffffffffff"}),
        b"".join([b"OSRELEASE=\0", b"\n" * (PAGE - 11)]),
    ]
    # Where pages are the kernel's own in name only.
    pages = {1500 + n: fake for n, fake in enumerate(fakes)}
    pages[1500 + len(fakes)] = good
    source, out = tmp_path / "in", tmp_path / "out"
    without_note(machine, source, pages)
    outcome = command("extract", "-d8", source, out)
    assert outcome.status == 0, outcome
    found = read_kdump(out)
    assert found.vmcoreinfo == text
    expected = {**wanted(machine, 8), **pages}
    assert found.pages == {pfn: expected[pfn] for pfn in wanted(machine, 8)}
    prog = drgn.Program()
    prog.set_core_dump(str(out))
    assert prog["UTS_RELEASE"].string_() == machine.keys["OSRELEASE"].encode()

    # And with none but these, there is none.
    without_note(machine, source, dict(list(pages.items())[:-1]))
    line = assert_refused(command("extract", "-d8", "-f", source, out))
    assert line.endswith("has no VMCOREINFO; only -d 0 and -d 1 are possible\n")
    for level in (0, 1):
        outcome = command("extract", "-d", level, "-f", source, out)
        assert outcome.status == 0
        assert set(read_kdump(out).pages) == set(machine.pfns())

    # From a file.
    (tmp_path / "info").write_bytes(text)
    outcome = command("extract", "-d8", "-f", "-i", tmp_path / "info", source, out)
    assert outcome.status == 0
    assert read_kdump(out).vmcoreinfo == text
    assert set(read_kdump(out).pages) == set(wanted(machine, 8))


def test_vmcoreinfo_behind_bad_pages(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that cannot be read are passed over, one by one."""
    source, out = tmp_path / "in", tmp_path / "out"
    without_note(machine, source, {1700: info_page(machine, "note")})
    bad = [0, 1699, 1701]
    with source_with("eio", source, bad, tmp_path / "bad", monkeypatch) as path:
        outcome = command("extract", "-d8", path, out)
    assert "3 pages could not be read" in last_line(outcome)
    assert read_kdump(out).vmcoreinfo == vmcoreinfo_text(machine.keys)


# --- no room ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def sizes(
    machine: Machine, dump: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, int, int]:
    """Of a dump of level 0: where descriptors begin, data begins, data ends."""
    path = tmp_path_factory.mktemp("whole") / "out"
    assert command("extract", "-d0", "--jobs", 1, dump, path).status == 0
    places = read_kdump(path).places.values()
    data = min(offset for offset, _, _ in places)
    return data - 24 * len(places), data, max(sum(place[:2]) for place in places)


@pytest.mark.parametrize("options", ["", "-E", "--split", "-d0,8"])
@pytest.mark.parametrize(
    "stage", ["headers", "bitmaps", "descriptors", "data", "end", "checksums"]
)
def test_disk_full(
    stage: str,
    options: str,
    machine: Machine,
    dump: Path,
    sizes: tuple[int, int, int],
    tmp_path: Path,
) -> None:
    """What there is room for is there, and it says what is missing."""
    table, data, end = sizes
    size = {
        "headers": PAGE,
        "bitmaps": 3 * PAGE,
        "descriptors": table + PAGE,
        "data": data + (end - data) // 2,
        "end": end // PAGE * PAGE - PAGE,
        "checksums": -(-end // PAGE) * PAGE,
    }[stage]
    room, kept = tmp_path / "room", tmp_path / "kept"
    room.mkdir()
    kept.mkdir()
    names = ["a", "b"] if options == "--split" else ["a"]
    outcome = in_a_namespace(
        'mount -t tmpfs -o size="$1" none "$2"; status=0\n'
        f"$EXTRACT {'' if 'd' in options else '-d0'} {options} --jobs 2 "
        f'"$4" {" ".join(f"$2/{name}" for name in names)} || status=$?\n'
        'cp -r "$2/." "$3"; exit $status',
        *(size, room, kept, dump),
    )
    left = sorted(os.listdir(kept))
    assert "Traceback" not in outcome.stderr
    if not left:
        # Not even what comes first.
        assert stage in ("headers", "bitmaps", "descriptors")
        assert_refused(outcome)
        assert "No space left on device" in outcome.stderr
        return
    assert left == names
    expected = wanted(machine, 0)
    if options == "-d0,8" and outcome.status == 0:
        if "warning: no room at -d 0: taken with -d 8\n" in outcome.stderr:
            expected = wanted(machine, 8)
        check_kdump(kept / "a", expected, set())
        return
    missing = set()
    if outcome.status:
        line = last_line(outcome)
        assert "incomplete: no room for " in line
    if options == "-E":
        with open_vmcore(str(kept / "a")) as found:
            missing = {p for p in expected if not found.present(p, p + 1)[0]}
        check_elf(kept / "a", expected, missing)
    elif options == "--split":
        found_pages = {}
        for name in names:
            with open_vmcore(str(kept / name), part=True) as part:
                assert part.header is not None
                assert part.header.status & 0x8 or not outcome.status
                there = np.flatnonzero(part.present(0, part.max_pfn))
                for pfn, page in zip(there.tolist(), part.pages(there)):
                    found_pages[pfn] = page
            report = verify(str(kept / name), 1)
            assert report.damaged == 0
        missing = set(expected) - set(found_pages)
        assert all(page == expected[pfn] for pfn, page in found_pages.items())
    else:
        missing = set(expected) - set(read_kdump(kept / "a").pages)
        if options == "-d0,8":
            expected = wanted(machine, 8)
            missing &= set(expected)
        check_kdump(kept / "a", expected, missing)
    assert bool(missing) == (outcome.status == 1)
    if missing:
        assert f"no room for {len(missing)} pages" in last_line(outcome)


@pytest.mark.parametrize("jobs", [1, 3])
def test_stream_to_a_full_device(jobs: int, dump: Path) -> None:
    outcome = command("extract", "-F", "--jobs", jobs, dump, stdout=Path("/dev/full"))
    assert "No space left on device" in assert_refused(outcome)


# --- signals ----------------------------------------------------------------------

SIGNALS = [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]


def at_point(
    monkeypatch: pytest.MonkeyPatch, where: str, number: signal.Signals, group: bool
) -> None:
    """Have signals come at a point of the parent's work; twice, as from a service."""

    def kill() -> None:
        for signum in (number, signal.SIGTERM):
            if group:
                os.killpg(0, signum)
            else:
                os.kill(os.getpid(), signum)

    def before(module: Any, name: str, nth: int = 1) -> None:
        real = getattr(module, name)
        calls = []

        def wrapped(*arguments: Any, **options: Any) -> Any:
            if os.getpid() == os.getsid(0):
                calls.append(1)
                if len(calls) == nth:
                    kill()
            return real(*arguments, **options)

        monkeypatch.setattr(module, name, wrapped)

    kdump = writer.KdumpWriter
    if where == "planning":
        before(plan, "run")
    elif where == "start":
        before(kdump, "_write_bitmaps")
    elif where == "flush":
        monkeypatch.setattr(writer, "_FLUSHED_ITEMS", 1)
        before(kdump, "_write_descriptors", 2)
    elif where == "descriptors":
        monkeypatch.setattr(writer, "_FLUSHED_ITEMS", 1)
        before(writer, "crc32", 5)
    elif where == "last":
        before(kdump, "tally")
    elif where == "fsync":
        before(os, "fsync")


@pytest.mark.parametrize("stream", [False, True], ids=["file", "stream"])
@pytest.mark.parametrize("group", [False, True], ids=["process", "group"])
@pytest.mark.parametrize(
    "where", ["planning", "start", "flush", "descriptors", "last", "fsync"]
)
@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_signal(
    number: signal.Signals,
    status: int,
    where: str,
    group: bool,
    stream: bool,
    machine: Machine,
    dump: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is there is whole, and nothing is there for who pressed Ctrl-C."""
    if stream and where == "fsync":
        return
    monkeypatch.setattr(writer, "_ITEM_PAGES", 100)
    at_point(monkeypatch, where, number, group)
    out = tmp_path / "out"
    options = ["-d8", "--jobs", 2, *(["-F"] if stream else [])]
    if stream:
        outcome = command("extract", *options, dump, stdout=out)
    else:
        outcome = command("extract", *options, dump, out)
    monkeypatch.undo()
    # Of two blocked at once, the lower number comes first.
    assert outcome.status in ({status, 143} if where in ("last", "start") else {status})
    assert "Traceback" not in outcome.stderr
    assert outcome.stderr.count("drgn-tools: stopped by ") == 1
    if where == "planning" or outcome.status == 130:
        if not stream:
            assert os.listdir(tmp_path) == []
        return
    expected = wanted(machine, 8)
    if stream:
        out = rearranged(out)
    missing = set(expected) - set(read_kdump(out).pages)
    check_kdump(out, expected, missing)
    if where in ("last", "fsync"):
        assert not missing


# --- workers and readers that go away ---------------------------------------------


@pytest.mark.parametrize("step", range(7))
def test_killed_while_it_hands_over(
    step: int,
    machine: Machine,
    dump: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At every step of it: no half record, no record lost, nobody waits for ever."""
    kills = Counters(1)
    real_set, real_wake = Counters.__setitem__, output._wake
    real_hand_over = output.Stream._hand_over
    inside: list[int] = []
    parent = os.getpid()

    def die() -> None:
        if len(inside) == 1 and os.getsid(0) != os.getpid() != parent:
            with kills.locked():
                real_set(kills, 0, kills[0] + 1)
            # Once: whoever is killed over a page alone loses it.
            if kills[0] == 1:
                os.kill(os.getpid(), signal.SIGKILL)

    def set_item(self: Counters, index: int, value: int) -> None:
        if inside and step == index and index in (1, 2, 3):
            die()
        real_set(self, index, value)
        if inside and self is not kills and step == 4 and index == 0:
            die()

    def wake(fd: int) -> None:
        if step == 5:
            die()
        real_wake(fd)
        if step == 6:
            die()

    def hand_over(self: output.Stream, data: memoryview, offset: int) -> None:
        inside.append(1)
        if step == 0:
            die()
        real_hand_over(self, data, offset)
        inside.clear()

    monkeypatch.setattr(writer, "_ITEM_PAGES", 64)
    monkeypatch.setattr(Counters, "__setitem__", set_item)
    monkeypatch.setattr(output, "_wake", wake)
    monkeypatch.setattr(output.Stream, "_hand_over", hand_over)
    out = tmp_path / "out"
    outcome = command("extract", "-d8", "--jobs", 3, "-F", dump, stdout=out)
    monkeypatch.undo()
    assert outcome.status == 0, outcome
    # What _OFFSET, _SIZE and so on are called is the stream's.
    if step != 1:
        assert "a worker was killed (SIGKILL)" in outcome.stderr
    kills.close()
    check_kdump(rearranged(out), wanted(machine, 8), set())


def test_killed_while_planning(
    large: Machine, large_dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once each: as if memory had been short. All is known in the end."""
    killed = Counters(1)
    real = plan.__dict__["classify"]

    def classify(*arguments: Any) -> Any:
        if killed.add(0, 1) < 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    monkeypatch.setattr("drgn_tools.plan.classify", classify)
    monkeypatch.setattr(plan, "_CELLS_PER_WORKER", 1)
    outcome = command("extract", "-d8", "--jobs", 2, large_dump, tmp_path / "out")
    monkeypatch.undo()
    assert outcome.status == 0
    assert "struct pages" not in outcome.stderr
    assert killed[0] > 2
    killed.close()
    check_kdump(tmp_path / "out", wanted(large, 8), set())


@pytest.mark.parametrize("seed", [1, 2])
def test_kill_points(seed: int, tmp_path: Path) -> None:
    """At random, all over a run. docs/faults.md has the command for more of them."""
    table = kill_points.kills(20, seed, tmp_path)
    assert {"first", "worker"} <= {victim for _, _, victim, _ in table}


def stop_once(monkeypatch: pytest.MonkeyPatch) -> Counters:
    """
    The first worker that writes pages stops, as by SIGSTOP.

    :return: how often one came to that, and who stopped.
    """
    stopped = Counters(2)
    real = writer.Writer.write_item

    def write_item(self: Any, number: int) -> None:
        if os.getpid() != os.getsid(0) and not stopped.add(0, 1):
            stopped[1] = os.getpid()
            os.kill(os.getpid(), signal.SIGSTOP)
        real(self, number)

    monkeypatch.setattr(writer, "_ITEM_PAGES", 100)
    monkeypatch.setattr(writer.Writer, "write_item", write_item)
    return stopped


@pytest.mark.parametrize("kind", ["file", "stream", "elf"])
def test_stopped_worker(
    kind: str,
    machine: Machine,
    dump: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given up and dead; its pages are there for all that."""
    monkeypatch.setattr(workers, "_HALT", 0.3)
    stopped = stop_once(monkeypatch)
    out = tmp_path / "out"
    options = ["-d8", "--jobs", 2, *(["-E"] if kind == "elf" else [])]
    if kind == "stream":
        outcome = command("extract", *options, "-F", dump, stdout=out)
    else:
        outcome = command("extract", *options, dump, out)
    monkeypatch.undo()
    assert outcome.status == 0, outcome
    assert "a worker was killed (stopped before); read again" in outcome.stderr
    stopped.close()
    if kind == "elf":
        check_elf(out, wanted(machine, 8), set())
    else:
        path = rearranged(out) if kind == "stream" else out
        check_kdump(path, wanted(machine, 8), set())


def test_first_process_stopped(
    machine: Machine, dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    With a worker, as by Ctrl-Z, for longer than a worker is waited for. That it did
    not look does not count: all go on where they were.
    """
    monkeypatch.setattr(workers, "_HALT", 2.0)
    stopped = stop_once(monkeypatch)
    out = tmp_path / "out"
    with tempfile.TemporaryFile() as err:
        pid = start(
            *("extract", "-d8", "--jobs", 2, dump, out),
            stdout=err.fileno(),
            stderr=err.fileno(),
        )
        wait_for(lambda: stopped[1] and state(stopped[1]) == "T")
        # Until it has been seen.
        time.sleep(0.5)
        os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: state(pid) == "T")
        time.sleep(2.5)
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.3)
        os.kill(stopped[1], signal.SIGCONT)
        _, status = os.waitpid(pid, 0)
        err.seek(0)
        said = err.read().decode()
    assert status == 0 and "killed" not in said, said
    stopped.close()
    check_kdump(out, wanted(machine, 8), set())


def state(pid: int) -> str:
    """As ps has it; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def test_clock_jumps(
    machine: Machine, dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time of day goes anywhere; no wait and no result depends on it."""

    def jump() -> float:
        raise AssertionError("the time of day was asked for")

    monkeypatch.setattr(time, "time", jump)
    monkeypatch.setattr(time, "time_ns", jump)
    monkeypatch.setattr(workers, "_HALT", 0.3)
    stopped = stop_once(monkeypatch)
    outcome = command("extract", "-d8", "--jobs", 2, dump, tmp_path / "out")
    monkeypatch.undo()
    assert stopped[0]
    stopped.close()
    assert outcome.status == 0, outcome
    check_kdump(tmp_path / "out", wanted(machine, 8), set())


# --- an output disk with faults ---------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "split", "elf"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("times", [1, 9])
def test_fsync(
    times: int,
    number: int,
    kind: str,
    machine: Machine,
    dump: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    As from NFS: what is there stays, marked, if the mark gets to the disk; and no part
    of a set is there alone.
    """
    real = os.fsync
    calls = []

    def fsync(fd: int) -> None:
        calls.append(fd)
        # Of a set, the second part.
        if 0 <= len(calls) - (2 if kind == "split" else 1) < times:
            raise OSError(number, os.strerror(number))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    names = ["a", "b"] if kind == "split" else ["a"]
    options = {"file": [], "split": ["--split"], "elf": ["-E"]}[kind]
    paths = [tmp_path / name for name in names]
    outcome = command("extract", "-d8", "--jobs", 2, *options, dump, *paths)
    monkeypatch.undo()
    line = last_line(outcome)
    assert os.strerror(number) in line
    if times > 1:
        assert os.listdir(tmp_path) == []
        return
    assert "is incomplete: some of it may not be on the disk: " in line
    assert sorted(os.listdir(tmp_path)) == names
    for path in paths:
        with open_vmcore(str(path), part=True) as found:
            if found.header:
                assert found.header.status & 0x8
            else:
                assert path.read_bytes()[48] & 1
        report = verify(str(path), 1)
        assert report.damaged == 0
        assert {f.kind for f in report.findings} <= {"incomplete"}, report.findings
    if kind == "file":
        assert read_kdump(paths[0]).pages == wanted(machine, 8)


def fail_fsync(patch: pytest.MonkeyPatch, number: int, times: int) -> None:
    real = os.fsync
    calls = []

    def fsync(fd: int) -> None:
        calls.append(fd)
        if len(calls) <= times:
            raise OSError(number, os.strerror(number))
        real(fd)

    patch.setattr(os, "fsync", fsync)


def test_fsync_has_a_fault_at_the_first_level(
    machine: Machine, dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less would not help: it is no want of room."""
    fail_fsync(monkeypatch, errno.EIO, 1)
    outcome = command("extract", "-d0,8", dump, tmp_path / "out")
    monkeypatch.undo()
    assert "some of it may not be on the disk" in last_line(outcome)
    found = read_kdump(tmp_path / "out")
    assert (found.dump_level, found.status & 0x8) == (0, 0x8)
    assert found.pages == wanted(machine, 0)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL])
def test_fsync_of_the_directory(
    number: int,
    split: bool,
    dump: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the name may not last, that is said. Not every file system can do it."""
    real = os.fsync

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(number, os.strerror(number))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    paths = [tmp_path / name for name in "ab"[: 1 + split]]
    options = ["-d8", *(["--split"] if split else [])]
    outcome = command("extract", *options, dump, *paths)
    monkeypatch.undo()
    if number == errno.EIO:
        line = assert_refused(outcome)
        assert line.endswith("may not stay under its name: Input/output error\n")
    else:
        assert outcome.status == 0
    for path in paths:
        report = verify(str(path), 1)
        assert not report.findings
    assert len(os.listdir(tmp_path)) == len(paths)


@pytest.mark.parametrize("kind", ["stream", "ELF stream", "parts"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("times", [1, 2])
def test_fsync_of_what_is_rearranged(
    times: int,
    number: int,
    kind: str,
    machine: Machine,
    dump: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As of an extracted dump."""
    source, out = tmp_path / "in", tmp_path / "out"
    if kind == "parts":
        parts = [f"{source}{n}" for n in (1, 2)]
        assert command("extract", "-d8", "--split", dump, *parts).status == 0
        whole = tmp_path / "whole"
        rearrange.reassemble(parts, str(whole), False)
    else:
        options = ["-E"] if "ELF" in kind else []
        outcome = command("extract", "-d8", *options, "-F", dump, stdout=source)
        assert outcome.status == 0
        whole = rearranged(source)
    left = set(os.listdir(tmp_path))
    fail_fsync(monkeypatch, number, times)
    with pytest.raises(DumpError, match=os.strerror(number)) as error:
        if kind == "parts":
            rearrange.reassemble(parts, str(out), False)
        else:
            with source.open("rb") as file:
                rearrange.rearrange(file.fileno(), str(out), False)
    monkeypatch.undo()
    if times > 1:
        assert set(os.listdir(tmp_path)) == left
        return
    assert "is incomplete: some of it may not be on the disk" in str(error.value)
    # But for the mark, it is what it should be.
    expected, found = bytearray(whole.read_bytes()), out.read_bytes()
    at, mark = (48, 1) if "ELF" in kind else (424, 8)
    assert not expected[at] & mark
    expected[at] |= mark
    assert 0 <= len(expected) - len(found) < 1 << 16
    assert expected[: len(found)] == found
    if "ELF" not in kind:
        check_kdump_marked(out, wanted(machine, 8))


def check_kdump_marked(path: Path, expected: dict[int, bytes]) -> None:
    assert read_kdump(path).pages == expected
    report = verify(str(path), 1)
    assert (report.damaged, report.missing) == (0, 0)
    assert {finding.kind for finding in report.findings} == {"incomplete"}


def fail_writes(
    patch: pytest.MonkeyPatch, fails: Callable[[int, int], int | None], number: int
) -> None:
    """
    Have writes fail.

    :param fails: whether one at (offset, size) does: how much of it is written first.
    """
    real = os.pwrite

    def pwrite(fd: int, data: Any, offset: int) -> int:
        room = fails(offset, len(data))
        if room == 0:
            raise OSError(number, os.strerror(number))
        return real(fd, data[:room], offset)

    patch.setattr(os, "pwrite", pwrite)


def test_bad_block_of_what_is_rearranged(
    machine: Machine, dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream does not come again: what is behind the block is there."""
    source, out = tmp_path / "in", tmp_path / "out"
    monkeypatch.setattr(writer, "_ITEM_PAGES", 100)
    assert command("extract", "-d8", "-F", dump, stdout=source).status == 0
    bad = 1_000_000

    def fails(offset: int, size: int) -> int | None:
        return bad - offset if offset <= bad < offset + size else None

    fail_writes(monkeypatch, fails, errno.EIO)
    why = "pages are missing: cannot write .*: Input/output error"
    with source.open("rb") as file, pytest.raises(DumpError, match=why):
        rearrange.rearrange(file.fileno(), str(out), False)
    monkeypatch.undo()
    expected = wanted(machine, 8)
    missing = set(expected) - set(read_kdump(out).pages)
    assert 0 < len(missing) <= plan.UNIT_PFNS
    check_kdump(out, expected, missing)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("what", ["descriptors", "checksums"])
def test_bad_block_beside_the_pages(
    what: str,
    number: int,
    machine: Machine,
    dump: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Descriptors that cannot be written are of pages that are missing."""
    out = tmp_path / "out"
    expected = wanted(machine, 8)
    assert command("extract", "-d8", dump, out).status == 0
    places = read_kdump(out).places.values()
    data = min(offset for offset, _, _ in places if offset)
    end = max(offset + size for offset, size, _ in places)
    # With many descriptors before and after it.
    bad = data - 24 * len(expected) // 2 if what == "descriptors" else end

    def fails(offset: int, size: int) -> int | None:
        return 0 if offset <= bad < offset + size else None

    monkeypatch.setattr(writer, "_ITEM_PAGES", 100)
    monkeypatch.setattr(writer, "_FLUSHED_ITEMS", 2)
    fail_writes(monkeypatch, fails, number)
    options = ["-d8", "-f", "--jobs", 1]
    outcome = command("extract", *options, dump, out)
    monkeypatch.undo()
    found = read_kdump(out)
    missing = set(expected) - set(found.pages)
    assert found.pages == {p: d for p, d in expected.items() if p not in missing}
    if what == "checksums":
        assert outcome.status == 0
        check_kdump(out, expected, set())
    else:
        assert "is incomplete: " in last_line(outcome)
        assert 0 < len(missing) <= 2 * plan.UNIT_PFNS
        assert found.status & 0x8
        assert verify(str(out), 1).damaged == 0


def test_read_only_from_then_on(
    machine: Machine, dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    As ext4 after an error: nothing can be written, renamed or removed. What is left
    says that it is incomplete, and is.
    """

    def refuse(*_: object) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    fail_writes(monkeypatch, lambda at, _: 0 if at > 500_000 else None, errno.EROFS)
    for name in ("fsync", "rename", "unlink"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(writer, "_ITEM_PAGES", 100)
    outcome = command("extract", "-d8", dump, tmp_path / "out")
    monkeypatch.undo()
    assert "Read-only file system" in assert_refused(outcome)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.")
    expected = wanted(machine, 8)
    missing = set(expected) - set(read_kdump(left).pages)
    assert 0 < len(missing) < len(expected)
    check_kdump(left, expected, missing)


def test_rename_of_a_part(
    dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one fails, there is no set: not even with a part of an earlier one."""
    real = os.rename

    def rename(source: str, target: str) -> None:
        if target.endswith("b"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(source, target)

    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        path.write_text("earlier")
    monkeypatch.setattr(os, "rename", rename)
    outcome = command("extract", "-d8", "-f", "--split", dump, *paths)
    monkeypatch.undo()
    assert "Input/output error" in assert_refused(outcome)
    assert os.listdir(tmp_path) == ["a"]
    report = verify(str(paths[0]), 1)
    assert (report.damaged, report.missing) == (0, 0)
    with pytest.raises(DumpError, match="a part is missing"):
        rearrange.reassemble([str(paths[0])], str(tmp_path / "c"), False)


@pytest.mark.parametrize("kind", ["file", "elf"])
def test_bad_block_of_the_output(
    kind: str,
    machine: Machine,
    dump: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing can be written there: the other pages are."""
    real = os.pwrite
    bad = 1_000_000

    def pwrite(fd: int, data: Any, offset: int) -> int:
        if offset <= bad < offset + len(data):
            if offset == bad:
                raise OSError(errno.EIO, "Input/output error")
            data = data[: bad - offset]
        return real(fd, data, offset)

    monkeypatch.setattr(writer, "_ITEM_PAGES", 100)
    monkeypatch.setattr(os, "pwrite", pwrite)
    out = tmp_path / "out"
    options = ["-E"] if kind == "elf" else []
    outcome = command("extract", "-d8", "--jobs", 2, *options, dump, out)
    monkeypatch.undo()
    expected = wanted(machine, 8)
    if kind == "elf":
        with open_vmcore(str(out)) as found:
            missing = {p for p in expected if not found.present(p, p + 1)[0]}
        check_elf(out, expected, missing)
    else:
        missing = set(expected) - set(read_kdump(out).pages)
        check_kdump(out, expected, missing)
    # What is behind it in its item, which has whole units of page frames.
    assert 0 < len(missing) <= plan.UNIT_PFNS
    line = last_line(outcome)
    assert f"{len(missing)} pages not written: Input/output error" in line


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_no_process_to_be_had(
    kind: str,
    machine: Machine,
    dump: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> Any:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(workers, "_start", fail)
    out = tmp_path / "out"
    if kind == "stream":
        outcome = command("extract", "-d8", "--jobs", 3, "-F", dump, stdout=out)
        out = rearranged(out)
    else:
        outcome = command("extract", "-d8", "--jobs", 3, dump, out)
    assert outcome.status == 0
    check_kdump(out, wanted(machine, 8), set())


def test_worker_without_memory(
    machine: Machine, dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = vmcore._ElfVmcore.pages

    def pages(self: Any, pfns: Any) -> Any:
        if len(pfns) > 1 and 700 in pfns:
            raise MemoryError
        return real(self, pfns)

    monkeypatch.setattr(vmcore._ElfVmcore, "pages", pages)
    outcome = command("extract", "-d8", "--jobs", 2, dump, tmp_path / "out")
    assert outcome.status == 0
    assert "warning: not enough memory; read again" in outcome.stderr
    check_kdump(tmp_path / "out", wanted(machine, 8), set())


@pytest.mark.parametrize("room", [0, 1 << 20])
@pytest.mark.parametrize("codec", ["zlib", "snappy", "none"])
def test_workers_that_get_no_more_memory(
    codec: str,
    room: int,
    machine: Machine,
    dump: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    Whatever a library does then: raises, aborts, or touches what it did not get. What
    could not be done is missing, and said to be.
    """
    first = os.getpid()
    limited: list[int] = []
    real = workers._take

    def take(*arguments: Any) -> int:
        if not limited and os.getpid() != first:
            limited.append(1)
            ctypes.CDLL(None).malloc_trim(0)
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            size = pages * mmap.PAGESIZE + room
            resource.setrlimit(resource.RLIMIT_AS, (size, size))
        return real(*arguments)

    monkeypatch.setattr(workers, "_take", take)
    out = tmp_path / "out"
    options = ["-d8", "--jobs", 2, "--compress", codec]
    outcome = command("extract", *options, dump, out)
    monkeypatch.undo()
    found = read_kdump(out)
    # Struct pages may not have been read, and all kept for that.
    expected = {pfn: machine.page(pfn) for pfn in found.places}
    assert set(wanted(machine, 8)) <= set(expected)
    missing = set(expected) - set(found.pages)
    assert outcome.status == (1 if missing else 0)
    assert "Traceback" not in outcome.stderr
    check_kdump(out, expected, missing)


def test_first_process_without_memory(
    dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Any:
        raise MemoryError

    monkeypatch.setattr(writer.KdumpWriter, "flush", fail)
    outcome = command("extract", "-d8", dump, tmp_path / "out")
    assert assert_refused(outcome) == "drgn-tools: not enough memory\n"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("end", ["reads on", "goes away", "command killed", "Ctrl-C"])
def test_reader_that_stalls(
    end: str, blocking: bool, machine: Machine, dump: Path, tmp_path: Path
) -> None:
    """Nothing is lost while it does nothing; and nobody is left when it is gone."""
    reader, pipe = os.pipe()
    # Whoever else has the descriptor may have made it so.
    os.set_blocking(pipe, blocking)
    with tempfile.TemporaryFile() as err:
        pid = start(
            *("extract", "-d0", "--jobs", 2, "-F", dump),
            stdout=pipe,
            stderr=err.fileno(),
            close=reader,
        )
        os.close(pipe)
        head = os.read(reader, 100)
        wait_for(lambda: len(session(pid)) == 3)
        time.sleep(0.3)
        assert len(session(pid)) == 3
        if end == "reads on":
            out = tmp_path / "out"
            with open(out, "wb") as file:
                file.write(head)
                while data := os.read(reader, 1 << 20):
                    file.write(data)
        elif end == "goes away":
            os.close(reader)
        else:
            number = signal.SIGINT if end == "Ctrl-C" else signal.SIGKILL
            os.kill(pid, number)
        _, status = os.waitpid(pid, 0)
        wait_for(lambda: session(pid) == [])
        err.seek(0)
        said = err.read().decode()
    status = os.waitstatus_to_exitcode(status)
    if end == "reads on":
        assert status == 0
        check_kdump(rearranged(out), wanted(machine, 0), set())
    elif end == "goes away":
        assert (status, said.count("\n")) == (1, 1)
        assert "Broken pipe" in said
    elif end == "Ctrl-C":
        assert (status, said) == (130, "drgn-tools: stopped by SIGINT\n")
    if end != "goes away":
        os.close(reader)


# --- a file that changes ----------------------------------------------------------


@pytest.mark.parametrize("kind", ["elf", "kdump"])
@pytest.mark.parametrize("change", ["shrinks", "grows"])
def test_file_that_changes(
    change: str,
    kind: str,
    machine: Machine,
    dump: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between the plan and the pages: what is gone is missing, the rest is there."""
    source, out = tmp_path / "in", tmp_path / "out"
    expected = wanted(machine, 8)
    if kind == "elf":
        shutil.copy(dump, source)
        cut = place_of(dump, 1800) + 100
        missing = {pfn for pfn in expected if pfn >= 1800}
    else:
        pages = {pfn: machine.page(pfn) for pfn in machine.pfns()}
        write_kdump(source, pages, machine.notes(), codec="raw", dump_level=0)
        places = read_kdump(source).places
        cut = places[1800][0] + 100
        missing = {pfn for pfn in expected if sum(places[pfn][:2]) > cut}
    real = writer.KdumpWriter.start

    def start(self: Any) -> None:
        os.truncate(source, cut if change == "shrinks" else 64 * MIB)
        real(self)

    monkeypatch.setattr(writer.KdumpWriter, "start", start)
    outcome = command("extract", "-d8", "--jobs", 2, source, out)
    monkeypatch.undo()
    if change == "grows":
        assert outcome.status == 0
        missing = set()
    else:
        line = last_line(outcome)
        assert f"{len(missing)} pages could not be read" in line
        assert "beyond the end of the file" in line
    check_kdump(out, expected, missing)
