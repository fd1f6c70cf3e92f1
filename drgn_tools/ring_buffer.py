# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Trace Ring Buffer
-----------------

The ``drgn_tools.ring_buffer`` module reads the kernel's per-CPU trace ring buffer,
which ftrace and oprofile write to: :linux:`kernel/trace/ring_buffer.c` from 2.6.28 on.

Nothing here takes part in the kernel's own reading: events of a live kernel stay
where they are.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from heapq import merge
from operator import attrgetter
from typing import Any, Callable, NamedTuple

from drgn import FaultError, Object, PlatformFlags, Program, Type, TypeKind

from drgn_tools.variables import for_each_possible_cpu, page_size

__all__ = ("for_each_ring_buffer_event", "ring_buffer_cpus", "ring_buffer_stats")

Note = Callable[[str], object]
"""Told what could not be read, one line each."""

# More than anybody gives one CPU; and orders of a sub-buffer that the kernel allows.
_MAX_PAGES = 1 << 22
_MAX_ORDER = 7
# Of a counter that also counts updaters above (since 2.6.32), and of a page's commit.
_INDEX_MASK = 0xFFFFF
_MISSED_EVENTS = 1 << 31
_HEAD, _UPDATE = 1, 2
_FLAGS = _HEAD | _UPDATE
# What is before the first address is the last.
_ADDRESSES = (1 << 64) - 1


class RingEvent(NamedTuple):
    """An event of a ring buffer."""

    cpu: int
    """The CPU that wrote it."""
    time: int
    """When, in the units of the buffer's clock, mostly nanoseconds."""
    data: bytes
    """Its payload, with what alignment adds at the end."""
    state: str
    """unread, read or uncommitted."""
    note: str = ""
    """Why it is not to be trusted; empty if it is."""


class RingBufferStats(NamedTuple):
    """What one CPU's buffer says about itself."""

    cpu: int
    nr_pages: int
    """Sub-buffers, without that of the reader."""
    subbuf_size: int
    """Bytes of events in each."""
    entries: int
    """Events written since it was reset, those that are gone included."""
    overrun: int
    """Events that newer ones have overwritten."""
    read: int
    """Events that have been read."""
    commit_overrun: int
    """Events lost because a writer was interrupted for as long as the whole buffer."""
    dropped_events: int
    """Events that found no room in a buffer that does not overwrite."""
    entries_bytes: int
    read_bytes: int
    lost_events: int
    """Events that the last reader was not told of yet."""
    committing: int
    """Writers under way."""
    unread: int
    """Events that there are to read, by these counters."""


class _Layout(NamedTuple):
    # Where a kernel has what, in bytes.
    order: str
    word: int
    list: int
    next: int
    # Of buffer_page; -1 if it has none.
    write: int
    read: int
    page: int
    size: int
    stamp: int
    commit: int
    real_end: int
    # Of buffer_data_page.
    data: int
    page_commit: int
    # The ring's list has a head of its own, and no flags.
    headed: bool
    # What the lowest (big-endian: highest) 5 bits of an event's header mean.
    kinds: tuple[int, ...]
    little: bool
    page_size: int


# Kinds of events, as their headers have them since 2.6.31: 1 to 28 are data of so many
# words, 0 is data with its length in front.
_LONG, _PADDING, _EXTEND, _STAMP = 0, 29, 30, 31
# Of older kernels: a time stamp has 16 bytes, and discarded events their length in the
# header.
_OLD_STAMP, _OLD_PADDING = 32, 33


def _old_kinds(little: bool) -> tuple[int, ...]:
    kinds = []
    for bits in range(32):
        kind, length = (bits & 3, bits >> 2) if little else (bits >> 3, bits & 7)
        if kind == 0:
            kinds.append(_OLD_PADDING + length)
        else:
            kinds.append((0, _EXTEND, _OLD_STAMP, length)[kind])
    return tuple(kinds)


