# SPDX-License-Identifier: LGPL-2.1-or-later
"""Kernels that have swapped out memory of a task, as drgn programs."""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from typing import Any

from drgn import (
    FaultError,
    FindObjectFlags,
    Object,
    Program,
    Type,
    TypeEnumerator,
    TypeKind,
    TypeMember,
)

from .pstore_kernel import KERNEL, FakeKernel, Members

PAGE = 4096
ENTRY_SIZE = 8

_PAGE_FLAGS = {
    "PG_locked": 0,
    "PG_writeback": 1,
    "PG_uptodate": 3,
    "PG_dirty": 4,
    "PG_head": 6,
    "PG_swapcache": 10,
}
_COMMON: dict[str, Members] = {
    "struct page": (
        ("flags", "long"),
        ("lru", "bytes16"),
        ("mapping", "pointer"),
        ("index", "long"),
        ("private", "long"),
        ("compound_order", "u8"),
        ("_refcount", "int"),
        ("memcg_data", "pointer"),
    ),
    "struct rb_node": (
        ("__rb_parent_color", "long"),
        ("rb_right", "pointer struct rb_node"),
        ("rb_left", "pointer struct rb_node"),
    ),
    "struct rb_root": (("rb_node", "pointer struct rb_node"),),
    "struct xarray": (("xa_flags", "u32"), ("xa_head", "pointer")),
    "struct xa_node": (
        ("shift", "u8"),
        ("offset", "u8"),
        ("count", "u8"),
        ("nr_values", "u8"),
        ("parent", "pointer"),
        ("array", "pointer"),
        ("private_list", "bytes16"),
        ("slots", "array64 pointer"),
    ),
    "struct address_space": (
        ("host", "pointer"),
        ("i_pages", "struct xarray"),
        ("a_ops", "pointer"),
    ),
    "struct qstr": (("hash_len", "u64"), ("name", "pointer")),
    "struct dentry": (("d_name", "struct qstr"),),
    "struct path": (("mnt", "pointer"), ("dentry", "pointer struct dentry")),
    "struct file": (
        ("f_path", "struct path"),
        ("f_mapping", "pointer struct address_space"),
    ),
    "struct gendisk": (("private_data", "pointer"),),
    "struct block_device": (("bd_disk", "pointer struct gendisk"),),
    "struct swap_extent": (
        ("rb_node", "struct rb_node"),
        ("start_page", "long"),
        ("nr_pages", "long"),
        ("start_block", "u64"),
    ),
    "struct task_struct": (
        ("pid", "int"),
        ("mm", "pointer struct mm_struct"),
        ("comm", "bytes16"),
    ),
    "struct vm_area_struct": (
        ("vm_start", "long"),
        ("vm_end", "long"),
        ("vm_next", "pointer struct vm_area_struct"),
        ("vm_flags", "long"),
        ("vm_pgoff", "long"),
        ("vm_file", "pointer struct file"),
    ),
    "struct zswap_header": (("swpentry", "long"),),
    "struct swp_entry": (("val", "long"),),
    "struct zpool_driver": (("type", "pointer"),),
    "struct zpool": (
        ("driver", "pointer struct zpool_driver"),
        ("pool", "pointer"),
        ("evictable", "u8"),
    ),
    "struct zswap_pool": (
        ("zpool", "pointer struct zpool"),
        ("tfm_name", "bytes128"),
    ),
    "struct z3fold_header": (
        ("bytes", "bytes70"),
        ("first_num", "u16"),
        ("start_middle", "u16"),
    ),
}
_LIST: dict[str, Members] = {
    "struct mm_struct": (
        ("mmap", "pointer struct vm_area_struct"),
        ("pgd", "pointer"),
    ),
}
_MAPLE: dict[str, Members] = {
    "struct maple_tree": (("ma_flags", "u32"), ("ma_root", "pointer")),
    "struct mm_struct": (("mm_mt", "struct maple_tree"), ("pgd", "pointer")),
    "struct maple_range_64": (
        ("parent", "pointer"),
        ("pivot", "array15 long"),
        ("slot", "array16 pointer"),
    ),
    "struct maple_arange_64": (
        ("parent", "pointer"),
        ("pivot", "array9 long"),
        ("slot", "array10 pointer"),
    ),
}
_FOLIO: dict[str, Members] = {
    "struct folio": (
        ("flags", "long"),
        ("lru", "bytes16"),
        ("mapping", "pointer"),
        ("index", "long"),
        ("private", "long"),
        ("rest", "bytes16"),
        ("_flags_1", "long"),
    ),
}


