"""The trainer: learning, resuming to the same curve, interrupts, stage order, full disks, and refusals."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from media_samples import HEIGHT, MODEL, WIDTH
from safetensors.torch import load_file

from streamsplat_edge.runtime.errors import InputError, OutputError
from streamsplat_edge.training import condition, objectives
from streamsplat_edge.training import run as run_module
from streamsplat_edge.training.checkpoint import (
    holds_dynamic_half,
    load_static_weights,
    load_weights,
    read_config,
    save_weights,
)
from streamsplat_edge.training.model import StreamSplat
from streamsplat_edge.training.recipe import Recipe
from streamsplat_edge.training.trainer import Outcome, train

# As published: colours that are not copied from the frame, and no matching.
PLAIN = {**MODEL, "colour": "absolute", "depth_levels": 0, "depth_input": "zeros"}
DINO = {
    **PLAIN, "decoder": "attention", "condition": "dino", "condition_dim": 8, "condition_len": 15
}  # fmt: skip


HEADS = ("gs_layer.rgb.weight", "gs_layer.scale.bias", "gs_layer.opacity.weight")


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in rows(folder)]


def same_weights(a: Path, b: Path) -> bool:
    first, second = load_file(str(a / "model.safetensors")), load_file(str(b / "model.safetensors"))
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture(scope="module")
def unbroken(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of `recipe` that nothing stopped."""
    folder = tmp_path_factory.mktemp("unbroken")
    outcome = train(recipe, folder, progress=False)
    assert outcome == Outcome(folder / "model.safetensors", recipe.steps, recipe.steps)
    return folder


def test_static_stage_learns(recipe: Recipe, tmp_path: Path) -> None:
    train(replace(recipe, steps=40, warm_start=60, model=PLAIN), tmp_path, progress=False)
    curve = losses(tmp_path)
    assert sum(curve[-8:]) < 0.7 * sum(curve[:8])


def test_bfloat16_and_float16_learn_too(recipe: Recipe, tmp_path: Path) -> None:
    for precision in ("bf16", "fp16"):
        low = replace(recipe, precision=precision, steps=4, warm_start=0, optimizer="adamw", clip=1e3)
        train(low, tmp_path / precision, progress=False)
    train(replace(low, precision="fp32"), tmp_path / "fp32", progress=False)
    exact = losses(tmp_path / "fp32")
    for precision in ("bf16", "fp16"):
        curve = losses(tmp_path / precision)
        assert curve != exact, "the transformers ran in another precision"
        assert curve == pytest.approx(exact, rel=0.05)
    state = torch.load(tmp_path / "fp16/state.pt", weights_only=True)
    assert state["scaler"]["scale"] > 0 and all(v.dtype != torch.float16 for v in state["model"].values())


def in_call(number: int, monkeypatch: pytest.MonkeyPatch, act: Any) -> None:
    """Calls `act` in the `number`-th call of the static objective."""
    objective = objectives.OBJECTIVES["static"]
    calls = 0

    def acting(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            act()
        return objective(*arguments)

    monkeypatch.setitem(objectives.OBJECTIVES, "static", acting)


def test_killed_run_resumes_to_the_same_curve(
    recipe: Recipe, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die() -> None:
        raise RuntimeError("killed")

    in_call(5, monkeypatch, die)
    with pytest.raises(RuntimeError, match="killed"):
        train(recipe, tmp_path, progress=False)
    monkeypatch.undo()
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4]
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 5, "lo')  # a kill may also tear a row
    # The last state is that of step 3: step 4 is run again, and logged once.
    train(recipe, tmp_path, progress=False)
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, recipe.steps + 1))
    assert losses(tmp_path) == losses(unbroken)
    seconds = [row["s"] for row in rows(tmp_path)]
    assert seconds == sorted(seconds), "time goes on where the log was cut"
    assert same_weights(tmp_path, unbroken)


def test_run_ended_by_sigkill_resumes_to_the_same_curve(
    recipe: Recipe, unbroken: Path, tmp_path: Path
) -> None:
    def wait_and_die() -> None:
        in_call(5, pytest.MonkeyPatch(), lambda: os.kill(os.getpid(), signal.SIGKILL))
        train(recipe, tmp_path, progress=False)

    process = multiprocessing.get_context("fork").Process(target=wait_and_die)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4]
    assert not (tmp_path / "model.safetensors").exists()
    train(recipe, tmp_path, progress=False)
    assert losses(tmp_path) == losses(unbroken) and same_weights(tmp_path, unbroken)


def test_state_of_before_a_field_existed_is_resumed(recipe: Recipe, unbroken: Path, tmp_path: Path) -> None:
    train(recipe, tmp_path, max_seconds=0.0, progress=False)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    key = json.loads(state["recipe"])
    for name in ("precision", "lpips_weight", "bidirectional"):
        del key[name]
    del state["scaler"], state["skipped"]
    torch.save({**state, "recipe": json.dumps(key)}, tmp_path / "state.pt")
    train(recipe, tmp_path, progress=False)
    assert losses(tmp_path) == losses(unbroken)


