"""The metric discriminator: learns to tell PESQ from two magnitude spectra, so that the generator can follow it.

Section on training of the IMSE paper; the idea is MetricGAN's (Fu et al. 2019), the form CMGAN's and MP-SENet's.
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
    """Clean and other compressed magnitude `[B, F, T]` → estimated quality `[B]`, 1 for that of the clean one.

    The target is (PESQ − 1) / 3.5. 181 650 parameters, for any number of bins and of frames from 16 up.
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
        """Estimate the quality of `mag`; `dropout` `[B, HIDDEN]` multiplies the hidden units (`dropout_factors`)."""
        features = self.features(torch.stack([clean_mag, mag], dim=1))  # [B, C, F / 16, T / 16]
        hidden = self.hidden(functional.adaptive_max_pool2d(features, 1).flatten(1))
        if dropout is not None:
            hidden = hidden * dropout
        return torch.sigmoid(self.slope * self.output(self.act(hidden))).squeeze(1)


def dropout_factors(rows: int, seed: int) -> Tensor:
    """0 for units dropped with probability 0.3, 1 / 0.7 for those kept: `[rows, HIDDEN]`.

    Drawn outside of the network and from a seed of their own, so that a crop's do not depend on which process
    works on it, and a resumed run has nothing to restore.
    """
    draws = torch.rand(rows, HIDDEN, generator=torch.Generator().manual_seed(seed))
    return (draws >= DROPOUT).float() / (1 - DROPOUT)
