"""Sequences from real clips, with pseudo labels for motion, and depth and masks where the cache has them.

A sequence is a window of kept frames inside one shot. Clips are drawn with weight sqrt(length), the talking
heads (`face_*`) together at most 10 % of the time; of three candidate windows the one with the most change is
taken. Clips of the published data sets follow the published rule instead (`Clip.span`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from streamsplat_edge.runtime.errors import InputError

from .augment import LightAugmentation
from .reader import Cache, Clip
from .sample import F16, F32, U8, Bool, Sample, pick_times

FACE_SHARE = 0.10
CANDIDATES = 3
MAX_GAP = 6
# More change than this (mean grey levels between the key frames) is a missed cut or a flash, not motion.
MAX_CHANGE = 55.0
# A window longer than this times its nominal length spans a freeze: its motion is not even in time.
MAX_STRETCH = 4.0


def dis_flow(first: U8, last: U8, preset: int = cv2.DISOPTICAL_FLOW_PRESET_MEDIUM) -> F32:
    """Dense optical flow float32 [H, W, 2] (pixels) from `first` to `last`, both uint8 [H, W, 3] RGB."""
    method = cv2.DISOpticalFlow.create(preset)
    a, b = cv2.cvtColor(first, cv2.COLOR_RGB2GRAY), cv2.cvtColor(last, cv2.COLOR_RGB2GRAY)
    return np.asarray(method.calc(a, b, np.zeros((*a.shape, 2), np.float32)), np.float32)


def pixel_grid(height: int, width: int) -> F32:
    """float32 [H, W, 2]: x, y of every pixel."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return np.stack([x, y], axis=-1)


def warp(image: NDArray[Any], flow: F32, border: int = cv2.BORDER_REPLICATE) -> NDArray[Any]:
    """Backward warp: result[p] = image[p + flow[p]], bilinear."""
    at = pixel_grid(*flow.shape[:2]) + flow
    return cv2.remap(image, at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderMode=border)


