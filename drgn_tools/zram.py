# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Compressed Memory
-----------------

The ``drgn_tools.zram`` module provides helpers for zram devices: what each holds, in
the kernel's own words and slot by slot, the pages themselves, and the last page that
each CPU compressed. Of live kernels and dumps.

The helpers' names need no import in ``drgn -e`` and in interactive sessions.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Callable, NamedTuple

from drgn import FaultError, Object, Program, cast
from drgn.helpers.common.prog import takes_program_or_default

from drgn_tools.printing import printing

if TYPE_CHECKING:
    from drgn_tools.printing import File
    from drgn_tools.zram_pages import Reader

__all__ = (
    "find_zram",
    "for_each_zram",
    "for_each_zram_orphan",
    "for_each_zram_slot",
    "for_each_zram_stream",
    "zram_bd_stat",
    "zram_block_state",
    "zram_device",
    "zram_devices",
    "zram_export",
    "zram_io_stat",
    "zram_mm_stat",
    "zram_of_disk",
    "zram_pools",
    "zram_read",
    "zram_read_many",
    "zram_streams",
    "zram_table",
)

# numpy and the decoders are imported by those who need them: every drgn imports this.

# In place of a device's numbers.
_NOT_THERE = "not in the dump"
# Devices of an array that are looked at; zram made no more than 32 (max_num_devices).
_MAX_DEVICES = 256


class ZramPage(NamedTuple):
    """What a slot of a zram device holds."""

    kind: str
    """empty, zero, same, huge, compressed, written back, in flight or unreadable; see
    :func:`for_each_zram_slot`."""
    data: bytes | None
    """The page; None if it cannot be recovered."""
    note: str
    """Why not, or where it is instead. With data: why not to trust it. Empty if all is
    well."""


class ZramSlot(NamedTuple):
    """A slot of a zram device: what it says of a page."""

    index: int  # type: ignore[assignment]
    """Of the page in the device."""
    kind: str
    """
    * empty: nothing was written, or it was discarded; it reads as zeros
    * zero: zeros were written
    * same: one word, repeated
    * huge: stored as it is, because it did not compress
    * compressed
    * written back: it is on the backing device
    * in flight: just being written, written back or recompressed
    * unreadable: the slot is not in the dump
    """
    size: int
    """Of what is stored, in bytes; 0 if nothing is, or nothing in memory."""
    algorithm: str
    """That it is compressed with; empty if it is not compressed."""
    flags: str
    """As block_state has them: s(ame), w(ritten back), h(uge), i(dle), r(ecompressed),
    n(ot compressible), each a dot if it is not set."""
    ac_time: float | None
    """When it was last accessed, in seconds since boot; None if the kernel does not
    keep that."""
    age: float | None
    """How many seconds ago that was."""


class ZramDevice(NamedTuple):
    """A zram device, as zramctl has it."""

    name: str
    disksize: int
    """Of the device in bytes; 0 if it is not set up."""
    algorithms: tuple[str, ...]
    """By priority; empty where there is none."""
    stored: int
    """What was written to it, in bytes."""
    compressed: int
    """What became of that, in bytes."""
    used: int
    """Memory that it takes, in bytes."""
    limit: int
    """How much that may be; 0 if that is not limited."""
    most_used: int
    """How much it was at the most."""
    same: int
    """Pages of one repeated word, zeros for instance."""
    huge: int
    """Pages that are stored as they are, because they did not compress."""
    written_back: int
    """Pages that are on the backing device."""
    backing: str
    """That device's or file's path; empty if there is none."""
    streams: int
    """How many CPUs can compress at a time."""

    @property
    def ratio(self) -> float | None:
        """How many bytes are stored in one byte of memory; None if none are."""
        return self.stored / self.used if self.used else None


class ZramStream(NamedTuple):
    """What a CPU compressed last for a device."""

    cpu: int | None
    """None where the device has one buffer for all of them."""
    priority: int
    """Of the device's algorithms, the one that it was compressed with."""
    algorithm: str
    state: str
    """decoded, unused, damaged or missing (not in the dump)."""
    size: int
    """Of the stream in bytes, found by decoding it."""
    data: bytes | None
    """The page; None if there is none."""
    writer: str
    """Who was writing to it, or on that CPU to a zram device; empty if nobody was."""
    note: str
    """What is wrong with it; empty if all is well."""


