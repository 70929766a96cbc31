"""Random number generators of the data, one independent stream per purpose."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """Purpose of random numbers. The values are part of the seeds: changing one changes the data of all runs."""

    CROP = 0
    ORDER = 1
    VALIDATION = 2
    SPLIT = 3


def generator(stream: Stream, seed: int, epoch: int = 0, index: int = 0) -> np.random.Generator:
    """Return the random number generator of a purpose, run, epoch and item."""
    return np.random.default_rng([seed, epoch, index, stream])
