# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The page model
--------------

What each page frame of a kernel was used for, computed from the words of its
``struct page`` alone: no debugging information, only VMCOREINFO. Knows every
representation from Linux 4.16 to 7.2; which one a kernel uses is found by the
VMCOREINFO keys that it has, never by its version.

Data flows one way: :func:`page_layout` and :func:`mem_map` say how and where
the kernel keeps its ``struct page`` array, :func:`classify` turns a piece of
that array into classes.
"""

from __future__ import annotations

import bisect
import enum
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple

import numpy as np
import numpy.typing as npt

from drgn_tools.errors import DumpError
from drgn_tools.vmcoreinfo import Vmcoreinfo, require


class PageClass(enum.IntEnum):
    """What a page frame is used for. One class per page frame."""

    KERNEL = 0
    """Anything that no other class takes: kernel text and data, stacks, page
    tables of older kernels, per-CPU free pages, …"""
    SLAB = 1
    PAGE_TABLE = 2
    """Where the page type tells (6.12 and later)."""
    ZSMALLOC = 3
    """Swapped-out user memory in zram or zswap, where the page type tells."""
    LARGE_KMALLOC = 4
    """Where the page type tells."""
    CACHE = 5
    """Page cache and shmem without private data."""
    CACHE_PRIVATE = 6
    """Page cache with private data, such as buffer heads."""
    ANON = 7
    """Anonymous user memory, KSM and swap cache included."""
    HUGETLB = 8
    FREE = 9
    """Free in the buddy allocator."""
    UNACCEPTED = 10
    """Free and not yet accepted by a confidential guest."""
    OFFLINE = 11
    """Logically offline, such as ballooned out: reading it may hurt."""
    HWPOISON = 12
    """Holds an uncorrectable memory error: reading it may hurt."""
    UNKNOWN = 13
    """No ``struct page`` could be read for it."""
    ZERO = 14
    """All bytes zero. Not known before the page itself is read."""

    @property
    def label(self) -> str:
        """The name users type and read, such as ``cache-private``."""
        return self.name.lower().replace("_", "-")


#: Never dumped: to read such a page may stop the machine.
ALWAYS_EXCLUDED = frozenset({PageClass.OFFLINE, PageClass.HWPOISON})

#: The classes that each bit of makedumpfile's ``-d`` excludes.
DUMP_LEVEL_BITS = {
    1: frozenset({PageClass.ZERO}),
    2: frozenset({PageClass.CACHE}),
    4: frozenset({PageClass.CACHE, PageClass.CACHE_PRIVATE}),
    8: frozenset({PageClass.ANON, PageClass.HUGETLB}),
    16: frozenset({PageClass.FREE, PageClass.UNACCEPTED}),
}

#: The kernel's own memory, as far as it is known what for.
KERNEL_CLASSES = frozenset(
    {
        PageClass.KERNEL,
        PageClass.SLAB,
        PageClass.PAGE_TABLE,
        PageClass.LARGE_KMALLOC,
    }
)

#: Classes by the name users type.
CLASSES_BY_LABEL = {c.label: c for c in PageClass}


def excluded_classes(dump_level: int) -> frozenset[PageClass]:
    """Classes that are left out at a ``-d`` level, 0 to 31."""
    classes = set(ALWAYS_EXCLUDED)
    for bit, excluded in DUMP_LEVEL_BITS.items():
        if dump_level & bit:
            classes |= excluded
    return frozenset(classes)


def parse_levels(text: str) -> list[int]:
    """
    ``-d`` levels, as given: one or several with commas between them.

    :raises DumpError: if one of them is no level.
    """
    levels = []
    for number in text.split(","):
        if not (number.isascii() and number.isdigit() and int(number[:9]) <= 31):
            raise DumpError(f"-d {text}: levels go from 0 to 31")
        levels.append(int(number))
    return levels


def dump_level(excluded: frozenset[PageClass]) -> int:
    """The ``-d`` bits whose classes are all in *excluded*."""
    return sum(bit for bit, classes in DUMP_LEVEL_BITS.items() if classes <= excluded)


# Page types in the top byte of page_type, since 6.12 (4ffca5a96678), that
# VMCOREINFO does not export (:linux:`include/linux/page-flags.h`).
_PAGE_TYPES = {
    0xF2: PageClass.PAGE_TABLE,
    0xF6: PageClass.ZSMALLOC,
    0xF8: PageClass.LARGE_KMALLOC,
}
#: Classes that no other sign tells.
TYPED_CLASSES = frozenset(_PAGE_TYPES.values())
# What page_type of a free page is where types are in the top byte.
_TYPED_BUDDY = 0xF0 << 24

# PG_hugetlb of 6.6-6.8 shares its bit with flags of other compound pages, so
# that alone is no proof. A huge page is at least a PMD.
_MIN_HUGETLB_ORDER = 9


class PageLayout(NamedTuple):
    """How a kernel marks its pages: bits, values and the place of each word."""

    dtype: np.dtype[np.void]
    """The members of ``struct page`` that are needed, at their offsets."""
    lru: int
    private: int
    swapcache: int
    swapbacked: int
    """Masks for page.flags; 0 where the kernel does not tell."""
    head: int
    hwpoison: int
    slab: int
    hugetlb_flag: int
    """Mask for the second page's flags."""
    buddy_type: int | None
    """Values of page._mapcount (page_type), as u32."""
    slab_type: int | None
    offline_type: int | None
    hugetlb_type: int | None
    unaccepted_type: int | None
    hugetlb_dtor: int | None
    """Value of the second page's compound_dtor."""
    typed: bool
    """page_type's top byte is the type."""
    orders: int
    """Orders that the buddy allocator has, 0 to this minus 1."""


