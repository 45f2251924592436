"""A container that one thread reads and another closes, and what reading a damaged one may raise."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

import av
import av.error

T = TypeVar("T")


class Closeable(Protocol):
    """What has to be closed in the end."""

    def close(self) -> None: ...


Opened = TypeVar("Opened", bound=Closeable)

_CLOSE_SECONDS = 0.5

# What PyAV and NumPy raise for input that is not what it says: beside libav's own errors, streams that appear
# on the way (IndexError), texts, pixel formats and numbers that cannot be (ValueError, KeyError,
# OverflowError), sizes that no memory holds (MemoryError).
DAMAGE = (av.error.FFmpegError, OSError, ValueError, LookupError, ArithmeticError, MemoryError)

# Titles need not be UTF-8. Before 19, PyAV refuses such files unless it is told otherwise; from 19 on it
# takes them always, and knows the option no longer.
LENIENT: dict[str, Any] = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}


def reason(error: BaseException) -> str:
    """What an error says, without the address that libav quotes: it may hold a password."""
    return str(getattr(error, "strerror", None) or error) or type(error).__name__


class Reading:
    """Lets `close` come from any thread: a container that is being read is freed by whoever reads it.

    libav cannot be interrupted from outside: a thread that waits for a silent source is back only when the
    container's own time-out is over.

    Args:
        release: frees the container. Called while nobody reads; must bear being called twice.
    """

    def __init__(self, release: Callable[[], None]) -> None:
        self._release = release
        self._closing = threading.Event()
        self._busy = threading.Lock()  # held while the container is in use, and never across a yield

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closing.is_set()

    def wait(self, seconds: float) -> bool:
        """Whether `close` was called, within so many seconds."""
        return self._closing.wait(seconds)

    def run(self, action: Callable[[], T]) -> T | None:
        """What `action`, which uses the container, returns; None once `close` was called."""
        with self._busy:
            try:
                result = None if self.closed else action()
                return None if self.closed else result
            finally:
                if self.closed:  # `close` may have given up waiting
                    self._release()

    def next(self, items: Iterator[T]) -> T | None:
        """The next of what reads the container; None at the end, and once `close` was called."""
        return self.run(lambda: next(items, None))

    def close(self) -> None:
        """Ends the reading. Calling twice is harmless. Not from within `run`."""
        self._closing.set()
        if self._busy.acquire(timeout=_CLOSE_SECONDS):
            try:
                self._release()
            finally:
                self._busy.release()


def open_aside(action: Callable[[], Opened]) -> Opened:
    """What `action` opens, in a thread of its own: Ctrl-C does not wait for a server that says nothing.

    libav cannot be interrupted from outside; what was given up ends at its time-out and is closed then.
    """
    outcome: Future[Opened] = Future()

    def work() -> None:
        try:
            opened = action()
        except BaseException as error:
            if outcome.set_running_or_notify_cancel():
                outcome.set_exception(error)
            return
        if outcome.set_running_or_notify_cancel():
            outcome.set_result(opened)
        else:
            opened.close()

    try:
        threading.Thread(target=work, name="open", daemon=True).start()
        return outcome.result()
    except BaseException:
        if not outcome.cancel() and outcome.exception() is None:
            outcome.result().close()
        raise
