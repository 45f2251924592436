"""Changes of a whole sequence: the light ones of our recipes and those of the published training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .sample import F16, U8, Bool, Sample, colour_table

F64 = NDArray[np.float64]

MAX_ZOOM = 1.4
# Published (REFERENCE.md section 6): how often each change happens, and its standard deviation or range.
CHANCE = 0.12
SCALE, ANISOTROPY, SHIFT = 0.2, 0.2, 0.125  # powers of two; shift in image sizes
BRIGHTNESS, CONTRAST, SATURATION = 0.1, 0.1, 0.1  # colours in [-1, 1]; powers of two
HUE = 0.05 * np.pi


@dataclass(frozen=True)
class LightAugmentation:
    """Flip, crop-zoom and colour change, the same for all frames of a sequence.

    Attributes:
        height, width: of the frames, pixels.
        flip: mirror left and right.
        zoom: [2, 3], pixels of the result -> pixels of the (flipped) frame; None: no zoom.
        table: uint8 [256, 3], new value per colour channel; None: no change.
    """

    height: int
    width: int
    flip: bool = False
    zoom: F64 | None = None
    table: U8 | None = None

    @classmethod
    def draw(cls, rng: np.random.Generator, height: int, width: int) -> LightAugmentation:
        """A random one."""
        flip = bool(rng.random() < 0.5)
        zoom = None
        if rng.random() < 0.6:
            factor = 1 + (MAX_ZOOM - 1) * rng.random() ** 1.5
            h, w = height / factor, width / factor
            y, x = rng.uniform(0, height - h), rng.uniform(0, width - w)
            half = 0.5 / factor - 0.5
            zoom = np.array([[1 / factor, 0, x + half], [0, 1 / factor, y + half]])
        table = colour_table(rng) if rng.random() < 0.5 else None
        return cls(height, width, flip, zoom, table)

    def images(self, images: U8) -> U8:
        """uint8 [T, H, W, 3], changed."""
        images = self._placed(images, cv2.INTER_CUBIC)
        if self.table is not None:
            images = np.stack([cv2.LUT(i, self.table[None]) for i in images])
        return images

    def depths(self, depths: F16) -> F16:
        """float16 [T, H, W], moved along with the images."""
        return self._placed(depths.astype(np.float32), cv2.INTER_LINEAR).astype(np.float16)

    def masks(self, masks: Bool) -> Bool:
        """bool [T, H, W], moved along with the images."""
        return self._placed(masks.astype(np.uint8), cv2.INTER_NEAREST).astype(np.bool_)

    def _placed(self, frames: NDArray[Any], interpolation: int) -> NDArray[Any]:
        if self.flip:
            frames = frames[:, :, ::-1]
        frames = np.ascontiguousarray(frames)
        if self.zoom is None:
            return frames
        flags, size = interpolation | cv2.WARP_INVERSE_MAP, (self.width, self.height)
        return np.stack(
            [
                cv2.warpAffine(f, self.zoom, size, flags=flags, borderMode=cv2.BORDER_REFLECT_101)
                for f in frames
            ]
        )


@dataclass(frozen=True)
class PublishedAugmentation:
    """The augmentation of the published training: one affine map and one colour map per sequence.

    Drawn as published (REFERENCE.md section 6): a horizontal flip half of the time; then, each with a chance
    of 0.12, a coin for a vertical flip, scale 2^(0.2 n), rotation in +-pi, stretch 2^(+-0.2 n) along an axis
    (turned half of the time) and shift 0.125 n of the image; then brightness 0.1 n, contrast 2^(0.1 n), hue
    +-0.05 pi and saturation 2^(0.1 n) of colours in [-1, 1]. n is standard normal.

    Not reproduced: the published code resamples between two passes of sym6 wavelet filters. They would need
    a resampler of their own for a little more sharpness, and they ring, which makes the published masks
    ("> 0") larger than the objects. Here images are resampled bicubically, depth
    bilinearly, masks and flow by the nearest pixel. Beyond the frame it is reflected without end; published:
    as far as the map can reach by its own estimate, then zeros.

    Attributes:
        place: [3, 3], pixels of the frame -> pixels of the result.
        colour: [3, 4], RGB in [-1, 1] and 1 -> RGB.
    """

    place: F64
    colour: F64

    @classmethod
    def draw(cls, rng: np.random.Generator, height: int, width: int) -> PublishedAugmentation:
        """A random one for frames of that size."""
        return cls(_draw_place(rng, height, width), _draw_colour(rng))

    def sample(self, sample: Sample) -> Sample:
        """The sample with all that has pixels changed; flow turns along and counts inside the frame only."""
        inside = self._inside(sample.frames.shape[1:3])
        return replace(
            sample,
            frames=self.images(sample.frames),
            inv_depth=self.depths(sample.inv_depth),
            flow_fwd=self._flow(sample.flow_fwd),
            flow_bwd=self._flow(sample.flow_bwd),
            valid_fwd=self.masks(sample.valid_fwd[None])[0] & inside,
            valid_bwd=self.masks(sample.valid_bwd[None])[0] & inside,
            mask=self.masks(sample.mask),
        )

    def images(self, images: U8) -> U8:
        """uint8 [T, H, W, 3], changed; colours that leave the range are clipped."""
        images = self._placed(images, cv2.INTER_CUBIC)
        if np.array_equal(self.colour, np.eye(3, 4)):
            return images
        # For bytes b = 127.5 (x + 1): x' = S x + c is b' = S b + 127.5 (1 + c - S 1).
        scale, constant = self.colour[:, :3], self.colour[:, 3]
        bytes_map = np.column_stack([scale, 127.5 * (1 + constant - scale.sum(axis=1))])
        return np.stack([cv2.transform(image, bytes_map) for image in images])

    def depths(self, depths: F16) -> F16:
        """float16 [T, H, W], moved along with the images."""
        return self._placed(depths.astype(np.float32), cv2.INTER_LINEAR).astype(np.float16)

    def masks(self, masks: Bool) -> Bool:
        """bool [T, H, W], moved along with the images."""
        return self._placed(masks.astype(np.uint8), cv2.INTER_NEAREST).astype(np.bool_)

    def _flow(self, flow: F16) -> F16:
        moved = self._placed(flow.astype(np.float32)[None], cv2.INTER_NEAREST)[0]
        turned: F16 = (moved @ self.place[:2, :2].T).astype(np.float16)
        return turned

    def _inside(self, shape: tuple[int, ...]) -> Bool:
        """bool [H, W]: pixels of the result that show the frame, not its reflection."""
        whole = np.ones(shape, np.uint8)
        moved = cv2.warpAffine(whole, self.place[:2], shape[::-1], flags=cv2.INTER_NEAREST)
        return np.asarray(moved).astype(np.bool_)

    def _placed(self, frames: NDArray[Any], interpolation: int) -> NDArray[Any]:
        if np.array_equal(self.place, np.eye(3)):
            return frames
        size, border = frames.shape[2:0:-1], cv2.BORDER_REFLECT_101
        return np.stack(
            [cv2.warpAffine(f, self.place[:2], size, flags=interpolation, borderMode=border) for f in frames]
        )


def _draw_place(rng: np.random.Generator, height: int, width: int) -> F64:
    maps = [np.diag([-1.0, 1.0, 1.0])] if rng.random() < 0.5 else []

    def happens() -> bool:
        return bool(rng.random() < CHANCE)

    def turn(angle: float) -> F64:
        c, s = np.cos(angle), np.sin(angle)
        return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])

    if happens() and rng.random() < 0.5:
        maps.append(np.diag([1.0, -1.0, 1.0]))
    if happens():
        factor = 2.0 ** (SCALE * rng.normal())
        maps.append(np.diag([factor, factor, 1.0]))
    if happens():
        maps.append(turn(rng.uniform(-np.pi, np.pi)))
    if happens():
        factor = 2.0 ** (ANISOTROPY * rng.normal())
        axis = rng.uniform(-np.pi, np.pi) if rng.random() < 0.5 else 0.0
        maps.append(turn(axis) @ np.diag([factor, 1 / factor, 1.0]) @ turn(-axis))
    if happens():
        x, y = SHIFT * rng.normal(size=2) * [width, height]
        maps.append(np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]]))
    if not maps:
        return np.eye(3)
    x, y = (width - 1) / 2, (height - 1) / 2
    place = np.array([[1, 0, -x], [0, 1, -y], [0, 0, 1.0]])
    for step in maps:
        place = step @ place
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]]) @ place


def _draw_colour(rng: np.random.Generator) -> F64:
    colour = np.eye(4)
    luma = np.ones(3) / np.sqrt(3)

    def happens() -> bool:
        return bool(rng.random() < CHANCE)

    def linear(matrix: F64) -> F64:
        return np.block([[matrix, np.zeros((3, 1))], [np.zeros((1, 3)), np.ones((1, 1))]])

    if happens():
        colour[:3, 3] += BRIGHTNESS * rng.normal()
    if happens():
        colour = linear(2.0 ** (CONTRAST * rng.normal()) * np.eye(3)) @ colour
    if happens():
        rotation, _ = cv2.Rodrigues(luma * rng.uniform(-HUE, HUE))
        colour = linear(rotation) @ colour
    if happens():
        grey = np.outer(luma, luma)
        colour = linear(grey + (np.eye(3) - grey) * 2.0 ** (SATURATION * rng.normal())) @ colour
    return colour[:3]
