"""Several images in one launch within a stream: what is started, waited for and copied."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_bundle import build_fake_bundle
from on_cpu_device import OnCpuDevice
from test_cuda_stream import check_same, on_device, picture

from streamsplat_edge.runtime import stream as stream_module
from streamsplat_edge.runtime.bundle import Bundle
from streamsplat_edge.runtime.cuda.scene import BATCH
from streamsplat_edge.runtime.errors import InputError
from streamsplat_edge.runtime.pipeline import Pipeline
from streamsplat_edge.runtime.rasterizer import View
from streamsplat_edge.runtime.stream import Stream, open_stream
from streamsplat_edge.runtime.video import VideoFrame

TIMES = [0.0, 0.3, 0.5, 1.0]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return build_fake_bundle(tmp_path / "fake.bundle")


@pytest.fixture
def log(device: OnCpuDevice, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is asked of the device: images of a launch, shapes of images copied, waits."""
    kept: list[tuple[Any, ...]] = []
    copy, launch = device.copy, device.launch

    def copied(target: np.ndarray, source: np.ndarray) -> None:
        if source.ndim >= 3:
            kept.append(("copy", target.dtype.name, *target.shape))
        copy(target, source)

    def launched(kernel: str, grid: tuple[int, int, int], *arguments: np.ndarray) -> None:
        if kernel.startswith("blend"):
            kept.append(("blend", grid[2]))
        launch(kernel, grid, *arguments)

    monkeypatch.setattr(device, "copy", copied)
    monkeypatch.setattr(device, "launch", launched)
    monkeypatch.setattr(device, "synchronize", lambda: kept.append(("wait",)))
    return kept


def kernel_by_kernel(bundle: Bundle, device: OnCpuDevice) -> Stream:
    """To see what else is a graph (`test_render_graphs`)."""
    return on_device(bundle, device, graphs=False)


def test_one_launch_one_wait_and_only_what_is_wanted(
    bundle: Bundle, device: OnCpuDevice, log: list[tuple[Any, ...]]
) -> None:
    size = bundle.model.height, bundle.model.width
    with kernel_by_kernel(bundle, device) as ours, open_stream(bundle) as theirs:
        for each in (ours, theirs):
            each.push(picture(0), 0.0)
            each.push(picture(1), 1.0)
        log.clear()
        plain = list(ours.render_many(TIMES, depth=False))
        assert log == [("blend", 4), ("copy", "uint8", 4, *size, 3), ("wait",)]
        log.clear()
        whole = list(ours.render_many(TIMES))
        assert log[:2] == [("blend", 4), ("copy", "uint8", 4, *size, 3)]
        assert log[2:] == [("copy", "float32", 4, *size)] * 3 + [("wait",)]
        expected = list(theirs.render_many(TIMES))
        assert [frame.timestamp for frame in whole] == TIMES
        for a, b, c, time in zip(plain, whole, expected, TIMES, strict=True):
            check_same(b, c)
            check_same(b, ours.render(time))
            np.testing.assert_array_equal(a.rgb, b.rgb)
            assert a.stats.render == b.stats.render
            with pytest.raises(InputError, match=r"without depth and alpha.*depth=True"):
                _ = a.expected_depth
        log.clear()
        ours.render(0.2, depth=False)
        assert log == [("blend", 1), ("copy", "uint8", 1, *size, 3), ("wait",)]


def test_a_run_renders_every_interval_in_one_launch(
    bundle: Bundle, device: OnCpuDevice, log: list[tuple[Any, ...]]
) -> None:
    assert bundle.model.key_frame_gap == 4
    frames = [VideoFrame(picture(i), i / 10, i) for i in range(30)]
    with kernel_by_kernel(bundle, device) as ours, open_stream(bundle) as theirs:
        for gap, count, launches in ((4, 10, [5, 4, 1]), (12, 13, [5, 5, 3]), (1, 3, [2, 1])):
            log.clear()
            found, wanted = (
                list(Pipeline(frames[:count], each, gap=gap, detect_cuts=False)) for each in (ours, theirs)
            )
            assert [entry[1] for entry in log if entry[0] == "blend"] == launches
            for a, b in zip(found, wanted, strict=True):
                check_same(a.frame, b.frame)
                assert (a.is_key, len(a.pushes)) == (b.is_key, len(b.pushes))
    assert BATCH >= 5


def test_a_batch_shares_its_time(
    bundle: Bundle, device: OnCpuDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that moves only while the device is waited for."""
    now = [0.0]

    def wait() -> None:
        now[0] += 12e-3

    monkeypatch.setattr(device, "synchronize", wait)
    monkeypatch.setattr(stream_module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    with on_device(bundle, device) as ours:
        ours.push(picture(0), 0.0)
        ours.push(picture(1), 1.0)
        latencies = [frame.stats.latency for frame in ours.render_many([0.1 * i for i in range(8)])]
    assert latencies == pytest.approx([12 / 5] * 5 + [12 / 3] * 3)


@pytest.mark.parametrize("place", ["device", "host"])
def test_what_may_happen_while_frames_are_taken(bundle: Bundle, place: str, request: Any) -> None:
    made = on_device(bundle, request.getfixturevalue("device")) if place == "device" else open_stream(bundle)
    with made as stream:
        with pytest.raises(InputError, match="Nothing was pushed"):
            stream.render_many([0.0])
        stream.push(picture(0), 0.0)
        stream.push(picture(1), 1.0)
        with pytest.raises(InputError, match="outside the current interval"):
            stream.render_many([0.0, 1.5])
        with pytest.raises(InputError, match="not a colour"):
            list(stream.render_many([0.0], background=(1.0,)))
        assert list(stream.render_many([])) == []
        alone = [stream.render(time) for time in TIMES]
        for frame, same in zip(stream.render_many(TIMES), alone, strict=True):
            side = stream.render(frame.timestamp, view=View.swing(0.4, 0.0, 1.0))
            assert (side.rgb != same.rgb).any()
            if place == "device":
                np.testing.assert_array_equal(frame.on_device, frame.rgb)
            else:
                assert frame.on_device is None
            check_same(frame, same)
        for disturb in (
            lambda: next(stream.render_many(TIMES)),
            lambda: stream.push(picture(2), 2.0),
            lambda: stream.reset(),
        ):
            frames = stream.render_many(list(stream.interval or ()))
            next(frames)
            disturb()
            with pytest.raises(InputError, match="went on before all frames"):
                next(frames)
