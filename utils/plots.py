"""Spectrograms, drawn with librosa and matplotlib."""

from __future__ import annotations

from collections.abc import Mapping

import librosa
import numpy as np
from librosa import display
from matplotlib.figure import Figure


def spectrogram_figure(wavs: Mapping[str, np.ndarray], sampling_rate: int) -> Figure:
    """Draw the spectrograms of waveforms `[N]` side by side, on one scale of 80 dB."""
    figure = Figure(figsize=(4 * len(wavs), 3), layout="constrained")
    mags = {name: np.abs(librosa.stft(wav, n_fft=512, hop_length=128)) for name, wav in wavs.items()}
    reference = max(float(mag.max()) for mag in mags.values()) or 1.0
    for axes, (name, mag) in zip(figure.subplots(1, len(wavs), squeeze=False)[0], mags.items(), strict=True):
        decibels = librosa.amplitude_to_db(mag, ref=reference, top_db=None)
        display.specshow(
            decibels, sr=sampling_rate, hop_length=128, x_axis="time", y_axis="linear", ax=axes, vmin=-80, vmax=0
        )
        axes.set_title(name)
    return figure
