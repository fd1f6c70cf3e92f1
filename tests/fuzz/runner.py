# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The long run
------------

Mutates inputs and gives them to a reader, in a process of its own with limits of memory
and processor time. Some of them are traced: those that reach what no input has reached
yet are kept, and mutated in turn. What goes wrong is kept, too. All that was done is in
a folder, so that a run can be stopped at any time and taken up again.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import mmap
import os
import random
import resource
import select
import signal
import struct
import sys
import time
import traceback
from bisect import bisect
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Callable, NamedTuple

import drgn_tools
from tests.fuzz import readers
from tests.fuzz.mutate import mutate
from tests.fuzz.readers import READERS, Reader

#: More than this beside what a process has at its start is a fault: as memory, in
#: bytes, and of processor time for one input, in seconds.
MEMORY = 512 << 20
SECONDS = 5.0
# Inputs of one process; what it leaks is gone then.
_BATCH = 100_000
# A batch also ends after so long, so that the state is never old.
_BATCH_SECONDS = 60.0
# One of so many inputs is traced: of a reader's first ones, and of the others. Hardly
# any of those reaches anything new, and it takes as long as three to ten that are not.
_TRACED_FIRST, _TRACED_LATER = 32, 128
_FIRST = 100_000
# After so many inputs, what refers to itself is collected: until then it keeps its
# files open, and its memory.
_COLLECTED = 64
# Inputs that reached something new, at most.
_MOST_KEPT = 2000
# One input in shared memory: number, its length, whether one is being read.
_HEAD = struct.Struct("<QII")
_SOURCE = os.path.dirname(drgn_tools.__file__) + os.sep
_ALARM_MARGIN = 30.0


class Finding(NamedTuple):
    """What went wrong."""

    kind: str
    """The exception, or how the process ended."""
    place: str
    """Where, as far as that is known."""
    text: str
    input: str
    """Name of the file that has it."""


class State(NamedTuple):
    """What was done for one reader so far."""

    inputs: int = 0
    seconds: float = 0.0
    """Of processor time."""
    edges: int = 0
    """Pairs of lines, one behind the other, that were seen."""
    kept: int = 0
    slowest: float = 0.0
    """Seconds for one input."""
    peak: int = 0
    """Bytes of memory beyond what a process starts with."""
    findings: tuple[Finding, ...] = ()


