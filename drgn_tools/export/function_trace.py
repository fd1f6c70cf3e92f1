# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Function traces of pstore for other tools
-----------------------------------------

As Perfetto's trace and as trace-cmd's. Records have no times: they are put at the
number that each has, so that all CPUs' are in the order in which they were made.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from drgn_tools import output
from drgn_tools.errors import DumpError
from drgn_tools.export import perfetto, trace_dat
from drgn_tools.print_fmt import Field
from drgn_tools.pstore_records import FtraceArray, FtraceFormat, Name
from drgn_tools.text import printable

# More than any kernel can have: what else a record says is damage.
_MAX_CPUS = 1 << 13
# Records that are turned into Python's own at once.
_CHUNK = 1 << 14
# TRACE_FN.
_TYPE = 1
# Of a trace of CPUs that says nothing of tasks.
_NOBODY = -1
_CAPACITY = 4080


class Boot(NamedTuple):
    """The function trace of one boot."""

    number: int
    """0 for the newest, -1 for the one before."""
    records: FtraceArray
    """Oldest first."""
    ip: npt.NDArray[np.uint64]
    """Their addresses, such that those of boots in one file do not mix."""
    parent_ip: npt.NDArray[np.uint64]
    function: Name
    """Names ip."""
    caller: Name
    """Names parent_ip."""


def times(records: FtraceArray) -> npt.NDArray[np.int64]:
    """
    Numbers to put records at, which do not fall: their counters, or those of their
    places where counters start again or are nonsense.
    """
    counter = records["counter"]
    if not len(counter) or not counter[-1] or counter[-1] >> np.uint64(50):
        return np.arange(len(counter))
    if (counter[1:] < counter[:-1]).any():
        return np.arange(len(counter))
    return np.asarray(counter.astype(np.int64))


def write(
    path: str,
    kind: str,
    boots: Sequence[Boot],
    fmt: FtraceFormat,
    force: bool = False,
) -> list[str]:
    """
    Write a file.

    :param kind: perfetto or trace.dat.
    :param force: it may replace a file.
    :return: what it lacks, a line each.
    :raises DumpError: if there are no records, or it cannot be written.
    """
    if not boots:
        raise DumpError(f"{path} is not written: there are no records for it")
    kept = [_of_cpus(boot) for boot in boots]
    if kind == "perfetto":
        output.write_file(path, perfetto_trace(kept), force)
    else:
        write_trace_dat(path, kept, fmt, force)
    count = sum(len(boot.records) for boot in boots)
    count -= sum(len(boot.records) for boot in kept)
    return [f"{count} records of CPUs that there cannot be"] * bool(count)


def summary(path: str, boots: Sequence[Boot]) -> str:
    """What was written, in one line."""
    count = sum(len(boot.records) for boot in boots)
    numbers = ", ".join(str(boot.number) for boot in boots)
    return printable(
        f"{path}: {count} record{'s' * (count != 1)} of "
        f"boot{'s' * (len(boots) != 1)} {numbers}"
    )


def _of_cpus(boot: Boot) -> Boot:
    there = boot.records["cpu"] < _MAX_CPUS
    return boot._replace(
        records=boot.records[there],
        ip=boot.ip[there],
        parent_ip=boot.parent_ip[there],
    )


def perfetto_trace(boots: Sequence[Boot]) -> Iterator[bytes]:
    """
    Return the content of a file for Perfetto, in pieces: a track for each CPU of each
    boot, on which each call is a mark. A microsecond is a record.
    """
    track = 0
    for sequence, boot in enumerate(boots, 1):
        maker = perfetto.Sequence(sequence, often=("caller", "note"))
        yield from maker.packets(_marks(boot, track + 1))
        track += 1 + len(np.unique(boot.records["cpu"]))


def _marks(boot: Boot, top: int) -> Iterator[perfetto.Track | perfetto.Event]:
    yield perfetto.Track(
        top,
        f"pstore, boot {boot.number} (1 us = 1 record)",
        rank=-boot.number,
        description="Records have no times: each is a microsecond, in their order.",
    )
    cpus: list[int] = np.unique(boot.records["cpu"]).tolist()
    tracks = {cpu: top + 1 + place for place, cpu in enumerate(cpus)}
    for cpu, track in tracks.items():
        yield perfetto.Track(track, f"CPU {cpu}", top, cpu)
    functions: dict[int, str] = {}
    callers: dict[int, tuple[tuple[str, str], ...]] = {}
    when = times(boot.records)
    torn = (("note", "torn or late"),)
    new, event = tuple.__new__, perfetto.Event
    for start in range(0, len(when), _CHUNK):
        part = slice(start, start + _CHUNK)
        for time, cpu, ip, parent, is_torn in zip(
            (when[part] * 1000).tolist(),
            boot.records["cpu"][part].tolist(),
            boot.ip[part].tolist(),
            boot.parent_ip[part].tolist(),
            boot.records["torn"][part].tolist(),
        ):
            name = functions.get(ip)
            if name is None:
                name = functions[ip] = boot.function(ip)
            details = callers.get(parent)
            if details is None:
                details = callers[parent] = (("caller", boot.caller(parent)),)
            if is_torn:
                details += torn
            yield new(event, (time, tracks[cpu], "instant", name, details))


class _Event(NamedTuple):
    type: int
    system: str
    name: str
    print_fmt: str
    fields: Sequence[Field]


class _Record(NamedTuple):
    time: int
    data: bytes


_COMMON = (
    Field("common_type", "unsigned short", 0, 2, False),
    Field("common_flags", "unsigned char", 2, 1, False),
    Field("common_preempt_count", "unsigned char", 3, 1, False),
    Field("common_pid", "int", 4, 4, True),
)


def write_trace_dat(
    path: str, boots: Sequence[Boot], fmt: FtraceFormat, force: bool
) -> None:
    """
    Write a file for trace-cmd: the first boot as its own buffer, others as instances.
    Times are the records' numbers, as of the clock ``counter``. Nothing says which
    tasks called.

    :raises DumpError: if it cannot be written.
    """
    word = fmt.word
    type_ = "unsigned long"
    function = _Event(
        _TYPE,
        "ftrace",
        "function",
        '" %ps <-- %ps", (void *)REC->ip, (void *)REC->parent_ip',
        (
            Field("ip", type_, 8, word, False),
            Field("parent_ip", type_, 8 + word, word, False),
        ),
    )
    kernel = trace_dat.Kernel(
        fmt.byteorder == "little",
        word,
        "",
        _COMMON,
        {_TYPE: function}.get,
        lambda address: "",
        lambda: _symbols(boots),
        dict,
    )
    buffers = [
        trace_dat.Buffer(
            f"boot{boot.number}" if place else "",
            "counter",
            _CAPACITY,
            _cpus(boot, fmt),
        )
        for place, boot in enumerate(boots)
    ]
    trace_dat.write_trace_dat(path, kernel, buffers, force)


def _cpus(boot: Boot, fmt: FtraceFormat) -> Mapping[int, Iterator[_Record]]:
    when = times(boot.records)
    cpus: list[int] = np.unique(boot.records["cpu"]).tolist()
    return {
        cpu: _records(boot, fmt, when, np.flatnonzero(boot.records["cpu"] == cpu))
        for cpu in cpus
    }


def _records(
    boot: Boot,
    fmt: FtraceFormat,
    when: npt.NDArray[np.int64],
    places: npt.NDArray[np.int64],
) -> Iterator[_Record]:
    order = "<" if fmt.byteorder == "little" else ">"
    pack = struct.Struct(order + "HBBi" + ("QQ" if fmt.word == 8 else "II")).pack
    mask = (1 << 8 * fmt.word) - 1
    for start in range(0, len(places), _CHUNK):
        part = places[start : start + _CHUNK]
        columns = (when[part], boot.ip[part], boot.parent_ip[part])
        for time, ip, parent in zip(*(column.tolist() for column in columns)):
            data = pack(_TYPE, 0, 0, _NOBODY, ip & mask, parent & mask)
            yield _Record(time, data)


def _symbols(boots: Sequence[Boot]) -> Iterator[tuple[int, str, str]]:
    # Of the addresses that there are: trace-cmd takes the nearest one below.
    names: dict[int, str] = {}
    for boot in boots:
        for address in np.unique(np.concatenate([boot.ip, boot.parent_ip])).tolist():
            name = boot.function(address)
            if names.setdefault(address, name) != name:
                # Of another boot, whose kernel was elsewhere.
                names[address] = hex(address)
    for address, name in names.items():
        function, _, module = name.partition(" [")
        yield address, function, module.rstrip("]")
