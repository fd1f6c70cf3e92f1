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

import importlib
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Callable, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from drgn_tools import i842, lz4_block, lzo1x

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
        return self._dtype().itemsize

    def _dtype(self) -> np.dtype[np.void]:
        order = "<" if self.byteorder == "little" else ">"
        word = f"{order}u{self.word}"
        fields = [("ip", word), ("parent_ip", word)]
        if self.stamped:
            fields.append(("ts", f"{order}u8"))
        elif not self.cpu_mask:
            fields.append(("cpu", f"{order}u4"))
            if self.word == 8:
                fields.append(("padding", f"{order}u4"))
        return np.dtype(fields)


#: Of 64-bit kernels since 4.10.
LP64 = FtraceFormat()


class Lost(NamedTuple):
    """Counters that no zone has."""

    boot: int
    first: int
    """The first of them, as if they did not wrap."""
    length: int
    """How many in a row."""


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
    """
    The format of ftrace records, from themselves.

    :param contents: of the zones, linearised.
    :param version: of the kernel that wrote them (:func:`signature_version`); what
        the records say has precedence.
    """
    best, fmt = -1.0, LP64
    for word in (8, 4):
        for stamped in (True, False):
            candidate = FtraceFormat(word, stamped, byteorder=byteorder)
            score = _fits(contents, candidate)
            # Records that say nothing: as the version has it.
            if version is not None and stamped == (version >= (4, 10)):
                score += 0.1
            if score > best:
                best, fmt = score, candidate
    if fmt.word == 4 and fmt.stamped and any(_is_plain(c, fmt) for c in contents):
        return fmt._replace(cpu_mask=3)
    if fmt.word == 8 and fmt.stamped:
        return fmt._replace(neutral=any(_has_neutral(c, fmt) for c in contents))
    return fmt


# Records of each zone that are enough to tell their format.
_SAMPLE = 4096


