# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Records of oprofile
-------------------

What is in oprofile's buffers, from bytes: samples of the CPUs' buffers in the formats
of all kernels that had them, and the event buffer's words. Nothing here needs drgn.
From :linux:`drivers/oprofile/`, which left the kernel in 5.12.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Callable, NamedTuple

Note = Callable[[str], object]
"""Told what cannot be what it should be, one line each."""

Record = tuple[int, int, bytes, str, str]
"""CPU, time, data, state and why it is not to be trusted: a ``RingEvent``, or what is
made to look like one."""

UNKNOWN, USER, KERNEL, XEN = -1, 0, 1, 2
"""What a CPU was in when the sample was taken."""

MODES = {UNKNOWN: "unknown", USER: "user", KERNEL: "kernel", XEN: "xen"}
"""And what to call it."""

# Flags of a record that is no sample, with data[]: since Linux kernel commits
# ae735e9964b4 and 1acda878e20e (in v2.6.29 or v2.6.30).
_KERNEL_CTX_SWITCH, _IS_KERNEL, _TRACE_BEGIN, _USER_CTX_SWITCH = 1, 2, 4, 8
_FLAGS = 15

# Codes of one before that, beside modes and task pointers, and how many words follow.
_CPU_TRACE_BEGIN, _CPU_IBS_FETCH, _CPU_IBS_OP = 2, 3, 4
# Of kernels for Xen, which have a mode more.
_XEN_TRACE_BEGIN, _XEN_DOMAIN_SWITCH = 3, 4

_IBS_FETCH_CODE, _IBS_OP_CODE = 13, 14
# Codes in data[] and in the event buffer, and how many words follow; ibs_op has one
# more where branch targets are recorded (since 2.6.37).
_IBS = {_IBS_FETCH_CODE: ("ibs_fetch", 6), _IBS_OP_CODE: ("ibs_op", 12)}

IBS_NAMES = {
    "ibs_fetch": ("linear", "fetch_ctl", "physical"),
    "ibs_op": (
        *("rip", "op_data", "op_data2", "op_data3"),
        *("dc_linear", "dc_physical", "branch_target"),
    ),
}
"""What the values of these samples are, in order."""


class Format(NamedTuple):
    """How a kernel stores records."""

    word: int = 8
    """Bytes of an unsigned long."""
    byteorder: str = "little"
    data: bool = True
    """``struct op_sample`` has ``data[]``."""
    xen: bool = False
    """It is a dom0's, with a mode for the hypervisor."""

    @property
    def escape(self) -> int:
        """What is no address: ~0UL."""
        return (1 << 8 * self.word) - 1

    def words(self, data: bytes) -> tuple[int, ...]:
        """As many as there are."""
        count = len(data) // self.word
        code = "Q" if self.word == 8 else "I"
        order = "<" if self.byteorder == "little" else ">"
        return struct.unpack_from(f"{order}{count}{code}", data)


class Sample(NamedTuple):
    """A sample as it is in a CPU's buffer."""

    cpu: int
    time: int
    """By the ring buffer's clock, nanoseconds; 0 where samples have none."""
    state: str
    """unread, read or uncommitted."""
    mode: int
    """USER, KERNEL, XEN or UNKNOWN."""
    task: int
    """``struct task_struct *``, 0 if unknown."""
    eip: int
    event: int
    """Number of the counter."""
    trace: tuple[int, ...]
    """Return addresses, the innermost first."""
    kind: str
    """sample, ibs_fetch or ibs_op."""
    data: tuple[int, ...]
    """Of the latter two, see IBS_NAMES."""
    note: str
    """Why it is not to be trusted; empty if it is."""


def _no_note(text: str) -> None:
    pass


def _halves(words: Sequence[int]) -> tuple[int, ...]:
    # IBS has 64-bit values as two words of 32 bits; a branch target is whole.
    values = [
        (words[i] & 0xFFFFFFFF) | (words[i + 1] & 0xFFFFFFFF) << 32
        for i in range(0, len(words) - 1, 2)
    ]
    if len(words) % 2:
        values.append(words[-1])
    return tuple(values)


