# SPDX-License-Identifier: LGPL-2.1-or-later
"""Kernels that have pstore in memory, as drgn programs: types as they were then."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from drgn import (
    Architecture,
    FindObjectFlags,
    Object,
    Platform,
    PlatformFlags,
    Program,
    Symbol,
    SymbolBinding,
    SymbolIndex,
    SymbolKind,
    Type,
    TypeKind,
    TypeMember,
    filename_matches,
)

Members = tuple[tuple[str, str], ...]

LP64 = Platform(Architecture.X86_64)
ILP32 = Platform(Architecture.ARM, PlatformFlags.IS_LITTLE_ENDIAN)

_LIST: Members = (("next", "pointer"), ("prev", "pointer"))
_ECC_3: Members = (
    ("block_size", "int"),
    ("ecc_size", "int"),
    ("symsize", "int"),
    ("poly", "int"),
)
_ECC: Members = (*_ECC_3, ("par", "pointer"))


def _info(mutex: int, flags: bool, reason: bool = False) -> Members:
    return (
        ("owner", "pointer"),
        ("name", "pointer"),
        ("buf_lock", "u32"),
        ("buf", "pointer"),
        ("bufsize", "long"),
        ("read_mutex", f"bytes{mutex}"),
        *((("flags", "int"),) if flags else ()),
        *((("max_reason", "int"),) if reason else ()),
        ("data", "pointer"),
    )


def _context(
    dumps: str, ftrace: tuple[str, ...], *, pmsg: bool, flags: bool, ecc: bool = True
) -> Members:
    return (
        (dumps, "pointer"),
        ("cprz", "pointer"),
        (ftrace[0], "pointer"),
        *((("mprz", "pointer"),) if pmsg else ()),
        ("phys_addr", "phys"),
        ("size", "long"),
        *((("memtype", "u32"),) if flags else ()),
        ("record_size", "long"),
        ("console_size", "long"),
        ("ftrace_size", "long"),
        *((("pmsg_size", "long"),) if pmsg else ()),
        *((("dump_oops", "int"),) if not pmsg else ()),
        *((("flags", "u32"),) if flags else ()),
        ("ecc_info", "struct persistent_ram_ecc_info"),
        ("max_dump_cnt", "u32"),
        ("dump_write_cnt", "u32"),
        ("dump_read_cnt", "u32"),
        ("console_read_cnt", "u32"),
        *((name, "u32") for name in ftrace[1:]),
        ("ftrace_read_cnt", "u32"),
        *((("pmsg_read_cnt", "u32"),) if pmsg else ()),
        ("pstore", "struct pstore_info"),
    )


def _prz(*, label: bool, locks: bool) -> Members:
    return (
        ("paddr", "phys"),
        ("size", "long"),
        ("vaddr", "pointer"),
        *((("label", "pointer"), ("type", "u32")) if label else ()),
        *((("flags", "u32"), ("buffer_lock", "u32")) if locks else ()),
        ("buffer", "pointer"),
        ("buffer_size", "long"),
        ("par_buffer", "pointer"),
        ("par_header", "pointer"),
        ("rs_decoder", "pointer"),
        ("corrected_bytes", "int"),
        ("bad_blocks", "int"),
        ("ecc_info", "struct persistent_ram_ecc_info"),
        ("old_log", "pointer"),
        ("old_log_size", "long"),
    )


_TIME: Members = (("tv_sec", "s64"), ("tv_nsec", "s64"))
_RECORD: Members = (
    ("psi", "pointer"),
    ("type", "u32"),
    ("id", "u64"),
    ("time", "struct timespec64"),
    ("buf", "pointer"),
    ("size", "long"),
    ("ecc_notice_size", "long"),
    ("count", "int"),
    ("reason", "u32"),
    ("part", "u32"),
    ("compressed", "u8"),
)
_PRIVATE: Members = (
    ("list", "struct list_head"),
    ("dentry", "pointer"),
    ("record", "pointer struct pstore_record"),
    ("total_size", "long"),
)
# Of 3.10.
_PRIVATE_3: Members = (
    ("list", "struct list_head"),
    ("psi", "pointer"),
    ("type", "u32"),
    ("id", "u64"),
    ("size", "long"),
    ("data", "bytes0"),
)
_FTRACE: Members = (("ip", "long"), ("parent_ip", "long"), ("ts", "u64"))
_FTRACE_CPU: Members = (("ip", "long"), ("parent_ip", "long"), ("cpu", "u32"))

_NEW_RECORDS: dict[str, Members] = {
    "struct list_head": _LIST,
    "struct timespec64": _TIME,
    "struct pstore_record": _RECORD,
    "struct pstore_private": _PRIVATE,
}
_PSZ: dict[str, Members] = {
    "struct psz_context": (
        ("kpszs", "pointer"),
        ("ppsz", "pointer"),
        ("cpsz", "pointer"),
        ("fpszs", "pointer"),
        ("kmsg_max_cnt", "u32"),
        ("kmsg_read_cnt", "u32"),
        ("kmsg_write_cnt", "u32"),
        ("pmsg_read_cnt", "u32"),
        ("console_read_cnt", "u32"),
        ("ftrace_max_cnt", "u32"),
    ),
    "struct pstore_zone": (
        ("off", "s64"),
        ("name", "pointer"),
        ("type", "u32"),
        ("buffer", "pointer"),
        ("oldbuf", "pointer"),
        ("buffer_size", "long"),
        ("should_recover", "u8"),
        ("dirty", "u32"),
    ),
}
_MANY = ("fprzs", "max_ftrace_cnt")

ERAS: dict[str, dict[str, Members]] = {
    "3.10": {
        "struct list_head": _LIST,
        "struct pstore_private": _PRIVATE_3,
        "struct pstore_info": _info(40, flags=False),
        "struct persistent_ram_ecc_info": _ECC_3,
        "struct ramoops_context": _context("przs", ("fprz",), pmsg=False, flags=False),
        "struct persistent_ram_zone": _prz(label=False, locks=False),
        "struct pstore_ftrace_record": _FTRACE_CPU,
    },
    "4.9": {
        "struct list_head": _LIST,
        "struct pstore_private": _PRIVATE_3,
        "struct pstore_info": _info(40, flags=True),
        "struct persistent_ram_ecc_info": _ECC_3,
        "struct ramoops_context": _context("przs", ("fprz",), pmsg=True, flags=False),
        "struct persistent_ram_zone": _prz(label=False, locks=False),
        "struct pstore_ftrace_record": _FTRACE_CPU,
    },
    "4.10": {
        **_NEW_RECORDS,
        "struct pstore_info": _info(32, flags=True),
        "struct persistent_ram_ecc_info": _ECC_3,
        "struct ramoops_context": _context("przs", _MANY, pmsg=True, flags=True),
        "struct persistent_ram_zone": _prz(label=False, locks=True),
        "struct pstore_ftrace_record": _FTRACE,
    },
    "5.10": {
        **_NEW_RECORDS,
        **_PSZ,
        "struct pstore_info": _info(32, flags=True, reason=True),
        "struct persistent_ram_ecc_info": _ECC,
        "struct ramoops_context": _context("dprzs", _MANY, pmsg=True, flags=True),
        "struct persistent_ram_zone": _prz(label=True, locks=True),
        "struct pstore_ftrace_record": _FTRACE,
    },
}
ERAS["6.12"] = ERAS["5.10"]
ERAS["7.2"] = {
    **ERAS["5.10"],
    "struct pstore_info": _info(24, flags=True, reason=True),
}

KERNEL = 0xFFFF888000000000
"""Where the kernel's own memory is, virtual."""
REGION = 0x30000000
"""Where persistent memory is, physical."""
MAPPED = 0xFFFFC90000000000
"""And virtual: nothing there can be read."""

