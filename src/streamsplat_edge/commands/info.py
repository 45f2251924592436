"""`streamsplat-edge info`: what a bundle holds, in words or as JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from ..runtime.bundle import Bundle, StageVariant
from ..runtime.bundle_schema import TensorSpec
from ..runtime.cuda.budget import board_bytes, budget
from ..runtime.processor import is_kind

_SCORES = (
    ("key", "key frames"),
    ("between", "in between"),
    ("blend", "blending the originals"),
    ("dis", "optical flow of the originals"),
)


def main(args: argparse.Namespace) -> int:
    if args.device is not None:
        board_bytes(args.device)  # refused before the hashes are computed
    bundle = Bundle.load(args.bundle)
    if args.json:
        report = {
            "path": str(bundle.path),
            "hashes_verified": True,
            "plan_hashes_verified": False,
            "unusable_plans": bundle.unusable_plans(verify_hashes=False),
            **bundle.manifest,
        }
        if args.device is not None:
            report["memory"] = {"device": args.device, **vars(budget(bundle))}
        print(json.dumps(report, indent=2))
        return 0
    print("\n".join(describe(bundle) + (memory(bundle, args.device) if args.device else [])))
    return 0


def memory(bundle: Bundle, board: str) -> list[str]:
    """What the bundle needs of a board's memory."""
    need, room = budget(bundle), board_bytes(board)
    weights = ", ".join(f"{stage} {size / 2**20:.1f}" for stage, size in need.weights.items())
    return [
        f"  memory      {need.total / 2**20:.1f} MiB of {room / 2**30:.0f} GiB on {board} "
        f"({100 * need.total / room:.2g} %)",
        f"    Gaussians and images {need.scene / 2**20:.1f} MiB, pinned {need.pinned / 2**20:.1f} MiB",
        f"    weights, MiB: {weights}",
        "    On top: activations and workspace of the engines, the CUDA context, and the system.",
    ]


def describe(bundle: Bundle) -> list[str]:
    """The bundle in lines of text."""
    model = bundle.model
    rows, columns = model.grid
    lines = [
        f"{bundle.name}  ({bundle.path})",
        f"  model       preset {model.preset}, {model.width}x{model.height}, patch {model.patch}, "
        f"{rows * columns:,} Gaussians per key frame ({columns}x{rows})",
        f"  depth       input: {model.depth_input}, mapping: {model.depth_mapping}",
        f"  key frames  every {model.key_frame_gap} frames by default",
        "  stages      (all hashes verified)",
    ]
    for stage in bundle.stage_names:
        above = None
        for variant in bundle.variants(stage):
            size = variant.path.stat().st_size / 1e6
            engines = ", ".join(variant.engines)
            lines.append(
                f"    {stage}: {variant.path.name}, {variant.precision}, {size:.2f} MB, for {engines}"
                f"{_where(variant)}"
            )
            tensors = variant.inputs, variant.outputs
            if tensors != above:
                lines += [
                    f"      {way} {_tensors(specs)}"
                    for way, specs in zip(("in ", "out"), tensors, strict=True)
                ]
            above = tensors
    plans = [
        f"{p.stage} {p.runtime} {p.version} on "
        + (p.device if p.device != "any" else f"compute capability {p.compute_capability}")
        for p in bundle.plans
    ]
    lines.append(f"  plans       {'; '.join(plans) if plans else 'none'}")
    if plans:
        lines.append("    (sizes compared; an engine that loads a plan, and build, compare its hash too)")
    # There may be plans for many devices, of gigabytes, of which this machine runs none.
    lines += [
        f"    NOT USABLE: {file} {problem}; streamsplat-edge build makes it again"
        for file, problem in bundle.unusable_plans(verify_hashes=False).items()
    ]
    lines += _quantisation(bundle.quantisation) + _verification(bundle.verification)
    return lines + _section("provenance", bundle.provenance) + _quality(bundle.quality)


def _tensors(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{s.name} {s.dtype}{list(s.shape)}" for s in specs)


def _where(variant: StageVariant) -> str:
    """On which CPUs the file is taken unasked, where not on all machines."""
    if variant.faster_on is None:
        return ""
    return (
        f"; only on CPUs of kind {variant.faster_on} ({'as' if is_kind(variant.faster_on) else 'not'} here)"
    )


def _quantisation(made: dict[str, Any]) -> list[str]:
    """What `calibrate` did, a line for TensorRT's files and one per CPU engine; loud where the result was
    saved against the gate."""
    if not made:
        return []
    gate = _object(made.get("gate"))
    lines = [
        f"  quantised   {_short(made.get('precision'))} ({_short(made.get('method'))}, "
        f"{_short(made.get('samples'))} samples); every frame needed {_short(gate.get('min_psnr_db'))} dB "
        "against fp32"
    ]
    if gate.get("psnr_db") is not None:
        lines.append(f"    TensorRT: worst frame {_short(_object(gate['psnr_db']).get('worst'))} dB")
    choices = made.get("cpu")
    for choice in choices if isinstance(choices, list) else ():
        choice = _object(choice)
        chosen = ", ".join(f"{_short(s)} {_short(f)}" for s, f in _object(choice.get("chosen")).items())
        if chosen:
            worst = _object(choice.get("psnr_db")).get("worst")
            lines.append(f"    {_short(choice.get('engine'))}: {chosen}, worst frame {_short(worst)} dB")
    if gate.get("passed") is not True:
        lines.append("    BELOW THE GATE: saved by --force-quality; frames differ visibly from fp32")
    return lines


def _object(value: object) -> dict[str, Any]:
    """These fields are free-form: what is no object has no entries."""
    return value if isinstance(value, dict) else {}


def _verification(result: dict[str, Any]) -> list[str]:
    """What `verify` found: against the model or, where there is none of that, the fp32 files; then against
    the fp32 files where there are both."""
    lines = _verified(result, "verified") if "passed" in result else ["  verified    no"]
    own = _object(result.get("against_own_files"))
    return lines + (_verified(own, "") if "passed" in own else [])


def _verified(result: dict[str, Any], title: str) -> list[str]:
    """One line of a `verify`, and the rendered PSNR of each engine it ran."""
    word = "passed" if result["passed"] is True else "FAILED"
    against = f"against {_short(result.get('reference'))} on {_short(result.get('source'))}"
    frames = _object(result.get("psnr_db")).items()
    return [f"  {title:<11} {word}, {against}"] + [
        f"    {_short(label)}: rendered frames {_short(value)} dB" for label, value in frames
    ]


def _section(title: str, values: dict[str, Any]) -> list[str]:
    if not values:
        return [f"  {title:<11} none stated"]
    return [f"  {title}"] + [f"    {_short(key)}: {_short(value)}" for key, value in values.items()]


def _quality(values: dict[str, Any]) -> list[str]:
    """What `eval` measured: PSNR of every clip in a line; `--json` has all of it."""
    clips, average = _object(values.get("clips")), _object(values.get("average"))
    lines = _section("quality", {k: v for k, v in values.items() if k not in ("clips", "average", "metrics")})
    for name, scores in (*clips.items(), ("average", average)):
        numbers = [
            f"{word} {scores[key]:.2f}"
            for key, word in _SCORES
            if isinstance(scores, dict) and isinstance(scores.get(key), (int, float))
        ]
        if numbers:
            lines.append(f"    {_short(name)}: {', '.join(numbers)}")
    return lines


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    # Escaped where a bundle would send control sequences to the terminal.
    text = value if isinstance(value, str) and value.isprintable() else json.dumps(value)
    return text if len(text) <= 160 else text[:157] + "..."
