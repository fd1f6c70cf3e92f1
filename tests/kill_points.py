# SPDX-License-Identifier: LGPL-2.1-or-later
"""
kill -9 at random moments of a capture, and what is there afterwards.

    python -m tests.kill_points [RUNS [SEED]]

runs a real capture again and again with a few workers; each time, a process of it,
the first or a worker, is killed with SIGKILL before the n-th call of something that
changes the output or the counters: what, and which n, is drawn from all that an
undisturbed run comes to. What is found then is read by
tests/synthetic.py, which shares no code with the writer; only the parts of a split
dump, ELF cores and what is left of who was killed are read by drgn_tools.vmcore, which
is no part of the writer.
"""

from __future__ import annotations

import collections
import os
import random
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from drgn_tools import output, plan, rearrange, workers, writer
from drgn_tools.errors import DumpError
from drgn_tools.pages import excluded_classes
from drgn_tools.vmcore import open_vmcore
from tests.synthetic import MIB, Machine, read_kdump, write_elf

# Where a process can be killed: a module or class, and what it calls there.
POINTS: dict[str, tuple[Any, str]] = {
    "plan": (plan, "classify"),
    "take": (workers, "_take"),
    "count": (workers.Counters, "__setitem__"),
    "lock": (workers.Counters, "add"),
    "headers": (writer.KdumpWriter, "_write_headers"),
    "bitmaps": (writer.KdumpWriter, "_write_bitmaps"),
    "read": (writer.KdumpWriter, "_pages"),
    "put": (writer.KdumpWriter, "_put"),
    "write": (os, "pwrite"),
    "descriptors": (writer.KdumpWriter, "_write_descriptors"),
    "checksums": (writer.KdumpWriter, "_write_checksums"),
    "copy": (rearrange, "_copy_pages"),
    "stream": (output.Stream, "_put"),
    "hand over": (output.Stream, "_hand_over"),
    "fsync": (os, "fsync"),
    "unlink": (os, "unlink"),
    "rename": (os, "rename"),
}
WHO = ("first", "worker")
KINDS = ("file", "split", "stream", "elf", "rearrange", "reassemble")


def machine() -> Machine:
    """Memory of a few items, some of it the users'."""
    made = Machine(ram=((0, 8 * MIB), (64 * MIB, 2 * MIB)))
    for pfn in range(100, 400, 3):
        made.pages[0].anon(pfn)
    made.loads()
    return made


def expected_pages(made: Machine) -> dict[int, bytes]:
    """What a dump of level 8 has."""
    out = excluded_classes(8)
    return {p: made.page(p) for p in made.pfns() if made.expected(p) not in out}


def run_killed(
    dump: Path, room: Path, kind: str, point: str, who: str, nth: int
) -> tuple[int, str, str, list[int]]:
    """
    Run a capture in a copy of this process.

    :param who: "first" or "worker": which is killed, before its *nth* call.
    :return: exit status, standard error, who was killed; of each point, how often
        the first process and workers came to it.
    """
    from drgn_tools.__main__ import main
    from drgn_tools.makedumpfile import main as makedumpfile

    options = ["-d8", "--jobs", "2", "-f"]
    arguments = {
        "file": ["extract", *options, str(dump), str(room / "out")],
        "split": [
            *("extract", *options, "--split"),
            *(str(dump), str(room / "out"), str(room / "out2")),
        ],
        "stream": ["extract", *options, "-F", str(dump)],
        "elf": ["extract", *options, "-E", str(dump), str(room / "out")],
        "rearrange": ["-R", str(room / "out")],
        "reassemble": ["--reassemble", f"{dump}1", f"{dump}2", str(room / "out")],
    }[kind]
    counts = workers.Counters(1 + 2 * len(POINTS))
    with (
        tempfile.TemporaryFile() as err,
        open(room.parent / "stream", "wb" if kind == "stream" else "ab") as out,
        open(dump if kind == "rearrange" else os.devnull, "rb") as given,
    ):
        pid = os.fork()
        if not pid:
            try:
                os.setsid()
                os.dup2(given.fileno(), 0)
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.stdout = os.fdopen(1, "w", buffering=1)
                sys.stderr = os.fdopen(2, "w", buffering=1)
                writer._ITEM_PAGES = 128
                plan._CELLS_PER_WORKER = 1
                _arm(point, who, nth, counts)
                sys.argv = ["drgn-tools", *arguments]
                (main if arguments[0] == "extract" else makedumpfile)()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(99)
        _, status = os.waitpid(pid, 0)
        err.seek(0)
        said = err.read().decode()
    victim = ("nobody", "first", "worker")[counts[0]]
    calls = [counts[1 + n] for n in range(2 * len(POINTS))]
    counts.close()
    return os.waitstatus_to_exitcode(status), said, victim, calls


