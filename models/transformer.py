"""The stage that IMSE is built of: an IDConv and four transformer blocks around MALA."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.idconv import IDConv
from models.mala import MALA, RotaryTables

BLOCKS_PER_STAGE = 4
EXPANSION = 2.66
_NORM_EPS = 1e-5


class ChannelNorm(nn.Module):
    """Divide each position by the deviation of its channels: `[B, C, T, F]` → the same shape.

    The deviation is around the mean, but the mean itself stays in: x / sqrt(var(x) + 1e-5) · weight.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over the channel axis."""
        # Written out, since torch.var over a short axis is an order of magnitude slower.
        centred = x - x.mean(dim=1, keepdim=True)
        variance = centred.square().mean(dim=1, keepdim=True)
        return x * torch.rsqrt(variance + _NORM_EPS) * self.weight


class GatedFeedForward(nn.Module):
    """Two branches of 1×1 and depthwise 3×3 convolutions, one gating the other: `[B, C, T, F]` → the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = int(EXPANSION * channels)
        self.gate = _pointwise_depthwise(channels, hidden)
        self.value = _pointwise_depthwise(channels, hidden)
        self.project = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """GELU(gate) · value, back to C channels."""
        return self.project(functional.gelu(self.gate(x)) * self.value(x))


def _pointwise_depthwise(channels: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, hidden, 1, bias=False),
        nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False),
    )


class TransformerBlock(nn.Module):
    """MALA and the feed-forward network, each behind a norm and beside a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention_norm = ChannelNorm(channels)
        self.attention = MALA(channels)
        self.feed_forward_norm = ChannelNorm(channels)
        self.feed_forward = GatedFeedForward(channels)

    def forward(self, x: Tensor, rotary: RotaryTables) -> Tensor:
        """`[B, C, T, F]` → the same shape."""
        x = x + self.attention(self.attention_norm(x), rotary)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Stage(nn.Module):
    """IDConv, then four transformer blocks, and the stage's input added: `[B, C, T, F]` → the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.idconv = IDConv(channels)
        self.blocks = nn.ModuleList(TransformerBlock(channels) for _ in range(BLOCKS_PER_STAGE))

    def forward(self, x: Tensor, rotary: RotaryTables) -> Tensor:
        """Local patterns first, global context after."""
        y = self.idconv(x)
        for block in self.blocks:
            y = block(y, rotary)
        return y + x
