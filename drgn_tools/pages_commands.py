# SPDX-License-Identifier: LGPL-2.1-or-later
"""The pages command: parse, call, print."""

from __future__ import annotations

import os
import sys

import click

from drgn_tools import options

_EPILOG = """\b
Examples:
  drgn-tools pages vmcore
  drgn-tools pages --image map.png vmcore
"""


@click.command(epilog=_EPILOG)
@options.dump
@click.option(
    "--image",
    type=click.Path(),
    metavar="FILE",
    help="Draw all memory: FILE.png or FILE.svg.",
)
@options.as_json
@options.jobs
@options.force
@options.quiet
def pages(
    dump: str,
    image: str | None,
    as_json: bool,
    jobs: int | None,
    force: bool,
    quiet: bool,
) -> None:
    """Say what the memory of DUMP was used for: class, zone, node.

    DUMP is as for extract; /proc/kcore is the running kernel. Needs no debugging
    symbols.
    """
    from drgn_tools.errors import DumpError
    from drgn_tools.output import check_target
    from drgn_tools.page_map import read_page_map
    from drgn_tools.progress import say_written, warn
    from drgn_tools.vmcore import open_vmcore

    if image is not None:
        if not image.endswith((".png", ".svg")):
            raise click.UsageError(f"--image {image}: neither .png nor .svg")
        check_target(image, force, (dump,))
    with open_vmcore(dump) as vmcore:
        page_map = read_page_map(vmcore, jobs or len(os.sched_getaffinity(0)))
    for warning in page_map.warnings:
        warn(warning)
    if image is not None:
        from drgn_tools.export.page_image import save

        say_written(image, save(page_map, image, force), quiet)
    if as_json:
        from drgn_tools.page_map_text import page_map_json
        from drgn_tools.text import json_line

        print(json_line(page_map_json(page_map)))
    elif image is None or not quiet:
        from drgn_tools.page_map_text import page_map_lines
        from drgn_tools.text import styled

        if sys.stdout is None:
            raise DumpError("cannot print: standard output is closed")
        for line, is_head in page_map_lines(page_map):
            print(styled(line, "bold", sys.stdout) if is_head else line)
