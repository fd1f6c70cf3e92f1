# SPDX-License-Identifier: LGPL-2.1-or-later
"""Kernels with a ring buffer, as drgn programs: structs and bytes as they were then."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple, Union

from drgn import (
    Architecture,
    FindObjectFlags,
    Object,
    Platform,
    PlatformFlags,
    Program,
    Type,
    TypeKind,
    TypeMember,
)

PAGE = 4096
BASE = 0xFFFF_8880_0000_0000
BASE_32 = 0xC000_0000

LP64 = Platform(Architecture.X86_64)
LP64_BIG = Platform(Architecture.S390X, PlatformFlags.IS_64_BIT)
ILP32 = Platform(Architecture.ARM, PlatformFlags.IS_LITTLE_ENDIAN)

# Members in their order: name and kind.
Members = tuple[tuple[str, str], ...]

_PER_CPU: Members = (
    ("cpu", "int"),
    ("buffer", "buffer *"),
    ("nr_pages", "long"),
    ("pages", "list *"),
    ("head_page", "page *"),
    ("tail_page", "page *"),
    ("commit_page", "page *"),
    ("reader_page", "page *"),
    ("lost_events", "long"),
    ("entries_bytes", "local"),
    ("entries", "local"),
    ("overrun", "local"),
    ("commit_overrun", "local"),
    ("dropped_events", "local"),
    ("committing", "local"),
    ("read", "long"),
    ("read_bytes", "long"),
)
# Before 3.5 the struct of all CPUs had the number of pages, before 2.6.32 the list's
# head was no page.
_PER_CPU_2: Members = (
    ("cpu", "int"),
    ("buffer", "buffer *"),
    ("pages", "list"),
    ("head_page", "page *"),
    ("tail_page", "page *"),
    ("commit_page", "page *"),
    ("reader_page", "page *"),
    ("overrun", "long"),
    ("entries", "long"),
    ("read", "long"),
)
_LIST: Members = (("next", "list *"), ("prev", "list *"))
_DATA_PAGE: Members = (("time_stamp", "u64"), ("commit", "local"), ("data", "bytes0"))
_LOCAL: Members = (("counter", "long"),)
_PAGE: Members = (
    ("list", "list"),
    ("write", "local"),
    ("read", "u32"),
    ("entries", "local"),
    ("real_end", "long"),
    ("page", "data *"),
)
_PAGE_6_8: Members = (*_PAGE[:-1], ("order", "u32"), ("id", "u32"), _PAGE[-1])


class Era(NamedTuple):
    """What a release had."""

    page: Members
    per_cpu: Members
    buffer: str = "ring_buffer"
    packed: bool = True
    """Events have type_len."""
    in_page: bool = False
    """Time and commit are in buffer_page, and data fills its page."""
    order: bool = False
    """There are sub-buffers of several pages."""

    @property
    def headed(self) -> bool:
        """The list's head is no page."""
        return dict(self.per_cpu)["pages"] == "list"


ERAS = {
    "2.6.28": Era(
        (
            ("time_stamp", "u64"),
            ("write", "local"),
            ("commit", "local"),
            ("read", "u32"),
            ("list", "list"),
            ("page", "data *"),
        ),
        _PER_CPU_2,
        packed=False,
        in_page=True,
    ),
    "2.6.30": Era(
        (("write", "local"), ("read", "u32"), ("list", "list"), ("page", "data *")),
        _PER_CPU_2,
        packed=False,
    ),
    "2.6.31": Era(
        (("write", "local"), ("read", "u32"), ("list", "list"), ("page", "data *")),
        _PER_CPU_2,
    ),
    "2.6.32": Era(_PAGE[:4] + _PAGE[5:], _PER_CPU),
    "5.10": Era(_PAGE, _PER_CPU, "trace_buffer"),
    "6.8": Era(_PAGE_6_8, _PER_CPU, "trace_buffer", order=True),
    "7.2": Era(_PAGE_6_8, _PER_CPU, "trace_buffer", order=True),
}


class Data(NamedTuple):
    """An event with a payload."""

    payload: bytes
    delta: int = 10


class Extend(NamedTuple):
    """Time that passes."""

    delta: int


class Stamp(NamedTuple):
    """A time."""

    time: int


class Discarded(NamedTuple):
    """An event that was taken back."""

    size: int
    delta: int = 1


