"""The ablated networks: parameter counts, shared weights, and each attention against a double loop over positions."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tools.ablation  # noqa: F401 (registers the network)
from config import Config, load_config
from models import build
from models.idconv import IDConv
from models.mala import HEAD_WIDTH, MALA, RotaryTables, rotary_tables
from models.stft import Spectra
from tests.fixtures.commands import ROOT
from tools.ablation.networks import ImseAblationConfig, make_attention, make_local

FILES = sorted((ROOT / "configs/ablation").glob("*.json"))
ROWS = re.findall(r"^\| `(\w+)` \|.*\| ([\d ]+) \|$", (ROOT / "docs/ABLATIONS.md").read_text(), re.MULTILINE)
PARAMETERS = {name: int(count.replace(" ", "")) for name, count in ROWS}
"""Of each variant, in the table of the documentation."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_parameters(path: Path) -> None:
    config = load_config(path)
    network = build(config)
    assert sum(each.numel() for each in network.parameters()) == PARAMETERS[path.stem]
    noisy = Spectra(torch.rand(2, 256, 3), torch.rand(2, 256, 3))
    enhanced = network(noisy)
    assert enhanced.mag.shape == enhanced.pha.shape == (2, 256, 3)
    (enhanced.mag.sum() + enhanced.pha.sin().sum()).backward()
    assert [name for name, each in network.named_parameters() if each.grad is None] == []


def test_every_variant_is_documented() -> None:
    assert {"base", *(path.stem for path in FILES)} == PARAMETERS.keys()


@pytest.mark.parametrize("path", [path for path in FILES if "width" not in path.stem], ids=lambda path: path.stem)
def test_shared_parameters_have_the_initial_values_of_imse(config: Config, path: Path) -> None:
    def initial(config: Config) -> tuple[dict[str, Tensor], Tensor]:
        torch.manual_seed(0)
        return build(config).state_dict(), torch.rand(1)

    paper, following = initial(config)
    ablated, same = initial(load_config(path))
    assert torch.equal(following, same)  # so the discriminator is the same too
    for name, value in ablated.items():
        if name in paper and value.shape == paper[name].shape:
            assert torch.equal(value, paper[name]), name
    assert len(ablated.keys() & paper.keys()) > 100