def _offset(type_: Type, name: str) -> int:
    if not type_.has_member(name):
        return -1
    return (type_.member(name).bit_offset or 0) // 8


def _layout(prog: Program) -> _Layout:
    found = prog.cache.get("drgn_tools_ring_buffer")
    if isinstance(found, _Layout):
        return found
    platform = prog.platform
    assert platform is not None
    little = bool(platform.flags & PlatformFlags.IS_LITTLE_ENDIAN)
    word = 8 if platform.flags & PlatformFlags.IS_64_BIT else 4
    page = prog.type("struct buffer_page")
    event = prog.type("struct ring_buffer_event")
    try:
        data = prog.type("struct buffer_data_page")
        at, commit = _offset(data, "data"), _offset(data, "commit")
    except LookupError:
        # Before 2.6.29, all but the events was in struct buffer_page.
        at, commit = 0, -1
    # Since "ring-buffer: make lockless" (in v2.6.32), "pages" is some element.
    pages = prog.type("struct ring_buffer_per_cpu").member("pages").type
    # Since 2.6.31; before, type and length were fields of their own.
    new = event.has_member("type_len")
    found = _Layout(
        "<" if little else ">",
        word,
        _offset(page, "list"),
        _offset(prog.type("struct list_head"), "next"),
        _offset(page, "write"),
        _offset(page, "read"),
        _offset(page, "page"),
        page.size or 0,
        _offset(page, "time_stamp"),
        _offset(page, "commit"),
        # Since 2.6.35.
        _offset(page, "real_end"),
        at,
        commit,
        pages.kind != TypeKind.POINTER,
        tuple(range(32)) if new else _old_kinds(little),
        little,
        page_size(prog),
    )
    prog.cache["drgn_tools_ring_buffer"] = found
    return found


def number(obj: Object, name: str) -> int:
    """
    Return a member, 0 if there is none: an integer, a pointer, or one of the kernel's
    structs around an integer (``local_t``, ...).
    """
    try:
        value: Any = obj.member_(name).value_()
    except LookupError:
        return 0
    while isinstance(value, dict) and value:
        value = next(iter(value.values()))
    return value if isinstance(value, int) else 0


class _Page(NamedTuple):
    # A struct buffer_page.
    address: int
    next: int
    write: int
    read: int
    page: int
    stamp: int
    # -1 if it is on the page.
    commit: int
    real_end: int


def _read_page(prog: Program, layout: _Layout, address: int) -> _Page:
    raw = prog.read(address & _ADDRESSES, layout.size)
    order, word = layout.order, layout.word
    code = "Q" if word == 8 else "I"

    def long(at: int, missing: int = 0) -> int:
        if at < 0:
            return missing
        value: int = struct.unpack_from(order + code, raw, at)[0]
        return value

    stamp = layout.stamp
    return _Page(
        address,
        long(layout.list + layout.next),
        long(layout.write) & _INDEX_MASK,
        struct.unpack_from(order + "I", raw, layout.read)[0],
        long(layout.page),
        struct.unpack_from(order + "Q", raw, stamp)[0] if stamp >= 0 else 0,
        long(layout.commit, -1),
        long(layout.real_end) & _INDEX_MASK,
    )


class _Ring(NamedTuple):
    # One CPU's buffer: the pages with events, oldest first.
    cpu: int
    reader: int
    commit: int
    tail: int
    consumed: list[_Page]
    unread: list[_Page]
    stats: RingBufferStats
    capacity: int


def _no_note(text: str) -> None:
    pass


def _cpu_buffers(buffer: Object) -> Iterator[tuple[int, Object]]:
    prog = buffer.prog_
    buffers = buffer.buffers
    for cpu in for_each_possible_cpu(prog):
        pointer = buffers[cpu]
        # NULL for a CPU that was never there.
        if pointer.value_():
            yield cpu, pointer


def ring_buffer_cpus(buffer: Object) -> list[int]:
    """
    Return the CPUs that have a buffer.

    :param buffer: ``struct trace_buffer *`` (``struct ring_buffer *`` before 5.6)
    :raises FaultError: if it is not in this dump.
    """
    return [cpu for cpu, _ in _cpu_buffers(buffer)]