class ZramOrphan(NamedTuple):
    """An object that a device's pool has, but none of its slots."""

    handle: int
    room: int
    """Bytes that it may have."""
    data: bytes | None
    """The page, if it can be decompressed."""
    algorithm: str
    """With this; empty for a page that is stored as it is."""


class ZramMissing(NamedTuple):
    """A page that an exported image lacks."""

    index: int  # type: ignore[assignment]
    kind: str
    note: str
    """Why, or where it is instead."""


class ZramExport(NamedTuple):
    """What was exported."""

    size: int
    """Of the image, in bytes."""
    pages: int
    """That were written; all others are holes."""
    missing: tuple[ZramMissing, ...]
    """Those that are not there: holes as well. By index."""
    doubtful: tuple[ZramMissing, ...]
    """Those that are there, but may be wrong."""


class SeveralDevices(LookupError):
    """None was named, and there is more than one."""


@takes_program_or_default
def for_each_zram(prog: Program) -> Iterator[Object]:
    """
    Iterate over the zram devices, those included that are not set up.

    :return: Iterator of ``struct zram *`` objects.
    :raises LookupError: if this kernel has no zram, or its debugging symbols are
        missing.
    """
    for _, zram in _numbered(prog):
        yield zram


def _numbered(prog: Program) -> Iterator[tuple[int, Object]]:
    from drgn.helpers.linux.idr import idr_for_each_entry

    try:
        # Since v4.2.
        idr = prog.variable("zram_index_idr")
    except LookupError:
        yield from enumerate(_zram_array(prog))
        return
    yield from idr_for_each_entry(idr.address_of_(), "struct zram")


def _zram_array(prog: Program) -> Iterator[Object]:
    for array, length in (
        ("zram_devices", "num_devices"),
        ("zram_devices", "zram_num_devices"),
        # v2.6.37 to v3.2.
        ("devices", "num_devices"),
    ):
        try:
            first = prog.variable(array, "zram_drv.c")
            count = prog.variable(length, "zram_drv.c").value_()
        except LookupError:
            continue
        for index in range(min(count, _MAX_DEVICES)):
            yield first + index
        return
    try:
        prog.type("struct zram")
    except LookupError:
        pass
    else:
        return
    raise LookupError(
        "this kernel has no zram, or the debugging symbols of zram.ko are missing"
    )


def device_name(zram: Object) -> str:
    """
    A device's name.

    :param zram: ``struct zram *``
    """
    try:
        raw: bytes = zram.disk.disk_name.string_()
    except FaultError:
        # A dump may lack the disk, which has the name.
        for number, other in _numbered(zram.prog_):
            if other.value_() == zram.value_():
                return f"zram{number}"
        return f"zram at {zram.value_():#x}"
    return raw.decode("ascii", "backslashreplace")


@takes_program_or_default
def find_zram(prog: Program, name: str | None = None) -> Object:
    """
    Find a zram device.

    :param name: Its name or number, zram0 for instance; without, the only device that
        is set up.
    :return: ``struct zram *``
    :raises LookupError: if there is none, or several.
    """
    devices = {device_name(zram): zram for zram in for_each_zram(prog)}
    if name is not None:
        wanted = f"zram{name}" if name.isdigit() else name.removeprefix("/dev/")
        if wanted in devices:
            return devices[wanted]
        names = ", ".join(devices) or "none"
        raise LookupError(f"there is no zram device {wanted}; there is {names}")
    used = [label for label, zram in devices.items() if _is_set_up(zram)]
    if len(used) == 1:
        return devices[used[0]]
    if used:
        names = ", ".join(used)
        raise SeveralDevices(f"there are several zram devices: {names}; name one")
    raise LookupError("no zram device is set up")


def _is_set_up(zram: Object) -> bool:
    from drgn_tools.zram_table import slot_count

    try:
        return slot_count(zram) > 0
    except FaultError:
        # Nobody knows; it is said where it is read.
        return True


def zram_of_disk(disk: Object) -> Object | None:
    """
    Get the zram device that a disk is.

    :param disk: ``struct gendisk *``
    :return: ``struct zram *``, or None if the disk is no zram.
    """
    prog = disk.prog_
    operations = set()
    # zram_wb_devops in v5.1 to v5.9.
    for name in ("zram_devops", "zram_wb_devops"):
        try:
            operations.add(prog.variable(name).address_)
        except LookupError:
            continue
    try:
        if disk.fops.value_() not in operations:
            return None
        zram = cast(prog.pointer_type(prog.type("struct zram")), disk.private_data)
        return zram if zram.disk == disk else None
    except FaultError:
        return None


