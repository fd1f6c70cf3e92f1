# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Kernels with tables of events and of symbols
--------------------------------------------

As drgn programs, as small as they can be: what there is of each kind, once or twice.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from drgn import (
    FindObjectFlags,
    Object,
    Program,
    Type,
    TypeEnumerator,
    TypeKind,
    TypeMember,
)

from tests.pstore_kernel import KERNEL, LP64, FakeKernel
from tests.ring_kernel import Data, PageOf, RingKernel

# --- events -----------------------------------------------------------------------

Fields = Sequence[tuple[str, str, int, int]]
_COMMON: Fields = (
    ("common_type", "unsigned short", 0, 2),
    ("common_flags", "unsigned char", 2, 1),
    ("common_preempt_count", "unsigned char", 3, 1),
    ("common_pid", "int", 4, 4),
)
_IP = ("ip", "unsigned long", 8, 8)
_GRAPH: Fields = (("func", "unsigned long", 8, 8), ("depth", "unsigned int", 16, 4))
_SWITCH = (
    '"%s:%d %s ==> %s", REC->comm, REC->pid, __print_flags(REC->state, "|", '
    '{ 1, "S" }, { 2, "D" }), __get_str(text)'
)
# What registered it, type, system, name, print format and fields.
_EVENTS: Sequence[tuple[str, int, str, str, str, Fields]] = (
    ("", 1, "ftrace", "function", "", (_IP, ("parent_ip", "unsigned long", 16, 8))),
    ("", 2, "ftrace", "funcgraph_entry", "", _GRAPH),
    (
        *("", 3, "ftrace", "funcgraph_exit", ""),
        (*_GRAPH, ("calltime", "u64", 24, 8), ("rettime", "u64", 32, 8)),
    ),
    ("", 5, "ftrace", "print", "", (_IP, ("buf", "char[]", 16, 0))),
    (
        *("", 6, "ftrace", "bprint", ""),
        (_IP, ("fmt", "const char *", 16, 8), ("buf", "u32[]", 24, 0)),
    ),
    ("", 4, "ftrace", "kernel_stack", "", (("caller", "unsigned long[8]", 16, 64),)),
    (
        *("tp", 9, "sched", "sched_switch", _SWITCH),
        (
            ("comm", "char[16]", 8, 16),
            ("pid", "pid_t", 24, 4),
            ("text", "__data_loc char[]", 28, 4),
            ("state", "long", 32, 8),
        ),
    ),
    (
        *("enter_syscall_print_funcs", 7, "syscalls", "sys_enter_read"),
        *('"fd: 0x%08lx", REC->fd', (("fd", "unsigned int", 16, 8),)),
    ),
    (
        *("exit_syscall_print_funcs", 8, "syscalls", "sys_exit_read"),
        *('"0x%lx", REC->ret', (("ret", "long", 16, 8),)),
    ),
    (
        *("kprobe_funcs", 10, "kprobes", "probe"),
        '"(%lx) a=%d", REC->__probe_ip, REC->a',
        (("__probe_ip", "unsigned long", 8, 8), ("a", "s32", 16, 4)),
    ),
)
_GRAPHED, _PLAIN = (2, 3, 4, 6, 7, 8, 9), (1, 5, 9, 10, 99)
_OPTIONS = ("PRINT_PARENT", "ANNOTATE", "CONTEXT_INFO", "IRQ_INFO", "RECORD_TGID")
_TYPES: dict[str, tuple[tuple[str, str], ...]] = {
    "trace_event": (("funcs", "long"), ("type", "int")),
    "tracepoint": (("name", "long"),),
    "trace_event_class": (("system", "long"), ("fields", "list")),
    "trace_event_call": (
        ("list", "list"),
        ("class", "trace_event_class *"),
        ("name", "long"),
        ("tp", "tracepoint *"),
        ("event", "struct trace_event"),
        ("print_fmt", "long"),
        ("data", "long"),
        ("flags", "int"),
    ),
    "ftrace_event_field": (
        ("link", "list"),
        ("name", "long"),
        ("type", "long"),
        ("offset", "int"),
        ("size", "int"),
        ("is_signed", "u32"),
        ("len", "int"),
    ),
    "syscall_metadata": (
        ("name", "long"),
        ("nb_args", "int"),
        ("args", "long *"),
        ("enter_fields", "list"),
    ),
    "syscall_trace_enter": (("nr", "u64"), ("ent", "u64"), ("args", "bytes0")),
    "tracer": (("name", "long"),),
    "array_buffer": (("buffer", "trace_buffer *"), ("time_start", "u64")),
    "trace_array": (
        ("list", "list"),
        ("name", "long"),
        ("array_buffer", "struct array_buffer"),
        ("trace_flags", "long"),
        ("clock_id", "int"),
        ("current_trace", "tracer *"),
        ("text_delta", "long"),
    ),
    "trace_clock": (("name", "long"), ("in_ns", "int")),
    "saved_cmdlines_buffer": (
        ("map_pid_to_cmdline", "array 33 u32"),
        ("map_cmdline_to_pid", "u32 *"),
        ("cmdline_num", "u32"),
        ("saved_cmdlines", "u32 *"),
    ),
}


