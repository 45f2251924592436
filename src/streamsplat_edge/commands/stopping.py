"""Ctrl-C as the end of the input."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Stop:
    """Turns the first Ctrl-C (or SIGTERM) into the end of the input, so that everything is finished properly.

    A second one interrupts at once and leaves no output. `armed` limits it to the time frames flow; before
    that, a signal interrupts at once.
    """

    def __init__(self) -> None:
        self.event = threading.Event()
        self.signal: int | None = None
        self.armed = False
        self._old: dict[int, Any] = {}

    def request(self) -> None:
        """Ends the input as the first Ctrl-C does."""
        self.event.set()

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def listen_again(self) -> None:
        """After a library has put handlers of its own in the place of these."""
        for number in self._old:
            signal.signal(number, self._handle)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.armed or self.event.is_set():
            raise KeyboardInterrupt(number)  # `cli` chooses the exit code by it
        self.signal = number
        self.event.set()
