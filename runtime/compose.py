"""Pictures for people: depth in colours, moments of a run, the contact sheet. NumPy and swscale."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Interpolation, VideoReformatter

from .font import ADVANCE, draw_text, text_size

Image = npt.NDArray[np.uint8]  # RGB [h, w, 3]
Colour = tuple[int, int, int]

PICTURES = ("input", "reconstruction", "depth", "novel")  # what can be shown of a frame
CAPTIONS = {"input": "INPUT", "reconstruction": "RECONSTRUCTION", "depth": "DEPTH", "novel": "NOVEL VIEW"}

INK: Colour = (232, 234, 237)
DIM: Colour = (150, 155, 163)
PAPER: Colour = (20, 21, 24)
AMBER: Colour = (255, 184, 56)
TEAL: Colour = (72, 190, 190)

# Depth colours from far (dark) to near (bright): monotonic in lightness, so they read in grey as well.
_DEPTH_STOPS: tuple[Colour, ...] = (
    (10, 8, 38),
    (42, 18, 98),
    (98, 26, 124),
    (158, 44, 112),
    (212, 76, 80),
    (244, 132, 52),
    (253, 196, 84),
    (252, 246, 192),
)


def _colour_table() -> Image:
    stops = np.array(_DEPTH_STOPS, np.float64)
    at = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(np.linspace(0, 1, 256), at, stops[:, c]) for c in range(3)], 1).astype(
        np.uint8
    )


DEPTH_COLOURS = _colour_table()


class Scaler:
    """Scales uint8 RGB images with swscale, keeping its tables between images of one size."""

    def __init__(self, method: Interpolation = Interpolation.BICUBIC) -> None:
        self._method = method
        self._reformatter = VideoReformatter()

    def __call__(self, image: Image, width: int, height: int) -> Image:
        """The image [h, w, 3] as [height, width, 3]; the same array where the size is right already."""
        if image.shape[:2] == (height, width):
            return image
        frame = av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(image), "rgb24")
        scaled = self._reformatter.reformat(frame, width, height, "rgb24", interpolation=self._method)
        return np.asarray(scaled.to_ndarray(), np.uint8)


def resize(image: Image, width: int, height: int) -> Image:
    """Scales one uint8 RGB image [h, w, 3] (bicubic)."""
    return Scaler()(image, width, height)


def psnr(image: Image, truth: Image) -> float:
    """Peak signal-to-noise ratio of two uint8 images of one shape, in dB; infinite when they are equal."""
    difference = image.astype(np.float32) - truth
    error = float(np.mean(np.square(difference), dtype=np.float64))
    return 10.0 * float(np.log10(255.0**2 / error)) if error > 0 else float("inf")


@dataclass
class DepthColours:
    """Turns expected depth into colours, nearer = brighter; the range follows the scene slowly (no flicker).

    Inverse depth is shown: it is what the model predicts, and it separates near things from each other.

    Attributes:
        inertia: share of the old range kept per frame, 0 = every frame for itself.
    """

    inertia: float = 0.95
    _range: tuple[float, float] | None = field(default=None, repr=False)

    def reset(self) -> None:
        """Forgets the range (after a scene cut)."""
        self._range = None

    def __call__(self, expected_depth: npt.NDArray[np.float32], alpha: npt.NDArray[np.float32]) -> Image:
        """Colours [H, W, 3] for depth [H, W] (scene units); pixels that nothing covers stay dark."""
        covered = (alpha > 0.05) & (expected_depth > 1e-6)
        nearness = np.divide(1.0, expected_depth, out=np.zeros_like(expected_depth), where=covered)
        sample = nearness[::2, ::2][covered[::2, ::2]]
        if sample.size:
            low, high = (float(v) for v in np.percentile(sample, (2, 98)))
            if self._range is not None:
                keep = self.inertia
                low = keep * self._range[0] + (1 - keep) * low
                high = keep * self._range[1] + (1 - keep) * high
            self._range = (low, high)
        if self._range is None:
            return np.full((*expected_depth.shape, 3), PAPER, np.uint8)
        low, high = self._range
        # A floor for the width of the range keeps a flat wall from being shown as noise.
        level = (nearness - low) * (255.0 / max(high - low, 0.02 * max(high, 1e-6)))
        colours = DEPTH_COLOURS[np.clip(level, 0, 255).astype(np.uint8)]
        colours[~covered] = PAPER
        return colours


def _fill(canvas: Image, x: int, y: int, width: int, height: int, colour: Colour) -> None:
    canvas[max(0, y) : y + height, max(0, x) : x + width] = colour


def chip(canvas: Image, right: int, y: int, text: str, colour: Colour, scale: int) -> None:
    """A label with coloured ground whose right edge is at `right`."""
    width, height = text_size(text, scale)
    _fill(canvas, right - width - 4 * scale, y, width + 4 * scale, height + scale, colour)
    draw_text(canvas, right - width - 2 * scale, y + scale, text, PAPER, scale)


@dataclass(frozen=True)
class Moment:
    """What the panels of a layout and the contact sheet show about one time.

    Images are at model resolution except `source`, which has the size of the input.

    Attributes:
        depth, novel: None where nobody asked for them.
        phase: position in the current interval, 0 to 1; key frames lie at 0 and 1.
        yaw, pitch: degrees of the novel view.
        psnr: of the reconstruction against the input at model resolution, dB.
    """

    source: Image
    reconstruction: Image
    depth: Image | None
    novel: Image | None
    index: int
    timestamp: float
    key: bool
    phase: float
    yaw: float
    psnr: float
    pitch: float = 0.0

    def picture(self, name: str) -> Image:
        """The picture of a name of `PICTURES`. ValueError where there is none."""
        images = (self.source, self.reconstruction, self.depth, self.novel)
        image = dict(zip(PICTURES, images, strict=True))[name]
        if image is None:
            raise ValueError(f"this moment was made without '{name}'")
        return image

    @property
    def angles(self) -> str:
        """Yaw and pitch of the novel view as text, to be written beside it."""
        return f"{self.yaw:+.1f}°" + (f" {self.pitch:+.1f}°" if self.pitch else "")


class MomentKeeper:
    """Keeps a bounded, evenly spread choice of moments of a stream of unknown length, for the contact sheet.

    Key frames and frames in between are kept apart so that a sheet can show both.
    """

    def __init__(self, capacity: int = 12) -> None:
        self._capacity = capacity
        self._kept: dict[bool, list[Moment]] = {True: [], False: []}
        self._stride = {True: 1, False: 1}
        self._seen = {True: 0, False: 0}

    def wants(self, key: bool, phase: float) -> bool:
        """Whether the next moment of this kind would be kept; saves making its pictures. Counts it."""
        if not key and not 0.3 <= phase <= 0.7:
            return False  # the middle of an interval is the hardest and the fairest to show
        seen, self._seen[key] = self._seen[key], self._seen[key] + 1
        return seen % self._stride[key] == 0

    def add(self, moment: Moment) -> None:
        """Keep a moment that `wants` asked for; where that is too many, every other one goes."""
        kept = self._kept[moment.key]
        kept.append(moment)
        if len(kept) > self._capacity:
            self._kept[moment.key] = kept[::2]
            self._stride[moment.key] *= 2

    def choose(self, rows: int = 4) -> list[Moment]:
        """Up to `rows` moments in order of time, key frames and in between in turn, spread evenly."""
        everything = [m for kept in self._kept.values() for m in kept]
        if not everything:
            return []
        first, last = min(m.timestamp for m in everything), max(m.timestamp for m in everything)
        chosen: dict[int, Moment] = {}
        for row in range(rows):
            goal = first + (last - first) * (row + 0.5) / rows
            pool = [m for m in self._kept[row % 2 == 0] or everything if m.index not in chosen]
            if pool:
                moment = min(pool, key=lambda m: abs(m.timestamp - goal))
                chosen[moment.index] = moment
        return sorted(chosen.values(), key=lambda m: m.timestamp)


def contact_sheet(
    moments: Sequence[Moment],
    title: str,
    facts: Sequence[str],
    *,
    panel_height: int = 198,
    aspect: float | None = None,
) -> Image:
    """One picture that explains a run: a row per moment, a column per view, titles and measurements.

    Args:
        moments: rows from top to bottom.
        title: the headline.
        facts: a line each under the headline, or several where the sheet is narrow (what was run, how fast,
            how well).
        panel_height: pixels of one picture.
        aspect: width over height of the input as it is to be shown; None is that of its pixels.
    """
    gap, gutter = 12, 176
    if aspect is None:
        aspect = moments[0].source.shape[1] / moments[0].source.shape[0] if moments else 16 / 9
    width = round(panel_height * min(2.2, max(0.5, aspect)))
    sheet_width = gutter + 4 * (width + gap) + gap
    lines = [line for fact in facts for line in _wrapped(fact, sheet_width - 48)]
    foot = _wrapped(
        "Key frames pass through the network; frames in between are the same Gaussians, moved and faded.",
        sheet_width - 48,
    )
    top = 24 + 36 + 26 * len(lines) + 22
    bottom = top + 30 + len(moments) * (panel_height + gap) + 8
    sheet = np.full((bottom + 26 * len(foot) + 6, sheet_width, 3), PAPER, np.uint8)
    draw_text(sheet, 24, 24, title, INK, 4)
    for i, line in enumerate(lines):
        draw_text(sheet, 24, 70 + 26 * i, line, DIM, 2)
    captions = [CAPTIONS[name] for name in PICTURES]
    remarks = ("", "", "near = bright", "camera turned")
    for column, (caption, remark) in enumerate(zip(captions, remarks, strict=True)):
        x = gutter + column * (width + gap)
        end = draw_text(sheet, x, top + 4, caption, INK, 2)
        if remark and end + 12 + text_size(remark, 2)[0] <= x + width:
            draw_text(sheet, end + 12, top + 4, remark, DIM, 2)
    for row, moment in enumerate(moments):
        y = top + 30 + row * (panel_height + gap)
        _row_label(sheet, y, moment)
        for column, name in enumerate(PICTURES):
            x = gutter + column * (width + gap)
            sheet[y : y + panel_height, x : x + width] = resize(moment.picture(name), width, panel_height)
        x = gutter + 3 * (width + gap) + width
        chip(sheet, x - 4, y + 4, moment.angles, INK, 2)
    for i, line in enumerate(foot):
        draw_text(sheet, 24, bottom + 26 * i, line, DIM, 2)
    return sheet


def _wrapped(text: str, pixels: int) -> list[str]:
    """Lines of text of scale 2 that are no wider."""
    return textwrap.wrap(text, pixels // (2 * ADVANCE))


def _row_label(sheet: Image, y: int, moment: Moment) -> None:
    colour = AMBER if moment.key else TEAL
    _fill(sheet, 24, y, 4, 96, colour)
    draw_text(sheet, 38, y + 2, "KEY FRAME" if moment.key else "IN BETWEEN", colour, 2)
    if not moment.key:
        draw_text(sheet, 38, y + 26, f"{moment.phase:.0%} of pair", DIM, 2)
    draw_text(sheet, 38, y + 50, f"t {moment.timestamp:.2f} s", INK, 2)
    draw_text(sheet, 38, y + 74, "exact" if moment.psnr == float("inf") else f"{moment.psnr:.1f} dB", INK, 2)


def panel_aspect(source_size: tuple[int, int], image_size: tuple[int, int]) -> Fraction | None:
    """Sample aspect ratio that gives an image of `image_size` (h, w) the source's shape; None when square."""
    ratio = Fraction(source_size[1] * image_size[0], source_size[0] * image_size[1]).limit_denominator(1000)
    return None if abs(ratio - 1) < Fraction(1, 200) else ratio
