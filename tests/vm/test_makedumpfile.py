# SPDX-License-Identifier: LGPL-2.1-or-later
"""drgn-makedumpfile beside makedumpfile: the lines that distributions' scripts run."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from elftools.elf.elffile import ELFFile

from contrib import bundle
from tests.command import environment
from tests.command_lines import CHECKED, CHECKED_DIFFERENTLY

from . import dumps, kernels, peers, qemu
from .dumps import Dump, Spec
from .test_extract import bitmap, physical, runs, unexplained

OURS = [sys.executable, "-m", "drgn_tools.makedumpfile"]


class Run(NamedTuple):
    """What a run left."""

    status: int
    stdout: bytes
    stderr: bytes
    folder: Path


def run(command: list[str], line: str, folder: Path, stdin: Path | None = None) -> Run:
    """Run a line in an empty folder, so that names are the same for both."""
    folder.mkdir(exist_ok=True)
    with open(stdin or "/dev/null", "rb") as file:
        done = subprocess.run(
            [*command, *line.split()],
            stdin=file,
            capture_output=True,
            cwd=folder,
            env=environment(),
        )
    return Run(done.returncode, done.stdout, done.stderr, folder)


def both(line: str, dump: Dump, work: Path) -> tuple[Run, Run]:
    """The same line by drgn-makedumpfile and by makedumpfile."""
    line = line.replace("/proc/vmcore", str(dump.path))
    peer = peers.argv("makedumpfile-sid")
    theirs = run(peer, line, work / "theirs")
    for attempt in range(3):
        if theirs.status >= 0:
            break
        # With --num-threads, 1.7.8 now and then dies of SIGABRT.
        theirs = run(peer, line, work / f"theirs{attempt}")
    return run(OURS, line, work / "ours"), theirs


@pytest.fixture(scope="module")
def everyday() -> Dump:
    """The everyday kernel's vmcore."""
    return next(d for d in dumps.both(Spec("6.1", 4, True)) if d.kind == "vmcore")


def assert_same_dump(dump: Dump, level: int, ours: Path, theirs: Path) -> None:
    """The same pages but for makedumpfile's known faults, and in each the same."""
    mine, its = bitmap(ours), bitmap(theirs)
    assert len(mine) == len(its)
    differing = [(int(pfn), bool(mine[pfn])) for pfn in np.flatnonzero(mine != its)]
    _, rest = unexplained(dump, level, differing)
    assert not rest, rest[:3]
    assert_same_content(np.flatnonzero(mine & its), ours, theirs)


def assert_same_content(pfns: npt.NDArray[np.int64], ours: Path, theirs: Path) -> None:
    mine_at, its_at = physical(ours), physical(theirs)
    assert len(pfns) > 1000
    for pfn, count in runs(pfns):
        assert mine_at(pfn, count) == its_at(pfn, count), hex(pfn)


# --- the command line -------------------------------------------------------------


@pytest.mark.verified(
    "drgn-makedumpfile: `--check-params`", by="makedumpfile's exit status", on="6.1"
)
def test_check_params_is_makedumpfiles(tmp_path: Path) -> None:
    """What the tests of ours say that makedumpfile does, it does."""
    peer = peers.argv("makedumpfile-sid")
    expected = {**CHECKED, **{k: v[0] for k, v in CHECKED_DIFFERENTLY.items()}}
    found = {
        line: run(peer, f"--check-params {line}", tmp_path).status for line in expected
    }
    assert found == expected


# --- what scripts run -------------------------------------------------------------

TO_A_FILE = (
    # Fedora and RHEL (kdump.sh), Debian (kdump-config).
    "-l --message-level 7 -d 31 /proc/vmcore vmcore",
    "-l --message-level 7 -d 31 --num-threads=2 /proc/vmcore vmcore",
    "-c --message-level 7 -d 31 /proc/vmcore vmcore",
    "-c -d 31 /proc/vmcore vmcore",
    "-d 0 /proc/vmcore vmcore",
)


@pytest.mark.verified(
    "drgn-makedumpfile: lines of the distributions' scripts",
    by="makedumpfile: the same pages, words and exit status",
    on="6.1",
)
@pytest.mark.parametrize("line", TO_A_FILE)
def test_to_a_file(line: str, everyday: Dump, tmp_path: Path) -> None:
    ours, theirs = both(line, everyday, tmp_path)
    assert (ours.status, theirs.status) == (0, 0)
    assert ours.stdout == theirs.stdout
    level = 31 if "31" in line else 0
    assert_same_dump(everyday, level, ours.folder / "vmcore", theirs.folder / "vmcore")


