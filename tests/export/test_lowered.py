"""Which layers a lower precision reaches, what it refuses, and normalisations folded into convolutions."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from small_model import ATTENDING, MATCHING, small_model
from torch import Tensor, nn

from streamsplat_edge.export.emulate import write_emulation
from streamsplat_edge.export.precision import PRECISIONS, lowered
from streamsplat_edge.export.small import ConvDepthStage, fold
from streamsplat_edge.export.stages import ConditionStage, StageGraph, stage_graphs
from streamsplat_edge.runtime.errors import InputError
from streamsplat_edge.training.conv_depth import ConvDepth
from streamsplat_edge.training.modules import Attention

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
FP32, FP16, BF16 = PRECISIONS.values()


def graphs(kind: str) -> dict[str, StageGraph]:
    if kind == "attending":
        return {g.name: g for g in stage_graphs(small_model(ATTENDING))}
    model = small_model(MATCHING)
    depth = ConvDepthStage(model.depth_encoder, MATCHING.height, MATCHING.width)
    return {g.name: g for g in stage_graphs(model, ConditionStage(model), depth)}


def products(module: nn.Module) -> dict[str, nn.Module]:
    return {n: m for n, m in module.named_modules() if isinstance(m, (nn.Linear, *CONVOLUTIONS))}


def is_head(name: str, stage: str) -> bool:
    """Layers that say positions, colours, scales, opacities, motion and depth."""
    ends = (".flow", "predictor.colour_filter", *(("model.head",) if stage == "depth" else ()))
    return "predictor.gs_layer." in name or name.endswith(ends)


def run(module: nn.Module, graph: StageGraph) -> tuple[tuple[Tensor, ...], dict[str, torch.dtype]]:
    """What comes out of it, and the type of what comes out of each product that ran."""
    seen: dict[str, torch.dtype] = {}
    names = {product: name for name, product in products(module).items()}

    def note(product: nn.Module, _inputs: object, output: Tensor) -> None:
        seen[names[product]] = output.dtype

    hooks = [product.register_forward_hook(note) for product in names]
    with torch.no_grad():
        found = module(*graph.inputs.values())
    for hook in hooks:
        hook.remove()
    return found if isinstance(found, tuple) else (found,), seen


@pytest.mark.parametrize("kind", ["matching", "attending"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_products_go_down_and_heads_do_not(kind: str, precision: str) -> None:
    """And what goes down takes and gives it, but in matching, which adds and compares in float32 between."""
    for graph in graphs(kind).values():
        before = copy.deepcopy(graph.module.state_dict())
        low = lowered(graph.module, precision, 22)
        types = {name: module.weight.dtype for name, module in products(low).items()}
        down = {name for name, kind_ in types.items() if kind_ == PRECISIONS[precision]}
        assert down == {name for name in types if not is_head(name, graph.name)}, graph.name
        # Nothing but products: norms, tables and embeddings are not.
        kept = {n for n, p in low.named_parameters() if p.dtype != FP32}
        assert {n.rpartition(".")[0] for n in kept} == down
        # The module itself stays as it was.
        after = graph.module.state_dict()
        assert all(torch.equal(v, after[k]) and v.dtype == after[k].dtype for k, v in before.items())

        got, seen = run(low, graph)
        wanted, _ = run(graph.module, graph)
        for a, b in zip(got, wanted, strict=True):
            assert a.dtype == FP32
            assert 0 < (a - b).norm() < (0.02 if precision == "fp16" else 0.1) * b.norm(), graph.name
        for name, kind_ in seen.items():
            matching = kind == "matching" and graph.name == "deform" and name.startswith("model.decoder.")
            assert kind_ == (FP32 if matching else types[name]), (graph.name, name)


def test_fp32_is_the_module_itself() -> None:
    module = nn.Linear(2, 2)
    assert lowered(module, "fp32") is module


def test_attention_reads_its_projection_in_the_lower_precision() -> None:
    attention = Attention(16, 8)
    x, other = torch.randn(1, 4, 16), torch.randn(1, 5, 16)
    assert lowered(attention, "fp16")(x, other).dtype == FP16


@pytest.mark.parametrize(
    ("precision", "opset", "convolution", "transposed"),
    [("fp16", 18, FP16, FP16), ("bf16", 21, FP32, FP32), ("bf16", 22, BF16, FP32), ("bf16", 25, BF16, FP32)],
)
def test_convolutions_that_an_operator_set_has_no_bf16_for_stay(
    precision: str, opset: int, convolution: torch.dtype, transposed: torch.dtype
) -> None:
    module = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ConvTranspose2d(1, 1, 1), nn.Linear(4, 4))
    low = lowered(module, precision, opset)
    assert [part.weight.dtype for part in low] == [convolution, transposed, PRECISIONS[precision]]
    assert low(torch.zeros(1, 1, 4, 4)).dtype == PRECISIONS[precision]


@pytest.mark.parametrize("value", [7e4, -7e4])
@pytest.mark.parametrize("leaf", ["weight", "bias"])
def test_one_weight_beyond_the_range_of_fp16_is_refused(value: float, leaf: str) -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        getattr(module[1], leaf).view(-1)[0] = value
    with pytest.raises(
        InputError, match=rf"Weight 1\.{leaf} reaches 70000, which torch.float16 cannot"
    ) as error:
        lowered(module, "fp16")
    assert "bf16" in error.value.hint
    assert lowered(module, "bf16")[1].weight.dtype == BF16
    with torch.no_grad():
        getattr(module[1], leaf).view(-1)[0] = 65504.0  # the largest that it has
    lowered(module, "fp16")
    with torch.no_grad():
        getattr(module[1], leaf).view(-1)[0] = torch.inf  # is no overflow
    lowered(module, "fp16")


def test_folded_normalisations_compute_the_same() -> None:
    torch.manual_seed(0)
    network = ConvDepth()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:  # as after training, none of them at rest
        nn.init.uniform_(norm.weight, 0.5, 2.0)
        nn.init.normal_(norm.bias)
        assert norm.running_mean is not None and norm.running_var is not None
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    before = copy.deepcopy(network.state_dict())
    stage = ConvDepthStage(network, 32, 64)
    assert stage.input_size == (32, 64) and len(norms) > 5
    assert not [m for m in stage.modules() if isinstance(m, nn.BatchNorm2d)]
    # What is being trained goes on as it was.
    assert network.training and [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)] == norms
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in before.items())
    rgb = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        got, wanted = stage(rgb), network.eval()(rgb)
    assert wanted.std() > 1e-3 and torch.allclose(got, wanted, rtol=1e-4, atol=1e-5)
    # The last of a row, and one that follows no convolution.
    row = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)).eval()
    fold(row)
    assert [type(part) for part in row] == [nn.BatchNorm2d, nn.Conv2d, nn.Identity]


def test_emulated_bf16_rounds_after_every_node(tmp_path: Path) -> None:
    """Also constants that are attributes, and results that do not go on to a node of the same kind."""
    make, value = helper.make_node, helper.make_tensor_value_info
    weight = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    bias = torch.tensor([1 / 3]).bfloat16()

    def tensor(name: str, values: Tensor) -> TensorProto:
        return helper.make_tensor(
            name, TensorProto.BFLOAT16, values.shape, values.view(torch.uint16).numpy().tobytes(), raw=True
        )

    nodes = [
        make("Cast", ["x"], ["low"], to=TensorProto.BFLOAT16, name="down"),
        make("MatMul", ["low", "weight"], ["product"], name="product"),
        make("Constant", [], ["bias"], value=tensor("bias", bias), name="constant"),
        make("Add", ["product", "bias"], ["sum"], name="sum"),
        make("Transpose", ["sum"], ["turned"], perm=[1, 0], name="turn"),
        make("Mul", ["turned", "turned"], ["square"], name="square"),
        make("Split", ["square"], ["first", "second"], axis=0, num_outputs=2, name="split"),
        make("Sub", ["first", "second"], ["difference"], name="difference"),
        make("Cast", ["difference"], ["y"], to=TensorProto.FLOAT, name="up"),
        make("Cast", ["difference"], ["whole"], to=TensorProto.INT32, name="whole"),
    ]
    outputs = [value("y", TensorProto.FLOAT, [4, 8]), value("whole", TensorProto.INT32, [4, 8])]
    io = ([value("x", TensorProto.FLOAT, [8, 8])], outputs)
    graph = helper.make_graph(nodes, "g", *io, [tensor("weight", weight)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "low.onnx")
    write_emulation(tmp_path / "low.onnx", tmp_path / "emulated.onnx")
    written = onnx.load(tmp_path / "emulated.onnx")
    assert {node.name for node in nodes} <= {node.name for node in written.graph.node}
    assert all(numpy_helper.to_array(t).dtype == np.float32 for t in written.graph.initializer)

    x = torch.randn(8, 8, generator=torch.Generator().manual_seed(1)) * 3

    def rounded(values: Tensor) -> Tensor:
        return values.bfloat16().float()

    total = rounded(rounded(rounded(x) @ weight.float()) + bias.float())
    first, second = rounded(total.T * total.T).chunk(2)
    wanted = rounded(first - second)
    session = onnxruntime.InferenceSession(tmp_path / "emulated.onnx", providers=["CPUExecutionProvider"])
    got, whole = session.run(["y", "whole"], {"x": x.numpy()})
    # Sums of products may be taken in another order: a value here and there rounds to its neighbour.
    assert np.mean(got == wanted.numpy()) > 0.9 and np.allclose(got, wanted, rtol=0.02, atol=0.1)
    assert np.array_equal(whole, got.astype(np.int32))
