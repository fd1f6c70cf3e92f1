# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests in which oprofile takes samples of what is known to run, and what it says.

A guest works for a while, and workers take the samples from the CPUs' buffers to the
event buffer. Then it goes one of two ways. *Starving*: tasks of the highest real-time
priority take all CPUs, so that no worker runs any more and samples stay in the CPUs'
buffers; when the sampling has stopped, they say what the statistics are. *Reading*: the
sampling stops, all samples get to the event buffer, and after the dump read(2) hands
over what was there.

In both, QEMU writes a dump; then the guest may crash into a capture kernel.
"""

import contextlib
import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

from . import bench, cache, dumps, guest, kernels, qemu
from .bench import Say
from .kernels import Kernel

KERNEL = "5.10"
"""The last one with oprofile."""
PROGRAM = guest.SOURCES / "oprofile.c"
MODULES = ("oprofile", "zram", "lz4hc")
_RECIPE = 1  # Raised when the way a guest is made changes.
_CRASHKERNEL_MIB = 128
# Emulated on a busy machine, a timer looks broken when it is only late.
_APPEND = "init_on_free=1 no_timer_check"


class Spec(NamedTuple):
    """A guest."""

    name: str
    starve: int = 0
    """Samples of each CPU while starving; 0 for one that reads."""
    buffer: int = 8192
    """Entries of each CPU's buffer (cpu_buffer_size)."""
    depth: int = 0
    """Of backtraces."""
    smp: int = 2
    kaslr: bool = False
    vmcore: bool = False

    @property
    def memory_mib(self) -> int:
        """Of the guest."""
        return 384 if self.vmcore else 256


MATRIX = (
    Spec("starved", starve=1000, kaslr=True, vmcore=True),
    # Of which there is room for 3 pages and the reader's.
    Spec("overflow", starve=1500, buffer=512),
    Spec("callgraph", starve=500, depth=8),
    Spec("read", kaslr=True, vmcore=True),
    Spec("read-callgraph", depth=8),
)
"""What tests run over."""


class Guest(NamedTuple):
    """What a guest has left."""

    spec: Spec
    kernel: Kernel
    folder: Path

    @property
    def dump(self) -> Path:
        """QEMU's dump."""
        return self.folder / "qemu.elf"

    @property
    def vmcore(self) -> Path:
        """/proc/vmcore, if the spec wants one."""
        return self.folder / "vmcore"

    def stats(self, kind: str) -> dict[str, int]:
        """The files of /dev/oprofile/stats, by path, at the time of a dump.

        :param kind: a key of dumps.KINDS.
        """
        path = self.folder / f"stats-{kind}"
        said: dict[str, int] = json.loads(path.read_text())
        return said

    @property
    def tasks(self) -> list[tuple[str, int, int]]:
        """What starved the guest: way to be busy, pid, CPU."""
        said = json.loads((self.folder / "tasks").read_text())
        return [(name, pid, cpu) for name, pid, cpu in said]

    @property
    def reads(self) -> list[bytes]:
        """What read(2) returned: some time before QEMU's dump and just after it; and,
        if there is a vmcore, some time before and just before that."""
        return [path.read_bytes() for path in sorted(self.folder.glob("read-*"))]

    @property
    def program(self) -> Path:
        """The program that was busy."""
        return guest.program(PROGRAM)


def _key(spec: Spec, kernel: Kernel) -> str:
    parts: list[Any] = [kernel.release, kernel.version, spec, _APPEND, _RECIPE]
    names = ("agent.c", "kexec.c", "copy.c", "init.sh", "oprofile.c", "oprofile.sh")
    parts += [(guest.SOURCES / name).read_text() for name in names]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return f"oprofile/{spec.name}-{digest[:12]}"


def cached(spec: Spec) -> Optional[Path]:
    """Return the folder of a guest, or None if the cache has none."""
    if not kernels.cached(KERNEL):
        return None
    return cache.find(_key(spec, kernels.get(KERNEL)))


def get(spec: Spec, say: Say = bench.say) -> Guest:
    """Return what a guest has left, running it if the cache does not have it."""
    kernel = kernels.get(KERNEL, say)
    key = _key(spec, kernel)

    def build(work: Path) -> dict[str, Any]:
        with bench.step(f"oprofile guest {spec.name}", say):
            _run(spec, kernel, work)
        return spec._asdict()

    folder = cache.find(key)
    if folder is None:
        folder = cache.make(key, build, room=(3 * spec.memory_mib) << 20)
        dumps.drop_old(folder)
    return Guest(spec, kernel, folder)


def matrix(specs: Sequence[Spec] = MATRIX, say: Say = bench.say) -> list[Guest]:
    """Return many guests, making what is missing."""
    return [get(spec, say) for spec in specs]


