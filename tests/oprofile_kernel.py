# SPDX-License-Identifier: LGPL-2.1-or-later
"""Kernels that have oprofile, as drgn programs: types and buffers as they were then."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Callable, NamedTuple

from drgn import Type, TypeMember

from tests.pstore_kernel import FakeKernel, Members

ESCAPE = (1 << 64) - 1

_CPU_BUFFER_OLD: Members = (
    ("head_pos", "long"),
    ("tail_pos", "long"),
    ("buffer_size", "long"),
    ("last_task", "pointer"),
    ("last_is_kernel", "int"),
    ("tracing", "int"),
    ("buffer", "pointer struct op_sample"),
    ("sample_received", "long"),
    ("sample_lost_overflow", "long"),
    ("backtrace_aborted", "long"),
    ("cpu", "int"),
)
_CPU_BUFFER: Members = (
    ("buffer_size", "long"),
    ("last_task", "pointer"),
    ("last_is_kernel", "int"),
    ("tracing", "int"),
    ("sample_received", "long"),
    ("sample_lost_overflow", "long"),
    ("backtrace_aborted", "long"),
    ("sample_invalid_eip", "long"),
    ("cpu", "int"),
)
_SAMPLE_OLD: Members = (("eip", "long"), ("event", "long"))
_SAMPLE: Members = (*_SAMPLE_OLD, ("data", "longs0"))

_LIST: Members = (("next", "pointer"), ("prev", "pointer"))
_DATA_PAGE: Members = (("time_stamp", "u64"), ("commit", "long"), ("data", "bytes0"))


def _ring(*, head: bool, entries: bool, packed: bool) -> dict[str, Members]:
    # Of the generic ring buffer: whether its list of pages has a head.
    pages = "struct list_head" if head else "pointer struct list_head"
    link: Members = (("list", "struct list_head"),)
    counters: Members = (("write", "long"), ("read", "u32"))
    if entries:
        counters = (*counters, ("entries", "long"))
    page: Members = (*counters, *link) if head else (*link, *counters)
    bits: Members = (("type_len", "u32"),) if packed else (("type", "u32"),)
    return {
        "struct list_head": _LIST,
        "struct buffer_data_page": _DATA_PAGE,
        "struct buffer_page": (*page, ("page", "pointer")),
        "struct ring_buffer_event": (*bits, ("array", "longs0")),
        "struct ring_buffer": (
            ("pages", "u32"),
            ("flags", "u32"),
            ("cpus", "int"),
            ("buffers", "pointer pointer struct ring_buffer_per_cpu"),
        ),
        "struct ring_buffer_per_cpu": (
            ("cpu", "int"),
            ("buffer", "pointer struct ring_buffer"),
            ("pages", pages),
            ("head_page", "pointer"),
            ("tail_page", "pointer"),
            ("commit_page", "pointer"),
            ("reader_page", "pointer"),
            ("entries", "long"),
            ("overrun", "long"),
            ("read", "long"),
        ),
    }


_COMMON: dict[str, Members] = {
    "struct cpumask": (("bits", "longs1"),),
    "struct qstr": (("name", "pointer char"),),
    "struct dentry": (("d_parent", "pointer struct dentry"), ("d_name", "struct qstr")),
    "struct vfsmount": (("mnt_root", "pointer struct dentry"),),
    "struct mount": (
        ("mnt_parent", "pointer struct mount"),
        ("mnt_mountpoint", "pointer struct dentry"),
        ("mnt", "struct vfsmount"),
    ),
    "struct path": (
        ("mnt", "pointer struct vfsmount"),
        ("dentry", "pointer struct dentry"),
    ),
    "struct file": (("f_path", "struct path"),),
    "struct mm_context": (("vdso", "pointer"),),
    "struct vm_area_struct": (
        ("vm_start", "long"),
        ("vm_end", "long"),
        ("vm_next", "pointer struct vm_area_struct"),
        ("vm_pgoff", "long"),
        ("vm_file", "pointer struct file"),
    ),
    "struct mm_struct": (
        ("mmap", "pointer struct vm_area_struct"),
        ("start_brk", "long"),
        ("brk", "long"),
        ("start_stack", "long"),
        ("exe_file", "pointer struct file"),
        ("context", "struct mm_context"),
    ),
    "struct task_struct": (
        ("flags", "u32"),
        ("pid", "int"),
        ("tgid", "int"),
        ("mm", "pointer struct mm_struct"),
        ("comm", "chars16"),
    ),
    "struct list_head": _LIST,
    "struct dcookie_struct": (
        ("path", "struct path"),
        ("hash_list", "struct list_head"),
    ),
    "struct oprofile_stat_struct": (
        ("sample_lost_no_mm", "int"),
        ("sample_lost_no_mapping", "int"),
        ("event_lost_overflow", "int"),
    ),
}


class Era(NamedTuple):
    """How oprofile was then."""

    types: dict[str, Members]
    rings: tuple[str, ...]
    """Variables of ring buffers; none before 2.6.29."""
    data: bool
    """Records have data[]."""
    packed: bool = True
    """Events' headers have type_len."""
    head: bool = False
    """The list of pages has a head."""
    variable: str = "op_cpu_buffer"


