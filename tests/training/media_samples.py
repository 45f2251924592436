"""A tiny generated media folder: moving textures with cuts, repeats and pauses; and a model for its size."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

HEIGHT, WIDTH = 48, 80
# A model for frames of that size, as the [model] table of a recipe for the preset `tiny`.
MODEL = {
    "height": HEIGHT, "width": WIDTH, "dim": 32, "head_dim": 16, "encoder_depth": 1, "decoder_depth": 1,
    "upsample_windows": [60, 60], "upsample_blocks": [1, 0],
}  # fmt: skip
# Frame 5 repeats frame 4; the cut is at 10; a longer pause (time stamps, not frames) lies before frame 7.
CUT, FRAMES, REPEAT, PAUSE = 10, 20, 5, 7


def texture(seed: int, height: int = 120, width: int = 200) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def write_clip(path: Path, images: list[np.ndarray], milliseconds: list[int]) -> None:
    """Lossless, with the given time stamps."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = images[0].shape[1], images[0].shape[0], "bgr0"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for image, time in zip(images, milliseconds, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def moving(seed: int, count: int, step: int) -> list[np.ndarray]:
    """A view sliding over a texture, inside a black frame of 4 pixels that the crop has to remove."""
    picture = texture(seed, 2 * HEIGHT, 4 * WIDTH)
    views = [picture[8 : 8 + HEIGHT, step * i : step * i + WIDTH] for i in range(count)]
    return [cv2.copyMakeBorder(v, 4, 4, 4, 4, cv2.BORDER_CONSTANT) for v in views]
