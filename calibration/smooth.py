"""SmoothQuant: outlying channels of an activation are moved into the weights that read it.

For y = x W, with one factor per input channel, x/s and s·W give the same product. With
s = amax(x)^a / amax(W)^(1-a) (Xiao et al., 2023) an activation whose channels differ a hundredfold, which one
scale per tensor cannot serve, becomes even. The division is folded into the norm before it (a multiplication
by a constant per channel), so that nothing is computed at run time; where there is no such norm, the
activation is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from .layers import Layer

_SMALLEST = 1e-5  # of a channel's maximum, as in the paper's code: a silent channel is not blown up


def factors_of(activation: np.ndarray, weight: np.ndarray, strength: float) -> np.ndarray:
    """The factor by which every input channel is divided: float32 [channels].

    Args:
        activation: largest magnitude per channel. weight: per input channel, of all layers that read it.
        strength: share of the difficulty that moves into the weights, 0 to 1.
    """
    a = np.maximum(activation.astype(np.float64), _SMALLEST)
    w = np.maximum(weight.astype(np.float64), _SMALLEST)
    return np.maximum(a**strength / w ** (1 - strength), _SMALLEST).astype(np.float32)


def smooth(
    model: onnx.ModelProto, layers: Iterable[Layer], maxima: Mapping[str, np.ndarray], strength: float
) -> tuple[str, ...]:
    """Fold factors into a graph, in place.

    An activation is smoothed where it is the product of a value and a constant per channel that nothing else
    uses (the weight of a norm), in half precision rounded after that, and where all that read it are linear
    layers of `layers`.

    Args:
        model: graph. layers: of it, those that will be quantised.
        maxima: per node, the largest magnitude of each channel that it reads. strength: see `factors_of`.

    Returns:
        The nodes that read smoothed activations.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    makers = {output: node for node in graph.node for output in node.output}
    outputs = {value.name for value in graph.output}
    linear = {layer.node: layer for layer in layers if layer.operator == "MatMul" and layer.weight}
    nodes: list[str] = []
    for name in dict.fromkeys(layer.activations[0] for layer in linear.values()):
        reading = [linear.get(node.name) for node in readers[name]]
        maker = makers.get(name)
        if maker is not None and maker.op_type == "Cast" and len(readers[maker.input[0]]) == 1:
            maker = makers.get(maker.input[0])
        gain = _gain(maker, weights, readers)
        if gain is None or maker is None or maker.output[0] in outputs:
            continue
        if not all(layer is not None and len(readers[layer.weight]) == 1 for layer in reading):
            continue
        found = [layer for layer in reading if layer]
        highest = maxima[found[0].node]
        values = numpy_helper.to_array(gain)
        if values.shape[-1:] != highest.shape:
            continue
        matrices = [weights[layer.weight] for layer in found]
        largest = np.max(
            [np.abs(numpy_helper.to_array(m).astype(np.float32)).max(1) for m in matrices], axis=0
        )
        factor = factors_of(highest, largest, strength)
        _set(gain, values / factor)
        for matrix in matrices:
            _set(matrix, numpy_helper.to_array(matrix) * factor[:, None])
        nodes += [layer.node for layer in found]
    return tuple(nodes)


def _gain(
    node: onnx.NodeProto | None,
    weights: Mapping[str, onnx.TensorProto],
    readers: Mapping[str, list[onnx.NodeProto]],
) -> onnx.TensorProto | None:
    """The constant per channel that a Mul applies, where it is used once."""
    if node is None or node.op_type != "Mul":
        return None
    for name in node.input:
        tensor = weights.get(name)
        if tensor is not None and len(readers[name]) == 1 and _per_channel(tuple(tensor.dims)):
            return tensor
    return None


def _per_channel(shape: tuple[int, ...]) -> bool:
    return bool(shape) and shape[-1] > 1 and all(size == 1 for size in shape[:-1])


def _set(tensor: onnx.TensorProto, values: np.ndarray) -> None:
    kept = numpy_helper.to_array(tensor).dtype
    tensor.CopyFrom(numpy_helper.from_array(values.astype(kept), tensor.name))
