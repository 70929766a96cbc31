"""DNSMOS: Microsoft's estimate of listening scores (ITU-T P.835 and P.808) from a recording alone.

For recordings without a clean reference. Needs the package speechmos (`pip install -e '.[dnsmos]'`), which brings the
networks. An estimate does not replace a listening test and may be far off for sounds unlike its training data.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping

import numpy as np

from cli import UserError
from metrics.signals import RATE, ScoreError

DNSMOS = {"ovrl_mos": "overall", "sig_mos": "speech", "bak_mos": "background", "p808_mos": "P.808"}
"""Labels of the scores, which range from 1 to 5."""

Dnsmos = Callable[[np.ndarray], dict[str, float]]
"""Maps samples `[N]` at 16 kHz to a score for each key of `DNSMOS`; raises `ScoreError`."""


def load_dnsmos() -> Dnsmos:
    """Return the DNSMOS function; raise `UserError` without the package speechmos."""
    try:
        package = importlib.import_module("speechmos.dnsmos")  # late: an extra, and slow to import
    except ImportError as error:
        raise UserError(f"speechmos cannot be used: {error}; pip install -e '.[dnsmos]'") from error

    def score(samples: np.ndarray) -> dict[str, float]:
        if not np.isfinite(samples).all() or np.ptp(samples) == 0:
            raise ScoreError("no DNSMOS: silent, or not finite")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # librosa warns of empty mel filters
            # The package repeats signals under 9 s and refuses samples beyond ±1.
            values: Mapping[str, float] = package.run(np.clip(samples.astype(np.float64), -1, 1), sr=RATE)
        return {name: float(values[name]) for name in DNSMOS}

    return score
