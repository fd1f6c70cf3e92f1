"""The kernels of the bench: four generations from Debian, two built here."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

from . import apt, bench, build, cache
from .bench import BenchError, Say


class Kernel(NamedTuple):
    """A kernel that can be booted and whose dumps can be read."""

    name: str
    """What the bench calls it, a key of DEBIAN or BUILT."""
    release: str
    """What `uname -r` says in the guest."""
    version: str
    """The Debian package version it is made from."""
    vmlinuz: Path
    vmlinux: Path
    """The uncompressed kernel, with debug information."""
    config: Path
    modules: Optional[Path]
    """The folder in which lib/modules/RELEASE is; None without modules."""
    debug: Path
    """The folder of modules' debug information, NAME.ko."""

    def has(self, option: str) -> bool:
        """Whether a configuration option is y or m."""
        return bool(re.search(rf"(?m)^CONFIG_{option}=[ym]$", self.config.read_text()))

    @property
    def has_5_levels(self) -> bool:
        """Whether it can have 5-level page tables; new kernels always can."""
        return "# CONFIG_X86_5LEVEL is not set" not in self.config.read_text()

    def debug_files(self) -> list[Path]:
        """Return vmlinux and all that is kept of modules, for drgn to load."""
        return [self.vmlinux, *sorted(self.debug.glob("*.ko"))]

    def module_debug(self, name: str) -> Path:
        """Return a module's file with debug information, for drgn to load.

        :raises BenchError: it is not among DEBUG_MODULES, or not in this kernel.
        """
        path = self.debug / f"{name.replace('-', '_')}.ko"
        if not path.exists():
            raise BenchError(
                f"{self.name}: no debug information of module {name}; if the kernel"
                " has it, add it to DEBUG_MODULES and fetch the kernel again"
            )
        return path


class Debian(NamedTuple):
    """Where a Debian kernel comes from."""

    suites: tuple[str, ...]
    """Suites that may have it; one that is gone does not matter while another is."""
    release: str
    """Pattern of the release."""


DEBIAN = {
    # The last one with oprofile, which only the full configuration has.
    "5.10": Debian(("bullseye-security", "bullseye"), r"5\.10\.\d+-\d+-amd64"),
    "6.1": Debian(("bookworm", "bookworm-security"), r"6\.1\.\d+-\d+-cloud-amd64"),
    "6.12": Debian(
        ("trixie", "trixie-security", "bookworm-security", "bookworm-backports"),
        r"6\.12\.\d+\+deb1[23]-cloud-amd64",
    ),
    "7.2": Debian(("trixie-backports", "sid"), r"7\.2\.\d+\+deb1[34]-cloud-amd64"),
}

BUILT = {
    "6.12-bench": build.Recipe(
        "linux-source-6.12",
        ("trixie", "trixie-security", "bookworm-security", "bookworm-backports"),
        (
            "CONFIG_X86_5LEVEL=y",
            "CONFIG_MEMORY_BALLOON=y",
            "CONFIG_BALLOON_COMPACTION=y",
        ),
    ),
    "7.2-bench": build.Recipe(
        "linux-source-7.2",
        ("trixie-backports", "sid"),
        ("CONFIG_BALLOON=y", "CONFIG_BALLOON_MIGRATION=y"),
    ),
}

NAMES = (*DEBIAN, *BUILT)

# The image's packages, by how Debian split it at the time.
_PACKAGES = (
    ("linux-image-{}-unsigned",),
    ("linux-binary-unsigned-{}", "linux-modules-{}", "linux-base-{}"),
)

DEBUG_MODULES = (
    *("virtio", "virtio_ring", "virtio_blk", "virtio_balloon", "virtio_console"),
    *("virtio_pci", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "qemu_fw_cfg"),
    *("ext4", "jbd2", "mbcache", "crc16", "crc32c_generic", "crc32c_intel", "loop"),
    *("zram", "zsmalloc", "zbud", "z3fold", "lzo", "lzo_rle", "lz4", "lz4hc", "zstd"),
    *("lz4_compress", "lz4hc_compress", "zstd_compress", "842", "842_compress"),
    *("pstore", "pstore_blk", "pstore_zone", "ramoops", "reed_solomon"),
    *("oprofile", "hwpoison_inject"),
)
"""Modules whose debug information is kept; a whole -dbg package is gigabytes."""


def get(name: str, say: Say = bench.say, again: bool = False) -> Kernel:
    """Return a kernel, fetching or building it if the cache does not have it.

    :param again: look for a newer one even if the cache has it.
    :raises BenchError: it cannot be had; the first line of the message says why.
    """
    if name not in NAMES:
        raise BenchError(f"there is no kernel {name}; there are {', '.join(NAMES)}")
    folder = None if again else cache.find(f"kernels/{name}")
    if folder is None and name in DEBIAN:
        folder = _fetch(name, say, again)
    elif folder is None:
        folder = build.kernel(name, BUILT[name], say, again)
    said = cache.manifest(folder)
    return Kernel(
        name,
        said["release"],
        said["version"],
        folder / "vmlinuz",
        folder / "vmlinux",
        folder / "config",
        folder / "root" if (folder / "root").exists() else None,
        folder / "debug",
    )


def cached(name: str) -> bool:
    """Whether get() would take no time."""
    return cache.find(f"kernels/{name}") is not None


def _choose(name: str, suites: Sequence[str]) -> tuple[str, list[apt.Package]]:
    """Return the newest release that has everything, and its packages."""
    pattern = f"linux-image-({DEBIAN[name].release})-dbg"
    debug = [
        (match.group(1), package)
        for found, match in apt.names(suites, pattern).items()
        for package in apt.versions(suites, found)
    ]
    order = apt.newest_first([package for _, package in debug])
    for release, package in sorted(debug, key=lambda item: order.index(item[1])):
        for layout in _PACKAGES:
            image = [
                same
                for template in layout
                for same in apt.versions(suites, template.format(release))
                if same.version == package.version
            ]
            if len(image) == len(layout):
                return release, [*image, package]
    raise BenchError(
        f"the mirror has no kernel {name} with -dbg in {', '.join(suites)}"
    )


def _fetch(name: str, say: Say, again: bool) -> Path:
    bench.program("depmod")
    suites = apt.updated(DEBIAN[name].suites, say)
    release, packages = _choose(name, suites)

    def unpack(work: Path) -> dict[str, Any]:
        debs = work / "debs"
        sums = {}
        for package in packages:
            apt.download(suites, [package], debs, say)
            (deb,) = debs.glob("*.deb")
            sums[deb.name] = cache.sha256(deb)
            with bench.step(f"unpack {package.name}", say):
                if package.name.endswith("-dbg"):
                    _unpack_debug(deb, work, release)
                else:
                    apt.unpack(deb, work / "root", ["boot", "lib/modules"])
            deb.unlink()
        shutil.rmtree(debs)
        root = work / "root"
        if (root / "usr/lib/modules").exists():
            (root / "usr/lib").rename(root / "lib")
        for member in ("vmlinuz", "config"):
            # In /boot, or in newer packages beside the modules.
            found = [
                *(root / "boot").glob(f"{member}-{release}"),
                *(root / "lib/modules" / release).glob(f"{member}*"),
            ]
            if not found:
                raise BenchError(f"there is no {member} in the packages of {name}")
            found[0].rename(work / member)
        shutil.rmtree(root / "boot", ignore_errors=True)
        shutil.rmtree(root / "usr", ignore_errors=True)
        bench.run(["depmod", "-b", root, release])
        return {"release": release, "version": packages[-1].version, "sha256": sums}

    room = 3 * sum(p.size for p in packages) + (2 << 30)
    return cache.make(f"kernels/{name}", unpack, room=room, again=again)


def _unpack_debug(deb: Path, work: Path, release: str) -> None:
    raw = work / "raw"
    modules = [f"{re.sub('[-_]', '[-_]', name)}.ko*" for name in DEBUG_MODULES]
    apt.unpack(deb, raw, [f"vmlinux-{release}", "vmlinux", *modules])
    debug = work / "debug"
    debug.mkdir()
    for path in sorted(raw.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        if path.name.startswith("vmlinux"):
            path.rename(work / "vmlinux")
        else:
            stem = path.name.partition(".ko")[0].replace("-", "_")
            path.rename(debug / f"{stem}.ko")
    shutil.rmtree(raw)
    if not (work / "vmlinux").exists():
        raise BenchError(f"there is no vmlinux in {deb.name}")
