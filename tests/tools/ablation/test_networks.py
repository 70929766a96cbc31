"""The ablations of IMSE: parameters counted by hand, and each part's absence against a plain form of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from config import Config, ImseAblationConfig, load_config
from models import build
from models.idconv import IDConv
from models.mala import HEAD_WIDTH, MALA, rotary_tables
from models.stft import Spectra
from tests.fixtures.commands import ROOT
from tests.models.test_mala import turned
from tools.ablation.networks import attention, local_patterns

ABLATIONS = sorted((ROOT / "configs/ablation").glob("*.json"))

LEVELS = {16: 4, 32: 2, 48: 1}
"""Stages of each width: two refinements, and one each way, of the first; one each way of the second."""

WIDTHS = sum(width * stages for width, stages in LEVELS.items())  # 176
SQUARES = sum(width**2 * stages for width, stages in LEVELS.items())
BLOCKS = 4  # a stage


def stage_count(width: int) -> int:
    """An IDConv (mix, 3×3 and two 11s with biases) and four blocks: two norms, MALA, feed-forward."""
    idconv = width**2 + width // 8 * (9 + 1 + 2 * (11 + 1))
    mala = 5 * (width**2 + width) + width * (25 + 1)  # query, key, value, gate, project; local 5×5
    hidden = int(2.66 * width)
    return idconv + BLOCKS * (2 * width + mala + 3 * width * hidden + 2 * 9 * hidden)


def dense_block_count(width: int) -> int:
    """Four 3×3 convolutions of 1 to 4 times the width; norm and PReLU have three numbers a channel."""
    return 9 * width**2 * (1 + 2 + 3 + 4) + 4 * 3 * width


def phase_decoder_count(width: int) -> int:
    """Dense block, doubling of the bins, norm and PReLU, real and imaginary part."""
    return dense_block_count(width) + 2 * width**2 + 3 * width + 3 * width + 2 * (width + 1)


def imse_count(width: int, bins: int = 256) -> int:
    """All of IMSE."""
    encoder = 2 * width + 3 * width + dense_block_count(width) + 3 * width**2 + 3 * width
    magnitude = dense_block_count(width) + 2 * width**2 + 3 * width + (width + 3) + 2 + bins
    stages = 4 * stage_count(width) + 2 * stage_count(2 * width) + stage_count(3 * width)
    down = 9 * width + width * 2 * width // 4 + 9 * 2 * width + 2 * width * 3 * width // 4
    up = 9 * 3 * width + 3 * width * 4 * 2 * width + 9 * 2 * width + 2 * width * 4 * width
    merge = 4 * width * 2 * width + 2 * width * width
    outputs = 2 * 9 * width**2
    return encoder + magnitude + phase_decoder_count(width) + stages + down + up + merge + outputs


BASE = 430_139
BY_HAND = {
    # β, γ, rotation and softmax have no parameters.
    "mala_without_magnitude": BASE,
    "mala_without_rotation": BASE,
    "softmax_bottleneck": BASE,
    # The yardstick: what chance alone changes.
    "other_seed": BASE,
    "mala_without_local": BASE - BLOCKS * (25 + 1) * WIDTHS,
    "mala_without_gate": BASE - BLOCKS * (SQUARES + WIDTHS),
    # An eighth of the channels meets each kernel, which has a bias.
    "idconv_without_square": BASE - (9 + 1) * WIDTHS // 8,
    "idconv_without_frequency": BASE - (11 + 1) * WIDTHS // 8,
    "idconv_without_time": BASE - (11 + 1) * WIDTHS // 8,
    "idconv_band_7": BASE - 2 * 4 * WIDTHS // 8,
    "idconv_band_15": BASE + 2 * 4 * WIDTHS // 8,
    "depthwise_3x3": BASE + (9 + 1) * WIDTHS - (10 + 12 + 12) * WIDTHS // 8,
    # 3×3 and 1×1 to 18 for the offsets, 3×3 where they say; the mix is in both.
    "deformable_embedding": BASE + (9 + 18 + 9) * WIDTHS - (10 + 12 + 12) * WIDTHS // 8,
    # MUSE has 510 159 with the deformable embedding.
    "taylor_attention": 510_159 - (9 + 18 + 9) * WIDTHS + (10 + 12 + 12) * WIDTHS // 8,
    # One map less goes in; refinement, 3×3 behind it, and decoder.
    "magnitude_only": BASE - 16 - stage_count(16) - 9 * 16**2 - phase_decoder_count(16),
    "width_8": imse_count(8),
    "width_24": imse_count(24),
}


def test_imse_itself_is_as_counted() -> None:
    assert imse_count(16) == BASE


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_parameters_are_as_counted_by_hand(path: Path) -> None:
    network = build(load_config(path))
    assert sum(each.numel() for each in network.parameters()) == BY_HAND[path.stem]
    noisy = Spectra(torch.rand(2, 256, 3), torch.rand(2, 256, 3))
    enhanced = network(noisy)
    assert enhanced.mag.shape == enhanced.pha.shape == (2, 256, 3)
    # All that is there is used: nothing stays in that has no effect.
    (enhanced.mag.sum() + enhanced.pha.sin().sum()).backward()
    assert [name for name, each in network.named_parameters() if each.grad is None] == []


def test_every_ablation_is_counted() -> None:
    assert {path.stem for path in ABLATIONS} == BY_HAND.keys()


def test_what_is_not_ablated_is_imse(config: Config) -> None:
    paper = build(config).eval()
    ablation = replace(config, model=ImseAblationConfig("imse_ablation", channels=16, beta=2.0))
    same = build(ablation).eval()
    same.load_state_dict(paper.state_dict())
    noisy = Spectra(torch.rand(1, 256, 6), torch.rand(1, 256, 6))
    with torch.inference_mode():
        assert torch.equal(same(noisy).mag, paper(noisy).mag)
        assert torch.equal(same(noisy).pha, paper(noisy).pha)


@pytest.mark.parametrize(
    "name",
    [
        *(f"mala_without_{part}" for part in ("magnitude", "rotation", "local", "gate")),
        *(f"idconv_without_{part}" for part in ("square", "frequency", "time")),
        "softmax_bottleneck",
    ],
)
def test_what_only_lacks_a_part_begins_with_imse_s_weights(config: Config, name: str) -> None:
    torch.manual_seed(0)
    paper = build(config).state_dict()
    torch.manual_seed(0)
    ablation = build(load_config(ROOT / f"configs/ablation/{name}.json")).state_dict()
    assert ablation.keys() <= paper.keys()
    assert all(torch.equal(paper[weight], value) for weight, value in ablation.items())


def attended(kind: str, rotated: bool, weights_of: str) -> tuple[Tensor, Tensor]:
    """What an attention gives on a map of 3 × 4 positions, and a plain double loop over them."""
    frames, bins, channels = 3, 4, 16
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, frames * bins, channels, generator=generator, dtype=torch.float64)
    if weights_of != "softmax":
        q, k = q.abs(), k.abs()
    module = attention(kind, 2, channels).double()
    assert isinstance(module, MALA)
    fast = module.attend(q[None], k[None], v[None], rotary_tables(frames, bins, channels, v), bins)[0]
    places = [(t, f) for t in range(frames) for f in range(bins)]
    slow = torch.zeros_like(v)
    for head in range(channels // HEAD_WIDTH):
        part = slice(head * HEAD_WIDTH, (head + 1) * HEAD_WIDTH)
        turn = turned if rotated else lambda vector, *_: vector
        keys = torch.stack([turn(k[j, part], *place) for j, place in enumerate(places)])
        for i, place in enumerate(places):
            products = keys @ turn(q[i, part], *place) / HEAD_WIDTH**0.5
            z = (k[:, part] @ q[i, part]).mean() / HEAD_WIDTH**0.5
            weights = {
                "linear": products / (z * len(places)),
                "softmax": products.softmax(0),
                "mala": ((1 + 1 / z) * products - z) / len(places),
            }[weights_of]
            slow[i, part] = weights @ v[:, part]
    return fast, slow


@pytest.mark.parametrize(
    ("kind", "rotated", "weights"),
    [
        ("without_magnitude", True, "linear"),
        ("without_rotation", False, "mala"),
        ("softmax_bottleneck", True, "softmax"),
        ("mala", True, "mala"),
    ],
)
def test_an_attention_is_the_sum_over_all_pairs_of_positions(kind: str, rotated: bool, weights: str) -> None:
    fast, slow = attended(kind, rotated, weights)
    assert torch.allclose(fast, slow, atol=1e-5)


def test_softmax_takes_queries_and_keys_of_any_sign_at_the_bottleneck_alone() -> None:
    assert [type(attention("softmax_bottleneck", level, 16)) is MALA for level in range(3)] == [True, True, False]
    softmax = attention("softmax_bottleneck", 2, 16)
    assert isinstance(softmax, MALA)
    assert softmax.features(torch.tensor([-3.0])).item() == -3


@pytest.mark.parametrize(("kind", "part"), [("without_local", "local"), ("without_gate", "gate")])
def test_without_a_part_is_that_part_neutral(kind: str, part: str) -> None:
    torch.manual_seed(0)
    whole, without = MALA(16), attention(kind, 0, 16)
    neutral = getattr(whole, part)
    with torch.no_grad():
        neutral.weight.zero_()
        neutral.bias.fill_(float(part == "gate"))
    without.load_state_dict({name: value for name, value in whole.state_dict().items() if not name.startswith(part)})
    x = torch.randn(2, 16, 6, 5)
    tables = rotary_tables(6, 5, 16, x)
    assert torch.allclose(without(x, tables), whole(x, tables), atol=1e-6)


@pytest.mark.parametrize(("kind", "passes"), [("without_square", 10), ("without_frequency", 12), ("without_time", 14)])
def test_the_channels_of_a_missing_branch_pass(kind: str, passes: int) -> None:
    torch.manual_seed(0)
    whole, without = IDConv(16), local_patterns(kind, 11, 16)
    without.load_state_dict(whole.state_dict(), strict=False)
    x = torch.randn(1, 16, 12, 13)
    mixed, ours, full = whole.mix(x), without(x), whole(x)
    for channel in range(16):
        missing = channel in (passes, passes + 1)
        assert torch.equal(ours[:, channel], (mixed if missing else full)[:, channel])
        assert torch.equal(ours[:, channel], mixed[:, channel]) == (missing or channel < 10)


def test_the_plain_depthwise_filters_every_channel_by_a_square() -> None:
    module = local_patterns("depthwise", 11, 8)
    mix, square = module.children()
    assert isinstance(mix, nn.Conv2d) and isinstance(square, nn.Conv2d)
    with torch.no_grad():
        mix.weight.copy_(torch.eye(8)[..., None, None])
        square.weight.fill_(1.0)
        assert square.bias is not None
        square.bias.zero_()
        point = torch.zeros(1, 8, 7, 7)
        point[:, :, 3, 3] = 1
        out = module(point)
    assert out[0, :, 2:5, 2:5].eq(1).all() and out.sum() == 8 * 9


def test_the_magnitude_alone_is_seen_and_enhanced() -> None:
    torch.manual_seed(0)
    network = build(load_config(ROOT / "configs/ablation/magnitude_only.json")).eval()
    mag, pha, other = torch.rand(3, 1, 256, 5)
    with torch.inference_mode():
        first, second = network(Spectra(mag, pha)), network(Spectra(mag, other))
        assert torch.equal(first.pha, pha) and torch.equal(second.pha, other)
        assert torch.equal(first.mag, second.mag)
        assert not torch.allclose(network(Spectra(other, pha)).mag, first.mag)
