# SPDX-License-Identifier: LGPL-2.1-or-later
"""Records of oprofile's buffers, byte by byte."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

import pytest

from drgn_tools.oprofile_records import (
    KERNEL,
    UNKNOWN,
    USER,
    XEN,
    Entry,
    Format,
    Sample,
    decode_event_buffer,
    decode_samples,
    synced_samples,
)

NEW = Format()
OLD = Format(data=False)
DOM0 = Format(data=False, xen=True)
TASK, OTHER = 0xFFFF888012345680, 0xFFFF888055555500
KERNEL_PC, USER_PC = 0xFFFFFFFF81234567, 0x401234
ESC = (1 << 64) - 1
# Flags of new records.
MODE, IN_KERNEL, TRACE, SWITCH = 1, 2, 4, 8

Words = Sequence[int]


def decode(
    records: Sequence[Words],
    fmt: Format = NEW,
    *,
    states: Sequence[str] = (),
    notes: list[str] | None = None,
) -> list[Sample]:
    """Decode records given as words."""
    code = "Q" if fmt.word == 8 else "I"
    order = "<" if fmt.byteorder == "little" else ">"
    mask = fmt.escape
    stream = [
        (
            1,
            100 + i,
            struct.pack(f"{order}{len(words)}{code}", *(w & mask for w in words)),
            states[i] if states else "unread",
            "",
        )
        for i, words in enumerate(records)
    ]
    told: list[str] = [] if notes is None else notes
    return list(decode_samples(stream, fmt, told.append))


def seen(samples: Sequence[Sample]) -> list[tuple[int, int, int, int]]:
    return [(s.mode, s.task, s.eip, s.event) for s in samples]


# --- with data[]


def test_a_sync_begins_with_full_context() -> None:
    samples = decode(
        [
            (ESC, MODE | IN_KERNEL | SWITCH, TASK),
            (KERNEL_PC, 0),
            (KERNEL_PC + 4, 3),
            (ESC, MODE),
            (USER_PC, 1),
            (ESC, SWITCH, OTHER),
            (USER_PC + 8, 0),
        ]
    )
    assert seen(samples) == [
        (KERNEL, TASK, KERNEL_PC, 0),
        (KERNEL, TASK, KERNEL_PC + 4, 3),
        (USER, TASK, USER_PC, 1),
        (USER, OTHER, USER_PC + 8, 0),
    ]
    assert [s.time for s in samples] == [101, 102, 104, 106]
    assert not any(s.note or s.trace for s in samples)


def test_without_context_it_is_unknown() -> None:
    first, second = decode([(USER_PC, 0), (ESC, MODE), (USER_PC, 0)])
    assert (first.mode, first.task, first.note) == (
        UNKNOWN,
        0,
        "what came before it is lost",
    )
    assert (second.mode, second.task, second.note) == (USER, 0, "")


def test_a_trace_belongs_to_its_sample() -> None:
    samples = decode(
        [
            (ESC, TRACE | MODE | IN_KERNEL | SWITCH, TASK),
            (KERNEL_PC, 2),
            (KERNEL_PC, 0),
            (KERNEL_PC + 16, 0),
            (ESC, TRACE),
            (KERNEL_PC + 32, 2),
            (ESC, TRACE | MODE),
            (USER_PC, 2),
            (USER_PC + 1, 0),
        ]
    )
    assert [(s.eip, s.trace) for s in samples] == [
        (KERNEL_PC, (KERNEL_PC, KERNEL_PC + 16)),
        (KERNEL_PC + 32, ()),
        (USER_PC, (USER_PC + 1,)),
    ]
    assert [s.mode for s in samples] == [KERNEL, KERNEL, USER]


def test_a_sample_behind_a_trace_is_no_caller() -> None:
    """What oprofile_add_pc() adds has neither a code nor a trace."""
    samples = decode(
        [(ESC, TRACE | MODE), (USER_PC, 1), (USER_PC + 1, 0), (USER_PC + 2, 1)]
    )
    assert [(s.eip, s.trace) for s in samples] == [
        (USER_PC, (USER_PC + 1,)),
        (USER_PC + 2, ()),
    ]


def test_a_lost_sample_leaves_no_trace() -> None:
    """The code was written, and then there was no room."""
    samples = decode([(ESC, TRACE | MODE), (ESC, TRACE), (USER_PC, 0)])
    assert [(s.mode, s.eip) for s in samples] == [(USER, USER_PC)]


def ibs_words(values: Sequence[int]) -> list[int]:
    return [half for v in values for half in (v & 0xFFFFFFFF, v >> 32)]


FETCH = (0x7F0011112222, 0x5000_0000_0000_0001, 0x33334444)
OP = (0xFFFFFFFF81000042, 1 << 40, 7, 9, 0x7FFF12345678, 0x98765432)


@pytest.mark.parametrize("context", [0, MODE | IN_KERNEL | SWITCH])
def test_ibs(context: int) -> None:
    """Its own record, or what is left of one behind its task."""
    records: list[Words] = [
        (ESC, MODE | IN_KERNEL | SWITCH, TASK),
        (ESC, 0, 13, KERNEL_PC, *ibs_words(FETCH)),
        (ESC, 0, 14, KERNEL_PC + 4, *ibs_words(OP)),
        (ESC, 0, 14, KERNEL_PC + 8, *ibs_words(OP), 0xFFFFFFFF81999999),
        (KERNEL_PC + 12, 0),
    ]
    if context:
        records[1] = (ESC, context, TASK, 13, KERNEL_PC, *ibs_words(FETCH))
    samples = decode(records)
    assert [(s.kind, s.eip, s.data) for s in samples] == [
        ("ibs_fetch", KERNEL_PC, FETCH),
        ("ibs_op", KERNEL_PC + 4, OP),
        ("ibs_op", KERNEL_PC + 8, (*OP, 0xFFFFFFFF81999999)),
        ("sample", KERNEL_PC + 12, ()),
    ]
    assert {(s.mode, s.task) for s in samples} == {(KERNEL, TASK)}


@pytest.mark.parametrize(
    "record",
    [
        (ESC, 0x10),
        (ESC, SWITCH),
        (ESC, 0, 15, KERNEL_PC, *range(12)),
        (ESC, 0, 13, KERNEL_PC, *range(5)),
        (ESC,),
    ],
    ids=["flags", "no task", "code", "short", "cut"],
)
def test_torn_records_are_said(record: Words) -> None:
    notes: list[str] = []
    samples = decode([(ESC, MODE), record, (USER_PC, 0)], notes=notes)
    assert [s.eip for s in samples] == [USER_PC]
    assert len(notes) == 1 and "cannot be" in notes[0]


def test_states_are_told_apart() -> None:
    """Also where a trace goes on from one to the other."""
    samples = decode(
        [
            (ESC, TRACE | MODE | SWITCH, TASK),
            (USER_PC, 0),
            (USER_PC + 1, 0),
            (USER_PC + 2, 0),
            (USER_PC + 3, 0),
        ],
        states=["unread", "unread", "unread", "uncommitted", "uncommitted"],
    )
    assert [(s.state, s.eip, s.trace) for s in samples] == [
        ("unread", USER_PC, (USER_PC + 1,)),
        ("uncommitted", USER_PC + 2, ()),
        ("uncommitted", USER_PC + 3, ()),
    ]


def test_of_pages_given_back_only_what_looks_right() -> None:
    """Their context ends where time goes back."""

    def record(time: int, *words: int) -> tuple[int, int, bytes, str, str]:
        data = struct.pack(f"<{len(words)}Q", *words)
        return 0, time, data, "read", "guess"

    stream = [
        record(50, ESC, MODE | SWITCH, TASK),
        record(51, USER_PC, 0),
        record(10, USER_PC + 4, 0),
        record(11, 0x1234567812345678, 0),
        record(12, USER_PC, 0x41424344),
        record(13, ESC, 0x99),
        record(14, ESC, 0),
        record(15, USER_PC + 8, 0),
    ]
    samples = list(decode_samples(stream, NEW))
    assert seen(samples) == [
        (USER, TASK, USER_PC, 0),
        (UNKNOWN, 0, USER_PC + 4, 0),
        (UNKNOWN, 0, USER_PC + 8, 0),
    ]
    assert {s.note for s in samples} == {"guess"}


@pytest.mark.parametrize("byteorder", ["little", "big"])
def test_words_of_32_bits(byteorder: str) -> None:
    fmt = Format(4, byteorder)
    esc = fmt.escape
    samples = decode(
        [(esc, MODE | SWITCH, 0xC1234560), (0x8001234, 5), (0xFFFF0000, 0)], fmt
    )
    assert seen(samples) == [
        (USER, 0xC1234560, 0x8001234, 5),
        (USER, 0xC1234560, 0xFFFF0000, 0),
    ]


# --- without data[]


def test_codes() -> None:
    samples = decode(
        [
            (ESC, 1),
            (ESC, TASK),
            (KERNEL_PC, 4),
            (ESC, 0),
            (USER_PC, 0),
            (ESC, OTHER),
            (USER_PC + 4, 0),
        ],
        OLD,
    )
    assert seen(samples) == [
        (KERNEL, TASK, KERNEL_PC, 4),
        (USER, TASK, USER_PC, 0),
        (USER, OTHER, USER_PC + 4, 0),
    ]


def test_codes_of_traces() -> None:
    """The trace's code comes before mode and task."""
    samples = decode(
        [
            (ESC, 2),
            (ESC, 0),
            (ESC, TASK),
            (USER_PC, 1),
            (USER_PC + 1, 0),
            (USER_PC + 2, 0),
            (ESC, 2),
            (USER_PC + 3, 1),
        ],
        OLD,
    )
    assert [(s.eip, s.mode, s.task, s.trace) for s in samples] == [
        (USER_PC, USER, TASK, (USER_PC + 1, USER_PC + 2)),
        (USER_PC + 3, USER, TASK, ()),
    ]


