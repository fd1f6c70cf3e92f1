"""Dumps of real kernels: what QEMU writes, and /proc/vmcore as a crash left it.

One boot gives both: the guest is filled with one of everything, stands still while
QEMU writes its memory, and is then crashed; the capture kernel copies /proc/vmcore to
a disk. What the guest said about itself just before lies beside the dumps, so that
tests have something to compare with.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

from . import bench, cache, guest, kernels, qemu
from .bench import BenchError, Say
from .kernels import Kernel

KINDS = {"qemu": "qemu.elf", "vmcore": "vmcore"}
"""The kinds of dump, and their file names."""


class Dump(NamedTuple):
    """A dump, the kernel it is of, and how it was made."""

    path: Path
    kind: str
    """A key of KINDS."""
    kernel: Kernel
    levels: int
    kaslr: bool
    memory_mib: int
    folder: Path
    """Also holds serial.log and the facts."""

    def fact(self, name: str) -> bytes:
        """Return what the guest said about itself just before; a key of FACTS.

        The QEMU dump is of that very moment, the vmcore of a moment later.
        """
        return (self.folder / "facts" / name).read_bytes()


class Spec(NamedTuple):
    """Which boot a dump is of."""

    kernel: str
    levels: int = 4
    kaslr: bool = False
    memory_mib: int = 512
    filled: int = 50
    """Percent of memory that is given a content; the rest stays free and zero."""

    @property
    def name(self) -> str:
        """What to call it."""
        kaslr = "kaslr" if self.kaslr else "nokaslr"
        return f"{self.kernel}-{self.levels}level-{kaslr}-{self.memory_mib}M"


MATRIX = (
    # No 5-level page tables in its configuration.
    Spec("5.10", 4, False),
    Spec("5.10", 4, True),
    Spec("6.1", 4, False),
    Spec("6.1", 4, True),
    Spec("6.1", 5, False),
    Spec("6.1", 5, True),
    Spec("6.12", 4, False),
    Spec("6.12", 5, True),
    Spec("7.2", 4, False),
    Spec("7.2", 5, True),
    Spec("6.12-bench", 4, False),
    Spec("6.12-bench", 5, True),
    Spec("7.2-bench", 4, False),
    Spec("7.2-bench", 5, True),
)
"""What tests of dumps run over, each as both kinds."""

LARGE = Spec("6.1", 4, False, memory_mib=4096, filled=85)
"""For measuring: well filled, and with the hole below 4 GiB."""

FACTS = {
    "cmdline": "cat /proc/cmdline",
    "version": "cat /proc/version",
    "iomem": "cat /proc/iomem",
    "modules": "cat /proc/modules",
    "ps": "ps -o pid,ppid,comm",
    "mounts": "cat /proc/mounts",
    "swaps": "cat /proc/swaps",
    "symbols": "grep -E ' (_text|_stext|init_task|page_offset_base|vmemmap_base|"
    "vmalloc_base|linux_banner|mem_section|node_data|contig_page_data)$' "
    "/proc/kallsyms",
    "vmcoreinfo": "cat /sys/kernel/vmcoreinfo",
    "fill": "cat /run/fill",
    "zram": "cat /sys/block/zram0/mm_stat",
    "ksm": "cat /sys/kernel/mm/ksm/pages_sharing",
    "dmesg": "dmesg",
    "zoneinfo": "cat /proc/zoneinfo",
    "buddyinfo": "cat /proc/buddyinfo",
    "slabinfo": "cat /proc/slabinfo",
    "vmstat": "cat /proc/vmstat",
    "meminfo": "cat /proc/meminfo",
    # One little-endian u64 of KPF_ bits per page frame; last, so that it is the
    # nearest to the dump.
    "kpageflags": "gzip -1 < /proc/kpageflags",
}
"""What is recorded of the guest, and the command that says it."""

_COMPRESSED = ("kpageflags",)

CRASHKERNEL_MIB = 192
_OVERHEAD_MIB = 96
"""What the kernel itself and the initramfs take."""
_BALLOON_MIB = 16

# Shares of what is filled, in percent.
_SHARES = {
    "CACHE": 30,
    "DEVICE": 6,
    "DIRTY": 4,
    "MAPPED": 3,
    "SHMEM": 8,
    "ANON": 18,
    "THP": 16,
    "ZERO": 3,
    "SWAP": 5,
}
_HUGETLB_SHARE = 10

_TEXT_MIB = 256
_SEED_MIB = 4096

_SOURCES = ("agent.c", "fill.c", "kexec.c", "copy.c")
_SCRIPTS = ("init.sh", "fill.sh", "capture-init.sh")


def _plan(spec: Spec) -> dict[str, int]:
    """Return the variables of fill.sh."""
    filled = (spec.memory_mib - CRASHKERNEL_MIB - _OVERHEAD_MIB) * spec.filled // 100
    if filled < 64:
        raise BenchError(f"{spec.memory_mib} MiB is too little memory to fill")
    plan = {name: max(2, filled * share // 100) for name, share in _SHARES.items()}
    plan["THP"] &= ~1
    plan["HUGETLB"] = max(4, filled * _HUGETLB_SHARE // 200)
    plan["FILES"] = 2000
    return plan


def _cmdline(spec: Spec) -> str:
    # The vmemmap of huge pages is then mapped by page table entries.
    return "hugetlb_free_vmemmap=on" if spec.levels == 5 else ""


def _key(spec: Spec, kernel: Kernel) -> str:
    """Return the name in the cache; it changes with anything that made the dump."""
    parts: list[Any] = [kernel.release, kernel.version, spec]
    parts += [_plan(spec), _cmdline(spec), CAPTURE_CMDLINE, CRASHKERNEL_MIB, FACTS]
    parts += [(guest.SOURCES / n).read_text() for n in (*_SOURCES, *_SCRIPTS)]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return f"dumps/{spec.name}-{digest[:12]}"


def _check(spec: Spec, kernel: Kernel) -> None:
    if spec.levels == 5 and not kernel.has_5_levels:
        raise BenchError(f"kernel {kernel.name} has no 5-level page tables")


def seed(say: Say = bench.say) -> Path:
    """Return a disk image with an ordinary machine's files, to fill memory with."""

    def build(work: Path) -> dict[str, Any]:
        bench.program("mkfs.ext4")
        content = work / "content"
        content.mkdir()
        with bench.step("collect files to fill memory with", say):
            with (content / "text").open("wb") as file:
                for chunk in _host_files(_TEXT_MIB << 20):
                    file.write(chunk)
            image = work / "seed.img"
            with image.open("wb") as file:
                file.truncate(_SEED_MIB << 20)
            bench.run(["mkfs.ext4", "-q", "-F", "-d", content, image])
        shutil.rmtree(content)
        return {"text_mib": _TEXT_MIB}

    return cache.make("seed", build, room=1 << 30) / "seed.img"


