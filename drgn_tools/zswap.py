# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Zswap
-----

Pages that the kernel compressed instead of writing them to a swap area: where they are
looked up, and what is in zbud, z3fold and zsmalloc pools.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Union

from drgn import FaultError, Object, Program, cast

from drgn_tools.decompress import decompress
from drgn_tools.older_drgn import read_c_string
from drgn_tools.printing import one_line
from drgn_tools.xarrays import DamagedTree, Memory, Xarrays

_PAGE_SIZE = 4096
# Slots for which there is one tree, since 6.8 (:linux:`mm/zswap.c`).
_TREE_SHIFT = 14
# A red-black tree that is higher would have more nodes than memory has bytes.
_MAX_HEIGHT = 128
# swp_entry_t: below it is the offset, above the area's number.
_OFFSET = (1 << 58) - 1
# z3fold's chunks, and what its handles say (:linux:`mm/z3fold.c`).
_CHUNK_SHIFT = 6
_HEADLESS = 1
_BUDDY_BITS = 2
_FIRST, _MIDDLE, _LAST = 1, 2, 3

#: A page, or why it cannot be read.
Result = Union[bytes, str]


class ZswapError(LookupError):
    """What zswap has cannot be read; the message says why."""


class _Trees(NamedTuple):
    # Where the entries of one swap area are looked up.
    address: int
    size: int
    # None if it is one tree for all slots.
    number: int | None


class _Stored(NamedTuple):
    # A page that an allocator has.
    place: int
    pool: Object
    handle: int
    length: int
    value: int


