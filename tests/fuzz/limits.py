# SPDX-License-Identifier: LGPL-2.1-or-later
"""Work that has to do with little memory, and must come to an end."""

from __future__ import annotations

import os
import signal
import time
import traceback
from typing import Callable

from tests.fuzz.runner import MEMORY, limit_memory

# Nothing here takes a second on an idle machine; what takes so long has no end.
_END = 300.0


def within_limits(work: Callable[[], object], memory: int = MEMORY) -> str:
    """
    Do something in a process of its own, which may have *memory* bytes more than it has
    at its start, and is killed if it goes on and on.

    :return: what it returned, as text; empty for None.
    :raises AssertionError: if it raised something, was killed or had to be.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.close(read_end)
            limit_memory(memory)
            result = work()
            os.write(write_end, str("" if result is None else result)[:1000].encode())
            status = 0
        except BaseException:
            os.write(write_end, traceback.format_exc()[-3000:].encode())
        finally:
            os._exit(status)
    os.close(write_end)
    until = time.monotonic() + _END
    try:
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                break
            if time.monotonic() > until:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise AssertionError("it did not come to an end")
            time.sleep(0.002)
        said = os.read(read_end, 1 << 16).decode()
        assert status == 0, f"status {status}: {said}"
        return said
    finally:
        os.close(read_end)
