# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Numbers in a small input that ask for a lot of memory or time: what is read must go by
what is there.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Callable

import numpy as np
import pytest
from drgn import Object

from drgn_tools import (
    ftrace,
    kernel_log,
    pages,
    print_fmt,
    pstore,
    ramoops,
    symbols,
    verify,
    workers,
    zram,
    zram_table,
)
from drgn_tools.errors import DumpError, MissingMemory
from drgn_tools.formats import elf, flattened, kdump
from drgn_tools.ftrace_text import TORN
from drgn_tools.kernel_symbols import KernelSymbols
from drgn_tools.plan import find_struct_pages, make_plan
from drgn_tools.translate import Translator
from drgn_tools.vmcore import open_vmcore
from drgn_tools.vmcoreinfo import Vmcoreinfo
from tests import regions, test_pstore
from tests.fuzz.kernels import EventsKernel, SymbolsKernel
from tests.fuzz.limits import within_limits
from tests.fuzz.readers import machine
from tests.synthetic import MIB, PAGE, VMEMMAP, Machine, vmcoreinfo_text, write_kdump
from tests.test_print_fmt import FIELDS, Kernel
from tests.test_pstore_raw import elf_with_symbols
from tests.zram_kernel import ZramKernel


def refused(work: Callable[[], object]) -> str:
    """What is said of an input that cannot be read."""

    def attempt() -> str:
        try:
            work()
        except DumpError as error:
            return str(error)
        raise AssertionError("it was not refused")

    return within_limits(attempt)


def opened(path: Path) -> Callable[[], object]:
    """What opens a dump, and lets it go."""

    def work() -> None:
        with open_vmcore(str(path), part=True):
            pass

    return work


# --- VMCOREINFO -------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", ["f" * 5000, "f" * 1_000_000, "0x" + "f" * 5000, "9" * 1_000_000]
)
@pytest.mark.parametrize("key", ["SYMBOL(mem_section)", "NUMBER(PG_lru)", "SIZE(page)"])
def test_number_of_thousands_of_digits(key: str, value: str) -> None:
    info = Vmcoreinfo(vmcoreinfo_text({**machine("7.2").keys, key: value}))

    def work() -> None:
        pages.page_layout(info)
        pages.mem_map(info, machine("7.2").read, PAGE, [(0, 1536)])

    said = refused(work)
    assert key in said and len(said) < 200


# --- ELF --------------------------------------------------------------------------


def write_headers(
    path: Path, rows: np.ndarray, body: bytes = b"", **changes: int
) -> None:
    """An ELF core of nothing but program headers, and something behind them."""
    fields = {"phoff": 64, "shoff": 0, "phentsize": 56, "phnum": len(rows), **changes}
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\2\1\1",
        *(4, 62, 1, 0, fields["phoff"], fields["shoff"], 0, 64),
        *(fields["phentsize"], fields["phnum"], 64, 1, 0),
    )
    path.write_bytes(header + rows.tobytes() + body)


def load_rows(count: int, size: int) -> np.ndarray:
    """Segments of *size* bytes, one behind the other in memory, all at offset 0."""
    rows = np.zeros(count, elf.PHDR)
    rows["type"], rows["flags"] = elf.PT_LOAD, 7
    rows["paddr"] = np.arange(count, dtype=np.uint64) * np.uint64(size)
    rows["filesz"] = rows["memsz"] = size
    return rows