def test_defaults_are_imse(config: Config) -> None:
    paper = build(config).eval().double()
    same = build(replace(config, model=ImseAblationConfig("imse_ablation", channels=16, beta=2.0))).eval().double()
    same.load_state_dict(paper.state_dict())
    noisy = Spectra(*torch.rand(2, 1, 256, 6, dtype=torch.float64))
    with torch.inference_mode():
        (mag, pha), (paper_mag, paper_pha) = same(noisy), paper(noisy)
    torch.testing.assert_close(torch.polar(mag, pha), torch.polar(paper_mag, paper_pha), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("kind", "rotated", "weights_of"),
    [
        ("mala", True, "mala"),
        ("without_magnitude", True, "linear"),
        ("without_rotation", False, "mala"),
        ("softmax_bottleneck", True, "softmax"),
    ],
)
def test_attention_is_the_sum_over_all_pairs_of_positions(kind: str, rotated: bool, weights_of: str) -> None:
    frames, bins, channels = 3, 4, 16
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, frames * bins, channels, generator=generator, dtype=torch.float64)
    if weights_of != "softmax":
        q, k = q.abs(), k.abs()
    module = make_attention(kind, 2, channels).double()
    assert isinstance(module, MALA)
    rotary = rotary_tables(frames, bins, channels, v)
    fast = module.attention(q[None], k[None], v[None], rotary)[0]
    slow = torch.zeros_like(v)
    for head in range(channels // HEAD_WIDTH):
        part = slice(head * HEAD_WIDTH, (head + 1) * HEAD_WIDTH)
        keys = torch.stack([rotated_vector(k[j], rotary, j, rotated)[part] for j in range(len(k))])
        for i in range(len(q)):
            products = keys @ rotated_vector(q[i], rotary, i, rotated)[part] / HEAD_WIDTH**0.5
            z = (k[:, part] @ q[i, part]).mean() / HEAD_WIDTH**0.5
            weights = {
                "linear": products / (z * len(k)),
                "softmax": products.softmax(0),
                "mala": ((1 + 1 / z) * products - z) / len(k),
            }[weights_of]
            slow[i, part] = weights @ v[:, part]
    assert torch.allclose(fast, slow, atol=1e-5)


def rotated_vector(x: Tensor, rotary: RotaryTables, position: int, rotated: bool) -> Tensor:
    """`[C]` with each pair of channels as a complex number, multiplied by exp(i·angle)."""
    if not rotated:
        return x
    cos, sin = rotary.cos[position], rotary.sin[position]
    turned = torch.complex(x[0::2], x[1::2]) * torch.complex(cos[0::2], sin[0::2])
    return torch.view_as_real(turned).flatten()


def test_softmax_is_in_the_bottleneck_only() -> None:
    assert [type(make_attention("softmax_bottleneck", level, 16)) is MALA for level in range(3)] == [True, True, False]


@pytest.mark.parametrize(("kind", "part"), [("without_lepe", "lepe"), ("without_gate", "output_gate")])
def test_without_a_part_equals_a_neutral_part(kind: str, part: str) -> None:
    torch.manual_seed(0)
    whole, without = MALA(16).double(), make_attention(kind, 0, 16).double()
    neutral = getattr(whole, part)
    with torch.no_grad():
        neutral.weight.zero_()
        neutral.bias.fill_(float(kind == "without_gate"))
    without.load_state_dict({name: value for name, value in whole.state_dict().items() if not name.startswith(part)})
    x = torch.randn(2, 16, 6, 5, dtype=torch.float64)
    rotary = rotary_tables(6, 5, 16, x)
    torch.testing.assert_close(without(x, rotary), whole(x, rotary), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("kind", "first"), [("without_square", 10), ("without_frequency", 12), ("without_time", 14)])
def test_channels_of_a_missing_branch_pass(kind: str, first: int) -> None:
    torch.manual_seed(0)
    whole, without = IDConv(16).double(), make_local(kind, 11, 16).double()
    without.load_state_dict(whole.state_dict(), strict=False)
    x = torch.randn(1, 16, 12, 13, dtype=torch.float64)
    expected = whole(x).clone()
    expected[:, first : first + 2] = whole.mix(x)[:, first : first + 2]
    torch.testing.assert_close(without(x), expected, rtol=0, atol=1e-10)


def test_depthwise_filters_every_channel_by_a_square() -> None:
    module = make_local("depthwise", 11, 8)
    mix, square = module.children()
    assert isinstance(mix, nn.Conv2d) and isinstance(square, nn.Conv2d) and square.bias is not None
    with torch.no_grad():
        mix.weight.copy_(torch.eye(8)[..., None, None])
        square.weight.fill_(1.0)
        square.bias.zero_()
        point = torch.zeros(1, 8, 7, 7)
        point[:, :, 3, 3] = 1
        out = module(point)
    assert out[0, :, 2:5, 2:5].eq(1).all() and out.sum() == 8 * 9


def test_magnitude_only_ignores_and_keeps_the_phase() -> None:
    torch.manual_seed(0)
    network = build(load_config(ROOT / "configs/ablation/magnitude_only.json")).eval().double()
    mag, pha, other = torch.rand(3, 1, 256, 5, dtype=torch.float64)
    with torch.inference_mode():
        first, second = network(Spectra(mag, pha)), network(Spectra(mag, other))
        assert torch.equal(first.pha, pha) and torch.equal(second.pha, other)
        torch.testing.assert_close(first.mag, second.mag, rtol=0, atol=1e-10)
        assert not torch.allclose(network(Spectra(other, pha)).mag, first.mag)
