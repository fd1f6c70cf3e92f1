# SPDX-License-Identifier: LGPL-2.1-or-later
"""Worker processes and the counters that they share."""

from __future__ import annotations

import faulthandler
import fcntl
import os
import select
import signal
import sys
import time
from typing import Any, NoReturn

import pytest

from drgn_tools.errors import DumpError
from drgn_tools.workers import Counters, run_workers


def nothing() -> None:
    pass


def forever() -> NoReturn:
    while True:
        time.sleep(1)


def assert_no_children() -> None:
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_additions_are_atomic() -> None:
    """Each addition is seen once, whoever makes it."""
    processes, each = 5, 4000
    counters = Counters(3)
    results = Counters(processes * each)

    def work() -> None:
        mine = counters.add(2, 1)
        for _ in range(each):
            before = counters.add(0, 1)
            # Who got this number? Twice would be two additions in one.
            results.add(before, 1)
            counters.add(1, mine - 2)

    run_workers(processes, work, nothing)
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


def test_a_dead_holder_frees_the_lock() -> None:
    counters = Counters(1)

    def work() -> None:
        if counters.add(0, 1) == 0:
            fcntl.lockf(counters._fd, fcntl.LOCK_EX)
            os.kill(os.getpid(), signal.SIGKILL)
        forever()

    with pytest.raises(DumpError, match="SIGKILL"):
        run_workers(3, work, nothing)
    assert counters.add(0, 1) in (1, 2, 3)
    counters.close()
    assert_no_children()


def test_all_work_and_tidy_up() -> None:
    counters = Counters(2)
    before = open_files()
    ticks = []

    def work() -> None:
        counters.add(0, 1)

    run_workers(4, work, lambda: ticks.append(1))
    assert counters[0] == 4
    assert ticks
    assert open_files() == before
    assert_no_children()
    counters.close()


def test_worker_error() -> None:
    """The first one's message; the others are stopped."""
    counters = Counters(1)

    def work() -> None:
        if counters.add(0, 1) == 1:
            raise DumpError("physical address 0x1000 is unreadable")
        forever()

    before = open_files()
    with pytest.raises(DumpError, match=r"^physical address 0x1000 is unreadable$"):
        run_workers(3, work, nothing)
    assert open_files() == before
    assert_no_children()
    counters.close()


def test_worker_error_at_the_very_end() -> None:
    """It says why, not only that it failed: also when nobody else is left."""
    for _ in range(30):

        def work() -> None:
            raise DumpError("why")

        with pytest.raises(DumpError, match=r"^why$"):
            run_workers(2, work, nothing)
    assert_no_children()


def test_worker_that_exits_after_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message may come between the look at the pipe and that at the worker."""
    real = select.select
    looks = []

    def late(*args: Any) -> Any:
        looks.append(args)
        if len(looks) == 1:
            time.sleep(0.2)
            return [], [], []
        return real(*args)

    def work() -> None:
        raise DumpError("why")

    monkeypatch.setattr(select, "select", late)
    with pytest.raises(DumpError, match=r"^why$"):
        run_workers(1, work, nothing)


def test_bug_in_a_worker(capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise ValueError("a bug")

    with pytest.raises(DumpError, match="worker failed"):
        run_workers(2, work, nothing)
    assert "ValueError: a bug" in capfd.readouterr().err
    assert_no_children()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS, signal.SIGSEGV])
def test_killed_worker(number: signal.Signals) -> None:
    """SIGBUS is what a poisoned page gives."""
    counters = Counters(1)

    def work() -> None:
        if counters.add(0, 1) == 0:
            faulthandler.disable()  # pytest's would print where this was.
            os.kill(os.getpid(), number)
        forever()

    with pytest.raises(DumpError, match=number.name):
        run_workers(3, work, nothing)
    assert_no_children()
    counters.close()


def test_exception_of_the_parent() -> None:
    def tick() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_workers(3, forever, tick)
    assert_no_children()


def test_no_process_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third fork fails: those that are there already are stopped."""
    real, forks = os.fork, []

    def fork() -> int:
        forks.append(1)
        if len(forks) == 3:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return real()

    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(DumpError, match="Resource temporarily unavailable"):
        run_workers(4, forever, nothing)
    assert len(forks) == 3
    assert_no_children()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


def test_workers_take_signals_as_by_default() -> None:
    """Not by the parent's handlers, and none is blocked."""
    counters = Counters(1)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

    def work() -> None:
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
        counters.add(0, 1)

    try:
        run_workers(2, work, nothing)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert counters[0] == 2
    counters.close()
