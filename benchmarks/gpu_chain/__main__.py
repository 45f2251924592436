"""End to end on a GPU: `python -m streamsplat_edge.benchmarks.gpu_chain [--preset base] [--json OUT]`.

Per key frame, from its picture on the host to the images of its interval on the host: the published script's
way in PyTorch (eager, bf16, everything of both frames of a pair computed anew for each pair), and ours in
every engine that runs here (fp16), in one process and in turn. Without a checkpoint the weights are random:
the networks cost the same, but more Gaussians are seen in a pixel. Needs torch's CUDA build, CuPy, and the
extras [train] and [export]; what cannot run is listed with its reason. The rasterizer by itself:
`raster_compare`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from ... import option_types
from ...extras import require
from ...runtime.cuda.device import Device
from ...runtime.errors import StreamSplatError
from ..outcome import write_json


def open_device() -> Device:
    """The first GPU.

    Raises:
        EngineError: there is none, or CuPy is missing.
    """
    from ...runtime.cuda.cupy_device import CupyDevice

    return CupyDevice()


def main(argv: list[str] | None = None, device: Callable[[], Device] = open_device) -> int:
    """Exit code 2 where the published way or all of ours could not be measured."""
    parser = argparse.ArgumentParser(
        prog="python -m streamsplat_edge.benchmarks.gpu_chain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--preset", default="base", metavar="NAME", help="with random weights (default: base)")
    add(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="weights instead, with --dino and --depth as for export",
    )
    add("--dino", type=Path, metavar="FILE", help="weights of DINOv2")
    add("--depth", type=Path, metavar="FOLDER", help="weights of Depth Anything V2")
    add("--methods", metavar="M", help="several, separated by commas (default: all)")
    add("--size", default="1080x1920", metavar="HxW", help="of the pictures (default: %(default)s)")
    add("--gap", type=option_types.positive, metavar="N", help="images per key frame (default: the preset's)")
    add("--key-frames", type=option_types.positive, default=12, metavar="N", help="per round (default: 12)")
    add("--rounds", type=option_types.positive, default=10, metavar="N", help="timed (default: 10)")
    add("--work", type=Path, metavar="DIR", help="keep exported files and plans there for another run")
    add("--json", type=Path, metavar="OUT", help="also write everything, raw samples too, as JSON")
    args = parser.parse_args(argv)
    try:
        require("export", "torch", "safetensors", "onnx", "onnxscript")
        opened = device()  # first: without one nothing can be measured
        from ...export.load import Source
        from .measure import Protocol, measure, stderr
        from .methods import BY_NAME, METHODS, Bench
        from .models import loaded_model
        from .result import MEASURED, text

        names = args.methods.split(",") if args.methods else list(BY_NAME)
        if unknown := [name for name in names if name not in BY_NAME]:
            parser.error(f"{', '.join(unknown)} is no method; use some of {', '.join(BY_NAME)}")
        source = None
        if args.checkpoint:
            source = Source(args.checkpoint, args.preset, args.dino, args.depth)
        loaded = loaded_model(source, args.preset)
        height, width = (option_types.positive(side) for side in args.size.split("x", 1))
        gap = args.gap or loaded.config.key_frame_gap
        protocol = Protocol(height, width, gap, args.key_frames, args.rounds)
        bench = Bench(loaded, lambda: opened, args.work)
        try:
            chosen = [method for method in METHODS if method.name in names]
            result = measure(chosen, bench, protocol, stderr)
        finally:
            bench.close()
        print("\n".join(text(result)))
        write_json(result, args.json)
    except StreamSplatError as error:
        print(error.told, file=sys.stderr)
        return 2
    measured = {row["ours"] for row in result["methods"] if row["status"] == MEASURED}
    return 0 if measured == {True, False} else 2


if __name__ == "__main__":
    raise SystemExit(main())