def _reader(zram: Object) -> Reader:
    from drgn import ProgramFlags

    from drgn_tools.zram_pages import Reader

    prog = zram.prog_
    if prog.flags & ProgramFlags.IS_LIVE:
        return Reader(zram)
    # Of a dump, once.
    readers = prog.cache.setdefault("drgn_tools_zram", {})
    address = zram.value_()
    if address not in readers:
        readers[address] = Reader(zram)
    reader: Reader = readers[address]
    return reader


def zram_read(zram: Object, index: int) -> ZramPage:
    """
    Read a page of a zram device.

    :param zram: ``struct zram *``
    :param index: Of the page: its offset in the device in pages.
    :raises ValueError: if the device is smaller.
    :raises LookupError: if this kernel's zram is not understood.
    """
    return zram_read_many(zram, index, 1)[0]


def zram_read_many(zram: Object, index: int, count: int) -> list[ZramPage]:
    """
    Read pages of a zram device that follow each other, much faster than one by one.

    :param zram: ``struct zram *``
    :param index: Of the first page.
    :param count: How many pages.
    :raises ValueError: if the device is smaller.
    :raises LookupError: if this kernel's zram is not understood.
    """
    reader = _reader(zram)
    if index < 0 or count < 0 or index + count > reader.count:
        raise ValueError(
            f"{device_name(zram)} has {reader.count} pages: no page "
            f"{index if index < 0 else index + count - 1}"
        )
    return reader.pages(index, count)


def for_each_zram_slot(zram: Object) -> Iterator[ZramSlot]:
    """
    Iterate over the slots of a zram device.

    :param zram: ``struct zram *``
    :raises LookupError: if this kernel's zram is not understood.
    """
    from drgn_tools.zram_text import slots

    # Four times as fast as ZramSlot._make: there are millions.
    yield from map(partial(tuple.__new__, ZramSlot), slots(_reader(zram)))


def zram_device(zram: Object) -> ZramDevice:
    """
    Get what a zram device holds, as a whole.

    :param zram: ``struct zram *``
    :raises LookupError: if this kernel's zram is not understood.
    """
    from drgn_tools.variables import for_each_online_cpu, page_size
    from drgn_tools.zram_pages import algorithm_names, backing_path
    from drgn_tools.zram_table import slot_count
    from drgn_tools.zram_text import counter, limit_pages, pool_pages

    prog = zram.prog_
    page = page_size(prog)
    names = algorithm_names(zram)
    while names and not names[-1]:
        names.pop()
    return ZramDevice(
        device_name(zram),
        slot_count(zram) * page,
        tuple(names),
        counter(zram, "pages_stored") * page,
        counter(zram, "compr_data_size", "compr_size"),
        pool_pages(zram)[0] * page,
        limit_pages(zram) * page,
        counter(zram, "max_used_pages") * page,
        counter(zram, "same_pages", "zero_pages", "pages_zero"),
        counter(zram, "huge_pages"),
        counter(zram, "bd_count"),
        backing_path(zram),
        sum(1 for _ in for_each_online_cpu(prog)),
    )


def for_each_zram_stream(zram: Object) -> Iterator[ZramStream]:
    """
    Iterate over what each CPU compressed last for a zram device. That is kept also of
    pages that did not compress well enough, and after their slots were freed.

    :param zram: ``struct zram *``
    :raises LookupError: if this kernel's zram is not understood, or has no buffers of
        CPUs.
    """
    from drgn_tools.zram_streams import streams

    if not _is_set_up(zram):
        return
    yield from streams(zram)


def for_each_zram_orphan(zram: Object) -> Iterator[ZramOrphan]:
    """
    Iterate over the objects that the pool of a zram device has, but none of its slots:
    of pages that were just being written or freed.

    :param zram: ``struct zram *``
    :raises LookupError: if this kernel's zram is not understood, or its pool cannot be
        walked.
    """
    from drgn_tools.zram_orphans import orphans

    if not _is_set_up(zram):
        return
    yield from orphans(_reader(zram))


