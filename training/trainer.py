"""The training loop of both stages: resumable to the same curve, guarded against NaN, every step logged."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from tqdm import tqdm

from ..runtime.errors import InputError
from .checkpoint import Part, save_weights
from .data.cache import Cache
from .interrupts import Interrupts
from .objectives import Setting
from .processes import Processes, join_processes
from .recipe import Recipe
from .run import Run
from .runfolder import RunFolder

if TYPE_CHECKING:
    from .monitor import Monitor

_SAVED: dict[str, Part] = {"static": "static", "motion": "motion", "dynamic": "all"}
# Of several processes: Ctrl-C reaches each of them, and then once more from their launcher.
_ECHO_SECONDS = 5.0


@dataclass(frozen=True)
class Outcome:
    """What a call of `train` ended with.

    Attributes:
        weights: the file.
        step, steps: steps done so far, steps of the recipe.
        skipped: steps so far that changed nothing because data, loss or gradients were not finite.
        main: whether this process is the one that logs, saves and reports.
    """

    weights: Path
    step: int
    steps: int
    skipped: int = 0
    main: bool = True


def train(
    recipe: Recipe,
    out: Path,
    *,
    device: Literal["cpu", "cuda"] = "cpu",
    max_seconds: float | None = None,
    progress: bool = True,
) -> Outcome:
    """Run or resume a stage in folder `out` (see `runfolder` for what it holds).

    Ctrl-C or SIGTERM end the step at hand, save the state, and raise KeyboardInterrupt; a second one stops at
    once. Where several processes were started (see `processes`), all of them call this; the first one logs
    and saves.

    Args:
        recipe: what to train.
        out: the run's folder; a state found there is resumed, on any device and number of processes.
        device: where to compute.
        max_seconds: stop (resumably) after this long.
        progress: show a progress bar on stderr.

    Raises:
        InputError: the recipe does not fit its data or weights, the folder holds another run or is in use, or
            data, loss or gradients stayed non-finite.
        EngineError: the device is not there, or a package is missing.
        OutputError: the folder cannot be written; the state saved last is kept.
    """
    begin = time.monotonic()
    cache = Cache(recipe.data)
    _check_trainable(recipe, cache)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    with ExitStack() as stack:
        processes = join_processes(device)
        stack.callback(processes.close)
        folder = stack.enter_context(RunFolder(out)) if processes.main else None
        progress = progress and processes.main
        run = Run(recipe, cache, Setting(processes, *_frozen_networks(recipe, processes)))
        run.begin(processes.from_main(folder and folder.read_state()), out, progress)
        monitor = None
        if folder is not None:
            folder.write_recipe(recipe.to_dict())
            if recipe.tensorboard:
                monitor = _open_monitor(out, run, stack)
        deadline = None if max_seconds is None else begin + max_seconds
        with Interrupts(_ECHO_SECONDS if processes.count > 1 else 0.0) as interrupts:
            _loop(run, folder, monitor, deadline, interrupts, progress)
        if interrupts.received:
            raise KeyboardInterrupt
        weights = out / RunFolder.WEIGHTS
        if processes.main:
            metadata = {"recipe": json.dumps(recipe.to_dict()), "step": str(run.step)}
            save_weights(run.model, weights, metadata, _SAVED[recipe.stage])
    return Outcome(weights, run.step, recipe.steps, run.skipped, processes.main)


def _check_trainable(recipe: Recipe, cache: Cache) -> None:
    config = recipe.config
    if (cache.height, cache.width) != (config.height, config.width):
        raise InputError(
            f"{cache.root} holds frames of {cache.width}x{cache.height}, "
            f"the model takes {config.width}x{config.height}.",
            f"Prepare a cache with --height {config.height} --width {config.width}.",
        )
    if recipe.stage == "dynamic" and config.condition == "dino" and not recipe.dino:
        raise InputError(
            f'Preset {recipe.preset!r} has the condition "dino", and no DINOv2 weights were named.',
            "Give --dino FILE or FOLDER (dinov2_vitb14_reg4_pretrain.pth or its hub folder), or set under "
            '[model]: condition = "tokens", condition_dim = condition_len = 0.',
        )


def _frozen_networks(recipe: Recipe, processes: Processes) -> tuple[nn.Module | None, nn.Module | None]:
    """LPIPS and DINOv2, where the recipe needs them. They are no part of the model and of its checkpoints."""
    lpips = dino = None
    if recipe.lpips_weight:
        from .perceptual import load_lpips

        lpips = load_lpips(Path(recipe.lpips_weights)).to(processes.device)
    if recipe.stage == "dynamic" and recipe.config.condition == "dino":
        from .condition import load_dino

        dino = load_dino(Path(recipe.dino)).to(processes.device)
    return lpips, dino


def _open_monitor(out: Path, run: Run, stack: ExitStack) -> Monitor:
    from .monitor import Monitor

    monitor = Monitor(out / RunFolder.TENSORBOARD, run.step)
    stack.callback(monitor.close)
    return monitor


def _loop(
    run: Run,
    folder: RunFolder | None,
    monitor: Monitor | None,
    deadline: float | None,
    interrupts: Interrupts,
    progress: bool,
) -> None:
    recipe, processes = run.recipe, run.setting.processes
    begin = time.monotonic() - (folder.rewind_log(run.step) if folder else 0.0)
    saved = None
    with tqdm(
        total=recipe.steps, initial=run.step, disable=not progress, desc=recipe.stage, unit="step"
    ) as bar:
        for batch in run.batches():
            row = run.advance(batch)
            if folder:
                folder.log({"step": run.step, **row, "s": time.monotonic() - begin})
            if monitor:
                monitor.scalars(run.step, row)
                if run.step % recipe.image_every == 0 and recipe.stage != "motion":  # which renders nothing
                    monitor.images(run.step, run.preview(batch))
            bar.update(1)
            bar.set_postfix({k: f"{v:.4g}" for k, v in row.items()}, refresh=False)
            if folder and run.step % recipe.save_every == 0:
                folder.write_state(run.state())
                saved = run.step
            # Asked of all: a process that stopped alone would leave the others waiting for its gradients.
            late = deadline is not None and time.monotonic() > deadline
            if processes.any(interrupts.received or late):
                interrupts.received = processes.any(interrupts.received)
                break
    if folder and saved != run.step:
        folder.write_state(run.state())
