# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Persistent Storage
------------------

The ``drgn_tools.pstore`` module provides helpers for what the kernel keeps in memory
that survives a reboot: function traces, kernel logs of oopses and panics, console
output and messages of user space. It reads ramoops and pstore_zone (pstore_blk) of
live kernels and dumps, and of other backends what was mounted or written last.

The printing helpers' names need no import in ``drgn -e`` and in interactive sessions.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    NamedTuple,
    Union,
)

from drgn import Program
from drgn.helpers.common.prog import takes_program_or_default

from drgn_tools.errors import DumpError
from drgn_tools.printing import one_line, printing, say

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from drgn_tools import pstore_memory, pstore_records, ramoops, reed_solomon
    from drgn_tools.export import function_trace
    from drgn_tools.printing import File as _File

__all__ = (
    "for_each_pstore_ftrace",
    "for_each_pstore_record",
    "for_each_pstore_zone",
    "pstore_console",
    "pstore_dmesg",
    "pstore_export",
    "pstore_ftrace",
    "pstore_pmsg",
    "pstore_zones",
)

# numpy and the decoders are imported by those who need them: every drgn imports this.


class PstoreZone(NamedTuple):
    """A zone of persistent memory."""

    backend: str
    """ramoops or pstore_zone."""
    kind: str
    """dmesg, console, ftrace or pmsg."""
    number: int
    """Among those of its kind; of ftrace zones, the CPU if there are several."""
    label: str
    """As the kernel has it since 5.0, or made in that way."""
    address: int
    """Physical; with pstore_zone, of the buffer in the kernel's memory."""
    size: int
    """All of it, in bytes: header, data and parity."""
    buffer_size: int
    """What the ring has room for, in bytes."""
    ecc_size: int
    """Bytes of parity for each block, 0 without ECC."""
    state: str
    """What the header says: valid, empty, torn, invalid or unsigned; missing if the
    live region cannot be read."""
    start: int
    """In the ring: of the oldest byte if it has wrapped, else of the next one."""
    used: int
    """Bytes of the ring that are valid."""
    wrapped: bool
    """The ring is full: what was there before may be overwritten."""
    corrected_bytes: int
    """Corrected here in the live region."""
    bad_blocks: int
    """With more errors than can be corrected, here in the live region."""
    boot_corrected_bytes: int
    """The same, by the kernel when it booted, of what is now in ``old_log``."""
    boot_bad_blocks: int
    live: bytes | None
    """What is in the region, oldest first; None if it cannot be read."""
    live_error: str
    """Why not; empty if it can."""
    old_log: bytes | None
    """What was there when this kernel booted; None if there is none."""
    old_log_error: str
    """Why that cannot be read; empty if it can be or there is none."""


class PstoreFtraceRecord(NamedTuple):
    """One function call."""

    cpu: int
    """CPU that made it."""
    counter: int
    """The record's number, counted over all CPUs from 0 at boot; it is no time, and
    the kernel prints it as ``ts``."""
    ip: int
    """Address in the function, of the boot that recorded it; with kernels that
    store what does not depend on that, of this one."""
    parent_ip: int
    """Address in its caller, likewise."""
    zone: str
    """Label of the zone."""
    boot: int
    """0 for the newest boot that there are records of, -1 for the one before."""
    torn: bool
    """Whether it was cut short or came late: not to be trusted."""
    shift: int | None
    """What to add to the addresses to look them up in this kernel; None if it is not
    known where the kernel was in that boot."""


class PstoreRecord(NamedTuple):
    """A record that is text: a kernel log, console output or messages."""

    kind: str
    """dmesg, console or pmsg; of pstorefs also others."""
    source: str
    """live, old_log, pstorefs, big_oops_buf or psinfo->buf."""
    label: str
    """Of its zone, or its name in pstorefs."""
    seconds: int
    """Of a dmesg record: wall clock, since 1970; 0 if it does not say."""
    microseconds: int
    reason: str
    """Of a dmesg record: Panic, Oops, …"""
    oops_count: int
    """Of a dmesg record: of oopses since boot."""
    part: int
    algorithm: str
    """That it was compressed with, or none."""
    text: bytes
    """As in the kernel's own file, without a note on ECC."""
    error: str
    """Why that is not all; empty if it is."""
    boot: int | None = None
    """0 if it is of this kernel's boot, -1 if of an earlier one, None if unknown."""


def _printing(prog: Program, file: _File | None, work: Callable[[_File], None]) -> None:
    printing("pstore", prog, file, work)


def _note(text: str) -> None:
    say("pstore", text)


def _write_text(file: _File, data: bytes) -> None:
    from drgn_tools.text import decoded, verbatim

    binary = getattr(file, "buffer", None)
    if binary is None:
        file.write(decoded(verbatim(data, file)))
        return
    file.flush()  # type: ignore[attr-defined]
    binary.write(verbatim(data, file))


def _ecc(ecc: tuple[int, int, int, int] | None) -> reed_solomon.Ecc | None:
    from drgn_tools import reed_solomon

    if ecc is None:
        return None
    size, block, poly, bits = ecc
    return reed_solomon.Ecc(size, block, poly, bits)


def _read_live(
    prog: Program, zone: pstore_memory.Zone
) -> tuple[ramoops.Zone | None, str]:
    from drgn_tools import pstore_memory, ramoops

    if zone.live is None:
        return None, zone.live_error
    order = pstore_memory.byteorder(prog)
    kind: Any = zone.kind if zone.kind in _KINDS else "unknown"
    try:
        if zone.backend == "pstore_zone":
            live = ramoops.read_psz_buffer(
                zone.live, kind=kind, number=zone.number, byteorder=order
            )
            return live, zone.live_error
        ecc = _ecc(zone.ecc)
        return (
            ramoops.read_zone(
                zone.live,
                size=zone.size,
                ecc=ecc,
                kind=kind,
                number=zone.number,
                address=zone.address,
                staging=_is_staging(zone, ecc),
                byteorder=order,
            ),
            zone.live_error,
        )
    except DumpError as error:
        return None, str(error)


def _is_staging(zone: pstore_memory.Zone, ecc: reed_solomon.Ecc | None) -> bool:
    # Whether the kernel has room for data as 3.4 reckoned it.
    from drgn_tools import ramoops

    try:
        return (
            ecc is not None
            and ramoops.ring_size(zone.size, ecc) != zone.buffer_size
            and ramoops.ring_size(zone.size, ecc, staging=True) == zone.buffer_size
        )
    except DumpError:
        return False


