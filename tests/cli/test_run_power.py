"""Power in the statistics of `run`: a made-up Jetson, a machine that tells nothing, several inputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from video_samples import sample_clip

from streamsplat_edge import cli
from streamsplat_edge.commands import run
from streamsplat_edge.runtime.power import Nvml
from streamsplat_edge.runtime.power.rails import find_rails


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /sys of the test's own, where `run` reads power."""
    root = tmp_path / "sys"
    monkeypatch.setattr(run, "find_rails", lambda nvml: find_rails(nvml, root))
    monkeypatch.setattr(run, "Nvml", lambda: _without_gpu())
    return root


def _without_gpu() -> Nvml:
    nvml = Nvml.__new__(Nvml)
    nvml.gpus, nvml.problem, nvml.driver = [], "NVML: there is no GPU", None
    return nvml


def jetson(root: Path) -> None:
    chip = root / "class" / "hwmon" / "hwmon3"
    chip.mkdir(parents=True)
    files = {"name": "ina3221", "in1_label": "VDD_IN", "in1_input": 5000, "curr1_input": 2400}
    for name, value in files.items():
        (chip / name).write_text(f"{value}\n")


def test_a_jetson(tmp_path: Path, fake_bundle: Path, sysfs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jetson(sysfs)
    clip, stats = sample_clip(tmp_path / "clip.mp4", 9), tmp_path / "s.json"
    assert cli.main([*map(str, ("run", clip, "--bundle", fake_bundle, "--stats", stats))]) == 0
    power = json.loads(stats.read_text())["power"]
    assert power["mean_w"] == pytest.approx(12) and power["max_w"] == 12 and power["counted"] == ["VDD_IN"]
    assert power["joules_per_frame"] == pytest.approx(power["joules"] / 9) and power["joules"] > 0
    assert "power: 12.0 W on average, 12.0 W at most, " in capsys.readouterr().out


def test_nothing_to_read(
    tmp_path: Path, fake_bundle: Path, sysfs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, stats = sample_clip(tmp_path / "clip.mp4", 5), tmp_path / "s.json"
    assert cli.main([*map(str, ("run", clip, "--bundle", fake_bundle, "--stats", stats))]) == 0
    power = json.loads(stats.read_text())["power"]
    assert power["mean_w"] == power["max_w"] == power["joules"] == "not measured"
    assert "there is no GPU" in power["reason"] and "INA3221" in power["reason"]
    assert "power" not in capsys.readouterr().out


def test_several_inputs_share_it(
    tmp_path: Path, fake_bundle: Path, sysfs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jetson(sysfs)
    clips = [sample_clip(tmp_path / f"{i}.mp4", count) for i, count in enumerate((5, 9))]
    assert cli.main([*map(str, ("run", *clips, "--bundle", fake_bundle, "--json"))]) == 0
    streams = json.loads(capsys.readouterr().out)["streams"]
    first, second = (stream["power"] for stream in streams)
    assert first == second and first["streams"] == 2
    assert first["joules_per_frame"] == pytest.approx(first["joules"] / 14)
