# SPDX-License-Identifier: LGPL-2.1-or-later
"""The zram command: parse, call, print."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TextIO

import click

from drgn_tools import options
from drgn_tools.decoding import decoder
from drgn_tools.text import json_line, printable

if TYPE_CHECKING:
    from drgn import Object, Program

    from drgn_tools.zram import ZramExport, ZramStream

# What of a device can be printed as it is: the option, and what it prints.
_TEXTS = ("mm-stat", "io-stat", "bd-stat", "block-state")


_EPILOG = """\b
Examples:
  drgn-tools zram vmcore
  drgn-tools zram --stat mm-stat --device zram0 vmcore
  drgn-tools zram --device zram0 -o zram0.img vmcore
"""


@click.command(epilog=_EPILOG)
@options.dump
@options.symbols
@click.option("--device", metavar="NAME", help="Only this one, zram0 for instance.")
@options.output(
    "Write a whole device instead, by FILE's ending: .img or .raw for a sparse image, "
    ".csv for a table of its slots, .pages.csv for one of its pages.",
    family="zram",
)
@options.force
@options.jobs
@click.option(
    "--stat",
    type=click.Choice(_TEXTS),
    metavar="NAME",
    help=f"Print what the kernel's file of that name has: {', '.join(_TEXTS)}.",
)
@click.option("--streams", is_flag=True, help="Print what each CPU compressed last.")
@click.option("--pools", is_flag=True, help="Print the size classes of the memory.")
@options.as_json
@options.quiet
def zram(
    dump: str,
    symbols: tuple[str, ...],
    device: str | None,
    output: str | None,
    force: bool,
    jobs: int | None,
    stat: str | None,
    streams: bool,
    pools: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Print the zram devices of DUMP, or write out what is in one.

    Like zramctl: their size, what was written to them, what became of it, and the
    memory that takes. Debugging symbols of the kernel, zram and zsmalloc are needed.

    \f
    An image is a sparse file that can be mounted if there is a file system on the
    device. Pages that are not in memory are holes, and are listed on standard error
    with where they are instead. A table has a row for each slot or page, with commas
    between the values, and nothing where there is no value.

    --streams also says who was compressing when the kernel died.

    --json has what --streams and --pools print, whether they are given or not; only
    with --streams it has the pages that were compressed last themselves.

    COLUMNS

        DISKSIZE   size of the device
        ALGORITHM  by priority, if there are several
        DATA       what was written
        COMPR      what became of that
        USED       memory that it takes
        RATIO      DATA by USED
        SAME       pages of one repeated word, zeros for instance
        HUGE       pages that did not compress and are stored as they are
        WRITTEN    pages on the backing device
        STREAMS    how many CPUs can compress at a time
        BACKING    the backing device or file

    EXIT STATUS

    0 if all went well, 1 if the command failed or FILE lacks pages, 2 if it was used
    wrongly. A failure is one line on standard error.

    SEE ALSO

    drgn-tools(1), drgn-tools-swap(1), zramctl(8)
    """
    from drgn_tools.errors import DumpError
    from drgn_tools.export.endings import format_of
    from drgn_tools.printing import one_line

    chosen = [output is not None, stat is not None, streams, pools]
    if sum(chosen) > 1:
        raise click.UsageError(
            "one of --output, --stat, --streams and --pools at a time"
        )
    if as_json and (output is not None or stat is not None):
        raise click.UsageError("--json goes with --streams and --pools alone")
    if output is None and (jobs is not None or force):
        raise click.UsageError("--jobs and --force need --output")
    image = output is not None and format_of("zram", output) == "image"
    if jobs is not None and not image:
        raise click.UsageError("--jobs is for images")
    if output is None and sys.stdout is None:
        raise DumpError("cannot print: standard output is closed")
    program = decoder("program")
    import drgn

    from drgn_tools import zram as helpers
    from drgn_tools.output import check_target

    if output is not None:
        check_target(output, force, (dump,))
    prog = program.open_dump(dump, symbols)
    program.require_symbols(prog, dump, "zram", ("zram", "zsmalloc"))
    try:
        if output is not None:
            check_target(output, force, (dump,))
            found = helpers.find_zram(prog, device)
            if not image:
                helpers.zram_table(found, output, force=force)
                return 0
            return _exported(
                helpers.zram_export(found, output, jobs=jobs, force=force),
                output,
                quiet,
            )
        _run(prog, device, stat, streams, pools, as_json)
    except helpers.SeveralDevices as error:
        raise DumpError(f"{one_line(error)} with --device") from None
    except (LookupError, ValueError, drgn.FaultError) as error:
        raise DumpError(one_line(error)) from None
    return 0


