# SPDX-License-Identifier: LGPL-2.1-or-later
"""The drgn helpers on kernels made of bytes: buffers of all times, and ruins."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from drgn_tools import oprofile
from drgn_tools.errors import DumpError
from drgn_tools.oprofile import OprofileSample
from drgn_tools.oprofile_records import Format
from drgn_tools.symbols import ElfFile
from tests import command
from tests.oprofile_kernel import ERAS, ESCAPE, RINGS, OprofileKernel, words

KERNEL_PC, USER_PC = 0xFFFFFFFF81234567, 0x401234
# Flags of records with data[].
MODE, IN_KERNEL, TRACE, SWITCH = 1, 2, 4, 8


def busy(kernel: OprofileKernel, **values: int) -> int:
    """A task with a program, a library and memory of its own; its address."""
    mm = kernel.mm(
        [
            (0x400000, 0x410000, 1, "/usr/bin/busy"),
            (0x500000, 0x510000, 0, ""),
            (0x600000, 0x601000, 0, ""),
            (0x7F0000000000, 0x7F0000100000, 0x10, "/lib/libc.so.6"),
            (0x7FFF00000000, 0x7FFF00010000, 0, ""),
            (0x7FFF00020000, 0x7FFF00022000, 0, ""),
        ],
        start_brk=0x500000,
        brk=0x50FFFF,
        start_stack=0x7FFF0000FF00,
        vdso=0x7FFF00020000,
        exe_file=kernel.file("/usr/bin/busy"),
        **values,
    )
    return kernel.task(42, "busy", mm)


def context(kernel: OprofileKernel, mode: int, task: int) -> list[bytes]:
    """The records that say what goes for those behind them."""
    if kernel.era.data:
        flags = MODE | SWITCH | (IN_KERNEL if mode else 0)
        return [words(ESCAPE, flags, task)]
    return [words(ESCAPE, mode), words(ESCAPE, task)]


def put(
    kernel: OprofileKernel, records: list[bytes], cpu: int = 0, **options: int
) -> None:
    """A CPU's buffer with records, and nothing else anywhere."""
    if kernel.era.rings:
        for name in kernel.era.rings[:-1]:
            kernel.fill(name, {})
        kernel.fill(kernel.era.rings[-1], {cpu: records}, **options)
        return
    spare = [words(0, 0)] * 3
    kernel.array(cpu, [*records, *spare], head=len(records), tail=0)


def samples(kernel: OprofileKernel, **options: Any) -> list[OprofileSample]:
    options.setdefault("source", "cpu")
    return list(oprofile.for_each_oprofile_sample(kernel.prog, **options))


def printed(
    helper: Callable[..., None], kernel: OprofileKernel, **options: Any
) -> list[str]:
    out = io.StringIO()
    helper(kernel.prog, **options, file=out)
    return out.getvalue().splitlines()


@pytest.fixture(params=ERAS)
def kernel(request: pytest.FixtureRequest) -> OprofileKernel:
    return OprofileKernel(request.param)


@pytest.fixture(params=RINGS)
def ringed(request: pytest.FixtureRequest) -> OprofileKernel:
    return OprofileKernel(request.param)


# --- the CPUs' buffers


@pytest.mark.verified(
    "oprofile: samples in the CPUs' buffers",
    by="structures made as in 2.6.28 to 5.10",
    on="bytes",
)
def test_unread_samples(kernel: OprofileKernel) -> None:
    task = busy(kernel)
    some = [words(KERNEL_PC + i, i % 3) for i in range(300)]
    put(kernel, [*context(kernel, 1, task), *some], cpu=2)
    found = samples(kernel)
    assert [(s.place.address, s.event) for s in found] == [
        (KERNEL_PC + i, i % 3) for i in range(300)
    ]
    assert {(s.cpu, s.mode, s.pid, s.comm, s.program, s.state) for s in found} == {
        (2, "kernel", 42, "busy", "/usr/bin/busy", "unread")
    }
    assert all((s.time is None) == (not kernel.era.rings) for s in found)
    assert not samples(kernel, cpu=1)


@pytest.mark.parametrize("wrap", [1, 3])
def test_wrapped_rings(ringed: OprofileKernel, wrap: int) -> None:
    """Wherever the kernel's pointer to its list of pages is."""
    task = busy(ringed)
    some = [words(USER_PC + i, 0) for i in range(450)]
    put(ringed, [*context(ringed, 0, task), *some], wrap=wrap)
    assert [s.place.address for s in samples(ringed)] == [
        USER_PC + i for i in range(450)
    ]


