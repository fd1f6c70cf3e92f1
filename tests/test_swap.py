# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where a task's pages are, in every layout; what is damaged or missing is named."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cramjam
import drgn.commands
import pytest
from drgn import FaultError, Object

from drgn_tools import mappings, session, swap, swap_areas, swap_commands, zram

from . import command
from .pstore_kernel import KERNEL
from .swap_kernel import (
    ERAS,
    PAGE,
    SLOTS,
    START,
    SwapKernel,
    swap_word,
)

SWAPCACHE, UPTODATE, DIRTY, WRITEBACK, HEAD = 1 << 10, 1 << 3, 1 << 4, 1 << 1, 1 << 6


def content(number: int) -> bytes:
    return struct.pack("<512Q", *range(number << 16, (number << 16) + 512))


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> dict[int, zram.ZramPage]:
    """A zram device, which has what is in this by slot; others are empty."""
    pages: dict[int, zram.ZramPage] = {}

    def many(found: Object, index: int, count: int) -> list[zram.ZramPage]:
        empty = zram.ZramPage("empty", bytes(PAGE), "")
        return [pages.get(index + n, empty) for n in range(count)]

    def of_disk(disk: Object) -> Object | None:
        return disk if disk.private_data.value_() == 0x1234 else None

    monkeypatch.setattr(zram, "zram_of_disk", of_disk)
    monkeypatch.setattr(zram, "zram_read_many", many)
    return pages


def compressed(number: int) -> zram.ZramPage:
    return zram.ZramPage("compressed", content(number), "")


@pytest.fixture(params=ERAS)
def kernel(request: pytest.FixtureRequest) -> SwapKernel:
    return SwapKernel(request.param)


def one(kernel: SwapKernel, address: int = START) -> swap.SwapPage:
    kernel.prog.cache.clear()
    (page,) = swap.swap_pages(kernel.task, address, 1)
    assert page.address == address
    assert (page.data is None) == bool(page.note)
    return page


# --- in memory


def test_resident(kernel: SwapKernel) -> None:
    for number in range(8):
        kernel.entry(START + number * PAGE, kernel.frame(content(number)) << 12 | 0x67)
    found = list(swap.swap_pages(kernel.task, START, 8 * PAGE))
    assert [page.data for page in found] == [content(number) for number in range(8)]
    assert {page.kind for page in found} == {"resident"}
    # Bytes of three pages.
    wanted = b"".join(map(content, range(8)))[100 : 2 * PAGE + 50]
    assert swap.swap_read(kernel.task, START + 100, 2 * PAGE - 50) == wanted
    assert swap.swap_read(kernel.task, START, 0) == b""


def test_pages_that_nobody_may_touch(kernel: SwapKernel) -> None:
    pfn = kernel.frame(content(1))
    kernel.entry(START, ~(pfn << 12) & (1 << 52) - PAGE | 0x160)
    assert one(kernel)[1:5] == ("resident", "", None, content(1))


def test_huge_pages(kernel: SwapKernel) -> None:
    # Memory is small here: huge pages are of what there is of it.
    kernel.fill(3, content(3))
    kernel.fill(513, content(5))
    kernel.entry(START, 0xE7, 1)
    kernel.entry(START + (1 << 30), 0x1E0 | ~0 & (1 << 52) - (1 << 21), 1)
    assert one(kernel, START + 3 * PAGE).data == content(3)
    assert one(kernel, START + (1 << 30) + 3 * PAGE).data == content(3)
    assert one(kernel, START + 511 * PAGE).kind == "resident"
    kernel.entry(START + (2 << 30), 0xE7, 2)
    assert one(kernel, START + (2 << 30) + 513 * PAGE).data == content(5)
    # Beyond the machine's memory.
    assert one(kernel, START + (3 << 30) - PAGE).kind == "excluded"


def test_what_the_dump_lacks(kernel: SwapKernel) -> None:
    there, lost = kernel.frame(content(1)), kernel.frame(content(2))
    kernel.entry(START, there << 12 | 0x67)
    kernel.entry(START + PAGE, lost << 12 | 0x67)
    kernel.missing.add(lost)
    assert one(kernel).data == content(1)
    page = one(kernel, START + PAGE)
    assert (page.kind, page.data) == ("excluded", None)
    assert f"{lost:#x} is not in the dump" in page.note
    with pytest.raises(FaultError) as caught:
        swap.swap_read(kernel.task, START + 10, 2 * PAGE)
    assert isinstance(caught.value, swap.SwapFault)
    assert caught.value.address == START + PAGE
    # And a page table.
    kernel.missing.add(there)
    table = kernel.pgd - 1
    kernel.missing = {table}
    assert one(kernel).kind == "excluded"


# --- entries that are not present


def types(kernel: SwapKernel, *kinds: str) -> None:
    """What is behind the areas' types, in order."""
    for number, kind in enumerate(kinds):
        kernel.entry(START, swap_word(kernel.areas + number, 2))
        page = one(kernel)
        assert page.kind == kind, number
        assert page.data is None or kind in ("migration", "device exclusive")


def test_entries_that_are_not_swap(kernel: SwapKernel) -> None:
    more = {
        "5.10": ("migration",) * 2,
        "6.1": (*("migration",) * 3, "marker", "marker"),
        "6.12": (*("migration",) * 3, "marker"),
        "7.2": (
            *("migration",) * 3,
            *("device private",) * 2,
            "device exclusive",
            "marker",
        ),
    }[kernel.era]
    assert kernel.areas + 1 + len(more) == 32
    types(kernel, "hwpoison", *more)


