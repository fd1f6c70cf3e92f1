# SPDX-License-Identifier: LGPL-2.1-or-later
"""What can go wrong with a dump, each as one line for a person to read."""

import signal

#: What ends the command.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class DumpError(Exception):
    """The input, the output or the options cannot be used; the message says why."""


class MissingMemory(DumpError):
    """Physical memory that the dump does not hold."""

    def __init__(self, paddr: int, why: str = "not in the dump") -> None:
        super().__init__(f"physical address {paddr:#x} is {why}")
        self.paddr = paddr


class OutputFull(DumpError):
    """
    There is no room for the output.

    :param written: bytes for which there was.
    """

    def __init__(self, message: str, written: int = 0) -> None:
        super().__init__(message)
        self.written = written


class OutputBroken(DumpError):
    """
    A piece of the output cannot be written, or is not on the disk; others may be.

    :param number: why, as errno has it.
    :param written: bytes that were written.
    """

    def __init__(self, message: str, number: int, written: int = 0) -> None:
        super().__init__(message)
        self.number = number
        self.written = written


class Stopped(BaseException):
    """
    The command is to stop: a signal came.

    No :class:`Exception`, like :class:`KeyboardInterrupt`, of which click makes
    something else.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum
