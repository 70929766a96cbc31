"""Conditions against values worked by hand: ratios, levels, shares, bands."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.signal import welch

from tests.fixtures.signals import level_of, speech_like
from tools.robustness.degradations import (
    RATE,
    babble,
    clip_share,
    from_narrow,
    gain_to,
    narrowband,
    pink_noise,
    telephone,
    to_narrow,
    white_noise,
)

SPEECH = speech_like(1)


def tone(frequency: float, samples: int = RATE) -> np.ndarray:
    return np.sin(2 * np.pi * frequency * np.arange(samples) / RATE)


def test_levels_are_those_of_known_signals() -> None:
    assert level_of(np.ones(8)) == 0
    assert level_of(np.array([0.1, -0.1])) == pytest.approx(-20)
    assert level_of(tone(1000)) == pytest.approx(-3.0103, abs=1e-4)
    assert level_of(np.zeros(8)) == -np.inf


@pytest.mark.parametrize("level", [-60.0, -26.0, 0.0])
def test_a_gain_reaches_its_level_and_clips_nothing(level: float) -> None:
    louder = SPEECH * gain_to(SPEECH, level)
    assert level_of(louder) == pytest.approx(level, abs=1e-9)
    assert np.ptp(louder / SPEECH) == pytest.approx(0, abs=1e-9)
    assert gain_to(np.zeros(8), level) == 1


def test_the_share_that_is_clipped() -> None:
    ramp = np.linspace(-1, 1, 2000)  # magnitudes 1/1999, 3/1999, …, each twice
    assert np.array_equal(clip_share(ramp, 0), ramp)
    for share in (0.01, 0.05, 0.20):
        clipped = clip_share(ramp, share)
        limit = (1999 - (2000 * share - 2)) / 1999
        assert np.max(np.abs(clipped)) == pytest.approx(limit)
        assert np.mean(np.abs(clipped) >= limit - 1e-9) == share
        inside = np.abs(ramp) < limit - 1e-9
        assert np.array_equal(clipped[inside], ramp[inside])


@pytest.mark.parametrize(
    ("band", "frequency", "gain"),
    [
        (telephone, 1000, 0.0),
        (telephone, 3000, 0.0),
        (telephone, 300, -6.02),
        (telephone, 3400, -6.02),
        (narrowband, 100, 0.0),
        (narrowband, 3500, 0.0),
    ],
)
def test_what_is_within_a_band_passes_in_time(band: Callable, frequency: float, gain: float) -> None:
    before = tone(frequency)
    after = band(before)
    assert after.shape == before.shape
    middle = slice(2000, -2000)
    # In time: the tone itself, not one that is late by some samples.
    assert after[middle] == pytest.approx(10 ** (gain / 20) * before[middle], abs=2e-3)


@pytest.mark.parametrize(
    ("band", "frequency"),
    [(telephone, 100), (telephone, 250), (telephone, 3500), (narrowband, 4100), (narrowband, 7000)],
)
def test_what_is_outside_is_gone(band: Callable, frequency: float) -> None:
    assert level_of(band(tone(frequency))[2000:-2000]) < -45


@pytest.mark.parametrize("samples", [16_000, 15_999, 401])
def test_half_the_rate_and_back_keeps_the_length(samples: int) -> None:
    assert len(to_narrow(SPEECH[:samples])) == pytest.approx(samples / 2, abs=1)
    assert from_narrow(to_narrow(SPEECH[:samples]), samples).shape == (samples,)


@pytest.mark.parametrize(("make", "slope"), [(white_noise, 0.0), (pink_noise, -1.0)])
def test_the_colour_of_noise(make: Callable, slope: float) -> None:
    noise = make(np.random.default_rng(0), 10 * RATE)
    assert np.mean(noise**2) == pytest.approx(1, abs=0.15)
    frequencies, power = welch(noise, RATE, nperseg=2048)
    inside = (frequencies > 50) & (frequencies < 7000)
    fitted = np.polyfit(np.log(frequencies[inside]), np.log(power[inside]), 1)[0]
    assert fitted == pytest.approx(slope, abs=0.05)
    assert np.array_equal(noise, make(np.random.default_rng(0), 10 * RATE))


def test_voices_in_babble_are_equally_loud() -> None:
    first, second = tone(500), tone(1000)
    both = babble([0.01 * first, 3 * second, np.zeros(RATE)])
    assert both @ first / RATE == pytest.approx(both @ second / RATE)
    assert np.mean(both**2) == pytest.approx(2)
