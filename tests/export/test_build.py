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

from streamsplat_edge.cli import main
from streamsplat_edge.commands.info import describe
from streamsplat_edge.export import build as build_module
from streamsplat_edge.export import plan_builder
from streamsplat_edge.export.build import build_bundle
from streamsplat_edge.export.build_errors import BuildError, build_error
from streamsplat_edge.export.plan_builder import BuildOptions
from streamsplat_edge.export.plan_layers import Inspection, PlanLayer, inspect
from streamsplat_edge.runtime.bundle import Bundle, StageVariant, TensorSpec
from streamsplat_edge.runtime.bundle_writing import store
from streamsplat_edge.runtime.cuda import driver
from streamsplat_edge.runtime.engines import create, trt_api
from streamsplat_edge.runtime.engines.plan_choice import choose_plan
from streamsplat_edge.runtime.errors import BundleError, EngineError, InputError, MismatchError, OutputError

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

    monkeypatch.setattr(plan_builder, "inspect", counted)


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
    shown = "\n".join(describe(Bundle.load(folder)))
    assert "on compute capability 8.6;" in shown and "on compute capability 8.0, 8.9" in shown
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


def test_a_plan_changed_in_place_is_found_by_who_uses_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`info` says that it does not look so closely."""
    version = build_bundle(folder, OPTIONS)[0].entry.version
    name = next(p.file for p in Bundle.load(folder).plans if p.stage == "encode")
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    bundle = Bundle.load(folder)
    shown = "\n".join(describe(bundle))
    assert "NOT USABLE" not in shown and "(sizes compared; an engine that loads a plan, and build," in shown
    assert main(["info", str(folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["hashes_verified"], report["plan_hashes_verified"]) == (True, False)
    with pytest.raises(EngineError, match=f"{name} is truncated or was changed"):
        choose_plan(bundle.variants("encode")[0], "tensorrt_rtx", version, GPU)
    assert [p.reused for p in build_bundle(folder, OPTIONS)] == [False, True]


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
    refuses("run with the version that built them", version_compatible=True)
    refuses("run with the version that built them", hardware_compatible=True)
    monkeypatch.setattr(driver, "cuda_device", lambda: None)
    refuses("no CUDA device here to build for", capabilities=())
    monkeypatch.setattr(trt_api, "supported_capabilities", lambda _: {})
    refuses("builds for the GPU that is present")
    with pytest.raises(BundleError, match="at precision fp16"):
        Bundle.load(folder).variant("encode", "tensorrt_rtx", "fp16")
    assert not Bundle.load(folder).plans


def test_a_largest_batch_that_cannot_be(folder: Path) -> None:
    with pytest.raises(BuildError, match=r"fixed batch size.* up to 4") as error:
        build_bundle(folder, replace(OPTIONS, max_batch=4))
    assert "--dynamic-batch" in error.value.hint
    for batch in (0, -3):
        with pytest.raises(InputError, match=f"largest batch is {batch}"):
            build_bundle(folder, replace(OPTIONS, max_batch=batch))
    assert not Bundle.load(folder).plans


def test_precisions_that_a_device_lacks() -> None:
    trt_api.check_capability("fp8", "8.9")
    trt_api.check_capability("fp16", "8.7")
    with pytest.raises(EngineError, match=r"8.7 \(Orin\) does not compute in FP8"):
        trt_api.check_capability("fp8", "8.7")
    with pytest.raises(EngineError, match="bf16"):
        trt_api.check_capability("bf16", "7.5")


def _graph(path: Path, operator: str) -> None:
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node(operator, ["x"], ["y"], name="stage/Broken", domain="")
    io = [[value(name, onnx.TensorProto.FLOAT, [2, 2])] for name in "xy"]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", *io))
    model.opset_import[0].version = 20
    onnx.save(model, path)


def _stage(path: Path) -> StageVariant:
    """What `_graph` writes, as a stage."""
    tensors = [(TensorSpec(name, (2, 2)),) for name in "xy"]
    return StageVariant("encode", path, "fp32", (), *tensors, "0" * 64)


def test_a_file_that_the_manifest_does_not_describe_is_not_built(tmp_path: Path) -> None:
    """It was, and the plan was refused on the device."""
    module, path = trt_api.load("tensorrt_rtx"), tmp_path / "stage.onnx"
    _graph(path, "Relu")
    plan_builder.build_plan(_stage(path), module, OPTIONS)
    for change, message in (
        ({"inputs": (TensorSpec("rgb", (2, 2)),)}, "has the inputs x; the manifest says rgb"),
        ({"outputs": (TensorSpec("y", (2, 3)),)}, r"output `y` is float32\(2, 2\); the manifest says"),
        ({"inputs": (TensorSpec("x", (2, 2), "float16"),)}, "input `x` is float32"),
    ):
        with pytest.raises(MismatchError, match=message):
            plan_builder.build_plan(replace(_stage(path), **change), module, OPTIONS)


def test_parser_and_memory_errors_name_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = trt_api.load("tensorrt_rtx")
    path = tmp_path / "stage.onnx"
    variant = _stage(path)
    _graph(path, "Det")
    with pytest.raises(BuildError, match="Det stage/Broken"):
        plan_builder.build_plan(variant, module, OPTIONS)
    _graph(path, "Relu")

    def fails(self: Any, *_: Any) -> None:
        log[0].errors.append("Cuda failure: out of memory")

    log: list[Any] = []
    make = plan_builder.BuildLog

    def kept(module: Any) -> Any:
        log.append(make(module))
        return log[0]

    monkeypatch.setattr(plan_builder, "BuildLog", kept)
    monkeypatch.setattr(module.Builder, "build_serialized_network", fails)
    with pytest.raises(BuildError, match="ran out of memory: Cuda failure") as error:
        plan_builder.build_plan(variant, module, OPTIONS)
    assert "--workspace" in error.value.hint


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (Inspection(1, 0, {"fp32": 1}, ("fp32 instead of fp16: a (b)",)), "fp32 instead of fp16: a"),
        (Inspection(1, 0, {}, ()), "cannot be inspected: tensorrt_rtx"),
    ],
)
def test_a_plan_that_is_wrong_or_unknown_is_discarded(
    folder: Path, found: Inspection, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_builder, "inspect", lambda *_: found)
    with pytest.raises(BuildError, match=message) as error:
        build_bundle(folder, OPTIONS)
    assert "discarded" in error.value.hint
    assert not Bundle.load(folder).plans and not list(folder.glob("plans/*"))


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("no tactics to implement the operation within workspace limit", "--workspace 2G"),  # RTX
        ("Could not find any implementation for node stage/Relu.", "--workspace 2G"),  # TensorRT 10
        ("Cannot compile operation for Turing (SM75): FP32 GEMM is not supported", "--runtime tensorrt on"),
        ("something else", "Try --opset 20"),
    ],
)
def test_what_to_do_follows_from_what_the_builder_says(said: str, hint: str) -> None:
    variant = SimpleNamespace(path=Path(__file__).parents[2] / "demo/tiny.bundle/condition.onnx", stage="c")
    log = SimpleNamespace(errors=[said], out_of_memory="")
    error = build_error(variant, log, "tensorrt_rtx")  # type: ignore[arg-type]
    assert said.split()[0] in error.message and hint in error.hint


def test_a_driver_older_than_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its words go to the logger, and Python hears of a factory that returned nullptr."""
    module = trt_api.load("tensorrt_rtx")

    class Builder:
        def __init__(self, logger: Any) -> None:
            logger.log(module.ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(module, "Builder", Builder)
    variant = _stage(tmp_path / "stage.onnx")
    with pytest.raises(
        EngineError, match="cannot start here: CUDA initialization failure with error: 35"
    ) as e:
        plan_builder.build_plan(variant, module, OPTIONS)
    assert "update the driver" in e.value.hint


_CYCLE = """
import gc, sys
from pathlib import Path
from streamsplat_edge.export.build_errors import BuildError
from streamsplat_edge.export.plan_builder import BuildOptions, build_plan
from streamsplat_edge.runtime.bundle import StageVariant, TensorSpec
from streamsplat_edge.runtime.engines import trt_api

module = trt_api.load("tensorrt_rtx")
tensors = [(TensorSpec(name, (2, 2)),) for name in "xy"]
variant = StageVariant("encode", Path(sys.argv[1]), "fp32", (), *tensors, "0" * 64)


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
    variant = _stage(stage)
    for _ in range(2):
        plan_builder.build_plan(variant, rtx, OPTIONS, timing=path)
    assert seen == [b"", b"measured"] and path.read_bytes() == b"measured"


class FreeEngine:
    """A plan of TensorRT with a free batch: formats are known to an inspector that was given a context."""

    num_io_tensors = 2
    execution_context: Any = None

    def get_tensor_name(self, i: int) -> str:
        return "xy"[i]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "x" else "out"

    def get_tensor_shape(self, _name: str) -> tuple[int, ...]:
        return (-1, 3)

    def create_execution_context(self) -> Any:
        shapes: dict[str, tuple[int, ...]] = {}
        return SimpleNamespace(shapes=shapes, set_input_shape=shapes.__setitem__)

    def create_engine_inspector(self) -> FreeEngine:
        return self

    def get_engine_information(self, _format: str) -> str:
        known = self.execution_context is not None and self.execution_context.shapes == {"x": (1, 3)}
        words = "Row major linear FP16 format" if known else "N/A due to dynamic shapes"
        tensor = {"Name": "x", "Dimensions": [-1, 3], "Format/Datatype": words}
        return json.dumps({"Layers": [{"Name": "l", "LayerType": "gemm", "Inputs": [tensor]}]})


def test_a_plan_with_a_free_batch_is_inspected_at_one(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(
        TensorIOMode=SimpleNamespace(INPUT="in"), LayerInformationFormat=SimpleNamespace(JSON="json")
    )
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda _content: FreeEngine())
    monkeypatch.setattr(trt_api, "started", lambda *_: runtime)
    log = SimpleNamespace(logger=None, errors=[])
    (layer,) = plan_builder._inspected(module, log, b"", OPTIONS)  # type: ignore[arg-type]
    assert layer.type == "fp16"
    rtx = trt_api.load("tensorrt_rtx")
    assert hasattr(rtx.EngineInspector, "execution_context") and hasattr(rtx.TensorIOMode, "INPUT")
