# SPDX-License-Identifier: LGPL-2.1-or-later
"""A page map as text, and as what JSON takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from drgn_tools.page_map import PageMap, Total
from drgn_tools.pages import PageClass
from drgn_tools.text import binary_size, percent, printable
from drgn_tools.vmcore import Run

# Zones beside each other in one table.
_ABREAST = 5


def page_map_lines(page_map: PageMap) -> Iterator[tuple[str, bool]]:
    """Lines of text, and for each whether it is the head of a table."""
    release = printable(page_map.release)[:64] or "unknown"
    yield f"Linux {release}, {_size(page_map, page_map.pages)} of memory", False
    yield "", False
    yield from _classes(page_map)
    yield "", False
    yield from _zones(page_map)
    for start in range(0, len(page_map.zones), _ABREAST):
        yield "", False
        yield from _matrix(page_map, start, start + _ABREAST)


def _size(page_map: PageMap, pages: int) -> str:
    return binary_size(pages * page_map.page_size)


def _classes(page_map: PageMap) -> Iterator[tuple[str, bool]]:
    every = page_map.pages
    dumped = f"{'in dump':>12}" if page_map.filtered else ""
    head = f"{'class':<16}{'pages':>12}{'size':>12}{'share':>8}{dumped}"
    yield f"{head}  longest run", True

    def line(total: Total, share: str) -> str:
        dumped = f"{total.dumped:>12}" if page_map.filtered else ""
        return (
            f"{total.label:<16}{total.pages:>12}{_size(page_map, total.pages):>12}"
            f"{share:>8}{dumped}  {_run(page_map, total.longest)}"
        )

    for total in page_map.classes:
        yield line(total, percent(total.pages, every)), False
    dumped = ""
    if page_map.filtered:
        dumped = f"{sum(total.dumped for total in page_map.classes):>12}"
    share = percent(every, every)
    yield f"{'all':<16}{every:>12}{_size(page_map, every):>12}{share:>8}{dumped}", False
    for total in page_map.beside:
        yield line(total, ""), False
    if page_map.untyped:
        yield (
            "This kernel's pages do not tell page-table, zsmalloc and large-kmalloc "
            "from kernel.",
            False,
        )


def _run(page_map: PageMap, run: Run) -> str:
    start, end = run.pfn * page_map.page_size, run.end_pfn * page_map.page_size
    return f"{start:#x}-{end - 1:#x} ({binary_size(end - start)})"


def _zone_name(node: int | None, name: str) -> str:
    return name if node is None else f"node {node} {name}"


def _zones(page_map: PageMap) -> Iterator[tuple[str, bool]]:
    if page_map.why_no_zones:
        why = printable(page_map.why_no_zones)
        yield f"zones are told by address, and nodes not at all: {why}", False
        return
    yield (
        f"{'zone':<16}{'present':>12}{'managed':>12}  free blocks of 1, 2, 4, … pages",
        True,
    )
    for zone, _ in page_map.zones:
        free = " ".join(map(str, zone.free_blocks))
        yield (
            f"{_zone_name(zone.node, zone.name):<16}"
            f"{_size(page_map, zone.present or 0):>12}"
            f"{_size(page_map, zone.managed or 0):>12}  {free}",
            False,
        )


def _matrix(page_map: PageMap, start: int, end: int) -> Iterator[tuple[str, bool]]:
    zones = page_map.zones[start:end]
    names = [_zone_name(zone.node, zone.name) for zone, _ in zones]
    yield f"{'class':<16}" + "".join(f"{name:>16}" for name in names), True

    def line(label: str, pages: Sequence[int]) -> str:
        sizes = (_size(page_map, count) if count else "-" for count in pages)
        return f"{label:<16}" + "".join(f"{size:>16}" for size in sizes)

    for total in page_map.classes:
        counts = [pages[total.kind] for _, pages in zones]
        if any(counts):
            yield line(total.label, counts), False
    yield line("all", [sum(pages) for _, pages in zones]), False


def page_map_json(page_map: PageMap) -> dict[str, Any]:
    """All of it but the picture; addresses and sizes in bytes."""
    size = page_map.page_size
    every = page_map.pages

    def told(total: Total) -> dict[str, Any]:
        start, end = total.longest
        return {
            "class": total.label,
            "pages": total.pages,
            "bytes": total.pages * size,
            "dumped": total.dumped,
            "longest_run": {"paddr": start * size, "bytes": (end - start) * size},
        }

    return {
        "release": page_map.release,
        "page_size": size,
        "pages": every,
        "bytes": every * size,
        "ram": [
            {"paddr": run.pfn * size, "bytes": (run.end_pfn - run.pfn) * size}
            for run in page_map.ram
        ],
        "classes": [
            {**told(total), "percent": round(100 * total.pages / every, 3)}
            for total in page_map.classes
        ],
        "beside": [told(total) for total in page_map.beside],
        "zones": [
            {
                "node": zone.node,
                "zone": zone.name,
                "paddr": zone.start_pfn * size,
                "spanned": zone.spanned,
                "present": zone.present,
                "managed": zone.managed,
                "free_blocks": zone.free_blocks,
                "classes": {
                    PageClass(kind).label: count
                    for kind, count in enumerate(pages)
                    if count
                },
            }
            for zone, pages in page_map.zones
        ],
        "pages_without_zone": page_map.zoneless,
        "zones_by_address": page_map.why_no_zones or None,
        "untyped": page_map.untyped,
        "warnings": page_map.warnings,
    }
