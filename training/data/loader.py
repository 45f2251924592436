"""Batches for training: real and synthetic sequences mixed, deterministic per (seed, step).

Every sample of step n draws from its own generator seeded with (seed, n, position), so a run resumed at step
n sees exactly what the uninterrupted one would have seen, whatever was made ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from streamsplat_edge.runtime.errors import InputError, StreamSplatError

from .augment import PublishedAugmentation
from .reader import Cache, Clip, Shot
from .sample import F16, U8, Sample
from .synthetic import SyntheticSampler
from .video import VideoSampler

T = TypeVar("T")
_TRIES = 1000  # draws from clips with depth, of whose frames some may have none
# The second word of the seed keeps the kinds of batches of one step apart.
SEQUENCES, STILLS, DEPTHS = 1, 2, 3


@dataclass
class Batch:
    """A batch of sequences; see `Sample` for the meaning of each field.

    frames uint8 [B,T,3,H,W]; times float32 [B,T]; inv_depth float16 [B,2,H,W] (first, last frame);
    depth_valid bool [B]; flow_fwd, flow_bwd float16 [B,2,H,W] (channel 0 = x, pixels); flow_valid bool
    [B,2,H,W] (fwd, bwd); mask bool [B,T,H,W]; source names [B].
    """

    frames: Tensor
    times: Tensor
    inv_depth: Tensor
    depth_valid: Tensor
    flow_fwd: Tensor
    flow_bwd: Tensor
    flow_valid: Tensor
    mask: Tensor
    source: list[str]


@dataclass
class Stills:
    """Single frames: images uint8 [B,3,H,W], inv_depth float16 [B,H,W] (0: unknown), depth_valid bool [B]."""

    images: Tensor
    inv_depth: Tensor
    depth_valid: Tensor


class Mixer:
    """Makes batches from a media cache.

    A cache without clips serves where every sequence is synthetic, one without photographs where none is;
    single frames are then drawn from what there is.

    Args:
        cache_dir: the cache, or its folder.
        synthetic_fraction: probability that a sequence is synthetic (single frames have a fixed mix).
        seed: of the whole run.
        augmentation: "light" flips, zooms and tints real clips; "published" treats everything as the
            published training did (`augment.PublishedAugmentation`) and nothing else.

    Raises:
        InputError: no cache, or nothing to train on in it.
    """

    def __init__(
        self,
        cache_dir: str | Path | Cache,
        synthetic_fraction: float = 0.5,
        seed: int = 0,
        augmentation: Literal["light", "published"] = "light",
    ) -> None:
        cache = cache_dir if isinstance(cache_dir, Cache) else Cache(cache_dir)
        self.height, self.width = cache.height, cache.width
        self.synthetic_fraction = synthetic_fraction
        self.seed = seed
        self.augmentation = augmentation
        self.video: VideoSampler | None = None
        self.synthetic: SyntheticSampler | None = None
        self.labelled: VideoSampler | None = None
        with_depth = [c.name for c in cache.split("train") if c.depth_path is not None and c.shots]
        if synthetic_fraction < 1 and with_depth:
            self.labelled = VideoSampler(cache, with_depth, augmented=augmentation == "light")
        if synthetic_fraction < 1 or cache.can_move("train"):
            self.video = VideoSampler(cache, augmented=augmentation == "light")
        if synthetic_fraction > 0 or cache.has_photos("train"):
            self.synthetic = SyntheticSampler.from_cache(cache)

    def check_frames(self, frames: int) -> None:
        """Raise InputError where clips are drawn from but none has a shot of that many frames."""
        if self.video is not None and self.synthetic_fraction < 1:
            self.video.check_frames(frames)

    def sequence(self, step: int, position: int, frames: int | None = None) -> Sample:
        """Sample `position` of the batch of `step`."""
        rng = np.random.default_rng([self.seed, SEQUENCES, step, position])
        synthetic = rng.random() < self.synthetic_fraction
        sampler = self.synthetic if synthetic else self.video
        assert sampler is not None, "the constructor made what the fraction asks for"
        sample = sampler.sample(rng, frames)
        if self.augmentation == "published":
            sample = PublishedAugmentation.draw(rng, self.height, self.width).sample(sample)
        return sample

    def batch(self, step: int, batch_size: int, frames: int | None = None, first: int = 0) -> Batch:
        """The batch of `step`. `frames` is T (None: 2..7 per step); the key-frame gap is T-1 to 6 frames.

        `first` is the position of its first sample: processes that share a batch make a part each.
        """
        if frames is None:
            frames = int(np.random.default_rng([self.seed, SEQUENCES, step]).integers(2, 8))
        samples = [self.sequence(step, i, frames) for i in range(first, first + batch_size)]
        return Batch(
            frames=_channels_first(np.stack([s.frames for s in samples])),
            times=torch.from_numpy(np.stack([s.times for s in samples])),
            inv_depth=torch.from_numpy(np.stack([s.inv_depth[[0, -1]] for s in samples])),
            depth_valid=torch.tensor([s.depth_valid for s in samples]),
            flow_fwd=_channels_first(np.stack([s.flow_fwd for s in samples])),
            flow_bwd=_channels_first(np.stack([s.flow_bwd for s in samples])),
            flow_valid=torch.from_numpy(np.stack([[s.valid_fwd, s.valid_bwd] for s in samples])),
            mask=torch.from_numpy(np.stack([s.mask for s in samples])),
            source=[s.source for s in samples],
        )

    def batch_stills(self, step: int, batch_size: int, first: int = 0) -> Stills:
        """Single frames for stage 1: 2/3 of videos, 1/4 synthetic with depth, the rest photographs.

        `first` is the position of its first sample, as of `batch`.
        """
        stills = [self._still(step, position) for position in range(first, first + batch_size)]
        nothing = np.zeros((self.height, self.width), np.float16)
        return Stills(
            _channels_first(np.stack([image for image, _ in stills])),
            torch.from_numpy(np.stack([nothing if depth is None else depth for _, depth in stills])),
            torch.tensor([depth is not None for _, depth in stills], dtype=torch.bool),
        )

    def batch_depths(self, step: int, batch_size: int, first: int = 0) -> Stills:
        """Single frames with known depth for stage "depth": `synthetic_fraction` of them synthetic, the rest
        frames of clips, where some have depth.

        `first` is the position of its first sample, as of `batch`.
        """
        stills = [self._labelled_still(step, position) for position in range(first, first + batch_size)]
        return Stills(
            _channels_first(np.stack([image for image, _ in stills])),
            torch.from_numpy(np.stack([depth for _, depth in stills])),
            torch.ones(batch_size, dtype=torch.bool),
        )

    def _labelled_still(self, step: int, position: int) -> tuple[U8, F16]:
        """A single frame, uint8 [H, W, 3], with its inverse depth float16 [H, W]."""
        rng = np.random.default_rng([self.seed, DEPTHS, step, position])
        if self.labelled is None or rng.random() < self.synthetic_fraction:
            if self.synthetic is None:
                raise InputError(
                    "No clip of the cache has depth, and synthetic frames are switched off.",
                    "Add depth (docs/data.md), or set synthetic to more than 0.",
                )
            image, exact = self.synthetic.still(rng)
            return image, exact.astype(np.float16)
        for _ in range(_TRIES):
            image, depth = self.labelled.still(rng)
            if depth is not None:
                return image, depth
        raise InputError(
            f"None of {_TRIES} frames drawn from the clips with depth has any.", "Prepare their depth again."
        )

    def _still(self, step: int, position: int) -> tuple[U8, F16 | None]:
        """A single frame, uint8 [H, W, 3], and its inverse depth float16 [H, W] (None: not known)."""
        rng = np.random.default_rng([self.seed, STILLS, step, position])
        kind = rng.random()
        if self.synthetic is None:
            kind *= 2 / 3
        elif self.video is None:
            kind = 2 / 3 + kind / 3
        depth: F16 | None = None
        if self.video is not None and kind < 2 / 3:
            image, depth = self.video.still(rng)
        else:
            assert self.synthetic is not None, "without it every frame is of a video"
            if kind < 2 / 3 + 1 / 4:
                image, exact = self.synthetic.still(rng)
                depth = exact.astype(np.float16)
            else:
                image = photo_crop(rng, self.synthetic.photos, self.height, self.width)
        if self.augmentation == "published":
            change = PublishedAugmentation.draw(rng, self.height, self.width)
            image = change.images(image[None])[0]
            depth = None if depth is None else change.depths(depth[None])[0]
        return image, depth


def _channels_first(array: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, -3)))


def photo_crop(rng: np.random.Generator, photos: list[U8], height: int, width: int) -> U8:
    """A random piece of a random photograph at the frame size, flipped half of the time."""
    photo = photos[int(rng.integers(len(photos)))]
    h, w = photo.shape[:2]
    zoom = rng.uniform(0.55, 1.0) * min(h / height, w / width)
    ch, cw = min(h, round(height * zoom)), min(w, round(width * zoom))
    y, x = int(rng.integers(h - ch + 1)), int(rng.integers(w - cw + 1))
    piece = cv2.resize(photo[y : y + ch, x : x + cw], (width, height), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(piece[:, ::-1] if rng.random() < 0.5 else piece)


class StepDataset(IterableDataset[T | StreamSplatError], Generic[T]):
    """`make(step)` for consecutive steps as a torch dataset, for background processes.

    `DataLoader(StepDataset(make, start, stop), batch_size=None, num_workers=1)` yields them in step order;
    several workers share the steps round robin, which DataLoader undoes. An error meant for people is yielded
    in place of the step it belongs to: raised here, DataLoader would hide its words in a traceback.
    """

    def __init__(self, make: Callable[[int], T], start: int, stop: int) -> None:
        super().__init__()
        self.make, self.start, self.stop = make, start, stop

    def __iter__(self) -> Iterator[T | StreamSplatError]:
        worker = get_worker_info()
        first, every = (0, 1) if worker is None else (worker.id, worker.num_workers)
        if worker is not None:
            cv2.setNumThreads(0)
        for step in range(self.start + first, self.stop, every):
            try:
                yield self.make(step)
            except StreamSplatError as error:
                yield error


@dataclass
class EvalShot:
    """One shot of an evaluation clip: frames uint8 [F,H,W,3], seconds [F], source frame numbers [F]."""

    clip: str
    shot: int
    frames: U8
    times: NDArray[np.float64]
    numbers: NDArray[np.int64]
    fps: float


def eval_clips(cache_dir: str | Path | Cache, split: str = "eval") -> Iterator[EvalShot]:
    """Every shot of every clip of the evaluation split, whole and in order."""
    cache = cache_dir if isinstance(cache_dir, Cache) else Cache(cache_dir)
    for clip in cache.split(split):
        for number, shot in enumerate(clip.shots):
            yield _eval_shot(clip, number, shot)


def _eval_shot(clip: Clip, number: int, shot: Shot) -> EvalShot:
    rows = slice(shot.start, shot.stop)
    return EvalShot(clip.name, number, clip.frames[rows], clip.times[rows], clip.numbers[rows], clip.fps)
