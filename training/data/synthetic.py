"""Random scenes of `synthetic_scene`: what training draws from where exact labels are wanted."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from streamsplat_edge.runtime.errors import InputError

from .reader import Cache
from .sample import F32, U8, Sample, colour_table, pick_times
from .synthetic_scene import F64, Layer, Path, Scene

MAX_LAYERS = 4
MAX_FLOW = 32.0  # pixels between the key frames, at 256 x 144 (scaled with the width)
BACKGROUND_DEPTH = (0.05, 0.5)  # inverse depth of the background
NEAREST = 0.97
LEAVES_BY = 16.0  # flow is still a label when its end point is at most this many pixels outside


class SyntheticSampler:
    """Draws random scenes.

    Args:
        photos: uint8 [h, w, 3] photographs, background and cut-out textures. At least one.
        sprites: uint8 [h, w, 4] RGBA cut-outs, may be empty.
        height, width: size of the frames.

    Raises:
        InputError: no photographs.
    """

    def __init__(self, photos: Sequence[U8], sprites: Sequence[U8], height: int, width: int) -> None:
        if not photos:
            raise InputError(
                "There are no train photographs to make synthetic scenes from.",
                "Add some to photos/ (or images.json of the media folder) and prepare the cache again.",
            )
        self.photos, self.sprites = list(photos), list(sprites)
        self.height, self.width = height, width
        self.unit = width / 256  # sizes and motions below are in pixels of a 256-wide image
        # Drawing noise anew for every frame would cost more than the rest; windows of one bank look the same.
        bank = np.random.default_rng(0).normal(0, 32, (height + 64, width + 64, 3))
        self._noise = np.clip(bank, -127, 127).astype(np.int8)

    @classmethod
    def from_cache(cls, cache: Cache) -> SyntheticSampler:
        """With the train photographs and the sprites of a cache."""
        return cls(cache.photos("train"), cache.sprites(), cache.height, cache.width)

    def sample(self, rng: np.random.Generator, frames: int | None = None) -> Sample:
        """One sequence of T = `frames` frames (default 2 to 7)."""
        count = int(rng.integers(2, 8)) if frames is None else frames
        times = np.linspace(0, 1, count)
        if count > 2 and rng.random() < 0.4:
            times = pick_times(rng, 13, count) / 12 if count <= 13 else times
        scene = self.scene(rng)
        drawn = [scene.render(float(t)) for t in times]
        forward = scene.flow(drawn[0][2], 0.0, 1.0)
        backward = scene.flow(drawn[-1][2], 1.0, 0.0)
        moving = np.array([layer.moves for layer in scene.layers])
        return Sample(
            frames=self._photometry(rng, [rgb for rgb, _, _ in drawn]),
            times=times.astype(np.float32),
            inv_depth=np.stack([depth for _, depth, _ in drawn]).astype(np.float16),
            depth_valid=True,
            flow_fwd=forward.astype(np.float16),
            flow_bwd=backward.astype(np.float16),
            valid_fwd=self._lands_near(forward),
            valid_bwd=self._lands_near(backward),
            mask=np.stack([moving[ids] for _, _, ids in drawn]),
            source="synthetic",
        )

    def still(self, rng: np.random.Generator) -> tuple[U8, F32]:
        """One image uint8 [H, W, 3] with inverse depth float32 [H, W]."""
        rgb, depth, _ = self.scene(rng).render(0.5)
        return self._photometry(rng, [rgb])[0], depth

    def _lands_near(self, flow: F32) -> NDArray[np.bool_]:
        x = flow[..., 0] + np.arange(self.width, dtype=np.float32)[None]
        y = flow[..., 1] + np.arange(self.height, dtype=np.float32)[:, None]
        e = LEAVES_BY
        return (x > -e) & (y > -e) & (x < self.width - 1 + e) & (y < self.height - 1 + e)

    def scene(self, rng: np.random.Generator) -> Scene:
        """A random scene."""
        camera = self._path(rng, median=2.0, most=14.0, turn=0.02, grow=0.03)
        if rng.random() < 0.2:
            camera.shift, camera.angle, camera.log_scale = np.zeros(2), 0.0, 0.0
        translation = np.zeros(3)
        if rng.random() < 0.75:
            direction = rng.uniform(0, 2 * np.pi)
            length = self._length(rng, median=9.0, most=48.0)  # per unit of inverse depth
            translation[:2] = length * np.cos(direction), 0.5 * length * np.sin(direction)
        if rng.random() < 0.35:
            translation[2] = rng.normal(0, 0.08)
        layers = [self._background(rng)]
        camera.bend = rng.uniform(-0.25, 0.25) if rng.random() < 0.4 else 0.0
        scene = Scene(self.height, self.width, layers, camera, translation)
        for _ in range(int(rng.integers(1, MAX_LAYERS + 1)) if rng.random() < 0.93 else 0):
            layer = self._foreground(rng, scene)
            if layer is not None:
                layers.append(layer)
        scene.limit_motion(MAX_FLOW * self.unit)
        return scene

    def _length(self, rng: np.random.Generator, median: float, most: float) -> float:
        """A motion length with a heavy tail, pixels of this image."""
        return float(min(most, median * np.exp(rng.normal(0, 0.9)))) * self.unit

    def _path(self, rng: np.random.Generator, median: float, most: float, turn: float, grow: float) -> Path:
        direction = rng.uniform(0, 2 * np.pi)
        length = self._length(rng, median, most)
        bend = rng.uniform(-0.3, 0.3) if rng.random() < 0.3 else 0.0
        shift = length * np.array([np.cos(direction), 0.7 * np.sin(direction)])
        return Path(shift, float(rng.normal(0, grow)), float(rng.normal(0, turn)), bend)

    def _still_path(self) -> Path:
        return Path(np.zeros(2), 0.0, 0.0, 0.0)

    def _background(self, rng: np.random.Generator) -> Layer:
        photo = self.photos[int(rng.integers(len(self.photos)))]
        if rng.random() < 0.5:
            photo = photo[:, ::-1]
        h, w = photo.shape[:2]
        # Texture pixels per image pixel: never so many that bilinear sampling would alias much.
        densest = min(1.6 / self.unit, 0.92 * h / self.height, 0.92 * w / self.width)
        density = rng.uniform(0.65 * densest, densest)
        place = self._placement(rng, (h, w), 1 / density, rng.normal(0, 0.06))
        # Keep the view on the photograph: its middle may lie off-centre by what the margin allows.
        slack = np.maximum(0, np.array([w, h]) / density - [self.width, self.height]) / 2
        place[:2, 2] += np.array([(self.width - 1) / 2, (self.height - 1) / 2]) + rng.uniform(-slack, slack)
        low, high = np.sort(rng.uniform(*BACKGROUND_DEPTH, 2))
        if rng.random() < 0.15:
            low = high
        # Lower in the image is nearer, with some lateral tilt that stays inside the range.
        lateral = rng.normal(0, 0.15) * (high - low)
        gy = (high - low - abs(lateral)) / (self.height - 1)
        gx = lateral / (self.width - 1)
        plane = np.array([gx, gy, low + (abs(lateral) if lateral < 0 else 0.0)])
        texture = np.asarray(cv2.LUT(np.ascontiguousarray(photo), colour_table(rng, 0.7)[None]), np.uint8)
        return Layer(texture, place, plane, self._still_path(), np.zeros(2), False)

    def _placement(self, rng: np.random.Generator, shape: tuple[int, int], scale: float, angle: float) -> F64:
        """Texture pixels -> pixels about the texture's middle."""
        c, n = scale * np.cos(angle), scale * np.sin(angle)
        x, y = (shape[1] - 1) / 2, (shape[0] - 1) / 2
        return np.array([[c, -n, -c * x + n * y], [n, c, -n * x - c * y], [0, 0, 1.0]])

    def _foreground(self, rng: np.random.Generator, scene: Scene) -> Layer | None:
        """A cut-out somewhere in the image, nearer than what it may cover; None where there is no room."""
        texture = self._cutout(rng)
        place = self._placement(rng, texture.shape[:2], 1.0, float(rng.normal(0, 0.25)))
        centre = np.array([rng.uniform(0.05, 0.95) * self.width, rng.uniform(0.15, 0.95) * self.height])
        place[:2, 2] += centre
        moves = rng.random() < 0.8
        own = self._path(rng, median=5.0, most=24.0, turn=0.08, grow=0.06) if moves else self._still_path()
        reach = np.hypot(*texture.shape[:2]) / 2 + 40 * self.unit
        background, *others = scene.layers
        behind = float(background.plane @ [*centre, 1.0] + reach * np.hypot(*background.plane[:2])) + 0.01
        behind = max([behind, *(self._nearest(layer, centre, reach) for layer in others)])
        radius = np.hypot(*texture.shape[:2]) / 2
        tilt = rng.normal(0, 0.03, 2) / radius if rng.random() < 0.5 else np.zeros(2)
        base = behind + float(np.abs(tilt).sum()) * radius * 1.2 + rng.uniform(0.02, 0.3)
        if base + np.abs(tilt).sum() * radius > NEAREST:
            tilt, base = np.zeros(2), behind + 0.02
            if base > NEAREST:
                return None
        plane = np.array([*tilt, base - tilt @ centre])
        return Layer(texture, place, plane, own, centre, moves)

    def _nearest(self, layer: Layer, centre: F64, reach: float) -> float:
        """Largest inverse depth of a foreground layer that may come within `reach` of `centre`, else 0."""
        radius = float(np.hypot(*layer.texture.shape[:2])) / 2
        if np.hypot(*(layer.centre - centre)) > reach + radius + 40 * self.unit:
            return 0.0
        return float(layer.plane @ [*layer.centre, 1.0] + radius * np.hypot(*layer.plane[:2])) + 0.01

    def _cutout(self, rng: np.random.Generator) -> U8:
        """Premultiplied RGBA cut-out at its final size, with an antialiased rim and a transparent border."""
        size = float(np.clip(np.exp(rng.normal(np.log(52), 0.45)), 14, 130)) * self.unit
        if self.sprites and rng.random() < 0.5:
            sprite = self.sprites[int(rng.integers(len(self.sprites)))]
            if rng.random() < 0.5:
                sprite = sprite[:, ::-1]
            scale = min(1.3, size / max(sprite.shape[:2]))
            shape = (max(4, round(sprite.shape[1] * scale)), max(4, round(sprite.shape[0] * scale)))
            alpha = sprite[..., 3].astype(np.float32) / 255
            rgb = cv2.LUT(np.ascontiguousarray(sprite[..., :3]), colour_table(rng, 1.5)[None])
            packed = np.dstack([rgb * alpha[..., None], sprite[..., 3]])
            packed = cv2.resize(
                packed, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
            )
        else:
            shape_alpha = self._shape(rng, size)
            rgb = self._texture(rng, shape_alpha.shape)
            packed = np.dstack([rgb * (shape_alpha[..., None] / 255), shape_alpha])
        border = cv2.copyMakeBorder(
            packed.astype(np.float32), 2, 2, 2, 2, cv2.BORDER_CONSTANT, value=(0, 0, 0, 0)
        )
        texture: U8 = (border + 0.5).astype(np.uint8)
        return texture

    def _shape(self, rng: np.random.Generator, size: float) -> NDArray[np.float32]:
        """A random outline with a soft rim, float32 [h, w] in 0..255: blob, ellipse or polygon."""
        kind = rng.random()
        if kind < 0.45:
            angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
            radius = np.ones_like(angle)
            for k in range(2, 6):
                radius += rng.normal(0, 0.22 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
        elif kind < 0.65:
            angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
            radius = np.ones_like(angle)
        else:
            angle = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 9))))
            radius = rng.uniform(0.5, 1, len(angle))
        stretch = np.exp(rng.normal(0, 0.5 if kind < 0.9 else 1.2))
        points = np.stack([np.cos(angle), np.sin(angle)], 1) * np.maximum(radius, 0.2)[:, None]
        points *= size / 2 * np.array([np.sqrt(stretch), 1 / np.sqrt(stretch)])
        low, high = points.min(axis=0), points.max(axis=0)
        limit = np.minimum(1.0, np.array([0.8 * self.width, 0.9 * self.height]) / np.maximum(high - low, 1))
        points = (points - low) * limit + 2
        w, h = np.ceil(points.max(axis=0)).astype(int) + 3
        image = np.zeros((h, w), np.uint8)
        cv2.fillPoly(image, [np.round(points * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
        soft: NDArray[np.float32] = cv2.GaussianBlur(image, (3, 3), rng.uniform(0.4, 1.0)).astype(np.float32)
        return soft

    def _texture(self, rng: np.random.Generator, shape: tuple[int, ...]) -> U8:
        """A piece of a photograph of that size, uint8 [h, w, 3]."""
        photo = self.photos[int(rng.integers(len(self.photos)))]
        h, w = shape[:2]
        zoom = min(rng.uniform(0.8, 1.8), photo.shape[0] / h, photo.shape[1] / w)
        ph, pw = min(photo.shape[0], int(h * zoom)), min(photo.shape[1], int(w * zoom))
        y, x = int(rng.integers(photo.shape[0] - ph + 1)), int(rng.integers(photo.shape[1] - pw + 1))
        piece = cv2.resize(photo[y : y + ph, x : x + pw], (w, h), interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.LUT(piece, colour_table(rng, 2.0)[None]), np.uint8)

    def _photometry(self, rng: np.random.Generator, images: list[U8]) -> U8:
        """Optional exposure drift and noise on the finished frames; uint8 [T, H, W, 3]."""
        result = np.stack(images)
        if len(images) > 1 and rng.random() < 0.15:
            drift = rng.normal(0, 0.03)
            for image, gain in zip(result, np.linspace(1 - drift, 1 + drift, len(result)), strict=True):
                cv2.convertScaleAbs(image, dst=image, alpha=float(gain))
        if rng.random() < 0.35:
            strength = abs(rng.normal(0, 1.5)) / 32
            for image in result:
                y, x = rng.integers(0, 64, 2)
                noise = self._noise[y : y + self.height, x : x + self.width]
                cv2.addWeighted(image, 1.0, noise, strength, 0.0, dst=image, dtype=cv2.CV_8U)
        return result
