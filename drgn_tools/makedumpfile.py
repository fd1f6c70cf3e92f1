# SPDX-License-Identifier: LGPL-2.1-or-later
"""
drgn-makedumpfile
-----------------

makedumpfile's command line over the code of ``drgn-tools extract``, so that
scripts made for makedumpfile can be pointed at it: its options and their
abbreviations, defaults, message levels, messages that scripts look for, the
stream that each goes to, and its exit status (makedumpfile.c, print_info.c).
"""

from __future__ import annotations

import contextlib
import getopt
import os
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Callable, NamedTuple, NoReturn

from drgn_tools.errors import DumpError, OutputFull, Stopped
from drgn_tools.start import start
from drgn_tools.text import printable, verbatim

if TYPE_CHECKING:
    from drgn_tools.extract import Summary
    from drgn_tools.pages import PageClass
    from drgn_tools.vmcore import Vmcore

_NAME = "drgn-makedumpfile"

_SHORT = "b:cDd:eEFfg:hi:lL:pRvXx:z"
_LONG = [
    "check-params",
    "config=",
    "cyclic-buffer=",
    "diskset=",
    "dry-run",
    "dump-dmesg",
    "eppic=",
    "extension=",
    "help",
    "mem-usage",
    "message-level=",
    "non-mmap",
    "num-threads=",
    "partial-dmesg",
    "reassemble",
    "show-stats",
    "split",
    "splitblock-size=",
    "vtop=",
    "work-dir=",
    "xen-syms=",
    "xen-vmcoreinfo=",
    "xen_phys_start=",
]

_XEN = "dumps of Xen hosts are makedumpfile's alone"
_ERASE = "nothing is erased here; filter with makedumpfile"
# Options that makedumpfile has and this has not, and what to do instead.
_INSTEAD = {
    "-e": "leave it out: struct pages are always kept",
    "-g": "VMCOREINFO is in the dump itself, and in a live kernel's /proc/kcore",
    "-x": "leave it out: VMCOREINFO is in the dump itself, or give it with -i",
    "-X": _XEN,
    "--xen-syms": _XEN,
    "--xen-vmcoreinfo": _XEN,
    "--xen_phys_start": _XEN,
    "--config": _ERASE,
    "--eppic": _ERASE,
    "--extension": "choose page classes with drgn-tools extract --exclude and --keep",
    "--diskset": "dumps of sadump are makedumpfile's alone",
    "--vtop": "ask drgn or crash (vtop) about the dump",
}

# Message level bits.
_PROGRESS, _COMMON, _ERROR, _DEBUG, _REPORT = 1, 2, 4, 8, 16
_DEFAULT_MESSAGES = _PROGRESS | _COMMON | _ERROR
_MOST_LEVELS = 32
# Scripts may look for these.
_COMPLETED = "\nmakedumpfile Completed."
_FAILED = "\nmakedumpfile Failed."
_LOG_PIECE = 1 << 20

_CODECS = {"-c": "zlib", "-l": "lzo", "-p": "snappy", "-z": "zstd"}
_SIZE = re.compile(r"(0[xX][0-9a-fA-F]+|[0-9]+)([kKmMgGtTpPeE]?)")

