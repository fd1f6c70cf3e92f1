# SPDX-License-Identifier: LGPL-2.1-or-later
"""Function traces of every format merged, dmesg records, pmsg."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Sequence

import cramjam
import lzo
import numpy as np
import pytest
import zstandard

from drgn_tools.pstore_records import (
    FTRACE,
    LP64,
    FtraceArray,
    FtraceFormat,
    Lost,
    addresses,
    decode_dmesg,
    decode_ftrace,
    decompress,
    format_ftrace,
    guess_format,
    is_logcat,
    logcat_messages,
    merge_ftrace,
    parse_dmesg_body,
)
from tests import packed842
from tests.regions import TEXT, Ring, record64, write_trace

FORMATS = {
    "LP64": (LP64, "<QQQ"),
    "LP64 before 4.10": (FtraceFormat(stamped=False), "<QQII"),
    "ILP32": (FtraceFormat(4), "<IIQ"),
    "ILP32 before 4.10": (FtraceFormat(4, False), "<III"),
    "ILP32, CPU in ip": (FtraceFormat(4, cpu_mask=3), "<IIQ"),
    "ILP32, CPU in ip, before 4.10": (FtraceFormat(4, False, 1), "<II"),
    "big-endian": (FtraceFormat(byteorder="big"), ">QQQ"),
}


def packed(name: str, count: int, cpus: int = 4) -> bytes:
    fmt, pattern = FORMATS[name]
    base = TEXT if fmt.word == 8 else 0xC0100000
    result = b""
    for n in range(count):
        cpu = n % cpus & (fmt.cpu_mask or 0xFF)
        ip, parent = base + 64 * n, base + 32 + 64 * n
        if fmt.cpu_mask:
            ip |= cpu
        if not fmt.stamped:
            tail = [] if fmt.cpu_mask else [cpu, 0][: 2 if fmt.word == 8 else 1]
        else:
            tail = [n] if fmt.cpu_mask else [n << 8 | cpu]
        result += struct.pack(pattern, ip, parent, *tail)
    return result


@pytest.mark.verified(
    "pstore: function trace (`--raw`)",
    by="records in each format: before and since 4.10, 32 and 64 bit, both byte orders",
    on="bytes",
)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("torn", [0, 1, 5])
def test_every_format(name: str, torn: int) -> None:
    fmt, pattern = FORMATS[name]
    assert fmt.size == struct.calcsize(pattern)
    content = packed(name, 20)
    # What is left of an overwritten record.
    records = decode_ftrace(content[fmt.size - torn :], fmt, zone=7)
    first = 0 if torn == fmt.size else 1
    assert len(records) == 20 - first
    base = TEXT if fmt.word == 8 else 0xC0100000
    for n, record in enumerate(records, first):
        cpu = n % 4 & (fmt.cpu_mask or 0xFF)
        assert record["ip"] == (base + 64 * n | (cpu if fmt.cpu_mask else 0))
        assert record["parent_ip"] == base + 32 + 64 * n
        cpu_known = fmt.cpu_mask == 0 or fmt.stamped
        assert record["cpu"] == cpu or not cpu_known
        assert record["counter"] == (n if fmt.stamped else 0)
        assert (record["zone"], record["boot"]) == (7, 0)
        assert not record["torn"]


# Where ip has the CPU and there is no counter, nothing says how many bits it has.
TOLD = [name for name, (fmt, _) in FORMATS.items() if fmt.stamped or not fmt.cpu_mask]


@pytest.mark.parametrize("name", TOLD)
def test_formats_are_told_from_records(name: str) -> None:
    fmt, _ = FORMATS[name]
    found = guess_format([packed(name, 400)], byteorder=fmt.byteorder)
    assert found == fmt


def test_versions_decide_where_records_do_not() -> None:
    one = [packed("LP64 before 4.10", 1)]
    assert not guess_format(one, (4, 9, 0)).stamped
    assert guess_format(one, (4, 10, 0)).stamped
    assert guess_format([]) == LP64


def test_neutral_addresses() -> None:
    stored = np.array([TEXT, 0x7FFFFFFFC0000010], np.uint64)
    content = b"".join(
        struct.pack("<QQQ", ip, TEXT, n << 8) for n, ip in enumerate(stored)
    )
    fmt = guess_format([content])
    assert fmt.neutral
    records = decode_ftrace(content, fmt)
    assert records["ip"].tolist() == stored.tolist()
    assert not records["torn"].any()
    there = addresses(records["ip"], fmt, 0x5000000)
    assert there.tolist() == [TEXT + 0x5000000, 0xFFFFFFFFC0000010]
    assert addresses(records["ip"], LP64, 0x5000000).tolist() == stored.tolist()


def reference(zones: Sequence[FtraceArray]) -> list[tuple[int, int, int, int]]:
    """Boot, counter, zone and ip of all, merged by plain Python."""
    rows = []
    for number, zone in enumerate(zones):
        for row in zone.tolist():
            record = dict(zip(FTRACE.names or (), row))
            rows.append((record["boot"], record["counter"], number, record["ip"]))
    return sorted(rows, key=lambda row: row[:3])


def rows_of(records: FtraceArray) -> list[tuple[int, int, int, int]]:
    names = ("boot", "counter", "zone", "ip")
    return list(zip(*(records[name].tolist() for name in names)))


@pytest.mark.parametrize("seed", range(30))
def test_merging_is_sorting(seed: int) -> None:
    chance = random.Random(seed)
    rings = [
        Ring(chance.choice([300, 1000, 5000])) for _ in range(chance.randrange(1, 9))
    ]
    written = write_trace(rings, chance.randrange(1, 2000), seed)
    zones = [
        decode_ftrace(ring_content(ring), zone=n, cpu=n) for n, ring in enumerate(rings)
    ]
    trace = merge_ftrace(zones)
    assert rows_of(trace.records) == reference(zones)
    left = trace.records["counter"].tolist()
    by_counter = {counter: (cpu, ip) for counter, cpu, ip in written}
    for record in trace.records:
        assert by_counter[record["counter"]] == (record["cpu"], record["ip"])
    missing = set(range(left[0], left[-1])) - set(left)
    assert trace.lost_total == len(missing)
    found = {n for gap in trace.lost for n in range(gap.first, gap.first + gap.length)}
    assert found == missing


def ring_content(ring: Ring) -> bytes:
    data = bytes(ring.data)
    if ring.used < ring.room:
        return data[: ring.start]
    return data[ring.start :] + data[: ring.start]


@pytest.mark.parametrize("seed", range(60))
def test_boots_are_told_apart(seed: int) -> None:
    """
    All boots still in the rings, also where CPUs have none of some; but each has
    one CPU in common with the next, which their order follows from.
    """
    chance = random.Random(seed)
    rings = [Ring(30000) for _ in range(chance.randrange(2, 6))]
    expected: list[set[tuple[int, int]]] = []
    last: Ring | None = None
    for boot in range(chance.randrange(1, 5)):
        part = chance.sample(rings, chance.randrange(1, len(rings) + 1))
        if last is not None and not any(ring is last for ring in part):
            part.append(last)
        last = chance.choice(part)
        rows = write_trace(part, chance.randrange(200, 300), 100 * seed + boot)
        expected.append({(counter, ip) for counter, _, ip in rows})
    trace = merge_ftrace(
        [decode_ftrace(ring_content(ring), zone=n) for n, ring in enumerate(rings)]
    )
    newest = len(expected) - 1
    for boot, wanted in enumerate(expected):
        of = trace.records[trace.records["boot"] == boot - newest]
        found = set(zip(of["counter"].tolist(), of["ip"].tolist()))
        assert found == wanted
    assert trace.lost_total == 0
    assert not trace.records["torn"].any()


def one_zone(counters: Sequence[int]) -> FtraceArray:
    return decode_ftrace(b"".join(record64(counter, 0) for counter in counters))


def test_an_interrupts_records_come_first() -> None:
    zone = one_zone([1, 2, 5, 6, 4, 7])
    assert zone["torn"].tolist() == [False] * 4 + [True, False]
    assert set(zone["boot"].tolist()) == {0}
    assert merge_ftrace([zone]).records["counter"].tolist() == [1, 2, 4, 5, 6, 7]


def test_the_last_record_may_be_old() -> None:
    zone = one_zone([100, 101, 102, 40])
    assert zone["torn"].tolist() == [False, False, False, True]
    assert set(zone["boot"].tolist()) == {0}
    content = b"".join(record64(n, 0) for n in range(5)) + record64(5, 0, ip=3)
    assert decode_ftrace(content)["torn"].tolist() == [False] * 5 + [True]


def test_counters_of_32_bit_kernels_wrap() -> None:
    fmt = FtraceFormat(4)
    top = 1 << 24

    def content(counters: Sequence[int], cpu: int) -> bytes:
        return b"".join(
            struct.pack("<IIQ", 0xC0100000 + n, 0xC0100000, n % top << 8 | cpu)
            for n in counters
        )

    both = [range(top - 9, top + 9, 2), range(top + 2, top + 9, 2)]
    zones = [
        decode_ftrace(content(counters, n), fmt, zone=n)
        for n, counters in enumerate(both)
    ]
    trace = merge_ftrace(zones, fmt)
    assert trace.records["counter"].tolist() == [
        n % top for n in sorted([*both[0], *both[1]])
    ]
    assert set(trace.records["boot"].tolist()) == {0}
    assert trace.lost_total == 5


def test_cpus_beyond_255() -> None:
    # encode_cpu() ors the CPU's number into the counter's bits.
    content = b"".join(
        struct.pack("<QQQ", TEXT, TEXT, n << 8 | 300) for n in range(0, 20, 2)
    )
    records = decode_ftrace(content, zone=300, cpu=300)
    assert set(records["cpu"].tolist()) == {300}
    assert set(records["boot"].tolist()) == {0}
    assert set(decode_ftrace(content)["cpu"].tolist()) == {300 & 0xFF}


@pytest.mark.parametrize("boots", [1, 2, 3])
@pytest.mark.parametrize("seed", range(10))
def test_boots_of_machines_with_more_than_256_cpus(boots: int, seed: int) -> None:
    """Counters of CPUs beyond 255 are inexact: no boots and no losses follow."""
    chance = random.Random(seed)
    cpus = [0, 1, 255, 256, 300, 512, 600, 1023]
    contents = dict.fromkeys(cpus, b"")
    for boot in range(boots):
        for n in range(3000 - 500 * boot):
            cpu = chance.choice(cpus)
            contents[cpu] += struct.pack("<QQQ", TEXT + boot, TEXT, n << 8 | cpu)
    zones = [
        decode_ftrace(contents[cpu], zone=zone, cpu=cpu)
        for zone, cpu in enumerate(cpus)
    ]
    trace = merge_ftrace(zones)
    assert (trace.records["ip"] - TEXT == trace.records["boot"] + boots - 1).all()
    assert (trace.records["cpu"] == np.array(cpus)[trace.records["zone"]]).all()
    assert not trace.records["torn"].any()
    assert trace.lost_total == 0


def test_what_cannot_be_read_at_the_end() -> None:
    content = b"".join(record64(n, 0) for n in range(10))
    for cut in range(0, 100, 7):
        left = content[: len(content) - cut]
        records = decode_ftrace(left, missing=cut)
        assert records["counter"].tolist() == list(range(len(left) // 24))


def test_nothing() -> None:
    assert len(decode_ftrace(b"")) == 0
    assert len(decode_ftrace(b"short")) == 0
    assert merge_ftrace([]).lost == ()
    assert merge_ftrace([decode_ftrace(b"")]).lost_total == 0


def test_gaps_are_counted() -> None:
    trace = merge_ftrace([one_zone([1, 2, 5]), one_zone([6, 10])])
    assert trace.lost == (Lost(0, 3, 2), Lost(0, 7, 3))
    assert trace.lost_total == 5


def test_hostile_counters() -> None:
    chance = random.Random(1)
    for _ in range(20):
        zones = [
            decode_ftrace(chance.randbytes(chance.randrange(20_000)), zone=n)
            for n in range(chance.randrange(1, 20))
        ]
        trace = merge_ftrace(zones)
        assert len(trace.records) == sum(map(len, zones))
        # Boots fall, so this must not have one loop for each.
        assert trace.records["boot"].max() == 0


def test_lines_are_the_kernels() -> None:
    records = one_zone([7])
    assert list(format_ftrace(records)) == [
        "CPU:0 ts:7 ffffffff81000000  ffffffff81000010  "
        "0xffffffff81000000 <- 0xffffffff81000010"
    ]
    named = format_ftrace(records, function=lambda a: "f", caller=lambda a: "g+0x1/0x2")
    assert next(named).endswith("  f <- g+0x1/0x2")
    fmt, _ = FORMATS["ILP32 before 4.10"]
    old = decode_ftrace(packed("ILP32 before 4.10", 2), fmt)
    assert list(format_ftrace(old, fmt))[1] == (
        "1 c0100040  c0100060  0xc0100040 <- 0xc0100060"
    )


LOG = b"Oops#2 Part1\n" + b"".join(
    b"<%d>[%5d.%06d] CPU: %d PID: %d Comm: test\n" % (n % 8, n, n * 7, n % 4, n * n)
    for n in range(300)
)


def deflated(bits: int) -> bytes:
    stream = zlib.compressobj(6, zlib.DEFLATED, bits)
    return stream.compress(LOG) + stream.flush()


COMPRESSED = {
    "deflate": deflated(-15),
    "zlib": deflated(12),
    "lzo": lzo.compress(LOG, 1, False),
    "lz4": bytes(cramjam.lz4.compress_block(LOG, store_size=False)),
    "zstd": zstandard.compress(LOG),
    "842": packed842.pack(LOG, random.Random(1)),
}


@pytest.mark.verified(
    "pstore: logs of oopses and panics (`--raw`)",
    by="the compressors' own libraries",
    on="bytes",
)
@pytest.mark.parametrize("name", COMPRESSED)
@pytest.mark.parametrize("known", [False, True])
def test_every_compression(name: str, known: bool) -> None:
    record = decode_dmesg(
        b"====1700000000.000042-C\n" + COMPRESSED[name],
        algorithm=name if known else None,
    )
    assert record is not None
    assert record.text == LOG
    assert (record.algorithm, record.error) == (name, "")
    assert (record.reason, record.oops_count, record.part) == ("Oops", 2, 1)
    assert (record.seconds, record.microseconds) == (1700000000, 42)


def test_lz4hc() -> None:
    """What its compressor makes, which looks harder, is LZ4 all the same."""
    # Only in frames, of which each has one block here.
    frames = [bytes(cramjam.lz4.compress(LOG, level=level)) for level in (1, 12)]
    starts = [7 + 8 * bool(frame[4] & 8) for frame in frames]
    fast, packed = (
        frame[at + 4 : at + 4 + int.from_bytes(frame[at : at + 4], "little")]
        for frame, at in zip(frames, starts)
    )
    assert len(packed) < len(fast)
    assert decompress(packed, "lz4hc") == (LOG, "lz4hc", "")
    assert decompress(packed) == (LOG, "lz4", "")


def test_deflate_of_small_windows() -> None:
    assert decompress(deflated(-11)) == (LOG, "deflate", "")


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_and_cut_short(name: str) -> None:
    data = COMPRESSED[name]
    for size in (0, 1, 10, len(data) // 2, len(data) - 5):
        text, _, error = decompress(data[:size], name)
        assert error
        assert LOG.startswith(text)


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_and_damaged(name: str) -> None:
    chance = random.Random(name)
    for _ in range(100):
        data = bytearray(COMPRESSED[name])
        for _ in range(3):
            data[chance.randrange(len(data))] ^= chance.randrange(1, 256)
        text, _, _ = decompress(bytes(data), name, 1 << 16)
        assert len(text) <= 1 << 16
        decompress(bytes(data), None, 1 << 16)


def test_bombs_are_bounded() -> None:
    for data in (zlib.compress(bytes(50 << 20)), zstandard.compress(bytes(50 << 20))):
        text, _, _ = decompress(data, None, 1 << 16)
        assert len(text) <= 1 << 16


def test_garbage_behind_deflate() -> None:
    assert decompress(COMPRESSED["deflate"] + b"old record") == (LOG, "deflate", "")


def test_no_compression_that_is_known() -> None:
    text, name, error = decompress(random.Random(1).randbytes(1000))
    assert (text, name) == (b"", "none")
    assert error
    assert "unknown" in decompress(b"", "brotli")[2]


@pytest.mark.parametrize(
    ("header", "compressed", "microseconds"),
    [
        (b"====5.42\n", False, 42),
        (b"====5.42-D\n", False, 42),
        (b"====5.000042-D\n", False, 42),
    ],
)
def test_headers(header: bytes, compressed: bool, microseconds: int) -> None:
    record = decode_dmesg(header + LOG)
    assert record is not None
    assert (record.text, record.compressed) == (LOG, compressed)
    assert (record.seconds, record.microseconds) == (5, microseconds)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"====",
        b"====5\n",
        b"===5.1-D\n",
        b"====5.1-X\n",
        b"====a.b\n",
        b"====" + b"9" * 5000 + b".1\n",
    ],
)
def test_no_header(content: bytes) -> None:
    assert decode_dmesg(content) is None


def test_body_without_a_reason() -> None:
    record = parse_dmesg_body(b"<4>text\n", False)
    assert (record.reason, record.oops_count, record.part) == ("", 0, 0)
    assert record.text == b"<4>text\n"


def logcat(log: int, payload: bytes, seconds: int = 5) -> bytes:
    return (
        struct.pack(
            "<BHHHBHII", 0x6C, 18 + len(payload), 1000, 200, log, 201, seconds, 999
        )
        + payload
    )


def test_logcat() -> None:
    first = logcat(0, b"\x04ActivityManager\0hello\0")
    content = first + logcat(2, b"\x01\x02\x03") + logcat(3, b"\x06tag\0all lost\0")
    for cut in range(len(first)):
        # The start is overwritten: the rest is found all the same.
        messages = list(logcat_messages(content[cut:]))
        assert len(messages) == (3 if not cut else 2)
    one, two, three = logcat_messages(content)
    assert (one.tag, one.message, one.priority) == (b"ActivityManager", b"hello", 4)
    assert (one.uid, one.pid, one.tid) == (1000, 200, 201)
    assert (one.seconds, one.nanoseconds) == (5, 999)
    assert (two.log_id, two.message, two.priority) == (2, b"\x01\x02\x03", 0)
    assert three.message == b"all lost"
    assert is_logcat(content)
    assert not is_logcat(b"plain lines\nall of them\n" * 10)
    assert not is_logcat(b"")
    list(logcat_messages(random.Random(1).randbytes(1 << 16)))
    list(logcat_messages(b"l" * (1 << 16)))
