"""Draw spectrograms, for TensorBoard, figures and pages.

All spectrograms share one analysis (Hann windows of 32 ms every 8 ms), one range of 80 dB and one color map. The
frequency axis is linear: on a logarithmic one the band above 4 kHz, where much of the noise is, takes a seventh of the
height. Versions of one recording share the reference level, the power at 0 dB, so that they can be compared.

matplotlib and librosa are imported late; `check_plotting` reports a missing one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.util import find_spec
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from cli import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure

RANGE_DB = 80
COLOR_MAP = "magma"
WINDOW_SECONDS = 0.032
HOP_SECONDS = 0.008
MAX_COLUMNS = 1000
MAX_FRAMES = 8 * MAX_COLUMNS
MAX_AMPLITUDE = 1e6
MIN_REFERENCE = 1e-20


def check_plotting() -> None:
    """Raise `UserError` if a library for plotting is not installed."""
    for library in ("matplotlib", "librosa"):
        if find_spec(library) is None:
            raise UserError(f"plots need {library}: pip install -e '.[report]'")


def power_spectrogram(wav: np.ndarray, sampling_rate: int, samples: int | None = None) -> np.ndarray:
    """Return the power spectrogram `[bins, columns]` of `wav` `[N]`, zero-padded at the end to `samples`.

    Any length is valid. There is one column per hop, up to `MAX_COLUMNS`; a column of a longer signal is the mean of
    several frames, and beyond 64 s the hop grows. NaN counts as 0.
    """
    import librosa

    n_fft = 2 * math.ceil(WINDOW_SECONDS * sampling_rate / 2)
    samples = max(samples or len(wav), 1)
    hop = max(round(HOP_SECONDS * sampling_rate), math.ceil(samples / MAX_FRAMES))
    padded = np.zeros(max(samples, n_fft), np.float32)  # librosa warns of signals shorter than n_fft
    wav = wav[:samples]
    padded[: len(wav)] = np.nan_to_num(np.clip(wav, -MAX_AMPLITUDE, MAX_AMPLITUDE))
    frames = math.ceil(samples / hop)
    power = np.abs(librosa.stft(padded, n_fft=n_fft, hop_length=hop))[:, :frames] ** 2
    columns = min(frames, MAX_COLUMNS)
    starts = np.arange(columns) * frames // columns
    return np.add.reduceat(power, starts, axis=1) / np.diff(starts, append=frames)


def to_decibels(power: np.ndarray, reference: float) -> np.ndarray:
    """Convert power to dB relative to `reference`, clipped to `-RANGE_DB` from below; silence is `-RANGE_DB`."""
    return 10 * np.log10(np.maximum(power / max(reference, MIN_REFERENCE), 10 ** (-RANGE_DB / 10)))


def draw_spectrogram(
    axes: Axes,
    wav: np.ndarray,
    sampling_rate: int,
    *,
    reference: float | None = None,
    start: float = 0.0,
    samples: int | None = None,
) -> QuadMesh:
    """Draw the spectrogram of `wav` `[N]` with time in seconds and frequency in kHz; return the mesh.

    `reference` is the power at 0 dB, by default the maximum of this spectrogram; `start` is the time of the first
    sample in seconds; `samples` is the length to which the signal is zero-padded, by default N.
    """
    check_plotting()
    import librosa.display

    power = power_spectrogram(wav, sampling_rate, samples)
    bins, columns = power.shape
    mesh = librosa.display.specshow(
        to_decibels(power, float(power.max()) if reference is None else reference),
        x_coords=start + np.linspace(0, (samples or len(wav)) / sampling_rate, columns + 1),
        y_coords=np.linspace(0, sampling_rate / 2000, bins + 1),
        x_axis="s",
        y_axis="hz",
        ax=axes,
        cmap=COLOR_MAP,
        vmin=-RANGE_DB,
        vmax=0,
        rasterized=True,
    )
    axes.set(xlabel="time (s)", ylabel="frequency (kHz)")
    return mesh


def spectrogram_figure(wavs: Mapping[str, np.ndarray], sampling_rate: int, start: float = 0.0) -> Figure:
    """Return a figure of the spectrograms of `wavs` (title: signal `[N]`), side by side on one dB and time scale.

    0 dB is the loudest point of all signals. The figure is independent of pyplot; `savefig` draws it with Agg.
    Raises `UserError` if a library is missing.
    """
    check_plotting()
    from matplotlib.figure import Figure

    samples = max(map(len, wavs.values()))
    reference = max(float(power_spectrogram(wav, sampling_rate).max()) for wav in wavs.values())
    figure = Figure((1.2 + 3.3 * len(wavs), 3.1), layout="constrained")
    row = figure.subplots(1, len(wavs), sharey=True, squeeze=False)[0]
    mesh: QuadMesh | None = None
    for axes, (name, wav) in zip(row, wavs.items(), strict=True):
        mesh = draw_spectrogram(axes, wav, sampling_rate, reference=reference, start=start, samples=samples)
        axes.set_title(name)
        axes.label_outer()
    assert mesh, "no signals"
    figure.colorbar(mesh, ax=row, pad=0.01, label="dB re loudest point", ticks=range(-RANGE_DB, 1, 20))
    return figure


def spectrogram_image(power: np.ndarray, reference: float) -> bytes:
    """Return a power spectrogram `[bins, columns]` as a WebP image without axes, one pixel per value, 0 Hz below."""
    from matplotlib.image import imsave

    stream = BytesIO()
    decibels = to_decibels(power, reference)
    options = {"quality": 85}  # a third of the size of PNG without a visible difference
    imsave(stream, decibels, -RANGE_DB, 0, COLOR_MAP, format="webp", origin="lower", pil_kwargs=options)
    return stream.getvalue()
