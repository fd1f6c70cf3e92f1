# SPDX-License-Identifier: LGPL-2.1-or-later
"""The code blocks of README.md and docs, and whether output is what they show.

All of them are fenced, and say what they are:

| ``` | |
|---|---|
| console | commands after `$ `, and what they print |
| pycon | Python after `>>> ` in drgn on a dump, `%` commands included, and output |
| sh, python | commands and code without output |
| synopsis | how a command is called |
| conf | lines of a configuration |
| text | anything else: diagrams, formats |

Comments before them say more:

    <!-- dump: zram 6.12-bench-zram vmcore, 200 = parent.pid -->
    <!-- status: 1 -->
    <!-- not run: makes guests -->

The first holds up to the next of its kind: which dump `vmcore` is, and which numbers
shown are others where guests have been made anew. The others are for the next block.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

RUN = ("console", "pycon", "sh", "python")
KINDS = (*RUN, "synopsis", "conf", "text")


class Block(NamedTuple):
    """A code block."""

    page: Path
    line: int
    """Of its first line, from 1."""
    kind: str
    lines: list[str]
    dump: str
    """What the last `dump:` said, or nothing."""
    status: int
    """The exit status that the last command is to have."""
    not_run: str
    """Why it is not run; empty if it is."""

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


class Example(NamedTuple):
    """A command and what it is shown to print."""

    command: str
    output: list[str]


# Between these, a page is written by a program.
_GENERATED = re.compile(r"<!-- (?:end of )?results -->")
_COMMENT = re.compile(r"<!-- (dump|status|not run): (.*) -->")


def blocks(page: Path) -> list[Block]:
    """Return the code blocks of a page.

    :raises ValueError: a block is not fenced, not ended, or of no known kind.
    """
    return list(_blocks(page))


def _blocks(page: Path) -> Iterator[Block]:
    dump, status, not_run = "", 0, ""
    kind, start, held = "", 0, list[str]()
    for number, line in enumerate(page.read_text().splitlines(), 1):
        where = f"{page.name}:{number}"
        if start:
            if line.strip() != "```":
                held.append(line)
                continue
            yield Block(page, start, kind, held, dump, status, not_run)
            start, status, not_run = 0, 0, ""
        elif line.lstrip().startswith("```"):
            kind, start, held = line[3:], number + 1, []
            if kind not in KINDS or not line.startswith("```"):
                raise ValueError(f"{where}: a code block is one of {', '.join(KINDS)}")
        elif line.startswith(("    ", "\t", "~~~")):
            raise ValueError(f"{where}: a code block that is not fenced")
        elif found := _COMMENT.fullmatch(line):
            if found[1] == "dump":
                dump = found[2]
            elif found[1] == "status":
                status = int(found[2])
            else:
                not_run = found[2]
        elif "<!--" in line and not _GENERATED.fullmatch(line):
            raise ValueError(f"{where}: an unknown comment")
    if start:
        raise ValueError(f"{page.name}: a code block without an end")


def examples(block: Block) -> list[Example]:
    """Return the commands of a block that has them.

    :raises ValueError: it does not begin with one.
    """
    first, more = (">>> ", "... ") if block.kind == "pycon" else ("$ ", "> ")
    found: list[Example] = []
    if block.kind == "sh":
        return [Example(command, []) for command in _commands(block)]
    for line in block.lines:
        if line.startswith(first):
            found.append(Example(line[len(first) :], []))
        elif not found:
            raise ValueError(f"{block}: output before a command")
        elif not found[-1].output and line.startswith(more.rstrip()):
            command = f"{found[-1].command}\n{line[len(more) :]}"
            found[-1] = Example(command, [])
        else:
            found[-1].output.append(line)
    return found


def _commands(block: Block) -> list[str]:
    """Return the commands of a block without output; a command may have many lines."""
    text = "\n".join(block.lines).replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


# --- whether output is what is shown

_SIZE = re.compile(r"\b\d[\d.,]* (?:bytes|[KMGT]iB|[KMGT]?B)\b")
_DAY = re.compile(r"\b(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) [A-Z][a-z][a-z]\b")
# Not the digits of words: lz4, zram0. A word of only letters is no number.
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_])-?(?:0x[0-9a-f]+|(?=[a-f]*\d)[0-9a-f]{6,}|\d+(?:[.,:]\d+)*)"
    r"(?![A-Za-z0-9_])"
)


def canonical(line: str) -> str:
    """Return a line without what differs from dump to dump: numbers, sizes, blanks."""
    line = _DAY.sub("DAY", _SIZE.sub("SIZE", line))
    return " ".join(_NUMBER.sub("#", line).split())


def difference(shown: list[str], printed: list[str]) -> str | None:
    """Return the first line shown that is not printed, or None if all are.

    `…` stands for any lines, or within a line for any text; it may be the number of
    them that follows.
    """
    wanted = [canonical(line) for line in shown]
    there = [canonical(line) for line in printed]
    # What has been matched so far may end at several places, after a `…`.
    places = {0}
    for line, asked in zip(shown, wanted):
        if asked == "…":
            places = set(range(min(places), len(there) + 1))
            continue
        pattern = ".*".join(re.escape(part.strip()) for part in asked.split("…"))
        places = {
            at + 1
            for at in places
            if at < len(there) and re.fullmatch(pattern, there[at])
        }
        if not places:
            return line
    return None if len(there) in places else "(more is printed than is shown)"
