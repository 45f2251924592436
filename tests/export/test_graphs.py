"""What the options of `export` do to graphs: operator set 23, free batch, weights apart, another size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from small_model import ATTENDING, MATCHING, small_model, write_checkpoint

from streamsplat_edge.export import graphs as graphs_module
from streamsplat_edge.export.export import GraphOptions, export_bundle
from streamsplat_edge.export.graphs import write_graph
from streamsplat_edge.export.load import Source, load
from streamsplat_edge.export.resize import nearest_window, resized, resized_config
from streamsplat_edge.export.stages import ConditionStage, StageGraph
from streamsplat_edge.runtime.bundle import Bundle, StageVariant
from streamsplat_edge.runtime.bundle_writing import VariantSource, write_bundle
from streamsplat_edge.runtime.engines import create
from streamsplat_edge.runtime.errors import BundleError, EngineError, InputError
from streamsplat_edge.training.config import PRESETS


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The attention decoder in fp16 with operator set 23 and a free batch; export has verified it."""
    folder = tmp_path_factory.mktemp("free")
    source = Source(write_checkpoint(ATTENDING, folder / "model.safetensors"))
    bundle, report = export_bundle(source, folder / "free.bundle", options=GraphOptions(("fp16",), 23, True))
    at_3 = {(c.stage, c.output) for c in report.comparisons if c.backend == "onnxruntime batch 3"}
    assert at_3 == {(c.stage, c.output) for c in report.comparisons if c.backend == "onnxruntime"}
    assert {stage for stage, _ in at_3} == {"encode", "deform"} and not report.failures
    return bundle


def test_operator_set_23_has_operators_of_its_own(free: Bundle) -> None:
    kinds = {
        stage: [node.op_type for node in onnx.load(free.variants(stage)[0].path).graph.node]
        for stage in free.stage_names
    }
    blocks = ATTENDING.encoder_depth + ATTENDING.upsample_blocks[0]
    assert kinds["encode"].count("Attention") == blocks
    assert kinds["encode"].count("RMSNormalization") >= 2 * blocks
    # Self-attention and cross-attention of each decoder block, and the upsampler's.
    assert kinds["deform"].count("Attention") == 2 * ATTENDING.decoder_depth + ATTENDING.upsample_blocks[0]
    assert "Softmax" not in kinds["encode"] + kinds["deform"]


def test_the_batch_is_free_and_the_manifest_says_1(free: Bundle) -> None:
    for stage in free.stage_names:
        variant = free.variants(stage)[0]
        graph = onnx.load(variant.path).graph
        for value in (*graph.input, *graph.output):
            first, *rest = value.type.tensor_type.shape.dim
            assert first.dim_param in ("batch", "2*batch") and all(size.dim_value for size in rest)
        assert {spec.shape[0] for spec in variant.inputs} == {1}
        create("onnxruntime", variant).close()


