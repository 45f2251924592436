"""The latency recorder: percentiles, bounded memory, raw samples."""

from __future__ import annotations

import numpy as np
import pytest

from streamsplat_edge.runtime.timing import LatencyRecorder, summarise


def test_summary_of_known_samples() -> None:
    summary = summarise(np.arange(1, 101))
    assert summary["count"] == 100 and summary["min"] == 1 and summary["max"] == 100
    assert summary["p50"] == pytest.approx(50.5)
    assert summary["p90"] == pytest.approx(90.1)
    assert summary["p95"] == pytest.approx(95.05)
    assert summary["p99"] == pytest.approx(99.01)
    assert summary["mean"] == pytest.approx(50.5)
    assert summary["std"] == pytest.approx(np.sqrt((100**2 - 1) / 12))
    assert summary["cv"] == pytest.approx(summary["std"] / 50.5)


def test_no_samples() -> None:
    assert summarise(np.zeros(0)) == {"count": 0}
    assert LatencyRecorder().summary() == {}
    assert LatencyRecorder().samples("nothing").size == 0


def test_zero_latencies_have_zero_variation() -> None:
    assert summarise(np.zeros(3))["cv"] == 0.0


def test_all_samples_are_kept_in_order() -> None:
    recorder = LatencyRecorder()
    for i in range(1000):
        recorder.update({"encode": i, "deform": 2 * i})
    assert recorder.stages == ("encode", "deform")
    np.testing.assert_array_equal(recorder.samples("deform"), 2.0 * np.arange(1000))
    assert recorder.summary()["encode"]["max"] == 999


def test_capacity_keeps_the_latest_oldest_first() -> None:
    recorder = LatencyRecorder(capacity=4)
    for i in range(11):
        recorder.add("render", i)
    np.testing.assert_array_equal(recorder.samples("render"), [7, 8, 9, 10])
    assert recorder.seen("render") == 11
    assert recorder.summary()["render"]["count"] == 4


def test_measure_records_success_only() -> None:
    recorder = LatencyRecorder()
    with recorder.measure("write"):
        pass
    with pytest.raises(KeyError), recorder.measure("write"):
        raise KeyError
    assert recorder.seen("write") == 1
    assert recorder.samples("write")[0] >= 0


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity"):
        LatencyRecorder(capacity=0)
    with pytest.raises(ValueError, match="NaN"):
        LatencyRecorder().add("encode", float("nan"))


@pytest.mark.parametrize("capacity", [None, 7])
def test_recent_are_the_last_samples(capacity: int | None) -> None:
    recorder = LatencyRecorder(capacity)
    assert recorder.recent("render", 3).size == 0
    for i in range(25):
        recorder.add("render", float(i))
        for count in (1, 3, 7, 50):
            kept = recorder.samples("render")
            np.testing.assert_array_equal(np.sort(recorder.recent("render", count)), kept[-count:])
