"""Frames pushed by a program: the way into the pipeline for whoever has a camera interface of their own."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Literal

import numpy as np

from ..errors import InputError
from ..preprocess import check_image
from ..timestamps import check_seconds
from ..video.frames import VideoFrame

Policy = Literal["latest", "block"]


class PushSource:
    """An iterable of `VideoFrame`s that another thread fills.

        source = PushSource()
        threading.Thread(target=lambda: run_video(source, stream, show, live=True)).start()
        source.push(image); ...; source.end()

    Any thread may push. Frames are taken in the order of the calls.

    Args:
        policy: with `latest`, a push never waits: the oldest waiting frame is dropped and counted. With
            `block`, a push waits for room.
        depth: frames that may wait.
    """

    live = True

    def __init__(self, *, policy: Policy = "latest", depth: int = 2) -> None:
        if policy not in ("latest", "block"):
            raise InputError(f"The policy is {policy!r}.", "Use 'latest' or 'block'.")
        if depth < 1:
            raise InputError(f"depth is {depth}.", "Use 1 or more frames.")
        self._policy, self._depth = policy, depth
        self._waiting: deque[VideoFrame] = deque()
        self._changed = threading.Condition()
        self._line: deque[object] = deque()  # pushes that wait for room, in the order of their calls
        self._ended = False
        self._start: float | None = None
        self._last = 0.0
        self._next = 0
        self._segment = 0
        self.dropped = 0

    def push(
        self,
        image: np.ndarray,
        timestamp: float | None = None,
        *,
        captured: float | None = None,
        discontinuity: bool = False,
        timeout: float | None = None,
    ) -> int:
        """Hand in a frame.

        Args:
            image: uint8 RGB [h, w, 3], any size. It is not copied: do not write to it afterwards.
            timestamp: seconds, later than those of the frame taken before; None takes the time of this call,
                counted from the first push. Use one or the other throughout.
            captured: moment of capture on `time.perf_counter`, for latencies; None is now.
            discontinuity: nothing moves from the previous frame to this one.
            timeout: seconds to wait for room with the policy `block`; None is for ever.

        Returns:
            The frame's index.

        Raises:
            InputError: a bad image, a time stamp that is not later, a push after `end`, or no room in time.
                The frame was not taken then.
        """
        image = check_image(image)
        timestamp = None if timestamp is None else check_seconds(timestamp)
        with self._changed:
            now = time.perf_counter()
            self._check(timestamp)
            if self._policy == "block" and not self._wait_for_room(timeout):
                raise InputError(
                    f"No room for a frame within {timeout} s.", "Wait longer, or use the policy 'latest'."
                )
            if timestamp is None:
                timestamp = 0.0 if self._start is None else now - self._start
            self._check(timestamp)  # again: others may have pushed while this waited
            if self._ended:
                raise InputError("The source has ended.", "Make a new PushSource.")
            if len(self._waiting) == self._depth:
                self._waiting.popleft()
                self.dropped += 1
            self._start = now if self._start is None else self._start
            self._last = timestamp
            index, self._next = self._next, self._next + 1
            self._segment += discontinuity
            moment = now if captured is None else captured
            self._waiting.append(VideoFrame(image, timestamp, index, moment, 0.0, self._segment))
            self._changed.notify_all()
            return index

    def _check(self, timestamp: float | None) -> None:
        """Raises InputError for a time stamp that may not follow the last frame."""
        if timestamp is not None and (
            not math.isfinite(timestamp) or (self._next and timestamp <= self._last)
        ):
            raise InputError(
                f"The time stamp {timestamp} s is not later than the previous frame's {self._last} s.",
                "Push frames in time order, with finite seconds.",
            )

    def _wait_for_room(self, timeout: float | None) -> bool:
        """Whether there is room, or the end, in time. Whoever came first is first."""
        turn = object()
        self._line.append(turn)
        try:
            return self._changed.wait_for(
                lambda: self._ended or (self._line[0] is turn and len(self._waiting) < self._depth), timeout
            )
        finally:
            self._line.remove(turn)
            self._changed.notify_all()

    def end(self) -> None:
        """No more frames; those that wait are still delivered. Calling twice is harmless."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def close(self) -> None:
        """Ends and forgets what waits."""
        with self._changed:
            self._waiting.clear()
            self.end()

    def __iter__(self) -> Iterator[VideoFrame]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting) or self._ended)
                if not self._waiting:
                    return
                frame = self._waiting.popleft()
                self._changed.notify_all()
            yield frame
