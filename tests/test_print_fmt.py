# SPDX-License-Identifier: LGPL-2.1-or-later
"""Print formats of events, against the C library and by hand."""

from __future__ import annotations

import ctypes
import random
import struct

import pytest

from drgn_tools.ftrace_text import binary_printf, siphash
from drgn_tools.print_fmt import Field, Unsupported, compile_print_fmt


class Kernel:
    """One that says what it is asked."""

    little = True
    word = 8

    def symbol(self, address: int) -> str:
        return f"symbol_{address:x}"

    def symbol_offset(self, address: int) -> str:
        return f"symbol_{address:x}+0x1/0x2"

    def pointer(self, address: int) -> str:
        return f"{address:016x}"

    def hashed_pointer(self, address: int) -> str:
        return f"{address:016x}"

    def error(self, address: int) -> str:
        return f"error_{address:x}"

    def string(self, address: int) -> str:
        return {0x1000: "there"}.get(address, "(null)")

    def size_of(self, name: str) -> int:
        return {"struct page": 64}[name]

    def constant(self, name: str) -> int:
        return {"SOME": 3, "vmemmap_base": 1 << 40}[name]


FIELDS = {
    field.name: field
    for field in (
        Field("i", "int", 0, 4, True),
        Field("u", "unsigned int", 4, 4, False),
        Field("l", "long", 8, 8, True),
        Field("q", "u64", 16, 8, False),
        Field("h", "unsigned short", 24, 2, False),
        Field("c", "signed char", 26, 1, True),
        Field("comm", "char[8]", 28, 8, False),
        Field("text", "__data_loc char[]", 36, 4, False),
        Field("rel", "__rel_loc char[]", 40, 4, False),
        Field("words", "__data_loc u32[]", 44, 4, False),
        Field("table", "u16[4]", 48, 8, False),
        Field("pointer", "const char *", 56, 8, False),
        Field("address", "__u8[4]", 64, 4, False),
        Field("mask", "__data_loc unsigned long[]", 68, 4, False),
    )
}


def record(
    i: int = -5,
    u: int = 7,
    long: int = -9,
    q: int = 1 << 63,
    h: int = 0x1234,
    c: int = -1,
    pointer: int = 0x1000,
) -> bytes:
    fixed = struct.pack("<iIqQHbx8s", i, u, long, q, h, c, b"comm\0xxx")
    at = 72
    text, words, mask = b"dynamic\0", struct.pack("<3I", 1, 255, 7), b"\x05" + bytes(7)
    fixed += struct.pack("<I", len(text) << 16 | at)
    # Counted from its own end.
    fixed += struct.pack("<I", len(text) << 16 | at - 44)
    fixed += struct.pack("<I", len(words) << 16 | at + len(text))
    fixed += struct.pack("<4HQ4B", 1, 2, 3, 4, pointer, 192, 168, 0, 1)
    fixed += struct.pack("<I", len(mask) << 16 | at + len(text) + len(words))
    return fixed + text + words + mask


def shown(print_fmt: str, data: bytes = record()) -> str:
    return compile_print_fmt(print_fmt, FIELDS, Kernel())(data)