def decode_samples(
    records: Iterable[Record], fmt: Format, note: Note = _no_note
) -> Iterator[Sample]:
    """
    Decode the records of one CPU, in order.

    :param note: Told of records that cannot be.
    """
    return (_by_flags if fmt.data else _by_codes)(records, fmt, note)


class _Context:
    # What goes for the samples that follow, and one whose callers are still to come.

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.mode, self.task = UNKNOWN, 0
        # A trace begins with the next sample.
        self.begun = False
        self.open: tuple[int, int, str, int, int, int, int, str] | None = None
        self.callers: list[int] = []

    def close(self) -> Sample | None:
        """Return the sample whose trace has ended."""
        if self.open is None:
            return None
        cpu, time, state, mode, task, eip, event, why = self.open
        trace = tuple(self.callers)
        self.open, self.callers = None, []
        return Sample(
            cpu, time, state, mode, task, eip, event, trace, "sample", (), why
        )


_LATER = "what came before it is lost"


def _by_flags(records: Iterable[Record], fmt: Format, note: Note) -> Iterator[Sample]:
    two = 2 * fmt.word
    order = "<" if fmt.byteorder == "little" else ">"
    pair = struct.Struct(order + ("QQ" if fmt.word == 8 else "II")).unpack_from
    escape, new = fmt.escape, tuple.__new__
    context = _Context()
    mode, task, last = UNKNOWN, 0, 0
    for cpu, time, data, state, why in records:
        if len(data) < two:
            note(f"CPU {cpu}: a record of {len(data)} bytes cannot be")
            continue
        eip, event = pair(data)
        if state == "read":
            if time < last:
                # Another page, of which it is not known what was in force.
                done = context.close()
                if done:
                    yield done
                context.forget()
                mode, task = UNKNOWN, 0
            last = time
            # Of a page that was given back, the rest is older, or nothing.
            if why and not _plausible(eip, event, len(data), fmt):
                context.forget()
                mode, task = UNKNOWN, 0
                continue
        if eip != escape:
            if context.open is not None:
                if not event and state == context.open[2]:
                    context.callers.append(eip)
                    continue
                done = context.close()
                if done:
                    yield done
            if context.begun:
                context.begun = False
                context.open = (cpu, time, state, mode, task, eip, event, why)
            else:
                if mode < 0 and not why:
                    why = _LATER
                yield new(
                    Sample,
                    (cpu, time, state, mode, task, eip, event, (), "sample", (), why),
                )
            continue
        done = context.close()
        if done:
            yield done
        if event & ~_FLAGS:
            note(f"CPU {cpu}: a record with flags {event:#x} cannot be")
            context.forget()
            mode, task = UNKNOWN, 0
            continue
        if event & _TRACE_BEGIN:
            context.begun = True
        if event & _KERNEL_CTX_SWITCH:
            mode = KERNEL if event & _IS_KERNEL else USER
        rest = fmt.words(data)[2:]
        if event & _USER_CTX_SWITCH:
            if rest:
                task, rest = rest[0], rest[1:]
            else:
                note(f"CPU {cpu}: a switch to no task cannot be")
                task = 0
        if rest:
            found = _ibs(rest)
            if found is None:
                note(f"CPU {cpu}: a record with code {rest[0]:#x} cannot be")
                continue
            kind, pc, values = found
            yield Sample(cpu, time, state, mode, task, pc, 0, (), kind, values, why)
    done = context.close()
    if done:
        yield done


def _ibs(words: Sequence[int]) -> tuple[str, int, tuple[int, ...]] | None:
    # Kind, pc and values of a record's data.
    if len(words) < 2 or words[0] not in _IBS:
        return None
    kind, count = _IBS[words[0]]
    payload = words[2 : 3 + count] if kind == "ibs_op" else words[2 : 2 + count]
    if len(payload) < count:
        return None
    return kind, words[1], _halves(payload)


def _plausible(eip: int, event: int, size: int, fmt: Format) -> bool:
    # Whether bytes that may be anything look like a record.
    if eip != fmt.escape:
        # Counters are few, even with virtual ones.
        canonical = fmt.word == 4 or not 0 < eip >> 47 < 0x1FFFF
        return size == 2 * fmt.word and event < 1024 and canonical
    if event & ~_FLAGS:
        return False
    words = size // fmt.word - 2 - bool(event & _USER_CTX_SWITCH)
    # In a data record, code and pc come first.
    return words in (0, 8, 14, 15) and bool(event or words)


