# SPDX-License-Identifier: LGPL-2.1-or-later
"""What was verified on which kernel, and against what: from the tests' marks.

A test that proves something against what we did not write says so:

    @pytest.mark.verified("pstore: function trace", by="the kernel's own file")

What comes before the colon is one of PAGES. The kernel is the one that the test's
parameters name. A test whose parameters name none says which with `on`, as names with
blanks between them; `on="bytes"` is for what is tested on bytes made for the test.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from . import kernels

BENCH = Path(__file__).parent
PAGE = BENCH.parents[1] / "docs" / "compatibility.md"
BYTES = "bytes"
"""The column of what no kernel of the bench has."""
COLUMNS = (*kernels.NAMES, BYTES)

PAGES = {
    "commands": "commands.md",
    "extract": "extract.md",
    "dmesg": "extract.md#drgn-tools-dmesg",
    "info": "extract.md#drgn-tools-info",
    "verify": "extract.md#drgn-tools-verify",
    "drgn-makedumpfile": "makedumpfile.md",
    "kdump": "kdump.md",
    "pages": "pages.md",
    "pstore": "pstore.md",
    "zram": "zram.md",
    "swap": "swap.md",
    "ftrace": "ftrace.md",
    "oprofile": "oprofile.md",
    "sessions": "sessions.md",
    "report": "report.md",
}
"""Where each is described."""

# The longest first: 6.12-bench is not 6.12.
_NAMES = "|".join(map(re.escape, sorted(kernels.NAMES, key=len, reverse=True)))
_IN_PARAMETERS = re.compile(rf"(?<![\w.])({_NAMES})(?![\w.]|-bench)")

Verified = dict[str, dict[str, dict[str, list[str]]]]
"""By what, by page, feature and column."""


def kernels_of(item: pytest.Item, mark: pytest.Mark) -> list[str]:
    """Return the columns that a test is about.

    :raises ValueError: it does not say.
    """
    said: list[str] = mark.kwargs.get("on", "").split()
    if not said:
        callspec = getattr(item, "callspec", None)
        said = _IN_PARAMETERS.findall(callspec.id if callspec else "")
    if not said or not set(said) <= set(COLUMNS):
        raise ValueError(f"{item.nodeid}: on which of {', '.join(COLUMNS)}?")
    return said


def verified(items: Iterable[pytest.Item]) -> Verified:
    """Return what tests have marked.

    :raises ValueError: a mark is not as it should be.
    """
    found: Verified = {}
    for item in items:
        for mark in item.iter_markers("verified"):
            try:
                (feature,) = mark.args
                by = mark.kwargs["by"]
                page, what = feature.split(": ", 1)
                PAGES[page]
            except (KeyError, TypeError, ValueError) as e:
                raise ValueError(f"{item.nodeid}: {mark}: {e}") from None
            row = found.setdefault(page, {}).setdefault(what, {})
            for column in kernels_of(item, mark):
                ways = row.setdefault(column, [])
                if by not in ways:
                    ways.append(by)
    return found


def page(found: Verified) -> str:
    """Return the page of it."""
    return "".join(_page(found))


_START = """\
# Verified on which kernels

Made from the marks of the tests by `python -m tests.vm.compatibility`; a test fails
where this page says anything else. A number is an outside source that tests compare
with on that kernel, listed below each table; `·` means that no test does, which says
nothing about whether it works.

The kernels are those of [the test bench](testbench.md#what-is-in-it). In the column
*bytes* are tests on dumps and records that are made from their description, for what
none of these kernels has.
"""


def _page(found: Verified) -> Iterator[str]:
    yield _START
    for name, link in PAGES.items():
        if name not in found:
            continue
        rows = found[name]
        columns = [c for c in COLUMNS if any(c in row for row in rows.values())]
        columns = [*kernels.NAMES, *(c for c in columns if c == BYTES)]
        ways: list[str] = []
        for row in rows.values():
            for column in columns:
                ways += [by for by in row.get(column, ()) if by not in ways]
        yield f"\n## {name}\n\nDescribed in [{link.partition('#')[0]}]({link}).\n\n"
        yield f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}\n"
        for what, row in rows.items():
            cells = [
                ", ".join(str(n) for n, by in enumerate(ways, 1) if by in row[c])
                if c in row
                else "·"
                for c in columns
            ]
            yield f"| {what} | {' | '.join(cells)} |\n"
        yield "\n"
        for number, by in enumerate(ways, 1):
            yield f"{number}. {by}\n"


class _Collector:
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        # As they are written, those on kernels first; where a fixture has
        # parameters, they run in another order.
        self.items = sorted(
            items,
            key=lambda item: (
                BENCH not in item.path.parents,
                item.path,
                item.location[1] or 0,
            ),
        )


def generated() -> str:
    """Collect all tests, and return the page that their marks give."""
    collector = _Collector()
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = pytest.main(
            [
                "--collect-only",
                "-qq",
                "-p",
                "no:cacheprovider",
                str(BENCH.parent),
            ],
            plugins=[collector],
        )
    if status:
        raise SystemExit(said.getvalue())
    return page(verified(collector.items))


def main() -> None:
    """Write the page, or with --print print it."""
    text = generated()
    if "--print" in sys.argv[1:]:
        sys.stdout.write(text)
    else:
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
