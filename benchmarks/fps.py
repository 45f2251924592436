"""Speed of the whole chain: `python -m streamsplat_edge.benchmarks.fps INPUT --bundle B [--json OUT]`.

Two measurements of the same stream after a warm-up, each over the whole clip:

- as fast as possible: decode, key frames and renders one after the other, decoding ahead in a thread;
- with `--paced FPS`: frames arrive at that rate as from a camera, whether the chain keeps up or not; late
  and dropped frames are counted.

Nothing is written or shown inside the clock, and no sample is removed. The rendered images are kept and
compared with the clip after the clock has stopped, so speed and quality are of the same run. What was not
measured says so.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..commands import report
from ..machine import describe_machine, scheduling
from ..runtime.bundle import Bundle
from ..runtime.compose import psnr
from ..runtime.errors import InputError, StreamSplatError
from ..runtime.pipeline import Pipeline, SourceFrame
from ..runtime.preprocess import Resizer
from ..runtime.stream import Stream, open_stream
from ..runtime.timing import LatencyRecorder, summarise
from ..runtime.video import open_video, write_bytes

FORMAT, VERSION = "streamsplat-fps", 1
NOT_MEASURED = "not measured"
CV_LIMIT = 0.025  # LESSONS: above this coefficient of variation a mean is not a steady value
_COLUMNS = ("min", "p50", "p90", "p95", "p99", "max", "mean", "std")


class Clip:
    """The input, opened anew for every pass.

    Args:
        uri: video file or folder of images. frames: use only the first so many.
    """

    def __init__(self, uri: str, frames: int | None) -> None:
        self.uri = uri
        self.limit = frames
        with open_video(uri) as reader:
            if reader.live:
                raise InputError(f"{uri} is a camera.", "Pass a file, so that the run can be repeated.")
            self.width, self.height, self.rate = reader.width, reader.height, float(reader.rate)
            self.estimate = reader.frames_estimate

    def __iter__(self) -> Iterator[SourceFrame]:
        with open_video(self.uri) as reader:
            for number, frame in enumerate(reader):
                if number == self.limit:
                    return
                yield frame
            if reader.truncated:
                print(f"warning: {self.uri}: {reader.truncated}", file=sys.stderr)


class Paced:
    """Hands out frames at a fixed rate, as a camera does: frame i never before start + i / fps seconds.

    `captured` holds when each frame (by number) was due, in perf_counter seconds.
    """

    def __init__(self, frames: Iterable[SourceFrame], fps: float) -> None:
        self._frames = frames
        self._fps = fps
        self.captured: dict[int, float] = {}

    def __iter__(self) -> Iterator[SourceFrame]:
        start: float | None = None
        for number, frame in enumerate(self._frames):
            start = time.perf_counter() if start is None else start
            due = start + number / self._fps
            time.sleep(max(0.0, due - time.perf_counter()))
            self.captured[frame.index] = due
            yield frame


@dataclass
class Kept:
    """What is kept of a rendered frame until the clock has stopped."""

    rgb: np.ndarray  # uint8 [H, W, 3]
    is_key: bool


def free_running(clip: Clip, stream: Stream, gap: int | None) -> tuple[dict[str, Any], dict[int, Kept]]:
    """One timed pass as fast as possible: its results, and the images by frame number."""
    recorder = LatencyRecorder()
    pipeline = Pipeline(clip, stream, gap=gap, recorder=recorder)
    kept: dict[int, Kept] = {}
    cpu = time.process_time()
    with (
        closing(pipeline.frames()) as frames,
        tqdm(total=clip.limit or clip.estimate, unit="frame", delay=2.0, leave=False) as bar,
    ):
        for rendered in frames:
            kept[rendered.source.index] = Kept(rendered.frame.rgb, rendered.is_key)
            bar.update()
    cpu = time.process_time() - cpu
    totals = pipeline.report()
    if totals.frames == 0:
        raise InputError(f"{clip.uri}: holds no frame.", "Pass a clip of at least two frames.")
    chain = sum(float(recorder.samples(stage).sum()) for stage in report.CHAIN)
    results = {
        "frames": {"total": totals.frames, "key": totals.key_frames, "cuts": totals.cuts},
        "throughput": {
            "seconds": totals.seconds,
            "fps": totals.fps,
            "chain_fps": 1e3 * totals.frames / chain,
            "cpu_cores_busy": cpu / totals.seconds,
            "definition": "fps: first decode to last frame by wall clock; chain_fps: frames over the time "
            "spent in " + ", ".join(report.CHAIN),
        },
        "latency_ms": totals.latencies_ms,
        "gaussians": {
            "peak_alive": totals.peak_alive,
            "rendered_per_frame": totals.rendered / totals.frames,
            "tile_pairs_per_frame": totals.pairs / totals.frames,
            "culled": totals.culled,
        },
        "samples_ms": {stage: recorder.samples(stage).round(4).tolist() for stage in recorder.stages},
    }
    return results, kept


def paced(clip: Clip, stream: Stream, gap: int | None, fps: float) -> dict[str, Any]:
    """One pass with frames arriving at `fps`.

    A frame is late when it is ready more than one frame interval after the earliest moment it could be: the
    arrival of the key frame that ends its pair, at most `gap` frames after its own.
    """
    source = Paced(clip, fps)
    pipeline = Pipeline(source, stream, gap=gap, live=True, recorder=LatencyRecorder())
    allowed = (pipeline.gap + 1) / fps * 1e3
    waits: list[float] = []
    with closing(pipeline.frames()) as frames:
        for rendered in frames:
            waits.append((time.perf_counter() - source.captured[rendered.source.index]) * 1e3)
    totals = pipeline.report()
    return {
        "fps": fps,
        "frames": totals.frames,
        "dropped": totals.dropped,
        "late": sum(wait > allowed for wait in waits),
        "allowed_ms": allowed,
        "capture_to_present_ms": summarise(np.array(waits)),
        "samples_ms": [round(wait, 4) for wait in waits],
    }


def quality(clip: Clip, kept: dict[int, Kept], height: int, width: int) -> dict[str, Any]:
    """PSNR of the kept images against the clip at model resolution."""
    result = report.Quality()
    resizer = Resizer(height, width)
    planes = np.zeros((3, height, width), np.float32)
    for source in clip:
        if source.index in kept:
            image = kept[source.index]
            resizer.into(source.image, planes)
            truth = np.rint(planes.transpose(1, 2, 0) * np.float32(255)).astype(np.uint8)
            result.add(psnr(image.rgb, truth), image.is_key)
    return result.summary()


def _system(path: str) -> str:
    try:
        return Path(path).read_text().strip() or NOT_MEASURED
    except OSError:
        return NOT_MEASURED


def state() -> dict[str, Any]:
    """What the machine is doing besides: clocks, temperature, load. Read from /sys and /proc."""
    zone = _system("/sys/class/thermal/thermal_zone0/temp")
    try:
        load: Any = [round(value, 2) for value in os.getloadavg()]
    except OSError:
        load = NOT_MEASURED
    return {
        "cpu_governor": _system("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "cpu_khz": _system("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"),
        "temperature_c": round(int(zone) / 1e3, 1) if zone.lstrip("-").isdigit() else NOT_MEASURED,
        "load_average": load,
        "scheduling": scheduling(),
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The whole report as a JSON-ready dictionary."""
    bundle = Bundle.load(args.bundle)
    model = bundle.model
    clip = Clip(args.input, args.frames)
    before = state()
    start = time.perf_counter()
    with open_stream(
        bundle, engine=args.engine, device=args.device, threads=args.threads, precision=args.precision
    ) as stream:
        load_seconds = time.perf_counter() - start
        for _ in Pipeline(clip, stream, gap=args.gap, max_frames=args.warm_up):
            pass
        results, kept = free_running(clip, stream, args.gap)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        live = paced(clip, stream, args.gap, args.paced) if args.paced else NOT_MEASURED
        stages = stream.description
    files = {
        f"{stage}/{variant.path.name}": {"sha256": variant.sha256, "precision": variant.precision}
        for stage in bundle.stage_names
        for variant in bundle.variants(stage)
    }
    return {
        "format": FORMAT,
        "version": VERSION,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "accelerator": "none: everything runs on the CPU" if args.device == "cpu" else args.device,
        "software": report.software(args.engine),
        "bundle": {
            "name": bundle.name,
            "preset": model.preset,
            "width": model.width,
            "height": model.height,
            "gaussians_per_key_frame": model.gaussians,
            "files": files,
        },
        "stages": stages,
        "state": {"before": before, "after": state()},
        "protocol": {
            "input": {"uri": clip.uri, "width": clip.width, "height": clip.height, "fps": clip.rate},
            "gap": model.key_frame_gap if args.gap is None else args.gap,
            "engine": args.engine,
            "device": args.device,
            "threads": args.threads or "all cores",
            "warm_up_frames": args.warm_up,
            "model_load_seconds": load_seconds,
            "mode": "synchronous; decoding runs ahead in a thread",
            "inside_the_clock": "decode, scene cut test, resize, all stages, lifecycle, render to 8-bit RGB "
            "and float depth. Outside: loading, warm-up, PSNR. No output file is written",
        },
        **results,
        "paced": live,
        "memory": {
            "peak_mib": round(peak, 1),
            "of_which_kept_images_mib": round(sum(image.rgb.nbytes for image in kept.values()) / 2**20, 1),
            "definition": "largest resident set of the process; rendered images are kept for the PSNR",
        },
        "power_w": NOT_MEASURED,
        "psnr_db": quality(clip, kept, model.height, model.width),
        "unsteady_stages": [
            stage for stage, values in results["latency_ms"].items() if values.get("cv", 0.0) > CV_LIMIT
        ],
    }


