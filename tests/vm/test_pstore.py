# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is read from ramoops regions, against what the next kernel made of them."""

from __future__ import annotations

import collections
import functools
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import drgn
import numpy as np
import pytest

from drgn_tools.pstore_records import (
    FtraceArray,
    FtraceFormat,
    addresses,
    decode_dmesg,
    decode_ftrace,
    merge_ftrace,
)
from drgn_tools.ramoops import Layout, Region, Zone, places, read_region
from drgn_tools.reed_solomon import Ecc
from tests.command import drgn_tools

from . import pstore_guests, pstore_seen, pstore_views
from .pstore_guests import MATRIX, Guest, Spec
from .pstore_views import Views

RECORD_SIZE = 24


class Case(NamedTuple):
    """A region that a boot found, read in two ways."""

    guest: Guest
    boot: int
    told: Region
    """Of a known layout, as the kernel reads it."""
    files: dict[str, bytes]
    """What the kernel made of it."""


CASES = [
    (spec, boot)
    for spec in MATRIX
    for boot in range(spec.writes_all, pstore_guests.BOOTS)
]


def layout(spec: Spec) -> Layout:
    """Return what a guest's kernel was told."""
    return Layout(
        record_size=spec.record_size,
        console_size=spec.console_size,
        ftrace_size=spec.ftrace_size,
        pmsg_size=spec.pmsg_size,
        ecc=Ecc() if spec.ecc else None,
        cpus=spec.smp,
        pmsg_first=spec.writes_all,
    )


@functools.cache
def read(spec: Spec, boot: int) -> Case:
    guest = pstore_guests.get(spec)
    region = read_region(guest.region(boot), layout(spec), live=False)
    return Case(guest, boot, region, guest.files(boot))


TRACED = [(spec, boot) for spec, boot in CASES if spec.writes_all]


def named(case: tuple[Spec, object]) -> str:
    return f"{case[0].name}-{case[1]}"


@pytest.fixture(params=CASES, ids=named)
def case(request: pytest.FixtureRequest) -> Case:
    return read(*request.param)


@pytest.fixture(params=TRACED, ids=named)
def traced(request: pytest.FixtureRequest) -> Case:
    """One with a function trace that its kernel shows."""
    return read(*request.param)


# --- the kernel's own files


def notice(spec: Spec, corrected: int, bad: int) -> bytes:
    """Return what the kernel appends to a file about ECC."""
    if not spec.ecc:
        return b""
    prefix = b"" if spec.kernel == "5.10" else b"ECC: "
    if corrected or bad:
        said = b"%d Corrected bytes, %d unrecoverable blocks" % (corrected, bad)
    else:
        said = b"No errors detected"
    return b"\n" + prefix + said + b"\n"


def zones(region: Region, kind: str) -> list[Zone]:
    return [zone for zone in region.zones if zone.kind == kind and zone.content]


@pytest.mark.verified(
    "pstore: where zones are (`--raw`)",
    by="the guest's own parameters of ramoops, and its region",
)
def test_zones_lie_where_the_kernel_puts_them(case: Case) -> None:
    expected = pstore_guests.places(case.guest.spec)
    made = places(layout(case.guest.spec), case.guest.spec.mem_size)
    assert [tuple(place) for place in made] == [tuple(place) for place in expected]
    seen = [(z.kind, z.number, z.address, z.size) for z in case.told.zones]
    assert seen == [tuple(place) for place in expected]


@pytest.mark.verified(
    "pstore: console and pmsg of a region (`--raw`)",
    by="/sys/fs/pstore of the next boot, to the byte",
)
@pytest.mark.parametrize("kind", ["console", "pmsg"])
def test_text_is_the_kernels(case: Case, kind: str) -> None:
    spec = case.guest.spec
    made = {
        f"{kind}-ramoops-0": zone.content
        + notice(spec, zone.corrected_bytes, zone.bad_blocks)
        for zone in zones(case.told, kind)
    }
    assert made == {n: c for n, c in case.files.items() if n.startswith(kind)}
    # Only kernels that write them have them after their own boot.
    assert bool(made) == (spec.writes_all or case.boot == 0)


