# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Page codecs
-----------

Compression and decompression of single pages, by the names and flag bits of
the kdump-compressed format. Each library is imported when it is first needed;
``benchmarks/codecs.py`` measures why it is this one.
"""

from __future__ import annotations

import importlib
import zlib
from types import ModuleType
from typing import Any, Callable, NamedTuple, Union

from drgn_tools.errors import DumpError

#: What libraries give back; anything that can be written, and has a length.
Buffer = Union[bytes, bytearray, memoryview]
#: Compresses one page.
Compress = Callable[[bytes], Buffer]
#: Decompresses one page: (data, page size) to bytes.
Decompress = Callable[[bytes, int], bytes]


def _library(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise DumpError(
            f"this needs the Python package {package}: pip install {package}"
        ) from None


def _zlib_compressor(level: int) -> Compress:
    compress: Any
    if level == 1:
        compress = _library("isal.isal_zlib", "isal").compress
    else:
        compress = _library("deflate", "deflate").zlib_compress
    return lambda page: compress(page, level)


def _zlib_decompressor() -> Decompress:
    try:
        deflate: Any = importlib.import_module("deflate")
    except ImportError:
        # The standard library is there even where libdeflate is not.
        return lambda data, size: zlib.decompressobj().decompress(data, size)
    return lambda data, size: bytes(deflate.zlib_decompress(data, size))


def _lzo_compressor(level: int) -> Compress:
    compress: Any = _library("lzo", "python-lzo").compress
    return lambda page: compress(page, level, False)


def _lzo_decompressor() -> Decompress:
    decompress: Any = _library("lzo", "python-lzo").decompress
    return lambda data, size: decompress(data, False, size)


def _snappy_compressor(level: int) -> Compress:
    compress: Compress = _library("cramjam", "cramjam").snappy.compress_raw
    return compress


def _snappy_decompressor() -> Decompress:
    snappy: Any = _library("cramjam", "cramjam").snappy

    def decompress(data: bytes, size: int) -> bytes:
        # The length that the data claims decides how much is allocated.
        if snappy.decompress_raw_len(data) != size:
            raise ValueError("wrong length")
        return bytes(snappy.decompress_raw(data))

    return decompress


def _zstd_compressor(level: int) -> Compress:
    zstandard: Any = _library("zstandard", "zstandard")
    compress: Compress = zstandard.ZstdCompressor(level=level).compress
    return compress


def _zstd_decompressor() -> Decompress:
    zstandard: Any = _library("zstandard", "zstandard")
    context = zstandard.ZstdDecompressor()

    def decompress(data: bytes, size: int) -> bytes:
        if zstandard.frame_content_size(data) > size:
            raise ValueError("wrong length")
        page: bytes = context.decompress(data, max_output_size=size)
        return page

    return decompress


class Codec(NamedTuple):
    """One way to compress the pages of a dump."""

    name: str
    """As given to ``--compress``."""
    flag: int
    """``DUMP_DH_COMPRESSED_*`` bit in page descriptors and header status."""
    levels: range
    """Levels that may be asked for."""
    default_level: int
    """What makedumpfile uses."""
    kernel_level: int
    """The same where many of the pages are the kernel's own."""
    compressor: Callable[[int], Compress]
    """Makes a function that compresses one page, given the level."""
    decompressor: Callable[[], Decompress]
    """Makes a function that decompresses one page."""


_ALL = (
    # Level 1 is ISA-L's: three times as fast as zlib's, and kernel pages are 1.7 %
    # larger. From 2 on libdeflate's: twice as fast, and all pages are smaller.
    Codec("zlib", 0x01, range(1, 13), 1, 2, _zlib_compressor, _zlib_decompressor),
    Codec("lzo", 0x02, range(1, 10), 1, 1, _lzo_compressor, _lzo_decompressor),
    Codec("snappy", 0x04, range(1, 2), 1, 1, _snappy_compressor, _snappy_decompressor),
    Codec("zstd", 0x20, range(-7, 20), 1, 1, _zstd_compressor, _zstd_decompressor),
)
#: Codecs by name.
CODECS = {codec.name: codec for codec in _ALL}
#: Codecs by their bit in a page descriptor.
BY_FLAG = {codec.flag: codec for codec in _ALL}


def parse(text: str) -> tuple[Codec | None, int | None]:
    """
    ``NAME[:LEVEL]`` as a codec and a level, None if it is not given.

    :return: no codec for ``none``.
    :raises DumpError: for an unknown name or a level that the codec lacks.
    """
    if text == "none":
        return None, None
    name, separator, number = text.partition(":")
    codec = CODECS.get(name)
    if codec is None:
        names = ", ".join([*CODECS, "none"])
        raise DumpError(f"unknown codec {name!r}: one of {names}")
    if not separator:
        return codec, None
    try:
        level = int(number)
    except ValueError:
        level = codec.levels.stop
    if level not in codec.levels or (level == 0 and name == "zstd"):
        raise DumpError(
            f"{name} has levels {codec.levels.start} to {codec.levels.stop - 1}, "
            f"not {number!r}"
        )
    return codec, level
