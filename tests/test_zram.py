# SPDX-License-Identifier: LGPL-2.1-or-later
"""zram devices of all times on memory that is made here; states in between; ruins."""

from __future__ import annotations

import importlib
import io
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from drgn import FaultError, Platform

from drgn_tools import zram
from drgn_tools.errors import DumpError
from drgn_tools.zram import ZramPage
from tests import command
from tests.zram_kernel import BIG, ERAS, ILP32, LP64, PAGE, ZramKernel

lzo: Any = importlib.import_module("lzo")
cramjam: Any = importlib.import_module("cramjam")


def deflated(page: bytes, bits: int = -11) -> bytes:
    coder = zlib.compressobj(6, wbits=bits)
    return coder.compress(page) + coder.flush()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "lzo": lambda page: bytes(lzo.compress(page, 1, False)),
    # Without runs of zeros it differs in its header alone.
    "lzo-rle": lambda page: b"\x11\1" + bytes(lzo.compress(page, 1, False)),
    "lz4": lambda page: bytes(cramjam.lz4.compress_block(page, store_size=False)),
    "zstd": lambda page: zstandard.ZstdCompressor(write_content_size=False).compress(
        page
    ),
    "deflate": deflated,
}
# Those that keep when a slot was accessed.
_TIMED = {"ac_time", "attr"}
TIMES = [era for era, what in ERAS.items() if dict(what.entry).keys() & _TIMED]


def text_page(number: int) -> bytes:
    chance = random.Random(number)
    words = [chance.randbytes(chance.randrange(3, 30)) for _ in range(40)]
    page = b"".join(chance.choice(words) for _ in range(400))
    return (b"%08d" % number + page)[:PAGE].ljust(PAGE, b"\n")


