# SPDX-License-Identifier: LGPL-2.1-or-later
"""Pages whose content is known: what guest/pages.c makes in a guest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

PAGE = 4096
_WORDS = PAGE // 8

_Words = npt.NDArray[np.uint64]

KINDS = (
    "zero",
    "same",
    "random",
    "lines",
    "sparse",
    "three quarters",
    "six bits",
    "counter",
    "language",
    "one byte",
    "partly",
    "alike",
)
"""What a page is, by its number modulo their count."""


def _mix(values: Sequence[int] | _Words) -> _Words:
    z = np.array(values, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return z ^ z >> np.uint64(31)


def _word(random: int) -> bytes:
    letters = ((random >> (8 + 5 * i) & 31) % 26 for i in range(3 + random % 6))
    return bytes(97 + letter for letter in letters) + b" "


_NUMBERS = np.array(range(_WORDS), np.uint64)
_LANGUAGE = [_word(int(random)) for random in _mix(range(256))]


def page(seed: int, index: int) -> bytes:
    """Return page number *index* as `pages write` and `pages hold` make it."""
    kind = KINDS[index % len(KINDS)]
    key = _mix([seed << 32 | index])
    random = _mix(key + _NUMBERS)
    words = np.zeros(_WORDS, np.uint64)
    if kind == "same":
        words[:] = random[0]
    elif kind == "random":
        words = random
    elif kind == "lines":
        line = f"page {index:08} of {seed:08x}, line %04d\n".encode()
        return b"".join(line % n for n in range(PAGE // len(line) + 1))[:PAGE]
    elif kind == "sparse":
        # One after the other: two may fall on the same word.
        for place, value in zip(random[:8], random[8:16]):
            words[int(place) % _WORDS] = value
    elif kind == "three quarters":
        words[: 3000 // 8] = random[: 3000 // 8]
    elif kind == "six bits":
        words = random & np.uint64(0x3F3F3F3F3F3F3F3F)
    elif kind == "counter":
        first = index * (PAGE // 4)
        return np.arange(first, first + PAGE // 4, dtype=np.uint32).tobytes()
    elif kind == "language":
        lows = [
            int(random[i % _WORDS]) >> (i // _WORDS) & 255 for i in range(PAGE // 4)
        ]
        return b"".join(_LANGUAGE[low] for low in lows)[:PAGE]
    elif kind == "one byte":
        return bytes(PAGE - 1) + bytes([1 + int(random[0]) % 255])
    elif kind == "partly":
        length = int(random[0]) % PAGE
        return random.tobytes()[:length] + bytes(PAGE - length)
    elif kind == "alike":
        words = np.tile(random[:16], _WORDS // 16)
        words[::16] = random[::16]
    return words.tobytes()


def pages(seed: int, first: int, count: int) -> list[bytes]:
    """Return pages *first* to *first* + *count* - 1."""
    return [page(seed, index) for index in range(first, first + count)]
