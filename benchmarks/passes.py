"""Timed passes over a clip, for the benchmarks of the whole chain: as fast as possible, and paced.

Nothing is written or shown inside the clock, and no sample is removed. The rendered images are kept and
compared with the clip after the clock has stopped, so speed and quality are of the same run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from ..commands import report
from ..runtime.compose import psnr
from ..runtime.errors import InputError
from ..runtime.pipeline import Pipeline, Rendered, SourceFrame
from ..runtime.preprocess import Resizer
from ..runtime.sources import parse_uri
from ..runtime.stream import Stream
from ..runtime.timing import LatencyRecorder, summarise
from ..runtime.video import open_video

CV_LIMIT = 0.025  # LESSONS: above this coefficient of variation a mean is not a steady value
INSIDE_THE_CLOCK = (
    "decode, scene cut test, resize, all stages, lifecycle, render to 8-bit RGB "
    "and float depth. Outside: loading, warm-up, PSNR. No output file is written"
)
MODE = "synchronous; decoding runs ahead in a thread"
_COLUMNS = ("min", "p50", "p90", "p95", "p99", "max", "mean", "std")


class Clip:
    """The input, opened anew for every pass.

    Args:
        uri: video file or folder of images; the attribute is what may be shown of it.
        frames: use only the first so many.
    """

    def __init__(self, uri: str, frames: int | None) -> None:
        self._opened, self.uri = uri, parse_uri(uri).shown
        self.limit = frames
        with open_video(uri) as reader:
            if reader.live:
                raise InputError(f"{self.uri} is a camera.", "Pass a file, so that the run can be repeated.")
            self.width, self.height, self.rate = reader.width, reader.height, float(reader.rate)
            self.estimate = reader.frames_estimate

    def __iter__(self) -> Iterator[SourceFrame]:
        with open_video(self._opened) as reader:
            for number, frame in enumerate(reader):
                if number == self.limit:
                    return
                yield frame
            if reader.truncated:
                print(f"warning: {self.uri}: {reader.truncated}", file=sys.stderr)


class Paced:
    """Hands out frames at a fixed rate, as a camera does: frame i never before start + i / fps seconds.

    `captured` holds when each frame (by number) was due, in perf_counter seconds.
    """

    def __init__(self, frames: Iterable[SourceFrame], fps: float) -> None:
        self._frames = frames
        self._fps = fps
        self.captured: dict[int, float] = {}

    def __iter__(self) -> Iterator[SourceFrame]:
        start: float | None = None
        for number, frame in enumerate(self._frames):
            start = time.perf_counter() if start is None else start
            due = start + number / self._fps
            time.sleep(max(0.0, due - time.perf_counter()))
            self.captured[frame.index] = due
            yield frame


@dataclass
class Kept:
    """What is kept of a rendered frame until the clock has stopped."""

    rgb: np.ndarray  # uint8 [H, W, 3]
    is_key: bool


def free_running(
    clip: Clip,
    stream: Stream,
    gap: int | None,
    *,
    pictures: np.ndarray | None = None,
    after: Callable[[Rendered], None] | None = None,
    recorder: LatencyRecorder | None = None,
) -> tuple[dict[str, Any], dict[int, Kept]]:
    """One timed pass as fast as possible: its results, and the images by frame number.

    Args:
        pictures: uint8 [frames, H, W, 3] to copy the images into, so that keeping them takes no new memory.
        after: called with each frame, inside the clock.
        recorder: where latencies go; None is a new one.
    """
    recorder = LatencyRecorder() if recorder is None else recorder
    pipeline = Pipeline(clip, stream, gap=gap, recorder=recorder)
    kept: dict[int, Kept] = {}
    cpu = time.process_time()
    with (
        closing(pipeline.frames()) as frames,
        tqdm(total=clip.limit or clip.estimate, unit="frame", delay=2.0, leave=False) as bar,
    ):
        for rendered in frames:
            rgb = rendered.frame.rgb
            if pictures is not None:
                place = pictures[rendered.source.index]
                np.copyto(place, rgb)
                rgb = place
            kept[rendered.source.index] = Kept(rgb, rendered.is_key)
            if after is not None:
                after(rendered)
            bar.update()
    cpu = time.process_time() - cpu
    totals = pipeline.report()
    if totals.frames == 0:
        raise InputError(f"{clip.uri}: holds no frame.", "Pass a clip of at least two frames.")
    chain = sum(float(recorder.samples(stage).sum()) for stage in report.CHAIN)
    results = {
        "frames": {"total": totals.frames, "key": totals.key_frames, "cuts": totals.cuts},
        "throughput": {
            "seconds": totals.seconds,
            "fps": totals.fps,
            "chain_fps": 1e3 * totals.frames / chain,
            "cpu_cores_busy": cpu / totals.seconds,
            "definition": "fps: first decode to last frame by wall clock; chain_fps: frames over the time "
            "spent in " + ", ".join(report.CHAIN),
        },
        "latency_ms": totals.latencies_ms,
        "gaussians": {
            "peak_alive": totals.peak_alive,
            "rendered_per_frame": totals.rendered / totals.frames,
            "tile_pairs_per_frame": totals.pairs / totals.frames,
            "culled": totals.culled,
        },
        "samples_ms": {stage: recorder.samples(stage).round(4).tolist() for stage in recorder.stages},
    }
    return results, kept


def paced(clip: Clip, stream: Stream, gap: int | None, fps: float) -> dict[str, Any]:
    """One pass with frames arriving at `fps`.

    A frame is late when it is ready more than one frame interval after the earliest moment it could be: the
    arrival of the key frame that ends its pair, at most `gap` frames after its own.
    """
    source = Paced(clip, fps)
    pipeline = Pipeline(source, stream, gap=gap, live=True, recorder=LatencyRecorder())
    allowed = (pipeline.gap + 1) / fps * 1e3
    waits: list[float] = []
    with closing(pipeline.frames()) as frames:
        for rendered in frames:
            waits.append((time.perf_counter() - source.captured[rendered.source.index]) * 1e3)
    totals = pipeline.report()
    return {
        "fps": fps,
        "frames": totals.frames,
        "dropped": totals.dropped,
        "late": sum(wait > allowed for wait in waits),
        "allowed_ms": allowed,
        "capture_to_present_ms": summarise(np.array(waits)),
        "samples_ms": [round(wait, 4) for wait in waits],
    }


def truths(clip: Clip, kept: dict[int, Kept], height: int, width: int) -> Iterator[tuple[Kept, np.ndarray]]:
    """Each kept image with what it should be: the clip's frame at model resolution, uint8 [H, W, 3]."""
    resizer = Resizer(height, width)
    planes = np.zeros((3, height, width), np.float32)
    for source in clip:
        if source.index in kept:
            resizer.into(source.image, planes)
            yield (
                kept[source.index],
                np.rint(planes.transpose(1, 2, 0) * np.float32(255)).astype(np.uint8),
            )


