# SPDX-License-Identifier: LGPL-2.1-or-later
"""`drgn-tools verify`: flipped bits, all over a dump, with and without checksums."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from drgn_tools import checksums
from drgn_tools.codecs import CODECS
from drgn_tools.errors import DumpError
from drgn_tools.extract import extract
from drgn_tools.formats import flattened
from drgn_tools.pages import excluded_classes
from drgn_tools.verify import LISTED, verify

from .command import assert_done, assert_refused, drgn_tools, drgn_tools_forked
from .synthetic import (
    MIB,
    PAGE,
    Load,
    Machine,
    note,
    prstatus,
    read_kdump,
    text_page,
    vmcoreinfo_text,
    write_elf,
    write_kdump,
)

RELEASE = "6.1.0-synthetic"
TEXT = vmcoreinfo_text(
    {
        "OSRELEASE": RELEASE,
        "PAGESIZE": "4096",
        "NUMBER(phys_base)": "16777216",
        "CRASHTIME": "1700000000",
    }
)
NOTES = prstatus(1) + prstatus(2) + note(b"VMCOREINFO", 0, TEXT)
FIRST = MIB // PAGE
COUNT = 50
BITMAPS = 2 * PAGE
DESCRIPTORS = 4 * PAGE


def memory() -> bytes:
    """Pages of text, of zeros, and two of noise."""
    pages = [text_page(seed) for seed in range(COUNT)]
    for index in range(0, COUNT, 5):
        pages[index] = bytes(PAGE)
    noise = np.random.default_rng(0)
    for index in (1, 33):
        pages[index] = noise.integers(0, 256, PAGE, np.uint8).tobytes()
    return b"".join(pages)


def extracted(source: Path, target: Path, codec: str = "zstd", level: int = 1) -> None:
    extract(
        str(source),
        [str(target)],
        excluded=[excluded_classes(level)],
        codec=CODECS[codec],
        codec_level=None,
        jobs=1,
        force=True,
    )
    unseal(target)


def unseal(path: Path) -> None:
    """Take a file's table of checksums away."""
    with path.open("r+b") as file:
        size = path.stat().st_size
        found = checksums.read_trailer(
            lambda length, at: os.pread(file.fileno(), length, at), size
        )
        assert found is not None
        file.truncate(found.offset)


@pytest.fixture(scope="module")
def elf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("elf") / "vmcore"
    # The last pages of memory are not in the file.
    write_elf(path, [Load(MIB, memory(), memsz=(COUNT + 3) * PAGE)], NOTES)
    return path


@pytest.fixture
def dump(elf: Path, tmp_path: Path) -> Path:
    """Without checksums."""
    path = tmp_path / "dump"
    extracted(elf, path)
    return path


def seal(path: Path) -> None:
    """Give a file its table of checksums, one row for each 1000 bytes."""
    data = path.read_bytes()
    rows = [
        checksums.Row(at, len(piece), checksums.crc32(piece))
        for at in range(0, len(data), 1000)
        for piece in [data[at : at + 1000]]
    ]
    random.Random(0).shuffle(rows)
    path.write_bytes(data + checksums.pack_trailer(rows, len(data)))


@pytest.fixture
def sealed(dump: Path) -> Path:
    seal(dump)
    return dump


def is_sound(path: Path) -> bool:
    try:
        return verify(str(path), 1).sound
    except DumpError:
        return False


def unseen(path: Path, bits: Iterable[int]) -> list[int]:
    """Flip bits of a file, one at a time; those that are not found."""
    missed = []
    with path.open("r+b", buffering=0) as file:
        for bit in bits:
            at, mask = bit // 8, 1 << bit % 8
            (byte,) = os.pread(file.fileno(), 1, at)
            os.pwrite(file.fileno(), bytes([byte ^ mask]), at)
            if is_sound(path):
                missed.append(bit)
            os.pwrite(file.fileno(), bytes([byte]), at)
    assert is_sound(path)
    return missed


def some_bits(start: int, end: int, step: int = 1) -> Iterator[int]:
    """One of each *step* bytes."""
    for at in range(start, end, step):
        yield 8 * at + at * 7 % 8


def kinds(path: Path) -> set[str]:
    return set(verify(str(path), 1).counts)


# --- with checksums ---------------------------------------------------------------


