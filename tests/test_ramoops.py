# SPDX-License-Identifier: LGPL-2.1-or-later
"""Zones and regions of ramoops: every era's rings, parity, damage, blind search."""

from __future__ import annotations

import os
import random
import struct
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest
import reedsolo

from drgn_tools import ramoops
from drgn_tools.errors import DumpError
from drgn_tools.pstore_records import (
    decode_dmesg,
    decode_ftrace,
    guess_format,
    is_logcat,
    merge_ftrace,
)
from drgn_tools.ramoops import (
    Layout,
    Zone,
    parse_layout,
    places,
    read_psz_buffer,
    read_region,
    read_zone,
    ring_size,
    signature_version,
)
from drgn_tools.reed_solomon import Ecc, correct
from tests.regions import (
    FTRACE_SIG,
    SIG,
    Division,
    Ring,
    codec,
    region,
    rings,
    write_trace,
)

eccs = pytest.mark.parametrize("ecc", [0, 16, 32, 5])


def ecc_of(size: int) -> Ecc | None:
    return Ecc(size) if size else None


def read(ring: Ring, image: bytes | None = None, **how: Any) -> Zone:
    memory = ring.image() if image is None else image
    return read_zone(memory, ecc=ecc_of(ring.ecc), **how)


def flipped(image: bytes, places: list[int], seed: int = 1) -> bytes:
    chance = random.Random(seed)
    result = bytearray(image)
    for place in places:
        result[place] ^= chance.randrange(1, 256)
    return bytes(result)


# What kernels say.
@pytest.mark.parametrize(
    ("size", "ecc", "room"),
    [(4096, 16, 3604), (4096, 32, 3220), (65536, 16, 58228), (4096, 0, 4084)],
)
def test_room(size: int, ecc: int, room: int) -> None:
    assert ring_size(size, ecc_of(ecc)) == room


# The kernel's own encoder made these.
@pytest.mark.parametrize(
    ("data", "parity"),
    [
        ("444247430000000000000000", "aa25d52132e2353a385519c02bcbad5f"),
        ("444247436400000064000000", "406170834e3377025ba20f6089cb9498"),
        (bytes(range(128)).hex(), "1c426d22fb8ad3fa2eeeae521c329ac1"),
    ],
)
def test_parity_is_the_kernels(data: str, parity: str) -> None:
    block = np.frombuffer(bytes.fromhex(data + parity), np.uint8)[None, :]
    same, errors = correct(block, Ecc())
    assert errors.tolist() == [0]
    assert (same == block).all()


