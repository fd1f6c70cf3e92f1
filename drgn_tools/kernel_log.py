# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The kernel log of a dump
------------------------

Records of the printk ring buffer, by VMCOREINFO alone: the lockless ring of
5.10 and later (:linux:`kernel/printk/printk_ringbuffer.c`), and the records in
log_buf before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from drgn_tools.errors import DumpError
from drgn_tools.translate import Translator
from drgn_tools.vmcoreinfo import Vmcoreinfo, require

# A log buffer is at most 2 GiB by its own types; nobody has more than this.
_MAX_LOG = 1 << 28
# desc_state: what of a record can be read.
_COMMITTED = 1
_FINALIZED = 2


class LogRecord(NamedTuple):
    """One printk record."""

    timestamp_ns: int
    text: str


def log_records(info: Vmcoreinfo, kernel: Translator) -> Iterator[LogRecord]:
    """
    Records of the kernel log, oldest first.

    :raises DumpError: if the log cannot be found or is not in the dump.
    """
    if info.symbol("prb") is not None:
        # Since 5.10 (896fbe20b4e2).
        return _ring_records(info, kernel)
    return _log_buf_records(info, kernel)


def _ring_records(info: Vmcoreinfo, kernel: Translator) -> Iterator[LogRecord]:
    def size(name: str) -> int:
        return require(info.size(name), f"SIZE({name})", 8, 4096)

    def offset(name: str) -> int:
        return require(info.offset(name), f"OFFSET({name})", 0, 4088)

    def word(data: bytes, at: int, width: int = 8) -> int:
        return int.from_bytes(data[at : at + width], "little")

    ring_address = word(kernel.read(info.symbol("prb") or 0, 8), 0)
    ring = kernel.read(ring_address, size("printk_ringbuffer"))
    desc_ring = ring[offset("printk_ringbuffer.desc_ring") :]
    text_ring = ring[offset("printk_ringbuffer.text_data_ring") :]
    counter = offset("atomic_long_t.counter")
    count_bits = word(desc_ring, offset("prb_desc_ring.count_bits"), 4)
    size_bits = word(text_ring, offset("prb_data_ring.size_bits"), 4)
    desc_size, info_size = size("prb_desc"), size("printk_info")
    if count_bits > 24 or size_bits > 28:
        raise DumpError("the kernel log is damaged: impossible ring sizes")
    count = 1 << count_bits

    def array(name: str, item: int) -> bytes:
        address = word(desc_ring, offset(f"prb_desc_ring.{name}"))
        return kernel.read(address, count * item)

    descs = array("descs", desc_size)
    infos = array("infos", info_size)
    text_mask = (1 << size_bits) - 1
    text = kernel.read(word(text_ring, offset("prb_data_ring.data")), 1 << size_bits)

    state_at = offset("prb_desc.state_var") + counter
    blk_at = offset("prb_desc.text_blk_lpos")
    begin_at = blk_at + offset("prb_data_blk_lpos.begin")
    next_at = blk_at + offset("prb_data_blk_lpos.next")
    ts_at = offset("printk_info.ts_nsec")
    len_at = offset("printk_info.text_len")
    tail = word(desc_ring, offset("prb_desc_ring.tail_id") + counter)
    head = word(desc_ring, offset("prb_desc_ring.head_id") + counter)
    id_mask = (1 << 62) - 1
    # Torn or damaged ids cannot lead out of the ring nor around it twice.
    for step in range(min((head - tail & id_mask) + 1, count)):
        number = tail + step & id_mask
        index = number & count - 1
        desc = descs[index * desc_size : (index + 1) * desc_size]
        state = word(desc, state_at)
        if state & id_mask != number or state >> 62 not in (_COMMITTED, _FINALIZED):
            continue
        begin, end = word(desc, begin_at), word(desc, next_at)
        if begin == end:
            continue
        start, stop = begin & text_mask, end & text_mask
        if start > stop:
            # A block never wraps: this one was put at the start of the buffer.
            start = 0
        record = infos[index * info_size : (index + 1) * info_size]
        # The block starts with the id of its descriptor.
        start += 8
        length = min(word(record, len_at, 2), max(0, stop - start))
        yield LogRecord(
            word(record, ts_at), text[start : start + length].decode(errors="replace")
        )


def _log_buf_records(info: Vmcoreinfo, kernel: Translator) -> Iterator[LogRecord]:
    def value(symbol: str, width: int) -> int:
        address = info.symbol(symbol)
        if address is None:
            raise DumpError(f"VMCOREINFO lacks SYMBOL({symbol})")
        return int.from_bytes(kernel.read(address, width), "little")

    # struct printk_log since 3.11 (62e32ac3505a), struct log before.
    name = "printk_log" if info.size("printk_log") is not None else "log"
    header = require(info.size(name), f"SIZE({name})", 8, 64)

    def offset(member: str, width: int) -> int:
        key = f"{name}.{member}"
        return require(info.offset(key), f"OFFSET({key})", 0, header - width)

    dtype = np.dtype(
        {
            "names": ["ts_nsec", "len", "text_len"],
            "formats": ["<u8", "<u2", "<u2"],
            "offsets": [offset("ts_nsec", 8), offset("len", 2), offset("text_len", 2)],
            "itemsize": header,
        }
    )
    length = require(value("log_buf_len", 4), "log_buf_len", header, _MAX_LOG)
    buffer = kernel.read(value("log_buf", 8), length)
    at, end = value("log_first_idx", 4), value("log_next_idx", 4)
    seen = 0
    while at != end and at + header <= length and seen < length:
        record = np.frombuffer(buffer, dtype, 1, at)[0]
        size = int(record["len"])
        if not size:
            # The rest of the records are at the start of the buffer.
            seen += length - at
            at = 0
            continue
        text = buffer[at + header : at + header + int(record["text_len"])]
        yield LogRecord(int(record["ts_nsec"]), text.decode(errors="replace"))
        at += size
        seen += size


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