def _run(
    prog: Program,
    device: str | None,
    stat: str | None,
    streams: bool,
    pools: bool,
    as_json: bool,
) -> None:
    from drgn_tools import zram as helpers
    from drgn_tools.progress import printed

    if as_json:
        _print_json(prog, device, streams, sys.stdout)
        return
    with printed() as out:
        if stat is not None:
            name = stat.replace("-", "_")
            getattr(helpers, f"zram_{name}")(prog, device, file=out)
        elif streams:
            helpers.zram_streams(prog, device, file=out)
        elif pools:
            helpers.zram_pools(prog, device, file=out)
        else:
            helpers.zram_devices(prog, device, file=out)


# What is missing, one line each; the rest is in --json's list.
_SHOWN = 20


def _exported(result: ZramExport, path: str, quiet: bool) -> int:
    for found, what in ((result.doubtful, "doubtful"), (result.missing, "missing")):
        for page in found[:_SHOWN]:
            note = printable(f"page {page.index} is {what}: {page.note}")
            print(note, file=sys.stderr)
        if len(found) > _SHOWN:
            print(f"and {len(found) - _SHOWN} more", file=sys.stderr)
    count = len(result.missing)
    if not quiet:
        written = f"{result.size} bytes, {result.pages} pages written, {count} missing"
        print(printable(f"{path}: {written}"), file=sys.stderr)
    return 1 if count else 0


def _print_json(prog: Program, device: str | None, streams: bool, out: TextIO) -> None:
    from drgn_tools import zram as helpers

    if device is None:
        devices = list(helpers.for_each_zram(prog))
    else:
        devices = [helpers.find_zram(prog, device)]
    told = [_device(zram, streams) for zram in devices]
    out.write(json_line({"devices": told}) + "\n")


def _device(zram: Object, streams: bool) -> dict[str, Any]:
    from drgn import FaultError

    from drgn_tools import zram as helpers
    from drgn_tools.printing import one_line

    try:
        return _told(zram, streams)
    except FaultError as error:
        # Not in the dump, as one line; others may be.
        return {"name": helpers.device_name(zram), "error": one_line(error)}


def _told(zram: Object, streams: bool) -> dict[str, Any]:
    from drgn_tools import zram as helpers
    from drgn_tools.progress import Progress
    from drgn_tools.zram_table import where
    from drgn_tools.zsmalloc import zs_classes

    device = helpers.zram_device(zram)
    if not device.disksize:
        return device._asdict()
    kinds: dict[str, int] = {}
    # Pages of 4 KiB or more: what is said is how far it is at least.
    with Progress(device.name, device.disksize >> 12) as progress:
        for slot in helpers.for_each_zram_slot(zram):
            kinds[slot.kind] = kinds.get(slot.kind, 0) + 1
            progress.update(slot.index)
    return {
        **device._asdict(),
        "ratio": device.ratio,
        "slots": kinds,
        "last_compressed": [
            _stream(stream, streams) for stream in helpers.for_each_zram_stream(zram)
        ],
        "classes": [class_._asdict() for class_ in zs_classes(where(zram, "mem_pool"))],
    }


def _stream(stream: ZramStream, with_data: bool) -> dict[str, Any]:
    # Pages are what users' programs had in memory, and long.
    told = stream._asdict()
    data = told.pop("data")
    return {**told, "data": data and data.hex()} if with_data else told
