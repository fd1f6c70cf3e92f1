# SPDX-License-Identifier: LGPL-2.1-or-later
"""The swap command: parse, call, print."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from drgn_tools import options
from drgn_tools.decoding import decoder
from drgn_tools.text import json_line, parse_address, parse_size, printable

if TYPE_CHECKING:
    from drgn import Object, Program

# What cannot be had, one line each; the rest is in --json's list.
_SHOWN = 20


def _checked(
    parse: Callable[[str], int],
) -> Callable[[click.Context, click.Parameter, str | None], int | None]:
    def number(
        ctx: click.Context, param: click.Parameter, value: str | None
    ) -> int | None:
        try:
            return None if value is None else parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from None

    return number


_EPILOG = """\b
Examples:
  drgn-tools swap vmcore
  drgn-tools swap vmcore --pid 258
  drgn-tools swap vmcore --pid 258 --address 0x7f80c000 --size 0x1000 -o heap
"""


@click.command(epilog=_EPILOG)
@options.dump
@options.symbols
@click.option(
    "--pid",
    type=click.IntRange(1),
    metavar="N",
    help="The task. Without, those that have memory in swap are listed.",
)
@click.option(
    "--address",
    callback=_checked(parse_address),
    metavar="A",
    help="Only its memory from there on; hexadecimal, with 0x or without.",
)
@click.option(
    "--size",
    callback=_checked(parse_size),
    metavar="N",
    help="So many bytes, or k, m, g of them; by default, all.",
)
@options.output(
    "Write that memory to a sparse file, with holes for what cannot be had."
)
@options.force
@options.as_json
@options.quiet
def swap(
    dump: str,
    symbols: tuple[str, ...],
    pid: int | None,
    address: int | None,
    size: int | None,
    output: str | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Print where a task's pages are, or write out what is in them.

    Debugging symbols of the kernel are needed, and of zram and zsmalloc for pages
    that are there.

    \f
    Without --pid, PAGES are of a process's own memory, as its VmSwap. Shared memory
    (tmpfs, SysV, shared anonymous mappings) is not in there: with --pid there may be
    more, and who has nothing else in swap is not listed.

    Pages that are compressed in memory can be read; with -o they are, in the order in
    which the kernel would.

    A size is decimal, or hexadecimal with 0x in front. -o needs --address and --size.
    What cannot be had is a hole, and is said on standard error.

    KINDS

        resident          in memory, mapped
        page cache        of a file or shared, in memory, not mapped
        swap cache        in memory, on its way to swap or back
        zero              all zeros, stored nowhere
        zswap, zram       compressed in memory
        migration         just being moved
        device exclusive  lent to a device

    These can be read. Of all others, there is nothing in the dump:

        device            on a device that is not zram
        device private    in a device's own memory
        file              of a file, not in memory
        untouched         mapped, but there never was a page: zeros
        unmapped          nothing is mapped there
        marker            no page, but a mark: guard, poisoned, uffd-wp
        hwpoison          lost to an error of the hardware
        excluded          left out of the dump, or what leads to it is
        damaged           what leads to it cannot be

    EXIT STATUS

    0 if all went well, 1 if the command failed or memory is missing in FILE, 2 if it
    was used wrongly. A failure is one line on standard error.

    SEE ALSO

    drgn-tools(1), drgn-tools-zram(1)
    """
    from drgn_tools.errors import DumpError

    if pid is None and (address is not None or output is not None):
        raise click.UsageError("--address and --output need --pid")
    if size is not None and address is None:
        raise click.UsageError("--size needs --address")
    if output is not None and size is None:
        raise click.UsageError("--output needs --address and --size")
    if output is not None and as_json:
        raise click.UsageError("one of --output and --json at a time")
    if force and output is None:
        raise click.UsageError("--force needs --output")
    if output is None and sys.stdout is None:
        raise DumpError("cannot print: standard output is closed")
    program = decoder("program")
    import drgn

    from drgn_tools import swap as helpers
    from drgn_tools.output import check_target
    from drgn_tools.printing import one_line

    if output is not None:
        check_target(output, force, (dump,))
    prog = program.open_dump(dump, symbols)
    program.require_symbols(prog, dump, "swap")
    try:
        if pid is None:
            _list(prog, as_json)
            return 0
        if output is not None:
            assert address is not None and size is not None
            task = helpers.find_task(prog, pid)
            return _write(task, address, size, output, force, quiet)
        if as_json:
            _print_json(helpers.find_task(prog, pid), address or 0, size)
        else:
            helpers.swap_where(
                prog, pid, address=address or 0, size=size, file=sys.stdout
            )
    except (LookupError, ValueError, drgn.FaultError) as error:
        raise DumpError(one_line(error)) from None
    return 0


def _list(prog: Program, as_json: bool) -> None:
    from drgn_tools import swap as helpers

    if as_json:
        tasks = [task._asdict() for task in helpers.for_each_swap_task(prog)]
        sys.stdout.write(json_line({"tasks": tasks}) + "\n")
    else:
        helpers.swap_tasks(prog, file=sys.stdout)


def _print_json(task: Object, address: int, size: int | None) -> None:
    from drgn_tools import swap as helpers

    ranges = list(helpers.swap_map(task, address, size))
    if not ranges:
        raise LookupError(helpers.nothing_mapped(address, size))
    out = {
        "pid": task.pid.value_(),
        "comm": helpers.comm(task),
        "pages": helpers.totals(ranges),
        "ranges": [{**one._asdict(), "pages": one.pages} for one in ranges],
    }
    sys.stdout.write(json_line(out) + "\n")


def _write(
    task: Object, address: int, size: int, path: str, force: bool, quiet: bool
) -> int:
    from drgn_tools.output import files
    from drgn_tools.swap import as_range, joined, swap_pages

    noted = []
    written = untouched = missing = 0
    with files(path, force=force) as (file,):
        for page in swap_pages(task, address, size):
            if page.kind == "untouched":
                # Zeros, as the task would have read.
                untouched += 1
                continue
            if page.note:
                noted.append(page)
            if page.data is None:
                missing += 1
                continue
            skipped = max(0, address - page.address)
            part = page.data[skipped : address + size - page.address]
            file.write(part, page.address + skipped - address)
            written += 1
        file.finish(size)
    ranges = list(joined(map(as_range, noted)))
    for one in ranges[:_SHOWN]:
        where = f"{one.start:#x}-{one.end:#x}, {one.pages} pages"
        print(printable(f"{where}: {one.kind}: {one.note}"), file=sys.stderr)
    if len(ranges) > _SHOWN:
        print(f"and {len(ranges) - _SHOWN} more", file=sys.stderr)
    if not quiet:
        pages = f"{written} pages written, {untouched} untouched, {missing} missing"
        print(printable(f"{path}: {size} bytes, {pages}"), file=sys.stderr)
    return 1 if missing else 0
