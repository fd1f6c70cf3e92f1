# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Real dumps with the debugging symbols that are found, with some and with none: what
the commands say, and that drgn's finders are asked.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from drgn_tools.debug_packages import debug_package
from drgn_tools.info import read_info
from tests.command import assert_refused, drgn_tools

from . import cache, ftrace_guests, kernels, oprofile_guests, zram_guests

BY_KERNEL = {spec.kernel: spec for spec in zram_guests.MATRIX if spec.devices}
# Nothing is where drgn looks, nor does it ask anybody.
NOWHERE = {"DEBUGINFOD_URLS": ""}


class Case(NamedTuple):
    """A command, what it reads, and the module that it needs beside the kernel."""

    command: tuple[str, ...]
    dump: Path
    kernel: kernels.Kernel
    module: str | None


def case(command: str) -> Case:
    zram = zram_guests.get(BY_KERNEL["5.10"])
    if command == "zram":
        return Case(("zram",), zram.dump("vmcore"), zram.kernel, "zram")
    if command == "swap":
        return Case(("swap", "--pid=1"), zram.dump("vmcore"), zram.kernel, None)
    if command == "ftrace":
        traced = ftrace_guests.get("6.1")
        return Case(("ftrace",), traced.dump("qemu"), traced.kernel, None)
    profiled = oprofile_guests.get(oprofile_guests.MATRIX[0])
    return Case(("oprofile",), profiled.dump, profiled.kernel, "oprofile")


@pytest.mark.parametrize("command", ["zram", "swap", "ftrace", "oprofile"])
def test_which_package_is_missing(command: str) -> None:
    found = case(command)
    line = assert_refused(drgn_tools(*found.command, found.dump, **NOWHERE))
    release = found.kernel.release
    assert f"no debugging symbols of kernel {release} found" in line
    assert f"install linux-image-{release}-dbg or name " in line
    for way in ("vmlinux with --symbols", f"{command} needs them", "dmesg, "):
        assert way in line
    vmlinux = f"--symbols={found.kernel.vmlinux}"
    done = drgn_tools(*found.command, vmlinux, found.dump, **NOWHERE)
    if found.module is None:
        assert done.status == 0, done.stderr
        return
    line = assert_refused(done)
    assert f" {found.module} " in line and f" of kernel {release} found" in line
    assert f"install linux-image-{release}-dbg or name " in line
    assert f" {found.module}.ko " in line and "with --symbols" in line


@pytest.mark.parametrize("command", ["info", "dmesg", "verify"])
def test_what_works_without(command: str) -> None:
    done = drgn_tools(command, case("zram").dump, **NOWHERE)
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout


def test_a_module_alone() -> None:
    found = case("zram")
    module = found.kernel.module_debug("zram")
    line = assert_refused(
        drgn_tools("zram", f"--symbols={module}", found.dump, **NOWHERE)
    )
    assert f"{module} alone is of no use" in line
    assert f"install linux-image-{found.kernel.release}-dbg or name " in line


@pytest.mark.verified(
    "commands: which debug package is missing",
    by="the package that the symbols are from",
)
@pytest.mark.parametrize("name", kernels.DEBIAN)
def test_debian_calls_it_so(name: str) -> None:
    """The bench took the symbols from a package of that name."""
    spec = next(spec for spec in zram_guests.MATRIX if spec.kernel == name)
    info = read_info(str(zram_guests.get(spec).dump("qemu")))
    kernel = kernels.get(name)
    release = kernel.release
    assert info.release == release and info.version is not None
    took = cache.manifest(kernel.vmlinux.parent)["sha256"]
    names = {file.partition("_")[0] for file in took}
    assert debug_package(release, info.version) in names


FINDER = """
def drgn_prog_set(prog):
    prog.debug_info_options.directories = ({!r},)
"""


@pytest.mark.verified(
    "commands: debugging symbols found by drgn", by="drgn's own places", on="6.12-bench"
)
def test_drgn_finds_them(tmp_path: Path) -> None:
    """Where it looks by itself, or where a user's plugin tells it to."""
    guest = zram_guests.get(BY_KERNEL["6.12-bench"])
    place = tmp_path / "boot" / f"vmlinux-{guest.kernel.release}"
    place.parent.mkdir()
    place.symlink_to(guest.kernel.vmlinux)
    plugin = tmp_path / "finder.py"
    plugin.write_text(FINDER.format(str(tmp_path)))
    dump = guest.dump("qemu")

    def printed(*options: str, **environment: str) -> str:
        done = drgn_tools("zram", *options, dump, **environment)
        assert done.status == 0, done.stderr
        return done.stdout

    given = printed(f"--symbols={guest.kernel.vmlinux}", **NOWHERE)
    assert given == printed(**NOWHERE, DRGN_PLUGINS=f"finder={plugin}")
