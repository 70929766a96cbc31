"""Live enhancement: samples go in as they come, and come out enhanced as soon as nothing later can change them.

The result is that of `enhance.enhancer.Enhancer` for the whole signal in one pass. The end of a stream is not known, so
the network must be causal, and must work at the signal's own level:

    stream = Stream(network, config)
    while recording:
        play(stream.process(record()))
    play(stream.flush())
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cli import UserError
from config import Config, StftConfig
from models.stft import Spectra, Spectrogram

MOST_FRAMES = 128
"""Frames in one pass of the network at most: a stream that is late catches up fast, in bounded memory."""


@runtime_checkable
class StreamingNetwork(Protocol):
    """A network that takes its frames in pieces, and keeps a state between them.

    The state is a named tuple of tensors and of tuples of tensors, which in an ONNX file are inputs and outputs.
    """

    def initial_state(self, batch: int) -> Any:
        """The state before the first frame of `batch` signals."""
        ...

    def stream(self, noisy: Spectra, state: Any) -> tuple[Spectra, Any]:
        """Enhance the next frames, spectra `[B, F, T]` with T ≥ 1; returns them, and the state after them."""
        ...


class Stream:
    """A network applied to one signal of one channel that comes in pieces.

    Parameters
    ----------
    network: a `StreamingNetwork`, in evaluation mode; it computes on its own device.
    config: gives the STFT and the sampling rate in Hz.

    Raises `UserError` where the network or the configuration needs the whole signal.
    """

    def __init__(self, network: nn.Module, config: Config) -> None:
        if not isinstance(network, StreamingNetwork):
            name = type(network).__name__
            raise UserError(f"{name} cannot stream: it needs the whole signal; give a causal network, as Lite-RTSE")
        if config.data.normalize_level:
            raise UserError("data.normalize_level needs the whole signal; give a network that was trained without it")
        self.rate = config.data.sampling_rate
        self.latency = config.stft.win_size / self.rate
        """Seconds from a sample's arrival to its return at most, without the time to compute."""
        self._network = network
        self._stft = config.stft
        window = Spectrogram(config.stft).window
        self._window = window.to(next(network.parameters(), window))
        self._restart()

    def _restart(self) -> None:
        self._frames = _Frames(self._stft, self._window.new_zeros(0))
        self._overlap_add = _OverlapAdd(self._stft, self._window)
        self._state = self._network.initial_state(1)
        self._owed = 0  # samples that have come but not gone

    @torch.inference_mode()
    def process(self, samples: np.ndarray) -> np.ndarray:
        """The next samples, float32 `[n]` with n ≥ 0 → the enhanced ones `[m]` that are complete with them.

        Raises `UserError` where samples are NaN or infinite, of which the network would never recover; they are
        then as if they had not come.
        """
        if not np.isfinite(samples).all():
            raise UserError("the samples hold NaN or infinite values; give zeros in their place")
        noisy = torch.tensor(samples, dtype=self._window.dtype, device=self._window.device)
        blocks = noisy.split(MOST_FRAMES * self._stft.hop_size)
        self._owed += len(noisy)
        return self._give([self._enhance(self._frames.push(block)) for block in blocks])

    @torch.inference_mode()
    def flush(self) -> np.ndarray:
        """The end of the signal: the samples `[m]` that are still owed. After it a new signal may begin."""
        samples = self._give([self._enhance(self._frames.finish()), self._overlap_add.finish()])
        self._restart()
        return samples

    def _give(self, pieces: list[Tensor]) -> np.ndarray:
        """Join pieces of the enhanced signal, as far as the noisy one went."""
        samples = torch.cat(pieces)[: self._owed]
        self._owed -= len(samples)
        return samples.cpu().numpy()

    def _enhance(self, frames: Tensor) -> Tensor:
        """Frames `[k, win_size]` → the samples that they complete."""
        if not len(frames):
            return frames.new_zeros(0)
        stft = self._stft
        left = stft.n_fft // 2 - _lead(stft)
        padded = functional.pad(frames * self._window, (left, stft.n_fft - stft.win_size - left))
        spectrum = torch.fft.rfft(padded).T[None]  # [1, F, k]
        noisy = Spectra.from_stft(spectrum, stft.compress_factor)
        enhanced, self._state = self._network.stream(noisy, self._state)
        spectrum = torch.polar(enhanced.mag ** (1 / stft.compress_factor), enhanced.pha)
        return self._overlap_add.push(torch.fft.irfft(spectrum[0].T, stft.n_fft)[:, left : left + stft.win_size])


