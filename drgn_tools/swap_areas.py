# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Where a page is that is not mapped
----------------------------------

From an entry of a page table or of a file's pages that is not present, in the kernel's
own order: swap cache, zero map, zswap, the swap area's device. And page frames, as far
as a dump has them.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

from drgn import FaultError, Object, Program, ProgramFlags, container_of
from drgn.helpers.linux.mm import compound_nr, page_to_pfn, pfn_to_page

from drgn_tools.mappings import Mapping
from drgn_tools.older_drgn import read_c_string
from drgn_tools.page_tables import levels
from drgn_tools.printing import one_line
from drgn_tools.xarrays import Memory, Xarrays
from drgn_tools.zswap import Zswap

if TYPE_CHECKING:
    from drgn_tools.zram import ZramPage

PAGE_SIZE = 4096
# Pages read at once.
_BATCH = 64
# swp_entry_t: an area's number above an offset (:linux:`include/linux/swapops.h`).
_TYPE_SHIFT = 58


class _Damaged(LookupError):
    # What leads to a page cannot be; the message says what.
    pass


#: Returns of each item the page, or None; and why, or why not to trust it.
Store = Callable[[Sequence[Any]], "list[tuple[bytes | None, str]]"]


class Place(NamedTuple):
    """Where a page is, before it is read."""

    kind: str
    """See :attr:`drgn_tools.swap.SwapPage.kind`."""
    where: str = ""
    slot: int | None = None
    note: str = ""
    pfn: int | None = None
    """Its page frame, if it is in memory."""
    store: Store | None = None
    """What has it, if it is not a page frame."""
    item: Any = None
    """What *store* has it under."""
    otherwise: Callable[[], Place] | None = None
    """Returns where else it is, should its page frame not be in the dump."""


# --- page frames


class Frames:
    """Page frames of a machine, as far as the dump has them."""

    def __init__(self, prog: Program) -> None:
        self._prog = prog
        # What is mapped where a task has only read.
        self._zero = _number(prog, "zero_page_pfn")
        if self._zero is None:
            # Until 7.1.
            self._zero = _number(prog, "zero_pfn")
        self._runs = _runs_with_data(prog)

    def read(self, pfn: int, count: int) -> Iterator[tuple[bytes | None, str]]:
        """Of each page frame what is in it, or None and why."""
        for first in range(pfn, pfn + count, _BATCH):
            size = min(_BATCH, pfn + count - first)
            try:
                data = self._read(first, size)
            except FaultError:
                for number in range(first, first + size):
                    yield self._read_one(number)
                continue
            for at in range(size):
                page = data[at * PAGE_SIZE : (at + 1) * PAGE_SIZE]
                yield self._checked(first + at, page)

    def _read(self, pfn: int, count: int) -> bytes:
        size = count * PAGE_SIZE
        data: bytes = self._prog.read(pfn * PAGE_SIZE, size, physical=True)
        return data

    def _read_one(self, pfn: int) -> tuple[bytes | None, str]:
        if pfn == self._zero:
            return bytes(PAGE_SIZE), ""
        try:
            return self._checked(pfn, self._read(pfn, 1))
        except FaultError:
            return None, f"page frame {pfn:#x} is not in the dump"

    def _checked(self, pfn: int, page: bytes) -> tuple[bytes | None, str]:
        # drgn gives zeros for what an ELF core has no data of.
        if self._runs is None or pfn == self._zero or page.count(0) < PAGE_SIZE:
            return page, ""
        at = bisect.bisect_right(self._runs, (pfn, 1 << 64)) - 1
        if at < 0 or pfn >= self._runs[at][1]:
            return None, f"page frame {pfn:#x} is not in the dump"
        # Where few are left out between others, an ELF core has zeros.
        return None, f"page frame {pfn:#x} is left out of the dump, or was all zeros"


def _number(prog: Program, name: str) -> int | None:
    try:
        return int(prog.variable(name).value_())
    except (LookupError, FaultError):
        return None


def _runs_with_data(prog: Program) -> list[tuple[int, int]] | None:
    # Page frames that a filtered ELF core has data of; None for all other dumps.
    path = getattr(prog, "core_dump_path", None)
    if path is None or prog.flags & ProgramFlags.IS_LIVE:
        return None
    from drgn_tools.errors import DumpError
    from drgn_tools.vmcore import open_vmcore

    try:
        with open_vmcore(str(path)) as vmcore:
            if not vmcore.loads or vmcore.data_runs == vmcore.ram_runs:
                return None
            return [(run.pfn, run.end_pfn) for run in vmcore.data_runs]
    except DumpError:
        # drgn has opened it: what that reads is all there is to go by.
        return None


