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

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from drgn_tools.errors import DumpError
from drgn_tools.reed_solomon import Ecc, check, correct, sound
from drgn_tools.text import parse_size

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
    number: int
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
    number: int = 0,
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
    zone = Zone(kind, number, address, size, room, 0, 0, 0, "missing", False, b"")
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
        elif (
            errors
            and live
            and possible(header)
            and (_one_write(before, header, room) or not possible(before))
        ):
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
    number: int = 0,
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
        kind, number, address, len(memory), max(0, room), 0, 0, 0, "missing", False, b""
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
    pmsg_first: bool | None = None
    """pmsg before ftrace, as since 6.2; None: where the signatures are."""
    exact: bool | None = None
    """Dump zones are of record_size exactly, as until 4.9, and do not share all that
    is left; None: where the signatures are."""
    mem_size: int = 0
    """Of the region; 0 for all of the file."""
    mem_address: int = 0
    """Where in the file it starts."""
    staging: bool = False
    """ECC as in 3.4."""
    byteorder: ByteOrder = "little"


class Place(NamedTuple):
    """Where a zone is in a region."""

    kind: Kind
    number: int
    offset: int
    size: int


class Region(NamedTuple):
    """A region, read."""

    zones: tuple[Zone, ...]
    """As they lie."""
    layout: Layout
    """As given, or as found."""
    version: tuple[int, int, int] | None
    """Of the kernel that made the ftrace zones."""
    notes: tuple[str, ...]
    """What is uncertain, each one line."""


_FLAGS = {"yes": True, "1": True, "no": False, "0": False}
# Zones of one region: those of a terabyte of the smallest records are no use.
_MAX_ZONES = 1 << 16


def parse_layout(text: str) -> Layout:
    """
    A layout from ``record_size=0x10000,console_size=64k,ecc=1,cpus=4``.

    Keys are ramoops' module parameters (``mem_size``, ``mem_address``,
    ``record_size``, ``console_size``, ``ftrace_size``, ``pmsg_size``, ``ecc``), and
    of :class:`Layout` ``cpus``, ``pmsg_first``, ``exact``, ``staging`` and
    ``byteorder``.

    :raises DumpError: if it cannot be understood.
    """
    values: dict[str, Any] = {}
    for item in text.split(",") if text else []:
        key, _, value = item.partition("=")
        if key not in Layout._fields or key in values:
            raise DumpError(f"a layout has no {key!r}, or only once")
        if key == "byteorder":
            if value not in ("little", "big"):
                raise DumpError(f"byteorder is little or big, not {value!r}")
            values[key] = value
        elif key in ("pmsg_first", "exact", "staging"):
            if value not in _FLAGS:
                raise DumpError(f"{key} is yes or no, not {value!r}")
            values[key] = _FLAGS[value]
        else:
            try:
                values[key] = parse_size(value)
            except ValueError:
                message = f"{key} is a number of bytes, not {value!r}"
                raise DumpError(message) from None
    ecc = values.get("ecc", 0)
    # ramoops.ecc=1 means the default.
    values["ecc"] = Ecc(16 if ecc == 1 else ecc) if ecc else None
    if ecc:
        check(values["ecc"])
    return Layout(**values)


