# SPDX-License-Identifier: LGPL-2.1-or-later
"""Page codecs against other implementations of the same formats."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from drgn_tools.codecs import BY_FLAG, CODECS, Codec, parse
from drgn_tools.errors import DumpError
from tests.synthetic import PAGE, compress, decompress, text_page

PAGES = (
    bytes(PAGE),
    b"\xff" * PAGE,
    text_page(1),
    np.random.default_rng(0).integers(0, 256, PAGE, np.uint8).tobytes(),
    np.arange(PAGE // 8).astype("<u8").tobytes(),
    bytes(PAGE - 1) + b"\1",
)
every_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)


def levels(codec: Codec) -> list[int]:
    found = []
    for level in range(-20, 40):
        try:
            assert parse(f"{codec.name}:{level}") == (codec, level)
        except DumpError:
            continue
        found.append(level)
    return found


@every_codec
def test_every_level(codec: Codec) -> None:
    """There and back, and by another decompressor."""
    assert codec.default_level in levels(codec)
    unpack = codec.decompressor()
    for level in levels(codec):
        pack = codec.compressor(level)
        for page in PAGES:
            packed = b"".join([pack(page)])
            assert decompress(codec.flag, packed) == page
            assert unpack(packed, PAGE) == page


@every_codec
def test_what_others_compressed(codec: Codec) -> None:
    unpack = codec.decompressor()
    for page in PAGES:
        assert unpack(compress(codec.name, page), PAGE) == page


@every_codec
def test_compresses_at_all(codec: Codec) -> None:
    pack = codec.compressor(codec.default_level)
    assert len(pack(bytes(PAGE))) < 250
    assert len(pack(text_page(1))) < PAGE * 3 // 4


@every_codec
def test_damage(codec: Codec) -> None:
    """An exception or some bytes, never more than were asked for."""
    unpack = codec.decompressor()
    random = np.random.default_rng(0)
    failed = 0
    for seed in range(500):
        packed = bytearray(compress(codec.name, text_page(seed)))
        for at in random.integers(0, len(packed), 3).tolist():
            packed[at] = int(random.integers(0, 256))
        try:
            page = unpack(bytes(packed[: int(random.integers(1, len(packed)))]), PAGE)
        except Exception:  # Each library has its own.
            failed += 1
        else:
            assert len(page) <= PAGE
    assert failed


@every_codec
def test_bombs(codec: Codec) -> None:
    """What unpacks to 64 MiB does not take 64 MiB."""
    bomb = compress(codec.name, bytes(64 << 20))
    try:
        page = codec.decompressor()(bomb, PAGE)
    except Exception:  # Each library has its own.
        return
    assert len(page) <= PAGE


def test_trailing_bytes_of_zlib() -> None:
    unpack = CODECS["zlib"].decompressor()
    assert unpack(zlib.compress(PAGES[2]) + b"more", PAGE) == PAGES[2]


def test_flags() -> None:
    """DUMP_DH_COMPRESSED_* of makedumpfile."""
    assert {name: codec.flag for name, codec in CODECS.items()} == {
        "zlib": 0x1,
        "lzo": 0x2,
        "snappy": 0x4,
        "zstd": 0x20,
    }
    assert {flag: codec.name for flag, codec in BY_FLAG.items()} == {
        codec.flag: name for name, codec in CODECS.items()
    }


def test_parse() -> None:
    for name, codec in CODECS.items():
        assert parse(name) == (codec, None)
    for text in ("", "gzip", "ZLIB", "zlib:", "zlib:x", "zlib:1:2", "zstd:1.5", ":1"):
        with pytest.raises(DumpError):
            parse(text)
    with pytest.raises(DumpError, match="zlib, lzo, snappy, zstd"):
        parse("brotli")
