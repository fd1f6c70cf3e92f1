# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Kernel symbols
--------------

Names of addresses as the kernel prints them (``%ps`` and ``%pS``), many at once.

From kallsyms in the kernel's own memory if it can be had: it has the sizes that the
kernel prints, and needs no debugging symbols. A look-up takes a microsecond, where
:meth:`drgn.Program.symbol()` takes some milliseconds.
"""

from __future__ import annotations

import bisect
import contextlib
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import drgn
from drgn import (
    FaultError,
    MissingDebugInfoError,
    Object,
    Program,
    ProgramFlags,
    Symbol,
    SymbolBinding,
    SymbolKind,
)

# What drgn raises when something is not in the dump, or not as it was.
_NOT_THERE = (
    *(LookupError, FaultError, ValueError, AttributeError, TypeError, OSError),
    # Of tables that are said to be larger than all memory, or to have nothing.
    *(MemoryError, OverflowError, drgn.OutOfBoundsError),
    # Of damaged tables, where drgn has it.
    getattr(drgn, "BadDataError", ValueError),
)


class Found(NamedTuple):
    """The symbol that an address belongs to."""

    name: str
    offset: int
    """Of the address from the symbol, in bytes."""
    size: int
    """Up to the next symbol, as kallsyms has it."""
    module: str
    """Empty for the kernel itself."""

    @property
    def plain(self) -> str:
        """As ``%ps``."""
        return self.name + self._suffix

    @property
    def full(self) -> str:
        """As ``%pS``."""
        return f"{self.name}+{self.offset:#x}/{self.size:#x}{self._suffix}"

    @property
    def _suffix(self) -> str:
        return f" [{self.module}]" if self.module else ""


# More than any module has: drgn makes room for as many as there are said to be.
_MAX_SYMBOLS = 1 << 20


def _symbol_count(module: Object) -> int:
    # In struct module itself before 4.5.
    whole = module.kallsyms if module.type_.type.has_member("kallsyms") else module
    return int(whole.num_symtab.value_())


# What linker scripts provide.
_PROVIDED = re.compile("__((start|stop|end)_.*|.*_(start|end))")


def _rank(symbol: Symbol, name: str) -> tuple[bool, bool, int, str]:
    # Of symbols at one address, scripts/kallsyms.c puts the least of these first.
    return (
        symbol.binding == SymbolBinding.WEAK,
        bool(_PROVIDED.fullmatch(name)),
        len(name) - len(name.lstrip("_")),
        name,
    )


class _Table:
    # Sorted symbols of the kernel or of one module.

    def __init__(
        self, symbols: Iterable[Symbol], begin: int, end: int, *, sorted_: bool
    ) -> None:
        names: dict[int, tuple[tuple[bool, bool, int, str], str]] = {}
        for symbol in symbols:
            address, name = symbol.address, symbol.name
            if not begin <= address < end or not name or name[0] in ".$":
                continue
            if sorted_:
                # The kernel takes the first of several at one address.
                names.setdefault(address, ((False, False, 0, ""), name))
                continue
            if symbol.kind in (SymbolKind.FILE, SymbolKind.SECTION):
                continue
            key = _rank(symbol, name)
            if address not in names or key < names[address][0]:
                names[address] = key, name
        self.addresses = sorted(names)
        self.names = [names[address][1] for address in self.addresses]
        self.end = end

    def find(self, address: int, module: str = "") -> Found | None:
        i = bisect.bisect_right(self.addresses, address) - 1
        if i < 0 or address >= self.end:
            return None
        begin = self.addresses[i]
        after = self.addresses[i + 1] if i + 1 < len(self.addresses) else self.end
        return Found(self.names[i], address - begin, after - begin, module)


class KernelSymbols:
    """Symbols of a program, for look-ups by address."""

    def __init__(self, prog: Program) -> None:
        self._prog = prog
        self._elf: list[Symbol] | None = None
        symbols: list[Symbol] = []
        #: What says where a variable is, even without debugging symbols.
        self.kallsyms: dict[str, int] = {}
        if prog.flags & ProgramFlags.IS_LINUX_KERNEL:
            with contextlib.suppress(
                ImportError, MissingDebugInfoError, NotImplementedError, *_NOT_THERE
            ):
                # drgn has it since 0.0.31; VMCOREINFO what it takes, since 6.0.
                from drgn.helpers.linux.kallsyms import load_vmlinux_kallsyms

                index = load_vmlinux_kallsyms(prog)
                symbols = index(prog, None, None, False)
                self.kallsyms = {symbol.name: symbol.address for symbol in symbols}
        from_kallsyms = bool(symbols)
        if not from_kallsyms:
            symbols = self._elf_symbols()
        begin, end = self._limits(symbols)
        self._kernel = _Table(symbols, begin, end, sorted_=from_kallsyms)
        self._modules: list[tuple[int, int, str, _Table]] | None = None

    def _elf_symbols(self) -> list[Symbol]:
        if self._elf is None:
            try:
                self._elf = self._prog.symbols()
            except LookupError:
                self._elf = []
        return self._elf

    @staticmethod
    def _limits(symbols: list[Symbol]) -> tuple[int, int]:
        known = {
            symbol.name: symbol.address
            for symbol in symbols
            if symbol.name in ("_text", "_stext", "_end", "_etext")
        }
        begin = known.get("_text", known.get("_stext", 0))
        end = known.get("_end", 0)
        if end <= begin:
            # Without CONFIG_KALLSYMS_ALL, there is only text.
            end = known.get("_etext", 0)
        if end <= begin:
            end = max((s.address + max(s.size, 1) for s in symbols), default=0)
        return begin, end

    def _module_tables(self) -> list[tuple[int, int, str, _Table]]:
        if self._modules is None:
            self._modules = []
            with contextlib.suppress(ImportError, *_NOT_THERE):
                from drgn.helpers.linux.kallsyms import module_kallsyms
                from drgn.helpers.linux.module import (
                    for_each_module,
                    module_address_regions,
                )

                seen: set[int] = set()
                for module in for_each_module(self._prog):
                    # A damaged list may lead back to any of them.
                    if module.value_() in seen:
                        break
                    seen.add(module.value_())
                    with contextlib.suppress(UnicodeError, *_NOT_THERE):
                        name = module.name.string_().decode()
                        symbols: list[Symbol] = []
                        with contextlib.suppress(*_NOT_THERE):
                            if _symbol_count(module) <= _MAX_SYMBOLS:
                                symbols = module_kallsyms(module)
                        symbols = symbols or self._elf_symbols()
                        for start, size in module_address_regions(module):
                            table = _Table(symbols, start, start + size, sorted_=False)
                            if table.addresses:
                                row = (start, start + size, name, table)
                                self._modules.append(row)
        return self._modules

    def find(self, address: int, *, modules: bool = True) -> Found | None:
        """The symbol that *address* is in, or None."""
        found = self._kernel.find(address)
        if found is None and modules:
            for begin, end, name, table in self._module_tables():
                if begin <= address < end:
                    return table.find(address, name)
        return found

    def all(self) -> Iterator[tuple[int, str, str]]:
        """Address, name and module of each symbol, the kernel's own first."""
        for address, name in zip(self._kernel.addresses, self._kernel.names):
            yield address, name, ""
        for _, _, module, table in self._module_tables():
            for address, name in zip(table.addresses, table.names):
                yield address, name, module

    @property
    def functions(self) -> list[int]:
        """Addresses of the kernel's own symbols, modules' left out; ascending."""
        return self._kernel.addresses


def kernel_symbols(prog: Program) -> KernelSymbols:
    """The symbols of *prog*, read once."""
    symbols = prog.cache.get("drgn_tools_symbols")
    if not isinstance(symbols, KernelSymbols):
        symbols = prog.cache["drgn_tools_symbols"] = KernelSymbols(prog)
    return symbols