def places(layout: Layout, region_size: int) -> list[Place]:
    """
    Where the kernel puts the zones; where the layout leaves a choice, as newer
    kernels do.

    :raises DumpError: if it would refuse to.
    """

    def rounded(size: int) -> int:
        return 1 << size.bit_length() - 1 if size > 0 else 0

    size = layout.mem_size or region_size
    record, console = rounded(layout.record_size), rounded(layout.console_size)
    ftrace, pmsg = rounded(layout.ftrace_size), rounded(layout.pmsg_size)
    dumps = size - console - ftrace - pmsg
    if dumps < 0:
        raise DumpError(f"the layout needs {size - dumps} bytes, there are {size}")
    found: list[Place] = []
    at = layout.mem_address

    def put(kind: Kind, count: int, size: int) -> None:
        nonlocal at
        if count > _MAX_ZONES:
            raise DumpError(f"the layout has {count} zones")
        for index in range(count):
            found.append(Place(kind, index, at, size))
            at += size

    if record:
        count = dumps // record
        if not count:
            raise DumpError(f"{dumps} bytes are left, no room for a record")
        put("dmesg", count, record if layout.exact else dumps // count & ~1)
    if console:
        put("console", 1, console)
    if pmsg and layout.pmsg_first is not False:
        put("pmsg", 1, pmsg)
    if ftrace:
        count = max(1, layout.cpus)
        each = ftrace if count == 1 else ftrace // count & ~1
        if each <= HEADER_SIZE:
            raise DumpError(f"{ftrace} bytes are no room for {count} ftrace zones")
        put("ftrace", count, each)
    if pmsg and layout.pmsg_first is False:
        put("pmsg", 1, pmsg)
    return found


def read_region(
    region: bytes, layout: Layout | None = None, *, live: bool = True
) -> Region:
    """
    Read a copy of a whole region.

    :param region: anything with a buffer, such as a mapped file.
    :param layout: if None, the zones are found by their signatures.
    :param live: see :func:`read_zone`.
    :raises DumpError: if the layout does not fit, or nothing is found.
    """
    notes: list[str] = []
    if layout is None:
        layout, where = _find(region, notes)
    else:
        layout, where = _fit(region, layout)
        end = where[-1].offset + where[-1].size if where else 0
        if end > len(region):
            notes.append(f"{end - len(region)} bytes are missing at the end")
    zones = []
    for place in where:
        memory = bytes(region[place.offset : place.offset + place.size])
        try:
            zone = read_zone(
                memory,
                size=place.size,
                ecc=layout.ecc,
                kind=place.kind,
                number=place.number,
                address=place.offset,
                live=live,
                staging=layout.staging,
                byteorder=layout.byteorder,
            )
        except DumpError as error:
            notes.append(f"{place.kind} {place.number} at {place.offset:#x}: {error}")
            continue
        zones.append(zone)
    versions = [zone.version for zone in zones if zone.version is not None]
    return Region(tuple(zones), layout, versions[0] if versions else None, tuple(notes))


def _fit(region: bytes, layout: Layout) -> tuple[Layout, list[Place]]:
    """The layout, and places, of those that it allows where signatures are."""
    best: tuple[int, Layout, list[Place]] | None = None
    for pmsg_first in (True, False):
        for exact in (False, True):
            if layout.pmsg_first not in (None, pmsg_first):
                continue
            if layout.exact not in (None, exact):
                continue
            one = layout._replace(pmsg_first=pmsg_first, exact=exact)
            where = places(one, len(region) - layout.mem_address)
            score = sum(
                _signed(
                    _header(bytes(region[p.offset : p.offset + 12]), one.byteorder),
                    p.kind,
                    None,
                )
                for p in where
            )
            if best is None or score > best[0]:
                best = score, one, where
    assert best is not None
    return best[1:]


class _Hit(NamedTuple):
    """A header that may be one."""

    offset: int
    header: _Header

    @property
    def version(self) -> tuple[int, int, int] | None:
        return signature_version(self.header.signature)


# What is searched at a time; a header may lie across two pieces.
_PIECE = 1 << 24
# Headers that are looked at; memory full of them is no region.
_MAX_HITS = 1 << 13
# A zone is no larger than that.
_MAX_ZONE = 1 << 28


def _hits(region: bytes, byteorder: ByteOrder) -> Iterator[_Hit]:
    """All that may be headers, at even offsets."""
    order = "<" if byteorder == "little" else ">"
    # Of the signature, the half that ftrace's version leaves alone in part, and the
    # other one.
    upper, lower = (1, 0) if byteorder == "little" else (0, 1)
    total = len(region)
    found = 0
    for start in range(0, total - HEADER_SIZE + 1, _PIECE):
        data = bytes(region[start : start + _PIECE + HEADER_SIZE])
        halves = np.frombuffer(data, f"{order}u2", len(data) // 2)
        at = np.flatnonzero(halves >> 8 == SIGNATURE >> 24) - upper
        at = at[(at >= 0) & (at < min(_PIECE // 2, len(halves) - 5))]
        high, low = halves[at + upper], halves[at + lower]
        # As signature_version() has it.
        major = (high ^ (SIGNATURE >> 16)) & 0xFF
        plain = (major == 0) & (low == SIGNATURE & 0xFFFF)
        for offset in (at[plain | ((major >= 2) & (major < 32))] * 2).tolist():
            header = _header(data[offset : offset + HEADER_SIZE], byteorder)
            room = min(total - start - offset - HEADER_SIZE, _MAX_ZONE)
            if header.start <= header.used <= room:
                found += 1
                if found > _MAX_HITS:
                    return
                yield _Hit(start + offset, header)


def _find(region: bytes, notes: list[str]) -> tuple[Layout, list[Place]]:
    """The zones, by their signatures, and what that says of the layout."""
    best: tuple[float, ByteOrder, list[_Hit]] = 0.0, "little", []
    orders: tuple[ByteOrder, ...] = ("little", "big")
    starts = []
    for byteorder in orders:
        for run in _clusters(region, list(_hits(region, byteorder))):
            # One alone may be chance.
            if len(run) > 1:
                starts.append(run[0].offset)
            # Headers that say how much there is are no chance.
            score = sum(1 + (hit.header.used > 0) for hit in run)
            if score > best[0]:
                best = score, byteorder, run
    _, byteorder, run = best
    if not run:
        raise DumpError("no zone of ramoops was found: no header with its signature")
    others = sorted({start for start in starts if start != run[0].offset})
    if others:
        notes.append(
            f"this is the region at {run[0].offset:#x}; others, or copies of it, seem "
            f"to be at {_listed(others)}"
        )
    behind = [start for start in others if start > run[-1].offset]
    if behind:
        region = memoryview(region)[: behind[0]]  # type: ignore[assignment]
    sizes = _sizes(region, run)
    ecc = _find_ecc(region, sizes)
    if ecc is not None:
        run = _ruined(region, run, ecc, byteorder)
        sizes = _sizes(region, run, ecc)
    first, last = run[0], run[-1]
    end = last.offset + sizes[last.offset]
    traces = [hit for hit in run if hit.version is not None]
    kinds = _kinds(region, run, sizes, ecc, notes)
    layout = Layout(
        0,
        0,
        0,
        0,
        ecc=ecc,
        cpus=len(traces),
        byteorder=byteorder,
        mem_address=first.offset,
        mem_size=end - first.offset,
    )
    where = []
    counts: dict[Kind, int] = {}
    for hit in run:
        kind = kinds[hit.offset]
        index = counts.get(kind, 0)
        counts[kind] = index + 1
        where.append(Place(kind, index, hit.offset, sizes[hit.offset]))
    total: dict[Kind, int] = {}
    for place in where:
        total[place.kind] = total.get(place.kind, 0) + place.size
    pmsg = [place for place in where if place.kind == "pmsg"]
    dumps = [place.size for place in where if place.kind == "dmesg"]
    layout = layout._replace(
        record_size=dumps[0] if dumps else 0,
        console_size=total.get("console", 0),
        pmsg_size=total.get("pmsg", 0),
        ftrace_size=total.get("ftrace", 0),
        pmsg_first=pmsg[0].offset < traces[0].offset if pmsg and traces else None,
    )
    if not traces:
        notes.append("no ftrace zone: which zone is console and which pmsg is a guess")
    return layout, where


def _listed(offsets: Sequence[int]) -> str:
    """The first of them, and how many more there are."""
    shown = ", ".join(f"{offset:#x}" for offset in offsets[:8])
    return f"{shown} and {len(offsets) - 8} more" if len(offsets) > 8 else shown


def _clusters(region: bytes, hits: Sequence[_Hit]) -> Iterator[list[_Hit]]:
    """
    Headers that may be of one region: near one another, and behind function traces
    nothing but pmsg.
    """
    for run in _near(hits):
        part: list[_Hit] = []
        traces: list[int] = []
        for hit in run:
            behind = bool(traces) and part[-1].version is None
            plain = hit.version is None
            if behind or (traces and plain and not _is_pmsg(region, traces, hit)):
                yield part
                part, traces = [], []
            part.append(hit)
            if not plain:
                traces.append(hit.offset)
        yield part


def _is_pmsg(region: bytes, traces: Sequence[int], hit: _Hit) -> bool:
    """Whether a zone may be the one behind function traces: it lies where they end."""
    data = hit.offset + HEADER_SIZE
    if bytes(region[data : data + 4]) == b"====":
        return False
    gap = hit.offset - traces[-1]
    if len(traces) == 1:
        return gap & (gap - 1) == 0
    size = traces[1] - traces[0]
    # One in between may be ruined.
    return gap in (size, 2 * size) or 2 * gap == size


def _near(hits: Sequence[_Hit]) -> Iterator[list[_Hit]]:
    """Headers that are not too far from one another."""
    run: list[_Hit] = []
    for hit in hits:
        if run:
            previous = run[-1]
            reach = previous.offset + HEADER_SIZE + previous.header.used
            if hit.offset < reach:
                # Within the data of another: text that has the same bytes.
                continue
            if hit.offset - previous.offset > _MAX_GAP:
                yield run
                run = []
        run.append(hit)
    if run:
        yield run


# From one header to the next of a region.
_MAX_GAP = 1 << 24


def _sizes(
    region: bytes, run: Sequence[_Hit], ecc: Ecc | None = None
) -> dict[int, int]:
    """Zones' sizes, by offset: each ends where the next one starts."""
    sizes = {hit.offset: after.offset - hit.offset for hit, after in zip(run, run[1:])}
    last = run[-1]
    traces = [hit for hit in run if hit.version is not None]
    if last.version is not None and len(traces) > 1:
        # They are all of a size.
        spacing = last.offset - traces[-2].offset
        sizes[last.offset] = min(spacing, len(region) - last.offset)
    else:
        ecc = ecc or _find_ecc(region, sizes)
        sizes[last.offset] = _last_size(region, run, ecc)
    return sizes


def _ruined(
    region: bytes, run: Sequence[_Hit], ecc: Ecc, byteorder: ByteOrder
) -> list[_Hit]:
    """With the headers that are found only where their parity corrects them."""

    def corrected(start: int, end: int) -> _Hit | None:
        if start < 0 or end - start < HEADER_SIZE + 2 * ecc.size:
            return None
        header = bytes(region[start : start + HEADER_SIZE])
        parity = bytes(region[end - ecc.size : end])
        fixed, errors = _corrected(header + parity, ecc)
        hit = _Hit(start, _header(fixed, byteorder))
        signed = _signed(hit.header, "unknown", None)
        return hit if errors >= 0 and signed else None

    def ending(start: int, ends: list[int]) -> list[int]:
        """Where a zone may end, by its header's parity."""
        header = bytes(region[start : start + HEADER_SIZE])
        rows = b"".join(header + bytes(region[end - ecc.size : end]) for end in ends)
        blocks = np.frombuffer(rows, np.uint8).reshape(
            len(ends), HEADER_SIZE + ecc.size
        )
        return [end for end, good in zip(ends, sound(blocks, ecc).tolist()) if good]

    found = list(run)
    spacing = _spacing(run)
    if spacing < HEADER_SIZE + 2 * ecc.size:
        return found
    # Dumps in front of the first, as many as there are.
    while hit := corrected(found[0].offset - spacing, found[0].offset):
        found.insert(0, hit)
    at = 0
    while at + 1 < len(found):
        here, there = found[at].offset, found[at + 1].offset
        # A dump has a length that is known, what follows has a power of two. That the
        # first zone seems to end where the next one starts is no proof: those that
        # are empty have the same parity.
        powers = [1 << n for n in range(28, 4, -1)]
        starts = [here + spacing, *(there - size for size in powers)]
        least = here + HEADER_SIZE + ecc.size
        for start in ending(here, [end for end in starts if least < end < there]):
            hit = corrected(start, there)
            if hit is not None:
                found.insert(at + 1, hit)
                break
        at += 1
    return found


def _spacing(run: Sequence[_Hit]) -> int:
    """From one zone to the next, most often."""
    counts: dict[int, int] = {}
    for hit, after in zip(run, run[1:]):
        gap = after.offset - hit.offset
        counts[gap] = counts.get(gap, 0) + 1
    return max(counts, key=lambda gap: counts[gap]) if counts else 0


def _last_size(region: bytes, run: Sequence[_Hit], ecc: Ecc | None) -> int:
    """Of a zone behind which there is none: a power of two."""
    last = run[-1]
    rest = len(region) - last.offset
    room = max(rest, 1)
    sizes = [1 << n for n in range(4, 31) if last.header.used < 1 << n <= room]
    header = bytes(region[last.offset : last.offset + HEADER_SIZE])
    for size in sizes:
        if ecc is not None and size > HEADER_SIZE + ecc.size:
            end = last.offset + size
            parity = bytes(region[end - ecc.size : end])
            if sound(np.frombuffer(header + parity, np.uint8)[None, :], ecc)[0]:
                return size
        # One that is full says it.
        if ecc is None and last.header.used == size - HEADER_SIZE:
            return size
    if run[0].offset == 0 and sizes and rest - sizes[-1] < 4096:
        # The file is the region, all but what division left.
        return sizes[-1]
    likely = last.offset - run[-2].offset if len(run) > 1 else 4096
    return next((size for size in sizes if size >= likely), rest)


def _kinds(
    region: bytes,
    run: Sequence[_Hit],
    sizes: dict[int, int],
    ecc: Ecc | None,
    notes: list[str],
) -> dict[int, Kind]:
    """What each zone is for: by order, size and content."""

    def is_dump(hit: _Hit) -> bool | None:
        """None if it has nothing."""
        memory = bytes(region[hit.offset : hit.offset + sizes[hit.offset]])
        try:
            content = read_zone(memory, ecc=ecc).content
        except DumpError:
            return None
        return content.startswith(b"====") if content else None

    kinds: dict[int, Kind] = {}
    plain = [hit for hit in run if hit.version is None]
    traces = [hit for hit in run if hit.version is not None]
    kinds.update((hit.offset, "ftrace") for hit in traces)
    behind = [hit for hit in plain if traces and hit.offset > traces[0].offset]
    front = [hit for hit in plain if not traces or hit.offset < traces[0].offset]
    for hit in behind:
        # Until 6.1, pmsg came last.
        kinds[hit.offset] = "pmsg"
    names: list[Kind] = ["console"] if behind else ["console", "pmsg"]
    # The last of them that are no dumps.
    others = 0
    for hit in reversed(front):
        if others == len(names) or is_dump(hit):
            break
        others += 1
    if others < len(names) and front:
        notes.append(f"there are dumps where {names[others]} would be")
        names = names[:others]
    start = len(front) - others
    kinds.update((hit.offset, "dmesg") for hit in front[:start])
    none = [hit.offset for hit in front[:start] if is_dump(hit) is False]
    if none:
        notes.append(f"zones that have no dump, or not yet: {_listed(none)}")
    for hit, name in zip(front[start:], names):
        kinds[hit.offset] = name
    unsure = [hit for hit in front[start:] if not hit.header.used]
    if unsure:
        notes.append(
            "empty zones look all alike: which of them is console or pmsg follows "
            "from their order"
        )
    return kinds


# Sizes of parity that are looked for, the likely one first; odd ones correct nothing
# more.
_ECC_SIZES = (16, *(size for size in range(2, 65, 2) if size != 16))


def _find_ecc(region: bytes, sizes: dict[int, int]) -> Ecc | None:
    """The size of parity that headers have at the end of their zones."""
    best: tuple[int, Ecc | None] = 0, None
    zones = list(sizes.items())[:64]
    for size in _ECC_SIZES:
        ecc = Ecc(size)
        rows = []
        for offset, length in zones:
            header = bytes(region[offset : offset + HEADER_SIZE])
            parity = bytes(region[offset + length - size : offset + length])
            if length >= HEADER_SIZE + 2 * size and any(parity):
                rows.append(header + parity)
        if not rows:
            continue
        blocks = np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), -1)
        right = int(sound(blocks, ecc).sum())
        # A few bytes may be right by chance.
        if right * size >= 4 and right > best[0]:
            best = right, ecc
        if right * size >= 32:
            break
    return best[1]
