"""PESQ, STOI, ESTOI and SI-SDR: known values, and signals without a score."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pystoi
import pytest

from metrics.pesq import MAX_PESQ_SECONDS, wideband_pesq
from metrics.si_sdr import si_sdr
from metrics.signals import ScoreError
from metrics.stoi import estoi, stoi
from tests.fixtures.signals import speech_like, with_noise

Measure = Callable[[np.ndarray, np.ndarray], float]


@pytest.fixture(scope="module")
def clean() -> np.ndarray:
    return speech_like(3)


def test_clean_against_itself(clean: np.ndarray) -> None:
    assert wideband_pesq(clean, clean) == pytest.approx(4.644, abs=5e-4)
    assert stoi(clean, clean) == pytest.approx(1)
    assert estoi(clean, clean) == pytest.approx(1)


@pytest.mark.parametrize("measure", [wideband_pesq, stoi, estoi])
@pytest.mark.parametrize(
    ("degraded", "reason"),
    [
        (np.zeros(48_000), "silent"),
        (np.full(48_000, 0.5), "silent"),
        (np.full(48_000, np.nan), "NaN or infinite"),
        (np.ones(47_999), "one length"),
        (np.arange(3999.0), "3999 samples"),
    ],
)
def test_signals_without_a_score(measure: Measure, degraded: np.ndarray, reason: str, clean: np.ndarray) -> None:
    with pytest.raises(ScoreError, match=reason):
        measure(clean[:3999] if len(degraded) == 3999 else clean, degraded)


@pytest.mark.parametrize(("result", "reason"), [(-7, "no utterance"), (-1, "result -1"), (math.nan, "NaN")])
def test_negative_pesq_is_an_error(
    result: float, reason: str, clean: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metrics.pesq.pesq.pesq", lambda *_, **__: result)
    with pytest.raises(ScoreError, match=f"no PESQ: .*{reason}"):
        wideband_pesq(clean, clean)


def test_pesq_of_a_click_at_the_end_is_undefined() -> None:
    click = np.zeros(4000)
    click[3960] = 1.0
    with pytest.raises(ScoreError, match="no PESQ"):
        wideband_pesq(click, click)


def test_pesq_rejects_long_signals() -> None:
    long = np.tile(speech_like(3), 14)[: (MAX_PESQ_SECONDS + 1) * 16_000]
    with pytest.raises(ScoreError, match=r"no PESQ: 41\.0 s long"):
        wideband_pesq(long, long)


@pytest.mark.parametrize("extended", [False, True])
def test_stoi_is_that_of_pystoi(clean: np.ndarray, extended: bool) -> None:
    degraded = with_noise(clean, 5)
    expected = pystoi.stoi(clean, degraded, 16_000, extended=extended)
    assert (estoi if extended else stoi)(clean, degraded) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("measure", [stoi, estoi])
def test_stoi_of_too_little_speech_is_undefined(measure: Measure) -> None:
    blip = np.zeros(16_000)
    blip[4000:8000] = speech_like(0.25)
    with warnings.catch_warnings(), pytest.raises(ScoreError, match="no STOI"):
        warnings.simplefilter("error")
        measure(blip, with_noise(blip, 20))


def test_stoi_is_repeatable_in_threads_and_keeps_the_random_state(clean: np.ndarray) -> None:
    clean = clean[:16_000]
    degraded = with_noise(clean, 5)
    np.random.seed(7)
    expected = np.random.random()
    np.random.seed(7)
    with ThreadPoolExecutor(3) as pool:
        assert len(set(pool.map(lambda _: (stoi(clean, degraded), estoi(clean, degraded)), range(6)))) == 1
    assert np.random.random() == expected


CLEAN = np.array([1.0, -1.0, 1.0, -1.0])
ORTHOGONAL = np.array([1.0, 1.0, -1.0, -1.0])


@pytest.mark.parametrize(("scale", "expected"), [(1.0, 0.0), (0.1, 20.0), (10.0, -20.0), (0.5, 6.0206)])
def test_si_sdr_ignores_level_offset_and_sign(scale: float, expected: float) -> None:
    degraded = CLEAN + scale * ORTHOGONAL
    assert si_sdr(CLEAN, degraded.astype(np.float32)) == pytest.approx(expected, abs=1e-4)
    assert si_sdr(5 * CLEAN + 3, -0.01 * degraded + 0.2) == pytest.approx(expected, abs=1e-4)


def test_si_sdr_is_limited_to_the_resolution_of_float64() -> None:
    assert si_sdr(CLEAN, 0.5 * CLEAN) == pytest.approx(156.54, abs=0.01)
    assert si_sdr(CLEAN, ORTHOGONAL) == pytest.approx(-156.54, abs=0.01)


def test_si_sdr_of_a_constant_is_undefined() -> None:
    assert math.isnan(si_sdr(CLEAN, np.ones(4)))
    assert math.isnan(si_sdr(np.zeros(4), CLEAN))
