# SPDX-License-Identifier: LGPL-2.1-or-later
"""Persistent memory as kernels write it, for tests: rings, parity, records."""

from __future__ import annotations

import functools
import random
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import reedsolo

SIG = 0x43474244
FTRACE_SIG = {
    "4.9.0": SIG ^ 0x040900,
    "4.19.1": SIG ^ 0x041301,
    "5.10.262": SIG ^ 0x050AFF,
    "6.12.107": SIG ^ 0x060C6B,
    "7.2.13": SIG ^ 0x07020D,
}


def codec(ecc: int) -> Any:
    return reedsolo.RSCodec(
        nsym=ecc, nsize=255, fcr=0, prim=0x11D, generator=2, c_exp=8
    )


@functools.cache
def parity(data: bytes, ecc: int) -> bytes:
    """As the library makes it, which takes its time."""
    return bytes(codec(ecc).encode(data))[-ecc:]


@dataclass
class Ring:
    """One zone, written to as persistent_ram_write() does."""

    size: int
    sig: int = SIG
    ecc: int = 0
    block: int = 128
    late_wrap: bool = False
    """Until 4.x: start may be the size of the ring."""
    staging: bool = False
    start: int = 0
    used: int = 0
    data: bytearray = field(default_factory=bytearray)
    byteorder: str = "<"

    def __post_init__(self) -> None:
        self.room = self.size - 12
        self.blocks = 0
        if self.ecc:
            each = self.block if self.staging else self.block + self.ecc
            rest = self.room if self.staging else self.room - self.ecc
            self.blocks = (rest + each - 1) // each
            self.room -= (self.blocks + 1) * self.ecc
        self.data = bytearray(self.room)

    def write(self, data: bytes, upto: int = 4) -> None:
        """
        :param upto: the steps that are done: 1 size, 2 start, 3 data and its
            parity, 4 all.
        """
        data = data[-self.room :]
        grown = min(self.used + len(data), self.room)
        old = self.start
        start = old + len(data)
        while start > self.room or (start == self.room and not self.late_wrap):
            start -= self.room
        self.used = grown
        if upto >= 2:
            self.start = start
        if upto >= 3:
            first = data[: self.room - old]
            self.data[old : old + len(first)] = first
            self.data[: len(data) - len(first)] = data[len(first) :]

    def header(self) -> bytes:
        return struct.pack(f"{self.byteorder}III", self.sig, self.start, self.used)

    def image(self, header_of: bytes | None = None) -> bytes:
        """
        All of it.

        :param header_of: the header that parity is of, if another than there is.
        """
        header = self.header()
        parts = [header, bytes(self.data)]
        if self.ecc:
            for number in range(self.blocks):
                piece = bytes(self.data[number * self.block :][: self.block])
                # 3.4 has parity for blocks that there is no data for.
                parts.append(parity(piece, self.ecc) if piece else bytes(self.ecc))
            parts.append(parity(header_of or header, self.ecc))
        image = b"".join(parts)
        assert len(image) == self.size
        return image


def pow2(size: int) -> int:
    return 1 << (size.bit_length() - 1)


class Division(NamedTuple):
    """What ramoops is told."""

    mem: int = 0x20000
    record: int = 0x4000
    console: int = 0x4000
    ftrace: int = 0x8000
    pmsg: int = 0x2000
    ecc: int = 0
    cpus: int = 2
    pmsg_first: bool = True
    shared: bool = True
    """Since 4.10: dump zones share what is left."""
    sig: int = FTRACE_SIG["6.12.107"]


def rings(division: Division) -> list[tuple[str, Ring]]:
    """Empty zones, as they lie."""
    d = division
    console, ftrace, pmsg = pow2(d.console), pow2(d.ftrace), pow2(d.pmsg)
    rest = d.mem - console - ftrace - pmsg
    count = rest // pow2(d.record)
    each = rest // count // 2 * 2 if d.shared else pow2(d.record)
    zones = [("dmesg", Ring(each, ecc=d.ecc)) for _ in range(count)]
    zones.append(("console", Ring(console, ecc=d.ecc)))
    last = [("pmsg", Ring(pmsg, ecc=d.ecc))]
    part = ftrace // d.cpus // 2 * 2
    traces = [("ftrace", Ring(part, d.sig, ecc=d.ecc)) for _ in range(d.cpus)]
    return zones + (last + traces if d.pmsg_first else traces + last)


def region(zones: Iterable[tuple[str, Ring]], mem: int) -> bytes:
    content = b"".join(ring.image() for _, ring in zones)
    # What is left is never written.
    return content + random.Random(mem).randbytes(mem - len(content))


TEXT = 0xFFFFFFFF81000000


def record64(counter: int, cpu: int, ip: int = TEXT, parent: int = TEXT + 16) -> bytes:
    return struct.pack("<QQQ", ip, parent, counter << 8 | cpu)


def write_trace(
    zones: Sequence[Ring], count: int, seed: int = 0, first: int = 0
) -> list[tuple[int, int, int]]:
    """
    One boot's function trace on as many CPUs as there are zones.

    :return: counter, CPU and ip of all that was written.
    """
    chance = random.Random(seed)
    written = []
    for counter in range(first, first + count):
        cpu = chance.randrange(len(zones))
        ip = TEXT + 16 * chance.randrange(1 << 16)
        zones[cpu].write(record64(counter, cpu, ip))
        written.append((counter, cpu, ip))
    return written
