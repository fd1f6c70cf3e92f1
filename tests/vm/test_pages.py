# SPDX-License-Identifier: LGPL-2.1-or-later
"""`pages` on dumps of real kernels, against the guest's own words and drgn."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import drgn
import numpy as np
import numpy.typing as npt
import pytest
from drgn.helpers.linux.mm import follow_phys
from drgn.helpers.linux.pid import find_task
from PIL import Image

from drgn_tools.export.page_image import page_png, page_svg
from drgn_tools.page_helpers import for_each_page_run, pages_map
from drgn_tools.page_map import PageMap, PageRun, page_runs, read_page_map
from drgn_tools.pages import PageClass
from drgn_tools.vmcore import open_vmcore
from tests.command import assert_done, drgn_tools
from tests.picture import Picture

from . import dumps, kernels, live_drgn, qemu
from .dumps import Dump, Spec
from .known_pages import PAGE
from .test_extract import CASES, GUEST_SAYS, KPF_HUGE, KPF_SLAB, case_name, makedumpfile
from .test_swap import filled

# Of the pages that the guest and we say something of, moments apart.
_AGREE = 0.97


class Case(NamedTuple):
    dump: Dump
    page_map: PageMap
    picture: Picture


@pytest.fixture(scope="module", params=CASES, ids=case_name)
def case(request: pytest.FixtureRequest) -> Case:
    spec, kind = request.param
    dump = next(d for d in dumps.both(spec) if d.kind == kind)
    with open_vmcore(str(dump.path)) as vmcore:
        page_map = read_page_map(vmcore, jobs=2)
    picture = Picture(page_svg(page_map), page_png(page_map))
    return Case(dump, page_map, picture)


def guest_zones(zoneinfo: str) -> dict[tuple[int, str], dict[str, int]]:
    """What /proc/zoneinfo says of each zone that has pages."""
    zones = {}
    for part in re.split(r"^(?=Node )", zoneinfo, flags=re.MULTILINE)[1:]:
        head = re.match(r"Node (\d+), zone +(\w+)", part)
        assert head
        numbers = dict(
            re.findall(r"^ +(spanned|present|managed|start_pfn:) +(\d+)$", part, re.M)
        )
        if int(numbers["present"]):
            zones[int(head[1]), head[2]] = {k: int(v) for k, v in numbers.items()}
    return zones


@pytest.mark.verified("pages: zones and nodes", by="/proc/zoneinfo of the same guest")
def test_zones_are_those_of_zoneinfo(case: Case) -> None:
    assert case.page_map.why_no_zones == ""
    zones = {
        (zone.node, zone.name): {
            "spanned": zone.spanned,
            "present": zone.present,
            "managed": zone.managed,
            "start_pfn:": zone.start_pfn,
        }
        for zone, _ in case.page_map.zones
    }
    assert zones == guest_zones(case.dump.fact("zoneinfo").decode())
    # Firmware's pages in between have struct pages, too.
    assert case.page_map.zoneless < 64


@pytest.mark.verified("pages: free blocks", by="/proc/buddyinfo of the same guest")
def test_free_blocks_are_those_of_buddyinfo(case: Case) -> None:
    """And make up the free pages that struct pages tell, which is another source."""
    said = {}
    for line in case.dump.fact("buddyinfo").decode().splitlines():
        head, blocks = line[:24], line[24:]
        node, name = re.findall(r"Node +(\d+), zone +(\w+)", head)[0]
        said[int(node), name] = sum(
            int(count) << order for order, count in enumerate(blocks.split())
        )
    for zone, pages in case.page_map.zones:
        free = sum(count << order for order, count in enumerate(zone.free_blocks))
        # Whoever was stopped may have had a block in hand.
        assert abs(free - pages[PageClass.FREE]) <= 1 << 10
        assert zone.node is not None
        assert free == pytest.approx(said[zone.node, zone.name], rel=0.05)


@pytest.mark.verified("pages: the picture", by="/proc/kpageflags of the same guest")
def test_the_picture_shows_what_the_guest_says(case: Case) -> None:
    """Page by page, its colour and legend against /proc/kpageflags."""
    assert case.picture.square == PAGE
    flags = np.frombuffer(case.dump.fact("kpageflags"), "<u8")
    shown = np.array(case.picture.kinds(np.arange(len(flags)) * PAGE))
    ours = ~np.isin(shown, ["", "reserved", "no-struct-page"])

    def said(bit: int) -> npt.NDArray[np.bool_]:
        return (flags >> np.uint64(bit) & np.uint64(1)).astype(bool) & ours

    for page_class, bit in GUEST_SAYS.items():
        guest = said(bit)
        if page_class == PageClass.ANON:
            # As in test_extract.
            guest &= ~(said(KPF_HUGE) | said(KPF_SLAB))
        mine = shown == page_class.label
        agree, either = int((guest & mine).sum()), int((guest | mine).sum())
        assert agree >= _AGREE * either, f"{page_class.label}: {agree} of {either}"
        if page_class != PageClass.HWPOISON:  # Debian's 6.1 cannot make any.
            assert either > 100, page_class.label


# What guest/fill.c holds, and what that is to the kernel.
_PLANTED = {
    "anon": "anon",
    "thp": "anon",
    "zero": "anon",
    "ksm": "anon",
    "hugetlb": "hugetlb",
    "mapped": "cache",
}


def program(dump: Dump) -> drgn.Program:
    prog = drgn.Program()
    prog.set_core_dump(dump.path)
    prog.load_debug_info([dump.kernel.vmlinux])
    return prog


def planted(dump: Dump) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
    """Yield kinds of memory that the guest holds, and where drgn finds them."""
    prog = program(dump)
    for pid, address, size, kind in filled(dump):
        if kind not in _PLANTED:
            continue
        mm = find_task(prog, pid).mm
        paddrs = []
        for at in range(address, address + size, PAGE):
            with contextlib.suppress(drgn.FaultError):
                paddrs.append(follow_phys(mm, at).value_())
        yield kind, np.array(paddrs, np.int64)


def assert_planted(dump: Dump, picture: Picture) -> None:
    seen = set()
    for kind, paddrs in planted(dump):
        seen.add(kind)
        shown = picture.kinds(paddrs)
        # Of a file, the kernel maps some pages only.
        assert len(shown) >= 256, kind
        right = sum(label == _PLANTED[kind] for label in shown)
        assert right >= _AGREE * len(shown), (kind, right, len(shown))
    assert seen == set(_PLANTED)


@pytest.mark.verified(
    "pages: the class of each page",
    by="page tables of the tasks that hold memory, read by drgn",
)
@pytest.mark.parametrize("spec", dumps.MATRIX[::3], ids=lambda spec: spec.name)
def test_planted_memory_is_where_the_guest_put_it(spec: Spec) -> None:
    """By the page tables of the tasks that hold it, as drgn reads them."""
    dump = next(d for d in dumps.both(spec) if d.kind == "vmcore")
    with open_vmcore(str(dump.path)) as vmcore:
        page_map = read_page_map(vmcore)
    assert_planted(dump, Picture(page_svg(page_map), page_png(page_map)))


def classes(runs: Iterator[PageRun]) -> npt.NDArray[np.uint8]:
    found = np.full(1 << 20, 255, np.uint8)
    for run in runs:
        found[run.pfn : run.pfn + run.pages] = run.page_class
    return found


@pytest.mark.parametrize(
    "spec", {s.kernel: s for s in dumps.MATRIX}.values(), ids=lambda spec: spec.name
)
def test_drgn_helpers_are_the_same_page_by_page(spec: Spec) -> None:
    for dump in dumps.both(spec):
        prog = program(dump)
        theirs = classes(for_each_page_run(prog))
        with open_vmcore(str(dump.path)) as vmcore:
            ours = classes(page_runs(vmcore))
            zones = read_page_map(vmcore).zones
        both = (ours != 255) & (theirs != 255)
        assert (ours == theirs)[both].all()
        assert both.sum() > 300 << 20 >> 12
        # QEMU has firmware's pages, too. /proc/vmcore lacks the capture kernel's.
        assert ((ours != 255) & (theirs == 255)).sum() <= 1 << 20 >> 12
        more = ((theirs != 255) & (ours == 255)).sum()
        assert more == 0 if dump.kind == "qemu" else more < 200 << 20 >> 12
        page_map = pages_map(prog)
        assert [z.zone for z in page_map.zones] == [z.zone for z in zones]
        assert page_map.pages == int((theirs != 255).sum())


@pytest.fixture(scope="module")
def everyday() -> Dump:
    return next(d for d in dumps.both(Spec("6.1", 4, True)) if d.kind == "vmcore")


def test_makedumpfiles_dumps(everyday: Dump, tmp_path: Path) -> None:
    """What it left out is still told by class; what it kept is what is counted."""
    theirs = tmp_path / "theirs"
    makedumpfile(everyday, everyday.path, theirs, "-l", "-d", "31")
    told = {}
    for path in (everyday.path, theirs):
        done = drgn_tools("pages", "--json", path)
        assert_done(done)
        told[path] = json.loads(done.stdout)
    whole, filtered = told.values()
    assert filtered["pages"] == whole["pages"]
    for before, after in zip(whole["classes"], filtered["classes"]):
        assert before["dumped"] == before["pages"]
        gone = after["class"] not in ("kernel", "slab")
        # Zero pages went, too.
        assert after["dumped"] == 0 if gone else 0 < after["dumped"] <= after["pages"]
        assert {**after, "dumped": 0} == {**before, "dumped": 0}
    with open_vmcore(str(theirs)) as vmcore:
        kept = sum(row["dumped"] for row in filtered["classes"])
        assert kept == vmcore.dumped_pages


# --- live -------------------------------------------------------------------------

# In the guest: our classes, and the kernel's own words just before and after.
_SEEN = """
import json, os
import numpy as np
from drgn_tools.page_helpers import for_each_page_run, pages_image, pages_map
from drgn_tools.page_helpers import pages_summary

