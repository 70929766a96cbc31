"""PESQ from the package `pesq`, with its failures turned into errors.

For a signal that it cannot score the package gives a negative number or crashes. Taken for a score, the
number would bend a mean or a training label without a word, so it is raised as `ScoreError` here.
"""

from __future__ import annotations

import numpy as np
import pesq

from metrics.signals import RATE, ScoreError, check_pair

MAX_PESQ_SECONDS = 40
"""The P.862 program keeps room for 50 utterances and does not check it: beyond, it scores wrongly or crashes.

An utterance takes 0.4 s with its pause at the very least; at 40 s even one spoken word a second fits with a
margin.
"""

_PESQ_FAILURES = {
    -3: "out of memory",
    -4: "out of memory",
    -5: "out of memory",
    -6: "shorter than 1/4 s",
    -7: "no utterance found in it",
}


def wideband_pesq(clean: np.ndarray, degraded: np.ndarray) -> float:
    """PESQ MOS-LQO (ITU-T P.862.2, wideband) of `degraded` `[N]` against `clean` `[N]`, both at 16 kHz.

    Raises `ScoreError` where P.862 gives no score: silence, under 1/4 s, no utterance, or over
    `MAX_PESQ_SECONDS`.
    """
    clean, degraded = check_pair(clean, degraded)
    seconds = len(clean) / RATE
    if seconds > MAX_PESQ_SECONDS:
        raise ScoreError(f"no PESQ: {seconds:.1f} s long, P.862 is for at most {MAX_PESQ_SECONDS} s; split it")
    score = float(pesq.pesq(RATE, clean, degraded, "wb", on_error=pesq.PesqError.RETURN_VALUES))
    if not score >= 0:
        raise ScoreError(f"no PESQ: {_PESQ_FAILURES.get(int(np.nan_to_num(score)), f'result {score}')}")
    return score
