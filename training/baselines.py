"""What a model has to beat: simple interpolation between key frames, and the limit of half resolution.

Baselines over the frames between key frames (0, gap, 2 gap, ... and the last of a shot):

    blend    linear mix of the two key frames by time
    nearest  the nearer key frame repeated
    dis      optical flow (OpenCV DIS, medium) both ways, both key frames warped to time t and mixed by time

`half` is no interpolation: every frame reduced by area averaging to half size and enlarged bicubically again.
PSNR is over all pixels and channels of uint8 frames in dB, averaged over frames; identical frames count as
100 dB.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import InputError, StreamSplatError
from ..runtime.video import write_bytes
from .data.cache import Cache
from .data.loader import EvalShot, eval_clips
from .data.sample import F32, U8
from .data.video import dis_flow, warp

METHODS = ("blend", "nearest", "dis")
IDENTICAL = 100.0


def psnr(a: NDArray[np.generic], b: NDArray[np.generic]) -> float:
    """PSNR in dB of two uint8-ranged images of the same shape."""
    error = float(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2))
    return IDENTICAL if error == 0 else min(IDENTICAL, float(10 * np.log10(255.0**2 / error)))


def pairs(count: int, gap: int) -> list[tuple[int, int]]:
    """Key-frame pairs of a shot of `count` frames: every `gap`-th frame and the last."""
    keys = list(range(0, count, gap))
    if keys[-1] != count - 1:
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


def half_resolution(image: U8) -> U8:
    """Area average to half size, bicubic back."""
    height, width = image.shape[:2]
    small = cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def in_between(shot: EvalShot, gap: int) -> Iterator[tuple[int, int, int, float]]:
    """(first key, last key, frame, time in (0, 1)) of every frame between key frames."""
    for first, last in pairs(len(shot.frames), gap):
        span = shot.times[last] - shot.times[first]
        for row in range(first + 1, last):
            yield first, last, row, float((shot.times[row] - shot.times[first]) / span)


def measure(cache: Cache, gap: int = 4, split: str = "eval") -> dict[str, Any]:
    """All baselines on a split: {"clips": {name: {method: dB}}, "average": {method: dB over clips}, ...}.

    Raises:
        InputError: the split has no clip.
    """
    scores: dict[str, dict[str, list[float]]] = {}
    for shot in eval_clips(cache, split):
        clip = scores.setdefault(shot.clip, {name: [] for name in (*METHODS, "half")})
        flows: tuple[int, F32, F32] | None = None
        for first, last, row, t in in_between(shot, gap):
            a, b, truth = shot.frames[first], shot.frames[last], shot.frames[row]
            if flows is None or flows[0] != first:
                flows = (first, dis_flow(a, b), dis_flow(b, a))
            clip["blend"].append(psnr(blend(a, b, t), truth))
            clip["nearest"].append(psnr(nearest(a, b, t), truth))
            clip["dis"].append(psnr(flow_interpolate(a, b, flows[1], flows[2], t), truth))
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
