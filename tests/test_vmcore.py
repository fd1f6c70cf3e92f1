# SPDX-License-Identifier: LGPL-2.1-or-later
"""Dumps as physical memory: every layout of a file gives the same memory."""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import NoteSegment

from drgn_tools.errors import DumpError, MissingMemory
from drgn_tools.info import describe
from drgn_tools.pages import excluded_classes
from drgn_tools.plan import make_plan
from drgn_tools.vmcore import (
    Run,
    Vmcore,
    _ElfVmcore,
    merge_runs,
    open_vmcore,
    runs_mask,
)
from tests.synthetic import (
    BY_NAME,
    GIB,
    MIB,
    PAGE,
    Load,
    Machine,
    note,
    populate,
    prstatus,
    vmcoreinfo_text,
    write_elf,
    write_kdump,
)


def check_memory(vmcore: Vmcore, machine: Machine) -> None:
    """All of *machine*'s memory, by every way to read it."""
    for start, memory in machine.ram:
        size = len(memory)
        assert vmcore.read(start, size) == memory.tobytes()
        assert vmcore.view(start, size).tobytes() == memory.tobytes()
        # Over the edges of pages.
        assert vmcore.read(start + 100, 9000) == memory[100:9100].tobytes()
        assert vmcore.view(start + 100, 9000).tobytes() == memory[100:9100].tobytes()
        pfn, count = start // PAGE, size // PAGE
        assert vmcore.present(pfn, pfn + count).all()
        every = np.arange(pfn, pfn + count)
        some = every[np.random.default_rng(0).random(count) < 0.3]
        wanted = memory.reshape(-1, PAGE)[some - pfn]
        for _ in ways_to_read(vmcore):
            assert b"".join(vmcore.pages(every)) == memory.tobytes()
            assert b"".join(vmcore.pages(some)) == wanted.tobytes()
    last = machine.ram[-1][0] + len(machine.ram[-1][1])
    with pytest.raises(MissingMemory):
        vmcore.read(last, 1)
    with pytest.raises(MissingMemory):
        vmcore.read(last - 10, 20)
    assert not vmcore.present(last // PAGE, last // PAGE + 100).any()


def ways_to_read(vmcore: Vmcore) -> Iterator[None]:
    """As a file, and as /proc/vmcore."""
    yield
    if isinstance(vmcore, _ElfVmcore):
        assert not vmcore._in_proc
        vmcore._in_proc = True
        yield
        vmcore._in_proc = False


def check_kernel(vmcore: Vmcore, machine: Machine) -> None:
    """The kernel's own view: page tables and what they lead to."""
    assert vmcore.utsname() == machine.utsname
    assert vmcore.nr_cpus == 2
    assert vmcore.vmcoreinfo is not None
    assert vmcore.vmcoreinfo.raw == vmcoreinfo_text(machine.keys)
    offset, size = vmcore.vmcoreinfo_place
    assert vmcore.notes[offset : offset + size] == vmcoreinfo_text(machine.keys)
    plan = make_plan(vmcore, excluded_classes(31))
    expected = [machine.expected(pfn) for pfn in machine.pfns()]
    assert plan.found.tolist() == np.bincount(expected, minlength=15).tolist()
    assert not plan.warnings


def check(path: Path, machine: Machine) -> None:
    with open_vmcore(str(path)) as vmcore:
        check_memory(vmcore, machine)
        check_kernel(vmcore, machine)


def machine_with(**options: Any) -> Machine:
    machine = Machine(ram=((0, 24 * MIB), (64 * MIB, 4 * MIB)), **options)
    populate(machine.pages[0], 2048)
    machine.pages[1].anon(64 * MIB // PAGE + 3)
    return machine


# --- layouts of ELF cores ---------------------------------------------------------


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"qemu": True},
        {"qemu": True, "shift": 7},
        {"align": 1},
        {"align": 1, "shift": 1},
        {"shift": 512},
        {"note_place": "last"},
    ],
    ids=str,
)
def test_layouts(layout: dict[str, Any], tmp_path: Path) -> None:
    machine = machine_with()
    path = tmp_path / "vmcore"
    write_elf(path, machine.loads(), machine.notes(), **layout)
    check(path, machine)


