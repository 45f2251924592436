"""The TensorRT engine on stand-ins of `tensorrt`, `tensorrt_rtx` and CuPy: no GPU, so what is tested is the
order of calls, the key, both caches and every message. The stand-ins have exactly the calls that the modules
have (checked against `tensorrt_rtx` where it is installed)."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from fake_bundle import build_fake_bundle

from streamsplat_edge.runtime.bundle import Bundle, PlanEntry, StageVariant, sha256_of
from streamsplat_edge.runtime.bundle_writing import store
from streamsplat_edge.runtime.cuda import driver
from streamsplat_edge.runtime.engines import create, trt_api
from streamsplat_edge.runtime.errors import DeviceLostError, DeviceMemoryError, EngineError

GPU = driver.DeviceInfo("NVIDIA Test", "8.6", 1 << 30)


class RuntimeCache:
    def __init__(self) -> None:
        self.content = b"empty"

    def deserialize(self, content: bytes) -> bool:
        self.content = content
        return True

    def serialize(self) -> bytes:
        return self.content


class RuntimeConfig:
    """Of TensorRT-RTX; the one of `tensorrt` has no cache."""

    cache: RuntimeCache | None = None

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> None:
        self.cache = cache


class Context:
    def __init__(self, engine: CudaEngine, config: RuntimeConfig | None) -> None:
        self.engine, self.config = engine, config
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.streams: list[int] = []

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % 256 == 0, "NvInferRuntime.h: at least 256-byte alignment"
        self.addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return True

    def execute_async_v3(self, stream: int) -> bool:
        """Compiles its kernels, then fills every output with the sum of the first input."""
        self.streams.append(stream)
        if self.config is not None and self.config.cache is not None:
            self.config.cache.content = b"compiled"
        specs = self.engine.variant.inputs + self.engine.variant.outputs
        assert self.addresses.keys() == {spec.name for spec in specs}
        total = Memory.at[self.addresses[specs[0].name]].sum()
        for spec in self.engine.variant.outputs:
            Memory.at[self.addresses[spec.name]][...] = total
        return self.engine.works


class CudaEngine:
    works = True
    has_config = True
    free_batch = False

    def __init__(self, variant: StageVariant) -> None:
        self.variant = variant
        self.specs = variant.inputs + variant.outputs
        self.num_io_tensors = len(self.specs)
        self.contexts: list[Context] = []
        if self.has_config:
            self.create_runtime_config = RuntimeConfig

    def get_tensor_name(self, i: int) -> str:
        return self.specs[i].name

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name in {spec.name for spec in self.variant.inputs} else "out"

    def get_tensor_dtype(self, _name: str) -> SimpleNamespace:
        return SimpleNamespace(name="FLOAT")

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape = next(spec.shape for spec in self.specs if spec.name == name)
        return (-1, *shape[1:]) if self.free_batch else shape

    def create_execution_context(self, config: RuntimeConfig | None = None) -> Context:
        self.contexts.append(Context(self, config))
        return self.contexts[-1]


class Memory:
    """A device array."""

    at: ClassVar[dict[int, np.ndarray]] = {}

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self.array = np.zeros(shape, dtype)
        self.data = SimpleNamespace(ptr=512 * (len(Memory.at) + 1))  # as aligned as CuPy's
        Memory.at[self.data.ptr] = self.array

    def set(self, array: np.ndarray, stream: object) -> None:
        assert isinstance(array, np.ndarray) and array.dtype == self.array.dtype
        self.array[...] = array

    def get(self, stream: object, out: np.ndarray) -> None:
        out[...] = self.array


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[StageVariant, list[CudaEngine]]:
    """A stage with a plan for the stand-ins, and the engines that get loaded."""
    folder = build_fake_bundle(tmp_path / "fake.bundle").path
    manifest = folder / "bundle.json"
    manifest.write_text(manifest.read_text().replace('"openvino"', '"openvino", "tensorrt", "tensorrt_rtx"'))
    (folder / "plans").mkdir()
    plan = folder / "plans" / "e.plan"
    plan.write_bytes(b"plan")
    onnx_hash = Bundle.load(folder).variants("encode")[0].sha256
    entries = [
        PlanEntry(
            "encode", "plans/e.plan", sha256_of(plan), 4, runtime, "9.9", GPU.name, "8.6", onnx_hash, {}
        )
        for runtime in ("tensorrt_rtx",)
    ]
    variant = store(folder, {"plans": [asdict(entry) for entry in entries]}).variants("encode")[0]
    loaded: list[CudaEngine] = []

    def deserialize(_self: object, content: bytes) -> CudaEngine | None:
        if content != b"plan":
            return None
        loaded.append(CudaEngine(variant))
        return loaded[-1]

    logger: Any = type("Logger", (), {"ERROR": 1, "__init__": lambda _self, _level: None})
    runtime = type("Runtime", (), {"__init__": lambda *_: None, "deserialize_cuda_engine": deserialize})
    module: Any = SimpleNamespace(
        __name__="tensorrt_rtx",
        __version__="9.9",
        Logger=logger,
        Runtime=runtime,
        TensorIOMode=SimpleNamespace(INPUT="in"),
    )
    stream = SimpleNamespace(ptr=1, synchronize=lambda: None)
    cupy: Any = SimpleNamespace(empty=Memory, cuda=SimpleNamespace(Stream=lambda non_blocking: stream))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(driver, "cuda_device", lambda index=0: GPU)
    return variant, loaded


Made = tuple[StageVariant, list[CudaEngine]]


def run(variant: StageVariant, value: float = 1.0) -> dict[str, np.ndarray]:
    outputs = {spec.name: np.empty(spec.shape, spec.dtype) for spec in variant.outputs}
    inputs = {spec.name: np.full(spec.shape, value, spec.dtype) for spec in variant.inputs}
    with create("tensorrt_rtx", variant, device="cuda") as engine:
        assert engine.description == "tensorrt_rtx 9.9 NVIDIA Test fp32"
        engine.run(inputs, outputs)
        engine.run(inputs, outputs)
    return outputs


def test_arrays_go_there_and_back(made: Made) -> None:
    variant, _ = made
    outputs = run(variant, 2.0)
    size = np.prod(variant.inputs[0].shape)
    assert all(np.all(array == 2.0 * size) for array in outputs.values())


def fail(error: Exception) -> Any:
    def raising(*_: object, **__: object) -> None:
        raise error

    return raising


def test_arrays_of_a_device_are_taken_where_they_are(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    variant, loaded = made
    memory: Any = SimpleNamespace(queue=77, address=lambda array: array.data.ptr, synchronize=lambda: None)
    arrays = {spec.name: Memory(spec.shape, spec.dtype) for spec in variant.inputs + variant.outputs}
    for memory_ in arrays.values():
        for name in ("shape", "dtype", "flags"):
            setattr(memory_, name, getattr(memory_.array, name))
    arrays[variant.inputs[0].name].array[...] = 3.0
    with create("tensorrt_rtx", variant, device="cuda", memory=memory) as engine:
        engine.run(arrays, arrays)
        assert loaded[-1].contexts[0].streams == [77]
        assert engine.graph_refusal is None, "it only launches, in the device's stream"
        first = arrays[variant.inputs[0].name]
        aside: Any = SimpleNamespace(**vars(first) | {"data": SimpleNamespace(ptr=first.data.ptr + 16)})
        with pytest.raises(
            EngineError, match=r"multiples of 256 bytes, and `rgbd` of stage `encode`"
        ) as error:
            engine.run({**arrays, variant.inputs[0].name: aside}, arrays)
        assert "--engine onnxruntime" in error.value.hint
        # In a capture nothing can be waited for, which is not what went wrong; a loss is.
        for waiting, told in ((EngineError("900"), "TensorRT failed"), (DeviceLostError("Lost."), "Lost")):
            with monkeypatch.context() as patch, pytest.raises(EngineError, match=told):
                patch.setattr(CudaEngine, "works", False)
                patch.setattr(memory, "synchronize", fail(waiting))
                engine.run(arrays, arrays)
    with create("tensorrt_rtx", variant, device="cuda") as engine:
        assert engine.graph_refusal is not None, "it copies and waits"
    size = np.prod(variant.inputs[0].shape)
    assert all(np.all(arrays[spec.name].array == 3.0 * size) for spec in variant.outputs)


def test_compiled_kernels_are_kept_for_the_next_start(made: Made) -> None:
    variant, loaded = made
    cache = variant.plans[0].path.with_suffix(".cache")
    run(variant)
    assert cache.read_bytes() == b"compiled"
    written = cache.stat().st_mtime_ns
    with create("tensorrt_rtx", variant, device="cuda"):
        config = loaded[-1].contexts[0].config
        assert config is not None and config.cache is not None and config.cache.content == b"compiled"
    assert cache.stat().st_mtime_ns == written, "nothing new, nothing written"


def test_a_folder_that_cannot_be_written_to_is_no_error(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    variant, _ = made
    target = variant.plans[0].path.with_suffix(".cache")
    target.mkdir()  # root may write anywhere, but no file over a folder
    run(variant)
    assert target.is_dir()


def test_without_a_run_time_cache(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT 10.3 has no configuration of contexts; later ones have it without a cache."""
    variant, loaded = made
    monkeypatch.setattr(CudaEngine, "has_config", False)
    run(variant)
    monkeypatch.setattr(CudaEngine, "has_config", True)
    monkeypatch.delattr(RuntimeConfig, "create_runtime_cache")
    run(variant)
    assert [engine.contexts[0].config for engine in loaded] == [None, None]
    assert not variant.plans[0].path.with_suffix(".cache").exists()


