"""Figures of what a network computes: `python -m tools.inspect`."""
