"""Scale-invariant signal-to-distortion ratio."""

from __future__ import annotations

import math

import numpy as np

_EPS = float(np.finfo(np.float64).eps)


def si_sdr(clean: np.ndarray, degraded: np.ndarray) -> float:
    """Return SI-SDR in dB of `degraded` `[N]` against `clean` `[N]` (Le Roux et al., "SDR – half-baked or well done?").

    Both signals are made zero-mean. The result is limited to ±156.5 dB, the resolution of float64, so that a perfect
    copy has a finite score. It is NaN if one of the signals is constant.
    """
    clean = clean.astype(np.float64) - np.mean(clean, dtype=np.float64)
    degraded = degraded.astype(np.float64) - np.mean(degraded, dtype=np.float64)
    clean_energy, degraded_energy = float(clean @ clean), float(degraded @ degraded)
    if clean_energy == 0 or degraded_energy == 0:
        return math.nan
    target = (float(degraded @ clean) / clean_energy) * clean
    distortion = degraded - target
    floor = _EPS * degraded_energy
    return 10 * math.log10((float(target @ target) + floor) / (float(distortion @ distortion) + floor))
