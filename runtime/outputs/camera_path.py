"""Where novel views are taken from: small turns of the orthographic camera about a pivot.

A path is a short text, or a JSON file with key frames:

    swing                          left and right: yaw 7 degrees, 5 seconds there and back
    swing:yaw=10,period=4          any of the numbers changed
    orbit:yaw=8,pitch=4,period=6   round an ellipse
    fixed:yaw=5,pitch=-2           one place
    path.json                      {"keyframes": [{"t": 0, "yaw": 0}, {"t": 2, "yaw": 8, "pitch": 3}],
    "loop": true}

Angles are degrees, times seconds of the input. `pivot=D` in the text, or "pivot" in the file, is the depth of
the point that stays in place; without it the camera turns about the middle of the scene.
"""

from __future__ import annotations

import bisect
import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..errors import InputError

ANGLE_MAX = 45.0  # degrees; the scene is a relief without a back
PIVOT_MAX = 100.0
_FILE_MAX = 1 << 20
_KEYFRAMES_MAX = 10_000
_DEFAULTS = {
    "swing": {"yaw": 7.0, "pitch": 0.0, "period": 5.0},
    "orbit": {"yaw": 7.0, "pitch": 4.0, "period": 5.0},
    "fixed": {"yaw": 0.0, "pitch": 0.0},
}
_SPEC_HINT = (
    "Write e.g. swing, swing:yaw=10,period=4, orbit:yaw=8,pitch=4, fixed:yaw=5,pivot=1.2, or path.json."
)


@dataclass(frozen=True)
class CameraPath:
    """Yaw and pitch over time.

    Attributes:
        kind: "swing", "orbit", "fixed" or "keyframes". yaw, pitch: degrees, amplitudes where the camera
            moves.
        period: seconds. pivot: scene depth, None follows the middle of the scene.
        keyframes: (seconds, yaw, pitch) in order of time; straight lines between them. loop: begin anew after
            the last, else stay there.
    """

    kind: str = "swing"
    yaw: float = _DEFAULTS["swing"]["yaw"]
    pitch: float = 0.0
    period: float = _DEFAULTS["swing"]["period"]
    pivot: float | None = None
    keyframes: tuple[tuple[float, float, float], ...] = ()
    loop: bool = False

    def angles(self, time: float) -> tuple[float, float]:
        """Yaw and pitch in degrees at a time in seconds. Yaw is positive to the right, pitch upwards."""
        if self.kind == "fixed":
            return self.yaw, self.pitch
        if self.kind == "keyframes":
            return self._between(time)
        phase = 2 * math.pi * time / self.period
        if self.kind == "orbit":
            return self.yaw * math.cos(phase), self.pitch * math.sin(phase)
        return self.yaw * math.sin(phase), self.pitch * math.sin(phase)

    def end(self, time: float, *, first: bool) -> tuple[float, float]:
        """One end of a swing, for a single picture; of other paths the place at this time."""
        if self.kind != "swing":
            return self.angles(time)
        return (self.yaw, self.pitch) if first else (-self.yaw, -self.pitch)

    def _between(self, time: float) -> tuple[float, float]:
        keys = self.keyframes
        first, last = keys[0][0], keys[-1][0]
        if self.loop and last > first:
            time = first + (time - first) % (last - first)
        place = bisect.bisect_right(keys, time, key=lambda key: key[0])
        if place in (0, len(keys)):
            return keys[min(place, len(keys) - 1)][1:]
        (t0, *from_), (t1, *to) = keys[place - 1], keys[place]
        share = (time - t0) / (t1 - t0)
        yaw, pitch = (a + share * (b - a) for a, b in zip(from_, to, strict=True))
        return yaw, pitch

    @property
    def description(self) -> str:
        """For statistics."""
        about = "the median depth" if self.pivot is None else f"depth {self.pivot:g}"
        if self.kind == "keyframes":
            return f"{len(self.keyframes)} key frames, about {about}"
        over = "" if self.kind == "fixed" else f", {self.period:g} s"
        return f"{self.kind}: yaw {self.yaw:g}, pitch {self.pitch:g} degrees{over}, about {about}"


def parse_camera(text: str) -> CameraPath:
    """The path that a text or the JSON file it names describes.

    Raises:
        InputError: unknown word, a number out of range, or a file that is no such path.
    """
    if text.lower().endswith(".json"):
        return _from_file(Path(text))
    kind, _, rest = text.partition(":")
    if kind not in _DEFAULTS:
        raise InputError(f"--camera {text}: there is no path '{kind}'.", _SPEC_HINT)
    values: dict[str, float | None] = {**_DEFAULTS[kind], "pivot": None}
    for part in filter(None, rest.split(",")):
        name, _, number = part.partition("=")
        if name not in values:
            raise InputError(f"--camera {text}: '{kind}' has no '{name}'.", _SPEC_HINT)
        try:
            values[name] = float(number)
        except ValueError:
            raise InputError(f"--camera {text}: '{number}' is not a number.", _SPEC_HINT) from None
    for name, value in values.items():
        if value is not None:
            _check(name, value, f"--camera {text}")
    return CameraPath(kind=kind, **values)  # type: ignore[arg-type]


def _check(name: str, value: float, where: str) -> float:
    low, high = {
        "period": (0.1, 3600.0),
        "pivot": (0.0, PIVOT_MAX),
        "t": (-1e9, 1e9),
    }.get(name, (-ANGLE_MAX, ANGLE_MAX))
    if not low <= value <= high:  # refuses NaN as well
        raise InputError(f"{where}: {name} is {value:g}.", f"Use {low:g} to {high:g}.")
    return value


def _from_file(path: Path) -> CameraPath:
    try:
        if path.stat().st_size > _FILE_MAX:
            raise InputError(f"{path}: is too large for a camera path.", "Pass a small JSON file.")
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}.", _SPEC_HINT) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON ({error}).", _SPEC_HINT) from error
    keys = data.get("keyframes") if isinstance(data, dict) else None
    if not isinstance(keys, list) or not 1 <= len(keys) <= _KEYFRAMES_MAX:
        raise InputError(f'{path}: has no list "keyframes".', 'Write {"keyframes": [{"t": 0, "yaw": 5}]}.')
    unknown = set(data) - {"keyframes", "pivot", "loop"}
    if unknown or not isinstance(data.get("loop", False), bool):
        word = min(unknown) if unknown else "loop"
        raise InputError(
            f"{path}: '{word}' is not understood.", "Use keyframes, pivot and loop (true, false)."
        )
    frames = tuple(_keyframe(key, f"{path}: key frame {i}") for i, key in enumerate(keys))
    if any(b[0] <= a[0] for a, b in pairwise(frames)):
        raise InputError(f"{path}: the times of its key frames do not grow.", "Sort them by t.")
    pivot = data.get("pivot")
    return CameraPath(
        kind="keyframes",
        pivot=None if pivot is None else _number(pivot, "pivot", str(path)),
        keyframes=frames,
        loop=data.get("loop", False),
    )


def _keyframe(key: Any, where: str) -> tuple[float, float, float]:
    if not isinstance(key, dict) or "t" not in key or set(key) - {"t", "yaw", "pitch"}:
        raise InputError(f"{where} is not understood.", 'Write {"t": 0, "yaw": 5, "pitch": 0}.')
    t, yaw, pitch = (_number(key.get(name, 0.0), name, where) for name in ("t", "yaw", "pitch"))
    return t, yaw, pitch


def _number(value: Any, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{where}: {name} is not a number.", _SPEC_HINT)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    return _check(name, number, where)
