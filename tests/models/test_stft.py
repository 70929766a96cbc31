"""STFT pair: values by hand and of the release, round trip, gradients at silence, phases of rounding errors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from config import Config, StftConfig, load_config
from models.checkpoint import DEFAULT_CHECKPOINT, load_checkpoint
from models.stft import PHASE_FLOOR, ComplexSpectra, Spectra, Spectrogram, angle
from tests.fixtures.commands import ROOT
from tests.fixtures.signals import speech_like, with_noise
from tests.models.spectra import wrapped

RELEASED = ROOT.parent / "shared" / "reference" / "imse" / "g_best_pesq_3.373"


@pytest.fixture
def spectrogram(config: Config) -> Spectrogram:
    return Spectrogram(config.stft)


def test_sine_has_magnitude_and_phase_of_theory(config: Config) -> None:
    spectrogram = Spectrogram(config.stft).double()
    bin_index, amplitude, n_fft, hop = 40, 0.5, 510, 100
    n = torch.arange(5100, dtype=torch.float64)
    spectra = spectrogram(amplitude * torch.cos(2 * math.pi * bin_index * n / n_fft + 0.3)[None])
    assert spectra.mag.shape == spectra.pha.shape == (1, 256, 52)
    frame = 20  # its window starts at sample 20·hop − n_fft/2; a Hann window sums to n_fft / 2
    expected_phase = 2 * math.pi * bin_index * (frame * hop - n_fft // 2) / n_fft + 0.3
    assert spectra.mag[0, bin_index, frame].item() == pytest.approx((amplitude / 2 * n_fft / 2) ** 0.3, rel=1e-6)
    difference = spectra.pha[0, bin_index, frame].item() - expected_phase
    assert math.remainder(difference, 2 * math.pi) == pytest.approx(0, abs=1e-6)


def test_released_spectra_and_waveform(reference: Path, config: Config) -> None:
    arrays = np.load(reference / "imse/forward_T64.npz")
    stored = {key: torch.from_numpy(array).double() for key, array in arrays.items()}
    spectrogram = Spectrogram(config.stft).double()
    noisy = spectrogram(stored["wav"][None])
    assert torch.allclose(noisy.mag, stored["mag"], atol=1e-4)
    assert wrapped(noisy.pha - stored["pha"])[stored["mag"] > 1e-2].max() < 1e-3
    wav = spectrogram.inverse(Spectra(stored["mag_out"], stored["pha_out"]), len(stored["wav"]))[0]
    assert (wav - stored["wav_out"]).abs().max() < 1e-4


def test_released_spectra_and_waveform_of_mpsenet(reference: Path) -> None:
    arrays = np.load(reference / "mpsenet/forward_T40.npz")
    stored = {key: torch.from_numpy(array).double() for key, array in arrays.items() if array.dtype == np.float32}
    spectrogram = Spectrogram(load_config(ROOT / "configs/mpsenet.json").stft).double()
    wav, gain = stored["wav"], stored["norm_factor"]
    assert gain.item() == pytest.approx(wav.square().mean().item() ** -0.5, rel=1e-6)
    noisy = spectrogram(gain * wav[None])
    assert torch.allclose(noisy.mag, stored["mag"], atol=1e-5)
    assert wrapped(noisy.pha - stored["pha"]).max() < 2e-4
    silent = stored["mag"] < 1e-9**0.15 + 1e-6
    assert silent.sum() == 6 * 201
    assert torch.allclose(noisy.pha[silent], torch.tensor(1e-5, dtype=torch.float64), rtol=1e-6)
    enhanced = spectrogram.inverse(Spectra(stored["mag_out"], stored["pha_out"]), len(wav)) / gain
    assert (enhanced - stored["wav_out"]).abs().max() < 1e-6


def test_floors_by_hand() -> None:
    bins = [  # and their phases
        (3e-5 + 0j, 0),
        (-2e-5 + 1e-5j, math.atan2(1e-5 + 1e-10, -1e-5)),
        (-2e-5 + 1e-11j, -math.pi),  # the imaginary part is a rounding error, which counts as −0
        (-5e-6 - 2e-10j, math.atan2(-1e-10, 5e-6)),
        (0j, 0),
    ]
    frame = torch.tensor([value for value, _ in bins], dtype=torch.complex128)[None, :, None]
    spectra = Spectra.from_stft(torch.cat([frame, 0 * frame], dim=2), 0.3, floors=True)
    mags = [(abs(value) ** 2 + 1e-9) ** 0.15 for value, _ in bins]
    assert spectra.mag[0, :, 0].tolist() == pytest.approx(mags, rel=1e-9)
    assert spectra.pha[0, :, 0].tolist() == pytest.approx([phase for _, phase in bins], rel=1e-9)
    assert spectra.mag[0, :, 1].tolist() == pytest.approx([1e-9**0.15] * 5, rel=1e-9)
    assert spectra.pha[0, :, 1].tolist() == pytest.approx([1e-5] * 5, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "values"),
    [("hann", [0, 0.5, 1, 0.5]), ("sqrt_hann", [0, 0.5**0.5, 1, 0.5**0.5]), ("hamming", [0.08, 0.54, 1, 0.54])],
)
def test_windows(name: Literal["hann", "hamming", "sqrt_hann"], values: list[float]) -> None:
    window = Spectrogram(StftConfig(4, 1, 4, 1.0, name)).window
    assert torch.allclose(window, torch.tensor(values), atol=1e-7)


@pytest.mark.parametrize("samples", [1, 100, 511, 30_700])
def test_round_trip_of_any_length(spectrogram: Spectrogram, samples: int) -> None:
    wav = torch.randn(2, samples, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spectrogram.double()
    assert torch.allclose(spectrogram.inverse(spectrogram(wav), samples), wav, atol=1e-5)


@pytest.mark.parametrize("samples", [300, 7681])
def test_error_in_spectra_is_no_click_at_the_end(samples: int) -> None:
    half_overlapping = Spectrogram(StftConfig(512, 256, 512, 1.0, "sqrt_hann")).double()
    spectra = half_overlapping(torch.zeros(1, samples, dtype=torch.float64))
    noise = Spectra(spectra.mag + 1, spectra.pha + torch.arange(spectra.pha.numel()).view_as(spectra.pha) ** 2)
    sound = half_overlapping.inverse(noise, samples)[0].abs()
    assert sound.shape == (samples,)
    assert sound[-20:].max() < 2 * sound[:-20].max()


@pytest.mark.parametrize("scale", [0.0, 1e-16, 1.0])
def test_gradients_are_finite_down_to_silence(spectrogram: Spectrogram, scale: float) -> None:
    wav = (scale * torch.randn(1, 2000, generator=torch.Generator().manual_seed(0))).requires_grad_()
    spectra = spectrogram(wav)
    (spectra.mag.sum() + spectra.pha.sum() + spectrogram.inverse(spectra, 2000).sum()).backward()
    assert wav.grad is not None
    assert wav.grad.isfinite().all()
    assert (wav.grad.abs().sum() > 0) == (scale > 0)


def test_complex_spectra_hold_the_same_as_polar_ones() -> None:
    stft = StftConfig(n_fft=8, hop_size=3, win_size=8, compress_factor=1.0)
    wav = torch.randn(2, 25, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    both = Spectrogram(stft, complex_spectra=True).double()
    spectra, polar = both(wav), Spectrogram(stft).double()(wav)
    assert isinstance(spectra, ComplexSpectra) and isinstance(polar, Spectra)
    torch.testing.assert_close(spectra.mag, polar.mag, rtol=0, atol=1e-12)
    error = PHASE_FLOOR * float(spectra.mag.max())
    torch.testing.assert_close(spectra.complex, polar.complex, rtol=0, atol=error)
    torch.testing.assert_close(both.inverse(spectra, 25), wav, rtol=0, atol=1e-12)
    torch.testing.assert_close(both.inverse(polar, 25), wav, rtol=0, atol=error)
    turned = ComplexSpectra(torch.tensor([[[0.0, -3.0]]]), torch.tensor([[[2.0, 0.0]]]))
    assert turned.pha.flatten().tolist() == pytest.approx([math.pi / 2, math.pi])


def test_angle_of_zero_is_zero_without_gradient() -> None:
    real, imaginary = (torch.tensor([0.0, 0.0, 1.0, 3.0]), torch.tensor([0.0, 1e-20, 0.0, 4.0]))
    phase = angle(real.requires_grad_(), imaginary.requires_grad_())
    gradients = torch.autograd.grad(phase.sum(), (real, imaginary))
    expected = [0, 0, 0, math.atan2(4, 3)], [0, 0, 0, -4 / 25], [0, 0, 1, 3 / 25]
    for found, values in zip((phase, *gradients), expected, strict=True):
        assert torch.allclose(found, torch.tensor(values))


def test_phase_of_parts_below_the_floor() -> None:
    below, above = 0.99 * PHASE_FLOOR, 1.01 * PHASE_FLOOR
    bins = [  # zeros of the imaginary part are +0, +0, −0, −0, …
        (complex(-1, -below), math.pi),
        (complex(-1, below), math.pi),
        (complex(-1, below), -math.pi),
        (complex(-1, -below), -math.pi),
        (complex(-1, -above), -math.pi),
        (complex(1, -below), 0),
        (complex(-1, above), math.pi),
        (complex(-below, 1), math.pi / 2),
        (complex(-below, -below), 0),
        (complex(below, -above), -math.pi / 2),
        (complex(-above, above), 0.75 * math.pi),
        (complex(-1, -below), math.pi),  # the Nyquist frequency, where an FFT returns +0
    ]
    frame = torch.tensor([value for value, _ in bins], dtype=torch.complex128)[None, :, None]
    # The second frame is the same at another level: the floor is relative to each frame's largest magnitude.
    spectra = Spectra.from_stft(torch.cat([frame, 1e-3 * frame], dim=2), 0.3)
    expected = torch.tensor([phase for _, phase in bins], dtype=torch.float64)
    assert (spectra.pha[0] - expected[:, None]).abs().max() < 2 * PHASE_FLOOR
    assert torch.allclose(spectra.mag[0, :, 0], frame[0, :, 0].abs() ** 0.3, rtol=1e-9)


def test_gradients_below_the_phase_floor_are_finite() -> None:
    frame = torch.tensor([1, 1j, -1 - 1e-8j, 1e-8 - 1e-9j, 1e-20, 0], dtype=torch.complex128)[None, :, None]
    spectra = Spectra.from_stft(frame.requires_grad_(), 0.3)
    (gradient,) = torch.autograd.grad(spectra.pha.sum(), frame)
    assert gradient.isfinite().all()
    assert gradient[0, 3:].abs().max() == 0
    (gradient,) = torch.autograd.grad(Spectra.from_stft(frame, 0.3).mag.sum(), frame)
    assert gradient.isfinite().all()


def test_rounding_errors_of_the_stft_are_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two FFT libraries differ by rounding errors; enhanced speech must not differ by more than 2 steps of 16 bits."""
    network, config = load_checkpoint(RELEASED if RELEASED.exists() else DEFAULT_CHECKPOINT)
    spectrogram = Spectrogram(config.stft)
    noisy = torch.from_numpy(with_noise(speech_like(0.12), 5)).float()[None]
    rms = noisy.square().mean().sqrt()
    stft = torch.stft

    def perturbed(*args: object, **options: object) -> Tensor:
        """Move real and imaginary parts by −1, 0 or 1 unit in the last place of the magnitude, for 20 seeds."""
        spectrum = stft(*args, **options)  # pyright: ignore[reportArgumentType, reportCallIssue]
        unit = torch.finfo(torch.float32).eps * spectrum.abs()
        rows = []
        for seed in range(20):
            generator = torch.Generator().manual_seed(seed)
            real, imaginary = torch.randint(-1, 2, (2, *spectrum.shape), generator=generator) * unit
            rows.append(spectrum + torch.complex(real, imaginary))
        return torch.cat(rows)

    with torch.inference_mode():
        expected = spectrogram.inverse(network(spectrogram(noisy / rms)), noisy.shape[1]) * rms
        monkeypatch.setattr(torch, "stft", perturbed)
        enhanced = spectrogram.inverse(network(spectrogram(noisy / rms)), noisy.shape[1]) * rms
    assert enhanced.shape == (20, noisy.shape[1])
    assert expected.abs().max() > 0.1
    assert (enhanced - expected).abs().max() <= 2 / 2**15
