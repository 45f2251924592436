"""The report of the model: what was counted, every device's computed times, the error where it is known."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...commands import report
from ...machine import describe_machine
from ...runtime.bundle import Bundle
from ...runtime.errors import InputError
from ...runtime.stream import open_stream
from ..bench.compare import read
from ..bench.measure import MEASURED
from ..identity import describe_bundle, state
from ..markdown import columns, listed, markdown
from ..passes import Clip
from .counting import GraphCost, count_file
from .here import measure
from .model import COMPUTED, Assumptions, Rates, RenderWork, predict, published, rates_of

FORMAT, VERSION = "streamsplat-device-model", 1
PRECISIONS = ("fp16", "int8")
_NOT_MODELLED = ("preprocess", "lifecycle")


def compute(
    path: Path,
    uri: str,
    frames: int | None,
    gap: int | None,
    threads: int,
    assumptions: Assumptions,
    measured: Sequence[Path] = (),
) -> dict[str, Any]:
    """Count, measure this CPU, compute all devices. Ready for JSON.

    Args:
        path, uri, frames, gap, threads: bundle, clip and how they are run here. measured: files of `bench`.

    Raises:
        BundleError, InputError, VideoError: the bundle, the clip or a file cannot be used.
    """
    bundle, clip = Bundle.load(path), Clip(uri, frames)
    costs = {stage: count_file(_file(bundle, stage)) for stage in bundle.stage_names}
    earlier = [read(file) for file in measured]
    before = state()
    with open_stream(bundle, engine="onnxruntime", threads=threads, precision="fp32") as stream:
        here, work, latency = measure(stream, clip, gap, threads)
    chosen_gap = bundle.model.key_frame_gap if gap is None else gap
    own = predict(costs, work, chosen_gap, here, "fp32")
    errors = [{"device": _cpu(), "precision": "fp32", "stages": _errors(own["stages"], latency)}]
    devices = []
    for device in published():
        rates = rates_of(device, assumptions)
        for precision in PRECISIONS:
            if precision in rates.matrix:
                devices.append(predict(costs, work, chosen_gap, rates, precision))
            else:
                devices.append(_without(device["name"], precision))
    for result in earlier:
        errors += _of_gpus(result, bundle, costs, work, chosen_gap, assumptions)
    return {
        "format": FORMAT,
        "version": VERSION,
        "status": COMPUTED,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "software": report.software("onnx", "onnxruntime"),
        "bundle": describe_bundle(bundle),
        "state": {"before": before, "after": state()},
        "protocol": {
            "input": clip.uri,
            "frames": frames,
            "gap": chosen_gap,
            "threads": threads or "all cores",
        },
        "assumptions": asdict(assumptions),
        "not_modelled": "decoding, scene cuts, "
        + ", ".join(_NOT_MODELLED)
        + ", copies between host and device",
        "counted": {stage: _counted(cost) for stage, cost in costs.items()} | {"render": asdict(work)},
        "table": published(),
        "devices": devices,
        "this_cpu": asdict(here),
        "errors": errors,
        "measured_gpus": "none" if len(errors) == 1 else len(errors) - 1,
    }


def _file(bundle: Bundle, stage: str) -> Path:
    """The file whose operators are counted: fp32 where there is one, without the nodes of quantisation."""
    variants = sorted(bundle.variants(stage), key=lambda variant: variant.precision != "fp32")
    return variants[0].path


def _counted(cost: GraphCost) -> dict[str, int]:
    names = ("matrix_ops", "vector_ops", "weights", "elements", "outer_elements", "kernels")
    return {name: getattr(cost, name) for name in names}


def _cpu() -> str:
    machine = describe_machine()
    return (
        f"{machine['cpu'] or machine['architecture']}, {machine['cores_usable']} cores (rates measured here)"
    )


def _without(name: str, precision: str) -> dict[str, Any]:
    return {"device": name, "precision": precision, "status": "not computed: no published rate"}


def _errors(stages: Mapping[str, Any], latency: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Per stage: both computed times, the measured median and minimum, and estimate / median - 1."""
    return {
        stage: {
            **times,
            "measured_p50_ms": latency[stage]["p50"],
            "measured_min_ms": latency[stage]["min"],
            "error": times["estimate_ms"] / latency[stage]["p50"] - 1,
        }
        for stage, times in stages.items()
        if stage in latency
    }