def _lead(stft: StftConfig) -> int:
    """Samples of a frame before the one it is centred on. A frame here is what the window leaves of `n_fft` samples."""
    return stft.n_fft // 2 - (stft.n_fft - stft.win_size) // 2


class _Frames:
    """Cuts a signal in pieces into the frames of `Spectrogram`: centred, the signal's edges reflected."""

    def __init__(self, stft: StftConfig, empty: Tensor) -> None:
        self._size, self._hop, self._lead = stft.win_size, stft.hop_size, _lead(stft)
        self._stft = stft
        self._samples = 0
        self._frames = 0
        # Begins one sample before the next frame, since the reflected end may reach back as far.
        self._held = empty

    def push(self, samples: Tensor) -> Tensor:
        """The next samples `[n]` → the frames that are complete with them, `[k, win_size]`."""
        begun = self._samples > self._lead
        self._samples += len(samples)
        self._held = torch.cat([self._held, samples])
        if self._samples > self._lead and not begun:
            edge = self._held[1 : self._lead + 1].flip(0)
            self._held = torch.cat([edge.new_zeros(1), edge, self._held])
        # Centred on sample i · hop_size, a frame ends before i · hop_size + win_size - lead.
        reach = self._samples - (self._size - self._lead)
        return self._take(reach // self._hop + 1 if self._samples > self._lead else 0)

    def finish(self) -> Tensor:
        """The end of the signal → the frames that reach beyond it."""
        frames = self.push(self._held.new_zeros(self._stft.padding(self._samples)))
        edge = self._held[-(self._size - self._lead) - 1 : -1].flip(0)
        self._held = torch.cat([self._held, edge])
        return torch.cat([frames, self._take(self._samples // self._hop + 1)])

    def _take(self, frames: int) -> Tensor:
        """The frames up to that many since the beginning, `[k, win_size]`."""
        count = frames - self._frames
        if count <= 0:
            return self._held.new_zeros(0, self._size)
        taken = self._held[1:].unfold(0, self._size, self._hop)[:count]
        self._held = self._held[count * self._hop :]
        self._frames = frames
        return taken


class _OverlapAdd:
    """Joins frames as `torch.istft` does: windowed, added up, divided by the sum of the squared windows."""

    def __init__(self, stft: StftConfig, window: Tensor) -> None:
        self._hop, self._window = stft.hop_size, window
        self._before = _lead(stft)  # samples to come that lie before the signal's first
        # The sums of frames and of squared windows so far, where later frames will be added.
        self._sums = window.new_zeros(2, stft.win_size - stft.hop_size)

    def push(self, frames: Tensor) -> Tensor:
        """The next frames `[k, win_size]`, k ≥ 1 → the samples that they complete."""
        count, size = frames.shape
        terms = torch.stack([frames * self._window, self._window.square().expand_as(frames)])
        length = (count - 1) * self._hop + size
        sums = functional.fold(terms.transpose(1, 2), (1, length), (1, size), stride=(1, self._hop)).view(2, length)
        sums[:, : size - self._hop] += self._sums
        complete, self._sums = sums.split([count * self._hop, size - self._hop], dim=1)
        skipped = min(self._before, complete.shape[1])
        self._before -= skipped
        return complete[0, skipped:] / complete[1, skipped:]

    def finish(self) -> Tensor:
        """The samples that no frame is left to change."""
        return self._sums[0, self._before :] / self._sums[1, self._before :]
