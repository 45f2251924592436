"""What a client gets next. Nothing is queued for a client: it has only a memory of what it was sent.

A client that reads slowly, or not at all, therefore costs no memory and no time of the stream, and goes on
with what is newest when it reads again. The order is: the newest pair when it joins; what comes in after
that; and whenever there is nothing new, the past, newest first, until it has all of the buffer.
"""

from __future__ import annotations

from . import packing
from .scenes import Entry, SceneBuffer

LAG_PAIRS = 4
"""A client that is further behind jumps to the newest pair."""


class Delivery:
    """Chooses the next message for one client. Not thread-safe."""

    def __init__(self, buffer: SceneBuffer, lag: int = LAG_PAIRS) -> None:
        self._buffer = buffer
        self._lag = lag
        self._sent: set[int] = set()
        self._cursor: int | None = None  # everything up to this number was live or has been passed over
        self.left_out = 0
        """Pairs passed over because the client was behind (it may still get them, as part of the past)."""

    def next(self) -> bytes | None:
        """The message to be sent now; None where the client has everything."""
        entries = list(self._buffer.newest_first())
        entry = self._live(entries) or self._past(entries)
        if entry is None:
            return None
        for number in entry.needs:
            needed = None if number in self._sent else self._buffer.get(number)
            if needed is not None:
                self._sent.add(number)
                return needed.message
        self._sent.add(entry.number)
        if len(self._sent) > 2 * len(entries) + 16:
            self._sent &= {entry.number for entry in entries}
        if self._cursor is None or entry.number > self._cursor:
            self._cursor = entry.number
        return entry.message

    def _live(self, newest_first: list[Entry]) -> Entry | None:
        """The oldest entry after the cursor, which first jumps where that is too far behind."""
        if not newest_first:
            return None
        pairs = [entry.number for entry in newest_first if entry.kind == packing.PAIR]
        if self._cursor is None:
            self._cursor = (pairs[0] if pairs else newest_first[-1].number) - 1
        behind = sum(number > self._cursor for number in pairs)
        if behind > self._lag:
            self.left_out += behind - 1
            self._cursor = pairs[0] - 1
        chosen = None
        for entry in newest_first:
            if entry.number <= self._cursor:
                break
            if entry.number not in self._sent:
                chosen = entry
        return chosen

    def _past(self, newest_first: list[Entry]) -> Entry | None:
        return next((entry for entry in newest_first if entry.number not in self._sent), None)
