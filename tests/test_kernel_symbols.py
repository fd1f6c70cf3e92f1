# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names of addresses, as kallsyms has them."""

from __future__ import annotations

import pytest
from drgn import Platform, Program, Symbol, SymbolBinding, SymbolIndex, SymbolKind

from drgn_tools.kernel_symbols import KernelSymbols, kernel_symbols
from tests.pstore_kernel import LP64

BASE = 0xFFFFFFFF81000000


def symbol(
    name: str,
    offset: int,
    binding: SymbolBinding = SymbolBinding.GLOBAL,
    kind: SymbolKind = SymbolKind.FUNC,
    size: int = 1,
) -> Symbol:
    return Symbol(name, BASE + offset, size, binding, kind)


def program(*symbols: Symbol, platform: Platform = LP64) -> Program:
    prog = Program(platform)
    prog.register_symbol_finder("test", SymbolIndex(symbols), enable_index=0)
    return prog


PROG = program(
    symbol("_text", 0, kind=SymbolKind.UNKNOWN, size=0),
    symbol("startup", 0x10),
    # Of one address: what scripts/kallsyms.c sorts to the front.
    symbol("__x64_sys_read", 0x40),
    symbol("sys_read", 0x40, SymbolBinding.WEAK),
    symbol("_alias", 0x80),
    symbol("alias", 0x80),
    symbol("__hot_text_end", 0xC0),
    symbol("____first", 0xC0),
    symbol("main.c", 0x90, kind=SymbolKind.FILE),
    symbol(".Llocal", 0x90),
    symbol("last", 0x100),
    symbol("_end", 0x180, kind=SymbolKind.UNKNOWN, size=0),
    symbol("beyond", 0x200),
)


@pytest.mark.parametrize(
    ("offset", "plain", "full"),
    [
        (0x10, "startup", "startup+0x0/0x30"),
        (0x3F, "startup", "startup+0x2f/0x30"),
        (0x44, "__x64_sys_read", "__x64_sys_read+0x4/0x40"),
        (0x91, "alias", "alias+0x11/0x40"),
        (0xC0, "____first", "____first+0x0/0x40"),
        (0x17F, "last", "last+0x7f/0x80"),
    ],
)
def test_names(offset: int, plain: str, full: str) -> None:
    found = KernelSymbols(PROG).find(BASE + offset)
    assert found is not None and (found.plain, found.full) == (plain, full)


@pytest.mark.parametrize(
    "address", [0, BASE - 1, BASE + 0x180, BASE + 0x200, (1 << 64) - 1]
)
def test_nothing_there(address: int) -> None:
    assert KernelSymbols(PROG).find(address) is None


def test_no_symbols_at_all() -> None:
    symbols = KernelSymbols(Program(LP64))
    assert symbols.find(BASE) is None and symbols.functions == []


def test_read_once() -> None:
    assert kernel_symbols(PROG) is kernel_symbols(PROG)
