# SPDX-License-Identifier: LGPL-2.1-or-later
"""Python and the capture half of drgn_tools, as few files as possible.

A capture kernel has little memory, and its initramfs lies in it. So only modules that
are really loaded come along, compiled and without their source, with the libraries
that they need; loaded.py tells which. They form a folder that works wherever it is put
and uses nothing outside of it.
"""

import os
import py_compile
import subprocess
import sys
import tempfile
from pathlib import Path

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

import drgn_tools
from tests.synthetic import Machine, write_elf

from . import bench, guest
from .bench import BenchError
from .kernels import Kernel

_LOADED = Path(__file__).with_name("loaded.py")

_COMMAND = """\
#!/bin/sh
home=${{0%/*}}
export PYTHONHOME="$home" PYTHONPATH="$home/modules"
exec "$home/lib/{loader}" --library-path "$home/lib" "$home/python3" \\
	-sS "$home/modules" "$@"
"""
# Unlike -m, a folder as the program does not look into the current one first.
_MAIN = b"from drgn_tools.__main__ import main\n\nmain()\n"


def initramfs(path: Path, kernel: Kernel) -> Path:
    """Write the initramfs of a capture kernel that runs `drgn-tools extract`.

    guest/extract-init.sh says on what.
    """
    return guest.initramfs(
        path,
        kernel,
        init="extract-init.sh",
        programs=("copy",),
        load=("virtio_pci", "virtio_blk", "ext4"),
        modules=("crc32c_generic",),
        files={f"/python/{name}": content for name, content in files().items()},
    )


def files() -> dict[str, bytes]:
    """Return the content of each file, by its path in the folder.

    The Python is the one that runs this. The program to run is drgn-tools, by its full
    path.

    :raises BenchError: something that `drgn-tools extract` needs is missing.
    """
    modules, mapped = _loaded()
    made = {"modules/__main__.py": _MAIN}
    for name, (kind, path) in modules.items():
        place = Path("modules", *name.split("."))
        if kind == "package":
            place /= "__init__"
        if path.suffix == ".py":
            made[f"{place}.pyc"] = _compiled(path, f"{place}.py")
        else:
            made[str(place.with_name(path.name))] = _stripped(path)
    interpreter = Path(sys.executable).resolve()
    made["python3"] = _stripped(interpreter)
    own = {path.resolve() for _, path in modules.values()} | {interpreter}
    libraries = {soname(path): path for path in mapped - own}
    for name, path in libraries.items():
        made[f"lib/{name}"] = _stripped(path)
    (loader,) = (name for name in libraries if name.startswith("ld-"))
    made["drgn-tools"] = _COMMAND.format(loader=loader).encode()
    return made


def _loaded() -> tuple[dict[str, tuple[str, Path]], set[Path]]:
    """Return what loaded.py tells: modules (kind and file, by name), and libraries."""
    here = Path(drgn_tools.__file__).parents[1]
    with tempfile.TemporaryDirectory() as folder:
        core, target = Path(folder) / "core", Path(folder) / "target"
        machine = Machine()
        write_elf(core, machine.loads(), machine.notes())
        # Without site, which reads all sorts of files; so it must be told where to
        # look.
        done = subprocess.run(
            [sys.executable, "-sSB", _LOADED, core, target],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(here), *sys.path])},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise BenchError(
            bench.failure("loading drgn_tools", done.stderr, done.returncode)
        )
    modules = {}
    mapped = set()
    for line in done.stdout.splitlines():
        *named, path = line.split("\t")
        if named:
            name, kind = named
            modules[name] = kind, Path(path)
        else:
            mapped.add(Path(path))
    return modules, mapped


def _compiled(path: Path, shown: str) -> bytes:
    """Return a module's code; tracebacks show the name *shown*."""
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / "module.pyc"
        py_compile.compile(str(path), str(compiled), shown, doraise=True)
        return compiled.read_bytes()


def _stripped(path: Path) -> bytes:
    """Return an executable or a library, without symbols and the like if it can be."""
    with tempfile.TemporaryDirectory() as folder:
        stripped = Path(folder) / path.name
        bench.run(["strip", "-o", stripped, path])
        with stripped.open("rb") as file:
            segments = [s.header for s in ELFFile(file).iter_segments("PT_LOAD")]
        # Not with some that wheels have been patched to bring along.
        loads = all((s.p_offset - s.p_vaddr) % s.p_align == 0 for s in segments)
        return (stripped if loads else path).read_bytes()


def soname(path: Path) -> str:
    """Return the name by which others ask for a library."""
    with path.open("rb") as file:
        for section in ELFFile(file).iter_sections():
            if isinstance(section, DynamicSection):
                for tag in section.iter_tags("DT_SONAME"):
                    return str(getattr(tag, "soname"))  # noqa: B009
    return path.name
