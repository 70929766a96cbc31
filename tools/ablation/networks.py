"""IMSE with a part taken out or exchanged, to see what that part is worth: `configs/ablation/`, `scripts/ablate.py`.

The paper's network is `models.imse`; here is only what differs from it. A part that is taken out takes its parameters
with it.
"""

from __future__ import annotations

from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional

from config import UNetConfig
from models.blocks import DenseEncoder, TransformerBlock
from models.idconv import SQUARE_KERNEL, IDConv, depthwise
from models.imse import BLOCKS_PER_STAGE, MagnitudePhaseNetwork, Stage, as_maps
from models.mala import HEAD_WIDTH, MALA, SCALE, Z_FLOOR, RotaryTables, rotary_tables
from models.muse import HEADS_BY_KERNEL, DeformableEmbedding, TaylorAttention
from models.stft import Spectra


@dataclass(frozen=True)
class ImseAblationConfig(UNetConfig):
    """Settings of IMSE with parts left out or replaced."""

    attention: str = "mala"
    local: str = "idconv"
    band_kernel: int = 11
    phase: bool = True


BOTTLENECK = 2
"""The level with the fewest positions, where attention at quadratic cost can be afforded."""


class Constant(nn.Module):
    """A number in place of a map that is taken out: 0 where it is added, 1 where it is multiplied."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor, *_: object) -> Tensor:
        """The number, whatever comes in."""
        return x.new_full((), self.value)


class LinearAttention(MALA):
    """MALA without the magnitude terms β and γ: each response divided by the query's sum of weights."""

    def with_magnitude(self, response: Tensor, z: Tensor, mean_v: Tensor) -> Tensor:  # noqa: ARG002 (γ is left out)
        """response / z, as in Katharopoulos et al. 2020, with the rotation in the numerator alone (Su et al. 2021)."""
        return response / (z + Z_FLOOR)


class UnrotatedMALA(MALA):
    """MALA without the rotary position encoding."""

    def response(self, q: Tensor, k: Tensor, v: Tensor, rotary: RotaryTables) -> Tensor:  # noqa: ARG002
        """Mean over j of (qᵢ · kⱼ) vⱼ / √d."""
        return q @ ((k.mT @ v) * self.head_mask * (SCALE / q.shape[1]))


class SoftmaxAttention(MALA):
    """Softmax attention in MALA's place, with its projections, rotation, local term and gate.

    Time grows with the square of the positions.
    """

    def features(self, x: Tensor) -> Tensor:
        """Queries and keys as they are: softmax takes any sign."""
        return x

    def attend(self, q: Tensor, k: Tensor, v: Tensor, rotary: RotaryTables, bins: int) -> Tensor:  # noqa: ARG002
        """softmax(q̃ k̃ᵀ / √d) v of each head; all `[B, N, C]`."""
        q, k = (x * rotary.cos + (x @ self.quarter_turn) * rotary.sin for x in (q, k))
        q, k, v = (x.unflatten(2, (-1, HEAD_WIDTH)).transpose(1, 2) for x in (q, k, v))  # [B, heads, N, d]
        return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def attention(kind: str, level: int, channels: int) -> nn.Module:
    """The attention of a block that `model.attention` names."""
    if kind == "taylor":
        return TaylorAttention(channels, HEADS_BY_KERNEL[level])
    if kind == "softmax_bottleneck":
        return SoftmaxAttention(channels) if level == BOTTLENECK else MALA(channels)
    whole = {"without_magnitude": LinearAttention, "without_rotation": UnrotatedMALA}.get(kind, MALA)(channels)
    if kind == "without_local":
        whole.local = Constant(0)
    elif kind == "without_gate":
        whole.gate = Constant(1)
    return whole


def local_patterns(kind: str, band_kernel: int, channels: int) -> nn.Module:
    """What stands before a stage's blocks, as `model.local` names it."""
    if kind == "deformable":
        return DeformableEmbedding(channels)
    if kind == "depthwise":
        mix = nn.Conv2d(channels, channels, 1, bias=False)
        return nn.Sequential(mix, depthwise(channels, (SQUARE_KERNEL, SQUARE_KERNEL)))
    whole = IDConv(channels, band_kernel)
    if kind == "without_square":
        whole.square = nn.Identity()
    elif kind == "without_frequency":
        whole.along_frequency = nn.Identity()
    elif kind == "without_time":
        whole.along_time = nn.Identity()
    return whole


class AblatedIMSE(MagnitudePhaseNetwork):
    """Noisy `Spectra` → enhanced `Spectra`, by IMSE with the parts that the configuration names.

    Without `phase` it sees the magnitude alone and keeps the noisy phase, and has neither phase decoder nor the
    refinement before it.
    """

    def __init__(self, config: ImseAblationConfig, bins: int) -> None:
        def stage(level: int, channels: int) -> Stage:
            blocks = (
                TransformerBlock(channels, attention(config.attention, level, channels))
                for _ in range(BLOCKS_PER_STAGE)
            )
            return Stage(local_patterns(config.local, config.band_kernel, channels), blocks)

        super().__init__(config, bins, stage, None if config.attention == "taylor" else rotary_tables)
        self.phase = config.phase
        if not config.phase:
            self.dense_encoder = DenseEncoder(config.channels, maps=1)
            self.unet.pha_refinement = self.unet.pha_output = Constant(0)
            del self.phase_decoder

    def forward(self, noisy: Spectra) -> Spectra:
        """Enhance compressed spectra `[B, F, T]`."""
        if self.phase:
            return super().forward(noisy)
        for_mag, _ = self.unet(self.dense_encoder(as_maps(noisy.mag)))
        mask = self.magnitude_decoder(for_mag)[..., : noisy.mag.shape[-1]]
        return Spectra(noisy.mag * mask, noisy.pha)
