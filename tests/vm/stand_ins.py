# SPDX-License-Identifier: LGPL-2.1-or-later
"""Programs that libkdumpfile's test scripts run, with our reader behind them.

Each is called as theirs of the same name is, writes the same, and ends with the same
status: python -m tests.vm.stand_ins NAME ARGUMENTS. What a script then says is what
libkdumpfile's authors expect of a reader.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
from collections.abc import Iterator, Sequence
from typing import Callable, Union

import numpy as np

from drgn_tools.errors import DumpError, MissingMemory
from drgn_tools.formats.notes import NT_PRSTATUS, iter_notes
from drgn_tools.translate import Translator
from drgn_tools.vmcore import Vmcore, open_vmcore
from drgn_tools.vmcoreinfo import Vmcoreinfo

OK, FAILED, ERROR = 0, 1, 99

PAGE = 4096

Read = Callable[[int, int], bytes]
"""Reads memory: (address, size)."""

# Bytes that are read, or missing, together.
_CHUNK = 256


def _number(text: str) -> int:
    # As strtoull() has it: 0 at the start is octal.
    if len(text) > 1 and text[0] == "0" and text[1] in "01234567":
        return int(text, 8)
    return int(text, 0)


@contextlib.contextmanager
def _dumps(paths: Sequence[str]) -> Iterator[list[Vmcore]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(open_vmcore(path, part=True)) for path in paths]


# --- dumpdata ---------------------------------------------------------------------


def dumpdata(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("-n", type=int, default=1, dest="files")
    parser.add_argument("-o", dest="os")
    parser.add_argument("-s", type=int, default=1, dest="size")
    parser.add_argument("-z", action="store_true", dest="zeros")
    parser.add_argument("rest", nargs="+")
    args = parser.parse_intermixed_args(argv)
    paths, ranges = args.rest[: args.files], args.rest[args.files :]
    with _dumps(paths) as vmcores:
        status = OK
        for spec, length in zip(ranges[::2], ranges[1::2]):
            space, _, address = spec.rpartition(":")
            read = _virtual(vmcores[0]) if space == "KVADDR" else _physical(vmcores)
            at, size = _number(address), _number(length) * args.size
            status = _dump_range(read, at, size, args.size, args.zeros) or status
    return status


def _dump_range(read: Read, start: int, size: int, width: int, zeros: bool) -> int:
    at, end = start, start + size
    status = OK
    items: list[str] = []
    while at < end:
        length = min(_CHUNK, end - at)
        try:
            data = read(at, length)
            step = width if length % width == 0 else 1
            items += [
                f"{int.from_bytes(data[i : i + step], 'little'):0{2 * step}X}"
                for i in range(0, length, step)
            ]
        except MissingMemory as error:
            excluded = "excluded" in str(error)
            if zeros and excluded:
                items += ["00"] * length
            else:
                theirs = "Excluded page: " if excluded else ""
                _complain(f"Read failed at {at:#x}: {theirs}{error}")
                items += ["??"] * length
                status = FAILED
        at += length
    # Lines end where an address is a multiple of 16.
    for item in items:
        start += len(item) // 2
        print(item, end=" " if start % 16 else "\n")
    if start % 16:
        print()
    return status


def _physical(vmcores: Sequence[Vmcore]) -> Read:
    """Each page from the part of a split dump that has it."""

    def read(paddr: int, size: int) -> bytes:
        data = b""
        while len(data) < size:
            at = paddr + len(data)
            for vmcore in vmcores:
                part = vmcore.part
                if not part or part.pfn <= at // PAGE < part.end_pfn:
                    break
            data += vmcore.read(at, min(size - len(data), PAGE - at % PAGE))
        return data

    return read


def _virtual(vmcore: Vmcore) -> Read:
    if vmcore.vmcoreinfo is not None:
        return vmcore.kernel.read

    def read(vaddr: int, size: int) -> bytes:
        for load in vmcore.loads:
            if load.vaddr <= vaddr and vaddr + size <= load.vaddr + load.memsz:
                return vmcore.read(vaddr - load.vaddr + load.paddr, size)
        raise MissingMemory(vaddr)

    return read


# --- checkattr --------------------------------------------------------------------

Value = Union[int, str, bytes, None]

# The 27 of user_regs_struct, in the order of struct elf_prstatus.
_REGISTERS = """
    r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs rflags
    rsp ss fs_base gs_base ds es fs gs