@pytest.mark.verified(
    "pstore: logs of oopses and panics (`--raw`)",
    by="/sys/fs/pstore of the next boot, to the byte",
)
def test_dmesg_is_the_kernels(case: Case) -> None:
    made, times = {}, {}
    for zone in zones(case.told, "dmesg"):
        record = decode_dmesg(zone.content)
        assert record and not record.error
        name = f"dmesg-ramoops-{zone.number}"
        said = notice(case.guest.spec, zone.corrected_bytes, zone.bad_blocks)
        made[name] = record.text + said
        times[name] = record.seconds
        assert record.text.startswith(
            b"%s#%d Part%d\n" % (record.reason.encode(), record.oops_count, record.part)
        )
    expected = {n: c for n, c in case.files.items() if n.startswith("dmesg")}
    assert made == expected and made
    mtimes = case.guest.mtimes(case.boot)
    assert times == {name: mtimes[name] for name in times}


def test_dmesg_says_why(case: Case) -> None:
    """A panic, then restarts; each boot writes from the first zone on."""
    records = [decode_dmesg(zone.content) for zone in zones(case.told, "dmesg")]
    reasons = [(r.reason, r.oops_count, r.compressed) for r in records if r]
    if case.boot == 0:
        assert reasons[0] == ("Oops", 1, False)
    elif case.boot == 1:
        assert reasons[:2] == [("Panic", 1, True), ("Emergency", 2, True)]
    else:
        assert reasons[:2] == [("Emergency", 1, True), ("Emergency", 2, True)]


# --- function traces


def as_stored(spec: Spec) -> FtraceFormat:
    return FtraceFormat(neutral=spec.kernel == "7.2-bench")


def traces(case: Case) -> list[FtraceArray]:
    made = []
    for zone in case.told.zones:
        if zone.kind == "ftrace":
            records = decode_ftrace(
                zone.content, as_stored(case.guest.spec), zone=zone.number
            )
            made.append(records)
    return made


def stored(records: FtraceArray) -> bytes:
    """Return records as a 64-bit kernel stores them."""
    made = np.zeros((len(records), 3), "<u8")
    made[:, 0] = records["ip"]
    made[:, 1] = records["parent_ip"]
    made[:, 2] = records["counter"] << 8 | records["cpu"]
    return made.tobytes()


def combined(logs: Sequence[bytes]) -> bytes:
    """Return what the kernel merges zones to: two at a time, boots or not."""
    merged: list[bytes] = []
    for log in logs:
        new = [log[i : i + RECORD_SIZE] for i in range(0, len(log), RECORD_SIZE)]
        old, merged = merged, []
        i = j = 0
        while i < len(old) and j < len(new):
            if old[i][17:][::-1] < new[j][17:][::-1]:
                merged.append(old[i])
                i += 1
            else:
                merged.append(new[j])
                j += 1
        merged += old[i:] + new[j:]
    return b"".join(merged)


def lines(case: Case, log: bytes) -> list[bytes]:
    """Return records as the kernel prints them, but for the names."""
    records = np.frombuffer(log, "<u8").reshape(-1, 3)
    slide = case.guest.slide(case.boot)
    columns = [
        addresses(records[:, i], as_stored(case.guest.spec), slide) for i in (0, 1)
    ]
    return [
        b"CPU:%d ts:%d %08x  %08x" % (ts & 0xFF, ts >> 8, ip, parent)
        for ip, parent, ts in zip(
            *(c.tolist() for c in columns), records[:, 2].tolist()
        )
    ]


def without_names(file: bytes) -> list[bytes]:
    return [b"  ".join(line.split(b"  ")[:2]) for line in file.splitlines()]


@pytest.mark.verified(
    "pstore: function trace (`--raw`)",
    by="/sys/fs/pstore of the next boot, to the byte",
)
def test_ftrace_is_the_kernels(traced: Case) -> None:
    """Zone by zone, merged as the kernel does it, its faults included."""
    spec = traced.guest.spec
    log = combined([stored(records) for records in traces(traced)])
    assert len(log) // RECORD_SIZE > 150 * spec.smp
    if spec.ecc and spec.kernel == "6.12-bench":
        # It takes the notice for a part of the records.
        found = [zone for zone in traced.told.zones if zone.kind == "ftrace"]
        log += notice(
            spec,
            sum(zone.corrected_bytes for zone in found),
            sum(zone.bad_blocks for zone in found),
        )
        log = log[len(log) % RECORD_SIZE :]
    assert lines(traced, log) == without_names(traced.files["ftrace-ramoops-0"])


