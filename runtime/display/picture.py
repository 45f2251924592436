"""An image in a pixel buffer of OpenGL, drawn over a window: as large as fits, in its own shape."""

from __future__ import annotations

from typing import Any

_VERTEX = """
#version 330 core
out vec2 place;
void main() {
    // One triangle that covers the whole viewport; the image's first row is at the top.
    vec2 corner = vec2((gl_VertexID << 1) & 2, gl_VertexID & 2);
    place = vec2(corner.x, 1.0 - corner.y);
    gl_Position = vec4(corner * 2.0 - 1.0, 0.0, 1.0);
}
"""

_FRAGMENT = """
#version 330 core
uniform sampler2D image;
in vec2 place;
out vec4 colour;
void main() { colour = vec4(texture(image, place).rgb, 1.0); }
"""


def letterbox(width: int, height: int, aspect: float) -> tuple[int, int, int, int]:
    """The largest rectangle of an aspect (width over height) in the middle: x, y, width, height in pixels.

    At least one pixel each way, however odd the window.
    """
    across, down = min(width, round(height * aspect)), min(height, round(width / aspect))
    across, down = max(across, 1), max(down, 1)
    return (width - across) // 2, (height - down) // 2, across, down


class Picture:
    """One image of fixed size, shown as often as its pixel buffer is filled.

    Needs a current context of OpenGL 3.3 (`moderngl.Context`), here and for every call.

    Args:
        context: of the window. height, width: of the image. aspect: width over height as it is to be seen.
    """

    def __init__(self, context: Any, height: int, width: int, aspect: float) -> None:
        self._context, self._aspect = context, aspect
        self.height, self.width = height, width
        self.buffer: Any = context.buffer(reserve=3 * height * width, dynamic=True)
        """uint8 RGB [height, width, 3]; who fills it says so by calling `draw`."""
        self._texture: Any = context.texture((width, height), 3, alignment=1)
        self._texture.repeat_x = self._texture.repeat_y = False  # borders do not mix with the opposite ones
        self._program: Any = context.program(vertex_shader=_VERTEX, fragment_shader=_FRAGMENT)
        self._triangle: Any = context.vertex_array(self._program, [])

    def draw(self, target: Any, size: tuple[int, int], *, changed: bool = True) -> None:
        """Draw over all of `target` (`moderngl.Framebuffer`), black beside the image.

        Args:
            target: where. size: of it, width and height. changed: the buffer has another image than before.
        """
        width, height = size
        if width < 1 or height < 1:  # a window put away
            return
        if changed:
            self._texture.write(self.buffer, alignment=1)
        target.use()
        self._context.disable(self._context.BLEND | self._context.DEPTH_TEST)
        self._context.viewport = (0, 0, width, height)
        self._context.clear(0.0, 0.0, 0.0, 1.0)
        self._context.viewport = letterbox(width, height, self._aspect)
        self._texture.use(0)
        self._triangle.render(vertices=3)

    def close(self) -> None:
        """Gives everything back."""
        for made in (self._triangle, self._program, self._texture, self.buffer):
            made.release()
