# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What each CPU compressed last
-----------------------------

The buffers into which zram compresses, one for each CPU: they keep the last stream
until the next one, also when it was thrown away because it was too long. How long it
is, is not kept. From :linux:`drivers/block/zram/zcomp.c`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from drgn import FaultError, Object, Program, ProgramFlags, TypeKind

from drgn_tools import variables
from drgn_tools.decompress import BadStream
from drgn_tools.older_drgn import unaliased
from drgn_tools.zram import ZramStream
from drgn_tools.zram_pages import Algorithm, read_algorithms
from drgn_tools.zram_table import where

# Functions that hold a stream, newest first.
_WRITERS = (
    "zcomp_compress",
    # Since v6.3.
    "zram_write_page",
    "recompress_slot",
    "zram_recompress",
    "__zram_bvec_write",
    "zram_bvec_write",
)


class _Buffer(NamedTuple):
    cpu: int | None
    priority: int
    address: int | None
    # None if what says it is not in the dump.
    owner: str | None
    # Who held it, empty for nobody; None if the kernel does not keep that.


def _per_cpu(prog: Program) -> Iterator[int]:
    from drgn_tools.variables import for_each_online_cpu

    yield from for_each_online_cpu(prog)


def _buffers(zram: Object) -> Iterator[_Buffer]:
    prog = zram.prog_
    type_ = zram.type_.type
    # Several since v6.2; one since v3.15.
    if type_.has_member("comps"):
        compressors = list(zram.comps)
    elif type_.has_member("comp"):
        compressors = [zram.comp]
    else:
        yield from _old_buffers(zram)
        return
    for priority, comp in enumerate(compressors):
        if comp:
            for cpu in _per_cpu(prog):
                try:
                    yield _stream(prog, comp, cpu, priority)
                except FaultError:
                    yield _Buffer(cpu, priority, None, None)


def _stream(prog: Program, comp: Object, cpu: int, priority: int) -> _Buffer:
    from drgn.helpers.linux.percpu import per_cpu_ptr

    if comp.stream.type_.type.kind == TypeKind.VOID:
        # v3.15 to v4.6: lists of streams, of which nobody knows the CPU.
        raise LookupError("this kernel's zram has no streams of CPUs")
    stream = per_cpu_ptr(comp.stream, cpu)
    # A pointer in v4.7 to v5.7.
    if stream.type_.type.kind == TypeKind.POINTER:
        stream = stream[0]
    return _Buffer(cpu, priority, stream.buffer.value_(), _owner(stream))


def _old_buffers(zram: Object) -> Iterator[_Buffer]:
    prog = zram.prog_
    try:
        # v2.6.37 to v3.14: of the device.
        yield _Buffer(None, 0, where(zram, "compress_buffer").value_(), None)
        return
    except LookupError:
        pass
    # The design of 2010: of the CPU, for all devices.
    from drgn.helpers.linux.percpu import per_cpu

    try:
        pointer = prog.variable("compress_buffer")
    except LookupError:
        raise LookupError("this kernel's zram has no streams of CPUs") from None
    for cpu in _per_cpu(prog):
        yield _Buffer(cpu, 0, per_cpu(pointer, cpu).value_(), None)


def _owner(stream: Object) -> str | None:
    # A mutex since v6.14; a local_lock_t in between has an owner with lockdep.
    if not stream.type_.type.has_member("lock"):
        return None
    lock = stream.lock
    if not lock.type_.has_member("owner"):
        return None
    owner = lock.owner
    if unaliased(owner.type_).kind == TypeKind.STRUCT:
        owner = owner.counter
    address = int(owner.value_()) & (1 << 64) - 8
    if not address:
        return ""
    try:
        return _task(Object(stream.prog_, "struct task_struct *", value=address))
    except FaultError:
        return f"task {address:#x}"


def _task(task: Object) -> str:
    name = task.comm.string_().decode("ascii", "backslashreplace")
    return f"{name} (pid {task.pid.value_()})"


def _on_cpu(prog: Program, cpu: int) -> str:
    # Before there was a lock, the stack of a crashed kernel's CPU says it.
    if prog.flags & ProgramFlags.IS_LIVE:
        return ""
    from drgn.helpers.linux.sched import cpu_curr

    try:
        task = cpu_curr(prog, cpu)
        names = {frame.name for frame in prog.stack_trace(task)}
        for name in _WRITERS:
            if name in names:
                return f"{_task(task)} in {name}()"
    except (LookupError, ValueError, FaultError):
        pass
    return ""


def _read(prog: Program, address: int, page_size: int) -> bytes:
    # Two pages; the second may be missing.
    try:
        data: bytes = prog.read(address, 2 * page_size)
    except FaultError:
        data = prog.read(address, page_size)
    return data


def _decoded(
    prog: Program, buffer: _Buffer, algorithm: Algorithm, page_size: int, writer: str
) -> ZramStream:
    def made(state: str, size: int, data: bytes | None, note: str) -> ZramStream:
        return ZramStream(
            buffer.cpu, buffer.priority, algorithm.name, state, size, data, writer, note
        )

    if buffer.address == 0:
        return made("unused", 0, None, "")
    if buffer.address is None:
        return made("missing", 0, None, "the address of its buffer is not in the dump")
    try:
        data = _read(prog, buffer.address, page_size)
    except FaultError:
        return made("missing", 0, None, "its buffer is not in the dump")
    if not any(data):
        return made("unused", 0, None, "")
    try:
        page, used = algorithm.start(data, page_size)
    except BadStream as error:
        return made("damaged", 0, None, str(error))
    note = "it was being written: it may be half of two pages" if writer else ""
    return made("decoded", used, page, note)


def streams(zram: Object) -> Iterator[ZramStream]:
    """
    The last stream of each CPU and algorithm of a device.

    :raises LookupError: if this kernel has no such buffers.
    """
    prog = zram.prog_
    page_size = variables.page_size(prog)
    algorithms = read_algorithms(zram)
    writers: dict[int, str] = {}
    for buffer in _buffers(zram):
        writer = buffer.owner or ""
        if buffer.owner is None and buffer.cpu is not None:
            if buffer.cpu not in writers:
                writers[buffer.cpu] = _on_cpu(prog, buffer.cpu)
            writer = writers[buffer.cpu]
        yield _decoded(prog, buffer, algorithms[buffer.priority], page_size, writer)