_USAGE = f"""\
Usage:
  {_NAME} [-c|-l|-p|-z|-E] [-d LEVEL[,LEVEL...]] VMCORE DUMPFILE
  {_NAME} -F [-c|-l|-p|-z|-E] [-d LEVEL] VMCORE > FLATTENED
  {_NAME} -R DUMPFILE < FLATTENED
  {_NAME} --split [OPTIONS] VMCORE DUMPFILE1 DUMPFILE2 [...]
  {_NAME} --reassemble DUMPFILE1 DUMPFILE2 [...] DUMPFILE
  {_NAME} --dump-dmesg [--partial-dmesg] VMCORE LOGFILE
  {_NAME} --mem-usage /proc/kcore

Options:
  -c, -l, -p, -z       compress pages with zlib, lzo, snappy, zstd
  -d LEVEL             pages to leave out, the sum of: 1 zero, 2 cache,
                       4 cache with private data, 8 user, 16 free [0];
                       several: the next one if there is no room
  -E                   write an ELF core
  -F                   write the flattened format to standard output, as also
                       when no DUMPFILE is named and it is no terminal
  -R                   make a DUMPFILE of the flattened format
  -L SIZE              let the output have at most so many bytes (k, M, G, ...)
  -f                   replace what exists
  -i VMCOREINFO        a file to use where VMCORE has none
  --num-threads N      processes that work on it [all CPUs]
  --split              write a set of files at once
  --reassemble         make one file of a set
  --dump-dmesg         write the kernel log only
  --partial-dmesg      and that only since it was cleared
  --mem-usage          say how much memory is of which kind
  --dry-run            write nothing
  --show-stats         say how many pages are left out
  --check-params       only see whether the command line is right
  --message-level ML   the sum of: 1 progress, 2 common, 4 errors, 8 debugging,
                       16 report [7]
  -D                   add 8 to the message level
  -v, -h, --help       say the version, or this
  -b, --cyclic-buffer, --non-mmap, --splitblock-size, --work-dir
                       are taken and mean nothing here
"""


class _Given(NamedTuple):
    """A command line that could be read."""

    options: dict[str, str]
    """Values by option as makedumpfile spells it out."""
    names: list[str]
    levels: list[int]
    codec: str | None
    limit: int | None

    @property
    def to_stdout(self) -> bool:
        """
        Whether what is written goes to standard output: as -F says, or because
        no other place is named and nobody reads it there on a terminal.
        """
        options = self.options
        if "-F" in options:
            return True
        if len(self.names) != 1 or {"-R", "--mem-usage"} & options.keys():
            return False
        return not (sys.stdout and sys.stdout.isatty())

    @property
    def target(self) -> str:
        """What the output is called in messages."""
        return "STDOUT" if self.to_stdout else printable(self.names[-1])


class _Refused(Exception):
    """The command line makes no sense; its arguments are lines that say so."""


class _WrongRelease(DumpError):
    """VMCOREINFO is of another kernel."""


class _Talk:
    """What is said, by message level. A dump never fails because of that."""

    def __init__(self) -> None:
        self.level = _DEFAULT_MESSAGES
        self.to_stderr = False

    def say(self, kind: int, text: str) -> None:
        if not self.level & kind:
            return
        errors = kind == _ERROR or self.to_stderr
        try:
            print(text, file=sys.stderr if errors else sys.stdout, flush=True)
        except OSError:
            # Nobody is to try it again, nor anything else there.
            nowhere = open(os.devnull, "w")  # noqa: SIM115
            if errors:
                sys.stderr = nowhere
            else:
                sys.stdout = nowhere

    def complain(self, message: str) -> None:
        self.say(_ERROR, f"{_NAME}: {printable(message)}")


def main() -> NoReturn:
    """
    Run ``drgn-makedumpfile``. Exit status: 0 done, 1 failed, incomplete or used
    wrongly, 2 if VMCOREINFO is of another kernel.
    """
    start(_NAME, lambda: _command(sys.argv[1:]))


def _command(arguments: list[str]) -> int:
    talk = _Talk()
    status = 0
    check_only = False
    try:
        options, names = _read(arguments, talk)
        # Even where it is not the first option, unlike makedumpfile.
        check_only = "--check-params" in dict(options)
        given = _understood(options, names, talk)
        if {"-h", "--help"} & given.options.keys():
            _print(talk, *_libraries("{} support: {}"), "", _USAGE)
            return 0
        if "-v" in given.options:
            _print(talk, f"{_NAME}: version {_version()}", *_libraries("{}\t{}"), "")
            return 0
        check, act = next(
            (mode for option, mode in _MODES.items() if option in given.options),
            (_check_create, _create),
        )
        check(given)
        if check_only:
            return 0
        if given.to_stdout and sys.stdout is None:
            raise DumpError("standard output is closed")
        if not talk.level & _PROGRESS:
            from drgn_tools.progress import silence

            silence()
        talk.say(_DEBUG, f"command line: {' '.join(map(printable, sys.argv))}\n")
        act(given, talk)
    except _Refused as refused:
        for line in refused.args:
            talk.say(_COMMON, line)
        status = 1
    except DumpError as error:
        talk.complain(str(error))
        status = 2 if isinstance(error, _WrongRelease) else 1
    except Stopped:
        talk.say(_COMMON, _FAILED)
        raise
    if not check_only:
        if status:
            talk.say(_COMMON, _FAILED)
        elif act is not _mem_usage:
            talk.say(_COMMON, _COMPLETED)
    return status


