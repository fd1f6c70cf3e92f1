"""What runs in a guest: an initramfs of busybox, modules and small C programs."""

import hashlib
import io
import lzma
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Union

from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment

from . import bench, cache
from .bench import BenchError
from .kernels import Kernel

SOURCES = Path(__file__).with_name("guest")

_CFLAGS = ("-static", "-O2", "-Wall")
_THIS_MODULE = ".gnu.linkonce.this_module"
# What the ABI of x86-64 kernels asks for.
_MODULE_CFLAGS = (
    *(
        "-O2",
        "-Wall",
        "-Werror",
        "-ffreestanding",
        "-mcmodel=kernel",
        "-fno-pic",
        "-fno-pie",
    ),
    *("-mno-red-zone", "-mgeneral-regs-only", "-fno-stack-protector"),
    *("-fcf-protection=branch", "-fno-asynchronous-unwind-tables", "-c"),
)

BOOT_MODULES = ("virtio_pci", "virtio_blk", "qemu_fw_cfg", "virtio_balloon", "ext4")
"""What every guest loads, as far as its kernel has it as modules."""

SPARE_MODULES = (
    "crc32c_generic",
    "loop",
    "lz4",
    "lz4hc",
    "lzo",
    "lzo-rle",
    "zram",
    "zstd",
)
"""What every guest can load, by itself or with `modprobe`, likewise."""


def program(source: Path) -> Path:
    """Compile a C program statically; return the executable, in the cache."""
    text = source.read_bytes()
    digest = hashlib.sha256(b"\0".join([text, *map(str.encode, _CFLAGS)])).hexdigest()
    name = source.stem

    def compile_it(work: Path) -> dict[str, Any]:
        bench.need_library("/usr/include/stdlib.h")
        bench.run(
            ["gcc", *_CFLAGS, "-o", work / name, source], what=f"compiling {name}"
        )
        return {"source": name}

    return cache.make(f"programs/{name}-{digest[:16]}", compile_it) / name


def module(kernel: Kernel, source: Path) -> bytes:
    """Compile a kernel module that needs no headers; see guest/trace_printk.c.

    :param kernel: one with modules: they show what its modules look like.
    """
    *_, model = _dependencies(kernel, "loop")
    content = model.read_bytes()
    if model.suffix == ".xz":
        content = lzma.decompress(content)
    elf = ELFFile(io.BytesIO(content))
    head: Any = elf.get_section_by_name(_THIS_MODULE)
    moved: Any = elf.get_section_by_name(f".rela{_THIS_MODULE}")
    symbols: Any = elf.get_section(moved["sh_link"])
    modinfo: Any = elf.get_section_by_name(".modinfo")
    offsets = {
        symbols.get_symbol(entry["r_info_sym"]).name: entry["r_offset"]
        for entry in moved.iter_relocations()
    }
    info = modinfo.data().decode().split("\0")
    said = dict(line.split("=", 1) for line in info if line)
    defines = (
        f"-DSIZE={head['sh_size']}",
        f"-DNAME_OFFSET={head.data().index(b'loop')}",
        f"-DINIT_OFFSET={offsets['init_module']}",
        f'-DVERMAGIC="{said["vermagic"]}"',
    )
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "module.ko"
        bench.run(
            ["gcc", *_MODULE_CFLAGS, *defines, "-o", made, source],
            what=f"compiling {source.name}",
        )
        return made.read_bytes()


def _dependencies(kernel: Kernel, name: str) -> list[Path]:
    """Return a module and what it needs, in loading order; nothing if built in."""
    if kernel.modules is None:
        return []
    argv = [bench.program("modprobe"), "-d", str(kernel.modules)]
    argv += ["-S", kernel.release, "--show-depends", name]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"kernel {kernel.name} has no module {name}")
    lines = [line.split() for line in done.stdout.splitlines()]
    return [Path(line[1]) for line in lines if line[0] == "insmod"]


def has_module(kernel: Kernel, name: str) -> bool:
    """Whether a kernel has something as a module (rather than built in or not)."""
    try:
        return bool(_dependencies(kernel, name))
    except BenchError:
        return False


