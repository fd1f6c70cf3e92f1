# SPDX-License-Identifier: LGPL-2.1-or-later
"""Progress of long work: one line on a terminal, nothing in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from drgn_tools.text import binary_size, printable, styled

_INTERVAL = 0.2
_silent = False


def silence() -> None:
    """Show no progress from now on, on no terminal."""
    global _silent
    _silent = True


def warn(text: str) -> None:
    """One line on standard error, silent or not."""
    if sys.stderr is not None:
        label = styled("warning:", "yellow", sys.stderr)
        print(f"{label} {printable(text)}", file=sys.stderr)


def say_written(path: str, size: int, quiet: bool) -> None:
    """One line on standard error, unless *quiet*: how large a file became."""
    if not quiet and sys.stderr is not None:
        print(printable(f"{path}: {binary_size(size)}"), file=sys.stderr)


class Printed:
    """Standard output. On a terminal beside it, a line says how much went there."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._size = 0

    def write(self, text: str, /) -> int:
        """As a file's."""
        self._size += len(text)
        self._progress.update(self._size)
        return sys.stdout.write(text)


@contextlib.contextmanager
def printed() -> Iterator[Printed]:
    """Where a command prints what may be much."""
    with Progress("printing", None) as progress:
        # There, what is printed shows it.
        progress.terminal &= not sys.stdout.isatty()
        progress.begin()
        yield Printed(progress)


@contextlib.contextmanager
def busy(what: str) -> Iterator[None]:
    """A line while something is done that cannot tell how far it is."""
    with Progress(what, None) as progress:
        progress.begin()
        yield


class Progress:
    """
    A line that is written over while work goes on.

    :param what: what is being done.
    :param total: how much there is to do, in any unit; None if nobody knows, and
        then what is done is in bytes.
    """

    def __init__(self, what: str, total: int | None) -> None:
        self._what = printable(what)
        self._total = total
        self._start = time.monotonic()
        self._next = self._start + _INTERVAL
        self._shown = False
        shown = not _silent and sys.stderr is not None
        #: Whether it is shown.
        self.terminal = shown and sys.stderr.isatty()

    def begin(self) -> None:
        """Show that it has begun."""
        if self.terminal:
            self._shown = True
            # What is said meanwhile takes its place.
            print(f"{self._what} ...", end="\r", file=sys.stderr, flush=True)

    def update(self, done: int) -> None:
        """Show that *done* of the total is done, unless that was just shown."""
        now = time.monotonic()
        if not self.terminal or now < self._next:
            return
        self._next = now + _INTERVAL
        self._shown = True
        if self._total is None:
            text = binary_size(done)
        else:
            part = min(1.0, done / max(1, self._total))
            left = (now - self._start) * (1 - part) / part if part else 0
            text = f"{part:4.0%}, {left:.0f} s left"
        print(
            f"\r{self._what}: {text}\x1b[K",
            end="",
            file=sys.stderr,
            flush=True,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
