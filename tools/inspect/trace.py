"""Record one pass of a network by forward hooks, and compute its attention weights, mask and phase change.

The linear attentions of IMSE and MUSE never form their N×N weights over the N positions of a map. The weights of one
query are a single map: they are computed here from the definition of the attention.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from config import Config
from data.levels import mean_power
from enhance.enhancer import Enhancer
from models.blocks import to_tokens
from models.imse import Stage
from models.imse_live import ImseLive
from models.mala import HEAD_WIDTH, MALA, SCALE, Z_FLOOR, rotary_tables
from models.muse import TaylorAttention
from models.stft import Spectra

SHOWN_STAGES = ("encoder_level1", "bottleneck", "mag_refinement")
"""The finest and the coarsest maps of the U-Net, and the last ones before the magnitude mask."""

MIN_POINT_HZ = 100.0
"""Lowest frequency of automatically chosen queries: below it there is rumble rather than voice."""
QUIET_FRAMES = 0.1
"""Fraction of frames, those with the least enhanced speech, in which the query in noise is chosen."""
TAYLOR_FLOOR = 1e-6
"""Added to the denominator of MUSE's attention, as in its published code."""


class TFPoint(NamedTuple):
    """A point of a spectrogram: index of the frame and of the bin."""

    frame: int
    bin: int


@dataclass(frozen=True)
class AttentionInput:
    """The input `x` `[1, C, T', F']` of the attention in one block of a stage; blocks are counted from 1."""

    stage: str
    block: int
    module: MALA | TaylorAttention
    x: Tensor


@dataclass(frozen=True)
class Trace:
    """One pass of a network over a signal.

    noisy_wav, enhanced_wav: signals `[N]` at the level of the recording.
    noisy, enhanced: spectra `[1, F, T]` at the level of the network.
    stages: those of `SHOWN_STAGES` that the network has, with the size (T', F') of their maps; none of IMSE live, whose
        kernels and attentions are not those drawn here.
    attentions: the inputs of their attentions, for MALA and Taylor attention.
    frame_seconds, bin_hz: spacing of frames and bins of the spectra.
    """

    noisy_wav: np.ndarray
    enhanced_wav: np.ndarray
    noisy: Spectra
    enhanced: Spectra
    stages: Mapping[str, tuple[Stage, tuple[int, int]]]
    attentions: Sequence[AttentionInput]
    frame_seconds: float
    bin_hz: float

    def stride(self, stage: str) -> tuple[int, int]:
        """Return the number of frames and bins of the spectra per position of a stage."""
        frames, bins = self.stages[stage][1]
        padded_frames = max(size[0] for _, size in self.stages.values())
        return padded_frames // frames, self.noisy.mag.shape[1] // bins

    def upsample(self, weights: Tensor, stage: str) -> Tensor:
        """Repeat a map `[T', F']` of a stage to the resolution of the spectra, `[T, F]`."""
        frames, bins = self.stride(stage)
        return weights.repeat_interleave(frames, 0).repeat_interleave(bins, 1)[: self.noisy.mag.shape[2]]

    @property
    def mask(self) -> Tensor:
        """Ratio of the compressed magnitudes, enhanced over noisy, `[F, T]`; 0 where the noisy one is 0."""
        noisy, enhanced = self.noisy.mag[0], self.enhanced.mag[0]
        return torch.where(noisy > 0, enhanced / noisy.masked_fill(noisy <= 0, 1), 0.0)

    @property
    def phase_change(self) -> Tensor:
        """Enhanced minus noisy phase in ±π rad, `[F, T]`."""
        change = self.enhanced.pha[0] - self.noisy.pha[0]
        return torch.remainder(change + math.pi, 2 * math.pi) - math.pi


