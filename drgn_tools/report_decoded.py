# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What a report says of what helpers decode
-----------------------------------------

pstore, zram, oprofile and the trace buffers, those that a kernel has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from drgn_tools.export.report_page import Chain, Flame, Frame, Hint, Lines, Table
from drgn_tools.report_draft import (
    Draft,
    Dump,
    command,
    opened,
    reason,
    utc,
)
from drgn_tools.text import binary_size, decoded, plural

if TYPE_CHECKING:
    from drgn import Object, Program

    from drgn_tools.ftrace import FtraceEvent
    from drgn_tools.ftrace_memory import TraceBuffer
    from drgn_tools.oprofile import OprofilePlace, OprofileSample
    from drgn_tools.ring_buffer import RingBufferStats

# Devices that a command is named for.
_HINTS = 8
# Records of function traces and events of each buffer.
_TRACE_RECORDS = 200
_EVENTS = 100
# Events of all buffers that are looked through for these; some seconds.
_MOST_EVENTS = 500_000


# --- pstore


def pstore_section(dump: Dump, draft: Draft) -> None:
    """Add what pstore keeps: zones, records, function traces."""
    from drgn_tools import pstore

    prog = opened(dump)
    zones = list(draft.some(pstore.for_each_pstore_zone(prog), "zones", 4096))
    for zone in zones:
        for why in (zone.live_error, zone.old_log_error):
            if why:
                draft.lack(zone.label, why)
    used = [z for z in zones if z.state != "empty" or z.old_log is not None]
    if used:
        draft.add(
            Table(
                "Zones, but for those that are empty",
                ("ZONE", "TYPE", "ADDRESS", "SIZE", "USED", "WRAPPED", "STATE", "OLD"),
                [
                    (
                        zone.label,
                        zone.kind,
                        f"{zone.address:#x}",
                        binary_size(zone.size),
                        binary_size(zone.used) if zone.live is not None else "-",
                        "yes" if zone.wrapped else "no",
                        zone.state,
                        "-" if zone.old_log is None else binary_size(len(zone.old_log)),
                    )
                    for zone in used
                ],
                frozenset((2, 3, 4, 7)),
            )
        )
    count = 0
    for record in draft.some(pstore.for_each_pstore_record(prog), "records", 1000):
        count += 1
        if record.error:
            draft.lack(record.label, record.error)
        draft.add(_pstore_lines(record))
    draft.summary = (
        f"{plural(len(zones), 'zone')}, {len(zones) - len(used)} of them empty; "
        f"{plural(count, 'record')}"
    )
    if any(zone.kind == "ftrace" for zone in zones):
        _pstore_trace(prog, draft)
    draft.add(Hint("All of it:", command(dump, "pstore", "--boot", "all")))


def _pstore_lines(record: Any) -> Lines:
    title = f"{record.kind}: {record.label}, {record.source}"
    if record.reason:
        title += f", {record.reason}#{record.oops_count} part {record.part}"
    if record.seconds:
        title += f", {utc(record.seconds)}"
    lines = decoded(record.text).split("\n")
    if not lines[-1]:
        del lines[-1]
    return Lines(f"{title}; {plural(len(lines), 'line')}", lines, folded=True)


def _pstore_trace(prog: Program, draft: Draft) -> None:
    import contextlib
    import io

    from drgn_tools import pstore

    counts: Counter[tuple[int, int]] = Counter()
    records = pstore.for_each_pstore_ftrace(prog)
    for record in draft.some(records, "records of the function trace", 1 << 24):
        counts[record.boot, record.cpu] += 1
    if not counts:
        return
    draft.summary += f", {plural(sum(counts.values()), 'function call')}"
    draft.add(
        Table(
            "Function trace: records of each boot (0 is the newest) and CPU",
            ("BOOT", "CPU", "RECORDS"),
            [
                (str(boot), str(cpu), str(number))
                for (boot, cpu), number in sorted(
                    counts.items(), key=lambda item: (-item[0][0], item[0][1])
                )
            ],
            frozenset((0, 1, 2)),
        )
    )
    out, said = io.StringIO(), io.StringIO()
    # What it says there of missing records belongs on the page.
    with contextlib.redirect_stderr(said):
        pstore.pstore_ftrace(prog, last=_TRACE_RECORDS, file=out)
    for line in said.getvalue().splitlines():
        draft.note(line.removeprefix("pstore: "))
    lines = out.getvalue().splitlines()
    draft.add(
        Lines(f"Function trace: the newest {plural(len(lines), 'record')}", lines)
    )


