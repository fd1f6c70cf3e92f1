# SPDX-License-Identifier: LGPL-2.1-or-later
"""Flattened streams and split dumps, made by hand from the formats' facts."""

from __future__ import annotations

import os
import random
import resource
import struct
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from drgn_tools.errors import DumpError, MissingMemory
from drgn_tools.formats import flattened
from drgn_tools.rearrange import rearrange, reassemble
from drgn_tools.vmcore import Vmcore, open_vmcore
from tests.command import assert_done, assert_refused, drgn_tools
from tests.synthetic import (
    MIB,
    PAGE,
    Machine,
    read_kdump,
    text_page,
    write_elf,
    write_kdump,
)

HEADER = (b"makedumpfile".ljust(16, b"\0") + struct.pack(">qq", 1, 1)).ljust(
    4096, b"\0"
)
END = b"\xff" * 16


def record(offset: int, data: bytes, size: int | None = None) -> bytes:
    return struct.pack(">qq", offset, len(data) if size is None else size) + data


def flat(*pieces: tuple[int, bytes], end: bytes = END) -> bytes:
    return HEADER + b"".join(record(*piece) for piece in pieces) + end


def replay(pieces: list[tuple[int, bytes]]) -> bytes:
    """What the records say, the plainest way."""
    out = bytearray(max(offset + len(data) for offset, data in pieces))
    for offset, data in pieces:
        out[offset : offset + len(data)] = data
    return bytes(out)


def run_rearrange(stream: bytes, target: Path, *, pipe: bool = False) -> None:
    if not pipe:
        source = target.with_suffix(".flat")
        source.write_bytes(stream)
        with source.open("rb") as file:
            rearrange(file.fileno(), str(target), False)
        return
    reader, writer = os.pipe()

    def feed() -> None:
        with os.fdopen(writer, "wb") as file:
            file.write(stream)

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        rearrange(reader, str(target), False)
    finally:
        thread.join()
        os.close(reader)


def index_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        index = flattened.Index(file.fileno())
        parts = []
        at = 0
        while part := index.pread(777, at):
            parts.append(part)
            at += len(part)
        assert at == index.size
        return b"".join(parts)


PIECES = {
    "in order": [(0, b"a" * 10), (10, b"b" * 5)],
    "backwards": [(10, b"b" * 5), (0, b"a" * 10)],
    "hole": [(3, b"abc"), (100, b"d")],
    "again": [(0, b"abcdef"), (0, b"xyzuvw")],
    "inside": [(0, b"abcdefgh"), (2, b"XY")],
    "around": [(2, b"XY"), (0, b"abcdefgh")],
    "edges": [(0, b"abcd"), (3, b"efgh"), (2, b"ij"), (6, b"kl")],
    "large": [(5, bytes(range(256)) * 10000), (1 << 20, b"z" * 3000000)],
}


@pytest.mark.parametrize("name", PIECES)
@pytest.mark.parametrize("pipe", [False, True], ids=["file", "pipe"])
def test_records(name: str, pipe: bool, tmp_path: Path) -> None:
    pieces = PIECES[name]
    target = tmp_path / "dump"
    run_rearrange(flat(*pieces) + b"what a partition has behind", target, pipe=pipe)
    assert target.read_bytes() == replay(pieces)
    assert target.stat().st_mode & 0o777 == 0o600
    source = tmp_path / "flat"
    source.write_bytes(flat(*pieces))
    assert index_bytes(source) == replay(pieces)


def test_records_at_random(tmp_path: Path) -> None:
    source = tmp_path / "flat"
    for seed in range(300):
        dice = random.Random(seed)
        pieces = [
            (dice.randrange(200), dice.randbytes(dice.randrange(1, 80)))
            for _ in range(dice.randrange(1, 30))
        ]
        source.write_bytes(flat(*pieces))
        assert index_bytes(source) == replay(pieces), seed


def test_what_the_package_writes_is_what_the_facts_say() -> None:
    assert flattened.HEADER == HEADER
    assert flattened.END == END
    assert flattened.record(5, 7) == struct.pack(">qq", 5, 7)


