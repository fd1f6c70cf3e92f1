# SPDX-License-Identifier: LGPL-2.1-or-later
"""What drgn_tools.pstore says of a kernel, short enough to hand over from a guest.

The source of this file also runs in guests, so it must do by itself.
"""

from __future__ import annotations

import hashlib
import io
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drgn import Program


def digest(content: bytes | None) -> str | None:
    """Return something short that stands for a content."""
    if not content:
        return None
    return f"{len(content)} {hashlib.sha256(content).hexdigest()[:16]}"


def seen(prog: Program) -> dict[str, Any]:
    """Return zones, function traces and text records."""
    from drgn_tools import pstore

    def trace(boot: Any) -> list[str]:
        text = io.StringIO()
        pstore.pstore_ftrace(prog, boot=boot, file=text)
        return text.getvalue().splitlines()

    return {
        "zones": [
            [
                zone.kind,
                zone.number,
                zone.address,
                zone.size,
                zone.state if zone.live is not None else None,
                zone.wrapped,
                zone.corrected_bytes,
                digest(zone.live),
            ]
            for zone in pstore.for_each_pstore_zone(prog)
        ],
        "why": sorted({z.live_error for z in pstore.for_each_pstore_zone(prog)}),
        "old": [
            [
                zone.kind,
                zone.number,
                zone.boot_corrected_bytes,
                zone.boot_bad_blocks,
                digest(zone.old_log),
            ]
            for zone in pstore.for_each_pstore_zone(prog)
        ],
        "newest": trace(0),
        "before": trace(-1),
        "records": sorted(
            [record.kind, record.source, record.label, digest(record.text)]
            for record in pstore.for_each_pstore_record(prog)
        ),
    }


if __name__ == "__main__":
    print(json.dumps(seen(globals()["prog"])))
