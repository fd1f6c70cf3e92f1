# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Small synthetic x86-64 dumps, made from tables of facts.

A :class:`Machine` is a few MiB of physical memory with all that a dump tool looks
for in it: page tables, ``struct page`` arrays as the chosen kernel generation lays
them out, mem_section tables, the kernel log, the kernel's names and the VMCOREINFO
text. :func:`write_elf` and :func:`write_kdump` make dumps of it. Nothing here uses
the package's own readers or writers.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Union

import numpy as np
import numpy.typing as npt

from drgn_tools.pages import PageClass

PAGE = 4096
MIB = 1 << 20
GIB = 1 << 30
START_KERNEL_MAP = 0xFFFFFFFF80000000
PAGE_OFFSET = 0xFFFF888000000000
VMEMMAP = 0xFFFFEA0000000000
# With 5 levels both move (Documentation/arch/x86/x86_64/mm.rst).
PAGE_OFFSET_L5 = 0xFF11000000000000
VMEMMAP_L5 = 0xFFD4000000000000

#: What can be written to memory or to a file.
Buffer = Union[bytes, bytearray, npt.NDArray[np.uint8]]

# --- kernel generations -----------------------------------------------------------

_BITS_OLD = {
    "PG_lru": 5,
    "PG_slab": 8,
    "PG_swapcache": 9,
    "PG_private": 12,
    "head": 15,
    "PG_swapbacked": 18,
    "PG_hwpoison": 22,
}
_BITS_5 = {
    "PG_lru": 4,
    "PG_slab": 9,
    "PG_swapcache": 10,
    "PG_private": 13,
    "head": 16,
    "PG_swapbacked": 19,
    "PG_hwpoison": 23,
}
# 6.6 moved PG_head, to free the low byte of the second page's flags.
_BITS_6_6 = {
    "PG_lru": 5,
    "head": 6,
    "PG_slab": 11,
    "PG_swapcache": 12,
    "PG_private": 15,
    "PG_swapbacked": 19,
    "PG_hwpoison": 23,
}
_BITS_6_12 = {
    "PG_lru": 5,
    "head": 6,
    "PG_swapcache": 10,
    "PG_private": 14,
    "PG_swapbacked": 17,
    "PG_hwpoison": 20,
}
_NO_SLAB = {name: bit for name, bit in _BITS_6_6.items() if name != "PG_slab"}

# page_type is a mask of cleared bits before 6.12, a number in the top byte since.
_CLEARED = {"buddy": ~0x80, "offline": ~0x100}
_CLEARED_6_11 = {
    "buddy": ~0x40000000,
    "offline": ~0x20000000,
    "hugetlb": ~0x04000000,
    "slab": ~0x02000000,
}
_TOP_BYTE = {
    "buddy": 0xF0 << 24,
    "offline": 0xF1 << 24,
    "table": 0xF2 << 24,
    "hugetlb": 0xF4 << 24,
    "slab": 0xF5 << 24,
    "zsmalloc": 0xF6 << 24,
}
_TOP_BYTE_7 = {**_TOP_BYTE, "unaccepted": 0xF7 << 24, "large_kmalloc": 0xF8 << 24}
#: Page types that VMCOREINFO tells, where the kernel has them.
_EXPORTED = ("buddy", "offline", "hugetlb", "slab", "unaccepted")


class LogLine(NamedTuple):
    """A record for the kernel log."""

    timestamp_ns: int
    text: bytes | str
    caller_id: int = 0

    @property
    def data(self) -> bytes:
        return self.text.encode() if isinstance(self.text, str) else self.text


class Generation(NamedTuple):
    """How the kernels of some years mark their pages, and what VMCOREINFO tells."""

    name: str
    bits: Mapping[str, int]
    """Bit numbers in page.flags, those that VMCOREINFO tells."""
    types: Mapping[str, int]
    """Values of page._mapcount (page_type)."""
    order: str
    """Where a compound page's order is: a key, or the second page's flags."""
    hugetlb: str
    """How huge pages are told: "dtor", "flag" or "type"."""
    keys: frozenset[str] = frozenset()
    """"uts", "ring", "vmemmap", "compound_info": VMCOREINFO keys by age."""

    def __str__(self) -> str:
        return self.name


_5_10 = frozenset({"ring"})
_6_1 = _5_10 | {"uts"}
_6_12 = _6_1 | {"vmemmap"}
_7_1 = _6_12 | {"compound_info"}
_PAGE_ORDER = "page.compound_order"
_OLD_TYPES = {"buddy": ~0x80}
_TYPES_6_9 = {**_CLEARED, "hugetlb": ~0x800}
_TYPES_6_10 = {**_TYPES_6_9, "slab": ~0x1000}
GENERATIONS = (
    Generation("4.18", _BITS_OLD, _OLD_TYPES, _PAGE_ORDER, "dtor"),
    Generation("5.10", _BITS_5, _CLEARED, _PAGE_ORDER, "dtor", _5_10),
    Generation("6.1", _BITS_5, _CLEARED, _PAGE_ORDER, "dtor", _6_1),
    Generation("6.3", _BITS_5, _CLEARED, "folio._folio_order", "dtor", _6_1),
    Generation("6.6", _BITS_6_6, _CLEARED, "flags", "flag", _6_1),
    Generation("6.9", _BITS_6_6, _TYPES_6_9, "flags", "type", _6_1),
    Generation("6.10", _NO_SLAB, _TYPES_6_10, "flags", "type", _6_12),
    Generation("6.11", _NO_SLAB, _CLEARED_6_11, "flags", "type", _6_12),
    Generation("6.12", _BITS_6_12, _TOP_BYTE, "flags", "type", _6_12),
    Generation("7.1", _BITS_6_12, _TOP_BYTE_7, "flags", "type", _7_1),
    Generation("7.2", _BITS_6_12, _TOP_BYTE_7, "flags", "type", _7_1),
)
BY_NAME = {generation.name: generation for generation in GENERATIONS}
NEWEST = GENERATIONS[-1]

