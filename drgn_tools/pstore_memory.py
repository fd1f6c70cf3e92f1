# SPDX-License-Identifier: LGPL-2.1-or-later
"""
pstore in a kernel's memory
---------------------------

Where a kernel keeps its zones of persistent memory and their records: ramoops,
pstore_zone (pstore_blk), pstorefs and the buffers that the last dump went through.
From :linux:`fs/pstore/`. Nothing here is printed or decoded.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

from drgn import (
    FaultError,
    FindObjectFlags,
    Object,
    PlatformFlags,
    Program,
    ProgramFlags,
    Type,
    TypeMember,
)

from drgn_tools.errors import DumpError, MissingMemory
from drgn_tools.kernel_symbols import kernel_symbols
from drgn_tools.older_drgn import read_c_string

if TYPE_CHECKING:
    from drgn_tools.vmcore import Vmcore

# What zones may have at most, in bytes, all of them, and how many there may be: more
# than anybody sets aside, little enough to read.
_MAX_SIZE = 1 << 27
_MAX_ZONES = 1 << 16
# pstorefs records that are followed.
_MAX_RECORDS = 100_000

_CHUNK = 4096
# Read at once where all of it is there.
_PIECE = 1 << 20


class PstoreError(DumpError):
    """There is no pstore in this kernel, or it is not found; the message says why."""


# Layouts of 64-bit little-endian kernels, for programs that lack the debugging
# symbols of the ramoops or pstore_zone module: size, then members with their types
# and offsets in bytes. Of 5.10 to 7.2; only what is used here.
_LAYOUTS: dict[str, tuple[int, tuple[tuple[str, str, int], ...]]] = {
    "struct ramoops_context": (
        152,
        (
            ("dprzs", "pointer", 0),
            ("cprz", "pointer", 8),
            ("fprzs", "pointer", 16),
            ("mprz", "pointer", 24),
            ("phys_addr", "u64", 32),
            ("size", "u64", 40),
            ("max_dump_cnt", "u32", 120),
            ("max_ftrace_cnt", "u32", 136),
        ),
    ),
    "struct persistent_ram_ecc_info": (
        24,
        (
            ("block_size", "s32", 0),
            ("ecc_size", "s32", 4),
            ("symsize", "s32", 8),
            ("poly", "s32", 12),
        ),
    ),
    "struct persistent_ram_zone": (
        136,
        (
            ("paddr", "u64", 0),
            ("size", "u64", 8),
            ("vaddr", "pointer", 16),
            ("label", "pointer", 24),
            ("type", "u32", 32),
            ("buffer", "pointer", 48),
            ("buffer_size", "u64", 56),
            ("corrected_bytes", "s32", 88),
            ("bad_blocks", "s32", 92),
            ("ecc_info", "struct persistent_ram_ecc_info", 96),
            ("old_log", "pointer", 120),
            ("old_log_size", "u64", 128),
        ),
    ),
    # Since 5.8.
    "struct psz_context": (
        80,
        (
            ("kpszs", "pointer", 0),
            ("ppsz", "pointer", 8),
            ("cpsz", "pointer", 16),
            ("fpszs", "pointer", 24),
            ("kmsg_max_cnt", "u32", 32),
            ("ftrace_max_cnt", "u32", 52),
        ),
    ),
    "struct pstore_zone": (
        56,
        (
            ("off", "u64", 0),
            ("name", "pointer", 8),
            ("type", "u32", 16),
            ("buffer", "pointer", 24),
            ("oldbuf", "pointer", 32),
            ("buffer_size", "u64", 40),
        ),
    ),
    # Of 7.2, as a whole: struct mutex and so data were elsewhere before.
    "struct pstore_info": (
        40,
        (("name", "pointer", 8), ("buf", "pointer", 24), ("bufsize", "u64", 32)),
    ),
}

# Where pstore_info.data may be, without debugging symbols: 7.2, and before.
_INFO_DATA = (72, 80)


class Zone(NamedTuple):
    """One zone as the kernel describes it, and what of it can be read."""

    backend: str
    """ramoops or pstore_zone."""
    kind: str
    """dmesg, console, ftrace or pmsg; else what the kernel calls it."""
    number: int
    """Among those of its kind."""
    label: str
    """As the kernel has it since 5.0, or made in that way."""
    address: int
    """Physical, of ramoops; of pstore_zone, where the buffer is in the kernel's
    memory."""
    size: int
    """All of it, in bytes."""
    buffer_size: int
    """What the ring has room for, in bytes."""
    ecc: tuple[int, int, int, int] | None
    """``ecc_size``, ``block_size``, ``poly`` and ``symsize``; None without ECC."""
    corrected_bytes: int
    """What the kernel corrected in it when it booted."""
    bad_blocks: int
    """What it could not correct then."""
    live: bytes | None
    """The region itself, or the first bytes of it; None if it cannot be read."""
    live_error: str
    """Why the region, or its end, cannot be read; empty if it can."""
    old: bytes | None
    """What was in it at boot (``old_log``), oldest first and corrected; with
    pstore_zone, a ``struct psz_buffer``."""
    old_error: str
    """Why that cannot be read; empty if it can be, or if there is none."""


class FsRecord(NamedTuple):
    """A record of the mounted pstorefs."""

    kind: str
    id: int
    text: bytes
    compressed: bool
    seconds: int
    """Since 1970."""
    microseconds: int
    error: str
    """Why the text cannot be read; empty if it can."""


class DumpBuffer(NamedTuple):
    """A buffer that the last dump of this boot went through."""

    name: str
    """psinfo->buf or big_oops_buf."""
    data: bytes


class Pstore(NamedTuple):
    """All there is of pstore in a kernel's memory."""

    backend: str
    """``psinfo->name``; empty if none is registered."""
    zones: tuple[Zone, ...]
    records: tuple[FsRecord, ...]
    buffers: tuple[DumpBuffer, ...]
    notes: tuple[str, ...]
    """What is missing, each one line."""