class EventsKernel(RingKernel):
    """
    A trace with events and names of tasks; with *tracer* "nop" an instance that has it
    too, with "function_graph" other events.
    """

    CPUS = 1

    def __init__(self, tracer: str) -> None:
        super().__init__("7.2", size=1 << 15)
        self.types.update(_TYPES)
        self.variables: dict[str, tuple[str, int]] = {}
        heads = ("ftrace_events", "ftrace_common_fields", "ftrace_trace_arrays")
        for name in heads:
            self.variables[name] = "list", self.head()
        for name in {kind for kind, *_ in _EVENTS if kind.endswith("_funcs")}:
            self.variables[name] = "u64", self.allocate(8)
        self._fields(self.variables["ftrace_common_fields"][1], _COMMON)
        types = _GRAPHED if tracer == "function_graph" else _PLAIN
        for event in _EVENTS:
            if event[1] in types:
                self._event(*event)
        self._trace(tracer)
        self._tasks()

    # Types

    def width(self, kind: str) -> int:
        if kind.startswith("struct "):
            return self.layout(kind[7:])[0]
        if kind.startswith("array "):
            _, count, of = kind.split()
            return int(count) * self.width(of)
        return super().width(kind)

    def _kind(self, kind: str) -> Type:
        prog = self.prog
        if kind.startswith("struct "):
            return self._struct(kind[7:])
        if kind.startswith("array "):
            _, count, of = kind.split()
            return prog.array_type(self._kind(of), int(count))
        name, _, star = kind.partition(" ")
        if star == "*" and name in ("u32", "long"):
            return prog.pointer_type(self._kind(name))
        if star == "*" and name in self.types:
            return prog.pointer_type(self._struct(name))
        return super()._kind(kind)

    def _find_type(
        self, prog: Program, kinds: set[TypeKind], name: str, filename: str | None
    ) -> Type | None:
        if TypeKind.ENUM in kinds and name == "trace_iterator_bits":
            if name not in self._made:
                self._made[name] = prog.enum_type(
                    name,
                    prog.int_type("unsigned int", 4, False),
                    tuple(
                        TypeEnumerator(f"TRACE_ITER_{option}_BIT", bit)
                        for bit, option in enumerate(_OPTIONS)
                    ),
                )
            return self._made[name]
        return super()._find_type(prog, kinds, name, filename)

    def _find_object(
        self, prog: Program, name: str, flags: FindObjectFlags, filename: str | None
    ) -> Object | None:
        if name == "TRACE_EVENT_FL_TRACEPOINT":
            return Object(prog, "int", 0x10)
        if name in self.variables:
            kind, address = self.variables[name]
            return Object(prog, self._kind(kind), address=address)
        return super()._find_object(prog, name, flags, filename)

    # Memory

    def string(self, text: str) -> int:
        data = text.encode() + b"\0"
        address = self.allocate(len(data), 1)
        self.poke(address, data)
        return address

    def head(self, node: int = 0) -> int:
        """An empty list."""
        node = node or self.allocate(2 * self.word)
        self.put("list_head", node, next=node, prev=node)
        return node

    def add(self, head: int, node: int) -> None:
        """To the end of a list, which only has to be walked from its front."""
        at = head
        while True:
            raw = self.memory[at - self.base :][: self.word]
            follows = int.from_bytes(raw, "little")
            if follows == head:
                break
            at = follows
        self.put("list_head", node, next=head, prev=at)
        self.put("list_head", at, next=node)

    def _fields(self, head: int, fields: Fields) -> None:
        # The kernel has the last one first.
        for name, type_, offset, size in reversed(fields):
            field = self.put(
                "ftrace_event_field",
                name=self.string(name),
                type=self.string(type_),
                offset=offset,
                size=size,
                is_signed="unsigned" not in type_,
                len=size if "[" in type_ else 0,
            )
            self.add(head, field)

    def _event(
        self,
        kind: str,
        type_: int,
        system: str,
        name: str,
        print_fmt: str,
        fields: Fields,
    ) -> None:
        class_ = self.put("trace_event_class", system=self.string(system))
        head = self.head(class_ + self.member("trace_event_class", "fields"))
        data = 0
        if system == "syscalls":
            args = self.allocate(8)
            self.poke(args, self.long(self.string("fd")))
            data = self.put(
                "syscall_metadata",
                name=self.string("sys_read"),
                nb_args=1,
                args=args,
            )
            entered = self.head(data + self.member("syscall_metadata", "enter_fields"))
            head = entered if "enter" in name else head
        self._fields(head, fields)
        label = self.string(name)
        call = self.put(
            "trace_event_call",
            **{"class": class_},
            name=label,
            tp=self.put("tracepoint", name=label) if kind == "tp" else 0,
            print_fmt=self.string(print_fmt) if print_fmt else 0,
            data=data,
            flags=0x10 if kind == "tp" else 0,
        )
        _, functions = self.variables.get(kind, ("", 0))
        event = call + self.member("trace_event_call", "event")
        self.put("trace_event", event, type=type_, funcs=functions)
        self.add(self.variables["ftrace_events"][1], call)

    def _trace(self, tracer: str) -> None:
        head = ">HBBi" if not self.little else "<HBBi"
        text = self.string("%d of %s\n")
        bodies = {
            1: (KERNEL, KERNEL + 64),
            2: (KERNEL, 1),
            3: (KERNEL, 1, 1000, 2500),
            4: (3, KERNEL, KERNEL + 9, (1 << 64) - 1),
            5: (KERNEL, int.from_bytes(b"hello\n\0\0", "little")),
            6: (KERNEL, text, int.from_bytes(b"\7\0\0\0all\0", "little")),
            7: (0, 0, 3),
            8: (0, 1 << 63),
            9: (0x796C7562, 0, 0x80028 << 32 | 42, 3, 0x74786574),
            10: (KERNEL, 5),
            99: (1,),
        }
        records = []
        types = _GRAPHED if tracer == "function_graph" else _PLAIN
        for type_, body in bodies.items():
            if type_ not in types:
                continue
            entry = struct.pack(head, type_, type_ & 0x1F, type_ & 1, 40 + type_ % 3)
            records.append(Data(entry + struct.pack(f"<{len(body)}Q", *body), 700))
        self.cpu(
            0, PageOf(), [PageOf(records, time=5000)], commit=0, entries=len(records)
        )
        clocks = self.put("trace_clock", name=self.string("local"), in_ns=1)
        self.variables["trace_clocks"] = "array 1 struct trace_clock", clocks
        for name in ("", "other") if tracer == "nop" else ("",):
            array = self.put(
                "trace_array",
                name=self.string(name) if name else 0,
                trace_flags=0b11101,
                current_trace=self.put("tracer", name=self.string(tracer)),
            )
            at = array + self.member("trace_array", "array_buffer")
            self.put("array_buffer", at, buffer=self.address)
            self.add(self.variables["ftrace_trace_arrays"][1], array)
            if not name:
                self.variables["global_trace"] = "struct trace_array", array

    def _tasks(self) -> None:
        back, names = self.allocate(16), self.allocate(64)
        for slot in range(4):
            self.poke(back + 4 * slot, self.long(40 + slot, 4))
            self.poke(names + 16 * slot, b"task %d" % slot)
        saved = self.put(
            "saved_cmdlines_buffer",
            map_cmdline_to_pid=back,
            cmdline_num=4,
            saved_cmdlines=names,
        )
        for slot in range(4):
            self.poke(saved + 4 * ((40 + slot) % 32), self.long(slot, 4))
        pointer = self.allocate(8)
        self.poke(pointer, self.long(saved))
        self.variables["savedcmd"] = "saved_cmdlines_buffer *", pointer