def test_without_memory_failure_handling() -> None:
    kernel = SwapKernel("6.12")
    del kernel.functions["memory_failure"]
    # As many types, but other ones.
    types(kernel, *("migration",) * 3, "marker", "marker")


def test_numbers_of_types_that_no_kernel_has() -> None:
    kernel = SwapKernel("6.12")
    del kernel.functions["memory_failure"], kernel.functions["migrate_pages"]
    kernel.areas = 29
    kernel.array("swap_info", "pointer struct swap_info_struct", kernel.info)
    kernel.entry(START, swap_word(30, 2))
    assert one(kernel).kind == "damaged"


def test_pages_that_are_being_moved(kernel: SwapKernel) -> None:
    pfn = kernel.frame(content(9))
    # Since 6.1 there are flags above the page frame.
    flags = 3 << 34 if kernel.era != "5.10" else 0
    kernel.entry(START, swap_word(kernel.areas + 1, pfn | flags))
    assert one(kernel)[1:5] == ("migration", "", None, content(9))
    kernel.missing.add(pfn)
    assert one(kernel).kind == "excluded"
    # A huge page: each of its pages from its own.
    kernel.fill(5, content(5))
    kernel.entry(START + (1 << 21), swap_word(kernel.areas + 1, flags), 1)
    assert one(kernel, START + (1 << 21) + 5 * PAGE).data == content(5)


@pytest.mark.parametrize(
    ("bits", "note"),
    [(1, "uffd-wp"), (2, "poisoned"), (4, "guard"), (5, "uffd-wp, guard"), (8, "0x8")],
)
def test_marks(bits: int, note: str) -> None:
    kernel = SwapKernel("6.12")
    kernel.entry(START, swap_word(31, bits))
    assert one(kernel)[1:] == ("marker", "", None, None, note)


# --- swapped out


@pytest.mark.verified(
    "swap: where pages are", by="structures made as in 5.10, 6.1, 6.12, 7.2", on="bytes"
)
def test_order_of_places(kernel: SwapKernel, device: dict[int, zram.ZramPage]) -> None:
    """Whatever is further behind, the first place is the right one."""
    kernel.swap_out(START, 700)
    assert one(kernel)[1:] == ("zram", "zram0", 700, None, "its slot is empty")
    device[700] = compressed(1)
    assert one(kernel)[1:] == ("zram", "zram0", 700, content(1), "")
    stored = cramjam.lz4.compress_block(content(2), store_size=False)
    put_zbud(kernel, {700: bytes(stored)})
    assert one(kernel)[1:] == ("zswap", "zram0", 700, content(2), "")
    if kernel.era in ("6.12", "7.2"):
        kernel.zero(700)
        assert one(kernel)[1:] == ("zero", "zram0", 700, bytes(PAGE), "")
    kernel.swap_cache(700, kernel.frame(content(3)))
    assert one(kernel)[1:] == ("swap cache", "zram0", 700, content(3), "")


def test_slots_far_apart(kernel: SwapKernel, device: dict[int, zram.ZramPage]) -> None:
    slots = [1, 63, 64, 511, 512, (1 << 14) - 1, 1 << 14, (1 << 14) + 1, SLOTS - 1]
    for number, slot in enumerate(slots):
        device[slot] = compressed(number)
        kernel.swap_out(START + number * PAGE, slot)
    # In every third the swap cache has another.
    for number in range(0, len(slots), 3):
        kernel.swap_cache(slots[number], kernel.frame(content(100 + number)))
    found = list(swap.swap_pages(kernel.task, START, len(slots) * PAGE))
    for number, page in enumerate(found):
        cached = number % 3 == 0
        assert page.kind == ("swap cache" if cached else "zram")
        assert page.data == content(number + (100 if cached else 0))
        assert page.slot == slots[number]


@pytest.mark.parametrize("flags", [0, DIRTY, WRITEBACK])
def test_a_cached_page_that_the_dump_lacks(
    kernel: SwapKernel, device: dict[int, zram.ZramPage], flags: int
) -> None:
    """What is behind it is the same if nobody has written to it since."""
    device[5] = compressed(1)
    kernel.swap_out(START, 5)
    pfn = kernel.frame(content(1))
    kernel.swap_cache(5, pfn, SWAPCACHE | UPTODATE | flags)
    assert one(kernel)[1:5] == ("swap cache", "zram0", 5, content(1))
    kernel.missing.add(pfn)
    if flags:
        assert one(kernel)[1:5] == ("excluded", "zram0", 5, None)
    else:
        assert one(kernel)[1:5] == ("zram", "zram0", 5, content(1))


def test_a_page_that_is_being_read(
    kernel: SwapKernel, device: dict[int, zram.ZramPage]
) -> None:
    device[5] = compressed(1)
    kernel.swap_out(START, 5)
    kernel.swap_cache(5, kernel.frame(content(2)), SWAPCACHE)
    assert one(kernel)[1:5] == ("zram", "zram0", 5, content(1))


def test_large_folios_in_the_swap_cache(kernel: SwapKernel) -> None:
    first = kernel.frame(content(13))
    pfns = [first - 3, first - 2, first - 1, first]
    for number, pfn in enumerate(pfns):
        kernel.fill(pfn, content(10 + number))
    kernel.next_frame -= 3
    for number in range(4):
        kernel.swap_out(START + number * PAGE, 64 + number)
    kernel.swap_cache(64, pfns[0], SWAPCACHE | UPTODATE | HEAD)
    # The order is with the second page.
    kernel.page(pfns[1], compound_order=2)
    if "struct folio" in kernel.types:
        kernel.put("struct folio", kernel.vmemmap + 64 * pfns[0], _flags_1=2)
    head = kernel.vmemmap + 64 * pfns[0]
    for number in range(1, 4):
        kernel.cache_entry(64 + number, head)
    found = list(swap.swap_pages(kernel.task, START, 4 * PAGE))
    assert [page.kind for page in found] == ["swap cache"] * 4
    assert [page.data for page in found] == [content(10 + n) for n in range(4)]
    # Of a slot that it does not reach.
    kernel.swap_out(START + 4 * PAGE, 68)
    kernel.cache_entry(68, head)
    assert one(kernel, START + 4 * PAGE).kind == "damaged"