def test_merged_ftrace_is_the_kernels(traced: Case) -> None:
    """All that the zones have, each boot by itself and in order."""
    merged = merge_ftrace(traces(traced), as_stored(traced.guest.spec)).records
    whole = b"".join(map(stored, traces(traced)))
    assert sorted(lines(traced, stored(merged))) == sorted(lines(traced, whole))
    order = merged[["boot", "counter", "zone"]]
    assert (np.sort(order, kind="stable") == order).all()
    assert (merged["cpu"] == merged["zone"]).all()
    assert not merged["torn"].any()
    boots = set(merged["boot"].tolist())
    assert boots == ({0} if traced.boot == 1 else {-1, 0})


@pytest.mark.verified(
    "pstore: boots told apart", by="the region as the boot before left it"
)
@pytest.mark.parametrize(
    "traced",
    [(spec, boot) for spec, boot in TRACED if boot == 2],
    ids=named,
    indirect=True,
)
def test_boots_are_told_apart(traced: Case) -> None:
    """What the previous region already had is of an earlier boot, and no more."""
    spec = traced.guest.spec
    before = traces(read(spec, 1))
    merged = merge_ftrace(traces(traced), as_stored(spec)).records
    for zone, old in enumerate(before):
        mine = merged[merged["zone"] == zone]
        earlier = stored(mine[mine["boot"] == -1])
        assert earlier and stored(old).endswith(earlier)
        if not traced.told.zones[-spec.smp + zone].wrapped:
            assert stored(old) == earlier


def test_kaslr_moved_the_kernel() -> None:
    """Otherwise nothing above says anything about addresses."""
    for spec in MATRIX:
        guest = pstore_guests.get(spec)
        slides = {guest.slide(boot) for boot in range(pstore_guests.BOOTS)}
        assert (len(slides) > 1) == spec.kaslr, spec.name


def test_rings_wrap() -> None:
    for spec in MATRIX:
        if spec.writes_all:
            wrapped = {
                zone.kind
                for zone in read(spec, 1).told.zones
                if zone.wrapped and zone.kind != "dmesg"
            }
            small = {"console", "pmsg", "ftrace"}
            assert wrapped == (small if "wrapped" in spec.label else set()), spec.name


# --- without being told anything


@pytest.mark.verified(
    "pstore: zones found without a layout", by="the guest's own parameters of ramoops"
)
def test_blind_is_as_good_as_told(case: Case) -> None:
    """Zones with content are found by their signatures, and what is in them."""
    blind = read_region(case.guest.region(case.boot), live=False)
    assert blind.version == case.told.version
    assert blind.version == pstore_guests.version(case.guest.kernel)
    found = {zone.address: zone for zone in blind.zones if zone.content}
    for zone in case.told.zones:
        if zone.content:
            same = found.pop(zone.address)
            assert (same.kind, same.content) == (zone.kind, zone.content)
            assert same.corrected_bytes == zone.corrected_bytes
    assert not found