@pytest.mark.parametrize(("head", "tail"), [(3, 7), (0, 5), (7, 3), (5, 0), (4, 4)])
def test_wrapped_arrays(head: int, tail: int) -> None:
    """From tail_pos to head_pos; what has been read is behind that."""
    kernel = OprofileKernel("2.6.28")
    task = busy(kernel)
    size = 10
    unread = [(tail + i) % size for i in range((head - tail) % size)]
    read = [i % size for i in range(head, head + size - len(unread))]
    ring = [words(KERNEL_PC + i, 0) for i in range(size)]
    if unread:
        ring[unread[0]] = words(ESCAPE, task)
    kernel.array(1, ring, head=head, tail=tail)
    assert [s.place.address - KERNEL_PC for s in samples(kernel)] == unread[1:]
    everything = samples(kernel, read=True)
    assert [s.place.address - KERNEL_PC for s in everything] == read + unread[1:]
    assert [s.state for s in everything] == ["read"] * len(read) + ["unread"] * len(
        unread[1:]
    )


def test_read_samples(ringed: OprofileKernel) -> None:
    """Those that the reader has left on its page."""
    task = busy(ringed)
    put(ringed, [*context(ringed, 1, task), words(KERNEL_PC, 0)], read=2)
    assert [s.place.address for s in samples(ringed)] == [KERNEL_PC]
    everything = samples(ringed, read=True)
    assert [(s.place.address, s.state) for s in everything] == [
        (0xDEAD00, "read"),
        (0xDEAD01, "read"),
        (KERNEL_PC, "unread"),
    ]


TWO = [name for name in RINGS if len(ERAS[name].rings) == 2]


@pytest.mark.parametrize("era", TWO)
def test_two_buffers(era: str) -> None:
    """That of the reader is the older one; each may have been swapped."""
    kernel = OprofileKernel(era)
    task = busy(kernel)
    head = context(kernel, 0, task)
    reading, writing = kernel.era.rings
    kernel.fill(
        reading,
        {cpu: [*head, *(words(USER_PC + i, cpu) for i in range(5))] for cpu in (0, 1)},
        read=1,
    )
    kernel.fill(
        writing,
        {cpu: [words(USER_PC + i, cpu) for i in range(5, 12)] for cpu in (0, 1)},
        time=500_000,
    )
    for cpu in (0, 1):
        found = samples(kernel, cpu=cpu)
        assert [s.place.address - USER_PC for s in found] == list(range(12))
        # What goes for the first goes on in the other buffer.
        assert {(s.mode, s.pid, s.event) for s in found} == {("user", 42, cpu)}
    assert len(samples(kernel)) == 24
    assert next(iter(samples(kernel, cpu=0, read=True))).state == "read"


@pytest.mark.parametrize("era", TWO)
def test_two_buffers_of_which_one_is_gone(era: str) -> None:
    kernel = OprofileKernel(era)
    kernel.fill(kernel.era.rings[1], {0: [words(KERNEL_PC, 0)]})
    with pytest.raises(DumpError, match="nobody has opened"):
        samples(kernel)


def test_callers(kernel: OprofileKernel) -> None:
    task = busy(kernel)
    if kernel.era.data:
        head = [words(ESCAPE, TRACE | MODE | SWITCH, task)]
    else:
        head = [words(ESCAPE, 2), words(ESCAPE, 0), words(ESCAPE, task)]
    put(
        kernel,
        [
            *head,
            words(USER_PC, 1),
            words(USER_PC + 16, 0),
            words(0x7F0000000010, 0),
        ],
    )
    (sample,) = samples(kernel)
    assert [(p.image, p.offset) for p in (sample.place, *sample.trace)] == [
        ("/usr/bin/busy", 0x1000 + 0x1234),
        ("/usr/bin/busy", 0x1000 + 0x1244),
        ("/lib/libc.so.6", 0x10010),
    ]


def halves(*values: int) -> list[int]:
    return [half for v in values for half in (v & 0xFFFFFFFF, v >> 32)]


