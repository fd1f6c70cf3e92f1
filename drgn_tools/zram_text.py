# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What zram says
--------------

Slots as plain values, and what sysfs and debugfs print of a device, from the same
fields. From :linux:`drivers/block/zram/zram_drv.c`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Object, Program, TypeKind

from drgn_tools.gather import Flags
from drgn_tools.older_drgn import unaliased
from drgn_tools.variables import page_size
from drgn_tools.zram_pages import Reader, stored
from drgn_tools.zram_table import (
    CHUNK,
    HUGE,
    INCOMPRESSIBLE,
    KINDS,
    LETTERS,
    Slots,
    slot_count,
    where,
)

_SECOND = 1_000_000_000


def boot_time(prog: Program) -> float | None:
    """Seconds since boot, time asleep included; None if that is not found."""
    try:
        # Since drgn 0.0.34.
        from drgn.helpers.linux.timekeeping import ktime_get_coarse_boottime_ns

        return float(ktime_get_coarse_boottime_ns(prog).value_()) / _SECOND
    except (ImportError, LookupError, FaultError):
        return None


def _chunks(reader: Reader) -> Iterator[Slots]:
    for first in range(0, reader.count, CHUNK):
        yield reader.slots(first, min(CHUNK, reader.count - first))


def times(reader: Reader, slots: Slots) -> npt.NDArray[np.int64] | None:
    """When slots were last accessed: nanoseconds since boot; 0 if never."""
    if "ac_time" not in (slots.raw.dtype.names or ()):
        return None
    when = slots.raw["ac_time"].astype(np.int64)
    return when * _SECOND if reader.layout.actime_seconds else when


def algorithms(reader: Reader, slots: Slots) -> list[str]:
    """What each slot is compressed with; empty if it is not."""
    names = [algorithm.name for algorithm in reader.algorithms]
    # A priority has two bits.
    names = [*names, *[""] * 4][:4]
    plain = ~stored(slots) | (slots.kind == HUGE) | (slots.size == 0)
    plain |= slots.has(reader.layout.bits, "ZRAM_HUGE")
    known = np.array([*names, ""], object)[np.where(plain, 4, slots.priority)]
    found: list[str] = known.tolist()
    return found


def _letters(reader: Reader, slots: Slots) -> npt.NDArray[Any]:
    # The flags of each slot, as block_state has them.
    bits = reader.layout.bits
    columns: list[tuple[str, Flags]] = [
        (letter, slots.has(bits, *names)) for letter, names in LETTERS
    ]
    if reader.layout.priority_shift is not None:
        columns.append(("r", slots.priority != 0))
        columns.append(("n", slots.has(bits, INCOMPRESSIBLE)))
    # One index for each combination, of which there are few.
    code = np.zeros(len(slots.kind), np.int64)
    for place, (_, flags) in enumerate(columns):
        code |= flags.astype(np.int64) << place
    texts = [
        "".join(
            letter if number >> place & 1 else "."
            for place, (letter, _) in enumerate(columns)
        )
        for number in range(1 << len(columns))
    ]
    return np.array(texts, object)[code]


def slots(reader: Reader) -> Iterator[tuple[object, ...]]:
    """The fields of :class:`~drgn_tools.zram.ZramSlot` for each slot of a device."""
    now = boot_time(reader.prog)
    kinds = np.array(KINDS, object)
    for chunk in _chunks(reader):
        count = len(chunk.kind)
        when = times(reader, chunk)
        seconds = ages = np.full(count, None)
        if when is not None:
            seconds = when / _SECOND
            if now is not None:
                # 0 where it was never accessed.
                accessed = when != 0
                ages[accessed] = now - seconds[accessed]
        yield from zip(
            range(chunk.first, chunk.first + count),
            kinds[chunk.kind].tolist(),
            chunk.size.tolist(),
            algorithms(reader, chunk),
            _letters(reader, chunk).tolist(),
            seconds.tolist(),
            ages.tolist(),
        )


