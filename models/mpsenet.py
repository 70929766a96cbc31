"""MP-SENet: noisy magnitude and phase in, enhanced magnitude and phase out; a transformer with GRUs along both axes.

Lu, Ai and Ling 2025, "Explicit estimation of magnitude and phase spectra in parallel for high-quality speech
enhancement", Neural Networks 189, arXiv 2308.08926, and its release (yxlu-0102/MP-SENet), the long version. Encoder
and decoders are those of IMSE in other sizes (`models.blocks`); between them are four two-stage blocks at one
resolution. The version of Interspeech 2023 (arXiv 2305.13686) has conformers and other decoders and is not included.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from config import MpsenetConfig
from models.blocks import DenseEncoder, MagnitudeDecoder, PhaseDecoder
from models.recurrent import run_rnn
from models.stft import Spectra

BLOCKS = 4
HEADS = 4
GRU_WIDTH = 2
"""Units of the GRU in each direction, as a multiple of the channels."""


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, arXiv 1706.03762): `[S, L, C]` → the same shape.

    Heads are groups of neighbouring channels. There is no position encoding: the GRUs give the order. The keys have no
    bias, which would add the same to all scores of a query, without effect on the softmax.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels)
        self.project = nn.Linear(channels, channels)
        # As in nn.MultiheadAttention, which has query, key and value in one matrix.
        for part in (self.query, self.key, self.value):
            nn.init.uniform_(part.weight, -math.sqrt(1.5 / channels), math.sqrt(1.5 / channels))
        for part in (self.query, self.value, self.project):
            nn.init.zeros_(part.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Compute softmax(q kᵀ / √d) v for each head of d channels, and mix the heads."""
        q, k, v = (part(x).unflatten(2, (HEADS, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        attended = functional.scaled_dot_product_attention(q, k, v)  # [S, heads, L, d]
        return self.project(attended.transpose(1, 2).flatten(2))


class GruFeedForward(nn.Module):
    """Feed-forward network whose first layer is a bidirectional GRU: `[S, L, C]` → the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = GRU_WIDTH * channels
        self.gru = nn.GRU(channels, hidden, batch_first=True, bidirectional=True)
        self.project = nn.Linear(2 * hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Run along the sequences in both directions and project to C channels."""
        return self.project(functional.leaky_relu(run_rnn(self.gru, x)))


class Transformer(nn.Module):
    """Transformer of MP-SENet on S sequences of length L: `[S, L, C]` → the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(channels)
        self.attention = SelfAttention(channels)
        self.feed_forward_norm = nn.LayerNorm(channels)
        self.feed_forward = GruFeedForward(channels)
        self.output_norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Attend and transform with skip connections, then normalise."""
        x = x + self.attention(self.attention_norm(x))
        x = x + self.feed_forward(self.feed_forward_norm(x))
        return self.output_norm(x)


class TwoStageBlock(nn.Module):
    """Two transformers, each along one axis and with a skip connection around it: `[B, T, F, C]` → the same shape.

    The first runs along time and the second along frequency; with `released_axes` the other way round.
    """

    def __init__(self, channels: int, released_axes: bool) -> None:
        super().__init__()
        self.released_axes = released_axes
        self.first = Transformer(channels)
        self.second = Transformer(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both transformers."""
        if self.released_axes:
            x = x + along_frequency(self.first, x)
            return x + along_time(self.second, x)
        x = x + along_time(self.first, x)
        return x + along_frequency(self.second, x)


def along_frequency(transformer: nn.Module, x: Tensor) -> Tensor:
    """Apply `transformer`, `[S, L, C]` → the same shape, to each frame of `[B, T, F, C]`."""
    return transformer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def along_time(transformer: nn.Module, x: Tensor) -> Tensor:
    """Apply `transformer`, `[S, L, C]` → the same shape, to each bin of `[B, T, F, C]`."""
    return along_frequency(transformer, x.transpose(1, 2)).transpose(1, 2)


class MPSENet(nn.Module):
    """Noisy spectra → enhanced spectra, compressed, for any number of frames from 1 up.

    The magnitude is multiplied by an estimated mask, the phase is estimated directly. Attention, GRUs and norms see
    the whole input, so the network is not causal.

    In the release, the transformer that is called `time_transformer` runs along frequency and vice versa, because
    attention and GRU take the first axis of their input as the sequence; and in batches they run on through all items.
    `MpsenetConfig.released_axes` reproduces the former. Here each item of a batch gives the same result as it does
    alone, in the release only in batches of one. Which axes belong to a checkpoint cannot be told from its tensors,
    which have the same names and shapes in both cases: its configuration says so.

    Parameters
    ----------
    config: width, largest value of the mask, and axes of the transformers.
    bins: number of frequency bins F, odd.
    """

    def __init__(self, config: MpsenetConfig, bins: int) -> None:
        super().__init__()
        self.dense_encoder = DenseEncoder(config.channels, causal=True)
        self.blocks = nn.ModuleList(TwoStageBlock(config.channels, config.released_axes) for _ in range(BLOCKS))
        self.magnitude_decoder = MagnitudeDecoder(config.channels, bins, config.beta, causal=True, subpixel=True)
        self.phase_decoder = PhaseDecoder(config.channels, causal=True, subpixel=True)

    def forward(self, noisy: Spectra) -> Spectra:
        """Enhance compressed spectra `[B, F, T]`."""
        x = torch.stack(tuple(noisy), dim=1).transpose(2, 3)  # [B, 2, T, F]
        x = self.dense_encoder(x.contiguous(memory_format=torch.channels_last))
        x = x.permute(0, 2, 3, 1)  # [B, T, (F + 1) / 2, C]
        for block in self.blocks:
            x = block(x)
        x = x.permute(0, 3, 1, 2)
        return Spectra(noisy.mag * self.magnitude_decoder(x), self.phase_decoder(x))
