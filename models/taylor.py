"""Multi-path enhanced Taylor (MET) attention: attention to all positions at linear cost, refined by three other paths.

MUSE paper, section on the MET transformer, after MB-TaylorFormer (Qiu et al. 2023): the exponential of softmax
attention is replaced by its first-order Taylor expansion, exp(q·k) ≈ 1 + q·k, so that the sums over all positions
can be taken before the query is known. Windowed convolutions of queries and keys refine what the expansion loses;
a channel path and a spatial path scale the result.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.transformer import head_blocks, mean_of_map, mean_position, pointwise_depthwise, positions_first

_FLOOR = 1e-6
# Keeps the gradient of the norm of a vector of zeros finite; far below any other norm's last digit.
_TINY = 1e-30


class TaylorAttention(nn.Module):
    """Attention of every time-frequency position to all others: `[B, C, T, F]` → the same shape.

    Heads are groups of neighbouring channels. As in MALA, their products stand as blocks on the diagonal of C×C
    matrices, so that no head is split off.

    Parameters
    ----------
    channels: width C, divisible by the number of heads.
    heads_by_kernel: how many heads are refined with windows of which size; their sum is the number of heads.
    """

    head_mask: Tensor

    def __init__(self, channels: int, heads_by_kernel: Mapping[int, int]) -> None:
        super().__init__()
        heads = sum(heads_by_kernel.values())
        self.head_width = channels // heads
        self.query = pointwise_depthwise(channels, channels)
        self.key = pointwise_depthwise(channels, channels)
        self.value = pointwise_depthwise(channels, channels)
        self.refinement = HeadRefinement(self.head_width, heads_by_kernel)
        self.temperature = nn.Parameter(torch.ones(heads))
        self.channel_path = nn.Conv2d(channels, channels, 1)
        self.spatial_path = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 1, bias=False),
            nn.Conv2d(2 * channels, channels, 3, padding=1, groups=channels, bias=False),
        )
        self.project = nn.Conv2d(channels, channels, 1, bias=False)
        self.register_buffer("head_mask", head_blocks(channels, self.head_width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend, refine and scale."""
        q = self.normalized(positions_first(self.query(x)))  # [B, N, C]
        k = self.normalized(positions_first(self.key(x)))
        attended = self.attend(q, k, positions_first(self.value(x)), x.shape[3])
        refined = self.refinement(q, k, x.shape[2:]) * self.temperature  # [B, N, heads]
        attended = attended.unflatten(2, (-1, self.head_width)) * refined[..., None]
        attended = attended.flatten(2).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)  # [B, C, T, F]
        channels = self.channel_path(mean_of_map(x))
        return self.project(attended * channels * functional.gelu(self.spatial_path(x)))

    def normalized(self, x: Tensor) -> Tensor:
        """Divide `[B, N, C]` by the norm of each head."""
        norm = (x.square() @ self.head_mask + _TINY).sqrt()
        return x / (norm + _FLOOR)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bins: int) -> Tensor:
        """First-order Taylor attention, (Σv + q Σkᵀv) / (N + q Σk), all `[B, N, C]` of a map with F = `bins`."""
        positions = q.shape[1]
        kv = (k.mT @ v) * self.head_mask
        # The denominator of each head, repeated over its channels.
        k_sum = (positions * mean_position(k, bins))[:, :, None] * self.head_mask
        v_sum = (positions * mean_position(v, bins))[:, None]
        return torch.baddbmm(v_sum, q, kv) / (q @ k_sum + (positions + _FLOOR))


class HeadRefinement(nn.Module):
    """Multi-scale refinement: a factor in 0..1 for each head and position, from its queries and keys around it."""

    def __init__(self, head_width: int, heads_by_kernel: Mapping[int, int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(2 * head_width * heads, heads, kernel, padding=kernel // 2, groups=heads)
            for kernel, heads in heads_by_kernel.items()
        )
        self.head_width = head_width
        self.inputs = [2 * head_width * heads for heads in heads_by_kernel.values()]

    def forward(self, q: Tensor, k: Tensor, shape: torch.Size) -> Tensor:
        """Normalised q and k `[B, N, C]` of a map of `shape` (T, F) → `[B, N, heads]`."""
        heads = [x.unflatten(2, (-1, self.head_width)) for x in (q, k)]
        both = torch.cat(heads, dim=3).flatten(2)  # [B, N, 2C], q and k of each head side by side
        both = both.unflatten(1, shape).permute(0, 3, 1, 2)
        groups = both.split(self.inputs, dim=1)
        maps = [conv(group) for conv, group in zip(self.convs, groups, strict=True)]
        return torch.sigmoid(positions_first(torch.cat(maps, dim=1)))