def page_layout(info: Vmcoreinfo) -> PageLayout:
    """
    How the kernel behind *info* marks its pages.

    :raises DumpError: if VMCOREINFO lacks a key that every kernel writes, or
        if one makes no sense.
    """
    size = require(info.size("page"), "SIZE(page)", 32, 4096)
    if size % 8:
        raise DumpError(f"VMCOREINFO is damaged: SIZE(page) is {size}")

    def member(name: str, width: int, base: int = 0) -> int | None:
        offset = info.offset(name)
        if offset is None:
            return None
        return require(offset - base, f"OFFSET({name})", 0, size - width)

    def required(name: str, width: int) -> int:
        offset = member(f"page.{name}", width)
        if offset is None:
            raise DumpError(f"VMCOREINFO lacks OFFSET(page.{name})")
        return offset

    fields = {
        "flags": ("<u8", required("flags", 8)),
        "mapping": ("<u8", required("mapping", 8)),
        "mapcount": ("<u4", required("_mapcount", 4)),
        "private": ("<u8", required("private", 8)),
    }
    # compound_info since 7.1 (d50569612c29): head pointer or mask. Bit 0 marks
    # a tail in both.
    tail = member("page.compound_info", 8)
    if tail is None:
        tail = required("compound_head", 8)
    fields["tail"] = ("<u8", tail)
    # These lie in the second struct page. The order is in the low byte of its
    # flags since 6.6 (ebc1baf5c9b4), which needs no key; in folio._folio_order
    # in 6.3-6.5 (1c5509be58f6); in page.compound_order before.
    order = member("folio._folio_order", 1, base=size)
    if order is None:
        order = member("page.compound_order", 1)
    # x86 is little-endian: the low byte comes first.
    fields["order"] = ("u1", fields["flags"][1] if order is None else order)
    # The destructor's number: up to 6.5 (9c5ccf2db04b), in the same places.
    dtor = member("folio._folio_dtor", 1, base=size)
    if dtor is None:
        dtor = member("page.compound_dtor", 1)
    fields["dtor"] = ("u1", fields["flags"][1] if dtor is None else dtor)

    def bit(name: str) -> int:
        number = info.number(name)
        return 0 if number is None else 1 << require(number, f"NUMBER({name})", 0, 63)

    def page_type(name: str) -> int | None:
        key = f"PAGE_{name}_MAPCOUNT_VALUE"
        value = info.number(key)
        if value is None:
            return None
        # A negative int. Any other is a count of mappings, -1 that of none: all
        # the memory there is would have the type.
        return require(value, f"NUMBER({key})", -(1 << 31), -2) & 0xFFFFFFFF

    buddy_type = page_type("BUDDY")
    if buddy_type is None:
        raise DumpError("VMCOREINFO lacks NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)")
    head = info.number("PG_head_mask")
    hugetlb_dtor = info.number("HUGETLB_PAGE_DTOR")
    return PageLayout(
        dtype=np.dtype(
            {
                "names": list(fields),
                "formats": [f for f, _ in fields.values()],
                "offsets": [offset for _, offset in fields.values()],
                "itemsize": size,
            }
        ),
        lru=1 << require(info.number("PG_lru"), "NUMBER(PG_lru)", 0, 63),
        private=1 << require(info.number("PG_private"), "NUMBER(PG_private)", 0, 63),
        swapcache=1
        << require(info.number("PG_swapcache"), "NUMBER(PG_swapcache)", 0, 63),
        swapbacked=bit("PG_swapbacked"),
        head=require(head, "NUMBER(PG_head_mask)", 1, (1 << 64) - 1),
        hwpoison=bit("PG_hwpoison"),
        slab=bit("PG_slab"),
        hugetlb_flag=bit("PG_hugetlb"),
        buddy_type=buddy_type,
        slab_type=page_type("SLAB"),
        offline_type=page_type("OFFLINE"),
        hugetlb_type=page_type("HUGETLB"),
        unaccepted_type=page_type("UNACCEPTED"),
        hugetlb_dtor=hugetlb_dtor if dtor is not None else None,
        typed=buddy_type == _TYPED_BUDDY,
        orders=require(info.length("zone.free_area"), "LENGTH(zone.free_area)", 1, 40),
    )


