# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reports as pages: whatever strings a dump has, they are text and nothing else."""

from __future__ import annotations

import base64
import hashlib
import html
import itertools
import random
import re
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from drgn_tools.export.report_page import (
    ROOM,
    Block,
    Chain,
    Facts,
    Flame,
    Frame,
    Hint,
    Lines,
    Picture,
    Report,
    Section,
    Table,
    page,
)

from . import chromium
from .command import assert_refused, drgn_tools_forked

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "'><svg onload=alert(3)>",
    "</style><script>alert(4)</script>",
    "</script><script>alert(5)</script>",
    "</title></head><body onload=alert(6)>",
    "--><iframe src=javascript:alert(7)></iframe>",
    "]]><a href=javascript:alert(8)>x</a>",
    "javascript:alert(9)",
    "&lt;script&gt;alert(10)&lt;/script&gt;",
    "</pre></td></table></section><form action=//x.invalid>",
    "<meta http-equiv=refresh content='0;url=//x.invalid'>",
    "<base href=//x.invalid/><link rel=stylesheet href=//x.invalid/s.css>",
    "<!--",
    "<![CDATA[",
    "<textarea><noscript><plaintext>",
    "\x1b[2J\x1b]0;title\x07\x08\x7f\x9b31m",
    "\u202egnp.exe\u202c \u2066\u2069 \u200b\ufeff",
    "\udcff\ud800\0\r\n\v\f\u2028\u2029\x85",
    "{{7*7}} ${7*7} `alert(11)`",
    "`\" onmouseover=alert(12) x='",
)

Make = Callable[[], str]


def _report(text: Make, svg: str = "<svg/>") -> Report:
    """One with a string in each place where one may be."""
    chains: dict[Chain, int] = {
        (Frame(f"{n}{text()}", "task"), Frame(text(), "user"), Frame(text(), "")): n
        for n in range(1, 5)
    }
    blocks: list[Block] = [
        Facts([(text(), text())]),
        Table(
            text(),
            (text(), text()),
            [(text(), text()), (text(), text())],
            frozenset((1,)),
            frozenset((0,)),
        ),
        Lines(text(), [text(), text()], frozenset((1,))),
        Lines(text(), [text()], folded=True),
        Picture(text(), svg),
        Flame(text(), chains),
        Hint(text(), text()),
    ]
    statuses = ("ok", "partly", "missing", "none")
    sections = [
        Section(f"key{number}", text(), status, text(), blocks, [text(), text()])
        for number, status in enumerate(statuses)
    ]
    return Report(
        text(),
        text(),
        True,
        [(status, text()) for status in statuses],
        Facts([(text(), text())]),
        Lines(text(), [text()]),
        sections,
        text(),
    )


