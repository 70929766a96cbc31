"""Metric discriminator: the release's outputs, size, range, dropout and spectral normalisation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrize

from models.discriminator import HIDDEN, MetricDiscriminator, dropout_factors


@pytest.fixture
def discriminator() -> MetricDiscriminator:
    torch.manual_seed(0)
    return MetricDiscriminator().double()


def magnitudes(bins: int = 256, frames: int = 20, rows: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(rows, bins, frames, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_released_weights_give_released_outputs(reference: Path) -> None:
    known = {
        name: torch.from_numpy(array).double() for name, array in np.load(reference / "imse" / "losses.npz").items()
    }
    discriminator = MetricDiscriminator().double().eval()
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == 181_650
    # The release numbers its layers in one sequence, with pooling at 12 and 13 and dropout at 15.
    numbered = {
        **{int(name): module for name, module in discriminator.features.named_children()},
        **{14: discriminator.hidden, 16: discriminator.act, 17: discriminator.output},
    }
    filled = 0
    for number, module in numbered.items():
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight")
        for name, parameter in module.named_parameters():
            effective = f"D_layer{number}_{name}_after_spectral_norm"
            with torch.no_grad():
                parameter.copy_(known[effective if effective in known else f"D_layers_{number}_{name}"])
            filled += 1
    with torch.no_grad():
        discriminator.slope.copy_(known["D_layers_18_slope"])
    assert filled + 1 == sum(name.startswith("D_layer") for name in known)
    with torch.inference_mode():
        for mag, expected in (("clean_mag", "disc_clean_clean"), ("mag", "disc_clean_enhanced")):
            quality = discriminator(known["clean_mag"], known[mag])
            assert torch.allclose(quality, known[expected].squeeze(1), atol=1e-5)


@pytest.mark.parametrize("bins, frames", [(256, 16), (64, 33)])
def test_any_number_of_bins_and_frames(discriminator: MetricDiscriminator, bins: int, frames: int) -> None:
    clean, other = magnitudes(bins, frames, 3), magnitudes(bins, frames, 3, seed=1)
    quality = discriminator.eval()(clean, other)
    assert quality.shape == (3,)
    assert ((quality > 0) & (quality < 1)).all()
    alone = discriminator(clean[1:2], other[1:2])
    assert torch.allclose(quality[1:2], alone, rtol=1e-12)
    assert not torch.allclose(quality, discriminator(other, clean), atol=1e-4)


def test_dropout_keeps_70_percent_and_depends_on_the_seed_only() -> None:
    before = torch.get_rng_state()
    factors = dropout_factors(400, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(dropout_factors(400, seed=5), factors)
    torch.set_rng_state(before)
    assert not torch.equal(dropout_factors(400, seed=6), factors)
    assert not torch.equal(factors[0], factors[1])
    assert factors.shape == (400, HIDDEN)
    assert torch.allclose(factors[factors > 0], torch.tensor(1 / 0.7))
    assert (factors > 0).float().mean().item() == pytest.approx(0.7, abs=0.01)


def test_dropout_changes_its_rows_only(discriminator: MetricDiscriminator) -> None:
    discriminator.eval()
    clean, other = magnitudes(), magnitudes(seed=1)
    whole = discriminator(clean, other)
    factors = torch.ones(2, HIDDEN, dtype=torch.float64)
    assert torch.allclose(discriminator(clean, other, factors), whole, rtol=1e-12)
    factors[1] = dropout_factors(1, seed=0)
    dropped = discriminator(clean, other, factors)
    assert torch.allclose(dropped[0], whole[0], rtol=1e-12)
    assert (dropped[1] - whole[1]).abs() > 1e-4


def test_spectral_norm_is_one(discriminator: MetricDiscriminator) -> None:
    modules = [module for module in discriminator.modules() if parametrize.is_parametrized(module)]
    assert len(modules) == 6
    with torch.no_grad():
        for module in modules:
            module.get_parameter("parametrizations.weight.original").mul_(5)
        for _ in range(20):
            discriminator(magnitudes(64), magnitudes(64))
        for module in modules:
            weight = module.weight
            assert isinstance(weight, Tensor)
            assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1, abs=0.05)
