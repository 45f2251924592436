"""Q/DQ in the graph: the layers of a recipe compute from quantised operands, everything else stays as it is.

TensorRT's rules for INT8: symmetric, signed, zero point 0; activations per tensor, weights per channel.
Every quantised activation gets one QuantizeLinear/DequantizeLinear pair, which all layers that read it share;
every quantised weight is stored in the low format behind one DequantizeLinear. Scales are constants.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..runtime.errors import InputError
from .layers import Layer
from .ranges import FORMATS, Format, scale_of, weight_scales

_TYPES = {"int8": onnx.TensorProto.INT8, "fp8": onnx.TensorProto.FLOAT8E4M3FN}
# Operator set in which QuantizeLinear takes float16 and FP8. INT8 at 21 and later does not load in ONNX
# Runtime by default, so a graph is never raised further than it needs.
_OPSET = 19


def insert(
    model: onnx.ModelProto, layers: Iterable[Layer], clips: Mapping[str, float], precision: str
) -> onnx.ModelProto:
    """A copy of `model` in which `layers` are quantised.

    Args:
        model: graph in fp32 or mixed precision, weights included.
        layers: what is quantised.
        clips: per activation tensor, the largest magnitude that is represented; positive.
        precision: `int8` or `fp8`.

    Raises:
        InputError: an operator set below 19, or a clip that is missing or not positive.
    """
    form, result = FORMATS[precision], onnx.ModelProto()
    result.CopyFrom(model)
    opset = next(entry for entry in result.opset_import if entry.domain in ("", "ai.onnx"))
    if opset.version < _OPSET:
        raise InputError(
            f"The graph has ONNX operator set {opset.version}, {_OPSET} is needed for Q/DQ.",
            "Export the bundle with --opset 20.",
        )
    graph = result.graph
    types = _types(graph)
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes = {node.name: node for node in graph.node}
    new: dict[str, list[onnx.NodeProto]] = {}  # by the activation or weight they belong to
    for layer in layers:
        node = nodes[layer.node]
        if layer.weight:
            value = f"{layer.weight}.dequantised"
            if layer.weight not in new:
                new[layer.weight] = _weight(graph, weights[layer.weight], layer.axis, form, value)
            node.input[1] = value
        for activation in layer.activations:
            value = f"{activation}.dequantised"
            if activation not in new:
                clip = clips.get(activation, 0.0)
                if not clip > 0:
                    raise InputError(f"There is no range for {activation}, which {layer.node} reads.")
                new[activation] = _activation(graph, activation, clip, form, types.get(activation, 1), value)
            for i, name in enumerate(node.input[:2]):
                if name == activation:
                    node.input[i] = value
    _place(graph, new)
    _drop_unused(graph)
    return result


def _types(graph: onnx.GraphProto) -> dict[str, int]:
    typed = (*graph.value_info, *graph.input, *graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in typed}


def _constant(graph: onnx.GraphProto, name: str, values: np.ndarray, kind: int) -> str:
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    graph.initializer.append(numpy_helper.from_array(values.astype(dtype), name))
    return name


def _zero(graph: onnx.GraphProto, name: str, shape: tuple[int, ...], form: Format) -> str:
    kind = _TYPES[form.name]
    if form.name == "fp8":  # numpy has no FP8, and onnx's converters round by themselves
        graph.initializer.append(helper.make_tensor(name, kind, shape, bytes(int(np.prod(shape))), raw=True))
        return name
    return _constant(graph, name, np.zeros(shape), kind)


def _activation(
    graph: onnx.GraphProto, name: str, clip: float, form: Format, kind: int, value: str
) -> list[onnx.NodeProto]:
    if kind == onnx.TensorProto.FLOAT16:
        clip = max(clip, 2.0**-14 * form.top)  # a smaller scale is no normal number there
    scale = _constant(graph, f"{name}.scale", scale_of(clip, form), kind)
    zero = _zero(graph, f"{name}.zero_point", (), form)
    low = f"{name}.quantised"
    graph.value_info.append(helper.make_tensor_value_info(value, kind, None))
    return [
        helper.make_node("QuantizeLinear", [name, scale, zero], [low], name=f"{name}/QuantizeLinear"),
        helper.make_node("DequantizeLinear", [low, scale, zero], [value], name=f"{name}/DequantizeLinear"),
    ]


def _weight(
    graph: onnx.GraphProto, tensor: onnx.TensorProto, axis: int, form: Format, value: str
) -> list[onnx.NodeProto]:
    weight = numpy_helper.to_array(tensor)
    kind = tensor.data_type
    scales = weight_scales(weight, axis, form)
    if kind == onnx.TensorProto.FLOAT16:
        scales = np.maximum(scales, np.float32(2.0**-14)).astype(np.float16).astype(np.float32)
    shape = tuple(-1 if i == axis else 1 for i in range(weight.ndim))
    low = form.round(weight.astype(np.float64) / scales.reshape(shape))
    name = tensor.name
    if form.name == "fp8":
        raw = low.astype(np.float32).astype(ml_dtypes.float8_e4m3fn).tobytes()
        graph.initializer.append(
            helper.make_tensor(f"{name}.quantised", _TYPES["fp8"], weight.shape, raw, raw=True)
        )
    else:
        _constant(graph, f"{name}.quantised", low, _TYPES["int8"])
    inputs = [
        f"{name}.quantised",
        _constant(graph, f"{name}.scale", scales, kind),
        _zero(graph, f"{name}.zero_point", scales.shape, form),
    ]
    graph.value_info.append(helper.make_tensor_value_info(value, kind, None))
    return [helper.make_node("DequantizeLinear", inputs, [value], name=f"{name}/DequantizeLinear", axis=axis)]


def _place(graph: onnx.GraphProto, new: Mapping[str, list[onnx.NodeProto]]) -> None:
    """Put new nodes right behind what they read: inputs and constants at the front."""
    made = {output for node in graph.node for output in node.output}
    nodes = [node for name, group in new.items() if name not in made for node in group]
    for node in graph.node:
        nodes.append(node)
        for output in node.output:
            nodes += new.get(output, [])
    del graph.node[:]
    graph.node.extend(nodes)


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove weights that nothing reads any more."""
    read = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
