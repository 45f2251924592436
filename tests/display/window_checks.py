"""The real window on a real (if unseen) screen of 200 x 150 pixels; run by test_run_display.py."""

from __future__ import annotations

import glfw
import numpy as np

from streamsplat_edge.runtime.display.picture import Picture
from streamsplat_edge.runtime.display.window import Window

PATIENCE = 10.0  # seconds for one event; only a broken window needs them


def check(window: Window) -> None:
    assert window.size == (140, 70), "a whole multiple, three quarters of the screen at most"
    picture = Picture(window.context, 70, 140, 2.0)
    image = np.random.default_rng(1).integers(0, 256, (70, 140, 3), np.uint8)
    picture.buffer.write(image)
    picture.draw(window.target, window.size)
    data = window.target.read(viewport=(0, 0, 140, 70), components=3, alignment=1)
    np.testing.assert_array_equal(np.frombuffer(data, np.uint8).reshape(70, 140, 3)[::-1], image)
    window.present()
    glfw.set_window_size(window._handle, 60, 60)
    redraw = False
    for _ in range(100):  # the server answers when it likes
        glfw.wait_events_timeout(PATIENCE)
        redraw = window.poll() or redraw
        if redraw and window.size == (60, 60):
            break
    assert redraw and window.size == (60, 60)
    picture.draw(window.target, window.size, changed=False)
    window.present()
    assert not window.closed
    press = glfw.set_key_callback(window._handle, None)
    for key, closes in ((glfw.KEY_A, False), (glfw.KEY_ESCAPE, True)):
        press(window._handle, key, 0, glfw.PRESS, 0)
        assert window.closed is closes
    picture.close()


if __name__ == "__main__":
    window = Window("test", 20, 10)
    check(window)
    window.close()
    window.close()  # harmless
    assert window.closed and window.size == (0, 0)
    print("checked")