class Spill(NamedTuple):
    """Page frames beyond a classified piece whose tails belong to its last page."""

    pfn: int
    end_pfn: int
    page_class: PageClass


def classify(
    words: npt.NDArray[np.uint8],
    pfn: int,
    layout: PageLayout,
    spills: Sequence[Spill] = (),
) -> tuple[npt.NDArray[np.uint8], list[Spill]]:
    """
    Classes of consecutive page frames.

    :param words: the ``struct page`` array of these frames, as bytes.
    :param pfn: the first page frame.
    :param spills: what earlier frames spilled.
    :return: a :class:`PageClass` per frame; and what compound pages that start
        here or before cover beyond the end.
    """
    pages = words.view(layout.dtype).reshape(-1)
    count = len(pages)
    # These are gone over many times.
    flags = np.ascontiguousarray(pages["flags"])
    mapcount = np.ascontiguousarray(pages["mapcount"])
    # What the second page of each would be.
    following = pages[1:]

    def has(mask: int, of: Any = flags) -> Any:
        return (of & np.uint64(mask)) != 0

    def typed(value: int | None) -> Any:
        if value is None:
            return np.zeros(count, np.bool_)
        if layout.typed and not value & 0xFFFFFF:
            # The owner may use the rest of the word.
            return (mapcount >> np.uint32(24)) == np.uint32(value >> 24)
        return mapcount == np.uint32(value)

    tail = (pages["tail"] & np.uint64(1)) != 0
    head = has(layout.head) & ~tail
    # The last frame cannot be a head: its second page would lie beyond.
    heads = np.flatnonzero(head[:-1])
    orders = following["order"][heads].astype(np.int64)
    # A kernel has no larger pages than 2^40 frames, and all are aligned.
    orders[orders > 40] = 0
    huge = orders >= _MIN_HUGETLB_ORDER
    orders[(pfn + heads) & ((1 << orders) - 1) != 0] = 0
    span = np.ones(count, np.int64)
    span[heads] = 1 << orders

    slab = has(layout.slab) | typed(layout.slab_type)
    anon = has(1, pages["mapping"]) & ~slab
    cache = has(layout.swapcache)
    if layout.swapbacked:
        # PG_swapcache is PG_owner_priv_1 unless PG_swapbacked is set too.
        cache &= has(layout.swapbacked)
    cache |= has(layout.lru)
    cache &= ~anon
    buddy = typed(layout.buddy_type) & ~slab

    hugetlb = typed(layout.hugetlb_type)
    if layout.hugetlb_type is None and len(heads):
        if layout.hugetlb_flag:
            # Aligned or not: with HVO, the struct pages of a huge page repeat its
            # first ones, and each of these heads answers for itself.
            hugetlb[heads] = has(layout.hugetlb_flag, following["flags"][heads]) & huge
        elif layout.hugetlb_dtor is not None:
            hugetlb[heads] = following["dtor"][heads] == layout.hugetlb_dtor
    else:
        hugetlb &= head

    # From the weakest to the strongest claim. The order is makedumpfile's,
    # so that a page which fits two classes goes the same way.
    classes = np.zeros(count, np.uint8)
    classes[slab] = PageClass.SLAB
    if layout.typed:
        for number, page_class in _PAGE_TYPES.items():
            classes[typed(number << 24) & ~slab] = page_class
    classes[typed(layout.offline_type) & ~slab] = PageClass.OFFLINE
    classes[anon] = PageClass.ANON
    # Privately mapped ones are anonymous too.
    classes[hugetlb] = PageClass.HUGETLB
    classes[cache] = PageClass.CACHE
    classes[cache & has(layout.private)] = PageClass.CACHE_PRIVATE
    frames = pfn + np.arange(count)
    whole = 1 << (layout.orders - 1)
    # Unaccepted memory is listed in blocks of the largest order only.
    unaccepted = typed(layout.unaccepted_type) & (frames & (whole - 1) == 0)
    classes[unaccepted] = PageClass.UNACCEPTED
    span[unaccepted] = whole
    classes[buddy] = PageClass.KERNEL
    # A block is aligned to its order. If not, the word is damaged: not free
    # for sure, so kept.
    free = np.flatnonzero(buddy)
    private = pages["private"][free]
    blocks = np.left_shift(1, np.minimum(private, layout.orders - 1).astype(np.int64))
    sound = (private < np.uint64(layout.orders)) & (frames[free] & (blocks - 1) == 0)
    classes[free[sound]] = PageClass.FREE
    span[free[sound]] = blocks[sound]
    # A tail is what its head is.
    classes[tail] = PageClass.KERNEL
    span[tail] = 1

    for spill in spills:
        start, end = max(0, spill.pfn - pfn), max(0, spill.end_pfn - pfn)
        classes[start:end][tail[start:end]] = spill.page_class
    beyond = [spill for spill in spills if spill.end_pfn > pfn + count]
    beyond += _spread(classes, span, tail, pfn)
    poisoned = has(layout.hwpoison)
    if poisoned.any():
        # Whoever owned it, it must not be read: neither the page nor, for a
        # compound page that is marked as a whole, any part of it.
        bad = np.where(poisoned, np.uint8(PageClass.HWPOISON), np.uint8(0))
        span[~(poisoned & head)] = 1
        beyond += _spread(bad, span, tail, pfn)
        classes[bad != 0] = PageClass.HWPOISON
    return classes, beyond


