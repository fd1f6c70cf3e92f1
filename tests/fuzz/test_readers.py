# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Hostile inputs for every reader, a few of each: mutations of good ones, and headers of
which any field may be any number. The long run (docs/fuzzing.md) has a million of each.
"""

from __future__ import annotations

import random
import struct
from typing import Any, Callable, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drgn_tools.formats import elf, flattened, kdump
from tests import regions
from tests.fuzz import command_line, readers
from tests.fuzz.limits import within_limits
from tests.fuzz.mutate import EDGES, WRITTEN, mutate
from tests.fuzz.readers import READERS, machine
from tests.fuzz.runner import try_one
from tests.synthetic import PAGE, note, prstatus, vmcoreinfo_text

# What is left there by processes that end suddenly goes with this one.
readers.room()
# All of it, each time.
readers.DEEP = command_line.FORKED = 1
# So many milliseconds of an input, at the least, have fewer.
_SLOW = {"commands": 12, "zram memory": 12, "oprofile memory": 20, "arguments": 40}


def hypothetically(
    examples: int, *strategies: st.SearchStrategy[Any]
) -> Callable[[Callable[..., None]], Callable[[], None]]:
    """A property, tried within limits of memory and time."""

    def decorate(property_: Callable[..., None]) -> Callable[[], None]:
        tried = settings(
            max_examples=examples,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )(given(*strategies)(property_))

        def test() -> None:
            within_limits(tried)

        test.__name__, test.__doc__ = property_.__name__, property_.__doc__
        return test

    return decorate


def read(name: str, data: bytes) -> None:
    error = try_one(READERS[name], data)
    if error is not None:
        raise error


@pytest.mark.parametrize("name", READERS)
def test_mutations(name: str) -> None:
    reader = READERS[name]
    seeds = reader.seeds()

    @hypothetically(_SLOW.get(name, 60), st.integers(0, 1 << 60))
    def mutated(number: int) -> None:
        chance = random.Random(number)
        seed = chance.choice(seeds)
        read(name, mutate(seed, seeds, chance, most=reader.most, fixed=reader.fixed))

    mutated()


@pytest.mark.parametrize("name", READERS)
def test_seeds(name: str) -> None:
    """What mutations begin with, what long runs found, and the shortest inputs."""
    for data in (*READERS[name].seeds(), *readers.corpus(name)):
        read(name, data)
    for data in (b"", b"\0", b"\xff" * 16):
        read(name, data)


# --- any field, any number --------------------------------------------------------


def number(bits: int) -> st.SearchStrategy[int]:
    """What does well in so many bits, or is at the edge of it."""
    edges = sorted({edge % (1 << bits) for edge in EDGES})
    return st.sampled_from(edges) | st.integers(0, (1 << bits) - 1)


word, half, quarter = number(64), number(32), number(16)
body = st.binary(max_size=600)
row = st.tuples(st.sampled_from([elf.PT_LOAD, elf.PT_NOTE]) | half, half, *[word] * 6)


@hypothetically(
    300,
    st.lists(row, max_size=6),
    st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(("phoff", "shoff"), word),
            **dict.fromkeys(("phentsize", "phnum", "type", "machine"), quarter),
        },
    ),
    body,
)
def test_any_elf_header(
    rows: list[tuple[int, ...]], changes: dict[str, int], rest: bytes
) -> None:
    fields = {
        "type": 4,
        "machine": 62,
        "phoff": 64,
        "shoff": 0,
        "phentsize": 56,
        "phnum": len(rows),
        **changes,
    }
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\2\1\1",
        *(fields["type"], fields["machine"], 1, 0, fields["phoff"], fields["shoff"]),
        *(0, 64, fields["phentsize"], fields["phnum"], 64, 1, 0),
    )
    table = b"".join(struct.pack("<IIQQQQQQ", *one) for one in rows)
    data = header + table + rest
    for name in ("elf", "verify"):
        read(name, data)
    read("commands", b"\2" + data)


_KDUMP_FIELDS = {
    **dict.fromkeys(("version", "status", "block_size", "bitmap_blocks"), half),
    **dict.fromkeys(("sub_hdr_size", "nr_cpus", "split", "dump_level"), half),
    **dict.fromkeys(("phys_base", "max_mapnr", "start_pfn", "end_pfn"), word),
    **{
        f"{what}_{of}": word
        for what in ("offset", "size")
        for of in ("note", "vmcoreinfo")
    },
}
_SIGNED = {"version", "sub_hdr_size", "nr_cpus", "split", "dump_level"}
_SIGNED_64 = {"phys_base", "offset_note", "offset_vmcoreinfo"}


@hypothetically(
    300,
    st.fixed_dictionaries({}, optional=_KDUMP_FIELDS),
    st.lists(st.tuples(word, half, half, word), min_size=2, max_size=2),
    st.integers(0, 4),
)
def test_any_kdump_header(
    changes: dict[str, int], rows: list[tuple[int, ...]], cut: int
) -> None:
    header = kdump.new_header(
        utsname=(b"Linux", b"", b"", b"", b"x86_64", b""),
        timestamp=1,
        status=1,
        block_size=PAGE,
        nr_cpus=1,
        phys_base=0,
        dump_level=1,
        notes=b"",
        vmcoreinfo=(0, 0),
        max_mapnr=100,
    )
    for name, value in changes.items():
        if name in _SIGNED:
            changes[name] = value - (value >> 31 << 32)
        elif name in _SIGNED_64:
            changes[name] = value - (value >> 63 << 64)
    # Where things are stays as it was: only what the header says of it changes.
    raw = bytearray(kdump.pack_headers(header, b""))
    said = kdump.pack_headers(
        header._replace(
            **cast(Any, {**changes, "block_size": PAGE, "sub_hdr_size": 1})
        ),
        b"",
    )
    raw[: len(said)] = said
    for name, at in (("block_size", 428), ("sub_hdr_size", 432)):
        if name in changes:
            struct.pack_into("<I", raw, at, changes[name] % (1 << 32))
    bitmap = b"\x11".ljust(PAGE, b"\0")
    table = b"".join(struct.pack("<QIIQ", *one) for one in rows)
    data = bytes(raw) + 2 * bitmap + table + bytes(100)
    data = data[: len(data) - cut * 2000]
    for name in ("kdump", "verify"):
        read(name, data)


@hypothetically(
    200, st.lists(st.tuples(half, half, half, st.binary(max_size=40))), body
)
def test_any_notes(notes: list[tuple[int, int, int, bytes]], rest: bytes) -> None:
    data = b"".join(struct.pack("<III", *one[:3]) + one[3] for one in notes)
    read("notes", data + rest)
    read("notes", prstatus(1) + note(b"VMCOREINFO", 0, rest) + data)


@hypothetically(
    200,
    st.lists(st.tuples(word | st.integers(0, 9000), word | st.integers(0, 900), body)),
    body,
)
def test_any_records_of_a_stream(
    records: list[tuple[int, int, bytes]], rest: bytes
) -> None:
    data = flattened.HEADER + rest[:0]
    for offset, size, content in records:
        data += struct.pack(">QQ", offset, size) + content[: min(size, 600)]
    for end in (rest, flattened.END):
        read("flattened", data + end)
        read("rearrange", data + end)


_KEYS = {**machine("4.18").keys, **machine("6.6").keys, **machine("7.2").keys}
_VALUES = (
    word.map(str)
    | word.map(hex)
    | word.map("{:x}".format)
    | st.text(max_size=8)
    | st.sampled_from(WRITTEN)
)


@hypothetically(
    300,
    st.dictionaries(st.sampled_from(sorted(_KEYS)), _VALUES, max_size=4),
    st.booleans(),
)
def test_any_vmcoreinfo(changes: dict[str, str], all_keys: bool) -> None:
    """Keys of all kernels at once, or of one, with any values."""
    keys = {**(_KEYS if all_keys else machine("7.2").keys), **changes}
    text = vmcoreinfo_text(keys)
    read("vmcoreinfo", text)
    memory = readers.kernel_seeds()[0][: 2 + 68 * 200]
    (length,) = struct.unpack_from("<H", memory)
    whole = (
        struct.pack("<H", min(len(text), 65535)) + text[:65535] + memory[2 + length :]
    )
    for name in ("page tables", "mem_section", "struct pages", "kernel log"):
        read(name, whole)


@hypothetically(
    200,
    st.lists(st.tuples(st.integers(0, 511), word), max_size=30),
    st.sampled_from(["page tables", "mem_section", "struct pages", "kernel log"]),
    st.integers(0, 1 << 30),
)
def test_any_words_of_a_kernel(
    words: list[tuple[int, int]], name: str, place: int
) -> None:
    """Tables, struct pages or the log, of which some words are any numbers."""
    seed = readers.kernel_seeds()[place % 4]
    (length,) = struct.unpack_from("<H", seed)
    pieces = np.frombuffer(seed[2 + length :], np.uint8).copy().reshape(-1, 68)
    for at, value in words:
        of = (place // 4 + at) % len(pieces)
        pieces[of, 4 + 8 * (at % 8) :][:8] = np.frombuffer(
            struct.pack("<Q", value), np.uint8
        )
    read(name, seed[: 2 + length] + pieces.tobytes())


@hypothetically(
    200,
    st.integers(0, 255),
    st.binary(max_size=14),
    st.lists(
        st.tuples(st.integers(0, (1 << 24) - 1), st.binary(max_size=8)), max_size=4
    ),
)
def test_any_zstd_frame(
    flags: int, head: bytes, blocks: list[tuple[int, bytes]]
) -> None:
    data = b"\x28\xb5\x2f\xfd" + bytes([flags]) + head
    for size, content in blocks:
        data += size.to_bytes(3, "little") + content
    read("stream zstd", data)
    read("page codec zstd", data)
    read("pstore oops", b"====1.000001-C\n" + data)


_SIGNATURES = st.sampled_from([regions.SIG, *regions.FTRACE_SIG.values()])


@hypothetically(
    100,
    st.lists(st.tuples(_SIGNATURES, half, half, st.integers(0, 300)), max_size=12),
)
def test_any_zones(zones: list[tuple[int, int, int, int]]) -> None:
    data = b"".join(
        struct.pack("<III", signature, start, used) + b"====1.1-D\n" * (size // 10)
        for signature, start, used, size in zones
    )
    for layout in (b"\0", b"\1", b"\2"):
        read("ramoops region", layout + data)
        read("ramoops region", layout + data.ljust(8192, b"\0"))


_C = st.sampled_from("%\"\\,(){}[]-+*/&|<>?:=!;. '0x19aRECi>_puslw")


@hypothetically(100, st.text(_C, max_size=200), st.binary(max_size=80))
def test_any_format(source: str, record: bytes) -> None:
    read("print formats", b'"%s %d", ' + source.encode())
    read("print formats", b'"' + source.encode() + b'", REC->i, REC->comm')
    read("trace_printk", source.encode() + b"\0" + record)
