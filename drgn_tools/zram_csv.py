# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A zram device as a table
------------------------

Its slots, or the pages in them, as text with commas: a row for each, all values of a
column of one type, and nothing where there is no value.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from drgn_tools.progress import Progress
from drgn_tools.text import printable
from drgn_tools.zram_pages import Reader, stored
from drgn_tools.zram_table import (
    CHUNK,
    INCOMPRESSIBLE,
    KINDS,
    LETTERS,
    SAME,
    UNREADABLE,
    WRITTEN_BACK,
    ZERO,
    Slots,
)
from drgn_tools.zram_text import algorithms, boot_time, times

# Pages that are decompressed at a time.
_PAGES = 4096
_FLAGS = ("same", "written_back", "huge", "idle")
SLOTS = (
    *("index", "kind", "size", "algorithm", "handle", "fill", "block"),
    *(*_FLAGS, "recompressed", "incompressible", "locked", "ac_time_ns", "age_ns"),
)
"""Columns of :func:`slots_csv`."""
PAGES = ("index", "kind", "size", "algorithm", "sha256", "zero_bytes", "note")
"""Columns of :func:`pages_csv`."""

_Column = Sequence[object]


def slots_csv(reader: Reader) -> Iterator[bytes]:
    """The slots of a device, in pieces."""
    yield _text([SLOTS])
    now = boot_time(reader.prog)
    for first in range(0, reader.count, CHUNK):
        slots = reader.slots(first, min(CHUNK, reader.count - first))
        yield _text(zip(*_slot_columns(reader, slots, now)))


def pages_csv(reader: Reader, name: str) -> Iterator[bytes]:
    """The pages of a device, in pieces; *name* is for progress."""
    yield _text([PAGES])
    with Progress(name, reader.count) as progress:
        for first in range(0, reader.count, _PAGES):
            count = min(_PAGES, reader.count - first)
            yield _text(_page_rows(reader, first, count))
            progress.update(first + count)


def _text(rows: Iterable[Iterable[object]]) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue().encode("utf-8", "backslashreplace")


def _only(where: npt.NDArray[np.bool_], values: npt.NDArray[Any]) -> _Column:
    # Values where there are any.
    column = values.astype(object)
    column[~where] = None
    return list(column)


def _hex(where: npt.NDArray[np.bool_], values: npt.NDArray[np.uint64]) -> _Column:
    column = np.full(len(values), None)
    # As numbers, some would be too large for a column of signed ones.
    column[where] = [f"{value:#x}" for value in values[where].tolist()]
    return list(column)


def _names(reader: Reader, slots: Slots) -> _Column:
    return [printable(name) or None for name in algorithms(reader, slots)]


def _slot_columns(reader: Reader, slots: Slots, now: float | None) -> list[_Column]:
    kind = slots.kind
    readable = kind != UNREADABLE
    same = (kind == SAME) | (kind == ZERO)
    block = kind == WRITTEN_BACK

    def flag(there: bool, which: npt.NDArray[np.bool_]) -> _Column:
        return _only(readable & there, np.where(which, "true", "false"))

    bits = reader.layout.bits
    priorities = reader.layout.priority_shift is not None
    flags = [
        flag(any(name in bits for name in names), slots.has(bits, *names))
        for _, names in LETTERS
    ]
    flags.append(flag(priorities, slots.priority != 0))
    flags.append(flag(INCOMPRESSIBLE in bits, slots.has(bits, INCOMPRESSIBLE)))
    flags.append(flag(True, slots.locked))
    when = times(reader, slots)
    nothing: _Column = [None] * len(kind)
    accessed = ages = nothing
    if when is not None:
        there = readable & (when != 0)
        accessed = _only(there, when)
        if now is not None:
            ages = _only(there, round(now * 1e9) - when)
    return [
        range(slots.first, slots.first + len(kind)),
        np.array(KINDS, object)[kind].tolist(),
        _only(readable, slots.size),
        _names(reader, slots),
        _hex(stored(slots), slots.handle),
        _hex(same, slots.handle),
        _only(block, slots.handle),
        *flags,
        accessed,
        ages,
    ]


def _page_rows(reader: Reader, first: int, count: int) -> Iterator[tuple[object, ...]]:
    slots = reader.slots(first, count)
    for index, page, size, name in zip(
        range(first, first + count),
        reader.pages(first, count),
        _only(slots.kind != UNREADABLE, slots.size),
        _names(reader, slots),
    ):
        digest = zero_bytes = None
        if page.data is not None:
            digest = hashlib.sha256(page.data).hexdigest()
            zero_bytes = page.data.count(0)
        note = printable(page.note)
        yield index, page.kind, size, name, digest, zero_bytes, note
