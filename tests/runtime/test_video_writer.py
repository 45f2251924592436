"""Video output: what is written comes back, and a failure leaves nothing behind."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
import pytest
from video_samples import moving_square

from streamsplat_edge.runtime.errors import InputError, OutputError
from streamsplat_edge.runtime.video import (
    AtomicFile,
    FolderWriter,
    VideoWriter,
    check_output,
    encode_png,
    open_video,
    open_writer,
    write_bytes,
)
from streamsplat_edge.runtime.video import output as output_module
from streamsplat_edge.runtime.video import writer as writer_module


def images_of(path: Path) -> list[np.ndarray]:
    with open_video(path) as reader:
        return [frame.image for frame in reader]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".m4v"])
def test_round_trip_keeps_pictures_and_time_stamps(tmp_path: Path, suffix: str) -> None:
    times = [0.0, 0.05, 0.4, 0.41, 2.0]
    path = tmp_path / f"o{suffix}"
    with VideoWriter(path, 64, 48) as writer:
        for i, time in enumerate(times):
            writer.write(moving_square(i), time)
        assert not path.exists(), "the name appears only when the file is complete"
    with open_video(path) as reader:
        frames = list(reader)
    np.testing.assert_allclose([f.timestamp for f in frames], times, atol=1.1e-3)
    for i, frame in enumerate(frames):
        assert np.abs(frame.image.astype(float) - moving_square(i)).mean() < 4
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_players_get_h264_420_with_tagged_colours(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "o.mp4", 64, 48, aspect=Fraction(4, 3)) as writer:
        writer.write(moving_square(0), 0)
        writer.write(moving_square(1), 0.04)
    with av.open(str(tmp_path / "o.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert context.name == "h264" and context.pix_fmt == "yuv420p"
        assert (context.colorspace, context.color_range) == (1, 1)
        assert context.sample_aspect_ratio == Fraction(4, 3)
    assert "libx264" in writer.description


def test_odd_sizes_are_padded_by_their_edge(tmp_path: Path) -> None:
    image = moving_square(0, 47, 61)
    with VideoWriter(tmp_path / "o.mp4", 61, 47) as writer:
        writer.write(image, 0)
        writer.write(image, 0.1)
    back = images_of(tmp_path / "o.mp4")[0]
    assert back.shape == (48, 62, 3)
    assert np.abs(back[:47, :61].astype(float) - image).mean() < 6
    assert np.abs(back[:47, 61].astype(float) - image[:, 60]).mean() < 12


def test_equal_time_stamps_do_not_stop_the_muxer(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "o.mp4", 64, 48) as writer:
        for i in range(4):
            writer.write(moving_square(i), 0.5)
    assert len(images_of(tmp_path / "o.mp4")) == 4


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_times_before_zero_keep_their_distances(tmp_path: Path, suffix: str) -> None:
    """Of a program that counts from an event, say. No container has such times."""
    times = np.array([-5.0, -4.5, 0.0, 0.25])
    with VideoWriter(tmp_path / f"o{suffix}", 64, 48) as writer:
        for i, time in enumerate(times):
            writer.write(moving_square(i), time)
    with open_video(tmp_path / f"o{suffix}") as reader:
        np.testing.assert_allclose([f.timestamp for f in reader], times + 5, atol=1.1e-3)


@pytest.mark.parametrize("time", [1.7e18, float("nan"), float("-inf")])
def test_times_that_fit_into_no_video(tmp_path: Path, time: float) -> None:
    """Nanoseconds since 1970, say, where seconds are meant."""
    with pytest.raises(InputError, match="time stamp"), VideoWriter(tmp_path / "o.mp4", 64, 48) as writer:
        writer.write(moving_square(0), 0.0)
        writer.write(moving_square(1), time)
    assert list(tmp_path.iterdir()) == []


def test_wrong_frame_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="64"), VideoWriter(tmp_path / "o.mp4", 64, 48) as writer:
        writer.write(moving_square(0, 48, 32), 0)
    assert list(tmp_path.iterdir()) == []


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), VideoWriter(tmp_path / "o.mp4", 64, 48) as writer:
        writer.write(moving_square(0), 0)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_the_old_file_survives_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "o.mp4"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), VideoWriter(path, 64, 48) as writer:
        writer.write(moving_square(0), 0)
        raise RuntimeError
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_no_frame_no_file(tmp_path: Path) -> None:
    VideoWriter(tmp_path / "o.mp4", 64, 48).close()
    FolderWriter(tmp_path / "o").close()
    assert list(tmp_path.iterdir()) == []


def test_fails_before_starting_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="not a folder"):
        VideoWriter(tmp_path / "file" / "o.mp4", 64, 48)
    with pytest.raises(OutputError, match="does not exist"):
        VideoWriter(tmp_path / "missing" / "o.mp4", 64, 48)
    with pytest.raises(OutputError, match=r"\.gif"):
        open_writer(tmp_path / "o.gif", 64, 48)


@pytest.mark.parametrize("target", ["o.mp4", "o.mkv", "folder", "o.png"])
def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path, target: str) -> None:
    """RLIMIT_FSIZE stands in for the disk: writes beyond it fail as they do on a full one."""
    code = f"""
