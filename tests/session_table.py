# SPDX-License-Identifier: LGPL-2.1-or-later
"""The table of docs/sessions.md: every helper, from what the plugin has.

python -m tests.session_table writes it anew.
"""

from __future__ import annotations

import importlib
import re

from drgn_tools import _plugin, session
from tests.documents import ROOT

PAGE = ROOT / "docs" / "sessions.md"
HEADING = "## All of them\n"


def _row(name: str) -> str:
    function = getattr(
        importlib.import_module(f"drgn_tools.{_plugin._MODULES[name]}"), name
    )
    command = ""
    if name in _plugin._COMMANDS.split():
        usage = session.helper_command(name, function).format_usage()
        # What all have.
        usage = re.sub(r" \[--(help|drgn)\]", "", " ".join(usage.split()))
        command = f"`%{usage}`".replace("|", r"\|")
    return f"| `{name}` | {session.summary(function)} | {command} |\n"


def page() -> str:
    """Return the page with the table as it is to be."""
    before, heading, _ = PAGE.read_text().partition(HEADING)
    text = f"{before}{heading}\n| name | what it does | command |\n|---|---|---|\n"
    return text + "".join(map(_row, sorted(_plugin._MODULES)))


if __name__ == "__main__":
    PAGE.write_text(page())
