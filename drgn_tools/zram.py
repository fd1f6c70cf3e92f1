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
from typing import TYPE_CHECKING, NamedTuple

from drgn import FaultError, Object, Program, cast
from drgn.helpers.common.prog import takes_program_or_default

if TYPE_CHECKING:
    from drgn_tools.zram_pages import Reader

__all__ = (
    "find_zram",
    "for_each_zram",
    "for_each_zram_slot",
    "zram_of_disk",
    "zram_read",
    "zram_read_many",
)

# numpy and the decoders are imported by those who need them: every drgn imports this.

# Devices that are looked for: more than anybody has.
_MAX_DEVICES = 1 << 16


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


def _zram(prog: Program, address: int) -> Object:
    return Object(prog, prog.pointer_type(prog.type("struct zram")), value=address)


@takes_program_or_default
def for_each_zram(prog: Program) -> Iterator[Object]:
    """
    Iterate over the zram devices, those included that are not set up.

    :return: Iterator of ``struct zram *`` objects.
    :raises LookupError: if this kernel has no zram, or its debugging symbols are
        missing.
    """
    from drgn.helpers.linux.idr import idr_for_each_entry

    try:
        # Since v4.2.
        idr = prog.variable("zram_index_idr")
    except LookupError:
        yield from _zram_array(prog)
        return
    for _, zram in idr_for_each_entry(idr.address_of_(), "struct zram"):
        yield zram


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
        raise LookupError(f"there are several zram devices: {', '.join(used)}")
    raise LookupError("no zram device is set up")


def _is_set_up(zram: Object) -> bool:
    from drgn_tools.zram_table import slot_count

    return slot_count(zram) > 0


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

    yield from map(ZramSlot._make, slots(_reader(zram)))
