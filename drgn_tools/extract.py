# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Extracting a dump
-----------------

From any dump to a kdump-compressed file that holds only the pages that matter.
:mod:`drgn_tools.plan` decides which; workers write them: each takes a piece of
the plan, compresses its pages, reserves room at the end of the output and
writes data and descriptors itself. Nobody waits for an order, because the
format needs none.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from drgn_tools.codecs import Buffer, Codec, Compress
from drgn_tools.errors import DumpError
from drgn_tools.formats import kdump
from drgn_tools.pages import PageClass, dump_level, excluded_classes
from drgn_tools.plan import UNIT_PFNS, Plan, make_plan
from drgn_tools.progress import Progress
from drgn_tools.vmcore import Vmcore, open_vmcore, runs_mask
from drgn_tools.vmcoreinfo import if_sound
from drgn_tools.workers import Counters, run

# Pages a worker takes at a time: few writes, and no worker left alone for long.
_ITEM_PAGES = 1024
# Bytes of bitmap written at once; pieces that are all zero become holes.
_BITMAP_PIECE = 1 << 16

# With this share of such pages among those kept, a codec's kernel_level is
# needed for an output no larger than makedumpfile's (benchmarks/extract.py).
_KERNEL_SHARE = 0.2
_KERNEL_CLASSES = (
    PageClass.KERNEL,
    PageClass.SLAB,
    PageClass.PAGE_TABLE,
    PageClass.LARGE_KMALLOC,
)

# What workers count: the end of the output, and zero pages.
_END, _ZEROS = range(2)


class Summary(NamedTuple):
    """What :func:`extract` did."""

    plan: Plan
    page_size: int
    zero_pages: int
    """Kept pages that share one page of zeros in the output."""
    missing_pages: int
    """Pages that a cut-short input lost."""
    retried: dict[int, str]
    """First page frames of what a worker failed at, and why."""
    lost: dict[int, str]
    """Page frames that still could not be read, and why: missing in the output."""
    input_size: int
    output_size: int
    seconds: float


def extract(
    source: str,
    target: str,
    *,
    excluded: frozenset[PageClass],
    codec: Codec,
    codec_level: int | None,
    jobs: int,
    force: bool = False,
    partial: bool = False,
) -> Summary:
    """
    Write the pages of a dump that matter to a kdump-compressed file.

    :param source: any dump that :func:`~drgn_tools.vmcore.open_vmcore` opens.
    :param target: file to write, mode 0600. It appears under its name only
        when it is done and on the disk.
    :param excluded: classes to leave out; see
        :func:`~drgn_tools.pages.excluded_classes`.
    :param codec_level: None for the one that suits the pages that are kept.
    :param jobs: how many processes work on it.
    :param force: replace an existing file.
    :param partial: accept a cut-short input and keep what is there.
    :return: what was done. If pages were lost, the output is marked incomplete.
    :raises DumpError: if it cannot be done; then nothing is left behind.
    """
    started = time.monotonic()
    with open_vmcore(source) as vmcore:
        _check_target(source, target, force)
        if vmcore.lost_bytes and not partial:
            raise DumpError(
                f"{source} is cut short: {vmcore.lost_bytes >> 10} KiB of its data "
                "are missing (--partial keeps what is there)"
            )
        if vmcore.header is not None:
            # What was excluded once does not come back.
            excluded |= excluded_classes(vmcore.header.dump_level & 31)
        # Freed once, a block of this size teaches glibc to keep what is freed
        # for the next: arrays and output otherwise take new pages each time.
        np.empty(4 << 20, np.uint8)
        plan = make_plan(vmcore, excluded, jobs)
        compress = codec.compressor(codec_level or level_for(codec, plan))
        with _output(target) as fd:
            try:
                layout = _write_frame(fd, vmcore, plan, excluded, codec)
                with contextlib.closing(Counters(2)) as counters:
                    counters[_END] = layout.data
                    job = _Job(fd, vmcore, plan, layout, codec, compress, counters)
                    retried, lost = _write_pages(job, jobs)
                    zeros, size = counters[_ZEROS], counters[_END]
                if lost:
                    status = layout.header.status | kdump.STATUS_INCOMPLETE
                    header = layout.header._replace(status=status)
                    _pwrite(fd, kdump.pack_headers(header, vmcore.notes), 0)
                os.ftruncate(fd, size)
                os.fsync(fd)
            except OSError as error:
                raise DumpError(f"cannot write {target}: {error.strerror}") from None
        return Summary(
            plan,
            vmcore.page_size,
            zeros,
            -(-vmcore.lost_bytes // vmcore.page_size),
            retried,
            lost,
            vmcore.size,
            size,
            time.monotonic() - started,
        )


def level_for(codec: Codec, plan: Plan) -> int:
    """A codec's level that suits the pages that are kept."""
    kernel = sum(int(plan.kept[page_class]) for page_class in _KERNEL_CLASSES)
    many = kernel >= _KERNEL_SHARE * plan.kept.sum()
    return codec.kernel_level if many else codec.default_level


def _check_target(source: str, target: str, force: bool) -> None:
    if not os.path.lexists(target):
        return
    if os.path.exists(target) and os.path.samefile(source, target):
        raise DumpError(f"{target} is the input itself")
    if not os.path.isfile(target):
        raise DumpError(f"{target} exists and is no regular file")
    if not force:
        raise DumpError(f"{target} exists (-f replaces it)")


@contextlib.contextmanager
def _output(target: str) -> Iterator[int]:
    """A file that gets the name *target* if all goes well, and vanishes if not."""
    directory, name = os.path.split(target)
    if not name:
        raise DumpError(f"cannot write {target or 'a file without a name'}: no file")
    temporary = os.path.join(directory, f".{name[:32]}.{os.urandom(8).hex()}")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        # Mode 0600: a dump holds keys and passwords.
        fd = os.open(temporary, flags, 0o600)
    except OSError as error:
        raise DumpError(f"cannot write {target}: {error.strerror}") from None
    try:
        yield fd
        try:
            os.rename(temporary, target)
        except OSError as error:
            raise DumpError(f"cannot write {target}: {error.strerror}") from None
    except BaseException:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)
    # Not every file system can do this, and not everyone may; the file is safe.
    with contextlib.suppress(OSError):
        directory_fd = os.open(directory or ".", os.O_RDONLY)
        try:
            os.fsync(directory_fd)
        finally:
            os.close(directory_fd)


