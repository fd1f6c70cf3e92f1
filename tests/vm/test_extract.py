# SPDX-License-Identifier: LGPL-2.1-or-later
"""`extract` on dumps of real kernels, against makedumpfile, drgn, crash, the guest."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import drgn
import numpy as np
import numpy.typing as npt
import pytest
from drgn.helpers.linux.module import for_each_module
from drgn.helpers.linux.pid import for_each_task
from drgn.helpers.linux.printk import get_dmesg

from drgn_tools.pages import PageClass
from drgn_tools.plan import find_struct_pages, page_classes
from drgn_tools.vmcore import Vmcore, open_vmcore

from . import dumps, peers
from .dumps import Dump, Spec
from .kernels import Kernel
from .relayout import ordinary, relayout

LEVELS = (0, 1, 2, 4, 8, 16, 23, 31)
# Every codec has its turn.
CODECS = {0: "lzo", 1: "snappy", 2: "lzo", 4: "snappy", 8: "zstd", 23: "zlib"}
CASES = [(spec, kind) for spec in dumps.MATRIX for kind in dumps.KINDS]


def case_name(case: tuple[Spec, str]) -> str:
    spec, kind = case
    return f"{spec.name}-{kind}"


class Case(NamedTuple):
    dump: Dump
    ordinary: Path
    """The same core as makedumpfile takes it."""


@pytest.fixture(scope="module", params=CASES, ids=case_name)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Case]:
    spec, kind = request.param
    dump = next(d for d in dumps.both(spec) if d.kind == kind)
    work = tmp_path_factory.mktemp("core")
    core = ordinary(dump.path, work)
    yield Case(dump, core)
    if core != dump.path:
        core.unlink()


def extract(source: Path, target: Path, *options: str) -> str:
    command = [sys.executable, "-m", "drgn_tools", "extract", *options]
    done = subprocess.run([*command, source, target], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def makedumpfile(dump: Dump, source: Path, target: Path, *options: str) -> None:
    # 1.7.2 is right up to Linux 6.2, later ones for the rest.
    old = dump.kernel.release.startswith(("5.", "6.1."))
    peer = peers.argv("makedumpfile-1.7.2" if old else "makedumpfile-sid")
    command = [*peer, "--message-level", "4", *options, str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def bitmap(path: Path) -> npt.NDArray[np.bool_]:
    with open_vmcore(str(path)) as vmcore:
        assert vmcore.header is not None
        return vmcore.present(0, vmcore.header.max_mapnr)


def runs(pfns: npt.NDArray[np.int64], longest: int = 2048) -> Iterator[tuple[int, int]]:
    """First page frame and length of each run in *pfns*."""
    edges = np.flatnonzero(np.diff(pfns) != 1) + 1
    for run in np.split(pfns, edges):
        for at in range(0, len(run), longest):
            yield int(run[at]), min(longest, len(run) - at)


def physical(path: Path) -> Any:
    """What drgn reads: ELF cores by itself, kdump-compressed through libkdumpfile."""
    prog = drgn.Program()
    prog.set_core_dump(path)
    return lambda pfn, count: prog.read(pfn * 4096, count * 4096, physical=True)


# Bits of /proc/kpageflags (include/uapi/linux/kernel-page-flags.h).
KPF_SLAB, KPF_BUDDY, KPF_ANON = 7, 10, 12
KPF_HUGE, KPF_HWPOISON, KPF_OFFLINE = 17, 19, 23


def unexplained(
    dump: Dump, level: int, differing: list[tuple[int, bool]]
) -> tuple[dict[str, int], list[str]]:
    """Sort page frames that only one of us keeps by makedumpfile's known faults.

    Each is proved by the guest's own words or by the struct page, not by our classes.
    """
    flags = np.frombuffer(dump.fact("kpageflags"), "<u8")
    explained: dict[str, int] = {}
    rest = []
    with open_vmcore(str(dump.path)) as vmcore:
        info = vmcore.vmcoreinfo
        assert info is not None
        for pfn, ours in differing:
            kpf = int(flags[pfn]) if pfn < len(flags) else 0
            words = struct_page(vmcore, pfn)
            if (
                not ours
                and level < 2
                and info.number("PG_hwpoison") is None
                and kpf >> KPF_OFFLINE & 1
            ):
                reason = "offline: without PG_hwpoison it looks at no page at -d 0, 1"
            elif not ours and kpf >> KPF_HWPOISON & 1 and words["tail"] & 1:
                reason = "poisoned tail page, which it does not look at"
            elif (
                not ours
                and info.number("PG_slab") is None
                and int(words["flags"]) >> 7 & 1
            ):
                reason = "PG_waiters, which it takes for PG_slab"
            elif (
                ours
                and level & 8
                and info.offset("page.compound_head") is None
                and words["tail"] & 1
                and words["mapping"] & 1
            ):
                # It reads the tail's unused mapping, and takes it for anonymous.
                reason = "tail by compound_info (7.1), which 1.7.8 does not know"
            else:
                rest.append(f"{pfn:#x} ours={ours} {words} kpageflags={kpf:#x}")
                continue
            explained[reason] = explained.get(reason, 0) + 1
    return explained, rest


def struct_page(vmcore: Vmcore, pfn: int) -> Any:
    layout, sections = find_struct_pages(vmcore)
    section = next(s for s in sections if s.pfn <= pfn < s.end_pfn)
    assert section.vaddr is not None
    size = layout.dtype.itemsize
    raw = vmcore.kernel.read(section.vaddr + (pfn - section.pfn) * size, size)
    return np.frombuffer(raw, layout.dtype)[0]


@pytest.mark.verified(
    "extract: which pages a level keeps",
    by="makedumpfile's bitmap, page frame by page frame, at -d 0 to 31",
)
@pytest.mark.parametrize("level", LEVELS)
def test_same_pages_as_makedumpfile(
    case: Case, level: int, tmp_path: Path, record_property: Any
) -> None:
    ours, theirs = tmp_path / "ours.kdump", tmp_path / "theirs.kdump"
    codec = CODECS.get(level, "zstd")
    extract(case.dump.path, ours, "-d", str(level), "--compress", codec)
    makedumpfile(case.dump, case.ordinary, theirs, "-d", str(level), "-l")

    mine, its = bitmap(ours), bitmap(theirs)
    assert len(mine) == len(its), "max_mapnr"
    differing = np.flatnonzero(mine != its)
    explained, rest = unexplained(
        case.dump, level, [(int(pfn), bool(mine[pfn])) for pfn in differing]
    )
    assert not rest, f"{len(rest)} page frames differ without a reason: {rest[:3]}"
    record_property("explained", explained)

    # Every page that both keep, through libkdumpfile, and from the source.
    mine_at, its_at = physical(ours), physical(theirs)
    source_at = physical(case.ordinary)
    both = np.flatnonzero(mine & its)
    for pfn, count in runs(both):
        page = mine_at(pfn, count)
        assert page == its_at(pfn, count), f"page frames {pfn:#x}+{count:#x}"
        assert page == source_at(pfn, count), f"page frames {pfn:#x}+{count:#x}"
    # And the ones that only we keep.
    for pfn, count in runs(np.flatnonzero(mine & ~its)):
        assert mine_at(pfn, count) == source_at(pfn, count)
    # What is left out is told as such, not given as zeros.
    for pfn in np.flatnonzero(~mine)[:: max(1, len(mine) // 8)]:
        with pytest.raises(drgn.FaultError):
            mine_at(int(pfn), 1)
    assert_reads_back(case.dump.path, ours)
    if level == 31:
        assert_reads_back(case.ordinary, theirs)


def assert_reads_back(source: Path, dump: Path) -> None:
    """Our own reader gives every page of *dump* as *source* has it."""
    with open_vmcore(str(source)) as core, open_vmcore(str(dump)) as filtered:
        assert filtered.header is not None
        kept = np.flatnonzero(filtered.present(0, filtered.header.max_mapnr))
        for at in range(0, len(kept), 512):
            pfns = kept[at : at + 512]
            assert list(core.pages(pfns)) == list(filtered.pages(pfns))


# What a page is by the guest's /proc/kpageflags, and our class for it.
GUEST_SAYS = {
    PageClass.FREE: KPF_BUDDY,
    PageClass.SLAB: KPF_SLAB,
    PageClass.HUGETLB: KPF_HUGE,
    PageClass.ANON: KPF_ANON,
    PageClass.OFFLINE: KPF_OFFLINE,
    PageClass.HWPOISON: KPF_HWPOISON,
}


@pytest.mark.verified(
    "extract: which pages a level keeps", by="/proc/kpageflags of the same guest"
)
@pytest.mark.verified(
    "pages: the class of each page", by="/proc/kpageflags of the same guest"
)
def test_classes_as_the_guest_says(case: Case) -> None:
    """Our classes are those of the guest's own /proc/kpageflags.

    It was read a moment before the dump, so a few pages may have moved on.
    """
    flags = np.frombuffer(case.dump.fact("kpageflags"), "<u8")
    ours = np.full(len(flags), 255, np.uint8)
    with open_vmcore(str(case.dump.path)) as vmcore:
        found = find_struct_pages(vmcore)
        for piece in page_classes(vmcore, found, 0, len(flags)):
            ours[piece.pfn : piece.pfn + len(piece.classes)] = piece.classes

    def said(bit: int) -> Any:
        return (flags >> np.uint64(bit) & np.uint64(1)).astype(bool) & (ours != 255)

    for page_class, bit in GUEST_SAYS.items():
        guest = said(bit)
        if page_class == PageClass.ANON:
            # Private huge pages are both; 6.12 also says it of slab pages, whose
            # mapping means something else.
            guest &= ~(said(KPF_HUGE) | said(KPF_SLAB))
        mine = ours == page_class
        agree, either = int((guest & mine).sum()), int((guest | mine).sum())
        assert agree >= 0.97 * either, f"{page_class.label}: {agree} of {either}"
        if page_class != PageClass.HWPOISON:  # Debian's 6.1 cannot make any.
            assert either > 100, f"the guest has no {page_class.label} pages"


def program(kernel: Kernel, path: Path) -> drgn.Program:
    prog = drgn.Program()
    prog.set_core_dump(path)
    prog.load_debug_info([kernel.vmlinux])
    return prog


@pytest.mark.verified(
    "extract: drgn opens the output", by="drgn on the whole dump: tasks, modules, log"
)
def test_drgn_sees_what_it_saw_before(case: Case, tmp_path: Path) -> None:
    """Tasks, modules and log of the filtered dump are those of the whole one."""
    filtered = tmp_path / "filtered.kdump"
    extract(case.dump.path, filtered)
    seen = []
    for path in (case.dump.path, filtered):
        prog = program(case.dump.kernel, path)
        tasks = [(t.pid.value_(), t.comm.string_()) for t in for_each_task(prog)]
        modules = [m.name.string_() for m in for_each_module(prog)]
        seen.append((tasks, modules, get_dmesg(prog)))
    assert seen[0] == seen[1]
    tasks, modules, log = seen[0]
    assert {b"init", b"kthreadd"} <= {comm for _, comm in tasks}
    guest = [line.split()[0] for line in case.dump.fact("modules").splitlines()]
    assert modules == guest
    assert b"Linux version " + case.dump.kernel.release.encode() in log


# crash 9.0.2 stops at the module list of 7.2, of whole cores too.
CRASH_OPTIONS = {"7.2": ["--no_modules"], "7.2-bench": ["--no_modules"]}


def crash(kernel: Kernel, dump: Path, commands: str) -> str:
    options = ["-s", *CRASH_OPTIONS.get(kernel.name, [])]
    done = subprocess.run(
        [*peers.argv("crash-sid"), *options, str(kernel.vmlinux), str(dump)],
        input=commands + "\nquit\n",
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


CRASH_COMMANDS = ("sys", "ps", "log", "bt -a", "kmem -i")


def crash_says(kernel: Kernel, dump: Path) -> dict[str, str]:
    """What crash answers to each command, without the dump's own name and kind."""
    script = "\n".join(f"!echo @@{name}\n{name}" for name in CRASH_COMMANDS)
    out = crash(kernel, dump, script).replace(str(dump), "-")
    answers = out.replace("  [PARTIAL DUMP]", "").split("@@")[1:]
    return dict(answer.split("\n", 1) for answer in answers)


