# SPDX-License-Identifier: LGPL-2.1-or-later
"""What all commands that read with drgn have in common, on real dumps."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.command import COMMAND, drgn_tools, environment
from tests.test_command_line import on_a_terminal

from . import ftrace_guests, kernels, oprofile_guests, pstore_guests, zram_guests

ZRAM = next(spec for spec in zram_guests.MATRIX if spec.name == "6.12-bench-zram")
PSTORE = next(spec for spec in pstore_guests.MATRIX if spec.label == "plain")


class Run(NamedTuple):
    """A command on a dump."""

    words: list[str]
    dump: Path
    kernel: kernels.Kernel

    @property
    def arguments(self) -> list[str]:
        symbols = [
            f"--symbols={path}"
            for path in self.kernel.debug_files()
            if path.stem in ("vmlinux", "oprofile")
        ]
        return [*self.words, *symbols, str(self.dump)]


def run_of(words: str) -> Run:
    name = words.split()[0]
    if name == "ftrace":
        traced = ftrace_guests.get("6.12")
        return Run(words.split(), traced.dump("vmcore"), traced.kernel)
    if name == "oprofile":
        profiled = oprofile_guests.get(oprofile_guests.MATRIX[0])
        return Run(words.split(), profiled.dump, profiled.kernel)
    if name == "pstore":
        kept = pstore_guests.get(PSTORE)
        return Run(words.split(), kept.dump, kept.kernel)
    zram = zram_guests.get(ZRAM)
    return Run(words.split(), zram.dump("vmcore"), zram.kernel)


COMMANDS = (
    *("ftrace", "oprofile", "oprofile --json", "pstore", "pstore --json"),
    *("zram", "zram --json", "swap --pid=1", "swap --pid=1 --json"),
)


@pytest.mark.parametrize("words", COMMANDS)
def test_closed_pipe(words: str) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    run = subprocess.run(
        [*COMMAND, *run_of(words).arguments],
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    os.close(write_end)
    notes = [line for line in run.stderr.splitlines() if "note: " not in line]
    assert (run.returncode, notes) == (1, [])


@pytest.mark.parametrize("words", ["ftrace", "oprofile", "pstore", "zram"])
def test_progress(words: str) -> None:
    """On a terminal, unless it is not wanted; never elsewhere."""
    arguments = run_of(words).arguments
    shown = "loading debugging symbols ...\r"
    assert shown in on_a_terminal(*arguments)
    assert shown.strip() not in on_a_terminal(*arguments, "-q")
    done = drgn_tools(*arguments)
    assert done.status == 0, done.stderr
    assert "\r" not in done.stdout + done.stderr and "..." not in done.stderr