def folder() -> Path:
    """Where states are, and what was found."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base, "drgn-tools", "fuzz")


def _room(name: str) -> Path:
    return folder() / name.replace(" ", "-")


def load(name: str) -> State:
    """The state of a reader; as at the start if there is none."""
    try:
        raw = json.loads((_room(name) / "state.json").read_text())
    except (FileNotFoundError, ValueError):
        return State()
    raw["findings"] = tuple(Finding(**one) for one in raw["findings"])
    return State(**raw)


def _save(name: str, state: State) -> None:
    room = _room(name)
    room.mkdir(parents=True, exist_ok=True)
    raw = {**state._asdict(), "findings": [one._asdict() for one in state.findings]}
    new = room / "state.json.new"
    new.write_text(json.dumps(raw, indent=1))
    new.replace(room / "state.json")


def _keep(name: str, kind: str, data: bytes) -> str:
    room = _room(name) / kind
    room.mkdir(parents=True, exist_ok=True)
    path = room / hashlib.sha256(data).hexdigest()[:16]
    path.write_bytes(data)
    return str(path)


# --- coverage ---------------------------------------------------------------------

Edge = tuple[CodeType, int, int]


class Tracer:
    """Which lines of the package follow which, while it is on."""

    def __init__(self) -> None:
        self.seen: set[Edge] = set()
        self._now: set[Edge] = set()
        self._ours: dict[CodeType, bool] = {}

    def try_one(self, reader: Reader, data: bytes) -> tuple[BaseException | None, int]:
        """Like :func:`try_one`, and how many pairs are new."""
        self._now = set()
        sys.settrace(self._call)
        try:
            error = try_one(reader, data)
        finally:
            sys.settrace(None)
        new = self._now - self.seen
        self.seen |= new
        return error, len(new)

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        ours = self._ours.get(code)
        if ours is None:
            ours = self._ours[code] = code.co_filename.startswith(_SOURCE)
        if not ours:
            return None
        last, now = 0, self._now

        def local(frame: FrameType, event: str, arg: Any) -> Any:
            nonlocal last
            if event == "line":
                now.add((code, last, frame.f_lineno))
                last = frame.f_lineno
            return local

        return local


# --- what is mutated --------------------------------------------------------------


class _Corpus:
    # Inputs, the seeds first. One that takes twice as long is taken half as often: all
    # get the same time.

    def __init__(self, reader: Reader, seeds: Sequence[bytes]) -> None:
        self.all = list(seeds)
        self._reader = reader
        self._seeds = len(seeds)
        seconds = [self._time(data) for data in seeds]
        median = sorted(seconds)[len(seconds) // 2]
        self._least, self._most = median / 4, max(median * 8, 1e-6)
        self._weights = list(accumulate(map(self._weight, seconds)))

    def _time(self, data: bytes) -> float:
        # The first time, there may be something to import.
        try_one(self._reader, data)
        before = time.process_time()
        try_one(self._reader, data)
        return time.process_time() - before

    def _weight(self, seconds: float) -> float:
        return 1 / min(max(seconds, self._least, 1e-6), self._most)

    def add(self, data: bytes) -> None:
        """One more."""
        self.all.append(data)
        self._weights.append(self._weights[-1] + self._weight(self._time(data)))

    def choose(self, chance: random.Random) -> bytes:
        """One of them; now and then a seed."""
        end = self._seeds if chance.random() < 0.3 else len(self.all)
        at = bisect(self._weights, chance.random() * self._weights[end - 1])
        return self.all[min(at, end - 1)]


# --- one process ------------------------------------------------------------------


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def limit_memory(more: int) -> None:
    """Let this process have so many bytes beside those that it has."""
    with open("/proc/self/statm") as file:
        have = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (have + more, have + more))


def what_went_wrong(error: BaseException) -> tuple[str, str, str]:
    """Kind, place and text of an exception."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(_SOURCE)]
    frame = (ours or frames)[-1]
    place = f"{os.path.basename(frame.filename)}:{frame.lineno}"
    return type(error).__name__, place, str(error)[:200]


def try_one(reader: Reader, data: bytes) -> BaseException | None:
    """Read an input; what it must not raise is returned."""
    try:
        reader.read(data)
    except reader.answers:
        return None
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return error
    return None


def _work(
    name: str, start: int, count: int, shared: mmap.mmap, report: Callable[[Any], None]
) -> None:
    """Inputs from number *start* on."""
    reader = READERS[name]
    seeds = reader.seeds()
    corpus = _Corpus(reader, seeds)
    kept = readers.corpus(name)
    with contextlib.suppress(FileNotFoundError):
        for path in sorted((_room(name) / "corpus").iterdir()):
            kept.append(path.read_bytes())
    for data in kept:
        corpus.add(data)
    tracer = Tracer()
    for data in corpus.all:
        tracer.try_one(reader, data)
    # What is there is there to stay: it need not be looked through again and again.
    gc.collect()
    gc.freeze()
    limit_memory(MEMORY)
    peak = _peak()
    chance = random.Random(f"{name} {start}")
    slowest = 0.0
    began = time.process_time()
    wall = time.monotonic()
    number = start
    for number in range(start, start + count):
        seed = corpus.choose(chance)
        data = mutate(seed, corpus.all, chance, most=reader.most, fixed=reader.fixed)
        shared[_HEAD.size : _HEAD.size + len(data)] = data
        shared[: _HEAD.size] = _HEAD.pack(number, len(data), 1)
        before = time.process_time()
        if number % (_TRACED_FIRST if number < _FIRST else _TRACED_LATER):
            error = try_one(reader, data)
        else:
            error, new = tracer.try_one(reader, data)
            if new and error is None and len(corpus.all) < _MOST_KEPT:
                corpus.add(data)
                _keep(name, "corpus", data)
        took = time.process_time() - before
        slowest = max(slowest, took)
        if error is not None:
            kind, place, text = what_went_wrong(error)
            report({"finding": Finding(kind, place, text, _keep(name, "found", data))})
        if not number % _COLLECTED:
            gc.collect()
            if time.monotonic() - wall > _BATCH_SECONDS:
                break
    shared[: _HEAD.size] = _HEAD.pack(number + 1, 0, 0)
    report(
        {
            "inputs": number + 1 - start,
            "seconds": time.process_time() - began,
            "edges": len(tracer.seen),
            "kept": len(corpus.all) - len(seeds),
            "slowest": slowest,
            "peak": max(0, _peak() - peak),
        }
    )


