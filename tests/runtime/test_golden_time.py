"""The time formulas against rasteriser inputs captured from the published renderer (golden_end2end.npz).

The capture holds every 37th of the 73,728 Gaussians of a pair at four times. The first 997 are frame 0's,
whose motion and fade are known (golden_pair.npz). The rest are frame 1's; theirs are recovered
from two of the four times and must then explain the other two.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_bundle import fake_model
from spawning import spawn

from streamsplat_edge.runtime.lifecycle import Lifecycle

DATA = Path(__file__).parents[1] / "data"
START, LENGTH = 10.0, 0.3  # the pair in seconds, to show that time is normalised


@pytest.fixture(scope="module")
def captured() -> Any:
    return np.load(DATA / "golden_end2end.npz")


@pytest.fixture(scope="module")
def frame0() -> dict[str, np.ndarray]:
    data = np.load(DATA / "golden_pair.npz")
    xyz, opacity = data["gs0_xyz"], data["gs0_opacity"]
    rows = np.concatenate([xyz[:, 0], data["gs0_rgb"], data["gs0_scale"], opacity[:, :1]], 1)
    return {"gaussians": rows, "motion": xyz[:, 1], "fade": opacity[:, 1:]}


def pair_of(count: int, *frames: dict[str, np.ndarray]) -> Lifecycle:
    """A lifecycle in the interval between two key frames."""
    lifecycle = Lifecycle(fake_model(grid=(1, count)))
    spawn(lifecycle, START, gaussians=frames[0]["gaussians"])
    spawn(
        lifecycle,
        START + LENGTH,
        gaussians=frames[1]["gaussians"],
        motion=np.stack([frame["motion"] for frame in frames]),
        fade=np.stack([frame["fade"] for frame in frames]),
    )
    return lifecycle


def seconds(t: float) -> float:
    return min(START + t * LENGTH, START + LENGTH)


def still(count: int) -> dict[str, np.ndarray]:
    return {
        "gaussians": np.zeros((count, 9), np.float32),
        "motion": np.zeros((count, 3), np.float32),
        "fade": np.zeros((count, 2), np.float32),
    }


@pytest.mark.parametrize("k", range(4))
def test_earlier_frame(captured: Any, frame0: dict[str, np.ndarray], k: int) -> None:
    count = len(frame0["gaussians"])
    splats = pair_of(count, frame0, still(count)).at(seconds(float(captured[f"t{k}_time"])))
    # Time in seconds adds a rounding of 1e-7 that the capture does not have; nearest depth 0.1 amplifies it
    # tenfold.
    np.testing.assert_allclose(splats.means[:count], captured[f"t{k}_means"][:count], atol=3e-6)
    np.testing.assert_allclose(splats.opacity[:count], captured[f"t{k}_opacity"][:count], atol=1e-6)
    np.testing.assert_array_equal(splats.scales[:count], captured[f"t{k}_scales"][:count])
    np.testing.assert_array_equal(splats.rgb[:count], frame0["gaussians"][:, 3:6])


def test_some_gaussians_leave_the_depth_range(captured: Any, frame0: dict[str, np.ndarray]) -> None:
    """At t = 1 the capture has Gaussians behind the camera, so the test above covers that branch."""
    count = len(frame0["gaussians"])
    splats = pair_of(count, frame0, still(count)).at(START + LENGTH)
    behind = splats.means[:count, 1] < 0
    assert behind.sum() >= 10
    np.testing.assert_array_equal(behind, captured["t3_means"][:count, 1] < 0)


@pytest.mark.parametrize("k", range(4))
def test_later_frame_mirrors_the_earlier(captured: Any, frame0: dict[str, np.ndarray], k: int) -> None:
    """Anchored at 1 with the motion reversed, the same Gaussians run through the capture backwards."""
    count = len(frame0["gaussians"])
    mirrored = frame0 | {"motion": -frame0["motion"]}
    splats = pair_of(count, still(count), mirrored).at(seconds(1 - float(captured[f"t{k}_time"])))
    np.testing.assert_allclose(splats.means[count : 2 * count], captured[f"t{k}_means"][:count], atol=3e-6)
    np.testing.assert_allclose(
        splats.opacity[count : 2 * count], captured[f"t{k}_opacity"][:count], atol=1e-6
    )


def inverse_of_published_depth(depth: np.ndarray) -> np.ndarray:
    return np.where(depth > 0, (1 / np.where(depth > 0, depth, 1) - 0.2 - 1e-6) / 9.8, depth + 10)


def test_later_frame_of_the_capture(captured: Any, frame0: dict[str, np.ndarray]) -> None:
    first = len(frame0["gaussians"])
    means = [captured[f"t{k}_means"][first:].astype(np.float64) for k in range(4)]
    xyz = [np.stack([m[:, 0], inverse_of_published_depth(m[:, 1]), m[:, 2]], 1) for m in means]
    count = len(xyz[0])
    later = still(count)
    later["gaussians"][:, :3] = xyz[3]  # at its own key frame nothing has moved
    later["motion"][:] = xyz[3] - xyz[0]
    lifecycle = pair_of(count, still(count), later)
    for k in (1, 2):
        splats = lifecycle.at(seconds(float(captured[f"t{k}_time"])))
        np.testing.assert_allclose(splats.means[count : 2 * count], means[k], atol=2e-5)
    opacity = np.stack([captured[f"t{k}_opacity"][first:] for k in range(4)])
    assert (np.diff(opacity, axis=0) >= 0).all(), "later Gaussians fade in towards their key frame"
    assert (opacity[0] < 0.99 * opacity[3]).any()