@pytest.mark.verified(
    "oprofile: samples of AMD's IBS, and on Xen",
    by="structures made as in 2.6.28 to 5.10",
    on="bytes",
)
def test_ibs(kernel: OprofileKernel) -> None:
    task = busy(kernel)
    values = halves(KERNEL_PC, 1, 2, 3, 0x7FFF12345678, 0x98765432)
    if kernel.era.data:
        record = [words(ESCAPE, 0, 14, KERNEL_PC, *values)]
    else:
        pairs = zip(values[::2], values[1::2])
        record = [words(ESCAPE, 4), *(words(*pair) for pair in pairs)]
    put(kernel, [*context(kernel, 1, task), *record, words(KERNEL_PC + 4, 0)])
    ibs, plain = samples(kernel)
    assert (ibs.kind, ibs.place.address) == ("ibs_op", KERNEL_PC)
    assert dict(ibs.data) == {
        "rip": KERNEL_PC,
        "op_data": 1,
        "op_data2": 2,
        "op_data3": 3,
        "dc_linear": 0x7FFF12345678,
        "dc_physical": 0x98765432,
    }
    assert plain.kind == "sample"
    line = printed(oprofile.oprofile_samples, kernel, source="cpu")[0]
    assert "ibs_op rip=0xffffffff81234567" in line


def test_xen() -> None:
    kernel = OprofileKernel("2.6.28", xen=True)
    put(kernel, [words(ESCAPE, 2), words(0xFFFF82C480000000, 0)])
    (sample,) = samples(kernel)
    assert (sample.mode, sample.place.image) == ("xen", "[xen]")


# --- torn


def test_torn_pages(ringed: OprofileKernel) -> None:
    """A page that says more than it can hold is read as far as it makes sense."""
    task = busy(ringed)
    name = ringed.era.rings[-1]
    first = [*context(ringed, 1, task), words(KERNEL_PC, 0)]
    reader = ringed.buffer_page(first)
    good = ringed.buffer_page([words(KERNEL_PC + 1, 0)], 2000)
    torn = ringed.buffer_page([words(KERNEL_PC + 2, 0)], 3000, commit=0xFFFF0)
    spare = ringed.buffer_page([])
    part = ringed.cpu_ring(0, reader, [good, torn, spare], 2, 3)
    for other in ringed.era.rings[:-1]:
        ringed.fill(other, {})
    ringed.ring_buffer(name, {0: part}, 3)
    found = samples(ringed)
    assert [s.place.address - KERNEL_PC for s in found][:2] == [0, 1]


def test_torn_records_are_said(
    kernel: OprofileKernel, capsys: pytest.CaptureFixture[str]
) -> None:
    task = busy(kernel)
    bad = words(ESCAPE, 0x8000)
    put(kernel, [*context(kernel, 0, task), words(USER_PC, 0), bad, words(USER_PC, 1)])
    first, second = samples(kernel)
    assert first.pid == 42
    # It was no task, or may have been a switch to one.
    assert second.pid == -1
    kernel.event_buffer([])
    oprofile.oprofile_samples(kernel.prog)
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 2
    if kernel.era.data:
        assert said.err == "oprofile: CPU 0: a record with flags 0x8000 cannot be\n"


def test_arrays_that_cannot_be() -> None:
    kernel = OprofileKernel("2.6.28")
    put(kernel, [words(KERNEL_PC, 0)])
    for values in (
        {"buffer_size": 1 << 40},
        {"buffer_size": 4, "head_pos": 9},
        {"tail_pos": 1 << 63, "head_pos": 0},
        {"buffer": 0xFFFF800000000000, "head_pos": 1, "tail_pos": 0},
    ):
        kernel.cpu(0, **values)
        assert samples(kernel) == []


# --- what addresses belong to


@pytest.mark.parametrize(
    ("eip", "image", "offset"),
    [
        (0x400000, "/usr/bin/busy", 0x1000),
        (0x40FFFF, "/usr/bin/busy", 0x10FFF),
        (0x410000, "[unmapped]", None),
        (0x3FFFFF, "[unmapped]", None),
        (0x500010, "[heap]", None),
        (0x600010, "[anon]", None),
        (0x7F0000000000, "/lib/libc.so.6", 0x10000),
        (0x7FFF00000010, "[stack]", None),
        (0x7FFF00020BDE, "[vdso]", 0xBDE),
    ],
)
def test_user_places(eip: int, image: str, offset: int | None) -> None:
    kernel = OprofileKernel()
    put(kernel, [*context(kernel, 0, busy(kernel)), words(eip, 0)])
    (sample,) = samples(kernel)
    assert (sample.place.image, sample.place.offset) == (image, offset)


