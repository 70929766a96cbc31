"""MUSE, the predecessor of IMSE: the same network with deformable embeddings and Taylor attention in its stages.

Lin et al. 2024, "MUSE: Flexible Voiceprint Receptive Fields and Multi-Path Fusion Enhanced Taylor Transformer for
U-Net-based Speech Enhancement".
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from config import MuseConfig
from models.blocks import (
    TransformerBlock,
    at_least_float32,
    head_blocks,
    pointwise_depthwise,
    spatial_mean,
    to_tokens,
    token_mean,
)
from models.imse import BLOCKS_PER_STAGE, IMSE, Stage
from models.mala import RotaryTables

KERNEL = 3
TAPS = KERNEL * KERNEL
MAX_OFFSET = 1.0

HEADS_BY_KERNEL = ({3: 1}, {3: 2}, {3: 2, 5: 3, 7: 3})
"""Of each level, the number of heads by the kernel size of their refinement."""

_FLOOR = 1e-6
# Keeps the gradient of the norm of a zero vector finite; far below the rounding error of any other norm.
_TINY = 1e-30


class DeformableConv(nn.Module):
    """Deformable depthwise 3×3 convolution (Dai et al. 2017, arXiv 1703.06211): `[B, C, T, F]` → the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, KERNEL, KERNEL))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        """Convolve; tap k at (t, f) reads x at its regular position plus (offsets[2k], offsets[2k + 1]).

        `offsets` `[B, 18, T, F]` count positions along time and along frequency, taps row by row. Values between
        positions are interpolated bilinearly; the map is surrounded by zeros.
        """
        frames, bins = x.shape[2:]
        offsets = at_least_float32(offsets)  # bfloat16 rounds positions above 128
        along_time, along_frequency = offsets.unflatten(1, (TAPS, 2)).unbind(2)  # [B, 9, T, F]
        steps = torch.arange(KERNEL, device=x.device) - KERNEL // 2
        times = steps.repeat_interleave(KERNEL)[:, None, None] + torch.arange(frames, device=x.device)[:, None]
        frequencies = steps.repeat(KERNEL)[:, None, None] + torch.arange(bins, device=x.device)
        # grid_sample takes (frequency, time), from −1 to 1 between the outer edges of the map.
        grid = torch.stack(
            [
                (along_frequency + frequencies) * (2 / bins) + (1 / bins - 1),
                (along_time + times) * (2 / frames) + (1 / frames - 1),
            ],
            dim=-1,
        )
        taps = functional.grid_sample(x, grid.flatten(1, 2), align_corners=False)  # [B, C, 9·T, F]
        taps = taps.unflatten(2, (TAPS, frames))
        out = torch.einsum("bcktf,ck->bctf", taps, self.weight.flatten(1))
        return out.contiguous(memory_format=torch.channels_last)


