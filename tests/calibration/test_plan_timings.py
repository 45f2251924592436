"""TensorRT's quantised files against those that were there, on an imitated GPU: what is kept, and why."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
from quantised_graph import quantised_nodes
from test_calibrate import command

from streamsplat_edge.calibration import cpu, plans
from streamsplat_edge.calibration.timing import Timing
from streamsplat_edge.cli import main
from streamsplat_edge.export.build_errors import BuildError
from streamsplat_edge.export.plan_builder import BuildOptions
from streamsplat_edge.runtime.bundle import Bundle, StageVariant
from streamsplat_edge.runtime.cuda import driver
from streamsplat_edge.runtime.engines import trt_api

Built = list[tuple[str, list[str]]]
Calibrate = Callable[..., tuple[int, Path]]


def computes_in(path: Path) -> str:
    return "int8" if quantised_nodes(onnx.load(path)) else "fp32"


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Built:
    """A GPU with TensorRT on which INT8 makes `encode` faster and `deform` slower. Gives the folders for
    which plans were built, and what their files compute in."""
    calls: Built = []

    def build(path: Path, options: BuildOptions, **_: object) -> None:
        bundle = Bundle.load(path)
        files = [bundle.variant(stage, options.runtime).path for stage in bundle.stage_names]
        calls.append((path.name, [computes_in(file) for file in files]))

    def compared(
        variants: Mapping[str, StageVariant],
        inputs: Mapping[str, object],
        engine: str,
        *,
        device: str,
        **_: object,
    ) -> tuple[dict[str, Timing], dict[str, str]]:
        assert (engine, device) == ("tensorrt", "cuda")
        assert [(name, computes_in(v.path)) for name, v in variants.items()] == [("fp32",) * 2, ("int8",) * 2]
        ratio = 1.1 if "tokens_0" in inputs else 0.6
        return {"fp32": Timing(2.0, 1.0), "int8": Timing(2.0 * ratio, ratio)}, {}

    monkeypatch.setattr(cpu, "ENGINES", ())
    monkeypatch.setattr(plans, "build_bundle", build)
    monkeypatch.setattr(plans, "compare", compared)
    monkeypatch.setattr(driver, "cuda_device", lambda index=0: driver.DeviceInfo("Orin", "8.7", 1 << 30))
    module = SimpleNamespace(__name__="tensorrt", __version__="10.3")
    monkeypatch.setattr(trt_api, "load", lambda runtime: module)
    return calls


@pytest.fixture
def calibrate(bundle: Bundle, clips: Path, tmp_path: Path, built: Built) -> Calibrate:
    """`calibrate` on that GPU, with further options; gives the exit code and the bundle's path."""

    def run(*options: str, name: str = "q") -> tuple[int, Path]:
        out = tmp_path / f"{name}.bundle"
        return main(command(bundle, clips, out, "--no-sensitivity", *options)), out

    return run


def precisions(path: Path) -> dict[str, str]:
    bundle = Bundle.load(path)
    return {stage: bundle.variant(stage, "tensorrt").precision for stage in bundle.stage_names}


def test_a_stage_that_got_slower_keeps_its_precision(
    calibrate: Calibrate, built: Built, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = calibrate("--json")
    assert code == 0
    report = json.loads(capsys.readouterr().out)
    assert built == [("before.bundle", ["fp32", "fp32"]), ("after.bundle", ["int8", "int8"])]
    assert precisions(out) == {"encode": "int8", "deform": "fp32"}
    timed = report["plans"]
    assert (timed["runtime"], timed["device"], timed["reason"]) == ("tensorrt 10.3", "Orin", "")
    assert timed["timings"]["deform"]["int8"] == {"milliseconds": 2.2, "ratio": 1.1}
    code, everything = calibrate("--slower", name="all")
    assert code == 0
    text = capsys.readouterr().out
    assert precisions(everything) == {"encode": "int8", "deform": "int8"}
    assert "tensorrt 10.3 on Orin" in text and "deform     fp32 2.0 ms (x1.00), *int8 2.2 ms (x1.10)" in text
    both = Bundle.load(everything).quantisation["gate"]["psnr_db"]
    assert report["gate"]["psnr_db"]["mean"] > both["mean"], "the score is of what is in the bundle"


def test_a_build_that_fails_loses_nothing(
    calibrate: Calibrate, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise BuildError("No tactic was found.")

    monkeypatch.setattr(plans, "build_bundle", fails)
    code, out = calibrate()
    assert code == 0
    assert "not timed: No tactic was found." in capsys.readouterr().out
    assert precisions(out) == {"encode": "int8", "deform": "int8"}


def test_nothing_faster_is_said(
    calibrate: Calibrate, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def slower(variants: Mapping[str, StageVariant], *_: object, **__: object) -> tuple[object, object]:
        return {name: Timing(1.0, 1.0) for name in variants}, {}

    monkeypatch.setattr(plans, "compare", slower)
    code, out = calibrate()
    assert code == 2
    assert "Nothing is gained: TensorRT: no stage is faster on Orin." in capsys.readouterr().err
    assert not out.exists()


def test_without_a_gpu_nothing_is_timed(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "cuda_device", lambda index=0: None)
    found = plans.time_plans(bundle, {}, {}, None, tmp_path)  # type: ignore[arg-type]
    assert found.reason == "there is no CUDA device here" and not found.slower
