# SPDX-License-Identifier: LGPL-2.1-or-later
"""
How a printing helper prints
----------------------------

With no file given, to standard output, and what goes wrong is one line: it ends
``drgn -e``, a session goes on. With a file, errors are the caller's.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Callable

from drgn_tools.errors import DumpError
from drgn_tools.text import printable

if TYPE_CHECKING:
    from typing import Protocol

    from drgn import Program

    class File(Protocol):
        """What can be printed to."""

        def write(self, text: str, /) -> object: ...


class _Exit(DumpError, SystemExit):
    # An error that ends drgn -e with one line where nobody catches it.
    def __init__(self, family: str, message: str) -> None:
        super().__init__(message)
        # Which Python prints.
        self.code = f"{family}: {printable(message)}"


def _interactive(prog: Program) -> bool:
    # drgn has prog.config and outer_repl since 0.0.33.
    config = getattr(prog, "config", {})
    return "outer_repl" in config or hasattr(sys, "ps1") or bool(sys.flags.interactive)


def printing(
    family: str, prog: Program, file: File | None, work: Callable[[File], None]
) -> None:
    """
    Do what prints.

    :param family: of helpers; what messages begin with.
    :param file: where to; None for standard output.
    :raises DumpError: what *work* raises; LookupError, ValueError and FaultError
        likewise become one line, if no file is given.
    """
    if file is not None:
        work(file)
        return
    # drgn.FaultError is no subclass of the others.
    from drgn import FaultError

    try:
        work(sys.stdout)
        sys.stdout.flush()
    except (DumpError, LookupError, ValueError, FaultError) as error:
        _end(family, prog, error)
    except BrokenPipeError:
        # Whoever read our output has enough of it. What could not be printed,
        # Python would try to print again at its end.
        fd = os.open(os.devnull, os.O_WRONLY)
        os.dup2(fd, sys.stdout.fileno())
        os.close(fd)


def _end(family: str, prog: Program, error: Exception) -> None:
    message = one_line(error)
    if not _interactive(prog):
        raise _Exit(family, message) from None
    # Nor is a session the place for a traceback, and it goes on.
    say(family, message)


def one_line(error: Exception) -> str:
    """What an error says, for a person."""
    # str() of a KeyError is its argument in quotes.
    args = error.args
    whole = isinstance(error, KeyError) and len(args) == 1 and isinstance(args[0], str)
    return str(args[0] if whole else error)


def say(family: str, text: str) -> None:
    """One line on standard error."""
    print(f"{family}: {printable(text)}", file=sys.stderr)
