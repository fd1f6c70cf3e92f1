# SPDX-License-Identifier: LGPL-2.1-or-later
"""
oprofile in a kernel's memory
-----------------------------

Where a kernel keeps oprofile's buffers, counters and cookies, and what its addresses
belong to: tasks, files that they have mapped, symbols. From
:linux:`drivers/oprofile/` and :linux:`fs/dcookies.c`. Nothing here is printed.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import stat
from collections.abc import Iterator
from itertools import chain, islice
from typing import Callable, NamedTuple

from drgn import (
    Architecture,
    FaultError,
    FindObjectFlags,
    Object,
    Platform,
    PlatformFlags,
    Program,
    TypeKind,
    cast,
    container_of,
)
from drgn.helpers.linux.mm import for_each_vma
from drgn.helpers.linux.percpu import per_cpu

from drgn_tools.errors import DumpError
from drgn_tools.kernel_symbols import kernel_symbols
from drgn_tools.older_drgn import read_c_string
from drgn_tools.oprofile_records import (
    KERNEL,
    UNKNOWN,
    XEN,
    Format,
    Record,
    Sample,
    decode_samples,
)
from drgn_tools.printing import one_line
from drgn_tools.ring_buffer import for_each_ring_buffer_event, number
from drgn_tools.symbols import ElfFile
from drgn_tools.variables import for_each_cpu_in, for_each_possible_cpu, page_size

Note = Callable[[str], object]

# More than any kernel lets one ask for, little enough to read: entries of a CPU's
# array and of the event buffer, buckets and entries of dcookies, mappings of a task,
# components of a path.
_MAX_ENTRIES = 1 << 22
_MAX_BUCKETS = 1 << 16
_MAX_COOKIES = 1 << 20
_MAX_VMAS = 1 << 17
_MAX_DEPTH = 1024
_MAX_NAME = 4096
_PID_MAX = 1 << 22

_PF_EXITING = 4

# What drgn raises for what is not there, or not as it should be; OverflowError for
# addresses that none can be.
_NOT_THERE = (
    *(LookupError, FaultError, ValueError),
    *(AttributeError, TypeError, OverflowError),
)


class OprofileError(DumpError):
    """There is no oprofile in this kernel, or it is not found; the message says why."""


def _platform(prog: Program) -> Platform:
    assert prog.platform is not None
    return prog.platform


def is_cell(prog: Program) -> bool:
    """Whether samples may be of a Cell's SPUs."""
    return bool(_platform(prog).arch == Architecture.PPC64)


def record_format(prog: Program) -> Format:
    """How this kernel stores records."""
    flags = _platform(prog).flags
    try:
        sample = prog.type("struct op_sample")
        buffer = prog.type("struct oprofile_cpu_buffer")
    except LookupError:
        raise _absent(prog) from None
    return Format(
        8 if flags & PlatformFlags.IS_64_BIT else 4,
        "little" if flags & PlatformFlags.IS_LITTLE_ENDIAN else "big",
        sample.has_member("data"),
        # Of kernels for Xen's dom0, never in mainline.
        buffer.has_member("last_cpu_mode"),
    )


def _absent(prog: Program) -> OprofileError:
    from drgn.helpers.linux.module import find_module

    try:
        module = find_module(prog, "oprofile")
        loaded = bool(module)
    except _NOT_THERE:
        loaded = False
    if loaded:
        return OprofileError(
            "struct oprofile_cpu_buffer is unknown: the debugging symbols of the "
            "module oprofile (oprofile.ko) are missing"
        )
    return OprofileError(
        "this kernel has no oprofile: it is not loaded, or this kernel is 5.12 or later"
    )


def _variable(prog: Program, name: str, filename: str) -> Object | None:
    # Their names are anybody's.
    try:
        return prog.object(name, FindObjectFlags.VARIABLE, filename)
    except LookupError:
        return None


def _integer(prog: Program, names: tuple[str, ...], filename: str) -> int | None:
    for name in names:
        variable = _variable(prog, name, filename)
        if variable is not None:
            return int(variable.value_())
    return None


# --- the CPUs' buffers


def _per_cpu(prog: Program) -> Object:
    # Renamed in v2.6.33, when names of per-CPU variables had to become unique.
    for name in ("op_cpu_buffer", "cpu_buffer"):
        variable = _variable(prog, name, "cpu_buffer.c")
        if variable is not None:
            return variable
    raise _absent(prog)


