"""Paths of the camera: texts, files, and what they mean at a time."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from streamsplat_edge.runtime.errors import InputError
from streamsplat_edge.runtime.outputs.camera_path import CameraPath, parse_camera


def test_swing() -> None:
    path = parse_camera("swing:yaw=10,period=4")
    assert path.angles(0.0) == (0.0, 0.0)
    assert path.angles(1.0) == pytest.approx((10, 0)) and path.angles(3.0) == pytest.approx((-10, 0))
    assert path.end(0.3, first=True) == (10, 0) and path.end(0.3, first=False) == (-10, 0)
    assert parse_camera("swing") == CameraPath()


def test_orbit_goes_round() -> None:
    path = parse_camera("orbit:yaw=8,pitch=4,period=6")
    for time in (0.0, 1.1, 4.4):
        yaw, pitch = path.angles(time)
        assert math.hypot(yaw / 8, pitch / 4) == pytest.approx(1)
    assert path.angles(1.5) == pytest.approx((0, 4), abs=1e-9) and path.end(0, first=True) == (8, 0)


def test_fixed_about_a_pivot() -> None:
    path = parse_camera("fixed:yaw=5,pitch=-2,pivot=1.2")
    assert path.angles(0.0) == path.angles(99.0) == (5, -2) and path.pivot == 1.2
    assert "depth 1.2" in path.description


def write(tmp_path: Path, data: Any) -> str:
    (tmp_path / "path.json").write_text(data if isinstance(data, str) else json.dumps(data))
    return str(tmp_path / "path.json")


def test_key_frames_of_a_file(tmp_path: Path) -> None:
    keys = [{"t": 1, "yaw": 0}, {"t": 2, "yaw": 8, "pitch": 4}, {"t": 4, "yaw": -8}]
    path = parse_camera(write(tmp_path, {"keyframes": keys, "pivot": 2}))
    assert [path.angles(t) for t in (0, 1, 1.5, 2, 3, 9)] == [(0, 0), (0, 0), (4, 2), (8, 4), (0, 2), (-8, 0)]
    assert path.pivot == 2 and "3 key frames" in path.description
    looped = parse_camera(write(tmp_path, {"keyframes": keys, "loop": True}))
    assert looped.angles(4.5) == pytest.approx((4, 2)) and looped.angles(-1.5) == pytest.approx((4, 2))
    one = parse_camera(write(tmp_path, {"keyframes": [{"t": 0, "yaw": 3}], "loop": True}))
    assert one.angles(5) == (3, 0)


@pytest.mark.parametrize(
    "text",
    [
        *("spin", "", "swing:roll=3", "swing:yaw", "swing:yaw=much", "swing:yaw=90", "swing:yaw=nan"),
        *("swing:period=0", "orbit:pivot=-1", "fixed:period=3", "nothing.json"),
    ],
)
def test_bad_texts(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_camera(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    "data",
    [
        *("", "[", "[" * 100_000, "null", "[]", {}, {"keyframes": []}, {"keyframes": [3]}),
        *({"keyframes": [{}]}, {"keyframes": [{"t": "0"}]}, {"keyframes": [{"t": 0, "yaw": 99}]}),
        {"keyframes": [{"t": 0, "roll": 9}]},
        {"keyframes": [{"t": 1}, {"t": 1}]},
        {"keyframes": [{"t": 0}], "pivot": True},
        {"keyframes": [{"t": 0}], "loop": 1},
        {"keyframes": [{"t": 0}], "speed": 1},
        '{"keyframes": [{"t": NaN}]}',
        '{"keyframes": [{"t": ' + "9" * 400 + "}]}",
        {"keyframes": [{"t": i} for i in range(10_001)]},
        " " * (1 << 21),
    ],
    ids=lambda data: str(data)[:30],
)
def test_bad_files(tmp_path: Path, data: Any) -> None:
    with pytest.raises(InputError):
        parse_camera(write(tmp_path, data))