# --- symbols ----------------------------------------------------------------------

_NAMES = ("_text", "_stext", "start_kernel", "vfs_read", "vfs_write", "_etext", "_end")
_MODULE = "struct module"


class SymbolsKernel(FakeKernel):
    """
    kallsyms as VMCOREINFO leads to it, and two modules with symbols of their own.

    :param absolute: addresses as they are, as before 4.6; offsets since.
    """

    def __init__(self, *, absolute: bool) -> None:
        super().__init__("7.2")
        self._list: Type | None = None
        self.memory = bytearray(1 << 13)
        self.types = {
            "struct list_head": (("next", "pointer"), ("prev", "pointer")),
            "struct elf64_sym": (
                ("st_name", "u32"),
                ("st_info", "u8"),
                ("st_other", "bytes3"),
                ("st_value", "u64"),
                ("st_size", "u64"),
            ),
            "struct mod_kallsyms": (
                ("symtab", "pointer struct elf64_sym"),
                ("num_symtab", "u32"),
                ("strtab", "pointer char"),
                *((("typetab", "pointer"),) if not absolute else ()),
            ),
            "struct module_layout": (("base", "pointer"), ("size", "u32")),
            _MODULE: (
                ("list", "struct list_head"),
                ("name", "bytes16"),
                ("core_layout", "struct module_layout"),
                ("init_layout", "struct module_layout"),
                ("kallsyms", "pointer struct mod_kallsyms"),
            ),
        }
        self.prog = Program(LP64)
        self.prog.set_linux_kernel_custom(self._vmcoreinfo(absolute), False)
        self.prog.add_memory_segment(self.base, len(self.memory), self._read)
        self.prog.register_type_finder("fake", self._find_type, enable_index=0)
        self.prog.register_object_finder("fake", self._find_object, enable_index=0)
        self._modules()

    def _vmcoreinfo(self, absolute: bool) -> str:
        tokens = [bytes([code]) if 32 < code < 127 else b"" for code in range(256)]
        tokens[1], tokens[2] = b"vfs_", b"Tstart_"
        names = b""
        for name in _NAMES:
            spelt = b"T" + name.encode()
            spelt = spelt.replace(b"Tstart_", b"\2").replace(b"vfs_", b"\1")
            names += bytes([len(spelt)]) + spelt
        starts = [0]
        for token in tokens:
            starts.append(starts[-1] + len(token) + 1)
        count, text = len(_NAMES), KERNEL + 0x1000
        addresses = [text + 64 * number for number in range(count)]
        offsets = [address - text for address in addresses]
        tables = {
            "kallsyms_names": names,
            "kallsyms_num_syms": struct.pack("<I", count),
            "kallsyms_token_table": b"\0".join(tokens) + b"\0",
            "kallsyms_token_index": struct.pack("<256H", *starts[:256]),
        }
        if absolute:
            tables["kallsyms_addresses"] = struct.pack(f"<{count}Q", *addresses)
        else:
            tables["kallsyms_offsets"] = struct.pack(f"<{count}I", *offsets)
            tables["kallsyms_relative_base"] = struct.pack("<Q", text)
        lines = [
            *("OSRELEASE=6.12.0", "PAGESIZE=4096", "KERNELOFFSET=0"),
            *("NUMBER(phys_base)=0", "SYMBOL(swapper_pg_dir)=ffffffff82a10000"),
            f"SYMBOL(_stext)={addresses[1]:x}",
        ]
        for name, data in tables.items():
            lines.append(f"SYMBOL({name})={self.allocate(0, data):x}")
        return "\n".join(lines) + "\n"

    def _modules(self) -> None:
        head = self.allocate(16)
        self.variables["modules"] = "struct list_head", head, "kernel/module/main.c"
        #: The list's head and the modules, and the latter's tables.
        self.nodes: list[int] = [head]
        self.tables: list[int] = []
        for number in range(2):
            base = 0xFFFFFFFFC0000000 + 0x4000 * number
            symbols = b"".join(
                struct.pack("<IBBHQQ", 1 + 6 * i, 0x12, 0, 1, base + 32 * i, 32)
                for i in range(4)
            )
            names = b"\0" + b"".join(b"func%d\0" % i for i in range(4))
            kallsyms = self.put(
                "struct mod_kallsyms",
                symtab=self.allocate(0, symbols),
                num_symtab=4,
                strtab=self.allocate(0, names),
                typetab=self.allocate(0, b"tttt"),
            )
            module = self.put(_MODULE, kallsyms=kallsyms)
            at = {name: module + of for name, (of, _) in self._members().items()}
            self.poke(at["name"], b"module%d" % number)
            self.put("struct module_layout", at["core_layout"], base=base, size=0x1000)
            self.nodes.append(module)
            self.tables.append(kallsyms)
        for node, follows in zip(self.nodes, [*self.nodes[1:], head]):
            self.put("struct list_head", node, next=follows)

    def _members(self) -> dict[str, tuple[int, str]]:
        return self.layout(_MODULE)[1]

    def _type(self, kind: str) -> Type:
        prog = self.prog
        if kind == "char":
            return prog.int_type("char", 1, True)
        if kind != "struct list_head":
            return super()._type(kind)
        if self._list is None:
            # It leads to itself.
            self._list = prog.struct_type(
                "list_head",
                16,
                tuple(
                    TypeMember(lambda: prog.pointer_type(self._type(kind)), name, at)
                    for name, at in (("next", 0), ("prev", 64))
                ),
            )
        return self._list
