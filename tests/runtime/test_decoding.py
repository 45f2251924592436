"""Decoding on a GPU: what is refused and in which words, and that what was asked for reaches PyAV."""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from fake_bundle import build_fake_bundle
from video_samples import sample_clip
from yuv_samples import BT601, BT709, samples, yuv_frame

from streamsplat_edge import cli, source_options
from streamsplat_edge.runtime.cuda.driver import DeviceInfo, cuda_device
from streamsplat_edge.runtime.errors import InputError, VideoError
from streamsplat_edge.runtime.sources import opening, uri
from streamsplat_edge.runtime.video import decoding, open_video
from streamsplat_edge.runtime.video.frames import Converter, to_rgb

OPEN = av.open
GPU = DeviceInfo("Test GPU", "8.6", 1 << 30)


class Accelerator:
    """PyAV's `HWAccel` where a GPU works."""

    problem: Exception | None = None

    def __init__(self, device_type: str, allow_software_fallback: bool, is_hw_owned: bool = False) -> None:
        assert (device_type, allow_software_fallback) == ("cuda", False)
        self.is_hw_owned = is_hw_owned

    def create(self, codec: Any) -> None:
        assert codec.name == "h264" and codec.is_decoder
        if self.problem is not None:
            raise self.problem


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """PyAV and a machine that can decode on a GPU, as far as `acceleration` asks."""
    module = SimpleNamespace(hwdevices_available=lambda: ["vaapi", "cuda"], HWAccel=Accelerator)
    monkeypatch.setitem(sys.modules, "av.codec.hwaccel", module)  # type: ignore[arg-type]
    monkeypatch.setattr(decoding, "cuda_device", lambda: GPU)
    monkeypatch.setattr(Accelerator, "problem", None)
    return module


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return sample_clip(tmp_path / "clip.mp4", 5)


def opened_with(
    monkeypatch: pytest.MonkeyPatch, *, accelerates: bool, there: Callable[[Any], Any] = lambda frame: frame
) -> list[Any]:
    """`av.open` that notes its accelerators, and decodes on the CPU in the GPU's place. `there`: what becomes
    of a frame."""
    seen: list[Any] = []

    def open_(file: Any, *, hwaccel: Any, **options: Any) -> Any:
        seen.append(hwaccel)
        container = OPEN(file, **options)
        (stream,) = container.streams.video
        if hwaccel is None:
            return container
        codec = stream.codec_context
        context = _Seen(
            codec, is_hwaccel=accelerates, decode=lambda packet: [there(f) for f in codec.decode(packet)]
        )
        video = [_Seen(stream, codec_context=context)]

        def demux(_: Any) -> Any:
            return container.demux(stream)

        return _Seen(container, streams=SimpleNamespace(video=video), demux=demux)

    monkeypatch.setattr(av, "open", open_)
    return seen


class _Seen:
    """An object with some attributes replaced; what is set goes to the object."""

    def __init__(self, inner: Any, **replaced: Any) -> None:
        self.__dict__.update(inner=inner, **replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.inner, name, value)


def test_software_asks_for_nothing() -> None:
    assert decoding.acceleration("software") is None
    with pytest.raises(InputError, match=r"no decoder 'nvdec'.*software, cuda"):
        decoding.acceleration("nvdec")


