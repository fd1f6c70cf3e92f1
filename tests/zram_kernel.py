# SPDX-License-Identifier: LGPL-2.1-or-later
"""Kernels that have zram devices in memory, as drgn programs: layouts of all times.

Their zsmalloc and their slots are written here from the kernel's own rules, so that
what reads them can be tried on layouts that no kernel of the test bench has.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from drgn import (
    Architecture,
    FaultError,
    FindObjectFlags,
    Object,
    Platform,
    PlatformFlags,
    Program,
    Type,
    TypeEnumerator,
    TypeKind,
    TypeMember,
    filename_matches,
)

PAGE = 4096
LP64 = Platform(Architecture.X86_64)
ILP32 = Platform(Architecture.ARM, PlatformFlags.IS_LITTLE_ENDIAN)
BIG = Platform(Architecture.S390X)

Members = tuple[tuple[str, str], ...]
_LIST: Members = (("next", "ptr"), ("prev", "ptr"))
_ATOMIC: Members = (("counter", "s64"),)
_ATOMIC_LONG: Members = (("counter", "long"),)
_PAGE: Members = (
    ("flags", "long"),
    ("lru", "struct list_head"),
    ("mapping", "ptr"),
    ("index", "long"),
    ("private", "long"),
    ("_mapcount", "u32"),
    ("_refcount", "u32"),
    ("memcg_data", "long"),
)
_STATS_TODAY = (
    "compr_data_size",
    "failed_reads",
    "failed_writes",
    "notify_free",
    "same_pages",
    "huge_pages",
    "huge_pages_since",
    "pages_stored",
    "max_used_pages",
    "miss_free",
    "bd_count",
    "bd_reads",
    "bd_writes",
)
_STATS = (*_STATS_TODAY, "invalid_io")


class Era(NamedTuple):
    """How a kernel has it."""

    indirect: bool = True
    """Handles are addresses of object words."""
    zspage: str = "u32:1 u32:4 u32:9 u32:8"
    """Widths of huge, fullness, class and magic; none before 4.8."""
    zpdesc: bool = False
    tag: int = 1
    lists: int = 4
    entry: Members = ()
    flags: tuple[str, ...] = ()
    """From the lowest bit on."""
    shift: int = 13
    algorithms: str = "comp_algs"
    meta: bool = False
    stats: Sequence[str] = _STATS
    stream: str = "local"


_ENTRY_LONG: Members = (("handle", "long"), ("flags", "long"), ("ac_time", "s64"))
_FLAGS_5 = ("LOCK", "SAME", "WB", "UNDER_WB", "HUGE", "IDLE")
_FLAGS_6 = (*_FLAGS_5, "INCOMPRESSIBLE", "COMP_PRIORITY_BIT1", "COMP_PRIORITY_BIT2")

ERAS = {
    "3.13": Era(
        indirect=False,
        zspage="",
        tag=0,
        entry=(("handle", "long"), ("size", "u16"), ("count", "u8"), ("flags", "u8")),
        flags=("ZERO",),
        shift=0,
        algorithms="",
        meta=True,
        stream="meta",
    ),
    "4.0": Era(
        indirect=False,
        zspage="",
        tag=0,
        entry=(("handle", "long"), ("value", "long")),
        flags=("ACCESS", "ZERO"),
        shift=24,
        algorithms="compressor",
        meta=True,
        stream="lists",
    ),
    "4.7": Era(
        zspage="",
        entry=(("handle", "long"), ("value", "long")),
        flags=("ZERO", "ACCESS"),
        shift=24,
        algorithms="compressor",
        meta=True,
        stream="pointer",
    ),
    "4.14": Era(
        zspage="u32:0 u32:2 u32:9 u32:8",
        entry=(("handle", "long"), ("value", "long")),
        flags=("SAME", "ACCESS"),
        shift=24,
        algorithms="compressor",
        stream="pointer",
    ),
    "5.10": Era(
        zspage="u32:0 u32:2 u32:9 u32:8",
        entry=_ENTRY_LONG,
        flags=_FLAGS_5,
        shift=24,
        algorithms="compressor",
    ),
    "6.1": Era(
        zspage="u32:1 u32:2 u32:9 u32:8",
        entry=_ENTRY_LONG,
        flags=_FLAGS_5,
        algorithms="compressor",
    ),
    "6.5": Era(tag=2, lists=12, entry=_ENTRY_LONG, flags=_FLAGS_6),
    "6.12": Era(
        tag=0,
        lists=12,
        entry=(
            ("handle", "long"),
            ("flags", "u32"),
            ("lock", "struct spinlock"),
            ("ac_time", "s64"),
        ),
        flags=_FLAGS_6[1:],
        stats=_STATS_TODAY,
    ),
    "6.16": Era(
        tag=0,
        lists=12,
        zpdesc=True,
        entry=_ENTRY_LONG,
        flags=("SAME", "ENTRY_LOCK", "WB", "PP_SLOT", *_FLAGS_6[4:]),
        stats=_STATS_TODAY,
        stream="mutex",
    ),
    "7.2": Era(
        tag=0,
        lists=12,
        zpdesc=True,
        entry=(("handle", "long"), ("attr", "struct attr")),
        flags=("SAME", "ENTRY_LOCK", "WB", "PP_SLOT", *_FLAGS_6[4:]),
        stats=_STATS_TODAY,
        stream="mutex",
    ),
}

BASE_PFN = 0x2000
"""The first page frame that there is."""
DIRECT = 0xFFFF888000000000
VMEMMAP = 0xFFFFEA0000000000
_SIZES = {"u8": 1, "u16": 2, "u32": 4, "s32": 4, "u64": 8, "s64": 8, "char": 1}


def class_sizes(chain: int) -> list[tuple[int, int, int]]:
    """Of each class: its size, pages of a zspage, and which class it is merged into."""
    found: list[tuple[int, int, int]] = []
    for index in range(255):
        size = 32 + 16 * index
        waste = [(pages * PAGE % size, pages) for pages in range(1, chain + 1)]
        # The part that is wasted, in percent, as the kernel looks at it.
        part = [(lost * 100 // (pages * PAGE), pages) for lost, pages in waste]
        found.append((size, min(part)[1], index))
    for index in range(253, -1, -1):
        size, pages, _ = found[index]
        larger = found[index + 1]
        if (pages, pages * PAGE // size) == (larger[1], larger[1] * PAGE // larger[0]):
            found[index] = larger
    return found


class _Zspage:
    def __init__(self, address: int, pfns: list[int], free: list[int]) -> None:
        self.address = address
        self.pfns = pfns
        self.free = free


class ZramKernel:
    """Memory with a zram device in it, and the program that sees it."""

    def __init__(
        self,
        era: str = "6.12",
        *,
        slots: int = 64,
        algorithms: Sequence[str] = ("lz4",),
        pfn_bits: int | None = None,
        platform: Platform = LP64,
        frames: int = 4096,
        live: bool = False,
        seed: int = 1,
    ) -> None:
        self.era = ERAS[era]
        self.wide = bool(platform.flags & PlatformFlags.IS_64_BIT)
        self.order: Any = (
            "little" if platform.flags & PlatformFlags.IS_LITTLE_ENDIAN else "big"
        )
        self.word = 8 if self.wide else 4
        self.direct = DIRECT if self.wide else 0xC0000000
        self.vmemmap = VMEMMAP if self.wide else 0xB0000000
        if pfn_bits is None:
            pfn_bits = 40 if self.wide else 20
        self.index_bits = 8 * self.word - pfn_bits
        self.chance = random.Random(seed)
        self.count = slots
        self.memory = bytearray(frames * PAGE)
        self.memmap = bytearray(frames * self._size_of_page())
        # What was given out from each end: pages, and memory of the kernel's own.
        self.pages = list(range(BASE_PFN + frames // 8, BASE_PFN + frames))
        self.chance.shuffle(self.pages)
        self.used = 16
        self.missing: set[int] = set()
        self.missing_types: tuple[str, ...] = ()
        self.reads = 0
        self.on_read: Callable[[int], None] | None = None
        self.prog = Program(platform)
        self.variables: dict[str, tuple[str, int, str]] = {}
        self.types = self._types()
        self.live = live
        if live:
            self.prog.set_linux_kernel_custom(
                f"OSRELEASE={era}\nPAGESIZE=4096\nKERNELOFFSET=0\nNUMBER(phys_base)=0\n"
                "SYMBOL(swapper_pg_dir)=ffffffff82a10000\n",
                True,
            )
        size = len(self.memory)
        add = self.prog.add_memory_segment
        add(self.direct, size, self._read)
        add(BASE_PFN * PAGE, size, self._read, True)
        base = BASE_PFN * self._size_of_page()
        add(self.vmemmap + base, len(self.memmap), self._read_memmap)
        self.prog.register_type_finder("fake", self._find_type, enable_index=0)
        self.prog.register_object_finder("fake", self._find_object, enable_index=0)
        self._pool()
        self._device(algorithms)

    # Memory

    def _read(self, address: int, count: int, offset: int, physical: bool) -> bytes:
        self.reads += 1
        if self.on_read is not None:
            self.on_read(self.reads)
        for frame in range(offset // PAGE, (offset + count - 1) // PAGE + 1):
            if BASE_PFN + frame in self.missing:
                raise FaultError("memory is excluded", address)
        return bytes(self.memory[offset : offset + count])

    def _read_memmap(
        self, address: int, count: int, offset: int, physical: bool
    ) -> bytes:
        return bytes(self.memmap[offset : offset + count])

    def allocate(self, size: int, alignment: int = 16) -> int:
        self.used = -(-self.used // alignment) * alignment
        at = self.used
        self.used += size
        assert self.used <= len(self.memory) // 8
        return self.direct + at

    def store(self, data: bytes) -> int:
        address = self.allocate(len(data))
        self.poke(address, data)
        return address

    def poke(self, address: int, data: bytes) -> None:
        at = address - self.direct
        assert 0 <= at <= len(self.memory) - len(data)
        self.memory[at : at + len(data)] = data

    def peek(self, address: int, size: int) -> bytes:
        at = address - self.direct
        return bytes(self.memory[at : at + size])

    def write(self, address: int, value: int, width: int) -> None:
        mask = (1 << 8 * width) - 1
        self.poke(address, (value & mask).to_bytes(width, self.order))

    def frame(self, pfn: int) -> int:
        """Where a page frame is, in the direct mapping."""
        return self.direct + (pfn - BASE_PFN) * PAGE

    # Types

    def _size_of_page(self) -> int:
        return 64 if self.wide else 36

    def _types(self) -> dict[str, Members]:
        era = self.era
        page = _PAGE
        huge, fullness, class_, magic = (era.zspage or "0 0 0 0").split()
        if era.zspage and huge == "u32:0":
            # 4.8 to 5.16.
            page = (*_PAGE, ("freelist", "=index"))
        zspage: Members = (
            *((("huge", huge),) if huge != "u32:0" else ()),
            ("fullness", fullness),
            ("class", class_),
            ("magic", magic),
            ("inuse", "u32"),
            ("freeobj", "u32"),
            ("first_zpdesc" if era.zpdesc else "first_page", "ptr"),
            ("list", "struct list_head"),
        )
        if era.zpdesc:
            page = tuple(
                ("__folio_index" if name == "index" else name, kind)
                for name, kind in _PAGE
            )
        types: dict[str, Members] = {
            "struct list_head": _LIST,
            "struct atomic64_t": _ATOMIC,
            "struct atomic_long_t": _ATOMIC_LONG,
            "struct raw_spinlock": (("raw_lock", "struct qspinlock"),),
            "struct qspinlock": (("val", "struct atomic_t"),),
            "struct atomic_t": (("counter", "s32"),),
            "struct spinlock": (("rlock", "struct raw_spinlock"),),
            "struct page": page,
            "struct attr": (("flags", "u32"), ("ac_time", "u32")),
            "struct zs_pool_stats": (("pages_compacted", "struct atomic_long_t"),),
            "struct zs_pool": (
                ("name", "ptr"),
                ("size_class", "arr 255 ptr struct size_class"),
                *((("handle_cachep", "ptr"),) if era.indirect else ()),
                ("pages_allocated", "struct atomic_long_t"),
                ("stats", "struct zs_pool_stats"),
            ),
            "struct zs_size_stat": (("objs", f"arr {era.lists + 2} long"),),
            "struct size_class": (
                ("fullness_list", f"arr {era.lists} struct list_head"),
                ("size", "s32"),
                ("objs_per_zspage", "s32"),
                ("pages_per_zspage", "s32"),
                ("index", "u32"),
                *((("huge", "u8"),) if not era.zspage and era.indirect else ()),
                ("stats", "struct zs_size_stat"),
            ),
            "struct zram_table_entry": era.entry,
            "struct gendisk": (
                ("disk_name", "arr 32 char"),
                ("fops", "ptr"),
                ("private_data", "ptr"),
            ),
            "struct zram_stats": tuple(
                (name, "struct atomic64_t") for name in era.stats
            ),
            "struct task_struct": (("comm", "arr 16 char"), ("pid", "s32")),
            "struct mutex": (("owner", "struct atomic_long_t"), ("wait", "long")),
            "struct local_lock": (("none", "arr 0 char"),),
            "struct zcomp_strm": (
                *((("lock", "struct mutex"),) if era.stream == "mutex" else ()),
                *((("lock", "struct local_lock"),) if era.stream == "local" else ()),
                ("buffer", "ptr"),
            ),
            "struct zcomp": (
                (
                    "stream",
                    "ptr ptr struct zcomp_strm"
                    if era.stream == "pointer"
                    else "ptr"
                    if era.stream == "lists"
                    else "ptr struct zcomp_strm",
                ),
            ),
            "struct deflate_params": (("winbits", "s32"),),
            "struct zcomp_params": (
                ("dict", "ptr"),
                ("dict_sz", "long"),
                ("level", "s32"),
                ("deflate", "struct deflate_params"),
            ),
            "struct cpumask": (("bits", "arr 1 long"),),
        }
        if era.zspage:
            types["struct zspage"] = zspage
        if era.zpdesc:
            types["struct zpdesc"] = (
                ("flags", "long"),
                ("lru", "struct list_head"),
                ("movable_ops", "long"),
                ("next", "ptr"),
                ("handle", "=next"),
                ("zspage", "ptr"),
            )
        where: Members = (
            ("table", "ptr struct zram_table_entry"),
            ("mem_pool", "ptr struct zs_pool"),
            *((("compress_buffer", "ptr"),) if era.stream == "meta" else ()),
        )
        several = era.algorithms == "comp_algs"
        named = era.algorithms == "compressor"
        types["struct zram_meta"] = where
        types["struct zram"] = (
            *((("meta", "ptr struct zram_meta"),) if era.meta else where),
            *((("comps", "arr 4 ptr struct zcomp"),) if several else ()),
            *((("params", "arr 4 struct zcomp_params"),) if several else ()),
            *((("comp", "ptr struct zcomp"),) if not several else ()),
            ("disk", "ptr struct gendisk"),
            ("limit_pages", "long"),
            ("stats", "struct zram_stats"),
            ("disksize", "u64"),
            *((("compressor", "arr 128 char"),) if named else ()),
            *((("comp_algs", "arr 4 ptr"),) if several else ()),
            ("compressed_wb", "u8"),
        )
        if era.stream == "meta":
            types["struct zram"] = tuple(
                member for member in types["struct zram"] if member[0] != "comp"
            )
        return types

    def _width(self, kind: str) -> tuple[int, int]:
        # Size and alignment.
        if kind.startswith("struct "):
            size, _, alignment = self.layout(kind)
            return size, alignment
        if kind.startswith("arr "):
            _, count, element = kind.split(" ", 2)
            size, alignment = self._width(element)
            return int(count) * size, alignment
        if kind.startswith(("ptr", "long")):
            return self.word, self.word
        return _SIZES[kind], _SIZES[kind]

    def layout(self, name: str) -> tuple[int, dict[str, tuple[int, int, str]], int]:
        """Size, members with their offset and width in bits and kinds, alignment."""
        at, most = 0, 1
        members: dict[str, tuple[int, int, str]] = {}
        for member, kind in self.types[name]:
            if kind.startswith("="):
                offset, width, _ = members[kind[1:]]
                members[member] = offset, width, "long"
                continue
            base, _, bits = kind.partition(":")
            size, alignment = self._width(base)
            most = max(most, alignment)
            if bits:
                members[member] = at, int(bits), base
                at += int(bits)
                continue
            at = -(-at // (8 * alignment)) * 8 * alignment
            members[member] = at, 8 * size, kind
            at += 8 * size
        size = -(-at // 8)
        return -(-size // most) * most, members, most

    def _type(self, kind: str) -> Type:
        prog = self.prog
        if kind.startswith("struct "):
            size, members, _ = self.layout(kind)
            made = []
            for member, (offset, width, sub) in members.items():
                type_: Any = self._type(sub)
                if sub == "u32" and width % 32:
                    type_ = Object(prog, type_, bit_field_size=width)
                made.append(TypeMember(type_, member, offset))
            return prog.struct_type(kind.split()[1], size, tuple(made))
        if kind.startswith("arr "):
            _, count, element = kind.split(" ", 2)
            return prog.array_type(self._type(element), int(count))
        if kind.startswith("ptr"):
            _, _, target = kind.partition(" ")
            return prog.pointer_type(self._type(target) if target else prog.void_type())
        if kind == "char":
            return prog.int_type("char", 1, True)
        if kind == "long":
            return prog.int_type("unsigned long", self.word, False)
        return prog.int_type(kind, _SIZES[kind], kind[0] == "s")

    def _enum(self, name: str) -> Type | None:
        values = {
            "pageflags": {"PG_owner_priv_1": 10, "PG_private": 13, "PG_private_2": 14},
            "zram_pageflags": {
                f"ZRAM_{flag}": self.era.shift + place
                for place, flag in enumerate(self.era.flags)
            },
        }.get(name)
        if values is None:
            return None
        prog = self.prog
        return prog.enum_type(
            name,
            prog.int_type("unsigned int", 4, False),
            tuple(TypeEnumerator(*value) for value in values.items()),
        )

    def _find_type(
        self, prog: Program, kinds: Any, name: str, filename: str | None
    ) -> Type | None:
        if f"struct {name}" in self.missing_types:
            return None
        if TypeKind.STRUCT in kinds and f"struct {name}" in self.types:
            return self._type(f"struct {name}")
        return self._enum(name) if TypeKind.ENUM in kinds else None

    def _find_object(
        self, prog: Program, name: str, flags: FindObjectFlags, filename: str | None
    ) -> Object | None:
        if name == "PAGE_SIZE":
            return Object(prog, self._type("long"), value=PAGE)
        if name == "vmemmap":
            return Object(prog, self._type("ptr struct page"), value=self.vmemmap)
        if name not in self.variables or not flags & FindObjectFlags.VARIABLE:
            return None
        kind, address, where = self.variables[name]
        if filename is not None and not filename_matches(where, filename):
            return None
        return Object(prog, self._type(kind), address=address)

    def at(self, address: int, name: str, member: str) -> tuple[int, int]:
        """Where a member is, and how many bytes it has."""
        offset, width, _ = self.layout(name)[1][member]
        return address + offset // 8, width // 8

    def set(self, address: int, name: str, **values: int) -> None:
        for member, value in values.items():
            self.write(*self._write_at(address, name, member, value))

    def _write_at(
        self, address: int, name: str, member: str, value: int
    ) -> tuple[int, int, int]:
        at, width = self.at(address, name, member)
        return at, value, width

    def variable(self, name: str, kind: str, value: int = 0) -> int:
        size, _ = self._width(kind)
        address = self.allocate(size)
        if not kind.startswith(("struct", "arr")):
            self.write(address, value, size)
        self.variables[name] = kind, address, "drivers/block/zram/zram_drv.c"
        return address

    # struct page

    def page(self, pfn: int) -> int:
        return self.vmemmap + pfn * self._size_of_page()

    def set_page(self, pfn: int, **values: int) -> None:
        """Members of a page; of struct zpdesc, if that is what has them."""
        for member, value in values.items():
            for name in ("struct page", "struct zpdesc"):
                if name not in self.types or member not in dict(self.types[name]):
                    continue
                offset, width, _ = self.layout(name)[1][member]
                at = (pfn - BASE_PFN) * self._size_of_page() + offset // 8
                mask = (1 << width) - 1
                self.memmap[at : at + width // 8] = (value & mask).to_bytes(
                    width // 8, self.order
                )
                break
            else:
                raise KeyError(member)

    # zsmalloc

    def _pool(self) -> None:
        self.classes = class_sizes(4 if self.era.lists == 4 else 8)
        size, members, _ = self.layout("struct zs_pool")
        self.pool = self.allocate(size)
        self.class_at: dict[int, int] = {}
        array = members["size_class"][0] // 8
        for _, _, merged in self.classes:
            if merged not in self.class_at:
                self.class_at[merged] = self._make_class(merged)
        for index, (_, _, merged) in enumerate(self.classes):
            self.write(
                self.pool + array + index * self.word, self.class_at[merged], self.word
            )
        self.zspages: dict[int, list[_Zspage]] = {index: [] for index in self.class_at}
        self.allocated_pages = 0

    def _make_class(self, index: int) -> int:
        size, pages, _ = self.classes[index]
        name = "struct size_class"
        address = self.allocate(self.layout(name)[0])
        self.set(
            address,
            name,
            size=size,
            objs_per_zspage=pages * PAGE // size,
            pages_per_zspage=pages,
            index=index,
        )
        if "huge" in dict(self.types[name]):
            self.set(address, name, huge=int(pages * PAGE // size == 1 and pages == 1))
        for number in range(self.era.lists):
            head = address + number * 2 * self.word
            self.write(head, head, self.word)
            self.write(head + self.word, head, self.word)
        return address

    def _new_zspage(self, index: int) -> _Zspage:
        size, count, _ = self.classes[index]
        pfns = [self.pages.pop() for _ in range(count)]
        self.allocated_pages += count
        at, _ = self.at(self.pool, "struct zs_pool", "pages_allocated")
        self.write(at, self.allocated_pages, self.word)
        objects = list(range(count * PAGE // size))
        self.chance.shuffle(objects)
        address = self._chain(index, pfns)
        zspage = _Zspage(address, pfns, objects)
        self.zspages[index].append(zspage)
        return zspage

    def _chain(self, index: int, pfns: list[int]) -> int:
        era = self.era
        size, _, _ = self.classes[index]
        if not era.zspage:
            for place, pfn in enumerate(pfns):
                flags = (not place) << 13 | (place == len(pfns) - 1) << 14
                self.set_page(pfn, flags=flags)
                if place:
                    # Where the first object that starts in the page does.
                    start = -(-place * PAGE // size) * size - place * PAGE
                    self.set_page(pfn, index=start, private=self.page(pfns[0]))
                if place < len(pfns) - 1:
                    self.set_next(pfn, self.page(pfns[place + 1]), first=not place)
            self.set_page(pfns[0], mapping=index << 4 | 3)
            return self.page(pfns[0])
        name = "struct zspage"
        address = self.allocate(self.layout(name)[0])
        value = 0
        for member, number in (("class", index), ("magic", 0x58), ("fullness", 1)):
            offset, width, _ = self.layout(name)[1][member]
            shift = offset if self.order == "little" else 32 - offset - width
            value |= number << shift
        huge = size == PAGE
        if huge and "huge" in dict(self.types[name]):
            value |= 1 << (0 if self.order == "little" else 31)
        self.write(address, value, 4)
        member = "first_zpdesc" if era.zpdesc else "first_page"
        self.set(address, name, **{member: self.page(pfns[0])})
        for place, pfn in enumerate(pfns):
            owner = "zspage" if era.zpdesc else "private"
            self.set_page(pfn, **{owner: address})
            if place < len(pfns) - 1:
                self.set_next(pfn, self.page(pfns[place + 1]))
        if huge and "huge" not in dict(self.types[name]):
            self.set_page(pfns[0], flags=1 << 10)
        self._link(index, address)
        return address

    def set_next(self, pfn: int, page: int, *, first: bool = False) -> None:
        """The page that follows in a zspage."""
        if self.era.zspage:
            names = dict(self.types["struct page"])
            member = "freelist" if "freelist" in names else "index"
            self.set_page(pfn, **{"next" if self.era.zpdesc else member: page})
        elif first:
            self.set_page(pfn, private=page)
        else:
            self._set_lru(pfn, page)

    def _set_lru(self, pfn: int, page: int) -> None:
        lru = self.layout("struct page")[1]["lru"][0] // 8
        at = (pfn - BASE_PFN) * self._size_of_page() + lru
        raw = (page + lru).to_bytes(self.word, self.order)
        self.memmap[at : at + self.word] = raw

    def _link(self, index: int, zspage: int) -> None:
        head = self.class_at[index] + self.word * 2
        node = self.at(zspage, "struct zspage", "list")[0]
        follows = self.peek(head, self.word)
        self.poke(node, follows)
        self.write(head, node, self.word)

    def class_for(self, size: int) -> int:
        """The class of an object with so many bytes."""
        head = self.word if self.era.indirect else 0
        # Kernels store pages that do not compress in whole pages.
        if size == PAGE:
            head = 0
        index = max(0, -(-(size + head - 32) // 16))
        return self.classes[index][2]

    def zs_malloc(self, data: bytes) -> int:
        """A new object; its handle."""
        index = self.class_for(len(data))
        size, _, _ = self.classes[index]
        open_ = [zspage for zspage in self.zspages[index] if zspage.free]
        zspage = open_[0] if open_ else self._new_zspage(index)
        number = zspage.free.pop()
        start = number * size
        place = start // PAGE
        pfn = zspage.pfns[place]
        if not self.era.zspage:
            # Counted from the first object that starts in the page.
            number -= -(-place * PAGE // size)
        if not self.era.indirect:
            handle = pfn << self.index_bits | number + 1
            self._put(zspage, start, data)
            return handle
        value = pfn << self.index_bits | number << self.era.tag
        handle = self.allocate(self.word, self.word)
        self.write(handle, value, self.word)
        head = (handle | 1).to_bytes(self.word, self.order)
        if size == PAGE:
            self._put(zspage, 0, data)
            back = int.from_bytes(head, self.order)
            if not self.era.zspage:
                self.set_page(pfn, private=handle)
            elif self.era.zpdesc:
                self.set_page(pfn, handle=back)
            else:
                self.set_page(pfn, index=back)
        else:
            self._put(zspage, start, head + data)
        return handle

    def _put(self, zspage: _Zspage, start: int, data: bytes) -> None:
        while data:
            place, offset = divmod(start, PAGE)
            part = data[: PAGE - offset]
            self.poke(self.frame(zspage.pfns[place]) + offset, part)
            data, start = data[len(part) :], start + len(part)

    # zram

    def _device(self, algorithms: Sequence[str]) -> None:
        name = "struct zram"
        self.zram = self.variable("zram_devices_memory", name)
        self.variable("zram_devices", f"ptr {name}", self.zram)
        self.variable("num_devices", "u32", 1)
        self.entry_size = self.layout("struct zram_table_entry")[0]
        self.table = self.allocate(self.count * self.entry_size)
        disk = self.allocate(self.layout("struct gendisk")[0])
        fops = self.variable("zram_devops", "u64")
        self.poke(disk, b"zram0")
        self.set(disk, "struct gendisk", fops=fops, private_data=self.zram)
        self.disk = disk
        self.set(self.zram, name, disk=disk, disksize=self.count * PAGE)
        meta = self.zram
        meta_name = name
        if self.era.meta:
            meta_name = "struct zram_meta"
            meta = self.allocate(self.layout(meta_name)[0])
            self.set(self.zram, name, meta=meta)
        self.set(meta, meta_name, table=self.table, mem_pool=self.pool)
        self.meta, self.meta_name = meta, meta_name
        at = self.at(self.zram, name, self.era.algorithms or "disk")[0]
        for priority, algorithm in enumerate(algorithms):
            text = algorithm.encode() + b"\0"
            if self.era.algorithms == "compressor":
                self.poke(at, text)
            elif self.era.algorithms:
                self.write(at + priority * self.word, self.store(text), self.word)
                self.set_params(priority)

    def set_params(
        self, priority: int, dictionary: bytes = b"", winbits: int = -(1 << 31)
    ) -> None:
        name = "struct zcomp_params"
        params = self.at(self.zram, "struct zram", "params")[0]
        params += priority * self.layout(name)[0]
        self.set(
            params,
            name,
            dict=self.store(dictionary) if dictionary else 0,
            dict_sz=len(dictionary),
            level=-(1 << 31),
        )
        self.write(self.at(params, name, "deflate")[0], winbits, 4)

    def streams(self, buffers: Sequence[bytes]) -> None:
        """What each CPU compressed last."""
        cpus = len(buffers)
        mask = self.variable("__cpu_online_mask", "struct cpumask")
        self.write(mask, (1 << cpus) - 1, self.word)
        self.variable("nr_cpu_ids", "u32", cpus)
        offsets = self.variable("__per_cpu_offset", f"arr {cpus} long")
        name = "struct zcomp_strm"
        size = self.layout(name)[0]
        first = self.allocate(size * cpus)
        pointers = self.allocate(self.word * cpus)
        for cpu, data in enumerate(buffers):
            buffer = self.allocate(2 * PAGE, PAGE)
            self.poke(buffer, data)
            self.set(first + cpu * size, name, buffer=buffer)
            step = self.word if self.era.stream == "pointer" else size
            self.write(offsets + cpu * self.word, cpu * step, self.word)
            self.write(pointers + cpu * self.word, first + cpu * size, self.word)
            if self.era.stream == "meta":
                self.set(self.meta, self.meta_name, compress_buffer=buffer)
        if self.era.stream == "meta":
            return
        comp = self.allocate(self.layout("struct zcomp")[0])
        stream = pointers if self.era.stream == "pointer" else first
        self.set(comp, "struct zcomp", stream=stream)
        member = "comps" if self.era.algorithms == "comp_algs" else "comp"
        self.write(self.at(self.zram, "struct zram", member)[0], comp, self.word)
        self.first_stream = first

    def flag(self, *names: str) -> int:
        """Bits of those flags that this kernel has."""
        places = {name: place for place, name in enumerate(self.era.flags)}
        return sum(1 << self.era.shift + places[name] for name in names)

    def slot(
        self,
        index: int,
        *,
        handle: int = 0,
        size: int = 0,
        flags: int = 0,
        priority: int = 0,
        ac_time: int = 0,
        locked: bool = False,
    ) -> None:
        """Write a slot."""
        name = "struct zram_table_entry"
        members = dict(self.types[name])
        address = self.table + index * self.entry_size
        self.set(address, name, handle=handle)
        if priority:
            flags |= priority << self.era.shift + self.era.flags.index(
                "COMP_PRIORITY_BIT1"
            )
        if "size" in members:
            self.set(address, name, size=size)
        else:
            flags |= size
        if locked and "lock" not in members:
            for lock in ("LOCK", "ACCESS", "ENTRY_LOCK"):
                if lock in self.era.flags:
                    flags |= self.flag(lock)
        if "attr" in members:
            attr = self.at(address, name, "attr")[0]
            self.set(attr, "struct attr", flags=flags, ac_time=ac_time)
            return
        self.set(address, name, **{"value" if "value" in members else "flags": flags})
        if "ac_time" in members:
            self.set(address, name, ac_time=ac_time * 10**9)
        if "lock" in members:
            self.set(address, name, lock=int(locked))

    def put(self, index: int, data: bytes, *, priority: int = 0, **more: Any) -> int:
        """Write a slot with an object; the object's handle."""
        handle = self.zs_malloc(data)
        flags = 0
        if len(data) == PAGE and "HUGE" in self.era.flags:
            flags = self.flag("HUGE")
        self.slot(
            index,
            handle=handle,
            size=len(data),
            flags=flags | more.pop("flags", 0),
            priority=priority,
            **more,
        )
        return handle

    def counter(self, **values: int) -> None:
        stats = self.at(self.zram, "struct zram", "stats")[0]
        self.set(stats, "struct zram_stats", **values)

    @property
    def device(self) -> Object:
        """``struct zram *``"""
        return Object(self.prog, self._type("ptr struct zram"), value=self.zram)

    @property
    def zs_pool(self) -> Object:
        """``struct zs_pool *``"""
        return Object(self.prog, self._type("ptr struct zs_pool"), value=self.pool)
