# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A report as one HTML page
-------------------------

What was found in a dump, as blocks of plain data, becomes a page that needs nothing
else: no network, no other file. Any string in a block may come from the dump. Markup is
of a type of its own, so that no other string gets into the page without being escaped;
and if one did, the page's policy lets nothing run or load but its own script, which it
names by its digest.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any, Callable, NamedTuple, Union
from zlib import crc32

from drgn_tools.text import printable

#: Bytes that a section may take: eight of them and the rest are less than 5 MB.
ROOM = 560_000
# Characters of one string.
_LONGEST = 4000
# Of a flame graph: a frame's height, and how many callers of callers there may be.
_FRAME_HEIGHT = 18
_DEEPEST = 120


class Facts(NamedTuple):
    """Names and values."""

    rows: Sequence[tuple[str, str]]


class Table(NamedTuple):
    """Rows of cells."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] = frozenset()
    """Columns that are numbers."""
    marked: frozenset[int] = frozenset()
    """Rows to look at first."""


class Lines(NamedTuple):
    """Text as it was printed."""

    caption: str
    lines: Sequence[str]
    marked: frozenset[int] = frozenset()
    """Lines to look at first."""
    folded: bool = False
    """On a screen, only the caption is there until somebody wants more."""


class Picture(NamedTuple):
    """An SVG."""

    caption: str
    svg: str


class Frame(NamedTuple):
    """A function in a call chain."""

    name: str
    kind: str
    """task, user or kernel."""


Chain = tuple[Frame, ...]
"""A function's callers, the outermost first, and itself."""


class Flame(NamedTuple):
    """A flame graph."""

    caption: str
    chains: Mapping[Chain, int]
    """How many samples there are of each."""


class Hint(NamedTuple):
    """A command that shows more."""

    text: str
    command: str


Block = Union[Facts, Table, Lines, Picture, Flame, Hint]


class Section(NamedTuple):
    """A part of the report."""

    key: str
    title: str
    status: str
    """ok, partly, missing; or none: there is nothing of the kind."""
    summary: str
    """In a few words."""
    blocks: Sequence[Block]
    notes: Sequence[str]
    """What is missing, and why."""


class Report(NamedTuple):
    """All that is on the page."""

    title: str
    headline: str
    """What died of what."""
    died: bool
    """False if the kernel was alive."""
    verdicts: Sequence[tuple[str, str]]
    """Each a status as a section has it, and a line: of the dump, for instance."""
    facts: Facts
    trace: Lines
    """How it came to that."""
    sections: Sequence[Section]
    made: str
    """By what and when."""


class _Html(str):
    """Markup. Any other string is somebody's, and gets escaped."""

    __slots__ = ()


_NOTHING = _Html()
_NEWLINE = _Html("\n")
_VOID = frozenset(("img", "input", "meta"))


def _escaped(text: str) -> _Html:
    if isinstance(text, _Html):
        return text
    rest = len(text) - _LONGEST
    # Nothing is left in it that nobody would see, or see where it is not.
    shown = printable(text[:_LONGEST])
    return _Html(escape(f"{shown}… ({rest} characters more)" if rest > 0 else shown))


def _joined(*parts: str) -> _Html:
    return _Html("".join([_escaped(part) for part in parts]))


