"""The ablations on a budget of a step or two: what is trained, shared, resumed, measured and said."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from media_samples import HEIGHT, MODEL, WIDTH, moving, texture, write_clip

from streamsplat_edge.benchmarks import ablations
from streamsplat_edge.training.data.cache import Cache, prepare
from streamsplat_edge.training.recipe import Recipe


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    import cv2

    root = tmp_path_factory.mktemp("media")
    clips = []
    for seed, (name, split) in enumerate([("one", "train"), ("held_out", "eval")]):
        write_clip(root / f"{name}.mkv", moving(seed, 7, 2), [40 * i for i in range(7)])
        clips.append({"name": name, "file": f"{name}.mkv", "split": split, "crop": [4, 4, WIDTH, HEIGHT],
                      "shots": [[0, 7]], "fps": 25.0, "frames": 7})  # fmt: skip
    (root / "manifest.json").write_text(json.dumps(clips))
    cv2.imwrite(str(root / "photo.png"), texture(9))
    (root / "images.json").write_text(json.dumps([{"file": "photo.png", "split": "train"}]))
    return prepare(root, tmp_path_factory.mktemp("cache"), HEIGHT, WIDTH, progress=False)


@pytest.fixture(scope="module")
def command(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("recipes")
    model = "\n".join(f"{key} = {value}" for key, value in MODEL.items())
    arguments = ["--data", str(cache.root), "--quiet", "--static-steps", "2", "--dynamic-steps", "1"]
    for stage, extra in (
        ("static", "depth_weight = 0.05"),
        ("dynamic", 'init = "x"\nframes = 3\nrenders = 2'),
    ):
        path = folder / f"{stage}.toml"
        path.write_text(
            f'stage = "{stage}"\npreset = "tiny"\ndata = "x"\nsteps = 9\nbatch = 1\nthreads = 1\n{extra}\n'
            f"[model]\n{model}\n"
        )
        arguments += [f"--{stage}-config", str(path)]
    return arguments


def test_all_variants_are_trained_measured_and_told(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs: list[tuple[str, Recipe]] = []
    train = ablations.trainer.train

    stop = [True]

    def noted(recipe: Recipe, out: Path, **options: Any) -> Any:
        runs.append((out.name, recipe))
        if stop and stop.pop():
            options["max_seconds"] = 0.0
        return train(recipe, out, **options)

    monkeypatch.setattr(ablations.trainer, "train", noted)
    out, file = tmp_path / "runs", tmp_path / "report.json"
    call = [*command, "--out", str(out), "--json", str(file)]
    # The time is up after the first step of the first call: what it trained is kept.
    assert ablations.main([*call, "--max-minutes", "9"]) == 3
    assert "not complete" in capsys.readouterr().out and not json.loads(file.read_text())["complete"]
    assert [name for name, _ in runs] == ["full_static"]
    runs.clear()
    assert ablations.main(call) == 0
    by_name = dict(runs)
    assert [name for name, _ in runs] == [
        "full_static", "full_dynamic", "no_sampling_static", "no_sampling_dynamic", "no_depth_static",
        "no_depth_dynamic", "full_static", "forward_only_dynamic",
    ]  # fmt: skip
    full = by_name["full_static"]
    assert (full.steps, full.probabilistic, full.depth_weight, full.warmup) == (2, True, 0.05, 0)
    assert not by_name["no_sampling_static"].probabilistic and by_name["no_depth_static"].depth_weight == 0
    assert by_name["full_dynamic"].bidirectional and not by_name["forward_only_dynamic"].bidirectional
    assert by_name["forward_only_dynamic"].init == by_name["full_dynamic"].init

    report = json.loads(file.read_text())
    assert report["complete"] and list(report["variants"]) == [v.name for v in ablations.VARIANTS]
    for entry in report["variants"].values():
        assert entry["average"] == entry["clips"]["held_out"] and entry["average"].keys() == {
            "key",
            "between",
        }
    table = capsys.readouterr().out
    key = report["variants"]["no_depth"]["average"]["key"]
    change = key - report["variants"]["full"]["average"]["key"]
    (line,) = (line for line in table.splitlines() if line.startswith("without depth supervision"))
    assert line.split()[3:5] == [f"{key:.2f}", f"{change:+.2f}"] and line.split()[-2:] == ["36.68", "-1.15"]

    runs.clear()
    assert ablations.main(call) == 0 and not runs, "what was measured is not measured again"
    assert capsys.readouterr().out == table


def test_score_counts_every_frame_once_at_its_own_time(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a render that is a uniform grey of the time, PSNR is known."""

    def render(gaussians: Any, motion: Any, fade: Any, times: torch.Tensor, *_: Any) -> Any:
        return times[..., None, None, None].expand(1, -1, HEIGHT, WIDTH, 3), None, None

    asked: list[torch.Tensor] = []
    monkeypatch.setattr(ablations, "render_pair", render)
    monkeypatch.setattr(ablations, "predict_pair", lambda model, ends, *_: asked.append(ends) or (0, 0, 0))
    monkeypatch.setattr(ablations, "load_weights", lambda *_: None)
    recipe = Recipe(stage="dynamic", preset="tiny", data="x", steps=1, batch=1, init="x", model=MODEL)
    result = ablations.score(Path("none"), recipe, cache, gap=4)
    (clip,) = cache.split("eval")
    frames = np.asarray(clip.frames).astype(np.float64)
    levels = [0, 0.25, 0.5, 0.75, 1, 0.5, 1]  # pairs of frames 0 to 4 and 4 to 6
    error = [
        np.mean((frame - np.round(255 * t)) ** 2) / 255**2 for frame, t in zip(frames, levels, strict=True)
    ]
    decibel = -10 * np.log10(error)
    assert result["average"]["key"] == pytest.approx(decibel[[0, 4, 6]].mean(), abs=1e-3)
    assert result["average"]["between"] == pytest.approx(decibel[[1, 2, 3, 5]].mean(), abs=1e-3)
    assert torch.equal(asked[1][0, 0].permute(1, 2, 0), torch.from_numpy(clip.frames[4].copy()))


def test_mistakes_are_refused(
    command: list[str], cache: Cache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert ablations.main([*command, *out, "--data", str(tmp_path)]) == 2
    assert "not a media cache" in capsys.readouterr().err
    swapped = [*command, *out, "--dynamic-config", command[command.index("--static-config") + 1]]
    assert ablations.main(swapped) == 2
    assert "stage 'static' was given where 'dynamic' is needed" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        ablations.main([*command, *out, "--static-steps", "0"])
    assert not (tmp_path / "out").exists()