# PG_hugetlb is PG_active, a flag of the second page (6.6).
_PG_HUGETLB = 8
_HUGETLB_DTOR = 2
_COMPOUND_DTOR = 1
_FREE_AREAS = 11
# Node, zone and last CPU, as most pages have them.
_FLAGS = 0x17FFFFC0000000
_TAIL_MAPPING = 0xDEAD000000000400
_UNMAPPED = 0xFFFFFFFF
_OBJECT = 0xFFFF888001234500

#: struct page of x86-64, 64 bytes.
STRUCT_PAGE = np.dtype(
    {
        "names": [
            "flags",
            "head",
            "dtor",
            "order",
            "mapping",
            "private",
            "mapcount",
            "refcount",
        ],
        "formats": ["<u8", "<u8", "u1", "u1", "<u8", "<u8", "<u4", "<u4"],
        "offsets": [0, 8, 16, 17, 24, 40, 48, 52],
        "itemsize": 64,
    }
)


def page_keys(generation: Generation) -> dict[str, str]:
    """VMCOREINFO of *generation* as far as it is about struct page."""
    keys = {
        "PAGESIZE": "4096",
        "SIZE(page)": "64",
        "OFFSET(page.flags)": "0",
        "OFFSET(page._refcount)": "52",
        "OFFSET(page.mapping)": "24",
        "OFFSET(page.lru)": "8",
        "OFFSET(page._mapcount)": "48",
        "OFFSET(page.private)": "40",
        "LENGTH(zone.free_area)": str(_FREE_AREAS),
        "NUMBER(NR_FREE_PAGES)": "0",
    }
    tail = "compound_info" if "compound_info" in generation.keys else "compound_head"
    keys[f"OFFSET(page.{tail})"] = "8"
    if generation.order == _PAGE_ORDER:
        keys["OFFSET(page.compound_dtor)"] = "16"
        keys["OFFSET(page.compound_order)"] = "17"
    elif generation.order != "flags":
        keys["OFFSET(folio._folio_dtor)"] = str(64 + 16)
        keys["OFFSET(folio._folio_order)"] = str(64 + 17)
    for name, bit in generation.bits.items():
        if name == "head":
            keys["NUMBER(PG_head_mask)"] = str(1 << bit)
        else:
            keys[f"NUMBER({name})"] = str(bit)
    if generation.hugetlb == "dtor":
        keys["NUMBER(HUGETLB_PAGE_DTOR)"] = str(_HUGETLB_DTOR)
    elif generation.hugetlb == "flag":
        keys["NUMBER(PG_hugetlb)"] = str(_PG_HUGETLB)
    for name in _EXPORTED:
        if name in generation.types:
            # As %ld of an int.
            value = np.uint32(generation.types[name] & 0xFFFFFFFF).view(np.int32)
            keys[f"NUMBER(PAGE_{name.upper()}_MAPCOUNT_VALUE)"] = str(value)
    return keys


def vmcoreinfo_text(keys: Mapping[str, str]) -> bytes:
    """The note's text, as the kernel writes it."""
    return "".join(f"{key}={value}\n" for key, value in keys.items()).encode()


