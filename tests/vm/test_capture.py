# SPDX-License-Identifier: LGPL-2.1-or-later
"""`extract` where it is meant to run: in a capture kernel, with little memory."""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from drgn.helpers.linux.pid import for_each_task

from contrib import bundle
from drgn_tools.rearrange import rearrange

from . import bench, dumps, guest, kernels, peers, qemu
from .kernels import Kernel
from .test_extract import assert_reads_back, bitmap, extract, program

LEVELS = (31, 1)
MEMORY_MIB = 1280
CRASHKERNEL_MIB = 256
# The disk is slow, so that there is always more to write than it takes.
DISK_MIB_PER_SECOND = 20
# Whatever CPU the crash happens on, the capture kernel has a second one that it can
# start: never the first, for that would start the machine anew.
CPUS = 3
CMDLINE = dumps.CAPTURE_CMDLINE.replace("nr_cpus=1", "nr_cpus=2 disable_cpu_apicid=0")

# What does not compress, and what does.
FILL = """
dd if=/dev/urandom of=/dev/shm/noise bs=1M count=450 || exit 1
for serial in /sys/block/vd*/serial; do
	[ "$(cat "$serial")" = seed ] && seed=/dev/$(basename "$(dirname "$serial")")
done
dd if="$seed" of=/dev/null bs=1M count=200
"""


class Run(NamedTuple):
    """How `extract` did in the capture kernel, memory in KiB."""

    status: int
    cpus: int
    before: int
    """Memory that was available before."""
    available: int
    """The least while it ran."""
    unwritten: int
    """Dirty and in writeback, the most while it ran."""
    cached: int


class Capture(NamedTuple):
    kernel: Kernel
    vmcore: Path
    """/proc/vmcore, all of it."""
    outputs: Path
    """What was on the disk in the end; the dumps are named by their levels."""
    flat: Path
    """The disk to which a pipe went."""
    runs: dict[int, Run]
    log: str


def initramfs(path: Path, kernel: Kernel) -> Path:
    """Write the initramfs of a capture kernel that does what extract-init.sh says."""
    return guest.initramfs(
        path,
        kernel,
        init="extract-init.sh",
        programs=("copy",),
        load=("virtio_pci", "virtio_blk", "ext4"),
        modules=("crc32c_generic",),
        files={f"/python/{name}": data for name, data in bundle.files().items()},
    )


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Capture:
    kernel = kernels.get("6.1")
    work = tmp_path_factory.mktemp("capture")
    disk, vmcore, outputs = work / "disk", work / "vmcore", work / "outputs"
    flat = work / "flat"
    for path in (disk, flat):
        with path.open("wb") as file:
            file.truncate(MEMORY_MIB << 20)
    bench.run(["mkfs.ext4", "-q", disk])
    with dumps.armed(
        kernel,
        vmcore,
        memory_mib=MEMORY_MIB,
        crashkernel_mib=CRASHKERNEL_MIB,
        capture=initramfs(work / "initramfs", kernel),
        cmdline=CMDLINE,
        disks=[
            qemu.Disk(disk, "dumps", keep=True, write_mib=DISK_MIB_PER_SECOND),
            qemu.Disk(dumps.seed(), "seed"),
            qemu.Disk(flat, "flat", keep=True),
        ],
        kaslr=True,
        smp=CPUS,
        folder=work,
    ) as vm:
        vm.run(FILL)
        dumps.crash(vm)
        runs = {level: _wait(vm, level) for level in LEVELS}
        dumps.captured(vm, vmcore)
    outputs.mkdir()
    bench.run(["debugfs", "-R", "rdump / outputs", disk], cwd=work)
    log = (work / "serial.log").read_text(errors="replace")
    return Capture(kernel, vmcore, outputs, flat, runs, log)


def _wait(vm: qemu.VM, level: int) -> Run:
    numbers = "".join(rf" {field} (\d+)" for field in Run._fields)
    said = vm.wait_for(rf"bench: -d {level}{numbers}\s", 300, panic=True)
    return Run(*map(int, said.groups()))


@pytest.mark.verified(
    "extract: in a capture kernel with crashkernel=256M",
    by="MemAvailable while it writes, and exit status",
    on="6.1",
)
@pytest.mark.parametrize("level", LEVELS)
def test_little_memory_is_enough(
    capture: Capture, level: int, record_property: Callable[[str, object], None]
) -> None:
    run = capture.runs[level]
    size = (capture.outputs / str(level)).stat().st_size
    record_property(
        "capture",
        f"-d {level}: wrote {size >> 20} MiB with {run.before >> 10} MiB available, "
        f"{run.available >> 10} MiB at the least; at the most "
        f"{run.unwritten >> 10} MiB unwritten and {run.cached >> 10} MiB cached",
    )
    assert run.status == 0, capture.log[-4000:]
    assert run.cpus == 2
    if level == 1:
        assert size > 3 * run.before << 10, "it would have fit into memory"


def test_nothing_was_killed(capture: Capture) -> None:
    assert "Out of memory" not in capture.log


def test_nothing_but_the_dumps_is_left(capture: Capture) -> None:
    names = {path.name for path in capture.outputs.iterdir()}
    assert names == {"lost+found", *map(str, LEVELS)}
    for level in LEVELS:
        mode = (capture.outputs / str(level)).stat().st_mode
        assert stat.S_IMODE(mode) == 0o600


@pytest.mark.verified(
    "extract: in a capture kernel with crashkernel=256M",
    by="a copy of /proc/vmcore, page by page",
    on="6.1",
)
@pytest.mark.parametrize("level", LEVELS)
def test_pages_are_those_of_vmcore(
    capture: Capture, level: int, tmp_path: Path
) -> None:
    ours, hosts = capture.outputs / str(level), tmp_path / "dump"
    extract(capture.vmcore, hosts, "-d", str(level))
    assert (bitmap(ours) == bitmap(hosts)).all()
    assert_reads_back(capture.vmcore, ours)


@pytest.mark.verified(
    "extract: in a capture kernel with crashkernel=256M",
    by="drgn on a copy of /proc/vmcore",
    on="6.1",
)
def test_drgn_lists_all_tasks(capture: Capture) -> None:
    outputs = [capture.outputs / str(level) for level in LEVELS]
    seen = []
    for path in (capture.vmcore, *outputs):
        tasks = for_each_task(program(capture.kernel, path))
        seen.append([(task.pid.value_(), task.comm.string_()) for task in tasks])
    assert {b"init", b"kthreadd"} <= {comm for _, comm in seen[0]}
    assert seen == [seen[0]] * len(seen)


def test_a_pipe_gets_the_same_dump(capture: Capture, tmp_path: Path) -> None:
    """makedumpfile and we make the same of the stream, and it has the same pages."""
    assert "bench: pipe status 0" in capture.log
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    argv = [*peers.argv("makedumpfile-sid"), "-R", str(theirs)]
    with capture.flat.open("rb") as disk:
        subprocess.run(argv, stdin=disk, check=True, capture_output=True)
        disk.seek(0)
        rearrange(disk.fileno(), str(ours), False)
    assert ours.read_bytes() == theirs.read_bytes()
    assert (bitmap(ours) == bitmap(capture.outputs / "31")).all()
    assert_reads_back(capture.vmcore, ours)
