# SPDX-License-Identifier: LGPL-2.1-or-later
"""libkdumpfile's own test suite, against our reader, translator and writer."""

from __future__ import annotations

import collections
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from elftools.elf.elffile import ELFFile

from drgn_tools.errors import DumpError, MissingMemory
from drgn_tools.translate import PAGE_PRESENT, PAGE_PSE, Translator
from drgn_tools.vmcoreinfo import Vmcoreinfo
from tests.synthetic import read_kdump

from . import conformance, dumps, libkdumpfile, readers, stand_ins
from .dumps import Dump, Spec
from .libkdumpfile import Suite

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "conformance.md"
PAGE = 4096


@pytest.fixture(scope="module")
def suite() -> Suite:
    return libkdumpfile.get()


def test_every_case_is_listed(suite: Suite) -> None:
    counts = collections.Counter(conformance.by_us())
    assert set(counts.values()) == {1}
    assert set(counts) == conformance.cases(suite.scripts)
    scripts = {
        path.name
        for path in suite.scripts.iterdir()
        if path.read_bytes().startswith(b"#!")
    }
    assert len(scripts) > 100
    assert scripts <= {*counts, *conformance.SHARED.split()}


def test_docs_have_what_is_listed() -> None:
    assert conformance.markdown() in DOCS.read_text()


# --- its scripts, our reader ------------------------------------------------------


@pytest.fixture
def folder(suite: Suite, tmp_path: Path) -> Path:
    """Where its scripts run: programs of its own, and ours in place of readers."""
    for program in suite.programs.iterdir():
        path = tmp_path / program.name
        if program.name in stand_ins.PROGRAMS:
            command = f"{sys.executable} -m tests.vm.stand_ins {program.name}"
            path.write_text(f'#!/bin/sh\necho $0 >>used\nexec {command} "$@"\n')
            path.chmod(0o755)
        else:
            path.symlink_to(program)
    return tmp_path


def run(suite: Suite, folder: Path, case: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [suite.scripts / case],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "srcdir": str(suite.scripts),
            "LD_LIBRARY_PATH": str(suite.libraries),
            "PYTHONPATH": str(ROOT),
            "SIZEOF_OFF_T": "8",
        },
    )


@pytest.mark.verified(
    "extract: dumps of libkdumpfile's test suite",
    by="libkdumpfile's own scripts",
    on="bytes",
)
@pytest.mark.parametrize("case", conformance.READ.split())
def test_read(case: str, suite: Suite, folder: Path) -> None:
    done = run(suite, folder, case)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "used").read_text()


REFUSED = [
    pytest.param(case, other.said, id=case)
    for other in (*conformance.FAILED, *conformance.DO_NOT_APPLY)
    for case in other.cases.split()
    if other.said
]


@pytest.mark.parametrize(("case", "said"), REFUSED)
def test_refused(case: str, said: str, suite: Suite, folder: Path) -> None:
    """What we do not take, we say so of, in one line."""
    done = run(suite, folder, case)
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr


# --- its checkers, our writer -----------------------------------------------------

WRITTEN = {**readers.OUTPUTS, "split": ["--split"], "stream": []}


def write(dump: Dump, kind: str, folder: Path) -> list[Path]:
    count = 3 if kind == "split" else 1
    paths = [folder / f"{kind}-{number}" for number in range(count)]
    argv = [sys.executable, "-m", "drgn_tools", "extract", *WRITTEN[kind]]
    if kind == "stream":
        done = subprocess.run([*argv, dump.path], capture_output=True)
        paths[0].write_bytes(done.stdout)
    else:
        done = subprocess.run([*argv, dump.path, *paths], capture_output=True)
    assert done.returncode == 0, done.stderr
    return paths