# enum pstore_type_id, of which no number ever changed.
_KINDS = {0: "dmesg", 1: "mce", 2: "console", 3: "ftrace", 7: "pmsg"}

# Members of struct ramoops_context that lead to zones, newest first: kind, member,
# and for an array that with its length.
_RAMOOPS_ZONES = (
    # przs until 4.9: "pstore/ram: Rename "przs" to "dprzs"" (in v4.10).
    ("dmesg", (("dprzs", "max_dump_cnt"), ("przs", "max_dump_cnt"))),
    # Since v3.6.
    ("console", (("cprz", None),)),
    # One zone until "ramoops: Split ftrace buffer space into per-CPU zones" (in
    # v4.10).
    ("ftrace", (("fprzs", "max_ftrace_cnt"), ("fprz", None))),
    # Since v4.0.
    ("pmsg", (("mprz", None),)),
    # Rockchip's kernels.
    ("boot-log", (("boot_przs", "max_boot_log_cnt"),)),
)

_PSZ_ZONES = (
    ("dmesg", (("kpszs", "kmsg_max_cnt"),)),
    ("console", (("cpsz", None),)),
    ("ftrace", (("fpszs", "ftrace_max_cnt"),)),
    ("pmsg", (("ppsz", None),)),
)


def _wide(prog: Program) -> bool:
    platform = prog.platform
    flags = PlatformFlags.IS_64_BIT | PlatformFlags.IS_LITTLE_ENDIAN
    return platform is not None and platform.flags & flags == flags


def byteorder(prog: Program) -> Literal["little", "big"]:
    """``little`` or ``big``."""
    platform = prog.platform
    little = platform is None or platform.flags & PlatformFlags.IS_LITTLE_ENDIAN
    return "little" if little else "big"


def word_size(prog: Program) -> int:
    """Bytes of an unsigned long."""
    platform = prog.platform
    wide = platform is None or platform.flags & PlatformFlags.IS_64_BIT
    return 8 if wide else 4


def _layout_type(prog: Program, name: str) -> Type:
    size, members = _LAYOUTS[name]
    basic = {
        "u64": lambda: prog.int_type("unsigned long", 8, False),
        "u32": lambda: prog.int_type("unsigned int", 4, False),
        "s32": lambda: prog.int_type("int", 4, True),
        "pointer": lambda: prog.pointer_type(prog.void_type()),
    }

    def member_type(kind: str) -> Type:
        return basic[kind]() if kind in basic else _layout_type(prog, kind)

    return prog.struct_type(
        name.split()[1],
        size,
        tuple(
            TypeMember(member_type(kind), member, offset * 8)
            for member, kind, offset in members
        ),
    )


