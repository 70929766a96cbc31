"""Random spectra, and the difference of phases."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.stft import Spectra


def random_spectra(
    batch: int, frames: int, bins: int = 256, dtype: torch.dtype = torch.float64, level: float = 1
) -> Spectra:
    """Return uniform magnitudes in 0..level and phases in ±π, each `[batch, bins, frames]`."""
    generator = torch.Generator().manual_seed(1)
    mag = torch.rand(batch, bins, frames, generator=generator, dtype=dtype) * level
    return Spectra(mag, (torch.rand(batch, bins, frames, generator=generator, dtype=dtype) * 2 - 1) * math.pi)


def wrapped(difference: Tensor) -> Tensor:
    """Return the absolute value of a difference of angles, modulo 2π."""
    return (difference - 2 * math.pi * torch.round(difference / (2 * math.pi))).abs()