def cpu_buffers(prog: Program) -> Iterator[tuple[int, Object]]:
    """Iterate over CPUs and their ``struct oprofile_cpu_buffer``."""
    variable = _per_cpu(prog)
    if variable.type_.kind == TypeKind.ARRAY:
        # Until 2.6.25.
        for cpu in range(variable.type_.length or 0):
            if variable[cpu].buffer:
                yield cpu, variable[cpu]
        return
    try:
        cpus = for_each_possible_cpu(prog)
    except LookupError:
        # Until 2.6.27.
        cpus = for_each_cpu_in(prog["cpu_possible_map"].address_of_())
    for cpu in cpus:
        yield cpu, per_cpu(variable, cpu)


def _rings(prog: Program) -> list[Object] | None:
    # The ring buffers, that of the readers first; None for kernels without.
    # One since Linux kernel commit cb6e943ccf19 (in v2.6.34 or v2.6.35, and in stable
    # releases before), two since commit 6dad828b76c7 (in v2.6.29).
    names: tuple[str, ...]
    for names in (("op_ring_buffer",), ("op_ring_buffer_read", "op_ring_buffer_write")):
        found = [_variable(prog, name, "cpu_buffer.c") for name in names]
        if all(ring is not None for ring in found):
            return [ring for ring in found if ring is not None]
    return None


def _ring_records(
    rings: list[Object], cpu: int, read: bool, uncommitted: bool, note: Note
) -> Iterator[Record]:
    def events(ring: Object, **options: bool) -> Iterator[Record]:
        try:
            # NULL for a CPU that was never there.
            if ring.buffers[cpu]:
                yield from for_each_ring_buffer_event(ring, cpu, note=note, **options)
        except _NOT_THERE as error:
            note(f"CPU {cpu}: {one_line(error)}")

    if len(rings) == 1:
        return events(rings[0], read=read, uncommitted=uncommitted)
    reading, writing = rings
    # Buffers are swapped when all of that of the readers is read, so what has been
    # read in the other is the oldest.
    before = (e for e in events(writing, read=True) if e[3] == "read") if read else ()
    return chain(
        before,
        events(reading, read=read),
        events(writing, uncommitted=uncommitted),
    )


def _array_records(
    prog: Program, cpu: int, buffer: Object, fmt: Format, read: bool, note: Note
) -> Iterator[Record]:
    # Until 2.6.28: an array between tail_pos and head_pos.
    size, head, tail, start = (
        buffer.member_(name).value_()
        for name in ("buffer_size", "head_pos", "tail_pos", "buffer")
    )
    if not start:
        return
    if not 0 < size <= _MAX_ENTRIES or head >= size or tail >= size:
        note(f"CPU {cpu}: its buffer from {tail} to {head} of {size} cannot be")
        return
    # With its padding, if it had any.
    width = prog.type("struct op_sample").size or 2 * fmt.word
    width = max(width, 2 * fmt.word)

    def records(begin: int, end: int, state: str, why: str) -> Iterator[Record]:
        step = 1 << 12
        for at in range(begin, end, step):
            count = min(step, end - at)
            try:
                raw = prog.read(start + at * width, count * width)
            except (FaultError, OverflowError):
                note(f"CPU {cpu}: records from {at} on are not in this dump")
                return
            for i in range(0, len(raw), width):
                record = raw[i : i + 2 * fmt.word]
                # Never written.
                if state != "read" or record.strip(b"\0"):
                    yield cpu, 0, record, state, why

    if read:
        why = "it was read: it may be older than it seems"
        ends = ((head, size), (0, tail)) if head >= tail else ((head, tail),)
        for begin, end in ends:
            yield from records(begin, end, "read", why)
    ends = ((tail, head),) if head >= tail else ((tail, size), (0, head))
    for begin, end in ends:
        yield from records(begin, end, "unread", "")


def read_samples(
    prog: Program,
    cpu: int | None,
    *,
    read: bool,
    uncommitted: bool,
    note: Note,
) -> list[Iterator[Sample]]:
    """
    Read the CPUs' buffers.

    :return: For each CPU its samples, in order.
    :raises OprofileError: if there are none.
    """
    fmt = record_format(prog)
    rings = _rings(prog)
    if rings is not None and not all(rings):
        raise OprofileError("nobody has opened oprofile's buffer: there are no samples")
    streams = []
    for owner, buffer in cpu_buffers(prog):
        if cpu not in (None, owner):
            continue
        if rings is None:
            records = _array_records(prog, owner, buffer.read_(), fmt, read, note)
        else:
            records = _ring_records(rings, owner, read, uncommitted, note)
        streams.append(decode_samples(records, fmt, note))
    if not streams and cpu is not None:
        raise OprofileError(f"oprofile has no CPU {cpu}")
    return streams