def _info(*members: str) -> Members:
    return (
        ("flags", "long"),
        ("max", "u32"),
        *((member, "pointer") for member in members),
        ("cluster_info", "pointer"),
        ("swap_extent_root", "struct rb_root"),
        ("bdev", "pointer struct block_device"),
        ("swap_file", "pointer struct file"),
    )


_OLD_CLUSTER: Members = (("lock", "u32"), ("data", "u32"))
_TREE: dict[str, Members] = {
    "struct zswap_tree": (("rbroot", "struct rb_root"), ("lock", "u32")),
    "struct zswap_entry": (
        ("rbnode", "struct rb_node"),
        ("offset", "long"),
        ("refcount", "int"),
        ("length", "u32"),
        ("pool", "pointer struct zswap_pool"),
        ("handle", "long"),
        ("value", "long"),
    ),
}
_XARRAY: dict[str, Members] = {
    "struct zswap_entry": (
        ("swpentry", "struct swp_entry"),
        ("length", "u32"),
        ("pool", "pointer struct zswap_pool"),
        ("handle", "long"),
    ),
}

#: Types, and how many swap areas there may be.
ERAS: dict[str, tuple[dict[str, Members], int]] = {
    "5.10": (
        {
            **_COMMON,
            **_LIST,
            **_TREE,
            "struct swap_info_struct": _info("swap_map"),
            "struct swap_cluster_info": _OLD_CLUSTER,
        },
        29,
    ),
    "6.1": (
        {
            **_COMMON,
            **_MAPLE,
            **_FOLIO,
            **_TREE,
            "struct swap_info_struct": _info("swap_map"),
            "struct swap_cluster_info": _OLD_CLUSTER,
        },
        26,
    ),
    "6.12": (
        {
            **_COMMON,
            **_MAPLE,
            **_FOLIO,
            **_XARRAY,
            "struct swap_info_struct": _info("swap_map", "zeromap"),
            "struct swap_cluster_info": _OLD_CLUSTER,
        },
        27,
    ),
    "7.2": (
        {
            **_COMMON,
            **_MAPLE,
            **_FOLIO,
            **_XARRAY,
            "struct swap_info_struct": _info(),
            "struct swap_cluster_info": (("lock", "u32"), ("table", "pointer")),
            "struct swap_table": (("entries", "array512 long"),),
        },
        24,
    ),
}

FRAMES = 1024
START = 0x7F0000000000
"""Where the task's memory begins."""
SLOTS = 1 << 15
"""Of the swap area."""


