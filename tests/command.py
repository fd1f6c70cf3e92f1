# SPDX-License-Identifier: LGPL-2.1-or-later
"""Running the real command, and what must hold whenever it fails."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NamedTuple, NoReturn

COMMAND = (sys.executable, "-m", "drgn_tools")
ROOT = Path(__file__).resolve().parent.parent


class Outcome(NamedTuple):
    """What a run of the command did."""

    status: int
    stdout: str
    stderr: str


def environment(**changes: str) -> dict[str, str]:
    """For the command, wherever it is started: no settings of Python's but these."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return {**kept, "PYTHONPATH": str(ROOT), **changes}


def drgn_tools(*arguments: object, **changes: str) -> Outcome:
    """Run it as a user does."""
    run = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment(**changes),
        stdin=subprocess.DEVNULL,
    )
    return Outcome(run.returncode, run.stdout, run.stderr)


def drgn_tools_forked(*arguments: object) -> Outcome:
    """
    Run it in a copy of this process: all the same but for the start of Python,
    for tests that run it hundreds of times.
    """
    return _forked("drgn-tools", *arguments)


def makedumpfile_forked(*arguments: object) -> Outcome:
    """The same for drgn-makedumpfile."""
    return _forked("drgn-makedumpfile", *arguments)


def run_as(program: str, *arguments: object) -> NoReturn:
    """Be a program, in a process that was forked for it, with streams 1 and 2."""
    status = 99
    try:
        from drgn_tools import __main__, makedumpfile

        mains = {"drgn-tools": __main__, "drgn-makedumpfile": makedumpfile}
        sys.stdout = os.fdopen(1, "w", buffering=1)
        # As Python makes it.
        sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace")
        # That it reaches the disk is not what this is for, and slow.
        os.fsync = lambda fd: None
        sys.argv = [program, *map(str, arguments)]
        mains[program].main()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 98
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _forked(program: str, *arguments: object) -> Outcome:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if not pid:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            run_as(program, *arguments)
        _, status = os.waitpid(pid, 0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return Outcome(os.waitstatus_to_exitcode(status), *texts)


def assert_refused(outcome: Outcome, status: int = 1) -> str:
    """Exit status and exactly one line on stderr, which is returned."""
    assert outcome.status == status, outcome
    assert outcome.stdout == "", outcome
    assert outcome.stderr.count("\n") == 1, outcome
    assert outcome.stderr.endswith("\n"), outcome
    assert outcome.stderr.startswith("drgn-tools"), outcome
    assert "Traceback" not in outcome.stderr
    return outcome.stderr


def assert_done(outcome: Outcome) -> str:
    """Exit status 0 and no complaint; what it said on stderr is returned."""
    assert outcome.status == 0, outcome
    assert "Traceback" not in outcome.stderr
    return outcome.stderr
