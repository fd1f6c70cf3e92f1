# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Objects without slots
---------------------

What a device's pool has that no slot leads to: a page that was being written or freed
when the kernel died, in the few instructions between.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from drgn import FaultError

from drgn_tools.decompress import BadStream
from drgn_tools.zram import ZramOrphan
from drgn_tools.zram_pages import Reader, stored
from drgn_tools.zram_table import CHUNK
from drgn_tools.zsmalloc import (
    ZsError,
    ZsObject,
    for_each_zs_object,
    zs_classes,
    zs_read,
)


def orphans(reader: Reader) -> Iterator[ZramOrphan]:
    """
    The objects of a device's pool that none of its slots has.

    :raises LookupError: if the pool cannot be walked.
    """
    known = []
    for first in range(0, reader.count, CHUNK):
        slots = reader.slots(first, min(CHUNK, reader.count - first))
        known.append(slots.handle[stored(slots)])
    handles = set(np.concatenate(known).tolist()) if known else set()
    sizes = sorted(class_.size for class_ in zs_classes(reader.pool))
    # What is shorter than the next smaller class is in that one.
    least = dict(zip(sizes, [0, *sizes]))
    for found in for_each_zs_object(reader.pool):
        if found.handle not in handles:
            yield _orphan(reader, found, least)


def _orphan(reader: Reader, found: ZsObject, least: dict[int, int]) -> ZramOrphan:
    try:
        data = zs_read(reader.pool, found.handle)
    except (ZsError, FaultError):
        return ZramOrphan(found.handle, found.size, None, "")
    if found.size == reader.page_size:
        return ZramOrphan(found.handle, found.size, data, "")
    head = reader.word
    for algorithm in reader.algorithms:
        try:
            page, used = algorithm.start(data, reader.page_size)
        except BadStream:
            continue
        if used + head > least.get(found.size + head, 0):
            return ZramOrphan(found.handle, found.size, page, algorithm.name)
    return ZramOrphan(found.handle, found.size, None, "")
