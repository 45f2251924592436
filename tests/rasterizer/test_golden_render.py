"""Against renders of the published rasterizer: its own kernels, compiled for the CPU, and a float64 twin.

tests/data/golden_render.npz holds, per case, inputs and three renders: `cull_*` (float64, tile rectangles),
`nocull_*` (float64, every pixel with alpha >= 1/255) and `kernel_*` (the published float32 kernels, tile
rectangles).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamsplat_edge.runtime.rasterizer import Rasterizer, Splats, View

DATA = np.load(Path(__file__).parents[1] / "data" / "golden_render.npz")
CASES = sorted({name.split("/")[0] for name in DATA.files if "/" in name})
LEVELS = ["avx512", "avx2", "scalar"]

# One Gaussian's contribution flips at a fragile pixel: at most 1/255 at the alpha threshold, about exp(-4.5)
# at the edge of a tile rectangle, at the stop threshold what is left of 1e-4 transmittance times 0.99 / 0.01.
FRAGILE = 0.012


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


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("case", "path"), PATHS)
@pytest.mark.parametrize(
    ("golden", "extent"), [("cull", "published"), ("kernel", "published"), ("nocull", "full")]
)
def test_matches_published(
    case: str, path: str, golden: str, extent: str, level: str, make_rasterizer
) -> None:
    height, width = (int(v) for v in DATA[f"{case}/in_size"])
    rasterizer: Rasterizer = make_rasterizer(height, width, simd=level)
    buffers = rasterizer.render(
        scene(case, quats=path == "general"),
        background=DATA[f"{case}/in_bg"],
        view=View.canonical() if path == "general" else None,
        extent=extent,  # type: ignore[arg-type]
    )
    fragile = DATA[f"{case}/{'nocull' if golden == 'nocull' else 'cull'}_fragile"]
    for name in ("rgb", "alpha", "depth"):
        want = DATA[f"{case}/{golden}_{name}"]
        # Depth accumulates values up to 5; its rounding error grows with them (6e-6 in the golden kernels).
        scale = max(1.0, float(want.max())) if name == "depth" else 1.0
        error = np.abs(getattr(buffers, name) - want) / scale
        error = error.max(axis=-1) if error.ndim == 3 else error
        assert error[~fragile].max() <= 1e-5, name
        assert error.max() <= FRAGILE, name


def test_cases_are_complete() -> None:
    assert {"random300", "ties", "sizes", "rotated", "odd_size", "all_culled", "dense_opaque"} <= set(CASES)
    assert not axis_aligned("rotated")


@pytest.mark.parametrize("case", CASES)
def test_counts_match_published_radii(case: str, make_rasterizer) -> None:
    """A Gaussian is rendered if the published preprocessing gave it a radius and its opacity can be seen."""
    height, width = (int(v) for v in DATA[f"{case}/in_size"])
    splats = scene(case, quats=True)
    stats = make_rasterizer(height, width).render(splats).stats
    visible = DATA[f"{case}/radius"] > 0
    seen = visible & (splats.opacity >= np.float32(1 / 255))
    x0, y0, x1, y1 = DATA[f"{case}/rect"].astype(np.int64).T
    assert stats.rendered == seen.sum()
    assert stats.pairs == ((x1 - x0) * (y1 - y0))[seen].sum()
    assert stats.rendered + stats.culled == splats.count


def test_rectangles_show_in_the_result(make_rasterizer) -> None:
    """The two extents really differ: tails are cut at the tile rectangle by up to 1e-2."""
    splats = scene("rotated", quats=True)
    rasterizer = make_rasterizer(64, 96)
    published = rasterizer.render(splats).rgb
    full = rasterizer.render(splats, extent="full").rgb
    assert 1e-3 < np.abs(published - full).max() < 1e-2
