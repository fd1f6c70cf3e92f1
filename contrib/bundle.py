# SPDX-License-Identifier: LGPL-2.1-or-later
"""
drgn-tools with all that it needs, as few bytes as possible, for an initramfs.

    python -m contrib.bundle FOLDER

A capture kernel has little memory, and its initramfs lies in it. So only modules that
are really loaded come along, compiled and without their source, with the libraries
that they need; loaded.py tells which. They form a folder that works wherever it is put
and uses nothing outside of it but /bin/sh. Its Python is the one that runs this, and
drgn_tools must be installed there.
"""

from __future__ import annotations

import collections
import importlib.metadata
import importlib.util
import os
import py_compile
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from . import no_blas

PROGRAMS = {
    "drgn-tools": "drgn_tools.__main__",
    "drgn-makedumpfile": "drgn_tools.makedumpfile",
}
"""The programs in the folder, and the module whose main() each is."""

_LOADED = Path(__file__).with_name("loaded.py")

_COMMAND = """\
#!/bin/sh
home=${{0%/*}}
export PYTHONHOME="$home" PYTHONPATH="$home/modules"
exec "$home/lib/{loader}" --library-path "$home/lib" "$home/python3" \\
	-sSBOO "$home/modules/{name}.py" "$@"
"""
_MAIN = "from {module} import main\n\nmain()\n"

# For --version; the real module takes half a megabyte to find that out.
_METADATA = "def version(name):\n    return {version!r}\n"

# Linear algebra, by the names that NumPy's own and distributions' libraries have.
_BLAS = re.compile(r"lib\w*(?:blas|lapack)\w*[-.]")


class BundleError(Exception):
    """The folder cannot be made; the message's first line says why."""


class _Found(NamedTuple):
    """What loaded.py tells."""

    modules: dict[str, tuple[str, Path]]
    """Kind ("package" or "module") and file, by name."""
    mapped: set[Path]
    """What code is mapped from."""


def files() -> dict[str, bytes]:
    """
    Return the content of each file, by its path in the folder.

    The programs to run are those of :data:`PROGRAMS`, by their full paths.

    :raises BundleError: something that they need is missing.
    """
    programs = {
        name: module
        for name, module in PROGRAMS.items()
        if importlib.util.find_spec(module)
    }
    with tempfile.TemporaryDirectory() as folder:
        found = _loaded(Path(folder), {})
        stubs = _stubs(found)
        if stubs:
            # This time without what they replace, and what only that had needed.
            found = _loaded(Path(folder), stubs)
    made = {}
    for name, (kind, path) in found.modules.items():
        place = Path("modules", *name.split("."))
        if kind == "package":
            place /= "__init__"
        if path.suffix == ".py":
            # What --help says stays, other modules' documentation does not.
            optimize = 0 if name.startswith("drgn_tools") else 2
            made[f"{place}.pyc"] = _compiled(path, f"{place}.py", optimize)
        else:
            made[str(place.with_name(path.name))] = _stripped(path)
    interpreter = Path(sys.executable).resolve()
    made["python3"] = _stripped(interpreter)
    own = {path.resolve() for _, path in found.modules.values()} | {interpreter}
    libraries = {
        soname(path): _stripped(path)
        for path in found.mapped - own
        if path.name not in stubs
    }
    libraries.update(stubs)
    made.update({f"lib/{name}": content for name, content in libraries.items()})
    (loader,) = (name for name in libraries if name.startswith("ld-"))
    for name, module in programs.items():
        made[name] = _COMMAND.format(loader=loader, name=name).encode()
        made[f"modules/{name}.py"] = _MAIN.format(module=module).encode()
    metadata = _METADATA.format(version=importlib.metadata.version("drgn-tools"))
    made["modules/importlib/metadata.py"] = metadata.encode()
    return made


def is_executable(name: str) -> bool:
    """
    Whether a file of the folder must be executable.

    The others must not, or dracut strips them, which breaks some.
    """
    scripts = (*PROGRAMS, "kdump-tools/makedumpfile", "save-vmcore")
    return name in scripts or name.startswith("lib/ld-")


