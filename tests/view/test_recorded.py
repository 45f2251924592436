"""Saved tracks in the viewer: the same Gaussians, without model and video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from view_samples import random_key_frame, random_pair

from streamsplat_edge.runtime.errors import InputError
from streamsplat_edge.runtime.outputs import key_frame as saved
from streamsplat_edge.runtime.outputs.cloud import Picture
from streamsplat_edge.runtime.outputs.tracks import Tracks, TracksWriter
from streamsplat_edge.runtime.view.recorded import model_of, show_tracks
from streamsplat_edge.runtime.view.scenes import KeyFrame, Pair
from streamsplat_edge.runtime.view.viewer import LiveViewer, Settings

G = 8 * 16


def write_tracks(path: Path, count: int = 4) -> Path:
    """Key frames half a second apart; the last one begins a scene."""
    writer = TracksWriter(path, depth_mapping="paper", picture=Picture(32, 16, 2.5))
    for i in range(count):
        pair = random_pair(i, G) if 0 < i < count - 1 else {}
        writer.add_key_frame(saved.KeyFrame(i / 2, random_key_frame(i, G), **pair))
    writer.close()
    return path


def test_everything_of_the_file_is_shown(tmp_path: Path, viewer: LiveViewer) -> None:
    tracks = Tracks(write_tracks(tmp_path / "t.npz"))
    assert list(show_tracks(viewer, tracks)) == [1, 2, 3, 4]
    scenes = [entry.scene for entry in viewer.buffer.newest_first()]
    assert [scene.time for scene in scenes if isinstance(scene, KeyFrame)] == [1.5, 1.0, 0.5, 0.0]
    pairs = [scene for scene in scenes if isinstance(scene, Pair)]
    assert [(pair.earlier.index, pair.later.index) for pair in pairs] == [(1, 2), (0, 1)]
    np.testing.assert_array_equal(pairs[0].earlier.gaussians, random_key_frame(1, G))
    for name, array in random_pair(2, G).items():
        np.testing.assert_array_equal(getattr(pairs[0], name), array)
    tracks.close()


def test_the_model_is_guessed(tmp_path: Path) -> None:
    tracks = Tracks(write_tracks(tmp_path / "t.npz"))
    model = model_of(tracks)
    assert (model.width, model.height, model.grid, model.depth_mapping) == (32, 16, (8, 16), "paper")
    tracks.gaussians = 32 * 16
    assert model_of(tracks).grid == (16, 32)
    tracks.gaussians = 77
    assert model_of(tracks).grid == (1, 77)
    tracks.close()


def test_of_a_large_file_the_end_remains(tmp_path: Path) -> None:
    tracks = Tracks(write_tracks(tmp_path / "t.npz", 50))
    with LiveViewer(Settings(port=0, seconds=float("inf"), max_bytes=200_000)) as viewer:
        list(show_tracks(viewer, tracks))
        assert viewer.buffer.bytes <= 200_000
        assert viewer.buffer.oldest is not None and viewer.buffer.oldest > 10.0
    tracks.close()


def test_a_damaged_file(tmp_path: Path, viewer: LiveViewer) -> None:
    path = write_tracks(tmp_path / "t.npz")
    data = bytearray(path.read_bytes())
    place = data.index(b"motion_000002.npy")
    data[place + 200 : place + 400] = bytes(200)
    path.write_bytes(data)
    tracks = Tracks(path)
    with pytest.raises(InputError, match="damaged"):
        list(show_tracks(viewer, tracks))
    tracks.close()
