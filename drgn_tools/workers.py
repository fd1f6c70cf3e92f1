# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Worker processes that share nothing but counters
------------------------------------------------

No semaphores, no queues, no /dev/shm: an initramfs has none of them.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import signal
import traceback
from typing import Callable, NoReturn

import numpy as np

from drgn_tools.errors import DumpError

# What ends the command, and is the parent's to deal with.
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_END_OF_MESSAGE = b"\0"
# Seconds between looks at the workers.
_TICK = 0.1


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

    def add(self, index: int, amount: int) -> int:
        """Add to a counter; returns what it was before."""
        fcntl.lockf(self._fd, fcntl.LOCK_EX)
        before = int(self._words[index])
        self._words[index] = before + amount
        fcntl.lockf(self._fd, fcntl.LOCK_UN)
        return before

    def close(self) -> None:
        os.close(self._fd)


def run_workers(count: int, work: Callable[[], None], tick: Callable[[], None]) -> None:
    """
    Run *work* in *count* processes until all have finished.

    :param tick: called now and then while they run.
    :raises DumpError: when the first of them fails; the others are stopped.
    """
    # A worker says here what went wrong. The pipe ends with the last worker.
    read_end, write_end = os.pipe()
    workers: set[int] = set()
    try:
        for _ in range(count):
            # Not before the worker has let go of the parent's handlers.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
            try:
                pid = os.fork()
                if not pid:
                    os.close(read_end)
                    _work(work, write_end, mask)
                workers.add(pid)
            except OSError as error:
                raise DumpError(f"cannot start a worker: {error.strerror}") from None
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(write_end)
        write_end = -1
        while workers:
            _check_messages(read_end, _TICK)
            for pid in list(workers):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    workers.remove(pid)
                    if status:
                        # It may have said why since.
                        _check_messages(read_end, 0)
                        raise DumpError(_fate(status))
            tick()
    finally:
        os.close(read_end)
        if write_end >= 0:
            os.close(write_end)
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _check_messages(read_end: int, timeout: float) -> None:
    if select.select([read_end], [], [], timeout)[0]:
        # When the disk is full, all of them say so: one is enough.
        message = os.read(read_end, 4096).split(_END_OF_MESSAGE)[0]
        if message:
            raise DumpError(message.decode(errors="replace"))


def _fate(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"a worker was killed ({signal.Signals(os.WTERMSIG(status)).name})"
    return "a worker failed"


def _work(work: Callable[[], None], write_end: int, mask: set[int]) -> NoReturn:
    status = 1
    try:
        # These reach the whole group at times; the parent tidies up.
        for number in _STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # As under nohup.
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        work()
        status = 0
    except DumpError as error:
        os.write(write_end, str(error).encode() + _END_OF_MESSAGE)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