def _read_old(prog: Program, zone: pstore_memory.Zone) -> tuple[bytes | None, str]:
    from drgn_tools import pstore_memory, ramoops

    if zone.old is None or zone.backend != "pstore_zone":
        return zone.old, zone.old_error
    order = pstore_memory.byteorder(prog)
    kind: Any = zone.kind
    try:
        old = ramoops.read_psz_buffer(
            zone.old, kind=kind, number=zone.number, byteorder=order, rotated=True
        )
    except DumpError as error:
        return None, str(error)
    return old.content, zone.old_error


_KINDS = ("dmesg", "console", "ftrace", "pmsg")


def _live_error(live: ramoops.Zone | None, why: str) -> str:
    if not why and live is not None and live.state in ("invalid", "unsigned"):
        return f"its header is {live.state}"
    return why


def _zone(prog: Program, zone: pstore_memory.Zone) -> PstoreZone:
    live, why = _read_live(prog, zone)
    old, old_why = _read_old(prog, zone)
    why = _live_error(live, why)
    return PstoreZone(
        zone.backend,
        zone.kind,
        zone.number,
        zone.label,
        zone.address,
        zone.size,
        zone.buffer_size,
        zone.ecc[0] if zone.ecc else 0,
        live.state if live else "missing",
        live.start if live else 0,
        live.used if live else 0,
        live.wrapped if live else False,
        live.corrected_bytes if live else 0,
        live.bad_blocks if live else 0,
        zone.corrected_bytes,
        zone.bad_blocks,
        live.content if live else None,
        why,
        old,
        old_why,
    )


def _read(prog: Program) -> pstore_memory.Pstore:
    from drgn import ProgramFlags

    from drgn_tools import pstore_memory

    if prog.flags & ProgramFlags.IS_LIVE:
        return pstore_memory.read_pstore(prog)
    # Of a dump, once: each look at it may be megabytes.
    pstore = prog.cache.get("drgn_tools_pstore")
    if not isinstance(pstore, pstore_memory.Pstore):
        pstore = prog.cache["drgn_tools_pstore"] = pstore_memory.read_pstore(prog)
    return pstore


@takes_program_or_default
def for_each_pstore_zone(prog: Program) -> Iterator[PstoreZone]:
    """
    Iterate over the zones of ramoops and pstore_zone.

    :raises DumpError: if this kernel has no pstore, or it cannot be found.
    """
    for zone in _read(prog).zones:
        yield _zone(prog, zone)


@takes_program_or_default
def pstore_zones(prog: Program, *, file: _File | None = None) -> None:
    """
    Print the zones of ramoops and pstore_zone: where they are, how full, what of
    them can be read and why the rest cannot.

    LIVE is the region itself as it is in memory now, which may still have what earlier
    boots wrote; OLD_LOG is how many bytes were in it when this kernel booted. ECC is
    the number of parity bytes for each block, corrected bytes and bad blocks those of
    the live region, then those that this kernel found at boot.

    :param file: File to print to. Defaults to :data:`sys.stdout`.
    :raises DumpError: if this kernel has no pstore, or it cannot be found.
    """

    def work(out: _File) -> None:
        from drgn_tools.older_drgn import print_table
        from drgn_tools.text import printable

        pstore = _read(prog)
        zones = [_zone(prog, zone) for zone in pstore.zones]
        head = "ZONE TYPE NUMBER ADDRESS SIZE BUFFER START USED WRAPPED ECC CORRECTED "
        head += "BAD LIVE OLD_LOG"
        rows: list[list[Any]] = [head.split()]
        for zone in zones:
            seen = zone.live is not None
            rows.append(
                [
                    printable(zone.label),
                    zone.kind,
                    zone.number,
                    f"{zone.address:#x}",
                    zone.size,
                    zone.buffer_size,
                    zone.start if seen else "-",
                    zone.used if seen else "-",
                    ("yes" if zone.wrapped else "no") if seen else "-",
                    zone.ecc_size or "-",
                    f"{zone.corrected_bytes}+{zone.boot_corrected_bytes}",
                    f"{zone.bad_blocks}+{zone.boot_bad_blocks}",
                    zone.state,
                    "-" if zone.old_log is None else len(zone.old_log),
                ]
            )
        if zones:
            print_table(rows, out)
        else:
            out.write(f"backend {printable(pstore.backend)}: it has no zones\n")
        for text in _absences(_errors(zones), pstore.notes):
            out.write(printable(text) + "\n")

    _printing(prog, file, work)


def _errors(zones: list[PstoreZone]) -> Iterator[tuple[str, str]]:
    for zone in zones:
        yield zone.label, zone.live_error
        yield zone.label, zone.old_log_error


def _absences(
    errors: Iterable[tuple[str, str]], notes: tuple[str, ...] = ()
) -> list[str]:
    # What is missing, each reason once with the zones that it holds for.
    reasons: dict[str, list[str]] = {}
    for label, why in errors:
        if why:
            labels = reasons.setdefault(why, [])
            if label not in labels:
                labels.append(label)
    lines = []
    for why, labels in reasons.items():
        names = ", ".join(labels[:8])
        if len(labels) > 8:
            names += f" and {len(labels) - 8} more"
        lines.append(f"{names}: {why}")
    return [*lines, *notes]


# Records that are turned into Python's own, or into text, at once.
_LINES = 1 << 14


class _Trace(NamedTuple):
    # Merged function traces, and what is needed to name addresses.
    records: pstore_records.FtraceArray
    fmt: pstore_records.FtraceFormat
    labels: list[str]
    shifts: dict[int, int | None]
    # By boot, the newest first: what to add for this kernel's addresses.
    this: bool
    # The newest boot is this kernel's.
    unread: bool
    # Of some zone, the region or its end cannot be read.
    offset: int
    lost: dict[int, int]
    # By boot, as far as they are listed.
    gaps: tuple[pstore_records.Lost, ...]
    lost_total: int
    notes: list[str]


