# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Where output goes
-----------------

A file that appears under its name only when it is whole and on the disk, a
stream in the flattened format, or nowhere. Each takes data at any offset, and
from any process that was forked after it was made.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import select
import signal
from collections.abc import Iterable, Iterator
from typing import Protocol

from drgn_tools.errors import STOP_SIGNALS, DumpError, OutputBroken, OutputFull
from drgn_tools.formats import flattened
from drgn_tools.workers import Counters, Inbox

# What the kernel says when there is no more room.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# ... and when what was to be on the disk is not.
_LOST = {errno.EIO, errno.EROFS, *_FULL}
# The largest record of a stream; a worker has this much for it at a time.
_RECORD_SIZE = 4 << 20
# What a stream and its users count: records handed over, records written, and
# where the one that was handed over last belongs.
_ASKED, _DONE, _OFFSET, _SIZE = range(4)
# Bytes that are written at once, of a file that comes in small pieces.
_PIECE = 1 << 20
# Milliseconds until a worker that waits looks whether anybody will come.
_PATIENCE = 1000


class Output(Protocol):
    """Where output goes."""

    sparse: bool
    """What is not written reads as zeros, and costs nothing."""

    @property
    def inbox(self) -> Inbox | None:
        """What the process that made it is to serve while others write."""

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """
        Put *data* at *offset*.

        :raises OutputFull: if there is no room for it.
        :raises OutputBroken: if the disk has a fault there.
        :raises DumpError: if nothing can be written any more.
        """

    def start_writeback(self, offset: int, size: int) -> None:
        """
        Let the disk start on a piece, so that less is left for the sync at the
        end. Where memory is short, the kernel makes writers wait by itself.
        """

    def reserve(self, offset: int, size: int) -> None:
        """
        Make sure that a piece can be written later, however full the disk is then.

        :raises OutputFull: if there is no room for it.
        """

    def sync(self, size: int) -> None:
        """
        All is written: bring it to the disk.

        :param size: of the whole.
        :raises OutputFull: if there is no room for it after all.
        :raises OutputBroken: if some of it, nobody knows what, is not on the disk.
        """

    def make_way(self) -> None:
        """
        Remove what is where it belongs, if it may replace that.

        :raises DumpError: if that fails.
        """

    def publish(self) -> None:
        """
        Bring it to where it belongs.

        :raises DumpError: if that fails, or may not last.
        """

    def close(self) -> None:
        """Free what it holds; a file that has not been finished is gone."""


