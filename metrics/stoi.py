"""STOI and ESTOI with the package `pystoi`.

The published tables used another port of the same algorithm, which finds other frames silent. The means over the 824
noisy files of the VoiceBank+DEMAND test set differ by 0.00001, and the scores of 21 files by more than 0.005.
"""

from __future__ import annotations

import threading
import warnings

import numpy as np
import pystoi

from metrics.signals import RATE, ScoreError, check_pair

_TOO_SHORT = 1e-5
"""Returned by `pystoi`, with a warning, for less than one analysis segment."""

_LOCK = threading.Lock()


def stoi(clean: np.ndarray, degraded: np.ndarray) -> float:
    """Return STOI (Taal et al., 2011; at most 1) of `degraded` `[N]` against `clean` `[N]`, both at 16 kHz.

    Raises `ScoreError` if less than one analysis segment (0.4 s) of speech remains after silence is removed.
    """
    return _pystoi(clean, degraded, extended=False)


def estoi(clean: np.ndarray, degraded: np.ndarray) -> float:
    """Return extended STOI (Jensen and Taal, 2016) of `degraded` `[N]`; arguments and errors as for `stoi`."""
    return _pystoi(clean, degraded, extended=True)


def _pystoi(clean: np.ndarray, degraded: np.ndarray, extended: bool) -> float:
    clean, degraded = check_pair(clean, degraded)
    # Warning filters and NumPy's global random state belong to the process, hence the lock. ESTOI adds random numbers
    # of the size of float64 rounding errors; a fixed seed makes scores repeatable.
    with _LOCK, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Not enough STFT frames")
        random_state = np.random.get_state()
        np.random.seed(0)
        try:
            score = float(pystoi.stoi(clean, degraded, RATE, extended=extended))
        finally:
            np.random.set_state(random_state)
    if score == _TOO_SHORT:
        raise ScoreError("no STOI: less than one analysis segment (0.4 s) of speech")
    return score
