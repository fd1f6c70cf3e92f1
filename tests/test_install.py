# SPDX-License-Identifier: LGPL-2.1-or-later
"""What puts drgn-tools where kdump finds it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from contrib import bundle, install
from contrib.bundle import BundleError

DRACUT = "usr/lib/dracut/modules.d/95drgn-tools/module-setup.sh"


@pytest.fixture
def content(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """In place of the folder, which takes long; it is not tried, either."""
    content = dict.fromkeys(bundle.PROGRAMS, b"#!/bin/sh\necho $0\n")
    monkeypatch.setattr(bundle, "files", lambda: dict(content))
    monkeypatch.setattr(bundle, "_try", lambda folder, work: None)
    return content


@pytest.mark.parametrize("kind", install.FILES)
def test_what_is_there(kind: str, content: dict[str, bytes], tmp_path: Path) -> None:
    """Twice, as for an update."""
    for _ in range(2):
        report = install.install(kind, tmp_path)
    home = tmp_path / install.HOME
    assert (home / "sizes").read_text() == report
    for path in tmp_path.rglob("*"):
        scripts = path.is_file() and path.read_bytes().startswith(b"#!")
        assert scripts == (path.is_file() and os.access(path, os.X_OK))
    for place in (*install.FILES[kind], *(f"usr/bin/{name}" for name in content)):
        assert (tmp_path / place).is_file()
    makedumpfile = (home / "kdump-tools/makedumpfile").read_text()
    assert makedumpfile == (tmp_path / "usr/bin/drgn-makedumpfile").read_text()


def test_somebody_elses_command_stays(
    content: dict[str, bytes], tmp_path: Path
) -> None:
    command = tmp_path / "usr/bin/drgn-tools"
    command.parent.mkdir(parents=True)
    command.write_text("#!/usr/bin/python3\n")
    with pytest.raises(BundleError, match="somebody else's"):
        install.install("dracut", tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [
        "drgn-tools"
    ]


def test_wrong_use_and_failures_are_a_line(
    content: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "usr").write_text("")
    for arguments, status in (
        ([], 2),
        (["grub"], 2),
        (["dracut", "a", "b"], 2),
        (["dracut", str(tmp_path)], 1),
    ):
        assert install.main(arguments) == status
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    "conf, environment, included",
    [
        ("core_collector drgn-tools extract -d 31", "IN_KDUMP=1", True),
        ("core_collector\t/usr/bin/drgn-makedumpfile -l", "IN_KDUMP=1", True),
        ("core_collector makedumpfile -l -d 31", "IN_KDUMP=1", False),
        ("#core_collector drgn-tools extract -d 31", "IN_KDUMP=1", False),
        # Not a kdump image.
        ("core_collector drgn-tools extract -d 31", "", False),
        # As SUSE's mkdumprd has it.
        (None, "add_dracutmodules=' kdump '", True),
        (None, "add_dracutmodules=' kdumpbase '", False),
        (None, "", False),
    ],
)
def test_dracut_takes_it_into_its_images(
    conf: str | None,
    environment: str,
    included: bool,
    content: dict[str, bytes],
    tmp_path: Path,
) -> None:
    """By itself where it is the collector, and else only when it is asked for."""
    install.install("dracut", tmp_path)
    (tmp_path / "etc").mkdir()
    if conf is not None:
        (tmp_path / "etc/kdump.conf").write_text(f"path /var/crash\n{conf}\n")
    script = f"{environment}\ndracutsysrootdir={tmp_path}\n. $0\ncheck"
    done = subprocess.run(["bash", "-c", script, tmp_path / DRACUT], env={})
    assert done.returncode == (0 if included else 255)
