# SPDX-License-Identifier: LGPL-2.1-or-later
"""
842 streams
-----------

As :linux:`lib/842/842_compress.c` writes them; no library reads them.
"""

from __future__ import annotations

import zlib

# What an operation does for its 8 bytes: D, so many bytes as they are; I, so many from
# earlier (:linux:`lib/842/842.h`).
_OPS = (
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
# Bits of an index into what came last, by the bytes that it stands for.
_INDEX_BITS = {2: 8, 4: 9, 8: 8}
_REPEAT, _ZEROS, _SHORT, _END = 0x1B, 0x1C, 0x1D, 0x1E
# The bits of each byte, turned round.
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _actions(op: str) -> list[tuple[int, int, int, int]]:
    """Bytes, bits, these as a mask and, of an index, the size of its ring."""
    actions = []
    for action in op.split():
        size = int(action[1])
        data = action[0] == "D"
        bits = 8 * size if data else _INDEX_BITS[size]
        actions.append((size, bits, (1 << bits) - 1, 0 if data else size << bits))
    return actions


_ACTIONS = [_actions(op) for op in _OPS]
# Bits of each operation, its number included; of short data, without the data.
_BITS = [5 + sum(bits for _, bits, _, _ in actions) for actions in _ACTIONS]
_BITS += [5] * (32 - len(_BITS))
_BITS[_REPEAT] += 6
_BITS[_SHORT] += 3
_BITS[_END] += 32


def decode(data: bytes, size: int, out: bytearray) -> int:
    """
    Decode the stream at the start of *data*.

    :param size: bytes that it has at the most.
    :param out: empty; gets the bytes, those before an error too.
    :return: bytes of *data* that it takes, padding included.
    :raises ValueError: if it is no stream, is cut short, is longer than *size*, or its
        checksum is another.
    """
    end = 8 * len(data)
    # All that an operation may take can be had.
    data += bytes(10)
    at = 0
    while True:
        window = int.from_bytes(data[at >> 3 : (at >> 3) + 10], "big")
        # Of the window, behind the operation's number.
        left = 75 - (at & 7)
        op = window >> left & 31
        at += _BITS[op]
        if op == _SHORT:
            count = window >> left - 3 & 7
            at += 8 * count
        if at > end:
            raise ValueError("it is cut short")
        room = size - len(out)
        if op < len(_ACTIONS):
            if room < 8:
                raise ValueError("it is too long")
            # Indices are into rings of what is there before the operation, which only
            # the last bytes make no multiple of 8.
            done = len(out)
            if done & 7:
                raise ValueError("its last bytes are not the last")
            for count, bits, mask, ring in _ACTIONS[op]:
                left -= bits
                value = window >> left & mask
                if ring:
                    start = done - done % ring + value * count
                    if start >= done:
                        start -= ring
                    if start < 0:
                        raise ValueError("it refers to what is not there yet")
                    out += out[start : start + count]
                else:
                    out += value.to_bytes(count, "big")
        elif op == _ZEROS:
            if room < 8:
                raise ValueError("it is too long")
            out += bytes(8)
        elif op == _REPEAT:
            count = (window >> left - 6 & 63) + 1
            if room < 8 * count:
                raise ValueError("it is too long")
            if len(out) < 8:
                raise ValueError("it repeats what is not there")
            out += out[-8:] * count
        elif op == _SHORT:
            if not count or room < count:
                raise ValueError("its last bytes are damaged")
            value = window >> left - 3 - 8 * count & (1 << 8 * count) - 1
            out += value.to_bytes(count, "big")
        elif op == _END:
            if window >> left - 32 & 0xFFFFFFFF != _crc32_be(out):
                raise ValueError("its checksum is wrong")
            used = (at + 63) // 64 * 8
            if 8 * used > end:
                raise ValueError("its padding is cut short")
            return used
        else:
            raise ValueError("it has an unknown operation")


def _crc32_be(data: bytes | bytearray) -> int:
    """The kernel's crc32_be(0, ...): zlib's, the other way round and not inverted."""
    crc = ~zlib.crc32(data.translate(_MIRRORED), 0xFFFFFFFF) & 0xFFFFFFFF
    return int.from_bytes(crc.to_bytes(4, "little").translate(_MIRRORED), "big")
