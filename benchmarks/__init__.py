"""Benchmarks anyone can run; measured JSON is kept in `results/`."""