def describe(result: dict[str, Any]) -> list[str]:
    """The report in lines of text."""
    machine, bundle, protocol, frames = (result[k] for k in ("machine", "bundle", "protocol", "frames"))
    source, throughput, memory = protocol["input"], result["throughput"], result["memory"]
    versions = ", ".join(f"{name} {version}" for name, version in result["software"].items() if version)
    before, after = result["state"]["before"], result["state"]["after"]
    lines = [
        f"machine     {machine['cpu'] or machine['architecture']}, {machine['cores_usable']} cores, "
        f"{machine['distribution'] or machine['system']}",
        f"software    {versions}",
        f"state       load {before['load_average']} before, {after['load_average']} after; scheduling "
        f"{before['scheduling']}, governor "
        f"{before['cpu_governor']}, temperature {before['temperature_c']}, power {result['power_w']}",
        f"bundle      {bundle['name']} (preset {bundle['preset']}), {bundle['width']}x{bundle['height']}, "
        f"{bundle['gaussians_per_key_frame']:,} Gaussians per key frame",
        *(f"  {stage:<10}{text}" for stage, text in result["stages"].items()),
        f"clip        {source['uri']}, {source['width']}x{source['height']} at {source['fps']:.4g} fps: "
        f"{frames['total']} frames, {frames['key']} key frames, {frames['cuts']} cuts",
        f"protocol    {protocol['warm_up_frames']} frames warm-up, {protocol['mode']}",
        "",
        f"{'ms':<20}" + "".join(f"{name:>8}" for name in _COLUMNS) + f"{'cv %':>7}{'count':>7}",
    ]
    latencies = result["latency_ms"]
    for stage in report.ordered(latencies):
        values = latencies[stage]
        if values.get("count"):
            numbers = "".join(f"{values[name]:>8.2f}" for name in _COLUMNS)
            lines.append(f"{stage:<20}{numbers}{100 * values['cv']:>7.1f}{values['count']:>7}")
    if result["unsteady_stages"]:
        lines.append(f"cv above {100 * CV_LIMIT:g} %, not steady: {', '.join(result['unsteady_stages'])}")
    psnr_db = result["psnr_db"]
    parts = [
        f"{words} {psnr_db[kind]['mean']:.2f} dB"
        for kind, words in (("key_frames", "key frames"), ("in_between", "in between"))
        if psnr_db[kind]["count"]
    ]
    gaussians = result["gaussians"]
    lines += [
        "",
        f"throughput  {throughput['fps']:.1f} fps by wall clock ({throughput['seconds']:.1f} s), "
        f"{throughput['chain_fps']:.1f} fps chain alone, {throughput['cpu_cores_busy']:.2f} cores busy",
        f"paced       {_paced_line(result['paced'])}",
        f"memory      {memory['peak_mib']:.0f} MiB at most, "
        f"{memory['of_which_kept_images_mib']:.0f} MiB of it images kept for the PSNR",
        f"PSNR        {', '.join(parts)}",
        f"Gaussians   {gaussians['rendered_per_frame']:,.0f} rendered and "
        f"{gaussians['tile_pairs_per_frame']:,.0f} tile pairs per frame",
    ]
    return lines


