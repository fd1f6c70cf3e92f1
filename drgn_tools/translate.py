# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Kernel virtual to physical addresses
------------------------------------

Walks the crashed kernel's own page tables, starting from what VMCOREINFO
says. x86-64, 4 and 5 levels, pages of 4 KiB, 2 MiB and 1 GiB, SME.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Callable

from drgn_tools.errors import DumpError
from drgn_tools.vmcoreinfo import Vmcoreinfo, require

_U64 = (1 << 64) - 1
# __START_KERNEL_map: where the kernel image is mapped
# (:linux:`arch/x86/include/asm/page_64_types.h`).
_START_KERNEL_MAP = 0xFFFFFFFF80000000
PAGE_PRESENT = 1 << 0
PAGE_PSE = 1 << 7
#: Bits 12..51 of an entry hold the address.
ADDRESS_MASK = ((1 << 52) - 1) & ~0xFFF
# Page-table pages kept by a translator; a walk down one vmemmap uses few.
_CACHED_TABLES = 64

# More are not looked for: a kernel has one for 1 GiB, and damage has no end.
_MAX_TABLES = 1 << 14

#: Reads physical memory: (paddr, size) to bytes.
ReadPhysical = Callable[[int, int], bytes]


class Translator:
    """
    Page tables of a dumped x86-64 kernel.

    :param info: the kernel's VMCOREINFO.
    :param read: reads physical memory; raises
        :class:`~drgn_tools.errors.MissingMemory` where there is none.
    :raises DumpError: if VMCOREINFO does not say where the page tables are.
    """

    def __init__(self, info: Vmcoreinfo, read: ReadPhysical) -> None:
        self._read = read
        self._tables: dict[int, bytes] = {}
        # NUMBER(phys_base) may be negative.
        phys_base = require(
            info.number("phys_base"), "NUMBER(phys_base)", -(1 << 52), 1 << 52
        )
        # init_top_pgt since 4.13 (65ade2f872b4); swapper_pg_dir is an alias of
        # it that VMCOREINFO always has; init_level4_pgt before.
        root = None
        for name in ("init_top_pgt", "swapper_pg_dir", "init_level4_pgt"):
            root = info.symbol(name)
            if root is not None:
                break
        root = require(root, "SYMBOL(init_top_pgt)", _START_KERNEL_MAP, _U64 - 0xFFF)
        # sme_mask since 4.17; 0 or one high bit of physical addresses.
        self._mask = ADDRESS_MASK & ~(info.number("sme_mask") or 0)
        self._root = root - _START_KERNEL_MAP + phys_base
        if self._root < 0 or self._root & 0xFFF:
            raise DumpError("VMCOREINFO is damaged: the page table is misplaced")
        # Since 4.17; before, no kernel had 5 levels.
        self.levels = 5 if info.number("pgtable_l5_enabled") else 4

    def translate(self, vaddr: int) -> tuple[int, int]:
        """
        Physical address behind *vaddr*, and how many bytes are contiguous there.

        :raises MissingMemory: if a page table is not in the dump.
        :raises DumpError: if the kernel does not map *vaddr*.
        """
        # The highest bit that is looked up, and those above it, are all the same.
        sign = 11 + 9 * self.levels
        canonical = vaddr >> sign in (0, _U64 >> sign)
        table = self._root
        for level in range(self.levels - 1, -1, -1) if canonical else ():
            shift = 12 + 9 * level
            index = vaddr >> shift & 511
            entry = int.from_bytes(
                self._table(table)[8 * index : 8 * index + 8], "little"
            )
            if not entry & PAGE_PRESENT:
                break
            address = entry & self._mask
            if level == 0 or (level < 3 and entry & PAGE_PSE):
                size = 1 << shift
                offset = vaddr & (size - 1)
                return (address & ~(size - 1)) + offset, size - offset
            table = address
        raise DumpError(f"kernel address {vaddr:#x} is not mapped")

    def image(self) -> Iterator[int]:
        """
        Physical addresses of the kernel's image, one for each 2 MiB that it has.

        :raises DumpError: if a page table is not in the dump.
        """
        table = self._root
        for level in range(self.levels - 1, 1, -1):
            entry = self._entries(table)[_START_KERNEL_MAP >> 12 + 9 * level & 511]
            if not entry & PAGE_PRESENT or entry & PAGE_PSE:
                return
            table = entry & self._mask
        # 1 GiB: KERNEL_IMAGE_SIZE at most, modules are behind.
        for entry in self._entries(table):
            pages = (entry,)
            if entry & PAGE_PRESENT and not entry & PAGE_PSE:
                pages = self._entries(entry & self._mask)
            for page in pages:
                if page & PAGE_PRESENT:
                    yield page & self._mask & -(1 << 12)
                    break

    def _entries(self, table: int) -> Any:
        return memoryview(self._table(table)).cast("Q")

    def tables(self) -> Iterator[int]:
        """Physical addresses of the kernel's own page tables, the uppermost first."""
        found = {self._root}
        level = [self._root]
        for depth in range(self.levels - 1, -1, -1):
            below = []
            for table in level:
                yield table
                entries: Any = ()
                if depth:
                    with contextlib.suppress(DumpError):
                        entries = self._entries(table)
                # The lower half of the root is of user memory.
                for entry in entries[256:] if table == self._root else entries:
                    if not entry & PAGE_PRESENT or (depth < 3 and entry & PAGE_PSE):
                        continue
                    address = entry & self._mask
                    if address not in found and len(found) < _MAX_TABLES:
                        found.add(address)
                        below.append(address)
            level = below

    def ranges(self, vaddr: int, size: int) -> Iterator[tuple[int, int]]:
        """
        Physical ranges (paddr, size) behind [*vaddr*, *vaddr* + *size*), in
        order, neighbours merged.

        :raises DumpError: like :meth:`translate`.
        """
        if vaddr < 0 or vaddr + size > _U64:
            raise DumpError(f"kernel address {vaddr:#x} is not mapped")
        start = length = 0
        while size > 0:
            paddr, contiguous = self.translate(vaddr)
            contiguous = min(contiguous, size)
            if length and start + length == paddr:
                length += contiguous
            else:
                if length:
                    yield start, length
                start, length = paddr, contiguous
            vaddr += contiguous
            size -= contiguous
        if length:
            yield start, length

    def read(self, vaddr: int, size: int) -> bytes:
        """
        Memory at a kernel virtual address, copied.

        :raises DumpError: like :meth:`translate`, or if the memory is missing.
        """
        return b"".join(
            self._read(paddr, length) for paddr, length in self.ranges(vaddr, size)
        )

    def _table(self, paddr: int) -> bytes:
        table = self._tables.get(paddr)
        if table is None:
            if len(self._tables) >= _CACHED_TABLES:
                self._tables.clear()
            table = self._tables[paddr] = self._read(paddr, 4096)
        return table
