# SPDX-License-Identifier: LGPL-2.1-or-later
"""A page as a browser has it: Chromium, without a window, driven over its DevTools."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# On a machine that does a lot else.
_PATIENCE = 120


class BrowserError(Exception):
    """Chromium does not do what it is asked to."""


class Page:
    """A page that is open. Everything it complains of is kept."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading = reading
        self._writing = writing
        self._rest = b""
        self._number = 0
        self._session: str | None = None
        self.said: list[str] = []
        """Messages of the console: errors of scripts, and what the policy forbade."""
        self.dialogs: list[str] = []
        """What alert() and the like showed."""
        self.requests: list[str] = []
        """Addresses that were asked for, but for the page's own and data:."""
        self._loaded = False

    def open(self, path: Path, *, dark: bool = False, width: int = 1300) -> None:
        """Open a file and wait until it is there."""
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self._ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            self._ask(f"{domain}.enable")
        self.resize(width)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])
        self._ask("Page.navigate", url=path.as_uri())
        while not self._loaded:
            self._take()

    def resize(self, width: int, height: int = 1000) -> None:
        """Give it another size, in pixels."""
        self._ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def evaluate(self, script: str) -> Any:
        """What an expression of JavaScript is; promises are waited for."""
        answer = self._ask(
            "Runtime.evaluate",
            expression=script,
            returnByValue=True,
            awaitPromise=True,
        )
        if "exceptionDetails" in answer:
            raise BrowserError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def wait(self, script: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + _PATIENCE
        while not self.evaluate(script):
            if time.monotonic() > end:
                raise BrowserError(f"never: {script}")
            time.sleep(0.05)

    def press(self, key: str, code: int, *, shift: bool = False) -> None:
        """Press a key, by its name and number."""
        event = {
            "key": key,
            "windowsVirtualKeyCode": code,
            "modifiers": 8 if shift else 0,
        }
        text = {"Enter": "\r", "Escape": ""}.get(key, key)
        self._ask("Input.dispatchKeyEvent", type="keyDown", text=text, **event)
        self._ask("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text: str) -> None:
        """Type a text where the cursor is."""
        self._ask("Input.insertText", text=text)

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """Write what is to be seen as a PNG; or the whole page, however long."""
        answer = self._ask(
            "Page.captureScreenshot", format="png", captureBeyondViewport=whole
        )
        path.write_bytes(base64.b64decode(answer["data"]))

    def pdf(self, path: Path) -> None:
        """Print it."""
        answer = self._ask("Page.printToPDF", preferCSSPageSize=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _send(self, method: str, **params: Any) -> int:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        return self._number

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        number = self._send(method, **params)
        while True:
            answer = self._take()
            if answer.get("id") == number:
                break
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _take(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not select.select([self._reading], [], [], _PATIENCE)[0]:
                raise BrowserError("no answer")
            part = os.read(self._reading, 1 << 20)
            if not part:
                raise BrowserError("Chromium has ended")
            self._rest += part
        raw, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Runtime.exceptionThrown":
            self.said.append(json.dumps(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.said.append(json.dumps(params["args"]))
        elif method == "Log.entryAdded":
            self.said.append(params["entry"]["text"])
        elif method == "Audits.issueAdded":
            if params["issue"]["code"] == "ContentSecurityPolicyIssue":
                self.said.append(json.dumps(params["issue"]))
        elif method == "Page.javascriptDialogOpening":
            self.dialogs.append(params["message"])
            # Or all would wait for it.
            self._send("Page.handleJavaScriptDialog", accept=True)
        elif method == "Network.requestWillBeSent":
            address = params["request"]["url"]
            if not address.startswith("data:") and params["type"] != "Document":
                self.requests.append(address)


def _pipe() -> tuple[int, int]:
    # Of files that are not 3 or 4.
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return moved[0], moved[1]


@contextlib.contextmanager
def opened(path: Path, *, dark: bool = False, width: int = 1300) -> Iterator[Page]:
    """A page, open in a Chromium of its own."""
    program = shutil.which("chromium")
    if program is None:
        raise BrowserError("there is no chromium: apt-get install chromium")
    options = [
        "--headless",
        # Of root, Chromium wants that.
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--hide-scrollbars",
        "--remote-debugging-pipe",
    ]
    # It is asked in file 3 and answers in file 4. bash knows files beyond 9.
    moved = 'eval "shift 2; exec \\"\\$@\\" 3<&$1 4>&$2"'
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        (theirs, asking), (answers, answering) = _pipe(), _pipe()
        process = subprocess.Popen(
            [
                *("bash", "-c", moved, "bash", str(theirs), str(answering)),
                *(program, *options, f"--user-data-dir={profile}", "about:blank"),
            ],
            pass_fds=(theirs, answering),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(theirs)
        os.close(answering)
        try:
            page = Page(answers, asking)
            page.open(path, dark=dark, width=width)
            yield page
        finally:
            # With all its helpers.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            os.close(asking)
            os.close(answers)


def main(source: str, target: str) -> None:
    """Write a page's first screen as a PNG, as for docs/report.md."""
    with opened(Path(source).absolute(), width=1200) as page:
        page.resize(1200, 760)
        page.picture(Path(target))


if __name__ == "__main__":
    main(*sys.argv[1:])
