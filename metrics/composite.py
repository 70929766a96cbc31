"""Composite measures CSIG, CBAK and COVL (Hu and Loizou, 2008), and their parts LLR, WSS and SSNR.

Two variants give different numbers for the same files. `published` is what MP-SENet, CMGAN, MUSE and IMSE report: both
signals are divided by 32768 before the WSS although they already lie in ±1. `loizou` omits the division, as Loizou's
MATLAB code does. Only the WSS is affected: LLR and SSNR do not depend on the level.

All frames are processed at once, in blocks that bound the memory for long signals.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from metrics.signals import ScoreError

Variant = Literal["published", "loizou"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)

FRAME_SIZE = 480  # 30 ms at 16 kHz
HOP_SIZE = 120
BLOCK_FRAMES = 2048  # 15 s of signal, about 30 MB of spectra

SSNR_LIMITS = (-10.0, 35.0)  # dB, per frame
LPC_ORDER = 16
KEPT_SHARE = 0.95  # LLR and WSS ignore the worst 5 % of the frames

WSS_FFT_SIZE = 1024
PUBLISHED_WSS_SCALE = 1 / 32768
POWER_FLOOR = 1e-10
FILTER_FLOOR = np.exp(-30 / (2 * 2.303))  # smaller filter values are set to 0
FILTER_STEEPNESS = 11.0
K_MAX = 20.0  # constants of Klatt's weights, in dB
K_LOC_MAX = 1.0

_EPS = float(np.finfo(np.float64).eps)

BAND_CENTRES = (
    *(50, 120, 190, 260, 330, 400, 470, 540, 617.372, 703.378, 798.717, 904.128, 1020.38, 1148.30, 1288.72),
    *(1442.54, 1610.70, 1794.16, 1993.93, 2211.08, 2446.71, 2701.97, 2978.04, 3276.17, 3597.63),
)
"""Centre frequencies of the 25 critical bands in Hz."""

BAND_WIDTHS = (
    *(70, 70, 70, 70, 70, 70, 70, 77.3724, 86.0056, 95.3398, 105.411, 116.256, 127.914, 140.423, 153.823),
    *(168.154, 183.457, 199.776, 217.153, 235.631, 255.255, 276.072, 298.126, 321.465, 346.136),
)
"""Bandwidths of the 25 critical bands in Hz."""


class Composite(NamedTuple):
    """Predicted opinion scores from 1 to 5: signal distortion, background intrusiveness, overall quality."""

    csig: float
    cbak: float
    covl: float


def composite(pesq: float, llr: float, wss: float, ssnr: float) -> Composite:
    """Combine the parts with Hu and Loizou's regressions, clipped to [1, 5]. NaN in a part gives NaN."""
    csig = 3.093 - 1.029 * llr + 0.603 * pesq - 0.009 * wss
    cbak = 1.634 + 0.478 * pesq - 0.007 * wss + 0.063 * ssnr
    covl = 1.594 + 0.805 * pesq - 0.512 * llr - 0.007 * wss
    return Composite(*(float(np.clip(score, 1, 5)) for score in (csig, cbak, covl)))


def ssnr(clean: np.ndarray, degraded: np.ndarray) -> float:
    """Return the segmental SNR in dB of `degraded` `[N]` against `clean` `[N]`, both at 16 kHz.

    It is the mean over frames, each limited to [−10, 35] dB. Raises `ScoreError` for fewer than 600 samples, as `llr`
    and `wss` do.
    """
    return float(np.mean(_per_frame(_ssnr_of_frames, clean, degraded)))


def llr(clean: np.ndarray, degraded: np.ndarray) -> float:
    """Return the log-likelihood ratio between the LPC envelopes of two signals `[N]` at 16 kHz; 0 if equal."""
    return _mean_of_lowest(_per_frame(_llr_of_frames, clean, degraded))


def wss(clean: np.ndarray, degraded: np.ndarray, variant: Variant = "published") -> float:
    """Return the weighted spectral slope distance (Klatt, 1982) of signals `[N]` in ±1 at 16 kHz; 0 if equal."""
    scale = PUBLISHED_WSS_SCALE if variant == "published" else 1.0
    return _mean_of_lowest(_per_frame(_wss_of_frames, clean * scale, degraded * scale))


def _per_frame(
    measure: Callable[[np.ndarray, np.ndarray], np.ndarray], clean: np.ndarray, degraded: np.ndarray
) -> np.ndarray:
    """Return `measure(clean_frames, degraded_frames)` of all frames; it maps windowed frames `[B, 480]` to `[B]`."""
    frames = (len(clean) - FRAME_SIZE) // HOP_SIZE
    if frames < 1:
        raise ScoreError(f"no frame of 30 ms fits into {len(clean)} samples")
    window = 0.5 * (1 - np.cos(2 * np.pi * np.arange(1, FRAME_SIZE + 1) / (FRAME_SIZE + 1)))
    clean_frames, degraded_frames = (
        sliding_window_view(signal, FRAME_SIZE)[::HOP_SIZE][:frames] for signal in (clean, degraded)
    )
    blocks = [slice(start, start + BLOCK_FRAMES) for start in range(0, frames, BLOCK_FRAMES)]
    return np.concatenate([measure(clean_frames[block] * window, degraded_frames[block] * window) for block in blocks])


