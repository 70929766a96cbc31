"""Released checkpoints: the parts without effect, proved on the released weights, and the translation of the rest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from config import Config, load_config
from models import build
from models.published import config_sections, published_network, translate_published
from models.stft import Spectra
from tests.fixtures.commands import ROOT
from tests.models.test_imse import random_spectra, wrapped
from tests.reference.imse import ReferenceIMSE
from tests.reference.muse import ReferenceMUSE

UNREAD_ROWS = re.compile(r"(mask|phase)_conv\.0\.weight$")
WITHOUT_EFFECT = re.compile(
    r"\.aggregate\.|dense_conv_[12]\.0\.bias$|dense_block\.\d\.0\.bias$|mask_conv\.3\.bias$|rope\.angle$"
)


@pytest.mark.parametrize(
    ("name", "file", "reference_class", "parameters"),
    [
        ("imse", "imse/g_best_pesq_3.373", ReferenceIMSE, 430_139),
        ("muse", "muse/g_best", ReferenceMUSE, 510_159),
    ],
)
def test_parts_left_out_have_no_effect(
    reference: Path, name: str, file: str, reference_class: type[ReferenceIMSE], parameters: int
) -> None:
    released = torch.load(reference / file, map_location="cpu", weights_only=True)["generator"]
    torch.manual_seed(0)
    changed = {key: tensor.clone() for key, tensor in released.items()}
    replaced, sum_of_squares = 0, 0.0
    for key, tensor in changed.items():
        if WITHOUT_EFFECT.search(key):
            if key.endswith("rope.angle"):
                continue  # a constant
            tensor.normal_()
            replaced += tensor.numel()
        elif UNREAD_ROWS.search(key):
            rows = tensor.unflatten(0, (-1, 2, 2))
            rows[:, 1].normal_()
            replaced += rows[:, 1].numel()
            sum_of_squares += rows[:, 0].double().square().sum().item()
        else:
            sum_of_squares += tensor.double().square().sum().item()
    assert replaced == 1607 + 2 * 512 + 225

    noisy = random_spectra(1, 8)
    outputs: list[Spectra] = []
    for weights in (released, changed):
        network = reference_class().eval()
        network.load_state_dict(weights)
        with torch.inference_mode():
            outputs.append(Spectra(*network.double()(noisy.mag, noisy.pha)))
    assert torch.allclose(outputs[0].mag, outputs[1].mag, atol=1e-9)
    assert wrapped(outputs[0].pha - outputs[1].pha).max() < 1e-6

    # The translation holds all other numbers, each once, and gives the same output.
    translated = translate_published(released)
    assert sum(tensor.numel() for tensor in translated.values()) == parameters
    assert sum(tensor.double().square().sum().item() for tensor in translated.values()) == pytest.approx(
        sum_of_squares, rel=1e-9
    )
    ours = build(load_config(ROOT / "configs" / f"{name}.json")).eval().double()
    ours.load_state_dict(translated)
    with torch.inference_mode():
        enhanced = ours(noisy)
    assert torch.allclose(enhanced.mag, outputs[0].mag, atol=1e-6)
    assert wrapped(enhanced.pha - outputs[0].pha).max() < 1e-3


def test_attention_names_identify_the_network() -> None:
    assert published_network(ReferenceIMSE(8).state_dict()) == "imse"
    assert published_network(ReferenceMUSE(8).state_dict()) == "muse"
    assert published_network({"TCFTransformer.encoder_level1.mhca_blks.0.norm1.body.weight": torch.zeros(1)}) is None


def test_flat_config_is_sorted_into_sections(config: Config) -> None:
    flat = {"dense_channel": 24, "hop_size": 80, "adam_b1": 0.9, "num_workers": 4}
    sections = config_sections(flat, config.to_dict())
    assert sections["model"] == {"name": "imse", "channels": 24, "beta": 2.0}
    assert sections["stft"]["hop_size"] == 80
    assert sections["optim"]["adam_b1"] == 0.9
    assert sections["loss"] == config.to_dict()["loss"]
