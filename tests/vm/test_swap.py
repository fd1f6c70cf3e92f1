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
from drgn.helpers.linux.mm import access_process_vm
from drgn.helpers.linux.pid import find_task

from drgn_tools import swap

from . import dumps, peers, zram_guests
from .known_pages import PAGE
from .test_extract import extract
from .zram_guests import Guest, Spec

BY_KERNEL = {spec.kernel: spec for spec in zram_guests.MATRIX if spec.devices}


def filled(dump: dumps.Dump) -> Iterator[tuple[int, int, int, str]]:
    """Yield processes that hold memory of one kind: pid, address, size, kind."""
    for line in dump.fact("fill").decode().splitlines():
        words = line.split()
        if len(words) == 4 and words[0].isdigit():
            yield int(words[0]), int(words[1], 16), int(words[2]), words[3]


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


def opened(guest: Guest, path: Path) -> drgn.Program:
    prog = drgn.Program()
    prog.set_core_dump(path)
    prog.load_debug_info(guest.kernel.debug_files())
    return prog


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
        command = [*peers.argv("makedumpfile-sid"), "-E", "-d", "31"]
        done = subprocess.run([*command, source, target], capture_output=True)
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


def run(spec: Spec, guest: Guest, *options: str) -> subprocess.CompletedProcess[str]:
    process = guest.processes()[0]
    names = ("vmlinux", "zram", "zsmalloc")
    symbols = [f for f in guest.kernel.debug_files() if f.stem in names]
    command = [sys.executable, "-m", "drgn_tools", "swap", str(guest.dump("vmcore"))]
    command += [f"--symbols={path}" for path in symbols]
    command += [f"--address={process.start:#x}", f"--size={process.pages * PAGE}"]
    return subprocess.run([*command, *options], capture_output=True, text=True)


def test_command(tmp_path: Path) -> None:
    spec = BY_KERNEL["6.12"]
    guest = zram_guests.get(spec)
    process = guest.processes()[0]
    pid = f"--pid={process.pid}"
    target = tmp_path / "memory"

    done = run(spec, guest, pid, "-o", str(target))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{spec.held} pages written, 16 untouched, 0 missing" in done.stdout
    assert target.read_bytes() == b"".join(zram_guests.memory(spec, process.name))
    assert target.stat().st_mode & 0o777 == 0o600

    done = run(spec, guest, pid, "--json")
    told = json.loads(done.stdout)
    assert (told["pid"], told["comm"]) == (process.pid, "pages-parent")
    assert sum(told["pages"].values()) == process.pages
    assert sum(one["pages"] for one in told["ranges"]) == process.pages
    listed = run(spec, guest, pid).stdout
    for kind, pages in told["pages"].items():
        assert f"{pages:5}  {kind}\n" in listed

    done = run(spec, guest, "--pid=2")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "drgn-tools: task 2 has no memory of its own\n"
    done = run(spec, guest, "--pid=4000000")
    assert done.stderr == "drgn-tools: there is no task 4000000\n"