def test_codes_of_ibs() -> None:
    """Its values look like anything, escapes included."""
    fetch, op = ibs_words(FETCH), ibs_words((*OP[:3], 0, *OP[4:]))
    fetch[2:4] = [ESC, 2]

    def pairs(words: Sequence[int]) -> list[Words]:
        return [words[i : i + 2] for i in range(0, len(words), 2)]

    samples = decode(
        [
            (ESC, 0),
            (ESC, 3),
            *pairs(fetch),
            (ESC, 1),
            (ESC, 4),
            *pairs(op),
            (KERNEL_PC, 0),
        ],
        OLD,
    )
    assert [(s.kind, s.mode, s.eip, s.data) for s in samples] == [
        ("ibs_fetch", USER, FETCH[0], (FETCH[0], 0x2_FFFFFFFF, FETCH[2])),
        ("ibs_op", KERNEL, OP[0], (*OP[:3], 0, *OP[4:])),
        ("sample", KERNEL, KERNEL_PC, ()),
    ]


def test_codes_of_xen() -> None:
    """A mode more, and domains; the other codes are moved."""
    samples = decode(
        [
            (ESC, 2),
            (0xFFFF82C480123456, 0),
            (ESC, 4),
            (7, ESC),
            (KERNEL_PC, 0),
            (ESC, 1),
            (ESC, TASK),
            (ESC, 3),
            (KERNEL_PC, 0),
            (KERNEL_PC + 1, 0),
        ],
        DOM0,
    )
    assert [(s.mode, s.note) for s in samples] == [
        (XEN, ""),
        (XEN, "of domain 7"),
        (KERNEL, ""),
    ]
    assert samples[2].trace == (KERNEL_PC + 1,)


