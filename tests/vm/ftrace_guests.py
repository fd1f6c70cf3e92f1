"""Guests that traced, and what their own trace files showed before the dumps."""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Optional

from . import bench, cache, dumps, guest, kernels, qemu
from .bench import Say
from .kernels import Kernel

KERNELS = ("5.10", "6.1", "6.12", "7.2")
"""What tests run over: stock kernels, which have all of ftrace."""

TRACEFS = "/sys/kernel/tracing"
_MODULE = "trace_printk.c"
_RECIPE = 1  # Raised when the way a guest is made changes.
_MEMORY_MIB = 320
_CRASHKERNEL_MIB = 128
# Emulated on a busy machine, a timer looks broken when it is only late.
_PATIENT = "no_timer_check"
# A buffer in memory that outlives the kernel.
_PERSISTENT = "reserve_mem=1M:4096:trace trace_instance=persistent@trace"


class Guest(NamedTuple):
    """What a guest has left."""

    kernel: Kernel
    folder: Path

    @property
    def instances(self) -> list[str]:
        """Its buffers' names; the kernel's own is empty."""
        names = [path.name for path in (self.folder / "traces").iterdir()]
        return sorted(name.partition("-")[2] for name in names)

    def trace(self, instance: str) -> str:
        """What the kernel's own file showed."""
        path = self.folder / "traces" / f"trace-{instance}"
        return path.read_text(errors="backslashreplace")

    @property
    def formats(self) -> dict[str, str]:
        """The format file of each event, by system and name."""
        found = {}
        text = (self.folder / "formats").read_text()
        for part in re.split("^== ", text, flags=re.MULTILINE)[1:]:
            name, _, content = part.partition("\n")
            found[name] = content
        return found

    def dump(self, kind: str) -> Path:
        """A dump of it: qemu or vmcore."""
        return self.folder / dumps.KINDS[kind]


def cmdline(name: str) -> str:
    """Return what is on a kernel's command line."""
    # Those before have no buffers that outlive them.
    persistent = () if name in ("5.10", "6.1") else (_PERSISTENT,)
    # Zeroes take no room in the cache.
    return " ".join((*persistent, "init_on_free=1", _PATIENT))


def _key(kernel: Kernel) -> str:
    parts: list[Any] = [kernel.release, kernel.version, cmdline(kernel.name), _RECIPE]
    parts += [
        (guest.SOURCES / name).read_text()
        for name in ("agent.c", "kexec.c", "copy.c", "init.sh", "ftrace.sh", _MODULE)
    ]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return f"ftrace/{kernel.name}-{digest[:12]}"


def cached(name: str) -> Optional[Path]:
    """Return the folder of a guest, or None if the cache has none."""
    return cache.find(_key(kernels.get(name))) if kernels.cached(name) else None


def get(name: str, say: Say = bench.say) -> Guest:
    """Return what a guest has left, running it if the cache does not have it."""
    kernel = kernels.get(name, say)
    key = _key(kernel)

    def build(work: Path) -> dict[str, Any]:
        with bench.step(f"ftrace guest {name}", say):
            _run(kernel, work)
        return {"kernel": name}

    folder = cache.find(key)
    if folder is None:
        folder = cache.make(key, build, room=(3 * _MEMORY_MIB) << 20)
        dumps.drop_old(folder)
    return Guest(kernel, folder)


def trace(vm: qemu.VM) -> dict[str, bytes]:
    """Let a guest trace, stop, and return what its trace files show."""
    vm.run("sh /ftrace.sh", seconds=300)
    return read(vm)


def read(vm: qemu.VM) -> dict[str, bytes]:
    """Return what a guest's trace files show, by instance."""
    names = vm.run(f"ls {TRACEFS}/instances").text.split()
    found = {"": vm.read(f"{TRACEFS}/trace")}
    for name in names:
        found[name] = vm.read(f"{TRACEFS}/instances/{name}/trace")
    return found


@contextlib.contextmanager
def _booted(kernel: Kernel, folder: Path) -> Iterator[qemu.VM]:
    with dumps.armed(
        kernel,
        folder / dumps.KINDS["vmcore"],
        memory_mib=_MEMORY_MIB,
        crashkernel_mib=_CRASHKERNEL_MIB,
        append=cmdline(kernel.name),
        cmdline=f"{dumps.CAPTURE_CMDLINE} {_PATIENT}",
        files={
            "ftrace.sh": guest.SOURCES / "ftrace.sh",
            "trace_printk.ko": guest.module(kernel, guest.SOURCES / _MODULE),
        },
        smp=2,
        kaslr=True,
        folder=folder,
    ) as vm:
        yield vm


def _run(kernel: Kernel, folder: Path) -> None:
    vmcore = folder / dumps.KINDS["vmcore"]
    with _booted(kernel, folder) as vm:
        shown = trace(vm)
        traces = folder / "traces"
        traces.mkdir()
        for name, content in shown.items():
            (traces / f"trace-{name}").write_bytes(content)
        (folder / "formats").write_text(_formats(vm))
        vm.dump(folder / dumps.KINDS["qemu"])
        dumps.capture(vm, vmcore)
    dumps.dig_holes(folder / dumps.KINDS[kind] for kind in ("qemu", "vmcore"))


def _formats(vm: qemu.VM) -> str:
    systems = "kprobes sched irq timer signal ftrace kmem workqueue"
    some = " ".join(f"{system}/*/format" for system in systems.split())
    some += " syscalls/sys_*_open*/format syscalls/sys_*_read/format"
    # One process for all of them: each takes its time where everything is traced.
    said = vm.run(f"cd {TRACEFS}/events; grep -H '' {some}", seconds=300).text
    made, last = "", ""
    for line in said.splitlines(keepends=True):
        name, _, content = line.partition(":")
        if name != last:
            made += f"== {name.rpartition('/')[0]}\n"
        made, last = made + content, name
    return made
