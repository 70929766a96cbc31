"""The transformer block of IMSE and MUSE, around an attention of either."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

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
        self.gate = pointwise_depthwise(channels, hidden)
        self.value = pointwise_depthwise(channels, hidden)
        self.project = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """GELU(gate) · value, back to C channels."""
        return self.project(functional.gelu(self.gate(x)) * self.value(x))


def pointwise_depthwise(channels: int, hidden: int) -> nn.Sequential:
    """A 1×1 convolution, then a depthwise 3×3 one: `[B, C, T, F]` → `[B, hidden, T, F]`."""
    return nn.Sequential(
        nn.Conv2d(channels, hidden, 1, bias=False),
        nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False),
    )


class TransformerBlock(nn.Module):
    """Attention and the feed-forward network, each behind a norm and beside a skip connection.

    `[B, C, T, F]` → the same shape; `attention` maps `[B, C, T, F]`, and the positions where it needs them, likewise.
    """

    def __init__(self, channels: int, attention: nn.Module) -> None:
        super().__init__()
        self.attention_norm = ChannelNorm(channels)
        self.attention = attention
        self.feed_forward_norm = ChannelNorm(channels)
        self.feed_forward = GatedFeedForward(channels)

    def forward(self, x: Tensor, *positions: object) -> Tensor:
        """Global context first, then each position by itself and its neighbours."""
        x = x + self.attention(self.attention_norm(x), *positions)
        return x + self.feed_forward(self.feed_forward_norm(x))


def positions_first(x: Tensor) -> Tensor:
    """A map `[B, C, T, F]` as its N = T·F positions `[B, N, C]`; in channels-last memory this copies nothing."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def mean_position(x: Tensor, bins: int) -> Tensor:
    """The mean over the positions `[B, N, C]` of a map with F = `bins`, first in each frame, then over them: `[B, C]`.

    onnxruntime adds up a dimension one by one: of all positions at once, that would cost two digits.
    """
    return x.unflatten(1, (-1, bins)).mean(dim=2).mean(dim=1)


def mean_of_map(x: Tensor) -> Tensor:
    """The mean of each channel of a map, likewise: `[B, C, T, F]` → `[B, C, 1, 1]`."""
    return mean_position(positions_first(x), x.shape[3])[:, :, None, None]


def head_blocks(channels: int, head_width: int) -> Tensor:
    """`[C, C]`, 1 where two channels belong to one head, which is `head_width` neighbouring channels, else 0.

    Multiplied by it, one C×C matrix has the products of all heads as blocks on its diagonal.
    """
    return torch.block_diag(*[torch.ones(head_width, head_width)] * (channels // head_width))