class Zswap:
    """Zswap of a kernel, which may have none."""

    def __init__(self, prog: Program, memory: Memory, xarrays: Xarrays) -> None:
        self._prog = prog
        self._memory = memory
        self._xarrays = xarrays
        self._trees: dict[int, _Trees | None] = {}
        try:
            self._roots: Object | None = prog["zswap_trees"]
        except LookupError:
            self._roots = None
            return
        # Linux kernel commit 796c2c23e14e ("zswap: replace RB tree with xarray") (in
        # v6.9).
        self._is_xarray = self._roots.type_.type.type.tag == "xarray"
        entry = prog.type("struct zswap_entry")
        # An entry has all of it since 6.4.
        self._has_value = entry.has_member("swpentry")
        if not self._is_xarray:
            key = entry.member("swpentry" if self._has_value else "offset")
            node = prog.type("struct rb_node")
            self._node: int = entry.member("rbnode").offset
            self._key = key.offset - self._node
            self._left = node.member("rb_left").offset
            self._right = node.member("rb_right").offset
            tree = self._roots.type_.type.type
            self._root = tree.member("rbroot").offset
            self._root += prog.type("struct rb_root").member("rb_node").offset
        # Until 6.4, what is stored begins with it.
        self._has_header = _has_type(prog, "struct zswap_header")

    def find(self, area: int, offset: int) -> int:
        """
        Find what zswap has of a slot.

        :param area: number of the swap area.
        :return: address of the ``struct zswap_entry``; 0 if it has nothing.
        :raises LookupError: if that cannot be told.
        :raises FaultError: if it is not in the dump.
        """
        if self._roots is None:
            return 0
        if area not in self._trees:
            self._trees[area] = self._tree(self._roots, area)
        tree = self._trees[area]
        if tree is None:
            return 0
        address = tree.address
        if tree.number is not None:
            if offset >> _TREE_SHIFT >= tree.number:
                return 0
            address += (offset >> _TREE_SHIFT) * tree.size
        if not self._is_xarray:
            return self._find_in_rbtree(address, offset)
        entry = self._xarrays.load(address, offset)
        if entry & 3:
            raise DamagedTree("zswap's tree is damaged")
        return entry

    def _tree(self, roots: Object, area: int) -> _Trees | None:
        pointer = roots[area].value_()
        if not pointer:
            return None
        size = roots.type_.type.type.size or 0
        try:
            # Linux kernel commit 44c7c734a513 ("mm/zswap: split zswap rb-tree") (in
            # v6.8).
            count = self._prog["nr_zswap_trees"][area].value_()
        except LookupError:
            count = None
        return _Trees(pointer, size, count)

    def _find_in_rbtree(self, tree: int, offset: int) -> int:
        memory = self._memory
        node: int = memory.word(tree + self._root)
        for _ in range(_MAX_HEIGHT):
            if not node:
                return 0
            found = memory.word(node + self._key) & _OFFSET
            if found == offset:
                return node - self._node
            node = memory.word(node + (self._left if offset < found else self._right))
        raise DamagedTree("zswap's tree is damaged")

    def read_many(self, items: Sequence[tuple[int, int]]) -> list[Result]:
        """
        Decompress pages.

        :param items: of each what :meth:`find` found, and its swp_entry_t.
        """
        results: list[Result] = [""] * len(items)
        stored: dict[int, list[_Stored]] = {}
        for number, (address, value) in enumerate(items):
            try:
                entry = Object(self._prog, "struct zswap_entry", address=address)
                found = self._look(entry.read_(), value, number)
            except (FaultError, LookupError, ValueError) as error:
                results[number] = one_line(error)
                continue
            if isinstance(found, bytes):
                results[number] = found
            else:
                stored.setdefault(found.pool.value_(), []).append(found)
        for group in stored.values():
            for one, data in zip(group, self._stored(group)):
                results[one.place] = self._page(one, data)
        return results

    def _look(self, entry: Object, value: int, number: int) -> bytes | _Stored:
        if self._has_value and entry.swpentry.val.value_() != value:
            raise ZswapError("zswap has another page there: damaged")
        length = entry.length.value_()
        if not length and entry.type_.has_member("value"):
            # One word all over, until 6.11.
            word: int = entry.value.value_()
            return word.to_bytes(8, "little") * (_PAGE_SIZE // 8)
        if not 0 < length <= _PAGE_SIZE:
            raise ZswapError(f"zswap has {length} bytes of a page: damaged")
        if not entry.pool:
            raise ZswapError("zswap has no pool for a page: damaged")
        return _Stored(number, entry.pool, entry.handle.value_(), length, value)

    def _page(self, one: _Stored, data: Result) -> Result:
        # Stored as it is: since 6.18.
        if isinstance(data, str) or one.length == _PAGE_SIZE:
            return data
        try:
            name = one.pool.tfm_name.string_().decode("ascii", "replace")
            return decompress(name, data, _PAGE_SIZE)
        except (FaultError, ValueError) as error:
            return one_line(error)

    def _stored(self, group: list[_Stored]) -> list[Result]:
        # What the allocator has of entries of one pool.
        try:
            return self._from_pool(group[0].pool, group)
        except (FaultError, LookupError, ValueError) as error:
            return [one_line(error)] * len(group)

    def _from_pool(self, pool: Object, group: list[_Stored]) -> list[Result]:
        members = pool.type_.type
        if members.has_member("zs_pool"):
            # Since 6.18, which has no zpool.
            return _from_zsmalloc(pool.zs_pool, group, 0)
        # Several from 6.6 to 6.9, all of a kind: any of them can tell.
        zpool = (pool.zpool if members.has_member("zpool") else pool.zpools[0]).read_()
        head = 0
        if self._has_header and zpool.evictable:
            head = 8
        raw = read_c_string(self._prog, zpool.driver.type.value_(), 32)
        name = raw.decode("ascii", "replace")
        if name == "zsmalloc":
            return _from_zsmalloc(cast("struct zs_pool *", zpool.pool), group, head)
        if name not in _ADDRESSES:
            raise ZswapError(f"zswap keeps pages in {name}, which is unknown")
        results: list[Result] = []
        for one in group:
            try:
                address = _ADDRESSES[name](self._prog, one.handle)
                if address % _PAGE_SIZE + head + one.length > _PAGE_SIZE:
                    raise ZswapError(f"{name}'s handle {one.handle:#x} is damaged")
                data = self._prog.read(address, head + one.length)
                results.append(_checked(data, head, one))
            except (FaultError, LookupError) as error:
                results.append(one_line(error))
        return results


def _checked(data: bytes, head: int, one: _Stored) -> Result:
    # With a head, the swp_entry_t is first.
    if head and int.from_bytes(data[:head], "little") != one.value:
        return "zswap has stored another page there: damaged"
    return data[head:]


def _from_zsmalloc(pool: Object, group: list[_Stored], head: int) -> list[Result]:
    import numpy as np

    from drgn_tools.zsmalloc import zs_read_many, zs_why

    handles = np.array([one.handle for one in group], np.uint64)
    sizes = np.array([head + one.length for one in group], np.int64)
    contents, reasons = zs_read_many(pool, handles, sizes)
    return [
        zs_why(one.handle, int(why)) if data is None else _checked(data, head, one)
        for one, data, why in zip(group, contents, reasons)
    ]


def _has_type(prog: Program, name: str) -> bool:
    try:
        prog.type(name)
    except LookupError:
        return False
    return True


def _zbud_address(prog: Program, handle: int) -> int:
    return handle


def _z3fold_address(prog: Program, handle: int) -> int:
    if handle & _HEADLESS:
        return handle & -_PAGE_SIZE
    # A slot, with a page and which of its three buddies.
    slot: int = prog.read_u64(handle)
    page = slot & -_PAGE_SIZE
    header = Object(prog, "struct z3fold_header", address=page)
    buddy = (slot - header.first_num.value_()) & ((1 << _BUDDY_BITS) - 1)
    if buddy == _FIRST:
        chunk = 1 << _CHUNK_SHIFT
        return page + -(-(header.type_.size or 0) // chunk) * chunk
    if buddy == _MIDDLE:
        middle: int = header.start_middle.value_()
        return page + (middle << _CHUNK_SHIFT)
    if buddy == _LAST:
        chunks = (slot & _PAGE_SIZE - 1) >> _BUDDY_BITS
        return page + _PAGE_SIZE - (chunks << _CHUNK_SHIFT)
    raise ZswapError(f"z3fold's handle {handle:#x} is damaged")


# What makes of a handle the address of what is stored.
_ADDRESSES = {"zbud": _zbud_address, "z3fold": _z3fold_address}