@pytest.mark.verified(
    "pstore: errors corrected (ECC)", by="a region of the kernel's with bytes spoilt"
)
@pytest.mark.parametrize(
    "case",
    [(s, boot) for s, boot in CASES if s.ecc and boot != pstore_guests.damaged(s)],
    ids=named,
    indirect=True,
)
def test_up_to_8_bytes_in_every_block_are_corrected(case: Case) -> None:
    """Of a region that was whole, and was read right."""
    spec = case.guest.spec
    random = np.random.default_rng(case.boot)
    region = np.frombuffer(case.guest.region(case.boot), np.uint8).copy()
    for zone in case.told.zones:
        size = pstore_guests.room(zone.size, True)
        blocks = -(-size // 128)
        ends = [*range(zone.address + 12, zone.address + 12 + size, 128)]
        for block, start in enumerate(ends):
            data = range(start, min(start + 128, zone.address + 12 + size))
            parity = zone.address + 12 + size + 16 * block
            where = [*data, *range(parity, parity + 16)]
            spoilt = random.choice(where, random.integers(0, 9), replace=False)
            region[spoilt] ^= random.integers(1, 256, len(spoilt), np.uint8)
        assert blocks == len(ends)
    spoilt_region = read_region(region.tobytes(), layout(spec), live=False)
    wrong = 0
    for zone, whole in zip(spoilt_region.zones, case.told.zones):
        assert (zone.content, zone.bad_blocks) == (whole.content, 0)
        wrong += zone.corrected_bytes
        used = -(-len(whole.content) // 128)
        assert zone.corrected_bytes <= 8 * used
    assert wrong > 100


# --- by the command


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "drgn_tools", "pstore", *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, text=True)


def given(spec: Spec) -> str:
    """Return --layout."""
    sizes = {
        "record_size": spec.record_size,
        "console_size": spec.console_size,
        "ftrace_size": spec.ftrace_size,
        "pmsg_size": spec.pmsg_size,
        "ecc": int(spec.ecc),
        "cpus": spec.smp,
    }
    return ",".join(f"{name}={size:#x}" for name, size in sizes.items())


NAME = re.compile(r"^CPU:.*  (\S+) <- (\w+)\+0x[0-9a-f]+/0x[0-9a-f]+$")


@pytest.mark.verified(
    "pstore: names in a region (`--symbols`)",
    by="the two functions that were traced; /sys/fs/pstore of the next boot",
)
@pytest.mark.parametrize("told", [True, False], ids=["told", "blind"])
def test_raw_region_with_symbols(traced: Case, told: bool, tmp_path: Path) -> None:
    """All names are found, wherever KASLR put the kernel that wrote them."""
    guest = traced.guest
    path = tmp_path / "region"
    path.write_bytes(guest.region(traced.boot))
    options = ["--layout", given(guest.spec)] if told else []
    done = command("--raw", path, "--symbols", guest.kernel.vmlinux, *options)
    assert done.returncode == 0, done.stderr
    said = done.stdout
    printed = [line for line in said.splitlines() if line.startswith("CPU:")]
    expected = raw_trace(guest.spec, 0, guest.region(traced.boot), 0)
    without = [" ".join(line.split()[:2]) for line in expected]
    assert [" ".join(line.split()[:2]) for line in printed] == without and printed
    for line in printed:
        match = NAME.match(line)
        assert match and match.group(1) in ("vfs_read", "vfs_write"), line
    for content in traced.files.values():
        # Everything that is text is there too.
        line = content.splitlines()[len(content.splitlines()) // 2].decode()
        assert content.startswith(b"CPU:") or line in said


# --- the same in dumps


class Dumped(NamedTuple):
    """A kernel in which pstore is looked for."""

    guest: Guest
    boot: int
    """Which boot of its guest it is."""
    region: bytes | None
    """What is in the region; None if that is not in the dump."""
    seen: dict[str, Any]


DUMPS = [
    *((spec, "qemu") for spec in MATRIX),
    *((spec, "vmcore") for spec in MATRIX if spec.vmcore),
]


@functools.cache
def _dumped(spec: Spec, kind: str) -> Dumped:
    guest = pstore_guests.get(spec)
    if kind == "qemu":
        path, boot = guest.dump, 1
        region: bytes | None = guest.live
    else:
        path, boot = guest.vmcore, 2
        # What memmap= reserves is not in /proc/vmcore.
        region = guest.crashed if spec.reserve_mem else None
    prog = drgn.Program()
    prog.set_core_dump(path)
    prog.load_debug_info([guest.kernel.vmlinux])
    if not spec.writes_all:
        prog.load_debug_info([guest.kernel.module_debug("ramoops")])
    return Dumped(guest, boot, region, pstore_seen.seen(prog))


@pytest.fixture(params=DUMPS, ids=named)
def dumped(request: pytest.FixtureRequest) -> Dumped:
    return _dumped(*request.param)


def live_zones(spec: Spec, address: int, region: bytes | None) -> list[list[Any]]:
    """Return what a kernel is expected to show of the region as it is."""
    if region is None:
        return [
            [kind, number, address + offset, size, None, False, 0, None]
            for kind, number, offset, size in pstore_guests.places(spec)
        ]
    return [
        [
            zone.kind,
            zone.number,
            address + zone.address,
            zone.size,
            zone.state,
            zone.wrapped,
            zone.corrected_bytes,
            pstore_seen.digest(zone.content),
        ]
        for zone in read_region(region, layout(spec)).zones
    ]


def old_zones(found: Region) -> list[list[Any]]:
    """Return what a kernel is expected to have kept of the region that it found."""
    return [
        [
            zone.kind,
            zone.number,
            zone.corrected_bytes,
            zone.bad_blocks,
            pstore_seen.digest(zone.content),
        ]
        for zone in found.zones
    ]


@pytest.mark.verified(
    "pstore: zones in a dump",
    by="a copy of the region, taken while the guest stood still",
)
def test_zones_are_those_of_the_region(dumped: Dumped) -> None:
    address = dumped.guest.address(dumped.boot)
    expected = live_zones(dumped.guest.spec, address, dumped.region)
    # By address; the kernel keeps them by kind.
    assert sorted(dumped.seen["zones"], key=lambda zone: int(zone[2])) == expected
    why = "" if dumped.region else "live region is reserved memory and not in this dump"
    assert dumped.seen["why"] == [why]


@pytest.mark.verified(
    "pstore: what the kernel kept of the boot before",
    by="a copy of the region before that boot",
)
def test_old_logs_are_what_the_kernel_found(dumped: Dumped) -> None:
    found = read(dumped.guest.spec, dumped.boot)
    assert sorted(dumped.seen["old"]) == sorted(old_zones(found.told))


def raw_trace(spec: Spec, slide: int, region: bytes, boot: int) -> list[str]:
    """Return a boot's function trace in a region, without names."""
    zones = read_region(region, layout(spec)).zones
    arrays = [
        decode_ftrace(zone.content, as_stored(spec), zone=zone.number)
        for zone in zones
        if zone.kind == "ftrace"
    ]
    merged = merge_ftrace(arrays, as_stored(spec)).records
    chosen = merged[merged["boot"] == boot]
    columns = [
        addresses(chosen[name], as_stored(spec), slide) for name in ("ip", "parent_ip")
    ]
    rows = zip(chosen["cpu"], chosen["counter"], *columns)
    return [
        f"CPU:{cpu} ts:{counter} {ip:08x}  {parent:08x}"
        for cpu, counter, ip, parent in rows
    ]


def unnamed(lines: Sequence[str]) -> list[str]:
    return ["  ".join(line.split("  ")[:2]) for line in lines]


@pytest.mark.verified(
    "pstore: function trace in a dump",
    by="a copy of the region, taken while the guest stood still",
)
def test_traces_are_those_of_the_region(dumped: Dumped) -> None:
    guest, boot = dumped.guest, dumped.boot
    slide = guest.slide(boot)
    newest = raw_trace(guest.spec, slide, guest.region(boot), 0)
    before = raw_trace(guest.spec, slide, guest.region(boot), -1)
    if dumped.region and guest.spec.writes_all:
        # Its own, and then what it found.
        before = newest
        newest = raw_trace(guest.spec, slide, dumped.region, 0)
    assert unnamed(dumped.seen["newest"]) == newest
    assert unnamed(dumped.seen["before"]) == before
    assert len(newest) > 150 * guest.spec.smp


def of_the_boot_before(dumped: Dumped) -> list[str]:
    lines: list[str] = dumped.seen["before" if dumped.region else "newest"]
    return lines


# Seeded addresses mean nothing.
NAMED = [(spec, kind) for spec, kind in DUMPS if spec.writes_all]
# 6.12 misaligns its file with ECC, and names all boots' addresses as if of its own.
PRINTED = [
    (spec, kind)
    for spec, kind in NAMED
    if spec.kernel != "6.12-bench" or not (spec.ecc or spec.kaslr)
]


@pytest.mark.verified(
    "pstore: function trace in a dump", by="the two functions that were traced"
)
@pytest.mark.parametrize("dumped", NAMED, indirect=True, ids=named)
def test_names_are_right_whatever_kaslr_did(dumped: Dumped) -> None:
    """Only two functions were traced, in every boot."""
    for line in dumped.seen["newest"] + dumped.seen["before"]:
        match = NAME.match(line)
        assert match and match.group(1) in ("vfs_read", "vfs_write"), line


@pytest.mark.verified(
    "pstore: function trace in a dump", by="/sys/fs/pstore of the same guest"
)
@pytest.mark.parametrize("dumped", PRINTED, indirect=True, ids=named)
def test_printed_trace_is_the_kernels_file(dumped: Dumped) -> None:
    """Names included, where the kernel knows them and its file is right."""
    boot = dumped.boot
    file = dumped.guest.files(boot)["ftrace-ramoops-0"].decode().splitlines()
    mine = of_the_boot_before(dumped)
    if boot == 1:
        assert sorted(mine) == sorted(file)

        def counters(lines: list[str]) -> list[str]:
            return [line.split()[1] for line in lines]

        # Records with the same number may come in any order.
        assert counters(mine) == counters(file)
    else:
        # Which mixes boots.
        assert mine and not collections.Counter(mine) - collections.Counter(file)


@pytest.mark.verified(
    "pstore: logs, console and pmsg in a dump", by="/sys/fs/pstore of the same guest"
)
def test_text_is_the_kernels_files(dumped: Dumped) -> None:
    """Each file of pstore is among the records, without the note about ECC."""
    spec = dumped.guest.spec
    texts = {record[3] for record in dumped.seen["records"]}
    for name, content in dumped.guest.files(dumped.boot).items():
        if not name.startswith("ftrace"):
            if spec.ecc:
                content = content[: content[:-1].rindex(b"\n")]
            assert pstore_seen.digest(content) in texts, name


DRGN = """
import importlib.metadata, sys
plugin = ("drgn_tools", "drgn_tools._plugin", "drgn.plugins")
plugin = importlib.metadata.EntryPoint(*plugin)
importlib.metadata.entry_points = lambda **by: [plugin]
import drgn.cli
sys.exit(drgn.cli._main())
"""


def test_one_line_of_drgn(dumped: Dumped) -> None:
    """The names are there for drgn -e, with nothing said but the dump."""
    guest = dumped.guest
    dump = guest.dump if dumped.boot == 1 else guest.vmcore
    arguments = ["-c", dump, "-s", guest.kernel.vmlinux, "-q"]
    argv = [sys.executable, "-c", DRGN, *arguments, "-e", "pstore_ftrace()"]
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == dumped.seen["newest"]


def test_one_line_of_drgn_as_it_is_installed() -> None:
    """By the entry point, with no variable or file that names the plugin."""
    dumped = _dumped(MATRIX[0], "qemu")
    guest = dumped.guest
    argv = [sys.executable, "-m", "drgn", "-q", "-c", guest.dump]
    argv += ["-s", guest.kernel.vmlinux, "-e", "pstore_ftrace()"]
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == dumped.seen["newest"]


@pytest.mark.verified(
    "pstore: a dump without debugging symbols", by="the same dump, read with them"
)
def test_command_prints_what_is_in_the_dump(dumped: Dumped) -> None:
    """Without debugging symbols, but for kernels before 6.0."""
    guest = dumped.guest
    done = command(guest.dump if dumped.boot == 1 else guest.vmcore)
    if guest.spec.kernel == "5.10":
        assert (done.returncode, done.stdout) == (1, "")
        assert re.fullmatch(r"drgn-tools: .*debugging symbols.*\n", done.stderr)
        return
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("CPU:")]
    assert unnamed(lines) == unnamed(dumped.seen["newest"])


@pytest.mark.parametrize(
    "dumped",
    [(spec, "qemu") for spec in MATRIX if spec.label in ("plain", "seeded")],
    ids=named,
    indirect=True,
)
def test_command_with_symbols(dumped: Dumped) -> None:
    """Those that it is given, of a module too, and all names as drgn has them."""
    guest = dumped.guest
    given = ["--symbols", guest.kernel.vmlinux]
    if not guest.spec.writes_all:
        given += ["--symbols", guest.kernel.module_debug("ramoops")]
    done = command(guest.dump, *given)
    assert done.returncode == 0, done.stderr
    assert "no debugging symbols" not in done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("CPU:")]
    assert lines == dumped.seen["newest"]


