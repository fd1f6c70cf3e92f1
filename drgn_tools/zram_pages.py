# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Pages of zram devices
---------------------

From slots to what was written, many at a time. From
:linux:`drivers/block/zram/zram_drv.c`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Object, Program, ProgramFlags

from drgn_tools.decompress import (
    ALGORITHMS,
    BadStream,
    decompress,
    decompress_many,
    decompress_prefix,
)
from drgn_tools.gather import is_little
from drgn_tools.older_drgn import read_c_string, unaliased
from drgn_tools.variables import page_size
from drgn_tools.zram import ZramPage
from drgn_tools.zram_table import (
    CHUNK,
    EMPTY,
    HUGE,
    IN_FLIGHT,
    KINDS,
    SAME,
    UNREADABLE,
    WRITTEN_BACK,
    ZERO,
    Slots,
    check_table,
    read_layout,
    read_slots,
    slot_count,
    where,
)
from drgn_tools.zsmalloc import zs_read_many, zs_why

# How often a slot of a running kernel is read until it holds still.
_TRIES = 5
# Objects that show how zsmalloc finds them.
_SAMPLE = 1024
# A dictionary is given to the kernel in a file; more than this is damage.
_MAX_DICTIONARY = 64 << 20
# What the kernel has in params where nobody set anything.
_NOT_SET = -(1 << 31)
_WITH_DICTIONARY = ("lz4", "lz4hc", "zstd")


class Algorithm(NamedTuple):
    """One that a device compresses with."""

    name: str
    """As the kernel calls it; empty if there is none."""
    dictionary: bytes = b""
    window_bits: int | None = None
    """``deflate.winbits``, None if the kernel does not say."""
    error: str = ""
    """Why it cannot be decompressed; empty if it can."""

    def whole(self, data: bytes, size: int) -> bytes:
        """
        Decompress all of *data*.

        :raises BadStream: if it is nothing of this algorithm.
        """
        if self.error:
            raise BadStream(self.error)
        return decompress(
            self.name,
            data,
            size,
            dictionary=self.dictionary,
            window_bits=self.window_bits,
        )

    def start(self, data: bytes, size: int) -> tuple[bytes, int]:
        """
        Decompress the stream that *data* starts with; also how long it is.

        :raises BadStream: if it is nothing of this algorithm.
        """
        if self.error:
            raise BadStream(self.error)
        return decompress_prefix(
            self.name,
            data,
            size,
            dictionary=self.dictionary,
            window_bits=self.window_bits,
        )

    def many(self, streams: list[bytes], size: int) -> list[bytes | BadStream]:
        """Like :meth:`whole` for each, with errors as results."""
        if self.error:
            return [BadStream(self.error)] * len(streams)
        return decompress_many(
            self.name,
            streams,
            size,
            dictionary=self.dictionary,
            window_bits=self.window_bits,
        )


def _string(pointer: Object) -> str:
    # Also of an array. Names are short.
    prog = pointer.prog_
    address = (
        pointer.value_()
        if unaliased(pointer.type_).kind.name == "POINTER"
        else pointer.address_of_().value_()
    )
    if not address:
        return ""
    try:
        raw = read_c_string(prog, address, 64)
    except FaultError:
        return ""
    return raw.decode("ascii", "backslashreplace")


def algorithm_names(zram: Object) -> list[str]:
    """The names of a device's algorithms, by priority; empty where there is none."""
    type_ = zram.type_.type
    # Linux kernel commit 7ac07a26dea7 ("zram: preparation for multi-zcomp support")
    # (in v6.2).
    if type_.has_member("comp_algs"):
        return [_string(name) for name in zram.comp_algs]
    if type_.has_member("compressor"):
        return [_string(zram.compressor)]
    # Until v3.14.
    return ["lzo"]


def _dictionary(params: Object) -> tuple[bytes, str]:
    # And why it cannot be read.
    address, size = params.dict.value_(), params.dict_sz.value_()
    if not address or not size:
        return b"", ""
    if size > _MAX_DICTIONARY:
        return b"", f"its dictionary would be of {size} bytes"
    try:
        return params.prog_.read(address, size), ""
    except FaultError:
        return b"", "its dictionary is not in the dump"


def read_algorithms(zram: Object) -> list[Algorithm]:
    """A device's algorithms, by priority."""
    algorithms = []
    for priority, name in enumerate(algorithm_names(zram)):
        if name not in ALGORITHMS:
            why = f"{name} is not supported" if name else "the slot's has no name"
            algorithms.append(Algorithm(name, error=f"algorithm {priority}: {why}"))
            continue
        algorithm = Algorithm(name)
        # Linux kernel commit f2bac7ad187d ("zram: introduce zcomp_params structure")
        # (in v6.12).
        if zram.type_.type.has_member("params"):
            params = zram.params[priority]
            if name in _WITH_DICTIONARY:
                dictionary, why = _dictionary(params)
                algorithm = Algorithm(name, dictionary, error=why and f"{name}: {why}")
            if params.type_.has_member("deflate"):
                bits = params.deflate.winbits.value_()
                if bits != _NOT_SET:
                    algorithm = algorithm._replace(window_bits=bits)
        algorithms.append(algorithm)
    return algorithms


