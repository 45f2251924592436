"""The training loop of both stages: resumable to the same curve, guarded against NaN, every step logged."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..runtime.errors import InputError
from .checkpoint import (
    Part,
    holds_dynamic_half,
    load_motion_weights,
    load_static_weights,
    load_weights,
    save_weights,
)
from .data.cache import Cache
from .data.loader import Batch, Mixer, StepDataset, Stills
from .initialise import initialise, warm_start
from .interrupts import Interrupts, leave_ctrl_c_to_the_parent
from .model import StreamSplat
from .objectives import dynamic_objective, flow_objective, static_objective
from .optim import build_optimizers, lr_factor
from .recipe import Recipe
from .runfolder import RunFolder

# So many steps in a row with a loss or gradients that are not finite end a run; single ones are skipped.
_MAX_BAD_STEPS = 50
# Fields of the recipe that do not change what a step computes.
_FREE_FIELDS = ("threads", "save_every", "data", "init", "init_motion")
_WARM_START_BATCH = 8
_SAVED: dict[str, Part] = {"static": "static", "motion": "motion", "dynamic": "all"}
_OBJECTIVES: dict[str, Any] = {
    "static": static_objective,
    "motion": flow_objective,
    "dynamic": dynamic_objective,
}


@dataclass(frozen=True)
class Outcome:
    """What a call of `train` ended with: the weights' path, steps done so far, steps of the recipe."""

    weights: Path
    step: int
    steps: int


def train(recipe: Recipe, out: Path, *, max_seconds: float | None = None, progress: bool = True) -> Outcome:
    """Run or resume a stage in folder `out` (see `runfolder` for what it holds).

    Ctrl-C or SIGTERM end the step at hand, save the state, and raise KeyboardInterrupt; a second one stops at
    once.

    Args:
        recipe: what to train.
        out: the run's folder; a state found there is resumed.
        max_seconds: stop (resumably) after this long.
        progress: show a progress bar on stderr.

    Raises:
        InputError: the recipe does not fit its data or weights, the folder holds another run or is in use, or
            loss or gradients stayed non-finite.
        OutputError: the folder cannot be written; the state saved last is kept.
    """
    begin = time.monotonic()
    cache = Cache(recipe.data)
    _check_trainable(recipe, cache)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    with RunFolder(out) as folder:
        run = _Run(recipe, cache)
        state = folder.read_state()
        if state is None:
            run.start(progress)
        else:
            run.resume(state, out)
        folder.write_recipe(recipe.to_dict())
        deadline = None if max_seconds is None else begin + max_seconds
        with Interrupts() as interrupts:
            _loop(run, folder, deadline, interrupts, progress)
        if interrupts.received:
            raise KeyboardInterrupt
        metadata = {"recipe": json.dumps(recipe.to_dict()), "step": str(run.step)}
        save_weights(run.model, folder.weights, metadata, _SAVED[recipe.stage])
    return Outcome(folder.weights, run.step, recipe.steps)


def _check_trainable(recipe: Recipe, cache: Cache) -> None:
    config = recipe.config
    if config.depth_input != "zeros" or config.condition == "dino":
        raise InputError(
            f"The trainer feeds neither depth nor DINOv2 yet, which preset {recipe.preset!r} asks for.",
            'Under [model]: depth_input = "zeros", condition = "tokens", condition_dim = condition_len = 0.',
        )
    if (cache.height, cache.width) != (config.height, config.width):
        raise InputError(
            f"{cache.root} holds frames of {cache.width}x{cache.height}, "
            f"the model takes {config.width}x{config.height}.",
            f"Prepare a cache with --height {config.height} --width {config.width}.",
        )


def _loop(
    run: _Run, folder: RunFolder, deadline: float | None, interrupts: Interrupts, progress: bool
) -> None:
    recipe = run.recipe
    begin = time.monotonic() - folder.rewind_log(run.step)
    saved = None
    with tqdm(
        total=recipe.steps, initial=run.step, disable=not progress, desc=recipe.stage, unit="step"
    ) as bar:
        for batch in run.batches():
            row = run.advance(batch)
            folder.log({"step": run.step, **row, "s": time.monotonic() - begin})
            bar.update(1)
            bar.set_postfix({k: f"{v:.4g}" for k, v in row.items()}, refresh=False)
            if run.step % recipe.save_every == 0:
                folder.write_state(run.state())
                saved = run.step
            if interrupts.received or (deadline is not None and time.monotonic() > deadline):
                break
    if saved != run.step:
        folder.write_state(run.state())


