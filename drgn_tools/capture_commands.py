# SPDX-License-Identifier: LGPL-2.1-or-later
"""The capture half's commands: parse, call, print."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from drgn_tools import options

if TYPE_CHECKING:
    from drgn_tools.extract import Summary
    from drgn_tools.pages import PageClass

# As pages.PageClass has them, which takes a while to import.
_CLASSES = (
    *("kernel", "slab", "page-table", "zsmalloc", "large-kmalloc", "cache"),
    *("cache-private", "anon", "hugetlb", "free", "unaccepted", "zero", "unknown"),
)
_CODECS = ("zlib", "lzo", "snappy", "zstd", "none")

_EXTRACT_EPILOG = f"""\b
-d adds up what to leave out:
  1 zero pages, 2 page cache, 4 page cache with private data,
  8 user memory, 16 free pages

\b
Classes, for --exclude and --keep:
  {", ".join(_CLASSES[:6])},
  {", ".join(_CLASSES[6:])}

\b
Examples:
  drgn-tools extract /proc/vmcore /var/crash/vmcore.kdump
  drgn-tools extract --dry-run vmcore
  drgn-tools extract -d 31 --keep cache vmcore dump
  drgn-tools extract /proc/vmcore | ssh host 'drgn-makedumpfile -R dump'
