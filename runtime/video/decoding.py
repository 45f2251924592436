"""Where pictures are decoded: by libav on the CPU, or on an NVIDIA GPU (NVDEC) through libav's acceleration.

What was asked for is what decodes, or an error says why not. A GPU's pictures (NV12, or P010 where they have
more than 8 bits) stay there (`surface`), or are copied to the host, converted and resized like all others.
"""

from __future__ import annotations

import importlib
from typing import Any

import av
import av.error

from ..cuda.driver import cuda_device
from ..errors import InputError, VideoError

DECODERS = ("software", "cuda")

SOFTWARE_HINT = "Leave --decode out to decode on the CPU."


def acceleration(decode: str, *, surfaces: bool = False) -> Any:
    """What `av.open` takes as `hwaccel`; None for `software`.

    Args:
        decode: one of `DECODERS`. surfaces: the pictures stay on the GPU.

    Raises:
        InputError: it is another word.
        VideoError: this PyAV, its libav or this machine cannot decode on a GPU.
    """
    if decode not in DECODERS:
        raise InputError(f"There is no decoder {decode!r}.", f"Use one of {', '.join(DECODERS)}.")
    if decode == "software":
        return None
    try:
        module: Any = importlib.import_module("av.codec.hwaccel")
        kinds = module.hwdevices_available()
    except (ImportError, AttributeError) as error:
        raise VideoError(
            f"This PyAV cannot decode on a GPU: {error}.", f"pip install 'av>=17'. {SOFTWARE_HINT}"
        ) from error
    if decode not in kinds:
        raise VideoError(
            f"The libav of this PyAV was built without CUDA (it has {', '.join(kinds) or 'nothing'}).",
            f"PyAV's own wheels have it: pip install --force-reinstall av. {SOFTWARE_HINT}",
        )
    if cuda_device() is None:
        raise VideoError(
            "There is no CUDA device here to decode on.", f"`nvidia-smi` must work. {SOFTWARE_HINT}"
        )
    if surfaces and not _keeps_surfaces():
        raise VideoError(
            f"PyAV {av.__version__} cannot leave pictures on the GPU that decodes them.",
            f"pip install 'av>=18' (Python 3.11 or later). {SOFTWARE_HINT}",
        )
    kept = {"is_hw_owned": True} if surfaces else {}
    accelerator = module.HWAccel(device_type=decode, allow_software_fallback=False, **kept)
    try:  # with any codec: what fails later is then the input's
        accelerator.create(importlib.import_module("av.codec").Codec("h264", "r"))
    except (av.error.FFmpegError, NotImplementedError) as error:  # no device; no decoder of this kind
        early = "Where pictures stay on the GPU, open the video before anything else here uses the GPU. "
        raise VideoError(
            f"libav cannot use the GPU for decoding: {error}.",
            f"{early if surfaces else ''}The driver's libnvcuvid may be missing (in containers: "
            f"NVIDIA_DRIVER_CAPABILITIES=video). {SOFTWARE_HINT}",
        ) from error
    return accelerator


def _keeps_surfaces() -> bool:
    """`is_hw_owned` and DLPack came with PyAV 17, the format of what is kept with 18."""
    return hasattr(av.VideoFrame, "sw_format")


def check_accelerated(uri: str, stream: Any) -> None:
    """Raise `VideoError` unless a video stream that was opened with an accelerator is decoded by it."""
    context = stream.codec_context
    if context is None or not context.is_hwaccel:
        raise undecodable(uri, "unknown" if context is None else context.name)


def undecodable(uri: str, codec: str) -> VideoError:
    """The error for a codec that the GPU does not decode."""
    return VideoError(
        f"{uri}: the GPU does not decode its codec ({codec}).",
        f"NVDEC takes H.264, HEVC, AV1, VP9 and some older ones, depending on the GPU. {SOFTWARE_HINT}",
    )
