"""Cost per frame as something grows: `python -m streamsplat_edge.benchmarks.scaling BUNDLE --clip FILE`.

One thing at a time is varied: the size of the model (its weights exported anew, extra [export]), the gap from
key frame to key frame, the length of the stream, the number of streams on the same engines. Each point is a
pass of the whole pipeline over the clip, without output; points take turns, round by round. ONNX Runtime in
fp32 on the CPU.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path
from typing import Any

from ... import option_types
from ...runtime.bundle import Bundle
from ...runtime.video import encode_png, write_bytes
from ..outcome import carried_out
from .measure import Point, Sweep
from .result import draw, run, text
from .sizes import Size, export_sizes


def _sizes(text_: str) -> tuple[Size, ...]:
    found = [re.fullmatch(r"(\d+)x(\d+)", word.strip()) for word in text_.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError("give HEIGHTxWIDTH, several separated by commas")
    return tuple((int(match[1]), int(match[2])) for match in found if match)


def _counts(text_: str) -> tuple[int, ...]:
    return tuple(option_types.positive(word.strip()) for word in text_.split(","))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m streamsplat_edge.benchmarks.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", type=Path, help="bundle folder")
    add("--clip", required=True, metavar="FILE", help="video or folder of images")
    add(
        "--frames",
        type=option_types.positive,
        default=32,
        metavar="N",
        help="of the clip, per point (default %(default)s)",
    )
    add(
        "--sizes",
        type=_sizes,
        default="96x160,192x320,288x512",
        metavar="S",
        help="beside the bundle's own, as HEIGHTxWIDTH (default %(default)s)",
    )
    add(
        "--gaps",
        type=_counts,
        default="1,2,4,8",
        metavar="N",
        help="frames from key frame to key frame (default %(default)s)",
    )
    add(
        "--lengths",
        type=_counts,
        default="16,32,64,128",
        metavar="N",
        help="frames of the stream (default %(default)s)",
    )
    add("--streams", type=_counts, default="1,2,4", metavar="N", help="at once (default %(default)s)")
    add(
        "--rounds",
        type=option_types.positive,
        default=2,
        metavar="N",
        help="passes per point (default %(default)s)",
    )
    add("--threads", type=option_types.threads, default=0, metavar="N", help="0 = all cores (default)")
    add(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="what the bundle was exported from (default: the checkout's own)",
    )
    add("--work", type=Path, metavar="DIR", help="keep the exported bundles there for another run")
    add("--json", type=Path, metavar="OUT", help="also write everything, raw samples too, as JSON")
    add("--picture", type=Path, metavar="PNG", help="also draw it")
    args = parser.parse_args(argv)

    def swept() -> dict[str, Any]:
        bundle = Bundle.load(args.bundle)
        model = bundle.model
        base = Point(model.height, model.width, model.key_frame_gap, args.frames, 1)
        sweep = Sweep(base, args.sizes, args.gaps, args.lengths, args.streams)
        with tempfile.TemporaryDirectory() as folder:
            bundles = export_sizes(bundle, args.sizes, args.checkpoint, args.work or Path(folder))
            result = run(sweep, bundle, bundles, args.clip, args.rounds, args.threads)
        if args.picture:
            write_bytes(args.picture, encode_png(draw(result)))
        return result

    return carried_out(swept, text, args.json)


if __name__ == "__main__":
    raise SystemExit(main())
