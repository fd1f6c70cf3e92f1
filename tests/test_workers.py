# SPDX-License-Identifier: LGPL-2.1-or-later
"""Worker processes and the counters that they share."""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import mmap
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from drgn_tools import workers
from drgn_tools.errors import DumpError, MissingMemory
from drgn_tools.workers import Counters, run


def nothing(*_: Any) -> None:
    pass


def forever(*_: Any) -> NoReturn:
    while True:
        time.sleep(1)


@pytest.fixture
def done() -> Iterator[Counters]:
    """How often each number was worked on."""
    with contextlib.closing(Counters(1000)) as counters:
        yield counters


@pytest.fixture(autouse=True)
def tidy() -> Iterator[None]:
    """No process or blocked signal is left, however it ends."""
    yield
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


def die(number: signal.Signals) -> None:
    faulthandler.disable()  # pytest's would print where this was.
    os.kill(os.getpid(), number)


def test_additions_are_atomic() -> None:
    """Each addition is seen once, whoever makes it."""
    processes, each = 5, 4000
    counters = Counters(3)
    results = Counters(processes * each)

    def work(number: int) -> None:
        for _ in range(each):
            before = counters.add(0, 1)
            # Who got this number? Twice would be two additions in one.
            results.add(before, 1)
            counters.add(1, number - 2)

    assert run(processes, work, processes, nothing) == {}
    assert counters[0] == processes * each
    assert counters[1] == 0
    assert all(results[i] == 1 for i in range(processes * each))
    counters.close()
    results.close()


def test_large_numbers() -> None:
    counters = Counters(1)
    assert counters.add(0, 1 << 62) == 0
    assert counters.add(0, -5) == 1 << 62
    assert counters[0] == (1 << 62) - 5
    counters.close()


@pytest.mark.parametrize("processes", [0, 1, 2, 3, 7, 40])
@pytest.mark.parametrize("count", [0, 1, 2, 30, 1000])
def test_each_number_once(count: int, processes: int, done: Counters) -> None:
    ticks: list[int] = []
    before = os.listdir("/proc/self/fd")
    assert run(count, lambda n: nothing(done.add(n, 1)), processes, ticks.append) == {}
    assert [done[n] for n in range(1000)] == [1] * count + [0] * (1000 - count)
    assert ticks == sorted(ticks)
    assert ticks[-1:] == ([count] if count else [])
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("processes", [0, 1, 3])
def test_ticks_tell_what_is_done(processes: int, done: Counters) -> None:
    """Whatever is below the number has been worked on, in whatever order."""

    def work(number: int) -> None:
        time.sleep(0.002 * (number % 7))
        done.add(number, 1)

    def tick(number: int) -> None:
        assert all(done[n] for n in range(number))

    run(200, work, processes, tick)


def test_inbox(done: Counters) -> None:
    """The parent does what workers ask for, while they work."""
    reader, writer = os.pipe()

    def serve() -> None:
        for number in os.read(reader, 100):
            done.add(number, os.getpid())

    inbox = workers.Inbox(reader, serve)
    assert (
        run(20, lambda n: nothing(os.write(writer, bytes([n]))), 3, nothing, inbox)
        == {}
    )
    # What came last may still be there.
    os.set_blocking(reader, False)
    with contextlib.suppress(BlockingIOError):
        serve()
    assert [done[n] for n in range(20)] == [os.getpid()] * 20
    os.close(reader)
    os.close(writer)


def test_shared_bytes() -> None:
    shared = workers.SharedBytes(10 * mmap.PAGESIZE)
    ones = range(0, len(shared.array), mmap.PAGESIZE)

    def work(number: int) -> None:
        shared.array[number * mmap.PAGESIZE] = 1

    assert run(10, work, 2, nothing) == {}
    assert [shared.array[at] for at in ones] == [1] * 10
    shared.give_back(100, 4 * mmap.PAGESIZE + 1)
    assert [shared.array[at] for at in ones] == [1, 0, 0, 0, *[1] * 6]
    with pytest.raises(DumpError, match="no room"):
        workers.SharedBytes(1 << 62)


