"""IMSE against its plain transcription, and gradients; its released weights are in test_published.py."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from config import ImseConfig, load_config
from models import build
from models.imse import IMSE
from models.published import translate_published
from models.stft import Spectra
from tests.fixtures.commands import ROOT
from tests.models.spectra import assert_finite_gradients, random_spectra, wrapped
from tests.reference.imse import ReferenceIMSE


@pytest.mark.parametrize("batch, frames", [(1, 1), (1, 7), (2, 12)])
def test_equals_plain_transcription_of_silently_padded_spectra(batch: int, frames: int) -> None:
    torch.manual_seed(0)
    plain = ReferenceIMSE(8).double().eval()
    ours = IMSE(ImseConfig("imse", 8, 2.0), 256).double().eval()
    ours.load_state_dict(translate_published(plain.state_dict()))
    noisy = random_spectra(batch, frames)
    with torch.inference_mode():
        enhanced = ours(noisy)
        mag, pha = plain(*(functional.pad(part, (0, -frames % 4)) for part in noisy))
    assert enhanced.mag.shape == enhanced.pha.shape == (batch, 256, frames)
    assert torch.allclose(enhanced.mag, mag[..., :frames], atol=1e-5)
    # The transcription's tables of angles are in float32.
    assert wrapped(enhanced.pha - pha[..., :frames]).max() < 1e-3


@pytest.mark.parametrize("name", ["imse", "muse"])
def test_gradients_are_finite_and_reach_every_weight(name: str) -> None:
    torch.manual_seed(0)
    network = build(load_config(ROOT / f"configs/{name}.json", ["model.channels=8"]))
    network(random_spectra(2, 8, dtype=torch.float32)).complex.square().sum().backward()
    assert_finite_gradients(network)
    network.zero_grad()
    silence = torch.zeros(1, 256, 8)
    enhanced = network(Spectra(silence, silence))
    (enhanced.mag.sum() + enhanced.pha.sum()).backward()
    assert enhanced.mag.abs().max() == 0 and enhanced.pha.isfinite().all()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in network.parameters())
