"""What goes on inside a network, in numbers that can be drawn: its mask, where its attention looks, its kernels.

The linear attentions of IMSE and MUSE never form their N×N weights over the N positions of a map. The weights of one
query are a single map, though, and cost what one row costs: they are computed here from the attention's own queries
and keys, by its definition, and weights · values is what the attention puts out at that position.
`scripts/inspect_model.py` draws them; training shows some in TensorBoard.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from config import Config, UNetConfig
from models.enhancer import Enhancer, LevelMeter
from models.mala import HEAD_WIDTH, MALA, RotaryTables
from models.spectrogram import Spectra
from models.taylor import TaylorAttention
from models.transformer import TransformerBlock, positions_first
from models.unet import Stage

SHOWN_STAGES = ("encoder_level1", "bottleneck", "mag_refinement")
"""The finest and the coarsest maps of the U-Net, and the last ones before the mask."""

_Z_FLOOR = 1e-6  # as in models.mala
_USUAL_MASK = 2.0
_LOWEST_HZ = 100.0
"""No place of interest is chosen below: there is rumble, and no voice."""
_QUIET_FRAMES = 0.1
"""The share of the frames, those with the least enhanced speech, among which the place in noise is chosen."""


class Place(NamedTuple):
    """A place in a spectrum: its frame and its bin."""

    frame: int
    bin: int


@dataclass(frozen=True)
class Caught:
    """What one attention was given in a pass.

    x: its input `[1, C, T', F']`; positions: what it was told of positions beside it; block: counted from 1.
    """

    stage: str
    block: int
    module: nn.Module
    x: Tensor
    positions: tuple[object, ...]


@dataclass(frozen=True)
class Pass:
    """One pass of a network over a signal.

    noisy, enhanced: spectra `[1, F, T]` at the network's level; wav: the enhanced signal `[N]` at the level of the
    recording; caught: the inputs of the attentions in `SHOWN_STAGES`, none for networks without such; frame_seconds,
    bin_hz: from one frame or bin of the spectra to the next.
    """

    noisy: Spectra
    enhanced: Spectra
    wav: np.ndarray
    caught: tuple[Caught, ...]
    frame_seconds: float
    bin_hz: float

    def position(self, place: Place, caught: Caught) -> tuple[int, int]:
        """The frame and bin of an attention's map, of T' and F', in which a place of the spectra lies."""
        frames, bins = self.step(caught)
        return place.frame // frames, place.bin // bins

    def spread(self, weights: Tensor, caught: Caught) -> Tensor:
        """An attention's map `[T', F']` at the resolution of the spectra, `[T, F]`."""
        frames, bins = self.step(caught)
        return weights.repeat_interleave(frames, 0).repeat_interleave(bins, 1)[: self.noisy.mag.shape[2]]

    def step(self, caught: Caught) -> tuple[int, int]:
        """How many frames and bins of the spectra one position of an attention's map stands for."""
        padded = max(each.x.shape[2] for each in self.caught)  # those of the first level
        return padded // caught.x.shape[2], self.noisy.mag.shape[1] // caught.x.shape[3]


@torch.inference_mode()
def run_once(enhancer: Enhancer, wav: np.ndarray) -> Pass:
    """Enhance a signal `[N]`, float32, in one pass, and keep what its attentions were given."""
    factor = float(enhancer.factors(LevelMeter().measure([wav[:, None]]))[0])
    noisy = enhancer.spectrogram(torch.from_numpy(wav * np.float32(factor))[None].to(enhancer.device))
    with _catching(enhancer.network) as caught:
        enhanced = enhancer.network(noisy)
    samples = enhancer.spectrogram.inverse(enhanced, len(wav))[0] / factor
    stft, rate = enhancer.spectrogram.config, enhancer.rate
    steps = stft.hop_size / rate, rate / stft.n_fft
    return Pass(noisy, enhanced, samples.cpu().numpy(), tuple(caught), *steps)


