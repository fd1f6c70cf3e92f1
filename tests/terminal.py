# SPDX-License-Identifier: LGPL-2.1-or-later
"""A program at a terminal of its own, with somebody who types."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

# What moves a cursor or sets a mode.
_CONTROL = re.compile(rb"\x1b(\[[0-9;?]*[A-Za-z]|[=>])|\r|\x07")
# Emulators run beside this.
_PATIENCE = 180.0


def rest(pid: int, terminal: int) -> bytes:
    """What a process still writes to its terminal until it ends."""
    said = b""
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:
            break
        said += piece
    os.waitpid(pid, 0)
    os.close(terminal)
    return said


class Terminal:
    """A process whose terminal is wide enough for any line."""

    def __init__(
        self, argv: Sequence[str], environment: Mapping[str, str], prompt: str
    ) -> None:
        self._prompt = prompt
        self._pid, self._fd = pty.fork()
        if not self._pid:
            os.execve(argv[0], [*argv], {**environment, "TERM": "xterm"})
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("4H", 2000, 2000, 0, 0))
        self._raw = b""
        self.greeting = self._answer()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._fd)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def _wait(self, pattern: str) -> str:
        # Until what is to be seen ends in something; all of it.
        until = time.monotonic() + _PATIENCE
        while True:
            seen = _CONTROL.sub(b"", self._raw).decode(errors="backslashreplace")
            if re.search(f"(?:{pattern})\\Z", seen):
                return seen
            left = max(0.0, until - time.monotonic())
            ready, _, _ = select.select([self._fd], [], [], left)
            assert ready, f"no {pattern!r} at the end of {seen!r}"
            try:
                got = os.read(self._fd, 1 << 16)
            except OSError:  # Of a terminal that nobody has open.
                got = b""
            assert got, f"it has ended: {seen!r}"
            self._raw += got

    def _answer(self) -> str:
        seen = self._wait(re.escape(self._prompt))
        self._raw = b""
        return seen[: -len(self._prompt)]

    def ask(self, line: str) -> str:
        """Type a line; return what is printed until the prompt is there again."""
        os.write(self._fd, f"{line}\n".encode())
        # What is typed can be seen.
        return self._answer().partition("\n")[2]

    def hints(self, line: str) -> list[str]:
        """Type a beginning and two tabs, and take it back; return what is offered."""
        os.write(self._fd, f"{line}\t\t".encode())
        again = re.escape(self._prompt + line)
        seen = self._wait(rf"{re.escape(line)}\n[^\n]+\n{again}")
        # All that is left of the cursor.
        os.write(self._fd, b"\x15\n")
        self._answer()
        return seen.split("\n")[1].split()

    def to_prompt(self, prompt: str, keys: str) -> str:
        """Press keys that lead to another prompt; return what is printed."""
        self._prompt = prompt
        os.write(self._fd, keys.encode())
        return self._answer()
