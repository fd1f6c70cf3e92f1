# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What goes wrong, through the real command: one line on stderr, the exit status, and
nothing left behind.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shlex
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import drgn
import numpy as np
import pytest
import zstandard

from drgn_tools.errors import MissingMemory
from drgn_tools.vmcore import open_vmcore
from tests.command import (
    COMMAND,
    Outcome,
    assert_done,
    assert_refused,
    drgn_tools,
    drgn_tools_forked,
    environment,
)
from tests.synthetic import (
    BY_NAME,
    MIB,
    PAGE,
    Load,
    Machine,
    note,
    prstatus,
    read_kdump,
    text_page,
    vmcoreinfo_text,
    write_elf,
    write_kdump,
)

LOG = [(1000, "Linux version"), (2000, "Kernel panic - not syncing: test")]


@pytest.fixture(scope="module")
def machine() -> Machine:
    machine = Machine(ram=((0, 6 * MIB),), log=LOG)
    machine.pages[0].anon(5)
    return machine


@pytest.fixture(scope="module")
def dump(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dump that nothing is wrong with."""
    path = tmp_path_factory.mktemp("source") / "vmcore"
    write_elf(path, machine.loads()[1:], machine.notes())
    return path


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """An empty directory, for outputs."""
    path = tmp_path / "room"
    path.mkdir()
    return path


def refused(source: object, room: Path, *options: str, status: int = 1) -> str:
    """Extraction of *source* must fail and leave *room* empty."""
    outcome = drgn_tools("extract", *options, source, room / "out")
    line = assert_refused(outcome, status)
    assert os.listdir(room) == []
    return line


# --- inputs that are no dumps -----------------------------------------------------


def _elf(path: Path, **changes: int) -> None:
    """A small core without VMCOREINFO, some bytes of its header changed."""
    write_elf(path, [Load(MIB, b"m" * PAGE)])
    places = {"class": 4, "data": 5, "type": 16, "machine": 18, "phentsize": 54}
    with open(path, "r+b") as file:
        for name, value in changes.items():
            width = 1 if name in ("class", "data") else 2
            file.seek(places[name])
            file.write(value.to_bytes(width, "little"))


def _elf32(path: Path) -> None:
    ident = b"\x7fELF\1\1\1".ljust(16, b"\0")
    header = struct.pack("<HHIIIIIHHHHHH", 4, 3, 1, 0, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    path.write_bytes(ident + header + struct.pack("<8I", 1, 84, 0, 0, 4, 4, 7, 0))


def _big_endian(path: Path) -> None:
    ident = b"\x7fELF\2\2\1".ljust(16, b"\0")
    header = struct.pack(">HHIQQQIHHHHHH", 4, 21, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    path.write_bytes(ident + header + bytes(56))


def _cut(size: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        write_elf(path, [Load(MIB * i, b"m" * PAGE) for i in range(8)], prstatus(1))
        os.truncate(path, size)

    return make


def _bytes(data: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(data)

    return make


def _flattened(path: Path) -> None:
    header = b"makedumpfile".ljust(16, b"\0") + struct.pack(">qq", 1, 1)
    path.write_bytes(header.ljust(4096, b"\0") + b"\xff" * 16)


def _kdump_cut(path: Path) -> None:
    write_kdump(path, dict.fromkeys(range(16), b"m" * PAGE))
    os.truncate(path, 3 * PAGE)


def _kdump_foreign(path: Path) -> None:
    write_kdump(path, dict.fromkeys(range(16), b"m" * PAGE))
    with path.open("r+b") as file:
        file.seek(12 + 4 * 65)  # utsname.machine
        file.write(b"aarch64\0")


def _kdump_s390x(path: Path) -> None:
    _kdump_foreign(path)
    with path.open("r+b") as file:
        file.seek(12 + 4 * 65)
        file.write(b"s390x\0\0\0")
        file.seek(428)  # The size of a block, and all numbers, the other way round.
        file.write(struct.pack(">I", PAGE))


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


NO_DUMPS: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda path: None, "No such file"),
    "empty": (lambda path: path.touch(), "empty"),
    "text": (_bytes(b"Dear kernel,\n" * 1000), "not a dump"),
    "zeros": (_bytes(bytes(1 << 20)), "not a dump"),
    "directory": (lambda path: path.mkdir(), "directory"),
    "socket": (_socket, "No such device"),
    "dangling": (lambda path: path.symlink_to("nowhere"), "No such file"),
    "loop": (lambda path: path.symlink_to(path.name), "symbolic link"),
    "magic": (_bytes(b"\x7fELF"), "cut short"),
    "ident": (_bytes(b"\x7fELF\2\1\1"), "cut short"),
    "header": (_cut(50), "cut short"),
    "phdrs": (_cut(64 + 56 * 3 + 20), "cut short"),
    "program": (lambda path: path.symlink_to("/bin/true"), "not a core"),
    "32-bit": (_elf32, "32-bit"),
    "big-endian": (_big_endian, "little-endian"),
    "aarch64": (lambda path: _elf(path, machine=183), "AARCH64"),
    "s390": (lambda path: _elf(path, machine=22), "S390"),
    "unheard-of": (lambda path: _elf(path, machine=0x7777), "only x86-64"),
    "phentsize": (lambda path: _elf(path, phentsize=1), "damaged"),
    "no memory": (lambda path: write_elf(path, [], prstatus(1)), "without memory"),
    "flattened": (_flattened, "flattened"),
    "kdump magic": (_bytes(b"KDUMP   "), "cut short"),
    "kdump header": (_bytes(b"KDUMP   " + bytes(500)), "damaged"),
    "kdump bitmaps": (_kdump_cut, "cut short"),
    "kdump foreign": (_kdump_foreign, "aarch64"),
    "kdump big-endian": (_kdump_s390x, "a dump of s390x"),
}


@pytest.mark.parametrize("name", NO_DUMPS)
def test_no_dump(name: str, tmp_path: Path, room: Path) -> None:
    make, why = NO_DUMPS[name]
    path = tmp_path / "in"
    make(path)
    line = refused(path, room)
    assert why in line and str(path) in line
    outcome = drgn_tools_forked("extract", "-d0", "--partial", path, room / "out")
    assert assert_refused(outcome) == line
    assert os.listdir(room) == []
    # info says the same.
    assert assert_refused(drgn_tools("info", path)) == line


# --- cut short --------------------------------------------------------------------


def test_data_cut_short(machine: Machine, tmp_path: Path, room: Path) -> None:
    path = tmp_path / "in"
    write_elf(path, machine.loads()[1:], machine.notes())
    os.truncate(path, path.stat().st_size - MIB)
    line = refused(path, room)
    assert "cut short" in line and "1.0 MiB" in line and "--partial" in line

    out = room / "out"
    said = assert_done(drgn_tools("extract", "--partial", "-d", "0", path, out))
    assert "256 pages are missing" in said
    found = read_kdump(out)
    assert found.status & 0x8
    assert set(found.pages) == set(range(5 * MIB // PAGE))
    prog = drgn.Program()
    prog.set_core_dump(str(out))
    assert prog.read(3 * MIB, PAGE, physical=True) == machine.page(768)
    with pytest.raises(drgn.FaultError):
        prog.read(5 * MIB, PAGE, physical=True)

    for name in (path, out):
        outcome = drgn_tools("info", name)
        assert_done(outcome)
        assert "cut short by 1.0 MiB" in outcome.stdout or name == out
        assert "incomplete" in outcome.stdout or name == path


def test_cut_before_the_struct_pages(
    machine: Machine, tmp_path: Path, room: Path
) -> None:
    """No page tables: -d 31 cannot be, and what is there can still be kept."""
    path = tmp_path / "in"
    write_elf(path, machine.loads()[1:], machine.notes())
    os.truncate(path, path.stat().st_size - 5 * MIB)
    line = refused(path, room, "--partial")
    assert "only -d 0 and -d 1" in line
    said = assert_done(drgn_tools("extract", "--partial", "-d1", path, room / "out"))
    assert "warning: " in said and "1280 pages are missing" in said
    assert set(read_kdump(room / "out").pages) == set(range(MIB // PAGE))
    outcome = drgn_tools("info", path)
    assert_done(outcome)
    assert "release:     7.2.0-synthetic" in outcome.stdout


def test_kdump_cut_short(machine: Machine, tmp_path: Path, room: Path) -> None:
    path = tmp_path / "in"
    machine.loads()
    pages = {pfn: machine.page(pfn) for pfn in machine.pfns()}
    write_kdump(path, pages, machine.notes())
    cut = path.stat().st_size - PAGE
    places = read_kdump(path).places
    lost = {pfn for pfn, (at, size, _) in places.items() if at + size > cut}
    os.truncate(path, cut)
    line = refused(path, room)
    assert "cut short" in line and "--partial" in line
    for jobs in ("1", "2"):
        out = room / jobs
        command = ("extract", "--partial", "-d0", "--jobs", jobs, path, out)
        assert f"{len(lost)} pages are missing" in assert_done(drgn_tools(*command))
        found = read_kdump(out)
        assert found.status & 0x8
        # All but the one whose data is gone.
        assert len(found.pages) == len(pages) - 1
        assert found.pages.items() <= pages.items()
    assert sorted(os.listdir(room)) == ["1", "2"]
    told = drgn_tools("info", path)
    assert_done(told)
    assert "cut short by " in told.stdout
    with open_vmcore(str(path)) as vmcore:
        assert vmcore.lost_pages == len(lost)
        assert vmcore.lost_bytes == sum(places[pfn][1] for pfn in lost)
        with pytest.raises(MissingMemory, match="end of the file: the dump is cut"):
            vmcore.read(max(lost) * PAGE, 8)


def test_kdump_cut_in_its_descriptors(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "in"
    pages = {pfn: b"%04d" % pfn * (PAGE // 4) for pfn in range(40)}
    places = write_kdump(path, pages, machine.notes())
    os.truncate(path, places.descriptors + 24 * 10)
    with open_vmcore(str(path)) as vmcore:
        assert vmcore.lost_pages == 40
        assert not vmcore.present(0, 10).any()
        with pytest.raises(MissingMemory, match="the dump is cut short"):
            vmcore.read(20 * PAGE, 8)


# --- VMCOREINFO -------------------------------------------------------------------


@pytest.mark.parametrize("notes", [b"", prstatus(1), note(b"VMCOREINFO", 0, b"")])
def test_no_vmcoreinfo(notes: bytes, tmp_path: Path, room: Path) -> None:
    path = tmp_path / "in"
    data = bytes(PAGE) + text_page(1) * 3
    write_elf(path, [Load(MIB, data)], notes, note_place="first" if notes else "none")
    for level in ("2", "31"):
        outcome = drgn_tools_forked("extract", "-d", level, path, room / "out")
        assert "only -d 0 and -d 1" in assert_refused(outcome)
        assert os.listdir(room) == []
    for level in ("0", "1"):
        out = room / level
        said = assert_done(drgn_tools_forked("extract", "-d", level, path, out))
        assert said.startswith("warning: ")
        assert b"".join(read_kdump(out).pages.values()) == data
        outcome = drgn_tools_forked("info", out)
        assert_done(outcome)
        assert "unknown: no VMCOREINFO" in outcome.stdout or notes.endswith(b"\0")
    assert_done(drgn_tools_forked("info", path))


# Keys without which no struct page can be read.
NEEDED = (
    "PAGESIZE",
    "SYMBOL(mem_section)",
    "SIZE(mem_section)",
    "OFFSET(mem_section.section_mem_map)",
    "NUMBER(SECTION_SIZE_BITS)",
    "NUMBER(MAX_PHYSMEM_BITS)",
    "NUMBER(phys_base)",
    "SIZE(page)",
    "OFFSET(page.flags)",
    "OFFSET(page.mapping)",
    "OFFSET(page._mapcount)",
    "OFFSET(page.private)",
    "OFFSET(page.compound_head)",
    "LENGTH(zone.free_area)",
    "NUMBER(PG_lru)",
    "NUMBER(PG_private)",
    "NUMBER(PG_swapcache)",
    "NUMBER(PG_head_mask)",
    "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)",
)
# And keys that are for headers, names and the log.
SENSITIVE = (
    *NEEDED,
    "CRASHTIME",
    "SYMBOL(init_uts_ns)",
    "OFFSET(uts_namespace.name)",
    "NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)",
    "NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)",
    "NUMBER(PAGE_HUGETLB_MAPCOUNT_VALUE)",
    "NUMBER(PAGE_UNACCEPTED_MAPCOUNT_VALUE)",
    "NUMBER(sme_mask)",
    "SYMBOL(prb)",
    "SIZE(prb_desc)",
)
GARBAGE = ("", "garbage", "-1", "0", "9" * 19, "9" * 40)


def write_patchable(path: Path, machine: Machine) -> Callable[[dict[str, str]], None]:
    """A dump, and a function that gives it another VMCOREINFO in place."""
    text = vmcoreinfo_text(machine.keys).ljust(8000, b"\0")
    notes = prstatus(1) + note(b"VMCOREINFO", 0, text)
    write_elf(path, machine.loads()[1:], notes)
    at = path.read_bytes().index(b"OSRELEASE=")

    def patch(keys: dict[str, str]) -> None:
        with open(path, "r+b") as file:
            file.seek(at)
            file.write(vmcoreinfo_text(keys).ljust(8000, b"\0"))

    return patch


def info_is_fine(path: Path) -> None:
    """info tells what it can whatever a key says."""
    outcome = drgn_tools_forked("info", path)
    assert_done(outcome)
    assert "format:      ELF core\n" in outcome.stdout


def key_of_old(key: str) -> str:
    return key.replace("compound_info", "compound_head")


@pytest.mark.parametrize("name", ["5.10", "7.2"])
def test_missing_keys(name: str, tmp_path: Path, room: Path) -> None:
    """Each key alone: named if it is needed, done without if not."""
    machine = Machine(BY_NAME[name], ram=((0, 6 * MIB),), log=LOG)
    path, out = tmp_path / "in", room / "out"
    patch = write_patchable(path, machine)
    newest = Machine(ram=((0, 6 * MIB),)).keys
    for key in machine.keys:
        if name != "7.2" and key in newest:
            continue
        patch({other: value for other, value in machine.keys.items() if other != key})
        outcome = drgn_tools_forked("extract", "--jobs=1", path, out)
        if key_of_old(key) in NEEDED:
            assert key_of_old(key) in assert_refused(outcome)
            assert os.listdir(room) == []
            # And without filtering it is not needed.
            outcome = drgn_tools_forked("extract", "--jobs=1", "-d0", path, out)
            assert "warning: " in assert_done(outcome)
        else:
            assert_done(outcome)
        out.unlink()
        info_is_fine(path)


@pytest.mark.parametrize("value", GARBAGE, ids=repr)
def test_garbage_keys(value: str, machine: Machine, tmp_path: Path, room: Path) -> None:
    """Each key alone: never a traceback, never half an output."""
    path, out = tmp_path / "in", room / "out"
    patch = write_patchable(path, machine)
    refused = set()
    for old_key in machine.keys if value == "garbage" else SENSITIVE:
        key = old_key.replace("compound_head", "compound_info")
        assert key in machine.keys
        patch({**machine.keys, key: value})
        outcome = drgn_tools_forked("extract", "--jobs=1", path, out)
        if outcome.status:
            line = assert_refused(outcome)
            assert "VMCOREINFO" in line or "address" in line or str(path) in line
            assert os.listdir(room) == []
            refused.add(key_of_old(key))
        else:
            assert_done(outcome)
            out.unlink()
        if outcome.status or "OFFLINE" in key:
            # Unfiltered, a dump is kept whatever VMCOREINFO says.
            outcome = drgn_tools_forked("extract", "--jobs=1", "-d0", path, out)
            assert_done(outcome)
            with open_vmcore(str(out)) as vmcore:
                assert vmcore.dumped_pages == len(machine.pfns())
            out.unlink()
        if value == "garbage" or old_key not in NEEDED:
            info_is_fine(path)
    if value in ("", "garbage"):
        assert refused >= set(NEEDED)


@pytest.mark.parametrize(
    "text",
    [
        b"\0" * 1000,
        b"\xff" * 4000,
        b"=" * 4000,
        b"OSRELEASE=\x1b[2Jboo\nPAGESIZE=4096\n",
        b"NUMBER(phys_base)=" + b"9" * 100_000,
        b"\n" * 4000,
        b"SYMBOL(init_uts_ns)=ffffffff81000000\n",
    ],
    ids=lambda text: repr(text[:20]),
)
def test_garbage_text(
    text: bytes, machine: Machine, tmp_path: Path, room: Path
) -> None:
    path = tmp_path / "in"
    write_elf(path, machine.loads()[1:], note(b"VMCOREINFO", 0, text))
    assert_refused(drgn_tools_forked("extract", path, room / "out"))
    assert os.listdir(room) == []
    assert_done(drgn_tools_forked("extract", "-d0", path, room / "out"))
    outcome = drgn_tools_forked("info", path)
    assert outcome.status == 0 or assert_refused(outcome)
    # What a dump says must not drive the terminal.
    assert "\x1b" not in outcome.stdout + outcome.stderr


def test_log_and_names_do_not_drive_the_terminal(tmp_path: Path) -> None:
    died = "CPU: 1 PID: 7 Comm: e\x1b[2Jvil\x07\u202e Tainted: \x1b[2J 7.2.0"
    log = [(1, "Kernel panic - not syncing: \x1b[2J\x07\u202eboo\x9b"), (2, died)]
    machine = Machine(ram=((0, 6 * MIB),), log=log)
    names = b"".join(b"n\x1b[2J\nr\xff".ljust(65, b"\0") for _ in range(6))
    uts = int(machine.keys["SYMBOL(init_uts_ns)"], 16) - machine.text
    machine.write(machine.image + uts, names)
    path = tmp_path / "in"
    write_elf(path, machine.loads()[1:], machine.notes())
    for encoding in ("utf-8", "ascii"):
        outcome = drgn_tools("info", path, PYTHONIOENCODING=encoding)
        assert_done(outcome)
        assert "boo" in outcome.stdout
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(outcome.stdout)
        assert "vil" in outcome.stdout and "[7] on CPU 1" in outcome.stdout
        # With uptime, task and taint.
        assert len(outcome.stdout.splitlines()) == 16


# --- outputs ----------------------------------------------------------------------


def test_output_exists(dump: Path, room: Path) -> None:
    out = room / "out"
    out.write_text("precious")
    line = assert_refused(drgn_tools("extract", dump, out))
    assert "exists" in line and "-f" in line
    assert out.read_text() == "precious"
    assert_done(drgn_tools("extract", "-f", dump, out))
    read_kdump(out)
    assert os.listdir(room) == ["out"]


def test_output_is_kept_when_its_replacement_fails(room: Path) -> None:
    out = room / "out"
    out.write_text("precious")
    assert_refused(drgn_tools("extract", "-f", "/bin/true", out))
    assert out.read_text() == "precious"
    assert os.listdir(room) == ["out"]


@pytest.mark.parametrize(
    "target",
    [
        "missing/out",
        "file/out",
        "out/",
        "",
        "/proc/out",
        "/proc/self/fd/out",
        "/nowhere/at/all",
        "n" * 256,
    ],
)
def test_output_cannot_be(target: str, dump: Path, room: Path) -> None:
    (room / "file").write_text("precious")
    path = f"{room}/{target}" if target and not target.startswith("/") else target
    for force in ([], ["-f"]):
        assert_refused(drgn_tools("extract", *force, dump, path))
        assert os.listdir(room) == ["file"]
    assert (room / "file").read_text() == "precious"


def test_output_with_the_longest_name(dump: Path, room: Path) -> None:
    out = room / ("n" * 255)
    assert_done(drgn_tools("extract", dump, out))
    assert os.listdir(room) == [out.name]


def test_names_that_are_no_text(dump: Path, room: Path) -> None:
    """Bytes that are not UTF-8 are as good a name as any."""
    out = os.fsdecode(os.fsencode(room) + b"/\xff\xfe\n\x1b")
    assert_done(drgn_tools("extract", dump, out))
    assert_refused(drgn_tools("extract", dump, out))
    assert_done(drgn_tools("info", out))
    assert_refused(drgn_tools("info", out + "x"))


@pytest.mark.parametrize("force", [[], ["-f"]], ids=["", "-f"])
@pytest.mark.parametrize("how", ["itself", "symlink", "hardlink", "dots"])
def test_output_is_the_input(
    how: str, force: list[str], machine: Machine, room: Path
) -> None:
    source = room / "in"
    write_elf(source, machine.loads()[1:], machine.notes())
    before = source.read_bytes()
    out = room / "out"
    if how == "symlink":
        out.symlink_to(source)
    elif how == "hardlink":
        os.link(source, out)
    elif how == "dots":
        out = room / ".." / room.name / "in"
    else:
        out = source
    names = sorted(os.listdir(room))
    line = assert_refused(drgn_tools("extract", *force, source, out))
    assert "input itself" in line
    assert sorted(os.listdir(room)) == names
    assert source.read_bytes() == before


@pytest.mark.parametrize("force", [[], ["-f"]], ids=["", "-f"])
@pytest.mark.parametrize("kind", ["directory", "fifo", "device", "socket", "dangling"])
def test_output_is_no_file(kind: str, force: list[str], dump: Path, room: Path) -> None:
    out = room / "out"
    if kind == "directory":
        out.mkdir()
    elif kind == "fifo":
        os.mkfifo(out)
    elif kind == "socket":
        _socket(out)
    elif kind == "dangling":
        out.symlink_to("nowhere")
    else:
        out = Path("/dev/null")
    before = os.lstat(out)
    line = assert_refused(drgn_tools("extract", *force, dump, out))
    assert "no regular file" in line
    after = os.lstat(out)
    assert (before.st_mode, before.st_ino) == (after.st_mode, after.st_ino)
    assert os.listdir(room) == ([] if kind == "device" else ["out"])


def in_a_namespace(script: str, *arguments: object) -> Outcome:
    """A shell script with mounts of its own, which vanish with it."""
    root = os.geteuid() == 0
    run = subprocess.run(
        ["unshare", *([] if root else ["-r"]), "-m", "sh", "-euc", script, "sh"]
        + [str(argument) for argument in arguments],
        capture_output=True,
        text=True,
        env=environment(EXTRACT=shlex.join([*COMMAND, "extract"])),
        stdin=subprocess.DEVNULL,
    )
    return Outcome(run.returncode, run.stdout, run.stderr)


def test_read_only_directory(dump: Path, room: Path) -> None:
    """A read-only mount, which root cannot write to either."""
    outcome = in_a_namespace(
        'mount --bind "$2" "$2"; mount -o remount,bind,ro "$2"; $EXTRACT "$1" "$2/out"',
        dump,
        room,
    )
    assert "Read-only file system" in assert_refused(outcome)
    assert os.listdir(room) == []


@pytest.mark.parametrize("jobs", ["1", "3"])
@pytest.mark.parametrize("size", ["4k", "64k", "1m", "3m"])
def test_disk_full(jobs: str, size: str, tmp_path: Path, room: Path) -> None:
    """A real ENOSPC, at once or half-way: what there is room for is there."""
    machine = Machine(ram=((0, 24 * MIB),))
    path = tmp_path / "in"
    write_elf(path, machine.loads()[1:], machine.notes())
    kept = tmp_path / "kept"
    outcome = in_a_namespace(
        'mount -t tmpfs -o size="$3" none "$2"; status=0\n'
        '$EXTRACT --jobs "$4" "$1" "$2/out" || status=$?\n'
        # What is left behind is seen from within only.
        'if [ -e "$2/out" ]; then cp "$2/out" "$5"; else ls -A "$2"; fi; exit $status',
        path,
        room,
        size,
        jobs,
        kept,
    )
    if not kept.exists():
        assert size in ("4k", "64k")
        assert "No space left" in assert_refused(outcome)
        return
    assert size in ("1m", "3m")
    assert outcome.status == 1
    found = read_kdump(kept)
    assert found.status & 0x8
    missing = len(found.places) - len(found.pages)
    assert missing > 100
    assert f"{room}/out is incomplete: no room for {missing} pages\n" in outcome.stderr
    for pfn, page in found.pages.items():
        assert page == machine.page(pfn)
    # The disk is full.
    used = sum({offset: size for offset, size, _ in found.places.values()}.values())
    assert used > (int(size[0]) << 20) - 300_000


@pytest.mark.parametrize("jobs", ["1", "3"])
@pytest.mark.parametrize("limit", [0, 4096, 1 << 19])
def test_file_size_limit(jobs: str, limit: int, tmp_path: Path, room: Path) -> None:
    machine = Machine(ram=((0, 24 * MIB),))
    path = tmp_path / "in"
    write_elf(path, machine.loads()[1:], machine.notes())

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    run = subprocess.run(
        [*COMMAND, "extract", "--jobs", jobs, path, room / "out"],
        # Pipes: files would have the limit too.
        capture_output=True,
        text=True,
        env=environment(PYTHONDONTWRITEBYTECODE="1"),
        preexec_fn=limited,
    )
    if limit <= 4096:
        line = assert_refused(Outcome(run.returncode, run.stdout, run.stderr))
        assert "File too large" in line
        assert os.listdir(room) == []
        return
    assert run.returncode == 1
    found = read_kdump(room / "out")
    missing = len(found.places) - len(found.pages)
    assert missing > 100
    assert f"{room}/out is incomplete: no room for {missing} pages\n" in run.stderr
    assert found.status & 0x8
    assert all(page == machine.page(pfn) for pfn, page in found.pages.items())


@pytest.mark.parametrize("command", ["info", "dmesg", "--help", "extract --help"])
def test_stdout_full(command: str, dump: Path) -> None:
    """What cannot be printed is not done."""
    arguments = [*command.split(), *([] if "--help" in command else [str(dump)])]
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [*COMMAND, *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
    line = assert_refused(Outcome(run.returncode, "", run.stderr))
    assert "No space left" in line


@pytest.mark.parametrize("command", ["info", "dmesg"])
def test_reader_of_stdout_is_gone(command: str, dump: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        run = subprocess.run(
            [*COMMAND, command, str(dump)],
            stdout=write_end,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
    finally:
        os.close(write_end)
    assert (run.returncode, run.stderr) == (1, "")


# --- usage ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("extrakt a b", "extrakt"),
        ("--frobnicate", "frobnicate"),
        ("extract", "VMCORE"),
        ("extract {dump} a b", "--split"),
        ("extract --split {dump} a", "--split"),
        ("extract -F {dump} a", "-F"),
        ("extract {dump} {out} extra", "extra"),
        ("extract --frobnicate {dump} {out}", "frobnicate"),
        ("extract -d 32 {dump} {out}", "32"),
        ("extract -d -1 {dump} {out}", "-1"),
        ("extract -d x {dump} {out}", "x"),
        ("extract -d", "-d"),
        ("extract --jobs 0 {dump} {out}", "0"),
        ("extract --jobs -2 {dump} {out}", "-2"),
        ("extract --jobs many {dump} {out}", "many"),
        ("extract --compress brotli {dump} {out}", "brotli"),
        ("extract --compress zstd:99 {dump} {out}", "99"),
        ("extract --compress zstd:0 {dump} {out}", "zstd"),
        ("extract --compress zlib:0 {dump} {out}", "zlib"),
        ("extract --compress zlib:-1 {dump} {out}", "zlib"),
        ("extract --compress lzo:x {dump} {out}", "lzo"),
        ("extract --compress snappy:2 {dump} {out}", "snappy"),
        ("extract --compress : {dump} {out}", "codec"),
        ("extract -z --compress lzo {dump} {out}", "lzo"),
        ("extract --exclude nonsense {dump} {out}", "nonsense"),
        ("extract --exclude cache,,anon {dump} {out}", "''"),
        ("extract --keep CACHE {dump} {out}", "CACHE"),
        ("info", "DUMP"),
        ("info {dump} extra", "extra"),
        ("dmesg --partial", "DUMP"),
        ("dmesg {dump} extra", "extra"),
    ],
)
def test_usage(arguments: str, why: str, dump: Path, room: Path) -> None:
    words = arguments.format(dump=dump, out=room / "out").split()
    line = assert_refused(drgn_tools(*words), 2)
    assert why in line and "--help" in line
    assert os.listdir(room) == []


# --- packages ---------------------------------------------------------------------

HIDE = """
import os, sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name in os.environ["HIDDEN_MODULES"].split():
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
"""


@pytest.fixture
def without(tmp_path: Path) -> Callable[..., Outcome]:
    """Runs the command as if some modules were not installed."""
    stub = tmp_path / "stub"
    stub.mkdir()
    (stub / "sitecustomize.py").write_text(HIDE)
    path = f"{stub}{os.pathsep}{environment()['PYTHONPATH']}"

    def run(modules: str, *arguments: object) -> Outcome:
        return drgn_tools(*arguments, PYTHONPATH=path, HIDDEN_MODULES=modules)

    return run


@pytest.mark.parametrize(
    ("codec", "module", "package", "other"),
    [
        ("zlib", "deflate", "deflate", "zstd"),
        ("lzo", "lzo", "python-lzo", "zlib"),
        ("snappy", "cramjam", "cramjam", "lzo"),
        ("zstd", "zstandard", "zstandard", "snappy"),
    ],
)
def test_missing_codec_package(
    without: Callable[..., Outcome],
    codec: str,
    module: str,
    package: str,
    other: str,
    machine: Machine,
    dump: Path,
    tmp_path: Path,
    room: Path,
) -> None:
    for jobs in ("1", "2"):
        outcome = without(
            module, "extract", "--jobs", jobs, "--compress", codec, dump, room / "out"
        )
        line = assert_refused(outcome)
        assert f"package {package}" in line and "pip install" in line
        assert os.listdir(room) == []
    # All else goes on.
    assert_done(without(module, "extract", "--compress", other, dump, room / "out"))
    assert read_kdump(room / "out").pages
    # An input that needs it.
    machine.loads()
    pages = {pfn: machine.page(pfn) for pfn in machine.pfns()}
    write_kdump(tmp_path / "in", pages, machine.notes(), codec=codec)
    outcome = without(
        module, "extract", "-d0", "--compress", other, tmp_path / "in", room / "two"
    )
    if codec == "zlib":
        # Python's own can read it.
        assert_done(outcome)
    else:
        assert f"package {package}" in assert_refused(outcome)
        assert os.listdir(room) == ["out"]
    assert_done(without(module, "info", dump))


def test_only_the_codec_in_use_is_needed(
    without: Callable[..., Outcome], dump: Path, room: Path
) -> None:
    hidden = "deflate isal lzo cramjam drgn"
    assert_done(without(hidden, "extract", dump, room / "out"))
    assert_done(without(hidden, "info", room / "out"))


# --- signals ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dump that takes long at the highest level."""
    path = tmp_path_factory.mktemp("long") / "vmcore"
    piece = b"".join(text_page(seed) for seed in range(256))
    write_elf(path, [Load(MIB, piece * 96)], prstatus(1))
    return path


def _session(session: int) -> list[int]:
    """Processes of a session that still are."""
    alive = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            stat = Path("/proc", str(int(name)), "stat").read_text()
            state, _, _, owner = stat.rpartition(")")[2].split()[:4]
            if int(owner) == session and state != "Z":
                alive.append(int(name))
    return alive


def _wait(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to that in 30 s")


def _written(room: Path) -> int:
    """Bytes that the output has so far."""
    sizes = [0]
    for name in os.listdir(room):
        with contextlib.suppress(FileNotFoundError):
            sizes.append((room / name).stat().st_size)
    return max(sizes)


@contextlib.contextmanager
def _at_work(
    source: Path, room: Path, jobs: int, before: Callable[[], object] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """The command in a session of its own, past the first page that it wrote."""
    options = ["-d0", "--compress", "zstd:19", "--jobs", str(jobs)]

    def prepare() -> None:
        # Whoever runs the tests in the background has some of them ignored.
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        if before is not None:
            before()

    process = subprocess.Popen(
        [*COMMAND, "extract", *options, source, room / "out"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
        preexec_fn=prepare,
    )

    def writing() -> bool:
        assert process.poll() is None, process.communicate()
        # Room for the descriptors is taken at the start, and by then no worker is
        # at its first pages any more.
        return _written(room) > 6_000_000

    try:
        _wait(writing)
        yield process
    finally:
        for pid in _session(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


def _workers(process: subprocess.Popen[str]) -> list[int]:
    return [pid for pid in _session(process.pid) if pid != process.pid]


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("to_group", [False, True], ids=["process", "group"])
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)],
)
def test_signal(
    number: signal.Signals,
    status: int,
    to_group: bool,
    jobs: int,
    long_dump: Path,
    room: Path,
) -> None:
    with _at_work(long_dump, room, jobs) as process:
        assert len(_workers(process)) == jobs
        if to_group:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out) == (status, "")
        assert err.endswith(f"drgn-tools: stopped by {number.name}\n")
        assert _session(process.pid) == []
        if number == signal.SIGINT:
            # Who presses Ctrl-C no longer wants it.
            assert err.count("\n") == 1
            assert os.listdir(room) == []
        else:
            _check_incomplete(room, err)


def _check_incomplete(room: Path, said: str) -> None:
    """What was written in time is there, and it says that the rest is not."""
    assert os.listdir(room) == ["out"]
    found = read_kdump(room / "out")
    missing = 256 * 96 - len(found.pages)
    assert found.status & 0x8
    assert 0 < missing < 256 * 96
    assert f"out is incomplete: {missing} pages were not written in time\n" in said
    for pfn, page in found.pages.items():
        assert page == text_page((pfn - MIB // PAGE) % 256)


def test_hangup_that_is_ignored(long_dump: Path, room: Path) -> None:
    """Under nohup the work goes on, the workers' included."""

    def nohup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with _at_work(long_dump, room, 2, nohup) as process:
        before = _written(room)
        os.killpg(process.pid, signal.SIGHUP)
        _wait(lambda: process.poll() is not None or _written(room) > before + 500_000)
        assert len(_workers(process)) == 2
        process.terminate()
        _out, err = process.communicate(timeout=30)
        assert process.returncode == 143
        _check_incomplete(room, err)


@pytest.mark.parametrize("kills", [1, 3])
def test_killed_worker(kills: int, long_dump: Path, room: Path) -> None:
    """As by the OOM killer: the others do its work, or a new one if it was the last."""
    with _at_work(long_dump, room, 3) as process:
        for pid in _workers(process)[:kills]:
            os.kill(pid, signal.SIGKILL)
        out, err = process.communicate(timeout=60)
        said = assert_done(Outcome(process.returncode, out, err))
        assert said.count("a worker was killed (SIGKILL); read again") == kills
        assert os.listdir(room) == ["out"]
        assert _session(process.pid) == []
    memory = b"".join(text_page(seed) for seed in range(256)) * 96
    assert b"".join(read_kdump(room / "out").pages.values()) == memory


def test_all_workers_killed_again_and_again(long_dump: Path, room: Path) -> None:
    """It comes to an end all the same, and the output says what it is."""
    with _at_work(long_dump, room, 2) as process:
        while process.poll() is None:
            for pid in _workers(process):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        _out, err = process.communicate(timeout=60)
        assert _session(process.pid) == []
    found = read_kdump(room / "out")
    lost = 256 * 96 - len(found.pages)
    assert process.returncode == (1 if lost else 0)
    assert bool(found.status & 0x8) == bool(lost)
    if lost:
        assert f"{lost} pages could not be read" in err
    for pfn, page in found.pages.items():
        assert page == text_page((pfn - MIB // PAGE) % 256)


def test_killed_command(long_dump: Path, room: Path) -> None:
    """Nothing can tidy up after it, but no half output has the name."""
    compress = zstandard.ZstdCompressor(level=19).compress
    whole = 96 * sum(len(compress(text_page(seed))) for seed in range(256))
    with _at_work(long_dump, room, 3) as process:
        process.kill()
        process.wait(timeout=30)
        assert not (room / "out").exists()
        # Its workers finish what they have in hand, and do not go on without it.
        _wait(lambda: _session(process.pid) == [])
        assert _written(room) < whole * 3 // 4


# --- memory that only seems to be there -------------------------------------------


def test_enormous_segment(tmp_path: Path, room: Path) -> None:
    """Headers that claim 1 PiB: damage, and no reason to take memory for it."""
    path = tmp_path / "in"
    write_elf(path, [Load(MIB, text_page(0), memsz=1 << 50)])
    assert "1024.0 TiB of memory in a file of" in refused(path, room)


def test_all_of_it_works_at_all(machine: Machine, dump: Path, room: Path) -> None:
    """The dump that the others break is a good one."""
    said = assert_done(drgn_tools("extract", dump, room / "out"))
    assert "anon" in said
    assert len(read_kdump(room / "out").pages) == len(machine.pfns()) - 1
    outcome = drgn_tools("info", room / "out")
    assert_done(outcome)
    assert outcome.stderr == ""
    assert "Kernel panic - not syncing: test" in outcome.stdout
    assert drgn_tools_forked("info", room / "out") == outcome
    assert np.unique(machine.pages[0].expected).tolist() == [0, 7]