# QEMU's dumps are of a running guest: `bt -a` has no panic to start from.
@pytest.mark.verified(
    "extract: crash opens the output",
    by="crash on makedumpfile's or on the whole dump: sys, ps, log, bt, kmem",
)
@pytest.mark.parametrize(
    "case", [c for c in CASES if c[1] == "vmcore"], ids=case_name, indirect=True
)
def test_crash_sees_what_it_sees_in_makedumpfiles(case: Case, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    extract(case.dump.path, ours, "-l")
    with open_vmcore(str(ours)) as vmcore:
        assert vmcore.vmcoreinfo is not None
        if vmcore.vmcoreinfo.offset("page.compound_head") is not None:
            makedumpfile(case.dump, case.ordinary, theirs, "-l", "-d", "31")
        else:
            # 1.7.8 drops slab pages of Linux 7.1 and later: see unexplained().
            theirs = case.dump.path
    mine, its = (crash_says(case.dump.kernel, path) for path in (ours, theirs))
    assert tuple(mine) == CRASH_COMMANDS
    for command, answer in mine.items():
        assert answer == its[command], command
        assert len(answer) > 100, f"{command}: {answer}"
        assert "excluded" not in answer, command
    assert "sysrq triggered crash" in mine["sys"]


@pytest.fixture(scope="module")
def everyday() -> Dump:
    """The everyday kernel's vmcore."""
    return next(d for d in dumps.both(Spec("6.1", 4, True)) if d.kind == "vmcore")


@pytest.mark.verified(
    "extract: crash reads every page, each codec", by="crash, page by page", on="6.1"
)
@pytest.mark.parametrize("codec", ["zlib", "lzo", "snappy", "zstd"])
def test_crash_reads_every_page(everyday: Dump, codec: str, tmp_path: Path) -> None:
    target = tmp_path / "dump"
    extract(everyday.path, target, "--compress", codec)
    kept = list(runs(np.flatnonzero(bitmap(target)), longest=1 << 18))
    script = tmp_path / "script"
    script.write_text(
        "".join(
            f"rd -r {tmp_path}/{pfn} -p {pfn * 4096:#x} {count * 4096}\n"
            for pfn, count in kept
        )
    )
    crash(everyday.kernel, target, f"< {script}")
    source = physical(everyday.path)
    for pfn, count in kept:
        assert (tmp_path / str(pfn)).read_bytes() == source(pfn, count), hex(pfn)
    assert sum(count for _, count in kept) > 1000


def test_layouts_that_makedumpfile_cannot_take(everyday: Dump, tmp_path: Path) -> None:
    """Data off page boundaries, PT_NOTE last: the dump is the same."""
    expected, odd = tmp_path / "expected", tmp_path / "odd"
    extract(everyday.path, expected, "-l", "--jobs", "1")
    source = relayout(everyday.path, tmp_path / "core", skew=0x490, notes_first=False)
    extract(source, odd, "-l", "--jobs", "1")
    assert odd.read_bytes() == expected.read_bytes()


def test_filtering_further_is_filtering_at_once(everyday: Dump, tmp_path: Path) -> None:
    """From our dump or from makedumpfile's, in any codec, -d 31 gives the same."""
    at_once = tmp_path / "at-once"
    extract(everyday.path, at_once)
    for option, level in (("-c", "1"), ("-l", "16"), ("-p", "2"), ("-z", "0")):
        step, further = tmp_path / "step", tmp_path / "further"
        extract(everyday.path, step, option, "-d", level)
        extract(step, further)
        assert (bitmap(further) == bitmap(at_once)).all()
        assert_reads_back(everyday.path, further)
        step.unlink()
        further.unlink()
    step, further = tmp_path / "step", tmp_path / "further"
    makedumpfile(everyday, everyday.path, step, "-c", "-d", "17")
    extract(step, further)
    assert (bitmap(further) == bitmap(at_once)).all()
    assert_reads_back(everyday.path, further)


def test_output_is_the_same_whatever_jobs_is(everyday: Dump, tmp_path: Path) -> None:
    first = tmp_path / "1"
    extract(everyday.path, first, "--jobs", "1")
    for jobs in ("2", "3", "5"):
        other = tmp_path / jobs
        extract(everyday.path, other, "--jobs", jobs)
        assert (bitmap(other) == bitmap(first)).all()
        assert other.stat().st_size == first.stat().st_size
        assert_reads_back(everyday.path, other)


@pytest.mark.verified(
    "info: what a dump is",
    by="what the bench knows of it: release, CPUs, panic",
    on="6.1",
)
def test_info_without_debuginfo(everyday: Dump, tmp_path: Path) -> None:
    target = tmp_path / "dump"
    extract(everyday.path, target)
    for path in (everyday.path, target):
        done = subprocess.run(
            [sys.executable, "-m", "drgn_tools", "info", path],
            capture_output=True,
            text=True,
            check=True,
        )
        assert everyday.kernel.release in done.stdout
        assert "Kernel panic - not syncing: sysrq triggered crash" in done.stdout
        assert "CPUs:        2" in done.stdout
