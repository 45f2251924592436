"""Cost per frame as something grows: `python -m streamsplat_edge.benchmarks.scaling`."""
