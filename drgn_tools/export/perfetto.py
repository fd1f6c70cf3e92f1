# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Perfetto's traces
-----------------

Events as a file of packets, as ``protos/perfetto/trace`` of Perfetto has them, for
https://ui.perfetto.dev and trace_processor. Names are said once and then referred to
by number, so that an event takes some thirty bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar

from drgn_tools.export.protobuf import message, number, text, varint

# Fields of Trace and TracePacket.
_PACKET = 1
_FTRACE_EVENTS, _PROCESS_TREE, _TIMESTAMP, _SEQUENCE = 1, 2, 8, 10
_TRACK_EVENT, _INTERNED, _FLAGS, _TRACK_DESCRIPTOR = 11, 12, 13, 60
# Of TrackDescriptor.
_UUID, _PARENT, _NAME, _ORDERING, _RANK, _DESCRIPTION = 1, 5, 2, 11, 12, 14
_EXPLICIT = 3
# Of TrackEvent, and of DebugAnnotation.
_ANNOTATION, _TYPE, _NAME_IID, _TRACK = 4, 9, 10, 11
_KINDS = {"begin": 1, "end": 2, "instant": 3}
_ANNOTATION_IID, _ANNOTATION_TEXT_IID, _ANNOTATION_TEXT = 1, 17, 6
# Of InternedData.
_EVENT_NAMES, _ANNOTATION_NAMES, _ANNOTATION_TEXTS = 2, 3, 29
# Of TracePacket's flags: what was said once is forgotten, or is needed.
_CLEARED, _NEEDED = 1, 2

_CHUNK = 1 << 18
_Key = TypeVar("_Key")
# How much of what comes again is kept.
_KEPT = 1 << 16
# Numbers of up to 14 bits, and the low 14 bits of one whose others follow.
_SMALL = [varint(number_) for number_ in range(1 << 14)]
_LOW = [bytes((low & 0x7F | 0x80, low >> 7 | 0x80)) for low in range(1 << 14)]


class Track(NamedTuple):
    """A line of the picture."""

    uuid: int
    """Of all of the file."""
    name: str
    parent: int = 0
    """The track that it is shown in, which has been before."""
    rank: int = 0
    """Where among those."""
    description: str = ""


class Event(NamedTuple):
    """Something on a track."""

    time: int
    """Nanoseconds."""
    track: int
    kind: str
    """instant; begin or end of what takes time."""
    name: str = ""
    details: tuple[tuple[str, str], ...] = ()
    """Names, and what is said of each."""


class Thread(NamedTuple):
    """A task, before the first :class:`KernelEvent` that speaks of it."""

    time: int
    pid: int
    tgid: int
    comm: str


class KernelEvent(NamedTuple):
    """An event of :data:`SCHEDULING`, of which Perfetto makes more than a mark."""

    time: int
    cpu: int
    pid: int
    name: str
    values: Mapping[str, int | str]
    """Of its fields, by their names in the kernel."""


