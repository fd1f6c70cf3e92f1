# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which format a file is written in: its name's ending says so."""

from __future__ import annotations

_TRACES = {
    ".pftrace": "perfetto",
    ".perfetto-trace": "perfetto",
    ".dat": "trace.dat",
}
#: By family of helpers: what names may end in, and the format that is meant.
ENDINGS: dict[str, dict[str, str]] = {
    "ftrace": _TRACES,
    "oprofile": {
        ".folded": "folded",
        ".speedscope.json": "speedscope",
        ".pb.gz": "pprof",
    },
    "pstore": _TRACES,
    "report": {".html": "html", ".htm": "html"},
    "zram": {
        ".pages.csv": "pages",
        ".csv": "slots",
        ".img": "image",
        ".raw": "image",
    },
}


def format_of(family: str, path: str) -> str:
    """
    Which format is meant.

    :param family: of helpers.
    :raises ValueError: if the name ends in none of its endings.
    """
    endings = ENDINGS[family]
    # The longest first, where one is the end of another.
    for ending in sorted(endings, key=len, reverse=True):
        if path.endswith(ending):
            return endings[ending]
    *most, last = endings
    raise ValueError(f"{path!r} ends in none of {', '.join(most)} and {last}")