def _host_files(size: int) -> Iterator[bytes]:
    """Yield programs, libraries, texts and headers of this machine, in turn."""
    trees = [_walk(f"/usr/{name}") for name in ("bin", "lib", "share", "include")]
    while size > 0 and trees:
        for tree in list(trees):
            try:
                chunk = next(tree)[:size]
            except StopIteration:
                trees.remove(tree)
                continue
            size -= len(chunk)
            yield chunk
    # A machine with next to nothing in /usr.
    yield os.urandom(size)


def _walk(top: str) -> Iterator[bytes]:
    for folder, folders, names in os.walk(top):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            if os.path.islink(path) or not os.access(path, os.R_OK):
                continue
            with open(path, "rb") as file:
                yield file.read(1 << 20)


def get(
    kernel: str,
    levels: int = 4,
    kaslr: bool = False,
    kind: str = "qemu",
    memory_mib: int = 512,
    filled: int = 50,
    say: Say = bench.say,
) -> Dump:
    """Return a dump, making it if the cache does not have it.

    :param kernel: one of kernels.NAMES.
    :param kind: a key of KINDS.
    """
    spec = Spec(kernel, levels, kaslr, memory_mib, filled)
    return next(d for d in both(spec, say) if d.kind == kind)


def both(spec: Spec, say: Say = bench.say) -> list[Dump]:
    """Return the dumps of a boot, one of each kind."""
    kernel = kernels.get(spec.kernel, say)
    _check(spec, kernel)

    def build(work: Path) -> dict[str, Any]:
        make(spec, work, say)
        return spec._asdict()

    folder = cache.find(_key(spec, kernel))
    if folder is None:
        folder = cache.make(_key(spec, kernel), build, room=_room(spec))
        drop_old(folder)
    return _dumps(spec, kernel, folder)


