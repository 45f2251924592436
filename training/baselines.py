"""What a model has to beat: simple interpolation between key frames, and the limit of half resolution.

Baselines over the frames between key frames (0, gap, 2 gap, ... and the last of a shot):

    blend    linear mix of the two key frames by time
    nearest  the nearer key frame repeated
    dis      optical flow (OpenCV DIS, medium) both ways, both key frames warped to time t and mixed by time

`half` is no interpolation: every frame reduced by area averaging to half size and enlarged bicubically again.
PSNR is that of `metrics.psnr`, averaged over frames.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..runtime.errors import InputError, StreamSplatError
from ..runtime.video import write_bytes
from .data.cache import Cache
from .data.loader import EvalShot, eval_clips
from .data.sample import F32, U8
from .data.video import dis_flow, warp
from .metrics import psnr

METHODS = ("blend", "nearest", "dis")


def pairs(count: int, gap: int, *, whole: bool = False) -> list[tuple[int, int]]:
    """Key-frame pairs of a shot of `count` frames: every `gap`-th frame and, unless `whole`, the last."""
    keys = list(range(0, count, gap))
    if keys[-1] != count - 1 and not whole:
        keys.append(count - 1)
    return list(itertools.pairwise(keys))


def blend(first: U8, last: U8, t: float) -> U8:
    """Linear mix, uint8."""
    return np.asarray(cv2.addWeighted(first, 1 - t, last, t, 0), np.uint8)


def nearest(first: U8, last: U8, t: float) -> U8:
    """The nearer key frame."""
    return first if t < 0.5 else last


def flow_interpolate(first: U8, last: U8, forward: F32, backward: F32, t: float) -> U8:
    """Frame at t from both key frames, uint8; flows as of `dis_flow`, first->last and last->first."""
    to_first = -(1 - t) * t * forward + t * t * backward
    to_last = (1 - t) ** 2 * forward - t * (1 - t) * backward
    a = warp(first, to_first.astype(np.float32)).astype(np.float32)
    b = warp(last, to_last.astype(np.float32)).astype(np.float32)
    return np.clip((1 - t) * a + t * b + 0.5, 0, 255).astype(np.uint8)


class PairBaselines:
    """All of `METHODS` between two key frames, uint8 [H, W, 3]; the flow is computed once, on first use."""

    def __init__(self, first: U8, last: U8) -> None:
        self._ends = first, last
        self._flows: tuple[F32, F32] | None = None

    def at(self, t: float) -> dict[str, U8]:
        """Method -> frame at t in (0, 1)."""
        first, last = self._ends
        if self._flows is None:
            self._flows = dis_flow(first, last), dis_flow(last, first)
        return {
            "blend": blend(first, last, t),
            "nearest": nearest(first, last, t),
            "dis": flow_interpolate(first, last, *self._flows, t),
        }


def half_resolution(image: U8) -> U8:
    """Area average to half size, bicubic back."""
    height, width = image.shape[:2]
    small = cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def pair_time(shot: EvalShot, first: int, last: int, row: int) -> float:
    """Time of a frame on the scale where the key frames around it are at 0 and 1."""
    return float((shot.times[row] - shot.times[first]) / (shot.times[last] - shot.times[first]))


def measure(cache: Cache, gap: int = 4, split: str = "eval") -> dict[str, Any]:
    """All baselines on a split: {"clips": {name: {method: dB}}, "average": {method: dB over clips}, ...}.

    Raises:
        InputError: the split has no clip.
    """
    scores: dict[str, dict[str, list[float]]] = {}
    for shot in eval_clips(cache, split):
        clip = scores.setdefault(shot.clip, {name: [] for name in (*METHODS, "half")})
        frames = shot.frames
        for first, last in pairs(len(frames), gap):
            methods = PairBaselines(frames[first], frames[last])
            for row in range(first + 1, last):
                t = pair_time(shot, first, last, row)
                for name, image in methods.at(t).items():
                    clip[name].append(psnr(image, frames[row]))
        clip["half"] += [psnr(half_resolution(frame), frame) for frame in shot.frames]
    if not scores:
        raise InputError(f"{cache.root} has no clip in the split {split!r}.", "Prepare the cache with one.")
    clips = {name: {m: float(np.mean(v)) for m, v in values.items() if v} for name, values in scores.items()}
    for name, values in scores.items():
        clips[name]["in_between_frames"] = len(values["blend"])
    names = (*METHODS, "half")
    found = [m for m in names if any(m in c for c in clips.values())]
    average = {m: float(np.mean([c[m] for c in clips.values() if m in c])) for m in found}
    return {
        "gap": gap, "split": split, "height": cache.height, "width": cache.width,
        "metric": "PSNR dB, uint8 RGB, mean over frames, average over clips", "clips": clips,
        "average": average,
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Command line: measure and print or write JSON."""
    parser = argparse.ArgumentParser(description="baselines of a media cache's evaluation split")
    parser.add_argument("cache_dir", type=Path)
    parser.add_argument("--gap", type=int, default=4)
    parser.add_argument("--output", type=Path, help="JSON file")
    arguments = parser.parse_args(argv)
    try:
        text = json.dumps(measure(Cache(arguments.cache_dir), arguments.gap), indent=1)
        if arguments.output:
            write_bytes(arguments.output, (text + "\n").encode())
    except StreamSplatError as error:
        parser.error(str(error))
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