def shown_stages(network: nn.Module) -> dict[str, Stage]:
    """The stages of `SHOWN_STAGES` by name; none in networks without such."""
    named = ((name.rpartition(".")[2], module) for name, module in network.named_modules())
    return {name: module for name, module in named if isinstance(module, Stage) and name in SHOWN_STAGES}


@contextmanager
def _catching(network: nn.Module) -> Iterator[list[Caught]]:
    """Within the block, the input of every attention whose weights are known goes into the list."""
    caught: list[Caught] = []

    def watch(stage: str, number: int, attention: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            caught.append(Caught(stage, number, module, inputs[0], inputs[1:]))

        return attention.register_forward_pre_hook(keep)

    handles = [
        watch(name, number, block.attention)
        for name, stage in shown_stages(network).items()
        for number, block in enumerate(stage.blocks, start=1)
        if isinstance(block, TransformerBlock) and type(block.attention) in _WEIGHTS
    ]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Head:
    """One head of an attention, counted from 1, and its weights of Q queries.

    weights: `[Q, T', F']` by the name of the attention, times the number of positions, so that 1 is an even share.
    """

    caught: Caught
    number: int
    weights: Mapping[str, Tensor]


def sharpest_head(pass_: Pass, stage: str, places: Sequence[Place]) -> Head:
    """Of all heads in the blocks of a stage, the one whose weights of these queries deviate most from their mean.

    The others tell less between positions.
    """
    heads: list[Head] = []
    for caught in (each for each in pass_.caught if each.stage == stage):
        rows = [attention_weights(caught, *pass_.position(place, caught)) for place in places]
        positions = caught.x.shape[2] * caught.x.shape[3]
        stacked = {name: torch.stack([row[name] for row in rows], dim=1) * positions for name in rows[0]}
        for number in range(len(next(iter(stacked.values())))):
            heads.append(Head(caught, number + 1, {name: each[number] for name, each in stacked.items()}))
    return max(heads, key=lambda head: float(next(iter(head.weights.values())).std(dim=(1, 2)).sum()))


@torch.inference_mode()
def attention_weights(caught: Caught, frame: int, bin_: int) -> Mapping[str, Tensor]:
    """The weights that one query gives to all positions, `[heads, T', F']` each, by the name of the attention.

    MALA has a second map: the plain linear attention of the same queries and keys, which divides by z where MALA
    has its β and γ.
    """
    return _WEIGHTS[type(caught.module)](caught, frame * caught.x.shape[3] + bin_)


def mala_weights(caught: Caught, position: int) -> Mapping[str, Tensor]:
    """MALA's weights of the query at one of the N positions, and those of linear attention, `[heads, T', F']`.

    With q~, k~ the rotated query and keys, d the width of a head and z = q · mean(k) / √d before the rotation:
    MALA has ((1 + 1/z) q~·k~_j / √d − z) / N, linear attention q~·k~_j / (z √d N). Either would sum to 1 without
    the rotation, which takes away from the mean key; either may be negative.
    """
    module, (rotary,) = caught.module, caught.positions
    assert isinstance(module, MALA) and isinstance(rotary, RotaryTables)
    q, k = (_positive(conv, caught.x) for conv in (module.query, module.key))  # [N, C]
    scale = 1 / math.sqrt(HEAD_WIDTH)
    z = _heads(q[position] * k.mean(dim=0), HEAD_WIDTH).sum(dim=-1) * scale + _Z_FLOOR  # [heads]
    turned_q, turned_k = _turned(q, rotary)[position], _turned(k, rotary)
    similarity = _heads(turned_q * turned_k, HEAD_WIDTH).sum(dim=-1) * scale  # [N, heads]
    weights = {
        "MALA": ((1 + 1 / z) * similarity - (z - _Z_FLOOR)) / len(k),
        "linear attention": similarity / z / len(k),
    }
    return {name: each.T.unflatten(1, caught.x.shape[2:]) for name, each in weights.items()}


def taylor_weights(caught: Caught, position: int) -> Mapping[str, Tensor]:
    """MUSE's weights of the query at one of the N positions, `[heads, T', F']`: (1 + q·k_j) / (N + q·Σk).

    They sum to 1 and are never negative, as queries and keys have a norm of 1. What refines the attended values
    afterwards, at each position by itself, is not in them.
    """
    module = caught.module
    assert isinstance(module, TaylorAttention)
    q, k = (module.normalized(positions_first(conv(caught.x)))[0] for conv in (module.query, module.key))
    similarity = _heads(q[position] * k, module.head_width).sum(dim=-1)  # [N, heads]
    weights = (1 + similarity) / (len(k) + similarity.sum(dim=0))
    return {"Taylor attention": weights.T.unflatten(1, caught.x.shape[2:])}


_WEIGHTS: Mapping[type[nn.Module], Callable[[Caught, int], Mapping[str, Tensor]]] = {
    MALA: mala_weights,
    TaylorAttention: taylor_weights,
}


def _positive(conv: nn.Module, x: Tensor) -> Tensor:
    return positions_first(functional.elu(conv(x)) + 1)[0]


def _heads(x: Tensor, width: int) -> Tensor:
    """`[…, C]` → `[…, heads, d]`."""
    return x.unflatten(-1, (-1, width))


def _turned(x: Tensor, rotary: RotaryTables) -> Tensor:
    """`[N, C]`, each pair of channels (a, b) rotated: (a cos − b sin, b cos + a sin)."""
    quarter = torch.stack([-x[:, 1::2], x[:, ::2]], dim=-1).flatten(1)
    return x * rotary.cos + quarter * rotary.sin


def place_in_speech(pass_: Pass) -> Place:
    """Where the enhanced speech is loudest: a low harmonic of a vowel, where there is speech."""
    return _loudest(pass_.enhanced.mag[0], pass_.bin_hz)


def place_in_noise(pass_: Pass) -> Place:
    """Where the noisy signal is loudest within the tenth of the frames that has the least enhanced speech."""
    energy = pass_.enhanced.mag[0].square().sum(dim=0)  # [T]
    quiet = energy.argsort()[: max(1, round(_QUIET_FRAMES * len(energy)))]
    place = _loudest(pass_.noisy.mag[0][:, quiet], pass_.bin_hz)
    return Place(int(quiet[place.frame]), place.bin)


def _loudest(mag: Tensor, bin_hz: float) -> Place:
    """Of magnitudes `[F, T]`, from the lowest voice up."""
    lowest = min(math.ceil(_LOWEST_HZ / bin_hz), len(mag) - 1)
    bin_, frame = divmod(int(mag[lowest:].argmax()), mag.shape[1])
    return Place(frame, lowest + bin_)


def mask_of(pass_: Pass) -> Tensor:
    """The compressed magnitude that the network lets through, as a factor `[F, T]`; 0 where there was none."""
    noisy, enhanced = pass_.noisy.mag[0], pass_.enhanced.mag[0]
    return torch.where(noisy > 0, enhanced / noisy.masked_fill(noisy <= 0, 1), 0.0)


def largest_mask(config: Config) -> float:
    """The most that a mask can be, or where networks without a mask seldom go beyond."""
    return config.model.beta if isinstance(config.model, UNetConfig) else _USUAL_MASK


def phase_change_of(pass_: Pass) -> Tensor:
    """By how much the network turns each phase, in ±π rad, `[F, T]`."""
    change = pass_.enhanced.pha[0] - pass_.noisy.pha[0]
    return torch.remainder(change + math.pi, 2 * math.pi) - math.pi


def frequency_response(kernels: Tensor, rate: float, points: int = 129) -> tuple[Tensor, Tensor]:
    """How much kernels `[K, taps]` let through of each frequency: `[points]` from 0 to rate / 2, and `[K, points]`.

    `rate` is that of the taps, as is the unit of the result: 160 taps a second give frequencies in Hz up to 80.
    """
    gains = torch.fft.rfft(kernels, 2 * (points - 1)).abs()
    return torch.linspace(0, rate / 2, points), gains