def cached(spec: Spec) -> Optional[Path]:
    """Return the folder of a boot's dumps, or None if the cache has none."""
    if not kernels.cached(spec.kernel):
        return None
    return cache.find(_key(spec, kernels.get(spec.kernel)))


def _room(spec: Spec) -> int:
    # Both kinds, before the holes are punched.
    return (2 * spec.memory_mib + 256) << 20


def drop_old(folder: Path) -> None:
    """Remove dumps of the same name that were made in another way."""
    prefix = folder.name.rpartition("-")[0]
    # Not of one whose name only begins like this.
    for other in folder.parent.glob(f"{prefix}-{'[0-9a-f]' * 12}"):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)


def _dumps(spec: Spec, kernel: Kernel, folder: Path) -> list[Dump]:
    rest = (kernel, spec.levels, spec.kaslr, spec.memory_mib, folder)
    return [Dump(folder / name, kind, *rest) for kind, name in KINDS.items()]


def matrix(
    specs: Sequence[Spec] = MATRIX, jobs: int = 2, say: Say = bench.say
) -> list[Dump]:
    """Return the dumps of many boots, making what is missing, *jobs* at a time."""
    for name in dict.fromkeys(spec.kernel for spec in specs):
        kernels.get(name, say)
    todo = [spec for spec in specs if not cached(spec)]
    if todo:
        seed(say)
        cache.need_room(cache.root(), sum(map(_room, todo)) // 2, "the dumps")
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        # A terminal's moving line is for one at a time.
        tell = (lambda line: say(line)) if jobs > 1 else say
        made = list(pool.map(lambda spec: both(spec, tell), specs))
    return [dump for pair in made for dump in pair]


def make(spec: Spec, dest: Path, say: Say = bench.say) -> list[Dump]:
    """Boot, fill, dump, crash and capture now, whatever the cache has.

    :param dest: an existing folder for the dumps, serial.log and the facts.
    """
    kernel = kernels.get(spec.kernel, say)
    _check(spec, kernel)
    cache.need_room(dest, _room(spec), f"dumps of {spec.memory_mib} MiB")
    _round(spec, kernel, dest, say)
    with bench.step(f"{_title(spec)}: punch holes", say):
        dig_holes(dest / name for name in KINDS.values())
    return _dumps(spec, kernel, dest)


def dig_holes(paths: Iterable[Path]) -> None:
    """Give back what zeroes take on the disk."""
    for path in paths:
        # Some file systems have no holes.
        with contextlib.suppress(BenchError):
            bench.run(["fallocate", "--dig-holes", path])


def _title(spec: Spec) -> str:
    kaslr = "KASLR" if spec.kaslr else "no KASLR"
    return f"{spec.kernel}, {spec.levels} levels, {kaslr}"


def capture_initramfs(path: Path, kernel: Kernel) -> Path:
    """Write the initramfs of a capture kernel that copies /proc/vmcore to a disk."""
    return guest.initramfs(
        path,
        kernel,
        init="capture-init.sh",
        programs=("copy",),
        load=("virtio_pci", "virtio_blk"),
        modules=(),
    )


CAPTURE_CMDLINE = "console=ttyS0 nr_cpus=1 irqpoll reset_devices nokaslr panic=-1"


@contextlib.contextmanager
def armed(
    kernel: Kernel,
    vmcore: Path,
    *,
    memory_mib: int = 512,
    crashkernel_mib: int = CRASHKERNEL_MIB,
    capture: Optional[Path] = None,
    cmdline: str = CAPTURE_CMDLINE,
    disks: Sequence[qemu.Disk] = (),
    append: str = "",
    programs: Sequence[Union[str, Path]] = (),
    files: Mapping[str, Union[bytes, Path]] = {},
    **options: Any,
) -> Iterator[qemu.VM]:
    """Boot a kernel that will capture itself when it crashes; see capture().

    :param vmcore: the file that the disk "out" is, made here.
    :param capture: the capture kernel's initramfs instead of the one that copies
        /proc/vmcore to "out".
    :param cmdline: the capture kernel's command line.
    :param options: more for guest.initramfs() and qemu.VM.
    """
    with vmcore.open("wb") as file:
        file.truncate((memory_mib + 64) << 20)
    with tempfile.TemporaryDirectory(dir=vmcore.parent, prefix=".guest-") as temp:
        if capture is None:
            capture = capture_initramfs(Path(temp) / "capture", kernel)
        ours = {"kexec/vmlinuz": kernel.vmlinuz, "kexec/initrd": capture}
        with qemu.booted(
            kernel,
            memory_mib=memory_mib,
            append=f"crashkernel={crashkernel_mib}M {append}".strip(),
            disks=[*disks, qemu.Disk(vmcore, "out", keep=True)],
            programs=("kexec", *programs),
            files={**files, **ours},
            **options,
        ) as vm:
            vm.run(f"kexec /kexec/vmlinuz /kexec/initrd '{cmdline}'")
            # The initramfs is memory, and shall be free.
            vm.run("rm -r /kexec")
            yield vm


def crash(vm: qemu.VM) -> None:
    """Crash the guest; returns at once."""
    vm.run("(sleep 0.2; echo c > /proc/sysrq-trigger) >/dev/null 2>&1 &")


def capture(vm: qemu.VM, vmcore: Path) -> None:
    """Crash an armed() guest and wait until /proc/vmcore is in the file."""
    crash(vm)
    captured(vm, vmcore)


def captured(vm: qemu.VM, vmcore: Path) -> None:
    """Wait until /proc/vmcore of a crashed guest is in the file."""
    done = vm.wait_for(r"bench: (?:vmcore (\d+) bytes|capture failed)", 600, panic=True)
    if done.group(1) is None:
        raise vm.error("the capture kernel could not copy /proc/vmcore")
    vm.wait_end()
    with vmcore.open("r+b") as file:
        file.truncate(int(done.group(1)))


def _round(spec: Spec, kernel: Kernel, dest: Path, say: Say) -> None:
    title = _title(spec)
    vmcore = dest / KINDS["vmcore"]
    image = seed(say)
    with contextlib.ExitStack() as stack:
        with bench.step(f"{title}: boot", say):
            vm = stack.enter_context(
                armed(
                    kernel,
                    vmcore,
                    memory_mib=spec.memory_mib,
                    disks=[qemu.Disk(image, "seed")],
                    append=_cmdline(spec),
                    programs=("fill",),
                    files={"fill.sh": guest.SOURCES / "fill.sh"},
                    levels=spec.levels,
                    kaslr=spec.kaslr,
                    smp=2,
                    folder=dest,
                )
            )
        with bench.step(f"{title}: fill memory", say):
            plan = " ".join(f"{name}={mib}" for name, mib in _plan(spec).items())
            vm.run(f"{plan} sh /fill.sh", seconds=600)
            vm.balloon(spec.memory_mib - _BALLOON_MIB)
        with bench.step(f"{title}: ask the guest about itself", say):
            _record(vm, dest / "facts")
        with bench.step(f"{title}: QEMU dump", say):
            vm.dump(dest / KINDS["qemu"])
        with bench.step(f"{title}: crash and capture", say):
            capture(vm, vmcore)


def _record(vm: qemu.VM, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, command in FACTS.items():
        said = vm.run(command, check=False).stdout
        if name in _COMPRESSED:
            said = zlib.decompress(said, zlib.MAX_WBITS | 16)
        (folder / name).write_bytes(said)
