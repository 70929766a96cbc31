"""Faster runtimes give the results of the plain network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cli import UserError
from config import Config, load_config
from enhance.enhancer import Enhancer
from enhance.runtimes import CompiledForShape, OneDnnPointwise, fast_enhancer, load_network, use_onednn_pointwise
from enhance.streaming import is_live
from models import build
from tests.fixtures.commands import ROOT
from tests.fixtures.recordings import NOISY


def random_network(config: Config) -> nn.Module:
    torch.manual_seed(0)
    return build(config).eval()


def test_batch_size_and_threads(quick_config: Config) -> None:
    threads = torch.get_num_threads()
    assert fast_enhancer(nn.Identity(), quick_config).batch_size == 1
    assert fast_enhancer(nn.Identity(), quick_config, batch_size=3, bf16=True).batch_size == 3
    assert fast_enhancer(nn.Identity(), quick_config, protocol="whole", batch_size=3).batch_size == 1
    assert torch.get_num_threads() == threads
    fast_enhancer(nn.Identity(), quick_config, threads=threads + 1)
    assert torch.get_num_threads() == threads + 1


def test_bfloat16_is_close(quick_config: Config) -> None:
    network = random_network(quick_config)
    wav = 5 * torch.from_numpy(NOISY[None, :4000].astype(np.float32))
    with torch.inference_mode():
        exact = Enhancer(network, quick_config).enhance_batch(wav)
        rough = fast_enhancer(network, quick_config, bf16=True).enhance_batch(wav)
    assert rough.dtype == torch.float32
    error = float((rough - exact).norm() / exact.norm())
    assert 1e-5 < error < 0.1


@pytest.mark.parametrize("name", ["imse_live", "dpcrn_live"])
def test_live_networks_stream_in_bfloat16(name: str) -> None:
    network, config = load_network(ROOT / "checkpoints" / f"{name}.safetensors")
    noisy = NOISY[:3000].astype(np.float32)
    exact = Enhancer(network, config).enhance_signal(noisy)
    enhancer = fast_enhancer(network, config, bf16=True)
    rough = enhancer.enhance_signal(noisy)
    assert is_live(enhancer.network, config)
    error = float(np.linalg.norm(rough - exact) / np.linalg.norm(exact))
    assert 1e-5 < error < 0.1


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
@pytest.mark.parametrize("name", ["imse", pytest.param("cnunet", marks=pytest.mark.slow)])
def test_onednn_pointwise_with_one_thread(small_config: Config, name: str) -> None:
    config = small_config if name == "imse" else load_config(ROOT / "configs" / f"{name}.json")
    network = random_network(config)

    def pointwise(kind: type[nn.Module]) -> list[nn.Module]:
        parts = [part for part in network.modules() if isinstance(part, kind)]
        return [part for part in parts if part.get_parameter("weight").shape[-2:] == (1, 1)]

    count = len(pointwise(nn.Conv2d))
    fast_enhancer(network, config, threads=2)
    assert (len(pointwise(nn.Conv2d)), len(pointwise(OneDnnPointwise))) == (count, 0)
    enhancer = fast_enhancer(network, config, threads=1)
    assert (len(pointwise(nn.Conv2d)), len(pointwise(OneDnnPointwise))) == (0, count)
    assert count > 10
    errors: list[float] = []

    def compare(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        assert isinstance(module, OneDnnPointwise)
        bias = None if module.bias is None else module.bias.double()
        expected = functional.conv2d(inputs[0].double(), module.weight.double(), bias)
        errors.append(float((output - expected).norm() / expected.norm()))

    for part in pointwise(OneDnnPointwise):
        part.register_forward_hook(compare)
    with torch.inference_mode():
        enhancer.enhance_batch(torch.randn(1, 1000, generator=torch.Generator().manual_seed(0)))
    assert len(errors) >= count
    assert max(errors) < 1e-5


def test_other_convolutions_stay() -> None:
    network = nn.Sequential(
        nn.Conv2d(2, 2, 1, padding=1), nn.Conv2d(2, 2, 1, stride=2), nn.Conv2d(2, 2, 1, groups=2), nn.Conv2d(2, 2, 3)
    )
    use_onednn_pointwise(network)
    assert all(isinstance(part, nn.Conv2d) for part in network)


def test_only_the_repeated_shape_is_compiled(quick_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def halving(network: nn.Module, dynamic: bool) -> object:
        assert not dynamic
        return lambda spectra: spectra._replace(mag=network(spectra).mag / 2**quick_config.stft.compress_factor)

    monkeypatch.setattr(torch, "compile", halving)
    enhancer = fast_enhancer(nn.Identity(), quick_config, protocol="paper", batch_size=2, compiled=True)
    assert isinstance(enhancer.network, CompiledForShape)
    for batch, samples, factor in ((2, 4000, 0.5), (1, 4000, 1), (2, 6000, 1)):
        wav = torch.from_numpy(np.tile(NOISY[:samples].astype(np.float32), (batch, 1)))
        assert float(enhancer.enhance_batch(wav).norm() / wav.norm()) == pytest.approx(factor, abs=1e-3)


def test_a_network_that_cannot_be_compiled(quick_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> Tensor:
        raise RuntimeError("no compiler\nand many more lines")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: refuse)
    with pytest.raises(UserError, match=r"^--compile: .*\(no compiler\)$"):
        fast_enhancer(nn.Identity(), quick_config, compiled=True)


@pytest.mark.slow
def test_compiled_results(quick_config: Config) -> None:
    network = random_network(quick_config)
    exact = Enhancer(network, quick_config)
    compiled = fast_enhancer(network, quick_config, threads=1, compiled=True)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for samples in (700, 6000, 14_000, 20_000):
        enhanced = compiled.enhance_signal(NOISY[:samples])
        np.testing.assert_allclose(enhanced, exact.enhance_signal(NOISY[:samples]), rtol=0, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs > 0  # nothing was compiled again


@pytest.mark.slow
def test_onnxruntime_results(lite_checkpoint: Path) -> None:
    pytest.importorskip("onnxruntime")
    config = load_config(ROOT / "configs" / "lite_rtse.json")
    network = load_network(lite_checkpoint)[0]
    enhanced, expected = (
        fast_enhancer(network, config, backend=backend, threads=1).enhance_signal(NOISY[:14_000])
        for backend in ("onnxruntime", "torch")
    )
    np.testing.assert_allclose(enhanced, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