def _ftrace_format(
    prog: Program, contents: list[bytes], version: tuple[int, int, int] | None
) -> pstore_records.FtraceFormat:
    from drgn import Architecture

    from drgn_tools import pstore_memory, pstore_records

    order = pstore_memory.byteorder(prog)
    try:
        record = prog.type("struct pstore_ftrace_record")
    except LookupError:
        fmt = pstore_records.guess_format(contents, version, order)
        return fmt._replace(neutral=fmt.neutral or _is_neutral(prog))
    word = pstore_memory.word_size(prog)
    mask = 0
    # Linux kernel commit fbccdeb8d77d ("pstore: Add ftrace timestamp counter") (in
    # v4.10) put ts where cpu was.
    stamped = record.has_member("ts")
    arm = prog.platform is not None and prog.platform.arch == Architecture.ARM
    if arm and not record.has_member("cpu"):
        # PSTORE_CPU_IN_IP: a macro, so what it depends on must do. Without cpu and
        # ts it is certain.
        try:
            cpus = prog["__per_cpu_offset"].type_.length or 0
        except (LookupError, AttributeError):
            cpus = 0
        if cpus <= 2 and (cpus or not stamped):
            mask = 1
        elif (cpus <= 4 and (cpus or not stamped)) or not stamped:
            mask = 3
    neutral = word == 8 and stamped and _is_neutral(prog)
    return pstore_records.FtraceFormat(word, stamped, mask, neutral, order)


def _is_neutral(prog: Program) -> bool:
    # Records hold addresses that do not depend on KASLR since a kernel between 6.12
    # and 7.2, where decode_ip() came to be; if pstore is a module, it only returns
    # what it is given.
    from drgn_tools.kernel_symbols import kernel_symbols
    from drgn_tools.pstore_memory import has_debug_info

    try:
        address = prog.function("decode_ip").address_
    except LookupError:
        if has_debug_info(prog):
            return False
        address = kernel_symbols(prog).kallsyms.get("decode_ip")
    # Without CONFIG_PSTORE_FTRACE, it is empty and inlined.
    if address is None:
        return False
    found = kernel_symbols(prog).find(address)
    return found is None or not found.module


def _whole_records(content: bytes, size: int) -> bytes:
    # In front is what is left of an overwritten one.
    return content[len(content) % size :]


# Records at the start of a region that are looked for in old_log: the first may be
# damaged.
_TRIES = 16


def _overlap(earlier: bytes, content: bytes, size: int) -> int | None:
    # Where in old_log the region's content begins.
    for number in range(_TRIES):
        begin = number * size
        key = content[begin : begin + 4 * size]
        if not key:
            break
        at = earlier.find(key)
        while at >= 0:
            if at % size == 0 and at >= begin:
                return at - begin
            at = earlier.find(key, at + 1)
    return None


def _zone_ftrace(
    old: bytes | None,
    live: ramoops.Zone | None,
    fmt: pstore_records.FtraceFormat,
    number: int,
    cpu: int | None,
) -> tuple[pstore_records.FtraceArray, bool | None]:
    # A zone's records, and whether the last of them are of this boot, if known:
    # since 4.10 the region is not cleared at boot, so that it begins with what is
    # in old_log, or with what of that is not overwritten yet.
    import numpy as np

    from drgn_tools.pstore_records import decode_ftrace

    size = fmt.size
    earlier = _whole_records(old or b"", size)
    content, missing = (live.content, live.missing) if live is not None else (b"", 0)
    if not earlier:
        records = decode_ftrace(content, fmt, zone=number, cpu=cpu, missing=missing)
        return records, None
    content = content[(len(content) + missing) % size :]
    at = _overlap(earlier, content, size)
    if at is not None:
        content = content[len(earlier) - at :]
    before = decode_ftrace(earlier, fmt, zone=number, cpu=cpu)
    if not content:
        return before, False
    after = decode_ftrace(content, fmt, zone=number, cpu=cpu, missing=missing)
    if len(after):
        before["boot"] += after["boot"].min() - 1
    return np.concatenate([before, after]), bool(len(after))


def _trace(prog: Program) -> _Trace:
    from drgn_tools import pstore_memory, pstore_records

    pstore = _read(prog)
    zones = [zone for zone in pstore.zones if zone.kind == "ftrace"]
    notes = list(pstore.notes)
    lives, olds, errors = [], [], []
    for zone in zones:
        live, why = _read_live(prog, zone)
        old, old_why = _read_old(prog, zone)
        lives.append(live)
        olds.append(old)
        errors += [(zone.label, _live_error(live, why)), (zone.label, old_why)]
    notes += _absences(errors)
    contents = [live.content for live in lives if live is not None and live.content]
    contents += [old for old in olds if old]
    if not contents and not zones:
        raise pstore_memory.PstoreError(
            "this kernel's pstore has no function trace: no zone is for one"
        )
    version = next((v for live in lives if live and (v := live.version)), None)
    fmt = _ftrace_format(prog, contents, version)
    several = len(zones) > 1
    arrays, newer = [], []
    for number, (zone, live, old) in enumerate(zip(zones, lives, olds)):
        cpu = zone.number if several else None
        array, this_boot = _zone_ftrace(old, live, fmt, number, cpu)
        arrays.append(array)
        newer.append(this_boot)
    this = any(newer)
    if not this:
        stamp = pstore_memory.variable_value(
            prog, "pstore_ftrace_stamp", "unsigned long"
        )
        unknown = [array for array, known in zip(arrays, newer) if known is None]
        debug_info = pstore_memory.has_debug_info(prog)
        this = _has_this_boot(unknown, fmt, stamp, debug_info)
    if this:
        for array, known, live in zip(arrays, newer, lives):
            if known is False or live is None:
                array["boot"] -= 1
    merged = pstore_records.merge_ftrace(arrays, fmt)
    records = merged.records
    lost: dict[int, int] = {}
    for gap in merged.lost:
        lost[gap.boot] = lost.get(gap.boot, 0) + gap.length
    labels = [zone.label for zone in zones]
    offset = pstore_memory.kaslr_offset(prog)
    boots = sorted({int(b) for b in _unique(records["boot"])}, reverse=True)
    shifts = _shifts(prog, records, fmt, boots, this, offset)
    return _Trace(
        records,
        fmt,
        labels,
        shifts,
        this,
        any(why for _, why in errors[::2]),
        offset,
        lost,
        merged.lost,
        merged.lost_total,
        notes,
    )


