# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Print formats of trace events
-----------------------------

A trace event says how it is printed with a string of C: a format and expressions on
the record's fields. Here these are parsed and turned into functions that print records;
nothing of them is executed. What they may hold is what :linux:`include/trace/stages/`
makes of ``TP_printk()``.
"""

from __future__ import annotations

import ipaddress
import operator
import re
import struct
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Callable, NamedTuple, Protocol


class Unsupported(ValueError):
    """The format has something that is not known here; the message says what."""


class Field(NamedTuple):
    """A field of an event, as in the ``format`` file of tracefs."""

    name: str
    type: str
    """C type, with the length in brackets for an array."""
    offset: int
    """In bytes, from the start of the record."""
    size: int
    signed: bool


class Kernel(Protocol):
    """What printing needs to know of the kernel that wrote the records."""

    @property
    def little(self) -> bool:
        """Byte order."""

    @property
    def word(self) -> int:
        """Bytes of a long."""

    def symbol(self, address: int) -> str:
        """As ``%ps``."""

    def symbol_offset(self, address: int) -> str:
        """As ``%pS``."""

    def pointer(self, address: int) -> str:
        """As ``%p``."""

    def hashed_pointer(self, address: int) -> str:
        """As ``%p``, even where that is to be shown as it is."""

    def error(self, address: int) -> str:
        """As ``%pe``."""

    def string(self, address: int) -> str:
        """What is at an address."""

    def size_of(self, name: str) -> int:
        """Return the size of a type.

        :raises LookupError: if there is none.
        """

    def constant(self, name: str) -> int:
        """A variable or enumerator.

        :raises LookupError: if there is none.
        """


Getter = Callable[[bytes], Any]

# Of a print format, and of what it nests.
_MAX_LENGTH = 1 << 17
_MAX_DEPTH = 100
# Columns of one value.
_MAX_WIDTH = 4096
# Values of a print format, each of which may be all of its record. Real ones have some
# dozens.
_MAX_VALUES = 512

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<string>"(?:[^"\\]|\\.)*")
    |(?P<char>'(?:[^'\\]|\\.)')
    |(?P<number>0[xX][0-9a-fA-F]+|[0-9]+)[uUlL]*
    |(?P<name>[A-Za-z_][A-Za-z_0-9]*)
    |(?P<op>->|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%&|^~!<>?:,(){}\[\].;=])
    )""",
    re.VERBOSE | re.DOTALL,
)
_SUFFIX = re.compile(r"[uUlL]*$")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "a": "\a"}

# Types by name: bytes (0: of a long) and whether they are signed.
_TYPES: dict[str, tuple[int, bool]] = {
    **{f"{sign}{8 * n}": (n, sign[-1] == "s") for n in (1, 2, 4, 8) for sign in "us"},
    **{f"__{sign}{8 * n}": (n, sign == "s") for n in (1, 2, 4, 8) for sign in "us"},
    **{f"uint{8 * n}_t": (n, False) for n in (1, 2, 4, 8)},
    **{f"int{8 * n}_t": (n, True) for n in (1, 2, 4, 8)},
    "bool": (1, False),
    "_Bool": (1, False),
    "gfp_t": (4, False),
    "dev_t": (4, False),
    "pid_t": (4, True),
    "uid_t": (4, False),
    "gid_t": (4, False),
    "umode_t": (2, False),
    "fmode_t": (4, False),
    "size_t": (0, False),
    "ssize_t": (0, True),
    "uintptr_t": (0, False),
    "loff_t": (8, True),
    "sector_t": (8, False),
    "ino_t": (0, False),
    "blkcnt_t": (8, False),
    "ktime_t": (8, True),
    "dma_addr_t": (8, False),
    "phys_addr_t": (8, False),
    "resource_size_t": (8, False),
    "__be16": (2, False),
    "__be32": (4, False),
    "__le16": (2, False),
    "__le32": (4, False),
    "__le64": (8, False),
    "xfs_ino_t": (8, False),
    "xfs_daddr_t": (8, True),
}
_WORDS = {"unsigned", "signed", "char", "short", "int", "long", "void", "const"}
_WORDS |= {"struct", "enum", "union", "volatile", "__user", "__force", "__percpu"}


def c_type(name: str, word: int) -> tuple[int, bool] | None:
    """Return the size and the signedness of an integer or pointer type, if known."""
    if "*" in name:
        return word, False
    words = [w for w in name.split() if w not in ("const", "volatile", "__force")]
    if len(words) == 1 and words[0] in _TYPES:
        size, signed = _TYPES[words[0]]
        return size or word, signed
    if not words or any(
        w not in ("unsigned", "signed", "char", "short", "int", "long") for w in words
    ):
        return (4, False) if words and words[0] == "enum" else None
    size = 4
    if "char" in words:
        size = 1
    elif "short" in words:
        size = 2
    elif "long" in words:
        size = 8 if words.count("long") > 1 else word
    return size, "unsigned" not in words


