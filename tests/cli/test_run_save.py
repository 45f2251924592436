"""`run --save`, `--layout`, `--camera` and `convert`, as a user calls them."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from video_samples import sample_clip

from streamsplat_edge import cli
from streamsplat_edge.runtime.outputs.depth_image import read_depth
from streamsplat_edge.runtime.outputs.recording import open_recording
from streamsplat_edge.runtime.stream import Stream
from streamsplat_edge.runtime.video import open_video

WIDTH, HEIGHT, FRAMES = 32, 16, 6  # of the fake bundle; of the clip
SAVES = (
    *("scene_%04d.ply", "last.splat", "scene.4dgs", "tracks.npz"),
    *("pictures/%05d.png", "depth_%05d.png", "depth_%05d.exr", "novel_%05d.png"),
)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", FRAMES)


def run(clip: Path, bundle: Path, *arguments: object) -> int:
    return cli.main(["run", str(clip), "--bundle", str(bundle), "--threads", "1", *map(str, arguments)])


def test_everything_is_saved(tmp_path: Path, clip: Path, fake_bundle: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    saves = [word for name in SAVES for word in ("--save", tmp_path / name)]
    assert run(clip, fake_bundle, "--json", "--camera", "fixed:yaw=12,pivot=0.2", *saves) == 0
    stats = json.loads(capsys.readouterr().out)
    assert stats["settings"]["saved"] == [str(tmp_path / name) for name in SAVES]
    assert stats["latency_ms"]["save"]["count"] == stats["latency_ms"]["novel view"]["count"] == FRAMES
    names = sorted(p.name for p in tmp_path.iterdir())
    numbered = ("depth_{:05d}.exr", "depth_{:05d}.png", "novel_{:05d}.png", "scene_{:04d}.ply")
    wanted = [name.format(i) for name in numbered for i in range(FRAMES)]
    assert names == sorted([*wanted, "last.splat", "pictures", "scene.4dgs", "tracks.npz"])
    with open_video(tmp_path / "pictures") as reader:
        pictures = [frame.image for frame in reader]
    assert len(pictures) == FRAMES and pictures[0].shape == (HEIGHT, WIDTH, 3)
    with av.open(str(tmp_path / "novel_00003.png")) as container:
        novel = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.abs(novel.astype(int) - pictures[3]).max() > 10, "seen from another place"
    for i in range(FRAMES):
        exact, rounded = (read_depth(tmp_path / f"depth_{i:05d}{s}") for s in (".exr", ".png"))
        assert exact.shape == (HEIGHT, WIDTH) and exact.max() > 0.1
        np.testing.assert_allclose(rounded, exact, atol=0.51e-4)
    for name in ("scene_%04d.ply", "tracks.npz", "scene.4dgs", "last.splat"):
        with open_recording(str(tmp_path / name)) as recording:
            assert recording.at(recording.first).count > 0


@pytest.mark.parametrize(
    "layout", ["input", "depth", "novel", "reconstruction", "depth,novel", "input,reconstruction,depth"]
)
def test_layouts(tmp_path: Path, clip: Path, fake_bundle: Path, layout: str) -> None:
    assert run(clip, fake_bundle, "-o", tmp_path / "o.mp4", "--layout", layout, "--quiet") == 0
    with open_video(tmp_path / "o.mp4") as reader:
        shape = next(iter(reader)).image.shape
    names = layout.split(",")
    width = round(288 * 64 / 48)
    wide = 8 + len(names) * (8 + width)
    assert shape == ((HEIGHT, WIDTH, 3) if len(names) == 1 else (24 + 288 + 34, wide, 3))


def test_depth_is_rendered_where_it_is_shown(
    tmp_path: Path, clip: Path, fake_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    real = Stream.render_many

    def render_many(self: Stream, *times: object, depth: bool = True, **settings: object) -> object:
        asked.append(depth)
        return real(self, *times, depth=depth, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(Stream, "render_many", render_many)
    for i, (wanted, *arguments) in enumerate(
        (
            (False,),
            (False, "--layout", "input,reconstruction"),
            (True, "--layout", "depth"),
            (True, "--layout", "novel"),
            (False, "--layout", "novel", "--camera", "fixed:yaw=12,pivot=0.2"),
            (True, "--save", tmp_path / "depth_%05d.exr"),
            (True, "--contact-sheet", tmp_path / "sheet.png"),
        )
    ):
        asked.clear()
        assert run(clip, fake_bundle, "-o", tmp_path / f"{i}.mp4", "--quiet", *arguments) == 0
        assert set(asked) == {wanted}, arguments


def test_the_camera_moves_the_novel_view(tmp_path: Path, clip: Path, fake_bundle: Path) -> None:
    for name, camera in (("a", "fixed"), ("b", "fixed:yaw=20,pivot=0.1"), ("c", "orbit:yaw=9,pitch=9")):
        arguments = ("-o", tmp_path / name, "--layout", "novel", "--quiet", "--camera", camera)
        assert run(clip, fake_bundle, *arguments) == 0
    a, b, c = ([f.image.astype(int) for f in open_video(tmp_path / name)] for name in "abc")
    assert all(np.abs(x - y).max() > 10 for x, y in zip(a, b, strict=True))
    assert np.abs(c[0] - a[0]).max() > 10


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--save", "{}.obj"), ("--save", ".ply")),
        (("--save", "{}.mp4"), ("-o",)),
        (("--save", "{}.png"), ("%05d",)),
        (("--save", "{}.ply", "--save", "{}.ply"), ("same file",)),
        (("--save", "{}/no/x.ply"), ("mkdir",)),
        (("--layout", "front"), ("--layout", "novel")),
        (("--layout", "depth,depth"), ("twice",)),
        (("--camera", "spin"), ("--camera", "swing")),
        (("--camera", "swing:yaw=200"), ("-45 to 45",)),
    ],
)
def test_refused(
    tmp_path: Path, clip: Path, fake_bundle: Path, capsys, arguments: tuple, words: tuple
) -> None:  # type: ignore[no-untyped-def]
    filled = [word.format(tmp_path / "x") for word in arguments]
    assert run(clip, fake_bundle, *filled) == 2
    error = capsys.readouterr().err
    assert "hint:" in error and all(word in error for word in words), error
    assert list(tmp_path.iterdir()) == []


def test_refused_in_a_folder_that_is_in_use(tmp_path: Path, clip: Path, fake_bundle: Path) -> None:
    """An input folder would be emptied by --force, a folder of -o is replaced at the end."""
    assert run(clip, fake_bundle, "-o", tmp_path / "f", "--quiet") == 0
    (tmp_path / "f" / "timestamps.csv").unlink()
    before = sorted((tmp_path / "f").iterdir())
    assert run(tmp_path / "f", fake_bundle, "--save", tmp_path / "f" / "frame_%06d.png", "--force") == 2
    assert sorted((tmp_path / "f").iterdir()) == before
    arguments = ("-o", tmp_path / "o", "--save", tmp_path / "o" / "%05d.png")
    assert run(clip, fake_bundle, *arguments) == 2
    assert not (tmp_path / "o").exists()


def test_existing_files_are_replaced_only_when_forced(tmp_path: Path, clip: Path, fake_bundle: Path) -> None:
    (tmp_path / "t.npz").write_text("precious")
    (tmp_path / "s_0099.ply").write_text("precious")
    for name in ("t.npz", "s_%04d.ply"):
        assert run(clip, fake_bundle, "--save", tmp_path / name) == 2
    assert (tmp_path / "t.npz").read_text() == (tmp_path / "s_0099.ply").read_text() == "precious"
    both = ("--save", tmp_path / "t.npz", "--save", tmp_path / "s_%04d.ply")
    assert run(clip, fake_bundle, *both, "--force", "--quiet") == 0
    assert [p.name for p in sorted(tmp_path.iterdir())] == [
        *(f"s_{i:04d}.ply" for i in range(FRAMES)),
        "t.npz",
    ]


def test_several_inputs(tmp_path: Path, clip: Path, fake_bundle: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    other = sample_clip(tmp_path / "other.mp4", 4)
    command = ["run", str(clip), str(other), "--bundle", str(fake_bundle), "--threads", "1", "--quiet"]
    assert cli.main([*command, "--save", str(tmp_path / "t.npz")]) == 2
    assert "t-{}.npz" in capsys.readouterr().err
    saves = ("--save", str(tmp_path / "t-{}.npz"), "--save", str(tmp_path / "s{}_%04d.ply"))
    assert cli.main([*command, *saves]) == 0
    assert len(list(tmp_path.glob("s0_*.ply"))) == FRAMES and len(list(tmp_path.glob("s1_*.ply"))) == 4
    for number, frames in ((0, FRAMES), (1, 4)):
        with open_recording(str(tmp_path / f"t-{number}.npz")) as recording:
            assert recording.times is not None and len(recording.times) == frames


@pytest.mark.parametrize("name", ["t.npz", "s.4dgs", "s.ply", "s_%04d.ply"])
def test_a_full_disk(tmp_path: Path, clip: Path, fake_bundle: Path, call, name: str) -> None:  # type: ignore[no-untyped-def]
    """The limit on the size of files makes writes fail just as a full disk does."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    result = call(*("run", clip, "--bundle", fake_bundle, "--save", tmp_path / name), preexec_fn=limit)
    assert result.returncode == 2 and "cannot be written" in result.stderr, result.stderr
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_finishes_what_was_done(tmp_path: Path, fake_bundle: Path) -> None:
    clip = sample_clip(tmp_path / "long.mp4", 600)
    saves = [
        word for name in ("t.npz", "s_%04d.ply", "last.ply") for word in ("--save", str(tmp_path / name))
    ]
    command = [sys.executable, "-m", "streamsplat_edge", "run", str(clip), "--bundle", str(fake_bundle)]
    process = subprocess.Popen([*command, *saves, "--threads", "1"], env=os.environ, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "s_0005.ply").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    done = len(list(tmp_path.glob("s_*.ply")))
    with (
        open_recording(str(tmp_path / "t.npz")) as recording,
        open_recording(str(tmp_path / "last.ply")) as last,
    ):
        assert recording.times is not None and 6 <= len(recording.times) == done < 600
        assert last.times == recording.times[-1:]
    assert not list(tmp_path.glob(".*"))


