# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Planning by itself
------------------

Makes a plan of a dump, as ``extract`` does, and prints the seconds that it took.
A program of its own that imports nothing else: what a process has done before
decides how malloc() treats large arrays, and that can be half of the time.
"""

from __future__ import annotations

import argparse
import time

from drgn_tools.pages import excluded_classes
from drgn_tools.plan import make_plan
from drgn_tools.vmcore import open_vmcore


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(prog="benchmarks.planning")
    parser.add_argument("dump")
    parser.add_argument("level", type=int)
    parser.add_argument("jobs", type=int)
    chosen = parser.parse_args()
    with open_vmcore(chosen.dump) as vmcore:
        start = time.perf_counter()
        make_plan(vmcore, excluded_classes(chosen.level), chosen.jobs)
        print(time.perf_counter() - start)


if __name__ == "__main__":
    main()
