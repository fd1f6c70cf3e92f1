# SPDX-License-Identifier: LGPL-2.1-or-later
"""
oprofile
--------

The ``drgn_tools.oprofile`` module provides helpers for the samples of oprofile, the
system profiler of kernels up to 5.11: those that are still in the CPUs' buffers when a
kernel dies, and those in the event buffer that its daemon has not read.

The printing helpers' names need no import in ``drgn -e`` and in interactive sessions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Union

from drgn import FaultError, Program
from drgn.helpers.common.prog import takes_program_or_default

from drgn_tools.errors import DumpError
from drgn_tools.printing import one_line, printing, say

if TYPE_CHECKING:
    from drgn_tools import oprofile_memory, oprofile_records
    from drgn_tools.printing import File

__all__ = (
    "for_each_oprofile_sample",
    "get_oprofile_stats",
    "oprofile_callgraph",
    "oprofile_event_buffer",
    "oprofile_export",
    "oprofile_report",
    "oprofile_samples",
    "oprofile_stats",
)

# The decoders are imported by those who need them: every drgn imports this.


class OprofilePlace(NamedTuple):
    """What an address belongs to."""

    address: int
    """Of a sample of the event buffer, the offset."""
    image: str
    """Path of the mapped file, ``vmlinux`` or ``name.ko``; in brackets what is no
    file: ``[anon]``, ``[heap]``, ``[stack]``, ``[vdso]``, ``[xen]``; ``[exited]`` if
    the task's memory is gone, ``[unmapped]`` if nothing is mapped there now,
    ``[kernel]`` without a symbol, ``[unknown]``."""
    offset: int | None
    """In the file or the vDSO; else None."""
    symbol: str
    """Empty if there is none."""
    symbol_offset: int
    """Of the address from the symbol."""


class OprofileSample(NamedTuple):
    """A sample."""

    cpu: int
    time: int | None
    """Nanoseconds of the CPU's clock; None where samples have no time: before 2.6.29,
    and in the event buffer."""
    state: str
    """``unread`` and ``synced`` (those in the event buffer) are to come; ``read``
    ones have gone on to the event buffer, ``uncommitted`` ones were being written."""
    mode: str
    """user, kernel, xen or unknown."""
    pid: int
    """-1 if unknown."""
    tgid: int
    comm: str
    """Empty if unknown, as of all in the event buffer."""
    program: str
    """Path of the task's executable; empty if unknown."""
    event: int
    """Number of the counter, 0 by timer."""
    place: OprofilePlace
    trace: tuple[OprofilePlace, ...]
    """Its callers, the innermost first."""
    kind: str
    """sample; of AMD's IBS ibs_fetch and ibs_op; of Cell's SPUs spu_sample."""
    data: tuple[tuple[str, int], ...]
    """Names and values of IBS's registers."""
    note: str
    """Why it is not to be trusted; empty if it is."""


_SOURCES = ("all", "cpu", "event_buffer")


class _Notes:
    # Each once, and only so many.

    def __init__(self) -> None:
        self.texts: dict[str, int] = {}

    def __call__(self, text: str) -> None:
        self.texts[text] = self.texts.get(text, 0) + 1

    def lines(self) -> Iterator[str]:
        for text, count in list(self.texts.items())[:100]:
            yield f"{text} ({count} times)" if count > 1 else text
        if len(self.texts) > 100:
            yield f"and {len(self.texts) - 100} more"


class _Profile:
    # Samples with what they belong to.

    def __init__(self, prog: Program, sysroot: str | None) -> None:
        from drgn_tools.oprofile_memory import Resolver

        self.prog = prog
        self.notes = _Notes()
        self._resolver = Resolver(prog, sysroot)
        self._cookies: dict[int, str] | None = None

    def samples(
        self, cpu: int | None, source: str, read: bool, uncommitted: bool
    ) -> Iterator[OprofileSample]:
        if source not in _SOURCES:
            raise ValueError(f"source is {source!r}, and not {', '.join(_SOURCES)}")
        if source == "event_buffer":
            yield from self._synced(cpu)
        elif source == "all":
            # The others are there without it.
            try:
                yield from self._synced(cpu)
            except (DumpError, LookupError, FaultError) as error:
                self.notes(one_line(error))
        if source != "event_buffer":
            yield from self._cpus(cpu, read, uncommitted)

    def _cpus(
        self, cpu: int | None, read: bool, uncommitted: bool
    ) -> Iterator[OprofileSample]:
        from heapq import merge
        from operator import itemgetter

        from drgn_tools.oprofile_memory import read_samples
        from drgn_tools.oprofile_records import MODES

        streams = read_samples(
            self.prog, cpu, read=read, uncommitted=uncommitted, note=self.notes
        )
        # There may be millions: what is known of an address is asked for once.
        places: dict[tuple[int, int, int], OprofilePlace] = {}
        new, task_of = tuple.__new__, self._resolver.task
        for sample in merge(*streams, key=itemgetter(1)):
            owner, time, state, mode, address, eip, event, trace, kind, data, why = (
                sample
            )
            task = task_of(address)
            key = mode, address, eip
            place = places.get(key)
            if place is None:
                place = places[key] = self._place(mode, task, eip)
            yield new(
                OprofileSample,
                (
                    *(owner, time or None, state, MODES[mode]),
                    *(task.pid, task.tgid, task.comm, task.program, event, place),
                    tuple([self._place(mode, task, caller) for caller in trace]),
                    kind,
                    _named(kind, data) if data else (),
                    why,
                ),
            )

    def _place(
        self, mode: int, task: oprofile_memory.Task, address: int
    ) -> OprofilePlace:
        return OprofilePlace(address, *self._resolver.place(mode, task, address))

    def cookie(self, cookie: int) -> str:
        """The path of a dcookie, or what else it is."""
        from drgn_tools.oprofile_memory import read_cookies

        if self._cookies is None:
            self._cookies = read_cookies(self.prog)
        return self._cookies.get(cookie, "[unknown]")

    def entries(self, read: bool = False) -> Iterator[oprofile_records.Entry]:
        """
        The event buffer's pieces.

        :param read: What is behind those to be read, of earlier fills, instead.
        """
        from drgn_tools import oprofile_memory as memory
        from drgn_tools.oprofile_records import decode_event_buffer

        fmt = memory.record_format(self.prog)
        buffer = memory.read_event_buffer(self.prog, self.notes)
        words, start = buffer.words, 0
        if read:
            # From the first piece that is whole.
            first = (i for i, word in enumerate(buffer.rest) if word == fmt.escape)
            skipped = next(first, len(buffer.rest))
            words, start = buffer.rest[skipped:], len(words) + skipped
        entries = decode_event_buffer(
            words,
            fmt,
            cell=memory.is_cell(self.prog),
            targets=memory.has_branch_targets(self.prog),
        )
        return (e._replace(position=e.position + start) for e in entries)

    def _synced(self, cpu: int | None) -> Iterator[OprofileSample]:
        from drgn_tools.oprofile_memory import record_format
        from drgn_tools.oprofile_records import MODES, synced_samples

        fmt = record_format(self.prog)
        for sample in synced_samples(self.entries(), fmt):
            if cpu not in (None, sample.cpu):
                continue
            mode, cookie = sample.mode, sample.cookie
            program = self.cookie(sample.exec_cookie) if sample.exec_cookie else ""
            yield OprofileSample(
                sample.cpu,
                None,
                "synced",
                MODES[mode],
                sample.pid,
                sample.tgid,
                "",
                program,
                sample.event,
                self._synced_place(mode, cookie, sample.offset, fmt),
                tuple(self._synced_place(mode, c, o, fmt) for c, o in sample.trace),
                sample.kind,
                _named(sample.kind, sample.data),
                "",
            )

    def _synced_place(
        self, mode: int, cookie: int, offset: int, fmt: oprofile_records.Format
    ) -> OprofilePlace:
        from drgn_tools.oprofile_memory import NOBODY
        from drgn_tools.oprofile_records import USER

        if mode != USER:
            return self._place(mode, NOBODY, offset)
        if cookie in (0, fmt.escape):
            image = "[unmapped]" if cookie else "[anon]"
            return OprofilePlace(offset, image, None, "", 0)
        place = self._resolver.file_place(self.cookie(cookie), offset)
        return OprofilePlace(offset, *place)