"""


@click.command(epilog=_EXTRACT_EPILOG)
@click.argument("vmcore", type=click.Path())
@click.argument("outputs", nargs=-1, metavar="[OUTPUT]", type=click.Path())
@click.option(
    "-d",
    "dump_levels",
    default="31",
    show_default=True,
    metavar="LEVEL,…",
    help="Which pages to leave out, 0 (none) to 31 (all that can be). Where there "
    "is no room, the next level is tried.",
)
@click.option("-c", "codecs", flag_value="zlib", help="Compress with zlib.")
@click.option("-l", "codecs", flag_value="lzo", help="Compress with lzo.")
@click.option("-p", "codecs", flag_value="snappy", help="Compress with snappy.")
@click.option("-z", "codecs", flag_value="zstd", help="Compress with zstd.")
@click.option(
    "--compress",
    "codec_name",
    metavar="NAME[:LEVEL]",
    shell_complete=options.one_of(_CODECS),
    help="Codec and its level, or none.  [default: zstd]",
)
@click.option(
    "--exclude",
    metavar="CLASS,…",
    shell_complete=options.some_of(_CLASSES),
    help="Leave out these classes too.",
)
@click.option(
    "--keep",
    metavar="CLASS,…",
    shell_complete=options.some_of(_CLASSES),
    help="Keep these classes after all.",
)
@click.option("-E", "elf", is_flag=True, help="Write an ELF core, for gdb.")
@click.option("-F", "flatten", is_flag=True, help="Write a stream to standard output.")
@click.option("--split", is_flag=True, help="Share the dump among several OUTPUTs.")
@click.option(
    "-L",
    "limit",
    type=click.IntRange(min=1),
    metavar="BYTES",
    help="No OUTPUT is to be larger.",
)
@click.option(
    "-i",
    "vmcoreinfo",
    type=click.Path(),
    metavar="FILE",
    help="Text to go by as VMCOREINFO.",
)
@options.jobs
@click.option(
    "--partial", is_flag=True, help="Take what is there of a cut-short VMCORE."
)
@click.option("--dry-run", is_flag=True, help="Write nothing, but say what would be.")
@click.option(
    "--verify", "verified", is_flag=True, help="Read OUTPUT again, all of it."
)
@click.option("--sha256", is_flag=True, help="Say the SHA-256 of OUTPUT.")
@options.output("The same as OUTPUT.")
@options.force
@options.as_json
@options.quiet
def extract(
    vmcore: str,
    outputs: tuple[str, ...],
    dump_levels: str,
    codecs: str | None,
    codec_name: str | None,
    exclude: str | None,
    keep: str | None,
    elf: bool,
    flatten: bool,
    split: bool,
    limit: int | None,
    vmcoreinfo: str | None,
    jobs: int | None,
    partial: bool,
    dry_run: bool,
    verified: bool,
    sha256: bool,
    output: str | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write the pages of VMCORE that matter to OUTPUT.

    VMCORE is /proc/vmcore, an ELF core, /proc/kcore of the running kernel, or a
    kdump-compressed file to filter further. OUTPUT is kdump-compressed, for
    crash and drgn. Without OUTPUT, a stream goes to standard output, which
    drgn-makedumpfile -R turns into a dump.

    \f
    What a page is used for follows from VMCOREINFO; no debugging symbols are needed.
    Without a note of it in VMCORE, and without -i, the kernel's own copy is looked
    for in memory. A flattened file is read as it is.

    OUTPUT has mode 0600, and appears under its name only when it is written and on
    the disk. With -E it is an ELF core, in which pages that are left out read as
    zeros.

    --compress takes levels: 1 to 12 for zlib, 1 to 9 for lzo, -7 to 19 for zstd. The
    level is 1 if not given; for zlib 2 where many pages are the kernel's own.

    page-table, zsmalloc and large-kmalloc are told from kernel on Linux 6.12 and
    later. Offline and poisoned pages are never read.

    A summary goes to standard error: how many pages of each class there were and are
    kept. With --json it is one JSON object on standard output instead.

    EXIT STATUS

    0 if all went well, 1 if the command failed or if pages are missing, 2 if it was
    used wrongly, 128 and the number of a signal that stopped it. A failure is one
    line on standard error and leaves nothing behind. Pages that could not be read, or
    for which there was no room or, after SIGTERM, no time, are missing in OUTPUT,
    which is marked incomplete and kept.

    SEE ALSO

    drgn-makedumpfile(1), drgn-tools(1), drgn-tools-verify(1), makedumpfile(8)
    """
    # What it makes are arrays and pages: nothing that needs a search for cycles.
    gc.disable()
    from drgn_tools import codecs as known
    from drgn_tools.errors import DumpError, Stopped
    from drgn_tools.extract import extract
    from drgn_tools.pages import ALWAYS_EXCLUDED, excluded_classes, parse_levels
    from drgn_tools.text import printable
    from drgn_tools.vmcoreinfo import read_file

    if output is not None:
        if outputs:
            raise click.UsageError("OUTPUT is given twice")
        outputs = (output,)
    if codecs and codec_name:
        raise click.UsageError(f"--compress {codec_name} and another codec")
    if flatten and outputs:
        raise click.UsageError("-F writes to standard output, not to OUTPUT")
    if len(outputs) > 1 and not split:
        raise click.UsageError("several OUTPUTs without --split")
    if split and len(outputs) < 2:
        raise click.UsageError("--split needs several OUTPUTs")
    if (verified or sha256) and (dry_run or not outputs):
        raise click.UsageError("--verify and --sha256 need an OUTPUT")
    if as_json and not outputs and not dry_run:
        raise click.UsageError("--json needs an OUTPUT: the dump is standard output")
    if not outputs and not dry_run and sys.stdout.isatty():
        raise click.UsageError("no OUTPUT, and standard output is a terminal")
    try:
        levels = parse_levels(dump_levels)
        codec, codec_level = known.parse(codec_name or codecs or "zstd")
    except DumpError as error:
        raise click.UsageError(str(error)) from None
    named = _classes(exclude, "--exclude")
    kept = _classes(keep, "--keep") - ALWAYS_EXCLUDED
    jobs = jobs or len(os.sched_getaffinity(0))
    summary = extract(
        vmcore,
        outputs,
        excluded=[(excluded_classes(level) | named) - kept for level in levels],
        codec=codec,
        codec_level=codec_level,
        jobs=jobs,
        force=force,
        partial=partial,
        elf=elf,
        limit=limit,
        dry_run=dry_run,
        vmcoreinfo=read_file(vmcoreinfo) if vmcoreinfo else None,
    )
    name = ", ".join(outputs) or "standard output"
    _print_warnings(summary, levels)
    if not quiet and not as_json:
        _print_summary(summary, name, dry_run)
    sums = {path: _sha256(path) for path in outputs} if sha256 else {}
    if as_json:
        _print_json(summary, outputs, sums)
    else:
        for path, digest in sums.items():
            print(f"SHA-256 {digest}  {printable(path)}", file=sys.stderr)
    unsound = verified and not _all_sound(outputs, jobs, summary.incomplete, quiet)
    if summary.incomplete:
        why = f"{name} is incomplete: {summary.why_incomplete}"
        if not summary.stopped:
            raise DumpError(why)
        print(printable(why), file=sys.stderr)
    if summary.stopped:
        raise Stopped(summary.stopped)
    if unsound:
        raise DumpError(f"{name} was not written as it should be")


def _all_sound(paths: Sequence[str], jobs: int, incomplete: bool, quiet: bool) -> bool:
    from drgn_tools.text import printable
    from drgn_tools.verify import verify

    good = True
    for path in paths:
        report = verify(path, jobs)
        # That pages are missing was said before.
        if not incomplete or report.damaged:
            good &= report.sound
        for line in () if quiet and report.sound else report.lines():
            print(printable(line), file=sys.stderr)
    return good


