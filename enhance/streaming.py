"""Live enhancement: samples go in as they come, and come out as soon as no later sample can change them.

    stream = Stream(network, config)
    while recording:
        play(stream.process(record()))
    play(stream.flush())

The output equals that of `Enhancer.enhance_signal(noisy, "whole")`. The network must be causal and work at the signal's
own level, because the rest of the signal is not known.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from cli import UserError
from config import Config, StftConfig
from data.audio import LARGEST_SAMPLE
from models.stft import AnySpectra, Spectrogram

MOST_FRAMES = 128
"""Maximum number of frames in one pass of the network: a stream that is late catches up in bounded memory."""


@runtime_checkable
class StreamingNetwork(Protocol):
    """A network that takes its frames in pieces and keeps a state between them."""

    def stream(self, noisy: Any, state: Any) -> tuple[AnySpectra, Any]:
        """Enhance the next frames, spectra `[B, F, T]` with T ≥ 1; returns T frames and the next state.

        T is a multiple of `NetworkConfig.block_frames`. The frames that are returned precede the last
        `NetworkConfig.delay_frames` ones. The state is None at the start of the signals, then what the call before
        returned: in PyTorch a tuple of tensors, whose shapes do not change and for which zeros mean the same as None.
        """
        ...


def is_live(network: nn.Module, config: Config) -> bool:
    """Return whether a network can run live: it keeps a state, and works at the signal's own level."""
    return isinstance(network, StreamingNetwork) and not config.data.normalize_level


class Stream:
    """A streaming network applied to one signal of one channel.

    Parameters
    ----------
    network: a `StreamingNetwork` in evaluation mode; it computes on its own device and in its own data type.
    config: gives the STFT and the sampling rate in Hz.

    Raises `UserError` if the network or the configuration needs the whole signal.
    """

    def __init__(self, network: nn.Module, config: Config) -> None:
        if not isinstance(network, StreamingNetwork):
            raise UserError(
                f"{type(network).__name__} cannot stream: its output depends on later frames; give a causal network, "
                "such as DPCRN, or DCCRN with model.look_ahead 0"
            )
        if config.data.normalize_level:
            raise UserError("data.normalize_level needs the whole signal; give a network that was trained without it")
        self.sampling_rate = config.data.sampling_rate
        # A graph may take longer pieces than its network.
        self._block = getattr(network, "block_frames", config.model.block_frames)
        self._delay = config.model.delay_frames
        waiting = (self._block - 1 + self._delay) * config.stft.hop_size
        self.latency = (config.stft.win_size + waiting) / self.sampling_rate
        """Maximum delay of a sample in seconds, without the time to compute."""
        self._network = network
        self._stft = config.stft
        self._spectrogram = Spectrogram(config.stft, config.model.complex_spectra)
        window = self._spectrogram.window
        weights = next(network.parameters(), window)
        self._device = weights.device
        self._window = window.to(weights.dtype).numpy()
        self._restart()

    def _restart(self) -> None:
        self._framer = _Framer(self._stft, self._window)
        self._overlap_add = _OverlapAdd(self._stft, self._window)
        self._state = None
        self._held = np.zeros((0, self._stft.win_size), self._window.dtype)  # noisy frames of a block in part
        self._leading = self._delay  # frames still to come out that lie before the signal
        self._pending = 0  # samples that have come in but not gone out

    @torch.inference_mode()
    def process(self, samples: np.ndarray) -> np.ndarray:
        """Take the next samples, float32 `[n]` with n ≥ 0; returns the enhanced samples `[m]` that are ready.

        Raises `ValueError` for another shape or integers, and `UserError` if samples are NaN, infinite or beyond
        ±`data.audio.LARGEST_SAMPLE`, from which the network might never recover; the stream continues as if they had
        not come.
        """
        if not isinstance(samples, np.ndarray) or samples.ndim != 1 or samples.dtype.kind != "f":
            shape, kind = getattr(samples, "shape", ()), getattr(samples, "dtype", type(samples).__name__)
            raise ValueError(f"expected an array of floats [n] in ±1, not {kind} {list(shape)}")
        if not (np.abs(samples) <= LARGEST_SAMPLE).all():  # also if they are NaN
            raise UserError("the samples hold NaN, infinite or overlarge values; give zeros in their place")
        self._pending += len(samples)
        most = MOST_FRAMES * self._stft.hop_size
        pieces = [samples[start : start + most] for start in range(0, len(samples), most)]
        return self._take([self._enhance(self._framer.push(piece)) for piece in pieces])

    @torch.inference_mode()
    def flush(self) -> np.ndarray:
        """End the signal; returns its last enhanced samples `[m]`. A new signal may follow."""
        samples = self._take([self._enhance(self._framer.finish(), last=True), self._overlap_add.finish()])
        self._restart()
        return samples

    def _take(self, enhanced: list[np.ndarray]) -> np.ndarray:
        """Join enhanced samples, without those of the padding at the signal's end."""
        samples = np.concatenate([self._window[:0], *enhanced])[: self._pending]
        self._pending -= len(samples)
        return samples

    def _enhance(self, frames: np.ndarray, last: bool = False) -> np.ndarray:
        """Enhance frames `[k, win_size]`; returns the samples that are complete with them, or all if they are `last`.

        Frames that do not fill a block wait for the next ones. The last frames are followed by silent ones.
        """
        stft = self._stft
        left = (stft.n_fft - stft.win_size) // 2  # torch.stft centres a window that is shorter than n_fft
        frames = np.concatenate([self._held, frames])
        count = len(frames) if last else len(frames) // self._block * self._block
        frames, self._held = frames[:count], frames[count:]
        filling = self._delay + -(count + self._delay) % self._block if last else 0
        if not count + filling:
            return self._window[:0]
        windowed = np.zeros((count, stft.n_fft), self._window.dtype)
        windowed[:, left : left + stft.win_size] = frames * self._window
        spectrum = torch.fft.rfft(torch.from_numpy(windowed).to(self._device)).T[None]  # [1, F, k]
        noisy = self._spectrogram.from_stft(spectrum)
        if filling:
            noisy = type(noisy)(*(functional.pad(part, (0, filling)) for part in noisy))
        enhanced, self._state = self._network.stream(noisy, self._state)
        spectrum = self._spectrogram.to_stft(enhanced)[0].T  # [T, F]
        skip = min(self._leading, len(spectrum))
        self._leading -= skip
        spectrum = spectrum[skip : len(spectrum) - max(filling - self._delay, 0)]
        if not len(spectrum):
            return self._window[:0]
        enhanced_frames = torch.fft.irfft(spectrum, stft.n_fft)[:, left : left + stft.win_size]
        return self._overlap_add.push(enhanced_frames.cpu().numpy())


