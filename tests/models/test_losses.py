"""Loss terms: the release's values, values by hand, and finite gradients, also at silence."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from config import Config, LossConfig, StftConfig, load_config
from models.losses import (
    TERMS,
    Speech,
    angular_frequency,
    group_delay,
    instantaneous_phase,
    loss_terms,
    weighted_sum,
)
from models.stft import Spectra, Spectrogram
from tests.fixtures.commands import ROOT
from tests.models.spectra import random_spectra

OFF = LossConfig(metric=0.0, magnitude=0.0, phase=0.0, complex=0.0)
TINY_STFT = StftConfig(n_fft=14, hop_size=4, win_size=14, compress_factor=0.3)
TINY_SAMPLES = 32

# Clean minus enhanced is [[-1, 0, -3], [-2, -0.5, 6]].
CLEAN_PHA = torch.tensor([[[0.5, 1.0, 0.0], [1.0, 0.0, 3.0]]], dtype=torch.float64)
PHA = torch.tensor([[[1.5, 1.0, 3.0], [3.0, 0.5, -3.0]]], dtype=torch.float64)


@pytest.fixture
def spectrogram(config: Config) -> Spectrogram:
    return Spectrogram(config.stft)


@pytest.fixture
def tiny() -> Spectrogram:
    """Return an STFT of 8 bins in float64."""
    return Spectrogram(TINY_STFT).double()


def speech_of(wav: Tensor, spectrogram: Spectrogram) -> Speech:
    return Speech(wav, spectrogram(wav))


def speech_from(mag: Tensor, pha: Tensor, spectrogram: Spectrogram, samples: int) -> Speech:
    """Return speech as from a network, whose waveform follows from the spectra."""
    return Speech(spectrogram.inverse(Spectra(mag, pha), samples), Spectra(mag, pha))


def random_wav(samples: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, samples, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def term(name: str, clean: Speech, enhanced: Speech, spectrogram: Spectrogram) -> float:
    return TERMS[name](clean, enhanced, spectrogram).item()


def test_released_losses_and_their_weighted_sum(reference: Path, config: Config, spectrogram: Spectrogram) -> None:
    known = np.load(reference / "imse" / "losses.npz")
    clean_mag, clean_pha, mag, pha = (
        torch.from_numpy(known[name]).double() for name in ("clean_mag", "clean_pha", "mag", "pha")
    )
    assert instantaneous_phase(clean_pha, pha).item() == pytest.approx(float(known["loss_ip"]), rel=1e-5)
    assert group_delay(clean_pha, pha).item() == pytest.approx(float(known["loss_gd"]), rel=1e-5)
    assert angular_frequency(clean_pha, pha).item() == pytest.approx(float(known["loss_iaf"]), rel=1e-5)
    silence = torch.zeros(2, 3900)
    speech = Speech(silence, Spectra(clean_mag, clean_pha)), Speech(silence, Spectra(mag, pha))
    terms = loss_terms(config.loss, *speech, spectrogram)
    phases = float(known["loss_ip"] + known["loss_gd"] + known["loss_iaf"])
    expected = {"magnitude": float(known["loss_mag"]), "phase": phases, "complex": float(known["loss_com_times2"])}
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(expected, rel=1e-5)
    total = weighted_sum(config.loss, terms).item()
    assert total == pytest.approx(float(known["generator_total_without_metric"]), rel=1e-5)


def test_released_losses_of_mpsenet_and_their_gradients(reference: Path) -> None:
    arrays = np.load(reference / "mpsenet" / "losses.npz")
    known = {name: torch.from_numpy(np.asarray(value)).double() for name, value in arrays.items()}
    config = load_config(ROOT / "configs" / "mpsenet.json")
    spectrogram = Spectrogram(config.stft).double()
    mag, pha = known["mag_out"].requires_grad_(), known["pha_out"].requires_grad_()
    clean, enhanced = speech_of(known["clean_wav"], spectrogram), speech_from(mag, pha, spectrogram, 2000)
    assert (enhanced.wav - known["wav_out"]).abs().max() < 3e-6
    assert (spectrogram(enhanced.wav).mag - known["reanalysed_mag"]).abs().max() < 2e-4
    terms = loss_terms(config.loss, clean, enhanced, spectrogram)
    names = {"magnitude", "complex", "consistency", "time"}
    expected = {name: known[f"loss_{name}"].item() for name in names} | {"phase_inner": known["loss_phase"].item()}
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(expected, rel=1e-6)
    total = weighted_sum(config.loss, terms)
    assert total.item() == pytest.approx(known["loss_total_without_metric"].item(), rel=1e-6)
    for gradient, name in zip(torch.autograd.grad(total, (mag, pha)), ("grad_mag", "grad_pha"), strict=True):
        difference = (gradient - known[name]).abs() / known[name].abs().max()
        assert difference.flatten().quantile(0.99) < 1e-4
        # Bins of the waveform's spectrum that are almost 0 amplify the rounding errors of the release.
        assert difference.max() < 5e-3


def test_phase_losses_by_hand(tiny: Spectrogram) -> None:
    turn = 2 * math.pi
    ip = (1 + 0 + 3 + 2 + 0.5 + (turn - 6)) / 6
    # Differences along frequency: [-1, 0, -3] from zero, then [-1, -0.5, 9].
    gd = (1 + 0 + 3 + 1 + 0.5 + (9 - turn)) / 6
    # Along time: [-1, 1, -3] and [-2, 1.5, 6.5].
    iaf = (1 + 1 + 3 + 2 + 1.5 + (6.5 - turn)) / 6
    assert instantaneous_phase(CLEAN_PHA, PHA).item() == pytest.approx(ip, rel=1e-12)
    assert group_delay(CLEAN_PHA, PHA).item() == pytest.approx(gd, rel=1e-12)
    assert angular_frequency(CLEAN_PHA, PHA).item() == pytest.approx(iaf, rel=1e-12)
    mag, wav = torch.ones_like(PHA), torch.zeros(1, 1)
    speech = Speech(wav, Spectra(mag, CLEAN_PHA)), Speech(wav, Spectra(mag, PHA))
    assert term("phase", *speech, tiny) == pytest.approx(ip + gd + iaf, rel=1e-12)
    # Without the differences from zero: along frequency of 3 values, along time of 4.
    gd, iaf = (1 + 0.5 + (9 - turn)) / 3, (1 + 3 + 1.5 + (6.5 - turn)) / 4
    assert term("phase_inner", *speech, tiny) == pytest.approx(ip + gd + iaf, rel=1e-12)


def test_spectral_and_waveform_errors_by_hand(tiny: Spectrogram) -> None:
    spectra = torch.tensor([[[3, 1]], [[4, 1]], [[math.pi / 2, 0]]], dtype=torch.float64)[:, None]
    clean = Speech(torch.tensor([[1.0, -1.0]]), Spectra(spectra[0], 0 * spectra[0]))
    enhanced = Speech(torch.tensor([[0.5, 2.0]]), Spectra(spectra[1], spectra[2]))
    assert term("magnitude", clean, enhanced, tiny) == pytest.approx((1 + 0) / 2)
    # 3 against 4i, and 1 against 1: errors of 3 and 4 in four parts, twice.
    assert term("complex", clean, enhanced, tiny) == pytest.approx(2 * (9 + 16) / 4)
    assert term("time", clean, enhanced, tiny) == pytest.approx((0.5 + 3) / 2)


def test_linear_absolute_errors_by_hand() -> None:
    """Two samples with the window (0, 1) are x and −x at two bins."""
    spectrogram = Spectrogram(StftConfig(n_fft=2, hop_size=1, win_size=2, compress_factor=0.5)).double()
    wav = torch.tensor([[3, 3e-4]], dtype=torch.float64)  # frames 3, 3e-4 and, reflected, 3
    clean_mag = torch.tensor([[[5, 0, 3], [3, 0, 1]]], dtype=torch.float64)
    clean_pha = torch.tensor([[[math.pi / 2, 0, 0], [math.pi, 0, 0]]], dtype=torch.float64)
    clean = Speech(torch.zeros_like(wav), Spectra(clean_mag.sqrt(), clean_pha))
    enhanced = Speech(wav, Spectra(7 * torch.ones(1, 2, 3), torch.ones(1, 2, 3)))  # the spectra are not used
    # Error at silence of sqrt(mag² + 1e-7).
    faint = math.sqrt(9e-8 + 1e-7) - math.sqrt(1e-7)
    assert term("magnitude_l1", clean, enhanced, spectrogram) == pytest.approx((2 + faint + 0 + 0 + faint + 2) / 6)
    # Real and imaginary parts: 3 against 5j, 3e-4 against 0, 3 against 3; −3 against −3, −3e-4 against 0, −3 against 1.
    errors = (3 + 5) + 3e-4 + 0 + 0 + 3e-4 + 4
    assert term("complex_l1", clean, enhanced, spectrogram) == pytest.approx(errors / 12)


@pytest.mark.parametrize("compress_factor", [1.0, 0.5])
def test_compressed_spectral_errors_by_hand(compress_factor: float) -> None:
    spectrogram = Spectrogram(replace(TINY_STFT, compress_factor=compress_factor))
    wav = torch.zeros(1, 1)
    # 1024 to the power of 0.3 is 8, whatever the compression of the network.
    spectra = torch.tensor([[[1024, 1]], [[1, 1]], [[math.pi / 2, 0]]], dtype=torch.float64)[:, None]
    clean_mag, mag = spectra[:2] ** compress_factor
    clean, enhanced = Speech(wav, Spectra(clean_mag, 0 * mag)), Speech(wav, Spectra(mag, spectra[2]))
    assert term("compressed_magnitude", clean, enhanced, spectrogram) == pytest.approx((7**2 + 0) / 2)
    # 8 against i: the real parts differ by 8, the imaginary ones by 1.
    assert term("compressed_complex", clean, enhanced, spectrogram) == pytest.approx(8**2 / 2 + 1**2 / 2)


def test_si_sdr_of_a_scaled_signal_with_orthogonal_noise() -> None:
    n = torch.arange(400, dtype=torch.float64) / 400
    target = torch.sin(2 * math.pi * 5 * n)
    noise = torch.sin(2 * math.pi * 9 * n)  # of the same energy
    clean = Speech(torch.stack([target, 0.1 * target + 7]), random_spectra(2, 1))
    loud, soft = 20 * target + 2 * noise + 3, 0.5 * target - 0.05 * noise * math.sqrt(10)
    enhanced = clean._replace(wav=torch.stack([loud, soft]))
    value = TERMS["si_sdr"](clean, enhanced, Spectrogram(TINY_STFT)).item()
    assert value == pytest.approx(-(20 + 10) / 2)


def test_consistency_is_zero_for_spectra_of_a_signal(spectrogram: Spectrogram) -> None:
    spectrogram.double()
    speech = speech_of(random_wav(3900, 0, torch.float64), spectrogram)
    assert term("consistency", speech, speech, spectrogram) < 1e-12
    invented = speech_from(*random_spectra(2, 40), spectrogram, 3900)
    changed = speech_of(invented.wav, spectrogram)
    error = term("consistency", speech, invented, spectrogram)
    assert error == pytest.approx(term("complex", changed, invented, spectrogram), rel=1e-6)
    assert error > 0.1


@pytest.mark.parametrize("name", TERMS)
def test_gradients_equal_finite_differences(name: str, tiny: Spectrogram) -> None:
    generator = torch.Generator().manual_seed(2)
    shape = 2, TINY_STFT.bins, TINY_SAMPLES // TINY_STFT.hop_size + 1
    mag = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5
    pha = (torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1) * 3
    clean = speech_of(random_wav(TINY_SAMPLES, 0, torch.float64), tiny)

    def error(mag: Tensor, pha: Tensor) -> Tensor:
        return TERMS[name](clean, speech_from(mag, pha, tiny, TINY_SAMPLES), tiny)

    assert torch.autograd.gradcheck(error, (mag.requires_grad_(), pha.requires_grad_()))


@pytest.mark.parametrize("name", TERMS)
def test_silence_has_finite_losses_and_gradients(name: str, spectrogram: Spectrogram) -> None:
    noise = random_wav(2000, 3)
    half_silent = functional.pad(noise[:, :1000], (0, 1000))
    for clean in (torch.zeros(2, 2000), half_silent, noise):
        wavs = [wav.clone().requires_grad_() for wav in (0 * noise, half_silent, 1e-15 * noise, noise)]
        silent_spectra = torch.zeros(2, 256, 21, requires_grad=True)
        cases = [(wav, speech_of(wav, spectrogram)) for wav in wavs]
        cases.append((silent_spectra, speech_from(silent_spectra, 0 * silent_spectra, spectrogram, 2000)))
        for leaf, enhanced in cases:
            value = TERMS[name](speech_of(clean, spectrogram), enhanced, spectrogram)
            assert value.isfinite()
            (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True, materialize_grads=True)
            assert gradient.isfinite().all()


def test_only_terms_with_a_weight_are_computed(tiny: Spectrogram, monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(*_: object) -> Tensor:
        raise AssertionError

    for other in TERMS.keys() - {"phase"}:
        monkeypatch.setitem(TERMS, other, unwanted)  # pyright: ignore[reportArgumentType] (a dict at run time)
    speech = speech_of(random_wav(TINY_SAMPLES, 0, torch.float64), tiny)
    weights = replace(OFF, metric=1.0, phase=0.5)
    assert list(loss_terms(weights, speech, speech, tiny)) == ["phase"]
