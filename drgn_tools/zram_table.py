# SPDX-License-Identifier: LGPL-2.1-or-later
"""
zram's tables
-------------

The slots of a zram device as arrays, in every layout of the table since Linux 3.4.
From :linux:`drivers/block/zram/zram_drv.h`.
"""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Object, Program, Type, TypeKind

from drgn_tools.gather import Flags, Words, is_little
from drgn_tools.variables import page_size

#: Slots that are looked at together.
CHUNK = 1 << 16
# 64 TiB in pages of 4 KiB: more than memory could hold the table of.
_MAX_SLOTS = 1 << 34
# A table of more slots is looked at in so many places before it is believed, and so
# many of them must be there: no more than 64 times what is there is read.
_BELIEVED = 1 << 20
_PLACES, _LEAST = 4096, 64

KINDS = (
    "empty",
    "zero",
    "same",
    "huge",
    "compressed",
    "written back",
    "in flight",
    "unreadable",
)
"""What a slot may be; :attr:`Slots.kind` is an index."""
EMPTY, ZERO, SAME, HUGE, COMPRESSED, WRITTEN_BACK, IN_FLIGHT, UNREADABLE = range(8)

# Flags as block_state prints them: a letter, and the flag's names, newest first.
LETTERS = (
    # ZRAM_SAME since "zram: extend zero pages to same element pages" (in v4.11).
    ("s", ("ZRAM_SAME", "ZRAM_ZERO")),
    ("w", ("ZRAM_WB",)),
    ("h", ("ZRAM_HUGE",)),
    ("i", ("ZRAM_IDLE",)),
)
# Since v6.2.
INCOMPRESSIBLE = "ZRAM_INCOMPRESSIBLE"


class Layout(NamedTuple):
    """Of a device's table."""

    entry: npt.DTypeLike
    """A slot: ``handle``, ``flags``, and as far as they exist ``ac_time``, ``size``
    and ``lock``."""
    bits: dict[str, int]
    """Of flags, by name: their masks."""
    size_mask: int
    """The part of ``flags`` that is the size; 0 where that is a field of its own."""
    priority_shift: int | None
    """Where in ``flags`` the algorithm's number is."""
    actime_seconds: bool
    """``ac_time`` is in seconds, not nanoseconds."""


class Slots(NamedTuple):
    """Slots of a device that follow each other."""

    first: int
    """Index of the first one."""
    raw: npt.NDArray[np.void]
    """As they are in memory."""
    handle: Words
    flags: Words
    size: npt.NDArray[np.int64]
    """Of what is stored, in bytes; 0 if there is nothing or it is not known."""
    priority: npt.NDArray[np.int64]
    """Which of the device's algorithms."""
    kind: npt.NDArray[np.uint8]
    """Index in :data:`KINDS`."""
    locked: Flags
    """Somebody was changing it, or reading it."""

    def has(self, bits: dict[str, int], *names: str) -> Flags:
        """Which slots have one of these flags."""
        return _have(self.flags, bits, *names)

    @property
    def allocated(self) -> Flags:
        """Which slots the kernel counts as stored."""
        kind = self.kind
        filled = (self.size != 0) | np.isin(kind, (ZERO, SAME, WRITTEN_BACK))
        return np.asarray(filled, np.bool_)


def _have(flags: Words, bits: dict[str, int], *names: str) -> Flags:
    mask = sum(bits.get(name, 0) for name in names)
    return np.asarray((flags & np.uint64(mask)) != 0, np.bool_)


def where(zram: Object, name: str) -> Object:
    """
    A member of a device.

    :raises LookupError: if there is none.
    """
    if zram.type_.type.has_member(name):
        return zram.member_(name)
    # v3.10 to v4.11.
    if zram.type_.type.has_member("meta"):
        return zram.meta.member_(name)
    raise LookupError(f"struct zram has an unknown layout: no {name}")


def _format(prog: Program, type_: Type) -> str | None:
    # Of a number; None of anything else.
    while type_.kind == TypeKind.TYPEDEF:
        type_ = type_.type
    if type_.kind != TypeKind.INT or type_.size not in (1, 2, 4, 8):
        return None
    return f"{'<' if is_little(prog) else '>'}u{type_.size}"


def _enumerators(prog: Program) -> dict[str, int]:
    try:
        found = prog.type("enum zram_pageflags").enumerators or ()
    except LookupError:
        raise LookupError(
            "enum zram_pageflags is unknown: the debugging symbols of zram are missing"
        ) from None
    return {name: value for name, value in found if 0 <= value < 64}


