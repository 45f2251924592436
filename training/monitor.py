"""TensorBoard: the numbers of every step, and now and then pictures of what the model renders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..extras import require
from ..runtime.video.output import output_error
from .data.loader import Batch, Stills
from .gaussians import render_pair, render_static
from .model import StreamSplat
from .objectives import encode, predict_pair
from .recipe import Recipe
from .setting import Setting

_MOST_ROWS = 4
_ERROR_GAIN = 4.0  # errors are dark; an error of a quarter shows white
_GREY = 0.5  # behind the Gaussians, as in evaluation


class Monitor:
    """Event files for `tensorboard --logdir`. Not writing to it changes nothing about the run.

    Args:
        folder: where the event files go.
        step: steps done so far; what was logged beyond, by a run that was killed, is hidden.

    Raises:
        EngineError: TensorBoard is not installed.
        OutputError: the folder cannot be written.
    """

    def __init__(self, folder: Path, step: int) -> None:
        require("train", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        with self._errors():
            self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise output_error(self._folder, error) from error

    def scalars(self, step: int, row: dict[str, float]) -> None:
        """Add a row of the log. Raises OutputError."""
        with self._errors():
            for name, value in row.items():
                self._writer.add_scalar(name, value, step)

    def images(self, step: int, grid: Tensor) -> None:
        """Add a picture [3, h, w] in [0, 1]. Raises OutputError."""
        with self._errors():
            self._writer.add_image("input | render | error", grid.cpu(), step)
            self._writer.flush()

    def close(self) -> None:
        """Write what is left. Raises OutputError."""
        with self._errors():
            self._writer.close()


def preview(model: StreamSplat, batch: Batch | Stills, recipe: Recipe, setting: Setting) -> Tensor:
    """Picture [3, rows H, 3 W] in [0, 1] of a batch: frame, render, and four times the absolute error.

    Stage 1: one row for each of the first samples. Stage 2: the frames in between of the first sample.
    Rendered as in evaluation, where nothing is sampled: neither the model nor the random state changes.
    """
    with torch.no_grad(), _evaluation(model):
        if isinstance(batch, Stills):
            target, render = _stills(model, batch, recipe)
        else:
            target, render = _between(model, batch, recipe, setting)
    render = render.clamp(0.0, 1.0)
    error = (_ERROR_GAIN * (render - target).abs()).clamp(max=1.0)
    return torch.cat([target, render, error], dim=2).flatten(0, 1).permute(2, 0, 1)


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _first_samples(batch: Any, count: int) -> Any:
    return type(batch)(**{name: value[:count] for name, value in vars(batch).items()})


def _as_images(frames: Tensor) -> Tensor:
    return frames.float().permute(0, 2, 3, 1) / 255.0


def _stills(model: StreamSplat, batch: Stills, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Frames and renders [rows, H, W, 3]."""
    config = model.config
    some = _first_samples(batch, _MOST_ROWS)
    _, _, gaussians = encode(model, some.images, some.inv_depth, recipe)
    grey = gaussians.new_full((len(gaussians), 3), _GREY)
    rgb, _, _ = render_static(gaussians, grey, (config.height, config.width), config.depth_mapping)
    return _as_images(some.images), rgb


def _between(model: StreamSplat, batch: Batch, recipe: Recipe, setting: Setting) -> tuple[Tensor, Tensor]:
    """Frames and renders [rows, H, W, 3]."""
    config = model.config
    one = _first_samples(batch, 1)
    gaussians, motion, fade = predict_pair(model, one.frames[:, [0, -1]], one.inv_depth, recipe, setting)
    rows = slice(1, min(one.times.shape[1] - 1, 1 + _MOST_ROWS))
    grey = gaussians.new_full((1, 3), _GREY)
    size = (config.height, config.width)
    rgb, _, _ = render_pair(gaussians, motion, fade, one.times[:, rows], grey, size, config.depth_mapping)
    return _as_images(one.frames[0, rows]), rgb[0]