# Memory that is taken now: what comes and goes would be seen, and then not.
room = [np.ones(1 << 19, "<u8") for _ in range(2)]

def flags(into):
    fd = os.open("/proc/kpageflags", os.O_RDONLY)
    end = 0
    while size := os.readv(fd, [memoryview(into)[end:]]):
        end += size // 8
    os.close(fd)
    return into[:end]

before = flags(room[0])
kinds = np.full(len(before), 255)
for run in for_each_page_run(prog):
    kinds[run.pfn:run.pfn + run.pages] = run.page_class
# What stayed as it was, and so was that when it was read.
steady = (before == flags(room[1])) & (kinds != 255)
agree = {}
said = lambda bit: before >> np.uint64(bit) & np.uint64(1) == 1
for kind, bit in SAYS.items():
    guest, ours = said(bit), kinds == kind
    if kind == ANON:
        # As in test_extract.
        guest &= ~said(SLAB)
    counts = (guest & ours & steady).sum(), ((guest | ours) & steady).sum()
    agree[kind] = list(map(int, counts))
page_map = pages_map(prog)
pages_image(prog, "/run/map.png")
pages_image(prog, "/run/map.svg")
pages_summary(prog)
print("@@" + json.dumps({
    "agree": agree,
    "ram": page_map.ram,
    "warnings": page_map.warnings,
    "zones": [(z.zone.node, z.zone.name, z.zone.start_pfn, z.zone.present)
              for z in page_map.zones],
    "zoneinfo": open("/proc/zoneinfo").read(),
    "iomem": open("/proc/iomem").read(),
}))
"""


@pytest.mark.verified(
    "pages: the running kernel",
    by="/proc/kpageflags and /proc/zoneinfo of the same guest",
    on="6.12-bench",
)
def test_live(tmp_path: Path) -> None:
    """A running kernel through drgn says what /proc/kpageflags and zoneinfo say."""
    kernel = kernels.get("6.12-bench")
    with qemu.booted(
        kernel,
        disks=[qemu.Disk(live_drgn.image(kernel), "live")],
        files=live_drgn.files(),
        memory_mib=live_drgn.MEMORY_MIB,
        folder=tmp_path,
    ) as vm:
        live_drgn.mount(vm)
        says = {
            int(c): bit
            for c, bit in GUEST_SAYS.items()
            if c in (PageClass.FREE, PageClass.SLAB, PageClass.ANON)
        }
        names = f"SAYS = {says}\nANON = {int(PageClass.ANON)}\nSLAB = {KPF_SLAB}\n"
        done = live_drgn.run(vm, names + _SEEN, seconds=600)
        out = done.stdout.decode()
        assert done.status == 0, out
        svg, png = (vm.read(f"/mnt/run/map.{kind}") for kind in ("svg", "png"))
    summary, _, told = out.partition("@@")
    seen = json.loads(told)
    for kind, (agree, either) in seen["agree"].items():
        label = PageClass(int(kind)).label
        assert either > 100, label
        assert agree >= _AGREE * either, (label, agree, either)
        assert f"\n{label} " in summary
    assert seen["agree"].keys() == {str(kind) for kind in says}
    assert seen["warnings"] == [
        "memory changed while it was read: pages may not fit together"
    ]
    zones = {(n, name): (pfn, has) for n, name, pfn, has in seen["zones"]}
    assert zones == {
        key: (zone["start_pfn:"], zone["present"])
        for key, zone in guest_zones(seen["zoneinfo"]).items()
    }
    ram = [
        (-(-int(start, 16) // PAGE), (int(end, 16) + 1) // PAGE)
        for start, end in re.findall(
            r"^(\w+)-(\w+) : System RAM$", seen["iomem"], re.MULTILINE
        )
    ]
    assert [tuple(run) for run in seen["ram"]] == ram
    release = kernel.release
    assert f"Linux {release}: " in svg.decode()
    assert f"Linux {release}, " in summary
    with Image.open(io.BytesIO(png)) as image:
        assert f'viewBox="0 0 {image.width} {image.height}"' in svg.decode()