def quality(clip: Clip, kept: dict[int, Kept], height: int, width: int) -> dict[str, Any]:
    """PSNR of the kept images against the clip at model resolution."""
    result = report.Quality()
    for image, truth in truths(clip, kept, height, width):
        result.add(psnr(image.rgb, truth), image.is_key)
    return result.summary()


def unsteady(latencies: dict[str, dict[str, float]]) -> list[str]:
    """Stages whose coefficient of variation is above `CV_LIMIT`."""
    return [stage for stage, values in latencies.items() if values.get("cv", 0.0) > CV_LIMIT]


def latency_lines(latencies: dict[str, dict[str, float]]) -> list[str]:
    """Percentiles of every stage in milliseconds as text; then which of them are not steady."""
    lines = [f"{'ms':<20}" + "".join(f"{name:>8}" for name in _COLUMNS) + f"{'cv %':>7}{'count':>7}"]
    for stage in report.ordered(latencies):
        values = latencies[stage]
        if values.get("count"):
            numbers = "".join(f"{values[name]:>8.2f}" for name in _COLUMNS)
            lines.append(f"{stage:<20}{numbers}{100 * values['cv']:>7.1f}{values['count']:>7}")
    if names := unsteady(latencies):
        lines.append(f"cv above {100 * CV_LIMIT:g} %, not steady: {', '.join(names)}")
    return lines
