"""Numbers for the page's overlay: latency of every stage over the last samples, and counters."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import numpy as np

from ..observers import Spawned
from ..pipeline import Pipeline, Rendered

SAMPLES = 120
"""Percentiles are over so many samples of each stage, so that they follow what happens now."""

_RATE_SECONDS = 3.0


class StatusBoard:
    """Counts events of one pipeline. Used in its thread only, because its recorder is."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._counts = {"frames": 0, "key_frames": 0, "cuts": 0, "spawned": 0, "retired": 0}
        self._now: dict[str, float] = {}
        self._times: deque[float] = deque()

    def spawned(self, event: Spawned) -> None:
        counts = self._counts
        counts["key_frames"] += 1
        counts["cuts"] += event.is_cut
        counts["spawned"] += event.stats.spawned
        counts["retired"] += event.stats.retired

    def rendered(self, rendered: Rendered) -> None:
        stats = rendered.frame.stats
        self._counts["frames"] += 1
        self._now = {
            "time": rendered.source.timestamp,
            "alive": stats.lifecycle.alive,
            "drawn": stats.render.rendered,
            "culled": stats.render.culled,
            "tile_pairs": stats.render.pairs,
        }
        now = time.perf_counter()
        self._times.append(now)
        while now - self._times[0] > _RATE_SECONDS:
            self._times.popleft()

    def snapshot(self) -> dict[str, Any]:
        """JSON for the page: stages {name: {p50, p90, max}} in ms, counters, and now."""
        recorder = self._pipeline.recorder
        stages = {}
        for stage in recorder.stages:
            p50, p90, largest = np.percentile(recorder.recent(stage, SAMPLES), (50, 90, 100))
            stages[stage] = {"p50": round(p50, 2), "p90": round(p90, 2), "max": round(largest, 2)}
        span = self._times[-1] - self._times[0] if self._times else 0.0
        rate = (len(self._times) - 1) / span if span > 0 else 0.0
        counters = {**self._counts, "dropped": self._pipeline.dropped, **self._now}
        return {"stages": stages, "counters": counters | {"frames_per_second": round(rate, 2)}}
