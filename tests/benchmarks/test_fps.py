"""The benchmark of the whole chain: what its report holds, and that its numbers agree with each other."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from fake_bundle import build_fake_bundle
from video_samples import sample_clip

from streamsplat_edge.benchmarks import fps, passes
from streamsplat_edge.runtime.stream import open_stream
from streamsplat_edge.runtime.timing import LatencyRecorder, summarise


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "fake.bundle"
    build_fake_bundle(path)
    return path


def test_report(tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = sample_clip(tmp_path / "clip.mp4", 22)
    out = tmp_path / "fps.json"
    code = fps.main(
        [str(clip), "--bundle", str(bundle), "--frames", "18", "--paced", "200", "--json", str(out)]
    )
    printed = capsys.readouterr().out
    assert code == 0
    for word in (
        "machine",
        "software",
        "warm-up",
        "cv %",
        "capture_to_present",
        "power not measured",
        "PSNR",
    ):
        assert word in printed, word
    result = json.loads(out.read_text())
    assert result["frames"] == {"total": 18, "key": 6, "cuts": 0}
    for stage, count in (("decode", 18), ("preprocess", 6), ("encode", 6), ("deform", 5), ("render", 18)):
        samples = result["samples_ms"][stage]
        assert len(samples) == count, stage
        # The table is computed from the raw samples and from nothing else (they are rounded to 0.1 us).
        for name, value in summarise(np.array(samples)).items():
            assert result["latency_ms"][stage][name] == pytest.approx(value, abs=1e-3, rel=1e-2), (
                stage,
                name,
            )
    throughput = result["throughput"]
    assert throughput["fps"] == pytest.approx(18 / throughput["seconds"])
    assert throughput["chain_fps"] > 0 and throughput["cpu_cores_busy"] > 0
    assert result["psnr_db"]["key_frames"]["count"] == 6 and result["psnr_db"]["in_between"]["count"] == 12
    assert result["psnr_db"]["key_frames"]["mean"] > 15
    assert result["power_w"] == "not measured" and result["memory"]["peak_mib"] > 10
    assert result["machine"]["cores_usable"] >= 1 and result["software"]["onnxruntime"]
    assert all(len(entry["sha256"]) == 64 for entry in result["bundle"]["files"].values())
    paced = result["paced"]
    assert paced["frames"] + paced["dropped"] == 18 and len(paced["samples_ms"]) == paced["frames"]


def test_one_frame_late_by_a_slow_render_is_counted(tmp_path: Path, bundle: Path) -> None:
    clip = passes.Clip(str(sample_clip(tmp_path / "clip.mp4", 12)), None)
    with open_stream(bundle) as stream:
        on_time = passes.paced(clip, stream, 2, 20.0)
        render_many = stream.render_many

        def slow(timestamps: list[float], **options: object) -> Iterator[object]:
            for frame in render_many(timestamps, **options):  # type: ignore[arg-type]
                time.sleep(0.2)  # four times the frame interval
                yield frame

        stream.render_many = slow  # type: ignore[method-assign, assignment]
        behind = passes.paced(clip, stream, 2, 20.0)
    assert on_time["frames"] == 12 and on_time["dropped"] == 0
    assert on_time["capture_to_present_ms"]["min"] >= 0
    assert behind["late"] > on_time["late"] and behind["dropped"] > 0


@dataclass
class _Frame:
    index: int
    timestamp: float = 0.0
    image: object = None


def test_paced_frames_never_come_early() -> None:
    source = passes.Paced([_Frame(i) for i in range(5)], 50.0)
    start = time.perf_counter()
    for frame in source:
        now = time.perf_counter()
        assert now >= source.captured[frame.index] >= start
    assert time.perf_counter() - start >= 4 / 50.0


def test_refusals(tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fps.main([str(tmp_path / "none.mp4"), "--bundle", str(bundle)]) == 2
    assert "error:" in capsys.readouterr().err
    clip = sample_clip(tmp_path / "clip.mp4", 4)
    assert fps.main([str(clip), "--bundle", str(tmp_path / "none.bundle")]) == 2
    assert "none.bundle" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        fps.main([str(clip), "--bundle", str(bundle), "--frames", "0"])


def test_samples_are_never_removed() -> None:
    """A summary over more samples than a stream keeps by default still counts all of them."""
    recorder = LatencyRecorder()
    for value in range(150_000):
        recorder.add("render", float(value))
    assert recorder.summary()["render"]["count"] == 150_000
