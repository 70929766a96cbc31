"""Metric discriminator: estimates PESQ from two magnitude spectra, as a differentiable loss for the generator.

IMSE paper, section on training. The idea is from MetricGAN (Fu et al. 2019), the network from CMGAN and MP-SENet.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

WIDTH = 16
HIDDEN = 64
DROPOUT = 0.3


class MetricDiscriminator(nn.Module):
    """Clean and enhanced compressed magnitude `[B, F, T]` → estimated quality `[B]` in 0..1.

    The target is (PESQ − 1) / 3.5; it is 1 for clean speech. 181 650 parameters, for any number of bins and frames
    from 16 up.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = [2, WIDTH, 2 * WIDTH, 4 * WIDTH, 8 * WIDTH]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [
                spectral_norm(nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=False)),
                nn.InstanceNorm2d(outputs, affine=True),
                nn.PReLU(outputs),
            ]
        self.features = nn.Sequential(*layers)
        self.hidden = spectral_norm(nn.Linear(8 * WIDTH, HIDDEN))
        self.act = nn.PReLU(HIDDEN)
        self.output = spectral_norm(nn.Linear(HIDDEN, 1))
        self.slope = nn.Parameter(torch.ones(1))

    def forward(self, clean_mag: Tensor, mag: Tensor, dropout: Tensor | None = None) -> Tensor:
        """Estimate the quality of `mag`; the hidden units are multiplied by `dropout` `[B, HIDDEN]` if given."""
        features = self.features(torch.stack([clean_mag, mag], dim=1))  # [B, C, F / 16, T / 16]
        hidden = self.hidden(functional.adaptive_max_pool2d(features, 1).flatten(1))
        if dropout is not None:
            hidden = hidden * dropout
        return torch.sigmoid(self.slope * self.output(self.act(hidden))).squeeze(1)


def dropout_factors(rows: int, seed: int) -> Tensor:
    """Draw dropout factors `[rows, HIDDEN]`: 0 with probability 0.3, else 1 / 0.7.

    They depend on the seed only, not on the global random state, so that they are the same in any process and after
    a resume.
    """
    draws = torch.rand(rows, HIDDEN, generator=torch.Generator().manual_seed(seed))
    return (draws >= DROPOUT).float() / (1 - DROPOUT)
