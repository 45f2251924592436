"""Results as Markdown: `python -m streamsplat_edge.benchmarks.table benchmarks/results/*.json`.

Reads the JSON of the benchmarks `fps`, `soak`, `rasterizer`, `raster_cuda`, `raster_grad`, `raster_compare`,
`scaling`, `device_model`, `gpu_chain` and `calibration`, and of `streamsplat-edge bench` and `eval`.
With `--update README.md` the tables replace what stands between the two marker lines there: no number in the
README is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..commands.report import ordered
from ..runtime.errors import InputError, StreamSplatError
from ..runtime.video import write_bytes
from .bench import summary
from .calibration import chain_result, cpu_result
from .calibration import result as calibration
from .device_model import result as device_model
from .gpu_chain import result as gpu_chain
from .markdown import markdown
from .raster_compare import tables as raster_compare
from .scaling import result as scaling

BEGIN = "<!-- begin: python -m streamsplat_edge.benchmarks.table -->"
END = "<!-- end of tables -->"


def fps_table(result: dict[str, Any]) -> list[str]:
    """Stages with percentiles, and the run in words."""
    machine, bundle, frames = result["machine"], result["bundle"], result["frames"]
    state = result["state"]["before"]
    throughput, quality, source = result["throughput"], result["psnr_db"], result["protocol"]["input"]
    rows = [
        [stage, *(f"{values[name]:.2f}" for name in ("p50", "p90", "p99", "max")), str(values["count"])]
        for stage in ordered(result["latency_ms"])
        if (values := result["latency_ms"][stage]).get("count")
    ]
    paced = result["paced"]
    words = [
        f"**{throughput['fps']:.1f} frames per second** by wall clock, {throughput['chain_fps']:.1f} for the "
        f"chain alone; {frames['total']} frames ({source['width']}x{source['height']}), {frames['key']} of "
        "them key frames",
        f"bundle `{bundle['name']}` at {bundle['width']}x{bundle['height']}, "
        f"{bundle['gaussians_per_key_frame']:,} Gaussians per key frame, {result['stages']['encode']}",
        f"{machine['cpu']}, {machine['cores_usable']} cores, load average "
        f"{state['load_average'][0]}, {state['scheduling']} scheduling; "
        f"commit {result['software']['commit']}",
        "PSNR of the same run: "
        + ", ".join(
            f"{words} {quality[kind]['mean']:.2f} dB"
            for kind, words in (("key_frames", "key frames"), ("in_between", "in between"))
            if quality[kind]["count"]
        ),
        f"memory {result['memory']['peak_mib']:.0f} MiB; power {result['power_w']}",
    ]
    if isinstance(paced, dict):
        words.append(
            f"paced at {paced['fps']:g} frames per second: {paced['late']} late, {paced['dropped']} dropped, "
            f"capture to present p50 {paced['capture_to_present_ms']['p50']:.0f} ms"
        )
    return ["; ".join(words) + ".", "", *markdown(("ms", "p50", "p90", "p99", "max", "count"), rows)]


def bench_table(result: dict[str, Any]) -> list[str]:
    """One row per backend, and what explains it."""
    first, *rows = summary.table(result)
    words = "; ".join(" ".join(line.split()) for line in summary.overview(result))
    return [words + ".", "", *markdown(first, rows), "", *(f"- {line}" for line in summary.reasons(result))]


def rasterizer_table(result: dict[str, Any]) -> list[str]:
    """One row per scene."""
    machine = result["machine"]
    header = ("image, Gaussians, sigma, view", "tile pairs", "min ms", "p50 ms", "p90 ms")
    rows = [
        [
            f"{row['width']}x{row['height']}, {row['gaussians']:,}, {row['sigma_px']:g} px, {row['path']}",
            f"{row['pairs']:,}",
            *(f"{row[name]:.2f}" for name in ("min_ms", "p50_ms", "p90_ms")),
        ]
        for row in result["results"]
    ]
    words = (
        f"{machine['cpu']}, {machine['threads']} threads, {machine['simd']}, load average "
        f"{machine['load_average_1min']}, {machine['scheduling']} scheduling; "
        f"commit {machine['commit']}. RGB, depth and alpha, from Gaussians in world space."
    )
    return [words, "", *markdown(header, rows)]


def cuda_table(result: dict[str, Any]) -> list[str]:
    """One row per scene of the CUDA rasterizer."""
    machine = result["machine"]
    header = ("image, Gaussians, sigma, view, times", "tile pairs", "min us", "p50 us", "p90 us", "p99 us")
    rows = [
        [
            f"{row['width']}x{row['height']}, {row['gaussians']:,}, {row['sigma_px']:g} px, {row['path']}, "
            f"{row['times']}",
            f"{row['pairs']:,}",
            *(f"{row[name]:.1f}" for name in ("min_us", "p50_us", "p90_us", "p99_us")),
        ]
        for row in result["results"]
    ]
    words = (
        f"CUDA rasterizer, {machine['gpu']}, load average {machine['load_average_1min']}, "
        f"{machine['scheduling']} scheduling; commit {machine['commit']}. Per launch, in a graph."
    )
    return [words, "", *markdown(header, rows)]


def gradient_table(result: dict[str, Any]) -> list[str]:
    """One row per batch of the rasterizer in training."""
    machine = result["machine"]
    header = (
        "batch, Gaussians, image, sigma",
        "tile pairs",
        "forward p50 ms",
        "p90",
        "backward p50 ms",
        "p90",
    )
    times = ("forward_p50_ms", "forward_p90_ms", "backward_p50_ms", "backward_p90_ms")
    rows = [
        [
            f"{row['batch']}, {row['gaussians']:,}, {row['width']}x{row['height']}, {row['sigma_px']:g} px",
            f"{row['binned_pairs']:,}",
            *(f"{row[name]:.2f}" for name in times),
        ]
        for row in result["results"]
    ]
    if machine["device"] == "cuda":
        device = f"{machine['gpu']}, CUDA {machine['cuda']}, driver {machine['driver_version']}"
    else:
        device = f"{machine['cpu']}, {machine['threads']} threads"
    words = (
        f"rasterizer in training, {device}, torch {machine['torch']}, load average "
        f"{machine['load_average_1min']}, {machine['scheduling']} scheduling; commit {machine['commit']}."
    )
    return [words, "", *markdown(header, rows)]


def eval_table(result: dict[str, Any]) -> list[str]:
    """PSNR, one row per clip; then the averages of what else was measured."""
    average = result["average"]
    columns = {"key": "key frames", "between": "in between", "blend": "blending the originals"}
    if "dis" in average:
        columns["dis"] = "optical flow of the originals"
    columns["rendered_blend"] = "blending the rendered"

    def cells(scores: dict[str, Any], digits: int = 2) -> list[str]:
        return [f"{scores[name]:.{digits}f}" if name in scores else "-" for name in columns]

    rows = [[name, *cells(scores)] for name, scores in (*result["clips"].items(), ("**average**", average))]
    words = f"{result['metric']}; gap {result['gap']}, {result['engine']}, {result['split']} split."
    lines = [words, "", *markdown(("clip", *columns.values()), rows)]
    others = [metric for metric in result.get("metrics", ()) if metric != "psnr"]
    rows = [[_metric_name(metric), *cells(average[metric], _digits(metric))] for metric in others]
    for name, part in result.get("paper", {}).items():
        title = f"{name}, gap {part['gap']}: "
        rows.append([title + _metric_name("psnr"), *cells(part["average"])])
        rows += [[title + _metric_name(m), *cells(part["average"][m], _digits(m))] for m in others]
    return [*lines, "", *markdown(("average", *columns.values()), rows)] if rows else lines


def _metric_name(metric: str) -> str:
    """psnr_256 -> PSNR at 256x256."""
    name, _, size = metric.partition("_")
    return f"{name.upper()} at {size}x{size}" if size else name.upper()


def _digits(metric: str) -> int:
    return 2 if metric.startswith("psnr") else 4


def soak_table(result: dict[str, Any]) -> list[str]:
    """What a long run was asked, and the answers."""
    seconds = result["protocol"]["seconds_of_stream"]
    machine, protocol, memory, gain = (
        *(result[name] for name in ("machine", "protocol", "memory")),
        result["memory"]["slope"],
    )
    head = (
        f"**{protocol['frames_run']:,} frames** of a stream, {seconds / 60:.1f} minutes "
        f"of it ({result['seconds'] / 60:.0f} by the clock, {protocol['processes']} process(es)); bundle "
        f"`{result['bundle']['name']}`, {result['stages']['encode']}; {machine['cpu']}, "
        f"{machine['cores_usable']} cores; commit {result['software']['commit']}."
    )
    rows = []
    if gain:
        rows = [
            ["resident memory, start and end, MiB", f"{memory['first_mib']:.1f}, {memory['last_mib']:.1f}"],
            [
                f"slope of memory over the second half ({gain['samples']} samples), bytes per frame, 95 %",
                f"{gain['bytes_per_frame']:+.1f} ± {gain['interval_95']:.1f}",
            ],
        ]
    for kind, words in (("key_frames", "key frames"), ("in_between", "in between")):
        values = result["psnr_db"][kind]
        if values["first_minute"] is not None and values["last_minute"] is not None:
            both = f"{values['first_minute']:.3f}, {values['last_minute']:.3f}"
            rows.append([f"PSNR of the first and the last minute, {words}, dB", both])
    repeats = result["repeats"]
    rows += [
        [
            f"largest difference of {repeats['frames_compared']:,} frames from their first showing, levels",
            str(repeats["largest_difference"]),
        ],
        ["violations of ids, order or counters", str(len(result["exact"]["violations"]))],
    ]
    return [head, "", *markdown(["", "measured"], rows)]


def ablations_table(result: dict[str, Any]) -> list[str]:
    """Every variant beside the full model, and the paper's key frames."""
    recipes, machine = result["recipes"], result["machine"]
    head = (
        f"{result['metric']}; gap {result['gap']}; {recipes['static']['steps']} + "
        f"{recipes['dynamic']['steps']} steps per variant{'' if result['complete'] else ', not complete'}; "
        f"{machine['cpu']}; commit {result['commit']}."
    )
    full = result["variants"]["full"]
    rows = []
    for entry in result["variants"].values():
        cells = [entry["title"]]
        for kind in ("key", "between"):
            value, reference = (e.get("average", {}).get(kind) for e in (entry, full))
            cells += ["-", "-"] if value is None else [f"{value:.2f}", f"{value - reference:+.2f}"]
        rows.append([*cells, f"{entry['paper_key']:.2f}", f"{entry['paper_key'] - full['paper_key']:+.2f}"])
    columns = ["", "key frames", "change", "in between", "change", "paper: key frames", "change"]
    return [head, "", *markdown(columns, rows)]


