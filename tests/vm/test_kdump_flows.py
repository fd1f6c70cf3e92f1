# SPDX-License-Identifier: LGPL-2.1-or-later
"""The collector in images that dracut and initramfs-tools make, from crash to dump."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from drgn.helpers.linux.pid import for_each_task

from contrib import install

from . import bench, chroot, dumps, kernels, qemu
from .kernels import Kernel
from .test_extract import program

MEMORY_MIB = 2048
CRASHKERNEL_MIB = 256
DISK_MIB = 512
CMDLINE = f"{dumps.CAPTURE_CMDLINE} root=LABEL=kdump ro"
DRIVERS = ("virtio_pci", "virtio_blk", "ext4", "crc32c_generic")

# The line that docs/kdump.md has people add to /etc/default/kdump-tools.
KDUMP_TOOLS_LINE = "PATH=/usr/lib/drgn-tools/kdump-tools:/bin:/usr/bin:/sbin:/usr/sbin"

# Runs beside the collector, and says how little memory is left.
WATCH = """\
(
	least=999999999
	while :; do
		while read -r name value _; do
			[ "$name" = MemAvailable: ] && break
		done < /proc/meminfo
		if [ "$value" -lt "$((least - 200))" ]; then
			least=$value
			echo "bench: available $least" > /dev/console
		fi
		sleep 0.2
	done
) &
"""

TASKS = 'for task in /proc/[0-9]*/task/[0-9]*; do echo "${task##*/}"; done'


class Flow(NamedTuple):
    """What was found after a crash."""

    kernel: Kernel
    files: dict[str, Path]
    """What is on the disk, below the folder where dumps go."""
    log: str
    steady: set[int]
    """Tasks that there were for some time, by PID."""
    seen: set[int]
    """All that were seen."""


def disk(path: Path, content: Path) -> None:
    """Make the file system that is the capture kernel's root."""
    with path.open("wb") as file:
        file.truncate(DISK_MIB << 20)
    bench.run(["mkfs.ext4", "-q", "-L", "kdump", "-d", content, path])


def crash(
    work: Path,
    kernel: Kernel,
    image: Path,
    root: Path,
    done: str,
    cmdline: str = CMDLINE,
    crashkernel_mib: int = CRASHKERNEL_MIB,
) -> Flow:
    """Crash a guest that captures itself with an image, and look at its disk.

    :param root: what is on the disk.
    :param done: what the serial log has in the end, a pattern.
    """
    disk(work / "disk", root)
    with dumps.armed(
        kernel,
        work / "out",
        memory_mib=MEMORY_MIB,
        crashkernel_mib=crashkernel_mib,
        capture=image,
        cmdline=cmdline,
        disks=[qemu.Disk(work / "disk", "root", keep=True)],
        kaslr=True,
        smp=2,
        folder=work,
    ) as vm:
        # Twice, for what there is only for a moment.
        first, second = (set(map(int, vm.run(TASKS).text.split())) for _ in "12")
        dumps.crash(vm)
        vm.wait_for(done, 600, panic=True)
        vm.wait_end()
    bench.run(["debugfs", "-R", "rdump /var/crash .", work / "disk"], cwd=work)
    files = {
        str(path.relative_to(work / "crash")): path
        for path in (work / "crash").rglob("*")
        if path.is_file()
    }
    log = (work / "serial.log").read_text(errors="replace")
    return Flow(kernel, files, log, first & second, first | second)


def assert_all_tasks(flow: Flow, dump: Path) -> None:
    """drgn lists those that the guest had, and no others but new ones."""
    found = {task.pid.value_() for task in for_each_task(program(flow.kernel, dump))}
    assert flow.steady <= found
    assert max(flow.seen) < min(found - flow.seen, default=1 << 30)


def tell(flow: Flow, what: str, tell: Callable[[str, object], None]) -> None:
    """Have the end of the test run say how much memory was left."""
    available = [int(n) for n in re.findall(r"bench: available (\d+)", flow.log)]
    tell(
        "capture",
        f"{what}, crashkernel={CRASHKERNEL_MIB}M: {available[0] >> 10} MiB available "
        f"before, {min(available) >> 10} MiB at the least",
    )
    assert "Out of memory" not in flow.log


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    return kernels.get("6.1")


def dracut(work: Path, kernel: Kernel, collector: str) -> tuple[Path, str]:
    """Make an image as mkdumprd does, as small; return it and what dracut says."""
    root = chroot.copy(work / "system")
    install.install("dracut", root)
    (root / "etc/kdump.conf").write_text(
        f"path /var/crash\ncore_collector {collector} # ours\nfinal_action poweroff\n"
    )
    (root / "watch.sh").write_text(WATCH)
    said = chroot.run(
        root,
        [
            *("dracut", "--force", "--no-hostonly", "--compress", "zstd -3"),
            *("--modules", "base kernel-modules rootfs-block udev-rules drgn-tools"),
            # No others, and these without udev having to find what needs them.
            *("--drivers", " ".join(DRIVERS), "--force-drivers", " ".join(DRIVERS)),
            *("--kver", kernel.release),
            *("--include", "/watch.sh", "/usr/lib/dracut/hooks/pre-pivot/10-watch.sh"),
            "/image",
        ],
        modules=f"{kernel.modules}/lib/modules",
    )
    return root / "image", said


