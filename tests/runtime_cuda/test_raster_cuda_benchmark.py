"""The benchmark of the CUDA rasterizer, on the kernels on the CPU: that it runs, not how fast."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from on_cpu_device import OnCpuDevice

from streamsplat_edge.benchmarks import raster_cuda, table
from streamsplat_edge.benchmarks.raster_compare import compare
from streamsplat_edge.benchmarks.raster_compare.methods import Cuda
from streamsplat_edge.runtime.cuda import cupy_device


def test_measures(device: OnCpuDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raster_cuda, "REPLAYS", 1)
    out = tmp_path / "r.json"
    assert raster_cuda.run(device, [(18432, 16, 24, 0.5, 2)], 1, out) == 0
    result = json.loads(out.read_text())
    assert [row["path"] for row in result["results"]] == ["canonical", "general"]
    for row in result["results"]:
        assert 0 < row["min_us"] <= row["p50_us"] <= row["p99_us"]
        assert row["binned_pairs"] > 18432 and row["overflowing_tiles"] == 2 and row["times"] == 2
    assert result["machine"]["gpu"] == device.description
    assert "24x16, 18,432, 0.5 px, general, 2" in table.document([out])


def test_without_a_gpu_it_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cupy_device, "cuda_device", lambda index: None)
    assert raster_cuda.main(["--quick"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_comparison_runs_on_the_device(device: OnCpuDevice) -> None:
    """All images of a case in one launch, and they agree with the dense renderer."""
    sweep = compare.Sweep(compare.Case(288, 36, 64, 2.0, 1, 3), (), (), (), (), ())
    result = compare.compare(sweep, (Cuda(device),), 0.0)
    (row,) = result["cases"][0]["methods"]
    assert row["status"] == "measured" and row["count"] >= 3
    assert row["agreement"]["largest_where_not_fragile"] < 1e-4
