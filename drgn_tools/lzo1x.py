# SPDX-License-Identifier: LGPL-2.1-or-later
"""
LZO1X streams
-------------

As :linux:`lib/lzo/lzo1x_compress.c` writes them, for ``lzo`` and, with runs of zeros
(bitstream version 1, since 5.1), for ``lzo-rle``, which no library reads.

:func:`decode` is the format; :func:`decompress` is fast. It has liblzo do the work,
with instructions that liblzo knows in place of the runs of zeros: matches far back, in
zeros that a literal run has put in front of the page. Where such runs are is not known
without reading all instructions, which Python is slow at. So what looks like one is
replaced, and if that was wrong it shows, because it is done twice, differently:

* What is in front of the page differs in every byte. So a match that reaches what is
  before the page's start makes the pages differ, but for the new matches: they are from
  where there are zeros, both times elsewhere.
* Of the first three bytes of a new instruction, none is the same both times. If the
  first is taken for a literal, the pages differ. If it is taken for part of an
  instruction, something follows that makes them differ, whichever part it is:

  - the distance of a short match, or the high half of a longer one's: its second byte
    is a literal, or it is 4 to 11, the length of a literal run, whose first byte is
    the third;
  - the low half of a distance: two bits of it say that literals follow, of which the
    first is its third byte;
  - the end of a literal run's length: its second byte is that run's first;
  - the end of a match's length: the next two are that match's distance, with which it
    has zeros from in front of the page the one time, and not the other.

* What is a run of zeros and was not replaced is out of liblzo's reach.

So if both pages are the same, that is the page; if not, :func:`decode` says what it is.
"""

from __future__ import annotations

import functools
import re
from typing import Callable

# What looks like a run of zeros: opcode, distance, count; from its third byte on, which
# is found fast.
_RUN = re.compile(rb"\xff(?<=[\x18-\x1f][\xfc-\xff]\xff).", re.DOTALL)
_END = b"\x11\0\0"
# The largest page that is decompressed fast.
_MOST = 4096
# How far back the new matches are, and how long what is in front of the page is: the
# first is for opcodes from 32 on, the second for those from 16 on. Their low six bits
# are what makes the second bytes 4 to 11.
_NEAR = _MOST + 2
_FAR = 0x4000 + _MOST + 64 + 2


def _counted(op: int, most: int, count: int) -> bytes:
    """An opcode with its count, which has bytes of its own if it is too large."""
    if count <= most:
        return bytes([op | count])
    zeros, last = divmod(count - most - 1, 255)
    return bytes([op, *bytes(zeros), last + 1])


def _front(filler: int, size: int) -> bytes:
    """A literal run: zeros, then filler, of which :data:`_STARTS` add three bytes."""
    content = bytes(_MOST).ljust(size, bytes([filler]))[:-3]
    return _counted(0, 15, len(content) - 3) + content


def _start(first: int) -> bytes:
    """
    What a stream's first byte is when it is not the first: a match of three bytes, the
    last one again, so that literals may follow, and then those or an instruction.
    """
    literals = first - 17
    if literals <= 0:
        return bytes([64, 0, first])
    if literals <= 3:
        return bytes([64 | literals, 0])
    return b"\x40\0" + _counted(0, 15, literals - 3)


def _replacement(op: int, most: int, distance: int) -> Callable[[bytes], bytes]:
    @functools.cache
    def replacement(run: bytes) -> bytes:
        count = (run[3] << 3) + (run[0] & 7) + 4
        end = (distance << 2 | run[1] & 3).to_bytes(2, "little")
        if count <= 5:
            return bytes([op | count - 2]) + end
        # The low bits of the first opcode are not 0: see above.
        start = bytes([op | 1]) + (distance << 2).to_bytes(2, "little")
        return start + _counted(op, most, count - 5) + end

    return replacement


_STARTS = [_start(first) for first in range(256)]
_WAYS = (
    (_NEAR, _front(0x00, _NEAR), _replacement(32, 31, _NEAR - 1)),
    (_FAR, _front(0xFF, _FAR), _replacement(16, 7, _FAR - 0x4000)),
)


def _split(body: bytes, ends: list[int]) -> list[bytes]:
    """A place, the first byte's start, and by turns what is no run and what may be."""
    pieces = [b"", _STARTS[body[0]]]
    at = 1
    for end in ends:
        # The last byte of one may look like the first of another.
        if end - 4 >= at:
            pieces += (body[at : end - 4], body[end - 4 : end])
            at = end
    pieces.append(body[at:])
    return pieces


def decompress(data: bytes, size: int) -> bytes | None:
    """
    Decompress *data* as a whole, to *size* bytes at the most.

    :return: None if it has to be decoded.
    """
    import lzo

    # liblzo takes any count for the end marker's, even one with bytes of its own.
    if data[-3:] != _END or data[:-3].rstrip(b"\0").endswith(b"\x10"):
        return None
    versioned = data[0] == 17 and len(data) >= 5
    body = data[2:] if versioned else data
    runs: list[int] = []
    if versioned and data[1]:
        # The first byte is no instruction.
        runs = [run.end() for run in _RUN.finditer(body, 3)]
    if not runs:
        try:
            page: bytes = lzo.decompress(body, False, size)
            return page
        except lzo.error:
            return None
    if size > _MOST:
        return None
    # Negative numbers in programs look like 2044 zeros and more, which are rare.
    short = [end for end in runs if body[end - 1] != 0xFF]
    for ends in (short, runs) if len(short) < len(runs) else (runs,):
        pieces = _split(body, ends)
        found = pieces[3::2]
        pages: list[bytes] = []
        try:
            for before, front, replacement in _WAYS:
                pieces[0] = front
                pieces[3::2] = map(replacement, found)
                content = lzo.decompress(b"".join(pieces), False, before + size)
                pages.append(content[before:])
        except lzo.error:
            continue
        if pages[0] == pages[1]:
            return pages[0]
    return None


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
    at = done = state = 0
    runs = False
    # Without a version, no stream starts with 17 but the empty one.
    if len(data) >= 5 and data[0] == 17:
        runs = data[1] != 0
        at = 2
    if data[at] > 17:
        done = data[at] - 17
        if done > size:
            raise ValueError("it is too long")
        at += 1
        out += data[at : at + done]
        at += done
        state = min(done, 4)
    while True:
        # Literals that are not all there end here, too.
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
            done += count
            if done > size:
                raise ValueError("it is too long")
            out += data[at : at + count]
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
        start = done - distance
        if start < 0:
            raise ValueError("it refers to what is before its start")
        done += count + state
        if done > size:
            raise ValueError("it is too long")
        if distance >= count:
            out += out[start : start + count]
        elif distance:
            out += (out[start:] * (count // distance + 1))[:count]
        else:
            out += bytes(count)
        if state:
            out += data[at : at + state]
            at += state


def _length(data: bytes, at: int, base: int) -> tuple[int, int]:
    while not data[at]:
        base += 255
        at += 1
    return base + data[at], at + 1
