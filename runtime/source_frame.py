"""What a pipeline takes from a reader: a protocol of three attributes, and what some readers say besides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .prefetch import Decoded
from .preprocess import check_image
from .video.surface import Picture, Surface


class SourceFrame(Protocol):
    """What a video reader yields: uint8 RGB [h, w, 3], seconds (strictly increasing), the frame's number.

    A reader may also give `captured` (perf_counter seconds), `decode_ms` and `segment` as in
    `video.VideoFrame`, and `surface` as in `video.SurfaceFrame`; see `ArrivedFrame`.
    """

    @property
    def image(self) -> np.ndarray: ...
    @property
    def timestamp(self) -> float: ...
    @property
    def index(self) -> int: ...


@dataclass
class ArrivedFrame:
    """A source frame on its way through a pipeline, with all that a reader may leave out filled in.

    Attributes:
        source: as it came.
        picture: its pixels where they are, C-contiguous on the host or a surface on a GPU.
        captured: perf_counter seconds; where the source does not say, when its decoding began.
        decode_ms: milliseconds of decoding; where the source does not say, of waiting for it.
        segment: another number than the frame before it has means that a live source broke off in between.
        is_key, is_cut: what the pipeline made of it, see `Rendered`.
    """

    source: SourceFrame
    picture: Picture
    captured: float
    decode_ms: float
    segment: int
    is_key: bool = False
    is_cut: bool = False

    @property
    def image(self) -> np.ndarray:
        """`picture` on the host: uint8 RGB [h, w, 3], C-contiguous; downloaded where it is on a GPU."""
        return self.source.image if isinstance(self.picture, Surface) else self.picture

    @classmethod
    def of(cls, arrival: Decoded[SourceFrame]) -> ArrivedFrame:
        """What a prefetcher got from a reader.

        Raises:
            InputError: the image is no uint8 RGB array.
        """
        source = arrival.item
        surface: Surface | None = getattr(source, "surface", None)
        captured: float | None = getattr(source, "captured", None)
        decode_ms: float | None = getattr(source, "decode_ms", None)
        return cls(
            source,
            check_image(source.image) if surface is None else surface,
            arrival.at - arrival.milliseconds / 1e3 if captured is None else captured,
            arrival.milliseconds if decode_ms is None else decode_ms,
            getattr(source, "segment", 0),
        )
