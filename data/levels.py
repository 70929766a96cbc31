"""Signal level: mean power, and the gain that normalises it."""

from __future__ import annotations

import numpy as np

SILENT_POWER = 1e-20
"""Mean power (−200 dB) up to which a signal counts as silent."""


def mean_power(signal: np.ndarray) -> float:
    """Return the mean square of samples `[N]`, computed in float64."""
    return float(np.mean(np.square(signal, dtype=np.float64)))


def unit_power_gain(power: float) -> float:
    """Return the gain that scales a signal of mean power `power` to a mean power of 1; 1 for silence."""
    return power**-0.5 if power > SILENT_POWER else 1.0