def test_what_is_in_the_swap_cache_by_mistake(kernel: SwapKernel) -> None:
    kernel.swap_out(START, 5)
    pfn = kernel.frame(content(1))
    kernel.swap_cache(5, pfn, UPTODATE)
    assert one(kernel).kind == "damaged"
    kernel.swap_cache(5, pfn)
    kernel.page(pfn, private=6)
    assert one(kernel).kind == "damaged"
    # Something about the working set is no page.
    if kernel.era != "7.2":
        kernel.cache_entry(5, 0x12345)
        assert one(kernel).kind == "zram"


def test_first_swap_tables() -> None:
    """Until 7.0 they have pointers, and the count is elsewhere."""
    kernel = SwapKernel("7.2")
    kernel.types = dict(kernel.types)
    kernel.types["struct swap_info_struct"] = ERAS["6.12"][0]["struct swap_info_struct"]
    again = kernel.info
    kernel._known.clear()
    kernel._area()
    assert kernel.info != again
    kernel.swap_out(START, 5)
    kernel.table_word(5, 0)
    assert one(kernel).kind == "zram"
    pfn = kernel.frame(content(1))
    pointer = kernel.page(pfn, flags=SWAPCACHE | UPTODATE, private=5)
    kernel.table_word(5, pointer)
    assert one(kernel)[1:5] == ("swap cache", "zram0", 5, content(1))
    kernel.table_word(5, 0x12345)
    assert one(kernel).kind == "zram"
    at = kernel.zeromap
    kernel.poke(at, bytes([1 << 5]))
    assert one(kernel).kind == "zero"
    # Nobody's.
    kernel.poke(kernel.swap_map + 5, b"\0")
    assert one(kernel).kind == "damaged"


def test_slots_that_are_not_in_use(kernel: SwapKernel) -> None:
    kernel.swap_out(START, 5)
    if kernel.era == "7.2":
        kernel.table_word(5, 0)
        assert "is not in use" in one(kernel).note
        kernel.table_word(5, (1 << 64) - 8)
    else:
        kernel.poke(kernel.swap_map + 5, b"\0")
        assert "is not in use" in one(kernel).note
        kernel.poke(kernel.swap_map + 5, b"\x3f")
    page = one(kernel)
    assert (page.kind, page.data) == ("damaged", None)
    assert page.note == "slot 5 of zram0 is not in use"


@pytest.mark.parametrize(
    ("type_", "offset", "note"),
    [
        (0, 0, "zram0 has no slot 0"),
        (0, SLOTS, f"zram0 has no slot {SLOTS}"),
        (0, (1 << 50) - 2, "has no slot"),
        (1, 5, "there is no swap area 1"),
        (2, 5, "there is no swap area 2"),
    ],
)
def test_entries_that_cannot_be(
    kernel: SwapKernel, type_: int, offset: int, note: str
) -> None:
    kernel.variable("nr_swapfiles", "u32", "mm/swapfile.c", 2)
    kernel.entry(START, swap_word(type_, offset))
    page = one(kernel)
    assert page.kind == "damaged" and note in page.note


def test_an_area_that_is_gone(kernel: SwapKernel) -> None:
    kernel.swap_out(START, 5)
    kernel.put("struct swap_info_struct", kernel.info, flags=2)
    assert one(kernel).note == "swap area 0 is not in use"


