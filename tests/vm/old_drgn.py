# SPDX-License-Identifier: LGPL-2.1-or-later
"""Other versions of drgn, each in a folder of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from . import bench, cache
from .bench import BenchError, Say

VERSIONS = ("0.0.31", "0.0.32", "0.0.33", "0.1.0", "0.2.0")
"""From the first that has plugins; commands came with 0.0.33, drgn-crash with 0.1.0."""


def get(version: str, say: Say = bench.say) -> Path:
    """
    Return a folder for PYTHONPATH that has a version, fetching it if need be.

    :raises BenchError: PyPI has none for this Python.
    """

    def build(work: Path) -> dict[str, Any]:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install"]
        options = ["--no-deps", "--only-binary=:all:", "--target", str(work)]
        with bench.step(f"fetch drgn {version}", say):
            done = subprocess.run(
                [*pip, *options, f"drgn=={version}"], capture_output=True
            )
        if done.returncode:
            raise BenchError(bench.failure("pip", done.stderr, done.returncode))
        return {"version": version}

    name = f"drgn/{version}-{sys.implementation.cache_tag}"
    return cache.find(name) or cache.make(name, build, room=1 << 28)
