"""Draw the computation of a network on one utterance: `python -m tools.inspect`."""