# --- what it says about itself


class OprofileCpuStats(NamedTuple):
    """What one CPU's buffer says about itself."""

    cpu: int
    buffer_size: int
    """In samples."""
    sample_received: int
    sample_lost_overflow: int
    """For which there was no room."""
    backtrace_aborted: int
    sample_invalid_eip: int


class OprofileStats(NamedTuple):
    """Counters and settings."""

    cpu_type: str
    """What takes the samples; ``timer`` without hardware's help."""
    started: bool
    backtrace_depth: int
    buffer_size: int
    """Of the event buffer, in words."""
    buffer_watershed: int
    cpu_buffer_size: int
    """In samples."""
    global_: dict[str, int]
    """What has been lost on the way to the event buffer, by the names of the files in
    /dev/oprofile/stats."""
    cpus: tuple[OprofileCpuStats, ...]


def read_stats(prog: Program) -> OprofileStats:
    """
    Read counters and settings.

    :raises OprofileError: if this kernel has no oprofile.
    """
    record_format(prog)
    names = OprofileCpuStats._fields[1:]
    cpus = []
    for cpu, buffer in cpu_buffers(prog):
        loaded = buffer.read_()
        # sample_invalid_eip since 2.6.28.
        values = [
            loaded.member_(name).value_() if loaded.type_.has_member(name) else 0
            for name in names
        ]
        cpus.append(OprofileCpuStats(cpu, *values))
    stats = _variable(prog, "oprofile_stats", "oprofile_stats.c")
    counters = {}
    if stats is not None:
        for member in stats.type_.members or ():
            if member.name:
                counters[member.name] = number(stats, member.name)
    ops = _variable(prog, "oprofile_ops", "oprof.c")
    cpu_type = ""
    if ops is not None:
        try:
            raw = read_c_string(prog, ops.cpu_type.value_(), 64)
            cpu_type = raw.decode("ascii", "backslashreplace")
        except _NOT_THERE:
            pass

    # Older kernels have the second names.
    def setting(names: tuple[str, ...], filename: str) -> int:
        return _integer(prog, names, filename) or 0

    return OprofileStats(
        cpu_type,
        bool(setting(("oprofile_started",), "oprof.c")),
        setting(("oprofile_backtrace_depth", "backtrace_depth"), "oprof.c"),
        setting(("oprofile_buffer_size", "fs_buffer_size"), "oprofile_files.c"),
        setting(
            ("oprofile_buffer_watershed", "fs_buffer_watershed"), "oprofile_files.c"
        ),
        setting(("oprofile_cpu_buffer_size", "fs_cpu_buffer_size"), "oprofile_files.c"),
        counters,
        tuple(cpus),
    )


# --- the event buffer


class EventBuffer(NamedTuple):
    """Words of the event buffer."""

    words: tuple[int, ...]
    """Those that nobody has read."""
    rest: tuple[int, ...]
    """What is behind them, of earlier fills; zeros at the end left out."""


def read_event_buffer(prog: Program, note: Note) -> EventBuffer:
    """
    Read the event buffer.

    :raises OprofileError: if there is none.
    """
    fmt = record_format(prog)
    start = _integer(prog, ("event_buffer",), "event_buffer.c")
    size = _integer(prog, ("buffer_size",), "event_buffer.c")
    position = _integer(prog, ("buffer_pos",), "event_buffer.c")
    if start is None or size is None or position is None:
        raise OprofileError("this kernel's event buffer is not found")
    if not start:
        raise OprofileError("nobody has opened oprofile's buffer: there are no samples")
    if not 0 <= position <= size or size > _MAX_ENTRIES:
        raise OprofileError(
            f"an event buffer of {size} words with {position} in use cannot be"
        )
    step = 4096
    total = size * fmt.word
    raw = bytearray()
    while len(raw) < total:
        # Up to the next page, of which each may be missing.
        count = min(step - (start + len(raw)) % step, total - len(raw))
        try:
            raw += prog.read(start + len(raw), count)
        except (FaultError, OverflowError):
            if len(raw) < position * fmt.word:
                have = len(raw) // fmt.word
                note(f"the event buffer is not in this dump from word {have} on")
            break
    used = bytes(raw[: position * fmt.word])
    rest = bytes(raw[position * fmt.word :]).rstrip(b"\0")
    rest += bytes(-len(rest) % fmt.word)
    return EventBuffer(fmt.words(used), fmt.words(rest))


def has_branch_targets(prog: Program) -> bool:
    """Whether IBS records of the event buffer have a word more, since 2.6.37."""
    config = _variable(prog, "ibs_config", "op_model_amd.c")
    try:
        return config is not None and bool(config.branch_target)
    except _NOT_THERE:
        return False


