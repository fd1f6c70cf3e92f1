# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Hostile inputs for everything that reads, for as long as one likes.

    python -m tests.fuzz [READER ...] [--inputs N] [--jobs N]

Goes on where the last run was stopped, until each reader has had N inputs in all. What
was done and found is in ~/.cache/drgn-tools/fuzz; docs/fuzzing.md says more.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz import readers, runner
from tests.fuzz.readers import READERS

_HEADINGS = (
    *("reader", "inputs", "seconds", "per s", "edges", "slowest", "memory", "findings"),
)


def rows(names: Sequence[str]) -> list[tuple[str, ...]]:
    """What was done for readers, as it is printed."""
    found: list[tuple[str, ...]] = []
    for name in names:
        state = runner.load(name)
        rate = state.inputs / state.seconds if state.seconds else 0
        found.append(
            (
                name,
                f"{state.inputs:,}",
                f"{state.seconds:.0f}",
                f"{rate:.0f}",
                str(state.edges),
                f"{1000 * state.slowest:.0f} ms",
                f"{state.peak >> 20} MiB",
                str(len(state.findings)),
            )
        )
    return found


_DOCS = Path(__file__).resolve().parents[2] / "docs" / "fuzzing.md"
_BEGIN, _END = "<!-- results -->\n", "<!-- end of results -->\n"


def write_docs() -> None:
    """Put what was done into docs/fuzzing.md."""
    table = [_HEADINGS, ("---", *["---:"] * (len(_HEADINGS) - 1)), *rows(list(READERS))]
    lines = "".join(f"| {' | '.join(row)} |\n" for row in table)
    text = _DOCS.read_text()
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    _DOCS.write_text(before + _BEGIN + lines + _END + after)


def print_table(names: Sequence[str]) -> None:
    """The result, for people."""
    table = rows(names)
    widths = [max(map(len, column)) for column in zip(_HEADINGS, *table)]
    for row in (_HEADINGS, *table):
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths)))
    for name in names:
        for one in runner.load(name).findings:
            print(f"{name}: {one.kind} {one.place} {one.text!r} {one.input}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("readers", nargs="*", metavar="READER")
    parser.add_argument("--inputs", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--jobs", type=int, default=1, metavar="N")
    parser.add_argument("--list", action="store_true", help="only name the readers")
    parser.add_argument("--table", action="store_true", help="only show what was done")
    parser.add_argument("--docs", action="store_true", help="... in docs/fuzzing.md")
    parser.add_argument("--fresh", action="store_true", help="forget what was done")
    parser.add_argument("--try", dest="path", metavar="FILE", help="only this input")
    return parser


def _run(names: Sequence[str], inputs: int) -> None:
    # In turns, so that all have had some whenever it is stopped.
    left = list(names)
    for name in left:
        runner.look_again(name)
    while left:
        for name in tuple(left):
            state = runner.load(name)
            if state.inputs >= inputs:
                left.remove(name)
                continue
            before = len(state.findings)
            state = runner.run_batch(name, state, inputs - state.inputs)
            new = state.findings[before:]
            print(f"{name}: {state.inputs:,} inputs, {len(state.findings)} findings")
            for one in new:
                print(f"  {one.kind} {one.place} {one.text!r} {one.input}")
            sys.stdout.flush()


def main() -> int:
    """Run as a command: 0 if nothing was found."""
    options = _parser().parse_args()
    names = options.readers or list(READERS)
    if unknown := [name for name in names if name not in READERS]:
        print(f"no reader {unknown[0]!r}: one of {', '.join(READERS)}", file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(READERS))
        return 0
    if options.path:
        for name in names:
            READERS[name].read(Path(options.path).read_bytes())
        return 0
    if options.fresh:
        for name in names:
            shutil.rmtree(runner.folder() / name.replace(" ", "-"), ignore_errors=True)
    if not (options.table or options.docs):
        readers.room()
        children = []
        for job in range(min(options.jobs, len(names))):
            pid = os.fork()
            if not pid:
                try:
                    _run(names[job :: options.jobs], options.inputs)
                except KeyboardInterrupt:
                    os._exit(130)
                finally:
                    sys.stdout.flush()
                    os._exit(0)
            children.append(pid)
        try:
            for pid in children:
                os.waitpid(pid, 0)
        except KeyboardInterrupt:
            pass
    if options.docs:
        write_docs()
    print_table(names)
    return int(any(runner.load(name).findings for name in names))


if __name__ == "__main__":
    sys.exit(main())