def test_convert(tmp_path: Path, clip: Path, fake_bundle: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    tracks, scene = tmp_path / "t.npz", tmp_path / "s.4dgs"
    assert run(clip, fake_bundle, "--save", tracks, "--quiet") == 0
    assert cli.main(["convert", str(tracks), str(tmp_path / "s_%02d.ply")]) == 0
    assert cli.main(["convert", str(tracks), str(tmp_path / "one.splat"), "--at", "0.1"]) == 0
    assert cli.main(["convert", str(tmp_path / "s_%02d.ply"), str(scene), "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert f"{FRAMES} moments" in printed and "1 moment\n" in printed
    assert len(list(tmp_path.glob("s_*.ply"))) == FRAMES
    assert cli.main(["convert", str(scene), str(tmp_path / "r_%02d.ply"), "--rate", "50", "--quiet"]) == 0
    seconds = FRAMES / 25  # of the clip; the last frame is shown as long as the others
    assert len(list(tmp_path.glob("r_*.ply"))) == pytest.approx(seconds * 50, abs=1)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("t.npz", "t.npz"), "itself"),
        (("t.npz", "o.mp4"), "OUT"),
        (("t.npz", "o.ply"), "not be read"),
        (("o_%04d.ply", "o.4dgs"), "no such files"),
        (("clip.mp4", "o.ply"), "hold no Gaussians"),
    ],
)
def test_convert_refuses(tmp_path: Path, capsys, arguments: tuple, word: str) -> None:  # type: ignore[no-untyped-def]
    assert cli.main(["convert", *(str(tmp_path / name) for name in arguments)]) == 2
    assert word in capsys.readouterr().err.replace("cannot be read", "can not be read")
    assert list(tmp_path.iterdir()) == []
