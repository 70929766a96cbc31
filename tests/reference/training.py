"""Plain transcription of the published training loop: the reference for the values and the speed of `Trainer`.

A worker process reads both recordings of a pair, cuts the crop and computes its spectra. A step enhances the batch,
waits for the PESQ of its crops, and updates the discriminator and the generator.
"""

from __future__ import annotations

import math
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext

import numpy as np
import soundfile
import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import AdamW
from torch.utils.data import DataLoader, Dataset

from config import Config, StftConfig
from data.dataset import random_start
from data.file_lists import Utterance
from metrics.pesq import wideband_pesq
from metrics.signals import ScoreError
from models.discriminator import DROPOUT, HIDDEN, MetricDiscriminator
from models.stft import PHASE_FLOOR
from tests.reference.muse import plain_network
from utils.processes import available_cores

# With "spawn" each process would import everything again.
START = "fork" if sys.platform == "linux" else "spawn"

PlainBatch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""The clean waveform, its magnitude and phase, and the noisy magnitude and phase."""


def spectra(wav: Tensor, stft: StftConfig) -> tuple[Tensor, Tensor]:
    window = torch.hann_window(stft.win_size)
    spectrum = torch.stft(wav, stft.n_fft, stft.hop_size, stft.win_size, window, center=True, return_complex=True)
    # Unlike the published loop, whose FFT library decides on the phase of rounding errors: see `models.stft`.
    floor = PHASE_FLOOR * spectrum.abs().amax(dim=1, keepdim=True)
    zeros = torch.tensor([0.0, 0.0, -0.0, -0.0]).repeat(stft.bins)[: stft.bins, None]
    zeros[-1] = 0.0  # the Nyquist frequency
    real = torch.where(spectrum.real.abs() < floor, 0.0, spectrum.real)
    imaginary = torch.where(spectrum.imag.abs() < floor, zeros, spectrum.imag)
    return spectrum.abs() ** stft.compress_factor, torch.atan2(imaginary, real)


def waveform(mag: Tensor, pha: Tensor, stft: StftConfig) -> Tensor:
    window = torch.hann_window(stft.win_size).to(mag.device)
    mag = mag ** (1 / stft.compress_factor)
    spectrum = torch.complex(mag * torch.cos(pha), mag * torch.sin(pha))
    return torch.istft(spectrum, stft.n_fft, stft.hop_size, stft.win_size, window, center=True)


class PlainDataset(Dataset[PlainBatch]):
    """The crops of the first epoch of `data.dataset.PairedDataset`, with their spectra."""

    def __init__(self, utterances: Sequence[Utterance], config: Config) -> None:
        self.utterances, self.config = utterances, config

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> PlainBatch:
        segment = self.config.data.segment_size
        clean = torch.from_numpy(soundfile.read(self.utterances[index].clean, dtype="float32")[0])
        noisy = torch.from_numpy(soundfile.read(self.utterances[index].noisy, dtype="float32")[0])
        factor = torch.sqrt(len(noisy) / noisy.double().square().sum()).float()
        clean, noisy = clean * factor, noisy * factor
        random = np.random.default_rng([self.config.train.seed, 0, index])
        start = random_start(random, len(noisy), segment)
        clean, noisy = clean[start : start + segment], noisy[start : start + segment]
        clean = functional.pad(clean, (0, segment - len(clean)))
        noisy = functional.pad(noisy, (0, segment - len(noisy)))
        return clean, *spectra(clean, self.config.stft), *spectra(noisy, self.config.stft)


def plain_loader(
    utterances: Sequence[Utterance], config: Config, order: Sequence[int], device: torch.device
) -> DataLoader[PlainBatch]:
    return DataLoader(
        PlainDataset(utterances, config),
        config.train.batch_size,
        sampler=order,
        num_workers=1,
        multiprocessing_context=START,
        pin_memory=device.type == "cuda",
        drop_last=True,
    )


def pesq_or_nan(clean: np.ndarray, enhanced: np.ndarray) -> float:
    try:
        return wideband_pesq(clean, enhanced)
    except ScoreError:
        return math.nan


def new_pool(crops: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context(START)
    return ProcessPoolExecutor(min(crops, available_cores()), context)


def pesq_labels(pool: ProcessPoolExecutor, clean: np.ndarray, enhanced: np.ndarray) -> Tensor | None:
    """Return (PESQ − 1) / 3.5 of the crops `[B]`, or None if any of them has no PESQ."""
    scores = torch.tensor(list(pool.map(pesq_or_nan, clean, enhanced)))
    return None if scores.isnan().any() else (scores - 1) / 3.5


def differences(size: int, device: torch.device) -> Tensor:
    """Return the matrix of first differences: −1 on the diagonal, 1 above it."""
    ones = torch.ones(size, size, device=device)
    return torch.triu(ones, 1) - torch.triu(ones, 2) - torch.eye(size, device=device)


def anti_wrapping(x: Tensor) -> Tensor:
    return torch.abs(x - 2 * math.pi * torch.round(x / (2 * math.pi)))


def phase_loss(clean: Tensor, pha: Tensor) -> Tensor:
    """Return IP + GD + IAF of phases `[B, F, T]`."""
    along_frequency = differences(clean.shape[1], clean.device)  # F×F
    along_time = differences(clean.shape[2], clean.device)  # T×T
    clean_delay = torch.matmul(clean.transpose(1, 2), along_frequency)
    delay = torch.matmul(pha.transpose(1, 2), along_frequency)
    clean_speed = torch.matmul(clean, along_time)
    speed = torch.matmul(pha, along_time)
    ip = anti_wrapping(clean - pha).mean()
    gd = anti_wrapping(clean_delay - delay).mean()
    iaf = anti_wrapping(clean_speed - speed).mean()
    return ip + gd + iaf


class ReferenceTrainer:
    """Networks and optimizers, with weights from the seed. Without a `pool` for PESQ, each step starts its own."""

    def __init__(self, config: Config, device: torch.device, pool: ProcessPoolExecutor | None = None) -> None:
        self.config, self.device, self.pool = config, device, pool
        torch.manual_seed(config.train.seed)
        self.network = plain_network(config).to(device)
        self.discriminator = MetricDiscriminator().to(device)
        rate, betas = config.optim.learning_rate, (config.optim.adam_b1, config.optim.adam_b2)
        self.optimizer = AdamW(self.network.parameters(), rate, betas)
        self.discriminator_optimizer = AdamW(self.discriminator.parameters(), rate, betas)

    def dropout(self, use: int, batch_size: int) -> Tensor:  # noqa: ARG002 (replaced in tests)
        return functional.dropout(torch.ones(batch_size, HIDDEN, device=self.device), DROPOUT)

    def step(self, batch: PlainBatch) -> dict[str, Tensor]:
        """Train on one batch; returns the unweighted loss terms, and their weighted sum without the metric term."""
        wav, clean_mag, clean_pha, noisy_mag, noisy_pha = (part.to(self.device, non_blocking=True) for part in batch)
        ones = torch.ones(len(wav), device=self.device)
        mag, pha = self.network(noisy_mag, noisy_pha)
        enhanced_wav = waveform(mag, pha, self.config.stft)
        with nullcontext(self.pool) if self.pool else new_pool(len(wav)) as pool:
            labels = pesq_labels(pool, wav.cpu().numpy(), enhanced_wav.detach().cpu().numpy())

        self.discriminator_optimizer.zero_grad()
        of_clean = self.discriminator(clean_mag, clean_mag, self.dropout(0, len(wav)))
        of_enhanced = self.discriminator(clean_mag, mag.detach(), self.dropout(1, len(wav)))
        discriminator_loss = functional.mse_loss(of_clean, ones)
        if labels is not None:
            discriminator_loss = discriminator_loss + functional.mse_loss(of_enhanced, labels.to(self.device))
        discriminator_loss.backward()
        self.discriminator_optimizer.step()

        self.optimizer.zero_grad()
        magnitude = functional.mse_loss(mag, clean_mag)
        phase = phase_loss(clean_pha, pha)
        clean_complex = torch.stack([clean_mag * torch.cos(clean_pha), clean_mag * torch.sin(clean_pha)], dim=-1)
        enhanced_complex = torch.stack([mag * torch.cos(pha), mag * torch.sin(pha)], dim=-1)
        complex_ = 2 * functional.mse_loss(enhanced_complex, clean_complex)
        metric = functional.mse_loss(self.discriminator(clean_mag, mag, self.dropout(2, len(wav))), ones)
        loss = 0.9 * magnitude + 0.3 * phase + 0.1 * complex_
        (loss + 0.05 * metric).backward()
        self.optimizer.step()
        return {
            "loss": loss.detach(),
            "magnitude": magnitude.detach(),
            "phase": phase.detach(),
            "complex": complex_.detach(),
            "metric": metric.detach(),
            "discriminator": discriminator_loss.detach(),
        }