def test_ctrl_c_finishes_the_step_and_saves_it(
    recipe: Recipe, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGINT)
    in_call(5, monkeypatch, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path, progress=False)
    assert signal.getsignal(signal.SIGINT) is before
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 5
    assert len(rows(tmp_path)) == 5 and not (tmp_path / "model.safetensors").exists()
    monkeypatch.undo()
    train(recipe, tmp_path, progress=False)
    assert losses(tmp_path) == losses(unbroken)


def test_second_ctrl_c_stops_at_once(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second one must not return")

    in_call(2, monkeypatch, twice)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path, progress=False)
    assert len(rows(tmp_path)) == 1 and not (tmp_path / "state.pt").exists()


def test_run_stopped_by_time_resumes(recipe: Recipe, unbroken: Path, tmp_path: Path) -> None:
    for step in range(1, recipe.steps + 1):
        assert train(recipe, tmp_path, max_seconds=0.0, progress=False).step == step
    assert losses(tmp_path) == losses(unbroken)


def test_full_disk_keeps_the_last_state(
    recipe: Recipe, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save
    writes = 0

    def full(state: Any, file: Any) -> None:
        nonlocal writes
        writes += 1
        if writes == 2:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        save(state, file)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match="No space left") as error:
        train(recipe, tmp_path, progress=False)
    assert "run the same command again" in error.value.hint
    monkeypatch.undo()
    assert {p.name for p in tmp_path.iterdir()} == {"log.jsonl", "recipe.json", "state.pt"}
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 3
    train(recipe, tmp_path, progress=False)
    assert losses(tmp_path) == losses(unbroken)