class _Layout(NamedTuple):
    """Where things go in the output."""

    header: kdump.Header
    zero_page: int
    """0 if zero pages are pages like all others."""
    data: int


def _write_frame(
    fd: int,
    vmcore: Vmcore,
    plan: Plan,
    excluded: frozenset[PageClass],
    codec: Codec,
) -> _Layout:
    """Headers, notes and bitmaps: all that is known before a page is read."""
    info = vmcore.vmcoreinfo
    crash_time = if_sound(lambda: info.decimal("CRASHTIME")) if info else None
    phys_base = if_sound(lambda: info.number("phys_base")) if info else None
    old = vmcore.header
    incomplete = kdump.STATUS_INCOMPLETE if vmcore.lost_bytes else 0
    if old is not None:
        incomplete |= old.status & kdump.STATUS_INCOMPLETE
    header = kdump.new_header(
        utsname=vmcore.utsname(),
        timestamp=crash_time or (old.timestamp if old else 0),
        status=codec.flag | incomplete,
        block_size=vmcore.page_size,
        nr_cpus=vmcore.nr_cpus,
        phys_base=phys_base or (old.phys_base if old else 0),
        dump_level=dump_level(excluded),
        notes=vmcore.notes,
        vmcoreinfo=vmcore.vmcoreinfo_place,
        max_mapnr=plan.max_mapnr,
    )
    _pwrite(fd, kdump.pack_headers(header, vmcore.notes), 0)
    # The bitmap of what exists is made as it is written: it may be large.
    for first in range(0, plan.max_mapnr, 8 * _BITMAP_PIECE):
        mask = runs_mask(
            vmcore.ram_runs, first, min(plan.max_mapnr, first + 8 * _BITMAP_PIECE)
        )
        if mask.any():
            bits = np.packbits(mask, bitorder="little")
            _pwrite(fd, bits.data, header.bitmap_offset + first // 8)
    start = header.bitmap_offset + header.bitmap_size
    for at in sorted({int(pfn) // 8 & -_BITMAP_PIECE for pfn in plan.units[:, 0]}):
        _pwrite(fd, plan.dumpable[at : at + _BITMAP_PIECE].data, start + at)
    end = header.descriptors_offset + plan.pages * kdump.DESCRIPTOR.itemsize
    if PageClass.ZERO not in excluded:
        return _Layout(header, 0, end)
    # makedumpfile --reassemble knows zero pages by this being the first data.
    _pwrite(fd, bytes(vmcore.page_size), end)
    return _Layout(header, end, end + vmcore.page_size)


def _pwrite(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while len(view):
        try:
            written = os.pwrite(fd, view, offset)
        except OSError as error:
            raise DumpError(f"cannot write the output: {error.strerror}") from None
        view = view[written:]
        offset += written


class _Job(NamedTuple):
    """What every worker needs."""

    fd: int
    vmcore: Vmcore
    plan: Plan
    layout: _Layout
    codec: Codec
    compress: Compress
    counters: Counters


def _write_pages(job: _Job, jobs: int) -> tuple[dict[int, str], dict[int, str]]:
    """Write all pages; returns :class:`Summary`'s *retried* and *lost*."""
    plan = job.plan
    ranks = plan.units[:, 1]
    starts = np.flatnonzero(np.diff(ranks // _ITEM_PAGES, prepend=-1)).tolist()
    items = [plan.units[a:b] for a, b in zip(starts, [*starts[1:], len(ranks)])]
    before = [*ranks[starts].tolist(), plan.pages]
    with Progress("writing pages", plan.pages) as progress:
        failed = run(
            len(items),
            lambda number: _write_some(job, _kept(plan, items[number])),
            0 if jobs == 1 else min(jobs, len(items)),
            lambda taken: progress.update(before[taken]),
        )
    # Most of what a worker died of is still sound: one page at a time.
    pages = [
        (pfns[i : i + 1], rank + i)
        for number in failed
        for pfns, rank in _kept(plan, items[number])
        for i in range(len(pfns))
    ]
    with Progress("reading page by page", len(pages)) as progress:
        lost = run(
            len(pages),
            lambda number: _write_some(job, [pages[number]]),
            0 if jobs == 1 else min(1, len(pages)),
            progress.update,
        )
    for number in lost:
        # Whoever was killed may have been in the middle of writing it.
        empty = bytes(kdump.DESCRIPTOR.itemsize)
        _pwrite(job.fd, empty, _descriptor_at(job, pages[number][1]))
    return (
        {int(items[number][0, 0]): why for number, why in failed.items()},
        {int(pages[number][0][0]): why for number, why in lost.items()},
    )


def _kept(
    plan: Plan, units: npt.NDArray[np.int64]
) -> list[tuple[npt.NDArray[np.int64], int]]:
    """Page frames to write, per unit, and how many there are before them."""
    kept = []
    for pfn, rank in units.tolist():
        bits = plan.dumpable[pfn // 8 : (pfn + UNIT_PFNS) // 8]
        pfns = pfn + np.flatnonzero(np.unpackbits(bits, bitorder="little"))
        kept.append((pfns, rank))
    return kept


def _descriptor_at(job: _Job, rank: int) -> int:
    return job.layout.header.descriptors_offset + rank * kdump.DESCRIPTOR.itemsize


def _write_some(job: _Job, pieces: list[tuple[npt.NDArray[np.int64], int]]) -> None:
    """Write pages of one or more units, and their descriptors."""
    page_size = job.vmcore.page_size
    layout = job.layout
    # No page equals nothing.
    zeros = bytes(page_size) if layout.zero_page else b""
    compress = job.compress
    data: list[Buffer] = []
    for pfns, _ in pieces:
        for page in job.vmcore.pages(pfns):
            if page == zeros:
                data.append(b"")
            else:
                packed = compress(page)
                data.append(packed if len(packed) < page_size else page)
    lengths = np.fromiter(map(len, data), np.int64, len(data))
    descriptors = np.zeros(len(data), kdump.DESCRIPTOR)
    blob = b"".join(data)
    if blob:
        base = job.counters.add(_END, len(blob))
        _pwrite(job.fd, blob, base)
        # The disk starts on it now, so that less is left for the sync at the end.
        # Where memory is short, the kernel makes writers wait by itself.
        os.posix_fadvise(job.fd, base, len(blob), os.POSIX_FADV_DONTNEED)
        descriptors["offset"] = base + np.cumsum(lengths) - lengths
    descriptors["size"] = lengths
    descriptors["flags"][lengths < page_size] = job.codec.flag
    empty = lengths == 0
    descriptors["offset"][empty] = layout.zero_page
    descriptors["size"][empty] = page_size
    descriptors["flags"][empty] = 0
    _pwrite(job.fd, descriptors.tobytes(), _descriptor_at(job, pieces[0][1]))
    job.counters.add(_ZEROS, int(np.count_nonzero(empty)))