def test_more_program_headers_than_the_file_has(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    section = struct.pack("<44xI", 1 << 20).ljust(64, b"\0")
    write_headers(
        path, load_rows(0, 0), section, shoff=64, phentsize=4096, phnum=0xFFFF
    )
    assert "cut short" in refused(opened(path))
    assert "cut short" in refused(lambda: verify.verify(str(path), 1))


@pytest.mark.parametrize("count", [(1 << 32) - 1, (1 << 20) + 1])
def test_impossible_number_of_program_headers(count: int, tmp_path: Path) -> None:
    path = tmp_path / "dump"
    section = struct.pack("<44xI", count).ljust(64, b"\0")
    write_headers(path, load_rows(0, 0), section, shoff=64, phnum=0xFFFF)
    assert "impossible" in refused(opened(path))


def test_notes_of_a_gibibyte(tmp_path: Path) -> None:
    rows = load_rows(2, PAGE)
    rows[0] = (elf.PT_NOTE, 0, 176, 0, 0, 1 << 30, 0, 0)
    write_headers(
        tmp_path / "dump", rows, struct.pack("<III", 5, 0xFFFFFFFF, 1) + bytes(1000)
    )
    assert within_limits(opened(tmp_path / "dump")) == ""


@pytest.mark.parametrize("size", [20, 300_000])
def test_the_same_notes_again_and_again(size: int, tmp_path: Path) -> None:
    count = 60_000
    rows = load_rows(count + 1, PAGE)
    rows[1:] = (elf.PT_NOTE, 0, 0, 0, 0, size, size, 0)
    write_headers(tmp_path / "dump", rows)
    if size == 20:
        assert within_limits(opened(tmp_path / "dump")) == ""
    else:
        assert "notes are too large" in refused(opened(tmp_path / "dump"))


def test_segments_that_are_all_the_same_data(tmp_path: Path) -> None:
    write_headers(tmp_path / "dump", load_rows(60_000, 1 << 19))
    assert "share their data" in refused(opened(tmp_path / "dump"))


def test_segment_that_claims_all_page_frames(tmp_path: Path) -> None:
    write_headers(tmp_path / "dump", load_rows(1, (1 << 52) - PAGE))
    assert "of memory in a file of" in refused(opened(tmp_path / "dump"))


# --- kdump-compressed -------------------------------------------------------------


def kdump_headers(
    max_mapnr: int, bitmap_blocks: int | None = None
) -> tuple[kdump.Header, bytes]:
    header = kdump.new_header(
        utsname=(b"Linux", b"", b"", b"", b"x86_64", b""),
        timestamp=0,
        status=0,
        block_size=PAGE,
        nr_cpus=1,
        phys_base=0,
        dump_level=0,
        notes=b"",
        vmcoreinfo=(0, 0),
        max_mapnr=max_mapnr,
    )
    if bitmap_blocks is not None:
        header = header._replace(bitmap_blocks=bitmap_blocks)
    return header, kdump.pack_headers(header, b"")


@pytest.mark.parametrize("max_mapnr", [1 << 31, 1 << 45, 1 << 60])
def test_page_frames_without_bitmaps(max_mapnr: int, tmp_path: Path) -> None:
    blocks = min(2 * max_mapnr // (8 * PAGE), (1 << 32) - 2)
    _, raw = kdump_headers(max_mapnr, blocks)
    (tmp_path / "dump").write_bytes(raw + bytes(1 << 18))
    assert "damaged or the file is cut short" in refused(opened(tmp_path / "dump"))


@pytest.mark.parametrize("size", [1 << 20, 4 << 20])
def test_bitmap_of_single_page_frames(size: int, tmp_path: Path) -> None:
    _, raw = kdump_headers(8 * size)
    (tmp_path / "dump").write_bytes(raw + b"\x55" * size + bytes(size))
    assert "too many pieces" in refused(opened(tmp_path / "dump"))


def test_memory_in_as_many_pieces_as_there_may_be(tmp_path: Path) -> None:
    of = Machine(ram=((0, 18 * MIB),), section_bits=30, mapping="1G", image=16 * MIB)
    of.loads()
    kept = {pfn: bytes(PAGE) for pfn in range(16 * MIB // PAGE)}
    kept |= {pfn: of.page(pfn) for pfn in range(len(kept), of.used_end // PAGE)}
    apart = range(6000, 6000 + 2 * 8000, 2)
    write_kdump(tmp_path / "dump", kept, of.notes(), excluded=apart)

    def work() -> int:
        with open_vmcore(str(tmp_path / "dump")) as vmcore:
            assert len(vmcore.data_runs) == 8001
            return make_plan(vmcore, frozenset()).pages

    assert within_limits(work) == str(len(kept))


def test_descriptors_that_are_their_own_data(tmp_path: Path) -> None:
    count = 1 << 14
    header, raw = kdump_headers(count)
    at = header.descriptors_offset
    rows = np.zeros(count, kdump.DESCRIPTOR)
    rows["offset"], rows["size"] = at, PAGE
    body = b"\xff" * (count // 8)
    bitmaps = body.ljust(header.bitmap_size, b"\0") * 2
    (tmp_path / "dump").write_bytes(raw + bitmaps + rows.tobytes())

    def work() -> int:
        with open_vmcore(str(tmp_path / "dump")) as vmcore:
            return sum(map(len, vmcore.pages(np.arange(count))))

    assert within_limits(work) == str(count * PAGE)
    within_limits(lambda: verify.verify(str(tmp_path / "dump"), 1).sound)


# --- flattened --------------------------------------------------------------------


def test_flattened_dump_of_bitmaps_that_are_holes(tmp_path: Path) -> None:
    header, raw = kdump_headers(1 << 33)
    records = [(0, raw), (header.descriptors_offset - 8, bytes(16))]
    body = b"".join(flattened.record(at, len(data)) + data for at, data in records)
    path = tmp_path / "dump"
    path.write_bytes(flattened.HEADER + body + flattened.END)
    assert "holes" in refused(opened(path))


def test_records_of_a_byte_each_over_each_other(tmp_path: Path) -> None:
    count = 200_000
    rows = np.zeros(count, [("offset", ">i8"), ("size", ">i8"), ("data", "u1")])
    rows["offset"] = np.arange(count)[::-1] // 2
    rows["size"] = 1
    path = tmp_path / "dump"
    path.write_bytes(flattened.HEADER + rows.tobytes() + flattened.END)
    assert "not a dump" in refused(opened(path))


# --- persistent memory ------------------------------------------------------------


@pytest.mark.parametrize("ecc", [0, 16])
def test_region_that_is_full_of_zones(ecc: int) -> None:
    ring = regions.Ring(128, regions.SIG, ecc=ecc)
    ring.write(b"few bytes")
    data = ring.image() * 30_000
    said = within_limits(lambda: len(ramoops.read_region(data).zones))
    assert 1000 < int(said) < 30_000


def test_buffer_of_pstore_that_is_not_there() -> None:
    kernel, _ = test_pstore.full("6.12", 1, 0, 10)
    info = kernel.psinfo("ramoops", 0, b"Panic#1 Part1")
    at = info + kernel.member("struct pstore_info", "bufsize")
    largest = (1 << 27) - 1
    kernel.poke(at, struct.pack("<Q", largest))
    # Nothing of it is read for its own sake: there is no room for it.
    said = within_limits(
        lambda: len(list(pstore.for_each_pstore_zone(kernel.prog))), 64 << 20
    )
    assert said == "6"


# --- symbols ----------------------------------------------------------------------


@pytest.mark.parametrize("size", [24 << 20, 24 << 34, 24 << 58])
@pytest.mark.parametrize("section", [2, 3])
def test_section_larger_than_its_file(section: int, size: int, tmp_path: Path) -> None:
    program = bytearray(elf_with_symbols([(0x1000, "function")]))
    headers = len(program) - 5 * 64
    struct.pack_into("<Q", program, headers + 64 * section + 32, size)
    (tmp_path / "vmlinux").write_bytes(program)
    said = refused(lambda: symbols.load(str(tmp_path / "vmlinux")))
    assert "its symbols are damaged" in said


def test_names_without_an_end(tmp_path: Path) -> None:
    program = bytearray(elf_with_symbols([(0x1000, "n" * 4_000_000)]))
    names = program.index(b"n" * 4096)
    program[names + 4_000_000] = ord("n")
    # Each symbol is a part of all that.
    rows = np.zeros(200_000, [("name", "<u4"), ("info", "<u4"), ("value", "<u8", 2)])
    rows["name"] = np.arange(1, len(rows) + 1)
    rows["info"] = 0x10012
    headers = len(program) - 5 * 64
    struct.pack_into("<QQ", program, headers + 2 * 64 + 24, len(program), rows.nbytes)
    program += rows.tobytes()
    (tmp_path / "vmlinux").write_bytes(program)
    assert "no symbols" in refused(lambda: symbols.load(str(tmp_path / "vmlinux")))


# --- struct pages -----------------------------------------------------------------


def kernel(keys: Mapping[str, str]) -> tuple[Vmcoreinfo, Translator]:
    of = machine("7.2")
    of.loads()
    info = Vmcoreinfo(vmcoreinfo_text({**of.keys, **keys}))
    return info, Translator(info, of.read)


LARGEST = {
    "NUMBER(MAX_PHYSMEM_BITS)": "56",
    "NUMBER(SECTION_SIZE_BITS)": "24",
    "LENGTH(mem_section)": "1",
}
# The last page frame that there can be.
LAST = [(0, 16), ((1 << 40) - 1, 1 << 40)]


@pytest.mark.parametrize("size", ["8", "4096"])
@pytest.mark.parametrize("length", [True, False])
def test_mem_section_of_billions(size: str, length: bool) -> None:
    keys = {**LARGEST, "SIZE(mem_section)": size}
    if not length:
        # As if the kernel had not said how many: pointers to pages of them.
        keys["LENGTH(mem_section)"] = str((1 << 32) * int(size) // PAGE)
    info, _ = kernel(keys)
    row = struct.pack("<512Q", *[VMEMMAP | 15] * 512)

    def work() -> int:
        return len(pages.mem_map(info, lambda at, count: row[:count], PAGE, LAST))

    assert within_limits(work) == "2"


def test_pointers_that_are_all_the_same() -> None:
    keys = {"NUMBER(MAX_PHYSMEM_BITS)": "52", "NUMBER(SECTION_SIZE_BITS)": "27"}
    keys["LENGTH(mem_section)"] = str(1 << 25 - 8)
    info, _ = kernel(keys)
    sections = struct.pack("<QQ", VMEMMAP | 0xF, 0) * 256
    pointers = struct.pack("<512Q", *[0x1000] * 512)

    def read(at: int, count: int) -> bytes:
        return (sections if at == 0x1000 else pointers)[:count]

    def work() -> int:
        return len(pages.mem_map(info, read, PAGE, LAST))

    assert within_limits(work) == "2"


# --- the kernel's log -------------------------------------------------------------


class Twice(Translator):
    """All of virtual memory is one page, but for some variables."""

    def __init__(self, page: bytes, variables: Mapping[int, bytes]) -> None:
        self.page = page
        self.variables = variables

    def translate(self, vaddr: int) -> tuple[int, int]:
        return 0x1000 + vaddr % PAGE, PAGE - vaddr % PAGE

    def read(self, vaddr: int, size: int) -> bytes:
        found = self.variables.get(vaddr)
        return self.page[:size] if found is None else found[:size]


def told(info: Vmcoreinfo, of: Translator) -> tuple[int, list[str]]:
    warnings: list[str] = []
    records = kernel_log.log_records(info, of, warn=warnings.append)
    return sum(1 for _ in records), warnings


def test_log_buf_of_one_page_again_and_again() -> None:
    info = Vmcoreinfo(vmcoreinfo_text(machine("4.18").keys))
    variables = {}
    for name, value in (
        *(("log_buf", 1 << 40), ("log_buf_len", 1 << 28)),
        *(("log_first_idx", 0), ("log_next_idx", (1 << 28) - 16)),
    ):
        address = info.symbol(name)
        assert address is not None
        variables[address] = struct.pack("<Q", value)
    record = struct.pack("<QHHI", 1, 16, 0, 0)
    said = within_limits(lambda: told(info, Twice(record * 256, variables)))
    assert said.startswith("(256, ") and "used twice" in said


@pytest.mark.parametrize("there", [True, False])
def test_ring_of_one_page_again_and_again(there: bool) -> None:
    info = Vmcoreinfo(vmcoreinfo_text(machine("7.2").keys))
    prb = info.symbol("prb")
    assert prb is not None
    bits = 23
    ring = struct.pack(
        "<IxxxxQQQQQIxxxxQQQQ",
        *(bits, 1 << 40, 1 << 41, (1 << bits) - 1, 0, 0),
        *(28, 1 << 42, 0, 0, 0),
    )

    class Ring(Twice):
        def translate(self, vaddr: int) -> tuple[int, int]:
            if not there and vaddr >= 1 << 40:
                raise DumpError("it is not mapped")
            return super().translate(vaddr)

    of = Ring(b"\xff" * PAGE, {prb: struct.pack("<Q", 1 << 39), 1 << 39: ring})
    said = within_limits(lambda: told(info, of))
    assert said.startswith("(0, ") and "breaks off" in said
    assert ("used twice" in said) == there


# --- events -----------------------------------------------------------------------

RECORD = bytearray(65000)
RECORD[36:40] = struct.pack("<HH", 64, 64000)
RECORD[64:] = b"x" * (len(RECORD) - 64)


def printed(source: str, records: int = 1) -> Callable[[], object]:
    def work() -> str:
        try:
            printer = print_fmt.compile_print_fmt(source, FIELDS, Kernel())
            for _ in range(records):
                said = printer(bytes(RECORD))
            return said[:100]
        except print_fmt.Unsupported as error:
            return f"unsupported: {error}"
        except TORN as error:
            return f"torn: {error}"

    return work


DEEP = "".join(f"REC->i{op}(" for op in ("||", "|", "^", "&", "==", "<", "<<", "+"))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ('"%d", ' + "+".join(["REC->i"] * 15_000), "torn: "),
        ('"%d", ' + "||".join(["REC->i"] * 15_000), "torn: "),
        ('"%d", ' + "(" * 60_000, "unsupported: too much in each other"),
        ('"%d", ' + "!" * 100_000 + "1", "unsupported: too much in each other"),
        ('"%d", ' + "1?1:" * 30_000 + "1", "unsupported: too much in each other"),
        ('"%d", ' + DEEP * 40, "unsupported: too much in each other"),
        ('"%d", jiffies_to_msecs("' + "x" * 100_000 + '")', "unsupported: "),
        ('"%d", be32_to_cpu("x")', "unsupported: be32_to_cpu() of what is no number"),
        ('"%s", __print_hex(REC->comm, "x")', "unsupported: "),
        ('"%s", __print_array(REC->table, "x", 2)', "unsupported: "),
        ('"%s", __print_ns_to_secs("x")', "unsupported: "),
        ('"%d", ' + "9" * 100_000, "unsupported: the number"),
        (
            f'"{"%s" * 6000}"' + ",__get_str(text)" * 6000,
            "unsupported: more than 512 values",
        ),
        (f'"{"%s" * 512}"' + ",__get_str(text)" * 512, "xxx"),
        ('"%99999d", 1', "unsupported: 99999 columns"),
    ],
    ids=range(15),
)
def test_print_format_that_asks_for_a_lot(source: str, said: str) -> None:
    assert within_limits(printed(source)).startswith(said)


def test_bitmask_as_large_as_a_record() -> None:
    # Quadratic, it took a minute.
    said = within_limits(printed('"%s", __get_bitmask(text)', 200))
    assert said.startswith("78787878,78787878,")


def test_whole_plan_of_hostile_mem_section(tmp_path: Path) -> None:
    """Through all that extract does, for a dump with a page at the very end."""
    rows = load_rows(2, PAGE)
    rows["paddr"][1] = (1 << 52) - PAGE
    of = machine("7.2")
    text = vmcoreinfo_text({**of.keys, **LARGEST})
    note = struct.pack("<III", 11, len(text), 0) + b"VMCOREINFO\0\0" + text
    rows = np.concatenate((rows, np.zeros(1, elf.PHDR)))
    rows[2] = (elf.PT_NOTE, 0, 64 + 3 * 56, 0, 0, len(note), len(note), 0)
    write_headers(tmp_path / "dump", rows, note.ljust(2 * PAGE, b"\0"))

    def work() -> str:
        with open_vmcore(str(tmp_path / "dump")) as vmcore:
            make_plan(vmcore, frozenset())
            find_struct_pages(vmcore)
        return ""

    assert refused(work)


@pytest.mark.parametrize(
    ("work", "found"),
    [(zram.for_each_zram_slot, 1 << 15), (zram.for_each_zram_orphan, 0)],
)
def test_zram_device_without_its_table(
    work: Callable[[Object], Iterable[object]], found: int
) -> None:
    """Up to a million slots that are not there are told one by one."""
    kernel = ZramKernel(slots=12)
    table = kernel.device.table.value_()
    width = np.dtype(zram_table.read_layout(kernel.device).entry).itemsize

    def read() -> None:
        # What the table would have in the middle is something else, and there.
        size = 1 << 28
        middle = kernel.direct + PAGE - size // 2 * width
        kernel.set(kernel.zram, "struct zram", disksize=size * PAGE, table=middle)
        with pytest.raises(LookupError, match="its memory is damaged"):
            list(work(kernel.device))
        kernel.set(kernel.zram, "struct zram", table=table)
        for count in (1 << 34, 1 << 33, 1 << 31):
            kernel.set(kernel.zram, "struct zram", disksize=count * PAGE)
            kernel.prog.cache.clear()
            with pytest.raises(LookupError, match="its memory is damaged"):
                list(work(kernel.device))
        kernel.set(kernel.zram, "struct zram", disksize=PAGE << 15)
        kernel.prog.cache.clear()
        assert len(list(work(kernel.device))) == found

    within_limits(read)


def names_of(kernel: SymbolsKernel) -> Callable[[], str]:
    """Modules of which there are symbols."""

    def work() -> str:
        found = KernelSymbols(kernel.prog).all()
        return " ".join(sorted({module for _, _, module in found if module}))

    return work


def test_modules_that_lead_to_each_other() -> None:
    kernel = SymbolsKernel(absolute=False)
    assert within_limits(names_of(kernel)) == "module0 module1"
    kernel.put("struct list_head", kernel.nodes[2], next=kernel.nodes[1])
    assert within_limits(names_of(kernel)) == "module0 module1"


@pytest.mark.parametrize("count", [0, 1 << 21, (1 << 32) - 1])
def test_module_with_as_many_symbols_as_it_says(count: int) -> None:
    kernel = SymbolsKernel(absolute=True)
    kernel.put("struct mod_kallsyms", kernel.tables[0], num_symtab=count)
    assert within_limits(names_of(kernel)) == "module1"


@pytest.mark.parametrize("name", ["ftrace_events", "ftrace_trace_arrays"])
def test_list_that_leads_below_the_first_address(name: str) -> None:
    kernel = EventsKernel("nop")
    _, head = kernel.variables[name]
    kernel.put("list_head", head, next=1)

    def work() -> str:
        out = io.StringIO()
        ftrace.ftrace_dump(kernel.prog, file=out)
        return out.getvalue()

    said = within_limits(work)
    assert said.startswith("# tracer: nop\n")


def test_billions_of_zram_devices() -> None:
    kernel = ZramKernel(slots=12)
    kernel.streams([b""])
    _, address, _ = kernel.variables["num_devices"]
    kernel.write(address, 0xFFFFFFFF, 4)

    def work() -> str:
        out = io.StringIO()
        zram.zram_devices(kernel.prog, file=out)
        return str(len(out.getvalue().splitlines()))

    # With a heading.
    assert within_limits(work) == "257"


def test_thousands_of_pages_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them takes a process with it."""
    forks: list[int] = []
    fork = os.fork

    def counted() -> int:
        forks.append(0)
        return fork()

    def work(number: int) -> None:
        raise MissingMemory(number * PAGE)

    monkeypatch.setattr(os, "fork", counted)
    failed = workers.run(3000, work, 2, lambda number: None)
    assert sorted(failed) == list(range(3000))
    assert len(forks) == 2