def test_structures_that_the_dump_lacks(kernel: SwapKernel) -> None:
    kernel.swap_out(START, 5)
    kernel.missing.add((kernel.info - KERNEL) // PAGE)
    page = one(kernel)
    assert page.kind == "excluded" and "what leads to it" in page.note


def test_another_device(kernel: SwapKernel) -> None:
    kernel.swap_out(START, 5)
    disk = kernel.put("struct gendisk", private_data=1)
    bdev = kernel.put("struct block_device", bd_disk=disk)
    file = kernel.file("swapfile")
    kernel.put("struct swap_info_struct", kernel.info, bdev=bdev, swap_file=file)
    page = one(kernel)
    assert page[1:4] == ("device", "swapfile", 5) and page.data is None
    # A swap file of which only the file system knows where it is.
    kernel.put("struct swap_info_struct", kernel.info, flags=3 | 1 << 8)
    assert one(kernel).kind == "device"


def test_extents_of_a_swap_file(
    kernel: SwapKernel, device: dict[int, zram.ZramPage]
) -> None:
    places = [(0, 100, 5000), (100, 50, 200), (150, 1000, 9000)]
    for _, pages, block in places:
        device[block + pages - 1] = compressed(block)
    nodes = [
        kernel.put(
            "struct swap_extent", start_page=start, nr_pages=pages, start_block=block
        )
        for start, pages, block in places
    ]
    kernel.put("struct rb_node", nodes[1], rb_left=nodes[0], rb_right=nodes[2])
    root = kernel.info + kernel.member("struct swap_info_struct", "swap_extent_root")
    kernel.poke(root, nodes[1].to_bytes(8, "little"))
    for start, pages, block in places:
        kernel.swap_out(START, start + pages - 1)
        assert one(kernel).data == content(block)
    kernel.swap_out(START, 1150)
    assert "in none of its extents" in one(kernel).note
    # A tree that bites its tail.
    kernel.put("struct rb_node", nodes[2], rb_right=nodes[1])
    assert one(kernel).note == "the extents of zram0 are damaged"


def test_kernels_that_are_not_understood() -> None:
    kernel = SwapKernel("6.12")
    kernel.types = dict(kernel.types)
    members = kernel.types["struct swap_info_struct"]
    kernel.types["struct swap_info_struct"] = tuple(
        ("renamed" if name == "swap_extent_root" else name, kind)
        for name, kind in members
    )
    kernel._known.clear()
    kernel.swap_out(START, 5)
    page = one(kernel)
    assert page.kind == "damaged" and "not understood" in page.note


def test_what_zram_says(kernel: SwapKernel, device: dict[int, zram.ZramPage]) -> None:
    kernel.swap_out(START, 5)
    device[5] = zram.ZramPage("written back", None, "written back to /dev/vdb")
    page = one(kernel)
    assert page[1:] == ("zram", "zram0", 5, None, "written back to /dev/vdb")
    device[5] = zram.ZramPage("unreadable", None, "")
    assert one(kernel).note == "unreadable"
    device[5] = zram.ZramPage("in flight", content(5), "it was being changed")
    (page,) = swap.swap_pages(kernel.task, START, 1)
    assert (page.data, page.note) == (content(5), "it was being changed")


# --- zswap


def put_zbud(kernel: SwapKernel, pages: dict[int, bytes]) -> None:
    """Keep compressed pages as zbud does, with the entry first."""
    entries = {}
    for offset, data in pages.items():
        pfn = kernel.frame(bytes(64) + offset.to_bytes(8, "little") + data)
        entries[offset] = {"handle": KERNEL + pfn * PAGE + 64, "length": len(data)}
    kernel.zswap(entries)


def lz4(number: int) -> bytes:
    return bytes(cramjam.lz4.compress_block(content(number), store_size=False))


def test_zswap(kernel: SwapKernel) -> None:
    slots = [3, 64, 700, (1 << 14) - 2, 9]
    for number, slot in enumerate(slots):
        kernel.swap_out(START + number * PAGE, slot)
    put_zbud(kernel, {slot: lz4(slot) for slot in slots[:-1]})
    found = list(swap.swap_pages(kernel.task, START, len(slots) * PAGE))
    assert [page.kind for page in found] == ["zswap"] * 4 + ["zram"]
    assert [page.data for page in found[:-1]] == [content(slot) for slot in slots[:-1]]


def test_zswap_of_another_page(kernel: SwapKernel) -> None:
    kernel.swap_out(START, 700)
    pfn = kernel.frame(bytes(64) + (701).to_bytes(8, "little") + lz4(1))
    entry = {"handle": KERNEL + pfn * PAGE + 64, "length": len(lz4(1))}
    kernel.zswap({700: entry})
    page = one(kernel)
    assert (page.kind, page.data) == ("zswap", None)
    assert page.note == "zswap has stored another page there: damaged"


def test_same_filled_pages_of_zswap() -> None:
    kernel = SwapKernel("5.10")
    kernel.swap_out(START, 700)
    kernel.zswap({700: {"length": 0, "value": 0x1122334455667788}})
    word = (0x1122334455667788).to_bytes(8, "little")
    assert one(kernel)[1:5] == ("zswap", "zram0", 700, word * 512)


@pytest.mark.parametrize(
    ("length", "handle", "note"),
    [
        (PAGE + 1, 0, "bytes of a page: damaged"),
        (100, PAGE - 50, "is damaged"),
        (100, 0, "lz4 data is damaged"),
        (100, 1 << 40, "could not find memory segment"),
    ],
)
def test_damaged_zswap(kernel: SwapKernel, length: int, handle: int, note: str) -> None:
    kernel.swap_out(START, 700)
    pfn = kernel.frame((700).to_bytes(8, "little") + b"\xff" * 200)
    entry = {"length": length, "handle": KERNEL + pfn * PAGE + handle}
    kernel.zswap({700: entry})
    page = one(kernel)
    assert (page.kind, page.data) == ("zswap", None)
    assert note in page.note


def test_unknown_pools(kernel: SwapKernel) -> None:
    kernel.swap_out(START, 700)
    kernel.zswap({700: {"length": 100, "handle": KERNEL}}, driver="zfuture")
    assert one(kernel).note == "zswap keeps pages in zfuture, which is unknown"


@pytest.mark.verified(
    "swap: pages in zswap", by="structures made as in 5.10, 6.1, 6.12, 7.2", on="bytes"
)
def test_z3fold() -> None:
    """First, middle and last of a page, and one alone, as mm/z3fold.c has them."""
    kernel = SwapKernel("5.10")
    known = {slot: bytes([slot]) * PAGE for slot in range(1, 5)}
    stored = {
        slot: slot.to_bytes(8, "little")
        + bytes(cramjam.lz4.compress_block(page, store_size=False))
        for slot, page in known.items()
    }
    chunk = 64
    chunks = {slot: -(-len(data) // chunk) for slot, data in stored.items()}
    header = -(-kernel.layout("struct z3fold_header")[0] // chunk) * chunk
    middle = header // chunk + chunks[1]
    page = kernel.frame()
    base = KERNEL + page * PAGE
    first_num = 3
    kernel.put("struct z3fold_header", base, first_num=first_num, start_middle=middle)
    kernel.poke(base + header, stored[1])
    kernel.poke(base + middle * chunk, stored[2])
    kernel.poke(base + PAGE - chunks[3] * chunk, stored[3])
    handles = {}
    for slot in (1, 2, 3):
        value = base | (slot + first_num) & 3
        if slot == 3:
            value |= chunks[3] << 2
        handles[slot] = kernel.allocate(8, value.to_bytes(8, "little"))
    alone = kernel.frame(stored[4])
    handles[4] = KERNEL + alone * PAGE | 1
    entries = {
        slot: {"handle": handle, "length": len(stored[slot]) - 8}
        for slot, handle in handles.items()
    }
    kernel.zswap(entries, driver="z3fold")
    for slot in handles:
        kernel.swap_out(START, slot)
        assert one(kernel)[1:5] == ("zswap", "zram0", slot, known[slot])


def test_trees_of_zswap_that_bite_their_tails() -> None:
    kernel = SwapKernel("5.10")
    kernel.swap_out(START, 5)
    put_zbud(kernel, {700: lz4(1)})
    _, address, _ = kernel.variables["zswap_trees"]
    tree = int.from_bytes(kernel.memory[address - KERNEL :][:8], "little")
    node = int.from_bytes(kernel.memory[tree - KERNEL :][:8], "little")
    kernel.put("struct rb_node", node, rb_left=node)
    assert one(kernel).note == "zswap's tree is damaged"


# --- what is not in the page tables


def test_untouched_and_unmapped(kernel: SwapKernel) -> None:
    assert one(kernel).kind == "untouched"
    assert one(kernel, START + 511 * PAGE).kind == "untouched"
    assert one(kernel, START + 512 * PAGE).kind == "unmapped"
    assert one(kernel, START - PAGE).kind == "unmapped"
    assert one(kernel, 0).kind == "unmapped"


@pytest.fixture
def shared(kernel: SwapKernel) -> int:
    """The task's mapping is of a file, which is this address_space."""
    space = kernel.put("struct address_space", a_ops=0x1000)
    file = kernel.file("data", space)
    kernel.map(START, START + 512 * PAGE, vm_file=file, vm_pgoff=1000)
    return space


def pages_of(kernel: SwapKernel, space: int, entries: dict[int, int]) -> None:
    kernel.tree(space + kernel.member("struct address_space", "i_pages"), entries)


def test_page_cache(kernel: SwapKernel, shared: int) -> None:
    pfn = kernel.frame(content(1))
    page = kernel.page(pfn, flags=UPTODATE, mapping=shared, index=1001)
    pages_of(kernel, shared, {1001: page, 1002: 0x12345, 1003: page})
    assert one(kernel, START).kind == "file"
    assert one(kernel, START + PAGE)[1:5] == ("page cache", "", None, content(1))
    assert one(kernel, START + 2 * PAGE).kind == "file"
    assert one(kernel, START + 3 * PAGE).kind == "damaged"
    kernel.page(pfn, mapping=shared + 8)
    assert one(kernel, START + PAGE).kind == "damaged"


def test_shared_memory(
    kernel: SwapKernel, shared: int, device: dict[int, zram.ZramPage]
) -> None:
    kernel.variables["shmem_aops"] = "u32", 0x1000, "mm/shmem.c"
    device[77] = compressed(77)
    kernel.swap_out(START + 500 * PAGE, 77)
    pages_of(kernel, shared, {1001: 77 << 1 | 1})
    assert one(kernel, START).kind == "untouched"
    assert one(kernel, START + PAGE)[1:5] == ("zram", "zram0", 77, content(77))


def test_large_folios_of_shared_memory(
    shared: int, kernel: SwapKernel, device: dict[int, zram.ZramPage]
) -> None:
    kernel.variables["shmem_aops"] = "u32", 0x1000, "mm/shmem.c"
    for number in range(8):
        device[80 + number] = compressed(number)
        kernel.swap_out(START + 500 * PAGE, 80 + number)
    first = 1000 & 63
    entries = {1000: 80 << 1 | 1}
    # The others are siblings of the first.
    entries.update({1000 + n: first << 2 | 2 for n in range(1, 8)})
    pages_of(kernel, shared, entries)
    for number in range(8):
        page = one(kernel, START + number * PAGE)
        assert (page.slot, page.data) == (80 + number, content(number))


def test_files_that_are_mostly_holes(kernel: SwapKernel, shared: int) -> None:
    """Mapped is more than could be looked at page by page."""
    file = kernel.file("data", shared)
    kernel.map(START, START + (1 << 40), vm_file=file)
    pfn = kernel.frame(content(1))
    far = 1 << 27
    page = kernel.page(pfn, flags=UPTODATE, mapping=shared, index=far)
    pages_of(kernel, shared, {far: page})
    found = list(swap.swap_map(kernel.task))
    assert [(f.start, f.pages, f.kind) for f in found] == [
        (START, far, "file"),
        (START + far * PAGE, 1, "page cache"),
        (START + (far + 1) * PAGE, (1 << 28) - far - 1, "file"),
    ]


def test_more_is_mapped_than_there_can_be(kernel: SwapKernel) -> None:
    for number in range(64):
        kernel.entry(START + (number << 30), 0xE7, 2)
    kernel.map(START, START + (1 << 36))
    with pytest.raises(ValueError, match="more than there can be"):
        list(swap.swap_map(kernel.task))


def test_huge_entries_that_lead_nowhere(kernel: SwapKernel) -> None:
    """They are for terabytes: that is said once, not of each page."""
    at = [START, START + (1 << 39), START + (1 << 39) + (1 << 30)]
    for address, level in zip(at, (3, 2, 1)):
        kernel.entry(address, 1 << 9, level)
    kernel.map(START + PAGE, at[2] + (4 << 21))
    found = [(f.start, f.end, f.kind) for f in swap.swap_map(kernel.task)]
    assert found == [
        (at[0] + PAGE, at[1], "damaged"),
        (at[1], at[2] + (1 << 21), "damaged"),
        (at[2] + (1 << 21), at[2] + (4 << 21), "untouched"),
    ]


def test_hugetlbfs_is_left_alone(kernel: SwapKernel, shared: int) -> None:
    kernel.map(START, START + (1 << 21), vm_flags=0x400000, vm_file=kernel.file("x", 1))
    assert one(kernel).kind == "untouched"


# --- the map


def test_map(kernel: SwapKernel, device: dict[int, zram.ZramPage]) -> None:
    lost = kernel.frame()
    kernel.missing.add(lost)
    kernel.entry(START, kernel.frame(content(1)) << 12 | 0x67)
    kernel.entry(START + PAGE, lost << 12 | 0x67)
    for number in range(4):
        kernel.swap_out(START + (2 + number) * PAGE, 50 + number)
    kernel.swap_out(START + 6 * PAGE, 99)
    found = list(swap.swap_map(kernel.task))
    assert [(f.start - START, f.pages, f.kind, f.where, f.slot) for f in found] == [
        (0, 1, "resident", "", None),
        (PAGE, 1, "excluded", "", None),
        (2 * PAGE, 4, "zram", "zram0", 50),
        (6 * PAGE, 1, "zram", "zram0", 99),
        (7 * PAGE, 505, "untouched", "", None),
    ]
    assert swap.totals(found) == {
        "resident": 1,
        "excluded": 1,
        "zram": 5,
        "untouched": 505,
    }
    part = list(swap.swap_map(kernel.task, START + 3 * PAGE + 5, PAGE))
    assert [(f.start - START, f.end - START) for f in part] == [(3 * PAGE, 5 * PAGE)]
    assert not list(swap.swap_map(kernel.task, START + 512 * PAGE))


def test_what_is_printed(kernel: SwapKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel.swap_out(START, 50)
    task = kernel.task
    comm = task.value_() + kernel.member("struct task_struct", "comm")
    kernel.poke(comm, b"a\x1b[31m\0")
    monkeypatch.setattr("drgn.helpers.linux.pid.find_task", lambda prog, pid: task)
    out = io.StringIO()
    swap.swap_where(kernel.prog, 7, file=out)
    lines = out.getvalue().splitlines()
    assert lines[0] == "task 7 (a\\x1b[31m)"
    assert lines[2].split() == ["1", "zram"]
    assert lines[-2].split() == [
        "0x7f0000000000",
        "0x7f0000001000",
        "1",
        "zram",
        "zram0",
        "50",
    ]


def test_no_note_and_no_blanks(
    kernel: SwapKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of untouched pages; others' notes stay."""
    task = kernel.task
    kernel.swap_out(START, 50)
    kernel.entry(START + PAGE, swap_word(29, 1 << 20))
    monkeypatch.setattr("drgn.helpers.linux.pid.find_task", lambda prog, pid: task)
    out = io.StringIO()
    swap.swap_where(kernel.prog, 7, file=out)
    lines = out.getvalue().split("\n")
    assert lines == [line.rstrip() for line in lines]
    (untouched,) = (line for line in lines[5:] if "untouched" in line)
    assert untouched.split()[3:] == ["untouched", "-", "-"]
    (noted,) = (one.note for one in swap.swap_map(task) if one.start == START + PAGE)
    assert noted and any(line.endswith(f"  {noted}") for line in lines)


def test_nothing_is_swapped_out(
    kernel: SwapKernel,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("drgn.helpers.linux.pid.for_each_task", lambda prog: iter(()))
    out = io.StringIO()
    swap.swap_tasks(kernel.prog, file=out)
    told = ("", "swap: no task has memory in swap\n")
    assert (out.getvalue(), capsys.readouterr()) == ("", told)


def test_nothing_is_mapped(kernel: SwapKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    task = kernel.task
    monkeypatch.setattr("drgn.helpers.linux.pid.find_task", lambda prog, pid: task)
    out, behind = io.StringIO(), START + 512 * PAGE
    with pytest.raises(LookupError, match=r"mapped at 0x1000-0x2000$"):
        swap.swap_where(kernel.prog, 7, address=0x1000, size=0x1000, file=out)
    with pytest.raises(LookupError, match=rf"mapped at {behind:#x} or behind it$"):
        swap.swap_where(kernel.prog, 7, address=behind, file=out)
    assert not out.getvalue()


def test_addresses_and_sizes() -> None:
    """Of a session's command, and of ours."""
    parse = session.helper_command("swap_where", swap.swap_where)._parser.parse_args
    for address, size, numbers in (
        ("27622000", "4096", (0x27622000, 4096)),
        ("0x7f11d0174000", "0x10000", (0x7F11D0174000, 65536)),
        ("7F11d0174000", "64k", (0x7F11D0174000, 65536)),
        ("0", "2M", (0, 2 << 20)),
        ("b", "1g", (11, 1 << 30)),
    ):
        given = ["--address", address, "--size", size]
        args = parse(["200", *given])
        assert (args.pid, args.address, args.size) == (200, *numbers)
        made = swap_commands.swap.make_context("swap", ["dump", "--pid=1", *given])
        assert (made.params["address"], made.params["size"]) == numbers
    for wrong, told in (
        ("abc", "pid: invalid int value"),
        ("0x200", "pid: invalid int value"),
        ("200 --address x", "'x' is no address"),
        ("200 --address 0x", "'0x' is no address"),
        (f"200 --address {'f' * 17}", "is no address"),
        ("200 --size 7f", "'7f' is no size"),
    ):
        with pytest.raises(drgn.commands.CommandArgumentError, match=told):
            parse(wrong.split())


def test_nothing_to_read(kernel: SwapKernel) -> None:
    thread = kernel.put("struct task_struct", pid=2)
    task = Object(kernel.prog, "struct task_struct *", thread)
    for call in (swap.swap_pages, swap.swap_read):
        with pytest.raises(ValueError, match="task 2 has no memory of its own"):
            list(call(task, 0, 1))
    with pytest.raises(ValueError, match="not negative"):
        swap.swap_read(kernel.task, -1, 5)
    with pytest.raises(swap.SwapFault, match="no address of user space"):
        swap.swap_read(kernel.task, 1 << 47, 5)


def test_damaged_mappings(kernel: SwapKernel) -> None:
    # One that ends before it begins, and one that follows itself.
    kernel.map(START + PAGE, START)
    with pytest.raises(LookupError, match="damaged"):
        list(swap.swap_map(kernel.task))
    assert one(kernel).kind == "damaged"


@pytest.mark.parametrize("upper", ["struct maple_arange_64", "struct maple_range_64"])
def test_trees_of_mappings(upper: str) -> None:
    """Two levels, and as many mappings as a leaf has room for."""
    kernel = SwapKernel("6.12")

    def node(kind: str, number: int, slots: list[int], pivots: list[int]) -> int:
        address = -(-kernel.allocate(512) // 256) * 256
        for member, values in (("slot", slots), ("pivot", pivots)):
            at = address + kernel.member(kind, member)
            kernel.poke(at, struct.pack(f"<{len(values)}Q", *values))
        return address | number << 3 | 2

    wanted, leaves, ends = [], [], []
    for leaf in range(4):
        slots, pivots = [], []
        # The second is full: its last pivot is its parent's.
        for number in range(15 if leaf == 1 else 5):
            start = START + (leaf << 30) + number * 4 * PAGE
            area = kernel.put(
                "struct vm_area_struct", vm_start=start, vm_end=start + PAGE
            )
            wanted.append((start, start + PAGE))
            slots += [area] if leaf == 1 else [0, area]
            pivots += [start + PAGE - 1] if leaf == 1 else [start - 1, start + PAGE - 1]
        ends.append(START + ((leaf + 1) << 30) - 1)
        if len(pivots) < 15:
            slots, pivots = [*slots, 0], [*pivots, ends[-1]]
        leaves.append(node("struct maple_range_64", 1, slots, pivots))
    ends[-1] = (1 << 64) - 1
    root = node(upper, 3 if "arange" in upper else 2, leaves, ends)
    at = kernel.mm + kernel.member("struct mm_struct", "mm_mt") + 8
    kernel.poke(at, root.to_bytes(8, "little"))
    found = [(m.start, m.end) for m in mappings.for_each_mapping(kernel.task.mm)]
    assert found == wanted


def test_mappings_without_end() -> None:
    kernel = SwapKernel("5.10")
    address = kernel.task.mm.mmap.value_()
    kernel.put("struct vm_area_struct", address, vm_next=address)
    with pytest.raises(LookupError, match="damaged"):
        list(swap.swap_map(kernel.task))
    kernel = SwapKernel("6.12")
    node = kernel.task.mm.mm_mt.ma_root.value_()
    # It is its own lower node.
    range_64 = node & ~0xFF | 2 << 3 | 2
    slot = kernel.member("struct maple_range_64", "slot")
    for index in range(16):
        kernel.poke((node & ~0xFF) + slot + 8 * index, range_64.to_bytes(8, "little"))
    kernel.poke(
        kernel.mm + kernel.member("struct mm_struct", "mm_mt") + 8,
        range_64.to_bytes(8, "little"),
    )
    with pytest.raises(LookupError, match="damaged"):
        list(swap.swap_map(kernel.task))


# --- whatever is in memory


def test_damage_is_named(kernel: SwapKernel, device: dict[int, zram.ZramPage]) -> None:
    """No crash, no hang, and no page of another's, whatever is wrong behind entries."""
    slots = [*range(60, 70), *range(1 << 14, (1 << 14) + 6)]
    known = {}
    for number, slot in enumerate(slots):
        kernel.swap_out(START + number * PAGE, slot)
        known[START + number * PAGE] = content(slot)
        device[slot] = compressed(slot)
    put_zbud(kernel, {slot: lz4(slot) for slot in slots[4:8]})
    for slot in slots[8:]:
        kernel.swap_cache(slot, kernel.frame(content(slot)))
    sound = bytes(kernel.memory)
    assert {p.address: p.data for p in pages(kernel, len(slots))} == known
    # All structures, but for what nothing can contradict: page tables are elsewhere.
    zero = range(kernel.zeromap - KERNEL, kernel.zeromap - KERNEL + SLOTS // 8)
    vmemmap = kernel.variables["vmemmap"][1] - KERNEL
    written = [
        at
        for at in range(0x1000, kernel.used, 8)
        if any(sound[at : at + 8]) and at not in zero and at != vmemmap
    ]
    chance = random.Random(kernel.era)
    named = 0
    for _ in range(500):
        for at in chance.choices(written, k=chance.choice([1, 1, 8])):
            old = int.from_bytes(sound[at : at + 8], "little")
            new = damaged(chance, old, sound, written)
            kernel.memory[at : at + 8] = new.to_bytes(8, "little")
        for page in pages(kernel, len(slots)):
            if page.data is None:
                assert page.note
                named += 1
            elif page.data != known[page.address]:
                # A bit says that it was zeros; a length, that it was one word.
                assert page.data == page.data[:8] * 512
                assert (kernel.era, page.kind) in (
                    ("7.2", "zero"),
                    ("5.10", "zswap"),
                    ("6.1", "zswap"),
                )
        kernel.memory[:] = sound
    assert named > 100


def damaged(
    chance: random.Random, old: int, sound: bytes, written: Sequence[int]
) -> int:
    other = chance.choice(written)
    return int(
        chance.choice(
            [
                old ^ 1 << chance.randrange(64),
                chance.getrandbits(64),
                int.from_bytes(sound[other : other + 8], "little"),
                0,
            ]
        )
    )


def pages(kernel: SwapKernel, count: int) -> list[swap.SwapPage]:
    kernel.prog.cache.clear()
    try:
        return list(swap.swap_pages(kernel.task, START, count * PAGE))
    except (FaultError, LookupError, ValueError):
        # The task itself.
        return []


# --- dumps that lack pages


def test_zeros_of_filtered_elf_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """drgn gives zeros for what such a file has no data of."""
    kernel = SwapKernel("6.12")
    blank, full, beyond = kernel.frame(), kernel.frame(content(1)), kernel.frame()
    for number, pfn in enumerate((blank, full, beyond)):
        kernel.entry(START + number * PAGE, pfn << 12 | 0x67)
    runs = [(0, beyond), (full, full + 1), (blank, blank + 1)]
    monkeypatch.setattr(swap_areas, "_runs_with_data", lambda prog: runs)
    assert one(kernel, START + PAGE).data == content(1)
    assert "or was all zeros" in one(kernel, START).note
    assert "is not in the dump" in one(kernel, START + 2 * PAGE).note
    # The page of zeros that everybody maps is known.
    kernel.variable("zero_pfn", "long", "mm/memory.c", blank)
    assert one(kernel, START)[1:5] == ("resident", "", None, bytes(PAGE))


class Moving:
    """A page table's entry that changes with each look of a running kernel."""

    def __init__(self, kernel: SwapKernel, looks: int) -> None:
        self.kernel, self.looks = kernel, looks
        self.slots = iter(range(100, 100 + looks))

    def __call__(self, read: swap._Reader, start: int, end: int) -> None:
        slot = next(self.slots, None)
        if slot is not None:
            self.kernel.entry(START + 5 * PAGE, swap_word(0, slot))


@pytest.mark.parametrize("looks", [0, 1, 3, 1000])
def test_running_kernels(
    monkeypatch: pytest.MonkeyPatch, device: dict[int, zram.ZramPage], looks: int
) -> None:
    """What moves is read again; what moves all the time is said to."""
    kernel = SwapKernel("6.12")
    for number in range(8):
        kernel.swap_out(START + number * PAGE, 50 + number)
        device[50 + number] = compressed(50 + number)
    for slot in range(100, 100 + looks):
        kernel.poke(kernel.swap_map + slot, b"\1")
        device[slot] = compressed(slot)
    move = Moving(kernel, looks)
    identity = swap._Reader._identity

    def looked(reader: swap._Reader, start: int, end: int) -> list[object]:
        if start <= START + 5 * PAGE < end:
            move(reader, start, end)
        return identity(reader, start, end)

    monkeypatch.setattr(swap._Reader, "_identity", looked)
    reader = swap._Reader(kernel.task.mm)
    # Of a dump each page of memory is read once.
    monkeypatch.setattr(reader._swap.memory, "_live", True)
    found = list(reader.live_pages(START, START + 8 * PAGE))
    assert [page.address for page in found] == [START + n * PAGE for n in range(8)]
    for number, page in enumerate(found):
        if number != 5:
            assert page.data == content(50 + number)
        elif looks == 1000:
            assert (page.kind, page.data) == ("damaged", None)
            assert page.note == "it is in another place at each look"
        else:
            assert page.slot == (99 + looks if looks else 55)
            assert page.data == content(page.slot or 0)


def test_the_plugin_is_cheap() -> None:
    code = (
        "import sys, drgn_tools._plugin, drgn_tools.swap;"
        "print({'numpy', 'click', 'zstandard'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "set()\n"


def test_command_lines(tmp_path: Path) -> None:
    (tmp_path / "dump").write_bytes(b"no dump")
    dump = str(tmp_path / "dump")
    for arguments, status in (
        ([dump], 1),
        ([dump, "--address", "1"], 2),
        ([dump, "--address=1", "--size=1", "-o", "file"], 2),
        ([dump, "--pid", "0"], 2),
        ([dump, "--pid", "1", "--size", "1"], 2),
        ([dump, "--pid", "1", "--address", "-1"], 2),
        ([dump, "--pid", "1", "--address", "x"], 2),
        ([dump, "--pid", "1", "--address=1", "--size", "7k"], 1),
        ([dump, "--pid", "1", "--address=1", "--size", "7f0h"], 2),
        ([dump, "--pid", "1", "-o", "file"], 2),
        ([dump, "--pid", "1", "--address=1", "--size=1", "-o", "file", "--json"], 2),
        ([dump, "--pid", "1"], 1),
        ([f"{dump}.not", "--pid", "1"], 1),
    ):
        command.assert_refused(command.drgn_tools("swap", *arguments), status)


def test_other_machines(kernel: SwapKernel) -> None:
    from drgn import Architecture, Platform, Program

    from drgn_tools import page_tables

    prog = Program(Platform(Architecture.AARCH64))
    with pytest.raises(ValueError, match="on x86-64 only"):
        page_tables.levels(prog)
