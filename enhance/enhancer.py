"""From noisy samples to enhanced samples: how a network is applied to sound.

Each channel's level is normalised, where the configuration says so; its windows become spectra, are enhanced, and
become samples again; the windows are joined and the level restored:

    enhancer = Enhancer(*load_checkpoint(path))
    enhanced = enhancer.enhance_signal(noisy)

`Plan` cuts and joins, `Enhancer.enhance_rows` computes. Signals in memory go through `Enhancer.enhance`; the files of
inference.py through `enhance.files`, which does the same with windows of several files in one batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from config import Config
from data.levels import SILENT_POWER
from enhance.windows import PROTOCOLS, Window, cut, join
from models.stft import Spectrogram

LEVEL_BLOCK = 2**20
"""Samples a channel to measure at a time: a minute, in which the level is the release's to the last bit."""

GPU_BATCH = 16
"""Windows enhanced at a time on a GPU; a CPU is busy with one."""


@dataclass
class LevelMeter:
    """Counts samples and measures each channel's energy, block by block.

    Why the last bit matters: the first frame of a reflected signal is symmetric, so its phases are 0 or π and their
    sign is that of a rounding error. A factor that differs in its last bit from the release's turns some of them
    over by 2π, which the network hears: up to 26 steps of 16 bits in the enhanced signal. Hence float32, torch's
    summation and division, and one thread, since that order depends on the number of threads.
    """

    samples: int = 0
    energy: np.ndarray | float = 0.0

    def measure(self, blocks: Iterable[np.ndarray]) -> LevelMeter:
        """Take in blocks `[n, channels]` of a signal."""
        threads = torch.get_num_threads()
        for block in blocks:
            self.samples += len(block)
            torch.set_num_threads(1)
            channels = torch.from_numpy(np.ascontiguousarray(block.T))
            sums = [float(torch.sum(channel**2)) for channel in channels]
            torch.set_num_threads(threads)
            self.energy = self.energy + np.array(sums)
        return self

    def factors(self) -> np.ndarray:
        """What brings each channel to a mean power of 1: sqrt(N / sum(x²)), float32 `[channels]`; 1 for silence."""
        energy = np.atleast_1d(self.energy)
        energy = np.where(energy > SILENT_POWER * self.samples, energy, self.samples).astype(np.float32)
        return torch.sqrt(self.samples / torch.from_numpy(energy)).numpy()


@dataclass(frozen=True)
class Plan:
    """How one signal goes through the network: its windows, and what brings each channel to the network's level.

    protocol, rate: what the windows come from, and their samples a second.
    """

    windows: Sequence[Window]
    factors: np.ndarray
    protocol: str
    rate: int

    def cut(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Blocks `[n, channels]` of the signal → its windows `[length, channels]` at the network's level."""
        return cut((block * self.factors for block in blocks), self.windows)

    def join(self, pieces: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Enhanced windows `[length, channels]` → blocks `[n, channels]` of the signal at its own level."""
        return (block / self.factors for block in join(pieces, self.windows))


class Enhancer(nn.Module):
    """A network with its spectrogram, applied to waveforms.

    Parameters
    ----------
    network: maps `Spectra` to `Spectra`.
    config: gives the STFT, the sampling rate in Hz, the segment length in samples, and whether levels are normalised.
    """

    def __init__(self, network: nn.Module, config: Config) -> None:
        super().__init__()
        self.network = network
        self.spectrogram = Spectrogram(config.stft)
        self.rate = config.data.sampling_rate
        self.segment = config.data.segment_size
        self.normalizes_level = config.data.normalize_level

    def forward(self, wav: Tensor) -> Tensor:
        """Noisy waveforms `[B, N]` at the level that the network is made for → enhanced ones `[B, N]`."""
        return self.spectrogram.inverse(self.network(self.spectrogram(wav)), wav.shape[-1])

    def factors(self, level: LevelMeter) -> np.ndarray:
        """What brings each channel of a signal to the level that the network is made for, float32 `[channels]`."""
        factors = level.factors()
        return factors if self.normalizes_level else np.ones_like(factors)

    def plan(self, level: LevelMeter, protocol: str) -> Plan:
        """The plan for a signal that `level` has measured; `protocol` is one of `enhance.windows.PROTOCOLS`.

        Raises `MemoryError` where the signal is too long for the protocol.
        """
        windows = PROTOCOLS[protocol](level.samples, self.segment)
        return Plan(windows, self.factors(level), protocol, self.rate)

    def enhance(self, blocks: Iterable[np.ndarray], level: LevelMeter, protocol: str) -> Iterator[np.ndarray]:
        """A signal in blocks `[n, channels]` at this enhancer's rate → the enhanced signal, likewise in blocks.

        `level` has measured the whole signal before; `protocol` is one of `enhance.windows.PROTOCOLS`. Channels are
        enhanced independently. Memory does not grow with the signal's length, except with protocol "whole".
        """
        plan = self.plan(level, protocol)
        yield from plan.join(self.enhance_windows(plan.cut(blocks)))

    def enhance_signal(self, noisy: np.ndarray, protocol: str = "overlap") -> np.ndarray:
        """A whole signal `[N]` of one channel at this enhancer's rate → the enhanced one, float32 `[N]`."""
        blocks = [np.asarray(noisy, np.float32)[:, None]]
        return np.concatenate(list(self.enhance(blocks, LevelMeter().measure(blocks), protocol)))[:, 0]

    def enhance_windows(self, pieces: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Windows `[length, channels]` at the network's level, all of one length → enhanced, several at a time."""
        batch_size = GPU_BATCH if self.device.type == "cuda" else 1
        while group := list(islice(pieces, batch_size)):
            rows = torch.from_numpy(np.concatenate([piece.T for piece in group]))  # [windows·channels, length]
            enhanced = torch.cat([self.enhance_rows(some) for some in rows.split(batch_size)])
            for piece in enhanced.numpy().reshape(len(group), -1, rows.shape[1]):
                yield piece.T

    @torch.inference_mode()
    def enhance_rows(self, rows: Tensor) -> Tensor:
        """Waveforms `[B, N]` on the CPU at the network's level → enhanced ones on the CPU, in one pass."""
        return self(rows.to(self.device)).cpu()

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self.spectrogram.window.device
