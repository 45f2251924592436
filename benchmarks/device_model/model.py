"""The roofline: counted work over rates. Every number that leaves here is computed, not measured.

    bound     = max(matrix / R + vector / V, (weights + outer) * width / B)
    estimate  = sum over nodes of max(matrix / (R e) + vector / (V e), (weights + elements) * width / (B b))
                + kernels * launch

R is the rate of matrix products at the precision, V that of fp32, B the bandwidth. The bound is that of a
whole stage: everything at its peak, and only inputs, outputs and weights through memory. The estimate
goes node by node (what element-wise nodes read is fused away, see `counting`) at the shares e and b of
the peaks, with a time to start each kernel. INT8: products with weights at the INT8 rate, their weights a
byte wide; the rest in fp16. A frame between key frames is a render; of a key frame's stages each frame
bears its share:

    frame     = (sum of stages) / gap + render
    render    = max(tile pairs * 256 * 7 * 2 / V, (Gaussians * 40 + pixels * 20) / B), like a node

Its work is every pixel of every tile that a Gaussian touches, as counted in a run on this machine: early
stops would make it less, projection and sorting make it more. For its bound only the bytes count. Not in
the model: decoding, scene cuts, resizing, the lifecycle, copies between host and device, several frames
at a time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .counting import GraphCost, NodeCost

COMPUTED = "computed, not measured"
TILE_PIXELS, BLEND_OPS = 256, 14
GAUSSIAN_BYTES, PIXEL_BYTES = 40, 20
_WIDTH = {"fp32": 4, "fp16": 2, "int8": 2}  # of activations; INT8 weights are one byte
_DEVICES = Path(__file__).with_name("devices.json")


@dataclass(frozen=True)
class Rates:
    """What a device does per second.

    Attributes:
        name: of the device. matrix: operations of matrix products, by precision; a precision that is not
            there is not computed. vector: of other fp32 operations. bandwidth: bytes.
        matrix_share, bandwidth_share: of these, that kernels reach in the estimate. launch: seconds to start
            a kernel.
    """

    name: str
    matrix: Mapping[str, float]
    vector: float
    bandwidth: float
    matrix_share: float
    bandwidth_share: float
    launch: float


@dataclass(frozen=True)
class Assumptions:
    """What nobody publishes, the same for every device whose rates are published.

    Attributes:
        matrix_share, bandwidth_share: see `Rates`. launch_us: microseconds to start a kernel.
    """

    matrix_share: float = 0.5
    bandwidth_share: float = 0.7
    launch_us: float = 3.0


@dataclass(frozen=True)
class RenderWork:
    """Of one frame, as counted in a run: tile-Gaussian pairs, Gaussians read, pixels written."""

    tile_pairs: float
    gaussians: float
    pixels: int


@dataclass(frozen=True)
class Time:
    """Milliseconds: what the device cannot beat, and what is expected."""

    bound_ms: float
    estimate_ms: float


def published() -> list[dict[str, Any]]:
    """The table of devices with the source of each number."""
    return list(json.loads(_DEVICES.read_text())["devices"])


def rates_of(device: Mapping[str, Any], assumptions: Assumptions) -> Rates:
    """A row of the table as rates."""
    return Rates(
        device["name"],
        {name: device[name] * 1e12 for name in ("fp16", "int8") if device[name] is not None},
        device["fp32"] * 1e12,
        device["bandwidth"] * 1e9,
        assumptions.matrix_share,
        assumptions.bandwidth_share,
        assumptions.launch_us * 1e-6,
    )


def stage_time(cost: GraphCost, rates: Rates, precision: str) -> Time:
    """One run of a stage.

    Raises:
        KeyError: the device has no rate for the precision.
    """
    work = sum(_operations(node, rates, precision) for node in cost.nodes)
    outer = cost.outer_elements * _WIDTH[precision] + sum(_weight_bytes(n, precision) for n in cost.nodes)
    bound = max(work, outer / rates.bandwidth)
    estimate = cost.kernels * rates.launch
    for node in cost.nodes:
        moved = node.elements * _WIDTH[precision] + _weight_bytes(node, precision)
        estimate += max(
            _operations(node, rates, precision) / rates.matrix_share,
            moved / (rates.bandwidth * rates.bandwidth_share),
        )
    return Time(bound * 1e3, estimate * 1e3)


def _operations(node: NodeCost, rates: Rates, precision: str) -> float:
    """Seconds of arithmetic at the peak."""
    own = precision if precision != "int8" or node.weighted else "fp16"
    return node.matrix_ops / rates.matrix[own] + node.vector_ops / rates.vector


def _weight_bytes(node: NodeCost, precision: str) -> int:
    return node.weights * (1 if precision == "int8" and node.matrix_ops else _WIDTH[precision])


def render_time(work: RenderWork, rates: Rates) -> Time:
    """One render in fp32."""
    moved = work.gaussians * GAUSSIAN_BYTES + work.pixels * PIXEL_BYTES
    blending = work.tile_pairs * TILE_PIXELS * BLEND_OPS / (rates.vector * rates.matrix_share)
    return Time(
        1e3 * moved / rates.bandwidth,
        1e3 * max(blending, moved / (rates.bandwidth * rates.bandwidth_share)) + 2e3 * rates.launch,
    )


def predict(
    costs: Mapping[str, GraphCost], render: RenderWork, gap: int, rates: Rates, precision: str
) -> dict[str, Any]:
    """Stages, a render and a frame of one device at one precision, ready for JSON."""
    times = {stage: stage_time(cost, rates, precision) for stage, cost in costs.items()}
    times["render"] = render_time(render, rates)
    frame = {
        kind: sum(getattr(t, kind) / (1 if stage == "render" else gap) for stage, t in times.items())
        for kind in ("bound_ms", "estimate_ms")
    }
    return {
        "device": rates.name,
        "precision": precision,
        "status": COMPUTED,
        "stages": {stage: asdict(time) for stage, time in times.items()},
        "frame": frame,
    }
