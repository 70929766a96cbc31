"""SI-SDR: how much of a signal is the clean one at some level, and how much is anything else."""

from __future__ import annotations

import math

import numpy as np

_EPS = float(np.finfo(np.float64).eps)


def si_sdr(clean: np.ndarray, degraded: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB of `degraded` `[N]` against `clean` `[N]`.

    Both are made zero-mean; the target is the projection of `degraded` on `clean` (Le Roux et al., "SDR –
    half-baked or well done?", 2019). The ratio ends at ±156.5 dB, the resolution of float64, so that a
    perfect copy still has a finite score and a mean over files stays a number. NaN where a signal is
    constant.
    """
    clean = clean.astype(np.float64) - np.mean(clean, dtype=np.float64)
    degraded = degraded.astype(np.float64) - np.mean(degraded, dtype=np.float64)
    energy = float(clean @ clean)
    total = float(degraded @ degraded)
    if energy == 0 or total == 0:
        return math.nan
    target = (float(degraded @ clean) / energy) * clean
    distortion = degraded - target
    ratio = (float(target @ target) + _EPS * total) / (float(distortion @ distortion) + _EPS * total)
    return 10 * math.log10(ratio)
