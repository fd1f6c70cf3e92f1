# SPDX-License-Identifier: LGPL-2.1-or-later
"""Numbers and foreign text as people read them."""

from __future__ import annotations

import os
from typing import TextIO

# Numbers of ECMA-48's "select graphic rendition".
_STYLES = {"bold": "1", "red": "1;31", "yellow": "33", "green": "32"}


def binary_size(size: int) -> str:
    """A number of bytes in the largest unit that it fills."""
    for shift, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >> shift:
            return f"{size / (1 << shift):.1f} {unit}"
    return f"{size} bytes"


def plural(count: int, what: str) -> str:
    """So many of what."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def percent(part: int, whole: int) -> str:
    """A share of something; 0 only if there is none of it."""
    share = part / whole if whole else 0
    return "<0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def printable(text: str) -> str:
    """*text* on one line, with nothing in it that would drive a terminal."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )


def styled(text: str, style: str, file: TextIO | None) -> str:
    """
    *text* as a terminal shows it in a style.

    :param style: bold, red, yellow or green.
    :param file: what it is for. Unchanged if that is no terminal, or if the user
        wants none of it (https://no-color.org).
    """
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    if plain or file is None or not file.isatty():
        return text
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m"
