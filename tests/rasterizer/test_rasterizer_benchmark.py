from __future__ import annotations

import json

from streamsplat_edge.benchmarks.rasterizer import main


def test_report_names_the_machine_and_the_load(tmp_path, capsys) -> None:
    report = tmp_path / "report.json"
    assert main(["--quick", "--seconds", "0", "--threads", "1", "--json", str(report)]) == 0
    data = json.loads(report.read_text())
    assert [result["path"] for result in data["results"]] == ["canonical", "general"]
    for result in data["results"]:
        assert result["gaussians"] == 73728 and (result["height"], result["width"]) == (288, 512)
        assert 0 < result["min_ms"] <= result["p50_ms"] <= result["p90_ms"] <= result["p99_ms"]
        assert result["pairs"] >= result["binned_pairs"] > 73728
        assert result["threads"] == 1 and result["renders"] >= 10
    assert {"cpu", "simd", "threads", "commit", "date", "scheduling"} <= set(data["machine"])
    assert list(tmp_path.iterdir()) == [report]
    assert "canonical" in capsys.readouterr().out
