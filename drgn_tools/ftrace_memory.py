# SPDX-License-Identifier: LGPL-2.1-or-later
"""
ftrace in a kernel's memory
---------------------------

The trace buffers of a kernel, its events with their fields and print formats, and the
names of tasks that it kept: from :linux:`kernel/trace/`. Nothing here is printed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from drgn import FaultError, Object, Program, Type, TypeKind

from drgn_tools.errors import DumpError
from drgn_tools.print_fmt import Field
from drgn_tools.pstore_memory import has_debug_info
from drgn_tools.ring_buffer import number

# More than any kernel has of them.
_MAX_EVENTS = 1 << 17
_MAX_FIELDS = 1024
_MAX_INSTANCES = 1 << 12
_MAX_STRING = 1 << 16

# Lists may lead below the first address.
_NO_MEMORY = (FaultError, OverflowError)
_NOT_THERE = (*_NO_MEMORY, LookupError, AttributeError, TypeError, ValueError)


class FtraceError(DumpError):
    """There is no trace in this kernel, or it is not found; the message says why."""


def read_string(prog: Program, address: int, limit: int = _MAX_STRING) -> str:
    """
    Return a string of the kernel's, up to *limit* bytes.

    :raises FaultError: if it is not in the dump.
    """
    found = b""
    while len(found) < limit:
        at = address + len(found)
        # Not beyond a page whose next one may not be there.
        part = prog.read(at, min(limit - len(found), 4096 - at % 4096))
        end = part.find(b"\0")
        if end >= 0:
            found += part[:end]
            break
        found += part
    return found.decode("utf-8", "backslashreplace")


class TraceBuffer(NamedTuple):
    """A trace buffer: the kernel's own or an instance's."""

    name: str
    """Of the instance; empty for the kernel's own."""
    trace_array: Object
    buffer: Object
    """``struct trace_buffer *``, ``struct ring_buffer *`` before 5.6"""
    options: frozenset[str]
    """Options that are set, as PRINT_PARENT."""
    clock: str
    in_ns: bool
    """Whether its clock counts nanoseconds."""
    tracer: str
    time_start: int
    """What is older is not shown."""
    text_delta: int
    """What to add to addresses of a boot before this one."""


def _options(prog: Program, flags: int) -> frozenset[str]:
    # As bits of their own in 4.4 to 7.x, as masks before.
    for name, prefix, suffix in (
        ("enum trace_iterator_bits", "TRACE_ITER_", "_BIT"),
        ("enum trace_iterator_flags", "TRACE_ITER_", ""),
    ):
        try:
            enumerators = prog.type(name).enumerators
        except LookupError:
            continue
        if enumerators is None:
            continue
        return frozenset(
            label[len(prefix) : len(label) - len(suffix)]
            for label, value in enumerators
            if label.startswith(prefix)
            and label.endswith(suffix)
            and (flags >> value & 1 if suffix else flags & value)
        )
    return frozenset(("PRINT_PARENT", "CONTEXT_INFO", "IRQ_INFO"))


def _trace_buffer(prog: Program, tr: Object) -> TraceBuffer:
    # array_buffer since "tracing: Rename trace_buffer to array_buffer" (in v5.6),
    # a struct of its own since 3.10.
    wrapper = tr
    for name in ("array_buffer", "trace_buffer"):
        if tr.type_.type.has_member(name):
            wrapper = tr.member_(name)
            break
    buffer = wrapper.member_("buffer")
    loaded = tr[0].read_()
    if loaded.type_.has_member("trace_flags"):
        flags = number(loaded, "trace_flags")
    else:
        flags = int(prog["trace_flags"].value_())
    clock, in_ns = "local", True
    with contextlib.suppress(*_NOT_THERE):
        entry = prog["trace_clocks"][number(loaded, "clock_id")]
        clock = read_string(prog, entry.name.value_(), 64)
        if entry.type_.has_member("in_ns"):
            in_ns = bool(entry.in_ns.value_())
    tracer = "nop"
    with contextlib.suppress(*_NOT_THERE):
        current = (
            loaded.current_trace
            if loaded.type_.has_member("current_trace")
            else prog["current_trace"]
        )
        tracer = read_string(prog, current.name.value_(), 64)
    name = ""
    address = number(loaded, "name")
    if address:
        with contextlib.suppress(FaultError):
            name = read_string(prog, address, 256)
    return TraceBuffer(
        name,
        tr,
        buffer,
        _options(prog, flags),
        clock,
        in_ns,
        tracer,
        number(wrapper, "time_start"),
        number(loaded, "text_delta"),
    )


def trace_buffers(prog: Program) -> list[TraceBuffer]:
    """
    Return the trace buffers, the kernel's own first.

    :raises FtraceError: if there are none; the message says why.
    """
    try:
        top = prog["global_trace"].address_of_()
        prog.type("struct ring_buffer_per_cpu")
    except LookupError:
        if not has_debug_info(prog):
            raise FtraceError(
                "the trace cannot be found without the kernel's debugging symbols"
            ) from None
        raise FtraceError("this kernel has no trace: CONFIG_TRACING") from None
    arrays = [top]
    with contextlib.suppress(LookupError):
        # Since 3.10, which brought instances.
        head = prog["ftrace_trace_arrays"]
        arrays += _instances(prog, head, top)
    found = []
    try:
        for tr in arrays:
            buffer = _trace_buffer(prog, tr)
            if buffer.buffer.value_():
                found.append(buffer)
    except FaultError as error:
        if not found:
            raise FtraceError(f"its struct trace_array is not there: {error}") from None
    if not found:
        raise FtraceError("this kernel has no trace buffer yet")
    return found