def test_tasks_without_memory() -> None:
    """An exited task, and what is no task."""
    kernel = OprofileKernel()
    exited = kernel.task(7, "gone", exiting=True)
    nonsense = kernel.task(-5, "x")
    nameless = kernel.task(8, "")
    put(
        kernel,
        [
            record
            for task in (exited, nonsense, nameless, 0xFFFF800000000000, 0x1234)
            for record in (words(ESCAPE, MODE | SWITCH, task), words(USER_PC, 0))
        ],
    )
    assert [(s.pid, s.comm, s.place.image) for s in samples(kernel)] == [
        (7, "gone", "[exited]"),
        *[(-1, "", "[unknown]")] * 4,
    ]


def test_mappings_that_go_round_in_circles() -> None:
    kernel = OprofileKernel()
    task = busy(kernel)
    mm = kernel.mm([(0x400000, 0x410000, 0, "/bin/a"), (0x500000, 0x510000, 0, "")])
    first = int.from_bytes(kernel.prog.read(mm, 8), "little")
    second = int.from_bytes(kernel.prog.read(first + 16, 8), "little")
    kernel.put("struct vm_area_struct", second, vm_next=first)
    kernel.put("struct task_struct", task, mm=mm)
    put(kernel, [*context(kernel, 0, task), words(0x400010, 0), words(0x900000, 0)])
    assert [s.place.image for s in samples(kernel)] == ["/bin/a", "[unmapped]"]


def test_paths_that_go_round_in_circles() -> None:
    kernel = OprofileKernel()
    task = busy(kernel)
    bin_, busy_ = kernel.dentries["/usr/bin"], kernel.dentries["/usr/bin/busy"]
    kernel.put("struct dentry", bin_, d_parent=busy_)
    put(kernel, [*context(kernel, 0, task), words(USER_PC, 0)])
    (sample,) = samples(kernel)
    assert sample.place.image.startswith("/.../") and sample.place.offset == 0x2234


def test_mounted_file_systems() -> None:
    """A path leads on where its file system is mounted."""
    kernel = OprofileKernel()
    task = busy(kernel)
    outer = kernel.path("/mnt/usb")
    root = kernel.put("struct dentry")
    kernel.put("struct dentry", root, d_parent=root)
    kernel.name(root, "/")
    program = kernel.put("struct dentry", d_parent=root)
    kernel.name(program, "tool\x1b[2J")
    at = kernel.member("struct mount", "mnt")
    mount = kernel.put(
        "struct mount", mnt_parent=outer[0] - at, mnt_mountpoint=outer[1]
    )
    kernel.put("struct vfsmount", mount + at, mnt_root=root)
    file = kernel.put("struct file")
    kernel.copy_path(file, (mount + at, program))
    area = kernel.put(
        "struct vm_area_struct", vm_start=0x400000, vm_end=0x500000, vm_file=file
    )
    mm = kernel.put("struct mm_struct", mmap=area, exe_file=file)
    kernel.put("struct task_struct", task, mm=mm)
    put(kernel, [*context(kernel, 0, task), words(USER_PC, 0)])
    (sample,) = samples(kernel)
    assert sample.place.image == sample.program == "/mnt/usb/tool\x1b[2J"
    report = printed(oprofile.oprofile_report, kernel, source="cpu")
    assert report[1].split()[2] == "/mnt/usb/tool\\x1b[2J"


def test_kernel_symbols() -> None:
    kernel = OprofileKernel()
    text = 0xFFFFFFFF81000000
    kernel.symbols([(text, "_stext"), (text + 64, "busy"), (text + 128, "_etext")])
    records = [words(text + 70, 0), words(text + 9999, 0)]
    put(kernel, [*context(kernel, 1, busy(kernel)), *records])
    found, beyond = samples(kernel)
    assert found.place[1:] == ("vmlinux", None, "busy", 6)
    assert beyond.place[1:] == ("[kernel]", None, "", 0)


# --- the event buffer


