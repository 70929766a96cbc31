"""Apply a network to waveforms.

    enhancer = Enhancer(*load_checkpoint(path))
    enhanced = enhancer.enhance_signal(noisy)

A signal is brought to a mean power of 1 (if the configuration says so), cut into windows by a protocol
(`enhance.windows`), enhanced, joined and brought back to its own level. `enhance.files` does the same for audio files,
in blocks, and reads ahead in another thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from config import Config
from data.levels import mean_power, unit_power_gain
from enhance.windows import PROTOCOLS, cut, join
from models.stft import Spectrogram

GPU_BATCH = 16
"""Default batch size on a GPU. On a CPU it is 1: in batches of four, IMSE takes 1.5 to 2 times as long per window."""


class Enhancer(nn.Module):
    """A network with its STFT, applied to waveforms.

    Parameters
    ----------
    network: maps `Spectra` to `Spectra`; in evaluation mode.
    config: gives the STFT, the sampling rate in Hz, the segment length in samples and the level normalisation.
    batch_size: windows in one pass of the network; by default 1 on a CPU and `GPU_BATCH` on a GPU.
    """

    def __init__(self, network: nn.Module, config: Config, batch_size: int | None = None) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.spectrogram = Spectrogram(config.stft)
        self.sampling_rate = config.data.sampling_rate
        self.segment_size = config.data.segment_size
        self.normalize_level = config.data.normalize_level
        self._batch_size = batch_size

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self.spectrogram.window.device

    @property
    def batch_size(self) -> int:
        """Windows in one pass of the network."""
        return self._batch_size or (GPU_BATCH if self.device.type == "cuda" else 1)

    def forward(self, wav: Tensor) -> Tensor:
        """Enhance waveforms `[B, N]` that are already at the network's level; returns `[B, N]`."""
        return self.spectrogram.inverse(self.network(self.spectrogram(wav)), wav.shape[-1])

    def level_gain(self, power: float) -> float:
        """Return the gain that brings a signal of this mean power to the network's level."""
        return unit_power_gain(power) if self.normalize_level else 1.0

    def enhance_signal(self, noisy: np.ndarray, protocol: str = "overlap") -> np.ndarray:
        """Enhance samples `[N]` at `sampling_rate` Hz; returns float32 `[N]`.

        `protocol` is one of `enhance.windows.PROTOCOLS`. Raises `MemoryError` if the signal is too long for it.
        """
        noisy = np.asarray(noisy, np.float32)
        if not len(noisy):
            return noisy
        gain = self.level_gain(mean_power(noisy))
        windows = PROTOCOLS[protocol](len(noisy), self.segment_size)
        pieces = cut([noisy[:, None] * gain], windows)
        enhanced: list[np.ndarray] = []
        while batch := list(islice(pieces, self.batch_size)):
            enhanced += self.enhance_windows(batch)
        return np.concatenate(list(join(enhanced, windows)))[:, 0] / gain

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
                wavs = self(torch.stack([noisy[index] for index in batch]).to(self.device)).cpu()
                enhanced.update(zip(batch, wavs, strict=True))
        channels = (enhanced[index].numpy() for index in range(len(noisy)))
        return [np.stack(list(islice(channels, window.shape[1])), axis=1) for window in windows]
