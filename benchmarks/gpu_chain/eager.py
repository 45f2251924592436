"""The published script's way, with our own modules in PyTorch, eagerly, on one device of torch.

Of every pair of key frames both are prepared and go through depth, condition and encode, as in the published
loop; a frame inside a stream belongs to two pairs and is computed twice. Every image is rendered by a call of
its own of the rasterizer that training uses (CUDA on a GPU). Nothing leaves the device but finished images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...export.export import runtime_config
from ...export.load import LoadedModel
from ...runtime.preprocess import DepthRange
from ...training.gaussians import render_pair
from .models import at_precision

Limits = tuple[Tensor, Tensor]


@dataclass
class _KeyFrame:
    """What is kept of a key frame: its picture and, as the range of depth runs with the stream, its range."""

    picture: np.ndarray
    time: float
    limits: Limits | None


class EagerLoop:
    """`key_frame` makes the images of the pair that a new key frame ends.

    Args:
        precision: that the products compute in. device: of torch.
    """

    def __init__(self, loaded: LoadedModel, precision: str, device: str) -> None:
        config = loaded.config
        self._size, self._mapping = (config.height, config.width), config.depth_mapping
        self._device = device
        self._stages = {graph.name: at_precision(graph, precision, device) for graph in loaded.graphs()}
        self._background = torch.tensor([runtime_config(config).background], device=device)
        self._previous: _KeyFrame | None = None

    def reset(self) -> None:
        self._previous = None

    @torch.no_grad()
    def key_frame(self, picture: np.ndarray, time: float, times: Sequence[float]) -> list[np.ndarray]:
        """Push a picture (uint8 [h, w, 3]) and render at `times` (seconds, within its pair): uint8 images.

        Returns when they are on the host; nothing for the first key frame.
        """
        new = _KeyFrame(picture, time, None)
        previous = self._previous
        if previous is None:
            self._encoded(new, None)
            self._previous = new
            return []
        earlier = self._encoded(previous, None)
        later = self._encoded(new, previous)
        self._previous = new
        inputs = {
            f"{name}_{i}": value for i, frame in enumerate((earlier, later)) for name, value in frame.items()
        }
        deform = self._stages["deform"]
        motion, fade = deform.module(*(inputs[name] for name in deform.inputs))
        gaussians = torch.stack([earlier["gaussians"], later["gaussians"]], dim=1)
        images = []
        for moment in times:
            share = (moment - previous.time) / (time - previous.time)
            rgb, _, _ = render_pair(
                gaussians,
                motion[None],
                fade[None],
                torch.tensor([[share]], device=self._device),
                self._background,
                self._size,
                self._mapping,
            )
            images.append((rgb[0, 0].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())
        return images

    def _encoded(self, frame: _KeyFrame, before: _KeyFrame | None) -> dict[str, Tensor]:
        """Everything that is computed of one key frame, from its picture on the host."""
        pixels = torch.from_numpy(frame.picture).to(self._device).permute(2, 0, 1)[None].float() / 255
        rgb = self._resized(pixels, self._size)
        plane = torch.zeros_like(rgb[:, :1])
        if "depth" in self._stages:
            plane = self._normalised(self._run("depth", pixels), frame, before)
        found = {}
        if "condition" in self._stages:
            found["condition"] = self._run("condition", pixels)
        encode = self._stages["encode"]
        results = encode.module(torch.cat([rgb, plane], 1))
        return found | dict(zip(encode.outputs, results, strict=True))

    def _run(self, stage: str, pixels: Tensor) -> Tensor:
        """A stage that takes the picture at a size of its own."""
        graph = self._stages[stage]
        height, width = next(iter(graph.inputs.values())).shape[2:]
        result: Tensor = graph.module(self._resized(pixels, (height, width)))
        return result

    def _resized(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)

    def _normalised(self, depth: Tensor, frame: _KeyFrame, before: _KeyFrame | None) -> Tensor:
        """As `DepthRange`, on the device; a frame that is computed again keeps the range that it had."""
        if frame.limits is None:
            low, high = depth.amin(), depth.amax()
            if before is not None and before.limits is not None:
                keep = math.exp((before.time - frame.time) / DepthRange.RELAX_SECONDS)
                low = torch.minimum(low, low + keep * (before.limits[0] - low))
                high = torch.maximum(high, high + keep * (before.limits[1] - high))
            frame.limits = low, high
        low, high = frame.limits
        return torch.where(high > low, (depth - low) / (high - low), torch.zeros_like(depth))
