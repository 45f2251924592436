"""Streams whose pictures are larger than the model, or lie on the device: resized there, as on the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_bundle import build_fake_bundle
from on_cpu_device import OnCpuDevice
from surface_samples import TURNS, FrameThere
from test_cuda_stream import check_same, on_device, picture
from yuv_samples import samples, yuv_frame

from streamsplat_edge.runtime.bundle import Bundle
from streamsplat_edge.runtime.errors import InputError
from streamsplat_edge.runtime.key_frames import MotionGap
from streamsplat_edge.runtime.pipeline import Pipeline
from streamsplat_edge.runtime.stream import Stream, open_stream
from streamsplat_edge.runtime.video import VideoFrame
from streamsplat_edge.runtime.video.surface import Surface, SurfaceFrame

# Levels of the networks' inputs differ by at most one, and so do those of the pictures; depth follows.
PLANES = 2e-3


@pytest.fixture(params=["plain", "all stages"])
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Bundle:
    stages = request.param == "all stages"
    return build_fake_bundle(tmp_path / "fake.bundle", depth_stage=stages, condition_stage=stages)


def check_inputs(ours: Stream, theirs: Stream, inputs: Any) -> None:
    """`inputs`: of the key frame that `ours` made last."""
    pairs = [(inputs.rgb, theirs.scene.rgbd[:, :3])]
    pairs += [(inputs.stage_rgb[stage], planes) for stage, planes in theirs.scene.stage_rgb.items()]
    for found, expected in pairs:
        difference = np.abs(found - expected) * 255
        assert difference.max() <= 1.001 and difference.mean() <= 0.1


SIZES = [(20, 40), (45, 70), (14, 31), (45, 70), (130, 90), (17, 32), (45, 70)]


@pytest.mark.parametrize("mapped", [False, True])
def test_sizes_that_change_from_push_to_push(bundle: Bundle, device: OnCpuDevice, mapped: bool) -> None:
    device.mapped = mapped
    model = bundle.model
    with on_device(bundle, device) as ours, open_stream(bundle) as theirs:
        for number, size in enumerate(SIZES):
            inputs = ours.scene._next  # type: ignore[attr-defined]
            device.launched.clear()
            for each in (ours, theirs):
                each.push(picture(number, size), float(number))
            kernels = [name for name, _ in device.launched if name.startswith("prepare")]
            larger = size[0] * size[1] > model.height * model.width
            assert set(kernels) == ({"prepare_rgb"} if larger else set())
            check_inputs(ours, theirs, inputs)
            time = max(0.0, number - 0.3)
            check_same(ours.render(time), theirs.render(time), atol=PLANES)


def test_nothing_is_allocated_once_a_size_is_known(bundle: Bundle, device: OnCpuDevice) -> None:
    with on_device(bundle, device) as ours:
        before = []
        for number in range(8):
            ours.push(picture(number, (45, 70)), float(number))
            before.append(device.allocations)
        assert before[0] < before[1] == before[7], "a buffer for each of two key frames in turn"
        ours.push(picture(8, (40, 40)), 8.0)
        assert device.allocations > before[7], "tables of another size"


def frames_there(
    device: OnCpuDevice, count: int, *, name: str = "nv12", turn: Any = TURNS[0]
) -> tuple[list[SurfaceFrame], list[FrameThere]]:
    """Pictures that change little, and another scene from the sixth on."""
    luma, chroma = samples(60, 90, seed=1)
    luma = luma // 8 + np.linspace(60, 200, 90).astype(np.uint8)
    others = luma // 4, np.full_like(chroma, 90)
    made, kept = [], []
    for index in range(count):
        planes = (luma + 2 * index, chroma // 4 + 96) if index < 5 else others
        kept.append(FrameThere(device, yuv_frame(name, *planes), turn))
        made.append(SurfaceFrame(Surface(kept[-1]), index / 10, index))
    return made, kept


@pytest.mark.parametrize("name", ["nv12", "p010le"])
def test_a_run_whose_pictures_stay_on_the_device(bundle: Bundle, device: OnCpuDevice, name: str) -> None:
    there, decoded = frames_there(device, 9, name=name, turn=TURNS[1])
    here = [VideoFrame(f.surface.download(), f.timestamp, f.index) for f in there]
    for frame in decoded:
        frame.downloads = 0
    with on_device(bundle, device) as ours, open_stream(bundle) as theirs:
        runs = Pipeline(there, ours, gap=3), Pipeline(here, theirs, gap=3)
        for a, b in zip(*runs, strict=True):
            assert (a.is_key, a.is_cut) == (b.is_key, b.is_cut)
            levels = np.abs(a.frame.rgb.astype(int) - b.frame.rgb)
            assert levels.max() <= (1 if name == "nv12" else 4)
        assert runs[0].report().cuts == 1 and runs[0].report().key_frames == runs[1].report().key_frames
    assert not any(frame.downloads for frame in decoded)
    assert device.followed == 9 + runs[0].report().key_frames, "once per picture that is looked at"


def test_who_wants_the_picture_on_the_host_gets_a_copy(bundle: Bundle, device: OnCpuDevice) -> None:
    there, decoded = frames_there(device, 5)
    with on_device(bundle, device) as ours:
        for rendered in Pipeline(there, ours, rule=MotionGap()):
            assert rendered.source.image.shape == (60, 90, 3)
    assert [frame.downloads for frame in decoded] == [1] * 5


def test_the_picture_is_held_until_the_device_has_read_it(bundle: Bundle, device: OnCpuDevice) -> None:
    there, _ = frames_there(device, 3)
    with on_device(bundle, device) as ours:
        for frame in there:
            inputs = ours.scene._next  # type: ignore[attr-defined]
            ours.push(frame.surface, frame.timestamp)
            assert inputs._held.held[0] is frame.surface
            others = [i._held for i in ours.scene._inputs if i is not inputs]  # type: ignore[attr-defined]
            assert all(held is None or held.held[0] is not frame.surface for held in others)


def test_a_stream_on_the_cpu_refuses_it(bundle: Bundle, device: OnCpuDevice) -> None:
    (frame,), _ = frames_there(device, 1)
    with open_stream(bundle) as stream:
        with pytest.raises(InputError, match="on a GPU, and this stream runs on the CPU"):
            stream.push(frame.surface, 0.0)
        with pytest.raises(InputError, match="on a GPU, and this stream runs on the CPU"):
            stream.scene.sample(frame.surface)
        with pytest.raises(InputError, match="on a GPU, and this stream runs on the CPU"):
            stream.scene.resized(frame.surface)
        assert stream.interval is None
