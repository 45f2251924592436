"""Files of a whole stream: tracks and `.4dgs`, written by a running pipeline and read back."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_bundle import GAMMA0, GAMMA1
from video_samples import moving_square

from streamsplat_edge.runtime.errors import InputError, OutputError
from streamsplat_edge.runtime.outputs.births import PairWindows, births_of_pair, fit_bell
from streamsplat_edge.runtime.outputs.cloud import Picture
from streamsplat_edge.runtime.outputs.container import ContainerWriter
from streamsplat_edge.runtime.outputs.convert import convert, moments
from streamsplat_edge.runtime.outputs.key_frame import KeyFrame
from streamsplat_edge.runtime.outputs.recording import TracksRecording, open_recording
from streamsplat_edge.runtime.outputs.savers import Outputs
from streamsplat_edge.runtime.outputs.targets import check_target, parse_target
from streamsplat_edge.runtime.outputs.tracks import Tracks, TracksWriter
from streamsplat_edge.runtime.pipeline import Pipeline, Rendered
from streamsplat_edge.runtime.rasterizer import Rasterizer
from streamsplat_edge.runtime.stream import Stream, open_stream
from streamsplat_edge.runtime.video import VideoFrame

ASPECT = 64 / 48
CUT = 9  # the frame that begins another scene; 9 and 10 are one pair, and 5 to 8 one of three frames


def clip(frames: int = 11) -> Iterator[VideoFrame]:
    for i in range(frames):
        image = moving_square(4 * i)
        yield VideoFrame(255 - image if i >= CUT else image, 2.0 + i / 25, i)


def no_novel_view() -> np.ndarray:
    return np.zeros((2, 2, 3), np.uint8)


def save(stream: Stream, *paths: Path, frames: int = 11) -> list[Rendered]:
    """Runs the clip and saves it; returns what was rendered."""
    outputs = Outputs([parse_target(str(path)) for path in paths], stream.model, aspect=ASPECT)
    shown = []
    with outputs:
        for rendered in Pipeline(clip(frames), stream, observers=[outputs]):
            outputs.add(rendered, stream, no_novel_view)
            shown.append(rendered)
        outputs.close()
    return shown


@pytest.fixture(scope="module")
def saved(bundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Rendered]]:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("saved")
    names = "tracks.npz", "scene.4dgs", "scene_%03d.ply", "scene_%03d.splat"
    with open_stream(bundle, threads=1) as stream:
        shown = save(stream, *(folder / name for name in names))
    return folder, shown


def picture_of(recording, time: float) -> np.ndarray:  # type: ignore[no-untyped-def]
    buffers = Rasterizer(16, 32, threads=1).render(recording.at(time).to_splats())
    return np.rint(np.clip(buffers.rgb, 0, 1) * 255).astype(int)


@pytest.mark.parametrize(("name", "levels"), [("tracks.npz", 1), ("scene_%03d.ply", 1)])
def test_recordings_show_what_was_shown(saved: tuple, name: str, levels: int) -> None:
    folder, shown = saved
    with open_recording(str(folder / name)) as recording:
        assert recording.times == [r.source.timestamp for r in shown]
        for rendered in shown:
            image = picture_of(recording, rendered.source.timestamp)
            assert np.abs(image - rendered.frame.rgb).max() <= levels, rendered.source.index


def made_up_keys(count: int = 300) -> list[KeyFrame]:
    """Three key frames of a scene whose Gaussians differ in depth, move and fade, and another scene."""
    rng = np.random.default_rng(3)
    keys = []
    for number, time in enumerate((1.0, 1.2, 1.5, 1.6)):
        low, high = [-1, 0, -1, 0, 0, 0, 0.02, 0.02, 0.3], [1, 1, 1, 1, 1, 1, 0.06, 0.06, 0.9]
        rows = rng.uniform(low, high, (count, 9)).astype(np.float32)
        motion = (rng.uniform(-1, 1, (2, count, 3)) * [0.2, 0.05, 0.2]).astype(np.float32)
        fade = rng.uniform(0, [12, 1], (2, count, 2)).astype(np.float32)
        keys.append(KeyFrame(time, rows, motion, fade) if number in (1, 2) else KeyFrame(time, rows))
    return keys


def test_4dgs_against_tracks(tmp_path: Path) -> None:
    """The same key frames as both: places and opacities nearly agree, and so do the pictures."""
    picture = Picture(64, 48, 1.5)
    tracks = TracksWriter(tmp_path / "t.npz", depth_mapping="paper", picture=picture)
    windows = PairWindows(ContainerWriter(tmp_path / "s.4dgs", picture), "paper", picture)
    for key in made_up_keys():
        tracks.add_key_frame(key)
        windows.add(key)
    tracks.close()
    windows.close(1.7)
    rasterizer = Rasterizer(48, 64, threads=1)
    with open_recording(str(tmp_path / "t.npz")) as wanted, open_recording(str(tmp_path / "s.4dgs")) as found:
        assert found.last == pytest.approx(0.7)
        # A window ends before the next begins; key frames 1.2 and 1.5 join two.
        for time, limit in ((1.0, 0.02), (1.05, 0.03), (1.1, 0.03), (1.2, 0.02), (1.35, 0.03), (1.6, 0.01)):
            truth = rasterizer.render(wanted.at(time).to_splats()).rgb
            image = rasterizer.render(
                found.at(time - 1.0 + (1e-6 if time in (1.0, 1.6) else -1e-6)).to_splats()
            ).rgb
            assert np.abs(truth - image).mean() < limit, (time, np.abs(truth - image).mean())


def test_4dgs_is_valid_for_its_own_package(saved: tuple) -> None:
    fourdgs = pytest.importorskip("fourdgs")
    from fourdgs.validate import validate

    path = saved[0] / "scene.4dgs"
    report = validate(path.read_bytes())
    assert report.ok, report
    scene = fourdgs.read(path)
    windows = sorted(set(zip(scene.gaussians.win_lo, scene.gaussians.win_hi, strict=True)))
    # Key frames are 0, 4, 8 (the last before the cut), 9 and 10: frame 8 is shown until the cut.
    np.testing.assert_allclose(windows, [(0, 0.16), (0.16, 0.36), (0.36, 0.44)], atol=1e-9)
    assert scene.duration_sec == pytest.approx(11 / 25)
    state = scene.state_at(0.02)
    assert len(state["indices"]) >= 128 and np.isfinite(state["centers"]).all()


def test_tracks_hold_what_the_stages_said(saved: tuple) -> None:
    folder, shown = saved
    with np.load(folder / "tracks.npz", allow_pickle=False) as file:
        names = set(file.files)
        assert file["times"].tolist() == [shown[i].source.timestamp for i in (0, 4, 8, 9, 10)]
        assert file["begins_scene"].tolist() == [True, False, False, True, False]
        assert str(file["format"]) == "streamsplat-edge tracks 1"
        np.testing.assert_allclose(file["fade_000001"][0, 0], (GAMMA0, GAMMA1))
        assert file["gaussians_000004"].shape == (128, 9)
    assert "motion_000003" not in names and "motion_000004" in names
    tracks = Tracks(folder / "tracks.npz")
    key, after = tracks.key_frame(1), tracks.key_frame(2)
    assert key.motion is not None and after.motion is not None
    times, places = tracks.track(1, 7)
    assert times.tolist() == tracks.times[:3].tolist()
    np.testing.assert_array_equal(places[1], key.gaussians[7, :3])
    np.testing.assert_array_equal(places[0], key.gaussians[7, :3] - key.motion[1, 7])
    np.testing.assert_array_equal(places[2], key.gaussians[7, :3] + after.motion[0, 7])
    assert [len(tracks.track(k, 0)[0]) for k in range(5)] == [2, 3, 2, 2, 2]
    tracks.close()


def test_between_scenes_the_earlier_one_stays(saved: tuple) -> None:
    with open_recording(str(saved[0] / "tracks.npz")) as recording:
        before = recording.at(2.0 + 8 / 25)
        inside = recording.at(2.0 + 8.5 / 25)
        np.testing.assert_array_equal(before.means, inside.means)
        for time in (1.99, 3.0, np.nan):
            with pytest.raises(InputError, match="nothing at"):
                recording.at(time)


def bell(s: np.ndarray, centre: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * ((s[:, None] - centre) / sigma) ** 2 + 0.5 * (centre / sigma) ** 2)


def test_bell_curves_are_found_again() -> None:
    centre, sigma = np.array([0.0, -0.2, 0.1, 0.0]), np.array([0.3, 0.5, 0.4, np.inf])
    found = fit_bell(bell(np.arange(1, 9) / 8, centre, sigma), np.full(4, 2.0))
    np.testing.assert_allclose(found, (centre, sigma), atol=1e-6)


def test_fades_become_bell_curves_that_are_close() -> None:
    gamma0, gamma1 = (g.ravel() for g in np.meshgrid([0.0, 1, 3, 6, 12], [0.1, 0.5, 0.9]))
    s = np.arange(0, 65) / 64

    def fade(s: np.ndarray) -> np.ndarray:
        return (1 + np.exp(-gamma0 * gamma1)) / (1 + np.exp(gamma0 * (s[:, None] - gamma1)))

    for room, mean, most in ((1.0, 0.05, 0.45), (2.0, 0.02, 0.3)):
        centre, sigma = fit_bell(fade(np.arange(1, 9) / 8), np.full(len(gamma0), room))
        error = np.abs(bell(s, centre, sigma) - fade(s))
        assert error[0].max() < 1e-9 and bell(s, centre, sigma).max() <= room + 1e-9
        assert error.mean() < mean and error.max() < most, (room, error.mean(), error.max())
        assert error[:, gamma0 == 0].max() == 0


def test_motion_by_hand() -> None:
    """One Gaussian per key frame, along all three axes: here x is twice as long, and y is down."""
    rows = np.array([[0.1, 0.3, 0.2, 0.5, 0.5, 0.5, 0.1, 0.1, 0.9]], np.float32)
    motion = np.array([[[0.2, -0.05, 0.1]], [[-0.1, 0.08, 0.04]]], np.float32)
    fade = np.zeros((2, 1, 2), np.float32)
    earlier, later = KeyFrame(1.0, rows), KeyFrame(3.0, rows, motion, fade)
    births = births_of_pair(earlier, later, "published", Picture(64, 36, 2.0))

    def depth(y: float) -> float:
        return 1 / (0.2 + 9.8 * y)

    seconds = 2.0
    travels = [[0.4, -0.1, depth(0.25) - depth(0.3)], [-0.2, -0.04, depth(0.3) - depth(0.22)]]
    np.testing.assert_allclose(births.motion, np.array(travels) / seconds, rtol=1e-5)
    np.testing.assert_allclose(births.means, [[0.2, -0.2, depth(0.3)]] * 2, rtol=1e-5)
    np.testing.assert_array_equal(births.birth, [1.0, 3.0])


def run_convert(source: Path, target: Path, *, rate: float | None = None, at: float | None = None) -> int:
    goal = parse_target(str(target), option="OUT")
    check_target(goal, force=False)
    with open_recording(str(source)) as recording:
        times = moments(recording, rate=rate, at=at)
        return max(convert(recording, goal, times, exact=rate is None and at is None))


def test_tracks_become_the_files_that_the_run_wrote(saved: tuple, tmp_path: Path) -> None:
    folder = saved[0]
    assert run_convert(folder / "tracks.npz", tmp_path / "scene_%03d.ply") == 11
    assert run_convert(folder / "tracks.npz", tmp_path / "scene_%03d.splat") == 11
    assert run_convert(folder / "tracks.npz", tmp_path / "scene.4dgs") == 5
    for name in ("scene_003.ply", "scene_009.ply", "scene_010.ply", "scene_005.splat"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name
    a, b = (open_recording(str(place / "scene.4dgs")) for place in (tmp_path, folder))
    for time in (0.0, 0.1, 0.3, 0.35, 0.4):
        np.testing.assert_array_equal(a.at(time).means, b.at(time).means)
    a.close(), b.close()


@pytest.mark.parametrize("name", ["scene_%03d.ply", "scene_%03d.splat", "tracks.npz"])
def test_moments_become_a_4dgs_that_stands_still_between(saved: tuple, tmp_path: Path, name: str) -> None:
    rate = 25 if name == "tracks.npz" else None
    assert run_convert(saved[0] / name, tmp_path / "o.4dgs", rate=rate) >= 10
    with open_recording(str(saved[0] / name)) as wanted, open_recording(str(tmp_path / "o.4dgs")) as found:
        start = wanted.first
        step = 1 / 25 if wanted.times and start else 1 / 24  # .splat files do not know their times
        for number in (0, 3, 7):
            before = wanted.at(start + number * step + 1e-9)
            after = found.at(number * step + 1e-6)
            assert before.count == after.count
            np.testing.assert_allclose(np.sort(before.means[:, 2]), np.sort(after.means[:, 2]), atol=2e-2)
            np.testing.assert_allclose(before.scales.mean(0), after.scales.mean(0), rtol=2e-2)
            np.testing.assert_allclose(before.rgb.mean(0), after.rgb.mean(0), atol=5e-3)


def test_one_moment(saved: tuple, tmp_path: Path) -> None:
    assert run_convert(saved[0] / "tracks.npz", tmp_path / "one.splat", at=2.1) == 1
    assert run_convert(tmp_path / "one.splat", tmp_path / "one.ply") == 1
    with pytest.raises(InputError, match="one file for"):
        run_convert(saved[0] / "tracks.npz", tmp_path / "many.ply")
    with pytest.raises(InputError, match="nothing at"):
        run_convert(saved[0] / "tracks.npz", tmp_path / "late.ply", at=9.0)
    for name in ("o.npz", "%05d.png"):
        with pytest.raises(InputError, match="cannot be made"):
            run_convert(saved[0] / "tracks.npz", tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.ply", "one.splat"]


def test_a_stream_of_one_key_frame_per_scene(stream: Stream, tmp_path: Path) -> None:
    shown = save(stream, tmp_path / "t.npz", tmp_path / "s.4dgs", frames=1)
    for name in ("t.npz", "s.4dgs"):
        with open_recording(str(tmp_path / name)) as recording:
            image = picture_of(recording, recording.first)
            # Of equal depths the format does not keep which is in front.
            assert np.abs(image - shown[0].frame.rgb).mean() < (1 if name == "t.npz" else 8)


def test_a_failed_run_leaves_numbered_files_only(stream: Stream, tmp_path: Path) -> None:
    names = "t.npz", "s.4dgs", "last.ply", "f/%02d.png"
    outputs = Outputs([parse_target(str(tmp_path / n)) for n in names], stream.model, aspect=ASPECT)
    with pytest.raises(RuntimeError), outputs:
        for i, rendered in enumerate(Pipeline(clip(), stream, observers=[outputs])):
            outputs.add(rendered, stream, no_novel_view)
            if i == 3:
                raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert sorted(p.name for p in (tmp_path / "f").iterdir()) == ["00.png", "01.png", "02.png", "03.png"]


def test_nothing_came(stream: Stream, tmp_path: Path) -> None:
    targets = [parse_target(str(tmp_path / n)) for n in ("t.npz", "s.4dgs", "last.ply", "%02d.png")]
    with Outputs(targets, stream.model, aspect=ASPECT) as outputs:
        outputs.close()
    assert list(tmp_path.iterdir()) == []


def test_one_failure_does_not_cost_the_others(stream: Stream, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    targets = [parse_target(str(tmp_path / n)) for n in ("sub/last.ply", "t.npz")]
    with Outputs(targets, stream.model, aspect=ASPECT) as outputs:
        for rendered in Pipeline(clip(), stream, observers=[outputs]):
            outputs.add(rendered, stream, no_novel_view)
        (tmp_path / "sub").rmdir()
        with pytest.raises(OutputError, match=r"last\.ply"):
            outputs.close()
    assert [p.name for p in tmp_path.iterdir()] == ["t.npz"]


def repacked(data: bytes, changes: dict[str, np.ndarray | bytes | None]) -> bytes:
    """The same zip with other members; None removes one."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(result, "w") as new:
        for name in old.namelist():
            content = changes.get(name.removesuffix(".npy"), old.read(name))
            if isinstance(content, np.ndarray):
                buffer = io.BytesIO()
                np.save(buffer, content, allow_pickle=True)
                content = buffer.getvalue()
            if content is not None:
                new.writestr(name, content)
    return result.getvalue()


