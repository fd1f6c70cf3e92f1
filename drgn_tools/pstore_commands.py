# SPDX-License-Identifier: LGPL-2.1-or-later
"""The pstore command: parse, call, print."""

from __future__ import annotations

import sys
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import click

from drgn_tools import options
from drgn_tools.decoding import decoder
from drgn_tools.text import decoded, json_line, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from drgn_tools.pstore_records import (
        DmesgRecord,
        FtraceArray,
        FtraceFormat,
        Name,
        Trace,
    )
    from drgn_tools.ramoops import Region, Zone
    from drgn_tools.symbols import Symbols

_EPILOG = """\b
--layout takes ramoops' parameters, separated by commas:
  mem_address, mem_size, record_size, console_size, ftrace_size,
  pmsg_size, ecc, and cpus (of which there may be; one ftrace zone each)

\b
Words:
  zone          a part of the memory, for one kind of records
  live region   the memory as it is now: of this boot, and what it still
                has of earlier ones
  old_log       the kernel's copy of what it found there when it booted
  this boot     that of the kernel in DUMP
  pstorefs      what was mounted there; of which boot may be unknown

\b
Examples:
  drgn-tools pstore vmcore
  drgn-tools pstore --boot all --symbols vmlinux vmcore
  drgn-tools pstore --raw ram.img --symbols System.map
"""


_ONLY = ("zones", "dmesg", "console", "ftrace", "pmsg")