IMPOSSIBLE = {
    "empty": (b"", "not a flattened dump"),
    "text": (b"Dear kernel,\n" * 1000, "not a flattened dump"),
    "kdump": (b"KDUMP   " + bytes(5000), "not a flattened dump"),
    "header": (HEADER[:100], "cut short"),
    "type": (HEADER[:16] + struct.pack(">qq", 2, 1) + HEADER[32:] + END, "type 2"),
    "name": (HEADER[:12] + b"2" + HEADER[13:] + END, "unknown"),
    "nothing": (HEADER, "cut short"),
    "size 0": (HEADER + record(0, b"") + END, "damaged"),
    "size -1": (HEADER + record(0, b"", -1) + END, "damaged"),
    "offset -1": (HEADER + record(-1, b"a") + END, "damaged"),
    "half an end": (HEADER + record(-1, b"", 5) + END, "damaged"),
    "huge": (HEADER + record(0, b"a", (1 << 63) - 1) + END, "damaged"),
    "far": (HEADER + record((1 << 63) - 1, b"a") + END, "damaged"),
    "no end": (flat((0, b"a" * 100), end=b""), "cut short"),
    "half a record": (flat((0, b"a" * 100), end=END[:7]), "cut short"),
    "half the data": (HEADER + record(0, b"a" * 100, 5000), "cut short"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_streams(name: str, tmp_path: Path) -> None:
    stream, why = IMPOSSIBLE[name]
    with pytest.raises(DumpError, match=why):
        run_rearrange(stream, tmp_path / "dump")
    assert [path.name for path in tmp_path.iterdir()] == ["dump.flat"]
    source = tmp_path / "dump.flat"
    with source.open("rb") as file, pytest.raises(DumpError, match=why):
        flattened.Index(file.fileno())


def test_mostly_holes(tmp_path: Path) -> None:
    source = tmp_path / "flat"
    source.write_bytes(flat((0, b"KDUMP   " * 1000), (1 << 50, b"z")))
    assert "holes" in assert_refused(drgn_tools("info", source))


def test_target(tmp_path: Path) -> None:
    target = tmp_path / "dump"
    target.write_bytes(b"old")
    stream = flat((0, b"new"))
    with pytest.raises(DumpError, match="exists"):
        run_rearrange(stream, target)
    assert target.read_bytes() == b"old"
    target.write_bytes(stream)
    with target.open("rb") as file:
        with pytest.raises(DumpError, match="input itself"):
            rearrange(file.fileno(), str(target), True)
        assert target.read_bytes() == stream


# --- Dumps in flattened files -----------------------------------------------------


class Made(NamedTuple):
    machine: Machine
    kdump: Path
    elf: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    work = tmp_path_factory.mktemp("made")
    machine = Machine(log=[(1, "Kernel panic - not syncing: synthetic")])
    write_elf(work / "elf", machine.loads(), machine.notes())
    pages = {pfn: machine.page(pfn) for pfn in machine.pfns() if pfn % 7 or pfn > 512}
    write_kdump(work / "kdump", pages, machine.notes(), excluded=range(0, 512, 7))
    return Made(machine, work / "kdump", work / "elf")


def flatten(path: Path, *, shuffle: bool = False, step: int = 64 << 10) -> bytes:
    raw = path.read_bytes()
    pieces = [(at, raw[at : at + step]) for at in range(0, len(raw), step)]
    if shuffle:
        random.Random(1).shuffle(pieces)
    return flat(*pieces)


def pages_of(vmcore: Vmcore) -> dict[int, bytes]:
    pfns = np.flatnonzero(vmcore.present(0, vmcore.max_pfn))
    return {int(pfn): vmcore.read(int(pfn) * PAGE, PAGE) for pfn in pfns}


@pytest.mark.parametrize("kind", ["kdump", "elf"])
@pytest.mark.parametrize("shuffle", [False, True], ids=["in order", "shuffled"])
def test_read_directly(kind: str, shuffle: bool, made: Made, tmp_path: Path) -> None:
    plain: Path = getattr(made, kind)
    source = tmp_path / "flat"
    source.write_bytes(flatten(plain, shuffle=shuffle))
    with open_vmcore(str(plain)) as a, open_vmcore(str(source)) as b:
        assert pages_of(a) == pages_of(b)
        assert a.size == b.size
        assert a.notes == b.notes
    outputs = []
    for path in (plain, source):
        out = tmp_path / f"{path.name}.out"
        assert_done(drgn_tools("extract", "--jobs", "1", path, out))
        outputs.append(out.read_bytes())
    assert outputs[0] == outputs[1]
    done = drgn_tools("info", source)
    assert_done(done)
    assert "not syncing: synthetic" in done.stdout


def test_read_directly_cut(made: Made, tmp_path: Path) -> None:
    source = tmp_path / "flat"
    source.write_bytes(flatten(made.kdump)[:-17])
    said = assert_refused(drgn_tools("extract", source, tmp_path / "out"))
    assert "cut short" in said and "-R" in said


def kdump_pieces(path: Path) -> list[tuple[int, bytes]]:
    """As makedumpfile sends it: headers, bitmaps, then descriptors behind data."""
    raw = path.read_bytes()
    (sub, blocks) = struct.unpack_from("<ii", raw, 432)
    bitmaps = (1 + sub) * PAGE
    descriptors = bitmaps + blocks * PAGE
    data = min(place for place, _, _ in read_kdump(path).places.values())
    ends = [bitmaps, bitmaps + (descriptors - bitmaps) // 2, descriptors]
    head = list(zip([0, *ends], ends))
    both = []
    for start, end in ((data, len(raw)), (descriptors, data)):
        step = -(-(end - start) // 40)
        both.append([(at, min(end, at + step)) for at in range(start, end, step)])
    spans = head + [span for pair in zip(*both) for span in pair]
    return [(start, raw[start:end]) for start, end in spans]


@pytest.mark.parametrize("part", [0.2, 0.5, 0.77, 0.9999])
def test_cut_kdump(part: float, made: Made, tmp_path: Path) -> None:
    """Every page that came is there; none is that did not, or not whole."""
    whole = read_kdump(made.kdump)
    pieces = kdump_pieces(made.kdump)
    assert replay(pieces) == made.kdump.read_bytes()
    stream = flat(*pieces)
    stream = stream[: int(len(stream) * part)]
    target = tmp_path / "dump"
    with pytest.raises(DumpError, match=r"is incomplete.*pages are missing") as caught:
        run_rearrange(stream, target, pipe=True)
    assert "\n" not in str(caught.value)
    cut = read_kdump(target)
    assert cut.status & 8
    assert cut.places.keys() == whole.places.keys()
    assert cut.pages.items() <= whole.pages.items()
    # The most that can be expected: both data and descriptor are in the stream.
    came = bytearray(len(made.kdump.read_bytes()))
    at = len(HEADER)
    for offset, data in pieces:
        at += 16
        size = max(0, min(len(data), len(stream) - at))
        came[offset : offset + size] = b"\1" * size
        at += len(data)
    expected = {
        pfn
        for number, (pfn, (place, length, _)) in enumerate(sorted(whole.places.items()))
        if all(came[descriptor_at(made.kdump, number) :][:24])
        and all(came[place : place + length])
    }
    assert set(cut.pages) == expected
    assert 0 < len(expected) < len(whole.pages)
    with open_vmcore(str(target)) as vmcore:
        assert set(pages_of(vmcore)) == expected


def descriptor_at(path: Path, number: int) -> int:
    sub, blocks = struct.unpack_from("<ii", path.read_bytes()[:464], 432)
    return int((1 + sub + blocks) * PAGE + 24 * number)


def test_disk_full(made: Made, tmp_path: Path) -> None:
    """What fits of a whole stream is kept, too."""
    stream = flat(*kdump_pieces(made.kdump))
    target = tmp_path / "dump"
    source = tmp_path / "flat"
    source.write_bytes(stream)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(stream) // 2, before[1]))
    try:
        why = r"incomplete, .* missing: cannot write"
        with source.open("rb") as file, pytest.raises(DumpError, match=why):
            rearrange(file.fileno(), str(target), False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    whole, cut = read_kdump(made.kdump), read_kdump(target)
    assert 100 < len(cut.pages) < len(whole.pages)
    assert cut.pages.items() <= whole.pages.items()


def test_cut_kdump_bitmap_out_of_order(made: Made, tmp_path: Path) -> None:
    """Without the start of the bitmap nobody knows whose descriptor is whose."""
    head, first, second, *rest = kdump_pieces(made.kdump)
    half = len(second[1]) // 2
    later = (second[0] + 16, second[1][16:half])
    earlier = (second[0], second[1][:16])
    target = tmp_path / "dump"
    with pytest.raises(DumpError, match="incomplete"):
        run_rearrange(flat(head, first, later, *rest, end=b""), target)
    assert read_kdump(target).pages == {}
    os.unlink(target)
    with pytest.raises(DumpError, match="incomplete, 0 of"):
        stream = flat(head, first, later, earlier, *rest, end=b"")
        run_rearrange(stream, target)
    whole = read_kdump(made.kdump)
    assert read_kdump(target).pages == whole.pages


def test_cut_before_the_headers_end(made: Made, tmp_path: Path) -> None:
    for pieces in (kdump_pieces(made.kdump)[1:], [(0, made.kdump.read_bytes()[:5000])]):
        with pytest.raises(DumpError, match="nothing of it can be used"):
            run_rearrange(flat(*pieces, end=b""), tmp_path / "dump")
        assert [path.name for path in tmp_path.iterdir()] == ["dump.flat"]


@pytest.mark.parametrize("part", [0.2, 0.5, 0.9])
def test_cut_elf(part: float, made: Made, tmp_path: Path) -> None:
    stream = flatten(made.elf)
    target = tmp_path / "dump"
    with pytest.raises(DumpError, match=r"is incomplete.*MiB are missing"):
        run_rearrange(stream[: int(len(stream) * part)], target)
    assert struct.unpack_from("<I", target.read_bytes(), 48)[0] & 1
    with open_vmcore(str(target)) as cut, open_vmcore(str(made.elf)) as whole:
        assert cut.lost_bytes
        assert 0 < len(pages_of(cut)) < len(pages_of(whole))
        assert pages_of(cut).items() <= pages_of(whole).items()


def test_cut_elf_with_impossible_headers(made: Made, tmp_path: Path) -> None:
    raw = bytearray(made.elf.read_bytes()[:MIB])
    struct.pack_into("<Q", raw, 32, (1 << 64) - 1)  # e_phoff
    with pytest.raises(DumpError, match="impossible offset"):
        run_rearrange(flat((0, bytes(raw)), end=b""), tmp_path / "dump")
    assert not (tmp_path / "dump").exists()


def test_cut_elf_with_a_hole(made: Made, tmp_path: Path) -> None:
    """What came behind a hole is cut off too: a core cannot say otherwise."""
    raw = made.elf.read_bytes()
    pieces = [(0, raw[: 3 * MIB]), (4 * MIB, raw[4 * MIB :])]
    target = tmp_path / "dump"
    with pytest.raises(DumpError, match="is incomplete"):
        run_rearrange(flat(*pieces, end=b""), target)
    assert target.stat().st_size == 3 * MIB
    assert target.read_bytes()[52:] == raw[52 : 3 * MIB]


# --- Split dumps ------------------------------------------------------------------


def split(
    path: Path, folder: Path, bounds: list[int], *, zeros_behind_own: bool = False
) -> list[Path]:
    """
    The parts that makedumpfile would make of a dump.

    :param zeros_behind_own: the shared page of zeros is right behind the part's
        descriptors, not where it would be in the whole.
    """
    raw = path.read_bytes()
    whole = read_kdump(path)
    dumped = sorted(whole.places)
    descriptors = descriptor_at(path, 0)
    paths = []
    for number, (start, end) in enumerate(zip(bounds, bounds[1:])):
        own = [pfn for pfn in dumped if start <= pfn < end]
        head = bytearray(raw[:descriptors])
        struct.pack_into("<i", head, PAGE + 12, 1)
        struct.pack_into("<QQ", head, PAGE + 16, start, end)
        struct.pack_into("<QQ", head, PAGE + 80, start, end)
        erased = b"erase something %d size 8\n" % number
        at = descriptors + 24 * len(own if zeros_behind_own else dumped)
        zero_at = at
        data = bytearray(PAGE)
        rows = bytearray()
        for pfn in own:
            place = descriptor_at(path, dumped.index(pfn))
            offset, size, flags, _ = struct.unpack_from("<qIIQ", raw, place)
            page = raw[offset : offset + size]
            if not any(page):
                offset = zero_at
            else:
                offset = at + len(data)
                data += page
            rows += struct.pack("<qIIQ", offset, size, flags, 0)
        struct.pack_into("<qQ", head, PAGE + 64, at + len(data), len(erased))
        part = folder / f"part{number}"
        part.write_bytes(head + rows.ljust(at - descriptors, b"\0") + data + erased)
        paths.append(part)
    return paths


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dump of 300 page frames with a little of everything."""
    path = tmp_path_factory.mktemp("small") / "kdump"
    pages = {pfn: text_page(pfn) for pfn in range(300) if pfn % 5}
    pages.update({pfn: bytes(PAGE) for pfn in range(1, 300, 9)})
    pages.update({pfn: os.urandom(PAGE) for pfn in range(2, 300, 50)})
    excluded = [pfn for pfn in range(300) if pfn not in pages]
    write_kdump(path, pages, Machine().notes(), excluded=excluded)
    return path


BOUNDS = [0, 64, 101, 101, 300]


@pytest.mark.parametrize("behind", [False, True], ids=["whole", "own"])
def test_reassemble(behind: bool, small: Path, tmp_path: Path) -> None:
    parts = split(small, tmp_path, BOUNDS, zeros_behind_own=behind)
    target = tmp_path / "dump"
    reassemble([str(parts[i]) for i in (2, 0, 3, 1)], str(target), False)
    raw = target.read_bytes()
    offset, size = struct.unpack_from("<qQ", raw, PAGE + 64)
    assert raw[offset : offset + size] == b"".join(
        b"erase something %d size 8\n" % number for number in range(4)
    )
    # But for that, it is the dump that was split.
    expected = bytearray(small.read_bytes())
    struct.pack_into("<qQ", expected, PAGE + 64, offset, size)
    assert raw[:offset] == bytes(expected)


def change(path: Path, offset: int, form: str, value: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(struct.pack(form, value))


def test_reassemble_incomplete(small: Path, tmp_path: Path) -> None:
    """What a part misses is missing, not zero; so is what cannot be read."""
    parts = split(small, tmp_path, BOUNDS)
    change(parts[1], 424, "<I", 1 | 8)
    change(parts[1], descriptor_at(small, 0), "<q", 0)
    whole = read_kdump(small)
    target = tmp_path / "dump"
    reassemble([str(part) for part in parts], str(target), False)
    joined = read_kdump(target)
    missing = min(pfn for pfn in whole.pages if pfn >= 64)
    assert joined.status & 8
    assert whole.pages.keys() - joined.pages.keys() == {missing}
    assert joined.pages.items() <= whole.pages.items()

    change(parts[3], descriptor_at(small, 5), "<q", 1 << 40)
    with pytest.raises(DumpError, match="incomplete: 1 pages could not be read"):
        reassemble([str(part) for part in parts], str(target), True)
    joined = read_kdump(target)
    assert joined.status & 8
    assert len(whole.pages.keys() - joined.pages.keys()) == 2
    assert joined.pages.items() <= whole.pages.items()


def test_no_set(small: Path, tmp_path: Path) -> None:
    paths = [str(part) for part in split(small, tmp_path, BOUNDS)]
    before = sorted(tmp_path.iterdir())

    def refused(sources: list[str], why: str) -> None:
        with pytest.raises(DumpError, match=why):
            reassemble(sources, str(tmp_path / "dump"), False)
        assert sorted(tmp_path.iterdir()) == before

    refused([], "no part")
    refused(paths[1:], "no page frames 0 to 64")
    refused([paths[0], *paths[2:]], "no page frames 64 to 101")
    refused(paths[:-1], "no page frames 101 to 300")
    refused([*paths, paths[0]], "in another part")
    refused([str(small), *paths], "not one part")
    refused(["/nowhere", *paths], "No such file")
    change(Path(paths[1]), 12, "<Q", int.from_bytes(b"Another\0", "little"))
    refused(paths, "not of one dump")
    change(Path(paths[1]), PAGE + 88, "<Q", 1 << 40)
    refused(paths, "no such part")
    with pytest.raises(DumpError, match="input itself"):
        reassemble(paths, paths[2], True)


def test_one_part(small: Path, tmp_path: Path) -> None:
    whole = read_kdump(small)
    for part, start, end in zip(split(small, tmp_path, BOUNDS), BOUNDS, BOUNDS[1:]):
        own = {pfn: page for pfn, page in whole.pages.items() if start <= pfn < end}
        with open_vmcore(str(part), part=True) as vmcore:
            assert vmcore.part == (start, end)
            assert pages_of(vmcore) == own
            assert vmcore.dumped_pages == len(own)
            outside = next(pfn for pfn in whole.pages if pfn not in own)
            with pytest.raises(MissingMemory, match="another part"):
                vmcore.read(outside * PAGE, PAGE)
        said = assert_refused(drgn_tools("extract", part, tmp_path / "out"))
        assert "--reassemble" in said
        done = drgn_tools("info", part)
        assert_done(done)
        assert f"page frames {start} to {end} of a split dump" in done.stdout
