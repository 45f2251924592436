"""The page in headless Chromium: its pictures against the C++ rasterizer, and its switches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from chromium import Page, find_chromium, open_chromium
from fake_bundle import fake_model
from view_samples import make_video, random_key_frame, random_pair

from streamsplat_edge.runtime.bundle_schema import ModelConfig
from streamsplat_edge.runtime.compose import psnr
from streamsplat_edge.runtime.pipeline import Pipeline
from streamsplat_edge.runtime.rasterizer import View
from streamsplat_edge.runtime.stream import Stream, open_stream
from streamsplat_edge.runtime.video import open_video
from streamsplat_edge.runtime.view.exact import ExactRenderer
from streamsplat_edge.runtime.view.scenes import KeyFrame
from streamsplat_edge.runtime.view.viewer import LiveViewer, Settings, hello_message

ROOT = Path(__file__).resolve().parents[2]
PSNR = 45.0  # dB, of the page against the C++ rasterizer; 52 to 55 were measured (SwiftShader)
PIVOT = 0.4

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium: make test-browser says what to install"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with open_chromium(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


def open_view(page: Page, viewer: LiveViewer, pairs: int) -> None:
    """Opens the page, waits for so many pairs, and holds it still."""
    page.errors.clear()
    page.open(viewer.url)
    page.wait("window.streamsplat && window.streamsplat.store.keyFrames.size > 0")
    page.run("window.streamsplat.playback.playing = false")
    page.wait(f"window.streamsplat.store.pairs.length === {pairs}")


def shown(page: Page, time: float, yaw: float = 0.0, pitch: float = 0.0) -> np.ndarray:
    view = f"{{time: {time}, yaw: {yaw}, pitch: {pitch}, pivot: {PIVOT}}}"
    page.run(f"window.streamsplat.show({view})")
    return page.canvas("#panel-scene canvas")


def compare(
    page: Page, viewer: LiveViewer, model: ModelConfig, time: float, yaw: float, pitch: float
) -> float:
    """PSNR of the page against the rasterizer at a time from one side."""
    scene = viewer.buffer.scene_at(time)
    assert scene is not None
    view = View.swing(yaw, pitch, PIVOT) if yaw or pitch else None
    return psnr(shown(page, time, yaw, pitch), ExactRenderer(model).render(scene, time, view))


VIEWS = [(0.0, 0.0), (0.1, 0.0), (-0.2, 0.15)]


def test_the_demo_looks_as_the_rasterizer_draws_it(page: Page) -> None:
    with (
        LiveViewer(Settings(port=0), "clip.mp4") as viewer,
        open_stream(ROOT / "demo" / "tiny.bundle") as stream,
        open_video(ROOT / "demo" / "clip.mp4") as reader,
    ):
        frames = list(Pipeline(reader, stream, max_frames=9, observers=[viewer]))
        open_view(page, viewer, 2)
        for i, (yaw, pitch) in (
            (0, VIEWS[0]),
            (2, VIEWS[0]),
            (4, VIEWS[0]),
            (7, VIEWS[0]),
            (2, VIEWS[1]),
            (7, VIEWS[2]),
        ):
            time = frames[i].frame.timestamp
            decibels = compare(page, viewer, stream.model, time, yaw, pitch)
            print(f"frame {i}, yaw {yaw:+.2f}, pitch {pitch:+.2f}: {decibels:.1f} dB")
            assert decibels >= PSNR
        assert page.errors == []


@pytest.mark.parametrize("mapping", ["published", "paper"])
def test_random_gaussians_look_as_the_rasterizer_draws_them(page: Page, mapping: str) -> None:
    """Of all sizes, some poisoned, some behind the camera or moving behind it, some fading out."""
    model = dataclasses.replace(fake_model(80, 144), depth_mapping=mapping)
    count = model.gaussians
    with LiveViewer(Settings(port=0)) as viewer:
        viewer._server.greet(model, hello_message(model, "random", {}))
        for i in range(3):
            rows = random_key_frame(i, count)
            rows[:, 1] = np.random.default_rng(i).uniform(-0.05, 1.05, count)
            rows[::97, i] = np.nan
            viewer.buffer.add_key_frame(KeyFrame(i, float(i), rows))
            if i == 1:
                arrays = random_pair(i, count)
                arrays["fade"][0, ::89] = np.inf
                viewer.buffer.add_pair((0, 1), **arrays)
        viewer._server.wake()
        open_view(page, viewer, 1)
        page.wait("window.streamsplat.store.keyFrames.size === 3")
        for time in (0.0, 0.3, 1.0, 2.0):  # the last one stands alone
            for yaw, pitch in VIEWS:
                decibels = compare(page, viewer, model, time, yaw, pitch)
                print(f"{mapping}, t {time}, yaw {yaw:+.2f}, pitch {pitch:+.2f}: {decibels:.1f} dB")
                assert decibels >= PSNR
        assert page.errors == []


def test_exact_pixels_are_exact(page: Page, viewer: LiveViewer, stream: Stream) -> None:
    frames = list(Pipeline(make_video(9), stream, gap=4, observers=[viewer]))
    open_view(page, viewer, 2)
    page.run("document.querySelector('#show-exact').click()")
    for frame in (frames[6], frames[1]):
        page.run(f"window.streamsplat.playback.seek({frame.frame.timestamp})")
        wanted = frame.frame.rgb
        for _ in range(100):
            image = page.canvas("#panel-scene canvas")
            if image.shape == wanted.shape and np.array_equal(image, wanted):
                break
        np.testing.assert_array_equal(image, wanted)
    assert page.errors == []


def test_switches(page: Page, viewer: LiveViewer, stream: Stream) -> None:
    video = make_video(9)
    list(Pipeline(video, stream, gap=4, observers=[viewer]))
    open_view(page, viewer, 2)
    page.wait("window.streamsplat.store.pictures.length === 9")
    shown(page, 0.1)
    page.wait("document.querySelector('#panel-input canvas').width === 64")
    assert psnr(page.canvas("#panel-input canvas"), video[2].image) > 25, "the input at that time"
    assert np.ptp(page.canvas("#panel-depth canvas")) > 20
    page.wait("document.querySelector('#stats').innerText.includes('encode')")
    assert "key frames\t3" in page.run("document.querySelector('#stats').innerText")
    for key, element in (("d", "#panel-depth"), ("i", "#panel-input"), ("s", "#stats"), ("t", "#tracks")):
        before = page.run(f"document.querySelector('{element}').hidden")
        page.run(f"document.dispatchEvent(new KeyboardEvent('keydown', {{key: '{key}'}}))")
        assert page.run(f"document.querySelector('{element}').hidden") is not before
    assert page.run("document.querySelector('#state').textContent") == "ended"
    assert page.run("document.querySelector('#title').textContent") == "clip.mp4"
    assert page.errors == []


def test_dragging_looks_around_and_scrubbing_goes_back(
    page: Page, viewer: LiveViewer, stream: Stream
) -> None:
    list(Pipeline(make_video(9), stream, gap=4, observers=[viewer]))
    open_view(page, viewer, 2)
    straight = shown(page, 0.2)
    box = page.run(
        "(({x, y, width, height}) => [x, y, width, height])"
        "(document.querySelector('#panel-scene').getBoundingClientRect())"
    )
    x, y = box[0] + box[2] / 2, box[1] + box[3] / 2
    for kind, dx in (("mousePressed", 0), ("mouseMoved", 60), ("mouseReleased", 60)):
        page.mouse(kind, x + dx, y)
    for _ in range(100):
        turned = page.canvas("#panel-scene canvas")
        if not np.array_equal(turned, straight):
            break
    assert not np.array_equal(turned, straight)
    bar = page.run(
        "(({x, y, width, height}) => [x, y, width, height])"
        "(document.querySelector('#timeline').getBoundingClientRect())"
    )
    for kind in ("mousePressed", "mouseReleased"):
        page.mouse(kind, bar[0] + bar[2] / 4, bar[1] + bar[3] / 2)
    assert math.isclose(page.run("window.streamsplat.playback.time"), 8 / 25 / 4, abs_tol=0.01)
    assert page.errors == []


def test_what_was_received_stays_when_the_runtime_goes(page: Page, stream: Stream) -> None:
    with LiveViewer(Settings(port=0)) as viewer:
        list(Pipeline(make_video(9), stream, gap=4, observers=[viewer]))
        open_view(page, viewer, 2)
        before = shown(page, 0.1)
    page.wait("document.querySelector('#state').textContent === 'disconnected'")
    np.testing.assert_array_equal(shown(page, 0.1), before)


def test_live(page: Page, viewer: LiveViewer, stream: Stream) -> None:
    """The page is there before the run: it waits, follows, and says when it is over."""
    page.errors.clear()
    page.open(viewer.url)
    page.wait("document.querySelector('#state').textContent === 'waiting'")
    pipeline = Pipeline(make_video(21), stream, gap=4, observers=[viewer])
    states = set()
    for _ in pipeline.frames():
        states.add(page.run("document.querySelector('#state').textContent"))
    assert states <= {"waiting", "live"} and "live" in states
    page.wait("document.querySelector('#state').textContent === 'ended'")
    page.wait("window.streamsplat.store.pairs.length === 5")
    joined = "(pair, i, all) => !i || all[i - 1].end === pair.time"
    assert page.run(f"window.streamsplat.store.pairs.every({joined})")
    assert page.errors == []


def test_the_page_finds_the_next_run(page: Page, stream: Stream) -> None:
    """The command is started again on the same port: an open page shows the new run, nothing of the old."""
    with LiveViewer(Settings(port=0), "first") as viewer:
        port = urlsplit(viewer.url).port
        list(Pipeline(make_video(9), stream, gap=4, observers=[viewer]))
        open_view(page, viewer, 2)
    page.wait("document.querySelector('#state').textContent === 'disconnected'")
    with LiveViewer(Settings(port=port), "second") as viewer:
        list(Pipeline(make_video(5), stream, gap=4, observers=[viewer]))
        page.wait("document.querySelector('#title').textContent === 'second'")
        page.wait("window.streamsplat.store.pairs.length === 1")


def test_a_lost_graphics_card_comes_back(page: Page, viewer: LiveViewer, stream: Stream) -> None:
    list(Pipeline(make_video(9), stream, gap=4, observers=[viewer]))
    open_view(page, viewer, 2)
    before = shown(page, 0.1)
    page.run("window.loser = window.streamsplat.renderer.gl.getExtension('WEBGL_lose_context')")
    page.run("loser.loseContext()")
    page.wait("window.streamsplat.renderer === null")
    page.run("loser.restoreContext()")
    page.wait("window.streamsplat.renderer !== null")
    np.testing.assert_array_equal(shown(page, 0.1), before)