def _by_codes(records: Iterable[Record], fmt: Format, note: Note) -> Iterator[Sample]:
    escape = fmt.escape
    modes = 3 if fmt.xen else 2
    trace = _XEN_TRACE_BEGIN if fmt.xen else _CPU_TRACE_BEGIN
    wanted = {} if fmt.xen else {_CPU_IBS_FETCH: 6, _CPU_IBS_OP: 12}
    context = _Context()
    mode, task = UNKNOWN, 0
    domain = ""
    # What follows is no record: the values of an IBS sample, or a domain.
    code, missing = 0, 0
    values: list[int] = []
    for cpu, time, data, state, why in records:
        if len(data) < 2 * fmt.word:
            note(f"CPU {cpu}: a record of {len(data)} bytes cannot be")
            continue
        eip, event = fmt.words(data)[:2]
        if missing:
            values += (eip, event)
            missing -= 2
            if missing:
                continue
            if fmt.xen:
                domain = f"of domain {eip}"
                continue
            kind, _ = _IBS[_IBS_FETCH_CODE + code - _CPU_IBS_FETCH]
            found = _halves(values)
            pc = found[0]
            yield Sample(cpu, time, state, mode, task, pc, 0, (), kind, found, why)
            continue
        if eip != escape:
            if context.open is not None:
                if not event and state == context.open[2]:
                    context.callers.append(eip)
                    continue
                done = context.close()
                if done:
                    yield done
            why = why or domain
            if context.begun:
                context.begun = False
                context.open = (cpu, time, state, mode, task, eip, event, why)
                continue
            if mode < 0 and not why:
                why = _LATER
            yield Sample(
                cpu, time, state, mode, task, eip, event, (), "sample", (), why
            )
            continue
        done = context.close()
        if done:
            yield done
        if event < modes:
            mode = event
        elif event == trace:
            context.begun = True
        elif event in wanted or (fmt.xen and event == _XEN_DOMAIN_SWITCH):
            code, missing, values = event, wanted.get(event, 2), []
        else:
            task, domain = event, ""
    done = context.close()
    if done:
        yield done


class Entry(NamedTuple):
    """A piece of the event buffer."""

    position: int
    """Of its first word."""
    kind: str
    """sample, ibs_fetch, ibs_op, spu_sample; a switch, see SWITCHES; unknown or cut."""
    values: tuple[int, ...]
    """A sample's offset and event; what follows a code; else the words."""


SWITCHES = {
    1: ("ctx_switch", ("pid", "exec_cookie")),
    2: ("cpu_switch", ("cpu",)),
    3: ("cookie_switch", ("cookie",)),
    4: ("kernel_enter", ()),
    5: ("kernel_exit", ()),
    6: ("module_loaded", ()),
    # Behind every ctx_switch.
    7: ("ctx_tgid", ("tgid",)),
    8: ("trace_begin", ()),
    9: ("trace_end", ()),
    10: ("xen_enter", ()),
    # Where it is not Cell's spu_profiling.
    11: ("domain_switch", ("domain",)),
    12: (
        "spu_ctx_switch",
        ("spu", "pid", "tgid", "exec_cookie", "cookie", "offset"),
    ),
}
"""Codes of the event buffer but IBS: what they are called, and what follows."""

_SPU_PROFILING = 11


