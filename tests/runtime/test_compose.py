"""Pictures for people: depth colours, panels, contact sheet, font."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamsplat_edge.runtime.compose import AMBER, PAPER, TEAL, panel_aspect, psnr, resize
from streamsplat_edge.runtime.contact_sheet import contact_sheet
from streamsplat_edge.runtime.depth_colours import DEPTH_COLOURS, DepthColours
from streamsplat_edge.runtime.font import ADVANCE, HEIGHT, draw_text, text_size
from streamsplat_edge.runtime.moments import Moment, MomentKeeper
from streamsplat_edge.runtime.panels import Panels
from streamsplat_edge.runtime.video import VideoWriter, open_video
from streamsplat_edge.runtime.video.frames import to_rgb


def moment(
    index: int = 0, *, key: bool = True, phase: float = 0.0, size: tuple[int, int] = (90, 160)
) -> Moment:
    def flat(colour: tuple[int, int, int], shape: tuple[int, int] = (18, 32)) -> np.ndarray:
        return np.full((*shape, 3), colour, np.uint8)

    images = flat((200, 0, 0), size), flat((0, 200, 0)), flat((0, 0, 200)), flat((200, 200, 0))
    return Moment(*images, index, index / 25, key, phase, 3.0, 31.5)


def test_psnr_against_the_formula() -> None:
    a = np.zeros((8, 8, 3), np.uint8)
    assert psnr(a, a) == float("inf")
    assert psnr(a + np.uint8(5), a) == pytest.approx(20 * np.log10(255 / 5), abs=1e-4)
    assert psnr(a, a + np.uint8(255)) == pytest.approx(0, abs=1e-4)


def test_nearer_is_brighter_and_holes_are_dark() -> None:
    assert (np.diff(DEPTH_COLOURS.astype(int) @ [299, 587, 114]) >= 0).all()
    depth = np.linspace(4.0, 0.2, 64, dtype=np.float32)[None].repeat(32, 0)
    alpha = np.ones_like(depth)
    alpha[:8] = 0
    colours = DepthColours()(depth, alpha)
    luma = colours.astype(int) @ [299, 587, 114]
    assert (np.diff(luma[16]) >= 0).all() and luma[16, -1] > 4 * luma[16, 0]
    assert (colours[:8] == colours[0, 0]).all() and luma[0, 0] < 30_000


def test_depth_colours_do_not_flicker() -> None:
    colours = DepthColours()
    depth = np.linspace(4.0, 0.5, 64, dtype=np.float32)[None].repeat(32, 0)
    alpha = np.ones_like(depth)
    before = colours(depth, alpha)
    nearer = depth.copy()
    nearer[:, -8:] = 0.1  # something near enters: the rest must keep its colours
    after = colours(nearer, alpha)
    steady = np.abs(after[:, :56].astype(int) - before[:, :56]).mean()
    colours.reset()
    jump = np.abs(colours(nearer, alpha)[:, :56].astype(int) - before[:, :56]).mean()
    assert steady < jump / 3, (steady, jump)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_depth_without_any_range(alpha: float) -> None:
    image = DepthColours()(np.full((8, 8), 1.0, np.float32), np.full((8, 8), alpha, np.float32))
    assert image.shape == (8, 8, 3) and image.dtype == np.uint8
    assert (image == image[0, 0]).all()


@pytest.mark.parametrize("source", [(90, 160), (160, 90), (97, 101), (20, 600)])
def test_side_by_side_shows_all_four(source: tuple[int, int]) -> None:
    compose = Panels(source, panel_height=64)
    composed = compose(moment(size=source), "frame 1")
    assert (composed.format.name, composed.width, composed.height) == (
        *("yuv420p", compose.width, compose.height),
    )
    frame = to_rgb(composed)
    assert compose.height % 2 == 0 and compose.width % 2 == 0
    for place, colour in enumerate([(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0)]):
        x, y = compose._place(place)
        panel = frame[y + 2 : y + compose.panel_height - 6, x + 2 : x + compose.panel_width - 2]
        assert np.abs(panel.astype(int) - colour).max() <= 4, place


def test_key_frames_are_marked() -> None:
    compose = Panels((90, 160))
    key = to_rgb(compose(moment(key=True), "")).astype(int)
    between = to_rgb(compose(moment(key=False, phase=0.5), "")).astype(int)
    x, y = compose._place(1)
    chip = (slice(y - 20, y - 4), slice(x + compose.panel_width - 12, x + compose.panel_width - 2))
    for frame, colour in ((key, AMBER), (between, TEAL)):
        assert (np.abs(frame[chip] - colour).max(-1) < 16).sum() > 20
        assert np.abs(frame[y + 286, x + 20] - colour).max() < 16, "the bar begins in the same colour"
    assert np.abs(between[y + 286, x + 300] - AMBER).max() > 100, "half way: the bar is half full"
    assert np.abs(key[y + 286, x + 500] - AMBER).max() < 16
    inner = (slice(y, y + 280), slice(x, x + compose.panel_width))
    np.testing.assert_array_equal(key[inner], between[inner])


def test_composed_frames_are_kept_apart() -> None:
    """An encoder may hold a frame while the next one is composed."""
    compose = Panels((90, 160), panel_height=64)
    first = compose(moment(), "first")
    before = first.to_ndarray().copy()
    compose(moment(size=(90, 160), key=False, phase=0.25), "second, with another text")
    np.testing.assert_array_equal(first.to_ndarray(), before)


def test_colours_survive_composing_and_encoding(tmp_path: Path) -> None:
    compose = Panels((90, 160), panel_height=64)
    with VideoWriter(tmp_path / "o.mp4", compose.width, compose.height) as writer:
        for i in range(3):
            writer.write(compose(moment(i), ""), i / 25)
    with open_video(tmp_path / "o.mp4") as reader:
        image = next(iter(reader)).image.astype(int)
    for place, colour in enumerate([(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0)]):
        x, y = compose._place(place)
        assert np.abs(image[y + 20, x + 40] - colour).max() <= 8, place
    assert np.abs(image[compose._place(0)[1] + 20, 2] - PAPER).max() <= 8


def test_contact_sheet_holds_every_row() -> None:
    one = contact_sheet([moment()], "title", ["fact"])
    four = contact_sheet([moment(i, key=i % 2 == 0, phase=i / 4) for i in range(4)], "title", ["fact"])
    assert four.shape[1] == one.shape[1] and four.shape[0] > one.shape[0] + 500
    for colour in [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0)]:
        found = (np.abs(four.astype(int) - colour).max(-1) <= 2).sum()
        assert found > 4 * 150 * 300
    assert contact_sheet([], "nothing", []).ndim == 3


def test_facts_of_a_contact_sheet_are_wrapped_where_it_is_narrow() -> None:
    short = contact_sheet([moment()], "title", ["fact"])
    long = contact_sheet([moment()], "title", [" ".join(["fact"] * 80)])
    assert long.shape[1] == short.shape[1] and long.shape[0] > short.shape[0]
    margin = long[70 : 70 + long.shape[0] - short.shape[0], -20:]
    assert (margin == margin[0, 0]).all(), "no line runs over the edge"


def test_keeper_is_bounded_and_spreads_its_choice() -> None:
    keeper = MomentKeeper(capacity=12)
    gap = 4
    for i in range(5001):
        key = i % gap == 0
        if keeper.wants(key, (i % gap) / gap):
            keeper.add(moment(i, key=key, phase=i % gap / gap))
    assert sum(len(kept) for kept in keeper._kept.values()) <= 26
    chosen = keeper.choose(4)
    assert [m.key for m in chosen] == [True, False, True, False]
    assert all(m.phase == 0.5 for m in chosen if not m.key)
    for row, m in enumerate(chosen):
        assert abs(m.index - 5000 * (row + 0.5) / 4) < 700


@pytest.mark.parametrize("count", [1, 12, 13, 24, 25, 26, 100, 1000])
def test_keeper_keeps_equal_steps_from_the_first_on(count: int) -> None:
    keeper = MomentKeeper(capacity=12)
    for i in range(count):
        if keeper.wants(True, 0.0):
            keeper.add(moment(i))
    kept = [m.index for m in keeper._kept[True]]
    step = kept[1] - kept[0] if len(kept) > 1 else 1
    assert kept == list(range(0, count, step)), "none is missing, up to the newest"
    assert min(count, 7) <= len(kept) <= 12


def test_keeper_wants_the_middle_of_an_interval() -> None:
    asked = {phase: MomentKeeper().wants(False, phase) for phase in (0.29, 0.3, 0.5, 0.7, 0.71)}
    assert list(asked.values()) == [False, True, True, True, False]
    keeper = MomentKeeper(capacity=1)
    for i in range(4):
        keeper.wants(False, 0.1)  # does not count
        if keeper.wants(False, 0.5):
            keeper.add(moment(i, key=False, phase=0.5))
    assert [m.index for m in keeper._kept[False]] == [0]


def test_keeper_with_few_frames() -> None:
    keeper = MomentKeeper()
    assert keeper.choose() == []
    for i in range(2):
        assert keeper.wants(True, 0.0)
        keeper.add(moment(i))
    assert [m.index for m in keeper.choose(4)] == [0, 1]


def test_text_is_clipped_and_unknown_characters_show() -> None:
    canvas = np.zeros((20, 40, 3), np.uint8)
    draw_text(canvas, -3, -4, "WWWWWWWWWWWW", (9, 9, 9), scale=3)
    draw_text(canvas, 38, 18, "W")
    draw_text(canvas, 100, 100, "W")
    known, unknown = np.zeros((2, HEIGHT, ADVANCE, 3), np.uint8)
    assert draw_text(known, 0, 0, "?") == ADVANCE
    draw_text(unknown, 0, 0, "\N{SNOWMAN}")
    assert known.any()
    np.testing.assert_array_equal(known, unknown)
    assert text_size("ab", 2) == (22, 18)


def test_resize_keeps_flat_colours() -> None:
    image = np.full((30, 50, 3), (10, 100, 240), np.uint8)
    assert np.abs(resize(image, 77, 31).astype(int) - (10, 100, 240)).max() <= 1
    assert resize(image, 50, 30) is image


def test_panel_aspect() -> None:
    assert panel_aspect((360, 640), (144, 256)) is None
    portrait = panel_aspect((1920, 1080), (144, 256))
    assert portrait is not None and float(portrait) == pytest.approx((1080 / 1920) * (144 / 256), rel=1e-2)
