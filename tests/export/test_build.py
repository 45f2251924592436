"""TensorRT-RTX plans, really built on this machine without a GPU, and every refusal."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from fake_bundle import build_fake_bundle

pytest.importorskip("tensorrt_rtx", reason="plans need TensorRT-RTX")

from streamsplat_edge.commands.info import describe
from streamsplat_edge.export import build as build_module
from streamsplat_edge.export.build import BuildError, BuildOptions, build_bundle
from streamsplat_edge.export.plan_layers import PlanLayer, from_inspector, inspect
from streamsplat_edge.runtime.bundle import Bundle
from streamsplat_edge.runtime.bundle_writing import store
from streamsplat_edge.runtime.cuda import driver
from streamsplat_edge.runtime.engines import create, trt_api
from streamsplat_edge.runtime.engines.tensorrt import choose_plan
from streamsplat_edge.runtime.errors import BundleError, EngineError, OutputError

OPTIONS = BuildOptions("tensorrt_rtx", capabilities=("8.6",))
GPU = driver.DeviceInfo("RTX", "8.6", 1 << 30)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = build_fake_bundle(tmp_path_factory.mktemp("bundle") / "fake.bundle").path
    manifest = path / "bundle.json"
    engines = '"openvino", "tensorrt", "tensorrt_rtx"'
    manifest.write_text(manifest.read_text().replace('"openvino"', engines))
    return path


@pytest.fixture(autouse=True)
def no_products_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake stages multiply nothing: let their plans count as inspected."""

    def counted(layers: list[PlanLayer], expected: dict[str, str]) -> Any:
        return replace(inspect(layers, expected), products={"fp32": 1})

    monkeypatch.setattr(build_module, "inspect", counted)


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "fake.bundle"))


def test_build_is_entered_and_resumed(folder: Path) -> None:
    first = build_bundle(folder, OPTIONS)
    bundle = Bundle.load(folder)
    assert [p.entry.stage for p in first] == ["encode", "deform"] and not any(p.reused for p in first)
    assert {(p.device, p.compute_capability) for p in bundle.plans} == {("any", "8.6")}
    assert all(p.reused for p in build_bundle(folder, OPTIONS))
    # What is missing or damaged is built again, the rest is kept.
    (folder / bundle.plans[0].file).write_bytes(b"x" * bundle.plans[0].bytes)
    assert [p.reused for p in build_bundle(folder, OPTIONS)] == [False, True]
    other = replace(OPTIONS, capabilities=("8.9", "8.0"))
    assert build_bundle(folder, other)[0].entry.compute_capability == "8.0, 8.9"
    assert len(Bundle.load(folder).plans) == 4
    variant = Bundle.load(folder).variants("encode")[0]
    version = first[0].entry.version
    assert choose_plan(variant, "tensorrt_rtx", version, GPU).entry.compute_capability == "8.6"
    for runtime, number, gpu, message in (
        ("tensorrt_rtx", "1.0", GPU, "built with tensorrt_rtx .*, here is 1.0"),
        ("tensorrt_rtx", version, replace(GPU, capability="12.0"), "compute capability 8.6, here is 12.0"),
        ("tensorrt", version, GPU, "it has none"),
    ):
        with pytest.raises(EngineError, match=message) as error:
            choose_plan(variant, runtime, number, gpu)
        assert "streamsplat-edge build" in error.value.hint
    path = folder / variant.plans[0].entry.file
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(EngineError, match="truncated or was changed"):
        choose_plan(variant, "tensorrt_rtx", version, GPU)


def spoiled(folder: Path, how: str) -> str:
    """Spoil the plan of `encode`; gives its file's name in the bundle."""
    name = next(p.file for p in Bundle.load(folder).plans if p.stage == "encode")
    if how == "missing":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes((folder / name).read_bytes() + b"x")
    return name


