# SPDX-License-Identifier: LGPL-2.1-or-later
"""From a program's start to its end: signals, what cannot be printed, exit status."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from types import FrameType
from typing import Callable, NoReturn

from drgn_tools.errors import STOP_SIGNALS, DumpError, Stopped
from drgn_tools.text import printable, styled


def _stop(signum: int, frame: FrameType | None) -> None:
    for number in STOP_SIGNALS:
        # Tidying up is not to be stopped.
        signal.signal(number, signal.SIG_IGN)
    raise Stopped(signum)


def complain(program: str, message: str) -> None:
    """One line on standard error, if that can be."""
    name = styled(f"{program}:", "red", sys.stderr)
    with contextlib.suppress(OSError):
        print(name, printable(message), file=sys.stderr)


def start(program: str, command: Callable[[], int]) -> NoReturn:
    """
    Run a program, and end this process with its exit status.

    :param program: its name, for what is said on standard error.
    :param command: returns the exit status, or raises
        :class:`~drgn_tools.errors.DumpError`, which is told in one line.
    """
    status = _run(program, command)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    # Nothing is left to tidy up, and Python would take 15 ms to find that out.
    os._exit(status)


def _run(program: str, command: Callable[[], int]) -> int:
    # numpy's linear algebra, which nothing here uses, starts a thread per CPU.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # As under nohup.
            signal.signal(number, _stop)
    if sys.stderr is None:
        # Or what is meant for it would be printed to standard output.
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names and logs may have any character.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = command()
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except DumpError as error:
        complain(program, str(error))
        return 1
    except Stopped as stopped:
        number = signal.Signals(stopped.signum)
        complain(program, f"stopped by {number.name}")
        return 128 + number
    except MemoryError:
        complain(program, "not enough memory")
        return 1
    except BrokenPipeError:
        # Whoever read our output has enough of it.
        _discard_stdout()
        return 1
    except OSError as error:
        # With files, that is a DumpError.
        complain(program, f"cannot print: {error.strerror}")
        _discard_stdout()
        return 1


def _discard_stdout() -> None:
    """What could not be printed, Python would try to print again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
