# SPDX-License-Identifier: LGPL-2.1-or-later
"""drgn in a guest, on its own running kernel.

A disk brings Python, drgn, what they load, and the kernel's debug information, all at
the paths that they have here, so that nothing needs to be told where it is: the guest
makes the disk its root. What is being tested does not come with the disk, which is
made once, but with the guest's initramfs.
"""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import drgn_tools
from contrib import bundle

from . import bench, cache, dumps, qemu
from .bench import BenchError, Say
from .kernels import Kernel

MEMORY_MIB = 1024
"""What the guest needs."""
VMLINUX = "/vmlinux"
HERE = "/drgn-tools"
"""Where drgn_tools is."""
# What is mounted on the disk. /run is for temporary files: the checkout may be in /tmp.
_FOLDERS = ("proc", "sys", "dev", "run", HERE.lstrip("/"))
_MIB = 550
"""What the disk takes without vmlinux."""
_STDLIB_UNUSED = ("test", "idlelib", "tkinter", "ensurepip", "lib2to3", "__pycache__")

# Everything that the decode half may import; what was mapped is told at the end.
_LOAD = """
import importlib, pkgutil, sys
import drgn, drgn.cli, drgn.helpers.linux, numpy, click, drgn_tools
for found in pkgutil.walk_packages(drgn_tools.__path__, "drgn_tools."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
for name in "cramjam deflate isal lzo zstandard elftools.elf.elffile zlib".split():
    importlib.import_module(name)
print(*{name.partition(".")[0] for name in sys.modules})
print(*{line.split(maxsplit=5)[5].rstrip() for line in open("/proc/self/maps")
        if ".so" in line}, sep="\\n")
"""


def image(kernel: Kernel, say: Say = bench.say) -> Path:
    """Return a disk with Python, drgn and a kernel's debug information."""
    versions = sorted(
        f"{d.metadata['Name']} {d.version}" for d in metadata.distributions()
    )
    about = [kernel.release, kernel.version, sys.version, sys.prefix]
    key = [*about, versions, _LOAD, _FOLDERS]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()

    def build(work: Path) -> dict[str, Any]:
        bench.program("mkfs.ext4")
        with bench.step(f"disk with drgn for {kernel.name}", say):
            root = work / "root"
            _fill(root, kernel)
            disk = work / "disk"
            with disk.open("wb") as file:
                file.truncate(size)
            bench.run(["mkfs.ext4", "-q", "-F", "-d", root, disk])
            shutil.rmtree(root)
        return {"kernel": kernel.name}

    size = (_MIB << 20) + kernel.vmlinux.stat().st_size
    name = f"live/{kernel.name}-{digest[:12]}"
    folder = cache.find(name)
    if folder is None:
        folder = cache.make(name, build, room=2 * size)
        dumps.drop_old(folder)
    return folder / "disk"


def _fill(root: Path, kernel: Kernel) -> None:
    done = subprocess.run([sys.executable, "-c", _LOAD], capture_output=True, text=True)
    if done.returncode:
        raise BenchError(bench.failure("loading drgn", done.stderr, done.returncode))
    names, *mapped = done.stdout.splitlines()
    paths = sysconfig.get_paths()

    def copy(path: Path) -> None:
        target = root / path.relative_to("/")
        if path.is_dir():
            skip = shutil.ignore_patterns(*_STDLIB_UNUSED)
            shutil.copytree(path, target, ignore=skip, dirs_exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)

    copy(Path(paths["stdlib"]))
    for place in {paths["purelib"], paths["platlib"]}:
        for name in names.split():
            for path in Path(place).glob(f"{name}*"):
                # A package, a module, an extension, or libraries that it brings.
                if path.name.partition(".")[0] == name:
                    copy(path)
    for name in mapped:
        copy(Path(name))
        # Mapped by its real name, and asked for by another.
        asked = (root / name.lstrip("/")).with_name(bundle.soname(Path(name)))
        if not asked.exists():
            asked.symlink_to(Path(name).name)
    interpreter = Path(sys.executable)
    copy(interpreter)
    if Path(sys.prefix, "pyvenv.cfg").exists():
        copy(Path(sys.prefix, "pyvenv.cfg"))
    # The program finds its library of modules by where it really is.
    copy(interpreter.resolve())
    for loader in Path("/lib64").glob("ld-linux*"):
        copy(loader)
    for folder in _FOLDERS:
        (root / folder).mkdir(exist_ok=True)
    try:
        os.link(kernel.vmlinux, root / VMLINUX.lstrip("/"))
    except OSError:
        shutil.copy(kernel.vmlinux, root / VMLINUX.lstrip("/"))


def files() -> dict[str, Path]:
    """Return drgn_tools, for the guest's initramfs."""
    package = Path(drgn_tools.__file__).parent
    return {
        f"{HERE}/drgn_tools/{path.relative_to(package)}": path
        for path in package.rglob("*.py")
    }


def mount(vm: qemu.VM) -> None:
    """Make the disk ready; it is named "live"."""
    vm.run(
        "for serial in /sys/block/vd*/serial; do"
        ' [ "$(cat $serial)" = live ] &&'
        " mount -o ro -t ext4 /dev/$(basename $(dirname $serial)) /mnt;"
        " done; for name in proc sys dev drgn-tools; do"
        " mount --bind /$name /mnt/$name || exit 1; done;"
        " mount -t tmpfs tmpfs /mnt/run"
    )


_ENVIRONMENT = f"PYTHONPATH={HERE} PYTHONDONTWRITEBYTECODE=1 TMPDIR=/run"


def run(
    vm: qemu.VM, code: str, *, symbols: Sequence[str] = (), seconds: float = 300
) -> qemu.Result:
    """Run Python in the guest; `prog` is its kernel.

    :param symbols: more files with debug information, as the disk has them.
    """
    start = (
        "import drgn\nprog = drgn.Program()\nprog.set_kernel()\n"
        f"prog.load_debug_info({[VMLINUX, *symbols]!r})\n"
    )
    return vm.run(
        f"{_ENVIRONMENT} chroot /mnt {sys.executable} -",
        stdin=f"{start}exec({code!r})\n".encode(),
        seconds=seconds,
        check=False,
    )


def expression(
    vm: qemu.VM, code: str, into: str = "cat", *, seconds: float = 300
) -> qemu.Result:
    """Run ``drgn -e`` in the guest, its output into another command.

    :return: its status, with both commands' output.
    """
    # As the entry point does, which only an installation has.
    plugin = "DRGN_PLUGINS=drgn_tools=drgn_tools._plugin"
    drgn = f"{sys.executable} -m drgn -q -s {VMLINUX} -e {shlex.quote(code)}"
    vm.run("rm -f /tmp/status")
    done = vm.run(
        f"({_ENVIRONMENT} {plugin} chroot /mnt {drgn}; echo $? > /tmp/status) | {into}",
        seconds=seconds,
        check=False,
    )
    return done._replace(status=int(vm.read("/tmp/status")))
