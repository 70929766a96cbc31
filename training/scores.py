"""PESQ and STOI of validation utterances, in processes that do not import PyTorch."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from metrics.pesq import wideband_pesq
from metrics.signals import ScoreError, check_pair
from metrics.stoi import stoi
from utils.processes import own_cores, run_in_processes


def score_all(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[dict[str, float]]:
    """Return PESQ and STOI of pairs (clean, enhanced) `[N]` at 16 kHz, NaN where a pair has none; uses `own_cores`.

    A pair whose process fails or dies is reported on standard error and has NaN.
    """
    scores: list[dict[str, float]] = [{"pesq": math.nan, "stoi": math.nan} for _ in pairs]
    for index, result in run_in_processes(score_pair, pairs, own_cores()):
        if isinstance(result, BaseException):
            tqdm.write(f"validation: utterance {index} could not be scored: {result}", file=sys.stderr)
        else:
            scores[index] = result
    return scores


def score_pair(pair: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """Return PESQ and STOI of one pair."""
    scores = {"pesq": math.nan, "stoi": math.nan}
    for name, measure in (("pesq", wideband_pesq), ("stoi", stoi)):
        try:
            scores[name] = measure(*check_pair(*pair))
        except ScoreError:
            continue
    return scores
