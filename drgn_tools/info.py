# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a dump is, without debugging information."""

from __future__ import annotations

import datetime

from drgn_tools.codecs import BY_FLAG
from drgn_tools.errors import DumpError
from drgn_tools.formats import kdump
from drgn_tools.kernel_log import log_records, panic_line
from drgn_tools.text import binary_size
from drgn_tools.vmcore import Vmcore, open_vmcore
from drgn_tools.vmcoreinfo import if_sound


def describe(path: str) -> list[tuple[str, str]]:
    """
    Labels and values that tell what a dump is.

    :raises DumpError: if it is no dump.
    """
    with open_vmcore(path, part=True) as vmcore:
        return [
            ("dump", path),
            ("format", _format(vmcore)),
            ("size", binary_size(vmcore.size)),
            *_kernel(vmcore),
            ("CPUs", str(vmcore.nr_cpus)),
            ("memory", _memory(vmcore)),
            *_filter(vmcore),
            ("panic", _panic(vmcore)),
        ]


def _format(vmcore: Vmcore) -> str:
    notes = []
    if vmcore.header is not None:
        notes.append(f"version {vmcore.header.version}")
    if vmcore.lost_bytes:
        notes.append(f"cut short by {binary_size(vmcore.lost_bytes)}")
    if vmcore.part:
        notes.append(
            f"page frames {vmcore.part.pfn} to {vmcore.part.end_pfn} of a split dump"
        )
    return ", ".join([vmcore.format, *notes])


def _kernel(vmcore: Vmcore) -> list[tuple[str, str]]:
    info = vmcore.vmcoreinfo
    release = info.text("OSRELEASE") if info else None
    _, nodename, known_release, version, machine, _ = (
        field.decode(errors="replace") for field in vmcore.utsname()
    )
    # A live system has not crashed; QEMU's dumps are of one.
    crashed = if_sound(lambda: info.decimal("CRASHTIME")) if info else None
    if not crashed and vmcore.header is not None:
        crashed = vmcore.header.timestamp
    time = "unknown: the kernel had not crashed or did not say"
    if crashed:
        try:
            date = datetime.datetime.fromtimestamp(crashed, datetime.timezone.utc)
            time = f"{date:%Y-%m-%d %H:%M:%S} UTC"
        except (OverflowError, ValueError, OSError):
            time = f"damaged ({crashed})"
    rows = [
        ("release", release or known_release or "unknown: no VMCOREINFO"),
        ("version", version),
        ("machine", machine),
        ("node", nodename),
        ("crash time", time),
    ]
    return [(label, value) for label, value in rows if value]


def _memory(vmcore: Vmcore) -> str:
    pages = sum(run.end_pfn - run.pfn for run in vmcore.ram_runs)
    return f"{binary_size(pages * vmcore.page_size)} in {len(vmcore.ram_runs)} ranges"


def _filter(vmcore: Vmcore) -> list[tuple[str, str]]:
    header = vmcore.header
    if header is None:
        return [("dump level", "0 (not filtered)"), ("compression", "none")]
    names = [codec.name for flag, codec in BY_FLAG.items() if header.status & flag]
    level = str(header.dump_level)
    if header.status & kdump.STATUS_INCOMPLETE:
        level += ", incomplete: pages are missing"
    return [
        ("dump level", level),
        ("compression", ", ".join(names) or "none"),
        ("pages", f"{vmcore.dumped_pages} dumped"),
    ]


def _panic(vmcore: Vmcore) -> str:
    info = vmcore.vmcoreinfo
    if info is None:
        return "unknown: no VMCOREINFO"
    faults: list[str] = []
    try:
        records = list(log_records(info, vmcore.kernel, warn=faults.append))
    except DumpError as error:
        return f"unknown: the log cannot be read ({error})"
    line = panic_line(records)
    if line is None and faults:
        return f"none in what can be read of the log ({faults[0]})"
    return line or "none in the log"
