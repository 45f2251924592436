"""Totals of a run: what `Pipeline.report` and `run_video` give, and `--json` prints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .frame import PushStats
from .rasterizer import RenderStats


@dataclass
class RunReport:
    """Totals of a run.

    Attributes:
        frames: rendered. key_frames: pushed. cuts: scene cuts found. breaks: of a live source, treated as
            cuts. pauses: moments at which a live source was silent and what waited was finished.
        skipped: source frames whose time stamp was not later than the one before. dropped: source frames
            left out to keep up with a live source, by the source and here.
        seconds, fps: wall clock from first decode to last write (see `Pipeline.finished`), and frames per
            second of it.
        spawned, retired: Gaussians over the run. culled: by reason, summed over frames; rendered, pairs:
            likewise.
        peak_alive: most Gaussians alive at once.
        interrupted: the run was ended by Ctrl-C; the totals are of what was done.
        latencies_ms: per stage count, min, p50, p90, p95, p99, max, mean, std, cv.
    """

    frames: int = 0
    key_frames: int = 0
    cuts: int = 0
    breaks: int = 0
    pauses: int = 0
    skipped: int = 0
    dropped: int = 0
    seconds: float = 0.0
    fps: float = 0.0
    spawned: int = 0
    retired: int = 0
    peak_alive: int = 0
    rendered: int = 0
    culled: dict[str, int] = field(default_factory=dict)
    pairs: int = 0
    interrupted: bool = False
    latencies_ms: dict[str, dict[str, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The totals by name, as `--stats` writes them."""
        return dict(vars(self))

    def add_push(self, stats: PushStats) -> None:
        """Count a key frame."""
        self.key_frames += 1
        self.spawned += stats.spawned
        self.retired += stats.retired
        self.peak_alive = max(self.peak_alive, stats.alive)

    def add_render(self, stats: RenderStats) -> None:
        """Count a rendered frame."""
        self.frames += 1
        self.rendered += stats.rendered
        self.pairs += stats.pairs
        for name, value in vars(stats).items():
            if name.startswith("culled_"):
                reason = name.removeprefix("culled_")
                self.culled[reason] = self.culled.get(reason, 0) + value
