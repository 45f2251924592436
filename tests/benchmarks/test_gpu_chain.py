"""The benchmark of the chain end to end, with the CPU in the GPU's place: what is compared, not how fast."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from on_cpu_device import OnCpuDevice, build
from small_model import ATTENDING, MATCHING

from streamsplat_edge.benchmarks import table
from streamsplat_edge.benchmarks.gpu_chain import __main__ as command
from streamsplat_edge.benchmarks.gpu_chain import measure, methods, models, result
from streamsplat_edge.benchmarks.gpu_chain.eager import EagerLoop
from streamsplat_edge.export.graphs import GraphFile
from streamsplat_edge.export.stages import StageGraph
from streamsplat_edge.runtime.bundle import Bundle
from streamsplat_edge.runtime.errors import EngineError
from streamsplat_edge.training.config import ModelConfig, preset

ROOT = Path(__file__).parents[2]
PROTOCOL = measure.Protocol(height=48, width=96, gap=2, key_frames=3, rounds=1)


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> OnCpuDevice:
    return OnCpuDevice(build(tmp_path_factory.mktemp("kernels")))


def named(*names: str) -> list[methods.Method]:
    return [methods.BY_NAME[name] for name in names]


@pytest.fixture(scope="module", params=[MATCHING, ATTENDING], ids=["all stages", "encode and deform"])
def measured(request: pytest.FixtureRequest, device: OnCpuDevice) -> dict[str, Any]:
    config: ModelConfig = request.param
    bench = methods.Bench(models.random_model(config), lambda: device)
    chosen = named("eager-bf16", "torch", "onnxruntime", "tensorrt-rtx")
    return measure.measure(chosen, bench, PROTOCOL, lambda _: None)


def test_both_ways_give_the_same_images(measured: dict[str, Any]) -> None:
    """In fp16 and bf16, with pictures resized by different filters; unrelated images have about 10 dB."""
    eager, ours = measured["methods"][:2]
    assert eager["status"] == ours["status"] == "measured"
    assert ours["worst_db_against_published"] > 30
    assert eager["count"] == ours["count"] == PROTOCOL.rounds * PROTOCOL.key_frames
    assert ours["times_published"] == pytest.approx(
        np.median(eager["samples_ms"]) / np.median(ours["samples_ms"]), rel=1e-3
    )
    assert "eager" in eager["stages"]["all"] and "fp16 eager" in ours["stages"]["encode"]
    assert "torch allocates" in ours["stages"]["graph"]


def test_what_does_not_run_says_why(measured: dict[str, Any]) -> None:
    for row in measured["methods"][2:]:
        assert row["status"] == "not run" and row["reason"]


def test_one_that_breaks_does_not_end_the_comparison(device: OnCpuDevice) -> None:
    class Breaking:
        """As a compiler does, or an engine out of memory."""

        def __init__(self, calls: int) -> None:
            self.description: dict[str, str] = {}
            self._calls = calls

        def key_frame(self, picture: np.ndarray, time: float, times: Any) -> list[np.ndarray]:
            self._calls -= 1
            if self._calls < 0:
                raise RuntimeError("BackendCompilerFailed\nmore")
            return []

        def reset(self) -> None: ...

        def close(self) -> None: ...

    bench = methods.Bench(models.random_model(ATTENDING), lambda: device)
    breaking = [methods.Method(f"b{n}", "breaks", lambda _, n=n: Breaking(n)) for n in (0, 5)]  # type: ignore[misc]
    found = measure.measure([*breaking, methods.BY_NAME["eager-bf16"]], bench, PROTOCOL, lambda _: None)
    assert [row["status"] for row in found["methods"]] == ["failed", "failed", "measured"]
    assert all(row["reason"] == "RuntimeError: BackendCompilerFailed" for row in found["methods"][:2])
    assert "nothing to compare" in result.verdict(found)


def test_shown_as_text_and_table(measured: dict[str, Any], tmp_path: Path) -> None:
    text = "\n".join(result.text(measured))
    assert "goal of 4 times the published way" in text and "ours, torch eager, fp16" in text
    path = tmp_path / "chain.json"
    path.write_text(json.dumps(measured))
    lines = "\n".join(table.table(path))
    assert "| published way, eager, bf16 |" in lines and "TensorRT-RTX, fp16: not run:" in lines


def test_the_published_way_computes_both_frames_of_every_pair() -> None:
    loop = EagerLoop(models.random_model(MATCHING), "bf16", "cpu")
    calls: dict[str, int] = {}
    for name, graph in loop._stages.items():

        def count(*_: Any, name: str = name) -> None:
            calls[name] = calls.get(name, 0) + 1

        graph.module.register_forward_hook(count)
    frames = measure.pictures(PROTOCOL)
    for number, picture in enumerate(frames):
        assert len(loop.key_frame(picture, float(number), [number - 0.5] if number else [])) == bool(number)
    pairs = len(frames) - 1
    assert calls == {"deform": pairs, **dict.fromkeys(("depth", "condition", "encode"), 2 * pairs + 1)}
    first = loop.key_frame(frames[0], 10.0, [10.0])[0]
    assert first.shape == (32, 64, 3) and first.dtype == np.uint8
    loop.reset()
    assert loop.key_frame(frames[0], 0.0, []) == []


def test_stages_are_described_as_their_files() -> None:
    bundle = Bundle.load(ROOT / "demo" / "tiny.bundle")
    for graph in models.random_model(preset("tiny")).graphs():
        variant = bundle.variants(graph.name)[0]
        assert models.specs(graph, "cpu") == (variant.inputs, variant.outputs)


def test_files_are_written_once(device: OnCpuDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(graph: StageGraph, path: Path, opset: int) -> GraphFile:
        path.write_bytes(b"a graph")
        return GraphFile(path, *models.specs(graph, "cpu"))

    monkeypatch.setattr(models, "write_graph", write)
    bench = methods.Bench(models.random_model(ATTENDING), lambda: device, tmp_path)
    bundle = bench.files
    assert {bundle.variants(stage)[0].precision for stage in bundle.stage_names} == {"fp16"}
    monkeypatch.delattr(models, "write_graph")
    assert methods.Bench(bench.loaded, lambda: device, tmp_path).files.path == bundle.path


def test_the_command(
    device: OnCpuDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(models, "preset", lambda name: MATCHING)
    out = tmp_path / "chain.json"
    options = ["--size", "48x96", "--gap", "2", "--key-frames", "1", "--rounds", "1", "--json", str(out)]
    assert command.main([*options, "--methods", "eager-bf16,torch"], lambda: device) == 0
    assert json.loads(out.read_text())["protocol"]["gap"] == 2
    assert command.main([*options, "--methods", "eager-bf16"], lambda: device) == 2, "nothing of ours"
    capsys.readouterr()

    def none() -> OnCpuDevice:
        raise EngineError("There is no NVIDIA driver here.", "Install one.")

    assert command.main([], none) == 2
    assert capsys.readouterr().err == "error: There is no NVIDIA driver here.\nhint: Install one.\n"
    with pytest.raises(SystemExit):
        command.main(["--methods", "gpu"], lambda: device)


def test_weights_are_always_the_same() -> None:
    first, second = (models.random_model(MATCHING).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