def consistency_mask(forward: F32, backward: F32) -> Bool:
    """bool [H, W]: pixels whose forward flow stays inside the image and is undone by the backward flow."""
    height, width = forward.shape[:2]
    target = pixel_grid(height, width) + forward
    inside = (target >= 0).all(axis=2) & (target[..., 0] <= width - 1) & (target[..., 1] <= height - 1)
    back = cv2.remap(
        backward, target[..., 0], target[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    error = ((forward + back) ** 2).sum(axis=2)
    scale = (forward**2).sum(axis=2) + (back**2).sum(axis=2)
    mask: Bool = inside & (error < 0.02 * scale + 0.5)
    return mask


class VideoSampler:
    """Draws sequences from the train clips of a cache.

    Args:
        cache: the media cache.
        clips: names to restrict to; default all train clips.
        augmented: run half of the sequences backwards and change all of them (`LightAugmentation`).

    Raises:
        InputError: a named clip is unknown or belongs to another split than train, or nothing is left to
            draw from.
    """

    def __init__(self, cache: Cache, clips: Sequence[str] | None = None, *, augmented: bool = True) -> None:
        by_name = {clip.name: clip for clip in cache.clips}
        for name in clips or ():
            if name not in by_name:
                raise InputError(f"clip {name} is not in {cache.root}.", "See index.json for the names.")
            if by_name[name].split != "train":
                raise InputError(
                    f"clip {name} belongs to the {by_name[name].split} split and must not be trained on.",
                    "Use only clips of the train split.",
                )
        chosen = [by_name[name] for name in clips] if clips else cache.split("train")
        self.clips = [clip for clip in chosen if clip.shots]
        if not self.clips:
            raise InputError(f"{cache.root} has no train clip with motion.", "Prepare the cache again.")
        self.height, self.width = cache.height, cache.width
        self.augmented = augmented
        self._longest = max(shot.stop - shot.start for clip in self.clips for shot in clip.shots)
        self.weights = clip_weights(self.clips)

    def check_frames(self, frames: int) -> None:
        """Raise InputError where no clip has a shot of that many frames, so that none could ever be drawn."""
        if frames > self._longest:
            raise InputError(
                f"No train clip has a shot of {frames} frames; the longest shot has {self._longest}.",
                "Ask for fewer frames, or add longer clips to the cache.",
            )

    def sample(self, rng: np.random.Generator, frames: int | None = None) -> Sample:
        """One sequence.

        Args:
            rng: all randomness comes from here.
            frames: T; default key-frame gap + 1. With fewer than the window has, frames in between are left
                out.

        Raises:
            InputError: no shot has that many frames.
        """
        clip, start, rows = self._window(rng, frames)
        if self.augmented and rng.random() < 0.5:
            rows = rows[::-1]
        times = np.abs(clip.times[rows] - clip.times[rows[0]])
        change = self._change(rng)
        images = change.images(clip.frames[rows])
        forward, backward = dis_flow(images[0], images[-1]), dis_flow(images[-1], images[0])
        shape = (len(rows), self.height, self.width)
        known = clip.depth_known(rows)
        return Sample(
            frames=images,
            times=(times / times[-1]).astype(np.float32),
            inv_depth=(
                np.zeros(shape, np.float16) if clip.inv_depth is None else change.depths(clip.inv_depth[rows])
            ),
            depth_valid=known,
            flow_fwd=forward.astype(np.float16),
            flow_bwd=backward.astype(np.float16),
            valid_fwd=consistency_mask(forward, backward),
            valid_bwd=consistency_mask(backward, forward),
            mask=np.zeros(shape, bool) if clip.masks is None else change.masks(clip.masks[rows]),
            source=f"{clip.name}@{start}",
        )

    def still(self, rng: np.random.Generator) -> tuple[U8, F16 | None]:
        """One augmented frame, uint8 [H, W, 3], and its inverse depth float16 [H, W] (None: not known)."""
        clip = self.clips[int(rng.choice(len(self.clips), p=self.weights))]
        shot = clip.shots[int(rng.choice(len(clip.shots), p=_shares([s.stop - s.start for s in clip.shots])))]
        row = int(rng.integers(shot.start, shot.stop))
        rows = np.array([row])
        change = self._change(rng)
        depth = None
        if clip.inv_depth is not None and clip.depth_known(rows):
            depth = change.depths(clip.inv_depth[rows])[0]
        return change.images(clip.frames[rows])[0], depth

    def _change(self, rng: np.random.Generator) -> LightAugmentation:
        size = self.height, self.width
        return LightAugmentation.draw(rng, *size) if self.augmented else LightAugmentation(*size)

    def _window(self, rng: np.random.Generator, frames: int | None) -> tuple[Clip, int, NDArray[np.int64]]:
        """Clip, first row and rows of a sequence."""
        least = 1 if frames is None else frames - 1
        self.check_frames(least + 1)
        while True:
            clip = self.clips[int(rng.choice(len(self.clips), p=self.weights))]
            if clip.span is not None:
                rows = _published_rows(rng, clip, frames)
                if rows is not None:
                    return clip, int(rows[0]), rows
                continue
            gap = int(rng.integers(least, max(MAX_GAP, least) + 1))
            # High frame rates hardly move from frame to frame: take every second one half of the time.
            step = 2 if clip.fps > 40 and rng.random() < 0.5 else 1
            shots = [shot for shot in clip.shots if shot.stop - shot.start > gap * step]
            if shots:
                break
        room = np.array([shot.stop - shot.start - gap * step for shot in shots], np.float64)
        best, best_change = 0, -1.0
        for _ in range(CANDIDATES):
            shot = shots[int(rng.choice(len(shots), p=room / room.sum()))]
            start = int(rng.integers(shot.start, shot.stop - gap * step))
            end = start + gap * step
            change = float(cv2.absdiff(clip.frames[start], clip.frames[end]).mean())
            stretched = (clip.times[end] - clip.times[start]) * clip.fps > MAX_STRETCH * gap * step
            if change > MAX_CHANGE or stretched:
                change = 0.0
            if change > best_change:
                best, best_change = start, change
        rows = best + step * pick_times(rng, gap + 1, gap + 1 if frames is None else frames)
        return clip, best, rows


def _published_rows(rng: np.random.Generator, clip: Clip, frames: int | None) -> NDArray[np.int64] | None:
    """Rows of a sequence by the published rule (REFERENCE.md section 6); None where no shot is long enough.

    From the `span` frames after the first, or as many as are needed or there, frames - 1 different ones are
    drawn; the last of them is the other key frame.
    """
    count = int(rng.integers(2, MAX_GAP + 2)) if frames is None else frames
    shots = [shot for shot in clip.shots if shot.stop - shot.start >= count]
    if not shots or clip.span is None:
        return None
    lengths = np.array([shot.stop - shot.start for shot in shots])
    shot = shots[int(rng.choice(len(shots), p=_shares(lengths.tolist())))]
    span = min(max(clip.span, count - 1), shot.stop - shot.start - 1)
    start = int(rng.integers(shot.start, shot.stop - span))
    later = np.sort(rng.permutation(np.arange(1, span + 1))[: count - 1])
    return start + np.concatenate([[0], later]).astype(np.int64)


def _shares(lengths: Sequence[int]) -> NDArray[np.float64]:
    weights = np.asarray(lengths, np.float64)
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


def clip_weights(clips: Sequence[Clip]) -> NDArray[np.float64]:
    """Probability per clip: sqrt of its length, with `face_*` clips together at most FACE_SHARE."""
    weights = np.sqrt([float(len(clip)) for clip in clips])
    face = np.array([clip.name.startswith("face_") for clip in clips])
    if face.any() and not face.all():
        most = FACE_SHARE / (1 - FACE_SHARE) * weights[~face].sum()
        weights[face] *= min(1.0, most / weights[face].sum())
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares
