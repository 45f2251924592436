"""Spawn, two intervals, retire; formulas against float64 NumPy; constant memory over thousands of frames."""

from __future__ import annotations

import gc
import random
import tracemalloc

import numpy as np
import pytest
from fake_bundle import fake_model
from spawning import spawn

from streamsplat_edge.runtime.errors import InputError
from streamsplat_edge.runtime.lifecycle import SLOTS, Lifecycle

MODEL = fake_model()
G = MODEL.gaussians


def random_frame(seed: int, count: int = G) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.uniform(0.05, 0.95, (count, 9)).astype(np.float32)
    rows[:, [0, 2]] = rng.uniform(-1, 1, (count, 2))
    return rows


def random_pair(seed: int, count: int = G) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    motion = rng.uniform(-0.4, 0.4, (2, count, 3)).astype(np.float32)
    fade = np.stack([rng.uniform(0, 12, (2, count)), rng.uniform(0, 1, (2, count))], -1).astype(np.float32)
    return {"motion": motion, "fade": fade}


def expected(
    rows: np.ndarray, motion: np.ndarray, fade: np.ndarray, dt: float, mapping: str
) -> list[np.ndarray]:
    """The formulas of REFERENCE.md section 2 in float64: means, scales, opacity, rgb."""
    rows, motion, fade = (a.astype(np.float64) for a in (rows, motion, fade))
    position = rows[:, :3] + motion * dt
    y = position[:, 1]
    inside = (y >= 0) & (y <= 1)
    safe = np.where(inside, y, 0.5)
    depth = 1 / (0.2 + 9.8 * safe + 1e-6) if mapping == "published" else 2 / (1 + safe)
    means = np.stack([position[:, 0], np.where(inside, depth, y - 10), position[:, 2]], 1)
    sx, sz = rows[:, 6], rows[:, 7]

    def sigmoid(v: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-v))

    g0, g1 = fade.T
    opacity = rows[:, 8] * sigmoid(-g0 * (abs(dt) - g1)) / sigmoid(g0 * g1)
    return [means, np.stack([sx, (sx + sz) / 2, sz], 1), opacity, rows[:, 3:6]]


def check_rows(lifecycle: Lifecycle, time: float, first_row: int, wanted: list[np.ndarray]) -> None:
    splats = lifecycle.at(time)
    rows = slice(first_row, first_row + len(wanted[0]))
    for actual, values in zip((splats.means, splats.scales, splats.opacity, splats.rgb), wanted, strict=True):
        np.testing.assert_allclose(actual[rows], values, rtol=2e-5, atol=2e-6)


def test_before_the_first_key_frame() -> None:
    lifecycle = Lifecycle(MODEL)
    assert lifecycle.interval is None and lifecycle.newest is None and lifecycle.previous is None
    assert lifecycle.ids.size == 0 and lifecycle.stats.key_frame == -1 and lifecycle.stats.alive == 0
    with pytest.raises(InputError, match="Nothing was pushed"):
        lifecycle.at(0.0)


def test_a_lone_key_frame_stands_still() -> None:
    lifecycle = Lifecycle(MODEL)
    frame = random_frame(1)
    lifecycle.spare_pair.motion[:] = 1  # must not be used
    stats = spawn(lifecycle, 2.0, gaussians=frame)
    assert (stats.spawned, stats.alive, stats.retired) == (G, G, 0)
    assert lifecycle.interval == (2.0, 2.0) and lifecycle.at(2.0).count == G
    check_rows(lifecycle, 2.0, 0, expected(frame, np.zeros((G, 3)), np.zeros((G, 2)), 0.0, "published"))
    with pytest.raises(InputError, match="outside the current interval"):
        lifecycle.at(2.1)


@pytest.mark.parametrize("mapping", ["published", "paper"])
@pytest.mark.parametrize("t", [0.0, 0.25, 0.7, 1.0])
def test_formulas(mapping: str, t: float) -> None:
    lifecycle = Lifecycle(fake_model(depth_mapping=mapping))
    frames = [random_frame(1), random_frame(2)]
    pair = random_pair(3)
    spawn(lifecycle, 4.0, gaussians=frames[0])
    spawn(lifecycle, 6.0, gaussians=frames[1], **pair)
    time = 4.0 + 2.0 * t
    assert lifecycle.normalised(time) == pytest.approx(t) and lifecycle.at(time).count == 2 * G
    for i, dt in enumerate((t, t - 1)):
        check_rows(
            lifecycle, time, i * G, expected(frames[i], pair["motion"][i], pair["fade"][i], dt, mapping)
        )


def test_each_gaussian_lives_two_intervals() -> None:
    lifecycle = Lifecycle(MODEL)
    frames = [random_frame(i) for i in range(6)]
    for k, frame in enumerate(frames):
        stats = spawn(lifecycle, float(k), gaussians=frame, **random_pair(k))
        assert stats.spawned == G and stats.retired == (G if k >= 2 else 0)
        assert stats.alive == min(k + 1, 2) * G
        assert stats.alive == stats.spawned_total - stats.retired_total
        ids, splats = lifecycle.ids, lifecycle.at(float(k))
        assert len(ids) == splats.count == stats.alive
        # The colour of the Gaussian named by an id is the one it was spawned with, in both of its intervals.
        for row in (0, 5, G - 1, len(ids) - 1):
            key_frame, index = divmod(int(ids[row]), G)
            assert key_frame in (k - 1, k)
            np.testing.assert_array_equal(splats.rgb[row], frames[key_frame][index, 3:6])


def test_encode_results_are_kept_in_place_for_both_pairs() -> None:
    lifecycle = Lifecycle(MODEL, condition_shape=(1, 8, 3))
    lifecycle.spare.tokens[:] = 7
    lifecycle.spare.condition[:] = 8  # type: ignore[index]
    lifecycle.spawn(0.0)
    first = lifecycle.newest
    assert first is not None and first.condition is not None
    lifecycle.spawn(1.0)
    assert lifecycle.previous is first and (first.tokens == 7).all() and (first.condition == 8).all()
    # The slot to be filled is never one that is alive.
    assert lifecycle.spare is not first and lifecycle.spare is not lifecycle.newest


def test_cut_retires_everything_and_stands_alone() -> None:
    lifecycle = Lifecycle(MODEL)
    spawn(lifecycle, 0.0, gaussians=random_frame(0))
    spawn(lifecycle, 1.0, gaussians=random_frame(1), **random_pair(1))
    frame = random_frame(2)
    stats = spawn(lifecycle, 2.0, gaussians=frame, cut=True)
    assert (stats.spawned, stats.alive, stats.retired) == (G, G, 2 * G)
    assert lifecycle.previous is None and lifecycle.interval == (2.0, 2.0)
    check_rows(lifecycle, 2.0, 0, expected(frame, np.zeros((G, 3)), np.zeros((G, 2)), 0.0, "published"))
    np.testing.assert_array_equal(lifecycle.ids, 2 * G + np.arange(G))
    # The next pair moves again, with the motion given for it.
    pair = random_pair(5)
    spawn(lifecycle, 3.0, gaussians=random_frame(3), **pair)
    check_rows(lifecycle, 2.5, 0, expected(frame, pair["motion"][0], pair["fade"][0], 0.5, "published"))


def test_reset_retires_everything_and_frees_time_but_not_ids() -> None:
    lifecycle = Lifecycle(MODEL)
    lifecycle.spawn(5.0)
    lifecycle.spawn(6.0)
    lifecycle.reset()
    stats = lifecycle.stats
    assert (stats.alive, stats.spawned, stats.retired, stats.retired_total) == (0, 0, 2 * G, 2 * G)
    assert lifecycle.interval is None and lifecycle.ids.size == 0
    lifecycle.reset()
    assert lifecycle.stats.retired == 0
    lifecycle.spawn(0.0)  # an earlier time is fine after a reset
    assert lifecycle.ids[0] == 2 * G


@pytest.mark.parametrize("time", [1.0, 0.5, float("nan"), float("inf"), -float("inf")])
def test_bad_times_change_nothing(time: float) -> None:
    lifecycle = Lifecycle(MODEL)
    spawn(lifecycle, 0.0, gaussians=random_frame(0))
    spawn(lifecycle, 1.0, gaussians=random_frame(1), **random_pair(1))
    before = lifecycle.at(0.5).means[: 2 * G].copy()
    for cut in (False, True):
        with pytest.raises(InputError, match="time stamp"):
            lifecycle.spawn(time, cut=cut)
    assert lifecycle.interval == (0.0, 1.0)
    np.testing.assert_array_equal(lifecycle.at(0.5).means[: 2 * G], before)


@pytest.mark.parametrize("time", [-0.001, 1.001, float("nan")])
def test_times_outside_the_interval(time: float) -> None:
    lifecycle = Lifecycle(MODEL)
    lifecycle.spawn(0.0)
    lifecycle.spawn(1.0)
    with pytest.raises(InputError, match="outside the current interval"):
        lifecycle.at(time)


def test_filling_the_spare_slot_leaves_the_interval_alone() -> None:
    """A push that fails half-way has written the spare buffers only."""
    lifecycle = Lifecycle(MODEL)
    for k in range(5):
        spawn(lifecycle, float(k), gaussians=random_frame(k), **random_pair(k))
        before = lifecycle.at(float(k) - 0.3 if k else 0.0).means.copy()
        lifecycle.spare.gaussians.fill(np.nan)
        lifecycle.spare_pair.motion.fill(np.nan)
        lifecycle.spare_pair.fade.fill(np.nan)
        lifecycle._evaluated = float("nan")  # evaluate anew
        after = lifecycle.at(float(k) - 0.3 if k else 0.0)
        np.testing.assert_array_equal(after.means[: after.count], before[: after.count])


def test_the_same_time_after_a_new_key_frame_is_evaluated_anew() -> None:
    lifecycle = Lifecycle(MODEL)
    spawn(lifecycle, 0.0, gaussians=random_frame(0))
    spawn(lifecycle, 1.0, gaussians=random_frame(1), **random_pair(1))
    lifecycle.at(1.0)
    frame = random_frame(2)
    pair = random_pair(2)
    spawn(lifecycle, 2.0, gaussians=frame, **pair)
    check_rows(lifecycle, 1.0, G, expected(frame, pair["motion"][1], pair["fade"][1], -1.0, "published"))


def test_thousands_of_frames_in_constant_memory() -> None:
    """Irregular times, cuts and resets over 6,000 key frames: exact accounts, the same buffers, no growth."""
    model = fake_model(64, 128)
    count = model.gaussians
    lifecycle = Lifecycle(model)
    frames = [random_frame(i, count) for i in range(7)]
    pairs = [random_pair(i, count) for i in range(7)]
    splats = None
    addresses: set[int] = set()
    rng = random.Random(0)
    time, alive, spawned, retired = 0.0, 0, 0, 0
    baseline = 0
    tracemalloc.start()
    try:
        for k in range(6000):
            if k == 500:
                gc.collect()
                baseline = tracemalloc.get_traced_memory()[0]
                tracemalloc.reset_peak()
            event = rng.random()
            if event < 0.01:
                lifecycle.reset()
                retired, alive = retired + alive, 0
                time = rng.uniform(-10, 10)
            time += rng.choice((1e-3, 0.033, 0.04, 2.5))  # jitter, variable rate and a drop-out
            cut = 0.01 <= event < 0.03
            retired += alive if cut else max(0, alive - 1)
            alive = 1 if cut else min(alive + 1, 2)
            spawned += 1
            addresses.add(lifecycle.spare.gaussians.ctypes.data)
            stats = spawn(lifecycle, time, gaussians=frames[k % 7], cut=cut, **pairs[k % 7])
            totals = (stats.alive, stats.spawned_total, stats.retired_total)
            assert totals == (alive * count, spawned * count, retired * count)
            interval = lifecycle.interval
            assert interval is not None
            current = lifecycle.at(rng.uniform(*interval))
            assert splats is None or current is splats
            splats = current
            assert current.count == alive * count and lifecycle.ids[-1] == spawned * count - 1
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - baseline
        peak = tracemalloc.get_traced_memory()[1] - baseline
    finally:
        tracemalloc.stop()
    assert len(addresses) == SLOTS
    # One float kept per frame would be 130 kB; the interpreter's own caches account for some kB.
    assert grown < 16_384, f"{grown} bytes kept over 5,500 frames"
    # A key frame's Gaussians are 73 kB: a copy or a new buffer in the steady state would show here.
    assert peak < 24_576, f"{peak} bytes allocated at once"
