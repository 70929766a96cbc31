"""IMSE live: IMSE as a causal network with a state of constant size.

The U-Net of `models.imse`, with three changes. Convolutions see the current and earlier frames. The sums of MALA, the
statistics of the norms and the level of the input are running means, in which older frames count exponentially less.
The frames come in blocks of four, because the U-Net halves the time axis twice.

For training and whole signals, all blocks are computed at once; `ImseLive.stream` computes the same piece by piece.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from config import ImseLiveConfig
from models import imse
from models.blocks import GDFN, InstanceNorm, TransformerBlock, at_least_float32
from models.idconv import IDConv
from models.imse import FRAME_MULTIPLE, IMSE, Stage
from models.mala import HEAD_WIDTH, MALA, ROTARY_BASE, SCALE, Z_FLOOR, RotaryTables, rotary_tables
from models.stft import Spectra
from models.streaming import Memory, State, stream_whole, with_past

PIECE = 512
"""Maximum number of frames in one pass over a whole signal; memory for the running means grows with its square."""

SILENT_POWER = 0.0064
"""Mean square of the compressed magnitudes of white noise at −96 dBFS. Blocks below it, such as those of a muted
microphone, do not update the sums and means; if they did, these would need seconds to recover."""

LEVEL_FLOOR = 1e-4
"""Least input level: the compressed magnitude of silence is divided by this, not by 0."""


class RunningMemory(Memory):
    """Memory of a network with running sums and means.

    In a sum, older blocks count exponentially less: y_s = Σ_j wʲ x_{s−j} with w = exp(−1 / `blocks`). Earlier silent
    blocks are skipped: they add nothing and do not count as distance. A mean is a sum divided by `count`, the same sum
    of ones.
    """

    def __init__(self, blocks: float) -> None:
        super().__init__()
        self.blocks = blocks
        self.active = self.age = self.weights = self.count = torch.zeros(())

    def count_blocks(self, active: Tensor, dtype: torch.dtype) -> None:
        """Prepare sums over the blocks of the pass.

        active: whether each of the S blocks is not silent, bool `[B, S, 1]`.
        dtype: data type of the weights.
        """
        self.active = active
        if active.shape[1] > 1:
            self._weigh(active[..., 0].to(dtype))
        self.count = self.running_sum(torch.ones_like(active, dtype=dtype))

    def running_sum(self, x: Tensor) -> Tensor:
        """Add up blocks `[B, S, C]`; returns the same shape."""
        past = self.recall(torch.zeros_like(x[:, :1]))
        if x.shape[1] == 1:
            sums = x + math.exp(-1 / self.blocks) * past
            after = torch.where(self.active, sums, past)
        else:
            with torch.autocast(x.device.type, enabled=False):
                sums, after = (self.weights @ torch.cat([past, x], dim=1)).tensor_split([-1], dim=1)
        self.keep(after)
        return sums

    def running_mean(self, x: Tensor) -> Tensor:
        """Average over blocks `[B, S, C]`; returns the same shape."""
        return self.running_sum(x) / self.count

    def _weigh(self, active: Tensor) -> None:
        """Compute how many blocks before each of S blocks the others lie, and their weights: `[B, S + 1, S + 1]`.

        The first column stands for the sum of all blocks before, the last row for the sum to be kept. Silent blocks do
        not count as distance. `active`: 0 or 1, `[B, S]`.
        """
        ends = active.cumsum(dim=1)
        rows = torch.cat([ends - active, ends[:, -1:] - 1], dim=1)
        self.age = rows[:, :, None] - functional.pad(rows[:, None, :-1], (1, 0), value=-1)
        square = torch.ones_like(self.age[0])
        # Of the blocks before, the active ones count; the current one always.
        counted = functional.pad(active, (1, 0), value=1)[:, None] * square.tril() + square.tril(1).triu(1)
        self.weights = torch.exp(-self.age.clamp(min=0) / self.blocks) * counted


def to_blocks(x: Tensor, frames: int) -> Tensor:
    """Reshape a map `[B, C, T, F]` to blocks of `frames` frames, `[B, S, frames · F, C]`."""
    return x.permute(0, 2, 3, 1).unflatten(1, (-1, frames)).flatten(2, 3)


def from_blocks(x: Tensor, bins: int) -> Tensor:
    """Invert `to_blocks` for maps of `bins` bins."""
    return x.flatten(1, 2).unflatten(1, (-1, bins)).permute(0, 3, 1, 2)


def block_powers(mag: Tensor) -> Tensor:
    """Return the mean squares of blocks of a magnitude `[B, F, T]`: `[B, S, 1]`."""
    return to_blocks(mag.square().transpose(1, 2)[:, None], FRAME_MULTIPLE).mean(dim=2)


class RunningNorm(InstanceNorm):
    """Normalise each channel by its running mean and variance: `[B, C, T, F]` → the same shape."""

    def __init__(self, channels: int, memory: RunningMemory) -> None:
        super().__init__(channels)
        self.memory = memory

    def forward(self, x: Tensor) -> Tensor:
        """Normalise in float32 at least, as `InstanceNorm` does."""
        x = at_least_float32(x)
        centred = x - self._running_mean(x)
        scale = torch.rsqrt(self._running_mean(centred.square()) + 1e-5) * self.weight[:, None, None]
        return torch.addcmul(self.bias[:, None, None], centred, scale)

    def _running_mean(self, x: Tensor) -> Tensor:
        """Return means that `[B, C, T, F]` can be combined with."""
        means = self.memory.running_mean(to_blocks(x, FRAME_MULTIPLE).mean(dim=2)).transpose(1, 2)[..., None]
        return means if means.shape[2] == 1 else means.repeat_interleave(FRAME_MULTIPLE, dim=2)  # [B, C, 1 or T, 1]


class Past(nn.Module):
    """Put the last frames of the pass before in front of a map: `[B, C, T, F]` → `[B, C, frames + T, F]`."""

    def __init__(self, memory: Memory, frames: int) -> None:
        super().__init__()
        self.memory, self.frames = memory, frames

    def forward(self, x: Tensor) -> Tensor:
        """Return the earlier frames and x."""
        return with_past(x, self.frames, self.memory)


class CausalConv2d(nn.Conv2d):
    """The causal half of a centred convolution: `[B, C, T, F]` → `[B, C', T, F']`.

    A kernel of 2K + 1 frames becomes one of the current and K earlier frames, which come from `past`. If `past` is
    None, the input begins with them.
    """

    def __init__(self, centred: nn.Conv2d, memory: Memory | None) -> None:
        (frames, bins), (dilation, _) = centred.kernel_size, centred.dilation
        super().__init__(
            centred.in_channels,
            centred.out_channels,
            (frames // 2 + 1, bins),
            padding=(0, bins // 2),
            dilation=(dilation, 1),
            groups=centred.groups,
            bias=centred.bias is not None,
        )
        self.past = Past(memory, dilation * (frames // 2)) if memory else None

    def forward(self, input: Tensor) -> Tensor:
        """Convolve."""
        return super().forward(self.past(input) if self.past else input)


class CausalGDFN(GDFN):
    """GDFN over the current and the previous frame: `[B, C, T, F]` → the same shape.

    The past is kept before the 1×1 convolutions, where it has a fifth of the channels.
    """

    def __init__(self, channels: int, memory: Memory) -> None:
        super().__init__(channels)
        for branch in (self.gate, self.value):
            branch[1] = CausalConv2d(cast(nn.Conv2d, branch[1]), None)
        self.past = Past(memory, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        return super().forward(self.past(x))


class CausalMALA(MALA):
    """MALA to the positions of the current and earlier blocks: `[B, C, T, F]` → the same shape.

    Σ k̃ vᵀ, Σ k and Σ v run over the blocks. Rotary encoding depends on differences of positions only: keys are rotated
    by their position within the block, and the running sum by one block at each step, so that no angle grows with time.

    Parameters
    ----------
    channels: width C, divisible by 8.
    frames, bins: size of a block on this level.
    memory: memory of the network.
    """

    cos: Tensor
    sin: Tensor
    speeds: Tensor

    def __init__(self, channels: int, frames: int, bins: int, memory: RunningMemory) -> None:
        super().__init__(channels)
        self.frames, self.bins, self.memory = frames, bins, memory
        tables = rotary_tables(frames, bins, channels, torch.zeros(1, 1, 1, 1))
        self.register_buffer("cos", tables.cos, persistent=False)
        self.register_buffer("sin", tables.sin, persistent=False)
        exponents = torch.linspace(0, 1, HEAD_WIDTH // 4).repeat_interleave(2)
        speeds = torch.cat([ROTARY_BASE**-exponents, torch.zeros_like(exponents)])  # along time, along frequency
        self.register_buffer("speeds", frames * speeds.repeat(channels // HEAD_WIDTH), persistent=False)

    def forward(self, x: Tensor, rotary: RotaryTables | None = None) -> Tensor:
        """Attend to the current and earlier blocks; `rotary` is not used."""
        del rotary
        value = self.value(x)
        q = self._blocks(functional.elu(self.query(x)) + 1)  # [B, S, P, C], positive
        k = self._blocks(functional.elu(self.key(x)) + 1)
        v = self._blocks(value)
        means = torch.cat([k.mean(dim=2), v.mean(dim=2)], dim=2)
        mean_k, mean_v = self.memory.running_mean(means).chunk(2, dim=2)  # [B, S, C]
        z = q @ (mean_k[..., None] * self.head_mask * SCALE)
        kv = self._running_mean(self._rotate(k).transpose(2, 3) @ v)  # [B, S, C, C]
        numerator = self._rotate(q) @ (kv * (self.head_mask * (SCALE / k.shape[2])))
        attended = from_blocks(numerator + numerator / (z + Z_FLOOR) - z * mean_v[:, :, None], self.bins)
        return self.project((attended + self.lepe(value)) * self.output_gate(x))

    def _blocks(self, x: Tensor) -> Tensor:
        return at_least_float32(to_blocks(x, self.frames))

    def _rotate(self, x: Tensor) -> Tensor:
        """Rotate `[B, S, P, C]` by the position within the block."""
        return x * self.cos + x @ self.quarter_turn * self.sin

    def _running_mean(self, kv: Tensor) -> Tensor:
        """Average products `[B, S, C, C]` like `RunningMemory.running_mean`, each rotated by its distance in time."""
        kv, blocks = at_least_float32(kv), self.memory.blocks
        past = self.memory.recall(torch.zeros_like(kv[:, :1]))
        with torch.autocast(kv.device.type, enabled=False):
            if kv.shape[1] == 1:
                step, decay = self.speeds[:, None], math.exp(-1 / blocks)
                sums = kv + decay * step.cos() * past + self.quarter_turn @ (decay * step.sin() * past)
                after = torch.where(self.memory.active[..., None], sums, past)
            else:
                age, weights = self.memory.age[:, None], self.memory.weights[:, None]
                angles = self.speeds[:, None, None] * age  # [B, C, S + 1, S + 1]
                terms = torch.cat([past, kv], dim=1)
                sums = torch.einsum("bcst,btcd->bscd", angles.cos() * weights, terms)
                sums = sums + torch.einsum("bcst,btcd->bscd", angles.sin() * weights, self.quarter_turn @ terms)
                sums, after = sums.tensor_split([-1], dim=1)
        self.memory.keep(after)
        return sums / self.memory.count[..., None]


class ImseLive(IMSE):
    """Noisy spectra → enhanced spectra, compressed and causal.

    An output frame depends on the frames up to the end of its block of `ImseLiveConfig.block_frames` frames and
    `ImseLiveConfig.lookahead` frames after it, which the first convolution sees. Its layers share a `RunningMemory`,
    so it is for one pass at a time: give each thread a copy.
    """

    def __init__(self, config: ImseLiveConfig, bins: int) -> None:
        memory = RunningMemory(config.memory_frames / FRAME_MULTIPLE)

        def stage(level: int, channels: int) -> Stage:
            size = FRAME_MULTIPLE >> level, bins // 2 >> level
            attention = (CausalMALA(channels, *size, memory) for _ in range(imse.BLOCKS_PER_STAGE))
            return Stage(IDConv(channels), (TransformerBlock(channels, each) for each in attention))

        super().__init__(config, bins, stage, rotary=False)
        self.config, self.bins, self.memory = config, bins, memory
        if config.lookahead:
            # Once causal, this convolution sees the frame to be enhanced and the `lookahead` frames after it.
            centred = nn.Conv2d(2, config.channels, (2 * config.lookahead + 1, 1), bias=False)
            self.dense_encoder.widen[0] = centred
        _make_causal(self, memory)

    def forward(self, noisy: Spectra) -> Spectra:
        """Enhance whole signals, compressed spectra `[B, F, T]`."""
        return stream_whole(self.stream, noisy, PIECE, FRAME_MULTIPLE, self.config.delay_frames)

    def stream(self, noisy: Spectra, state: State | None) -> tuple[Spectra, State]:
        """Enhance the next frames, spectra `[B, F, T]` with T divisible by `FRAME_MULTIPLE`.

        Returns the T frames that precede the last `lookahead` ones, and the state after them. Without a state, the
        signals begin; the first `lookahead` frames of the result lie before them.
        """
        self.memory.begin(state)
        mag = noisy.mag
        if delay := self.config.lookahead:
            past = self.memory.recall(mag.new_zeros(*mag.shape[:2], delay))
            mag = torch.cat([past, mag], dim=2)
            self.memory.keep(mag[:, :, -delay:])
            mag = mag[:, :, :-delay]
        self.memory.count_blocks(block_powers(mag) > SILENT_POWER, mag.dtype)
        # Magnitude relative to its running root mean square, in the compressed domain.
        level = self.memory.running_mean(block_powers(noisy.mag)).sqrt()
        level = level.transpose(1, 2).repeat_interleave(FRAME_MULTIPLE, dim=2)
        for_mag, for_pha = self.features(noisy.mag / (level + LEVEL_FLOOR), noisy.pha)
        enhanced = Spectra(mag * self.magnitude_decoder(for_mag), self.phase_decoder(for_pha))
        return enhanced, self.memory.end()


def _make_causal(part: nn.Module, memory: RunningMemory) -> None:
    """Replace the norms, and the convolutions over several frames, of a network by causal ones."""
    for name, child in part.named_children():
        if isinstance(child, InstanceNorm):
            setattr(part, name, RunningNorm(len(child.weight), memory))
        elif isinstance(child, GDFN):
            setattr(part, name, CausalGDFN(child.project.out_channels, memory))
        elif isinstance(child, nn.Conv2d) and child.kernel_size[0] > 1:
            setattr(part, name, CausalConv2d(child, memory))
        else:
            _make_causal(child, memory)


def causal_imse(network: nn.Module, config: ImseLiveConfig, bins: int) -> ImseLive:
    """Build an `ImseLive` with the weights of an IMSE of the same width, from which it can be fine-tuned.

    The kernel of a centred convolution has taps for later frames, which are added to that of the current frame: this
    does the same to a stationary signal. The frames of the look-ahead have no weight yet. `network` may also be an
    `ImseLive` with another look-ahead.
    """
    causal = ImseLive(config, bins)
    weights = network.state_dict()
    for name, module in causal.named_modules():
        if isinstance(module, CausalConv2d):
            kernel = weights[f"{name}.weight"]
            if not isinstance(network, ImseLive):
                earlier, rest = kernel.tensor_split([kernel.shape[2] // 2], dim=2)
                kernel = torch.cat([earlier, rest.sum(dim=2, keepdim=True)], dim=2)
            weights[f"{name}.weight"] = functional.pad(kernel, (0, 0, 0, module.kernel_size[0] - kernel.shape[2]))
    causal.load_state_dict(weights)
    return causal.eval()
