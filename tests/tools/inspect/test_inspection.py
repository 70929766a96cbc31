"""What is drawn of a network's inside: the attention's weights give its output, and the rest fits values by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from config import Config, load_config
from enhance.enhancer import Enhancer, LevelMeter
from models import build
from models.blocks import to_tokens
from models.mala import MALA, RotaryTables, rotary_tables
from models.muse import TaylorAttention
from models.stft import Spectra
from tests.fixtures.commands import ROOT
from tests.fixtures.signals import speech_like, with_noise
from tools.ablation.networks import LinearAttention, SoftmaxAttention, UnrotatedMALA
from tools.inspect.inspection import (
    Caught,
    Pass,
    Place,
    attention_weights,
    frequency_response,
    mask_of,
    phase_change_of,
    place_in_noise,
    place_in_speech,
    run_once,
    sharpest_head,
)

FRAMES, BINS, CHANNELS = 6, 5, 16
NOISY = with_noise(speech_like(0.4), 5).astype(np.float32)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(1, CHANNELS, FRAMES, BINS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def mala(x: Tensor) -> Caught:
    torch.manual_seed(1)
    module = MALA(CHANNELS).double()
    return Caught("bottleneck", 1, module, x, (rotary_tables(FRAMES, BINS, CHANNELS, x),))


def weighted(weights: Tensor, value: Tensor) -> Tensor:
    """The sum over all positions, `[heads, T, F]` times `[N, C]`, head by head: `[C]`."""
    heads = value.unflatten(1, (len(weights), -1))  # [N, heads, d]
    return torch.einsum("hn,nhd->hd", weights.flatten(1), heads).flatten()


KINDS = [
    (MALA, "MALA"),
    (UnrotatedMALA, "MALA"),
    (LinearAttention, "linear attention"),
    (SoftmaxAttention, "softmax attention"),
]


@pytest.mark.parametrize(("kind", "name"), KINDS)
@pytest.mark.parametrize(("frame", "bin_"), [(0, 0), (2, 3), (5, 4)])
@torch.no_grad()
def test_the_weights_give_what_mala_and_its_variants_attend_to(
    x: Tensor, kind: type[MALA], name: str, frame: int, bin_: int
) -> None:
    torch.manual_seed(1)
    module = kind(CHANNELS).double()
    rotary = rotary_tables(FRAMES, BINS, CHANNELS, x)
    q, k = (to_tokens(module.features(conv(x))) for conv in (module.query, module.key))
    value = to_tokens(module.value(x))
    expected = module.attend(q, k, value, rotary, BINS)[0, frame * BINS + bin_]
    weights = attention_weights(Caught("bottleneck", 1, module, x, (rotary,)), frame, bin_)[name]
    assert weights.shape == (2, FRAMES, BINS)
    torch.testing.assert_close(weighted(weights, value[0]), expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_both_weights_by_hand_and_their_sum_without_rotation() -> None:
    module = MALA(8).double()
    for conv in (module.query, module.key):
        assert conv.bias is not None
        nn.init.eye_(conv.weight[:, :, 0, 0])
        nn.init.zeros_(conv.bias)
    # ELU + 1 makes 1 + x of a positive x: query and keys of the two positions are (1, 1, …) and (3, 3, …).
    x = torch.tensor([0.0, 2.0], dtype=torch.float64).expand(1, 8, 2)[..., None]
    still = RotaryTables(torch.ones(2, 8, dtype=torch.float64), torch.zeros(2, 8, dtype=torch.float64))
    caught = Caught("bottleneck", 1, module, x, (still,))
    s = 8 / math.sqrt(8)  # q · k_0 / √d; that of k_1 is 3 s, and z = 2 s
    weights = attention_weights(caught, 0, 0)
    expected_mala = [((1 + 1 / (2 * s)) * product - 2 * s) / 2 for product in (s, 3 * s)]
    assert weights["MALA"].flatten().tolist() == pytest.approx(expected_mala, abs=1e-6)
    assert weights["linear attention"].flatten().tolist() == pytest.approx([0.25, 0.75], abs=1e-6)
    for each in weights.values():
        assert float(each.sum()) == pytest.approx(1, abs=1e-5)


@torch.no_grad()
def test_mala_stretches_linear_attention_away_from_an_even_share(mala: Caught) -> None:
    """Times N, MALA = L + z (L − 1): the query's magnitude decides how much."""
    weights = {name: each * FRAMES * BINS for name, each in attention_weights(mala, 2, 3).items()}
    stretched = weights["MALA"] - weights["linear attention"]
    z = stretched / (weights["linear attention"] - 1)
    assert (z > 0.1).all()
    torch.testing.assert_close(z, z.mean(dim=(1, 2), keepdim=True).expand_as(z), rtol=1e-4, atol=0)