def _tag(name: str, /, *content: str, **attributes: str | None) -> _Html:
    # class_ is class and aria_label aria-label; what is None is left out.
    opened = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escaped(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return _Html(f"<{name}{opened}>")
    return _Html(f"<{name}{opened}>{_joined(*content)}</{name}>")


class _Room:
    # What a section may still take.
    def __init__(self) -> None:
        self.left = ROOM

    def taken(self, part: _Html) -> bool:
        size = len(part) if part.isascii() else len(part.encode())
        # What comes after something that is left out is left out, too.
        self.left = self.left - size if size <= self.left else 0
        return self.left > 0

    def fit(self, parts: Iterable[_Html], total: int, what: str) -> tuple[_Html, _Html]:
        # As many as there is room for, and what to say of the others.
        fitting: list[_Html] = []
        for part in parts:
            if not self.taken(part):
                rest = f"{total - len(fitting)} of {total} {what}"
                said = _tag("p", f"No room on this page for {rest}.", class_="note")
                return _Html("".join(fitting)), said
            fitting.append(part)
        return _Html("".join(fitting)), _NOTHING


def _figure(caption: str, content: _Html) -> _Html:
    return _tag("figure", _tag("figcaption", caption), content)


def _facts(block: Facts, room: _Room) -> _Html:
    rows = (
        _tag("div", _tag("dt", name), _tag("dd", value)) for name, value in block.rows
    )
    content, rest = room.fit(rows, len(block.rows), "facts")
    return _joined(_tag("dl", content), rest)


def _hot(at: int, marked: frozenset[int]) -> str | None:
    return "hot" if at in marked else None


def _table(block: Table, room: _Room) -> _Html:
    def row(tag: str, cells: Sequence[str], scope: str | None) -> Iterator[_Html]:
        for at, cell in enumerate(cells):
            class_ = "n" if at in block.numbers else None
            yield _tag(tag, cell, class_=class_, scope=scope)

    rows = (
        _tag("tr", *row("td", cells, None), class_=_hot(at, block.marked))
        for at, cells in enumerate(block.rows)
    )
    body, rest = room.fit(rows, len(block.rows), "rows")
    table = _tag(
        "table",
        _tag("thead", _tag("tr", *row("th", block.head, "col"))),
        _tag("tbody", body),
    )
    # What is too wide scrolls, with the keyboard too.
    scrolled = _tag(
        "div",
        table,
        class_="wide",
        tabindex="0",
        role="region",
        aria_label=block.caption,
    )
    return _joined(_figure(block.caption, scrolled), rest)


def _lines(block: Lines, room: _Room) -> _Html:
    lines = (
        _tag("span", line.expandtabs(), _NEWLINE, class_=_hot(at, block.marked))
        for at, line in enumerate(block.lines)
    )
    content, rest = room.fit(lines, len(block.lines), "lines")
    # A <pre> loses a newline that it begins with.
    text = _joined(_tag("pre", _NEWLINE, content, tabindex="0"), rest)
    if block.folded:
        return _tag("details", _tag("summary", block.caption), text)
    return _figure(block.caption, text)


def _picture(block: Picture, room: _Room) -> _Html:
    # As an image, nothing in it can run or change the page.
    data = _Html(base64.b64encode(block.svg.encode()).decode())
    image = _tag(
        "img", src=_joined(_Html("data:image/svg+xml;base64,"), data), alt=block.caption
    )
    if not room.taken(image):
        return _tag("p", "No room on this page for the picture.", class_="note")
    return _figure(block.caption, image)


class _Node:
    # Of the tree that call chains make.
    def __init__(self) -> None:
        self.count = 0
        self.callees: dict[Frame, _Node] = {}


class _Placed(NamedTuple):
    frame: Frame
    depth: int
    start: int
    samples: int


def _placed(chains: Mapping[Chain, int]) -> list[_Placed]:
    # Where in a flame graph each frame is, in samples; the widest first.
    root = _Node()
    for chain, count in chains.items():
        node = root
        node.count += count
        for frame in chain[:_DEEPEST]:
            node = node.callees.setdefault(frame, _Node())
            node.count += count
    placed = []
    todo = [(Frame("all", "task"), root, 0, 0)]
    while todo:
        frame, node, depth, start = todo.pop()
        placed.append(_Placed(frame, depth, start, node.count))
        for callee in sorted(node.callees):
            todo.append((callee, node.callees[callee], depth + 1, start))
            start += node.callees[callee].count
    return sorted(placed, key=lambda one: (-one.samples, one.depth, one.start))


def _flame(block: Flame, room: _Room) -> _Html:
    placed = _placed(block.chains)
    total = placed[0].samples
    deepest = max(one.depth for one in placed)

    def drawn(one: _Placed) -> _Html:
        share = f"{100 * one.samples / total:.4g}%"
        name = one.frame.name
        # Each a picture of its own, which cuts off what of the name is too long.
        return _tag(
            "svg",
            _tag("title", name, f": {one.samples} samples, {share}"),
            _tag("rect", width="100%", height="100%"),
            _tag("text", name, x="3", y="13"),
            class_=f"frame {one.frame.kind}{crc32(name.encode(errors='replace')) % 4}",
            x=f"{100 * one.start / total:.5g}%",
            y=str((deepest - one.depth) * _FRAME_HEIGHT),
            width=share,
            height=str(_FRAME_HEIGHT - 1),
        )

    frames, rest = room.fit(map(drawn, placed), len(placed), "frames")
    graph = _tag(
        "svg",
        frames,
        class_="flame",
        width="100%",
        height=str((deepest + 1) * _FRAME_HEIGHT),
        role="img",
        aria_label=block.caption,
    )
    return _joined(_figure(block.caption, graph), rest)


def _hint(block: Hint, room: _Room) -> _Html:
    return _tag("p", block.text, " ", _tag("code", block.command), class_="hint")


_BUILDERS: dict[type, Callable[[Any, _Room], _Html]] = {
    Facts: _facts,
    Table: _table,
    Lines: _lines,
    Picture: _picture,
    Flame: _flame,
    Hint: _hint,
}


def _block(block: Block, room: _Room) -> _Html:
    return _BUILDERS[type(block)](block, room)


def _status(status: str) -> _Html:
    return _tag("span", status, class_=f"status {status}")


def _section(section: Section) -> _Html:
    room = _Room()
    notes = [_tag("li", note) for note in section.notes]
    kept, rest = room.fit(notes, len(notes), "notes")
    blocks = [_block(block, room) for block in section.blocks]
    return _tag(
        "section",
        _tag("h2", section.title, " ", _status(section.status), id=section.key),
        _tag("p", section.summary, class_="summary"),
        _tag("ul", kept, class_="notes") if notes else _NOTHING,
        rest,
        *blocks,
        aria_labelledby=section.key,
    )


def _missing(sections: Sequence[Section]) -> Section:
    # Each reason once, with the sections that it holds for.
    reasons: dict[str, list[str]] = {}
    for section in sections:
        for note in section.notes:
            reasons.setdefault(note, []).append(section.title)
    rows = [(", ".join(titles), note) for note, titles in reasons.items()]
    table = Table("What this page lacks", ("SECTION", "WHAT, AND WHY"), rows)
    return Section(
        "missing",
        "What was missing",
        "partly" if rows else "ok",
        "" if rows else "Nothing: every section is whole.",
        [table] if rows else [],
        [],
    )


def _head(report: Report) -> _Html:
    room = _Room()
    verdicts = [
        _tag("li", _status(status), " ", text) for status, text in report.verdicts
    ]
    return _tag(
        "header",
        _tag("p", report.title, class_="title"),
        _tag("h1", report.headline, id="summary"),
        _tag("ul", *verdicts, class_="verdicts"),
        _tag(
            "div",
            _tag("div", _facts(report.facts, room)),
            _tag("div", _lines(report.trace, room)),
            class_="columns",
        ),
        class_="died" if report.died else None,
    )


def _contents(sections: Sequence[Section]) -> _Html:
    def item(key: str, title: str, *status: _Html) -> _Html:
        hits = _tag("span", class_="hits")
        return _tag("li", _tag("a", title, hits, *status, href=f"#{key}"))

    search = _tag(
        "div",
        _tag("label", "Find ", _tag("kbd", "/"), for_="find"),
        _tag("input", id="find", type="search", autocomplete="off", spellcheck="false"),
        _tag("output", id="found", for_="find"),
        _tag(
            "label",
            _tag("input", id="only", type="checkbox"),
            " only what matches",
        ),
        id="search",
        role="search",
    )
    items = [item(each.key, each.title, _status(each.status)) for each in sections]
    contents = _tag("ol", item("summary", "Summary"), *items)
    return _tag("nav", search, contents, aria_label="Contents and search")


def _policy(style: str, script: str) -> str:
    def digest(text: str) -> str:
        raw = hashlib.sha256(text.encode()).digest()
        return f"'sha256-{base64.b64encode(raw).decode()}'"

    return (
        f"default-src 'none'; img-src data:; style-src {digest(style)}; "
        f"script-src {digest(script)}; base-uri 'none'; form-action 'none'"
    )


def page(report: Report) -> str:
    """A report as an HTML page."""
    folder = files("drgn_tools.export")
    style = (folder / "report.css").read_text("utf-8")
    script = (folder / "report.js").read_text("utf-8")
    policy = _policy(style, script)
    sections = [*report.sections, _missing(report.sections)]
    head = _tag(
        "head",
        _tag("meta", charset="utf-8"),
        _tag("meta", http_equiv="Content-Security-Policy", content=policy),
        _tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        _tag("meta", name="referrer", content="no-referrer"),
        _tag("meta", name="color-scheme", content="light dark"),
        _tag("title", report.title),
        _tag("style", _Html(style)),
    )
    body = _tag(
        "body",
        _contents(sections),
        _tag(
            "main",
            _head(report),
            *map(_section, sections),
            _tag("footer", report.made),
        ),
        _tag("script", _Html(script)),
    )
    return f"<!DOCTYPE html>\n{_tag('html', head, body, lang='en')}\n"
