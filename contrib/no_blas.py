# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A few KB in place of the linear algebra that numpy is linked with.

numpy from PyPI brings 28 MB of OpenBLAS and Fortran; distributions have libraries of
their own. Nothing of drgn-tools uses it, but numpy does not load without. So here is a
shared library that has the functions that numpy asks for. One of them works, because
numpy tries it when it is imported; all others say so and kill the process.

Written byte by byte, for machines that build an initramfs have no compiler.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence

MACHINE = "x86_64"
"""The machine, as uname says it, that the code is for."""

_MESSAGE = b"drgn-tools: this numpy comes without linear algebra, and it was called\n"

# sdot(n, x, incx, y, incy) = sum of x[i * incx] * y[i * incy], as
# numpy._sanity_check() calls it: rdi, rsi, rdx, rcx, r8 to xmm0.
_SDOT_NARROW = bytes.fromhex(
    "4863ff"  # movsxd rdi, edi: with 32-bit integers the upper halves are anything
    "4863d2"  # movsxd rdx, edx
    "4d63c0"  # movsxd r8, r8d
)
_SDOT = bytes.fromhex(
    "0f57c0"  # xorps xmm0, xmm0
    "4885ff"  # next: test rdi, rdi
    "7e19"  # jle done
    "f30f100e"  # movss xmm1, [rsi]
    "f30f5909"  # mulss xmm1, [rcx]
    "f30f58c1"  # addss xmm0, xmm1
    "488d3496"  # lea rsi, [rsi + rdx * 4]
    "4a8d0c81"  # lea rcx, [rcx + r8 * 4]
    "48ffcf"  # dec rdi
    "ebe2"  # jmp next
    "c3"  # done: ret
)
_SDOT_NAME = re.compile(r"(?:scipy_)?cblas_sdot(64_|_64|64)?")

# write(2, message, length), and an instruction that no CPU knows.
_DIE = bytes.fromhex(
    "b801000000"  # mov eax, 1
    "bf02000000"  # mov edi, 2
    "488d3509000000"  # lea rsi, [rip + 9]: what follows this code
    f"ba{len(_MESSAGE):02x}000000"  # mov edx, length
    "0f05"  # syscall
    "0f0b"  # ud2
)

_PAGE = 4096
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_PT_LOAD, _PT_DYNAMIC, _PT_GNU_STACK = 1, 2, 0x6474E551
_PF_X, _PF_W, _PF_R = 1, 2, 4
_DT_NULL, _DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ = 0, 4, 5, 6, 10
_DT_SYMENT, _DT_SONAME = 11, 14
_GLOBAL_FUNCTION = 0x12


def library(soname: str, functions: Sequence[str]) -> bytes:
    """Return a shared library of that name that has these functions."""
    code = b""
    places = {}
    for name in functions:
        match = _SDOT_NAME.fullmatch(name)
        if match:
            places[name] = len(code)
            code += (b"" if match.group(1) else _SDOT_NARROW) + _SDOT
    die = len(code)
    code += _DIE + _MESSAGE

    names = b"\0"
    offsets = {}
    for name in (soname, *functions):
        offsets[name] = len(names)
        names += name.encode() + b"\0"
    count = len(functions) + 1
    # One bucket, and every symbol is followed by the next.
    chain = [0, *range(2, count), 0]
    table = struct.pack(f"<{3 + count}I", 1, count, 1, *chain)

    at_hash = _HEADER.size + 4 * _SEGMENT.size
    at_symbols = _aligned(at_hash + len(table))
    at_names = at_symbols + count * _SYMBOL.size
    at_code = _aligned(at_names + len(names))
    at_dynamic = _aligned(at_code + len(code))
    symbols = bytes(_SYMBOL.size) + b"".join(
        # Of section 1, though there are no sections: just not an undefined one.
        _SYMBOL.pack(
            offsets[name], _GLOBAL_FUNCTION, 0, 1, at_code + places.get(name, die), 0
        )
        for name in functions
    )
    dynamic = b"".join(
        struct.pack("<QQ", tag, value)
        for tag, value in (
            (_DT_SONAME, offsets[soname]),
            (_DT_HASH, at_hash),
            (_DT_STRTAB, at_names),
            (_DT_STRSZ, len(names)),
            (_DT_SYMTAB, at_symbols),
            (_DT_SYMENT, _SYMBOL.size),
            (_DT_NULL, 0),
        )
    )
    # Loaders before glibc 2.36 write to what is dynamic: it gets a page of its own.
    dynamic_address = at_dynamic + _PAGE
    end = at_dynamic + len(dynamic)
    segments = (
        (_PT_LOAD, _PF_R | _PF_X, 0, 0, at_dynamic, _PAGE),
        (_PT_LOAD, _PF_R | _PF_W, at_dynamic, dynamic_address, len(dynamic), _PAGE),
        (_PT_DYNAMIC, _PF_R | _PF_W, at_dynamic, dynamic_address, len(dynamic), 8),
        # Without it the loader would make every stack executable.
        (_PT_GNU_STACK, _PF_R | _PF_W, 0, 0, 0, 16),
    )
    content = bytearray(end)
    ident = b"\x7fELF\2\1\1".ljust(16, b"\0")
    content[: _HEADER.size] = _HEADER.pack(
        # A shared object (3) for x86-64 (62).
        *(ident, 3, 62, 1, 0, _HEADER.size, 0, 0, _HEADER.size),
        *(_SEGMENT.size, len(segments), 0, 0, 0),
    )
    for i, (kind, flags, offset, address, size, alignment) in enumerate(segments):
        _SEGMENT.pack_into(
            *(content, _HEADER.size + i * _SEGMENT.size, kind, flags),
            *(offset, address, address, size, size, alignment),
        )
    for at, part in (
        (at_hash, table),
        (at_symbols, symbols),
        (at_names, names),
        (at_code, code),
        (at_dynamic, dynamic),
    ):
        content[at : at + len(part)] = part
    return bytes(content)


def _aligned(offset: int) -> int:
    return -(-offset // 16) * 16
