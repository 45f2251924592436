"""How a rendered frame is shown: PSNR against the input, depth colours, novel view, moments to keep."""

from __future__ import annotations

import math

import numpy as np

from ..runtime.compose import DepthColours, Image, Moment, MomentKeeper, psnr, resize
from ..runtime.pipeline import Rendered
from ..runtime.preprocess import Resizer
from ..runtime.rasterizer import View
from ..runtime.stream import Stream
from ..runtime.timing import LatencyRecorder

SWING_DEGREES = 7.0
SWING_SECONDS = 5.0
_SHEET_SOURCE_WIDTH = 640  # inputs are kept for the contact sheet no larger than this
_PIVOT_INERTIA = 0.9


class Viewer:
    """Makes `Moment`s of a pipeline's frames: for every frame `begin`, then `measure`, `picture`, `keep` as
    wanted. Depth colours and pivot follow the scene slowly: one step per frame, however often shown.

    Args:
        stream: the pipeline's stream, used for a second render from the side.
        recorder: gets the latencies "measure" and "novel view".
    """

    def __init__(self, stream: Stream, recorder: LatencyRecorder) -> None:
        self._stream = stream
        self._recorder = recorder
        model = stream.model
        self._resizer = Resizer(model.height, model.width)
        self._planes = np.zeros((3, model.height, model.width), np.float32)
        self._colours = DepthColours()
        self._depth: Image | None = None  # of the current frame, once it was needed
        self._pivot: float | None = None
        self._pivot_is_current = False
        self.keeper = MomentKeeper()

    def begin(self, rendered: Rendered) -> None:
        """Call first for every frame: what follows the scene slowly starts anew at a cut."""
        self._depth, self._pivot_is_current = None, False
        if rendered.is_cut:
            self._colours.reset()
            self._pivot = None

    def measure(self, rendered: Rendered) -> float:
        """PSNR of the frame against its source at model resolution, in dB."""
        with self._recorder.measure("measure"):
            self._resizer.into(rendered.source.image, self._planes)
            truth = np.rint(self._planes.transpose(1, 2, 0) * np.float32(255)).astype(np.uint8)
            return psnr(rendered.frame.rgb, truth)

    def picture(self, rendered: Rendered, decibels: float) -> Moment:
        """Everything the side-by-side layout shows, with the novel view of the swing at this time."""
        swing = math.sin(2 * math.pi * rendered.source.timestamp / SWING_SECONDS)
        return self._moment(rendered, decibels, SWING_DEGREES * swing)

    def keep(self, rendered: Rendered, decibels: float) -> None:
        """Keeps the frame for the contact sheet if it is one of an even choice; the view is at full swing."""
        if not self.keeper.wants(rendered.is_key, self._phase(rendered)):
            return
        moment = self._moment(rendered, decibels, SWING_DEGREES if rendered.is_key else -SWING_DEGREES)
        height, width = moment.source.shape[:2]
        if width > _SHEET_SOURCE_WIDTH:
            small = resize(
                moment.source, _SHEET_SOURCE_WIDTH, max(1, round(height * _SHEET_SOURCE_WIDTH / width))
            )
            moment = Moment(**{**vars(moment), "source": small})
        self.keeper.add(moment)

    def _phase(self, rendered: Rendered) -> float:
        interval = self._stream.interval
        if interval is None or interval[1] <= interval[0]:
            return 0.0
        return (rendered.source.timestamp - interval[0]) / (interval[1] - interval[0])

    def _moment(self, rendered: Rendered, decibels: float, yaw: float) -> Moment:
        frame = rendered.frame
        if self._depth is None:
            self._depth = self._colours(frame.expected_depth, frame.alpha)
        return Moment(
            source=rendered.source.image,
            reconstruction=frame.rgb,
            depth=self._depth,
            novel=self._novel(rendered, yaw),
            index=rendered.source.index,
            timestamp=rendered.source.timestamp,
            key=rendered.is_key,
            phase=self._phase(rendered),
            yaw=yaw,
            psnr=decibels,
        )

    def _novel(self, rendered: Rendered, yaw: float) -> Image:
        """The same Gaussians from a camera turned about the middle of the scene."""
        view = View.swing(math.radians(yaw), 0.0, self._middle(rendered))
        with self._recorder.measure("novel view"):
            return np.asarray(self._stream.render(rendered.source.timestamp, view=view).rgb, np.uint8)

    def _middle(self, rendered: Rendered) -> float:
        """Depth of the middle of the scene, for the camera to turn about."""
        if self._pivot is None or not self._pivot_is_current:
            frame = rendered.frame
            depth = frame.expected_depth[::4, ::4][frame.alpha[::4, ::4] > 0.5]
            middle = float(np.median(depth)) if depth.size else 1.0
            if self._pivot is not None:
                middle = _PIVOT_INERTIA * self._pivot + (1 - _PIVOT_INERTIA) * middle
            self._pivot, self._pivot_is_current = middle, True
        return self._pivot
