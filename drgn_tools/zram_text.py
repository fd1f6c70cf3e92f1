# SPDX-License-Identifier: LGPL-2.1-or-later
"""
zram as text
------------

What sysfs and debugfs print of zram devices, from the same fields. From
:linux:`drivers/block/zram/zram_drv.c`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Program

from drgn_tools.gather import Flags
from drgn_tools.zram_pages import Reader, stored
from drgn_tools.zram_table import (
    CHUNK,
    HUGE,
    INCOMPRESSIBLE,
    KINDS,
    LETTERS,
    Slots,
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


def _times(reader: Reader, slots: Slots) -> npt.NDArray[np.int64] | None:
    # Nanoseconds since boot.
    if "ac_time" not in (slots.raw.dtype.names or ()):
        return None
    times = slots.raw["ac_time"].astype(np.int64)
    return times * _SECOND if reader.layout.actime_seconds else times


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
    names = [algorithm.name for algorithm in reader.algorithms]
    # A priority has two bits.
    names = [*names, *[""] * 4][:4]
    now = boot_time(reader.prog)
    kinds = np.array(KINDS, object)
    for chunk in _chunks(reader):
        plain = ~stored(chunk) | (chunk.kind == HUGE) | (chunk.size == 0)
        plain |= chunk.has(reader.layout.bits, "ZRAM_HUGE")
        algorithm = np.array([*names, ""], object)[np.where(plain, 4, chunk.priority)]
        count = len(chunk.kind)
        times = _times(reader, chunk)
        seconds = ages = np.full(count, None)
        if times is not None:
            seconds = times / _SECOND
            if now is not None:
                # 0 where it was never accessed.
                ages = np.where(times != 0, now - seconds, None)
        yield from zip(
            range(chunk.first, chunk.first + count),
            kinds[chunk.kind].tolist(),
            chunk.size.tolist(),
            algorithm.tolist(),
            _letters(reader, chunk).tolist(),
            seconds.tolist(),
            ages.tolist(),
        )
