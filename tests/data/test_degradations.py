"""Degradations and codecs against values derived by hand, filters' specifications and ITU-T G.711."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import welch

from cli import UserError
from data.degradations import (
    CODECS,
    RATE,
    Codec,
    babble,
    clip_share,
    encode_decode,
    find_delay,
    gain_to,
    narrowband,
    pink_noise,
    shift,
    telephone,
    through_codec,
)
from tests.fixtures.signals import level_of, speech_like

SPEECH = 0.3 * speech_like(2)
MU_LAW = CODECS["µ-law (G.711), 8 kHz, 64 kbit/s"]


def tone(frequency: float, samples: int = RATE) -> np.ndarray:
    return np.sin(2 * np.pi * frequency * np.arange(samples) / RATE)


@pytest.mark.parametrize("level", [-60.0, -26.0, 0.0])
def test_gain_to(level: float) -> None:
    scaled = SPEECH * gain_to(SPEECH, level)
    assert level_of(scaled) == pytest.approx(level, abs=1e-9)
    assert gain_to(np.array([0.1, -0.1]), level) == pytest.approx(10 ** ((level + 20) / 20))


def test_clip_share() -> None:
    ramp = np.linspace(-1, 1, 2000)  # magnitudes 1/1999, 3/1999, …, each twice
    assert np.array_equal(clip_share(ramp, 0), ramp)
    for share in (0.01, 0.05, 0.20):
        clipped = clip_share(ramp, share)
        limit = (1999 - (2000 * share - 2)) / 1999
        assert np.max(np.abs(clipped)) == pytest.approx(limit)
        assert np.mean(np.abs(clipped) >= limit - 1e-9) == share
        inside = np.abs(ramp) < limit - 1e-9
        assert np.array_equal(clipped[inside], ramp[inside])


def test_bands() -> None:
    """Gain in dB of tones; without delay where it is above −10 dB."""
    gains = {
        telephone: {100: -99, 250: -99, 300: -6.02, 1000: 0, 3000: 0, 3400: -6.02, 3500: -99},
        narrowband: {100: 0, 3500: 0, 4100: -99, 7000: -99},
    }
    middle = slice(2000, -2000)
    for band, expected in gains.items():
        for frequency, gain in expected.items():
            filtered = band(tone(frequency))[middle]
            if gain < -10:
                assert level_of(filtered) < -45, (band, frequency)
            else:
                assert filtered == pytest.approx(10 ** (gain / 20) * tone(frequency)[middle], abs=2e-3)


def test_pink_noise_falls_by_3_db_an_octave() -> None:
    noise = pink_noise(np.random.default_rng(0), 10 * RATE)
    assert np.mean(noise**2) == pytest.approx(1, abs=0.15)
    frequencies, power = welch(noise, RATE, nperseg=2048)
    inside = (frequencies > 50) & (frequencies < 7000)
    assert np.polyfit(np.log(frequencies[inside]), np.log(power[inside]), 1)[0] == pytest.approx(-1, abs=0.05)


def test_babble_scales_voices_to_equal_power() -> None:
    first, second = tone(500), tone(1000)
    mix = babble([0.01 * first, 3 * second, np.zeros(RATE)])
    assert mix @ first / RATE == pytest.approx(mix @ second / RATE)
    assert np.mean(mix**2) == pytest.approx(2)


def test_mu_law_levels() -> None:
    """ITU-T G.711, table 2: sixteen values in each of eight segments, in steps of 8, 16, … 1024 of 32768."""
    ramp = np.arange(-32_768, 32_768) / 32_768
    values = np.unique(np.rint(np.abs(encode_decode(ramp, MU_LAW)) * 32_768))
    expected = [((2 * step + 33) * 2**segment - 33) * 4 for segment in range(8) for step in range(16)]
    assert values.tolist() == expected
    assert (expected[:3], expected[-1]) == ([0, 8, 16], 32_124)


@pytest.mark.parametrize("name", CODECS)
def test_codecs_have_no_delay(name: str) -> None:
    codec = CODECS[name]
    decoded = through_codec(SPEECH, codec)
    assert decoded.shape == SPEECH.shape
    assert find_delay(SPEECH, decoded) == 0
    expected = narrowband(SPEECH) if codec.rate == 8000 else SPEECH
    assert np.corrcoef(expected, decoded)[0, 1] > 0.8
    assert not np.allclose(decoded, expected, atol=1e-4)


@pytest.mark.parametrize("delay", [-700, -1, 0, 1, 1105])
def test_delays_are_found_and_undone(delay: int) -> None:
    noise = np.random.default_rng(0).standard_normal(9000)
    late = shift(noise, -delay, len(noise))
    assert find_delay(noise, late) == delay
    span = slice(max(-delay, 0), len(noise) - max(delay, 0))
    assert np.array_equal(shift(late, delay, len(noise))[span], noise[span])


def test_codecs_clip_samples_beyond_full_scale() -> None:
    loud = 4 * SPEECH / np.max(np.abs(SPEECH))
    decoded = through_codec(loud, MU_LAW)
    assert decoded @ loud > 0
    assert np.max(np.abs(decoded)) < 1.5


def test_missing_codec() -> None:
    with pytest.raises(UserError, match="WAV MPEG_LAYER_III"):
        through_codec(SPEECH, Codec("WAV", "MPEG_LAYER_III", 16_000, 0.5))
