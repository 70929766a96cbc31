"""MALA, magnitude-aware linear attention: global context at a cost linear in the number of positions.

Fan et al. 2025, "Rectifying Magnitude Neglect in Linear Attention", arXiv 2507.00698, as in the IMSE paper. Linear
attention divides by the query's response to the mean key, which cancels the magnitude of the query. MALA multiplies
by β = 1 + 1/z and subtracts γ = z times the mean value instead, where z = q · mean(k) / √d: a larger query gives a
sharper distribution. The weights of a query sum to 1 up to the rotary encoding, which is applied to q · k but not to z.
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
    """Cosine and sine of the rotation of every position, each `[T·F, C]`; pairs of neighbouring channels are equal."""

    cos: Tensor
    sin: Tensor


def rotary_tables(frames: int, bins: int, channels: int, like: Tensor) -> RotaryTables:
    """Compute two-dimensional rotary position encoding (Su et al. 2021) for maps of T frames and F bins.

    In each head, the first half of the channels is rotated by the time index, the second half by the frequency
    index; angular speeds fall from 1 to 1/10000. `like` gives data type and device.
    """
    one = 1.0
    if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        # Depend on the input, or OpenVINO makes constants of the tables, one for each use: 300 MB.
        one = (like[0, 0, 0, 0].abs() + 1).sign()
    half = HEAD_WIDTH // 2
    exponents = torch.linspace(0, 1, half // 2, device=like.device).repeat_interleave(2)
    speeds = ROTARY_BASE**-exponents  # [d/2]
    time = one * torch.arange(frames, device=like.device)[:, None] * speeds
    frequency = one * torch.arange(bins, device=like.device)[:, None] * speeds

    def table(over_time: Tensor, over_frequency: Tensor) -> Tensor:
        shape = frames, bins, half
        head = torch.cat([over_time[:, None].expand(shape), over_frequency[None].expand(shape)], dim=-1)
        return head.repeat(1, 1, channels // HEAD_WIDTH).flatten(0, 1).to(like.dtype)

    return RotaryTables(table(time.cos(), frequency.cos()), table(time.sin(), frequency.sin()))


class MALA(nn.Module):
    """Attention of every time-frequency position to all others: `[B, C, T, F]` → the same shape; C divisible by 8.

    Heads are groups of d = 8 neighbouring channels. Their d×d products are blocks on the diagonal of C×C matrices, so
    each step is one matrix product over the N = T·F positions and no head is split off.
    """

    head_mask: Tensor
    quarter_turn: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.output_gate = nn.Conv2d(channels, channels, 1)
        # Locally enhanced positional encoding (LePE) of CSWin Transformer (Dong et al. 2022).
        self.lepe = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.project = nn.Conv2d(channels, channels, 1)
        quarter_turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], device="cpu")  # see `head_blocks`
        quarter_turns = torch.block_diag(*[quarter_turn] * (channels // 2))
        self.register_buffer("head_mask", head_blocks(channels, HEAD_WIDTH), persistent=False)
        self.register_buffer("quarter_turn", quarter_turns, persistent=False)

    def forward(self, x: Tensor, rotary: RotaryTables) -> Tensor:
        """Attend; `rotary` holds the tables for T and F of this map."""
        value = self.value(x)
        q = to_tokens(functional.elu(self.query(x)) + 1)  # [B, N, C], positive
        k = to_tokens(functional.elu(self.key(x)) + 1)
        attended = self.attention(q, k, to_tokens(value), rotary)
        attended = attended.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)  # [B, C, T, F]
        return self.project((attended + self.lepe(value)) * self.output_gate(x))

    def attention(self, q: Tensor, k: Tensor, v: Tensor, rotary: RotaryTables) -> Tensor:
        """Apply magnitude-aware linear attention to positive q and k, and v, each `[B, N, C]` → `[B, N, C]`."""
        mean_k, mean_v = token_mean(k), token_mean(v)  # [B, C]
        # z of each head, repeated over its d channels: every column of a head's block is the mean key.
        z = q @ (mean_k[:, :, None] * self.head_mask * SCALE)  # [B, N, C]

        # numerator_i = mean over j of (q̃ᵢ · k̃ⱼ) vⱼ / √d with rotated q̃, k̃. Rotating x gives x cos + (x R) sin, R
        # turning each pair of channels by 90°. R commutes with the tables, which are equal within a pair, so it is
        # applied to C×C products instead of N positions.
        kv = (k * rotary.cos).transpose(1, 2) @ v - self.quarter_turn @ ((k * rotary.sin).transpose(1, 2) @ v)
        kv = kv * self.head_mask * (SCALE / q.shape[1])  # [B, C, C]
        numerator = torch.baddbmm((q * rotary.cos) @ kv, q * rotary.sin, self.quarter_turn @ kv)

        # β · numerator − γ · mean_v with β = 1 + 1/z and γ = z.
        return numerator + numerator / (z + Z_FLOOR) - z * mean_v[:, None]
