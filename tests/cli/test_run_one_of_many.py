"""`run A B`: what fails in one stream leaves the other as it is."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from video_samples import sample_clip

from streamsplat_edge import cli
from streamsplat_edge.commands.run import Run
from streamsplat_edge.runtime.errors import OutputError
from streamsplat_edge.runtime.video import DecodedFrame, open_video
from streamsplat_edge.runtime.video.writer import VideoWriter


def run_two(tmp_path: Path, fake_bundle: Path, *options: object) -> int:
    clips = [sample_clip(tmp_path / f"in{i}.mp4", 40) for i in range(2)]
    (tmp_path / "out").mkdir()
    return cli.main(["run", *map(str, clips), "--bundle", str(fake_bundle), *map(str, options)])


def left(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "out").iterdir())


@pytest.mark.parametrize("where", ["write", "close"])
@pytest.mark.parametrize("error", [OutputError("no room", "make room"), ZeroDivisionError("a defect")])
def test_outputs_that_fail_are_those_of_one_stream(
    tmp_path: Path,
    fake_bundle: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    error: Exception,
) -> None:
    original = getattr(VideoWriter, where)

    def failing(writer: VideoWriter, *values: Any) -> None:
        if writer.path.name == "o-0.mp4" and writer.frames >= 7:
            raise error
        original(writer, *values)

    monkeypatch.setattr(VideoWriter, where, failing)
    out = tmp_path / "out"
    saves = ("--save", out / "t-{}.npz", "--stats", out / "s-{}.json", "--contact-sheet", out / "c-{}.png")
    code = run_two(tmp_path, fake_bundle, "-o", out / "o-{}.mp4", *saves, "--json")
    printed = capsys.readouterr()
    assert code == 3, printed.err
    assert left(tmp_path) == ["c-1.png", "o-1.mp4", "s-1.json", "t-1.npz"], "nothing of the first is left"
    with open_video(out / "o-1.mp4") as reader:
        assert sum(1 for _ in reader) == 40
    first, second = json.loads(printed.out)["streams"]
    assert str(error.args[0]) in first["error"]["message"] and first["error"]["hint"]
    assert second["error"] is None and second["frames"]["total"] == 40
    assert printed.err.count("error: ") == 1 and "hint: " in printed.err
    assert ("Traceback" in printed.err) == isinstance(error, ZeroDivisionError)


def test_an_unforeseen_error_of_one_input(
    tmp_path: Path, fake_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was done until then is kept, as with a damaged file, and the other is complete."""
    original = Run.frames

    def failing(run: Run) -> Iterator[DecodedFrame]:
        for frame in original(run):
            if run.args.input.endswith("in0.mp4") and frame.index == 17:
                raise IndexError("tuple index out of range")
            yield frame

    monkeypatch.setattr(Run, "frames", failing)
    assert run_two(tmp_path, fake_bundle, "-o", tmp_path / "out" / "o-{}.mp4") == 3
    printed = capsys.readouterr()
    assert "in0.mp4: failed unexpectedly (IndexError: tuple index" in printed.err
    for name, count in (("o-0.mp4", 17), ("o-1.mp4", 40)):
        with open_video(tmp_path / "out" / name) as reader:
            assert sum(1 for _ in reader) in (count, count - 1), name


def test_one_full_disk_of_two(tmp_path: Path, fake_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = [tmp_path / f"d{i}" for i in range(2)]
    for place in places:
        place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20k", "tmpfs", str(places[0])]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("may not mount a file system here")
    try:
        options = ("-o", tmp_path / "d{}" / "o.mp4", "--layout", "side-by-side", "--quiet")
        assert run_two(tmp_path, fake_bundle, *options) == 3
        assert [[path.name for path in place.iterdir()] for place in places] == [[], ["o.mp4"]]
        assert "No space left" in capsys.readouterr().err
    finally:
        subprocess.run(["umount", str(places[0])], check=True)