def test_command_says_that_it_has_no_symbols() -> None:
    mine, other = (guest for guest in MATRIX if guest.label == "plain")
    guest = pstore_guests.get(mine)
    dump = guest.dump
    done = command(dump)
    assert done.returncode == 0
    release = guest.kernel.release
    assert f"note: no debugging symbols of kernel {release} found" in done.stderr
    wrong = pstore_guests.get(other).kernel.vmlinux
    done = command(dump, "--symbols", wrong)
    assert (done.returncode, done.stdout) == (1, "")
    said = f"drgn-tools: {wrong} has no debugging symbols of this dump's kernel\n"
    assert done.stderr == said


@pytest.mark.parametrize("kernel", ["5.10", "6.1"])
def test_pstore_is_advised_where_it_works_without_symbols(kernel: str) -> None:
    spec = next(spec for spec in MATRIX if spec.kernel == kernel)
    dump = pstore_guests.get(spec).dump
    advice = drgn_tools("zram", dump).stderr.partition("zram needs them, ")[2]
    assert advice.endswith(" work without\n") and "dmesg" in advice
    assert ("pstore" in advice) == (drgn_tools("pstore", dump).status == 0)
    assert ("pstore" in advice) == (kernel != "5.10")


def test_command_on_a_dump_that_is_cut_short(tmp_path: Path) -> None:
    """What is missing is so by that, whatever part it is in, and in every format."""
    guest = pstore_guests.get(MATRIX[0])
    given = ["--symbols", guest.kernel.vmlinux]
    cut = tmp_path / "cut"
    with open(guest.dump, "rb") as file:
        cut.write_bytes(file.read(100_000))
    done = command(cut, *given)
    assert (done.returncode, done.stdout) == (1, "")
    said = "pstore cannot be found: psinfo is missing: the dump is cut short"
    assert done.stderr == f"drgn-tools: {said}\n"
    done = command(cut)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "the dump is cut short" in done.stderr
    # The zones are behind what is left.
    with open(guest.dump, "rb") as file:
        cut.write_bytes(file.read(guest.address(1) - (1 << 20)))
    done = command(cut, *given)
    assert "missing: the dump is cut short\n" in done.stderr
    for wrong in ("not in this dump", "nothing is of this kernel", "Traceback"):
        assert wrong not in done.stderr
    whole = tmp_path / "whole"
    assert drgn_tools("extract", "-q", "-d", "1", guest.dump, "-o", whole).status == 0
    for part in (4, 2):
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // part])
        done = command(cut, *given)
        assert "the dump is cut short\n" in done.stderr
        for wrong in ("reserved memory", "nothing is of this kernel", "Traceback"):
            assert wrong not in done.stderr


