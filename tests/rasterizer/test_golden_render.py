"""Against renders of the published rasterizer (tests/golden_render.py)."""

from __future__ import annotations

import numpy as np
import pytest
from golden_render import CASES, DATA, GOLDENS, PATHS, axis_aligned, check, scene, size

from streamsplat_edge.runtime.rasterizer import Rasterizer, View

LEVELS = ["avx512", "avx2", "scalar"]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("case", "path"), PATHS)
@pytest.mark.parametrize(("golden", "extent"), GOLDENS)
def test_matches_published(
    case: str, path: str, golden: str, extent: str, level: str, make_rasterizer
) -> None:
    rasterizer: Rasterizer = make_rasterizer(*size(case), simd=level)
    buffers = rasterizer.render(
        scene(case, quats=path == "general"),
        background=DATA[f"{case}/in_bg"],
        view=View.canonical() if path == "general" else None,
        extent=extent,  # type: ignore[arg-type]
    )
    check(buffers, case, golden)


def test_cases_are_complete() -> None:
    assert {"random300", "ties", "sizes", "rotated", "odd_size", "all_culled", "dense_opaque"} <= set(CASES)
    assert not axis_aligned("rotated")


@pytest.mark.parametrize("case", CASES)
def test_counts_match_published_radii(case: str, make_rasterizer) -> None:
    """A Gaussian is rendered if the published preprocessing gave it a radius and its opacity can be seen."""
    splats = scene(case, quats=True)
    stats = make_rasterizer(*size(case)).render(splats).stats
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