def trace(network: nn.Module, config: Config, wav: np.ndarray) -> Trace:
    """Enhance a signal `[N]` in one pass (protocol "whole") and record spectra and inputs of the attentions."""
    stages: dict[str, Stage] = {}
    for path, module in network.named_modules():
        name = path.rpartition(".")[2]
        if isinstance(module, Stage) and name in SHOWN_STAGES and not isinstance(network, ImseLive):
            stages[name] = module
    sizes: dict[str, tuple[int, int]] = {}
    attentions: list[AttentionInput] = []
    spectra: list[Spectra] = []

    def keep_size(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sizes[name] = (inputs[0].shape[2], inputs[0].shape[3])

    def keep_input(name: str, block: int, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, (MALA, TaylorAttention))
        attentions.append(AttentionInput(name, block, module, inputs[0].clone()))

    def keep_spectra(_: nn.Module, inputs: tuple[Spectra], output: Spectra) -> None:
        spectra.extend([inputs[0], output])

    enhancer = Enhancer(network, config)
    gain = enhancer.level_gain(mean_power(wav))
    handles: list[RemovableHandle] = [network.register_forward_hook(keep_spectra)]
    for name, stage in stages.items():
        handles.append(stage.register_forward_pre_hook(partial(keep_size, name)))
        for number, block in enumerate(stage.blocks, start=1):
            attention = getattr(block, "attention", None)
            if isinstance(attention, MALA | TaylorAttention):
                handles.append(attention.register_forward_pre_hook(partial(keep_input, name, number)))
    try:
        (enhanced,) = enhancer.enhance_windows([wav[:, None] * gain])  # in one pass, live networks too
    finally:
        for handle in handles:
            handle.remove()
    return Trace(
        noisy_wav=wav,
        enhanced_wav=enhanced[:, 0] / gain,
        noisy=spectra[0],
        enhanced=spectra[1],
        stages={name: (stage, sizes[name]) for name, stage in stages.items()},
        attentions=attentions,
        frame_seconds=config.stft.hop_size / config.data.sampling_rate,
        bin_hz=config.data.sampling_rate / config.stft.n_fft,
    )


@torch.inference_mode()
def attention_weights(attention: AttentionInput, frame: int, bin_: int) -> dict[str, Tensor]:
    """Return the weights of the query at one position for all positions, `[heads, T', F']`, by kind of attention.

    MALA, with rotated queries q~ and keys k~, head width d and z = q · mean(k) / √d without rotation:
    ((1 + 1/z) q~·k~_j / √d − z) / N. "linear attention", for comparison, has the same queries and keys without the
    magnitude terms: q~·k~_j / (z √d N). Both sum to 1 without the rotation, and both may be negative.

    Taylor attention of MUSE, with q and k of norm 1: (1 + q·k_j) / (N + q·Σk). These weights are positive and sum to 1;
    the refinement, which scales the attended value of each position, is not part of them.
    """
    module, x = attention.module, attention.x
    _, channels, frames, bins = x.shape
    positions = frames * bins
    position = frame * bins + bin_

    def by_head(products: Tensor) -> Tensor:
        """Sum products `[…, C]` over the channels of each head, `[…, heads]`."""
        width = HEAD_WIDTH if isinstance(module, MALA) else module.head_width
        return products.unflatten(-1, (-1, width)).sum(dim=-1)

    if isinstance(module, MALA):
        q, k = (to_tokens(functional.elu(conv(x)) + 1)[0] for conv in (module.query, module.key))  # [N, C]
        rotary = rotary_tables(frames, bins, channels, x)
        rotated_q, rotated_k = (each * rotary.cos + each @ module.quarter_turn * rotary.sin for each in (q, k))
        similarity = by_head(rotated_q[position] * rotated_k) * SCALE  # [N, heads]
        z = by_head(q[position] * k.mean(dim=0)) * SCALE  # [heads]
        weights = {
            "MALA": ((1 + 1 / (z + Z_FLOOR)) * similarity - z) / positions,
            "linear attention": similarity / (z + Z_FLOOR) / positions,
        }
    else:
        q, k = (module.normalized(to_tokens(conv(x)))[0] for conv in (module.query, module.key))
        similarity = by_head(q[position] * k)
        weights = {"Taylor attention": (1 + similarity) / (positions + TAYLOR_FLOOR + similarity.sum(dim=0))}
    return {name: each.T.unflatten(1, (frames, bins)) for name, each in weights.items()}


@dataclass(frozen=True)
class Head:
    """One head of an attention, counted from 1, and its weights of Q queries.

    weights: `[Q, T', F']` by kind of attention, times the number of positions, so that 1 is the uniform weight.
    """

    attention: AttentionInput
    number: int
    weights: Mapping[str, Tensor]


def sharpest_head(trace_: Trace, stage: str, points: Sequence[TFPoint]) -> Head:
    """Return the head of a stage whose weights for these queries have the largest standard deviation."""
    frames, bins = trace_.stride(stage)
    heads: list[Head] = []
    for attention in trace_.attentions:
        if attention.stage != stage:
            continue
        rows = [attention_weights(attention, point.frame // frames, point.bin // bins) for point in points]
        positions = attention.x.shape[2] * attention.x.shape[3]
        stacked = {name: torch.stack([row[name] for row in rows], dim=1) * positions for name in rows[0]}
        for number in range(len(next(iter(stacked.values())))):
            heads.append(Head(attention, number + 1, {name: each[number] for name, each in stacked.items()}))
    return max(heads, key=lambda head: float(next(iter(head.weights.values())).std(dim=(1, 2)).sum()))


def default_points(trace_: Trace) -> dict[str, TFPoint]:
    """Return a query in speech and one in noise, both above `MIN_POINT_HZ`.

    In speech: the maximum of the enhanced magnitude. In noise: the maximum of the noisy magnitude within the
    `QUIET_FRAMES` of frames with the least enhanced energy.
    """
    noisy, enhanced = trace_.noisy.mag[0], trace_.enhanced.mag[0]  # [F, T]
    first = min(math.ceil(MIN_POINT_HZ / trace_.bin_hz), len(noisy) - 1)
    bin_, frame = divmod(int(enhanced[first:].argmax()), enhanced.shape[1])
    speech = TFPoint(frame, first + bin_)
    order = enhanced.square().sum(dim=0).argsort()
    quiet = order[: max(1, round(QUIET_FRAMES * len(order)))]
    bin_, frame = divmod(int(noisy[first:, quiet].argmax()), len(quiet))
    return {"in speech": speech, "in noise": TFPoint(int(quiet[frame]), first + bin_)}


def frequency_response(kernels: Tensor, rate: float, points: int = 129) -> tuple[Tensor, Tensor]:
    """Return frequencies `[points]` from 0 to `rate` / 2 and the gains `[K, points]` of kernels `[K, taps]` there."""
    gains = torch.fft.rfft(kernels, 2 * (points - 1)).abs()
    return torch.linspace(0, rate / 2, points), gains
