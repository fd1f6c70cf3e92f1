# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whatever `extract` writes, others read: crash, drgn, libkdumpfile, makedumpfile, gdb.

Split sets, streams, ELF cores, incomplete and refiltered dumps, of a real kernel.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import drgn
import numpy as np
import numpy.typing as npt
import pytest
from drgn.helpers.linux.pid import for_each_task
from elftools.elf.elffile import ELFFile

from contrib import bundle
from drgn_tools.formats import flattened
from drgn_tools.formats.notes import iter_notes
from drgn_tools.pages import PageClass
from drgn_tools.plan import find_struct_pages, page_classes
from drgn_tools.rearrange import rearrange, reassemble
from drgn_tools.verify import verify
from drgn_tools.vmcore import open_vmcore
from tests.synthetic import read_kdump

from . import bench, dumps, kernels, peers, qemu
from .dumps import Dump, Spec
from .kernels import Kernel
from .readers import Kdumpfile
from .test_extract import CRASH_OPTIONS, bitmap, extract, physical, program, runs

PAGE = 4096
COMMAND = [sys.executable, "-m", "drgn_tools", "extract"]


@pytest.fixture(scope="module")
def everyday() -> Dump:
    """The everyday kernel's vmcore."""
    return next(d for d in dumps.both(Spec("6.1", 4, True)) if d.kind == "vmcore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


class Whole(NamedTuple):
    """What is written to one file, and what readers see in it."""

    path: Path
    kept: npt.NDArray[np.bool_]
    tasks: list[tuple[int, bytes]]
    crash: dict[str, str]


@pytest.fixture(scope="module")
def wholes(everyday: Dump, folder: Path) -> Any:
    @functools.lru_cache(None)
    def whole(level: int) -> Whole:
        path = folder / f"whole-{level}"
        extract(everyday.path, path, "-d", str(level))
        kernel = everyday.kernel
        return Whole(path, bitmap(path), tasks(kernel, path), crash(kernel, path))

    return whole


# --- readers ----------------------------------------------------------------------


def tasks(kernel: Kernel, path: Path) -> list[tuple[int, bytes]]:
    """What drgn lists."""
    found = for_each_task(program(kernel, path))
    listed = [(task.pid.value_(), task.comm.string_()) for task in found]
    assert {b"init", b"kthreadd"} <= {comm for _, comm in listed}
    return listed


CRASH_COMMANDS = ("ps", "log", "bt -a", "mod")


def crash(kernel: Kernel, *paths: Path, options: tuple[str, ...] = ()) -> Any:
    """What crash answers to each command."""
    script = "\n".join(f"!echo @@{name}\n{name}" for name in CRASH_COMMANDS)
    more = [*options, *CRASH_OPTIONS.get(kernel.name, [])]
    done = subprocess.run(
        [*peers.argv("crash-sid"), "-s", *more, kernel.vmlinux, *paths],
        input=script + "\nquit\n",
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    answers = dict(part.split("\n", 1) for part in done.stdout.split("@@")[1:])
    assert tuple(answers) == CRASH_COMMANDS
    assert "kthreadd" in answers["ps"]
    return answers


def drgns_kdumpfile(*paths: Path) -> Kdumpfile:
    """The libkdumpfile that drgn brings along."""
    libraries = Path(drgn.__file__).parents[1] / "drgn.libs"
    found = sorted(libraries.glob("libkdumpfile*"))
    assert found, "this drgn brings no libkdumpfile of its own"
    return Kdumpfile(*paths, library=found[0])


def assert_kdumpfile_reads(
    source: Path, kept: npt.NDArray[np.bool_], *paths: Path, zeros: bool = False
) -> None:
    """All kept pages as in *source*, and no other, unless *zeros* may stand there."""
    reader, at = drgns_kdumpfile(*paths), physical(source)
    for pfn, count in runs(np.flatnonzero(kept)):
        assert reader.read(pfn * PAGE, count * PAGE) == at(pfn, count), hex(pfn)
    for pfn in np.flatnonzero(~kept)[:: max(1, int((~kept).sum()) // 64)]:
        said = reader.read(int(pfn) * PAGE, PAGE)
        assert isinstance(said, str) or (zeros and not any(said)), hex(pfn)


def makedumpfile(*arguments: object, stdin: Path | None = None) -> None:
    command = [*peers.argv("makedumpfile-sid"), "--message-level", "4"]
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(stdin.open("rb")) if stdin else subprocess.DEVNULL
        done = subprocess.run(
            [*command, *map(str, arguments)], stdin=file, capture_output=True
        )
    assert done.returncode == 0, done.stdout + done.stderr


def assert_pages(path: Path, expected: Path) -> None:
    """Two kdump-compressed files hold the same pages."""
    assert read_kdump(path).pages == read_kdump(expected).pages


def stream(source: Path, target: Path, *options: str) -> Path:
    with target.open("wb") as file:
        subprocess.run(
            [*COMMAND, *options, source],
            stdout=file,
            stderr=subprocess.PIPE,
            check=True,
        )
    return target


# --- split sets -------------------------------------------------------------------

SPLIT = [(31, "zstd"), (1, "lzo"), (31, "zlib"), (1, "snappy"), (0, "none")]


@pytest.mark.verified(
    "extract: split sets",
    by="makedumpfile --reassemble; crash, drgn and libkdumpfile",
    on="6.1",
)
@pytest.mark.parametrize(("level", "codec"), SPLIT)
def test_split(
    level: int, codec: str, everyday: Dump, wholes: Any, tmp_path: Path
) -> None:
    parts = [tmp_path / name for name in "abc"]
    options = ("-d", str(level), "--compress", codec)
    command = [*COMMAND, "--split", *options, everyday.path, *parts]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    kept = wholes(level).kept
    assert_kdumpfile_reads(everyday.path, kept, *parts)
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    makedumpfile("--reassemble", *parts, theirs)
    reassemble([str(parts[i]) for i in (2, 0, 1)], str(ours), False)
    for joined in (theirs, ours):
        assert_pages(joined, wholes(level).path)
        assert verify(str(joined), 1).sound
    if codec in ("zstd", "lzo"):
        assert crash(everyday.kernel, *parts) == wholes(level).crash
        assert tasks(everyday.kernel, theirs) == wholes(level).tasks


# --- streams ----------------------------------------------------------------------


@pytest.mark.verified(
    "extract: flattened streams",
    by="makedumpfile -R; crash, drgn and libkdumpfile",
    on="6.1",
)
@pytest.mark.parametrize(("level", "codec"), [(31, "zstd"), (1, "lzo")])
def test_flattened(
    level: int, codec: str, everyday: Dump, wholes: Any, tmp_path: Path
) -> None:
    flat, theirs, ours = (tmp_path / name for name in ("flat", "theirs", "ours"))
    stream(everyday.path, flat, "-d", str(level), "--compress", codec)
    makedumpfile("-R", theirs, stdin=flat)
    with flat.open("rb") as file:
        rearrange(file.fileno(), str(ours), False)
    assert ours.read_bytes() == theirs.read_bytes()
    assert_pages(ours, wholes(level).path)
    assert_kdumpfile_reads(everyday.path, wholes(level).kept, flat)
    assert tasks(everyday.kernel, flat) == wholes(level).tasks
    assert crash(everyday.kernel, flat) == wholes(level).crash
    # Whoever reads it as it is sorts its records first.
    with flat.open("rb") as file:
        count = 0
        for record in flattened.records(file.read):
            count += 1
            file.seek(record.size, os.SEEK_CUR)
    assert count < 10 + bitmap(ours).sum() / 256


# --- ELF cores --------------------------------------------------------------------


class Segments(NamedTuple):
    """PT_LOADs of an ELF core, as pyelftools has them."""

    flags: int
    loads: list[Any]

    def described(self) -> set[tuple[int, int]]:
        """Virtual and physical page frames that there are."""
        return {
            ((h.p_vaddr + at) // PAGE, (h.p_paddr + at) // PAGE)
            for h in self.loads
            for at in range(0, h.p_memsz, PAGE)
        }

    def in_file(self) -> dict[tuple[int, int], int]:
        """Of these, those with data, and where in the file."""
        return {
            ((h.p_vaddr + at) // PAGE, (h.p_paddr + at) // PAGE): h.p_offset + at
            for h in self.loads
            for at in range(0, h.p_filesz, PAGE)
        }


def segments(path: Path) -> Segments:
    with path.open("rb") as file:
        elf = ELFFile(file)
        loads = [s.header for s in elf.iter_segments("PT_LOAD")]
        return Segments(elf["e_flags"], loads)


@pytest.mark.verified(
    "extract: ELF cores",
    by="makedumpfile -E and -R; crash, drgn and libkdumpfile",
    on="6.1",
)
@pytest.mark.parametrize("level", [31, 1])
def test_elf(level: int, everyday: Dump, wholes: Any, tmp_path: Path) -> None:
    core, flat, made = (tmp_path / name for name in ("core", "flat", "made"))
    extract(everyday.path, core, "-E", "-d", str(level))
    stream(everyday.path, flat, "-E", "-d", str(level))
    makedumpfile("-R", made, stdin=flat)
    assert made.read_bytes() == core.read_bytes()

    kernel, whole = everyday.kernel, wholes(level)
    assert verify(str(core), 1).sound
    assert_kdumpfile_reads(everyday.path, whole.kept, core, zeros=True)
    assert tasks(kernel, core) == whole.tasks
    assert crash(kernel, core) == whole.crash
    assert crash(kernel, flat) == whole.crash

    # makedumpfile filters it further, to the same pages.
    further, at_once = tmp_path / "further", tmp_path / "at-once"
    makedumpfile("-l", "-d", "31", core, further)
    makedumpfile("-l", "-d", "31", everyday.path, at_once)
    assert_pages(further, at_once)

    # It describes the memory that the source and makedumpfile's own do.
    theirs = tmp_path / "theirs"
    makedumpfile("-E", "-d", str(level), everyday.path, theirs)
    mine, its = segments(core), segments(theirs)
    assert mine.flags == 0
    assert mine.described() == segments(everyday.path).described() == its.described()
    mine_at, its_at = mine.in_file(), its.in_file()
    with core.open("rb") as a, theirs.open("rb") as b:
        # Of a short gap between kept pages, it writes what is there, and we zeros.
        both = [p for p in mine_at.keys() & its_at.keys() if whole.kept[p[1]]]
        for place in both:
            assert os.pread(a.fileno(), PAGE, mine_at[place]) == os.pread(
                b.fileno(), PAGE, its_at[place]
            )
        # It leaves out pages of zeros, of which ours are holes in the file.
        for place in mine_at.keys() - its_at.keys():
            if whole.kept[place[1]]:
                assert not any(os.pread(a.fileno(), PAGE, mine_at[place]))
    assert len(both) > 10000


@pytest.mark.verified("extract: ELF cores", by="gdb", on="6.1")
def test_gdb_opens_elf(everyday: Dump, tmp_path: Path) -> None:
    gdb = bench.program("gdb")
    core = tmp_path / "core"
    extract(everyday.path, core, "-E")
    prog = program(everyday.kernel, core)
    banner = prog.symbol("linux_banner").address
    done = subprocess.run(
        [gdb, "--batch", "-nx", "--core", core, "-ex", f"x/s {banner:#x}"],
        capture_output=True,
        text=True,
    )
    assert f"Linux version {everyday.kernel.release}" in done.stdout, done.stderr


# --- incomplete -------------------------------------------------------------------


def incomplete(source: Path, target: Path, *options: str) -> str:
    done = subprocess.run(
        [*COMMAND, *options, source, target], capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert "is incomplete" in done.stderr
    return done.stderr


def check_incomplete(path: Path, expected: Path, wanted: npt.NDArray[np.bool_]) -> int:
    """No page of it is wrong, none that is missing is zeros; how many there are."""
    with open_vmcore(str(path)) as vmcore:
        there = vmcore.present(0, len(wanted))
    missing = wanted & ~there
    assert not (there & ~wanted).any() and missing.any()
    report = verify(str(path), 2)
    assert (report.missing, report.damaged) == (missing.sum(), 0)
    reader, at = drgns_kdumpfile(path), physical(expected)
    for pfn, count in runs(np.flatnonzero(there)):
        assert reader.read(pfn * PAGE, count * PAGE) == at(pfn, count)
    for pfn in np.flatnonzero(missing)[:: max(1, int(missing.sum()) // 500)]:
        assert isinstance(reader.read(int(pfn) * PAGE, PAGE), str)
    assert read_kdump(path).status & 8
    return int(there.sum())


@pytest.mark.verified(
    "extract: incomplete dumps open", by="crash, drgn and libkdumpfile", on="6.1"
)
@pytest.mark.parametrize(("level", "share"), [(31, 0.85), (1, 0.4)])
def test_limit(
    level: int, share: float, everyday: Dump, wholes: Any, tmp_path: Path
) -> None:
    """What readers need is written first, so that they open what there is."""
    path, whole = tmp_path / "cut", wholes(level)
    limit = int(share * whole.path.stat().st_size)
    said = incomplete(everyday.path, path, "-d", str(level), "-L", str(limit))
    assert path.stat().st_size <= limit
    count = check_incomplete(path, everyday.path, whole.kept)
    assert f"no room for {whole.kept.sum() - count} pages" in said
    assert tasks(everyday.kernel, path) == whole.tasks
    crash(everyday.kernel, path)
    # It stays incomplete.
    extract(path, tmp_path / "further", "-d", "1")
    further = read_kdump(tmp_path / "further")
    assert further.status & 8
    assert further.pages == {
        pfn: page
        for pfn, page in read_kdump(path).pages.items()
        if pfn in further.pages
    }
    assert len(further.pages) == count


@pytest.mark.verified(
    "extract: incomplete dumps open", by="crash, drgn and libkdumpfile", on="6.1"
)
def test_stopped(everyday: Dump, wholes: Any, tmp_path: Path) -> None:
    """SIGTERM keeps what is there."""
    path = tmp_path / "cut"
    options = ("-d", "1", "--compress", "zlib:9", "--jobs", "1")
    with subprocess.Popen(
        [*COMMAND, *options, everyday.path, path], stderr=subprocess.PIPE
    ) as process:
        # As soon as there are some pages, long before all are.
        while not any(p.stat().st_blocks > 8192 for p in tmp_path.glob(".cut*")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        said = process.communicate()[1].decode()
    assert process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM), said
    assert "is incomplete" in said
    check_incomplete(path, everyday.path, wholes(1).kept)


def test_limit_of_an_elf_core(everyday: Dump, tmp_path: Path) -> None:
    path = tmp_path / "core"
    incomplete(everyday.path, path, "-E", "-L", "50000000")
    assert segments(path).flags == 1
    report = verify(str(path), 1)
    assert (report.damaged, report.missing > 0) == (0, True)
    # What is beyond the end is missing, not zero.
    last = max(segments(path).loads, key=lambda h: h.p_offset)
    prog = drgn.Program()
    prog.set_core_dump(path)
    with pytest.raises(drgn.FaultError):
        prog.read(last.p_paddr, PAGE, physical=True)


# --- filtered further -------------------------------------------------------------

FURTHER = [
    ("ours", "zlib"),
    ("ours", "lzo"),
    ("ours", "snappy"),
    ("ours", "zstd"),
    ("ours", "none"),
    ("theirs", "-c"),
    ("theirs", "-l"),
    ("theirs", "-z"),
]


@pytest.mark.verified(
    "extract: dumps filtered further", by="crash, drgn and libkdumpfile", on="6.1"
)
@pytest.mark.parametrize(("whose", "codec"), FURTHER)
def test_filtered_further(
    whose: str, codec: str, everyday: Dump, wholes: Any, tmp_path: Path
) -> None:
    step, further = tmp_path / "step", tmp_path / "further"
    if whose == "ours":
        extract(everyday.path, step, "-d", "1", "--compress", codec)
    else:
        makedumpfile(codec, "-d", "1", everyday.path, step)
    extract(step, further, "-l")
    assert_kdumpfile_reads(everyday.path, wholes(31).kept, further)
    assert tasks(everyday.kernel, further) == wholes(31).tasks
    if codec in ("zstd", "-l"):
        assert crash(everyday.kernel, further) == wholes(31).crash


# --- without VMCOREINFO -----------------------------------------------------------


@pytest.mark.verified(
    "extract: VMCOREINFO found in memory", by="the note that the dump had", on="6.1"
)
def test_vmcoreinfo_found_in_memory(tmp_path: Path) -> None:
    """QEMU without -device vmcoreinfo: the dump is the same but for one note."""
    dump = next(d for d in dumps.both(Spec("6.1", 4, True)) if d.kind == "qemu")
    source, ours, expected = (tmp_path / n for n in ("source", "ours", "expected"))
    bench.run(["cp", "--sparse=always", dump.path, source])
    with source.open("r+b") as file:
        (notes,) = (s.header for s in ELFFile(file).iter_segments("PT_NOTE"))
        blob = os.pread(file.fileno(), notes.p_filesz, notes.p_offset)
        (found,) = (n for n in iter_notes(blob) if n.name == b"VMCOREINFO")
        # Nobody knows a note of this name, which is as long.
        at = blob.index(b"VMCOREINFO\0")
        os.pwrite(file.fileno(), b"NOBODYSOWN", notes.p_offset + at)
    with pytest.raises((drgn.FaultError, ValueError)):
        tasks(dump.kernel, source)
    extract(source, ours)
    extract(dump.path, expected)
    assert_pages(ours, expected)
    assert tasks(dump.kernel, ours) == tasks(dump.kernel, expected)
    with open_vmcore(str(ours)) as vmcore:
        assert vmcore.vmcoreinfo is not None
        place, size = vmcore.vmcoreinfo_place
        assert vmcore.notes[place : place + size].rstrip(b"\0") == found.desc.rstrip(
            b"\0"
        )


# --- memory swapped to zram -------------------------------------------------------


@pytest.mark.verified(
    "extract: leaving out zsmalloc", by="mm_stat of the same guest", on="7.2"
)
def test_exclude_zsmalloc(everyday: Dump, tmp_path: Path) -> None:
    said = extract(everyday.path, tmp_path / "out", "--exclude", "zsmalloc")
    assert "zsmalloc is not left out" in said
    dump = next(d for d in dumps.both(Spec("7.2", 5, True)) if d.kind == "vmcore")
    paths = tmp_path / "with", tmp_path / "without"
    assert "zsmalloc is not" not in extract(dump.path, paths[0])
    extract(dump.path, paths[1], "--exclude", "zsmalloc")
    with_, without = map(bitmap, paths)
    pool = np.zeros_like(with_)
    with open_vmcore(str(dump.path)) as vmcore:
        found = find_struct_pages(vmcore)
        for piece in page_classes(vmcore, found, 0, len(pool)):
            end = piece.pfn + len(piece.classes)
            pool[piece.pfn : end] = piece.classes == PageClass.ZSMALLOC
    assert (with_ & ~pool == without).all()
    # What the guest itself said that zram takes (mm_stat: mem_used_total).
    used = int(dump.fact("zram").split()[2])
    assert abs(int((with_ & pool).sum()) * PAGE - used) <= used // 20
    assert used > 1 << 20
    assert tasks(dump.kernel, paths[1]) == tasks(dump.kernel, paths[0])


# --- the running kernel -----------------------------------------------------------


class Live(NamedTuple):
    kernel: Kernel
    files: Path
    """What the guest wrote to its disk."""
    said: dict[str, str]
    """What commands printed."""
    before: list[tuple[int, bytes]]
    after: list[tuple[int, bytes]]


def _ps(text: str) -> list[tuple[int, bytes]]:
    rows = [line.split(None, 1) for line in text.splitlines()[1:]]
    return [(int(pid), comm.strip("{}").encode()) for pid, comm in rows]


LIVE_COMMANDS = {
    "info": "info /proc/kcore",
    "kdump": "extract -d 31 /proc/kcore /mnt/kdump",
    "elf": "extract -d 31 -E /proc/kcore /mnt/elf",
    "stream": "extract -d 31 /proc/kcore > /mnt/stream",
}


@pytest.fixture(scope="module", params=[("6.1", 4), ("7.2", 5)], ids=lambda p: p[0])
def live(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    name, levels = request.param
    kernel = kernels.get(name)
    work = tmp_path_factory.mktemp("live")
    disk, files = work / "disk", work / "files"
    with disk.open("wb") as file:
        file.truncate(512 << 20)
    bench.run(["mkfs.ext4", "-q", disk])
    python = bundle.files()
    said = {}
    with qemu.booted(
        kernel,
        memory_mib=1024,
        levels=levels,
        kaslr=True,
        smp=2,
        append="crashkernel=192M",
        disks=[qemu.Disk(disk, "dumps", keep=True)],
        files={f"/python/{path}": content for path, content in python.items()},
        folder=work,
    ) as vm:
        vm.run("mount -t ext4 /dev/vda /mnt")
        # Nothing shall be logged meanwhile.
        vm.run("dmesg -s 1000000 > /mnt/log")
        vm.run("/python/drgn-tools dmesg /proc/kcore > /mnt/dmesg")
        vm.run("cat /proc/iomem > /mnt/iomem")
        before = _ps(vm.run("ps -o pid,comm").text)
        for name, command in LIVE_COMMANDS.items():
            done = vm.run(f"/python/drgn-tools {command}", seconds=300)
            said[name] = done.text + done.stderr.decode()
        after = _ps(vm.run("ps -o pid,comm").text)
        vm.run("umount /mnt")
    files.mkdir()
    bench.run(["debugfs", "-R", "rdump / files", disk], cwd=work)
    disk.unlink()
    yield Live(kernel, files, said, before, after)


@pytest.mark.verified(
    "extract: the running kernel (/proc/kcore)",
    by="ps before and after, in the same guest; crash and drgn",
)
def test_live_dump(live: Live) -> None:
    for name in ("kdump", "elf", "stream"):
        path = live.files / name
        assert "warning: memory changed while it was read" in live.said[name]
        stayed = {*live.before} & {*live.after}
        assert len(stayed) > 20
        found = tasks(live.kernel, path)
        # Threads of the kernel may have other names than ps shows.
        assert {pid for pid, _ in stayed} <= {pid for pid, _ in found}
        with open_vmcore(str(path)) as vmcore:
            notes = {note.name for note in iter_notes(vmcore.notes)}
            assert not vmcore.live
        assert b"DRGN_TOOLS" in notes
    for name in ("kdump", "elf"):
        assert verify(str(live.files / name), 1).sound
        crash(live.kernel, live.files / name)


@pytest.mark.verified(
    "extract: the running kernel (/proc/kcore)", by="/proc/iomem of the same guest"
)
def test_live_dump_leaves_the_crash_kernels_memory_alone(live: Live) -> None:
    (line,) = (
        line
        for line in (live.files / "iomem").read_text().splitlines()
        if line.endswith("Crash kernel")
    )
    first, last = (int(part, 16) // PAGE for part in line.split(" : ")[0].split("-"))
    kept = bitmap(live.files / "kdump")
    assert last - first > 10000
    assert not kept[first:last].any()
    assert kept[:first].any()


@pytest.mark.verified("dmesg: of the running kernel", by="dmesg in the same guest")
def test_live_info_and_dmesg(live: Live) -> None:
    assert live.kernel.release in live.said["info"]
    assert "live kernel" in live.said["info"]
    theirs = (live.files / "log").read_text().splitlines()
    # Without who said it, and the indentation of further lines.
    ours = [
        re.sub(r"^(\[ *\d+\.\d+\] )\[ *[TC]\d+\] ", r"\1", line)
        for line in (live.files / "dmesg").read_text().splitlines()
    ]
    said = [line.split("] ", 1)[-1].strip() for line in theirs]
    assert len(said) > 100
    assert [line.split("] ", 1)[-1].strip() for line in ours] == said
