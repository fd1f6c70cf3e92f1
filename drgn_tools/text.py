# SPDX-License-Identifier: LGPL-2.1-or-later
"""Numbers and foreign text as people read them."""

from __future__ import annotations


def binary_size(size: int) -> str:
    """A number of bytes in the largest unit that it fills."""
    for shift, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >> shift:
            return f"{size / (1 << shift):.1f} {unit}"
    return f"{size} bytes"


def printable(text: str) -> str:
    """*text* on one line, with nothing in it that would drive a terminal."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )
