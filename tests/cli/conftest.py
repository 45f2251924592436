"""Shared by the tests of the command line: one fake bundle, and the command called as a user calls it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_bundle import build_fake_bundle

Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def fake_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of 32 x 16 pixels; do not change it."""
    path = tmp_path_factory.mktemp("bundle") / "fake.bundle"
    build_fake_bundle(path)
    return path


@pytest.fixture
def call() -> Call:
    """Runs `streamsplat-edge ARGUMENTS` in a process of its own; keyword arguments go to `subprocess.run`."""

    def run(*arguments: object, env: dict[str, str] | None = None, **options: Any) -> Any:
        command = [sys.executable, "-m", "streamsplat_edge", *map(str, arguments)]
        options = {"capture_output": True, "text": True, "timeout": 180, **options}
        return subprocess.run(command, env={**os.environ, **(env or {})}, **options)

    return run
