# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests whose zram devices and swapped-out memory are known to the byte.

Of each there is QEMU's dump, of some /proc/vmcore of the crash after it, and what the
kernel said about its devices just before: nothing is written or read between the two.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import struct
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from . import bench, cache, dumps, guest, kernels, known_pages, qemu
from .bench import Say
from .kernels import Kernel
from .known_pages import PAGE

_RECIPE = 1  # Raised when the way a guest is made changes.

CPUS = 2
_MEMORY_MIB = 512
DISK_MIB = 1
"""The size of a device with known pages."""
_SWAP_MIB = 24
_IMAGE_MIB = 6
_DICTIONARIES = "/dictionaries"
# Zeroes take no room in the cache. Emulated on a busy machine, a timer looks broken
# when it is only late.
_CMDLINE = "init_on_free=1 no_timer_check"


class Device(NamedTuple):
    """A zram device with known pages."""

    algorithm: str
    dictionary: str = ""
    """One of dictionaries()."""
    params: str = ""
    """More of the algorithm's parameters."""
    recompress: tuple[tuple[str, str], ...] = ()
    """Further algorithms, and of which slots ("type=...") they recompress."""
    writeback: str = ""
    """"plain" or "compressed": huge and idle pages are on a backing disk."""


class Spec(NamedTuple):
    """A guest."""

    kernel: str
    label: str
    levels: int = 4
    kaslr: bool = False
    devices: tuple[Device, ...] = ()
    """The first zram devices; then come one of files and one for swap."""
    append: str = ""
    held: int = 512
    """Pages of the process."""

    @property
    def name(self) -> str:
        """What to call it."""
        return f"{self.kernel}-{self.label}"

    @property
    def swap(self) -> str:
        """What it swaps to: "zram", or a "disk" of QEMU's."""
        return "zram" if self.devices else "disk"

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of dump, of dumps.KINDS."""
        return tuple(dumps.KINDS) if self.devices else ("qemu",)

    @property
    def files_device(self) -> int:
        """The number of the device with a file system."""
        return len(self.devices)

    @property
    def swap_device(self) -> int:
        """The number of the device for swap."""
        return len(self.devices) + 1


_OLD = tuple(map(Device, ("lzo", "lzo-rle", "lz4", "lz4hc", "zstd", "deflate")))
_OWN = (
    *map(Device, ("lz4", "lz4hc", "zstd", "deflate")),
    Device("zstd", "trained"),
    Device("zstd", "raw", "level=7"),
    Device("lz4", "raw"),
    Device("lz4hc", "raw"),
)
_WINDOWS = tuple(
    Device("deflate", params=f"deflate.winbits={bits}") for bits in (-15, -9, 12, 15)
)
_BUILT = (
    *map(Device, ("lzo", "lzo-rle", "842")),
    Device("lzo-rle", recompress=(("zstd", "type=huge"),)),
    Device("842", recompress=(("zstd", "type=idle"),)),
    Device("lz4", recompress=(("842", "type=huge"), ("deflate", "type=idle"))),
)
_PLAIN = Device("zstd", writeback="plain")
_COMPRESSED = Device("zstd", writeback="compressed")
_PACKED = Device("lz4", writeback="compressed")

MATRIX = (
    Spec("5.10", "zram", devices=(*_OLD, _PLAIN)),
    Spec("6.1", "zram", 5, True, devices=(*_OLD, _PLAIN)),
    Spec("6.12", "zram", 4, True, devices=(*_OWN, _PLAIN)),
    Spec("7.2", "zram", 5, True, (*_OWN, *_WINDOWS, _PLAIN, _COMPRESSED)),
    Spec("6.12-bench", "zram", 5, True, (*_OWN, *_BUILT, _PLAIN)),
    Spec("7.2-bench", "zram", devices=(*_OWN, *_BUILT, _WINDOWS[2], _PLAIN, _PACKED)),
    # zbud's pages have a head; the two newer ones use zsmalloc.
    Spec("5.10", "zswap", 4, True, append="zswap.enabled=1"),
    Spec("7.2", "zswap", append="zswap.enabled=1"),
    Spec("6.12-bench", "zswap", append="zswap.enabled=1 zswap.compressor=zstd"),
    Spec("7.2-bench", "zswap", 5, True, append="zswap.enabled=1 zswap.compressor=lz4"),
    Spec("6.12", "disk", 5, True),
)
"""What tests run over."""


def dictionaries() -> dict[str, bytes]:
    """Return dictionaries that a device can use, by name."""
    # Only this needs it.
    import zstandard

    language = [known_pages.page(5, 8 + 12 * i) for i in range(200)]
    lines = [known_pages.page(5, 3 + 12 * i) for i in range(200)]
    trained = zstandard.train_dictionary(4096, [*language, *lines]).as_bytes()
    return {"raw": b"".join(language[:2]), "trained": trained}


# --- what is written to a device


class Write(NamedTuple):
    """Known pages written on one CPU."""

    cpu: int
    first: int
    pages: int
    seed: int


DISCARDED = range(60, 72)
"""Pages that are thrown away after the first writes."""
NOT_IDLE = range(96)
"""Pages that are written after all have been marked idle."""


def first_writes(number: int) -> list[Write]:
    """Return what is written to a device, before DISCARDED."""
    seed = 16 * (number + 1)
    return [Write(0, 0, 192, seed), Write(1, 24, 24, seed + 1)]


def later_writes(number: int) -> list[Write]:
    """Return what is written after DISCARDED and after the marks.

    The discarded pages stay so.
    """
    seed = 16 * (number + 1) + 2
    gap = len(DISCARDED) + DISCARDED.start
    return [
        Write(1, NOT_IDLE.start, DISCARDED.start - NOT_IDLE.start, seed),
        Write(0, gap, NOT_IDLE.stop - gap, seed),
    ]


def last_writes(number: int) -> list[Write]:
    """Return what is written at last, on each CPU, a page each.

    Of every second device the last one of the first CPU is incompressible.
    """
    seed = 16 * (number + 1) + 3
    indices = (194, 199) if number % 2 else (200, 211)
    return [Write(cpu, index, 1, seed) for cpu, index in enumerate(indices)]


def known(number: int) -> dict[int, bytes]:
    """Return the pages of a device; those that have no content are not among them."""
    made: dict[int, bytes] = {}

    def write(writes: list[Write]) -> None:
        for one in writes:
            content = known_pages.pages(one.seed, one.first, one.pages)
            made.update(enumerate(content, one.first))

    write(first_writes(number))
    for index in DISCARDED:
        del made[index]
    write(later_writes(number))
    write(last_writes(number))
    return made


def last_pages(number: int) -> dict[int, bytes]:
    """Return the last page that each CPU wrote to a device, by CPU."""
    return {
        one.cpu: known_pages.page(one.seed, one.first) for one in last_writes(number)
    }


# --- the file system, and the process


def files() -> dict[str, bytes]:
    """Return the files of the file system, by path."""
    made = {
        f"made/{i}": b"".join(known_pages.pages(9000 + i, i, i * 7))[: -i or None]
        for i in range(8)
    }
    # The guest's own; all of it has been through its kernel's file system.
    made["copied"] = made["made/7"]
    made["numbers"] = b"".join(b"%d\n" % i for i in range(1, 30001))
    return made


MAPPINGS = ("parent", "child", "shared")
"""Of the process, of its child, and one of the parent's that is shared memory."""


