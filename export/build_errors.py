"""What TensorRT's parser and builder refuse, in words, and what to do about it."""

from __future__ import annotations

from typing import Any

from ..runtime.bundle import StageVariant
from ..runtime.errors import StreamSplatError
from .builder_log import BuildLog
from .plan_layers import product_types


class BuildError(StreamSplatError):
    """A plan could not be built, or is not what was asked for."""


def parse_error(variant: StageVariant, parser: Any, runtime: str) -> BuildError:
    """What the parser of `runtime` did not accept: operators, nodes and reasons."""
    problems = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        node, operator = (getattr(error, key, str)() for key in ("node_name", "node_operator"))
        problems.append(f"{operator or 'graph'} {node}: {error.desc()}".strip())
    return BuildError(
        f"{runtime} does not accept stage {variant.stage}: {'; '.join(problems) or 'no reason given'}.",
        "Export with --opset 20, whose operators every TensorRT from 10.3 has, or update TensorRT.",
    )


def build_error(variant: StageVariant, log: BuildLog, runtime: str) -> BuildError:
    """Why the builder of `runtime` gave no plan, by its log."""
    if log.out_of_memory:
        return BuildError(
            f"Building stage {variant.stage} ran out of memory: {log.out_of_memory}.",
            "Close other programs, add swap, or limit the builder: --workspace 512M. "
            "Stages that are built already are kept.",
        )
    nodes = [name for name in product_types(variant.path) if any(name in line for line in log.errors)]
    where = f" at {nodes[0]}" if nodes else ""
    reason = "; ".join(log.errors[-3:]) or "no reason given"
    return BuildError(
        f"{runtime} could not build stage {variant.stage}{where}: {reason}.",
        _build_hint(reason.lower()),
    )


def _build_hint(reason: str) -> str:
    usual = "Try --opset 20 when exporting, another --precision, or an update of TensorRT."
    if "workspace" in reason or "any implementation" in reason:
        return f"The builder may lack scratch memory: --workspace 2G, or close other programs. {usual}"
    if "turing" in reason:
        return "TensorRT-RTX lacks that for compute capability 7.5: use --runtime tensorrt on the device."
    return usual
