"""SSNR, LLR, WSS and the composite measures: values by hand, and a slow frame-by-frame implementation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from metrics import composite as module
from metrics.composite import VARIANTS, composite, llr, ssnr, wss
from metrics.signals import ScoreError
from tests.fixtures.signals import speech_like, with_noise
from tests.reference.composite import plain_composite, plain_llr, plain_ssnr, plain_wss


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(samples)


@pytest.mark.parametrize(("gain", "expected"), [(1.1, 20), (1.0, 35), (1.001, 35), (-9.0, -10)])
def test_ssnr_of_a_frame_is_limited(gain: float, expected: float) -> None:
    clean = noise(4000)
    assert ssnr(clean, gain * clean) == pytest.approx(expected, abs=1e-9)


def test_one_frame_needs_600_samples() -> None:
    clean = noise(600)
    assert ssnr(clean, 1.1 * clean) == pytest.approx(20, abs=1e-9)
    for measure in (ssnr, llr, wss):
        with pytest.raises(ScoreError, match="599 samples"):
            measure(clean[:599], clean[:599])


def test_llr_of_impulses_by_hand() -> None:
    # One impulse has lag 0 only, so that the clean filter is 1, 0, … and R is a multiple of I. With a second impulse
    # 16 samples later only the last of the 16 coefficients is not 0.
    clean, degraded = np.zeros(600), np.zeros(600)
    clean[240] = degraded[232] = degraded[248] = 1.0
    w = [0.5 * (1 - math.cos(2 * math.pi * n / 481)) for n in (233, 249)]
    coefficient = w[0] * w[1] / (w[0] ** 2 + w[1] ** 2)
    assert llr(clean, degraded) == pytest.approx(math.log(1 + coefficient**2), rel=1e-9)


def test_composite_by_hand() -> None:
    # 3.093 − 0.5145 + 1.809 − 0.27;  1.634 + 1.434 − 0.21 + 0.315;  1.594 + 2.415 − 0.256 − 0.21
    assert composite(pesq=3, llr=0.5, wss=30, ssnr=5) == pytest.approx((4.1175, 3.173, 3.543))
    assert composite(pesq=4.6, llr=0, wss=0, ssnr=35) == (5, 5, 5)
    assert composite(pesq=1, llr=3, wss=200, ssnr=-10) == (1, 1, 1)
    assert np.isnan(composite(pesq=math.nan, llr=0.5, wss=30, ssnr=5)).all()


@pytest.mark.parametrize("samples", [600, 719, 720, 11_457])
@pytest.mark.parametrize("snr_db", [-5, 25])
def test_all_parts_equal_the_slow_implementation(samples: int, snr_db: int) -> None:
    clean = speech_like(1.5, seed=samples)[:samples] + 1e-4 * noise(min(samples, 24_000))
    degraded = with_noise(clean, snr_db, seed=samples)
    assert ssnr(clean, degraded) == pytest.approx(plain_ssnr(clean, degraded), abs=1e-9)
    assert llr(clean, degraded) == pytest.approx(plain_llr(clean, degraded), abs=1e-7)
    for variant in VARIANTS:
        expected = plain_wss(clean, degraded, divide=variant == "published")
        assert wss(clean, degraded, variant) == pytest.approx(expected, abs=1e-7)
    parts = (3.0, llr(clean, degraded), wss(clean, degraded), ssnr(clean, degraded))
    assert composite(*parts) == pytest.approx(plain_composite(*parts))


@pytest.mark.parametrize("measure", [ssnr, llr, wss])
def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch, measure: Callable[..., float]) -> None:
    signals = noise(8000), noise(8000, seed=1)
    whole = measure(*signals)
    monkeypatch.setattr(module, "BLOCK_FRAMES", 7)
    assert measure(*signals) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("silent", [(True, False), (False, True), (True, True)])
def test_digital_silence_gives_finite_scores(silent: tuple[bool, bool]) -> None:
    clean, degraded = noise(16_000), noise(16_000, seed=1)
    clean[4000:12_000] *= not silent[0]
    degraded[4000:12_000] *= not silent[1]
    values = [ssnr(clean, degraded), llr(clean, degraded), *(wss(clean, degraded, v) for v in VARIANTS)]
    assert np.isfinite(values).all()


def test_llr_of_silence_is_0_and_of_a_pure_tone_finite() -> None:
    other, tone = noise(8000), np.sin(2 * np.pi * 440 / 16_000 * np.arange(8000))
    assert llr(np.zeros(8000), other) == 0
    assert np.isfinite([llr(tone, other), llr(other, tone)]).all()
