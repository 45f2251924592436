"""A window with OpenGL 3.3, through GLFW: X11 or Wayland. For the main thread alone, as GLFW asks."""

from __future__ import annotations

import ctypes
import warnings
from typing import Any, Protocol

from ..errors import InputError

try:
    import glfw
    import moderngl
except ImportError as error:
    raise InputError(
        f"The window needs glfw and moderngl, which cannot be imported ({error}).",
        "pip install 'streamsplat-edge[display]'",
    ) from error

_SHARE = 0.75  # of the screen's smaller side that a window takes at most when it opens


class Canvas(Protocol):
    """What a picture is drawn on; `Window` is the real one, tests draw without a screen.

    Attributes:
        context: `moderngl.Context`, current in this thread.
    """

    context: Any

    @property
    def target(self) -> Any:
        """The `moderngl.Framebuffer` to draw on."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of `target` now, in pixels."""
        ...

    @property
    def closed(self) -> bool:
        """Whether the user has closed it."""
        ...

    def poll(self, seconds: float = 0.0) -> bool:
        """Take what the user and the system did, waiting so long for it; True where to draw again."""
        ...

    def present(self) -> None:
        """Show what was drawn. Does not wait for the screen."""
        ...

    def close(self) -> None:
        """Gives everything back. Calling twice is harmless."""
        ...


class Window:
    """See `Canvas`. Esc, q and the window's own button close it.

    Args:
        title: of the window. width, height: of what it shows; small images are enlarged by a whole number.

    Raises:
        InputError: there is no screen, or no OpenGL 3.3 on it.
    """

    def __init__(self, title: str, width: int, height: int) -> None:
        self._handle: Any = None
        self._redraw = False
        with warnings.catch_warnings(record=True) as said:  # how the wrapper tells GLFW's errors
            warnings.simplefilter("always")
            if not glfw.init():
                raise InputError(
                    f"There is no screen to open a window on ({_words(said)}).",
                    "Run it in a desktop session, or set DISPLAY or WAYLAND_DISPLAY; elsewhere use --view.",
                )
            for hint, value in (
                (glfw.CONTEXT_VERSION_MAJOR, 3),
                (glfw.CONTEXT_VERSION_MINOR, 3),
                (glfw.OPENGL_PROFILE, glfw.OPENGL_CORE_PROFILE),
                (glfw.OPENGL_FORWARD_COMPAT, True),
                (glfw.DEPTH_BITS, 0),
                (glfw.STENCIL_BITS, 0),
            ):
                glfw.window_hint(hint, value)
            self._handle = glfw.create_window(*_opening_size(width, height), title, None, None)
            if not self._handle:
                glfw.terminate()
                raise InputError(
                    f"A window with OpenGL 3.3 cannot be opened ({_words(said)}).",
                    "Install the graphics driver (Debian: apt install libgl1-mesa-dri), or use --view.",
                )
        glfw.make_context_current(self._handle)
        glfw.swap_interval(0)  # the stream must not wait for the screen
        glfw.set_key_callback(self._handle, self._key)
        glfw.set_window_refresh_callback(self._handle, self._refresh)
        glfw.set_framebuffer_size_callback(self._handle, self._resized)
        loader: Any = _Loader()  # an object will do, though its types say dict
        self.context: Any = moderngl.create_context(330, context=loader)

    @property
    def target(self) -> Any:
        return self.context.screen

    @property
    def size(self) -> tuple[int, int]:
        if self._handle is None:
            return 0, 0
        width, height = glfw.get_framebuffer_size(self._handle)
        return int(width), int(height)

    @property
    def closed(self) -> bool:
        return self._handle is None or bool(glfw.window_should_close(self._handle))

    def poll(self, seconds: float = 0.0) -> bool:
        if seconds > 0:
            glfw.wait_events_timeout(seconds)
        else:
            glfw.poll_events()
        redraw, self._redraw = self._redraw, False
        return redraw

    def present(self) -> None:
        glfw.swap_buffers(self._handle)

    def close(self) -> None:
        if self._handle is None:
            return
        self.context.release()
        glfw.destroy_window(self._handle)
        self._handle = None
        glfw.terminate()

    def _key(self, window: Any, key: int, code: int, action: int, modifiers: int) -> None:
        if action == glfw.PRESS and key in (glfw.KEY_ESCAPE, glfw.KEY_Q):
            glfw.set_window_should_close(window, True)

    def _refresh(self, window: Any) -> None:
        self._redraw = True

    def _resized(self, window: Any, width: int, height: int) -> None:
        self._redraw = True


class _Loader:
    """Gives moderngl the functions of the window's own context, whether it is of GLX or of EGL."""

    def load_opengl_function(self, name: str) -> int:
        return ctypes.cast(glfw.get_proc_address(name), ctypes.c_void_p).value or 0

    load = load_opengl_function  # its name in earlier releases

    def enter(self) -> None:
        pass  # the context is current all the time

    exit = release = enter


def _opening_size(width: int, height: int) -> tuple[int, int]:
    """As large as fits well on the screen: a whole multiple of the image, or the image made smaller."""
    monitor = glfw.get_primary_monitor()
    mode = glfw.get_video_mode(monitor) if monitor else None
    if mode is None:
        return width, height
    room = min(_SHARE * mode.size.width / width, _SHARE * mode.size.height / height)
    scale = float(int(room)) if room >= 1 else room
    return max(round(width * scale), 1), max(round(height * scale), 1)


def _words(said: list[warnings.WarningMessage]) -> str:
    return "; ".join(str(warning.message) for warning in said) or "GLFW does not say why"
