"""Fundamental frequency (F0) as classes: labels of clean speech, and the loss of an estimate.

Class c from 0 to 224 is a period of 256 − c samples, at 16 kHz 62.5 to 500 Hz; class 225 stands for unvoiced frames.
The classes are those of the published pitch estimator of DPCRN-CF's authors; labels and loss are choices of this
project. Frames are those of an STFT with 512 samples and a hop of 256, centred, with zeros beyond the signal.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

FRAME, HOP = 512, 256
SHORTEST_PERIOD, LONGEST_PERIOD = 32, 256
CLASSES = 226
UNVOICED = 225

PERIODICITY = 0.6
"""Least normalised autocorrelation of a voiced frame."""
LEAST_ENERGY = 0.003
"""Least energy of a voiced frame, relative to the largest of the signal."""
QUIET = 1e-6
"""Least energy of the samples a period earlier, relative to the frame. Lower values are raised to this, so that
rounding errors are not amplified."""
NEAR_MAXIMUM = 0.9
"""The period is the shortest whose autocorrelation is a peak of at least this part of the largest."""
TARGET_WIDTH = 2.0
"""Standard deviation of the target distribution, in classes."""


def f0_classes(wav: Tensor) -> Tensor:
    """Return the F0 class of each frame of clean speech `[B, N]`, as integers `[B, ⌈N / 256⌉ + 1]`.

    The autocorrelation of a frame a at lag d is ρ(d) = ⟨a, a_d⟩ / sqrt(|a|² |a_d|²), where a_d are the samples d
    earlier. A frame is voiced if its energy is large enough and the largest ρ is at least `PERIODICITY`. Its period
    is the first peak of ρ with at least `NEAR_MAXIMUM` of the largest ρ; without one it is unvoiced.

    No value is read from the device. Raises `ValueError` if the signal is shorter than a frame.
    """
    samples = wav.shape[-1]
    if samples < FRAME:
        raise ValueError(f"F0 needs at least {FRAME} samples, one frame; this signal has {samples}")
    # One lag more at both ends, to see whether a period of 32 or 256 samples is a peak.
    lags = torch.arange(SHORTEST_PERIOD - 1, LONGEST_PERIOD + 2, device=wav.device)
    history = LONGEST_PERIOD + 1
    padded = functional.pad(wav, (history + HOP, HOP + -samples % HOP))
    seen = padded.unfold(1, history + FRAME, HOP)  # [B, T, 769]
    size = 2 * FRAME  # of the FFTs; products around their ends fall on the zeros before the frame
    frame = torch.fft.rfft(functional.pad(seen[..., history:], (history, 0)), size)
    products = torch.fft.irfft(torch.fft.rfft(seen, size).conj() * frame, size)[..., lags]  # ⟨a, a_d⟩
    energies = FRAME * functional.avg_pool1d(seen.square(), FRAME, stride=1)  # of the samples from 0, …, 257 on
    energy = energies[..., history, None]
    earlier = energies[..., history - lags].maximum(QUIET * energy)
    correlation = products / (energy * earlier).sqrt().clamp_min(torch.finfo(wav.dtype).tiny)

    inner = correlation[..., 1:-1]  # 32 … 256
    largest = inner.amax(dim=-1, keepdim=True)
    peaks = (inner >= correlation[..., :-2]) & (inner >= correlation[..., 2:]) & (inner >= NEAR_MAXIMUM * largest)
    loud = energy > LEAST_ENERGY * energy.amax(dim=1, keepdim=True)
    voiced = loud[..., 0] & (largest[..., 0] >= PERIODICITY) & peaks.any(dim=-1)
    shortest = peaks.byte().argmax(dim=-1)  # the first of the largest values
    return torch.where(voiced, UNVOICED - 1 - shortest, UNVOICED)


def f0_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Compute the cross-entropy of `[B, T, 226]` logits against a narrow distribution around classes `[B, T]`.

    For voiced frames the distribution is a Gaussian over the voiced classes, so that neighbouring periods cost little.
    """
    voiced = torch.arange(UNVOICED, dtype=logits.dtype, device=logits.device)
    target = torch.softmax(-0.5 * ((voiced - classes[..., None]) / TARGET_WIDTH).square(), dim=-1)
    unvoiced = (classes == UNVOICED)[..., None]
    target = torch.cat([target.masked_fill(unvoiced, 0), unvoiced.to(target)], dim=-1)
    return functional.cross_entropy(logits.flatten(0, 1), target.flatten(0, 1))
