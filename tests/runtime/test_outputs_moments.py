"""Files of one moment: PLY, .splat, depth pictures; read back by readers of these tests' own and by ours."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from streamsplat_edge.runtime.errors import InputError
from streamsplat_edge.runtime.outputs.cloud import Cloud, Picture
from streamsplat_edge.runtime.outputs.depth_image import encode_depth_exr, encode_depth_png, read_depth
from streamsplat_edge.runtime.outputs.ply import encode_ply, read_ply, read_time
from streamsplat_edge.runtime.outputs.splat import encode_splat, read_splat
from streamsplat_edge.runtime.rasterizer import Rasterizer, Splats

PICTURE = Picture(64, 36, 2.0)


def made_up_splats(count: int = 200, seed: int = 0) -> Splats:
    """As streams make them: axis-aligned, the depth's scale the mean of the others."""
    rng = np.random.default_rng(seed)
    out = Splats.allocate(count + 3)
    out.means[:] = rng.uniform([-1, 0.1, -1], [1, 5, 1], out.means.shape)
    flat = rng.uniform(1e-4, 0.05, (count + 3, 2)).astype(np.float32)
    out.scales[:] = np.stack([flat[:, 0], flat.mean(1), flat[:, 1]], 1)
    out.opacity[:] = rng.uniform(0.01, 1, count + 3)
    out.rgb[:] = rng.uniform(0, 1, out.rgb.shape)
    out.count = count
    return out


@pytest.fixture
def cloud() -> Cloud:
    return Cloud.from_splats(made_up_splats(), PICTURE, time=1.25)


def test_axes_and_sizes_by_hand() -> None:
    """One Gaussian at the right, above the middle, at depth 3."""
    splats = Splats.allocate(1)
    splats.means[0], splats.scales[0] = (0.5, 3.0, 0.25), (0.1, 0.15, 0.2)
    splats.opacity[0], splats.rgb[0], splats.count = 0.8, (1, 0.5, 0), 1
    cloud = Cloud.from_splats(splats, PICTURE)
    np.testing.assert_allclose(cloud.means[0], (1.0, -0.25, 3.0), rtol=1e-6)
    # 0.3 px^2 more, where half of the picture's 64 (36) pixels is one unit, and x twice as long
    wide, high = 2 * np.sqrt(0.1**2 + 0.3 / 32**2), np.sqrt(0.2**2 + 0.3 / 18**2)
    np.testing.assert_allclose(cloud.scales[0], (wide, high, (wide + high) / 2), rtol=1e-6)
    np.testing.assert_array_equal(cloud.quats[0], (1, 0, 0, 0))


def test_what_cannot_be_seen_is_left_out() -> None:
    splats = made_up_splats(8)
    splats.opacity[0], splats.means[1, 1], splats.means[2, 0] = 0.003, -9.0, np.nan
    splats.scales[3, 2], splats.opacity[4], splats.rgb[5, 1] = np.inf, np.nan, np.nan
    cloud, rows = Cloud.visible(splats, PICTURE)
    np.testing.assert_array_equal(rows, (6, 7))
    np.testing.assert_array_equal(cloud.rgb, splats.rgb[6:8])


def test_the_way_back_gives_the_same_picture(tmp_path: Path) -> None:
    splats = made_up_splats(400)
    rasterizer = Rasterizer(PICTURE.height, PICTURE.width, threads=1)
    wanted = rasterizer.render(splats, out=None)
    (tmp_path / "a.ply").write_bytes(encode_ply(Cloud.from_splats(splats, PICTURE)))
    found = rasterizer.render(read_ply(tmp_path / "a.ply").to_splats())
    np.testing.assert_allclose(found.rgb, wanted.rgb, atol=1e-3)
    np.testing.assert_allclose(found.depth, wanted.depth, atol=1e-3)


def independent_ply(data: bytes) -> dict[str, np.ndarray]:
    """A reader of 3DGS PLY files that knows nothing of ours."""
    header, _, body = data.partition(b"end_header\n")
    lines = header.decode().splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    (count,) = (int(line.split()[2]) for line in lines if line.startswith("element vertex"))
    names = [line.split()[2] for line in lines if line.startswith("property float ")]
    assert len(body) == 4 * count * len(names)
    values = np.array(list(struct.iter_unpack(f"<{len(names)}f", body))).reshape(count, len(names))
    return dict(zip(names, values.T, strict=True))