class DeformableEmbedding(nn.Module):
    """Deformable convolution with learned offsets of at most one position, 1×1 convolution and Hardswish.

    `[B, C, T, F]` → the same shape.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.offsets = nn.Sequential(
            nn.Conv2d(channels, channels, KERNEL, padding=KERNEL // 2, groups=channels, bias=False),
            nn.Conv2d(channels, 2 * TAPS, 1, bias=False),
        )
        self.deformable = DeformableConv(channels)
        self.mix = nn.Conv2d(channels, channels, 1, bias=False)
        for conv in (*self.offsets, self.mix):
            assert isinstance(conv, nn.Conv2d)
            nn.init.normal_(conv.weight, std=math.sqrt(2 / (math.prod(conv.kernel_size) * conv.out_channels)))

    def forward(self, x: Tensor) -> Tensor:
        """Predict the offsets, convolve, mix the channels."""
        offsets = self.offsets(x).clamp(-MAX_OFFSET, MAX_OFFSET)
        return functional.hardswish(self.mix(self.deformable(x, offsets)))


class TaylorAttention(nn.Module):
    """Multi-head Taylor attention with multi-scale refinement, gated by a channel and a spatial path.

    `[B, C, T, F]` → the same shape. MUSE paper, after MB-TaylorFormer (Qiu et al. 2023, arXiv 2308.14036). Heads are
    groups of neighbouring channels; as in MALA, their products are blocks on the diagonal of C×C matrices.

    Parameters
    ----------
    channels: width C, divisible by the number of heads.
    heads_by_kernel: number of heads by the kernel size of their refinement; their sum is the number of heads.
    """

    head_mask: Tensor

    def __init__(self, channels: int, heads_by_kernel: Mapping[int, int]) -> None:
        super().__init__()
        heads = sum(heads_by_kernel.values())
        self.head_width = channels // heads
        self.query = pointwise_depthwise(channels, channels)
        self.key = pointwise_depthwise(channels, channels)
        self.value = pointwise_depthwise(channels, channels)
        self.refinement = AttentionRefinement(self.head_width, heads_by_kernel)
        self.temperature = nn.Parameter(torch.ones(heads))
        self.channel_path = nn.Conv2d(channels, channels, 1)
        self.spatial_path = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 1, bias=False),
            nn.Conv2d(2 * channels, channels, 3, padding=1, groups=channels, bias=False),
        )
        self.project = nn.Conv2d(channels, channels, 1, bias=False)
        self.register_buffer("head_mask", head_blocks(channels, self.head_width), persistent=False)

    def forward(self, x: Tensor, rotary: RotaryTables | None = None) -> Tensor:
        """Attend, refine and gate; there is no rotary encoding."""
        del rotary
        q = self.normalized(to_tokens(self.query(x)))  # [B, N, C]
        k = self.normalized(to_tokens(self.key(x)))
        attended = self.attention(q, k, to_tokens(self.value(x)))
        refined = self.refinement(q, k, x.shape[2:]) * self.temperature  # [B, N, heads]
        attended = attended.unflatten(2, (-1, self.head_width)) * refined[..., None]
        attended = attended.flatten(2).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)  # [B, C, T, F]
        channel_gate = self.channel_path(spatial_mean(x))
        return self.project(attended * channel_gate * functional.gelu(self.spatial_path(x)))

    def normalized(self, x: Tensor) -> Tensor:
        """Divide the vector of each head in `[B, N, C]` by its norm."""
        norm = (x.square() @ self.head_mask + _TINY).sqrt()
        return x / (norm + _FLOOR)

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Apply first-order Taylor attention, (Σv + q Σkᵀv) / (N + q Σk), to `[B, N, C]` → `[B, N, C]`."""
        positions = q.shape[1]
        kv = (k.transpose(1, 2) @ v) * self.head_mask
        # The denominator of each head, repeated over its channels.
        k_sum = (positions * token_mean(k))[:, :, None] * self.head_mask
        v_sum = (positions * token_mean(v))[:, None]
        return torch.baddbmm(v_sum, q, kv) / (q @ k_sum + (positions + _FLOOR))


class AttentionRefinement(nn.Module):
    """Multi-scale attention refinement (MSAR) of MB-TaylorFormer: a factor in 0..1 for each head and position."""

    def __init__(self, head_width: int, heads_by_kernel: Mapping[int, int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(2 * head_width * heads, heads, kernel, padding=kernel // 2, groups=heads)
            for kernel, heads in heads_by_kernel.items()
        )
        self.head_width = head_width
        self.inputs = [2 * head_width * heads for heads in heads_by_kernel.values()]

    def forward(self, q: Tensor, k: Tensor, shape: torch.Size) -> Tensor:
        """Convolve normalised q and k `[B, N, C]` of a map of `shape` (T, F); return `[B, N, heads]`."""
        heads = [x.unflatten(2, (-1, self.head_width)) for x in (q, k)]
        both = torch.cat(heads, dim=3).flatten(2)  # [B, N, 2C], q and k of each head side by side
        both = both.unflatten(1, shape).permute(0, 3, 1, 2)
        groups = both.split(self.inputs, dim=1)
        maps = [conv(group) for conv, group in zip(self.convs, groups, strict=True)]
        return torch.sigmoid(to_tokens(torch.cat(maps, dim=1)))


def muse_stage(level: int, channels: int) -> Stage:
    """Return a stage of MUSE, a deformable embedding and four blocks with Taylor attention."""
    attentions = (TaylorAttention(channels, HEADS_BY_KERNEL[level]) for _ in range(BLOCKS_PER_STAGE))
    return Stage(DeformableEmbedding(channels), (TransformerBlock(channels, each) for each in attentions))


class MUSE(IMSE):
    """Noisy spectra → enhanced spectra; see `IMSE`."""

    def __init__(self, config: MuseConfig, bins: int) -> None:
        super().__init__(config, bins, muse_stage, rotary=False)
