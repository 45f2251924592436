"""A window on this machine's screen that shows a run (extra `[display]`: glfw, moderngl).

On a GPU the image goes from the rasterizer into a pixel buffer of OpenGL without leaving the device
(`cuda_gl`); on a CPU the same buffer is filled from the host. Nothing here is imported unless a window was
asked for.

| module | holds |
|---|---|
| `observer` | `LiveDisplay`: the observer of a run |
| `feed` | who fills the pixel buffer: the host or CUDA |
| `cuda_gl` | the driver's calls that share a buffer of OpenGL with CUDA |
| `picture` | pixel buffer, texture and the triangle that draws it |
| `pace` | when a frame is shown |
| `window` | the window, through GLFW |
"""
