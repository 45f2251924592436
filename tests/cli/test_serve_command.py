"""`serve`: its arguments, and what it says where Ray is missing. The service itself: tests/serving."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from video_samples import sample_clip

from streamsplat_edge import cli
from streamsplat_edge.commands.serve import parse_streams
from streamsplat_edge.runtime.errors import StreamSplatError


def parsed(*arguments: str) -> list:
    return parse_streams(cli.build_parser().parse_args(["serve", *arguments]))


def test_names_and_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample_clip(tmp_path / "a=b.mp4", 2)
    monkeypatch.chdir(tmp_path)
    specs = parsed(
        "door=rtsp://host/x?a=1", "rtsp://host/y?b=2", "clip=a=b.mp4", "--gap", "6", "--silence", "3"
    )
    assert [(spec.name, spec.uri) for spec in specs] == [
        ("door", "rtsp://host/x?a=1"),
        ("s1", "rtsp://host/y?b=2"),
        ("clip", str(tmp_path / "a=b.mp4")),
    ]
    assert all(spec.gap == 6 and spec.silence_seconds == 3 for spec in specs)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("a=x.mp4", "a=y.mp4"), "named a"),
        (("x.mp4", "--replicas", "0"), "--replicas"),
        (("x.mp4", "y.mp4", "z.mp4", "--streams-per-replica", "1", "--replicas", "2"), "room for 2"),
        (("gopher://x",), "gopher"),
    ],
)
def test_impossible_arguments(arguments: tuple[str, ...], word: str) -> None:
    with pytest.raises(StreamSplatError, match=word) as caught:
        parsed(*arguments)
    assert caught.value.hint


def test_without_ray(
    tmp_path: Path, fake_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    clip = sample_clip(tmp_path / "a.mp4", 4)
    assert cli.main(["serve", str(clip), "--bundle", str(fake_bundle)]) == 2
    assert "pip install 'streamsplat-edge[serve]'" in capsys.readouterr().err