def write(folder: Path, content: Mapping[str, bytes]) -> None:
    """
    Write the folder; one that is there already is replaced as a whole.

    :raises BundleError: what is in it does not run.
    :raises OSError: as usual.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=folder.parent, prefix=f".{folder.name}."
    ) as temp:
        new, old = Path(temp) / "new", Path(temp) / "old"
        for name, data in content.items():
            path = new / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            path.chmod(0o755 if is_executable(name) else 0o644)
        _try(new, Path(temp))
        if folder.exists():
            folder.rename(old)
        new.rename(folder)


def _try(folder: Path, work: Path) -> None:
    core = work / "core"
    core.write_bytes(_smallest_core())
    done = subprocess.run(
        [folder / "drgn-tools", "extract", "-d", "1", core, work / "target"],
        env={},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise BundleError(f"drgn-tools would not run: {done.stderr.strip()}")


def report(content: Mapping[str, bytes]) -> str:
    """Return what takes the room, the largest parts first."""
    parts: collections.Counter[str] = collections.Counter()
    for name, data in content.items():
        # A package of modules is one part, so is any other file.
        parts["/".join(name.split("/")[:2])] += len(data)
    total = sum(parts.values())
    shown = [(name, size) for name, size in parts.most_common() if size * 100 >= total]
    lines = [f"{total / 1e6:6.1f} MB  drgn-tools, {len(content)} files, of that"]
    lines += [f"{size / 1e6:6.1f} MB    {name}" for name, size in shown]
    rest = total - sum(size for _, size in shown)
    lines.append(f"{rest / 1e6:6.1f} MB    {len(parts) - len(shown)} smaller parts")
    return "\n".join(lines) + "\n"


def _loaded(work: Path, stubs: Mapping[str, bytes]) -> _Found:
    """Ask loaded.py, with libraries in place of others of the same name."""
    preload = []
    for name, content in stubs.items():
        path = work / name
        path.write_bytes(content)
        preload.append(str(path))
    core, target = work / "core", work / "target"
    core.write_bytes(_smallest_core())
    target.unlink(missing_ok=True)
    spec = importlib.util.find_spec("drgn_tools")
    assert spec is not None and spec.origin is not None
    here = Path(spec.origin).parents[1]
    # Without site, which reads all sorts of files; so it must be told where to look.
    done = subprocess.run(
        [sys.executable, "-sSBOO", _LOADED, core, target],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(here), *sys.path]),
            "LD_PRELOAD": " ".join(preload),
        },
        capture_output=True,
        text=True,
    )
    if done.returncode:
        said = done.stderr.strip() or f"status {done.returncode}"
        last = said.splitlines()[-1]
        raise BundleError(f"drgn_tools cannot be loaded: {last}\n{said}")
    modules = {}
    mapped: set[Path] = set()
    for line in done.stdout.splitlines():
        *named, name = line.split("\t")
        if named:
            modules[named[0]] = named[1], Path(name)
        else:
            mapped.add(Path(name))
    if not mapped.issuperset(Path(path).resolve() for path in preload):
        raise BundleError(f"the loader does not take {', '.join(stubs)}\n{done.stderr}")
    return _Found(modules, mapped)


def _smallest_core() -> bytes:
    """Return an ELF core of one page that `extract -d 1` and `info` take."""
    text = b"OSRELEASE=0\nPAGESIZE=4096\n"
    note = struct.pack("<III", 11, len(text), 0) + b"VMCOREINFO\0\0"
    note += text + bytes(-len(text) % 4)
    ident = b"\x7fELF\2\1\1".ljust(16, b"\0")
    # An ELF header (a core, 4, of x86-64, 62), PT_NOTE (4) and PT_LOAD (1).
    at = 64 + 2 * 56
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", ident, 4, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0
    )
    header += struct.pack("<IIQQQQQQ", 4, 0, at, 0, 0, len(note), len(note), 0)
    header += struct.pack("<IIQQQQQQ", 1, 7, at + len(note), 0, 0, 4096, 4096, 0)
    return header + note + bytes(range(256)) * 16


def _stubs(found: _Found) -> dict[str, bytes]:
    """Return what can do in place of numpy's linear algebra, by name."""
    if os.uname().machine != no_blas.MACHINE:
        return {}
    wanted = set()
    for name, (_, path) in found.modules.items():
        if name.startswith("numpy.") and path.suffix == ".so":
            wanted |= _symbols(path, defined=False)
    stubs = {}
    for path in found.mapped:
        name = soname(path)
        if _BLAS.match(name):
            functions = sorted(_symbols(path, defined=True) & wanted)
            stubs[name] = no_blas.library(name, functions)
    return stubs


def _symbols(path: Path, defined: bool) -> set[str]:
    """Return the dynamic symbols that an ELF file has, or those that it wants."""
    with path.open("rb") as file:
        return {
            symbol.name
            for section in ELFFile(file).iter_sections("SHT_DYNSYM")
            if isinstance(section, SymbolTableSection)
            for symbol in section.iter_symbols()
            if (symbol["st_shndx"] != "SHN_UNDEF") == defined
        }


def _compiled(path: Path, shown: str, optimize: int) -> bytes:
    """Return a module's code; tracebacks show the name *shown*."""
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / "module.pyc"
        py_compile.compile(
            str(path), str(compiled), shown, doraise=True, optimize=optimize
        )
        return compiled.read_bytes()


def _stripped(path: Path) -> bytes:
    """Return an executable or a library, without symbols and the like if it can be."""
    strip = shutil.which("strip")
    if strip is None:
        return path.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        stripped = Path(folder) / path.name
        done = subprocess.run([strip, "-o", stripped, path], capture_output=True)
        if done.returncode:
            return path.read_bytes()
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


def main(arguments: Iterable[str]) -> int:
    """Write the folder and print the report."""
    try:
        (folder,) = arguments
    except ValueError:
        print("usage: python -m contrib.bundle FOLDER", file=sys.stderr)
        return 2
    try:
        content = files()
        write(Path(folder), content)
    except (BundleError, OSError, ELFError) as error:
        line = str(error).partition("\n")[0]
        print(f"{folder}: {line}", file=sys.stderr)
        return 1
    print(report(content), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