ON_A_PIPE = (
    # Fedora and RHEL, to raw and ssh targets.
    "-l --message-level 7 -d 31 -F /proc/vmcore",
    # SUSE (kdump-save), for each KDUMP_DUMPFORMAT.
    "-F -c --num-threads 2 --message-level 6 -d 31 /proc/vmcore",
    "-F -l --num-threads 2 --message-level 6 -d 31 /proc/vmcore",
    "-F -p --num-threads 2 --message-level 6 -d 31 /proc/vmcore",
    "-F -z --num-threads 2 --message-level 6 -d 31 /proc/vmcore",
    "-F -z --message-level 6 -d 31 /proc/vmcore",
    "-F -E --message-level 6 -d 31 /proc/vmcore",
)


@pytest.mark.verified(
    "drgn-makedumpfile: lines of the distributions' scripts",
    by="makedumpfile -R of our stream, and the reverse",
    on="6.1",
)
@pytest.mark.parametrize("line", ON_A_PIPE)
def test_on_a_pipe(line: str, everyday: Dump, tmp_path: Path) -> None:
    """Each rearranges what the other wrote."""
    ours, theirs = both(line, everyday, tmp_path)
    assert (ours.status, theirs.status) == (0, 0)
    if "--message-level 6" in line and "-p" not in line:
        # makedumpfile is built without snappy, and says so.
        assert ours.stderr == theirs.stderr
    peer = peers.argv("makedumpfile-sid")
    stream = tmp_path / "stream"
    stream.write_bytes(ours.stdout)
    by_it = run(peer, "-R vmcore", ours.folder, stream)
    ours_by_us = run(OURS, "-R vmcore", tmp_path / "again", stream)
    assert (by_it.status, ours_by_us.status) == (0, 0)
    assert by_it.stdout == ours_by_us.stdout
    files = [folder / "vmcore" for folder in (by_it.folder, ours_by_us.folder)]
    assert files[0].read_bytes() == files[1].read_bytes()
    stream.write_bytes(theirs.stdout)
    assert run(OURS, "-R vmcore", theirs.folder, stream).status == 0
    if "-E" not in line:
        assert_same_dump(everyday, 31, files[0], theirs.folder / "vmcore")
        return
    assert files[0].read_bytes()[:4] == b"\x7fELF"
    kept = tmp_path / "kept"
    whole = f"-d 31 -l {everyday.path} {kept}"
    assert run(peer, whole, tmp_path).status == 0
    pfns = np.flatnonzero(bitmap(kept))
    assert_same_content(pfns, files[0], theirs.folder / "vmcore")


@pytest.mark.verified(
    "drgn-makedumpfile: `--split`, `--reassemble`",
    by="makedumpfile, each with the other's parts",
    on="6.1",
)
@pytest.mark.parametrize("streams", [2, 3])
def test_split(streams: int, everyday: Dump, tmp_path: Path) -> None:
    """Each reassembles what the other split."""
    names = " ".join(f"vmcore{i}" for i in range(streams))
    line = f"--split -l -d 31 --message-level 6 /proc/vmcore {names}"
    ours, theirs = both(line, everyday, tmp_path)
    assert (ours.status, theirs.status) == (0, 0)
    assert (ours.stdout, ours.stderr) == (theirs.stdout, theirs.stderr)
    peer = peers.argv("makedumpfile-sid")
    line = f"--reassemble {names} vmcore"
    it, us = run(peer, line, ours.folder), run(OURS, line, theirs.folder)
    assert (it.status, us.status) == (0, 0)
    assert it.stdout == us.stdout
    assert_same_dump(everyday, 31, ours.folder / "vmcore", theirs.folder / "vmcore")


@pytest.mark.verified(
    "drgn-makedumpfile: `--dump-dmesg`", by="makedumpfile, to the byte", on="6.1"
)
@pytest.mark.parametrize(
    "line",
    [
        "--dump-dmesg /proc/vmcore dmesg",
        "--dump-dmesg --partial-dmesg /proc/vmcore dmesg",
        "-F --message-level 8 --dump-dmesg /proc/vmcore",
        "-F --message-level 14 --dump-dmesg /proc/vmcore",
    ],
)
def test_dmesg(line: str, everyday: Dump, tmp_path: Path) -> None:
    ours, theirs = both(line, everyday, tmp_path)
    assert (ours.status, theirs.status) == (0, 0)
    assert ours.stdout == theirs.stdout
    if "-F" in line:
        assert ours.stdout.count(b"\n") > 100
        for key in (b"OSRELEASE", b"CRASHTIME"):
            said = [line for line in ours.stderr.splitlines() if key in line]
            assert len(said) == 1
            assert said[0] in theirs.stderr.splitlines()
    else:
        mine, its = ((r.folder / "dmesg").read_bytes() for r in (ours, theirs))
        assert mine == its
        assert mine.count(b"\n") > 100


