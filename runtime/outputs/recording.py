"""Anything that was saved as Gaussians, read back: at any time of it, as the Gaussians of that moment.

with open_recording("tracks.npz") as recording:
    cloud = recording.at(1.5)
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from ..errors import InputError
from ..interval import IntervalEvaluator
from ..rasterizer import Splats
from .cloud import Cloud
from .container_reader import ContainerReader
from .key_frame import KeyFrame
from .ply import read_ply, read_time
from .splat import read_splat
from .targets import Target, parse_source
from .tracks import Tracks

SEQUENCE_RATE = 24.0  # frames per second of files that do not know their time


class Recording(Protocol):
    """Attributes: times: seconds at which there was a frame of the input, growing; None where the format does
    not keep them. first, last: seconds between which `at` may be called."""

    times: list[float] | None
    first: float
    last: float

    def at(self, time: float) -> Cloud: ...

    def close(self) -> None: ...

    def __enter__(self) -> Recording: ...

    def __exit__(self, *_: object) -> None: ...


class _Closing:
    def close(self) -> None:
        pass

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TracksRecording(_Closing):
    """A `.npz` file of tracks: exactly what the stream rendered."""

    def __init__(self, path: Path) -> None:
        self.tracks = Tracks(path)
        times = self.tracks.frame_times
        self.times: list[float] | None = times.tolist() or None
        self.first, self.last = float(self.tracks.times[0]), float(self.tracks.times[-1])
        self._loaded: dict[int, KeyFrame] = {}
        self._evaluator = IntervalEvaluator(self.tracks.gaussians, self.tracks.depth_mapping)

    def at(self, time: float) -> Cloud:
        """The Gaussians at `time`. Between two scenes, those of the earlier one, as they were last."""
        return Cloud.from_splats(self.splats_at(time), self.tracks.picture, time=time)

    def splats_at(self, time: float) -> Splats:
        """The same in the rasterizer's form; the next call overwrites it."""
        check_time(self, time)
        times, begins = self.tracks.times, self.tracks.begins_scene
        later = int(np.searchsorted(times, time))  # the first key frame that is not before `time`
        if begins[later]:
            if times[later] > time:
                later, time = later - 1, float(times[later - 1])
            elif later + 1 < len(times) and not begins[later + 1]:
                later += 1  # a scene's first frame belongs to the pair that begins there
        key = self._key_frame(later)
        if key.motion is None or key.fade is None:
            return self._evaluator.lone(key.gaussians)
        earlier = self._key_frame(later - 1)
        t = (time - earlier.time) / (key.time - earlier.time)
        return self._evaluator.between(earlier.gaussians, key.gaussians, key.motion, key.fade, t)

    def _key_frame(self, number: int) -> KeyFrame:
        """Kept for the next call, with its neighbour."""
        if number not in self._loaded:
            self._loaded = {n: key for n, key in self._loaded.items() if abs(n - number) <= 1}
            self._loaded[number] = self.tracks.key_frame(number)
        return self._loaded[number]

    def close(self) -> None:
        self.tracks.close()


class ContainerRecording(_Closing):
    """A `.4dgs` file."""

    def __init__(self, path: Path) -> None:
        self._reader = ContainerReader(path)
        self.times: list[float] | None = None
        self.first = 0.0
        self.last = math.nextafter(self._reader.seconds, 0)  # its end is exclusive

    def at(self, time: float) -> Cloud:
        check_time(self, time)
        return self._reader.at(time)

    def close(self) -> None:
        self._reader.close()


class Sequence(_Closing):
    """Numbered `.ply` or `.splat` files, or a single one. At a time, the last file that is not later."""

    def __init__(self, source: Target, rate: float) -> None:
        self._paths = list(source.existing()) if source.digits else [source.path]
        if not self._paths:
            raise InputError(f"{source.path}: there are no such files.", "Check the folder and the name.")
        self._read = read_ply if source.kind == "ply" else read_splat
        known = [self._time_of(path) for path in self._paths]
        if any(time is None for time in known):
            self._times = [i / rate for i in range(len(known))]
        else:
            self._times = cast("list[float]", known)
        if any(b <= a for a, b in pairwise(self._times)):
            raise InputError(f"{source.path}: the times in its files do not grow.", "Are they of one run?")
        self.times: list[float] | None = self._times
        self.first, self.last = self._times[0], self._times[-1]

    def _time_of(self, path: Path) -> float | None:
        return read_time(path) if self._read is read_ply else None

    def at(self, time: float) -> Cloud:
        check_time(self, time)
        place = int(np.searchsorted(self._times, time, "right")) - 1
        cloud = self._read(self._paths[place])
        return Cloud(**{**vars(cloud), "time": self._times[place]})


def open_recording(text: str, *, rate: float = SEQUENCE_RATE) -> Recording:
    """Opens what was saved: a `.npz`, `.4dgs`, `.ply` or `.splat` file, or numbered ones (`scene_%04d.ply`).

    Args:
        text: the path as it was given to `--save`.
        rate: frames per second of numbered files that do not know their time (`.splat`).

    Raises:
        InputError: not such a file, or a damaged one.
        OutputError: the package for `.4dgs` is missing.
    """
    source = parse_source(text)
    if source.kind == "tracks":
        return TracksRecording(source.path)
    if source.kind == "container":
        return ContainerRecording(source.path)
    return Sequence(source, rate)


def check_time(recording: Recording, time: float) -> None:
    """InputError unless the recording has Gaussians at `time`."""
    if not recording.first <= time <= recording.last:  # refuses NaN as well
        raise InputError(
            f"There is nothing at {time} s.",
            f"The recording goes from {recording.first:g} to {recording.last:g} s.",
        )
