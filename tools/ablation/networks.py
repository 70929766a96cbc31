"""IMSE with parts removed or replaced, for the configurations in `configs/ablation/`.

The variants replace modules in the stages of `models.imse.IMSE`; all other parameters have the same initial values.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal, TypeVar

import torch
from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional

from config import UNetConfig
from models.blocks import TransformerBlock, to_tokens
from models.idconv import SQUARE_KERNEL, IDConv, depthwise
from models.imse import IMSE, Stage, imse_stage
from models.mala import HEAD_WIDTH, MALA, SCALE, Z_FLOOR, RotaryTables
from models.muse import HEADS_BY_KERNEL, DeformableEmbedding, TaylorAttention
from models.stft import Spectra

Replacement = TypeVar("Replacement", bound=nn.Module)


@dataclass(frozen=True)
class ImseAblationConfig(UNetConfig):
    """Settings of an ablated IMSE; the defaults are IMSE."""

    attention: Literal[
        "mala",
        "without_magnitude",
        "without_rotation",
        "without_lepe",
        "without_gate",
        "softmax_bottleneck",
        "taylor",
    ] = "mala"
    """MALA; MALA without the magnitude terms β and γ, without rotary encoding, without LePE (the depthwise convolution
    of the values) or without the output gate; softmax attention in the bottleneck; MUSE's Taylor attention."""
    local: Literal["idconv", "without_square", "without_frequency", "without_time", "depthwise", "deformable"] = (
        "idconv"
    )
    """IDConv; IDConv with one group of channels unfiltered; a 3×3 depthwise convolution of all channels; MUSE's
    deformable embedding."""
    band_kernel: Annotated[int, Field(ge=1, le=99)] = 11
    """Length of IDConv's band kernels, odd."""
    phase: bool = True
    """Off: the network sees and enhances the magnitude alone; the output has the noisy phase."""

    @field_validator("band_kernel")
    @classmethod
    def _odd(cls, band_kernel: int) -> int:
        if band_kernel % 2 == 0:
            raise ValueError("should be odd")
        return band_kernel


class AblatedMALA(MALA):
    """MALA without its magnitude terms or without rotary encoding."""

    def __init__(self, channels: int, magnitude: bool = True, rotation: bool = True) -> None:
        super().__init__(channels)
        self.magnitude, self.rotated = magnitude, rotation

    def attention(self, q: Tensor, k: Tensor, v: Tensor, rotary: RotaryTables) -> Tensor:
        """Apply linear attention to positive q and k, and v, each `[B, N, C]` → `[B, N, C]`.

        Without the magnitude terms as Katharopoulos et al. 2020, with rotation in the numerator only (Su et al. 2021).
        """
        v = split_heads(v)
        z = split_heads(q) @ split_heads(k).mean(dim=2, keepdim=True).mT * SCALE  # [B, heads, N, 1]
        if self.rotated:
            q, k = (x * rotary.cos + x @ self.quarter_turn * rotary.sin for x in (q, k))
        numerator = split_heads(q) @ (split_heads(k).mT @ v) * (SCALE / q.shape[1])
        if self.magnitude:
            out = (1 + 1 / (z + Z_FLOOR)) * numerator - z * v.mean(dim=2, keepdim=True)
        else:
            out = numerator / (z + Z_FLOOR)
        return out.transpose(1, 2).flatten(2)


class SoftmaxAttention(MALA):
    """Softmax attention with the projections, rotary encoding, LePE and gate of MALA; quadratic in the positions."""

    def forward(self, x: Tensor, rotary: RotaryTables | None) -> Tensor:
        """Attend; queries and keys of any sign, since there is no ELU + 1."""
        assert rotary is not None
        value = self.value(x)
        attended = self.attention(to_tokens(self.query(x)), to_tokens(self.key(x)), to_tokens(value), rotary)
        attended = attended.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)  # [B, C, T, F]
        return self.project((attended + self.lepe(value)) * self.output_gate(x))

    def attention(self, q: Tensor, k: Tensor, v: Tensor, rotary: RotaryTables) -> Tensor:
        """Compute softmax(q̃ k̃ᵀ / √d) v of each head; all `[B, N, C]`."""
        q, k = (split_heads(x * rotary.cos + x @ self.quarter_turn * rotary.sin) for x in (q, k))
        return functional.scaled_dot_product_attention(q, k, split_heads(v)).transpose(1, 2).flatten(2)


