"""Input of all metrics: two aligned mono signals at 16 kHz. Also defines `ScoreError`."""

from __future__ import annotations

import numpy as np

RATE = 16_000
"""Sampling rate in Hz. Wideband PESQ and the published composite measures are defined at 16 kHz."""

MIN_SAMPLES = RATE // 4
"""Minimum length: P.862 rejects signals shorter than 0.25 s."""


class ScoreError(Exception):
    """A metric is undefined for a pair of signals. The message gives the reason in one line."""


def check_pair(clean: np.ndarray, degraded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both signals `[N]` as float64.

    Raises `ScoreError` if they are not mono, differ in length, are shorter than 0.25 s, contain NaN or infinity, or if
    one of them is constant (silent apart from an offset).
    """
    if clean.ndim != 1 or clean.shape != degraded.shape:
        raise ScoreError(f"not two mono signals of one length: shapes {clean.shape} and {degraded.shape}")
    if len(clean) < MIN_SAMPLES:
        raise ScoreError(f"shorter than 1/4 s ({len(clean)} samples at 16 kHz)")
    for name, signal in (("clean", clean), ("other", degraded)):
        if not np.isfinite(signal).all():
            raise ScoreError(f"the {name} signal holds NaN or infinite samples")
        if np.ptp(signal) == 0:
            raise ScoreError(f"the {name} signal is silent")
    return clean.astype(np.float64), degraded.astype(np.float64)