class _Tree(HTMLParser):
    """What a page consists of, as the standard library reads it."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.shape: list[str] = []
        self.pieces: list[str] = []
        self.values: list[str] = []
        self._stack: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # What a value may be is another test's.
        names = [name for name, _ in attrs]
        self.shape.append(f"<{tag} {' '.join(names)}>")
        self.values += [value for _, value in attrs if value is not None]

    def handle_endtag(self, tag: str) -> None:
        self.shape.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)

    def handle_comment(self, data: str) -> None:
        self.shape.append("<!--")

    def handle_pi(self, data: str) -> None:
        self.shape.append("<?")

    def unknown_decl(self, data: str) -> None:
        self.shape.append("<![")


def _own(text: str) -> str:
    """A page without its own style and script."""
    return re.sub(r"<(style|script)>.*?</\1>", r"<\1></\1>", text, flags=re.S)


PLAIN = _Tree(_own(page(_report(lambda: "x"))))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_strings_change_no_markup(text: str) -> None:
    tree = _Tree(_own(page(_report(lambda: text))))
    assert tree.shape == PLAIN.shape
    # All that is there twice: as text, and in attributes.
    shown = "".join(tree.pieces)
    assert shown.count(_visible(text)) >= 100
    assert not re.search("[\0-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e]", shown)


def _visible(text: str) -> str:
    # As Python's own repr() has what cannot be seen; bytes that are no UTF-8 as those.
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return re.sub(r"\\udc(?=[89a-f][0-9a-f])", r"\\x", shown)


def test_random_strings_change_no_markup() -> None:
    chance = random.Random(8)
    letters = [*"<>\"'&/=-![]`;: abc\\\0\n\r\t\x1b\u202e\ud800", *HOSTILE]
    # All different: what is the same is there once.
    number = itertools.count(100)
    plain = _Tree(_own(page(_report(lambda: f"{next(number)}x"))))

    def text() -> str:
        return (
            f"{next(number)}{''.join(chance.choices(letters, k=chance.randrange(9)))}"
        )

    for _ in range(50):
        assert _Tree(_own(page(_report(text)))).shape == plain.shape


def test_no_attribute_but_those_of_the_page_has_a_string_of_the_dump() -> None:
    """Only labels and what an image shows instead do."""
    tree = _Tree(page(_report(lambda: "HOSTILE")))
    with_it = {value for value in tree.values if "HOSTILE" in value}
    assert with_it == {"HOSTILE"}
    names = re.findall(r' ([a-z-]+)="HOSTILE"', page(_report(lambda: "HOSTILE")))
    assert set(names) == {"alt", "aria-label"}


def test_the_policy_names_what_may_run_by_its_digest() -> None:
    text = page(_report(lambda: "x"))
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', text)
    assert policy is not None
    rules = dict(
        rule.strip().split(" ", 1) for rule in html.unescape(policy[1]).split(";")
    )
    assert rules["default-src"] == "'none'"
    assert "unsafe" not in html.unescape(policy[1])
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.S)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    # Nor is any of what would need more there.
    assert not re.search(r"<[^>]* (on\w+|style|href=.(?!#)|action)=", _own(text))


@pytest.mark.parametrize("letter", ["x", "<", "\0", "€", '"'])
def test_no_dump_makes_a_page_too_large(letter: str) -> None:
    text = letter * 300
    blocks: list[Block] = [
        Table(text, (text,), [(text, text)] * 20_000),
        Lines(text, [text] * 20_000),
        Facts([(text, text)] * 20_000),
        Flame("x", {(Frame(f"{n}{text}", "user"),): 1 for n in range(20_000)}),
    ]
    sections = [
        Section(f"s{n}", text, "ok", text, blocks[n % 4 :], [text] * 1000)
        for n in range(7)
    ]
    report = _report(lambda: "x")._replace(sections=sections)
    data = page(report).encode()
    assert len(data) < 5_000_000
    # It has as much as may be, and says what it has not.
    assert len(data) > 6 * ROOM
    assert data.count(b"No room on this page for ") >= 7


def test_long_strings_are_cut_and_that_is_said() -> None:
    text = page(_report(lambda: "y" * 10_000))
    assert "y" * 4000 + "… (6000 characters more)" in text
    assert "y" * 4001 not in text


class _Frames(HTMLParser):
    """The frames of a flame graph."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[dict[str, Any]] = []
        self._in = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        if tag == "svg" and str(known.get("class")).startswith("frame "):
            self.found.append({**known, "text": ""})
        self._in = tag

    def handle_data(self, data: str) -> None:
        if self._in == "text" and self.found:
            self.found[-1]["text"] += data
        self._in = ""


def test_flame_graph_has_each_chain_as_wide_as_its_samples() -> None:
    def chain(*names: str) -> tuple[Frame, ...]:
        return tuple(Frame(name, "kernel") for name in names)

    chains = {chain("a", "b"): 6, chain("a", "c"): 1, chain("a"): 1, chain("d"): 2}
    section = Section("s", "s", "ok", "", [Flame("f", chains)], [])
    text = page(_report(lambda: "x")._replace(sections=[section]))
    places = {
        frame["text"]: (
            float(frame["x"].rstrip("%")),
            float(frame["width"].rstrip("%")),
            int(frame["y"]),
        )
        for frame in _Frames(text).found
    }
    (bottom, middle, top) = sorted({y for _, _, y in places.values()}, reverse=True)
    assert places == {
        "all": (0, 100, bottom),
        "a": (0, 80, middle),
        "b": (0, 60, top),
        "c": (60, 10, top),
        "d": (80, 20, middle),
    }


def test_hostile_page_in_a_browser(tmp_path: Path) -> None:
    """Chromium runs nothing of it, asks for nothing, and shows it all as text."""
    shapes = []
    for number, text in enumerate(["x", " ".join(HOSTILE), HOSTILE[0], HOSTILE[4]]):
        path = tmp_path / f"{number}.html"
        path.write_text(page(_report(text.__str__)), "utf-8")
        with chromium.opened(path) as opened:
            shapes.append(
                opened.evaluate(
                    "[...document.querySelectorAll('*')].map(e => e.tagName).join()"
                )
            )
            headline = opened.evaluate("document.querySelector('h1').textContent")
            assert headline == _visible(text)
            assert opened.said == [] and opened.dialogs == [] and opened.requests == []
    assert len(set(shapes)) == 1


SCRIPTED = '<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


def test_policy_stops_what_would_slip_through(tmp_path: Path) -> None:
    """Were a string not escaped, Chromium would refuse to run it, and say so."""
    whole = page(_report(lambda: "x", SCRIPTED))
    slipped = "<script>alert(1)</script><img src=https://x.invalid/ onerror=alert(2)>"
    injected = whole.replace("<h1", f"{slipped}<h1")
    path = tmp_path / "injected.html"
    path.write_text(injected, "utf-8")
    with chromium.opened(path) as opened:
        assert opened.dialogs == []
        assert any("Content Security Policy" in text for text in opened.said)


