"""Synthetic sequences with exact depth, motion and masks: photographs and cut-outs as planes.

Every layer is a textured plane. Its inverse depth is linear in the image, d(p) = l . (x, y, 1), which is
what a plane shows to a pinhole camera. A camera translation T = (tx, ty, tz) then moves it by the homography

    H = K (I + T l^T) M        (tx, ty in pixels per unit of inverse depth; K: camera rotation, roll, zoom, a
                                similarity about the centre; M: the layer's own affine motion)

and its inverse depth seen from there is H^-T l. Parallax, occlusion, flow and depth therefore agree exactly.
Motion follows a smooth path s(t), s(0) = 0, s(1) = 1, nearly even in time; the state halfway is the layer's
canonical one, so neither key frame is special.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .sample import F32, U8

F64 = NDArray[np.float64]


@dataclass
class Path:
    """Motion of the whole sequence; a path position s in [-0.5, 0.5] applies that fraction of it."""

    shift: F64  # x, y in pixels
    log_scale: float
    angle: float  # radians
    bend: float  # unevenness in time: s(t) = t + bend t (1 - t)

    def matrix(self, s: float, centre: F64) -> F64:
        """Similarity about `centre` at path position s, [3, 3]."""
        scale, angle = np.exp(self.log_scale * s), self.angle * s
        c, n = scale * np.cos(angle), scale * np.sin(angle)
        x, y = centre
        dx, dy = self.shift * s
        return np.array([[c, -n, x - c * x + n * y + dx], [n, c, y - n * x - c * y + dy], [0, 0, 1.0]])

    def at(self, t: float) -> float:
        """Path position in [-0.5, 0.5] at time t."""
        return t + self.bend * t * (1 - t) - 0.5


@dataclass
class Layer:
    """A textured plane: premultiplied RGBA (or RGB for the background), placement, plane and motion."""

    texture: U8
    place: F64  # texture pixels -> canonical pixels, [3, 3]
    plane: F64  # l: inverse depth = l . (x, y, 1) at canonical pixels
    own: Path
    centre: F64
    moves: bool


class Scene:
    """Layers in drawing order (farthest first) and a camera; `render` draws, `flow` compares two times."""

    def __init__(self, height: int, width: int, layers: list[Layer], camera: Path, translation: F64) -> None:
        self.height, self.width = height, width
        self.layers = layers
        self.camera = camera
        self.translation = translation

    def homography(self, layer: Layer, t: float) -> F64:
        """Canonical pixels of a layer -> image pixels at time t, [3, 3], scaled so that depth follows."""
        own = layer.own.matrix(layer.own.at(t), layer.centre)
        plane = np.linalg.solve(own.T, layer.plane)  # the plane moves along with the object
        s = self.camera.at(t)
        # Forward motion is towards the middle of the image, so the plane step happens in centred coordinates.
        centre = np.array([(self.width - 1) / 2, (self.height - 1) / 2])
        to_centre = np.array([[1, 0, -centre[0]], [0, 1, -centre[1]], [0, 0, 1.0]])
        from_centre = np.array([[1, 0, centre[0]], [0, 1, centre[1]], [0, 0, 1.0]])
        plane = np.linalg.solve(to_centre.T, plane)
        step = np.eye(3) + np.outer(self.translation * s, plane)
        return self.camera.matrix(s, centre) @ from_centre @ step @ to_centre @ own

    def image_plane(self, layer: Layer, t: float) -> F64:
        """Inverse depth of a layer at time t as a linear function of image pixels, [3]."""
        return np.linalg.solve(self.homography(layer, t).T, layer.plane)

    def box(self, layer: Layer, t: float) -> tuple[int, int, int, int]:
        """Image rows and columns (y0, y1, x0, x1) a layer can touch at time t; empty boxes have y1 <= y0."""
        if layer is self.layers[0]:
            return 0, self.height, 0, self.width
        h, w = layer.texture.shape[:2]
        corners = np.array([[-1, w, w, -1], [-1, -1, h, h], [1, 1, 1, 1.0]])
        p = self.homography(layer, t) @ layer.place @ corners
        x, y = p[0] / p[2], p[1] / p[2]
        return (max(0, int(np.floor(y.min()))), min(self.height, int(np.ceil(y.max())) + 1),
                max(0, int(np.floor(x.min()))), min(self.width, int(np.ceil(x.max())) + 1))  # fmt: skip

    def render(self, t: float) -> tuple[U8, F32, NDArray[np.uint8]]:
        """RGB uint8 [H, W, 3], inverse depth float32 [H, W] and number of the visible layer uint8 [H, W]."""
        rgb = np.empty((self.height, self.width, 3), np.uint8)
        depth = np.empty((self.height, self.width), np.float32)
        ids = np.zeros((self.height, self.width), np.uint8)
        for number, layer in enumerate(self.layers):
            y0, y1, x0, x1 = self.box(layer, t)
            if y1 <= y0 or x1 <= x0:
                continue
            matrix = self.homography(layer, t) @ layer.place
            matrix = np.array([[1, 0, -x0], [0, 1, -y0], [0, 0, 1.0]]) @ matrix
            border = cv2.BORDER_REFLECT_101 if number == 0 else cv2.BORDER_CONSTANT
            patch = _warp(layer.texture, matrix, (x1 - x0, y1 - y0), border)
            plane = _linear(self.image_plane(layer, t), y0, y1, x0, x1)
            if number == 0:
                rgb[:], depth[:] = patch, plane
                continue
            window = rgb[y0:y1, x0:x1]
            alpha = patch[..., 3]
            rest = cv2.cvtColor(255 - alpha, cv2.COLOR_GRAY2RGB)
            window[:] = cv2.add(cv2.multiply(window, rest, scale=1 / 255), patch[..., :3])
            visible = alpha >= 128
            np.copyto(depth[y0:y1, x0:x1], plane, where=visible)
            np.copyto(ids[y0:y1, x0:x1], np.uint8(number), where=visible)
        return rgb, np.clip(depth, 0, 1), ids

    def flow(self, ids: NDArray[np.uint8], start: float, stop: float) -> F32:
        """Exact motion float32 [H, W, 2] of the surfaces visible at `start` (given by `ids`) until `stop`."""
        result = np.empty((self.height, self.width, 2), np.float32)
        for number, layer in enumerate(self.layers):
            y0, y1, x0, x1 = self.box(layer, start)
            if y1 <= y0 or x1 <= x0:
                continue
            matrix = self.homography(layer, stop) @ np.linalg.inv(self.homography(layer, start))
            w = _linear(matrix[2], y0, y1, x0, x1)
            here = ids[y0:y1, x0:x1] == number
            for axis in range(2):
                target = _linear(matrix[axis], y0, y1, x0, x1) / w
                origin = np.arange(x0, x1)[None] if axis == 0 else np.arange(y0, y1)[:, None]
                np.copyto(result[y0:y1, x0:x1, axis], target - origin, where=here, casting="same_kind")
        return result

    def limit_motion(self, most: float) -> None:
        """Scale all motion down until no layer moves more than `most` pixels anywhere in the image."""
        for _ in range(3):
            worst = max(self._largest_flow(layer) for layer in self.layers)
            if worst <= most:
                return
            factor = 0.97 * most / worst
            self.translation = self.translation * factor
            for path in [self.camera, *(layer.own for layer in self.layers)]:
                path.shift = path.shift * factor
                path.log_scale *= factor
                path.angle *= factor

    def _largest_flow(self, layer: Layer) -> float:
        y0, y1, x0, x1 = self.box(layer, 0.0)
        if y1 <= y0 or x1 <= x0:
            return 0.0
        p = np.array([[x0, x1, x0, x1], [y0, y0, y1, y1], [1, 1, 1, 1.0]])
        q = self.homography(layer, 1.0) @ np.linalg.solve(self.homography(layer, 0.0), p)
        return float(np.hypot(*(q[:2] / q[2] - p[:2])).max())


def _linear(form: F64, y0: int, y1: int, x0: int, x1: int) -> F32:
    """form . (x, y, 1) over a window, float32."""
    x = (form[0] * np.arange(x0, x1) + form[2]).astype(np.float32)
    y = (form[1] * np.arange(y0, y1)).astype(np.float32)
    result: F32 = y[:, None] + x[None]
    return result


def _warp(texture: U8, matrix: F64, size: tuple[int, int], border: int) -> U8:
    matrix = matrix / matrix[2, 2]
    # The affine case is about twice as fast.
    if np.abs(matrix[2, :2]).max() < 1e-9:
        image = cv2.warpAffine(texture, matrix[:2], size, flags=cv2.INTER_LINEAR, borderMode=border)
    else:
        image = cv2.warpPerspective(texture, matrix, size, flags=cv2.INTER_LINEAR, borderMode=border)
    return np.asarray(image, np.uint8)
