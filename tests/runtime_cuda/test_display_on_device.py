"""`run --device cuda --display`: the image goes into OpenGL's buffer on the device, without the host.

Without a GPU, the CPU stands in for CUDA and OpenGL's own mapping for CUDA's; drawing is Mesa's either way.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_bundle import build_fake_bundle
from on_cpu_device import OnCpuDevice
from video_samples import sample_clip

sys.path.insert(0, str(Path(__file__).parents[1] / "display"))

from gl_surface import EglSurface, MappingDriver, host_array, moderngl

from streamsplat_edge import cli
from streamsplat_edge.commands import run
from streamsplat_edge.runtime import stream
from streamsplat_edge.runtime.cuda.device import Device
from streamsplat_edge.runtime.display.cuda_gl import GlDriver
from streamsplat_edge.runtime.display.feed import CudaFeed
from streamsplat_edge.runtime.display.observer import LiveDisplay
from streamsplat_edge.runtime.display.picture import Picture
from streamsplat_edge.runtime.engines import onnxruntime
from streamsplat_edge.runtime.errors import InputError
from streamsplat_edge.runtime.video import open_video

WIDTH, HEIGHT = 32, 16  # of the fake bundle


class Watched(OnCpuDevice):
    """Knows its own memory: what is copied into OpenGL's buffer must come from there, not from the host."""

    def __init__(self, library: Path) -> None:
        super().__init__(library)
        self.of_device: list[np.ndarray] = []
        self.foreign: list[np.ndarray] = []

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        array = super().zeros(shape, dtype)
        self.of_device.append(array)
        return array

    def adopt(self, array: Any) -> np.ndarray:
        self.foreign.append(array)
        return np.asarray(array)

    def copy(self, target: np.ndarray, source: np.ndarray) -> None:
        if any(target is array for array in self.foreign):
            assert any(np.shares_memory(source, array) for array in self.of_device)
        super().copy(target, source)


@pytest.fixture
def watched(kernels: Path) -> Watched:
    return Watched(kernels)


@pytest.fixture
def command(tmp_path: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(onnxruntime, "_provider", lambda *_: "CPUExecutionProvider")
    monkeypatch.setattr(stream, "_open_device", lambda: watched)
    build_fake_bundle(tmp_path / "fake.bundle")
    clip = sample_clip(tmp_path / "clip.mp4", 14, height=32, width=64)
    options = ("--bundle", tmp_path / "fake.bundle", "--threads", 1, "--device", "cuda", "--display")
    return [*map(str, ("run", clip, *options)), "--quiet"]


def show_on(surface: EglSurface, driver: MappingDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    def feed(picture: Picture, device: Device, renderer: str) -> CudaFeed:
        return CudaFeed(picture, device, renderer, driver=GlDriver(driver), mapped=host_array)

    def open_display(title: str, width: int, height: int) -> LiveDisplay:
        return LiveDisplay(surface, width / height, on_device=feed, clock=lambda: surface.now)

    monkeypatch.setattr(run, "open_display", open_display)


def frames_of(path: Path) -> list[np.ndarray]:
    with open_video(path) as reader:
        return [frame.image for frame in reader]


def test_what_the_rasterizer_wrote_is_shown(
    command: list[str], watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    surface, driver = EglSurface(WIDTH, HEIGHT), MappingDriver()
    show_on(surface, driver, monkeypatch)
    stats = tmp_path / "s.json"
    # The novel view is rendered by the same rasterizer after each frame, and must not be what is shown.
    outputs = ("-o", tmp_path / "o.mp4", "--layout", "reconstruction,novel", "--stats", stats)
    assert cli.main([*command, *map(str, outputs)]) == 0
    assert cli.main([*command[:-2], "--quiet", "-o", str(tmp_path / "out")]) == 0
    np.testing.assert_array_equal(surface.presented, frames_of(tmp_path / "out"))
    assert driver.calls == ["register", *["map", "unmap"] * 14, "unregister"]
    assert len(watched.foreign) == 14 and not surface.is_open
    report = json.loads(stats.read_text())
    assert report["settings"]["display"].endswith(", written by CUDA, kernels on the CPU")


def test_a_gpu_lost_while_the_window_is_drawn(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    surface, driver = EglSurface(WIDTH, HEIGHT), MappingDriver()
    show_on(surface, driver, monkeypatch)
    original = driver.cuGraphicsMapResources

    def lost(*arguments: Any) -> int:
        return 719 if driver.calls.count("map") == 8 else original(*arguments)

    monkeypatch.setattr(driver, "cuGraphicsMapResources", lost)
    assert cli.main([*command, "-o", str(tmp_path / "o.mp4")]) == 2
    said = capsys.readouterr().err
    kept = len(frames_of(tmp_path / "o.mp4"))
    assert kept == 8 == len(surface.presented)
    assert "lost while its window was drawn" in said and f"{kept} frames, is kept" in said
    assert not surface.is_open and driver.calls[-1] == "unregister"


def test_a_window_of_another_gpu_ends_the_run_before_it_begins(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    surface, driver = EglSurface(WIDTH, HEIGHT), MappingDriver()
    show_on(surface, driver, monkeypatch)
    monkeypatch.setattr(driver, "cuGLGetDevices_v2", lambda *_: 219)
    assert cli.main([*command, "-o", str(tmp_path / "o.mp4")]) == 2
    said = capsys.readouterr().err
    assert "not by the NVIDIA driver" in said and "__NV_PRIME_RENDER_OFFLOAD=1" in said
    assert not surface.is_open and not (tmp_path / "o.mp4").exists() and driver.calls == []


def test_frames_of_the_host_are_no_frames_of_the_gpu(watched: Watched) -> None:
    picture = Picture(EglSurface(4, 4).context, 4, 4, 1.0)
    feed = CudaFeed(picture, watched, "Mesa", driver=GlDriver(MappingDriver()), mapped=host_array)
    with pytest.raises(InputError, match="not on the GPU"):
        feed.fill(SimpleNamespace(on_device=None))  # type: ignore[arg-type]
    feed.close()
    feed.close()


@pytest.mark.gpu
def test_cuda_writes_what_opengl_draws() -> None:
    """The real driver, without a screen: EGL on the GPU that CUDA uses."""
    from streamsplat_edge.runtime.cuda.cupy_device import CupyDevice

    device = CupyDevice()
    refused, feed = [], None
    for number in range(16):  # EGL numbers its devices in an order of its own
        try:
            context = moderngl.create_context(330, standalone=True, backend="egl", device_index=number)
        except Exception:  # there are no more
            break
        renderer = context.info["GL_RENDERER"]
        picture = Picture(context, 45, 61, 61 / 45)
        try:
            feed = CudaFeed(picture, device, renderer)
            break
        except InputError as error:
            refused.append((context.info["GL_VENDOR"], str(error)))
            context.release()
    if feed is None:
        assert not any("NVIDIA" in vendor for vendor, _ in refused), refused
        pytest.skip(f"NVIDIA's OpenGL without a screen is not installed (libnvidia-gl): {refused}")
    target = context.framebuffer([context.texture((61, 45), 4)])
    for seed in range(3):
        image = np.random.default_rng(seed).integers(0, 256, (45, 61, 3), np.uint8)
        with device.stream:
            on_device = device.cupy.asarray(image)
        feed.fill(SimpleNamespace(on_device=on_device))  # type: ignore[arg-type]
        picture.draw(target, (61, 45))
        shown = np.frombuffer(target.read(components=3, alignment=1), np.uint8).reshape(45, 61, 3)[::-1]
        np.testing.assert_array_equal(shown, image)
    feed.close()
    picture.close()
