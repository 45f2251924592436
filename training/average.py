"""The mean of several trained weights: `python -m streamsplat_edge.training.average FILE FILE ... -o OUT`.

Runs that start from one another end in the same valley of the loss, at places that differ by the noise of
their last steps; the mean lies nearer to its floor (P. Izmailov et al., "Averaging Weights Leads to Wider
Optima and Better Generalization", UAI 2018). It costs nothing at run time; `eval` tells whether it helps.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..runtime.bundle import sha256_of
from ..runtime.errors import InputError, StreamSplatError
from .checkpoint import load_weights, read_config, save_weights
from .model import StreamSplat


def average(files: Sequence[Path], out: Path) -> None:
    """Write the mean of every weight, with the SHA-256 of the files it is of.

    Args:
        files: two or more weights of the same model, as `train` wrote them (both stages). Its span of depth
            may have changed from run to run, since no weight depends on it: that of the last file is taken.
        out: safetensors, written under a temporary name and renamed.

    Raises:
        InputError: fewer than two files, one cannot be read, or they are of different models.
        OutputError: `out` cannot be written.
    """
    if len(files) < 2:
        raise InputError("A mean needs two files or more.", "Name the weights of several runs.")
    config = read_config(files[-1])
    model = StreamSplat(config)
    total: dict[str, torch.Tensor] = {}
    for file in files:
        if replace(read_config(file), depth_span=config.depth_span) != config:
            raise InputError(f"{file} is of another model than {files[-1]}.", "Average runs of one model.")
        load_weights(model, file)
        for name, value in model.state_dict().items():
            total[name] = total.get(name, 0) + value.double() / len(files)
    model.load_state_dict({name: value.to(model.state_dict()[name].dtype) for name, value in total.items()})
    save_weights(model, out, {"average_of_sha256": json.dumps([sha256_of(file) for file in files])})


def main(argv: list[str] | None = None) -> int:
    """Command line. Exit code 2 where the files cannot be averaged."""
    parser = argparse.ArgumentParser(
        prog="python -m streamsplat_edge.training.average",
        description="writes the mean of the weights of several runs that went on from one another",
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="weights of one model")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="safetensors")
    parser.add_argument("--force", action="store_true", help="replace OUT")
    arguments = parser.parse_args(argv)
    try:
        if arguments.output.exists() and not arguments.force:
            raise InputError(f"{arguments.output} exists.", "Use --force to replace it.")
        average(arguments.files, arguments.output)
    except StreamSplatError as error:
        print(error.told, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