def test_a_free_batch_builds_with_a_profile(free: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx", reason="plans need TensorRT-RTX")
    from streamsplat_edge.export.plan_builder import BuildOptions, build_plan
    from streamsplat_edge.runtime.engines import trt_api

    options = BuildOptions("tensorrt_rtx", capabilities=("8.6",), max_batch=4)
    _, found = build_plan(free.variants("encode")[0], trt_api.load("tensorrt_rtx"), options)
    assert found.products["fp16"] > 5


def test_weights_apart_and_a_free_batch_in_the_cpu_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the limit of an ONNX file, here made small, weights go beside it, and the bundle knows them."""
    monkeypatch.setattr(graphs_module, "_EMBEDDED_LIMIT", 1000)
    module = ConditionStage(small_model(MATCHING))
    rgb = torch.rand(1, 3, MATCHING.height, MATCHING.width, generator=torch.Generator().manual_seed(0))
    stage = StageGraph("condition", module, {"rgb": rgb}, ("condition",))
    graph = write_graph(stage, tmp_path / "condition.onnx", dynamic_batch=True)
    assert graph.weights == tmp_path / "condition.onnx.data" and graph.weights.stat().st_size > 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["condition.onnx", "condition.onnx.data"]
    with torch.no_grad():
        wanted = module(rgb).numpy()
    specs = (graph.inputs, graph.outputs)
    engines = ("onnxruntime", "openvino")
    variant = StageVariant("condition", graph.path, "fp32", engines, *specs, "0" * 64, graph.weights)
    for name in engines:
        got = np.empty(wanted.shape, np.float32)
        with create(name, variant, precision="fp32") as engine:
            engine.run({"rgb": rgb.numpy()}, {"condition": got})
        assert np.allclose(got, wanted, atol=1e-5), name
    graph.weights.unlink()
    with pytest.raises((BundleError, EngineError)):
        create("onnxruntime", variant)


def test_weights_apart_are_part_of_the_bundle(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: dict[str, list[VariantSource]] = {}
    for stage in bundle.stage_names:
        variant = bundle.variants(stage)[0]
        path = tmp_path / variant.path.name
        data = path.with_name(f"{path.name}.data")
        onnx.save(onnx.load(variant.path), path, save_as_external_data=True, location=data.name)
        files[stage] = [VariantSource(path, variant.inputs, variant.outputs, weights=data)]
    copy = write_bundle(tmp_path / "x.bundle", "x", bundle.model, files, provenance={}, quality={})
    weights = copy.variants("encode")[0].weights
    assert weights is not None and weights.parent == copy.path
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleError, match=r"encode\.onnx\.data"):
        Bundle.load(copy.path)


def test_another_size_keeps_the_weights_and_moves_the_tables() -> None:
    model = small_model(ATTENDING)
    assert resized(model, ATTENDING.height, ATTENDING.width) is model
    rows, cols = ATTENDING.token_grid
    large = resized(model, 2 * ATTENDING.height, 2 * ATTENDING.width)
    assert large.config.upsample_windows == ATTENDING.upsample_windows
    names = [name for name in large.state_dict() if name.endswith(".pe")]
    assert names
    for name in names:
        before, after = model.state_dict()[name], large.state_dict()[name]
        grid = after.reshape(2 * rows, 2 * cols, -1)
        # A token takes the row of the trained token at its place in the image.
        assert torch.equal(grid[::2, ::2].reshape(before.shape), before)
        assert torch.equal(grid[1::2, 1::2].reshape(before.shape), before)
    same = {k: v for k, v in model.state_dict().items() if v.shape == large.state_dict()[k].shape}
    assert len(same) > 20 and all(torch.equal(v, large.state_dict()[k]) for k, v in same.items())
    with torch.no_grad():
        tokens, features, gaussians = large.encode(
            torch.rand(1, 4, 2 * ATTENDING.height, 2 * ATTENDING.width)
        )
        motion, _ = large.deform(tokens[None].expand(1, 2, -1, -1), features[None].expand(1, 2, -1, -1))
    assert gaussians.shape == (1, large.config.gaussians, 9) and motion.isfinite().all()


@pytest.mark.parametrize(("height", "width"), [(80, 160), (24, 56)])
def test_a_token_takes_the_row_of_the_trained_token_nearest_to_its_place(height: int, width: int) -> None:
    model = small_model(ATTENDING)
    other = resized(model, height, width)
    (old, new), name = (
        (config.token_grid for config in (model.config, other.config)),
        "gs_predictor.encoder.transformer_encoder.positional_encoding.pe",
    )
    trained, moved = (m.state_dict()[name].reshape(*grid, -1) for m, grid in ((model, old), (other, new)))
    for axis in (0, 1):
        lines = trained.select(1 - axis, 0), moved.select(1 - axis, 0)
        for i, row in enumerate(lines[1]):
            place = (i + 0.5) / new[axis]
            distances = [abs((j + 0.5) / old[axis] - place) for j in range(old[axis])]
            nearest = [j for j, d in enumerate(distances) if d < min(distances) + 1e-9]
            assert any(torch.equal(row, lines[0][j]) for j in nearest), (axis, i)


def test_the_learned_embedding_is_averaged_where_tokens_get_fewer() -> None:
    """What changes from token to token is noise at a third of the size: one in three of it would stay."""
    name = "decoder.transformer_decoder.positional_embedding"
    model = small_model(resized_config(ATTENDING, 96, 192))
    rows, cols = model.config.token_grid
    fine = (-1.0) ** torch.arange(cols).expand(rows, -1).reshape(-1)
    model.state_dict()[name].copy_(fine.repeat(2)[None, :, None])
    small = resized(model, 32, 64).state_dict()[name]
    assert small.shape[1] == 2 * 4 * 8 and small.abs().max() < 0.2
    model.state_dict()[name].copy_(torch.linspace(-1, 1, cols).repeat(2 * rows)[None, :, None])
    even = resized(model, 32, 64).state_dict()[name][0, :8, 0]
    assert torch.allclose(even[2:-2].diff(), torch.full((3,), 6 / (cols - 1)), atol=1e-3)


def test_sizes_of_the_stages(checkpoint: Path) -> None:
    loaded = load(Source(checkpoint, size=(48, 96)))
    shapes = {g.name: {k: tuple(v.shape) for k, v in g.inputs.items()} for g in loaded.graphs()}
    assert shapes["encode"] == {"rgbd": (1, 4, 48, 96)} and shapes["condition"] == {"rgb": (1, 3, 48, 96)}
    assert shapes["deform"]["condition_1"] == (1, 12 * 24, MATCHING.condition_dim)
    for graph in loaded.graphs():
        with torch.no_grad():
            graph.module(*graph.inputs.values())
    base = resized_config(PRESETS["base"], 144, 256)
    assert base.condition_len == 9 * 16 and base.upsample_windows == (2304, 2304)
    with pytest.raises(InputError, match="multiples of 16"):
        load(Source(checkpoint, size=(40, 64)))


def test_windows_divide_the_tokens() -> None:
    """The nearest even length in proportion."""
    assert nearest_window(128, 1152) == 128 and nearest_window(100, 1152) == 96
    assert nearest_window(64, 4 * 9 * 25) == 60
    assert nearest_window(28, 1152) == 32, "24 and 32 are equally far, but not in proportion"