class _Node:
    # A parsed expression: a function of the record, and what it gives: "int" with
    # size and sign, "str", "array" (bytes, of elements of size and sign), "dynamic"
    # (bytes too), or what only some functions take.
    __slots__ = ("const", "fn", "kind", "signed", "size", "step")

    def __init__(
        self,
        fn: Getter,
        kind: str = "int",
        size: int = 4,
        signed: bool = True,
        const: Any = None,
    ) -> None:
        self.fn = fn
        self.kind = kind
        self.size = size
        self.signed = signed
        self.const = const
        # What adding one adds: to a pointer to so much.
        self.step = 1


def _constant(
    value: Any, kind: str = "int", size: int = 4, signed: bool = True
) -> _Node:
    return _Node(lambda data: value, kind, size, signed, value)


def wrap(value: int, size: int, signed: bool) -> int:
    """Return an integer as C keeps it in so many bytes."""
    value &= (1 << 8 * size) - 1
    if signed and value >> (8 * size - 1):
        value -= 1 << 8 * size
    return value


def _converted(node: _Node, size: int, signed: bool) -> Getter:
    # The node's value as such a type.
    fn = node.fn
    if node.const is not None:
        value = wrap(node.const, size, signed)
        return lambda data: value
    if (node.size, node.signed) == (size, signed):
        return fn
    if node.size < size and (signed or not node.signed):
        return fn
    mask = (1 << 8 * size) - 1
    if not signed:
        return lambda data: fn(data) & mask
    half = 1 << (8 * size - 1)
    return lambda data: ((fn(data) + half) & mask) - half


def _divide(a: int, b: int) -> int:
    if not b:
        return 0
    q = abs(a) // abs(b)
    return q if (a < 0) == (b < 0) else -q


def _modulo(a: int, b: int) -> int:
    return a - b * _divide(a, b)


_BINARY: dict[str, tuple[int, Callable[[int, int], int]]] = {
    "|": (3, operator.or_),
    "^": (4, operator.xor),
    "&": (5, operator.and_),
    "==": (6, operator.eq),
    "!=": (6, operator.ne),
    "<": (7, operator.lt),
    ">": (7, operator.gt),
    "<=": (7, operator.le),
    ">=": (7, operator.ge),
    "<<": (8, operator.lshift),
    ">>": (8, operator.rshift),
    "+": (9, operator.add),
    "-": (9, operator.sub),
    "*": (10, operator.mul),
    "/": (10, _divide),
    "%": (10, _modulo),
}
_COMPARISONS = {"==", "!=", "<", ">", "<=", ">="}


def text(raw: bytes) -> str:
    """Return a string of a record, up to its NUL; bytes that are no text escaped."""
    return raw.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def _unescaped(token: str) -> str:
    def one(match: re.Match[str]) -> str:
        found = match.group(1)
        if found[0] == "x" and len(found) > 1:
            return chr(int(found[1:], 16))
        if found[0] in "01234567":
            return chr(int(found, 8) & 0xFF)
        return _ESCAPES.get(found, found)

    return re.sub(
        r"\\(x[0-9a-fA-F]{1,2}|[0-7]{1,3}|.)", one, token[1:-1], flags=re.DOTALL
    )


def _tokens(source: str) -> list[tuple[str, str]]:
    if len(source) > _MAX_LENGTH:
        raise Unsupported(f"{len(source)} characters")
    found: list[tuple[str, str]] = []
    at = 0
    end = len(source.rstrip())
    while at < end:
        match = _TOKEN.match(source, at)
        if match is None:
            raise Unsupported(f"{source[at : at + 20]!r}")
        at = match.end()
        kind = match.lastgroup or ""
        value = match.group().strip() if kind == "number" else match.group(kind)
        found.append((kind, value))
    return found


