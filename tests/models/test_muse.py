"""MUSE against the release: reference activations and outputs, golden values, and the plain transcription beside."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from config import Config, MuseConfig, load_config
from models import build
from models.checkpoint import load_checkpoint
from models.muse import MUSE
from models.published import translate_published
from models.stft import Spectra
from tests.fixtures.commands import ROOT
from tests.models.test_imse import random_spectra, wrapped
from tests.reference.muse import ReferenceMUSE

# Where the stored activations are taken: name there → module here. A stage's is the one before its residual.
ACTIVATIONS = {
    "deformable_level1": "unet.encoder_level1.local",
    "attn_level1_block0": "unet.encoder_level1.blocks.0.attention",
    "block_level1_0": "unet.encoder_level1.blocks.0",
    "encoder_level1": "unet.encoder_level1.blocks.3",
    "encoder_level2": "unet.encoder_level2.blocks.3",
    "attn_latent_block0": "unet.bottleneck.blocks.0.attention",
    "latent": "unet.bottleneck.blocks.3",
    "decoder_level2": "unet.decoder_level2.blocks.3",
    "decoder_level1": "unet.decoder_level1.blocks.3",
}

# Mean and deviation of the released network's modules for `golden_input`, before a stage's residual.
GOLDEN = {
    "dense_encoder": (0.022836, 0.204073),
    "unet.encoder_level1.local": (0.000326, 0.009800),
    "unet.encoder_level1.blocks.3": (0.005998, 0.084205),
    "unet.down_1_2": (0.004297, 0.084150),
    "unet.encoder_level2.blocks.3": (0.002570, 0.047687),
    "unet.down_2_3": (0.028097, 0.104680),
    "unet.bottleneck.blocks.3": (-0.006785, 0.156332),
    "unet.up_3_2": (0.007150, 0.075242),
    "unet.reduce_level2": (0.016145, 0.105364),
    "unet.decoder_level2.blocks.3": (-0.023993, 0.172510),
    "unet.up_2_1": (0.033014, 0.061760),
    "unet.reduce_level1": (0.002176, 0.054006),
    "unet.decoder_level1.blocks.3": (0.001048, 0.017832),
    "unet.mag_refinement.blocks.3": (0.011755, 0.109820),
    "unet.mag_output": (-0.028388, 0.240593),
    "unet.pha_refinement.blocks.3": (-0.023085, 0.058692),
    "unet.pha_output": (-0.016665, 0.091497),
    "magnitude_decoder": (0.909296, 0.174924),
}

WITHOUT_EFFECT = re.compile(
    r"\.aggregate\.|dense_conv_[12]\.0\.bias$|dense_block\.\d\.0\.bias$|mask_conv\.3\.bias$|(mask|phase)_conv\.0\.weight$"
)


@pytest.fixture(scope="module")
def muse_config() -> Config:
    return load_config(ROOT / "configs" / "muse.json")


@pytest.fixture
def released(reference: Path) -> MUSE:
    network, _ = load_checkpoint(reference / "muse" / "g_best")
    assert isinstance(network, MUSE)
    return network.double()  # as the stored values: where the magnitude is tiny, float32 moves a phase


def outputs_of(network: MUSE, names: list[str], noisy: Spectra) -> tuple[Spectra, dict[str, Tensor]]:
    """What the network gives, and what its submodules `names` do."""
    seen: dict[str, Tensor] = {}
    for name in names:
        hook = lambda _module, _inputs, output, name=name: seen.__setitem__(name, output)  # noqa: E731
        network.get_submodule(name).register_forward_hook(hook)
    with torch.inference_mode():
        return network(noisy), seen


def random_pair(channels: int = 8) -> tuple[MUSE, ReferenceMUSE]:
    """Our network and the plain one with the same random weights, in float64."""
    torch.manual_seed(0)
    plain = ReferenceMUSE(channels).double().eval()
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            if name.endswith("temperature"):
                weight.uniform_(0.5, 2)
            if ".offset_generator." in name:
                weight.mul_(5)  # so that offsets reach their limits
    ours = MUSE(MuseConfig("muse", channels, 2.0), 256).double().eval()
    ours.load_state_dict(translate_published(plain.state_dict()))
    return ours, plain


@pytest.mark.parametrize("batch, frames", [(1, 8), (2, 12)])
def test_the_plain_transcription_gives_the_same(batch: int, frames: int) -> None:
    ours, plain = random_pair()
    noisy = random_spectra(batch, frames)
    with torch.inference_mode():
        enhanced = ours(noisy)
        mag, pha = plain(noisy.mag, noisy.pha)
    assert torch.allclose(enhanced.mag, mag, atol=1e-9)
    assert wrapped(enhanced.pha - pha).max() < 1e-6


@pytest.mark.parametrize("frames", [1, 5])
def test_any_number_of_frames_is_as_if_silence_followed(frames: int) -> None:
    ours, _ = random_pair()
    noisy = random_spectra(1, frames)
    padded = Spectra(*(torch.nn.functional.pad(part, (0, -frames % 4)) for part in noisy))
    with torch.inference_mode():
        enhanced, expected = ours(noisy), ours(padded)
    assert enhanced.mag.shape == (1, 256, frames)
    assert torch.allclose(enhanced.mag, expected.mag[..., :frames], atol=1e-12)
    assert torch.allclose(enhanced.pha, expected.pha[..., :frames], atol=1e-12)


def test_every_weight_gets_a_finite_gradient_also_from_silence() -> None:
    torch.manual_seed(0)
    network = MUSE(MuseConfig("muse", 8, 2.0), 256)
    network(random_spectra(2, 8, torch.float32)).complex.square().sum().backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name
        assert weight.grad.abs().max() > 0, name
    network.zero_grad()
    silence = torch.zeros(1, 256, 8)
    enhanced = network(Spectra(silence, silence))
    (enhanced.mag.sum() + enhanced.pha.sum()).backward()
    assert enhanced.mag.abs().max() == 0
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in network.parameters())


def test_parameters_are_the_releases_without_those_of_no_effect(muse_config: Config) -> None:
    ours = sum(weight.numel() for weight in build(muse_config).parameters())
    released = ReferenceMUSE().state_dict()
    fusion, unread, biases = 1607, 2 * 512, 225
    assert len(released) == 586
    assert sum(weight.numel() for weight in released.values()) == 513_015
    assert ours == 513_015 - fusion - unread - biases == 510_159


def test_parts_without_effect_are_those_left_out(reference: Path) -> None:
    """Random numbers in them change nothing; all other numbers stand in the translation, each once."""
    weights = torch.load(reference / "muse" / "g_best", map_location="cpu", weights_only=True)["generator"]
    changed = {name: tensor.clone() for name, tensor in weights.items()}
    torch.manual_seed(0)
    dead = 0
    for name, tensor in changed.items():
        if WITHOUT_EFFECT.search(name):
            part = tensor.unflatten(0, (-1, 2, 2))[:, 1] if name.endswith("conv.0.weight") else tensor
            part.normal_()
            dead += part.numel()
    assert dead == 1607 + 1024 + 225
    noisy = random_spectra(1, 8)
    results: list[Spectra] = []
    for each in (weights, changed):
        network = ReferenceMUSE().double().eval()
        network.load_state_dict(each)
        with torch.inference_mode():
            results.append(Spectra(*network(noisy.mag, noisy.pha)))
    assert torch.allclose(results[0].mag, results[1].mag, atol=1e-9)
    assert wrapped(results[0].pha - results[1].pha).max() < 1e-6
    live = sum(
        tensor.double().square().sum().item()
        for name, tensor in weights.items()
        if not (WITHOUT_EFFECT.search(name) and not name.endswith("conv.0.weight"))
    )
    live -= sum(
        weights[name].double().unflatten(0, (-1, 2, 2))[:, 1].square().sum().item()
        for name in weights
        if re.search(r"(mask|phase)_conv\.0\.weight$", name)
    )
    ours = translate_published(weights)
    assert sum(tensor.double().square().sum().item() for tensor in ours.values()) == pytest.approx(live, rel=1e-9)


def test_reference_activations_and_outputs(reference: Path, released: MUSE) -> None:
    stored = {
        name: torch.from_numpy(values) for name, values in np.load(reference / "muse" / "forward_T64.npz").items()
    }
    noisy = Spectra(stored["mag"].double(), stored["pha"].double())
    enhanced, seen = outputs_of(released, list(ACTIVATIONS.values()), noisy)
    for name, module in ACTIVATIONS.items():
        expected = stored[f"act_{name}"]
        assert (seen[module] - expected).abs().max() < 2e-5 * expected.abs().max(), name
    assert (enhanced.mag - stored["mag_out"]).abs().max() < 2e-5 * stored["mag_out"].max()
    assert wrapped(enhanced.pha - stored["pha_out"]).max() < 2e-4


def test_golden_values_of_the_released_weights(released: MUSE) -> None:
    f, t = torch.arange(256.0, dtype=torch.float64)[:, None], torch.arange(308.0, dtype=torch.float64)
    mag = (torch.sin(0.013 * f + 0.029 * t).abs() + 0.1).float().double()
    pha = (3 * torch.sin(0.017 * f + 0.11 * t)).float().double()
    enhanced, seen = outputs_of(released, list(GOLDEN), Spectra(mag[None], pha[None]))
    for name, expected in GOLDEN.items():
        assert (seen[name].mean().item(), seen[name].std().item()) == pytest.approx(expected, abs=1e-5), name
    places = {
        (0, 0): (0.152707, 1.556970),
        (10, 20): (0.596109, 2.563591),
        (100, 150): (0.539318, -0.596921),
        (200, 300): (1.022083, -1.750582),
        (255, 307): (0.392761, 0.076665),
    }
    for (row, column), expected in places.items():
        found = enhanced.mag[0, row, column].item(), enhanced.pha[0, row, column].item()
        assert found == pytest.approx(expected, abs=2e-5)
    assert (enhanced.mag.mean().item(), enhanced.mag.std().item()) == pytest.approx((0.676497, 0.304091), abs=1e-5)
    assert (enhanced.pha.mean().item(), enhanced.pha.std().item()) == pytest.approx((0.269866, 1.784269), abs=2e-5)
