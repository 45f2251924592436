"""The files that a stage is quantised to: one for TensorRT, and those that may be fast on a CPU.

TensorRT takes static, symmetric, signed Q/DQ around every layer of the recipe, in the graph of its precision
(fp16 where the bundle has it). On CPUs the fastest form differs by engine, model and processor, so candidates
are made from the fp32 graph and timed (`timing`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from ..runtime.bundle import StageVariant
from . import qdq
from .layers import Layer, find_layers, load_graph
from .recipe import kind_of

# Node -> the largest magnitude of each of its operands that is computed at run time.
Clips = Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Form:
    """How a stage is quantised for CPU engines.

    Attributes:
        name: precision of the file in the bundle.
        dynamic: scales of activations are computed at run time (ONNX Runtime), instead of Q/DQ in the graph.
        engines: that run it. kinds: of the layers it quantises; the others stay in fp32.
    """

    name: str
    dynamic: bool
    engines: tuple[str, ...]
    kinds: tuple[str, ...]


CPU_FORMS = (
    Form("int8", False, ("openvino", "onnxruntime"), ("linear", "convolution")),
    Form("int8-linear", False, ("openvino", "onnxruntime"), ("linear",)),
    Form("int8-dynamic", True, ("onnxruntime",), ("linear",)),
)
"""Candidates for CPUs. Convolutions are not made dynamic: `ConvInteger` is slower than fp32."""


def write_static(
    source: StageVariant, nodes: Iterable[str], clips: Clips, precision: str, target: Path
) -> onnx.ModelProto:
    """Write the stage with Q/DQ around `nodes`, and return it.

    Args:
        source: graph to start from. nodes: names of layers. clips: see above. precision: `int8` or `fp8`.
    """
    model = load_graph(source.path)
    chosen = set(nodes)
    layers = [layer for layer in find_layers(model) if layer.node in chosen]
    result = qdq.insert(model, layers, by_tensor(layers, clips), precision)
    save(result, target)
    return result


def write_dynamic(source: StageVariant, layers: Sequence[Layer], target: Path) -> None:
    """Write the stage with linear layers whose inputs ONNX Runtime quantises while running."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it advises preprocessing, which the export has done
    try:
        quantize_dynamic(
            load_graph(source.path),  # of a path it would write a file beside it, into the user's bundle
            target,
            op_types_to_quantize=sorted({layer.operator for layer in layers}),
            nodes_to_quantize=[layer.node for layer in layers],
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
    finally:
        logger.setLevel(level)


def write_form(form: Form, source: StageVariant, layers: Sequence[Layer], clips: Clips, target: Path) -> bool:
    """Write a CPU form of a stage; False where it would quantise nothing.

    Args:
        form: which. source: the fp32 file.
        layers: those of the stage that may be quantised. clips: of them.
    """
    chosen = [layer for layer in layers if kind_of(layer) in form.kinds]
    if not chosen:
        return False
    if form.dynamic:
        write_dynamic(source, chosen, target)
    else:
        write_static(source, [layer.node for layer in chosen], clips, "int8", target)
    return True


def by_tensor(layers: Iterable[Layer], clips: Clips) -> dict[str, float]:
    """Range per tensor of a graph, from ranges per node: graphs of one stage share names of nodes alone."""
    return {
        name: clip
        for layer in layers
        for name, clip in zip(layer.activations, clips[layer.node], strict=True)
    }


def save(model: onnx.ModelProto, target: Path) -> None:
    """Write a graph; weights beyond 2 GB go to a file beside it, as in an export."""
    if model.ByteSize() < 2_000_000_000:
        onnx.save(model, target)
    else:
        onnx.save(model, target, save_as_external_data=True, location=f"{target.name}.data")
