"""Measure what networks, training, streaming, files and metrics cost, against plain transcriptions and other tools."""
