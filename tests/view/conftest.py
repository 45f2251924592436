"""Fixtures of the viewer's tests: a bundle whose Gaussians are known, a video, a viewer on a free port."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_bundle import build_fake_bundle

from streamsplat_edge.runtime.bundle import Bundle
from streamsplat_edge.runtime.stream import Stream, open_stream
from streamsplat_edge.runtime.view.viewer import LiveViewer, Settings


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build_fake_bundle(tmp_path_factory.mktemp("bundle") / "fake.bundle")


@pytest.fixture
def stream(bundle: Bundle) -> Iterator[Stream]:
    with open_stream(bundle, threads=1) as opened:
        yield opened


@pytest.fixture
def large_stream(tmp_path: Path) -> Iterator[Stream]:
    """A stream with so many Gaussians that a few pairs fill every buffer of a socket."""
    with open_stream(
        build_fake_bundle(tmp_path / "large.bundle", height=192, width=512), threads=1
    ) as opened:
        yield opened


@pytest.fixture
def viewer() -> Iterator[LiveViewer]:
    """Any free port, closed at the end; no thread of it is left."""
    with LiveViewer(Settings(port=0), "clip.mp4") as opened:
        yield opened
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("view")]
