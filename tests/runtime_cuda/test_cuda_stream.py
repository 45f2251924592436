"""The whole chain on a device, against the chain on the host: networks run on the device's arrays by their
addresses (ONNX Runtime on the CPU), the kernels from their own source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_bundle import build_fake_bundle
from on_cpu_device import OnCpuDevice

from streamsplat_edge import source_options
from streamsplat_edge.runtime import engines, stream
from streamsplat_edge.runtime.bundle import Bundle
from streamsplat_edge.runtime.cuda import cupy_device
from streamsplat_edge.runtime.cuda.scene import CudaScene
from streamsplat_edge.runtime.engines import onnxruntime
from streamsplat_edge.runtime.errors import BundleError, EngineError, InputError
from streamsplat_edge.runtime.observers import Observer, Spawned
from streamsplat_edge.runtime.pipeline import Pipeline
from streamsplat_edge.runtime.rasterizer import View
from streamsplat_edge.runtime.stream import Frame, Stream, open_stream, shapes
from streamsplat_edge.runtime.video import VideoFrame


@pytest.fixture(params=["plain", "all stages"])
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Bundle:
    stages = request.param == "all stages"
    return build_fake_bundle(tmp_path / "fake.bundle", depth_stage=stages, condition_stage=stages)


def picture(number: int, size: tuple[int, int] = (14, 31)) -> np.ndarray:
    """Noise. By default smaller than the model, so that the host prepares it on both sides."""
    return np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)


def on_device(bundle: Bundle, device: OnCpuDevice, *, graphs: bool = True) -> Stream:
    stages = {
        stage: engines.create("onnxruntime", bundle.variant(stage, "onnxruntime"), memory=device)
        for stage in bundle.stage_names
    }
    scene = CudaScene(device, bundle.model, *shapes(stages), graphs=graphs)
    made = Stream(bundle, stages, scene=scene)
    made.warm_up()
    return made


def check_same(ours: Frame, theirs: Frame, *, atol: float = 2e-5) -> None:
    assert np.abs(ours.rgb.astype(int) - theirs.rgb).max() <= 1
    for name in ("depth", "expected_depth", "alpha"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=atol, err_msg=name)
    assert ours.stats.lifecycle == theirs.stats.lifecycle
    assert ours.stats.render == theirs.stats.render


def test_equals_the_chain_on_the_host(bundle: Bundle, device: OnCpuDevice) -> None:
    with on_device(bundle, device) as ours, open_stream(bundle) as theirs:
        with pytest.raises(InputError, match="Nothing was pushed"):
            ours.render()
        for number in range(5):
            for each in (ours, theirs):
                each.push(picture(number), number / 2, cut=number == 3)
            interval = ours.interval
            assert interval == theirs.interval and interval is not None
            for share in (0.0, 0.3, 1.0):
                time = interval[0] + share * (interval[1] - interval[0])
                check_same(ours.render(time), theirs.render(time))
        swing = View.swing(0.2, 0.1, 1.0)
        settings: dict[str, Any] = {"view": swing, "background": (0.1, 0.2, 0.3), "extent": "full"}
        check_same(ours.render(1.8, **settings), theirs.render(1.8, **settings))
        with pytest.raises(InputError, match="Unknown extent"):
            ours.render(1.8, extent="half")  # type: ignore[arg-type]
        assert ours.description["render"] == "CUDA rasterizer, kernels on the CPU"


def test_nothing_is_allocated_after_the_first_frames(bundle: Bundle, device: OnCpuDevice) -> None:
    with on_device(bundle, device) as ours:
        before = device.allocations
        bound = []
        for number in range(9):
            ours.push(picture(number), float(number))
            ours.render(float(number), copy=False)
            bound.append([len(engine._bound) for engine in ours.stages.engines.values()])
        assert device.allocations == before
        assert bound[-1] == bound[-2], "all addresses have been seen after six key frames"


def test_a_failed_push_changes_nothing(
    bundle: Bundle, device: OnCpuDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    with on_device(bundle, device) as ours:
        for number in range(2):
            ours.push(picture(number), float(number))
        before = ours.render(0.4)

        def failing(*_: object) -> None:
            raise EngineError("Broken.")

        with monkeypatch.context() as patch:
            patch.setattr(ours.stages.engines["deform"], "run", failing)
            with pytest.raises(EngineError):
                ours.push(picture(7), 2.0)
        check_same(ours.render(0.4), before)


def test_a_push_that_the_device_refuses_changes_nothing(
    bundle: Bundle, device: OnCpuDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of its calls is refused: the next try gives the same as without."""
    calls = 0

    def refusing(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            nonlocal calls
            calls -= 1
            if calls == 0:
                raise EngineError("Refused.")
            return call(*arguments)

        return counted

    for name in ("copy", "launch", "record"):
        monkeypatch.setattr(device, name, refusing(getattr(device, name)))
    with on_device(bundle, device) as ours, on_device(bundle, device) as theirs:
        for number in range(2):
            ours.push(picture(number), float(number))
            theirs.push(picture(number), float(number))
        before, refused = theirs.render(0.4), 0
        while True:
            calls = refused + 1
            try:
                ours.push(picture(2), 2.0)
                break
            except EngineError:
                calls, refused = 0, refused + 1
            check_same(ours.render(0.4), before, atol=0.0)
        assert calls > 0 and refused >= 7, "uploads, kernels, counts and events"
        calls = 0
        theirs.push(picture(2), 2.0)
        check_same(ours.render(1.4), theirs.render(1.4), atol=0.0)


def test_forks_share_engines_and_nothing_else(bundle: Bundle, device: OnCpuDevice) -> None:
    with on_device(bundle, device) as first, first.fork() as second:
        first.push(picture(0), 0.0)
        second.push(picture(1), 5.0)
        assert isinstance(second.scene, CudaScene) and second.scene is not first.scene
        assert (first.interval, second.interval) == ((0.0, 0.0), (5.0, 5.0))
        assert (first.render().rgb != second.render().rgb).any()


def test_observers_get_copies_on_the_host(bundle: Bundle, device: OnCpuDevice) -> None:
    class Keeper(Observer):
        def __init__(self) -> None:
            self.kept: list[list[np.ndarray | int | float | None]] = []

        def spawned(self, event: Spawned) -> None:
            frames = [event.newest] + ([event.previous] if event.previous else [])
            self.kept.append([event.motion is not None and event.motion.copy()])
            self.kept[-1] += [value for f in frames for value in (f.index, f.time, f.gaussians.copy())]

    keepers = Keeper(), Keeper()
    for keeper, each in zip(keepers, (on_device(bundle, device), open_stream(bundle)), strict=True):
        with each:
            frames = [VideoFrame(picture(i), i / 10, i) for i in range(7)]
            pipeline = Pipeline(frames, each, gap=2, detect_cuts=False, observers=[keeper])
            assert sum(1 for _ in pipeline) == 7
    ours, theirs = (keeper.kept for keeper in keepers)
    assert len(ours) == len(theirs) == 4
    for a, b in zip(ours, theirs, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_allclose(x, y, atol=1e-6)  # type: ignore[arg-type]


def test_files_get_the_same_gaussians_from_a_device(bundle: Bundle, device: OnCpuDevice) -> None:
    with on_device(bundle, device) as ours, open_stream(bundle) as theirs:
        with pytest.raises(InputError, match="no float images on the host"):
            _ = ours.buffers
        for number, time in enumerate((0.0, 0.4, 1.0)):
            for stream_ in (ours, theirs):
                stream_.push(picture(number), time)
            found, expected = ours.scene.splats(time - 0.1 * number), theirs.scene.splats(time - 0.1 * number)
            count = expected.count
            assert found.count == count == bundle.model.gaussians * min(number + 1, 2)
            for name in ("means", "scales", "opacity", "rgb"):
                np.testing.assert_array_equal(getattr(found, name)[:count], getattr(expected, name)[:count])
            with pytest.raises(InputError, match=r"interval|between"):
                ours.scene.splats(time + 1)


def test_device_cuda_takes_the_scene_on_the_gpu(
    bundle: Bundle, device: OnCpuDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`open_stream(device="cuda")` with the CPU in the GPU's place."""
    monkeypatch.setattr(onnxruntime, "_provider", lambda *_: "CPUExecutionProvider")
    monkeypatch.setattr(stream, "_open_device", lambda: device)
    monkeypatch.setattr(device, "kind", "cpu")
    with open_stream(bundle, device="cuda") as ours, open_stream(bundle) as theirs:
        for each in (ours, theirs):
            each.push(picture(3), 1.0)
        check_same(ours.render(), theirs.render())
        assert isinstance(ours.scene, CudaScene)


def test_what_is_refused_first(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError, match="tensorrt"):
        open_stream(bundle, engine="tensorrt", device="cuda")
    with pytest.raises(EngineError, match="OpenVINO engine runs on the CPU"):
        open_stream(bundle, engine="openvino", device="cuda")
    with pytest.raises(EngineError, match=r"runs on a GPU, not on 'cpu'"):
        engines.require("tensorrt", "cpu")
    with pytest.raises(EngineError, match="no engine 'abacus'"):
        engines.require("abacus", "cuda")
    monkeypatch.setattr(onnxruntime, "_provider", lambda *_: "CUDAExecutionProvider")
    monkeypatch.setattr(cupy_device, "_import_cupy", _no_cupy)
    with pytest.raises(EngineError, match="No CuPy"):
        open_stream(bundle, device="cuda")


def test_the_command_line_offers_every_engine() -> None:
    assert source_options.ENGINES == engines.ENGINES


def _no_cupy() -> None:
    raise EngineError("No CuPy.")