def test_the_fixture_is_what_an_elf_reader_reads(tmp_path: Path) -> None:
    """pyelftools' own file reader as a second opinion on what is tested with."""
    machine = machine_with()
    for qemu in (False, True):
        path = tmp_path / "vmcore"
        write_elf(path, machine.loads(), machine.notes(), qemu=qemu)
        with open(path, "rb") as file:
            elf = ELFFile(file)
            assert elf["e_type"] == "ET_CORE"
            notes, *loads = elf.iter_segments()
            assert isinstance(notes, NoteSegment)
            found = [(n["n_name"], n["n_type"]) for n in notes.iter_notes()]
            assert found[:2] == [("CORE", "NT_PRSTATUS")] * 2
            assert found[2][0] == "VMCOREINFO"
            for segment, load in zip(loads, machine.loads()):
                assert segment["p_paddr"] == load.paddr
                assert segment.data() == bytes(np.frombuffer(load.data, np.uint8))


@pytest.mark.parametrize("shift", [0, 3])
def test_mmap_refused(
    shift: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by /proc/vmcore of old, and by FUSE: read instead, with the same result."""
    machine = machine_with()
    path = tmp_path / "vmcore"
    write_elf(path, machine.loads(), machine.notes(), shift=shift)
    real = mmap.mmap
    refused = []

    def refuse(fd: int, *args: Any, **kwargs: Any) -> mmap.mmap:
        if fd == -1 or os.readlink(f"/proc/self/fd/{fd}") != str(path):
            return real(fd, *args, **kwargs)
        refused.append(fd)
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("drgn_tools.vmcore.mmap.mmap", refuse)
    check(path, machine)
    # It does not go on asking.
    assert len(refused) == 1


@pytest.mark.parametrize("shift", [0, 3])
def test_mmap_is_used(
    shift: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For /proc/vmcore; also where data is not page-aligned in the file."""
    machine = machine_with()
    path = tmp_path / "vmcore"
    write_elf(path, machine.loads(), machine.notes(), shift=shift)
    with open_vmcore(str(path)) as vmcore:
        monkeypatch.setattr(vmcore, "_in_proc", True)
        monkeypatch.setattr(vmcore, "_pread", None)
        start, memory = machine.ram[0]
        pfns = np.arange(start // PAGE, (start + len(memory)) // PAGE)
        assert b"".join(vmcore.pages(pfns)) == memory.tobytes()


@pytest.mark.parametrize(
    "options",
    [
        {"mapping": "4K"},
        {"mapping": "1G"},
        {"levels": 5},
        {"levels": 5, "mapping": "4K"},
        {"sme_mask": 1 << 47},
        {"sme_mask": 1 << 51, "mapping": "4K"},
        {"image": 6 * MIB},
        {"kaslr": 0x1E000000},
        {"kaslr": 0x3D000000, "image": 4 * MIB},
    ],
    ids=str,
)
def test_page_tables(options: dict[str, Any], tmp_path: Path) -> None:
    machine = machine_with(**options)
    path = tmp_path / "vmcore"
    write_elf(path, machine.loads(), machine.notes())
    check(path, machine)


def test_phys_base_of_either_sign() -> None:
    assert Machine(kaslr=0x1E000000).phys_base < 0
    ram = ((0x40000000, 8 * MIB),)
    assert Machine(ram=ram, image=0x40000000 + 2 * MIB).phys_base > 0


def test_image_high_in_memory(tmp_path: Path) -> None:
    """KASLR puts the image anywhere: a positive phys_base, nothing at 0."""
    start = 0x40000000
    machine = Machine(ram=((start, 32 * MIB),), image=start + 2 * MIB)
    populate(machine.pages[0], start // PAGE + 2048)
    path = tmp_path / "vmcore"
    write_elf(path, machine.loads(), machine.notes())
    check(path, machine)


def test_translate(tmp_path: Path) -> None:
    machine = Machine(mapping="4K")
    path = tmp_path / "vmcore"
    write_elf(path, machine.loads(), machine.notes())
    with open_vmcore(str(path)) as vmcore:
        kernel = vmcore.kernel
        assert kernel.translate(machine.text + 5) == (machine.image + 5, 2 * MIB - 5)
        direct = machine.page_offset + 3 * MIB
        assert kernel.translate(direct) == (3 * MIB, GIB - 3 * MIB)
        first = machine.struct_page_paddr(0)
        assert kernel.translate(machine.vmemmap + 8) == (first + 8, PAGE - 8)
        # Pages that are no neighbours do not become one range.
        ranges = list(kernel.ranges(machine.vmemmap, 2 * PAGE))
        second = machine.struct_page_paddr(64)
        assert ranges == [(first, PAGE), (second, PAGE)]
        for unmapped in (0, 0x1000, machine.vmemmap - 1, (1 << 64) - 1, -1, 1 << 64):
            with pytest.raises(DumpError):
                list(kernel.ranges(unmapped, 16))


@pytest.mark.parametrize("levels", [4, 5])
def test_addresses_that_are_none(levels: int, tmp_path: Path) -> None:
    """What the processor refuses, whatever the tables have for its lower bits."""
    machine = Machine(levels=levels)
    path = tmp_path / "vmcore"
    write_elf(path, machine.loads(), machine.notes())
    with open_vmcore(str(path)) as vmcore:
        for vaddr in (machine.text, machine.page_offset + 3 * MIB):
            assert vmcore.kernel.translate(vaddr)
            for bit in range(12 + 9 * levels - 1, 64):
                with pytest.raises(DumpError, match="not mapped"):
                    vmcore.kernel.translate(vaddr ^ 1 << bit)


@pytest.mark.parametrize("name", ["4.18", "5.10", "6.1", "7.2"])
def test_utsname(name: str, tmp_path: Path) -> None:
    """With OFFSET(uts_namespace.name), and 4 bytes on where that is unknown."""
    machine = Machine(BY_NAME[name])
    path = tmp_path / "vmcore"
    write_elf(path, machine.loads(), machine.notes())
    with open_vmcore(str(path)) as vmcore:
        assert vmcore.utsname() == machine.utsname


# --- segments ---------------------------------------------------------------------


def test_overlapping_segments(tmp_path: Path) -> None:
    """The first that has a byte gives it; nothing is counted twice."""
    data = np.random.default_rng(0).integers(0, 256, 16 * PAGE, np.uint8)
    path = tmp_path / "vmcore"
    loads = [
        Load(MIB + 4 * PAGE, data[4 * PAGE : 8 * PAGE]),
        Load(MIB, data),
        Load(MIB + 2 * PAGE, data[2 * PAGE : 4 * PAGE]),
        Load(MIB + 15 * PAGE, data[15 * PAGE :]),
    ]
    write_elf(path, loads)
    with open_vmcore(str(path)) as vmcore:
        assert vmcore.ram_runs == vmcore.data_runs == [Run(256, 272)]
        assert vmcore.read(MIB, 16 * PAGE) == data.tobytes()
        pfns = np.arange(256, 272)
        assert b"".join(vmcore.pages(pfns)) == data.tobytes()
        plan = make_plan(vmcore, excluded_classes(0))
        assert plan.pages == 16


def test_memory_without_data(tmp_path: Path) -> None:
    """p_memsz beyond p_filesz: RAM that the dump does not have."""
    path = tmp_path / "vmcore"
    loads = [Load(0, b"a" * PAGE, memsz=8 * PAGE), Load(MIB, b"", memsz=4 * PAGE)]
    write_elf(path, loads)
    with open_vmcore(str(path)) as vmcore:
        assert vmcore.ram_runs == [Run(0, 8), Run(256, 260)]
        assert vmcore.data_runs == [Run(0, 1)]
        assert vmcore.lost_bytes == 0
        assert vmcore.read(0, PAGE) == b"a" * PAGE
        for paddr in (PAGE, 7 * PAGE, MIB, -PAGE, 1 << 60):
            with pytest.raises(MissingMemory):
                vmcore.read(paddr, 1)
        with pytest.raises(MissingMemory):
            list(vmcore.pages(np.array([0, 1])))


def test_no_data_at_all(tmp_path: Path) -> None:
    path = tmp_path / "vmcore"
    write_elf(path, [Load(MIB, b"", memsz=4 * PAGE)])
    with open_vmcore(str(path)) as vmcore:
        assert vmcore.data_runs == []
        assert make_plan(vmcore, excluded_classes(0)).pages == 0


@pytest.mark.parametrize("filesz_larger", [False, True])
def test_fractional_pages(filesz_larger: bool, tmp_path: Path) -> None:
    """What of the first and last page is not memory reads as zeros."""
    data = np.random.default_rng(0).integers(1, 256, 4 * PAGE, np.uint8).tobytes()
    path = tmp_path / "vmcore"
    memsz = len(data) - 50 if filesz_larger else None
    size = memsz or len(data)
    write_elf(path, [Load(MIB + 100, data, memsz=memsz)])
    memory = (bytes(100) + data[:size]).ljust(5 * PAGE, b"\0")
    with open_vmcore(str(path)) as vmcore:
        assert vmcore.data_runs == [Run(256, 261)]
        pfns = np.arange(256, 261)
        assert b"".join(vmcore.pages(pfns)) == memory
        assert vmcore.read(MIB, 5 * PAGE) == memory


def test_pages_in_pieces(tmp_path: Path) -> None:
    """A page may be put together from several segments, with gaps."""
    path = tmp_path / "vmcore"
    loads = [
        Load(MIB, b"a" * 1000),
        Load(MIB + 1000, b"b" * 1000),
        Load(MIB + 3000, b"c" * 5192),
        Load(MIB + 2 * PAGE, b"d" * PAGE),
    ]
    memory = b"a" * 1000 + b"b" * 1000 + bytes(1000) + b"c" * 5192 + b"d" * PAGE
    write_elf(path, loads)
    with open_vmcore(str(path)) as vmcore:
        assert b"".join(vmcore.pages(np.arange(256, 259))) == memory
        assert vmcore.read(MIB, 3 * PAGE) == memory
        assert vmcore.read(MIB + 1990, 1020) == memory[1990:3010]


def test_segments_that_are_no_physical_memory(tmp_path: Path) -> None:
    """/proc/kcore gives -1 for what is not in the direct map."""
    path = tmp_path / "vmcore"
    loads = [
        Load((1 << 64) - 1, b"v" * PAGE),
        Load((1 << 52) - PAGE, b"v" * 2 * PAGE),
        Load(MIB, b"m" * PAGE),
    ]
    write_elf(path, loads)
    with open_vmcore(str(path)) as vmcore:
        assert vmcore.ram_runs == [Run(256, 257)]
        assert vmcore.read(MIB, PAGE) == b"m" * PAGE


def test_many_segments(tmp_path: Path) -> None:
    """PN_XNUM: their number is in the first section header."""
    count = 66000
    machine = Machine()
    loads = machine.loads()
    base = 16 * GIB
    loads += [Load(base + 2 * PAGE * i, b"%08d" % i, memsz=PAGE) for i in range(count)]
    path = tmp_path / "vmcore"
    for note_place in ("first", "last"):
        write_elf(path, loads, machine.notes(), align=8, note_place=note_place)
        with open(path, "rb") as file:
            assert ELFFile(file).num_segments() == count + 3
        with open_vmcore(str(path)) as vmcore:
            check_memory_of_many(vmcore, base, count)
            assert vmcore.utsname() == machine.utsname
            assert vmcore.read(0, 8 * MIB) == machine.read(0, 8 * MIB)


def check_memory_of_many(vmcore: Vmcore, base: int, count: int) -> None:
    assert len(vmcore.ram_runs) == count + 1
    for i in (0, 1, 65532, 65533, 65534, 65535, 65536, count - 1):
        page = b"%08d" % i + bytes(PAGE - 8)
        assert vmcore.read(base + 2 * PAGE * i, PAGE) == page
        pfn = (base + 2 * PAGE * i) // PAGE
        assert b"".join(vmcore.pages(np.array([pfn]))) == page
    with pytest.raises(MissingMemory):
        vmcore.read(base + PAGE, 1)


# --- notes ------------------------------------------------------------------------


def test_notes_of_all_kinds(tmp_path: Path) -> None:
    """Device dumps come first; QEMU's and others' are between."""
    machine = Machine()
    text = vmcoreinfo_text(machine.keys)
    notes = (
        note(b"LINUX", 0x700, bytes(100001))
        + prstatus(1)
        + note(b"QEMU", 0, b"x" * 432)
        + prstatus(2)
        + note(b"CORE", 2, b"fpregs")
        + note(b"VMCOREINFO", 0, text)
        + note(b"VMCOREINFO", 0, b"OSRELEASE=another\n")
    )
    path = tmp_path / "vmcore"
    write_elf(path, machine.loads(), notes)
    with open_vmcore(str(path)) as vmcore:
        assert vmcore.notes == notes
        assert vmcore.nr_cpus == 2
        assert vmcore.vmcoreinfo is not None
        assert vmcore.vmcoreinfo.raw == text
        offset, size = vmcore.vmcoreinfo_place
        assert notes[offset : offset + size] == text


@pytest.mark.parametrize(
    "notes",
    [
        b"",
        b"\xff" * 100,
        bytes(100),
        struct.pack("<III", 11, 0xFFFFFFFF, 0) + b"VMCOREINFO\0\0text",
        struct.pack("<III", 0xFFFFFFFF, 4, 0) + b"VMCOREINFO\0\0text",
        struct.pack("<III", 0, 1, 0),
        b"\1",
    ],
    ids=repr,
)
def test_damaged_notes(notes: bytes, tmp_path: Path) -> None:
    """Up to the damage they count; memory is there in any case."""
    path = tmp_path / "vmcore"
    write_elf(path, [Load(0, b"m" * PAGE)], prstatus(1) + notes)
    with open_vmcore(str(path)) as vmcore:
        assert vmcore.vmcoreinfo is None
        assert vmcore.nr_cpus == 1
        assert vmcore.read(0, PAGE) == b"m" * PAGE


# --- kdump-compressed -------------------------------------------------------------


def pages_of(machine: Machine) -> dict[int, bytes]:
    machine.loads()
    return {pfn: machine.page(pfn) for pfn in machine.pfns()}


@pytest.mark.parametrize("codec", ["raw", "zlib", "lzo", "snappy", "zstd"])
@pytest.mark.parametrize("dump_level", [0, 1])
def test_kdump(codec: str, dump_level: int, tmp_path: Path) -> None:
    machine = Machine(ram=((0, 6 * MIB), (64 * MIB, MIB)))
    machine.pages[1].anon(64 * MIB // PAGE + 2, 1)
    path = tmp_path / "dump"
    pages = pages_of(machine)
    write_kdump(path, pages, machine.notes(), codec=codec, dump_level=dump_level)
    check(path, machine)
    with open_vmcore(str(path)) as vmcore:
        assert vmcore.dumped_pages == len(pages)
        assert vmcore.ram_runs == [Run(0, 1536), Run(16384, 16640)]


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5, 6])
def test_kdump_versions(version: int, tmp_path: Path) -> None:
    """Each version added fields; what an older file has in them means nothing."""
    machine = Machine()
    text = vmcoreinfo_text(machine.keys)
    pages = pages_of(machine)
    path = tmp_path / "dump"
    write_kdump(
        path,
        pages,
        machine.notes() if version >= 4 else b"",
        bare_vmcoreinfo=text,
        version=version,
        dump_level=1,
        utsname=machine.utsname,
    )
    with open_vmcore(str(path)) as vmcore:
        check_memory(vmcore, machine)
        assert vmcore.header is not None
        assert vmcore.header.dump_level == 1
        assert vmcore.header.version == version
        assert vmcore.utsname() == machine.utsname
        assert vmcore.nr_cpus == 2
        info = vmcore.vmcoreinfo
        # Version 3 has the text without a note; before there was none.
        assert (info.raw if info else None) == (text if version >= 3 else None)
        offset, size = vmcore.vmcoreinfo_place
        assert vmcore.notes[offset : offset + size] == (text if version >= 3 else b"")


@pytest.mark.parametrize("block_size", [8192, 65536])
def test_kdump_with_large_blocks(block_size: int, tmp_path: Path) -> None:
    pages = {pfn: bytes([pfn]) * block_size for pfn in (1, 2, 5)}
    path = tmp_path / "dump"
    write_kdump(path, pages, block_size=block_size)
    with open_vmcore(str(path)) as vmcore:
        assert vmcore.page_size == block_size
        assert [page[0] for page in vmcore.pages(np.array([1, 2, 5]))] == [1, 2, 5]
        assert vmcore.read(2 * block_size + 5, 3) == b"\2\2\2"


def test_kdump_excluded_and_missing(tmp_path: Path) -> None:
    """Excluded has no bit; missing has a descriptor with offset 0."""
    pages = {pfn: b"%04d" % pfn * (PAGE // 4) for pfn in range(0, 5000, 3)}
    path = tmp_path / "dump"
    write_kdump(path, pages, missing=[1, 4000], excluded=[2, 5001])
    with open_vmcore(str(path)) as vmcore:
        assert vmcore.header is not None and vmcore.header.status & 0x8
        present = vmcore.present(0, 6000)
        assert np.flatnonzero(present).tolist() == sorted(pages)
        every = np.array(sorted(pages))
        assert b"".join(vmcore.pages(every)) == b"".join(pages[p] for p in every)
        # The number of a descriptor is counted over all pieces of the bitmap.
        for pfn in (4095, 4098, 4998):
            assert vmcore.read(pfn * PAGE, PAGE) == pages[pfn]
        for pfn, why in (
            (1, "incomplete"),
            (4000, "incomplete"),
            (2, "excluded"),
            (5001, "excluded"),
            (7, "excluded"),
            (6000, "not in the dump"),
            (1 << 45, "not in the dump"),
            (-1, "not in the dump"),
        ):
            with pytest.raises(MissingMemory, match=why):
                vmcore.read(pfn * PAGE + 8, 8)
        with pytest.raises(MissingMemory):
            list(vmcore.pages(np.array([0, 1, 3])))


@pytest.mark.parametrize(
    ("descriptor", "why"),
    [
        (struct.pack("<qIIQ", -1, PAGE, 0, 0), "descriptor"),
        (struct.pack("<qIIQ", 1 << 62, 100, 1, 0), "descriptor"),
        (struct.pack("<qIIQ", 4096, 0, 1, 0), "descriptor"),
        (struct.pack("<qIIQ", 4096, PAGE + 1, 1, 0), "descriptor"),
        (struct.pack("<qIIQ", 4096, 0xFFFFFFFF, 1, 0), "descriptor"),
        (struct.pack("<qIIQ", 4096, 100, 0, 0), "descriptor"),
        (struct.pack("<qIIQ", 4096, 100, 0x40, 0), "descriptor"),
        (struct.pack("<qIIQ", 4096, 100, 3, 0), "descriptor"),
        (struct.pack("<qIIQ", 4096, 100, 1, 0), "data"),
        (struct.pack("<qIIQ", 4096, 100, 2, 0), "data"),
        (struct.pack("<qIIQ", 4096, 100, 4, 0), "data"),
        (struct.pack("<qIIQ", 4096, 100, 0x20, 0), "data"),
        (b"\xff" * 24, "descriptor"),
    ],
)
def test_kdump_damaged_descriptor(descriptor: bytes, why: str, tmp_path: Path) -> None:
    pages = {pfn: b"%04d" % pfn * (PAGE // 4) for pfn in range(10)}
    path = tmp_path / "dump"
    places = write_kdump(path, pages)
    with open(path, "r+b") as file:
        file.seek(places.descriptors + 24 * 5)
        file.write(descriptor)
    with open_vmcore(str(path)) as vmcore:
        assert vmcore.read(4 * PAGE, PAGE) == pages[4]
        with pytest.raises(MissingMemory, match=why) as caught:
            vmcore.read(5 * PAGE, PAGE)
        assert caught.value.paddr == 5 * PAGE
        with pytest.raises(MissingMemory):
            list(vmcore.pages(np.arange(10)))


@pytest.mark.parametrize("codec", ["zlib", "lzo", "snappy", "zstd"])
def test_kdump_damaged_data(codec: str, tmp_path: Path) -> None:
    """A page is wrong or missing, and the others are as they were."""
    machine = Machine(ram=((0, 6 * MIB),))
    pages = pages_of(machine)
    path = tmp_path / "dump"
    places = write_kdump(path, pages, codec=codec)
    raw = bytearray(path.read_bytes())
    random = np.random.default_rng(0)
    for at in random.integers(places.data + PAGE, len(raw), 3000).tolist():
        raw[at] ^= int(random.integers(1, 256))
    path.write_bytes(raw)
    damaged = 0
    with open_vmcore(str(path)) as vmcore:
        for pfn, page in pages.items():
            try:
                found = vmcore.read(pfn * PAGE, PAGE)
            except MissingMemory:
                damaged += 1
                continue
            assert len(found) == PAGE
            assert any(page) or found == page
    assert damaged > 10


def test_kdump_split_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    write_kdump(path, {0: b"x" * PAGE})
    with open(path, "r+b") as file:
        file.seek(PAGE + 12)
        file.write(struct.pack("<i", 1))
    with pytest.raises(DumpError, match="split"):
        open_vmcore(str(path))


@pytest.mark.parametrize("field", [32, 48])
@pytest.mark.parametrize("value", [(-1, 100), (1 << 40, 100), (4096, 1 << 40)])
def test_kdump_notes_beyond_the_end(
    field: int, value: tuple[int, int], tmp_path: Path
) -> None:
    """Notes cut off unnoticed would be a dump without registers."""
    path = tmp_path / "dump"
    write_kdump(path, {0: b"x" * PAGE}, Machine().notes())
    with open(path, "r+b") as file:
        file.seek(PAGE + field)
        file.write(struct.pack("<qQ", *value))
    with pytest.raises(DumpError, match="notes"):
        open_vmcore(str(path))


# --- damage of all kinds ----------------------------------------------------------


def only_dump_errors(path: Path) -> bool:
    """Do all that there is to do with a dump; whether it was one."""
    try:
        describe(str(path))
        with open_vmcore(str(path)) as vmcore:
            plan = make_plan(vmcore, excluded_classes(31))
            for start, _ in plan.units[:4].tolist():
                pfns = start + np.flatnonzero(vmcore.present(start, start + 1024))
                list(vmcore.pages(pfns[:32]))
    except DumpError as error:
        assert str(error) and "\n" not in str(error)
        return False
    return True


@contextlib.contextmanager
def damage(path: Path, where: range, seed: int) -> Iterator[None]:
    """A few bytes or words of the file changed, for as long as it lasts."""
    random = np.random.default_rng(seed)
    undo = []
    with open(path, "r+b", buffering=0) as file:
        for _ in range(int(random.integers(1, 4))):
            at = int(random.integers(where.start, where.stop))
            at -= at % 8
            file.seek(at)
            old = file.read(8)
            if random.random() < 0.5:
                (word,) = struct.unpack("<Q", old)
                word ^= 1 << int(random.integers(0, 64))
            else:
                values = (0, 1, 0x7FFFFFFF, 0xFFFFFFFF, (1 << 63) - 1, (1 << 64) - 1)
                word = values[int(random.integers(0, len(values)))]
            undo.append((at, old))
            file.seek(at)
            file.write(struct.pack("<Q", word))
    yield
    with open(path, "r+b", buffering=0) as file:
        for at, old in reversed(undo):
            file.seek(at)
            file.write(old)


LOG = [(1000, "Linux version 7.2"), (2000, "Kernel panic - not syncing: test")]


def test_damaged_elf(tmp_path: Path) -> None:
    machine = Machine(ram=((0, 6 * MIB),), log=LOG)
    path = tmp_path / "vmcore"
    write_elf(path, machine.loads()[1:], machine.notes())
    raw = path.read_bytes()
    assert only_dump_errors(path)
    headers = raw.index(b"OSRELEASE")
    end = raw.index(b"CRASHTIME") + 20
    outcomes = set()
    for where in (range(8, headers), range(headers, end)):
        for seed in range(300):
            with damage(path, where, seed):
                outcomes.add(only_dump_errors(path))
    assert outcomes == {False, True}
    assert path.read_bytes() == raw


def test_damaged_kernel_tables(tmp_path: Path) -> None:
    """Page tables, mem_section, log and names of a kernel gone mad."""
    machine = Machine(ram=((0, 6 * MIB),), log=LOG, mapping="4K")
    path = tmp_path / "vmcore"
    write_elf(path, machine.loads()[1:], machine.notes())
    raw = path.read_bytes()
    data = len(raw) - 6 * MIB
    used = range(data + machine.image, data + machine.used_end)
    # What is not zero there is what matters.
    words = np.frombuffer(raw, np.uint8)[used.start : used.stop]
    outcomes = set()
    for seed, at in enumerate(
        np.random.default_rng(0).choice(np.flatnonzero(words), 300).tolist()
    ):
        spot = used.start + at
        with damage(path, range(spot, spot + 1), seed):
            outcomes.add(only_dump_errors(path))
    assert outcomes == {False, True}


def test_damaged_kdump(tmp_path: Path) -> None:
    machine = Machine(ram=((0, 6 * MIB),), log=LOG)
    path = tmp_path / "dump"
    places = write_kdump(path, pages_of(machine), machine.notes())
    assert only_dump_errors(path)
    outcomes = set()
    for where in (
        range(464),
        range(PAGE, PAGE + 104),
        range(places.bitmaps, places.data),
    ):
        for seed in range(150):
            with damage(path, where, seed):
                outcomes.add(only_dump_errors(path))
    assert outcomes == {False, True}


@pytest.mark.parametrize("kind", ["elf", "kdump"])
def test_cut_anywhere(kind: str, tmp_path: Path) -> None:
    machine = Machine(ram=((0, 6 * MIB),), log=LOG)
    path = tmp_path / "dump"
    if kind == "elf":
        write_elf(path, machine.loads(), machine.notes())
    else:
        write_kdump(path, pages_of(machine), machine.notes())
    whole = path.stat().st_size
    sizes = set(np.geomspace(1, whole - 1, 100).astype(int).tolist())
    for size in sorted(sizes | {0}, reverse=True):
        os.truncate(path, size)
        only_dump_errors(path)


# --- runs and imports -------------------------------------------------------------


def test_runs() -> None:
    runs = [Run(10, 20), Run(5, 7), Run(20, 25), Run(7, 8), Run(30, 30), Run(12, 14)]
    assert merge_runs(runs) == [Run(5, 8), Run(10, 25)]
    random = np.random.default_rng(0)
    for _ in range(200):
        edges = np.sort(random.choice(100, 8, replace=False)).tolist()
        merged = [Run(a, b) for a, b in zip(edges[::2], edges[1::2])]
        every = {pfn for run in merged for pfn in range(*run)}
        start, end = sorted(random.integers(0, 110, 2).tolist())
        mask = runs_mask(merged, start, end)
        found = {start + i for i in np.flatnonzero(mask).tolist()}
        assert found == every & set(range(start, end))


@pytest.mark.parametrize(
    ("statement", "banned"),
    [
        ("import drgn_tools.vmcore", ["drgn", "click"]),
        ("import drgn_tools.extract, drgn_tools.info", ["drgn", "click"]),
        ("import drgn_tools.__main__", ["drgn", "numpy", "elftools"]),
    ],
)
def test_imports(statement: str, banned: list[str]) -> None:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not set(banned) & set(run.stdout.split())


@pytest.mark.parametrize("command", [[], ["extract"], ["info"], ["dmesg"]], ids=str)
def test_help_imports_little(command: list[str]) -> None:
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "drgn_tools", *command, "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Usage: drgn-tools" in run.stdout
    modules = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines()}
    assert "click" in modules
    assert not {"numpy", "drgn", "elftools"} & modules