class File:
    """
    A file being written, mode 0600: a dump holds keys and passwords.

    :param target: name that it gets when it is done.
    :param force: it may replace a file that has this name then.
    :raises DumpError: if it cannot be made.
    """

    sparse = True
    inbox = None

    def __init__(self, target: str, force: bool) -> None:
        directory, name = os.path.split(target)
        if not name:
            raise DumpError(
                f"cannot write {target or 'a file without a name'}: no file"
            )
        self.target = target
        self._force = force
        self._directory = directory or "."
        self._temporary = os.path.join(directory, f".{name[:32]}.{os.urandom(8).hex()}")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._fd = os.open(self._temporary, flags, 0o600)
        except OSError as error:
            raise DumpError(f"cannot write {target}: {error.strerror}") from None

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        view = memoryview(data)
        written = 0
        while written < len(view):
            try:
                written += os.pwrite(self._fd, view[written:], offset + written)
            except OSError as error:
                raise self._failed(error, written) from None

    def read(self, size: int, offset: int) -> bytes:
        """
        What has been written at *offset*; zeros where nothing has been, and less
        than *size* bytes at the end.

        :raises DumpError: if it cannot be read.
        """
        try:
            return os.pread(self._fd, size, offset)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or "impossible offset"
            raise DumpError(f"cannot read {self.target}: {why}") from None

    def start_writeback(self, offset: int, size: int) -> None:
        os.posix_fadvise(self._fd, offset, size, os.POSIX_FADV_DONTNEED)

    def reserve(self, offset: int, size: int) -> None:
        try:
            os.posix_fallocate(self._fd, offset, size)
        except OSError as error:
            if error.errno in _FULL:
                raise self._failed(error) from None
            # Not every file system can: then it is as full as it is.

    def finish(self, size: int) -> None:
        """
        Bring it to the disk, and then under its name.

        :raises DumpError: if that fails.
        """
        self.sync(size)
        self.publish()

    def sync(self, size: int) -> None:
        try:
            os.ftruncate(self._fd, size)
            os.fsync(self._fd)
        except OSError as error:
            raise self._failed(error) from None

    def make_way(self) -> None:
        if not self._force:
            return
        try:
            os.unlink(self.target)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise self._failed(error) from None

    def publish(self) -> None:
        try:
            if not self._force:
                self._link()
            if self._temporary:
                os.rename(self._temporary, self.target)
        except OSError as error:
            raise self._failed(error) from None
        self._temporary = ""
        try:
            directory_fd = os.open(self._directory, os.O_RDONLY)
            try:
                os.fsync(directory_fd)
            finally:
                os.close(directory_fd)
        except OSError as error:
            # Not every file system can do this, and not everyone may.
            if error.errno in _LOST:
                raise OutputBroken(
                    f"{self.target} may not stay under its name: {error.strerror}",
                    error.errno,
                ) from None

    def _link(self) -> None:
        # A link takes no name that there is, where a file system has such links.
        try:
            os.link(self._temporary, self.target)
        except OSError:
            if os.path.lexists(self.target):
                kept, self._temporary = self._temporary, ""
                raise DumpError(
                    f"{self.target} exists by now: what was written is {kept}"
                ) from None
        else:
            os.unlink(self._temporary)
            self._temporary = ""

    def close(self) -> None:
        # Neither may be possible on a disk that has just failed.
        with contextlib.suppress(OSError):
            if self._temporary:
                os.unlink(self._temporary)
        self._temporary = ""
        with contextlib.suppress(OSError):
            os.close(self._fd)

    def _failed(self, error: OSError, written: int = 0) -> DumpError:
        message = f"cannot write {self.target}: {error.strerror}"
        if error.errno in _FULL:
            return OutputFull(message, written)
        return OutputBroken(message, error.errno or 0, written)


@contextlib.contextmanager
def files(*targets: str, force: bool) -> Iterator[list[File]]:
    """Files that are closed in the end, whatever happens from the first on."""
    opened: list[File] = []
    try:
        # Between a file and this list, a signal would leave one behind.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            for target in targets:
                opened.append(File(target, force))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        yield opened
    finally:
        for file in opened:
            file.close()


