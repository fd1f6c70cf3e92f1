# SPDX-License-Identifier: LGPL-2.1-or-later
"""zram and swapped-out memory: what guests wrote, and what their kernels said."""

from __future__ import annotations

import collections
import functools
import gc
import io
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import drgn
import pytest
from drgn.helpers.linux.pid import find_task

from drgn_tools.decompress import decompress
from drgn_tools.swap import SwapFault, SwapPage, swap_map, swap_pages, swap_read
from drgn_tools.zram import (
    ZramPage,
    find_zram,
    for_each_zram_orphan,
    for_each_zram_slot,
    for_each_zram_stream,
    zram_bd_stat,
    zram_block_state,
    zram_device,
    zram_devices,
    zram_export,
    zram_io_stat,
    zram_mm_stat,
    zram_pools,
    zram_read,
    zram_read_many,
    zram_streams,
)
from drgn_tools.zsmalloc import zs_classes
from tests.command import Outcome, drgn_tools

from . import (
    bench,
    kernels,
    known_pages,
    live_drgn,
    peers,
    qemu,
    zram_guests,
    zram_seen,
)
from .known_pages import PAGE
from .test_extract import extract
from .zram_guests import DISK_MIB, MATRIX, Device, Guest, Process, Spec
from .zram_seen import digest

SLOTS = (DISK_MIB << 20) // PAGE
ZRAM = [spec for spec in MATRIX if spec.devices]


class Case(NamedTuple):
    """A dump of a guest; by its kind either as it was, or what of it was extracted."""

    spec: Spec
    kind: str
    """qemu or vmcore, "-d 31" if extracted, "makedumpfile" if that did it."""

    def __str__(self) -> str:
        return f"{self.spec.name}: {self.kind}"

    @property
    def filtered(self) -> bool:
        return "-d 31" in self.kind


class Dump(NamedTuple):
    """A dump that has been opened."""

    case: Case
    guest: Guest
    prog: drgn.Program


def by_old_page_types(spec: Spec) -> bool:
    """Whether makedumpfile 1.7.8 knows the kernel's page types; see makedumpfile.md."""
    return not spec.kernel.startswith("7.")


CASES = [
    *(Case(spec, kind) for spec in ZRAM for kind in (*spec.kinds, "vmcore -d 31")),
    *(
        Case(spec, "vmcore -d 31 makedumpfile")
        for spec in ZRAM
        if by_old_page_types(spec)
    ),
]
"""Dumps in which all of zram is."""
OTHERS = [
    Case(spec, kind)
    for spec in MATRIX
    for kind in ("qemu", "qemu -d 31")
    if not spec.devices
]
"""Dumps of guests that swap to a disk, with zswap before it or not."""
BROKEN = [
    Case(spec, "vmcore -d 31 makedumpfile")
    for spec in ZRAM
    if not by_old_page_types(spec)
]
"""Dumps that lack parts of zram."""


