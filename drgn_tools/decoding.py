# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the commands that read a dump with drgn share."""

from __future__ import annotations

import importlib
from typing import Any


def decoder(module: str) -> Any:
    """
    Import a module that needs drgn, which takes its time.

    :raises DumpError: if there is no drgn.
    """
    from drgn_tools.errors import DumpError

    try:
        return importlib.import_module(f"drgn_tools.{module}")
    except ImportError as error:
        raise DumpError(f"reading a dump needs drgn: {error}") from None