def read_cookies(prog: Program) -> dict[int, str]:
    """Paths of dcookies; empty if there are none."""
    table = _variable(prog, "dcookie_hashtable", "dcookies.c")
    size = _integer(prog, ("hash_size",), "dcookies.c")
    cookies: dict[int, str] = {}
    if table is None or not size or not table:
        return cookies
    type_ = prog.type("struct dcookie_struct")
    for bucket in range(min(size, _MAX_BUCKETS)):
        try:
            head = table[bucket].address_of_()
            node = head.next
            # A bucket may have been overwritten with anything.
            while node != head and len(cookies) < _MAX_COOKIES:
                cookie = container_of(node, type_, "hash_list")
                # struct path since 2.6.25.
                if type_.has_member("path"):
                    mount, dentry = cookie.path.mnt, cookie.path.dentry
                else:
                    mount, dentry = cookie.vfsmnt, cookie.dentry
                key = dentry.value_()
                if key in cookies:
                    break
                cookies[key] = _path(mount, dentry)
                node = node.next
        except _NOT_THERE:
            continue
    return cookies


# --- what addresses belong to


def _path(mount: Object, dentry: Object) -> str:
    # As d_path(), from the root of all; bounded, for it may be a loop.
    prog = dentry.prog_
    # struct mount since 3.3.
    try:
        real = prog.type("struct mount")
    except LookupError:
        real = None
    parts: list[str] = []
    for _ in range(_MAX_DEPTH):
        parent = dentry.d_parent
        if dentry == mount.mnt_root or dentry == parent:
            whole = mount if real is None else container_of(mount, real, "mnt")
            above = whole.mnt_parent
            if above == whole:
                break
            dentry = whole.mnt_mountpoint
            mount = above if real is None else above.mnt.address_of_()
            continue
        raw = read_c_string(prog, dentry.d_name.name.value_(), _MAX_NAME)
        parts.append(raw.decode("utf-8", "backslashreplace"))
        dentry = parent
    else:
        parts.append("...")
    return "/" + "/".join(reversed(parts))


class Task(NamedTuple):
    """A task as it is now; samples are of what it was."""

    pid: int
    """-1 if it is not known."""
    tgid: int
    comm: str
    program: str
    """Path of its executable; empty without."""
    mm: int
    """``struct mm_struct *``, 0 if it has none (any more)."""
    exited: bool


NOBODY = Task(-1, -1, "", "", 0, False)
"""When it is not known who."""


class Place(NamedTuple):
    """What an address belongs to."""

    image: str
    """A path, ``vmlinux`` or ``name.ko``; in brackets what is no file: ``[anon]``,
    ``[heap]``, ``[stack]``, ``[vdso]``, ``[xen]``; ``[exited]`` if the task had no
    memory any more, ``[unmapped]`` if nothing is there, ``[unknown]``."""
    offset: int | None
    """In the file or the vDSO; else None."""
    symbol: str
    """Empty if it has none."""
    symbol_offset: int
    """Of the address from it."""


# The vDSO is much like a file, and the same in all tasks.
_NO_FILE = ("[anon]", "[heap]", "[stack]")


class _Mapping(NamedTuple):
    start: int
    end: int
    # Of start, in the image.
    offset: int
    image: str


