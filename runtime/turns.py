"""Streams over the same engines take turns: engines, buffers and the resizer's tables serve one call
at a time, and two at once would crash the process rather than fail.
"""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager

from .errors import InputError


class Turns:
    """Who may call the engines that streams share: one thread at a time, of the process that loaded them."""

    def __init__(self) -> None:
        # Reentrant: a signal's handler may run in the midst of a call of its own thread.
        self._lock = threading.RLock()
        self._process = os.getpid()

    @property
    def is_here(self) -> bool:
        """Whether this process loaded the engines: their threads do not exist in a forked child."""
        return os.getpid() == self._process

    def turn(self) -> AbstractContextManager[object]:
        """Entered when no other thread is in a call; while it is, none else can.

        Raises:
            InputError: this is a forked child, where a stage would wait for ever for the parent's threads.
        """
        if not self.is_here:
            raise InputError(
                f"The stream was opened by another process, {self._process}, of which this one was forked.",
                "Open it in the process that uses it, say in the target of multiprocessing.Process.",
            )
        return self._lock
