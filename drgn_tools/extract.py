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
import tempfile
import time
from collections.abc import Iterator
from typing import Callable, NamedTuple

import numpy as np
import numpy.typing as npt

from drgn_tools.codecs import Buffer, Codec, Compress
from drgn_tools.errors import DumpError
from drgn_tools.formats import kdump
from drgn_tools.pages import PageClass, dump_level, excluded_classes
from drgn_tools.plan import Plan, make_plan
from drgn_tools.progress import Progress
from drgn_tools.vmcore import Vmcore, bitmap_slice, open_vmcore, runs_mask
from drgn_tools.vmcoreinfo import if_sound
from drgn_tools.workers import Counters, run_workers

# Pages a worker takes at a time: few writes, and no worker left alone for long.
_ITEM_PAGES = 1024
# Pages that are bytes objects at a time: they stay in the processor's cache.
_BATCH_PAGES = 16
# Bytes of bitmap written at once; pieces that are all zero become holes.
_BITMAP_PIECE = 1 << 16

# What workers count: the next piece to take, the end of the output, pages
# written, and zero pages among them.
_NEXT, _END, _PAGES, _ZEROS = range(4)


class Summary(NamedTuple):
    """What :func:`extract` did."""

    plan: Plan
    page_size: int
    zero_pages: int
    """Kept pages that share one page of zeros in the output."""
    missing_pages: int
    """Pages that a cut-short input lost."""
    input_size: int
    output_size: int
    seconds: float


def extract(
    source: str,
    target: str,
    *,
    excluded: frozenset[PageClass],
    codec: Codec,
    codec_level: int,
    jobs: int,
    force: bool = False,
    partial: bool = False,
) -> Summary:
    """
    Write the pages of a dump that matter to a kdump-compressed file.

    :param source: any dump that :func:`~drgn_tools.vmcore.open_vmcore` opens.
    :param target: file to write, mode 0600. It appears under its name only
        when it is whole and on the disk.
    :param excluded: classes to leave out; see
        :func:`~drgn_tools.pages.excluded_classes`.
    :param jobs: how many processes compress.
    :param force: replace an existing file.
    :param partial: accept a cut-short input and keep what is there.
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
        compress = codec.compressor(codec_level)
        plan = make_plan(vmcore, excluded)
        with _output(target) as fd:
            try:
                layout = _write_frame(fd, vmcore, plan, excluded, codec)
                with contextlib.closing(Counters(4)) as counters:
                    job = _Job(fd, vmcore, plan, layout, codec, compress, counters)
                    zeros, size = _write_pages(job, jobs)
                os.ftruncate(fd, size)
                os.fsync(fd)
            except OSError as error:
                raise DumpError(f"cannot write {target}: {error.strerror}") from None
        return Summary(
            plan,
            vmcore.page_size,
            zeros,
            -(-vmcore.lost_bytes // vmcore.page_size),
            vmcore.size,
            size,
            time.monotonic() - started,
        )


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
    try:
        # Mode 0600: a dump holds keys and passwords.
        fd, temporary = tempfile.mkstemp(
            dir=os.path.abspath(directory), prefix=f".{name[:32]}."
        )
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

    descriptors: int
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
            piece = np.packbits(mask, bitorder="little")
            _pwrite(fd, piece.data, header.bitmap_offset + first // 8)
    start = header.bitmap_offset + header.bitmap_size
    for at in range(0, len(plan.dumpable), _BITMAP_PIECE):
        piece = plan.dumpable[at : at + _BITMAP_PIECE]
        if piece.any():
            _pwrite(fd, piece.data, start + at)
    end = header.descriptors_offset + plan.pages * kdump.DESCRIPTOR.itemsize
    if PageClass.ZERO not in excluded:
        return _Layout(header.descriptors_offset, 0, end)
    # makedumpfile --reassemble knows zero pages by this being the first data.
    _pwrite(fd, bytes(vmcore.page_size), end)
    return _Layout(header.descriptors_offset, end, end + vmcore.page_size)


def _pwrite(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while len(view):
        try:
            written = os.pwrite(fd, view, offset)
        except OSError as error:
            raise DumpError(f"cannot write the output: {error.strerror}") from None
        view = view[written:]
        offset += written


def _items(plan: Plan) -> list[tuple[int, int]]:
    """Slices of plan.units, each about :data:`_ITEM_PAGES` pages."""
    before = plan.units[:, 2]
    starts = np.flatnonzero(np.diff(before // _ITEM_PAGES, prepend=-1)).tolist()
    return list(zip(starts, [*starts[1:], len(before)]))


class _Job(NamedTuple):
    """What every worker needs."""

    fd: int
    vmcore: Vmcore
    plan: Plan
    layout: _Layout
    codec: Codec
    compress: Compress
    counters: Counters


def _write_pages(job: _Job, jobs: int) -> tuple[int, int]:
    """Write all pages; returns how many are zero, and the size of the file."""
    counters = job.counters
    counters.add(_END, job.layout.data)
    items = _items(job.plan)
    with Progress("writing pages", job.plan.pages) as progress:

        def show() -> None:
            progress.update(counters[_PAGES])

        starter = os.getpid()

        def work(tick: Callable[[], None] | None = None) -> None:
            while (number := counters.add(_NEXT, 1)) < len(items):
                if starter not in (os.getpid(), os.getppid()):
                    return  # It was killed, and nobody waits for this.
                _write_item(job, job.plan.units[slice(*items[number])])
                if tick is not None:
                    tick()

        if jobs == 1 or len(items) < 2:
            work(show)
        else:
            run_workers(min(jobs, len(items)), work, show)
    return counters[_ZEROS], counters[_END]


def _write_item(job: _Job, units: npt.NDArray[np.int64]) -> None:
    """Write the pages of some units, and their descriptors."""
    page_size = job.vmcore.page_size
    layout = job.layout
    # No page equals nothing.
    zeros = bytes(page_size) if layout.zero_page else b""
    compress = job.compress
    data: list[Buffer] = []
    for pfn, end_pfn, _ in units.tolist():
        pfns = pfn + np.flatnonzero(bitmap_slice(job.plan.dumpable, pfn, end_pfn))
        # As one opaque value each, numpy makes bytes objects of many pages at
        # once: cheaper than a slice, a copy and a look for zeros per page.
        pages = job.vmcore.pages(pfns).view(f"V{page_size}").reshape(-1)
        for start in range(0, len(pages), _BATCH_PAGES):
            page: bytes
            for page in pages[start : start + _BATCH_PAGES].tolist():
                if page == zeros:
                    data.append(b"")
                    continue
                packed = compress(page)
                data.append(packed if len(packed) < page_size else page)
    lengths = np.fromiter(map(len, data), np.int64, len(data))
    descriptors = np.zeros(len(data), kdump.DESCRIPTOR)
    blob = b"".join(data)
    if blob:
        base = job.counters.add(_END, len(blob))
        _pwrite(job.fd, blob, base)
        descriptors["offset"] = base + np.cumsum(lengths) - lengths
    descriptors["size"] = lengths
    descriptors["flags"][lengths < page_size] = job.codec.flag
    empty = lengths == 0
    descriptors["offset"][empty] = layout.zero_page
    descriptors["size"][empty] = page_size
    descriptors["flags"][empty] = 0
    first = int(units[0, 2])
    at = layout.descriptors + first * kdump.DESCRIPTOR.itemsize
    _pwrite(job.fd, descriptors.tobytes(), at)
    job.counters.add(_PAGES, len(data))
    job.counters.add(_ZEROS, int(np.count_nonzero(empty)))
