"""The benchmark of the rasterizer in training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from streamsplat_edge.benchmarks import raster_grad, table


def test_measures_and_becomes_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raster_grad, "SMOKE", ((2, 18432, 48, 64, 1.0),))
    out = tmp_path / "r.json"
    assert raster_grad.main(["--quick", "--seconds", "0", "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    (row,) = result["results"]
    assert row["batch"] == 2 and row["runs"] == 10 and row["binned_pairs"] > 2 * 18432
    for part in ("forward", "backward"):
        assert 0 < row[f"{part}_min_ms"] <= row[f"{part}_p50_ms"] <= row[f"{part}_p90_ms"]
    assert result["machine"]["torch"] == torch.__version__ and "gpu" not in result["machine"]
    assert "2, 18,432, 64x48, 1 px" in table.document([out])


def test_a_gpu_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert raster_grad.main(["--device", "cuda", "--quick"]) == 2
    assert "sees no CUDA device.\nUse --device cpu" in capsys.readouterr().err
