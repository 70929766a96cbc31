"""Wideband PESQ with the package `pesq`.

For a signal without a score the package returns a negative number. `wideband_pesq` raises `ScoreError` instead, so that
the number enters neither a mean nor a training label.
"""

from __future__ import annotations

import math

import numpy as np
import pesq

from metrics.signals import RATE, ScoreError, check_pair

MAX_PESQ_SECONDS = 40
"""Maximum length in seconds.

The P.862 program stores at most 50 utterances and does not check the limit: with more it returns wrong scores or
crashes. An utterance with its pause takes at least 0.4 s; 40 s leave a margin even for one word per second.
"""

_FAILURES = {
    -3: "out of memory",
    -4: "out of memory",
    -5: "out of memory",
    -6: "shorter than 1/4 s",
    -7: "no utterance found in it",
}


def wideband_pesq(clean: np.ndarray, degraded: np.ndarray) -> float:
    """Return PESQ MOS-LQO (ITU-T P.862.2, wideband) of `degraded` `[N]` against `clean` `[N]`, both at 16 kHz.

    Raises `ScoreError` if P.862 gives no score: silence, no utterance, shorter than 0.25 s, or longer than
    `MAX_PESQ_SECONDS`.
    """
    clean, degraded = check_pair(clean, degraded)
    seconds = len(clean) / RATE
    if seconds > MAX_PESQ_SECONDS:
        raise ScoreError(f"no PESQ: {seconds:.1f} s long, P.862 is for at most {MAX_PESQ_SECONDS} s; split it")
    score = float(pesq.pesq(RATE, clean, degraded, "wb", on_error=pesq.PesqError.RETURN_VALUES))
    if math.isnan(score):
        raise ScoreError("no PESQ: the result is NaN")
    if score < 0:
        raise ScoreError(f"no PESQ: {_FAILURES.get(round(score), f'result {score}')}")
    return score