class _Run:
    """Model, optimisers and position of a run: what a saved state restores."""

    def __init__(self, recipe: Recipe, cache: Cache) -> None:
        self.recipe = recipe
        torch.manual_seed(recipe.seed)
        self.model = StreamSplat(
            recipe.config, probabilistic=recipe.probabilistic and recipe.stage == "static"
        )
        self.mixer = Mixer(cache, synthetic_fraction=recipe.synthetic, seed=recipe.seed)
        self._frames = {"static": 1, "motion": 2, "dynamic": recipe.frames}[recipe.stage]
        self.mixer.check_frames(self._frames)
        # The layout that convolutions are fastest in on a CPU.
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizers = build_optimizers(self.model, recipe)
        self._base_lrs = [[group["lr"] for group in o.param_groups] for o in self.optimizers]
        self._trained = [p for p in self.model.parameters() if p.requires_grad]
        self.model.train()
        if recipe.stage == "dynamic":
            self.model.gs_predictor.eval()
        self.step = 0
        self.bad = 0  # steps in a row that were skipped
        self._data = cache.fingerprint

    def start(self, progress: bool) -> None:
        """Weights to begin with: from `init`, or from nothing with a warm start."""
        initialise(self.model)
        if self.recipe.init:
            init = Path(self.recipe.init)
            (load_weights if holds_dynamic_half(init) else load_static_weights)(self.model, init)
            if self.recipe.init_motion:
                load_motion_weights(self.model, Path(self.recipe.init_motion))
        elif self.recipe.warm_start:
            error = warm_start(self.model, self.mixer, self.recipe.warm_start, _WARM_START_BATCH, progress)
            if progress:
                tqdm.write(
                    f"warm start: mean squared error {error:.5f} after {self.recipe.warm_start} steps",
                    file=sys.stderr,
                )

    def resume(self, state: dict[str, Any], out: Path) -> None:
        """Go on where `state` was taken.

        Raises:
            InputError: it belongs to another recipe or to other data.
        """
        then, now = json.loads(state["recipe"]), json.loads(self._key())
        different = [f"{k} = {then.get(k)!r}, here {now.get(k)!r}" for k in now if then.get(k) != now.get(k)]
        if different:
            raise InputError(
                f"{out} holds a run of another recipe: {'; '.join(different)}.",
                "Choose another --out, or remove that folder.",
            )
        if state.get("data") not in (None, self._data):
            raise InputError(
                f"{out} holds a run on other data than {self.recipe.data}.",
                "Give its --data, choose another --out, or remove that folder.",
            )
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.bad = state["step"], state["bad"]

    def _key(self) -> str:
        """What a resumed run must have in common with the one that was stopped."""
        values = {k: v for k, v in self.recipe.to_dict().items() if k not in _FREE_FIELDS}
        return json.dumps(values, sort_keys=True)

    def state(self) -> dict[str, Any]:
        """Everything needed to go on. Data and noise of a step depend on its number only."""
        return {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
            "bad": self.bad,
            "recipe": self._key(),
            "data": self._data,
        }

    def batches(self) -> DataLoader[Any]:
        """The batches of the steps that are left, made ahead.

        In a process, not a thread: the generators are Python code, and the lock they would hold stalls every
        torch call. Forked, so that the mixer's photographs and maps are shared instead of copied.
        """
        recipe, mixer = self.recipe, self.mixer

        def make(step: int) -> Batch | Stills:
            if recipe.stage == "static":
                return mixer.batch_stills(step, recipe.batch)
            return mixer.batch(step, recipe.batch, self._frames)

        return DataLoader(
            StepDataset(make, self.step, recipe.steps),
            batch_size=None,
            num_workers=1,
            prefetch_factor=8,
            multiprocessing_context="fork",
            worker_init_fn=leave_ctrl_c_to_the_parent,
        )

    def advance(self, batch: Any) -> dict[str, float]:
        """One optimiser step, skipped where loss or gradients are not finite. Returns the log row.

        Raises:
            InputError: too many steps in a row were skipped.
        """
        recipe, step = self.recipe, self.step
        for optimizer, lrs in zip(self.optimizers, self._base_lrs, strict=True):
            optimizer.zero_grad(set_to_none=True)
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr * lr_factor(step, recipe)
        # Seeded per step, not running on: a resumed run draws what an unbroken one would have drawn.
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        torch.manual_seed(recipe.seed * 7919 + step)
        loss, parts = _OBJECTIVES[recipe.stage](self.model, batch, recipe, generator)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._trained, recipe.clip)
        row = {
            "loss": loss.item(),
            **{k: round(float(v), 6) for k, v in parts.items()},
            "grad": norm.item(),
        }
        if bool(torch.isfinite(loss)) and bool(torch.isfinite(norm)):
            self.bad = 0
            for optimizer in self.optimizers:
                optimizer.step()
        else:
            self.bad += 1
            if self.bad > _MAX_BAD_STEPS:
                raise InputError(
                    f"Loss or gradients were not finite in {self.bad} steps in a row, up to step {step + 1}.",
                    "Lower the learning rate, or look for NaN in the data.",
                )
            row["skipped"] = 1
        self.step += 1
        return row