CASES = [
    ('"plain 100%%"', "plain 100%"),
    ('"%d %u %ld", REC->i, REC->u, REC->l', "-5 7 -9"),
    # Each conversion takes as much of a value as it says.
    ('"%u %x %d", REC->i, REC->i, REC->q', "4294967291 fffffffb 0"),
    ('"%lx %llu", REC->l, REC->q', "fffffffffffffff7 9223372036854775808"),
    ('"%hd %hhx", REC->h, REC->c', "4660 ff"),
    ('"[%5d|%-5d|%05d|%+d]", REC->u, REC->u, REC->u, REC->u', "[    7|7    |00007|+7]"),
    ('"%#x %#o %08lx", REC->u, REC->u, REC->u', "0x7 07 00000007"),
    ('"%*d|%.*s", 4, REC->u, 2, REC->comm', "   7|co"),
    ('"%s %-6s|", REC->comm, REC->comm', "comm comm  |"),
    ('"%s %s", __get_str(text), __get_rel_str(rel)', "dynamic dynamic"),
    ('"%s", REC->pointer', "there"),
    ('"a" "b %d\\n", 1', "ab 1\n"),
    ('"%c%c", REC->comm[0], 0x41', "cA"),
    # Expressions.
    ('"%d", 1 + 2 * 3 - 4 / 2 % 3', "5"),
    ('"%d", (REC->u & 3) == 3 && REC->i < 0 || 0', "1"),
    ('"%d %d", -7 / 2, -7 % 2', "-3 -1"),
    ('"%d", REC->u > -1', "0"),
    ('"%d", REC->i > -6', "1"),
    ('"%d", REC->q != -1UL', "1"),
    ('"%d", (int)REC->q == 0', "1"),
    ('"%lu", 1UL << 40 | 1 << 4', "1099511627792"),
    ('"%d", (u8)300 + (s8)200', "-12"),
    ('"%s", REC->i ? REC->u == 7 ? "seven" : "other" : "none"', "seven"),
    ('"%d", !REC->i + ~0', "-1"),
    ('"%d %d", SOME, sizeof(u64) * 2', "3 16"),
    ('"%d", (REC)->u', "7"),
    ('"%lx", (unsigned long)(((struct page *)vmemmap_base) + (REC->u))', "100000001c0"),
    # Functions.
    (
        '"%s", __print_symbolic(REC->u, { 1, "one" }, { 7, "seven" })',
        "seven",
    ),
    ('"%s", __print_symbolic(REC->u, { 1, "one" })', "0x7"),
    ('"%s", __print_symbolic(REC->u, { 7, "7" }, { 0, ((void *)0) })', "7"),
    (
        '"%s", __print_flags(REC->u, "|", { 1UL << 0, "a" }, { (1 << 1), "b" })',
        "a|b|0x4",
    ),
    ('"%s", __print_flags(REC->u, "", { 6, "SIX" }, { 1, "ONE" })', "SIXONE"),
    ('"%s", __print_array(__get_dynamic_array(words), 3, 4)', "{0x1,0xff,0x7}"),
    (
        '"%s", __print_array(__get_dynamic_array(words), '
        "__get_dynamic_array_len(words) / sizeof(u32), sizeof(u32))",
        "{0x1,0xff,0x7}",
    ),
    ('"%s", __print_dynamic_array(words, 4)', "{0x1,0xff,0x7}"),
    ('"%s", __print_hex(REC->address, 4)', "c0 a8 00 01"),
    ('"%s", __print_hex_str(REC->address, 3)', "c0a800"),
    ('"%s", __get_bitmask(mask)', "00000000,00000005"),
    ('"%u.%09u", __print_ns_to_secs(REC->u), __print_ns_without_secs(5)',
     "0.000000005"),
    ('"%#o|%#4o|%#o|%+u", REC->u, REC->u, 0, REC->u', "07|  07|0|7"),
    ('"%d:%d", MAJOR(REC->q >> 42), MINOR(5)', "2:5"),
    ('"%d", REC->table[2]', "3"),
    ('"%x", ((u32 *)__get_dynamic_array(words))[1]', "ff"),
    # Pointers.
    ('"%ps %pS %p", (void *)REC->u, REC->u, REC->u',
     "symbol_7 symbol_7+0x1/0x2 0000000000000007"),
    ('"%pI4 %4phC", REC->address, REC->address', "192.168.0.1 c0:a8:00:01"),
    ('"%*phD", 2, REC->address', "c0-a8"),
    ('"%3p|%-3px|%03pK|%pe", REC->u, REC->u, REC->u, REC->u', "  7|7  |007|error_7"),
]  # fmt: skip


@pytest.mark.parametrize(("print_fmt", "said"), CASES)
def test_what_is_printed(print_fmt: str, said: str) -> None:
    assert shown(print_fmt) == said


@pytest.mark.parametrize(
    "print_fmt",
    [
        "",
        "REC->i",
        '"%d"',
        '"%d", REC->none',
        '"%d", REC->i, REC->i',
        '"%d", UNKNOWN',
        '"%d", function(REC->i)',
        '"%d", ({ int x = 1; x; })',
        '"%d", REC->i->member',
        '"%d", REC->comm + 1',
        '"%s", __print_symbolic(REC->u, { REC->i, "a" })',
        '"%s", __get_str(i)',
        '"%pZ", REC->i',
        '"%99999d", REC->i',
        '"%d", ' + "(" * 5000 + "1" + ")" * 5000,
        '"%d", ' + "!" * 5000 + "1",
        '"%d", @',
        '"' + "x" * (1 << 18) + '"',
    ],
)
def test_what_is_not_known_is_said(print_fmt: str) -> None:
    with pytest.raises(Unsupported):
        compile_print_fmt(print_fmt, FIELDS, Kernel())


def test_a_record_that_is_too_short() -> None:
    printed = compile_print_fmt('"%lx", REC->q', FIELDS, Kernel())
    with pytest.raises(struct.error):
        printed(record()[:20])