def decode_event_buffer(
    words: Sequence[int], fmt: Format, *, cell: bool = False, targets: bool = False
) -> Iterator[Entry]:
    """
    Take the event buffer to pieces.

    :param cell: of a Cell, whose code 11 says that samples of SPUs follow.
    :param targets: ibs_op records have branch targets.
    """
    escape, end = fmt.escape, len(words)
    at, spu = 0, False
    while at < end:
        first = words[at]
        if first != escape and spu:
            yield Entry(at, "spu_sample", (first >> 32, first & 0xFFFFFFFF))
            at += 1
            continue
        if at + 1 >= end:
            yield Entry(at, "cut", (first,))
            return
        code = words[at + 1]
        if first != escape:
            if code == escape:
                # An event has no such number: something before it is lost.
                yield Entry(at, "unknown", (first,))
                at += 1
                continue
            yield Entry(at, "sample", (first, code))
            at += 2
            continue
        if code in _IBS:
            kind, count = _IBS[code]
            # The offset is in front.
            count += 1 + (targets and kind == "ibs_op")
        elif code == _SPU_PROFILING and cell:
            kind, count, spu = "spu_profiling", 1, True
        elif code in SWITCHES:
            kind, names = SWITCHES[code]
            count = len(names)
        else:
            yield Entry(at, "unknown", (first, code))
            # An escape may be the start of something.
            at += 1 if code == escape else 2
            continue
        values = tuple(words[at + 2 : at + 2 + count])
        if len(values) < count:
            yield Entry(at, "cut", (first, code, *values))
            return
        yield Entry(at, kind, values)
        at += 2 + count


class SyncedSample(NamedTuple):
    """A sample of the event buffer, with what goes for it."""

    position: int
    """In the buffer, in words."""
    cpu: int
    """-1 if unknown, as is a pid."""
    mode: int
    pid: int
    tgid: int
    exec_cookie: int
    """Of the program; 0 if it has none."""
    cookie: int
    """Of the file; 0 for anonymous memory, ~0 if there is none."""
    offset: int
    """In the file, or an address."""
    event: int
    trace: tuple[tuple[int, int], ...]
    """Callers: cookie and offset."""
    kind: str
    """sample, ibs_fetch, ibs_op or spu_sample."""
    data: tuple[int, ...]
    """Of IBS, see IBS_NAMES."""


def synced_samples(entries: Iterable[Entry], fmt: Format) -> Iterator[SyncedSample]:
    """Say of each sample of the event buffer what goes for it."""
    invalid = fmt.escape
    cpu, mode, pid, tgid, program, cookie = -1, UNKNOWN, -1, -1, 0, invalid
    begun = False
    opened: SyncedSample | None = None
    callers: list[tuple[int, int]] = []
    # What SPUs do, each for itself.
    spus: dict[int, tuple[int, int, int, int, int]] = {}
    for entry in entries:
        kind, values = entry.kind, entry.values
        if kind == "sample":
            offset, event = values
            if opened is not None and not event:
                callers.append((cookie, offset))
                continue
            if opened is not None:
                yield opened._replace(trace=tuple(callers))
                opened = None
            sample = SyncedSample(
                *(entry.position, cpu, mode, pid, tgid, program, cookie),
                *(offset, event, (), kind, ()),
            )
            if begun:
                begun, opened, callers = False, sample, []
            else:
                yield sample
            continue
        if kind == "cookie_switch":
            # Also in the middle of a trace.
            (cookie,) = values
            continue
        if opened is not None:
            yield opened._replace(trace=tuple(callers))
            opened = None
        if kind == "cpu_switch":
            # A sync begins, and knows nothing.
            cpu, mode, cookie, begun = values[0], UNKNOWN, invalid, False
        elif kind == "ctx_switch":
            pid, program = values
            tgid = pid
        elif kind == "ctx_tgid":
            (tgid,) = values
        elif kind in ("kernel_enter", "kernel_exit", "xen_enter"):
            mode = {"kernel_enter": KERNEL, "kernel_exit": USER}.get(kind, XEN)
        elif kind == "trace_begin":
            begun = True
        elif kind in IBS_NAMES:
            yield SyncedSample(
                *(entry.position, cpu, mode, pid, tgid, program, cookie),
                *(values[0], 0, (), kind, _halves(values[1:])),
            )
        elif kind == "spu_ctx_switch":
            spus[values[0]] = (values[1], values[2], values[3], values[4], values[5])
        elif kind == "spu_sample":
            spu, offset = values
            owner = spus.get(spu, (-1, -1, 0, invalid, 0))
            yield SyncedSample(
                *(entry.position, spu, USER, owner[0], owner[1], owner[2], owner[3]),
                *(offset, 0, (), kind, ()),
            )
        elif kind == "unknown":
            mode, begun = UNKNOWN, False
    if opened is not None:
        yield opened._replace(trace=tuple(callers))
