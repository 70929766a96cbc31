"""Plain, slow transcriptions of networks, training and measures, which tests and benchmarks compare with."""
