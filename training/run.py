"""A training run at work: model, optimisers and position, and how one step changes them."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..runtime.errors import InputError, StreamSplatError
from .checkpoint import holds_dynamic_half, load_part, load_static_weights, load_weights
from .data.cache import Cache
from .data.loader import Batch, Mixer, StepDataset, Stills
from .initialise import initialise, warm_start
from .interrupts import leave_ctrl_c_to_the_parent
from .model import StreamSplat
from .objectives import Objective
from .optim import build_optimizers, lr_factor
from .recipe import Recipe
from .setting import Setting

# So many steps in a row whose data, loss or gradients are not finite end a run; single ones are skipped.
_MAX_BAD_STEPS = 50
_WARM_START_BATCH = 8
# What an infinite gradient becomes where the recipe replaces it (published).
_LARGE_GRADIENT = 1e5


class Run:
    """Model, optimisers and position of a run: what a saved state restores.

    Args:
        recipe: what to train.
        cache: its data.
        setting: the processes that train together, and frozen networks; both are on its device.

    Attributes:
        step: steps done so far.
        skipped: how many of them changed nothing because something was not finite.

    Raises:
        InputError: the batch does not split among the processes, the stage takes one process only, or no clip
            is long enough.
    """

    def __init__(self, recipe: Recipe, cache: Cache, setting: Setting) -> None:
        self.recipe, self.setting = recipe, setting
        if recipe.stage == "depth" and setting.processes.count > 1:
            raise InputError(
                f"Stage 'depth' trains in one process, not in {setting.processes.count}: its network is "
                "normalised over the whole batch.",
                "Start it without a launcher; it is small.",
            )
        self._rows = setting.processes.rows(recipe.batch)
        torch.manual_seed(recipe.seed)
        self.model = StreamSplat(
            recipe.config,
            probabilistic=recipe.probabilistic and recipe.stage == "static",
            sampled_motion=recipe.sampled_motion and recipe.stage == "dynamic",
        )
        # The layout that convolutions are fastest in on a CPU.
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.mixer = Mixer(cache, recipe.synthetic, recipe.seed, recipe.augmentation)
        self._frames = {"depth": 1, "static": 1, "motion": 2, "dynamic": recipe.frames}[recipe.stage]
        self.mixer.check_frames(self._frames)
        self.step = 0
        self.skipped = 0
        self._bad = 0  # steps in a row that were skipped
        self._data = cache.fingerprint

    def begin(self, state: dict[str, Any] | None, out: Path, progress: bool) -> None:
        """Go on where `state` was taken, or start where there is none.

        Raises:
            InputError: the state belongs to another recipe or to other data, or `init` does not fit.
        """
        recipe, device = self.recipe, self.setting.processes.device
        if state is None:
            self._start(progress)
        else:
            self._check_same_run(state, out)
            self.model.load_state_dict(state["model"])
        self.model.to(device)
        self._optimizers = build_optimizers(self.model, recipe)
        self._base_lrs = [[group["lr"] for group in o.param_groups] for o in self._optimizers]
        # Gradients of fp16 underflow without a scale; the other precisions have the range of fp32.
        self._scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        if state is not None:
            for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self._scaler.load_state_dict(state.get("scaler", {}))
            self.step, self._bad, self.skipped = state["step"], state["bad"], state.get("skipped", 0)
        self._trained = [p for p in self.model.parameters() if p.requires_grad]
        self.model.train()
        if recipe.stage == "dynamic":
            self.model.gs_predictor.eval()
        if recipe.stage != "depth" and recipe.config.depth_input == "conv":
            self.model.depth_encoder.eval()
        # What a forward pass changes: a step that is skipped has to put it back.
        norms = (m for m in self.model.modules() if isinstance(m, nn.BatchNorm2d) and m.training)
        self._running = [buffer for norm in norms for buffer in norm.buffers()]
        # Last: only now are the trained parameters known, and on their device. Stage 1 reads all of them,
        # stage 2 not its head of sampled motion unless it samples.
        self._objective = self.setting.processes.wrap(
            Objective(self.model, recipe, self.setting), some_unread=recipe.stage != "static"
        )

    def _start(self, progress: bool) -> None:
        """Weights to begin with: from files, parts after the whole, or from nothing with a warm start."""
        initialise(self.model)
        if self.recipe.init:
            init = Path(self.recipe.init)
            (load_weights if holds_dynamic_half(init) else load_static_weights)(self.model, init)
            if self.recipe.init_motion:
                load_part(self.model, Path(self.recipe.init_motion), "motion")
        if self.recipe.init_depth:  # in place of the one that `init` holds
            load_part(self.model, Path(self.recipe.init_depth), "depth")
        if self.recipe.warm_start and not self.recipe.init:
            error = warm_start(self.model, self.mixer, self.recipe.warm_start, _WARM_START_BATCH, progress)
            if progress:
                tqdm.write(
                    f"warm start: mean squared error {error:.5f} after {self.recipe.warm_start} steps",
                    file=sys.stderr,
                )

    def _check_same_run(self, state: dict[str, Any], out: Path) -> None:
        different = self.recipe.differences(state["recipe"])
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

    def state(self) -> dict[str, Any]:
        """Everything needed to go on. Data and noise of a step depend on its number only."""
        return {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self._optimizers],
            "scaler": self._scaler.state_dict(),
            "step": self.step,
            "bad": self._bad,
            "skipped": self.skipped,
            "recipe": self.recipe.key(),
            "data": self._data,
        }

    def batches(self) -> Iterator[Batch | Stills]:
        """This process's rows of the batches of the steps that are left, made ahead.

        In processes, not threads: the generators are Python code, and the lock they would hold stalls every
        torch call. Forked, so that the mixer's photographs and maps are shared instead of copied.

        Raises:
            InputError: a file of the cache is gone or damaged, or no frame of it has depth.
        """
        recipe, mixer, rows = self.recipe, self.mixer, self._rows

        def make(step: int) -> Batch | Stills:
            if recipe.stage == "depth":
                return mixer.batch_depths(step, len(rows), rows.start)
            if recipe.stage == "static":
                return mixer.batch_stills(step, len(rows), rows.start)
            return mixer.batch(step, len(rows), self._frames, rows.start)

        loader: DataLoader[Batch | Stills | StreamSplatError] = DataLoader(
            StepDataset(make, self.step, recipe.steps),
            batch_size=None,
            num_workers=recipe.workers,
            prefetch_factor=8,
            multiprocessing_context="fork",
            worker_init_fn=leave_ctrl_c_to_the_parent,
        )
        for batch in loader:
            if isinstance(batch, StreamSplatError):
                raise batch
            yield batch

    def preview(self, batch: Batch | Stills) -> Tensor:
        """A picture of a batch for people, see `monitor.preview`."""
        from .monitor import preview

        return preview(self.model, _on(batch, self.setting.processes.device), self.recipe, self.setting)

    def advance(self, batch: Batch | Stills) -> dict[str, float]:
        """One optimiser step, skipped where data, loss or gradients are not finite.

        Returns:
            The row of the log: "loss", its parts and "grad", means over all processes; "skipped": 1 where
            nothing was changed, and "bad_data": 1 where that was for the data.

        Raises:
            InputError: too many steps in a row were skipped.
        """
        batch = _on(batch, self.setting.processes.device)
        if self.setting.processes.any(not _is_finite(batch)):
            row = {"loss": math.nan, "skipped": 1, "bad_data": 1}
        else:
            row = self._learn(batch)
        self.step += 1
        if "skipped" not in row:
            self._bad = 0
            return row
        self._bad += 1
        self.skipped += 1
        if self._bad > _MAX_BAD_STEPS:
            raise InputError(
                f"Data, loss or gradients were not finite in {self._bad} steps in a row, "
                f"up to step {self.step}.",
                "Look for NaN in the data, or lower the learning rate."
                if "bad_data" in row
                else "Lower the learning rate, or look for NaN in the data.",
            )
        return row

    def _learn(self, batch: Batch | Stills) -> dict[str, float]:
        recipe, processes, scaler = self.recipe, self.setting.processes, self._scaler
        for optimizer, lrs in zip(self._optimizers, self._base_lrs, strict=True):
            optimizer.zero_grad(set_to_none=True)
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr * lr_factor(self.step, recipe)
        before = [buffer.clone() for buffer in self._running]
        loss, parts = self._objective(batch, self.step)
        scaler.scale(loss).backward()
        for optimizer in self._optimizers:
            scaler.unscale_(optimizer)
        if recipe.nonfinite_gradients == "replace" and not scaler.is_enabled():
            for p in self._trained:
                if p.grad is not None:
                    p.grad.nan_to_num_(0.0, _LARGE_GRADIENT, -_LARGE_GRADIENT)
        norm = torch.nn.utils.clip_grad_norm_(self._trained, recipe.clip)
        values = processes.mean(torch.stack([loss.detach().float(), *(v.float() for v in parts.values())]))
        total, *means = values.tolist()
        row = {"loss": total, **{k: round(v, 6) for k, v in zip(parts, means, strict=True)}}
        row["grad"] = norm.item()
        # The mean loss and, with averaged gradients, their norm are the same everywhere: all skip, or none.
        if math.isfinite(row["loss"]) and math.isfinite(row["grad"]):
            for optimizer in self._optimizers:
                scaler.step(optimizer)
        else:
            row["skipped"] = 1
            for buffer, value in zip(self._running, before, strict=True):
                buffer.copy_(value)
        scaler.update()
        return row


def _tensors(batch: Batch | Stills) -> Iterable[tuple[str, Tensor]]:
    return ((name, value) for name, value in vars(batch).items() if isinstance(value, Tensor))


def _is_finite(batch: Batch | Stills) -> bool:
    return all(bool(t.isfinite().all()) for _, t in _tensors(batch) if t.is_floating_point())


def _on(batch: Any, device: torch.device) -> Any:
    return replace(batch, **{name: value.to(device, non_blocking=True) for name, value in _tensors(batch)})
