# SPDX-License-Identifier: LGPL-2.1-or-later
"""Zones and records of pstore as text and as JSON, wherever they come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from drgn_tools.pstore_records import (
    DmesgRecord,
    FtraceArray,
    FtraceFormat,
    LogcatMessage,
    Name,
    Trace,
    addresses,
)
from drgn_tools.ramoops import Zone
from drgn_tools.text import (
    binary_size,
    decoded,
    json_line,
    printable,
    printable_lines,
)


def text_of(data: bytes) -> str:
    """Foreign text as it is, but for what would drive a terminal."""
    return printable_lines(decoded(data))


def zone_state(zone: Zone) -> str:
    """What state a zone is in, in words."""
    words: list[str] = [zone.state]
    if zone.wrapped:
        words.append("wrapped")
    if zone.ecc is not None:
        words.append(f"ECC {zone.ecc.size}")
        if zone.corrected_bytes:
            words.append(f"{zone.corrected_bytes} bytes corrected")
        if zone.bad_blocks:
            words.append(f"{zone.bad_blocks} bad blocks")
    if zone.header_corrected:
        words.append("header corrected")
    if zone.header_parity_stale:
        words.append("header newer than its parity")
    if zone.skipped:
        words.append(f"{zone.skipped} older bytes missing")
    if zone.missing:
        words.append(f"{zone.missing} newer bytes missing")
    if zone.version is not None:
        words.append("made by Linux " + ".".join(map(str, zone.version)))
    return ", ".join(words)


def zone_lines(zones: Iterable[Zone]) -> Iterator[str]:
    """A table of zones; those that are just empty are one line."""
    empty: dict[str, list[int]] = {}
    yield f"{'zone':<12}{'address':>14}{'size':>12}{'content':>12}  state"
    for zone in zones:
        if zone.state == "empty" and not _is_odd(zone):
            empty.setdefault(zone.kind, []).append(zone.number)
            continue
        yield (
            f"{zone.kind + ' ' + str(zone.number):<12}{zone.address:>#14x}"
            f"{binary_size(zone.size):>12}{binary_size(len(zone.content)):>12}"
            f"  {zone_state(zone)}"
        )
    if empty:
        count = sum(map(len, empty.values()))
        kinds = (f"{kind} {_ranges(numbers)}" for kind, numbers in empty.items())
        yield f"{count} empty: {', '.join(kinds)}"


def _is_odd(zone: Zone) -> bool:
    flags = (zone.header_corrected, zone.header_parity_stale)
    return any((*flags, zone.corrected_bytes, zone.bad_blocks, zone.missing))


def _ranges(numbers: Iterable[int]) -> str:
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{a}-{b}" if a != b else f"{a}" for a, b in runs)


def zone_json(zone: Zone) -> dict[str, Any]:
    """A zone for ``--json``, without its content."""
    result = {**zone._asdict(), "version": zone.version, "content": len(zone.content)}
    result["ecc"] = None if zone.ecc is None else zone.ecc._asdict()
    return result


def dmesg_title(zone: Zone, record: DmesgRecord) -> str:
    """A line to put in front of a record."""
    title = f"dmesg {zone.number}: at {record.seconds}.{record.microseconds:06}"
    if record.compressed:
        title += f", {record.algorithm}"
    if record.error:
        title += f", not whole: {record.error}"
    return title


def dmesg_json(zone: Zone, record: DmesgRecord) -> dict[str, Any]:
    """A record for ``--json``."""
    return {
        "zone": zone.number,
        **record._asdict(),
        "text": decoded(record.text),
    }


# Priorities of Android's log, from 0.
_PRIORITIES = "??VDIWEFS"


def logcat_line(message: LogcatMessage) -> str:
    """A message as Android's logcat prints it, but for the time, in seconds."""
    level = _PRIORITIES[message.priority]
    text = text_of(message.message.rstrip(b"\n"))
    return (
        f"{message.seconds}.{message.nanoseconds:09} {message.pid:5} {message.tid:5} "
        f"{level} {printable(decoded(message.tag))}: {text}"
    )


def logcat_json(message: LogcatMessage) -> dict[str, Any]:
    """A message for ``--json``."""
    return {
        **message._asdict(),
        "tag": decoded(message.tag),
        "message": decoded(message.message),
    }


def trace_notes(trace: Trace) -> Iterator[str]:
    """What a trace lacks."""
    if trace.lost_total:
        gaps = f"{len(trace.lost)} gaps" if len(trace.lost) > 1 else "one gap"
        yield f"{trace.lost_total} records lost, in {gaps}"
    torn = int(trace.records["torn"].sum())
    if torn:
        yield f"{torn} records torn or late"


def no_records(present: Iterable[int]) -> str:
    """That records asked for are not there; *present*: boots, the newest first."""
    boots = ", ".join(map(str, present))
    has = f"it has boots {boots}" if boots else "it is empty"
    return f"no such records in the function trace; {has}"


def record_count(shown: FtraceArray, records: FtraceArray) -> str:
    """How many records of a boot there are, and are shown."""
    count = len(select_boot(records, int(shown["boot"][0])))
    return f"{count} records" + (f", the last {len(shown)}" * (len(shown) < count))


def select_boot(records: FtraceArray, boot: int | None) -> FtraceArray:
    """Records of one boot, 0 for the newest and -1 before; all if it is None."""
    return records if boot is None else records[records["boot"] == boot]


def trace_json(
    records: FtraceArray,
    fmt: FtraceFormat,
    kaslr_offset: int = 0,
    *,
    function: Name | None = None,
    caller: Name | None = None,
) -> Iterator[str]:
    """
    Each record as a JSON object.

    :param function: names ip; left out if there is none.
    :param caller: names parent_ip.
    """
    for start in range(0, len(records), 1 << 16):
        part = records[start : start + (1 << 16)]
        columns = zip(
            part["boot"].tolist(),
            part["zone"].tolist(),
            part["cpu"].tolist(),
            part["counter"].tolist(),
            addresses(part["ip"], fmt, kaslr_offset).tolist(),
            addresses(part["parent_ip"], fmt, kaslr_offset).tolist(),
            part["torn"].tolist(),
        )
        for boot, zone, cpu, counter, ip, parent, torn in columns:
            record = {
                "boot": boot,
                "zone": zone,
                "cpu": cpu,
                "counter": counter,
                "ip": ip,
                "parent_ip": parent,
                "torn": torn,
            }
            if function is not None and caller is not None:
                record.update(function=function(ip), caller=caller(parent))
            yield json_line(record)


def boots(records: FtraceArray) -> list[int]:
    """The boots that there are records of, the newest first."""
    found: list[int] = np.unique(records["boot"]).tolist()
    return found[::-1]