def _of_gpus(
    result: Mapping[str, Any],
    bundle: Bundle,
    costs: Mapping[str, GraphCost],
    work: RenderWork,
    gap: int,
    assumptions: Assumptions,
) -> list[dict[str, Any]]:
    """The errors on the GPU of a result of `bench`, one per backend that ran there."""
    model, theirs = bundle.model, result["bundle"]
    if (theirs["preset"], theirs["width"], theirs["height"]) != (model.preset, model.width, model.height):
        raise InputError(
            f"A result of bench is of {theirs['preset']} at {theirs['width']}x{theirs['height']}, the bundle "
            f"is {model.preset} at {model.width}x{model.height}.",
            "Give results of the same model and size.",
        )
    name = " ".join([*(gpu["name"] for gpu in result["cuda"]["gpus"]), result["machine"]["device"] or ""])
    matching = [device for device in published() if any(words in name for words in device["match"])]
    found = []
    for backend in result["backends"] if matching else ():
        text = " ".join(backend.get("stages", {}).get(stage, "") for stage in costs)
        precision = next((p for p in ("int8", "fp16") if p in text), None)
        if backend["status"] != MEASURED or "cpu" in text.lower() or precision is None:
            continue
        rates: Rates = rates_of(matching[0], assumptions)
        if precision in rates.matrix:
            stages = predict(costs, work, gap, rates, precision)["stages"]
            errors = _errors(stages, {k: v for k, v in backend["latency_ms"].items() if v.get("count")})
            found.append(
                {"device": f"{rates.name}, {backend['title']}", "precision": precision, "stages": errors}
            )
    return found


def device_rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and a row per device and precision: estimates of stages, of a frame, and its bound."""
    stages = [*(stage for stage in result["counted"] if stage != "render"), "render"]
    header = ["device, precision", *(f"{stage} ms" for stage in stages), "frame ms", "its bound ms"]
    rows = []
    for device in result["devices"]:
        name = f"{device['device']}, {device['precision']}"
        if device["status"] != COMPUTED:
            rows.append([name, *["-"] * (len(header) - 1)])
            continue
        cells = [f"{device['stages'][stage]['estimate_ms']:.3g}" for stage in stages]
        frame = device["frame"]
        rows.append([name, *cells, f"{frame['estimate_ms']:.3g}", f"{frame['bound_ms']:.2g}"])
    return header, rows


def error_rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and a row per measured device and stage."""
    header = [
        "measured device, stage",
        "bound ms",
        "estimate ms",
        "measured p50 ms",
        "min ms",
        "estimate is off by",
    ]
    rows = [
        [
            f"{entry['device']}, {entry['precision']}, {stage}",
            *(
                f"{values[key]:.3g}"
                for key in ("bound_ms", "estimate_ms", "measured_p50_ms", "measured_min_ms")
            ),
            f"{100 * values['error']:+.0f} %",
        ]
        for entry in result["errors"]
        for stage, values in entry["stages"].items()
    ]
    return header, rows


def words(result: Mapping[str, Any]) -> list[str]:
    """What the tables rest on."""
    assumed, bundle, counted = result["assumptions"], result["bundle"], result["counted"]
    work = ", ".join(
        f"{stage} {cost['matrix_ops'] / 1e9:.2f} GFLOP"
        for stage, cost in counted.items()
        if stage != "render"
    )
    gpus = "No GPU was measured." if result["measured_gpus"] == "none" else ""
    shares = [f"{100 * assumed[name]:g} %" for name in ("matrix_share", "bandwidth_share")]
    pairs, gap = counted["render"]["tile_pairs"], result["protocol"]["gap"]
    return [
        f"**{COMPUTED}**: bundle `{bundle['name']}` at {bundle['width']}x{bundle['height']}, {work}; "
        f"{pairs:,.0f} tile pairs per frame; a frame is a render and 1/{gap} of the stages.",
        f"Assumed for every device: kernels reach {shares[0]} of the published peak and {shares[1]} of the "
        f"bandwidth, starting one takes {assumed['launch_us']:g} us; not modelled: "
        f"{result['not_modelled']}. {gpus}".strip(),
    ]


def table_lines(result: Mapping[str, Any]) -> list[str]:
    """For a Markdown document."""
    first, second = words(result)
    sources = [
        f"{device['name']}: {device['derived'].rstrip('.')}. "
        + "; ".join(f"{source['what']}: [{source['title']}]({source['url']})" for source in device["sources"])
        for device in result["table"]
    ]
    lines = [f"{first} {second}"]
    for header, rows in (device_rows(result), error_rows(result)):
        lines += ["", *markdown(header, rows)]
    return [*lines, *listed([*missing(result), *sources])]


def missing(result: Mapping[str, Any]) -> list[str]:
    """What was not computed, and why."""
    return [
        f"{d['device']}, {d['precision']}: {d['status']}"
        for d in result["devices"]
        if d["status"] != COMPUTED
    ]


def text(result: Mapping[str, Any]) -> list[str]:
    """Everything for a terminal."""
    lines = [line.replace("**", "").replace("`", "") for line in words(result)]
    for header, rows in (device_rows(result), error_rows(result)):
        lines += ["", *columns([header, *rows])]
    return [*lines, *listed(missing(result))]
