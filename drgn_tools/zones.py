# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Zones and nodes
---------------

Which zone of which node a page frame belongs to, from VMCOREINFO alone: from the
kernel's own ``struct zone``, and the bits of ``page.flags`` that say the same of every
page. VMCOREINFO has too little of both, so that each is believed only where it agrees
with the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from drgn_tools.errors import DumpError
from drgn_tools.plan import StructPages
from drgn_tools.vmcore import Vmcore
from drgn_tools.vmcoreinfo import Vmcoreinfo, require

# zone_names in :linux:`mm/page_alloc.c`, of x86-64.
_NAMES = ("DMA", "DMA32", "Normal", "Movable", "Device")
# What x86-64 has below an address, if nothing else tells
# (:linux:`arch/x86/include/asm/dma.h`): in page frames.
_LIMITS = (1 << 24 >> 12, 1 << 32 >> 12)
# The kernel's own limits: NODES_SHIFT, MAX_NR_ZONES.
_MAX_NODES = 1 << 10
_MAX_ZONES = 8
# Zones that one machine may have with pages in them; sixteen times the usual.
_MAX_POPULATED = 512
# Words after zone.present_pages, among which is zone.name: before it may be
# present_early_pages and cma_pages, as the kernel is configured.
_NAME_WORDS = 4


class Zone(NamedTuple):
    """A zone of a node that has pages."""

    node: int | None
    """None where only addresses tell zones."""
    name: str
    """``DMA``, ``DMA32``, ``Normal``, ``Movable``, …"""
    start_pfn: int
    spanned: int
    """Page frames from its first to its last, holes and other zones' included."""
    present: int | None
    """Of these, its own. None where only addresses tell zones."""
    managed: int | None
    """Of these, pages that the buddy allocator was given."""
    free_blocks: tuple[int, ...]
    """Free blocks of 2 ** 0, 2 ** 1, … pages, as in ``/proc/buddyinfo``."""


class Zones(NamedTuple):
    """The zones of a machine, and how to tell a page's."""

    zones: tuple[Zone, ...]
    shift: int | None
    """Where in page.flags the numbers of node and zone are: from this bit on. None if
    only addresses tell."""
    codes: npt.NDArray[np.int64]
    """These numbers of each of *zones*, ascending."""
    why: str = ""
    """Why only addresses tell."""

    def of(
        self, pfn: int, count: int, flags: npt.NDArray[np.uint64]
    ) -> npt.NDArray[np.int64]:
        """
        Which zones page frames belong to.

        :param flags: page.flags of each.
        :return: for each an index of *zones*, or their count for none of them; one
            only, if it is the same for all.
        """
        if self.shift is None:
            limits = np.array(_LIMITS)
            ends = np.searchsorted(limits, [pfn, pfn + count - 1], "right")
            if ends[0] == ends[1]:
                return ends[:1]
            return np.searchsorted(limits, np.arange(pfn, pfn + count), "right")
        codes = flags >> np.uint64(self.shift)
        if codes.min() == codes.max():
            codes = codes[:1]
        # What is damaged may be any number.
        codes = np.minimum(codes, np.uint64(1 << 62)).astype(np.int64)
        index = np.searchsorted(self.codes, codes)
        index[index == len(self.codes)] = 0
        return np.where(self.codes[index] == codes, index, len(self.codes))


def find_zones(vmcore: Vmcore, found: StructPages) -> Zones:
    """The zones of a dumped kernel; those of x86-64 by address, if it does not tell."""
    try:
        return _find(vmcore, found)
    except DumpError as error:
        ends = (*_LIMITS, max(vmcore.max_pfn, _LIMITS[-1]))
        starts = (0, *_LIMITS)
        zones = tuple(
            Zone(None, name, start, end - start, None, None, ())
            for name, start, end in zip(_NAMES, starts, ends)
        )
        return Zones(zones, None, np.arange(len(zones)), str(error))


class _Numbered(NamedTuple):
    # A zone, and its number in its node.
    number: int
    zone: Zone


def _find(vmcore: Vmcore, found: StructPages) -> Zones:
    info = vmcore.vmcoreinfo
    if info is None:
        raise DumpError("no VMCOREINFO")
    numbered: list[_Numbered] = []
    names: set[int] = set()
    for node in _nodes(info, vmcore):
        for each in _node_zones(info, vmcore, node):
            names.add(each.number)
            if each.zone.present and len(numbered) < _MAX_POPULATED:
                numbered.append(each)
    if not numbered:
        raise DumpError("no zone has pages")
    # ZONES_SHIFT and NODES_SHIFT (:linux:`include/linux/page-flags-layout.h`).
    zone_bits = max(names).bit_length()
    node_bits = ((info.length("node_data") or 1) - 1).bit_length()
    shift = 64 - node_bits - zone_bits
    numbered.sort(key=lambda each: (each.zone.node, each.number))
    codes = [(each.zone.node or 0) << zone_bits | each.number for each in numbered]
    for each, code in zip(numbered, codes):
        # Otherwise with SPARSEMEM but not SPARSEMEM_VMEMMAP.
        if _flags(vmcore, found, each.zone.start_pfn) >> shift != code:
            raise DumpError("page.flags do not tell zones as expected")
    return Zones(
        tuple(each.zone for each in numbered), shift, np.array(codes, np.int64)
    )


