"""MALA, magnitude-aware linear attention: global context at a cost that grows linearly with the positions.

Linear attention, as usually written, divides by the query's response to the mean key and so forgets the query's
magnitude. MALA (Fan et al. 2025, arXiv 2507.00698; IMSE's equation of it) scales by β = 1 + 1/z and subtracts γ = z
times the mean value instead, with z = q · mean(k) / √d: a larger query gives a sharper distribution. The weights of a
query would still sum to one, were it not for the rotation, which takes away from the mean key but not from z.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.blocks import head_blocks, to_tokens, token_mean

HEAD_WIDTH = 8
ROTARY_BASE = 10_000.0
SCALE = 1 / math.sqrt(HEAD_WIDTH)
Z_FLOOR = 1e-6


class RotaryTables(NamedTuple):
    """Cosine and sine of every position's rotation, each `[T·F, C]`: two neighbouring channels share an angle."""

    cos: Tensor
    sin: Tensor


def rotary_tables(frames: int, bins: int, channels: int, like: Tensor) -> RotaryTables:
    """Rotary position encoding in two dimensions, for feature maps of T frames and F bins.

    In each head the first half of the channels turns with the time index, the second half with the frequency
    index; the angular speeds fall from 1 to 1/10000. `like` gives data type and device.
    """
    half = HEAD_WIDTH // 2
    exponents = torch.linspace(0, 1, half // 2, device=like.device).repeat_interleave(2)
    speeds = ROTARY_BASE**-exponents  # [d/2]
    time = torch.arange(frames, device=like.device)[:, None] * speeds
    frequency = torch.arange(bins, device=like.device)[:, None] * speeds

    def spread(over_time: Tensor, over_frequency: Tensor) -> Tensor:
        head = torch.cat(
            [
                over_time[:, None].expand(frames, bins, half),
                over_frequency[None].expand(frames, bins, half),
            ],
            dim=-1,
        )
        return head.repeat(1, 1, channels // HEAD_WIDTH).flatten(0, 1).to(like.dtype)

    return RotaryTables(spread(time.cos(), frequency.cos()), spread(time.sin(), frequency.sin()))


class MALA(nn.Module):
    """Attention of every time-frequency position to all others: `[B, C, T, F]` → the same shape; C divisible by 8.

    Heads are groups of d = 8 neighbouring channels. Their d×d products stand as blocks on the diagonal of C×C
    matrices, so that each step is one matrix product over the N = T·F positions, and no head is ever split off.
    """

    head_mask: Tensor
    quarter_turn: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gate = nn.Conv2d(channels, channels, 1)
        self.local = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.project = nn.Conv2d(channels, channels, 1)
        turn = torch.block_diag(*[torch.tensor([[0.0, 1.0], [-1.0, 0.0]])] * (channels // 2))
        self.register_buffer("head_mask", head_blocks(channels, HEAD_WIDTH), persistent=False)
        self.register_buffer("quarter_turn", turn, persistent=False)

    def forward(self, x: Tensor, rotary: RotaryTables) -> Tensor:
        """Attend; `rotary` are the tables of this map's T and F."""
        value = self.value(x)
        q = to_tokens(self.features(self.query(x)))  # [B, N, C]
        k = to_tokens(self.features(self.key(x)))
        attended = self.attend(q, k, to_tokens(value), rotary, x.shape[3])
        attended = attended.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)  # [B, C, T, F]
        return self.project((attended + self.local(value)) * self.gate(x))

    def features(self, x: Tensor) -> Tensor:
        """What makes queries and keys positive: ELU + 1."""
        return functional.elu(x) + 1

    def attend(self, q: Tensor, k: Tensor, v: Tensor, rotary: RotaryTables, bins: int) -> Tensor:
        """The attention proper: positive q and k, and v, `[B, N, C]` each of a map with F = `bins`, to `[B, N, C]`."""
        mean_k, mean_v = token_mean(k, bins), token_mean(v, bins)  # [B, C]
        # z of each head, repeated over its d channels: the mean key stands in each column of the head's block.
        z = q @ (mean_k[:, :, None] * self.head_mask * SCALE)  # [B, N, C]
        return self.with_magnitude(self.response(q, k, v, rotary), z, mean_v[:, None])

    def response(self, q: Tensor, k: Tensor, v: Tensor, rotary: RotaryTables) -> Tensor:
        """Each query's response to all positions, mean over j of (q̃ᵢ · k̃ⱼ) vⱼ / √d, q̃ and k̃ rotated: `[B, N, C]`."""
        # Turning x by an angle is x cos + (x R) sin, with R the quarter turn of each pair of channels. R commutes
        # with the tables, which are equal within a pair, so it moves from N positions onto C×C products.
        kv = (k * rotary.cos).mT @ v + self.quarter_turn.mT @ ((k * rotary.sin).mT @ v)
        kv = kv * self.head_mask * (SCALE / q.shape[1])  # [B, C, C]
        return torch.baddbmm((q * rotary.cos) @ kv, q * rotary.sin, self.quarter_turn @ kv)

    def with_magnitude(self, response: Tensor, z: Tensor, mean_v: Tensor) -> Tensor:
        """β · response − γ · mean_v with β = 1 + 1/z and γ = z: what sets MALA apart from linear attention."""
        # Each line is one pass over the positions; β and γ written out would be five.
        scaled = torch.addcdiv(response, response, z + Z_FLOOR)  # β · response = response + response / z
        return torch.addcmul(scaled, z, mean_v, value=-1)  # … − γ · mean_v