def _print(talk: _Talk, *lines: str) -> None:
    """What somebody asked for: to fail at that is to fail."""
    if talk.level & _COMMON:
        print(*lines, sep="\n", file=sys.stderr if talk.to_stderr else sys.stdout)


def _libraries(form: str) -> Iterator[str]:
    from drgn_tools.codecs import CODECS

    for name in ("lzo", "snappy", "zstd"):
        try:
            CODECS[name].compressor(1)
            yield form.format(name, "enabled")
        except DumpError:
            yield form.format(name, "disabled")


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("drgn-tools")
    except metadata.PackageNotFoundError:
        # An initramfs has the modules alone.
        return "unknown"


# --- the command line -------------------------------------------------------------


def _invalid(*lines: str) -> _Refused:
    return _Refused(
        *lines,
        "Commandline parameter is invalid.",
        f"Try `{_NAME} --help' for more information.",
    )


def _read(arguments: list[str], talk: _Talk) -> tuple[list[tuple[str, str]], list[str]]:
    try:
        options, names = getopt.gnu_getopt(arguments, _SHORT, _LONG)
    except getopt.GetoptError as error:
        # It may have had an -F.
        talk.to_stderr = True
        talk.complain(str(error))
        raise _invalid() from None
    return options, names


def _understood(
    options: list[tuple[str, str]], names: list[str], talk: _Talk
) -> _Given:
    """What the options say, one after the other, and how to talk."""
    given = _Given(dict(options), names, [0], None, None)
    talk.to_stderr = given.to_stdout
    for option, value in options:
        if option in _INSTEAD:
            raise DumpError(f"there is no {option} here: {_INSTEAD[option]}")
        if option in _CODECS:
            given = given._replace(codec=_CODECS[option])
        elif option == "-d":
            given = given._replace(levels=_levels(value))
        elif option == "-L":
            given = given._replace(limit=_limit(value))
        elif option == "--message-level":
            level = _number(value)
            if level is None or not 0 <= level <= 31:
                talk.level = _DEFAULT_MESSAGES
                raise _Refused(f"Message_level({printable(value)}) is invalid.")
            talk.level = level
    if "-D" in given.options:
        talk.level |= _DEBUG
    if "--show-stats" in given.options:
        talk.level |= _REPORT
    if "--check-params" in given.options:
        talk.level = _DEFAULT_MESSAGES
    return given


def _number(text: str) -> int | None:
    # Spaces as of C: int() takes no others that \s of str would.
    found = re.fullmatch(r"\s*[-+]?[0-9]{1,9}\s*", text, re.ASCII)
    return int(text) if found else None


def _levels(text: str) -> list[int]:
    levels = []
    for part in filter(None, text.split(",")):
        level = _number(part)
        if level is None or not 0 <= level <= 31:
            raise _Refused(f"Dump_level({printable(part)}) is invalid.")
        levels.append(level)
    if len(levels) > _MOST_LEVELS:
        raise _Refused("Dump_level is invalid.")
    return levels or [0]


def _limit(text: str) -> int:
    """Bytes, as the kernel's memparse() reads them."""
    match = _SIZE.fullmatch(text)
    size = 0
    if match is not None:
        digits, unit = match.groups()
        octal = digits.startswith("0") and digits.isdigit()
        with contextlib.suppress(ValueError):
            size = int(digits, 8 if octal else 0)
        size <<= 10 * (" kmgtpe".index(unit.lower()) if unit else 0)
    if not 0 < size < 1 << 63:
        raise _Refused(f"Limit size({printable(text)}) is invalid.")
    return size


def _threads(given: _Given) -> int | None:
    """Processes that are asked for. What is no number is 0: to it, that means none."""
    text = given.options.get("--num-threads")
    if text is None:
        return None
    match = re.match(r"\s*\+?([0-9]{1,9})", text)
    return int(match.group(1)) if match else 0


