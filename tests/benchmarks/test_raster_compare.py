"""The comparison of rasterizers: agreement, counted work, interleaving and what is listed; no speed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from streamsplat_edge.benchmarks import plot, table
from streamsplat_edge.benchmarks.raster_compare import __main__ as command
from streamsplat_edge.benchmarks.raster_compare import compare, methods, picture
from streamsplat_edge.benchmarks.raster_compare.bound import Rates, Truth, bytes_moved, multiply_adds
from streamsplat_edge.benchmarks.raster_compare.methods import Case, Cpp, Dense, Gsplat, Image, OnGsplat
from streamsplat_edge.benchmarks.rasterizer import make_scene
from streamsplat_edge.runtime.rasterizer import Splats
from streamsplat_edge.training import dense_renderer

CASE = Case(288, 36, 64, 2.0, 1, 1)
SWEEP = compare.Sweep(CASE, (288, 1152), ((36, 64), (18, 32)), (4.0,), (1,), (2,))


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    """Small cases; the dense renderer is left out of those with more Gaussians and more images."""
    return compare.compare(SWEEP, (Cpp(), Dense(1e6), Gsplat()), 0.0)


def rows(result: dict[str, Any], method: str) -> list[dict[str, Any]]:
    return [row for case in result["cases"] for row in case["methods"] if row["method"] == method]


def test_every_case_has_a_row_per_method(result: dict[str, Any]) -> None:
    assert len(result["cases"]) == 5  # the base is one, on all axes
    assert result["cases"][0]["axes"] == list(compare.AXES)
    for row in rows(result, "cpp"):
        assert row["status"] == "measured" and row["count"] == len(row["samples_ms"]) >= 3
        assert row["min_ms"] <= row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["min_ms"] == pytest.approx(min(row["samples_ms"]), rel=1e-3)
        assert row["cpu_p50_ms"] > 0
        assert row["agreement"]["pixels"] == 256 and row["agreement"]["largest_where_not_fragile"] < 1e-4
    assert [row["status"] for row in rows(result, "dense")].count("not run") == 2
    assert all(
        "--dense-pairs" in row["reason"] for row in rows(result, "dense") if row["status"] == "not run"
    )


def test_gsplat_is_listed_with_a_reason(result: dict[str, Any]) -> None:
    if torch.cuda.is_available() and "gsplat" in sys.modules:
        pytest.skip("gsplat runs here")
    assert {row["status"] for row in rows(result, "gsplat")} == {"not run"}
    assert all("gsplat" in row["reason"] for row in rows(result, "gsplat"))


def test_table_and_picture(result: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "compare.json"
    path.write_text(json.dumps(result))
    text = table.document([path])
    assert "| 288, 64x36, 2 px, 1, 1 |" in text and "| 1,152, 64x36, 2 px, 1, 1 |" in text
    assert "gsplat, orthographic: not run:" in text and "(5 of 5 cases)" in text and "bound: max(" in text
    drawn = picture.draw(json.loads(path.read_text()))
    for colour in (plot.COLOURS[0], plot.COLOURS[1], plot.INK):
        assert (drawn == colour).all(-1).sum() > 50


def test_bound_is_the_formula() -> None:
    """Two images of 8 x 16, 100 Gaussians, 3 blended per pixel."""
    case = Case(100, 8, 16, 1.0, 2, 2)
    truth = Truth(np.arange(2), Image(*[np.zeros(2, np.float32)] * 3), np.zeros(2, bool), 3.0, 0.1)
    moved = 100 * 40 + 2 * 8 * 16 * 20
    assert bytes_moved(case) == moved and multiply_adds(case, truth) == 7 * 2 * 3 * 128
    rates = Rates()
    rates.multiply_adds_per_second["cpu", 2] = 1e6
    rates.copy_bytes_per_second["cpu", 2, moved] = 1e6
    bounds = rates.bounds_ms(case, truth)
    assert list(bounds) == ["cpu"]  # of a GPU only where one was seen
    bound = bounds["cpu"]
    assert bound["multiply_adds_ms"] == pytest.approx(5.376) and bound["copy_ms"] == pytest.approx(9.12)
    assert bound["ms"] == bound["copy_ms"]


def test_blended_pairs_of_a_scene_known_by_hand() -> None:
    """Sheets over the whole image that let 1 in 20 through: the fourth would leave less than 1e-4."""
    splats = Splats.allocate(6)
    splats.count = 6
    splats.means[:, 1] = np.arange(1, 7)
    splats.scales[:] = 1e3
    splats.opacity[:] = 0.95
    case = Case(6, 8, 16, 1.0, 1, 1)
    truth = Truth.of(case, splats, 1000)
    assert len(truth.pixels) == 128 and truth.blended == 3.0 and truth.error == 0.0


def test_chosen_pixels_and_pieces_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = methods.dense_inputs(make_scene(288, 36, 64, 6.0), torch.float64)
    whole = dense_renderer.render(*inputs, 36, 64)
    monkeypatch.setattr(dense_renderer, "_CHUNK", 36 * 64 * 70)
    pixels = torch.tensor([0, 63, 64, 1000, 2303])
    for part, pieces, chosen in zip(
        whole,
        dense_renderer.render(*inputs, 36, 64),
        dense_renderer.render(*inputs, 36, 64, pixels=pixels),
        strict=True,
    ):
        assert part is not None and pieces is not None and chosen is not None
        torch.testing.assert_close(pieces, part, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(chosen, part.flatten(0, 1)[pixels], rtol=1e-12, atol=1e-12)
    assert whole.blended.max() > 10


class _Brighter(Cpp):
    """Ours with a wrong pixel."""

    name = "wrong"

    def prepare(self, case: Case, scene: Splats) -> methods.Prepared:
        right = super().prepare(case, scene)
        image = lambda: right.image()._replace(rgb=right.image().rgb + np.float32(1e-3))  # noqa: E731
        return SimpleNamespace(run=right.run, image=image)  # type: ignore[return-value]


def test_a_method_that_disagrees_is_not_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command, "all_methods", lambda pairs: (Cpp(), _Brighter()))
    monkeypatch.setattr(command, "quick", lambda cores: compare.Sweep(CASE, (), (), (), (), ()))
    out, png = tmp_path / "o.json", tmp_path / "o.png"
    assert command.main(["--quick", "--seconds", "0", "--json", str(out), "--picture", str(png)]) == 1
    right, wrong = json.loads(out.read_text())["cases"][0]["methods"]
    assert right["status"] == "measured"
    assert wrong["status"] == "disagrees" and "1.0e-03" in wrong["reason"] and "samples_ms" not in wrong
    assert png.read_bytes()[16:20] == (1280).to_bytes(4, "big")


def test_gsplat_is_given_the_same_scene(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in that projects with the matrices it gets, as gsplat's orthographic camera does."""

    def rasterization(means, quats, scales, opacities, colors, viewmats, Ks, width, height, **options):
        assert options["camera_model"] == "ortho" and options["eps2d"] == 0.3
        assert len(viewmats) == len(Ks) == len(options["backgrounds"]) == 2
        camera = means @ viewmats[1, :3, :3].T + viewmats[1, :3, 3]
        pixel = camera[:, :2] * torch.stack([Ks[1, 0, 0], Ks[1, 1, 1]]) + Ks[1, :2, 2]
        # Pixel centres at +0.5, back to [-1, 1] with z up.
        xz = torch.stack([pixel[:, 0] / width * 2 - 1, 1 - pixel[:, 1] / height * 2], 1)
        image = dense_renderer.render(
            xz, camera[:, 2], scales[:, [0, 2]], opacities, colors, options["backgrounds"][1], height, width
        )
        assert (quats == torch.tensor([1.0, 0, 0, 0])).all()
        return torch.cat([image.rgb, image.depth[..., None]], -1)[None], image.alpha[None, ..., None], {}

    monkeypatch.setitem(sys.modules, "gsplat", SimpleNamespace(rasterization=rasterization))
    case = Case(288, 36, 64, 2.0, 1, 2)
    scene = make_scene(288, 36, 64, 2.0)
    theirs = OnGsplat(case, scene, "cpu")
    theirs.run()
    difference = Truth.of(case, scene).difference(theirs.image())
    assert difference["largest_where_not_fragile"] < 1e-4


def test_axis_places_decades_evenly() -> None:
    axis = plot.Axis.around([0.2, 30.0], 300, 0, decades=True)
    assert axis.ticks() == [0.1, 1.0, 10.0, 100.0]
    assert [axis.place(value) for value in (0.1, 1.0, 10.0, 100.0, 1e9)] == [300, 200, 100, 0, 0]
    single = plot.Axis.around([7.0], 0, 100, decades=False)
    assert single.place(7.0) == 50
