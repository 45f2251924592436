"""How a rendered frame is shown: PSNR against the input, depth colours, novel view, moments to keep."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np

from ..runtime.compose import PICTURES, Image, Scaler, psnr, resize
from ..runtime.depth_colours import DepthColours
from ..runtime.moments import Moment, MomentKeeper
from ..runtime.outputs.camera_path import CameraPath
from ..runtime.pipeline import Rendered, SourceFrame
from ..runtime.preprocess import Resizer
from ..runtime.rasterizer import View
from ..runtime.stream import Stream
from ..runtime.timing import LatencyRecorder

_SHEET_SOURCE_WIDTH = 640  # inputs are kept for the contact sheet no larger than this
_PIVOT_INERTIA = 0.9


class Viewer:
    """Makes `Moment`s of a pipeline's frames: for every frame `begin`, then `measure`, `picture`, `keep` as
    wanted. Depth colours and pivot follow the scene slowly: one step per frame, however often shown.

    Args:
        stream: the pipeline's stream, used for a second render from the side.
        recorder: gets the latencies "measure" and "novel view".
        camera: where novel views are taken from.
    """

    def __init__(self, stream: Stream, recorder: LatencyRecorder, camera: CameraPath | None = None) -> None:
        self._stream = stream
        self._camera = CameraPath() if camera is None else camera
        self._scaler = Scaler()
        self._recorder = recorder
        model = stream.model
        self._resizer = Resizer(model.height, model.width)
        self._planes = np.zeros((3, model.height, model.width), np.float32)
        self._colours = DepthColours()
        self._depth: Image | None = None  # of the current frame, once it was needed
        self._novel_now: Image | None = None  # likewise
        self._pivot: float | None = None
        self._pivot_is_current = False
        self.keeper = MomentKeeper()

    def begin(self, rendered: Rendered) -> None:
        """Call first for every frame: what follows the scene slowly starts anew at a cut."""
        self._depth, self._pivot_is_current = None, False
        self._novel_now = None
        if rendered.is_cut:
            self._colours.reset()
            self._pivot = None

    def measure(self, rendered: Rendered) -> float:
        """PSNR of the frame against its source at model resolution, in dB."""
        with self._recorder.measure("measure"):
            return psnr(rendered.frame.rgb, self._truth(rendered.source))

    def _truth(self, source: SourceFrame) -> Image:
        """The source at model resolution, uint8 RGB; resized on the GPU where it lies there."""
        surface = getattr(source, "surface", None)
        if surface is not None:
            return self._stream.scene.resized(surface)
        self._resizer.into(source.image, self._planes)
        return np.rint(self._planes.transpose(1, 2, 0) * np.float32(255)).astype(np.uint8)

    def picture(self, rendered: Rendered, decibels: float, names: Collection[str] = PICTURES) -> Moment:
        """What a layout of these pictures shows, with the novel view of the camera's path at this time."""
        angles = self._camera.angles(rendered.source.timestamp)
        novel = self.novel(rendered) if "novel" in names else None
        return self._moment(rendered, decibels, angles, novel, depth="depth" in names)

    def plain(self, rendered: Rendered, name: str) -> Image:
        """One of `PICTURES` alone, uint8 RGB at model resolution."""
        if name == "input":
            height, width = rendered.frame.rgb.shape[:2]
            return self._scaler(rendered.source.image, width, height)
        if name == "depth":
            return self._coloured_depth(rendered)
        return self.novel(rendered) if name == "novel" else rendered.frame.rgb

    def novel(self, rendered: Rendered) -> Image:
        """The novel view of the camera's path at the frame's time; rendered once, however often asked for."""
        if self._novel_now is None:
            self._novel_now = self._novel(rendered, *self._camera.angles(rendered.source.timestamp))
        return self._novel_now

    def keep(self, rendered: Rendered, decibels: float) -> None:
        """Keeps the frame for the contact sheet if it is one of an even choice; swings show their ends."""
        if not self.keeper.wants(rendered.is_key, self._phase(rendered)):
            return
        angles = self._camera.end(rendered.source.timestamp, first=rendered.is_key)
        moment = self._moment(rendered, decibels, angles, self._novel(rendered, *angles), depth=True)
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

    def _moment(
        self,
        rendered: Rendered,
        decibels: float,
        angles: tuple[float, float],
        novel: Image | None,
        *,
        depth: bool,
    ) -> Moment:
        return Moment(
            source=rendered.source.image,
            reconstruction=rendered.frame.rgb,
            depth=self._coloured_depth(rendered) if depth else None,
            novel=novel,
            index=rendered.source.index,
            timestamp=rendered.source.timestamp,
            key=rendered.is_key,
            phase=self._phase(rendered),
            yaw=angles[0],
            pitch=angles[1],
            psnr=decibels,
        )

    def _coloured_depth(self, rendered: Rendered) -> Image:
        if self._depth is None:
            self._depth = self._colours(rendered.frame.expected_depth, rendered.frame.alpha)
        return self._depth

    def _novel(self, rendered: Rendered, yaw: float, pitch: float) -> Image:
        """The same Gaussians from a camera turned about the pivot."""
        pivot = self._middle(rendered) if self._camera.pivot is None else self._camera.pivot
        view = View.swing(math.radians(yaw), math.radians(pitch), pivot)
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
