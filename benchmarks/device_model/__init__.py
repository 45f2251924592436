"""Times on devices that were not at hand, computed: `python -m streamsplat_edge.benchmarks.device_model`."""