@pytest.mark.verified(
    "kdump: dracut's image",
    by="a crash of a guest, and drgn on what was saved",
    on="6.1",
)
def test_dracut(
    kernel: Kernel, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """/etc/kdump.conf names us, and the dump is where kdump would put it."""
    image, said = dracut(tmp_path, kernel, "drgn-tools extract -d 31")
    assert re.search(r"\d\d\.\d MB  drgn-tools, \d+ files", said)
    flow = crash(tmp_path, kernel, image, empty(tmp_path), SAVED)
    assert_saved(flow)
    tell(flow, "dracut", record_property)


SAVED = r"drgn-tools: sav[^\r\n]* exit status \d+"


def empty(work: Path) -> Path:
    """What must be on a root file system for an initramfs to take it as one."""
    root = work / "root"
    for name in ("dev", "proc", "run", "sys", "var/crash"):
        (root / name).mkdir(parents=True)
    return root


def assert_saved(flow: Flow) -> None:
    """There is a dump where kdump puts it, and it can be read."""
    (name,) = flow.files
    assert re.fullmatch(r"127\.0\.0\.1-\d{4}-\d\d-\d\d-\d\d:\d\d:\d\d/vmcore", name)
    assert f"drgn-tools: saved /var/crash/{name}, exit status 0" in flow.log
    dump = flow.files[name]
    assert stat.S_IMODE(dump.stat().st_mode) == 0o600
    assert_all_tasks(flow, dump)


# What systemd's kdump-tools-dump.service runs, but for the restart behind it.
KDUMP_TOOLS = """\
#!/bin/sh
export PATH=/usr/sbin:/usr/bin
mount -o remount,rw /
sh /watch.sh
kdump-config savecore
echo "bench: kdump-config status $?" > /dev/console
mount -o remount,ro /
poweroff -f
"""


def kdump_tools(work: Path, kernel: Kernel) -> Path:
    """Return a Debian system with kdump-tools' own image in it."""
    root = chroot.copy(work / "system")
    # In place of what its scripts ask at installation.
    shared = root / "usr/share/kdump-tools/kdump-tools.conf"
    (root / "etc/default/kdump-tools").write_bytes(shared.read_bytes())
    settings = root / "etc/initramfs-tools"
    with (settings / "initramfs.conf").open("a") as file:
        file.write("MODULES=list\n")
    (settings / "modules").write_text("\n".join(DRIVERS) + "\n")
    boot = root / "boot"
    (boot / f"vmlinuz-{kernel.release}").write_bytes(b"")
    (boot / f"config-{kernel.release}").write_bytes(kernel.config.read_bytes())
    (root / "watch.sh").write_text(WATCH)
    return root


def kdump_tools_image(root: Path, kernel: Kernel) -> tuple[Path, str]:
    """Have kdump-tools make its image; return it and what that says."""
    said = chroot.run(
        root,
        ["/etc/kernel/postinst.d/kdump-tools", kernel.release],
        modules=f"{kernel.modules}/lib/modules",
    )
    return root / f"var/lib/kdump/initrd.img-{kernel.release}", said


@pytest.mark.verified(
    "kdump: kdump-tools (`kdump-config savecore`)",
    by="a crash of a guest, and drgn on what was saved",
    on="6.1",
)
def test_kdump_tools(
    kernel: Kernel, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """kdump-config runs us from the root file system, in place of makedumpfile."""
    root = kdump_tools(tmp_path, kernel)
    install.install("kdump-tools", root)
    with (root / "etc/default/kdump-tools").open("a") as file:
        file.write(f"{KDUMP_TOOLS_LINE}\n")
    image, _ = kdump_tools_image(root, kernel)
    init = root / "capture"
    init.write_text(KDUMP_TOOLS)
    init.chmod(0o755)
    flow = crash(
        tmp_path,
        kernel,
        image,
        root,
        r"bench: kdump-config status \d+",
        cmdline=f"{CMDLINE} init=/capture",
    )
    assert "bench: kdump-config status 0" in flow.log
    names = {re.sub(r"\d{12}", "STAMP", name) for name in flow.files}
    assert names == {"STAMP/dump.STAMP", "STAMP/dmesg.STAMP"}
    (dump,) = (path for name, path in flow.files.items() if "/dump." in name)
    assert_all_tasks(flow, dump)
    (dmesg,) = (path for name, path in flow.files.items() if "/dmesg." in name)
    assert "sysrq: Trigger a crash" in dmesg.read_text()
    tell(flow, "kdump-tools", record_property)


@pytest.mark.verified(
    "kdump: initramfs-tools' image",
    by="a crash of a guest, and drgn on what was saved",
    on="6.1",
)
def test_initramfs_tools(
    kernel: Kernel, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The hook's image saves the dump before the system is started."""
    root = kdump_tools(tmp_path, kernel)
    install.install("initramfs-tools", root)
    script = root / "etc/initramfs-tools/scripts/local-bottom/awatch"
    script.write_text(f"#!/bin/sh\n[ $1 = prereqs ] && exit 0\n{WATCH}")
    script.chmod(0o755)
    (root / "etc/kdump.conf").write_text(
        "final_action poweroff\n"
        "core_collector drgn-makedumpfile -l --message-level 7 -d 31\n"
    )
    image, said = kdump_tools_image(root, kernel)
    assert re.search(r"\d\d\.\d MB  drgn-tools, \d+ files", said)
    flow = crash(tmp_path, kernel, image, empty(tmp_path), SAVED)
    assert_saved(flow)
    tell(flow, "initramfs-tools", record_property)