def _lead(stft: StftConfig) -> int:
    """Return the number of samples between a frame's start and its centre, of a frame of `win_size` samples."""
    return stft.n_fft // 2 - (stft.n_fft - stft.win_size) // 2


class _Framer:
    """Cuts a signal that comes in pieces into the frames of `torch.stft`: centred, with reflected edges.

    It uses NumPy, as `_OverlapAdd` does, whose operations on single frames take a quarter of the time of PyTorch's.

    Frame i is centred on sample i · hop_size: it holds the samples from i · hop_size − lead up to, but without,
    i · hop_size − lead + win_size.
    """

    def __init__(self, stft: StftConfig, window: np.ndarray) -> None:
        self._stft = stft
        self._lead = _lead(stft)
        self._samples = 0  # that have come
        self._frames = 0  # that have gone
        # Begins one sample before the next frame, because the reflection at the end may reach back as far.
        self._held = window[:0]

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Take the next samples `[n]`; returns the frames that are complete with them, `[k, win_size]`."""
        had_lead = self._samples > self._lead
        self._samples += len(samples)
        self._held = np.concatenate([self._held, samples.astype(self._held.dtype)])
        if self._samples <= self._lead:  # too few for the reflection before the first sample
            return self._take(0)
        if not had_lead:
            self._held = np.concatenate([self._held[:1], self._held[self._lead : 0 : -1], self._held])
        return self._take((self._samples + self._lead - self._stft.win_size) // self._stft.hop_size + 1)

    def finish(self) -> np.ndarray:
        """End the signal; returns the frames that reach beyond it."""
        frames = self.push(np.zeros(self._stft.padding(self._samples)))
        tail = self._stft.win_size - self._lead
        self._held = np.concatenate([self._held, self._held[-tail - 1 : -1][::-1]])
        return np.concatenate([frames, self._take(self._samples // self._stft.hop_size + 1)])

    def _take(self, end: int) -> np.ndarray:
        """Return the frames from the next one up to, but without, frame `end`; `[k, win_size]`."""
        size, hop = self._stft.win_size, self._stft.hop_size
        count = max(end - self._frames, 0)
        frames = [self._held[1 + i * hop :][:size] for i in range(count)]
        self._held = self._held[count * hop :]
        self._frames += count
        return np.stack(frames) if frames else np.zeros((0, size), self._held.dtype)


class _OverlapAdd:
    """Joins frames as `torch.istft` does: windowed, summed, divided by the sum of the squared windows."""

    def __init__(self, stft: StftConfig, window: np.ndarray) -> None:
        self._hop, self._window = stft.hop_size, window
        self._skip = _lead(stft)  # samples that still lie before the signal's first
        # Sums of the frames and of the squared windows, over samples to which later frames will be added.
        self._sums = np.zeros((2, stft.win_size - stft.hop_size), window.dtype)

    def push(self, frames: np.ndarray) -> np.ndarray:
        """Add frames `[k, win_size]` with k ≥ 1; returns the samples that no later frame changes."""
        count, size = frames.shape
        sums = np.zeros((2, (count - 1) * self._hop + size), self._window.dtype)
        sums[:, : size - self._hop] = self._sums
        for index, frame in enumerate(frames):
            sums[:, index * self._hop :][:, :size] += frame * self._window, self._window**2
        complete, self._sums = np.split(sums, [count * self._hop], axis=1)
        skip = min(self._skip, complete.shape[1])
        self._skip -= skip
        return complete[0, skip:] / complete[1, skip:]

    def finish(self) -> np.ndarray:
        """Return the remaining samples."""
        return self._sums[0, self._skip :] / self._sums[1, self._skip :]