def test_search(tmp_path: Path) -> None:
    lines = ["nothing", "a Needle, and a needle"]
    seen = "[...document.querySelectorAll('main tr, main pre > span')]"
    seen += ".filter(e => e.checkVisibility()).map(e => e.textContent.trim())"
    words = iter(f"word{number}" for number in range(10_000))
    rows = [
        (f"row {number}", "needle" if number == 7 else "hay") for number in range(9)
    ]
    blocks: list[Block] = [
        Table("t", ("a", "b"), rows),
        Lines("folded", lines, folded=True),
    ]
    section = Section("s", "title", "ok", "", blocks, [])
    report = _report(lambda: next(words))
    report = report._replace(sections=[*report.sections, section])
    path = tmp_path / "search.html"
    path.write_text(page(report), "utf-8")
    with chromium.opened(path) as opened:
        before = opened.evaluate(seen)
        opened.press("/", 191)
        opened.type("needle")
        opened.wait("document.getElementById('found').textContent.startsWith('3 hits')")
        hits = "document.querySelector('nav a[href=\"#s\"] .hits').textContent"
        assert opened.evaluate(hits) == "3"
        assert opened.evaluate("CSS.highlights.get('found').size") == 3
        # The second one is in what is folded.
        is_open = "document.querySelector('#s ~ details').open"
        for place, unfolded in (("1", False), ("2", True), ("3", True), ("1", True)):
            opened.press("Enter", 13)
            said = opened.evaluate("document.getElementById('found').textContent")
            assert said == f"{place} of 3 hits"
            assert opened.evaluate(is_open) == unfolded
        opened.press("Enter", 13, shift=True)
        said = opened.evaluate("document.getElementById('found').textContent")
        assert said == "3 of 3 hits"
        opened.evaluate("document.getElementById('only').click()")
        assert opened.evaluate(seen) == ["ab", "row 7needle", lines[1]]
        opened.press("Escape", 27)
        # And what was unfolded.
        assert set(opened.evaluate(seen)) == {*before, "nothing", lines[1]}
        assert opened.evaluate("CSS.highlights.get('found').size") == 0
        assert opened.said == []


def test_flame_graph_zooms(tmp_path: Path) -> None:
    path = tmp_path / "flame.html"
    chains = {
        (Frame("a", "user"), Frame("b", "user")): 3,
        (Frame("c", "user"),): 1,
    }
    section = Section("s", "s", "ok", "", [Flame("f", chains)], [])
    path.write_text(page(_report(lambda: "x")._replace(sections=[section])), "utf-8")
    widths = """Object.fromEntries([...document.querySelectorAll('.frame')]
        .filter(e => e.checkVisibility())
        .map(e => [e.querySelector('text').textContent, e.getAttribute('width')]))"""
    frame = """[...document.querySelectorAll('.frame')].find(
        e => e.querySelector('text').textContent === 'b')"""
    with chromium.opened(path) as opened:
        before = {"all": "100%", "a": "75%", "b": "75%", "c": "25%"}
        assert opened.evaluate(widths) == before
        click = "new MouseEvent('click', {bubbles: true})"
        opened.evaluate(f"{frame}.querySelector('rect').dispatchEvent({click})")
        assert opened.evaluate(widths) == {"all": "100%", "a": "100%", "b": "100%"}
        opened.evaluate("document.querySelector('.reset').click()")
        assert opened.evaluate(widths) == before
        assert opened.said == []


def test_everything_is_printed(tmp_path: Path) -> None:
    """Also what is folded; not what paper cannot do."""
    path = tmp_path / "page.html"
    lines = [f"line-{number}" for number in range(300)]
    blocks: list[Block] = [Lines("more", lines, folded=True)]
    section = Section("s", "s", "ok", "", blocks, [])
    path.write_text(page(_report(lambda: "x")._replace(sections=[section])), "utf-8")
    with chromium.opened(path) as opened:
        opened.pdf(tmp_path / "page.pdf")
        assert not opened.evaluate("document.querySelector('details').open")
    command = ("pdftotext", tmp_path / "page.pdf", "-")
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert re.findall(r"line-\d+", text) == lines
    assert "only what matches" not in text


def test_command_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    no_dump = tmp_path / "no-dump"
    no_dump.write_bytes(b"no dump at all" * 1000)
    no_page = tmp_path / "no-dump.html"
    no_page.write_bytes(b"no dump at all")
    page_path = tmp_path / "report.html"
    page_path.write_text("old")
    for arguments, why in (
        ((tmp_path / "none", "-o", tmp_path / "new.html"), "No such file"),
        ((no_dump, "-o", tmp_path / "new.html"), "no-dump"),
        ((no_dump, "-o", page_path), "exists"),
        ((no_page, "-f", "-o", no_page), "the input itself"),
        ((no_dump, "-o", tmp_path / "no" / "such.html"), "No such file"),
    ):
        assert why in assert_refused(drgn_tools_forked("report", *arguments))
    assert page_path.read_text() == "old"
    names = ["no-dump", "no-dump.html", "report.html"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