def test_warm_start_runs_once_and_is_said_on_stderr(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []
    monkeypatch.setattr(run_module, "warm_start", lambda *arguments: calls.append(arguments) or 0.25)
    train(recipe, tmp_path, max_seconds=0.0, progress=True)
    train(recipe, tmp_path, max_seconds=0.0, progress=True)
    assert len(calls) == 1 and calls[0][2] == recipe.warm_start
    captured = capsys.readouterr()
    assert "0.25000" in captured.err and captured.out == ""


@pytest.mark.parametrize("heads_lr", [0.0, 1e-3])
def test_dynamic_stage_leaves_the_encoder_alone(
    recipe: Recipe, unbroken: Path, tmp_path: Path, heads_lr: float
) -> None:
    first = unbroken / "model.safetensors"
    second = replace(
        recipe, stage="dynamic", steps=3, optimizer="adamw", warm_start=0, init=str(first), frames=4,
        renders=2, motion_weight=0.02, mask_weight=1.0, heads_lr=heads_lr,
    )  # fmt: skip
    weights = train(second, tmp_path, progress=False).weights
    assert not holds_dynamic_half(first)
    before, after = StreamSplat(read_config(first)), StreamSplat(read_config(weights))
    load_static_weights(before, first)
    load_weights(after, weights)
    changed = {n for n, p in after.named_parameters() if not torch.equal(p, before.state_dict()[n])}
    static = {n for n in changed if n.startswith("gs_predictor.")}
    assert all(n.startswith("gs_predictor.predictor.") for n in static), "but the heads, where they are tuned"
    assert bool(static) == bool(heads_lr)
    assert not heads_lr or {f"gs_predictor.predictor.{n}" for n in HEADS} <= static
    assert any(name.startswith("decoder.") for name in changed)
    assert any(name.startswith("gs_dynamic_predictor.gs_layer.opacity_dynamic") for name in changed)


def test_depth_reaches_a_model_that_takes_it(recipe: Recipe, tmp_path: Path) -> None:
    without = replace(recipe, model=PLAIN, steps=2)
    with_depth = replace(without, model={**PLAIN, "depth_input": "stage"})
    train(without, tmp_path / "zeros", progress=False)
    weights = train(with_depth, tmp_path / "static", progress=False).weights
    assert losses(tmp_path / "static") != losses(tmp_path / "zeros")
    kernel = "model.gs_predictor.encoder.transformer_encoder.conv.weight"
    start, end = (
        load_file(str(f / "model.safetensors"))[kernel][:, 3] for f in (tmp_path / "zeros", weights.parent)
    )
    assert not torch.equal(start, end), "the depth channel has learnt"
    second = replace(
        with_depth, stage="dynamic", optimizer="adamw", warm_start=0, init=str(weights), frames=4
    )
    assert train(second, tmp_path / "dynamic", progress=False).step == 2


def test_a_depth_network_of_its_own_takes_the_place_of_that_of_the_weights(
    recipe: Recipe, tmp_path: Path
) -> None:
    def weights(seed: int, part: Any) -> Path:
        torch.manual_seed(seed)
        path = tmp_path / f"{part}.safetensors"
        save_weights(StreamSplat(stage_1.config), path, {}, part)
        return path

    stage_1 = replace(recipe, model=MODEL, init_depth="x", warm_start=0, steps=1, optimizer="adamw")
    static, depth = weights(1, "static"), weights(2, "depth")
    both = replace(stage_1, init=str(static), init_depth=str(depth))
    trained = load_file(str(train(both, tmp_path / "run", progress=False).weights))
    given = load_file(str(depth))
    assert given and all(torch.equal(trained[name], value) for name, value in given.items())
    assert not torch.equal(load_file(str(static))["model.depth_encoder.head.weight"],
                           given["model.depth_encoder.head.weight"])  # fmt: skip


def test_dino_is_used_and_not_saved(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Colours(torch.nn.Module):
        """Stands in for DINOv2: 3x5 patches, each described by eight numbers."""

        def __init__(self) -> None:
            super().__init__()
            self.mix = torch.nn.Linear(3, 8).requires_grad_(False)

        def forward(self, rgb: torch.Tensor) -> torch.Tensor:
            seen.append(rgb)
            return self.mix(torch.nn.functional.adaptive_avg_pool2d(rgb, (3, 5)).flatten(2).transpose(1, 2))

    seen: list[torch.Tensor] = []
    asked: list[Path] = []
    monkeypatch.setattr(condition, "load_dino", lambda path: asked.append(path) or Colours())
    first = train(replace(recipe, model=DINO, steps=1), tmp_path / "first", progress=False).weights
    assert not asked, "stage 1 does not look at the condition"
    second = replace(
        recipe, stage="dynamic", steps=2, init=str(first), model=DINO, dino="dino.pth", frames=4
    )  # fmt: skip
    weights = train(second, tmp_path / "second", progress=False).weights
    assert asked == [Path("dino.pth")]
    assert [tuple(rgb.shape) for rgb in seen] == [(2 * recipe.batch, 3, HEIGHT, WIDTH)] * 2
    assert seen[0].min() >= 0 and 0.5 < seen[0].max() <= 1
    assert not any("mix.weight" in name for name in load_file(str(weights)))
    assert load_file(str(weights))["model.decoder.transformer_decoder.condition_proj.weight"].shape == (32, 8)


def test_another_recipe_in_the_same_folder_is_refused(recipe: Recipe, unbroken: Path, tmp_path: Path) -> None:
    before = {p.name: p.read_bytes() for p in unbroken.iterdir()}
    with pytest.raises(InputError, match=r"another recipe: lr = 0\.002, here 0\.001\."):
        train(replace(recipe, lr=1e-3), unbroken, progress=False)
    assert {p.name: p.read_bytes() for p in unbroken.iterdir()} == before


def test_other_data_in_the_same_folder_is_refused(recipe: Recipe, unbroken: Path, tmp_path: Path) -> None:
    index = json.loads((Path(recipe.data) / "index.json").read_text())
    shutil.copytree(recipe.data, tmp_path / "cache")
    index["clips"] = index["clips"][::-1]
    (tmp_path / "cache" / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="other data"):
        train(replace(recipe, data=str(tmp_path / "cache")), unbroken, progress=False)


def test_damaged_state_is_refused(recipe: Recipe, unbroken: Path, tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes((unbroken / "state.pt").read_bytes()[:-2000])
    with pytest.raises(InputError, match=r"state\.pt cannot be read"):
        train(recipe, tmp_path, progress=False)
    whole = torch.load(unbroken / "state.pt", weights_only=True)
    for state in ([], {key: value for key, value in whole.items() if key != "bad"}):
        torch.save(state, tmp_path / "state.pt")
        with pytest.raises(InputError, match=r"state\.pt is not the state of a run"):
            train(recipe, tmp_path, progress=False)


def test_folder_in_use_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    code = (
        "import fcntl, sys; log = open(sys.argv[1], 'a+b'); fcntl.lockf(log, fcntl.LOCK_EX)\n"
        "print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "log.jsonl")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match="Another process is training"):
            train(recipe, tmp_path, progress=False)


def test_folder_that_cannot_be_made_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        train(recipe, tmp_path / "file" / "run", progress=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {**PLAIN, "height": HEIGHT + 16}}, "holds frames of 80x48, the model takes 80x64"),
        (
            {"stage": "dynamic", "init": "x", "model": DINO},
            'condition "dino", and no DINOv2 weights were named',
        ),
        ({"stage": "dynamic", "init": "x", "model": DINO, "dino": "nowhere"}, "nowhere cannot be read"),
        ({"lpips_weight": 1.0, "lpips_weights": "nowhere"}, "LPIPS weights cannot be read"),
        ({"stage": "dynamic", "init": "x", "frames": 99}, "no train clip has a shot of 99 frames"),
        ({"heads_lr": 1e-4}, "'heads_lr' belongs to stage 'dynamic'"),
        ({"init": "nowhere.safetensors"}, "not a readable safetensors"),
        ({"data": "nowhere"}, "not a media cache"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(
    recipe: Recipe, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    if "height" in changes.get("model", {}) and changes["model"]["height"] != HEIGHT:
        changes["model"]["upsample_windows"] = [20, 20]
    with pytest.raises(InputError, match=f"(?i){message}"):
        train(replace(recipe, **changes), tmp_path, progress=False)