def test_event_buffer() -> None:
    kernel = OprofileKernel()
    program, library = kernel.cookies(["/usr/bin/busy", "/lib/libc.so.6"])
    kernel.event_buffer(
        [
            *(ESCAPE, 2, 3, ESCAPE, 5),
            *(ESCAPE, 1, 42, program, ESCAPE, 7, 40),
            *(ESCAPE, 3, library, 0x10, 1),
            *(ESCAPE, 3, 0, 0x600010, 0),
            *(ESCAPE, 3, 0xBAD, 0x20, 0),
            *(ESCAPE, 4, KERNEL_PC, 0),
        ],
        rest=[0x99, ESCAPE, 2, 1],
    )
    found = samples(kernel, source="event_buffer")
    assert [(s.place.image, s.place.offset, s.event) for s in found] == [
        ("/lib/libc.so.6", 0x10, 1),
        ("[anon]", None, 0),
        ("[unknown]", 0x20, 0),
        ("[kernel]", None, 0),
    ]
    assert {(s.cpu, s.pid, s.tgid, s.program, s.state) for s in found} == {
        (3, 42, 40, "/usr/bin/busy", "synced")
    }
    assert not samples(kernel, source="event_buffer", cpu=1)
    lines = printed(oprofile.oprofile_event_buffer, kernel, read=True)
    assert lines[0] == "       0 cpu_switch cpu=3"
    assert lines[2].endswith("exec_path=/usr/bin/busy")
    assert lines[4].endswith("path=/lib/libc.so.6")
    # From where something begins.
    assert lines[-1] == "      32 cpu_switch cpu=1 [read]"
    assert len(printed(oprofile.oprofile_event_buffer, kernel)) == len(lines) - 1


@pytest.mark.parametrize(
    ("size", "position"), [(64, 65), (1 << 40, 3), (64, 1 << 63)], ids=str
)
def test_event_buffers_that_cannot_be(size: int, position: int) -> None:
    kernel = OprofileKernel()
    kernel.event_buffer([ESCAPE, 2, 1])
    for name, value in (("buffer_size", size), ("buffer_pos", position)):
        kernel.poke(kernel.variables[name][1], words(value))
    with pytest.raises(DumpError, match="cannot be"):
        samples(kernel, source="event_buffer")


def test_cpus_without_an_event_buffer(capsys: pytest.CaptureFixture[str]) -> None:
    """What is wrong with one says nothing of the others."""
    kernel = OprofileKernel()
    put(kernel, [*context(kernel, 1, busy(kernel)), words(KERNEL_PC, 0)])
    kernel.event_buffer([])
    kernel.poke(kernel.variables["buffer_pos"][1], words(99))
    oprofile.oprofile_report(kernel.prog, by="mode")
    said = capsys.readouterr()
    assert said.out.splitlines()[1].split() == ["1", "100.0000", "kernel"]
    assert said.err == (
        "oprofile: an event buffer of 64 words with 99 in use cannot be\n"
    )


def test_an_event_buffer_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    kernel = OprofileKernel()
    kernel.event_buffer([ESCAPE, 2, 1])
    kernel.poke(kernel.variables["event_buffer"][1], words(0xFFFF800000000000))
    oprofile.oprofile_event_buffer(kernel.prog)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "oprofile: the event buffer is not in this dump from word 0 on\n"
    )


def test_cookies_that_go_round_in_circles() -> None:
    kernel = OprofileKernel()
    first, second = kernel.cookies(["/bin/a", "/bin/b"], buckets=1)
    table = int.from_bytes(
        kernel.prog.read(kernel.variables["dcookie_hashtable"][1], 8), "little"
    )
    node = int.from_bytes(kernel.prog.read(table, 8), "little")
    after = int.from_bytes(kernel.prog.read(node, 8), "little")
    kernel.put("struct list_head", after, next=node)
    kernel.event_buffer([ESCAPE, 5, ESCAPE, 3, second, 1, 0, ESCAPE, 3, first, 2, 0])
    found = samples(kernel, source="event_buffer")
    assert {s.place.image for s in found} <= {"/bin/a", "/bin/b", "[unknown]"}
    assert len(found) == 2


# --- what is printed


