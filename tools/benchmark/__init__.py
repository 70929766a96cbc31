"""Benchmarks: `python -m tools.benchmark`."""
