# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Mappings of an address space
----------------------------

Like drgn's ``for_each_vma()``, but what is damaged in a dump has an end.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from typing import NamedTuple

from drgn import FaultError, Object, cast

_PAGE_SIZE = 4096
# enum maple_type (:linux:`include/linux/maple_tree.h`).
_LEAF, _RANGE, _ARANGE = 1, 2, 3
_NODE_MASK = 0xFF
# Nodes of a tree are as many as there are mappings, of which 2^16 are usual.
_MAX_NODES = 1 << 22
_VM_HUGETLB = 0x00400000
_U64 = (1 << 64) - 1


class DamagedMappings(LookupError):
    """What no address space has."""


class Mapping(NamedTuple):
    """A ``struct vm_area_struct``."""

    start: int
    end: int
    """Of the byte behind it."""
    first: int
    """The page of the file that it begins with."""
    pages: Object | None
    """``struct address_space *`` of its file, or of shared memory; None if it is
    anonymous, or of hugetlbfs, whose pages are none of the usual size."""


def for_each_mapping(mm: Object) -> Iterator[Mapping]:
    """
    Iterate over an address space, in order.

    :param mm: ``struct mm_struct *``
    :raises DamagedMappings: where it is damaged.
    :raises FaultError: where it is not in the dump.
    """
    end = 0
    for vma in _areas(mm):
        area = vma[0].read_()
        mapping = _mapping(area)
        # All are of pages.
        if not end <= mapping.start < mapping.end or (
            (mapping.start | mapping.end) % _PAGE_SIZE
        ):
            raise DamagedMappings(f"what is mapped behind {end:#x} is damaged")
        end = mapping.end
        yield mapping


def _mapping(area: Object) -> Mapping:
    pages = None
    flags = area.vm_flags.value_()
    if area.vm_file and not flags & _VM_HUGETLB:
        pages = area.vm_file.f_mapping.read_()
    return Mapping(
        area.vm_start.value_(), area.vm_end.value_(), area.vm_pgoff.value_(), pages
    )


def _areas(mm: Object) -> Iterator[Object]:
    # struct vm_area_struct *
    try:
        # Linux kernel commit 763ecb035029 ("mm: remove the vma linked list") (in
        # v6.1).
        tree = mm.mm_mt.read_()
    except AttributeError:
        # It ends with NULL or where it is out of order.
        area = mm.mmap.read_()
        while area:
            yield area
            area = area.vm_next.read_()
        return
    root = tree.ma_root
    type_ = mm.prog_.type("struct vm_area_struct *")
    if not _is_node(root.value_()):
        if root:
            yield cast(type_, root)
        return
    for entry in _leaves(mm, root.value_()):
        yield Object(mm.prog_, type_, entry)


def _leaves(mm: Object, root: int) -> Iterator[int]:
    todo = [(root, 0, _U64)]
    seen: set[int] = set()
    while todo:
        node, low, high = todo.pop()
        if node in seen or len(seen) >= _MAX_NODES:
            raise DamagedMappings(f"what is mapped behind {low:#x} is damaged")
        seen.add(node)
        kind = node >> 3 & 0xF
        slots, pivots = _node(mm, node & ~_NODE_MASK, kind)
        below = []
        for slot, pivot in zip(slots, [*pivots, high]):
            # Behind the last one, pivots are 0.
            last = min(pivot or high, high)
            if kind != _LEAF and slot:
                below.append((slot, low, last))
            # Values are no areas, but reserved for some.
            elif slot and slot & 3 == 0:
                yield slot
            if last >= high:
                break
            low = last + 1
        todo += reversed(below)


def _node(mm: Object, address: int, kind: int) -> tuple[list[int], list[int]]:
    node = Object(mm.prog_, "struct maple_node", address=address)
    if kind in (_LEAF, _RANGE):
        part = node.mr64.read_()
    elif kind == _ARANGE:
        part = node.ma64.read_()
    else:
        raise DamagedMappings(f"a node of mappings is of unknown kind {kind}")
    return (
        [slot.value_() for slot in part.slot],
        [pivot.value_() for pivot in part.pivot],
    )


def _is_node(entry: int) -> bool:
    return entry & 3 == 2 and entry > 4096


class Mappings:
    """The mappings of an address space, looked up by address."""

    def __init__(self, mm: Object) -> None:
        self._mm = mm
        self._ends: list[int] = []
        self._mappings: list[Mapping] | None = None
        self.error = ""
        """Why what is behind the last one is not known; empty if it is."""

    def behind(self, address: int) -> Mapping | None:
        """The mapping that *address* is in, or else the next one."""
        if self._mappings is None:
            self._mappings = []
            try:
                for mapping in for_each_mapping(self._mm):
                    self._mappings.append(mapping)
            except (LookupError, FaultError) as error:
                self.error = str(error)
            self._ends = [mapping.end for mapping in self._mappings]
        at = bisect.bisect_right(self._ends, address)
        return self._mappings[at] if at < len(self._mappings) else None
