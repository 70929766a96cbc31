"""The released checkpoint's parts without effect: proved on its own weights, and on the plain transcription."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from config import Config
from models import build
from models.published import config_sections, published_network, translate_published
from models.stft import Spectra
from tests.models.test_imse import random_spectra, wrapped
from tests.reference.imse import ReferenceIMSE
from tests.reference.muse import ReferenceMUSE

FUSION = re.compile(r"\.aggregate\.")
UNREAD_ROWS = re.compile(r"(mask|phase)_conv\.0\.weight$")
BIAS_BEFORE_NORM = re.compile(r"dense_conv_[12]\.0\.bias$|dense_block\.\d\.0\.bias$|mask_conv\.3\.bias$")


@pytest.fixture(scope="module")
def weights(reference: Path) -> dict[str, Tensor]:
    path = reference / "imse" / "g_best_pesq_3.373"
    return torch.load(path, map_location="cpu", weights_only=True)["generator"]


def without_effect(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """The same weights with random numbers in every part said to have no effect, and how many those are."""
    torch.manual_seed(0)
    changed = {name: tensor.clone() for name, tensor in weights.items()}
    count = 0
    for name, tensor in changed.items():
        if FUSION.search(name) or BIAS_BEFORE_NORM.search(name):
            tensor.normal_()
            count += tensor.numel()
        elif UNREAD_ROWS.search(name):
            unread = tensor.unflatten(0, (-1, 2, 2))[:, 1]
            unread.normal_()
            count += unread.numel()
    return changed, count


def enhance_plainly(weights: dict[str, Tensor], noisy: Spectra) -> Spectra:
    network = ReferenceIMSE().eval()
    network.load_state_dict(weights)
    with torch.inference_mode():
        return Spectra(*network.double()(noisy.mag, noisy.pha))


def test_random_numbers_in_the_parts_without_effect_change_nothing(weights: dict[str, Tensor]) -> None:
    noisy = random_spectra(1, 8)
    changed, count = without_effect(weights)
    assert count == 1607 + 2 * 512 + 225
    before, after = enhance_plainly(weights, noisy), enhance_plainly(changed, noisy)
    assert torch.allclose(before.mag, after.mag, atol=1e-9)
    assert wrapped(before.pha - after.pha).max() < 1e-6


def test_leaving_them_out_changes_nothing(weights: dict[str, Tensor], config: Config) -> None:
    noisy = random_spectra(1, 8)
    ours = build(config).eval().double()
    ours.load_state_dict(translate_published(weights))
    with torch.inference_mode():
        enhanced = ours(noisy)
    plain = enhance_plainly(weights, noisy)
    assert torch.allclose(enhanced.mag, plain.mag, atol=1e-6)
    assert wrapped(enhanced.pha - plain.pha).max() < 1e-3


def test_everything_else_is_kept(weights: dict[str, Tensor]) -> None:
    """All other published numbers stand in the translation, each once: their sums of squares agree."""
    kept = sum(
        tensor.unflatten(0, (-1, 2, 2))[:, 0].double().square().sum().item()
        if UNREAD_ROWS.search(name)
        else tensor.double().square().sum().item()
        for name, tensor in weights.items()
        if not (FUSION.search(name) or BIAS_BEFORE_NORM.search(name) or name.endswith("rope.angle"))
    )
    ours = translate_published(weights)
    assert sum(tensor.double().square().sum().item() for tensor in ours.values()) == pytest.approx(kept, rel=1e-9)
    assert sum(tensor.numel() for tensor in ours.values()) == 430_139


def test_the_attention_tells_whose_names_they_are() -> None:
    assert published_network(ReferenceIMSE(8).state_dict()) == "imse"
    assert published_network(ReferenceMUSE(8).state_dict()) == "muse"
    assert published_network({"TCFTransformer.encoder_level1.mhca_blks.0.norm1.body.weight": torch.zeros(1)}) is None


def test_the_flat_config_goes_into_its_sections(config: Config) -> None:
    flat = {"dense_channel": 24, "hop_size": 80, "adam_b1": 0.9, "num_workers": 4}
    sections = config_sections(flat, config.to_dict())
    assert sections["model"] == {"name": "imse", "channels": 24, "beta": 2.0}
    assert sections["stft"]["hop_size"] == 80
    assert sections["optim"]["adam_b1"] == 0.9
    assert sections["loss"] == config.to_dict()["loss"]
