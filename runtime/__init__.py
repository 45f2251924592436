"""The lean runtime: bundles, engines, Gaussian lifecycle, rasterizer and video. Never imports torch or onnx."""
