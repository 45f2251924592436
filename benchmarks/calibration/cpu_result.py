"""INT8 on a CPU as rows; needs nothing but the JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..markdown import columns, listed, markdown

FORMAT, VERSION = "streamsplat-int8-cpu", 1
_NAMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
_FORMS = {
    "int8": "static, all layers",
    "int8-linear": "static, linear layers",
    "int8-dynamic": "dynamic, linear layers",
}
_FLOAT = "fp32"
_BF16 = {"amx_bf16", "avx512_bf16"}


def _stages(result: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(stage for choice in result["engines"] for stage in choice["timings"]))


def header(result: Mapping[str, Any]) -> list[str]:
    """Column names."""
    return ["", *(f"{stage}" for stage in _stages(result))]


def table_rows(result: Mapping[str, Any], mark: str = "**") -> list[list[str]]:
    """Per engine the milliseconds of its fp32 file and the ratio of each form to it; what was chosen between
    marks."""
    found = []
    for choice in result["engines"]:
        timings, name = choice["timings"], _NAMES[choice["engine"]]
        if not timings:
            continue
        floats = [timings.get(stage, {}).get(_FLOAT) for stage in _stages(result)]
        found.append(
            [f"{name}, fp32 file, ms", *("" if t is None else _ms(t["milliseconds"]) for t in floats)]
        )
        for form, words in _FORMS.items():
            cells = []
            for stage in _stages(result):
                timing = timings.get(stage, {}).get(form)
                chosen = mark if choice["chosen"].get(stage) == form else ""
                cells.append("" if timing is None else f"{chosen}x{timing['ratio']:.2f}{chosen}")
            if any(cells):
                found.append([f"{name}, {words}", *cells])
    return found


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.1f}" if milliseconds >= 1 else f"{milliseconds:.2f}"


def notes(result: Mapping[str, Any]) -> list[str]:
    """What each engine takes, and what that does to frames."""
    found = []
    for choice in result["engines"]:
        words = choice["reason"]
        if choice["chosen"]:
            forms = ", ".join(f"{_FORMS[form]} of {stage}" for stage, form in choice["chosen"].items())
            words = f"{forms}: worst frame {choice['psnr_db']['worst']:.1f} dB against fp32"
            if choice["psnr_db_fp32"]["worst"] < 100:
                words += f" (its fp32 files: {choice['psnr_db_fp32']['worst']:.1f} dB)"
        found.append(f"{_NAMES[choice['engine']]}: {words}")
        found += [
            f"{_NAMES[choice['engine']]}, {stage}, {_FORMS[form]}: refused: {why}"
            for stage, refused in choice["refused"].items()
            for form, why in refused.items()
        ]
    return found


def words(result: Mapping[str, Any]) -> str:
    """What was timed on which machine, and how busy that was."""
    machine, bundle, protocol = result["machine"], result["bundle"], result["protocol"]
    loads = [result["state"][when]["load_average"] for when in ("before", "after")]
    digest = next(iter(bundle["files"].values()))["sha256"][:8] if bundle["files"] else ""
    bf16 = "; OpenVINO runs fp32 files in bf16" if _BF16 & set(machine["cpu_features"]) else ""
    return (
        f"bundle `{bundle['name']}` at {bundle['width']}x{bundle['height']} (first file {digest}), ranges by "
        f"{protocol['method']} on {sum(protocol['calibrated_on'].values())} samples{bf16}; x: time relative "
        f"to the fp32 file of the same engine, bold: what `calibrate` takes; {machine['cpu']}, "
        f"{machine['cores_usable']} cores, load average {loads[0]} before, {loads[1]} after; "
        f"{result['date'][:10]}, commit {result['software']['commit']}"
    )


def table_lines(result: Mapping[str, Any]) -> list[str]:
    """For a Markdown document."""
    return [words(result) + ".", "", *markdown(header(result), table_rows(result)), *listed(notes(result))]


def text(result: Mapping[str, Any]) -> list[str]:
    """For a terminal."""
    table = columns([header(result), *table_rows(result, "*")])
    return [words(result).replace("`", ""), "", *table, *listed(notes(result))]
