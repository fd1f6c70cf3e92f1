# SPDX-License-Identifier: LGPL-2.1-or-later
"""The folder with all that drgn-tools needs, which goes into an initramfs."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from contrib import bundle, no_blas
from drgn_tools.codecs import CODECS

from .command import drgn_tools
from .synthetic import GENERATIONS, Generation, Machine, read_kdump, write_elf

STUBBED = os.uname().machine == no_blas.MACHINE


@pytest.fixture(scope="module")
def content() -> dict[str, bytes]:
    return bundle.files()


@pytest.fixture(scope="module")
def home(content: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("bundle") / "some where"
    bundle.write(home, content)
    return home


def run(
    home: Path, *arguments: object, program: str = "drgn-tools"
) -> tuple[int, str, str]:
    done = subprocess.run(
        [home / program, *map(str, arguments)],
        env={},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


def core(path: Path, generation: Generation = GENERATIONS[-1]) -> Path:
    machine = Machine(generation, log=[(0, "Linux version 0"), (1, "late words")])
    machine.fill()
    write_elf(path, machine.loads(), machine.notes())
    return path


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec(home: Path, codec: str, tmp_path: Path) -> None:
    source, target = core(tmp_path / "core"), tmp_path / "dump"
    options = ("--compress", codec, "--jobs", "2", "--sha256")
    status, _, said = run(home, "extract", *options, source, target)
    assert status == 0, said
    assert hashlib.sha256(target.read_bytes()).hexdigest() in said
    assert drgn_tools("extract", "--compress", codec, source, tmp_path / "ours")[0] == 0
    assert read_kdump(target).pages == read_kdump(tmp_path / "ours").pages


@pytest.mark.parametrize("generation", GENERATIONS, ids=str)
def test_every_kernel_generation(
    home: Path, generation: Generation, tmp_path: Path
) -> None:
    """Whatever of numpy they use is there, and none of it is linear algebra."""
    source, target = core(tmp_path / "core", generation), tmp_path / "dump"
    status, _, said = run(home, "extract", "--jobs", "1", source, target)
    assert status == 0, said
    assert drgn_tools("extract", source, tmp_path / "ours")[0] == 0
    assert read_kdump(target).pages == read_kdump(tmp_path / "ours").pages
    for command in ("info", "dmesg", "verify"):
        assert run(home, command, target) == tuple(drgn_tools(command, target))


def test_makedumpfile(home: Path, tmp_path: Path) -> None:
    """The other program, and that what it writes to a pipe is taken."""
    source, target = core(tmp_path / "core"), tmp_path / "dump"
    options = ("-l", "--message-level", "7", "-d", "31", source)
    status, _, said = run(home, *options, target, program="drgn-makedumpfile")
    assert status == 0, said
    done = subprocess.run(
        [*map(str, (home / "drgn-makedumpfile", "-F", *options))],
        env={},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"makedumpfile\0")
    subprocess.run(
        [home / "drgn-makedumpfile", "-R", tmp_path / "again"],
        env={},
        input=done.stdout,
        check=True,
    )
    assert read_kdump(tmp_path / "again").pages == read_kdump(target).pages


def test_complaints_and_help(home: Path, tmp_path: Path) -> None:
    source = core(tmp_path / "core")
    assert run(home, "extract", source, source) == tuple(
        drgn_tools("extract", source, source)
    )
    status, _, said = run(home, "extract", "--job", source, source)
    assert (status, "--job" in said, "Traceback" in said) == (2, True, False)
    assert run(home, "extract", "--help") == tuple(drgn_tools("extract", "--help"))
    version = metadata.version("drgn-tools")
    assert run(home, "--version") == (0, f"drgn-tools, version {version}\n", "")


def test_nothing_needless(content: dict[str, bytes], home: Path) -> None:
    names = set(content)
    assert not [name for name in names if "/test" in name]
    assert not [name for name in names if name.endswith(".py") and f"{name}c" in names]
    if importlib.util.find_spec("_md5"):  # Then Python has its own hashes.
        assert not [name for name in names if "crypto" in name]
    # Running it has left nothing: it may lie on a file system that takes no more.
    written = {str(p.relative_to(home)) for p in home.rglob("*") if p.is_file()}
    assert written == names
    executable = {name for name in names if os.access(home / name, os.X_OK)}
    assert {name for name in names if bundle.is_executable(name)} == executable


def test_report_adds_up(content: dict[str, bytes]) -> None:
    first, *parts = (
        float(line.split()[0]) for line in bundle.report(content).split("\n")[:-1]
    )
    assert first == pytest.approx(sum(map(len, content.values())) / 1e6, abs=0.06)
    assert first == pytest.approx(sum(parts), abs=0.06 * (len(parts) + 1))


@pytest.mark.skipif(not STUBBED, reason="the linear algebra is there")
def test_linear_algebra_is_left_out(content: dict[str, bytes]) -> None:
    blas = [name for name in content if "blas" in name.lower() or "gfortran" in name]
    assert [len(content[name]) < 10_000 for name in blas] == [True] * len(blas)


def python(home: Path, code: str) -> tuple[int, str]:
    """Run code with the folder's Python."""
    (loader,) = (home / "lib").glob("ld-*")
    done = subprocess.run(
        [
            loader,
            "--library-path",
            home / "lib",
            home / "python3",
            "-sSBOO",
            "-c",
            code,
        ],
        env={"PYTHONHOME": str(home), "PYTHONPATH": str(home / "modules")},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stderr


@pytest.mark.skipif(not STUBBED, reason="the linear algebra is there")
@pytest.mark.parametrize(
    "code",
    [
        "import numpy as n; n.ones((3, 3)) @ n.ones((3, 3))",
        "import numpy as n; n.ones(3).dot(n.ones(3))",
        "import numpy as n; n.linalg.inv(n.ones((3, 3)))",
    ],
)
def test_linear_algebra_kills_with_a_message(home: Path, code: str) -> None:
    """It must not give a result, for that could only be wrong."""
    assert python(home, "import numpy")[0] == 0
    status, said = python(home, code)
    assert (status, "linear algebra" in said) == (-signal.SIGILL, True)


@pytest.fixture(params=["cblas_sdot", "cblas_sdot64_", "scipy_cblas_sdot64_"])
def sdot(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., float]:
    path = tmp_path / "libblas.so.3"
    path.write_bytes(no_blas.library(path.name, ["cblas_caxpy", request.param]))
    function = getattr(ctypes.CDLL(str(path)), request.param)
    integer = ctypes.c_int64 if "64" in request.param else ctypes.c_int32
    array = ctypes.POINTER(ctypes.c_float)
    function.argtypes = (integer, array, integer, array, integer)
    function.restype = ctypes.c_float
    return cast(Callable[..., float], function)


@pytest.mark.skipif(not STUBBED, reason="code of another machine")
def test_the_one_function_that_works(sdot: Callable[..., float]) -> None:
    pointer = ctypes.POINTER(ctypes.c_float)
    x = np.arange(1, 41, dtype=np.float32)
    y = x[::-1].copy()
    for count, incx, incy in ((0, 1, 1), (1, 1, 1), (2, 1, 1), (20, 2, 1), (13, 1, 3)):
        got = sdot(
            count, x.ctypes.data_as(pointer), incx, y.ctypes.data_as(pointer), incy
        )
        assert got == np.dot(x[::incx][:count], y[::incy][:count])


def test_command(tmp_path: Path) -> None:
    """`python -m contrib.bundle` writes and reports; wrong use is one line."""
    command = [sys.executable, "-m", "contrib.bundle"]
    root = Path(bundle.__file__).parents[1]
    done = subprocess.run(
        [*command, tmp_path / "file" / "x"], cwd=root, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.split()[1:3]) == (0, ["MB", "drgn-tools,"])
    (tmp_path / "plain").write_text("")
    done = subprocess.run(
        [*command, tmp_path / "plain" / "x"], cwd=root, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.skipif(not STUBBED, reason="the linear algebra is there")
def test_a_library_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(no_blas, "library", lambda soname, functions: b"not ELF")
    with pytest.raises(bundle.BundleError, match="does not take lib"):
        bundle.files()