"""
_PR_PID, _PR_REG = 32, 112

# Said by libkdumpfile of itself.
_OF_THE_LIBRARY = ("file.set.", "file.description", "cache")


def checkattr(argv: Sequence[str]) -> int:
    with _dumps(argv) as vmcores:
        known = _attributes(vmcores)
        status = OK
        for line in sys.stdin:
            key, _, said = (part.strip() for part in line.partition("="))
            if not key or key.startswith("#"):
                continue
            if key.startswith(_OF_THE_LIBRARY) and key != "file.set.number":
                continue
            kind, colon, wanted = (part.strip() for part in said.partition(":"))
            if kind == "directory":
                good = any(name.startswith(f"{key}.") for name in known)
            else:
                expected = _parse(kind, wanted) if colon else known.get(key)
                found = known.get(key)
                if kind == "bitmap":
                    # What is beyond what is told is not asked for.
                    assert isinstance(found, bytes) and isinstance(expected, bytes)
                    found = found.ljust(len(expected), b"\0")[: len(expected)]
                good = key in known and found == expected
            if not good:
                _complain(f"{key}: {known.get(key)!r}, not {said}")
                status = FAILED
    return status


def _parse(kind: str, text: str) -> Value:
    if kind == "string":
        return text
    if kind == "blob":
        return bytes.fromhex(text)
    if kind == "bitmap":
        return bytes(_number(word) for word in text.split())
    return _number(text)


def _attributes(vmcores: Sequence[Vmcore]) -> dict[str, Value]:
    first = vmcores[0]
    known: dict[str, Value] = {
        "file.set.number": len(vmcores),
        "file.format": "diskdump" if first.header else "elf",
        "arch.name": "x86_64",
        "arch.byte_order": 1,
        "arch.ptr_size": 8,
        "arch.page_size": first.page_size,
        "arch.page_shift": first.page_size.bit_length() - 1,
        "arch.pteval_size": 8,
    }
    end = max(vmcore.max_pfn for vmcore in vmcores)
    memory = np.zeros(end, np.bool_)
    present = np.zeros(end, np.bool_)
    for vmcore in vmcores:
        present |= vmcore.present(0, end)
        for run in vmcore.ram_runs:
            memory[run.pfn : run.end_pfn] = True
    for name, bits in (("file", present), ("memory", memory)):
        known[f"{name}.pagemap"] = np.packbits(bits, bitorder="little").tobytes()
    names = ("sysname", "nodename", "release", "version", "machine", "domainname")
    for name, field in zip(names, first.utsname()):
        known[f"linux.uts.{name}"] = field.decode()
    if first.header:
        known["linux.phys_base"] = first.header.phys_base
    start, size = first.vmcoreinfo_place
    for line in first.notes[start : start + size].decode().splitlines():
        key, _, value = line.partition("=")
        known[f"linux.vmcoreinfo.lines.{key}"] = value
    cpu = 0
    for note in iter_notes(first.notes):
        if note.name == b"ERASEINFO":
            known["file.eraseinfo.raw"] = note.desc
        if note.name == b"CORE" and note.type == NT_PRSTATUS:
            known[f"cpu.{cpu}.PRSTATUS"] = note.desc
            pid = note.desc[_PR_PID : _PR_PID + 4]
            known[f"cpu.{cpu}.pid"] = int.from_bytes(pid, "little")
            values = np.frombuffer(note.desc, "<u8", 27, _PR_REG)
            for name, value in zip(_REGISTERS.split(), values.tolist()):
                known[f"cpu.{cpu}.reg.{name}"] = value
            cpu += 1
    known["cpu.number"] = first.nr_cpus
    return known


# --- multiread --------------------------------------------------------------------


def multiread(argv: Sequence[str]) -> int:
    """Processes instead of threads: so does whatever reads with ours."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-i", type=int, default=1000, dest="reads")
    parser.add_argument("-n", type=int, default=1, dest="readers")
    parser.add_argument("-t", dest="seconds")
    parser.add_argument("path")
    parser.add_argument("pfn", type=_number)
    parser.add_argument("pages", type=_number)
    args = parser.parse_args(argv)
    with _dumps([args.path]) as (vmcore,):
        children = []
        for seed in range(args.readers):
            child = os.fork()
            if child == 0:
                pick = random.Random(seed)
                try:
                    for _ in range(args.reads):
                        pfn = args.pfn + pick.randrange(args.pages)
                        assert len(vmcore.read(pfn * PAGE, 1)) == 1
                    os._exit(OK)
                finally:
                    os._exit(FAILED)
            children.append(child)
        return max(os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children)