# --- the event buffer


def entries(words: Sequence[int], **options: bool) -> list[tuple[str, tuple[int, ...]]]:
    return [(e.kind, e.values) for e in decode_event_buffer(words, NEW, **options)]


EXEC, LIBRARY = 0xFFFF888000001000, 0xFFFF888000002000


def test_event_buffer() -> None:
    words = [
        *(ESC, 2, 1),
        *(ESC, 4),
        *(ESC, 1, 42, EXEC, ESC, 7, 40),
        *(KERNEL_PC, 0),
        *(ESC, 5),
        *(ESC, 3, LIBRARY),
        *(0x1234, 1),
        *(ESC, 3, ESC),
        *(ESC, 6),
        *(ESC, 8),
        *(ESC, 10),
        *(ESC, 11, 3),
        *(ESC, 9),
    ]
    pieces = entries(words)
    assert pieces == [
        ("cpu_switch", (1,)),
        ("kernel_enter", ()),
        ("ctx_switch", (42, EXEC)),
        ("ctx_tgid", (40,)),
        ("sample", (KERNEL_PC, 0)),
        ("kernel_exit", ()),
        ("cookie_switch", (LIBRARY,)),
        ("sample", (0x1234, 1)),
        ("cookie_switch", (ESC,)),
        ("module_loaded", ()),
        ("trace_begin", ()),
        ("xen_enter", ()),
        ("domain_switch", (3,)),
        ("trace_end", ()),
    ]