class Process(NamedTuple):
    """A mapping of a process whose memory is known."""

    name: str
    """One of MAPPINGS."""
    pid: int
    start: int
    pages: int
    entries: tuple[int, ...]
    """Of /proc/PID/pagemap, one for each page."""
    resident: tuple[bool, ...]
    """What mincore() says: in memory, be it only in the swap cache."""

    def swapped(self, index: int) -> tuple[int, int] | None:
        """Return the type and the offset of a page's swap entry, if it has one."""
        entry = self.entries[index]
        if not entry >> 62 & 1:
            return None
        return entry & 31, entry >> 5 & (1 << 50) - 1


_HELD_SEED = 7777
_UNTOUCHED = 16
_AGAIN = 16
_SHARED = 64


def memory(spec: Spec, name: str) -> list[bytes]:
    """Return the pages of a process, those that it never touched as zeroes."""
    if name == "shared":
        return known_pages.pages(_HELD_SEED + 2, 0, _SHARED)
    made = known_pages.pages(_HELD_SEED, 0, spec.held)
    if name == "parent":
        first = spec.held - _AGAIN
        made[first:] = known_pages.pages(_HELD_SEED + 1, first, _AGAIN)
    return [*made, *[bytes(PAGE)] * _UNTOUCHED]


# --- what there is in the end


