# SPDX-License-Identifier: LGPL-2.1-or-later
"""`verify` on dumps of a real kernel, and other tools on files with checksums."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from drgn_tools import checksums
from drgn_tools.verify import Report, verify
from drgn_tools.vmcore import open_vmcore

from . import dumps, peers
from .dumps import Dump, Spec
from .relayout import ordinary
from .test_extract import crash, extract, physical, runs


@pytest.fixture(scope="module", params=dumps.KINDS)
def core(request: pytest.FixtureRequest) -> Dump:
    """The everyday kernel's dumps."""
    both = dumps.both(Spec("6.1", 4, True))
    return next(dump for dump in both if dump.kind == request.param)


@pytest.fixture(scope="module")
def vmcore() -> Dump:
    both = dumps.both(Spec("6.1", 4, True))
    return next(dump for dump in both if dump.kind == "vmcore")


def makedumpfile(*arguments: str | Path) -> None:
    command = [*peers.argv("makedumpfile-sid"), "--message-level", "4"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def sound(path: Path) -> Report:
    report = verify(str(path), 2)
    assert report.sound, list(report.lines())
    assert (report.missing, report.damaged) == (0, 0)
    return report


def unseal(path: Path) -> None:
    """Take a file's table of checksums away."""
    with path.open("r+b") as file:

        def pread(length: int, offset: int) -> bytes:
            file.seek(offset)
            return file.read(length)

        found = checksums.read_trailer(pread, path.stat().st_size)
        assert found is not None
        file.truncate(found.offset)


@pytest.mark.verified(
    "verify: other writers' dumps are sound", by="QEMU's dump, /proc/vmcore", on="6.1"
)
def test_cores(core: Dump) -> None:
    report = sound(core.path)
    assert report.pages > 80_000


@pytest.mark.verified(
    "verify: other writers' dumps are sound",
    by="makedumpfile's dumps, zlib, lzo, zstd",
    on="6.1",
)
@pytest.mark.parametrize("level", ["1", "31"])
@pytest.mark.parametrize("codec", ["-c", "-l", "-z"])
def test_makedumpfiles(core: Dump, codec: str, level: str, tmp_path: Path) -> None:
    source = ordinary(core.path, tmp_path)
    makedumpfile(codec, "-d", level, source, tmp_path / "out")
    report = sound(tmp_path / "out")
    assert report.zero_pages > 1000
    with open_vmcore(str(tmp_path / "out")) as found:
        assert report.pages == found.dumped_pages


@pytest.mark.verified(
    "verify: other writers' dumps are sound", by="makedumpfile -E", on="6.1"
)
def test_makedumpfiles_elf(vmcore: Dump, tmp_path: Path) -> None:
    makedumpfile("-E", "-d", "31", vmcore.path, tmp_path / "out")
    sound(tmp_path / "out")


@pytest.mark.parametrize("level", ["0", "1", "31"])
@pytest.mark.parametrize("codec", ["-c", "-l", "-p", "-z"])
def test_ours(core: Dump, codec: str, level: str, tmp_path: Path) -> None:
    extract(core.path, tmp_path / "out", codec, "-d", level)
    assert (sound(tmp_path / "out").zero_pages > 0) == (level != "0")


@pytest.mark.parametrize("level", ["0", "31"])
def test_parts_of_a_split_dump(vmcore: Dump, level: str, tmp_path: Path) -> None:
    parts = [tmp_path / name for name in ("one", "two", "three")]
    # In MiB: by default a part has at least 1 GiB.
    split = ("--split", "--splitblock-size", "64")
    makedumpfile(*split, "-l", "-d", level, vmcore.path, *parts)
    makedumpfile("-l", "-d", level, vmcore.path, tmp_path / "whole")
    pages = [sound(part).pages for part in parts]
    assert sum(pages) == sound(tmp_path / "whole").pages
    assert all(pages)


@pytest.mark.verified(
    "verify: damage is found", by="bits flipped in every part of a dump", on="6.1"
)
def test_flipped_bits(vmcore: Dump, tmp_path: Path) -> None:
    path = tmp_path / "dump"
    extract(vmcore.path, path, "-d", "31")
    size = path.stat().st_size
    assert "checksums" in sound(path).remarks[0]
    chance = np.random.default_rng(0)
    with path.open("r+b", buffering=0) as file:
        for bit in chance.integers(0, 8 * size, 12).tolist():
            file.seek(bit // 8)
            byte = file.read(1)[0]
            file.seek(bit // 8)
            file.write(bytes([byte ^ 1 << bit % 8]))
            assert not verify(str(path), 2).sound, bit
            file.seek(bit // 8)
            file.write(bytes([byte]))
    sound(path)


@pytest.mark.verified(
    "verify: files with checksums",
    by="crash, libkdumpfile and makedumpfile read them",
    on="6.1",
)
def test_others_read_past_the_checksums(vmcore: Dump, tmp_path: Path) -> None:
    """The same pages through libkdumpfile, crash and makedumpfile as without."""
    plain, sealed = tmp_path / "plain", tmp_path / "sealed"
    extract(vmcore.path, sealed, "-d", "1", "-l")
    plain.write_bytes(sealed.read_bytes())
    unseal(plain)
    with open_vmcore(str(plain)) as found:
        assert found.header is not None
        kept = np.flatnonzero(found.present(0, found.header.max_mapnr))
    before, after = physical(plain), physical(sealed)
    for pfn, count in runs(kept):
        assert before(pfn, count) == after(pfn, count)
    answers = [crash(vmcore.kernel, path, "sys\nps") for path in (plain, sealed)]
    assert answers[0].replace(str(plain), "") == answers[1].replace(str(sealed), "")
    # Filtered further, and taken apart and put together again.
    for path in (plain, sealed):
        makedumpfile("-c", "-d", "31", path, tmp_path / f"{path.name}-31")
        parts = [tmp_path / f"{path.name}-{number}" for number in range(2)]
        split = ("--split", "--splitblock-size", "64")
        makedumpfile(*split, "-l", "-d", "31", path, *parts)
        for part in parts:
            sound(part)
        makedumpfile("--reassemble", *parts, tmp_path / f"{path.name}-whole")
    for name in ("31", "whole"):
        made = [tmp_path / f"{path.name}-{name}" for path in (plain, sealed)]
        assert made[0].read_bytes() == made[1].read_bytes()
        sound(made[1])


def test_command(vmcore: Dump) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "drgn_tools", "verify", vmcore.path],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == f"{vmcore.path}: sound"