# --- zram


def zram_section(dump: Dump, draft: Draft) -> None:
    """Add the zram devices, and what CPUs compressed last."""
    from drgn_tools import zram

    prog = opened(dump)
    rows = []
    streams: list[tuple[str, ...]] = []
    for device in draft.some(zram.for_each_zram(prog), "devices", 1000):
        name = zram.device_name(device)
        try:
            rows.append(_zram_row(zram.zram_device(device)))
            if rows[-1][1] != "-":
                streams += _stream_rows(name, device)
        except Exception as error:
            draft.lack(name, reason(error))
    if not rows:
        draft.summary = "" if draft.lacking else "no zram devices"
        return
    used = sum(row[1] != "-" for row in rows)
    draft.summary = f"{plural(len(rows), 'device')}, {used} set up"
    head = "NAME DISKSIZE ALGORITHM DATA COMPR USED RATIO SAME HUGE WRITTEN BACKING"
    draft.add(Table("Devices", head.split(), rows, frozenset((1, *range(3, 10)))))
    if streams:
        draft.add(
            Table(
                "What each CPU compressed last",
                ("DEVICE", "CPU", "ALGORITHM", "STATE", "SIZE", "WRITER", "PAGE"),
                streams,
                frozenset((1, 4)),
                frozenset(i for i, row in enumerate(streams) if row[5] != "-"),
            )
        )
    in_use = [row[0] for row in rows if row[1] != "-"]
    for name in in_use[:_HINTS]:
        words = ("zram", "--device", name, "-o", f"{name}.img")
        draft.add(Hint(f"What is in {name}, as an image:", command(dump, *words)))
    draft.add(Hint("All counters:", command(dump, "zram", "--json")))


def _zram_row(device: Any) -> tuple[str, ...]:
    return (
        device.name,
        binary_size(device.disksize) if device.disksize else "-",
        ", ".join(device.algorithms) or "-",
        binary_size(device.stored),
        binary_size(device.compressed),
        binary_size(device.used),
        "-" if device.ratio is None else f"{device.ratio:.2f}",
        str(device.same),
        str(device.huge),
        str(device.written_back),
        device.backing or "-",
    )


def _stream_rows(name: str, device: Object) -> Iterator[tuple[str, ...]]:
    from drgn_tools import zram

    for stream in islice(zram.for_each_zram_stream(device), 4096):
        start = (stream.data or b"")[:48]
        yield (
            name,
            "-" if stream.cpu is None else str(stream.cpu),
            stream.algorithm,
            stream.state,
            str(stream.size or "-"),
            stream.writer or "-",
            "".join(chr(b) if 32 <= b < 127 else "." for b in start)
            or stream.note
            or "-",
        )


# --- oprofile


def _kind(place: OprofilePlace) -> str:
    image = place.image
    if image in ("vmlinux", "[kernel]", "[xen]") or image.endswith(".ko"):
        return "kernel"
    return "user"


def _chain(sample: OprofileSample) -> Chain:
    places = [sample.place, *sample.trace]
    # A kernel's trace may begin with where the sample was taken.
    if sample.trace and sample.trace[0].address == sample.place.address:
        del places[1]
    name = sample.comm or sample.program.rpartition("/")[2]
    if not name:
        name = "idle" if sample.pid == 0 else "?"
    task = f"{name}[{sample.pid}]" if sample.pid >= 0 else "?"
    frames = [Frame(place.symbol or place.image, _kind(place)) for place in places]
    return (Frame(task, "task"), *reversed(frames))


def oprofile_section(dump: Dump, draft: Draft) -> None:
    """Add a flame graph of the samples, functions and counters."""
    from drgn_tools import oprofile
    from drgn_tools.oprofile_text import count, stats_lines

    prog = opened(dump)
    stats = list(stats_lines(oprofile.get_oprofile_stats(prog)))
    chains: Counter[Chain] = Counter()
    functions: Counter[tuple[str, ...]] = Counter()
    samples = oprofile.for_each_oprofile_sample(prog, note=draft.note)
    columns = ("image", "symbol")
    try:
        for sample in draft.some(samples, "samples", 1 << 22):
            chains[_chain(sample)] += 1
            functions.update(count((sample,), columns))
    except Exception as error:
        draft.note(reason(error))
    total = sum(chains.values())
    draft.summary = f"{plural(total, 'sample')} that nobody had read"
    if total:
        callers = any(len(chain) > 2 for chain in chains)
        draft.add(
            Flame(
                f"{plural(total, 'sample')} by task"
                + (", caller and function" if callers else " and function")
                + "; the wider, the more",
                chains,
            ),
            Table(
                "Functions",
                ("SAMPLES", "%", "FUNCTION", "IMAGE"),
                [
                    (str(number), f"{100 * number / total:.2f}", symbol, image)
                    for (image, symbol), number in functions.most_common(200)
                ],
                frozenset((0, 1)),
            ),
        )
    draft.add(
        Lines("Counters and settings", stats, folded=True),
        Hint("Each sample:", command(dump, "oprofile", "--samples")),
    )


