# SPDX-License-Identifier: LGPL-2.1-or-later
"""What drgn_tools.oprofile says of a kernel, to hand over from a guest.

The source of this file also runs in guests, so it must do by itself.
"""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drgn import Program


def seen(prog: Program) -> dict[str, Any]:
    """Return statistics, the event buffer's pieces and what was read."""
    from drgn_tools import oprofile

    def printed(helper: Any, **options: Any) -> list[str]:
        text = io.StringIO()
        helper(prog, file=text, **options)
        return text.getvalue().splitlines()

    return {
        "stats": printed(oprofile.oprofile_stats),
        "pieces": printed(oprofile.oprofile_event_buffer),
        "read": [
            [sample.mode, sample.place.address, sample.place.symbol]
            for sample in oprofile.for_each_oprofile_sample(
                prog, source="cpu", read=True
            )
        ],
    }


if __name__ == "__main__":
    print(json.dumps(seen(globals()["prog"])))
