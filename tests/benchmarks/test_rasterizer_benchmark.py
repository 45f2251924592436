"""The benchmark of the rasterizer: what it writes, and that its scenes are what they are called."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from streamsplat_edge.benchmarks import rasterizer


def test_quick_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "r.json"
    assert rasterizer.main(["--quick", "--seconds", "0.01", "--threads", "2", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    result = json.loads(out.read_text())
    assert result["benchmark"] == "rasterizer" and result["machine"]["threads"] == 2
    assert result["machine"]["cpu"] and result["machine"]["scheduling"] in ("ordinary", "real-time")
    assert [row["path"] for row in result["results"]] == ["canonical", "general"]
    for row in result["results"]:
        assert (row["gaussians"], row["width"], row["height"]) == (73728, 512, 288) and row["renders"] >= 10
        assert 0 < row["min_ms"] <= row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["pairs"] >= row["binned_pairs"] > 73728 and f"{row['pairs']}" in printed


@pytest.mark.parametrize("sigma", [1.0, 3.0])
def test_scenes_have_the_sigma_they_are_called_by(sigma: float) -> None:
    splats = rasterizer.make_scene(18432, 144, 256, sigma)
    pixels = splats.scales[:, [0, 2]] * np.array([256, 144]) / 2
    assert splats.count == 18432 and abs(pixels.mean() - sigma) < 0.01 * sigma