def _sha256(path: str) -> str:
    import hashlib

    from drgn_tools.errors import DumpError
    from drgn_tools.progress import Progress

    digest = hashlib.sha256()
    try:
        with (
            open(path, "rb", buffering=0) as file,
            Progress("hashing", os.fstat(file.fileno()).st_size) as progress,
        ):
            while piece := file.read(1 << 20):
                digest.update(piece)
                progress.update(file.tell())
    except OSError as error:
        raise DumpError(f"cannot read {path}: {error.strerror}") from None
    return digest.hexdigest()


def _classes(text: str | None, option: str) -> frozenset[PageClass]:
    from drgn_tools.pages import CLASSES_BY_LABEL

    labels = text.split(",") if text else []
    for label in labels:
        if label not in CLASSES_BY_LABEL:
            raise click.UsageError(f"{option}: no page class {label!r}")
    return frozenset(CLASSES_BY_LABEL[label] for label in labels)


def _print_warnings(summary: Summary, levels: list[int]) -> None:
    from drgn_tools.progress import warn

    if summary.tried:
        warn(
            f"no room at -d {levels[summary.tried - 1]}: "
            f"taken with -d {levels[summary.tried]}"
        )
    for warning in summary.plan.warnings:
        warn(warning)
    for pfn, why in summary.retried.items():
        paddr = pfn * summary.page_size
        warn(f"{why}; read again page by page from {paddr:#x} on")


def _print_summary(summary: Summary, output: str, dry_run: bool) -> None:
    from drgn_tools.pages import PageClass
    from drgn_tools.text import binary_size, printable, styled

    def say(line: str, style: str | None = None) -> None:
        line = printable(line)
        print(styled(line, style, sys.stderr) if style else line, file=sys.stderr)

    plan = summary.plan
    say(f"{'class':<14}{'pages':>12}{'kept':>12}{'left out':>12}", "bold")
    for page_class in PageClass:
        found, kept = int(plan.found[page_class]), int(plan.kept[page_class])
        if found:
            say(f"{page_class.label:<14}{found:>12}{kept:>12}{found - kept:>12}")
    found, kept = int(plan.found.sum()), int(plan.kept.sum())
    say(f"{'all':<14}{found:>12}{kept:>12}{found - kept:>12}")
    if summary.zero_pages:
        say(f"{summary.zero_pages} of the kept pages are zero and share one page")
    if summary.missing_pages:
        say(f"{summary.missing_pages} pages are missing: the input is cut short")
    memory = [binary_size(pages * summary.page_size) for pages in (kept, found)]
    say(f"kept {memory[0]} of {memory[1]} of memory")
    sizes = binary_size(summary.output_size), binary_size(summary.input_size)
    name = f"{output} would be" if dry_run else f"{output}:"
    say(f"{name} {sizes[0]} from {sizes[1]} in {summary.seconds:.1f} s")


def _print_json(
    summary: Summary, outputs: Sequence[str], sums: Mapping[str, str]
) -> None:
    from drgn_tools.pages import PageClass
    from drgn_tools.text import json_line

    plan = summary.plan
    told = {
        "outputs": [{"path": path, "sha256": sums.get(path)} for path in outputs],
        "classes": {
            page_class.label: {
                "pages": int(plan.found[page_class]),
                "kept": int(plan.kept[page_class]),
            }
            for page_class in PageClass
            if plan.found[page_class]
        },
        "excluded": sorted(page_class.label for page_class in summary.excluded),
        "page_size": summary.page_size,
        "zero_pages": summary.zero_pages,
        "missing_pages": summary.missing_pages,
        "incomplete": summary.why_incomplete if summary.incomplete else None,
        "input_size": summary.input_size,
        "output_size": summary.output_size,
        "seconds": round(summary.seconds, 3),
    }
    print(json_line(told))


@click.command(
    epilog="""\b
Examples:
  drgn-tools info vmcore
  drgn-tools info --json vmcore | jq -r .panic
"""
)
@options.dump
@options.as_json
@options.quiet
def info(dump: str, as_json: bool, quiet: bool) -> None:
    """Say what DUMP is: kernel, crash time, memory, panic.

    The panic is the line of the kernel log that tells why the kernel died. What it
    began with, the task that died, its CPU and the uptime are the log's, too.

    \f
    No debugging symbols are needed. A single part of a split dump will do.
    """
    from drgn_tools.info import as_text, read_info
    from drgn_tools.text import json_line, printable, styled

    found = read_info(dump)
    if as_json:
        print(json_line(found._asdict()))
        return
    for label, value in as_text(found):
        value = printable(value)
        if label == "panic" and found.panic:
            value = styled(value, "red", sys.stdout)
        print(f"{label + ':':<13}{value}")


