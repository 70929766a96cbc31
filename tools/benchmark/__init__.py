"""Measure what networks, training and streaming cost, against plain transcriptions of the published code."""
