"""MUSE transcribed plainly with all parts and names of the authors' release, to compare `models.muse` with.

It shares the U-Net with `tests.reference.imse`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from config import Config, ImseConfig, MuseConfig, UNetConfig
from tests.reference.imse import BiasFreeLayerNorm, FeedForward, ReferenceIMSE, TransformerUNet

HEADS = (1, 2, 8)
WINDOWS = {1: {3: 1}, 2: {3: 2}, 8: {3: 2, 5: 3, 7: 3}}
"""By number of heads: the number of heads by the kernel size of their refinement."""


class DeformableConv(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, 1, 3, 3) / 3)

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        _, _, height, width = x.shape
        rows = torch.arange(height, dtype=x.dtype, device=x.device)[:, None]
        columns = torch.arange(width, dtype=x.dtype, device=x.device)[None, :]
        out = torch.zeros_like(x)
        for tap in range(9):
            i, j = divmod(tap, 3)
            y = rows + i - 1 + offsets[:, 2 * tap]
            z = columns + j - 1 + offsets[:, 2 * tap + 1]
            grid = torch.stack([2 * z / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=-1)
            read = functional.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
            out = out + self.weight[:, 0, i, j, None, None] * read
        return out


class DeformableEmbedding(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.offset_generator = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.Conv2d(channels, 18, 1, bias=False),
        )
        self.dcn = DeformableConv(channels)
        self.pwconv = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        offsets = self.offset_generator(x).clamp(-1, 1)
        return functional.hardswish(self.pwconv(self.dcn(x, offsets)))


class Refinement(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.windows = WINDOWS[heads]
        self.conv_list = nn.ModuleList(
            nn.Conv2d(2 * width * count, count, window, padding=window // 2, groups=count)
            for window, count in self.windows.items()
        )

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        """q, k `[B, heads, c, T, F]` → `[B, heads, T, F]`."""
        both = torch.cat([q, k], dim=2)  # [B, heads, 2c, T, F]
        maps: list[Tensor] = []
        first = 0
        for conv, count in zip(self.conv_list, self.windows.values(), strict=True):
            maps.append(conv(both[:, first : first + count].flatten(1, 2)))
            first += count
        return torch.sigmoid(torch.cat(maps, dim=1))


class TaylorAttention(nn.Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1))
        self.dwconv = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 1, bias=False),
            nn.Conv2d(2 * channels, channels, 3, padding=1, groups=channels, bias=False),
        )
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.qkv_dwconv = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=False)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=False)
        self.refine_att = Refinement(channels // heads, heads)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, frames, bins = x.shape
        q, k, v = (
            part.reshape(batch, self.heads, -1, frames, bins) for part in self.qkv_dwconv(self.qkv(x)).chunk(3, dim=1)
        )
        q, k = (part / (part.norm(dim=2, keepdim=True) + 1e-6) for part in (q, k))
        refined = self.refine_att(q, k)[:, :, None]
        q, k, v = (part.flatten(3) for part in (q, k, v))  # [B, heads, c, N]
        kv = k @ v.transpose(2, 3)  # [B, heads, c, c]
        numerator = v.sum(dim=3, keepdim=True) + kv.transpose(2, 3) @ q
        # As released: the same value for each of a head's outputs.
        denominator = frames * bins + k.sum(dim=3, keepdim=True).expand_as(kv).transpose(2, 3) @ q + 1e-6
        out = numerator / denominator * self.temperature
        out = (out.unflatten(3, (frames, bins)) * refined).reshape(batch, channels, frames, bins)
        return self.project_out(out * self.sca(x) * functional.gelu(self.dwconv(x)))


class TransformerLayer(nn.Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm1 = BiasFreeLayerNorm(channels)
        self.attn = TaylorAttention(channels, heads)
        self.norm2 = BiasFreeLayerNorm(channels)
        self.ffn = FeedForward(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class ReferenceMUSE(ReferenceIMSE):
    """`(mag, pha)` `[B, F, T]` → enhanced `(mag, pha)`; T divisible by 4, and above 4."""

    def __init__(self, channels: int = 16, bins: int = 256) -> None:
        super().__init__(channels, bins)
        self.TCFTransformer = TransformerUNet(
            channels, DeformableEmbedding, lambda width: TransformerLayer(width, HEADS[width // channels - 1])
        )


def has_reference_network(config: Config) -> bool:
    """Return whether there is a plain transcription of the configured network."""
    return isinstance(config.model, ImseConfig | MuseConfig)


def plain_network(config: Config) -> ReferenceIMSE:
    """Return the plain transcription of the configured IMSE or MUSE with random weights."""
    assert has_reference_network(config) and isinstance(config.model, UNetConfig)
    kinds = {"imse": ReferenceIMSE, "muse": ReferenceMUSE}
    return kinds[config.model.name](config.model.channels, config.stft.bins)
