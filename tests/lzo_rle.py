# SPDX-License-Identifier: LGPL-2.1-or-later
"""Streams of lzo-rle: liblzo's with runs of zeros, and ones of any instructions."""

from __future__ import annotations

import random

import lzo


def run(count: int, literals: int) -> bytes:
    """The instruction for 4 to 2051 zeros that up to 3 literals follow."""
    count -= 4
    return bytes([0x18 | count & 7, 0xFC | literals, 0xFF, count >> 3])


def encode(page: bytes) -> bytes:
    """
    What liblzo makes of a page of up to 16 KiB, with runs for all matches that are
    zeros.
    """
    data = lzo.compress(page, 1, False)
    out = bytearray(b"\x11\x01")
    at = done = state = 0
    if data[0] > 17:
        done = data[0] - 17
        at = 1 + done
        state = min(done, 4)
        out += data[:at]
    while True:
        start = at
        op = data[at]
        at += 1
        if op >= 64:
            count, state = (op >> 5) + 1, op & 3
            at += 1
        elif op >= 32:
            count, at = _count(data, at, op & 31, 31, 2)
            state = data[at] & 3
            at += 2
        elif op >= 16:
            return bytes(out + data[start:])
        elif state == 0:
            count, at = _count(data, at, op, 15, 3)
            at += count
            out += data[start:at]
            done += count
            state = 4
            continue
        else:
            count, state = (3 if state == 4 else 2), op & 3
            at += 1
        if count >= 4 and not any(page[done : done + count]):
            left = count
            while left > 2051:
                out += run(2000, 0)
                left -= 2000
            out += run(left, state)
        else:
            out += data[start:at]
        out += data[at : at + state]
        at += state
        done += count + state


def _count(data: bytes, at: int, count: int, base: int, more: int) -> tuple[int, int]:
    if count:
        return count + more, at
    count = base + more
    while not data[at]:
        count += 255
        at += 1
    return count + data[at], at + 1


# Of what instructions, counts and distances that decide something are made.
_BYTES = bytes([0, 4, 0x10, 0x11, 0x18, 0x1B, 0x1F, 0x20, 0x40, 0xFC, 0xFE, 0xFF, 0xFF])


def _long(count: int) -> bytes:
    zeros, last = divmod(count - 1, 255)
    return bytes(zeros) + bytes([last + 1])


def any_stream(chance: random.Random) -> bytes:
    """
    A stream with instructions of all kinds, many of whose parts look like a run of
    zeros and are none. Some streams are wrong.
    """
    length = chance.choice([60, 100, 200, 700])
    # How often literals look like a run, are special and how often matches are wrong.
    runs = chance.choice([0, 0, 0.02, 0.1])
    special = chance.choice([0, 0.1, 0.4])
    wrong = chance.choice([0, 0.01, 0.05])

    def one_of(*values: int) -> int:
        return chance.choice([*values, chance.randrange(256)])

    def literals(count: int) -> bytes:
        out = b""
        while len(out) < count + 3:
            if chance.random() < runs:
                out += run(chance.choice([4, 9, 30, 2044]), chance.randrange(4))
            elif chance.random() < special:
                out += bytes([chance.choice(_BYTES)])
            else:
                out += chance.randbytes(1)
        start = chance.randrange(4)
        return out[start : start + count]

    out = bytearray(b"\x11\x01")
    done = state = 0
    if chance.random() < 0.7:
        done = chance.choice([1, 2, 3, 4, 7, 14, 18, 40])
        out += bytes([17 + done]) + literals(done)
        state = min(done, 4)
    while done < length:
        kind = chance.random()
        after = chance.randrange(4)
        bad = chance.random() < wrong
        if state == 0 and kind < 0.35:
            count = chance.choice([4, 5, 9, 18, 19, 30, 42, 46, 49])
            out += bytes([count - 3]) if count <= 18 else b"\0" + _long(count - 18)
            out += literals(count)
            done += count
            state = 4
            continue
        if kind < 0.45 and state:
            count, base = (2, 1) if state < 4 else (3, 2049)
            high, low = one_of(0, 0x18, 0x1C, 0x1F), chance.randrange(4)
            distance = (high << 2) + low + base
            code = bytes([low << 2 | after, high])
        elif kind < 0.65:
            count = chance.randrange(3, 9)
            high, low = one_of(0, 0x18, 0x1C, 0x1F, 0xFF), chance.randrange(8)
            distance = (high << 3) + low + 1
            code = bytes([count - 1 << 5 | low << 2 | after, high])
        elif kind < 0.8:
            count = chance.choice([3, 4, 5, 6, 33, 34, 40, 57, 60, 61, 64])
            high, low = one_of(0, 0, 0x18, 0x1C, 0x1F), one_of(0x18, 0x1C, 0xFC)
            if bad:
                high, low = chance.choice([(0xFF, 0xFC), (0xFF, 0xFF), (high, low)])
            low = low & ~3 | after
            distance = (high << 6) + (low >> 2) + 1
            code = (
                bytes([32 | count - 2]) if count <= 33 else b"\x20" + _long(count - 33)
            )
            code += bytes([low, high])
        elif kind < 0.8 + wrong / 10:
            count, distance, bad = chance.randrange(4, 10), 1 << 16, True
            code = bytes([chance.choice([16, 24]) | count - 2 & 7])
            code += bytes([one_of(0xFC) & ~3 | after, one_of(0xFF, 0xFE)])
        else:
            count = chance.choice([4, 5, 6, 7, 8, 12, 14, 30, 50, 1000])
            distance, code = 0, run(count, after)
        if distance > done and not bad:
            continue
        out += code + literals(after)
        done += count + after
        state = after
    return bytes(out + b"\x11\0\0")