@pytest.mark.parametrize("how", ["missing", "truncated or was changed"])
@pytest.mark.parametrize("force", [False, True])
def test_a_spoiled_plan_stops_nobody_else_and_is_mended(folder: Path, how: str, force: bool) -> None:
    version = build_bundle(folder, OPTIONS)[0].entry.version
    name = spoiled(folder, how)
    bundle = Bundle.load(folder)
    assert create("onnxruntime", bundle.variants("encode")[0], device="cpu").stage == "encode"
    with pytest.raises(EngineError, match=f"{name} is {how}") as error:
        choose_plan(bundle.variants("encode")[0], "tensorrt_rtx", version, GPU)
    assert "streamsplat-edge build" in error.value.hint
    assert bundle.unusable_plans() == {name: f"is {how}"}
    assert f"NOT USABLE: {name} is {how}" in "\n".join(describe(bundle))
    assert [p.reused for p in build_bundle(folder, OPTIONS, force=force)] == [False, not force]
    mended = Bundle.load(folder)
    assert not mended.unusable_plans() and len(mended.plans) == 2
    assert choose_plan(mended.variants("encode")[0], "tensorrt_rtx", version, GPU)
    assert {f"plans/{path.name}" for path in (folder / "plans").iterdir()} == {p.file for p in mended.plans}


