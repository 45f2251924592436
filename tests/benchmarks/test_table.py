"""Tables of the README come from result files, all of them and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_bundle import build_fake_bundle
from video_samples import sample_clip

from streamsplat_edge.benchmarks import fps, table

ROOT = Path(__file__).resolve().parents[2]

EVAL = {
    "gap": 4,
    "split": "eval",
    "engine": "onnxruntime",
    "metric": "PSNR",
    "clips": {"a": {"key": 30.125, "between": 28.0, "blend": 27.0, "rendered_blend": 26.5, "frames": 9}},
    "average": {"key": 30.125, "between": 28.0, "blend": 27.0, "rendered_blend": 26.5},
}
RASTERIZER = {
    "benchmark": "rasterizer",
    "machine": {
        "cpu": "C",
        "threads": 2,
        "simd": "avx2",
        "load_average_1min": "0.1",
        "scheduling": "s",
        "commit": "abc",
    },
    "results": [
        dict(path="canonical", gaussians=73728, height=288, width=512, sigma_px=2.0, pairs=123456)
        | dict(min_ms=1.0, p50_ms=2.0, p90_ms=3.25)
    ],
}
RASTER_GRAD = {
    "benchmark": "raster_grad",
    "machine": dict(device="cuda", gpu="G", cuda="13.0", driver_version="580.1", torch="2.13.0", commit="abc")
    | dict(load_average_1min="0.1", scheduling="s"),
    "results": [
        dict(batch=8, gaussians=73728, height=288, width=512, sigma_px=2.0, binned_pairs=7654321)
        | dict(forward_p50_ms=1.5, forward_p90_ms=1.75, backward_p50_ms=4.25, backward_p90_ms=4.5)
    ],
}


def write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


def test_each_kind_becomes_a_table(tmp_path: Path) -> None:
    build_fake_bundle(tmp_path / "fake.bundle")
    clip = sample_clip(tmp_path / "clip.mp4", 9)
    measured = tmp_path / "fps.json"
    assert fps.main([str(clip), "--bundle", str(tmp_path / "fake.bundle"), "--json", str(measured)]) == 0
    paths = [measured, write(tmp_path / "r.json", RASTERIZER), write(tmp_path / "e.json", EVAL)]
    paths.append(write(tmp_path / "g.json", RASTER_GRAD))
    text = table.document(paths)
    for words in (
        "`fps.json`: **",
        "| encode |",
        "| 30.12 |",
        "73,728, 2 px",
        "123,456",
        "| 3.25 |",
        "power not",
        "G, CUDA 13.0, driver 580.1",
        "7,654,321 | 1.50 | 1.75 | 4.25 |",
    ):
        assert words in text, words
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {7, 6}


def test_ablations_stand_beside_the_full_model(tmp_path: Path) -> None:
    entry = {"title": "full", "paper_key": 37.83, "average": {"key": 28.0, "between": 25.5}}
    other = {"title": "without", "paper_key": 31.47, "average": {"key": 27.25, "between": 26.0}}
    result: dict[str, Any] = {
        "benchmark": "ablations", "complete": True, "gap": 4, "metric": "PSNR", "commit": "abc",
        "machine": {"cpu": "C"}, "recipes": {"static": {"steps": 500}, "dynamic": {"steps": 300}},
        "variants": {"full": entry, "without": other, "later": {"title": "later", "paper_key": 18.89}},
    }  # fmt: skip
    lines = table.table(write(tmp_path / "a.json", result))
    assert "500 + 300 steps" in lines[0] and "not complete" not in lines[0]
    assert "| without | 27.25 | -0.75 | 26.00 | +0.50 | 31.47 | -6.36 |" in lines
    assert "| later | - | - | - | - | 18.89 | -18.94 |" in lines
    result["complete"] = False
    assert "not complete" in table.table(write(tmp_path / "a.json", result))[0]


def test_evaluations_show_every_metric_and_the_papers_protocol() -> None:
    scores = {"key": 0.91, "between": 0.82, "blend": 0.73, "dis": 0.74, "rendered_blend": 0.6}
    others = {"ssim": scores, "psnr_256": scores}
    average = {"key": 30.0, "between": 28.0, "blend": 27.0, "dis": 29.5, "rendered_blend": 26.5, **others}
    paper = {"middle_4": {"gap": 5, "clips": {}, "average": {"key": 31.25, **others}}}
    metrics = dict.fromkeys(("psnr", "ssim", "psnr_256"), "what it is")
    result = EVAL | {"clips": {"a": average}, "average": average, "metrics": metrics, "paper": paper}
    lines = table.eval_table(result)
    assert "| blending the originals | optical flow of the originals | blending the rendered |" in lines[2]
    assert "| **average** | 30.00 | 28.00 | 27.00 | 29.50 | 26.50 |" in lines
    assert "| SSIM | 0.9100 | 0.8200 | 0.7300 | 0.7400 | 0.6000 |" in lines
    assert "| PSNR at 256x256 | 0.91 | 0.82 | 0.73 | 0.74 | 0.60 |" in lines
    assert "| middle_4, gap 5: PSNR | 31.25 | - | - | - | - |" in lines
    assert "| middle_4, gap 5: SSIM | 0.9100 | 0.8200 | 0.7300 | 0.7400 | 0.6000 |" in lines


def test_update_replaces_only_what_is_between_the_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    assert table.main([str(write(tmp_path / "e.json", EVAL)), "--update", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith(f"{table.END}\nafter\n")
    assert "old" not in text and "| 28.00 |" in text
    assert table.main([str(tmp_path / "e.json"), "--update", str(page)]) == 0 and page.read_text() == text


@pytest.mark.parametrize("content", ["{}", "[1]", "no json"])
def test_other_files_are_refused(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    assert table.main([str(path)]) == 2 and "x.json" in capsys.readouterr().err


def test_file_without_markers_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing here\n")
    assert table.main([str(write(tmp_path / "e.json", EVAL)), "--update", str(page)]) == 2
    assert page.read_text() == "nothing here\n"


PAGES = [
    "README.md",
    "docs/benchmarks.md",
    "docs/quantise.md",
    *(f"training/weights/{name}/README.md" for name in ("tiny", "small")),
]


@pytest.mark.parametrize("name", PAGES)
def test_pages_show_the_committed_results(name: str) -> None:
    """Every table in the documents is what the script prints for the files named there."""
    text = (ROOT / name).read_text()
    if table.BEGIN not in text:
        assert "frames per second** by wall clock" not in text
        return
    block = text.split(table.BEGIN)[1].split(table.END)[0]
    names = [line.split("`")[1] for line in block.splitlines() if line.startswith("`")]
    assert names
    tables = table.document([ROOT / "benchmarks" / "results" / result for result in names])
    assert table.updated(text, tables) == text


def test_every_result_is_shown() -> None:
    shown = (ROOT / "docs" / "benchmarks.md").read_text()
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        assert f"`{path.name}`" in shown, f"{path.name}: run benchmarks.table --update docs/benchmarks.md"
