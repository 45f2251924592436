"""Native module (cuda/bindings*.cpp). Arrays are C-contiguous float32; nothing is converted or copied."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.float32]

class Rasterizer:
    def __init__(self, height: int, width: int, threads: int, simd: str) -> None: ...
    def render(
        self,
        means: _Array,
        scales: _Array,
        opacity: _Array,
        rgb: _Array,
        quats: _Array | None,
        count: int,
        background: _Array,
        rotation: _Array | None,
        translation: _Array | None,
        full: bool,
        out_rgb: _Array,
        depth: _Array,
        expected_depth: _Array,
        alpha: _Array,
    ) -> tuple[int, int, int, int, int, int, int]: ...

def evaluate_at(
    gaussians: _Array,
    motion: _Array,
    fade: _Array,
    dt: float,
    paper: bool,
    threads: int,
    means: _Array,
    scales: _Array,
    opacity: _Array,
    rgb: _Array,
    offset: int,
) -> None: ...
def simd_best() -> str: ...
def simd_supported(level: str) -> bool: ...
def pool_threads(threads: int) -> int: ...
def __getattr__(name: str) -> Any: ...  # the differentiable rasterizer has its own typed wrapper in training/