def _unique(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    import numpy as np

    return np.unique(column)


def _has_this_boot(
    arrays: list[pstore_records.FtraceArray],
    fmt: pstore_records.FtraceFormat,
    stamp: int | None,
    debug_info: bool,
) -> bool:
    # Whether the newest records are of this kernel: since 4.10 the region also has
    # those of boots before it, and this one may have recorded nothing.
    if not any(len(array) for array in arrays):
        return False
    if not fmt.stamped:
        return True
    if stamp is None:
        # Without CONFIG_PSTORE_FTRACE there is no such variable.
        return not debug_info
    # CPUs beyond 255 make theirs higher, by as much as does not fit into their byte.
    newest = max(
        int(array["counter"][-1]) - (int(array["cpu"][-1]) >> 8)
        for array in arrays
        if len(array)
    )
    if fmt.word == 4 and not fmt.cpu_mask:
        return stamp > 0
    return newest <= stamp and stamp > 0


def _shifts(
    prog: Program,
    records: pstore_records.FtraceArray,
    fmt: pstore_records.FtraceFormat,
    boots: list[int],
    this: bool,
    offset: int,
) -> dict[int, int | None]:
    # For each boot, what leads from its addresses to this kernel's.
    shifts: dict[int, int | None] = {}
    logged: list[int] | None = None
    for boot in boots:
        if (boot == 0 and this) or fmt.neutral:
            shifts[boot] = 0
            continue
        if logged is None:
            logged = _logged_offsets(prog)
        shifts[boot] = _fit(
            prog, records["ip"][records["boot"] == boot], offset, logged
        )
    return shifts


def _logged_offsets(prog: Program) -> list[int]:
    # Where earlier kernels were, as they said when they died.
    import re

    offsets = []
    try:
        for record in for_each_pstore_record(prog):
            for found in re.findall(
                rb"Kernel Offset: (0x[0-9a-f]+|disabled)", record.text
            ):
                value = 0 if found == b"disabled" else int(found, 16)
                if value not in offsets and value < 1 << 64:
                    offsets.append(value)
    except DumpError:
        pass
    return offsets


# Call sites are at or just behind a function's start: behind ENDBR or padding.
_CALL_SITE = 16


def _fit(
    prog: Program, ips: npt.NDArray[np.uint64], offset: int, logged: list[int]
) -> int | None:
    # What shift takes calls of ftrace to where functions start: any, if there are
    # enough of them; else one that a log speaks of.
    import numpy as np

    from drgn_tools.kernel_symbols import kernel_symbols
    from drgn_tools.symbols import Symbols

    linked = [(address - offset, "") for address in kernel_symbols(prog).functions]
    # Those of per-CPU data and the like are not moved.
    linked = [row for row in linked if row[0] > 0]
    if not linked or not len(ips):
        return None
    slide = Symbols(linked).fit(ips)
    if slide is not None:
        return offset - slide
    starts = np.array([address for address, _ in linked], np.uint64)
    for slide in [*logged, *([] if offset else [0])]:
        moved = _unique(ips) - np.uint64(slide)
        at = np.searchsorted(starts, moved, "right")
        near = (at > 0) & (moved - starts[np.maximum(at, 1) - 1] <= _CALL_SITE)
        if near.mean() >= 0.5:
            return offset - slide
    return None


Boot = Union[str, int]


def _chosen_boots(boot: Boot, present: list[int]) -> list[int]:
    # *present*: newest first.
    if boot == "all":
        return present
    if boot == "newest":
        return present[:1]
    if boot == "previous":
        return [-1] if -1 in present else []
    if isinstance(boot, int):
        return [boot] if boot in present else []
    raise DumpError(f"boot is {boot!r}, and not newest, previous, all or a number")


def _select(
    trace: _Trace, boot: Boot, cpu: int | None, last: int | None
) -> pstore_records.FtraceArray:
    import numpy as np

    records = trace.records
    chosen = _chosen_boots(boot, list(trace.shifts))
    if last is not None and last < 0:
        raise DumpError(f"last is {last}, which is no number of records")
    if len(chosen) != len(trace.shifts):
        records = records[np.isin(records["boot"], chosen)]
    if cpu is not None:
        records = records[records["cpu"] == cpu]
    if last is not None:
        records = records[max(0, len(records) - last) :]
    return records


def _addresses(trace: _Trace, stored: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    from drgn_tools.pstore_records import addresses

    return addresses(stored, trace.fmt, trace.offset)


@takes_program_or_default
def for_each_pstore_ftrace(
    prog: Program,
    *,
    boot: Boot = "all",
    cpu: int | None = None,
    last: int | None = None,
) -> Iterator[PstoreFtraceRecord]:
    """
    Iterate over the function trace in persistent memory, all CPUs merged.

    :param boot: See :func:`pstore_ftrace()`.
    :param cpu: Only records of this CPU.
    :param last: Only so many records, the newest ones.
    :raises DumpError: if this kernel has no pstore, or no zone for it.
    """
    trace = _trace(prog)
    records = _select(trace, boot, cpu, last)
    for start in range(0, len(records), _LINES):
        part = records[start : start + _LINES]
        for number, counter, ip, parent, zone, segment, torn in zip(
            part["cpu"].tolist(),
            part["counter"].tolist(),
            _addresses(trace, part["ip"]).tolist(),
            _addresses(trace, part["parent_ip"]).tolist(),
            part["zone"].tolist(),
            part["boot"].tolist(),
            part["torn"].tolist(),
        ):
            yield PstoreFtraceRecord(
                number,
                counter,
                ip,
                parent,
                trace.labels[zone],
                segment,
                torn,
                trace.shifts[segment],
            )


def _namer(
    prog: Program, shift: int | None, modules: bool, full: bool
) -> Callable[[int], str]:
    # What format_ftrace() is to ask, once for each address.
    from drgn_tools.kernel_symbols import kernel_symbols
    from drgn_tools.text import printable

    symbols = kernel_symbols(prog)

    def name(address: int) -> str:
        if shift is not None:
            moved = (address + shift) & ((1 << 64) - 1)
            found = symbols.find(moved, modules=modules)
            if found is not None:
                return printable(found.full if full else found.plain)
        return f"{address:#x}"

    return name


@takes_program_or_default
def pstore_ftrace(
    prog: Program,
    *,
    boot: Boot = "newest",
    cpu: int | None = None,
    last: int | None = None,
    file: _File | None = None,
) -> None:
    """
    Print the function trace in persistent memory, all CPUs merged, as the kernel
    prints it after a reboot.

    >>> pstore_ftrace(last=2)
    CPU:1 ts:1234 ffffffff8122f0a4  ffffffff8122f2b5  vfs_read <- ksys_read+0x65/0xe0
    CPU:0 ts:1235 ffffffff8122e564  ffffffff8122f1c8  fdget <- vfs_read+0x98/0x340

    ``ts`` is a number that counts records, no time. Where it is not known at which
    addresses the kernel of an earlier boot was, they are printed in place of names.

    :param boot: ``"newest"`` that there are records of, ``"previous"``, ``"all"``, or
        a number: 0 for the newest, -1 for the one before it and so on.
    :param cpu: Only records of this CPU.
    :param last: Only so many records, the newest ones.
    :param file: File to print to. Defaults to :data:`sys.stdout`. What is missing is
        said on standard error.
    :raises DumpError: if this kernel has no pstore, or no zone for it.
    """

    def work(out: _File) -> None:
        trace = _trace(prog)
        records = _select(trace, boot, cpu, last)
        for note in _trace_notes(trace, boot, len(records)):
            _note(note)
        _print_ftrace(prog, trace, records, out)

    _printing(prog, file, work)


def _trace_notes(trace: _Trace, boot: Boot, count: int) -> Iterator[str]:
    yield from trace.notes
    present = list(trace.shifts)
    chosen = _chosen_boots(boot, present)
    if not count:
        if not present:
            yield "no function trace was recorded"
        else:
            yield _no_records(present)
    elif 0 in chosen and not trace.this:
        if trace.unread:
            yield (
                "boot 0 is one before this kernel, whose own records, if any, cannot "
                "be read"
            )
        else:
            yield "nothing is of this kernel: boot 0 is one before it"
    for number in chosen:
        if trace.lost.get(number):
            # Only so many gaps are listed.
            least = sum(trace.lost.values()) < trace.lost_total
            yield (
                f"boot {number}: {'at least ' if least else ''}{trace.lost[number]} "
                "records are lost, in between or overwritten"
            )
        if trace.shifts[number] is None:
            yield (
                f"boot {number}: symbols are unknown, as it is where that kernel was "
                "in memory"
            )


def _print_ftrace(
    prog: Program, trace: _Trace, records: pstore_records.FtraceArray, out: _File
) -> None:
    from itertools import islice

    from drgn_tools.pstore_records import format_ftrace

    for boot in sorted(_unique(records["boot"]).tolist()):
        shift = trace.shifts[boot]
        # Modules are elsewhere in every boot.
        lines = format_ftrace(
            records[records["boot"] == boot],
            trace.fmt,
            kaslr_offset=trace.offset,
            function=_namer(prog, shift, trace.this and boot == 0, False),
            caller=_namer(prog, shift, trace.this and boot == 0, True),
        )
        while some := list(islice(lines, _LINES)):
            out.write("\n".join(some))
            out.write("\n")


@takes_program_or_default
def pstore_export(
    prog: Program,
    path: str,
    *,
    boot: Boot = "newest",
    cpu: int | None = None,
    last: int | None = None,
    force: bool = False,
) -> None:
    """
    Write the function trace in persistent memory for other tools.

    :param path: Of the file, which appears when all has been written. What it ends in
        says what it is: ``.pftrace`` or ``.perfetto-trace`` for Perfetto, ``.dat`` for
        trace-cmd and KernelShark.
    :param force: It may replace a file.

    The other parameters are those of :func:`pstore_ftrace()`. What was written and
    what is missing is said on standard error.

    :raises DumpError: if this kernel has no pstore, or no zone for it, or the file
        cannot be written.
    :raises ValueError: if the file's name ends in something else.
    """
    _note(_export(prog, path, boot, cpu, last, force))


def _export(
    prog: Program,
    path: str,
    boot: Boot,
    cpu: int | None,
    last: int | None,
    force: bool,
) -> str:
    # What was written, in one line.
    from drgn_tools.export import function_trace
    from drgn_tools.export.endings import format_of
    from drgn_tools.output import check_target

    kind = format_of("pstore", path)
    check_target(path, force)
    trace = _trace(prog)
    records = _select(trace, boot, cpu, last)
    if not len(records) and trace.shifts:
        raise DumpError(_no_records(list(trace.shifts)))
    for note in _trace_notes(trace, boot, len(records)):
        _note(note)
    boots = _export_boots(prog, trace, records)
    for note in function_trace.write(path, kind, boots, trace.fmt, force):
        _note(note)
    return function_trace.summary(path, boots)


def _export_boots(
    prog: Program, trace: _Trace, records: pstore_records.FtraceArray
) -> list[function_trace.Boot]:
    # The newest first, all at this kernel's addresses as far as those are known.
    import numpy as np

    from drgn_tools.export.function_trace import Boot

    boots = []
    for number in reversed(_unique(records["boot"]).tolist()):
        part = records[records["boot"] == number]
        shift = trace.shifts[number]
        known = None if shift is None else 0
        modules = trace.this and number == 0
        moved = np.uint64((shift or 0) & ((1 << 64) - 1))
        boots.append(
            Boot(
                number,
                part,
                _addresses(trace, part["ip"]) + moved,
                _addresses(trace, part["parent_ip"]) + moved,
                _namer(prog, known, modules, False),
                _namer(prog, known, modules, True),
            )
        )
    return boots


# struct psz_kmsg_header by the size of a word: its own size, offsets of tv_sec,
# tv_nsec, compressed and reason.
_PSZ_KMSG = {8: (40, 8, 16, 24, 32), 4: (28, 4, 12, 16, 24)}
_PSZ_KMSG_MAGIC = 0x4DFC3AE5


def _algorithm(prog: Program) -> str | None:
    # What the kernel compresses with; only deflate since "pstore: Replace crypto API
    # compression with zlib calls" (in v6.6).
    from drgn import FaultError

    try:
        name: bytes = prog["zbackend"].name.string_()
    except (LookupError, FaultError, AttributeError, TypeError, ValueError):
        return None
    return name.decode("ascii", "replace")


def _dmesg_of_zone(
    prog: Program, zone: PstoreZone, content: bytes, algorithm: str | None
) -> pstore_records.DmesgRecord | None:
    from drgn_tools import pstore_memory, pstore_records

    if zone.backend != "pstore_zone":
        return pstore_records.decode_dmesg(content, algorithm=algorithm)
    order = pstore_memory.byteorder(prog)
    size, *places = _PSZ_KMSG[pstore_memory.word_size(prog)]
    if len(content) < size:
        return None
    if int.from_bytes(content[:4], order) != _PSZ_KMSG_MAGIC:
        return None
    seconds, nanoseconds, compressed, _ = places
    return pstore_records.parse_dmesg_body(
        content[size:],
        bool(content[compressed]),
        seconds=int.from_bytes(content[seconds : seconds + 8], order, signed=True),
        microseconds=int.from_bytes(content[nanoseconds : nanoseconds + 4], order)
        // 1000,
        algorithm=algorithm,
    )


def _from_dmesg(
    record: pstore_records.DmesgRecord, source: str, label: str, error: str = ""
) -> PstoreRecord:
    return PstoreRecord(
        "dmesg",
        source,
        label,
        record.seconds,
        record.microseconds,
        record.reason,
        record.oops_count,
        record.part,
        record.algorithm,
        record.text,
        record.error or error,
    )


def _plain(kind: str, source: str, label: str, text: bytes, why: str) -> PstoreRecord:
    return PstoreRecord(kind, source, label, 0, 0, "", 0, 0, "none", text, why)


def _zone_records(
    prog: Program, zone: PstoreZone, algorithm: str | None
) -> Iterator[PstoreRecord]:
    contents = (
        ("live", zone.live, zone.live_error),
        ("old_log", zone.old_log, zone.old_log_error),
    )
    for source, content, why in contents:
        if not content:
            continue
        boot = -1 if source == "old_log" else 0
        if zone.kind != "dmesg":
            made = _plain(zone.kind, source, zone.label, content, why)
            yield made._replace(boot=boot)
            continue
        record = _dmesg_of_zone(prog, zone, content, algorithm)
        if record is not None:
            made = _from_dmesg(record, source, zone.label, why)
            known = _dmesg_boot(prog, zone, source, record, algorithm)
            yield made._replace(boot=known)


def _dmesg_boot(
    prog: Program,
    zone: PstoreZone,
    source: str,
    record: pstore_records.DmesgRecord,
    algorithm: str | None,
) -> int | None:
    # The kernel does not clear logs when it boots. What it found is in old_log, where
    # it puts them again whenever pstorefs is read: also its own then. pstore_zone has
    # no old_log of them.
    from drgn_tools import pstore_memory

    if zone.backend != "pstore_zone" and source == "live" and not zone.old_log_error:
        if not zone.old_log:
            return 0
        old = _dmesg_of_zone(prog, zone, zone.old_log, algorithm)
        when = (record.seconds, record.microseconds)
        if old is not None and when != (old.seconds, old.microseconds):
            return 0
    count = pstore_memory.variable_value(prog, "oopscount", "unsigned int")
    # How many this kernel has written.
    if count is not None and (not count or record.oops_count > count):
        return -1
    return None


_DMESG_START = (
    b"Panic#",
    b"Oops#",
    b"Emergency#",
    b"Shutdown#",
    b"Unknown#",
    # Until 5.7.
    b"Restart#",
    b"Halt#",
    b"Poweroff#",
)


def _buffer_records(
    buffers: tuple[pstore_memory.DumpBuffer, ...], algorithm: str | None
) -> Iterator[PstoreRecord]:
    # The buffers have no length: of the plain one, the compressed one's says where
    # it ends, and else a zero byte does.
    from drgn_tools import pstore_records

    lengths: dict[str, bytes] = {}
    for buffer in reversed(buffers):
        plain = buffer.data.startswith(_DMESG_START)
        if not plain and buffer.name != "psinfo->buf":
            continue
        data = buffer.data
        if plain:
            end = data.find(b"\0")
            data = data if end < 0 else data[:end]
            for text in lengths.values():
                if data.startswith(text[:256]) and len(text) <= len(data):
                    data = data[: len(text)]
        record = pstore_records.parse_dmesg_body(
            data, not plain, algorithm=None if plain else algorithm
        )
        if not record.text.startswith(_DMESG_START):
            continue
        lengths[buffer.name] = record.text
        yield _from_dmesg(record, buffer.name, buffer.name)._replace(boot=0)


def _fs_record(record: pstore_memory.FsRecord, algorithm: str | None) -> PstoreRecord:
    from drgn_tools import pstore_records

    label = f"{record.kind}-{record.id}"
    if record.kind != "dmesg":
        made = _plain(record.kind, "pstorefs", label, record.text, record.error)
        return made._replace(boot=-1)
    parsed = pstore_records.parse_dmesg_body(
        record.text,
        record.compressed,
        seconds=record.seconds,
        microseconds=record.microseconds,
        algorithm=algorithm,
    )
    return _from_dmesg(parsed, "pstorefs", label, record.error)


@takes_program_or_default
def for_each_pstore_record(
    prog: Program, kind: str | None = None
) -> Iterator[PstoreRecord]:
    """
    Iterate over the records that are text, wherever the kernel has them: live zones,
    what was in them at boot, the mounted pstorefs, and the buffers of the last dump.
    What is in several places comes once.

    :param kind: dmesg, console or pmsg; default: all.
    :raises DumpError: if this kernel has no pstore, or it cannot be found.
    """
    pstore = _read(prog)
    algorithm = _algorithm(prog)
    seen: set[tuple[str, bytes]] = set()

    def records() -> Iterator[PstoreRecord]:
        for zone in pstore.zones:
            if zone.kind != "ftrace" and kind in (None, zone.kind):
                yield from _zone_records(prog, _zone(prog, zone), algorithm)
        for record in pstore.records:
            if record.kind != "ftrace" and kind in (None, record.kind):
                yield _fs_record(record, algorithm)
        if kind in (None, "dmesg"):
            yield from _buffer_records(pstore.buffers, algorithm)

    for record in records():
        key = (record.kind, record.text)
        if record.text and key not in seen:
            seen.add(key)
            yield record


def _title(record: PstoreRecord) -> str:
    import datetime

    # Without a boot, the source is all there is to say.
    boot = {0: "this boot", -1: "an earlier boot", None: record.source}[record.boot]
    title = f"{record.kind}: {record.label}, {boot}"
    if record.reason:
        title += f", {record.reason}#{record.oops_count} Part{record.part}"
    if record.seconds:
        try:
            when = datetime.datetime.fromtimestamp(
                record.seconds, datetime.timezone.utc
            ).strftime("%Y-%m-%d %H:%M:%S")
        except (ValueError, OverflowError, OSError):
            when = str(record.seconds)
        title += f", {when}.{record.microseconds:06} UTC"
    return f"{title}, not whole: {record.error}" if record.error else title


def _in_order(prog: Program, only: Sequence[str] = ()) -> list[PstoreRecord]:
    # Kernel logs, the oldest first, then others as they are found. The buffers are of
    # this boot, and do not say when.
    return sorted(
        (r for r in for_each_pstore_record(prog) if not only or r.kind in only),
        key=lambda r: (r.kind != "dmesg", not r.seconds, r.seconds, r.microseconds),
    )


@takes_program_or_default
def pstore_dmesg(prog: Program, *, file: _File | None = None) -> None:
    """
    Print the kernel logs of oopses and panics in persistent memory, the oldest first,
    each under a line that says where it was found, and whether it is of this kernel's
    boot or of an earlier one, if that is known.

    :param file: File to print to. Defaults to :data:`sys.stdout`.
    :raises DumpError: if this kernel has no pstore, or no log is in it.
    """

    def work(out: _File) -> None:
        from drgn_tools.pstore_memory import PstoreError
        from drgn_tools.text import printable

        records = _in_order(prog, ("dmesg",))
        notes = _text_notes(prog, "dmesg")
        for note in notes:
            _note(note)
        if not records:
            raise PstoreError("no kernel log is in pstore")
        for record in records:
            out.write(f"== {printable(_title(record))}\n")
            text = record.text
            _write_text(out, text if text.endswith(b"\n") else text + b"\n")

    _printing(prog, file, work)


def _text_notes(prog: Program, kind: str) -> list[str]:
    pstore = _read(prog)
    zones = [_zone(prog, zone) for zone in pstore.zones if zone.kind == kind]
    return _absences(_errors(zones), pstore.notes)


def _print_text(
    prog: Program, kind: str, what: str, boot: Boot, out: _File, logcat: bool = False
) -> None:
    from drgn_tools.pstore_memory import PstoreError

    zones = [zone for zone in for_each_pstore_zone(prog) if zone.kind == kind]
    # Those of pstorefs are of boots before, as old_log is.
    found: dict[int, list[PstoreRecord]] = {}
    for record in for_each_pstore_record(prog, kind=kind):
        found.setdefault(record.boot or 0, []).append(record)
    present = sorted(found, reverse=True)
    for note in _text_notes(prog, kind):
        _note(note)
    chosen = _chosen_boots(boot, present)
    if not chosen:
        raise PstoreError(
            f"no {what} is in pstore" if not found else f"no {what} is of that boot"
        )
    if boot == "newest" and chosen[0] != 0:
        own = "there is nothing of this kernel's"
        if any(zone.live is None for zone in zones):
            own = "this kernel's cannot be read"
        _note(f"what follows is of an earlier boot: {own}")
    for number in sorted(chosen):
        for record in found[number]:
            if logcat:
                from drgn_tools.pstore_records import logcat_messages
                from drgn_tools.pstore_text import logcat_line

                for message in logcat_messages(record.text):
                    out.write(logcat_line(message) + "\n")
            else:
                _write_text(out, record.text)


@takes_program_or_default
def pstore_console(
    prog: Program, *, boot: Boot = "newest", file: _File | None = None
) -> None:
    """
    Print the console output in persistent memory.

    :param boot: ``"newest"`` that there is output of, ``"previous"``, ``"all"``, 0
        for the boot of this kernel or -1 for the one before.
    :param file: File to print to. Defaults to :data:`sys.stdout`.
    :raises DumpError: if this kernel has no pstore, or no such output is in it.
    """
    _printing(
        prog,
        file,
        lambda out: _print_text(prog, "console", "console output", boot, out),
    )


@takes_program_or_default
def pstore_pmsg(
    prog: Program,
    *,
    boot: Boot = "newest",
    logcat: bool | None = None,
    file: _File | None = None,
) -> None:
    """
    Print what user space wrote to :file:`/dev/pmsg0`.

    :param boot: ``"newest"`` that there are messages of, ``"previous"``, ``"all"``, 0
        for the boot of this kernel or -1 for the one before.
    :param logcat: Whether to print Android's messages as its logcat does rather than
        the bytes as they are. By default, if they look like it.
    :param file: File to print to. Defaults to :data:`sys.stdout`.
    :raises DumpError: if this kernel has no pstore, or nothing was written.
    """

    def work(out: _File) -> None:
        from drgn_tools.pstore_records import is_logcat

        framed = logcat
        if framed is None:
            records = for_each_pstore_record(prog, kind="pmsg")
            framed = any(is_logcat(record.text) for record in records)
        _print_text(prog, "pmsg", "user space log", boot, out, framed)

    _printing(prog, file, work)


def _as_zone(prog: Program, zone: pstore_memory.Zone) -> ramoops.Zone:
    # One whose region cannot be read has state "missing".
    from drgn_tools import ramoops

    live, _ = _read_live(prog, zone)
    if live is not None:
        return live
    kind: Any = zone.kind if zone.kind in _KINDS else "unknown"
    return ramoops.Zone(
        kind,
        zone.number,
        zone.address,
        zone.size,
        zone.buffer_size,
        0,
        0,
        0,
        "missing",
        False,
        b"",
    )


_NO_SYMBOLS = (
    "until then, names come from kallsyms, layouts are those of 5.10 to 7.2, and "
    "records of the mounted pstorefs are not looked for"
)
_MODULES = ("ramoops", "pstore_zone", "pstore_blk")


def print_dump(
    dump: str,
    *,
    symbols: Sequence[str] = (),
    boot: int | None = 0,
    last: int | None = None,
    only: Sequence[str] = (),
    as_json: bool = False,
    output: str | None = None,
    force: bool = False,
    quiet: bool = False,
) -> None:
    """
    Print all that pstore has in a dump, as ``drgn-tools pstore DUMP`` does.

    :param symbols: Files with debugging symbols, of the kernel and its modules, that
        are tried before those that drgn finds.
    :param boot: Of the function trace: 0 for the newest, -1 for the one before;
        None for all.
    :param last: Of the function trace, only so many records, the newest ones.
    :param only: What to print: zones, dmesg, console, ftrace, pmsg; empty for all.
    :param as_json: As one JSON object, on one line but for the function trace.
    :param output: Write this file instead: see :func:`pstore_export()`.
    :param force: It may replace a file.
    :param quiet: Do not say what was written.
    :raises DumpError: if the dump cannot be read or has nothing of pstore or no such
        boot, or a file has no symbols of its kernel.
    """
    from drgn import FaultError

    from drgn_tools.output import check_target
    from drgn_tools.program import open_dump
    from drgn_tools.progress import printed

    if output is not None:
        check_target(output, force, (dump,))
    try:
        prog = open_dump(dump, symbols)
        pstore = _with_advice(prog, dump)
        if output is not None:
            which: Boot = "all" if boot is None else boot
            written = _export(prog, output, which, None, last, force)
            if not quiet:
                print(written, file=sys.stderr)
            return
        with printed() as out:
            (_print_json if as_json else _print_all)(
                prog, pstore, boot, out, last, only
            )
    except (LookupError, ValueError, FaultError) as error:
        # What of a damaged dump nobody foresaw.
        raise DumpError(f"cannot read {dump}: {one_line(error)}") from None


def _with_advice(prog: Program, dump: str) -> pstore_memory.Pstore:
    # What is there, and a note if there would be more with debugging symbols.
    from drgn_tools.program import missing_symbols
    from drgn_tools.pstore_memory import PstoreError, has_debug_info

    missing = missing_symbols(prog, dump, _MODULES)
    try:
        pstore = _read(prog)
    except PstoreError as error:
        raise PstoreError(f"{error}; {missing}" if missing else str(error)) from None
    if not has_debug_info(prog):
        note = f"{missing}; {_NO_SYMBOLS}"
        pstore = pstore._replace(notes=(*pstore.notes, note))
    return pstore


def _trace_if_any(
    prog: Program, pstore: pstore_memory.Pstore, boot: int | None, only: Sequence[str]
) -> _Trace | None:
    # Of what is to be printed; that it lacks a boot is known before anything is.
    if only and "ftrace" not in only:
        return None
    if not any(zone.kind == "ftrace" for zone in pstore.zones):
        # 0 is also what is meant if none is.
        if boot or "ftrace" in only:
            raise DumpError("this kernel's pstore has no function trace")
        return None
    trace = _trace(prog)
    if boot and boot not in trace.shifts:
        raise DumpError(_no_records(list(trace.shifts)))
    return trace


def _no_records(present: Sequence[int]) -> str:
    from drgn_tools.pstore_text import no_records

    return no_records(present)


def _print_all(
    prog: Program,
    pstore: pstore_memory.Pstore,
    boot: int | None,
    out: _File,
    last: int | None = None,
    only: Sequence[str] = (),
) -> None:
    from drgn_tools import pstore_text as text
    from drgn_tools.pstore_records import is_logcat, logcat_messages
    from drgn_tools.text import printable

    trace = _trace_if_any(prog, pstore, boot, only)
    wanted = only if only and "zones" not in only else _KINDS
    zones = [_zone(prog, zone) for zone in pstore.zones if zone.kind in wanted]
    for note in _absences(_errors(zones), pstore.notes):
        print(printable(f"note: {note}"), file=sys.stderr)
    between = ""
    if not only or "zones" in only:
        for line in text.zone_lines(_as_zone(prog, zone) for zone in pstore.zones):
            out.write(line + "\n")
        between = "\n"
    for record in _in_order(prog, only):
        out.write(f"{between}== {printable(_title(record))}\n")
        between = "\n"
        if record.kind == "pmsg" and is_logcat(record.text):
            for message in logcat_messages(record.text):
                out.write(text.logcat_line(message) + "\n")
            continue
        written = text.text_of(record.text)
        out.write(written if written.endswith("\n") else written + "\n")
    if trace is None:
        return
    chosen = _select(trace, "all" if boot is None else boot, None, last)
    for number in sorted(_unique(chosen["boot"]).tolist()):
        records = text.select_boot(chosen, number)
        count = text.record_count(records, trace.records)
        out.write(f"{between}== ftrace: boot {number}, {count}\n")
        between = "\n"
        _print_ftrace(prog, trace, records, out)
    for note in _trace_notes(trace, "all" if boot is None else boot, 1):
        if note not in trace.notes:
            print(printable(f"note: {note}"), file=sys.stderr)


def _print_json(
    prog: Program,
    pstore: pstore_memory.Pstore,
    boot: int | None,
    out: _File,
    last: int | None = None,
    only: Sequence[str] = (),
) -> None:
    from drgn_tools import pstore_text as text
    from drgn_tools.text import decoded, json_line

    trace = _trace_if_any(prog, pstore, boot, only)
    zones = []
    for zone in pstore.zones:
        read = _zone(prog, zone)
        zones.append(
            {
                **text.zone_json(_as_zone(prog, zone)),
                "backend": zone.backend,
                "label": zone.label,
                "live_error": read.live_error,
                "old_log": None if read.old_log is None else len(read.old_log),
                "old_log_error": read.old_log_error,
                "boot_corrected_bytes": read.boot_corrected_bytes,
                "boot_bad_blocks": read.boot_bad_blocks,
            }
        )
    logs: dict[str, list[Any]] = {
        kind: [] for kind in ("dmesg", "console", "pmsg") if not only or kind in only
    }
    for record in _in_order(prog, only):
        entry = {**record._asdict(), "text": decoded(record.text)}
        logs.setdefault(record.kind, []).append(entry)
    head: dict[str, Any] = {"backend": pstore.backend, "notes": pstore.notes}
    if not only or "zones" in only:
        head["zones"] = zones
    out.write(json_line({**head, **logs})[:-1])
    if trace is None:
        out.write("}\n")
        return
    ftrace = {
        "format": trace.fmt._asdict(),
        "boots": [
            {
                "boot": number,
                "records": len(text.select_boot(trace.records, number)),
                "this_kernel": trace.this and number == 0,
                "symbols": shift is not None,
            }
            for number, shift in trace.shifts.items()
        ],
        "lost_total": trace.lost_total,
        "lost": [gap._asdict() for gap in trace.gaps],
    }
    out.write(', "ftrace": ' + json_line(ftrace)[:-1] + ', "records": [')
    separator = "\n"
    chosen = _select(trace, "all" if boot is None else boot, None, last)
    for number, shift in reversed(trace.shifts.items()):
        lines = text.trace_json(
            text.select_boot(chosen, number),
            trace.fmt,
            trace.offset,
            function=_namer(prog, shift, trace.this and number == 0, False),
            caller=_namer(prog, shift, trace.this and number == 0, True),
        )
        for line in lines:
            out.write(separator + line)
            separator = ",\n"
    out.write("]}}\n")