def _order(buffer: Object) -> int:
    # Since "ring-buffer: Add interface for configuring trace sub buffer size"
    # (in v6.8).
    order = number(buffer, "subbuf_order")
    if not 0 <= order <= _MAX_ORDER:
        raise ValueError(f"the buffer's sub-buffer order, {order}, cannot be")
    return order


def _stats(cpu: int, cpu_buffer: Object, capacity: int) -> RingBufferStats:
    entries, overrun, read = (
        number(cpu_buffer, name) for name in ("entries", "overrun", "read")
    )
    # In struct ring_buffer until 3.5.
    nr_pages = number(cpu_buffer, "nr_pages")
    if not cpu_buffer.type_.has_member("nr_pages"):
        nr_pages = number(cpu_buffer.buffer[0], "pages")
    return RingBufferStats(
        cpu,
        nr_pages,
        capacity,
        entries,
        overrun,
        read,
        number(cpu_buffer, "commit_overrun"),
        # Since 3.8.
        number(cpu_buffer, "dropped_events"),
        number(cpu_buffer, "entries_bytes"),
        number(cpu_buffer, "read_bytes"),
        number(cpu_buffer, "lost_events"),
        number(cpu_buffer, "committing"),
        entries - overrun - read,
    )


def _capacity(buffer: Object, layout: _Layout) -> int:
    return (layout.page_size << _order(buffer)) - layout.data


def ring_buffer_stats(buffer: Object, cpu: int) -> RingBufferStats:
    """
    Return the counters of a CPU's buffer.

    Their difference, ``unread``, is what the kernel takes for the number of events
    that there are to read. In a dump a CPU may have been stopped between an event and
    its counters.

    :param buffer: ``struct trace_buffer *`` (``struct ring_buffer *`` before 5.6)
    :raises LookupError: if the buffer has no such CPU.
    :raises ValueError: if the buffer cannot be one.
    :raises FaultError: if it is not in this dump.
    """
    pointer = dict(_cpu_buffers(buffer)).get(cpu)
    if pointer is None:
        raise LookupError(f"the buffer has no CPU {cpu}")
    capacity = _capacity(buffer, _layout(buffer.prog_))
    return _stats(cpu, pointer[0].read_(), capacity)


def _walk(
    prog: Program, layout: _Layout, start: int, limit: int, note: Note
) -> list[tuple[_Page, int]]:
    # The pages of a ring from one of them on, each with the flags of the link to it.
    # That of the first is found when the ring is closed; if it is not, there is none.
    pages: list[tuple[_Page, int]] = []
    seen: set[int] = set()
    address, flags = start, 0
    while address not in seen:
        if len(pages) > limit:
            note(f"its list of pages is longer than the {limit} that it has")
            return pages
        seen.add(address)
        try:
            page = _read_page(prog, layout, address - layout.list)
        except FaultError:
            note(f"its struct buffer_page at {address - layout.list:#x} is not there")
            return pages
        pages.append((page, flags))
        flags = page.next & _FLAGS
        address = page.next & ~_FLAGS
    if address == start:
        pages[0] = (pages[0][0], flags)
    else:
        note("its list of pages is damaged: it has a loop")
    return pages


def _number_of(pages: list[_Page], address: int) -> int | None:
    return next((i for i, page in enumerate(pages) if page.address == address), None)