def test_event_buffer_context() -> None:
    words = [
        *(0x999, 0),
        *(ESC, 2, 1, ESC, 4),
        *(ESC, 1, 42, EXEC, ESC, 7, 40),
        *(KERNEL_PC, 3),
        *(ESC, 8, ESC, 5, ESC, 3, LIBRARY),
        *(0x1234, 1),
        *(0x1240, 0),
        *(ESC, 3, EXEC),
        *(0x10, 0),
        *(ESC, 8, ESC, 10),
        *(0xFFFF82C480000000, 1),
        *(ESC, 2, 0),
        *(0x5, 0),
    ]
    made = list(synced_samples(decode_event_buffer(words, NEW), NEW))
    rows = [(s.position, s.cpu, s.mode, s.pid, s.tgid, s.offset) for s in made]
    assert rows == [
        (0, -1, UNKNOWN, -1, -1, 0x999),
        (14, 1, KERNEL, 42, 40, KERNEL_PC),
        (23, 1, USER, 42, 40, 0x1234),
        (36, 1, XEN, 42, 40, 0xFFFF82C480000000),
        # A sync begins anew.
        (41, 0, UNKNOWN, 42, 40, 0x5),
    ]
    assert made[2].trace == ((LIBRARY, 0x1240), (EXEC, 0x10))
    assert (made[2].cookie, made[2].exec_cookie) == (LIBRARY, EXEC)
    assert made[0].cookie == made[4].cookie == ESC


@pytest.mark.parametrize("targets", [False, True])
def test_event_buffer_ibs(targets: bool) -> None:
    target = [0xFFFFFFFF81999999] if targets else []
    words = [
        *(ESC, 13, 0x10, *ibs_words(FETCH)),
        *(ESC, 14, 0x20, *ibs_words(OP), *target),
        *(0x30, 0),
    ]
    made = list(synced_samples(decode_event_buffer(words, NEW, targets=targets), NEW))
    assert [(s.kind, s.offset, s.data) for s in made] == [
        ("ibs_fetch", 0x10, FETCH),
        ("ibs_op", 0x20, (*OP, *target)),
        ("sample", 0x30, ()),
    ]


def test_event_buffer_of_spus() -> None:
    """Each sample is a word; SPUs switch on their own."""
    words = [
        *(ESC, 11, 16),
        *(ESC, 12, 3, 42, 40, EXEC, LIBRARY, 0x80),
        *(3 << 32 | 0x1000, 5 << 32 | 0x2000),
        *(ESC, 12, 5, 43, 43, EXEC, EXEC, 0),
        5 << 32 | 0x2004,
    ]
    made = list(synced_samples(decode_event_buffer(words, NEW, cell=True), NEW))
    assert [(s.cpu, s.pid, s.tgid, s.cookie, s.offset) for s in made] == [
        (3, 42, 40, LIBRARY, 0x1000),
        (5, -1, -1, ESC, 0x2000),
        (5, 43, 43, EXEC, 0x2004),
    ]
    assert {s.kind for s in made} == {"spu_sample"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((ESC,), [("cut", (ESC,))]),
        ((ESC, 2), [("cut", (ESC, 2))]),
        ((ESC, 13, 1, 2), [("cut", (ESC, 13, 1, 2))]),
        ((0x10,), [("cut", (0x10,))]),
        (
            (ESC, 99, ESC, 2, 1),
            [("unknown", (ESC, 99)), ("cpu_switch", (1,))],
        ),
        # A pair that begins in the middle.
        ((0, ESC, 2, 1), [("unknown", (0,)), ("cpu_switch", (1,))]),
        ((ESC, ESC, 2, 1), [("unknown", (ESC, ESC)), ("cpu_switch", (1,))]),
    ],
)
def test_event_buffer_torn(
    words: Sequence[int], expected: list[tuple[str, tuple[int, ...]]]
) -> None:
    assert entries(words) == expected