class Resolver:
    """Says what addresses belong to; asks once about each."""

    def __init__(self, prog: Program, sysroot: str | None = None) -> None:
        """
        :param sysroot: folder that has the programs of the target at their paths.
        """
        if sysroot is not None and not os.path.isdir(sysroot):
            raise OprofileError(f"{sysroot} is no folder with programs")
        self._prog = prog
        self._sysroot = sysroot
        self._tasks: dict[int, Task] = {0: NOBODY}
        self._mappings: dict[int, tuple[list[int], list[_Mapping]]] = {}
        self._places: dict[tuple[int, int, int], Place] = {}
        self._files: dict[str, ElfFile | None] = {}
        fmt = record_format(prog)
        # Where there is no mode, the upper half of addresses is the kernel's.
        self._half = 1 << (8 * fmt.word - 1)

    def task(self, address: int) -> Task:
        """The task with a ``struct task_struct *``."""
        found = self._tasks.get(address)
        if found is None:
            found = self._tasks[address] = self._read_task(address)
        return found

    def _read_task(self, address: int) -> Task:
        prog = self._prog
        try:
            task = Object(prog, "struct task_struct", address=address)
            pid, tgid = task.pid.value_(), task.tgid.value_()
            comm = task.comm.string_().decode("utf-8", "backslashreplace")
            mm = task.mm.value_()
            exiting = bool(task.flags.value_() & _PF_EXITING)
        except _NOT_THERE:
            return NOBODY
        # Memory that has been reused, or is not what it should be.
        if not (0 <= pid < _PID_MAX and 0 <= tgid < _PID_MAX) or not comm:
            return NOBODY
        return Task(pid, tgid, comm, self._program(mm), mm, exiting and not mm)

    def _program(self, mm: int) -> str:
        if not mm:
            return ""
        try:
            file = Object(self._prog, "struct mm_struct", address=mm).exe_file
            return _path(file.f_path.mnt, file.f_path.dentry) if file else ""
        except _NOT_THERE:
            return ""

    def _of_mm(self, mm: int) -> tuple[list[int], list[_Mapping]]:
        found = self._mappings.get(mm)
        if found is None:
            mappings: list[_Mapping] = []
            with contextlib.suppress(*_NOT_THERE):
                self._read_mappings(mm, mappings)
            found = [mapping.start for mapping in mappings], mappings
            self._mappings[mm] = found
        return found

    def _read_mappings(self, address: int, mappings: list[_Mapping]) -> None:
        prog = self._prog
        mm = Object(prog, "struct mm_struct", address=address)
        try:
            vdso = cast("unsigned long", mm.context.vdso).value_()
        except _NOT_THERE:
            vdso = 0
        loaded = mm.read_()
        brk = loaded.start_brk.value_(), loaded.brk.value_()
        stack = loaded.start_stack.value_()
        page = page_size(prog)
        last = -1
        for vma in islice(for_each_vma(mm), _MAX_VMAS):
            area = vma[0].read_()
            start, end = area.vm_start.value_(), area.vm_end.value_()
            if start <= last:
                # They are in order, so this goes round in circles.
                break
            last = start
            offset = 0
            if area.vm_file:
                path = area.vm_file.f_path
                try:
                    image = _path(path.mnt, path.dentry)
                except _NOT_THERE:
                    image = "[unknown]"
                offset = area.vm_pgoff.value_() * page
            elif vdso and start == vdso:
                image = "[vdso]"
            elif start < brk[1] and end > brk[0]:
                image = "[heap]"
            elif start <= stack < end:
                image = "[stack]"
            else:
                image = "[anon]"
            mappings.append(_Mapping(start, end, offset, image))

    def place(self, mode: int, task: Task, eip: int) -> Place:
        """What a sample's address belongs to."""
        if mode == UNKNOWN and eip >= self._half:
            mode = KERNEL
        key = (mode, 0 if mode == KERNEL else task.mm or -task.exited, eip)
        found = self._places.get(key)
        if found is None:
            found = self._places[key] = self._find(mode, task, eip)
        return found

    def _find(self, mode: int, task: Task, eip: int) -> Place:
        if mode == KERNEL:
            return self._kernel(eip)
        if mode == XEN:
            return Place("[xen]", None, "", 0)
        if not task.mm:
            return Place("[exited]" if task.exited else "[unknown]", None, "", 0)
        starts, mappings = self._of_mm(task.mm)
        at = bisect.bisect_right(starts, eip) - 1
        if at < 0 or eip >= mappings[at].end:
            return Place("[unmapped]" if starts else "[unknown]", None, "", 0)
        mapping = mappings[at]
        if mapping.image in _NO_FILE:
            return Place(mapping.image, None, "", 0)
        return self.file_place(mapping.image, mapping.offset + eip - mapping.start)

    def _kernel(self, eip: int) -> Place:
        symbol = kernel_symbols(self._prog).find(eip)
        if symbol is None:
            return Place("[kernel]", None, "", 0)
        image = f"{symbol.module}.ko" if symbol.module else "vmlinux"
        return Place(image, None, symbol.name, symbol.offset)

    def file_place(self, image: str, offset: int) -> Place:
        """An offset in a file, with the symbol if the file can be had."""
        file = self._file(image)
        found = None if file is None else file.find(offset)
        name, distance = found if found is not None else ("", 0)
        return Place(image, offset, name, distance)

    def _file(self, image: str) -> ElfFile | None:
        if self._sysroot is None or not image.startswith("/"):
            return None
        if image not in self._files:
            # A path of the target's, which may be anything.
            path = self._sysroot + os.path.normpath("/" + image.lstrip("/"))
            try:
                regular = stat.S_ISREG(os.stat(path).st_mode)
                self._files[image] = ElfFile(path) if regular else None
            except (OSError, ValueError, DumpError):
                self._files[image] = None
        return self._files[image]
