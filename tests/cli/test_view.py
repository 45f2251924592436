"""What is shown of a frame: depth colours and novel view follow the scene one step per frame."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from video_samples import moving_square

from streamsplat_edge.commands.view import Viewer
from streamsplat_edge.runtime.moments import Moment
from streamsplat_edge.runtime.pipeline import Pipeline, Rendered
from streamsplat_edge.runtime.scene import Planes
from streamsplat_edge.runtime.stream import open_stream
from streamsplat_edge.runtime.timing import LatencyRecorder
from streamsplat_edge.runtime.video import VideoFrame


def deeper(rendered: Rendered, factor: float) -> Rendered:
    """The same frame with depths that vary, from 1 to 2 times `factor`."""
    height, width = rendered.frame.alpha.shape
    depth = np.tile(np.linspace(1, 2, width, dtype=np.float32) * np.float32(factor), (height, 1))
    frame = dataclasses.replace(rendered.frame, planes=Planes(depth, depth, np.ones_like(depth)))
    return dataclasses.replace(rendered, frame=frame)


def pictures(fake_bundle: Path, *, keep: bool, cut: int | None = None) -> list[Moment]:
    """Six frames whose depth grows from frame to frame."""
    video = [VideoFrame(moving_square(4 * i), i / 25, i) for i in range(6)]
    result = []
    with open_stream(fake_bundle, threads=1) as stream:
        viewer = Viewer(stream, LatencyRecorder())
        for i, rendered in enumerate(Pipeline(video, stream, detect_cuts=False)):
            shown = dataclasses.replace(deeper(rendered, 1.0 + i), is_cut=i == cut)
            viewer.begin(shown)
            result.append(viewer.picture(shown, 30.0))
            if keep:
                viewer.keep(shown, 30.0)
    return result


def same(a: Moment, b: Moment) -> bool:
    return np.array_equal(a.depth, b.depth) and np.array_equal(a.novel, b.novel)


def test_the_contact_sheet_does_not_change_the_video(fake_bundle: Path) -> None:
    alone, with_sheet = pictures(fake_bundle, keep=False), pictures(fake_bundle, keep=True)
    assert all(same(a, b) for a, b in zip(alone, with_sheet, strict=True))


def test_a_cut_starts_anew(fake_bundle: Path) -> None:
    """Before it the colours lag behind the growing depth; at it the whole range of colours is used again."""
    slow, cut = pictures(fake_bundle, keep=False), pictures(fake_bundle, keep=False, cut=3)
    assert all(same(a, b) for a, b in zip(slow[:3], cut[:3], strict=True))
    assert not same(slow[3], cut[3])
    np.testing.assert_array_equal(cut[3].depth, cut[0].depth)
