"""Renders of the published rasterizer: its own kernels, compiled for the CPU, and a float64 twin.

tests/data/golden_render.npz holds, per case, inputs and three renders: `cull_*` (float64, tile rectangles),
`nocull_*` (float64, every pixel with alpha >= 1/255) and `kernel_*` (the published float32 kernels, tile
rectangles).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from streamsplat_edge.runtime.rasterizer import RenderBuffers, Splats

DATA = np.load(Path(__file__).parent / "data" / "golden_render.npz")
CASES = sorted({name.split("/")[0] for name in DATA.files if "/" in name})
GOLDENS = [("cull", "published"), ("kernel", "published"), ("nocull", "full")]

# One Gaussian's contribution flips at a fragile pixel: at most 1/255 at the alpha threshold, about exp(-4.5)
# at the edge of a tile rectangle, at the stop threshold what is left of 1e-4 transmittance times 0.99 / 0.01.
FRAGILE = 0.012


def size(case: str) -> tuple[int, int]:
    """Height and width."""
    height, width = (int(v) for v in DATA[f"{case}/in_size"])
    return height, width


def scene(case: str, *, quats: bool) -> Splats:
    def get(name: str) -> np.ndarray:
        return np.ascontiguousarray(DATA[f"{case}/in_{name}"])

    return Splats(
        means=get("means"),
        scales=get("scales"),
        opacity=get("opacity"),
        rgb=get("rgb"),
        quats=get("quats") if quats else None,
        count=len(get("opacity")),
    )


def axis_aligned(case: str) -> bool:
    return bool((DATA[f"{case}/in_quats"] == [1, 0, 0, 0]).all())


PATHS = [
    (case, path)
    for case in CASES
    for path in ("canonical", "general")
    if path == "general" or axis_aligned(case)
]


def check(buffers: RenderBuffers, case: str, golden: str) -> None:
    """Compare with the golden render: 1e-5, and at fragile pixels at most one Gaussian's contribution."""
    fragile = DATA[f"{case}/{'nocull' if golden == 'nocull' else 'cull'}_fragile"]
    for name in ("rgb", "alpha", "depth"):
        want = DATA[f"{case}/{golden}_{name}"]
        # Depth accumulates values up to 5; its rounding error grows with them (6e-6 in the golden kernels).
        scale = max(1.0, float(want.max())) if name == "depth" else 1.0
        error = np.abs(getattr(buffers, name) - want) / scale
        error = error.max(axis=-1) if error.ndim == 3 else error
        assert error[~fragile].max() <= 1e-5, name
        assert error.max() <= FRAGILE, name