# --- ruins


def good_stream(fmt: Format) -> list[Words]:
    if fmt.data:
        return [
            (ESC, TRACE | MODE | SWITCH, TASK),
            (USER_PC, 0),
            (USER_PC + 1, 0),
            (ESC, 0, 13, KERNEL_PC, *ibs_words(FETCH)),
            (ESC, 0, 14, KERNEL_PC, *ibs_words(OP)),
            *((KERNEL_PC + i, 0) for i in range(8)),
        ]
    return [
        (ESC, 2),
        (ESC, 0),
        (ESC, TASK),
        (USER_PC, 0),
        (USER_PC + 1, 0),
        (ESC, 3),
        *((i, i) for i in range(3)),
        *((KERNEL_PC + i, 0) for i in range(8)),
    ]


@pytest.mark.parametrize("fmt", [NEW, OLD, DOM0], ids=["data", "codes", "xen"])
def test_mutated_records(fmt: Format) -> None:
    """No more samples than records, whatever is in them."""
    rng = random.Random(7)
    good = [struct.pack(f"<{len(w)}Q", *w) for w in good_stream(fmt)]
    for _ in range(10_000):
        stream = []
        for i, data in enumerate(good):
            spoilt = bytearray(data)
            for _ in range(rng.randrange(3)):
                spoilt[rng.randrange(len(spoilt))] = rng.choice(
                    (0, 255, rng.randrange(256))
                )
            cut = rng.choice((len(spoilt), len(spoilt), rng.randrange(len(spoilt))))
            state = rng.choice(("unread", "read", "uncommitted"))
            why = rng.choice(("", "guess"))
            stream.append((0, rng.randrange(99) + i, bytes(spoilt[:cut]), state, why))
        samples = list(decode_samples(stream, fmt))
        assert sum(1 + len(s.trace) for s in samples) <= len(stream)


def test_mutated_event_buffers() -> None:
    """Everything is some piece, once."""
    rng = random.Random(8)
    good = [
        *(ESC, 2, 1, ESC, 4, ESC, 1, 42, EXEC, ESC, 7, 40, KERNEL_PC, 0),
        *(ESC, 8, ESC, 5, ESC, 3, LIBRARY, 0x1234, 1, 0x1240, 0),
        *(ESC, 13, 0x10, *ibs_words(FETCH), ESC, 14, 0x20, *ibs_words(OP), 0x30, 0),
    ]

    def size(entry: Entry) -> int:
        if entry.kind == "spu_sample":
            return 1
        whole = entry.kind in ("sample", "unknown", "cut")
        return len(entry.values) + (0 if whole else 2)

    for _ in range(10_000):
        words = list(good)
        for _ in range(rng.randrange(6)):
            words[rng.randrange(len(words))] = rng.choice(
                (ESC, rng.randrange(16), rng.getrandbits(64))
            )
        words = words[: rng.randrange(len(words) + 1)]
        cell = rng.random() < 0.3
        made = list(decode_event_buffer(words, NEW, cell=cell, targets=not cell))
        at = 0
        for entry in made:
            assert entry.position == at
            # Of two escapes, the second may begin something.
            twice = entry.kind == "unknown" and entry.values == (ESC, ESC)
            at += 1 if twice else size(entry)
        assert at == len(words)
        list(synced_samples(made, NEW))
