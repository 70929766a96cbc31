"""The U-Net of IMSE and MUSE: noisy magnitude and phase in, enhanced magnitude and phase out.

Both papers draw the same picture, a dense encoder, three levels of stages with skip connections, and a decoder each
for magnitude and phase; they fill its stages with different blocks (`models.imse`, `models.muse`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from config import ImseConfig, UNetConfig
from models.blocks import DenseEncoder, MagnitudeDecoder, PhaseDecoder, TransformerBlock
from models.idconv import IDConv
from models.mala import MALA, rotary_tables
from models.stft import Spectra

FRAME_MULTIPLE = 4
"""Two halvings of the time axis need a frame count divisible by this."""

BLOCKS_PER_STAGE = 4


class Down(nn.Module):
    """Half the resolution on both axes: `[B, C, T, F]` → `[B, C', T / 2, F / 2]`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
        self.pointwise = nn.Conv2d(in_channels, out_channels // 4, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Filter, then fold each 2×2 patch into channels."""
        return functional.pixel_unshuffle(self.pointwise(self.depthwise(x)), 2)


class Up(nn.Module):
    """Twice the resolution on both axes: `[B, C, T, F]` → `[B, C', 2T, 2F]`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
        self.pointwise = nn.Conv2d(in_channels, 4 * out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Filter, then unfold channels into 2×2 patches."""
        return functional.pixel_shuffle(self.pointwise(self.depthwise(x)), 2)


class Stage(nn.Module):
    """Local patterns, then transformer blocks, and the stage's input added: `[B, C, T, F]` → the same shape."""

    def __init__(self, local: nn.Module, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.local = local
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, *positions: object) -> Tensor:
        """`positions`, if any, is what the blocks are told of where things are in the map."""
        y = self.local(x)
        for block in self.blocks:
            y = block(y, *positions)
        return y + x


class UNet(nn.Module):
    """Three levels of stages and a refinement for each decoder: `[B, C, T, F]` → twice the same shape.

    Returns the features for the magnitude decoder and those for the phase decoder; T and F divisible by 4.

    Parameters
    ----------
    channels: width C of the first level; the others have 2C and 3C.
    stage: makes a stage, given its level (0, 1, 2) and its width.
    positions: makes what all stages of a level are told of positions, given its T, F and width, and a tensor for
        data type and device; None where they are told nothing.
    """

    def __init__(
        self,
        channels: int,
        stage: Callable[[int, int], Stage],
        positions: Callable[[int, int, int, Tensor], object] | None = None,
    ) -> None:
        super().__init__()
        self.positions = positions
        width_1, width_2, width_3 = channels, 2 * channels, 3 * channels
        self.encoder_level1 = stage(0, width_1)
        self.down_1_2 = Down(width_1, width_2)
        self.encoder_level2 = stage(1, width_2)
        self.down_2_3 = Down(width_2, width_3)
        self.bottleneck = stage(2, width_3)
        self.up_3_2 = Up(width_3, width_2)
        self.reduce_level2 = nn.Conv2d(2 * width_2, width_2, 1, bias=False)
        self.decoder_level2 = stage(1, width_2)
        self.up_2_1 = Up(width_2, width_1)
        self.reduce_level1 = nn.Conv2d(2 * width_1, width_1, 1, bias=False)
        self.decoder_level1 = stage(0, width_1)
        self.mag_refinement = stage(0, width_1)
        self.mag_output = nn.Conv2d(width_1, width_1, 3, padding=1, bias=False)
        self.pha_refinement: nn.Module = stage(0, width_1)
        self.pha_output: nn.Module = nn.Conv2d(width_1, width_1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Down, up again with skip connections, then two refinements of the same features."""
        positions_1, positions_2, positions_3 = (self._positions(x, level) for level in range(3))
        encoded_1 = self.encoder_level1(x, *positions_1)
        encoded_2 = self.encoder_level2(self.down_1_2(encoded_1), *positions_2)
        decoded_3 = self.bottleneck(self.down_2_3(encoded_2), *positions_3)
        merged_2 = self.reduce_level2(torch.cat([self.up_3_2(decoded_3), encoded_2], dim=1))
        decoded_2 = self.decoder_level2(merged_2, *positions_2)
        merged_1 = self.reduce_level1(torch.cat([self.up_2_1(decoded_2), encoded_1], dim=1))
        decoded_1 = self.decoder_level1(merged_1, *positions_1)
        for_mag = self.mag_output(self.mag_refinement(decoded_1, *positions_1)) + x
        for_pha = self.pha_output(self.pha_refinement(decoded_1, *positions_1)) + x
        return for_mag, for_pha

    def _positions(self, x: Tensor, level: int) -> tuple[object, ...]:
        if self.positions is None:
            return ()
        _, channels, frames, bins = x.shape
        return (self.positions(frames // 2**level, bins // 2**level, (level + 1) * channels, x),)


def as_maps(*parts: Tensor) -> Tensor:
    """Parts of spectra `[B, F, T]` as maps `[B, parts, T', F]`, in time filled up to a T' that can be halved twice."""
    x = torch.stack(parts, dim=1).transpose(2, 3)
    x = functional.pad(x, (0, 0, 0, -x.shape[2] % FRAME_MULTIPLE))
    return x.contiguous(memory_format=torch.channels_last)


class MagnitudePhaseNetwork(nn.Module):
    """Noisy spectra → enhanced spectra, for any number of frames from 1 up.

    The magnitude is masked, the phase estimated anew. A frame count that the U-Net cannot halve twice is filled
    up with silent frames and cut again.
    """

    def __init__(
        self,
        config: UNetConfig,
        bins: int,
        stage: Callable[[int, int], Stage],
        positions: Callable[[int, int, int, Tensor], object] | None = None,
    ) -> None:
        super().__init__()
        self.dense_encoder = DenseEncoder(config.channels)
        self.unet = UNet(config.channels, stage, positions)
        self.magnitude_decoder = MagnitudeDecoder(config.channels, bins, config.beta)
        self.phase_decoder = PhaseDecoder(config.channels)

    def forward(self, noisy: Spectra) -> Spectra:
        """Enhance compressed spectra `[B, F, T]`."""
        frames = noisy.mag.shape[-1]
        for_mag, for_pha = self.unet(self.dense_encoder(as_maps(noisy.mag, noisy.pha)))
        mask = self.magnitude_decoder(for_mag)[..., :frames]
        return Spectra(noisy.mag * mask, self.phase_decoder(for_pha)[..., :frames])


class IMSE(MagnitudePhaseNetwork):
    """Noisy `Spectra` → enhanced `Spectra`; see `MagnitudePhaseNetwork`."""

    def __init__(self, config: ImseConfig, bins: int) -> None:
        super().__init__(config, bins, imse_stage, rotary_tables)


def imse_stage(_: int, channels: int) -> Stage:
    """A stage of IMSE; alike on every level."""
    blocks = (TransformerBlock(channels, MALA(channels)) for _ in range(BLOCKS_PER_STAGE))
    return Stage(IDConv(channels), blocks)
