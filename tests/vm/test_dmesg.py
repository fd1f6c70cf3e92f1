# SPDX-License-Identifier: LGPL-2.1-or-later
"""`dmesg` on dumps of real kernels, against makedumpfile and the guest's own dmesg."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tests.synthetic import BY_NAME, MIB, LogLine, Machine, write_elf

from . import dumps, kernels, peers, qemu
from .dumps import Dump
from .relayout import ordinary

CASES = [(spec, kind) for spec in dumps.MATRIX for kind in dumps.KINDS]


def dmesg(path: Path, *options: str) -> bytes:
    command = [sys.executable, "-m", "drgn_tools", "dmesg", *options, str(path)]
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def makedumpfile(source: Path, work: Path, *options: str) -> bytes:
    target = work / "makedumpfile-dmesg"
    # 1.7.2 does not print callers.
    command = [*peers.argv("makedumpfile-sid"), "--dump-dmesg", *options]
    done = subprocess.run(
        [*command, "--message-level", "4", str(source), str(target)],
        capture_output=True,
        text=True,
        # For ever, if --partial-dmesg misses the last record.
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    log = target.read_bytes()
    target.unlink()
    return log


def extract(source: Path, target: Path) -> None:
    command = [sys.executable, "-m", "drgn_tools", "extract", source, target]
    subprocess.run(list(map(str, command)), capture_output=True, check=True)


def split(log: bytes) -> list[bytes]:
    """Lines; unlike splitlines(), at newlines only."""
    *lines, rest = log.split(b"\n")
    assert not rest
    return lines


_PREFIX = re.compile(rb"^(\[ *\d+\.\d{6}\] )\[ *[TC]\d+\] ")


def as_the_guest_says(log: bytes) -> list[bytes]:
    """Lines of a log without callers and escapes, each with its time."""
    lines = []
    stamp, indent = b"", b"?"
    for line in split(log):
        match = _PREFIX.match(line)
        if match:
            stamp, indent = match.group(1), b" " * match.end()
            rest = line[match.end() :]
        else:
            assert line.startswith(indent), line
            rest = line[len(indent) :]
        rest = re.sub(
            rb"\\x(?:ffffff)?([0-9a-f]{2})",
            lambda found: bytes.fromhex(found.group(1).decode()),
            rest,
        )
        lines.append(stamp + rest)
    return lines


def guest_lines(said: bytes) -> list[bytes]:
    """Lines of busybox's dmesg, without the records that have no text."""
    empty = re.compile(rb"\[ *\d+\.\d{6}\] ")
    return [line for line in split(said) if not empty.fullmatch(line)]


class Case(NamedTuple):
    dump: Dump
    ordinary: Path
    """The same core as makedumpfile takes it."""


@pytest.fixture(scope="module", params=CASES, ids=lambda c: f"{c[0].name}-{c[1]}")
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Case]:
    spec, kind = request.param
    dump = next(d for d in dumps.both(spec) if d.kind == kind)
    core = ordinary(dump.path, tmp_path_factory.mktemp("core"))
    yield Case(dump, core)
    if core != dump.path:
        core.unlink()


@pytest.mark.verified(
    "dmesg: the log of a dump",
    by="makedumpfile --dump-dmesg and --partial-dmesg, to the byte",
)
@pytest.mark.parametrize("partial", [False, True], ids=["all", "partial"])
def test_dmesg_is_makedumpfiles(case: Case, partial: bool, tmp_path: Path) -> None:
    options = ["--partial"] if partial else []
    its_options = ["--partial-dmesg"] if partial else []
    expected = makedumpfile(case.ordinary, tmp_path, *its_options)
    assert dmesg(case.dump.path, *options) == expected
    assert expected.count(b"\n") > 200
    assert b"Linux version " + case.dump.kernel.release.encode() in expected
    if case.dump.kind == "vmcore":
        assert b"sysrq triggered crash" in expected
    kdump = tmp_path / "kdump"
    extract(case.dump.path, kdump)
    assert dmesg(kdump, *options) == expected


@pytest.mark.verified("dmesg: the log of a dump", by="dmesg in the same guest")
def test_dmesg_is_the_guests(case: Case) -> None:
    """What the guest said before is the start of what the dump has."""
    guest = guest_lines(case.dump.fact("dmesg"))
    ours = as_the_guest_says(dmesg(case.dump.path))
    assert len(guest) > 200
    assert ours[: len(guest)] == guest


# A log that has gone round more than once, was cleared, and has anything in it.
# The last ones take 64 bytes each, with what is around them, which divides its buffer:
# one ends where that ends.
BUSY = """
filler=%s
for i in $(seq 3000); do
    echo "<7>record $i ${filler:0:$((i * 7 %% 60))}" > /dev/kmsg
done
for i in $(seq 10000 15000); do
    echo "<7>${filler:0:47}$i" > /dev/kmsg
done
""" % ("0123456789" * 6)
WILD = r"""
kmsg() { printf "<6>$1" > /dev/kmsg; }
kmsg 'two\nlines'
kmsg 'a tab\there, a bell\a, a DEL \177, gr\303\274\303\237e, a byte \377'
kmsg 'last\n'
"""