def _number(obj: Object) -> int:
    # Also of an atomic one.
    if unaliased(obj.type_).kind == TypeKind.STRUCT:
        obj = obj.counter
    return int(obj.value_())


def _stat(zram: Object, *names: str) -> int | None:
    # The first counter that there is.
    stats = zram.stats
    for name in names:
        if stats.type_.has_member(name):
            return _number(stats.member_(name))
    return None


def counter(zram: Object, *names: str) -> int:
    """
    One of a device's counters.

    :param names: of a member of ``struct zram_stats``, newest first.
    :return: 0 if there is none.
    """
    return _stat(zram, *names) or 0


def pool_pages(zram: Object) -> tuple[int, int]:
    """
    Pages that a device's pool has, and how many compaction has freed.

    :raises LookupError: if zsmalloc's debugging symbols are missing.
    """
    if not slot_count(zram):
        return 0, 0
    pool = where(zram, "mem_pool")
    if not pool.type_.type.has_member("pages_allocated"):
        raise LookupError(
            "struct zs_pool is unknown: the debugging symbols of zsmalloc are missing"
        )
    compacted = 0
    if pool.type_.type.has_member("stats"):
        compacted = _number(pool.stats.pages_compacted)
    return _number(pool.pages_allocated), compacted


def limit_pages(zram: Object) -> int:
    """How many pages a device's pool may have; 0 if that is not limited."""
    # Since v3.18.
    if not zram.type_.type.has_member("limit_pages"):
        return 0
    return int(zram.limit_pages.value_())


def mm_stat(zram: Object) -> str:
    """:file:`/sys/block/zramN/mm_stat`."""
    page = page_size(zram.prog_)
    pages, compacted = pool_pages(zram)
    columns = [
        counter(zram, "pages_stored") * page,
        counter(zram, "compr_data_size", "compr_size"),
        pages * page,
        limit_pages(zram) * page,
        counter(zram, "max_used_pages") * page,
        # zero_pages until v4.10.
        counter(zram, "same_pages", "zero_pages", "pages_zero"),
        compacted,
    ]
    # Since v4.18, and v5.15.
    for name in ("huge_pages", "huge_pages_since"):
        value = _stat(zram, name)
        if value is not None:
            columns.append(value)
    return " ".join(f"{value:8d}" for value in columns) + "\n"


def io_stat(zram: Object) -> str:
    """:file:`/sys/block/zramN/io_stat`."""
    # Where nothing counts it any more (v6.12), the kernel prints a bare 0.
    invalid = _stat(zram, "invalid_io")
    columns = [
        f"{counter(zram, 'failed_reads'):8d}",
        f"{counter(zram, 'failed_writes'):8d}",
        "0" if invalid is None else f"{invalid:8d}",
        f"{counter(zram, 'notify_free'):8d}",
    ]
    return " ".join(columns) + "\n"


def bd_stat(zram: Object) -> str:
    """
    :file:`/sys/block/zramN/bd_stat`.

    :raises LookupError: if the kernel has no such file.
    """
    if _stat(zram, "bd_count") is None:
        raise LookupError("this kernel's zram cannot write back (ZRAM_WRITEBACK)")
    scale = page_size(zram.prog_) >> 12
    names = ("bd_count", "bd_reads", "bd_writes")
    return " ".join(f"{counter(zram, name) * scale:8d}" for name in names) + "\n"


def block_state(reader: Reader) -> Iterator[str]:
    """
    The lines of :file:`/sys/kernel/debug/zram/zramN/block_state`.

    :raises LookupError: if the kernel has no such file.
    """
    for chunk in _chunks(reader):
        when = times(reader, chunk)
        if when is None:
            raise LookupError(
                "this kernel's zram keeps no times (ZRAM_MEMORY_TRACKING)"
            )
        places = np.flatnonzero(chunk.allocated)
        for index, time, flags in zip(
            (places + chunk.first).tolist(),
            when[places].tolist(),
            _letters(reader, chunk)[places].tolist(),
        ):
            seconds, rest = divmod(time, _SECOND)
            yield f"{index:12d} {seconds:12d}.{rest // 1000:06d} {flags}\n"