class StructPages:
    """
    The ``struct page`` array of consecutive page frames, and the class that each
    page must be found to have.
    """

    def __init__(self, generation: Generation, pfn: int, count: int) -> None:
        self.generation = generation
        self.pfn = pfn
        self.vmemmap = VMEMMAP
        self.words = np.zeros(count, STRUCT_PAGE)
        self.words["flags"] = _FLAGS
        self.words["mapcount"] = _UNMAPPED
        self.words["refcount"] = 1
        self.expected = np.full(count, PageClass.KERNEL, np.uint8)

    @property
    def raw(self) -> npt.NDArray[np.uint8]:
        return self.words.view(np.uint8).reshape(-1)

    def expect(self, pfn: int, count: int, page_class: PageClass) -> None:
        """Say what page frames must be found to be, as far as they are here."""
        start = pfn - self.pfn
        self.expected[max(0, start) : max(0, start + count)] = page_class

    def flag(self, pfn: int, *names: str) -> None:
        """Set bits of page.flags; bits that the kernel does not tell are no-ops."""
        for name in names:
            bit = self.generation.bits.get(name)
            if bit is not None:
                self.words["flags"][pfn - self.pfn] |= np.uint64(1 << bit)

    def type(self, pfn: int, name: str, low: int = 0) -> None:
        """Set page_type; *low* is what the owner keeps in its low bits."""
        value = self.generation.types[name] & 0xFFFFFFFF | low
        self.words["mapcount"][pfn - self.pfn] = value

    def set(self, pfn: int, word: str, value: int) -> None:
        self.words[word][pfn - self.pfn] = value

    def compound(self, pfn: int, order: int, dtor: int = _COMPOUND_DTOR) -> None:
        """A head and its tails."""
        if not order:
            return
        self.flag(pfn, "head")
        self.tails(pfn, order)
        second = pfn + 1 - self.pfn
        if self.generation.order == "flags":
            self.words["flags"][second] &= ~np.uint64(0xFF)
            self.words["flags"][second] |= np.uint64(order)
        else:
            self.words["order"][second] = order
            self.words["dtor"][second] = dtor

    def tails(self, pfn: int, order: int) -> None:
        """
        Tails of the compound page at *pfn*, which may lie in front of this array.
        """
        if "compound_info" in self.generation.keys:
            # Since 7.1 a mask that leads from any tail to its head.
            tail = -(64 << order) | 1
        else:
            tail = self.vmemmap + 64 * pfn | 1
        first = pfn - self.pfn
        tails = slice(max(0, first + 1), max(0, first + (1 << order)))
        self.words["head"][tails] = np.uint64(tail & (1 << 64) - 1)
        self.words["mapping"][tails] = _TAIL_MAPPING
        self.words["refcount"][tails] = 0

    def kernel(self, pfn: int, order: int = 0) -> None:
        """Memory of the kernel's own: alloc_pages() and no more."""
        self.compound(pfn, order)
        self.expect(pfn, 1 << order, PageClass.KERNEL)

    def anon(self, pfn: int, order: int = 0, *, mapping_flags: int = 1) -> None:
        self.compound(pfn, order)
        self.set(pfn, "mapping", _OBJECT | mapping_flags)
        self.set(pfn, "mapcount", 0)
        self.flag(pfn, "PG_swapbacked", "PG_lru")
        self.expect(pfn, 1 << order, PageClass.ANON)

    def ksm(self, pfn: int) -> None:
        self.anon(pfn, mapping_flags=3)

    def swap_cache(self, pfn: int) -> None:
        """Anonymous and also in the swap cache, off the LRU."""
        self.set(pfn, "mapping", _OBJECT | 1)
        self.flag(pfn, "PG_swapbacked", "PG_swapcache")
        self.expect(pfn, 1, PageClass.ANON)

    def cache(self, pfn: int, order: int = 0, *, private: bool = False) -> None:
        self.compound(pfn, order)
        self.set(pfn, "mapping", _OBJECT)
        self.flag(pfn, "PG_lru")
        if private:
            self.flag(pfn, "PG_private")
            self.set(pfn, "private", _OBJECT)
        kind = PageClass.CACHE_PRIVATE if private else PageClass.CACHE
        self.expect(pfn, 1 << order, kind)

    def shmem_swap_cache(self, pfn: int) -> None:
        """Shmem on its way to swap: off the LRU, told by two flags together."""
        self.set(pfn, "mapping", _OBJECT)
        self.flag(pfn, "PG_swapbacked", "PG_swapcache")
        self.expect(pfn, 1, PageClass.CACHE)

    def owner_priv(self, pfn: int) -> None:
        """PG_owner_priv_1, the same bit as PG_swapcache, of some driver's page."""
        self.flag(pfn, "PG_swapcache")
        self.expect(pfn, 1, PageClass.KERNEL)

    def hugetlb(self, pfn: int, order: int = 9) -> None:
        self.compound(pfn, order, _HUGETLB_DTOR)
        if self.generation.hugetlb == "flag":
            self.words["flags"][pfn + 1 - self.pfn] |= np.uint64(1 << _PG_HUGETLB)
        elif self.generation.hugetlb == "type":
            self.type(pfn, "hugetlb")
        self.expect(pfn, 1 << order, PageClass.HUGETLB)

    def slab(self, pfn: int, order: int = 0, *, mapping: int = 0) -> None:
        self.compound(pfn, order)
        self.set(pfn, "mapping", mapping)
        if "slab" in self.generation.types:
            self.type(pfn, "slab")
        self.flag(pfn, "PG_slab")
        self.expect(pfn, 1 << order, PageClass.SLAB)

    def typed(self, pfn: int, name: str, order: int = 0, low: int = 0) -> None:
        """A page type that only its number tells (6.12)."""
        self.compound(pfn, order)
        self.type(pfn, name, low)
        kind = "PAGE_TABLE" if name == "table" else name.upper()
        self.expect(pfn, 1 << order, PageClass[kind])

    def free(self, pfn: int, order: int = 0) -> None:
        start = pfn - self.pfn
        self.words["refcount"][start : start + (1 << order)] = 0
        self.type(pfn, "buddy")
        self.set(pfn, "private", order)
        self.expect(pfn, 1 << order, PageClass.FREE)

    def offline(self, pfn: int) -> None:
        self.type(pfn, "offline")
        self.expect(pfn, 1, PageClass.OFFLINE)

    def unaccepted(self, pfn: int) -> None:
        self.type(pfn, "unaccepted")
        self.expect(pfn, 1 << _FREE_AREAS - 1, PageClass.UNACCEPTED)

    def hwpoison(self, pfn: int, order: int = 0) -> None:
        """Mark a page, or with *order* a compound page through its head."""
        self.flag(pfn, "PG_hwpoison")
        self.expect(pfn, 1 << order, PageClass.HWPOISON)


def populate(pages: StructPages, pfn: int) -> int:
    """
    Put some of every class that the generation has from *pfn* on, which must be
    aligned to 1024 frames. Returns the end: 4096 frames on.
    """
    types = pages.generation.types
    at = pfn
    pages.anon(at)
    pages.ksm(at + 1)
    pages.swap_cache(at + 2)
    pages.cache(at + 3)
    pages.cache(at + 4, private=True)
    pages.shmem_swap_cache(at + 5)
    pages.owner_priv(at + 6)
    pages.slab(at + 7)
    pages.slab(at + 8, 3, mapping=_OBJECT | 1)
    pages.anon(at + 16, 4)
    pages.cache(at + 32, 2)
    pages.cache(at + 36, 1, private=True)
    pages.kernel(at + 40, 3)
    pages.free(at + 48)
    pages.free(at + 50, 1)
    pages.free(at + 64, 6)
    pages.hwpoison(at + 49)
    pages.cache(at + 52)
    pages.hwpoison(at + 52)
    if "offline" in types:
        pages.offline(at + 53)
    if "table" in types:
        pages.typed(at + 54, "table", low=0x123)
        pages.typed(at + 55, "zsmalloc", low=0xABCDEF)
    if "large_kmalloc" in types:
        pages.typed(at + 56, "large_kmalloc", 3)
    # A huge page of which one part is bad: the flag is on the part (THP)...
    pages.anon(at + 512, 9)
    pages.hwpoison(at + 512 + 77)
    # ... or on the whole (hugetlb).
    pages.hugetlb(at + 1024)
    pages.hwpoison(at + 1024, 9)
    pages.hugetlb(at + 1536)
    pages.free(at + 2048, 10)
    if "unaccepted" in types:
        pages.unaccepted(at + 3072)
    else:
        pages.cache(at + 3072, 9)
    return at + 4096


# --- the machine ------------------------------------------------------------------


class Load(NamedTuple):
    """A PT_LOAD segment to be."""

    paddr: int
    data: Buffer
    memsz: int | None = None
    """If it is not what the file has of it."""
    vaddr: int = 0
    room: int = 0
    """What the file has of it, if that is more than the data: the rest is a hole."""


def note(name: bytes, kind: int, desc: bytes) -> bytes:
    """An ELF note, padded to 4 bytes."""
    name += b"\0"
    header = struct.pack("<III", len(name), len(desc), kind)
    return header + name + bytes(-len(name) % 4) + desc + bytes(-len(desc) % 4)


