"""MUSE: the release's activations, outputs and golden values, the plain transcription, and its own blocks."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from config import Config, MuseConfig, load_config
from models.checkpoint import load_checkpoint
from models.muse import MUSE, DeformableConv, DeformableEmbedding, TaylorAttention
from models.published import translate_published
from models.stft import Spectra
from tests.fixtures.commands import ROOT
from tests.models.test_imse import random_spectra, wrapped
from tests.reference.muse import ReferenceMUSE

# Stored activation → module. A stage's activation is the one before its residual.
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

# Mean and standard deviation of the released network's modules for the input of the test, before a stage's residual.
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


@pytest.fixture(scope="module")
def muse_config() -> Config:
    return load_config(ROOT / "configs" / "muse.json")


@pytest.fixture
def released(reference: Path) -> MUSE:
    network, _ = load_checkpoint(reference / "muse" / "g_best")
    assert isinstance(network, MUSE)
    return network.double()


def outputs_of(network: MUSE, names: list[str], noisy: Spectra) -> tuple[Spectra, dict[str, Tensor]]:
    """Return the output of the network and of its submodules `names`."""
    seen: dict[str, Tensor] = {}
    for name in names:
        hook = lambda _module, _inputs, output, name=name: seen.__setitem__(name, output)  # noqa: E731
        network.get_submodule(name).register_forward_hook(hook)
    with torch.inference_mode():
        return network(noisy), seen


def random_pair(channels: int = 8) -> tuple[MUSE, ReferenceMUSE]:
    """Return our network and the transcription with the same random weights, in float64."""
    torch.manual_seed(0)
    plain = ReferenceMUSE(channels).double().eval()
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            if name.endswith("temperature"):
                weight.uniform_(0.5, 2)
            if ".offset_generator." in name:
                weight.mul_(5)  # offsets reach their limits
    ours = MUSE(MuseConfig("muse", channels, 2.0), 256).double().eval()
    ours.load_state_dict(translate_published(plain.state_dict()))
    return ours, plain


def test_equals_plain_transcription() -> None:
    ours, plain = random_pair()
    noisy = random_spectra(2, 12)
    with torch.inference_mode():
        enhanced = ours(noisy)
        mag, pha = plain(noisy.mag, noisy.pha)
    assert torch.allclose(enhanced.mag, mag, atol=1e-9)
    assert wrapped(enhanced.pha - pha).max() < 1e-6


def test_other_frame_counts_equal_silent_padding() -> None:
    ours, _ = random_pair()
    frames = 5
    noisy = random_spectra(1, frames)
    padded = Spectra(*(torch.nn.functional.pad(part, (0, -frames % 4)) for part in noisy))
    with torch.inference_mode():
        enhanced, expected = ours(noisy), ours(padded)
    assert enhanced.mag.shape == (1, 256, frames)
    assert torch.allclose(enhanced.mag, expected.mag[..., :frames], atol=1e-12)
    assert torch.allclose(enhanced.pha, expected.pha[..., :frames], atol=1e-12)


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


@pytest.mark.slow
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


def read(x: Tensor, time: Tensor, frequency: Tensor) -> Tensor:
    """Interpolate a map `[C, T, F]` bilinearly, with zeros outside."""
    value = x.new_zeros(len(x))
    first, second = math.floor(time.item()), math.floor(frequency.item())
    for t in (first, first + 1):
        for f in (second, second + 1):
            if 0 <= t < x.shape[1] and 0 <= f < x.shape[2]:
                value = value + x[:, t, f] * (1 - (time - t).abs()) * (1 - (frequency - f).abs())
    return value


def slow_deformable(x: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    """Position by position, tap by tap."""
    batch, channels, frames, bins = x.shape
    rows: list[Tensor] = []
    for b in range(batch):
        for t in range(frames):
            for f in range(bins):
                total = x.new_zeros(channels)
                for tap in range(9):
                    i, j = divmod(tap, 3)
                    place = t + i - 1 + offsets[b, 2 * tap, t, f], f + j - 1 + offsets[b, 2 * tap + 1, t, f]
                    total = total + weight[:, 0, i, j] * read(x[b], *place)
                rows.append(total)
    return torch.stack(rows).reshape(batch, frames, bins, channels).permute(0, 3, 1, 2)


@pytest.mark.parametrize("frames, bins", [(4, 5), (1, 3)])
def test_deformable_convolution_equals_a_loop(frames: int, bins: int) -> None:
    torch.manual_seed(0)
    conv = DeformableConv(3).double()
    x = torch.randn(2, 3, frames, bins, dtype=torch.float64)
    offsets = 2.5 * torch.randn(2, 18, frames, bins, dtype=torch.float64)  # many outside, some beyond the zeros
    targets = torch.randn_like(x)
    leaves = [leaf.requires_grad_() for leaf in (x, offsets, conv.weight)]
    ours, slow = conv(x, offsets), slow_deformable(x, offsets, conv.weight)
    assert torch.allclose(ours, slow, atol=1e-12)
    gradients = [torch.autograd.grad((out * targets).sum(), leaves) for out in (ours, slow)]
    for name, mine, expected in zip(("input", "offsets", "weight"), *gradients, strict=True):
        assert torch.allclose(mine, expected, atol=1e-10), name


def test_deformable_embedding_is_initialised_as_released() -> None:
    torch.manual_seed(0)
    module = DeformableEmbedding(64)
    for conv, fan_out in ((module.offsets[0], 9 * 64), (module.offsets[1], 18), (module.mix, 64)):
        assert isinstance(conv, nn.Conv2d)
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.1)
    assert module.deformable.weight.abs().max() <= 1 / 3  # Kaiming-uniform over nine inputs


def test_taylor_attention_equals_sum_over_all_pairs() -> None:
    """The weight of a pair of positions is 1 + q · k; the release adds 1e-6 to the denominator."""
    torch.manual_seed(0)
    heads, width, positions = 3, 4, 10
    module = TaylorAttention(heads * width, {3: 1, 5: 2}).double()
    q, k, v = torch.randn(3, 2, positions, heads * width, dtype=torch.float64)
    attended = module.attention(q, k, v)
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        weights = 1 + q[..., own] @ k[..., own].mT
        expected = weights @ v[..., own] / (weights.sum(dim=2, keepdim=True) + 1e-6)
        assert torch.allclose(attended[..., own], expected, rtol=1e-9)