# --- numbers ----------------------------------------------------------------------


def numbers(report: bytes) -> dict[str, int]:
    """Counts of a report, by makedumpfile's names."""
    lines = re.findall(r"^ *(\S.*?) *: (0x[0-9a-f]{16})$", report.decode(), re.M)
    return {name: int(count, 16) for name, count in lines}


def twice(core: IO[bytes]) -> int:
    """Pages that two segments have: the kernel's image."""
    pages = []
    for segment in ELFFile(core).iter_segments("PT_LOAD"):
        start, size = segment["p_paddr"], segment["p_memsz"]
        # Not what /proc/kcore has of virtual memory.
        if start + size < 1 << 52:
            pages.append(np.arange(start >> 12, start + size + 4095 >> 12))
    every = np.concatenate(pages)
    overlap = len(every) - len(np.unique(every))
    assert overlap > 1000
    return overlap


def corrected(report: bytes, dump: Dump) -> dict[str, int]:
    """makedumpfile's counts; pages that two segments have, it counts twice."""
    counts = numbers(report)
    with open(dump.path, "rb") as file:
        overlap = twice(file)
    counts["Original pages"] -= overlap
    counts["Remaining pages"] -= overlap
    counts["Memory Hole"] += overlap
    # Here there are none.
    assert counts.pop("Extension filter pages", 0) == 0
    assert len(counts) > 10
    return counts


# Not 0 and 1: at these it looks at no page of a kernel without PG_hwpoison, and
# does not know the offline ones.
@pytest.mark.verified(
    "drgn-makedumpfile: counts of pages", by="makedumpfile's report", on="6.1"
)
@pytest.mark.parametrize("level", [2, 4, 8, 16, 23, 31])
def test_report(level: int, everyday: Dump, tmp_path: Path) -> None:
    line = f"--show-stats --dry-run -d {level} -l /proc/vmcore out"
    ours, theirs = both(line, everyday, tmp_path)
    assert (ours.status, theirs.status) == (0, 0)
    assert numbers(ours.stdout) == corrected(theirs.stdout, everyday)
    assert not list(tmp_path.glob("*/out"))


@pytest.mark.verified(
    "drgn-makedumpfile: `--mem-usage` of a dump",
    by="a report of makedumpfile on it",
    on="6.1",
)
def test_memory_usage(everyday: Dump, tmp_path: Path) -> None:
    """The counts are those of a report; it takes none but a live kernel's."""
    ours = run(OURS, f"--mem-usage {everyday.path}", tmp_path)
    line = f"--show-stats --dry-run -d 31 {everyday.path} out"
    theirs = run(peers.argv("makedumpfile-sid"), line, tmp_path)
    report = corrected(theirs.stdout, everyday)
    found = usage(ours.stdout)
    names = {
        "ZERO": "Pages filled with zero",
        "NON_PRI_CACHE": "Non-private cache pages",
        "PRI_CACHE": "Private cache pages",
        "USER": "User process data pages",
        "FREE": "Free pages",
        "KERN_DATA": "Remaining pages",
        "Total pages": "Original pages",
    }
    assert found == {name: report[long] for name, long in names.items()}


def usage(table: bytes) -> dict[str, int]:
    """Pages by kind of what --mem-usage prints."""
    rows = re.findall(rb"^([A-Z_]+)\t+(\d+) *\t(?:yes|no)\t", table, re.M)
    total = re.findall(rb"^(Total pages) on system:\t(\d+) *$", table, re.M)
    return {name.decode(): int(pages) for name, pages in [*rows, *total]}


# Ours stays until theirs is done, with the memory that it takes.
LIVE = """
dd if=/dev/urandom of=/dev/shm/noise bs=1M count=100 || exit 1
PYTHONHOME=/python PYTHONPATH=/python/modules \\
/python/lib/{loader} --library-path /python/lib /python/python3 -sS -c '
import time
from drgn_tools.makedumpfile import _command
_command(["--mem-usage", "/proc/kcore"])
print("END", flush=True)
time.sleep(1000)
' > /tmp/ours &
until grep END /tmp/ours; do kill -0 $! || exit 1; sleep 1; done
/peer/lib/{peer} --library-path /peer/lib /peer/bin/makedumpfile \\
	--mem-usage /proc/kcore > /tmp/theirs || exit 1
kill $!
"""


