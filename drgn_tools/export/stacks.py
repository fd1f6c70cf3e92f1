# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Samples as profiles of other tools
----------------------------------

As speedscope's file (https://www.speedscope.app/file-format-schema.json) and as
pprof's (``profile.proto``). In both each stack is there once, with the number of its
samples.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from drgn_tools.export.protobuf import message, number, packed, text
from drgn_tools.oprofile_text import call_chain, function_name, task_name
from drgn_tools.text import printable

if TYPE_CHECKING:
    from drgn_tools.oprofile import OprofilePlace, OprofileSample

_SCHEMA = "https://www.speedscope.app/file-format-schema.json"


class Stack(NamedTuple):
    """What samples have in common."""

    event: str
    """What was counted: event0, event1…; ibs_op and the like."""
    task: str
    pid: int
    """-1 if unknown."""
    places: tuple[OprofilePlace, ...]
    """The innermost first."""


def count_stacks(samples: Iterable[OprofileSample]) -> Counter[Stack]:
    """How many samples there are of each stack."""
    return Counter(
        Stack(
            f"event{sample.event}" if sample.kind == "sample" else sample.kind,
            task_name(sample),
            sample.pid,
            call_chain(sample),
        )
        for sample in samples
    )


def _events(stacks: Counter[Stack]) -> list[str]:
    # A profile without any samples is one of the first.
    return sorted({stack.event for stack in stacks}) or ["event0"]


def speedscope(stacks: Counter[Stack], name: str) -> bytes:
    """
    Return the content of speedscope's file: a profile for each event, with
    the task as the outermost frame.

    :param name: of the whole.
    """
    frames: dict[tuple[str, str], int] = {}

    def frame(name: str, image: str) -> int:
        return frames.setdefault((name, image), len(frames))

    profiles: list[dict[str, Any]] = []
    for event in _events(stacks):
        samples = []
        weights = []
        for stack, count in sorted(
            (item for item in stacks.items() if item[0].event == event),
            key=lambda item: (item[0].task, -item[1]),
        ):
            calls = [
                frame(function_name(place), printable(place.image))
                for place in reversed(stack.places)
            ]
            samples.append([frame(stack.task, ""), *calls])
            weights.append(count)
        profiles.append(
            {
                "type": "sampled",
                "name": event,
                "unit": "none",
                "startValue": 0,
                "endValue": sum(weights),
                "samples": samples,
                "weights": weights,
            }
        )
    shared = [
        {"name": function, "file": image} if image else {"name": function}
        for function, image in frames
    ]
    whole = {
        "$schema": _SCHEMA,
        "name": printable(name),
        "exporter": "drgn-tools",
        "activeProfileIndex": 0,
        "shared": {"frames": shared},
        "profiles": profiles,
    }
    return json.dumps(whole).encode()


class _Pprof:
    # Makes a Profile, whose messages refer to each other by number.

    def __init__(self, events: list[str]) -> None:
        self._strings = {"": 0}
        self._mappings: dict[str, int] = {}
        self._functions: dict[tuple[str, str], int] = {}
        self._locations: dict[tuple[str, str, int], int] = {}
        self._events = {event: place for place, event in enumerate(events)}

    def string(self, value: str) -> int:
        return self._strings.setdefault(printable(value), len(self._strings))

    def sample(self, stack: Stack, count: int) -> bytes:
        values = [0] * len(self._events)
        values[self._events[stack.event]] = count
        labels = message(
            3, number(1, self.string("task")), number(2, self.string(stack.task))
        )
        if stack.pid >= 0:
            labels += message(3, number(1, self.string("pid")), number(3, stack.pid))
        places = [self._location(place) for place in stack.places]
        return message(2, packed(1, places), packed(2, values), labels)

    def _location(self, place: OprofilePlace) -> int:
        # Of a file, as if it were mapped at 0.
        address = place.address if place.offset is None else place.offset
        key = place.image, place.symbol, address & ((1 << 64) - 1)
        return self._locations.setdefault(key, len(self._locations) + 1)

    def tables(self) -> Iterator[bytes]:
        """What samples refer to."""
        for (image, symbol, address), id_ in self._locations.items():
            mapping = self._mappings.setdefault(image, len(self._mappings) + 1)
            parts = [number(1, id_), number(2, mapping), number(3, address)]
            if symbol:
                key = symbol, image
                function = self._functions.setdefault(key, len(self._functions) + 1)
                parts.append(message(4, number(1, function)))
            yield message(4, *parts)
        for image, id_ in self._mappings.items():
            # All of the address space, and functions are known.
            limit = number(3, (1 << 64) - 1)
            path = number(5, self.string(image))
            yield message(3, number(1, id_), limit, path, number(7, 1))
        for (symbol, image), id_ in self._functions.items():
            name, file = self.string(symbol), self.string(image)
            names = number(2, name) + number(3, name) + number(4, file)
            yield message(5, number(1, id_), names)

    def strings(self) -> Iterator[bytes]:
        for value in self._strings:
            yield text(6, value)


def pprof(stacks: Counter[Stack]) -> Iterator[bytes]:
    """
    Return the content of pprof's file, in pieces: a type of samples for each event,
    and the task as labels.
    """
    events = _events(stacks)
    made = _Pprof(events)

    def plain() -> Iterator[bytes]:
        for event in events:
            type_ = number(1, made.string(event)) + number(2, made.string("count"))
            yield message(1, type_)
        for stack, count in stacks.items():
            yield made.sample(stack, count)
        yield from made.tables()
        yield number(14, made.string(events[0]))
        yield from made.strings()

    compressor = zlib.compressobj(wbits=31)
    for piece in plain():
        yield compressor.compress(piece)
    yield compressor.flush()