@torch.no_grad()
def test_taylor_s_weights_give_what_it_attends_to_and_sum_to_one(x: Tensor) -> None:
    torch.manual_seed(1)
    module = TaylorAttention(CHANNELS, {3: 2}).double()
    q, k = (module.normalized(to_tokens(conv(x))) for conv in (module.query, module.key))
    value = to_tokens(module.value(x))
    expected = module.attend(q, k, value, BINS)[0, 2 * BINS + 3]
    weights = attention_weights(Caught("bottleneck", 1, module, x, ()), 2, 3)["Taylor attention"]
    torch.testing.assert_close(weighted(weights, value[0]), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(weights.sum(dim=(1, 2)), torch.ones(2, dtype=torch.float64))
    assert (weights > 0).all()


def test_responses_of_a_moving_average_and_a_difference() -> None:
    kernels = torch.tensor([[0.5, 0.5], [1.0, -1.0]])
    frequencies, gains = frequency_response(kernels, rate=160, points=5)
    assert frequencies.tolist() == [0, 20, 40, 60, 80]
    angles = [math.pi * hertz / 160 for hertz in (0, 20, 40, 60, 80)]
    assert gains[0].tolist() == pytest.approx([math.cos(angle) for angle in angles], abs=1e-6)
    assert gains[1].tolist() == pytest.approx([2 * math.sin(angle) for angle in angles], abs=1e-6)


def hand_made(noisy: Spectra, enhanced: Spectra) -> Pass:
    return Pass(noisy, enhanced, np.zeros(1), {}, (), frame_seconds=0.1, bin_hz=100.0)


def test_mask_and_phase_change_by_hand() -> None:
    noisy = Spectra(torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[3.0, -1.0]]]))
    enhanced = Spectra(torch.tensor([[[1.0, 5.0]]]), torch.tensor([[[-3.0, 1.0]]]))
    pass_ = hand_made(noisy, enhanced)
    assert mask_of(pass_).tolist() == [[0.5, 0.0]]
    assert phase_change_of(pass_)[0].tolist() == pytest.approx([2 * math.pi - 6, 2])


def test_places_are_in_the_loudest_speech_and_in_the_noise_of_a_pause() -> None:
    noisy, enhanced = torch.ones(1, 4, 10), torch.full((1, 4, 10), 0.5)
    enhanced[0, 0, 3] = 9.0  # at 0 Hz: no speech
    enhanced[0, 2, 7] = 8.0
    enhanced[0, :, 5] = 0.1  # a pause
    noisy[0, 3, 5] = 2.0
    noisy[0, 3, 7] = 5.0  # louder, but not in the pause
    pass_ = hand_made(*(Spectra(mag, torch.zeros_like(mag)) for mag in (noisy, enhanced)))
    assert place_in_speech(pass_) == Place(7, 2)
    assert place_in_noise(pass_) == Place(5, 3)


def test_a_pass_enhances_as_ever_and_keeps_what_the_attentions_were_given(small_config: Config) -> None:
    torch.manual_seed(0)
    network = build(small_config).eval()
    enhancer = Enhancer(network, small_config)
    pass_ = run_once(enhancer, NOISY)
    expected = np.concatenate(list(enhancer.enhance([NOISY[:, None]], LevelMeter().measure([NOISY[:, None]]), "whole")))
    np.testing.assert_allclose(pass_.wav, expected[:, 0], rtol=0, atol=1e-6)
    stages = ["encoder_level1", "bottleneck", "mag_refinement"]
    assert [(each.stage, each.block) for each in pass_.caught] == [(name, n) for name in stages for n in (1, 2, 3, 4)]
    assert not any(module._forward_pre_hooks for module in network.modules())
    # 65 frames are filled up to 68 for the network, which has half of the bins at the first level.
    assert pass_.noisy.mag.shape == (1, 256, 65)
    assert pass_.maps == {"encoder_level1": (68, 128), "bottleneck": (17, 32), "mag_refinement": (68, 128)}
    assert pass_.caught[4].x.shape == (1, 24, 17, 32)
    assert (pass_.step("encoder_level1"), pass_.step("bottleneck")) == ((1, 2), (4, 8))
    assert pass_.position(Place(63, 41), "bottleneck") == (15, 5)
    spread = pass_.spread(torch.arange(17 * 32).reshape(17, 32), "bottleneck")
    assert spread.shape == (65, 256)
    assert spread[63, 41] == 15 * 32 + 5


def test_the_sharpest_head_has_the_largest_deviation(small_config: Config) -> None:
    torch.manual_seed(0)
    config = replace(small_config, model=replace(small_config.model, channels=16))
    pass_ = run_once(Enhancer(build(config).eval(), config), NOISY)
    places = [Place(3, 9), Place(40, 100)]
    head = sharpest_head(pass_, "bottleneck", places)
    deviations = {}
    for caught in pass_.caught[4:8]:
        maps = [attention_weights(caught, *pass_.position(place, "bottleneck"))["MALA"] for place in places]
        deviations |= {(caught.block, n + 1): float(sum(each[n].std() for each in maps)) for n in range(6)}
    assert (head.caught.block, head.number) == max(deviations, key=lambda key: deviations[key])
    assert head.weights["MALA"].shape == (2, 17, 32)
    # Times N, an even share is 1; the mean without the rotation would be.
    own = attention_weights(head.caught, *pass_.position(places[1], "bottleneck"))["MALA"][head.number - 1]
    torch.testing.assert_close(head.weights["MALA"][1], own * (17 * 32))


def test_an_attention_that_is_not_known_is_left_alone(small_config: Config) -> None:
    class Other(nn.Identity):
        def forward(self, input: Tensor, *_: object) -> Tensor:
            return input

    network = build(small_config).eval()
    network.get_submodule("unet.bottleneck.blocks.2").attention = Other()
    blocks = [each.block for each in run_once(Enhancer(network, small_config), NOISY).caught[4:8]]
    assert blocks[:3] == [1, 2, 4]


@pytest.mark.parametrize("name", ["lite_rtse", "cnunet"])
def test_networks_without_such_attentions_have_a_mask(name: str) -> None:
    config = load_config(ROOT / f"configs/{name}.json")
    torch.manual_seed(0)
    pass_ = run_once(Enhancer(build(config).eval(), config), NOISY)
    assert pass_.caught == ()
    mask = mask_of(pass_)
    assert mask.shape == pass_.noisy.mag.shape[1:]
    torch.testing.assert_close(mask * pass_.noisy.mag[0], pass_.enhanced.mag[0], rtol=1e-4, atol=1e-6)
