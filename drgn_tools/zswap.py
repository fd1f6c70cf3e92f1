# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Zswap
-----

Pages that the kernel compressed instead of writing them to a swap area: where they are
looked up, and what is in zbud, z3fold and zsmalloc pools.
"""

from __future__ import annotations

from drgn import Object, Program, container_of

from drgn_tools.xarrays import Memory, Xarrays

_PAGE_SIZE = 4096
# Slots for which there is one tree, since 6.8
# (:linux:`include/linux/zswap.h`).
_TREE_SHIFT = 14
# A tree of more levels would have more nodes than memory has bytes.
_MAX_DEPTH = 128
# z3fold's chunks, and bits of a handle (:linux:`mm/z3fold.c`).
_CHUNK_SHIFT = 6
_HEADLESS = 1
_BUDDY_BITS = 2
_FIRST, _MIDDLE, _LAST = 1, 2, 3


class ZswapError(LookupError):
    """What zswap has cannot be read; the message says why."""


def zswap_find(
    prog: Program, memory: Memory, xarrays: Xarrays, area: int, offset: int
) -> Object | None:
    """
    Find what zswap has of a slot.

    :param area: number of the swap area.
    :return: ``struct zswap_entry *``; None if it has nothing.
    :raises ZswapError: if its tree is damaged.
    :raises FaultError: if memory of it is not in the dump.
    """
    try:
        trees = prog["zswap_trees"]
    except LookupError:
        return None
    if area >= (trees.type_.length or 0):
        return None
    tree = trees[area].read_()
    if not tree:
        return None
    # Linux kernel commit 44c7c734a513 ("mm/zswap: split zswap rb-tree") (in v6.8)
    # made one tree many.
    try:
        count = prog["nr_zswap_trees"][area].value_()
    except LookupError:
        pass
    else:
        if offset >> _TREE_SHIFT >= count:
            return None
        tree = tree[offset >> _TREE_SHIFT].address_of_()
    # Linux kernel commit 796c2c23e14e ("zswap: replace RB tree with xarray") (in
    # v6.9).
    if tree.type_.type.tag == "xarray":
        pointer = xarrays.load(tree, offset)
        if pointer & 3:
            raise ZswapError("zswap's tree is damaged")
        return Object(prog, "struct zswap_entry *", pointer) if pointer else None
    return _find_in_rbtree(prog, memory, tree, offset)


def _find_in_rbtree(
    prog: Program, memory: Memory, tree: Object, offset: int
) -> Object | None:
    entry = prog.type("struct zswap_entry")
    node = prog.type("struct rb_node")
    left, right = node.member("rb_left").offset, node.member("rb_right").offset
    # An entry of all there is since 6.4.
    key = "offset" if entry.has_member("offset") else "swpentry"
    at = entry.member(key).offset - entry.member("rbnode").offset
    mask = (1 << 58) - 1
    pointer = tree.rbroot.rb_node.value_()
    for _ in range(_MAX_DEPTH):
        if not pointer:
            return None
        found = memory.word(pointer + at) & mask
        if found == offset:
            rb_node = Object(prog, "struct rb_node *", pointer)
            return container_of(rb_node, "struct zswap_entry", "rbnode")
        pointer = memory.word(pointer + (left if offset < found else right))
    raise ZswapError("zswap's tree is damaged")


def zswap_read(entry: Object, swp_entry: int) -> bytes:
    """
    Decompress a page.

    :param entry: ``struct zswap_entry *``
    :param swp_entry: what it is of, as swp_entry_t has it.
    :raises ZswapError: if its pool is of an unknown kind, or damaged.
    :raises BadStream: if what is stored is no such page.
    :raises FaultError: if memory of it is not in the dump.
    """
    from drgn_tools.decompress import decompress

    prog = entry.prog_
    read = entry[0].read_()
    # Since 6.4 an entry knows what it is of.
    if entry.type_.type.has_member("swpentry"):
        if read.swpentry.val.value_() != swp_entry:
            raise ZswapError("zswap has another page there: damaged")
    length = read.length.value_()
    if not length and entry.type_.type.has_member("value"):
        # One word all over, until 6.11.
        return read.value.value_().to_bytes(8, "little") * (_PAGE_SIZE // 8)
    if not 0 < length <= _PAGE_SIZE:
        raise ZswapError(f"zswap has a page of {length} bytes: damaged")
    pool = read.pool
    if not pool:
        raise ZswapError("zswap's entry has no pool: damaged")
    data = _stored(prog, pool, read.handle.value_(), length, swp_entry)
    if length == _PAGE_SIZE:
        # Not compressible, and kept as it is: since 6.18.
        return data
    name = pool.tfm_name.string_().decode("ascii", "replace")
    return decompress(name, data, _PAGE_SIZE)


def _stored(
    prog: Program, pool: Object, handle: int, length: int, swp_entry: int
) -> bytes:
    # What the allocator has, without the head of kernels that write back from it.
    members = pool.type_.type
    if members.has_member("zs_pool"):
        # Linux kernel commit 2ccd9fecd916 ("mm/zswap: remove zpool") (in v6.18).
        from drgn_tools.zsmalloc import zs_read

        return zs_read(pool.zs_pool, handle, length)
    # Several, from 6.6 to 6.9: all of a kind, so that any of them can tell.
    zpool = (pool.zpool if members.has_member("zpool") else pool.zpools[0]).read_()
    head = 0
    # struct zswap_header, until 6.4.
    if zpool.type_.type.has_member("evictable") and _has_header(prog):
        head = 8 if zpool.evictable else 0
    raw = prog.read_c_string(zpool.driver.type.value_(), max_size=32)
    name = raw.decode("ascii", "replace")
    if name == "zsmalloc":
        from drgn import cast

        from drgn_tools.zsmalloc import zs_read

        zs_pool = cast("struct zs_pool *", zpool.pool)
        data = zs_read(zs_pool, handle, head + length)
    elif name in _ADDRESSES:
        address = _ADDRESSES[name](prog, handle)
        if address % _PAGE_SIZE + head + length > _PAGE_SIZE:
            raise ZswapError(f"{name}'s handle {handle:#x} is damaged")
        data = prog.read(address, head + length)
    else:
        raise ZswapError(f"zswap keeps pages in {name}, which cannot be read")
    if head and int.from_bytes(data[:head], "little") != swp_entry:
        raise ZswapError(f"{name} has another page there: damaged")
    return data[head:]


def _has_header(prog: Program) -> bool:
    try:
        prog.type("struct zswap_header")
    except LookupError:
        return False
    return True


def _zbud_address(prog: Program, handle: int) -> int:
    return handle


def _z3fold_address(prog: Program, handle: int) -> int:
    if handle & _HEADLESS:
        return handle & -_PAGE_SIZE
    # A slot, with a page and which of its three buddies. (:linux:`mm/z3fold.c`)
    slot = prog.read_u64(handle)
    page = slot & -_PAGE_SIZE
    header = Object(prog, "struct z3fold_header *", page)
    mask = (1 << _BUDDY_BITS) - 1
    buddy = (slot - header.first_num.value_()) & mask
    if buddy == _FIRST:
        chunk = 1 << _CHUNK_SHIFT
        size = header[0].type_.size or 0
        return page + -(-size // chunk) * chunk
    if buddy == _MIDDLE:
        return page + (header.start_middle.value_() << _CHUNK_SHIFT)
    if buddy == _LAST:
        chunks = (slot & _PAGE_SIZE - 1) >> _BUDDY_BITS
        return page + _PAGE_SIZE - (chunks << _CHUNK_SHIFT)
    raise ZswapError(f"z3fold's handle {handle:#x} is damaged")


# What makes of a handle the address of what is stored.
_ADDRESSES = {"zbud": _zbud_address, "z3fold": _z3fold_address}
