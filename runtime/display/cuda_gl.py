"""A buffer of OpenGL that CUDA writes: the calls of the driver, by ctypes.

The driver library is the one that CuPy has loaded, and its current context is CuPy's (the device's primary
one), so that what CUDA writes here is in order with everything else in CuPy's stream. The calls have been in
every driver since CUDA 4; no package takes part:

- PyCUDA (2026.1) is on PyPI as source only, and its `pycuda.gl` raises ImportError unless it was compiled by
  hand with CUDA_ENABLE_GL, which is off (setup.py; inducer/pycuda#470). A compiler, CUDA's headers and those
  of OpenGL would be needed on every machine.
- `cuda-bindings` has the calls, in a release line for each major version of CUDA: one more package whose
  version has to fit the driver and CuPy. `cuda.core`'s GraphicsResource brings it along.
- CuPy does not wrap them (cupy/cupy#5711).

Not run on a GPU yet.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..cuda.cupy_device import LOST
from ..errors import DeviceLostError, EngineError, InputError

_WRITE_DISCARD = 2  # CU_GRAPHICS_REGISTER_FLAGS_WRITE_DISCARD: CUDA writes all of it and reads nothing
_ALL_DEVICES = 1  # CU_GL_DEVICE_LIST_ALL: also those that draw only some frames (SLI)
_NO_DEVICE, _INVALID_GRAPHICS_CONTEXT, _NOT_SUPPORTED = 100, 219, 801
_MOST_DEVICES = 64

_OFFLOAD = (
    "Let the NVIDIA GPU draw the window: on X11 put __NV_PRIME_RENDER_OFFLOAD=1 "
    "__GLX_VENDOR_LIBRARY_NAME=nvidia before the command, on Wayland __EGL_VENDOR_LIBRARY_FILENAMES="
    "/usr/share/glvnd/egl_vendor.d/10_nvidia.json. With several NVIDIA GPUs choose the screen's by "
    "CUDA_VISIBLE_DEVICES. Over ssh or VNC there is none: use --view."
)


@dataclass(frozen=True)
class Mapped:
    """Device memory of a mapped buffer, as other libraries take it over (`Device.adopt`).

    Attributes:
        address: of the first byte. shape: uint8.
    """

    address: int
    shape: tuple[int, ...]

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        # Without "stream": mapping puts the buffer into CuPy's stream already.
        return {"version": 3, "shape": self.shape, "typestr": "|u1", "data": (self.address, False)}


class GlDriver:
    """The calls, for the CUDA context and the OpenGL context that are current in this thread.

    Args:
        library: stands in for libcuda in tests.

    Raises:
        EngineError: there is no NVIDIA driver.
    """

    def __init__(self, library: Any = None) -> None:
        try:
            self._cuda: Any = ctypes.CDLL("libcuda.so.1") if library is None else library
        except OSError as error:
            raise EngineError(f"There is no NVIDIA driver here: {error}.", "Use --device cpu.") from error

    def check_device(self, index: int, renderer: str) -> None:
        """Refuse a window that another GPU draws than CUDA's.

        Args:
            index: of the CUDA device. renderer: who draws the window, as OpenGL says.

        Raises:
            InputError: another one does.
        """
        count, ours = ctypes.c_uint(), ctypes.c_int(-1)
        found = (ctypes.c_int * _MOST_DEVICES)()
        status = self._cuda.cuGLGetDevices_v2(
            ctypes.byref(count), found, ctypes.c_uint(_MOST_DEVICES), ctypes.c_int(_ALL_DEVICES)
        )
        if status == _NOT_SUPPORTED:  # registering will tell
            return
        if status:
            raise self._strangers(index, renderer, status)
        self._cuda.cuDeviceGet(ctypes.byref(ours), ctypes.c_int(index))
        if ours.value not in found[: count.value]:
            raise self._strangers(index, renderer, None)

    def register(self, buffer: int, index: int, renderer: str) -> ctypes.c_void_p:
        """Make a buffer of OpenGL known to CUDA, once; returns a handle.

        Args:
            buffer: its name in OpenGL. The others as in `check_device`, for the message.

        Raises:
            InputError: CUDA cannot share it.
        """
        handle = ctypes.c_void_p()
        status = self._cuda.cuGraphicsGLRegisterBuffer(
            ctypes.byref(handle), ctypes.c_uint(buffer), ctypes.c_uint(_WRITE_DISCARD)
        )
        if status:
            raise self._strangers(index, renderer, status)
        return handle

    @contextmanager
    def mapped(self, handle: ctypes.c_void_p, queue: int) -> Iterator[tuple[int, int]]:
        """The buffer's address and bytes on the device, for work in a stream between entering and leaving.

        Nothing waits: what OpenGL was told before comes before that work, and what it is told afterwards
        comes after it.

        Args:
            handle: see `register`. queue: the stream.

        Raises:
            EngineError: the driver refused. DeviceLostError: the device is lost.
        """
        stream, address, size = ctypes.c_void_p(queue), ctypes.c_uint64(), ctypes.c_size_t()
        self._call("cuGraphicsMapResources", ctypes.c_uint(1), ctypes.byref(handle), stream)
        try:
            self._call(
                "cuGraphicsResourceGetMappedPointer_v2", ctypes.byref(address), ctypes.byref(size), handle
            )
            yield address.value, size.value
        except BaseException:
            # The first error is the one to tell.
            self._cuda.cuGraphicsUnmapResources(ctypes.c_uint(1), ctypes.byref(handle), stream)
            raise
        self._call("cuGraphicsUnmapResources", ctypes.c_uint(1), ctypes.byref(handle), stream)

    def unregister(self, handle: ctypes.c_void_p) -> None:
        """Forget a buffer. A refusal is of no interest: after a loss of the device all is refused."""
        self._cuda.cuGraphicsUnregisterResource(handle)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._cuda, name)(*arguments)
        if status in LOST:
            raise DeviceLostError(
                f"The GPU was lost while its window was drawn: {LOST[status]} ({name}: {status}).",
                "Start the program again; if it comes back, look at `dmesg` for an Xid message.",
            )
        if status:
            raise EngineError(f"{name} failed: CUDA error {status}.", "See `streamsplat-edge doctor`.")

    def _strangers(self, index: int, renderer: str, status: int | None) -> InputError:
        why = "another GPU"
        if status is not None:
            known = {_NO_DEVICE: "no CUDA device", _INVALID_GRAPHICS_CONTEXT: "not by the NVIDIA driver"}
            why = f"{known.get(status, 'not shared')}, CUDA error {status}"
        return InputError(
            f"The window is drawn by {renderer}, whose buffers CUDA device {index} cannot write ({why}).",
            _OFFLOAD,
        )
