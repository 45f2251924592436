"""`streamsplat-edge bench`: one report over all backends that run here, and why the others do not."""
