# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Many reads of a program's memory at once
----------------------------------------

A read through drgn costs microseconds however short it is, so whoever wants
thousands of words or pages takes them from here: each page is read once, pages that
follow each other together.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, PlatformFlags, Program

#: Addresses, page frame numbers and words.
Words = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]

# Pages that are read together at most.
_RUN = 256


class Pages(NamedTuple):
    """Pages as they were read."""

    numbers: Words
    """Address or physical address of each, divided by the page size; ascending."""
    data: bytes
    """One behind the other; zeros for those that cannot be read."""
    present: Flags
    """Which of them could be read."""

    def places(self, numbers: Words) -> npt.NDArray[np.int64]:
        """Which page of these each of *numbers* is; they must be among them."""
        return np.searchsorted(self.numbers, numbers)


def is_little(prog: Program) -> bool:
    """Whether a program's memory is little-endian."""
    platform = prog.platform
    return platform is None or bool(platform.flags & PlatformFlags.IS_LITTLE_ENDIAN)


def read_pages(
    prog: Program, numbers: Words, page_size: int, *, physical: bool = False
) -> Pages:
    """
    Read pages.

    :param numbers: addresses divided by *page_size*, in any order.
    """
    numbers = np.unique(numbers)
    pieces: list[bytes] = []
    present = np.ones(len(numbers), np.bool_)
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    for start, end in zip([0, *breaks.tolist()], [*breaks.tolist(), len(numbers)]):
        for first in range(start, end, _RUN):
            last = min(end, first + _RUN)
            _read_run(prog, numbers, first, last, page_size, physical, pieces, present)
    return Pages(numbers, b"".join(pieces), present)


def _read_run(
    prog: Program,
    numbers: Words,
    first: int,
    last: int,
    page_size: int,
    physical: bool,
    pieces: list[bytes],
    present: Flags,
) -> None:
    if first == last:
        return
    address = int(numbers[first]) * page_size
    try:
        pieces.append(prog.read(address, (last - first) * page_size, physical))
        return
    except (FaultError, OverflowError, ValueError):
        pass
    for index in range(first, last):
        try:
            piece = prog.read(int(numbers[index]) * page_size, page_size, physical)
        except (FaultError, OverflowError, ValueError):
            piece = bytes(page_size)
            present[index] = False
        pieces.append(piece)


def gather(
    prog: Program, addresses: Words, width: int, page_size: int
) -> tuple[Words, Flags]:
    """
    Read a word at each address.

    :param width: of a word, in bytes: 4 or 8.
    :return: the words, and which of them could be read; where an address is not
        aligned, none could.
    """
    aligned = addresses % np.uint64(width) == 0
    safe = np.where(aligned, addresses, 0).astype(np.uint64)
    numbers = safe // np.uint64(page_size)
    # Not worth a read: nothing of a kernel's is there.
    wanted = aligned & (numbers != 0)
    pages = read_pages(prog, numbers[wanted], page_size)
    values = np.zeros(len(addresses), np.uint64)
    found = np.zeros(len(addresses), np.bool_)
    places = pages.places(numbers[wanted])
    values[wanted] = words_of(prog, pages.data, width)[
        (places * page_size + (safe[wanted] % np.uint64(page_size)).astype(np.int64))
        // width
    ]
    found[wanted] = pages.present[places]
    values[~found] = 0
    return values, found


def words_of(prog: Program, data: bytes, width: int) -> npt.NDArray[Any]:
    """What is in memory, as words of the program's byte order."""
    return np.frombuffer(data, f"{'<' if is_little(prog) else '>'}u{width}")
