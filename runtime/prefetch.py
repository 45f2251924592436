"""Decoding ahead in a thread: a bounded buffer that hands on frames, the end and errors, in order."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")

_JOIN_SECONDS = 2.0  # a camera that delivers nothing must not keep a program from ending


@dataclass(frozen=True)
class Decoded(Generic[T]):
    """An item, the milliseconds the source took for it, and when it was there (perf_counter seconds)."""

    item: T
    milliseconds: float
    at: float


class Prefetcher(Generic[T]):
    """Iterates `source` in a background thread. Iterate over it, or call `take`, to get `Decoded` items.

    Args:
        source: anything iterable; only the thread touches its iterator.
        depth: items decoded ahead at most.
        latest: for live sources, drop the oldest waiting item instead of holding the source up when the
            buffer is full. `dropped` counts them.
        changed: notified when an item or the end arrives; share one to wait for several prefetchers at once.

    Use as a context manager or call `close`, also after an error: the thread ends after its current item.
    """

    def __init__(
        self,
        source: Iterable[T],
        *,
        depth: int = 4,
        latest: bool = False,
        changed: threading.Condition | None = None,
    ) -> None:
        if depth < 1:
            raise ValueError("depth must be at least 1")
        self._depth = depth
        self._latest = latest
        self._ready: deque[Decoded[T]] = deque()
        self._changed = changed or threading.Condition()
        self._ended = False
        self._closing = False
        self._error: BaseException | None = None
        self.dropped = 0
        self._thread = threading.Thread(target=self._work, args=(source,), name="decode", daemon=True)
        self._thread.start()

    def _work(self, source: Iterable[T]) -> None:
        try:
            iterator = iter(source)
            while not self._closing:
                start = time.perf_counter()
                try:
                    item = next(iterator)
                except StopIteration:
                    break
                if not self._put(Decoded(item, (time.perf_counter() - start) * 1e3, time.perf_counter())):
                    break
        except BaseException as error:
            self._error = error  # raised again in the consumer's thread, after the items before it
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _put(self, entry: Decoded[T]) -> bool:
        with self._changed:
            if self._latest and len(self._ready) == self._depth:
                self._ready.popleft()
                self.dropped += 1
            while len(self._ready) == self._depth and not self._closing:
                self._changed.wait()
            if self._closing:
                return False
            self._ready.append(entry)
            self._changed.notify_all()
            return True

    @property
    def ready(self) -> bool:
        """Whether `take` would return at once, with an item, the end or an error."""
        return bool(self._ready) or self._ended

    @property
    def ended(self) -> bool:
        """Whether there will be no more items (nor an error)."""
        return self._ended and not self._ready and self._error is None

    def take(self, timeout: float | None = None) -> Decoded[T] | None:
        """The next item; None after `timeout` seconds without one, or at the end (see `ended`).

        Raises:
            Whatever the source raised, once, after the items before it.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.ready, timeout):
                return None
            if self._ready:
                entry = self._ready.popleft()
                self._changed.notify_all()
                return entry
            error, self._error = self._error, None
        if error is not None:
            raise error
        return None

    def __iter__(self) -> Iterator[Decoded[T]]:
        while (entry := self.take()) is not None:
            yield entry

    def close(self) -> None:
        """Stop decoding and wait for the thread. Calling twice is harmless."""
        with self._changed:
            self._closing = True
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join(_JOIN_SECONDS)

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
