"""Waveforms and spectrograms as pictures without axes, which the page draws around them at any width.

The frequency axis is linear: at 16 kHz half of the band lies above 4 kHz, and what a network leaves of the noise, or
takes from fricatives, shows there; a logarithmic one would press it into a seventh of the height. The versions of
a recording share the range of colours, the height of the waveform and both axes, so that they can be compared.
"""

from __future__ import annotations

import math
from io import BytesIO

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap
from matplotlib.image import imsave

RANGE_DB = 80
"""From the loudest place of any version down to what is drawn darkest."""

COLOUR_MAP = "magma"
_COLOUR_STOPS = 9  # between which a browser fades
_WINDOW_SECONDS = 0.032
_HOP_SECONDS = 0.008
_MOST_COLUMNS = 1000  # more than a screen shows
_FRAMES_AT_A_TIME = 2048
_WAVEFORM_HEIGHT = 97  # odd, so that one row is the axis
_WAVEFORM_COLOUR = "#2b5c8a"
_WEBP_QUALITY = 85  # a third of PNG's size without visible difference


def power_columns(signal: np.ndarray, rate: int, seconds: float) -> np.ndarray:
    """Power spectrogram `[bins, columns]` of a signal `[N]` that is followed by silence up to `seconds`.

    Hann windows of 32 ms every 8 ms. Of long signals each column is the mean of several frames.
    """
    window_size = 2 * math.ceil(_WINDOW_SECONDS * rate / 2)
    hop = round(_HOP_SECONDS * rate)
    window = np.hanning(window_size + 1)[:-1].astype(np.float32)
    frames = math.ceil(seconds * rate / hop)
    columns = min(frames, _MOST_COLUMNS)
    padded = np.zeros((frames - 1) * hop + window_size, np.float32)
    there = signal[: len(padded) - window_size // 2]
    padded[window_size // 2 :][: len(there)] = there
    cut = np.lib.stride_tricks.sliding_window_view(padded, window_size)[::hop]
    power = np.zeros((columns, window_size // 2 + 1), np.float32)
    column_of = np.arange(frames) * columns // frames
    for start in range(0, frames, _FRAMES_AT_A_TIME):
        spectra = np.fft.rfft(cut[start : start + _FRAMES_AT_A_TIME] * window)
        np.add.at(power, column_of[start : start + _FRAMES_AT_A_TIME], np.abs(spectra).astype(np.float32) ** 2)
    return (power / np.bincount(column_of)[:, None]).T


def spectrogram_picture(power: np.ndarray, loudest: float) -> bytes:
    """Power `[bins, columns]` as WebP, low frequencies below; `loudest` is the power that is drawn brightest."""
    decibels = 10 * np.log10(np.maximum(power / loudest, 1e-12)) if loudest > 0 else np.full_like(power, -RANGE_DB)
    stream = BytesIO()
    options = {"quality": _WEBP_QUALITY}
    imsave(stream, decibels, -RANGE_DB, 0, COLOUR_MAP, format="webp", origin="lower", pil_kwargs=options)
    return stream.getvalue()


def waveform_picture(signal: np.ndarray, samples: int, peak: float) -> bytes:
    """A signal `[N]` as PNG: what it reaches up and down in each column; `samples` is the width, `peak` the height."""
    columns = min(samples, _MOST_COLUMNS)
    padded = np.zeros(samples, np.float32)
    padded[: len(signal)] = signal
    starts = np.arange(columns) * samples // columns
    middle = _WAVEFORM_HEIGHT // 2
    scale = middle / peak if peak > 0 else 0.0
    top = np.rint(middle + scale * np.maximum.reduceat(padded, starts))
    bottom = np.rint(middle + scale * np.minimum.reduceat(padded, starts))
    rows = np.arange(_WAVEFORM_HEIGHT)[:, None]
    inside = (rows >= bottom) & (rows <= top) | (rows == middle)
    stream = BytesIO()
    imsave(stream, inside, 0, 1, ListedColormap(["white", _WAVEFORM_COLOUR]), format="png", origin="lower")
    return stream.getvalue()


def colour_stops() -> list[str]:
    """The colours of spectrograms from quiet to loud, as CSS knows them."""
    colours = colormaps[COLOUR_MAP](np.linspace(0, 1, _COLOUR_STOPS), bytes=True)
    return [f"rgb({red} {green} {blue})" for red, green, blue, _ in np.asarray(colours).tolist()]
