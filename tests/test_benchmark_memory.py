# SPDX-License-Identifier: LGPL-2.1-or-later
"""The memory benchmark counts what a program and its children have, once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import memory
from tests.synthetic import MIB, Machine, write_elf

# 32 MiB that both have, 64 MiB that the child has, 16 MiB that they share.
_FAMILY = f"""
import mmap, os, time
shared = mmap.mmap(-1, {16 * MIB})
mine = b"m" * {32 * MIB}
if not os.fork():
    own = b"c" * {64 * MIB}
    shared[:] = b"s" * {16 * MIB}
    time.sleep(1)
    os._exit(0)
os.wait()
"""


def test_peak() -> None:
    most = memory.peak([sys.executable, "-c", _FAMILY])
    # And what Python takes; the content of the shared memory is there twice at first.
    assert 112 * MIB < most.own < (112 + 16 + 24) * MIB
    assert most.own < most.total < most.own + 24 * MIB
    assert most.processes == 2
    assert most.looks > 10


def test_peak_fails() -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        memory.peak([sys.executable, "-c", "raise SystemExit('no')"])
    assert caught.value.output == "no\n"


def test_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = Machine()
    write_elf(tmp_path / "vmcore", machine.loads(), machine.notes())
    (tmp_path / "output").mkdir()
    # In makedumpfile's place: this project's own, which takes the same options.
    peer = f"{sys.executable} -m drgn_tools extract"
    memory.main(
        [
            *(f"{tmp_path}/vmcore", "--runs", "2", "--levels", "31"),
            *("--codecs", "zstd", "--threads", "0", "--jobs", "1", "--peer", peer),
            *("--output", f"{tmp_path}/output"),
        ]
    )
    said = capsys.readouterr().out
    assert said.startswith("Machine: ")
    for title in ("makedumpfile", "extract --jobs 1"):
        assert f"|  31 | zstd  | {title:<16} |" in said
    assert list((tmp_path / "output").iterdir()) == []
