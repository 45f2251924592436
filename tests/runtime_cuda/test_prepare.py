"""Pictures resized on the device, against swscale on the host: sizes, colours, turns, samples for cuts."""

from __future__ import annotations

import platform

import av
import numpy as np
import pytest
from kernel_rasterizer import fetch, to_device
from on_cpu_device import OnCpuDevice
from surface_samples import TURNS, surface
from yuv_samples import BT601, BT709, samples, yuv_frame

from streamsplat_edge.runtime.cuda.device import Device
from streamsplat_edge.runtime.cuda.prepare import (
    DevicePicture,
    Fetcher,
    Preparer,
    rgb_picture,
    surface_picture,
)
from streamsplat_edge.runtime.errors import VideoError
from streamsplat_edge.runtime.preprocess import Resizer
from streamsplat_edge.runtime.scene_cut import COLS, ROWS, SceneCutDetector
from streamsplat_edge.runtime.video.frames import to_rgb
from streamsplat_edge.runtime.video.surface import Surface

X86 = platform.machine() in ("x86_64", "AMD64")  # libav's integers of other machines are others
SPACES = {"BT.601": BT601, "BT.709": BT709, "BT.2020": 9, "SMPTE 240M": 7, "FCC": 4}
TARGET = (36, 64)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), np.uint8)