class Guest(NamedTuple):
    """What a guest has left."""

    spec: Spec
    kernel: Kernel
    folder: Path

    def dump(self, kind: str) -> Path:
        """Return a dump; one of spec.kinds."""
        return self.folder / dumps.KINDS[kind]

    def facts(self) -> dict[str, bytes]:
        """Return what the kernel said: "zram0/mm_stat", "swaps" and so on."""
        with tarfile.open(self.folder / "facts.tar") as tar:
            made = {}
            for member in tar:
                file = tar.extractfile(member)
                if file:
                    made[member.name.removeprefix("./")] = file.read()
            return made

    def processes(self) -> list[Process]:
        """Return the mappings whose content memory() knows."""
        facts = self.facts()
        made = []
        for name in MAPPINGS:
            pid, start, count = facts[f"process-{name}"].split()
            entries = struct.unpack(f"<{int(count)}Q", facts[f"pagemap-{name}"])
            resident = tuple(bool(byte & 1) for byte in facts[f"mincore-{name}"])
            place = (int(pid), int(start, 16), int(count))
            made.append(Process(name, *place, entries, resident))
        return made

    def backing(self, number: int) -> Path:
        """Return the backing disk of a device, as the guest left it."""
        return self.folder / f"backing{number}"


def _key(spec: Spec, kernel: Kernel) -> str:
    parts: list[Any] = [kernel.release, kernel.version, spec, _RECIPE]
    sources = ("agent.c", "kexec.c", "copy.c", "pages.c", "init.sh", "zram.sh")
    parts += [(guest.SOURCES / name).read_text() for name in sources]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return f"zram/{spec.name}-{digest[:12]}"


def cached(spec: Spec) -> Path | None:
    """Return the folder of a guest, or None if the cache has none."""
    if not kernels.cached(spec.kernel):
        return None
    return cache.find(_key(spec, kernels.get(spec.kernel)))


def get(spec: Spec, say: Say = bench.say) -> Guest:
    """Return what a guest has left, running it if the cache does not have it."""
    kernel = kernels.get(spec.kernel, say)
    key = _key(spec, kernel)

    def build(work: Path) -> dict[str, Any]:
        with bench.step(f"zram guest {spec.name}", say):
            _run(spec, kernel, work)
        return spec._asdict()

    folder = cache.find(key)
    if folder is None:
        folder = cache.make(key, build, room=(3 * _MEMORY_MIB) << 20)
        dumps.drop_old(folder)
    return Guest(spec, kernel, folder)


def matrix(
    specs: Sequence[Spec] = MATRIX, jobs: int = 2, say: Say = bench.say
) -> list[Guest]:
    """Return many guests, making what is missing, *jobs* at a time."""
    for name in dict.fromkeys(spec.kernel for spec in specs):
        kernels.get(name, say)
    with ThreadPoolExecutor(jobs) as pool:
        tell = (lambda line: say(line)) if jobs > 1 else say
        return list(pool.map(lambda spec: get(spec, tell), specs))


# --- the guest itself


@contextlib.contextmanager
def booted(
    spec: Spec,
    kernel: Kernel,
    dest: Path,
    vmcore: Path | None = None,
    **options: Any,
) -> Iterator[qemu.VM]:
    """Boot a guest; prepare() does the rest.

    :param dest: where the backing disks go.
    :param vmcore: the file to which a crash writes /proc/vmcore.
    :param options: more for qemu.booted().
    """
    with tempfile.TemporaryDirectory(dir=dest, prefix=".disks-") as temp:
        disks = list(options.pop("disks", ()))
        if spec.devices:
            disks.append(qemu.Disk(_image(Path(temp)), "files"))
        else:
            disks.append(qemu.Disk(_blank(Path(temp) / "swap", _SWAP_MIB), "swap"))
        for number, device in enumerate(spec.devices):
            if device.writeback:
                backing = _blank(dest / f"backing{number}", DISK_MIB)
                disks.append(qemu.Disk(backing, backing.name, keep=True))
        given = {
            f"{_DICTIONARIES}/{name}": content
            for name, content in dictionaries().items()
        }
        given["zram.sh"] = (guest.SOURCES / "zram.sh").read_bytes()
        options = {
            "levels": spec.levels,
            "kaslr": spec.kaslr,
            "smp": CPUS,
            "disks": disks,
            "programs": ("pages",),
            "memory_mib": _MEMORY_MIB,
            "append": f"{_CMDLINE} {spec.append}".strip(),
            **options,
            "files": {**given, **options.pop("files", {})},
        }
        if vmcore is not None:
            with dumps.armed(kernel, vmcore, **options) as vm:
                yield vm
        else:
            with qemu.booted(kernel, **options) as vm:
                yield vm


def _blank(path: Path, mib: int) -> Path:
    with path.open("wb") as file:
        file.truncate(mib << 20)
    return path


def _image(folder: Path) -> Path:
    """Make a file system with those of files() that the guest does not make."""
    content = folder / "content"
    for name, text in files().items():
        if name.startswith("made/"):
            path = content / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text)
    image = _blank(folder / "image", _IMAGE_MIB)
    # A device's logical block is a page.
    bench.run(["mkfs.ext4", "-q", "-F", "-b", str(PAGE), "-d", content, image])
    return image


