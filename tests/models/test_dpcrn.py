"""DPCRN with adaptive kernels and comb filter: sizes, known values, plain versions, streaming."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from config import DpcrnConfig, load_config
from enhance.enhancer import Enhancer
from enhance.streaming import Stream
from models import build
from models.dpcrn import DPCRN, AdaptiveConv, CombFilter, ConvLayer, confidence
from models.f0 import CLASSES, UNVOICED, f0_classes, f0_loss
from models.stft import Spectra, Spectrogram
from models.streaming import Memory
from tests.fixtures.commands import ROOT
from tests.fixtures.signals import speech_like, with_noise
from tests.models.spectra import (
    assert_stream_equals_whole,
    random_spectra,
)

BINS = 257
CF16 = DpcrnConfig("dpcrn", "sub_band", comb=True)
AC16 = DpcrnConfig("dpcrn", "sub_band", adaptive_kernels=True)
WITHOUT_COMB = DpcrnConfig("dpcrn", "sub_band")
LIGHT, MIDDLE, LARGE = (DpcrnConfig("dpcrn", size) for size in ("light", "middle", "large"))
BOTH = DpcrnConfig("dpcrn", "light", adaptive_kernels=True, comb=True)
ALL = [CF16, AC16, WITHOUT_COMB, LIGHT, BOTH]
RECIPES = ("dpcrn", "dpcrn_ac", "dpcrn_cf")


def name_of(config: object) -> str | None:
    if not isinstance(config, DpcrnConfig):
        return None
    return f"{config.size}{' adaptive' * config.adaptive_kernels}{' comb' * config.comb}"


@contextmanager
def float64() -> Iterator[None]:
    """Build networks, with their constants, in float64."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def random_network(config: DpcrnConfig) -> DPCRN:
    """Return a network in float64 whose mask and comb filter vary much, also from frame to frame."""
    torch.manual_seed(0)
    with float64():
        network = DPCRN(config, BINS).eval()
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean = torch.empty_like(part.bias).uniform_(-0.1, 0.1)
                part.running_var = torch.empty_like(part.bias).uniform_(0.05, 0.2)
            elif isinstance(part, AdaptiveConv):
                part.shares.weight *= 20
        if network.f0_head:
            network.f0_head.logits.weight *= 50
    return network


@pytest.mark.parametrize(("config", "parameters", "state"), [(LIGHT, 57_023, 13_882), (LARGE, 787_151, 53_986)])
def test_parameters_and_state(config: DpcrnConfig, parameters: int, state: int) -> None:
    network = DPCRN(config, BINS)
    assert sum(weight.numel() for weight in network.parameters()) == parameters
    with torch.inference_mode():
        _, layers = network.stream(random_spectra(1, 1, BINS, torch.float32), None)
    assert sum(each.numel() for each in layers) == state


def golden_values(shape: tuple[int, ...], shift: float = 0) -> Tensor:
    """Return sqrt(3 · R / N) · sin(0.01 · (n + 1)² + shift) for the flat index n of N entries in R rows."""
    n = torch.arange(math.prod(shape), dtype=torch.float64)
    return (math.sqrt(3 * shape[0] / len(n)) * torch.sin(0.01 * (n + 1) ** 2 + shift)).view(shape)


def golden_network(config: DpcrnConfig) -> DPCRN:
    """Return a network in float64 with weights by formula."""
    with float64():
        network = DPCRN(config, BINS).eval()
    for path, tensor in network.state_dict().items():
        module, _, name = path.rpartition(".")
        n = torch.arange(tensor.numel(), dtype=torch.float64).view(tensor.shape)
        if isinstance(network.get_submodule(module), nn.BatchNorm2d | nn.LayerNorm):
            scale, shift = 1 + 0.1 * torch.sin(n), 0.1 * torch.cos(n)
            mean, variance = 0.01 * torch.sin(n), 1 + 0.1 * torch.cos(n)
            norms = {"weight": scale, "bias": shift, "running_mean": mean, "running_var": variance}
            tensor.copy_(norms.get(name, tensor))
        elif isinstance(network.get_submodule(module), nn.PReLU):
            tensor.fill_(0.25)
        elif tensor.ndim == 5:  # the kernels of an adaptive convolution
            tensor.copy_(torch.stack([golden_values(tuple(tensor.shape[1:]), k) for k in range(len(tensor))]))
        elif name != "tap_logits":
            tensor.copy_(golden_values(tuple(tensor.shape)) if tensor.ndim > 1 else 0.01 * torch.cos(n))
    if config.size == "sub_band":
        network.decoder[-1].get_parameter("conv.weight").data *= 0.1
    if network.f0_head:
        network.f0_head.logits.weight.data *= 10
    return network