def waves(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    planes = np.sin(x / 7 + y / 11), np.sin(x / 17 - y / 5), np.cos(x / 9 + y / 40)
    return np.stack([127 + 120 * plane for plane in planes], -1).astype(np.uint8)


def uploaded(device: Device, image: np.ndarray) -> DevicePicture:
    return rgb_picture(device, to_device(device, image), (image.shape[0], image.shape[1]))


def prepared(device: Device, picture: DevicePicture, target: tuple[int, int] = TARGET) -> np.ndarray:
    """Levels, float [3, h, w]."""
    out = device.zeros((1, 3, *target), np.float32)
    Preparer(device, target).enqueue(picture, out)
    return fetch(device, out)[0] * np.float32(255)


def on_host(image: np.ndarray, target: tuple[int, int] = TARGET) -> np.ndarray:
    out = np.zeros((3, *target), np.float32)
    Resizer(*target).into(image, out)
    return out * np.float32(255)


def check(found: np.ndarray, expected: np.ndarray, *, most: float = 1, mean: float = 0.05) -> None:
    np.testing.assert_allclose(found, np.rint(found), atol=1e-4)
    difference = np.abs(found - expected)
    assert difference.max() <= most + 1e-3 and difference.mean() <= mean, (
        difference.max(),
        difference.mean(),
    )


SHRINKING = [(36, 64), (37, 64), (73, 131), (36, 200), (144, 65), (110, 241), (288, 516)]
GROWING = [(20, 40), (35, 63), (1, 1), (4, 100), (9, 333), (90, 40), (333, 63)]


@pytest.mark.parametrize("make", [noise, waves])
@pytest.mark.parametrize("size", SHRINKING + GROWING)
def test_resizes_as_swscale(any_device: Device, size: tuple[int, int], make) -> None:
    image = make(*size)
    check(prepared(any_device, uploaded(any_device, image)), on_host(image))


def test_halves_are_rounded_another_way(any_device: Device) -> None:
    """Sums of four pixels end in a half or a quarter: ties, which swscale's fixed point breaks."""
    image = noise(72, 128)
    check(prepared(any_device, uploaded(any_device, image)), on_host(image), mean=0.15)


def test_the_same_size_is_exact(any_device: Device) -> None:
    image = noise(*TARGET)
    np.testing.assert_array_equal(
        np.rint(prepared(any_device, uploaded(any_device, image))), image.transpose(2, 0, 1)
    )


def test_where_one_side_shrinks_a_little_swscale_differs_at_the_first_row(any_device: Device) -> None:
    image = noise(50, 40)
    found, expected = prepared(any_device, uploaded(any_device, image)), on_host(image)
    check(found[:, 1:], expected[:, 1:])
    check(found, expected, most=12, mean=0.1)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("space", SPACES.values(), ids=list(SPACES))
@pytest.mark.parametrize("size", [(50, 70), (48, 63)])
def test_nv12_has_the_colours_of_libav(
    any_device: Device, size: tuple[int, int], space: int, full: bool
) -> None:
    frame = yuv_frame("nv12", *samples(*size), space=space, full=full)
    found = prepared(any_device, surface_picture(any_device, surface(any_device, frame)), size)
    expected = to_rgb(frame).transpose(2, 0, 1)
    if X86 and SPACES["FCC"] != space:
        np.testing.assert_array_equal(np.rint(found), expected)
    check(found, expected, most=1 if X86 else 3, mean=1.5)


SMOOTH = [("p010le", (48, 70)), ("p010le", (49, 63)), ("nv12", (49, 63))]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("space", [BT601, BT709])
@pytest.mark.parametrize(("name", "size"), SMOOTH)
def test_other_formats_are_near_libav_and_nearer_the_truth(
    any_device: Device, name: str, size: tuple[int, int], space: int, full: bool
) -> None:
    luma, chroma = samples(*size)
    luma, chroma = luma // 2 + 60, chroma // 4 + 96  # libav's tables clip elsewhere
    frame = yuv_frame(name, luma, chroma, space=space, full=full)
    found = prepared(any_device, surface_picture(any_device, surface(any_device, frame)), size)
    check(found, to_rgb(frame).transpose(2, 0, 1), most=5, mean=2.1)
    check(found, exact(luma, chroma, space, full), most=0.51, mean=0.3)


def exact(luma: np.ndarray, chroma: np.ndarray, space: int, full: bool) -> np.ndarray:
    """In float64: chroma interpolated between rows, and along them where their length is odd."""
    red, blue = {BT601: (0.299, 0.114), BT709: (0.2126, 0.0722)}[space]
    green = 1 - red - blue
    height, width = luma.shape
    wide = between(chroma.astype(float), height, 0)
    wide = between(wide, width, 1) if width % 2 else wide[:, np.arange(width) // 2]
    u, v = np.moveaxis(wide - 128, -1, 0)
    y = luma.astype(float) if full else (luma - 16.0) * 255 / 219
    u, v = (u, v) if full else (u * 255 / 224, v * 255 / 224)
    r, b = y + 2 * (1 - red) * v, y + 2 * (1 - blue) * u
    return np.clip(np.stack([r, (y - red * r - blue * b) / green, b]), 0, 255)


def between(values: np.ndarray, length: int, axis: int) -> np.ndarray:
    """Linear interpolation to another length."""
    count = values.shape[axis]
    place = np.clip((np.arange(length) + 0.5) * count / length - 0.5, 0, count - 1)
    first = np.minimum(place.astype(int), count - 1)
    share = (place - first).reshape([-1 if i == axis else 1 for i in range(values.ndim)])
    second = np.minimum(first + 1, count - 1)
    return values.take(first, axis) * (1 - share) + values.take(second, axis) * share


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("name", ["nv12", "p010le"])
def test_turned_and_resized(any_device: Device, name: str, turn: tuple[int, int, int, int]) -> None:
    there = surface(any_device, yuv_frame(name, *samples(110, 182)), turn)
    found = prepared(any_device, surface_picture(any_device, there))
    image = there.download()
    assert there.size == image.shape[:2]
    loose = {} if name == "nv12" and X86 else {"most": 4, "mean": 2.1}
    check(found, on_host(image), **loose)


@pytest.mark.parametrize("size", [(110, 182), (36, 64), (20, 30)])
def test_what_is_looked_at_for_cuts(any_device: Device, size: tuple[int, int]) -> None:
    sampler = Fetcher(any_device, (ROWS, COLS), samples=True)
    for seed in range(2):
        there = surface(any_device, yuv_frame("nv12", *samples(*size, seed=seed)), TURNS[1])
        found = sampler(surface_picture(any_device, there))
        expected = SceneCutDetector()._sample(there.download())
        assert np.abs(found.astype(int) - expected).max() <= (0 if X86 else 3)


def test_tables_are_made_once_per_size(device: OnCpuDevice) -> None:
    preparer, out = Preparer(device, TARGET), device.zeros((3, *TARGET), np.float32)
    pictures = [uploaded(device, noise(*size)) for size in ((90, 70), (90, 70), (80, 70))]
    counts = []
    for picture in pictures:
        preparer.enqueue(picture, out)
        counts.append(device.allocations)
    assert counts[0] == counts[1] < counts[2]
    check(out * np.float32(255), on_host(noise(80, 70)))


def test_the_decoder_is_waited_for_on_the_device(device: OnCpuDevice) -> None:
    picture = surface_picture(device, surface(device, yuv_frame("nv12", *samples(48, 64))))
    assert device.followed == 1 and picture.kernel == "prepare_nv12"


def test_formats_that_are_not_read_on_a_gpu() -> None:
    with pytest.raises(VideoError, match=r"to yuv444p.*NV12 or P010.*Leave --decode out"):
        Surface(av.VideoFrame(64, 48, "yuv444p"))
