"""`streamsplat-edge view NAME.npz`: looks at saved tracks again, without model and video."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from ..cli import EXIT_OK
from ..runtime.errors import InputError
from ..runtime.outputs.tracks import Tracks
from ..runtime.view.recorded import show_tracks
from ..view_options import open_viewer
from .effects import check_effects_on_tracks

TRACKS = ".npz"
OTHER_FILES = (".4dgs", ".ply", ".splat")
_PROGRESS_AFTER = 2.0  # seconds


def main(args: argparse.Namespace) -> int:
    """Serves the page until Ctrl-C.

    Raises:
        InputError: a damaged file, one of Gaussians that do not move by themselves, or options of a run.
    """
    path = Path(args.inputs[0])
    if path.suffix.lower() in OTHER_FILES:
        raise InputError(
            f"{path}: only tracks ({TRACKS}) can be looked at here.",
            "Save them with run INPUT --save tracks.npz; for other files see docs/outputs.md.",
        )
    check_effects_on_tracks(args)
    tracks = Tracks(path)
    try:
        with open_viewer(args, path.name, seconds=float("inf")) as viewer:
            print(f"view: {viewer.url}", file=sys.stderr, flush=True)
            total = len(tracks.times)
            steps = show_tracks(viewer, tracks)
            for _ in tqdm(
                steps,
                total=total,
                unit="key frame",
                file=sys.stderr,
                disable=args.quiet,
                delay=_PROGRESS_AFTER,
            ):
                pass
            oldest = viewer.buffer.oldest
            if oldest is not None and oldest > tracks.times[0]:
                print(
                    f"note: {path}: the last {tracks.times[-1] - oldest:.1f} s fit into --view-memory "
                    f"{args.view_memory}",
                    file=sys.stderr,
                )
            print("Ctrl-C ends it", file=sys.stderr, flush=True)
            viewer.wait()
    except KeyboardInterrupt:  # before `wait` as well: whoever has seen enough ends it
        pass
    finally:
        tracks.close()
    return EXIT_OK