class Padding(NamedTuple):
    """The rest of the page is void."""


Item = Union[Data, Extend, Stamp, Discarded, Padding]


class PageOf(NamedTuple):
    """A page of the ring, by what is on it."""

    items: Sequence[Item] = ()
    time: int = 1000
    uncommitted: Sequence[Item] = ()
    """What is behind the commit."""
    read: int = 0
    """How many of the items have been read."""
    commit: int | None = None
    """What the page says, if not what is there."""
    missed: bool = False
    void: bool = False
    """It was given back after it had been read: it says that it is empty."""
    flags: int | None = None
    """Of the link to it, if not as it should be."""


class RingKernel:
    """A program with one ring buffer."""

    CPUS = 2

    def __init__(
        self,
        era: str,
        platform: Platform = LP64,
        *,
        order: int = 0,
        size: int = 1 << 20,
    ) -> None:
        self.era = ERAS[era]
        self.order = order if self.era.order else 0
        self.little = bool(platform.flags & PlatformFlags.IS_LITTLE_ENDIAN)
        self.word = 8 if platform.flags & PlatformFlags.IS_64_BIT else 4
        self.e = "<" if self.little else ">"
        self.base = BASE if self.word == 8 else BASE_32
        self.memory = bytearray(size)
        self.used = 0
        self.prog = Program(platform)
        self.layouts: dict[str, tuple[int, dict[str, tuple[int, str]]]] = {}
        self.types: dict[str, Members] = {
            "list_head": _LIST,
            "local_t": _LOCAL,
            "buffer_page": self.era.page,
            "ring_buffer_per_cpu": self.era.per_cpu,
            "ring_buffer_event": (
                (("type_len", "u32"),) if self.era.packed else (("type", "u32"),)
            ),
            self.era.buffer: (
                ("pages", "u32"),
                ("flags", "u32"),
                ("buffers", "per_cpu **"),
                *((("subbuf_order", "u32"),) if self.era.order else ()),
            ),
        }
        if not self.era.in_page:
            self.types["buffer_data_page"] = _DATA_PAGE
        self.prog.add_memory_segment(self.base, size, self._read)
        self.prog.register_type_finder("ring", self._find_type, enable_index=0)
        self.prog.register_object_finder("ring", self._find_object, enable_index=0)
        self._made: dict[str, Type] = {}
        self.data_at = (
            0 if self.era.in_page else self.layout("buffer_data_page")[1]["data"][0]
        )
        self.capacity = (PAGE << self.order) - self.data_at
        mask = self.allocate(8)
        self.poke(mask, self.long((1 << self.CPUS) - 1, size=8))
        self.mask = mask
        self.buffers = self.allocate(self.word * self.CPUS)
        self.address = self.put(
            self.era.buffer, buffers=self.buffers, subbuf_order=self.order
        )

    # --- types

    def width(self, kind: str) -> int:
        if kind.startswith("bytes"):
            return int(kind[5:])
        if kind in ("list", "local"):
            return self.layout({"list": "list_head", "local": "local_t"}[kind])[0]
        return {"u32": 4, "int": 4, "u64": 8}.get(kind, self.word)

    def layout(self, name: str) -> tuple[int, dict[str, tuple[int, str]]]:
        if name not in self.layouts:
            at, found, largest = 0, {}, 1
            for member, kind in self.types[name]:
                width = self.width(kind)
                align = 1 if kind.startswith("bytes") else min(width, 8)
                if kind == "list":
                    align = self.word
                if kind == "u64" and self.word == 4:
                    align = 8  # As on ARM.
                at = -(-at // align) * align
                found[member] = at, kind
                at += width
                largest = max(largest, align)
            if "data" in found:
                # Nothing behind it, so that 32-bit ones have 12 bytes or 16.
                largest = 1
            self.layouts[name] = -(-at // largest) * largest, found
        return self.layouts[name]

    def _struct(self, name: str) -> Type:
        if name not in self._made:
            size, members = self.layout(name)
            self._made[name] = self.prog.struct_type(
                name,
                size,
                tuple(
                    TypeMember(lambda k=kind: self._kind(k), member, at * 8)
                    for member, (at, kind) in members.items()
                ),
            )
        return self._made[name]

    def _kind(self, kind: str) -> Type:
        prog = self.prog
        order = "little" if self.little else "big"
        pointers = {
            "list *": "list_head",
            "page *": "buffer_page",
            "buffer *": self.era.buffer,
            "per_cpu **": "ring_buffer_per_cpu",
        }
        if kind == "data *":
            return prog.pointer_type(prog.void_type())
        if kind == "per_cpu **":
            return prog.pointer_type(
                prog.pointer_type(self._struct("ring_buffer_per_cpu"))
            )
        if kind in pointers:
            return prog.pointer_type(self._struct(pointers[kind]))
        if kind == "list":
            return self._struct("list_head")
        if kind == "local":
            return self._struct("local_t")
        if kind.startswith("bytes"):
            byte = prog.int_type("unsigned char", 1, False)
            return prog.array_type(byte, int(kind[5:]))
        name, size, signed = {
            "int": ("int", 4, True),
            "u32": ("unsigned int", 4, False),
            "u64": ("unsigned long long", 8, False),
            "long": ("unsigned long", self.word, False),
        }[kind]
        return prog.int_type(name, size, signed, order)

    def _find_type(
        self, prog: Program, kinds: set[TypeKind], name: str, filename: str | None
    ) -> Type | None:
        if TypeKind.STRUCT in kinds and name == "cpumask":
            bits = prog.array_type(prog.type("unsigned long"), 8 // self.word)
            return prog.struct_type("cpumask", 8, (TypeMember(bits, "bits", 0),))
        if TypeKind.STRUCT in kinds and name in self.types:
            return self._struct(name)
        return None

    def _find_object(
        self, prog: Program, name: str, flags: FindObjectFlags, filename: str | None
    ) -> Object | None:
        if name == "PAGE_SIZE":
            return Object(prog, "unsigned long", PAGE)
        if name == "nr_cpu_ids":
            return Object(prog, "unsigned int", self.CPUS)
        if name == "__cpu_possible_mask":
            return Object(prog, "struct cpumask", address=self.mask)
        return None

    # --- memory

    def _read(self, address: int, count: int, offset: int, physical: bool) -> bytes:
        return bytes(self.memory[offset : offset + count])

    def allocate(self, size: int, align: int = 16) -> int:
        self.used = -(-self.used // align) * align
        at = self.used
        self.used += size
        assert self.used <= len(self.memory)
        return self.base + at

    def poke(self, address: int, data: bytes) -> None:
        at = address - self.base
        self.memory[at : at + len(data)] = data

    def long(self, value: int, size: int = 0) -> bytes:
        size = size or self.word
        value &= (1 << 8 * size) - 1
        return value.to_bytes(size, "little" if self.little else "big")

    def put(self, name: str, address: int = 0, /, **values: int) -> int:
        """Write what of these members the struct has."""
        size, members = self.layout(name)
        address = address or self.allocate(size)
        for member, value in values.items():
            if member in members:
                at, kind = members[member]
                self.poke(address + at, self.long(value, self.width(kind)))
        return address

    def member(self, name: str, member: str) -> int:
        return self.layout(name)[1][member][0]

    # --- events

    def _word(self, kind: int, delta: int) -> bytes:
        bits = delta << 5 | kind if self.little else kind << 27 | delta
        return self.long(bits, 4)

    def _old(self, kind: int, length: int, delta: int) -> bytes:
        if self.little:
            return self.long(delta << 5 | length << 2 | kind, 4)
        return self.long(kind << 30 | length << 27 | delta, 4)

    def encode(self, item: Item) -> bytes:
        if self.era.packed:
            return self._new_event(item)
        return self._old_event(item)

    def _new_event(self, item: Item) -> bytes:
        if isinstance(item, Data):
            size = len(item.payload)
            if 0 < size <= 112:
                return self._word(size // 4, item.delta) + item.payload
            return self._word(0, item.delta) + self.long(size + 4, 4) + item.payload
        if isinstance(item, Extend):
            low = item.delta & (1 << 27) - 1
            return self._word(30, low) + self.long(item.delta >> 27, 4)
        if isinstance(item, Stamp):
            low = item.time & (1 << 27) - 1
            return self._word(31, low) + self.long(item.time >> 27 & 0xFFFFFFFF, 4)
        if isinstance(item, Discarded):
            rest = bytes(item.size - 8)
            return self._word(29, item.delta) + self.long(item.size - 4, 4) + rest
        return self._word(29, 0)

    def _old_event(self, item: Item) -> bytes:
        if isinstance(item, Data):
            size = len(item.payload)
            if 0 < size <= 28:
                return self._old(3, size // 4, item.delta) + item.payload
            return self._old(3, 0, item.delta) + self.long(size + 4, 4) + item.payload
        if isinstance(item, Extend):
            low = item.delta & (1 << 27) - 1
            return self._old(1, 2, low) + self.long(item.delta >> 27, 4)
        if isinstance(item, Discarded):
            rest = bytes(item.size - 8)
            return self._old(0, 0, item.delta) + self.long(item.size - 4, 4) + rest
        assert isinstance(item, Padding)
        return self._old(0, 0, 0)

    # --- the ring

    def page(self, of: PageOf) -> int:
        """A page; the address of its struct buffer_page."""
        encoded = [self.encode(item) for item in of.items]
        content = b"".join(encoded)
        tail = b"".join(map(self.encode, of.uncommitted))
        commit = len(content) if of.commit is None else of.commit
        write = commit + len(tail)
        if of.void:
            commit = write = 0
        said = commit | (1 << 31 if of.missed else 0)
        data = self.allocate(PAGE << self.order, PAGE)
        if not self.era.in_page:
            self.poke(data, struct.pack(self.e + "Q", of.time))
            self.poke(data + 8, self.long(said))
        self.poke(data + self.data_at, (content + tail)[: self.capacity])
        return self.put(
            "buffer_page",
            page=data,
            # Counts updaters above.
            write=write if self.era.headed else write | 3 << 20,
            read=sum(map(len, encoded[: of.read])),
            time_stamp=of.time,
            commit=commit,
            entries=len(of.items),
        )

    def cpu(
        self,
        cpu: int,
        reader: PageOf,
        pages: Sequence[PageOf],
        *,
        commit: int = -1,
        tail: int | None = None,
        start: int = 0,
        swapped: bool = False,
        entries: int = 0,
        overrun: int = 0,
        read: int = 0,
        committing: int = 0,
    ) -> list[int]:
        """
        Make a CPU's buffer.

        :param pages: of the ring, the head first.
        :param commit: which of them is committed to; -1: the reader's.
        :param tail: which is written to, if another.
        :param start: which of them "pages" is.
        :param swapped: a reader is between putting its page in and taking one out:
            the first of *pages* is out already, and not yet the reader's.
        :return: addresses, the reader's first.
        """
        addresses = [self.page(reader), *map(self.page, pages)]
        link = self.member("buffer_page", "list")
        name = "ring_buffer_per_cpu"
        ring = [1, *range(2, len(addresses))] if not swapped else [0]
        if swapped:
            ring += list(range(2, len(addresses)))
        tail = commit if tail is None else tail
        address = self.put(
            name,
            cpu=cpu,
            buffer=self.address,
            nr_pages=len(pages),
            reader_page=addresses[0],
            commit_page=addresses[commit + 1],
            tail_page=addresses[tail + 1],
            head_page=addresses[1],
            entries=entries,
            overrun=overrun,
            read=read,
            committing=committing,
        )
        self.put(self.era.buffer, self.address, pages=len(pages))
        nodes = [addresses[i] + link for i in ring]
        if self.era.headed:
            nodes.insert(0, address + self.member(name, "pages"))
        else:
            self.put(name, address, pages=nodes[start % len(nodes)])
        for i, node in enumerate(nodes):
            after = (i + 1) % len(nodes)
            flag = 0
            if not self.era.headed:
                # After a swap the head is what follows the reader's page.
                flag = int(after == (1 if swapped else 0))
                said = ([reader, *pages][ring[after]]).flags
                flag = flag if said is None else said
            self.put("list_head", node, next=nodes[after] | flag)
            self.put("list_head", nodes[after], prev=node)
        outside = addresses[1 if swapped else 0] + link
        self.put("list_head", outside, next=nodes[0])
        self.poke(self.buffers + cpu * self.word, self.long(address))
        return addresses

    @property
    def buffer(self) -> Object:
        """``struct trace_buffer *``"""
        type_ = self.prog.pointer_type(self._struct(self.era.buffer))
        return Object(self.prog, type_, self.address)
