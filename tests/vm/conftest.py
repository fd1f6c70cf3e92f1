# SPDX-License-Identifier: LGPL-2.1-or-later
"""Say at the end what was counted: differences, memory that capturing took, losses."""

from __future__ import annotations

import collections

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts: collections.Counter[str] = collections.Counter()
    compared = 0
    captures = []
    broken = []
    for report in terminalreporter.stats.get("passed", []):
        for name, value in getattr(report, "user_properties", []):
            if name == "explained":
                compared += 1
                counts.update(value)
            elif name == "capture":
                captures.append(value)
            elif name == "broken":
                broken.append(value)
    if compared:
        terminalreporter.section("page frames that makedumpfile treats otherwise")
        terminalreporter.line(f"in {compared} comparisons, unexplained: 0")
        for reason, count in counts.most_common():
            terminalreporter.line(f"{count:8}  {reason}")
    if captures:
        terminalreporter.section("extract in a capture kernel")
        for line in captures:
            terminalreporter.line(line)
    if broken:
        terminalreporter.section("what makedumpfile left of zram")
        for line in broken:
            terminalreporter.line(line)
