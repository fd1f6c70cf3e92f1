# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The commands on hostile files, and with hostile arguments
---------------------------------------------------------

In this process: as they run, but for the end of the process. They end with 0, 1 or 2,
say why, and never show a traceback or drive a terminal.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import sys
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from drgn_tools import __main__ as main
from drgn_tools import makedumpfile, start
from drgn_tools.errors import STOP_SIGNALS
from tests.command import Outcome

# What no text for people has: all control characters but for line ends, tabs and the
# carriage return of a progress line.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f\u202a-\u202e]")


class Line(NamedTuple):
    """A command line; DUMP is for the input, OUT for a file that is not there."""

    words: tuple[str, ...]
    makedumpfile: bool = False


LINES = (
    Line(("info", "DUMP")),
    Line(("dmesg", "DUMP")),
    Line(("extract", "--jobs=1", "--dry-run", "DUMP", "OUT")),
    Line(("extract", "--jobs=1", "DUMP", "OUT")),
    Line(("extract", "--jobs=1", "-d0", "-E", "DUMP", "OUT")),
    Line(("extract", "--jobs=1", "-d1", "--partial", "-F", "DUMP")),
    Line(("verify", "--jobs=1", "DUMP")),
    Line(("pstore", "--raw", "DUMP")),
    Line(("pstore", "--json", "--raw", "DUMP")),
    Line(("-R", "OUT"), True),
    Line(("--dump-dmesg", "DUMP", "OUT"), True),
    Line(("-d", "31", "--num-threads", "1", "DUMP", "OUT"), True),
)


def run(words: tuple[str, ...], *, as_makedumpfile: bool = False) -> Outcome:
    """Run a command in this process."""
    name = "drgn-makedumpfile" if as_makedumpfile else "drgn-tools"
    written = io.BytesIO()
    out = io.TextIOWrapper(written, encoding="utf-8")
    err = io.StringIO()
    before = sys.argv, {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        sys.argv = [name, *words]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = start._run(
                name,
                (lambda: makedumpfile._command(list(words)))
                if as_makedumpfile
                else main._run,
            )
    finally:
        sys.argv = before[0]
        for number, handler in before[1].items():
            signal.signal(number, handler)
    out.flush()
    raw = written.getvalue()
    return Outcome(status, raw.decode("utf-8", "replace"), err.getvalue())


def check(outcome: Outcome, binary: bool = False, words: int = 0) -> None:
    """
    What goes for every command, whatever its input.

    :param words: bytes of the command line, of which a line may have so many escaped.
    """
    assert outcome.status in (0, 1, 2), outcome.status
    said = outcome.stderr if binary else outcome.stdout + outcome.stderr
    assert "Traceback" not in said, said
    found = _CONTROL.search(said)
    assert found is None, said[max(0, found.start() - 50) :][:100]
    if outcome.status:
        assert outcome.stderr or outcome.stdout, outcome
        longest = max(map(len, outcome.stderr.splitlines()), default=0)
        assert longest < 2000 + 4 * words


@contextlib.contextmanager
def _standard_input(path: str) -> Iterator[None]:
    # As descriptor 0, which is what is read.
    saved = os.dup(0)
    fd = os.open(path, os.O_RDONLY)
    try:
        os.dup2(fd, 0)
        yield
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.close(fd)


def run_line(line: Line, dump: str, out: str) -> Outcome:
    """One of :data:`LINES`."""
    words = tuple({"DUMP": dump, "OUT": out}.get(word, word) for word in line.words)
    with contextlib.ExitStack() as stack:
        if "-R" in words:
            stack.enter_context(_standard_input(dump))
        try:
            return run(words, as_makedumpfile=line.makedumpfile)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(out)


# --- readers ----------------------------------------------------------------------


#: Of so many inputs, one has worker processes.
FORKED = 64


def _no_process() -> int:
    raise BlockingIOError("no process could be started")


@contextlib.contextmanager
def _quick(data: bytes) -> Iterator[None]:
    # That it reaches the disk is not what this is for, and slow; so are processes:
    # mostly it is as where none can be started, and all is done in this one.
    before: Any = os.fsync, os.fork
    changed: Any = os
    changed.fsync = lambda fd: None
    if zlib.crc32(data) % FORKED:
        changed.fork = _no_process
    try:
        yield
    finally:
        changed.fsync, changed.fork = before


def read_line(data: bytes, dump: str, out: str) -> None:
    """The first byte says which of :data:`LINES`; the dump is there already."""
    line = LINES[(data[0] if data else 0) % len(LINES)]
    with _quick(data):
        outcome = run_line(line, dump, out)
    check(outcome, binary="-F" in line.words)


# Words of command lines, and what else people and scripts write.
_WORDS = (
    *("info", "dmesg", "extract", "verify", "pstore", "dump", "out", "out2"),
    *("-d", "31", "-d31", "1,0", "--jobs", "--jobs=1", "1", "-E", "-F", "--split"),
    *("--compress", "zstd:3", "none", "--exclude", "cache,anon", "--keep", "-L"),
    *("-i", "--partial", "--dry-run", "--sha256", "-f", "--help", "--layout"),
    *("record_size=64k,ecc=1", "--json", "--boot", "-1", "--raw", "--dump-dmesg"),
)


def argument_seeds() -> list[bytes]:
    """Words with zeros between them; drgn-makedumpfile's begin with one."""
    lines = [
        *("info dump", "dmesg --partial dump", "extract -d 31 --jobs=1 dump out"),
        *("extract --compress zstd:3 --exclude cache,anon dump out", "verify dump"),
        *("extract --split -L 100000 dump out out2", "pstore --raw dump --json"),
        *("pstore --raw dump --layout record_size=64k,ecc=1 --boot -1", "--help"),
        *(" -R out", " --dump-dmesg dump out", " -d 31,1 -F dump", " -E -f dump out"),
        *(" --split dump out out2", " --reassemble dump out", " -i dump -x dump dump"),
    ]
    return [line.replace(" ", "\0").encode() for line in (*lines, " ".join(_WORDS))]


def read_arguments(data: bytes, folder: str) -> None:
    """*folder* has a file named dump."""
    # Nothing is to be written elsewhere, nor this machine's own memory read.
    words = data.decode("utf-8", "surrogateescape").replace("/", "").split("\0")
    here = os.getcwd()
    os.chdir(folder)
    try:
        with _quick(data), _standard_input(os.devnull):
            if words and not words[0]:
                outcome = run(tuple(words[1:]), as_makedumpfile=True)
            else:
                outcome = run(tuple(words))
        check(outcome, binary=not outcome.status, words=len(data))
    finally:
        for name in os.listdir("."):
            if name != "dump":
                with contextlib.suppress(OSError):
                    os.unlink(name)
        os.chdir(here)