def _nodes(info: Vmcoreinfo, vmcore: Vmcore) -> Iterator[int]:
    # Addresses of struct pglist_data.
    count = info.length("node_data")
    if count is None:
        # Without NUMA.
        yield require(info.symbol("contig_page_data"), "SYMBOL(node_data)", 1, 1 << 64)
        return
    require(count, "LENGTH(node_data)", 1, _MAX_NODES)
    table = require(info.symbol("node_data"), "SYMBOL(node_data)", 1, 1 << 64)
    for address in np.frombuffer(vmcore.kernel.read(table, 8 * count), "<u8").tolist():
        if address:
            yield address


def _node_zones(info: Vmcoreinfo, vmcore: Vmcore, node: int) -> Iterator[_Numbered]:
    size = require(info.size("zone"), "SIZE(zone)", 64, 1 << 16)

    def member(name: str, width: int, room: int) -> int:
        return require(info.offset(name), f"OFFSET({name})", 0, room - width)

    room = require(info.size("pglist_data"), "SIZE(pglist_data)", size, 1 << 24)
    zones = node + member("pglist_data.node_zones", size, room)
    number = member("pglist_data.node_id", 4, room)
    first_pfn = member("pglist_data.node_start_pfn", 8, room)
    spanned_pfns = member("pglist_data.node_spanned_pages", 8, room)

    def word(address: int, width: int = 8) -> int:
        return int.from_bytes(vmcore.kernel.read(address, width), "little")

    node_id = word(node + number, 4)
    if node_id >= _MAX_NODES:
        raise DumpError("struct pglist_data is not as expected")
    start = word(node + first_pfn)
    end = start + word(node + spanned_pfns)
    # zone_start_pfn, managed_pages, spanned_pages and present_pages follow each other
    # (:linux:`include/linux/mmzone.h`); VMCOREINFO has the third.
    spanned_at = member("zone.spanned_pages", 16 + 8 * _NAME_WORDS, size)
    require(spanned_at, "OFFSET(zone.spanned_pages)", 16, size)
    free_area = member("zone.free_area", 8, size)
    orders = require(info.length("zone.free_area"), "LENGTH(zone.free_area)", 1, 40)
    # nr_free is the last of it.
    area_size = require(info.size("free_area"), "SIZE(free_area)", 8, 4096)
    require(orders * area_size, "SIZE(free_area)", 8, size - free_area)
    for index in range(_MAX_ZONES):
        if zones + (index + 1) * size > node + room:
            return
        raw = np.frombuffer(vmcore.kernel.read(zones + index * size, size), "u1")
        words = raw[spanned_at - 16 :][: 8 * (4 + _NAME_WORDS)].view("<u8").tolist()
        zone_start, managed, spanned, present, *rest = words
        name = next(filter(None, (_name(vmcore, at) for at in rest)), None)
        if name is None:
            # Behind the last one, if there was any.
            return
        if present and not start <= zone_start < zone_start + spanned <= end:
            raise DumpError("struct zone is not as expected")
        free = [
            int(raw[at : at + 8].view("<u8")[0])
            for at in range(
                free_area + area_size - 8, free_area + orders * area_size, area_size
            )
        ]
        yield _Numbered(
            index,
            Zone(node_id, name, zone_start, spanned, present, managed, tuple(free)),
        )


def _name(vmcore: Vmcore, address: int) -> str | None:
    # The name of a zone, if that is what is there.
    if address >> 47 != (1 << 17) - 1:
        return None
    with contextlib.suppress(DumpError):
        text = vmcore.kernel.read(address, 8).split(b"\0")[0]
        return next((name for name in _NAMES if name.encode() == text), None)
    return None


def _flags(vmcore: Vmcore, found: StructPages, pfn: int) -> int:
    # page.flags of a page frame.
    for section in found.sections:
        if section.pfn <= pfn < section.end_pfn and section.vaddr is not None:
            size = found.layout.dtype.itemsize
            raw = vmcore.kernel.read(section.vaddr + (pfn - section.pfn) * size, size)
            return int(np.frombuffer(raw, found.layout.dtype)["flags"][0])
    raise DumpError("a zone begins where there are no struct pages")
