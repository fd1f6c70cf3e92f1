# SPDX-License-Identifier: LGPL-2.1-or-later
"""What drives terminals, and what a terminal gets when commands print it."""

from __future__ import annotations

import io
import mmap
import os
import pty
import re
import termios
import unicodedata
from pathlib import Path

from tests.command import COMMAND, ROOT, environment, run_as
from tests.terminal import rest

#: No NUL and no newline, which end strings and lines: clear, colour, window title,
#: hyperlink, clipboard, device attributes, C1 as a character; bell, backspace, return,
#: delete; direction of text, marks, line separator, tag.
HOSTILE = (
    "\x1b[2J\x1b[31m\x1b]0;t\x07\x1b]8;;x:\x1b\\\x1b]52;c;eA==\x07\x1b[c\x9b2J\x90q\x9c"
    "\x08\r\x0b\x0c\x7f\x85\u202e\u2066\u200f\u061c\ufeff\u2028\U000e0041"
)
#: The same with what is no UTF-8: C1 as bytes among it.
HOSTILE_BYTES = b"\x9b2J\xff\xc3\xed\xa0\x80" + HOSTILE.encode()

# How progress.py writes a line over.
_PROGRESS = re.compile(rb"\r([^\r\n\x1b]*)\x1b\[K|( \.\.\.)\r")


def harmless(said: bytes | str) -> str:
    """What was printed: printable text, tabs and newlines, in UTF-8."""
    text = said if isinstance(said, str) else said.decode()
    # By Unicode's categories: control, format, surrogate, private, unassigned; line
    # and paragraph separators.
    for found in sorted({*text} - {"\n", "\t"}):
        category = unicodedata.category(found)
        if category[0] == "C" or category in ("Zl", "Zp"):
            before, _, after = text.partition(found)
            raise AssertionError(f"{before[-60:]!r} {found!r} {after[:20]!r}")
    return text


def at_terminal(program: str, *arguments: object, fresh: bool = False) -> bytes:
    """
    What a command writes to a terminal, which is all three streams: without colours,
    and what is written over as lines. In a copy of this process, or in one of its own:
    where drgn has read debugging symbols, whose threads a copy would wait for.
    """
    pid, terminal = pty.fork()
    if not pid:
        settings = termios.tcgetattr(1)
        # Newlines stay what they are.
        settings[1] &= ~termios.OPOST
        termios.tcsetattr(1, termios.TCSANOW, settings)
        os.environ.clear()
        os.environ.update(environment(NO_COLOR="1", TERM="xterm"))
        if fresh:
            assert program == "drgn-tools"
            os.execv(COMMAND[0], [*COMMAND, *map(str, arguments)])
        run_as(program, *arguments)
    return _PROGRESS.sub(rb"\1\2\n", rest(pid, terminal))


class Tty(io.StringIO):
    """A terminal for those that print to what they are given."""

    def isatty(self) -> bool:
        return True


# --- dumps

_WORD = r"[A-Za-z_][A-Za-z0-9_./:-]{3,}"


def words(text: str) -> set[bytes]:
    """Words that are a dump's: in no source of ours."""
    ours = "\n".join(path.read_text() for path in ROOT.glob("drgn_tools/**/*.py"))
    found = set(re.findall(_WORD, text))
    return {word.encode() for word in found if word not in ours}


def spoil(path: Path, words: set[bytes]) -> int:
    """Put what drives terminals in the place of words of a dump; how often."""
    count = 0
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        for found in re.finditer(_WORD.encode(), memory):
            if found[0] in words:
                # Each begins with something else.
                start = count * 5 % len(HOSTILE_BYTES)
                new = (HOSTILE_BYTES[start:] + HOSTILE_BYTES) * 4
                size = min(len(found[0]), len(new))
                memory[found.start() : found.start() + size] = new[:size]
                count += 1
        # It has the memory.
        del found
    return count
