# SPDX-License-Identifier: LGPL-2.1-or-later
"""
LZ4 blocks
----------

As ``lz4`` and ``lz4hc`` write them (:linux:`lib/lz4/`; the format is lz4's
``lz4_Block_format.md``). Libraries read a block only if they know where it ends, and
give nothing for one that is cut: :func:`decode` does.
"""

from __future__ import annotations

# No distance is longer.
_REACH = 0xFFFF


def decompress(data: bytes, size: int, dictionary: bytes = b"") -> bytes:
    """
    Decompress a block as a whole.

    :param dictionary: what is before the block.
    :raises ValueError: if it is no block, or of more than *size* bytes. liblz4 takes a
        distance of 0, which no encoder writes, for zeros.
    """
    import cramjam

    before = 0
    if dictionary:
        dictionary = dictionary[-_REACH:]
        before = len(dictionary)
        data = _with_literals(dictionary, data)
    room = bytearray(before + size)
    try:
        # Without a place, it says nothing of a page that is too short.
        done = cramjam.lz4.decompress_block_into(data, room)
    except cramjam.DecompressionError as why:
        raise ValueError(str(why)) from None
    return bytes(memoryview(room)[before:done])


def _with_literals(literals: bytes, data: bytes) -> bytes:
    """The same block, but with that in front of what it is."""
    try:
        count, at = data[0] >> 4, 1
        if count == 15:
            count, at = _length(data, at)
    except IndexError:
        raise ValueError("it is cut short") from None
    count += len(literals)
    token = bytes([min(count, 15) << 4 | data[0] & 15])
    if count >= 15:
        more, last = divmod(count - 15, 255)
        token += b"\xff" * more + bytes([last])
    return token + literals + data[at:]


def decode(data: bytes, size: int, out: bytearray, dictionary: bytes = b"") -> int:
    """
    Decode the block at the start of *data*.

    It ends where *data* does, or with *size* bytes: the last of a block are literals.

    :param out: empty; gets the bytes, those before an error too.
    :param dictionary: what is before the block.
    :return: bytes of *data* that it takes.
    :raises ValueError: if it is no block, is cut short or is longer than *size*.
    """
    history = dictionary[-_REACH:]
    before = len(history)
    at = 0
    try:
        while True:
            token = data[at]
            at += 1
            count = token >> 4
            if count == 15:
                count, at = _length(data, at)
            if count:
                if len(out) + count > size:
                    raise ValueError("it is too long")
                out += data[at : at + count]
                at += count
            if at >= len(data) or len(out) == size:
                if at > len(data):
                    raise ValueError("it is cut short")
                return at
            distance = data[at] + (data[at + 1] << 8)
            at += 2
            count = token & 15
            if count == 15:
                count, at = _length(data, at)
            count += 4
            done = len(out)
            if done + count > size:
                raise ValueError("it is too long")
            start = done - distance
            if not distance or start < -before:
                raise ValueError("it refers to what is before its start")
            if start < 0:
                piece = history[start : start + count or None][:count]
                out += piece
                count -= len(piece)
                start = 0
            if distance >= count:
                out += out[start : start + count]
            else:
                out += (out[start:] * (count // distance + 1))[:count]
    except IndexError:
        raise ValueError("it is cut short") from None


def _length(data: bytes, at: int) -> tuple[int, int]:
    count = 15
    while data[at] == 255:
        count += 255
        at += 1
    return count + data[at], at + 1
