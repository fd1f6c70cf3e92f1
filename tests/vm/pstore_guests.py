"""Guests whose memory keeps a ramoops region over resets, and what they make of it.

A guest boots three times in the same memory. Each boot first hands over what its
kernel says about the boot before: the files of pstore. Then it writes to the zones
itself and dies, and the host copies the region while everything stands still, before
anybody has read it. So there are pairs: a region, and what a kernel made of it. In the
second boot QEMU writes a dump; in the third the guest may crash into a capture kernel.
"""

import contextlib
import gzip
import hashlib
import json
import re
import struct
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Optional

from . import bench, cache, dumps, guest, kernels, qemu
from .bench import Say
from .kernels import Kernel

BOOTS = 3
_RECIPE = 3  # Raised when the way a guest is made changes.

_ADDRESS = 160 << 20  # Below the capture kernel's memory, above what firmware uses.
_CRASHKERNEL_MIB = 128
_TRIES = 10
# Emulated on a busy machine, a timer looks broken when it is only late.
_PATIENT = "no_timer_check"
_SIG = 0x43474244
_BLOCK = 128
ECC_SIZE = 16


class Spec(NamedTuple):
    """A guest and its region; sizes in bytes."""

    kernel: str
    label: str
    smp: int = 1
    kaslr: bool = False
    ecc: bool = False
    reserve_mem: bool = False
    """Reserved with reserve_mem= (System RAM), else with memmap= (not)."""
    mem_size: int = 0x80000
    record_size: int = 0x4000
    console_size: int = 0x20000
    ftrace_size: int = 0x10000
    pmsg_size: int = 0x4000
    calls: int = 100
    """Of dd on each CPU in the first boot: two records each."""
    pmsg: int = 20
    kmsg: int = 20
    vmcore: bool = False

    @property
    def name(self) -> str:
        """What to call it."""
        return f"{self.kernel}-{self.label}"

    @property
    def writes_all(self) -> bool:
        """Whether the kernel has more than dmesg zones to write to."""
        return self.kernel in kernels.BUILT

    @property
    def memory_mib(self) -> int:
        """Of the guest."""
        return 384 if self.vmcore else 256


def _wrapped(spec: Spec) -> Spec:
    """The same with zones of which console, pmsg and ftrace wrap."""
    small = spec._replace(console_size=0x4000, ftrace_size=0x8000, pmsg_size=0x2000)
    return small._replace(calls=400, pmsg=300)


def _built(kernel: str) -> Iterator[Spec]:
    yield Spec(kernel, "plain")
    # Neither a power of two nor divisible: zones get odd sizes.
    odd = Spec(kernel, "ecc", smp=2, kaslr=True, ecc=True, mem_size=0x5A000)
    yield odd._replace(vmcore=True)
    four = Spec(kernel, "wrapped", smp=4, kaslr=True, reserve_mem=True, vmcore=True)
    yield _wrapped(four)
    three = Spec(kernel, "wrapped-ecc", smp=3, kaslr=True, ecc=True, mem_size=0x37000)
    yield _wrapped(three)


def _stock(kernel: str) -> Iterator[Spec]:
    yield _wrapped(Spec(kernel, "seeded", smp=2, kaslr=True))
    yield _wrapped(Spec(kernel, "seeded-ecc", smp=3, ecc=True, mem_size=0x37000))


MATRIX = (
    *(spec for kernel in kernels.BUILT for spec in _built(kernel)),
    *(spec for kernel in ("5.10", "6.1") for spec in _stock(kernel)),
)
"""What tests run over."""


# --- where the zones are, and how they are protected


class Place(NamedTuple):
    """Where a zone is in its region."""

    kind: str
    """dmesg, console, ftrace or pmsg."""
    number: int
    offset: int
    size: int