import resource, numpy as np
from pathlib import Path
from streamsplat_edge.runtime.errors import OutputError
from streamsplat_edge.runtime.video import open_writer, write_bytes
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
noise = np.random.default_rng(0)
path = Path({str(tmp_path)!r}) / {target!r}
try:
    if path.suffix == ".png":
        write_bytes(path, noise.bytes(50_000))
    else:
        with open_writer(path, 128, 96) as writer:
            for i in range(200):
                writer.write(noise.integers(0, 255, (96, 128, 3), dtype=np.uint8), i / 25)
except OutputError as error:
    print("refused:", error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "refused:" in result.stdout and "nothing was left behind" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_in_the_trailer(tmp_path: Path) -> None:
    """The last bytes are written on close: that error must not be lost either."""
    with VideoWriter(tmp_path / "probe.mp4", 64, 48) as writer:
        for i in range(5):
            writer.write(moving_square(i), i / 25)
    limit = (tmp_path / "probe.mp4").stat().st_size - 100
    (tmp_path / "probe.mp4").unlink()
    code = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from video_samples import moving_square
from streamsplat_edge.runtime.errors import OutputError
from streamsplat_edge.runtime.video import VideoWriter
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    with VideoWriter({str(tmp_path / "o.mp4")!r}, 64, 48) as writer:
        for i in range(5):
            writer.write(moving_square(i), i / 25)
except OutputError as error:
    print("refused:", error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and "refused:" in result.stdout, result.stdout + result.stderr
    assert list(tmp_path.iterdir()) == []


def test_folder_of_images(tmp_path: Path) -> None:
    times = [0.0, 0.25, 0.3]
    with open_writer(tmp_path / "o", 64, 48) as writer:
        for i, time in enumerate(times):
            writer.write(moving_square(i), time)
        assert not (tmp_path / "o").exists()
    for i, image in enumerate(images_of(tmp_path / "o")):
        np.testing.assert_array_equal(image, moving_square(i))
    rows = (tmp_path / "o" / "timestamps.csv").read_text().splitlines()
    assert rows[0] == "index,seconds" and [float(r.split(",")[1]) for r in rows[1:]] == times
    assert [p.name for p in tmp_path.iterdir()] == ["o"]


def test_a_folder_is_replaced_only_when_it_is_ours_and_forced(tmp_path: Path) -> None:
    with FolderWriter(tmp_path / "o") as writer:
        writer.write(moving_square(0), 0)
    with pytest.raises(OutputError, match="earlier result") as caught:
        FolderWriter(tmp_path / "o")
    assert "--force" in caught.value.hint
    with FolderWriter(tmp_path / "o", force=True) as writer:
        writer.write(moving_square(5), 0)
    np.testing.assert_array_equal(images_of(tmp_path / "o")[0], moving_square(5))
    (tmp_path / "o" / "thesis.doc").write_text("precious")
    with pytest.raises(OutputError, match=r"thesis\.doc"):
        FolderWriter(tmp_path / "o", force=True)
    assert (tmp_path / "o" / "thesis.doc").read_text() == "precious"


def test_check_output(tmp_path: Path) -> None:
    check_output(tmp_path / "new.mp4", force=False)
    (tmp_path / "old.mp4").write_bytes(b"x")
    with pytest.raises(OutputError, match="exists"):
        check_output(tmp_path / "old.mp4", force=False)
    check_output(tmp_path / "old.mp4", force=True)
    with pytest.raises(OutputError, match="is a folder"):
        check_output(tmp_path, force=True)
    with pytest.raises(OutputError) as caught:
        check_output(tmp_path / "no" / "such" / "o.mp4", force=True)
    assert "mkdir -p" in caught.value.hint
    with pytest.raises(OutputError, match="is a file"):
        check_output(tmp_path / "old.mp4" / "o.mp4", force=True)
    os.mkfifo(tmp_path / "pipe")
    for special in (tmp_path / "pipe", Path("/dev/null")):  # as root, --force would replace /dev/null
        with pytest.raises(OutputError, match="a device or a pipe"):
            check_output(special, force=True)


@pytest.mark.parametrize("shape", [(5, 7, 3), (1, 1, 3), (6, 3)])
def test_png_is_lossless(tmp_path: Path, shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)
    write_bytes(tmp_path / "i.png", encode_png(image))
    with av.open(str(tmp_path / "i.png")) as container:
        frame = next(container.decode(video=0))
        back = frame.to_ndarray(format="gray" if image.ndim == 2 else "rgb24")
    np.testing.assert_array_equal(back, image)


def test_png_chunks_carry_valid_checksums() -> None:
    data = encode_png(np.zeros((2, 2, 3), np.uint8))[8:]
    kinds = []
    while data:
        size = int.from_bytes(data[:4], "big")
        kinds.append(data[4:8])
        assert zlib.crc32(data[4 : 8 + size]) == int.from_bytes(data[8 + size : 12 + size], "big")
        data = data[12 + size :]
    assert kinds == [b"IHDR", b"IDAT", b"IEND"]


def test_png_refuses_what_it_cannot_encode() -> None:
    with pytest.raises(ValueError, match="uint8"):
        encode_png(np.zeros((2, 2, 4), np.uint8))


class FullDisk:
    """Stands in for the temporary file: takes so many bytes, then fails like a disk without space."""

    def __init__(self, file: BinaryIO, room: int) -> None:
        self._file, self._room = file, room

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: bytes) -> int:
        self._room -= len(data)
        if self._room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._file.write(data)


@pytest.mark.parametrize("room", [0, 300, 3000])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_no_space_left(tmp_path: Path, room: int, suffix: str) -> None:
    """At the header, among the frames, in the trailer: always the system's reason, and nothing left."""
    with pytest.raises(OutputError, match="No space left") as caught:
        writer = VideoWriter(tmp_path / f"o{suffix}", 64, 48)
        writer._file._file = FullDisk(writer._file._file, room)  # type: ignore[assignment, arg-type]
        with writer:
            for i in range(100):
                writer.write(moving_square(i), i / 25)
    assert "nothing was left behind" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_no_space_left_for_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = writer_module.write_bytes

    def fail_on_the_third(path: Path, data: bytes) -> None:
        if path.name == "frame_000002.png":
            raise OutputError("no space")
        real(path, data)

    monkeypatch.setattr(writer_module, "write_bytes", fail_on_the_third)
    with pytest.raises(OutputError, match="no space"), FolderWriter(tmp_path / "o") as writer:
        for i in range(4):
            writer.write(moving_square(i), i / 25)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_of_the_folder_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(AtomicFile):
        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(output_module, "AtomicFile", Full)
    with pytest.raises(OutputError) as caught, FolderWriter(tmp_path / "o") as writer:
        writer.write(moving_square(0), 0.0)
    assert caught.value.message == f"{tmp_path / 'o'}: cannot be written: No space left on device."
    assert "nothing was left behind" in caught.value.hint and list(tmp_path.iterdir()) == []


def test_a_folder_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens on the way, the earlier result is there until the new one is."""

    def write(value: int) -> None:
        with FolderWriter(tmp_path / "o", force=True) as writer:
            writer.write(np.full((4, 4, 3), value, np.uint8), 0.0)

    write(1)
    earlier = (tmp_path / "o" / "frame_000000.png").read_bytes()
    for name in ("rename", "replace"):
        real = getattr(Path, name)

        def interrupted(self: Path, target: Path, real: Any = real) -> Path:
            if self.is_dir() and self.name.endswith(".tmp"):
                raise KeyboardInterrupt
            return real(self, target)

        monkeypatch.setattr(Path, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(2)
    assert (tmp_path / "o" / "frame_000000.png").read_bytes() == earlier
    monkeypatch.undo()
    left = tmp_path / f".o.{os.getpid()}.old"  # of a process that was killed before it could remove it
    left.mkdir()
    (left / "frame_000000.png").write_bytes(b"x")
    write(3)
    assert [path.name for path in tmp_path.iterdir()] == ["o"]
    assert (tmp_path / "o" / "frame_000000.png").read_bytes() != earlier


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "o").write_text("x")
    with pytest.raises(OutputError, match="is a file"):
        FolderWriter(tmp_path / "o", force=True)
    with pytest.raises(OutputError, match="does not exist"):
        FolderWriter(tmp_path / "missing" / "o")


def test_what_a_killed_process_left_does_not_block_a_folder(tmp_path: Path) -> None:
    left = tmp_path / f".o.{os.getpid()}.tmp"
    left.mkdir()
    (left / "frame_000007.png").write_bytes(b"half")
    with FolderWriter(tmp_path / "o") as writer:
        writer.write(moving_square(0), 0.0)
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == ["frame_000000.png", "timestamps.csv"]
    assert not left.exists()


def test_interrupted_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), FolderWriter(tmp_path / "o") as writer:
        writer.write(moving_square(0), 0)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_without_libx264_the_choice_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module.av, "codecs_available", {"mpeg4"})
    with VideoWriter(tmp_path / "o.mp4", 64, 48, rate=25) as writer:
        for i in range(3):
            writer.write(moving_square(i), i / 25)
    assert "mpeg4" in writer.description
    assert len(images_of(tmp_path / "o.mp4")) == 3


def test_write_bytes_into_a_place_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="not a folder"):
        (tmp_path / "f").touch()
        write_bytes(tmp_path / "f" / "x.json", b"{}")


def test_frames_in_the_format_of_the_file(tmp_path: Path) -> None:
    picture = av.VideoFrame.from_ndarray(moving_square(0), format="rgb24")
    with VideoWriter(tmp_path / "o.mp4", 64, 48) as writer:
        writer.write(picture.reformat(format="yuv420p", dst_colorspace=1), 0.0)
        with pytest.raises(InputError, match="yuv420p"):
            writer.write(picture, 0.1)
        with pytest.raises(InputError, match="64x48"):
            writer.write(picture.reformat(32, 48, "yuv420p"), 0.1)
    assert np.abs(images_of(tmp_path / "o.mp4")[0].astype(float) - moving_square(0)).mean() < 4
    with FolderWriter(tmp_path / "o") as folder:
        folder.write(picture, 0.0)
    np.testing.assert_array_equal(images_of(tmp_path / "o")[0], moving_square(0))
