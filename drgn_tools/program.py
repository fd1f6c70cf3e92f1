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

from drgn import MissingDebugInfoError, Program, ProgramFlags, RelocatableModule

from drgn_tools.debug_packages import debug_package
from drgn_tools.errors import DumpError
from drgn_tools.progress import busy

# Of the commands, those that need no debugging symbols.
_WITHOUT = ("dmesg", "extract", "info", "pages", "report", "verify")


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
    except OSError as error:
        why = error.strerror or error
        raise DumpError(f"cannot open {dump}: {why}") from None
    except ValueError as error:
        raise DumpError(f"cannot read {dump}: {error}") from None
    if not prog.flags & ProgramFlags.IS_LINUX_KERNEL:
        raise DumpError(f"{dump} is no dump of a Linux kernel with VMCOREINFO")
    for path in symbols:
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise DumpError(f"cannot read {path}: {error.strerror}") from None
    with (
        busy("loading debugging symbols"),
        contextlib.suppress(MissingDebugInfoError),
    ):
        prog.load_debug_info(symbols, default=True)
    used = {
        os.path.realpath(module.debug_file_path)
        for module in prog.modules()
        if module.debug_file_path
    }
    for path in symbols:
        if os.path.realpath(path) not in used:
            missing = missing_symbols(prog, dump)
            if missing and _is_module(path):
                # Where modules are, only those of the kernel tell.
                raise DumpError(f"{path} alone is of no use: {missing}")
            raise DumpError(f"{path} has no debugging symbols of this dump's kernel")
    return prog


def _is_module(path: str) -> bool:
    with open(path, "rb") as file:
        # e_type is ET_REL.
        return file.read(18)[16:] in (b"\1\0", b"\0\1")


def missing_symbols(
    prog: Program, dump: str, modules: Sequence[str] = ()
) -> str | None:
    """
    What debugging symbols were not found, and what to do about it, in one line.

    :param modules: whose symbols are wanted beside the kernel's own; those that are
        not loaded, or built in, have none.
    :return: None if they are all there.
    """
    if prog.main_module().debug_file_path:
        without = {
            module.name
            for module in prog.modules()
            if isinstance(module, RelocatableModule) and not module.debug_file_path
        }
        wanting = [name for name in modules if name in without]
        if not wanting:
            return None
        what = f"the module{'s' * (len(wanting) > 1)} {' and '.join(wanting)} of "
        files = " and ".join(f"{name}.ko" for name in wanting)
    else:
        what, files = "", "its vmlinux"
    release, version = _uname(dump)
    package = debug_package(release, version)
    ways = [f"install {package or 'the package that has them'}"]
    # Many builds of drgn ask nobody for a kernel's symbols.
    if "debuginfod" in prog.enabled_debug_info_finders() and not os.environ.get(
        "DEBUGINFOD_URLS"
    ):
        ways.append("set DEBUGINFOD_URLS")
    ways.append(f"name {files} with --symbols")
    return (
        f"no debugging symbols of {what}kernel {release or 'of an unknown release'} "
        f"found: {' or '.join(ways)}"
    )


def require_symbols(
    prog: Program, dump: str, command: str, modules: Sequence[str] = ()
) -> None:
    """
    See that a command has the debugging symbols that it cannot do without.

    :raises DumpError: if it has not; the message says which, and what to do.
    """
    missing = missing_symbols(prog, dump, modules)
    if missing:
        kernel = not prog.main_module().debug_file_path
        also = f", {_working(prog)} work without" if kernel else ""
        raise DumpError(f"{missing}; {command} needs them{also}")


def _working(prog: Program) -> str:
    from drgn_tools.kernel_symbols import kernel_symbols

    names = list(_WITHOUT)
    # Without them, pstore goes by kallsyms, which VMCOREINFO leads to since 6.0.
    if "psinfo" in kernel_symbols(prog).kallsyms:
        names = sorted([*names, "pstore"])
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _uname(dump: str) -> tuple[str, str]:
    from drgn_tools.vmcore import open_vmcore

    try:
        with open_vmcore(dump, part=True) as vmcore:
            info = vmcore.vmcoreinfo
            _, _, release, version, *_ = (
                field.decode(errors="replace") for field in vmcore.utsname()
            )
            return (info and info.text("OSRELEASE")) or release, version
    except DumpError:
        # drgn reads more than this does: other machines' dumps.
        return "", ""
