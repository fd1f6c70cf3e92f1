# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Trace records as text
---------------------

Records of a trace buffer as the ``trace`` file of tracefs shows them:
:linux:`kernel/trace/trace_output.c`. Each type of event gets a function that prints its
records, made when the first of them comes.
"""

from __future__ import annotations

import contextlib
import errno
import re
import struct
from collections.abc import Iterator
from typing import Callable

from drgn import FaultError, Object, PlatformFlags, Program

from drgn_tools import print_fmt
from drgn_tools.ftrace_memory import (
    Commands,
    TraceBuffer,
    TraceEvent,
    TraceEvents,
    read_string,
)
from drgn_tools.kernel_symbols import kernel_symbols
from drgn_tools.print_fmt import (
    Field,
    Unsupported,
    c_type,
    compile_print_fmt,
    flag_names,
    narrow,
    number_flags,
    octal,
    text,
)
from drgn_tools.ring_buffer import RingEvent, number
from drgn_tools.text import printable, printable_lines
from drgn_tools.variables import for_each_online_cpu

Print = Callable[[RingEvent], str]

#: What a record can make a function of it raise that trusts it.
TORN = (
    *(struct.error, ValueError, IndexError, TypeError, OverflowError, KeyError),
    # Of a print format that has thousands of operators.
    RecursionError,
)
_CACHE = 1 << 16


def siphash(value: int, size: int, key: tuple[int, ...]) -> int:
    """
    Return SipHash-2-4 of one number, which is how ``%p`` hides addresses.

    :param size: of the number, in bytes: 4 or 8.
    :param key: two numbers of 64 bits.
    """
    mask = (1 << 64) - 1
    v0, v1 = key[0] ^ 0x736F6D6570736575, key[1] ^ 0x646F72616E646F6D
    v2, v3 = key[0] ^ 0x6C7967656E657261, key[1] ^ 0x7465646279746573

    def rotate(x: int, by: int) -> int:
        return (x << by | x >> (64 - by)) & mask

    def rounds(n: int) -> None:
        nonlocal v0, v1, v2, v3
        for _ in range(n):
            v0 = (v0 + v1) & mask
            v1 = rotate(v1, 13) ^ v0
            v0 = rotate(v0, 32)
            v2 = (v2 + v3) & mask
            v3 = rotate(v3, 16) ^ v2
            v0 = (v0 + v3) & mask
            v3 = rotate(v3, 21) ^ v0
            v2 = (v2 + v1) & mask
            v1 = rotate(v1, 17) ^ v2
            v2 = rotate(v2, 32)

    last = size << 56
    for word in (value, last) if size == 8 else (last | value,):
        v3 ^= word
        rounds(2)
        v0 ^= word
    v2 ^= 0xFF
    rounds(4)
    return v0 ^ v1 ^ v2 ^ v3


class Kernel:
    """What printing a record needs of the kernel that wrote it."""

    def __init__(self, prog: Program) -> None:
        self.prog = prog
        platform = prog.platform
        assert platform is not None
        self.little = bool(platform.flags & PlatformFlags.IS_LITTLE_ENDIAN)
        self.word = 8 if platform.flags & PlatformFlags.IS_64_BIT else 4
        #: Whether %p shows addresses hashed, as the option hash-ptr says.
        self.hashed = True
        self._symbols = kernel_symbols(prog)
        self._names: dict[int, str] = {}
        self._offsets: dict[int, str] = {}
        self._pointers: dict[tuple[bool, int], str] = {}
        self._strings: dict[int, str] = {}
        self._key: tuple[int, int] | None = None
        with contextlib.suppress(LookupError, FaultError):
            key = prog["ptr_key"].key
            self._key = key[0].value_(), key[1].value_()
        with contextlib.suppress(LookupError, FaultError):
            if prog["no_hash_pointers"].value_():
                self.hashed = False
        self._plain = not self.hashed

    def show_pointers(self, hashed: bool) -> None:
        """Show what %p prints hashed or as it is."""
        self.hashed = hashed and not self._plain

    def symbol(self, address: int) -> str:
        """As ``%ps``."""
        found = self._symbols.find(address)
        return found.plain if found else f"{address:#x}"

    def symbol_offset(self, address: int) -> str:
        """As ``%pS``."""
        found = self._symbols.find(address)
        return found.full if found else f"{address:#x}"

    def function(self, address: int, offset: bool) -> str:
        """As the trace names functions."""
        cache = self._offsets if offset else self._names
        known = cache.get(address)
        if known is None:
            if not address:
                known = "0"
            else:
                found = self._symbols.find(address)
                if found is None:
                    known = f"0x{address:08x}"
                elif found.name in _TRAMPOLINES:
                    known = "[unknown/kretprobe'd]"
                else:
                    known = found.full if offset else found.name
            if len(cache) < _CACHE:
                cache[address] = known
        return known

    def symbols(self) -> Iterator[tuple[int, str, str]]:
        """Address, name and module of each symbol."""
        return self._symbols.all()

    def pointer(self, address: int) -> str:
        """As ``%p``."""
        return self._pointer(address, self.hashed)

    def hashed_pointer(self, address: int) -> str:
        """As ``%p`` whatever the option says."""
        return self._pointer(address, not self._plain)

    def _pointer(self, address: int, hashed: bool) -> str:
        known = self._pointers.get((hashed, address))
        if known is None:
            known = self._shown(address, hashed)
            if len(self._pointers) < _CACHE:
                self._pointers[hashed, address] = known
        return known

    def _shown(self, address: int, hashed: bool) -> str:
        digits = 2 * self.word
        # NULL and errors are shown.
        is_error = address + 4096 > 1 << 8 * self.word
        if not hashed or not address or is_error:
            return f"{address:0{digits}x}"
        if self._key is None or self._key == (0, 0):
            return "(____ptrval____)" if self.word == 8 else "(ptrval)"
        value = siphash(address, self.word, self._key) & 0xFFFFFFFF
        return f"{value:0{digits}x}"

    def error(self, address: int) -> str:
        """As ``%pe``."""
        name = _ERRORS.get((1 << 8 * self.word) - address)
        # With CONFIG_SYMBOLIC_ERRNAME.
        if name and _says(self.prog, b"-ENOENT\0"):
            return f"-{name}"
        return self.hashed_pointer(address)

    def string(self, address: int) -> str:
        """What is at an address."""
        if not address:
            return "(null)"
        known = self._strings.get(address)
        if known is None:
            try:
                known = read_string(self.prog, address, 4096)
            except FaultError:
                known = f"(0x{address:x}:not in this dump)"
            if len(self._strings) < _CACHE:
                self._strings[address] = known
        return known

    def size_of(self, name: str) -> int:
        """Return the size of a type."""
        try:
            return self.prog.type(name).size or 0
        except SyntaxError:
            raise LookupError(name) from None

    def constant(self, name: str) -> int:
        """Return an enumerator or a variable."""
        try:
            value = self.prog[name].value_()
        except FaultError:
            raise LookupError(name) from None
        if not isinstance(value, (int, bool)):
            raise LookupError(name)
        return int(value)


# As lib/errname.c names them: of two names it has one, and the kernel has its own.
_ERRORS = {
    **errno.errorcode,
    errno.EDEADLK: "EDEADLK",
    errno.EOPNOTSUPP: "EOPNOTSUPP",
    512: "ERESTARTSYS",
    513: "ERESTARTNOINTR",
    514: "ERESTARTNOHAND",
    515: "ENOIOCTLCMD",
    516: "ERESTART_RESTARTBLOCK",
    517: "EPROBE_DEFER",
    518: "EOPENSTALE",
    519: "ENOPARAM",
    521: "EBADHANDLE",
    522: "ENOTSYNC",
    523: "EBADCOOKIE",
    524: "ENOTSUPP",
    525: "ETOOSMALL",
    526: "ESERVERFAULT",
    527: "EBADTYPE",
    528: "EJUKEBOX",
    529: "EIOCBQUEUED",
    530: "ERECALLCONFLICT",
}

# Where a function that is probed at its end seems to return to.
_TRAMPOLINES = (
    "__kretprobe_trampoline",
    "kretprobe_trampoline",
    "arch_rethook_trampoline",
)


def _says(prog: Program, what: bytes) -> bool:
    # Whether the kernel has such a string: what it prints tells what it knows.
    known = prog.cache.setdefault("drgn_tools_rodata", {})
    if what not in known:
        known[what] = False
        with contextlib.suppress(LookupError, FaultError):
            begin = prog.symbol("__start_rodata").address
            end = prog.symbol("__end_rodata").address
            tail = b""
            for at in range(begin, min(end, begin + (64 << 20)), 1 << 20):
                part = tail + prog.read(at, min(1 << 20, end - at))
                if what in part:
                    known[what] = True
                    break
                tail = part[-len(what) :]
    return bool(known[what])


class Style:
    """How one trace buffer is printed."""

    def __init__(self, prog: Program, buffer: TraceBuffer) -> None:
        self.buffer = buffer
        options = buffer.options
        self.offsets = "SYM_OFFSET" in options
        self.addresses = "SYM_ADDR" in options
        self.parents = "PRINT_PARENT" in options
        self.context = "CONTEXT_INFO" in options
        self.irq_info = "IRQ_INFO" in options
        self.tgid = "RECORD_TGID" in options
        self.hashed = _hashed(prog, options)
        # Since "tracing: Add migrate-disabled counter to tracing output" (in v5.13).
        self.migrate = _says(prog, b"=> migrate-disable")
        # Since 6.1 at the latest.
        self.bottom_half = "TRACE_FLAG_BH_OFF" in _flag_names(prog)
        # Since 6.13, where there was that irqs-off is not known.
        self.lazy = "TRACE_FLAG_NEED_RESCHED_LAZY" in _flag_names(prog)


def _hashed(prog: Program, options: frozenset[str]) -> bool:
    # An option since "tracing: Add ptr-hash option to show the hashed pointer value"
    # (in v5.12); what came just before it, and was backported, shows all as it is.
    for name in ("TRACE_ITER_HASH_PTR_BIT", "TRACE_ITER_HASH_PTR"):
        with contextlib.suppress(LookupError):
            prog.constant(name)
            return "HASH_PTR" in options
    with contextlib.suppress(LookupError):
        return not prog.type("struct trace_iterator").has_member("fmt")
    return True


def _flag_names(prog: Program) -> tuple[str, ...]:
    try:
        enumerators = prog.type("enum trace_flag_type").enumerators
    except LookupError:
        return ()
    return tuple(name for name, _ in enumerators or ())


_RESCHED = {0x24: "N", 0x04: "n", 0x20: "p"}
_RESCHED_LAZY = {
    **_RESCHED,
    0x26: "B",
    0x22: "L",
    0x06: "b",
    0x02: "l",
}


def latency(flags: int, preempt_count: int, style: Style) -> str:
    """The column of what a CPU was in when it wrote a record."""
    off, bottom_half = flags & 1, flags & 0x80 and style.bottom_half
    irqs = "."
    if off:
        irqs = "D" if bottom_half else "d"
    elif bottom_half:
        irqs = "b"
    elif flags & 2 and not style.lazy:
        irqs = "X"
    if style.lazy:
        resched = _RESCHED_LAZY.get(flags & 0x26, ".")
    else:
        resched = _RESCHED.get(flags & 0x24, ".")
    hard, soft, nmi = flags & 0x08, flags & 0x10, flags & 0x40
    if nmi:
        context = "Z" if hard else "z"
    elif hard:
        context = "H" if soft else "h"
    else:
        context = "s" if soft else "."
    if not style.migrate:
        counts = [preempt_count]
    else:
        counts = [preempt_count & 0xF, preempt_count >> 4]
    depths = "".join(f"{count:x}" if count else "." for count in counts)
    return f"{irqs}{resched}{context}{depths}"


def header(prog: Program, style: Style, entries: int, written: int) -> Iterator[str]:
    """The lines that the trace file begins with."""
    yield f"# tracer: {printable(style.buffer.tracer)}"
    yield "#"
    if not style.context:
        return
    try:
        cpus = sum(1 for _ in for_each_online_cpu(prog))
    except (LookupError, FaultError):
        cpus = 0
    yield f"# entries-in-buffer/entries-written: {entries}/{written}   #P:{cpus}"
    yield "#"
    if not style.irq_info:
        group = ("   TGID   ", "     |    ") if style.tgid else ("", "")
        yield f"#           TASK-PID    {group[0]} CPU#     TIMESTAMP  FUNCTION"
        yield f"#              | |      {group[1]}   |         |         |"
        return
    space = " " * (12 if style.tgid else 2)
    names = ["irqs-off", "need-resched", "hardirq/softirq", "preempt-depth"]
    if style.bottom_half:
        names[0] = "irqs-off/BH-disabled"
    if style.migrate:
        names.append("migrate-disable")
    before = f"#                            {space}"
    for i, name in enumerate(names):
        mark = f"_{'-' * (5 - i)}=> {name}"
        # Above it are the strokes of those before.
        yield before + (f"{'|' * (i - 1)} / {mark}" if i else f"  {mark}")
    bars = "|" * len(names)
    yield f"{before}{bars[1:]} /     delay"
    tgid = ("     TGID   ", "       |    ") if style.tgid else ("  ", "  ")
    gap = "  " if style.migrate else "   "
    yield f"#           TASK-PID  {tgid[0]} CPU#  {bars}{gap}TIMESTAMP  FUNCTION"
    yield f"#              | |    {tgid[1]}   |   {bars}{gap}   |         |"


class Printer:
    """Prints records of one trace buffer."""

    def __init__(
        self,
        prog: Program,
        buffer: TraceBuffer,
        kernel: Kernel,
        events: TraceEvents,
        commands: Commands,
    ) -> None:
        self.prog = prog
        self.kernel = kernel
        self.events = events
        self.commands = commands
        self.style = Style(prog, buffer)
        #: Why events are printed as their fields, by name.
        self.reduced: dict[str, str] = {}
        #: Records that are too short for what their event says.
        self.torn = 0
        #: Records of types that no event has.
        self.unknown = 0
        self._printers: dict[int, Print] = {}
        self._prefixes: dict[tuple[int, int], str] = {}
        self._latency: dict[int, str] = {}
        self._entry = self._entry_layout()

    def _entry_layout(self) -> struct.Struct:
        # struct trace_entry: type, flags, preempt_count and pid are where they are.
        order = "<" if self.kernel.little else ">"
        try:
            type_ = self.prog.type("struct trace_entry")
            form, at = order, 0
            for name in ("type", "flags", "preempt_count", "pid"):
                member = type_.member(name)
                offset = (member.bit_offset or 0) // 8
                size = member.type.size or 0
                code = {1: "B", 2: "H", 4: "i"}[size]
                if offset < at:
                    raise ValueError("its members are in another order")
                form += "x" * (offset - at) + code
                at = offset + size
        except (LookupError, ValueError, TypeError):
            form = order + "HBBi"
        return struct.Struct(form)

    def header(self, entries: int, written: int) -> Iterator[str]:
        """The lines that the trace file begins with."""
        return header(self.prog, self.style, entries, written)

    def event_of(self, data: bytes) -> TraceEvent | None:
        """The event that a record is of."""
        try:
            return self.events.get(self._entry.unpack_from(data)[0])
        except struct.error:
            return None

    def pid_of(self, data: bytes) -> int:
        """The task that wrote a record; 0 if it is too short to say."""
        try:
            return int(self._entry.unpack_from(data)[3])
        except struct.error:
            return 0

    def body(self, event: RingEvent) -> str:
        """A record as its line, from the event on."""
        try:
            type_ = self._entry.unpack_from(event.data)[0]
            self.kernel.show_pointers(self.style.hashed)
            line = (self._printers.get(type_) or self._printer(type_))(event)
            return printable_lines(line)
        except TORN as error:
            self.torn += 1
            return f"a torn record: {error}"

    def lines(
        self, events: Iterator[RingEvent], *, annotate: bool = False
    ) -> Iterator[str]:
        """Each record as its line, with its end, or its lines.

        :param annotate: whether to say which is the first of a CPU.
        """
        style = self.style
        entry, prefixes, columns = (
            self._entry.unpack_from,
            self._prefixes,
            self._latency,
        )
        printers = self._printers
        in_ns, context, irq_info = style.buffer.in_ns, style.context, style.irq_info
        self.kernel.show_pointers(style.hashed)
        started: set[int] = set()
        for event in events:
            data = event.data
            cpu = event.cpu
            if annotate and cpu not in started:
                if started:
                    yield f"##### CPU {cpu} buffer started ####\n"
                started.add(cpu)
            try:
                type_, flags, preempt, pid = entry(data)
            except struct.error:
                self.torn += 1
                yield f"[{cpu:03d}] a torn record: it has {len(data)} bytes\n"
                continue
            line = ""
            if context:
                try:
                    line = prefixes[pid, cpu]
                except KeyError:
                    line = self._prefix(pid, cpu)
                if irq_info:
                    key = flags << 8 | preempt
                    try:
                        line += columns[key]
                    except KeyError:
                        columns[key] = latency(flags, preempt, style)
                        line += columns[key]
                if in_ns:
                    us = (event.time + 500) // 1000
                    line += f" {us // 1000000:5d}.{us % 1000000:06d}: "
                else:
                    line += f" {event.time:12d}: "
            try:
                line += (printers.get(type_) or self._printer(type_))(event)
            except TORN as error:
                self.torn += 1
                line += f"a torn record: {error}\n"
            whole = line[-1:] == "\n" and line[:-1].isprintable()
            yield line if whole else printable_lines(line)

    def notes(self) -> Iterator[str]:
        """What of the records is not as the kernel shows it."""
        for name, why in self.reduced.items():
            yield f"{name} is shown as its fields: its print format has {why}"
        if self.torn:
            yield f"{self.torn} records are torn"
        if self.unknown:
            yield f"{self.unknown} records are of events that this kernel has no longer"

    def _prefix(self, pid: int, cpu: int) -> str:
        line = f"{printable(self.commands.get(pid)):>16}-{pid:<7d} "
        if self.style.tgid:
            tgid = self.commands.tgid(pid)
            line += f"({tgid:7d}) " if tgid else "(-------) "
        line += f"[{cpu:03d}] "
        if len(self._prefixes) < _CACHE:
            self._prefixes[pid, cpu] = line
        return line

    # --- by type

    def _printer(self, type_: int) -> Print:
        event = self.events.get(type_)
        if event is None:

            def unknown(record: RingEvent) -> str:
                self.unknown += 1
                return f"Unknown type {type_}\n"

            made: Print = unknown
        else:
            made = self._of_event(event)
        if len(self._printers) < _CACHE:
            self._printers[type_] = made
        return made

    def _of_event(self, event: TraceEvent) -> Print:
        if event.kind == "ftrace":
            builtin = _BUILTINS.get(event.name)
            if builtin is not None:
                return builtin(self, event)
        if self.style.buffer.text_delta and event.kind != "ftrace":
            # Its pointers are of another boot.
            return self._fields_of(event)
        try:
            if event.kind == "syscall_enter":
                return self._syscall_enter(event)
            if event.kind == "syscall_exit":
                return self._syscall_exit(event)
            return self._print_fmt(event)
        except (Unsupported, LookupError, FaultError) as error:
            self.reduced[event.name] = str(error)
            return self._fields_of(event)

    def _print_fmt(self, event: TraceEvent) -> Print:
        if not event.print_fmt:
            raise Unsupported("nothing in it")
        print_fmt = event.print_fmt
        name = event.name
        where: Print | None = None
        if event.kind in _PROBES:
            # The kernel shows where the probe is in another way than it says.
            match = re.match(r'"\((%lx(?: <- %lx)?)\)', print_fmt)
            if match:
                where = self._probe(event)
                rest = print_fmt[match.end() :]
                form, _, arguments = rest.partition('", ')
                skip = match.group(1).count("%")
                kept = arguments.split(", ", skip)[skip:]
                print_fmt = f'"{form}"' + (f", {kept[0]}" if kept else "")
        fields = {field.name: field for field in (*self.events.common, *event.fields)}
        body = compile_print_fmt(
            print_fmt, fields, self.kernel, empty=_FAULT if where else ""
        )
        if where is None:
            return lambda record: f"{name}: {body(record.data)}\n"
        address = where

        def probe(record: RingEvent) -> str:
            values = body(record.data)
            if _FAULT in values:
                # It could not be read.
                values = values.replace(f'"{_FAULT}"', "(fault)")
            return f"{name}: ({address(record)}){values}\n"

        return probe

    def _probe(self, event: TraceEvent) -> Print:
        word = self.kernel.word
        order = "<" if self.kernel.little else ">"
        unpack = struct.Struct(order + ("Q" if word == 8 else "I")).unpack_from
        at = {field.name: field.offset for field in event.fields}
        function = self.kernel.function
        if event.kind == "uprobe":
            if "__probe_ip" in at:
                ip = at["__probe_ip"]
                return lambda r: f"{unpack(r.data, ip)[0]:#x}"
            to, of = at["__probe_ret_ip"], at["__probe_func"]
            return lambda r: f"{unpack(r.data, to)[0]:#x} <- {unpack(r.data, of)[0]:#x}"
        if "__probe_ip" in at:
            ip = at["__probe_ip"]
            return lambda r: function(unpack(r.data, ip)[0], True)
        to, of = at["__probe_ret_ip"], at["__probe_func"]
        return lambda r: (
            f"{function(unpack(r.data, to)[0], True)} <- "
            f"{function(unpack(r.data, of)[0], False)}"
        )

    def _metadata(self, event: TraceEvent) -> Object:
        return Object(
            self.prog,
            "struct syscall_metadata",
            address=number(event.call.read_(), "data"),
        )

    def _syscall_enter(self, event: TraceEvent) -> Print:
        prog = self.prog
        metadata = self._metadata(event)
        name = read_string(prog, metadata.name.value_(), 256)
        count = int(metadata.nb_args.value_())
        if not 0 <= count <= 6:
            raise Unsupported(f"it has {count} arguments")
        names = [read_string(prog, metadata.args[i].value_(), 64) for i in range(count)]
        type_ = prog.type("struct syscall_trace_enter")
        at = (type_.member("args").bit_offset or 0) // 8
        order = "<" if self.kernel.little else ">"
        code = "Q" if self.kernel.word == 8 else "I"
        unpack = struct.Struct(f"{order}{count}{code}").unpack_from
        if not metadata.type_.has_member("user_mask"):
            form = name + "(" + ", ".join(f"{n}: %x" for n in names) + ")\n"
            return lambda record: form % unpack(record.data, at)
        # Since "tracing: Have syscall trace events read user space string" (in v6.19).
        mask = int(metadata.user_mask.value_())
        size_at = int(metadata.user_arg_size.value_())
        is_text = size_at < 0 or bool(metadata.user_arg_is_str.value_())
        locations = struct.Struct(order + "I").unpack_from
        behind = at + self.kernel.word * count
        openat = name in ("sys_openat", "__x64_sys_openat")
        # It names its flags, and shows the mode only where one is needed.
        flags = _open_flags(event.print_fmt) if openat else None
        with_mode = 0
        if flags:
            with_mode = flags[0][0] | {b: a for a, b in flags}.get("O_CREAT", 0)

        def enter(record: RingEvent) -> str:
            data = record.data
            values = unpack(data, at)
            parts = []
            where = behind
            for i, value in enumerate(values):
                if flags and i == 2:
                    shown = "O_RDONLY" if not value else "O_RDONLY|"
                    shown = "" if value & 3 else shown
                    parts.append(f"flags: {shown}{flag_names(value, '|', flags)}")
                    if not value & with_mode:
                        break
                    continue
                if flags and i == 3:
                    parts.append(f"{names[i]}: 0{value & 0xFFFFFFFF:03o}")
                    continue
                if flags or value < 10:
                    part = f"{names[i]}: {value}"
                else:
                    part = f"{names[i]}: 0x{value:x}"
                if mask >> i & 1:
                    location = locations(data, where)[0]
                    where += 4
                    begin = location & 0xFFFF
                    raw = data[begin : begin + (location >> 16)]
                    if is_text:
                        part += f' "{text(raw)}"'
                    else:
                        part += _user_memory(raw, values[size_at])
                parts.append(part)
            return f"{name}({', '.join(parts)})\n"

        return enter

    def _syscall_exit(self, event: TraceEvent) -> Print:
        name = read_string(self.prog, self._metadata(event).name.value_(), 256)
        (field,) = (field for field in event.fields if field.name == "ret")
        order = "<" if self.kernel.little else ">"
        unpack = struct.Struct(order + ("Q" if field.size == 8 else "I")).unpack_from
        at = field.offset
        return lambda record: f"{name} -> 0x{unpack(record.data, at)[0]:x}\n"

    def _fields_of(self, event: TraceEvent) -> Print:
        # As the option "fields" has it, but readable.
        shown = [
            (field.name, _field_value(field, self.kernel)) for field in event.fields
        ]
        name = event.name

        def fields(record: RingEvent) -> str:
            data = record.data
            values = " ".join(f"{label}={value(data)}" for label, value in shown)
            return f"{name}: {values}\n"

        return fields


# Of a probe's string that has no bytes; no string has this.
_FAULT = "\0"
_PROBES = ("kprobe", "kretprobe", "uprobe", "fprobe", "fexit")


def _open_flags(print_fmt: str) -> list[tuple[int, str]]:
    # As the event's print format has them, and what it leaves out.
    found = re.findall(r'\{ (0x[0-9a-f]+), "(O_[A-Z]+)" \}', print_fmt)
    table = [(int(value, 16), name) for value, name in found]
    directory = {name: value for value, name in table}.get("O_DIRECTORY", 0)
    return [(0o20000000 | directory, "O_TMPFILE"), *table]


def _user_memory(raw: bytes, size: int) -> str:
    # Memory of user space as bytes and, if some of it is text, as that.
    more = len(raw) < (size & 0x7FFFFFFF)
    shown = " (" + raw.hex(":") + (", ..." if more else "") + ")"
    if not any(0x20 <= byte < 0x7F for byte in raw):
        return shown
    plain = "".join(chr(b) if 0x20 <= b < 0x7F else "." for b in raw)
    return f'{shown} "{plain}"' + ("..." if more else "")


def _field_value(field: Field, kernel: Kernel) -> Callable[[bytes], str]:
    order = "<" if kernel.little else ">"
    at, size = field.offset, field.size
    if field.type.startswith(("__data_loc", "__rel_loc")):
        unpack = struct.Struct(order + "I").unpack_from
        base = at + 4 if field.type.startswith("__rel_loc") else 0
        is_text = "char" in field.type

        def dynamic(data: bytes) -> str:
            where = unpack(data, at)[0]
            begin = base + (where & 0xFFFF)
            raw = data[begin : begin + (where >> 16)]
            return text(raw) if is_text else raw.hex(",")

        return dynamic
    if "[" in field.type:
        end = at + size if size else None
        if field.type.startswith("char"):
            return lambda data: text(data[at:end])
        return lambda data: data[at:end].hex(",")
    code = {1: "b", 2: "h", 4: "i", 8: "q"}.get(size)
    if code is None:
        return lambda data: data[at : at + size].hex(",")
    known = c_type(field.type, kernel.word)
    signed = field.signed and not (known and not known[1])
    take = struct.Struct(order + (code if signed else code.upper())).unpack_from
    if "*" in field.type:
        return lambda data: f"{take(data, at)[0]:#x}"
    return lambda data: f"{take(data, at)[0]}"


# --- what ftrace itself records


def _long(printer: Printer) -> struct.Struct:
    order = "<" if printer.kernel.little else ">"
    return struct.Struct(order + ("Q" if printer.kernel.word == 8 else "I"))


def _offsets(event: TraceEvent) -> dict[str, int]:
    return {field.name: field.offset for field in event.fields}


def _named(printer: Printer) -> Callable[[int], str]:
    # A function's name as the buffer's options have it.
    style, function = printer.style, printer.kernel.function
    offsets, delta = style.offsets, style.buffer.text_delta
    mask = (1 << 8 * printer.kernel.word) - 1
    if not style.addresses and not delta:
        return lambda address: function(address, offsets)
    digits = 2 * printer.kernel.word

    def named(address: int) -> str:
        if not address:
            return "0"
        address = address + delta & mask
        shown = function(address, offsets)
        return f"{shown} <{address:0{digits}x}>" if style.addresses else shown

    return named


def _function(printer: Printer, event: TraceEvent) -> Print:
    at = _offsets(event)
    ip, parent = at["ip"], at["parent_ip"]
    long = _long(printer)
    named = _named(printer)
    # Of a call and its caller, which come again and again.
    cache: dict[tuple[int, int], str] = {}
    if parent == ip + long.size:
        both = struct.Struct(long.format[0] + 2 * long.format[1]).unpack_from
        parents = printer.style.parents

        def function(record: RingEvent) -> str:
            found = both(record.data, ip)
            line = cache.get(found)
            if line is None:
                line = named(found[0])
                if parents and found[1]:
                    line += f" <-{named(found[1])}"
                line += "\n"
                if len(cache) < _CACHE:
                    cache[found] = line
            return line

        return function
    return lambda record: (
        f"{named(long.unpack_from(record.data, ip)[0])} <-"
        f"{named(long.unpack_from(record.data, parent)[0])}\n"
    )


def _print(printer: Printer, event: TraceEvent) -> Print:
    at = _offsets(event)
    ip, buf = at["ip"], at["buf"]
    unpack, named = _long(printer).unpack_from, _named(printer)

    def message(record: RingEvent) -> str:
        said = text(record.data[buf:])
        return f"{named(unpack(record.data, ip)[0])}: {said}"

    return message


def _bputs(printer: Printer, event: TraceEvent) -> Print:
    at = _offsets(event)
    ip, where = at["ip"], at["str"]
    unpack, named = _long(printer).unpack_from, _named(printer)
    read = printer.kernel.string
    return lambda record: (
        f"{named(unpack(record.data, ip)[0])}: {read(unpack(record.data, where)[0])}"
    )


def _bprint(printer: Printer, event: TraceEvent) -> Print:
    at = _offsets(event)
    ip, fmt, buf = at["ip"], at["fmt"], at["buf"]
    unpack, named = _long(printer).unpack_from, _named(printer)
    kernel = printer.kernel
    widened = False
    with contextlib.suppress(LookupError):
        # Since "vsprintf: don't make the 'binary' version pack small integer arguments"
        # (in v6.14), with which this came.
        kernel.constant("FORMAT_STATE_NUM")
        widened = True

    def message(record: RingEvent) -> str:
        data = record.data
        form = kernel.string(unpack(data, fmt)[0])
        said = binary_printf(form, data[buf:], kernel, widened=widened)
        return f"{named(unpack(data, ip)[0])}: {said}"

    return message


_BPRINT = re.compile(
    r"%(?P<flags>[-+ #0]*)(?P<width>\*|\d+)?(?:\.(?P<precision>\*|\d*))?"
    r"(?P<length>hh|h|ll|l|L|z|Z|t|j)?(?P<conversion>[a-zA-Z%])"
    # All of them belong to it, whether they mean something or not.
    r"(?P<pointer>(?<=p)[a-zA-Z0-9]*)?"
)
_MAX_WIDTH = 4096


def binary_printf(
    form: str, raw: bytes, kernel: print_fmt.Kernel, *, widened: bool = False
) -> str:
    """
    Print a format with values that were packed into words: ``bstr_printf()``.

    :param widened: Whether numbers shorter than an int were packed as ints.
    :raises ValueError: if there are fewer values than it says, or a conversion that
        is not known.
    """
    order = "<" if kernel.little else ">"
    at = 0

    def take(size: int, signed: bool) -> int:
        nonlocal at
        align = min(size, 4)
        at = (at + align - 1) // align * align
        code = {1: "b", 2: "h", 4: "i", 8: "q"}[size]
        code = order + (code if signed else code.upper())
        found: int = struct.unpack_from(code, raw, at)[0]
        at += size
        return found

    def string() -> str:
        nonlocal at
        end = raw.find(b"\0", at)
        if end < 0:
            raise ValueError("a string without an end")
        found = raw[at:end].decode("utf-8", "backslashreplace")
        at = end + 1
        return found

    def columns(said: str | None) -> int | None:
        if said is None:
            return None
        value = take(4, True) if said == "*" else int(said or 0)
        if abs(value) > _MAX_WIDTH:
            raise ValueError(f"{value} columns")
        return value

    def one(match: re.Match[str]) -> str:
        conversion, length = match["conversion"], match["length"] or ""
        if conversion == "%":
            return "%"
        flags = match["flags"]
        width, precision = columns(match["width"]), columns(match["precision"])
        if width is not None and width < 0:
            flags, width = flags + "-", -width
        pad = f"%{'-' if '-' in flags else ''}{width or ''}s"
        # One that is negative is none.
        limit = "" if precision is None or precision < 0 else f".{precision}"
        if conversion == "s":
            return f"{pad[:-1]}{limit}s" % string()
        if conversion == "c":
            return pad % chr(take(1, False))
        if conversion == "p":
            kind = match["pointer"][:1]
            function = _POINTERS.get(kind)
            if function is None:
                # What needs the memory was made into text when it was recorded.
                return pad % string()
            shown = function(kernel, take(kernel.word, False))
            if width and kind in ("", "K", "x"):
                shown = narrow(shown, flags, width)
            return pad % shown
        if conversion not in "diuxXo":
            raise ValueError(f"%{conversion}")
        size = {"hh": 1, "h": 2, "": 4, "ll": 8, "L": 8, "j": 8}.get(
            length, kernel.word
        )
        signed = conversion in "di"
        value = take(max(size, 4) if widened else size, signed)
        if size < 4:
            value = int.from_bytes(
                (value & (1 << 8 * size) - 1).to_bytes(size, "little"),
                "little",
                signed=signed,
            )
        flags = number_flags(flags, conversion)
        if conversion == "o" and "#" in flags:
            return pad % octal(value)
        conversion = "d" if conversion in "iu" else conversion
        return f"%{flags}{width or ''}{limit}{conversion}" % value

    return _BPRINT.sub(one, form)


# The option hash-ptr is for events' own formats.
_POINTERS: dict[str, Callable[[print_fmt.Kernel, int], str]] = {
    "": lambda kernel, address: kernel.hashed_pointer(address),
    "K": lambda kernel, address: kernel.hashed_pointer(address),
    "s": lambda kernel, address: kernel.symbol(address),
    "S": lambda kernel, address: kernel.symbol_offset(address),
    "x": lambda kernel, address: f"{address:0{2 * kernel.word}x}",
    "e": lambda kernel, address: kernel.error(address),
}


def _stack(printer: Printer, event: TraceEvent) -> Print:
    at = _offsets(event)["caller"]
    long, named = _long(printer), _named(printer)
    word = long.size
    code = long.format[1]
    end = (1 << 8 * word) - 1

    def stack(record: RingEvent) -> str:
        data = record.data
        count = max(len(data) - at, 0) // word
        lines = ["<stack trace>\n"]
        for address in struct.unpack_from(f"{long.format[0]}{count}{code}", data, at):
            if address == end:
                break
            if address == end - 1:
                lines.append(" => [FTRACE TRAMPOLINE]\n")
                continue
            lines.append(f" => {named(address)}\n")
        return "".join(lines)

    return stack


def _user_stack(printer: Printer, event: TraceEvent) -> Print:
    at = _offsets(event)["caller"]
    long = _long(printer)
    digits = 2 * long.size

    def stack(record: RingEvent) -> str:
        data = record.data
        count = min(max(len(data) - at, 0) // long.size, 8)
        lines = ["<user stack trace>\n"]
        form = f"{long.format[0]}{count}{long.format[1]}"
        for address in struct.unpack_from(form, data, at):
            if not address:
                break
            lines.append(f" =>  <{address:0{digits}x}>\n")
        return "".join(lines)

    return stack


def _raw_data(printer: Printer, event: TraceEvent) -> Print:
    at = _offsets(event)
    id_at, buf = at["id"], at["buf"]
    unpack = struct.Struct(("<" if printer.kernel.little else ">") + "I").unpack_from

    def raw(record: RingEvent) -> str:
        data = record.data
        values = "".join(f" {byte:02x}" for byte in data[buf:])
        return f"# {unpack(data, id_at)[0]:x} buf:{values}\n"

    return raw


def _repeats(printer: Printer, event: TraceEvent) -> Print:
    at = _offsets(event)
    function = _function(printer, event)
    order = "<" if printer.kernel.little else ">"
    count = struct.Struct(order + "H").unpack_from
    bottom = struct.Struct(order + "I").unpack_from
    in_ns = printer.style.buffer.in_ns

    def repeats(record: RingEvent) -> str:
        data = record.data
        delta = count(data, at["top_delta_ts"])[0] << 32
        delta |= bottom(data, at["bottom_delta_ts"])[0]
        time = record.time - delta
        if in_ns:
            seconds, us = divmod((time + 500) // 1000, 1000000)
            last = f" {seconds:5d}.{us:06d}"
        else:
            last = f" {time:12d}"
        times = count(data, at["count"])[0]
        return f"{function(record)[:-1]} (repeats: {times}, last_ts:{last})\n"

    return repeats


_STATES = "RSDTtXZPI"


def _switch(arrow: str) -> Callable[[Printer, TraceEvent], Print]:
    def made(printer: Printer, event: TraceEvent) -> Print:
        at = _offsets(event)
        order = "<" if printer.kernel.little else ">"
        number_at = struct.Struct(order + "I").unpack_from

        def switch(record: RingEvent) -> str:
            data = record.data
            previous, then, cpu = (
                number_at(data, at[name])[0]
                for name in ("prev_pid", "next_pid", "next_cpu")
            )
            before, after = (
                _STATES[state] if state < len(_STATES) else "?"
                for state in (data[at["prev_state"]], data[at["next_state"]])
            )
            comm = printable(printer.commands.get(then))
            return (
                f" {previous:7d}:{data[at['prev_prio']]:3d}:{before} {arrow} "
                f"[{cpu:03d}] {then:7d}:{data[at['next_prio']]:3d}:{after} {comm}\n"
            )

        return switch

    return made


_BUILTINS: dict[str, Callable[[Printer, TraceEvent], Print]] = {
    "function": _function,
    "func_repeats": _repeats,
    "print": _print,
    "bprint": _bprint,
    "bputs": _bputs,
    "kernel_stack": _stack,
    "user_stack": _user_stack,
    "raw_data": _raw_data,
    "context_switch": _switch("==>"),
    "wakeup": _switch("  +"),
}
