"""Chromium without a window, spoken to over a pair of pipes (its DevTools protocol): no library, no port."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SECONDS = 120.0
NAMES = ("chromium", "chromium-browser", "google-chrome")


class Browser:
    """One page."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive = send, receive
        self._rest = b""
        self._number = 0
        self._session = ""
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._ask("Page.enable")

    def open(self, page: Path) -> None:
        self._ask("Page.navigate", url=page.resolve().as_uri())
        while self.evaluate("document.readyState") != "complete":
            time.sleep(0.05)

    def show(self, width: int, *, dark: bool = False, media: str = "screen") -> None:
        """How the page is looked at: the width in CSS pixels, the colours, on a screen or on paper."""
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1.5 if width < 600 else 1, "mobile": width < 600}
        self._ask("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def evaluate(self, expression: str) -> Any:
        answer = self._ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def picture(self, file: Path) -> None:
        """All of the page, not only what a window would show."""
        data = self._ask("Page.captureScreenshot", captureBeyondViewport=True, format="png")["data"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(data))

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + SECONDS
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._receive], [], [], until - time.monotonic())
            assert ready, "the browser does not answer"
            data = os.read(self._receive, 1 << 20)
            assert data, "the browser is gone"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(line))


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser of its own, gone afterwards."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    assert program, "no chromium: `tools/need chromium` installs it"
    low_in, send = os.pipe()
    receive, low_out = os.pipe()
    theirs_in, theirs_out = (fcntl.fcntl(low, fcntl.F_DUPFD, 64) for low in (low_in, low_out))  # clear of 3 and 4
    os.close(low_in)
    os.close(low_out)
    wanted = (
        program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        "--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run", "--disable-extensions",
    )  # fmt: skip
    # It reads from 3 and writes to 4, whatever these are here; sh may not know descriptors of two digits.
    shell = ("/bin/bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "sh", *wanted)
    with open(profile / "log", "wb") as log:
        child = subprocess.Popen(shell, pass_fds=(theirs_in, theirs_out), stdout=log, stderr=log, process_group=0)
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Browser(send, receive)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, 9)
        child.wait()
        os.close(send)
        os.close(receive)