def _type(prog: Program, name: str) -> Type:
    try:
        return prog.type(name)
    except LookupError:
        if name not in _LAYOUTS or not _wide(prog):
            raise PstoreError(
                f"{name} is unknown: the debugging symbols of pstore's module "
                "(ramoops.ko, pstore_zone.ko) are missing"
            ) from None
        return _layout_type(prog, name)


def has_debug_info(prog: Program) -> bool:
    """Whether the kernel's own debugging symbols are loaded."""
    try:
        prog.object("init_task", FindObjectFlags.VARIABLE)
    except LookupError:
        return False
    return True


def _variable(
    prog: Program, name: str, filename: str | None, type_name: str
) -> Object | None:
    # A variable, wherever its address is known from; several modules have one of
    # the same name.
    try:
        return prog.object(name, FindObjectFlags.VARIABLE, filename)
    except LookupError:
        pass
    if has_debug_info(prog):
        return None
    address = kernel_symbols(prog).kallsyms.get(name)
    if address is None or not _wide(prog):
        return None
    if type_name.endswith("*"):
        type_ = prog.pointer_type(_type(prog, type_name[:-1].strip()))
    elif type_name in _LAYOUTS:
        type_ = _type(prog, type_name)
    else:
        type_ = prog.int_type(type_name, 4 if "int" in type_name else 8, False)
    return Object(prog, type_, address=address)


def variable_value(prog: Program, name: str, type_name: str) -> int | None:
    """
    The value of a number or pointer of pstore's, or None.

    :param type_name: unsigned int or unsigned long, if there are no debugging
        symbols.
    """
    try:
        found = _variable(prog, name, None, type_name)
        return None if found is None else int(found.value_())
    except (FaultError, TypeError, ValueError):
        return None


def _string(prog: Program, address: int) -> str:
    if not address:
        return ""
    try:
        raw = read_c_string(prog, address, 128)
    except FaultError:
        return ""
    return raw.decode("ascii", "backslashreplace")


def _number(obj: Object, member: str, default: int = 0) -> int:
    # A number or pointer, 0 if this kernel has none such.
    try:
        return int(obj.member_(member).value_())
    except (LookupError, TypeError):
        return default


def _read_at_most(
    prog: Program, address: int, size: int, *, physical: bool = False
) -> tuple[bytes, str]:
    # As much as there is, and why that is not all.
    pieces = []
    end = address + size
    first = ""
    while address < end and not first:
        # What is asked for at once is allocated, there or not.
        count = min(_PIECE, end - address)
        try:
            pieces.append(prog.read(address, count, physical))
            address += count
        except FaultError as error:
            first = str(error)
    while address < end:
        count = min(_CHUNK - address % _CHUNK, end - address)
        try:
            pieces.append(prog.read(address, count, physical))
        except FaultError:
            break
        address += count
    return b"".join(pieces), first