@pytest.mark.parametrize(
    ("mib", "expected"), [(0, 1), (40, 1), (64, 2), (130, 6), (100_000, 32)]
)
def test_as_many_as_there_is_memory_for(
    mib: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "meminfo"
    path.write_text(f"MemTotal: 5000000 kB\nMemAvailable:  {mib << 10} kB\n")
    real = open
    monkeypatch.setattr(
        "builtins.open", lambda name, *a: real(path if "meminfo" in name else name, *a)
    )
    assert workers.affordable(32) == expected
    path.write_text("MemTotal: 5000000 kB\n")
    assert workers.affordable(32) == 32
    path.unlink()
    assert workers.affordable(32) == 32


def test_no_worker_is_this_process(done: Counters) -> None:
    """Nothing costs extra: no fork for one."""
    pids = []
    run(3, lambda n: pids.append(os.getpid()), 0, nothing)
    assert pids == [os.getpid()] * 3


@pytest.mark.parametrize("processes", [0, 1, 3])
def test_unreadable(processes: int, done: Counters) -> None:
    """What lacks memory is reported with the reason; all else is done."""

    def work(number: int) -> None:
        if number % 10 == 3:
            raise MissingMemory(number, "damaged")
        done.add(number, 1)

    failed = run(40, work, processes, nothing)
    bad = [3, 13, 23, 33]
    assert failed == {n: f"physical address {n:#x} is damaged" for n in bad}
    assert [done[n] for n in range(40)] == [n not in bad for n in range(40)]


@pytest.mark.parametrize("processes", [1, 2, 5])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS, signal.SIGSEGV])
def test_killed_worker(number: signal.Signals, processes: int, done: Counters) -> None:
    """SIGBUS is what a poisoned page gives. It costs what the worker was at."""

    def work(n: int) -> None:
        if n in (0, 7, 29):
            die(number)
        done.add(n, 1)

    failed = run(30, work, processes, nothing)
    assert failed == dict.fromkeys((0, 7, 29), f"a worker was killed ({number.name})")
    assert [done[n] for n in range(30)] == [n not in failed for n in range(30)]


def test_killed_between_two_numbers(
    monkeypatch: pytest.MonkeyPatch, done: Counters
) -> None:
    """Taking a number may be cut short anywhere: none is forgotten."""
    real = Counters.__setitem__
    kills = Counters(1)

    def deadly(self: Counters, index: int, value: int) -> None:
        if self is not kills and self is not done and os.getpid() != parent:
            with kills.locked():
                before = kills[0]
                real(kills, 0, before + 1)
            if before % 5 == 2:
                if before % 2:
                    real(self, index, value)
                die(signal.SIGBUS)
        real(self, index, value)

    parent = os.getpid()
    monkeypatch.setattr(Counters, "__setitem__", deadly)
    failed = run(50, lambda n: nothing(done.add(n, 1)), 3, nothing)
    assert failed
    for n in range(50):
        assert done[n] == 1 or n in failed
    kills.close()


def test_a_dead_holder_frees_the_lock(done: Counters) -> None:
    def work(number: int) -> None:
        if number == 0:
            fcntl.lockf(done._fd, fcntl.LOCK_EX)
            die(signal.SIGKILL)
        done.add(number, 1)

    assert list(run(10, work, 3, nothing)) == [0]
    assert [done[n] for n in range(10)] == [0] + [1] * 9


@pytest.mark.parametrize("processes", [0, 1, 3])
def test_error(processes: int) -> None:
    """The first one's message; the others are stopped."""

    def work(number: int) -> None:
        if number == (processes > 1):
            raise DumpError("no space left on the device: 100 % full")
        forever()

    with pytest.raises(DumpError, match=r"^no space left on the device: 100 % full$"):
        run(3, work, processes, nothing)


def test_bug_in_a_worker(capfd: pytest.CaptureFixture[str]) -> None:
    def work(number: int) -> None:
        raise ValueError("a bug")

    with pytest.raises(DumpError, match="worker failed"):
        run(2, work, 2, nothing)
    assert "ValueError: a bug" in capfd.readouterr().err


