"""Rough depth for clips of a still camera, from what moves in them.

    python -m streamsplat_edge.training.data.ground_depth CACHE

No network and no measurement: where the camera stands still, the median over time is the background, and what
differs from it moves. The background is taken for a ground that comes nearer towards the lower edge, and a
moving thing for something upright that stands on it: it has one depth, that of the ground at its lowest
point, and a little less than that so that it stands out. That is wrong in many places and right on average,
which is all the small presets ask for: it teaches them that people and cars are one thing each, before a
background. Depth that a clip has already is left as it is, and `data.depth` replaces this one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from streamsplat_edge.runtime.errors import StreamSplatError
from streamsplat_edge.runtime.video.output import write_bytes

from .arrays import Growing
from .reader import Cache, Clip, read_index
from .sample import F16, F32, U8, Bool

ORIGIN = "ground plane"
FARTHEST, NEAREST = 0.1, 0.6  # inverse depth of the ground at the upper and at the lower edge
STANDS_OUT = 0.12
_SAMPLES = 41  # frames of a shot whose median is its background
_DIFFERENT = 18  # grey levels by which what moves differs from the background
# A camera stands still where half of the frames differ from the background in less than the first share of
# their pixels, and nine tenths in less than the second.
_STILL = (0.15, 0.35)
_SMALLEST, _LARGEST = 0.002, 0.6  # share of the image that one moving thing covers
_MOST_THINGS = 8


def background(frames: U8) -> U8 | None:
    """The background uint8 [H, W, 3] of a shot [F, H, W, 3]; None where the camera moves."""
    rows = np.unique(np.linspace(0, len(frames) - 1, _SAMPLES).round().astype(int))
    some = frames[rows]
    middle: U8 = np.median(some, axis=0).astype(np.uint8)
    shares = np.array([moving(frame, middle).mean() for frame in some])
    usual, most = np.quantile(shares, (0.5, 0.9))
    return middle if usual < _STILL[0] and most < _STILL[1] else None


def moving(frame: U8, middle: U8) -> Bool:
    """Where a frame differs from the background, bool [H, W]."""
    difference = cv2.blur(cv2.absdiff(frame, middle).max(axis=2), (3, 3))
    mask = (difference > _DIFFERENT).astype(np.uint8)
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    closed: Bool = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8)) > 0
    return closed


def ground_depth(mask: Bool) -> F32 | None:
    """Inverse depth float32 [H, W] of a frame in which `mask` moves.

    None where nothing stands out, or so much that it is not things that move (leaves, water, the light).
    """
    height, width = mask.shape
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    ramp = np.linspace(FARTHEST, NEAREST, height, dtype=np.float32)
    depth = np.repeat(ramp[:, None], width, axis=1)
    things = []
    for number in range(1, count):
        share = stats[number, cv2.CC_STAT_AREA] / mask.size
        if _SMALLEST <= share <= _LARGEST:
            foot = stats[number, cv2.CC_STAT_TOP] + stats[number, cv2.CC_STAT_HEIGHT] - 1
            things.append((int(foot), number))
    if not 0 < len(things) <= _MOST_THINGS:
        return None
    for foot, number in sorted(things):  # nearer things cover farther ones
        # The hull: of a face that turns only the outline differs from the background.
        hull = cv2.convexHull(np.argwhere(labels == number)[:, ::-1].astype(np.int32))
        cv2.fillConvexPoly(depth, hull, float(ramp[foot] + STANDS_OUT))
    return depth


def add_ground_depth(cache_dir: str | Path, *, progress: bool = True) -> list[str]:
    """Make depth for all train clips without any that have a shot of a still camera; their names.

    Raises:
        InputError: no cache.
        OutputError: the cache cannot be written; its index is untouched.
    """
    root = Path(cache_dir)
    cache, (index, _) = Cache(root), read_index(root)
    entries: dict[str, dict[str, Any]] = {entry["name"]: entry for entry in index["clips"]}
    todo = [clip for clip in cache.split("train") if clip.depth_path is None]
    for clip in tqdm(todo, disable=not progress, desc="ground depth", unit="clip"):
        depth = _label(root, clip)
        if depth is not None:
            entries[clip.name]["depth"] = depth
    write_bytes(root / "index.json", json.dumps(index).encode())
    return [clip.name for clip in todo if "depth" in entries[clip.name]]


def _label(root: Path, clip: Clip) -> dict[str, Any] | None:
    """Write the depth of a clip; its entry in the index, or None where nothing is known."""
    backgrounds: NDArray[np.int64] = np.full(len(clip), -1, np.int64)
    found: list[U8] = []
    for shot in clip.shots:
        middle = background(clip.frames[shot.start : shot.stop])
        if middle is not None:
            backgrounds[shot.start : shot.stop] = len(found)
            found.append(middle)
    if not found:
        return None
    unknown: list[int] = []
    target = root / f"{clip.name}.depth.npy"
    nothing: F16 = np.zeros(clip.frames.shape[1:3], np.float16)
    with Growing(root / f"{clip.name}.rawdepth.tmp", nothing.shape, np.float16) as rows:
        for row, which in enumerate(backgrounds.tolist()):
            depth = ground_depth(moving(clip.frames[row], found[which])) if which >= 0 else None
            if depth is None:
                unknown.append(row)
            rows.append(nothing if depth is None else depth.astype(np.float16))
        if len(unknown) == len(clip):
            return None
        rows.save_as(target)
    return {"file": target.name, "unknown": unknown, "origin": ORIGIN}


def main(argv: list[str] | None = None) -> int:
    """Command line: label a cache and say what was labelled."""
    parser = argparse.ArgumentParser(description="rough depth for clips of a still camera")
    parser.add_argument("cache", type=Path, help="made by python -m streamsplat_edge.training.data.cache")
    arguments = parser.parse_args(argv)
    try:
        names = add_ground_depth(arguments.cache)
    except StreamSplatError as error:
        parser.error(str(error))
    print(f"{len(names)} clips have depth from what moves in them: {', '.join(names) or 'none'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
