# SPDX-License-Identifier: LGPL-2.1-or-later
"""The pstore command: parse, call, print."""

from __future__ import annotations

import json
import sys
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import click

from drgn_tools import options
from drgn_tools.decoding import decoder
from drgn_tools.text import printable

if TYPE_CHECKING:
    from drgn_tools.pstore_records import FtraceArray, FtraceFormat, Name, Trace
    from drgn_tools.ramoops import Region
    from drgn_tools.symbols import Symbols

_EPILOG = """\b
--layout takes ramoops' parameters, separated by commas:
  mem_address, mem_size, record_size, console_size, ftrace_size,
  pmsg_size, ecc, and cpus (of which there may be; one ftrace zone each)
Without, the zones are found by their signatures.
"""


@click.command(epilog=_EPILOG)
@click.argument("dump", required=False)
@click.option("--raw", metavar="REGION", help="A copy of the memory instead of DUMP.")
@click.option("--layout", metavar="KEY=SIZE,…", help="How REGION is divided.")
@click.option(
    "--symbols",
    metavar="FILE",
    multiple=True,
    help="Of DUMP, a vmlinux or module with debugging symbols; may be given more than "
    "once. Of REGION, a System.map or vmlinux that names addresses.",
)
@click.option(
    "--boot",
    default="0",
    metavar="N",
    help="Which boot's function trace: 0 the newest, -1 the one before, or all.",
)
@options.as_json
@options.quiet
def pstore(
    dump: str | None,
    raw: str | None,
    layout: str | None,
    symbols: tuple[str, ...],
    boot: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Print what pstore kept: kernel logs, console, function trace, pmsg."""
    from drgn_tools.errors import DumpError

    if (dump is None) == (raw is None):
        raise click.UsageError("one of DUMP and --raw")
    if raw is None and layout is not None:
        raise click.UsageError("--layout needs --raw")
    if raw is not None and len(symbols) > 1:
        raise click.UsageError("--raw takes one file with --symbols")
    if sys.stdout is None:
        raise DumpError("cannot print: standard output is closed")
    try:
        number = None if boot == "all" else int(boot)
    except ValueError:
        raise click.UsageError(f"--boot: a number or all, not {boot!r}") from None
    if raw is None:
        decoder("pstore").print_dump(
            dump, symbols=symbols, boot=number, as_json=as_json
        )
        return
    _print_raw(raw, layout, symbols[0] if symbols else None, number, as_json)


def _print_raw(
    raw: str, layout: str | None, symbols: str | None, boot: int | None, as_json: bool
) -> None:
    import mmap

    from drgn_tools import symbols as known
    from drgn_tools.errors import DumpError
    from drgn_tools.ramoops import parse_layout, read_region

    try:
        wanted = None if layout is None else parse_layout(layout)
    except DumpError as error:
        raise click.UsageError(f"--layout: {error}") from None
    names = None if symbols is None else known.load(symbols)
    try:
        with open(raw, "rb") as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is empty"
        raise DumpError(f"cannot read {raw}: {why}") from None
    region = read_region(memory, wanted)  # type: ignore[arg-type]
    if as_json:
        _raw_json(region, names, boot, sys.stdout)
    else:
        _raw_text(region, names, boot, sys.stdout)


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


def _raw_text(
    region: Region, symbols: Symbols | None, boot: int | None, out: TextIO
) -> None:
    from drgn_tools import pstore_text as text
    from drgn_tools.pstore_records import (
        decode_dmesg,
        format_ftrace,
        is_logcat,
        logcat_messages,
    )

    for note in region.notes:
        print(printable(f"note: {note}"), file=sys.stderr)
    for line in text.zone_lines(region.zones):
        print(line, file=out)
    for zone in region.zones:
        if zone.kind == "ftrace" or not zone.content:
            continue
        record = decode_dmesg(zone.content) if zone.kind == "dmesg" else None
        title, content = f"{zone.kind} {zone.number}", zone.content
        if record is not None:
            title, content = text.dmesg_title(zone, record), record.text
        elif zone.kind == "dmesg":
            title += ": no record's header"
        print(f"\n== {title}", file=out)
        if zone.kind == "pmsg" and is_logcat(content):
            for message in logcat_messages(content):
                print(text.logcat_line(message), file=out)
            continue
        written = text.text_of(content)
        out.write(written if written.endswith("\n") else written + "\n")
    trace, fmt = _trace(region)
    for number in reversed(text.boots(trace.records)):
        if boot not in (None, number):
            continue
        records = text.select_boot(trace.records, number)
        names = _names(records, fmt, symbols)
        print(f"\n== ftrace: boot {number}, {len(records)} records", file=out)
        if symbols is not None and names.offset is None:
            print(
                f"note: the symbols do not fit boot {number}: another kernel's?",
                file=sys.stderr,
            )
        lines = format_ftrace(
            records, fmt, function=names.function, caller=names.caller
        )
        while chunk := list(islice(lines, 4096)):
            out.write("\n".join(chunk) + "\n")
    for note in text.trace_notes(trace):
        print(f"note: {note}", file=sys.stderr)


def _raw_json(
    region: Region, symbols: Symbols | None, boot: int | None, out: TextIO
) -> None:
    from drgn_tools import pstore_text as text
    from drgn_tools.pstore_records import (
        decode_dmesg,
        is_logcat,
        logcat_messages,
    )

    layout = region.layout._asdict()
    layout["ecc"] = None if region.layout.ecc is None else region.layout.ecc._asdict()
    logs: dict[str, list[Any]] = {"dmesg": [], "console": [], "pmsg": [], "unknown": []}
    for zone in region.zones:
        if zone.kind == "ftrace" or not zone.content:
            continue
        record = decode_dmesg(zone.content) if zone.kind == "dmesg" else None
        if record is not None:
            logs["dmesg"].append(text.dmesg_json(zone, record))
            continue
        entry: dict[str, Any] = {
            "zone": zone.number,
            "text": text.decoded(zone.content),
        }
        if zone.kind == "pmsg" and is_logcat(zone.content):
            entry["messages"] = [
                text.logcat_json(message) for message in logcat_messages(zone.content)
            ]
        logs[zone.kind].append(entry)
    trace, fmt = _trace(region)
    head = {
        "layout": layout,
        "version": region.version,
        "notes": region.notes,
        "zones": [text.zone_json(zone) for zone in region.zones],
        **logs,
    }
    numbers = text.boots(trace.records)
    named = {
        number: _names(text.select_boot(trace.records, number), fmt, symbols)
        for number in numbers
    }
    ftrace = {
        "format": fmt._asdict(),
        "boots": [
            {
                "boot": number,
                "records": len(text.select_boot(trace.records, number)),
                "kaslr_offset": named[number].offset,
            }
            for number in numbers
        ],
        "lost_total": trace.lost_total,
        "lost": [gap._asdict() for gap in trace.lost],
    }
    # Records one by one: there may be millions.
    out.write(json.dumps(head)[:-1] + ', "ftrace": ' + json.dumps(ftrace)[:-1])
    out.write(', "records": [')
    separator = "\n"
    for number in reversed(numbers):
        if boot not in (None, number):
            continue
        records = text.select_boot(trace.records, number)
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
