# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The kernel log of a dump
------------------------

Records of the printk ring buffer, by VMCOREINFO alone, and the text that
``makedumpfile --dump-dmesg`` makes of them. Three eras: the lockless ring of
5.10 and later (:linux:`kernel/printk/printk_ringbuffer.c`), the records in
log_buf from 3.5 on, and the plain text there before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Callable, NamedTuple

from drgn_tools.errors import DumpError
from drgn_tools.progress import warn as warn_user
from drgn_tools.translate import Translator
from drgn_tools.vmcore import Vmcore
from drgn_tools.vmcoreinfo import Vmcoreinfo, require

# A log buffer is at most 2 GiB by its own types; nobody has more than this.
_MAX_LOG = 1 << 28
# The kernel makes one descriptor for 32 bytes of text.
_MAX_DESCS = _MAX_LOG // 32
# desc_state: what of a record can be read.
_COMMITTED = 1
_FINALIZED = 2
# The other bits of a descriptor's state are its id.
_ID_MASK = (1 << 62) - 1
# In a caller_id: it is a CPU's number, not a thread's.
_CALLER_CPU = 1 << 31
_PAGE = 4096
# Records that are looked for in vain: those of 8 MiB of text.
_MAX_LOST = 1 << 18
# Pages of a table that are kept: the log is read from front to back.
_CACHED_PAGES = 64

#: Is told, as one line, what of the log cannot be read.
Warn = Callable[[str], None]


class LogRecord(NamedTuple):
    """One printk record."""

    timestamp_ns: int
    raw: bytes
    """The text as the kernel has it, in no certain encoding."""
    caller: str | None = None
    """T and a thread's number, or C and a CPU's; None if the kernel keeps none."""

    @property
    def text(self) -> str:
        """The text, for people."""
        return self.raw.decode(errors="replace")


def log_records(
    info: Vmcoreinfo,
    kernel: Translator,
    *,
    partial: bool = False,
    warn: Warn = warn_user,
) -> Iterator[LogRecord]:
    """
    Records of the kernel log, oldest first.

    :param partial: only those since the log was last cleared
        (:manpage:`dmesg(1)`, ``--clear``).
    :param warn: is told of records that are there and cannot be read.
    :raises DumpError: if the log cannot be found or is not in the dump.
    """
    if info.symbol("prb") is not None:
        # Since 5.10 (896fbe20b4e2).
        return _ring_records(info, kernel, partial, warn)
    return _log_buf_records(info, kernel, partial, warn)


def dump_log(
    vmcore: Vmcore, partial: bool = False, *, warn: Warn = warn_user
) -> Iterator[bytes]:
    """
    The kernel log as ``makedumpfile --dump-dmesg`` writes it, piece by piece.

    :param partial: only what came since the log was last cleared
        (``--partial-dmesg``); all if the kernel does not say when that was.
    :param warn: is told, when all else has come, what could not be read; by
        default, that goes to stderr.
    :raises DumpError: if the log cannot be found or is not in the dump.
    """
    info, kernel = vmcore.vmcoreinfo, vmcore.kernel
    # Translator has seen to it.
    assert info is not None
    if info.symbol("prb") is None and info.symbol("log_end") is not None:
        # Until 3.5 (7ff9554bb578).
        yield from _plain_text(info, kernel, warn)
        return
    for record in log_records(info, kernel, partial=partial, warn=warn):
        yield _format(record)


# What C's isprint() and isspace() do not know.
_UNPRINTABLE = re.compile(rb"[^\t-\r -~]")


def _escape(match: re.Match[bytes]) -> bytes:
    (byte,) = match.group()
    # makedumpfile prints a char, which has a sign on x86, as an int.
    return b"\\x%02x" % (byte if byte < 0x80 else byte | 0xFFFFFF00)


