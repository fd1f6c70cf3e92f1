# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Damaged streams of one algorithm, to be run as a command of its own, with little memory
left, because what reads them could take all or crash.

    python -m tests.hostile_streams ALGORITHM COUNT

Prints how many of them were read, and how many were not.
"""

from __future__ import annotations

import random
import resource
import sys
import zlib
from collections.abc import Iterator

import cramjam
import lzo
import zstandard

from drgn_tools.decompress import BadStream, decompress, decompress_prefix
from tests import lzo_rle, packed842

#: More than this is not to be allocated.
MEMORY = 64 << 20


def deflated(data: bytes, bits: int, dictionary: bytes = b"") -> bytes:
    """By zlib; *bits* as its ``wbits``."""
    if dictionary:
        stream = zlib.compressobj(6, zlib.DEFLATED, bits, zdict=dictionary)
    else:
        stream = zlib.compressobj(6, zlib.DEFLATED, bits)
    return stream.compress(data) + stream.flush()


def compressed(algorithm: str, data: bytes, chance: random.Random) -> bytes:
    """By a library, if there is one, in one of the ways that there are."""
    if algorithm == "lzo":
        return bytes(lzo.compress(data, chance.choice([1, 9]), False))
    if algorithm == "lzo-rle":
        return lzo_rle.encode(data)
    if algorithm == "lz4":
        return bytes(cramjam.lz4.compress_block(data, store_size=False))
    if algorithm == "lz4hc":
        return bytes(
            cramjam.lz4.compress_block(
                data, store_size=False, mode="high_compression", compression=9
            )
        )
    if algorithm == "zstd":
        compressor = zstandard.ZstdCompressor(
            level=chance.choice([1, 3, 19]),
            write_content_size=chance.random() < 0.5,
            write_checksum=chance.random() < 0.5,
        )
        return compressor.compress(data)
    if algorithm == "deflate":
        return deflated(data, chance.choice([-15, -12, -11, -9, 9, 12, 15]))
    assert algorithm == "842"
    return packed842.pack(data, chance)


def pages(chance: random.Random, size: int = 4096) -> Iterator[bytes]:
    """Of all kinds."""
    while True:
        words = [chance.randbytes(chance.randrange(1, 17)) for _ in range(40)]
        number = chance.choice([8, 100, 70000, 1 << 40])
        yield bytes(size)
        yield chance.randbytes(size)
        yield b"".join(chance.choice(words) for _ in range(size))[:size]
        numbers = [chance.randrange(-number, number) for _ in range(size // 8)]
        yield b"".join(n.to_bytes(8, "little", signed=True) for n in numbers)
        numbers = [chance.choice([0, 0, n]) for n in numbers]
        yield b"".join(n.to_bytes(8, "little", signed=True) for n in numbers)


def damaged(stream: bytes, chance: random.Random) -> bytes:
    """With a few bytes changed, cut, or with something behind it."""
    data = bytearray(stream)
    for _ in range(chance.randrange(1, 4)):
        value = chance.choice([0, 0xFF, 0x18, chance.randrange(256)])
        data[chance.randrange(len(data))] = value
    if chance.random() < 0.2:
        del data[chance.randrange(1, len(data)) :]
    if chance.random() < 0.1:
        data += chance.randbytes(chance.randrange(1, 20))
    return bytes(data)


def main() -> None:
    """Run as a command."""
    algorithm, count = sys.argv[1], int(sys.argv[2])
    chance = random.Random(algorithm)
    # That decoder is slow.
    size = 1024 if algorithm == "842" else 4096
    source = pages(chance, size)
    good = [compressed(algorithm, next(source), chance) for _ in range(100)]
    for stream in good:
        decompress(algorithm, stream, size)
    with open("/proc/self/statm") as file:
        memory = int(file.read().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    read = 0
    for _ in range(count):
        stream = damaged(chance.choice(good), chance)
        page = None
        try:
            page = decompress(algorithm, stream, size)
            assert len(page) == size
            read += 1
        except BadStream:
            pass
        try:
            prefix, used = decompress_prefix(algorithm, stream, size)
            assert len(prefix) == size
            assert used <= len(stream)
            # What is a whole stream is the same by both.
            assert page is None or (prefix, used) == (page, len(stream))
        except BadStream:
            # Only liblz4 takes a distance of 0.
            assert page is None or algorithm in ("lz4", "lz4hc")
    print(read, count - read)


if __name__ == "__main__":
    main()
