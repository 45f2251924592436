from __future__ import annotations

from collections.abc import Callable

import pytest

from streamsplat_edge import _core
from streamsplat_edge.runtime.rasterizer import Rasterizer


@pytest.fixture
def make_rasterizer() -> Callable[..., Rasterizer]:
    """Rasterizer(...), skipping where the CPU lacks the instruction set that a test asks for."""

    def make(height: int, width: int, *, threads: int = 2, simd: str = "auto") -> Rasterizer:
        if not _core.simd_supported(simd):
            pytest.skip(f"this CPU has no {simd}")
        return Rasterizer(height, width, threads=threads, simd=simd)  # type: ignore[arg-type]

    return make
