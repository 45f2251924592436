"""What else wants to see a run: live viewers, files of Gaussians. They are told what the pipeline makes.

    class Counter(Observer):
        def spawned(self, event: Spawned) -> None:
            self.key_frames += 1

    Pipeline(reader, stream, observers=[counter])

Observers are called in the pipeline's thread, one after the other, and the stream waits for them: what takes
long, or waits for others, belongs into a thread of the observer's own. Their time is the latency "observe".
An error they raise ends the run, as an error of a stage does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .pipeline import Pipeline, Rendered, SourceFrame
    from .scene import HostInterval
    from .stream import PushStats


@dataclass(frozen=True)
class KeyFrameGaussians:
    """The Gaussians of one key frame.

    Attributes:
        index: number of the key frame over the life of the stream, so that index * G + row is a stable id.
        time: seconds. gaussians: float32 [G, 9] x, y, z, r, g, b, scale x, scale z, opacity.
    """

    index: int
    time: float
    gaussians: np.ndarray


@dataclass(frozen=True)
class Spawned:
    """A key frame that has just taken effect, and the pair that ends at it.

    Arrays are read-only views of the stream's ring, valid during the call: copy what is to be kept.

    Attributes:
        newest: the key frame. previous: the one before it, None where a scene begins: then there is no pair.
        motion: float32 [2, G, 3] and fade: [2, G, 2] of the pair, index 0 of the earlier frame; or None.
        source: the frame of the input. is_cut: it begins a new scene (a cut, or a break of a live source).
        stats: latencies and counts of the push.
    """

    newest: KeyFrameGaussians
    previous: KeyFrameGaussians | None
    motion: np.ndarray | None
    fade: np.ndarray | None
    source: SourceFrame
    is_cut: bool
    stats: PushStats


class Observer:
    """Does nothing at every event; override those of interest. One observer sees one run."""

    def began(self, pipeline: Pipeline) -> None:
        """Before the first frame: `pipeline.stream.model` says what the arrays mean."""

    def spawned(self, event: Spawned) -> None:
        """After every key frame, before the frames of its pair are rendered."""

    def rendered(self, rendered: Rendered) -> None:
        """After every rendered frame, before the caller of the pipeline gets it. Its arrays may be kept."""

    def ended(self) -> None:
        """No more will come, also after an error or Ctrl-C. Called once."""


def spawned_event(interval: HostInterval, source: SourceFrame, stats: PushStats, *, is_cut: bool) -> Spawned:
    """The event of the key frame that was spawned last, with which `interval` ends."""
    slots = [
        None if slot is None else KeyFrameGaussians(slot.index, slot.time, _read_only(slot.gaussians[0]))
        for slot in (interval.newest, interval.previous)
    ]
    newest, previous = slots
    assert newest is not None, "a key frame was just spawned"
    pair = interval.pair
    motion, fade = (None, None) if pair is None else (_read_only(pair.motion), _read_only(pair.fade))
    return Spawned(newest, previous, motion, fade, source, is_cut, stats)


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view
