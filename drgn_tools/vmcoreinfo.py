# SPDX-License-Identifier: LGPL-2.1-or-later
"""
VMCOREINFO
----------

A typed view of the text that the kernel leaves for dump tools
(:linux:`kernel/vmcore_info.c`): one ``KEY=value`` per line.
"""

from __future__ import annotations

from typing import Callable

from drgn_tools.errors import DumpError

# The kernel's numbers are of 64 bits. Python takes quadratic time for decimal ones of
# any length, and refuses to print what it has read of hexadecimal ones.
_MAX_DIGITS = 64


class Vmcoreinfo:
    """
    The ``KEY=value`` lines of a VMCOREINFO note.

    Each accessor returns None for a key that the kernel did not write.

    :raises DumpError: by an accessor, if the key's value is not a number.
    """

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self._values: dict[str, str] = {}
        for line in raw.split(b"\0", 1)[0].decode("ascii", "replace").splitlines():
            key, separator, value = line.partition("=")
            if separator:
                # The kernel writes each key once; a second one is not its.
                self._values.setdefault(key, value.strip())

    def text(self, key: str) -> str | None:
        """Value of *key* as it stands, such as ``OSRELEASE``."""
        return self._values.get(key)

    def decimal(self, key: str) -> int | None:
        """Value of a bare decimal key, such as ``PAGESIZE`` or ``CRASHTIME``."""
        return self._int(key, 10)

    def symbol(self, name: str) -> int | None:
        """``SYMBOL(name)``: a kernel virtual address."""
        return self._int(f"SYMBOL({name})", 16)

    def size(self, name: str) -> int | None:
        """``SIZE(name)`` in bytes."""
        return self._int(f"SIZE({name})", 10)

    def offset(self, name: str) -> int | None:
        """``OFFSET(type.member)`` in bytes."""
        return self._int(f"OFFSET({name})", 10)

    def length(self, name: str) -> int | None:
        """``LENGTH(name)``: elements of an array."""
        return self._int(f"LENGTH({name})", 10)

    def number(self, name: str) -> int | None:
        """``NUMBER(name)``: signed decimal, or hexadecimal with ``0x``."""
        return self._int(f"NUMBER({name})", 0)

    def _int(self, key: str, base: int) -> int | None:
        value = self._values.get(key)
        if value is None:
            return None
        try:
            if len(value) > _MAX_DIGITS:
                raise ValueError
            return int(value, base)
        except ValueError:
            raise DumpError(f"VMCOREINFO is damaged: {key} is {value[:40]!r}") from None


def read_file(path: str) -> bytes:
    """
    Text of a VMCOREINFO file, to go by instead of a dump's own.

    :raises DumpError: if it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            # More than a note may have, so that too much is noticed.
            return file.read(2 << 20)
    except OSError as error:
        raise DumpError(f"cannot read {path}: {error.strerror}") from None


def require(value: int | None, key: str, low: int, high: int) -> int:
    """
    *value* itself, once it is known to be there and plausible.

    :param key: name of the VMCOREINFO key, for the message.
    :raises DumpError: if *value* is None or not in [*low*, *high*].
    """
    if value is None:
        raise DumpError(f"VMCOREINFO lacks {key}")
    if not low <= value <= high:
        raise DumpError(f"VMCOREINFO is damaged: {key} is {value}")
    return value


def if_sound(read: Callable[[], int | None]) -> int | None:
    """
    What *read* gives if it is a 64-bit number, else None: for values that a dump is
    better written without than not written.
    """
    try:
        value = read()
    except DumpError:
        return None
    return value if value is None or -(1 << 63) <= value < 1 << 63 else None
