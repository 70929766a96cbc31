"""MP-SENet (long version) transcribed plainly, with the tensor names and the axes of the authors' release.

Attention and GRU are PyTorch's own modules. The release leaves them in their default mode, which takes the first axis
as the sequence; `batch_first` makes them run along the axis that the transformer's name says.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


def norm_act(channels: int) -> list[nn.Module]:
    return [nn.InstanceNorm2d(channels, affine=True), nn.PReLU(channels)]


class DenseBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dense_block = nn.ModuleList(
            nn.Sequential(
                nn.ZeroPad2d((1, 1, 2**i, 0)),
                nn.Conv2d(channels * (i + 1), channels, (2, 3), dilation=(2**i, 1)),
                *norm_act(channels),
            )
            for i in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        skip = x
        for layer in self.dense_block:
            x = layer(skip)
            skip = torch.cat([x, skip], dim=1)
        return x


class DenseEncoder(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dense_conv_1 = nn.Sequential(nn.Conv2d(2, channels, 1), *norm_act(channels))
        self.dense_block = DenseBlock(channels)
        halve = nn.Conv2d(channels, channels, (1, 3), stride=(1, 2), padding=(0, 1))
        self.dense_conv_2 = nn.Sequential(halve, *norm_act(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.dense_conv_2(self.dense_block(self.dense_conv_1(x)))


class FeedForward(nn.Module):
    def __init__(self, channels: int, batch_first: bool) -> None:
        super().__init__()
        self.gru = nn.GRU(channels, 2 * channels, batch_first=batch_first, bidirectional=True)
        self.linear = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(functional.leaky_relu(self.gru(x)[0], 0.01))


class Transformer(nn.Module):
    def __init__(self, channels: int, batch_first: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = nn.MultiheadAttention(channels, 4, batch_first=batch_first)
        self.norm2 = nn.LayerNorm(channels)
        self.ffn = FeedForward(channels, batch_first)
        self.norm3 = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y)[0]
        x = x + self.ffn(self.norm2(x))
        return self.norm3(x)


class TwoStageBlock(nn.Module):
    def __init__(self, channels: int, batch_first: bool) -> None:
        super().__init__()
        self.time_transformer = Transformer(channels, batch_first)
        self.freq_transformer = Transformer(channels, batch_first)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, frames, bins = x.shape
        x = x.permute(0, 3, 2, 1).reshape(batch * bins, frames, channels)
        x = self.time_transformer(x) + x
        x = x.reshape(batch, bins, frames, channels).permute(0, 2, 1, 3).reshape(batch * frames, bins, channels)
        x = self.freq_transformer(x) + x
        return x.reshape(batch, frames, bins, channels).permute(0, 3, 1, 2)


class SubPixelConv(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, (1, 3), padding=(0, 1))

    def forward(self, x: Tensor) -> Tensor:
        even, odd = self.conv(x).chunk(2, dim=1)
        return torch.stack([even, odd], dim=4).flatten(3)


class LearnableSigmoid(nn.Module):
    def __init__(self, bins: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.ones(bins, 1))

    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * torch.sigmoid(self.slope * x)


class MaskDecoder(nn.Module):
    def __init__(self, channels: int, bins: int) -> None:
        super().__init__()
        self.dense_block = DenseBlock(channels)
        self.mask_conv = nn.Sequential(SubPixelConv(channels), *norm_act(channels), nn.Conv2d(channels, 1, (1, 2)))
        self.lsigmoid = LearnableSigmoid(bins)

    def forward(self, x: Tensor) -> Tensor:
        return self.lsigmoid(self.mask_conv(self.dense_block(x)).squeeze(1).transpose(1, 2))


class PhaseDecoder(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dense_block = DenseBlock(channels)
        self.phase_conv = nn.Sequential(SubPixelConv(channels), *norm_act(channels))
        self.phase_conv_r = nn.Conv2d(channels, 1, (1, 2))
        self.phase_conv_i = nn.Conv2d(channels, 1, (1, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.phase_conv(self.dense_block(x))
        return torch.atan2(self.phase_conv_i(x), self.phase_conv_r(x)).squeeze(1).transpose(1, 2)


class ReferenceMPSENet(nn.Module):
    """`(mag, pha)` `[B, F, T]` → enhanced `(mag, pha)`; without `batch_first`, items of a batch are mixed."""

    def __init__(self, channels: int = 64, bins: int = 201, batch_first: bool = False) -> None:
        super().__init__()
        self.dense_encoder = DenseEncoder(channels)
        self.TSTransformer = nn.ModuleList(TwoStageBlock(channels, batch_first) for _ in range(4))
        self.mask_decoder = MaskDecoder(channels, bins)
        self.phase_decoder = PhaseDecoder(channels)

    def forward(self, mag: Tensor, pha: Tensor) -> tuple[Tensor, Tensor]:
        x = self.dense_encoder(torch.stack([mag, pha], dim=1).transpose(2, 3))
        for block in self.TSTransformer:
            x = block(x)
        return mag * self.mask_decoder(x), self.phase_decoder(x)


def set_weights_by_rule(network: ReferenceMPSENet) -> None:
    """Set weights that depend only on a tensor's shape and its position in the state dict."""
    prelus = {f"{name}.weight" for name, part in network.named_modules() if isinstance(part, nn.PReLU)}
    for index, (name, tensor) in enumerate(network.state_dict().items()):
        z = np.random.RandomState(index).standard_normal(tuple(tensor.shape))
        if name.endswith("slope"):
            z = 1 + 0.2 * z
        elif tensor.ndim > 1:
            z /= np.sqrt(z[0].size)
        elif "bias" in name:
            z *= 0.1
        else:
            z = 0.25 + 0.05 * z if name in prelus else 1 + 0.1 * z
        tensor.copy_(torch.from_numpy(z.astype(np.float32)))
