"""Writes what `--save` asks for while the frames of a stream go by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np

from ..bundle_schema import ModelConfig
from ..errors import OutputError
from ..observers import Observer, Spawned
from ..pipeline import Rendered
from ..rasterizer import DepthMapping
from ..stream import Stream
from ..video.output import write_bytes
from ..video.png import encode_png
from .births import PairWindows
from .cloud import Cloud, Picture
from .container import ContainerWriter
from .depth_image import encode_depth_exr, encode_depth_png, visible_depth
from .key_frame import KeyFrame
from .ply import encode_ply
from .splat import encode_splat
from .targets import Kind, NumberedWriter, Target
from .tracks import TracksWriter

Image = np.ndarray  # uint8 RGB [H, W, 3]
_LAST_FRAME_SECONDS = 1 / 25  # how long the last frame is shown where it is the only one


@dataclass
class Shot:
    """One rendered frame with what savers may ask of it.

    Attributes:
        rendered: the frame. stream: at the frame's interval.
        novel: renders the novel view. picture: see `cloud`.
    """

    rendered: Rendered
    stream: Stream
    novel: Callable[[], Image]
    picture: Picture

    @property
    def time(self) -> float:
        return self.rendered.source.timestamp

    @cached_property
    def cloud(self) -> Cloud:
        splats = self.stream.scene.splats(self.time)
        return Cloud.from_splats(splats, self.picture, time=self.time)

    @cached_property
    def depth(self) -> np.ndarray:
        frame = self.rendered.frame
        return np.asarray(visible_depth(frame.expected_depth, frame.alpha))


class Saver:
    """Takes key frames and frames, then `close` (completes files) or `abort` (drops what is not complete)."""

    def key_frame(self, key: KeyFrame) -> None:
        """A key frame, before the frames of its pair. Its arrays are valid during the call."""

    def add(self, shot: Shot) -> None:
        """A frame."""

    def close(self) -> None:
        """Nothing more will come."""

    def abort(self) -> None:
        """Something failed."""


class NumberedFiles(Saver):
    """A file per frame, complete as soon as it is there; an interrupted run keeps those."""

    def __init__(self, target: Target, encode: Callable[[Shot], bytes]) -> None:
        self._files, self._encode = NumberedWriter(target), encode

    def add(self, shot: Shot) -> None:
        self._files.write(self._encode(shot))


class LastMoment(Saver):
    """One file, of the last frame."""

    def __init__(self, target: Target, encode: Callable[[Shot], bytes]) -> None:
        self._target, self._encode = target, encode
        self._last: Shot | None = None

    def add(self, shot: Shot) -> None:
        self._last = shot

    def close(self) -> None:
        """The stream still is at the interval of its last frame."""
        if self._last is not None:
            write_bytes(self._target.path, self._encode(self._last))
            self._last = None

    def abort(self) -> None:
        self._last = None


class TracksSaver(Saver):
    """All key frames and pairs."""

    def __init__(self, target: Target, mapping: DepthMapping, picture: Picture) -> None:
        self._writer = TracksWriter(target.path, depth_mapping=mapping, picture=picture)

    def key_frame(self, key: KeyFrame) -> None:
        self._writer.add_key_frame(key)

    def add(self, shot: Shot) -> None:
        self._writer.add_frame_time(shot.time)

    def close(self) -> None:
        self._writer.close()

    def abort(self) -> None:
        self._writer.abort()


class ContainerSaver(Saver):
    """A `.4dgs` file."""

    def __init__(self, target: Target, mapping: DepthMapping, picture: Picture) -> None:
        self._windows = PairWindows(ContainerWriter(target.path, picture), mapping, picture)
        self._last: float | None = None
        self._frame_seconds = _LAST_FRAME_SECONDS

    def key_frame(self, key: KeyFrame) -> None:
        self._windows.add(key)

    def add(self, shot: Shot) -> None:
        if self._last is not None:
            self._frame_seconds = shot.time - self._last
        self._last = shot.time

    def close(self) -> None:
        """The last frame is shown as long as the one before it."""
        if self._last is not None:
            self._windows.close(self._last + self._frame_seconds)
        else:
            self._windows.abort()

    def abort(self) -> None:
        self._windows.abort()


_ENCODERS: dict[Kind, Callable[[Shot], bytes]] = {
    "picture": lambda shot: encode_png(shot.rendered.frame.rgb, level=3),
    "novel": lambda shot: encode_png(shot.novel(), level=3),
    "ply": lambda shot: encode_ply(shot.cloud),
    "splat": lambda shot: encode_splat(shot.cloud),
}


def make_saver(target: Target, mapping: DepthMapping, picture: Picture) -> Saver:
    """The saver of a target. Its file is begun at once: a place that cannot be written to must be known."""
    if target.kind == "tracks":
        return TracksSaver(target, mapping, picture)
    if target.kind == "container":
        return ContainerSaver(target, mapping, picture)
    if target.kind == "depth":
        encode = encode_depth_exr if target.path.suffix.lower() == ".exr" else encode_depth_png
        return NumberedFiles(target, lambda shot: encode(shot.depth))
    encoder = _ENCODERS[target.kind]
    return NumberedFiles(target, encoder) if target.digits else LastMoment(target, encoder)


class Outputs(Observer):
    """All `--save` of one run: observes its pipeline. As a context manager: what was not closed is dropped.

    Args:
        targets: checked by `check_target`.
        model: of the stream. aspect: width of the input over its height.

    Raises:
        OutputError: a file cannot be begun.
    """

    def __init__(self, targets: Sequence[Target], model: ModelConfig, *, aspect: float) -> None:
        self._picture = Picture(model.width, model.height, aspect)
        mapping = cast(DepthMapping, model.depth_mapping)  # the schema allows no other words
        self._savers: list[Saver] = []
        try:
            for target in targets:
                self._savers.append(make_saver(target, mapping, self._picture))
        except BaseException:
            self.abort()
            raise

    def spawned(self, event: Spawned) -> None:
        """Of the pipeline: hands a key frame to every saver. OutputError where one could not store it."""
        key = KeyFrame.of(event)
        for saver in self._savers:
            saver.key_frame(key)

    def add(self, rendered: Rendered, stream: Stream, novel: Callable[[], Image]) -> None:
        """Hands a frame to every saver, while the stream is at its interval. Call for every frame of the run.

        Raises:
            OutputError: one could not store it.
        """
        shot = Shot(rendered, stream, novel, self._picture)
        for saver in self._savers:
            saver.add(shot)

    def close(self) -> None:
        """Completes everything; where one fails, the others are completed before its error is raised."""
        failed: OutputError | None = None
        while self._savers:
            saver = self._savers.pop(0)
            try:
                saver.close()
            except OutputError as error:
                failed = failed or error
            except BaseException:
                saver.abort()
                raise
        if failed is not None:
            raise failed

    def abort(self) -> None:
        """Drops what is not complete."""
        while self._savers:
            self._savers.pop().abort()

    def __enter__(self) -> Outputs:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()
