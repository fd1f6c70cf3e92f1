# SPDX-License-Identifier: LGPL-2.1-or-later
"""The main job on real input: a kernel crashes, and its dump is taken and opened."""

import os
import subprocess
import sys
from pathlib import Path

import drgn
from drgn.helpers.linux.cpumask import for_each_online_cpu
from drgn.helpers.linux.printk import get_dmesg
from drgn.helpers.linux.sched import cpu_curr

from . import bench, cache, dumps, kernels
from .bench import Say

SPEC = dumps.Spec("6.1", 4, True, memory_mib=1024)


def run(say: Say = bench.say) -> None:
    """Boot a Debian kernel, put it to work, crash it, extract and open the dump."""
    kernel = kernels.get(SPEC.kernel, say)
    folder = cache.root() / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    made = {dump.kind: dump.path for dump in dumps.make(SPEC, folder, say)}
    made["qemu"].unlink()
    vmcore = made["vmcore"]
    target = folder / "dump.kdump"
    _extract(vmcore, target, say)
    _open(target, kernel, say)
    say("")
    programs = os.path.relpath(Path(sys.executable).parent)
    say("The dump stays here; look at it with:")
    say(f"  {programs}/drgn -c {target} -s {kernel.vmlinux}")
    say(f"  {programs}/drgn-tools info {target}")


def _extract(vmcore: Path, target: Path, say: Say) -> None:
    options = ["extract", "-f", str(vmcore), str(target)]
    say("")
    say(f"$ drgn-tools {' '.join(options)}")
    # Its summary and its progress are for the reader as they are.
    done = subprocess.run([sys.executable, "-m", "drgn_tools", *options], check=False)
    if done.returncode:
        raise bench.BenchError("drgn-tools extract failed")


def _open(target: Path, kernel: kernels.Kernel, say: Say) -> None:
    prog = drgn.Program()
    prog.set_core_dump(target)
    prog.load_debug_info([kernel.vmlinux])
    log = get_dmesg(prog).decode(errors="replace").splitlines()
    panic = [line for line in log if "Kernel panic" in line]
    say("")
    say(f"$ drgn -c {target}")
    say(f"release: {prog['UTS_RELEASE'].string_().decode()}")
    say(f"panic:   {panic[-1] if panic else 'none in the log'}")
    say("running when it died:")
    crashed = prog.crashed_thread().object
    for cpu in for_each_online_cpu(prog):
        task = cpu_curr(prog, cpu)
        mark = "  <- crashed here" if task.pid == crashed.pid else ""
        name = task.comm.string_().decode()
        say(f"  CPU {cpu}: {name} (pid {task.pid.value_()}){mark}")
