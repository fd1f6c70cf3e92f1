# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a dump is, without debugging information."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import NamedTuple

from drgn_tools.codecs import BY_FLAG
from drgn_tools.errors import DumpError
from drgn_tools.formats import kdump
from drgn_tools.kernel_log import log_records, panic_line
from drgn_tools.last_words import Death, log_text, read_death
from drgn_tools.text import binary_size, plural
from drgn_tools.vmcore import Vmcore, open_vmcore
from drgn_tools.vmcoreinfo import if_sound


class DumpInfo(NamedTuple):
    """What a dump is. None is what it does not tell."""

    dump: str
    """Its path."""
    format: str
    format_version: int | None
    """Of a kdump-compressed file's header."""
    size: int
    """Bytes of the file."""
    lost_bytes: int
    """How much of the data the file should hold and does not."""
    part: tuple[int, int] | None
    """First page frame, and the one behind the last, of a part of a split dump."""
    release: str | None
    version: str | None
    machine: str | None
    node: str | None
    crash_time: int | None
    """In seconds since the epoch. None of a kernel that had not crashed."""
    cpus: int
    """Whose registers are in the dump."""
    memory: int
    """Bytes of memory that the machine had, as far as the dump tells."""
    memory_ranges: int
    dump_level: int
    """What was left out, as the header says; 0 of files that are not filtered."""
    incomplete: bool
    """Pages are missing that the dump level does not leave out."""
    compression: tuple[str, ...]
    pages: int | None
    """Pages with data in a kdump-compressed file."""
    uptime: int | None
    """In seconds, by the last line of the log."""
    began_with: str | None
    """The first line of what led to the panic, unless that is the panic itself."""
    task: str | None
    """Name of the task that died, by the log, as what follows."""
    task_pid: int | None
    task_cpu: int | None
    taint: str | None
    panic: str | None
    """The line of the kernel log that says why the kernel died."""
    no_panic: str | None
    """Why there is no such line."""


def read_info(path: str) -> DumpInfo:
    """
    Read what a dump is.

    :raises DumpError: if it is no dump.
    """
    with open_vmcore(path, part=True) as vmcore:
        info, header = vmcore.vmcoreinfo, vmcore.header
        release = info.text("OSRELEASE") if info else None
        _, nodename, known_release, version, machine, _ = (
            field.decode(errors="replace") or None for field in vmcore.utsname()
        )
        # A live system has not crashed; QEMU's dumps are of one.
        crashed = if_sound(lambda: info.decimal("CRASHTIME")) if info else None
        if not crashed and header is not None:
            crashed = header.timestamp
        status = header.status if header else 0
        panic, no_panic, death = _panic(vmcore)
        return DumpInfo(
            dump=path,
            format=vmcore.format,
            format_version=header.version if header else None,
            size=vmcore.size,
            lost_bytes=vmcore.lost_bytes,
            part=(vmcore.part.pfn, vmcore.part.end_pfn) if vmcore.part else None,
            release=release or known_release,
            version=version,
            machine=machine,
            node=nodename,
            crash_time=crashed or None,
            cpus=vmcore.nr_cpus,
            memory=vmcore.page_size
            * sum(run.end_pfn - run.pfn for run in vmcore.ram_runs),
            memory_ranges=len(vmcore.ram_runs),
            dump_level=header.dump_level if header else 0,
            incomplete=bool(status & kdump.STATUS_INCOMPLETE),
            compression=tuple(
                codec.name for flag, codec in BY_FLAG.items() if status & flag
            ),
            pages=vmcore.dumped_pages if header else None,
            panic=panic,
            no_panic=no_panic,
            **death._asdict(),
        )


def _panic(vmcore: Vmcore) -> tuple[str | None, str | None, Death]:
    info = vmcore.vmcoreinfo
    if info is None:
        return None, "unknown: no VMCOREINFO", read_death([], None)
    faults: list[str] = []
    try:
        records = list(log_records(info, vmcore.kernel, warn=faults.append))
    except DumpError as error:
        why = f"unknown: the log cannot be read ({error})"
        return None, why, read_death([], None)
    panic = panic_line(records)
    lines = [line for record in records for line in log_text(record)]
    death = read_death(lines, panic)
    if panic is not None:
        return panic, None, death
    if faults:
        return None, f"none in what can be read of the log ({faults[0]})", death
    return None, "none in the log", death


def describe(path: str) -> list[tuple[str, str]]:
    """
    Labels and values that tell what a dump is.

    :raises DumpError: if it is no dump.
    """
    return list(as_text(read_info(path)))


def as_text(info: DumpInfo) -> Iterator[tuple[str, str]]:
    """Labels and values for people."""
    yield "dump", info.dump
    yield "format", ", ".join([info.format, *_notes(info)])
    yield "size", binary_size(info.size)
    yield "release", info.release or "unknown: no VMCOREINFO"
    for label, value in (
        ("version", info.version),
        ("machine", info.machine),
        ("node", info.node),
    ):
        if value:
            yield label, value
    yield "crash time", _time(info.crash_time)
    yield from _death(info)
    yield "CPUs", str(info.cpus)
    ranges = plural(info.memory_ranges, "range")
    yield "memory", f"{binary_size(info.memory)} in {ranges}"
    if info.format_version is None:
        yield "dump level", "0 (not filtered)"
    else:
        why = ", incomplete: pages are missing" if info.incomplete else ""
        yield "dump level", f"{info.dump_level}{why}"
    yield "compression", ", ".join(info.compression) or "none"
    if info.pages is not None:
        yield "pages", f"{info.pages} dumped"
    yield "panic", info.panic or info.no_panic or ""


def _death(info: DumpInfo) -> Iterator[tuple[str, str]]:
    if info.uptime is not None:
        yield "uptime", f"{datetime.timedelta(seconds=info.uptime)} (last log line)"
    if info.began_with is not None:
        yield "began with", info.began_with
    if info.task is not None:
        yield "task", f"{info.task}[{info.task_pid}] on CPU {info.task_cpu}"
    if info.taint is not None:
        yield "taint", info.taint


def _notes(info: DumpInfo) -> Iterator[str]:
    if info.format_version is not None:
        yield f"version {info.format_version}"
    if info.lost_bytes:
        yield f"cut short by {binary_size(info.lost_bytes)}"
    if info.part:
        yield f"page frames {info.part[0]} to {info.part[1]} of a split dump"


def _time(crashed: int | None) -> str:
    if crashed is None:
        return "unknown: the kernel had not crashed or did not say"
    try:
        date = datetime.datetime.fromtimestamp(crashed, datetime.timezone.utc)
    except (OverflowError, ValueError, OSError):
        return f"damaged ({crashed})"
    return f"{date:%Y-%m-%d %H:%M:%S} UTC"
