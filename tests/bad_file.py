# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A file some of whose pages cannot be read: a FUSE file system of one file.

read() of such a page fails with EIO, and touching it in a mapping is SIGBUS: both
by the kernel itself. Speaks to /dev/fuse directly, which needs no package but
privileges: root, or a user namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import stat
import struct
from collections.abc import Collection, Iterator
from pathlib import Path

PAGE = 4096
_CLONE_NEWNS = 0x20000
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18
_MNT_DETACH = 2
# Opcodes and flags of include/uapi/linux/fuse.h.
_FORGET, _GETATTR, _OPEN, _READ, _RELEASE, _FLUSH, _INIT = 2, 3, 14, 15, 18, 25, 26
_FUSE_MAX_PAGES = 1 << 22
_IN_HEADER = struct.Struct("<IIQQIIIHH")
_OUT_HEADER = struct.Struct("<IiQ")
_ATTR = struct.Struct("<QII 6Q 10I")
_INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@contextlib.contextmanager
def bad_file(source: Path, path: Path, bad: Collection[int]) -> Iterator[None]:
    """
    What *source* has, at *path*, but for bad pages.

    :param bad: offsets of the pages that cannot be read.
    :raises OSError: if there is no FUSE here, or no right to mount.
    """
    # A mount of this process and its children only, which vanishes with it.
    _check(_libc.unshare(_CLONE_NEWNS))
    _check(_libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None))
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    server = 0
    try:
        path.touch()
        # The root of a file system may be a file.
        options = (
            f"fd={fd},rootmode=100000,user_id={os.getuid()},group_id={os.getgid()}"
        )
        _check(_libc.mount(b"bad", bytes(path), b"fuse", 0, options.encode()))
        try:
            server = os.fork()
            if not server:
                try:
                    signal.signal(signal.SIGINT, signal.SIG_IGN)
                    _serve(fd, source.read_bytes(), frozenset(bad))
                finally:
                    os._exit(1)
            yield
        finally:
            _check(_libc.umount2(bytes(path), _MNT_DETACH))
    finally:
        os.close(fd)
        if server:
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)


def _serve(fd: int, data: bytes, bad: frozenset[int]) -> None:
    attributes = _ATTR.pack(
        *(1 << 30, 0, 0),
        *(1, len(data), -(-len(data) // 512), 0, 0, 0),
        *(0, 0, 0, stat.S_IFREG | 0o400, 1, os.getuid(), os.getgid(), 0, PAGE, 0),
    )
    while True:
        request = os.read(fd, 1 << 17)
        _, opcode, unique, *_ = _IN_HEADER.unpack_from(request)
        body = request[_IN_HEADER.size :]
        error, answer = 0, b""
        if opcode == _FORGET:
            continue
        if opcode == _INIT:
            # One page at a time, so that a bad one takes no other with it.
            answer = _INIT_OUT.pack(7, 31, 0, _FUSE_MAX_PAGES, 16, 12, PAGE, 1, 1, 0, 0)
        elif opcode == _GETATTR:
            answer = attributes
        elif opcode == _OPEN:
            answer = bytes(16)
        elif opcode == _READ:
            offset, size = struct.unpack_from("<QI", body, 8)
            pages = range(offset // PAGE * PAGE, offset + size, PAGE)
            if bad.intersection(pages):
                error = errno.EIO
            else:
                answer = data[offset : offset + size]
        elif opcode not in (_RELEASE, _FLUSH):
            error = errno.ENOSYS
        header = _OUT_HEADER.pack(_OUT_HEADER.size + len(answer), -error, unique)
        os.write(fd, header + answer)
