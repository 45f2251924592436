"""Clients of a view for its tests, and a run to look at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

from decoder import decode
from view_samples import make_video
from websockets.sync.client import ClientConnection, connect

from streamsplat_edge.runtime.pipeline import Pipeline
from streamsplat_edge.runtime.stream import Stream
from streamsplat_edge.runtime.view.viewer import LiveViewer

SECONDS = 30  # of patience


def get(
    viewer: LiveViewer, path: str, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body; underscores in names of headers stand for dashes."""
    place = urlsplit(viewer.url)
    connection = HTTPConnection("127.0.0.1", place.port or 0, timeout=SECONDS)
    try:
        connection.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


@contextmanager
def client(viewer: LiveViewer, path: str = "/stream", **options: Any) -> Iterator[ClientConnection]:
    port = urlsplit(viewer.url).port
    options = {"proxy": None, "compression": None, "max_size": None, "open_timeout": SECONDS, **options}
    with connect(f"ws://127.0.0.1:{port}{path}", **options) as connection:
        yield connection


def receive(connection: ClientConnection) -> Any:
    data = connection.recv(SECONDS)
    return json.loads(data) if isinstance(data, str) else decode(data)


def messages_until_the_end(connection: ClientConnection) -> list[Any]:
    """Everything up to the status that says the run has ended, and what was still to come."""
    received: list[Any] = []
    while not (received and isinstance(received[-1], dict) and received[-1].get("ended")):
        received.append(receive(connection))
    while True:
        try:
            data = connection.recv(0.5)
        except TimeoutError:
            return received
        received.append(json.loads(data) if isinstance(data, str) else decode(data))


def run(stream: Stream, viewer: LiveViewer, count: int = 9) -> list[Any]:
    """All frames. Waits for the packing after each, so that nothing is left out on a busy machine."""
    frames = []
    for rendered in Pipeline(make_video(count), stream, gap=4, observers=[viewer]):
        viewer._queue.join()
        frames.append(rendered)
    return frames
