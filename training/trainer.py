"""The training loop of both stages: resumable to the same curve, guarded against NaN, with a log of every
step."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..runtime.errors import InputError
from .checkpoint import holds_dynamic_half, load_static_weights, load_weights, save_weights
from .data.loader import Mixer, StepDataset
from .initialise import initialise, warm_start
from .model import StreamSplat
from .objectives import dynamic_objective, static_objective
from .optim import build_optimizers, lr_factor
from .recipe import Recipe

_MAX_BAD_STEPS = 50


def _generator(seed: int, step: int) -> torch.Generator:
    # A generator per step, not one that runs on: a resumed run then draws what an unbroken one would have
    # drawn.
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def _save_state(path: Path, state: dict[str, Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def train(recipe: Recipe, out: Path, *, max_seconds: float | None = None, progress: bool = True) -> Path:
    """Run or resume a stage in folder `out`.

    Writes `log.jsonl` (one line per step), `state.pt` (everything needed to resume) and, at the end of the
    run,
    `model.safetensors`.

    Args:
        recipe: what to train.
        out: the run's folder; a `state.pt` found there is resumed.
        max_seconds: stop (resumably) after this long.

    Returns:
        The weights' path.

    Raises:
        InputError: the folder holds another recipe's run, or gradients stayed non-finite.
    """
    out.mkdir(parents=True, exist_ok=True)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    model = StreamSplat(recipe.config, probabilistic=recipe.probabilistic and recipe.stage == "static")
    initialise(model)
    mixer = Mixer(recipe.data, synthetic_fraction=recipe.synthetic, seed=recipe.seed)
    state_path = out / "state.pt"
    if recipe.init:
        init = Path(recipe.init)
        (load_weights if holds_dynamic_half(init) else load_static_weights)(model, init)
    elif recipe.warm_start and not state_path.exists():
        error = warm_start(model, mixer, recipe.warm_start, 8, progress)
        tqdm.write(f"warm start: mean squared error {error:.5f} after {recipe.warm_start} steps")
    optimizers = build_optimizers(model, recipe)
    base_lrs = [[group["lr"] for group in o.param_groups] for o in optimizers]
    start, bad = 0, 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        same = {
            k: v for k, v in recipe.to_dict().items() if k not in ("threads", "save_every", "data", "init")
        }
        if state["recipe"] != json.dumps(same, sort_keys=True):
            raise InputError(
                f"{out} holds a run of another recipe.", "Choose another --out, or remove that folder."
            )
        model.load_state_dict(state["model"])
        for o, s in zip(optimizers, state["optimizers"], strict=True):
            o.load_state_dict(s)
        start, bad = state["step"], state["bad"]
    recipe_key = json.dumps(
        {k: v for k, v in recipe.to_dict().items() if k not in ("threads", "save_every", "data", "init")},
        sort_keys=True,
    )
    (out / "recipe.json").write_text(json.dumps(recipe.to_dict(), indent=1))

    def snapshot(step: int) -> None:
        _save_state(
            state_path,
            {
                "model": model.state_dict(),
                "optimizers": [o.state_dict() for o in optimizers],
                "step": step,
                "bad": bad,
                "recipe": recipe_key,
            },
        )

    model.train()
    if recipe.stage == "dynamic":
        model.gs_predictor.eval()
    trained = [p for p in model.parameters() if p.requires_grad]
    begin = time.monotonic()
    objective = static_objective if recipe.stage == "static" else dynamic_objective

    def make(step: int) -> Any:
        if recipe.stage == "static":
            return mixer.batch_stills(step, recipe.batch)
        return mixer.batch(step, recipe.batch, recipe.frames)

    # A process, not a thread: the generators are Python code, and the lock they would hold stalls every
    # torch call.
    batches = DataLoader(
        StepDataset(make, start, recipe.steps), batch_size=None, num_workers=1, prefetch_factor=8
    )
    with (
        (out / "log.jsonl").open("a") as log,
        tqdm(total=recipe.steps, initial=start, disable=not progress, desc=recipe.stage, unit="step") as bar,
    ):
        step = start
        for batch in batches:
            for o, lrs in zip(optimizers, base_lrs, strict=True):
                for group, lr in zip(o.param_groups, lrs, strict=True):
                    group["lr"] = lr * lr_factor(step, recipe)
            generator = _generator(recipe.seed, step)
            torch.manual_seed(recipe.seed * 7919 + step)
            loss, parts = objective(model, batch, recipe, generator)
            for o in optimizers:
                o.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(trained, recipe.clip)
            if bool(torch.isfinite(loss)) and bool(torch.isfinite(norm)):
                for o in optimizers:
                    o.step()
            else:
                bad += 1
                if bad > _MAX_BAD_STEPS:
                    raise InputError(
                        f"Loss or gradients were not finite in {bad} steps (last: step {step}).",
                        "Lower the learning rate, or look for NaN in the data.",
                    )
            step += 1
            row = {k: round(float(v), 6) for k, v in parts.items()}
            log.write(
                json.dumps(
                    {
                        "step": step,
                        "loss": loss.item(),
                        **row,
                        "grad": norm.item(),
                        "s": time.monotonic() - begin,
                    }
                )
                + "\n"
            )
            log.flush()
            bar.update(1)
            bar.set_postfix(row, refresh=False)
            if step % recipe.save_every == 0:
                snapshot(step)
            if max_seconds is not None and time.monotonic() - begin > max_seconds:
                break
    snapshot(step)
    weights = out / "model.safetensors"
    save_weights(
        model,
        weights,
        {"recipe": json.dumps(recipe.to_dict()), "step": str(step)},
        static_only=recipe.stage == "static",
    )
    return weights