@click.command(
    epilog="""\b
Examples:
  drgn-tools dmesg vmcore | less
  drgn-tools dmesg /proc/vmcore -o /var/crash/vmcore-dmesg.txt
"""
)
@options.dump
@click.option(
    "--partial", is_flag=True, help="Only what came since the log was last cleared."
)
@options.output("Write the log to FILE.")
@options.force
@options.quiet
def dmesg(
    dump: str, partial: bool, output: str | None, force: bool, quiet: bool
) -> None:
    """Print the kernel log of DUMP.

    It is what makedumpfile --dump-dmesg writes.

    \f
    Where the log is follows from VMCOREINFO; no debugging symbols are needed.

    Each record starts with its time in seconds since boot and, where the kernel keeps
    it, T and the thread or C and the CPU that it came from. The other lines of a
    record are indented. Bytes that are neither printable ASCII nor white space are
    escaped as \\x and hexadecimal digits: two of them, and ffffff in front from 80 on.
    On a terminal, what would drive it is escaped, too.

    If the kernel does not say when the log was last cleared, --partial prints all.

    EXIT STATUS

    0 if all went well, 1 if the command failed or if the log is not whole, 2 if it was
    used wrongly. A failure is one line on standard error. The records that can be read
    are printed all the same.

    SEE ALSO

    dmesg(1), drgn-tools(1), makedumpfile(8)
    """
    from drgn_tools.errors import DumpError
    from drgn_tools.kernel_log import dump_log
    from drgn_tools.output import check_target, files
    from drgn_tools.progress import say_written
    from drgn_tools.text import verbatim
    from drgn_tools.vmcore import open_vmcore

    if output is None and sys.stdout is None:
        raise DumpError("cannot print: standard output is closed")
    faults: list[str] = []
    with open_vmcore(dump) as vmcore:
        pieces = dump_log(vmcore, partial, warn=faults.append)
        if output is None:
            # Ready-made bytes: not for a text stream.
            out = sys.stdout.buffer
            for piece in pieces:
                out.write(verbatim(piece, sys.stdout))
            out.flush()
        else:
            check_target(output, force, (dump,))
            with files(output, force=force) as (file,):
                size = 0
                for piece in pieces:
                    file.write(piece, size)
                    size += len(piece)
                file.finish(size)
            say_written(output, size, quiet)
    if faults:
        raise DumpError(f"{dump}: the log is incomplete: {'; '.join(faults)}")


@click.command(
    epilog="""\b
Examples:
  drgn-tools verify vmcore.kdump && rm /var/crash/vmcore
"""
)
@options.dump
@options.jobs
@options.as_json
@options.quiet
def verify(dump: str, jobs: int | None, as_json: bool, quiet: bool) -> int:
    """Read all of DUMP and say what is missing, damaged or wrong.

    The last line is the verdict, and so is the exit status.

    \f
    DUMP is an ELF core, a kdump-compressed file or one part of a split one, whoever
    wrote it. Whatever is in the file twice must agree, what no writer uses must be
    zero, each page must be there and decompress, and no two pages may overlap.

    Counts come first, then one line per finding, at most 20 of a kind, and the
    verdict. With -q, a sound dump is one line.

    A file may end with a table of checksums, which other readers ignore. Then every
    changed bit is found. Without the table, page data that is not compressed with
    zlib is only known to decompress, and a note says so.

    EXIT STATUS

    0 if the dump is sound, 1 if anything is damaged, inconsistent or missing or if it
    cannot be opened, 2 if the command was used wrongly. An incomplete dump is not
    sound: its missing pages are counted.

    SEE ALSO

    drgn-tools(1), drgn-tools-extract(1)
    """
    from drgn_tools.text import json_line, printable, styled
    from drgn_tools.verify import verify

    report = verify(dump, jobs or len(os.sched_getaffinity(0)))
    if as_json:
        findings = [finding._asdict() for finding in report.findings]
        told = {**report._asdict(), "findings": findings, "sound": report.sound}
        print(json_line(told))
    else:
        *lines, verdict = map(printable, report.lines())
        for line in () if quiet and report.sound else lines:
            print(line)
        style = "green" if report.sound else "red"
        print(styled(verdict, style, sys.stdout))
    return 0 if report.sound else 1