class Busy(NamedTuple):
    path: Path
    ordinary: Path
    before: list[bytes]
    """What the guest said of its log before it cleared that."""
    since: list[bytes]


@pytest.fixture(scope="module", params=["5.10", "6.1", "6.12", "7.2"])
def busy(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Busy:
    kernel = kernels.get(request.param)
    work = tmp_path_factory.mktemp("busy")
    append = "printk.devkmsg=on"
    with qemu.booted(kernel, memory_mib=256, append=append, folder=work) as vm:
        vm.run(BUSY, seconds=600)
        before = vm.run("dmesg -s 4000000").stdout
        vm.run("dmesg -c > /dev/null")
        vm.run(WILD)
        since = vm.run("dmesg").stdout
        vm.dump(work / "dump")
    core = ordinary(work / "dump", work)
    return Busy(work / "dump", core, guest_lines(before), guest_lines(since))


@pytest.mark.verified("dmesg: a log that went round", by="dmesg in the same guest")
def test_busy_log(busy: Busy, tmp_path: Path) -> None:
    log = dmesg(busy.path)
    ours = as_the_guest_says(log)
    # The guest may have said more of itself in between, and did not say the oldest
    # records if its buffer was too small.
    assert ours[-len(busy.since) :] == busy.since
    rest = ours[: -len(busy.since)]
    shorter = min(len(rest), len(busy.before))
    assert rest[-shorter:] == busy.before[-shorter:]
    assert shorter > 1000
    # The first ones are gone.
    assert b"Linux version" not in log
    theirs = makedumpfile(busy.ordinary, tmp_path)
    mine, its = split(log), split(theirs)
    assert len(mine) == len(its)
    # Of a record that ends where the buffer ends (Linux 7.2), 1.7.8 prints what is
    # at the start of the buffer. Ours are what the guest says, see above.
    differing = [(a, b) for a, b in zip(mine, its) if a != b]
    assert len(differing) <= 1, differing


@pytest.mark.verified("dmesg: since the log was cleared", by="dmesg in the same guest")
def test_busy_log_since_it_was_cleared(busy: Busy, tmp_path: Path) -> None:
    log = dmesg(busy.path, "--partial")
    assert as_the_guest_says(log) == busy.since
    assert log == makedumpfile(busy.ordinary, tmp_path, "--partial-dmesg")
    assert b"a bell\\x07, a DEL \\x7f, gr\\xffffffc3\\xffffffbc" in log
    assert b"two\n" + b" " * len("[    0.000000] [      T0] ") + b"lines\n" in log


def random_log(seed: int) -> list[LogLine]:
    random = np.random.default_rng(seed)
    lines = []
    for number in range(int(random.integers(1, 60))):
        # No byte is left out, and most are text.
        data = random.integers(0x20, 0x7F, int(random.integers(0, 90)), np.uint8)
        wild = random.random(len(data)) < 0.1
        data[wild] = random.integers(0, 256, int(wild.sum()), np.uint8)
        data[random.random(len(data)) < 0.03] = ord("\n")
        caller = int(random.integers(0, 1 << 32))
        stamp = int(random.integers(0, 1 << int(random.integers(1, 64))))
        lines.append(LogLine(stamp, data.tobytes(), caller if number % 3 else number))
    return lines


@pytest.mark.verified(
    "dmesg: the log of a dump",
    by="makedumpfile --dump-dmesg and --partial-dmesg, to the byte",
    on="bytes",
)
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["4.18", "4.18-caller", "5.10", "6.12"])
def test_synthetic_logs_are_makedumpfiles(name: str, seed: int, tmp_path: Path) -> None:
    """All that a log can hold, of eras that no kernel of the bench is of, too."""
    name, _, caller = name.partition("-")
    log = random_log(seed)
    if name == "4.18":
        # So many fit for certain.
        log = log[:8]
    machine = Machine(
        BY_NAME[name], ram=((0, 6 * MIB),), log=log, log_caller=bool(caller)
    )
    # makedumpfile looks for no record of an earlier lap of the ring.
    last = len(log) - 1
    machine.clear_log(last - seed % (last % 16 + 1), latch=seed)
    path = tmp_path / "dump"
    write_elf(path, machine.loads(), machine.notes())
    assert dmesg(path) == makedumpfile(path, tmp_path)
    since = dmesg(path, "--partial")
    assert since == makedumpfile(path, tmp_path, "--partial-dmesg")


@pytest.mark.verified(
    "dmesg: the log of a dump",
    by="makedumpfile --dump-dmesg and --partial-dmesg, to the byte",
    on="bytes",
)
def test_synthetic_plain_text_is_makedumpfiles(tmp_path: Path) -> None:
    # makedumpfile goes by the release.
    generation = BY_NAME["4.18"]._replace(name="3.4")
    for written in (b"<6>one\n", b"<6>one\n<4>tw\xff\0\n" * 90):
        machine = Machine(generation, ram=((0, 6 * MIB),))
        machine.plain_log(written)
        path = tmp_path / "dump"
        write_elf(path, machine.loads(), machine.notes())
        assert dmesg(path) == makedumpfile(path, tmp_path) == written[-1024:]