def golden_spectrum(config: DpcrnConfig) -> Tensor:
    """Return the STFT of a known signal of 1 s, complex `[1, 257, 63]`."""
    n = torch.arange(16_000, dtype=torch.float64)
    wav = 0.3 * torch.sin(2 * math.pi * 440 * n / 16_000) + 0.1 * torch.sin(1e-4 * n**2)
    window = torch.hann_window(512, dtype=torch.float64).sqrt()
    pad = "constant" if config.size == "sub_band" else "reflect"
    return torch.stft(wav[None], 512, 256, 512, window, center=True, pad_mode=pad, return_complex=True)


def outputs_of(part: nn.Module) -> list[Tensor]:
    """Return a list to which the module appends its outputs."""
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        outputs.append(output)

    part.register_forward_hook(keep)
    return outputs


def golden_run(config: DpcrnConfig) -> tuple[dict[str, Tensor], Tensor, Tensor, DPCRN]:
    """Return the outputs of the parts by name, the enhanced spectrum and waveform, and the network."""
    network = golden_network(config)
    parts = {"encoder": network.encoder[-1], "block 2": network.blocks[1], "decoder": network.decoder[-1]}
    parts |= {"logits": network.f0_head, "comb": network.comb}
    recorded = {name: outputs_of(part) for name, part in parts.items() if part is not None}
    noisy = golden_spectrum(config)
    with torch.inference_mode():
        enhanced = torch.view_as_complex(network(Spectra(noisy.abs(), noisy.angle())).complex)
        outputs = {name: output for name, (output,) in recorded.items()}
        if network.bands:
            outputs["decoder"] = network.bands.split(outputs["decoder"])
    window = torch.hann_window(512, dtype=torch.float64).sqrt()
    return outputs, enhanced, torch.istft(enhanced, 512, 256, 512, window, length=16_000)[0], network


def assert_sums(tensor: Tensor, total: float | None, absolute: float) -> None:
    """Compare the sum, and the sum of the absolute values, with all the digits that are given."""
    if total is not None:
        assert tensor.sum().item() == pytest.approx(total, rel=0, abs=1e-5 if abs(total) > 1e4 else 1e-6)
    assert tensor.abs().sum().item() == pytest.approx(absolute, rel=0, abs=2e-5 if absolute > 1e5 else 1e-6)


def test_known_values_of_the_sub_band_network() -> None:
    assert_sums(golden_spectrum(WITHOUT_COMB), None, 9340.536597)
    outputs, enhanced, wav, _ = golden_run(WITHOUT_COMB)
    assert_sums(outputs["encoder"], 21151.92654234, 31682.42020795)
    assert_sums(outputs["block 2"], 21517.83522458, 221812.89381)
    assert_sums(enhanced, None, 6800.794787)
    assert_sums(wav, -0.15461815, 1996.606652)
    assert wav[1000].item() == pytest.approx(0.024176509, abs=1e-9)


def test_mask_gain() -> None:
    torch.manual_seed(0)
    noisy = random_spectra(1, 5, BINS)
    plain, louder = DPCRN(AC16, BINS).double().eval(), DPCRN(replace(AC16, mask_gain=1.25), BINS).double().eval()
    louder.load_state_dict(plain.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(louder(noisy).complex, 1.25 * plain(noisy).complex)


def test_known_values_with_comb_filter() -> None:
    outputs, enhanced, wav, network = golden_run(CF16)
    assert network.comb
    assert_sums(outputs["block 2"], 21517.83522458, 221812.89381)
    assert_sums(outputs["decoder"][:, :2].tanh(), 1225.549950, 13205.186041)
    gate = outputs["decoder"][:, 2].sigmoid()
    assert_sums(gate, 7567.012550, 7567.012550)
    logits = outputs["logits"]
    assert_sums(logits, -1385.603024, 108773.59905)
    classes = logits.argmax(dim=-1)
    assert classes[0, :12].tolist() == [33, 9, 9, 33, 33, 6, 33, 33, 33, 58, 58, 58]
    sure = confidence(logits, classes)
    assert_sums(sure, 42.934536, 42.934536)
    assert_sums(torch.complex(*outputs["comb"].unbind(dim=1)), None, 6344.004009)
    assert_sums(network.comb.fade * gate * sure[..., None], 3266.655212, 3266.655212)
    assert_sums(enhanced, None, 8139.052855)
    assert_sums(wav, -3.47723617, 2153.300674)
    assert wav[[1000, 8000]].tolist() == pytest.approx([-0.102810946, 0.088988758], abs=1e-9)


def test_known_values_of_the_comb_filter() -> None:
    with float64():
        comb = CombFilter()
    t = torch.arange(63)
    classes = torch.where(t % 7 == 0, UNVOICED, 40 + 3 * t % 150)[None]
    noisy = torch.view_as_real(golden_spectrum(CF16)).permute(0, 3, 2, 1)
    with torch.inference_mode():
        filtered = comb(noisy, classes, Memory())
    assert_sums(torch.complex(*filtered.unbind(dim=1)), None, 5687.153960)
    assert filtered.sum(dim=(0, 2, 3)).tolist() == pytest.approx([11.969295, -4.138318], abs=1e-6)


def test_known_values_of_adaptive_kernels() -> None:
    outputs, _, wav, _ = golden_run(AC16)
    assert_sums(outputs["encoder"], 3878.40618131, 6265.53305408)
    assert_sums(wav, 0.53755087, 526.327881)
    assert wav[1000].item() == pytest.approx(-0.021141490, abs=1e-9)


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (MIDDLE, [(7509.850308, 165622.169986), (64304.943977, 727397.652488)]),
        (LARGE, [(51647.352512, 225377.890735), (68483.199461, 792619.595967)]),
    ],
    ids=["middle", "large"],
)
def test_known_values_of_the_published_sizes(config: DpcrnConfig, values: list[tuple[float, float]]) -> None:
    outputs, enhanced, _, _ = golden_run(config)
    assert_sums(outputs["decoder"], *values[0])
    assert_sums(torch.view_as_real(enhanced), *values[1])
    if config is MIDDLE:
        assert_sums(outputs["encoder"], 45294.593474, 69736.026850)
        assert_sums(outputs["block 2"], 45871.925777, 247679.733755)