def _named(kind: str, data: tuple[int, ...]) -> tuple[tuple[str, int], ...]:
    if not data:
        return ()
    from drgn_tools.oprofile_records import IBS_NAMES

    return tuple(zip(IBS_NAMES[kind], data))


@takes_program_or_default
def for_each_oprofile_sample(
    prog: Program,
    *,
    cpu: int | None = None,
    source: str = "all",
    read: bool = False,
    uncommitted: bool = False,
    sysroot: str | None = None,
    note: Callable[[str], object] | None = None,
) -> Iterator[OprofileSample]:
    """
    Iterate over the samples that nobody has read: those of the event buffer, then
    those of all CPUs' buffers in the order of their times.

    User samples belong to what the task has mapped now, or in the event buffer to what
    it had then.

    :param cpu: Only of this CPU.
    :param source: ``"cpu"`` for the CPUs' buffers, ``"event_buffer"``, or ``"all"``.
    :param read: Also samples that have gone on from the CPUs' buffers and are still
        there; many of them are in the event buffer too.
    :param uncommitted: Also samples that were being written.
    :param sysroot: Folder that has the target's programs at their paths, for names of
        functions in them.
    :param note: Called at the end with what is missing or torn, a line each.
    :raises DumpError: if this kernel has no oprofile or nobody has opened its buffer.
    :raises ValueError: if *source* is none of these.
    """
    profile = _Profile(prog, sysroot)
    yield from profile.samples(cpu, source, read, uncommitted)
    if note is not None:
        for line in profile.notes.lines():
            note(line)


@takes_program_or_default
def get_oprofile_stats(prog: Program) -> oprofile_memory.OprofileStats:
    """
    Return oprofile's counters and settings.

    :raises DumpError: if this kernel has no oprofile.
    """
    from drgn_tools.oprofile_memory import read_stats

    return read_stats(prog)


@takes_program_or_default
def oprofile_stats(prog: Program, *, file: File | None = None) -> None:
    """
    Print oprofile's counters, as in :file:`/dev/oprofile/stats`, and settings.

    :param file: File to print to. Defaults to :data:`sys.stdout`.
    :raises DumpError: if this kernel has no oprofile.
    """

    def work(out: File) -> None:
        from drgn_tools.oprofile_text import stats_lines

        for line in stats_lines(get_oprofile_stats(prog)):
            out.write(line + "\n")

    printing("oprofile", prog, file, work)


def _say_notes(profile: _Profile) -> None:
    for note in profile.notes.lines():
        say("oprofile", note)


@takes_program_or_default
def oprofile_samples(
    prog: Program,
    *,
    cpu: int | None = None,
    source: str = "all",
    read: bool = False,
    uncommitted: bool = False,
    sysroot: str | None = None,
    file: File | None = None,
) -> None:
    """
    Print samples, a line each, and their callers in lines below.

    >>> oprofile_samples(cpu=1)
       12.345678901 cpu 1  113/113 busy  user  0 busy_loop+0x13 (/bin/busy+0x1a33)

    Parameters are those of :func:`for_each_oprofile_sample()`.

    :param file: File to print to. Defaults to :data:`sys.stdout`. What is torn or
        missing is said on standard error.
    :raises DumpError: if this kernel has no oprofile or nobody has opened its buffer.
    """

    def work(out: File) -> None:
        from drgn_tools.oprofile_text import sample_lines

        profile = _Profile(prog, sysroot)
        for sample in profile.samples(cpu, source, read, uncommitted):
            out.write("\n".join(sample_lines(sample)) + "\n")
        _say_notes(profile)

    printing("oprofile", prog, file, work)


By = Union[str, Sequence[str]]


@takes_program_or_default
def oprofile_report(
    prog: Program,
    *,
    by: By = ("image", "symbol"),
    cpu: int | None = None,
    source: str = "all",
    sysroot: str | None = None,
    file: File | None = None,
) -> None:
    """
    Print how many samples there are of what, the most first.

    >>> oprofile_report()
    samples        %  image       symbol
       1234  61.7000  vmlinux     clear_user
        500  25.0000  /bin/busy   busy_loop

    :param by: What to tell apart: some of ``cpu``, ``task``, ``program``, ``mode``,
        ``event``, ``image``, ``symbol``, ``offset`` (in the file; else the address);
        in a sequence or with commas.
    :param file: File to print to. Defaults to :data:`sys.stdout`. What is torn or
        missing is said on standard error.

    The other parameters are those of :func:`for_each_oprofile_sample()`.

    :raises DumpError: if this kernel has no oprofile or nobody has opened its buffer.
    :raises ValueError: if *by* has something else.
    """

    def work(out: File) -> None:
        from drgn_tools.oprofile_text import count, report_lines

        profile = _Profile(prog, sysroot)
        columns = _columns(by)
        counts = count(profile.samples(cpu, source, False, False), columns)
        for line in report_lines(counts, columns):
            out.write(line + "\n")
        _say_notes(profile)

    printing("oprofile", prog, file, work)


def _columns(by: By) -> tuple[str, ...]:
    from drgn_tools.oprofile_text import COLUMNS

    columns = tuple(by.split(",") if isinstance(by, str) else by)
    wrong = [column for column in columns if column not in COLUMNS]
    if wrong or not columns:
        raise ValueError(f"by is {by!r}, and not some of {', '.join(COLUMNS)}")
    return columns


@takes_program_or_default
def oprofile_callgraph(
    prog: Program,
    *,
    folded: bool = False,
    cpu: int | None = None,
    source: str = "all",
    sysroot: str | None = None,
    file: File | None = None,
) -> None:
    """
    Print which functions samples were taken in, and who had called them: for each
    function its callers, itself, and below it what it called, with the number of
    samples that went that way.

    :param folded: Print whole call chains instead, a line each with its number of
        samples: the input of flame graphs.
    :param file: File to print to. Defaults to :data:`sys.stdout`. What is torn or
        missing is said on standard error.

    The other parameters are those of :func:`for_each_oprofile_sample()`.

    :raises DumpError: if this kernel has no oprofile or nobody has opened its buffer.
    """

    def work(out: File) -> None:
        from drgn_tools.oprofile_text import callgraph_lines, folded_lines

        profile = _Profile(prog, sysroot)
        samples = profile.samples(cpu, source, False, False)
        for line in (folded_lines if folded else callgraph_lines)(samples):
            out.write(line + "\n")
        _say_notes(profile)

    printing("oprofile", prog, file, work)


@takes_program_or_default
def oprofile_export(
    prog: Program,
    path: str,
    *,
    cpu: int | None = None,
    source: str = "all",
    sysroot: str | None = None,
    force: bool = False,
) -> None:
    """
    Write the samples for other tools, those with the same callers counted together.

    :param path: Of the file, which appears when all has been written. What it ends in
        says what it is: ``.folded`` for flame graphs (see
        :func:`oprofile_callgraph()`), ``.speedscope.json`` for speedscope, ``.pb.gz``
        for pprof.
    :param force: It may replace a file.

    The other parameters are those of :func:`for_each_oprofile_sample()`.

    :raises DumpError: if this kernel has no oprofile, nobody has opened its buffer, or
        the file cannot be written.
    :raises ValueError: if the file's name ends in something else.
    """
    from drgn_tools.export.endings import format_of
    from drgn_tools.output import check_target, write_file

    kind = format_of("oprofile", path)
    check_target(path, force)
    profile = _Profile(prog, sysroot)
    samples = profile.samples(cpu, source, False, False)
    pieces: Iterable[bytes]
    if kind == "folded":
        from drgn_tools.oprofile_text import folded_lines

        pieces = (f"{line}\n".encode() for line in folded_lines(samples))
    else:
        from drgn_tools.export.stacks import count_stacks, pprof, speedscope

        stacks = count_stacks(samples)
        pieces = pprof(stacks) if kind == "pprof" else [speedscope(stacks, "oprofile")]
    write_file(path, pieces, force)
    _say_notes(profile)


