"""Measure checkpoints under controlled conditions: mixes, scores, tables, plot."""