def test_comb_filter_equals_sums_of_delayed_samples() -> None:
    """Frame t holds samples 256 t − 256 … 256 t + 255; before the first and after the last sample are zeros."""
    torch.manual_seed(0)
    with float64():
        comb = CombFilter()
    comb.tap_logits.data.normal_()
    wav = torch.randn(2, 5 * 256, dtype=torch.float64)
    classes = torch.randint(0, CLASSES, (2, 6))
    classes[0, :3] = torch.tensor([UNVOICED, 0, UNVOICED - 1])  # none, the longest and the shortest period
    window = torch.hann_window(512, dtype=torch.float64).sqrt()
    noisy = torch.stft(wav, 512, 256, 512, window, center=True, pad_mode="constant", return_complex=True)
    with torch.inference_mode():
        spectra = torch.view_as_real(noisy).permute(0, 3, 2, 1)
        filtered = torch.complex(*comb(spectra, classes, Memory()).unbind(dim=1))
    padded = functional.pad(wav, (1024, 256))
    for row in range(2):
        for t in range(6):
            label, start = int(classes[row, t]), 1024 + 256 * t - 256
            taps = torch.softmax(comb.tap_logits[label].detach(), dim=0).tolist() if label < UNVOICED else [1, 0, 0, 0]
            shifts = [start - k * (256 - label) for k in range(4)]
            frame = sum(tap * padded[row, shift : shift + 512] for tap, shift in zip(taps, shifts, strict=True))
            expected = torch.fft.rfft(window * frame)
            torch.testing.assert_close(filtered[row, t], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("size", "stride"), [((1, 3), 2), ((2, 5), 2), ((2, 3), 1)])
