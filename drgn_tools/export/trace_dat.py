# SPDX-License-Identifier: LGPL-2.1-or-later
"""
trace.dat
---------

Writes trace buffers as a ``trace.dat`` of version 6, which all of trace-cmd and
KernelShark read: :manpage:`trace-cmd.dat.v6(5)`.

Its pages are made anew from the events, so that it does not matter how the kernel had
them, or how much of them had been read.
"""

from __future__ import annotations

import contextlib
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Callable, NamedTuple, Protocol

from drgn_tools import output
from drgn_tools.errors import DumpError
from drgn_tools.print_fmt import Field
from drgn_tools.text import printable

_MAGIC = b"\x17\x08\x44tracing6\0"
# Options of the file.
_OPTION_BUFFER, _OPTION_TRACECLOCK, _OPTION_UNAME = 3, 4, 5
# Of an event's header: how long its time is, and its types.
_DELTA_BITS = 27
_EXTEND = 30
_SHORT = 112
_COPY = 1 << 20
_MASK = (1 << 64) - 1


class Record(Protocol):
    """A record of a trace buffer."""

    @property
    def time(self) -> int:
        """In the units of the buffer's clock."""

    @property
    def data(self) -> bytes:
        """Fields that all records have, then those of its event."""


class Event(Protocol):
    """An event that records are of."""

    @property
    def type(self) -> int: ...
    @property
    def system(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def print_fmt(self) -> str: ...
    @property
    def fields(self) -> Sequence[Field]: ...


class Kernel(NamedTuple):
    """What the file says of the kernel that wrote the records."""

    little: bool
    """Its byte order."""
    word: int
    """Bytes of an unsigned long."""
    uname: str
    common: Sequence[Field]
    """Fields that all records begin with."""
    event: Callable[[int], Event | None]
    """The event of a type, None if there is none."""
    string: Callable[[int], str]
    """What is at an address that a record refers to."""
    symbols: Callable[[], Iterable[tuple[int, str, str]]]
    """Addresses, names and modules of functions."""
    commands: Callable[[], Mapping[int, str]]
    """Names of tasks, by pid."""


class Buffer(NamedTuple):
    """A trace buffer."""

    name: str
    """Of its instance; of the first buffer, none."""
    clock: str
    capacity: int
    """Bytes of records that a page has room for."""
    cpus: Mapping[int, Iterator[Record]]
    """Records of each CPU, in the order of their times."""


class _Placed(NamedTuple):
    # Where the pages of a CPU are, from the first page of all.
    offset: int
    size: int


def field_line(field: Field) -> str:
    """Return a field as a line of an event's ``format`` file."""
    type_, bracket, length = field.type.partition("[")
    if bracket and not field.type.startswith("__data_loc"):
        name = f"{type_} {field.name}[{length}"
    else:
        name = f"{field.type} {field.name}"
    return (
        f"\tfield:{name};\toffset:{field.offset};\tsize:{field.size};"
        f"\tsigned:{int(field.signed)};\n"
    )


def event_format(event: Event, common: Sequence[Field]) -> str:
    """Return the ``format`` file of an event."""
    return (
        f"name: {event.name}\nID: {event.type}\nformat:\n"
        + "".join(map(field_line, common))
        + "\n"
        + "".join(map(field_line, event.fields))
        + f"\nprint fmt: {event.print_fmt}\n"
    )


class _Pages:
    # Makes pages of events, one CPU after the other.

    def __init__(self, file: IO[bytes], size: int, kernel: Kernel) -> None:
        self._file = file
        self._size = size
        self._little = kernel.little
        order = "<" if kernel.little else ">"
        self._head = struct.Struct(order + ("QQ" if kernel.word == 8 else "QI"))
        self._word = struct.Struct(order + "I")
        self._two = struct.Struct(order + "II")
        self._written = 0

    def _header(self, type_len: int, delta: int) -> int:
        if self._little:
            return delta << 5 | type_len
        return type_len << _DELTA_BITS | delta

    def write(self, records: Iterator[Record]) -> _Placed:
        begin = self._written
        room = self._size - self._head.size
        body = bytearray()
        start = last = 0
        header, word, two = self._header, self._word.pack, self._two.pack
        for record in records:
            data = record.data
            if len(data) & 3:
                data += bytes(-len(data) & 3)
            need = len(data) + (4 if 0 < len(data) <= _SHORT else 8)
            time = record.time & _MASK
            delta = time - last
            extend = delta >> _DELTA_BITS
            if not body or delta < 0 or len(body) + need + 8 * bool(extend) > room:
                if body:
                    self._put(start, body)
                    body = bytearray()
                if need > room:
                    raise ValueError(f"an event of {len(data)} bytes cannot be")
                start, delta, extend = time, 0, 0
            if extend:
                if extend >> 32:
                    raise ValueError("two events are years apart")
                low = delta & ((1 << _DELTA_BITS) - 1)
                body += two(header(_EXTEND, low), extend)
                delta = 0
            if 0 < len(data) <= _SHORT:
                body += word(header(len(data) >> 2, delta))
            else:
                body += two(header(0, delta), len(data) + 4)
            body += data
            last = time
        if body:
            self._put(start, body)
        return _Placed(begin, self._written - begin)

    def _put(self, time: int, body: bytearray) -> None:
        page = self._head.pack(time, len(body)) + body
        self._file.write(page + bytes(self._size - len(page)))
        self._written += self._size


class _Seen:
    # What events refer to, which the file has to have.

    def __init__(self, kernel: Kernel) -> None:
        self.events: dict[int, Event] = {}
        self.formats: dict[int, str] = {}
        self.common = kernel.common
        self._kernel = kernel
        self._unknown: set[int] = set()
        order = "<" if kernel.little else ">"
        self._type = struct.Struct(order + "H").unpack_from
        self._long = struct.Struct(order + ("Q" if kernel.word == 8 else "I"))
        self._strings: dict[int, int] = {}

    def watch(self, records: Iterator[Record]) -> Iterator[Record]:
        known, unknown = self.events, self._unknown
        for record in records:
            data = record.data
            if len(data) < 8:
                continue
            type_ = self._type(data)[0]
            if type_ not in known and type_ not in unknown:
                self._add(type_)
            if type_ in self._strings:
                with contextlib.suppress(struct.error):
                    address = self._long.unpack_from(data, self._strings[type_])[0]
                    if address not in self.formats:
                        self.formats[address] = self._kernel.string(address)
            yield record

    def _add(self, type_: int) -> None:
        event = self._kernel.event(type_)
        if event is None:
            self._unknown.add(type_)
            return
        self.events[type_] = event
        for name, member in (("bprint", "fmt"), ("bputs", "str")):
            if event.system == "ftrace" and event.name == name:
                for field in event.fields:
                    if field.name == member:
                        self._strings[type_] = field.offset


def _header_page(kernel: Kernel, size: int) -> bytes:
    word, at = kernel.word, 8 + kernel.word
    rows = (
        ("u64 timestamp", 0, 8, 0),
        ("local_t commit", 8, word, 1),
        ("int overwrite", 8, 1, 1),
        ("char data", at, size - at, 1),
    )
    return "".join(
        f"\tfield: {name};\toffset:{offset};\tsize:{length};\tsigned:{signed};\n"
        for name, offset, length, signed in rows
    ).encode()


_HEADER_EVENT = b"""# compressed entry header
\ttype_len    :    5 bits
\ttime_delta  :   27 bits
\tarray       :   32 bits

\tpadding     : type == 29
\ttime_extend : type == 30
\ttime_stamp : type == 31
\tdata max type_len  == 28
"""


def _clock(buffer: Buffer) -> str:
    others = [name for name in ("local", "global") if name != buffer.clock]
    return " ".join([f"[{buffer.clock}]", *others]) + "\n"


def write_trace_dat(
    path: str, kernel: Kernel, buffers: Sequence[Buffer], force: bool
) -> None:
    """
    Write trace buffers, the kernel's own and instances', as one file.

    :param force: it may replace a file.

    :raises DumpError: if it cannot be written.
    """
    order = "<" if kernel.little else ">"
    cpus = 1 + max((cpu for buffer in buffers for cpu in buffer.cpus), default=0)
    capacity = max(buffer.capacity for buffer in buffers)
    size = 1 << (max(capacity, 4080) + 8 + kernel.word - 1).bit_length()
    seen = _Seen(kernel)
    with contextlib.ExitStack() as stack:
        (file,) = stack.enter_context(output.files(path, force=force))
        try:
            spool = stack.enter_context(tempfile.TemporaryFile())
            pages = _Pages(spool, size, kernel)
            placed = [
                {
                    cpu: pages.write(seen.watch(records))
                    for cpu, records in sorted(buffer.cpus.items())
                }
                for buffer in buffers
            ]
        except OSError as error:
            raise DumpError(f"cannot write the pages: {error.strerror}") from None
        head = bytearray(_MAGIC)
        head += struct.pack(order + "BBI", not kernel.little, kernel.word, size)
        for name, content in (
            (b"header_page", _header_page(kernel, size)),
            (b"header_event", _HEADER_EVENT),
        ):
            head += name + b"\0" + struct.pack(order + "Q", len(content)) + content
        head += _formats(seen, order)
        for text in (_kallsyms(kernel), _printk_formats(seen)):
            head += struct.pack(order + "I", len(text)) + text
        names = "".join(f"{pid} {comm}\n" for pid, comm in kernel.commands().items())
        known = names.encode("utf-8", "backslashreplace")
        head += struct.pack(order + "Q", len(known)) + known
        head += struct.pack(order + "I", cpus)
        tail = _options(kernel, buffers, placed, cpus, len(head), size, order)
        file.write(bytes(head) + tail, 0)
        at = _aligned(len(head) + len(tail), size)
        spool.seek(0)
        while chunk := spool.read(_COPY):
            file.write(chunk, at)
            at += len(chunk)
        file.finish(at)


def _aligned(offset: int, size: int) -> int:
    return (offset + size - 1) // size * size


def _formats(seen: _Seen, order: str) -> bytes:
    systems: dict[str, list[bytes]] = {"ftrace": []}
    for _, event in sorted(seen.events.items()):
        text = event_format(event, seen.common).encode("utf-8", "backslashreplace")
        text = struct.pack(order + "Q", len(text)) + text
        systems.setdefault(event.system, []).append(text)
    own = systems.pop("ftrace")
    made = struct.pack(order + "I", len(own)) + b"".join(own)
    made += struct.pack(order + "I", len(systems))
    for name, texts in systems.items():
        made += name.encode() + b"\0" + struct.pack(order + "I", len(texts))
        made += b"".join(texts)
    return made


def _kallsyms(kernel: Kernel) -> bytes:
    lines = []
    for address, name, module in kernel.symbols():
        # A word each, whatever a damaged table says.
        name, module = ("".join(printable(text).split()) for text in (name, module))
        lines.append(f"{address:016x} t {name}" + (f"\t[{module}]" if module else ""))
    return ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace")


def _printk_formats(seen: _Seen) -> bytes:
    escapes = str.maketrans({"\n": "\\n", "\t": "\\t", "\\": "\\\\", '"': '\\"'})
    return "".join(
        f'0x{address:x} : "{text.translate(escapes)}"\n'
        for address, text in seen.formats.items()
    ).encode("utf-8", "backslashreplace")


def _options(
    kernel: Kernel,
    buffers: Sequence[Buffer],
    placed: Sequence[Mapping[int, _Placed]],
    cpus: int,
    begin: int,
    page_size: int,
    order: str,
) -> bytes:
    # The options, and where each CPU's pages are; of instances, behind those of the
    # kernel's own buffer, with an option that says where.
    table = 10 + 16 * cpus
    uname = kernel.uname.encode("utf-8", "backslashreplace") + b"\0"
    clock = _clock(buffers[0]).encode() + b"\0"
    names = [buffer.name.encode("utf-8", "backslashreplace") for buffer in buffers]
    size = 10 + 2 + sum(6 + len(data) for data in (uname, clock))
    size += sum(6 + 8 + len(name) + 1 for name in names[1:])
    tables = begin + size
    first = _aligned(tables + table * len(buffers), page_size)

    def option(kind: int, data: bytes) -> bytes:
        return struct.pack(order + "HI", kind, len(data)) + data

    made = b"options  \0" + option(_OPTION_TRACECLOCK, clock)
    made += option(_OPTION_UNAME, uname)
    for i, name in enumerate(names[1:], 1):
        where = struct.pack(order + "Q", tables + i * table)
        made += option(_OPTION_BUFFER, where + name + b"\0")
    made += struct.pack(order + "H", 0)
    for cpus_of in placed:
        made += b"flyrecord\0"
        for cpu in range(cpus):
            offset, length = cpus_of.get(cpu, _Placed(0, 0))
            made += struct.pack(order + "QQ", first + offset, length)
    return made