def backing_path(zram: Object) -> str:
    """The path of what a device writes back to; empty if there is no such."""
    if not zram.type_.type.has_member("backing_dev") or not zram.backing_dev:
        return ""
    from drgn.helpers.linux.fs import d_path

    try:
        return d_path(zram.backing_dev.f_path.address_of_()).decode(
            "utf-8", "backslashreplace"
        )
    except (FaultError, LookupError, ValueError):
        return "its backing device"


class _Content(NamedTuple):
    # Slots, and what zsmalloc has of them.
    slots: Slots
    objects: dict[int, bytes | None]
    # By slot of these.
    why: dict[int, int]


class Reader:
    """
    A device that is being read.

    :param zram: ``struct zram *``
    :raises LookupError: if it is not understood.
    """

    def __init__(self, zram: Object) -> None:
        self.zram = zram
        self.prog: Program = zram.prog_
        self.page_size = page_size(self.prog)
        self.count = slot_count(zram)
        """How many slots there are."""
        self.layout = read_layout(zram)
        fields: Any = np.dtype(self.layout.entry).fields
        self.word: int = fields["handle"][0].itemsize
        """Bytes of an unsigned long."""
        self._order: Any = "little" if is_little(self.prog) else "big"
        self.table: int = where(zram, "table").value_()
        check_table(zram, self.layout, self.table, self.count)
        # Before v3.10 and since v4.12 it is in struct zram.
        self.pool = where(zram, "mem_pool")
        self.algorithms = read_algorithms(zram)
        self.backing = backing_path(zram)
        # Since v7.0.
        self.compressed_wb = zram.type_.type.has_member("compressed_wb") and bool(
            zram.compressed_wb
        )
        self._live = bool(self.prog.flags & ProgramFlags.IS_LIVE)

    def slots(self, first: int, count: int) -> Slots:
        """Slots that follow each other, all of which must exist."""
        return read_slots(self.zram, self.layout, self.table, first, count)

    def algorithm(self, priority: int) -> Algorithm:
        """What a slot is compressed with."""
        if priority < len(self.algorithms):
            return self.algorithms[priority]
        return Algorithm("", error=f"the device has no algorithm {priority}")

    def pages(self, first: int, count: int) -> list[ZramPage]:
        """What is in slots that follow each other, all of which must exist."""
        content = self._fetch(first, count)
        if not self._live:
            return self._decode(content)
        again = self._fetch(first, count)
        pages = self._decode(again)
        for index in range(count):
            if not _is_same(content, again, index):
                pages[index] = self._still(first + index)
        return pages

    def warm_up(self) -> None:
        """Find out what is the same for all pages."""
        for first in range(0, self.count, CHUNK):
            slots = self.slots(first, min(CHUNK, self.count - first))
            handles = slots.handle[stored(slots)]
            if len(handles):
                zs_read_many(self.pool, handles[:_SAMPLE])
                return

    def _still(self, index: int) -> ZramPage:
        # A slot of a running kernel, twice the same.
        before = self._fetch(index, 1)
        for _ in range(_TRIES):
            after = self._fetch(index, 1)
            if _is_same(before, after, 0):
                return self._decode(after)[0]
            before = after
        return ZramPage("in flight", None, "it changed while it was being read")

    def _fetch(self, first: int, count: int) -> _Content:
        slots = self.slots(first, count)
        places = np.flatnonzero(stored(slots))
        sizes = np.where(slots.size[places] > 0, slots.size[places], -1)
        objects: dict[int, bytes | None] = {}
        why: dict[int, int] = {}
        if len(places):
            contents, reasons = zs_read_many(self.pool, slots.handle[places], sizes)
            objects = dict(zip(places.tolist(), contents))
            why = dict(zip(places.tolist(), reasons.tolist()))
        return _Content(slots, objects, why)

    def _decode(self, content: _Content) -> list[ZramPage]:
        slots = content.slots
        zeros = bytes(self.page_size)
        kinds = slots.kind.tolist()
        pages: list[ZramPage] = [
            ZramPage(KINDS[kind], zeros if kind in (EMPTY, ZERO) else None, "")
            for kind in kinds
        ]
        streams: dict[int, tuple[list[int], list[bytes]]] = {}
        huge = slots.has(self.layout.bits, "ZRAM_HUGE")
        raw = (slots.kind == HUGE) | huge | (slots.size == self.page_size)
        for place in self._special(slots):
            pages[place] = self._special_page(slots, place)
        for place, data in content.objects.items():
            kind = KINDS[kinds[place]]
            if data is None:
                note = zs_why(int(slots.handle[place]), content.why[place])
                pages[place] = ZramPage(kind, None, note)
            elif not slots.size[place]:
                pages[place] = self._unmeasured(data)
            elif raw[place]:
                pages[place] = self._raw(kind, data)
            else:
                places, datas = streams.setdefault(int(slots.priority[place]), ([], []))
                places.append(place)
                datas.append(data)
        for priority, (places, datas) in streams.items():
            results = self.algorithm(priority).many(datas, self.page_size)
            for place, data, result in zip(places, datas, results):
                kind = KINDS[kinds[place]]
                if isinstance(result, bytes):
                    pages[place] = ZramPage(kind, result, "")
                    continue
                page = ZramPage(kind, None, str(result))
                if slots.locked[place]:
                    page = self._recompressed(kind, priority, data) or page
                pages[place] = page
        return pages

    def _special(self, slots: Slots) -> list[int]:
        # Those that are neither plain zeros nor in zsmalloc.
        special = np.isin(slots.kind, (SAME, WRITTEN_BACK, UNREADABLE))
        special |= (slots.kind == IN_FLIGHT) & (slots.handle == 0)
        special |= np.isin(slots.kind, (EMPTY, ZERO)) & slots.locked
        return [int(place) for place in np.flatnonzero(special)]

    def _special_page(self, slots: Slots, place: int) -> ZramPage:
        kind = int(slots.kind[place])
        handle = int(slots.handle[place])
        data = None
        if kind == UNREADABLE:
            note = "its slot is not in the dump"
        elif kind == WRITTEN_BACK:
            note = self._where_written(slots, place)
        elif kind == IN_FLIGHT:
            note = "it was being written: the old page is gone, the new not yet there"
        else:
            word = handle.to_bytes(self.word, self._order)
            data = word * (self.page_size // self.word)
            # The flag is set before the pattern.
            note = "its slot was locked: it may have been changing"
            if not slots.locked[place]:
                note = ""
        return ZramPage(KINDS[kind], data, note)

    def _where_written(self, slots: Slots, place: int) -> str:
        block = int(slots.handle[place])
        note = (
            f"written back to {self.backing or 'a device that is gone'}, "
            f"offset {block * self.page_size}"
        )
        size = int(slots.size[place])
        raw = bool(slots.has(self.layout.bits, "ZRAM_HUGE")[place])
        # Since v7.0 the slot keeps its size.
        if self.compressed_wb and size and not raw:
            name = self.algorithm(int(slots.priority[place])).name
            note += f", {size} bytes of {name}"
        return note

    def _raw(self, kind: str, data: bytes) -> ZramPage:
        if len(data) != self.page_size:
            return ZramPage(kind, None, f"a whole page of {len(data)} bytes")
        return ZramPage(kind, data, "")

    def _unmeasured(self, data: bytes) -> ZramPage:
        # The object is complete, how long it is was not yet stored.
        if len(data) == self.page_size:
            return ZramPage("in flight", data, "its size was not yet stored")
        for algorithm in self.algorithms:
            try:
                page, used = algorithm.start(data, self.page_size)
            except BadStream:
                continue
            note = f"its size was not yet stored: {used} bytes of {algorithm.name}"
            return ZramPage("in flight", page, note)
        return ZramPage("in flight", None, "its size was not yet stored")

    def _recompressed(self, kind: str, priority: int, data: bytes) -> ZramPage | None:
        # The number of the algorithm is the last that is stored.
        for other, algorithm in enumerate(self.algorithms):
            if other == priority:
                continue
            try:
                page = algorithm.whole(data, self.page_size)
            except BadStream:
                continue
            note = f"it was being recompressed: read with {algorithm.name}"
            return ZramPage(kind, page, note)
        return None


def _is_same(one: _Content, other: _Content, place: int) -> bool:
    # Not its time, nor whether it is locked.
    return (
        one.slots.handle[place] == other.slots.handle[place]
        and one.slots.size[place] == other.slots.size[place]
        and one.slots.kind[place] == other.slots.kind[place]
        and one.slots.priority[place] == other.slots.priority[place]
        and one.objects.get(place) == other.objects.get(place)
        and one.why.get(place) == other.why.get(place)
    )


def stored(slots: Slots) -> npt.NDArray[np.bool_]:
    """Which slots have an object in zsmalloc."""
    kinds = (ZERO, SAME, WRITTEN_BACK, UNREADABLE)
    return np.asarray((slots.handle != 0) & ~np.isin(slots.kind, kinds), np.bool_)
