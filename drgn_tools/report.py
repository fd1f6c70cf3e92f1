# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What a dump tells, for one page
-------------------------------

Each section is a function that adds what it finds to a draft. Whatever goes wrong there
costs the rest of that section: the others, and the page, are not lost.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Callable

from drgn_tools.errors import DumpError
from drgn_tools.export.report_page import Facts, Lines, Report, Section
from drgn_tools.kernel_log import panic_line
from drgn_tools.last_words import last_words, log_text
from drgn_tools.program import missing_symbols, open_dump
from drgn_tools.report_decoded import (
    oprofile_section,
    pstore_section,
    trace_section,
    zram_section,
)
from drgn_tools.report_draft import Draft, Dump, reason, utc, value
from drgn_tools.report_kernel import (
    crashed_task,
    log_section,
    memory_section,
    read_log,
    read_task,
    stack_of,
    task_name,
    tasks_section,
)
from drgn_tools.text import binary_size
from drgn_tools.vmcore import open_vmcore

if TYPE_CHECKING:
    from drgn import Program

    from drgn_tools.info import DumpInfo


_SECTIONS: tuple[tuple[str, str, Callable[[Dump, Draft], None]], ...] = (
    ("log", "Kernel log", log_section),
    ("tasks", "Tasks", tasks_section),
    ("memory", "Memory", memory_section),
    ("pstore", "Logs in pstore", pstore_section),
    ("zram", "zram devices", zram_section),
    ("oprofile", "oprofile samples", oprofile_section),
    ("trace", "Trace buffers", trace_section),
)
# What needs debugging symbols, and of which modules beside the kernel.
_MODULES = {
    "tasks": (),
    "pstore": ("ramoops", "pstore_zone"),
    "zram": ("zram", "zsmalloc"),
    "oprofile": ("oprofile",),
    "trace": (),
}


def _open_program(path: str, symbols: Sequence[str]) -> tuple[Program | None, str]:
    try:
        return open_dump(path, symbols), ""
    except DumpError as error:
        if symbols:
            raise
        return None, str(error)


def _is_absent(prog: Program, dump: str, key: str, why: str) -> bool:
    # Whether what was not found is not in this kernel, for certain.
    if not why.startswith("this kernel has no "):
        return False
    if key == "zram":
        # It may be that its own symbols are missing.
        loaded = {module.name for module in prog.modules()}
        return key not in loaded and missing_symbols(prog, dump) is None
    return key == "pstore" or missing_symbols(prog, dump) is None


def _look_for_symbols(prog: Program, dump: str, key: str, draft: Draft) -> str | None:
    # Why a section lacks something; which symbols, if it is that.
    why = next(iter(draft.notes), "")
    draft.absent = bool(value(_is_absent, prog, dump, key, why))
    if key in _MODULES and not draft.absent:
        missing: str | None = value(missing_symbols, prog, dump, _MODULES[key])
        if missing:
            draft.notes.pop(why, None)
            draft.note(missing)
        return missing
    return None


def make_report(dump: str, symbols: Sequence[str] = (), jobs: int = 1) -> Report:
    """
    Gather what a dump tells.

    :param symbols: Files with debugging symbols, of the kernel and its modules, that
        are tried before those that drgn finds.
    :param jobs: How many processes may work on it.
    :raises DumpError: if it is no dump, or a file has no symbols of its kernel. What
        else is wrong with it is in the report.
    """
    from drgn_tools.progress import Progress, warn

    with (
        open_vmcore(dump, part=True) as vmcore,
        Progress("making the report", len(_SECTIONS) + 1) as progress,
    ):
        prog, why = _open_program(dump, symbols)
        records, faults = read_log(vmcore)
        source = Dump(dump, vmcore, prog, why, symbols, jobs, records, faults)
        sections = []
        # By what symbols are missing, the sections that want them.
        wanting: dict[str, list[str]] = {}
        for number, (key, title, gather) in enumerate(_SECTIONS):
            progress.update(number + 1)
            draft = Draft()
            try:
                gather(source, draft)
            except Exception as error:
                # Nobody knows what a damaged dump leads to.
                draft.note(reason(error))
            if prog is not None and (draft.notes or draft.lacking):
                if missing := _look_for_symbols(prog, dump, key, draft):
                    wanting.setdefault(missing, []).append(title)
            elif prog is None and key in _MODULES:
                wanting.setdefault(why, []).append(title)
            sections.append(draft.section(key, title))
        found = _report(source, sections)
    for missing, titles in wanting.items():
        warn(f"{missing}; not whole without: {', '.join(titles)}")
    return found


# What people ask first, beside the panic, which is the headline.
_FIRST = ("crash time", "uptime", "began with", "task", "taint")


