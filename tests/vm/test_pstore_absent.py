# SPDX-License-Identifier: LGPL-2.1-or-later
"""The helpers in drgn, on dumps of kernels that kept nothing in persistent memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.command import environment

from . import dumps

KERNELS = ("5.10", "6.1", "6.12-bench", "7.2-bench")
CASES = [
    *(
        (kernel, kind, False, "pstore_zones")
        for kernel in KERNELS
        for kind in dumps.KINDS
    ),
    *((kernel, "vmcore", True, "pstore_ftrace") for kernel in KERNELS),
]


@pytest.mark.verified(
    "pstore: a kernel without, said in one line",
    by="what `drgn -e` prints, and its exit status",
)
@pytest.mark.parametrize(("kernel", "kind", "symbols", "helper"), CASES)
def test_one_line(kernel: str, kind: str, symbols: bool, helper: str) -> None:
    spec = dumps.Spec(kernel, 4, kernel in ("5.10", "6.1"))
    (dump,) = (dump for dump in dumps.both(spec) if dump.kind == kind)
    options = ["-s", dump.kernel.vmlinux] if symbols else ["--no-default-symbols"]
    run = subprocess.run(
        [
            *(sys.executable, "-m", "drgn", "--log-level", "none", "-c", dump.path),
            *(*options, "-e", f"{helper}()"),
        ],
        capture_output=True,
        text=True,
        # As the entry point does, which only an installation has.
        env=environment(DRGN_PLUGINS="drgn_tools=drgn_tools._plugin"),
    )
    assert (run.returncode, run.stdout) == (1, "")
    if symbols or kernel != "5.10":
        why = "this kernel has no pstore in use: no backend is registered"
    else:
        why = (
            "pstore cannot be found without the kernel's debugging symbols "
            "(or kallsyms, in dumps of Linux 6.0 and later)"
        )
    assert run.stderr == f"pstore: {why}\n"
