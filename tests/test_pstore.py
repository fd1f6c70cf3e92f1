# SPDX-License-Identifier: LGPL-2.1-or-later
"""The drgn helpers on kernels made of bytes: layouts of all times, and ruins."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drgn_tools import pstore, pstore_memory
from drgn_tools.errors import DumpError
from tests import command
from tests.pstore_kernel import ERAS, ILP32, MAPPED, REGION, FakeKernel
from tests.regions import FTRACE_SIG, SIG, TEXT, Ring, record64, write_trace

VERSIONS = {
    "3.10": SIG ^ 0x030A00,
    "4.9": FTRACE_SIG["4.9.0"],
    "4.10": SIG ^ 0x040A00,
    "5.10": FTRACE_SIG["5.10.262"],
    "6.12": FTRACE_SIG["6.12.107"],
    "7.2": FTRACE_SIG["7.2.13"],
}


def printed(helper: Callable[..., None], kernel: FakeKernel, **options: object) -> str:
    out = io.StringIO()
    helper(kernel.prog, **options, file=out)
    return out.getvalue()


def oops(text: bytes, seconds: int = 1700000000, *, compressed: bool = False) -> bytes:
    body = b"Oops#1 Part1\n" + text
    if compressed:
        deflate = zlib.compressobj(wbits=-15)
        body = deflate.compress(body) + deflate.flush()
    letter = b"C" if compressed else b"D"
    return b"====%d.%06d-%c\n" % (seconds, 42, letter[0]) + body


def written(size: int, data: bytes, ecc: int = 0, sig: int = SIG) -> Ring:
    ring = Ring(size, sig, ecc=ecc)
    ring.write(data)
    return ring


def traced(
    era: str, cpus: int, ecc: int = 0, count: int = 500, size: int = 4096
) -> tuple[list[Ring], list[str]]:
    """A function trace, and what the kernel prints of it (without names)."""
    sig = VERSIONS[era]
    lines = []
    if era in ("3.10", "4.9"):
        ring = Ring(size, sig, ecc=ecc, late_wrap=True)
        for number in range(count):
            cpu, ip = number % 3, TEXT + 16 * (number % 50)
            # The last word is padding, of what was on the stack.
            ring.write(struct.pack("<QQII", ip, TEXT + 8, cpu, 0xDEADBEEF))
            lines.append(f"{cpu} {ip:08x}  {TEXT + 8:08x}  {ip:#x} <- {TEXT + 8:#x}")
        rings = [ring]
        kept = ring.used // 24
        return rings, lines[-kept:]
    rings = [Ring(size, sig, ecc=ecc) for _ in range(cpus)]
    records = write_trace(rings, count, seed=cpus)
    kept_of: dict[int, int] = {cpu: rings[cpu].used // 24 for cpu in range(cpus)}
    for counter, cpu, ip in reversed(records):
        if kept_of[cpu]:
            kept_of[cpu] -= 1
            lines.append(
                f"CPU:{cpu} ts:{counter} {ip:08x}  {TEXT + 16:08x}  "
                f"{ip:#x} <- {TEXT + 16:#x}"
            )
    return rings, lines[::-1]


def full(
    era: str, cpus: int, ecc: int, count: int = 500
) -> tuple[FakeKernel, list[str]]:
    """A kernel that has written to all of its zones."""
    kernel = FakeKernel(era)
    rings, lines = traced(era, cpus, ecc, count)
    zones = [
        ("dmesg", written(4096, oops(b"<1>first\n"), ecc)),
        (
            "dmesg",
            written(4096, oops(b"<1>second\n", 1700000001, compressed=True), ecc),
        ),
        ("dmesg", Ring(4096, ecc=ecc)),
        ("console", written(2048, b"[    0.0] console\n", ecc)),
        *(("ftrace", ring) for ring in rings),
    ]
    if "mprz" in dict(ERAS[era]["struct ramoops_context"]):
        zones.append(("pmsg", written(2048, b"from user space", ecc)))
    kernel.variable("pstore_ftrace_stamp", "u64", "fs/pstore/ftrace.c", count)
    kernel.ramoops(
        [(kind, ring.image()) for kind, ring in zones],
        ecc=ecc,
        room=[ring.room for _, ring in zones],
    )
    return kernel, lines


@pytest.mark.verified(
    "pstore: zones in a dump",
    by="structures made as in 3.10, 4.9, 4.10, 5.10, 6.12, 7.2",
    on="bytes",
)
@pytest.mark.parametrize("ecc", [0, 16])
@pytest.mark.parametrize("cpus", [1, 4])
@pytest.mark.parametrize("count", [50, 2000])
@pytest.mark.parametrize("era", ERAS)
def test_all_layouts(
    era: str, cpus: int, ecc: int, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel, lines = full(era, cpus, ecc, count)
    zones = list(pstore.for_each_pstore_zone(kernel.prog))
    has_pmsg = era != "3.10"
    several = 1 if era in ("3.10", "4.9") else cpus
    kinds = ["dmesg"] * 3 + ["console"] + ["ftrace"] * several + ["pmsg"] * has_pmsg
    assert [zone.kind for zone in zones] == kinds
    assert [zone.state for zone in zones[:4]] == ["valid", "valid", "empty", "valid"]
    assert all(zone.ecc_size == ecc and not zone.live_error for zone in zones)
    assert zones[0].address == REGION and zones[1].address == REGION + 4096
    assert zones[4].wrapped == (count == 2000)
    assert not any(zone.corrected_bytes or zone.bad_blocks for zone in zones)
    assert printed(pstore.pstore_ftrace, kernel).splitlines() == lines
    dmesg = printed(pstore.pstore_dmesg, kernel)
    assert re.findall(r"<1>(\w+)", dmesg) == ["first", "second"]
    assert "2023-11-14 22:13:20.000042 UTC" in dmesg and "Oops#1 Part1\n" in dmesg
    assert printed(pstore.pstore_console, kernel) == "[    0.0] console\n"
    if has_pmsg:
        assert printed(pstore.pstore_pmsg, kernel) == "from user space"
    table = printed(pstore.pstore_zones, kernel).splitlines()
    assert len(table) == len(zones) + 1
    assert "Traceback" not in capsys.readouterr().err


def test_records() -> None:
    kernel, _ = full("6.12", 2, 0, 100)
    records = list(pstore.for_each_pstore_ftrace(kernel.prog))
    assert [record.counter for record in records] == list(range(100))
    assert {record.cpu for record in records} == {0, 1}
    assert {record.boot for record in records} == {0}
    assert all(record.zone == f"ramoops:ftrace({record.cpu}/1)" for record in records)
    assert not any(record.torn for record in records)
    last = list(pstore.for_each_pstore_ftrace(kernel.prog, cpu=1, last=3))
    assert last == [record for record in records if record.cpu == 1][-3:]
    assert list(pstore.for_each_pstore_ftrace(kernel.prog, boot=-1)) == []


@pytest.mark.parametrize(
    "without",
    [
        ("struct ramoops_context", "struct persistent_ram_zone"),
        (
            "struct ramoops_context",
            "struct persistent_ram_zone",
            "struct persistent_ram_ecc_info",
            "struct pstore_ftrace_record",
        ),
    ],
)
@pytest.mark.parametrize("era", ["5.10", "7.2"])
def test_module_without_debug_info(era: str, without: tuple[str, ...]) -> None:
    whole, lines = full(era, 2, 16)
    bare = FakeKernel(era, without=without)
    bare.memory, bare.variables = whole.memory, dict(whole.variables)
    # The variable is of the module too.
    del bare.variables["oops_cxt"]
    bare.prog.add_memory_segment(
        REGION,
        1 << 16,
        lambda a, count, offset, p: whole.prog.read(a, count, True),
        True,
    )
    assert list(pstore.for_each_pstore_zone(bare.prog)) == list(
        pstore.for_each_pstore_zone(whole.prog)
    )
    assert printed(pstore.pstore_ftrace, bare).splitlines() == lines


def test_module_without_debug_info_of_unknown_layout() -> None:
    kernel = FakeKernel("5.10", platform=ILP32, without=("struct ramoops_context",))
    kernel.ramoops([("dmesg", written(4096, oops(b"x\n")).image())])
    with pytest.raises(DumpError, match=r"struct ramoops_context .*debugging symbols"):
        list(pstore.for_each_pstore_zone(kernel.prog))


@pytest.mark.verified(
    "pstore: zones in a dump", by="structures of a 32-bit kernel", on="bytes"
)
def test_32_bits() -> None:
    kernel = FakeKernel("5.10", platform=ILP32)
    kernel.variables["__per_cpu_offset"] = "bytes32", kernel.allocate(32), "setup.c"
    ring = Ring(4096, VERSIONS["5.10"])
    # The counter is cut to 24 bits.
    first = (1 << 24) - 5
    for number in range(first, first + 10):
        stamp = (number << 8 | 3) & 0xFFFFFFFF
        ring.write(struct.pack("<IIQ", 0xC0101000 + number % 8, 0xC0102000, stamp))
    kernel.variable("pstore_ftrace_stamp", "u64", "fs/pstore/ftrace.c", first + 10)
    kernel.ramoops([("ftrace", ring.image())])
    records = list(pstore.for_each_pstore_ftrace(kernel.prog))
    assert [record.counter for record in records] == [
        number % (1 << 24) for number in range(first, first + 10)
    ]
    assert {(record.cpu, record.boot) for record in records} == {(3, 0)}


def test_cpu_in_ip() -> None:
    kernel = FakeKernel("5.10", platform=ILP32)
    # NR_CPUS, of which that depends.
    kernel.variables["__per_cpu_offset"] = "bytes4", kernel.allocate(32), "setup.c"
    ring = Ring(4096, VERSIONS["5.10"])
    for number in range(10):
        ring.write(struct.pack("<IIQ", 0xC0101000 | number % 4, 0xC0102000, number))
    kernel.ramoops([("ftrace", ring.image())])
    records = list(pstore.for_each_pstore_ftrace(kernel.prog))
    assert [record.cpu for record in records] == [n % 4 for n in range(10)]
    assert [record.counter for record in records] == list(range(10))


# Missing memory


def test_reserved_memory_is_named_and_old_logs_are_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    kernel = FakeKernel()
    rings, lines = traced("6.12", 2, count=40)
    zones = [
        ("dmesg", Ring(4096)),
        ("console", Ring(4096)),
        *(("ftrace", Ring(4096)) for _ in rings),
    ]
    olds = [oops(b"old\n"), b"old console\n"]
    olds += [bytes(ring.data[: ring.used]) for ring in rings]
    kernel.ramoops(
        [(kind, ring.image()) for kind, ring in zones],
        old_logs=dict(enumerate(olds)),
        present=False,
    )
    for zone in pstore.for_each_pstore_zone(kernel.prog):
        assert zone.live is None and zone.state == "missing"
        assert zone.live_error == (
            "live region is reserved memory and not in this dump"
        )
        assert zone.old_log == olds.pop(0)
    table = printed(pstore.pstore_zones, kernel)
    assert table.count("reserved memory and not in this dump") == 1
    assert printed(pstore.pstore_ftrace, kernel).splitlines() == lines
    said = capsys.readouterr().err
    assert "reserved memory" in said and "nothing is of this kernel" not in said
    assert "one before this kernel, whose own records, if any, cannot be read" in said
    assert printed(pstore.pstore_console, kernel) == "old console\n"
    assert "earlier boot: this kernel's cannot be read" in capsys.readouterr().err
    assert "old\n" in printed(pstore.pstore_dmesg, kernel)


def test_zeros_are_not_memory() -> None:
    kernel = FakeKernel()
    kernel.ramoops([("console", bytes(4096))])
    (zone,) = pstore.for_each_pstore_zone(kernel.prog)
    assert zone.live is None and "reads as zeros" in zone.live_error
    with pytest.raises(DumpError, match="no console output"):
        printed(pstore.pstore_console, kernel)


@pytest.mark.parametrize("zeros", [False, True])
def test_live_memory_is_never_read_where_it_is_mapped(zeros: bool) -> None:
    def read(address: int, count: int, offset: int, physical: bool) -> bytes:
        raise AssertionError("/proc/kcore has zeros there, at best")

    kernel = FakeKernel(live=True)
    image = written(4096, b"text").image()
    context = kernel.ramoops([("console", image)], present=False)
    kernel.prog.add_memory_segment(MAPPED, 1 << 16, read)
    if zeros:
        kernel.physical(REGION, bytes(4096))
    (zone,) = pstore.for_each_pstore_zone(kernel.prog)
    assert zone.live is None and "live region" in zone.live_error
    kernel.physical(REGION, image)
    # Of a running kernel, nothing is remembered.
    (zone,) = pstore.for_each_pstore_zone(kernel.prog)
    assert zone.live == b"text" and context


def test_dev_mem_if_kcore_has_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    image = written(4096, b"text").image()

    def denied(address: int, size: int) -> bytes:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    for read, live, why in (
        (lambda address, size: image[:size], b"text", ""),
        (denied, None, "/dev/mem says: Operation not permitted"),
    ):
        monkeypatch.setattr(pstore_memory, "_read_dev_mem", read)
        monkeypatch.setattr(pstore_memory, "_is_here", lambda prog: True)
        kernel = FakeKernel(live=True)
        kernel.ramoops([("console", image)], present=False)
        (zone,) = pstore.for_each_pstore_zone(kernel.prog)
        assert zone.live == live and why in zone.live_error


def test_sessions_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    pstore.pstore_zones(FakeKernel().prog)
    out, err = capsys.readouterr()
    assert not out and err.startswith("pstore: this kernel has no pstore: ")
    assert err.count("\n") == 1


def test_half_of_a_zone() -> None:
    kernel = FakeKernel()
    image = written(8192, bytes(range(32, 112)) * 100).image()
    kernel.ramoops([("console", image)], present=False)
    kernel.physical(REGION, image[:4096])
    (zone,) = pstore.for_each_pstore_zone(kernel.prog)
    assert zone.live is not None and "last 4096 bytes" in zone.live_error
    assert image[12:4096].endswith(zone.live[-100:])


def test_old_log_not_in_the_dump() -> None:
    kernel = FakeKernel()
    context = kernel.ramoops([("console", written(4096, b"now").image())])
    name = "struct persistent_ram_zone"
    address = int.from_bytes(
        kernel.prog.read(context + kernel.member("struct ramoops_context", "cprz"), 8),
        "little",
    )
    kernel.put(name, address, old_log=MAPPED, old_log_size=100)
    (zone,) = pstore.for_each_pstore_zone(kernel.prog)
    assert zone.old_log is None and zone.old_log_error == "old_log is not in this dump"
    assert zone.live == b"now"


# Boots


def boots_of(kernel: FakeKernel) -> list[tuple[int, int]]:
    return [(r.boot, r.counter) for r in pstore.for_each_pstore_ftrace(kernel.prog)]


def two_boots(
    *,
    stamp: int,
    slide: int,
    functions: list[tuple[int, str]],
    now: int,
    log: bytes,
    used: int = 40,
) -> FakeKernel:
    """A zone with an earlier boot's records, at *slide*, and *stamp* of this one's."""
    ring = Ring(1 << 14, VERSIONS["6.12"])
    for number in range(40):
        ip = functions[number % used][0] + slide + 4
        ring.write(record64(number, 0, ip, ip + 1))
    old = bytes(ring.data[: ring.used])
    for number in range(stamp):
        ip = functions[number % used][0] + now + 4
        ring.write(record64(number, 0, ip, ip + 1))
    kernel = FakeKernel()
    kernel.variable("pstore_ftrace_stamp", "u64", "fs/pstore/ftrace.c", stamp)
    kernel.vmcoreinfo(f"OSRELEASE=6.12.0\nKERNELOFFSET={now:x}\n")
    kernel.symbols([(address + now, name) for address, name in functions])
    zones = [("ftrace", ring.image()), ("console", written(4096, b"new").image())]
    kernel.ramoops(zones, old_logs={0: old, 1: log})
    return kernel


def spread(count: int) -> list[tuple[int, str]]:
    """Functions at distances that only one slide explains."""
    chance = random.Random(count)
    at, functions = TEXT, []
    for number in range(count):
        functions.append((at, f"function_{number}"))
        at += 16 * chance.randrange(1, 4000)
    return functions


@pytest.mark.parametrize("stamp", [0, 25])
def test_slide_of_an_earlier_boot_is_fitted(
    stamp: int, capsys: pytest.CaptureFixture[str]
) -> None:
    functions = spread(40)
    kernel = two_boots(
        stamp=stamp, slide=0x1E00000, functions=functions, now=0xA200000, log=b""
    )
    oldest = -1 if stamp else 0
    expected = [(oldest, n) for n in range(40)]
    expected += [(0, n) for n in range(stamp)]
    assert boots_of(kernel) == expected
    lines = printed(pstore.pstore_ftrace, kernel, boot=oldest).splitlines()
    for number, line in enumerate(lines):
        ip = functions[number][0] + 0x1E00004
        assert line == (
            f"CPU:0 ts:{number} {ip:08x}  {ip + 1:08x}  function_{number} <- "
            f"function_{number}+0x5/{line.rpartition('/')[2]}"
        )
    assert len(lines) == 40
    assert ("nothing is of this kernel" in capsys.readouterr().err) == (not stamp)
    if stamp:
        newest = printed(pstore.pstore_ftrace, kernel).splitlines()
        assert len(newest) == 25 and "function_24 <- function_24+0x5/" in newest[-1]
        assert printed(pstore.pstore_ftrace, kernel, boot="previous").splitlines() == (
            lines
        )
        everything = printed(pstore.pstore_ftrace, kernel, boot="all").splitlines()
        assert everything == lines + newest


def test_slide_of_an_earlier_boot_is_in_its_log() -> None:
    # One function: any slide would do.
    log = b"[ 9.9] Kernel Offset: 0x1e00000 from 0xffffffff81000000 (relocation\n"
    kernel = two_boots(
        stamp=1, slide=0x1E00000, functions=spread(40), now=0xA200000, log=log, used=1
    )
    lines = printed(pstore.pstore_ftrace, kernel, boot=-1).splitlines()
    assert len(lines) == 40
    assert all("  function_0 <- function_0+0x5/" in line for line in lines)


def test_slide_of_an_earlier_boot_is_unknown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    kernel = two_boots(
        stamp=1, slide=0x1E00000, functions=spread(40), now=0xA200000, log=b"", used=1
    )
    (line, *_) = printed(pstore.pstore_ftrace, kernel, boot=-1).splitlines()
    ip = TEXT + 0x1E00004
    assert line == f"CPU:0 ts:0 {ip:08x}  {ip + 1:08x}  {ip:#x} <- {ip + 1:#x}"
    assert "boot -1: symbols are unknown" in capsys.readouterr().err


def test_neutral_addresses() -> None:
    now = 0xA200000
    functions = spread(10)
    ring = Ring(4096, VERSIONS["7.2"])
    module = 0xFFFFFFFFC0123450
    for number, (address, _) in enumerate(functions):
        ring.write(record64(number, 0, address + 4, module & ~(1 << 63)))
    kernel = FakeKernel("7.2")
    kernel.functions["decode_ip"] = functions[0][0] + now
    kernel.variable("pstore_ftrace_stamp", "u64", "fs/pstore/ftrace.c", 10)
    kernel.vmcoreinfo(f"OSRELEASE=7.2.0\nKERNELOFFSET={now:x}\n")
    kernel.symbols([(address + now, name) for address, name in functions])
    kernel.ramoops([("ftrace", ring.image())])
    for number, line in enumerate(printed(pstore.pstore_ftrace, kernel).splitlines()):
        ip = functions[number][0] + now + 4
        assert line == (
            f"CPU:0 ts:{number} {ip:08x}  {module:08x}  function_{number} <- "
            f"{module:#x}"
        )


def test_what_a_wrapped_ring_lost_is_in_old_log() -> None:
    ring = Ring(2412, VERSIONS["6.12"])
    for number in range(80):
        ring.write(record64(number, 0))
    old = bytes(ring.data[: ring.used])
    for number in range(50):
        ring.write(record64(number, 0))
    kernel = FakeKernel()
    kernel.variable("pstore_ftrace_stamp", "u64", "fs/pstore/ftrace.c", 50)
    kernel.ramoops([("ftrace", ring.image())], old_logs={0: old})
    before = [(-1, n) for n in range(80)]
    assert boots_of(kernel) == before + [(0, n) for n in range(50)]
    # And when this boot has overwritten all of it.
    for number in range(50, 1000):
        ring.write(record64(number, 0))
    kernel = FakeKernel()
    kernel.variable("pstore_ftrace_stamp", "u64", "fs/pstore/ftrace.c", 1000)
    kernel.ramoops([("ftrace", ring.image())], old_logs={0: old})
    assert boots_of(kernel) == before + [(0, n) for n in range(900, 1000)]


def test_lost_records_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    ring = Ring(4096, VERSIONS["6.12"])
    for number in (*range(10), *range(20, 30)):
        ring.write(record64(number, 0))
    kernel = FakeKernel()
    kernel.variable("pstore_ftrace_stamp", "u64", "fs/pstore/ftrace.c", 30)
    kernel.ramoops([("ftrace", ring.image())])
    assert len(printed(pstore.pstore_ftrace, kernel).splitlines()) == 20
    assert "10 records are lost" in capsys.readouterr().err


def test_more_than_256_cpus(capsys: pytest.CaptureFixture[str]) -> None:
    """The trace is one boot's, and this one's, though counters are inexact."""
    rings = [Ring(256, VERSIONS["6.12"]) for _ in range(770)]
    last = 769
    for number in range(997):
        cpu = last if number == 996 else number % 770
        rings[cpu].write(record64(number, cpu))
    kernel = FakeKernel()
    kernel.variable("pstore_ftrace_stamp", "u64", "fs/pstore/ftrace.c", 997)
    kernel.ramoops([("ftrace", ring.image()) for ring in rings])
    records = list(pstore.for_each_pstore_ftrace(kernel.prog))
    assert len(records) == 997
    assert {record.boot for record in records} == {0}
    assert {record.cpu for record in records} == set(range(770))
    printed(pstore.pstore_ftrace, kernel, last=1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("options", [{"boot": "last"}, {"last": -1}])
def test_wrong_options(options: dict[str, object]) -> None:
    kernel, _ = full("6.12", 1, 0)
    with pytest.raises(DumpError):
        printed(pstore.pstore_ftrace, kernel, **options)


# Other places


def psz(kind: int, data: bytes, room: int = 4096, start: int | None = None) -> bytes:
    start = len(data) if start is None else start
    head = struct.pack("<III", SIG ^ kind, len(data), start)
    return head + data + b"\xff" * (room - len(data))


def psz_dmesg(text: bytes, *, compressed: bool) -> bytes:
    if compressed:
        deflate = zlib.compressobj(wbits=-15)
        text = deflate.compress(text) + deflate.flush()
    return (
        struct.pack(
            "<IIqqBxxxIII", 0x4DFC3AE5, 0, 1700000000, 42000, compressed, 1, 2, 0
        )
        + text
    )


@pytest.mark.verified(
    "pstore: zones of pstore_blk (pstore_zone)",
    by="structures made as in 5.10 to 7.2",
    on="bytes",
)
@pytest.mark.parametrize("without", [(), ("struct psz_context", "struct pstore_zone")])
def test_pstore_zone(without: tuple[str, ...]) -> None:
    kernel = FakeKernel("5.10", without=without)
    trace = b"".join(record64(n, 0) for n in range(20))
    kernel.pstore_zone(
        [
            (
                "dmesg",
                psz(0, psz_dmesg(b"Oops#1 Part1\nplain\n", compressed=False)),
                b"",
            ),
            (
                "dmesg",
                psz(0, psz_dmesg(b"Oops#2 Part1\ntight\n", compressed=True)),
                b"",
            ),
            ("console", psz(2, b"now\n"), psz(2, b"before\n", 7, 3)),
            ("ftrace", psz(3, trace), b""),
            ("pmsg", psz(7, b"message"), b""),
        ]
    )
    if without:
        del kernel.variables["pstore_zone_cxt"]
    kernel.variable("pstore_ftrace_stamp", "u64", "fs/pstore/ftrace.c", 20)
    zones = list(pstore.for_each_pstore_zone(kernel.prog))
    assert [zone.kind for zone in zones] == [
        *("dmesg", "dmesg", "console", "ftrace", "pmsg"),
    ]
    assert {zone.backend for zone in zones} == {"pstore_zone"}
    assert printed(pstore.pstore_console, kernel) == "now\n"
    assert printed(pstore.pstore_console, kernel, boot="previous") == "before\n"
    assert printed(pstore.pstore_pmsg, kernel) == "message"
    texts = [r.text for r in pstore.for_each_pstore_record(kernel.prog, kind="dmesg")]
    assert texts == [b"Oops#1 Part1\nplain\n", b"Oops#2 Part1\ntight\n"]
    assert boots_of(kernel) == [(0, n) for n in range(20)]


@pytest.mark.parametrize(
    ("used", "start"), [(5000, 0), (0xFFFFFFFF, 0), (10, 5000), (1 << 31, 1 << 31)]
)
def test_wild_headers_of_pstore_zone(used: int, start: int) -> None:
    kernel = FakeKernel("5.10")
    wild = struct.pack("<III", SIG ^ 2, used, start) + bytes(4096)
    kernel.pstore_zone([("console", wild, wild), ("pmsg", psz(7, b"text"), b"")])
    console, pmsg = pstore.for_each_pstore_zone(kernel.prog)
    assert (console.state, console.live) == ("invalid", b"")
    assert console.live_error == "its header is invalid"
    assert not console.old_log
    assert (console.old_log_error == "its oldbuf cannot be read") == (used > 4096)
    assert pmsg.live == b"text"
    with pytest.raises(DumpError, match="no console output"):
        printed(pstore.pstore_console, kernel)


@pytest.mark.parametrize("size", [0, 1 << 40, (1 << 64) - 1])
def test_wild_sizes_of_pstore_zone(size: int) -> None:
    kernel = FakeKernel("5.10")
    context = kernel.pstore_zone([("console", psz(2, b"text"), psz(2, b"old"))])
    at = context + kernel.member("struct psz_context", "cpsz")
    zone = int.from_bytes(kernel.prog.read(at, 8), "little")
    kernel.put("struct pstore_zone", zone, buffer_size=size)
    kernel.put(
        "struct psz_context",
        context,
        kpszs=zone,
        kmsg_max_cnt=0xFFFFFFFF,
        fpszs=MAPPED,
        ftrace_max_cnt=3,
        ppsz=MAPPED,
    )
    console, pmsg = pstore.for_each_pstore_zone(kernel.prog)
    assert console.live is None and "cannot be" in console.live_error
    assert f"struct pstore_zone at {MAPPED:#x}" in pmsg.live_error
    table = printed(pstore.pstore_zones, kernel)
    assert "kmsg_max_cnt is 4294967295" in table
    assert "not all pointers to ftrace zones can be read" in table


@pytest.mark.parametrize(
    ("era", "name"), [("6.12", "records_list"), ("3.10", "allpstore")]
)
def test_mounted_records(era: str, name: str) -> None:
    kernel = FakeKernel(era)
    kernel.psinfo("efi_pstore", 0)
    kernel.pstorefs([(0, 1, b"Panic#1 Part1\nlog\n"), (2, 0, b"console\n")], name)
    records = list(pstore.for_each_pstore_record(kernel.prog))
    assert [(r.kind, r.label, r.text) for r in records] == [
        ("dmesg", "dmesg-1", b"Panic#1 Part1\nlog\n"),
        ("console", "console-0", b"console\n"),
    ]
    assert records[0].reason == "Panic"


def test_buffers_of_the_last_dump() -> None:
    text = b"Oops#3 Part1\n<4>first line\n<4>second\n"
    deflate = zlib.compressobj(wbits=-15)
    packed = deflate.compress(text) + deflate.flush()
    kernel = FakeKernel()
    kernel.psinfo("erst", 0, packed + b"rest of an older one" * 20)
    # A longer dump was there before.
    plain = kernel.allocate(0, text + b"<4>older and longer\n" + bytes(64))
    kernel.variable("big_oops_buf", "pointer", "fs/pstore/platform.c", plain)
    kernel.variable("max_compressed_size", "long", "fs/pstore/platform.c", 120)
    count = kernel.variable("oopscount", "int", "fs/pstore/platform.c", 3)
    (record,) = pstore.for_each_pstore_record(kernel.prog)
    assert record.text == text and record.oops_count == 3
    # Before the first one, there is whatever was in that memory.
    kernel.poke(count, bytes(4))
    with pytest.raises(DumpError, match="erst"):
        list(pstore.for_each_pstore_record(FakeKernelAgain(kernel).prog))


class FakeKernelAgain(FakeKernel):
    """The same memory, seen by a new program: one remembers what it read."""

    def __init__(self, kernel: FakeKernel) -> None:
        super().__init__()
        self.memory, self.variables = kernel.memory, kernel.variables


def test_the_same_text_comes_once() -> None:
    kernel = FakeKernel()
    content = oops(b"once\n")
    image = written(4096, content).image()
    kernel.ramoops([("dmesg", image)], old_logs={0: content})
    kernel.pstorefs([(0, 0, b"Oops#1 Part1\nonce\n")])
    (record,) = pstore.for_each_pstore_record(kernel.prog)
    assert record.source == "live"


def test_not_the_backend_in_use() -> None:
    kernel = FakeKernel()
    kernel.ramoops([("console", written(4096, b"text").image())], registered=False)
    kernel.psinfo("efi_pstore", 0)
    assert printed(pstore.pstore_console, kernel) == "text"


def test_android_log() -> None:
    def message(text: bytes) -> bytes:
        payload = b"\4tag\0" + text + b"\0"
        inner = struct.pack("<BHII", 0, 78, 1700000000, 0)
        size = 7 + len(inner) + len(payload)
        return struct.pack("<BHHH", 0x6C, size, 1000, 77) + inner + payload

    kernel = FakeKernel()
    ring = written(4096, b"".join(message(b"text %d" % n) for n in range(5)))
    kernel.ramoops([("pmsg", ring.image())])
    lines = printed(pstore.pstore_pmsg, kernel).splitlines()
    assert len(lines) == 5 and lines[4].endswith("77    78 I tag: text 4")
    assert "tag\0text 0" in printed(pstore.pstore_pmsg, kernel, logcat=False)


# The command


@pytest.mark.parametrize("era", ["4.9", "6.12"])
def test_all_as_text_and_json(era: str, capsys: pytest.CaptureFixture[str]) -> None:
    kernel, lines = full(era, 2, 16, 50)
    found = pstore_memory.read_pstore(kernel.prog)
    out = io.StringIO()
    pstore._print_all(kernel.prog, found, 0, out)
    text = out.getvalue()
    assert text.endswith("".join(line + "\n" for line in lines))
    for part in ("<1>first\n", "<1>second\n", "] console\n", "\nfrom user space\n"):
        assert part in text
    out = io.StringIO()
    pstore._print_json(kernel.prog, found, None, out)
    data = json.loads(out.getvalue())
    assert data["backend"] == "ramoops" and data["notes"] == []
    assert [zone["label"] for zone in data["zones"][:2]] == [
        zone.label for zone in found.zones[:2]
    ]
    assert [record["text"] for record in data["dmesg"]] == [
        "Oops#1 Part1\n<1>first\n",
        "Oops#1 Part1\n<1>second\n",
    ]
    assert len(data["ftrace"]["records"]) == len(lines)
    assert data["ftrace"]["boots"][0]["this_kernel"]
    out = io.StringIO()
    pstore._print_json(kernel.prog, found, None, out, 3, ("ftrace", "pmsg"))
    some = json.loads(out.getvalue())
    assert set(some) == set(data) - {"zones", "dmesg", "console"}
    assert some["ftrace"]["records"] == data["ftrace"]["records"][-3:]
    for print_it in (pstore._print_all, pstore._print_json):
        out = io.StringIO()
        with pytest.raises(DumpError, match=r"it has boots 0$"):
            print_it(kernel.prog, found, -1, out)
        assert out.getvalue() == ""


@pytest.mark.parametrize(("count", "boot"), [(0, -1), (1, None)])
def test_which_boot_a_log_is_of(count: int, boot: int | None) -> None:
    """The region still has what earlier boots wrote: old_log tells."""
    kernel = FakeKernel()
    logs = [oops(b"one\n", 1), oops(b"two\n", 2), oops(b"three\n", 3)]
    zones = [written(4096, logs[0]), written(4096, logs[1]), written(4096, logs[2])]
    console = written(4096, b"now\n")
    kernel.ramoops(
        [*(("dmesg", ring.image()) for ring in zones), ("console", console.image())],
        # The second was written over what was there at boot.
        old_logs={0: logs[0], 1: oops(b"old\n", 0), 3: b"before\n"},
    )
    kernel.variable("oopscount", "u32", "fs/pstore/platform.c", count)
    found = {
        r.text.split(b"\n")[-2]: r for r in pstore.for_each_pstore_record(kernel.prog)
    }
    assert {text: record.boot for text, record in found.items()} == {
        b"one": boot,
        b"two": 0,
        b"three": 0,
        b"old": boot,
        b"now": 0,
        b"before": -1,
    }
    text = printed(pstore.pstore_dmesg, kernel)
    title = "live" if boot is None else "an earlier boot"
    assert f", {title}, Oops#1 Part1, 1970-01-01 00:00:01" in text
    assert ", this boot, Oops#1 Part1, 1970-01-01 00:00:02" in text


def test_a_selection_as_text() -> None:
    kernel, lines = full("6.12", 2, 16, 50)
    found = pstore_memory.read_pstore(kernel.prog)

    def shown(*only: str, last: int | None = None) -> str:
        out = io.StringIO()
        pstore._print_all(kernel.prog, found, 0, out, last, only)
        return out.getvalue()

    trace = f"== ftrace: boot 0, {len(lines)} records"
    assert shown("ftrace", last=2).splitlines() == [f"{trace}, the last 2", *lines[-2:]]
    assert shown("ftrace", last=99).splitlines() == [trace, *lines]
    zones = shown("zones").splitlines()
    assert zones[-1] == "1 empty: dmesg 2" and len(zones) == 8
    assert (
        shown("dmesg")
        == "\n\n".join(
            printed(pstore.pstore_dmesg, kernel).rstrip().split("\n== ")
        ).replace("\n\n", "\n\n== ")
        + "\n"
    )
    assert shown("console").count("== ") == shown("pmsg").count("== ") == 1
    assert shown("zones", "pmsg").count("\n== ") == 1


def test_the_command_on_what_it_cannot_use(core: Path, tmp_path: Path) -> None:
    outcome = command.drgn_tools("pstore", core)
    assert "pstore cannot be found" in command.assert_refused(outcome)
    none = tmp_path / "none"
    outcome = command.drgn_tools("pstore", none)
    assert f"cannot open {none}: No such file" in command.assert_refused(outcome)
    (tmp_path / "text").write_text("no dump\n")
    outcome = command.drgn_tools("pstore", tmp_path / "text")
    assert "cannot read" in command.assert_refused(outcome)
    for name, why in (("none", "cannot read"), ("text", "has no debugging symbols")):
        symbols = tmp_path / name
        outcome = command.drgn_tools("pstore", core, "--symbols", symbols)
        assert why in command.assert_refused(outcome)


# What is not there, and ruins


def nothing() -> Iterator[tuple[FakeKernel, str]]:
    yield FakeKernel(), "this kernel has no pstore: "
    yield FakeKernel(debug_info=False), "debugging symbols"
    kernel = FakeKernel()
    kernel.variable("psinfo", "pointer struct pstore_info", "fs/pstore/platform.c")
    yield kernel, "no backend is registered"
    kernel = FakeKernel()
    kernel.psinfo("efi_pstore", 0)
    yield kernel, "efi_pstore"
    kernel = FakeKernel()
    kernel.variable(
        "psinfo", "pointer struct pstore_info", "fs/pstore/platform.c", MAPPED
    )
    yield kernel, "psinfo is not in this dump"
    kernel = FakeKernel()
    kernel.psinfo("ramoops", MAPPED)
    yield kernel, "ramoops"


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize(
    "helper",
    [
        pstore.pstore_zones,
        pstore.pstore_ftrace,
        pstore.pstore_dmesg,
        pstore.pstore_console,
        pstore.pstore_pmsg,
    ],
)
def test_nothing_there(helper: Callable[..., None], number: int) -> None:
    kernel, message = list(nothing())[number]
    with pytest.raises(DumpError, match=message) as caught:
        printed(helper, kernel)
    assert "\n" not in str(caught.value)
    # Where nobody catches it, as in drgn -e: one line and status 1.
    with pytest.raises(SystemExit) as ended:
        helper(kernel.prog)
    assert ended.value.code == f"pstore: {caught.value}"
    assert isinstance(ended.value, DumpError)


def test_no_zone_for_a_function_trace() -> None:
    kernel = FakeKernel()
    kernel.ramoops([("console", written(4096, b"text").image())])
    with pytest.raises(DumpError, match="no function trace"):
        printed(pstore.pstore_ftrace, kernel)


def test_wild_counts_and_pointers() -> None:
    kernel, _ = full("6.12", 2, 0)
    context = kernel.variables["oops_cxt"][1]
    kernel.put(
        "struct ramoops_context",
        context,
        max_dump_cnt=0xFFFFFFFF,
        max_ftrace_cnt=1000,
        cprz=MAPPED,
        mprz=kernel.base + 8,
    )
    zones = list(pstore.for_each_pstore_zone(kernel.prog))
    assert len(zones) < 1100
    (console,) = [zone for zone in zones if zone.kind == "console"]
    assert f"struct persistent_ram_zone at {MAPPED:#x}" in console.live_error
    assert "max_dump_cnt is 4294967295" in printed(pstore.pstore_zones, kernel)


@pytest.mark.parametrize("size", [0, 12, 1 << 40, (1 << 64) - 1])
def test_wild_sizes(size: int) -> None:
    kernel = FakeKernel()
    context = kernel.ramoops([("console", written(4096, b"x").image())])
    at = context + kernel.member("struct ramoops_context", "cprz")
    address = int.from_bytes(kernel.prog.read(at, 8), "little")
    kernel.put(
        "struct persistent_ram_zone",
        address,
        size=size,
        old_log=kernel.base,
        old_log_size=size,
    )
    (zone,) = pstore.for_each_pstore_zone(kernel.prog)
    assert zone.live is None and "cannot be" in zone.live_error


def test_the_same_memory_as_many_zones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pstore_memory, "_MAX_SIZE", 10000)
    kernel = FakeKernel()
    kernel.ramoops([("dmesg", written(4096, oops(b"x\n")).image())] * 3)
    states = [zone.state for zone in pstore.for_each_pstore_zone(kernel.prog)]
    assert states == ["valid", "valid", "missing"]


@pytest.mark.parametrize("target", [1, 2, None])
def test_wild_lists(target: int | None) -> None:
    kernel = FakeKernel()
    kernel.psinfo("efi_pstore", 0)
    nodes = kernel.pstorefs([(0, n, b"Oops#%d Part1\n" % n) for n in range(3)])
    kernel.put(
        "struct list_head", nodes[3], next=MAPPED if target is None else nodes[target]
    )
    records = list(pstore.for_each_pstore_record(kernel.prog))
    assert [record.oops_count for record in records] == [0, 1, 2]
    assert "list of records" in printed(pstore.pstore_zones, kernel)


def test_ruins() -> None:
    chance = random.Random(5)
    kernels = []
    for era in ERAS:
        kernel, _ = full(era, 2, chance.choice([0, 16]), 100)
        kernel.pstorefs([(0, 1, b"Panic#1 Part1\nlog\n"), (2, 0, b"console\n")])
        kernels.append((kernel, bytes(kernel.memory)))
    kernel = FakeKernel("5.10")
    kernel.pstore_zone(
        [
            ("dmesg", psz(0, psz_dmesg(b"Oops#1 Part1\n", compressed=True)), b""),
            ("console", psz(2, b"now\n"), psz(2, b"before\n", 7, 3)),
            ("ftrace", psz(3, b"".join(record64(n, 0) for n in range(20))), b""),
        ]
    )
    kernels += [(kernel, bytes(kernel.memory))] * 2
    done = 0
    for _ in range(400):
        kernel, whole = chance.choice(kernels)
        kernel.memory[:] = whole
        for _ in range(chance.randrange(1, 60)):
            at = chance.randrange(0x1000, kernel.used)
            kernel.memory[at] = chance.randrange(256)
        kernel.prog.cache.clear()
        for helper in (
            pstore.pstore_zones,
            pstore.pstore_ftrace,
            pstore.pstore_dmesg,
            pstore.pstore_console,
        ):
            try:
                printed(helper, kernel)
                done += 1
            except DumpError as error:
                assert "\n" not in str(error)
    assert done > 400


# Where users meet them


def run_in_pipe(code: str, after: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        f'"{sys.executable}" -c "$CODE" | {after}; exit ${{PIPESTATUS[0]}}',
        shell=True,
        executable="/bin/bash",
        env={**command.environment(), "CODE": code},
        capture_output=True,
        text=True,
    )


def test_head_ends_it_quietly() -> None:
    code = (
        "from tests.test_pstore import full\n"
        "from drgn_tools.pstore import pstore_ftrace\n"
        "kernel, _ = full('6.12', 4, 0, 600)\n"
        "for _ in range(200): pstore_ftrace(kernel.prog)\n"
    )
    run = run_in_pipe(code, "head -1")
    assert run.stdout.startswith("CPU:") and run.stdout.count("\n") == 1
    assert run.returncode == 0
    assert not [line for line in run.stderr.splitlines() if "lost" not in line], run


def test_cli_output_is_byte_for_byte() -> None:
    code = (
        "from tests.test_pstore import *\n"
        "kernel = FakeKernel()\n"
        "kernel.ramoops([('console', written(4096, bytes(range(256))).image())])\n"
        "pstore.pstore_console(kernel.prog)\n"
    )
    run = run_in_pipe(code, "od -An -v -tu1")
    assert [int(n) for n in run.stdout.split()] == list(range(256))


# drgn's own command, on a core of nothing but VMCOREINFO.


def drgn(core: Path, *arguments: str, stdin: str = "") -> command.Outcome:
    run = subprocess.run(
        [sys.executable, "-m", "drgn", "--quiet", "-c", core, *arguments],
        capture_output=True,
        text=True,
        input=stdin,
        # As the entry point does, which only an installation has.
        env=command.environment(DRGN_PLUGINS="drgn_tools=drgn_tools._plugin"),
    )
    return command.Outcome(run.returncode, run.stdout, run.stderr)


def complaints(outcome: command.Outcome) -> list[str]:
    # drgn's own are about debugging symbols.
    lines = outcome.stderr.splitlines()
    return [x for x in lines if not x.startswith(("warning: ", "critical: "))]


@pytest.mark.parametrize("helper", ["pstore_ftrace", "pstore_zones", "pstore_dmesg"])
def test_one_line_in_drgn(core: Path, helper: str) -> None:
    outcome = drgn(core, "--no-default-symbols", "-e", f"{helper}()")
    assert outcome.status == 1 and outcome.stdout == ""
    (line,) = complaints(outcome)
    assert line.startswith("pstore: pstore cannot be found without")


def test_names_in_drgn(core: Path) -> None:
    code = (
        "import drgn.helpers.linux as h\n"
        f"assert all(n in h.__all__ for n in {pstore.__all__!r})\n"
        "assert len(set(h.__all__)) == len(h.__all__)\n"
        f"assert all(n in globals() for n in {pstore.__all__!r})\n"
        # For a second program, once is enough.
        f"p = drgn.Program(); p.set_core_dump({os.fspath(core)!r})\n"
        "assert len(set(h.__all__)) == len(h.__all__)\n"
        "import sys\n"
        "ours = {n for n in sys.modules if n.startswith('drgn_tools.')}\n"
        "assert ours == {'drgn_tools._plugin'}, 'not cheap'\n"
        "assert not {'numpy', 'click', 'zstandard'} & set(sys.modules), 'not cheap'\n"
        "print('fine')\n"
    )
    for outcome in (
        drgn(core, "--no-default-symbols", "-e", code),
        drgn(core, "--no-default-symbols", stdin=code),
    ):
        assert outcome.stdout == "fine\n", outcome


def test_commands_in_drgn(core: Path) -> None:
    code = (
        "from drgn.commands import run_command\n"
        "from drgn_tools.errors import DumpError\n"
        "for name in ('zones', 'ftrace --boot all --cpu 1 --last 5', 'dmesg',\n"
        "             'console --boot previous', 'pmsg --boot -1'):\n"
        "    try: run_command(prog, 'pstore_' + name)\n"
        "    except DumpError as error: print(error)\n"
    )
    outcome = drgn(core, "--no-default-symbols", "-e", code)
    assert outcome.status == 0 and complaints(outcome) == []
    assert outcome.stdout.count("pstore cannot be found without") == 5


def test_commands_in_drgn_crash(core: Path) -> None:
    code = (
        "from drgn.commands import run_command\n"
        "from drgn_tools.errors import DumpError\n"
        "for name in ('zones', 'ftrace --boot all --cpu 1 --last 5', 'dmesg',\n"
        "             'console --boot previous', 'pmsg --boot -1'):\n"
        "    try: run_command(prog, 'crash pstore_' + name)\n"
        "    except DumpError as error: print(error)\n"
    )
    outcome = drgn(core, "--no-default-symbols", "-e", code)
    assert outcome.status == 0 and complaints(outcome) == []
    assert outcome.stdout.count("pstore cannot be found without") == 5


def test_names_of_drgn_are_not_shadowed(core: Path) -> None:
    code = "print(pstore_zones)"
    hook = (
        "import drgn.helpers.linux as h\n"
        "h.pstore_zones = 'theirs'; h.__all__.append('pstore_zones')\n"
        "import drgn_tools._plugin as p\n"
        "drgn_prog_set = p.drgn_prog_set\n"
    )
    plugin = core.parent / "plugin.py"
    plugin.write_text(hook)
    run = subprocess.run(
        [sys.executable, "-m", "drgn", "--no-default-symbols", "-c", core, "-e", code],
        capture_output=True,
        text=True,
        env=command.environment(DRGN_PLUGINS=f"one={plugin}", DRGN_DISABLE_PLUGINS="*"),
    )
    assert run.stdout == "theirs\n", run.stderr
