"""A live source that stays: reconnects with back-off, goes on with another size, and counts what it lost."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError, VideoError
from ..video.file import FileReader
from ..video.frames import Converter
from ..video.reader import VideoReader
from ..video.reading import Reading
from ..video.surface import DecodedFrame, picture_of, picture_size, taken, with_picture
from .clock import Timeline
from .connection import Connection, ConnectionLost, Picture, SourceEvents
from .opening import Opened, is_live, open_live
from .uri import SourceUri

_JITTER = 0.2  # of each wait, so that many readers do not knock at a rebooted server at the same moment


@dataclass(frozen=True)
class LiveOptions:
    """How patient a live source is.

    Attributes:
        keep_up: give up frames that waited too long (policy `latest`).
        connect_seconds: for a connection and its first frame.
        silence_seconds: without a packet, after which a connection counts as lost.
        attempts: to reconnect, in a row, before the stream ends; None is endless, 0 never reconnects.
        first_wait, longest_wait: seconds before the first attempt and at most; each wait doubles the last.
        libav: options for libav (`rtsp_transport`, `video_size`, `framerate`, ...).
    """

    keep_up: bool = True
    connect_seconds: float = 10.0
    silence_seconds: float = 10.0
    attempts: int | None = None
    first_wait: float = 0.5
    longest_wait: float = 30.0
    libav: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("connect_seconds", "silence_seconds", "first_wait", "longest_wait"):
            if not 0 < getattr(self, name) < 86_400:
                raise InputError(f"{name} is {getattr(self, name)}.", "Use a positive number of seconds.")
        if self.attempts is not None and self.attempts < 0:
            raise InputError(f"attempts is {self.attempts}.", "Use 0 (never reconnect) or more.")


class LiveReader(VideoReader):
    """Iterates the frames of a camera, network stream or pipeline for as long as it can be had.

    Time stamps go on increasing across connections by the time that passed; `VideoFrame.segment` grows at
    each break, so that no motion is predicted across it. Frames may change their size at any time. A pipeline
    that comes to its own end ends the iteration; one that is not live waits for whoever takes its frames.

    Args:
        uri: what to open. options: see `LiveOptions`.
        opened: what was opened already; None opens it.
        accelerator: see `video.decoding.acceleration`, also for later connections.

    Raises:
        VideoError: the first connection fails or gives no frame. Later failures only lead to more attempts.
    """

    def __init__(
        self,
        uri: SourceUri,
        options: LiveOptions | None = None,
        *,
        opened: Opened | None = None,
        accelerator: Any = None,
    ) -> None:
        super().__init__(uri.shown)
        self.live = self.reconnects = True
        self.events = SourceEvents()
        self._uri, self._options, self._accelerator = uri, options or LiveOptions(), accelerator
        self._timeline = Timeline()
        self._converter = Converter()
        self._index = 0
        self._size: tuple[int, ...] = ()
        self._reading = Reading(lambda: self._connection.close())
        self._connect(opened)
        try:
            first = self._next()
        except ConnectionLost as error:
            self._connection.close()
            raise VideoError(
                f"{self.uri}: not a single frame came ({uri.redact(error)}).",
                "Does a player show it? A codec may be unknown, or the camera asleep.",
            ) from None
        except BaseException:
            self._connection.close()
            raise
        self.rate = self._connection.rate
        try:
            self._waiting: DecodedFrame | None = self._frame(first)
        except VideoError:  # of a GPU, which decodes to what is not read there
            self._connection.close()
            raise
        self.height, self.width = picture_size(picture_of(self._waiting))
        self.pixel_aspect = self._connection.pixel_aspect(first)

    @property
    def counters(self) -> dict[str, float]:
        """What happened so far, by name; see `SourceEvents`."""
        return dataclasses.asdict(self.events)

    @property
    def dropped(self) -> int:
        return self.events.late

    def __iter__(self) -> Iterator[DecodedFrame]:
        while True:
            waiting, self._waiting = self._waiting, None
            try:
                if waiting is None:
                    waiting = self._frame(self._next())
            except ConnectionLost as error:
                if error.final or not self._reconnect(self._uri.redact(error)):
                    return
            else:
                yield waiting

    def _next(self) -> Picture:
        """The next picture of the current connection. Raises ConnectionLost where there will be none."""
        picture = self._reading.next(self._pictures)
        if picture is None:
            raise ConnectionLost("closed")
        return picture

    def _frame(self, picture: Picture) -> DecodedFrame:
        start = time.perf_counter()
        image = taken(picture.frame, self._converter)
        size = picture_size(image)
        if size != self._size:
            self.events.sizes += bool(self._size)
            self._size = size
        placed = self._timeline.place(picture.raw, picture.arrival)
        self.events.repaired_times += placed.repaired
        index, self._index = self._index, self._index + 1
        milliseconds = picture.decode_ms + (time.perf_counter() - start) * 1e3
        captured = picture.captured if self.live else None
        return with_picture(image, placed.timestamp, index, captured, milliseconds, placed.segment)

    def _connect(self, opened: Opened | None = None) -> None:
        """Makes the next connection the current one. Raises VideoError where there is none."""
        options = self._options

        def closed() -> bool:
            return self._reading.closed

        def connect() -> None:
            source = opened or open_live(
                self._uri,
                connect=options.connect_seconds,
                silence=options.silence_seconds,
                options=options.libav,
                stopped=closed,
                accelerator=self._accelerator,
            )
            try:
                self._connection = Connection(
                    source.container,
                    self.events,
                    options.keep_up and source.live,
                    options.silence_seconds,
                    closed,
                    release=source.release,
                    finished=source.finished,
                )
            except VideoError as error:
                raise VideoError(f"{self.uri}: {error.message}", error.hint) from error
            self._pictures = iter(self._connection)
            self.live = source.live

        self._reading.run(connect)

    def _reconnect(self, reason: str) -> bool:
        """Tries until there is a frame again (True), attempts run out or the reader is closed (False)."""
        options, lost = self._options, time.perf_counter()
        wait, tried = options.first_wait, 0
        self._timeline.reconnected()
        try:
            while not self._reading.closed:
                self._connection.close()
                if tried == options.attempts:
                    self.truncated = f"the source was lost after {self._index} frames ({reason})" + (
                        f" and did not come back in {tried} attempts" if tried else ""
                    )
                    return False
                if self._reading.wait(wait * random.uniform(1 - _JITTER, 1 + _JITTER)):
                    return False
                wait, tried = min(2 * wait, options.longest_wait), tried + 1
                try:
                    self._connect()
                    self._waiting = self._frame(self._next())
                except (VideoError, ConnectionLost) as error:
                    self.events.failed_attempts += 1
                    reason = self._uri.redact(getattr(error, "message", error))
                    continue
                self.events.reconnects += 1
                return True
            return False
        finally:
            self.events.outage_seconds += time.perf_counter() - lost

    def close(self) -> None:
        """Ends the iteration. Calling twice is harmless.

        libav cannot be interrupted from here: a thread that waits for a silent source ends, and closes the
        connection itself, when `silence_seconds` (or `connect_seconds`) are over.
        """
        self._reading.close()


def open_network(
    uri: SourceUri, options: LiveOptions | None = None, *, threads: int = 0, accelerator: Any = None
) -> VideoReader:
    """A reader for a network URI: a recording where the container knows its length, else a live source.

    Args:
        threads: of a recording. accelerator: see `video.decoding.acceleration`.

    Raises:
        VideoError: nothing answers, or not with video.
    """
    options = options or LiveOptions()
    opened = open_live(
        uri,
        connect=options.connect_seconds,
        silence=options.silence_seconds,
        options=options.libav,
        stopped=lambda: False,
        accelerator=accelerator,
    )
    if is_live(uri, opened.container):
        return LiveReader(uri, options, opened=opened, accelerator=accelerator)
    return FileReader(uri.shown, opened.container, threads=threads, accelerated=accelerator is not None)
