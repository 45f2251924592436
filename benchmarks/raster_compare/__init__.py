"""Rasterizers side by side in one run: `python -m streamsplat_edge.benchmarks.raster_compare`."""