def zram_export(
    zram: Object, path: str, *, jobs: int | None = None, force: bool = False
) -> ZramExport:
    """
    Write a whole zram device to a file, as a sparse image.

    Pages that are not in memory are holes and are listed in the result.

    :param zram: ``struct zram *``
    :param path: Of the file, which appears when all has been written.
    :param jobs: How many processes do it; by default one for each CPU.
    :param force: It may replace a file.
    :raises LookupError: if this kernel's zram is not understood.
    :raises DumpError: if the file cannot be written.
    """
    from drgn_tools.output import check_target
    from drgn_tools.zram_export import export

    check_target(path, force)
    return export(_reader(zram), device_name(zram), path, jobs, force)


def zram_table(zram: Object, path: str, *, force: bool = False) -> None:
    """
    Write the slots of a zram device, or its pages, as a table with commas: a row for
    each, a line of names before them, and nothing where there is no value.

    Of slots, that is what :func:`for_each_zram_slot` says of them, their flags as true
    or false, ``handle`` in zsmalloc, the word that a page repeats (``fill``), the
    ``block`` of the backing device, and times in nanoseconds.

    Of pages, whose data is decompressed for that: its ``sha256``, how many of its bytes
    are zero, and why it is missing or not to be trusted.

    :param zram: ``struct zram *``
    :param path: Of the file, which appears when all has been written. What it ends in
        says what it is: ``.pages.csv`` for pages, ``.csv`` for slots.
    :param force: It may replace a file.
    :raises LookupError: if this kernel's zram is not understood.
    :raises DumpError: if the file cannot be written.
    :raises ValueError: if the file's name ends in something else.
    """
    from drgn_tools.export.endings import format_of
    from drgn_tools.output import check_target, write_file
    from drgn_tools.zram_csv import pages_csv, slots_csv

    kind = format_of("zram", path)
    if kind == "image":
        raise ValueError(f"{path!r} is a table's name only if it ends in .csv")
    check_target(path, force)
    reader = _reader(zram)
    if kind == "pages":
        write_file(path, pages_csv(reader, device_name(zram)), force)
    else:
        write_file(path, slots_csv(reader), force)


# --- printing


def _print(prog: Program, file: File | None, work: Callable[[File], None]) -> None:
    printing("zram", prog, file, work)


@takes_program_or_default
def zram_devices(
    prog: Program, device: str | None = None, *, file: File | None = None
) -> None:
    """
    Print the zram devices, like zramctl: their size, what was written (DATA), what
    became of it (COMPR), the memory that takes (USED), how much smaller that is
    (RATIO), pages of one repeated word (SAME), pages that did not compress (HUGE), and
    pages on the backing device (WRITTEN).

    :param device: Name of the only one to print.
    :param file: File to print to. Defaults to :data:`sys.stdout`.
    :raises LookupError: if there is no such device, or this kernel has no zram, or it
        is not understood.
    """

    def work(out: File) -> None:
        from drgn_tools.older_drgn import print_table
        from drgn_tools.text import binary_size, printable

        head = "NAME DISKSIZE ALGORITHM DATA COMPR USED RATIO SAME HUGE WRITTEN STREAMS"
        rows: list[list[object]] = [[*head.split(), "BACKING"]]
        named = device is not None
        for zram in [find_zram(prog, device)] if named else for_each_zram(prog):
            try:
                found = zram_device(zram)
            except FaultError:
                rows.append([printable(device_name(zram)), _NOT_THERE])
                continue
            ratio = found.ratio
            rows.append(
                [
                    printable(found.name),
                    binary_size(found.disksize) if found.disksize else "-",
                    printable(",".join(found.algorithms)) or "-",
                    binary_size(found.stored),
                    binary_size(found.compressed),
                    binary_size(found.used),
                    "-" if ratio is None else f"{ratio:.2f}",
                    found.same,
                    found.huge,
                    found.written_back,
                    found.streams,
                    printable(found.backing) or "-",
                ]
            )
        if len(rows) == 1:
            out.write("no zram devices\n")
        else:
            print_table(rows, out)

    _print(prog, file, work)


def _print_stat(
    prog: Program, device: str | None, file: File | None, name: str
) -> None:
    def work(out: File) -> None:
        from drgn_tools import zram_text

        zram = find_zram(prog, device)
        if name == "block_state":
            for line in zram_text.block_state(_reader(zram)):
                out.write(line)
        else:
            out.write(getattr(zram_text, name)(zram))

    _print(prog, file, work)