def prstatus(pid: int) -> bytes:
    """NT_PRSTATUS of an x86-64 CPU: 336 bytes, the pid at 32."""
    return note(b"CORE", 1, bytes(32) + struct.pack("<I", pid) + bytes(300))


def text_page(seed: int) -> bytes:
    """A page that compresses about as kernel memory does."""
    words = np.random.default_rng(seed).integers(0, 1 << 63, 128, np.int64)
    return (words.tobytes() + b"page %8d " % seed * 4).ljust(PAGE // 2, b"\x5a") * 2


class Machine:
    """
    A few MiB of memory with a kernel in it.

    :param ram: (start, size) of each range of memory. The first must reach over
        ``image`` and 4 MiB on; the kernel's tables live there.
    :param image: where the kernel image is, 2 MiB-aligned.
    :param kaslr: how far the image is shifted in virtual memory. phys_base is
        *image* less the image's place in virtual memory, and may be negative.
    :param mapping: "4K", "2M" or "1G": with what pages vmemmap is mapped.
    :param log_bits: sizes of the log, as powers of 2: its records, where there is a
        ring of them, and the bytes of their text.
    :param log_caller: whether records in log_buf have a caller_id.
    """

    def __init__(
        self,
        generation: Generation = NEWEST,
        *,
        ram: Sequence[tuple[int, int]] = ((0, 8 * MIB),),
        section_bits: int = 24,
        levels: int = 4,
        image: int = 2 * MIB,
        kaslr: int = 0,
        sme_mask: int = 0,
        mapping: str = "2M",
        log: Iterable[tuple[int, str] | LogLine] = (),
        log_bits: tuple[int, int] = (4, 10),
        log_caller: bool = False,
        section_flags: int = 0xF,
    ) -> None:
        self.generation = generation
        self.ram = [(start, np.zeros(size, np.uint8)) for start, size in ram]
        self.section_bits = section_bits
        self.levels = levels
        self.sme_mask = sme_mask
        self.mapping = mapping
        self.image = image
        self.section_flags = section_flags
        self.text = START_KERNEL_MAP + 0x1000000 + kaslr
        self.phys_base = image - (self.text - START_KERNEL_MAP)
        self.page_offset = PAGE_OFFSET if levels == 4 else PAGE_OFFSET_L5
        self.vmemmap = VMEMMAP if levels == 4 else VMEMMAP_L5
        self._next = image + 16 * PAGE
        self._end = image + 2 * MIB
        self._root = image
        self._image_used = PAGE
        self.pages = [
            StructPages(generation, start // PAGE, len(data) // PAGE)
            for start, data in self.ram
        ]
        for pages in self.pages:
            pages.vmemmap = self.vmemmap
        self.fill()
        # The image, from its own page table on, and as much of the direct map.
        self.write(image, bytes(2 * MIB))
        self.map(self.text, image, 21)
        for start in sorted({start >> 30 << 30 for start, _ in ram}):
            self.map(self.page_offset + start, start, 30)
        self.mem_section = self._mem_section()
        self._map_struct_pages()
        self.keys = self._keys()
        self._names()
        lines = [LogLine(*line) for line in log]
        if "ring" in generation.keys:
            self._ring(lines, *log_bits)
        else:
            self._log_buf(lines, 1 << log_bits[1], log_caller)

    # Memory

    def write(self, paddr: int, data: Buffer) -> None:
        for start, memory in self.ram:
            if start <= paddr and paddr + len(data) <= start + len(memory):
                at = paddr - start
                memory[at : at + len(data)] = np.frombuffer(data, np.uint8)
                return
        raise ValueError(f"no memory at {paddr:#x}")

    def read(self, paddr: int, size: int) -> bytes:
        for start, memory in self.ram:
            if start <= paddr and paddr + size <= start + len(memory):
                return memory[paddr - start : paddr - start + size].tobytes()
        raise ValueError(f"no memory at {paddr:#x}")

    def page(self, pfn: int) -> bytes:
        return self.read(pfn * PAGE, PAGE)

    def fill(self) -> None:
        """Give each page something of its own: a quarter is zero, as in life."""
        noise = np.random.default_rng(0)
        for start, memory in self.ram:
            for at in range(0, len(memory), PAGE):
                pfn = (start + at) // PAGE
                kind = pfn * 2654435761 >> 7 & 3
                if kind == 1:
                    data: Buffer = noise.integers(0, 256, PAGE, np.uint8)
                elif kind:
                    data = text_page(pfn)
                else:
                    continue
                memory[at : at + PAGE] = np.frombuffer(data, np.uint8)

    def pfns(self) -> list[int]:
        """All page frames."""
        return [
            pfn
            for start, memory in self.ram
            for pfn in range(start // PAGE, (start + len(memory)) // PAGE)
        ]

    def expected(self, pfn: int) -> PageClass:
        """Class that a page frame must be found to have."""
        for pages in self.pages:
            if pages.pfn <= pfn < pages.pfn + len(pages.expected):
                return PageClass(pages.expected[pfn - pages.pfn])
        raise ValueError(f"no memory at page frame {pfn}")

    def alloc(self, size: int, align: int = PAGE) -> int:
        """Physical memory for a table of the kernel's."""
        start = -(-self._next // align) * align
        if start + size > self._end:
            raise ValueError("no room for the kernel's tables")
        self._next = start + size
        return start

    @property
    def used_end(self) -> int:
        """End of what the kernel's tables have taken so far."""
        return self._next

    def _image_place(self, size: int) -> int:
        """Offset in the image of a new static variable."""
        at = self._image_used
        self._image_used += -(-size // 64) * 64
        assert self._image_used <= 16 * PAGE
        return at

    # Page tables

    def map(self, vaddr: int, paddr: int, shift: int) -> None:
        """Map one page of 1 << *shift* bytes."""
        table = self._root
        for level in range(self.levels - 1, -1, -1):
            at = table + 8 * (vaddr >> 12 + 9 * level & 511)
            if 12 + 9 * level == shift:
                # Present, writable, accessed, dirty, no execution; PS.
                entry = paddr | self.sme_mask | 1 << 63 | 0x63 | (level and 0x80)
                self.write(at, struct.pack("<Q", entry))
                return
            (entry,) = struct.unpack("<Q", self.read(at, 8))
            if not entry:
                entry = self.alloc(PAGE) | self.sme_mask | 0x67
                self.write(at, struct.pack("<Q", entry))
            table = entry & 0xFFFFFFFFFF000 & ~self.sme_mask

    def unmap(self, vaddr: int) -> None:
        """Clear the entry that maps *vaddr*, whatever its size."""
        table = self._root
        for level in range(self.levels - 1, -1, -1):
            at = table + 8 * (vaddr >> 12 + 9 * level & 511)
            (entry,) = struct.unpack("<Q", self.read(at, 8))
            if not level or entry & 0x80:
                self.write(at, bytes(8))
                return
            table = entry & 0xFFFFFFFFFF000 & ~self.sme_mask

    # Struct pages

    def _map_struct_pages(self) -> None:
        """Decide where in memory each piece of the struct page arrays lies."""
        self._pieces: dict[int, int] = {}
        if self.mapping == "1G":
            self.map(self.vmemmap, 0, 30)
        shift = 12 if self.mapping == "4K" else 21
        free = self._end
        for pages in self.pages:
            first = self.vmemmap + 64 * pages.pfn
            end = first + 64 * len(pages.words)
            if self.mapping == "1G":
                self._pieces[pages.pfn] = 64 * pages.pfn
                continue
            for vaddr in range(first >> shift << shift, end, 1 << shift):
                if vaddr in self._pieces:
                    continue
                if shift == 12:
                    # Every other page, so that no two are neighbours.
                    paddr = free
                    free += 2 * PAGE
                else:
                    paddr = -(-free // (2 * MIB)) * 2 * MIB
                    free = paddr + 2 * MIB
                self._pieces[vaddr] = paddr
                self.map(vaddr, paddr, shift)

    def _write_struct_pages(self) -> None:
        for pages in self.pages:
            raw = pages.raw
            if self.mapping == "1G":
                self.write(64 * pages.pfn, raw)
                continue
            step = PAGE if self.mapping == "4K" else 2 * MIB
            first = self.vmemmap + 64 * pages.pfn
            for vaddr, paddr in self._pieces.items():
                start, end = max(first, vaddr), min(first + len(raw), vaddr + step)
                if start < end:
                    self.write(paddr + start - vaddr, raw[start - first : end - first])

    def struct_page_paddr(self, pfn: int) -> int:
        """Where in physical memory the struct page of *pfn* is."""
        vaddr = self.vmemmap + 64 * pfn
        if self.mapping == "1G":
            return 64 * pfn
        step = PAGE if self.mapping == "4K" else 2 * MIB
        return self._pieces[vaddr & -step] + vaddr % step

    def _mem_section(self) -> int:
        """The two levels of mem_section; returns the address of the first."""
        shift = self.section_bits - 12
        present = sorted({pfn >> shift for pfn in self.pfns()})
        per_root = PAGE // 16
        roots = self.alloc(-(-(present[-1] // per_root + 1) * 8 // PAGE) * PAGE)
        tables: dict[int, int] = {}
        for number in present:
            root, index = divmod(number, per_root)
            if root not in tables:
                tables[root] = self.alloc(PAGE)
                pointer = self.page_offset + tables[root]
                self.write(roots + 8 * root, struct.pack("<Q", pointer))
            # The pointer is to what would be the struct page of frame 0.
            word = self.vmemmap | self.section_flags
            self.write(tables[root] + 16 * index, struct.pack("<QQ", word, 0))
        return self.page_offset + roots

    # VMCOREINFO, names, log

    def _keys(self) -> dict[str, str]:
        physmem_bits = 46 if self.levels == 4 else 52
        generation = self.generation
        keys = {
            "OSRELEASE": f"{generation.name}.0-synthetic",
            **page_keys(generation),
            "SYMBOL(swapper_pg_dir)": f"{self.text:x}",
            "SYMBOL(init_top_pgt)": f"{self.text:x}",
            "SYMBOL(_stext)": f"{self.text:x}",
            "SYMBOL(mem_section)": f"{self.mem_section:x}",
            "LENGTH(mem_section)": str(1 << physmem_bits - self.section_bits - 8),
            "SIZE(mem_section)": "16",
            "OFFSET(mem_section.section_mem_map)": "0",
            "NUMBER(SECTION_SIZE_BITS)": str(self.section_bits),
            "NUMBER(MAX_PHYSMEM_BITS)": str(physmem_bits),
            "NUMBER(phys_base)": str(self.phys_base),
            "NUMBER(pgtable_l5_enabled)": str(int(self.levels == 5)),
            "KERNELOFFSET": f"{self.text - START_KERNEL_MAP - 0x1000000:x}",
            "NUMBER(KERNEL_IMAGE_SIZE)": str(1 << 30),
            "NUMBER(sme_mask)": str(self.sme_mask),
            "CRASHTIME": "1700000000",
        }
        if "vmemmap" in generation.keys:
            keys["SYMBOL(vmemmap)"] = f"{self.vmemmap:x}"
        return keys

    UTSNAME = ("Linux", "synthetic", "", "#1 SMP", "x86_64", "(none)")

    def _names(self) -> None:
        offset = 0
        if "uts" in self.generation.keys:
            self.keys["OFFSET(uts_namespace.name)"] = "0"
        else:
            offset = 4
        at = self._image_place(offset + 6 * 65)
        self.utsname = tuple(
            (name or self.keys["OSRELEASE"]).encode() for name in self.UTSNAME
        )
        raw = b"".join(name.ljust(65, b"\0") for name in self.utsname)
        self.write(self.image + at + offset, raw)
        self.keys["SYMBOL(init_uts_ns)"] = f"{self.text + at:x}"

    def _variable(self, name: str, data: bytes) -> None:
        """A static variable that VMCOREINFO tells."""
        at = self._image_place(len(data))
        self.write(self.image + at, data)
        self.log_places[name] = self.image + at
        self.keys[f"SYMBOL({name})"] = f"{self.text + at:x}"

    def _ring(self, log: list[LogLine], count_bits: int, size_bits: int) -> None:
        """The lockless ring of 5.10 and later."""
        self.keys.update(RING_KEYS)
        count, room = 1 << count_bits, 1 << size_bits
        # What may end right at the end of the buffer was put at its start by
        # older kernels.
        fits = 1 if "compound_info" in self.generation.keys else 0
        descs = bytearray(24 * count)
        infos = bytearray(88 * count)
        text = bytearray(room)
        head_id = count - 1
        lpos = 0
        for sequence, line in enumerate(log):
            head_id = count + sequence
            data = line.data
            index = head_id % count
            infos[88 * index : 88 * index + 24] = struct.pack(
                "<QQHxxI", sequence, line.timestamp_ns, len(data), line.caller_id
            )
            begin = end = NO_LPOS
            if data:
                size = -(-(8 + len(data)) // 8) * 8
                begin = lpos
                if (lpos + size - fits) // room != lpos // room:
                    # Does not fit in front of the end: starts at the beginning.
                    lpos = (lpos + size) // room * room
                at = lpos % room
                text[at : at + 8 + len(data)] = struct.pack("<Q", head_id) + data
                end = lpos = lpos + size
            # State 2, finalized, in the top bits.
            desc = struct.pack("<QQQ", 2 << 62 | head_id, begin, end)
            descs[24 * index : 24 * index + 24] = desc
        tail_id = max(head_id - count + 1, count)
        self.log_places = {}
        for name, array in (("descs", descs), ("infos", infos), ("text", text)):
            self.log_places[name] = self.alloc(len(array))
            self.write(self.log_places[name], array)
        ring_at = self._image_place(96)
        ring = struct.pack(
            "<IxxxxQQQQQIxxxxQQQQ",
            count_bits,
            self.page_offset + self.log_places["descs"],
            self.page_offset + self.log_places["infos"],
            head_id,
            tail_id if log else head_id,
            0,
            size_bits,
            self.page_offset + self.log_places["text"],
            lpos,
            0,
            0,
        )
        self.log_places["ring"] = self.image + ring_at
        self.write(self.image + ring_at, ring)
        self.keys["SYMBOL(printk_rb_static)"] = f"{self.text + ring_at:x}"
        self._variable("prb", struct.pack("<Q", self.text + ring_at))
        self._variable("clear_seq", bytes(24))
        if "uts" in self.generation.keys:
            self.keys["SIZE(latched_seq)"] = "24"
            self.keys["OFFSET(latched_seq.val)"] = "8"

    def clear_log(self, sequence: int, latch: int = 0) -> None:
        """As if the log had been cleared before the record of that number."""
        if "clear_idx" in self.log_places:
            index = struct.pack("<I", self.log_indexes[sequence])
            self.write(self.log_places["clear_idx"], index)
            return
        words = [sequence, 0, 0]
        if "SIZE(latched_seq)" in self.keys:
            # Whoever reads the other value is wrong.
            words = [latch, 1 << 40, 1 << 40]
            words[1 + latch % 2] = sequence
        self.write(self.log_places["clear_seq"], struct.pack("<QQQ", *words))

    def _log_buf(self, log: list[LogLine], size: int, caller: bool) -> None:
        """Records one after the other, as before 5.10."""
        header = 20 if caller else 16
        buffer = bytearray(size)
        at = 0
        self.log_indexes = []
        for line in log:
            data = line.data
            length = -(-(header + len(data)) // 4) * 4
            if at + length + header > size:
                # A header of length 0: go on at the start.
                buffer[at : at + header] = bytes(header)
                at = 0
            self.log_indexes.append(at)
            record = struct.pack(
                "<QHHHBBI",
                *(line.timestamp_ns, length, len(data), 0, 0, 0, line.caller_id),
            )
            buffer[at : at + header + len(data)] = record[:header] + data
            at += length
        self.log_places = {"text": self.alloc(size)}
        self.write(self.log_places["text"], bytes(buffer))
        variables = {
            "log_buf": self.page_offset + self.log_places["text"],
            "log_buf_len": size,
            "log_first_idx": 0,
            "log_next_idx": at,
            "clear_idx": 0,
        }
        for name, value in variables.items():
            self._variable(name, struct.pack("<Q", value))
        self.keys.update(
            {
                "SIZE(printk_log)": str(header),
                "OFFSET(printk_log.ts_nsec)": "0",
                "OFFSET(printk_log.len)": "8",
                "OFFSET(printk_log.text_len)": "10",
            }
        )
        if caller:
            self.keys["OFFSET(printk_log.caller_id)"] = "16"

    def plain_log(self, written: bytes, size: int = 1024) -> None:
        """Make the log what it was before 3.5: the last bytes that were written."""
        for key in [key for key in self.keys if "log_" in key or "clear_" in key]:
            del self.keys[key]
        buffer = bytearray(size)
        for start in range(0, len(written), size):
            part = written[start : start + size]
            buffer[: len(part)] = part
        self.log_places = {"text": self.alloc(size)}
        self.write(self.log_places["text"], bytes(buffer))
        pointer = self.page_offset + self.log_places["text"]
        self._variable("log_buf", struct.pack("<Q", pointer))
        self._variable("log_buf_len", struct.pack("<I", size))
        self._variable("log_end", struct.pack("<I", len(written)))

    # What dumps are made of

    def notes(self, keys: Mapping[str, str] | None = None, cpus: int = 2) -> bytes:
        """PRSTATUS of each CPU and VMCOREINFO."""
        text = vmcoreinfo_text(self.keys if keys is None else keys)
        parts = [prstatus(pid) for pid in range(1, cpus + 1)]
        return b"".join(parts) + note(b"VMCOREINFO", 0, text)

    def loads(self) -> list[Load]:
        """The kernel image, and then all memory, which has it again."""
        self._write_struct_pages()
        image = self.read(self.image, 2 * MIB)
        return [
            Load(self.image, image, vaddr=self.text),
            *(
                Load(start, memory, vaddr=self.page_offset + start)
                for start, memory in self.ram
            ),
        ]


# Where a record without text is said to lie.
NO_LPOS = 3
RING_KEYS = {
    "SIZE(printk_ringbuffer)": "88",
    "OFFSET(printk_ringbuffer.desc_ring)": "0",
    "OFFSET(printk_ringbuffer.text_data_ring)": "48",
    "OFFSET(printk_ringbuffer.fail)": "80",
    "SIZE(prb_desc_ring)": "48",
    "OFFSET(prb_desc_ring.count_bits)": "0",
    "OFFSET(prb_desc_ring.descs)": "8",
    "OFFSET(prb_desc_ring.infos)": "16",
    "OFFSET(prb_desc_ring.head_id)": "24",
    "OFFSET(prb_desc_ring.tail_id)": "32",
    "SIZE(prb_desc)": "24",
    "OFFSET(prb_desc.state_var)": "0",
    "OFFSET(prb_desc.text_blk_lpos)": "8",
    "SIZE(prb_data_blk_lpos)": "16",
    "OFFSET(prb_data_blk_lpos.begin)": "0",
    "OFFSET(prb_data_blk_lpos.next)": "8",
    "SIZE(printk_info)": "88",
    "OFFSET(printk_info.seq)": "0",
    "OFFSET(printk_info.ts_nsec)": "8",
    "OFFSET(printk_info.text_len)": "16",
    "OFFSET(printk_info.caller_id)": "20",
    "SIZE(prb_data_ring)": "32",
    "OFFSET(prb_data_ring.size_bits)": "0",
    "OFFSET(prb_data_ring.data)": "8",
    "OFFSET(prb_data_ring.head_lpos)": "16",
    "OFFSET(prb_data_ring.tail_lpos)": "24",
    "SIZE(atomic_long_t)": "8",
    "OFFSET(atomic_long_t.counter)": "0",
}


# --- ELF --------------------------------------------------------------------------

PT_LOAD, PT_NOTE = 1, 4
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")


def write_elf(
    path: str | os.PathLike[str],
    loads: Sequence[Load],
    notes: bytes = b"",
    *,
    note_place: str = "first",
    qemu: bool = False,
    align: int = PAGE,
    shift: int = 0,
    machine: int = 62,
) -> None:
    """
    An ELF64 core.

    :param note_place: "first" or "last" of the program headers; "none" for none.
    :param qemu: section headers in front of the program headers, and memory right
        behind the notes.
    :param align: data of segments start at multiples of this many bytes...
    :param shift: ... and so many bytes on.
    """
    phnum = len(loads) + (note_place != "none")
    many = phnum >= 0xFFFF
    shnum = 1 if many or qemu else 0
    if qemu:
        align = 1
    shoff = 64 if shnum else 0
    phoff = 64 + 64 * shnum
    notes_at = phoff + 56 * phnum
    if not qemu:
        notes_at = -(-notes_at // 4) * 4
    offset = notes_at + len(notes)
    segments = []
    places = []
    for load in loads:
        offset = -(-offset // align) * align + shift
        places.append(offset)
        size = max(len(load.data), load.room)
        memsz = size if load.memsz is None else load.memsz
        segments.append(
            _PHDR.pack(PT_LOAD, 7, offset, load.vaddr, load.paddr, size, memsz, 0)
        )
        offset += size
    header = _PHDR.pack(PT_NOTE, 0, notes_at, 0, 0, len(notes), len(notes), 0)
    if note_place != "none":
        segments.insert(0 if note_place == "first" else len(segments), header)
    ident = b"\x7fELF\2\1\1".ljust(16, b"\0")
    with open(path, "wb") as file:
        file.write(
            _EHDR.pack(
                ident,
                4,
                machine,
                1,
                0,
                phoff,
                shoff,
                0,
                64,
                56,
                0xFFFF if many else phnum,
                64,
                shnum,
                0,
            )
        )
        if shnum:
            # Section 0: sh_info has the number of program headers.
            info = phnum if many else 0
            file.write(struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, info, 0, 0))
        file.write(b"".join(segments))
        if note_place != "none":
            file.seek(notes_at)
            file.write(notes)
        for place, load in zip(places, loads):
            file.seek(place)
            file.write(np.frombuffer(load.data, np.uint8).data)
        file.truncate(max(offset, file.tell()))


# --- kdump-compressed -------------------------------------------------------------

_KDUMP_HEADER = struct.Struct("<8si390s6xqqIiiIIIIIIi")
_KDUMP_FLAGS = {"raw": 0, "zlib": 1, "lzo": 2, "snappy": 4, "zstd": 0x20}


def compress(codec: str, page: bytes) -> bytes:
    """One page, by the libraries that makedumpfile's own are the originals of."""
    if codec == "zlib":
        return zlib.compress(page, 1)
    if codec == "lzo":
        import lzo

        lzo_page: bytes = lzo.compress(page, 1, False)
        return lzo_page
    if codec == "snappy":
        import cramjam

        return bytes(cramjam.snappy.compress_raw(page))
    if codec == "zstd":
        import zstandard

        return zstandard.ZstdCompressor(level=1).compress(page)
    return page


class Kdump(NamedTuple):
    """Where things are in a file that :func:`write_kdump` wrote."""

    bitmaps: int
    bitmap_size: int
    """Of one."""
    descriptors: int
    data: int
    pfns: list[int]
    """Page frames that have a descriptor, in order."""


def write_kdump(
    path: str | os.PathLike[str],
    pages: Mapping[int, bytes],
    notes: bytes = b"",
    *,
    codec: str = "zlib",
    version: int = 6,
    dump_level: int = 1,
    missing: Iterable[int] = (),
    excluded: Iterable[int] = (),
    block_size: int = PAGE,
    utsname: Sequence[bytes] = (b"Linux", b"", b"", b"", b"x86_64", b""),
    timestamp: int = 1700000000,
    bare_vmcoreinfo: bytes = b"",
) -> Kdump:
    """
    A kdump-compressed file by makedumpfile's rules.

    :param pages: data by page frame. None of *excluded* is among them.
    :param missing: page frames whose descriptors have offset 0; the status says
        that the dump is incomplete.
    :param bare_vmcoreinfo: instead of *notes*, as version 3 has it.
    """
    missing = set(missing)
    excluded = set(excluded)
    dumped = sorted(set(pages) | missing)
    exists = sorted(set(dumped) | excluded)
    max_mapnr = exists[-1] + 1
    bitmap_size = -(-max_mapnr // (8 * block_size)) * block_size
    has_notes = version >= 4 and notes
    blob = notes if has_notes else bare_vmcoreinfo if version >= 3 else b""
    sub_size = 104
    sub_blocks = -(-(sub_size + len(blob)) // block_size)
    bitmaps = (1 + sub_blocks) * block_size
    descriptors = bitmaps + 2 * bitmap_size
    first_data = descriptors + 24 * len(dumped)

    info = notes.find(b"OSRELEASE=") if has_notes else -1
    if info >= 0:
        info_size = struct.unpack_from("<I", notes, info - 12 - 12 + 4)[0]
    else:
        info, info_size = 0, len(bare_vmcoreinfo)
    in_file = block_size + sub_size
    fields = [
        (1, "<i", 8, dump_level),
        (2, "<i", 12, 0),
        (3, "<q", 32, in_file + info if info_size else 0),
        (3, "<Q", 40, info_size),
        (4, "<q", 48, in_file if has_notes else 0),
        (4, "<Q", 56, len(notes) if has_notes else 0),
        (6, "<Q", 96, max_mapnr),
    ]
    sub = bytearray(sub_size)
    for since, form, at, value in fields:
        if version >= since:
            struct.pack_into(form, sub, at, value)
        else:
            # What an older writer did not know of is not zero but anything.
            sub[at : at + struct.calcsize(form)] = b"\xa5" * struct.calcsize(form)
    status = _KDUMP_FLAGS[codec] | (0x8 if missing else 0)
    header = _KDUMP_HEADER.pack(
        b"KDUMP   ",
        version,
        b"".join(name.ljust(65, b"\0") for name in utsname),
        timestamp,
        0,
        status,
        block_size,
        sub_blocks,
        2 * bitmap_size // block_size,
        min(max_mapnr, 0xFFFFFFFF),
        0,
        0,
        0,
        0,
        2,
    )

    def bitmap(pfns: Iterable[int]) -> bytes:
        bits = np.zeros(bitmap_size * 8, np.uint8)
        bits[list(pfns)] = 1
        return np.packbits(bits, bitorder="little").tobytes()

    data = bytearray()
    rows = []
    if dump_level & 1:
        # Zero pages share the first page of data.
        data += bytes(block_size)
    for pfn in dumped:
        if pfn in missing:
            rows.append(struct.pack("<qIIQ", 0, 0, 0, 0))
            continue
        page = pages[pfn]
        if dump_level & 1 and not any(page):
            rows.append(struct.pack("<qIIQ", first_data, block_size, 0, 0))
            continue
        packed = compress(codec, page)
        flags = _KDUMP_FLAGS[codec]
        if len(packed) >= len(page):
            packed, flags = page, 0
        rows.append(struct.pack("<qIIQ", first_data + len(data), len(packed), flags, 0))
        data += packed
    with open(path, "wb") as file:
        file.write(header)
        file.seek(block_size)
        file.write(sub + blob)
        file.seek(bitmaps)
        file.write(bitmap(exists) + bitmap(dumped))
        file.write(b"".join(rows) + data)
    return Kdump(bitmaps, bitmap_size, descriptors, first_data, dumped)


class KdumpFile(NamedTuple):
    """What an independent reader finds in a kdump-compressed file."""

    status: int
    dump_level: int
    nr_cpus: int
    timestamp: int
    utsname: tuple[bytes, ...]
    vmcoreinfo: bytes
    exists: set[int]
    pages: dict[int, bytes]
    """Data by page frame."""
    places: dict[int, tuple[int, int, int]]
    """Offset, size and flags by page frame."""


def read_kdump(path: str | os.PathLike[str]) -> KdumpFile:
    """Read a whole file of version 6, the plain way."""
    with open(path, "rb") as file:
        raw = file.read()
    fields = _KDUMP_HEADER.unpack_from(raw)
    signature, version, names, timestamp, _, status, block, sub_blocks, bitmaps = (
        fields[:9]
    )
    assert (signature, version) == (b"KDUMP   ", 6)
    (dump_level,) = struct.unpack_from("<i", raw, block + 8)
    info_at, info_size = struct.unpack_from("<qQ", raw, block + 32)
    (max_mapnr,) = struct.unpack_from("<Q", raw, block + 96)
    at = (1 + sub_blocks) * block
    size = bitmaps * block // 2

    def bitmap(start: int) -> list[int]:
        bits = np.unpackbits(
            np.frombuffer(raw, np.uint8, size, start), bitorder="little"
        )
        pfns: list[int] = np.flatnonzero(bits).tolist()
        assert not pfns or pfns[-1] < max_mapnr
        return pfns

    pages = {}
    places = {}
    for i, pfn in enumerate(bitmap(at + size)):
        place = struct.unpack_from("<qII", raw, at + 2 * size + 24 * i)
        offset, length, flags = place
        places[pfn] = place
        if offset:
            assert 0 < length <= block and offset + length <= len(raw)
            pages[pfn] = decompress(flags, raw[offset : offset + length])
            assert len(pages[pfn]) == block
    return KdumpFile(
        status,
        dump_level,
        fields[-1],
        timestamp,
        tuple(names[i : i + 65].rstrip(b"\0") for i in range(0, 390, 65)),
        raw[info_at : info_at + info_size],
        set(bitmap(at)),
        pages,
        places,
    )


def decompress(flags: int, data: bytes) -> bytes:
    """One page, by the descriptor's flags."""
    page: bytes
    if flags == 0:
        page = data
    elif flags == _KDUMP_FLAGS["zlib"]:
        page = zlib.decompress(data)
    elif flags == _KDUMP_FLAGS["lzo"]:
        import lzo

        page = lzo.decompress(data, False, PAGE)
    elif flags == _KDUMP_FLAGS["snappy"]:
        import cramjam

        page = bytes(cramjam.snappy.decompress_raw(data))
    elif flags == _KDUMP_FLAGS["zstd"]:
        import zstandard

        page = zstandard.ZstdDecompressor().decompress(data)
    else:
        raise ValueError(f"flags {flags:#x}")
    return page
