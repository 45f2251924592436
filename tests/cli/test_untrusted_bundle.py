"""Bundles of strangers: whatever stands in `bundle.json`, commands end with a result or a message."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamsplat_edge.cli import main

CLIP = Path(__file__).parents[2] / "demo" / "clip.mp4"
ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        1.5,
        -1e308,
        10**18,
        2**70,
        "",
        "x" * 9000,
        "\x1b[31m",
        "\ud800",
        "../x",
        "/etc/passwd",
    ),
    *([], {}, [[]], [{}], {"": {}}, {"a": 1}, {"passed": True}, {"worst": []}, {"chosen": 5}),
)
FREE = ("verification", "quality", "provenance", "quantisation")
"""Fields that commands show and write on as they came."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything in a JSON value."""
    if path:
        yield path
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))


def spoil(manifest: dict[str, Any], path: tuple[Any, ...], rng: random.Random) -> None:
    """Remove what is there, or put something else there."""
    holder: Any = manifest
    for key in path[:-1]:
        holder = holder[key]
    if rng.random() < 0.15:
        del holder[path[-1]]
    else:
        holder[path[-1]] = copy.deepcopy(rng.choice(ODD))


@pytest.fixture
def full(fake_bundle: Path, tmp_path: Path) -> Path:
    """A bundle with something in all fields, and with a second file per stage for `verify` to compare."""
    folder = Path(shutil.copytree(fake_bundle, tmp_path / "odd.bundle"))
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["quality"] = {"psnr_db": {"key": 30.5}, "data": ["clips"]}
    manifest["provenance"] = {"checkpoint_sha256": "0" * 64, "licence": "none"}
    result = {
        "reference": "PyTorch 2 fp32",
        "source": "x",
        "passed": True,
        "psnr_db": {"onnxruntime fp32": 99},
    }
    limits = {"fp16": {"psnr_db": 40.0, "relative_l2": 0.1}, "fp32": {"depth_relative_l2": 0.1}}
    manifest["verification"] = {"thresholds": limits, **result, "against_own_files": result}
    manifest["quantisation"] = {
        "precision": "int8",
        "method": "mse",
        "samples": 8,
        "gate": {"min_psnr_db": 40, "psnr_db": {"worst": 41.5}, "passed": True},
        "cpu": [{"engine": "openvino", "chosen": {"encode": "int8"}, "psnr_db": {"worst": 42.5}}],
    }
    for stage in manifest["stages"].values():
        stage["variants"].append({**stage["variants"][0], "precision": "fp16"})
    plan = {
        "stage": "encode",
        "file": "plans/e.plan",
        "sha256": "0" * 64,
        "bytes": 4,
        "runtime": "tensorrt",
        "version": "10.3.0",
        "device": "Orin",
        "compute_capability": "8.7",
        "settings": {"level": 3},
    }
    digest = manifest["stages"]["encode"]["variants"][0]["sha256"]
    manifest["plans"] = [{**plan, "onnx_sha256": digest}]
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return folder


def test_odd_values_anywhere(full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(5)
    sound = json.loads((full / "bundle.json").read_text())
    shown = [path for path in places(sound) if path[0] in FREE]
    checked = [path for path in places(sound) if path[0] not in FREE]
    commands: dict[str, tuple[object, ...]] = {
        "info": (full,),
        "info --json": (full, "--json"),
        "run": (CLIP, "--bundle", full, "--max-frames", "5", "--quiet", "--stats", tmp_path / "s", "--force"),
        "verify": (full, "--clip", CLIP, "--frames", "2", "--quiet"),
    }
    ends: set[tuple[str, int]] = set()
    for number in range(72):
        manifest = copy.deepcopy(sound)
        # One of what is shown always, and at times one of what is checked.
        spoil(manifest, rng.choice(shown), rng)
        if number % 3 == 0:
            spoil(manifest, rng.choice(checked), rng)
        (full / "bundle.json").write_text(json.dumps(manifest))
        name = "info" if number % 2 else list(commands)[number // 2 % 4]
        code = main([name.split()[0], *map(str, commands[name])])
        printed = capsys.readouterr()
        what = f"{number}: {name}\n{printed.err}"
        assert code in (0, 2), what
        assert (code == 2) == printed.err.startswith("error: ") and "Traceback" not in printed.err, what
        assert "\x1b" not in printed.out + printed.err, what
        (printed.out + printed.err).encode()  # no halves of characters, which a terminal cannot be sent
        ends.add((name, code))
    assert ends == {(name, code) for name in commands for code in (0, 2)}, "all ways are taken"
