# SPDX-License-Identifier: LGPL-2.1-or-later
"""
How small crashkernel= can be: python -m tests.vm.crashkernel [OPTION ...]

A guest crashes again and again, every time with less memory for the capture kernel,
until no dump comes out. OPTIONs are more for the capture kernel's command line, such
as rootfstype=ramfs.
"""

import re
import sys
import tempfile
from pathlib import Path

from . import bench, kernels, qemu
from .test_kdump_flows import CMDLINE, SAVED, crash, dracut, empty

COLLECTOR = "drgn-tools extract -d 31"
START_MIB = 192
STEP_MIB = 8


def main(options: list[str]) -> None:
    """Try, and tell as it goes."""
    kernel = kernels.get("6.1")
    with tempfile.TemporaryDirectory() as temp:
        image, _ = dracut(Path(temp), kernel, COLLECTOR)
        size = image.stat().st_size / 1e6
        print(f"dracut's image has {size:.1f} MB, compressed", flush=True)
        for mib in range(START_MIB, 0, -STEP_MIB):
            with tempfile.TemporaryDirectory() as folder:
                work = Path(folder)
                log = work / "serial.log"
                try:
                    flow = crash(
                        work,
                        kernel,
                        image,
                        empty(work),
                        SAVED,
                        cmdline=" ".join([CMDLINE, *options]),
                        crashkernel_mib=mib,
                    )
                    works = "exit status 0" in flow.log
                except qemu.VMError:
                    works = False
                except bench.BenchError as error:
                    raise SystemExit(error.line) from None
                said = log.read_text(errors="replace")
            least = re.findall(r"bench: available (\d+)", said)
            left = f", {min(map(int, least)) >> 10} MiB left" if least else ""
            print(f"crashkernel={mib}M: {'works' if works else 'fails'}{left}")
            sys.stdout.flush()
            if not works:
                reasons = re.findall(
                    r"[^\r\n]*(?:Out of mem|panic -|status)[^\r\n]*", said
                )
                print("\n".join(reasons[-4:]))
                break


if __name__ == "__main__":
    main(sys.argv[1:])
