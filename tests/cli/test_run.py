"""`streamsplat-edge run` on good input, as a user calls it: what comes out, is printed and is measured."""

from __future__ import annotations

import json
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from video_samples import moving_square, sample_clip, sample_photo, write_video

from streamsplat_edge import cli
from streamsplat_edge.commands.view import Viewer
from streamsplat_edge.runtime.compose import psnr
from streamsplat_edge.runtime.outputs.ply import read_ply
from streamsplat_edge.runtime.outputs.tracks import Tracks
from streamsplat_edge.runtime.panels import Panels
from streamsplat_edge.runtime.pipeline import Rendered
from streamsplat_edge.runtime.preprocess import Resizer
from streamsplat_edge.runtime.video import encode_png, open_video

WIDTH, HEIGHT = 32, 16  # of the fake bundle


def frames_of(path: Path) -> list:
    with open_video(path) as reader:
        return list(reader)


def test_everything_at_once(tmp_path: Path, fake_bundle: Path, call) -> None:
    clip = sample_clip(tmp_path / "clip.mp4", 14)
    out, sheet, stats_file = tmp_path / "o.mp4", tmp_path / "o.png", tmp_path / "o.json"
    result = call(
        *("run", clip, "--bundle", fake_bundle, "-o", out, "--layout", "side-by-side"),
        *("--contact-sheet", sheet, "--stats", stats_file, "--threads", 1),
    )
    assert result.returncode == 0, result.stderr
    for word in ("frames per second", "encode", "deform", "render", "p50 ms", "PSNR", str(out), "key frames"):
        assert word in result.stdout, word
    assert len(frames_of(out)) == 14
    with av.open(str(sheet)) as container:
        picture = next(container.decode(video=0))
        assert picture.width > 1000 and picture.height > 500
    stats = json.loads(stats_file.read_text())
    assert stats["frames"] == {"total": 14, "key": 5, "in_between": 9, "cuts": 0, "skipped": 0, "dropped": 0}
    assert stats["settings"]["gap"] == 4 and stats["settings"]["engine"] == "onnxruntime"
    assert stats["settings"]["threads"] == 1 and len(stats["settings"]["files"]) == 2
    assert all(len(digest) == 64 for digest in stats["settings"]["files"].values())
    assert stats["software"]["onnxruntime"] and stats["machine"]["cores_usable"] >= 1
    assert "libx264" in stats["settings"]["encoder"]
    for stage in ("decode", "preprocess", "encode", "deform", "lifecycle", "render", "compose", "write"):
        summary = stats["latency_ms"][stage]
        assert summary["count"] > 0 and 0 <= summary["p50"] <= summary["p99"] <= summary["max"], stage
    assert stats["latency_ms"]["encode"]["count"] == 5 and stats["latency_ms"]["render"]["count"] == 14
    assert stats["fps"]["chain"] > stats["fps"]["wall_clock"] > 0
    assert stats["latency_ms"]["finish"]["count"] == 1
    written = 14 * stats["latency_ms"]["write"]["mean"] + stats["latency_ms"]["finish"]["mean"]
    assert stats["fps"]["seconds"] > written / 1e3, "what the encoder does at the end counts too"
    assert stats["psnr_db"]["key_frames"]["count"] == 5 and stats["psnr_db"]["in_between"]["count"] == 9
    assert stats["per_frame"]["tile_pairs"] > 0 and stats["gaussians"]["spawned"] == 5 * 128
    assert stats["input_problems"] == {"truncated": None, "notes": []} and stats["interrupted"] is False
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.mp4", "o.json", "o.mp4", "o.png"]


def test_time_stamps_of_the_input_are_kept(tmp_path: Path, fake_bundle: Path, call) -> None:
    times = [0.0, 0.04, 0.3, 0.31, 0.32, 1.5, 1.6]
    clip = write_video(tmp_path / "vfr.mp4", [moving_square(i) for i in range(7)], times)
    assert call("run", clip, "--bundle", fake_bundle, "-o", tmp_path / "o.mp4").returncode == 0
    np.testing.assert_allclose([f.timestamp for f in frames_of(tmp_path / "o.mp4")], times, atol=1e-3)


