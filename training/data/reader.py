"""Reading a media cache, whose layout `cache` describes; arrays are memory-mapped when first used."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamsplat_edge.runtime.errors import InputError

from .arrays import read
from .sample import F16, U8, Bool

FORMAT = "streamsplat-media-cache"
VERSION = 1
PREPARE_AGAIN = "Prepare the cache again."


@dataclass(frozen=True)
class Shot:
    """Rows [start, stop) of a clip's array that show one uncut shot."""

    start: int
    stop: int


@dataclass
class Clip:
    """One cached clip.

    Attributes:
        numbers, times: source frame number and seconds of every row of the arrays.
        span: a sequence takes its later frames from the `span` rows after its first, as published for the
            data set the clip belongs to; None: the sampler's own rule.
        depth_path, mask_path: files of the labels, where there are any.
        no_depth: rows whose inverse depth is not known although others are.
    """

    name: str
    path: Path
    split: str
    fps: float
    shots: list[Shot]
    numbers: NDArray[np.int64]
    times: NDArray[np.float64]
    info: dict[str, Any] = field(default_factory=dict)
    span: int | None = None
    depth_path: Path | None = None
    mask_path: Path | None = None
    no_depth: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self.numbers)

    @cached_property
    def frames(self) -> U8:
        """uint8 [F, H, W, 3] RGB, memory-mapped read-only. InputError where the file is gone or damaged."""
        return self._mapped(self.path)

    @cached_property
    def inv_depth(self) -> F16 | None:
        """float16 [F, H, W] in [0, 1] per frame, larger = nearer, memory-mapped; None where there is none."""
        return None if self.depth_path is None else self._mapped(self.depth_path)

    @cached_property
    def masks(self) -> Bool | None:
        """bool [F, H, W], what moves by itself, memory-mapped; None where nothing was annotated."""
        return None if self.mask_path is None else self._mapped(self.mask_path)

    def depth_known(self, rows: NDArray[np.int64]) -> bool:
        """Whether the inverse depth of all these rows is known."""
        return self.depth_path is not None and self.no_depth.isdisjoint(rows.tolist())

    def _mapped(self, path: Path) -> NDArray[Any]:
        array = load(path, mapped=True)
        if len(array) != len(self):
            raise InputError(f"{path} has {len(array)} frames, index.json says {len(self)}.", PREPARE_AGAIN)
        return array


class Cache:
    """Reader of a cache directory.

    Attributes:
        height, width: size of all frames, pixels.
        clips: all clips; `split` picks.
        skipped: what could not be read when the cache was made: {"name", "reason"}.
        fingerprint: of the index: equal where names, shots, times, sizes and kinds of labels are.

    Raises:
        InputError: there is no cache, or it has another format version.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        index, content = read_index(self.root)
        self.fingerprint = hashlib.sha256(content).hexdigest()
        try:
            self.height: int = index["height"]
            self.width: int = index["width"]
            self.skipped: list[dict[str, str]] = index["skipped"]
            self.clips = [self._clip(entry) for entry in index["clips"]]
            self._photos: list[dict[str, str]] = index["photos"]
            self._sprites: list[dict[str, str]] = index["sprites"]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self.root}/index.json is damaged ({error!r}).", PREPARE_AGAIN) from None

    def _clip(self, entry: dict[str, Any]) -> Clip:
        depth, mask = entry.get("depth"), entry.get("mask")
        return Clip(
            name=entry["name"],
            path=self.root / entry["file"],
            split=entry["split"],
            fps=entry["fps"],
            shots=[Shot(*shot) for shot in entry["shots"]],
            numbers=np.asarray(entry["numbers"], np.int64),
            times=np.asarray(entry["times"], np.float64),
            info=entry["info"],
            span=entry.get("span"),
            depth_path=self.root / depth["file"] if depth else None,
            mask_path=self.root / mask["file"] if mask else None,
            no_depth=frozenset(depth["unknown"] if depth else ()),
        )

    def split(self, name: str) -> list[Clip]:
        """The clips of one split ("train" or "eval")."""
        return [clip for clip in self.clips if clip.split == name]

    def can_move(self, split: str) -> bool:
        """Whether a clip of the split has a shot to draw sequences from."""
        return any(clip.shots for clip in self.split(split))

    def has_photos(self, split: str) -> bool:
        """Whether there are photographs of the split."""
        return any(photo["split"] == split for photo in self._photos)

    def photos(self, split: str) -> list[U8]:
        """All photographs of a split, uint8 [h, w, 3] RGB, in memory."""
        return [load(self.root / p["file"]) for p in self._photos if p["split"] == split]

    def sprites(self) -> list[U8]:
        """All sprites (training only), uint8 [h, w, 4] RGBA with straight alpha, in memory."""
        return [load(self.root / s["file"]) for s in self._sprites]


def read_index(root: Path) -> tuple[dict[str, Any], bytes]:
    """The index of a cache and the bytes of its file. InputError where there is none of this version."""
    try:
        content = (root / "index.json").read_bytes()
        index = json.loads(content)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{root} is not a media cache ({error}).",
            "Make one with: python -m streamsplat_edge.training.data.cache FOLDER CACHE",
        ) from error
    if not isinstance(index, dict) or (index.get("format"), index.get("version")) != (FORMAT, VERSION):
        raise InputError(f"{root}/index.json has another format or version.", PREPARE_AGAIN)
    return index, content


def load(path: Path, mapped: bool = False) -> NDArray[Any]:
    """An array file of the cache. InputError where it is gone or damaged."""
    try:
        return read(path, mapped=mapped)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}).", PREPARE_AGAIN) from None
