"""Build a kernel from a Debian linux-source package and kernel.config."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from . import apt, bench, cache
from .bench import BenchError, Say

FRAGMENT = Path(__file__).with_name("kernel.config")


class Recipe(NamedTuple):
    """What a kernel is built from."""

    package: str
    suites: tuple[str, ...]
    options: tuple[str, ...]
    """Options that kernel.config lacks because other versions do not have them."""


def missing(fragment: Iterable[str], config: str) -> list[str]:
    """Return the lines of a fragment that a configuration does not fulfil."""
    have = set(config.splitlines())
    lost = []
    for line in fragment:
        unset = re.fullmatch(r"# (CONFIG_\w+) is not set", line)
        if unset:
            if any(other.startswith(unset.group(1) + "=") for other in have):
                lost.append(line)
        elif line.startswith("CONFIG_") and line not in have:
            lost.append(line)
    return lost


def kernel(
    name: str, recipe: Recipe, say: Say = bench.say, again: bool = False
) -> Path:
    """Build a kernel; return its folder in the cache."""
    for program in ("make", "gcc", "flex", "bison", "bc", "tar", "xz"):
        bench.program(program)
    for name in ("openssl/opensslv.h", "libelf.h", "stdlib.h"):
        bench.need_library(f"/usr/include/{name}")
    suites = apt.updated(recipe.suites, say)
    found = apt.versions(suites, recipe.package)
    if not found:
        raise BenchError(f"the mirror has no {recipe.package} in {', '.join(suites)}")
    package = found[0]

    def make(work: Path) -> dict[str, Any]:
        (deb,) = apt.download(suites, [package], work / "debs", say)
        digest = cache.sha256(deb)
        with bench.step(f"unpack {package.name}", say):
            apt.unpack(deb, work / "package", [f"{package.name}.tar.xz"])
            deb.unlink()
            (archive,) = (work / "package").rglob("*.tar.xz")
            bench.run(["tar", "-x", "-C", work, "-f", archive])
            archive.unlink()
        tree = work / package.name
        _configure(tree, recipe)
        _compile(name, tree, say)
        release = (tree / "include/config/kernel.release").read_text().strip()
        (tree / "arch/x86/boot/bzImage").rename(work / "vmlinuz")
        (tree / "vmlinux").rename(work / "vmlinux")
        (tree / ".config").rename(work / "config")
        (work / "debug").mkdir()
        for left in ("debs", "package", package.name):
            shutil.rmtree(work / left)
        return {
            "release": release,
            "version": package.version,
            "sha256": {deb.name: digest},
        }

    return cache.make(f"kernels/{name}", make, room=6 << 30, again=again)


def _configure(tree: Path, recipe: Recipe) -> None:
    bench.run(["make", "-s", "tinyconfig"], cwd=tree)
    lines = [*FRAGMENT.read_text().splitlines(), *recipe.options]
    with (tree / ".config").open("a") as file:
        file.writelines(f"{line}\n" for line in lines)
    bench.run(["make", "-s", "olddefconfig"], cwd=tree)
    lost = missing(lines, (tree / ".config").read_text())
    if lost:
        raise BenchError(f"{recipe.package} did not take: {', '.join(lost)}")


def _compile(name: str, tree: Path, say: Say) -> None:
    env = dict(os.environ)
    env["KBUILD_BUILD_TIMESTAMP"] = "2025-01-01"
    env["KBUILD_BUILD_USER"] = env["KBUILD_BUILD_HOST"] = "bench"
    jobs = len(os.sched_getaffinity(0))
    argv = [bench.program("make"), f"-j{jobs}", "bzImage"]
    tail: list[str] = []
    done = 0
    with bench.step(f"build {name}", say) as show:
        process = subprocess.Popen(
            argv,
            cwd=tree,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert process.stdout
        try:
            for line in process.stdout:
                tail = [*tail[-200:], line]
                if line.startswith("  CC"):
                    done += 1
                    if done % 20 == 0:
                        show(f"{done} files compiled")
            status = process.wait()
        finally:
            process.kill()
            process.wait()
    if status:
        raise BenchError(bench.failure(f"building {name}", "".join(tail), status))