def _spread(
    classes: npt.NDArray[np.uint8],
    span: npt.NDArray[np.int64],
    tail: npt.NDArray[np.bool_],
    pfn: int,
) -> list[Spill]:
    """
    Give each page's class to what it spans: the tails of a compound page, all
    of a free block. So a damaged order drops nothing that is no tail.
    """
    first = np.flatnonzero((span > 1) & (classes != PageClass.KERNEL))
    lengths = span[first]
    outside = first + lengths > len(classes)
    spills = [
        Spill(pfn + len(classes), int(pfn + start + length), PageClass(classes[start]))
        for start, length in zip(first[outside], lengths[outside])
    ]
    lengths = np.minimum(lengths, len(classes) - first)
    if len(first):
        ends = np.cumsum(lengths)
        covered = np.repeat(first - (ends - lengths), lengths) + np.arange(ends[-1])
        inherited = np.repeat(classes[first], lengths)
        takes = tail[covered]
        for whole in (PageClass.FREE, PageClass.UNACCEPTED):
            takes |= inherited == whole
        classes[covered[takes]] = inherited[takes]
    return spills


class Section(NamedTuple):
    """A run of page frames whose ``struct page`` array is contiguous."""

    pfn: int
    end_pfn: int
    vaddr: int | None
    """Address of the ``struct page`` of *pfn*; None if the table that says so
    cannot be read."""


#: Reads kernel virtual memory: (vaddr, size) to bytes.
ReadVirtual = Callable[[int, int], bytes]

# Flags in the low bits of mem_section.section_mem_map. The encoded pointer is
# page-aligned, and the flags are five or six, depending on the kernel.
_SECTION_PRESENT = 1 << 0
_SECTION_FLAGS = 0xFFF


