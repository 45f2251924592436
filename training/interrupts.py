"""Ctrl-C in a long run: the step at hand is finished first."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any


class Interrupts:
    """Notes the first Ctrl-C or SIGTERM instead of raising, so that no step is cut in half; `received` tells.

    The second one raises KeyboardInterrupt. Outside the main thread, where Python handles no signals, it does
    nothing.

    Args:
        echo: seconds after the first one in which another counts as the same. The launcher of several
            processes passes on a signal that the terminal has already sent to each of them.
    """

    def __init__(self, echo: float = 0.0) -> None:
        self.received = False
        self._echo = echo
        self._first = 0.0
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        if not self.received:
            self.received = True
            self._first = time.monotonic()
        elif time.monotonic() - self._first >= self._echo:
            raise KeyboardInterrupt


def leave_ctrl_c_to_the_parent(_worker: int) -> None:
    """For `worker_init_fn`: Ctrl-C reaches every process of a terminal, a loader must outlive the step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
