# SPDX-License-Identifier: LGPL-2.1-or-later
"""VMCOREINFO: the text's forms, and every kind of value."""

from __future__ import annotations

from typing import Callable

import pytest

from drgn_tools.errors import DumpError
from drgn_tools.vmcoreinfo import Vmcoreinfo, if_sound, require

TEXT = b"""OSRELEASE=7.2.0-rc1+
BUILD-ID=0123456789abcdef
PAGESIZE=4096
SYMBOL(init_uts_ns)=ffffffff82a1b2c0
SYMBOL(zero)=0
SIZE(page)=64
OFFSET(page.flags)=0
OFFSET(a.b)=-8
LENGTH(zone.free_area)=11
NUMBER(PG_lru)=5
NUMBER(phys_base)=-16777216
NUMBER(VMALLOC_START)=0xffffc90000000000
NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-268435456
KERNELOFFSET=1e000000
CRASHTIME=1700000000
odd=a=b=c
CONFIG_X86=y
no separator
=no key
PAGESIZE=8192
"""


def test_values() -> None:
    info = Vmcoreinfo(TEXT + b"\0after the end=1\n")
    assert info.raw.startswith(TEXT)
    assert info.text("OSRELEASE") == "7.2.0-rc1+"
    assert info.text("odd") == "a=b=c"
    assert info.text("after the end") is None
    # The first of two is the kernel's.
    assert info.decimal("PAGESIZE") == 4096
    assert info.decimal("CRASHTIME") == 1700000000
    assert info.symbol("init_uts_ns") == 0xFFFFFFFF82A1B2C0
    assert info.symbol("zero") == 0
    assert info.size("page") == 64
    assert info.offset("page.flags") == 0
    assert info.offset("a.b") == -8
    assert info.length("zone.free_area") == 11
    assert info.number("PG_lru") == 5
    assert info.number("phys_base") == -16777216
    assert info.number("VMALLOC_START") == 0xFFFFC90000000000
    assert info.number("PAGE_BUDDY_MAPCOUNT_VALUE") == -268435456


def test_absent() -> None:
    info = Vmcoreinfo(TEXT)
    assert info.text("x") is None
    assert info.decimal("x") is None
    assert info.symbol("x") is None
    assert info.size("x") is None
    assert info.offset("x") is None
    assert info.length("x") is None
    assert info.number("x") is None


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"", b" \n", b"\n\n"])
def test_line_ends(end: bytes) -> None:
    info = Vmcoreinfo(b"PAGESIZE=4096\nSIZE(page)=64" + end)
    assert (info.decimal("PAGESIZE"), info.size("page")) == (4096, 64)


@pytest.mark.parametrize("value", ["", "x", "1.5", "0x", "--1", "12 34", "1e3", "\x80"])
def test_no_number(value: str) -> None:
    info = Vmcoreinfo(
        f"NUMBER(a)={value}\nSYMBOL(a)={value}g\nSIZE(a)={value}\nb={value}\n".encode()
    )
    reads: list[tuple[Callable[[], int | None], str]] = [
        (lambda: info.number("a"), r"NUMBER\(a\)"),
        (lambda: info.symbol("a"), r"SYMBOL\(a\)"),
        (lambda: info.size("a"), r"SIZE\(a\)"),
        (lambda: info.decimal("b"), "b"),
    ]
    for read, key in reads:
        with pytest.raises(DumpError, match=f"VMCOREINFO is damaged: {key} is"):
            read()
        assert if_sound(read) is None


def test_a_long_value_is_not_repeated() -> None:
    info = Vmcoreinfo(b"NUMBER(a)=" + b"x" * 100_000)
    with pytest.raises(DumpError) as caught:
        info.number("a")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("good", [None, 0, -1, (1 << 63) - 1, -(1 << 63)])
def test_if_sound(good: int | None) -> None:
    assert if_sound(lambda: good) == good


@pytest.mark.parametrize("bad", [1 << 63, -(1 << 63) - 1, 10**40])
def test_if_not_sound(bad: int) -> None:
    assert if_sound(lambda: bad) is None


def test_require() -> None:
    assert require(5, "K", 5, 5) == 5
    with pytest.raises(DumpError, match="lacks K"):
        require(None, "K", 0, 10)
    for value in (-1, 11):
        with pytest.raises(DumpError, match=f"K is {value}"):
            require(value, "K", 0, 10)