def filled(kernel: ZramKernel, algorithm: str) -> list[bytes]:
    """Pages of all kinds, as the kernel stores them; what they read as."""
    pages = []
    for index in range(kernel.count):
        kind = index % 6
        if kind == 0:
            pages.append(bytes(PAGE))
            continue
        if kind < 3:
            # Of the table's first versions, only zeros were told from others.
            flag = "SAME" if "SAME" in kernel.era.flags else "ZERO"
            element = 0 if kind == 1 or flag == "ZERO" else 0xABCDEF01 + index
            kernel.slot(index, handle=element, flags=kernel.flag(flag))
            word = element.to_bytes(kernel.word, kernel.order)
            pages.append(word * (PAGE // kernel.word))
            continue
        page = text_page(index)
        if kind == 3:
            page = kernel.chance.randbytes(PAGE)
        pages.append(page)
        kernel.put(index, page if kind == 3 else COMPRESS[algorithm](page))
    return pages


def kind_of(index: int, era: str) -> str:
    same = "SAME" in ERAS[era].flags
    names = ("empty", "zero", "same" if same else "zero", "huge")
    return (*names, "compressed", "compressed")[index % 6]


@pytest.mark.verified(
    "zram: layouts, 64 and 32 bit, both byte orders",
    by="structures made as in 3.13, 4.0, 4.7, 4.14, 5.10, 6.1, 6.5, 6.12, 6.16, 7.2",
    on="bytes",
)
@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("platform", [LP64, BIG, ILP32], ids=["", "big", "32-bit"])
def test_all_layouts(era: str, platform: Platform) -> None:
    algorithm = "lz4" if ERAS[era].algorithms else "lzo"
    bits = None
    if not ERAS[era].indirect:
        platform, bits = LP64, 34
    kernel = ZramKernel(
        era, algorithms=[algorithm], platform=platform, pfn_bits=bits, slots=120
    )
    pages = filled(kernel, algorithm)
    device = zram.find_zram(kernel.prog)
    assert [page.data for page in zram.zram_read_many(device, 0, 120)] == pages
    slots = list(zram.for_each_zram_slot(device))
    assert [slot.index for slot in slots] == list(range(120))
    assert [slot.kind for slot in slots] == [kind_of(i, era) for i in range(120)]
    for slot in slots:
        named = algorithm if slot.kind == "compressed" else ""
        assert slot.algorithm == named
        assert (slot.size == PAGE) == (slot.kind == "huge")
        page = zram.zram_read(device, slot.index)
        assert page == ZramPage(slot.kind, pages[slot.index], "")
    for index in (-1, 120):
        with pytest.raises(ValueError, match="zram0 has 120 pages"):
            zram.zram_read(device, index)


@pytest.mark.parametrize("algorithm", COMPRESS)
@pytest.mark.parametrize("era", ["6.1", "6.12", "7.2"])
def test_algorithms(era: str, algorithm: str) -> None:
    kernel = ZramKernel(era, algorithms=[algorithm])
    pages = filled(kernel, algorithm)
    found = zram.zram_read_many(kernel.device, 0, 64)
    assert [page.data for page in found] == pages


@pytest.mark.parametrize("era", ["6.5", "6.12", "7.2"])
def test_recompressed_pages(era: str) -> None:
    """With an algorithm, a dictionary and a window for each priority."""
    kernel = ZramKernel(era, algorithms=["lzo-rle", "lz4", "zstd", "deflate"])
    dictionary = text_page(1) + text_page(2)
    coder: Any = zstandard.ZstdCompressor(
        dict_data=zstandard.ZstdCompressionDict(
            dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT
        )
    )
    kernel.set_params(2, dictionary)
    kernel.set_params(3, winbits=12)
    streams = [
        COMPRESS["lzo-rle"],
        COMPRESS["lz4"],
        coder.compress,
        lambda page: deflated(page, 12),
    ]
    for index in range(64):
        priority = index % 4
        kernel.put(index, streams[priority](text_page(index)), priority=priority)
    pages = zram.zram_read_many(kernel.device, 0, 64)
    assert pages == [ZramPage("compressed", text_page(i), "") for i in range(64)]
    slots = list(zram.for_each_zram_slot(kernel.device))
    assert [slot.algorithm for slot in slots[:4]] == [
        "lzo-rle",
        "lz4",
        "zstd",
        "deflate",
    ]
    assert [slot.flags for slot in slots[:2]] == ["......", "....r."]
    # Without the dictionary it says why.
    kernel.prog.cache.clear()
    params = kernel.at(kernel.zram, "struct zram", "params")[0]
    size = kernel.layout("struct zcomp_params")[0]
    kernel.set(params + 2 * size, "struct zcomp_params", dict=0x10)
    page = zram.zram_read(kernel.device, 2)
    assert page.data is None and page.note == "zstd: its dictionary is not in the dump"


@pytest.mark.parametrize("era", [era for era in ERAS if "WB" in ERAS[era].flags])
def test_written_back_is_named(era: str) -> None:
    kernel = ZramKernel(era)
    kernel.slot(3, handle=7, flags=kernel.flag("WB"))
    page = zram.zram_read(kernel.device, 3)
    assert (page.kind, page.data) == ("written back", None)
    assert page.note == "written back to a device that is gone, offset 28672"
    if "PP_SLOT" in ERAS[era].flags:
        # What is compressed there, from 7.0 on; and a block may be the first.
        kernel.set(kernel.zram, "struct zram", compressed_wb=1)
        kernel.slot(4, handle=0, size=1000, flags=kernel.flag("WB"))
        kernel.slot(5, handle=1, size=PAGE, flags=kernel.flag("WB", "HUGE"))
        kernel.prog.cache.clear()
        found = zram.zram_read_many(kernel.device, 4, 2)
        assert [page.kind for page in found] == ["written back"] * 2
        assert found[0].note.endswith("offset 0, 1000 bytes of lz4")
        assert found[1].note.endswith("offset 4096")
        return
    # Still in memory.
    data = COMPRESS["lz4"](text_page(6))
    kernel.put(6, data, flags=kernel.flag("UNDER_WB"))
    assert zram.zram_read(kernel.device, 6) == ZramPage("in flight", text_page(6), "")


LOCKED = [era for era, what in ERAS.items() if what.zspage]


@pytest.mark.parametrize("era", LOCKED)
def test_states_in_between(era: str) -> None:
    """What a slot can look like while its lock is held."""
    two = ["lz4", "zstd"] if ERAS[era].algorithms == "comp_algs" else ["lz4"]
    kernel = ZramKernel(era, algorithms=two)
    # The old object is freed, the slot still has it.
    old = kernel.put(0, COMPRESS["lz4"](text_page(0)), locked=True)
    kernel.write(old, 0x1234567, kernel.word)
    # The head of the object is a link of the free list.
    freed = kernel.put(1, COMPRESS["lz4"](text_page(1)), locked=True)
    value = int.from_bytes(kernel.peek(freed, kernel.word), kernel.order)
    start = kernel.frame(value >> kernel.index_bits)
    place = kernel.peek(start, PAGE).find((freed | 1).to_bytes(8, "little"))
    kernel.write(start + place, 5 << 1, kernel.word)
    # Cleared.
    kernel.slot(2, locked=True)
    # The new one is there, its size is not.
    handle = kernel.zs_malloc(COMPRESS["lz4"](text_page(3)))
    kernel.slot(3, handle=handle, locked=True)
    kernel.slot(4, handle=kernel.zs_malloc(text_page(4)), locked=True)
    # A block's number, not yet a flag.
    kernel.slot(5, handle=9, size=1000, locked=True)
    # A pattern that is not stored yet.
    same = "SAME"
    kernel.slot(6, handle=0, flags=kernel.flag(same), locked=True)
    pages = zram.zram_read_many(kernel.device, 0, 7)
    assert [page.data for page in pages[:2]] == [None, None]
    assert pages[1].note.endswith("it is freed or being moved")
    assert pages[2].data == bytes(PAGE) and "locked" in pages[2].note
    assert pages[3].kind == "in flight" and pages[3].data == text_page(3)
    assert "size was not yet stored" in pages[3].note
    assert pages[4].data == text_page(4) and pages[4].note
    assert pages[5].data is None
    assert pages[5].note in (
        "zsmalloc handle 0x9 is no address of an object word",
        "zsmalloc handle 0x9 cannot be read",
    )
    assert pages[6].data == bytes(PAGE) and "locked" in pages[6].note
    if "HUGE" in ERAS[era].flags:
        kernel.slot(7, flags=kernel.flag("HUGE"), locked=True)
        page = zram.zram_read(kernel.device, 7)
        assert page.kind == "in flight" and page.data is None and page.note
    if len(two) > 1:
        # Recompressed, and the priority is not stored yet.
        kernel.put(8, COMPRESS["zstd"](text_page(8)), locked=True)
        page = zram.zram_read(kernel.device, 8)
        assert page.data == text_page(8) and "recompressed" in page.note
        # Without the lock it is damage.
        kernel.put(9, COMPRESS["zstd"](text_page(9)))
        page = zram.zram_read(kernel.device, 9)
        assert page.data is None and page.note


@pytest.mark.parametrize("era", LOCKED)
def test_orphans(era: str) -> None:
    kernel = ZramKernel(era)
    filled(kernel, "lz4")
    assert not list(zram.for_each_zram_orphan(kernel.device))
    lost = {
        kernel.zs_malloc(COMPRESS["lz4"](text_page(100))): text_page(100),
        kernel.zs_malloc(text_page(101)): text_page(101),
        kernel.zs_malloc(b"nothing of a page"): None,
    }
    found = {
        orphan.handle: orphan for orphan in zram.for_each_zram_orphan(kernel.device)
    }
    assert {handle: orphan.data for handle, orphan in found.items()} == lost
    assert sorted(orphan.algorithm for orphan in found.values()) == ["", "", "lz4"]


STREAMS = [era for era, what in ERAS.items() if what.stream not in ("lists", "meta")]


@pytest.mark.parametrize("era", STREAMS)
@pytest.mark.parametrize("algorithm", COMPRESS)
def test_streams(era: str, algorithm: str) -> None:
    kernel = ZramKernel(era, algorithms=[algorithm])
    older = COMPRESS[algorithm](random.Random(1).randbytes(PAGE))
    stream = COMPRESS[algorithm](text_page(1))
    # What is behind the end is of a longer one; one CPU never wrote.
    kernel.streams([stream + older[len(stream) :], b"", b"\xff" * PAGE * 2])
    found = list(zram.for_each_zram_stream(kernel.device))
    assert [one.cpu for one in found] == [0, 1, 2]
    assert [one.state for one in found] == ["decoded", "unused", "damaged"]
    assert found[0].data == text_page(1)
    assert (found[0].size, found[0].algorithm) == (len(stream), algorithm)
    assert not found[0].writer and found[2].note


def test_who_holds_a_stream() -> None:
    kernel = ZramKernel("7.2")
    kernel.streams([COMPRESS["lz4"](text_page(1)), COMPRESS["lz4"](text_page(2))])
    task = kernel.allocate(kernel.layout("struct task_struct")[0])
    kernel.set(task, "struct task_struct", pid=77)
    kernel.poke(task, b"kswapd0\0")
    # With the flags of a mutex.
    size = kernel.layout("struct zcomp_strm")[0]
    kernel.write(kernel.first_stream + size, task | 3, 8)
    first, second = zram.for_each_zram_stream(kernel.device)
    assert (first.writer, first.note) == ("", "")
    assert second.writer == "kswapd0 (pid 77)" and second.note
    out = io.StringIO()
    zram.zram_streams(kernel.prog, file=out)
    assert "kswapd0 (pid 77)" in out.getvalue()


def test_a_stream_of_the_whole_device() -> None:
    kernel = ZramKernel("3.13", pfn_bits=34)
    kernel.streams([COMPRESS["lzo"](text_page(1))])
    (stream,) = zram.for_each_zram_stream(kernel.device)
    assert (stream.cpu, stream.data) == (None, text_page(1))


def test_streams_of_cpus_and_all_devices() -> None:
    """As in 2010: a variable of each CPU's."""
    kernel = ZramKernel("3.13", pfn_bits=34)
    kernel.types["struct zram_meta"] = kernel.types["struct zram_meta"][:2]
    kernel.era = kernel.era._replace(stream="local")
    with pytest.raises(LookupError, match="no streams of CPUs"):
        list(zram.for_each_zram_stream(kernel.device))
    pages = [COMPRESS["lzo"](text_page(cpu)) for cpu in range(2)]
    kernel.variable("nr_cpu_ids", "u32", 2)
    kernel.write(kernel.variable("__cpu_online_mask", "struct cpumask"), 3, 8)
    first = kernel.variable("compress_buffer", "ptr")
    kernel.allocate(2 * PAGE)
    offsets = kernel.variable("__per_cpu_offset", "arr 2 long")
    for cpu, data in enumerate(pages):
        buffer = kernel.store(data.ljust(2 * PAGE, b"\0"))
        kernel.write(offsets + 8 * cpu, 64 * cpu, 8)
        kernel.write(first + 64 * cpu, buffer, 8)
    found = list(zram.for_each_zram_stream(kernel.device))
    assert [one.data for one in found] == [text_page(0), text_page(1)]
    assert [one.cpu for one in found] == [0, 1]


def test_no_streams_of_cpus() -> None:
    kernel = ZramKernel("4.0", pfn_bits=34)
    kernel.streams([b""])
    with pytest.raises(LookupError, match="no streams of CPUs"):
        list(zram.for_each_zram_stream(kernel.device))


@pytest.mark.parametrize("jobs", [1, 3])
def test_export(jobs: int, tmp_path: Path) -> None:
    kernel = ZramKernel("6.12", slots=9000)
    pages = {index: text_page(index) for index in (0, 1, 4095, 4096, 8999)}
    for index, page in pages.items():
        kernel.put(index, COMPRESS["lz4"](page))
    kernel.slot(2, handle=0x41414141, flags=kernel.flag("SAME"))
    pages[2] = struct.pack("<Q", 0x41414141) * 512
    kernel.slot(5000, handle=7, flags=kernel.flag("WB"))
    freed = kernel.put(5001, COMPRESS["lz4"](text_page(5001)))
    kernel.write(freed, 0, 8)
    kernel.slot(5002, handle=kernel.zs_malloc(text_page(3)), locked=True)
    pages[5002] = text_page(3)
    path = tmp_path / "image"
    result = zram.zram_export(kernel.device, str(path), jobs=jobs)
    image = path.read_bytes()
    for index in range(9000):
        page = image[index * PAGE : (index + 1) * PAGE]
        assert page == pages.get(index, bytes(PAGE))
    assert (result.size, result.pages) == (9000 * PAGE, 7)
    assert [page.index for page in result.missing] == [5000, 5001]
    assert result.missing[0].note.endswith("offset 28672")
    assert [page.index for page in result.doubtful] == [5002]
    assert path.stat().st_blocks * 512 < 100 * PAGE
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(DumpError, match="cannot write"):
        zram.zram_export(kernel.device, str(tmp_path / "no/image"))


def printed(helper: Callable[..., None], kernel: ZramKernel, *more: object) -> str:
    out = io.StringIO()
    helper(kernel.prog, *more, file=out)
    return out.getvalue()


def test_text() -> None:
    kernel = ZramKernel("6.1")
    filled(kernel, "lz4")
    kernel.counter(pages_stored=3, compr_data_size=5000, same_pages=2, huge_pages=1)
    kernel.counter(max_used_pages=9, failed_reads=4, invalid_io=6, bd_count=8)
    used = kernel.allocated_pages * PAGE
    line = f"   12288     5000 {used:8d}        0    36864        2        0        1"
    assert printed(zram.zram_mm_stat, kernel) == line + "        0\n"
    assert printed(zram.zram_mm_stat, kernel, "0") == line + "        0\n"
    io_stat = "       4        0        6        0\n"
    assert printed(zram.zram_io_stat, kernel, "zram0") == io_stat
    assert printed(zram.zram_bd_stat, kernel) == "       8        0        0\n"
    kernel.streams([b"", b""])
    table = printed(zram.zram_devices, kernel).splitlines()
    assert table[1].split()[:4] == ["zram0", "256.0", "KiB", "lz4"]
    assert printed(zram.zram_devices, kernel, "zram0").splitlines() == table
    with pytest.raises(LookupError, match="no zram device zram7; there is zram0"):
        printed(zram.zram_devices, kernel, "zram7")
    pools = printed(zram.zram_pools, kernel)
    assert pools.splitlines()[0].startswith("POOL")
    with pytest.raises(LookupError, match="no zram device zram7; there is zram0"):
        printed(zram.zram_mm_stat, kernel, "zram7")
    with pytest.raises(LookupError, match="keeps no times"):
        printed(zram.zram_block_state, ZramKernel("4.14"))
    # Where nothing counts what is invalid, nothing sets a width.
    assert printed(zram.zram_io_stat, ZramKernel()) == "       0        0 0        0\n"


@pytest.mark.parametrize("era", TIMES)
def test_block_state(era: str) -> None:
    kernel = ZramKernel(era)
    kernel.put(5, COMPRESS["lz4"](text_page(5)), ac_time=12)
    kernel.put(6, text_page(6), ac_time=3, flags=kernel.flag("IDLE"))
    kernel.slot(7, flags=kernel.flag("SAME"), ac_time=4)
    kernel.slot(8, handle=1, flags=kernel.flag("WB"), ac_time=5)
    rest = ".." if "INCOMPRESSIBLE" in ERAS[era].flags else ""
    assert printed(zram.zram_block_state, kernel).splitlines() == [
        f"           5           12.000000 ....{rest}",
        f"           6            3.000000 ..hi{rest}",
        f"           7            4.000000 s...{rest}",
        f"           8            5.000000 .w..{rest}",
    ]
    slots = list(zram.for_each_zram_slot(kernel.device))
    assert [slot.ac_time for slot in slots[5:9]] == [12, 3, 4, 5]


def test_a_device_that_is_not_set_up() -> None:
    kernel = ZramKernel()
    kernel.streams([b""])
    kernel.set(kernel.zram, "struct zram", disksize=0)
    assert not list(zram.for_each_zram_slot(kernel.device))
    assert not list(zram.for_each_zram_orphan(kernel.device))
    assert zram.zram_device(kernel.device).disksize == 0
    with pytest.raises(LookupError, match="no zram device is set up"):
        printed(zram.zram_mm_stat, kernel)
    assert printed(zram.zram_mm_stat, kernel, "zram0").split()[2] == "0"
    kernel.set(kernel.zram, "struct zram", disksize=1 << 62)
    kernel.prog.cache.clear()
    with pytest.raises(LookupError, match="damaged"):
        zram.zram_read(kernel.device, 0)


def test_disks() -> None:
    kernel = ZramKernel()
    disk = kernel.device.disk
    assert zram.zram_of_disk(disk) == kernel.device
    kernel.set(kernel.disk, "struct gendisk", fops=0x1000)
    assert zram.zram_of_disk(disk) is None


def test_an_unknown_table_is_refused() -> None:
    kernel = ZramKernel("6.12")
    # As of vendors' kernels, whose handle is something else's address.
    entry = tuple(
        (name, "ptr" if name == "handle" else kind)
        for name, kind in kernel.types["struct zram_table_entry"]
    )
    kernel.types["struct zram_table_entry"] = entry
    with pytest.raises(LookupError, match="unknown layout"):
        zram.zram_read(kernel.device, 0)


@pytest.mark.parametrize(
    "helper", [zram.zram_devices, zram.zram_mm_stat, zram.zram_pools]
)
def test_without_symbols_of_zsmalloc(helper: Callable[..., None]) -> None:
    kernel = ZramKernel("6.1")
    kernel.streams([b""])
    # As if it were only declared.
    kernel.types["struct zs_pool"] = ()
    kernel.missing_types = ("struct zs_pool",)
    with pytest.raises(LookupError, match="symbols of zsmalloc are missing"):
        printed(helper, kernel)


def test_missing_memory_is_named() -> None:
    kernel = ZramKernel("6.12", slots=2000)
    kernel.put(1500, COMPRESS["lz4"](text_page(1)))
    first = (kernel.table - kernel.direct) // PAGE + 0x2000
    kernel.missing.add(first + 3)
    pages = zram.zram_read_many(kernel.device, 0, 2000)
    lost = [index for index, page in enumerate(pages) if page.kind == "unreadable"]
    size = kernel.entry_size
    start = (first + 3 - 0x2000) * PAGE + kernel.direct - kernel.table
    assert lost == list(range(start // size, -(-(start + PAGE) // size)))
    assert pages[1500].data == text_page(1)
    assert pages[lost[0]].note == "its slot is not in the dump"


def test_a_running_kernel_is_read_twice() -> None:
    """Slots change while they are read: what comes out is one of what was there."""
    kernel = ZramKernel("6.12", live=True)
    objects = [COMPRESS["lz4"](text_page(number)) for number in range(40)]
    handles = [kernel.zs_malloc(data) for data in objects]
    kernel.slot(3, handle=handles[0], size=len(objects[0]))
    state = {"now": 0}

    def change(reads: int) -> None:
        if not reads % 5 and state["now"] < 39:
            state["now"] += 1
            number = state["now"]
            kernel.slot(3, handle=handles[number], size=len(objects[number]))

    wanted = {text_page(number) for number in range(40)}
    kernel.on_read = change
    page = zram.zram_read(kernel.device, 3)
    assert page.data in wanted or (page.data is None and "changed" in page.note)
    state["now"] = 39
    assert zram.zram_read(kernel.device, 3).data in wanted
    # One that never stands still.
    kernel.on_read = lambda reads: kernel.slot(
        3, handle=handles[reads % 40], size=len(objects[reads % 40])
    )
    page = zram.zram_read(kernel.device, 3)
    assert page == ZramPage("in flight", None, "it changed while it was being read")


@pytest.mark.parametrize("era", LOCKED)
def test_ruins(era: str) -> None:
    """No slot's page is another's: what is right has no note."""
    chance = random.Random(era)
    kernel = ZramKernel(era, slots=96, frames=1024)
    pages = filled(kernel, "lz4")
    kernel.streams([COMPRESS["lz4"](text_page(1))])
    table = kernel.table - kernel.direct
    step = kernel.entry_size
    size = kernel.count * step
    odd = 0
    # 10,000 slots in all.
    for _ in range(16):
        memory = bytes(kernel.memory[: kernel.used])
        for _ in range(chance.randrange(1, 30)):
            at = table + chance.randrange(size)
            if chance.random() < 0.5:
                at = chance.randrange(kernel.used)
            kernel.memory[at] ^= 1 << chance.randrange(8)
        kernel.prog.cache.clear()
        try:
            found = zram.zram_read_many(kernel.device, 0, 96)
            raw = memory[table : table + size]
            now = bytes(kernel.memory[table : table + size])
            for index, page in enumerate(found):
                entry = slice(
                    index * kernel.entry_size, (index + 1) * kernel.entry_size
                )
                if page.data is None or page.note:
                    assert page.note
                    odd += 1
                elif raw[entry] == now[entry]:
                    assert page.data == pages[index]
                elif page.kind in ("compressed", "huge"):
                    # Another's handle it may be, but not a mixture.
                    assert page.data in pages
            list(zram.for_each_zram_slot(kernel.device))
            list(zram.for_each_zram_stream(kernel.device))
            printed(zram.zram_devices, kernel)
        except (LookupError, ValueError, FaultError):
            odd += 1
        kernel.memory[: len(memory)] = memory
    assert odd


def test_the_command_is_a_line_when_it_fails(tmp_path: Path) -> None:
    (tmp_path / "dump").write_bytes(b"no dump")
    for arguments, status in (
        (["zram"], 2),
        (["zram", "dump", "--jobs", "2"], 2),
        (["zram", "dump", "--json", "--stat", "mm-stat"], 2),
        (["zram", "dump", "--pools", "--streams"], 2),
        (["zram", str(tmp_path / "dump"), "--json", "--streams"], 1),
        (["zram", "dump", "--stat", "what"], 2),
        (["zram", str(tmp_path / "dump")], 1),
        (["zram", str(tmp_path / "none")], 1),
    ):
        command.assert_refused(command.drgn_tools(*arguments), status)


def test_the_plugin_is_cheap() -> None:
    """Neither numpy nor a decoder comes with the names."""
    code = (
        "import sys, drgn_tools._plugin, drgn_tools.zram;"
        "print(sorted({'numpy', 'click', 'zstandard'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=command.environment(), capture_output=True
    )
    assert done.stdout == b"[]\n", done.stderr