def test_statistics() -> None:
    kernel = OprofileKernel()
    for cpu in range(4):
        kernel.cpu(
            cpu,
            buffer_size=512,
            sample_received=100 + cpu,
            sample_lost_overflow=cpu,
            backtrace_aborted=5,
            sample_invalid_eip=6,
        )
    stats = kernel.variable(
        "oprofile_stats", "struct oprofile_stat_struct", "oprofile/oprofile_stats.c"
    )
    kernel.put("struct oprofile_stat_struct", stats, event_lost_overflow=9)
    found = oprofile.get_oprofile_stats(kernel.prog)
    assert [tuple(cpu) for cpu in found.cpus] == [
        (cpu, 512, 100 + cpu, cpu, 5, 6) for cpu in range(4)
    ]
    lines = printed(oprofile.oprofile_stats, kernel)
    assert "stats/event_lost_overflow 9" in lines
    assert "stats/cpu3/sample_received 103" in lines


def profile() -> OprofileKernel:
    """60 samples in a program, 30 of them called; 40 in the kernel."""
    kernel = OprofileKernel()
    task = busy(kernel)
    text = 0xFFFFFFFF81000000
    kernel.symbols([(text, "_stext"), (text + 64, "hot"), (text + 128, "_etext")])
    records = [*context(kernel, 0, task), *[words(USER_PC, 0)] * 30]
    records += [words(ESCAPE, TRACE), words(USER_PC, 0), words(0x400100, 0)] * 30
    records += [words(ESCAPE, MODE | IN_KERNEL), *[words(text + 70, 0)] * 40]
    put(kernel, records, cpu=1)
    kernel.event_buffer([])
    return kernel


def test_report() -> None:
    kernel = profile()
    assert printed(oprofile.oprofile_report, kernel) == [
        "samples         %  image          symbol",
        "     60   60.0000  /usr/bin/busy  (no symbols)",
        "     40   40.0000  vmlinux        hot",
    ]
    assert printed(oprofile.oprofile_report, kernel, by="cpu,task,mode") == [
        "samples         %  cpu  task      mode",
        "     60   60.0000  1    busy[42]  user",
        "     40   40.0000  1    busy[42]  kernel",
    ]
    assert printed(oprofile.oprofile_report, kernel, by=["offset"])[1:] == [
        "     60   60.0000  0x2234",
        "     40   40.0000  0xffffffff81000046",
    ]
    assert len(printed(oprofile.oprofile_report, kernel, cpu=0)) == 1


@pytest.mark.parametrize("by", ["", "image,nonsense", [], ["image", "comm"]])
def test_report_of_nonsense(by: Any) -> None:
    with pytest.raises(ValueError, match="not some of cpu, task"):
        printed(oprofile.oprofile_report, profile(), by=by)
    with pytest.raises(ValueError, match="source is 'gpu'"):
        printed(oprofile.oprofile_report, profile(), source="gpu")


def test_callgraph() -> None:
    kernel = profile()
    folded = printed(oprofile.oprofile_callgraph, kernel, folded=True)
    assert folded == [
        "busy[42];hot 40",
        "busy[42];/usr/bin/busy 30",
        "busy[42];/usr/bin/busy;/usr/bin/busy 30",
    ]
    lines = printed(oprofile.oprofile_callgraph, kernel)
    assert "     60   60.0000  (no symbols) (/usr/bin/busy) [self 60]" in lines


def test_names_from_files(tmp_path: Path) -> None:
    """The functions of a program that is at its path in a folder."""
    source = tmp_path / "busy.c"
    source.write_text(
        "int called(int a) { return a * 3; }\n"
        "int main(int c, char **v) { return called(c); }\n"
    )
    target = tmp_path / "root/usr/bin/busy"
    target.parent.mkdir(parents=True)
    subprocess.run(["gcc", "-O0", "-o", target, source], check=True)
    with target.open("rb") as file:
        elf = ELFFile(file)
        table: Any = elf.get_section_by_name(".symtab")
        (symbol,) = table.get_symbol_by_name("called")
        section = elf.get_section(symbol["st_shndx"])
        offset = symbol["st_value"] - section["sh_addr"] + section["sh_offset"]
    assert ElfFile(str(target)).find(offset + 3) == ("called", 3)
    kernel = OprofileKernel()
    mm = kernel.mm([(0x555500000000, 0x555500010000, 0, "/usr/bin/busy")])
    task = kernel.task(5, "busy", mm)
    put(kernel, [*context(kernel, 0, task), words(0x555500000000 + offset + 3, 0)])
    (sample,) = samples(kernel, sysroot=str(tmp_path / "root"))
    assert sample.place[1:] == ("/usr/bin/busy", offset + 3, "called", 3)
    with pytest.raises(DumpError, match="is no folder"):
        samples(kernel, sysroot=str(source))


