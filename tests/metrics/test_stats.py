"""Confidence intervals and paired tests against values worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from metrics.stats import mean_with_interval, paired_test


def test_mean_and_interval_by_hand() -> None:
    # Standard deviation 1, t(0.975; 2) = 4.302653, √3 files.
    mean = mean_with_interval(np.array([1, 2, math.nan, 3]))
    assert (mean.mean, mean.files) == (2.0, 3)
    assert mean.ci95 == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)


@pytest.mark.filterwarnings("error")
def test_one_value_has_no_interval_and_none_no_mean() -> None:
    one, none = mean_with_interval(np.array([1.5])), mean_with_interval(np.array([math.nan]))
    assert (one.mean, one.files, none.files) == (1.5, 1, 0)
    assert np.isnan([one.ci95, none.mean, none.ci95]).all()


def test_paired_test_by_hand() -> None:
    # Differences 1, 2, 3, −1, 0: mean 1, variance (0 + 1 + 4 + 4 + 1) / 4 = 2.5, t = 1 / √0.5 with 4 degrees of
    # freedom, whose 97.5 % quantile is 2.7764; with u = t² / (4 + t²) = 1/3 the p-value is 1 − √u (3 − u) / 2.
    test = paired_test([1, 1, 1, 1, 1], [2, 3, 4, 0, 1])
    assert test.mean == 1
    assert test.ci95 == pytest.approx(2.776445 * math.sqrt(0.5))
    assert test.t_p == pytest.approx(1 - math.sqrt(1 / 3) * (3 - 1 / 3) / 2)
    assert test.improved == 3 / 5  # a difference of 0 is no improvement
    # Five differences of one sign: 2 of the 2⁵ sign patterns are as extreme.
    assert paired_test([0] * 5, [1, 2, 3, 4, 5]).wilcoxon_p == 2 / 2**5


def test_pairs_with_a_missing_score_are_dropped_and_counted() -> None:
    test = paired_test([1, math.nan, 3, 4, 5, math.nan], [2, 2, math.nan, 6, 5.5, math.nan])
    assert test == replace(paired_test([1, 4, 5], [2, 6, 5.5]), dropped=3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("baseline", "system", "undefined"),
    [
        ([math.nan], [1], {"mean", "ci95", "t_p", "wilcoxon_p", "improved"}),
        ([1], [3], {"ci95", "t_p"}),
        ([1, 2, 3], [1, 2, 3], {"t_p", "wilcoxon_p"}),
        ([1, 2, 3], [2, 3, 4], {"t_p"}),
    ],
)
def test_too_few_or_equal_differences(baseline: list[float], system: list[float], undefined: set[str]) -> None:
    values = vars(paired_test(baseline, system))
    assert {name for name, value in values.items() if math.isnan(value)} == undefined
