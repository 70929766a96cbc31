"""SI-SDR against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from metrics.si_sdr import si_sdr

CLEAN = np.array([1.0, -1.0, 1.0, -1.0])
ORTHOGONAL = np.array([1.0, 1.0, -1.0, -1.0])


@pytest.mark.parametrize(("share", "expected"), [(1.0, 0.0), (0.1, 20.0), (10.0, -20.0), (0.5, 6.0206)])
def test_ratio_of_target_to_orthogonal_part(share: float, expected: float) -> None:
    assert si_sdr(CLEAN, CLEAN + share * ORTHOGONAL) == pytest.approx(expected, abs=1e-4)


def test_neither_level_nor_offset_nor_sign_matter() -> None:
    degraded = CLEAN + 0.1 * ORTHOGONAL
    assert si_sdr(5 * CLEAN + 3, -0.01 * degraded + 0.2) == pytest.approx(20)


def test_single_precision_is_scored_in_double() -> None:
    degraded = (CLEAN + 0.5 * ORTHOGONAL).astype(np.float32)
    assert si_sdr(CLEAN.astype(np.float32), degraded) == pytest.approx(10 * math.log10(4), abs=1e-9)


def test_a_perfect_copy_and_an_unrelated_signal_end_at_the_resolution_of_float64() -> None:
    assert si_sdr(CLEAN, 0.5 * CLEAN) == pytest.approx(156.54, abs=0.01)
    assert si_sdr(CLEAN, ORTHOGONAL) == pytest.approx(-156.54, abs=0.01)


def test_a_constant_signal_has_none() -> None:
    assert math.isnan(si_sdr(CLEAN, np.ones(4)))
    assert math.isnan(si_sdr(np.zeros(4), CLEAN))