class _Parser:
    def __init__(
        self, source: str, fields: Mapping[str, Field], kernel: Kernel, empty: str
    ) -> None:
        self.empty = empty
        self.tokens = _tokens(source)
        self.at = 0
        self.fields = fields
        self.kernel = kernel
        self.order = "<" if kernel.little else ">"
        self.word = kernel.word
        self.depth = 0

    # --- tokens

    def peek(self, ahead: int = 0) -> tuple[str, str]:
        i = self.at + ahead
        return self.tokens[i] if i < len(self.tokens) else ("", "")

    def take(self, value: str | None = None) -> str:
        kind, found = self.peek()
        if not kind or (value is not None and found != value):
            raise Unsupported(f"{found or 'its end'!r} where {value!r} is expected")
        self.at += 1
        return found

    def has(self, value: str) -> bool:
        if self.peek() == ("op", value):
            self.at += 1
            return True
        return False

    # --- expressions

    def expression(self) -> _Node:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise Unsupported("too much in each other")
        condition = self.logical_or()
        if self.has("?"):
            yes = self.expression()
            self.take(":")
            condition = self.choice(condition, yes, self.expression())
        self.depth -= 1
        return condition

    def choice(self, condition: _Node, yes: _Node, no: _Node) -> _Node:
        if condition.const is not None:
            return yes if condition.const else no
        test, a, b = condition.fn, yes.fn, no.fn
        kind = yes.kind
        if {yes.kind, no.kind} == {"int"}:
            size, signed = self.common(yes, no)
            a, b = _converted(yes, size, signed), _converted(no, size, signed)
            return _Node(lambda d: a(d) if test(d) else b(d), "int", size, signed)
        if "str" in (yes.kind, no.kind):
            a, b, kind = self.as_text(yes), self.as_text(no), "str"
        elif yes.kind != no.kind:
            raise Unsupported("a choice between different types")
        return _Node(lambda d: a(d) if test(d) else b(d), kind, yes.size, yes.signed)

    def logical_or(self) -> _Node:
        left = self.logical_and()
        while self.has("||"):
            a, b = left.fn, self.logical_and().fn
            left = _Node(lambda d, a=a, b=b: int(bool(a(d)) or bool(b(d))))  # type: ignore[misc]
        return left

    def logical_and(self) -> _Node:
        left = self.binary(3)
        while self.has("&&"):
            a, b = left.fn, self.binary(3).fn
            left = _Node(lambda d, a=a, b=b: int(bool(a(d)) and bool(b(d))))  # type: ignore[misc]
        return left

    def common(self, a: _Node, b: _Node) -> tuple[int, bool]:
        # The usual arithmetic conversions.
        ranks = []
        for node in (a, b):
            ranks.append((4, True) if node.size < 4 else (node.size, node.signed))
        size = max(size for size, _ in ranks)
        return size, all(signed for n, signed in ranks if n == size)

    def binary(self, level: int) -> _Node:
        left = self.unary()
        while True:
            kind, symbol = self.peek()
            if kind != "op" or symbol not in _BINARY or _BINARY[symbol][0] < level:
                return left
            self.at += 1
            right = self.binary(_BINARY[symbol][0] + 1)
            left = self.operate(symbol, left, right)

    def operate(self, symbol: str, left: _Node, right: _Node) -> _Node:
        if left.kind != "int" or right.kind != "int":
            raise Unsupported(f"{symbol} of what is no number")
        if symbol == "+" and left.step != 1:
            right = self.operate("*", right, _constant(left.step, "int", 8))
        elif left.step != 1 and symbol not in _COMPARISONS:
            raise Unsupported(f"{symbol} of a pointer")
        function = _BINARY[symbol][1]
        if symbol in ("<<", ">>"):
            size, signed = (4, True) if left.size < 4 else (left.size, left.signed)
            mask = 8 * size - 1
            shifted, by = left.fn, right.fn

            def shift(data: bytes) -> int:
                return wrap(function(shifted(data), by(data) & mask), size, signed)

            node = _Node(shift, "int", size, signed)
        else:
            size, signed = self.common(left, right)
            a, b = _converted(left, size, signed), _converted(right, size, signed)
            if symbol in _COMPARISONS:
                node = _Node(lambda d: int(function(a(d), b(d))))
            elif symbol in ("&", "|", "^"):
                node = _Node(lambda d: function(a(d), b(d)), "int", size, signed)
            else:
                node = _Node(
                    lambda d: wrap(function(a(d), b(d)), size, signed),
                    "int",
                    size,
                    signed,
                )
        if left.const is not None and right.const is not None:
            return _constant(node.fn(b""), "int", node.size, node.signed)
        return node

    def unary(self) -> _Node:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise Unsupported("too much in each other")
        try:
            return self._unary()
        finally:
            self.depth -= 1

    def _unary(self) -> _Node:
        if self.has("!"):
            fn = self.unary().fn
            return _Node(lambda d: int(not fn(d)))
        for symbol in ("-", "~", "+"):
            if self.has(symbol):
                return self.negate(symbol, self.unary())
        if self.has("&"):
            node = self.unary()
            if node.kind not in ("array", "dynamic"):
                raise Unsupported("an address")
            return node
        cast = self.cast()
        if cast is not None:
            return self.as_type(cast, self.unary())
        return self.postfix(self.primary())

    def negate(self, symbol: str, node: _Node) -> _Node:
        if node.kind != "int":
            raise Unsupported(f"{symbol} of what is no number")
        size, signed = (4, True) if node.size < 4 else (node.size, node.signed)
        fn = node.fn
        if symbol == "-":
            made = _Node(lambda d: wrap(-fn(d), size, signed), "int", size, signed)
        elif symbol == "~":
            made = _Node(lambda d: wrap(~fn(d), size, signed), "int", size, signed)
        else:
            made = _Node(fn, "int", size, signed)
        if node.const is not None:
            return _constant(made.fn(b""), "int", size, signed)
        return made

    def cast(self) -> str | None:
        # (type), if that is what comes.
        if self.peek() != ("op", "("):
            return None
        i = 1
        words: list[str] = []
        while self.peek(i)[0] == "name" or self.peek(i) == ("op", "*"):
            words.append(self.peek(i)[1])
            i += 1
        if not words or self.peek(i) != ("op", ")") or words[0] == "*":
            return None
        known = words[0] in _WORDS or words[0] in _TYPES
        if not known:
            kind, value = self.peek(i + 1)
            follows = kind in ("name", "number", "string") or value == "("
            if words == ["REC"] or not (words[-1] == "*" or follows):
                return None
        self.at += i + 1
        return " ".join(words)

    def as_type(self, name: str, node: _Node) -> _Node:
        type_ = c_type(name, self.word)
        if node.kind != "int":
            # Of what is in the record already: a pointer to it stays what it is.
            if "*" not in name or (type_ is None):
                raise Unsupported(f"({name}) of what is no number")
            element = c_type(name.replace("*", "").strip(), self.word)
            if node.kind in ("array", "dynamic") and element and name.count("*") == 1:
                return _Node(node.fn, node.kind, *element)
            return node
        if type_ is None:
            return node
        size, signed = type_
        if name in ("bool", "_Bool"):
            fn = node.fn
            return _Node(lambda d: int(bool(fn(d))), "int", 1, False)
        made = _converted(node, size, signed)
        cast = _Node(made, "int", size, signed)
        if node.const is not None:
            cast = _constant(made(b""), "int", size, signed)
        if name.count("*") == 1:
            cast.step = self.bytes_of(name.replace("*", "").strip())
        return cast

    def bytes_of(self, name: str) -> int:
        if name in ("void", "const void"):
            return 1
        known = c_type(name, self.word)
        if known is not None:
            return known[0]
        try:
            return self.kernel.size_of(name)
        except LookupError:
            raise Unsupported(f"sizeof({name})") from None

    def postfix(self, node: _Node) -> _Node:
        while True:
            if self.has("["):
                index = self.expression()
                self.take("]")
                node = self.element(node, index)
            elif self.peek()[1] in ("->", "."):
                raise Unsupported("a member of a member")
            else:
                return node

    def element(self, node: _Node, index: _Node) -> _Node:
        if node.kind not in ("array", "dynamic") or index.kind != "int":
            raise Unsupported("an index of what is no array")
        size, signed = node.size, node.signed
        code = {1: "b", 2: "h", 4: "i", 8: "q"}.get(size)
        if code is None:
            raise Unsupported("an array of what is no number")
        unpack = struct.Struct(self.order + (code if signed else code.upper()))
        array, at = node.fn, index.fn

        def get(data: bytes) -> int:
            i = at(data)
            if i < 0:
                raise ValueError("a negative index")
            found: int = unpack.unpack_from(array(data), i * size)[0]
            return found

        return _Node(get, "int", size, signed)

    def primary(self) -> _Node:
        kind, value = self.peek()
        if kind == "number":
            self.at += 1
            return self.number(value)
        if kind == "string":
            return _constant(self.strings(), "str")
        if kind == "char":
            self.at += 1
            return _constant(ord(_unescaped(value)[0]))
        if kind == "op" and value == "(":
            self.at += 1
            if self.peek() == ("op", "{"):
                raise Unsupported("a statement")
            if self.peek() == ("name", "REC") and self.peek(1) == ("op", ")"):
                self.at += 2
                return self.record()
            node = self.expression()
            self.take(")")
            return node
        if kind == "name":
            self.at += 1
            if value == "REC":
                return self.record()
            if self.peek() == ("op", "("):
                return self.call(value)
            try:
                found = self.kernel.constant(value)
            except LookupError:
                raise Unsupported(f"{value}") from None
            return _constant(found, "int", 8 if found >> 31 else 4, found >> 31 == 0)
        raise Unsupported(f"{value!r}")

    def strings(self) -> str:
        found = ""
        while self.peek()[0] == "string":
            found += _unescaped(self.take())
        return found

    def number(self, token: str) -> _Node:
        match = _SUFFIX.search(token)
        suffix = match.group().lower() if match else ""
        digits = token[: len(token) - len(suffix)]
        octal = digits[0] == "0" and digits.isdigit() and len(digits) > 1
        try:
            value = int(digits, 8 if octal else 0)
        except ValueError:
            raise Unsupported(f"the number {token}") from None
        size = 8 if "ll" in suffix else self.word if "l" in suffix else 4
        signed = "u" not in suffix
        decimal = not octal and digits[:2].lower() != "0x"
        while value >> (8 * size - signed):
            if signed and not decimal and not value >> 8 * size:
                signed = False
            elif size < 8:
                size = 8
            else:
                value, signed = value & (1 << 64) - 1, False
        return _constant(value, "int", size, signed)

    # --- fields

    def field(self, name: str) -> Field:
        try:
            return self.fields[name]
        except KeyError:
            raise Unsupported(f"the field {name}, which it does not have") from None

    def record(self) -> _Node:
        self.take("->")
        field = self.field(self.take())
        return self.value(field)

    def value(self, field: Field) -> _Node:
        at, size = field.offset, field.size
        if "[" in field.type and not field.type.startswith(("__data_loc", "__rel_loc")):
            element = c_type(field.type.partition("[")[0].strip(), self.word)
            # Of unknown length, up to the record's end.
            end = at + size if size else None
            width, signed = element or (0, False)
            return _Node(lambda d: d[at:end], "array", width, signed)
        code = {1: "b", 2: "h", 4: "i", 8: "q"}.get(size)
        if code is None:
            return _Node(lambda d: d[at : at + size], "array", 0, False)
        unpack = struct.Struct(
            self.order + (code if field.signed else code.upper())
        ).unpack_from
        return _Node(lambda d: unpack(d, at)[0], "int", size, field.signed)

    def dynamic(self, name: str) -> _Node:
        field = self.field(name)
        if not field.type.startswith(("__data_loc", "__rel_loc")):
            raise Unsupported(f"{name}, which is no dynamic array")
        unpack = struct.Struct(self.order + "I").unpack_from
        at = field.offset
        relative = at + 4 if field.type.startswith("__rel_loc") else 0
        of = field.type.split(" ", 1)[-1].partition("[")[0].strip()
        size, signed = c_type(of, self.word) or (0, False)

        def get(data: bytes) -> bytes:
            where = unpack(data, at)[0]
            begin = relative + (where & 0xFFFF)
            return data[begin : begin + (where >> 16)]

        return _Node(get, "dynamic", size, signed)

    # --- functions

    def call(self, name: str) -> _Node:
        self.take("(")
        if name == "sizeof":
            return self.size_of()
        if name in _DYNAMIC:
            node = self.dynamic(self.take())
            self.take(")")
            if name.endswith("_len"):
                fn = node.fn
                return _Node(lambda d: len(fn(d)))
            if name.endswith("_str"):
                return _Node(node.fn, "dynamic", 1, True)
            if name.endswith("mask"):
                return self.mask(node, name)
            return node
        if name == "__print_dynamic_array":
            node = self.dynamic(self.take())
            self.take(",")
            size = self.expression()
            self.take(")")
            return self.array(node, None, size)
        if name in ("__print_flags", "__print_symbolic"):
            return self.names(name)
        arguments = [self.expression()]
        while self.has(","):
            arguments.append(self.expression())
        self.take(")")
        if name in ("__print_flags_u64", "__print_symbolic_u64"):
            raise Unsupported(name)
        return self.function(name, arguments)

    def size_of(self) -> _Node:
        words = []
        while self.peek() != ("op", ")"):
            words.append(self.take())
        self.take(")")
        return _constant(self.bytes_of(" ".join(words)), "int", self.word, False)

    def names(self, name: str) -> _Node:
        value = self.expression()
        delimiter = ""
        if name == "__print_flags":
            self.take(",")
            node = self.expression()
            delimiter = node.const if isinstance(node.const, str) else ""
        table: list[tuple[int, str]] = []
        while self.has(","):
            self.take("{")
            mask = self.expression()
            self.take(",")
            label = self.expression()
            self.take("}")
            if label.const == 0:
                # What ends a table; the macro puts another one behind it.
                continue
            if mask.kind != "int" or mask.const is None or label.kind != "str":
                raise Unsupported(f"{name} of what is not constant")
            table.append((mask.const & (1 << 64) - 1, label.const))
        self.take(")")
        if value.kind != "int":
            raise Unsupported(f"{name} of what is no number")
        # Widened as to unsigned long.
        signed, width = value.signed, max(self.word, 8)
        fn = _converted(value, width, False) if signed else value.fn
        cache: dict[int, str] = {}
        if name == "__print_symbolic":
            labels: dict[int, str] = {}
            for mask_, label_ in table:
                labels.setdefault(mask_, label_)

            def symbolic(data: bytes) -> str:
                found = fn(data)
                return labels.get(found) or f"{found:#x}"

            return _Node(symbolic, "str")

        def flags(data: bytes) -> str:
            found = fn(data)
            known = cache.get(found)
            if known is None:
                known = flag_names(found, delimiter, table)
                if len(cache) < 4096:
                    cache[found] = known
            return known

        return _Node(flags, "str")

    def mask(self, node: _Node, name: str) -> _Node:
        fn, order, word = node.fn, self.order, self.word

        def get(data: bytes) -> str:
            raw = fn(data)
            code = "Q" if word == 8 else "I"
            words = struct.unpack_from(f"{order}{len(raw) // word}{code}", raw)
            digits = "".join(f"{value:0{2 * word}x}" for value in reversed(words))
            digits = digits or "0" * 8
            return ",".join(digits[i : i + 8] for i in range(0, len(digits), 8))

        return _Node(get, "str")

    def array(self, node: _Node, count: _Node | None, size: _Node) -> _Node:
        width = size.const
        code = {1: "B", 2: "H", 4: "I", 8: "Q"}.get(width)
        if code is None or node.kind not in ("array", "dynamic"):
            raise Unsupported("an array of what is no number")
        if count is not None and count.kind != "int":
            raise Unsupported("an array of so much that is no number")
        fn, order = node.fn, self.order
        number = count.fn if count else None

        def get(data: bytes) -> str:
            raw = fn(data)
            there = len(raw) // width
            n = there if number is None else min(max(number(data), 0), there)
            values = struct.unpack_from(f"{order}{n}{code}", raw)
            return "{" + ",".join(f"{value:#x}" for value in values) + "}"

        return _Node(get, "str")

    def function(self, name: str, arguments: list[_Node]) -> _Node:
        first = arguments[0]
        fn = first.fn
        if name in ("__builtin_expect", "likely", "unlikely", "__builtin_constant_p"):
            return first
        if name in ("__print_hex", "__print_hex_str") and len(arguments) == 2:
            if arguments[1].kind != "int":
                raise Unsupported(f"{name} of so much that is no number")
            if first.kind not in ("array", "dynamic"):
                raise Unsupported(f"{name} of memory that is not in the record")
            length = arguments[1].fn
            if name.endswith("str"):
                return _Node(lambda d: fn(d)[: max(length(d), 0)].hex(), "str")
            return _Node(lambda d: fn(d)[: max(length(d), 0)].hex(" "), "str")
        if name == "__print_array" and len(arguments) == 3:
            return self.array(first, arguments[1], arguments[2])
        if first.kind != "int":
            raise Unsupported(f"{name}() of what is no number")
        if name == "__print_ns_to_secs":
            return _Node(lambda d: fn(d) // 1_000_000_000, "int", 8, False)
        if name == "__print_ns_without_secs":
            return _Node(lambda d: fn(d) % 1_000_000_000, "int", 4, False)
        if name in ("jiffies_to_msecs", "jiffies_to_usecs"):
            try:
                hz = self.kernel.constant("HZ")
            except LookupError:
                raise Unsupported(name) from None
            per = 1000 if name.endswith("msecs") else 1_000_000
            return _Node(lambda d: fn(d) * per // hz & 0xFFFFFFFF, "int", 4, False)
        if name in _BYTE_ORDER:
            size = _BYTE_ORDER[name]
            from_ = "big" if "be" in name or name[0] == "n" else "little"
            same = (from_ == "little") == self.kernel.little
            if same:
                return self.as_type(f"u{8 * size}", first)
            value = _converted(first, size, False)
            return _Node(
                lambda d: int.from_bytes(value(d).to_bytes(size, "little"), "big"),
                "int",
                size,
                False,
            )
        if name in _MACROS:
            shift, mask = _MACROS[name]
            return _Node(lambda d: fn(d) >> shift & mask, "int", 4, False)
        raise Unsupported(f"{name}()")

    # --- the format

    def as_text(self, node: _Node) -> Getter:
        # As %s takes it.
        fn = node.fn
        if node.kind == "str":
            return fn
        if node.kind == "dynamic":
            empty = self.empty
            return lambda d: text(raw) if (raw := fn(d)) else empty
        if node.kind == "array":
            return lambda d: text(fn(d))
        if node.const == 0:
            return lambda d: "(null)"
        read = self.kernel.string
        return lambda d: read(fn(d))


_DYNAMIC = {
    f"__get_{relative}{what}"
    for relative in ("", "rel_")
    for what in (
        "str",
        "dynamic_array",
        "dynamic_array_len",
        "bitmask",
        "cpumask",
        "sockaddr",
    )
}
_BYTE_ORDER = {
    **{
        f"{way}{8 * n}" + tail: n
        for n in (2, 4, 8)
        for way, tail in (
            ("be", "_to_cpu"),
            ("le", "_to_cpu"),
            ("__be", "_to_cpu"),
            ("__le", "_to_cpu"),
        )
    },
    "ntohs": 2,
    "ntohl": 4,
    "__ntohs": 2,
}
_MACROS = {"MAJOR": (20, 0xFFF), "MINOR": (0, 0xFFFFF)}


def flag_names(value: int, delimiter: str, table: Sequence[tuple[int, str]]) -> str:
    """Return the names of the flags in a number, and the rest of it in hexadecimal."""
    parts = []
    for mask, label in table:
        if not value:
            break
        if value & mask == mask:
            parts.append(label)
            value &= ~mask
    if value:
        parts.append(f"{value:#x}")
    return delimiter.join(parts)


_CONVERSION = re.compile(
    r"%(?P<flags>[-+ #0]*)(?P<width>\*|\d+)?(?:\.(?P<precision>\*|\d*))?"
    r"(?P<length>hh|h|ll|l|L|z|Z|t|j)?(?P<conversion>[a-zA-Z%])"
)
_ALPHANUMERIC = re.compile(r"[A-Za-z0-9]*")


class _Conversion(NamedTuple):
    template: str
    getters: list[Getter]


def number_flags(flags: str, conversion: str) -> str:
    """Return the flags of a number's conversion that mean something to the kernel."""
    if conversion in "diu":
        flags = flags.replace("#", "")
    if conversion not in "di":
        flags = flags.replace("+", "").replace(" ", "")
    return flags


def octal(value: int) -> str:
    """As ``%#o``, which is not Python's."""
    return f"0{value:o}" if value else "0"


def narrow(pointer: str, flags: str, width: int) -> str:
    """Return a pointer where a width is said: it has all its zeros only without."""
    if pointer.startswith("("):
        return pointer
    digits = pointer.lstrip("0") or "0"
    return digits.zfill(width) if "0" in flags and "-" not in flags else digits


def _number_conversion(
    match: re.Match[str], node: _Node, stars: list[Getter], word: int
) -> _Conversion:
    length, conversion = match["length"] or "", match["conversion"]
    size = {"hh": 1, "h": 2, "": 4, "ll": 8, "L": 8, "j": 8}.get(length, word)
    signed = conversion in "di"
    flags = number_flags(match["flags"], conversion)
    width = match["width"] or ""
    precision = "" if match["precision"] is None else f".{match['precision']}"
    if node.kind != "int":
        raise Unsupported(f"%{conversion} of what is no number")
    getter = _converted(node, size, signed)
    kind = {"d": "d", "i": "d", "u": "d"}.get(conversion, conversion)
    if kind == "o" and "#" in flags:
        pad = "%s" if stars else f"%{'-' if '-' in flags else ''}{width}s"
        return _Conversion(pad, [lambda d: octal(getter(d))])
    return _Conversion(f"%{flags}{width}{precision}{kind}", [*stars, getter])


def _pointer_conversion(
    parser: _Parser, match: re.Match[str], extra: str, node: _Node, stars: list[Getter]
) -> _Conversion:
    kernel, fn = parser.kernel, node.fn
    # Left-aligned or not, in so many columns.
    width = match["width"] if match["width"] not in (None, "*") else ""
    pad = f"%{'-' if '-' in match['flags'] else ''}{width}s"
    if extra.startswith("h"):
        if node.kind not in ("array", "dynamic") or not match["width"]:
            raise Unsupported(f"%p{extra}")
        between = {"C": ":", "D": "-", "N": ""}.get(extra[1:], " ")
        count = stars[0] if stars else None
        fixed = int(width or 0)

        def hexadecimal(data: bytes) -> str:
            raw = fn(data)[: min(max(count(data) if count else fixed, 0), 64)]
            shown: str = raw.hex(between) if between else raw.hex()
            return shown

        return _Conversion("%s", [hexadecimal])
    if stars:
        raise Unsupported(f"%*p{extra}")
    if node.kind in ("array", "dynamic"):
        function = _IN_RECORD.get(extra)
        if function is None:
            raise Unsupported(f"%p{extra} of what is in the record")
        little = kernel.little
        return _Conversion(pad, [lambda d: function(fn(d), little)])
    if node.kind != "int":
        raise Unsupported(f"%p{extra} of what is no pointer")
    address = _converted(node, kernel.word, False)
    functions: dict[str, Callable[[int], str]] = {
        "s": kernel.symbol,
        "f": kernel.symbol,
        "S": kernel.symbol_offset,
        "F": kernel.symbol_offset,
        "B": kernel.symbol_offset,
        "": kernel.pointer,
        "K": kernel.pointer,
        "e": kernel.error,
        "x": lambda value: f"{value:0{2 * kernel.word}x}",
    }
    named = functions.get(extra)
    if named is None:
        raise Unsupported(f"%p{extra}")
    if width and extra in ("", "K", "x"):
        flags, columns = match["flags"], int(width)
        return _Conversion(pad, [lambda d: narrow(named(address(d)), flags, columns)])
    return _Conversion(pad, [lambda d: named(address(d))])


def _ipv4(raw: bytes, little: bool) -> str:
    return str(ipaddress.IPv4Address(raw[:4]))


def _ipv6(raw: bytes, little: bool) -> str:
    return str(ipaddress.IPv6Address(raw[:16]))


def _ipv6_long(raw: bytes, little: bool) -> str:
    return ipaddress.IPv6Address(raw[:16]).exploded


def _mac(raw: bytes, little: bool) -> str:
    return raw[:6].hex(":")


def _uuid(raw: bytes, little: bool) -> str:
    return str(uuid.UUID(bytes=raw[:16]))


def _guid(raw: bytes, little: bool) -> str:
    return str(uuid.UUID(bytes_le=raw[:16]))


def _sockaddr(raw: bytes, little: bool) -> str:
    family = int.from_bytes(raw[:2], "little" if little else "big")
    port = int.from_bytes(raw[2:4], "big")
    if family == 2:
        return f"{_ipv4(raw[4:8], little)}:{port}"
    if family == 10:
        return f"[{_ipv6(raw[8:24], little)}]:{port}"
    return "(einval)"


_IN_RECORD: dict[str, Callable[[bytes, bool], str]] = {
    "I4": _ipv4,
    "i4": _ipv4,
    "I6c": _ipv6,
    "I6": _ipv6_long,
    "M": _mac,
    "U": _uuid,
    "Ub": _uuid,
    "Ul": _guid,
    "ISpc": _sockaddr,
}


def _string_conversion(
    parser: _Parser, match: re.Match[str], node: _Node, stars: list[Getter]
) -> _Conversion:
    flags = "-" if "-" in match["flags"] else ""
    width = match["width"] or ""
    precision = "" if match["precision"] is None else f".{match['precision']}"
    return _Conversion(f"%{flags}{width}{precision}s", [*stars, parser.as_text(node)])


def _character(code: Getter) -> Getter:
    return lambda data: chr(code(data))


def _bounded(width: Getter) -> Getter:
    return lambda data: min(max(width(data), -_MAX_WIDTH), _MAX_WIDTH)


def compile_print_fmt(
    source: str, fields: Mapping[str, Field], kernel: Kernel, *, empty: str = ""
) -> Callable[[bytes], str]:
    """
    Turn a print format into a function that prints a record.

    What that returns may hold anything that strings in records do; and it raises
    :class:`ValueError`, :class:`struct.error` and their kin for a record that is too
    short for its fields.

    :param empty: What a string is shown as that has not even its NUL.
    :raises Unsupported: if it has something that is not known here.
    """
    parser = _Parser(source, fields, kernel, empty)
    if parser.peek()[0] != "string":
        raise Unsupported("no format at its beginning")
    form = parser.strings()
    nodes: list[_Node] = []
    while parser.has(","):
        if len(nodes) == _MAX_VALUES:
            raise Unsupported(f"more than {_MAX_VALUES} values")
        try:
            nodes.append(parser.expression())
        except RecursionError:
            raise Unsupported("too much in each other") from None
    if parser.peek()[0]:
        raise Unsupported(f"{parser.peek()[1]!r}")
    template = ""
    getters: list[Getter] = []
    at = 0
    while True:
        match = _CONVERSION.search(form, at)
        if match is None:
            template += form[at:].replace("%", "%%")
            break
        template += form[at : match.start()].replace("%", "%%")
        at = match.end()
        conversion = match["conversion"]
        if conversion == "%":
            template += "%%"
            continue
        stars = []
        for what in ("width", "precision"):
            if match[what] == "*":
                if not nodes or nodes[0].kind != "int":
                    raise Unsupported("a width that is no number")
                stars.append(_bounded(_converted(nodes.pop(0), 4, True)))
            elif match[what] and int(match[what]) > _MAX_WIDTH:
                raise Unsupported(f"{match[what]} columns")
        if not nodes:
            raise Unsupported("fewer values than its format says")
        node = nodes.pop(0)
        if conversion in "diuxXo":
            made = _number_conversion(match, node, stars, kernel.word)
        elif conversion == "p":
            # All of them belong to it, whether they mean something or not.
            more = _ALPHANUMERIC.match(form, at)
            extra = more.group() if more else ""
            at += len(extra)
            made = _pointer_conversion(parser, match, extra, node, stars)
        elif conversion == "s":
            made = _string_conversion(parser, match, node, stars)
        elif conversion == "c":
            if node.kind != "int":
                raise Unsupported("%c of what is no number")
            code = _converted(node, 1, False)
            made = _Conversion("%s", [_character(code)])
        else:
            raise Unsupported(f"%{conversion}")
        template += made.template
        getters += made.getters
    if nodes:
        raise Unsupported("more values than its format says")
    return _printer(template, getters)


def _printer(template: str, getters: list[Getter]) -> Callable[[bytes], str]:
    if not getters:
        plain = template % ()
        return lambda data: plain
    if len(getters) == 1:
        (only,) = getters
        return lambda data: template % (only(data),)
    if len(getters) == 2:
        a, b = getters
        return lambda data: template % (a(data), b(data))
    return lambda data: template % tuple([get(data) for get in getters])