def _jobs(given: _Given) -> int:
    threads = _threads(given)
    return len(os.sched_getaffinity(0)) if threads is None else max(1, threads)


def _check_rearrange(given: _Given) -> None:
    wrong = {"-E", "-F", "-i"} & given.options.keys()
    if wrong or len(given.names) != 1 or given.codec or given.levels[0]:
        raise _invalid()
    if "--dry-run" in given.options:
        raise _invalid("--dry-run cannot be used with -R.")


def _check_reassemble(given: _Given) -> None:
    wrong = {"-E", "-F", "-i", "--split"} & given.options.keys()
    if wrong or len(given.names) < 2 or given.codec or given.levels[0]:
        raise _invalid()
    if "--dry-run" in given.options:
        raise _invalid("--dry-run cannot be used with --reassemble.")


def _check_create(given: _Given) -> None:
    """Of dumps, logs and counts alike."""
    options, count = given.options, len(given.names)
    split = "--split" in options
    if given.codec and "-E" in options:
        raise _invalid()
    if {"--dry-run", "--dump-dmesg"} <= options.keys():
        raise _invalid("--dry-run cannot be used with --dump-dmesg.")
    if split and ("-F" in options or "--dump-dmesg" in options):
        raise _invalid()
    if "--partial-dmesg" in options and "--dump-dmesg" not in options:
        raise _invalid()
    if split and count > 2:
        if "-E" in options:
            raise _invalid(
                "Options for splitting dumpfile cannot be used with Elf format."
            )
        return
    wanted = 1 if given.to_stdout else 2
    if split or (count != wanted and not (count == 1 and "--mem-usage" in options)):
        raise _invalid()


# --- what there is to do ----------------------------------------------------------


def _rearrange(given: _Given, talk: _Talk) -> None:
    from drgn_tools.rearrange import rearrange

    rearrange(0, given.names[0], "-f" in given.options)
    talk.say(_COMMON, f"\nThe dumpfile is saved to {given.target}.")


def _reassemble(given: _Given, talk: _Talk) -> None:
    from drgn_tools.rearrange import reassemble

    *sources, target = given.names
    reassemble(sources, target, "-f" in given.options)
    talk.say(_COMMON, f"\nThe dumpfile is saved to {given.target}.")


def _create(given: _Given, talk: _Talk) -> None:
    targets = given.names[1:]
    options = given.options
    if given.to_stdout and sys.stdout.isatty() and "--dry-run" not in options:
        raise DumpError("standard output is a terminal")
    summary = _extract(
        given,
        talk,
        [] if given.to_stdout else targets,
        given.levels,
        dry_run="--dry-run" in options,
    )
    if summary.incomplete:
        if not given.to_stdout:
            talk.say(_COMMON, "This is an incomplete dumpfile, but might analyzable.")
        why = f"{given.target} is incomplete: {summary.why_incomplete}"
        if not summary.stopped:
            raise DumpError(why)
        talk.complain(why)
    if summary.stopped:
        raise Stopped(summary.stopped)
    _report(summary, talk)
    if "--dry-run" in options:
        name = "the set" if "--split" in options else given.target
        size = f"{summary.output_size} bytes"
        talk.say(_COMMON, f"\nNothing is written: {name} would have {size}.")
    elif "--split" in options:
        *most, last = map(printable, targets)
        saved = f"{', '.join(most)}, and {last}"
        talk.say(_COMMON, f"\nThe dumpfiles are saved to {saved}.")
    else:
        talk.say(_COMMON, f"\nThe dumpfile is saved to {given.target}.")


