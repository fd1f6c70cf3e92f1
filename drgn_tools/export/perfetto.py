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
from typing import NamedTuple

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
_BEGIN, _END, _INSTANT = 1, 2, 3
_ANNOTATION_IID, _ANNOTATION_TEXT_IID, _ANNOTATION_TEXT = 1, 17, 6
# Of InternedData.
_EVENT_NAMES, _ANNOTATION_NAMES, _ANNOTATION_TEXTS = 2, 3, 29
# Of TracePacket's flags: what was said once is forgotten, or is needed.
_CLEARED, _NEEDED = 1, 2

_CHUNK = 1 << 18
# How many events are kept made, for the next that differs in its time alone.
_KEPT = 1 << 16


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
        made: dict[object, bytes] = {}
        for item in items:
            if not isinstance(item, Event):
                chunk += message(_PACKET, sequence, _other(item))
                continue
            key = item[1:]
            rest = made.get(key)
            if rest is None:
                rest = sequence + needed + self._body(item)
                if self._new:
                    interned = message(_INTERNED, self._new)
                    chunk += message(_PACKET, sequence, needed, interned)
                    self._new = b""
                if len(made) >= _KEPT:
                    made.clear()
                made[key] = rest
            time = varint(item.time)
            # _PACKET, its length, and _TIMESTAMP.
            chunk += b"\x0a" + varint(len(rest) + len(time) + 1) + b"\x40" + time + rest
            if len(chunk) >= _CHUNK:
                yield bytes(chunk)
                chunk.clear()
        yield bytes(chunk)

    def _body(self, event: Event) -> bytes:
        kind = {"begin": _BEGIN, "end": _END, "instant": _INSTANT}[event.kind]
        parts = [number(_TRACK, event.track), number(_TYPE, kind)]
        if event.name:
            parts.append(number(_NAME_IID, self._number(_EVENT_NAMES, event.name)))
        for name, said in event.details:
            of = number(_ANNOTATION_IID, self._number(_ANNOTATION_NAMES, name))
            if name in self._often:
                iid = self._number(_ANNOTATION_TEXTS, said)
                value = number(_ANNOTATION_TEXT_IID, iid)
            else:
                value = text(_ANNOTATION_TEXT, said)
            parts.append(message(_ANNOTATION, of, value))
        return message(_TRACK_EVENT, *parts)

    def _number(self, kind: int, name: str) -> int:
        known = self._known[kind]
        iid = known.get(name)
        if iid is None:
            iid = known[name] = len(known) + 1
            self._new += message(kind, number(1, iid), text(2, name))
        return iid


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
