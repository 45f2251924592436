"""The observer that shows a run in a browser.

    with LiveViewer(Settings(), title="clip.mp4") as viewer:
        print(viewer.url)
        for rendered in Pipeline(reader, stream, observers=[viewer]): ...
        viewer.wait()  # the last seconds stay there to be looked at

Three threads: the pipeline's, which only copies arrays and puts them into a bounded queue; one that packs and
fills the buffer; and the server's. What does not fit into the queue is left out and counted, so that nothing
done for viewers makes the stream wait.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from ..bundle_schema import ModelConfig
from ..observers import Observer, Spawned
from ..pipeline import Pipeline, Rendered
from .jpeg import JpegEncoder
from .scenes import KeyFrame, SceneBuffer
from .server import ViewServer
from .status import StatusBoard

_QUEUE = 16  # events: up to a few key frames and frames of the input, of a few MB each
_STATUS_SECONDS = 0.5

PairArrays = tuple[tuple[int, int], np.ndarray, np.ndarray]
"""Numbers of both key frames, motion [2, G, 3] and fade [2, G, 2]."""

_WAIT_SECONDS = 0.2


@dataclass(frozen=True)
class Settings:
    """Where the page is served, and how much it holds.

    Attributes:
        host: name or address to listen on. Anything but loopback needs the token. port: 0 takes any free one.
        token: for other interfaces than loopback.
        seconds: of the stream to be kept. max_bytes: of memory for them.
    """

    host: str = "127.0.0.1"
    port: int = 8400
    token: str | None = None
    seconds: float = 20.0
    max_bytes: int = 256 << 20


class LiveViewer(Observer):
    """See the module's docstring. Use as a context manager, or call `close`.

    Args:
        title: what is looked at, shown in the page.
        pixel_aspect: width over height of the input's pixels as they are to be shown.

    Raises:
        InputError: websockets is missing, the address cannot be listened on, or it needs a token.
    """

    def __init__(self, settings: Settings, title: str = "", *, pixel_aspect: float = 1.0) -> None:
        self.buffer = SceneBuffer(settings.seconds, settings.max_bytes)
        self._title = title
        self._server = ViewServer(settings.host, settings.port, settings.token, self.buffer)
        self._board: StatusBoard | None = None
        self._status_at = 0.0
        self._jpeg = JpegEncoder(pixel_aspect=pixel_aspect)
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(_QUEUE)
        self._failure: BaseException | None = None
        self.left_out = 0
        """Events that came faster than they could be packed."""
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="view packing", daemon=True)
        self._worker.start()

    @property
    def url(self) -> str:
        """Address of the page, with the token where one is needed."""
        return self._server.url

    # For what is no pipeline: a recording. These calls wait for the packing.

    def present(
        self, model: ModelConfig, *, stages: dict[str, str] | None = None, aspect: float | None = None
    ) -> None:
        """What is to be shown. `stages`: what runs each; `aspect`: width over height, where it is known."""
        self._server.greet(model, hello_message(model, self._title, stages or {}, aspect))

    def add(self, key_frame: KeyFrame, pair: PairArrays | None) -> None:
        """A key frame and the pair that ends there. The arrays are kept, not copied."""
        self._raise_failure()
        self._queue.put(lambda: self._pack(key_frame, pair))

    def finish(self, status: dict[str, Any]) -> None:
        """Says that no more will come, and returns when everything is in the buffer."""
        status = {"ended": True, "left_out": self.left_out, **status}
        self._queue.put(lambda: self._server.report(status))
        self._queue.join()
        self._raise_failure()

    def _pack(self, key_frame: KeyFrame, pair: PairArrays | None) -> None:
        self.buffer.add_key_frame(key_frame)
        if pair is not None:
            self.buffer.add_pair(*pair)  # not without its first key frame, where that was left out

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    # Called by the pipeline, in its thread.

    def began(self, pipeline: Pipeline) -> None:
        self._board = StatusBoard(pipeline)
        self.present(pipeline.stream.model, stages=pipeline.stream.description)

    def spawned(self, event: Spawned) -> None:
        assert self._board is not None
        self._board.spawned(event)
        newest, motion, fade = event.newest, event.motion, event.fade
        key_frame = KeyFrame(newest.index, newest.time, newest.gaussians.copy())
        pair = None
        if event.previous is not None and motion is not None and fade is not None:
            pair = (event.previous.index, newest.index), motion.copy(), fade.copy()
        self._put(lambda: self._pack(key_frame, pair))

    def rendered(self, rendered: Rendered) -> None:
        assert self._board is not None
        self._board.rendered(rendered)
        source = rendered.source

        def picture() -> None:
            self.buffer.add_picture(source.timestamp, source.index, self._jpeg(source.image))

        self._put(picture)
        if time.monotonic() - self._status_at >= _STATUS_SECONDS:
            self._status_at = time.monotonic()
            status = self._status(ended=False)
            self._put(lambda: self._server.report(status))

    def ended(self) -> None:
        if self._board is not None and self._failure is None:
            status = self._status(ended=True)
            # Must not get lost, and nothing is held up any more by waiting.
            self._queue.put(lambda: self._server.report(status))

    def _status(self, *, ended: bool) -> dict[str, Any]:
        assert self._board is not None
        return self._board.snapshot() | {"ended": ended, "left_out": self.left_out}

    def _put(self, work: Callable[[], None]) -> None:
        self._raise_failure()
        try:
            self._queue.put_nowait(work)
        except queue.Full:
            self.left_out += 1

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            try:
                work()
            except BaseException as error:  # raised again in the pipeline's thread
                self._failure = error
            finally:
                self._queue.task_done()
            self._server.wake()

    # Called by who owns it.

    def wait(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Serves what is in the buffer until `stopped` says so, or Ctrl-C."""
        try:
            while not stopped():
                time.sleep(_WAIT_SECONDS)
        except KeyboardInterrupt:
            pass

    def close(self) -> None:
        """Closes all connections and ends the threads. Calling twice is harmless."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        self._worker.join()
        self._server.close()

    def __enter__(self) -> LiveViewer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def hello_message(
    model: ModelConfig, title: str, stages: dict[str, str], aspect: float | None = None
) -> dict[str, Any]:
    """What a page must know before the first Gaussian; `stages`: what runs each of them."""
    return {
        "title": title,
        "preset": model.preset,
        "width": model.width,
        "height": model.height,
        "aspect": model.width / model.height if aspect is None else aspect,
        "grid": list(model.grid),
        "depth_mapping": model.depth_mapping,
        "background": list(model.background),
        "stages": stages,
    }