def _ring_pages(
    prog: Program, layout: _Layout, cpu_buffer: Object, limit: int, note: Note
) -> list[_Page]:
    # The pages of the ring from the head on.
    head, reader = (number(cpu_buffer, name) for name in ("head_page", "reader_page"))
    if layout.headed:
        # The list has a head, which is no page; head_page is never wrong.
        anchor = cpu_buffer.member_("pages").address_ or 0
        pages: list[_Page] = []
        seen = {anchor}
        address = number(cpu_buffer.member_("pages"), "next")
        while address not in seen and len(pages) <= limit:
            seen.add(address)
            try:
                page = _read_page(prog, layout, address - layout.list)
            except FaultError:
                note(f"its struct buffer_page at {address:#x} is not there")
                break
            pages.append(page)
            address = page.next
        for i, page in enumerate(pages):
            if page.address == head:
                return pages[i:] + pages[:i]
        if pages and _number_of(pages, reader) is None:
            note("its head page is not in its list of pages")
        return pages
    start = number(cpu_buffer, "pages") & ~_FLAGS
    if not start:
        return []
    walked = _walk(prog, layout, start, limit, note)
    found = [page for page, _ in walked]
    for wanted in (_HEAD, _UPDATE):
        for i, (_, flags) in enumerate(walked):
            if flags & _FLAGS == wanted:
                # What is being moved on from is given up already.
                i += wanted == _UPDATE
                return found[i:] + found[:i]
    note("none of its pages is marked as the head")
    # head_page is a hint, and may be old.
    for i, page in enumerate(found):
        if page.address == head:
            return found[i:] + found[:i]
    return found


def _ring(
    buffer: Object, layout: _Layout, cpu: int, pointer: Object, note: Note
) -> _Ring:
    prog = buffer.prog_
    address = pointer.value_()
    cpu_buffer = Object(prog, pointer.type_.type, address=address)
    loaded = cpu_buffer.read_()
    capacity = _capacity(buffer, layout)
    stats = _stats(cpu, loaded, capacity)
    limit = min(max(stats.nr_pages, 0) + 1, _MAX_PAGES)
    reader, commit, tail, head = (
        number(loaded, name)
        for name in ("reader_page", "commit_page", "tail_page", "head_page")
    )
    # The list's own head, where it has one, is known by its address.
    pages = _ring_pages(
        prog, layout, cpu_buffer if layout.headed else loaded, limit, note
    )
    unread: list[_Page] = []
    consumed: list[_Page] = []
    in_ring = {page.address for page in pages}
    if reader:
        try:
            unread.append(_read_page(prog, layout, reader))
        except FaultError:
            note(f"its reader page at {reader:#x} is not there")
    place = _number_of(pages, reader)
    if place is not None:
        # A reader was stopped after it had put its page into the ring in place of
        # the head, before that became its page.
        note("a reader was about to take a page")
        pages = pages[place + 1 :] + pages[:place]
        if head and head not in in_ring:
            try:
                unread.append(_read_page(prog, layout, head))
            except FaultError:
                note(f"the page that it took, at {head:#x}, is not there")
    if any(page.address in (commit, tail) for page in unread):
        if any(page.address == commit for page in unread):
            tails = [i for i, page in enumerate(pages) if page.address == tail]
            last = tails[0] + 1 if tails else 0
            return _Ring(
                cpu,
                reader,
                commit,
                tail,
                pages[last:],
                unread + pages[:last],
                stats,
                capacity,
            )
        note("its tail page is behind its commit page")
    ends = [i for i, page in enumerate(pages) if page.address in (commit, tail)]
    if ends:
        unread += pages[: ends[-1] + 1]
        consumed = pages[ends[-1] + 1 :]
    else:
        note("its commit page is not in its list of pages")
        unread += pages
    return _Ring(cpu, reader, commit, tail, consumed, unread, stats, capacity)


class _Decoded(NamedTuple):
    events: list[tuple[int, int, int]]
    # Bytes that were decoded, and the time then.
    end: int
    time: int
    # Why no more was.
    why: str