def test_exception_of_the_parent() -> None:
    def tick(taken: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(3, forever, 3, tick)


@pytest.mark.parametrize("third", [1, 3])
def test_no_process_to_be_had(
    third: int, monkeypatch: pytest.MonkeyPatch, done: Counters
) -> None:
    """Those that are there do it all; without any, this process does."""
    real, forks = os.fork, []

    def fork() -> int:
        forks.append(1)
        if len(forks) >= third:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return real()

    monkeypatch.setattr(os, "fork", fork)
    assert run(20, lambda n: nothing(done.add(n, 1)), 4, nothing) == {}
    assert [done[n] for n in range(20)] == [1] * 20


def test_orphans_stop(done: Counters) -> None:
    """Workers whose parent was killed do not go on."""

    def work(number: int) -> None:
        done.add(number, 1)
        time.sleep(0.02)

    parent = os.fork()
    if not parent:
        try:
            run(1000, work, 2, nothing)
        finally:
            os._exit(0)
    while not done[3]:
        time.sleep(0.01)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    time.sleep(0.2)
    before = sum(done[n] for n in range(1000))
    time.sleep(0.2)
    assert sum(done[n] for n in range(1000)) == before < 1000


def test_workers_take_signals_as_by_default(done: Counters) -> None:
    """Not by the parent's handlers, and none is blocked."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

    def work(number: int) -> None:
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
        done.add(number, 1)

    try:
        run(2, work, 2, nothing)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert done[0] == done[1] == 1


def test_workers_die_first(done: Counters) -> None:
    """When memory is short, the kernel takes a worker and not the parent."""

    def work(number: int) -> None:
        with open("/proc/self/oom_score_adj") as file:
            done.add(number, int(file.read()))

    run(1, work, 1, nothing)
    assert done[0] == 1000


def test_slow_reporting(monkeypatch: pytest.MonkeyPatch, done: Counters) -> None:
    """However seldom the parent looks, it sees what each of them had to say."""
    monkeypatch.setattr(workers, "_TICK", 500)

    def work(number: int) -> None:
        if number % 2:
            raise MissingMemory(number)
        done.add(number, 1)

    assert sorted(run(20, work, 4, nothing)) == list(range(1, 20, 2))


def test_stopped_worker(done: Counters, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others go on; it is dead before its number is told to have failed."""
    monkeypatch.setattr(workers, "_HALT", 0.3)
    pids = Counters(1)

    def work(number: int) -> None:
        done.add(number, 1)
        if number == 3:
            pids[0] = os.getpid()
            os.kill(os.getpid(), signal.SIGSTOP)

    failed = run(10, work, 2, nothing)
    assert failed == {3: "a worker was killed (stopped before)"}
    assert [done[number] for number in range(10)] == [1] * 10
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
    pids.close()


def test_stopped_worker_that_holds_the_lock(
    done: Counters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All others wait for it, and go on when it is given up."""
    monkeypatch.setattr(workers, "_HALT", 0.3)

    def work(number: int) -> None:
        if number == 3:
            with done.locked():
                os.kill(os.getpid(), signal.SIGSTOP)
        done.add(number, 1)

    assert list(run(10, work, 3, nothing)) == [3]
    assert [done[n] for n in range(10)] == [int(n != 3) for n in range(10)]


def test_stopped_after_it_said_why(
    done: Counters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for the rest of what it says."""
    monkeypatch.setattr(workers, "_HALT", 0.3)
    real = os.write

    def write(fd: int, data: bytes) -> int:
        written = real(fd, data)
        if data.startswith(b"3 "):
            os.kill(os.getpid(), signal.SIGSTOP)
        return written

    def work(number: int) -> None:
        if number == 3:
            raise MissingMemory(number)
        done.add(number, 1)

    monkeypatch.setattr(os, "write", write)
    assert list(run(10, work, 2, nothing)) == [3]
    assert [done[n] for n in range(10)] == [int(n != 3) for n in range(10)]


@pytest.mark.parametrize("count", [0, 2])
def test_much_that_cannot_be_read(count: int, done: Counters) -> None:
    """Nobody is started anew for it; and what is said is more than a pipe holds."""

    def work(number: int) -> None:
        done[number] = os.getpid()
        if number % 10 == 5:
            raise MemoryError
        raise MissingMemory(number, "x" * 5000 if number < 100 else "bad\0bad")

    failed = run(1000, work, count, nothing)
    assert sorted(failed) == list(range(1000))
    assert failed[5] == "not enough memory"
    assert failed[200].startswith("physical address 0xc8 is bad")
    assert len({done[number] for number in range(1000)}) <= max(1, count)


def test_stopped_for_a_moment(done: Counters) -> None:
    """Who continues in time has lost nothing."""

    def work(number: int) -> None:
        if number == 3:
            pid = os.fork()
            if not pid:
                time.sleep(0.5)
                os.kill(os.getppid(), signal.SIGCONT)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGSTOP)
            os.waitpid(pid, 0)
        done.add(number, 1)

    assert run(10, work, 2, nothing) == {}
    assert [done[number] for number in range(10)] == [1] * 10


@pytest.mark.parametrize("why", ["of \udcff", "of \0 in a name"])
def test_reason_that_is_no_text(why: str) -> None:
    """As of a file whose name is no UTF-8: it is still the reason."""

    def fail(number: int) -> None:
        raise DumpError(why)

    with pytest.raises(DumpError, match=r"^of "):
        run(4, fail, 2, nothing)
