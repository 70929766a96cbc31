"""Means with confidence intervals, and paired tests between two systems on the same files.

    test = paired_test(scores_of_a, scores_of_b)         # differences b − a
    print(test.mean, test.ci95, test.t_p, test.improved)

Scores vary far more between files than between two systems on one file. The confidence intervals of two means can
therefore overlap although one system is significantly better; test the differences per file instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from scipy.special import stdtrit
from scipy.stats import ttest_1samp, wilcoxon


@dataclass(frozen=True)
class Mean:
    """Mean of a metric, half the width of its 95 % confidence interval, and the number of files with a score."""

    mean: float
    ci95: float
    files: int


def mean_with_interval(values: np.ndarray) -> Mean:
    """Return the mean of `values` `[N]` without NaN, with its 95 % confidence interval (Student's t).

    The mean of no value is NaN, and so is the interval of fewer than two.
    """
    values = values[~np.isnan(values)]
    count = len(values)
    mean = float(values.mean()) if count else math.nan
    if count < 2:
        return Mean(mean, math.nan, count)
    return Mean(mean, float(stdtrit(count - 1, 0.975)) * float(values.std(ddof=1)) / math.sqrt(count), count)


@dataclass(frozen=True)
class PairedTest:
    """Differences between a system and a baseline on the files where both have a score.

    mean, ci95: mean difference and half the width of its 95 % confidence interval (Student's t).
    t_p, wilcoxon_p: two-sided p-values of the paired t-test and of Wilcoxon's signed-rank test.
    improved: proportion of files with a difference above 0.
    files, dropped: number of files with both scores, and of the others.

    Undefined values are NaN: all of them without files; `ci95` and `t_p` for one file; both p-values if all differences
    are 0; `t_p` if all are equal.
    """

    mean: float
    ci95: float
    t_p: float
    wilcoxon_p: float
    improved: float
    files: int
    dropped: int


def paired_test(baseline: Sequence[float], system: Sequence[float]) -> PairedTest:
    """Compare the scores of two systems on the same files in the same order; NaN marks a missing score.

    Raises `ValueError` if the numbers of scores differ.
    """
    if len(baseline) != len(system):
        raise ValueError(f"{len(baseline)} scores cannot be paired with {len(system)}")
    differences = np.asarray(system, np.float64) - np.asarray(baseline, np.float64)
    valid = differences[~np.isnan(differences)]
    mean = mean_with_interval(valid)
    return PairedTest(
        mean=mean.mean,
        ci95=mean.ci95,
        t_p=float(cast(Any, ttest_1samp(valid, 0)).pvalue) if len(valid) > 1 and np.ptp(valid) else math.nan,
        wilcoxon_p=float(cast(Any, wilcoxon(valid)).pvalue) if valid.any() else math.nan,
        improved=float(np.mean(valid > 0)) if len(valid) else math.nan,
        files=len(valid),
        dropped=len(differences) - len(valid),
    )