def test_ply_as_others_read_it(cloud: Cloud) -> None:
    fields = independent_ply(encode_ply(cloud))
    places = np.stack([fields[name] for name in "xyz"], 1)
    np.testing.assert_array_equal(places, cloud.means)
    np.testing.assert_allclose(np.exp([fields[f"scale_{i}"] for i in range(3)]), cloud.scales.T, rtol=1e-5)
    np.testing.assert_allclose(1 / (1 + np.exp(-fields["opacity"])), cloud.opacity, atol=2e-6)
    harmonics = np.array([fields[f"f_dc_{i}"] for i in range(3)])
    np.testing.assert_allclose(0.5 + harmonics / (2 * np.sqrt(np.pi)), cloud.rgb.T, atol=1e-6)
    np.testing.assert_array_equal([fields[f"rot_{i}"] for i in range(4)], cloud.quats.T)


def test_ply_round_trip(tmp_path: Path, cloud: Cloud) -> None:
    (tmp_path / "a.ply").write_bytes(encode_ply(cloud))
    back = read_ply(tmp_path / "a.ply")
    assert (back.time, back.picture) == (1.25, PICTURE) and read_time(tmp_path / "a.ply") == 1.25
    for name in ("means", "scales", "quats", "rgb", "opacity"):
        np.testing.assert_allclose(getattr(back, name), getattr(cloud, name), rtol=1e-5, atol=2e-6)


def test_ply_with_numbers_of_numpy(tmp_path: Path, cloud: Cloud) -> None:
    """Time stamps that a program computed: NumPy prints its own numbers in another way."""
    picture = Picture(32, 16, np.float64(1.5))
    (tmp_path / "a.ply").write_bytes(encode_ply(replace(cloud, time=np.float64(0.25), picture=picture)))
    back = read_ply(tmp_path / "a.ply")
    assert back.time == 0.25 and back.picture == Picture(32, 16, 1.5)


def test_ply_of_others(tmp_path: Path, cloud: Cloud) -> None:
    """Other fields, other order, other types, no comments, \\r\\n: read by name."""
    fields = independent_ply(encode_ply(cloud))
    names = ["nx", *reversed(fields), "f_rest_0", "mark"]
    layout = np.dtype([(n, "<f8" if n == "x" else "u1" if n == "mark" else "<f4") for n in names])
    rows = np.zeros(cloud.count, layout)
    for name, values in fields.items():
        rows[name] = values
    kinds = {"x": "double", "mark": "uchar"}
    head = ["ply", "format binary_little_endian 1.0", f"element vertex {cloud.count}"]
    head += [f"property {kinds.get(n, 'float')} {n}" for n in names]
    data = "\r\n".join([*head, "element face 0", "property list uchar int v", "end_header\r\n"]).encode()
    (tmp_path / "a.ply").write_bytes(data + rows.tobytes())
    back = read_ply(tmp_path / "a.ply")
    assert (back.time, back.picture) == (None, None)
    np.testing.assert_allclose(back.scales, cloud.scales, rtol=1e-5)


def test_splat_as_others_read_it(cloud: Cloud) -> None:
    rows = list(struct.iter_unpack("<6f8B", encode_splat(cloud)))
    assert len(rows) == cloud.count
    order = np.argsort(-cloud.scales.astype(float).prod(1) * cloud.opacity, kind="stable")
    for row, i in zip(rows, order, strict=True):
        assert np.array_equal(np.float32(row[:3]), cloud.means[i])
        assert np.array_equal(np.float32(row[3:6]), cloud.scales[i])
        assert np.abs(np.array(row[6:9]) / 255 - cloud.rgb[i]).max() <= 0.5 / 255 + 1e-6
        assert abs(row[9] / 255 - cloud.opacity[i]) <= 0.5 / 255 + 1e-6
        assert row[10:] == (255, 128, 128, 128)


def test_splat_round_trip(tmp_path: Path, cloud: Cloud) -> None:
    (tmp_path / "a.splat").write_bytes(encode_splat(cloud))
    back = read_splat(tmp_path / "a.splat")
    order = np.argsort(-cloud.scales.astype(float).prod(1) * cloud.opacity, kind="stable")
    np.testing.assert_array_equal(back.means, cloud.means[order])
    np.testing.assert_allclose(back.rgb, cloud.rgb[order], atol=0.51 / 255)
    assert back.to_splats().count == cloud.count
    (tmp_path / "b.splat").write_bytes(encode_splat(back))
    rows = [
        sorted(struct.iter_unpack("32s", (tmp_path / name).read_bytes())) for name in ("a.splat", "b.splat")
    ]
    assert rows[0] == rows[1], "the second time nothing is lost"