class SwapKernel(FakeKernel):
    """A task with one mapping, and a swap area."""

    def __init__(self, era: str, *, levels: int = 4, pages: int = 512) -> None:
        super().__init__()
        self.era = era
        self.types, self.areas = ERAS[era]
        self.levels = levels
        self._known: dict[str, Type] = {}
        self.missing: set[int] = set()
        """Page frames that are not in the dump."""
        # Page frames are handed out from the end, so that none is a structure's.
        self.next_frame = FRAMES - 1
        self.prog.add_memory_segment(0, len(self.memory), self._read, True)
        pointer = self.allocate(64 * FRAMES)
        self.vmemmap = pointer
        self.variable("vmemmap", "pointer struct page", "vmemmap", pointer)
        self.variable("max_pfn", "long", "mm/memblock.c", FRAMES)
        for name in ("memory_failure", "migrate_pages"):
            self.functions[name] = KERNEL
        if levels == 5:
            self.variable("__pgtable_l5_enabled", "u32", "arch/x86/mm", 1)
        self.pgd = self.table()
        self.mm = self.put("struct mm_struct", pgd=KERNEL + self.pgd * PAGE)
        self._task = self.put("struct task_struct", pid=7, mm=self.mm)
        self.map(START, START + pages * PAGE)
        self._area()

    @property
    def task(self) -> Object:
        return Object(self.prog, "struct task_struct *", self._task)

    def _read(self, address: int, count: int, offset: int, physical: bool) -> bytes:
        for pfn in range(offset // PAGE, (offset + count - 1) // PAGE + 1):
            if pfn in self.missing:
                raise FaultError("it is left out", pfn * PAGE)
        return super()._read(address, count, offset, physical)

    # Types

    def _width(self, kind: str) -> tuple[int, int]:
        if kind == "u16":
            return 2, 2
        if kind.startswith("array"):
            number, _, element = kind[5:].partition(" ")
            size, alignment = self._width(element)
            return int(number) * size, alignment
        return super()._width(kind)

    def _type(self, kind: str) -> Type:
        prog = self.prog
        if kind == "u16":
            return prog.int_type(kind, 2, False)
        if kind.startswith("array"):
            number, _, element = kind[5:].partition(" ")
            return prog.array_type(self._type(element), int(number))
        if kind.startswith("pointer struct "):
            # Structures may lead to themselves.
            name = kind.split()[2]
            return prog.pointer_type(self._named(name))
        return super()._type(kind)

    def _named(self, name: str) -> Type:
        known = self._known
        if name not in known:
            size, members, _ = self.layout(f"struct {name}")
            # What it points to is looked up when somebody asks.
            known[name] = self.prog.struct_type(
                name,
                size,
                tuple(
                    TypeMember(functools.partial(self._type, sub), member, 8 * offset)
                    for member, (offset, sub) in members.items()
                ),
            )
        return known[name]

    def _find_type(
        self, prog: Program, kinds: Any, name: str, filename: str | None
    ) -> Type | None:
        if name == "pageflags" and TypeKind.ENUM in kinds:
            flags = dict(_PAGE_FLAGS)
            if self.era != "5.10":
                flags["PG_anon_exclusive"] = 11
            return prog.enum_type(
                "pageflags",
                prog.int_type("unsigned int", 4, False),
                tuple(TypeEnumerator(n, v) for n, v in flags.items()),
            )
        if name == "maple_node" and "struct maple_tree" in self.types:
            parts = ("maple_range_64", "mr64"), ("maple_arange_64", "ma64")
            return prog.struct_type(
                "maple_node",
                256,
                tuple(TypeMember(self._named(t), member) for t, member in parts),
            )
        if TypeKind.STRUCT in kinds and f"struct {name}" in self.types:
            return self._named(name)
        return None

    def _find_object(
        self, prog: Program, name: str, flags: FindObjectFlags, filename: str | None
    ) -> Object | None:
        if name in _PAGE_FLAGS and flags & FindObjectFlags.CONSTANT:
            return Object(prog, prog.type("enum pageflags"), _PAGE_FLAGS[name])
        return super()._find_object(prog, name, flags, filename)

    # Memory

    def frame(self, data: bytes = b"") -> int:
        """A page frame of its own."""
        pfn, self.next_frame = self.next_frame, self.next_frame - 1
        assert pfn * PAGE > self.used
        self.fill(pfn, data)
        return pfn

    def fill(self, pfn: int, data: bytes) -> None:
        self.memory[pfn * PAGE : pfn * PAGE + len(data)] = data

    def page(self, pfn: int, **values: int) -> int:
        """Write a page frame's struct page; its address."""
        return self.put("struct page", self.vmemmap + 64 * pfn, **values)

    def table(self, entries: Sequence[int] = ()) -> int:
        """A page table; its page frame."""
        return self.frame(struct.pack(f"<{len(entries)}Q", *entries))

    def entry(self, address: int, word: int, level: int = 0) -> None:
        """Set an entry, with the tables that lead to it. Level 0 is of small pages."""
        pfn = self.pgd
        for above in range(self.levels - 1, level, -1):
            place = pfn * PAGE + (address >> 12 + 9 * above & 511) * ENTRY_SIZE
            found = int.from_bytes(self.memory[place : place + 8], "little")
            if not found:
                found = self.table() << 12 | 0x67
                self.memory[place : place + 8] = found.to_bytes(8, "little")
            pfn = found >> 12 & (1 << 40) - 1
        place = pfn * PAGE + (address >> 12 + 9 * level & 511) * ENTRY_SIZE
        self.memory[place : place + 8] = word.to_bytes(8, "little")

    def map(self, start: int, end: int, **values: int) -> None:
        """The task's only mapping."""
        area = self.put("struct vm_area_struct", vm_start=start, vm_end=end, **values)
        if "struct maple_tree" not in self.types:
            self.put("struct mm_struct", self.mm, mmap=area)
            return
        node = -(-self.allocate(512) // 256) * 256
        pivots = [start - 1, end - 1, (1 << 64) - 1]
        slots = [0, area, 0]
        offset, _ = self.layout("struct maple_range_64")[1]["pivot"]
        self.poke(node + offset, struct.pack("<3Q", *pivots))
        offset, _ = self.layout("struct maple_range_64")[1]["slot"]
        self.poke(node + offset, struct.pack("<3Q", *slots))
        # A leaf of ranges.
        root = node | 1 << 3 | 2
        self.poke(self.mm + self.member("struct mm_struct", "mm_mt") + 8, _word(root))

    def file(self, name: str, space: int = 0) -> int:
        dentry = self.allocate(self.layout("struct dentry")[0])
        self.poke(dentry + 8, _word(self.string(name)))
        file = self.put("struct file", f_mapping=space)
        self.poke(file + 8, _word(dentry))
        return file

    def tree(self, xa: int, entries: dict[int, int]) -> None:
        """Make an xarray of these."""
        shift, nodes = 0, dict(entries)
        while True:
            below: dict[int, dict[int, int]] = {}
            for index, value in nodes.items():
                below.setdefault(index >> 6, {})[index & 63] = value
            nodes = {}
            for index, slots in below.items():
                node = self.put("struct xa_node", shift=shift)
                for slot, value in slots.items():
                    at = self.member("struct xa_node", "slots") + 8 * slot
                    self.poke(node + at, _word(value))
                    if shift:
                        self.put("struct xa_node", value - 2, offset=slot, parent=node)
                nodes[index] = node | 2
            shift += 6
            if list(nodes) == [0]:
                break
        self.put("struct xarray", xa, xa_head=nodes[0])

    # Swap

    def _area(self) -> None:
        disk = self.put("struct gendisk", private_data=0x1234)
        bdev = self.put("struct block_device", bd_disk=disk)
        extent = self.put("struct swap_extent", nr_pages=SLOTS, start_block=0)
        # What is above is on other pages than what is below.
        self.swap_map = self.allocate(SLOTS)
        self.zeromap = self.allocate(SLOTS // 8)
        self.clusters = self.allocate(SLOTS // 512 * 16)
        self.info = self.put(
            "struct swap_info_struct",
            flags=3,
            max=SLOTS,
            swap_map=self.swap_map,
            zeromap=self.zeromap,
            cluster_info=self.clusters,
            bdev=bdev,
            swap_file=self.file("zram0"),
        )
        self.poke(
            self.info + self.member("struct swap_info_struct", "swap_extent_root"),
            _word(extent),
        )
        self.array("swap_info", "pointer struct swap_info_struct", self.info)
        self.variable("nr_swapfiles", "u32", "mm/swapfile.c", 1)
        self.spaces = self.allocate(2 * self.layout("struct address_space")[0])
        if self.era != "7.2":
            pointer = "pointer struct address_space"
            self.array("swapper_spaces", pointer, self.spaces)
            self.array("nr_swapper_spaces", "u32", 2)
        self.cached: dict[int, int] = {}

    def array(self, name: str, kind: str, first: int) -> None:
        """A variable with one element for each swap area."""
        full = f"array{self.areas} {kind}"
        address = self.allocate(self._width(full)[0])
        self.poke(address, first.to_bytes(self._width(kind)[0], "little"))
        self.variables[name] = full, address, "mm/swap_state.c"

    def swap_out(self, address: int, offset: int) -> None:
        """Say that a page is in a slot."""
        self.entry(address, swap_word(0, offset))
        self.table_word(offset, 1 << 60 | 1)
        self.poke(self.swap_map + offset, b"\1")

    def table_word(self, offset: int, word: int) -> None:
        """Set a word of the swap table, which only new kernels have."""
        if self.era != "7.2":
            return
        cluster = self.clusters + 16 * (offset // 512) + 8
        at = cluster - KERNEL
        table = int.from_bytes(self.memory[at : at + 8], "little")
        if not table:
            table = self.allocate(4096)
            self.poke(cluster, _word(table))
        self.poke(table + 8 * (offset % 512), _word(word))

    def zero(self, offset: int) -> None:
        """Mark a slot as zero."""
        self.table_word(offset, 1 << 60 | 1 << 59 | 1)
        at = self.zeromap + offset // 8
        old = self.memory[at - KERNEL]
        self.poke(at, bytes([old | 1 << offset % 8]))

    def swap_cache(self, offset: int, pfn: int, flags: int = 1 << 3 | 1 << 10) -> None:
        """Put a page frame, or the first of a large folio, into the swap cache."""
        pointer = self.page(pfn, flags=flags, private=offset)
        self.cache_entry(offset, pointer)

    def cache_entry(self, offset: int, pointer: int) -> None:
        """Put something into the swap cache: a struct page, or what is none."""
        if self.era == "7.2":
            pfn = (pointer - self.vmemmap) // 64
            self.table_word(offset, 1 << 60 | pfn << 2 | 2)
            return
        self.cached[offset] = pointer
        mask = (1 << 14) - 1
        size, members, _ = self.layout("struct address_space")
        for space in range(2):
            part = {
                offset & mask if self.era == "6.12" else offset: pointer
                for offset, pointer in self.cached.items()
                if offset >> 14 == space
            }
            if part:
                at = self.spaces + space * size + members["i_pages"][0]
                self.tree(at, part)

    def zswap(self, entries: dict[int, dict[str, int]], driver: str = "zbud") -> None:
        """Give zswap entries, by slot."""
        zpool_driver = self.put("struct zpool_driver", type=self.string(driver))
        zpool = self.put("struct zpool", driver=zpool_driver, evictable=1)
        pool = self.put("struct zswap_pool", zpool=zpool)
        self.poke(pool + self.member("struct zswap_pool", "tfm_name"), b"lz4\0")
        made = {
            offset: self.put("struct zswap_entry", pool=pool, offset=offset, **values)
            for offset, values in entries.items()
        }
        if "struct zswap_tree" in self.types:
            tree = self.put("struct zswap_tree")
            # All to one side.
            before = 0
            for offset in sorted(made):
                self.put("struct rb_node", made[offset], rb_left=before)
                before = made[offset]
            self.poke(tree, _word(before))
            self.array("zswap_trees", "pointer struct zswap_tree", tree)
            return
        for offset, address in made.items():
            self.poke(address, _word(offset))
        trees = self.allocate(2 * self.layout("struct xarray")[0])
        self.tree(trees, made)
        self.array("zswap_trees", "pointer struct xarray", trees)
        self.array("nr_zswap_trees", "u32", 2)


def _word(value: int) -> bytes:
    return (value & (1 << 64) - 1).to_bytes(8, "little")


def swap_word(type_: int, offset: int) -> int:
    """An entry of a page table, as x86-64 has them since 4.19."""
    return type_ << 59 | (~offset & (1 << 50) - 1) << 9