def _extract(
    given: _Given, talk: _Talk, targets: list[str], levels: list[int], dry_run: bool
) -> Summary:
    # What it makes are arrays and pages: nothing that needs a search for cycles.
    import gc

    gc.disable()
    from drgn_tools.codecs import CODECS
    from drgn_tools.extract import extract
    from drgn_tools.pages import dump_level, excluded_classes

    source = given.names[0]
    excluded = [excluded_classes(level) for level in levels]
    summary = extract(
        source,
        targets,
        excluded=excluded,
        codec=CODECS[given.codec] if given.codec else None,
        codec_level=None,
        jobs=_jobs(given),
        force="-f" in given.options,
        elf="-E" in given.options,
        limit=given.limit,
        dry_run=dry_run,
        vmcoreinfo=_vmcoreinfo(given, talk),
    )
    for warning in summary.plan.warnings:
        talk.complain(f"warning: {warning}")
    for pfn, why in summary.retried.items():
        paddr = pfn * summary.page_size
        talk.complain(f"warning: {why}; read again page by page from {paddr:#x} on")
    for level in levels[1 : summary.tried + 1]:
        talk.say(_COMMON, f"Retry to create a dumpfile by dump_level({level}).")
    if summary.excluded not in excluded:
        level = dump_level(summary.excluded)
        why = f"{printable(source)} was filtered before"
        talk.say(_COMMON, f"dump_level is changed to {level}, because {why}.")
    return summary


def _vmcoreinfo(given: _Given, talk: _Talk) -> bytes | None:
    """The text of -i if it is to be used. Tells what is used, to who debugs."""
    if "-i" not in given.options and not talk.level & _DEBUG:
        return None
    vmcore, text = _open(given, talk)
    vmcore.close()
    return text


def _open(given: _Given, talk: _Talk) -> tuple[Vmcore, bytes | None]:
    """A dump that goes by the text of -i if it has no VMCOREINFO; and that text."""
    from drgn_tools.formats.notes import iter_notes
    from drgn_tools.vmcore import open_vmcore
    from drgn_tools.vmcoreinfo import Vmcoreinfo, read_file

    source, path, text = given.names[0], given.options.get("-i"), None
    if path is None:
        vmcore = open_vmcore(source)
    else:
        text = read_file(path)
        release = Vmcoreinfo(text).text("OSRELEASE")
        if release is None:
            raise DumpError(f"{path} is no VMCOREINFO: it has no OSRELEASE")
        vmcore = open_vmcore(source, text)
        _, *own = (n for n in iter_notes(vmcore.notes) if n.name == b"VMCOREINFO")
        known = Vmcoreinfo(own[0].desc).text("OSRELEASE") if own else None
        if release != (known or vmcore.utsname()[2].decode(errors="replace")):
            vmcore.close()
            raise _WrongRelease(f"{path} and {source} don't match.")
        if known is not None:
            # What the kernel itself says, makedumpfile trusts more as well.
            vmcore.close()
            vmcore, text = open_vmcore(source), None
    if vmcore.vmcoreinfo is not None:
        raw = vmcore.vmcoreinfo.raw.split(b"\0", 1)[0].decode("ascii", "replace")
        lines = [f"  {printable(line)}\n" for line in raw.splitlines()]
        # SUSE's kdump takes the kernel's release and the crash time from here.
        talk.say(_DEBUG, "".join(["VMCOREINFO   :\n", *lines]))
    return vmcore, text


def _counts(summary: Summary) -> dict[str, int]:
    """Pages left out, by makedumpfile's kinds."""
    from drgn_tools.pages import PageClass

    def left_out(*classes: PageClass) -> int:
        plan = summary.plan
        return sum(int(plan.found[c]) - int(plan.kept[c]) for c in classes)

    return {
        "zero": summary.zero_pages,
        "cache": left_out(PageClass.CACHE),
        "private": left_out(PageClass.CACHE_PRIVATE),
        "user": left_out(PageClass.ANON, PageClass.HUGETLB),
        "free": left_out(PageClass.FREE, PageClass.UNACCEPTED),
        "hwpoison": left_out(PageClass.HWPOISON),
        "offline": left_out(PageClass.OFFLINE),
    }


