"""`train` and `eval` as a user calls them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from fake_bundle import build_fake_bundle
from media_samples import HEIGHT, MODEL, WIDTH

from streamsplat_edge.cli import main
from streamsplat_edge.runtime.bundle import Bundle
from streamsplat_edge.training.data import cache as cache_module
from streamsplat_edge.training.data.cache import Cache


@pytest.fixture()
def config(cache: Cache, tmp_path: Path) -> Path:
    lines = [f"{key} = {value}" for key, value in MODEL.items()]
    path = tmp_path / "recipe.toml"
    path.write_text(
        'stage = "static"\npreset = "tiny"\ndata = "nowhere"\nsteps = 2\nbatch = 1\nwarmup = 1\n'
        "[model]\n" + "\n".join(lines) + "\n"
    )
    return path


@pytest.fixture()
def bundle(tmp_path: Path) -> Path:
    return build_fake_bundle(tmp_path / "fake.bundle", height=HEIGHT, width=WIDTH).path


def call(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_train_stops_goes_on_and_prints_the_weights(
    config: Path, cache: Cache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ("train", "static", "--config", config, "--data", cache.root, "--out", out, "--quiet")
    code, stdout, stderr = call(capsys, *command, "--max-minutes", "1e-9")
    assert code == 0 and stdout == f"{out}/model.safetensors\n"
    assert stderr == "stopped after step 1 of 2; the same command goes on\n"
    assert call(capsys, *command) == (0, f"{out}/model.safetensors\n", "")
    assert json.loads((out / "recipe.json").read_text())["data"] == str(cache.root)


def test_train_refusals(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    code, _, stderr = call(capsys, "train", "dynamic", "--config", config, "--out", out)
    assert code == 2 and "recipe for stage 'static', not 'dynamic'" in stderr and "train static" in stderr
    code, _, stderr = call(capsys, "train", "static", "--config", config, "--out", out)
    assert code == 2 and "nowhere is not a media cache" in stderr and "hint: Make one with" in stderr
    code, _, stderr = call(capsys, "train", "static", "--config", tmp_path / "no.toml", "--out", out)
    assert code == 2 and "No recipe at" in stderr
    assert not out.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "static", "--config", "x"),
        ("train", "both", "--config", "x", "--out", "y"),
        ("train", "static", "--config", "x", "--out", "y", "--max-minutes", "0"),
        ("train", "static", "--config", "x", "--out", "y", "--max-minutes", "nan"),
        ("eval", "x"),
        ("eval", "x", "--data", "y", "--gap", "0"),
        ("eval", "x", "--data", "y", "--engine", "magic"),
    ],
)
def test_misuse_is_explained(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(list(arguments))
    assert error.value.code == 2 and "usage: streamsplat-edge" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [("train", "static", "--config", "x", "--out", "y"), ("eval", "x", "--data", "y")]
)
def test_missing_packages_are_named(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "cv2" else find(name, *a)
    )
    code, _, stderr = call(capsys, *command)
    assert code == 2 and "needs cv2" in stderr and "pip install 'streamsplat-edge[train]'" in stderr


def test_eval_prints_writes_and_stores(
    bundle: Path, cache: Cache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "result.json"
    command = ("eval", bundle, "--data", cache.root, "--quiet", "-o", file)
    code, stdout, stderr = call(capsys, *command, "--store")
    assert code == 0 and "held_out" in stdout and stderr == ""
    result = json.loads(file.read_text())
    assert result["gap"] == 4 and Bundle.load(bundle).quality == result
    code, stdout, _ = call(capsys, *command, "--force", "--gap", "2", "--json")
    assert code == 0 and json.loads(stdout) == json.loads(file.read_text()) and json.loads(stdout)["gap"] == 2
    assert Bundle.load(bundle).quality == result, "only --store changes the bundle"


def test_eval_refusals(
    bundle: Path, cache: Cache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "result.json"
    file.write_text("mine")
    code, _, stderr = call(capsys, "eval", bundle, "--data", cache.root, "-o", file)
    assert code == 2 and "exists already" in stderr and "--force" in stderr and file.read_text() == "mine"
    code, _, stderr = call(capsys, "eval", tmp_path / "no.bundle", "--data", cache.root)
    assert code == 2 and "no bundle at" in stderr
    code, stdout, _ = call(capsys, "eval", bundle, "--data", tmp_path, "--json")
    assert code == 2 and "not a media cache" in json.loads(stdout)["error"]["message"]


def test_eval_draws_a_picture_and_checks_its_outputs_before_the_work(
    bundle: Path,
    cache: Cache,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    picture = tmp_path / "sheet.png"
    command = ("eval", bundle, "--data", cache.root, "--quiet")
    code, stdout, stderr = call(capsys, *command, "--picture", picture)
    assert code == 0 and "ssim_256" in stdout and stderr == ""
    assert picture.read_bytes().startswith(b"\x89PNG")

    def too_late(*_: Any, **__: Any) -> None:
        raise AssertionError("measured before the refusal")

    monkeypatch.setattr("streamsplat_edge.training.evaluate.open_stream", too_late)
    missing = tmp_path / "no" / "x.png"
    for arguments, message, hint in (
        (("--picture", picture), "exists already", "--force"),
        (("--picture", missing), "does not exist", "mkdir -p"),
        (("--picture", missing.parent.parent), "is a folder", "file name"),
        (
            ("--picture", tmp_path / "a", "-o", tmp_path / "a"),
            "for the JSON and for the picture",
            "two names",
        ),
        (("--lpips", tmp_path / "none"), "LPIPS weights cannot be read", "docs/evaluation.md"),
    ):
        code, _, stderr = call(capsys, *command, *arguments)
        assert code == 2 and message in stderr and hint in stderr, arguments


def test_cache_command(media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--height", str(HEIGHT), "--width", str(WIDTH)]
    assert cache_module.main([str(media), str(tmp_path / "cache"), *size]) == 0
    assert "train: 2 clips" in capsys.readouterr().out
    with pytest.raises(SystemExit) as error:
        cache_module.main([str(tmp_path), str(tmp_path / "other")])
    assert error.value.code == 2 and "Looked for media: manifest.json" in capsys.readouterr().err
