# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Where drgn and the programs come in
-----------------------------------

Oracle's package has the import name drgn_tools, too. On one path only the first of
them can be imported; in one folder they own each other's files. This module has a name
of its own, so that it is there to say so.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from drgn import Program

_told = False


def other_package() -> str | None:
    """
    Look for Oracle's package where Python looks for ours.

    :return: one line that says where it is and what follows; None if it is not there.
    """
    theirs = next(filter(_is_theirs, map(_package, sys.path)), None)
    if theirs is None:
        return None
    ours = os.path.join(os.path.dirname(os.path.realpath(__file__)), "drgn_tools")
    packages = [os.path.realpath(_package(folder)) for folder in sys.path]
    theirs = os.path.realpath(theirs)
    said = f"Oracle's package of the same name is in {theirs}"
    if theirs == ours:
        return f"{said}, too: who removes one damages the other"
    if ours in packages[: packages.index(theirs)]:
        return f"{said}, hidden by this one in {ours}: it cannot be used"
    return f"{said} and hides this one in {ours}, which cannot be used"


def _package(folder: str) -> str:
    return os.path.join(folder or os.curdir, "drgn_tools")


def _is_theirs(package: str) -> bool:
    # Oracle's has this module, and ours never will.
    return os.path.exists(os.path.join(package, "corelens.py"))


def warn_of_other_package(warn: Callable[[str], object] | None = None) -> None:
    """
    Warn of Oracle's package, if it is there, once.

    :param warn: takes a line; by default, it is printed on standard error.
    """
    global _told
    line = None if _told else other_package()
    _told = True
    if line is None:
        return
    if warn is not None:
        warn(line)
    elif sys.stderr is not None:
        sys.stderr.write(f"drgn-tools: warning: {line}\n")


def drgn_prog_set(prog: Program) -> None:
    """What drgn calls: see ``drgn_tools._plugin``."""
    from drgn import ProgramFlags

    if not prog.flags & ProgramFlags.IS_LINUX_KERNEL:
        return
    import logging

    warn_of_other_package(logging.getLogger("drgn").warning)
    hook: Callable[[Program], None] | None = _from(
        "drgn_tools._plugin", "drgn_prog_set"
    )
    if hook is not None:
        hook(prog)


def drgn_tools() -> None:
    """Run ``drgn-tools``."""
    _run("drgn_tools.__main__")


def drgn_makedumpfile() -> None:
    """Run ``drgn-makedumpfile``."""
    _run("drgn_tools.makedumpfile")


def _run(module: str) -> None:
    warn_of_other_package()
    main = _from(module, "main")
    if main is None:
        sys.exit(1)
    main()


def _from(module: str, name: str) -> Any:
    # None if it is not ours that is there, which has been told.
    import importlib

    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name != module or other_package() is None:
            raise
        return None