def _read_dev_mem(address: int, size: int) -> bytes:
    fd = os.open("/dev/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, size, address)
    finally:
        os.close(fd)


def _is_here(prog: Program) -> bool:
    # Whether it is the kernel that runs us.
    here = ProgramFlags.IS_LIVE | ProgramFlags.IS_LOCAL
    return bool(prog.flags & here == here)


def _vmcore(prog: Program) -> Vmcore | None:
    # The dump as the capture half sees it, which knows what its file should hold.
    from drgn_tools.vmcore import Vmcore, open_vmcore

    key = "drgn_tools_pstore_vmcore"
    if key not in prog.cache:
        path = getattr(prog, "core_dump_path", None)
        prog.cache[key] = None
        if path is not None and not prog.flags & ProgramFlags.IS_LIVE:
            with contextlib.suppress(DumpError):
                prog.cache[key] = open_vmcore(str(path), part=True)
    found = prog.cache[key]
    return found if isinstance(found, Vmcore) else None


def _is_cut_off(prog: Program, address: int, physical: bool) -> bool:
    vmcore = _vmcore(prog)
    if vmcore is None:
        return False
    try:
        if not physical:
            vmcore.kernel.read(address, 1)
        return physical and vmcore.cut_off(address)
    except MissingMemory as error:
        # Of a page table, too.
        return vmcore.cut_off(error.paddr)
    except DumpError:
        return False


_CUT = "missing: the dump is cut short"


def _why_missing(prog: Program, address: int) -> str:
    # What is to be said of memory that cannot be read. Addresses of faults may be
    # physical.
    cut = any(_is_cut_off(prog, address, physical) for physical in (False, True))
    return _CUT if cut else "not in this dump"


_RESERVED = "live region is reserved memory and not in this dump"


def _read_region(
    prog: Program, paddr: int | None, vaddr: int, size: int
) -> tuple[bytes | None, str]:
    # Never through vaddr on a live system: /proc/kcore reads VM_IOREMAP areas as
    # zeros, and before Linux kernel commit e6b842741b4f (in v5.17, and in stable
    # kernels) the kernel might oops.
    live = bool(prog.flags & ProgramFlags.IS_LIVE)
    data, why = b"", _RESERVED
    if paddr is not None:
        data, _ = _read_at_most(prog, paddr, size, physical=True)
        if not any(data[:12]) and _is_here(prog):
            try:
                data = _read_dev_mem(paddr, size)
            except OSError as error:
                data = b""
                why = (
                    "live region is reserved memory, which /proc/kcore does not "
                    f"have, and /dev/mem says: {error.strerror}"
                )
    if not data and not live:
        data, _ = _read_at_most(prog, vaddr, size)
    start, physical = (vaddr, False) if paddr is None else (paddr, True)
    if not any(data[:12]) and _is_cut_off(prog, start, physical):
        return None, f"live region is {_CUT}"
    if not data:
        if live and why is _RESERVED:
            why = "live region is reserved memory and cannot be read"
        return None, why
    if not any(data[:12]):
        # ramoops writes a signature into every zone: these are no zeros of its.
        where = "cannot be read" if live else "are not in this dump"
        return None, f"live region reads as zeros: its pages {where}"
    if len(data) < size:
        missing = size - len(data)
        cut = _is_cut_off(prog, start + len(data), physical)
        where = _CUT if cut else "not there"
        return data, f"the last {missing} bytes of the live region are {where}"
    return data, ""


def _zone_pointers(
    context: Object,
    table: tuple[tuple[str, tuple[tuple[str, str | None], ...]], ...],
    notes: list[str],
) -> Iterator[tuple[str, int, int]]:
    # Kind, index and address of each zone.
    prog = context.prog_
    word = word_size(prog)
    for kind, variants in table:
        for member, length in variants:
            if not context.type_.has_member(member):
                continue
            first = _number(context, member)
            if length is None:
                if first:
                    yield kind, 0, first
                break
            count = _number(context, length)
            if not first or not count:
                break
            if count > _MAX_ZONES:
                notes.append(f"{length} is {count}, which cannot be")
                break
            raw, why = _read_at_most(prog, first, count * word)
            if why:
                if _is_cut_off(prog, first + len(raw), False):
                    why = "the dump is cut short"
                notes.append(f"not all pointers to {kind} zones can be read: {why}")
            order = byteorder(prog)
            for i in range(len(raw) // word):
                pointer = int.from_bytes(raw[i * word : (i + 1) * word], order)
                # Until 4.9, what failed to be made ends the array.
                if not pointer or pointer >> 12 == (1 << (8 * word - 12)) - 1:
                    break
                yield kind, i, pointer
            break


def _absent(backend: str, kind: str, index: int, why: str) -> Zone:
    label = f"{backend}:{kind}({index})"
    return Zone(backend, kind, index, label, 0, 0, 0, None, 0, 0, None, why, None, why)


def _ecc(prz: Object) -> tuple[int, int, int, int] | None:
    # In a struct of its own since "pstore/ram_core: Better ECC size checking" and
    # its kin (in v3.9); in 3.4, in the zone.
    try:
        info = prz.ecc_info
        names = ("ecc_size", "block_size", "poly", "symsize")
    except AttributeError:
        info = prz
        names = ("ecc_size", "ecc_block_size", "ecc_poly", "ecc_symsize")
        if not _number(prz, "ecc", 1):
            return None
    size, block, poly, bits = (_number(info, name) for name in names)
    if not size:
        return None
    return size, block or 128, poly or 0x11D, bits or 8


class _Budget:
    # Bytes that may be read yet: the same memory may be given as many zones.
    def __init__(self) -> None:
        self.left = _MAX_SIZE

    def allows(self, size: int) -> bool:
        if not 0 <= size <= self.left:
            return False
        self.left -= size
        return True


def _ramoops_zone(
    prog: Program, kind: str, index: int, address: int, budget: _Budget
) -> Zone:
    try:
        type_ = _type(prog, "struct persistent_ram_zone")
        prz = Object(prog, type_, address=address).read_()
    except FaultError:
        gone = _why_missing(prog, address)
        why = f"its struct persistent_ram_zone at {address:#x} is {gone}"
        return _absent("ramoops", kind, index, why)
    size = _number(prz, "size")
    # Not in 3.4, which had one virtual mapping of all.
    paddr = _number(prz, "paddr") if prz.type_.has_member("paddr") else None
    buffer = _number(prz, "buffer") or _number(prz, "vaddr")
    live: bytes | None = None
    if size > 12 and budget.allows(size):
        live, why = _read_region(prog, paddr, buffer, size)
    else:
        why = f"its size, {size:#x}, cannot be"
        size = 0
    old, old_why = _read_old(
        prog, _number(prz, "old_log"), _number(prz, "old_log_size"), budget
    )
    # Since Linux kernel 5.0.
    label = _string(prog, _number(prz, "label")) or f"ramoops:{kind}({index})"
    return Zone(
        "ramoops",
        kind,
        index,
        label,
        buffer if paddr is None else paddr,
        size,
        _number(prz, "buffer_size"),
        _ecc(prz),
        _number(prz, "corrected_bytes"),
        _number(prz, "bad_blocks"),
        live,
        why,
        old,
        old_why,
    )


def _read_old(
    prog: Program, address: int, size: int, budget: _Budget
) -> tuple[bytes | None, str]:
    if not address or not size:
        return None, ""
    if not budget.allows(size):
        return None, f"its old_log_size, {size:#x}, cannot be"
    data, why = _read_at_most(prog, address, size)
    # Excluded pages of an ELF dump read as zeros.
    if not any(data):
        return None, f"old_log is {_why_missing(prog, address)}"
    if why:
        cut = _is_cut_off(prog, address + len(data), False)
        where = _CUT if cut else "not there"
        return data, f"the last {size - len(data)} bytes of old_log are {where}"
    return data, ""


def _psz_zone(
    prog: Program, kind: str, index: int, address: int, budget: _Budget
) -> Zone:
    try:
        zone = Object(prog, _type(prog, "struct pstore_zone"), address=address).read_()
    except FaultError:
        gone = _why_missing(prog, address)
        why = f"its struct pstore_zone at {address:#x} is {gone}"
        return _absent("pstore_zone", kind, index, why)
    room = _number(zone, "buffer_size")
    buffer = _number(zone, "buffer")
    live: bytes | None = None
    why = old_why = ""
    old: bytes | None = None
    if room > 0 and budget.allows(room + 12):
        live, why = _read_at_most(prog, buffer, room + 12)
        if not any(live[:12]):
            live, why = None, f"its buffer is {_why_missing(prog, buffer)}"
        oldbuf = _number(zone, "oldbuf")
        if oldbuf:
            # Allocated for what it holds, which is less than the zone may hold.
            head, _ = _read_at_most(prog, oldbuf, 12)
            used = int.from_bytes(head[4:8], byteorder(prog))
            if len(head) == 12 and used <= room:
                old, old_why = _read_old(prog, oldbuf, used + 12, budget)
            else:
                old_why = "its oldbuf cannot be read"
    else:
        why = f"its buffer_size, {room:#x}, cannot be"
        room = 0
    return Zone(
        "pstore_zone",
        kind,
        index,
        f"{_string(prog, _number(zone, 'name')) or kind}({index})",
        buffer,
        room + 12 if room else 0,
        room,
        None,
        0,
        0,
        live,
        why,
        old,
        old_why,
    )


def _plausible(prog: Program, context: Object) -> bool:
    # Whether this is a struct ramoops_context in use: a guess is to be checked.
    try:
        context = context.read_()
    except FaultError:
        return False
    size = _number(context, "size")
    if not 0 < size <= 1 << 40:
        return False
    return any(
        _number(context, member)
        for _, variants in _RAMOOPS_ZONES
        for member, _ in variants
        if context.type_.has_member(member)
    )


def _context_at(prog: Program, type_name: str, address: int) -> Object | None:
    if not address:
        return None
    return Object(prog, _type(prog, type_name), address=address)


class _Info(NamedTuple):
    name: str
    data: tuple[int, ...]
    # Where data points; if its place is not known, guesses.
    buf: int
    bufsize: int


def _psinfo(prog: Program, notes: list[str]) -> _Info | None:
    # None if the kernel has no such variable.
    kind = "struct pstore_info *"
    pointer = _variable(prog, "psinfo", "fs/pstore/platform.c", kind)
    if pointer is None:
        pointer = _variable(prog, "psinfo", None, kind)
    if pointer is None:
        return None
    try:
        address = int(pointer.value_())
        if not address:
            return _Info("", (), 0, 0)
        info = pointer[0].read_()
        if info.type_.has_member("data"):
            data: tuple[int, ...] = (_number(info, "data"),)
        else:
            data = tuple(prog.read_u64(address + at) for at in _INFO_DATA)
    except FaultError as error:
        notes.append(f"psinfo is {_why_missing(prog, error.address)}")
        return _Info("", (), 0, 0)
    name = _string(prog, _number(info, "name"))
    return _Info(name, data, _number(info, "buf"), _number(info, "bufsize"))


def _ramoops(prog: Program, info: _Info | None) -> Object | None:
    # Through psinfo first: other modules have an oops_cxt too (mtdoops, mtdpstore).
    name = "struct ramoops_context"
    if info is not None and info.name == "ramoops":
        for address in info.data:
            context = _context_at(prog, name, address)
            if context is not None and _plausible(prog, context):
                return context
    # Set up, but another backend was first.
    with contextlib.suppress(PstoreError):
        for filename in ("fs/pstore/ram.c", "drivers/char/ramoops.c"):
            context = _variable(prog, "oops_cxt", filename, name)
            if context is not None and _plausible(prog, context):
                return context
    return None


def _psz(prog: Program, info: _Info | None) -> Object | None:
    # Since "pstore/zone: Introduce common layer to manage storage zones" (in v5.8).
    name = "struct psz_context"
    context: Object | None = None
    with contextlib.suppress(PstoreError):
        context = _variable(prog, "pstore_zone_cxt", "fs/pstore/zone.c", name)
        if context is None and info is not None and info.data:
            # pstore_zone registers under the name of what is below it.
            backends = ("pstore_blk", "mtdpstore", "pstore_zone")
            if info.name in backends:
                context = _context_at(prog, name, info.data[0])
    if context is None:
        return None
    try:
        context = context.read_()
    except FaultError:
        return None
    used = any(_number(context, m) for m in ("kpszs", "ppsz", "cpsz", "fpszs"))
    return context if used else None


def _fs_records(prog: Program, notes: list[str], budget: _Budget) -> Iterator[FsRecord]:
    head = None
    # Renamed by "pstore: Rename "allpstore" to "records_list"" (in v5.8).
    for name in ("records_list", "allpstore"):
        with contextlib.suppress(LookupError):
            head = prog.object(name, FindObjectFlags.VARIABLE, "fs/pstore/inode.c")
            break
    if head is None:
        return
    try:
        private_type = prog.type("struct pstore_private")
        offset = private_type.member("list").bit_offset // 8
    except LookupError:
        return
    end = head.address_
    assert end is not None
    try:
        address = _number(head, "next")
        seen: set[int] = set()
        while address and address != end:
            if address in seen or len(seen) > _MAX_RECORDS:
                notes.append("pstorefs' list of records is damaged: it has a loop")
                return
            seen.add(address)
            private = Object(prog, private_type, address=address - offset).read_()
            yield _fs_record(prog, private, address - offset, budget)
            address = int(private.list.next.value_())
    except FaultError as error:
        why = _why_missing(prog, error.address)
        why = "the dump is cut short" if why is _CUT else str(error)
        notes.append(f"pstorefs' list of records cannot be followed: {why}")


def _fs_record(
    prog: Program, private: Object, address: int, budget: _Budget
) -> FsRecord:
    record = private
    text, why = b"", ""
    seconds = microseconds = 0
    try:
        if private.type_.has_member("record"):
            # Since "pstore: Do not duplicate record metadata" (in v4.12).
            record = private.record[0].read_()
            start = _number(record, "buf")
            seconds = _number(record.time, "tv_sec")
            microseconds = _number(record.time, "tv_nsec") // 1000
        else:
            data = private.type_.member("data").bit_offset
            start = address + (data or 0) // 8
        size = _number(record, "size")
        if not budget.allows(size):
            why = f"its size, {size}, cannot be"
        elif size:
            text, fault = _read_at_most(prog, start, size)
            gone = _why_missing(prog, start + len(text)) if fault else ""
            if not any(text):
                text, why = b"", f"it is {gone or 'not in this dump'}"
            elif fault:
                why = f"{size - len(text)} of its {size} bytes are {gone}"
    except FaultError as error:
        why = f"it is {_why_missing(prog, error.address)}"
    except (LookupError, AttributeError, TypeError) as error:
        why = f"it is not understood: {error}"
    kind = _number(record, "type", -1)
    return FsRecord(
        _KINDS.get(kind, f"type {kind}"),
        _number(record, "id"),
        text,
        bool(_number(record, "compressed")),
        seconds,
        microseconds,
        why,
    )


def _buffers(prog: Program, info: _Info) -> Iterator[DumpBuffer]:
    # What is in them before the first dump is whatever was in that memory.
    if variable_value(prog, "oopscount", "unsigned int") == 0:
        return
    # big_oops_buf_sz until 6.5: "pstore: Replace crypto API compression with zlib
    # calls" (in v6.6).
    big = variable_value(prog, "big_oops_buf", "unsigned long") or 0
    size = next(
        (
            value
            for name in ("max_compressed_size", "big_oops_buf_sz")
            if (value := variable_value(prog, name, "unsigned long")) is not None
        ),
        0,
    )
    for name, start, length in (
        ("big_oops_buf", big, size),
        ("psinfo->buf", info.buf, info.bufsize),
    ):
        if start and 0 < length <= _MAX_SIZE:
            data, _ = _read_at_most(prog, start, length)
            if any(data):
                yield DumpBuffer(name, data)


def _is_kernel_cut(prog: Program) -> bool:
    # Whether of the kernel's own memory some, and so maybe kallsyms, is missing.
    vmcore = _vmcore(prog)
    if vmcore is None:
        return False
    try:
        text = vmcore.vmcoreinfo and vmcore.vmcoreinfo.symbol("_stext")
    except DumpError:
        text = None
    return bool(vmcore.lost_bytes or (text and _is_cut_off(prog, text, False)))


def _why_none(prog: Program, info: _Info | None, notes: list[str]) -> str:
    if info is None:
        if not has_debug_info(prog):
            why = (
                "pstore cannot be found without the kernel's debugging symbols (or "
                "kallsyms, in dumps of Linux 6.0 and later)"
            )
            return f"{why}; the dump is cut short" if _is_kernel_cut(prog) else why
        return (
            "this kernel has no pstore: it has no psinfo (CONFIG_PSTORE, or its module)"
        )
    if notes:
        return f"pstore cannot be found: {notes[0]}"
    if not info.name:
        return "this kernel has no pstore in use: no backend is registered"
    return f"pstore's backend {info.name} has left nothing in memory"


def read_pstore(prog: Program) -> Pstore:
    """
    Read all zones, records and buffers of pstore.

    :raises PstoreError: if there are none; the message says why.
    """
    notes: list[str] = []
    info = _psinfo(prog, notes)
    zones: list[Zone] = []
    budget = _Budget()
    try:
        context = _ramoops(prog, info)
        if context is not None:
            loaded = context.read_()
            for kind, index, address in _zone_pointers(loaded, _RAMOOPS_ZONES, notes):
                zones.append(_ramoops_zone(prog, kind, index, address, budget))
    except PstoreError as error:
        notes.append(str(error))
    except FaultError as error:
        gone = _why_missing(prog, error.address)
        notes.append(f"struct ramoops_context is {gone}")
    try:
        psz = _psz(prog, info)
        if psz is not None:
            for kind, index, address in _zone_pointers(psz, _PSZ_ZONES, notes):
                zones.append(_psz_zone(prog, kind, index, address, budget))
    except PstoreError as error:
        notes.append(str(error))
    records = list(_fs_records(prog, notes, budget))
    buffers = list(_buffers(prog, info)) if info is not None else []
    if not zones and not records and not buffers:
        raise PstoreError(_why_none(prog, info, notes))
    return Pstore(
        info.name if info is not None else "",
        tuple(zones),
        tuple(records),
        tuple(buffers),
        tuple(notes),
    )


def kaslr_offset(prog: Program) -> int:
    """By how much the kernel was moved when it was loaded, from VMCOREINFO."""
    from drgn_tools.vmcoreinfo import Vmcoreinfo

    try:
        raw = prog["VMCOREINFO"].string_()
    except (LookupError, FaultError):
        return 0
    text = Vmcoreinfo(raw).text("KERNELOFFSET")
    try:
        return int(text, 16) if text else 0
    except ValueError:
        return 0