class Constant(nn.Module):
    """Return a constant that broadcasts with the output of the module it replaces."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor, *_: object) -> Tensor:
        """Return the constant, `[1]`."""
        return x.new_full((1,), self.value)


def split_heads(x: Tensor) -> Tensor:
    """Reshape `[B, N, C]` to `[B, heads, N, d]`."""
    return x.unflatten(2, (-1, HEAD_WIDTH)).transpose(1, 2)


def make_attention(kind: str, level: int, channels: int) -> nn.Module:
    """Return the attention that `model.attention` names, for blocks of a level (0, 1, 2)."""
    if kind == "without_magnitude":
        return AblatedMALA(channels, magnitude=False)
    if kind == "without_rotation":
        return AblatedMALA(channels, rotation=False)
    if kind == "taylor":
        return TaylorAttention(channels, HEADS_BY_KERNEL[level])
    if kind == "softmax_bottleneck" and level == 2:
        return SoftmaxAttention(channels)
    attention = MALA(channels)
    if kind == "without_lepe":
        attention.add_module("lepe", Constant(0))
    elif kind == "without_gate":
        attention.add_module("output_gate", Constant(1))
    return attention


def make_local(kind: str, band_kernel: int, channels: int) -> nn.Module:
    """Return the convolution at the beginning of a stage that `model.local` names."""
    if kind == "deformable":
        return DeformableEmbedding(channels)
    if kind == "depthwise":
        mix = nn.Conv2d(channels, channels, 1, bias=False)
        return nn.Sequential(mix, depthwise(channels, (SQUARE_KERNEL, SQUARE_KERNEL)))
    idconv = IDConv(channels)
    idconv.along_frequency = depthwise(channels // 8, (1, band_kernel))
    idconv.along_time = depthwise(channels // 8, (band_kernel, 1))
    if kind != "idconv":
        branch = {"without_square": "square", "without_frequency": "along_frequency", "without_time": "along_time"}
        setattr(idconv, branch[kind], nn.Identity())
    return idconv


def ablated_stage(config: ImseAblationConfig, level: int, channels: int) -> Stage:
    """Return a stage of IMSE with the parts that `config` names.

    The random state afterwards is that after a stage of IMSE, so the parameters that follow are initialised alike.
    """
    stage = imse_stage(level, channels)
    with torch.random.fork_rng(devices=[]):
        stage.local = with_weights_of(stage.local, make_local(config.local, config.band_kernel, channels))
        for block in stage.blocks:
            assert isinstance(block, TransformerBlock)
            block.attention = with_weights_of(block.attention, make_attention(config.attention, level, channels))
    return stage


class AblatedIMSE(IMSE):
    """Noisy `Spectra` → enhanced `Spectra` by IMSE with the parts that the configuration names."""

    def __init__(self, config: ImseAblationConfig, bins: int) -> None:
        super().__init__(config, bins, partial(ablated_stage, config))
        self.phase = config.phase
        if not config.phase:
            with torch.random.fork_rng(devices=[]):
                self.dense_encoder.widen[0] = nn.Conv2d(1, config.channels, 1, bias=False)
            self.unet.add_module("pha_refinement", Constant(0))
            self.unet.add_module("pha_output", Constant(0))
            del self.phase_decoder

    def forward(self, noisy: Spectra) -> Spectra:
        """Enhance compressed spectra `[B, F, T]`."""
        if self.phase:
            return super().forward(noisy)
        for_mag, _ = self.features(noisy.mag)
        mask = self.magnitude_decoder(for_mag)[..., : noisy.mag.shape[-1]]
        return Spectra(noisy.mag * mask, noisy.pha)


def with_weights_of(original: nn.Module, replacement: Replacement) -> Replacement:
    """Copy the parameters of `original` that `replacement` has under the same name and in the same shape."""
    weights = original.state_dict()
    shared = {name: weights[name] for name, value in replacement.state_dict().items()
              if name in weights and weights[name].shape == value.shape}  # fmt: skip
    replacement.load_state_dict(shared, strict=False)
    return replacement