class Sequence:
    """
    Makes packets, whose times do not fall.

    :param number_: of all of the file, from 1.
    :param often: names of details of which many events say the same.
    """

    def __init__(self, number_: int, often: Iterable[str] = ()) -> None:
        self._often = frozenset(often)
        # By kind of name, a number for each.
        self._known: dict[int, dict[str, int]] = {
            _EVENT_NAMES: {},
            _ANNOTATION_NAMES: {},
            _ANNOTATION_TEXTS: {},
        }
        self._new = b""
        self._sequence = number(_SEQUENCE, number_)

    def packets(
        self, items: Iterable[Track | Event | Thread | KernelEvent]
    ) -> Iterator[bytes]:
        """Return what is in the file of some items, in pieces of some size."""
        sequence, needed = self._sequence, number(_FLAGS, _NEEDED)
        chunk = bytearray(message(_PACKET, sequence, number(_FLAGS, _CLEARED)))
        # What comes again and again: there may be millions.
        fixed = sequence + needed + varint(_TRACK_EVENT << 3 | 2)
        heads: dict[tuple[int, str, str], bytes] = {}
        details: dict[tuple[tuple[str, str], ...], bytes] = {}
        upper, high = 0, varint(0)
        for item in items:
            if not isinstance(item, Event):
                chunk += message(_PACKET, sequence, _other(item))
                continue
            time, key, said = item[0], item[1:4], item[4]
            head = heads.get(key)
            if head is None:
                head = _keep(heads, key, self._head(*key))
            notes = details.get(said)
            if notes is None:
                notes = _keep(details, said, self._details(said))
            if self._new:
                interned = message(_INTERNED, self._new)
                chunk += message(_PACKET, sequence, needed, interned)
                self._new = b""
            if time >> 14 != upper:
                upper = time >> 14
                high = varint(upper)
            size = len(head) + len(notes)
            length = _SMALL[size] if size < 1 << 14 else varint(size)
            when = _LOW[time & 0x3FFF] + high if upper else _SMALL[time]
            # Of all that follows the length.
            size += 1 + len(when) + len(fixed) + len(length)
            chunk += b"\x0a"
            chunk += _SMALL[size] if size < 1 << 14 else varint(size)
            chunk += b"\x40" + when
            chunk += fixed + length + head + notes
            if len(chunk) >= _CHUNK:
                yield bytes(chunk)
                chunk.clear()
        yield bytes(chunk)

    def _head(self, track: int, kind: str, name: str) -> bytes:
        head = number(_TRACK, track) + number(_TYPE, _KINDS[kind])
        if name:
            head += number(_NAME_IID, self._number(_EVENT_NAMES, name))
        return head

    def _details(self, details: tuple[tuple[str, str], ...]) -> bytes:
        made = b""
        for name, said in details:
            of = number(_ANNOTATION_IID, self._number(_ANNOTATION_NAMES, name))
            if name in self._often:
                iid = self._number(_ANNOTATION_TEXTS, said)
                value = number(_ANNOTATION_TEXT_IID, iid)
            else:
                value = text(_ANNOTATION_TEXT, said)
            made += message(_ANNOTATION, of, value)
        return made

    def _number(self, kind: int, name: str) -> int:
        known = self._known[kind]
        iid = known.get(name)
        if iid is None:
            iid = known[name] = len(known) + 1
            self._new += message(kind, number(1, iid), text(2, name))
        return iid


def _keep(kept: dict[_Key, bytes], key: _Key, made: bytes) -> bytes:
    if len(kept) >= _KEPT:
        kept.clear()
    kept[key] = made
    return made


def _other(item: Track | Thread | KernelEvent) -> bytes:
    if isinstance(item, Track):
        parts = [number(_UUID, item.uuid), text(_NAME, item.name)]
        if item.parent:
            parts.append(number(_PARENT, item.parent))
        parts += [number(_ORDERING, _EXPLICIT), number(_RANK, item.rank)]
        if item.description:
            parts.append(text(_DESCRIPTION, item.description))
        return message(_TRACK_DESCRIPTOR, *parts)
    if isinstance(item, Thread):
        tree = message(2, number(1, item.pid), text(2, item.comm), number(3, item.tgid))
        if item.pid == item.tgid:
            tree += message(1, number(1, item.pid), text(3, item.comm))
        return number(_TIMESTAMP, item.time) + message(_PROCESS_TREE, tree)
    field, names = SCHEDULING[item.name]
    parts = []
    for place, name in enumerate(names, 1):
        value = item.values.get(name)
        if isinstance(value, str):
            parts.append(text(place, value))
        elif value is not None:
            parts.append(number(place, value))
    event = message(
        2, number(1, item.time), number(2, item.pid), message(field, *parts)
    )
    return message(_FTRACE_EVENTS, number(1, item.cpu), event)


_WAKEUP = ("comm", "pid", "prio", "success", "target_cpu")
_SWITCH = ("comm", "pid", "prio", "state")
#: Events that scheduling is shown by: the field of FtraceEvent, and the names of its
#: own fields, from 1.
SCHEDULING: Mapping[str, tuple[int, tuple[str, ...]]] = {
    "sched_switch": (
        4,
        (*(f"prev_{of}" for of in _SWITCH), *(f"next_{of}" for of in _SWITCH[:3])),
    ),
    "sched_wakeup": (17, _WAKEUP),
    "sched_waking": (20, _WAKEUP),
    "sched_wakeup_new": (114, _WAKEUP),
}