class Stream:
    """
    A descriptor that gets the flattened format, for another machine or a tape.

    Only the process that made it writes to the descriptor. Others put their
    data where it finds it, so that one that is killed cannot leave half a
    record in the stream.

    :raises DumpError: if the descriptor cannot be written.
    """

    # Readers of the flattened format want all of it to be there.
    sparse = False

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._owner = os.getpid()
        self._counters = Counters(4)
        self._memory = mmap.mmap(-1, _RECORD_SIZE)
        # Each byte wakes up who waits: for something to write, for its being
        # written.
        self._asked = os.pipe()
        self._done = os.pipe()
        # Full, they wake up everyone; and nobody hangs in one whose reader is gone.
        os.set_blocking(self._asked[1], False)
        os.set_blocking(self._done[1], False)
        self.inbox = Inbox(self._asked[0], self._serve)
        self._put(flattened.HEADER)

    def write(self, data: bytes | memoryview, offset: int) -> None:
        view = memoryview(data)
        put = self._put_record if os.getpid() == self._owner else self._hand_over
        for start in range(0, len(view), _RECORD_SIZE):
            put(view[start : start + _RECORD_SIZE], offset + start)

    def start_writeback(self, offset: int, size: int) -> None:
        pass

    def reserve(self, offset: int, size: int) -> None:
        pass

    def sync(self, size: int) -> None:
        self._write_waiting()

    def make_way(self) -> None:
        pass

    def publish(self) -> None:
        self._put(flattened.END)

    def close(self) -> None:
        self._counters.close()
        for fd in (*self._asked, *self._done):
            os.close(fd)

    def _hand_over(self, data: memoryview, offset: int) -> None:
        counters = self._counters
        with counters.locked():
            while counters[_DONE] < counters[_ASKED]:
                self._wait()
            self._memory[: len(data)] = data
            counters[_OFFSET] = offset
            counters[_SIZE] = len(data)
            # From here on it will be written, whatever happens to this process.
            counters[_ASKED] += 1
            _wake(self._asked[1])

    def _wait(self) -> None:
        # Whoever handed it over may have been killed before it said so.
        _wake(self._asked[1])
        done = select.poll()
        done.register(self._done[0], select.POLLIN)
        while not done.poll(_PATIENCE):
            if os.getppid() != self._owner:
                raise DumpError("whoever writes the stream is gone")
        os.read(self._done[0], 4096)

    def _serve(self) -> None:
        os.read(self._asked[0], 4096)
        self._write_waiting()

    def _write_waiting(self) -> None:
        counters = self._counters
        if counters[_DONE] < counters[_ASKED]:
            data = memoryview(self._memory)[: counters[_SIZE]]
            self._put_record(data, counters[_OFFSET])
            counters[_DONE] = counters[_ASKED]
            _wake(self._done[1])

    def _put_record(self, data: memoryview, offset: int) -> None:
        if len(data):
            self._put(flattened.record(offset, len(data)), data)

    def _put(self, *parts: bytes | memoryview) -> None:
        # What is not whole cannot be taken back: signals have to wait, but for Ctrl-C,
        # after which nothing more is written, and which a full pipe is not to hold up.
        waiting = {*STOP_SIGNALS} - {signal.SIGINT}
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, waiting)
        try:
            for part in parts:
                view = memoryview(part)
                while len(view):
                    try:
                        view = view[os.write(self._fd, view) :]
                    except BlockingIOError:
                        # Whoever shares the descriptor made it so.
                        select.select((), (self._fd,), ())
        except OSError as error:
            raise DumpError(f"cannot write the output: {error.strerror}") from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _wake(fd: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.write(fd, b".")


class Nothing:
    """Takes everything and keeps nothing: what a dry run writes to."""

    sparse = True
    inbox = None

    def write(self, data: bytes | memoryview, offset: int) -> None:
        pass

    def start_writeback(self, offset: int, size: int) -> None:
        pass

    def reserve(self, offset: int, size: int) -> None:
        pass

    def sync(self, size: int) -> None:
        pass

    def make_way(self) -> None:
        pass

    def publish(self) -> None:
        pass

    def close(self) -> None:
        pass


def check_target(target: str, force: bool, sources: tuple[str, ...] = ()) -> None:
    """
    See whether a file may be written.

    :param force: it may replace a file.
    :param sources: files that it must not replace.
    :raises DumpError: if it may not.
    """
    if not os.path.lexists(target):
        return
    if os.path.exists(target):
        for source in sources:
            if os.path.samefile(source, target):
                raise DumpError(f"{target} is the input itself")
    if not os.path.isfile(target):
        raise DumpError(f"{target} exists and is no regular file")
    if not force:
        raise DumpError(f"{target} exists (-f replaces it)")


def write_file(target: str, pieces: Iterable[bytes], force: bool = False) -> None:
    """
    Write a file from its start to its end.

    :param force: it may replace a file.
    :raises DumpError: if it cannot be written.
    """
    with files(target, force=force) as (file,):
        size = 0
        waiting = bytearray()
        for piece in pieces:
            waiting += piece
            if len(waiting) >= _PIECE:
                file.write(waiting, size)
                size += len(waiting)
                waiting = bytearray()
        file.write(waiting, size)
        file.finish(size + len(waiting))
