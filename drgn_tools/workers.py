# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Worker processes that share nothing but counters
------------------------------------------------

:func:`run` hands out numbers; whoever is free takes the next one. A worker
that is killed, by a page of bad memory for one, takes nothing with it but the
number it was at. No semaphores, no queues, no /dev/shm: an initramfs has none
of them.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import select
import signal
import time
import traceback
from collections.abc import Iterable, Iterator
from typing import Callable, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from drgn_tools.errors import STOP_SIGNALS, DumpError, MissingMemory

_SIGNAL_NAMES = {number.value: number.name for number in signal.Signals}
# Milliseconds between reports of how far they are.
_TICK = 100
# Seconds after which a worker that somebody stopped is given up, and how many of
# them one look at it counts at most: whoever looks may have been stopped, too.
_HALT, _LOOK = 5.0, 0.5
# Bytes that a worker says at once, fewer than PIPE_BUF: all of them come, or none.
_SAID = 1024
# mmap.MAP_NORESERVE is new in Python 3.11.
_MAP_NORESERVE = 0x4000
# Bytes that one more worker takes at most, and bytes to leave to the kernel.
_WORKER_MEMORY = 16 << 20
_RESERVE = 32 << 20
# What run() counts: the next number to take, and for each worker the number
# that it is at, plus one.
_NEXT, _FIRST_SLOT = range(2)