# --- entries that are no swap entries

_PRIVATE = ("device private", "device private")
_EXCLUSIVE = ("device exclusive", "device exclusive")
# What swap types beyond the areas', poison and migration are, by how many there are
# (:linux:`include/linux/swap.h`). First until 5.18. Then came the marker and, for three
# releases, the error; and in 6.15 one of the two for exclusive devices went.
_OLD_TYPES: dict[int, tuple[str, ...]] = {
    0: (),
    2: _PRIVATE,
    4: (*_PRIVATE, *_EXCLUSIVE),
}
_TYPES: dict[int, tuple[str, ...]] = {
    0: (),
    1: ("marker",),
    2: ("marker", "swapin error"),
    4: (*_PRIVATE, "device exclusive", "marker"),
    5: (*_PRIVATE, *_EXCLUSIVE, "marker"),
    6: (*_PRIVATE, *_EXCLUSIVE, "marker", "swapin error"),
}
_ALL_TYPES = 32
# Bits of a marker's offset (:linux:`include/linux/swapops.h`).
_MARKS = ((1, "uffd-wp"), (2, "poisoned"), (4, "guard"))
_NOTES = {
    "hwpoison": "lost to an error of the hardware",
    "device private": "in the memory of a device",
}


def _has_function(prog: Program, name: str) -> bool:
    try:
        prog.function(name)
    except LookupError:
        return False
    return True


def _address_of(prog: Program, name: str) -> int | None:
    try:
        address: int | None = prog[name].address_
    except LookupError:
        return None
    return address


def _special_types(prog: Program, areas: int, flags: dict[str, int]) -> tuple[str, ...]:
    # Linux kernel commit 6c287605fd56 ("mm: remember exclusively mapped anonymous
    # pages with PG_anon_exclusive") (in v5.19) made the two for migration three.
    newer = "PG_anon_exclusive" in flags
    # CONFIG_MEMORY_FAILURE and CONFIG_MIGRATION.
    head: tuple[str, ...] = (
        ("hwpoison",) if _has_function(prog, "memory_failure") else ()
    )
    if _has_function(prog, "migrate_pages"):
        head += ("migration",) * (3 if newer else 2)
    rest = (_TYPES if newer else _OLD_TYPES).get(_ALL_TYPES - areas - len(head))
    # With other numbers, nothing can be said of any.
    return () if rest is None else head + rest


# --- swap areas

# si->flags and bytes of si->swap_map (:linux:`include/linux/swap.h`).
_SWP_USED = 1 << 0
_SWP_FS_OPS = 1 << 8
_SWAP_MAP_BAD = 0x3F
# Of a large folio: as a huge page has.
_MOST_PAGES = 512
# Slots for which the swap cache has one address_space.
_SPACE_SHIFT = 14
# Of a word of the swap table (:linux:`mm/swap_table.h`).
_TABLE_PFN_BITS = 40
_TABLE_ZERO = 1 << 59
_TABLE_BAD = (1 << 64) - 8


class _CachePage(NamedTuple):
    pfn: int
    # It has been read, if that is why it is there.
    uptodate: bool
    # What the slot has is the same.
    clean: bool


