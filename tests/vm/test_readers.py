# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every page of every dump, and of a file made of it, is the same in four readers."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import dumps, readers

CASES = [
    pytest.param(spec, kind, output, id=f"{spec.name}-{kind}-{output}")
    for number, spec in enumerate(dumps.MATRIX)
    for shift, kind in enumerate(dumps.KINDS)
    # Each kind of output has its turn.
    for output in [list(readers.OUTPUTS)[(number + 3 * shift) % len(readers.OUTPUTS)]]
]


@pytest.mark.verified(
    "extract: every page through four readers",
    by="libkdumpfile, crash and makedumpfile, page by page",
)
@pytest.mark.parametrize(("spec", "kind", "output"), CASES)
def test_four_readers(spec: dumps.Spec, kind: str, output: str, tmp_path: Path) -> None:
    dump = next(dump for dump in dumps.both(spec) if dump.kind == kind)
    for what in (readers.SOURCE, output):
        found = readers.compare(dump, what, tmp_path)
        assert found.pages > 1000
        assert found.makedumpfile > 1000 or output == "snappy"
