"""Headless Chromium over the DevTools protocol: open a page, run JavaScript in it, take pictures of it."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

import av
import numpy as np
from websockets.sync.client import ClientConnection, connect

_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--no-proxy-server", "--mute-audio"),
    *("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--hide-scrollbars"),
)
_SECONDS = 600  # SwiftShader draws a frame in a second, on a busy machine in minutes


def find_chromium() -> str | None:
    """Path of a browser that can be driven, or None."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class Page:
    """A tab. Errors that the page logs or throws are collected in `errors`."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._count = 0
        self.errors: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol and its result."""
        self._count += 1
        self._connection.send(json.dumps({"id": self._count, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._connection.recv(_SECONDS))
            self._note(message)
            if message.get("id") == self._count:
                assert "error" not in message, message["error"]
                return message["result"]

    def _note(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif message.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(parameters["entry"]["text"])
        elif message.get("method") == "Runtime.consoleAPICalled" and parameters["type"] == "error":
            self.errors.append(str(parameters["args"]))

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        result = self.call(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
            timeout=_SECONDS * 1e3,
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, condition: str, seconds: float = _SECONDS) -> Any:
        """The value of an expression as soon as it is true."""
        deadline = time.monotonic() + seconds
        while not (value := self.run(condition)):
            assert time.monotonic() < deadline, f"{condition} did not become true; errors: {self.errors}"
            time.sleep(0.1)
        return value

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def mouse(self, kind: str, x: float, y: float) -> None:
        """mousePressed, mouseMoved or mouseReleased, with the left button down."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def screenshot(self) -> bytes:
        """JPEG of the window."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="jpeg", quality=88)["data"])

    def canvas(self, selector: str) -> np.ndarray:
        """Pixels of a canvas, RGB [h, w, 3]."""
        url = self.run(f"document.querySelector({json.dumps(selector)}).toDataURL('image/png')")
        with av.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1]))) as container:
            return next(container.decode(video=0)).to_ndarray(format="rgb24")


@contextmanager
def open_chromium(profile: Path, width: int = 1280, height: int = 720) -> Iterator[Page]:
    """A browser with one tab; all its processes are gone at the end, whatever happens."""
    binary = find_chromium()
    assert binary is not None, "no Chromium"
    process = subprocess.Popen(
        [
            # Goes with this process, even where that is killed.
            *("setpriv", "--pdeathsig", "KILL"),
            *(binary, *_FLAGS, f"--user-data-dir={profile}"),
            f"--window-size={width},{height}",
            *("--remote-debugging-port=0", "about:blank"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a process group of its own, to be ended as a whole
    )
    try:
        place = profile / "DevToolsActivePort"
        deadline = time.monotonic() + _SECONDS
        while not place.exists() or len(place.read_text().split()) < 2:
            assert process.poll() is None, "Chromium ended at once"
            assert time.monotonic() < deadline, "Chromium did not start"
            time.sleep(0.05)
        port = place.read_text().split()[0]
        with build_opener(ProxyHandler({})).open(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
            (tab,) = [entry for entry in json.load(answer) if entry["type"] == "page"]
        with connect(
            tab["webSocketDebuggerUrl"], max_size=None, proxy=None, compression=None, ping_interval=None
        ) as connection:
            yield Page(connection)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":  # says whether there is one
    raise SystemExit(find_chromium() is None)
