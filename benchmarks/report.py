# SPDX-License-Identifier: LGPL-2.1-or-later
"""What every benchmark prints: where it ran, and tables as Markdown."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterable, Sequence


def version(package: str) -> str | None:
    """Version of an installed Python package; None if it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine(packages: Iterable[str], others: Iterable[str] = ()) -> str:
    """
    A paragraph on the machine and what was installed there.

    :param packages: Python packages whose versions matter.
    :param others: any other program's name and version.
    """
    versions = [f"Python {platform.python_version()}", *others]
    versions += [f"{name} {found}" for name in packages if (found := version(name))]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return (
        f"Machine: {_cpu_model()}, {len(os.sched_getaffinity(0))} CPUs, "
        f"{memory:.0f} GiB, Linux {platform.release()}, "
        f"load {os.getloadavg()[0]:.1f} at the start. {', '.join(versions)}."
    )


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """
    A Markdown table, its columns aligned.

    :param head: titles; one that ends in ``>`` makes a column of numbers.
    """
    right = [title.endswith(">") for title in head]
    cells = [[title.rstrip(">") for title in head], *map(list, rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells)]
    lines = []
    for row in cells:
        aligned = [
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right)
        ]
        lines.append(f"| {' | '.join(aligned)} |")
    rule = [
        "-" * (width - 1) + (":" if is_right else "-")
        for width, is_right in zip(widths, right)
    ]
    lines.insert(1, f"| {' | '.join(rule)} |")
    return "\n".join(lines)