def places(spec: Spec) -> list[Place]:
    """Return the zones as the kernel lays them out (fs/pstore/ram.c)."""
    ftrace_last = spec.writes_all
    left = spec.mem_size - spec.console_size - spec.ftrace_size - spec.pmsg_size
    count = left // spec.record_size
    zones = [("dmesg", i, left // count & ~1) for i in range(count)]
    ftrace = [("ftrace", i, spec.ftrace_size // spec.smp & ~1) for i in range(spec.smp)]
    pmsg = [("pmsg", 0, spec.pmsg_size)]
    zones += [("console", 0, spec.console_size)]
    zones += [*pmsg, *ftrace] if ftrace_last else [*ftrace, *pmsg]
    found, offset = [], 0
    for kind, index, size in zones:
        found.append(Place(kind, index, offset, size))
        offset += size
    return found


def _field() -> tuple[list[int], list[int]]:
    power, value = [], 1
    for _ in range(255):
        power.append(value)
        value = value << 1 ^ (0x11D if value & 0x80 else 0)
    log = [0] * 256
    for exponent, element in enumerate(power):
        log[element] = exponent
    return power, log


_POWER, _LOG = _field()


def _times(a: int, b: int) -> int:
    return _POWER[(_LOG[a] + _LOG[b]) % 255] if a and b else 0


def _generator() -> list[int]:
    """The product of (x - 2^i), highest power first."""
    made = [1]
    for i in range(ECC_SIZE):
        shifted = [*made, 0]
        for at, factor in enumerate(made):
            shifted[at + 1] ^= _times(factor, _POWER[i])
        made = shifted
    return made


def parity(block: bytes) -> bytes:
    """Return the Reed-Solomon parity that ramoops keeps of a block (ecc=1)."""
    generator = _generator()
    rest = [*block, *bytes(ECC_SIZE)]
    for i in range(len(block)):
        factor = rest[i]
        if factor:
            for at, coefficient in enumerate(generator):
                rest[i + at] ^= _times(coefficient, factor)
    return bytes(rest[len(block) :])


def room(size: int, ecc: bool) -> int:
    """Return how many bytes of data a zone holds."""
    room = size - 12
    if not ecc:
        return room
    blocks = -(-(room - ECC_SIZE) // (_BLOCK + ECC_SIZE))
    return room - (blocks + 1) * ECC_SIZE


def zone(size: int, ecc: bool, text: bytes, signature: int = 0) -> bytes:
    """Return a zone that has had a text written to it, wrapped if it is too long."""
    data = bytearray(room(size, ecc))
    start = len(text) % len(data)
    kept = text[-len(data) :]
    if len(text) >= len(data):
        data[:] = kept[len(data) - start :] + kept[: len(data) - start]
    else:
        data[: len(kept)] = kept
    head = struct.pack("<III", _SIG ^ signature, start, len(kept))
    made = head + bytes(data)
    if ecc:
        for at in range(0, len(data), _BLOCK):
            made += parity(bytes(data[at : at + _BLOCK]))
        made += bytes(size - ECC_SIZE - len(made)) + parity(head)
    assert len(made) == size
    return made


def version(kernel: Kernel) -> tuple[int, int, int]:
    """Return what LINUX_VERSION_CODE says: the signature of ftrace zones has it."""
    # Stock kernels' releases do not have the last number.
    major, minor, sub = map(int, re.findall(r"\d+", kernel.version)[:3])
    return major, minor, min(sub, 255)


def seeded_ftrace(spec: Spec, cpu: int, address: int) -> list[tuple[int, int, int]]:
    """Return the records (ip, parent, counter and CPU) that a seeded zone has had."""
    return [
        (address + 16 * i, address + 32 * i, (spec.smp * i + cpu) << 8 | cpu)
        for i in range(600)
    ]


_SEED_TEXT = 0xFFFFFFFF81000000


def seed(spec: Spec, kernel: Kernel) -> bytes:
    """Return a region as a kernel with all of pstore would have left it."""
    made = b""
    for place in places(spec):
        signature = 0
        if place.kind == "dmesg":
            text = b"====%d.%06d-D\n" % (1500000000 + place.number, place.number)
            text += b"Oops#%d Part1\n<4>[    1.000000] seeded\n" % (place.number + 1)
            if place.number == 1:
                text = b""
        elif place.kind == "console":
            text = b"".join(b"[%5d.0] seeded console\n" % i for i in range(900))
        elif place.kind == "pmsg":
            text = b"".join(b"seeded message %d\n" % i for i in range(100))
        else:
            major, minor, sub = version(kernel)
            signature = major << 16 | minor << 8 | sub
            text = b"".join(
                struct.pack("<QQQ", *record)
                for record in seeded_ftrace(spec, place.number, _SEED_TEXT)
            )
        made += zone(place.size, spec.ecc, text, signature)
    return made + bytes(spec.mem_size - len(made))


DAMAGE = (
    # Kind, index, block (None: the header), how many bytes: up to 8 can be corrected.
    ("console", 0, 0, 5),
    ("console", 0, 3, 8),
    ("console", 0, 5, 12),
    ("console", 0, None, 3),
    ("pmsg", 0, 1, 8),
    ("dmesg", 0, 0, 1),
    ("dmesg", 0, 4, 7),
    ("ftrace", 0, 2, 6),
)
"""Bytes that are spoilt between two boots where there is ECC."""


def damage(spec: Spec, region: bytes) -> bytes:
    """Return a region with DAMAGE done to it."""
    spoilt = bytearray(region)
    for kind, index, block, count in DAMAGE:
        (place,) = (p for p in places(spec) if (p.kind, p.number) == (kind, index))
        if block is None:
            at, step = place.offset + 1, 3
        else:
            at, step = place.offset + 12 + block * _BLOCK, 7
        for i in range(count):
            spoilt[at + i * step] ^= 0x5A + i
    return bytes(spoilt)


# --- what there is in the end


class Guest(NamedTuple):
    """What a guest has left."""

    spec: Spec
    kernel: Kernel
    folder: Path

    @property
    def boots(self) -> range:
        """The boots that found a region, and made files of it."""
        return range(self.spec.writes_all, BOOTS)

    def region(self, boot: int) -> bytes:
        """The region as a boot found it."""
        return (self.folder / f"region-{boot}").read_bytes()

    def files(self, boot: int) -> dict[str, bytes]:
        """The files of pstore in a boot, by name."""
        with tarfile.open(self.folder / f"files-{boot}.tar") as tar:
            return {
                Path(member.name).name: _content(tar, member)
                for member in tar
                if member.isfile()
            }

    def mtimes(self, boot: int) -> dict[str, float]:
        """The times of these files."""
        with tarfile.open(self.folder / f"files-{boot}.tar") as tar:
            return {
                Path(member.name).name: member.mtime
                for member in tar
                if member.isfile()
            }

    def address(self, boot: int) -> int:
        """The region's physical address."""
        return int(json.loads(self._fact("addresses"))[boot])

    def slide(self, boot: int) -> int:
        """How far KASLR had moved the kernel."""
        return int(json.loads(self._fact("slides"))[boot])

    @property
    def dump(self) -> Path:
        """QEMU's dump, of the second boot."""
        return self.folder / "qemu.elf"

    @property
    def live(self) -> bytes:
        """The region at that moment."""
        return (self.folder / "live").read_bytes()

    @property
    def vmcore(self) -> Path:
        """/proc/vmcore of the third boot, if the spec wants one."""
        return self.folder / "vmcore"

    @property
    def crashed(self) -> bytes:
        """The region after that crash."""
        return (self.folder / "crashed").read_bytes()

    def _fact(self, name: str) -> str:
        return (self.folder / name).read_text()


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file
    return file.read()


def _key(spec: Spec, kernel: Kernel) -> str:
    parts: list[Any] = [kernel.release, kernel.version, spec, cmdline(spec)]
    parts += [_RECIPE, DAMAGE]
    parts += [
        (guest.SOURCES / name).read_text()
        for name in ("agent.c", "kexec.c", "copy.c", "init.sh", "pstore.sh")
    ]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return f"pstore/{spec.name}-{digest[:12]}"


def damaged(spec: Spec) -> Optional[int]:
    """Return the boot that finds a damaged region, if one does."""
    if not spec.ecc:
        return None
    return BOOTS - 1 if spec.writes_all else 0


def cached(spec: Spec) -> Optional[Path]:
    """Return the folder of a guest, or None if the cache has none."""
    if not kernels.cached(spec.kernel):
        return None
    return cache.find(_key(spec, kernels.get(spec.kernel)))


def get(spec: Spec, say: Say = bench.say) -> Guest:
    """Return what a guest has left, running it if the cache does not have it."""
    kernel = kernels.get(spec.kernel, say)
    key = _key(spec, kernel)

    def build(work: Path) -> dict[str, Any]:
        with bench.step(f"ramoops guest {spec.name}", say):
            _run(spec, kernel, work)
        return spec._asdict()

    folder = cache.find(key)
    if folder is None:
        folder = cache.make(key, build, room=(3 * spec.memory_mib) << 20)
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


def parameters(spec: Spec) -> dict[str, str]:
    """Return ramoops' parameters, but for where the region is."""
    return {
        "record_size": hex(spec.record_size),
        "console_size": hex(spec.console_size),
        "ftrace_size": hex(spec.ftrace_size),
        "pmsg_size": hex(spec.pmsg_size),
        "ecc": str(int(spec.ecc)),
        # So that "Emergency" is recorded, which every restart is.
        "max_reason": "4",
    }


def cmdline(spec: Spec) -> str:
    """Return what the kernel's command line says about ramoops."""
    given = parameters(spec)
    if spec.reserve_mem:
        words = [f"reserve_mem={spec.mem_size:#x}:4096:oops"]
        given["mem_name"] = "oops"
    else:
        words = [f"memmap={_reserved(spec):#x}${_ADDRESS:#x}"]
        given.update(_where(spec))
    if spec.writes_all:
        words += [f"ramoops.{name}={value}" for name, value in given.items()]
    # Zeroes take no room in the cache.
    return " ".join([*words, "init_on_free=1", _PATIENT])


def _where(spec: Spec) -> dict[str, str]:
    return {"mem_address": hex(_ADDRESS), "mem_size": hex(spec.mem_size)}


def _reserved(spec: Spec) -> int:
    return -(-spec.mem_size // 4096) * 4096


@contextlib.contextmanager
def booted(
    spec: Spec, kernel: Kernel, ram: Path, vmcore: Optional[Path] = None, **options: Any
) -> Iterator[qemu.VM]:
    """Boot a guest with a region.

    :param ram: the file of its memory.
    :param vmcore: the file to which a crash writes /proc/vmcore.
    :param options: more for qemu.booted().
    """
    append = cmdline(spec)
    memory_mib = options.pop("memory_mib", spec.memory_mib)
    disks = list(options.pop("disks", ()))
    files = {"pstore.sh": guest.SOURCES / "pstore.sh", **options.pop("files", {})}
    programs = [*options.pop("programs", ())]
    with tempfile.TemporaryDirectory(dir=ram.parent, prefix=".guest-") as temp:
        if vmcore is not None:
            with vmcore.open("wb") as file:
                file.truncate((memory_mib + 64) << 20)
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
            ram=ram,
            disks=disks,
            files=files,
            programs=programs,
            modules=(*guest.SPARE_MODULES, "ramoops"),
            memory_mib=memory_mib,
            **options,
        ) as vm:
            yield vm


def _run(spec: Spec, kernel: Kernel, dest: Path) -> None:
    ram, vmcore = dest / "ram", dest / "vmcore"
    address = 0
    addresses: list[int] = []
    slides: list[int] = []
    with booted(spec, kernel, ram, vmcore if spec.vmcore else None, folder=dest) as vm:
        for boot in range(BOOTS):
            region = b""
            if boot:
                die(vm, "c" if boot == 1 else "b")
                region = take(ram, address, spec.mem_size)
            elif not spec.writes_all:
                region = seed(spec, kernel)
            if boot == damaged(spec):
                region = damage(spec, region)
            if region:
                (dest / f"region-{boot}").write_bytes(region)
            address = go_on(vm, spec, ram, region, address if boot else None)
            addresses.append(address)
            slides.append(slide(vm))
            (dest / f"files-{boot}.tar").write_bytes(files(vm))
            if boot == BOOTS - 1:
                break
            write(vm, spec, boot)
            if boot == 1:
                vm.qmp("stop")
                vm.dump(dest / "qemu.elf")
                (dest / "live").write_bytes(take(ram, address, spec.mem_size))
                vm.qmp("cont")
        if spec.vmcore:
            write(vm, spec, boot)
            arm(vm)
            crash(vm, vmcore)
            (dest / "crashed").write_bytes(take(ram, address, spec.mem_size))
    (dest / "addresses").write_text(json.dumps(addresses))
    (dest / "slides").write_text(json.dumps(slides))
    ram.unlink()
    dumps.dig_holes(path for path in (dest / "qemu.elf", vmcore) if path.exists())


def arm(vm: qemu.VM) -> None:
    """Load the capture kernel."""
    vm.qmp("set-action", reboot="shutdown", shutdown="poweroff")
    capture = f"{dumps.CAPTURE_CMDLINE} {_PATIENT}"
    vm.run(f"kexec /kexec/vmlinuz /kexec/initrd '{capture}'")


def crash(vm: qemu.VM, vmcore: Path) -> None:
    """Crash, and wait until /proc/vmcore is in the file."""
    _press(vm, "c")
    dumps.captured(vm, vmcore)


def go_on(
    vm: qemu.VM, spec: Spec, ram: Path, region: bytes, address: Optional[int]
) -> int:
    """Boot again where there is an address, with that region there; return where."""
    if address is None:
        if region:
            put(ram, _ADDRESS, region)
        return start(vm, spec)
    for _ in range(_TRIES):
        put(ram, address, region)
        vm.reset()
        vm.qmp("cont")
        vm.ready()
        found = start(vm, spec)
        if found == address:
            return found
    # Where reserve_mem= finds room depends on where KASLR puts the kernel.
    raise vm.error(f"the region is not where it was in {_TRIES} boots")


def quiet(vm: qemu.VM) -> None:
    """Let the zones stay as they are: no function trace, nothing to the console."""
    vm.run("dmesg -n 1; echo 0 > /sys/kernel/debug/pstore/record_ftrace")


def take(ram: Path, address: int, size: int) -> bytes:
    """Read a guest's memory."""
    with ram.open("rb") as file:
        file.seek(address)
        return file.read(size)


def put(ram: Path, address: int, content: bytes) -> None:
    """Write to a guest's memory."""
    with ram.open("r+b") as file:
        file.seek(address)
        file.write(content)


def start(vm: qemu.VM, spec: Spec) -> int:
    """Load ramoops, mount pstore, and return the region's physical address."""
    if not spec.writes_all:
        given = {**parameters(spec), **_where(spec)}
        words = " ".join(f"{name}={value}" for name, value in given.items())
        vm.run(f"modprobe ramoops {words}")
    vm.run("mount -t pstore pstore /sys/fs/pstore")
    said = vm.run("dmesg | grep 'ramoops: using 0x'").text
    match = re.search(r"using 0x[0-9a-f]+@0x([0-9a-f]+), ecc: (\d+)", said)
    if not match or int(match.group(2)) != ECC_SIZE * spec.ecc:
        raise vm.error(f"ramoops is not as wanted: {said}")
    return int(match.group(1), 16)


def slide(vm: qemu.VM) -> int:
    """Return how far KASLR has moved a guest's kernel."""
    text = int(vm.run("grep -w _text /proc/kallsyms").text.split()[0], 16)
    return text - 0xFFFFFFFF81000000


def files(vm: qemu.VM) -> bytes:
    """Return the files of pstore as a tar archive."""
    # Of a function trace, stat says less than there is to read.
    vm.run("mkdir /tmp/pstore && cp -p /sys/fs/pstore/* /tmp/pstore || true")
    return gzip.decompress(vm.run("tar c -C /tmp/pstore . | gzip -1").stdout)


def write(vm: qemu.VM, spec: Spec, boot: int) -> None:
    """Let a guest write to the zones."""
    # Later boots leave something of the first.
    calls = spec.calls if boot == 0 else min(spec.calls, 100)
    vm.run(
        f"BOOT={boot} KMSG={spec.kmsg} PMSG={spec.pmsg} CALLS={calls} sh /pstore.sh",
        seconds=300,
    )


def _press(vm: qemu.VM, key: str) -> None:
    """On the first CPU, so that it is always the same."""
    pressed = f"taskset 1 sh -c 'echo {key} > /proc/sysrq-trigger'"
    vm.run(f"(sleep 0.2; {pressed}) >/dev/null 2>&1 &")


def die(vm: qemu.VM, key: str) -> None:
    """Press a SysRq key that restarts the machine, and stop just before it does."""
    vm.qmp("set-action", reboot="shutdown", shutdown="pause")
    _press(vm, key)
    limit = time.monotonic() + 60
    while vm.qmp("query-status")["status"] != "shutdown":
        if time.monotonic() > limit:
            raise vm.error("it does not die")
        time.sleep(0.05)