@pytest.mark.parametrize("encode", [encode_depth_png, encode_depth_exr])
def test_depth_round_trip(tmp_path: Path, encode: Callable) -> None:
    depth = np.random.default_rng(1).uniform(0.1, 5, (18, 34)).astype(np.float32)
    depth[:4] = 0
    path = tmp_path / ("a.exr" if encode is encode_depth_exr else "a.png")
    path.write_bytes(encode(depth))
    back = read_depth(path)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, depth, atol=0 if encode is encode_depth_exr else 0.5001e-4)


def test_depth_png_as_others_read_it(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    depth = np.array([[0, 0.1, 1], [2.5, 6.5535, 7]], np.float32)
    (tmp_path / "a.png").write_bytes(encode_depth_png(depth))
    with image.open(tmp_path / "a.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), [[0, 1000, 10000], [25000, 65535, 65535]])


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda data: b"",
    "no PLY": lambda data: b"solid cube\n" * 40,
    "no end of the header": lambda data: data[:100],
    "endless header": lambda data: data.replace(b"end_header", b"comment " + b"x" * 70_000 + b"\nend_header"),
    "cut short": lambda data: data[:-1],
    "absurd count": lambda data: data.replace(b"vertex 200", b"vertex 99999999999999999999"),
    "a large count": lambda data: data.replace(b"vertex 200", b"vertex 19000000"),
    "no count": lambda data: data.replace(b"vertex 200", b"vertex -5"),
    "text": lambda data: data.replace(b"binary_little_endian", b"ascii"),
    "big endian": lambda data: data.replace(b"little", b"big"),
    "a field is missing": lambda data: data.replace(b"float opacity", b"float opaqueness"),
    "a field twice": lambda data: data.replace(b"float y\n", b"float x\n"),
    "a list": lambda data: data.replace(b"property float x", b"property list uchar int x"),
    "unknown type": lambda data: data.replace(b"property float x", b"property quad x"),
    "NaN": lambda data: data[:-8] + struct.pack("<ff", np.nan, 0),
    "endless scale": lambda data: data[:-28] + struct.pack("<f", 1e9) + data[-24:],
    "no rotation": lambda data: data[:-16] + bytes(16),
    "time": lambda data: data.replace(b"time 1.25", b"time now!"),
    "picture": lambda data: data.replace(b"picture 64 36 2.0", b"picture 64 36 nan"),
    "huge picture": lambda data: data.replace(b"picture 64 36 2.0", b"picture 64 9999999 1"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_ply(tmp_path: Path, cloud: Cloud, damage: Callable[[bytes], bytes]) -> None:
    data = encode_ply(cloud)
    assert damage(data) != data
    (tmp_path / "a.ply").write_bytes(damage(data))
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "a.ply"))):
        read_ply(tmp_path / "a.ply")


@pytest.mark.parametrize("data", [b"", bytes(31), struct.pack("<6f", np.nan, 0, 0, 1, 1, 1) + b"\xff" * 8])
def test_damaged_splat(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.splat").write_bytes(data)
    with pytest.raises(InputError):
        read_splat(tmp_path / "a.splat")


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def test_damaged_depth(tmp_path: Path) -> None:
    depth = np.full((4, 6), np.inf, np.float32)
    files = {
        "claims much.png": png_header(60000, 60000),
        "short.exr": encode_depth_exr(np.ones((8, 8), np.float32))[:200],
        "infinite.exr": encode_depth_exr(depth),
        "empty.png": b"",
        "words.png": b"Dear diary",
        "depth.jpg": b"",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=name):
            read_depth(tmp_path / name)
    from streamsplat_edge.runtime.video import encode_png

    (tmp_path / "photo.png").write_bytes(encode_png(np.zeros((4, 4, 3), np.uint8)))
    with pytest.raises(InputError, match="rgb24"):
        read_depth(tmp_path / "photo.png")


def test_rotated_gaussians_are_not_ours(cloud: Cloud) -> None:
    turned = replace(cloud, quats=np.tile(np.float32([0.7, 0.7, 0, 0]), (cloud.count, 1)))
    with pytest.raises(InputError, match="rotated"):
        turned.to_splats()
    splats = made_up_splats(4)
    splats.quats = np.ones((7, 4), np.float32)
    with pytest.raises(InputError, match="Rotated"):
        Cloud.from_splats(splats, PICTURE)


def test_nothing_visible_is_a_file_as_well(tmp_path: Path) -> None:
    empty = Cloud.from_splats(Splats.allocate(0), PICTURE)
    (tmp_path / "a.ply").write_bytes(encode_ply(empty))
    back = read_ply(tmp_path / "a.ply")
    assert back.count == 0 and back.to_splats().count == 0
    assert encode_splat(empty) == b""


def test_the_exr_encoder_is_there() -> None:
    assert "exr" in av.codecs_available
