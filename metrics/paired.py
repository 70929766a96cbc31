"""Is one system better than another on the same files? Paired statistics of one metric.

    test = paired_test(values_of_a, values_of_b)         # differences are b − a
    print(test.mean, test.ci95, test.t_p, test.improved)

Files differ far more from each other than two systems do on one file, so that the intervals of two means overlap long
before the systems are alike: what counts is the difference on each file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import ttest_1samp, wilcoxon

from metrics.summary import mean_with_interval


@dataclass(frozen=True)
class PairedTest:
    """The differences between two systems on the files where both have a score.

    `mean` and `ci95`: their mean and half its 95 % confidence interval (Student's t); `t_p` and `wilcoxon_p`: the
    two-sided p-values of the paired t-test and of Wilcoxon's signed-rank test; `improved`: the share of files whose
    difference is above 0; `files`: how many have both scores, and `dropped`, how many do not. NaN where the
    files are too few for a value: no file, or for intervals and t-test one. Both p-values are NaN where no file
    differs; that of the t-test also where all differ by the same.
    """

    mean: float
    ci95: float
    t_p: float
    wilcoxon_p: float
    improved: float
    files: int
    dropped: int


def paired_test(baseline: Sequence[float], system: Sequence[float]) -> PairedTest:
    """Compare the scores of two systems, file by file, in the same order; NaN marks a file without a score.

    Raises `ValueError` where their numbers differ.
    """
    if len(baseline) != len(system):
        raise ValueError(f"{len(baseline)} scores cannot be paired with {len(system)}")
    differences = np.asarray(system, np.float64) - np.asarray(baseline, np.float64)
    there = differences[~np.isnan(differences)]
    mean = mean_with_interval(there)
    varies = len(there) > 1 and bool(np.ptp(there))
    return PairedTest(
        mean=mean.mean,
        ci95=mean.ci95,
        t_p=_p_value(ttest_1samp(there, 0)) if varies else math.nan,
        wilcoxon_p=_p_value(wilcoxon(there)) if there.any() else math.nan,
        improved=float(np.mean(there > 0)) if len(there) else math.nan,
        files=len(there),
        dropped=len(differences) - len(there),
    )


def _p_value(result: Any) -> float:
    """Of a result of scipy, whose types say nothing of it."""
    return float(result.pvalue)
