# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Page Map
--------

The ``drgn_tools.page_helpers`` module provides helpers for what physical memory was
used for: by class of pages, by zone and node, as runs and as a picture; of a dump or a
live kernel. They read ``struct page`` alone, as ``drgn-tools pages`` does.

The printing helpers' names need no import in ``drgn -e`` and in interactive sessions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from drgn import Architecture, FaultError, Object, Program, ProgramFlags
from drgn.helpers.common.prog import takes_program_or_default

from drgn_tools.errors import DumpError, MissingMemory
from drgn_tools.page_map import PageMap, PageRun, page_runs, read_page_map
from drgn_tools.printing import printing
from drgn_tools.vmcore import Bools, Pfns, Run, Vmcore, merge_runs, runs_mask
from drgn_tools.vmcoreinfo import Vmcoreinfo

if TYPE_CHECKING:
    from drgn_tools.printing import File

__all__ = (
    "for_each_page_run",
    "pages_image",
    "pages_map",
    "pages_summary",
)

_PAGE_SIZE = 4096
# IORESOURCE_SYSTEM_RAM (:linux:`include/linux/ioport.h`).
_SYSTEM_RAM = 0x01000200
# The kernel itself has some hundreds at most.
_MAX_RESOURCES = 1 << 16


class PagesError(LookupError):
    """Memory cannot be described; the message says why."""


@takes_program_or_default
def for_each_page_run(prog: Program) -> Iterator[PageRun]:
    """
    Iterate over the kernel's memory, as runs of pages of one class.

    :return: Iterator of :class:`~drgn_tools.page_map.PageRun`, in order of addresses.
    :raises PagesError: if its struct pages cannot be found.
    """
    memory = _memory(prog)
    try:
        yield from page_runs(memory)
    except DumpError as error:
        raise PagesError(str(error)) from None


@takes_program_or_default
def pages_map(prog: Program) -> PageMap:
    """
    Get what the kernel's memory was used for.

    :raises PagesError: if its struct pages cannot be found.
    """
    try:
        return read_page_map(_memory(prog), jobs=0)
    except DumpError as error:
        raise PagesError(str(error)) from None


@takes_program_or_default
def pages_summary(prog: Program, *, file: File | None = None) -> None:
    """
    Print what memory was used for: by class, zone and node, with the longest runs.

    :param file: Where to; standard output by default.
    :raises PagesError: if its struct pages cannot be found.
    """

    def work(out: File) -> None:
        from drgn_tools.page_map_text import page_map_lines

        for line, _ in page_map_lines(pages_map(prog)):
            out.write(line + "\n")

    printing("pages", prog, file, work)


@takes_program_or_default
def pages_image(prog: Program, path: str, *, force: bool = False) -> None:
    """
    Draw physical memory, one colour for each class of pages.

    :param path: Of the file, which appears when all has been written: ``.svg``, or
        ``.png`` and anything else for a PNG.
    :param force: It may replace a file.
    :raises PagesError: if its struct pages cannot be found.
    :raises DumpError: if the file cannot be written.
    """
    from drgn_tools.export.page_image import save
    from drgn_tools.output import check_target

    check_target(path, force)
    save(pages_map(prog), path, force)


class _Memory(Vmcore):
    # What a program can read, as the capture half sees a dump.

    format = "drgn program"
    page_size = _PAGE_SIZE

    def __init__(self, prog: Program, ram: list[Run], info: Vmcoreinfo) -> None:
        path = getattr(prog, "core_dump_path", None)
        super().__init__(path or "the program", -1, 0, None)
        self._prog = prog
        self.live = bool(prog.flags & ProgramFlags.IS_LIVE)
        self.vmcoreinfo = info
        # drgn does not tell what a dump lacks but by failing to read it.
        self.ram_runs = self.data_runs = ram

    def close(self) -> None:
        pass

    def present(self, pfn: int, end_pfn: int) -> Bools:
        return runs_mask(self.data_runs, pfn, end_pfn)

    def pages(self, pfns: Pfns) -> Iterator[bytes]:
        for pfn in pfns.tolist():
            yield self.read(pfn * _PAGE_SIZE, _PAGE_SIZE)

    def read(self, paddr: int, size: int) -> bytes:
        try:
            data: bytes = self._prog.read(paddr, size, physical=True)
        except FaultError as error:
            raise MissingMemory(paddr, f"unreadable: {error.message}") from None
        return data


def _memory(prog: Program) -> _Memory:
    if prog.platform is None or prog.platform.arch != Architecture.X86_64:
        raise PagesError("only x86-64 kernels are known")
    try:
        info = Vmcoreinfo(prog["VMCOREINFO"].string_())
    except (LookupError, FaultError):
        raise PagesError("this is no kernel, or it has no VMCOREINFO") from None
    return _Memory(prog, _ram(prog), info)


def _ram(prog: Program) -> list[Run]:
    try:
        return _system_ram(prog["iomem_resource"])
    except (LookupError, AttributeError):
        pass
    if prog.flags & ProgramFlags.IS_LIVE:
        runs = _iomem()
        if runs:
            return runs
    raise PagesError(
        "without debugging symbols, nothing tells where memory is (drgn-tools pages "
        "needs none)"
    )


def _system_ram(root: Object) -> list[Run]:
    # What /proc/iomem calls System RAM.
    runs = []
    waiting = [root.child]
    for _ in range(_MAX_RESOURCES):
        if not waiting:
            break
        resource = waiting.pop().read_()
        if not resource:
            continue
        waiting.append(resource.sibling)
        if resource.flags.value_() & _SYSTEM_RAM == _SYSTEM_RAM:
            start, end = resource.start.value_(), resource.end.value_() + 1
            runs.append(Run(-(-start // _PAGE_SIZE), end // _PAGE_SIZE))
        else:
            waiting.append(resource.child)
    return merge_runs(runs)


def _iomem() -> list[Run]:
    runs = []
    with contextlib.suppress(OSError), open("/proc/iomem") as file:
        for line in file:
            place, _, name = line.strip().partition(" : ")
            if name.startswith("System RAM"):
                start, _, last = place.partition("-")
                end = int(last, 16) + 1
                runs.append(Run(-(-int(start, 16) // _PAGE_SIZE), end // _PAGE_SIZE))
    return merge_runs(runs)