def test_a_free_batch_is_set_to_the_manifest_s(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    variant, loaded = made
    run(variant)
    assert not loaded[0].contexts[0].shapes
    monkeypatch.setattr(CudaEngine, "free_batch", True)
    run(variant)
    assert loaded[1].contexts[0].shapes == {spec.name: spec.shape for spec in variant.inputs}


def test_refusals(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    variant, _ = made

    def refuses(message: str, **options: Any) -> None:
        with pytest.raises(EngineError, match=message) as error:
            create("tensorrt_rtx", variant, **{"device": "cuda", **options}).close()
        assert error.value.hint

    refuses("runs on a GPU", device="cpu")
    refuses("is fp32, not fp16", precision="fp16")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cupy", None)
        refuses("CuPy cannot be imported")
    with monkeypatch.context() as patch:
        patch.setattr(driver, "cuda_device", lambda index=0: None)
        refuses("no CUDA device")
    with monkeypatch.context() as patch:
        patch.setattr(CudaEngine, "create_execution_context", lambda *_: None)
        refuses(r"no execution context \(1024 MiB are free\)")
        with pytest.raises(DeviceMemoryError):
            create("tensorrt_rtx", variant, device="cuda")
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["tensorrt_rtx"].Runtime, "deserialize_cuda_engine", lambda *_: None)
        refuses(r"cannot load .*e\.plan\. ")
        patch.setattr(driver, "cuda_device", lambda index=0: driver.DeviceInfo(GPU.name, GPU.capability, 1))
        refuses(r"cannot load .*e\.plan, of 0 MiB \(0 MiB are free\)")
    with monkeypatch.context() as patch:
        patch.setattr(CudaEngine, "get_tensor_dtype", lambda *_: SimpleNamespace(name="HALF"))
        refuses("the manifest says")
    with monkeypatch.context() as patch:
        patch.setattr(CudaEngine, "works", False)
        with pytest.raises(EngineError, match="TensorRT failed in stage `encode`"):
            run(variant)
    for name, value, message in (
        ("tensorrt_rtx", None, "tensorrt_rtx cannot be imported"),
        ("tensorrt_rtx", SimpleNamespace(), "only its type stubs"),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, value)
            refuses(message)
    variant.plans[0].path.write_bytes(b"palm")
    refuses("truncated or was changed")


def test_a_driver_older_than_tensorrt(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """pybind11's words for a constructor that gives nothing, which is all that Python hears of it."""
    variant, _ = made

    def refuse(*_: object) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(sys.modules["tensorrt_rtx"].Runtime, "__init__", refuse)
    with pytest.raises(EngineError, match=r"9\.9 cannot start here: its messages above.*error 35") as error:
        create("tensorrt_rtx", variant, device="cuda")
    assert "update the driver" in error.value.hint


@pytest.mark.parametrize("error", [OSError("libnvinfer.so.10: cannot open"), RuntimeError("no such symbol")])
def test_a_library_that_does_not_load(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(trt_api.importlib, "import_module", fail)
    with pytest.raises(EngineError, match=f"tensorrt cannot be imported: {error}") as told:
        trt_api.load("tensorrt")
    assert told.value.hint


def test_errors_of_cupy_are_told(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own: OutOfMemoryError is a MemoryError, those of CUDA are RuntimeErrors."""
    variant, _ = made

    full, broken = MemoryError("Out of memory allocating 8 bytes"), RuntimeError("cudaErrorLaunchFailure")
    cupy: Any = sys.modules["cupy"]
    with monkeypatch.context() as patch:
        patch.setattr(cupy, "empty", fail(full))
        with pytest.raises(DeviceMemoryError, match=r"stage `encode`, when buffers .*8 bytes \(1024 MiB"):
            run(variant)
    with monkeypatch.context() as patch:
        patch.setattr(Memory, "get", fail(broken))
        with pytest.raises(EngineError, match="stage `encode`, when it ran: cudaErrorLaunchFailure"):
            run(variant)
    with monkeypatch.context() as patch:
        patch.setattr(cupy.cuda, "Stream", fail(broken))
        with pytest.raises(EngineError, match="when a stream was made"):
            run(variant)


def test_a_cache_that_a_lost_gpu_does_not_give(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    variant, _ = made
    monkeypatch.setattr(RuntimeCache, "serialize", lambda _: None)
    run(variant)
    assert not variant.plans[0].path.with_suffix(".cache").exists()


def test_the_cache_is_read_where_a_context_is_current(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT-RTX takes it only then; CuPy's stream makes the context."""
    variant, _ = made
    run(variant)
    order: list[str] = []
    cuda: Any = sys.modules["cupy"].cuda
    stream = cuda.Stream

    def made_stream(**options: Any) -> Any:
        order.append("stream")
        return stream(**options)

    monkeypatch.setattr(cuda, "Stream", made_stream)
    monkeypatch.setattr(RuntimeCache, "deserialize", lambda *_: order.append("cache"))
    run(variant)
    assert order == ["stream", "cache"]


def test_the_real_module_has_these_calls() -> None:
    module = pytest.importorskip("tensorrt_rtx", reason="compares with TensorRT-RTX")
    for real, stand_in in (
        (module.IRuntimeCache, RuntimeCache),
        (module.IRuntimeConfig, RuntimeConfig),
        (module.IExecutionContext, Context),
        (module.ICudaEngine, CudaEngine),
    ):
        names = {name for name, value in vars(stand_in).items() if callable(value) and name[0] != "_"}
        assert names and all(hasattr(real, name) for name in names)