@pytest.mark.parametrize("path", ["/../../secret", "/fifo", "/text", "/none", "/a\0b"])
def test_files_that_are_none(path: str, tmp_path: Path) -> None:
    """A dump cannot make one read what is outside, or wait."""
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").write_bytes(Path(sys.executable).read_bytes()[:4096])
    (root / "text").write_text("no program")
    os.mkfifo(root / "fifo")
    kernel = OprofileKernel()
    (cookie,) = kernel.cookies(["/x"])
    kernel.name(cookie, path[1:])
    kernel.event_buffer([ESCAPE, 5, ESCAPE, 3, cookie, 0x10, 0])
    (sample,) = samples(kernel, source="event_buffer", sysroot=str(root))
    assert sample.place.symbol == ""


# --- what is not there


def test_kernels_without_oprofile(capsys: pytest.CaptureFixture[str]) -> None:
    kernel = OprofileKernel()
    kernel.without = ("struct oprofile_cpu_buffer",)
    for helper in (
        oprofile.oprofile_stats,
        oprofile.oprofile_report,
        oprofile.oprofile_samples,
        oprofile.oprofile_callgraph,
        oprofile.oprofile_event_buffer,
    ):
        with pytest.raises(SystemExit) as ended:
            helper(kernel.prog)
        assert str(ended.value.code) == (
            "oprofile: this kernel has no oprofile: it is not loaded, or this kernel "
            "is 5.12 or later"
        )
    assert capsys.readouterr() == ("", "")


def test_nobody_has_opened_it(ringed: OprofileKernel) -> None:
    ringed.event_buffer([])
    ringed.poke(ringed.variables["event_buffer"][1], words(0))
    for source in ("cpu", "event_buffer"):
        with pytest.raises(DumpError, match="nobody has opened oprofile's buffer"):
            samples(ringed, source=source)


def test_command_of_what_is_no_dump(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    path.write_bytes(b"nothing")
    done = command.drgn_tools("oprofile", path)
    assert (done.status, done.stdout) == (1, "")
    assert done.stderr.startswith("drgn-tools: cannot read")
    assert command.drgn_tools("oprofile", path, "--by", "comm").status == 2
    assert command.drgn_tools("oprofile", path, "--json", "--samples").status == 2


# --- ruins


@pytest.mark.parametrize("era", ["2.6.28", "2.6.30", "2.6.33", "5.10"])
def test_mutated_buffers(era: str) -> None:
    """Whatever is in the buffers and what they point to, there is an end."""
    kernel = OprofileKernel(era)
    task = busy(kernel)
    start = kernel.used
    records = [*context(kernel, 0, task), words(USER_PC, 0), words(KERNEL_PC, 0)]
    put(kernel, records * 5, read=1)
    (cookie,) = kernel.cookies(["/usr/bin/busy"])
    kernel.event_buffer([ESCAPE, 2, 0, ESCAPE, 5, ESCAPE, 3, cookie, 0x10, 0])
    whole = bytes(kernel.memory[: kernel.used])
    used = [i for i in range(start, len(whole)) if whole[i]]
    rng = random.Random(era)
    for _ in range(300):
        kernel.memory[: len(whole)] = whole
        for _ in range(rng.randrange(1, 6)):
            at = rng.choice(used)
            if rng.random() < 0.3:
                at += rng.randrange(-8, 8)
            kernel.memory[at] = rng.choice((0, 255, rng.randrange(256)))
        kernel.prog.cache.clear()
        try:
            found = samples(kernel, source="all", read=True, uncommitted=True)
        except (DumpError, LookupError, ValueError) as error:
            assert "\n" not in str(error)
            continue
        assert len(found) < 20_000
        json.dumps([sample._asdict() for sample in found])


def test_format_is_the_kernels() -> None:
    from drgn_tools.oprofile_memory import record_format

    assert record_format(OprofileKernel("5.10").prog) == Format()
    assert record_format(OprofileKernel("2.6.28").prog) == Format(data=False)
    xen = OprofileKernel("2.6.28", xen=True)
    assert record_format(xen.prog) == Format(data=False, xen=True)
