# SPDX-License-Identifier: LGPL-2.1-or-later
"""Ring buffers of every layout, made byte by byte."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

import pytest
from drgn import FaultError

from drgn_tools.ring_buffer import (
    RingEvent,
    for_each_ring_buffer_event,
    ring_buffer_cpus,
    ring_buffer_stats,
)
from tests.ring_kernel import (
    ERAS,
    ILP32,
    LP64,
    LP64_BIG,
    Data,
    Discarded,
    Extend,
    Item,
    Padding,
    PageOf,
    RingKernel,
    Stamp,
)

PLATFORMS = {"lp64": LP64, "lp64-big": LP64_BIG, "ilp32": ILP32}
KERNELS = [(era, platform) for era in ERAS for platform in PLATFORMS]


def payload(number: int, size: int = 16) -> bytes:
    return struct.pack("<Q", number) + bytes(range(8, size))


def data(*numbers: int, delta: int = 10) -> list[Item]:
    return [Data(payload(number), delta) for number in numbers]


def numbers(events: Sequence[RingEvent]) -> list[int]:
    return [struct.unpack_from("<Q", event.data)[0] for event in events]


def read(
    kernel: RingKernel, cpu: int | None = 0, **options: bool
) -> tuple[list[RingEvent], list[str]]:
    notes: list[str] = []
    found = for_each_ring_buffer_event(kernel.buffer, cpu, note=notes.append, **options)
    return list(found), notes


@pytest.fixture(params=KERNELS, ids="-".join)
def kernel(request: pytest.FixtureRequest) -> RingKernel:
    era, platform = request.param
    return RingKernel(era, PLATFORMS[platform])


# --- where events are


def test_a_buffer_that_nobody_has_read(kernel: RingKernel) -> None:
    # The reader's page is empty at first.
    pages = [PageOf(data(1, 2)), PageOf(data(3), time=5000), PageOf()]
    kernel.cpu(0, PageOf(), pages, commit=1, entries=3)
    events, notes = read(kernel)
    assert [(e.time, *numbers([e])) for e in events] == [
        (1010, 1),
        (1020, 2),
        (5010, 3),
    ]
    assert {e.state for e in events} == {"unread"}
    assert notes == []


@pytest.mark.verified(
    "ftrace: the ring buffer's layouts",
    by="structures made as in 2.6.28, 2.6.30, 2.6.31, 2.6.32, 5.10, 6.8, 7.2",
    on="bytes",
)
def test_events_are_whole(kernel: RingKernel) -> None:
    sizes = [4, 28, 32, 112, 116, 500]
    items = [Data(bytes([i]) * size) for i, size in enumerate(sizes)]
    kernel.cpu(0, PageOf(), [PageOf(items), PageOf()], commit=0, entries=len(sizes))
    events, notes = read(kernel)
    assert [e.data for e in events] == [item.payload for item in items]
    assert notes == []


def test_a_page_that_is_partly_read(kernel: RingKernel) -> None:
    reader = PageOf([*data(1, 2), Extend(1 << 30), *data(3, 4)], read=3)
    kernel.cpu(0, reader, [PageOf(), PageOf()], commit=-1, entries=4, read=2)
    events, notes = read(kernel)
    # Time is counted from the page's beginning.
    assert [(e.time, *numbers([e])) for e in events] == [
        (1030 + (1 << 30), 3),
        (1040 + (1 << 30), 4),
    ]
    assert notes == []
    events, _ = read(kernel, read=True)
    assert [(e.state, *numbers([e])) for e in events][:4] == [
        ("read", 1),
        ("read", 2),
        ("unread", 3),
        ("unread", 4),
    ]


def test_the_reader_page_is_first(kernel: RingKernel) -> None:
    reader = PageOf(data(1, 2), read=1)
    pages = [PageOf(data(3), time=2000), PageOf(data(4), time=3000), PageOf()]
    kernel.cpu(0, reader, pages, commit=1, entries=4, read=1)
    events, notes = read(kernel)
    assert numbers(events) == [2, 3, 4]
    assert notes == []


@pytest.mark.parametrize("start", range(4))
def test_the_head_is_found_from_any_page(kernel: RingKernel, start: int) -> None:
    # A ring that has wrapped, all of it full.
    pages = [PageOf(data(10 + i), time=1000 * i + 1000) for i in range(4)]
    kernel.cpu(0, PageOf(), pages, commit=3, start=start, entries=9, overrun=5)
    # head_page is only a hint where links have flags.
    if not kernel.era.headed:
        kernel.put("ring_buffer_per_cpu", _cpu(kernel), head_page=0)
    events, notes = read(kernel)
    assert numbers(events) == [10, 11, 12, 13]
    assert notes == []


def _cpu(kernel: RingKernel, cpu: int = 0) -> int:
    return int(kernel.buffer.buffers[cpu].value_())


def test_cpus_are_merged_by_time(kernel: RingKernel) -> None:
    kernel.cpu(0, PageOf(data(1, 3, 5, delta=20)), [PageOf()], entries=3)
    kernel.cpu(1, PageOf(data(2, 4, 6, delta=20), time=1010), [PageOf()], entries=3)
    events, notes = read(kernel, None)
    assert numbers(events) == [1, 2, 3, 4, 5, 6]
    assert [event.cpu for event in events] == [0, 1] * 3
    assert notes == []


def test_a_cpu_that_was_never_there(kernel: RingKernel) -> None:
    kernel.cpu(1, PageOf(data(1)), [PageOf()], entries=1)
    assert ring_buffer_cpus(kernel.buffer) == [1]
    with pytest.raises(LookupError, match="no CPU 0"):
        read(kernel, 0)
    with pytest.raises(LookupError, match="no CPU 0"):
        ring_buffer_stats(kernel.buffer, 0)


def test_counters(kernel: RingKernel) -> None:
    pages = [PageOf(), PageOf()]
    kernel.cpu(0, PageOf(data(1)), pages, entries=100, overrun=30, read=20)
    stats = ring_buffer_stats(kernel.buffer, 0)
    assert (stats.entries, stats.overrun, stats.read) == (100, 30, 20)
    assert (stats.unread, stats.nr_pages) == (50, 2)
    assert stats.subbuf_size == kernel.capacity
    events, notes = read(kernel)
    assert numbers(events) == [1]
    assert notes == ["CPU 0: its counters promise 50 unread events, it has 1"]


# --- what was read already


def test_pages_that_were_given_back(kernel: RingKernel) -> None:
    # Behind the tail are those that were read, the oldest first.
    pages = [
        PageOf(data(5), time=5000),
        PageOf(data(1, 2), time=1000, void=True),
        PageOf([*data(3), Padding()], time=3000, void=True),
    ]
    reader = PageOf(data(4), time=4000, read=1)
    kernel.cpu(0, reader, pages, commit=0, entries=5, read=4)
    assert numbers(read(kernel)[0]) == [5]
    events, notes = read(kernel, read=True)
    assert [(*numbers([e]), e.state) for e in events] == [
        (1, "read"),
        (2, "read"),
        (3, "read"),
        (4, "read"),
        (5, "unread"),
    ]
    assert [bool(e.note) for e in events] == [True, True, True, False, False]
    assert notes == []


# --- what is not finished


def test_uncommitted_events(kernel: RingKernel) -> None:
    pages = [
        PageOf(data(1), uncommitted=data(2)),
        PageOf(commit=0, uncommitted=data(3), time=2000),
        PageOf(),
    ]
    kernel.cpu(0, PageOf(), pages, commit=0, tail=1, entries=1, committing=1)
    assert numbers(read(kernel)[0]) == [1]
    events, notes = read(kernel, uncommitted=True)
    assert [(*numbers([e]), e.state) for e in events] == [
        (1, "unread"),
        (2, "uncommitted"),
        (3, "uncommitted"),
    ]
    assert [e.time for e in events] == [1010, 1020, 2010]
    assert notes == []


def test_the_commit_page_is_the_reader_s(kernel: RingKernel) -> None:
    reader = PageOf(data(1), uncommitted=data(2))
    pages = [PageOf(commit=0, uncommitted=data(3), time=2000), PageOf()]
    kernel.cpu(0, reader, pages, commit=-1, tail=0, entries=1)
    assert numbers(read(kernel)[0]) == [1]
    assert numbers(read(kernel, uncommitted=True)[0]) == [1, 2, 3]


@pytest.mark.parametrize("words", [(0, 0), (3, 0), (0xFFFFFFFF,), (5 << 5 | 28,)])
def test_a_reserved_event_without_a_header(
    kernel: RingKernel, words: tuple[int, ...]
) -> None:
    page = PageOf(data(1, 2))
    address = kernel.cpu(0, PageOf(), [page, PageOf()], commit=0, entries=2)[1]
    at = int.from_bytes(
        kernel.prog.read(address + kernel.member("buffer_page", "page"), kernel.word),
        "little" if kernel.little else "big",
    )
    torn = b"".join(kernel.long(word, 4) for word in words)
    # In place of the second event, at the end of what was committed.
    kernel.poke(at + kernel.data_at + 20, torn.ljust(20, b"\0"))
    events, _ = read(kernel)
    assert numbers(events[:1]) == [1]
    assert len(events) <= 2


def test_two_readers_pages(kernel: RingKernel) -> None:
    """A reader was stopped between its two steps."""
    pages = [PageOf(data(1, 2)), PageOf(data(3), time=2000), PageOf()]
    reader = PageOf(data(0), time=500, read=1)
    kernel.cpu(0, reader, pages, commit=1, swapped=True, entries=4, read=1)
    events, notes = read(kernel)
    assert numbers(events) == [1, 2, 3]
    assert notes[0] == "CPU 0: a reader was about to take a page"


@pytest.mark.parametrize("era", ["2.6.32", "5.10", "7.2"])
def test_a_writer_about_to_give_up_a_page(era: str) -> None:
    # Its events count as overwritten, and the next page is not marked yet.
    kernel = RingKernel(era)
    pages = [
        PageOf(data(i), time=1000 * i, flags=2 if i == 1 else 0) for i in (1, 2, 3)
    ]
    kernel.cpu(0, PageOf(), pages, commit=2, start=1, entries=3, overrun=1)
    events, notes = read(kernel)
    assert numbers(events) == [2, 3]
    assert notes == []


@pytest.mark.parametrize("era", ["2.6.32", "5.10", "7.2"])
def test_no_head_at_all(era: str) -> None:
    kernel = RingKernel(era)
    pages = [PageOf(data(i), time=1000 * i, flags=0) for i in (1, 2, 3)]
    kernel.cpu(0, PageOf(), pages, commit=2, start=2, entries=3)
    events, notes = read(kernel)
    # head_page may be old, but is better than nothing.
    assert numbers(events) == [1, 2, 3]
    assert notes == ["CPU 0: none of its pages is marked as the head"]


# --- time


def test_time_extends(kernel: RingKernel) -> None:
    items = [Data(payload(1), 5), Extend(7 << 27 | 9), *data(2)]
    kernel.cpu(0, PageOf(items), [PageOf()], entries=2)
    assert [e.time for e in read(kernel)[0]] == [1005, 1024 + (7 << 27)]


def test_the_largest_delta(kernel: RingKernel) -> None:
    kernel.cpu(0, PageOf(data(1, 2, delta=(1 << 27) - 1)), [PageOf()], entries=2)
    assert [e.time for e in read(kernel)[0]] == [999 + (1 << 27), 998 + (2 << 27)]


PACKED = [(era, name) for era, name in KERNELS if ERAS[era].packed]


@pytest.mark.parametrize(("era", "platform"), PACKED)
def test_absolute_times(era: str, platform: str) -> None:
    kernel = RingKernel(era, PLATFORMS[platform])
    items = [*data(1), Stamp(123 << 27 | 456), *data(2)]
    kernel.cpu(0, PageOf(items), [PageOf()], entries=2)
    assert [e.time for e in read(kernel)[0]] == [1010, (123 << 27) + 466]


@pytest.mark.parametrize(("era", "platform"), PACKED)
@pytest.mark.parametrize(("before", "stamp"), [(5 << 59, 77), ((5 << 59) - 9, 77)])
def test_absolute_times_have_59_bits(
    era: str, platform: str, before: int, stamp: int
) -> None:
    kernel = RingKernel(era, PLATFORMS[platform])
    items = [Stamp(stamp), *data(1, delta=0)]
    kernel.cpu(0, PageOf(items, time=before), [PageOf()], entries=1)
    (event,) = read(kernel)[0]
    # The first time with these low bits that is not before.
    assert event.time == (5 << 59) + 77


def test_discarded_events(kernel: RingKernel) -> None:
    items = [*data(1), Discarded(24), *data(2), Discarded(16, delta=100), *data(3)]
    kernel.cpu(0, PageOf(items), [PageOf()], entries=3)
    events, notes = read(kernel)
    if not kernel.era.packed:
        assert numbers(events) == [1, 2, 3]
    else:
        assert [(e.time, *numbers([e])) for e in events] == [
            (1010, 1),
            (1020, 2),
            # One of a nanosecond is a mark; more is time that has passed.
            (1130, 3),
        ]
    assert notes == []


def test_what_is_behind_padding_is_void(kernel: RingKernel) -> None:
    page = PageOf([*data(1), Padding(), *data(2)])
    kernel.cpu(0, PageOf(), [page, PageOf(data(3), time=2000)], commit=1, entries=2)
    events, notes = read(kernel)
    assert numbers(events) == [1, 3]
    assert notes == []


# --- sub-buffers


@pytest.mark.parametrize("era", ["6.8", "7.2"])
@pytest.mark.parametrize("order", [1, 2, 4])
def test_large_sub_buffers(era: str, order: int) -> None:
    kernel = RingKernel(era, order=order, size=4 << 20)
    count = kernel.capacity // 1008
    pages = [
        PageOf([Data(payload(p * count + i, 8) + bytes(992)) for i in range(count)])
        for p in range(3)
    ]
    kernel.cpu(0, PageOf(), pages, commit=2, entries=3 * count)
    events, notes = read(kernel)
    assert numbers(events) == list(range(3 * count))
    assert notes == []


@pytest.mark.parametrize("era", ["6.8", "7.2"])
def test_an_order_that_cannot_be(era: str) -> None:
    kernel = RingKernel(era)
    kernel.cpu(0, PageOf(data(1)), [PageOf()], entries=1)
    kernel.put("trace_buffer", kernel.address, subbuf_order=30)
    with pytest.raises(ValueError, match="order, 30"):
        read(kernel)


def test_missed_events(kernel: RingKernel) -> None:
    if kernel.era.in_page:
        # Had no mark for it.
        return
    pages = [PageOf(data(1)), PageOf(data(2, 3), time=2000, missed=True)]
    kernel.cpu(0, PageOf(), pages, commit=1, entries=3)
    events, notes = read(kernel)
    assert [bool(event.note) for event in events] == [False, True, False]
    assert len(notes) == 1
    assert "are lost" in notes[0]


# --- damage


def test_a_page_that_is_not_there(kernel: RingKernel) -> None:
    pages = [PageOf(data(i), time=1000 * i) for i in (1, 2, 3)]
    made = kernel.cpu(0, PageOf(), pages, commit=2, entries=3)
    kernel.put("buffer_page", made[2], page=kernel.base - (1 << 20))
    events, notes = read(kernel)
    assert numbers(events) == [1, 3]
    assert "is not in this dump" in notes[0]
    assert notes[1] == "CPU 0: its counters promise 3 unread events, it has 2"


def test_a_page_of_zeros(kernel: RingKernel) -> None:
    pages = [PageOf(data(i), time=1000 * i) for i in (1, 2, 3)]
    made = kernel.cpu(0, PageOf(), pages, commit=2, entries=3)
    at = kernel.prog.read(made[2] + kernel.member("buffer_page", "page"), kernel.word)
    page = int.from_bytes(at, "little" if kernel.little else "big")
    kernel.poke(page, bytes(4096))
    events, notes = read(kernel)
    assert numbers(events) == [1, 3]
    assert len(notes) == 2
    assert notes[1] == "CPU 0: its counters promise 3 unread events, it has 2"


@pytest.mark.parametrize("commit", [4081, 5000, 0xFFFFF, 0x3FFFFFFF])
def test_a_commit_that_cannot_be(kernel: RingKernel, commit: int) -> None:
    kernel.cpu(0, PageOf(), [PageOf(data(1), commit=commit), PageOf()], commit=0)
    _, notes = read(kernel)
    assert notes


def test_a_list_with_a_loop(kernel: RingKernel) -> None:
    pages = [PageOf(data(i), time=1000 * i) for i in (1, 2, 3, 4)]
    made = kernel.cpu(0, PageOf(), pages, commit=3, entries=4)
    link = kernel.member("buffer_page", "list")
    kernel.put("list_head", made[3] + link, next=made[2] + link)
    events, notes = read(kernel)
    assert len(events) <= 4
    assert notes


def test_no_struct_of_a_cpu(kernel: RingKernel) -> None:
    kernel.cpu(0, PageOf(data(1)), [PageOf()], entries=1)
    kernel.poke(kernel.buffers, kernel.long(kernel.base - 4096))
    events, notes = read(kernel)
    assert events == []
    assert "ring_buffer_per_cpu" in notes[0]


def any_item(seed: random.Random, number: int) -> Item:
    items: list[Item] = [
        Data(payload(number, seed.choice([8, 28, 64, 120]))),
        Extend(seed.getrandbits(40)),
        Discarded(16, seed.choice([1, 50])),
    ]
    return seed.choice(items)


MUTATIONS = 10_000


@pytest.mark.parametrize("part", range(4))
def test_mutated_buffers(part: int) -> None:
    """Whatever is in memory, reading ends, and fails only as it says."""
    seed = random.Random(part)
    total = 0
    while total < MUTATIONS // 4:
        era, platform = seed.choice(KERNELS)
        kernel = RingKernel(era, PLATFORMS[platform], size=1 << 17)
        pages = [
            PageOf([any_item(seed, i) for i in range(seed.randrange(30))], 1000 * n)
            for n in range(4)
        ]
        kernel.cpu(0, PageOf(data(1, 2), read=1), pages, commit=2, entries=9)
        kernel.cpu(1, PageOf(), pages[:2], commit=0, tail=1, entries=9)
        whole = bytes(kernel.memory)
        for _ in range(50):
            kernel.memory[:] = whole
            for _ in range(seed.choice([1, 4, 64])):
                at = seed.randrange(kernel.used)
                kind = seed.randrange(4)
                if kind == 0:
                    kernel.memory[at] ^= 1 << seed.randrange(8)
                elif kind == 1:
                    # An address in the same memory.
                    where = kernel.base + seed.randrange(kernel.used)
                    size = kernel.word
                    at -= at % size
                    kernel.memory[at : at + size] = kernel.long(where)
                elif kind == 2:
                    kernel.memory[at : at + 8] = seed.randbytes(8)
                else:
                    other = seed.randrange(kernel.used)
                    kernel.memory[at : at + 16] = kernel.memory[other : other + 16]
            del kernel.memory[len(whole) :]
            total += 1
            try:
                events, _ = read(
                    kernel,
                    seed.choice([None, 0]),
                    read=seed.random() < 0.5,
                    uncommitted=seed.random() < 0.5,
                )
                for cpu in ring_buffer_cpus(kernel.buffer):
                    ring_buffer_stats(kernel.buffer, cpu)
            except (LookupError, ValueError, FaultError):
                continue
            # No more than memory can hold.
            assert len(events) <= len(whole) // 4 * 2
