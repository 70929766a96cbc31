"""The level of a signal: its mean power, and what brings a training crop to the level that networks are made for.

Training need not match inference (`enhance.enhancer.LevelMeter`) to the last bit: it repeats no released output, and a
phase of 0 or π that a rounding error turns over is one more thing that is random in a crop.
"""

from __future__ import annotations

import numpy as np

SILENT_POWER = 1e-20
"""Mean power of −200 dB: silence, whose level is left as it is."""


def mean_power(signal: np.ndarray) -> float:
    """The mean square of samples `[N]`, computed in float64."""
    return float(np.mean(np.square(signal, dtype=np.float64)))


def level_factor(noisy: np.ndarray) -> np.float32:
    """What brings samples `[N]` to a mean power of 1: sqrt(N / sum(x²)); 1 for silence."""
    power = mean_power(noisy)
    return np.float32(power**-0.5 if power > SILENT_POWER else 1)


def unit_power_gain(power: float) -> float:
    """Return the gain that brings a signal of this mean power to a mean power of 1; 1 for silence."""
    return power**-0.5 if power > SILENT_POWER else 1.0
