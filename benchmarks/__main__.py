# SPDX-License-Identifier: LGPL-2.1-or-later
"""All benchmarks, one after the other, each as without arguments: an hour or so."""

from __future__ import annotations

import importlib
import subprocess
import sys

# The order of docs/benchmarks.md.
NAMES = (
    "extract",
    "profile",
    "growth",
    "memory",
    "mapping",
    "codecs",
    "decompress",
    "swap",
    "plugin",
    "pstore",
    "zram",
    "ring_buffer",
)


def main() -> None:
    """Run as a command."""
    for name in NAMES:
        title = str(importlib.import_module(f"benchmarks.{name}").__doc__)
        print(f"\n## {title.strip().splitlines()[0]}\n", flush=True)
        # In a process of its own, as what ran before decides how malloc() acts.
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)


if __name__ == "__main__":
    main()
