"""F0 labels: signals of known period, a plain version, limits; the loss by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from models.f0 import CLASSES, UNVOICED, f0_classes, f0_loss
from tests.fixtures.signals import speech_like, with_noise

RATE = 16_000


def harmonics(hertz: float, seconds: float = 0.5, partials: int = 8) -> Tensor:
    """Return partials that become weaker, `[N]`."""
    n = torch.arange(int(RATE * seconds), dtype=torch.float64) / RATE
    return sum((torch.sin(2 * math.pi * k * hertz * n) / k for k in range(1, partials + 1)), torch.zeros_like(n))


def plain_classes(wav: np.ndarray) -> list[int]:
    """Transcription of the rule, frame by frame and lag by lag."""
    frames = -(-len(wav) // 256) + 1
    padded = np.concatenate([np.zeros(256 + 257), wav, np.zeros(512)])
    starts = [257 + 256 * t for t in range(frames)]
    energies = [np.sum(padded[start : start + 512] ** 2) for start in starts]
    classes: list[int] = []
    for start, energy in zip(starts, energies, strict=True):
        frame = padded[start : start + 512]
        rho: dict[int, float] = {}
        for lag in range(31, 258):
            earlier = padded[start - lag : start - lag + 512]
            scale = math.sqrt(energy * max(np.sum(earlier**2), 1e-6 * energy))
            rho[lag] = float(frame @ earlier) / scale if scale else 0.0
        largest = max(rho[lag] for lag in range(32, 257))
        peaks = [
            lag for lag in range(32, 257) if rho[lag] >= max(rho[lag - 1], rho[lag + 1]) and rho[lag] >= 0.9 * largest
        ]
        voiced = energy > 0.003 * max(energies) and largest >= 0.6 and peaks
        classes.append(256 - peaks[0] if voiced else 225)
    return classes


def test_equals_the_plain_version() -> None:
    clean = speech_like(1.2, seed=3)[:17_003]
    for wav in (clean, with_noise(clean, 10)):
        expected = plain_classes(wav)
        assert f0_classes(torch.from_numpy(wav)[None].double())[0].tolist() == expected
        assert 5 < sum(each < UNVOICED for each in expected) < len(expected) - 5


@pytest.mark.parametrize("period", [32, 33, 80, 131, 200, 256])
def test_periods_of_harmonic_sounds(period: int) -> None:
    classes = f0_classes(harmonics(RATE / period)[None])[0]
    assert classes[3:-2].eq(256 - period).all()


def test_noise_silence_and_faint_frames_are_unvoiced() -> None:
    noise = torch.randn(1, 8000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert f0_classes(noise).eq(UNVOICED).all()
    assert f0_classes(0 * noise).eq(UNVOICED).all()
    voice = harmonics(100, 1.0)
    faint = torch.cat([voice[:8000], voice[8000:] * math.sqrt(0.002)])[None]  # −27 dB
    classes = f0_classes(torch.cat([faint, faint * 1e-3]))
    assert torch.equal(classes[0], classes[1])  # relative to the largest energy of each signal
    assert classes[0, 3:30].eq(256 - 160).all() and classes[0, 34:].eq(UNVOICED).all()
    assert f0_classes(voice[None])[0, 34:-2].eq(256 - 160).all()


def test_frames_are_those_of_the_stft() -> None:
    """An onset at sample 5120 is in frames from 20 on, which reaches up to sample 5375."""
    sound = torch.cat([torch.zeros(5120, dtype=torch.float64), harmonics(400)])[None]
    for samples, frames in ((8000, 33), (8192, 33), (8193, 34)):
        classes = f0_classes(sound[:, :samples])[0]
        assert len(classes) == frames
        assert classes[:20].eq(UNVOICED).all() and classes[22:30].eq(256 - 40).all()


def test_clips_shorter_than_a_frame() -> None:
    assert f0_classes(torch.zeros(2, 512)).shape == (2, 3)
    with pytest.raises(ValueError, match=r"512 samples.* 511$"):
        f0_classes(torch.zeros(2, 511))


def test_loss_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, CLASSES, generator=generator, dtype=torch.float64).requires_grad_()
    classes = torch.tensor([[0, 100, UNVOICED]])
    log_p = torch.log_softmax(logits.detach(), dim=-1)[0]
    expected = -log_p[2, UNVOICED].item()
    for row, label in enumerate((0, 100)):
        shares = [math.exp(-((c - label) ** 2) / (2 * 2**2)) for c in range(UNVOICED)]
        expected -= sum(share * log_p[row, c].item() for c, share in enumerate(shares)) / sum(shares)
    loss = f0_loss(logits, classes)
    assert loss.item() == pytest.approx(expected / 3, rel=1e-12)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[0, 1].argmin() == 100 and logits.grad[0, 2].argmin() == UNVOICED