# --- the guest itself


@contextlib.contextmanager
def booted(
    spec: Spec, kernel: Kernel, vmcore: Optional[Path] = None, **options: Any
) -> Iterator[qemu.VM]:
    """Boot a guest with oprofile, whose buffer is open and who has been working.

    :param vmcore: the file to which a crash writes /proc/vmcore.
    :param options: more for qemu.booted().
    """
    append = _APPEND
    disks = list(options.pop("disks", ()))
    script = {"oprofile.sh": guest.SOURCES / "oprofile.sh"}
    files = {**script, **options.pop("files", {})}
    programs: list[Any] = [PROGRAM]
    with tempfile.TemporaryDirectory() as temp:
        if vmcore is not None:
            with vmcore.open("wb") as file:
                file.truncate((spec.memory_mib + 64) << 20)
            disks.append(qemu.Disk(vmcore, "out", keep=True))
            initrd = dumps.capture_initramfs(Path(temp) / "capture", kernel)
            files.update({"kexec/vmlinuz": kernel.vmlinuz, "kexec/initrd": initrd})
            programs.append("kexec")
            append += f" crashkernel={_CRASHKERNEL_MIB}M"
        with qemu.booted(
            kernel,
            append=append,
            smp=spec.smp,
            kaslr=spec.kaslr,
            disks=disks,
            files=files,
            programs=programs,
            modules=(*guest.SPARE_MODULES, *MODULES),
            **{"memory_mib": spec.memory_mib, **options},
        ) as vm:
            if vmcore is not None:
                capture = f"{dumps.CAPTURE_CMDLINE} no_timer_check"
                vm.run(f"kexec /kexec/vmlinuz /kexec/initrd '{capture}'")
                vm.run("rm -r /kexec")
            vm.run(
                f"BUFFER={spec.buffer} DEPTH={spec.depth} sh /oprofile.sh", seconds=300
            )
            yield vm


def _run(spec: Spec, kernel: Kernel, dest: Path) -> None:
    vmcore = dest / "vmcore" if spec.vmcore else None
    with booted(spec, kernel, vmcore, folder=dest) as vm:
        stats = _starve(vm, spec, dest) if spec.starve else stop(vm, dest, 0)
        (dest / "stats-qemu").write_text(json.dumps(stats))
        vm.dump(dest / "qemu.elf")
        if not spec.starve:
            read(vm, dest, 1)
        if vmcore is not None:
            if not spec.starve:
                vm.run("echo 1 > /dev/oprofile/enable; oprofile work kernel 500")
                stats = stop(vm, dest, 2)
                read(vm, dest, 3)
            (dest / "stats-vmcore").write_text(json.dumps(stats))
            # Starved, it takes no commands.
            vm.qmp("inject-nmi")
            dumps.captured(vm, vmcore)
    dumps.dig_holes(path for path in (dest / "qemu.elf", vmcore) if path)


def _starve(vm: qemu.VM, spec: Spec, dest: Path) -> dict[str, int]:
    vm.run(f"oprofile starve {spec.starve} >/dev/null 2>&1 &")
    vm.wait_for(r"oprofile: ready", 300)
    said = vm.log.read_text(errors="replace")
    tasks = re.findall(r"oprofile: task (\w+) (\d+) (\d+)", said)
    rows = [(name, int(pid), int(cpu)) for name, pid, cpu in tasks]
    (dest / "tasks").write_text(json.dumps(rows))
    stats = re.findall(r"oprofile: stat (\S+) (\d+)", said)
    return {name: int(value) for name, value in stats}


def stop(vm: qemu.VM, dest: Path, number: int) -> dict[str, int]:
    """Stop sampling after something has been read, and let the samples go.

    :return: the statistics.
    """
    read(vm, dest, number)
    # A module more: the buffer says that there is one.
    vm.run("modprobe -r loop; modprobe loop; oprofile work user 300")
    vm.run("echo 0 > /dev/oprofile/enable; sleep 0.5")
    said = vm.run("cd /dev/oprofile/stats; find . -type f | xargs grep . /dev/null")
    rows = re.findall(r"(?m)^\./(\S+):(\d+)$", said.text)
    return {name: int(value) for name, value in rows}


def read(vm: qemu.VM, dest: Path, number: int) -> None:
    """Let the guest read(2) the event buffer, and keep what it gets."""
    path = f"/run/read-{number}"
    vm.run(
        # The reader waits for either.
        "killall -USR1 oprofile; sleep 0.2; echo 1 > /dev/oprofile/dump;"
        f" until [ -e {path} ]; do sleep 0.1; done"
    )
    (dest / f"read-{number}").write_bytes(vm.read(path))
