"""IMSE: the U-Net with inception depthwise convolutions and magnitude-aware linear attention (arXiv 2511.14515).

The picture is `models.unet`; what the paper puts into its stages is here: an IDConv, then four transformer blocks
with MALA.
"""

from __future__ import annotations

from config import ImseConfig
from models.idconv import IDConv
from models.mala import MALA, rotary_tables
from models.transformer import TransformerBlock
from models.unet import BLOCKS_PER_STAGE, MagnitudePhaseNetwork, Stage


class IMSE(MagnitudePhaseNetwork):
    """Noisy `Spectra` → enhanced `Spectra`; see `MagnitudePhaseNetwork`."""

    def __init__(self, config: ImseConfig, bins: int) -> None:
        super().__init__(config, bins, imse_stage, rotary_tables)


def imse_stage(_: int, channels: int) -> Stage:
    """A stage of IMSE; alike on every level."""
    blocks = (TransformerBlock(channels, MALA(channels)) for _ in range(BLOCKS_PER_STAGE))
    return Stage(IDConv(channels), blocks)
