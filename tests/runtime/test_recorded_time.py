"""Time stamps of recordings: increasing whatever the container says, and as it says where that can be."""

from __future__ import annotations

import pytest

from streamsplat_edge.runtime.video.recorded_time import RecordedTime


def placed(*stamps: float | None, period: float = 0.04) -> tuple[list[float], int]:
    time = RecordedTime(period)
    return [time.place(stamp) for stamp in stamps], time.repaired


def test_stamps_count_from_the_first() -> None:
    assert placed(5.0, 5.04, 5.5) == ([0.0, pytest.approx(0.04), 0.5], 0)


def test_missing_stamps_follow_at_the_rate() -> None:
    assert placed(None, None, None) == ([0.0, 0.04, 0.08], 2)
    assert placed(1.0, None, 1.5) == ([0.0, 0.04, 0.5], 1)


def test_jitter_moves_a_frame_on_by_little() -> None:
    seconds, repaired = placed(0.0, 0.04, 0.04, 0.03, 0.08)
    assert seconds == [0.0, 0.04, pytest.approx(0.041), pytest.approx(0.042), 0.08] and repaired == 2


def test_after_a_jump_back_stamps_count_from_there() -> None:
    seconds, repaired = placed(100.0, 102.0, 7.0, 7.5)
    assert seconds == [0.0, 2.0, pytest.approx(2.04), pytest.approx(2.54)] and repaired == 1


def test_a_step_is_shorter_than_the_period() -> None:
    assert placed(0.0, 0.0, period=0.001)[0] == [0.0, 0.0005]
