"""`streamsplat-edge run --device cuda` with the CPU in the GPU's place: whole runs, and a lost GPU."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_bundle import build_fake_bundle
from on_cpu_device import OnCpuDevice
from surface_samples import FrameThere
from test_decoding import gpu, opened_with
from video_samples import sample_clip

from streamsplat_edge import cli
from streamsplat_edge.commands import effects
from streamsplat_edge.runtime import stream
from streamsplat_edge.runtime.engines import onnxruntime
from streamsplat_edge.runtime.errors import DeviceLostError
from streamsplat_edge.runtime.sources import live as live_source
from streamsplat_edge.runtime.sources import uri
from streamsplat_edge.runtime.video import decoding, open_video

__all__ = ["gpu"]  # a fixture


@pytest.fixture
def command(tmp_path: Path, device: OnCpuDevice, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(onnxruntime, "_provider", lambda *_: "CPUExecutionProvider")
    monkeypatch.setattr(stream, "_open_device", lambda: device)
    build_fake_bundle(tmp_path / "fake.bundle")
    clip = sample_clip(tmp_path / "clip.mp4", 14)
    (tmp_path / "out").mkdir()
    options = ("--bundle", tmp_path / "fake.bundle", "-o", tmp_path / "out" / "o.mp4", "--threads", "1")
    return [*map(str, ("run", clip, *options)), "--quiet"]


def frames_of(path: Path) -> list[np.ndarray]:
    with open_video(path) as reader:
        return [frame.image for frame in reader]


def test_a_run_gives_the_same_pictures(command: list[str], tmp_path: Path) -> None:
    """Compared as PNG: what an encoder makes of a picture depends on how its threads are scheduled."""
    stats = tmp_path / "out" / "s.json"
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    assert cli.main([*command, "-o", str(ours), "--device", "cuda", "--stats", str(stats)]) == 0
    assert cli.main([*command, "-o", str(theirs)]) == 0
    images = [frames_of(folder) for folder in (ours, theirs)]
    assert len(images[0]) == len(images[1]) == 14
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(*images, strict=True)) <= 1
    report = json.loads(stats.read_text())
    assert report["stages"]["render"] == "CUDA rasterizer, kernels on the CPU"
    assert report["device_lost"] is None


@pytest.mark.parametrize("live", [False, True])
def test_pictures_that_the_gpu_decodes_stay_there(
    command: list[str],
    tmp_path: Path,
    device: OnCpuDevice,
    gpu: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    live: bool,
) -> None:
    decoded: list[FrameThere] = []

    def there(frame: Any) -> FrameThere:
        decoded.append(FrameThere(device, frame.reformat(format="nv12")))
        return decoded[-1]

    monkeypatch.setattr(decoding, "_keeps_surfaces", lambda: True)  # PyAV 17 does not
    seen = opened_with(monkeypatch, accelerates=True, there=there)
    if live:
        source = uri.SourceUri("network", command[1], "rtsp://camera/1")
        for module in (uri, effects):
            monkeypatch.setattr(module, "parse_uri", lambda _: source)
        monkeypatch.setattr(live_source, "is_live", lambda *_: True)
        command += ["--policy", "block", "--reconnect", "0"]
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    stats = tmp_path / "out" / "s.json"
    measured = ("--stats", str(stats), "--force")
    code = cli.main([*command, *measured, "-o", str(ours), "--device", "cuda", "--decode", "cuda"])
    assert code == (3 if live else 0), "a live source that ends was lost"
    assert seen[0].is_hw_owned and len(decoded) == 14
    assert not any(frame.downloads for frame in decoded)
    monkeypatch.undo()
    quality = json.loads(stats.read_text())["psnr_db"]
    assert cli.main([*command[:8], "--quiet", *measured, "-o", str(theirs)]) == 0
    for kind in ("key_frames", "in_between"):
        assert quality[kind] == pytest.approx(json.loads(stats.read_text())["psnr_db"][kind], abs=0.1)
    images = [frames_of(folder) for folder in (ours, theirs)]
    assert len(images[0]) == len(images[1]) == 14
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(*images, strict=True)) <= 1


def lose(device: OnCpuDevice, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """The device takes so many launches."""
    original = device.launch

    def launch(kernel: str, *arguments: object) -> None:
        if len(device.launched) >= after:
            raise DeviceLostError("The GPU was lost.", "Start again.")
        original(kernel, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(device, "launch", launch)


def test_a_lost_gpu_leaves_a_playable_file(
    command: list[str],
    tmp_path: Path,
    device: OnCpuDevice,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lose(device, monkeypatch, after=10)  # two per key frame and two per interval
    stats = tmp_path / "out" / "s.json"
    assert cli.main([*command, "--device", "cuda", "--stats", str(stats)]) == 2
    said = capsys.readouterr().err
    kept = len(frames_of(tmp_path / "out" / "o.mp4"))
    assert 0 < kept < 14
    assert "error: The GPU was lost." in said
    assert f"hint: what was done until then, {kept} frames, is kept. Start again." in said
    report = json.loads(stats.read_text())
    assert report["frames"]["total"] == kept and report["device_lost"] == "The GPU was lost."


def test_lost_before_the_first_frame_leaves_nothing(
    command: list[str], tmp_path: Path, device: OnCpuDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(device, monkeypatch, after=3)
    assert cli.main([*command, "--device", "cuda"]) == 2
    assert list((tmp_path / "out").iterdir()) == []