def _report(summary: Summary, talk: _Talk) -> None:
    total = summary.plan.max_mapnr
    original = int(summary.plan.found.sum())
    counts = _counts(summary)
    excluded = sum(counts.values())

    def line(label: str, pages: int) -> str:
        return f"{label}: {pages:#018x}"

    lines = [
        "",
        line("Original pages  ", original),
        line("  Excluded pages   ", excluded),
        line("    Pages filled with zero  ", counts["zero"]),
        line("    Non-private cache pages ", counts["cache"]),
        line("    Private cache pages     ", counts["private"]),
        line("    User process data pages ", counts["user"]),
        line("    Free pages              ", counts["free"]),
        line("    Hwpoison pages          ", counts["hwpoison"]),
        line("    Offline pages           ", counts["offline"]),
        line("  Remaining pages  ", original - excluded),
    ]
    if original:
        share = excluded * 100 // original
        lines.append(f"  (The number of pages is reduced to {share}%.)")
    lines += [
        line("Memory Hole     ", total - original),
        "--------------------------------------------------",
        line("Total pages     ", total),
        f"Write bytes     : {summary.output_size}",
    ]
    talk.say(_REPORT, "\n".join(lines))


def _mem_usage(given: _Given, talk: _Talk) -> None:
    summary = _extract(given, talk, [], [31], dry_run=True)
    counts = _counts(summary)
    original = int(summary.plan.found.sum())
    rows = [
        ("ZERO\t", counts["zero"], "yes", "Pages filled with zero"),
        ("NON_PRI_CACHE", counts["cache"], "yes", "Cache pages without private flag"),
        ("PRI_CACHE", counts["private"], "yes", "Cache pages with private flag"),
        ("USER\t", counts["user"], "yes", "User process pages"),
        ("FREE\t", counts["free"], "yes", "Free pages"),
        ("KERN_DATA", original - sum(counts.values()), "no", "Dumpable kernel data "),
    ]
    _print(
        talk,
        "",
        "TYPE\t\tPAGES\t\t\tEXCLUDABLE\tDESCRIPTION",
        "-" * 70,
        *(
            f"{name}\t{pages:<16}\t{excludable}\t\t{what}"
            for name, pages, excludable, what in rows
        ),
        "",
        f"page size:\t\t{summary.page_size:<16}",
        f"Total pages on system:\t{original:<16}",
        f"Total size on system:\t{original * summary.page_size:<16} Byte",
        "",
    )


def _dump_log(given: _Given, talk: _Talk) -> None:
    from drgn_tools.kernel_log import dump_log
    from drgn_tools.output import check_target, files

    faults: list[str] = []
    vmcore, _ = _open(given, talk)
    with vmcore:
        partial = "--partial-dmesg" in given.options
        log = dump_log(vmcore, partial, warn=faults.append)
        pieces = _limited(_pieces(log), given)
        if given.to_stdout:
            for piece in pieces:
                _write_stdout(verbatim(piece, sys.stdout))
        else:
            source, target = given.names
            force = "-f" in given.options
            check_target(target, force, (source,))
            size = 0
            with files(target, force=force) as (file,):
                try:
                    for piece in pieces:
                        file.write(piece, size)
                        size += len(piece)
                    file.finish(size)
                except OutputFull:
                    # The oldest lines are better than none.
                    file.finish(size)
                    raise
    if faults:
        raise DumpError(f"{given.target} is incomplete: {'; '.join(faults)}")
    talk.say(_COMMON, f"\nThe dmesg log is saved to {given.target}.")


def _pieces(lines: Iterator[bytes]) -> Iterator[bytes]:
    """The same in fewer pieces."""
    piece = bytearray()
    for line in lines:
        piece += line
        if len(piece) >= _LOG_PIECE:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)


def _limited(pieces: Iterator[bytes], given: _Given) -> Iterator[bytes]:
    """Up to the limit of -L."""
    room = given.limit
    for piece in pieces:
        if room is not None and len(piece) > room:
            if room:
                yield piece[:room]
            raise OutputFull(f"{given.target} is cut short: it reached the limit of -L")
        yield piece
        if room is not None:
            room -= len(piece)


def _write_stdout(data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(1, view) :]
        except OSError as error:
            raise DumpError(
                f"cannot write to standard output: {error.strerror}"
            ) from None


# Looked for in this order, as makedumpfile does.
_MODES: dict[str, tuple[Callable[[_Given], None], Callable[[_Given, _Talk], None]]] = {
    "-R": (_check_rearrange, _rearrange),
    "--reassemble": (_check_reassemble, _reassemble),
    "--dump-dmesg": (_check_create, _dump_log),
    "--mem-usage": (_check_create, _mem_usage),
}


if __name__ == "__main__":
    main()
