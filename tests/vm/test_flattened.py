# SPDX-License-Identifier: LGPL-2.1-or-later
"""makedumpfile's flattened and split dumps of a real kernel, ours beside its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import drgn
import numpy as np
import pytest
from drgn.helpers.linux.pid import for_each_task

from drgn_tools.errors import DumpError
from drgn_tools.rearrange import rearrange, reassemble
from drgn_tools.vmcore import Vmcore, open_vmcore
from tests.synthetic import read_kdump

from . import dumps, peers
from .dumps import Dump, Spec


@pytest.fixture(scope="module")
def everyday() -> Dump:
    """The everyday kernel's vmcore."""
    return next(d for d in dumps.both(Spec("6.1", 4, True)) if d.kind == "vmcore")


def makedumpfile(*arguments: object) -> list[str]:
    return [
        *peers.argv("makedumpfile-sid"),
        "--message-level",
        "4",
        *map(str, arguments),
    ]


def flatten(dump: Dump, target: Path, *options: str) -> Path:
    with target.open("wb") as file:
        command = makedumpfile("-F", "-d", "31", *options, dump.path)
        subprocess.run(command, stdout=file, check=True)
    return target


FORMATS = {"lzo": ["-l"], "zlib": ["-c"], "zstd": ["-z"], "elf": ["-E"]}


@pytest.mark.verified(
    "extract: flattened dumps read", by="makedumpfile -R, to the byte", on="6.1"
)
@pytest.mark.parametrize("name", FORMATS)
def test_flattened(name: str, everyday: Dump, tmp_path: Path) -> None:
    source = flatten(everyday, tmp_path / "flat", *FORMATS[name])
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    with source.open("rb") as file:
        subprocess.run(makedumpfile("-R", theirs), stdin=file, check=True)
    with source.open("rb") as file:
        rearrange(file.fileno(), str(ours), False)
    assert ours.read_bytes() == theirs.read_bytes()
    with open_vmcore(str(source)) as direct, open_vmcore(str(theirs)) as plain:
        assert direct.notes == plain.notes
        assert_same_pages(direct, plain)
    outputs = []
    for path in (source, theirs):
        out = tmp_path / f"{path.name}.out"
        command = [sys.executable, "-m", "drgn_tools", "extract", "--jobs", "1"]
        subprocess.run([*command, path, out], check=True, capture_output=True)
        outputs.append(out.read_bytes())
    assert outputs[0] == outputs[1]


def assert_same_pages(a: Vmcore, b: Vmcore) -> None:
    assert a.ram_runs == b.ram_runs
    present = b.present(0, b.max_pfn)
    assert (a.present(0, a.max_pfn) == present).all()
    pfns = np.flatnonzero(present)
    assert len(pfns) > 1000
    for at in range(0, len(pfns), 4096):
        some = pfns[at : at + 4096]
        assert list(a.pages(some)) == list(b.pages(some))


@pytest.mark.parametrize("part", [0.1, 0.6, 0.99])
def test_cut_short(part: float, everyday: Dump, tmp_path: Path) -> None:
    """What there is of a stream opens, and no page of it is wrong."""
    source = flatten(everyday, tmp_path / "flat", "-l")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with source.open("rb") as file:
        rearrange(file.fileno(), str(whole), False)
    with source.open("r+b") as file:
        file.truncate(int(source.stat().st_size * part))
    with source.open("rb") as file, pytest.raises(DumpError, match="incomplete"):
        rearrange(file.fileno(), str(cut), False)
    with open_vmcore(str(cut)) as vmcore, open_vmcore(str(whole)) as expected:
        pfns = np.flatnonzero(vmcore.present(0, vmcore.max_pfn))
        count = int(expected.present(0, expected.max_pfn).sum())
        assert 0.3 * part * count < len(pfns) < count
        assert list(vmcore.pages(pfns)) == list(expected.pages(pfns))
    # Page tables are among what is lost: drgn and crash need more than this.
    apart = read_kdump(cut)
    assert apart.status & 8
    assert apart.pages.items() <= read_kdump(whole).pages.items()
    assert set(apart.pages) == set(pfns.tolist())


@pytest.mark.verified(
    "extract: split dumps reassembled", by="makedumpfile --reassemble", on="6.1"
)
def test_split(everyday: Dump, tmp_path: Path) -> None:
    parts = [tmp_path / name for name in "abc"]
    options = ["-l", "-d", "31"]
    # Else all 512 MiB are one block.
    command = ["--split", "--splitblock-size", "64", *options, everyday.path, *parts]
    subprocess.run(makedumpfile(*command), check=True, capture_output=True)
    whole, theirs, ours = (tmp_path / name for name in ("whole", "theirs", "ours"))
    subprocess.run(makedumpfile(*options, everyday.path, whole), check=True)
    subprocess.run(makedumpfile("--reassemble", *parts, theirs), check=True)
    reassemble([str(parts[i]) for i in (1, 2, 0)], str(ours), False)
    assert ours.read_bytes() == theirs.read_bytes()
    with open_vmcore(str(ours)) as joined, open_vmcore(str(whole)) as unsplit:
        assert_same_pages(joined, unsplit)
        pages = 0
        for path in parts:
            with open_vmcore(str(path), part=True) as part:
                pfns = np.flatnonzero(part.present(0, part.max_pfn))
                assert list(part.pages(pfns)) == list(unsplit.pages(pfns))
                pages += len(pfns)
        assert pages == unsplit.present(0, unsplit.max_pfn).sum()
    tasks = []
    for path in (ours, everyday.path):
        prog = drgn.Program()
        prog.set_core_dump(path)
        prog.load_debug_info([everyday.kernel.vmlinux])
        tasks.append([(t.pid.value_(), t.comm.string_()) for t in for_each_task(prog)])
    assert tasks[0] == tasks[1]
    assert len(tasks[0]) > 10