# --- page tables ------------------------------------------------------------------


def translator(read: Read, root: int, levels: int, mask: int = 0) -> Translator:
    """
    One whose page table is at a physical address.

    :param mask: as of sme_mask.
    """
    text = (
        "SYMBOL(init_top_pgt)=ffffffff80000000\n"
        f"NUMBER(phys_base)={root}\n"
        f"NUMBER(pgtable_l5_enabled)={int(levels == 5)}\n"
        f"NUMBER(sme_mask)={mask}\n"
    )
    return Translator(Vmcoreinfo(text.encode()), read)


def sparse(entries: dict[int, int]) -> Read:
    """Reads memory of which some 8-byte words are known, in pages that are."""
    pages: dict[int, bytearray] = {}
    for address, value in entries.items():
        page = pages.setdefault(address // PAGE, bytearray(PAGE))
        page[address % PAGE : address % PAGE + 8] = value.to_bytes(8, "little")

    def read(paddr: int, size: int) -> bytes:
        data = b""
        while len(data) < size:
            pfn, skip = divmod(paddr + len(data), PAGE)
            if pfn not in pages:
                raise MissingMemory(paddr)
            data += bytes(pages[pfn][skip : skip + size - len(data)])
        return data

    return read


def addrxlat(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("-p", action="store_true")
    parser.add_argument("-f", dest="form", required=True)
    parser.add_argument("-r", dest="root", required=True)
    parser.add_argument("-k", dest="mask", type=_number, default=0)
    parser.add_argument("-e", dest="entries", action="append", default=[])
    parser.add_argument("vaddr", type=_number)
    args = parser.parse_args(argv)
    kind, _, fields = args.form.partition(":")
    space, _, root = args.root.partition(":")
    if kind != "x86_64" or space != "MACHPHYSADDR":
        raise DumpError(f"no page tables of x86-64: {args.form}")
    entries = {}
    for entry in args.entries:
        address, _, value = entry.partition(":")
        entries[_number(address)] = _number(value)
    levels = fields.count(",")
    tables = translator(sparse(entries), _number(root), levels, args.mask)
    try:
        paddr, _ = tables.translate(args.vaddr)
    except DumpError as error:
        _complain(f"Address translation failed: {error}")
        return FAILED
    print(f"{paddr:#x}")
    return OK


def multixlat(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("-1", dest="first", type=_number)
    parser.add_argument("-2", dest="second", type=_number)
    parser.add_argument("-a", dest="vaddr", type=_number)
    parser.add_argument("-l", dest="size", type=_number)
    parser.add_argument("-o", dest="options")
    parser.add_argument("path")
    args = parser.parse_args(argv)
    with _dumps([args.path]) as (vmcore,):

        def tables(root: int) -> Callable[[], None]:
            made = translator(vmcore.read, root, 4)

            def dump() -> None:
                print(f"rootpgt=MACHPHYSADDR:{root:#x}")
                # Theirs ends a line with a space, unless it is full.
                data = made.read(args.vaddr, args.size)
                print("".join(f"{byte:02X} " for byte in data))

            return dump

        first, second = tables(args.first), tables(args.second)
        print("Using first root page table:")
        first()
        print("Using second root page table on a cloned context:")
        second()
        print("Using original context again:")
        first()
        print("Reinitialized original context:")
        tables(args.first)()
        print("Using cloned context again:")
        second()
    return OK


def _complain(line: str) -> None:
    print(line, file=sys.stderr)


PROGRAMS = {
    "addrxlat": addrxlat,
    "checkattr": checkattr,
    "dumpdata": dumpdata,
    "multiread": multiread,
    "multixlat": multixlat,
}


def main(argv: Sequence[str]) -> int:
    """Run a program; return its exit status."""
    try:
        return PROGRAMS[argv[0]](argv[1:])
    except DumpError as error:
        _complain(f"Cannot open dump: {error}")
        return ERROR


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