_TABLES: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "streamsplat-fps": fps_table,
    "streamsplat-soak": soak_table,
    "streamsplat-bench": bench_table,
    "streamsplat-raster-compare": raster_compare.table_lines,
    "streamsplat-scaling": scaling.table_lines,
    "streamsplat-device-model": device_model.table_lines,
    "streamsplat-gpu-chain": gpu_chain.table_lines,
    calibration.FORMAT: calibration.table_lines,
    cpu_result.FORMAT: cpu_result.table_lines,
    chain_result.FORMAT: chain_result.table_lines,
    "ablations": ablations_table,
    "rasterizer": rasterizer_table,
    "raster_cuda": cuda_table,
    "raster_grad": gradient_table,
}


def table(path: Path) -> list[str]:
    """The Markdown of one results file.

    Raises:
        InputError: not JSON, or of none of the kinds.
    """
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}).") from error
    if isinstance(result, dict):
        kind = result.get("format") or result.get("benchmark")
        if isinstance(kind, str) and kind in _TABLES:
            return _TABLES[kind](result)
        if {"metric", "clips", "average"} <= result.keys():
            return eval_table(result)
    raise InputError(
        f"{path}: is not a result of bench, eval or one of the benchmarks.",
        "Leave it out.",
    )


def document(paths: Sequence[Path]) -> str:
    """All tables, each under the name of its file."""
    parts = [
        "\n".join([f"`{path.name}`: " + lines[0], *lines[1:]]) for path in paths if (lines := table(path))
    ]
    return "\n\n".join(parts)


def updated(text: str, tables: str) -> str:
    """`text` with the part between the marker lines replaced.

    Raises:
        InputError: the markers are not there, once each and in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError("The file has no marker lines.", f"Add the lines {BEGIN} and {END}.")
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m streamsplat_edge.benchmarks.table", description="Results as Markdown tables."
    )
    parser.add_argument(
        "results",
        nargs="+",
        type=Path,
        metavar="JSON",
        help="results of the benchmarks and of eval",
    )
    parser.add_argument(
        "--update", type=Path, metavar="FILE", help="replace the tables in this Markdown file"
    )
    args = parser.parse_args(argv)
    try:
        tables = document(args.results)
        if args.update:
            write_bytes(args.update, updated(args.update.read_text(), tables).encode())
        else:
            print(tables)
    except StreamSplatError as error:
        print(error.told, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
