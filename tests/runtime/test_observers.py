"""What observers of a pipeline are told, and that they can do no harm."""

from __future__ import annotations

import numpy as np
import pytest
from fake_bundle import numpy_deform, numpy_encode
from video_samples import moving_square

from streamsplat_edge.runtime.errors import OutputError
from streamsplat_edge.runtime.observers import Observer, Spawned
from streamsplat_edge.runtime.pipeline import Pipeline, Rendered
from streamsplat_edge.runtime.preprocess import Resizer
from streamsplat_edge.runtime.stream import Stream
from streamsplat_edge.runtime.video import VideoFrame

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


class Diary(Observer):
    """Writes down what happens; keeps copies of the arrays."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.events: list[Spawned] = []
        self.gaussians: list[np.ndarray] = []
        self.motion: list[np.ndarray | None] = []
        self.fade: list[np.ndarray | None] = []

    def began(self, pipeline: Pipeline) -> None:
        self.lines.append(f"began {pipeline.stream.model.preset}")

    def spawned(self, event: Spawned) -> None:
        self.lines.append(f"spawned {event.source.index}")
        self.events.append(event)
        self.gaussians.append(event.newest.gaussians.copy())
        self.motion.append(None if event.motion is None else event.motion.copy())
        self.fade.append(None if event.fade is None else event.fade.copy())

    def rendered(self, rendered: Rendered) -> None:
        self.lines.append(f"rendered {rendered.source.index}")

    def ended(self) -> None:
        self.lines.append("ended")


def video(count: int, *, cut: int | None = None) -> list[VideoFrame]:
    frames = []
    for i in range(count):
        image = moving_square(4 * i)
        frames.append(VideoFrame(255 - image if cut is not None and i >= cut else image, i / 25, i))
    return frames


def test_events_come_in_order(stream: Stream) -> None:
    diary = Diary()
    for _ in Pipeline(video(4), stream, gap=2, observers=[diary]):
        diary.lines.append("given")
    assert diary.lines == [
        *("began fake", "spawned 0", "spawned 2"),
        *("rendered 0", "given", "rendered 1", "given", "rendered 2", "given"),
        *("spawned 3", "rendered 3", "given", "ended"),
    ]


def test_events_hold_the_gaussians_of_the_stages(stream: Stream) -> None:
    diary, model = Diary(), stream.model
    pipeline = Pipeline(video(6, cut=4), stream, gap=2, observers=[diary])
    list(pipeline)
    assert [event.source.index for event in diary.events] == [0, 2, 3, 4, 5]
    assert pipeline.recorder.seen("observe") == 5 + 6, "key frames and frames"
    first = diary.events[0].newest.index
    for number, event in enumerate(diary.events):
        assert event.newest.index == first + number == event.stats.key_frame
        assert event.newest.time == event.source.timestamp == event.stats.timestamp
        assert event.is_cut == (event.source.index == 4)
        assert (event.previous is None) == (event.source.index in (0, 4))
        assert (event.motion is None) == (event.fade is None) == (event.previous is None)
        assert event.newest.gaussians.shape == (model.gaussians, 9)
        if event.previous is not None:
            before = diary.events[number - 1]
            assert (event.previous.index, event.previous.time) == (before.newest.index, before.newest.time)
            wanted = numpy_deform(*(diary.gaussians[n][None, :, 3:6] for n in (number - 1, number)))
            np.testing.assert_allclose(diary.motion[number], wanted["motion"], atol=1e-6)
            np.testing.assert_allclose(diary.fade[number], wanted["fade"], atol=1e-6)
    planes = np.zeros((1, 4, model.height, model.width), np.float32)
    Resizer(model.height, model.width).into(diary.events[1].source.image, planes[0, :3])
    np.testing.assert_allclose(diary.gaussians[1], numpy_encode(planes, model)["gaussians"][0], atol=1e-6)


def test_observers_cannot_change_the_stream(stream: Stream) -> None:
    class Vandal(Observer):
        def spawned(self, event: Spawned) -> None:
            arrays = (event.newest.gaussians, event.motion, event.fade)
            assert not any(array.flags.writeable for array in arrays if array is not None)

    plain = [rendered.frame.rgb for rendered in Pipeline(video(5), stream)]
    watched = [rendered.frame.rgb for rendered in Pipeline(video(5), stream, observers=[Vandal()])]
    np.testing.assert_array_equal(plain, watched)


@pytest.mark.parametrize("event", ["began", "spawned", "rendered"])
def test_an_error_ends_the_run_and_every_observer_hears_of_it(stream: Stream, event: str) -> None:
    class Broken(Observer):
        pass

    def fail(self: Observer, *_: object) -> None:
        raise OutputError("disk full")

    setattr(Broken, event, fail)
    diary = Diary()
    with pytest.raises(OutputError, match="disk full"):
        list(Pipeline(video(9), stream, observers=[Broken(), diary]))
    assert diary.lines[-1:] == ["ended"]


def test_the_end_is_told_once(stream: Stream) -> None:
    diary = Diary()
    pipeline = Pipeline(video(3), stream, observers=[diary])
    frames = pipeline.frames()
    next(frames)
    frames.close()
    pipeline.stop()
    assert diary.lines.count("ended") == 1
