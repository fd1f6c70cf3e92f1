# SPDX-License-Identifier: LGPL-2.1-or-later
"""Decoders of compressed pages against the kernel's and libraries' encoders."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from itertools import islice
from pathlib import Path

import cramjam
import pytest
import zstandard

from drgn_tools import lzo1x
from drgn_tools.decompress import (
    ALGORITHMS,
    BadStream,
    decompress,
    decompress_many,
    decompress_prefix,
)
from tests import lzo_rle
from tests.hostile_streams import compressed, deflated, pages

every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)

PAGE = 4096
#: Pages, and what the kernel's encoder (6.1) makes of them, in lzo-rle.
LZO_RLE = {
    "zeros": (
        bytes(PAGE),
        "11010200000000001ffcffff18fcfffc00020000000000000000000000000000000000000000"
        "110000",
    ),
    "one at the end": (
        bytes(PAGE - 1) + b"\1",
        "11010200000000001ffcffff18fcfffc00020000000000000000000000000000000000000001"
        "110000",
    ),
    "ff, zeros": (
        (b"\xff" * 16).ljust(PAGE, b"\0"),
        "110102ffffffffff2910001ffcffff1dfcfffa00020000000000000000000000000000000000"
        "000000110000",
    ),
    "sparse": (
        b"".join(b"PAGE%04d" % n + bytes(504) for n in range(8)),
        "11010550414745303030301cfcff3edd3f311cfcff3edd3f321cfcff3edd3f331cfcff3edd3f"
        "341cfcff3edd3f351cfcff3edd3f361cfcff3edd3f3718fcff3c000200000000000000000000"
        "00000000000000000000110000",
    ),
    # Literals that look like runs of zeros, among such runs.
    "calls": (
        b"".join(struct.pack("<Biq", 0xE8, -740 - n * n, 0) for n in range(20)).ljust(
            PAGE, b"\0"
        ),
        "110102e81cfdffff1cfcff0002e81bfdffff1cfeff00e8182a3100132a31000c2a3100032a32"
        "00f8fc290101eb2a3100dc2a3100cb2a3100b82a3100a32a31008c2a3100732a3100582a3100"
        "3b2a31001c2a3200fbfb293902d82a3100b32930001ffcffff19fcffdc000200000000000000"
        "00000000000000000000000000110000",
    ),
    "small negative numbers": (
        b"".join(struct.pack("<IQ", 0xFFFC18 + n, 0) for n in range(8)).ljust(
            PAGE, b"\0"
        ),
        "11010218fcff00001bffff0019fcff1dfdff001a292d001b292d001c292d001d292d001e292d"
        "001f292c001ffcffff1dfcfff000020000000000000000000000000000000000000000110000",
    ),
    # A match further back than pages of 4 KiB have any.
    "far": (
        (b"0123456789abcdef" + bytes(20000) + b"0123456789abcdef").ljust(20480, b"\0"),
        "11010d303132333435363738396162636465661ffcffff1ffcffff1ffcffff1ffcffff1ffcff"
        "ff1ffcffff1ffcffff1ffcffff1ffcffff19fcffc01000b4c038000200000000000000000000"
        "00000000000000000000110000",
    ),
}


@pytest.mark.verified(
    "zram: each compressor's pages", by="pages that a kernel compressed", on="bytes"
)
@pytest.mark.parametrize("name", LZO_RLE)
def test_lzo_rle_of_the_kernel(name: str) -> None:
    page, text = LZO_RLE[name]
    stream = bytes.fromhex(text)
    # The kernel's decoder for lzo is the same.
    for algorithm in ("lzo", "lzo-rle"):
        assert decompress(algorithm, stream, len(page)) == page
        found = decompress_prefix(algorithm, stream + stream, len(page))
        assert found == (page, len(stream))


@pytest.mark.verified(
    "zram: each compressor's pages", by="the compressors' own libraries", on="bytes"
)
@every_algorithm
@pytest.mark.parametrize("size", [4096, 16384])
def test_what_libraries_compressed(algorithm: str, size: int) -> None:
    chance = random.Random(size)
    for page in islice(pages(chance, size), 10 if algorithm == "842" else 30):
        stream = compressed(algorithm, page, chance)
        assert decompress(algorithm, stream, size) == page
        assert decompress(algorithm, memoryview(stream), size) == page
        behind = stream + chance.randbytes(20)
        assert decompress_prefix(algorithm, behind, size) == (page, len(stream))
        wrong = [b"", stream[:-1], stream + b"x", stream[: len(stream) // 2]]
        for bad in wrong:
            with pytest.raises(BadStream):
                decompress(algorithm, bad, size)
        for other in (size - 1, size + 1, size // 2, 2 * size):
            with pytest.raises(BadStream):
                decompress(algorithm, stream, other)


def test_lzo_rle_by_instruction() -> None:
    """liblzo's page, put together from what looks like runs, is the one decoded."""
    chance = random.Random(1)
    fast = slow = 0
    for _ in range(3000):
        stream = lzo_rle.any_stream(chance)
        out = bytearray()
        try:
            assert lzo1x.decode(stream, PAGE, out) == len(stream)
        except ValueError:
            with pytest.raises(BadStream):
                decompress("lzo-rle", stream, len(out))
            assert lzo1x.decompress(stream, PAGE) is None
            continue
        page = lzo1x.decompress(stream, PAGE)
        assert page is None or page == out
        assert decompress("lzo-rle", stream, len(out)) == out
        fast, slow = fast + (page is not None), slow + (page is None)
    assert fast > 500
    assert slow > 300


