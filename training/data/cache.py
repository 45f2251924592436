"""Media cache: clips, photographs and sprites decoded once into arrays the samplers can memory-map.

Layout of a cache directory (`prepare` writes it, `Cache` reads it):

    index.json                  what is there, with split, shots, real times; and what could not be read
    <clip>.npy                  uint8 [F, H, W, 3] RGB: the usable frames of a clip, shot after shot
    photos/<name>.npy           uint8 [h, w, 3] RGB, shorter side about 2 H
    sprites/<name>.npy          uint8 [h, w, 4] RGBA, straight alpha, longer side at most 160

Repeated frames (telecine, frame-rate conversion) are dropped, so a step of one row may be more than one
source frame: `times` holds the real time of every row and is what motion has to be measured against.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from streamsplat_edge.runtime.errors import InputError, StreamSplatError
from streamsplat_edge.runtime.video.output import output_error, write_bytes

U8 = NDArray[np.uint8]

FORMAT = "streamsplat-media-cache"
VERSION = 1
# A frame repeats the previous kept one when nothing changed on average AND no small block changed: the second
# test keeps a small thing that moves in front of a still, noise-free background (units: grey levels of 255).
REPEAT_MEAN = 0.35
REPEAT_BLOCK = 1.6
MAX_SPRITE = 160
MIN_SHOT = 2  # a shot of fewer kept frames carries no motion
_ENTRY = ("name", "file", "split", "fps", "crop", "shots", "frames")  # what a clip's manifest entry must have
_PREPARE_AGAIN = "Prepare the cache again."


@dataclass(frozen=True)
class Shot:
    """Rows [start, stop) of a clip's array that show one uncut shot."""

    start: int
    stop: int


@dataclass
class Clip:
    """One cached clip. `numbers` are source frame numbers, `times` seconds, both per row of the array."""

    name: str
    path: Path
    split: str
    fps: float
    shots: list[Shot]
    numbers: NDArray[np.int64]
    times: NDArray[np.float64]
    info: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.numbers)

    @cached_property
    def frames(self) -> U8:
        """uint8 [F, H, W, 3] RGB, memory-mapped read-only. InputError where the file is gone or damaged."""
        array = _load(self.path, mapped=True)
        if len(array) != len(self):
            raise InputError(
                f"{self.path} has {len(array)} frames, index.json says {len(self)}.", _PREPARE_AGAIN
            )
        return array


