"""DNSMOS: what listeners would say of a recording, estimated by Microsoft's networks from the recording alone.

For where no clean version exists. It needs the package speechmos (`pip install -e '.[dnsmos]'`), which brings the
networks along. An estimate is no listening test, and of sounds unlike those of its training it may be far off.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping

import numpy as np

from metrics.signals import RATE, ScoreError

DNSMOS = {"ovrl_mos": "overall", "sig_mos": "speech", "bak_mos": "background", "p808_mos": "P.808"}
"""What the scores, from 1 to 5, are called: those of ITU-T P.835, and the one of P.808."""

Dnsmos = Callable[[np.ndarray], dict[str, float]]
"""Samples `[N]` at 16 kHz → a value for each of `DNSMOS`; raises `ScoreError`."""


def load_dnsmos() -> Dnsmos:
    """The measure; raises `ImportError` without its package."""
    package = importlib.import_module("speechmos.dnsmos")  # late: an extra, and slow to import

    def score(samples: np.ndarray) -> dict[str, float]:
        if not np.isfinite(samples).all() or np.ptp(samples) == 0:
            raise ScoreError("no DNSMOS: silent, or not finite")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of librosa, on filters without content
            # The package repeats what is under 9 s, and refuses what is beyond ±1.
            values: Mapping[str, float] = package.run(np.clip(samples.astype(np.float64), -1, 1), sr=RATE)
        return {name: float(values[name]) for name in DNSMOS}

    return score
