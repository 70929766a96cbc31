"""Networks, training and measures written out as the papers give them, slowly: what tests and benchmarks compare with.

Only `tests/` and `scripts/` import from here.
"""