_SIZES = {"u8": 1, "u32": 4, "int": 4, "u64": 8, "s64": 8, "phys": 8}


class FakeKernel:
    """Memory with structures in it, and the program that sees it."""

    def __init__(
        self,
        era: str = "6.12",
        *,
        platform: Platform = LP64,
        without: Sequence[str] = (),
        debug_info: bool = True,
        live: bool = False,
    ) -> None:
        """
        :param without: names of types that there are no debugging symbols of.
        :param live: a running kernel.
        """
        self.types = ERAS[era]
        self.wide = bool(platform.flags & PlatformFlags.IS_64_BIT)
        self.base = KERNEL if self.wide else 0xC0000000
        self.mapped = MAPPED if self.wide else 0xF0000000
        self.memory = bytearray(1 << 22)
        self.used = 0x1000
        self.variables: dict[str, tuple[str, int, str]] = {}
        self.functions: dict[str, int] = {}
        self.prog = Program(platform)
        self.without = without
        if live:
            self.prog.set_linux_kernel_custom(
                "OSRELEASE=6.12.0\nPAGESIZE=4096\nKERNELOFFSET=0\nNUMBER(phys_base)=0\n"
                "SYMBOL(swapper_pg_dir)=ffffffff82a10000\n",
                True,
            )
        self.prog.add_memory_segment(self.base, len(self.memory), self._read)
        self.prog.register_type_finder("fake", self._find_type, enable_index=0)
        self.prog.register_object_finder("fake", self._find_object, enable_index=0)
        if debug_info:
            self.variable("init_task", "u32", "init/init_task.c")

    def _read(self, address: int, count: int, offset: int, physical: bool) -> bytes:
        return bytes(self.memory[offset : offset + count])

    # Types

    def _width(self, kind: str) -> tuple[int, int]:
        # Size and alignment.
        if kind.startswith("struct "):
            size, _, alignment = self.layout(kind)
            return size, alignment
        if kind.startswith("bytes"):
            return int(kind[5:]), 1
        if kind.startswith(("pointer", "long")):
            return (8, 8) if self.wide else (4, 4)
        return _SIZES[kind], _SIZES[kind]

    def layout(self, name: str) -> tuple[int, dict[str, tuple[int, str]], int]:
        """Size, members with their offsets and kinds, and alignment."""
        at, most = 0, 1
        members = {}
        for member, kind in self.types[name]:
            size, alignment = self._width(kind)
            at = -(-at // alignment) * alignment
            members[member] = at, kind
            at += size
            most = max(most, alignment)
        return -(-at // most) * most, members, most

    def _type(self, kind: str) -> Type:
        prog = self.prog
        if kind.startswith("struct "):
            size, members, _ = self.layout(kind)
            return prog.struct_type(
                kind.split()[1],
                size,
                tuple(
                    TypeMember(self._type(sub), member, offset * 8)
                    for member, (offset, sub) in members.items()
                ),
            )
        if kind.startswith("bytes"):
            return prog.array_type(prog.int_type("char", 1, True), int(kind[5:]))
        if kind.startswith("pointer"):
            _, _, target = kind.partition(" ")
            return prog.pointer_type(self._type(target) if target else prog.void_type())
        if kind == "long":
            return prog.int_type("unsigned long", 8 if self.wide else 4, False)
        signed = kind in ("int", "s64")
        return prog.int_type(kind, _SIZES[kind], signed)

    def _find_type(
        self, prog: Program, kinds: Any, name: str, filename: str | None
    ) -> Type | None:
        full = f"struct {name}"
        if TypeKind.STRUCT in kinds and full in self.types and full not in self.without:
            return self._type(full)
        return None

    def _find_object(
        self, prog: Program, name: str, flags: FindObjectFlags, filename: str | None
    ) -> Object | None:
        if name in self.functions and flags & FindObjectFlags.FUNCTION:
            type_ = prog.function_type(prog.void_type(), ())
            return Object(prog, type_, address=self.functions[name])
        if name not in self.variables or not flags & FindObjectFlags.VARIABLE:
            return None
        kind, address, where = self.variables[name]
        if filename is not None and not filename_matches(where, filename):
            return None
        return Object(prog, self._type(kind), address=address)

    # Memory

    def allocate(self, size: int, data: bytes = b"") -> int:
        """Memory of the kernel's own; its address."""
        at = self.used
        self.used += -(-max(size, len(data), 1) // 16) * 16
        assert self.used <= len(self.memory)
        self.memory[at : at + len(data)] = data
        return self.base + at

    def string(self, text: str) -> int:
        return self.allocate(0, text.encode() + b"\0")

    def poke(self, address: int, data: bytes) -> None:
        at = address - self.base
        self.memory[at : at + len(data)] = data

    def put(self, type_: str, address: int = 0, /, **values: int) -> int:
        """Write a structure, of which this kernel may not have all members."""
        size, members, _ = self.layout(type_)
        address = address or self.allocate(size)
        for member, value in values.items():
            if member in members:
                offset, kind = members[member]
                width, _ = self._width(kind)
                self.poke(
                    address + offset,
                    (value & ((1 << 8 * width) - 1)).to_bytes(width, "little"),
                )
        return address

    def member(self, name: str, member: str) -> int:
        """An offset."""
        return self.layout(name)[1][member][0]

    def variable(self, name: str, kind: str, filename: str, value: int = 0) -> int:
        size, _ = self._width(kind)
        address = self.allocate(size)
        if not kind.startswith("struct"):
            self.poke(address, (value & ((1 << 8 * size) - 1)).to_bytes(size, "little"))
        self.variables[name] = kind, address, filename
        return address

    def pointers(self, addresses: Sequence[int]) -> int:
        word = "Q" if self.wide else "I"
        return self.allocate(0, struct.pack(f"<{len(addresses)}{word}", *addresses))

    def physical(self, address: int, data: bytes) -> None:
        """Persistent memory that can be read."""
        self.prog.add_memory_segment(
            address,
            len(data),
            lambda a, count, offset, p: data[offset : offset + count],
            True,
        )

    def vmcoreinfo(self, text: str) -> None:
        raw = text.encode() + b"\0"
        address = self.allocate(0, raw)
        self.variables["VMCOREINFO"] = f"bytes{len(raw)}", address, "vmcoreinfo"

    def symbols(self, functions: Sequence[tuple[int, str]]) -> None:
        """Functions that end where the next one starts."""
        ends = [address for address, _ in functions[1:]] + [functions[-1][0] + 64]
        finder = SymbolIndex(
            Symbol(name, address, end - address, SymbolBinding.GLOBAL, SymbolKind.FUNC)
            for (address, name), end in zip(functions, ends)
        )
        self.prog.register_symbol_finder("fake", finder, enable_index=0)

    # pstore

    def psinfo(self, name: str, data: int, buf: bytes = b"") -> int:
        info = self.put(
            "struct pstore_info",
            name=self.string(name),
            data=data,
            buf=self.allocate(0, buf) if buf else 0,
            bufsize=len(buf),
        )
        self.variable(
            "psinfo", "pointer struct pstore_info", "fs/pstore/platform.c", info
        )
        return info

    def ramoops(
        self,
        zones: Sequence[tuple[str, bytes]],
        *,
        ecc: int = 0,
        old_logs: dict[int, bytes] | None = None,
        present: bool = True,
        registered: bool = True,
        room: Sequence[int] = (),
    ) -> int:
        """
        Zones, one behind the other.

        :param old_logs: by the zone's place in *zones*.
        :param present: whether persistent memory can be read.
        :param room: buffer_size of each, where a test looks at it.
        :return: address of the context.
        """
        at = 0
        found: dict[str, list[int]] = {}
        for place, (kind, image) in enumerate(zones):
            log = (old_logs or {}).get(place, b"")
            number = len(found.setdefault(kind, []))
            count = sum(1 for other, _ in zones if other == kind)
            label = f"ramoops:{kind}"
            if kind in ("dmesg", "ftrace"):
                label += f"({number}/{count - 1})"
            address = self.put(
                "struct persistent_ram_zone",
                paddr=REGION + at,
                size=len(image),
                vaddr=self.mapped + at,
                label=self.string(label),
                buffer=self.mapped + at,
                buffer_size=room[place] if room else len(image) - 12,
                old_log=self.allocate(0, log) if log else 0,
                old_log_size=len(log),
            )
            self._put_ecc("struct persistent_ram_zone", address, ecc)
            found[kind].append(address)
            at += len(image)
        if present:
            self.physical(REGION, b"".join(image for _, image in zones))
        dumps, traces = found.get("dmesg", []), found.get("ftrace", [])
        first_dump = self.pointers(dumps) if dumps else 0
        context = self.variable("oops_cxt", "struct ramoops_context", "fs/pstore/ram.c")
        self.put(
            "struct ramoops_context",
            context,
            dprzs=first_dump,
            przs=first_dump,
            max_dump_cnt=len(dumps),
            cprz=(found.get("console") or [0])[0],
            fprzs=self.pointers(traces) if traces else 0,
            fprz=traces[0] if traces else 0,
            max_ftrace_cnt=len(traces),
            mprz=(found.get("pmsg") or [0])[0],
            phys_addr=REGION,
            size=at,
        )
        if registered:
            self.psinfo("ramoops", context)
        return context

    def _put_ecc(self, name: str, address: int, ecc: int) -> None:
        if ecc:
            self.put(
                "struct persistent_ram_ecc_info",
                address + self.member(name, "ecc_info"),
                block_size=128,
                ecc_size=ecc,
                symsize=8,
                poly=0x11D,
            )

    def pstorefs(
        self, records: Sequence[tuple[int, int, bytes]], name: str = "records_list"
    ) -> list[int]:
        """
        Mounted records: type, id and content.

        :return: addresses of their list heads, the variable's first.
        """
        head = self.variable(name, "struct list_head", "fs/pstore/inode.c")
        nodes = [head]
        for kind, number, content in records:
            if "struct pstore_record" in self.types:
                record = self.put(
                    "struct pstore_record",
                    type=kind,
                    id=number,
                    buf=self.allocate(0, content),
                    size=len(content),
                )
                nodes.append(self.put("struct pstore_private", record=record))
                continue
            size, members, _ = self.layout("struct pstore_private")
            address = self.allocate(size + len(content))
            self.put(
                "struct pstore_private",
                address,
                type=kind,
                id=number,
                size=len(content),
            )
            self.poke(address + members["data"][0], content)
            nodes.append(address)
        for node, after in zip(nodes, [*nodes[1:], head]):
            self.put("struct list_head", node, next=after)
        return nodes

    def pstore_zone(
        self, zones: Sequence[tuple[str, bytes, bytes]], name: str = "pstore_blk"
    ) -> int:
        """Zones of pstore_zone: kind, buffer, oldbuf."""
        found: dict[str, list[int]] = {}
        for kind, image, old in zones:
            number = len(found.setdefault(kind, []))
            found[kind].append(
                self.put(
                    "struct pstore_zone",
                    name=self.string(kind),
                    type=number,
                    buffer=self.allocate(0, image),
                    oldbuf=self.allocate(0, old) if old else 0,
                    buffer_size=len(image) - 12,
                )
            )
        context = self.variable(
            "pstore_zone_cxt", "struct psz_context", "fs/pstore/zone.c"
        )
        dumps, traces = found.get("dmesg", []), found.get("ftrace", [])
        self.put(
            "struct psz_context",
            context,
            kpszs=self.pointers(dumps) if dumps else 0,
            kmsg_max_cnt=len(dumps),
            fpszs=self.pointers(traces) if traces else 0,
            ftrace_max_cnt=len(traces),
            cpsz=(found.get("console") or [0])[0],
            ppsz=(found.get("pmsg") or [0])[0],
        )
        self.psinfo(name, context)
        return context
