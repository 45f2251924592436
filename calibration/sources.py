"""What is calibrated: the fp32 files of a bundle, and what the recipe decides about their layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx

from ..runtime.bundle import Bundle, StageVariant
from ..runtime.errors import BundleError, InputError
from . import videos
from .layers import find_layers, is_quantised, load_graph
from .recipe import Decision, Recipe

Shots = list[list[videos.Pair]]


def decided(path: Path, recipe: Recipe, precision: str) -> tuple[Bundle, list[Decision]]:
    """The bundle, and what the recipe says of every layer of its fp32 files.

    Args:
        path: of the bundle. recipe: rules. precision: `int8` or `fp8`.

    Raises:
        BundleError, InputError: bundle or recipe cannot be used.
    """
    bundle = Bundle.load(path)
    layers = {stage: find_layers(_graph(fp32(bundle, stage))) for stage in bundle.stage_names}
    return bundle, recipe.decide(layers, precision)


def fp32(bundle: Bundle, stage: str) -> StageVariant:
    """The fp32 file of a stage. One that calibration left beside quantised ones is as good as an export's.

    Raises:
        BundleError: there is none.
    """
    variants = bundle.variants(stage)
    found = next((v for v in variants if v.precision == "fp32"), None)
    if found is not None:
        return found
    quantised = next((v for v in variants if v.quantised), None)
    if quantised is not None:
        raise BundleError(
            f"{bundle.path} is quantised already: stage {stage} has {quantised.path.name} and no fp32 file.",
            "Calibrate the bundle that it was made from.",
        )
    raise BundleError(
        f"{bundle.path} has no fp32 file of stage {stage}, which is what others are compared with.",
        "Export it again with --precision fp32,fp16.",
    )


def for_tensorrt(bundle: Bundle) -> dict[str, StageVariant]:
    """Per stage, the file that is quantised for TensorRT: the first for it that is not quantised yet."""
    found = {
        stage: next((v for v in bundle.variants(stage) if "tensorrt" in v.engines and not v.quantised), None)
        for stage in bundle.stage_names
    }
    return {stage: variant for stage, variant in found.items() if variant is not None}


def survey(
    bundle: Bundle, data: Sequence[Path], gate_data: Sequence[Path] = (), *, progress: bool = False
) -> tuple[Shots, Shots]:
    """Shots to calibrate on and shots to measure on: those of `gate_data`, or a part of `data` held out.

    Raises:
        InputError, VideoError: as `videos.survey`; a video is in both.
    """
    gap = bundle.model.key_frame_gap
    shots = videos.survey(videos.find_videos(data), gap, progress=progress)
    if not gate_data:
        return videos.hold_out(shots)
    held = videos.survey(videos.find_videos(gate_data), gap, progress=progress)
    common = {p.video for shot in shots for p in shot} & {p.video for shot in held for p in shot}
    if common:
        raise InputError(
            f"{sorted(common)[0]} is both calibrated on and measured on.",
            "Measure on other videos, or leave --gate-data out: then a part is held out.",
        )
    return shots, held


def _graph(variant: StageVariant) -> onnx.ModelProto:
    model = load_graph(variant.path)
    if is_quantised(model):
        raise BundleError(
            f"{variant.path} is quantised already.", "Calibrate the bundle that it was made from."
        )
    return model
