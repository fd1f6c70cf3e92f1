# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A dump as a drgn program
------------------------

For the commands that read one: with the debugging symbols that drgn finds, and those
that it is given.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence

from drgn import MissingDebugInfoError, Program

from drgn_tools.errors import DumpError


def open_dump(dump: str, symbols: Sequence[str] = ()) -> Program:
    """
    Open a dump.

    :param symbols: Files with debugging symbols, of the kernel and its modules, that
        are tried before those that drgn finds.
    :raises DumpError: if the dump cannot be read, or a file has no symbols of its
        kernel.
    """
    # What it does not find is said where it matters.
    logging.getLogger("drgn").addHandler(logging.NullHandler())
    prog = Program()
    try:
        prog.set_core_dump(dump)
    except (OSError, ValueError) as error:
        raise DumpError(f"cannot read {dump}: {error}") from None
    for path in symbols:
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise DumpError(f"cannot read {path}: {error.strerror}") from None
    with contextlib.suppress(MissingDebugInfoError):
        prog.load_debug_info(symbols, default=True)
    used = {
        os.path.realpath(module.debug_file_path)
        for module in prog.modules()
        if module.debug_file_path
    }
    for path in symbols:
        if os.path.realpath(path) not in used:
            raise DumpError(f"{path} has no debugging symbols of this dump's kernel")
    return prog