def _sample(content: bytes, fmt: FtraceFormat) -> npt.NDArray[np.void]:
    """The newest records: their end is where the content's is."""
    dtype = fmt._dtype()
    count = min(len(content) // dtype.itemsize, _SAMPLE)
    return np.frombuffer(content, dtype, count, len(content) - count * dtype.itemsize)


def _fits(contents: Sequence[bytes], fmt: FtraceFormat) -> float:
    """How well records in a format look like records, from 0 to 1."""
    scores = []
    for content in contents:
        raw = _sample(content, fmt)
        if not len(raw):
            continue
        ip, parent = raw["ip"].astype("u8"), raw["parent_ip"].astype("u8")
        shift = 8 * fmt.word - 8
        # Kernels are at the top of the address space, or, neutral, of its half.
        kernel = (ip >> shift & 0x7F) >= (0x70 if fmt.word == 8 else 0x40)
        kernel &= (parent >> shift & 0x7F) >= (0x70 if fmt.word == 8 else 0x40)
        if fmt.stamped:
            counter = raw["ts"].astype("u8") >> 8
            rises = counter[1:] > counter[:-1]
            # A counter of a billion is a week of tracing everything.
            rest = (counter < 1 << 44).mean() * 0.5
            rest += (rises.mean() if len(rises) else 1.0) * 0.5
        else:
            rest = (raw["cpu"] < 1 << 13).mean() * 0.9
        scores.append(float(kernel.mean()) * 0.5 + float(rest) * 0.5)
    return sum(scores) / len(scores) if scores else 0.0


def _is_plain(content: bytes, fmt: FtraceFormat) -> bool:
    """Whether ts has no CPU in it: it takes all values of a byte, and rises."""
    stamp = _sample(content, fmt)["ts"].astype("u8")
    if len(stamp) < 300:
        return False
    rises = stamp[1:] > stamp[:-1]
    return len(np.unique(stamp & 0xFF)) > 64 and bool(rises.mean() > 0.9)


def _has_neutral(content: bytes, fmt: FtraceFormat) -> bool:
    raw = _sample(content, fmt)
    top = raw["ip"].astype("u8") >> 56
    # 0x7f was 0xff.
    return bool(len(top)) and bool((top == 0x7F).any()) and bool((top >= 0x7F).all())


def decode_ftrace(
    content: bytes,
    fmt: FtraceFormat = LP64,
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
    :param cpu: that all of the zone is of, for one of many (``Zone.number``): of CPUs
        from 256 on, records have only the low bits.
    :param missing: bytes behind the content that could not be read.
    :return: an array of :data:`FTRACE`, boots numbered in this zone alone.
    """
    dtype = fmt._dtype()
    # The end is where records are aligned.
    skip = min((len(content) + missing) % dtype.itemsize, len(content))
    count = (len(content) - skip) // dtype.itemsize
    raw = np.frombuffer(content, dtype, count, skip if count else 0)
    records = np.zeros(count, FTRACE)
    records["ip"] = raw["ip"]
    records["parent_ip"] = raw["parent_ip"]
    records["zone"] = zone
    if fmt.cpu_mask:
        records["cpu"] = raw["ip"] & fmt.cpu_mask
        if fmt.stamped:
            records["counter"] = raw["ts"]
    elif fmt.stamped:
        stamp = raw["ts"].astype("u8", copy=False)
        records["cpu"] = stamp & 0xFF if cpu is None else cpu
        records["counter"] = stamp >> 8
    else:
        records["cpu"] = raw["cpu"]
    if not count:
        return records
    if fmt.stamped:
        starts, late = _restarts(records["counter"], _wraps(fmt))
        records["torn"] = late
        boot = np.zeros(count, np.int32)
        boot[starts] = 1
        boot = np.cumsum(boot, dtype=np.int32)
        records["boot"] = boot - boot[-1]
    last = records[-1:]
    if count > 1 and not missing:
        # Half of the last record may be what was there before.
        top = (records["ip"][-64:] >> (8 * fmt.word - 8)) & 0x7F
        if top[-1] not in top[:-1]:
            last["torn"] = True
    return records


def _wraps(fmt: FtraceFormat) -> int:
    """At what the counter starts again, 0 if it does not."""
    # encode_cpu()'s mask is an unsigned long, which takes off 32 of 64 bits.
    return 1 << 24 if fmt.word == 4 and not fmt.cpu_mask else 0


def _restarts(
    counter: npt.NDArray[np.uint64], wrap: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Where a zone's counter starts again, and which records came late."""
    late = np.zeros(len(counter), bool)
    falls = np.flatnonzero(counter[1:] < counter[:-1]) + 1
    if not len(falls):
        return falls, late
    before = counter[falls - 1]
    here = counter[falls]
    if wrap:
        rolled = before - here > wrap // 2
        falls, before, here = falls[~rolled], before[~rolled], here[~rolled]
    # In the middle of a write, an interrupt's records come first: only one record
    # is behind then, and what follows goes on from before it. The last one of all
    # may also be half old.
    after = counter[np.minimum(falls + 1, len(counter) - 1)]
    single = (after > before) | (falls == len(counter) - 1)
    late[falls[single]] = True
    return falls[~single], late


def merge_ftrace(zones: Sequence[FtraceArray], fmt: FtraceFormat = LP64) -> Trace:
    """
    Merge zones by counter and then by zone, each boot for itself.

    Which boots of the zones are the same one follows from their counters: of one
    boot, no two zones have the same counter, and where one skips, another goes on.
    """
    zones = [zone for zone in zones if len(zone)]
    if not zones:
        return Trace(np.zeros(0, FTRACE), (), 0)
    if not fmt.stamped:
        # There is one zone, in order.
        return Trace(np.concatenate(zones), (), 0)
    wrap = _wraps(fmt)
    keys = [_unrolled(zone, wrap) for zone in zones]
    boots = _same_boots(zones, keys)
    if wrap:
        keys = _same_laps(zones, keys, boots, wrap)
    records = np.concatenate(zones)
    records["boot"] = np.concatenate(boots)
    key = np.concatenate(keys)
    # Ready to be subtracted from; a counter has 56 bits, or 63 that are likely.
    place = (key & np.uint64((1 << 63) - 1)).astype(np.int64)
    if records["boot"].min() < 0:
        order = np.lexsort((place, records["boot"]))
    else:
        # Of sorted runs, this is a merge.
        order = np.argsort(place, kind="stable")
    records = np.take(records, order)
    lost, total = _gaps(records, place[order])
    return Trace(records, lost, total)


def _unrolled(zone: FtraceArray, wrap: int) -> npt.NDArray[np.uint64]:
    """A zone's counters as if they did not wrap."""
    counter: npt.NDArray[np.uint64] = zone["counter"]
    if not wrap:
        return counter
    signed = counter.astype(np.int64)
    rolled = np.zeros(len(counter), np.int64)
    same = zone["boot"][1:] == zone["boot"][:-1]
    rolled[1:] = same & (signed[:-1] - signed[1:] > wrap // 2)
    laps = np.cumsum(rolled)
    # From the start of its boot, each.
    starts = np.zeros(len(counter), np.int64)
    starts[1:] = np.where(same, 0, np.arange(1, len(counter)))
    laps -= laps[np.maximum.accumulate(starts)]
    return (signed + laps * wrap).astype(np.uint64)


# Boots of all zones that are told apart; a ring that is torn to pieces may seem to
# have a million.
_MAX_BOOTS = 16


def _runs(
    zone: FtraceArray, key: npt.NDArray[np.uint64]
) -> list[npt.NDArray[np.uint64]]:
    """Counters of each boot in a zone, newest first; those too old to be told apart
    in one."""
    boot = zone["boot"]
    runs = []
    end = len(zone)
    for number in range(_MAX_BOOTS):
        last = number == _MAX_BOOTS - 1
        start = 0 if last else int(np.searchsorted(boot, -number))
        runs.append(key[start:end])
        end = start
        if not end:
            break
    return runs


def _likeness(run: npt.NDArray[np.uint64], boot: npt.NDArray[np.uint64]) -> float:
    """
    How much counters are of the same boot as others: both sorted.

    Where one run has a number, the other does not, if both are of one boot; and
    where it skips some, the other has them.
    """
    if not len(run) or not len(boot):
        return 0.0
    if len(run) > _SAMPLE:
        # The newest are the likeliest to have company.
        run = run[-_SAMPLE:]
    at = np.searchsorted(boot, run)
    same = boot[np.minimum(at, len(boot) - 1)] == run
    above = boot[np.minimum(at, len(boot) - 1)] == run + np.uint64(1)
    below = (at > 0) & (boot[np.maximum(at, 1) - 1] + np.uint64(1) == run)
    return float((above & ~same).mean() + (below & ~same).mean() - 4 * same.mean())


def _same_boots(
    zones: Sequence[FtraceArray], keys: Sequence[npt.NDArray[np.uint64]]
) -> list[npt.NDArray[np.int32]]:
    """Boots of all zones on one scale: 0 for the newest, -1 before."""
    # Zones with more boots say more.
    order = sorted(range(len(zones)), key=lambda n: (int(zones[n]["boot"][0]), n))
    boots: list[_Boot] = []
    chosen: dict[int, list[_Boot]] = {}
    for number in order:
        runs = _runs(zones[number], keys[number])
        chosen[number] = _align(runs, boots)
        for run, boot in zip(runs, chosen[number]):
            boot.counters = np.sort(np.concatenate([boot.counters, run]), kind="stable")
    for place, boot in enumerate(boots):
        boot.number = -place
    result = []
    for number, zone in enumerate(zones):
        scale = np.array([boot.number for boot in chosen[number]], np.int32)
        result.append(scale[np.minimum(-zone["boot"], len(scale) - 1)])
    return result


class _Boot:
    """What is known of a boot while zones are put together."""

    def __init__(self) -> None:
        self.counters: npt.NDArray[np.uint64] = np.zeros(0, np.uint64)
        self.number = 0


# A boot that no other zone has is less likely than one that says nothing.
_NEW_BOOT = -0.5
# With nothing to tell, the newest it is.
_OLDER = -0.001


def _align(runs: Sequence[npt.NDArray[np.uint64]], boots: list[_Boot]) -> list[_Boot]:
    """
    For a zone's runs, newest first, the boots that they are of: those with the best
    likeness in sum, in order. Boots that are new are put among the others.
    """
    # best[run][boot]: of the runs from here on, with boots from here on.
    width = len(boots)
    new = _NEW_BOOT if width < 2 * _MAX_BOOTS else float("-inf")
    best = [[0.0] * (width + 1) for _ in range(len(runs) + 1)]
    steps = [["new"] * (width + 1) for _ in runs]
    for at in range(len(runs) - 1, -1, -1):
        best[at][width] = best[at + 1][width] + new
        for boot in range(width - 1, -1, -1):
            like = _likeness(runs[at], boots[boot].counters)
            ways = (
                (like + best[at + 1][boot + 1], "same"),
                (_OLDER + best[at][boot + 1], "older"),
                (new + best[at + 1][boot], "new"),
            )
            best[at][boot], steps[at][boot] = max(ways, key=lambda way: way[0])
    result: list[_Boot] = []
    at = place = known = 0
    while at < len(runs):
        step = steps[at][known]
        if step == "older":
            known += 1
            place += 1
            continue
        if step == "new":
            boots.insert(place, _Boot())
        else:
            known += 1
        result.append(boots[place])
        place += 1
        at += 1
    return result


def _same_laps(
    zones: Sequence[FtraceArray],
    keys: Sequence[npt.NDArray[np.uint64]],
    boots: Sequence[npt.NDArray[np.int32]],
    wrap: int,
) -> list[npt.NDArray[np.uint64]]:
    """Counters that wrap, brought to the same lap: each zone's newest are near."""
    keys = [key.copy() for key in keys]
    oldest = min(int(boot[0]) for boot in boots)
    for boot in range(max(oldest, -_MAX_BOOTS), 1):
        ends = {}
        for number, of in enumerate(boots):
            where = np.flatnonzero(of == boot)
            if len(where):
                ends[number] = (where, int(keys[number][where[-1]]))
        if not ends:
            continue
        top = max(end for _, end in ends.values())
        for number, (where, end) in ends.items():
            laps = (top - end + wrap // 2) // wrap
            keys[number][where] += np.uint64(laps * wrap)
    return keys


def _gaps(
    records: FtraceArray, key: npt.NDArray[np.int64]
) -> tuple[tuple[Lost, ...], int]:
    """Counters that no zone has."""
    sound = ~records["torn"]
    boot, key = records["boot"][sound], key[sound]
    steps = np.where(boot[1:] == boot[:-1], key[1:] - key[:-1], 1)
    where = np.flatnonzero(steps > 1)
    if not len(where):
        return (), 0
    counts = steps[where] - 1
    total = int(counts.sum())
    if len(where) > MAX_GAPS:
        longest = np.argpartition(counts, -MAX_GAPS)[-MAX_GAPS:]
        longest.sort()
        where, counts = where[longest], counts[longest]
    found = zip(boot[where].tolist(), (key[where] + 1).tolist(), counts.tolist())
    return tuple(Lost(*gap) for gap in found), total


_TOP_BIT = np.uint64(1 << 63)


def addresses(
    stored: npt.NDArray[np.uint64], fmt: FtraceFormat, kaslr_offset: int = 0
) -> npt.NDArray[np.uint64]:
    """
    Addresses from stored values of ``ip`` or ``parent_ip``.

    :param kaslr_offset: of the kernel in which they are looked up; used if stored
        values are neutral.
    """
    if not fmt.neutral:
        return stored
    core = (stored & _TOP_BIT) != 0
    return np.where(core, stored + np.uint64(kaslr_offset), stored | _TOP_BIT)


#: Text for an address.
Name = Callable[[int], str]


def _no_name(address: int) -> str:
    return f"{address:#x}"


def format_ftrace(
    records: FtraceArray,
    fmt: FtraceFormat = LP64,
    *,
    kaslr_offset: int = 0,
    function: Name = _no_name,
    caller: Name = _no_name,
) -> Iterator[str]:
    """
    Lines as the kernel prints them, without their ends.

    :param kaslr_offset: see :func:`addresses`.
    :param function: names ip, as ``%ps`` does; is asked once for each address.
    :param caller: names parent_ip, as ``%pS`` does.
    """
    callees: dict[int, str] = {}
    callers: dict[int, str] = {}
    for start in range(0, len(records), 1 << 16):
        part = records[start : start + (1 << 16)]
        columns = zip(
            part["cpu"].tolist(),
            part["counter"].tolist(),
            addresses(part["ip"], fmt, kaslr_offset).tolist(),
            addresses(part["parent_ip"], fmt, kaslr_offset).tolist(),
        )
        for cpu, counter, ip, parent in columns:
            to = callees.get(ip)
            if to is None:
                to = callees[ip] = function(ip)
            by = callers.get(parent)
            if by is None:
                by = callers[parent] = caller(parent)
            if fmt.stamped:
                yield f"CPU:{cpu} ts:{counter} {ip:08x}  {parent:08x}  {to} <- {by}"
            else:
                yield f"{cpu} {ip:08x}  {parent:08x}  {to} <- {by}"


class DmesgRecord(NamedTuple):
    """One record of a dump zone."""

    seconds: int
    """Of its header: wall clock, since 1970."""
    microseconds: int
    compressed: bool
    reason: str
    """Panic, Oops, …; empty if the record does not say."""
    oops_count: int
    """Of oopses since boot."""
    part: int
    text: bytes
    """Plain, its first line (reason, count and part) included."""
    algorithm: str
    """That it was compressed with: deflate, zlib, lzo, lz4, 842, zstd; or none."""
    error: str
    """Why text is not all there is; empty if it is."""


_DMESG_HEADER = re.compile(rb"====(\d{1,19})\.(\d{1,9})(?:-([CD]))?\n")
_DMESG_REASON = re.compile(rb"([A-Z][A-Za-z]{1,15})#(\d{1,9}) Part(\d{1,9})\n")


def decode_dmesg(
    content: bytes, *, algorithm: str | None = None, max_size: int = 1 << 20
) -> DmesgRecord | None:
    """
    Parse a dump zone's header and decompress what follows.

    :param algorithm: the kernel's, if it is known; else all are tried.
    :param max_size: bytes that text may have.
    :return: None if there is no header, where the kernel discards the zone.
    """
    header = _DMESG_HEADER.match(content)
    if header is None:
        return None
    return parse_dmesg_body(
        content[header.end() :],
        header[3] == b"C",
        seconds=int(header[1]),
        microseconds=int(header[2]),
        algorithm=algorithm,
        max_size=max_size,
    )


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
    text, name, error = body, "none", ""
    if compressed:
        text, name, error = decompress(body, algorithm, max_size)
    first = _DMESG_REASON.match(text)
    reason, count, part = "", 0, 0
    if first is not None:
        reason, count, part = first[1].decode(), int(first[2]), int(first[3])
    return DmesgRecord(
        seconds, microseconds, compressed, reason, count, part, text, name, error
    )


def decompress(
    data: bytes, algorithm: str | None = None, max_size: int = 1 << 20
) -> tuple[bytes, str, str]:
    """
    Decompress a record that may be cut short and have garbage behind.

    :param algorithm: as the kernel names it; None to try all.
    :return: what could be made of it, the algorithm, and why that is not all (or
        empty).
    """
    if algorithm is not None and algorithm not in _DECOMPRESSORS:
        return b"", algorithm, f"compressed with {algorithm}, which is unknown"
    best = b"", "none", "it cannot be decompressed"
    best_score = 0.0
    for name in [algorithm] if algorithm is not None else _DECOMPRESSORS:
        text, error = _attempt(name, data, max_size)
        if not error and not text:
            error = "nothing in it"
        score = _is_text(text) + (not error) * 0.5
        if name == "zstd" and data.startswith(_ZSTD_MAGIC):
            score += 1
        if name == algorithm or score > best_score:
            best, best_score = (text, name, error), score
        if score > 2 and not error:
            break
    if best_score < 1 and algorithm is None:
        return b"", "none", "it cannot be decompressed"
    return best


_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def _attempt(name: str, data: bytes, max_size: int) -> tuple[bytes, str]:
    pieces = bytearray()
    try:
        _DECOMPRESSORS[name](data, max_size, pieces)
        error = ""
    # Each library has its own errors for what cannot be decompressed.
    except Exception as why:
        error = f"{name} data is damaged or cut short: {why}"
    return bytes(pieces[:max_size]), error


def _is_text(data: bytes) -> float:
    """From 0 to 1; more if it is the kernel's."""
    if not data:
        return 0.0
    good = len(data) - len(data.translate(None, _TEXT))
    return good / len(data) + (2 if _DMESG_REASON.match(data) else 0)


_TEXT = bytes([*range(0x20, 0x7F), 9, 10, 13])


def _inflate(bits: int) -> _Decompressor:
    def decompress(data: bytes, max_size: int, out: bytearray) -> None:
        stream = zlib.decompressobj(bits)
        # What came before damage is worth having.
        for start in range(0, len(data), 64):
            out += stream.decompress(data[start : start + 64], max_size)
            if stream.eof or len(out) >= max_size:
                break
        if not stream.eof:
            raise ValueError("no end")

    return decompress


def _unzstd(data: bytes, max_size: int, out: bytearray) -> None:
    zstandard: Any = importlib.import_module("zstandard")
    reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(data)
    while len(out) < max_size and (piece := reader.read(min(4096, max_size))):
        out += piece
    if not out:
        raise ValueError("no end")


_Decompressor = Callable[[bytes, int, bytearray], object]
# By the kernel's names; what says most about itself first.
_DECOMPRESSORS: dict[str, _Decompressor] = {
    "zstd": _unzstd,
    "zlib": _inflate(15),
    "deflate": _inflate(-15),
    "lzo": lzo1x.decode,
    "lz4": lz4_block.decode,
    "lz4hc": lz4_block.decode,
    "842": i842.decode,
}


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


# android_pmsg_log_header_t and android_log_header_t, packed: magic, length of all,
# uid, pid; log id, tid, time.
_LOGCAT = struct.Struct("<BHHHBHII")
# Of main, radio, events, system, crash, stats, security, kernel: binary.
_LOGCAT_BINARY = (2, 5, 6)


def _logcat(content: bytes) -> Iterator[tuple[int, int, LogcatMessage]]:
    """Messages, from where to where."""
    at = 0
    while True:
        at = content.find(b"l", at)
        if at < 0 or at + _LOGCAT.size > len(content):
            return
        _, size, uid, pid, log_id, tid, seconds, nanoseconds = _LOGCAT.unpack_from(
            content, at
        )
        end = at + size
        if (
            size < _LOGCAT.size
            or end > len(content)
            or log_id > 7
            or nanoseconds >= 1_000_000_000
            # What comes next is another message, or nothing.
            or content[end : end + 1] not in (b"l", b"")
        ):
            at += 1
            continue
        payload = content[at + _LOGCAT.size : end]
        priority, tag, message = 0, b"", payload
        if log_id not in _LOGCAT_BINARY and payload and payload[0] < 9:
            priority = payload[0]
            tag, _, message = payload[1:].partition(b"\0")
            message = message.rstrip(b"\0")
        yield (
            at,
            end,
            LogcatMessage(
                log_id, uid, pid, tid, seconds, nanoseconds, priority, tag, message
            ),
        )
        at = end


def logcat_messages(content: bytes) -> Iterator[LogcatMessage]:
    """Messages in Android's framing; whatever is none is skipped."""
    for _, _, message in _logcat(content):
        yield message


def is_logcat(content: bytes) -> bool:
    """Whether pmsg is framed as Android does: most of it is."""
    framed = sum(end - start for start, end, _ in _logcat(content))
    return framed > len(content) // 2
