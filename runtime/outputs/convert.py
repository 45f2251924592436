"""From one saved form to another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import cast

from ..errors import InputError
from ..rasterizer import DepthMapping
from ..video.output import write_bytes
from .births import PairWindows, births_of_cloud
from .container import ContainerWriter
from .ply import encode_ply
from .recording import SEQUENCE_RATE, Recording, TracksRecording, check_time
from .splat import encode_splat
from .targets import NumberedWriter, Target

MOMENTS_MAX = 10_000_000


def moments(recording: Recording, *, rate: float | None = None, at: float | None = None) -> list[float]:
    """The times to be written: `at` alone, or `rate` per second, or those of the recording's own frames.

    Raises:
        InputError: `at` is outside the recording, or there would be too many.
    """
    if at is not None:
        check_time(recording, at)
        return [at]
    if rate is None and recording.times is not None:
        return recording.times
    rate = SEQUENCE_RATE if rate is None else rate
    steps = (recording.last - recording.first) * rate
    if steps > MOMENTS_MAX:
        raise InputError(f"{steps:.0f} moments at {rate:g} per second.", "Use a lower --rate.")
    count = math.floor(steps + 1e-6) + 1  # 0.4 s at 10 per second are 3.9999 steps
    return [min(recording.first + i / rate, recording.last) for i in range(count)]


def convert(
    recording: Recording, target: Target, times: Sequence[float], *, exact: bool = True
) -> Iterator[int]:
    """Writes a recording as `target`; yields how many moments or key frames were done. Run it to its end.

    Args:
        recording: open. target: checked by `check_target`.
        times: see `moments`.
        exact: tracks become a `.4dgs` file key frame by key frame, with their motion; else moment by moment.

    Raises:
        InputError: the target cannot be made of this recording, or it is damaged.
        OutputError: it could not be stored.
    """
    if target.kind == "container":
        if exact and isinstance(recording, TracksRecording):
            return _pairs(recording, target)
        return _still_windows(recording, target, times)
    if target.kind not in ("ply", "splat"):
        raise InputError(f"{target.path}: cannot be made of Gaussians.", "Write .ply, .splat or .4dgs.")
    return _files(recording, target, times)


def _files(recording: Recording, target: Target, times: Sequence[float]) -> Iterator[int]:
    encode = encode_ply if target.kind == "ply" else encode_splat
    if not target.digits:
        if len(times) != 1:
            raise InputError(
                f"{target.path}: one file for {len(times)} moments.",
                "Choose one with --at SECONDS, or write numbered files: %05d in the name.",
            )
        write_bytes(target.path, encode(recording.at(times[0])))
        yield 1
        return
    files = NumberedWriter(target)
    for number, time in enumerate(times, 1):
        files.write(encode(recording.at(time)))
        yield number


def _pairs(recording: TracksRecording, target: Target) -> Iterator[int]:
    tracks = recording.tracks
    mapping = cast(DepthMapping, tracks.depth_mapping)
    windows = PairWindows(ContainerWriter(target.path, tracks.picture), mapping, tracks.picture)
    try:
        for number in range(len(tracks.times)):
            windows.add(tracks.key_frame(number))
            yield number + 1
        windows.close(recording.last + _frame_seconds(recording.times or []))
    except BaseException:
        windows.abort()
        raise


def _still_windows(recording: Recording, target: Target, times: Sequence[float]) -> Iterator[int]:
    """Every moment stands still until the next."""
    writer: ContainerWriter | None = None
    end = times[-1] + _frame_seconds(times)
    try:
        for number, (time, until) in enumerate(zip(times, [*times[1:], end], strict=True), 1):
            cloud = recording.at(time)
            writer = writer or ContainerWriter(target.path, cloud.picture)
            writer.add(births_of_cloud(cloud, time - times[0]), time - times[0], until - times[0])
            yield number
        if writer is not None:
            writer.close()
    except BaseException:
        if writer is not None:
            writer.abort()
        raise


def _frame_seconds(times: Sequence[float]) -> float:
    """How long the last frame is shown: as long as the one before."""
    return times[-1] - times[-2] if len(times) > 1 else 1 / SEQUENCE_RATE