def filtered(case: Case, guest: Guest, work: Path) -> Path:
    """Return the dump of a case."""
    path = guest.dump(case.kind.split()[0])
    if not case.filtered:
        return path
    target = work / "dump"
    if "makedumpfile" in case.kind:
        command = [*peers.argv("makedumpfile-sid"), "-l", "-d", "31"]
        done = subprocess.run([*command, path, target], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    else:
        extract(path, target, "-d", "31")
    return target


def opened(case: Case, factory: pytest.TempPathFactory) -> Dump:
    guest = zram_guests.get(case.spec)
    prog = drgn.Program()
    prog.set_core_dump(filtered(case, guest, factory.mktemp("zram")))
    prog.load_debug_info(guest.kernel.debug_files())
    return Dump(case, guest, prog)


@pytest.fixture(scope="module", params=CASES, ids=str)
def dump(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Dump]:
    """One after the other: all tests of a dump, then those of the next."""
    dump = opened(request.param, tmp_path_factory)
    yield dump
    # They refer to each other, and each has a kernel's debug information.
    dump.prog.cache.clear()
    gc.collect()


# --- the guests themselves


@pytest.fixture(params=ZRAM, ids=lambda spec: spec.name)
def guest(request: pytest.FixtureRequest) -> Guest:
    return zram_guests.get(request.param)


def state(guest: Guest, number: int) -> dict[int, str]:
    """Return the flags that the kernel's block_state shows, by slot."""
    text = guest.facts()[f"zram{number}/block_state"].decode()
    return {int(line.split()[0]): line.split()[-1] for line in text.splitlines()}


def test_every_algorithm_has_a_device(guest: Guest) -> None:
    facts = guest.facts()
    offered = set(re.findall(r"[\w-]+", facts["zram0/comp_algorithm"].decode()))
    used = set()
    for number, device in enumerate(guest.spec.devices):
        said = facts[f"zram{number}/comp_algorithm"].decode()
        assert f"[{device.algorithm}]" in said
        used.add(device.algorithm)
    assert offered <= used


def test_devices_hold_what_is_known(guest: Guest) -> None:
    for number, device in enumerate(guest.spec.devices):
        flags = state(guest, number)
        assert flags.keys() == zram_guests.known(number).keys()
        said = "".join(flags.values())
        assert "s" in said and "h" in said.replace("w", "h")
        assert ("w" in said) == bool(device.writeback)
        assert ("r" in said) == bool(device.recompress)
        # These two may clear the mark.
        assert "i" in said or device.writeback or device.recompress


# --- pages


@functools.cache
def expected(number: int) -> list[bytes]:
    """Return all pages of a device; where nothing is stored, the kernel reads zeros."""
    known = zram_guests.known(number)
    return [known.get(index, bytes(PAGE)) for index in range(SLOTS)]


SAID = {
    "no": ("empty",),
    "s": ("zero", "same"),
    "w": ("written back",),
    "wh": ("written back",),
    "h": ("huge",),
    "": ("compressed",),
}
"""What a slot is, by block_state's first three flags."""


@pytest.mark.verified(
    "zram: every page", by="what the guest wrote, page by page; block_state"
)
def test_every_page(dump: Dump) -> None:
    for number, device in enumerate(dump.guest.spec.devices):
        pages = zram_read_many(find_zram(dump.prog, f"zram{number}"), 0, SLOTS)
        flags = state(dump.guest, number)
        for index, (page, wanted) in enumerate(zip(pages, expected(number))):
            said = flags[index][:3].replace(".", "") if index in flags else "no"
            assert page.kind in SAID[said]
            if page.kind == "written back":
                assert page.data is None
                assert written_back(dump.guest, number, page) == wanted
            else:
                assert page.data == wanted, (device, index, page.kind, page.note)
                assert not page.note


def written_back(guest: Guest, number: int, page: ZramPage) -> bytes:
    """Return a page from the backing disk, where the note says that it is."""
    backing = guest.facts()[f"zram{number}/backing_dev"].decode().strip()
    found = re.fullmatch(
        rf"written back to {backing}, offset (\d+)(?:, (\d+) bytes of ([\w-]+))?",
        page.note,
    )
    assert found, page.note
    with guest.backing(number).open("rb") as file:
        file.seek(int(found.group(1)))
        content = file.read(PAGE)
    if found.group(2):
        return decompress(found.group(3), content[: int(found.group(2))])
    return content


def test_one_page_like_many(dump: Dump) -> None:
    for number in range(len(dump.guest.spec.devices)):
        zram = find_zram(dump.prog, f"zram{number}")
        pages = zram_read_many(zram, 0, SLOTS)
        assert [zram_read(zram, index) for index in range(0, SLOTS, 5)] == pages[::5]
        with pytest.raises(ValueError, match=f"zram{number} has {SLOTS} pages"):
            zram_read(zram, SLOTS)


@pytest.mark.verified(
    "zram: dumps that lack slab pages", by="what the guest wrote, page by page"
)
@pytest.mark.parametrize("case", BROKEN, ids=str)
def test_where_makedumpfile_drops_slab(
    case: Case, tmp_path_factory: pytest.TempPathFactory, record_property: Any
) -> None:
    """What there is, is right, and the rest is named."""
    dump = opened(case, tmp_path_factory)
    counts: collections.Counter[str] = collections.Counter()

    def count(data: bytes | None, wanted: bytes, note: str) -> None:
        assert note if data is None else data == wanted
        counts["named" if data is None else "right"] += 1

    for number in range(len(case.spec.devices)):
        try:
            zram = find_zram(dump.prog, f"zram{number}")
            pages = zram_read_many(zram, 0, SLOTS)
        except (LookupError, ValueError, drgn.FaultError) as e:
            assert str(e)
            counts["of devices that are not there"] += SLOTS
            continue
        for page, wanted in zip(pages, expected(number)):
            count(page.data, wanted, page.note)
    assert counts["right"] > 0
    record_property("broken", f"{case}: pages of zram {dict(counts)}")
    lines = printed(zram_devices, dump.prog).splitlines()[1:]
    assert [line.split()[0] for line in lines] == [
        f"zram{number}" for number in numbers(dump.guest)
    ]
    for helper in (zram_streams, zram_pools):
        lines = printed(helper, dump.prog).splitlines()[1:]
        assert {line.split()[0] for line in lines} == {
            f"zram{number}" for number in numbers(dump.guest)
        }
    counts.clear()
    for process in dump.guest.processes():
        try:
            task = find_task(dump.prog, process.pid)
        except drgn.FaultError:
            counts["of tasks that are not there"] += process.pages
            continue
        memory = zram_guests.memory(case.spec, process.name)
        swapped = swap_pages(task, process.start, process.pages * PAGE)
        for found, wanted in zip(swapped, memory):
            count(found.data, wanted, found.note)
    record_property("broken", f"{case}: pages of tasks {dict(counts)}")


# --- what the kernel says


def numbers(guest: Guest) -> range:
    """Return the numbers of a guest's devices, those of files and of swap too."""
    return range(guest.spec.swap_device + 1)


def printed(helper: Callable[..., None], *arguments: Any) -> str:
    out = io.StringIO()
    helper(*arguments, file=out)
    return out.getvalue()


@pytest.mark.verified(
    "zram: mm_stat, io_stat, bd_stat, block_state",
    by="the kernel's files of the same guest, to the byte",
)
@pytest.mark.parametrize(
    "helper",
    [zram_mm_stat, zram_io_stat, zram_bd_stat, zram_block_state],
    ids=lambda helper: helper.__name__.removeprefix("zram_"),
)
def test_text_is_the_kernels(dump: Dump, helper: Callable[..., None]) -> None:
    file = helper.__name__.removeprefix("zram_")
    facts = dump.guest.facts()
    for number in numbers(dump.guest):
        said = facts[f"zram{number}/{file}"].decode()
        assert printed(helper, dump.prog, f"zram{number}") == said
        assert said


@pytest.mark.verified(
    "zram: slots and size classes", by="mm_stat and bd_stat of the same guest"
)
def test_counters_follow_from_the_slots(dump: Dump) -> None:
    facts = dump.guest.facts()
    for number in numbers(dump.guest):
        zram = find_zram(dump.prog, f"zram{number}")
        slots = list(for_each_zram_slot(zram))
        kinds = collections.Counter(slot.kind for slot in slots)
        said = [int(word) for word in facts[f"zram{number}/mm_stat"].split()]
        assert len(slots) - kinds["empty"] == said[0] // PAGE
        # Of what was written back, the slot may still have the size.
        stored = [s for s in slots if s.kind in ("huge", "compressed")]
        assert sum(slot.size for slot in stored) == said[1]
        assert kinds["zero"] + kinds["same"] == said[5]
        assert kinds["huge"] == said[7]
        assert kinds["written back"] == int(facts[f"zram{number}/bd_stat"].split()[0])
        assert not kinds["in flight"] + kinds["unreadable"]
        classes = zs_classes(zram.mem_pool)
        pages = sum(c.allocated // c.objects * c.pages for c in classes)
        assert pages == said[2] // PAGE
        assert sum(class_.used for class_ in classes) == len(stored)
        assert not list(for_each_zram_orphan(zram))


def chosen(text: bytes) -> list[str]:
    """Return the algorithms that comp_algorithm or recomp_algorithm has in brackets."""
    return re.findall(r"\[([\w-]+)\]", text.decode("ascii", "replace"))


@pytest.mark.verified("zram: devices", by="sysfs of the same guest")
def test_devices_are_as_sysfs_has_them(dump: Dump) -> None:
    facts = dump.guest.facts()
    for number in numbers(dump.guest):
        device = zram_device(find_zram(dump.prog, f"zram{number}"))
        where = f"zram{number}"
        algorithms = chosen(facts[f"{where}/comp_algorithm"])
        algorithms += chosen(facts.get(f"{where}/recomp_algorithm", b""))
        assert (device.name, list(device.algorithms)) == (where, algorithms)
        assert device.disksize == int(facts[f"{where}/disksize"])
        backing = facts[f"{where}/backing_dev"].decode().strip()
        assert (device.backing or "none") == backing
        said = [int(word) for word in facts[f"{where}/mm_stat"].split()]
        assert [device.stored, device.compressed, device.used] == said[:3]
        assert [device.limit, device.most_used, device.same] == said[3:6]
        assert device.huge == said[7]
        assert device.streams == zram_guests.CPUS
        lines = printed(zram_devices, dump.prog).splitlines()
        assert lines[number + 1].split()[0] == where
        assert len(lines) == len(numbers(dump.guest)) + 1


# --- streams


@pytest.mark.verified("zram: streams of CPUs", by="what each CPU wrote last")
def test_the_last_page_of_each_cpu(dump: Dump) -> None:
    for number in range(len(dump.guest.spec.devices)):
        zram = find_zram(dump.prog, f"zram{number}")
        last = {
            stream.cpu: stream.data
            for stream in for_each_zram_stream(zram)
            if stream.priority == 0
        }
        assert last == zram_guests.last_pages(number)


@pytest.mark.verified("zram: streams of CPUs", by="what the guest wrote, page by page")
def test_streams_of_recompression(dump: Dump) -> None:
    for number, device in enumerate(dump.guest.spec.devices):
        zram = find_zram(dump.prog, f"zram{number}")
        seen = set()
        for stream in for_each_zram_stream(zram):
            assert not stream.writer
            if stream.priority:
                assert stream.state in ("decoded", "unused")
            if stream.data is not None and stream.priority:
                assert stream.data in zram_guests.known(number).values()
                seen.add(stream.algorithm)
        assert seen == {algorithm for algorithm, _ in device.recompress}


# --- images


@pytest.mark.verified("zram: images (`-o`)", by="what the guest wrote, page by page")
def test_an_image_has_every_page(dump: Dump, tmp_path: Path) -> None:
    for number in range(len(dump.guest.spec.devices)):
        image = tmp_path / f"zram{number}"
        done = zram_export(find_zram(dump.prog, f"zram{number}"), str(image))
        gone = {page.index for page in done.missing}
        flags = state(dump.guest, number)
        assert gone == {index for index, said in flags.items() if "w" in said}
        wanted = [
            bytes(PAGE) if index in gone else page
            for index, page in enumerate(expected(number))
        ]
        assert image.read_bytes() == b"".join(wanted)
        assert not done.doubtful


@pytest.mark.verified(
    "zram: images (`-o`)",
    by="e2fsck and debugfs on it, and the files that the guest wrote",
)
def test_files_of_a_file_system(dump: Dump, tmp_path: Path) -> None:
    number = dump.guest.spec.files_device
    image = tmp_path / "image.img"
    done = zram_export(find_zram(dump.prog, f"zram{number}"), str(image))
    assert not done.missing
    bench.run(["e2fsck", "-f", "-n", image])
    # Its own command line takes no other form.
    bench.run(["debugfs", "-R", f"rdump / {tmp_path}", image])
    for path, content in zram_guests.files().items():
        assert (tmp_path / path).read_bytes() == content, path


# --- swapped-out memory


@pytest.mark.parametrize(
    "dump", [*CASES, *OTHERS], ids=str, indirect=True, scope="module"
)
@pytest.mark.parametrize("name", zram_guests.MAPPINGS)
class TestSwappedOut:
    """Memory of a process, by mapping."""

    @pytest.mark.verified(
        "swap: swapped-out memory, page by page", by="what the guest's process wrote"
    )
    def test_every_page(self, dump: Dump, name: str) -> None:
        process, pages = mapped(dump, name)
        known = zram_guests.memory(dump.guest.spec, name)
        assert len(pages) == len(known) == process.pages
        for index, (page, wanted) in enumerate(zip(pages, known)):
            assert page.address == process.start + index * PAGE
            assert page.kind in possible(dump, process, index, wanted)
            if page.kind in ("untouched", "device", "excluded"):
                assert page.data is None and page.note
            else:
                assert page.data == wanted
                assert not page.note

    @pytest.mark.verified(
        "swap: where pages are", by="/proc/PID/pagemap and mincore() of the same guest"
    )
    def test_slots_are_those_of_pagemap(self, dump: Dump, name: str) -> None:
        process, pages = mapped(dump, name)
        area = dump.guest.facts()["swaps"].decode().splitlines()[1].split()[0]
        for index, page in enumerate(pages):
            swapped = process.swapped(index)
            # pagemap does not say it of shared memory.
            if swapped is not None or name == "shared":
                assert f"/dev/{page.where}" == area
            if swapped is not None:
                assert page.slot == swapped[1]
            elif name != "shared":
                assert page.slot is None

    def test_the_map_says_the_same(self, dump: Dump, name: str) -> None:
        process, pages = mapped(dump, name)
        task = find_task(dump.prog, process.pid)
        size = process.pages * PAGE
        said = [
            (part.start + i * PAGE, part.kind, part.where, slot)
            for part in swap_map(task, process.start, size)
            for i in range(part.pages)
            for slot in [None if part.slot is None else part.slot + i]
        ]
        assert said == [(p.address, p.kind, p.where, p.slot) for p in pages]
        assert not list(swap_map(task, process.start + size, 0))

    def test_read_in_one_go(self, dump: Dump, name: str) -> None:
        process, pages = mapped(dump, name)
        task = find_task(dump.prog, process.pid)
        known = zram_guests.memory(dump.guest.spec, name)
        there = [page.data is not None for page in pages]
        end = there.index(False) if False in there else len(there)
        content = b"".join(known[:end])
        assert swap_read(task, process.start, end * PAGE) == content
        if end > 2:
            part = swap_read(task, process.start + 100, PAGE + 50)
            assert part == content[100 : PAGE + 150]
        if end < len(there):
            with pytest.raises(SwapFault) as caught:
                swap_read(task, process.start, process.pages * PAGE)
            assert caught.value.address == process.start + end * PAGE


def mapped(dump: Dump, name: str) -> tuple[Process, list[SwapPage]]:
    """Return a mapping as its kernel has it, and its pages as they are read."""
    process = next(p for p in dump.guest.processes() if p.name == name)
    task = find_task(dump.prog, process.pid)
    return process, list(swap_pages(task, process.start, process.pages * PAGE))


def possible(dump: Dump, process: Process, index: int, wanted: bytes) -> set[str]:
    """Return where a page may be, by what pagemap and mincore() say."""
    case = dump.case
    if process.entries[index] >> 63:
        return {"excluded"} if case.filtered else {"resident"}
    if process.swapped(index) is None and process.name != "shared":
        return {"untouched"}
    if process.resident[index] and not case.filtered:
        return {"swap cache"}
    # Since 6.12 the kernel notes that a page is zero, and stores nothing.
    if not any(wanted) and case.spec.kernel not in ("5.10", "6.1"):
        return {"zero"}
    if case.spec.swap == "zram":
        return {"zram"}
    if case.spec.label == "disk":
        return {"device"}
    # Since 6.5 zswap gives away what is read back: then it is in the swap cache alone.
    alone = {"excluded"} if process.resident[index] else set()
    return {"zswap", "device"} | alone


@pytest.mark.verified(
    "swap: pages in zswap", by="zswap's files in debugfs of the same guest"
)
@pytest.mark.parametrize("dump", OTHERS, ids=str, indirect=True, scope="module")
def test_what_zswap_took(dump: Dump) -> None:
    """As many pages as it says, and of the others it is said that they are gone."""
    kinds: dict[int | None, str] = {}
    for name in zram_guests.MAPPINGS:
        kinds.update((page.slot, page.kind) for page in mapped(dump, name)[1])
    counts = collections.Counter(kinds.values())
    facts = {k: int(v) for k, v in dump.guest.facts().items() if v.strip().isdigit()}
    rejected = sum(facts[name] for name in facts if "zswap-reject" in name)
    assert counts["zswap"] <= facts.get("zswap-stored_pages", 0)
    if dump.case.spec.label == "disk":
        assert "zswap" not in counts
        # What was in the swap cache is not in a filtered dump.
        assert bool(counts["device"]) == dump.case.filtered
    else:
        # The process has written to some of its pages since.
        assert counts["zswap"] > facts["zswap-stored_pages"] // 2
        if dump.case.filtered:
            assert counts["device"] <= rejected
            assert bool(counts["device"]) == bool(rejected)


# --- the command


@pytest.mark.parametrize(
    "case", [Case(ZRAM[0], "qemu"), Case(ZRAM[3], "vmcore")], ids=str
)
def test_command(case: Case, tmp_path: Path) -> None:
    guest = zram_guests.get(case.spec)
    facts = guest.facts()
    symbols = [
        f"--symbols={path}"
        for path in guest.kernel.debug_files()
        if path.stem in ("vmlinux", "zram", "zsmalloc")
    ]

    def run(*options: str, status: int = 0) -> Outcome:
        done = drgn_tools("zram", guest.dump(case.kind), *symbols, *options)
        assert done.status == status, done.stderr
        return done

    lines = run().stdout.splitlines()
    assert len(lines) == 1 + len(numbers(guest))
    assert run("--device", "zram1").stdout.split("\n")[1].split()[0] == "zram1"
    assert len(run("--device", "/dev/zram1").stdout.splitlines()) == 2
    refused = run("--device", "nosuch", status=1)
    assert "there is no zram device nosuch; there is zram0, " in refused.stderr
    assert run("--stat", "mm-stat", status=1).stderr.endswith(
        "name one with --device\n"
    )
    for stat in ("mm-stat", "block-state"):
        said = run("--stat", stat, "--device", "zram1").stdout
        assert said == facts[f"zram1/{stat.replace('-', '_')}"].decode()
    image = tmp_path / "image.img"
    assert "0 missing" in run("--device", "zram1", "-o", str(image)).stderr
    assert image.read_bytes() == b"".join(expected(1))
    (number, *_) = (n for n, d in enumerate(case.spec.devices) if d.writeback)
    there = run("--device", f"zram{number}", "-o", str(image), status=1)
    assert there.stderr.endswith("exists (-f replaces it)\n")
    gone = run("--device", f"zram{number}", "-f", "-o", str(image), status=1)
    assert "written back to /dev/" in gone.stderr
    told = json.loads(run("--json").stdout)["devices"]
    assert [device["name"] for device in told] == [f"zram{n}" for n in numbers(guest)]
    assert told[1]["slots"]["empty"] == SLOTS - len(zram_guests.known(1))
    assert all("data" not in one for d in told for one in d["last_compressed"])
    # Contents only for who asks for them.
    words = ("--json", "--device", "zram1")
    assert json.loads(run(*words, "--pools").stdout)["devices"] == [told[1]]
    (device,) = json.loads(run(*words, "--streams").stdout)["devices"]
    pages = {}
    for stream in device["last_compressed"]:
        pages[stream["cpu"], stream["priority"]] = bytes.fromhex(stream.pop("data"))
    wrote = zram_guests.last_pages(1)
    assert {cpu: pages[cpu, 0] for cpu in wrote} == wrote
    assert device == told[1]


# --- a kernel that is running

LIVE = Spec(
    "6.12-bench",
    "live",
    devices=(
        Device("lzo-rle"),
        Device("zstd", "trained"),
        Device("842", recompress=(("zstd", "type=idle"),)),
        Device("zstd", writeback="plain"),
    ),
)
HOT = 0
"""The device that is written to while it is read."""
LIVE_PAGES = {HOT: 24, 1: 36, 2: 36, 3: 36}
"""How many are read of each device; emulated, a page takes long."""
LIVE_MEMORY = {"parent": 48, "shared": 12}


@pytest.mark.verified(
    "zram: the running kernel",
    by="what the guest wrote, page by page; sysfs",
    on="6.12-bench",
)
def test_live(tmp_path: Path) -> None:
    kernel = kernels.get(LIVE.kernel)
    with zram_guests.booted(
        LIVE,
        kernel,
        tmp_path,
        disks=[qemu.Disk(live_drgn.image(kernel), "live")],
        files=live_drgn.files(),
        memory_mib=live_drgn.MEMORY_MIB,
        folder=tmp_path,
    ) as vm:
        (tmp_path / "facts.tar").write_bytes(zram_guests.prepare(vm, LIVE))
        live_drgn.mount(vm)
        guest = Guest(LIVE, kernel, tmp_path)
        mappings = {process.name: process for process in guest.processes()}
        devices = {f"zram{number}": count for number, count in LIVE_PAGES.items()}
        memory = [
            (mappings[name].pid, mappings[name].start, count * PAGE)
            for name, count in LIVE_MEMORY.items()
        ]
        writes = "; ".join(
            f"pages write 1 /dev/zram{HOT} 0 {LIVE_PAGES[HOT]} {seed}"
            for seed in (1, 2)
        )
        vm.run(f"(while :; do {writes}; done) > /dev/null 2>&1 &")
        source = Path(zram_seen.__file__).read_text()
        call = f"print(json.dumps(seen(prog, {devices!r}, {memory!r})))"
        done = live_drgn.run(vm, f"{source}\nimport json\n{call}\n", seconds=600)
    assert done.status == 0, done.stderr.decode()
    seen = json.loads(done.stdout)

    facts = guest.facts()
    for number, count in LIVE_PAGES.items():
        name = f"zram{number}"
        found = seen["pages"][name]
        assert len(found) == count
        if number == HOT:
            continue
        for file in ("mm_stat", "block_state"):
            assert seen["texts"][f"{name}/{file}"] == facts[f"{name}/{file}"].decode()
        last = zram_guests.last_pages(number)
        streams = {str(cpu): digest(page) for cpu, page in last.items()}
        assert seen["streams"][name] == streams
        flags = state(guest, number)
        for index, (page, note) in enumerate(found):
            if "w" in flags.get(index, ""):
                assert page is None and note.startswith("written back to ")
            else:
                wanted = (digest(expected(number)[index]), "")
                assert (page, note) == wanted, (number, index)
    for name, pages in zip(LIVE_MEMORY, seen["memory"]):
        known = zram_guests.memory(LIVE, name)
        assert [page for _, page in pages] == list(map(digest, known[: len(pages)]))
        assert {"zram", "zero"} <= {kind for kind, _ in pages}

    for index, (page, note) in enumerate(seen["pages"][f"zram{HOT}"]):
        written = [known_pages.page(seed, index) for seed in (1, 2)]
        # One or the other, and if it would not hold still, that is said.
        allowed = [digest(content) for content in (*written, expected(HOT)[index])]
        assert page in allowed or (page is None and note)
    assert any(page is not None for page, _ in seen["pages"][f"zram{HOT}"])
