"""What makes a network faster leaves its results; whole runs are in tests/test_inference_throughput.py."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cli import UserError
from config import Config, load_config
from enhance.enhancer import Enhancer
from enhance.files import Load
from enhance.runtimes import CompiledForShape, OneDnnPointwise, fast_enhancer, take_onednn
from enhance.windows import repeated_length
from models import build
from tests.fixtures.commands import ROOT
from tests.fixtures.recordings import NOISY


@pytest.fixture
def quick_config(small_config: Config) -> Config:
    """Short segments."""
    return replace(small_config, data=replace(small_config.data, segment_size=4000))


def test_bfloat16_is_close_and_is_used(quick_config: Config) -> None:
    torch.manual_seed(0)
    network = build(quick_config).eval()
    enhancer = fast_enhancer(network, quick_config, "cpu", "paper", Load(), bf16=True, compiled=False)
    wav = torch.from_numpy(NOISY[None, :4000].astype(np.float32)) * 5
    exact, rough = Enhancer(network, quick_config).enhance_rows(wav), enhancer.enhance_rows(wav)
    assert rough.dtype == torch.float32
    error = float((rough - exact).norm() / exact.norm())
    assert 1e-5 < error < 0.1


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
@pytest.mark.parametrize("name", ["imse", "cnunet"])
def test_pointwise_convolutions_by_onednn_change_nothing(small_config: Config, name: str) -> None:
    config = small_config if name == "imse" else load_config(ROOT / "configs" / f"{name}.json")
    torch.manual_seed(0)
    network = build(config).eval()
    wav = torch.from_numpy(NOISY[None, :4000].astype(np.float32)) * 5
    exact = Enhancer(network, config).enhance_rows(wav)

    def pointwise(network: nn.Module) -> int:
        return sum(isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1) for part in network.modules())

    count = pointwise(network)
    several = fast_enhancer(network, config, "cpu", "paper", Load(1, 2), bf16=False, compiled=False)
    assert pointwise(several) == count > 10
    one = fast_enhancer(network, config, "cpu", "paper", Load(1, 1), bf16=False, compiled=False)
    assert sum(isinstance(part, OneDnnPointwise) for part in one.modules()) == count
    assert pointwise(one) == 0
    torch.testing.assert_close(one.enhance_rows(wav), exact, rtol=0, atol=1e-5 * float(exact.abs().max()))


def test_other_convolutions_are_left_alone() -> None:
    network = nn.Sequential(
        nn.Conv2d(2, 2, 1, padding=1), nn.Conv2d(2, 2, 1, stride=2), nn.Conv2d(2, 2, 1, groups=2), nn.Conv2d(2, 2, 3)
    )
    take_onednn(network)
    assert all(isinstance(part, nn.Conv2d) for part in network)


def test_only_the_shape_that_repeats_is_compiled(quick_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def halving(network: nn.Module, dynamic: bool) -> object:
        assert not dynamic
        return lambda spectra: spectra._replace(mag=network(spectra).mag / 2**quick_config.stft.compress_factor)

    monkeypatch.setattr(torch, "compile", halving)
    threads = torch.get_num_threads()
    identity = nn.Identity()
    enhancer = fast_enhancer(identity, quick_config, "cpu", "paper", Load(2, threads), bf16=False, compiled=True)
    assert isinstance(enhancer.network, CompiledForShape)

    def factor(batch: int, samples: int) -> float:
        wav = torch.from_numpy(np.tile(NOISY[:samples].astype(np.float32), (batch, 1)))
        return float(enhancer.enhance_rows(wav).norm() / wav.norm())

    assert factor(2, 4000) == pytest.approx(0.5, abs=1e-3)
    assert factor(1, 4000) == pytest.approx(1, abs=1e-3)
    assert factor(2, 6000) == pytest.approx(1, abs=1e-3)


def test_the_length_that_repeats() -> None:
    assert repeated_length("paper", 1000) == 1000
    assert repeated_length("overlap", 1000) == 1500
    assert repeated_length("whole", 1000) is None


def test_a_network_that_cannot_be_compiled(quick_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> Tensor:
        raise RuntimeError("no compiler\nin many words")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: refuse)
    with pytest.raises(UserError) as caught:
        fast_enhancer(nn.Identity(), quick_config, "cpu", "overlap", Load(), bf16=False, compiled=True)
    assert str(caught.value) == "--compile: cannot be used (no compiler)"
