"""The trace of a network: attention weights reproduce the output of the module; other values by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from config import Config, load_config
from enhance.enhancer import Enhancer
from models import build
from models.blocks import to_tokens
from models.mala import MALA, rotary_tables
from models.muse import TaylorAttention
from models.stft import Spectra
from tests.fixtures.commands import ROOT
from tests.fixtures.signals import speech_like, with_noise
from tools.inspect.trace import (
    AttentionInput,
    TFPoint,
    Trace,
    attention_weights,
    default_points,
    frequency_response,
    sharpest_head,
    trace,
)

FRAMES, BINS, CHANNELS = 6, 5, 16
NOISY = with_noise(speech_like(0.4), 5).astype(np.float32)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(1, CHANNELS, FRAMES, BINS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def mala() -> MALA:
    torch.manual_seed(1)
    return MALA(CHANNELS).double()


def attend(attention: AttentionInput, name: str) -> Tensor:
    """Sum weights · values over all positions for every query: `[1, C, T, F]`."""
    value = to_tokens(attention.module.value(attention.x))[0]  # [N, C]
    rows: list[Tensor] = []
    for frame in range(FRAMES):
        for bin_ in range(BINS):
            weights = attention_weights(attention, frame, bin_)[name]  # [heads, T, F]
            heads = value.unflatten(1, (len(weights), -1))  # [N, heads, d]
            rows.append(torch.einsum("hn,nhd->hd", weights.flatten(1), heads).flatten())
    return torch.stack(rows).T.reshape(1, CHANNELS, FRAMES, BINS)


@torch.no_grad()
def test_mala_weights_give_the_output_of_the_module(x: Tensor, mala: MALA) -> None:
    attended = attend(AttentionInput("bottleneck", 1, mala, x), "MALA")
    expected = mala.project((attended + mala.lepe(mala.value(x))) * mala.output_gate(x))
    output = mala(x, rotary_tables(FRAMES, BINS, CHANNELS, x))
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_taylor_weights_give_the_output_of_the_module_and_sum_to_one(x: Tensor) -> None:
    torch.manual_seed(1)
    module = TaylorAttention(CHANNELS, {3: 2}).double()
    attention = AttentionInput("bottleneck", 1, module, x)
    attended = attend(attention, "Taylor attention")
    q, k = (module.normalized(to_tokens(conv(x))) for conv in (module.query, module.key))
    refinement = module.refinement(q, k, x.shape[2:]) * module.temperature  # [1, N, heads]
    refined = to_tokens(attended).unflatten(2, (2, -1)) * refinement[..., None]
    refined = refined.flatten(2).mT.reshape(x.shape)
    channel_gate = module.channel_path(x.mean(dim=(2, 3), keepdim=True))
    expected = module.project(refined * channel_gate * nn.functional.gelu(module.spatial_path(x)))
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-10)
    weights = attention_weights(attention, 2, 3)["Taylor attention"]
    torch.testing.assert_close(weights.sum(dim=(1, 2)), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-6)
    assert (weights > 0).all()


@torch.no_grad()
def test_weights_of_two_positions_by_hand() -> None:
    module = MALA(8).double()
    for conv in (module.query, module.key):
        assert conv.bias is not None
        nn.init.eye_(conv.weight[:, :, 0, 0])
        nn.init.zeros_(conv.bias)
    # ELU + 1 of a positive x is 1 + x: q = k_0 = (1, 1, …) and k_1 = (3, 3, …). The two positions are one frame apart,
    # so one pair of channels per head is rotated by 1 rad and another by 1e-4 rad; two pairs are not rotated.
    x = torch.tensor([0.0, 2.0], dtype=torch.float64).expand(1, 8, 2)[..., None]
    weights = attention_weights(AttentionInput("bottleneck", 1, module, x), 0, 0)
    scale = 1 / math.sqrt(8)
    z = 8 * 2 * scale  # the mean key is (2, 2, …)
    products = [8 * scale, 3 * 2 * (math.cos(1) + math.cos(1e-4) + 2) * scale]
    linear = [product / z / 2 for product in products]
    mala = [((1 + 1 / z) * product - z) / 2 for product in products]
    assert weights["linear attention"].flatten().tolist() == pytest.approx(linear, abs=1e-6)
    assert weights["MALA"].flatten().tolist() == pytest.approx(mala, abs=1e-6)


def test_responses_of_a_moving_average_and_a_difference() -> None:
    kernels = torch.tensor([[0.5, 0.5], [1.0, -1.0]], dtype=torch.float64)
    frequencies, gains = frequency_response(kernels, rate=160, points=5)
    assert frequencies.tolist() == [0, 20, 40, 60, 80]
    angles = [math.pi * hertz / 160 for hertz in (0, 20, 40, 60, 80)]
    assert gains[0].tolist() == pytest.approx([math.cos(angle) for angle in angles], abs=1e-6)
    assert gains[1].tolist() == pytest.approx([2 * math.sin(angle) for angle in angles], abs=1e-6)


def trace_of(noisy: Spectra, enhanced: Spectra) -> Trace:
    """A trace with 10 frames per second and bins of 100 Hz."""
    return Trace(np.zeros(1), np.zeros(1), noisy, enhanced, {}, [], frame_seconds=0.1, bin_hz=100.0)


def test_mask_and_phase_change_by_hand() -> None:
    values = torch.tensor([[2.0, 0.0], [3.0, -1.0], [1.0, 5.0], [-3.0, 1.0]], dtype=torch.float64)
    noisy_mag, noisy_pha, mag, pha = values[:, None, None]
    trace_ = trace_of(Spectra(noisy_mag, noisy_pha), Spectra(mag, pha))
    assert trace_.mask.tolist() == [[0.5, 0.0]]
    assert trace_.phase_change[0].tolist() == pytest.approx([2 * math.pi - 6, 2])


def test_default_points_are_in_speech_and_in_the_noise_of_a_pause() -> None:
    noisy, enhanced = torch.ones(1, 4, 10), torch.full((1, 4, 10), 0.5)
    enhanced[0, 0, 3] = 9.0  # at 0 Hz: rumble
    enhanced[0, 2, 7] = 8.0
    enhanced[0, :, 5] = 0.1  # a pause
    noisy[0, 3, 5] = 2.0
    noisy[0, 3, 7] = 5.0  # louder, but not in the pause
    trace_ = trace_of(*(Spectra(mag, torch.zeros_like(mag)) for mag in (noisy, enhanced)))
    assert default_points(trace_) == {"in speech": TFPoint(7, 2), "in noise": TFPoint(5, 3)}


def test_trace_enhances_as_usual_and_records_the_attentions(small_config: Config) -> None:
    torch.manual_seed(0)
    network = build(small_config).eval()
    trace_ = trace(network, small_config, NOISY)
    assert np.array_equal(trace_.enhanced_wav, Enhancer(network, small_config).enhance_signal(NOISY, "whole"))
    stages = ["encoder_level1", "bottleneck", "mag_refinement"]
    assert [(each.stage, each.block) for each in trace_.attentions] == [
        (name, n) for name in stages for n in range(1, 5)
    ]
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in network.modules())
    # 65 frames are padded to 68; the first level has half of the bins.
    assert trace_.noisy.mag.shape == (1, 256, 65)
    sizes = {name: size for name, (_, size) in trace_.stages.items()}
    assert sizes == {"encoder_level1": (68, 128), "bottleneck": (17, 32), "mag_refinement": (68, 128)}
    assert trace_.attentions[4].x.shape == (1, 24, 17, 32)
    assert (trace_.stride("encoder_level1"), trace_.stride("bottleneck")) == ((1, 2), (4, 8))
    upsampled = trace_.upsample(torch.arange(17 * 32).reshape(17, 32), "bottleneck")
    assert upsampled.shape == (65, 256)
    assert upsampled[63, 41] == 15 * 32 + 5


def test_sharpest_head_has_the_largest_deviation(small_config: Config) -> None:
    torch.manual_seed(0)
    config = replace(small_config, model=replace(small_config.model, channels=16))
    trace_ = trace(build(config).eval(), config, NOISY)
    head = sharpest_head(trace_, "bottleneck", [TFPoint(3, 9), TFPoint(40, 100)])
    deviations: dict[tuple[int, int], float] = {}
    for attention in trace_.attentions[4:8]:
        maps = [attention_weights(attention, *position)["MALA"] for position in ((0, 1), (10, 12))]
        deviations |= {(attention.block, n + 1): float(sum(each[n].std() for each in maps)) for n in range(6)}
    assert (head.attention.block, head.number) == max(deviations, key=lambda key: deviations[key])
    own = attention_weights(head.attention, 10, 12)["MALA"][head.number - 1]
    torch.testing.assert_close(head.weights["MALA"], torch.stack([head.weights["MALA"][0], own * (17 * 32)]))


@pytest.mark.parametrize("name", ["lite_rtse", "cnunet", "imse_live"])
def test_other_networks_have_a_mask(name: str) -> None:
    config = load_config(ROOT / f"configs/{name}.json")
    torch.manual_seed(0)
    trace_ = trace(build(config).eval(), config, NOISY)
    assert trace_.attentions == []
    product = trace_.mask.double() * trace_.noisy.mag[0].double()
    torch.testing.assert_close(product, trace_.enhanced.mag[0].double(), rtol=1e-4, atol=1e-6)
