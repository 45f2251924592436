"""Rendering an interval by CUDA graphs: what a graph holds, when it is captured or replayed, its results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_bundle import build_fake_bundle
from kernel_rasterizer import fetch
from on_cpu_device import OnCpuDevice
from test_cuda_stream import check_same, on_device, picture
from test_device_lifecycle import MODEL, VIEW, Both, G

from streamsplat_edge.runtime.bundle import Bundle
from streamsplat_edge.runtime.cuda.device import Device
from streamsplat_edge.runtime.cuda.graphs import RenderGraphs
from streamsplat_edge.runtime.cuda.rasterizer import OUTPUTS, CudaRasterizer
from streamsplat_edge.runtime.errors import DeviceLostError, EngineError
from streamsplat_edge.runtime.rasterizer import View
from streamsplat_edge.runtime.stream import Stream, open_stream

KERNELS = ["project_ring_canonical", "blend_ring_canonical"]
PLAIN, WHOLE = [*KERNELS, "copy"], [*KERNELS, *["copy"] * 4]  # with the bytes, and with depth and alpha


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return build_fake_bundle(tmp_path / "fake.bundle")


@pytest.fixture
def ours(bundle: Bundle, device: OnCpuDevice) -> Stream:
    return on_device(bundle, device)


def push(number: int, *streams: Stream) -> None:
    for stream in streams:
        stream.push(picture(number), float(number))


def times(number: int, count: int) -> list[float]:
    """So many times of the interval that ends at `number`, others in every interval."""
    inside = np.random.default_rng(number).uniform(0.01, 0.99, count)
    return [number - 1 + float(share) for share in sorted(inside)]


def test_a_graph_for_each_number_of_images_and_pair(
    ours: Stream, bundle: Bundle, device: OnCpuDevice
) -> None:
    seen: set[tuple[int, int]] = set()
    with ours, open_stream(bundle) as theirs:
        push(0, ours, theirs)
        for number, count in enumerate([3, 3, 3, 1, 5, 3, 1, 1, 5, 5], start=1):
            push(number, ours, theirs)
            device.launched.clear()
            device.replayed.clear()
            key = count, number % 2
            given = times(number, count)
            for a, b in zip(ours.render_many(given), theirs.render_many(given), strict=True):
                check_same(a, b)
            if key in seen:
                assert device.replayed == [WHOLE] and not device.launched
            else:
                assert not device.replayed
                assert [(name, grid[2]) for name, grid in device.launched] == [(k, count) for k in KERNELS]
                seen.add(key)
        assert len(ours.scene.render_graphs) == len(seen) == 6  # type: ignore[attr-defined]
        words = ours.description
        assert words["render_graph"] == "CUDA graphs, one for each number of images and pair of key frames"
        assert "ONNX Runtime" in words["graph"], "whose key frames are none"
        assert "render_graph" not in theirs.description


def test_a_long_interval_takes_a_graph_per_launch(ours: Stream, bundle: Bundle, device: OnCpuDevice) -> None:
    with ours, open_stream(bundle) as theirs:
        for number in range(4):
            push(number, ours, theirs)
        for _ in range(2):
            device.replayed.clear()
            given = times(3, 12)  # five at a time, as the gap of the bundle has
            for a, b in zip(ours.render_many(given, depth=False), theirs.render_many(given), strict=True):
                np.testing.assert_array_equal(a.rgb, b.rgb)
                assert a.stats.render == b.stats.render
        assert device.replayed == [PLAIN] * 3


def test_what_is_baked_and_what_is_not(ours: Stream, bundle: Bundle, device: OnCpuDevice) -> None:
    """Times, backgrounds and views change freely; outputs, extent, path and buffers are of the graph."""
    with ours, open_stream(bundle) as theirs:
        push(0, ours, theirs)
        push(1, ours, theirs)
        settings: list[dict[str, Any]] = [
            {},
            {"extent": "full"},
            {"view": View.swing(0.2, 0.1, 1.0)},
            {"view": View.swing(0.2, 0.1, 1.0), "extent": "full"},
        ]
        for made, setting in enumerate(settings, start=1):
            for time, grey in ((0.2, 0.1), (0.7, 0.9)):
                both = (each.render(time, background=(grey, 0.2, 0.3), **setting) for each in (ours, theirs))
                check_same(*both)
            assert len(ours.scene.render_graphs) == made  # type: ignore[attr-defined]
        check_same(*(each.render(0.4, view=View.swing(-0.3, 0.0, 1.0)) for each in (ours, theirs)))
        assert len(ours.scene.render_graphs) == 4  # type: ignore[attr-defined]
        assert ours.render(0.3, depth=False).planes is None
        list(ours.render_many([0.3]))  # other buffers
        assert len(ours.scene.render_graphs) == 6  # type: ignore[attr-defined]
        names = {tuple(replayed[:2]) for replayed in device.replayed}
        assert names == {tuple(KERNELS), ("project_ring_general", "blend_ring_general")}


def test_a_replay_waits_once_and_allocates_nothing(
    ours: Stream, device: OnCpuDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[None] = []
    with ours:
        for number in range(3):
            push(number, ours)
            list(ours.render_many(times(number, 2) if number else [0.0]))
        push(3, ours)
        before = device.allocations
        monkeypatch.setattr(device, "synchronize", lambda: waits.append(None))
        list(ours.render_many(times(3, 2)))
        assert device.replayed == [WHOLE] and len(waits) == 1 and device.allocations == before


@pytest.mark.parametrize("schedule", [0, 1, 2])
def test_tiles_that_overflow_are_found_by_the_graph(
    ours: Stream, bundle: Bundle, device: OnCpuDevice, schedule: int
) -> None:
    """What overflows differs from time to time, and no result depends on it."""
    device.schedule(schedule)
    scene: Any = ours.scene
    model = bundle.model
    size = model.height, model.width
    scene.rasterizer = few = CudaRasterizer(
        device, *size, 2 * model.gaussians, times=5, slots=160, outputs=()
    )
    with ours, open_stream(bundle) as theirs:
        found = set()
        for number in range(6):
            push(number, ours, theirs)
            given = times(number, 4) if number else [0.0] * 4
            for a, b in zip(ours.render_many(given), theirs.render_many(given), strict=True):
                check_same(a, b)
            images = scene.life.render(few, given, into=scene._several.device)
            found |= set(images.overflowing_tiles)
        assert len(device.replayed) == 4 and len(found) > 1 and max(found) > 0, found


def test_a_device_that_refuses_is_said_and_asked_once(
    ours: Stream, bundle: Bundle, device: OnCpuDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[None] = []

    def refuses(enqueue: Callable[[], None], *, warm_up: bool = True) -> Callable[[], None]:
        asked.append(None)
        raise EngineError("This driver captures nothing.")

    monkeypatch.setattr(device, "capture", refuses)
    with ours, open_stream(bundle) as theirs:
        for number in range(4):
            push(number, ours, theirs)
            check_same(ours.render(), theirs.render())
        assert len(asked) == 1
        assert ours.description["render_graph"] == (
            "no CUDA graph, kernel by kernel: This driver captures nothing."
        )


def test_switched_off(bundle: Bundle, device: OnCpuDevice) -> None:
    stream = on_device(bundle, device, graphs=False)
    with stream, stream.fork() as second:
        for each in (stream, second):
            for number in range(4):
                push(number, each)
                each.render()
            assert each.description["render_graph"].endswith("kernel by kernel: graphs were switched off")
    assert not device.replayed


def test_a_gpu_that_is_lost_while_capturing(
    ours: Stream, device: OnCpuDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(enqueue: Callable[[], None], *, warm_up: bool = True) -> Callable[[], None]:
        raise DeviceLostError("The GPU was lost.", "Start again.")

    monkeypatch.setattr(device, "capture", lost)
    with ours:
        push(0, ours)
        with pytest.raises(DeviceLostError):
            ours.render()
        assert ours.scene.render_graphs.refusal is None  # type: ignore[attr-defined]


def test_forks_have_graphs_of_their_own(ours: Stream, bundle: Bundle) -> None:
    with ours, ours.fork() as second, open_stream(bundle) as theirs:
        for number in range(4):
            push(number, ours)
            push(number + 20, second, theirs)
            for stream in (ours, second):
                stream.render()
            check_same(second.render(), theirs.render())
        assert len(second.scene.render_graphs) == len(ours.scene.render_graphs) == 2  # type: ignore[attr-defined]


def test_the_kernels_by_graphs(any_device: Device) -> None:
    """Without networks, so that it runs wherever there is a GPU."""
    both = Both(any_device)
    graphs = RenderGraphs(any_device)
    rasterizer = CudaRasterizer(
        any_device, MODEL.height, MODEL.width, 2 * G, times=3, slots=16, outputs=OUTPUTS
    )
    for number in range(5):
        both.spawn(number, float(number))
        for count in (2, 3):
            given = times(number, count) if number else [0.0] * count
            for views in (None, [VIEW] * count):
                pictures = []
                for start in (None, graphs.start, graphs.start):
                    images = both.ours.render(rasterizer, given, views=views, start=start)
                    pictures.append([fetch(any_device, getattr(images, name)) for name in OUTPUTS])
                    assert images.stats and graphs.refusal is None
                for others in pictures[1:]:
                    for expected, found in zip(pictures[0], others, strict=True):
                        np.testing.assert_array_equal(found, expected)
    assert len(graphs) == 2 * 2 * 2
