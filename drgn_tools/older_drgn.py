# SPDX-License-Identifier: LGPL-2.1-or-later
"""What drgn has since 0.0.33 (and 0.0.32), in terms of what 0.0.31 has."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from drgn import Object, Program, Type, TypeKind

if TYPE_CHECKING:
    from drgn_tools.printing import File


def read_c_string(prog: Program, address: int, max_size: int) -> bytes:
    """
    What is at an address until the first zero, as ``Program.read_c_string()``.

    :raises FaultError: if that cannot be read.
    """
    type_ = prog.array_type(prog.int_type("char", 1, True), max_size)
    string: bytes = Object(prog, type_, address=address).string_()
    return string


def unaliased(type_: Type) -> Type:
    """A type without typedefs around it, as ``Type.unaliased()``."""
    while type_.kind == TypeKind.TYPEDEF:
        type_ = type_.type
    return type_


def print_table(rows: Sequence[Sequence[Any]], file: File) -> None:
    """
    Print rows in columns, as ``drgn.helpers.common.format.print_table()``: numbers to
    the right, text to the left.
    """
    widths = [
        max(len(str(cell)) for cell in column)
        for column in zip_longest(*rows, fillvalue="")
    ]
    for row in rows:
        # No width of 0: in a format, that would be a flag.
        cells = [f"{cell:{width or ''}}" for cell, width in zip(row, widths)]
        file.write("  ".join(cells).rstrip(" ") + "\n")