_TWO = ("op_ring_buffer_read", "op_ring_buffer_write")


def _era(
    rings: tuple[str, ...],
    *,
    data: bool,
    packed: bool = True,
    head: bool = False,
    variable: str = "op_cpu_buffer",
) -> Era:
    types = {
        **_COMMON,
        "struct op_sample": _SAMPLE if data else _SAMPLE_OLD,
        "struct oprofile_cpu_buffer": _CPU_BUFFER if data else _CPU_BUFFER_OLD,
    }
    if rings:
        types |= _ring(head=head, entries=not head, packed=packed)
    return Era(types, rings, data, packed, head, variable)


ERAS = {
    "2.6.28": _era((), data=False, variable="cpu_buffer"),
    "2.6.29-rc": _era(_TWO, data=False, packed=False, head=True, variable="cpu_buffer"),
    "2.6.30": _era(_TWO, data=True, packed=False, head=True, variable="cpu_buffer"),
    "2.6.31": _era(_TWO, data=True, head=True, variable="cpu_buffer"),
    "2.6.33": _era(_TWO, data=True),
    "5.10": _era(("op_ring_buffer",), data=True),
}

RINGS = [name for name, era in ERAS.items() if era.rings]


def words(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *(value & ESCAPE for value in values))


class OprofileKernel(FakeKernel):
    """A kernel with oprofile's variables; 4 CPUs are possible."""

    CPUS = 4
    PAGE = 4096

    def __init__(self, era: str = "5.10", *, xen: bool = False) -> None:
        super().__init__("5.10")
        self.era = ERAS[era]
        self.types = dict(self.era.types)
        self.made: dict[str, Type] = {}
        if xen:
            name = "struct oprofile_cpu_buffer"
            self.types[name] = tuple(
                ("last_cpu_mode" if member == "last_is_kernel" else member, kind)
                for member, kind in self.types[name]
            )
        self.variable("PAGE_SIZE", "long", "", self.PAGE)
        mask = self.variable("__cpu_possible_mask", "struct cpumask", "cpu.c")
        self.poke(mask, words((1 << self.CPUS) - 1))
        self.variable("nr_cpu_ids", "u32", "cpu.c", self.CPUS)
        self.area = 0x400
        first = self.allocate(self.area * self.CPUS)
        offsets = [self.area * cpu for cpu in range(self.CPUS)]
        table = self.variable("__per_cpu_offset", f"longs{self.CPUS}", "setup.c")
        self.poke(table, words(*offsets))
        kind = "struct oprofile_cpu_buffer"
        self.variables[self.era.variable] = kind, first, "oprofile/cpu_buffer.c"
        self.first = first
        for name in self.era.rings:
            self.variable(name, "pointer struct ring_buffer", "oprofile/cpu_buffer.c")

    # Types that other kernels here do without.

    def _width(self, kind: str) -> tuple[int, int]:
        if kind.startswith("longs"):
            return 8 * int(kind[5:]), 8
        if kind.startswith("chars"):
            return int(kind[5:]), 1
        return super()._width(kind)

    def _type(self, kind: str) -> Type:
        prog = self.prog
        if kind.startswith("longs"):
            return prog.array_type(super()._type("long"), int(kind[5:]))
        if kind.startswith("chars"):
            return prog.array_type(prog.int_type("char", 1, True), int(kind[5:]))
        if kind == "char":
            return prog.int_type("char", 1, True)
        if kind.startswith("struct "):
            return self._struct(kind)
        return super()._type(kind)

    def _struct(self, kind: str) -> Type:
        if kind not in self.made:
            self.made[kind] = self._make_struct(kind)
        return self.made[kind]

    def _make_struct(self, kind: str) -> Type:
        size, members, _ = self.layout(kind)

        def later(sub: str) -> Callable[[], Type]:
            return lambda: self._type(sub)

        # Of types that point to themselves, what they point to waits.
        return self.prog.struct_type(
            kind.split()[1],
            size,
            tuple(
                TypeMember(
                    later(sub) if sub.startswith("pointer ") else self._type(sub),
                    member,
                    offset * 8,
                )
                for member, (offset, sub) in members.items()
            ),
        )

    # The CPUs' buffers.

    def cpu(self, cpu: int, **values: int) -> None:
        """Say something of a CPU's struct oprofile_cpu_buffer."""
        kind = "struct oprofile_cpu_buffer"
        self.put(kind, self.first + self.area * cpu, cpu=cpu, **values)

    def array(
        self, cpu: int, records: Sequence[bytes], *, head: int, tail: int
    ) -> None:
        """The plain array of a kernel without ring buffers."""
        data = b"".join(records)
        self.cpu(
            cpu,
            buffer=self.allocate(0, data),
            buffer_size=len(records),
            head_pos=head,
            tail_pos=tail,
        )

    def event(self, data: bytes, delta: int = 1) -> bytes:
        """An event of the ring buffer."""
        count = len(data) // 4
        if self.era.packed:
            if len(data) <= 112:
                return struct.pack("<I", delta << 5 | count) + data
            return struct.pack("<II", delta << 5, len(data) + 4) + data
        if count <= 7:
            return struct.pack("<I", delta << 5 | count << 2 | 3) + data
        return struct.pack("<II", delta << 5 | 3, len(data) + 4) + data

    def buffer_page(
        self, events: Sequence[bytes], time: int = 1000, *, read: int = 0, **more: int
    ) -> int:
        """
        A page of the ring buffer with events.

        :param read: How many of them have been read.
        :return: Address of its struct buffer_page.
        """
        encoded = [self.event(data) for data in events]
        content = b"".join(encoded)
        commit = more.get("commit", len(content))
        # Pages are where pages are.
        self.used = -(-self.used // self.PAGE) * self.PAGE
        page = self.allocate(self.PAGE, words(time, commit) + content)
        return self.put(
            "struct buffer_page",
            page=page,
            write=more.get("write", commit),
            read=sum(map(len, encoded[:read])),
            entries=len(events),
        )

    def cpu_ring(
        self, cpu: int, reader: int, pages: Sequence[int], used: int, unread: int
    ) -> int:
        """
        A CPU's part of a ring buffer.

        :param pages: The head first, of which *used* have events.
        :param unread: What its counters say.
        """
        name = "struct ring_buffer_per_cpu"
        link = self.member("struct buffer_page", "list")
        commit = pages[used - 1] if used else reader
        address = self.put(
            name,
            cpu=cpu,
            head_page=pages[0],
            tail_page=commit,
            commit_page=commit,
            reader_page=reader,
            entries=unread + 7,
            read=7,
        )
        nodes = [page + link for page in pages]
        if self.era.head:
            nodes.insert(0, address + self.member(name, "pages"))
        else:
            # Any of them will do.
            self.put(name, address, pages=nodes[len(nodes) // 2])
        for node, after in zip(nodes, [*nodes[1:], nodes[0]]):
            # The link to the head has a flag.
            flag = 0 if self.era.head else after == pages[0] + link
            self.put("struct list_head", node, next=after | flag)
        self.put("struct list_head", reader + link, next=nodes[0])
        return address

    def ring_buffer(self, name: str, parts: dict[int, int], nr_pages: int) -> None:
        """A ring buffer of such parts, by CPU."""
        address = self.put(
            "struct ring_buffer",
            pages=nr_pages,
            cpus=len(parts),
            buffers=self.pointers([parts.get(cpu, 0) for cpu in range(self.CPUS)]),
        )
        for part in parts.values():
            self.put("struct ring_buffer_per_cpu", part, buffer=address)
        _, variable, _ = self.variables[name]
        self.poke(variable, words(address))

    def fill(
        self,
        name: str,
        streams: dict[int, Sequence[bytes]],
        *,
        read: int = 0,
        wrap: int = 0,
        time: int = 1000,
    ) -> None:
        """
        A ring buffer with records: a few on the reader's page, the rest behind.

        :param read: How many more have been read, in front.
        :param wrap: Which page of the ring is the head.
        """
        parts = {}
        for cpu, records in streams.items():
            gone = [words(0xDEAD00 + i, 0) for i in range(read)]
            pieces = [[*gone, *records[:3]], *_cut(records[3:], 100)]
            used = [
                self.buffer_page(piece, time + 10000 * i, read=read if not i else 0)
                for i, piece in enumerate(pieces)
            ]
            free = [self.buffer_page([]) for _ in range(2)]
            pages = [*used[1:], *free]
            parts[cpu] = self.cpu_ring(cpu, used[0], pages, len(used) - 1, len(records))
            if wrap and not self.era.head:
                link = self.member("struct buffer_page", "list")
                some = pages[wrap % len(pages)] + link
                self.put("struct ring_buffer_per_cpu", parts[cpu], pages=some)
        self.ring_buffer(name, parts, 8)

    # The event buffer.

    def event_buffer(
        self, content: Sequence[int], size: int = 64, rest: Sequence[int] = ()
    ) -> None:
        where = "oprofile/event_buffer.c"
        data = words(*content, *rest)
        address = self.allocate(size * 8, data)
        self.variable("event_buffer", "long", where, address)
        self.variable("buffer_size", "long", where, size)
        self.variable("buffer_pos", "long", where, len(content))

    def cookies(self, paths: Sequence[str], buckets: int = 4) -> list[int]:
        """A table of dcookies; returns the cookies."""
        table = self.allocate(buckets * 16)
        found = []
        chains: dict[int, list[int]] = {bucket: [] for bucket in range(buckets)}
        for number, path in enumerate(paths):
            at = self.path(path)
            cookie = self.put("struct dcookie_struct")
            self.copy_path(cookie, at)
            found.append(at[1])
            chains[number % buckets].append(
                cookie + self.member("struct dcookie_struct", "hash_list")
            )
        for bucket, chain in chains.items():
            nodes = [table + 16 * bucket, *chain]
            for node, after in zip(nodes, [*nodes[1:], nodes[0]]):
                self.put("struct list_head", node, next=after)
        self.variable(
            "dcookie_hashtable", "pointer struct list_head", "fs/dcookies.c", table
        )
        self.variable("hash_size", "long", "fs/dcookies.c", buckets)
        return found

    # Tasks and what they have mapped.

    def path(self, path: str) -> tuple[int, int]:
        """Mount and dentry of a path in the only file system."""
        if not hasattr(self, "mount"):
            root = self.put("struct dentry", d_parent=0)
            self.put("struct dentry", root, d_parent=root)
            self.name(root, "/")
            mount = self.put("struct mount", mnt_mountpoint=root)
            self.put("struct mount", mount, mnt_parent=mount)
            self.mount = mount + self.member("struct mount", "mnt")
            self.put("struct vfsmount", self.mount, mnt_root=root)
            self.dentries = {"": root}
        at = ""
        for part in path.strip("/").split("/"):
            parent, at = at, f"{at}/{part}"
            if at not in self.dentries:
                dentry = self.put("struct dentry", d_parent=self.dentries[parent])
                self.name(dentry, part)
                self.dentries[at] = dentry
        return self.mount, self.dentries[at]

    def name(self, dentry: int, text: str) -> None:
        at = dentry + self.member("struct dentry", "d_name")
        self.put("struct qstr", at, name=self.string(text))

    def copy_path(self, address: int, path: tuple[int, int]) -> None:
        self.put("struct path", address, mnt=path[0], dentry=path[1])

    def file(self, path: str) -> int:
        file = self.put("struct file")
        self.copy_path(file, self.path(path))
        return file

    def mm(self, areas: Sequence[tuple[int, int, int, str]], **values: int) -> int:
        """Memory: start, end, page offset and path of what is mapped."""
        first = after = 0
        for start, end, offset, path in reversed(areas):
            first = after = self.put(
                "struct vm_area_struct",
                vm_start=start,
                vm_end=end,
                vm_pgoff=offset,
                vm_file=self.file(path) if path else 0,
                vm_next=after,
            )
        mm = self.put("struct mm_struct", mmap=first, **values)
        if vdso := values.get("vdso"):
            context = mm + self.member("struct mm_struct", "context")
            self.put("struct mm_context", context, vdso=vdso)
        return mm

    def task(self, pid: int, comm: str, mm: int = 0, *, exiting: bool = False) -> int:
        task = self.put(
            "struct task_struct", pid=pid, tgid=pid, mm=mm, flags=4 if exiting else 0
        )
        self.poke(task + self.member("struct task_struct", "comm"), comm.encode())
        return task


def _cut(records: Sequence[bytes], size: int) -> list[Sequence[bytes]]:
    return [records[i : i + size] for i in range(0, len(records), size)]