CRASH = """
import importlib.metadata, sys
plugin = ("drgn_tools", "drgn_tools._plugin", "drgn.plugins")
plugin = importlib.metadata.EntryPoint(*plugin)
importlib.metadata.entry_points = lambda **by: [plugin]
import drgn.internal.crashcli
drgn.internal.crashcli._main()
"""


def test_drgn_crash_has_the_commands() -> None:
    """And, in the Python that it has inside, the names."""
    guest = pstore_guests.get(MATRIX[0])
    argv = [sys.executable, "-c", CRASH, str(guest.kernel.vmlinux), str(guest.dump)]
    typed = "pstore_ftrace --last 2\ndrgn\npstore_ftrace(last=3)\nexit()\nexit\n"
    done = subprocess.run(argv, capture_output=True, text=True, input=typed)
    assert done.returncode == 0, done.stderr
    lines = re.findall("CPU:[0-9]+ ts:.*", done.stdout)
    newest = _dumped(MATRIX[0], "qemu").seen["newest"]
    assert lines == newest[-2:] + newest[-3:]


@pytest.mark.verified(
    "pstore: logs, console and pmsg in a dump",
    by="a copy of the region, taken while the guest stood still",
)
def test_console_and_pmsg_of_now_are_in_the_region(dumped: Dumped) -> None:
    sources = {(kind, source) for kind, source, *_ in dumped.seen["records"]}
    now = {("console", "live"), ("pmsg", "live")}
    writes = dumped.guest.spec.writes_all
    assert (now <= sources) == (dumped.region is not None and writes)


