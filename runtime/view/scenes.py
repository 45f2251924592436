"""The last seconds of a run, packed and ready to be sent: bounded in time and in bytes."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from . import packing

_KINDS = (packing.KEY_FRAME, packing.PAIR, packing.PICTURE)


@dataclass(frozen=True)
class KeyFrame:
    """A key frame as the stage gave it: time in seconds and gaussians float32 [G, 9]."""

    index: int
    time: float
    gaussians: np.ndarray


@dataclass(frozen=True)
class Pair:
    """Two key frames with motion float32 [2, G, 3] and fade [2, G, 2] between them."""

    earlier: KeyFrame
    later: KeyFrame
    motion: np.ndarray
    fade: np.ndarray


@dataclass(frozen=True)
class Entry:
    """One message of the buffer.

    Attributes:
        number: rises by one from entry to entry. kind: see `packing`. message: what is sent.
        end: seconds; older than what is kept, it goes. needs: numbers of entries without which it is useless.
        scene: what it was made of, None for pictures.
    """

    number: int
    kind: int
    message: bytes
    end: float
    needs: tuple[int, ...] = ()
    scene: KeyFrame | Pair | None = None

    @property
    def size(self) -> int:
        """Bytes of memory."""
        if isinstance(self.scene, KeyFrame):
            return len(self.message) + self.scene.gaussians.nbytes
        if isinstance(self.scene, Pair):
            return len(self.message) + self.scene.motion.nbytes + self.scene.fade.nbytes
        return len(self.message)


class SceneBuffer:
    """Filled by one thread, read by others; every method may be called from any of them.

    What is older than `seconds` before the newest goes, and, where that is still too much, what is oldest.
    The newest two key frames and the newest pair stay; a key frame stays as long as a pair needs it.

    Args:
        seconds: of stream time. max_bytes: of memory, messages and arrays together.
    """

    def __init__(self, seconds: float, max_bytes: int) -> None:
        self.seconds = seconds
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[int, Entry] = OrderedDict()
        self._users: Counter[int] = Counter()  # pairs per key frame, by number of entry
        self._of_key_frame: dict[int, Entry] = {}
        # Newest of each kind, by number; of key frames two, because the pair of both comes after them.
        self._latest = {kind: deque[int](maxlen=2 if kind == packing.KEY_FRAME else 1) for kind in _KINDS}
        self._bytes = 0
        self._count = 0
        self._newest = -np.inf

    # Only the filling thread changes anything, so packing, which takes milliseconds, needs no lock.

    def add_key_frame(self, key_frame: KeyFrame) -> None:
        """Pack a key frame. The arrays are kept, not copied."""
        number = self._next()
        message = packing.pack_key_frame(number, key_frame.index, key_frame.time, key_frame.gaussians)
        entry = Entry(number, packing.KEY_FRAME, message, key_frame.time, scene=key_frame)
        self._of_key_frame[key_frame.index] = entry
        self._add(entry)

    def add_pair(self, indices: tuple[int, int], motion: np.ndarray, fade: np.ndarray) -> bool:
        """Pack the pair of two key frames added before, by index; False where one of them is not here."""
        entries = [self._of_key_frame[index] for index in indices if index in self._of_key_frame]
        scenes = [entry.scene for entry in entries if isinstance(entry.scene, KeyFrame)]
        if len(scenes) < 2:
            return False
        pair = Pair(scenes[0], scenes[1], motion, fade)
        number, times = self._next(), (scenes[0].time, scenes[1].time)
        message = packing.pack_pair(number, indices, times, motion, fade)
        needs = (entries[0].number, entries[1].number)
        self._add(Entry(number, packing.PAIR, message, times[1], needs, pair))
        return True

    def add_picture(self, time: float, frame: int, jpeg: bytes) -> None:
        """Pack a JPEG of the input at the time of a frame."""
        number = self._next()
        self._add(Entry(number, packing.PICTURE, packing.pack_picture(number, time, frame, jpeg), time))

    def _next(self) -> int:
        self._count += 1
        return self._count

    def _add(self, entry: Entry) -> None:
        with self._lock:
            self._entries[entry.number] = entry
            self._users.update(entry.needs)
            self._latest[entry.kind].append(entry.number)
            self._bytes += entry.size
            self._newest = max(self._newest, entry.end)
            while (oldest := self._removable()) is not None:
                if oldest.end >= self._newest - self.seconds and self._bytes <= self.max_bytes:
                    return
                self._remove(oldest)

    def _removable(self) -> Entry | None:
        kept = {number for numbers in self._latest.values() for number in numbers}
        for entry in self._entries.values():
            if entry.number not in kept and not self._users[entry.number]:
                return entry
        return None

    def _remove(self, entry: Entry) -> None:
        del self._entries[entry.number]
        self._bytes -= entry.size
        self._users.subtract(entry.needs)
        for number in (*entry.needs, entry.number):
            if not self._users[number]:
                del self._users[number]
        if isinstance(entry.scene, KeyFrame):
            del self._of_key_frame[entry.scene.index]

    @property
    def bytes(self) -> int:
        """Memory of everything in the buffer."""
        return self._bytes

    @property
    def oldest(self) -> float | None:
        """Seconds; from when on the buffer can be looked at. None while it is empty."""
        with self._lock:
            for entry in self._entries.values():
                if isinstance(entry.scene, Pair):
                    return entry.scene.earlier.time
                if isinstance(entry.scene, KeyFrame):
                    return entry.scene.time
            return None

    def newest_first(self) -> Iterator[Entry]:
        """All entries at this moment."""
        with self._lock:
            return iter(list(reversed(self._entries.values())))

    def get(self, number: int) -> Entry | None:
        """The entry of a number, while it is here."""
        with self._lock:
            return self._entries.get(number)

    def scene_at(self, time: float) -> Pair | KeyFrame | None:
        """What is shown at a time: the pair it lies in (the earlier of two), else the last that had begun.

        A scene of one key frame is that key frame. Before the oldest, the oldest; None while nothing is here.
        """
        with self._lock:
            scenes = [entry.scene for entry in self._entries.values() if entry.scene is not None]
        pairs = [scene for scene in scenes if isinstance(scene, Pair)]
        for pair in pairs:
            if pair.earlier.time <= time <= pair.later.time:
                return pair
        # Of a pair and its own key frames, the pair.
        begun = [scene for scene in scenes if _span(scene)[0] <= time]
        if begun:
            return max(begun, key=lambda scene: (_span(scene)[1], isinstance(scene, Pair)))
        return min(scenes, key=lambda scene: (_span(scene)[0], isinstance(scene, KeyFrame)), default=None)


def _span(scene: Pair | KeyFrame) -> tuple[float, float]:
    return (scene.time, scene.time) if isinstance(scene, KeyFrame) else (scene.earlier.time, scene.later.time)