class Cache:
    """Reader of a cache directory.

    Attributes:
        height, width: size of all frames, pixels.
        clips: all clips; `split` picks.
        skipped: what could not be read when the cache was made: {"name", "reason"}.
        fingerprint: of the index: equal where names, shots, times and sizes are.

    Raises:
        InputError: there is no cache, or it has another format version.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        try:
            content = (self.root / "index.json").read_bytes()
            index = json.loads(content)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.root} is not a media cache ({error}).",
                "Make one with: python -m streamsplat_edge.training.data.cache MEDIA_DIR CACHE_DIR",
            ) from error
        known = isinstance(index, dict) and (index.get("format"), index.get("version")) == (FORMAT, VERSION)
        if not known:
            raise InputError(f"{self.root}/index.json has another format or version.", _PREPARE_AGAIN)
        self.fingerprint = hashlib.sha256(content).hexdigest()
        try:
            self.height: int = index["height"]
            self.width: int = index["width"]
            self.skipped: list[dict[str, str]] = index["skipped"]
            self.clips = [self._clip(entry) for entry in index["clips"]]
            self._photos: list[dict[str, str]] = index["photos"]
            self._sprites: list[dict[str, str]] = index["sprites"]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self.root}/index.json is damaged ({error!r}).", _PREPARE_AGAIN) from None

    def _clip(self, entry: dict[str, Any]) -> Clip:
        return Clip(
            name=entry["name"],
            path=self.root / entry["file"],
            split=entry["split"],
            fps=entry["fps"],
            shots=[Shot(*shot) for shot in entry["shots"]],
            numbers=np.asarray(entry["numbers"], np.int64),
            times=np.asarray(entry["times"], np.float64),
            info=entry["info"],
        )

    def split(self, name: str) -> list[Clip]:
        """The clips of one split ("train" or "eval")."""
        return [clip for clip in self.clips if clip.split == name]

    def photos(self, split: str) -> list[U8]:
        """All photographs of a split, uint8 [h, w, 3] RGB, in memory."""
        return [_load(self.root / p["file"]) for p in self._photos if p["split"] == split]

    def sprites(self) -> list[U8]:
        """All sprites (training only), uint8 [h, w, 4] RGBA with straight alpha, in memory."""
        return [_load(self.root / s["file"]) for s in self._sprites]


def _load(path: Path, mapped: bool = False) -> U8:
    try:
        array: U8 = np.load(path, mmap_mode="r" if mapped else None)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}).", _PREPARE_AGAIN) from None
    return array


def prepare(
    media_dir: str | Path, out_dir: str | Path, height: int = 144, width: int = 256, *, progress: bool = True
) -> Cache:
    """Decode a media folder (manifest.json, images.json, sprites/) into a cache directory.

    Clips are cropped and resized directly (aspect ignored, as the model does), by area averaging to shrink.
    What cannot be read is left out and listed in `Cache.skipped`; of a damaged clip the frames before the
    damage are kept, and its `info["broken"]` says so. Clips already in `out_dir` in this size are kept.

    Args:
        media_dir: folder of `manifest.json`; image list and sprites are optional.
        out_dir: cache directory, created when missing.
        height, width: frame size in the cache, pixels.
        progress: print a line per clip to stderr.

    Raises:
        InputError: no manifest, or entries that do not say what they must.
        OutputError: the cache cannot be written; clips finished before are kept for the next call.
    """
    media, out = Path(media_dir), Path(out_dir)
    manifest = _read_list(media / "manifest.json", _ENTRY)
    photos = _read_list(media / "images.json", ("file", "split")) if (media / "images.json").exists() else []
    try:
        for folder in (out, out / "photos", out / "sprites"):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(out, error) from error
    index: dict[str, Any] = {
        "format": FORMAT, "version": VERSION, "height": height, "width": width,
        "clips": [], "photos": [], "sprites": [], "skipped": [],
    }  # fmt: skip
    for entry in manifest:
        try:
            clip = _prepare_clip(media, out, entry, height, width)
        except (OSError, ValueError, av.error.FFmpegError) as error:
            index["skipped"].append({"name": entry["name"], "reason": str(error)})
            _say(progress, f"{entry['name']}: skipped, {error}")
            continue
        index["clips"].append(clip)
        info, frames = clip["info"], len(clip["numbers"])
        damage = f"; damaged ({info['broken']})" if info["broken"] else ""
        _say(
            progress,
            f"{clip['name']}: {frames} frames kept, {info['repeated']} repeated{damage}",
        )
    _prepare_photos(media, out, photos, index, short_side=2 * height)
    _prepare_sprites(media, out, index)
    write_bytes(out / "index.json", json.dumps(index).encode())
    return Cache(out)


def _read_list(path: Path, needed: tuple[str, ...]) -> list[dict[str, Any]]:
    """A JSON list of objects that have the `needed` fields, and no name twice."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}).", "Give the media folder.") from error
    if not isinstance(entries, list):
        raise InputError(f"{path} is not a list.", "docs/training.md describes the media folder.")
    names = set()
    for number, entry in enumerate(entries):
        missing = [field for field in needed if not isinstance(entry, dict) or field not in entry]
        if missing:
            raise InputError(f"{path}: entry {number} lacks {', '.join(missing)}.", "Add what is missing.")
        name = entry.get("name") or Path(entry["file"]).stem
        if name in names or Path(name).name != name:
            raise InputError(
                f"{path}: entry {number} is named {name!r}, which is taken or not a plain name.",
                "Every clip and photograph needs a file name of its own.",
            )
        names.add(name)
    return entries


def _say(progress: bool, text: str) -> None:
    if progress:
        print(text, file=sys.stderr, flush=True)


def _decode(
    path: Path, crop: tuple[int, int, int, int], height: int, width: int
) -> Iterator[tuple[U8, float | None]]:
    """Cropped and resized RGB frames with their time in seconds (None where the file gives none)."""
    x, y, w, h = crop
    interpolation = cv2.INTER_AREA if w >= width and h >= height else cv2.INTER_CUBIC
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("no video stream")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            image = frame.to_ndarray(format="rgb24")[y : y + h, x : x + w]
            if image.shape[:2] != (h, w):
                raise ValueError(f"crop {list(crop)} does not fit a frame of {frame.width}x{frame.height}")
            time = (
                None if frame.pts is None or frame.time_base is None else float(frame.pts * frame.time_base)
            )
            yield cv2.resize(image, (width, height), interpolation=interpolation), time


