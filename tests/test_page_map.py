# SPDX-License-Identifier: LGPL-2.1-or-later
"""The page map: counts, runs, zones, and the pictures of it."""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import pytest

from drgn_tools.export import page_image
from drgn_tools.page_map import (
    FOREIGN,
    HOLE,
    LEFT_OUT,
    RESERVED,
    Grid,
    PageMap,
    Total,
    page_runs,
    read_page_map,
)
from drgn_tools.pages import PageClass
from drgn_tools.vmcore import Run, open_vmcore
from tests.command import assert_done, assert_refused, drgn_tools, drgn_tools_forked
from tests.picture import Picture
from tests.synthetic import (
    MIB,
    PAGE,
    Load,
    Machine,
    StructPages,
    populate,
    write_elf,
)

_CELL = 1 << 15


class Bare(Machine):
    """Whose pages hold nothing: only what they are counts here."""

    def fill(self) -> None:
        pass


class Made(NamedTuple):
    """A dump, and what its page frames must be found to be."""

    path: Path
    machine: Machine
    kinds: npt.NDArray[np.uint8]
    """HOLE where there is nothing."""


def make(path: Path, machine: Machine, more: Sequence[Load] = ()) -> Made:
    """Save a machine; *more* is memory that it has no struct pages for."""
    loads = [*machine.loads(), *more]
    write_elf(path, loads, machine.notes())
    end = max(load.paddr + len(load.data) for load in loads) // PAGE
    kinds = np.full(-(-end // _CELL) * _CELL, HOLE, np.uint8)
    section = 1 << machine.section_bits - 12
    for pages in machine.pages:
        first = pages.pfn // section * section
        kinds[first : -(-(pages.pfn + len(pages.expected)) // section) * section] = (
            RESERVED
        )
    for pages in machine.pages:
        kinds[pages.pfn : pages.pfn + len(pages.expected)] = pages.expected
    for load in more:
        kinds[load.paddr // PAGE : (load.paddr + len(load.data)) // PAGE] = FOREIGN
    return Made(path, machine, kinds)


def page_map_of(path: Path, jobs: int = 0) -> PageMap:
    with open_vmcore(str(path)) as vmcore:
        return read_page_map(vmcore, jobs)


def longest_runs(kinds: npt.NDArray[np.uint8]) -> dict[int, Run]:
    """The longest run of each kind, one page frame after the other."""
    longest: dict[int, Run] = {}
    pfn = 0
    for kind, pages in itertools.groupby(kinds.tolist()):
        end = pfn + len(list(pages))
        best = longest.setdefault(kind, Run(pfn, end))
        if end - pfn > best.end_pfn - best.pfn:
            longest[kind] = Run(pfn, end)
        pfn = end
    return longest


def check(page_map: PageMap, kinds: npt.NDArray[np.uint8]) -> None:
    """Totals and longest runs are those of *kinds*."""
    found = {t.kind: (t.pages, t.longest) for t in page_map.classes + page_map.beside}
    expected = {
        kind: (int((kinds == kind).sum()), longest)
        for kind, longest in longest_runs(kinds).items()
        if kind != HOLE
    }
    assert found == expected


def shuffled(pages: StructPages, start: int, end: int, seed: int) -> None:
    """Small runs of several classes."""
    random = np.random.default_rng(seed)
    while start < end:
        kind, length = int(random.integers(4)), int(random.integers(1, 40))
        for pfn in range(start, min(start + length, end)):
            (pages.anon, pages.cache, pages.free, pages.slab)[kind](pfn)
        start += length


# Sections smaller and larger than what is classified at a time.
@pytest.fixture(scope="module", params=[24, 30], ids=["16M sections", "1G sections"])
def mixed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Made:
    """All classes, several pieces of memory, and memory that is not the kernel's."""
    machine = Bare(
        ram=[(0, 32 * MIB), (40 * MIB, 24 * MIB), (512 * MIB, 3 * MIB)],
        section_bits=request.param,
    )
    shuffled(machine.pages[0], 4096, 8192, 1)
    populate(machine.pages[1], 11264)
    path = tmp_path_factory.mktemp("mixed") / "dump"
    return make(path, machine, [Load(0xFFFC0000, bytes(64 * PAGE))])


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Runs over the edges of what is classified at a time."""
    machine = Bare(ram=[(0, 300 * MIB)], section_bits=27)
    pages = machine.pages[0]
    shuffled(pages, 4096, _CELL - 4096, 2)
    shuffled(pages, 2 * _CELL + 8192, len(pages.expected), 3)
    for pfn in range(_CELL - 4096, 2 * _CELL + 4096, 1024):
        pages.free(pfn, 10)
    for pfn in range(2 * _CELL + 4096, 2 * _CELL + 8192):
        pages.cache(pfn)
    return make(tmp_path_factory.mktemp("wide") / "dump", machine)


# --- what is found ----------------------------------------------------------------


@pytest.mark.parametrize("jobs", [0, 1, 3])
def test_totals_and_longest_runs(mixed: Made, wide: Made, jobs: int) -> None:
    for made in (mixed, wide):
        page_map = page_map_of(made.path, jobs)
        check(page_map, made.kinds)
        assert page_map.pages == int((made.kinds < RESERVED).sum())
        assert not page_map.filtered
        assert not page_map.warnings
    free = next(t for t in page_map.classes if t.kind == PageClass.FREE)
    assert free.longest.pfn < _CELL < 2 * _CELL < free.longest.end_pfn


def test_runs_are_all_of_memory(mixed: Made, wide: Made) -> None:
    for made in (mixed, wide):
        with open_vmcore(str(made.path)) as vmcore:
            runs = list(page_runs(vmcore))
        found = np.full(len(made.kinds), 255, np.uint8)
        for run in runs:
            found[run.pfn : run.pfn + run.pages] = run.page_class
        expected = made.kinds.copy()
        expected[expected == FOREIGN] = PageClass.UNKNOWN
        expected[(expected == RESERVED) | (expected == HOLE)] = 255
        assert (found == expected).all()
        for run, following in zip(runs, runs[1:]):
            joined = run.pfn + run.pages == following.pfn
            assert not joined or run.page_class != following.page_class


def test_squares_are_what_most_of_their_pages_are(wide: Made) -> None:
    machine = wide.machine
    # More memory than there are squares: the same again and again, far away.
    kinds, many = wide.kinds[:_CELL], 40
    grid = page_map_of(wide.path).grid
    assert grid.square_pfns == 1
    assert (grid.tiles[: len(wide.kinds) // _CELL].reshape(-1) == wide.kinds).all()
    loads = machine.loads()
    path = wide.path.with_name("far")
    far = [Load((n << 31) + (1 << 34), bytes(PAGE)) for n in range(many)]
    write_elf(path, [*loads, *far], machine.notes())
    grid = page_map_of(path).grid
    assert grid.square_pfns == 4
    squares = kinds.reshape(-1, 4)
    for square, pages in zip(grid.tiles[0].tolist(), squares.tolist()):
        assert pages.count(square) == max(map(pages.count, pages))
    # A page of the 32768 in each of the others.
    assert (np.count_nonzero(grid.tiles[-many:] == FOREIGN, axis=1) == 1).all()
    assert (
        np.count_nonzero(grid.tiles[-many:] == HOLE, axis=1) == _CELL // 4 - 1
    ).all()


def test_poisoned_pages_are_seen_among_others(tmp_path: Path) -> None:
    machine = Bare(ram=[(0, 32 * MIB)])
    for pfn in range(4096, 8192):
        machine.pages[0].anon(pfn)
    machine.pages[0].hwpoison(5003)
    far = [Load((n << 31) + (1 << 34), bytes(PAGE)) for n in range(40)]
    made = make(tmp_path / "dump", machine, far)
    grid = page_map_of(made.path).grid
    assert grid.square_pfns == 2
    assert grid.tiles[0][5003 // 2] == PageClass.HWPOISON
    assert (grid.tiles[0] == PageClass.HWPOISON).sum() == 1
    assert_done(drgn_tools("extract", made.path, tmp_path / "filtered"))
    grid = page_map_of(tmp_path / "filtered").grid
    assert grid.tiles[0][5003 // grid.square_pfns] == PageClass.HWPOISON
    assert grid.tiles[0][5100 // grid.square_pfns] == PageClass.ANON | LEFT_OUT


def test_filtered_dumps_tell_class_and_presence(mixed: Made, tmp_path: Path) -> None:
    filtered = tmp_path / "filtered"
    assert_done(drgn_tools("extract", "-d", "16", mixed.path, filtered))
    page_map = page_map_of(filtered)
    out = {PageClass.FREE, PageClass.UNACCEPTED, PageClass.OFFLINE, PageClass.HWPOISON}
    # What lies behind the last struct page is not taken along.
    kinds = np.where(mixed.kinds == FOREIGN, HOLE, mixed.kinds)
    check(page_map, kinds)
    assert page_map.filtered
    for total in page_map.classes:
        assert total.dumped == (0 if total.kind in out else total.pages), total.label
    marked = page_map.grid.tiles.reshape(-1)
    numbers = page_map.grid.numbers
    for number, tile in zip(numbers.tolist(), page_map.grid.tiles):
        expected = kinds[number * _CELL : (number + 1) * _CELL]
        assert (tile & ~np.uint8(LEFT_OUT) == expected).all()
    pale = {int(s) & ~LEFT_OUT for s in np.unique(marked) if s & LEFT_OUT}
    assert pale == {int(kind) for kind in out - {PageClass.HWPOISON}}


def test_missing_struct_pages_are_unknown(tmp_path: Path) -> None:
    machine = Bare(ram=[(0, 32 * MIB)], mapping="4K")
    machine.unmap(machine.vmemmap + 64 * 6400)
    made = make(tmp_path / "dump", machine)
    page_map = page_map_of(made.path)
    unknown = next(t for t in page_map.classes if t.kind == PageClass.UNKNOWN)
    assert unknown.longest.pfn <= 6400 < unknown.longest.end_pfn
    assert page_map.warnings == (
        f"struct pages of {unknown.pages} page frames cannot be read",
    )
    assert sum(t.pages for t in page_map.classes) == 8192


def test_a_cut_dump_still_tells_classes(tmp_path: Path) -> None:
    machine = Bare(ram=[(0, 64 * MIB)])
    for pfn in range(12288, 16384):
        machine.pages[0].anon(pfn)
    made = make(tmp_path / "dump", machine)
    cut = tmp_path / "cut"
    cut.write_bytes(made.path.read_bytes()[: -8 * MIB])
    page_map = page_map_of(cut)
    check(page_map, made.kinds)
    lost = {t.kind: t.pages - t.dumped for t in page_map.classes}
    assert lost == {PageClass.KERNEL: 0, PageClass.ANON: 2048}


def test_more_struct_pages_than_memory_can_be(tmp_path: Path) -> None:
    """All sections up to a far one are there, a table says: not all are counted."""
    machine = Bare(ram=[(0, 32 * MIB)], section_bits=27)
    roots = machine.mem_section - machine.page_offset
    first = machine.read(roots, 8)
    machine.write(roots, first * 512)
    (root,) = struct.unpack("<Q", first)
    entry = machine.read(root - machine.page_offset, 16)
    machine.write(root - machine.page_offset, entry * 256)
    far = Load((1 << 44) - PAGE, bytes(PAGE))
    write_elf(tmp_path / "dump", [*machine.loads(), far], machine.notes())
    page_map = page_map_of(tmp_path / "dump")
    # 1 TiB of them, and the page far away.
    cells = [*range((1 << 40 - 27) + 1), (1 << 44 - 27) - 1]
    assert page_map.grid.numbers.tolist() == cells
    reserved = next(total for total in page_map.beside if total.kind == RESERVED)
    assert reserved.pages == len(cells) * _CELL - 8192 - 1


# --- zones ------------------------------------------------------------------------

_SHIFT = 64 - 10 - 3
_ZONES = ("DMA", "DMA32", "Normal", "Movable", "Device")
_ZONE_SIZE, _SPANNED, _FREE_AREA, _AREA_SIZE = 1536, 144, 256, 88
_PGDAT_SIZE = 5 * _ZONE_SIZE + 64
ZONE_KEYS = {
    "SIZE(pglist_data)": str(_PGDAT_SIZE),
    "SIZE(zone)": str(_ZONE_SIZE),
    "SIZE(free_area)": str(_AREA_SIZE),
    "OFFSET(pglist_data.node_zones)": "0",
    "OFFSET(pglist_data.nr_zones)": str(5 * _ZONE_SIZE),
    "OFFSET(pglist_data.node_start_pfn)": str(5 * _ZONE_SIZE + 8),
    "OFFSET(pglist_data.node_spanned_pages)": str(5 * _ZONE_SIZE + 24),
    "OFFSET(pglist_data.node_id)": str(5 * _ZONE_SIZE + 32),
    "OFFSET(zone.free_area)": str(_FREE_AREA),
    "OFFSET(zone.spanned_pages)": str(_SPANNED),
    "LENGTH(node_data)": "1024",
}


class Node(NamedTuple):
    """A node to be: (start, end) of its zones, in page frames, by their number."""

    number: int
    zones: Mapping[int, tuple[int, int]]


def add_nodes(machine: Machine, nodes: Sequence[Node], name_word: int = 2) -> list[int]:
    """
    Give a machine zones; returns where in memory each node's description is.

    :param name_word: words between present_pages and name.
    """
    machine.keys.update(ZONE_KEYS)
    names = machine.alloc(PAGE)
    table = bytearray(8 * 1024)
    places = []
    for number, name in enumerate(_ZONES):
        machine.write(names + 16 * number, name.encode() + b"\0")
    for node in nodes:
        raw = bytearray(_PGDAT_SIZE)
        starts = [start for start, _ in node.zones.values()]
        ends = [end for _, end in node.zones.values()]
        start, end = min(starts), max(ends)
        struct.pack_into(
            "<QQQI", raw, 5 * _ZONE_SIZE + 8, start, 0, end - start, node.number
        )
        for number in range(5):
            at = number * _ZONE_SIZE
            first, last = node.zones.get(number, (0, 0))
            words = [first, (last - first) // 2, last - first, last - first]
            words += [0] * name_word
            # In the kernel's image.
            words.append(machine.text + names + 16 * number - machine.image)
            struct.pack_into(f"<{len(words)}Q", raw, at + _SPANNED - 16, *words)
            for order in range(11):
                place = at + _FREE_AREA + (order + 1) * _AREA_SIZE - 8
                struct.pack_into("<Q", raw, place, 100 * number + order)
        paddr = machine.alloc(len(raw))
        machine.write(paddr, raw)
        struct.pack_into("<Q", table, 8 * node.number, machine.page_offset + paddr)
        places.append(paddr)
    at = machine.alloc(len(table))
    machine.write(at, table)
    machine.keys["SYMBOL(node_data)"] = f"{machine.page_offset + at:x}"
    return places


def own(machine: Machine, start: int, end: int, node: int, zone: int) -> None:
    """Say in page.flags whose page frames these are."""
    code = np.uint64((node << 3 | zone) << _SHIFT)
    for pages in machine.pages:
        flags = pages.words["flags"][
            max(0, start - pages.pfn) : max(0, end - pages.pfn)
        ]
        flags &= np.uint64((1 << _SHIFT) - 1)
        flags |= code


def two_nodes(name_word: int = 2) -> tuple[Machine, list[int]]:
    """Node 1 lies within node 0."""
    machine = Bare(ram=[(0, 64 * MIB)])
    pages = machine.pages[0]
    for pfn in range(6144, 7168):
        pages.anon(pfn)
    for pfn in range(8192, 9216, 16):
        pages.free(pfn, 4)
    nodes = [Node(0, {0: (1, 4096), 2: (4096, 16384)}), Node(1, {2: (8192, 12288)})]
    places = add_nodes(machine, nodes, name_word)
    own(machine, 0, 4096, 0, 0)
    own(machine, 4096, 16384, 0, 2)
    own(machine, 8192, 12288, 1, 2)
    return machine, places


@pytest.mark.parametrize("name_word", range(4))
def test_zones_and_nodes(tmp_path: Path, name_word: int) -> None:
    machine, _ = two_nodes(name_word)
    made = make(tmp_path / "dump", machine)
    page_map = page_map_of(made.path)
    assert page_map.why_no_zones == ""
    assert page_map.zoneless == 0
    told = {(z.zone.node, z.zone.name): z for z in page_map.zones}
    places = {(0, "DMA"): [(0, 4096)], (1, "Normal"): [(8192, 12288)]}
    places[0, "Normal"] = [(4096, 8192), (12288, 16384)]
    assert told.keys() == places.keys()
    for name, parts in places.items():
        kinds = np.concatenate([made.kinds[start:end] for start, end in parts])
        counts = np.bincount(kinds, minlength=len(PageClass))
        assert told[name].pages == tuple(counts.tolist())
    zone = told[1, "Normal"].zone
    assert zone[2:6] == (8192, 4096, 4096, 2048)
    assert zone.free_blocks == tuple(range(200, 211))


def test_damaged_flags_are_of_no_zone(tmp_path: Path) -> None:
    machine, _ = two_nodes()
    own(machine, 5000, 5003, 0, 4)
    machine.pages[0].words["flags"][5100] = (1 << 64) - 1
    machine.pages[0].expect(5100, 1, PageClass.HWPOISON)
    page_map = page_map_of(make(tmp_path / "dump", machine).path)
    assert page_map.zoneless == 4
    assert sum(sum(zone.pages) for zone in page_map.zones) == 16384 - 4


def _no_names(machine: Machine, places: list[int]) -> None:
    for place in places:
        machine.write(place + _SPANNED + 16, bytes(64))


def _beyond_its_node(machine: Machine, places: list[int]) -> None:
    machine.write(places[1] + 2 * _ZONE_SIZE + _SPANNED - 16, struct.pack("<Q", 4096))


def _endless(machine: Machine, places: list[int]) -> None:
    machine.write(places[1] + 2 * _ZONE_SIZE + _SPANNED, b"\xff" * 8)


def _other_flags(machine: Machine, places: list[int]) -> None:
    machine.pages[0].words["flags"] >>= np.uint64(8)


def _no_node_data(machine: Machine, places: list[int]) -> None:
    del machine.keys["SYMBOL(node_data)"]


def _wild_node(machine: Machine, places: list[int]) -> None:
    at = int(machine.keys["SYMBOL(node_data)"], 16) - machine.page_offset
    machine.write(at + 16, b"\xff" * 8)


def _numbered_wildly(machine: Machine, places: list[int]) -> None:
    machine.write(places[1] + 5 * _ZONE_SIZE + 32, b"\xff" * 4)


def _too_many_nodes(machine: Machine, places: list[int]) -> None:
    machine.keys["LENGTH(node_data)"] = str(1 << 40)


def _zones_too_small(machine: Machine, places: list[int]) -> None:
    machine.keys["SIZE(zone)"] = "128"


@pytest.mark.parametrize(
    "damage",
    [
        _no_names,
        _beyond_its_node,
        _endless,
        _other_flags,
        _no_node_data,
        _wild_node,
        _numbered_wildly,
        _too_many_nodes,
        _zones_too_small,
    ],
)
def test_zones_that_are_not_understood_are_told_by_address(
    tmp_path: Path, damage: Any
) -> None:
    machine, places = two_nodes()
    damage(machine, places)
    page_map = page_map_of(make(tmp_path / "dump", machine).path)
    assert page_map.why_no_zones
    assert page_map.zoneless == 0
    zones = {(z.zone.node, z.zone.name): sum(z.pages) for z in page_map.zones}
    assert zones == {(None, "DMA"): 4096, (None, "DMA32"): 12288}


# --- the command ------------------------------------------------------------------


def test_text_and_json_agree(mixed: Made) -> None:
    text = drgn_tools("pages", mixed.path)
    told = drgn_tools("pages", "--json", mixed.path)
    assert assert_done(text) == assert_done(told) == ""
    facts = json.loads(told.stdout)
    for row in facts["classes"] + facts["beside"]:
        kind = next(k for k in range(HOLE) if label(k) == row["class"])
        assert row["pages"] == row["dumped"] or kind == RESERVED
        assert row["pages"] == int((mixed.kinds == kind).sum())
        longest = longest_runs(mixed.kinds)[kind]
        assert row["longest_run"] == {
            "paddr": longest.pfn * PAGE,
            "bytes": (longest.end_pfn - longest.pfn) * PAGE,
        }
        assert f"\n{row['class']:<16}{row['pages']:>12}" in text.stdout
    assert sum(row["percent"] for row in facts["classes"]) == pytest.approx(
        100, abs=0.1
    )
    assert f"\nall             {facts['pages']:>12}" in text.stdout
    assert facts["bytes"] == facts["pages"] * PAGE
    assert facts["release"] == mixed.machine.keys["OSRELEASE"]


def label(kind: int) -> str:
    return Total(kind, 0, 0, Run(0, 0)).label


def test_image(mixed: Made, tmp_path: Path) -> None:
    png, svg = tmp_path / "map.png", tmp_path / "map.svg"
    for path in (png, svg):
        done = drgn_tools("pages", mixed.path, "-q", "--image", path)
        assert assert_done(done) == ""
        assert done.stdout == ""
        assert path.stat().st_mode & 0o777 == 0o600
    before = png.read_bytes()
    refused = drgn_tools_forked("pages", mixed.path, "--image", png)
    assert "exists (-f replaces it)" in assert_refused(refused)
    done = drgn_tools_forked("pages", mixed.path, "--image", png, "-f")
    assert_done(done)
    assert "longest run" in done.stdout
    assert png.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [png, svg]


def test_what_cannot_be_done_is_one_line(mixed: Made, tmp_path: Path) -> None:
    jpeg = drgn_tools_forked("pages", mixed.path, "--image", tmp_path / "map.jpg")
    assert "neither .png nor .svg" in assert_refused(jpeg, 2)
    itself = tmp_path / "dump.png"
    itself.symlink_to(mixed.path)
    outcome = drgn_tools_forked("pages", mixed.path, "--image", itself, "-f")
    assert "is the input itself" in assert_refused(outcome)
    nowhere = drgn_tools_forked(
        "pages", mixed.path, "--image", tmp_path / "no" / "x.png"
    )
    assert "cannot write" in assert_refused(nowhere)
    mute = tmp_path / "mute"
    write_elf(mute, mixed.machine.loads(), b"")
    assert "VMCOREINFO" in assert_refused(drgn_tools_forked("pages", mute))
    assert not list(tmp_path.glob(".*"))


# --- pictures ---------------------------------------------------------------------


def picture(page_map: PageMap) -> Picture:
    return Picture(page_image.page_svg(page_map), page_image.page_png(page_map))


def assert_shows(shown: Picture, kinds: npt.NDArray[np.uint8]) -> None:
    """Every page's place has the colour that the legend gives to what it is."""
    expected = ["" if kind == HOLE else label(kind) for kind in kinds.tolist()]
    assert shown.kinds(np.arange(len(kinds)) * PAGE) == expected


def test_the_picture_shows_every_page(mixed: Made) -> None:
    shown = picture(page_map_of(mixed.path))
    assert shown.square == PAGE
    assert_shows(shown, mixed.kinds)
    assert shown.kinds(np.array([0xFFFC0000])) == ["no-struct-page"]
    assert any("without memory" in text for text in shown.texts)
    # Every scale mark says which address its row begins with.
    for band in shown.bands:
        for y, address in shown.scale.items():
            if band.y <= y < band.y + band.height:
                assert address == band.address + (y - band.y) // 16 * shown.row


@pytest.mark.parametrize("size", [64, 128, 256, 1024])
def test_readable_whatever_the_size(tmp_path: Path, size: int) -> None:
    machine = Bare(ram=[(0, 64 * MIB), *[(256 * MIB, (size - 64) * MIB)][: size > 64]])
    for pages in machine.pages:
        for pfn in range(max(pages.pfn, 8192), pages.pfn + len(pages.expected), 512):
            (pages.anon if pfn >> 9 & 1 else pages.hugetlb)(pfn, 9)
    made = make(tmp_path / "dump", machine)
    shown = picture(page_map_of(made.path))
    assert_shows(shown, made.kinds)
    height, width, _ = shown.png.shape
    assert 1000 < width < 1400
    assert 250 < height < 1000


def made_up(numbers: Sequence[int], tiles: npt.NDArray[np.uint8], pfns: int) -> PageMap:
    """Memory as it is drawn, and nothing else."""
    totals = tuple(
        Total(kind, int((tiles == kind).sum()) * pfns, 0, Run(0, 1))
        for kind in np.unique(tiles[tiles < RESERVED]).tolist()
    )
    grid = Grid(pfns, np.array(numbers, np.int64), tiles)
    return PageMap("made up", PAGE, (), totals, (), (), 0, "", grid, (), False)


def test_memory_in_tiny_pieces_everywhere_is_one_picture() -> None:
    """Thousands of pieces over all addresses that x86-64 can have."""
    random = np.random.default_rng(3)
    numbers = np.sort(random.choice(1 << 25, 4000, replace=False))
    tiles = random.integers(0, 10, (4000, 128)).astype(np.uint8)
    tiles[2000, 77] = PageClass.HWPOISON
    page_map = made_up(numbers.tolist(), tiles, 256)
    svg, png = page_image.page_svg(page_map), page_image.page_png(page_map)
    assert len(svg) < 500_000
    shown = Picture(svg, png)
    assert shown.png.shape[0] < 1000
    poisoned = int(numbers[2000]) * 128 + 77
    assert shown.kinds(np.array([poisoned * 256 * PAGE])) == ["hwpoison"]


def test_largest_machines_with_large_holes() -> None:
    """16 TiB in 16 nodes that are 4 TiB apart."""
    per_node = (1 << 40) // (1 << 27)
    numbers = [(node << 42 >> 27) + n for node in range(16) for n in range(per_node)]
    tiles = np.zeros((len(numbers), 4), np.uint8)
    tiles[:, 1] = PageClass.ANON
    shown = picture(made_up(numbers, tiles, _CELL // 4))
    assert shown.png.shape[0] < 1000
    assert {band.address for band in shown.bands} == {n << 42 for n in range(16)}
    assert set(shown.kinds(np.arange(16) * (1 << 42) + (5 << 27))) <= {"kernel", "anon"}


def test_what_is_not_in_the_dump_is_pale(mixed: Made, tmp_path: Path) -> None:
    filtered = tmp_path / "filtered"
    assert_done(drgn_tools("extract", "-d", "31", mixed.path, filtered))
    shown = picture(page_map_of(filtered))
    whole = picture(page_map_of(mixed.path))
    assert "pale: not in the dump" in shown.texts
    assert "pale: not in the dump" not in whole.texts
    # Nor does it look as if it were a class: the sample has no colour of its own.
    assert shown.legend["none"] == "pale: not in the dump"

    def channels(colour: str) -> tuple[int, ...]:
        return tuple(bytes.fromhex(colour[1:]))

    for pfn in np.flatnonzero(mixed.kinds[:16384] == PageClass.ANON)[::16].tolist():
        pale, full = (channels(p.colour(pfn * PAGE)) for p in (shown, whole))
        assert all(p > f for p, f in zip(pale, full) if f < 255)
    for pfn in np.flatnonzero(mixed.kinds[:16384] == PageClass.SLAB)[::16].tolist():
        assert shown.colour(pfn * PAGE) == whole.colour(pfn * PAGE)


def test_colours_differ() -> None:
    colours = {page_image.colour_of(kind) for kind in page_image.COLOURS}
    pale = {page_image.colour_of(kind | LEFT_OUT) for kind in page_image.COLOURS}
    assert len(colours) == len(page_image.COLOURS)
    # White stays white, black is never pale.
    assert len(pale | colours) == 2 * len(page_image.COLOURS) - 1
    known = {*range(len(PageClass)), RESERVED, FOREIGN, HOLE} - {int(PageClass.ZERO)}
    assert {int(kind) for kind in page_image.COLOURS} == known


def test_a_hostile_name_is_text(mixed: Made, tmp_path: Path) -> None:
    keys = {**mixed.machine.keys, "OSRELEASE": "<script>&\x1b[2J\u2028" + "x" * 500}
    path = tmp_path / "dump"
    write_elf(path, mixed.machine.loads(), mixed.machine.notes(keys))
    page_map = page_map_of(path)
    svg = page_image.page_svg(page_map)
    assert "<script" not in svg
    root = ElementTree.fromstring(svg)
    title = root.find("{http://www.w3.org/2000/svg}title")
    assert title is not None
    assert title.text is not None and title.text.startswith("Linux <script>&\\x1b[2J")
    shown = Picture(svg, page_image.page_png(page_map))
    assert shown.png.shape[1] < 1400
    done = drgn_tools("pages", path)
    assert "\x1b" not in done.stdout