# --- one guest in four ways, of which one is drgn in the guest itself


@pytest.fixture(params=pstore_views.SPECS, ids=lambda spec: spec.name)
def views(request: pytest.FixtureRequest) -> Views:
    return pstore_views.get(request.param)


def region_in(views: Views, kind: str) -> bytes | None:
    """Return the region as it is to be seen; None if it is not there."""
    if kind != "vmcore":
        return views.region
    # What memmap= reserves is not in /proc/vmcore.
    return views.crashed if views.spec.reserve_mem else None


@pytest.mark.verified(
    "pstore: the running kernel",
    by="a copy of the region, taken while the guest stood still",
)
@pytest.mark.parametrize("kind", pstore_views.KINDS)
def test_every_view_shows_the_region(views: Views, kind: str) -> None:
    """Zones, and what was in them at boot, whether the region is there or not."""
    seen, region = views.seen(kind), region_in(views, kind)
    zones = sorted(seen["zones"], key=lambda zone: int(zone[2]))
    assert zones == live_zones(views.spec, views.address, region)
    assert seen["why"] == [
        "live region is reserved memory and not in this dump" if region is None else ""
    ]
    told = read_region(views.found, layout(views.spec), live=False)
    assert sorted(seen["old"]) == sorted(old_zones(told))
    corrected = sum(zone.corrected_bytes for zone in told.zones)
    assert bool(corrected) == views.spec.ecc


