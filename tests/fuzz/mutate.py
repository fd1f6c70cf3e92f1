# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Changes to inputs
-----------------

What a hostile file has and a random one has not: numbers at the edges of their types,
words that lead to other places of the same input, parts twice or in another order,
numbers in text.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Callable

#: Numbers that sizes, counts, offsets and addresses go wrong with.
EDGES = sorted(
    {
        value + step
        for value in (
            0,
            *(1 << bit for bit in (3, 7, 8, 12, 15, 16, 20, 24, 28)),
            *(1 << bit for bit in (31, 32, 40, 46, 51, 52, 56, 60, 62, 63, 64)),
            0xFFFF888000000000,
            0xFFFFEA0000000000,
            0xFFFFFFFF80000000,
        )
        for step in (-1, 0, 1, 8)
    }
)
#: The same, and more of it, for numbers that are written out.
WRITTEN = [str(value) for value in EDGES] + [
    *(f"{value:x}" for value in EDGES[::3]),
    "0x" + "f" * 5000,
    "9" * 5000,
    "f" * 5000,
    "-0x" + "1" * 5000,
    "",
    "-",
    "1_0",
    "\u0661",
]
_NUMBERS = re.compile(rb"[0-9a-fA-F]{1,32}")
_WIDTHS = (1, 2, 4, 8)

Change = Callable[[bytearray, random.Random, Sequence[bytes]], None]


def _place(data: bytearray, chance: random.Random) -> int:
    # Half of the time where there is something: most of memory is zeros.
    at = chance.randrange(len(data))
    if chance.random() < 0.5:
        return at
    for _ in range(8):
        at = chance.randrange(len(data))
        if data[at]:
            return at
    return at


def _bit(data: bytearray, chance: random.Random, others: Sequence[bytes]) -> None:
    data[_place(data, chance)] ^= 1 << chance.randrange(8)


def _byte(data: bytearray, chance: random.Random, others: Sequence[bytes]) -> None:
    value = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
    data[_place(data, chance)] = value


def _aligned(data: bytearray, chance: random.Random, width: int) -> int:
    at = _place(data, chance)
    return at - at % width if chance.random() < 0.8 else at


def _edge(data: bytearray, chance: random.Random, others: Sequence[bytes]) -> None:
    width = chance.choice(_WIDTHS)
    at = _aligned(data, chance, width)
    value = chance.choice(EDGES) % (1 << 8 * width)
    order = "little" if chance.random() < 0.8 else "big"
    # Never longer than before: what is behind the end is cut off by the caller.
    data[at : at + width] = value.to_bytes(width, order)  # type: ignore[arg-type]


def _sum(data: bytearray, chance: random.Random, others: Sequence[bytes]) -> None:
    width = chance.choice(_WIDTHS)
    at = _aligned(data, chance, width)
    order = "little" if chance.random() < 0.8 else "big"
    value = int.from_bytes(data[at : at + width], order)  # type: ignore[arg-type]
    value += chance.choice((-4096, -64, -8, -1, 1, 8, 64, 4096, chance.randrange(256)))
    value %= 1 << 8 * width
    data[at : at + width] = value.to_bytes(width, order)  # type: ignore[arg-type]


def _word(data: bytearray, chance: random.Random, others: Sequence[bytes]) -> None:
    # Pointers to themselves, to each other, twice to the same.
    width = chance.choice((4, 8, 8, 16))
    source, target = (_aligned(data, chance, width) for _ in range(2))
    word = data[source : source + width]
    data[target : target + len(word)] = word


def _chunk(data: bytearray, chance: random.Random, others: Sequence[bytes]) -> None:
    size = min(len(data), 1 << chance.randrange(1, 10))
    source, target = (chance.randrange(len(data)) for _ in range(2))
    data[target : target + size] = data[source : source + size]


def _fill(data: bytearray, chance: random.Random, others: Sequence[bytes]) -> None:
    at, size = _place(data, chance), 1 << chance.randrange(1, 8)
    value = chance.choice((0, 0xFF, chance.randrange(256)))
    part = data[at : at + size]
    data[at : at + size] = bytes([value]) * len(part)


def _cut(data: bytearray, chance: random.Random, others: Sequence[bytes]) -> None:
    at = _place(data, chance)
    if chance.random() < 0.3:
        del data[max(1, at) :]
    else:
        del data[at : at + min(1 << chance.randrange(8), len(data) - 1)]


def _insert(data: bytearray, chance: random.Random, others: Sequence[bytes]) -> None:
    at, size = chance.randrange(len(data) + 1), 1 << chance.randrange(7)
    if chance.random() < 0.5:
        source = chance.randrange(len(data))
        data[at:at] = data[source : source + size]
    else:
        data[at:at] = chance.randbytes(size)


def _splice(data: bytearray, chance: random.Random, others: Sequence[bytes]) -> None:
    other = chance.choice(others)
    if not other:
        return
    at, source = chance.randrange(len(data)), chance.randrange(len(other))
    size = 1 << chance.randrange(3, 13)
    data[at : at + size] = other[source : source + size]


def _number(data: bytearray, chance: random.Random, others: Sequence[bytes]) -> None:
    found = _NUMBERS.search(data, chance.randrange(len(data)))
    if found is not None:
        data[found.start() : found.end()] = chance.choice(WRITTEN).encode()


# How often each, beside the others. What changes no length comes first.
_SAME_LENGTH: Sequence[Change] = (
    *(_bit, _byte, _edge, _edge, _edge, _sum, _sum),
    *(_word, _word, _chunk, _fill),
)
_ANY: Sequence[Change] = (*_SAME_LENGTH, _cut, _insert, _splice, _number)


def mutate(
    seed: bytes,
    others: Sequence[bytes],
    chance: random.Random,
    *,
    most: int,
    fixed: bool = False,
) -> bytes:
    """
    A changed copy of an input.

    :param others: inputs that parts may be taken from.
    :param most: bytes that it may have.
    :param fixed: it keeps its length, as memory does.
    """
    data = bytearray(seed) or bytearray(1)
    changes = _SAME_LENGTH if fixed else _ANY
    # Mostly a few: much damage is refused at the first look.
    for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 4, 8, 16))):
        chance.choice(changes)(data, chance, others)
        if not data:
            data += b"\0"
    limit = len(seed) if fixed else most
    del data[limit:]
    return bytes(data)
