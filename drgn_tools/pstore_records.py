# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Records of pstore
-----------------

What is in the zones of any backend: function traces, kernel logs of oopses and
panics, compressed or not, and messages from user space. From
:linux:`fs/pstore/ftrace.c`, :linux:`fs/pstore/ram.c`, :linux:`fs/pstore/platform.c`
and Android's liblog.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, Optional

import numpy as np
import numpy.typing as npt

ByteOrder = Literal["little", "big"]

#: A record of the function trace, as :func:`decode_ftrace` makes it. ``ip`` and
#: ``parent_ip`` are as stored (see :func:`addresses`); ``boot`` is 0 for the newest,
#: -1 for the one before; ``counter`` is no time. ``torn``: the write of this record
#: was cut short or came late.
FTRACE = np.dtype(
    [
        ("counter", "u8"),
        ("ip", "u8"),
        ("parent_ip", "u8"),
        ("cpu", "u4"),
        ("boot", "i4"),
        ("zone", "u2"),
        ("torn", "?"),
    ],
    align=True,
)
FtraceArray = npt.NDArray[np.void]


class FtraceFormat(NamedTuple):
    """How ``struct pstore_ftrace_record`` is stored."""

    word: int = 8
    """Bytes of an unsigned long: 8 or 4."""
    stamped: bool = True
    """It has ``ts``, as since 4.10; before, only ``cpu``."""
    cpu_mask: int = 0
    """``PSTORE_CPU_IN_IP``: the bits of ip that are the CPU, 0, 1 or 3."""
    neutral: bool = False
    """Addresses do not depend on where the kernel was loaded, as in 7.2."""
    byteorder: ByteOrder = "little"

    @property
    def size(self) -> int:
        """``sizeof(struct pstore_ftrace_record)``."""
        raise NotImplementedError


class Lost(NamedTuple):
    """Counters that no zone has."""

    boot: int
    first: int
    """The first of them."""
    count: int


class Trace(NamedTuple):
    """Zones merged."""

    records: FtraceArray
    """By boot, counter and zone; the oldest first."""
    lost: tuple[Lost, ...]
    """The longest gaps among the counters of each boot; at most
    :data:`MAX_GAPS`."""
    lost_total: int
    """Counters that are missing, all gaps together."""


#: Gaps that are listed.
MAX_GAPS = 1000


def guess_format(
    contents: Sequence[bytes],
    version: tuple[int, int, int] | None = None,
    byteorder: ByteOrder = "little",
) -> FtraceFormat:
    """The format of ftrace records, from themselves and the kernel's version."""
    raise NotImplementedError


def decode_ftrace(
    content: bytes,
    layout: FtraceFormat = FtraceFormat(),
    *,
    zone: int = 0,
    cpu: int | None = None,
    missing: int = 0,
) -> FtraceArray:
    """
    Records of one zone, oldest first, with boots told apart.

    :param content: linearised; what is left of an overwritten record in front is
        skipped.
    :param zone: for the column.
    :param cpu: that all of the zone is of, for one of many (``Zone.index``): of CPUs
        from 256 on, records have only the low bits.
    :param missing: bytes behind the content that could not be read.
    :return: an array of :data:`FTRACE`, boots numbered in this zone alone.
    """
    raise NotImplementedError


def merge_ftrace(
    zones: Sequence[FtraceArray], layout: FtraceFormat = FtraceFormat()
) -> Trace:
    """
    Merge zones by counter and then by zone, each boot for itself.

    Which boots of the zones are the same one follows from their counters: of one
    boot, no two zones have the same counter, and where one skips, another goes on.
    """
    raise NotImplementedError


def addresses(
    stored: npt.NDArray[np.uint64], layout: FtraceFormat, kaslr_offset: int = 0
) -> npt.NDArray[np.uint64]:
    """
    Addresses from stored values of ``ip`` or ``parent_ip``.

    :param kaslr_offset: of the kernel in which they are looked up; used if stored
        values are neutral.
    """
    raise NotImplementedError


class DmesgRecord(NamedTuple):
    """One record of a dump zone."""

    seconds: int
    """Of its header: wall clock, since 1970."""
    microseconds: int
    compressed: bool
    reason: str
    """Panic, Oops, …; empty if the record does not say."""
    count: int
    """Of oopses since boot."""
    part: int
    text: bytes
    """Plain, its first line (reason, count and part) included."""
    algorithm: str
    """That it was compressed with: deflate, zlib, lzo, lz4, 842, zstd; or none."""
    error: str
    """Why text is not all there is; empty if it is."""


def decode_dmesg(
    content: bytes, *, algorithm: str | None = None, max_size: int = 1 << 20
) -> Optional[DmesgRecord]:
    """
    Parse a dump zone's header and decompress what follows.

    :param algorithm: the kernel's, if it is known; else all are tried.
    :param max_size: bytes that text may have.
    :return: None if there is no header, where the kernel discards the zone.
    """
    raise NotImplementedError


def parse_dmesg_body(
    body: bytes,
    compressed: bool,
    *,
    seconds: int = 0,
    microseconds: int = 0,
    algorithm: str | None = None,
    max_size: int = 1 << 20,
) -> DmesgRecord:
    """
    Like :func:`decode_dmesg` for a record whose header is elsewhere (pstorefs,
    pstore_zone, EFI).
    """
    raise NotImplementedError


def decompress(
    data: bytes, algorithm: str | None = None, max_size: int = 1 << 20
) -> tuple[bytes, str, str]:
    """
    Decompress a record that may be cut short and have garbage behind.

    :return: what could be made of it, the algorithm, and why that is not all (or
        empty).
    """
    raise NotImplementedError


class LogcatMessage(NamedTuple):
    """One message of Android's liblog in pmsg."""

    log_id: int
    uid: int
    pid: int
    tid: int
    seconds: int
    nanoseconds: int
    priority: int
    """Of a text message; 0 if it is none."""
    tag: bytes
    message: bytes


def logcat_messages(content: bytes) -> Iterator[LogcatMessage]:
    """Messages in Android's framing; whatever is none is skipped."""
    raise NotImplementedError


def is_logcat(content: bytes) -> bool:
    """Whether pmsg is framed as Android does."""
    raise NotImplementedError


def format_ftrace(
    records: FtraceArray,
    layout: FtraceFormat = FtraceFormat(),
    *,
    name: Iterable[str] = (),
) -> Iterator[str]:
    """Lines as the kernel prints them."""
    raise NotImplementedError