@pytest.mark.verified(
    "drgn-makedumpfile: `--mem-usage` of /proc/kcore",
    by="makedumpfile in the same guest",
    on="6.1",
)
def test_memory_usage_of_a_live_kernel() -> None:
    """Asked one after the other: but for what moved meanwhile, they say the same."""
    python = bundle.files()
    loader = next(Path(n).name for n in python if n.startswith("lib/ld-"))
    peer_loader, *_, program = map(Path, peers.argv("makedumpfile-sid"))
    peer = program.parents[1]
    files: dict[str, bytes | Path] = {
        f"/python/{name}": content for name, content in python.items()
    }
    for path in (program, *(peer / "lib").iterdir()):
        files[f"/peer/{path.relative_to(peer)}"] = path
    with qemu.booted(
        kernels.get("6.1"), files=files, memory_mib=1280, append="crashkernel=192M"
    ) as vm:
        vm.run(LIVE.format(loader=loader, peer=peer_loader.name), seconds=300)
        ours, theirs = (
            usage(vm.run(f"cat /tmp/{name}").stdout) for name in ("ours", "theirs")
        )
        overlap = twice(io.BytesIO(vm.run("head -c 65536 /proc/kcore").stdout))
    assert ours.keys() == theirs.keys() and len(ours) == 7
    assert ours["NON_PRI_CACHE"] > 25600
    # It does count what is reserved for the capture kernel, as zeros.
    theirs["ZERO"] -= 192 * 256
    theirs["KERN_DATA"] -= overlap
    theirs["Total pages"] -= 192 * 256 + overlap
    assert ours["Total pages"] == theirs["Total pages"]
    # A CPU has up to 50 MiB of free pages in a list of its own, which nobody can tell
    # from the kernel's.
    for table in (ours, theirs):
        table["KERN_DATA"] += table.pop("FREE")
    # What Python had while it counted and has given back: 10 MiB.
    for name, pages in theirs.items():
        assert abs(ours[name] - pages) < 2560, f"{name}\n{ours}\n{theirs}"


# --- failures ---------------------------------------------------------------------


@pytest.mark.verified(
    "drgn-makedumpfile: failures",
    by="makedumpfile: the same status, on the same stream",
    on="6.1",
)
@pytest.mark.parametrize(
    "line",
    [
        "-d 31 /proc/vmcore /etc/passwd",
        "--split -d 31 /proc/vmcore out /etc/passwd more",
        "--dump-dmesg /proc/vmcore /etc/passwd",
        "-R /etc/passwd",
        "-d 32 /proc/vmcore out",
        "-d -1 /proc/vmcore out",
        "--message-level 32 /proc/vmcore out",
        "-L nonsense /proc/vmcore out",
        "-c -E /proc/vmcore out",
        "-d 31 missing out",
        "-F -d 31 missing",
        "-d 31 /etc/passwd out",
        "-d 31 /proc/vmcore missing/out",
        "--dump-dmesg missing out",
        "--reassemble missing other out",
        "-i missing -d 31 /proc/vmcore out",
        "--message-level 0 -d 31 missing out",
        "",
    ],
)
def test_failures(line: str, everyday: Dump, tmp_path: Path) -> None:
    """Status and all but the reason's own words, on the same stream."""
    ours, theirs = both(line, everyday, tmp_path)
    assert (ours.status, theirs.status) == (1, 1)
    said = ours.stdout.replace(b"`drgn-makedumpfile", b"`makedumpfile")
    assert said == theirs.stdout
    assert bool(ours.stderr) == bool(theirs.stderr)
    assert not list(ours.folder.iterdir())


def test_incomplete(everyday: Dump, tmp_path: Path) -> None:
    """Where all levels are too large, what fits is kept, and marked."""
    line = "-L 4M -l -d 16,31 --message-level 6 /proc/vmcore out"
    ours, theirs = both(line, everyday, tmp_path)
    assert (ours.status, theirs.status) == (1, 1)
    for said in (ours.stdout, theirs.stdout):
        assert b"Retry to create a dumpfile by dump_level(31).\n" in said
        assert b"This is an incomplete dumpfile, but might analyzable.\n" in said
        assert said.endswith(b"\nmakedumpfile Failed.\n")
    sizes = [(r.folder / "out").stat().st_size for r in (ours, theirs)]
    assert max(sizes) <= 4 << 20


def test_another_kernels_vmcoreinfo(everyday: Dump, tmp_path: Path) -> None:
    other = tmp_path / "vmcoreinfo"
    release = everyday.kernel.release
    other.write_text(f"OSRELEASE={release}x\nPAGESIZE=4096\n")
    ours, theirs = both(f"-i {other} -d 31 /proc/vmcore out", everyday, tmp_path)
    assert (ours.status, theirs.status) == (2, 2)
    assert ours.stdout == theirs.stdout
    assert b"don't match" in ours.stderr and b"don't match" in theirs.stderr
