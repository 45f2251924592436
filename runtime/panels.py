"""Several pictures of one frame as a frame of video: input, reconstruction, depth, novel view, or some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from .compose import AMBER, CAPTIONS, DIM, INK, PAPER, PICTURES, TEAL, Colour, Image, chip
from .errors import InputError
from .font import draw_text, text_size
from .moments import Moment
from .video.frames import BT709

SIDE_BY_SIDE = "side-by-side"


def parse_layout(text: str) -> tuple[str, ...]:
    """The pictures of a layout, in order: names with commas between, or "side-by-side" for all four.

    Raises:
        InputError: an unknown name, or one twice.
    """
    if text == SIDE_BY_SIDE:
        return PICTURES
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in PICTURES:
            raise InputError(
                f"--layout {text}: there is no picture '{name}'.",
                f"Choose of {', '.join(PICTURES)}, with commas between, or {SIDE_BY_SIDE}.",
            )
    if len(set(names)) != len(names):
        raise InputError(f"--layout {text}: the same picture twice.", "Name each once.")
    return names


class Panels:
    """Lays out pictures with captions and a status line: four in a 2 x 2 grid, fewer in one row.

    The frame is put together in the encoder's own format (planar YUV 4:2:0, BT.709): swscale then scales and
    converts each picture in one step, several times faster than laying out RGB and converting all of it.

    Args:
        source_size: (height, width) of the input, whose shape the panels take.
        names: which pictures, of `PICTURES`, in order.
        panel_height: pixels, even; panels are scaled to it.
    """

    _GAP, _CAPTION, _STATUS, _SCALE = 8, 24, 34, 2  # pixels, even because chroma has half the resolution
    _BAR = 4

    def __init__(
        self, source_size: tuple[int, int], names: Sequence[str] = PICTURES, panel_height: int = 288
    ) -> None:
        aspect = min(3.0, max(0.4, source_size[1] / source_size[0]))
        self.names = tuple(names)
        self.panel_height = panel_height
        self.panel_width = round(panel_height * aspect / 2) * 2
        self._columns = 2 if len(names) == 4 else len(names)
        self._rows = -(-len(names) // self._columns)
        self.width = self._GAP + self._columns * (self._GAP + self.panel_width)
        self.height = self._rows * (self._CAPTION + self.panel_height) + self._STATUS
        # The network's pictures are small and deserve the better enlargement.
        soft, sharp = Interpolation.BILINEAR, Interpolation.BICUBIC
        self._panels = [_ToYuv(sharp if name in ("reconstruction", "novel") else soft) for name in names]
        self._strips = [_ToYuv(soft) for _ in range(self._rows + 1)]
        self._captions = [self._strip(self._CAPTION) for _ in range(self._rows)]
        for place, name in enumerate(names):
            self._write_caption(place, name)
        # Luma rows, then the rows of both chroma planes, as libav lays out yuv420p in one array.
        self._canvas = np.empty((self.height * 3 // 2, self.width), np.uint8)
        quarter = (self.height // 2, self.width // 2)
        u, v = self._canvas[self.height :].reshape(2, *quarter)
        self._planes = (self._canvas[: self.height], u, v)
        self._fill(0, 0, self.width, self.height, PAPER)

    def _write_caption(self, place: int, name: str) -> None:
        caption, x = self._captions[place // self._columns], self._place(place)[0]
        draw_text(caption, x, 4, CAPTIONS[name], INK, self._SCALE)
        if name == "depth" and text_size("DEPTH  near = bright", self._SCALE)[0] <= self.panel_width:
            draw_text(caption, x + 76, 4, "near = bright", DIM, self._SCALE)

    def _strip(self, height: int) -> Image:
        return np.full((height, self.width, 3), PAPER, np.uint8)

    def _place(self, panel: int) -> tuple[int, int]:
        """Top left corner of a panel's picture."""
        row, column = divmod(panel, self._columns)
        x = self._GAP + column * (self.panel_width + self._GAP)
        return x, self._CAPTION + row * (self._CAPTION + self.panel_height)

    def __call__(self, moment: Moment, status: str) -> av.VideoFrame:
        """The composed frame: yuv420p, BT.709, limited range, `width` x `height`."""
        width, height = self.panel_width, self.panel_height
        for place, name in enumerate(self.names):
            self._put(self._panels[place](moment.picture(name), width, height), *self._place(place))
        captions = [caption.copy() for caption in self._captions]
        for place, name in enumerate(self.names):
            caption = captions[place // self._columns]
            x, y = self._place(place)
            if name == "reconstruction":
                self._mark(caption, x, y, moment)
            if name == "novel":
                start = x + width - text_size(moment.angles, self._SCALE)[0]
                draw_text(caption, start, 4, moment.angles, DIM, self._SCALE)
        bottom = self._strip(self._STATUS)
        limit = (self.width - 2 * self._GAP) // (6 * self._SCALE)
        draw_text(bottom, self._GAP, 8, status[:limit], DIM, self._SCALE)
        for row, (convert, strip) in enumerate(zip(self._strips, [*captions, bottom], strict=True)):
            y = row * (self._CAPTION + height)
            self._put(convert(strip, self.width, strip.shape[0]), 0, y)
        frame = av.VideoFrame.from_ndarray(self._canvas, format="yuv420p")  # a copy: encoders keep frames
        frame.colorspace = BT709
        return frame

    def _put(self, picture: av.VideoFrame, x: int, y: int) -> None:
        """Copies a yuv420p picture to an even place on the canvas."""
        planes: Sequence[Any] = picture.planes
        for i, plane in enumerate(planes):
            half = 1 if i == 0 else 2
            rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
            self._planes[i][y // half : y // half + plane.height, x // half : x // half + plane.width] = rows

    def _fill(self, x: int, y: int, width: int, height: int, colour: Colour) -> None:
        """Paints a rectangle at an even place of even size."""
        for i, value in enumerate(_yuv(colour)):
            half = 1 if i == 0 else 2
            self._planes[i][y // half : (y + height) // half, x // half : (x + width) // half] = value

    def _mark(self, caption: Image, x: int, y: int, moment: Moment) -> None:
        """Says over the reconstruction whether this is a key frame, and on it where in its interval."""
        colour = AMBER if moment.key else TEAL
        roomy = text_size("RECONSTRUCTION in between", self._SCALE)[0] + 16 <= self.panel_width
        words = ("KEY FRAME" if moment.key else "IN BETWEEN") if roomy else ("KEY" if moment.key else "MID")
        chip(caption, x + self.panel_width, 2, words, colour, self._SCALE)
        y += self.panel_height - self._BAR
        done = round(self.panel_width * (1.0 if moment.key else moment.phase) / 2) * 2
        self._fill(x, y, self.panel_width, self._BAR, (60, 62, 68))
        self._fill(x, y, max(self._BAR, done), self._BAR, colour)


class _ToYuv:
    """Scales RGB and converts it to yuv420p (BT.709, limited range) in one step."""

    def __init__(self, method: Interpolation) -> None:
        self._method = method
        self._reformatter = VideoReformatter()

    def __call__(self, image: Image, width: int, height: int) -> av.VideoFrame:
        return self._reformatter.reformat(
            av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(image), "rgb24"),
            width,
            height,
            "yuv420p",
            dst_colorspace=BT709,
            interpolation=self._method,
        )


def _yuv(colour: Colour) -> tuple[int, int, int]:
    """8-bit limited-range BT.709 of an RGB colour."""
    r, g, b = (c / 255 for c in colour)
    luma = 0.2126 * r + 0.7152 * g + 0.0722 * b
    return (
        round(16 + 219 * luma),
        round(128 + 224 * (b - luma) / 1.8556),
        round(128 + 224 * (r - luma) / 1.5748),
    )
