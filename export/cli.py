"""`streamsplat-edge export`, `build` and `verify`. Heavy packages are imported when a command runs."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..extras import require
from ..runtime.errors import InputError, OutputError

if TYPE_CHECKING:
    from ..runtime.bundle import Bundle
    from .verify import Report


def add_parser(subparsers: Any) -> None:
    """Register the commands."""
    _add_export(subparsers)
    _add_build(subparsers)
    _add_verify(subparsers)


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found:
        raise argparse.ArgumentTypeError("must be HEIGHTxWIDTH in pixels, for example 288x512")
    return int(found[1]), int(found[2])


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+)([KMG]?)", text.upper())
    if not found or int(found[1]) == 0:
        raise argparse.ArgumentTypeError("must be a number of bytes, such as 512M or 2G")
    return int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2]]


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _capabilities(text: str) -> tuple[str, ...]:
    words = _words(text)
    if not words or not all(re.fullmatch(r"\d+\.\d", word) for word in words):
        raise argparse.ArgumentTypeError("must be compute capabilities such as 8.6 or 8.6,8.9")
    return tuple(dict.fromkeys(words))


def add_source(parser: Any, required: bool) -> None:
    """The options of a checkpoint and of what belongs to it."""
    add = parser.add_argument
    add("--checkpoint", metavar="FILE", required=required, type=Path, help="weights (safetensors)")
    add("--preset", default="", metavar="NAME", help="for published weights, which do not say it: base")
    add("--dino", metavar="FILE", type=Path, help="weights of DINOv2 ViT-B/14 with registers (base)")
    add("--depth", metavar="FOLDER", type=Path, help="weights of Depth Anything V2 (base)")


def _add_export(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "export",
        help="turn a checkpoint into a verified bundle (needs the extra [export])",
        description="Writes each stage as ONNX, compares it with PyTorch, and packs a bundle.",
        epilog="`streamsplat-edge eval BUNDLE --data CACHE --store` adds the quality that is measured.",
    )
    add_source(parser, required=True)
    add = parser.add_argument
    add("-o", "--output", metavar="BUNDLE", required=True, type=Path, help="folder to write")
    add("--name", default="", help="the bundle's name (default: the preset's)")
    add(
        "--precision",
        type=_words,
        default=("fp32",),
        metavar="P",
        help="fp32, fp16, bf16, or several: fp32,fp16 (default: fp32)",
    )
    add("--size", type=_size, metavar="HxW", help="model resolution (default: the trained one)")
    add("--opset", type=int, default=20, metavar="N", help="ONNX operator set, 18 to 25 (default: 20)")
    add("--dynamic-batch", action="store_true", help="leave the batch size free (default: 1)")
    add("--provenance", metavar="JSON", type=Path, help="data, licence, command: stored in the bundle")
    add("--triton", metavar="DIR", type=Path, help="also write a Triton model repository")
    add("--force", action="store_true", help="replace an existing bundle")
    add("--json", action="store_true", help="print the comparison as JSON")
    add("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(handler=_export)


def _add_build(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "build",
        help="build a bundle's TensorRT plans",
        description="Builds one TensorRT plan per stage into the bundle; goes on where it was interrupted.",
    )
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", type=Path, help="bundle folder")
    add(
        "--runtime",
        choices=("tensorrt", "tensorrt_rtx"),
        default="tensorrt",
        help="default: tensorrt; tensorrt_rtx for desktop RTX cards",
    )
    add(
        "--precision", default="", metavar="P", help="of the stage files (default: the first for the runtime)"
    )
    add(
        "--device-capability",
        type=_capabilities,
        default=(),
        metavar="CC",
        help="build without a GPU, for these compute capabilities (tensorrt_rtx only): 8.6,8.9",
    )
    add("--workspace", type=_bytes, default=0, metavar="SIZE", help="default: half of the free memory")
    add("--level", type=int, choices=range(6), default=3, help="optimisation level (default: 3)")
    add("--max-batch", type=int, default=1, metavar="N", help="for bundles with a free batch size")
    add(
        "--version-compatible",
        action="store_true",
        help="also for later TensorRT of the same major release; runs only where STREAMSPLAT_TRUST_PLANS=1",
    )
    add("--hardware-compatible", action="store_true", help="also for other GPUs from Ampere on, but Jetson")
    add("--tf32", action="store_true", help="let fp32 products round their inputs to TF32")
    add("--force", action="store_true", help="build again what is there already")
    add("--json", action="store_true", help="print the plans as JSON")
    add("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(handler=_build)


def _add_verify(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "verify",
        help="check that a bundle's files and plans compute what the model does",
        description="Runs stages and rendering on a clip in every engine that can run here, and compares.",
    )
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", type=Path, help="bundle folder")
    add_source(parser, required=False)
    add("--clip", metavar="FILE", type=Path, help="video (default: the demo clip)")
    add("--frames", type=int, default=3, metavar="N", help="key frames, 2 or more (default: 3)")
    add("--no-store", action="store_true", help="do not write the result into the bundle")
    add("--json", action="store_true", help="print the result as JSON")
    add("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(handler=_verify)


def _read_object(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}.", "Give a file with one object.") from None
    if not isinstance(value, dict):
        raise InputError(
            f"{path} holds a JSON {type(value).__name__}, not an object.", "Give a file with one object."
        )
    return value


def _export(arguments: argparse.Namespace) -> int:
    require("export", "torch", "onnx", "onnxscript", "safetensors")
    from .export import GraphOptions, export_bundle
    from .load import Source
    from .triton import check_repository, write_repository

    if arguments.triton is not None:
        check_repository(arguments.triton, arguments.name)
    source = Source(arguments.checkpoint, arguments.preset, arguments.dino, arguments.depth, arguments.size)
    bundle, report = export_bundle(
        source,
        arguments.output,
        options=GraphOptions(arguments.precision, arguments.opset, arguments.dynamic_batch),
        name=arguments.name,
        provenance=_read_object(arguments.provenance),
        force=arguments.force,
        progress=not arguments.quiet,
    )
    if arguments.triton is not None:
        write_repository(bundle, arguments.triton)
    if arguments.json:
        print(json.dumps({"bundle": str(bundle.path), "verification": report.to_json()}, indent=1))
        return 0
    print(f"{bundle.path}: every stage agrees with PyTorch in ONNX Runtime")
    print("\n".join(report_lines(report)))
    return 0


def report_lines(report: Report) -> list[str]:
    """A verification report as text."""
    lines = [f"  reference: {report.reference} on {report.source}"]
    for c in report.comparisons:
        lines.append(
            f"  {c.backend} {c.precision}  {c.stage + '.' + c.output:<20} relative L2 {c.relative_l2:.1e}   "
            f"max {c.max_abs:.1e}   cosine {c.cosine:.7f}"
        )
    lines += [f"  {label}  rendered frames {value:.1f} dB" for label, value in report.psnr_db.items()]
    lines += [f"  {label}  not run: {reason}" for label, reason in report.skipped.items()]
    return lines


def _build(arguments: argparse.Namespace) -> int:
    require("build", "onnx")
    from .build import build_bundle
    from .plan_builder import BuildOptions

    options = BuildOptions(
        runtime=arguments.runtime,
        precision=arguments.precision,
        capabilities=arguments.device_capability,
        workspace=arguments.workspace,
        level=arguments.level,
        max_batch=arguments.max_batch,
        version_compatible=arguments.version_compatible,
        hardware_compatible=arguments.hardware_compatible,
        tf32=arguments.tf32,
    )
    plans = build_bundle(arguments.bundle, options, force=arguments.force, progress=not arguments.quiet)
    if arguments.json:
        print(json.dumps([plan.to_json() for plan in plans], indent=1))
        return 0
    for plan in plans:
        entry = plan.entry
        line = f"{entry.stage:<10} {entry.file}  {entry.bytes / 1e6:.1f} MB"
        if plan.inspection is not None:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(plan.inspection.products.items()))
            line += (
                f"  built in {plan.seconds:.1f} s, peak {plan.peak_bytes / 1e9:.2f} GB; products: {kinds}; "
                f"{plan.inspection.attentions} fused attentions"
            )
            if plan.inspection.raised:
                line += (
                    f"; {len(plan.inspection.raised)} quantised ones in floating point, as the builder chose"
                )
        print(line + ("  (was there already)" if plan.reused else ""))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from ..runtime.bundle import Bundle
    from .record import limits, looser
    from .stage_engines import module_engines
    from .verify import VerificationError, verify_bundle
    from .video import key_frames

    if arguments.frames < 2:
        raise InputError("One key frame makes no pair.", "Use --frames 2 or more.")
    bundle = Bundle.load(arguments.bundle)
    thresholds = limits(bundle)
    loose = looser(thresholds, bundle.precisions)
    reference = None
    if arguments.checkpoint is not None:
        require("export", "torch", "safetensors")
        from .load import Source, load

        size = (bundle.model.height, bundle.model.width)
        loaded = load(Source(arguments.checkpoint, arguments.preset, arguments.dino, arguments.depth, size))
        reference = module_engines(bundle, loaded)
    clip = arguments.clip or demo_clip()
    frames = key_frames(clip, bundle.model.key_frame_gap, arguments.frames)
    report = verify_bundle(
        bundle,
        reference,
        frames,
        thresholds=thresholds,
        source=clip.name,
        progress=not arguments.quiet,
    )
    if arguments.json and not report.failures:
        print(json.dumps({**report.to_json(), "looser_limits": loose}, indent=1))
    elif not arguments.json:
        print("\n".join([str(bundle.path), *report_lines(report)]))
        if loose:
            print(f"  note: limits of this bundle let more pass than usual: {'; '.join(loose)}")
    # After it was shown: what was found is not lost where the bundle cannot be written to.
    unstored = "" if arguments.no_store else _store(bundle, report)
    if report.failures:
        from .bisect import first_divergence

        found = "; ".join(report.failures) + "."
        where = first_divergence(bundle, report, frames)
        raise VerificationError(
            " ".join(part for part in (found, where, unstored) if part),
            "Export the bundle again; if the weights are sound, report this with the versions "
            "`streamsplat-edge doctor` prints.",
        )
    return 0


def _store(bundle: Bundle, report: Report) -> str:
    """Keep a result in the bundle; why a failure could not be kept, which then is told with it.

    Raises:
        OutputError: a success could not be kept.
    """
    from ..runtime.bundle_writing import store
    from .record import kept

    try:
        store(bundle.path, {"verification": kept(bundle.verification, report.to_json())})
    except OutputError as error:
        unstored = f"The result was not stored: {error.message}"
        if report.failures:
            return unstored
        raise OutputError(unstored, f"{error.hint} Or verify with --no-store.") from error
    return ""


def demo_clip() -> Path:
    """The clip of the checkout.

    Raises:
        InputError: not in a checkout.
    """
    for root in (Path(__file__).resolve().parents[1], Path.cwd()):
        clip = root / "demo" / "clip.mp4"
        if clip.is_file():
            return clip
    raise InputError("The demo clip is not installed.", "Give a video with --clip.")