TRACK_DAMAGE: dict[str, dict] = {
    "other format": {"format": np.array("streamsplat-edge tracks 9")},
    "a pickle": {"format": np.array([{}], object)},
    "mapping": {"depth_mapping": np.array("flat")},
    "no times": {"times": None},
    "times fall": {"times": np.array([5.0, 4, 3, 2, 1])},
    "times are NaN": {"times": np.full(5, np.nan)},
    "times are integers": {"times": np.arange(5)},
    "too few flags": {"begins_scene": np.array([True])},
    "no beginning": {"begins_scene": np.zeros(5, bool)},
    "picture": {"picture": np.array("32 16")},
    "columns": {"gaussians_000000": np.zeros((128, 8), np.float32)},
    "other count": {"gaussians_000001": np.zeros((127, 9), np.float32)},
    "claims much": {
        "gaussians_000000": b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '<f4', 'fortran_order': False, 'shape': (4000000000, 9), }".ljust(117)
        + b"\n"
    },
    "no array": {"gaussians_000000": b"Dear diary"},
    "transposed": {"motion_000001": np.asfortranarray(np.zeros((2, 128, 3), np.float32))},
    "pair is missing": {"fade_000001": None},
}


@pytest.mark.parametrize("changes", TRACK_DAMAGE.values(), ids=TRACK_DAMAGE)
def test_damaged_tracks(saved: tuple, tmp_path: Path, changes: dict) -> None:
    path = tmp_path / "t.npz"
    path.write_bytes(repacked((saved[0] / "tracks.npz").read_bytes(), changes))
    with pytest.raises(InputError, match=re.escape(str(path))), open_recording(str(path)) as recording:
        recording.at(2.1)


