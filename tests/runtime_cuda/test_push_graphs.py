"""Key frames by CUDA graphs: what a graph holds, when it is replayed, and that results are those of the host.

The device keeps what is captured with its addresses and arguments, and replays just that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_bundle import build_fake_bundle
from kernel_rasterizer import to_device
from on_cpu_device import OnCpuDevice
from spawning import spawn
from test_cuda_stream import check_same, on_device, picture
from test_device_lifecycle import Both, key_frame

from streamsplat_edge.runtime.bundle import Bundle
from streamsplat_edge.runtime.cuda.device import Device
from streamsplat_edge.runtime.cuda.push_graphs import PushGraphs
from streamsplat_edge.runtime.engines import Engine, ForwardingEngine
from streamsplat_edge.runtime.errors import DeviceLostError, EngineError
from streamsplat_edge.runtime.pipeline import Pipeline
from streamsplat_edge.runtime.stream import Stream, open_stream
from streamsplat_edge.runtime.video import VideoFrame

PHASES = 6
KERNELS = ["lifecycle_judge", "lifecycle_compact"]


class InStream(ForwardingEngine):
    """An engine whose work is in the device's order, and which a graph can therefore hold."""

    graph_refusal = None
    broken = False

    def __init__(self, inner: Engine, device: OnCpuDevice) -> None:
        super().__init__(inner)
        self.device = device

    def run(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        if self.broken:
            raise EngineError("Broken.")
        given, filled = dict(inputs), dict(outputs)
        self.device.run_as(self.stage, lambda: self.inner.run(given, filled))


@pytest.fixture(params=["plain", "all stages"])
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Bundle:
    stages = request.param == "all stages"
    return build_fake_bundle(tmp_path / "fake.bundle", depth_stage=stages, condition_stage=stages)


@pytest.fixture
def ours(bundle: Bundle, device: OnCpuDevice) -> Stream:
    return in_stream(on_device(bundle, device), device)


def in_stream(stream: Stream, device: OnCpuDevice) -> Stream:
    """The stream with engines that a graph can hold."""
    stages = stream.stages
    stages.engines = {stage: InStream(engine, device) for stage, engine in stages.engines.items()}
    return stream


def whole_chain(stream: Stream) -> list[str]:
    names = [stage for stage in ("depth", "condition", "encode", "deform") if stage in stream.stages.engines]
    if "depth" in names:
        names[1:1] = ["depth_extent", "depth_scale"]
    return names + KERNELS


def test_equals_the_host_in_every_position_of_the_ring(
    ours: Stream, bundle: Bundle, device: OnCpuDevice
) -> None:
    expected, seen = [], set()
    with ours, open_stream(bundle) as theirs:
        for number in range(17):
            cut = number == 9
            if number == 12:
                ours.reset()
                theirs.reset()
            device.replayed.clear()
            device.launched.clear()
            found, _ = (each.push(picture(number), number / 2, cut=cut) for each in (ours, theirs))
            if number in (0, 9, 12):  # nothing to make a pair with
                assert "encode" in found.latencies and "graph" not in found.latencies
                assert not device.replayed
            elif number % PHASES in seen:
                assert list(found.latencies) == ["preprocess", "graph"]
                assert device.replayed == [whole_chain(ours)] and not device.launched
            else:
                assert list(found.latencies) == ["preprocess", "capture"]
                assert not device.replayed
                seen.add(number % PHASES)
            expected.append(found)
            interval = ours.interval
            assert interval is not None and interval == theirs.interval
            for share in (0.0, 0.4, 1.0):
                time = interval[0] + share * (interval[1] - interval[0])
                check_same(ours.render(time), theirs.render(time))
            np.testing.assert_array_equal(ours.lifecycle.ids, theirs.lifecycle.ids)
        assert ours.description["graph"] == f"CUDA graphs, one for each of {PHASES} positions of the ring"
        assert "graph" not in theirs.description


def test_kernels_and_copies_by_graphs(any_device: Device) -> None:
    """Without networks, so that it runs wherever there is a GPU: copies on the device in their place."""
    both = Both(any_device)
    graphs = PushGraphs(any_device, both.ours)
    life, names = both.ours, ["gaussians", "motion", "fade"]
    incoming = {name: any_device.zeros(array.shape, array.dtype) for name, array in key_frame(0).items()}
    both.spawn(0, 0.0)
    for number in range(1, 15):
        arrays = key_frame(number)
        for name in names:
            any_device.copy(incoming[name], to_device(any_device, arrays[name]))

        def stages() -> None:
            slot, pair = life.spare, life.spare_pair
            for name, target in zip(names, (slot.gaussians, pair.motion, pair.fade), strict=True):
                any_device.copy(target, incoming[name])

        how, found = graphs.push(float(number), (life.spare, life.spare_pair), stages)
        assert how == ("capture" if number <= PHASES else "graph"), graphs.describe()
        assert found == spawn(both.host, float(number), **arrays)
        both.compare([number - 0.3])
    assert len(graphs) == PHASES


def test_a_replayed_key_frame_waits_once_and_allocates_nothing(
    ours: Stream, device: OnCpuDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[None] = []
    with ours:
        for number in range(PHASES + 1):
            ours.push(picture(number), float(number))
        before = device.allocations
        monkeypatch.setattr(device, "synchronize", lambda: waits.append(None))
        for number in range(PHASES + 1, 2 * PHASES + 1):
            ours.push(picture(number), float(number))
        assert len(waits) == PHASES and device.allocations == before


def test_a_run_by_graphs_gives_the_same_pictures(ours: Stream, bundle: Bundle) -> None:
    frames = [VideoFrame(picture(i), i / 10, i) for i in range(34)]
    with ours, open_stream(bundle) as theirs:
        pipelines = [Pipeline(frames, each, detect_cuts=False) for each in (ours, theirs)]
        for a, b in zip(*pipelines, strict=True):
            check_same(a.frame, b.frame)
        counts = {stage: v["count"] for stage, v in pipelines[0].report().latencies_ms.items()}
        assert (counts["encode"], counts["capture"], counts["graph"]) == (1, PHASES, 3)


def test_a_key_frame_that_fails_changes_nothing(ours: Stream, bundle: Bundle) -> None:
    with ours, open_stream(bundle) as theirs:
        for number in range(9):
            for each in (ours, theirs):
                each.push(picture(number), float(number))
            if number in (2, 7):  # before the capture of a position, and in place of a replay
                before = ours.render(number - 0.4)
                for how in (_broken_engine, _broken_graph):
                    with how(ours), pytest.raises(EngineError, match="Broken"):
                        ours.push(picture(50), number + 0.5)
                    check_same(ours.render(number - 0.4), before)
                    np.testing.assert_array_equal(ours.lifecycle.ids, theirs.lifecycle.ids)
        check_same(ours.render(7.3), theirs.render(7.3))


class _broken_engine:
    """The last stage fails, also when started by a graph."""

    def __init__(self, stream: Stream) -> None:
        scene: Any = stream.scene
        self.engine, self.graphs = stream.stages.engines["deform"], scene.push_graphs

    def __enter__(self) -> None:
        self.engine.broken = True  # type: ignore[attr-defined]
        self.kept, self.graphs._graphs = self.graphs._graphs, {}

    def __exit__(self, *_: object) -> None:
        self.engine.broken = False  # type: ignore[attr-defined]
        self.graphs._graphs = self.kept


class _broken_graph(_broken_engine):
    """Computing works, and waiting for the result gives an error."""

    def __enter__(self) -> None:
        device: Any = self.graphs._device
        self.device, self.wait = device, device.synchronize

        def fail() -> None:
            raise EngineError("Broken.")

        device.synchronize = fail

    def __exit__(self, *_: object) -> None:
        self.device.synchronize = self.wait


def test_other_engines_are_captured_anew(ours: Stream, device: OnCpuDevice) -> None:
    with ours:
        for number in range(PHASES + 2):
            last = ours.push(picture(number), float(number))
        assert "graph" in last.latencies
        ours.stages.engines["encode"] = InStream(ours.stages.engines["encode"].inner, device)  # type: ignore[attr-defined]
        names = [list(ours.push(picture(n), float(n)).latencies)[1] for n in range(8, 8 + 2 * PHASES)]
        assert names == ["capture"] * PHASES + ["graph"] * PHASES
        assert len(ours.scene.push_graphs) == PHASES  # type: ignore[attr-defined]


def test_an_engine_that_refuses_is_said_and_started_by_itself(bundle: Bundle, device: OnCpuDevice) -> None:
    with on_device(bundle, device) as stream:
        first = bundle.stage_names[0]
        assert stream.description["graph"] == (
            f"no CUDA graph, stage by stage: `{first}`: ONNX Runtime captures graphs of its own only, not as "
            "a part of others"
        )
        for number in range(9):
            latencies = stream.push(picture(number), float(number)).latencies
            assert "encode" in latencies and not {"graph", "capture"} & set(latencies)
        assert not device.replayed
        stream.stages.engines = {
            stage: InStream(engine, device) if stage != "encode" else ForwardingEngine(engine)
            for stage, engine in stream.stages.engines.items()
        }
        assert "`encode`: what passes through it is looked at every time" in stream.description["graph"]


def test_graphs_can_be_switched_off(bundle: Bundle, device: OnCpuDevice) -> None:
    first = in_stream(on_device(bundle, device, graphs=False), device)
    with first, first.fork() as second:
        for stream in (first, second):
            for number in range(3):
                assert "encode" in stream.push(picture(number), float(number)).latencies
            assert stream.description["graph"] == "no CUDA graph, stage by stage: graphs were switched off"


def test_a_device_that_refuses_a_capture(ours: Stream, bundle: Bundle, device: OnCpuDevice) -> None:
    encode = ours.stages.engines["encode"]
    run = encode.run

    def waits(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        device.synchronize()
        run(inputs, outputs)

    encode.run = waits  # type: ignore[method-assign]
    with ours, open_stream(bundle) as theirs:
        names = []
        for number in range(4):
            found, _ = (each.push(picture(number), float(number)) for each in (ours, theirs))
            names.append(list(found.latencies)[1:][-1])
            check_same(ours.render(), theirs.render())
        assert names == ["lifecycle", "capture", "lifecycle", "lifecycle"]
        assert ours.description["graph"] == (
            "no CUDA graph, stage by stage: The device was waited for during a capture."
        )
        assert not any("encode" in names for names in device.replayed)


def test_a_gpu_that_is_lost_while_capturing(
    ours: Stream, device: OnCpuDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(enqueue: Callable[[], None], *, warm_up: bool = True) -> Callable[[], None]:
        raise DeviceLostError("The GPU was lost.", "Start again.")

    with ours:
        ours.push(picture(0), 0.0)
        monkeypatch.setattr(device, "capture", lost)
        with pytest.raises(DeviceLostError):
            ours.push(picture(1), 1.0)
        assert ours.interval == (0.0, 0.0)


def test_forks_have_graphs_of_their_own(ours: Stream, bundle: Bundle) -> None:
    with ours, ours.fork() as second, open_stream(bundle) as theirs:
        for number in range(9):
            ours.push(picture(number), float(number))
            for each in (second, theirs):
                each.push(picture(30 + number), float(number))
            check_same(second.render(), theirs.render())
        assert len(second.scene.push_graphs) == len(ours.scene.push_graphs) == PHASES  # type: ignore[attr-defined]
