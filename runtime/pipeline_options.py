"""What `Pipeline` can be told, for functions that make one from their own keyword arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypedDict

from .key_frames import KeyFrameRule
from .observers import Observer
from .rasterizer import Extent
from .timing import LatencyRecorder


class PipelineOptions(TypedDict, total=False):
    """The keyword arguments of `Pipeline`, which says what they mean and what is taken where one is left out.

    For `**options: Unpack[PipelineOptions]`: mypy checks who calls such a function, and that `Pipeline` takes
    what is here; a test, that nothing is missing.
    """

    gap: int | None
    rule: KeyFrameRule | None
    detect_cuts: bool
    background: Sequence[float] | None
    extent: Extent
    depth: bool
    prefetch: int
    live: bool
    idle_seconds: float
    stopped: Callable[[], bool] | None
    max_frames: int | None
    recorder: LatencyRecorder | None
    observers: Sequence[Observer]
