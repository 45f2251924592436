"""Streams, lifecycle and rasterizer on a device that works when it is waited for, or at any time before: the
host reads what is done, and overwrites what has been read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_bundle import build_fake_bundle
from kernel_rasterizer import upload
from late_device import LateDevice
from on_cpu_device import OnCpuDevice
from reference_renderer import random_splats
from test_cuda_stream import on_device, picture
from test_device_lifecycle import MODEL, SIZE, G, key_frame
from test_large_pictures import frames_there
from test_push_graphs import in_stream

from streamsplat_edge.runtime.bundle import Bundle
from streamsplat_edge.runtime.cuda.lifecycle import DeviceLifecycle, IntervalTotals
from streamsplat_edge.runtime.cuda.rasterizer import CudaRasterizer, DeviceImages
from streamsplat_edge.runtime.errors import EngineError
from streamsplat_edge.runtime.pipeline import Pipeline
from streamsplat_edge.runtime.stream import Frame, Stream


@pytest.fixture(params=[None, 1, 2], ids=["latest", "at times", "at other times"])
def late(request: pytest.FixtureRequest, kernels: Path) -> Iterator[LateDevice]:
    device = LateDevice(kernels, request.param)
    yield device
    device.synchronize()
    device.check_guards()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return build_fake_bundle(tmp_path / "fake.bundle", depth_stage=True, condition_stage=True)


def opened(bundle: Bundle, device: LateDevice, *, graphs: bool = True) -> Stream:
    """Networks, too, run when the device comes to them."""
    stream = on_device(bundle, device, graphs=graphs)
    device.synchronize()  # `warm_up` ran them at once
    return in_stream(stream, device)


def fail(stream: Stream, how: str, image: np.ndarray, time: float, patch: pytest.MonkeyPatch) -> None:
    """A push that fails when its last stage is started, or when the device is waited for: not before it has
    been given everything."""

    def broken(*_: object) -> None:
        raise EngineError("Broken.")

    scene: Any = stream.scene
    with patch.context() as once:
        if how == "start":
            once.setattr(stream.stages.engines["deform"], "run", broken)
        else:
            once.setattr(scene.device, "synchronize", broken)
        with pytest.raises(EngineError, match="Broken"):
            stream.push(image, time)


@pytest.fixture
def prompt(kernels: Path) -> OnCpuDevice:
    return OnCpuDevice(kernels)


def check_equal(ours: Frame, theirs: Frame) -> None:
    for name in ("rgb", "depth", "expected_depth", "alpha"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), name)
    assert ours.stats.render == theirs.stats.render


@pytest.mark.parametrize("mapped", [False, True], ids=["own memory", "mapped"])
@pytest.mark.parametrize("graphs", [False, True], ids=["stage by stage", "graphs"])
def test_a_stream_reads_what_is_done_and_overwrites_what_was_read(
    bundle: Bundle,
    late: LateDevice,
    prompt: OnCpuDevice,
    monkeypatch: pytest.MonkeyPatch,
    graphs: bool,
    mapped: bool,
) -> None:
    late.mapped = mapped
    failures = {4: "start", 5: "start", 6: "wait", 13: "wait"}  # with graphs the last one is a replay
    unseen = {3, 14, 15, 16}  # nothing but the push itself waits; what depth ranges over shows later
    sizes = [(14, 31), (60, 90), (20, 40), (45, 70)]
    with opened(bundle, late, graphs=graphs) as ours, on_device(bundle, prompt) as theirs:
        for number in range(18):
            image, time = picture(number, sizes[number % 4]) // (1 + number % 3), float(number)
            if number in failures:
                spoilt = picture(50 + number, sizes[number % 3])
                fail(ours, failures[number], spoilt, time, monkeypatch)
            for each in (ours, theirs):
                each.push(image, time, cut=number == 9)
            if number in unseen:
                continue
            first, last = theirs.interval or (0.0, 0.0)
            times = [first, first + 0.4 * (last - first), last]
            for a, b in zip(ours.render_many(times), theirs.render_many(times), strict=True):
                check_equal(a, b)
            check_equal(ours.render(times[1]), theirs.render(times[1]))
            depths = [[inputs.depth for inputs in each.scene._inputs] for each in (ours, theirs)]  # type: ignore[attr-defined]
            np.testing.assert_equal(*depths)
            found, expected = (each.scene.splats(times[1]) for each in (ours, theirs))
            for name in ("means", "scales", "opacity", "rgb"):
                np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_pictures_of_a_decoder_on_the_device(bundle: Bundle, late: LateDevice, prompt: OnCpuDevice) -> None:
    with opened(bundle, late) as ours, on_device(bundle, prompt) as theirs:
        runs = [
            Pipeline(frames_there(device, 9)[0], each, gap=3)
            for device, each in ((late, ours), (prompt, theirs))
        ]
        for a, b in zip(*runs, strict=True):
            assert (a.is_key, a.is_cut) == (b.is_key, b.is_cut)
            check_equal(a.frame, b.frame)


def downloading(device: LateDevice, images: DeviceImages) -> list[np.ndarray]:
    """Copies on the host, once the device has come so far."""
    copies = []
    for name in ("rgb", "depth", "alpha"):
        copies.append(device.pinned(getattr(images, name).shape, np.float32))
        device.copy(copies[-1], getattr(images, name))
    return copies


def test_frames_that_nobody_waited_for(late: LateDevice, prompt: OnCpuDevice) -> None:
    """More than the ring has slots: images are those of their own views, and the last four have counts."""
    scenes = [random_splats(40 + 10 * i, i, height=SIZE[0], width=SIZE[1]) for i in range(9)]
    rasterizers: list[CudaRasterizer] = []  # at its end each waits for what it has started

    def run(device: LateDevice | OnCpuDevice) -> tuple[list[DeviceImages], list[list[np.ndarray]]]:
        given = [upload(device, splats) for splats in scenes]
        rasterizers.append(CudaRasterizer(device, *SIZE, 200))
        images, copies = [], []
        for i, splats in enumerate(given):
            images.append(rasterizers[-1].render(splats, background=(0.1 * i, 0, 0)))
            copies.append(downloading(device, images[-1]))
        return images, copies

    (images, found), (images_at_once, expected) = run(late), run(prompt)
    assert [made.stats for made in images[-4:]] == [made.stats for made in images_at_once[-4:]]
    late.synchronize()
    np.testing.assert_equal(found, expected)


def test_intervals_that_nobody_waited_for(late: LateDevice, prompt: OnCpuDevice) -> None:
    """Key frames, moments and counts go through rings, and the host is several intervals ahead."""

    def run(device: LateDevice | OnCpuDevice) -> tuple[IntervalTotals, list[list[np.ndarray]]]:
        life, copies = DeviceLifecycle(device, MODEL), []
        rasterizer = CudaRasterizer(device, *SIZE, 2 * G)
        for number in range(11):
            slot, pair, arrays = life.spare, life.spare_pair, key_frame(number)
            for target, name in ((slot.gaussians, "gaussians"), (pair.motion, "motion"), (pair.fade, "fade")):
                device.copy(target, arrays[name])
            life.spawn(number / 2, cut=number == 6)
            images = life.render(rasterizer, [max(0.0, number / 2 - (0.2 if number != 6 else 0.0))])
            copies.append(downloading(device, images))
        return life.totals, copies

    (totals, found), (expected_totals, expected) = run(late), run(prompt)
    assert totals == expected_totals
    late.synchronize()
    np.testing.assert_equal(found, expected)