@pytest.mark.parametrize(
    "damage", [lambda d: b"", lambda d: d[:-30], lambda d: d[:2000], lambda d: b"PK" * 99]
)
def test_tracks_cut_short(saved: tuple, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    (tmp_path / "t.npz").write_bytes(damage((saved[0] / "tracks.npz").read_bytes()))
    with pytest.raises(InputError):
        TracksRecording(tmp_path / "t.npz")


def test_nan_in_tracks_is_left_out(saved: tuple, tmp_path: Path) -> None:
    rows = np.full((128, 9), np.nan, np.float32)
    (tmp_path / "t.npz").write_bytes(
        repacked((saved[0] / "tracks.npz").read_bytes(), {"gaussians_000000": rows})
    )
    with open_recording(str(tmp_path / "t.npz")) as recording:
        assert recording.at(2.1).count == 128, "those of the later key frame"


def test_damaged_4dgs(saved: tuple, tmp_path: Path) -> None:
    """Bytes of the front and the end, and some between, turned: our error or a cloud, nothing else."""
    data = (saved[0] / "scene.4dgs").read_bytes()
    path, refused = tmp_path / "a.4dgs", 0
    places = [
        *range(0, 600, 7),
        *range(600, len(data) - 400, len(data) // 60),
        *range(len(data) - 400, len(data), 9),
    ]
    for place in places:
        path.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        try:
            with open_recording(str(path)) as recording:
                assert np.isfinite(recording.at(min(0.1, recording.last)).means).all()
        except InputError as error:
            refused += 1
            assert str(path) in error.message or "nothing at" in error.message
    assert refused > len(places) // 3
    for cut in (0, 5, 400, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(InputError):
            open_recording(str(path))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for name in ("t.npz", "s.4dgs", "s.ply", "s.splat", "s_%03d.ply"):
        with pytest.raises(InputError), open_recording(str(tmp_path / name)) as recording:
            recording.at(0.0)


def test_sequences_whose_times_do_not_grow(saved: tuple, tmp_path: Path) -> None:
    for number, other in enumerate((4, 2)):
        data = (saved[0] / f"scene_{other:03d}.ply").read_bytes()
        (tmp_path / f"s_{number:03d}.ply").write_bytes(data)
    with pytest.raises(InputError, match="do not grow"):
        open_recording(str(tmp_path / "s_%03d.ply"))


@pytest.mark.parametrize("name", ["tracks.npz", "scene_%03d.ply"])
def test_a_conversion_that_fails_leaves_nothing(saved: tuple, tmp_path: Path, name: str) -> None:
    with open_recording(str(saved[0] / name)) as recording:
        steps = convert(recording, parse_target(str(tmp_path / "o.4dgs")), moments(recording))
        next(steps), next(steps)
        steps.close()  # type: ignore[attr-defined]
    assert list(tmp_path.iterdir()) == []


def test_too_many_moments(saved: tuple) -> None:
    with open_recording(str(saved[0] / "tracks.npz")) as recording:
        assert len(moments(recording, rate=10)) == 5
        with pytest.raises(InputError, match="moments"):
            moments(recording, rate=1e9)
