# SPDX-License-Identifier: LGPL-2.1-or-later
"""What drgn_tools.zram and swap say of a kernel, short enough to be handed over.

The source of this file also runs in guests, so it must do by itself.
"""

from __future__ import annotations

import hashlib
import io
from typing import Any

from drgn import Program
from drgn.helpers.linux.pid import find_task

from drgn_tools import swap, zram


def digest(data: bytes | None) -> str | None:
    """Return a page in short."""
    return None if data is None else hashlib.sha256(data).hexdigest()


def pages(prog: Program, name: str, count: int) -> list[tuple[str | None, str]]:
    """Return the digests and notes of a device's pages."""
    found = zram.zram_read_many(zram.find_zram(prog, name), 0, count)
    return [(digest(page.data), page.note) for page in found]


def seen(
    prog: Program, devices: dict[str, int], processes: list[tuple[int, int, int]]
) -> dict[str, Any]:
    """Return what is on devices (name, pages) and in processes (PID, address, size)."""
    texts = {}
    for name in devices:
        for file in ("mm_stat", "block_state"):
            out = io.StringIO()
            getattr(zram, f"zram_{file}")(prog, name, file=out)
            texts[f"{name}/{file}"] = out.getvalue()
    return {
        "texts": texts,
        "pages": {name: pages(prog, name, count) for name, count in devices.items()},
        "streams": {
            name: {
                stream.cpu: digest(stream.data)
                for stream in zram.for_each_zram_stream(zram.find_zram(prog, name))
                if stream.priority == 0
            }
            for name in devices
        },
        "memory": [
            [
                (page.kind, digest(page.data))
                for page in swap.swap_pages(find_task(prog, pid), start, size)
            ]
            for pid, start, size in processes
        ],
    }