@contextlib.contextmanager
def _process(
    work: Callable[[Callable[[Any], None]], None],
) -> Iterator[tuple[int, int]]:
    """A process that does something and reports, as lines of JSON: pid and pipe."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.close(read_end)
            # What a reader prints is nobody's business.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            signal.signal(signal.SIGINT, signal.SIG_IGN)

            def report(what: Any) -> None:
                if "finding" in what:
                    what = {"finding": what["finding"]._asdict()}
                os.write(write_end, json.dumps(what).encode() + b"\n")

            work(report)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(write_end)
    try:
        yield pid, read_end
    finally:
        os.close(read_end)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _used(pid: int) -> float:
    """Seconds of processor time that a process has had."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _still(name: str, one: Finding) -> bool:
    """Whether what went wrong still does."""
    try:
        data = Path(one.input).read_bytes()
    except FileNotFoundError:
        return True
    status = 1
    pid = os.fork()
    if not pid:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            limit_memory(MEMORY)
            # What takes so long is a hang, and ends here.
            seconds = int(4 * SECONDS)
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
            status = int(try_one(READERS[name], data) is not None)
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    return bool(status)


def look_again(name: str) -> State:
    """Forget what no longer goes wrong."""
    state = load(name)
    left = tuple(one for one in state.findings if _still(name, one))
    if left != state.findings:
        state = state._replace(findings=left)
        _save(name, state)
    return state


def run_batch(name: str, state: State, count: int) -> State:
    """Some more inputs for a reader, and its new state."""
    shared = mmap.mmap(-1, (1 << 21) + _HEAD.size)
    findings = {(one.kind, one.place): one for one in state.findings}
    done: dict[str, Any] = {}
    start = state.inputs

    def work(report: Callable[[Any], None]) -> None:
        _work(name, start, min(count, _BATCH), shared, report)

    why = ""
    with _process(work) as (pid, pipe):
        buffer = b""
        number, since, used = -1, time.monotonic(), 0.0
        while True:
            ready, _, _ = select.select([pipe], [], [], 1)
            if ready:
                part = os.read(pipe, 1 << 16)
                if not part:
                    break
                *lines, buffer = (buffer + part).split(b"\n")
                for line in lines:
                    what = json.loads(line)
                    if "finding" in what:
                        one = Finding(**what["finding"])
                        findings.setdefault((one.kind, one.place), one)
                    else:
                        done = what
                continue
            now, _, busy = _HEAD.unpack(shared[: _HEAD.size])
            if now != number or not busy:
                number, since, used = now, time.monotonic(), _used(pid)
            elif (
                _used(pid) - used > SECONDS
                or time.monotonic() - since > SECONDS * _ALARM_MARGIN
            ):
                why = "hang"
                break
        if not why:
            _, status = os.waitpid(pid, 0)
            if os.WIFSIGNALED(status):
                why = signal.Signals(os.WTERMSIG(status)).name
            elif os.WEXITSTATUS(status) or not done:
                why = f"exit status {os.WEXITSTATUS(status)}"
    if why:
        now, length, _ = _HEAD.unpack(shared[: _HEAD.size])
        data = shared[_HEAD.size : _HEAD.size + length]
        one = Finding(why, "", "the process ended", _keep(name, "found", data))
        findings.setdefault((why, one.input), one)
        done = {"inputs": max(1, now + 1 - start), "seconds": used}
    merged = State(
        state.inputs + done["inputs"],
        state.seconds + done.get("seconds", 0.0),
        max(state.edges, done.get("edges", 0)),
        max(state.kept, done.get("kept", 0)),
        max(state.slowest, done.get("slowest", 0.0)),
        max(state.peak, done.get("peak", 0)),
        tuple(findings.values()),
    )
    _save(name, merged)
    return merged