class Swap:
    """What a kernel has swapped out, and where."""

    def __init__(self, prog: Program) -> None:
        self.prog = prog
        self.memory = Memory(prog)
        self.frames = Frames(prog)
        self.xarrays = Xarrays(prog, self.memory)
        self.zswap = Zswap(prog, self.memory, self.xarrays)
        self._areas: dict[int, _Area] = {}
        self._max_areas = prog["swap_info"].type_.length or 0
        enumerators = prog.type("enum pageflags").enumerators or ()
        self._flags = {name: 1 << value for name, value in enumerators}
        self._special = _special_types(prog, self._max_areas, self._flags)
        # MAX_PHYSMEM_BITS. Above the page frame there are flags since 6.1.
        bits = 52 if levels(prog) == 5 else 46
        self._pfn_mask = (1 << (bits - 12)) - 1
        # Where folio->swap is as well, since 6.6.
        self._private = prog.type("struct page").member("private").offset
        # Linux kernel commit 7b230db3b8d3 ("mm: Introduce struct folio") (in v5.16).
        # Since then pages have lost some of the members.
        try:
            self._head = prog.type("struct folio *")
        except LookupError:
            self._head = prog.type("struct page *")
        self._shmem_aops = _address_of(prog, "shmem_aops")
        # Page frames of the machine.
        self.max_pfn = _number(prog, "max_pfn") or self._pfn_mask

    def place(self, type_: int, offset: int) -> Place:
        """Where the page of a swap entry, or of what looks like one, is."""
        try:
            if type_ < self._max_areas:
                return self._area(type_).place(offset)
            return self._special_place(type_, offset)
        except _ERRORS as error:
            return _unknown(error)

    def _special_place(self, type_: int, offset: int) -> Place:
        number = type_ - self._max_areas
        if number >= len(self._special):
            raise _Damaged(f"an entry of swap type {type_}, which is not known")
        kind = self._special[number]
        if kind in ("migration", "device exclusive"):
            return Place(kind, pfn=offset & self._pfn_mask)
        if kind == "swapin error":
            return Place("marker", note=kind)
        marks = [name for bit, name in _MARKS if offset & bit]
        return Place(kind, note=_NOTES.get(kind) or ", ".join(marks) or f"{offset:#x}")

    def file_places(
        self, mapping: Mapping, start: int, end: int
    ) -> Iterator[tuple[int, int, Place]]:
        """
        Where pages of a file, or of shared memory, are that the task does not map.

        :return: parts of a mapping: address, pages, and where they are.
        """
        while start < end:
            index = mapping.first + (start - mapping.start) // PAGE_SIZE
            pages = 1
            try:
                place, last = self._file_place(mapping, index)
                pages = last - index + 1
            except _ERRORS as error:
                place = _unknown(error)
            pages = min(pages, (end - start) // PAGE_SIZE)
            yield start, pages, place
            start += pages * PAGE_SIZE

    def _file_place(self, mapping: Mapping, index: int) -> tuple[Place, int]:
        # Of a page, and to which page it is the same if it is nowhere.
        space = mapping.pages
        assert space is not None
        entry, first, last = self.xarrays.find(space.i_pages.address_, index)
        shared = self._shmem_aops and space.a_ops.value_() == self._shmem_aops
        if entry & 1 and shared:
            # A swp_entry_t, of large folios for several pages.
            value = (entry >> 1) + index - first
            offset = value & ((1 << _TYPE_SHIFT) - 1)
            return self.place(value >> _TYPE_SHIFT, offset), index
        if not entry and shared:
            return Place("untouched", note="it was never touched"), last
        if not entry or entry & 3:
            # A value is for the working set.
            return Place("file", note="it is only in the file"), last
        pfn = self.page(entry)[1]
        head = Object(self.prog, self._head, entry)
        number = index - head.index.value_()
        if head.mapping.value_() != space.value_() or not self._is_among(number, entry):
            raise _Damaged("the page in the page cache is of another place")
        return Place("page cache", pfn=pfn + number), index

    def read_zswap(
        self, items: Sequence[tuple[int, int]]
    ) -> list[tuple[bytes | None, str]]:
        """What zswap has of them; a :data:`Store`."""
        return [
            (page, "") if isinstance(page, bytes) else (None, page)
            for page in self.zswap.read_many(items)
        ]

    def _area(self, number: int) -> _Area:
        area = self._areas.get(number)
        if area is None:
            area = self._areas[number] = _Area(self, number)
        return area

    def cache_page(self, pointer: int, area: int, offset: int) -> _CachePage:
        """
        The page in the swap cache.

        :param pointer: what is there: its ``struct page *``, or of a large folio the
            first one's.
        """
        entry = area << _TYPE_SHIFT | offset
        value = self.memory.word(pointer + self._private)
        flags, pfn = self.page(pointer)
        if not flags & self._flags["PG_swapcache"]:
            raise _Damaged("what is in the swap cache is no page of it")
        index = entry - value
        if not self._is_among(index, pointer):
            raise _Damaged("the page in the swap cache is of another slot")
        dirty = self._flags["PG_dirty"] | self._flags["PG_writeback"]
        uptodate = bool(flags & self._flags["PG_uptodate"])
        return _CachePage(pfn + index, uptodate, not flags & dirty)

    def page(self, pointer: int) -> tuple[int, int]:
        """Flags and page frame of a ``struct page *``."""
        pfn = page_to_pfn(Object(self.prog, "struct page *", pointer)).value_()
        made = pfn_to_page(self.prog, pfn & self._pfn_mask).value_()
        if made != pointer:
            raise _Damaged(f"{pointer:#x} is no struct page")
        # The first word, whatever its type is called.
        return self.memory.word(pointer), pfn

    def _is_among(self, index: int, pointer: int) -> bool:
        # Of a ``struct page *``, whether it is the first of so many pages.
        if not index:
            return True
        page = Object(self.prog, "struct page *", pointer)
        pages: int = compound_nr(page).value_()
        return 0 < index < min(pages, _MOST_PAGES)


# The last is of kernels whose structures are other than any that is known here.
_ERRORS = (FaultError, LookupError, ValueError, AttributeError)


def _unknown(error: Exception) -> Place:
    if isinstance(error, FaultError):
        return Place("excluded", note=f"what leads to it is not in the dump: {error}")
    if isinstance(error, AttributeError):
        return Place("damaged", note=f"this kernel's swap is not understood: {error}")
    return Place("damaged", note=one_line(error))


class _Area:
    # struct swap_info_struct.
    def __init__(self, swap: Swap, number: int) -> None:
        self._swap = swap
        self._number = number
        self._prog = prog = swap.prog
        if number >= prog["nr_swapfiles"].value_():
            raise _Damaged(f"there is no swap area {number}")
        pointer = prog["swap_info"][number].read_()
        if not pointer:
            raise _Damaged(f"there is no swap area {number}")
        self._info = info = pointer[0].read_()
        if not info.flags.value_() & _SWP_USED:
            raise _Damaged(f"swap area {number} is not in use")
        self._max = info.max.value_()
        self._name = self._read_name()
        # Gone when the table came to hold the count too (7.1).
        self._swap_map = self._address("swap_map")
        # From 6.12 to 7.1.
        self._zeromap = self._address("zeromap")
        self._cluster = prog.type("struct swap_cluster_info")
        self._table_length = 0
        # Since 6.18, in place of swapper_spaces.
        if self._cluster.has_member("table"):
            # SWAPFILE_CLUSTER: 512 with CONFIG_THP_SWAP, else 256.
            entries = prog.type("struct swap_table").member("entries").type
            self._table_length = entries.length or 256
            self._clusters = info.cluster_info.value_()

    def _address(self, member: str) -> int:
        if not self._info.type_.has_member(member):
            return 0
        return int(self._info.member_(member).value_())

    def _read_name(self) -> str:
        try:
            name = self._info.swap_file.f_path.dentry.d_name.name.value_()
            raw = read_c_string(self._prog, name, 255)
        except FaultError:
            return f"area {self._number}"
        return raw.decode("utf-8", "backslashreplace")

    def place(self, offset: int) -> Place:
        # The first slot is the header's.
        if not 0 < offset < self._max:
            raise _Damaged(f"{self._name} has no slot {offset}")
        memory = self._swap.memory
        if self._swap_map:
            count = memory.number(self._swap_map + offset, 1)
            if not count or count == _SWAP_MAP_BAD:
                raise self._free(offset)
        if self._table_length:
            pointer, zero = self._from_table(offset)
        else:
            pointer, zero = self._from_spaces(offset), False
        if self._zeromap:
            word = memory.word(self._zeromap + 8 * (offset // 64))
            zero = bool(word >> offset % 64 & 1)
        behind = functools.partial(self._behind, offset, zero)
        if not pointer:
            return behind()
        page = self._swap.cache_page(pointer, self._number, offset)
        if not page.uptodate:
            return behind()
        return Place(
            "swap cache",
            self._name,
            offset,
            pfn=page.pfn,
            otherwise=behind if page.clean else None,
        )

    def _free(self, offset: int) -> _Damaged:
        return _Damaged(f"slot {offset} of {self._name} is not in use")

    def _from_table(self, offset: int) -> tuple[int, bool]:
        # The struct page in the swap cache, if there is one; whether the slot is
        # marked as zero.
        memory = self._swap.memory
        index, at = divmod(offset, self._table_length)
        cluster = self._clusters + index * (self._cluster.size or 0)
        table = memory.word(cluster + self._cluster.member("table").offset)
        word = memory.word(table + 8 * at) if table else 0
        if not word:
            if self._swap_map:
                return 0, False
            raise self._free(offset)
        if word == _TABLE_BAD:
            raise self._free(offset)
        if word & 3 == 2:
            # A page frame. Pointers until 7.0.
            pfn = (word & ((1 << (_TABLE_PFN_BITS + 2)) - 1)) >> 2
            page = pfn_to_page(self._prog, pfn).value_()
            return page, self._is_zero(word, cluster, at)
        if word & 1:
            # Swapped out; the rest is for the working set.
            return 0, self._is_zero(word, cluster, at)
        return word, False

    def _is_zero(self, word: int, cluster: int, at: int) -> bool:
        # Here since 7.2, or where a word has no room for it in a bitmap.
        if self._zeromap or self._info.type_.has_member("zeromap"):
            return False
        if self._cluster.has_member("zero_bitmap"):
            memory = self._swap.memory
            place = cluster + self._cluster.member("zero_bitmap").offset
            bitmap = memory.word(place)
            return bool(bitmap and memory.word(bitmap + 8 * (at // 64)) >> at % 64 & 1)
        return bool(word & _TABLE_ZERO)

    @functools.cached_property
    def _spaces(self) -> tuple[int, int, int]:
        # The first of the swap cache's xarrays, how far they are apart, and how many
        # there are. Until 6.17.
        spaces = self._prog["swapper_spaces"][self._number].read_()
        count = self._prog["nr_swapper_spaces"][self._number].value_()
        if not spaces:
            return 0, 0, 0
        type_ = spaces.type_.type
        first = spaces.value_() + type_.member("i_pages").offset
        return first, type_.size or 0, count

    def _from_spaces(self, offset: int) -> int:
        # The struct page in the swap cache, if there is one.
        first, size, count = self._spaces
        index = offset >> _SPACE_SHIFT
        if index >= count:
            return 0
        # By the whole offset until 6.10, by its low bits since. The tree for those is
        # too low for any other, and one for whole offsets has nothing there.
        for key in dict.fromkeys((offset, offset & ((1 << _SPACE_SHIFT) - 1))):
            pointer = self._swap.xarrays.load(first + index * size, key)
            # A value is for the working set.
            if pointer and not pointer & 3:
                return pointer
        return 0

    def _behind(self, offset: int, zero: bool) -> Place:
        # Where it is if it is not in the swap cache.
        try:
            return self._stored(offset, zero)
        except _ERRORS as error:
            return _unknown(error)

    def _stored(self, offset: int, zero: bool) -> Place:
        where = (self._name, offset)
        if zero:
            return Place("zero", *where, store=_zeros)
        zswap = self._swap.zswap
        entry = zswap.find(self._number, offset)
        if entry:
            item = (entry, self._number << _TYPE_SHIFT | offset)
            return Place("zswap", *where, store=self._swap.read_zswap, item=item)
        if self._zram is None:
            return Place("device", *where, note="it is on a device that is not zram")
        return Place("zram", *where, store=self._read_zram, item=self._block(offset))

    def _read_zram(self, blocks: Sequence[int]) -> list[tuple[bytes | None, str]]:
        from drgn_tools.zram import zram_read_many

        results: list[tuple[bytes | None, str]] = []
        at = 0
        while at < len(blocks):
            stop = at + 1
            while stop < len(blocks) and blocks[stop] == blocks[stop - 1] + 1:
                stop += 1
            try:
                pages = zram_read_many(self._zram, blocks[at], stop - at)
                results += [_from_zram(page) for page in pages]
            except (FaultError, LookupError, ValueError) as error:
                results += [(None, one_line(error))] * (stop - at)
            at = stop
        return results

    @functools.cached_property
    def _zram(self) -> Object | None:
        from drgn_tools.zram import zram_of_disk

        bdev = self._info.bdev
        # Where SWP_FS_OPS is set, only the file system knows.
        if not bdev or self._info.flags.value_() & _SWP_FS_OPS:
            return None
        disk = bdev.bd_disk.read_()
        return zram_of_disk(disk) if disk else None

    @functools.cached_property
    def _extents(self) -> list[tuple[int, int, int]]:
        # struct swap_extent: of a device there is one.
        extents = []
        seen: set[int] = set()
        todo = [self._info.swap_extent_root.rb_node]
        while todo:
            node = todo.pop()
            if not node:
                continue
            if node.value_() in seen:
                raise _Damaged(f"the extents of {self._name} are damaged")
            seen.add(node.value_())
            extent = container_of(node, "struct swap_extent", "rb_node")[0].read_()
            extents.append(
                (
                    extent.start_page.value_(),
                    extent.nr_pages.value_(),
                    extent.start_block.value_(),
                )
            )
            todo += [extent.rb_node.rb_left, extent.rb_node.rb_right]
        return sorted(extents)

    def _block(self, offset: int) -> int:
        # Its place on the device, in pages.
        at = bisect.bisect_right(self._extents, (offset, 1 << 64, 0)) - 1
        if at >= 0:
            start, pages, block = self._extents[at]
            if offset - start < pages:
                return block + offset - start
        raise _Damaged(f"slot {offset} of {self._name} is in none of its extents")


def _zeros(items: Sequence[Any]) -> list[tuple[bytes | None, str]]:
    return [(bytes(PAGE_SIZE), "")] * len(items)


def _from_zram(page: ZramPage) -> tuple[bytes | None, str]:
    if page.data is None:
        return None, page.note or page.kind
    # The kernel would read zeros, but that is not what it swapped out.
    if page.kind == "empty":
        return None, "its slot is empty"
    return page.data, page.note
