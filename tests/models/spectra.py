"""Random spectra, and checks of networks that map them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from enhance.streaming import StreamingNetwork
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


def assert_stream_equals_whole(network: nn.Module, noisy: Spectra, sizes: list[int], atol: float = 1e-12) -> None:
    """Check the output for pieces of `sizes` frames against that for all at once; the state keeps its shapes."""
    assert isinstance(network, StreamingNetwork)
    with torch.inference_mode():
        state, pieces, shapes = None, list[Tensor](), list[list[torch.Size]]()
        for mag, pha in zip(*(part.split(sizes, dim=2) for part in noisy), strict=True):
            enhanced, state = network.stream(Spectra(mag, pha), state)
            pieces.append(enhanced.complex)
            shapes.append([each.shape for each in state])
            assert shapes[-1] == shapes[0]
        torch.testing.assert_close(torch.cat(pieces, dim=2), network(noisy).complex, rtol=0, atol=atol)
