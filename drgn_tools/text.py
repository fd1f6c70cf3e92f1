# SPDX-License-Identifier: LGPL-2.1-or-later
"""Numbers and foreign text as people read them."""

from __future__ import annotations

import os
import re
from typing import Any, TextIO

# Numbers of ECMA-48's "select graphic rendition".
_STYLES = {"bold": "1", "red": "1;31", "yellow": "33", "green": "32"}
_UNITS = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30}
_SIZE = re.compile(r"(0x[0-9a-f]{1,16}|[0-9]{1,18})([bkmg]?)", re.I)
_ADDRESS = re.compile(r"(0x)?[0-9a-f]{1,16}", re.I)
# What is printed as it is, but for some of it.
_FOREIGN = re.compile(r"[^\n\t -~]+")


def binary_size(size: int) -> str:
    """A number of bytes in the largest unit that it fills."""
    for shift, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >> shift:
            return f"{size / (1 << shift):.1f} {unit}"
    return f"{size} bytes"


def parse_size(text: str) -> int:
    """
    A number of bytes, hexadecimal with 0x in front; k, m or g behind it are units.

    :raises ValueError: if it is none.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no size")
    number = int(match[1], 16 if match[1][:2] in ("0x", "0X") else 10)
    return number << _UNITS[match[2].lower()]


def parse_address(text: str) -> int:
    """
    An address, which is hexadecimal with or without 0x in front.

    :raises ValueError: if it is none.
    """
    if not _ADDRESS.fullmatch(text):
        raise ValueError(f"{text!r} is no address")
    return int(text, 16)


def plural(count: int, what: str) -> str:
    """So many of what."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def percent(part: int, whole: int) -> str:
    """A share of something; 0 only if there is none of it."""
    share = part / whole if whole else 0
    return "<0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def decoded(data: bytes) -> str:
    """Foreign text; what is no UTF-8 of it as ``\\x`` and hexadecimal digits."""
    return data.decode("utf-8", "backslashreplace")


# What is printed of a dump goes through one of these, wherever it is printed to:
# terminals get to see what is in pipes and files, too.


def _escape(character: str) -> str:
    # Bytes of file names that are no UTF-8, as the bytes that they are.
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) & 0xFF:02x}"
    return character.encode("unicode_escape").decode()


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def printable(text: str) -> str:
    """*text* on one line, with nothing in it that would drive a terminal."""
    return text if text.isprintable() else _escaped(text)


def printable_lines(text: str) -> str:
    """The same of text of several lines: their ends and tabs stay."""
    return _FOREIGN.sub(lambda match: _escaped(match[0]), text)


def json_line(value: Any) -> str:
    """*value* on one line, in ASCII."""
    # Takes a while to import.
    import json

    # What json leaves is one character that is not printable.
    return json.dumps(value).replace("\x7f", "\\u007f")


def verbatim(data: bytes, file: object) -> bytes:
    """
    Text that is what the kernel or another program has of it, byte for byte, in a file
    or a pipe; on a terminal, it is escaped.

    :param file: where it is to be printed.
    """
    if not getattr(file, "isatty", bool)():
        return data
    encoding = getattr(file, "encoding", None) or "utf-8"
    return printable_lines(decoded(data)).encode(encoding, "backslashreplace")


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
