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

import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from drgn_tools.errors import DumpError
from drgn_tools.reed_solomon import Ecc, check, correct

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
    ecc: Ecc | None = None
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
    room = size - HEADER_SIZE
    if ecc is not None:
        check(ecc)
        if staging:
            blocks = -(-room // ecc.block_size)
        else:
            blocks = -(-(room - ecc.size) // (ecc.block_size + ecc.size))
        room -= (blocks + 1) * ecc.size
    if room <= 0:
        raise DumpError(f"a zone of {size} bytes has no room for data")
    return room


def _corrected(block: bytes, ecc: Ecc) -> tuple[bytes, int]:
    """
    A block without its parity, and how many bytes were wrong in both; -1 if
    more than can be corrected.
    """
    fixed, errors = correct(np.frombuffer(block, np.uint8)[None, :], ecc)
    return fixed[0, : -ecc.size].tobytes(), int(errors[0])


def _correct_data(
    data: bytes, parity: bytes, used: int, ecc: Ecc
) -> tuple[bytes, int, int]:
    """Data corrected as far as it is used; bytes that were wrong; bad blocks."""
    size, step = ecc.size, ecc.block_size
    count = min(-(-min(used, len(data)) // step), len(parity) // size)
    whole = min(count, len(data) // step)
    raw = np.frombuffer(data, np.uint8, whole * step).reshape(whole, step)
    sums = np.frombuffer(parity, np.uint8, count * size).reshape(count, size)
    fixed, errors = correct(np.hstack([raw, sums[:whole]]), ecc)
    pieces = [fixed[:, :step].tobytes()]
    corrected = int(errors[errors > 0].sum())
    bad = int((errors < 0).sum())
    if count > whole:
        # The last block is shorter.
        last, wrong = _corrected(data[whole * step :] + sums[whole].tobytes(), ecc)
        pieces.append(last)
        corrected += max(wrong, 0)
        bad += wrong < 0
    pieces.append(data[count * step :])
    return b"".join(pieces), corrected, bad


class _Header(NamedTuple):
    signature: int
    start: int
    used: int


def _header(data: bytes, byteorder: ByteOrder) -> _Header:
    def word(at: int) -> int:
        return int.from_bytes(data[at : at + 4], byteorder)

    return _Header(word(0), word(4), word(8))


def _signed(header: _Header, kind: Kind, signature: int | None) -> bool:
    if signature is not None:
        return header.signature == signature
    if header.signature == SIGNATURE:
        return kind != "ftrace"
    known = signature_version(header.signature) is not None
    return known and kind in ("ftrace", "unknown")


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
    if size is None:
        size = len(memory)
    memory = bytes(memory[:size])
    room = ring_size(size, ecc, staging=staging)
    zone = Zone(kind, index, address, size, room, 0, 0, 0, "missing", False, b"")
    zone = zone._replace(ecc=ecc)
    if len(memory) < HEADER_SIZE:
        return zone

    def possible(header: _Header) -> bool:
        signed = _signed(header, kind, signature)
        return signed and header.start <= header.used <= room

    header = _header(memory, byteorder)
    corrected = bad = 0
    mended = stale = False
    # In between is where 3.4 may leave start, and where a torn write does.
    between = staging or not live
    parity = memory[size - ecc.size : size] if ecc is not None else b""
    if ecc is not None and len(parity) == ecc.size:
        fixed, errors = _corrected(memory[:HEADER_SIZE] + parity, ecc)
        before = _header(fixed, byteorder)
        if errors < 0:
            bad = 1
        elif errors and live and possible(header) and _one_write(before, header, room):
            stale = True
        elif errors and live and possible(header) and not possible(before):
            stale = True
        else:
            corrected, mended, header = errors, header != before, before
            between |= not errors
    start, used = header.start, header.used
    zone = zone._replace(
        signature=header.signature,
        start=start,
        used=used,
        corrected_bytes=corrected,
        bad_blocks=bad,
        header_corrected=mended,
        header_parity_stale=stale,
    )
    if not _signed(header, kind, signature):
        return zone._replace(state="unsigned")
    if not possible(header):
        return zone._replace(state="invalid")
    if not used:
        return zone._replace(state="empty")
    state: State = "valid"
    if start < used < room and not between:
        state, used = "torn", start
    data = memory[HEADER_SIZE : HEADER_SIZE + room]
    if ecc is not None and len(memory) == size:
        par = memory[HEADER_SIZE + room : size - ecc.size]
        data, corrected, bad = _correct_data(data, par, used, ecc)
        zone = zone._replace(
            corrected_bytes=zone.corrected_bytes + corrected,
            bad_blocks=zone.bad_blocks + bad,
        )
    return _linear(zone._replace(state=state), data, start, used)


# Bytes that one write to a ring has at most: a line of the console, a few records of
# the function trace.
_MAX_WRITE = 4096


def _one_write(before: _Header, after: _Header, room: int) -> bool:
    """Whether a write makes one header of the other, all of it or half."""
    if before.signature != after.signature:
        return False
    grown = after.used - before.used
    if after.start == before.start:
        return grown > 0
    written = (after.start - before.start) % room
    if before.used + written < room:
        return grown == written
    return after.used == room and written <= _MAX_WRITE


def _linear(zone: Zone, data: bytes, start: int, used: int) -> Zone:
    """With its content, oldest first, of a ring that may lack its end."""
    there = len(data)
    older, newer = data[start:used], data[: min(start, used)]
    skipped = missing = 0
    if there < start:
        # Nothing newer than the hole; what is older than it lies behind.
        missing = start - there
        skipped = used - start
        older = b""
    elif there < used:
        skipped = used - start
        older = b""
    full = used == zone.buffer_size and start != zone.buffer_size
    return zone._replace(
        content=older + newer, wrapped=full, skipped=skipped, missing=missing
    )


# Types of records (``enum pstore_type_id``) in signatures of pstore_zone.
_PSZ_TYPES: dict[Kind, int] = {"dmesg": 0, "console": 2, "ftrace": 3, "pmsg": 7}


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
    room = len(memory) - HEADER_SIZE
    zone = Zone(
        kind, index, address, len(memory), max(0, room), 0, 0, 0, "missing", False, b""
    )
    if room <= 0:
        return zone
    signature, used, start = _header(bytes(memory[:HEADER_SIZE]), byteorder)
    zone = zone._replace(signature=signature, start=start, used=used)
    wanted = _PSZ_TYPES.get(kind)
    if wanted is not None and signature != SIGNATURE ^ wanted:
        return zone._replace(state="unsigned")
    if used > room or start > room:
        return zone._replace(state="invalid")
    if not used:
        return zone._replace(state="empty")
    zone = zone._replace(state="valid")
    if rotated or kind == "dmesg":
        start = used
    elif used < room and start != used:
        # The length is written first.
        zone = zone._replace(state="torn")
        used = start = min(start, used)
    data = bytes(memory[HEADER_SIZE:])
    return _linear(zone, data, start, used)


class Layout(NamedTuple):
    """How a region is divided: ramoops' parameters, in bytes."""

    record_size: int = 4096
    console_size: int = 4096
    ftrace_size: int = 4096
    pmsg_size: int = 4096
    ecc: Ecc | None = None
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
    layout: Layout | None
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