class Source(NamedTuple):
    """A dump as pyelftools reads it, and what the guest said of itself."""

    dump: Dump
    vmcoreinfo: bytes
    registers: list[bytes]
    loads: list[tuple[int, int, int]]
    """Physical address, offset in the file, size."""
    kept: list[int]
    """Physical addresses of pages that extract keeps."""

    def read(self, paddr: int, size: int) -> bytes:
        for start, offset, length in self.loads:
            if start <= paddr and paddr + size <= start + length:
                with self.dump.path.open("rb") as file:
                    file.seek(offset + paddr - start)
                    return file.read(size)
        raise AssertionError(hex(paddr))


@pytest.fixture(
    scope="module",
    params=[Spec("6.1", 4, True), Spec("7.2", 5, True)],
    ids=lambda spec: spec.name,
)
def source(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Source:
    dump = next(d for d in dumps.both(request.param) if d.kind == "vmcore")
    with dump.path.open("rb") as file:
        elf = ELFFile(file)
        loads = [
            (h["p_paddr"], h["p_offset"], h["p_filesz"])
            for h in (s.header for s in elf.iter_segments("PT_LOAD"))
        ]
        segments: Any = elf.iter_segments("PT_NOTE")
        notes = [note for segment in segments for note in segment.iter_notes()]
    (text,) = (n["n_descdata"] for n in notes if n["n_name"] == "VMCOREINFO")
    registers = [n["n_descdata"] for n in notes if n["n_name"] == "CORE"]
    assert len(registers) == 2
    (path,) = write(dump, "none", tmp_path_factory.mktemp("kept"))
    kept = [pfn * PAGE for pfn in sorted(read_kdump(path).pages)]
    return Source(dump, text, registers, loads, kept)


def attributes(source: Source, kind: str, parts: int) -> str:
    """What checkattr shall find."""
    text = source.vmcoreinfo.decode()
    lines = dict(line.split("=", 1) for line in text.splitlines())
    wanted = {
        "file.set.number": f"number: {parts}",
        "file.format": f"string: {'elf' if kind == 'elf' else 'diskdump'}",
        "arch.name": "string: x86_64",
        "arch.byte_order": "number: 1",
        "arch.page_size": "number: 4096",
        "arch.ptr_size": "number: 8",
        "xen.type": "nil",
        "linux.vmcoreinfo.raw": f"blob: {source.vmcoreinfo.hex()}",
        "linux.uts.release": f"string: {source.dump.kernel.release}",
        "linux.phys_base": f"address: {int(lines['NUMBER(phys_base)']) % (1 << 64)}",
        "cpu.number": f"number: {len(source.registers)}",
    }
    if kind != "elf":
        # In a header, which an ELF core has not.
        version = source.dump.fact("version").decode().strip()
        wanted |= {
            "linux.uts.sysname": "string: Linux",
            "linux.uts.version": f"string: {version[version.index('#') :]}",
            "linux.uts.machine": "string: x86_64",
        }
    for key, value in lines.items():
        wanted[f"linux.vmcoreinfo.lines.{key}"] = f"string: {value}"
    for number, registers in enumerate(source.registers):
        wanted[f"cpu.{number}.PRSTATUS"] = f"blob: {registers.hex()}"
        rip = int.from_bytes(registers[240:248], "little")
        wanted[f"cpu.{number}.reg.rip"] = f"number: {rip}"
    return "".join(f"{key} = {value}\n" for key, value in wanted.items())


@pytest.mark.verified(
    "extract: libkdumpfile's checkers on the output",
    by="libkdumpfile's dumpdata and checkattr",
)
@pytest.mark.parametrize("kind", WRITTEN)
def test_its_checkers_read_what_we_write(
    kind: str, source: Source, suite: Suite, tmp_path: Path
) -> None:
    paths = write(source.dump, kind, tmp_path)

    def theirs(name: str, *args: object, stdin: str = "") -> str:
        done = subprocess.run(
            [suite.programs / name, *map(str, args)],
            input=stdin,
            capture_output=True,
            text=True,
            env={"LD_LIBRARY_PATH": str(suite.libraries)},
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    theirs("checkattr", *paths, stdin=attributes(source, kind, len(paths)))

    # By virtual address, through its own translation; as the guest said it.
    symbols = source.dump.fact("symbols").decode()
    banner = re.search(r"^(\w+) . linux_banner$", symbols, re.M)
    assert banner
    said = source.dump.fact("version")
    files = ["-n", len(paths), "-o", "linux", *paths]
    text = theirs("dumpdata", *files, f"KVADDR:0x{banner[1]}", len(said))
    assert bytes.fromhex(text) == said

    # And by physical ones.
    for paddr in source.kept[:: len(source.kept) // 40]:
        text = theirs("dumpdata", *files, hex(paddr), PAGE)
        assert bytes.fromhex(text) == source.read(paddr, PAGE)


# --- its page tables, our translator ----------------------------------------------


def memory(suite: Suite, case: str, image: Path) -> stand_ins.Read:
    """Physical memory that a case has, in a file that is mostly holes."""
    with open(suite.scripts / f"{case}.data") as file:
        subprocess.run(
            [suite.programs / "mkbinary", image],
            stdin=file,
            check=True,
            env={"LD_LIBRARY_PATH": str(suite.libraries)},
        )

    def read(paddr: int, size: int) -> bytes:
        with image.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            if paddr >= end or file.seek(paddr, os.SEEK_DATA) >= paddr + size:
                raise MissingMemory(paddr)
            file.seek(paddr)
            return file.read(size).ljust(size, b"\0")

    return read


def symbols(suite: Suite, case: str) -> dict[str, int]:
    text = (suite.scripts / f"{case}.sym").read_text()
    found = re.findall(r"^@(\w+\(\w+\))\n([0-9a-f]+)$", text, re.M)
    return {name: int(value, 16) for name, value in found}


def tables(suite: Suite, case: str, read: stand_ins.Read) -> Translator:
    """As VMCOREINFO leads to them; where a case has a register, as that does."""
    known = symbols(suite, case)
    if "REG(cr3)" in known:
        return stand_ins.translator(read, known["REG(cr3)"], 4)
    base = re.search(r"phys_base=(\w+)", (suite.scripts / case).read_text())
    assert base
    lines = [f"NUMBER(phys_base)={int(base[1], 0)}"]
    for name, value in known.items():
        kind, _, symbol = name.partition("(")
        number = f"SYMBOL({symbol}={value:x}" if kind == "VALUE" else f"{name}={value}"
        lines.append(number)
    return Translator(Vmcoreinfo("\n".join(lines).encode()), read)


def mapped(read: stand_ins.Read, root: int, levels: int, mask: int) -> Iterator[int]:
    """Where virtual addresses begin that page tables map."""
    top = 12 + 9 * levels

    def walk(table: int, level: int, start: int) -> Iterator[int]:
        try:
            entries = memoryview(read(table, PAGE)).cast("Q")
        except MissingMemory:
            return
        for index, entry in enumerate(entries):
            vaddr = start + (index << 12 + 9 * level)
            if not entry & PAGE_PRESENT:
                continue
            if level and not (level < 3 and entry & PAGE_PSE):
                yield from walk(entry & mask, level - 1, vaddr)
            else:
                yield vaddr

    for vaddr in walk(root, levels - 1, 0):
        yield vaddr | (-(vaddr >> top - 1) << top) % (1 << 64)


class Theirs:
    """Translation of addresses by sys-xlat."""

    def __init__(self, suite: Suite, config: Path, data: Path) -> None:
        params = config.with_suffix(".params")
        params.write_text(f"CONFIG={config}\nDATA={data}\n")
        self._program = [str(suite.programs / "sys-xlat"), "-f", str(params)]
        self._env = {"LD_LIBRARY_PATH": str(suite.libraries)}

    def translate(self, vaddrs: list[int]) -> list[int]:
        """Physical addresses, up to the first that it does not translate."""
        specs = [f"KVADDR:{vaddr:#x}:KPHYSADDR" for vaddr in vaddrs]
        done = subprocess.run(
            [*self._program, *specs], capture_output=True, text=True, env=self._env
        )
        found = []
        for vaddr, line in zip(vaddrs, done.stdout.splitlines()):
            said = re.fullmatch(r"KVADDR:(\w+) -> (?:KPHYSADDR:(\w+)|NOMETH)", line)
            assert said and int(said[1], 16) == vaddr, line
            if said[2] is None:
                break
            found.append(int(said[2], 16))
        return found


def ranges(config: str) -> list[tuple[int, int]]:
    """Of kernel virtual addresses, each of which libkdumpfile translates in one way."""
    section = config.partition("KV -> PHYS:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^([0-9a-f]+)-([0-9a-f]+): ", section, re.M)
    return [(int(first, 16), int(last, 16)) for first, last in found]


@pytest.mark.verified(
    "extract: dumps of libkdumpfile's test suite",
    by="libkdumpfile's translation of addresses",
    on="bytes",
)
@pytest.mark.parametrize("case", conformance.TRANSLATED.split())
def test_translated(case: str, suite: Suite, folder: Path) -> None:
    """Ends of its ranges, addresses within, and everything that is mapped."""
    done = run(suite, folder, case)
    assert done.returncode == 0, done.stdout + done.stderr
    read = memory(suite, case, folder / "memory")
    ours = tables(suite, case, read)

    data = suite.scripts / f"{case}.data"
    config = (folder / "out" / f"{case}.result").read_text()
    (folder / "as-it-is").write_text(config)
    theirs = Theirs(suite, folder / "as-it-is", data)
    # The same, by page tables alone: parts of the direct map and of the kernel's image
    # that a case's tables do not map it translates by their offset.
    config = re.sub(r"root=\S+", f"root=MACHPHYSADDR:{ours._root:#x}", config)
    (folder / "tables").write_text(
        re.sub(r": @(direct|ktext)$", ": @rootpgt", config, flags=re.M)
    )
    by_tables = Theirs(suite, folder / "tables", data)

    chance = random.Random(case)
    starts = list(mapped(read, ours._root, ours.levels, ours._mask))
    vaddrs = set()
    for vaddr in chance.sample(starts, min(400, len(starts))):
        _, size = ours.translate(vaddr)
        vaddrs |= {vaddr, vaddr + chance.randrange(size), vaddr + size - 1}
    for first, last in ranges(config):
        vaddrs |= {first, last, (first + last) // 2}
        vaddrs |= {chance.randrange(first, last + 1) for _ in range(8)}
    mine = {}
    for vaddr in sorted(vaddrs):
        try:
            mine[vaddr] = ours.translate(vaddr)[0]
        except DumpError:
            assert by_tables.translate([vaddr]) == [], hex(vaddr)
    assert theirs.translate(list(mine)) == list(mine.values())
    assert by_tables.translate(list(mine)) == list(mine.values())
    assert mine


def test_what_is_not_mapped_is_not_translated(suite: Suite, tmp_path: Path) -> None:
    """Of a case that we fail: all but one address is as it has it."""
    case, system = "sys-xlat-x86_64-linux", "xlat-linux-x86_64-2.6.31-nover-reloc"
    assert f"sysname={system}\n" in (suite.scripts / case).read_text()
    ours = tables(suite, system, memory(suite, system, tmp_path / "memory"))
    expected = (suite.scripts / f"{case}.expect").read_text()
    lines = re.findall(r"^KVADDR:(\w+) -> \w+:(\w+)$", expected, re.M)
    assert len(lines) == 6
    unmapped = set()
    for vaddr, paddr in lines:
        try:
            assert ours.translate(int(vaddr, 16))[0] == int(paddr, 16)
        except DumpError:
            unmapped.add(vaddr)
    assert unmapped == {"0xffffffff81e10123"}
