"""A file of tracks in the viewer: what a run saved with `--save NAME.npz`, without model and video."""

from __future__ import annotations

from collections.abc import Iterator

from ..bundle_schema import ModelConfig
from ..outputs.tracks import Tracks
from .scenes import KeyFrame
from .viewer import LiveViewer


def show_tracks(viewer: LiveViewer, tracks: Tracks) -> Iterator[int]:
    """Puts all of a file into the viewer's buffer; yields how many key frames were read. Run it to its end.

    Of a file that is larger than the buffer, the end remains.

    Raises:
        InputError: the file is damaged.
    """
    viewer.present(model_of(tracks), aspect=tracks.picture.aspect)
    for number, time in enumerate(tracks.times):
        key = tracks.key_frame(number)
        pair = None
        if key.motion is not None and key.fade is not None:
            pair = (number - 1, number), key.motion, key.fade
        viewer.add(KeyFrame(number, float(time), key.gaussians), pair)
        yield number + 1
    viewer.finish({"stages": {}, "counters": {"key_frames": len(tracks.times)}})


def model_of(tracks: Tracks) -> ModelConfig:
    """As much of the model as drawing needs."""
    picture, count = tracks.picture, tracks.gaussians
    # Known models have one Gaussian per pixel or per four; another guess changes only which tracks are drawn.
    sizes = [(picture.height // n, picture.width // n) for n in (1, 2)]
    grid = next((size for size in sizes if size[0] * size[1] == count), (1, count))
    return ModelConfig(
        preset="recording",
        height=picture.height,
        width=picture.width,
        patch=1,
        grid=grid,
        token_dim=1,
        feature_dim=1,
        depth_mapping=tracks.depth_mapping,
    )
