# SPDX-License-Identifier: LGPL-2.1-or-later
"""Protocol buffers' encoding: as much as writing a message takes."""

from __future__ import annotations

from collections.abc import Iterable

_MASK = (1 << 64) - 1


def varint(value: int) -> bytes:
    """A number, of which the low 64 bits count: negative ones in two's complement."""
    value &= _MASK
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


def number(field: int, value: int) -> bytes:
    """A field that is a number, a truth value or of an enumeration."""
    return varint(field << 3) + varint(value)


def packed(field: int, values: Iterable[int]) -> bytes:
    """A repeated field of numbers; nothing if there are none."""
    content = b"".join(map(varint, values))
    return message(field, content) if content else b""


def message(field: int, *parts: bytes) -> bytes:
    """A field that is a message, of its fields, or bytes."""
    content = b"".join(parts)
    return varint(field << 3 | 2) + varint(len(content)) + content


def text(field: int, value: str) -> bytes:
    """A field that is a string, which has to be Unicode."""
    return message(field, value.encode("utf-8", "backslashreplace"))
