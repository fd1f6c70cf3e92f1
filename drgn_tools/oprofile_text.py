# SPDX-License-Identifier: LGPL-2.1-or-later
"""Samples of oprofile as text and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Callable

from drgn_tools.oprofile_records import IBS_NAMES, SWITCHES, Entry
from drgn_tools.text import printable

if TYPE_CHECKING:
    from drgn_tools.oprofile import OprofilePlace, OprofileSample
    from drgn_tools.oprofile_memory import OprofileStats

    Counts = Counter[tuple[str, ...]]

Cookie = Callable[[int], str]
"""Says the path of a dcookie."""


def stats_lines(stats: OprofileStats) -> Iterator[str]:
    """Counters and settings, by the names of the files in /dev/oprofile."""
    yield f"cpu_type {printable(stats.cpu_type) or 'unknown'}"
    yield f"enable {int(stats.started)}"
    for name in (
        "backtrace_depth",
        "buffer_size",
        "buffer_watershed",
        "cpu_buffer_size",
    ):
        yield f"{name} {getattr(stats, name)}"
    for name, value in _stats_files(stats):
        yield f"stats/{name} {value}"


def _stats_files(stats: OprofileStats) -> Iterator[tuple[str, int]]:
    for name, value in stats.global_.items():
        yield printable(name), value
    for cpu in stats.cpus:
        # The first two are its number and size.
        for name in cpu._fields[2:]:
            yield f"cpu{cpu.cpu}/{name}", getattr(cpu, name)


def stats_json(stats: OprofileStats) -> dict[str, Any]:
    """The same for ``--json``."""
    head = {**stats._asdict(), "stats": dict(_stats_files(stats))}
    del head["global_"], head["cpus"]
    return head


def _symbol(place: OprofilePlace) -> str:
    return printable(place.symbol) or "(no symbols)"


def place_text(place: OprofilePlace) -> str:
    """Function, file and offset."""
    image = printable(place.image)
    where = image if place.offset is None else f"{image}+{place.offset:#x}"
    if place.symbol:
        return f"{printable(place.symbol)}+{place.symbol_offset:#x} ({where})"
    return f"{place.address:#x} ({where})"


def task_name(sample: OprofileSample) -> str:
    """Name and pid of its task."""
    if sample.pid < 0:
        return "?"
    name = sample.comm or sample.program.rpartition("/")[2]
    return f"{printable(name)}[{sample.pid}]"


def sample_lines(sample: OprofileSample) -> Iterator[str]:
    """A sample, and its callers in lines below."""
    if sample.time is None:
        time = ""
    else:
        time = f"{sample.time // 10**9}.{sample.time % 10**9:09}"
    line = (
        f"{time:>16} cpu {sample.cpu} {task_name(sample)} {sample.mode} "
        f"{sample.event} {place_text(sample.place)}"
    )
    if sample.kind != "sample":
        line += f" {sample.kind}"
        line += "".join(f" {name}={value:#x}" for name, value in sample.data)
    if sample.state not in ("unread", "synced"):
        line += f" [{sample.state}]"
    if sample.note:
        line += f" [{printable(sample.note)}]"
    yield line
    for caller in sample.trace:
        yield f"{'':>16} <- {place_text(caller)}"


COLUMNS: dict[str, Callable[[OprofileSample], str]] = {
    "cpu": lambda sample: str(sample.cpu),
    "task": task_name,
    "program": lambda sample: printable(sample.program) or "-",
    "mode": lambda sample: sample.mode,
    "event": lambda sample: str(sample.event),
    "image": lambda sample: printable(sample.place.image),
    "symbol": lambda sample: _symbol(sample.place),
    "offset": lambda sample: hex(
        sample.place.address if sample.place.offset is None else sample.place.offset
    ),
}
"""What samples can be told apart by."""


def count(samples: Iterable[OprofileSample], columns: tuple[str, ...]) -> Counts:
    """How many samples there are of what."""
    chosen = [COLUMNS[column] for column in columns]
    return Counter(tuple(column(sample) for column in chosen) for sample in samples)


def _ranked(counts: Counter[Any]) -> list[tuple[Any, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def report_lines(counts: Counts, columns: tuple[str, ...]) -> Iterator[str]:
    """A table of samples, the most first."""
    total = sum(counts.values())
    rows = [(*columns,), *(key for key, _ in _ranked(counts))]
    widths = [max(map(len, column)) for column in zip(*rows)]
    numbers = ["samples", *(str(number) for _, number in _ranked(counts))]
    shares = [
        "%",
        *(f"{100 * number / total:.4f}" for _, number in _ranked(counts)),
    ]
    for number, share, row in zip(numbers, shares, rows):
        cells = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths))
        yield f"{number:>7}  {share:>8}  {cells}".rstrip()


def _function(place: OprofilePlace) -> tuple[str, str]:
    return _symbol(place), printable(place.image)


def function_name(place: OprofilePlace) -> str:
    """The function, or else what the address belongs to."""
    return printable(place.symbol) or printable(place.image)


def call_chain(sample: OprofileSample) -> tuple[OprofilePlace, ...]:
    """Where the sample was taken, and its callers."""
    trace = sample.trace
    # A kernel's trace may begin with where the sample was taken.
    if trace and trace[0].address == sample.place.address:
        trace = trace[1:]
    return (sample.place, *trace)


def callgraph_lines(samples: Iterable[OprofileSample]) -> Iterator[str]:
    """For each function, callers above it and what it called below."""
    # Samples in it, and those in it or in what it called.
    alone: Counter[tuple[str, str]] = Counter()
    within: Counter[tuple[str, str]] = Counter()
    arcs: Counter[tuple[tuple[str, str], tuple[str, str]]] = Counter()
    total = 0
    for sample in samples:
        total += 1
        chain = [_function(place) for place in call_chain(sample)]
        alone[chain[0]] += 1
        # Of a function that calls itself, each sample counts once.
        within.update(set(chain))
        arcs.update(set(zip(chain[1:], chain)))
    callers: dict[tuple[str, str], Counter[tuple[str, str]]] = {}
    called: dict[tuple[str, str], Counter[tuple[str, str]]] = {}
    for (caller, callee), number in arcs.items():
        callers.setdefault(callee, Counter())[caller] = number
        called.setdefault(caller, Counter())[callee] = number

    def line(number: int, function: tuple[str, str], indent: str) -> str:
        share = 100 * number / total
        symbol, image = function
        return f"{indent}{number:>7}  {share:>8.4f}  {symbol} ({image})"

    yield "samples         %  function; above it its callers, below it what it called"
    for function, number in _ranked(within):
        yield "-" * 72
        for caller, times in _ranked(callers.get(function, Counter())):
            yield line(times, caller, "    ")
        yield f"{line(number, function, '')} [self {alone[function]}]"
        for callee, times in _ranked(called.get(function, Counter())):
            yield line(times, callee, "    ")


def folded_lines(samples: Iterable[OprofileSample]) -> Iterator[str]:
    """Call chains, the outermost function first, and how many samples they have."""
    chains: Counter[str] = Counter()
    for sample in samples:
        places = reversed(call_chain(sample))
        names = [function_name(place).replace(";", ":") for place in places]
        chains[";".join([task_name(sample).replace(";", ":"), *names])] += 1
    for chain, number in _ranked(chains):
        yield f"{chain} {number}"


def _entry_values(entry: Entry, cookie: Cookie) -> dict[str, Any]:
    kind, values = entry.kind, entry.values
    if kind == "sample":
        return {"offset": values[0], "event": values[1]}
    if kind == "spu_sample":
        return {"spu": values[0], "offset": values[1]}
    if kind == "spu_profiling":
        return {"spus": values[0]}
    if kind in IBS_NAMES:
        return {"offset": values[0], "words": list(values[1:])}
    for name, fields in SWITCHES.values():
        if name == kind:
            known: dict[str, Any] = dict(zip(fields, values))
            for field in ("exec_cookie", "cookie"):
                if known.get(field):
                    known[field.replace("cookie", "path")] = cookie(known[field])
            return known
    return {"words": list(values)}


_DECIMAL = ("event", "pid", "tgid", "cpu", "domain", "spu", "spus")


def entry_line(entry: Entry, cookie: Cookie) -> str:
    """A piece of the event buffer."""
    words = [f"{entry.position:>8} {entry.kind}"]
    for name, value in _entry_values(entry, cookie).items():
        if isinstance(value, str):
            shown = printable(value)
        elif isinstance(value, list):
            shown = ",".join(map(hex, value))
        else:
            shown = str(value) if name in _DECIMAL else hex(value)
        words.append(f"{name}={shown}")
    return " ".join(words)


def entry_json(entry: Entry, cookie: Cookie) -> dict[str, Any]:
    """The same for ``--json``."""
    return {
        "position": entry.position,
        "kind": entry.kind,
        **_entry_values(entry, cookie),
    }


def sample_json(sample: OprofileSample) -> dict[str, Any]:
    """A sample for ``--json``."""
    return {
        **sample._asdict(),
        "place": sample.place._asdict(),
        "trace": [place._asdict() for place in sample.trace],
        "data": dict(sample.data),
    }
