"""One clip into the cache: decoded, resized, cut into shots, rid of repeated frames, with its labels."""

from __future__ import annotations

import hashlib
import itertools
import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from streamsplat_edge.runtime.scene_cut import SceneCutDetector
from streamsplat_edge.runtime.video.output import write_bytes

from .arrays import Growing
from .labels import read_inverse_depth, read_mask
from .sample import U8
from .sources import Frames, RawFrame, Source, check_depth_count
from .stills import save_photo

# A frame repeats the previous kept one when nothing changed on average AND no small block changed: the second
# test keeps a small thing that moves in front of a still, noise-free background (units: grey levels of 255).
REPEAT_MEAN = 0.35
REPEAT_BLOCK = 1.6
MIN_SHOT = 2  # a shot of fewer kept frames carries no motion


def is_repeat(image: U8, previous: U8) -> bool:
    """Whether `image` shows the same as `previous` up to coding noise (both uint8 [H, W, 3])."""
    difference = cv2.absdiff(image, previous)
    if float(difference.mean()) >= REPEAT_MEAN:
        return False
    blocks = cv2.resize(
        difference, (difference.shape[1] // 8, difference.shape[0] // 8), interpolation=cv2.INTER_AREA
    )
    return float(blocks.mean(axis=2).max()) < REPEAT_BLOCK


def write_clip(source: Source, out: Path, height: int, width: int, texture: Path | None) -> dict[str, Any]:
    """Cache a clip and return its entry of the index; one already there from the same source is kept.

    Args:
        source: the clip.
        out: the cache directory.
        height, width: size of the frames in the cache, pixels.
        texture: where the clip's first frame is kept as a photograph, if at all.

    Raises:
        ValueError, OSError, FFmpegError: nothing can be decoded.
        InputError: its depth maps do not fit.
        OutputError: the cache cannot be written.
    """
    record = out / f"{source.name}.json"
    key = _key(source)
    kept = _finished(record, source, key, (height, width), texture)
    if kept is not None:
        return kept
    with ExitStack() as stack:
        writer = _ClipWriter(source, out, height, width, texture, stack)
        try:
            for frame in writer.frames:
                writer.add(frame)
        except (ValueError, av.error.FFmpegError) as error:
            writer.frames.damage = str(error)
        entry = writer.finish()
    if key is not None:
        entry["source"] = key
    write_bytes(record, json.dumps(entry).encode())
    return entry


def _key(source: Source) -> str | None:
    """What the entry of a source depends on, hashed; None for manifest clips: their shots tell them apart."""
    if source.crop is not None and source.depths is None:
        return None
    plain = replace(source, split="", info={})
    return hashlib.sha256(repr(plain).encode()).hexdigest()[:16]


def _finished(
    record: Path, source: Source, key: str | None, size: tuple[int, int], texture: Path | None
) -> dict[str, Any] | None:
    """The entry made earlier from the same source in this size, where its files are still there."""
    if not record.exists() or (texture is not None and not texture.exists()):
        return None
    try:
        entry: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        files = [entry["file"], *(entry[label]["file"] for label in ("depth", "mask") if label in entry)]
    except (ValueError, KeyError, TypeError):  # half a record is none
        return None
    same = entry.get("size") == list(size) and entry.get("source_shots") == source.shots
    if same and entry.get("source") == key and all((record.parent / name).exists() for name in files):
        return entry
    return None


class _ClipWriter:
    """Takes the frames of a source one after the other; `finish` names the files and makes the entry."""

    def __init__(
        self, source: Source, out: Path, height: int, width: int, texture: Path | None, stack: ExitStack
    ) -> None:
        self.source, self.out, self.height, self.width = source, out, height, width
        self.texture = texture
        self.frames = Frames(source)
        self._lookup = None if source.shots is None else _shot_lookup(source.shots, source.frames)
        self._cuts, self._shot = SceneCutDetector(), 0

        def growing(label: str, shape: tuple[int, ...], dtype: Any) -> Growing:
            return stack.enter_context(Growing(out / f"{source.name}.{label}.tmp", shape, dtype))

        self._images = growing("raw", (height, width, 3), np.uint8)
        self._depth = growing("rawdepth", (height, width), np.float16) if source.depths else None
        self._mask = growing("rawmask", (height, width), np.bool_) if source.masks else None
        self._no_depth: list[int] = []
        self._problems: list[dict[str, str]] = []
        self._rows: list[tuple[int, int, float | None]] = []  # shot, frame number, time
        self._repeated = self._decoded = 0
        self._previous: U8 | None = None

    def add(self, frame: RawFrame) -> None:
        """Keep a frame, unless it is outside all shots or repeats the one before."""
        self._decoded += 1
        shot = self._shot_of(frame)
        if shot < 0:
            return
        image = self._resized(frame.image)
        same_shot = bool(self._rows) and self._rows[-1][0] == shot
        if same_shot and self._previous is not None and is_repeat(image, self._previous):
            self._repeated += 1
            return
        if not self._rows and self.texture is not None:
            save_photo(frame.image, self.texture, 2 * self.height)
        self._images.append(image)
        self._add_labels(frame.place)
        self._rows.append((shot, frame.number, frame.time))
        self._previous = image

    def _shot_of(self, frame: RawFrame) -> int:
        if self._lookup is not None:
            return int(self._lookup[frame.place]) if frame.place < len(self._lookup) else -1
        self._shot += self._cuts.is_cut(frame.image)
        return self._shot

    def _resized(self, image: U8) -> U8:
        shrinks = image.shape[0] >= self.height and image.shape[1] >= self.width
        interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(image, (self.width, self.height), interpolation=interpolation), np.uint8)

    def _add_labels(self, place: int) -> None:
        size = self.height, self.width
        if self._mask is not None and self.source.masks is not None:
            mask = np.zeros(size, np.bool_)
            path = self.source.masks[place]
            if path is not None:
                try:
                    mask = read_mask(path, *size)
                except ValueError as error:
                    self._problem(path, error)
            self._mask.append(mask)
        if self._depth is not None and self.source.depths is not None:
            depth = np.zeros(size, np.float16)
            if place >= len(self.source.depths):  # of a damaged video; else `finish` refuses the number
                self._no_depth.append(len(self._rows))
            else:
                path = self.source.depths[place]
                try:
                    depth = read_inverse_depth(path, *size)
                except (ValueError, OSError) as error:
                    self._no_depth.append(len(self._rows))
                    self._problem(path, error)
            self._depth.append(depth)

    def _problem(self, path: Path, error: Exception) -> None:
        self._problems.append({"name": str(path), "reason": str(error)})

    def finish(self) -> dict[str, Any]:
        """Write the arrays; the entry of the index."""
        source, rows, damage = self.source, self._rows, self.frames.damage
        if not rows:
            raise ValueError(damage or "no frame decoded")
        if damage is None:
            check_depth_count(source, self._decoded)
        target = self.out / f"{source.name}.npy"
        self._images.save_as(target)
        numbers = np.array([row[1] for row in rows], np.int64)
        times = np.array([np.nan if row[2] is None else row[2] for row in rows], np.float64)
        from_file = bool(np.isfinite(times).all() and (np.diff(times) > 0).all())
        if not from_file:
            times = numbers / self.frames.fps
        entry: dict[str, Any] = {
            "name": source.name, "file": target.name, "split": source.split, "fps": self.frames.fps,
            "size": [self.height, self.width], "source_shots": source.shots,
            "shots": _shot_rows([row[0] for row in rows]),
            "numbers": numbers.tolist(), "times": times.tolist(),
            "info": {
                **source.info, "repeated": self._repeated,
                "times": "file" if from_file else "frame number / fps", "broken": damage,
            },
        }  # fmt: skip
        if source.span is not None:
            entry["span"] = source.span
        if self._depth is not None and len(self._no_depth) < len(rows):
            entry["depth"] = {
                "file": f"{source.name}.depth.npy",
                "unknown": self._no_depth,
                "origin": "files",
            }
            self._depth.save_as(self.out / entry["depth"]["file"])
        if self._mask is not None:
            entry["mask"] = {"file": f"{source.name}.mask.npy"}
            self._mask.save_as(self.out / entry["mask"]["file"])
        if self._problems:
            entry["problems"] = self._problems
        return entry


def _shot_lookup(shots: list[list[int]], frames: int) -> NDArray[np.int64]:
    """Shot number of every source frame, -1 outside all shots (credits, unusable parts)."""
    lookup = np.full(max([frames, *(stop for _, stop in shots)]), -1, np.int64)
    for number, (start, stop) in enumerate(shots):
        lookup[start:stop] = number
    return lookup


def _shot_rows(shot_of_row: list[int]) -> list[list[int]]:
    """Row ranges of equal shot number, without those too short to show motion."""
    edges = [
        0,
        *(i for i in range(1, len(shot_of_row)) if shot_of_row[i] != shot_of_row[i - 1]),
        len(shot_of_row),
    ]
    return [[a, b] for a, b in itertools.pairwise(edges) if b - a >= MIN_SHOT]
