# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Zones of ramoops and pstore_zone
--------------------------------

What persistent memory holds, from bytes alone: one zone with its header, ring and
Reed-Solomon parity, or a whole region with its zones laid out as the kernel does or
found by their signatures. From :linux:`fs/pstore/ram.c`,
:linux:`fs/pstore/ram_core.c` and :linux:`fs/pstore/zone.c`. What is in the zones is
for :mod:`drgn_tools.pstore_records`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Optional

#: ``PERSISTENT_RAM_SIG``, "DBGC"; of ftrace zones, XORed with the kernel's version.
SIGNATURE = 0x43474244
#: Bytes of ``struct persistent_ram_buffer`` and of ``struct psz_buffer`` before the
#: data.
HEADER_SIZE = 12

#: What a zone is for.
Kind = Literal["dmesg", "console", "ftrace", "pmsg", "unknown"]
#: What a zone's header says:
#:
#: - ``valid``: there is content;
#: - ``empty``: none was written, or it was cleared;
#: - ``torn``: the kernel died between changing size and start, and what the new
#:   size adds is ignored;
#: - ``invalid``: start and size cannot be, not even after correction;
#: - ``unsigned``: nothing that this kernel would know as a zone.
#: - ``missing``: the header is not there to be read.
State = Literal["valid", "empty", "torn", "invalid", "unsigned", "missing"]
ByteOrder = Literal["little", "big"]


class Ecc(NamedTuple):
    """``struct persistent_ram_ecc_info``; as defaults, those of the kernel."""

    size: int = 16
    """Bytes of parity for each block (``ecc_size``); half as many are corrected."""
    block_size: int = 128
    poly: int = 0x11D
    symbol_bits: int = 8


class Zone(NamedTuple):
    """A zone, read."""

    kind: Kind
    index: int
    """Among those of its kind."""
    address: int
    """Of its header: physical, or the offset in the region."""
    size: int
    """All of it: header, data and parity, in bytes."""
    buffer_size: int
    """What the ring has room for, in bytes."""
    signature: int
    """As stored; with what the parity says, if that was taken."""
    start: int
    used: int
    """The header's size: bytes of the ring that are valid."""
    state: State
    wrapped: bool
    """The ring is full: what was there before may be overwritten."""
    content: bytes
    """The text or records, oldest first, corrected."""
    skipped: int = 0
    """Bytes before the content that cannot be read."""
    missing: int = 0
    """Bytes behind the content that cannot be read."""
    ecc: Optional[Ecc] = None
    corrected_bytes: int = 0
    bad_blocks: int = 0
    """Blocks, the header included, with more errors than can be corrected."""
    header_corrected: bool = False
    """The header is what its parity makes of it."""
    header_parity_stale: bool = False
    """The header is consistent, its parity is another's: a write was cut short."""

    @property
    def version(self) -> tuple[int, int, int] | None:
        """The kernel that made an ftrace zone; see :func:`signature_version`."""
        return signature_version(self.signature)


def signature_version(signature: int) -> tuple[int, int, int] | None:
    """
    Version of the kernel that made an ftrace zone, from its signature.

    A sublevel of 255 means 255 or more. None if it is the signature of another
    kind of zone or none at all.
    """
    code = signature ^ SIGNATURE
    if code >> 24 or not 2 <= code >> 16 < 32:
        return None
    return code >> 16, code >> 8 & 0xFF, code & 0xFF


def ring_size(size: int, ecc: Ecc | None = None, *, staging: bool = False) -> int:
    """
    Bytes of data in a zone of *size* bytes.

    :param staging: by the formula of 3.4.
    :raises DumpError: if there is no room for any, or the ECC parameters cannot be.
    """
    raise NotImplementedError


def read_zone(
    memory: bytes,
    *,
    size: int | None = None,
    ecc: Ecc | None = None,
    signature: int | None = None,
    kind: Kind = "unknown",
    index: int = 0,
    address: int = 0,
    live: bool = True,
    staging: bool = False,
    byteorder: ByteOrder = "little",
) -> Zone:
    """
    Read one zone of ramoops: ``struct persistent_ram_buffer``, data and parity.

    Content never raises: it is hostile.

    :param memory: the zone's bytes, or the first of them.
    :param size: of the zone, if *memory* may lack its end.
    :param signature: that it must have; by default DBGC, and of ftrace zones that
        of any kernel.
    :param live: a write may be under way or cut short: a consistent header is
        taken rather than its parity, and a torn one as what was before. Otherwise,
        all is done as the kernel does at boot.
    :param staging: as 3.4 wrote it.
    :raises DumpError: if the zone is too small, or the ECC parameters cannot be.
    """
    raise NotImplementedError


def read_psz_buffer(
    memory: bytes,
    *,
    kind: Kind,
    index: int = 0,
    address: int = 0,
    byteorder: ByteOrder = "little",
    rotated: bool = False,
) -> Zone:
    """
    Read one buffer of pstore_zone: ``struct psz_buffer``.

    :param memory: header and ``buffer_size`` bytes of data.
    :param rotated: it is an ``oldbuf``, oldest first already.
    """
    raise NotImplementedError


class Layout(NamedTuple):
    """How a region is divided: ramoops' parameters, in bytes."""

    record_size: int = 4096
    console_size: int = 4096
    ftrace_size: int = 4096
    pmsg_size: int = 4096
    ecc: Optional[Ecc] = None
    cpus: int = 1
    """``nr_cpu_ids``: ftrace zones, if there is one for each CPU."""
    pmsg_first: bool = True
    """pmsg before ftrace, as since 6.2."""
    exact: bool = False
    """Dump zones are of record_size exactly, as until 4.9; else they share all that
    is left."""
    staging: bool = False
    byteorder: ByteOrder = "little"


class Place(NamedTuple):
    """Where a zone is in a region."""

    kind: Kind
    index: int
    offset: int
    size: int


class Region(NamedTuple):
    """A region, read."""

    zones: tuple[Zone, ...]
    """As they lie."""
    layout: Optional[Layout]
    """As given, or as far as found; None if nothing was."""
    version: tuple[int, int, int] | None
    """Of the kernel that wrote the ftrace zones."""
    notes: tuple[str, ...]
    """What is uncertain, each one line."""


def parse_layout(text: str) -> Layout:
    """
    A layout from ``record_size=0x10000,console_size=64k,ecc=1,cpus=4,…``.

    :raises DumpError: if it cannot be understood.
    """
    raise NotImplementedError


def places(layout: Layout, region_size: int) -> list[Place]:
    """
    Where the kernel puts the zones.

    :raises DumpError: if it would refuse to.
    """
    raise NotImplementedError


def read_region(
    region: bytes, layout: Layout | None = None, *, live: bool = True
) -> Region:
    """
    Read a copy of a whole region.

    :param layout: if None, the zones are found by their signatures.
    :param live: see :func:`read_zone`.
    :raises DumpError: if the layout does not fit, or nothing is found.
    """
    raise NotImplementedError
