"""What every measure here takes, two aligned mono signals at 16 kHz, and the error where it has no score."""

from __future__ import annotations

import numpy as np

RATE = 16_000
"""Hz; wideband PESQ and the published composite measures are defined at this rate."""

MIN_SAMPLES = RATE // 4
"""P.862 refuses signals under a quarter of a second."""


class ScoreError(Exception):
    """A pair of signals has no score; the message says why in one line."""


def check_pair(clean: np.ndarray, degraded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both signals `[N]` as float64, or raise `ScoreError` where no measure can score them.

    That is where they are not two finite mono signals of one length, are under a quarter of a second, or
    one of them is silent: every sample the same, so that nothing is left without its offset.
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