@takes_program_or_default
def zram_mm_stat(
    prog: Program, device: str | None = None, *, file: File | None = None
) -> None:
    """
    Print what :file:`/sys/block/zramN/mm_stat` has.

    :param device: Name of the device; without, the only one that is set up.
    :param file: File to print to. Defaults to :data:`sys.stdout`.
    :raises LookupError: if there is no such device.
    """
    _print_stat(prog, device, file, "mm_stat")


@takes_program_or_default
def zram_io_stat(
    prog: Program, device: str | None = None, *, file: File | None = None
) -> None:
    """
    Print what :file:`/sys/block/zramN/io_stat` has.

    Parameters and errors as of :func:`zram_mm_stat`.
    """
    _print_stat(prog, device, file, "io_stat")


@takes_program_or_default
def zram_bd_stat(
    prog: Program, device: str | None = None, *, file: File | None = None
) -> None:
    """
    Print what :file:`/sys/block/zramN/bd_stat` has.

    Parameters and errors as of :func:`zram_mm_stat`; a LookupError also if the kernel
    has no such file.
    """
    _print_stat(prog, device, file, "bd_stat")


@takes_program_or_default
def zram_block_state(
    prog: Program, device: str | None = None, *, file: File | None = None
) -> None:
    """
    Print what :file:`/sys/kernel/debug/zram/zramN/block_state` has.

    Parameters and errors as of :func:`zram_mm_stat`; a LookupError also if the kernel
    has no such file.
    """
    _print_stat(prog, device, file, "block_state")


@takes_program_or_default
def zram_streams(
    prog: Program, device: str | None = None, *, file: File | None = None
) -> None:
    """
    Print what each CPU compressed last: whether it can be decompressed, how long it is,
    who was writing at the crash, and how the page begins.

    :param device: Name of the device; without, all that are set up.
    :param file: File to print to. Defaults to :data:`sys.stdout`.
    :raises LookupError: if there is no such device, or it is not understood.
    """

    def work(out: File) -> None:
        from drgn_tools.older_drgn import print_table
        from drgn_tools.text import printable

        head = "DEVICE CPU ALGORITHM STATE SIZE WRITER PAGE"
        rows: list[list[object]] = [[*head.split()]]
        for zram in _chosen(prog, device):
            try:
                streams = list(for_each_zram_stream(zram))
            except FaultError:
                rows.append([printable(device_name(zram)), _NOT_THERE])
                continue
            for stream in streams:
                start = (stream.data or b"")[:32].decode("ascii", "replace")
                rows.append(
                    [
                        printable(device_name(zram)),
                        "-" if stream.cpu is None else stream.cpu,
                        printable(stream.algorithm),
                        stream.state,
                        stream.size or "-",
                        printable(stream.writer) or "-",
                        "".join(c if " " <= c <= "~" else "." for c in start)
                        or printable(stream.note)
                        or "-",
                    ]
                )
        print_table(rows, out)

    _print(prog, file, work)


def _chosen(prog: Program, device: str | None) -> list[Object]:
    if device is not None:
        return [find_zram(prog, device)]
    return [zram for zram in for_each_zram(prog) if _is_set_up(zram)]


@takes_program_or_default
def zram_pools(
    prog: Program, device: str | None = None, *, file: File | None = None
) -> None:
    """
    Print the zsmalloc pools of zram devices: for each size class that is in use, how
    many objects there are and have room, and the pages that they take.

    :param device: Name of the device; without, all that are set up.
    :param file: File to print to. Defaults to :data:`sys.stdout`.
    :raises LookupError: if there is no such device, or zsmalloc is not understood.
    """

    def work(out: File) -> None:
        from drgn_tools.older_drgn import print_table
        from drgn_tools.text import printable
        from drgn_tools.zram_table import where
        from drgn_tools.zsmalloc import zs_classes

        head = "POOL CLASS SIZE USED ALLOCATED OBJS/ZSPAGE PAGES/ZSPAGE PAGES"
        rows: list[list[object]] = [[*head.split()]]
        for zram in _chosen(prog, device):
            try:
                classes = zs_classes(where(zram, "mem_pool"))
            except FaultError:
                rows.append([printable(device_name(zram)), _NOT_THERE])
                continue
            for class_ in classes:
                if class_.allocated:
                    rows.append(
                        [
                            printable(device_name(zram)),
                            class_.index,
                            class_.size,
                            class_.used,
                            class_.allocated,
                            class_.objects,
                            class_.pages,
                            class_.allocated // class_.objects * class_.pages,
                        ]
                    )
        print_table(rows, out)

    _print(prog, file, work)
