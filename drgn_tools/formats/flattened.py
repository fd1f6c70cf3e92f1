# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The flattened format
--------------------

A dump that can be written to a pipe: a header, then records, each with the
offset at which its data belongs, then an end mark.
"""

from __future__ import annotations

import struct

_RECORD = struct.Struct(">qq")
#: What a stream begins with: name, type 1, version 1.
HEADER = (b"makedumpfile".ljust(16, b"\0") + struct.pack(">qq", 1, 1)).ljust(
    4096, b"\0"
)
#: What it ends with.
END = _RECORD.pack(-1, -1)


def record(offset: int, size: int) -> bytes:
    """What stands before *size* bytes that belong at *offset*."""
    return _RECORD.pack(offset, size)
