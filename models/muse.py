"""MUSE: the U-Net with deformable embedding and multi-path enhanced Taylor attention (arXiv 2406.04589).

The picture is `models.unet`; what the paper puts into its stages is here: a deformable embedding, then four
transformer blocks with Taylor attention. The release's fusion of paths is left out: with the one path that it has,
it is a softmax over one entry.
"""

from __future__ import annotations

from config import MuseConfig
from models.deformable import DeformableEmbedding
from models.taylor import TaylorAttention
from models.transformer import TransformerBlock
from models.unet import BLOCKS_PER_STAGE, MagnitudePhaseNetwork, Stage

HEADS_BY_KERNEL = ({3: 1}, {3: 2}, {3: 2, 5: 3, 7: 3})
"""For each level, how many of its heads are refined with windows of which size."""


class MUSE(MagnitudePhaseNetwork):
    """Noisy `Spectra` → enhanced `Spectra`; see `MagnitudePhaseNetwork`."""

    def __init__(self, config: MuseConfig, bins: int) -> None:
        super().__init__(config, bins, muse_stage)


def muse_stage(level: int, channels: int) -> Stage:
    """A stage of MUSE, whose heads depend on the level."""
    attentions = (TaylorAttention(channels, HEADS_BY_KERNEL[level]) for _ in range(BLOCKS_PER_STAGE))
    return Stage(DeformableEmbedding(channels), (TransformerBlock(channels, each) for each in attentions))