def _decode(
    words: tuple[int, ...], start: int, end: int, time: int, layout: _Layout
) -> _Decoded:
    # Events of a page as times, and where in the page's data they are. A word is what
    # everything is aligned to.
    events: list[tuple[int, int, int]] = []
    append = events.append
    kinds, little = layout.kinds, layout.little
    i, n = start >> 2, end >> 2
    why = ""
    while i < n:
        word = words[i]
        if little:
            kind, delta = kinds[word & 31], word >> 5
        else:
            kind, delta = kinds[word >> 27], word & 0x7FFFFFF
        i += 1
        if 0 < kind < _PADDING:
            then = i + kind
            if then > n:
                why = "an event is longer than what is left of its page"
                break
            time += delta
            append((time, i << 2, then << 2))
            i = then
            continue
        if kind > _OLD_STAMP:
            if not delta:
                return _Decoded(events, end, time, "")
            if kind > _OLD_PADDING:
                time += delta
                i += kind - _OLD_PADDING
                continue
            kind = _PADDING
        if kind == _PADDING and not delta:
            # Nothing more is on this page.
            return _Decoded(events, end, time, "")
        if i >= n:
            why = "an event is cut"
            break
        size = words[i]
        if kind == _EXTEND:
            time += (size << 27) + delta
            i += 1
        elif kind == _STAMP:
            stamp = (size << 27) + delta
            # They have 59 bits, of a clock that has more.
            high = time & (31 << 59)
            if high:
                stamp |= high
                if stamp < time:
                    stamp += 1 << 59
            time = stamp
            i += 1
        elif kind == _OLD_STAMP:
            i += 3
        else:
            then = i + ((size + 3) >> 2)
            if size < 4 or then > n:
                why = f"an event of {size} bytes cannot be"
                break
            if kind == _LONG:
                time += delta
                append((time, (i + 1) << 2, (i << 2) + size))
            elif delta != 1:
                # Discarded, but time has passed.
                time += delta
            i = then
    if why:
        i -= 1
    return _Decoded(events, i << 2, time, why)


def _page_events(
    prog: Program,
    layout: _Layout,
    ring: _Ring,
    page: _Page,
    states: frozenset[str],
    note: Note,
) -> tuple[list[RingEvent], int]:
    # The events of a page that are wanted, and how many are unread.
    size = ring.capacity + layout.data
    try:
        raw = prog.read(page.page, size)
    except FaultError:
        note(f"its page at {page.page:#x} is not in this dump")
        return [], 0
    time, commit = page.stamp, page.commit
    missed = ""
    if commit < 0:
        (time,) = struct.unpack_from(layout.order + "Q", raw)
        code = "Q" if layout.word == 8 else "I"
        (commit,) = struct.unpack_from(layout.order + code, raw, layout.page_commit)
        if commit & _MISSED_EVENTS:
            # Since 7.x also on pages of the ring, of buffers that outlive the kernel.
            missed = "events are missing before it"
    commit &= _INDEX_MASK
    if (commit or page.write) and raw.count(0) == size:
        # Excluded pages of an ELF dump read as zeros.
        note(f"its page at {page.page:#x} is not in this dump: it is all zero")
        return [], 0
    if commit > ring.capacity:
        note(f"its page at {page.page:#x} says {commit} bytes, which cannot be")
        commit = min(page.write, ring.capacity)
    words = struct.unpack_from(f"{layout.order}{ring.capacity >> 2}I", raw, layout.data)
    read = min(page.read, commit) if page.address == ring.reader else 0
    write = commit
    if "uncommitted" in states:
        # What was written over the end is not there.
        ends = [min(page.write, ring.capacity)]
        if page.real_end and page.address != ring.tail:
            ends.append(page.real_end)
        write = max(commit, min(ends))
    events: list[RingEvent] = []
    unread = at = 0
    new, cpu, base = tuple.__new__, ring.cpu, layout.data
    for state, end in (("read", read), ("unread", commit), ("uncommitted", write)):
        if at >= end:
            continue
        decoded = _decode(words, at, end, time, layout)
        if state in states:
            if state == "uncommitted":
                why = "it was not committed"
                events += (
                    RingEvent(cpu, when, raw[base + a : base + b], state, why)
                    for when, a, b in decoded.events
                )
            else:
                events += [
                    new(RingEvent, (cpu, when, raw[base + a : base + b], state, missed))
                    for when, a, b in decoded.events
                ]
        if state == "unread":
            unread = len(decoded.events)
        at, time = decoded.end, decoded.time
        if decoded.why:
            if state != "uncommitted":
                note(f"its page at {page.page:#x} is torn at {at}: {decoded.why}")
            break
    if missed:
        note(f"events before those of its page at {page.page:#x} are lost")
        events[1:] = [event._replace(note="") for event in events[1:]]
    return events, unread


