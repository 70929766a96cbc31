"""Measure what networks, training and streaming cost, against plain transcriptions and other tools."""