def _instances(prog: Program, head: Object, top: Object) -> list[Object]:
    type_ = prog.type("struct trace_array")
    offset = (type_.member("list").bit_offset or 0) // 8
    found: list[Object] = []
    seen = {head.address_}
    try:
        address = number(head, "next")
        while address not in seen and len(seen) < _MAX_INSTANCES:
            seen.add(address)
            tr = Object(prog, type_, address=address - offset)
            if tr.address_ != top.value_():
                found.append(tr.address_of_())
            address = number(tr.list, "next")
    except _NO_MEMORY:
        pass
    # The newest is the first in the list.
    found.reverse()
    return found


class TraceEvent(NamedTuple):
    """An event that a kernel can record."""

    type: int
    system: str
    name: str
    kind: str
    """What registered it: tracepoint, syscall_enter, syscall_exit, kprobe, uprobe,
    fprobe, ftrace (what ftrace itself records) or other."""
    print_fmt: str
    fields: tuple[Field, ...]
    call: Object
    """``struct trace_event_call``"""


class TraceEvents:
    """The events of a kernel, each read when it is asked for."""

    def __init__(self, prog: Program) -> None:
        self.prog = prog
        # Renamed in 4.2.
        for name in ("struct trace_event_call", "struct ftrace_event_call"):
            with contextlib.suppress(LookupError):
                self._type: Type = prog.type(name)
                break
        else:
            raise FtraceError("this kernel has no trace events: CONFIG_EVENT_TRACING")
        self._addresses: dict[int, int] = {}
        self._index()
        self._known: dict[int, TraceEvent | None] = {}
        self._common: tuple[Field, ...] | None = None
        self._print_functions = {
            kind: self._address(name)
            for kind, name in (
                ("syscall_enter", "enter_syscall_print_funcs"),
                ("syscall_exit", "exit_syscall_print_funcs"),
                ("kprobe", "kprobe_funcs"),
                ("kretprobe", "kretprobe_funcs"),
                ("uprobe", "uprobe_funcs"),
                ("fprobe", "fentry_funcs"),
                ("fexit", "fexit_funcs"),
                ("synthetic", "synth_event_funcs"),
                ("eprobe", "eprobe_funcs"),
            )
        }

    def _address(self, name: str) -> int:
        try:
            return self.prog[name].address_ or -1
        except LookupError:
            return -1

    def _index(self) -> None:
        prog, type_ = self.prog, self._type
        link = (type_.member("list").bit_offset or 0) // 8
        event = type_.member("event")
        at = (event.bit_offset or 0) // 8
        at += (event.type.member("type").bit_offset or 0) // 8
        head = prog["ftrace_events"]
        seen = {head.address_}
        try:
            address = number(head, "next")
            while address not in seen and len(seen) < _MAX_EVENTS:
                seen.add(address)
                kind = prog.read_u32(address - link + at)
                self._addresses.setdefault(kind, address - link)
                address = prog.read_word(address)
        except _NO_MEMORY:
            pass

    def get(self, type_: int) -> TraceEvent | None:
        """Return the event that records of a type are of, or None."""
        if type_ not in self._known:
            address = self._addresses.get(type_)
            found = None
            if address is not None:
                with contextlib.suppress(*_NOT_THERE):
                    found = self._read(type_, address)
            self._known[type_] = found
        return self._known[type_]

    @property
    def common(self) -> tuple[Field, ...]:
        """The fields that all records begin with."""
        if self._common is None:
            found: tuple[Field, ...] = ()
            with contextlib.suppress(*_NOT_THERE):
                # A list of its own since 3.0 or so.
                found = tuple(self._fields(self.prog["ftrace_common_fields"]))
            self._common = found or _COMMON
        return self._common

    def _read(self, type_: int, address: int) -> TraceEvent:
        prog = self.prog
        call = Object(prog, self._type, address=address)
        loaded = call.read_()
        class_ = loaded.member_("class")[0].read_()
        system = read_string(prog, number(class_, "system"), 256)
        kind = self._kind(loaded, system)
        # In a union with the tracepoint since 3.16.
        where = number(loaded, "name")
        if self._flag(loaded, "TRACEPOINT") and self._type.has_member("tp"):
            where = number(loaded.tp[0], "name")
        print_fmt = ""
        with contextlib.suppress(FaultError):
            print_fmt = read_string(prog, number(loaded, "print_fmt"), 1 << 17)
        if kind == "syscall_enter":
            fields = Object(
                prog, "struct syscall_metadata", address=number(loaded, "data")
            ).enter_fields
        else:
            fields = loaded.member_("class").fields
        return TraceEvent(
            type_,
            system,
            read_string(prog, where, 256),
            kind,
            print_fmt,
            tuple(self._fields(fields)),
            call,
        )

    def _flag(self, call: Object, name: str) -> bool:
        try:
            value = self.prog.constant(f"TRACE_EVENT_FL_{name}").value_()
        except LookupError:
            return False
        return bool(number(call, "flags") & value)

    def _kind(self, call: Object, system: str) -> str:
        functions = number(call.event, "funcs")
        for kind, address in self._print_functions.items():
            if functions == address:
                return kind
        if system == "ftrace":
            return "ftrace"
        if self._flag(call, "TRACEPOINT"):
            return "tracepoint"
        return "other"

    def _fields(self, head: Object) -> Iterator[Field]:
        # The list has the last one first.
        prog = self.prog
        type_ = prog.type("struct ftrace_event_field")
        link = (type_.member("link").bit_offset or 0) // 8
        # Since "tracing: Fix TASK_COMM_LEN in trace event format file" (in v6.3).
        has_length = type_.has_member("len")
        end = head.address_
        found: list[Field] = []
        seen = {end}
        address = number(head, "next")
        while address not in seen and len(seen) < _MAX_FIELDS:
            seen.add(address)
            field = Object(prog, type_, address=address - link).read_()
            kind = read_string(prog, number(field, "type"), 1024)
            if "[" in kind and not kind.startswith("__") and has_length:
                # Then tracefs shows that, and not what the type says.
                length = number(field, "len")
                kind = f"{kind.partition('[')[0]}[{length or ''}]"
            found.append(
                Field(
                    read_string(prog, number(field, "name"), 256),
                    kind,
                    number(field, "offset"),
                    number(field, "size"),
                    bool(number(field, "is_signed")),
                )
            )
            address = number(field.link, "next")
        yield from reversed(found)