def _format(record: LogRecord) -> bytes:
    seconds, rest = divmod(record.timestamp_ns, 1_000_000_000)
    prefix = b"[%5d.%06d] " % (seconds, rest // 1000)
    if record.caller is not None:
        prefix += b"[%8s] " % record.caller.encode()
    text = _UNPRINTABLE.sub(_escape, record.raw)
    return prefix + text.replace(b"\n", b"\n" + b" " * len(prefix)) + b"\n"


def _caller(caller_id: int) -> str:
    return f"{'C' if caller_id & _CALLER_CPU else 'T'}{caller_id & ~_CALLER_CPU}"


class _Table:
    """Kernel memory of which any page may be missing."""

    def __init__(self, kernel: Translator, address: int, lost: _Lost) -> None:
        self._kernel = kernel
        self._address = address
        self._lost = lost
        self._pages: dict[int, bytes | None] = {}
        # Which page of it each page of memory is.
        self._places: dict[int, int] = {}

    def read(self, at: int, size: int) -> bytes | None:
        """Part of it; None if any byte is missing."""
        start = self._address + at
        number, skip = divmod(start, _PAGE)
        data = b""
        while len(data) < skip + size:
            page = self._pages[number] if number in self._pages else self._read(number)
            if page is None:
                return None
            data = data + page if data else page
            number += 1
        return data[skip : skip + size]

    def _read(self, number: int) -> bytes | None:
        if len(self._pages) >= _CACHED_PAGES:
            self._pages.clear()
        page = None
        try:
            paddr, _ = self._kernel.translate(number * _PAGE)
            if self._places.setdefault(paddr, number) == number:
                page = self._kernel.read(number * _PAGE, _PAGE)
            else:
                # One page of memory could be a log of any length.
                self._lost.damaged("its pages are used twice")
        except DumpError as error:
            self._lost.page(error)
        self._pages[number] = page
        return page


class _Lost:
    """What of a log is missing, told when the rest has been read."""

    def __init__(self, warn: Warn) -> None:
        self._warn = warn
        self._records = 0
        self._breaks_off = False
        self._why: DumpError | None = None
        self._damage = ""

    def page(self, why: DumpError) -> None:
        self._why = self._why or why

    def record(self) -> bool:
        """Whether it is worth while to look for others."""
        self._records += 1
        return self._records < _MAX_LOST

    def rest(self) -> None:
        self._breaks_off = True

    def damaged(self, what: str) -> None:
        self._damage = self._damage or what

    def tell(self) -> None:
        if self._records:
            self._warn(
                f"{self._records} records of the kernel log could not be read, "
                f"the first because {self._why or self._damage}"
            )
        if self._breaks_off:
            why = self._why or self._damage
            self._warn(f"the kernel log breaks off because {why}")
        if self._damage:
            self._warn(f"the kernel log is damaged: {self._damage}")


def _word(data: bytes, at: int, width: int = 8) -> int:
    return int.from_bytes(data[at : at + width], "little")


def _variable(info: Vmcoreinfo, kernel: Translator, name: str, width: int) -> int:
    address = info.symbol(name)
    if address is None:
        raise DumpError(f"VMCOREINFO lacks SYMBOL({name})")
    return _word(kernel.read(address, width), 0, width)


def _clear_seq(info: Vmcoreinfo, kernel: Translator) -> int:
    """Number of the first record since the log was cleared."""
    address = info.symbol("clear_seq")
    if address is None:
        return 0
    value = _variable(info, kernel, "clear_seq", 8)
    if info.size("latched_seq") is None:
        return value
    # A latch since 5.13 (7d7a23a91c91): a counter whose lowest bit tells which
    # of two values to read.
    key = "OFFSET(latched_seq.val)"
    offset = require(info.offset("latched_seq.val"), key, 4, 4088)
    return _word(kernel.read(address + offset + 8 * (value & 1), 8), 0)


def _ring_records(
    info: Vmcoreinfo, kernel: Translator, partial: bool, warn: Warn
) -> Iterator[LogRecord]:
    def size(name: str) -> int:
        return require(info.size(name), f"SIZE({name})", 8, 4096)

    def offset(name: str) -> int:
        return require(info.offset(name), f"OFFSET({name})", 0, 4088)

    ring_address = _variable(info, kernel, "prb", 8)
    ring = kernel.read(ring_address, size("printk_ringbuffer"))
    desc_ring = ring[offset("printk_ringbuffer.desc_ring") :]
    text_ring = ring[offset("printk_ringbuffer.text_data_ring") :]
    counter = offset("atomic_long_t.counter")
    count_bits = _word(desc_ring, offset("prb_desc_ring.count_bits"), 4)
    size_bits = _word(text_ring, offset("prb_data_ring.size_bits"), 4)
    desc_size, info_size = size("prb_desc"), size("printk_info")
    if 1 << min(count_bits, 32) > _MAX_DESCS or 1 << min(size_bits, 32) > _MAX_LOG:
        raise DumpError("the kernel log is damaged: impossible ring sizes")
    count, text_size = 1 << count_bits, 1 << size_bits

    lost = _Lost(warn)
    descs = _Table(kernel, _word(desc_ring, offset("prb_desc_ring.descs")), lost)
    infos = _Table(kernel, _word(desc_ring, offset("prb_desc_ring.infos")), lost)
    texts = _Table(kernel, _word(text_ring, offset("prb_data_ring.data")), lost)
    state_at = offset("prb_desc.state_var") + counter
    blk_at = offset("prb_desc.text_blk_lpos")
    begin_at = blk_at + offset("prb_data_blk_lpos.begin")
    next_at = blk_at + offset("prb_data_blk_lpos.next")
    ts_at = offset("printk_info.ts_nsec")
    len_at = offset("printk_info.text_len")
    caller_at = None
    if info.offset("printk_info.caller_id") is not None:
        caller_at = offset("printk_info.caller_id")
    seq_at = offset("printk_info.seq") if partial else 0
    first_seq = _clear_seq(info, kernel) if partial else 0

    tail = _word(desc_ring, offset("prb_desc_ring.tail_id") + counter) & _ID_MASK
    head = _word(desc_ring, offset("prb_desc_ring.head_id") + counter) & _ID_MASK
    steps = (head - tail & _ID_MASK) + 1
    if steps > count:
        lost.damaged("more records than there is room for")
        steps, tail = count, head - count + 1
    text_left = text_size
    for step in range(steps):
        number = tail + step & _ID_MASK
        index = number % count
        desc = descs.read(index * desc_size, desc_size)
        if desc is None:
            if lost.record():
                continue
            lost.rest()
            break
        state = _word(desc, state_at)
        if state & _ID_MASK != number or state >> 62 not in (_COMMITTED, _FINALIZED):
            continue
        begin = _word(desc, begin_at) % text_size
        end = _word(desc, next_at) % text_size
        if begin == end:
            # No text, or none that there was room for.
            continue
        # In newer kernels one may end right where the buffer ends. What would go
        # on behind the end was put at the start of the buffer instead.
        end = end or text_size
        if begin > end:
            begin = 0
        record = infos.read(index * info_size, info_size)
        if record is None:
            lost.record()
            continue
        if partial and _word(record, seq_at) < first_seq:
            continue
        # The block starts with the id of its descriptor.
        begin += 8
        length = min(_word(record, len_at, 2), max(0, end - begin))
        if length > text_left:
            lost.damaged("records share their text")
            break
        text_left -= length
        text = texts.read(begin, length)
        if text is None:
            lost.record()
            continue
        caller = None
        if caller_at is not None:
            caller = _caller(_word(record, caller_at, 4))
        yield LogRecord(_word(record, ts_at), text, caller)
    lost.tell()


def _log_buf(info: Vmcoreinfo, kernel: Translator) -> tuple[int, int]:
    """Address and size of log_buf."""
    length = require(
        _variable(info, kernel, "log_buf_len", 4), "log_buf_len", 1, _MAX_LOG
    )
    return _variable(info, kernel, "log_buf", 8), length


def _log_buf_records(
    info: Vmcoreinfo, kernel: Translator, partial: bool, warn: Warn
) -> Iterator[LogRecord]:
    # struct printk_log since 3.11 (62e32ac3505a), struct log before.
    name = "printk_log" if info.size("printk_log") is not None else "log"
    header = require(info.size(name), f"SIZE({name})", 8, 64)

    def offset(member: str, width: int) -> int:
        key = f"{name}.{member}"
        return require(info.offset(key), f"OFFSET({key})", 0, header - width)

    ts_at = offset("ts_nsec", 8)
    len_at = offset("len", 2)
    text_len_at = offset("text_len", 2)
    caller_at = None
    if info.offset(f"{name}.caller_id") is not None:
        # With CONFIG_PRINTK_CALLER, since 5.1 (15ff2069cb7f).
        caller_at = offset("caller_id", 4)
    address, length = _log_buf(info, kernel)
    since_clear = partial and info.symbol("clear_idx") is not None
    first = "clear_idx" if since_clear else "log_first_idx"
    at = _variable(info, kernel, first, 4)
    end = _variable(info, kernel, "log_next_idx", 4)
    lost = _Lost(warn)
    buffer = _Table(kernel, address, lost)
    seen = 0
    while at != end:
        if seen >= length or at + header > length:
            lost.damaged("its records lead nowhere")
            break
        record = buffer.read(at, header)
        if record is None:
            # Where the next one is, only this one knows.
            lost.rest()
            break
        size = _word(record, len_at, 2)
        if not size:
            # The rest of the records are at the start of the buffer.
            seen += length - at
            at = 0
            continue
        if size < header or at + size > length:
            lost.damaged("an impossible record")
            break
        text_len = min(_word(record, text_len_at, 2), size - header)
        caller = None
        if caller_at is not None:
            caller = _caller(_word(record, caller_at, 4))
        text = buffer.read(at + header, text_len)
        if text is None:
            lost.record()
        else:
            yield LogRecord(_word(record, ts_at), text, caller)
        at += size
        seen += size
    lost.tell()


def _plain_text(info: Vmcoreinfo, kernel: Translator, warn: Warn) -> Iterator[bytes]:
    address, length = _log_buf(info, kernel)
    if length & length - 1:
        raise DumpError(f"VMCOREINFO is damaged: log_buf_len is {length}")
    # Characters that were ever written.
    end = _variable(info, kernel, "log_end", 4)
    start = max(0, end - length)
    lost = 0
    while start < end:
        at = start % length
        size = min(end - start, _PAGE - (address + at) % _PAGE, length - at)
        try:
            yield kernel.read(address + at, size)
        except DumpError:
            lost += size
        start += size
    if lost:
        warn(f"{lost} bytes of the kernel log could not be read")


# What the log says when the kernel gives up, the strongest sign first.
_PANIC_SIGNS = tuple(
    re.compile(pattern)
    for pattern in (
        r"Kernel panic - not syncing",
        r"sysrq: (SysRq : )?Trigger a crash",
        r"Unable to handle kernel",
        r"BUG: ",
        r"kernel BUG at",
        r"Oops: ",
        r"general protection fault",
        r"Machine Check Exception",
    )
)


def panic_line(records: list[LogRecord]) -> str | None:
    """The line that says why the kernel died, if there is one."""
    for sign in _PANIC_SIGNS:
        for record in reversed(records):
            for line in record.text.splitlines():
                if sign.search(line):
                    return line.strip()
    return None