def test_a_rebuild_that_is_interrupted_leaves_the_plans_that_were_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any moment: here between writing the plan and entering it, and then it is tidied up after."""
    before = build_bundle(folder, OPTIONS)
    build, number = build_module.build_plan, 0

    def different(*arguments: Any, **options: Any) -> Any:  # as TensorRT's are, from build to build
        nonlocal number
        number += 1
        content, found = build(*arguments, **options)
        return content + bytes([number]), found

    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(build_module, "build_plan", different)
    with monkeypatch.context() as patch:
        patch.setattr(build_module, "store", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_bundle(folder, OPTIONS, force=True)
    bundle = Bundle.load(folder)
    assert bundle.plans == tuple(p.entry for p in before) and not bundle.unusable_plans()
    assert len(list((folder / "plans").iterdir())) == 3
    (folder / before[0].entry.file).with_suffix(".cache").write_bytes(b"kernels of the old plan")
    build_bundle(folder, OPTIONS, force=True)
    bundle = Bundle.load(folder)
    assert len(bundle.plans) == 2 and not bundle.unusable_plans()
    assert {f"plans/{path.name}" for path in (folder / "plans").iterdir()} == {p.file for p in bundle.plans}


def test_plans_are_not_written_outside(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (folder / "plans").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="a link to outside the bundle folder"):
        build_bundle(folder, OPTIONS)
    (folder / "plans").unlink()
    (folder / "plans").write_text("")
    with pytest.raises(OutputError):
        build_bundle(folder, OPTIONS)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_an_interrupted_build_goes_on_where_it_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build, calls = build_module.build_plan, []

    def interrupted(variant: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(variant.stage)
        if calls == ["encode", "deform"]:
            raise KeyboardInterrupt
        return build(variant, *arguments, **options)

    monkeypatch.setattr(build_module, "build_plan", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_bundle(folder, OPTIONS)
    assert [plan.stage for plan in Bundle.load(folder).plans] == ["encode"]
    assert [plan.reused for plan in build_bundle(folder, OPTIONS)] == [True, False]
    assert calls == ["encode", "deform", "deform"]
    assert sorted(p.suffix for p in (folder / "plans").iterdir()) == [".plan", ".plan"]


def test_a_plan_of_another_device_is_refused(folder: Path) -> None:
    entry = {
        "stage": "encode", "file": "plans/e.plan", "sha256": "0" * 64, "bytes": 4, "runtime": "tensorrt",
        "version": "10.3.0", "device": "Orin", "compute_capability": "8.7",
        "onnx_sha256": Bundle.load(folder).variants("encode")[0].sha256, "settings": {},
    }  # fmt: skip
    (folder / "plans").mkdir()
    (folder / "plans/e.plan").write_bytes(b"plan")
    bundle = store(folder, {"plans": [entry]})
    with pytest.raises(EngineError, match="built on Orin, here is RTX"):
        choose_plan(bundle.variants("encode")[0], "tensorrt", "10.3.0", GPU)
    with pytest.raises(EngineError, match="no CUDA device"):
        create("tensorrt_rtx", bundle.variants("encode")[0], device="cuda")
    with pytest.raises(EngineError, match="runs on a GPU"):
        create("tensorrt_rtx", bundle.variants("encode")[0], device="cpu")


def test_refusals(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(message: str, **changes: Any) -> None:
        with pytest.raises(EngineError, match=message) as error:
            build_bundle(folder, replace(OPTIONS, **changes))
        assert error.value.hint

    refuses("cannot build for compute capability 8.7", capabilities=("8.7",))
    monkeypatch.setattr(driver, "cuda_device", lambda: None)
    refuses("no CUDA device here to build for", capabilities=())
    refuses("Version-compatible plans need a GPU", version_compatible=True)
    monkeypatch.setattr(trt_api, "supported_capabilities", lambda _: {})
    refuses("builds for the GPU that is present")
    with pytest.raises(BundleError, match="at precision fp16"):
        Bundle.load(folder).variant("encode", "tensorrt_rtx", "fp16")
    assert not Bundle.load(folder).plans


def test_precisions_that_a_device_lacks() -> None:
    trt_api.check_capability("fp8", "8.9")
    trt_api.check_capability("fp16", "8.7")
    with pytest.raises(EngineError, match=r"8.7 \(Orin\) does not compute in FP8"):
        trt_api.check_capability("fp8", "8.7")
    with pytest.raises(EngineError, match="bf16"):
        trt_api.check_capability("bf16", "7.5")


def test_a_plan_in_another_precision_is_listed() -> None:
    layers = [PlanLayer("a", "gemm", "fp32", ("x/MatMul",), False), PlanLayer("b", "kgen", "fp16", (), True)]
    found = inspect(layers, {"x/MatMul": "fp16"})
    assert found.wrong == ("fp32 instead of fp16: x/MatMul (a)",) and found.attentions == 1
    assert not inspect(layers, {"x/MatMul": "fp32"}).wrong


def test_quantised_products_may_be_raised_but_not_all_of_them() -> None:
    """The builder may dequantise a weight and multiply in floating point; where it does so everywhere, or
    computes another low type, the plan is not what was asked for."""
    low = PlanLayer("a", "gemm", "fp8", ("a",), False)
    raised = PlanLayer("b", "gemm", "fp16", ("b",), False)
    expected = {"a": "fp8", "b": "fp8"}
    found = inspect([low, raised], expected)
    assert found.wrong == () and found.raised == ("fp16 instead of fp8: b (b)",)
    assert found.products == {"fp8": 1, "fp16": 1} and found.to_json()["raised"] == list(found.raised)
    for_nothing = inspect([raised], expected)
    assert for_nothing.wrong == ("fp16 instead of fp8: b (b)",) and for_nothing.raised == ()
    other = inspect([low, PlanLayer("b", "gemm", "int8", ("b",), False)], expected)
    assert other.wrong == ("int8 instead of fp8: b (b)",)


def _graph(path: Path, operator: str) -> None:
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node(operator, ["x"], ["y"], name="stage/Broken", domain="")
    io = [[value(name, onnx.TensorProto.FLOAT, [2, 2])] for name in "xy"]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", *io))
    model.opset_import[0].version = 20
    onnx.save(model, path)


def test_parser_and_memory_errors_name_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = trt_api.load("tensorrt_rtx")
    path = tmp_path / "stage.onnx"
    variant = SimpleNamespace(path=path, stage="encode", precision="fp32")
    _graph(path, "Det")
    with pytest.raises(BuildError, match="Det stage/Broken"):
        build_module.build_plan(variant, module, OPTIONS)  # type: ignore[arg-type]
    _graph(path, "Relu")

    def fails(self: Any, *_: Any) -> None:
        log[0].errors.append("Cuda failure: out of memory")

    log: list[Any] = []
    make = build_module.BuildLog

    def kept(module: Any) -> Any:
        log.append(make(module))
        return log[0]

    monkeypatch.setattr(build_module, "BuildLog", kept)
    monkeypatch.setattr(module.Builder, "build_serialized_network", fails)
    with pytest.raises(BuildError, match="ran out of memory: Cuda failure") as error:
        build_module.build_plan(variant, module, OPTIONS)  # type: ignore[arg-type]
    assert "--workspace" in error.value.hint


def test_a_driver_older_than_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its words go to the logger, and Python hears of a factory that returned nullptr."""
    module = trt_api.load("tensorrt_rtx")

    class Builder:
        def __init__(self, logger: Any) -> None:
            logger.log(module.ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(module, "Builder", Builder)
    variant = SimpleNamespace(path=tmp_path / "stage.onnx", stage="encode", precision="fp32")
    with pytest.raises(
        EngineError, match="cannot start here: CUDA initialization failure with error: 35"
    ) as e:
        build_module.build_plan(variant, module, OPTIONS)  # type: ignore[arg-type]
    assert "update the driver" in e.value.hint


_CYCLE = """
import gc, sys
from pathlib import Path
from types import SimpleNamespace
from streamsplat_edge.export.build import BuildError, BuildOptions, build_plan
from streamsplat_edge.runtime.engines import trt_api

module = trt_api.load("tensorrt_rtx")
variant = SimpleNamespace(path=Path(sys.argv[1]), stage="encode", precision="fp32")


def collector(frame, event, argument):  # comes at the worst moment, where it may come at all
    if event == "call" and frame.f_code.co_name == "log" and gc.isenabled():
        gc.collect()


gc.set_threshold(0)
sys.setprofile(collector)
for _ in range(2):
    try:
        build_plan(variant, module, BuildOptions("tensorrt_rtx", capabilities=("8.6",)))
    except BuildError as error:
        error.itself = error  # the failed build's builder now lives until the collector finds this cycle
print("ended", gc.isenabled())
"""


def test_collector_does_not_free_a_builder_inside_the_logger(tmp_path: Path) -> None:
    """In a process of its own: where it fails, TensorRT waits for itself for ever."""
    _graph(tmp_path / "stage.onnx", "Det")
    command = [sys.executable, "-c", _CYCLE, str(tmp_path / "stage.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "ended True\n"


class MeasuringConfig:
    """The timing cache of `tensorrt`: IBuilderConfig's calls, on bytes."""

    kept = b""

    def create_timing_cache(self, content: bytes) -> bytes:
        return content

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        accepted = not cache or cache.startswith(b"measured")
        self.kept = cache if accepted else self.kept
        return accepted

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: self.kept + b"measured")


def test_timing_cache_goes_from_build_to_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rtx = trt_api.load("tensorrt_rtx")
    assert not trt_api.use_timing_cache(rtx, MeasuringConfig(), b""), "RTX measures nothing"  # type: ignore[arg-type]
    config, module = MeasuringConfig(), SimpleNamespace(__version__="10.3.0")
    for content, kept in ((b"", b""), (b"measured", b"measured"), (b"of another GPU", b"")):
        assert trt_api.use_timing_cache(module, config, content) and config.kept == kept  # type: ignore[arg-type]
    real = {name for name in vars(MeasuringConfig) if name.endswith("timing_cache")}
    assert all(hasattr(rtx.IBuilderConfig, name) for name in real)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = build_module.timing_cache_path("tensorrt", module, "Orin (nvgpu)")
    assert path == tmp_path / "cache/streamsplat-edge/tensorrt-10.3.0.orin--nvgpu.timing"
    # A whole build with a cache, as if RTX measured.
    monkeypatch.setattr(
        trt_api, "use_timing_cache", lambda _module, _config, known: seen.append(known) or True
    )
    monkeypatch.setattr(trt_api, "timing_cache", lambda _config: b"measured")
    seen: list[bytes] = []
    stage = tmp_path / "stage.onnx"
    _graph(stage, "Relu")
    variant = SimpleNamespace(path=stage, stage="encode", precision="fp32")
    for _ in range(2):
        build_module.build_plan(variant, rtx, OPTIONS, timing=path)  # type: ignore[arg-type]
    assert seen == [b"", b"measured"] and path.read_bytes() == b"measured"


def test_inspector_of_tensorrt_10_and_11() -> None:
    nodes = "[ONNX Layer: a/MatMul]"
    tens = {"Name": "x", "Format/Datatype": "Row major linear FP16 format"}
    elevens = {"Name": "x", "Format": "Row major linear", "DataType": "Half"}
    for tensor in (tens, elevens):
        layer = {"Name": "l", "LayerType": "gemm", "Inputs": [tensor], "Metadata": nodes}
        (found,) = from_inspector(json.dumps({"Layers": [layer, "a name only"]}))
        assert (found.type, found.nodes, found.kind) == ("fp16", ("a/MatMul",), "gemm")
