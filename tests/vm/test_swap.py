# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tasks' memory: in ELF cores that lack pages, with huge pages and poison, and by the
command. What is swapped out is in test_zram.py."""

from __future__ import annotations

import collections
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import drgn
import pytest
from drgn.helpers.linux.mm import access_process_vm, for_each_vma, task_rss
from drgn.helpers.linux.pid import find_task, for_each_task

from drgn_tools import swap
from drgn_tools.mappings import for_each_mapping
from drgn_tools.program import open_dump
from tests import command

from . import dumps, peers, zram_guests
from .known_pages import PAGE
from .test_extract import extract
from .zram_guests import Guest

BY_KERNEL = {spec.kernel: spec for spec in zram_guests.MATRIX if spec.devices}


def filled(dump: dumps.Dump) -> Iterator[tuple[int, int, int, str]]:
    """Yield processes that hold memory of one kind: pid, address, size, kind."""
    for line in dump.fact("fill").decode().splitlines():
        words = line.split()
        if len(words) == 4 and words[0].isdigit():
            yield int(words[0]), int(words[1], 16), int(words[2]), words[3]


@pytest.mark.verified("swap: resident memory", by="drgn's access_process_vm()")
@pytest.mark.parametrize("spec", dumps.MATRIX, ids=lambda spec: spec.name)
def test_resident_memory_is_what_drgn_reads(spec: dumps.Spec) -> None:
    """drgn walks page tables too, as far as pages are present."""
    dump = next(dump for dump in dumps.both(spec) if dump.kind == "vmcore")
    prog = drgn.Program()
    prog.set_core_dump(dump.path)
    prog.load_debug_info([dump.kernel.vmlinux])
    kinds = collections.defaultdict(set)
    for pid, address, size, kind in filled(dump):
        # Of zram there are no symbols here.
        if kind == "swap":
            continue
        task = find_task(prog, pid)
        for page in swap.swap_pages(task, address, size):
            kinds[kind].add(page.kind)
            if page.kind == "resident":
                assert page.data == access_process_vm(task, page.address, PAGE)
            else:
                with pytest.raises(drgn.FaultError):
                    access_process_vm(task, page.address, 1)
    # What the process read last may not be mapped for it.
    assert kinds.pop("mapped") - {"page cache"} == {"resident"}
    # Debian's 6.1 cannot make any.
    poison = {"hwpoison"} if spec.kernel != "6.1" else set()
    assert kinds.pop("poison") == {"resident"} | poison
    assert kinds.keys() == {"anon", "thp", "zero", "ksm", "hugetlb"}
    assert all(found == {"resident"} for found in kinds.values())


@pytest.mark.verified("swap: mappings", by="drgn's for_each_vma()")
@pytest.mark.parametrize("spec", dumps.MATRIX[::2], ids=lambda spec: spec.name)
def test_mappings_are_those_that_drgn_finds(spec: dumps.Spec) -> None:
    dump = next(dump for dump in dumps.both(spec) if dump.kind == "vmcore")
    prog = drgn.Program()
    prog.set_core_dump(dump.path)
    prog.load_debug_info([dump.kernel.vmlinux])
    most = 0
    for task in for_each_task(prog):
        if not task.mm:
            continue
        found = [(m.start, m.end, m.first) for m in for_each_mapping(task.mm)]
        assert found == [
            (v.vm_start.value_(), v.vm_end.value_(), v.vm_pgoff.value_())
            for v in for_each_vma(task.mm)
        ]
        most = max(most, len(found))
    assert most > 4


def opened(guest: Guest, path: Path) -> drgn.Program:
    prog = drgn.Program()
    prog.set_core_dump(path)
    prog.load_debug_info(guest.kernel.debug_files())
    return prog


@pytest.mark.verified(
    "swap: ELF cores that lack pages", by="what the guest's process wrote, page by page"
)
@pytest.mark.parametrize("writer", ["extract", "makedumpfile"])
@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_elf_cores_that_lack_pages(kernel: str, writer: str, tmp_path: Path) -> None:
    """drgn reads zeros where pages were left out, and we do not."""
    spec = BY_KERNEL[kernel]
    guest = zram_guests.get(spec)
    source, target = guest.dump("vmcore"), tmp_path / "core"
    if writer == "extract":
        extract(source, target, "-d", "31", "-E")
    else:
        argv = [*peers.argv("makedumpfile-sid"), "-E", "-d", "31"]
        done = subprocess.run([*argv, source, target], capture_output=True)
        assert done.returncode == 0, done.stdout + done.stderr
    prog = opened(guest, target)
    kinds: collections.Counter[str] = collections.Counter()
    for process in guest.processes():
        task = find_task(prog, process.pid)
        pages = swap.swap_pages(task, process.start, process.pages * PAGE)
        known = zram_guests.memory(spec, process.name)
        for index, (page, wanted) in enumerate(zip(pages, known)):
            kinds[page.kind] += 1
            if page.kind in ("excluded", "untouched"):
                assert page.data is None and page.note
            else:
                assert page.data == wanted
            if process.entries[index] >> 63 and page.kind != "resident":
                assert page.kind == "excluded"
                assert access_process_vm(task, page.address, PAGE) == bytes(PAGE)
    assert kinds["excluded"] > 0 and kinds["zram"] > 0
    # makedumpfile keeps what lies between pages that it keeps.
    if writer == "extract":
        assert kinds.keys() - {"zero"} == {"excluded", "untouched", "zram"}


def symbols(guest: Guest) -> list[Path]:
    names = ("vmlinux", "zram", "zsmalloc")
    return [file for file in guest.kernel.debug_files() if file.stem in names]


def run(guest: Guest, *options: str) -> subprocess.CompletedProcess[str]:
    process = guest.processes()[0]
    argv = [sys.executable, "-m", "drgn_tools", "swap", str(guest.dump("vmcore"))]
    argv += [f"--symbols={path}" for path in symbols(guest)]
    argv += [f"--address={process.start:#x}", f"--size={process.pages * PAGE}"]
    return subprocess.run([*argv, *options], capture_output=True, text=True)


def test_command(tmp_path: Path) -> None:
    spec = BY_KERNEL["6.12"]
    guest = zram_guests.get(spec)
    process = guest.processes()[0]
    pid = f"--pid={process.pid}"
    target = tmp_path / "memory"

    done = run(guest, pid, "-o", str(target))
    assert (done.returncode, done.stdout) == (0, "")
    assert f"{spec.held} pages written, 16 untouched, 0 missing" in done.stderr
    assert target.read_bytes() == b"".join(zram_guests.memory(spec, process.name))
    assert target.stat().st_mode & 0o777 == 0o600

    done = run(guest, pid, "--json")
    told = json.loads(done.stdout)
    assert (told["pid"], told["comm"]) == (process.pid, "pages-parent")
    assert sum(told["pages"].values()) == process.pages
    assert sum(one["pages"] for one in told["ranges"]) == process.pages
    listed = run(guest, pid).stdout
    for kind, pages in told["pages"].items():
        assert f"{pages:5}  {kind}\n" in listed
    assert in_drgn(guest) == [listed, listed]

    done = run(guest, "--pid=2")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "drgn-tools: task 2 has no memory of its own\n"
    done = run(guest, "--pid=4000000")
    assert done.stderr == "drgn-tools: there is no task 4000000\n"


@pytest.mark.verified("swap: tasks", by="drgn's task_rss(), /proc/pid/pagemap")
@pytest.mark.parametrize("kernel", BY_KERNEL)
def test_who_has_memory_in_swap(kernel: str) -> None:
    """By drgn's own counting, and not less than the kernel's pagemap said."""
    guest = zram_guests.get(BY_KERNEL[kernel])
    argv = [f"--symbols={path}" for path in symbols(guest)]
    done = command.drgn_tools("swap", "--json", *argv, guest.dump("vmcore"))
    assert (done.status, done.stderr) == (0, "")
    found = {one["pid"]: one["pages"] for one in json.loads(done.stdout)["tasks"]}
    prog = open_dump(str(guest.dump("vmcore")), list(map(str, symbols(guest))))
    assert found == {pid: task_rss(find_task(prog, pid)).swap for pid in found}
    for process in guest.processes():
        # Bit 62: swapped.
        assert found[process.pid] >= sum(entry >> 62 & 1 for entry in process.entries)


def in_drgn(guest: Guest) -> list[str]:
    """Return what the helper prints in drgn, and what the command does."""
    process = guest.processes()[0]
    size = process.pages * PAGE
    code = (
        "from drgn.commands import run_command\n"
        f"swap_where({process.pid}, address={process.start}, size={size})\n"
        "print('@')\n"
        f"run_command(prog, 'swap_where {process.pid} --address {process.start:#x}"
        f" --size {size}')\n"
    )
    argv = [sys.executable, "-m", "drgn", "--quiet", "-c", str(guest.dump("vmcore"))]
    argv += [word for path in symbols(guest) for word in ("-s", str(path))]
    done = subprocess.run(
        [*argv, "-e", code],
        capture_output=True,
        text=True,
        env=command.environment(DRGN_PLUGINS="drgn_tools=drgn_tools._plugin"),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("@\n")


@pytest.mark.verified(
    "swap: a task's memory to a file (`-o`)",
    by="what the guest's process wrote, page by page",
    on="6.12",
)
def test_command_on_a_filtered_dump(tmp_path: Path) -> None:
    """What is missing is a hole, is named, and makes the command fail."""
    spec = BY_KERNEL["6.12"]
    guest = zram_guests.get(spec)
    process = guest.processes()[0]
    core, target = tmp_path / "core", tmp_path / "memory"
    extract(guest.dump("vmcore"), core, "-d", "31")
    argv = [sys.executable, "-m", "drgn_tools", "swap", str(core), "-o", str(target)]
    argv += [f"--symbols={path}" for path in symbols(guest)]
    argv += [f"--pid={process.pid}", f"--address={process.start:#x}"]
    argv += [f"--size={process.pages * PAGE}"]
    done = subprocess.run(argv, capture_output=True, text=True)
    # The last ones were written again, and were in memory.
    known = zram_guests.memory(spec, process.name)
    lost = [index for index in range(process.pages) if process.entries[index] >> 63]
    assert lost
    for index in lost:
        known[index] = bytes(PAGE)
    assert target.read_bytes() == b"".join(known)
    assert done.returncode == 1
    assert f"16 untouched, {len(lost)} missing" in done.stderr
    assert "excluded" in done.stderr
