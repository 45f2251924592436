"""When frames are shown, by a clock of the test's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from streamsplat_edge.runtime.display.pace import LONGEST, Pacer


def frame(timestamp: float, push_ms: float | None = None, *, is_cut: bool = False) -> Any:
    pushes = (
        ()
        if push_ms is None
        else (SimpleNamespace(latencies={"encode": push_ms / 2, "deform": push_ms / 2}),)
    )
    return SimpleNamespace(source=SimpleNamespace(timestamp=timestamp), pushes=pushes, is_cut=is_cut)


def shown_at(frames: list[tuple[Any, float]], gap: int = 4) -> list[float]:
    """Times at which frames are shown that are ready at these times, one after the other."""
    now, times = 0.0, []
    pacer = Pacer(gap, lambda: now)
    for rendered, ready in frames:
        now = max(now, ready)
        now = max(now, pacer.due(rendered))
        pacer.shown()
        times.append(now)
    return times


def test_the_first_frame_and_one_after_a_cut_do_not_wait() -> None:
    assert shown_at([(frame(5.0), 0.0), (frame(9.0, is_cut=True), 0.0)]) == [0.0, 0.0]


def test_frames_that_are_ready_together_are_shown_one_by_one() -> None:
    """25 a second, four per interval, 40 ms to compute one: a quarter of that is left out per frame."""
    intervals = [[0.16 * k + 0.04 * i for i in range(4)] for k in range(50)]
    frames = []
    for k, stamps in enumerate(intervals):
        ready = 0.16 * (k + 1) + 0.04  # the key frame has come and was computed
        frames += [(frame(t, 40 if i == 0 else None), ready) for i, t in enumerate(stamps)]
    times = shown_at(frames)
    for k in range(50):
        ready = 0.16 * (k + 1) + 0.04
        assert times[4 * k : 4 * k + 4] == pytest.approx([ready + 0.03 * i for i in range(4)])
        assert times[4 * k + 3] < 0.16 * (k + 2), "done before the next key frame comes"


@pytest.mark.parametrize("push_ms", [160, 500])
def test_a_stream_that_is_too_slow_never_waits(push_ms: float) -> None:
    frames = [(frame(0.04 * i, push_ms if i % 4 == 0 else None), float(i // 4)) for i in range(12)]
    assert shown_at(frames) == [ready for _, ready in frames]


def test_nobody_waits_for_long() -> None:
    assert shown_at([(frame(0.0), 0.0), (frame(60.0), 0.0)]) == [0.0, LONGEST]