@pytest.mark.verified(
    "pstore: the running kernel", by="both kinds of dump of the same moment"
)
def test_every_view_has_the_same_trace(views: Views) -> None:
    """Of both boots, and each name right: the live one, both dumps, and the region."""
    spec = views.spec
    newest = raw_trace(spec, views.slide, views.region, 0)
    before = raw_trace(spec, views.slide, views.found, 0)
    live = views.seen("live")
    assert len(newest) > 150 * spec.smp
    for line in live["newest"] + live["before"]:
        match = NAME.match(line)
        assert match and match.group(1) in ("vfs_read", "vfs_write"), line
    for kind in pstore_views.KINDS:
        seen = views.seen(kind)
        if region_in(views, kind) is None:
            # There is old_log, and that is of the boot before.
            assert unnamed(seen["newest"]) == before
            assert (seen["newest"], seen["before"]) == (live["before"], [])
        else:
            assert unnamed(seen["newest"]) == newest
            assert unnamed(seen["before"]) == before
            assert seen["newest"] == live["newest"]
            assert seen["before"] == live["before"]


@pytest.mark.verified(
    "pstore: the running kernel", by="both kinds of dump of the same moment"
)
def test_every_view_has_the_same_texts(views: Views) -> None:
    live = views.seen("live")["records"]
    assert {(kind, source) for kind, source, *_ in live} > {
        ("console", "live"),
        ("pmsg", "live"),
        ("console", "old_log"),
        ("pmsg", "old_log"),
    }
    assert views.seen("qemu")["records"] == live
    crashed = views.seen("vmcore")["records"]
    if views.spec.reserve_mem:
        # The crash has said something to the console.
        changed = ["console", "live"]
        assert [r for r in crashed if r[:2] != changed] == [
            r for r in live if r[:2] != changed
        ]
        return
    told = read_region(views.found, layout(views.spec), live=False)
    texts = {(z.kind, pstore_seen.digest(z.content)) for z in told.zones if z.content}
    for zone in zones(told, "dmesg"):
        record = decode_dmesg(zone.content)
        assert record
        texts.remove(("dmesg", pstore_seen.digest(zone.content)))
        texts.add(("dmesg", pstore_seen.digest(record.text)))
    texts = {text for text in texts if text[0] != "ftrace"}
    assert {(kind, text) for kind, _, _, text in crashed} == texts


MEMMAP = [spec for spec in pstore_views.SPECS if not spec.reserve_mem]


@pytest.mark.parametrize("spec", MEMMAP, ids=lambda spec: spec.name)
def test_head_ends_it_quietly_in_the_guest(spec: Spec) -> None:
    views = pstore_views.get(spec)
    status, out, err = views.outcome("head")
    assert out.splitlines() == views.seen("live")["newest"][:1]
    notes = [line for line in err.splitlines() if not line.startswith("pstore: boot ")]
    assert (status, notes) == (0, [])


@pytest.mark.parametrize("spec", MEMMAP, ids=lambda spec: spec.name)
def test_one_line_in_a_guest_without_ramoops(spec: Spec) -> None:
    outcome = pstore_views.get(spec).outcome("absent")
    why = "this kernel has no pstore in use: no backend is registered"
    assert outcome == (1, "", f"pstore: {why}\n")