def is_repeat(image: U8, previous: U8) -> bool:
    """Whether `image` shows the same as `previous` up to coding noise (both uint8 [H, W, 3])."""
    difference = cv2.absdiff(image, previous)
    if float(difference.mean()) >= REPEAT_MEAN:
        return False
    blocks = cv2.resize(
        difference, (difference.shape[1] // 8, difference.shape[0] // 8), interpolation=cv2.INTER_AREA
    )
    return float(blocks.mean(axis=2).max()) < REPEAT_BLOCK


def _prepare_clip(media: Path, out: Path, entry: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    name, fps = entry["name"], float(entry["fps"])
    target = out / f"{name}.npy"
    record = out / f"{name}.json"
    if target.exists() and record.exists():
        kept: dict[str, Any] = json.loads(record.read_text())
        if kept.get("size") == [height, width] and kept.get("source_shots") == entry["shots"]:
            return kept
    crop = tuple(entry["crop"])
    shot_of = _shot_lookup(entry["shots"], entry["frames"])
    rows: list[tuple[int, int, float | None]] = []  # shot, frame number, time
    repeated, broken = 0, None
    # One pass with a growing file: the number of kept frames is only known at the end.
    raw = out / f"{name}.raw.tmp"
    try:
        with _writing(raw), raw.open("wb") as sink:
            previous, previous_shot = None, -1
            try:
                for number, (image, time) in enumerate(_decode(media / entry["file"], crop, height, width)):
                    shot = shot_of[number] if number < len(shot_of) else -1
                    if shot < 0:
                        continue
                    if shot == previous_shot and previous is not None and is_repeat(image, previous):
                        repeated += 1
                        continue
                    sink.write(np.ascontiguousarray(image).tobytes())
                    rows.append((shot, number, time))
                    previous, previous_shot = image, shot
            except (ValueError, av.error.FFmpegError) as error:
                broken = str(error)
        if not rows:
            raise ValueError(broken or "no frame decoded")
        _save(target, np.memmap(raw, np.uint8, "r", shape=(len(rows), height, width, 3)))
    finally:
        raw.unlink(missing_ok=True)
    numbers = np.array([row[1] for row in rows])
    times = np.array([np.nan if row[2] is None else row[2] for row in rows], np.float64)
    from_file = bool(np.isfinite(times).all() and (np.diff(times) > 0).all())
    if not from_file:
        times = numbers / fps
    result: dict[str, Any] = {
        "name": name, "file": target.name, "split": entry["split"], "fps": fps, "size": [height, width],
        "source_shots": entry["shots"], "shots": _shot_rows([row[0] for row in rows]),
        "numbers": numbers.tolist(), "times": times.tolist(),
        "info": {
            "licence": entry.get("licence", ""), "kind": entry.get("kind", ""), "repeated": repeated,
            "times": "file" if from_file else "frame number / fps", "broken": broken,
        },
    }  # fmt: skip
    write_bytes(record, json.dumps(result).encode())
    return result


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


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Errors of the system become OutputError: a full disk must not look like a clip that cannot be read."""
    try:
        yield
    except OSError as error:
        raise output_error(path, error) from error


def _save(path: Path, array: U8) -> None:
    temporary = path.with_suffix(".tmp")
    try:
        with _writing(path):
            with temporary.open("wb") as sink:
                np.save(sink, array)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _prepare_photos(
    media: Path, out: Path, entries: list[dict[str, Any]], index: dict[str, Any], short_side: int
) -> None:
    for entry in entries:
        name = Path(entry["file"]).stem
        image = cv2.imread(str(media / entry["file"]), cv2.IMREAD_COLOR)
        if image is None:
            index["skipped"].append({"name": entry["file"], "reason": "not a readable image"})
            continue
        h, w = image.shape[:2]
        scale = short_side / min(h, w)
        size = (max(short_side, round(w * scale)), max(short_side, round(h * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
        _save(out / "photos" / f"{name}.npy", np.ascontiguousarray(image[..., ::-1]))
        index["photos"].append({"name": name, "file": f"photos/{name}.npy", "split": entry["split"]})


def _prepare_sprites(media: Path, out: Path, index: dict[str, Any]) -> None:
    for path in sorted((media / "sprites").glob("*.png")):
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if image is None or image.ndim != 3 or image.shape[2] != 4 or image.dtype != np.uint8:
            index["skipped"].append({"name": path.name, "reason": "not an 8-bit RGBA image"})
            continue
        rows, columns = np.nonzero(image[..., 3] > 8)
        if len(rows) == 0:
            index["skipped"].append({"name": path.name, "reason": "fully transparent"})
            continue
        image = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        scale = min(1.0, MAX_SPRITE / max(image.shape[:2]))
        if scale < 1.0:
            # Averaged with premultiplied colour, or the hidden colour of transparent pixels bleeds into the
            # rim.
            alpha = image[..., 3:].astype(np.float32) / 255
            size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
            packed = np.concatenate([image[..., :3] * alpha, alpha * 255], axis=2)
            packed = np.asarray(cv2.resize(packed, size, interpolation=cv2.INTER_AREA), np.float32)
            packed[..., :3] /= np.maximum(packed[..., 3:] / 255, 1e-3)
            image = np.clip(packed + 0.5, 0, 255).astype(np.uint8)
        _save(out / "sprites" / f"{path.stem}.npy", np.ascontiguousarray(image[..., [2, 1, 0, 3]]))
        index["sprites"].append({"name": path.stem, "file": f"sprites/{path.stem}.npy"})


def main(argv: list[str] | None = None) -> int:
    """Command line: prepare a cache and say what is in it."""
    parser = argparse.ArgumentParser(description="decode a media folder into a training cache")
    parser.add_argument("media_dir", type=Path)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--height", type=int, default=144)
    parser.add_argument("--width", type=int, default=256)
    arguments = parser.parse_args(argv)
    try:
        cache = prepare(arguments.media_dir, arguments.out_dir, arguments.height, arguments.width)
    except StreamSplatError as error:
        parser.error(str(error))
    for split in ("train", "eval"):
        clips = cache.split(split)
        photos = len(cache.photos(split))
        print(f"{split}: {len(clips)} clips, {sum(map(len, clips))} frames, {photos} photographs")
    print(f"{len(cache.sprites())} sprites, {len(cache.skipped)} skipped")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
