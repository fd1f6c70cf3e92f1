# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Pages that the kernel compressed
--------------------------------

By the names of :linux:`drivers/block/zram/zcomp.c` and of the crypto API. Streams come
from a dump: whatever they say, no more is given back, nor much more allocated, than
was asked for.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple, Union

from drgn_tools import i842, lz4_block, lzo1x

__all__ = (
    "ALGORITHMS",
    "BadStream",
    "decompress",
    "decompress_many",
    "decompress_prefix",
)


class BadStream(ValueError):
    """A stream that the algorithm did not write, or not all of it."""


def decompress(
    algorithm: str,
    data: bytes | memoryview,
    size: int = 4096,
    *,
    dictionary: bytes = b"",
    window_bits: int | None = None,
) -> bytes:
    """
    Decompress all of *data* to exactly *size* bytes.

    :param algorithm: one of :data:`ALGORITHMS`.
    :param dictionary: the kernel's, for lz4, lz4hc, zstd and deflate.
    :param window_bits: the kernel's ``deflate.winbits``: deflate alone if negative, in
        zlib's format if positive; None to see which it is.
    :raises BadStream: if that is not what it is.
    """
    codec = _codec(algorithm)
    try:
        page = codec.exact(bytes(data), size, dictionary, window_bits)
    except ValueError as why:
        raise BadStream(f"{algorithm} data is damaged: {why}") from None
    if len(page) != size:
        raise BadStream(f"{algorithm} data is of {len(page)} bytes, not of {size}")
    return page


def decompress_prefix(
    algorithm: str,
    data: bytes | memoryview,
    size: int = 4096,
    *,
    dictionary: bytes = b"",
    window_bits: int | None = None,
) -> tuple[bytes, int]:
    """
    Decompress the stream at the start of *data*, whose own length is not known.

    Parameters and errors as of :func:`decompress`.

    :return: *size* bytes, and how many bytes of *data* they took.
    """
    codec = _codec(algorithm)
    try:
        page, used = codec.prefix(bytes(data), size, dictionary, window_bits)
    except ValueError as why:
        raise BadStream(f"{algorithm} data is damaged: {why}") from None
    if len(page) != size:
        raise BadStream(f"{algorithm} data is of {len(page)} bytes, not of {size}")
    return page, used


def decompress_many(
    algorithm: str,
    streams: Sequence[bytes | memoryview],
    size: int = 4096,
    *,
    dictionary: bytes = b"",
    window_bits: int | None = None,
) -> list[bytes | BadStream]:
    """Like :func:`decompress` for each, with errors as results."""
    pages: list[bytes | BadStream] = []
    for data in streams:
        try:
            page = decompress(
                algorithm, data, size, dictionary=dictionary, window_bits=window_bits
            )
        except BadStream as why:
            pages.append(why)
        else:
            pages.append(page)
    return pages


_Exact = Callable[[bytes, int, bytes, Union[int, None]], bytes]
_Prefix = Callable[[bytes, int, bytes, Union[int, None]], "tuple[bytes, int]"]


class _Codec(NamedTuple):
    exact: _Exact
    prefix: _Prefix


def _codec(algorithm: str) -> _Codec:
    codec = _CODECS.get(algorithm)
    if codec is None:
        raise BadStream(f"compressed with {algorithm}, which is unknown")
    return codec


def _whole(prefix: _Prefix) -> _Exact:
    """Nothing may be left behind the stream."""

    def exact(
        data: bytes, size: int, dictionary: bytes, window_bits: int | None
    ) -> bytes:
        page, used = prefix(data, size, dictionary, window_bits)
        if used != len(data):
            raise ValueError(f"it ends {len(data) - used} bytes early")
        return page

    return exact


def _lzo_prefix(
    data: bytes, size: int, dictionary: bytes, window_bits: int | None
) -> tuple[bytes, int]:
    out = bytearray()
    used = lzo1x.decode(data, size, out)
    return bytes(out), used


def _lzo(data: bytes, size: int, dictionary: bytes, window_bits: int | None) -> bytes:
    page = lzo1x.decompress(data, size)
    if page is None:
        return _whole(_lzo_prefix)(data, size, dictionary, window_bits)
    return page


def _lz4_prefix(
    data: bytes, size: int, dictionary: bytes, window_bits: int | None
) -> tuple[bytes, int]:
    out = bytearray()
    used = lz4_block.decode(data, size, out, dictionary)
    return bytes(out), used


def _lz4(data: bytes, size: int, dictionary: bytes, window_bits: int | None) -> bytes:
    return lz4_block.decompress(data, size, dictionary)


def _842_prefix(
    data: bytes, size: int, dictionary: bytes, window_bits: int | None
) -> tuple[bytes, int]:
    out = bytearray()
    used = i842.decode(data, size, out)
    return bytes(out), used


def _deflate_prefix(
    data: bytes, size: int, dictionary: bytes, window_bits: int | None
) -> tuple[bytes, int]:
    if window_bits is None:
        # Deflate, its first block stored, could look like this, but then its length
        # would have to as well.
        wrapped = (
            len(data) > 1 and data[0] & 0x8F == 8 and (data[0] << 8 | data[1]) % 31 == 0
        )
        if wrapped:
            try:
                return _deflate_prefix(data, size, dictionary, 15)
            except ValueError:
                pass
        window_bits = -15
    # The largest window reads all.
    bits = 15 if window_bits > 0 else -15
    stream = zlib.decompressobj(bits, dictionary)
    try:
        page = stream.decompress(data, size + 1)
    except zlib.error as why:
        raise ValueError(str(why)) from None
    if len(page) > size:
        raise ValueError("it is too long")
    if not stream.eof:
        raise ValueError("it is cut short")
    return page, len(data) - len(stream.unused_data)


# What every decoder of zstd has to support (RFC 8878, 3.1.1.1.2); the kernel's windows
# are smaller.
_ZSTD_WINDOW = 8 << 20


@functools.lru_cache(maxsize=8)
def _zstd_context(dictionary: bytes) -> Any:
    import zstandard

    trained = zstandard.ZstdCompressionDict(dictionary) if dictionary else None
    return zstandard.ZstdDecompressor(trained, max_window_size=_ZSTD_WINDOW)


def _zstd_prefix(
    data: bytes, size: int, dictionary: bytes, window_bits: int | None
) -> tuple[bytes, int]:
    used, content = _zstd_frame(data)
    # As much as it claims is allocated.
    if content is not None and content != size:
        raise ValueError(f"it is of {content} bytes")
    import zstandard

    try:
        context = _zstd_context(dictionary)
        return context.decompress(data[:used], max_output_size=size), used
    except zstandard.ZstdError as why:
        raise ValueError(str(why)) from None


def _zstd_frame(data: bytes) -> tuple[int, int | None]:
    """Length of the frame, and of its content if it says so."""
    if data[:4] != b"\x28\xb5\x2f\xfd":
        raise ValueError("it does not start as zstd does")
    if len(data) < 5:
        raise ValueError("it is cut short")
    flags = data[4]
    single = flags >> 5 & 1
    at = 5 + (not single) + (0, 1, 2, 4)[flags & 3]
    width = (single, 2, 4, 8)[flags >> 6]
    content = None
    if width:
        content = int.from_bytes(data[at : at + width], "little")
        content += 256 if width == 2 else 0
    at += width
    last = 0
    while not last:
        block = int.from_bytes(data[at : at + 3], "little")
        last = block & 1
        # Of a byte repeated (RLE), only that is there.
        at += 3 + (1 if block >> 1 & 3 == 1 else block >> 3)
        if at > len(data):
            raise ValueError("it is cut short")
    at += 4 * (flags >> 2 & 1)
    if at > len(data):
        raise ValueError("it is cut short")
    return at, content


_LZO = _Codec(_lzo, _lzo_prefix)
_LZ4 = _Codec(_lz4, _lz4_prefix)
_CODECS = {
    "lzo": _LZO,
    "lzo-rle": _LZO,
    "lz4": _LZ4,
    "lz4hc": _LZ4,
    "zstd": _Codec(_whole(_zstd_prefix), _zstd_prefix),
    "deflate": _Codec(_whole(_deflate_prefix), _deflate_prefix),
    "842": _Codec(_whole(_842_prefix), _842_prefix),
}
#: The kernel's names.
ALGORITHMS = tuple(_CODECS)
