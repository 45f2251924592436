"""What `soak` looks at in every frame, and what it keeps between calls."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.compose import psnr
from ..runtime.errors import InputError
from ..runtime.pipeline import Rendered
from ..runtime.preprocess import DepthRange, Resizer
from ..runtime.stream import Stream
from ..runtime.video import VideoFrame, open_video, write_bytes
from .memory import Samples

MINUTE = 60.0
# The running range of depth forgets by a factor of e^30, more than a double holds.
SETTLE_SECONDS = 30 * DepthRange.RELAX_SECONDS


class Endless:
    """The first frames of a clip, decoded once and played to and fro without end, at increasing times.

    One lap is `2 * (len - 1)` frames. Memory of the input is constant.
    """

    def __init__(self, uri: str, frames: int) -> None:
        with open_video(uri) as reader:
            if reader.live:
                raise InputError(f"{uri} is a live source.", "Pass a recording: its passes are compared.")
            self.pictures = [frame.image for _, frame in zip(range(frames), reader, strict=False)]
            self.period = 1.0 / float(reader.rate)
        if len(self.pictures) < 2:
            raise InputError(f"{uri} has {len(self.pictures)} frames.", "Pass a clip of two or more.")
        self.lap = 2 * (len(self.pictures) - 1)

    def place(self, index: int) -> int:
        """Which picture the frame `index` shows."""
        at = index % self.lap
        return at if at < len(self.pictures) else self.lap - at

    def play(self, start: int, count: int) -> Iterator[VideoFrame]:
        for index in range(start, start + count):
            yield VideoFrame(self.pictures[self.place(index)], (index - start) * self.period, index - start)


@dataclass
class Piece:
    """One process's share of the run: memory by frame (MiB), and seconds by wall clock."""

    start: int
    frames: int = 0
    seconds: float = 0.0
    memory: list[list[float]] = field(default_factory=list)
    gaussians: dict[str, int] = field(default_factory=dict)


@dataclass
class State:
    """What is kept between calls.

    Attributes:
        key: settings that must not change. done: frames.
        minutes: sum and count of PSNR per minute of the stream, of key frames and of frames in between.
        differs_max, compared: largest difference of repeated moments, in levels, and how many there were.
    """

    key: dict[str, Any]
    done: int = 0
    pieces: list[Piece] = field(default_factory=list)
    minutes: list[list[float]] = field(default_factory=list)
    differs_max: int = 0
    compared: int = 0
    violations: list[str] = field(default_factory=list)

    @staticmethod
    def load(path: Path | None, key: dict[str, Any]) -> State:
        """Raises InputError where the file belongs to another run."""
        if path is None or not path.exists():
            return State(key)
        try:
            values = json.loads(path.read_text())
            pieces = [Piece(**piece) for piece in values.pop("pieces")]
            state = State(**values, pieces=pieces)
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}: is no state of a soak run ({error}).", "Remove it.") from error
        if state.key != key:
            raise InputError(
                f"{path}: belongs to a run with other settings.", "Remove it, or use its settings."
            )
        return state

    def save(self, path: Path | None) -> None:
        if path is not None:
            write_bytes(path, json.dumps(asdict(self)).encode())


class Watch:
    """Checks every rendered frame of one piece and adds to the state."""

    def __init__(self, state: State, source: Endless, stream: Stream, every: int) -> None:
        self.state, self.source, self.stream = state, source, stream
        self.memory = Samples(every)
        self.piece = Piece(state.done)
        state.pieces.append(self.piece)
        model = stream.model
        self._resizer = Resizer(model.height, model.width)
        self._planes = np.zeros((3, model.height, model.width), np.float32)
        self._truth: list[np.ndarray] = []
        for picture in source.pictures:
            self._resizer.into(picture, self._planes)
            self._truth.append(np.rint(self._planes.transpose(1, 2, 0) * np.float32(255)).astype(np.uint8))
        # After so many frames, key frames fall on the same pictures again.
        self.round = math.lcm(source.lap, model.key_frame_gap)
        rounds = SETTLE_SECONDS / source.period / self.round if "depth" in stream.bundle.stage_names else 0
        self.settled = math.ceil(rounds) * self.round
        self._first: dict[int, np.ndarray] = {}
        self._differences: list[int] = []  # of the pair under way
        self._newest_id = -1
        self._spawned = self._retired = 0

    def check(self, rendered: Rendered) -> None:
        piece, index = self.piece, rendered.source.index
        self._require(index == piece.frames, f"frame {index} came as number {piece.frames}")
        self._check_gaussians(rendered)
        absolute = piece.start + index
        self._add_quality(absolute, rendered)
        self._compare(index, rendered.frame.rgb)
        piece.frames += 1
        self.state.done += 1
        self.memory.add(piece.frames)

    def _check_gaussians(self, rendered: Rendered) -> None:
        count, index = self.stream.model.gaussians, rendered.source.index
        stats = rendered.frame.stats
        for push in rendered.pushes:
            self._spawned += push.spawned
            self._retired += push.retired
            first = push.key_frame * count
            self._require(first > self._newest_id, f"frame {index}: the ids from {first} on are not new")
            self._newest_id = first + count - 1
        if rendered.pushes:  # the ids are those after the last of them
            ids = self.stream.lifecycle.ids
            exact = len(np.unique(ids)) == len(ids) == rendered.pushes[-1].alive
            self._require(exact, f"frame {index}: ids repeat")
        life, shown = stats.lifecycle, stats.render
        culled = sum(v for name, v in vars(shown).items() if name.startswith("culled_"))
        self._require(
            life.spawned_total == self._spawned and life.retired_total == self._retired,
            f"frame {index}: {life.spawned_total} spawned and {life.retired_total} retired in all, "
            f"{self._spawned} and {self._retired} counted",
        )
        alive = self._spawned - self._retired
        self._require(life.alive == alive <= 2 * count, f"frame {index}: {life.alive} alive, not {alive}")
        self._require(
            shown.rendered + culled == life.alive,
            f"frame {index}: {shown.rendered} rendered and {culled} culled of {life.alive}",
        )

    def _require(self, holds: bool, message: str) -> None:
        if not holds and len(self.state.violations) < 100:
            self.state.violations.append(message)

    def _add_quality(self, absolute: int, rendered: Rendered) -> None:
        minute = int(absolute * self.source.period / MINUTE)
        while len(self.state.minutes) <= minute:
            self.state.minutes.append([0.0, 0, 0.0, 0])
        sums = self.state.minutes[minute]
        at = 0 if rendered.is_key else 2
        sums[at] += min(100.0, psnr(rendered.frame.rgb, self._truth[self.source.place(absolute)]))
        sums[at + 1] += 1

    def _compare(self, index: int, rgb: np.ndarray) -> None:
        """With the same moment of the first round of this piece after the depth range has settled.

        Left out: the first pair, which has no key frame before it, and the pair at the end, which may be
        shorter: differences count once the key frame that ends a pair of full length has come.
        """
        gap = self.stream.model.key_frame_gap
        if index < self.settled + self.round:
            if index > gap and index >= self.settled:
                self._first[index % self.round] = rgb
            return
        before = self._first.get(index % self.round)
        if before is not None:
            self._differences.append(int(np.abs(rgb.astype(np.int16) - before).max()))
        if index % gap == 0:
            self.state.differs_max = max(self.state.differs_max, *self._differences, 0)
            self.state.compared += len(self._differences)
            self._differences.clear()