def _mean_of_lowest(distances: np.ndarray) -> float:
    return float(np.mean(np.sort(distances)[: round(KEPT_SHARE * len(distances))]))


def _ssnr_of_frames(clean: np.ndarray, degraded: np.ndarray) -> np.ndarray:
    signal = np.sum(clean**2, axis=1)
    noise = np.sum((clean - degraded) ** 2, axis=1)
    return np.clip(10 * np.log10(signal / (noise + _EPS) + _EPS), *SSNR_LIMITS)


def _llr_of_frames(clean: np.ndarray, degraded: np.ndarray) -> np.ndarray:
    clean_lags = _autocorrelation(clean)
    clean_error = _prediction_error(_lpc(clean_lags), clean_lags)
    degraded_error = _prediction_error(_lpc(_autocorrelation(degraded)), clean_lags)
    # Limit the errors to the resolution of float64: silence and perfectly predicted frames have an error of 0.
    floor = np.maximum(clean_lags[:, 0] * _EPS, np.finfo(np.float64).tiny)
    return np.log(np.maximum(degraded_error, floor) / np.maximum(clean_error, floor))


def _autocorrelation(frames: np.ndarray) -> np.ndarray:
    """Return lags 0 to 16, `[B, 17]`, of frames `[B, n]`."""
    length = frames.shape[1]
    lags = range(LPC_ORDER + 1)
    return np.stack([np.einsum("bn,bn->b", frames[:, : length - lag], frames[:, lag:]) for lag in lags], axis=1)


def _lpc(lags: np.ndarray) -> np.ndarray:
    """Return prediction-error filters `[B, 17]` (first tap 1) of lags `[B, 17]` by the Levinson–Durbin recursion.

    The filter of a silent frame is 1, 0, 0, ….
    """
    filters = np.zeros_like(lags)
    filters[:, 0] = 1
    error = lags[:, 0].copy()
    for order in range(1, LPC_ORDER + 1):
        mismatch = np.einsum("bk,bk->b", filters[:, :order], lags[:, order:0:-1])
        reflection = np.divide(-mismatch, error, out=np.zeros_like(error), where=error > 0)
        filters[:, 1 : order + 1] += reflection[:, None] * filters[:, order - 1 :: -1][:, :order]
        error *= 1 - reflection**2
    return filters


def _prediction_error(filters: np.ndarray, lags: np.ndarray) -> np.ndarray:
    """Return `a R aᵀ` of filters a `[B, 17]`, with R the Toeplitz matrix of lags `[B, 17]`."""
    filter_lags = _autocorrelation(filters)
    return 2 * np.einsum("bk,bk->b", filter_lags, lags) - filter_lags[:, 0] * lags[:, 0]


def _wss_of_frames(clean: np.ndarray, degraded: np.ndarray) -> np.ndarray:
    # Gaussian-shaped critical-band filters `[25, 512]` of equal area over the lower half of the FFT bins.
    bins = WSS_FFT_SIZE // 2
    hz_per_bin = 8000 / bins
    centres = np.floor(np.array(BAND_CENTRES) / hz_per_bin)[:, None]
    widths = np.array(BAND_WIDTHS)[:, None]
    distance = (np.arange(bins) - centres) / (widths / hz_per_bin)
    filters = np.exp(-FILTER_STEEPNESS * distance**2 + np.log(widths.min()) - np.log(widths))
    filters = np.where(filters > FILTER_FLOOR, filters, 0.0)
    slopes, weights = [], []
    for frames in (clean, degraded):
        power = np.abs(np.fft.rfft(frames, WSS_FFT_SIZE)[:, :bins]) ** 2
        energy = 10 * np.log10(np.maximum(power @ filters.T, POWER_FLOOR))
        slopes.append(np.diff(energy))
        weights.append(_klatt_weights(energy, slopes[-1]))
    weight = (weights[0] + weights[1]) / 2
    return np.sum(weight * (slopes[0] - slopes[1]) ** 2, axis=1) / np.sum(weight, axis=1)


def _klatt_weights(energy: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """Return weights `[B, 24]` of band energies `[B, 25]` in dB, largest near the maximum and near spectral peaks."""
    below_top = np.max(energy, axis=1, keepdims=True) - energy[:, :-1]
    # Energy of the peak nearest to each band. Uphill, the reference code stops one band before the peak; the published
    # numbers contain this error.
    rising = slope > 0
    bands = slope.shape[1]
    uphill, downhill = np.empty_like(slope), np.empty_like(slope)
    uphill[:, -1] = energy[:, bands - 1]
    for band in range(bands - 2, -1, -1):
        uphill[:, band] = np.where(rising[:, band + 1], uphill[:, band + 1], energy[:, band])
    downhill[:, 0] = energy[:, 0]
    for band in range(1, bands):
        downhill[:, band] = np.where(rising[:, band - 1], energy[:, band], downhill[:, band - 1])
    below_peak = np.where(rising, uphill, downhill) - energy[:, :-1]
    return K_MAX / (K_MAX + below_top) * K_LOC_MAX / (K_LOC_MAX + below_peak)