def test_numbers_are_as_the_c_library_s() -> None:
    seed = random.Random(1)
    libc = ctypes.CDLL(None)
    buffer = ctypes.create_string_buffer(8192)
    lengths = {"hh": 1, "h": 2, "": 4, "l": 8, "ll": 8, "z": 8}
    for _ in range(2000):
        flags = "".join(f for f in "-+ #0" if seed.random() < 0.3)
        width = seed.choice(["", "1", "8", "20"])
        precision = seed.choice(["", "", ".3", ".12"])
        length = seed.choice(sorted(lengths))
        conversion = seed.choice("diuxXo")
        value = seed.choice([0, 1, -1, seed.getrandbits(64), seed.getrandbits(16)])
        # C leaves open what these mean together.
        if "#" in flags and (conversion in "diu" or precision or conversion == "o"):
            flags = flags.replace("#", "")
        if conversion in "uxXo":
            flags = flags.replace("+", "").replace(" ", "")
        if not value:
            # The kernel shows a prefix and a digit of zero too.
            flags = flags.replace("#", "")
        if precision:
            flags = flags.replace("0", "")
        form = f"%{flags}{width}{precision}{length}{conversion}"
        data = record(q=value & (1 << 64) - 1)
        libc.snprintf(buffer, 8192, form.encode(), ctypes.c_ulonglong(value))
        assert shown(f'"{form}", REC->q', data) == buffer.value.decode(), form


def test_mutated_formats() -> None:
    seed = random.Random(2)
    alphabet = '"%(){}[]<>&|!~+-*/?:,.;0x17 \\RECsdu->_'
    known = [print_fmt for print_fmt, _ in CASES]
    data = record()
    for _ in range(10_000):
        text = list(seed.choice(known))
        for _ in range(seed.choice([1, 1, 3, 10])):
            at = seed.randrange(len(text))
            if seed.random() < 0.3:
                del text[at]
            else:
                text.insert(at, seed.choice(alphabet))
            if not text:
                text = ["x"]
        try:
            printed = compile_print_fmt("".join(text), FIELDS, Kernel())
        except Unsupported:
            continue
        try:
            said = printed(data[: seed.choice([len(data), 40])])
        except (struct.error, ValueError, IndexError, TypeError, OverflowError):
            continue
        assert len(said) < 100_000


def test_siphash() -> None:
    # The test vectors of its authors, of 8 and 4 bytes.
    key = struct.unpack("<QQ", bytes(range(16)))
    eight, four = int.from_bytes(bytes(range(8)), "little"), 0x03020100
    assert siphash(eight, 8, key) == 0x93F5F5799A932462
    assert siphash(four, 4, key) == 0xCF2794E0277187B7


BINARY = [
    ("plain\n", b"", "plain\n"),
    ("%d and %u%%", struct.pack("<iI", -3, 4), "-3 and 4%"),
    # 64 bits are aligned to 32 of them, strings to nothing.
    ("%d %llx %d", struct.pack("<iQi", 1, 1 << 40, 2), "1 10000000000 2"),
    ("%s: %d", b"name\0\0\0\0" + struct.pack("<i", 9), "name: 9"),
    ("%hhd %hd %d", struct.pack("<bxhi", -1, -2, -3), "-1 -2 -3"),
    ("%c%5s|", b"Aab\0", "A   ab|"),
    ("%*d|%-*d|", struct.pack("<4i", 4, 1, 3, 2), "   1|2  |"),
    ("%ps %lu", struct.pack("<QQ", 0x10, 5), "symbol_10 5"),
    ("%pe %pSR|", struct.pack("<QQ", 1, 2), "error_1 symbol_2+0x1/0x2|"),
    ("[%6px] [%-6p] [%#o]", struct.pack("<QQI", 10, 12, 8), "[     a] [c     ] [010]"),
    ("%04p %#o", struct.pack("<QI", 10, 0), "000a 0"),
    (
        "[%.*s] [%+x] [%*d]",
        struct.pack("<i4sIii", -1, b"ab", 5, -3, 6),
        "[ab] [5] [6  ]",
    ),
    ("%pI4 %d", b"1.2.3.4\0" + struct.pack("<i", 6), "1.2.3.4 6"),
]


@pytest.mark.parametrize(("form", "packed", "said"), BINARY)
def test_values_packed_by_trace_printk(form: str, packed: bytes, said: str) -> None:
    assert binary_printf(form, packed, Kernel()) == said


def test_short_values_packed_as_ints() -> None:
    packed = struct.pack("<iIiIi", -1, 0x1FF, -2, 0x1FFFF, -3)
    said = binary_printf("%hhd %hhx %hd %hx %d", packed, Kernel(), widened=True)
    assert said == "-1 ff -2 ffff -3"


@pytest.mark.parametrize(
    ("form", "packed"),
    [("%d", b""), ("%s", b"no end"), ("%99999d", bytes(8)), ("%Q", bytes(8))],
)
def test_values_that_are_not_there(form: str, packed: bytes) -> None:
    with pytest.raises((ValueError, struct.error)):
        binary_printf(form, packed, Kernel())
