# SPDX-License-Identifier: LGPL-2.1-or-later
"""What can go wrong with a dump, each as one line for a person to read."""


class DumpError(Exception):
    """The input, the output or the options cannot be used; the message says why."""


class MissingMemory(DumpError):
    """Physical memory that the dump does not hold."""

    def __init__(self, paddr: int, why: str = "not in the dump") -> None:
        super().__init__(f"physical address {paddr:#x} is {why}")
        self.paddr = paddr


class OutputFull(DumpError):
    """There is no room for the output."""