def _paced_line(values: Any) -> str:
    if not isinstance(values, dict):
        return str(values)
    wait = values["capture_to_present_ms"]
    return (
        f"{values['fps']:g} fps: {values['late']} late (over {values['allowed_ms']:.0f} ms) and "
        f"{values['dropped']} dropped of {values['frames'] + values['dropped']}; capture to present "
        f"p50 {wait['p50']:.0f}, p99 {wait['p99']:.0f}, max {wait['max']:.0f} ms"
    )


def _positive(kind: type) -> Any:
    def parse(text: str) -> Any:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError("must be more than 0")
        return value

    return parse


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m streamsplat_edge.benchmarks.fps",
        description=(__doc__ or "").split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", metavar="INPUT", help="video file or folder of images")
    parser.add_argument("--bundle", required=True, metavar="B", help="bundle folder")
    parser.add_argument("--engine", choices=("onnxruntime", "openvino"), default="onnxruntime")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", metavar="P", help="as for `streamsplat-edge run`")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="0 = all cores (default)")
    parser.add_argument("--gap", type=_positive(int), metavar="N", help="frames from key frame to key frame")
    parser.add_argument("--frames", type=_positive(int), metavar="N", help="use the first N frames of INPUT")
    parser.add_argument(
        "--warm-up", type=_positive(int), default=16, metavar="N", help="frames before the clock (default 16)"
    )
    parser.add_argument(
        "--paced", type=_positive(float), metavar="FPS", help="also measure frames arriving at FPS"
    )
    parser.add_argument(
        "--json", type=Path, metavar="OUT", help="also write everything, raw samples too, as JSON"
    )
    args = parser.parse_args(argv)
    try:
        result = measure(args)
        print("\n".join(describe(result)))
        if args.json:
            write_bytes(args.json, (json.dumps(report.finite(result), indent=1) + "\n").encode())
    except StreamSplatError as error:
        print(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
