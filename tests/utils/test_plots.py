"""Spectrograms: positions of tones, common scales, and signals that break naive code (silent, short, long, NaN)."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the extra report is not installed")
pytest.importorskip("librosa", reason="the extra report is not installed")
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from utils.plots import RANGE_DB, draw_spectrogram, power_spectrogram, spectrogram_figure, spectrogram_image

RATE = 16_000


def tone(hz: float, seconds: float = 1.0, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def levels(axes: Axes) -> np.ndarray:
    """The drawn values in dB."""
    return np.asarray(axes.collections[0].get_array())


def test_tone_is_at_its_time_and_frequency() -> None:
    wav = np.concatenate([np.zeros(RATE // 2, np.float32), tone(2000, 0.5)])
    power = power_spectrogram(wav, RATE, 2 * RATE)
    assert power.shape == (257, 250)  # 8000 Hz / 256 per bin, 8 ms per column
    assert power[:, 94].argmax() == 64
    loud = np.flatnonzero(power[64] > power.max() / 100) * 0.008
    assert (loud[0], loud[-1]) == pytest.approx((0.5, 1.0), abs=0.016)
    image = Image.open(BytesIO(spectrogram_image(power, float(power.max()))))
    assert image.size == (250, 257)
    assert abs(np.asarray(image.convert("L"))[:, 94].astype(int).argmax() - (256 - 64)) <= 2


@pytest.mark.parametrize("seconds", [40.0, 100.0])
def test_long_signals_have_the_mean_power_of_their_frames(seconds: float) -> None:
    wav = np.random.default_rng(0).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)
    power = power_spectrogram(wav, RATE)
    assert power.shape == (257, 1000)
    # The expected power of white noise is its variance times the energy of the window.
    assert power[10:-10].mean() == pytest.approx(0.01 * np.sum(np.hanning(513) ** 2), rel=0.01)


def test_spectrograms_share_time_and_level() -> None:
    figure = spectrogram_figure({"loud": tone(4000), "quiet": tone(4000, 0.5, 0.05)}, RATE, start=2.0)
    loud, quiet, bar = figure.axes
    peaks = [levels(axes).max() for axes in (loud, quiet)]
    assert peaks == pytest.approx([0, -20], abs=0.1)
    assert loud.get_xlim() == quiet.get_xlim() == (2.0, 3.0)
    assert loud.get_ylim() == (0.0, 8.0)
    assert (loud.get_title(), quiet.get_title()) == ("loud", "quiet")
    assert loud.get_ylabel() == "frequency (kHz)"
    assert bar.get_ylim() == (-RANGE_DB, 0)
    figure.savefig(BytesIO(), dpi=30)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("samples", [0, 1, 511, 2000])
def test_short_and_silent_signals_are_drawn(samples: int) -> None:
    figure = spectrogram_figure({"silent": np.zeros(samples), "noise": np.ones(2000)}, RATE)
    assert levels(figure.axes[0]).max() == -RANGE_DB
    axes = Figure().subplots()
    draw_spectrogram(axes, np.zeros(samples), RATE)
    assert levels(axes).max() == -RANGE_DB


def test_values_that_are_not_finite_are_drawn() -> None:
    wav = tone(1000)
    wav[100], wav[200], wav[300] = np.nan, np.inf, -1e30
    assert np.isfinite(power_spectrogram(wav, RATE)).all()