class Counters:
    """
    Numbers that processes forked later share, all zero at first.

    They lie in a memory file; a record lock on it makes each addition atomic
    and is freed by the kernel if its holder dies.
    """

    def __init__(self, count: int) -> None:
        self._fd = os.memfd_create("drgn-tools-counters")
        os.ftruncate(self._fd, 8 * count)
        self._words = np.frombuffer(mmap.mmap(self._fd, 8 * count), np.int64)

    def __getitem__(self, index: int) -> int:
        return int(self._words[index])

    def __setitem__(self, index: int, value: int) -> None:
        self._words[index] = value

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else gets here meanwhile."""
        fcntl.lockf(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def add(self, index: int, amount: int) -> int:
        """Add to a counter; returns what it was before."""
        with self.locked():
            before = self[index]
            self[index] = before + amount
        return before

    def close(self) -> None:
        os.close(self._fd)


class SharedBytes:
    """
    Zeros that processes forked later share, and that cost memory only where
    something is written.

    :raises DumpError: if there is no room for them.
    """

    def __init__(self, size: int) -> None:
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        try:
            self._memory = mmap.mmap(-1, max(1, size), flags=flags)
        except (OSError, OverflowError, MemoryError):
            raise DumpError(
                f"no room for {size >> 20} MiB that workers share"
            ) from None
        self.array: npt.NDArray[np.uint8] = np.frombuffer(self._memory, np.uint8, size)

    def give_back(self, start: int, end: int) -> None:
        """Free the memory of a piece; what was in it is zero again, or not."""
        start = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = end // mmap.PAGESIZE * mmap.PAGESIZE - start
        if length > 0:
            # A kernel without tmpfs cannot.
            with contextlib.suppress(OSError):
                self._memory.madvise(mmap.MADV_REMOVE, start, length)


class Inbox(NamedTuple):
    """What workers have the parent do."""

    fd: int
    """Readable when there is something."""
    serve: Callable[[], None]
    """Does it."""


def affordable(workers: int) -> int:
    """
    As many workers as there is memory for, at most *workers* and at least 1: a
    capture kernel has little of it, and scripts ask for one for each CPU.
    """
    available = None
    with contextlib.suppress(OSError, ValueError), open("/proc/meminfo") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) << 10
    if available is None:
        return workers
    return max(1, min(workers, (available - _RESERVE) // _WORKER_MEMORY))


def run(
    count: int,
    work: Callable[[int], None],
    workers: int,
    tick: Callable[[int], None],
    inbox: Inbox | None = None,
) -> dict[int, str]:
    """
    Call *work* with each number below *count*, each once.

    :param workers: how many processes; 0 does it all in this one, and so does
        a machine that has no room for another.
    :param tick: called now and then with a number below which all are done.
    :param inbox: served whenever there is something in it.
    :return: numbers that could not be worked on, and why: *work* raised
        :class:`~drgn_tools.errors.MissingMemory`, there was not enough memory, or
        its process was killed.
    :raises DumpError: what *work* raised; the other workers are stopped.
    """
    with contextlib.closing(Counters(_FIRST_SLOT + workers)) as counters:
        failed = {}
        if workers and count:
            failed = _run_forked(counters, count, work, workers, tick, inbox)
        # All that there is, if no process could be started.
        for number in range(counters[_NEXT], count):
            try:
                work(number)
            except (MissingMemory, MemoryError) as error:
                failed[number] = _why(error)
            tick(number + 1)
    return failed


class _Worker(NamedTuple):
    pid: int
    slot: int
    """Where it says what it is at."""
    pipe: int
    """Says what went wrong, and ends with the worker."""
    said: bytearray
    """Numbers that could not be worked on, and why; then why it ended, if it did."""


def _run_forked(
    counters: Counters,
    count: int,
    work: Callable[[int], None],
    workers: int,
    tick: Callable[[int], None],
    inbox: Inbox | None,
) -> dict[int, str]:
    failed: dict[int, str] = {}
    running: dict[int, _Worker] = {}
    # For how many seconds workers were seen to be stopped, by process.
    halted: dict[int, float] = {}
    looked = time.monotonic()
    poll = select.poll()

    def start(slot: int) -> None:
        counters[slot] = 0
        # Not before the worker has let go of the parent's handlers, and the
        # parent knows of the worker.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            worker = _start(counters, slot, count, work, mask)
            running[worker.pipe] = worker
            poll.register(worker.pipe, select.POLLIN)
        except OSError:
            pass  # Fewer will do, and so does none.
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def finished() -> int:
        # The next number first: what is taken after that does not matter.
        end = min(count, counters[_NEXT])
        slots = [counters[worker.slot] for worker in running.values()]
        return min([end, *(slot - 1 for slot in slots if slot)])

    if inbox:
        poll.register(inbox.fd, select.POLLIN)
    try:
        for slot in range(_FIRST_SLOT, _FIRST_SLOT + workers):
            start(slot)
        while running:
            for pipe, _ in poll.poll(_TICK):
                if inbox and pipe == inbox.fd:
                    inbox.serve()
                    continue
                # Not all at once: it may be stopped before its end.
                worker = running[pipe]
                said = os.read(pipe, _SAID)
                worker.said.extend(said)
                if said:
                    continue
                del running[pipe]
                _, status = os.waitpid(worker.pid, 0)
                poll.unregister(pipe)
                os.close(pipe)
                *reports, end = worker.said.decode(errors="replace").split("\0")
                for report in reports:
                    place, _, why = report.partition(" ")
                    failed[int(place)] = why
                if not status:
                    continue
                if not os.WIFSIGNALED(status):
                    raise DumpError(end or "a worker failed")
                killed = os.WTERMSIG(status)
                number = counters[worker.slot] - 1
                if number >= 0:
                    name = _SIGNAL_NAMES.get(killed, f"signal {killed}")
                    if halted.pop(worker.pid, None):
                        name = "stopped before"
                    failed[number] = f"a worker was killed ({name})"
                # SIGKILL comes from the kernel when memory is short: then
                # fewer do the rest.
                if counters[_NEXT] < count and (
                    killed != signal.SIGKILL or not running
                ):
                    start(worker.slot)
            now = time.monotonic()
            _end_stopped(running.values(), halted, min(now - looked, _LOOK))
            looked = now
            tick(finished())
        return failed
    finally:
        for worker in running.values():
            os.kill(worker.pid, signal.SIGKILL)
            os.waitpid(worker.pid, 0)
            os.close(worker.pipe)


def _end_stopped(
    running: Iterable[_Worker], halted: dict[int, float], passed: float
) -> None:
    # Others may wait for a lock that it has. It is dead before anybody does its
    # work again, so it cannot wake up and write where others have written since.
    for worker in running:
        # Not taken off, so that it is told each time, until the worker goes on.
        flags = os.WSTOPPED | os.WNOHANG | os.WNOWAIT
        stopped = None
        # One that has just ended is none that could be stopped.
        with contextlib.suppress(ChildProcessError):
            stopped = os.waitid(os.P_PID, worker.pid, flags)
        if stopped is None:
            halted.pop(worker.pid, None)
            continue
        # What passed before it was first seen does not count.
        halted[worker.pid] = halted.get(worker.pid, -passed) + passed
        if halted[worker.pid] > _HALT:
            os.kill(worker.pid, signal.SIGKILL)


def _start(
    counters: Counters,
    slot: int,
    count: int,
    work: Callable[[int], None],
    mask: set[int],
) -> _Worker:
    read_end, write_end = os.pipe()
    starter = os.getpid()
    try:
        pid = os.fork()
        if not pid:
            _work(counters, slot, count, work, write_end, mask, starter)
        return _Worker(pid, slot, read_end, bytearray())
    except OSError:
        os.close(read_end)
        raise
    finally:
        os.close(write_end)


def _work(
    counters: Counters,
    slot: int,
    count: int,
    work: Callable[[int], None],
    write_end: int,
    mask: set[int],
    starter: int,
) -> NoReturn:
    status = 1
    try:
        # These reach the whole group at times; the parent tidies up.
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # As under nohup.
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        # When memory is short, the kernel is to take this one: the parent can
        # do without it, but not the other way round.
        with (
            contextlib.suppress(OSError),
            open("/proc/self/oom_score_adj", "w") as file,
        ):
            file.write("1000")
        # If the parent was killed, nobody waits for this.
        while (taken := _take(counters, slot, count)) < count:
            if os.getppid() != starter:
                break
            try:
                work(taken)
            except (MissingMemory, MemoryError) as error:
                report = _as_said(f"{taken} {_why(error)}")
                os.write(write_end, report[: _SAID - 1] + b"\0")
        status = 0
    except DumpError as error:
        os.write(write_end, _as_said(str(error))[:_SAID])
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _as_said(text: str) -> bytes:
    # Names of files need not be UTF-8, and zeros end reports.
    return text.replace("\0", "?").encode(errors="backslashreplace")


def _why(error: MissingMemory | MemoryError) -> str:
    # A page at a time, there may be enough.
    return str(error) if isinstance(error, MissingMemory) else "not enough memory"


def _take(counters: Counters, slot: int, count: int) -> int:
    with counters.locked():
        number = counters[_NEXT]
        # In this order: if it is killed in between, somebody does the number
        # again; in the other, nobody would.
        counters[slot] = number + 1 if number < count else 0
        counters[_NEXT] = number + 1
    return number
