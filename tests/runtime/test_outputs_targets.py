"""What the names after `--save` mean, and which are refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from streamsplat_edge.runtime.errors import InputError, OutputError
from streamsplat_edge.runtime.outputs.targets import (
    NumberedWriter,
    check_target,
    parse_source,
    parse_target,
)


@pytest.mark.parametrize(
    ("name", "kind", "digits"),
    [
        ("frames/%05d.png", "picture", 5),
        ("depth_%04d.png", "depth", 4),
        ("Depth%03d.PNG", "depth", 3),
        ("novel_%05d.png", "novel", 5),
        ("a/depth/%05d.png", "picture", 5),
        ("z%05d.exr", "depth", 5),
        ("scene_%04d.ply", "ply", 4),
        ("scene.ply", "ply", 0),
        ("scene.splat", "splat", 0),
        ("scene.4dgs", "container", 0),
        ("tracks.npz", "tracks", 0),
    ],
)
def test_names(name: str, kind: str, digits: int) -> None:
    target = parse_target(name)
    assert (target.kind, target.digits) == (kind, digits)


@pytest.mark.parametrize(
    "name",
    [
        *("video.mp4", "folder", "scene.obj", "one.png", "depth.exr", "scene_%d.ply", "%04d/a.ply"),
        *("a%04d_%04d.ply", "scene_%04d.4dgs", "t%05d.npz", "scene_%4d.ply", "100%.ply", ""),
    ],
)
def test_refused_names(name: str) -> None:
    with pytest.raises(OutputError) as caught:
        parse_target(name)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["clip.mp4", "depth_%05d.png", "scene_%d.ply", "t_%04d.npz", "a"])
def test_refused_sources(name: str) -> None:
    with pytest.raises(InputError):
        parse_source(name)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fourdgs", None)
    with pytest.raises(OutputError) as caught:
        parse_target("scene.4dgs")
    assert "pip install 'streamsplat-edge[container]'" in caught.value.hint


def test_files_are_numbered_in_order(tmp_path: Path) -> None:
    target = parse_target(str(tmp_path / "new" / "a+b_%02d.ply"))
    check_target(target, force=False)
    writer = NumberedWriter(target)
    for i in range(101):  # one digit more than the name has room for
        writer.write(str(i).encode())
    names = [path.name for path in target.existing()]
    assert names[:2] == ["a+b_00.ply", "a+b_01.ply"] and names[-2:] == ["a+b_99.ply", "a+b_100.ply"]
    assert [path.read_bytes() for path in target.existing()] == [str(i).encode() for i in range(101)]


def test_an_earlier_run_is_replaced_only_when_forced(tmp_path: Path) -> None:
    for name in ("s_0000.ply", "s_0007.ply", "s_00.ply", "other.ply"):
        (tmp_path / name).write_text("precious")
    target = parse_target(str(tmp_path / "s_%04d.ply"))
    with pytest.raises(OutputError, match="exists already") as caught:
        check_target(target, force=False)
    assert "--force" in caught.value.hint
    check_target(target, force=True)
    assert len(list(tmp_path.iterdir())) == 4, "checking changes nothing"
    NumberedWriter(target).write(b"new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.ply", "s_00.ply", "s_0000.ply"]
    assert (tmp_path / "s_0000.ply").read_bytes() == b"new"


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("file/%04d.ply", "no/folder/%04d.ply", "no/scene.ply"):
        with pytest.raises(OutputError):
            check_target(parse_target(str(tmp_path / name)), force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
