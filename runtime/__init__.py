"""The lean runtime: bundles, engines, lifecycle, rasterizer and video. Never imports torch or onnx."""
