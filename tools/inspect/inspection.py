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
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from config import Config, UNetConfig
from enhance.enhancer import Enhancer, LevelMeter
from models.blocks import TransformerBlock, to_tokens
from models.imse import Stage
from models.mala import HEAD_WIDTH, MALA, SCALE, Z_FLOOR, RotaryTables
from models.muse import TaylorAttention
from models.stft import Spectra
from tools.ablation.networks import LinearAttention, SoftmaxAttention, UnrotatedMALA

SHOWN_STAGES = ("encoder_level1", "bottleneck", "mag_refinement")
"""The finest and the coarsest maps of the U-Net, and the last ones before the mask."""

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

    noisy, enhanced: spectra `[1, F, T]` at the network's level.
    wav: the enhanced signal `[N]` at the level of the recording.
    maps: T' and F' of each of `SHOWN_STAGES` that the network has.
    caught: the inputs of the attentions there, as far as their weights are known.
    frame_seconds, bin_hz: from one frame or bin of the spectra to the next.
    """

    noisy: Spectra
    enhanced: Spectra
    wav: np.ndarray
    maps: Mapping[str, tuple[int, int]]
    caught: tuple[Caught, ...]
    frame_seconds: float
    bin_hz: float

    def position(self, place: Place, stage: str) -> tuple[int, int]:
        """The frame and bin of a stage's maps, of T' and F', in which a place of the spectra lies."""
        frames, bins = self.step(stage)
        return place.frame // frames, place.bin // bins

    def spread(self, weights: Tensor, stage: str) -> Tensor:
        """A stage's map `[T', F']` at the resolution of the spectra, `[T, F]`."""
        frames, bins = self.step(stage)
        return weights.repeat_interleave(frames, 0).repeat_interleave(bins, 1)[: self.noisy.mag.shape[2]]

    def step(self, stage: str) -> tuple[int, int]:
        """How many frames and bins of the spectra one position of a stage's maps stands for."""
        frames, bins = self.maps[stage]
        padded = max(each for each, _ in self.maps.values())  # those of the first level
        return padded // frames, self.noisy.mag.shape[1] // bins


@torch.inference_mode()
def run_once(enhancer: Enhancer, wav: np.ndarray) -> Pass:
    """Enhance a signal `[N]`, float32, in one pass, and keep what its attentions were given."""
    factor = float(enhancer.factors(LevelMeter().measure([wav[:, None]]))[0])
    noisy = enhancer.spectrogram(torch.from_numpy(wav * np.float32(factor))[None].to(enhancer.device))
    with _catching(enhancer.network) as (maps, caught):
        enhanced = enhancer.network(noisy)
    samples = enhancer.spectrogram.inverse(enhanced, len(wav))[0] / factor
    stft, rate = enhancer.spectrogram.config, enhancer.rate
    steps = stft.hop_size / rate, rate / stft.n_fft
    return Pass(noisy, enhanced, samples.cpu().numpy(), maps, tuple(caught), *steps)


def shown_stages(network: nn.Module) -> dict[str, Stage]:
    """The stages of `SHOWN_STAGES` by name; none in networks without such."""
    named = ((name.rpartition(".")[2], module) for name, module in network.named_modules())
    return {name: module for name, module in named if isinstance(module, Stage) and name in SHOWN_STAGES}


@contextmanager
def _catching(network: nn.Module) -> Iterator[tuple[dict[str, tuple[int, int]], list[Caught]]]:
    """Within the block, the size of each shown stage's maps and the input of each of its known attentions go in."""
    maps: dict[str, tuple[int, int]] = {}
    caught: list[Caught] = []
    handles: list[RemovableHandle] = []

    def watch(stage: str, module: Stage) -> None:
        def keep_size(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            maps[stage] = (inputs[0].shape[2], inputs[0].shape[3])

        handles.append(module.register_forward_pre_hook(keep_size))
        for number, block in enumerate(module.blocks, start=1):
            if isinstance(block, TransformerBlock) and type(block.attention) in _WEIGHTS:
                handles.append(block.attention.register_forward_pre_hook(partial(keep_input, stage, number)))

    def keep_input(stage: str, number: int, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        caught.append(Caught(stage, number, module, inputs[0], inputs[1:]))

    for name, module in shown_stages(network).items():
        watch(name, module)
    try:
        yield maps, caught
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
        rows = [attention_weights(caught, *pass_.position(place, caught.stage)) for place in places]
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
    q, k, similarity = _similarity(caught, position)
    z = _heads(q[position] * k.mean(dim=0), HEAD_WIDTH).sum(dim=-1) * SCALE  # [heads]
    weights = {
        "MALA": ((1 + 1 / (z + Z_FLOOR)) * similarity - z) / len(k),
        "linear attention": similarity / (z + Z_FLOOR) / len(k),
    }
    return {name: _as_maps(each, caught) for name, each in weights.items()}


def unrotated_weights(caught: Caught, position: int) -> Mapping[str, Tensor]:
    """Those of MALA and linear attention where nothing is rotated."""
    (rotary,) = caught.positions
    assert isinstance(rotary, RotaryTables)
    still = RotaryTables(torch.ones_like(rotary.cos), torch.zeros_like(rotary.sin))
    return mala_weights(replace(caught, positions=(still,)), position)


def linear_weights(caught: Caught, position: int) -> Mapping[str, Tensor]:
    """Those of linear attention alone."""
    return {"linear attention": mala_weights(caught, position)["linear attention"]}


def softmax_weights(caught: Caught, position: int) -> Mapping[str, Tensor]:
    """softmax(q~·k~_j / √d) over the N positions, `[heads, T', F']`."""
    _, _, similarity = _similarity(caught, position)
    return {"softmax attention": _as_maps(similarity.softmax(dim=0), caught)}


def _similarity(caught: Caught, position: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys `[N, C]`, and the rotated query's product with all rotated keys over √d, `[N, heads]`."""
    module, (rotary,) = caught.module, caught.positions
    assert isinstance(module, MALA) and isinstance(rotary, RotaryTables)
    q, k = (to_tokens(module.features(conv(caught.x)))[0] for conv in (module.query, module.key))
    products = _turned(q, rotary)[position] * _turned(k, rotary)
    return q, k, _heads(products, HEAD_WIDTH).sum(dim=-1) * SCALE


def _as_maps(weights: Tensor, caught: Caught) -> Tensor:
    """`[N, heads]` → `[heads, T', F']`."""
    return weights.T.unflatten(1, caught.x.shape[2:])


def taylor_weights(caught: Caught, position: int) -> Mapping[str, Tensor]:
    """MUSE's weights of the query at one of the N positions, `[heads, T', F']`: (1 + q·k_j) / (N + q·Σk).

    They sum to 1 and are never negative, as queries and keys have a norm of 1. What refines the attended values
    afterwards, at each position by itself, is not in them.
    """
    module = caught.module
    assert isinstance(module, TaylorAttention)
    q, k = (module.normalized(to_tokens(conv(caught.x)))[0] for conv in (module.query, module.key))
    similarity = _heads(q[position] * k, module.head_width).sum(dim=-1)  # [N, heads]
    weights = (1 + similarity) / (len(k) + similarity.sum(dim=0))
    return {"Taylor attention": _as_maps(weights, caught)}


_WEIGHTS: Mapping[type[nn.Module], Callable[[Caught, int], Mapping[str, Tensor]]] = {
    MALA: mala_weights,
    UnrotatedMALA: unrotated_weights,
    LinearAttention: linear_weights,
    SoftmaxAttention: softmax_weights,
    TaylorAttention: taylor_weights,
}


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
