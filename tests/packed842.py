# SPDX-License-Identifier: LGPL-2.1-or-later
"""An encoder of 842 that uses each kind of operation."""

from __future__ import annotations

import random

# 842.h's templates; D are bytes as they are, I those of an index.
TEMPLATES = (
    "D8",
    "D4 D2 I2",
    "D4 I2 D2",
    "D4 I2 I2",
    "D4 I4",
    "D2 I2 D4",
    "D2 I2 D2 I2",
    "D2 I2 I2 D2",
    "D2 I2 I2 I2",
    "D2 I2 I4",
    "I2 D2 D4",
    "I2 D4 I2",
    "I2 D2 I2 D2",
    "I2 D2 I2 I2",
    "I2 D2 I4",
    "I2 I2 D4",
    "I2 I2 D2 I2",
    "I2 I2 I2 D2",
    "I2 I2 I2 I2",
    "I2 I2 I4",
    "I4 D4",
    "I4 D2 I2",
    "I4 I2 D2",
    "I4 I2 I2",
    "I4 I4",
    "I8",
)
_RING = {2: 512, 4: 2048, 8: 2048}
_WIDTH = {2: 8, 4: 9, 8: 8}

_Fields = list[tuple[int, int]]


def _crc32_be(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte << 24
        for _ in range(8):
            crc = crc << 1 ^ (0x104C11DB7 if crc >> 31 else 0)
    return crc


def _template(
    number: int, data: bytes, at: int, places: dict[bytes, int]
) -> _Fields | None:
    """(bits, value) of a template for the 8 bytes there, None if it does not do."""
    fields = [(5, number)]
    whole = at
    for part in TEMPLATES[number].split():
        count = int(part[1])
        piece = data[at : at + count]
        at += count
        if part[0] == "D":
            fields.append((8 * count, int.from_bytes(piece, "big")))
            continue
        place = places.get(piece)
        ring = _RING[count]
        if place is None or place < whole - ring:
            return None
        fields.append((_WIDTH[count], place % ring // count))
    return fields


def pack(data: bytes, chance: random.Random) -> bytes:
    """Compress, choosing among what is possible for each 8 bytes."""
    fields: _Fields = []
    places: dict[bytes, int] = {}
    end = len(data) - len(data) % 8
    at = 0
    while at < end:
        piece = data[at : at + 8]
        again = 0
        while at and again < min(64, (end - at) // 8):
            if data[at + 8 * again : at + 8 * again + 8] != data[at - 8 : at]:
                break
            again += 1
        if again:
            fields += [(5, 0x1B), (6, again - 1)]
        elif piece == bytes(8):
            fields.append((5, 0x1C))
        else:
            found = [_template(n, data, at, places) for n in range(len(TEMPLATES))]
            fields += chance.choice([one for one in found if one is not None])
        for start in range(at, at + 8 * max(again, 1), 8):
            for size in (2, 4, 8):
                for n in range(start, start + 8, size):
                    places[data[n : n + size]] = n
        at += 8 * max(again, 1)
    if data[end:]:
        fields += [(5, 0x1D), (3, len(data) - end), *((8, byte) for byte in data[end:])]
    fields += [(5, 0x1E), (32, _crc32_be(data))]
    text = "".join(f"{value:0{width}b}" for width, value in fields)
    text += "0" * (-len(text) % 64)
    return int(text, 2).to_bytes(len(text) // 8, "big")
