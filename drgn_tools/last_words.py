# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What a kernel said when it died
-------------------------------

In the kernel log, which needs no debugging symbols: where that begins and ends, and
what it says of the task that died.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from drgn_tools.kernel_log import LogRecord
from drgn_tools.text import decoded


def log_text(record: LogRecord) -> list[str]:
    """A record of the kernel log, as dmesg prints it."""
    seconds, rest = divmod(record.timestamp_ns, 1_000_000_000)
    prefix = f"[{seconds:5}.{rest // 1000:06}] "
    if record.caller is not None:
        prefix += f"[{record.caller:>8}] "
    lines = decoded(record.raw).split("\n")
    return [prefix + lines[0], *(" " * len(prefix) + line for line in lines[1:])]


# Where what the kernel says of its death begins, and where that ends.
_LAST_WORDS = re.compile(
    r"-+\[ cut here \]|BUG: |Unable to handle|general protection fault|Oops: |"
    r"sysrq: (SysRq : )?Trigger a crash|watchdog: |Kernel panic"
)
_END = re.compile(r"---\[ end ")
# How far before the line that says it.
_BEFORE = 120


def last_words(lines: list[str], panic: str | None) -> tuple[int, int, int] | None:
    """
    Where a log says why the kernel died: start, end, and the panic itself.

    :param panic: Of :func:`~drgn_tools.kernel_log.panic_line()`.
    """
    if panic is None:
        return None
    # There, what is no UTF-8 is shown in another way.
    sign = panic.partition("\ufffd")[0].rstrip()
    at = next((i for i in range(len(lines) - 1, -1, -1) if sign in lines[i]), None)
    if at is None:
        return None
    start = next(
        (i for i in range(max(0, at - _BEFORE), at) if _LAST_WORDS.search(lines[i])),
        max(0, at - 5),
    )
    end = next((i for i in range(at, len(lines)) if _END.search(lines[i])), None)
    return start, len(lines) if end is None else end + 1, at


# Of the task that died.
_DIED = re.compile(
    r"CPU: (?P<cpu>\d{1,9}) (?:UID: \d+ )?PID: (?P<pid>\d{1,9}) "
    r"Comm: (?P<comm>.{0,15}?) (?:Kdump: loaded )?"
    r"(?P<taint>Not tainted|Tainted: .*?) \d"
)
# A line's time, and who said it.
_PREFIX = re.compile(r"^\[.*?\] (\[.*?\] )?")
_SECONDS = re.compile(r"\[ *(\d{1,12})\.")


class Death(NamedTuple):
    """What a log says of its kernel's death. None is what it does not say."""

    uptime: int | None
    """Seconds from boot to the last line."""
    began_with: str | None
    """The first line of what led to the panic, unless that is the panic itself."""
    task: str | None
    """Name of the task that died."""
    task_pid: int | None
    task_cpu: int | None
    taint: str | None


def read_death(lines: list[str], panic: str | None) -> Death:
    """
    Look for what a log says of its kernel's death.

    :param lines: Of :func:`log_text()`.
    :param panic: Of :func:`~drgn_tools.kernel_log.panic_line()`.
    """
    stamp = _SECONDS.match(lines[-1]) if lines else None
    uptime = int(stamp[1]) if stamp else None
    words = last_words(lines, panic)
    if words is None:
        return Death(uptime, None, None, None, None, None)
    start, end, at = words
    began_with = None if start == at else _PREFIX.sub("", lines[start])
    for line in lines[start:end]:
        if died := _DIED.search(line):
            pid, cpu = int(died["pid"]), int(died["cpu"])
            return Death(uptime, began_with, died["comm"], pid, cpu, died["taint"])
    return Death(uptime, began_with, None, None, None, None)