def _report(dump: Dump, sections: list[Section]) -> Report:
    from drgn_tools.info import as_text, read_info

    lines = [line for record in dump.records for line in log_text(record)]
    panic = panic_line(dump.records)
    words = last_words(lines, panic)
    info = read_info(dump.path)
    title = f"Linux {info.release or 'of an unknown release'}"
    if info.node not in (None, "(none)"):
        title += f" on {info.node}"
    about = [row for row in as_text(info) if row[0] != "panic"]
    rows = sorted(about, key=lambda row: row[0] not in _FIRST)
    died = panic is not None or info.crash_time is not None
    return Report(
        title,
        panic or _no_panic(dump),
        died,
        _verdicts(dump, info, sections),
        Facts(rows),
        _headline_trace(dump, lines, words),
        sections,
        f"Made {utc(int(time.time()))} by drgn-tools report from {dump.path}. "
        "It has what was in the kernel's memory: mind who may read it.",
    )


def _no_panic(dump: Dump) -> str:
    if dump.prog is not None and (task := crashed_task(dump.prog)) is not None:
        return f"{task_name(read_task(task))} panicked; the log does not say so"
    if not dump.records:
        return "What it died of is unknown: the kernel log cannot be read"
    return "No panic in the kernel log"


# Of the stack in the log.
_CALL_TRACE = re.compile(r"Call Trace:|Call trace:")
_CALLED = re.compile(r"\] {1,3}(?:\[<[0-9a-f]+>\] )?([\w.]+\+0x\S+.*)")
_LOG_FRAME = re.compile(r"\] {1,3}(<|\?|\[<|[\w.]+\+0x)")


def _stack_of_panic(prog: Program) -> Lines | None:
    task = crashed_task(prog)
    stack = stack_of(prog, task).lines if task is not None else ()
    if task is None or not stack:
        return None
    seen = read_task(task)
    caption = f"Stack of {task_name(seen)} on CPU {seen.cpu}, which panicked"
    return Lines(caption, stack)


def _headline_trace(
    dump: Dump, lines: list[str], words: tuple[int, int, int] | None
) -> Lines:
    if dump.prog is not None:
        found: Lines | None = value(_stack_of_panic, dump.prog)
        if found is not None:
            return found
    if words is not None:
        start, end, at = words
        for number in range(start, end):
            if _CALL_TRACE.search(lines[number]):
                functions = []
                for line in lines[number + 1 : end]:
                    if not _LOG_FRAME.search(line):
                        break
                    # Those with a question mark were there before.
                    if called := _CALLED.search(line):
                        functions.append(called[1])
                return Lines("Call trace in the kernel log", functions)
        return Lines("Around it in the log", lines[max(0, at - 8) : at + 8])
    return Lines("The end of the kernel log", lines[-12:])


def _verdicts(
    dump: Dump, info: DumpInfo, sections: list[Section]
) -> list[tuple[str, str]]:
    lacks = []
    if info.lost_bytes:
        lacks.append(f"cut short: {binary_size(info.lost_bytes)} are missing")
    if info.incomplete:
        lacks.append("marked incomplete: pages are missing that it should have")
    if info.part:
        lacks.append("one of several files: the others have the rest")
    if lacks:
        found = [("missing", f"The dump is {'; it is '.join(lacks)}")]
    elif info.dump_level:
        found = [("ok", f"The dump is whole, filtered with -d {info.dump_level}")]
    else:
        found = [("ok", "The dump is whole, and not filtered")]
    if dump.vmcore.live:
        found.append(("partly", "The kernel was running while it was read"))
    if dump.prog is None:
        found.append(("partly", f"drgn cannot open it: {dump.why_no_prog}"))
    elif missing := value(missing_symbols, dump.prog, dump.path):
        found.append(("partly", missing[0].upper() + missing[1:]))
    else:
        found.append(("ok", "Debugging symbols of this kernel were found"))
    lacking = [s.title for s in sections if s.status in ("partly", "missing")]
    if lacking:
        found.append(("partly", f"Not whole: {', '.join(lacking)}"))
    return found


def write_report(
    dump: str,
    path: str,
    *,
    symbols: Sequence[str] = (),
    force: bool = False,
    jobs: int = 1,
) -> int:
    """
    Write the report on a dump as an HTML page.

    :param path: Of the file, which appears when all has been written.
    :param symbols: As of :func:`make_report()`.
    :param force: It may replace a file.
    :return: How many bytes it has.
    :raises DumpError: if it is no dump, a file has no symbols of its kernel, or the
        page cannot be written.
    """
    from drgn_tools.export.report_page import page
    from drgn_tools.output import check_target, files

    check_target(path, force, (dump, *symbols))
    with files(path, force=force) as (file,):
        data = page(make_report(dump, symbols, jobs)).encode()
        file.write(data, 0)
        file.finish(len(data))
    return len(data)
