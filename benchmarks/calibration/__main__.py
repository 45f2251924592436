"""Methods and numbers of samples: `python -m streamsplat_edge.benchmarks.calibration BUNDLE --data VIDEOS`.

Videos are recorded once, with the largest number of samples. For every method and number, the ranges that
follow are put around everything that the default rules quantise, nothing is given back, and frames of other
videos are rendered and compared with fp32. Graphs are computed literally in ONNX Runtime (as a GPU computes
them but for the order of sums); no time is measured. Needs the extra [build], and [train] for --media.

What is finished is kept in --work: the same command goes on where a stopped one was.
"""

from __future__ import annotations

import argparse

from ... import option_types
from .prepare import add_arguments, carried_out
from .result import text
from .study import run


def _counts(text_: str) -> tuple[int, ...]:
    return tuple(option_types.positive(word.strip()) for word in text_.split(",") if word.strip())


def _some_counts(text_: str) -> tuple[int, ...]:
    found = _counts(text_)
    if not found:
        raise argparse.ArgumentTypeError("give one number or more")
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m streamsplat_edge.benchmarks.calibration",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    add = parser.add_argument
    add(
        "--counts",
        type=_some_counts,
        default="8,16,32,64,128,256",
        metavar="N",
        help="samples, best each a multiple of the one before (default %(default)s)",
    )
    add(
        "--fp8-counts",
        type=_counts,
        default="256",
        metavar="N",
        help="those of them that FP8 is measured with as well, '' for none (default %(default)s)",
    )
    add(
        "--subsets",
        type=option_types.positive,
        default=4,
        metavar="N",
        help="of each number of samples, where there are as many (default %(default)s)",
    )
    add("--percentile", type=float, default=99.99, metavar="P", help="for that method (default %(default)s)")
    args = parser.parse_args(argv)
    return carried_out(
        args,
        max(args.counts),
        lambda ready, write: run(
            ready, args.counts, args.fp8_counts, args.subsets, args.percentile, write, not args.quiet
        ),
        text,
    )


if __name__ == "__main__":
    raise SystemExit(main())
