"""The quantised bundle: files for TensorRT and for CPUs in front of those that were there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..export.record import default_thresholds
from ..runtime.bundle import Bundle, StageVariant, sha256_of
from ..runtime.bundle_writing import VariantSource, write_bundle
from ..runtime.processor import kind_of_this_cpu
from .forms import write_static
from .options import Result
from .sources import fp32

TENSORRT = ("tensorrt", "tensorrt_rtx")


def for_plans(result: Result, targets: Mapping[str, StageVariant], scratch: Path) -> dict[str, StageVariant]:
    """Write the files for TensorRT into `scratch`: those of stages in which anything is quantised.

    Args:
        result: decisions and ranges. targets: per stage, the file to quantise.
    """
    found, precision = {}, result.options.precision
    for stage, target in targets.items():
        nodes = [d.layer.node for d in result.decisions if d.stage == stage and d.quantise]
        if nodes:
            path = scratch / f"{stage}.{precision}.onnx"
            write_static(target, nodes, result.ranges[stage], precision, path)
            engines = tuple(e for e in TENSORRT if e in target.engines)
            found[stage] = replace(
                target, path=path, precision=precision, engines=engines, plans=(), weights=_beside(path)
            )
    return found


def write(
    bundle: Bundle,
    result: Result,
    files: Mapping[str, StageVariant],
    out: Path,
    force: bool,
) -> Bundle:
    """Write the bundle and return it.

    Args:
        bundle: that was calibrated. Its files follow the quantised ones, of which engines take the first;
            files that were quantised before are left out.
        result: decisions, ranges and files for CPUs. files: quantised ones for TensorRT, of `for_plans`.
        out: folder to write. force: replace what is there.

    Raises:
        BundleError, OutputError: as `write_bundle`.
    """
    stages: dict[str, list[VariantSource]] = {stage: [] for stage in bundle.stage_names}
    precision = result.options.precision
    for stage, file in files.items():
        stages[stage].append(_entry(file, file.path, precision, file.engines))
    for choice in result.cpu:
        for stage, (name, path) in choice.files.items():
            _add(stages[stage], fp32(bundle, stage), name, path, choice.engine)
    for stage in bundle.stage_names:
        stages[stage] += [
            _entry(v, v.path, v.precision, v.engines) for v in bundle.variants(stage) if not v.quantised
        ]
    gate = {"psnr_db": result.options.min_psnr}
    names = {v.precision for entries in stages.values() for v in entries if v.precision.startswith(precision)}
    return write_bundle(
        out,
        bundle.name,
        bundle.model,
        stages,
        provenance=bundle.provenance,
        quality={},
        verification={"thresholds": {**default_thresholds(), **dict.fromkeys(sorted(names), gate)}},
        quantisation=result.to_json(),
        force=force,
    )


def _add(entries: list[VariantSource], source: StageVariant, name: str, path: Path, engine: str) -> None:
    """Enter a file for an engine on CPUs like this one, once where two engines use the same."""
    digest = sha256_of(path)
    for i, entry in enumerate(entries):
        if sha256_of(entry.source) == digest:
            entries[i] = replace(entry, engines=(*entry.engines, engine), faster_on=kind_of_this_cpu())
            return
    taken = {entry.file or entry.source.name for entry in entries}
    file = f"{source.stage}.{name}.onnx"
    if file in taken:
        file = f"{source.stage}.{name}.{engine}.onnx"
    entries.append(replace(_entry(source, path, name, (engine,), file), faster_on=kind_of_this_cpu()))


def _entry(
    source: StageVariant, path: Path, precision: str, engines: tuple[str, ...], file: str = ""
) -> VariantSource:
    weights = source.weights if path == source.path else _beside(path)
    return VariantSource(path, source.inputs, source.outputs, precision, engines, file, weights)


def _beside(path: Path) -> Path | None:
    """The weights of a file that was written here, where they are beside it."""
    beside = path.with_name(f"{path.name}.data")
    return beside if beside.is_file() else None