def _stage_modules(kernel: Kernel, names: Iterable[str], stage: Path) -> None:
    """Copy modules and what they need, uncompressed, where modprobe looks."""
    if kernel.modules is None:
        return
    base = kernel.modules / "lib/modules" / kernel.release
    target = stage / "lib/modules" / kernel.release
    target.mkdir(parents=True)
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        if (base / name).exists():
            shutil.copy(base / name, target)
    for name in names:
        for path in _dependencies(kernel, name):
            copy = target / path.resolve().relative_to(base.resolve())
            copy = copy.with_name(copy.name.partition(".ko")[0] + ".ko")
            if copy.exists():
                continue
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".xz":
                copy.write_bytes(lzma.decompress(path.read_bytes()))
            else:
                shutil.copy(path, copy)
    bench.run(["depmod", "-b", stage, kernel.release])


def _is_static(path: Path) -> bool:
    with path.open("rb") as file:
        segments = ELFFile(file).iter_segments()
        return not any(isinstance(segment, InterpSegment) for segment in segments)


class _Cpio:
    """Writes a newc archive, which a kernel unpacks as its root file system."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._count = 0
        self._folders: set[str] = set()

    def add(
        self,
        name: str,
        mode: int,
        content: bytes = b"",
        device: tuple[int, int] = (0, 0),
    ) -> None:
        self._count += 1
        encoded = name.encode() + b"\0"
        fields = (self._count, mode, 0, 0, 1, 0, len(content), 0, 0, *device)
        head = b"070701" + b"".join(b"%08X" % field for field in fields)
        head += b"%08X%08X" % (len(encoded), 0) + encoded
        for part in (head, content):
            self._file.write(part + bytes(-len(part) % 4))

    def parents(self, name: str) -> None:
        for parent in reversed(Path(name).parents[:-1]):
            if str(parent) not in self._folders:
                self._folders.add(str(parent))
                self.add(str(parent), stat.S_IFDIR | 0o755)

    def file(self, name: str, content: bytes, mode: int = 0o755) -> None:
        self.parents(name)
        self.add(name, stat.S_IFREG | mode, content)


def initramfs(
    path: Path,
    kernel: Kernel,
    *,
    init: Union[str, Path] = "init.sh",
    programs: Sequence[Union[str, Path]] = ("agent",),
    load: Sequence[str] = BOOT_MODULES,
    modules: Sequence[str] = SPARE_MODULES,
    files: Mapping[str, Union[bytes, Path]] = {},
) -> Path:
    """Write an initramfs.

    :param init: the /init script, a path or the name of a file in guest/.
    :param programs: C programs to put into /bin, paths or names without ".c" of
        files in guest/.
    :param load: modules that /init loads, as far as the kernel has them.
    :param modules: modules that a command or the kernel can load later, likewise.
    :param files: other files: the absolute path in the guest, and the content.
    """
    busybox = bench.program("busybox")
    applets = subprocess.run(
        [busybox, "--list"], capture_output=True, text=True, check=True
    ).stdout.split()
    shell = Path(busybox).read_bytes()
    if not _is_static(Path(busybox)):
        raise BenchError("busybox is not static: install Debian package busybox-static")
    loaded = [name for name in load if has_module(kernel, name)]
    later = [name for name in modules if has_module(kernel, name)]
    with path.open("wb") as file, tempfile.TemporaryDirectory() as stage:
        cpio = _Cpio(file)
        for folder in ("bin", "dev", "etc", "lib", "mnt", "proc", "run", "sys", "tmp"):
            cpio.parents(f"{folder}/x")
        cpio.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
        cpio.file("bin/busybox", shell)
        # Where the kernel looks for modprobe.
        cpio.add("sbin", stat.S_IFLNK | 0o777, b"bin")
        compiled = {}
        for source in programs:
            full = SOURCES / f"{source}.c" if isinstance(source, str) else source
            compiled[full.stem] = program(full)
        for applet in applets:
            if applet not in ("busybox", *compiled):
                cpio.add(f"bin/{applet}", stat.S_IFLNK | 0o777, b"busybox")
        for name, binary in compiled.items():
            cpio.file(f"bin/{name}", binary.read_bytes())
        cpio.file("init", (SOURCES / init).read_bytes())
        cpio.file("etc/modules", "".join(f"{m}\n" for m in loaded).encode())
        _stage_modules(kernel, [*loaded, *later], Path(stage))
        for staged in sorted(Path(stage).rglob("*")):
            if staged.is_file():
                cpio.file(str(staged.relative_to(stage)), staged.read_bytes(), 0o644)
        for name, content in files.items():
            data = content.read_bytes() if isinstance(content, Path) else content
            cpio.file(name.lstrip("/"), data)
        cpio.add("TRAILER!!!", 0)
    return path
