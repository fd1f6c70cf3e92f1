# SPDX-License-Identifier: LGPL-2.1-or-later
"""
LZO1X streams
-------------

As :linux:`lib/lzo/lzo1x_compress.c` writes them, for ``lzo`` and, with runs of zeros
(bitstream version 1, since 5.1), for ``lzo-rle``, which no library reads.
"""

from __future__ import annotations


def decode(data: bytes, size: int, out: bytearray) -> int:
    """
    Decode the stream at the start of *data*, byte for byte as the format says.

    :param size: bytes that it has at the most.
    :param out: empty; gets the bytes, those before an error too.
    :return: bytes of *data* up to the end marker's end.
    :raises ValueError: if it is no stream, is cut short or is longer than *size*.
    """
    try:
        return _decode(data, size, out)
    except IndexError:
        raise ValueError("it is cut short") from None


def _decode(data: bytes, size: int, out: bytearray) -> int:
    at = 0
    runs = False
    # Without a version, no stream starts with 17 but the empty one.
    if len(data) >= 5 and data[0] == 17:
        runs = data[1] != 0
        at = 2
    state = 0
    if data[at] > 17:
        literals = data[at] - 17
        out += _literals(data, at + 1, literals, size)
        at += 1 + literals
        state = min(literals, 4)
    while True:
        op = data[at]
        at += 1
        if op >= 64:
            distance = (data[at] << 3) + (op >> 2 & 7) + 1
            count = (op >> 5) + 1
            state = op & 3
            at += 1
        elif op >= 32:
            count = op & 31
            if not count:
                count, at = _length(data, at, 31)
            count += 2
            low = data[at]
            distance = (data[at + 1] << 6) + (low >> 2) + 1
            state = low & 3
            at += 2
        elif op >= 16:
            if runs and op >= 24 and data[at] >= 0xFC and data[at + 1] == 0xFF:
                distance = 0
                count = (data[at + 2] << 3) + (op & 7) + 4
                state = data[at] & 3
                at += 3
            else:
                count = op & 7
                if not count:
                    count, at = _length(data, at, 7)
                count += 2
                low = data[at]
                distance = ((op & 8) << 11) + (data[at + 1] << 6) + (low >> 2)
                state = low & 3
                at += 2
                if not distance:
                    if count != 3:
                        raise ValueError("its end is damaged")
                    return at
                distance += 0x4000
        elif state == 0:
            count = op
            if not count:
                count, at = _length(data, at, 15)
            count += 3
            out += _literals(data, at, count, size - len(out))
            at += count
            state = 4
            continue
        else:
            if state == 4:
                distance = (data[at] << 2) + (op >> 2) + 2049
                count = 3
            else:
                distance = (data[at] << 2) + (op >> 2) + 1
                count = 2
            state = op & 3
            at += 1
        done = len(out)
        if done + count + state > size:
            raise ValueError("it is too long")
        start = done - distance
        if start < 0:
            raise ValueError("it refers to what is before its start")
        if distance >= count:
            out += out[start : start + count]
        elif distance:
            out += (out[start:] * (count // distance + 1))[:count]
        else:
            out += bytes(count)
        if state:
            out += _literals(data, at, state, state)
            at += state


def _length(data: bytes, at: int, base: int) -> tuple[int, int]:
    while not data[at]:
        base += 255
        at += 1
    return base + data[at], at + 1


def _literals(data: bytes, at: int, count: int, room: int) -> bytes:
    if count > room:
        raise ValueError("it is too long")
    literals = data[at : at + count]
    if len(literals) < count:
        raise ValueError("it is cut short")
    return literals
