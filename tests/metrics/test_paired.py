"""Paired statistics against scipy's own tests and values worked out by hand."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import pytest
from scipy.stats import ttest_rel, wilcoxon

from metrics.paired import paired_test


def test_it_agrees_with_scipy() -> None:
    random = np.random.default_rng(0)
    baseline = random.normal(2, 0.5, 40)
    system = baseline + random.normal(0.1, 0.3, 40)
    test = paired_test(list(baseline), list(system))
    expected = cast(Any, ttest_rel(system, baseline))
    interval = expected.confidence_interval(0.95)
    assert test.t_p == pytest.approx(expected.pvalue)
    assert test.wilcoxon_p == pytest.approx(cast(Any, wilcoxon(system, baseline)).pvalue)
    assert (test.mean - test.ci95, test.mean + test.ci95) == pytest.approx((interval.low, interval.high))
    assert test.improved == np.mean(system > baseline)
    assert (test.files, test.dropped) == (40, 0)
    assert 1e-6 < test.t_p < 0.5  # neither 0 nor 1, at which much would agree


def test_values_by_hand() -> None:
    # Differences 1, 2, 3, −1, 0: mean 1, variance (0 + 1 + 4 + 4 + 1) / 4 = 2.5, t = 1 / √0.5 with 4 degrees of
    # freedom, whose 97.5 % quantile is 2.7764; its p-value, with u = t² / (4 + t²) = 1/3, is 1 − √u (3 − u) / 2.
    test = paired_test([1, 1, 1, 1, 1], [2, 3, 4, 0, 1])
    assert test.mean == 1
    assert test.ci95 == pytest.approx(2.776445 * math.sqrt(0.5))
    assert test.t_p == pytest.approx(1 - math.sqrt(1 / 3) * (3 - 1 / 3) / 2)
    # A file without a difference has not improved.
    assert test.improved == 3 / 5
    # Five differences of one sign: 2 of the 2⁵ patterns of signs are as extreme.
    assert paired_test([0] * 5, [1, 2, 3, 4, 5]).wilcoxon_p == 2 / 2**5


def test_the_sign_is_that_of_system_minus_baseline() -> None:
    better, worse = paired_test([1, 2, 3], [2, 4, 4]), paired_test([2, 4, 4], [1, 2, 3])
    assert (better.mean, better.improved) == (pytest.approx(4 / 3), 1)
    assert (worse.mean, worse.improved) == (pytest.approx(-4 / 3), 0)
    assert better.t_p == pytest.approx(worse.t_p)


def test_pairs_with_a_missing_score_are_dropped_and_counted() -> None:
    holes = paired_test([1, math.nan, 3, 4, 5, math.nan], [2, 2, math.nan, 6, 5.5, math.nan])
    whole = paired_test([1, 4, 5], [2, 6, 5.5])
    assert (holes.files, holes.dropped, whole.dropped) == (3, 3, 0)
    assert (holes.mean, holes.ci95, holes.t_p, holes.wilcoxon_p) == (
        (whole.mean, whole.ci95, whole.t_p, whole.wilcoxon_p)
    )


@pytest.mark.filterwarnings("error")
def test_too_few_or_equal_files_have_no_test() -> None:
    none = paired_test([math.nan], [1])
    assert (none.files, none.dropped) == (0, 1)
    assert all(math.isnan(value) for value in (none.mean, none.ci95, none.t_p, none.wilcoxon_p, none.improved))
    one = paired_test([1], [3])
    assert (one.mean, one.improved, one.wilcoxon_p) == (2, 1, 1)
    assert math.isnan(one.ci95)
    assert math.isnan(one.t_p)
    equal = paired_test([1, 2, 3], [1, 2, 3])
    assert (equal.mean, equal.ci95, equal.improved) == (0, 0, 0)
    assert math.isnan(equal.t_p)
    assert math.isnan(equal.wilcoxon_p)
    same_step = paired_test([1, 2, 3], [2, 3, 4])
    assert math.isnan(same_step.t_p)
    assert same_step.wilcoxon_p == 2 / 2**3


def test_lists_of_two_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 scores cannot be paired with 3"):
        paired_test([1, 2], [1, 2, 3])
