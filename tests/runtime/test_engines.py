"""Engines: exact results on caller's buffers, and an error instead of another provider, precision or file."""

from __future__ import annotations

import dataclasses
import gc
import importlib
import importlib.util
import os
import sys
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_bundle import build_fake_bundle, numpy_deform, numpy_encode

from streamsplat_edge.runtime import engines
from streamsplat_edge.runtime.bundle import Bundle, StageVariant, TensorSpec
from streamsplat_edge.runtime.engines import base, onnxruntime
from streamsplat_edge.runtime.engines.openvino import choose_precision, process_core
from streamsplat_edge.runtime.engines.printing import overheard
from streamsplat_edge.runtime.errors import BundleError, DeviceMemoryError, EngineError, InputError

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="the extra [openvino] is not installed"
)
BACKENDS = [
    pytest.param(("onnxruntime", None), id="onnxruntime"),
    pytest.param(("openvino", "fp32"), id="openvino", marks=needs_openvino),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build_fake_bundle(tmp_path_factory.mktemp("engines") / "fake.bundle", condition_stage=True)


def load(bundle: Bundle, stage: str, backend: tuple[str, str | None], **options: Any) -> engines.Engine:
    engine, precision = backend
    variant = engines.select_variant(bundle, stage, engine, precision)
    return engines.create(engine, variant, precision=precision, **options)


def arrays(specs: tuple[TensorSpec, ...], seed: int | None = None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        spec.name: np.full(spec.shape, np.nan, np.float32)
        if seed is None
        else rng.random(spec.shape, np.float32)
        for spec in specs
    }


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_land_in_the_callers_buffers(bundle: Bundle, backend: tuple[str, str | None]) -> None:
    with load(bundle, "encode", backend, threads=1) as engine:
        inputs, outputs = arrays(engine.inputs, 0), arrays(engine.outputs)
        for seed in range(3):  # the same buffers with new contents
            inputs["rgbd"][:] = np.random.default_rng(seed).random(inputs["rgbd"].shape)
            engine.run(inputs, outputs)
            for name, wanted in numpy_encode(inputs["rgbd"], bundle.model).items():
                np.testing.assert_allclose(outputs[name], wanted, atol=1e-6)
        assert engine.precision == "fp32" and "1 threads" in engine.description


@pytest.mark.parametrize("backend", BACKENDS)
def test_alternating_buffers(bundle: Bundle, backend: tuple[str, str | None]) -> None:
    """As in a stream, where the frame that was later becomes the earlier one: no stale binding, no copy."""
    with load(bundle, "deform", backend) as engine:
        frames = [arrays(engine.inputs[:3], seed) for seed in range(3)]
        names = ("tokens_0", "features_0", "condition_0")
        outputs = [arrays(engine.outputs) for _ in range(2)]
        for k in range(8):
            earlier, later = frames[k % 3], frames[(k + 1) % 3]
            later["features_0"][:] += 0.125
            inputs = {name: earlier[name] for name in names}
            inputs |= {name.replace("_0", "_1"): later[name] for name in names}
            engine.run(inputs, outputs[k % 2])
            wanted = numpy_deform(earlier["features_0"], later["features_0"])
            for name in ("motion", "fade"):
                np.testing.assert_allclose(outputs[k % 2][name], wanted[name], atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_fresh_arrays_every_time_do_not_accumulate(bundle: Bundle, backend: tuple[str, str | None]) -> None:
    with load(bundle, "encode", backend) as engine:
        for seed in range(base._BINDINGS + 5):
            inputs, outputs = arrays(engine.inputs, seed), arrays(engine.outputs)
            engine.run(inputs, outputs)
            wanted = numpy_encode(inputs["rgbd"], bundle.model)["features"]
            np.testing.assert_allclose(outputs["features"], wanted, atol=1e-6)
        assert len(engine._bound) == base._BINDINGS


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_arrays_are_refused(bundle: Bundle, backend: tuple[str, str | None]) -> None:
    with load(bundle, "encode", backend) as engine:
        inputs, outputs = arrays(engine.inputs, 0), arrays(engine.outputs)
        good = inputs["rgbd"]
        read_only = np.zeros((1, 8, 4), np.float32)
        read_only.flags.writeable = False
        for tensors, message in [
            ({}, "'rgbd' was not given"),
            ({"rgbd": good.astype(np.float64)}, "float64.* was given, rgbd float32"),
            ({"rgbd": good[:, :3]}, r"float32\[1, 3, 16, 32\] was given"),
            ({"rgbd": good[:, :, ::-1]}, "C-contiguous"),
            ({"rgbd": good.tolist()}, "a numpy array is needed, not list"),
        ]:
            with pytest.raises(InputError, match=message):
                engine.run(tensors, outputs)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="C-contiguous and writable"):
            engine.run(inputs, outputs | {"tokens": read_only})
        with pytest.raises(InputError, match="'gaussians' was not given"):
            engine.run(inputs, {"tokens": outputs["tokens"], "features": outputs["features"]})


@pytest.mark.parametrize("backend", BACKENDS)
def test_closed_engines_do_not_run(bundle: Bundle, backend: tuple[str, str | None]) -> None:
    engine = load(bundle, "encode", backend)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run(arrays(engine.inputs, 0), arrays(engine.outputs))


def changed(variant: StageVariant, **changes: Any) -> StageVariant:
    return dataclasses.replace(variant, **changes)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_file_must_be_what_the_manifest_says(
    bundle: Bundle, backend: tuple[str, str | None], tmp_path: Path
) -> None:
    engine, precision = backend
    variant = bundle.variant("encode", engine)

    def create(variant: StageVariant) -> None:
        engines.create(engine, variant, precision=precision)

    with pytest.raises(EngineError, match=r"input `rgbd` is float32\(1, 4, 16, 32\); the manifest says rgbd"):
        create(changed(variant, inputs=(TensorSpec("rgbd", (1, 4, 16, 64)),)))
    with pytest.raises(EngineError, match="has the inputs rgbd; the manifest says rgb"):
        create(changed(variant, inputs=(TensorSpec("rgb", (1, 4, 16, 32)),)))
    with pytest.raises(EngineError, match="has the outputs"):
        create(changed(variant, outputs=variant.outputs[:2]))
    with pytest.raises(EngineError, match="the manifest says tokens float16"):
        outputs = (TensorSpec("tokens", (1, 8, 4), "float16"), *variant.outputs[1:])
        create(changed(variant, outputs=outputs))
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(variant.path.read_bytes()[:100])
    with pytest.raises(BundleError, match="cannot be read as ONNX"):
        create(changed(variant, path=broken))
    with pytest.raises(BundleError, match="No such file"):
        create(changed(variant, path=tmp_path / "absent.onnx"))
    # ONNX in form, but no engine knows this operator.
    broken.write_bytes(variant.path.read_bytes().replace(b"AveragePool", b"AverageFool"))
    with pytest.raises(EngineError, match="cannot load"):
        create(changed(variant, path=broken))


def test_unknown_engine(bundle: Bundle) -> None:
    variant = bundle.variant("encode", "onnxruntime")
    with pytest.raises(EngineError, match="no engine") as caught:
        engines.create("caffe", variant)
    assert "onnxruntime, openvino, tensorrt, tensorrt_rtx" in caught.value.hint
    with pytest.raises(EngineError, match="no engine"):
        engines.select_variant(bundle, "encode", "caffe")
    with pytest.raises(EngineError, match="not for tensorrt"):
        engines.create("tensorrt", variant)
    with pytest.raises(EngineError, match="meant for tensorrt, not for onnxruntime"):
        engines.create("onnxruntime", changed(variant, engines=("tensorrt",)))


def test_select_variant(bundle: Bundle) -> None:
    assert engines.select_variant(bundle, "encode", "openvino", "bf16").precision == "fp32"
    with pytest.raises(BundleError, match="at precision bf16"):
        engines.select_variant(bundle, "encode", "onnxruntime", "bf16")
    with pytest.raises(BundleError, match="at precision int8"):
        engines.select_variant(bundle, "encode", "openvino", "int8")


def test_thread_count() -> None:
    assert base.thread_count(3) == 3
    assert base.thread_count(0) == len(os.sched_getaffinity(0))
    with pytest.raises(EngineError, match="threads is -1"):
        base.thread_count(-1)


# ONNX Runtime: what was asked for is what runs


def test_onnxruntime_refuses_another_precision(bundle: Bundle) -> None:
    with pytest.raises(EngineError, match=r"runs encode\.onnx as it is \(fp32\), not at int8"):
        engines.create("onnxruntime", bundle.variant("encode", "onnxruntime"), precision="int8")


def test_onnxruntime_devices() -> None:
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert onnxruntime._provider("cuda", both) == "CUDAExecutionProvider"
    assert onnxruntime._provider("cpu", both) == "CPUExecutionProvider"
    with pytest.raises(EngineError, match="device=cuda needs CUDAExecutionProvider") as caught:
        onnxruntime._provider("cuda", ["CPUExecutionProvider"])
    assert "onnxruntime-gpu" in caught.value.hint
    with pytest.raises(EngineError, match="no device 'npu'"):
        onnxruntime._provider("npu", both)


def test_cuda_without_cuda_is_an_error(bundle: Bundle) -> None:
    runtime = importlib.import_module("onnxruntime")
    if "CUDAExecutionProvider" in runtime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(EngineError, match="needs CUDAExecutionProvider"):
        engines.create("onnxruntime", bundle.variant("encode", "onnxruntime"), device="cuda")


class Sessions:
    """ONNX Runtime with a CUDA provider that does not start: what its Python does then, by release.

    `told`: what a session was asked for. `problem`: what the provider raises; None is a release that logs it.
    `asks`: whether this release has the option `enable_fallback` (1.20 on).
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, problem: str | None, *, asks: bool = True) -> None:
        runtime: Any = importlib.import_module("onnxruntime")
        self._original, self._problem, self._asks = runtime.InferenceSession, problem, asks
        self.told: list[Any] = []
        self.preloaded = 0
        monkeypatch.setattr(runtime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
        monkeypatch.setattr(runtime, "InferenceSession", self._open)
        monkeypatch.setattr(runtime, "preload_dlls", self._preload, raising=False)

    def _preload(self) -> None:
        self.preloaded += 1
        print("Failed to load libcudnn.so.9")  # as it does

    def _open(self, path: Any, options: Any, *, providers: Any, enable_fallback: int = 1) -> Any:
        self.told += providers
        if self._problem is not None:
            if self._asks and not enable_fallback:
                raise RuntimeError(self._problem)
            print("*************** EP Error ***************")
            print(f"EP Error {self._problem} when using {providers}")
        return self._original(path, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("asks", [True, False])
def test_a_provider_that_does_not_start_is_an_error(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], asks: bool
) -> None:
    """Not a session on the CPU, and nothing on stdout, where a command's JSON goes."""
    variant = bundle.variant("encode", "onnxruntime")
    sessions = Sessions(monkeypatch, None)
    with pytest.raises(EngineError, match="CUDAExecutionProvider was asked for, but ONNX Runtime chose CPU"):
        engines.create("onnxruntime", variant, device="cuda")
    assert sessions.preloaded == 1, "NVIDIA's packages are not where the loader looks"
    assert sessions.told == [("CUDAExecutionProvider", {"use_tf32": "0"})]
    Sessions(monkeypatch, "CUDA failure 35: driver version is insufficient", asks=asks)
    with pytest.raises(EngineError, match=r"CUDA failure 35.*onnxruntime-gpu\[cuda,cudnn\]"):
        engines.create("onnxruntime", variant, device="cuda")
    sessions = Sessions(monkeypatch, "CUDA failure 2: out of memory", asks=asks)
    memory: Any = SimpleNamespace(index=0, queue=77)
    with pytest.raises(DeviceMemoryError, match="CUDA failure 2"):
        engines.create("onnxruntime", variant, device="cuda", memory=memory)
    options = {"use_tf32": "0", "device_id": "0", "user_compute_stream": "77"}
    assert sessions.told == [("CUDAExecutionProvider", options)]
    assert not capsys.readouterr().out


def test_loading_leaves_the_output_of_the_program_alone(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`sys.stdout` belongs to every thread: two that load at once would lose it between them."""
    runtime: Any = importlib.import_module("onnxruntime")
    original, seen = runtime.InferenceSession, []

    def load(*args: Any, **options: Any) -> Any:
        seen.append(sys.stdout)
        return original(*args, **options)

    monkeypatch.setattr(runtime, "InferenceSession", load)
    engines.create("onnxruntime", bundle.variant("encode", "onnxruntime"), threads=1).close()
    assert seen == [sys.stdout]

    # Of a device, whose provider prints: what the loading thread says is kept from stdout, nothing else.
    with overheard() as said:
        print("of the library")
        kept = sys.stdout
        other = threading.Thread(target=print, args=("of another thread",))
        other.start()
        other.join()
    print("afterwards", file=kept)
    print("at last")
    assert said.getvalue() == "of the library\n"
    assert capsys.readouterr().out == "of another thread\nafterwards\nat last\n"


@pytest.mark.parametrize("threads", [-1, 1.5, "2", 100_000])
def test_numbers_of_threads_that_cannot_be(bundle: Bundle, threads: Any) -> None:
    """A hundred thousand were started, until the system killed the program for its memory."""
    with pytest.raises(EngineError, match=r"threads is .*whole number up to 1024"):
        engines.create("onnxruntime", bundle.variant("encode", "onnxruntime"), threads=threads)


def test_device_inputs_are_bound_afresh(bundle: Bundle) -> None:
    """With a device provider binding copies the input, so it must be bound again (simulated on the CPU)."""
    with load(bundle, "encode", ("onnxruntime", None)) as engine:
        engine._copies_inputs = True  # type: ignore[attr-defined]
        inputs, outputs = arrays(engine.inputs, 0), arrays(engine.outputs)
        for value in (0.25, 0.75):
            inputs["rgbd"][:] = value
            engine.run(inputs, outputs)
            np.testing.assert_allclose(outputs["features"], value)


def test_onnxruntime_failure_while_running(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(bundle, "encode", ("onnxruntime", None)) as engine:

        class Failing:
            def __getattr__(self, name: str) -> Any:
                return getattr(engine._kept, name)  # type: ignore[attr-defined]

            def run_with_iobinding(self, binding: object) -> None:
                raise RuntimeError("out of memory")

        engine._kept = engine._session  # type: ignore[attr-defined]
        monkeypatch.setattr(engine, "_session", Failing())
        with pytest.raises(EngineError, match="failed in stage `encode`: out of memory"):
            engine.run(arrays(engine.inputs, 0), arrays(engine.outputs))


# OpenVINO


def test_choose_precision() -> None:
    modern, old = ["FP32", "INT8", "BF16", "FP16"], ["FP32", "INT8"]
    assert choose_precision(None, "fp32", modern) == "bf16"
    assert choose_precision(None, "fp32", old) == "fp32"
    assert choose_precision("fp32", "fp32", modern) == "fp32"
    assert choose_precision("bf16", "fp32", modern) == "bf16"
    assert choose_precision("fp16", "fp32", modern) == "fp16"
    assert choose_precision("int8", "int8", modern) == "bf16"
    assert choose_precision("int8", "int8", old) == "fp32"
    for asked in ("bf16", "fp16"):
        with pytest.raises(EngineError, match=f"This CPU does not run {asked}"):
            choose_precision(asked, "fp32", old)
    with pytest.raises(EngineError, match="Precision 'int8' was asked for, but the file is fp32"):
        choose_precision("int8", "fp32", modern)


def test_missing_openvino_says_how_to_get_it(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # makes every import of it fail
    with pytest.raises(EngineError, match="OpenVINO is not installed") as caught:
        engines.create("openvino", bundle.variant("encode", "openvino"))
    assert "streamsplat-edge[openvino]" in caught.value.hint


def test_broken_onnxruntime_says_what_to_do(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match="ONNX Runtime cannot be imported") as caught:
        engines.create("onnxruntime", bundle.variant("encode", "onnxruntime"))
    assert "doctor" in caught.value.hint


@needs_openvino
def test_openvino_without_its_cpu_plugin(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing() -> None:
        raise RuntimeError("no plugin for CPU")

    monkeypatch.setattr(importlib.import_module("openvino"), "Core", failing)
    with pytest.raises(EngineError, match="cannot use this CPU: no plugin for CPU"):
        engines.create("openvino", bundle.variant("encode", "openvino"))


@needs_openvino
def test_openvino_runs_on_the_cpu_only(bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="runs on the CPU, not on 'cuda'"):
        engines.create("openvino", bundle.variant("encode", "openvino"), device="cuda")


@needs_openvino
def test_openvino_default_precision(bundle: Bundle) -> None:
    with load(bundle, "encode", ("openvino", None)) as engine:
        core = process_core(importlib.import_module("openvino").Core)
        capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        assert engine.precision == ("bf16" if "BF16" in capabilities else "fp32")
        inputs, outputs = arrays(engine.inputs, 0), arrays(engine.outputs)
        engine.run(inputs, outputs)
        wanted = numpy_encode(inputs["rgbd"], bundle.model)
        for name in outputs:
            np.testing.assert_allclose(outputs[name], wanted[name], atol=0.02)


@needs_openvino
def test_openvino_core_outlives_its_engines(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A core that is freed takes the signal handlers' stack with it on CPUs with AMX."""
    module, made = importlib.import_module("openvino"), []

    def core() -> object:
        made.append(weakref.ref(real := module_core()))
        return real

    module_core = module.Core
    monkeypatch.setattr(module, "Core", core)
    for stage in ("encode", "deform"):
        load(bundle, stage, ("openvino", "fp32")).close()
    gc.collect()
    assert len(made) == 1 and made[0]() is not None


@needs_openvino
def test_openvino_failure_while_running(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(bundle, "encode", ("openvino", "fp32")) as engine:

        class Failing:
            def set_tensor(self, name: str, tensor: object) -> None:
                raise RuntimeError("out of memory")

        monkeypatch.setattr(engine, "_request", Failing())
        with pytest.raises(EngineError, match="failed in stage `encode`: out of memory"):
            engine.run(arrays(engine.inputs, 0), arrays(engine.outputs))


@needs_openvino
def test_openvino_that_chooses_another_precision(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("openvino")
    original = module.Core

    class OtherCore:
        def __init__(self) -> None:
            self._core = original()

        def get_property(self, *args: Any) -> Any:
            return self._core.get_property(*args)

        def read_model(self, path: Path) -> Any:
            return self._core.read_model(path)

        def compile_model(self, model: Any, device: str, settings: dict[str, Any]) -> Any:
            return self._core.compile_model(
                model, device, settings | {"INFERENCE_PRECISION_HINT": module.Type.f32}
            )

    monkeypatch.setattr(module, "Core", OtherCore)
    monkeypatch.setattr("streamsplat_edge.runtime.engines.openvino.choose_precision", lambda *args: "bf16")
    with pytest.raises(EngineError, match="was asked for bf16 and chose"):
        engines.create("openvino", bundle.variant("encode", "openvino"))
