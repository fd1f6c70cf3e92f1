# SPDX-License-Identifier: LGPL-2.1-or-later
"""What tests share; and one that skips in CI does not exist: it fails there."""

from __future__ import annotations

import os
import struct
from collections.abc import Generator
from pathlib import Path

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longreprtext}"
    return report


@pytest.fixture
def core(tmp_path: Path) -> Path:
    """A kernel's core, for drgn: of nothing but VMCOREINFO."""
    text = b"OSRELEASE=6.1.0-test\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)="
    text += b"ffffffff82a10000\nKERNELOFFSET=0\nNUMBER(phys_base)=0\n"
    name = b"VMCOREINFO\0"
    note = struct.pack("<III", len(name), len(text), 0)
    for part in (name, text):
        note += part + bytes(-len(part) % 4)
    head = struct.pack(
        *("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 4, 62, 1, 0, 64, 0, 0, 64, 56, 1),
        *(0, 0, 0),
    )
    head += struct.pack("<IIQQQQQQ", 4, 0, 120, 0, 0, len(note), len(note), 0)
    path = tmp_path / "vmcore"
    path.write_bytes(head + note)
    return path