def test_adaptive_convolution_equals_a_convolution_per_frame(
    transposed: bool, size: tuple[int, int], stride: int
) -> None:
    torch.manual_seed(0)
    with float64():
        layer = ConvLayer(3, 4, size, stride, adaptive=True, transposed=transposed).eval()
    conv = layer.conv
    assert isinstance(conv, AdaptiveConv)
    conv.shares.weight.data *= 20
    x = torch.randn(2, 3, 5, 9, dtype=torch.float64)
    with torch.inference_mode():
        found = layer(x, Memory())
        hidden, _ = conv.rnn(x.square().mean(dim=3).transpose(1, 2))
        shares = torch.softmax(conv.shares(hidden), dim=-1)
        seen = functional.pad(x, (0, 0, size[0] - 1, 0))
        for row in range(2):
            for t in range(5):
                kernel = torch.stack([shares[row, t, k] * conv.weight[k] for k in range(8)]).sum(dim=0)
                frames = seen[row : row + 1, :, t : t + size[0]]
                convolve = functional.conv_transpose2d if transposed else functional.conv2d
                padding = (size[0] - 1 if transposed else 0, size[1] // 2)
                expected = layer.act(layer.norm(convolve(frames, kernel, conv.bias, (1, stride), padding)))
                torch.testing.assert_close(found[row, :, t], expected[0, :, 0], rtol=0, atol=1e-12)
    assert shares.std(dim=1).max() > 0.05


def test_confidence_by_hand() -> None:
    probabilities = torch.full((CLASSES,), 0.01, dtype=torch.float64)
    probabilities[[0, 1, 2, 3, 99, 100, 223, 224, 225]] += torch.tensor([1, 2, 3, 4, 5, 6, 7, 8, 90]).double()
    logits = probabilities.log().expand(1, 5, -1)
    classes = torch.tensor([[0, 1, 101, 224, 225]])
    sums = [1 + 2 + 3 + 0.03, 1 + 2 + 3 + 4 + 0.04, 5 + 6 + 0.05, 7 + 8 + 0.03, 0]
    expected = torch.tensor(sums, dtype=torch.float64) / probabilities.sum()
    torch.testing.assert_close(confidence(logits, classes)[0], expected)


@pytest.mark.parametrize("config", ALL, ids=name_of)
@pytest.mark.parametrize("sizes", [[1] * 9, [3, 1, 5]])
def test_streaming_equals_whole_signal(config: DpcrnConfig, sizes: list[int]) -> None:
    assert_stream_equals_whole(random_network(config), random_spectra(2, 9, BINS), sizes, atol=1e-10)


@pytest.mark.parametrize("config", ALL, ids=name_of)
def test_frames_depend_on_no_later_frame_and_no_other_signal(config: DpcrnConfig) -> None:
    network, noisy = random_network(config), random_spectra(2, 8, BINS)
    changed = Spectra(noisy.mag.clone(), noisy.pha.clone())
    changed.mag[0, :, 5:] += 1
    with torch.inference_mode():
        difference = (network(noisy).complex - network(changed).complex).abs().amax(dim=(1, 3))
    assert difference[1].max() < 1e-12 and difference[0, :5].max() < 1e-12
    assert difference[0, 5:].min() > 1e-4


@pytest.mark.parametrize("recipe", RECIPES)
def test_live_stream_has_a_latency_of_32_ms(recipe: str) -> None:
    """Sample 8000 is first in the frame of samples 7680 … 8191, whose window is 0 at the first sample."""
    config = load_config(ROOT / f"configs/{recipe}.json")
    torch.manual_seed(0)
    network = build(config).double().eval()
    noisy = with_noise(speech_like(1, seed=2), 5)
    changed = noisy.copy()
    changed[8000] += 0.1
    with torch.inference_mode():
        before, after = (
            Enhancer(network, config).double().enhance_batch(torch.from_numpy(wav)[None])[0] for wav in (noisy, changed)
        )
    assert (before - after).abs().gt(1e-12).nonzero()[0].item() == 7681
    assert Stream(network, config).latency == 0.032


@pytest.mark.parametrize("config", ALL, ids=name_of)
def test_new_networks_change_little(config: DpcrnConfig) -> None:
    """The mask is near 1, or tanh 1, where untrained weights would give a random one around 0."""
    torch.manual_seed(0)
    network, noisy = DPCRN(config, BINS), random_spectra(2, 40, BINS, torch.float32)
    expected = noisy.complex * (math.tanh(1) if config.size == "sub_band" else 1)
    difference = (network(noisy).complex - expected).square().sum().sqrt() / expected.square().sum().sqrt()
    assert 0.01 < difference < 0.3


def test_f0_term_and_labels_in_the_first_epochs() -> None:
    network = random_network(DpcrnConfig("dpcrn", "sub_band", comb=True, label_epochs=3))
    assert network.comb and network.f0_head
    clean = torch.from_numpy(speech_like(0.5, seed=4))[None].double()
    noisy = Spectrogram(load_config(ROOT / "configs/dpcrn.json").stft).double()(clean)
    given: list[Tensor] = []
    logits = outputs_of(network.f0_head)
    network.comb.register_forward_pre_hook(lambda _module, inputs: given.append(inputs[1]))
    with torch.inference_mode():
        for epoch in (0, 2, 3):
            enhanced, terms = network(noisy, clean, epoch)
            assert list(terms) == ["f0"]
            torch.testing.assert_close(terms["f0"], f0_loss(logits[0], f0_classes(clean)))
        alone = network(noisy)
    labels, estimated = f0_classes(clean), logits[0].argmax(dim=-1)
    assert labels.lt(UNVOICED).any() and not torch.equal(labels, estimated)
    assert [torch.equal(each, labels) for each in given] == [True, True, False, False]
    assert torch.equal(given[2], estimated) and torch.equal(given[3], estimated)
    torch.testing.assert_close(alone.complex, enhanced.complex, rtol=0, atol=0)


def test_only_the_f0_term_trains_the_estimate() -> None:
    network = random_network(CF16)
    assert network.f0_head
    network(random_spectra(1, 12, BINS)).complex.square().sum().backward()
    assert all(weight.grad is None for weight in network.f0_head.parameters())
