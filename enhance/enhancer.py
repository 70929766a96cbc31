"""Apply a network to waveforms.

    enhancer = Enhancer(*load_checkpoint(path))
    enhanced = enhancer(noisy, rate)

A signal is brought to a mean power of 1 (if the configuration says so), cut into windows by a protocol
(`enhance.windows`), enhanced, joined and brought back to its own level. `enhance.files` does the same for audio files,
in blocks, and reads ahead in another thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from config import Config
from data.audio import resample
from data.levels import mean_power, unit_power_gain
from enhance.streaming import Stream, is_live
from enhance.windows import PROTOCOLS, cut, join
from models.stft import Spectrogram

GPU_BATCH = 16
"""Default batch size on a GPU. On a CPU it is 1: in batches of four, IMSE takes 1.5 to 2 times as long per window."""

MOST_CHANNELS = 32
"""A recording with more channels than this, and than samples, is taken for a transposed one."""


def default_protocol(network: nn.Module, config: Config) -> str:
    """Return "whole" for networks that can run live, which lose their state between windows, else "overlap"."""
    return "whole" if is_live(network, config) else "overlap"


class Enhancer(nn.Module):
    """A network with its STFT, applied to waveforms.

    Parameters
    ----------
    network: maps spectra to spectra; in evaluation mode.
    config: gives the STFT, the sampling rate in Hz, the segment length in samples and the level normalisation.
    batch_size: windows in one pass of the network; by default 1 on a CPU and `GPU_BATCH` on a GPU.
    """

    def __init__(self, network: nn.Module, config: Config, batch_size: int | None = None) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.spectrogram = Spectrogram(config.stft, config.model.complex_spectra)
        self.sampling_rate = config.data.sampling_rate
        self.segment_size = config.data.segment_size
        self.normalize_level = config.data.normalize_level
        self.default_protocol = default_protocol(network, config)
        self._batch_size = batch_size

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self.spectrogram.window.device

    @property
    def batch_size(self) -> int:
        """Windows in one pass of the network."""
        return self._batch_size or (GPU_BATCH if self.device.type == "cuda" else 1)

    def forward(self, wav: Any, rate: int, protocol: str | None = None) -> Any:
        """Enhance recordings of any length at any sampling rate.

        wav: samples in ±1, `[N]` or `[channels, N]`, as NumPy array or tensor, or a list of such recordings. Channels
            are enhanced independently.
        rate: sampling rate in Hz.
        protocol: one of `enhance.windows.PROTOCOLS`; None for `default_protocol`.

        Returns the enhanced recordings with type, data type, device, shape and rate of the input. Raises `ValueError`
        for other shapes, also for more than `MOST_CHANNELS` channels of fewer samples, and for NaN or infinite samples,
        `MemoryError` if a recording is too long for the protocol.
        """
        recordings = wav if isinstance(wav, list) else [wav]
        tensors = [each.detach().cpu() if isinstance(each, Tensor) else each for each in recordings]
        # NumPy has no bfloat16.
        arrays = [np.asarray(each.float() if getattr(each, "dtype", 0) == torch.bfloat16 else each) for each in tensors]
        for array in arrays:
            if array.ndim not in (1, 2) or array.dtype.kind != "f" or not np.isfinite(array).all():
                raise ValueError(f"expected finite floats [N] or [channels, N], not {array.dtype} {list(array.shape)}")
            if array.ndim == 2 and len(array) > max(MOST_CHANNELS, array.shape[1]):
                raise ValueError(f"expected [channels, N], not {list(array.shape)}; transpose it")
        channels = [channel.astype(np.float32) for array in arrays for channel in np.atleast_2d(array)]
        channels = [resample(channel, rate, self.sampling_rate) for channel in channels]
        enhanced = iter(self.enhance_signals(channels, protocol))
        results: list[np.ndarray | Tensor] = []
        for recording, array in zip(recordings, arrays, strict=True):
            result = np.zeros_like(array)
            for channel in np.atleast_2d(result):  # a view
                samples = resample(next(enhanced), self.sampling_rate, rate)[: len(channel)]
                channel[: len(samples)] = samples
            results.append(torch.from_numpy(result).to(recording) if isinstance(recording, Tensor) else result)
        return results if isinstance(wav, list) else results[0]

    def enhance_batch(self, wav: Tensor) -> Tensor:
        """Enhance waveforms `[B, N]` that are already at the network's level; returns `[B, N]`."""
        return self.spectrogram.inverse(self.network(self.spectrogram(wav)), wav.shape[-1])

    def level_gain(self, power: float) -> float:
        """Return the gain that brings a signal of this mean power to the network's level."""
        return unit_power_gain(power) if self.normalize_level else 1.0

    def enhance_signal(self, noisy: np.ndarray, protocol: str | None = None) -> np.ndarray:
        """Enhance samples `[N]` at `sampling_rate` Hz; returns float32 `[N]`. See `enhance_signals`."""
        return self.enhance_signals([noisy], protocol)[0]

    def enhance_signals(self, noisy: Sequence[np.ndarray], protocol: str | None = None) -> list[np.ndarray]:
        """Enhance signals `[N]` of any lengths at `sampling_rate` Hz; returns float32 `[N]` each.

        `protocol` is one of `enhance.windows.PROTOCOLS`, or None for `default_protocol`. Raises `MemoryError` if a
        signal is too long for it.
        """
        protocol = protocol or self.default_protocol
        signals = [np.asarray(signal, np.float32) for signal in noisy]
        if protocol == "whole" and is_live(self.network, self.config):
            stream = Stream(self.network, self.config)
            return [np.concatenate([stream.process(signal), stream.flush()]) for signal in signals]
        gains = [self.level_gain(mean_power(signal)) if len(signal) else 1.0 for signal in signals]
        plans = [PROTOCOLS[protocol](len(signal), self.segment_size) if len(signal) else [] for signal in signals]
        pieces = chain.from_iterable(
            cut([signal[:, None] * gain], plan) for signal, gain, plan in zip(signals, gains, plans, strict=True)
        )
        enhanced: list[np.ndarray] = []
        while batch := list(islice(pieces, self.batch_size)):
            enhanced += self.enhance_windows(batch)
        rest = iter(enhanced)
        return [
            np.concatenate([np.zeros((0, 1), np.float32), *join(islice(rest, len(plan)), plan)])[:, 0] / gain
            for gain, plan in zip(gains, plans, strict=True)
        ]

    @torch.inference_mode()
    def enhance_windows(self, windows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Enhance windows `[length, channels]` of any lengths that are at the network's level.

        Channels are enhanced independently. One pass of the network takes up to `batch_size` channels of one length.
        """
        noisy = [torch.from_numpy(np.ascontiguousarray(channel)) for window in windows for channel in window.T]
        enhanced: dict[int, Tensor] = {}
        for length in sorted({len(channel) for channel in noisy}):
            same_length = [index for index, channel in enumerate(noisy) if len(channel) == length]
            for start in range(0, len(same_length), self.batch_size):
                batch = same_length[start : start + self.batch_size]
                wavs = self.enhance_batch(torch.stack([noisy[index] for index in batch]).to(self.device)).cpu()
                enhanced.update(zip(batch, wavs, strict=True))
        channels = (enhanced[index].numpy() for index in range(len(noisy)))
        return [np.stack(list(islice(channels, window.shape[1])), axis=1) for window in windows]
