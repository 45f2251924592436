"""A surface without a screen (EGL), and CUDA's side of a shared buffer played by OpenGL's own mapping."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

moderngl = pytest.importorskip("moderngl", reason="pip install 'streamsplat-edge[display]'")

NO_EGL = "no OpenGL without a screen (Debian: apt install libegl1 libgl1-mesa-dri)"
_COPY_WRITE, _WRITE_ONLY = 0x8F37, 0x88B9  # GL_COPY_WRITE_BUFFER, GL_WRITE_ONLY


def egl_context(**settings: Any) -> Any:
    """A context of OpenGL 3.3 without a screen; the test is skipped where there is none."""
    try:
        return moderngl.create_context(330, standalone=True, backend="egl", **settings)
    except Exception as error:  # moderngl raises plain Exception
        pytest.skip(f"{NO_EGL}: {error}")


class EglSurface:
    """See `runtime.display.window.Canvas`; keeps what was presented, uint8 [H, W, 3], first row on top."""

    def __init__(self, width: int, height: int, *, close_after: int = 1 << 30) -> None:
        self.context = egl_context()
        self.presented: list[np.ndarray] = []
        self.now = 0.0
        self.closed, self.redraw, self.polls, self.is_open = False, False, 0, True
        self._close_after = close_after
        self.resize(width, height)

    def resize(self, width: int, height: int) -> None:
        self.size = width, height
        if width and height:
            self.target = self.context.framebuffer([self.context.texture((width, height), 4)])
            self.target.clear(1.0, 0.0, 1.0, 1.0)  # what nobody draws over is seen
        self.redraw = True

    def poll(self, seconds: float = 0.0) -> bool:
        """Time goes by at once."""
        self.polls += 1
        self.now += seconds
        redraw, self.redraw = self.redraw, False
        return redraw

    def read(self) -> np.ndarray:
        width, height = self.size
        data = self.target.read(components=3, alignment=1)
        return np.frombuffer(data, np.uint8).reshape(height, width, 3)[::-1].copy()

    def present(self) -> None:
        self.presented.append(self.read())
        self.closed = len(self.presented) >= self._close_after

    def close(self) -> None:
        self.is_open = False
        self.context.release()


class MappingDriver:
    """The functions of libcuda that `GlDriver` calls, for one device whose memory is the host's.

    Mapping is OpenGL's own, so that a buffer that is drawn from while it is mapped, or mapped twice, is an
    error of OpenGL.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.registered: dict[int, int] = {}  # handle -> name in OpenGL
        egl = ctypes.CDLL("libEGL.so.1")
        egl.eglGetProcAddress.restype = ctypes.c_void_p
        egl.eglGetProcAddress.argtypes = [ctypes.c_char_p]

        def function(name: bytes, result: Any, *arguments: Any) -> Any:
            return ctypes.CFUNCTYPE(result, *arguments)(egl.eglGetProcAddress(name))

        self._bind = function(b"glBindBuffer", None, ctypes.c_uint, ctypes.c_uint)
        self._map = function(b"glMapBuffer", ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        self._unmap = function(b"glUnmapBuffer", ctypes.c_ubyte, ctypes.c_uint)
        self._is_buffer = function(b"glIsBuffer", ctypes.c_ubyte, ctypes.c_uint)
        self._size = function(
            b"glGetBufferParameteriv", None, ctypes.c_uint, ctypes.c_uint, ctypes.POINTER(ctypes.c_int)
        )
        self._error = function(b"glGetError", ctypes.c_uint)

    def cuGLGetDevices_v2(self, count: Any, devices: Any, room: Any, kind: Any) -> int:
        count._obj.value, devices[0] = 1, 5
        return 0

    def cuDeviceGet(self, device: Any, index: Any) -> int:
        device._obj.value = 5 + index.value
        return 0

    def cuGraphicsGLRegisterBuffer(self, handle: Any, buffer: Any, flags: Any) -> int:
        self.calls.append("register")
        assert self._is_buffer(buffer.value)
        handle._obj.value = 1000 + buffer.value
        self.registered[1000 + buffer.value] = buffer.value
        return 0

    def cuGraphicsMapResources(self, count: Any, handles: Any, stream: Any) -> int:
        self.calls.append("map")
        assert count.value == 1
        self._bind(_COPY_WRITE, self.registered[handles._obj.value])
        self._address = self._map(_COPY_WRITE, _WRITE_ONLY)
        return 0 if self._address else 206  # already mapped

    def cuGraphicsResourceGetMappedPointer_v2(self, address: Any, size: Any, handle: Any) -> int:
        found = ctypes.c_int()
        self._size(_COPY_WRITE, 0x8764, ctypes.byref(found))  # GL_BUFFER_SIZE
        address._obj.value, size._obj.value = self._address, found.value
        return 0

    def cuGraphicsUnmapResources(self, count: Any, handles: Any, stream: Any) -> int:
        self.calls.append("unmap")
        self._bind(_COPY_WRITE, self.registered[handles._obj.value])
        return 0 if self._unmap(_COPY_WRITE) and self._error() == 0 else 207  # not mapped

    def cuGraphicsUnregisterResource(self, handle: Any) -> int:
        self.calls.append("unregister")
        assert self._is_buffer(self.registered.pop(handle.value)), "OpenGL has given the buffer back already"
        return 0


def host_array(address: int, shape: tuple[int, ...]) -> np.ndarray:
    """Memory of the host at an address."""
    count = int(np.prod(shape))
    return np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(address)).reshape(shape)
