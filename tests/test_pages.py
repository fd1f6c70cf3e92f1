# SPDX-License-Identifier: LGPL-2.1-or-later
"""The page model: every class, as every kernel generation marks it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from drgn_tools.errors import DumpError
from drgn_tools.pages import (
    CLASSES_BY_LABEL,
    PageClass,
    PageLayout,
    Spill,
    classify,
    dump_level,
    excluded_classes,
    mem_map,
    page_layout,
)
from drgn_tools.plan import UNIT_PFNS, Plan, make_plan
from drgn_tools.vmcore import open_vmcore
from drgn_tools.vmcoreinfo import Vmcoreinfo
from tests.synthetic import (
    BY_NAME,
    GENERATIONS,
    GIB,
    MIB,
    PAGE,
    Generation,
    Load,
    Machine,
    StructPages,
    page_keys,
    populate,
    vmcoreinfo_text,
    write_elf,
)

every_generation = pytest.mark.parametrize("generation", GENERATIONS, ids=str)
OBJECT = 0xFFFF888001234500


def layout_of(
    generation: Generation, changes: Mapping[str, str | None] | None = None
) -> PageLayout:
    """How *generation* marks pages; *changes* add keys, or take them away."""
    keys = {**page_keys(generation), **(changes or {})}
    present = {key: value for key, value in keys.items() if value is not None}
    return page_layout(Vmcoreinfo(vmcoreinfo_text(present)))


def check(pages: StructPages, layout: PageLayout | None = None) -> None:
    """Every page must be found to be what it is, and nothing lead beyond the end."""
    layout = layout or layout_of(pages.generation)
    classes, spills = classify(pages.raw, pages.pfn, layout)
    wrong = {
        pages.pfn + i: (PageClass(classes[i]).label, PageClass(expected).label)
        for i, expected in enumerate(pages.expected.tolist())
        if classes[i] != expected
    }
    assert not wrong
    assert not spills


# --- one class after the other ----------------------------------------------------


@pytest.mark.verified(
    "pages: the class of each page",
    by="struct pages made as in 4.18, 5.10, 6.1, 6.3, 6.6, 6.9, 6.10, 6.11, 6.12, 7.1, "
    "7.2",
    on="bytes",
)
@every_generation
def test_every_class(generation: Generation) -> None:
    pages = StructPages(generation, 8192, 4096)
    populate(pages, 8192)
    expected = {PageClass(number) for number in np.unique(pages.expected)}
    wanted = set(PageClass) - {PageClass.UNKNOWN, PageClass.ZERO}
    for kind, name in (
        (PageClass.OFFLINE, "offline"),
        (PageClass.PAGE_TABLE, "table"),
        (PageClass.ZSMALLOC, "zsmalloc"),
        (PageClass.UNACCEPTED, "unaccepted"),
        (PageClass.LARGE_KMALLOC, "large_kmalloc"),
    ):
        if name not in generation.types:
            wanted.discard(kind)
    assert expected == wanted
    check(pages)


@every_generation
def test_random_neighbours(generation: Generation) -> None:
    """Whatever lies beside whatever: no page changes what its neighbour is."""
    random = np.random.default_rng(1)
    single = ["anon", "ksm", "swap_cache", "shmem_swap_cache", "owner_priv", "cache"]
    for _ in range(40):
        pages = StructPages(generation, 1 << 15, 2048)
        at = pages.pfn
        while at < pages.pfn + 2048:
            limit = min((at & -at).bit_length() - 1, 9)
            order = int(random.integers(0, limit + 1))
            kind = int(random.integers(0, 9))
            if kind == 0:
                pages.anon(at, order)
            elif kind == 1:
                pages.cache(at, order, private=bool(at & 2))
            elif kind == 2:
                pages.slab(at, order, mapping=OBJECT | 1)
            elif kind == 3:
                pages.free(at, order)
            elif kind == 4:
                pages.kernel(at, order)
            elif kind == 5 and limit == 9:
                order = 9
                pages.hugetlb(at)
            elif kind == 6:
                order = 0
                pages.anon(at)
                pages.hwpoison(at)
            elif kind == 7 and "offline" in generation.types:
                order = 0
                pages.offline(at)
            else:
                order = 0
                getattr(pages, single[int(random.integers(0, len(single)))])(at)
            at += 1 << order
        check(pages)


@every_generation
def test_pieces_with_spills_are_the_whole(generation: Generation) -> None:
    """Cut anywhere, the classes are the same, if the spills are handed on."""
    pages = StructPages(generation, 4096, 4096)
    populate(pages, 4096)
    layout = layout_of(generation)
    for cuts in ([7, 60, 777, 1300, 2049, 3500], [1024, 2048, 3072], [3079, 3080]):
        spills: list[Spill] = []
        parts = []
        bounds = [0, *cuts, 4096]
        for start, end in zip(bounds, bounds[1:]):
            raw = pages.words[start:end].view(np.uint8)
            part, spills = classify(raw, 4096 + start, layout, spills)
            parts.append(part)
        assert not spills
        classes = np.concatenate(parts)
        # What is free to its end is not told by tails: the rest of a free block
        # that is cut is kept, never the other way round.
        lost = (classes != pages.expected) & (classes != PageClass.KERNEL)
        assert not lost.any()
        told_by_tails = ~np.isin(pages.expected, (PageClass.FREE, PageClass.UNACCEPTED))
        assert (classes == pages.expected)[told_by_tails].all()


@every_generation
def test_tails_are_what_their_head_is(generation: Generation) -> None:
    pages = StructPages(generation, 512, 1024)
    pages.cache(512, 2)
    pages.cache(516, 1, private=True)
    pages.anon(520, 3)
    pages.slab(528, 4)
    pages.kernel(544, 5)
    # The words of tails mean nothing: page.mapping of the second page is a
    # counter in some kernels, its flags are others'.
    for pfn in (513, 521, 529, 545):
        pages.set(pfn, "mapping", 0x1234567)
        pages.flag(pfn, "PG_lru", "PG_swapbacked", "PG_swapcache", "PG_private")
        if generation.order == "flags":
            # Its low byte is the order.
            low = pages.words["flags"][pfn - 512] & ~np.uint64(0xFF)
            order = {513: 2, 521: 3, 529: 4, 545: 5}[pfn]
            pages.words["flags"][pfn - 512] = low | np.uint64(order)
    check(pages)


@every_generation
def test_hwpoison(generation: Generation) -> None:
    pages = StructPages(generation, 1024, 2048)
    # On one page, whoever has it.
    pages.hwpoison(1024)
    pages.slab(1025)
    pages.hwpoison(1025)
    pages.anon(1026)
    pages.hwpoison(1026)
    # On a tail: this page only. On a head: all of it.
    pages.anon(1536, 9)
    pages.hwpoison(1536 + 5)
    pages.hwpoison(1536 + 511)
    pages.hugetlb(2048)
    pages.hwpoison(2048, 9)
    # On a page inside a free block.
    pages.free(1040, 4)
    pages.hwpoison(1047)
    check(pages)


@every_generation
def test_without_hwpoison(generation: Generation) -> None:
    """Kernels without memory failure handling: whatever has the bit is kept."""
    pages = StructPages(generation, 0, 64)
    pages.hwpoison(8)
    pages.expect(8, 1, PageClass.KERNEL)
    check(pages, layout_of(generation, {"NUMBER(PG_hwpoison)": None}))


@every_generation
def test_swap_cache_needs_swapbacked(generation: Generation) -> None:
    """PG_swapcache is PG_owner_priv_1 for pages that are not swap-backed."""
    pages = StructPages(generation, 0, 16)
    pages.shmem_swap_cache(3)
    pages.owner_priv(4)
    check(pages)
    # A kernel that does not tell PG_swapbacked: all that there is to go by.
    pages.expect(4, 1, PageClass.CACHE)
    check(pages, layout_of(generation, {"NUMBER(PG_swapbacked)": None}))


@every_generation
def test_slab_is_no_user_memory(generation: Generation) -> None:
    """slab.slabs lay over page.mapping in 6.2, and slab went for anonymous."""
    pages = StructPages(generation, 0, 64)
    pages.slab(1, mapping=OBJECT | 1)
    pages.slab(2, mapping=OBJECT | 3)
    pages.slab(8, 3, mapping=OBJECT | 1)
    check(pages)


@every_generation
def test_free_blocks(generation: Generation) -> None:
    pages = StructPages(generation, 1 << 12, 1 << 12)
    at = 1 << 12
    for order in range(11):
        pages.free(at + (1 << order), order)
    check(pages)


@pytest.mark.parametrize("private", [11, 12, 40, 63, 64, 1 << 31, (1 << 64) - 1])
@every_generation
def test_free_with_impossible_order_is_kept(
    generation: Generation, private: int
) -> None:
    pages = StructPages(generation, 0, 1 << 12)
    pages.free(2048)
    pages.set(2048, "private", private)
    pages.expect(2048, 1, PageClass.KERNEL)
    pages.cache(2049)
    check(pages)


@every_generation
def test_unaligned_free_block_is_kept(generation: Generation) -> None:
    pages = StructPages(generation, 0, 64)
    pages.free(33)
    pages.set(33, "private", 1)
    pages.expect(33, 1, PageClass.KERNEL)
    pages.anon(34)
    check(pages)


@pytest.mark.parametrize("order", [0, 4, 41, 63, 64, 255])
@every_generation
def test_impossible_compound_order(generation: Generation, order: int) -> None:
    """An order that cannot be drops nothing beyond the page itself."""
    pages = StructPages(generation, 8, 64)
    pages.cache(8, 3)
    if generation.order == "flags":
        flags = pages.words["flags"][1] & ~np.uint64(0xFF)
        pages.set(9, "flags", int(flags) | order)
    else:
        pages.set(9, "order", order)
    pages.expect(9, 7, PageClass.KERNEL)
    check(pages)


@every_generation
def test_too_large_an_order_takes_no_neighbours(generation: Generation) -> None:
    """A compound page has what its tails are, whatever its order says."""
    pages = StructPages(generation, 0, 256)
    pages.anon(64, 2)
    if generation.order == "flags":
        pages.set(65, "flags", int(pages.words["flags"][65]) & ~0xFF | 6)
    else:
        pages.set(65, "order", 6)
    check(pages)


@every_generation
def test_head_in_the_last_frame(generation: Generation) -> None:
    """Its second page is not here, so its order is not known."""
    pages = StructPages(generation, 64, 17)
    pages.anon(80)
    pages.flag(80, "head")
    check(pages)


def test_pg_hugetlb_on_other_compound_pages() -> None:
    """
    In 6.6 the bit is also PG_active of a compound page that is none of hugetlb's:
    kernel memory that must not go.
    """
    pages = StructPages(BY_NAME["6.6"], 0, 1024)
    for pfn, order in ((2, 1), (8, 3), (256, 8)):
        pages.hugetlb(pfn, order)
        pages.expect(pfn, 1 << order, PageClass.KERNEL)
    pages.hugetlb(512)
    check(pages)


@pytest.mark.parametrize("name", ["5.10", "6.1", "6.3", "6.6", "6.9", "6.12", "7.2"])
def test_optimised_hugetlb_vmemmap(name: str) -> None:
    """
    With HVO the struct pages of a huge page repeat its first ones, so every 64th
    looks like a head.
    """
    pages = StructPages(BY_NAME[name], 512, 2048)
    pages.hugetlb(1024)
    for at in range(512 + 64, 1024, 64):
        pages.words[at : at + 64] = pages.words[512 : 512 + 64]
    check(pages)


@every_generation
def test_hugetlb_in_use(generation: Generation) -> None:
    """Mapped privately it is anonymous too, in a file it has a mapping: hugetlb."""
    pages = StructPages(generation, 512, 2048)
    for pfn, mapping in ((512, OBJECT | 1), (1024, OBJECT)):
        pages.hugetlb(pfn)
        pages.set(pfn, "mapping", mapping)
    check(pages)


@pytest.mark.parametrize("name", ["6.12", "7.1", "7.2"])
def test_owner_uses_the_rest_of_the_type(name: str) -> None:
    pages = StructPages(BY_NAME[name], 0, 64)
    for pfn, kind in enumerate(("slab", "zsmalloc", "table")):
        pages.type(pfn, kind, 0xABCDEF)
        label = "PAGE_TABLE" if kind == "table" else kind.upper()
        pages.expect(pfn, 1, PageClass[label])
    check(pages)


@pytest.mark.parametrize("name", ["5.10", "6.1", "6.6", "6.10", "6.11"])
def test_types_of_old_are_exact(name: str) -> None:
    """A mapcount of -130 is not the -129 of a free page."""
    generation = BY_NAME[name]
    pages = StructPages(generation, 0, 64)
    value = generation.types["buddy"] & 0xFFFFFFFF
    for pfn, other in enumerate((value - 1, value + 1, 0, 5, value & 0xFF000000 | 1)):
        pages.set(pfn, "mapcount", other)
    check(pages)


@pytest.mark.parametrize("generation", [g for g in GENERATIONS if "slab" in g.types])
def test_slab_type(generation: Generation) -> None:
    """Without the SLAB key, slab with an odd mapping would go for user memory."""
    pages = StructPages(generation, 0, 64)
    pages.slab(0, 2, mapping=OBJECT | 1)
    check(pages)


def test_unaccepted_block() -> None:
    pages = StructPages(BY_NAME["7.2"], 0, 4096)
    pages.unaccepted(1024)
    # Only a whole block can be; not at 2056.
    pages.type(2056, "unaccepted")
    check(pages)


# --- levels and names -------------------------------------------------------------


def test_dump_levels() -> None:
    """What each bit of makedumpfile's -d leaves out (its manual's table)."""
    table = {
        1: "zero",
        2: "cache",
        4: "cache cache-private",
        8: "anon hugetlb",
        16: "free unaccepted",
    }
    for level in range(32):
        wanted = {PageClass.OFFLINE, PageClass.HWPOISON}
        for bit, labels in table.items():
            if level & bit:
                wanted |= {CLASSES_BY_LABEL[label] for label in labels.split()}
        assert excluded_classes(level) == wanted
        # Bit 4 has all that bit 2 has.
        assert dump_level(excluded_classes(level)) == level | (2 if level & 4 else 0)


# --- what VMCOREINFO must and may tell --------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        "SIZE(page)",
        "OFFSET(page.flags)",
        "OFFSET(page.mapping)",
        "OFFSET(page._mapcount)",
        "OFFSET(page.private)",
        "OFFSET(page.compound_head)",
        "NUMBER(PG_lru)",
        "NUMBER(PG_private)",
        "NUMBER(PG_swapcache)",
        "NUMBER(PG_head_mask)",
        "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)",
        "LENGTH(zone.free_area)",
    ],
)
def test_missing_key_is_named(key: str) -> None:
    with pytest.raises(DumpError) as caught:
        layout_of(BY_NAME["6.1"], {key: None})
    assert key in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SIZE(page)", "0"),
        ("SIZE(page)", "63"),
        ("SIZE(page)", str(1 << 40)),
        ("OFFSET(page.flags)", "64"),
        ("OFFSET(page.flags)", "-8"),
        ("OFFSET(page.private)", "57"),
        ("OFFSET(page._mapcount)", "61"),
        ("OFFSET(page.compound_order)", "64"),
        ("NUMBER(PG_lru)", "64"),
        ("NUMBER(PG_lru)", "-1"),
        ("NUMBER(PG_hwpoison)", "99"),
        ("NUMBER(PG_head_mask)", "0"),
        ("LENGTH(zone.free_area)", "0"),
        ("LENGTH(zone.free_area)", "1000000"),
    ],
)
def test_impossible_value_is_named(key: str, value: str) -> None:
    with pytest.raises(DumpError) as caught:
        layout_of(BY_NAME["6.1"], {key: value})
    assert key.split("(")[1].rstrip(")") in str(caught.value)


# --- hostile struct pages ---------------------------------------------------------


def _hostile(generation: Generation, seed: int, count: int) -> npt.NDArray[np.uint8]:
    """Struct pages of random words, of which some look right."""
    random = np.random.default_rng(seed)
    pages = StructPages(generation, 0, count)
    words = pages.words
    words.view(np.uint8)[:] = random.integers(0, 256, count * 64, np.uint8)
    some = random.random(count) < 0.5
    types = [value & 0xFFFFFFFF for value in generation.types.values()]
    words["mapcount"][some] = random.choice(np.array(types, np.uint32), some.sum())
    few = random.random(count) < 0.7
    words["head"][few] &= ~np.uint64(1)
    words["private"][random.random(count) < 0.5] %= 16
    words["flags"][random.random(count) < 0.5] |= np.uint64(
        1 << generation.bits["head"]
    )
    low = np.uint64(0xFF)
    small = random.random(count) < 0.5
    words["flags"][small] = words["flags"][small] & ~low | random.integers(
        0, 64, small.sum(), np.uint64
    )
    words["order"][small] %= 64
    return pages.raw


def _plausible(
    classes: npt.NDArray[np.uint8], spills: list[Spill], pfn: int, count: int
) -> None:
    assert len(classes) == count
    assert (classes < PageClass.UNKNOWN).all()
    # One per order at most, of either kind.
    assert len(spills) <= 2 * 64
    for spill in spills:
        assert spill.pfn == pfn + count
        assert pfn + count < spill.end_pfn <= pfn + count + (1 << 41)


@every_generation
def test_hostile_struct_pages(generation: Generation) -> None:
    layout = layout_of(generation)
    random = np.random.default_rng(2)
    for seed in range(300):
        count = int(random.integers(1, 200))
        pfn = int(random.choice([0, 1, 512, 1 << 20, (1 << 40) - 64, 262144 - 100]))
        raw = _hostile(generation, seed, count)
        classes, spills = classify(raw, pfn, layout)
        _plausible(classes, spills, pfn, count)
        # And what they spill does no harm to the next.
        more = _hostile(generation, seed + 1, count)
        classes, spills = classify(more, pfn + count, layout, spills)
        assert (classes < PageClass.UNKNOWN).all()


@every_generation
def test_hostile_struct_pages_take_bounded_memory(generation: Generation) -> None:
    """A whole section of the worst: everything spans as much as it can."""
    count = 1 << 15
    pages = StructPages(generation, 0, count)
    frames = np.arange(count)
    orders = np.minimum(np.where(frames, (frames & -frames), 1 << 20), 1 << 15)
    orders = np.log2(orders).astype(np.uint64)
    head = 1 << generation.bits["head"]
    raws = [_hostile(generation, 3, count)]
    for kind in ("heads", "free"):
        pages = StructPages(generation, 0, count)
        words = pages.words
        words["mapping"] = 1
        if kind == "heads":
            words["flags"] = np.uint64(head)
            if generation.order == "flags":
                words["flags"][1:] |= orders[:-1]
            words["order"][1:] = orders[:-1]
        else:
            words["mapcount"] = generation.types["buddy"] & 0xFFFFFFFF
            words["private"] = np.minimum(orders, 10)
        raws.append(pages.raw)
    layout = layout_of(generation)
    for raw in raws:
        tracemalloc.start()
        try:
            classes, spills = classify(raw, 1 << 30, layout)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        _plausible(classes, spills, 1 << 30, count)
        # The section's own struct pages are 2 MiB.
        assert peak < 48 * MIB


# --- through a dump ---------------------------------------------------------------


def plan_of(path: Path, level: int) -> Plan:
    with open_vmcore(str(path)) as vmcore:
        return make_plan(vmcore, excluded_classes(level))


def kept_pfns(plan: Plan) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(plan.dumpable, bitorder="little")).tolist())


def assert_units(plan: Plan) -> None:
    """Each unit's pages are numbered on from those before it."""
    pfns = sorted(kept_pfns(plan))
    for start, before in plan.units.tolist():
        assert start <= pfns[before] < start + UNIT_PFNS
        assert before == 0 or pfns[before - 1] < start
    assert {pfn // UNIT_PFNS * UNIT_PFNS for pfn in pfns} == set(plan.units[:, 0])


def counts_of(machine: Machine) -> list[int]:
    expected = [machine.expected(pfn) for pfn in machine.pfns()]
    counts: list[int] = np.bincount(expected, minlength=len(PageClass)).tolist()
    return counts


def wanted_pfns(machine: Machine, level: int) -> set[int]:
    leave_out = excluded_classes(level)
    return {pfn for pfn in machine.pfns() if machine.expected(pfn) not in leave_out}


@every_generation
def test_plan(generation: Generation, tmp_path: Path) -> None:
    machine = Machine(generation, ram=((0, 32 * MIB),))
    populate(machine.pages[0], 2048)
    path = tmp_path / "vmcore"
    write_elf(path, machine.loads(), machine.notes())
    plan = plan_of(path, 31)
    assert plan.found.tolist() == counts_of(machine)
    assert kept_pfns(plan) == wanted_pfns(machine, 31)
    assert plan.pages == len(wanted_pfns(machine, 31))
    assert plan.max_mapnr == 32 * MIB // PAGE
    assert not plan.warnings


def test_plan_of_every_level(tmp_path: Path) -> None:
    machine = Machine(ram=((0, 32 * MIB),))
    populate(machine.pages[0], 2048)
    path = tmp_path / "vmcore"
    write_elf(path, machine.loads(), machine.notes())
    for level in range(32):
        plan = plan_of(path, level)
        assert kept_pfns(plan) == wanted_pfns(machine, level)
        assert plan.found.tolist() == counts_of(machine)


@pytest.mark.parametrize("name", ["5.10", "6.3", "6.6", "6.9", "6.12", "7.2"])
def test_gigantic_page(name: str, tmp_path: Path) -> None:
    """1 GiB over 8 sections, of which the dump has three pieces."""
    later = [GIB + 128 * MIB, GIB + 896 * MIB]
    ram = ((0, 24 * MIB), (GIB, 2 * MIB), *((start, 2 * MIB) for start in later))
    machine = Machine(BY_NAME[name], ram=ram, section_bits=27)
    head = GIB // PAGE
    machine.pages[1].hugetlb(head, 18)
    for pages in machine.pages[2:]:
        pages.tails(head, 18)
        pages.expect(head, 1 << 18, PageClass.HUGETLB)
    # A bad page in another section than the head stays a bad page.
    machine.pages[2].hwpoison(later[0] // PAGE + 3)
    path = tmp_path / "vmcore"
    write_elf(path, machine.loads(), machine.notes())
    for level in (31, 23, 0):
        plan = plan_of(path, level)
        assert plan.found.tolist() == counts_of(machine)
        assert kept_pfns(plan) == wanted_pfns(machine, level)


@pytest.mark.parametrize("name", ["6.1", "6.6", "7.2"])
def test_bad_gigantic_page(name: str, tmp_path: Path) -> None:
    """Marked on its head, all of it is bad, in every section."""
    ram = ((0, 24 * MIB), (GIB, 2 * MIB), (GIB + 512 * MIB, 2 * MIB))
    machine = Machine(BY_NAME[name], ram=ram, section_bits=27)
    head = GIB // PAGE
    machine.pages[1].hugetlb(head, 18)
    machine.pages[1].hwpoison(head, 18)
    machine.pages[2].tails(head, 18)
    machine.pages[2].expect(head, 1 << 18, PageClass.HWPOISON)
    path = tmp_path / "vmcore"
    write_elf(path, machine.loads(), machine.notes())
    plan = plan_of(path, 0)
    assert plan.found.tolist() == counts_of(machine)
    assert kept_pfns(plan) == wanted_pfns(machine, 0)


@pytest.mark.parametrize("flags", [0x3, 0xF, 0x1F, 0x2F, 0x3F])
def test_section_flags(flags: int, tmp_path: Path) -> None:
    """0x20 is IS_VMEMMAP_PREINIT: sections of gigantic pages made at boot (7.2)."""
    machine = Machine(ram=((0, 32 * MIB),), section_flags=flags)
    populate(machine.pages[0], 2048)
    path = tmp_path / "vmcore"
    write_elf(path, machine.loads(), machine.notes())
    with open_vmcore(str(path)) as vmcore:
        assert vmcore.vmcoreinfo is not None
        sections = mem_map(vmcore.vmcoreinfo, vmcore.kernel.read, PAGE, vmcore.ram_runs)
        assert [section.pfn for section in sections] == [0, 4096]
        for section in sections:
            assert section.vaddr == machine.vmemmap + 64 * section.pfn
        plan = make_plan(vmcore, excluded_classes(31))
    assert plan.found.tolist() == counts_of(machine)


def test_struct_pages_that_are_not_mapped(tmp_path: Path) -> None:
    """A section without them is kept whole, and that is said."""
    machine = Machine(ram=((0, 48 * MIB),), mapping="4K")
    populate(machine.pages[0], 4096)
    machine.pages[0].anon(8192 + 5)
    machine.unmap(machine.vmemmap + 64 * (4096 + 1000))
    path = tmp_path / "vmcore"
    write_elf(path, machine.loads(), machine.notes())
    plan = plan_of(path, 31)
    assert plan.found[PageClass.UNKNOWN] == plan.kept[PageClass.UNKNOWN] == 4096
    assert kept_pfns(plan) == set(range(48 * MIB // PAGE)) - {8192 + 5}
    assert len(plan.warnings) == 1 and "4096" in plan.warnings[0]


def test_struct_pages_that_are_not_in_the_dump(tmp_path: Path) -> None:
    machine = Machine(ram=((0, 48 * MIB),), mapping="4K")
    machine.pages[0].anon(5)
    populate(machine.pages[0], 4096)
    hole = machine.struct_page_paddr(4096 + 64)
    memory = machine.loads()[1].data
    path = tmp_path / "vmcore"
    loads = [
        Load(0, memory[:hole]),
        Load(hole + PAGE, memory[hole + PAGE :]),
    ]
    write_elf(path, loads, machine.notes())
    plan = plan_of(path, 31)
    # One page frame, in the first section, is not there now.
    assert plan.found[PageClass.UNKNOWN] == plan.kept[PageClass.UNKNOWN] == 4096
    assert kept_pfns(plan) == set(range(48 * MIB // PAGE)) - {5, hole // PAGE}
    assert len(plan.warnings) == 1


def test_memory_without_sections(tmp_path: Path) -> None:
    """Memory that the kernel has no struct pages for: firmware between sections."""
    machine = Machine(ram=((0, 16 * MIB), (48 * MIB, 16 * MIB)))
    machine.pages[1].anon(48 * MIB // PAGE + 1)
    path = tmp_path / "vmcore"
    firmware = Load(32 * MIB, b"firmware" * 512 * 3)
    beyond = Load(64 * MIB, b"beyond".ljust(PAGE))
    write_elf(path, [*machine.loads(), firmware, beyond], machine.notes())
    plan = plan_of(path, 31)
    assert plan.found[PageClass.UNKNOWN] == 3
    kept = kept_pfns(plan)
    assert {32 * MIB // PAGE + i for i in range(3)} <= kept
    # Behind the last section there is nothing of this kernel's.
    assert plan.max_mapnr == 64 * MIB // PAGE
    assert kept == (wanted_pfns(machine, 31) | {32 * MIB // PAGE + i for i in range(3)})


def test_hostile_struct_pages_in_a_dump(tmp_path: Path) -> None:
    machine = Machine(ram=((0, 48 * MIB),), mapping="1G")
    path = tmp_path / "vmcore"
    for seed in range(20):
        raw = _hostile(machine.generation, seed, len(machine.pages[0].words))
        machine.pages[0].words.view(np.uint8)[:] = raw
        write_elf(path, machine.loads(), machine.notes())
        plan = plan_of(path, 31)
        assert plan.found.sum() == 48 * MIB // PAGE
        assert plan.pages == len(kept_pfns(plan)) == plan.kept.sum()
        assert_units(plan)
