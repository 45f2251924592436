"""Fixtures of tests that run streams."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_bundle import build_fake_bundle

from streamsplat_edge.runtime.bundle import Bundle
from streamsplat_edge.runtime.stream import Stream, open_stream


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build_fake_bundle(tmp_path_factory.mktemp("bundle") / "fake.bundle")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_fake_bundle(tmp_path_factory.mktemp("bundle") / "fake.bundle").path


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(pristine, tmp_path / "fake.bundle"))


@pytest.fixture
def stream(bundle: Bundle) -> Iterator[Stream]:
    with open_stream(bundle, threads=1) as opened:
        yield opened


@pytest.fixture
def no_thread_is_left() -> Iterator[None]:
    """Decoding threads end with what they decode for."""
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name == "decode"] == []
