"""Slow frame-by-frame implementation of the composite measures, which shares no code with `metrics.composite`.

The tests compare both.
"""

from __future__ import annotations

import math

import numpy as np

FRAME, HOP, ORDER, BINS = 480, 120, 16, 512
EPS = 2.0**-52

CENTRES = [50, 120, 190, 260, 330, 400, 470, 540, 617.372, 703.378, 798.717, 904.128, 1020.38, 1148.30]
CENTRES += [1288.72, 1442.54, 1610.70, 1794.16, 1993.93, 2211.08, 2446.71, 2701.97, 2978.04, 3276.17, 3597.63]
WIDTHS = [70.0] * 7 + [77.3724, 86.0056, 95.3398, 105.411, 116.256, 127.914, 140.423, 153.823, 168.154]
WIDTHS += [183.457, 199.776, 217.153, 235.631, 255.255, 276.072, 298.126, 321.465, 346.136]


def frame_pairs(clean: np.ndarray, degraded: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return int(N / 120 − 480 / 120) windowed frames `[480]` of both signals `[N]`."""
    window = np.array([0.5 * (1 - math.cos(2 * math.pi * n / (FRAME + 1))) for n in range(1, FRAME + 1)])
    frames = []
    for index in range(int(len(clean) / HOP - FRAME / HOP)):
        start = index * HOP
        frames.append((clean[start : start + FRAME] * window, degraded[start : start + FRAME] * window))
    return frames


def lowest_95_percent(values: list[float]) -> float:
    kept = sorted(values)[: round(0.95 * len(values))]
    return sum(kept) / len(kept)


def plain_ssnr(clean: np.ndarray, degraded: np.ndarray) -> float:
    ratios = []
    for clean_frame, degraded_frame in frame_pairs(clean, degraded):
        signal = float(np.sum(clean_frame**2))
        noise = float(np.sum((clean_frame - degraded_frame) ** 2))
        ratios.append(min(max(10 * math.log10(signal / (noise + EPS) + EPS), -10.0), 35.0))
    return sum(ratios) / len(ratios)


def lags(frame: np.ndarray) -> list[float]:
    return [float(np.sum(frame[: FRAME - lag] * frame[lag:])) for lag in range(ORDER + 1)]


def toeplitz(first_row: list[float]) -> np.ndarray:
    size = len(first_row)
    return np.array([[first_row[abs(row - column)] for column in range(size)] for row in range(size)])


def prediction_filter(first_row: list[float]) -> np.ndarray:
    """Return the prediction-error filter 1, −a₁, … by solving the normal equations directly."""
    solution = np.linalg.solve(toeplitz(first_row[:-1]), np.array(first_row[1:]))
    return np.concatenate([[1.0], -solution])


def plain_llr(clean: np.ndarray, degraded: np.ndarray) -> float:
    distances = []
    for clean_frame, degraded_frame in frame_pairs(clean, degraded):
        matrix = toeplitz(lags(clean_frame))
        of_clean, of_degraded = prediction_filter(lags(clean_frame)), prediction_filter(lags(degraded_frame))
        distances.append(math.log(float(of_degraded @ matrix @ of_degraded) / float(of_clean @ matrix @ of_clean)))
    return lowest_95_percent(distances)


def band_filters() -> list[np.ndarray]:
    filters = []
    for centre, width in zip(CENTRES, WIDTHS, strict=True):
        bin_of_centre, width_in_bins = math.floor(centre / 8000 * BINS), width / 8000 * BINS
        gains = []
        for number in range(BINS):
            exponent = -11 * ((number - bin_of_centre) / width_in_bins) ** 2
            gain = math.exp(exponent + math.log(min(WIDTHS)) - math.log(width))
            gains.append(gain if gain > math.exp(-30 / (2 * 2.303)) else 0.0)
        filters.append(np.array(gains))
    return filters


def energies(frame: np.ndarray, filters: list[np.ndarray]) -> list[float]:
    power = np.abs(np.fft.fft(frame, 2 * BINS)[:BINS]) ** 2
    return [10 * math.log10(max(float(np.sum(power * gains)), 1e-10)) for gains in filters]


def nearest_peak(energy: list[float], slope: list[float], band: int) -> float:
    stop = band
    if slope[band] > 0:
        while stop < len(slope) and slope[stop] > 0:
            stop += 1
        return energy[stop - 1]
    while stop >= 0 and slope[stop] <= 0:
        stop -= 1
    return energy[stop + 1]


def weights(energy: list[float], slope: list[float]) -> list[float]:
    top = max(energy)
    return [
        20 / (20 + top - energy[band]) * 1 / (1 + nearest_peak(energy, slope, band) - energy[band])
        for band in range(len(slope))
    ]


def plain_wss(clean: np.ndarray, degraded: np.ndarray, divide: bool) -> float:
    filters = band_filters()
    scale = 1 / 32768 if divide else 1.0
    distances = []
    for frames in frame_pairs(clean * scale, degraded * scale):
        energy = [energies(frame, filters) for frame in frames]
        slope = [[bands[i + 1] - bands[i] for i in range(24)] for bands in energy]
        pairs = zip(weights(energy[0], slope[0]), weights(energy[1], slope[1]), strict=True)
        weight = [(one + other) / 2 for one, other in pairs]
        distance = sum(weight[i] * (slope[0][i] - slope[1][i]) ** 2 for i in range(24))
        distances.append(distance / sum(weight))
    return lowest_95_percent(distances)


def plain_composite(pesq: float, llr: float, wss: float, ssnr: float) -> tuple[float, float, float]:
    """Return CSIG, CBAK and COVL."""
    csig = 3.093 - 1.029 * llr + 0.603 * pesq - 0.009 * wss
    cbak = 1.634 + 0.478 * pesq - 0.007 * wss + 0.063 * ssnr
    covl = 1.594 + 0.805 * pesq - 0.512 * llr - 0.007 * wss
    return min(max(csig, 1), 5), min(max(cbak, 1), 5), min(max(covl, 1), 5)
