# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Sections of a report as they grow
---------------------------------

What all sections of :mod:`drgn_tools.report` have in common. Whatever goes wrong while
one is gathered costs the rest of it, and is said.
"""

from __future__ import annotations

import datetime
import shlex
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, TypeVar

from drgn import FaultError

from drgn_tools.errors import DumpError
from drgn_tools.export.report_page import Block, Section
from drgn_tools.printing import one_line
from drgn_tools.vmcore import Vmcore

if TYPE_CHECKING:
    from drgn import Program

    from drgn_tools.kernel_log import LogRecord

_T = TypeVar("_T")

# Seconds that loops of a section may take; hardly any takes one, but for the stacks of
# thousands of tasks.
_PATIENCE = 12
# Notes of one section.
_NOTES = 40


class Dump(NamedTuple):
    """What a report is made from."""

    path: str
    vmcore: Vmcore
    prog: Program | None
    why_no_prog: str
    """Empty if there is one."""
    symbols: Sequence[str]
    """Files with debugging symbols that it was given."""
    jobs: int
    """How many processes may work on it."""
    records: list[LogRecord]
    """Of the kernel log."""
    log_faults: list[str]
    """Why not all of them are there."""


class Draft:
    """A section as it grows."""

    def __init__(self) -> None:
        self.summary = ""
        """In a few words."""
        self.blocks: list[Block] = []
        self.notes: dict[str, int] = {}
        """What is missing and why, and how often that was said."""
        self.lacking: dict[str, list[str]] = {}
        """By the reason, whose something is missing."""
        self.absent = False
        """The kernel has nothing of the kind."""
        self._end = time.monotonic() + _PATIENCE

    def add(self, *blocks: Block) -> None:
        """Put something into the section."""
        self.blocks += blocks

    def note(self, text: str) -> None:
        """Say what is missing, and why."""
        # There may be one for each of a million records.
        if text in self.notes or len(self.notes) < _NOTES:
            self.notes[text] = self.notes.get(text, 0) + 1

    def lack(self, who: str, why: str) -> None:
        """Say why something of somebody's is missing: each reason comes once."""
        if why in self.lacking or len(self.lacking) < _NOTES:
            self.lacking.setdefault(why, []).append(who)

    def some(self, things: Iterable[_T], what: str, most: int) -> Iterator[_T]:
        """
        Iterate over as many as there is time for; that it was not all is noted.

        :param most: how many that is at the most.
        """
        for number, thing in enumerate(things):
            if number == most:
                self.note(f"only {most} {what} are looked at")
                return
            if time.monotonic() > self._end:
                self.note(f"it takes too long: only {number} {what} are looked at")
                return
            yield thing

    def section(self, key: str, title: str) -> Section:
        """The section as it is now."""
        notes = [
            f"{text} ({count} times)" if count > 1 else text
            for text, count in self.notes.items()
        ]
        for why, who in self.lacking.items():
            more = f" and {len(who) - 8} more" if len(who) > 8 else ""
            notes.append(f"{', '.join(who[:8])}{more}: {why}")
        if self.absent:
            return Section(key, title, "none", ", ".join(self.notes), [], [])
        if notes:
            status = "partly" if self.blocks else "missing"
        else:
            status = "ok" if self.blocks else "none"
        return Section(key, title, status, self.summary, self.blocks, notes)


def reason(error: Exception) -> str:
    """What an error says, for a person."""
    # What our own code and drgn raise says what is wrong with the dump; what else a
    # damaged one leads to needs its name.
    if isinstance(error, (DumpError, FaultError, LookupError, ValueError)):
        return one_line(error) or type(error).__name__
    return f"{type(error).__name__}: {one_line(error)}"


# Commands that know no debugging symbols.
_WITHOUT_SYMBOLS = {"dmesg", "pages"}


def command(dump: Dump, name: str, *words: str) -> str:
    """A command that prints more of a dump, with the symbols that the report had."""
    files = () if name in _WITHOUT_SYMBOLS else dump.symbols
    options = [word for path in files for word in ("--symbols", path)]
    return shlex.join(("drgn-tools", name, *words, *options, dump.path))


def opened(dump: Dump) -> Program:
    """
    The dump in drgn.

    :raises DumpError: if drgn cannot open it.
    """
    if dump.prog is None:
        raise DumpError(dump.why_no_prog)
    return dump.prog


def value(read: Callable[..., Any], *args: Any) -> Any:
    """What is read; None of what this kernel has not, or the dump not, or damaged."""
    try:
        return read(*args)
    except Exception:
        return None


def utc(seconds: int) -> str:
    """A time since 1970, for people."""
    try:
        when = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    except (OverflowError, ValueError, OSError):
        return str(seconds)
    return f"{when:%Y-%m-%d %H:%M:%S} UTC"
