# SPDX-License-Identifier: LGPL-2.1-or-later
"""
XArrays, one entry after another
--------------------------------

As drgn's helper, for many lookups of neighbours in a dump whose nodes may be damaged:
memory is read by pages, and no lookup is longer than the tree is high.
"""

from __future__ import annotations

from drgn import Program, ProgramFlags

_PAGE_SIZE = 4096
_KEPT_PAGES = 4096


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


class Xarrays:
    """What all xarrays of a kernel have in common."""

    def __init__(self, prog: Program, memory: Memory) -> None:
        self._head = prog.type("struct xarray").member("xa_head").offset
        node = prog.type("struct xa_node")
        slots = node.member("slots")
        self._memory = memory
        self._shift = node.member("shift").offset
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
        return self.find(xa, index)[0]

    def find(self, xa: int, index: int) -> tuple[int, int]:
        """
        Like :meth:`load`, and the first index that has the same entry, of which it
        may be for several.
        """
        entry = self._memory.word(xa + self._head)
        if not _is_node(entry):
            # Of index 0 only.
            return (0 if index or _is_internal(entry) else entry), 0
        shift = -1
        while True:
            node = entry - 2
            found = self._memory.number(node + self._shift, 1)
            if shift < 0:
                if found >= 64:
                    raise DamagedTree("an xarray is damaged")
                if index >> (found + self._bits):
                    return 0, index
            elif found != shift - self._bits:
                raise DamagedTree("an xarray is damaged")
            shift = found
            slots = node + self._slots
            slot = index >> shift & self._chunk - 1
            entry = self._memory.word(slots + 8 * slot)
            if _is_internal(entry) and entry >> 2 < self._chunk:
                # A sibling: one of several slots that have the same entry.
                slot = entry >> 2
                entry = self._memory.word(slots + 8 * slot)
            if not _is_node(entry):
                above = index >> (shift + self._bits) << self._bits | slot
                return (0 if _is_internal(entry) else entry), above << shift
            if not shift:
                raise DamagedTree("an xarray is damaged")


def _is_internal(entry: int) -> bool:
    return entry & 3 == 2


def _is_node(entry: int) -> bool:
    return _is_internal(entry) and entry > _PAGE_SIZE