def test_lzo_rle_is_mostly_fast() -> None:
    chance = random.Random(1)
    streams = [lzo_rle.encode(page) for page in islice(pages(chance), 300)]
    fast = [lzo1x.decompress(stream, PAGE) is not None for stream in streams]
    assert sum(fast) > 250


def with_lz4_dictionary(page: bytes, dictionary: bytes) -> bytes:
    """
    The block of both, less the dictionary, of which nothing is in itself again and
    which so is all literals.
    """
    both = dictionary + page
    block = bytes(cramjam.lz4.compress_block(both, store_size=False))
    count, at = 15, 1
    assert block[0] >> 4 == 15
    while block[at] == 255:
        count += 255
        at += 1
    count += block[at] - len(dictionary)
    assert count >= 0
    start = bytes([min(count, 15) << 4 | block[0] & 15])
    if count >= 15:
        start += b"\xff" * ((count - 15) // 255) + bytes([(count - 15) % 255])
    return start + block[at + 1 + len(dictionary) :]


@pytest.mark.parametrize("length", [1000, 4096, 60000])
@pytest.mark.parametrize("algorithm", ["lz4", "lz4hc"])
def test_lz4_dictionary(algorithm: str, length: int) -> None:
    chance = random.Random(length)
    dictionary = chance.randbytes(length)
    pieces = [dictionary[at : at + 50] for at in range(10, length, 50)]
    page = b"".join(chance.choice(pieces) for _ in range(100))[:4000].ljust(PAGE, b"-")
    stream = with_lz4_dictionary(page, dictionary)
    assert len(stream) < 3000
    for known in (dictionary, chance.randbytes(100000) + dictionary):
        assert decompress(algorithm, stream, dictionary=known) == page
        found = decompress_prefix(algorithm, stream + b"more", dictionary=known)
        assert found == (page, len(stream))
    for wrong in (b"", dictionary[-500:]):
        with pytest.raises(BadStream):
            decompress(algorithm, stream, dictionary=wrong)
        with pytest.raises(BadStream):
            decompress_prefix(algorithm, stream, dictionary=wrong)


@pytest.mark.parametrize("kind", ["raw", "trained"])
def test_zstd_dictionary(kind: str) -> None:
    chance = random.Random(kind)
    words = [chance.randbytes(12) for _ in range(200)]

    def page() -> bytes:
        return b"".join(chance.choice(words) for _ in range(400))[:PAGE]

    if kind == "trained":
        samples: list[bytes | bytearray | memoryview] = [page() for _ in range(200)]
        dictionary = zstandard.train_dictionary(8192, samples).as_bytes()
    else:
        dictionary = page() + page()
    whole = zstandard.ZstdCompressionDict(dictionary)
    for sized in (True, False):
        compressor = zstandard.ZstdCompressor(dict_data=whole, write_content_size=sized)
        for _ in range(20):
            content = page()
            stream = compressor.compress(content)
            assert decompress("zstd", stream, dictionary=dictionary) == content
            found = decompress_prefix("zstd", stream + b"mo", dictionary=dictionary)
            assert found == (content, len(stream))
            with pytest.raises(BadStream):
                decompress("zstd", stream)


@pytest.mark.parametrize("bits", [*range(-15, -8), *range(9, 16)])
def test_deflate_windows(bits: int) -> None:
    chance = random.Random(bits)
    for page in islice(pages(chance), 20):
        stream = deflated(page, bits)
        for said in (bits, None):
            assert decompress("deflate", stream, window_bits=said) == page
            found = decompress_prefix("deflate", stream + b"more", window_bits=said)
            assert found == (page, len(stream))
        with pytest.raises(BadStream):
            decompress("deflate", stream, window_bits=-bits)


@pytest.mark.parametrize("bits", [-11, 12])
def test_deflate_dictionary(bits: int) -> None:
    chance = random.Random(bits)
    dictionary = chance.randbytes(1000)
    page = (dictionary[500:] + dictionary).ljust(PAGE, b".")
    stream = deflated(page, bits, dictionary)
    assert len(stream) < 1000
    assert decompress("deflate", stream, dictionary=dictionary) == page
    with pytest.raises(BadStream):
        decompress("deflate", stream)


def test_842_without_its_checksum() -> None:
    """Any other bit is found out by it."""
    chance = random.Random(1)
    page = next(islice(pages(chance), 2, None))
    stream = compressed("842", page, chance)
    # Behind the checksum is padding.
    for bit in chance.sample(range(8 * len(stream) - 64), 50):
        data = bytearray(stream)
        data[bit // 8] ^= 128 >> bit % 8
        with pytest.raises(BadStream):
            decompress("842", bytes(data))


@every_algorithm
def test_hostile(algorithm: str) -> None:
    """Neither a crash nor a wrong length, nor memory that is not there."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile_streams", algorithm, "10000"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    read, refused = map(int, done.stdout.split())
    assert read + refused == 10000
    assert refused > 5000


@every_algorithm
def test_bombs(algorithm: str) -> None:
    """Of what is too long, little is made."""
    chance = random.Random(1)
    size = 1 << 16 if algorithm == "842" else 4 << 20
    if algorithm == "lzo-rle":
        zeros = b"".join([b"\x11\1", lzo_rle.run(2051, 0) * 2048, b"\x11\0\0"])
    else:
        zeros = compressed(algorithm, bytes(size), chance)
    for wanted in (10, PAGE):
        with pytest.raises(BadStream):
            decompress(algorithm, zeros, wanted)
        with pytest.raises(BadStream):
            decompress_prefix(algorithm, zeros, wanted)


def test_zstd_frames_that_claim() -> None:
    """A content size or a window of 2^60 bytes is not believed."""
    body = b"\x01\x00\x00"
    for header in (
        b"\xe0" + (1 << 60).to_bytes(8, "little"),
        b"\xc0\xff" + PAGE.to_bytes(8, "little"),
        b"\x00\xff",
    ):
        with pytest.raises(BadStream):
            decompress("zstd", b"\x28\xb5\x2f\xfd" + header + body)


def test_many() -> None:
    chance = random.Random(1)
    found = list(islice(pages(chance), 20))
    streams = [compressed("lzo-rle", page, chance) for page in found]
    streams[3] = streams[3][:-1]
    streams[7] = b""
    many = decompress_many("lzo-rle", streams)
    assert [n for n, page in enumerate(many) if isinstance(page, BadStream)] == [3, 7]
    del many[7], many[3], found[7], found[3]
    assert many == found


def test_an_unknown_algorithm() -> None:
    with pytest.raises(BadStream, match="brotli"):
        decompress("brotli", b"")
    with pytest.raises(BadStream, match="brotli"):
        decompress_prefix("brotli", b"")
