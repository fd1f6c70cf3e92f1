# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Extracting a dump
-----------------

From any dump to one that holds only the pages that matter:
:mod:`drgn_tools.plan` decides which, :mod:`drgn_tools.writer` says what is
written of them, :mod:`drgn_tools.output` where to. Here is who does it, and
what happens when something is in the way: pages that cannot be read, a disk
that is full, a signal.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from drgn_tools.codecs import Codec
from drgn_tools.errors import DumpError, OutputFull, Stopped
from drgn_tools.output import Nothing, Output, Stream, check_target, files
from drgn_tools.pages import KERNEL_CLASSES, PageClass, excluded_classes
from drgn_tools.plan import Plan, make_plan
from drgn_tools.progress import Progress
from drgn_tools.text import binary_size
from drgn_tools.vmcore import open_vmcore
from drgn_tools.workers import Inbox, affordable, run
from drgn_tools.writer import ElfWriter, KdumpWriter, Writer

# With this share of such pages among those kept, a codec's kernel_level is
# needed for an output no larger than makedumpfile's (benchmarks/extract.py).
_KERNEL_SHARE = 0.2

# Signals after which what was written so far is kept.
_KEEPERS = (signal.SIGTERM, signal.SIGHUP)


class Summary(NamedTuple):
    """What :func:`extract` did."""

    plan: Plan
    excluded: frozenset[PageClass]
    """The classes that were left out in the end."""
    tried: int
    """How often there was no room before that."""
    page_size: int
    zero_pages: int
    """Kept pages of zeros that take no room of their own in the output."""
    missing_pages: int
    """Pages that a cut-short input lost."""
    retried: dict[int, str]
    """First page frames of what a worker failed at, and why."""
    lost: dict[int, str]
    """Page frames that still could not be read, and why: missing in the output."""
    unwritten: int
    """Pages that are missing in the output for want of room or time, or a fault."""
    fault: str
    """Why pages could not be written, if not for want of room or time; or empty."""
    doubt: str
    """Why some of the output, nobody knows what, may not be on the disk; or empty."""
    stopped: int
    """The signal that ended it before its time, or 0."""
    input_size: int
    output_size: int
    seconds: float

    @property
    def incomplete(self) -> bool:
        """Pages are missing that should be there: the output says so."""
        return bool(self.lost or self.unwritten or self.doubt)

    @property
    def why_incomplete(self) -> str:
        """What is missing, for people."""
        reasons = []
        if self.stopped:
            reasons.append(f"{self.unwritten} pages were not written in time")
        elif self.unwritten and self.fault:
            reasons.append(f"{self.unwritten} pages not written: {self.fault}")
        elif self.unwritten:
            reasons.append(f"no room for {self.unwritten} pages")
        if self.lost:
            pfn, why = next(iter(self.lost.items()))
            reasons.append(
                f"{len(self.lost)} pages could not be read, "
                f"the first at {pfn * self.page_size:#x}: {why}"
            )
        if self.doubt:
            reasons.append(f"some of it may not be on the disk: {self.doubt}")
        return "; ".join(reasons)


