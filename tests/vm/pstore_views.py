# SPDX-License-Identifier: LGPL-2.1-or-later
"""One guest with a ramoops region, seen in four ways at once.

drgn runs in the guest itself while nothing is written; then, of the same moment, there
are the region from the memory's file and QEMU's dump; and then the guest crashes, which
gives /proc/vmcore. What drgn_tools says of each is kept, the dumps are not. As it says
it with the code that is being tested, all is made again when that changes.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Optional

import drgn

from . import (
    bench,
    cache,
    dumps,
    guest,
    kernels,
    live_drgn,
    pstore_guests,
    pstore_seen,
    qemu,
)
from .bench import Say
from .kernels import Kernel
from .pstore_guests import MATRIX, Spec

SPECS = tuple(spec for spec in MATRIX if spec.writes_all and spec.vmcore)
"""What tests run over: with memmap= and ECC, and with reserve_mem=; with KASLR."""
KINDS = ("live", "qemu", "vmcore")
_RECIPE = 1  # Raised when the way it is made changes.


class Outcome(NamedTuple):
    """What a helper in ``drgn -e`` did in the guest."""

    status: int
    stdout: str
    stderr: str


class Views(NamedTuple):
    """What has been seen."""

    spec: Spec
    kernel: Kernel
    folder: Path

    @property
    def found(self) -> bytes:
        """The region as the kernel found it."""
        return (self.folder / "found").read_bytes()

    @property
    def region(self) -> bytes:
        """The region while drgn ran and QEMU wrote its dump."""
        return (self.folder / "region").read_bytes()

    @property
    def crashed(self) -> bytes:
        """The region after the crash."""
        return (self.folder / "crashed").read_bytes()

    def seen(self, kind: str) -> dict[str, Any]:
        """What pstore_seen says of the live kernel or of a dump."""
        return self._json(f"seen-{kind}")

    @property
    def address(self) -> int:
        """The region's physical address."""
        return int(self._json("where")["address"])

    @property
    def slide(self) -> int:
        """How far KASLR had moved the kernel."""
        return int(self._json("where")["slide"])

    def outcome(self, name: str) -> Outcome:
        """What ``drgn -e`` did in the guest: with ``| head``, or without ramoops."""
        return Outcome(*self._json("outcomes")[name])

    def _json(self, name: str) -> dict[str, Any]:
        content = json.loads((self.folder / f"{name}.json").read_text())
        assert isinstance(content, dict)
        return content


def _key(spec: Spec, kernel: Kernel) -> str:
    parts: list[Any] = [kernel.release, kernel.version, spec, _RECIPE]
    parts += [pstore_guests.cmdline(spec), Path(pstore_seen.__file__).read_text()]
    parts += [(guest.SOURCES / "pstore.sh").read_text()]
    parts += [
        (name, path.read_text()) for name, path in sorted(live_drgn.files().items())
    ]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return f"views/{spec.name}-{digest[:12]}"


def cached(spec: Spec) -> Optional[Path]:
    """Return the folder of a guest, or None if the cache has none."""
    if not kernels.cached(spec.kernel):
        return None
    return cache.find(_key(spec, kernels.get(spec.kernel)))


def get(spec: Spec, say: Say = bench.say) -> Views:
    """Return what has been seen, running the guest if the cache does not have it."""
    kernel = kernels.get(spec.kernel, say)
    key = _key(spec, kernel)

    def build(work: Path) -> dict[str, Any]:
        disk = live_drgn.image(kernel, say)
        with bench.step(f"{spec.name} seen in four ways", say):
            _run(spec, kernel, disk, work)
        return spec._asdict()

    folder = cache.find(key)
    if folder is None:
        folder = cache.make(key, build, room=3 * live_drgn.MEMORY_MIB << 20)
        dumps.drop_old(folder)
    return Views(spec, kernel, folder)


def matrix(jobs: int = 2, say: Say = bench.say) -> list[Views]:
    """Return all of them, making what is missing, *jobs* at a time."""
    # First what several need.
    for kernel in dict.fromkeys(kernels.get(spec.kernel, say) for spec in SPECS):
        live_drgn.image(kernel, say)
    with ThreadPoolExecutor(jobs) as pool:
        tell = (lambda line: say(line)) if jobs > 1 else say
        return list(pool.map(lambda spec: get(spec, tell), SPECS))


def _run(spec: Spec, kernel: Kernel, disk: Path, dest: Path) -> None:
    ram, qemu_dump, vmcore = dest / "ram", dest / "qemu.elf", dest / "vmcore"
    outcomes: dict[str, Outcome] = {}

    def expression(vm: qemu.VM, code: str, into: str = "cat") -> Outcome:
        done = live_drgn.expression(vm, code, into, seconds=900)
        return Outcome(done.status, done.text, done.stderr.decode())

    def keep(name: str, content: object) -> None:
        (dest / f"{name}.json").write_text(json.dumps(content))

    def take(name: str) -> bytes:
        content = pstore_guests.take(ram, address, spec.mem_size)
        (dest / name).write_bytes(content)
        return content

    with pstore_guests.booted(
        spec,
        kernel,
        ram,
        vmcore,
        disks=[qemu.Disk(disk, "live")],
        files=live_drgn.files(),
        memory_mib=live_drgn.MEMORY_MIB,
        folder=dest,
    ) as vm:
        address = pstore_guests.start(vm, spec)
        if not spec.reserve_mem:
            live_drgn.mount(vm)
            driver = "/sys/bus/platform/drivers/ramoops"
            vm.run(f"echo ramoops > {driver}/unbind")
            outcomes["absent"] = expression(vm, "pstore_ftrace()")
            vm.run(f"umount -l /mnt; echo ramoops > {driver}/bind")
        pstore_guests.write(vm, spec, 0)
        pstore_guests.die(vm, "c")
        region = take("found")
        if spec.ecc:
            region = pstore_guests.damage(spec, region)
            (dest / "found").write_bytes(region)
        address = pstore_guests.go_on(vm, spec, ram, region, address)
        pstore_guests.write(vm, spec, 1)
        live_drgn.mount(vm)
        pstore_guests.arm(vm)
        pstore_guests.quiet(vm)
        keep("where", {"address": address, "slide": pstore_guests.slide(vm)})
        done = live_drgn.run(vm, Path(pstore_seen.__file__).read_text(), seconds=900)
        if done.status:
            raise vm.error(f"drgn failed in the guest: {done.stderr.decode()}")
        keep("seen-live", json.loads(done.stdout))
        if not spec.reserve_mem:
            code = "for _ in range(20): pstore_ftrace()"
            outcomes["head"] = expression(vm, code, "head -n 1")
        vm.run("umount -l /mnt; echo 3 > /proc/sys/vm/drop_caches")
        vm.qmp("stop")
        vm.dump(qemu_dump)
        take("region")
        vm.qmp("cont")
        pstore_guests.crash(vm, vmcore)
        take("crashed")
    for name, path in (("qemu", qemu_dump), ("vmcore", vmcore)):
        prog = drgn.Program()
        prog.set_core_dump(path)
        prog.load_debug_info([kernel.vmlinux])
        keep(f"seen-{name}", pstore_seen.seen(prog))
    for path in (ram, qemu_dump, vmcore):
        path.unlink()
    keep("outcomes", outcomes)