def _consumed_events(
    prog: Program, layout: _Layout, ring: _Ring, page: _Page
) -> list[RingEvent]:
    # What is left of a page that was read: it says no longer how much that was.
    try:
        raw = prog.read(page.page, ring.capacity + layout.data)
    except FaultError:
        return []
    if layout.stamp >= 0:
        time = page.stamp
    else:
        (time,) = struct.unpack_from(layout.order + "Q", raw)
    words = struct.unpack_from(f"{layout.order}{ring.capacity >> 2}I", raw, layout.data)
    decoded = _decode(words, 0, ring.capacity, time, layout)
    why = "its page was given back: it may be older than it seems"
    if not time:
        # 7.2 clears it.
        why = "its page was given back: its time counts from that page's first event"
    base = layout.data
    return [
        RingEvent(ring.cpu, when, raw[base + a : base + b], "read", why)
        for when, a, b in decoded.events
    ]


def _cpu_events(
    buffer: Object, cpu: int, pointer: Object, states: frozenset[str], note: Note
) -> Iterator[RingEvent]:
    prog = buffer.prog_
    layout = _layout(prog)

    def say(text: str) -> None:
        note(f"CPU {cpu}: {text}")

    try:
        ring = _ring(buffer, layout, cpu, pointer, say)
    except FaultError:
        say(f"its struct ring_buffer_per_cpu at {pointer.value_():#x} is not there")
        return
    if "read" in states:
        for page in ring.consumed:
            yield from _consumed_events(prog, layout, ring, page)
    found = 0
    for page in ring.unread:
        events, count = _page_events(prog, layout, ring, page, states, say)
        found += count
        yield from events
    if found != ring.stats.unread:
        say(f"its counters promise {ring.stats.unread} unread events, it has {found}")


def for_each_ring_buffer_event(
    buffer: Object,
    cpu: int | None = None,
    *,
    read: bool = False,
    uncommitted: bool = False,
    note: Note = _no_note,
) -> Iterator[RingEvent]:
    """
    Iterate over the events that nobody has read yet, of one CPU or of all in the
    order of their times.

    :param buffer: ``struct trace_buffer *`` (``struct ring_buffer *`` before 5.6)
    :param cpu: Of this one only.
    :param read: Also those that were read and are still there. Of pages that were
        given back, what is there is a guess: the caller checks the data.
    :param uncommitted: Also those that were not committed, after the others of
        their CPU.
    :param note: Called with what is missing or torn, a line each; and with the
        difference where a CPU's counters do not promise the events that it has.
    :raises LookupError: if the buffer has no such CPU, or this kernel no ring buffer.
    :raises ValueError: if the buffer cannot be one.
    :raises FaultError: if it is not in this dump.
    """
    states = {"unread"}
    if read:
        states.add("read")
    if uncommitted:
        states.add("uncommitted")
    chosen = frozenset(states)
    buffers = dict(_cpu_buffers(buffer))
    if cpu is not None:
        if cpu not in buffers:
            raise LookupError(f"the buffer has no CPU {cpu}")
        buffers = {cpu: buffers[cpu]}
    _capacity(buffer, _layout(buffer.prog_))
    streams = [
        _cpu_events(buffer, number, pointer, chosen, note)
        for number, pointer in buffers.items()
    ]
    if len(streams) == 1:
        return streams[0]
    # As the kernel: of several with the same time, that of the first CPU.
    return merge(*streams, key=attrgetter("time"))
