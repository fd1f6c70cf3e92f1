"""libkdumpfile from Debian's source package: the library and its test programs.

Built here, so that it is another one than the one in drgn's wheel, and with the
programs of its test suite, which no package has.
"""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from . import apt, bench, cache
from .bench import Say

PACKAGE = "libkdumpfile"
SUITE = "trixie-source"
"""A stable one: the cases of its test suite, which tests list, stay as they are."""

NAME = f"peers/{PACKAGE}"

_PACKED = ("zlib", "lzo2", "snappy", "zstd")
_HEADERS = tuple(
    f"/usr/include/{name}"
    for name in ("zlib.h", "lzo/lzo1x.h", "snappy-c.h", "zstd.h", "stdlib.h")
)
_PROGRAMS = ("autoreconf", "aclocal", "libtoolize", "pkg-config", "gcc", "make")


class Suite(NamedTuple):
    """What was built."""

    version: str
    programs: Path
    """The folder of its test programs."""
    scripts: Path
    """The folder of its test scripts, and of what they need."""
    libraries: Path
    """Where its programs find the library (LD_LIBRARY_PATH)."""


def cached() -> bool:
    """Whether get() would take no time."""
    return cache.find(NAME) is not None


def get(say: Say = bench.say) -> Suite:
    """Return libkdumpfile and its test suite, building them if need be."""
    folder = cache.find(NAME) or _fetch(say)
    version = cache.manifest(folder)["version"]
    return Suite(version, folder / "programs", folder / "tests", folder / "lib")


def _fetch(say: Say) -> Path:
    for path in _HEADERS:
        bench.need_library(path)
    for program in _PROGRAMS:
        bench.program(program)
    apt.update(SUITE, say)

    def build(work: Path) -> dict[str, Any]:
        tar = apt.download_tar(SUITE, PACKAGE, work / "source", say)
        said = {
            "version": tar.name.split("_")[1].partition(".orig")[0],
            "sha256": {tar.name: cache.sha256(tar)},
        }
        with bench.step(f"build {PACKAGE} {said['version']}", say):
            bench.run(["tar", "-xf", tar, "-C", tar.parent])
            (top,) = (path for path in tar.parent.iterdir() if path.is_dir())
            _make(top)
        _keep(top, work)
        shutil.rmtree(tar.parent)
        return said

    return cache.make(NAME, build, room=200 << 20)


def _make(top: Path) -> None:
    # What Debian has is the authors' repository, without configure.
    bench.run(["autoreconf", "-fi"], cwd=top)
    # What it does not find it leaves out, unless told that it must not.
    options = [f"--with-{name}" for name in _PACKED]
    options += ["--without-python", "--disable-static", "--disable-dependency-tracking"]
    bench.run(["sh", "./configure", *options, "CFLAGS=-O1"], cwd=top)
    for part in ("include", "src"):
        bench.run(["make", "-j2", "-C", part], cwd=top)
    # Its programs, and none of its tests.
    bench.run(["make", "-j2", "-C", "tests", "check", "TESTS="], cwd=top)


def _keep(top: Path, work: Path) -> None:
    """Keep scripts, programs and libraries, not what libtool put around them."""
    (work / "programs").mkdir()
    (work / "tests").mkdir()
    (work / "lib").mkdir()
    for path in sorted((top / "tests").iterdir()):
        if not path.is_file() or path.suffix in (".o", ".a"):
            continue
        real = path.parent / ".libs" / path.name
        if not real.exists():
            real = path
        with real.open("rb") as file:
            program = file.read(4) == b"\x7fELF"
        shutil.copy(real, work / ("programs" if program else "tests") / path.name)
    for path in (top / "src").glob("*/.libs/lib*.so.*"):
        # libNAME.so.N, by which programs ask for it, is a link.
        if path.is_symlink():
            shutil.copy(path, work / "lib" / path.name)
