# SPDX-License-Identifier: LGPL-2.1-or-later
"""Decoders of compressed pages against the kernel's and libraries' encoders."""

from __future__ import annotations

import pytest

from drgn_tools.decompress import decompress, decompress_prefix

#: Pages, and what the kernel's encoder makes of them.
LZO_RLE = {
    "zeros": (
        bytes(4096),
        "11010200000000001ffcffff18fcfffc0002000000000000000000000000000000000000000011"
        "0000",
    ),
    "one at the end": (
        bytes(4095) + b"\1",
        "11010200000000001ffcffff18fcfffc0002000000000000000000000000000000000000000111"
        "0000",
    ),
    "ff, zeros": (
        b"\xff" * 16 + bytes(4080),
        "110102ffffffffff2910001ffcffff1dfcfffa00020000000000000000000000000000000000000"
        "000110000",
    ),
    "sparse": (
        b"".join(b"PAGE%04d" % n + bytes(504) for n in range(8)),
        "11010550414745303030301cfcff3edd3f311cfcff3edd3f321cfcff3edd3f331cfcff3edd3f341"
        "cfcff3edd3f351cfcff3edd3f361cfcff3edd3f3718fcff3c000200000000000000000000000000"
        "00000000000000110000",
    ),
}


@pytest.mark.parametrize("name", LZO_RLE)
def test_lzo_rle(name: str) -> None:
    page, text = LZO_RLE[name]
    stream = bytes.fromhex(text)
    assert decompress("lzo-rle", stream) == page
    assert decompress_prefix("lzo-rle", stream + stream) == (page, len(stream))
