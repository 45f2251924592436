"""Passes over a clip with one thing varied at a time: size, key-frame gap, length, number of streams.

The pipeline is that of `bench`: `passes.free_running` for one stream, the scheduler of `run A B C` over forks
of one stream for several. Points take turns in rounds, so that what the machine does besides hits all alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ...commands import report
from ...runtime.bundle import Bundle
from ...runtime.errors import StreamSplatError
from ...runtime.pipeline import Pipeline
from ...runtime.schedule import Job, run_fairly
from ...runtime.stream import Stream, open_stream
from ...runtime.timing import LatencyRecorder
from ..memory import resident_mib
from ..passes import Clip, free_running

AXES = ("pixels", "gap", "frames", "streams")
MEASURED, NOT_RUN = "measured", "not run"
_WARM_UP_FRAMES = 8


@dataclass(frozen=True)
class Point:
    """What is run.

    Attributes:
        height, width: pixels of the model. gap: frames from key frame to key frame. frames: of the clip, per
            stream. streams: at the same time on the same engines.
    """

    height: int
    width: int
    gap: int
    frames: int
    streams: int


@dataclass(frozen=True)
class Sweep:
    """Points that differ from the base in one thing each; the base belongs to every axis."""

    base: Point
    sizes: tuple[tuple[int, int], ...]
    gaps: tuple[int, ...]
    lengths: tuple[int, ...]
    streams: tuple[int, ...]

    def points(self) -> Iterator[tuple[Point, list[str]]]:
        """Every point once, with the axes it belongs to."""
        found: dict[Point, list[str]] = {self.base: list(AXES)}
        varied = [("pixels", replace(self.base, height=h, width=w)) for h, w in self.sizes]
        varied += [("gap", replace(self.base, gap=gap)) for gap in self.gaps]
        varied += [("frames", replace(self.base, frames=frames)) for frames in self.lengths]
        varied += [("streams", replace(self.base, streams=count)) for count in self.streams]
        for axis, point in varied:
            axes = found.setdefault(point, [])
            if axis not in axes:
                axes.append(axis)
        yield from found.items()


def measure(
    sweep: Sweep, bundles: Mapping[tuple[int, int], Bundle | str], uri: str, rounds: int, threads: int
) -> list[dict[str, Any]]:
    """A row per point.

    Args:
        bundles: by (height, width); a text says why there is none.
        uri: clip. rounds: passes per point. threads: 0 is all cores.
    """
    longest = sum(1 for _ in Clip(uri, max(point.frames for point, _ in sweep.points())))
    rows: list[dict[str, Any]] = []
    ready: list[tuple[Point, Stream, dict[str, Any], list[LatencyRecorder]]] = []
    with ExitStack() as stack:
        streams: dict[tuple[int, int], Stream] = {}
        for point, axes in sweep.points():
            row: dict[str, Any] = {"axes": axes, **asdict(point)}
            rows.append(row)
            size = (point.height, point.width)
            bundle = bundles[size]
            if isinstance(bundle, str) or point.frames > longest:
                short = f"the clip has {longest} frames"
                row |= {"status": NOT_RUN, "reason": bundle if isinstance(bundle, str) else short}
                continue
            if size not in streams:
                opened = open_stream(bundle, engine="onnxruntime", threads=threads, precision="fp32")
                streams[size] = stack.enter_context(opened)
                for _ in Pipeline(Clip(uri, _WARM_UP_FRAMES), opened, max_frames=_WARM_UP_FRAMES):
                    pass
            row |= {"gaussians": 2 * bundle.model.gaussians, "rounds": []}
            ready.append((point, streams[size], row, []))
        for _ in range(rounds):
            for point, stream, row, recorders in ready:
                row["rounds"].append(_pass(point, stream, uri, recorders))
    for point, _, row, recorders in ready:
        row |= {"status": MEASURED, **_summary(point, recorders)}
    return rows


def _pass(point: Point, stream: Stream, uri: str, recorders: list[LatencyRecorder]) -> dict[str, float]:
    """One pass; its recorders are added to `recorders`."""
    if point.streams == 1:
        recorder = LatencyRecorder()
        results, _ = free_running(Clip(uri, point.frames), stream, point.gap, recorder=recorder)
        recorders.append(recorder)
        frames, seconds = results["frames"]["total"], results["throughput"]["seconds"]
    else:
        frames, seconds = _several(point, stream, uri, recorders)
    mine = recorders[-point.streams :]
    chain = sum(float(recorder.samples(stage).sum()) for recorder in mine for stage in report.CHAIN)
    return {
        "chain_ms_per_frame": chain / frames,
        "wall_ms_per_frame": 1e3 * seconds / frames,
        "resident_mib": round(resident_mib(), 1),
    }


def _several(point: Point, stream: Stream, uri: str, recorders: list[LatencyRecorder]) -> tuple[int, float]:
    """All streams at once, frames and seconds of the slowest together."""
    jobs = []
    with ExitStack() as stack:
        for number in range(point.streams):
            recorder = LatencyRecorder()
            recorders.append(recorder)
            fork = stack.enter_context(stream.fork())
            pipeline = Pipeline(Clip(uri, point.frames), fork, gap=point.gap, recorder=recorder)
            jobs.append(Job(f"stream {number}", pipeline))
        with closing(run_fairly(jobs)) as turns:
            for _ in turns:
                pass
    for job in jobs:
        if job.error is not None:
            raise StreamSplatError(job.error.message, job.error.hint)
    reports = [job.pipeline.report() for job in jobs]
    return sum(totals.frames for totals in reports), max(totals.seconds for totals in reports)


def _summary(point: Point, recorders: Sequence[LatencyRecorder]) -> dict[str, Any]:
    """Per stage, over all rounds and streams: median of a run, share of a frame, raw samples."""
    stages: dict[str, Any] = {}
    frames = sum(len(recorder.samples("render")) for recorder in recorders)
    for stage in report.CHAIN:
        found = [recorder.samples(stage) for recorder in recorders if stage in recorder.stages]
        if found:
            samples = np.concatenate(found)
            stages[stage] = {
                "p50_ms": float(np.median(samples)),
                "ms_per_frame": float(samples.sum()) / frames,
                "samples_ms": [float(f"{value:.4g}") for value in samples],
            }
    return {"frames_measured": frames, "stages": stages}
