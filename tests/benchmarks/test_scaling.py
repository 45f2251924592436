"""The scaling benchmark: what is run, that numbers agree with the samples, and what is missing; no speed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_bundle import build_fake_bundle
from video_samples import sample_clip

from streamsplat_edge.benchmarks import plot, table
from streamsplat_edge.benchmarks.scaling import __main__ as command
from streamsplat_edge.benchmarks.scaling import result as scaling
from streamsplat_edge.benchmarks.scaling.measure import Point, Sweep, measure
from streamsplat_edge.benchmarks.scaling.sizes import export_sizes
from streamsplat_edge.runtime.bundle import Bundle

OPTIONS = ["--frames", "6", "--sizes", "32x32", "--gaps", "2,3", "--lengths", "9,500", "--streams", "1,2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle at its own and at another size, where the command looks for exported ones, and a clip."""
    folder = tmp_path_factory.mktemp("scaling")
    bundle = build_fake_bundle(folder / "fake.bundle")
    build_fake_bundle(folder / f"{bundle.name}-32x32.bundle", height=32, width=32)
    sample_clip(folder / "clip.mp4", 12)
    return folder


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    out = folder / "out.json"
    files = ["--json", str(out), "--picture", str(folder / "out.png"), "--work", str(folder)]
    arguments = [str(folder / "fake.bundle"), "--clip", str(folder / "clip.mp4"), *OPTIONS, *files]
    assert command.main([*arguments, "--rounds", "2", "--threads", "1"]) == 0
    return json.loads(out.read_text())


def point(result: dict[str, Any], **values: int) -> dict[str, Any]:
    (found,) = [p for p in result["points"] if all(p[k] == v for k, v in values.items())]
    return found


def test_every_point_is_run_in_every_round(result: dict[str, Any]) -> None:
    measured = [p for p in result["points"] if p["status"] == "measured"]
    assert len(measured) == 6 and all(len(p["rounds"]) == 2 for p in measured)
    for one in measured:
        assert one["frames_measured"] == 2 * one["frames"] * one["streams"]
        assert len(one["stages"]["render"]["samples_ms"]) == one["frames_measured"]
        chain = sum(stage["ms_per_frame"] for stage in one["stages"].values())
        rounds = [r["chain_ms_per_frame"] for r in one["rounds"]]
        assert chain == pytest.approx(sum(rounds) / 2, rel=1e-6)


def test_key_frames_follow_the_gap(result: dict[str, Any]) -> None:
    """Six frames: key frames are the first, every gap-th and the last."""
    keys = {
        gap: len(point(result, gap=gap, frames=6, streams=1, height=16)["stages"]["encode"]["samples_ms"])
        for gap in (2, 3)
    }
    assert keys == {2: 2 * 4, 3: 2 * 3}


def test_size_and_streams_are_what_was_asked_for(result: dict[str, Any]) -> None:
    large = point(result, height=32)
    assert large["axes"] == ["pixels"] and large["gaussians"] == 2 * 16 * 16
    both = point(result, streams=2)
    assert len(both["stages"]["deform"]["samples_ms"]) == 2 * len(
        point(result, gap=both["gap"], frames=6, streams=1, height=16)["stages"]["deform"]["samples_ms"]
    )


def test_several_streams_take_the_gap(folder: Path) -> None:
    """Two streams of six frames with four key frames each, where the bundle's own gap would make three."""
    sweep = Sweep(Point(16, 32, 2, 6, 2), (), (), (), ())
    bundles: dict[tuple[int, int], Bundle | str] = {(16, 32): Bundle.load(folder / "fake.bundle")}
    (row,) = measure(sweep, bundles, str(folder / "clip.mp4"), 1, 1)
    assert len(row["stages"]["encode"]["samples_ms"]) == 2 * 4


def test_a_clip_that_is_too_short_is_listed(result: dict[str, Any]) -> None:
    assert point(result, frames=500)["reason"] == "the clip has 12 frames"


def test_table_and_picture(result: dict[str, Any], folder: Path) -> None:
    text = table.document([folder / "out.json"])
    assert "| 32x32, 4, 6, 1 |" in text
    assert "500 frames: not run: the clip has 12 frames" in text
    assert (folder / "out.png").read_bytes()[16:20] == (1280).to_bytes(4, "big")
    assert (scaling.draw(result) == plot.COLOURS[0]).all(-1).sum() > 50


def test_without_weights_other_sizes_are_listed(folder: Path, tmp_path: Path) -> None:
    bundle = Bundle.load(folder / "fake.bundle")
    found = export_sizes(bundle, [(16, 32), (64, 64)], None, tmp_path)
    assert found[16, 32] is bundle
    assert isinstance(found[64, 64], str) and "no weights for PyTorch" in found[64, 64]


def test_points_are_made_once() -> None:
    sweep = Sweep(Point(16, 32, 4, 6, 1), ((16, 32),), (4, 8), (6,), (1,))
    points = dict(sweep.points())
    assert len(points) == 2 and points[Point(16, 32, 8, 6, 1)] == ["gap"]