def _run(spec: Spec, kernel: Kernel, dest: Path) -> None:
    vmcore = dest / dumps.KINDS["vmcore"] if "vmcore" in spec.kinds else None
    with booted(spec, kernel, dest, vmcore, folder=dest) as vm:
        (dest / "facts.tar").write_bytes(prepare(vm, spec))
        vm.dump(dest / dumps.KINDS["qemu"])
        if vmcore is not None:
            dumps.capture(vm, vmcore)
    dumps.dig_holes(dest / dumps.KINDS[kind] for kind in spec.kinds)


def prepare(vm: qemu.VM, spec: Spec) -> bytes:
    """Write all that is known, and return what the kernel says, as a tar archive."""
    disks = dict(
        line.split()
        for line in vm.run(
            "for serial in /sys/block/vd*/serial; do"
            " echo $(cat $serial) /dev/$(basename $(dirname $serial)); done"
        ).text.splitlines()
    )
    vm.run("mkdir -p /run/facts")
    if spec.devices:
        vm.run("modprobe zram 2>/dev/null; ls /sys/block/zram0")
        for _ in range(spec.swap_device):
            vm.run("cat /sys/class/zram-control/hot_add")
        for number, device in enumerate(spec.devices):
            backing = disks.get(f"backing{number}", "")
            vm.run("\n".join(["set -e", *_commands(number, device, backing)]))
        vm.run(_files_commands(spec.files_device, disks["files"]))
        area = f"/dev/zram{spec.swap_device}"
        vm.run(f"echo {_SWAP_MIB}M > /sys/block/{Path(area).name}/disksize")
    else:
        area = disks["swap"]
    vm.run(f"mkswap {area} && swapon {area}")
    vm.run(
        f"pages hold {_HELD_SEED} {spec.held} /run/facts > /run/held 2>&1 &"
        " while [ ! -e /run/facts/ready-all ]; do"
        " if [ -s /run/held ]; then cat /run/held; exit 1; fi; sleep 0.1; done"
    )
    # What was asked for has been written, and nothing is in flight.
    vm.run("sync")
    time.sleep(1)
    return gzip.decompress(vm.run("sh /zram.sh").stdout)


def _commands(number: int, device: Device, backing: str) -> Iterator[str]:
    where = f"/sys/block/zram{number}"

    def write(writes: list[Write]) -> Iterator[str]:
        for one in writes:
            numbers = f"{one.first} {one.pages} {one.seed}"
            yield f"pages write {one.cpu} /dev/zram{number} {numbers}"

    yield f"echo {device.algorithm} > {where}/comp_algorithm"
    params = device.params
    if device.dictionary:
        params += f" dict={_DICTIONARIES}/{device.dictionary}"
    if params:
        yield f"echo algo={device.algorithm} {params} > {where}/algorithm_params"
    for priority, (algorithm, _) in enumerate(device.recompress, 1):
        line = f"algo={algorithm} priority={priority}"
        yield f"echo {line} > {where}/recomp_algorithm"
    if device.writeback:
        yield f"echo {backing} > {where}/backing_dev"
    if device.writeback == "compressed":
        yield f"echo 1 > {where}/compressed_writeback"
    yield f"echo {DISK_MIB}M > {where}/disksize"
    yield f"echo {DISK_MIB}M > {where}/mem_limit"
    yield from write(first_writes(number))
    offset, length = DISCARDED.start * PAGE, len(DISCARDED) * PAGE
    yield f"blkdiscard -o {offset} -l {length} /dev/zram{number}"
    if number % 2:
        yield f"echo 1 > {where}/compact"
    yield f"echo all > {where}/idle"
    yield from write(later_writes(number))
    for priority, (_, what) in enumerate(device.recompress, 1):
        yield f"echo {what} priority={priority} > {where}/recompress"
    if device.writeback:
        yield f"echo huge > {where}/writeback"
        yield f"echo idle > {where}/writeback"
        # Comes from the disk.
        yield f"dd if=/dev/zram{number} of=/dev/null bs={PAGE} skip=100 count=8"
    yield from write(last_writes(number))


def _files_commands(number: int, image: str) -> str:
    device = f"/dev/zram{number}"
    return (
        f"set -e; echo {_IMAGE_MIB}M > /sys/block/zram{number}/disksize;"
        f" dd if={image} of={device} bs={PAGE} conv=fsync;"
        f" mount -t ext4 {device} /mnt; cp /mnt/made/7 /mnt/copied;"
        " seq 1 30000 > /mnt/numbers; umount /mnt"
    )