def test_sound(sealed: Path) -> None:
    report = verify(str(sealed), 2)
    assert report.sound, list(report.lines())
    assert report == verify(str(sealed), 1)
    assert (report.pages, report.zero_pages) == (COUNT, COUNT // 5)
    assert (report.missing, report.damaged) == (0, 0)
    assert "checksums of its content compared" in report.remarks[0]
    assert list(report.lines())[-1] == f"{sealed}: sound"


def test_any_bit_of_the_frame(sealed: Path) -> None:
    """Headers, notes, bitmaps, descriptors, and what is empty between."""
    bits = [
        *some_bits(0, 464, 2),
        *some_bits(464, PAGE, 97),
        *some_bits(PAGE, PAGE + 104 + len(NOTES), 3),
        *some_bits(PAGE + 104 + len(NOTES), BITMAPS, 97),
        *some_bits(BITMAPS, BITMAPS + 40),
        *some_bits(BITMAPS + 40, BITMAPS + PAGE, 97),
        *some_bits(BITMAPS + PAGE, BITMAPS + PAGE + 40),
        *some_bits(DESCRIPTORS, DESCRIPTORS + 24 * COUNT, 5),
    ]
    assert unseen(sealed, bits) == []


@pytest.mark.parametrize("codec", CODECS)
def test_any_bit_of_the_data(codec: str, elf: Path, tmp_path: Path) -> None:
    path = tmp_path / "dump"
    extracted(elf, path, codec)
    size = path.stat().st_size
    seal(path)
    bits = random.Random(1).sample(range(8 * DESCRIPTORS, 8 * size), 300)
    assert unseen(path, bits) == []


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("parts", [1, 3])
def test_any_bit_of_what_extract_writes(codec: str, parts: int, tmp_path: Path) -> None:
    machine = Machine(ram=((0, 24 * MIB),))
    write_elf(tmp_path / "in", machine.loads(), machine.notes())
    outputs = [tmp_path / str(number) for number in range(parts)]
    extract(
        str(tmp_path / "in"),
        list(map(str, outputs)),
        excluded=[excluded_classes(31)],
        codec=CODECS[codec],
        codec_level=None,
        jobs=3,
    )
    for path in outputs:
        report = verify(str(path), 2)
        assert report.sound
        assert "checksums of its content compared" in report.remarks[0]
        size = path.stat().st_size
        bits = random.Random(3).sample(range(8 * size), 60)
        assert unseen(path, bits) == []


def test_any_bit_of_the_checksums(dump: Path) -> None:
    size = dump.stat().st_size
    seal(dump)
    assert unseen(dump, some_bits(size, dump.stat().st_size - 48, 9)) == []
    end = 8 * dump.stat().st_size
    assert unseen(dump, range(end - 8 * 48, end)) == []


def test_bits_of_an_elf_core(elf: Path, tmp_path: Path) -> None:
    path = tmp_path / "core"
    path.write_bytes(elf.read_bytes())
    seal(path)
    assert verify(str(path), 2).sound
    size = path.stat().st_size
    # The format's own numbers are refused before anything is compared.
    assert unseen(path, some_bits(0, 600)) == []
    assert unseen(path, some_bits(600, size, 997)) == []


def test_what_has_no_checksum(dump: Path) -> None:
    """Rows that leave something out prove nothing of it."""
    data = dump.read_bytes()
    first = read_kdump(dump).places
    start, length, _ = first[FIRST + 2]
    rows = [
        checksums.Row(at, end - at, checksums.crc32(data[at:end]))
        for at, end in ((0, start), (start + length, len(data)))
    ]
    dump.write_bytes(data + checksums.pack_trailer(rows, len(data)))
    report = verify(str(dump), 1)
    assert report.counts == {"checksum": 1}
    assert f"offsets {start:#x} to {start + length - 1:#x}" in report.findings[0].text
    # Bytes of no page need none.
    hole = bytes(10_000)
    rows = [checksums.Row(0, len(data), checksums.crc32(data))]
    dump.write_bytes(data + hole + checksums.pack_trailer(rows, len(data) + len(hole)))
    report = verify(str(dump), 1)
    assert report.sound
    assert "10000 bytes are of no page" in report.remarks


def test_cut_short_with_checksums(sealed: Path) -> None:
    """Whatever is lost at the end, something says so."""
    size = sealed.stat().st_size
    for length in (size - 1, size - 48, size - 49, size - 1000, size - PAGE):
        os.truncate(sealed, length)
        assert not is_sound(sealed), length


# --- without ----------------------------------------------------------------------


class Field(NamedTuple):
    """A place in a dump where a changed bit cannot be told from another value."""

    start: int
    end: int
    mask: int = 0xFF


UTS = 12
NOTES_AT = PAGE + 104
NOT_TOLD = (
    Field(UTS + 65, UTS + 2 * 65),
    Field(UTS + 3 * 65, UTS + 4 * 65),
    Field(UTS + 5 * 65, UTS + 6 * 65),
    # That makedumpfile left out parts of vmemmap; which pages are left out, but
    # for those of zeros; registers; VMCOREINFO's text.
    Field(424, 425, 0x10),
    Field(PAGE + 8, PAGE + 9, 0x1E),
    Field(NOTES_AT + 20, NOTES_AT + 20 + 336),
    Field(NOTES_AT + 356 + 20, NOTES_AT + 356 + 20 + 336),
    Field(NOTES_AT + 712 + 24, NOTES_AT + 712 + 24 + len(TEXT)),
)


def told(bit: int) -> bool:
    at, mask = bit // 8, 1 << bit % 8
    return not any(f.start <= at < f.end and f.mask & mask for f in NOT_TOLD)


def test_bits_of_the_headers(dump: Path) -> None:
    bits = [
        *some_bits(0, UTS + 390, 3),
        *range(8 * (UTS + 390), 8 * 464),
        *some_bits(464, PAGE, 97),
        *range(8 * PAGE, 8 * (PAGE + 104)),
    ]
    assert [bit for bit in unseen(dump, bits) if told(bit)] == []


def test_bits_of_the_notes(dump: Path) -> None:
    bits = some_bits(NOTES_AT, BITMAPS, 3)
    assert [bit for bit in unseen(dump, bits) if told(bit)] == []


def test_bits_of_the_bitmaps(dump: Path) -> None:
    bits = [
        *range(8 * BITMAPS, 8 * (BITMAPS + 45)),
        *some_bits(BITMAPS + 45, BITMAPS + PAGE, 97),
        *range(8 * (BITMAPS + PAGE), 8 * (BITMAPS + PAGE + 45)),
    ]
    # A page that is not dumped may as well not exist, and the other way round.
    dumped = range(FIRST, FIRST + COUNT)
    end = FIRST + COUNT + 3
    either = {8 * BITMAPS + pfn for pfn in range(end) if pfn not in dumped}
    assert set(unseen(dump, bits)) == either


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("codec", CODECS)
def test_bits_of_the_descriptors(
    codec: str, level: int, elf: Path, tmp_path: Path
) -> None:
    path = tmp_path / "dump"
    extracted(elf, path, codec, level)
    bits = random.Random(2).sample(
        range(8 * DESCRIPTORS, 8 * (DESCRIPTORS + 24 * COUNT)), 300
    )
    assert unseen(path, bits) == []


def test_bits_of_zlib_data(elf: Path, tmp_path: Path) -> None:
    """What zlib compresses, and the page of zeros, is proven without checksums."""
    path = tmp_path / "dump"
    extracted(elf, path, "zlib")
    places = read_kdump(path).places.values()
    bits = [
        bit
        for offset, size, flags in places
        if flags or offset == DESCRIPTORS + 24 * COUNT
        for bit in some_bits(offset, offset + size, 37)
    ]
    assert len(bits) > 1000
    before = read_kdump(path).pages
    for bit in unseen(path, bits):
        # Bits behind the end of the deflate stream fill up a byte.
        with path.open("r+b", buffering=0) as file:
            (byte,) = os.pread(file.fileno(), 1, bit // 8)
            os.pwrite(file.fileno(), bytes([byte ^ 1 << bit % 8]), bit // 8)
            assert read_kdump(path).pages == before
            os.pwrite(file.fileno(), bytes([byte]), bit // 8)


@pytest.mark.parametrize("codec", ["lzo", "snappy", "zstd"])
def test_what_cannot_be_told_is_said(codec: str, elf: Path, tmp_path: Path) -> None:
    path = tmp_path / "dump"
    extracted(elf, path, codec)
    (remark,) = verify(str(path), 1).remarks
    assert remark.startswith("without checksums") and "may go unseen" in remark


def test_names_in_memory(tmp_path: Path) -> None:
    """The kernel's own names prove those of the header."""
    machine = Machine()
    write_elf(tmp_path / "in", machine.loads(), machine.notes())
    extracted(tmp_path / "in", tmp_path / "out", level=31)
    bits = [8 * (UTS + 65 * index + 1) for index in range(6)]
    assert unseen(tmp_path / "out", bits) == []


# --- what is wrong, by name -------------------------------------------------------


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def descriptor(pfn: int, form: str, field: int, value: int, path: Path) -> None:
    patch(path, DESCRIPTORS + 24 * (pfn - FIRST) + field, struct.pack(form, value))


@pytest.mark.parametrize(
    ("form", "field", "value", "kind", "text"),
    [
        ("<q", 0, 0, "missing", "not marked incomplete"),
        ("<q", 0, 1 << 40, "missing", "beyond the end of the file, at 0x10000000000"),
        ("<q", 0, -5, "descriptor", "in front of all page data"),
        ("<q", 0, 4096, "descriptor", "in front of all page data, at 0x1000"),
        ("<I", 8, 0, "descriptor", "impossible size, 0"),
        ("<I", 8, 4097, "descriptor", "impossible size, 4097"),
        ("<I", 8, 4096, "descriptor", "no fewer"),
        ("<I", 12, 0x40, "descriptor", "unknown flags, 0x40"),
        ("<I", 12, 0x21, "descriptor", "unknown flags, 0x21"),
        ("<I", 12, 0x1, "descriptor", "otherwise than the header says, flags 0x1"),
        ("<I", 12, 0, "descriptor", "is not compressed, but has"),
        ("<Q", 16, 1, "descriptor", "page_flags 0x1"),
        ("<Q", 16, 1 << 63, "descriptor", "page_flags 0x8000000000000000"),
    ],
)
def test_descriptor(
    form: str, field: int, value: int, kind: str, text: str, dump: Path
) -> None:
    pfn = FIRST + 7
    descriptor(pfn, form, field, value, dump)
    report = verify(str(dump), 1)
    said = [f.text for f in report.findings if f.kind == kind]
    assert len(said) == 1 and text in said[0], list(report.lines())
    assert said[0].startswith(f"page {pfn * PAGE:#x} ")
    lost = text.startswith(("not marked", "beyond"))
    assert (report.missing, report.damaged) == (lost, not lost and field < 16)


def test_data_of_another_page(dump: Path) -> None:
    """Shared data is allowed, but then nothing is left over."""
    places = read_kdump(dump).places
    descriptor(FIRST + 7, "<q", 0, places[FIRST + 8][0], dump)
    descriptor(FIRST + 7, "<I", 8, places[FIRST + 8][1], dump)
    report = verify(str(dump), 1)
    assert report.counts == {"unused": 1}
    assert "1 pages share the data of others" in report.remarks
    descriptor(FIRST + 7, "<q", 0, places[FIRST + 8][0] - 1, dump)
    assert "overlap" in kinds(dump)


def test_room_that_a_killed_worker_left(dump: Path) -> None:
    """More than a page that is of no page is no damage."""
    data = dump.read_bytes()
    dump.write_bytes(data + b"x" * 5000)
    report = verify(str(dump), 1)
    assert report.sound
    assert "5000 bytes are of no page" in report.remarks
    dump.write_bytes(data + b"x")
    assert kinds(dump) == {"unused"}


@pytest.mark.parametrize("codec", CODECS)
def test_incomplete(codec: str, tmp_path: Path) -> None:
    pages = {pfn: text_page(pfn) for pfn in range(16, 40)}
    write_kdump(tmp_path / "dump", pages, NOTES, codec=codec, missing=[40, 41])
    patch(tmp_path / "dump", 12 + 130, RELEASE.encode())
    patch(tmp_path / "dump", PAGE, struct.pack("<q", 16777216))
    report = verify(str(tmp_path / "dump"), 2)
    assert (report.pages, report.missing, report.damaged) == (26, 2, 0)
    assert report.counts == {"missing": 2, "incomplete": 1}
    outcome = drgn_tools("verify", tmp_path / "dump")
    assert outcome.status == 1 and outcome.stderr == ""
    assert outcome.stdout.splitlines()[-1] == (
        f"{tmp_path / 'dump'}: NOT sound: missing (2), incomplete (1)"
    )
    assert "missing: page 0x28000 has no data" in outcome.stdout


@pytest.mark.parametrize("version", range(1, 7))
def test_versions(version: int, tmp_path: Path) -> None:
    pages = {pfn: text_page(pfn) for pfn in range(16, 40)}
    write_kdump(
        tmp_path / "dump",
        {**pages, 50: bytes(PAGE)},
        NOTES,
        version=version,
        excluded=[60],
        bare_vmcoreinfo=TEXT if version == 3 else b"",
    )
    patch(tmp_path / "dump", PAGE, struct.pack("<q", 16777216))
    report = verify(str(tmp_path / "dump"), 1)
    assert report.sound, list(report.lines())
    assert (report.pages, report.missing) == (25, 0)


def test_part_of_a_split_dump(tmp_path: Path) -> None:
    """Descriptors are of the pages from start_pfn to end_pfn only."""
    path = tmp_path / "part"
    pages = {pfn: text_page(pfn) for pfn in range(70, 80)}
    made = write_kdump(path, pages, NOTES, dump_level=0)
    patch(path, PAGE, struct.pack("<qiiQQ", 16777216, 0, 1, 64, 80))
    patch(path, PAGE + 80, struct.pack("<QQ", 64, 80))
    # Another part's pages, in both bitmaps.
    for at in (made.bitmaps, made.bitmaps + made.bitmap_size):
        patch(path, at, b"\xff" * 8)
    report = verify(str(path), 1)
    assert report.sound, list(report.lines())
    assert report.pages == 10
    assert "part from page frame 0x40" in report.format


def test_more_than_is_listed(dump: Path) -> None:
    for pfn in range(FIRST, FIRST + COUNT):
        descriptor(pfn, "<Q", 16, 1, dump)
    report = verify(str(dump), 2)
    lines = list(report.lines())
    assert report.counts == {"descriptor": COUNT}
    assert f"descriptor: and {COUNT - LISTED} more" in lines
    assert sum(line.startswith("descriptor: page") for line in lines) == LISTED


def test_cut_short(dump: Path) -> None:
    size = dump.stat().st_size
    places = read_kdump(dump).places
    for lost in (1, 5000, 20_000):
        os.truncate(dump, size - lost)
        report = verify(str(dump), 1)
        cut = sum(at + length > size - lost for at, length, _ in places.values())
        assert report.missing == cut > 0
    os.truncate(dump, DESCRIPTORS + 24 * 10)
    report = verify(str(dump), 2)
    assert report.missing == COUNT
    os.truncate(dump, BITMAPS)
    assert "cut short" in assert_refused(drgn_tools("verify", dump))


def test_elf(elf: Path, tmp_path: Path) -> None:
    report = verify(str(elf), 2)
    assert report.sound and report.pages == COUNT
    assert "3 pages are not in the file" in report.remarks
    path = tmp_path / "core"
    data = elf.read_bytes()
    path.write_bytes(data[:-PAGE])
    report = verify(str(path), 1)
    assert (report.missing, report.counts) == (1, {"missing": 1})
    # e_flags as makedumpfile has it of a core that is incomplete.
    path.write_bytes(data)
    patch(path, 48, b"\1")
    assert kinds(path) == {"incomplete"}
    # Two segments at one place of the file.
    write_elf(path, [Load(MIB, memory()), Load(8 * MIB, memory())], NOTES)
    patch(path, 64 + 2 * 56 + 8, path.read_bytes()[64 + 56 + 8 :][:8])
    assert kinds(path) == {"overlap"}
    write_elf(path, [Load(MIB, memory())], NOTES[:-8])
    assert kinds(path) == {"notes"}
    # What /proc/kcore has beside registers.
    kcore = note(b"CORE", 3, bytes(136)) + note(b"CORE", 4, bytes(8000))
    write_elf(path, [Load(MIB, memory())], NOTES + kcore)
    assert verify(str(path), 1).sound


def test_flattened_is_told_what_it_is(dump: Path, tmp_path: Path) -> None:
    path = tmp_path / "flat"
    path.write_bytes(flattened.HEADER + flattened.record(0, 1) + b"K" + flattened.END)
    with pytest.raises(DumpError, match="flattened"):
        verify(str(path), 1)


# --- the command ------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 3])
def test_command(jobs: int, sealed: Path) -> None:
    outcome = drgn_tools("verify", "--jobs", jobs, sealed)
    assert_done(outcome)
    assert outcome.stderr == ""
    assert outcome.stdout.splitlines()[-1] == f"{sealed}: sound"
    patch(sealed, sealed.stat().st_size - 2000, b"\xa5\x5a\xff")
    outcome = drgn_tools("verify", "--jobs", jobs, sealed)
    assert outcome.status == 1 and outcome.stderr == ""
    assert "checksum: offsets" in outcome.stdout
    assert f"{sealed}: NOT sound:" in outcome.stdout.splitlines()[-1]


def test_no_dump(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert "No such file" in assert_refused(drgn_tools("verify", path))
    for data in (b"", b"text", b"KDUMP   ", b"\x7fELF"):
        path.write_bytes(data)
        line = assert_refused(drgn_tools_forked("verify", path))
        assert str(path) in line


@pytest.mark.parametrize(
    ("arguments", "why"), [("", "DUMP"), ("--jobs 0 x", "0"), ("x y", "y")]
)
def test_usage(arguments: str, why: str) -> None:
    outcome = drgn_tools_forked("verify", *arguments.split())
    assert why in assert_refused(outcome, 2)


def test_damage_never_ends_in_a_traceback(sealed: Path) -> None:
    """Bytes of the frame, and of the table, at random."""
    data = sealed.read_bytes()
    chance = random.Random(3)
    for _ in range(300):
        broken = bytearray(data)
        for _ in range(chance.choice((1, 3, 30))):
            at = chance.randrange(DESCRIPTORS + 24 * COUNT)
            if chance.random() < 0.2:
                at = len(data) - 1 - at % 200
            broken[at : at + 8] = chance.choice(
                (b"\xff" * 8, bytes(8), chance.randbytes(8), b"\xff" * 7 + b"\x7f")
            )
        sealed.write_bytes(broken[: len(data)])
        assert not is_sound(sealed) or broken == data


# --- the table --------------------------------------------------------------------


def reader(data: bytes) -> checksums.Trailer | None:
    return checksums.read_trailer(lambda size, at: data[at : at + size], len(data))


def test_table() -> None:
    data = os.urandom(5000)
    rows = list(checksums.rows_of(lambda size, at: data[at : at + size], 0, 5000))
    assert rows == [(0, 5000, checksums.crc32(data))]
    found = reader(data + checksums.pack_trailer(rows, len(data)))
    assert found is not None
    assert found.offset == 5000 and found.rows.tolist() == rows
    assert reader(data) is None and reader(b"") is None
    empty = reader(data + checksums.pack_trailer([], len(data)))
    assert empty is not None and not len(empty.rows)
    assert checksums.uncovered(empty).tolist() == [[0, 5000]]
    with pytest.raises(DumpError, match="ends at 0x1388"):
        list(checksums.rows_of(lambda size, at: data[at : at + size], 0, 6000))


def test_table_as_documented() -> None:
    """Byte for byte."""
    import zlib

    row = struct.pack("<QII", 16, 84, 0xDEADBEEF)
    footer = b"DRGN_TOOLS CRC32" + struct.pack(
        "<IIQQI", 1, 0, 100, 100 + 16 + 48, zlib.crc32(row)
    )
    expected = row + footer + struct.pack("<I", zlib.crc32(footer))
    rows = [checksums.Row(16, 84, 0xDEADBEEF)]
    assert checksums.pack_trailer(rows, 100) == expected


@pytest.mark.parametrize(
    "rows", [[(0, 10, 0), (9, 1, 0)], [(95, 6, 0)], [(101, 0, 0)], [(1 << 63, 1, 0)]]
)
def test_rows_that_do_not_fit(rows: list[tuple[int, int, int]]) -> None:
    made = [checksums.Row(*row) for row in rows]
    with pytest.raises(ValueError, match="rows"):
        checksums.pack_trailer(made, 100)


def test_crc_is_zlibs() -> None:
    import zlib

    for size in (0, 1, 4096, 100_000):
        data = os.urandom(size)
        assert checksums.crc32(data) == zlib.crc32(data)
        assert checksums.crc32(data, 77) == zlib.crc32(data, 77)
