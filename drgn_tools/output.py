# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Where output goes
-----------------

A file that appears under its name only when it is whole and on the disk, or
nowhere (a dry run). Both take data at any offset, from any process.
"""

from __future__ import annotations

import contextlib
import errno
import os

from drgn_tools.errors import DumpError, OutputFull

# What the kernel says when there is no more room.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class File:
    """
    A file being written, mode 0600: a dump holds keys and passwords.

    :param target: name that it gets when it is done.
    :raises DumpError: if it cannot be made.
    """

    def __init__(self, target: str) -> None:
        directory, name = os.path.split(target)
        if not name:
            raise DumpError(
                f"cannot write {target or 'a file without a name'}: no file"
            )
        self.target = target
        self._directory = directory or "."
        self._temporary = os.path.join(directory, f".{name[:32]}.{os.urandom(8).hex()}")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._fd = os.open(self._temporary, flags, 0o600)
        except OSError as error:
            raise DumpError(f"cannot write {target}: {error.strerror}") from None

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """
        Put *data* at *offset*.

        :raises OutputFull: if there is no room for it.
        :raises DumpError: if it cannot be written for another reason.
        """
        view = memoryview(data)
        while len(view):
            try:
                written = os.pwrite(self._fd, view, offset)
            except OSError as error:
                raise self._failed(error) from None
            view = view[written:]
            offset += written

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
        """
        Let the disk start on a piece, so that less is left for the sync at the
        end. Where memory is short, the kernel makes writers wait by itself.
        """
        os.posix_fadvise(self._fd, offset, size, os.POSIX_FADV_DONTNEED)

    def reserve(self, offset: int, size: int) -> None:
        """
        Make sure that a piece can be written later, however full the disk is then.

        :raises OutputFull: if there is no room for it.
        """
        try:
            os.posix_fallocate(self._fd, offset, size)
        except OSError as error:
            if error.errno in _FULL:
                raise self._failed(error) from None
            # Not every file system can: then it is as full as it is.

    def finish(self, size: int) -> None:
        """
        Give the file its size, bring it to the disk, then give it its name.

        :raises DumpError: if that fails; the file is still there for
            :meth:`discard`.
        """
        try:
            os.ftruncate(self._fd, size)
            os.fsync(self._fd)
            os.rename(self._temporary, self.target)
        except OSError as error:
            raise self._failed(error) from None
        self._temporary = ""
        # Not every file system can do this, and not everyone may; the file is safe.
        with contextlib.suppress(OSError):
            directory_fd = os.open(self._directory, os.O_RDONLY)
            try:
                os.fsync(directory_fd)
            finally:
                os.close(directory_fd)

    def close(self) -> None:
        """Free what it holds; what has not been finished is gone."""
        if self._temporary:
            os.unlink(self._temporary)
            self._temporary = ""
        os.close(self._fd)

    def _failed(self, error: OSError) -> DumpError:
        kind = OutputFull if error.errno in _FULL else DumpError
        return kind(f"cannot write {self.target}: {error.strerror}")


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
