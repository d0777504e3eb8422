"""Drives a real Chromium over a pipe, by its DevTools protocol."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


class Tab:
    """A page in Chromium; `messages` are the errors and refusals on its console."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader, self._writer = os.fdopen(reader, "rb"), os.fdopen(writer, "wb")
        self._last, self._session = 0, ""
        self.messages: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Calls a method of the protocol and waits for its result."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._writer.write(json.dumps(message).encode() + b"\0")
        self._writer.flush()
        while True:
            found = self._read()
            if found.get("id") == self._last:
                assert "error" not in found, found
                result: dict[str, Any] = found["result"]
                return result

    def _read(self) -> dict[str, Any]:
        content = bytearray()
        while (byte := self._reader.read(1)) != b"\0":
            assert byte, "Chromium has ended"
            content += byte
        message: dict[str, Any] = json.loads(content)
        params = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.messages.append(str(params["exceptionDetails"]))
            case "Log.entryAdded":
                self.messages.append(str(params["entry"]["text"]))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning"):
                self.messages.append(str(params["args"]))
            case "Network.requestWillBeSent" if params["request"]["url"].startswith("http"):
                self.messages.append(f"asks for {params['request']['url']}")
        return message

    def open(self, file: Path, *, width: int, dark: bool = False) -> None:
        """Opens a page at a width in pixels, in the light or the dark theme."""
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=file.as_uri())
        self.value(
            "new Promise(done => document.readyState === 'complete' ? done(1) : "
            "addEventListener('load', () => done(1)))"
        )

    def value(self, script: str) -> Any:
        """Evaluates an expression in the page, and awaits promises."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def picture(self) -> bytes:
        """Takes a PNG of the whole page, in base 64."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return str(shot["data"]).encode()


@contextmanager
def chromium() -> Iterator[Tab]:
    """Opens Chromium with one tab; skips the test if it is not installed."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium on this machine (Debian's package of that name)")
    from_us, to_browser = os.pipe()
    from_browser, to_us = os.pipe()

    def place() -> None:  # the protocol's pipes are 3 and 4
        os.dup2(os.dup(from_us), 13)
        os.dup2(os.dup(to_us), 14)
        os.dup2(13, 3)
        os.dup2(14, 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [
            *(program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-dev-shm-usage", f"--user-data-dir={profile}", "--remote-debugging-pipe"),
        ]
        process = subprocess.Popen(
            command,
            preexec_fn=place,  # noqa: PLW1509  (two pipes on numbers of their own)
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(from_us)
        os.close(to_us)
        try:
            yield Tab(from_browser, to_browser)
        finally:
            process.kill()
            process.wait()


def assert_drawn(tab: Tab, file: Path, width: int, dark: bool, *, least: int) -> None:
    """Opens a page; all its plots, `least` of them or more, are drawn, and its text fits."""
    tab.messages.clear()
    tab.open(file, width=width, dark=dark)
    assert tab.messages == []
    count = tab.value("document.querySelectorAll('.plot').length")
    drawn = tab.value(
        "[...document.querySelectorAll('.plot')].filter(p => p.querySelector("
        "'.trace, .bars .point, .contour, .hm image')).length"
    )
    assert count == drawn >= least
    assert tab.value("document.documentElement.scrollWidth") <= width
    # No text leaves the page, but for tables that scroll by themselves.
    wide = tab.value(
        "[...document.querySelectorAll('h1, h2, h3, p, li, a, label, summary, .plot svg')].filter("
        "e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.textContent)"
    )
    assert wide == []
    ground = tab.value("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(20, 24, 31)" if dark else "rgb(255, 255, 255)")