_COMMON = (
    Field("common_type", "unsigned short", 0, 2, False),
    Field("common_flags", "unsigned char", 2, 1, False),
    Field("common_preempt_count", "unsigned char", 3, 1, False),
    Field("common_pid", "int", 4, 4, True),
)


class Commands:
    """Names of tasks by pid, as the trace has them."""

    def __init__(self, prog: Program) -> None:
        self._prog = prog
        self._known: dict[int, str] = {0: "<idle>"}
        self._map: tuple[Object, Object, Object, int] | None = None
        with contextlib.suppress(*_NOT_THERE):
            self._map = self._find()

    def _find(self) -> tuple[Object, Object, Object, int]:
        prog = self._prog
        try:
            # Since "tracing: Introduce saved_cmdlines_size file" (in v3.16).
            saved = prog["savedcmd"][0]
            size = number(saved, "cmdline_num")
            pids = saved.map_pid_to_cmdline
            back, names = saved.map_cmdline_to_pid, saved.saved_cmdlines
        except KeyError:
            pids, back = prog["map_pid_to_cmdline"], prog["map_cmdline_to_pid"]
            names = prog["saved_cmdlines"]
            size = names.type_.length or 0
        return pids, back, names, size

    def get(self, pid: int) -> str:
        """Return the name of a task, ``<...>`` if it is not known."""
        found = self._known.get(pid)
        if found is None:
            found = "<XXX>" if pid < 0 else "<...>"
            if pid > 0:
                with contextlib.suppress(*_NOT_THERE):
                    found = self._look_up(pid) or found
            self._known[pid] = found
        return found

    def _look_up(self, pid: int) -> str | None:
        if self._map is None:
            return None
        pids, back, names, size = self._map
        length = pids.type_.length or 1
        # Up to 5.x nothing for larger pids; since then, by their low bits.
        slot = pids[pid & (length - 2) if length & 1 else pid % length].value_()
        if not 0 <= slot < size:
            return None
        if back[slot].value_() != pid:
            return None
        if names.type_.kind == TypeKind.ARRAY and (
            names.type_.type.kind == TypeKind.ARRAY
        ):
            raw = bytes(self._prog.read(names[slot].address_ or 0, 16))
        else:
            if names.type_.kind == TypeKind.POINTER:
                start = names.value_()
            else:
                start = names.address_ or 0
            raw = self._prog.read(start + 16 * slot, 16)
        return raw.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")

    def tgid(self, pid: int) -> int:
        """Return the thread group of a task, 0 if it is not known."""
        try:
            table = self._prog["tgid_map"]
            limit = 1 << 22
            with contextlib.suppress(KeyError):
                limit = self._prog["tgid_map_max"].value_()
            if not table.value_() or not 0 < pid <= limit:
                return 0
            return int(table[pid].value_())
        except _NOT_THERE:
            return 0

    def known(self) -> dict[int, str]:
        """Return all names that there are."""
        found: dict[int, str] = {}
        if self._map is not None:
            with contextlib.suppress(*_NOT_THERE):
                back, size = self._map[1], min(self._map[3], 1 << 16)
                for slot in range(size):
                    pid = int(back[slot].value_())
                    name = self.get(pid) if 0 < pid < 1 << 22 else "<"
                    if not name.startswith("<"):
                        found[pid] = name
        return found
