# SPDX-License-Identifier: LGPL-2.1-or-later
"""
XArrays, one entry after another
--------------------------------

As drgn's helper, for many lookups of neighbours in a dump whose nodes may be damaged:
memory is read by pages, and no lookup is longer than the tree is high.
"""

from __future__ import annotations

from typing import NamedTuple

from drgn import Program, ProgramFlags

_PAGE_SIZE = 4096
_KEPT_PAGES = 4096
_LAST = (1 << 64) - 1


class DamagedTree(LookupError):
    """Nodes that no xarray has."""


class Memory:
    """
    Numbers in a kernel's memory.

    Of a dump, pages are kept; of a running kernel each is read anew.
    """

    def __init__(self, prog: Program) -> None:
        self._prog = prog
        self._live = bool(prog.flags & ProgramFlags.IS_LIVE)
        self._pages: dict[int, bytes] = {}

    def number(self, address: int, size: int) -> int:
        """
        An unsigned number at a virtual address that is aligned to its size.

        :raises FaultError: if memory is not in the dump.
        """
        # What is wrong in a dump may not be an address.
        address &= (1 << 64) - size
        if self._live:
            return int.from_bytes(self._prog.read(address, size), "little")
        base, at = address & -_PAGE_SIZE, address % _PAGE_SIZE
        page = self._pages.get(base)
        if page is None:
            page = self._prog.read(base, _PAGE_SIZE)
            if len(self._pages) >= _KEPT_PAGES:
                self._pages.clear()
            self._pages[base] = page
        return int.from_bytes(page[at : at + size], "little")

    def word(self, address: int) -> int:
        """An ``unsigned long``; see :meth:`number`."""
        return self.number(address, 8)


class Found(NamedTuple):
    """What an xarray has at an index."""

    entry: int
    first: int
    """The first index that it is for: an entry may be for several."""
    last: int
    """The last index for which this is known."""


class Xarrays:
    """What all xarrays of a kernel have in common."""

    def __init__(self, prog: Program, memory: Memory) -> None:
        self._head = prog.type("struct xarray").member("xa_head").offset
        node = prog.type("struct xa_node")
        slots = node.member("slots")
        self._memory = memory
        self._shift = node.member("shift").offset
        self._offset = node.member("offset").offset
        self._parent = node.member("parent").offset
        self._slots = slots.offset
        # XA_CHUNK_SIZE: 64, or 16 with CONFIG_BASE_SMALL.
        self._chunk = slots.type.length or 64
        self._bits = self._chunk.bit_length() - 1

    def load(self, xa: int, index: int) -> int:
        """
        What is at an index: 0 for nothing, a pointer, or a value with bit 0 set.

        :param xa: address of the ``struct xarray``.
        :raises DamagedTree: if that cannot be told.
        :raises FaultError: if a node is not in the dump.
        """
        return self.find(xa, index).entry

    def find(self, xa: int, index: int) -> Found:
        """Like :meth:`load`, and for which indexes it is the same."""
        entry = self._memory.word(xa + self._head)
        if not _is_node(entry):
            # Of index 0 only.
            if index:
                return Found(0, 1, _LAST)
            return Found(_entry(entry), 0, 0)
        node = entry - 2
        shift = self._memory.number(node + self._shift, 1)
        # More would be beyond any index.
        if shift >= 64:
            raise DamagedTree("an xarray is damaged")
        end = 1 << (shift + self._bits)
        if index >= end:
            return Found(0, end, _LAST)
        while True:
            slots = node + self._slots
            slot = index >> shift & self._chunk - 1
            entry = self._memory.word(slots + 8 * slot)
            first = index >> shift << shift
            last = first + (1 << shift) - 1
            if _is_internal(entry) and entry >> 2 < self._chunk:
                # A sibling: one of several slots that have the same entry.
                slot = entry >> 2
                entry = self._memory.word(slots + 8 * slot)
                above = index >> (shift + self._bits) << self._bits
                first = (above | slot) << shift
            if not _is_node(entry):
                return Found(_entry(entry), first, last)
            # The child of one parent, in one place, and lower.
            child = entry - 2
            if (
                self._memory.number(child + self._shift, 1) != shift - self._bits
                or self._memory.number(child + self._offset, 1) != slot
                or self._memory.word(child + self._parent) != node
            ):
                raise DamagedTree("an xarray is damaged")
            node, shift = child, shift - self._bits


def _entry(entry: int) -> int:
    # What is being changed just now is as good as nothing.
    return 0 if _is_internal(entry) else entry


def _is_internal(entry: int) -> bool:
    return entry & 3 == 2


def _is_node(entry: int) -> bool:
    return _is_internal(entry) and entry > _PAGE_SIZE