@pytest.mark.skipif(cuda_device() is not None, reason="there is a GPU")
def test_without_a_gpu_the_run_is_refused(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = build_fake_bundle(tmp_path / "fake.bundle")
    for inputs in ([clip], [clip, clip]):
        assert cli.main(["run", *map(str, inputs), "--bundle", str(bundle.path), "--decode", "cuda"]) == 2
    said = capsys.readouterr().err
    assert "There is no CUDA device here to decode on." in said or "built without CUDA" in said
    assert "Leave --decode out to decode on the CPU." in said


def test_what_is_missing_is_named(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(decoding.acceleration("cuda"), Accelerator)
    monkeypatch.setattr(Accelerator, "problem", NotImplementedError("No supported hardware config"))
    with pytest.raises(VideoError, match=r"cannot use the GPU for decoding: No supported.*libnvcuvid"):
        decoding.acceleration("cuda")
    monkeypatch.setattr(decoding, "cuda_device", lambda: None)
    with pytest.raises(VideoError, match=r"no CUDA device here to decode on.*nvidia-smi"):
        decoding.acceleration("cuda")
    gpu.hwdevices_available = lambda: ["vaapi", "drm"]
    with pytest.raises(VideoError, match=r"built without CUDA \(it has vaapi, drm\).*wheels"):
        decoding.acceleration("cuda")
    monkeypatch.setitem(sys.modules, "av.codec.hwaccel", None)
    with pytest.raises(VideoError, match=r"This PyAV cannot decode on a GPU.*av>=17"):
        decoding.acceleration("cuda")


def test_pictures_stay_on_the_gpu_where_this_pyav_can(
    gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not decoding.acceleration("cuda").is_hw_owned
    monkeypatch.setattr(av, "VideoFrame", SimpleNamespace(sw_format=None))  # whatever PyAV is here
    assert decoding.acceleration("cuda", surfaces=True).is_hw_owned
    monkeypatch.setattr(Accelerator, "problem", av.error.OSError(95, "Operation not supported"))
    with pytest.raises(VideoError, match=r"not supported.*open the video before anything else"):
        decoding.acceleration("cuda", surfaces=True)

    monkeypatch.setattr(av, "VideoFrame", SimpleNamespace(planes=()))
    with pytest.raises(VideoError, match=r"PyAV .* cannot leave pictures on the GPU.*av>=18"):
        decoding.acceleration("cuda", surfaces=True)


def test_the_pyav_here_keeps_what_a_gpu_decodes() -> None:
    """What `surface` needs of it, without a GPU."""
    hwaccel = importlib.import_module("av.codec.hwaccel")
    if not hasattr(av.VideoFrame, "sw_format"):
        pytest.skip("PyAV 18 is the first that can")
    assert hwaccel.HWAccel(device_type="cuda", allow_software_fallback=False, is_hw_owned=True).is_hw_owned
    frame = yuv_frame("nv12", *samples(50, 70))
    assert frame.sw_format is None and frame.planes[1].__dlpack_device__() == (1, 0)
    assert np.from_dlpack(frame.planes[1]).shape == (25, 35, 2)  # type: ignore[arg-type]


def test_sources_that_a_gpu_does_not_decode(gpu: SimpleNamespace, tmp_path: Path) -> None:
    for source in (str(tmp_path), "camera:0", "gst:videotestsrc"):
        with pytest.raises(InputError, match="only files and network streams are decoded on a GPU"):
            open_video(source, decode="cuda")


def test_a_file_is_opened_with_the_accelerator(
    gpu: SimpleNamespace, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_video(clip) as reader:
        expected = [frame.timestamp for frame in reader]
    seen = opened_with(monkeypatch, accelerates=True)
    with open_video(clip, decode="cuda", threads=4) as reader:
        assert isinstance(seen[0], Accelerator)
        assert [frame.timestamp for frame in reader] == expected
        assert reader._stream.codec_context.thread_count == 1  # type: ignore[attr-defined]


def test_a_codec_that_the_gpu_does_not_know_is_no_reason_for_the_cpu(
    gpu: SimpleNamespace, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened_with(monkeypatch, accelerates=False)
    with pytest.raises(
        VideoError, match=r"clip\.mp4: the GPU does not decode its codec \(h264\).*NVDEC takes"
    ):
        open_video(clip, decode="cuda")

    def incompatible(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no stream is compatible")

    monkeypatch.setattr(av, "open", incompatible)
    with pytest.raises(VideoError, match=r"does not decode its codec \(no stream is compatible\)"):
        open_video(clip, decode="cuda")


def test_network_streams_too(gpu: SimpleNamespace, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = uri.SourceUri("network", str(clip), "rtsp://camera/1")
    options: dict[str, Any] = {"connect": 5.0, "silence": 5.0, "options": {}, "stopped": lambda: False}
    seen = opened_with(monkeypatch, accelerates=True)
    accelerator = decoding.acceleration("cuda")
    opening.open_live(source, **options, accelerator=accelerator).container.close()
    assert seen == [accelerator]
    opened_with(monkeypatch, accelerates=False)
    with pytest.raises(VideoError, match=r"rtsp://camera/1: the GPU does not decode its codec"):
        opening.open_live(source, **options, accelerator=accelerator)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("space", [BT601, BT709])
@pytest.mark.parametrize("size", [(48, 64), (50, 70)])
def test_interleaved_chroma_changes_nothing(size: tuple[int, int], space: int, full: bool) -> None:
    """NV12 and P010 are what a GPU decodes to. Noise has edges of colour everywhere."""
    for ours, theirs in (("nv12", "yuv420p"), ("p010le", "yuv420p10le")):
        found, expected = (
            to_rgb(yuv_frame(name, *samples(*size), space=space, full=full)) for name in (ours, theirs)
        )
        np.testing.assert_array_equal(found, expected)


def test_a_kept_converter_remembers_no_frame() -> None:
    """Sizes, formats, matrices and ranges change from frame to frame, as when a camera comes back."""
    converter = Converter()
    for seed, name in enumerate(["nv12", "yuv420p", "nv12", "p010le", "nv12"]):
        size = [(48, 64), (50, 70)][seed % 2]
        for space, full in ((BT601, False), (BT709, True), (BT601, True)):
            frame = yuv_frame(name, *samples(*size, seed=seed), space=space, full=full)
            np.testing.assert_array_equal(to_rgb(frame, converter), to_rgb(frame))


@pytest.mark.gpu
def test_pictures_of_a_gpu_are_those_of_the_cpu(clip: Path) -> None:
    try:
        ctypes.CDLL("libnvcuvid.so.1")
    except OSError as error:
        pytest.skip(f"the driver's video library is not here: {error}")
    with open_video(clip) as software, open_video(clip, decode="cuda") as accelerated:
        for a, b in zip(software, accelerated, strict=True):
            assert (a.timestamp, a.index) == (b.timestamp, b.index)
            np.testing.assert_array_equal(a.image, b.image)


def test_the_option_is_what_the_runtime_knows() -> None:
    assert source_options.DECODERS == decoding.DECODERS