@pytest.mark.verified(
    "pstore: errors corrected (ECC)",
    by="reedsolo, another Reed-Solomon coder",
    on="bytes",
)
@pytest.mark.parametrize(("size", "length"), [(16, 128), (16, 5), (4, 200), (7, 64)])
def test_correction_is_the_librarys(size: int, length: int) -> None:
    chance = random.Random(size)
    encoder = codec(size)
    sound = [bytes(encoder.encode(chance.randbytes(length))) for _ in range(100)]
    wrong = [n % (size // 2 + 1) for n in range(100)]
    damaged = [
        flipped(block, chance.sample(range(len(block)), count), count)
        for block, count in zip(sound, wrong)
    ]
    blocks = np.frombuffer(b"".join(damaged), np.uint8).reshape(100, -1)
    fixed, errors = correct(blocks, Ecc(size))
    assert errors.tolist() == wrong
    assert fixed.tobytes() == b"".join(sound)


def test_too_many_errors_are_reported_as_by_the_library() -> None:
    chance = random.Random(3)
    encoder = codec(16)
    blocks = [bytes(encoder.encode(chance.randbytes(128))) for _ in range(60)]
    damaged = [
        flipped(block, chance.sample(range(144), 9 + n % 8))
        for n, block in enumerate(blocks)
    ]
    array = np.frombuffer(b"".join(damaged), np.uint8).reshape(60, -1)
    fixed, errors = correct(array, Ecc())
    assert (errors == -1).all()
    assert (fixed == array).all()
    for block in damaged:
        with pytest.raises(reedsolo.ReedSolomonError):
            encoder.decode(block)


@pytest.mark.parametrize(
    "ecc",
    [
        Ecc(0),
        Ecc(-1),
        Ecc(300),
        Ecc(16, 250),
        Ecc(16, 0),
        Ecc(16, 128, 0x100),
        Ecc(16, 128, 0x11B),
        Ecc(16, 128, 0x11D, 10),
    ],
)
def test_impossible_parameters(ecc: Ecc) -> None:
    with pytest.raises(DumpError):
        read_zone(bytes(4096), ecc=ecc)


def test_too_small_for_parity() -> None:
    with pytest.raises(DumpError, match="no room"):
        read_zone(bytes(40), ecc=Ecc())


@eccs
@pytest.mark.parametrize("late_wrap", [False, True])
@pytest.mark.parametrize("live", [False, True])
def test_what_was_written_is_read(ecc: int, late_wrap: bool, live: bool) -> None:
    chance = random.Random(ecc)
    for size in (256, 1000, 4096):
        ring = Ring(size, ecc=ecc, late_wrap=late_wrap)
        stream = b""
        assert read(ring, live=live).state == "empty"
        while len(stream) < 3 * ring.room:
            piece = chance.randbytes(chance.randrange(1, ring.room // 3))
            stream += piece
            ring.write(piece)
            zone = read(ring, live=live)
            assert zone.state == "valid"
            assert zone.content == stream[-ring.room :]
            assert (zone.corrected_bytes, zone.bad_blocks) == (0, 0)
            assert zone.wrapped or len(stream) <= ring.room


def test_exactly_full() -> None:
    for late_wrap in (False, True):
        ring = Ring(512, late_wrap=late_wrap)
        ring.write(bytes(range(250)) * 2)
        assert ring.start == (500 if late_wrap else 0)
        assert read(ring).content == bytes(range(250)) * 2


def test_staging_has_more_parity() -> None:
    ring = Ring(4096, ecc=16, staging=True)
    ring.write(b"staging" * 1000)
    assert ring.room < ring_size(4096, Ecc())
    zone = read(ring, staging=True)
    assert zone.content == (b"staging" * 1000)[-ring.room :]
    assert zone.bad_blocks == 0


@pytest.mark.parametrize("used", [100, 1000, 5000])
def test_flipped_bytes_are_corrected_and_counted(used: int) -> None:
    chance = random.Random(used)
    ring = Ring(4096, ecc=16)
    text = chance.randbytes(used)
    ring.write(text)
    content = text[-ring.room :]
    image = ring.image()
    blocks = -(-min(used, ring.room) // 128)
    places = []
    for number in range(blocks):
        size = min(128, ring.room - number * 128)
        block = [12 + number * 128 + n for n in range(size)]
        block += [12 + ring.room + number * 16 + n for n in range(16)]
        places += chance.sample(block, 8)
    header = [*range(12), *range(4096 - 16, 4096)]
    for more in ([], chance.sample(header, 4), chance.sample(header, 8)):
        zone = read(ring, flipped(image, places + more))
        assert zone.content == content
        assert zone.corrected_bytes == len(places) + len(more)
        assert zone.bad_blocks == 0


@pytest.mark.parametrize("block", [0, 3, 28])
def test_too_many_flipped_bytes_are_reported(block: int) -> None:
    ring = Ring(4096, ecc=16)
    ring.write(b"0123456789abcdef" * 300)
    good = read(ring).content
    image = ring.image()
    places = [12 + block * 128 + n for n in range(9)]
    zone = read(ring, flipped(image, places))
    assert zone.bad_blocks == 1
    assert zone.corrected_bytes == 0
    assert sum(a != b for a, b in zip(zone.content, good)) == 9
    assert len(zone.content) == len(good)


def test_what_was_never_written_is_not_looked_at() -> None:
    ring = Ring(4096, ecc=16)
    ring.write(b"short")
    image = bytearray(ring.image())
    # Blocks behind the first, and their parity, are what memory has at power on.
    image[12 + 128 : 12 + ring.room] = random.Random(1).randbytes(ring.room - 128)
    zone = read(ring, bytes(image))
    assert (zone.content, zone.bad_blocks) == (b"short", 0)


def test_header_in_ruins() -> None:
    ring = Ring(4096, ecc=16)
    ring.write(b"content")
    ruined = flipped(ring.image(), list(range(12)))
    zone = read(ring, ruined)
    assert zone.content == b""
    assert zone.bad_blocks == 1
    assert zone.state in ("unsigned", "invalid")


@eccs
@pytest.mark.parametrize("before", [50, 5000])
@pytest.mark.parametrize("upto", [1, 2, 3])
def test_torn_writes(ecc: int, before: int, upto: int) -> None:
    chance = random.Random(before)
    ring = Ring(2048, ecc=ecc)
    stream = chance.randbytes(before)
    ring.write(stream)
    header = ring.header()
    # As the ring is, without parity for what is new.
    new = chance.randbytes(24)
    ring.write(new, upto=upto)
    zone = read(ring, ring.image(header_of=header))
    whole = stream[-ring.room :]
    if upto == 1:
        assert zone.content == whole
        assert zone.state == ("torn" if before < ring.room else "valid")
    elif upto == 2:
        # The place is taken; what is there is of before.
        assert len(zone.content) == min(before + 24, ring.room)
        assert zone.content[:-24] == (stream + new)[-ring.room :][:-24]
    else:
        assert zone.content == (stream + new)[-ring.room :]
    if upto > 1:
        assert zone.header_parity_stale == bool(ecc)


def test_stale_parity_is_what_the_kernel_takes_at_boot() -> None:
    ring = Ring(2048, ecc=16)
    ring.write(b"before")
    header = ring.header()
    ring.write(b" after")
    image = ring.image(header_of=header)
    assert read(ring, image).content == b"before after"
    zone = read(ring, image, live=False)
    assert zone.content == b"before"
    assert zone.header_corrected


@pytest.mark.parametrize(
    ("start", "used"),
    [(5, 4), (0, 4085), (4085, 4085), (0xFFFFFFFF, 0xFFFFFFFF), (1 << 31, 100)],
)
def test_impossible_headers(start: int, used: int) -> None:
    memory = struct.pack("<III", SIG, start, used) + bytes(4084)
    zone = read_zone(memory)
    assert (zone.state, zone.content) == ("invalid", b"")


def test_signatures() -> None:
    ring = Ring(4096, FTRACE_SIG["5.10.262"])
    ring.write(b"x" * 24)
    assert read(ring, kind="ftrace").state == "valid"
    assert read(ring, kind="ftrace").version == (5, 10, 255)
    assert read(ring, kind="console").state == "unsigned"
    other = FTRACE_SIG["6.12.107"]
    assert read(ring, kind="ftrace", signature=other).state == "unsigned"
    assert signature_version(SIG) is None
    assert signature_version(0) is None
    plain = Ring(4096)
    assert read(plain, kind="ftrace").state == "unsigned"
    assert read_zone(b"\0" * 4096).state == "unsigned"
    assert read_zone(b"DBGC", size=4096).state == "missing"


def test_what_is_cut_off_is_counted() -> None:
    ring = Ring(1012)
    ring.write(bytes(range(250)) * 5)  # start is 250
    image = ring.image()
    whole = read(ring).content
    for cut in range(12, 1012, 50):
        zone = read_zone(image[:cut], size=1012)
        end = len(whole) - zone.missing
        assert zone.content == whole[zone.skipped : end]
        assert zone.skipped + len(zone.content) + zone.missing == len(whole)


def test_big_endian() -> None:
    ring = Ring(512, byteorder=">")
    ring.write(b"other way round")
    assert read(ring, byteorder="big").content == b"other way round"


def psz(kind: int, datalen: int, start: int, data: bytes) -> bytes:
    return struct.pack("<III", SIG ^ kind, datalen, start) + data


def test_psz_buffers() -> None:
    data = b"0123456789"
    one = read_psz_buffer(psz(2, 10, 4, data), kind="console")
    assert (one.content, one.wrapped) == (b"4567890123", True)
    full = read_psz_buffer(psz(2, 10, 10, data), kind="console")
    assert full.content == data
    part = read_psz_buffer(psz(7, 4, 4, b"text" + b"\xff" * 6), kind="pmsg")
    assert (part.content, part.wrapped) == (b"text", False)
    old = read_psz_buffer(psz(7, 10, 4, data), kind="pmsg", rotated=True)
    assert old.content == data
    dump = read_psz_buffer(psz(0, 6, 0, data), kind="dmesg")
    assert dump.content == b"012345"
    assert read_psz_buffer(psz(3, 6, 0, data), kind="pmsg").state == "unsigned"
    assert read_psz_buffer(psz(7, 11, 0, data), kind="pmsg").state == "invalid"
    assert read_psz_buffer(b"short", kind="pmsg").state == "missing"


LAYOUTS = [
    Division(),
    Division(ecc=16),
    Division(ecc=32, cpus=4),
    Division(cpus=1),
    Division(cpus=3, ftrace=0x10000),
    Division(mem=0x2C000, cpus=4, ecc=16),
    Division(pmsg_first=False, sig=FTRACE_SIG["5.10.262"]),
    Division(pmsg_first=False, ecc=16, cpus=4, sig=FTRACE_SIG["4.19.1"]),
    Division(pmsg_first=False, shared=False, cpus=1, sig=FTRACE_SIG["4.9.0"]),
    Division(mem=0x2E000, shared=False, cpus=1, sig=FTRACE_SIG["4.9.0"]),
    Division(mem=0x100000, record=0x10000, console=0x20000, pmsg=0x10000),
]


def filled(division: Division, seed: int = 0) -> list[tuple[str, Ring]]:
    zones = rings(division)
    chance = random.Random(seed)
    dumps = [ring for kind, ring in zones if kind == "dmesg"]
    for number, ring in enumerate(dumps[:2]):
        ring.write(b"====%d.000123-D\nPanic#1 Part1\n<4>text\n" % (number + 1))
    for kind, ring in zones:
        if kind == "console":
            ring.write(b"[    0.000000] Linux version\n" * chance.randrange(1, 3000))
        if kind == "pmsg":
            ring.write(b"from user space\n" * chance.randrange(1, 3000))
    write_trace([ring for kind, ring in zones if kind == "ftrace"], 500, seed)
    return zones


def layout_of(division: Division, **how: Any) -> Layout:
    return Layout(
        division.record,
        division.console,
        division.ftrace,
        division.pmsg,
        ecc_of(division.ecc),
        division.cpus,
        **how,
    )


def assert_same(found: ramoops.Region, zones: list[tuple[str, Ring]]) -> None:
    at = 0
    for zone, (kind, ring) in zip(found.zones, zones):
        assert zone.kind == kind
        assert zone.address == at
        assert zone.content == read(ring).content
        at += ring.size
    assert len(found.zones) == len(zones)


@pytest.mark.parametrize("division", LAYOUTS)
def test_a_given_layout(division: Division) -> None:
    zones = filled(division)
    image = region(zones, division.mem)
    assert_same(read_region(image, layout_of(division)), zones)
    where = places(
        layout_of(division, pmsg_first=division.pmsg_first, exact=not division.shared),
        division.mem,
    )
    assert [place.size for place in where] == [ring.size for _, ring in zones]


@pytest.mark.parametrize("division", LAYOUTS)
def test_a_layout_in_a_file_of_all_memory(division: Division) -> None:
    zones = filled(division)
    image = bytes(0x5000) + region(zones, division.mem) + bytes(0x3000)
    layout = layout_of(division, mem_address=0x5000, mem_size=division.mem)
    found = read_region(image, layout)
    assert [z.content for z in found.zones] == [read(r).content for _, r in zones]
    assert found.zones[0].address == 0x5000


@pytest.mark.parametrize("division", LAYOUTS)
def test_blind(division: Division) -> None:
    zones = filled(division)
    found = read_region(region(zones, division.mem))
    assert_same(found, zones)
    assert found.layout.cpus == division.cpus
    assert found.layout.ecc == ecc_of(division.ecc)
    assert found.layout.pmsg_first == division.pmsg_first
    assert found.version == signature_version(division.sig)
    assert found.layout.console_size == division.console
    assert found.layout.pmsg_size == division.pmsg


def test_blind_in_a_file_of_all_memory() -> None:
    division = Division(cpus=2, ecc=16)
    zones = filled(division)
    chance = random.Random(5)
    # The signature as kernel code has it, and a header alone, far away.
    before = bytearray(chance.randbytes(1 << 16)) + bytes(20 << 20)
    before[100:104] = b"DBGC"
    before[0x8000:0x800C] = struct.pack("<III", SIG, 4, 4)
    image = bytes(before) + region(zones, division.mem) + bytes(1 << 16)
    found = read_region(image)
    assert [z.kind for z in found.zones] == [kind for kind, _ in zones]
    assert [z.content for z in found.zones] == [read(r).content for _, r in zones]
    assert found.layout.ecc == Ecc()


@pytest.mark.parametrize("number", range(6))
def test_blind_with_a_ruined_header(number: int) -> None:
    """Where there is ECC, each zone's header is known by its parity."""
    division = Division(ecc=16)
    zones = filled(division)
    at = sum(ring.size for _, ring in zones[:number])
    image = region(zones, division.mem)
    found = read_region(flipped(image, [at, at + 1, at + 9]))
    assert_same(found, zones)
    assert [zone.corrected_bytes for zone in found.zones].count(3) == 1


def test_nothing_to_find() -> None:
    for image in (b"", bytes(4096), random.Random(1).randbytes(1 << 16)):
        with pytest.raises(DumpError, match="no zone of ramoops"):
            read_region(image)


@pytest.mark.parametrize(
    ("text", "layout"),
    [
        ("", Layout()),
        ("record_size=0x10000,ecc=1", Layout(65536, ecc=Ecc(16))),
        ("console_size=64k,pmsg_size=1M,ecc=0", Layout(4096, 65536, 4096, 1 << 20)),
        ("ecc=32,cpus=4,pmsg_first=no", Layout(ecc=Ecc(32), cpus=4, pmsg_first=False)),
    ],
)
def test_layouts_as_text(text: str, layout: Layout) -> None:
    assert parse_layout(text) == layout


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "record_size",
        "record_size=",
        "record_size=-1",
        "record_size=1e5",
        "record_size=0x999999999999999999999999",
        "ecc=999",
        "what=1",
        "cpus=2,cpus=3",
        "exact=perhaps",
        "byteorder=middle",
        ",",
    ],
)
def test_layouts_that_cannot_be(text: str) -> None:
    with pytest.raises(DumpError):
        parse_layout(text)


@pytest.mark.parametrize(
    "layout",
    [
        Layout(record_size=1 << 30),
        Layout(ftrace_size=1 << 30),
        Layout(cpus=1000),
        Layout(record_size=1, console_size=0, ftrace_size=0, pmsg_size=0),
        Layout(mem_address=1 << 20),
    ],
)
def test_layouts_that_do_not_fit(layout: Layout) -> None:
    with pytest.raises(DumpError):
        read_region(bytes(1 << 17), layout)


def everything(found: ramoops.Region) -> None:
    """All that is done with a region, and what must hold whatever it has."""
    traces = [zone for zone in found.zones if zone.kind == "ftrace"]
    for zone in found.zones:
        assert len(zone.content) <= zone.buffer_size
        assert zone.corrected_bytes >= 0
        decode_dmesg(zone.content)
        is_logcat(zone.content)
    fmt = guess_format([zone.content for zone in traces], found.version)
    arrays = [decode_ftrace(z.content, fmt, zone=z.number) for z in traces]
    trace = merge_ftrace(arrays, fmt)
    assert len(trace.records) == sum(map(len, arrays))


def ruins(seed: int) -> int:
    """Read 2,500 of them, and return how many."""
    chance = random.Random(seed)
    divisions = [
        Division(0x4000, 0x800, 0x800, 0x1000, 0x400, ecc, cpus, first)
        for ecc, cpus, first in (
            (0, 1, True),
            (0, 2, False),
            (0, 3, True),
            (16, 2, True),
            (16, 1, False),
        )
    ]
    made = [(d, region(filled(d, n), d.mem)) for n, d in enumerate(divisions)]
    for count in range(2_500):
        division, image = made[count % len(made)]
        kind = chance.randrange(4)
        if kind == 0:
            # A header's field, here or there.
            ruin = bytearray(image)
            for _ in range(chance.randrange(1, 4)):
                at = chance.randrange(0, len(ruin) - 4, 4)
                word = chance.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, len(ruin), SIG])
                ruin[at : at + 4] = struct.pack("<I", word)
            image = bytes(ruin)
        elif kind == 1:
            image = flipped(
                image, chance.sample(range(len(image)), chance.randrange(1, 200)), count
            )
        elif kind == 2:
            image = image[: chance.randrange(len(image))]
        else:
            size = chance.randrange(1, 4096)
            at = chance.randrange(len(image) - size)
            image = image[:at] + chance.randbytes(size) + image[at + size :]
        layout = layout_of(division, mem_size=division.mem)
        everything(read_region(image, layout, live=bool(count & 8)))
        if count % 20 < 2:
            try:
                everything(read_region(image))
            except DumpError:
                assert kind == 2
    return count + 1


def test_ten_thousand_ruins() -> None:
    with ProcessPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        assert sum(pool.map(ruins, range(4))) == 10_000


@pytest.mark.parametrize("sig", [SIG, FTRACE_SIG["6.12.107"]])
def test_memory_full_of_headers(sig: int) -> None:
    """What is said of it stays short."""
    other = struct.pack("<IIII", SIG, 4, 4, 7)
    found = read_region((struct.pack("<IIII", sig, 4, 4, 7) + other) * 5000)
    assert len(found.notes) < 5
    assert all(len(note) < 200 for note in found.notes)


@pytest.mark.parametrize("between", [0, 0x1000, 0x3000, 0x300000])
@pytest.mark.parametrize("division", LAYOUTS)
def test_blind_with_an_older_copy(division: Division, between: int) -> None:
    """One region is read, wherever the other one is, and that there is one is said."""
    older, zones = filled(division, 1), filled(division, 2)
    first = region(older, division.mem)
    image = first + bytes(between) + region(zones, division.mem)
    found = read_region(image)
    at = found.layout.mem_address
    assert at in (0, len(first) + between)
    expected = older if at == 0 else zones
    assert [z.kind for z in found.zones] == [kind for kind, _ in expected]
    assert [z.content for z in found.zones] == [read(r).content for _, r in expected]
    assert found.layout.ftrace_size <= division.ftrace
    assert found.layout.pmsg_size == division.pmsg
    (note,) = [note for note in found.notes if "others" in note]
    other = len(first) + between - at
    assert note.startswith(f"this is the region at {at:#x}; ")
    assert note.endswith(f" {other:#x}")
