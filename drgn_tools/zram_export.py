# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A zram device as a file
-----------------------

The whole device as a sparse image: a file system on it can be mounted, a swap area
looked at. Several processes take parts of it in turn; each reads the dump for itself,
through file descriptors that are read at offsets and so can be shared.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator

from drgn_tools import workers
from drgn_tools.output import File
from drgn_tools.progress import Progress
from drgn_tools.zram import ZramExport, ZramMissing, ZramPage
from drgn_tools.zram_pages import Reader

# Slots that are read at a time: 16 MiB of pages.
_CHUNK = 4096
_HOLES = ("empty", "zero")


def export(
    reader: Reader, name: str, path: str, jobs: int | None, force: bool
) -> ZramExport:
    """
    Write all pages of a device to a new file.

    :raises DumpError: if it cannot be written, or its pages cannot be read.
    """
    count = -(-reader.count // _CHUNK)
    if jobs is None:
        jobs = min(len(os.sched_getaffinity(0)), count)
    processes = workers.affordable(jobs) if jobs > 1 else 0
    with contextlib.closing(File(path, force)) as image, _Reports() as reports:

        def work(number: int) -> None:
            first = number * _CHUNK
            pages = reader.pages(first, min(_CHUNK, reader.count - first))
            _write(image, reader.page_size, first, pages)
            reports.add(number, first, pages)

        # What workers would otherwise all find out.
        reader.warm_up()
        with Progress(name, count) as progress:
            failed = workers.run(count, work, processes, progress.update)
        for number, why in failed.items():
            first = number * _CHUNK
            size = min(_CHUNK, reader.count - first)
            reports.add(number, first, [ZramPage("unreadable", None, why)] * size)
        result = reports.result(reader.count * reader.page_size)
        image.finish(result.size)
    return result


def _write(image: File, page_size: int, first: int, pages: list[ZramPage]) -> None:
    # What is not written reads as zeros. Pages that follow each other, together.
    run: list[bytes] = []
    start = first
    for index, page in enumerate(pages, first):
        if page.data is None or page.kind in _HOLES:
            if run:
                image.write(b"".join(run), start * page_size)
                run = []
            continue
        if not run:
            start = index
        run.append(page.data)
    if run:
        image.write(b"".join(run), start * page_size)


class _Reports:
    # What workers say of pages, in a file without a name: one line for each part.
    def __init__(self) -> None:
        self._fd = os.memfd_create("drgn-tools-zram")

    def __enter__(self) -> _Reports:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def add(self, number: int, first: int, pages: list[ZramPage]) -> None:
        odd = [
            (index, page.kind, page.note, page.data is not None)
            for index, page in enumerate(pages, first)
            if page.data is None or page.note
        ]
        written = sum(
            1 for page in pages if page.data is not None and page.kind not in _HOLES
        )
        # The offset is shared, so that no two lines mix.
        os.write(self._fd, json.dumps((number, written, odd)).encode() + b"\n")

    def _lines(self) -> Iterator[str]:
        os.lseek(self._fd, 0, os.SEEK_SET)
        with open(self._fd, closefd=False) as file:
            yield from file

    def result(self, size: int) -> ZramExport:
        written = 0
        missing: list[ZramMissing] = []
        doubtful: list[ZramMissing] = []
        seen = set()
        for line in self._lines():
            number, pages, odd = json.loads(line)
            # A part that a worker had just done when it was killed is done again.
            if number in seen:
                continue
            seen.add(number)
            written += pages
            for index, kind, note, there in odd:
                (doubtful if there else missing).append(ZramMissing(index, kind, note))
        return ZramExport(
            size, written, tuple(sorted(missing)), tuple(sorted(doubtful))
        )
