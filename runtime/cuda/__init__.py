"""The GPU runtime: rasterizer and Gaussian lifecycle on a CUDA device, on CuPy's memory and streams.

The kernels are ours (cuda/streamsplat.cu). Nothing here falls back to the CPU: what cannot run says why.
"""
