"""Released checkpoints: activations and outputs, the parts without effect, and the translation of the rest."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from config import load_config
from models import build
from models.checkpoint import load_checkpoint
from models.published import published_network, translate_published
from models.stft import Spectra
from tests.fixtures.commands import ROOT
from tests.models.spectra import random_spectra, wrapped
from tests.reference.imse import ReferenceIMSE
from tests.reference.muse import ReferenceMUSE

# Stored activation → module. A stage's activation is the one before its residual.
ACTIVATIONS = {
    "dense_encoder": "dense_encoder",
    "idconv_level1": "unet.encoder_level1.local",
    "deformable_level1": "unet.encoder_level1.local",
    "mala_level1_block0": "unet.encoder_level1.blocks.0.attention",
    "attn_level1_block0": "unet.encoder_level1.blocks.0.attention",
    "block_level1_0": "unet.encoder_level1.blocks.0",
    "encoder_level1": "unet.encoder_level1.blocks.3",
    "encoder_level2": "unet.encoder_level2.blocks.3",
    "attn_latent_block0": "unet.bottleneck.blocks.0.attention",
    "latent": "unet.bottleneck.blocks.3",
    "decoder_level2": "unet.decoder_level2.blocks.3",
    "decoder_level1": "unet.decoder_level1.blocks.3",
    "mask_decoder": "magnitude_decoder",
    "phase_decoder": "phase_decoder",
}

UNREAD_ROWS = re.compile(r"(mask|phase)_conv\.0\.weight$")
WITHOUT_EFFECT = re.compile(
    r"\.aggregate\.|dense_conv_[12]\.0\.bias$|dense_block\.\d\.0\.bias$|mask_conv\.3\.bias$|rope\.angle$"
)


# The releases compute in float32, IMSE most unlike float64 in phases of small magnitude; signs of π are their FFT's.
@pytest.mark.parametrize(
    ("file", "recorded", "errors", "audible"),  # errors of activations, magnitudes and phases
    [
        ("imse/g_best_pesq_3.373", "imse/forward_T64.npz", (1e-5, 2e-4, 5e-3), 1e-2),
        pytest.param(
            "imse/g_best_pesq_3.373", "imse/forward_T308.npz", (1e-5, 2e-4, 5e-3), 1e-2, marks=pytest.mark.slow
        ),
        ("muse/g_best", "muse/forward_T64.npz", (2e-5, 9e-5, 2e-4), 0),
    ],
)
def test_released_activations_and_outputs(
    reference: Path, file: str, recorded: str, errors: tuple[float, float, float], audible: float
) -> None:
    activation_error, mag_error, pha_error = errors
    stored = {key: torch.from_numpy(value).double() for key, value in np.load(reference / recorded).items()}
    network = load_checkpoint(reference / file)[0].double()
    activations = {key.removeprefix("act_"): value for key, value in stored.items() if key.startswith("act_")}
    seen: dict[str, Tensor] = {}
    for name in activations:
        hook = lambda _module, _inputs, output, name=name: seen.__setitem__(name, output)  # noqa: E731
        network.get_submodule(ACTIVATIONS[name]).register_forward_hook(hook)
    with torch.inference_mode():
        enhanced = network(Spectra(stored["mag"], stored["pha"]))
    assert len(activations) >= 9 or recorded.endswith("T308.npz")  # which holds outputs only
    for name, expected in activations.items():
        output = seen[name].transpose(1, 2)[:, None] if seen[name].ndim == 3 else seen[name]
        assert (output - expected).abs().max() < activation_error * expected.abs().max(), name
    assert (enhanced.mag - stored["mag_out"]).abs().max() < mag_error
    assert wrapped(enhanced.pha - stored["pha_out"])[stored["mag"] >= audible].max() < pha_error


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