@takes_program_or_default
def oprofile_event_buffer(
    prog: Program, *, read: bool = False, file: File | None = None
) -> None:
    """
    Print the event buffer piece by piece: what the daemon would have read next.

    :param read: Also what is behind that in memory: pieces that were read, and not
        overwritten since.
    :param file: File to print to. Defaults to :data:`sys.stdout`.
    :raises DumpError: if this kernel has no oprofile or nobody has opened its buffer.
    """

    def work(out: File) -> None:
        from drgn_tools.oprofile_text import entry_line

        profile = _Profile(prog, None)
        for entry in profile.entries():
            out.write(entry_line(entry, profile.cookie) + "\n")
        for entry in profile.entries(read=True) if read else ():
            out.write(entry_line(entry, profile.cookie) + " [read]\n")
        _say_notes(profile)

    printing("oprofile", prog, file, work)


def print_dump(
    dump: str,
    *,
    symbols: Sequence[str] = (),
    sysroot: str | None = None,
    by: By = ("image", "symbol"),
    samples: bool = False,
    callgraph: bool = False,
    as_json: bool = False,
    output: str | None = None,
    force: bool = False,
) -> None:
    """
    Print all that oprofile has in a dump, as ``drgn-tools oprofile DUMP`` does.

    :param symbols: Files with debugging symbols, beside those that drgn finds:
        vmlinux, oprofile.ko.
    :param samples: Each sample, too.
    :param callgraph: The call graph, too.
    :param as_json: As one JSON object instead.
    :param output: Write this file instead: see :func:`oprofile_export()`.
    :param force: It may replace a file.
    :raises DumpError: if the dump cannot be read or has nothing of oprofile.
    """
    import sys

    from drgn_tools.output import check_target
    from drgn_tools.program import open_dump, require_symbols
    from drgn_tools.progress import printed

    if output is not None:
        check_target(output, force, (dump,))
    prog = open_dump(dump, symbols)
    require_symbols(prog, dump, "oprofile", ("oprofile",))
    try:
        if output is not None:
            oprofile_export(prog, output, sysroot=sysroot, force=force)
            return
        if as_json:
            _print_json(prog, sysroot, by, sys.stdout)
            return
        with printed() as out:
            oprofile_stats(prog, file=out)
            out.write("\n")
            oprofile_report(prog, by=by, sysroot=sysroot, file=out)
            if callgraph:
                out.write("\n")
                oprofile_callgraph(prog, sysroot=sysroot, file=out)
            if samples:
                out.write("\n")
                oprofile_samples(prog, sysroot=sysroot, file=out)
    except (LookupError, ValueError, FaultError) as error:
        raise DumpError(one_line(error)) from None


def _print_json(prog: Program, sysroot: str | None, by: By, out: File) -> None:
    import contextlib

    from drgn_tools.oprofile_text import (
        count,
        entry_json,
        sample_json,
        stats_json,
    )
    from drgn_tools.text import json_line

    columns = _columns(by)
    profile = _Profile(prog, sysroot)
    found: list[OprofileSample] = []

    def kept() -> Iterator[OprofileSample]:
        for sample in profile.samples(None, "all", False, False):
            found.append(sample)
            yield sample

    counts = count(kept(), columns)
    pieces: list[oprofile_records.Entry] = []
    # What is wrong with them is among the notes.
    with contextlib.suppress(DumpError, LookupError, FaultError):
        pieces += profile.entries()
    report: list[dict[str, Any]] = [
        {**dict(zip(columns, key)), "samples": number}
        for key, number in counts.most_common()
    ]
    head = {
        "stats": stats_json(get_oprofile_stats(prog)),
        "notes": list(profile.notes.lines()),
        "report": report,
    }
    # One by one: there may be many.
    out.write(json_line(head)[:-1] + ', "samples": [')
    separator = "\n"
    for sample in found:
        out.write(separator + json_line(sample_json(sample)))
        separator = ",\n"
    out.write('], "event_buffer": [')
    separator = "\n"
    for entry in pieces:
        out.write(separator + json_line(entry_json(entry, profile.cookie)))
        separator = ",\n"
    out.write("]}\n")
