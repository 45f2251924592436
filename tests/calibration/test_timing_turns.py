"""Timing of files in turns: medians, ratios in the same turn, warm-up and the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from streamsplat_edge.calibration import timing
from streamsplat_edge.calibration.timing import take_turns


@dataclass
class Clock:
    """In place of the module `time`: goes on only while something runs."""

    now: float = 0.0

    def perf_counter(self) -> float:
        return self.now

    def runs(self, *milliseconds: float) -> Callable[[], object]:
        """Something that takes so long, turn by turn, from the start again after the last."""
        calls = 0

        def run() -> None:
            nonlocal calls
            self.now += 1e-3 * milliseconds[calls % len(milliseconds)]
            calls += 1

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def test_ratios_are_of_the_same_turn(clock: Clock) -> None:
    """A machine that is three times as slow in every other turn changes the medians, not the ratio."""
    found = take_turns({"first": clock.runs(2, 6), "half": clock.runs(1, 3)}, seconds=10, turns=9)
    assert found["first"].ratio == 1 and found["half"].ratio == pytest.approx(0.5)
    assert found["first"].milliseconds == pytest.approx(2) and found["half"].milliseconds == pytest.approx(1)
    assert found["half"].to_json() == {"milliseconds": 1.0, "ratio": 0.5}


def test_warm_up_is_not_counted_and_three_turns_are_taken_at_least(clock: Clock) -> None:
    found = take_turns({"a": clock.runs(100, 100, 1, 2, 3, 500)}, seconds=0.1, turns=30)
    assert found["a"].milliseconds == pytest.approx(2)


def test_no_turn_begins_after_the_time_is_over(clock: Clock) -> None:
    run, before = clock.runs(1), clock.now
    take_turns({"a": run}, seconds=0.0095, turns=1000)
    assert clock.now - before == pytest.approx(0.010)