def _numbers(
    runs: Sequence[tuple[int, int]], per_section: int, all_sections: int
) -> npt.NDArray[np.int64]:
    """Sections that have any of some page frames, in order."""
    parts = [
        np.arange(pfn // per_section, min(-(-end_pfn // per_section), all_sections))
        for pfn, end_pfn in runs
    ]
    return _without_repeats(np.concatenate(parts) if parts else np.empty(0, np.int64))


def _without_repeats(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    # They are in order. np.unique() would import numpy.ma, 6 ms.
    return numbers[np.diff(numbers, prepend=-1) > 0]


def mem_map(
    info: Vmcoreinfo,
    read: ReadVirtual,
    page_size: int,
    runs: Sequence[tuple[int, int]],
) -> list[Section]:
    """
    Where the ``struct page`` of each page frame is (SPARSEMEM).

    :param read: reads kernel virtual memory.
    :param runs: the page frames that matter, (pfn, end_pfn) in order. What the tables
        say of others is not looked at: in a damaged dump there may be any number.
    :return: the present sections that have any of them, in order; and, as one, all
        that a table which cannot be read may have.
    :raises DumpError: if the kernel's tables cannot be found, or none of them be
        read.
    """
    require(info.decimal("PAGESIZE"), "PAGESIZE", page_size, page_size)
    struct_page = require(info.size("page"), "SIZE(page)", 32, 4096)
    entry_size = require(info.size("mem_section"), "SIZE(mem_section)", 8, 4096)
    entry_offset = require(
        info.offset("mem_section.section_mem_map"),
        "OFFSET(mem_section.section_mem_map)",
        0,
        entry_size - 8,
    )
    page_shift = page_size.bit_length() - 1
    # The section size is 16 MiB on ppc64, 1 GiB on old arm64.
    section_bits = require(
        info.number("SECTION_SIZE_BITS"), "NUMBER(SECTION_SIZE_BITS)", 24, 34
    )
    physmem_bits = require(
        info.number("MAX_PHYSMEM_BITS"), "NUMBER(MAX_PHYSMEM_BITS)", section_bits, 56
    )
    table = require(info.symbol("mem_section"), "SYMBOL(mem_section)", 1, 1 << 64)
    per_section = 1 << (section_bits - page_shift)
    per_root = page_size // entry_size
    all_sections = 1 << (physmem_bits - section_bits)
    numbers = _numbers(runs, per_section, all_sections)
    wanted = int(numbers[-1]) + 1 if len(numbers) else 0
    roots = _without_repeats(numbers // per_root).tolist()

    # SPARSEMEM_EXTREME: an array of pointers to pages of entries; the value
    # of SYMBOL(mem_section) is the address of that array. Else: the entries.
    length = info.length("mem_section")
    extreme = length is None or length == -(-all_sections // per_root)
    # None is for a pointer that cannot be read.
    pointers: list[int | None] = []
    why = None
    if extreme:
        # Page by page: of a bad one, nothing follows for others.
        while len(pointers) < len(roots):
            first = roots[len(pointers)]
            at = table + 8 * first
            count = (page_size - at % page_size + 7) // 8
            some = roots[len(pointers) : bisect.bisect_left(roots, first + count)]
            try:
                words = np.frombuffer(read(at, 8 * (some[-1] + 1 - first)), "<u8")
                pointers += [int(words[root - first]) for root in some]
            except DumpError as error:
                why = why or error
                pointers += [None] * len(some)
    else:
        pointers += [table + root * per_root * entry_size for root in roots]

    dtype = np.dtype(
        {
            "names": ["map"],
            "formats": ["<u8"],
            "offsets": [entry_offset],
            "itemsize": entry_size,
        }
    )
    sections = []
    for root, pointer in zip(roots, pointers):
        if pointer == 0:
            continue
        first = root * per_root
        entries = min(per_root, wanted - first)
        try:
            raw = b"" if pointer is None else read(pointer, entries * entry_size)
        except DumpError as error:
            why = why or error
            raw = b""
        if not raw:
            end_pfn = (first + entries) * per_section
            sections.append(Section(first * per_section, end_pfn, None))
            continue
        maps = np.frombuffer(raw, dtype)["map"]
        of_root = slice(*np.searchsorted(numbers, (first, first + entries)).tolist())
        for number in numbers[of_root].tolist():
            word = int(maps[number - first])
            if not word & _SECTION_PRESENT:
                continue
            pfn = number * per_section
            start = (word & ~_SECTION_FLAGS) + pfn * struct_page
            sections.append(Section(pfn, pfn + per_section, start & (1 << 64) - 1))
    if why and all(section.vaddr is None for section in sections):
        raise why
    return sections
