"""Streams: pushes and renders against the stages' formulas, bad input, and a long run in constant memory."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_bundle import build_fake_bundle, numpy_deform, numpy_encode
from spawning import spawn

import streamsplat_edge
from streamsplat_edge.runtime.bundle import Bundle
from streamsplat_edge.runtime.errors import BundleError, EngineError, InputError
from streamsplat_edge.runtime.lifecycle import Lifecycle
from streamsplat_edge.runtime.rasterizer import Rasterizer, View
from streamsplat_edge.runtime.scene import to_bytes
from streamsplat_edge.runtime.stream import Stream, open_stream

HEIGHT, WIDTH = 16, 32


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build_fake_bundle(tmp_path_factory.mktemp("stream") / "fake.bundle")


@pytest.fixture
def stream(bundle: Bundle) -> Iterator[Stream]:
    with open_stream(bundle, threads=1) as opened:
        yield opened


def picture(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def rgbd(image: np.ndarray) -> np.ndarray:
    planes = np.zeros((1, 4, HEIGHT, WIDTH), np.float32)
    planes[0, :3] = image.transpose(2, 0, 1) * np.float32(1 / 255)
    return planes


def reference(bundle: Bundle, images: list[np.ndarray], times: list[float], at: float) -> np.ndarray:
    """RGB of the last pair (or lone frame), from the NumPy twins of the stages."""
    model = bundle.model
    frames = [numpy_encode(rgbd(image), model) for image in images]
    lifecycle = Lifecycle(model)
    spawn(lifecycle, times[0], gaussians=frames[0]["gaussians"])
    for k in range(1, len(frames)):
        moved = numpy_deform(frames[k - 1]["features"], frames[k]["features"])
        spawn(lifecycle, times[k], gaussians=frames[k]["gaussians"], **moved)
    buffers = Rasterizer(HEIGHT, WIDTH, threads=1).render(lifecycle.at(at), background=model.background)
    return buffers.rgb


def test_three_lines(bundle: Bundle) -> None:
    stream = streamsplat_edge.open(bundle.path)
    stream.push(picture(0), 0.0)
    assert stream.render(0.0).rgb.shape == (HEIGHT, WIDTH, 3)
    stream.close()


def test_a_lone_frame(bundle: Bundle, stream: Stream) -> None:
    assert stream.interval is None
    push = stream.push(picture(0), 1.5)
    assert (push.key_frame, push.timestamp) == (0, 1.5)
    assert (push.spawned, push.alive, push.retired) == (128, 128, 0)
    assert list(push.latencies) == ["preprocess", "encode", "lifecycle"]
    assert all(value >= 0 for value in push.latencies.values())
    frame = stream.render()
    assert stream.interval == (1.5, 1.5) and frame.timestamp == 1.5
    wanted = reference(bundle, [picture(0)], [1.5], 1.5)
    np.testing.assert_allclose(stream.buffers.rgb, wanted, atol=1e-5)
    with pytest.raises(InputError, match="outside the current interval"):
        stream.render(1.6)


@pytest.mark.parametrize("at", [0.1, 0.125, 0.3])
def test_pairs(bundle: Bundle, stream: Stream, at: float) -> None:
    """Three key frames at irregular times; the last pair, at its ends and in between."""
    images, times = [picture(seed) for seed in range(3)], [0.0, 0.1, 0.3]
    for image, time in zip(images, times, strict=True):
        push = stream.push(image, time)
    assert list(push.latencies) == ["preprocess", "encode", "deform", "lifecycle"]
    assert (push.key_frame, push.alive, push.retired) == (2, 256, 128)
    frame = stream.render(at)
    wanted = reference(bundle, images, times, at)
    np.testing.assert_allclose(stream.buffers.rgb, wanted, atol=1e-4)
    assert np.abs(frame.rgb - wanted * 255).max() <= 0.5 + 1e-2, "rounded, not truncated"
    counts = frame.stats.to_json()
    assert counts["alive"] == 256 and counts["retired_total"] == 128 and counts["key_frame"] == 2
    culled = sum(value for name, value in counts.items() if name.startswith("culled_"))
    assert counts["rendered"] + culled == 256


def test_motion_and_fade_reach_the_picture(stream: Stream) -> None:
    red, black = np.zeros((HEIGHT, WIDTH, 3), np.uint8), np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    red[..., 0] = 255
    stream.push(black, 0.0)
    stream.push(red, 1.0)
    reds = [stream.render(t).rgb[..., 0].mean() for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert (np.diff(reds) > 0).all(), "fades from black to red"
    # Red grew everywhere, so all move right by half a unit: half-way the earlier (black) ones have left the
    # left edge, and the later (red) ones have not reached the right edge yet.
    middle = stream.render(0.5).rgb[..., 0].astype(int)
    assert (middle[:, 0] > middle[:, -1] + 50).all()


def test_outputs(stream: Stream) -> None:
    stream.push(picture(0), 0.0)
    stream.push(picture(1), 1.0)
    frame = stream.render(0.5)
    assert frame.rgb.dtype == np.uint8
    for plane in (frame.depth, frame.expected_depth, frame.alpha):
        assert plane.dtype == np.float32 and plane.shape == (HEIGHT, WIDTH)
    covered = frame.alpha > 0.5
    np.testing.assert_allclose(
        frame.expected_depth[covered], frame.depth[covered] / frame.alpha[covered], rtol=1e-5
    )
    # The fake model has one inverse depth only.
    np.testing.assert_allclose(frame.expected_depth[covered], 1 / (0.2 + 9.8 * 0.4), rtol=1e-4)


def test_depth_can_be_left_out(bundle) -> None:
    with open_stream(bundle) as stream:
        stream.push(picture(0), 0.0)
        whole, plain = stream.render(), stream.render(depth=False)
        np.testing.assert_array_equal(plain.rgb, whole.rgb)
        for name in ("depth", "expected_depth", "alpha"):
            assert getattr(whole, name).shape == whole.rgb.shape[:2]
            with pytest.raises(InputError, match=r"without depth and alpha.*depth=True"):
                getattr(plain, name)


def test_copies_are_the_callers(stream: Stream) -> None:
    stream.push(picture(0), 0.0)
    stream.push(picture(1), 1.0)
    first = stream.render(0.0)
    kept = first.rgb.copy(), first.depth.copy()
    view = stream.render(1.0, copy=False)
    np.testing.assert_array_equal(first.rgb, kept[0])
    np.testing.assert_array_equal(first.depth, kept[1])
    assert view.depth is stream.buffers.depth
    latest = view.rgb.copy()
    stream.render(0.0, copy=False)
    assert (view.rgb != latest).any(), "without copy the next render overwrites"


def test_view_background_and_extent(stream: Stream) -> None:
    stream.push(picture(0), 0.0)
    plain = stream.render()
    swung = stream.render(view=View.swing(0.3, 0.1, 0.25))
    assert (plain.rgb != swung.rgb).any()
    canonical = stream.render(view=View.canonical())
    assert np.abs(plain.rgb.astype(int) - canonical.rgb).max() <= 1
    red = stream.render(view=View.swing(0.0, 0.0, 0.25), background=(1, 0, 0))
    blue = stream.render(background=(0, 0, 1))
    assert (red.rgb[..., 0].astype(int) >= blue.rgb[..., 0]).all() and (red.rgb != blue.rgb).any()
    assert stream.render(extent="full").stats.render.pairs >= plain.stats.render.pairs
    with pytest.raises(InputError):
        stream.render(background=(1, 0))


def test_frame_size_may_change(bundle: Bundle, stream: Stream) -> None:
    for k, (height, width) in enumerate([(16, 32), (64, 128), (7, 9), (240, 100)]):
        image = np.full((height, width, 3), 40 * k, np.uint8)
        stream.push(image, float(k))
        # A flat image stays flat whatever its size.
        centre = stream.render(float(k)).rgb[4:12, 8:24]
        assert np.ptp(centre) <= 30


def test_cut(bundle: Bundle, stream: Stream) -> None:
    stream.push(picture(0), 0.0)
    stream.push(picture(1), 1.0)
    push = stream.push(picture(2), 2.0, cut=True)
    assert "deform" not in push.latencies and (push.alive, push.retired) == (128, 256)
    assert stream.interval == (2.0, 2.0)
    stream.render()
    np.testing.assert_allclose(stream.buffers.rgb, reference(bundle, [picture(2)], [2.0], 2.0), atol=1e-5)
    # After the cut the next pair is formed with the frame after the cut.
    stream.push(picture(3), 3.0)
    stream.render(2.5)
    wanted = reference(bundle, [picture(2), picture(3)], [2.0, 3.0], 2.5)
    np.testing.assert_allclose(stream.buffers.rgb, wanted, atol=1e-4)


def test_reset(stream: Stream) -> None:
    stream.push(picture(0), 10.0)
    stream.reset()
    assert stream.interval is None
    with pytest.raises(InputError, match="Nothing was pushed"):
        stream.render()
    assert stream.push(picture(1), 0.0).key_frame == 1


def test_bad_input_changes_nothing(stream: Stream) -> None:
    with pytest.raises(InputError, match="Nothing was pushed"):
        stream.render(0.0)
    stream.push(picture(0), 0.0)
    stream.push(picture(1), 1.0)
    before = stream.render(0.5).rgb
    bad: list[tuple[Any, Any]] = [
        (picture(2).astype(np.float32), 2.0),
        (picture(2)[..., 0], 2.0),
        ("image.png", 2.0),
        (picture(2), 1.0),
        (picture(2), 0.5),
        (picture(2), float("nan")),
        (picture(2), float("inf")),
        (picture(2), "2.0"),
        (picture(2), None),
        (picture(2), True),
        (picture(2), 10**400),
    ]
    for image, time in bad:
        with pytest.raises(InputError):
            stream.push(image, time)
    for time in (-0.1, 1.1, float("nan"), "0.5"):
        with pytest.raises(InputError):
            stream.render(time)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="must be a View"):
        stream.render(0.5, view=0.1)  # type: ignore[arg-type]
    assert stream.interval == (0.0, 1.0)
    np.testing.assert_array_equal(stream.render(0.5).rgb, before)
    stream.push(picture(2), np.float32(2.0))  # type: ignore[arg-type]  # NumPy numbers are fine


def test_a_failing_stage_changes_nothing(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    stream.push(picture(0), 0.0)
    stream.push(picture(1), 1.0)
    before = stream.render(0.5).rgb

    def failing(inputs: Any, outputs: Any) -> None:
        for array in outputs.values():
            array.fill(np.nan)  # half-written results
        raise EngineError("deform failed")

    with monkeypatch.context() as patch:
        patch.setattr(stream.stages.engines["deform"], "run", failing)
        with pytest.raises(EngineError):
            stream.push(picture(2), 2.0)
    np.testing.assert_array_equal(stream.render(0.5).rgb, before)
    assert stream.push(picture(2), 2.0).key_frame == 2, "the stream goes on"
    assert stream.render(1.5).stats.render.culled_invalid == 0


def test_poison_from_a_stage_is_culled_and_counted(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = stream.stages.engines["encode"]
    original = engine.run

    def poisoned(inputs: Any, outputs: Any) -> None:
        original(inputs, outputs)
        outputs["gaussians"][0, :10, 3] = np.nan
        outputs["gaussians"][0, 10:15, 0] = np.inf

    monkeypatch.setattr(engine, "run", poisoned)
    stream.push(picture(0), 0.0)
    frame = stream.render()
    assert frame.stats.render.culled_invalid == 15 and np.isfinite(stream.buffers.rgb).all()


def test_closed(bundle: Bundle) -> None:
    stream = open_stream(bundle)
    stream.close()
    stream.close()
    for call in (lambda: stream.push(picture(0), 0.0), stream.render, stream.reset):
        with pytest.raises(InputError, match="closed"):
            call()


def test_open_refusals(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError, match="no bundle at"):
        open_stream(tmp_path / "absent.bundle")
    with pytest.raises(EngineError, match="no engine"):
        open_stream(bundle, engine="caffe")
    with pytest.raises(BundleError, match="for engine tensorrt"):
        open_stream(bundle, engine="tensorrt")
    with pytest.raises(BundleError, match="at precision int4"):
        open_stream(bundle, precision="int4")
    with pytest.raises(EngineError, match="threads is -2"):
        open_stream(bundle, threads=-2)
    # What was loaded before a failure is closed again.
    from streamsplat_edge.runtime import engines

    loaded: list[Any] = []
    original = engines.create

    def second_fails(*args: Any, **options: Any) -> Any:
        if loaded:
            raise EngineError("no memory left")
        loaded.append(original(*args, **options))
        return loaded[0]

    monkeypatch.setattr(engines, "create", second_fails)
    with pytest.raises(EngineError, match="no memory left"):
        open_stream(bundle)
    assert loaded[0]._closed


def test_description_names_what_runs(stream: Stream) -> None:
    lines = stream.description
    assert set(lines) == {"encode", "deform", "render"}
    assert "ONNX Runtime" in lines["encode"] and "CPUExecutionProvider" in lines["encode"]
    assert "1 threads" in lines["render"]


def test_depth_and_condition_stages(tmp_path: Path) -> None:
    """The depth stage looks at half-size images; its result, scaled to [0, 1], is the fourth channel."""
    bundle = build_fake_bundle(tmp_path / "all.bundle", depth_stage=True, condition_stage=True)
    with open_stream(bundle, threads=1) as stream:
        image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        image[:, : WIDTH // 2, 0] = 50
        image[:, WIDTH // 2 :, 0] = 200
        push = stream.push(image, 0.0)
        assert list(push.latencies) == ["preprocess", "depth", "condition", "encode", "lifecycle"]
        depth = stream.scene.rgbd[0, 3]
        assert (depth[:, : WIDTH // 2 - 2] == 0).all() and (depth[:, WIDTH // 2 + 2 :] == 1).all()
        slot = stream.lifecycle.newest
        assert slot is not None and slot.condition is not None
        np.testing.assert_allclose(slot.condition[0, 0], [50 / 255, 0, 0], atol=1e-5)
        np.testing.assert_allclose(slot.tokens[0, 0], [50 / 255, 0, 0, 0], atol=1e-5)
        np.testing.assert_allclose(slot.tokens[0, 3], [200 / 255, 0, 0, 1], atol=1e-5)
        assert "deform" in stream.push(image, 1.0).latencies
        for k in range(2, 12):
            stream.push(image, float(k))
        # Buffers go round, so that each stage binds its few sets once: three slots, and for `deform` the two
        # pair buffers with each of their three pairs (and the warm-up, which pairs a slot with itself).
        bound = {stage: len(engine._bound) for stage, engine in stream.stages.engines.items()}
        assert bound == {"depth": 1, "condition": 3, "encode": 3, "deform": 7}


def test_encode_runs_once_per_key_frame(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"encode": 0, "deform": 0}
    for stage in calls:
        original = stream.stages.engines[stage].run

        def counted(inputs: Any, outputs: Any, stage: str = stage, original: Any = original) -> None:
            calls[stage] += 1
            original(inputs, outputs)

        monkeypatch.setattr(stream.stages.engines[stage], "run", counted)
    for k in range(10):
        stream.push(picture(k), float(k))
        for t in (0.0, 0.5, 1.0):
            stream.render(max(0.0, k - 1 + t))
    assert calls == {"encode": 10, "deform": 9}


def test_a_long_stream_in_constant_memory(bundle: Bundle) -> None:
    """2,000 pushes and 4,000 renders: neither Python nor the process grows."""

    def resident() -> int:
        fields = Path("/proc/self/statm").read_text().split()
        return int(fields[1]) * 4096

    images = [picture(seed, 36, 64) for seed in range(3)]
    with open_stream(bundle, threads=1) as stream:
        tracemalloc.start()
        try:
            for k in range(2000):
                if k == 300:
                    gc.collect()
                    kept, process = tracemalloc.get_traced_memory()[0], resident()
                stream.push(images[k % 3], k * 0.04, cut=k % 100 == 99)
                interval = stream.interval
                assert interval is not None
                stream.render(interval[0], copy=False)
                stream.render(interval[1])
            gc.collect()
            grown, process = tracemalloc.get_traced_memory()[0] - kept, resident() - process
        finally:
            tracemalloc.stop()
    assert grown < 65_536, f"{grown} bytes of Python memory in 1,700 key frames"
    assert process < 8 << 20, f"{process} bytes of process memory in 1,700 key frames"


def test_to_bytes_rounds_and_clamps() -> None:
    image = np.array([[[0.0, 0.5 / 255, 0.501 / 255]], [[1.0, 1.7, -0.3]]], np.float32)
    out = np.zeros((2, 1, 3), np.uint8)
    to_bytes(image, np.zeros_like(image), out)
    assert out.tolist() == [[[0, 0, 1]], [[255, 255, 0]]]


def test_depth_keeps_its_range_within_a_scene(tmp_path: Path) -> None:
    """Inverse depth is 3 red here: a dimmer frame uses part of the range, unless it begins a new scene."""
    bundle = build_fake_bundle(tmp_path / "depth.bundle", depth_stage=True)
    bright, dim = np.zeros((2, HEIGHT, WIDTH, 3), np.uint8)
    bright[:, WIDTH // 2 :, 0], dim[:, WIDTH // 2 :, 0] = 200, 100
    with open_stream(bundle, threads=1) as stream:
        stream.push(bright, 0.0)
        stream.push(dim, 0.001)
        assert stream.scene.rgbd[0, 3].max() == pytest.approx(0.5, abs=0.01)
        with pytest.raises(InputError):
            stream.push(bright, 0.001)  # fails before anything is changed
        stream.push(dim, 0.002, cut=True)
        assert stream.scene.rgbd[0, 3].max() == 1
        stream.push(bright, 0.003)
        stream.reset()
        stream.push(dim, 0.0)
        assert stream.scene.rgbd[0, 3].max() == 1


def test_streams_share_engines_and_nothing_else(bundle: Bundle) -> None:
    images, times = [picture(seed) for seed in range(3)], [0.0, 0.1, 0.3]
    first = open_stream(bundle, threads=1)
    second, third = first.fork(), first.fork()
    for i, (image, time) in enumerate(zip(images, times, strict=True)):
        first.push(image, time)
        second.push(images[2 - i], time)
    np.testing.assert_array_equal(first.render(0.2).rgb, alone(bundle, images, times, 0.2))
    np.testing.assert_array_equal(second.render(0.2).rgb, alone(bundle, images[::-1], times, 0.2))
    assert third.interval is None
    for _ in range(30):
        for stream in (first, second, third):
            stream.reset()
            stream.push(images[0], 0.0)
            stream.push(images[1], 0.1)
    bound = {stage: len(engine._bound) for stage, engine in first.stages.engines.items()}
    assert max(bound.values()) <= 32, "every buffer set is bound once: nothing is bound anew"
    first.close()
    first.close()
    assert second.push(images[0], 1.0).key_frame == 63, "the engines live on"
    third.close()
    second.close()
    assert all(engine._closed for engine in second.stages.engines.values())


def alone(bundle: Bundle, images: list[np.ndarray], times: list[float], at: float) -> np.ndarray:
    with open_stream(bundle, threads=1) as stream:
        for image, time in zip(images, times, strict=True):
            stream.push(image, time)
        return stream.render(at).rgb