def extract(
    source: str,
    targets: Sequence[str],
    *,
    excluded: Sequence[frozenset[PageClass]],
    codec: Codec | None,
    codec_level: int | None,
    jobs: int,
    force: bool = False,
    partial: bool = False,
    elf: bool = False,
    limit: int | None = None,
    dry_run: bool = False,
    vmcoreinfo: bytes | None = None,
) -> Summary:
    """
    Write the pages of a dump that matter.

    :param source: any dump that :func:`~drgn_tools.vmcore.open_vmcore` opens.
    :param targets: the file to write, mode 0600, which appears under its name
        only when it is done and on the disk; several for a split dump; none
        for the flattened format on descriptor 1.
    :param excluded: classes to leave out; see
        :func:`~drgn_tools.pages.excluded_classes`. Where there is no room for
        what one of them leaves, the next is tried.
    :param codec: None stores pages as they are.
    :param codec_level: None for the one that suits the pages that are kept.
    :param jobs: how many processes work on it, if there is memory for so many.
    :param force: replace existing files.
    :param partial: accept a cut-short input and keep what is there.
    :param elf: write an ELF core, not a kdump-compressed file.
    :param limit: bytes that no file is to exceed.
    :param dry_run: do all but write.
    :param vmcoreinfo: text to go by instead of the dump's own.
    :return: what was done. If pages were lost, or there was no room for all at
        the last of *excluded*, or SIGTERM or SIGHUP came, the output is there
        and marked incomplete.
    :raises DumpError: if it cannot be done; then nothing is left behind.
    """
    started = time.monotonic()
    jobs = affordable(jobs)
    with open_vmcore(source, vmcoreinfo) as vmcore:
        for target in targets:
            check_target(target, force, (source,))
        if len({*targets}) < len(targets):
            raise DumpError("the parts of a split dump need different names")
        if elf and len(targets) > 1:
            raise DumpError("an ELF core cannot be split")
        if vmcore.lost_bytes and not partial:
            raise DumpError(
                f"{source} is cut short: {binary_size(vmcore.lost_bytes)} of its data "
                "are missing (--partial keeps what is there)"
            )
        # What was excluded once does not come back.
        known = vmcore.header.dump_level & 31 if vmcore.header else 0
        # Freed once, a block of this size teaches glibc to keep what is freed
        # for the next: arrays and output otherwise take new pages each time.
        np.empty(4 << 20, np.uint8)
        for tried, classes in enumerate(excluded):
            classes |= excluded_classes(known)
            plan = make_plan(vmcore, classes, jobs)
            compress = codec and codec.compressor(codec_level or level_for(codec, plan))
            last = tried + 1 == len(excluded)
            try:
                with contextlib.ExitStack() as stack:
                    outputs: Sequence[Output]
                    if dry_run:
                        outputs = [Nothing() for _ in targets or "1"]
                    elif targets:
                        outputs = stack.enter_context(files(*targets, force=force))
                    else:
                        outputs = [stack.enter_context(contextlib.closing(Stream(1)))]
                    writer: Writer = (
                        ElfWriter(vmcore, plan, outputs, limit)
                        if elf
                        else KdumpWriter(
                            vmcore, plan, outputs, limit, classes, codec, compress
                        )
                    )
                    stack.callback(writer.close)
                    done = _write(writer, jobs, outputs[0].inbox, last)
            except OutputFull:
                if last:
                    raise
            else:
                break
        return Summary(
            plan,
            classes,
            tried,
            vmcore.page_size,
            done.zero_pages,
            vmcore.lost_pages,
            done.retried,
            done.lost,
            done.unwritten,
            done.fault,
            done.doubt,
            done.stopped,
            vmcore.size,
            done.size,
            time.monotonic() - started,
        )


def level_for(codec: Codec, plan: Plan) -> int:
    """A codec's level that suits the pages that are kept."""
    kernel = sum(int(plan.kept[page_class]) for page_class in KERNEL_CLASSES)
    many = kernel >= _KERNEL_SHARE * plan.kept.sum()
    return codec.kernel_level if many else codec.default_level


class _Done(NamedTuple):
    """What of :class:`Summary` is known when all is written."""

    zero_pages: int
    retried: dict[int, str]
    lost: dict[int, str]
    unwritten: int
    fault: str
    doubt: str
    stopped: int
    size: int


def _write(writer: Writer, jobs: int, inbox: Inbox | None, last: bool) -> _Done:
    """
    Write all pages.

    :param last: if there is no room for all, some are better than none.
    """
    items = writer.items
    failed: dict[int, str] = {}
    retried: dict[int, str] = {}
    lost: dict[int, str] = {}
    stopped = 0
    # Without its headers, nothing is of use.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _KEEPERS)
    try:
        try:
            writer.start()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            with Progress("writing pages", writer.plan.pages) as progress:

                def tick(done: int) -> None:
                    progress.update(writer.pages_of(done))
                    writer.flush(done)

                workers = max(1, min(jobs, items))
                order = writer.order
                failed = {
                    order[n]: why
                    for n, why in run(
                        items,
                        lambda n: writer.write_item(order[n]),
                        workers,
                        tick,
                        inbox,
                    ).items()
                }
            # Most of what a worker died of is still sound: one page at a time.
            pages = []
            for number, why in sorted(failed.items()):
                pfns = writer.pfns(number)
                retried[pfns[0]] = why
                pages += [(number, index, pfn) for index, pfn in enumerate(pfns)]
            with Progress("reading page by page", len(pages)) as progress:
                unreadable = run(
                    len(pages),
                    lambda n: writer.write_page(*pages[n][:2]),
                    1,
                    progress.update,
                    inbox,
                )
            lost = {
                pages[n][2]: why
                for n, why in sorted(unreadable.items())
                if not writer.has(*pages[n][:2])
            }
            # It is all there but for its end, and a disk may take long over that.
            signal.pthread_sigmask(signal.SIG_BLOCK, _KEEPERS)
        except Stopped as signaled:
            # Who waits for it to end gets what there is; who no longer wants it
            # presses Ctrl-C.
            if signaled.signum == signal.SIGINT:
                raise
            stopped = signaled.signum
        if writer.full and not last and not stopped:
            raise OutputFull("no room for all pages")
        writer.flush(items)
        for number in failed:
            writer.rewrite(number)
        tally = writer.tally()
        unwritten = max(0, writer.plan.pages - tally.written - len(lost))
        keep = last or bool(stopped)
        size = writer.finish(bool(lost or unwritten), keep)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return _Done(
        tally.zero,
        retried,
        lost,
        unwritten,
        writer.fault,
        writer.doubt,
        stopped,
        size,
    )