def read_layout(zram: Object) -> Layout:
    """
    Find out how a device's slots look.

    :param zram: ``struct zram *``
    :raises LookupError: if they look like none that is known.
    """
    prog = zram.prog_
    entry = where(zram, "table").type_.type
    values = _enumerators(prog)
    fields: dict[str, tuple[str, int]] = {}

    def take(field: str, *paths: str) -> bool:
        for path in paths:
            type_, offset = entry, 0
            try:
                for name in path.split("."):
                    member = type_.member(name)
                    type_, offset = member.type, offset + member.offset
            except LookupError:
                continue
            kind = _format(prog, type_)
            if kind is not None:
                fields[field] = kind, offset
                return True
        return False

    # attr since v7.0; value until v4.20.
    good = take("handle", "handle") and take("flags", "flags", "attr.flags", "value")
    if not good:
        # Of xvmalloc before v3.4, and of kernels that put something else there.
        raise LookupError(f"{entry.type_name()} has an unknown layout")
    take("ac_time", "ac_time", "attr.ac_time")
    # v6.12 to v6.14: a spinlock, whose word is not 0 while somebody holds it.
    take("lock", "lock.rlock.raw_lock.val.counter")
    lowest = min(values.values(), default=0)
    size_mask = 0
    # A member of its own until v3.16.
    if not take("size", "size"):
        if lowest < 12:
            raise LookupError("enum zram_pageflags has no known layout")
        size_mask = (1 << lowest) - 1
    dtype = np.dtype(
        {
            "names": list(fields),
            "formats": [kind for kind, _ in fields.values()],
            "offsets": [offset for _, offset in fields.values()],
            "itemsize": entry.size or 0,
        }
    )
    return Layout(
        dtype,
        {name: 1 << value for name, value in values.items()},
        size_mask,
        values.get("ZRAM_COMP_PRIORITY_BIT1"),
        # Since v7.0 there is only room for seconds.
        actime_seconds=fields.get("ac_time", ("", 0))[0].endswith("4"),
    )


def slot_count(zram: Object) -> int:
    """
    How many slots a device has; 0 if it is not set up.

    :raises LookupError: if its size is nonsense.
    """
    count: int = where(zram, "disksize").value_() // page_size(zram.prog_)
    if count > _MAX_SLOTS:
        raise LookupError(f"a zram device of {count} pages: its memory is damaged")
    return count


def check_table(zram: Object, layout: Layout, table: int, count: int) -> None:
    """
    Make sure that a device is not said to have billions of slots that are nowhere.

    :param table: the table's address.
    :param count: how many slots it is said to have.
    :raises LookupError: if it is.
    """
    if count <= _BELIEVED:
        return
    width = np.dtype(layout.entry).itemsize
    there = 0
    for number in range(1, _PLACES + 1):
        with contextlib.suppress(FaultError, OverflowError, ValueError):
            zram.prog_.read(table + (count * number // _PLACES - 1) * width, width)
            there += 1
            if there == _LEAST:
                return
    raise LookupError(
        f"a zram device of {count} pages, of which next to nothing is known: its "
        "memory is damaged, or not in the dump"
    )


def _classify(
    layout: Layout, handle: Words, flags: Words, size: npt.NDArray[np.int64], page: int
) -> npt.NDArray[np.uint8]:
    def has(*names: str) -> Flags:
        return _have(flags, layout.bits, *names)

    # The last that holds is it.
    kind = np.full(len(handle), EMPTY, np.uint8)
    stored = (handle != 0) & (size != 0)
    kind[stored] = COMPRESSED
    kind[stored & (has("ZRAM_HUGE") | (size == page))] = HUGE
    # What was there is freed, what comes is not linked yet or of unknown length;
    # or it is being written back, recompressed or looked at for that.
    odd = (handle != 0) != (size != 0)
    odd |= (handle == 0) & has("ZRAM_HUGE")
    odd |= stored & has("ZRAM_UNDER_WB", "ZRAM_PP_SLOT")
    kind[odd] = IN_FLIGHT
    same = has("ZRAM_SAME", "ZRAM_ZERO")
    kind[same] = SAME
    kind[same & (handle == 0)] = ZERO
    kind[has("ZRAM_WB")] = WRITTEN_BACK
    return kind


def read_slots(
    zram: Object, layout: Layout, table: int, first: int, count: int
) -> Slots:
    """
    Read slots.

    :param table: the table's address.
    :param first: index of the first slot.
    :param count: how many; all of them must exist.
    """
    prog = zram.prog_
    page = page_size(prog)
    dtype = np.dtype(layout.entry)
    data, missing = _read(prog, table + first * dtype.itemsize, dtype.itemsize, count)
    raw = np.frombuffer(data, dtype)
    handle = raw["handle"].astype(np.uint64)
    flags = raw["flags"].astype(np.uint64)
    if "size" in (dtype.names or ()):
        size = raw["size"].astype(np.int64)
    else:
        size = (flags & np.uint64(layout.size_mask)).astype(np.int64)
    priority = np.zeros(count, np.int64)
    if layout.priority_shift is not None:
        shifted = flags >> np.uint64(layout.priority_shift)
        priority = (shifted & np.uint64(3)).astype(np.int64)
    lock_bits = layout.bits.get("ZRAM_ENTRY_LOCK", 0)
    # ZRAM_ACCESS until v4.18.
    lock_bits |= layout.bits.get("ZRAM_LOCK", 0) | layout.bits.get("ZRAM_ACCESS", 0)
    locked = (flags & np.uint64(lock_bits)) != 0
    if "lock" in (dtype.names or ()):
        locked |= raw["lock"] != 0
    kind = _classify(layout, handle, flags, size, page)
    if missing is not None:
        kind[missing] = UNREADABLE
    return Slots(first, raw, handle, flags, size, priority, kind, locked)


def _read(
    prog: Program, address: int, width: int, count: int
) -> tuple[bytes, Flags | None]:
    # Slots, and which of them cannot be read, if any.
    try:
        return prog.read(address, width * count), None
    except (FaultError, OverflowError, ValueError):
        pass
    step = page_size(prog)
    data = bytearray(width * count)
    missing = np.zeros(count, np.bool_)
    at = 0
    while at < len(data):
        size = min(step - (address + at) % step, len(data) - at)
        try:
            data[at : at + size] = prog.read(address + at, size)
        except (FaultError, OverflowError, ValueError):
            missing[at // width : -(-(at + size) // width)] = True
        at += size
    return bytes(data), missing