def _arm(point: str, who: str, nth: int, counts: workers.Counters) -> None:
    first = os.getpid()
    words = counts._words

    def counted(name: str, index: int, real: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            is_first = os.getpid() == first
            at = index + (0 if is_first else 1)
            words[at] += 1
            wanted = (name, "first" if is_first else "worker") == (point, who)
            if wanted and words[at] >= nth and not words[0]:
                words[0] = 1 if is_first else 2
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        return call

    for number, (name, (owner, attribute)) in enumerate(POINTS.items()):
        real = getattr(owner, attribute)
        setattr(owner, attribute, counted(name, 1 + 2 * number, real))


def judge(
    room: Path,
    kind: str,
    expected: dict[int, bytes],
    earlier: dict[str, bytes],
    status: int,
    said: str,
    who: str,
) -> str:
    """
    What is there; anything that looks whole and is not is an AssertionError.

    :param earlier: what was there before, by name.
    """
    names = ["out", "out2"] if kind == "split" else ["out"]
    left = sorted(os.listdir(room))
    assert "Traceback" not in said, said
    hidden = [name for name in left if name not in names]
    if kind == "stream":
        return _judge_stream(room, expected, status, said)
    # Only who is killed cannot tidy up.
    assert not hidden or who == "first", hidden
    for name in hidden:
        _judge_hidden(room / name, kind, expected)
    old = [name for name in left if (room / name).read_bytes() == earlier.get(name)]
    left = [name for name in left if name not in old]
    if old:
        # Never one of an earlier set beside one of this.
        assert not set(left) & set(names) and status == -signal.SIGKILL, left
        if old != names:
            return "one part of two, of an earlier set"
    if names[0] not in left and names[-1] not in left:
        assert status != 0
        return "nothing, and says so"
    found: dict[int, bytes] = {}
    marked = False
    for name in names:
        if name not in left:
            # One part of a set is none: readers want all.
            assert who == "first" and status == -signal.SIGKILL
            return "one part of two, whole"
        if kind in ("elf", "split"):
            with open_vmcore(str(room / name), part=kind == "split") as vmcore:
                for pfn in expected:
                    if vmcore.present(pfn, pfn + 1)[0]:
                        size = vmcore.page_size
                        found[pfn] = bytes(vmcore.read(pfn * size, size))
                if vmcore.header:
                    marked |= bool(vmcore.header.status & 0x8)
                else:
                    marked |= bool((room / name).read_bytes()[48] & 1)
        else:
            part = read_kdump(room / name)
            found.update(part.pages)
            marked |= bool(part.status & 0x8)
    assert all(page == expected[pfn] for pfn, page in found.items())
    whole = set(found) == set(expected)
    if not whole:
        assert marked and status != 0 and "incomplete" in said, (said, status)
        return f"incomplete, and says so ({len(expected) - len(found)} pages)"
    assert not marked or status
    assert status in (0, -signal.SIGKILL), said
    return "complete" if not status else "complete, killed when it had its name"


def _judge_hidden(path: Path, kind: str, expected: dict[int, bytes]) -> None:
    # What who is killed leaves behind is marked, is whole, or looks like no dump.
    raw = path.read_bytes()
    if raw[:8] == b"KDUMP   ":
        marked = int.from_bytes(raw[424:428], "little") & 0x8
    elif raw[:4] == b"\x7fELF":
        marked = raw[48] & 1
    else:
        assert not any(raw[:8])
        return
    if marked and kind == "elf":
        return
    try:
        opened = open_vmcore(str(path), part=True)
    except DumpError as error:
        assert marked and "cut short" in str(error)
        return
    with opened as vmcore:
        there = [pfn for pfn in expected if vmcore.present(pfn, pfn + 1)[0]]
        if vmcore.header and vmcore.header.split:
            start, end = vmcore.header.start_pfn, vmcore.header.end_pfn
            expected = {p: page for p, page in expected.items() if start <= p < end}
        assert marked or there == [*expected]
        for pfn in there:
            size = vmcore.page_size
            assert vmcore.read(pfn * size, size) == expected[pfn]


def _judge_stream(
    room: Path, expected: dict[int, bytes], status: int, said: str
) -> str:
    target = room.parent / "rearranged"
    target.unlink(missing_ok=True)
    fd = os.open(room.parent / "stream", os.O_RDONLY)
    try:
        rearrange.rearrange(fd, str(target), True)
        cut = False
    except Exception as error:
        cut = True
        assert "incomplete" in str(error) or not target.exists()
    finally:
        os.close(fd)
    if not target.exists():
        assert status != 0
        return "stream without headers, refused"
    dump = read_kdump(target)
    assert all(page == expected[pfn] for pfn, page in dump.pages.items())
    if set(dump.pages) == set(expected) and not cut:
        return "complete"
    assert cut or status, said
    assert dump.status & 0x8
    return "cut stream, marked incomplete when rearranged"


def kills(
    runs: int, seed: int, directory: Path
) -> collections.Counter[tuple[str, ...]]:
    """
    Kill so many times.

    :return: how often, by kind, point, who, outcome.
    """
    chance = random.Random(seed)
    made = machine()
    expected = expected_pages(made)
    dump, stream = directory / "in", directory / "flat"
    write_elf(dump, made.loads()[1:], made.notes())
    room = directory / "room"
    table: collections.Counter[tuple[str, ...]] = collections.Counter()
    room.mkdir()
    run_killed(dump, room, "stream", "", "", 0)
    (directory / "stream").rename(stream)
    parts = {"out": directory / "flat1", "out2": directory / "flat2"}
    run_killed(dump, room, "split", "", "", 0)
    for name, part in parts.items():
        (room / name).rename(part)
    # Of another moment, and so with other content.
    for pfn in range(500, 1000):
        made.pages[0].anon(pfn)
    made.loads()
    write_elf(directory / "other", made.loads()[1:], made.notes())
    run_killed(directory / "other", room, "split", "", "", 0)
    earlier = {name: (room / name).read_bytes() for name in parts}

    def prepare(kind: str) -> tuple[Path, dict[str, bytes]]:
        for path in room.iterdir():
            path.unlink()
        before = earlier if kind == "split" else {}
        for name, data in before.items():
            (room / name).write_bytes(data)
        return (stream if kind in ("rearrange", "reassemble") else dump), before

    # What an undisturbed run comes to, and how often.
    reached = []
    for kind in KINDS:
        source, _ = prepare(kind)
        status, said, _, calls = run_killed(source, room, kind, "", "", 0)
        assert status == 0, said
        for n, count in enumerate(calls):
            if count:
                reached.append((kind, [*POINTS][n // 2], WHO[n % 2], count))
    for _ in range(runs):
        kind, point, who, count = chance.choice(reached)
        nth = chance.randint(1, count)
        source, before = prepare(kind)
        status, said, victim, _ = run_killed(source, room, kind, point, who, nth)
        try:
            outcome = judge(room, kind, expected, before, status, said, victim)
        except AssertionError:
            print(f"{kind}, {point} {nth}, {victim}: status {status}", said)
            raise
        table[kind, point, victim, outcome.partition(" (")[0]] += 1
    return table


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 250
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        table = kills(runs, seed, Path(name))
    for columns in ((1, 2, 3), (0, 3)):
        sums: collections.Counter[tuple[str, ...]] = collections.Counter()
        for key, count in table.items():
            sums[tuple(key[c] for c in columns)] += count
        for row, count in sorted(sums.items()):
            print(f"{count:5}  " + "  ".join(f"{cell:<12}" for cell in row))
    print(f"{sum(table.values())} killed, no silent loss")


if __name__ == "__main__":
    main()