# --- trace buffers


def trace_section(dump: Dump, draft: Draft) -> None:
    """Add the trace buffers: counters, and the newest events."""
    from drgn_tools.ftrace import for_each_ftrace_event
    from drgn_tools.ftrace_memory import trace_buffers

    prog = opened(dump)
    buffers = trace_buffers(prog)
    rows: list[tuple[str, ...]] = []
    events: list[Lines] = []
    unread, left = 0, _MOST_EVENTS
    for buffer in draft.some(buffers, "instances", 1000):
        name = buffer.name or "(the kernel's own)"
        try:
            stats = _stats(buffer)
            count = sum(each.unread for each in stats)
            unread += count
            left -= count
            spans = _spans(buffer, draft) if left >= 0 else {}
            rows += [_cpu_row(name, each, spans.get(each.cpu)) for each in stats]
            if left < 0:
                draft.lack(name, "it has too many events to look for the newest")
                continue
            last = [
                line
                for event in for_each_ftrace_event(
                    prog, buffer.name, last=_EVENTS, note=draft.note
                )
                for line in _event_lines(event, buffer.in_ns)
            ]
        except Exception as error:
            draft.lack(name, reason(error))
            continue
        if last:
            what = f"tracer {buffer.tracer}, clock {buffer.clock}"
            caption = f"{name}: the newest events ({what})"
            events.append(Lines(caption, last, folded=bool(buffer.name)))
    draft.summary = (
        f"{plural(len(buffers), 'buffer')}, {plural(unread, 'event')} to read"
    )
    if not unread and not events:
        # Every kernel has the buffer.
        return
    head = "INSTANCE CPU UNREAD OVERRUN DROPPED READ BYTES OLDEST NEWEST"
    draft.add(
        Table("Buffers of each CPU", head.split(), rows, frozenset(range(1, 9))),
        *events,
        Hint("All events:", command(dump, "ftrace")),
    )


def _stats(buffer: TraceBuffer) -> list[RingBufferStats]:
    # Of the CPUs that have recorded something.
    from drgn_tools.ring_buffer import ring_buffer_cpus, ring_buffer_stats

    every = (
        ring_buffer_stats(buffer.buffer, cpu) for cpu in ring_buffer_cpus(buffer.buffer)
    )
    return [stats for stats in every if stats.entries]


def _spans(buffer: TraceBuffer, draft: Draft) -> dict[int, tuple[str, str]]:
    # Times of each CPU's oldest and newest event.
    from drgn_tools.ring_buffer import for_each_ring_buffer_event

    spans: dict[int, tuple[int, int]] = {}
    events = for_each_ring_buffer_event(buffer.buffer, note=lambda text: None)
    for event in draft.some(events, "events", 2 * _MOST_EVENTS):
        oldest, _ = spans.get(event.cpu, (event.time, 0))
        spans[event.cpu] = oldest, event.time
    return {
        cpu: (_clock(oldest, buffer.in_ns), _clock(newest, buffer.in_ns))
        for cpu, (oldest, newest) in spans.items()
    }


def _cpu_row(
    name: str, stats: RingBufferStats, span: tuple[str, str] | None
) -> tuple[str, ...]:
    return (
        name,
        str(stats.cpu),
        str(stats.unread),
        str(stats.overrun),
        str(stats.dropped_events),
        str(stats.read),
        str(stats.entries_bytes),
        *(span or ("-", "-")),
    )


def _clock(time: int, in_ns: bool) -> str:
    return f"{time / 1e9:.6f}" if in_ns else str(time)


def _event_lines(event: FtraceEvent, in_ns: bool) -> Iterator[str]:
    # Of a stack, there are several.
    first, *more = event.text.split("\n")
    who = f"{event.comm}-{event.pid} [{event.cpu:03}]"
    yield f"{who} {_clock(event.time, in_ns)}: {first}"
    yield from more
