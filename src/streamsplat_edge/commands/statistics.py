"""The statistics of a run, ready for JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..machine import describe_machine
from . import report

if TYPE_CHECKING:
    from .run import Run


def statistics(run: Run) -> dict[str, Any]:
    """Everything that `--stats` and `--json` tell of a run that is over."""
    args, reader, model, totals = run.args, run.reader, run.model, run.pipeline.report()
    recorder = run.pipeline.recorder
    chain_ms = sum(
        totals.latencies_ms[stage]["mean"] * recorder.seen(stage)
        for stage in report.CHAIN
        if recorder.seen(stage)
    )
    frames = max(totals.frames, 1)
    return {
        "format": report.FORMAT,
        "version": report.VERSION,
        "settings": {
            "input": reader.uri,
            "input_width": reader.width,
            "input_height": reader.height,
            "input_rate": float(reader.rate),
            "output": args.output,
            "layout": args.layout if args.output else None,
            "encoder": run.writer.description if run.writer is not None else None,
            "width": model.width,
            "height": model.height,
            "bundle": str(run.bundle.path),
            "bundle_name": run.bundle.name,
            "preset": model.preset,
            "files": {
                f"{stage}/{variant.path.name}": variant.sha256
                for stage in run.bundle.stage_names
                for variant in run.bundle.variants(stage)
            },
            "decode": args.decode,
            "engine": args.engine,
            "device": args.device,
            "precision": args.precision,
            "threads": args.threads,
            "gap": run.pipeline.gap,
            "key_frames": args.key_frames,
            "max_frames": args.max_frames,
            "saved": list(args.save),
            "novel_view": run.camera.description,
            "display": None if run.display is None else run.display.description,
        },
        "stages": run.stream.description,
        "software": report.software(args.engine),
        "machine": describe_machine(),
        "frames": {
            "total": totals.frames,
            "key": totals.key_frames,
            "in_between": totals.frames - totals.key_frames,
            "cuts": totals.cuts,
            "skipped": totals.skipped,
            "dropped": totals.dropped + reader.dropped,
        },
        "source": {
            "live": reader.live,
            "policy": "latest" if run.drops_frames else "block",
            "breaks": totals.breaks,
            "pauses": totals.pauses,
            **reader.counters,
        },
        "fps": {
            "wall_clock": totals.fps,
            "chain": 1e3 * totals.frames / chain_ms if chain_ms else 0.0,
            "seconds": totals.seconds,
            "definition": "wall_clock: first decode to last write, everything included; chain: frames "
            f"divided by the time in {', '.join(report.CHAIN)} during this run",
        },
        "latency_ms": totals.latencies_ms,
        "power": run.power(totals.frames),
        "psnr_db": run.quality.summary(),
        "gaussians": {
            "per_key_frame": model.gaussians,
            "spawned": totals.spawned,
            "retired": totals.retired,
            "peak_alive": totals.peak_alive,
            "culled": totals.culled,
        },
        "per_frame": {
            "alive": (totals.rendered + sum(totals.culled.values())) / frames,
            "rendered": totals.rendered / frames,
            "tile_pairs": totals.pairs / frames,
        },
        "input_problems": {"truncated": reader.truncated, "notes": reader.notes},
        "interrupted": run.stop.signal is not None,
        "device_lost": None if run.lost is None else run.lost.message,
    }