def _kinds(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> tuple[str, ...]:
    kinds = tuple(kind for text in value for kind in text.split(","))
    for kind in kinds:
        if kind not in _ONLY:
            raise click.UsageError(f"--only: {', '.join(_ONLY)}, not {kind!r}", ctx)
    return kinds


@click.command(epilog=_EPILOG)
@click.argument("dump", required=False, type=click.Path())
@click.option(
    "--raw",
    type=click.Path(),
    metavar="REGION",
    help="A copy of the memory instead of DUMP.",
)
@click.option(
    "--layout",
    metavar="KEY=SIZE,…",
    help="How REGION is divided; else its zones are found by their signatures.",
)
@click.option(
    "-s",
    "--symbols",
    type=click.Path(),
    metavar="FILE",
    multiple=True,
    help="Of DUMP, a vmlinux or module with debugging symbols; may be given more than "
    "once. Of REGION, a System.map or vmlinux that names addresses.",
)
@click.option(
    "--boot",
    default="0",
    metavar="N",
    shell_complete=options.one_of(("0", "-1", "all")),
    help="Which boot's function trace: 0 the newest, -1 the one before, or all.",
)
@click.option(
    "--last",
    type=click.IntRange(min=1),
    metavar="N",
    help="Only so many records of the function trace, the newest ones.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="KIND,…",
    callback=_kinds,
    shell_complete=options.some_of(_ONLY),
    help=f"Only these: {', '.join(_ONLY)}; may be given more than once.",
)
@options.as_json
@options.output(
    "Write the function trace for other tools instead, by FILE's ending: .pftrace or "
    ".perfetto-trace for Perfetto, .dat for trace-cmd and KernelShark.",
    family="pstore",
)
@options.force
@options.quiet
def pstore(
    dump: str | None,
    raw: str | None,
    layout: str | None,
    symbols: tuple[str, ...],
    boot: str,
    last: int | None,
    only: tuple[str, ...],
    as_json: bool,
    output: str | None,
    force: bool,
    quiet: bool,
) -> None:
    """Print what pstore kept: logs, console, traces, messages.

    Prints the zones of ramoops or pstore_zone, and what is in them; of DUMP also
    without debugging symbols, from Linux 6.0 on.

    \f
    These are kernel logs of oopses and panics, the console, the function traces of all
    CPUs merged, and messages from user space. What is uncertain, missing or lost is
    said on standard error.

    REGION is a copy of the reserved memory, or a larger file with it, such as the
    memory file of a virtual machine. No debugging symbols are needed.

    Sizes of a layout may end in k, m or g. It may also have pmsg_first, exact and
    staging (yes or no), and byteorder (little or big).

    How far the kernel of a REGION was moved follows from the addresses, for each boot
    by itself. For a kernel with memmap=2M$0x30000000 and ramoops there:

        drgn-tools pstore --raw ram.img \\
            --layout mem_address=0x30000000,mem_size=2m,ecc=1,cpus=4
    """
    from drgn_tools.errors import DumpError

    if (dump is None) == (raw is None):
        raise click.UsageError("one of DUMP and --raw")
    if raw is None and layout is not None:
        raise click.UsageError("--layout needs --raw")
    if raw is not None and len(symbols) > 1:
        raise click.UsageError("--raw takes one file with --symbols")
    if output is not None and as_json:
        raise click.UsageError("one of --json and --output")
    if output is not None and only:
        raise click.UsageError("--only is for what is printed, and --output is not")
    if last is not None and only and "ftrace" not in only:
        raise click.UsageError("--last is of the function trace: --only ftrace")
    if force and output is None:
        raise click.UsageError("--force needs --output")
    if output is None and sys.stdout is None:
        raise DumpError("cannot print: standard output is closed")
    try:
        number = None if boot == "all" else int(boot)
    except ValueError:
        raise click.UsageError(f"--boot: a number or all, not {boot!r}") from None
    if raw is None:
        decoder("pstore").print_dump(
            dump,
            symbols=symbols,
            boot=number,
            last=last,
            only=only,
            as_json=as_json,
            output=output,
            force=force,
            quiet=quiet,
        )
        return
    from drgn_tools import symbols as known
    from drgn_tools.output import check_target

    if output is not None:
        check_target(output, force, (raw,))
    names = None if not symbols else known.load(symbols[0])
    region = _region(raw, layout)
    wanted = only or _ONLY
    trace = _Traced(*_trace(region), number, last, names)
    if "ftrace" in wanted and number and not trace.has(number):
        from drgn_tools.pstore_text import boots, no_records

        raise DumpError(no_records(boots(trace.merged.records)))
    if output is not None:
        written = _raw_export(trace, output, force)
        if not quiet:
            print(written, file=sys.stderr)
    elif as_json:
        _raw_json(region, trace, wanted, sys.stdout)
    else:
        _raw_text(region, trace, wanted, sys.stdout)


def _region(raw: str, layout: str | None) -> Region:
    import mmap

    from drgn_tools.errors import DumpError
    from drgn_tools.ramoops import parse_layout, read_region

    try:
        wanted = None if layout is None else parse_layout(layout)
    except DumpError as error:
        raise click.UsageError(f"--layout: {error}") from None
    try:
        with open(raw, "rb") as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is empty"
        raise DumpError(f"cannot read {raw}: {why}") from None
    return read_region(memory, wanted)  # type: ignore[arg-type]


def _trace(region: Region) -> tuple[Trace, FtraceFormat]:
    from drgn_tools.pstore_records import decode_ftrace, guess_format, merge_ftrace

    traces = [zone for zone in region.zones if zone.kind == "ftrace"]
    contents = [zone.content for zone in traces]
    fmt = guess_format(contents, region.version, region.layout.byteorder)
    arrays = [
        decode_ftrace(
            zone.content,
            fmt,
            zone=zone.number,
            cpu=zone.number if len(traces) > 1 else None,
            missing=zone.missing,
        )
        for zone in traces
    ]
    return merge_ftrace(arrays, fmt), fmt


class _Traced(NamedTuple):
    """The function trace of a region, and what of it is wanted."""

    merged: Trace
    fmt: FtraceFormat
    boot: int | None
    """None for all."""
    last: int | None
    symbols: Symbols | None

    def has(self, boot: int) -> bool:
        return bool((self.merged.records["boot"] == boot).any())

    def chosen(self) -> FtraceArray:
        from drgn_tools.pstore_text import select_boot

        records = select_boot(self.merged.records, self.boot)
        return records if self.last is None else records[-self.last :]


class _Names(NamedTuple):
    """How the addresses of one boot are named."""

    function: Name
    caller: Name
    offset: int | None
    """How far the kernel was moved; None if unknown."""


def _names(records: FtraceArray, fmt: FtraceFormat, symbols: Symbols | None) -> _Names:
    from drgn_tools.pstore_records import addresses

    offset = None
    if symbols is not None:
        offset = symbols.fit(addresses(records["ip"], fmt))
    if symbols is None or offset is None:
        return _Names(hex, hex, None)
    known, moved = symbols, offset
    return _Names(
        lambda address: known.function(address, moved),
        lambda address: known.place(address, moved),
        offset,
    )


def _in_order(
    region: Region, wanted: Sequence[str]
) -> list[tuple[Zone, DmesgRecord | None]]:
    # Zones with text, and kernel logs decoded; those first, the oldest first.
    from drgn_tools.pstore_records import decode_dmesg

    found = [
        (zone, decode_dmesg(zone.content) if zone.kind == "dmesg" else None)
        for zone in region.zones
        if zone.content and zone.kind != "ftrace"
        if zone.kind in wanted or wanted is _ONLY
    ]

    def place(pair: tuple[Zone, DmesgRecord | None]) -> tuple[bool, bool, int, int]:
        zone, record = pair
        if record is None:
            return zone.kind != "dmesg", True, 0, 0
        return False, False, record.seconds, record.microseconds

    return sorted(found, key=place)


def _raw_text(
    region: Region, trace: _Traced, wanted: Sequence[str], out: TextIO
) -> None:
    from drgn_tools import pstore_text as text
    from drgn_tools.pstore_records import (
        format_ftrace,
        is_logcat,
        logcat_messages,
    )

    for note in region.notes:
        print(printable(f"note: {note}"), file=sys.stderr)
    between = ""
    if "zones" in wanted:
        for line in text.zone_lines(region.zones):
            print(line, file=out)
        between = "\n"
    for zone, record in _in_order(region, wanted):
        title, content = f"{zone.kind} {zone.number}", zone.content
        if record is not None:
            title, content = text.dmesg_title(zone, record), record.text
        elif zone.kind == "dmesg":
            title += ": no record's header"
        print(f"{between}== {printable(title)}", file=out)
        between = "\n"
        if zone.kind == "pmsg" and is_logcat(content):
            for message in logcat_messages(content):
                print(text.logcat_line(message), file=out)
            continue
        written = text.text_of(content)
        out.write(written if written.endswith("\n") else written + "\n")
    if "ftrace" not in wanted:
        return
    merged, fmt = trace.merged, trace.fmt
    chosen = trace.chosen()
    for number in reversed(text.boots(chosen)):
        every = text.select_boot(merged.records, number)
        records = text.select_boot(chosen, number)
        names = _names(every, fmt, trace.symbols)
        count = text.record_count(records, merged.records)
        print(f"{between}== ftrace: boot {number}, {count}", file=out)
        between = "\n"
        if trace.symbols is not None and names.offset is None:
            print(
                f"note: the symbols do not fit boot {number}: another kernel's?",
                file=sys.stderr,
            )
        lines = format_ftrace(
            records, fmt, function=names.function, caller=names.caller
        )
        while chunk := list(islice(lines, 4096)):
            out.write("\n".join(chunk) + "\n")
    for note in text.trace_notes(merged):
        print(printable(f"note: {note}"), file=sys.stderr)


def _raw_export(trace: _Traced, path: str, force: bool) -> str:
    from drgn_tools import pstore_text as text
    from drgn_tools.export import function_trace
    from drgn_tools.export.endings import format_of
    from drgn_tools.pstore_records import addresses

    fmt = trace.fmt
    boots = []
    chosen = trace.chosen()
    for number in text.boots(chosen):
        every = text.select_boot(trace.merged.records, number)
        records = text.select_boot(chosen, number)
        names = _names(every, fmt, trace.symbols)
        boots.append(
            function_trace.Boot(
                number,
                records,
                addresses(records["ip"], fmt),
                addresses(records["parent_ip"], fmt),
                names.function,
                names.caller,
            )
        )
    missing = function_trace.write(path, format_of("pstore", path), boots, fmt, force)
    for note in [*text.trace_notes(trace.merged), *missing]:
        print(printable(f"note: {note}"), file=sys.stderr)
    return function_trace.summary(path, boots)


def _raw_json(
    region: Region, trace: _Traced, wanted: Sequence[str], out: TextIO
) -> None:
    from drgn_tools import pstore_text as text
    from drgn_tools.pstore_records import is_logcat, logcat_messages

    layout = region.layout._asdict()
    layout["ecc"] = None if region.layout.ecc is None else region.layout.ecc._asdict()
    logs: dict[str, list[Any]] = {
        kind: []
        for kind in ("dmesg", "console", "pmsg", "unknown")
        if kind in wanted or wanted is _ONLY
    }
    for zone, record in _in_order(region, wanted):
        if record is not None:
            logs["dmesg"].append(text.dmesg_json(zone, record))
            continue
        entry: dict[str, Any] = {
            "zone": zone.number,
            "text": decoded(zone.content),
        }
        if zone.kind == "pmsg" and is_logcat(zone.content):
            entry["messages"] = [
                text.logcat_json(message) for message in logcat_messages(zone.content)
            ]
        logs[zone.kind].append(entry)
    head: dict[str, Any] = {
        "layout": layout,
        "version": region.version,
        "notes": region.notes,
    }
    if "zones" in wanted:
        head["zones"] = [text.zone_json(zone) for zone in region.zones]
    head.update(logs)
    if "ftrace" not in wanted:
        out.write(json_line(head) + "\n")
        return
    merged, fmt = trace.merged, trace.fmt
    numbers = text.boots(merged.records)
    named = {
        number: _names(text.select_boot(merged.records, number), fmt, trace.symbols)
        for number in numbers
    }
    ftrace = {
        "format": fmt._asdict(),
        "boots": [
            {
                "boot": number,
                "records": len(text.select_boot(merged.records, number)),
                "kaslr_offset": named[number].offset,
            }
            for number in numbers
        ],
        "lost_total": merged.lost_total,
        "lost": [gap._asdict() for gap in merged.lost],
    }
    # Records one by one: there may be millions.
    out.write(json_line(head)[:-1] + ', "ftrace": ' + json_line(ftrace)[:-1])
    out.write(', "records": [')
    separator = "\n"
    chosen = trace.chosen()
    for number in reversed(text.boots(chosen)):
        records = text.select_boot(chosen, number)
        names = named[number]
        shown = names if names.offset is not None else None
        for line in text.trace_json(
            records,
            fmt,
            function=shown and shown.function,
            caller=shown and shown.caller,
        ):
            out.write(separator + line)
            separator = ",\n"
    out.write("]}}\n")
