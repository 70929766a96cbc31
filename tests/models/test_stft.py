"""The STFT pair: values by hand, the round trip, and gradients where the magnitude is zero."""

from __future__ import annotations

import math

import pytest
import torch

from config import Config, StftConfig
from models.stft import Spectra, Spectrogram


@pytest.fixture
def spectrogram(config: Config) -> Spectrogram:
    return Spectrogram(config.stft)


def test_a_sine_on_a_bin_has_the_magnitude_and_phase_of_theory(spectrogram: Spectrogram) -> None:
    bin_index, amplitude, n_fft, hop = 40, 0.5, 510, 100
    n = torch.arange(5100, dtype=torch.float64)
    wav = (amplitude * torch.cos(2 * math.pi * bin_index * n / n_fft + 0.3)).float()
    spectra = spectrogram(wav[None])
    assert spectra.mag.shape == spectra.pha.shape == (1, 256, 52)
    frame = 20  # its window starts at sample 20·hop − n_fft/2; a Hann window sums to n_fft / 2
    expected_phase = 2 * math.pi * bin_index * (frame * hop - n_fft // 2) / n_fft + 0.3
    assert spectra.mag[0, bin_index, frame].item() == pytest.approx((amplitude / 2 * n_fft / 2) ** 0.3, rel=1e-5)
    difference = spectra.pha[0, bin_index, frame].item() - expected_phase
    assert math.remainder(difference, 2 * math.pi) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "values"),
    [("hann", [0, 0.5, 1, 0.5]), ("sqrt_hann", [0, 0.5**0.5, 1, 0.5**0.5]), ("hamming", [0.08, 0.54, 1, 0.54])],
)
def test_windows_by_hand(name: str, values: list[float]) -> None:
    window = Spectrogram(StftConfig(4, 1, 4, 1.0, name)).window
    assert torch.allclose(window, torch.tensor(values), atol=1e-7)


@pytest.mark.parametrize("samples", [1, 2, 99, 100, 255, 256, 511, 1234, 30_700])
def test_the_round_trip_gives_back_any_length(spectrogram: Spectrogram, samples: int) -> None:
    wav = torch.randn(2, samples, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(spectrogram.inverse(spectrogram(wav), samples), wav, atol=1e-5)


@pytest.mark.parametrize("samples", [7679, 7680, 7681, 300])
def test_an_error_in_the_spectra_is_no_click_at_the_end(samples: int) -> None:
    half_overlapping = Spectrogram(StftConfig(512, 256, 512, 1.0, "sqrt_hann"))
    spectra = half_overlapping(torch.zeros(1, samples))
    noise = Spectra(spectra.mag + 1, spectra.pha + torch.arange(spectra.pha.numel()).view_as(spectra.pha) ** 2)
    sound = half_overlapping.inverse(noise, samples)[0].abs()
    assert sound.shape == (samples,)
    assert sound[-20:].max() < 2 * sound[:-20].max()


def test_complex_spectra_are_the_compressed_magnitude_turned_by_the_phase() -> None:
    spectra = Spectra(torch.tensor([[[2.0]]]), torch.tensor([[[math.pi / 6]]]))
    assert torch.allclose(spectra.complex, torch.tensor([[[[math.sqrt(3), 1.0]]]]))


@pytest.mark.parametrize("scale", [0.0, 1e-16, 1e-12, 1.0])
def test_gradients_are_finite_down_to_silence(spectrogram: Spectrogram, scale: float) -> None:
    wav = (scale * torch.randn(1, 2000, generator=torch.Generator().manual_seed(0))).requires_grad_()
    spectra = spectrogram(wav)
    (spectra.mag.sum() + spectra.pha.sum() + spectrogram.inverse(spectra, 2000).sum()).backward()
    assert wav.grad is not None
    assert wav.grad.isfinite().all()
    assert (wav.grad.abs().sum() > 0) == (scale > 0)


def test_silence_has_zero_magnitude_and_stays_silent(spectrogram: Spectrogram) -> None:
    spectra = spectrogram(torch.zeros(1, 1000))
    assert spectra.mag.abs().max() == 0
    assert spectra.pha.abs().max() == 0
    assert spectrogram.inverse(spectra, 1000).abs().max() == 0
