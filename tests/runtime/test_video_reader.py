"""Video input: every kind of picture and time stamp, and every way an input can be wrong."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from video_samples import audio_only, moving_square, sample_clip, truncated_clip, turn, write_video

from streamsplat_edge.runtime.errors import InputError, VideoError
from streamsplat_edge.runtime.sources import LiveOptions, opening
from streamsplat_edge.runtime.video import encode_png, open_video


def frames_of(path: Path | str, **kwargs: object) -> list:
    with open_video(path, **kwargs) as reader:  # type: ignore[arg-type]
        return list(reader)


def close(image: np.ndarray, truth: np.ndarray, tolerance: float = 4.0) -> bool:
    return image.shape == truth.shape and float(np.abs(image.astype(float) - truth).mean()) < tolerance


def test_frames_in_order_with_time_stamps(tmp_path: Path) -> None:
    path = sample_clip(tmp_path / "a.mp4", 12)
    with open_video(path) as reader:
        assert (reader.width, reader.height, reader.frames_estimate, reader.live) == (64, 48, 12, False)
        frames = list(reader)
        assert reader.truncated is None and reader.notes == []
    assert [f.index for f in frames] == list(range(12))
    np.testing.assert_allclose([f.timestamp for f in frames], np.arange(12) / 25, atol=1e-4)
    assert all(close(f.image, moving_square(f.index), 8) for f in frames)
    assert frames[0].image.dtype == np.uint8 and frames[0].image.flags.c_contiguous


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_variable_frame_rate_is_kept(tmp_path: Path, suffix: str) -> None:
    times = [0.0, 0.04, 0.2, 0.21, 0.9, 1.0, 3.5]
    path = write_video(tmp_path / f"v{suffix}", [moving_square(i) for i in range(7)], times)
    # Matroska rounds to milliseconds.
    np.testing.assert_allclose([f.timestamp for f in frames_of(path)], times, atol=1.1e-3)


def test_time_starts_at_zero_when_the_file_does_not(tmp_path: Path) -> None:
    path = write_video(tmp_path / "late.mkv", [moving_square(i) for i in range(4)], [7.0, 7.1, 7.3, 7.4])
    np.testing.assert_allclose([f.timestamp for f in frames_of(path)], [0, 0.1, 0.3, 0.4], atol=1.1e-3)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((0, 1, -1, 0), lambda image: np.rot90(image, 3)),  # a phone in portrait: a quarter turn clockwise
        ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
        ((0, -1, 1, 0), lambda image: np.rot90(image, 1)),
        ((-1, 0, 0, 1), np.fliplr),  # a mirrored selfie
        ((1, 0, 0, 1), lambda image: image),
    ],
)
def test_rotation_metadata_is_applied(tmp_path: Path, matrix: tuple, expected: Any) -> None:
    image = moving_square(3)
    path = turn(write_video(tmp_path / "r.mp4", [image] * 3), matrix)
    with open_video(path) as reader:
        frame = next(iter(reader))
        assert (reader.height, reader.width) == frame.image.shape[:2]
    assert close(frame.image, expected(image), 8)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_pixels_that_are_not_square(tmp_path: Path, suffix: str) -> None:
    path = sample_clip(tmp_path / f"wide{suffix}", 3, aspect=Fraction(4, 3))
    with open_video(path) as reader:
        assert (reader.width, reader.height, reader.pixel_aspect) == (64, 48, Fraction(4, 3))
        assert reader.shown_size == (48, 85)


@pytest.mark.parametrize(("matrix", "aspect"), [((0, 1, -1, 0), "3/4"), ((-1, 0, 0, -1), "4/3")])
def test_pixels_turn_with_the_picture(tmp_path: Path, matrix: tuple, aspect: str) -> None:
    path = turn(sample_clip(tmp_path / "wide.mp4", 3, aspect=Fraction(4, 3)), matrix)
    with open_video(path) as reader:
        assert reader.pixel_aspect == Fraction(aspect)


@pytest.mark.parametrize("aspect", [Fraction(1), Fraction(11), Fraction(1, 11)])
def test_square_pixels_and_shapes_that_cannot_be(tmp_path: Path, aspect: Fraction) -> None:
    with open_video(sample_clip(tmp_path / "a.mkv", 3, aspect=aspect)) as reader:
        assert reader.pixel_aspect == 1 and reader.shown_size == (48, 64)


def test_odd_sizes(tmp_path: Path) -> None:
    image = moving_square(1, 47, 61)
    path = write_video(tmp_path / "odd.mkv", [image] * 2, codec="ffv1", pixel_format="bgr0")
    frames = frames_of(path)
    assert len(frames) == 2
    np.testing.assert_array_equal(frames[0].image, image)


def test_odd_sizes_with_subsampled_chroma(tmp_path: Path) -> None:
    image = moving_square(1, 47, 61)
    path = write_video(tmp_path / "odd.mp4", [image] * 2, options={"crf": "5"}, pixel_format="yuv444p")
    assert close(frames_of(path)[0].image, image)


def test_grey(tmp_path: Path) -> None:
    grey = moving_square(2).mean(2).astype(np.uint8)
    formats = {"pixel_format": "gray", "source_format": "gray"}
    path = write_video(tmp_path / "g.mkv", [grey] * 2, codec="ffv1", **formats)
    image = frames_of(path)[0].image
    assert close(image, np.repeat(grey[..., None], 3, 2), 1.0)


def test_ten_bit(tmp_path: Path) -> None:
    images = [moving_square(i) for i in range(3)]
    path = write_video(tmp_path / "ten.mkv", images, codec="ffv1", pixel_format="yuv444p10le")
    frames = frames_of(path)
    assert len(frames) == 3 and frames[0].image.dtype == np.uint8
    assert close(frames[1].image, images[1], 1.5)


def test_alpha_lies_over_black(tmp_path: Path) -> None:
    rgba = np.full((16, 32, 4), 200, np.uint8)
    rgba[:, :16, 3] = 255
    rgba[:, 16:, 3] = 0
    formats = {"pixel_format": "bgra", "source_format": "rgba"}
    path = write_video(tmp_path / "a.mkv", [rgba] * 2, codec="ffv1", **formats)
    image = frames_of(path)[0].image
    assert (image[:, :16] == 200).all() and (image[:, 16:] == 0).all()


@pytest.mark.parametrize(("space", "size"), [(1, (48, 64)), (5, (720, 64))])
def test_the_tagged_colour_matrix_decides(tmp_path: Path, space: int, size: tuple[int, int]) -> None:
    """BT.709 in a small and BT.601 in a large picture: the opposite of what an untagged file would mean."""
    image = np.zeros((*size, 3), np.uint8)
    image[...] = (30, 200, 40)
    options = {"crf": "1", "x264-params": "colormatrix=bt709" if space == 1 else "colormatrix=smpte170m"}
    path = write_video(tmp_path / "c.mp4", [image] * 2, options=options, colorspace=space)
    assert close(frames_of(path)[0].image, image, 3)


def test_time_stamps_that_stand_still_are_made_to_increase(tmp_path: Path) -> None:
    """An AVI with B-frames stores no presentation times at all."""
    path = sample_clip(tmp_path / "b.avi", 20, codec="mpeg4", clock=Fraction(1, 25), options={"bf": "2"})
    times = [f.timestamp for f in frames_of(path)]
    assert len(times) >= 18 and (np.diff(times) > 0).all()
    assert abs(times[-1] - 19 / 25) < 0.1


def test_image_folder_is_sorted_by_name(tmp_path: Path) -> None:
    for i in (2, 0, 1):
        (tmp_path / f"f{i}.png").write_bytes(encode_png(moving_square(i)))
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    frames = frames_of(tmp_path, folder_rate=10)
    assert len(frames) == 3
    for i, frame in enumerate(frames):
        np.testing.assert_array_equal(frame.image, moving_square(i))
    np.testing.assert_allclose([f.timestamp for f in frames], [0, 0.1, 0.2])


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), 1001])
def test_impossible_folder_rates_are_refused(tmp_path: Path, rate: float) -> None:
    (tmp_path / "f.png").write_bytes(encode_png(moving_square(0)))
    with pytest.raises(InputError, match="frames per second"):
        open_video(tmp_path, folder_rate=rate)


def test_damaged_image_is_left_out_and_said(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"f{i}.png").write_bytes(encode_png(moving_square(i)))
    (tmp_path / "f1.png").write_bytes(b"this is not a PNG")
    with open_video(tmp_path, folder_rate=10) as reader:
        times = [f.timestamp for f in reader]
        assert reader.truncated is not None and "1 of 4" in reader.truncated and "f1.png" in reader.truncated
    np.testing.assert_allclose(times, [0, 0.2, 0.3])


def test_truncated_video_gives_what_can_be_decoded_and_says_so(tmp_path: Path) -> None:
    with open_video(truncated_clip(tmp_path / "t.mp4")) as reader:
        count = sum(1 for _ in reader)
        assert 10 < count < 55
        assert reader.truncated is not None and f"only {count} of about 60 frames" in reader.truncated


def test_truncated_matroska(tmp_path: Path) -> None:
    data = sample_clip(tmp_path / "w.mkv", 50, options={"g": "5", "bf": "0"}).read_bytes()
    (tmp_path / "t.mkv").write_bytes(data[: len(data) // 2])
    with open_video(tmp_path / "t.mkv") as reader:
        count = sum(1 for _ in reader)
        assert 2 < count < 50
        assert reader.truncated is not None


def test_damage_in_the_middle_does_not_end_the_video(tmp_path: Path) -> None:
    path = sample_clip(tmp_path / "d.mov", 40, codec="png", pixel_format="rgb24")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    path.write_bytes(data)
    with open_video(path) as reader:
        frames = list(reader)
        told = " ".join([*reader.notes, reader.truncated or ""])
    assert 35 <= len(frames) < 40 and frames[-1].timestamp > 1.4
    assert "damaged" in told


def refusal(path: Path | str) -> VideoError:
    with pytest.raises(VideoError) as caught, open_video(path) as reader:
        list(reader)
    assert caught.value.hint, "every refusal says what to do"
    assert str(path) in caught.value.message
    return caught.value


def test_missing_file(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "nothing.mp4").message


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "z.mp4").touch()
    assert "0 bytes" in refusal(tmp_path / "z.mp4").message


@pytest.mark.parametrize("name", ["x.mp4", "x.txt", "x.bin"])
def test_not_a_video(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("Dear diary, this is no video.\n" * 200)
    assert "not a video" in refusal(tmp_path / name).message


def test_random_bytes(tmp_path: Path) -> None:
    (tmp_path / "r.mp4").write_bytes(np.random.default_rng(1).bytes(20_000))
    refusal(tmp_path / "r.mp4")


def test_mp4_without_its_index(tmp_path: Path) -> None:
    data = sample_clip(tmp_path / "w.mp4", 30).read_bytes()
    (tmp_path / "c.mp4").write_bytes(data[: len(data) // 2])
    assert "moov" in refusal(tmp_path / "c.mp4").hint


def test_sound_only(tmp_path: Path) -> None:
    assert "no video stream" in refusal(audio_only(tmp_path / "s.wav")).message


def test_empty_folder(tmp_path: Path) -> None:
    assert "no images" in refusal(tmp_path).message


def test_folder_of_damaged_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x" * 100)
    assert "none of its 1 images" in refusal(tmp_path).message


def test_missing_camera() -> None:
    assert "/dev/video97" in refusal("camera:97").message


def test_unknown_schemes_are_refused() -> None:
    assert "rtsp://" in refusal("gopher://example.invalid/stream").hint


def test_path_through_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    refusal(tmp_path / "file" / "clip.mp4")


def test_a_stream_without_time_stamps_that_changes_its_size(tmp_path: Path) -> None:
    """Raw H.264 carries no times: the nominal rate gives them. The size may change on the way."""
    small = sample_clip(tmp_path / "a.h264", 10, 48, 64).read_bytes()
    large = sample_clip(tmp_path / "b.h264", 10, 96, 128).read_bytes()
    (tmp_path / "c.h264").write_bytes(small + large)
    with open_video(tmp_path / "c.h264") as reader:
        frames = list(reader)
        assert (reader.width, reader.height, reader.truncated) == (64, 48, None)
        assert "time stamps" in reader.notes[0]
    assert [f.image.shape[0] for f in frames] == [48] * 10 + [96] * 10
    np.testing.assert_allclose([f.timestamp for f in frames], np.arange(20) / float(reader.rate), atol=1e-6)


def test_a_step_back_in_time_does_not_stop_the_clock(tmp_path: Path) -> None:
    """Two recordings joined in one transport stream: the second starts at zero again."""
    first = sample_clip(tmp_path / "a.ts", 50, options={"bf": "0"}).read_bytes()
    second = sample_clip(tmp_path / "b.ts", 50, options={"bf": "0"}).read_bytes()
    (tmp_path / "c.ts").write_bytes(first + second)
    times = [f.timestamp for f in frames_of(tmp_path / "c.ts")]
    assert len(times) == 100 and (np.diff(times) > 0).all()
    assert times[-1] == pytest.approx(99 / 25, abs=0.1)


def test_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No camera here: a file stands in for the device, opened the way a camera is."""
    path = sample_clip(tmp_path / "a.mp4", 5, aspect=Fraction(4, 3))
    opened: list[tuple[str, Any, dict[str, str]]] = []
    real = av.open

    def open_device(uri: str, *, format: str, options: dict[str, str], hwaccel: object, **_: object) -> Any:
        assert hwaccel is None
        opened.append((uri, format, options))
        return real(str(path))

    monkeypatch.setattr(av, "open", open_device)
    monkeypatch.setattr(opening.Path, "exists", lambda self: str(self) == "/dev/video3")
    options = LiveOptions(attempts=0, libav={"framerate": "10"})
    for uri in ("camera:3", "/dev/video3", "v4l2:///dev/video3"):
        with open_video(uri, live=options) as reader:
            assert reader.live and reader.frames_estimate is None and reader.uri == uri
            assert reader.shown_size == (48, 85)
            assert len(list(reader)) == 5 and reader.truncated is not None
    assert opened == [("/dev/video3", "v4l2", {"framerate": "10"})] * 3