def test_reconstruction_keeps_the_shape_of_the_input(tmp_path: Path, fake_bundle: Path, call) -> None:
    clip = sample_clip(tmp_path / "clip.mp4", 5, height=64, width=64)
    assert call("run", clip, "--bundle", fake_bundle, "-o", tmp_path / "o.mp4").returncode == 0
    with av.open(str(tmp_path / "o.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.width, context.height) == (WIDTH, HEIGHT)
        shown = context.width * context.sample_aspect_ratio / context.height
    assert shown == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("name", ["one.mp4", "one.png", "one.jpg", "folder", "limited"])
def test_a_single_picture_is_a_still_scene(tmp_path: Path, fake_bundle: Path, call, name: str) -> None:
    picture, limit = tmp_path / name, ()
    if name == "folder":
        picture.mkdir()
        (picture / "a.png").write_bytes(encode_png(moving_square(0)))
    elif name == "limited":
        picture, limit = sample_clip(tmp_path / "long.mp4", 5), ("--max-frames", 1)
    elif name == "one.png":
        picture.write_bytes(encode_png(moving_square(0)))
    elif name == "one.jpg":
        sample_photo(picture)
    else:
        sample_clip(picture, 1)
    out = tmp_path / "out"
    out.mkdir()
    saved = [word for file in ("scene.ply", "tracks.npz", "%02d.png") for word in ("--save", out / file)]
    result = call(
        *("run", picture, "--bundle", fake_bundle, *limit, "-o", out / "o.mp4", "--layout", "side-by-side"),
        *(*saved, "--contact-sheet", out / "sheet.png", "--json"),
    )
    assert result.returncode == 0, result.stderr
    stats = json.loads(result.stdout)
    assert (stats["frames"]["total"], stats["frames"]["key"]) == (1, 1)
    assert stats["input_problems"]["truncated"] is None
    assert len(frames_of(out / "o.mp4")) == 1
    cloud = read_ply(out / "scene.ply")
    assert cloud.time == 0.0 and cloud.count > 0
    with closing(Tracks(out / "tracks.npz")) as tracks:
        assert len(tracks.times) == 1


def test_pixels_that_are_not_square_keep_their_shape(tmp_path: Path, fake_bundle: Path, call) -> None:
    """As much of a picture as 64x64 pixels of 2:1: wide, whatever is shown of it and where."""
    clip = sample_clip(tmp_path / "clip.mp4", 5, height=64, width=64, aspect=Fraction(2))
    arguments = ("run", clip, "--bundle", fake_bundle)
    result = call(
        *(*arguments, "-o", tmp_path / "plain.mp4", "--save", tmp_path / "scene.ply"),
        *("--contact-sheet", tmp_path / "sheet.png"),
    )
    assert result.returncode == 0, result.stderr
    with av.open(str(tmp_path / "plain.mp4")) as container:
        context = container.streams.video[0].codec_context
        shown = context.width * (context.sample_aspect_ratio or 1) / context.height
    assert shown == pytest.approx(2.0, abs=0.02)
    assert read_ply(next(tmp_path.glob("**/*.ply"))).picture.aspect == 2.0
    layout = "input,reconstruction"
    assert call(*arguments, "-o", tmp_path / "two.mp4", "--layout", layout).returncode == 0
    panels = Panels((64, 128), layout.split(","))
    assert frames_of(tmp_path / "two.mp4")[0].image.shape[:2] == (panels.height, panels.width)
    assert panels.panel_width == 2 * panels.panel_height
    with open_video(tmp_path / "sheet.png") as square:
        assert square.width == 176 + 4 * (2 * 198 + 12) + 12


def test_folder_in_folder_out_and_the_quality_that_is_reported(
    tmp_path: Path, fake_bundle: Path, call
) -> None:
    """PNG output is lossless, so the reported PSNR can be checked against the pictures."""
    images = [moving_square(4 * i) for i in range(9)]
    (tmp_path / "in").mkdir()
    for i, image in enumerate(images):
        (tmp_path / "in" / f"{i:03d}.png").write_bytes(encode_png(image))
    result = call(
        *(
            "run",
            tmp_path / "in",
            "--folder-rate",
            10,
            "--bundle",
            fake_bundle,
            "-o",
            tmp_path / "out",
            "--json",
        )
    )
    assert result.returncode == 0, result.stderr
    stats = json.loads(result.stdout)
    outputs = frames_of(tmp_path / "out")
    assert len(outputs) == 9 and outputs[0].image.shape == (HEIGHT, WIDTH, 3)
    rows = (tmp_path / "out" / "timestamps.csv").read_text().splitlines()[1:]
    np.testing.assert_allclose([float(row.split(",")[1]) for row in rows], np.arange(9) / 10, atol=1e-6)
    resizer, planes = Resizer(HEIGHT, WIDTH), np.zeros((3, HEIGHT, WIDTH), np.float32)
    values = []
    for image, output in zip(images, outputs, strict=True):
        resizer.into(image, planes)
        values.append(psnr(output.image, np.rint(planes.transpose(1, 2, 0) * 255).astype(np.uint8)))
    keys = [0, 4, 8]
    between = [i for i in range(9) if i not in keys]
    assert stats["psnr_db"]["key_frames"]["mean"] == pytest.approx(
        np.mean([values[i] for i in keys]), abs=1e-3
    )
    assert stats["psnr_db"]["in_between"]["mean"] == pytest.approx(
        np.mean([values[i] for i in between]), abs=1e-3
    )


def test_json_is_the_only_thing_on_stdout(tmp_path: Path, fake_bundle: Path, call) -> None:
    clip = sample_clip(tmp_path / "clip.mp4", 6)
    result = call("run", clip, "--bundle", fake_bundle, "--json", "--stats", tmp_path / "s.json")
    assert result.returncode == 0 and not result.stderr
    assert json.loads(result.stdout) == json.loads((tmp_path / "s.json").read_text())


def test_quiet(tmp_path: Path, fake_bundle: Path, call) -> None:
    clip = sample_clip(tmp_path / "clip.mp4", 6)
    result = call("run", clip, "--bundle", fake_bundle, "-o", tmp_path / "o.mp4", "--quiet")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(("options", "wanted"), [(("--quiet",), 0), ((), 6), (("--quiet", "--stats"), 6)])
def test_psnr_is_measured_only_where_it_is_shown(
    tmp_path: Path, fake_bundle: Path, monkeypatch: pytest.MonkeyPatch, options: tuple, wanted: int
) -> None:
    measured = []
    original = Viewer.measure

    def counted(self: Viewer, rendered: Rendered) -> float:
        measured.append(rendered.source.index)
        return original(self, rendered)

    monkeypatch.setattr(Viewer, "measure", counted)
    options = (*options, str(tmp_path / "s.json")) if "--stats" in options else options
    clip = sample_clip(tmp_path / "clip.mp4", 6)
    arguments = ("run", str(clip), "--bundle", str(fake_bundle), "-o", str(tmp_path / "o.mp4"), *options)
    assert cli.main(arguments) == 0
    assert len(measured) == wanted


def test_gap_and_max_frames(tmp_path: Path, fake_bundle: Path, call) -> None:
    clip = sample_clip(tmp_path / "clip.mp4", 20)
    result = call("run", clip, "--bundle", fake_bundle, "--gap", 2, "--max-frames", 8, "--json")
    frames = json.loads(result.stdout)["frames"]
    assert result.returncode == 0 and (frames["total"], frames["key"]) == (8, 5)


def test_a_scene_cut_is_found(tmp_path: Path, fake_bundle: Path, call) -> None:
    other = np.random.default_rng(0).integers(120, 255, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    images = [moving_square(i) for i in range(10)] + [other] * 10
    clip = write_video(tmp_path / "cut.mp4", images)
    result = call(
        *(
            "run",
            clip,
            "--bundle",
            fake_bundle,
            "--json",
            "-o",
            tmp_path / "o.mp4",
            "--layout",
            "side-by-side",
        ),
        *("--contact-sheet", tmp_path / "o.png"),
    )
    stats = json.loads(result.stdout)
    assert stats["frames"]["cuts"] == 1 and stats["frames"]["total"] == 20


def test_an_existing_output_is_replaced_only_when_forced(tmp_path: Path, fake_bundle: Path, call) -> None:
    clip = sample_clip(tmp_path / "clip.mp4", 5)
    out = tmp_path / "o.mp4"
    out.write_bytes(b"precious")
    refused = call("run", clip, "--bundle", fake_bundle, "-o", out)
    assert refused.returncode == 2 and "--force" in refused.stderr and out.read_bytes() == b"precious"
    assert call("run", clip, "--bundle", fake_bundle, "-o", out, "--force").returncode == 0
    assert len(frames_of(out)) == 5


def test_portrait_side_by_side(tmp_path: Path, fake_bundle: Path, call) -> None:
    clip = sample_clip(tmp_path / "clip.mp4", 6, height=128, width=72)
    result = call("run", clip, "--bundle", fake_bundle, "-o", tmp_path / "o.mp4", "--layout", "side-by-side")
    assert result.returncode == 0, result.stderr
    frame = frames_of(tmp_path / "o.mp4")[0].image
    assert frame.shape[0] > 500 and frame.shape[1] < 400


def test_openvino(tmp_path: Path, fake_bundle: Path, call) -> None:
    pytest.importorskip("openvino")
    clip = sample_clip(tmp_path / "clip.mp4", 6)
    result = call("run", clip, "--bundle", fake_bundle, "--engine", "openvino", "--json")
    assert result.returncode == 0, result.stderr
    stats = json.loads(result.stdout)
    assert "openvino" in stats["stages"]["encode"].lower() and stats["software"]["openvino"]


def test_two_runs_give_the_same_pictures(tmp_path: Path, fake_bundle: Path, call) -> None:
    clip = sample_clip(tmp_path / "clip.mp4", 9)
    for name, threads in (("a", 1), ("b", 2)):
        result = call("run", clip, "--bundle", fake_bundle, "-o", tmp_path / name, "--threads", threads)
        assert result.returncode == 0
    for a, b in zip(frames_of(tmp_path / "a"), frames_of(tmp_path / "b"), strict=True):
        np.testing.assert_array_equal(a.image, b.image)
