"""A real headless Chromium, driven over its DevTools pipe: what a page logs, asks for, and shows."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = (
    "--headless",
    "--no-sandbox",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
WEBGL = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")
NO_WEBGL = ("--disable-gpu", "--disable-3d-apis")


def chromium() -> str:
    """The program; skips where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs Chromium (Debian package chromium)")
    return found


class Browser:
    """One tab. `errors`: warnings and errors on the console; `requests`: every address asked for."""

    def __init__(self, to: Any, back: int) -> None:
        self._to, self._back, self._number, self._rest = to, back, 0, b""
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **given: Any) -> dict[str, Any]:
        """A DevTools command to the tab, and its answer."""
        return self._ask(method, self._session, **given)

    def open(self, path: Path, width: int = 1280, height: int = 900) -> None:
        """Show a file and wait until it has loaded."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.send("Page.navigate", url=path.resolve().as_uri())
        self.until("document.readyState === 'complete' && location.protocol === 'file:'")

    def evaluate(self, script: str) -> Any:
        """The JSON value of an expression; a promise is waited for."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, script: str, seconds: float = 120.0) -> None:
        """Wait for an expression to become true."""
        end = time.monotonic() + seconds
        while not self.evaluate(script):
            assert time.monotonic() < end, f"never came true: {script}; console: {self.errors}"
            time.sleep(0.05)

    def key(self, name: str) -> None:
        """Press a key."""
        for kind in ("rawKeyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=name, code=name)

    def picture(self) -> bytes:
        """PNG of the whole page."""
        return base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def _ask(self, method: str, session: str | None = None, **given: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": given}
        if session:
            message["sessionId"] = session
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        for answer in self._messages():
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._note(answer)
        raise AssertionError("Chromium ended")

    def _messages(self) -> Iterator[dict[str, Any]]:
        while True:
            while b"\0" in self._rest:
                one, self._rest = self._rest.split(b"\0", 1)
                yield json.loads(one)
            more = os.read(self._back, 1 << 20)
            if not more:
                return
            self._rest += more

    def _note(self, event: dict[str, Any]) -> None:
        given = event.get("params", {})
        notes: dict[str, Callable[[], None]] = {
            "Network.requestWillBeSent": lambda: self.requests.append(given["request"]["url"]),
            "Runtime.exceptionThrown": lambda: self.errors.append(json.dumps(given["exceptionDetails"])),
            "Runtime.consoleAPICalled": lambda: self._heard(given["type"], json.dumps(given["args"])),
            "Log.entryAdded": lambda: self._heard(given["entry"]["level"], given["entry"]["text"]),
        }
        notes.get(event.get("method", ""), lambda: None)()

    def _heard(self, level: str, text: str) -> None:
        # A software renderer grumbles about its own speed; pages have nothing to do with that.
        if level in ("error", "warning", "assert") and "GL Driver Message" not in text:
            self.errors.append(f"{level}: {text}")


@contextmanager
def browser(*flags: str) -> Iterator[Browser]:
    """A Chromium of one's own, gone afterwards. Skips where there is none."""
    program = chromium()
    (to_read, to_write), (back_read, back_write) = os.pipe(), os.pipe()
    with TemporaryDirectory() as profile:

        def wire() -> None:  # what Chromium wants: commands on 3, answers on 4; both may be taken until now
            commands, answers = os.dup(to_read), os.dup(back_write)
            os.dup2(commands, 3)
            os.dup2(answers, 4)

        wired = subprocess.Popen(
            [program, *QUIET, f"--user-data-dir={profile}", *flags],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=wire,
        )
        os.close(to_read)
        os.close(back_write)
        try:
            with os.fdopen(to_write, "wb") as to:
                yield Browser(to, back_read)
                to.write(b'{"id":999999,"method":"Browser.close"}\0')
        finally:
            os.close(back_read)
            try:
                wired.wait(10)
            except subprocess.TimeoutExpired:
                wired.kill()
                wired.wait()
