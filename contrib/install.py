# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Put drgn-tools where kdump finds it.

    python -m contrib.install dracut|initramfs-tools|kdump-tools [ROOT]

makes /usr/lib/drgn-tools (see bundle.py) and the commands in /usr/bin, and adds what
the one that was named needs. To update, run it again. docs/kdump.md tells what is left
to configure. ROOT is the system to install into, "/" if it is not given.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from elftools.common.exceptions import ELFError

from . import bundle
from .bundle import BundleError

HOME = "usr/lib/drgn-tools"
_HERE = Path(__file__).parent

_DRACUT = "usr/lib/dracut/modules.d/95drgn-tools"
_INITRAMFS = "etc/initramfs-tools"
FILES = {
    "dracut": {
        f"{_DRACUT}/module-setup.sh": "dracut/module-setup.sh",
        f"{_DRACUT}/save-vmcore.sh": "dracut/save-vmcore.sh",
    },
    "initramfs-tools": {
        f"{_INITRAMFS}/hooks/drgn-tools": "initramfs-tools/hook",
        f"{_INITRAMFS}/scripts/local-bottom/drgn-tools": "initramfs-tools/local-bottom",
    },
    "kdump-tools": {},
}
"""What each adds, by the place below the root."""

# kdump-tools and SUSE's kdump run "makedumpfile", found with PATH.
_MAKEDUMPFILE = "kdump-tools/makedumpfile"


def install(kind: str, root: Path) -> str:
    """
    Install for *kind*, a key of :data:`FILES`; return the report of sizes.

    :raises BundleError: something is missing.
    :raises OSError: as usual.
    """
    content = bundle.files()
    report = bundle.report(content)
    content["sizes"] = report.encode()
    content["save-vmcore"] = (_HERE / "save-vmcore").read_bytes()
    if "drgn-makedumpfile" in content:
        content[_MAKEDUMPFILE] = _command("drgn-makedumpfile")
    elif kind == "kdump-tools":
        raise BundleError("kdump-tools needs drgn-makedumpfile, which is not there")
    commands = {
        f"usr/bin/{name}": _command(name) for name in bundle.PROGRAMS if name in content
    }
    for place, command in commands.items():
        path = root / place
        if path.exists() and path.read_bytes() != command:
            raise BundleError(f"{path} is somebody else's")
    bundle.write(root / HOME, content)
    scripts = {
        place: (_HERE / source).read_bytes() for place, source in FILES[kind].items()
    }
    for place, script in {**commands, **scripts}.items():
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(script)
        path.chmod(0o755)
    return report


def _command(name: str) -> bytes:
    return f'#!/bin/sh\nexec /{HOME}/{name} "$@"\n'.encode()


def main(arguments: Sequence[str]) -> int:
    """Install and print the report."""
    if len(arguments) not in (1, 2) or arguments[0] not in FILES:
        kinds = "|".join(FILES)
        print(f"usage: python -m contrib.install {kinds} [ROOT]", file=sys.stderr)
        return 2
    # Others must be able to run it.
    os.umask(0o022)
    try:
        report = install(arguments[0], Path(*arguments[1:] or "/"))
    except (BundleError, OSError, ELFError) as error:
        line = str(error).partition("\n")[0]
        print(f"not installed: {line}", file=sys.stderr)
        return 1
    print(report, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
