"""IMSE: noisy magnitude and phase in, enhanced magnitude and phase out.

Tang, Qin and Li 2025, "IMSE: Efficient U-Net-based Speech Enhancement using Inception Depthwise Convolution and
Amplitude-Aware Linear Attention", arXiv 2511.14515. From top to bottom as in the paper's figure: a stage, the U-Net of
three levels, and the network around it. MUSE (`models.muse`) is the same network with other stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from config import UNetConfig
from models.blocks import DenseEncoder, MagnitudeDecoder, PhaseDecoder, TransformerBlock
from models.idconv import IDConv
from models.mala import MALA, RotaryTables, rotary_tables
from models.stft import Spectra

LEVELS = 3
BLOCKS_PER_STAGE = 4

FRAME_MULTIPLE = 4
"""The U-Net halves the time axis twice."""


class Stage(nn.Module):
    """Local convolution, transformer blocks, and a skip connection around both: `[B, C, T, F]` → the same shape."""

    def __init__(self, local: nn.Module, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.local = local
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, rotary: RotaryTables | None = None) -> Tensor:
        """Apply the stage; `rotary` holds the tables for this level, None for attention without rotary encoding."""
        y = self.local(x)
        for block in self.blocks:
            y = block(y, rotary)
        return y + x


def imse_stage(level: int, channels: int) -> Stage:
    """Return a stage of IMSE, IDConv and four blocks with MALA; the same on every level."""
    del level
    return Stage(IDConv(channels), (TransformerBlock(channels, MALA(channels)) for _ in range(BLOCKS_PER_STAGE)))


class Downsample(nn.Module):
    """Halve the resolution on both axes by pixel unshuffle: `[B, C, T, F]` → `[B, C', T / 2, F / 2]`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
        self.pointwise = nn.Conv2d(in_channels, out_channels // 4, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, then fold 2×2 patches into channels."""
        return functional.pixel_unshuffle(self.pointwise(self.depthwise(x)), 2)


class Upsample(nn.Module):
    """Double the resolution on both axes by pixel shuffle: `[B, C, T, F]` → `[B, C', 2T, 2F]`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
        self.pointwise = nn.Conv2d(in_channels, 4 * out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, then unfold channels into 2×2 patches."""
        return functional.pixel_shuffle(self.pointwise(self.depthwise(x)), 2)


class UNet(nn.Module):
    """Three levels of stages and a refinement stage for each decoder, with C, 2C and 3C channels.

    `[B, C, T, F]`, T and F divisible by 4 → features for the magnitude and for the phase decoder, each of that shape.
    `stage(level, channels)` makes the stages.
    """

    def __init__(self, channels: int, stage: Callable[[int, int], Stage]) -> None:
        super().__init__()
        width_1, width_2, width_3 = channels, 2 * channels, 3 * channels
        self.encoder_level1 = stage(0, width_1)
        self.down_1_2 = Downsample(width_1, width_2)
        self.encoder_level2 = stage(1, width_2)
        self.down_2_3 = Downsample(width_2, width_3)
        self.bottleneck = stage(2, width_3)
        self.up_3_2 = Upsample(width_3, width_2)
        self.reduce_level2 = nn.Conv2d(2 * width_2, width_2, 1, bias=False)
        self.decoder_level2 = stage(1, width_2)
        self.up_2_1 = Upsample(width_2, width_1)
        self.reduce_level1 = nn.Conv2d(2 * width_1, width_1, 1, bias=False)
        self.decoder_level1 = stage(0, width_1)
        self.mag_refinement = stage(0, width_1)
        self.mag_output = nn.Conv2d(width_1, width_1, 3, padding=1, bias=False)
        self.pha_refinement = stage(0, width_1)
        self.pha_output = nn.Conv2d(width_1, width_1, 3, padding=1, bias=False)

    def forward(self, x: Tensor, rotary: Sequence[RotaryTables | None]) -> tuple[Tensor, Tensor]:
        """Encode, decode with skip connections, and refine; `rotary` holds the tables of each level."""
        rotary_1, rotary_2, rotary_3 = rotary
        encoded_1 = self.encoder_level1(x, rotary_1)
        encoded_2 = self.encoder_level2(self.down_1_2(encoded_1), rotary_2)
        decoded_3 = self.bottleneck(self.down_2_3(encoded_2), rotary_3)
        merged_2 = self.reduce_level2(torch.cat([self.up_3_2(decoded_3), encoded_2], dim=1))
        decoded_2 = self.decoder_level2(merged_2, rotary_2)
        merged_1 = self.reduce_level1(torch.cat([self.up_2_1(decoded_2), encoded_1], dim=1))
        decoded_1 = self.decoder_level1(merged_1, rotary_1)
        for_mag = self.mag_output(self.mag_refinement(decoded_1, rotary_1)) + x
        for_pha = self.pha_output(self.pha_refinement(decoded_1, rotary_1)) + x
        return for_mag, for_pha


class IMSE(nn.Module):
    """Noisy spectra → enhanced spectra, compressed, for any number of frames from 1 up.

    The magnitude is multiplied by an estimated mask, the phase is estimated directly.

    Parameters
    ----------
    config: base width and largest value of the mask.
    bins: number of frequency bins F, divisible by 8.
    stage: makes the stages of the U-Net, see `UNet`.
    rotary: pass rotary tables to the stages.
    """

    def __init__(
        self,
        config: UNetConfig,
        bins: int,
        stage: Callable[[int, int], Stage] = imse_stage,
        rotary: bool = True,
    ) -> None:
        super().__init__()
        self.rotary = rotary
        self.dense_encoder = DenseEncoder(config.channels)
        self.unet = UNet(config.channels, stage)
        self.magnitude_decoder = MagnitudeDecoder(config.channels, bins, config.beta)
        self.phase_decoder = PhaseDecoder(config.channels)

    def forward(self, noisy: Spectra) -> Spectra:
        """Enhance compressed spectra `[B, F, T]`."""
        for_mag, for_pha = self.features(noisy.mag, noisy.pha)
        frames = noisy.mag.shape[-1]
        mask = self.magnitude_decoder(for_mag)[..., :frames]
        return Spectra(noisy.mag * mask, self.phase_decoder(for_pha)[..., :frames])

    def features(self, *maps: Tensor) -> tuple[Tensor, Tensor]:
        """Encode maps `[B, F, T]`; return the inputs of both decoders, `[B, C, T', F / 2]` with T' divisible by 4.

        Silent frames are appended to reach T'.
        """
        x = torch.stack(maps, dim=1).transpose(2, 3)  # [B, 2, T, F]
        x = functional.pad(x, (0, 0, 0, -x.shape[2] % FRAME_MULTIPLE))
        x = self.dense_encoder(x.contiguous(memory_format=torch.channels_last))
        _, channels, frames, bins = x.shape
        rotary = [
            rotary_tables(frames // 2**level, bins // 2**level, (level + 1) * channels, x) if self.rotary else None
            for level in range(LEVELS)
        ]
        return self.unet(x, rotary)
