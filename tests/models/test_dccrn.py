"""DCCRN: values of the authors' code, look-ahead, streaming; other checks are in test_every_network.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from config import DccrnConfig, load_config
from enhance.onnx_export import export
from enhance.streaming import Stream, StreamingNetwork
from models import build
from models.cnunet import complex_conv
from models.dccrn import DCCRN, DecoderLayer, apply_mask, make_dccrn
from models.stft import Spectra
from models.streaming import Memory
from tests.fixtures.commands import ROOT, error_line
from tests.models.spectra import (
    assert_stream_equals_whole,
    random_spectra,
)

BINS = 257
FEW_BINS = 65

Kind = Literal["complex", "real"]


# Values of the authors' code, with weights from formulas


WINDOW = torch.hann_window(400, dtype=torch.float64)


def rounded(x: Tensor) -> Tensor:
    """Round to float32, as the authors' code does with the kernels of its STFT."""
    return x.float().double()


def transform() -> Tensor:
    """Return the transform of 400 samples, zero-padded to 512, to real and then imaginary parts: `[400, 2F]`."""
    basis = torch.fft.rfft(torch.eye(400, dtype=torch.float64), 512)
    return torch.cat([basis.real, basis.imag], dim=1)


def conv_stft(wav: Tensor) -> Tensor:
    """Transform `[N]` as the authors' code does: the window at the start of its buffer, 300 zeros at both ends."""
    frames = functional.pad(wav, (300, 300)).unfold(0, 400, 100)
    return torch.complex(*(frames @ rounded(transform() * WINDOW[:, None])).T.chunk(2))  # [F, T]


def inverse_conv_stft(spectrum: Tensor) -> Tensor:
    """Invert `conv_stft` with the pseudo-inverse, overlap-add and a limit of ±1."""
    kernel = rounded(torch.linalg.pinv(transform()) * WINDOW)
    frames = torch.cat([spectrum.real, spectrum.imag]).T @ kernel
    length = 400 + 100 * (len(frames) - 1)
    wav, weights = (
        functional.fold(each.T[None], (1, length), (1, 400), stride=(1, 100)).flatten()
        for each in (frames, rounded(WINDOW).square().expand_as(frames))
    )
    return (wav / (weights + 1e-8))[300:-300].clamp(-1, 1)


def fill(weight: Tensor, imaginary: bool) -> None:
    """Fill a weight by a formula: sines for real parts, cosines for imaginary parts, larger ones for matrices."""
    index = torch.arange(weight.numel(), dtype=weight.dtype)
    if weight.dim() == 1:
        values = 0.01 * (index.sin() if imaginary else index.cos())
    else:
        angles = 0.01 * (index + 1).square()
        values = math.sqrt(3 * len(weight) / weight.numel()) * (angles.cos() if imaginary else angles.sin())
    weight.copy_(values.view_as(weight))


@torch.no_grad()
def filled_network(lstm: Kind = "complex") -> DCCRN:
    """Return a network in float64 with the weights of the recorded values."""
    network = make_dccrn(DccrnConfig("dccrn", lstm), BINS).double().eval()
    for name, part in network.named_modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            outputs = 1 if isinstance(part, nn.ConvTranspose2d) else 0
            assert part.bias is not None
            halves = zip(part.weight.chunk(2, dim=outputs), part.bias.chunk(2), strict=True)
            for (weight, bias), imaginary in zip(halves, (False, True), strict=True):
                values = torch.empty_like(weight, memory_format=torch.contiguous_format)
                fill(values, imaginary)
                weight.copy_(values)
                fill(bias, imaginary)
        elif isinstance(part, nn.LSTM | nn.Linear):
            for weight in part.parameters():
                fill(weight, imaginary=name.endswith("imaginary") or name == "bottleneck.dense.1")
        elif isinstance(part, nn.BatchNorm2d):
            index = torch.arange(part.num_features, dtype=torch.float64)
            assert part.running_mean is not None and part.running_var is not None
            part.weight.copy_(1 + 0.1 * index.sin())
            part.bias.copy_(0.1 * index.cos())
            part.running_mean.copy_(0.01 * index.sin())
            part.running_var.copy_(1 + 0.1 * index.cos())
    network.get_parameter("decoder.5.conv.weight").mul_(0.01)
    return network


@pytest.fixture(scope="module")
def recorded_input() -> Tensor:
    """Return the spectrum of the input of the recorded values, complex `[F, T]`."""
    n = torch.arange(16_000, dtype=torch.float64)
    wav = 0.3 * torch.sin(2 * math.pi * 440 * n / 16_000) + 0.1 * torch.sin(1e-4 * n.square())
    return conv_stft(wav)


def as_spectra(spectrum: Tensor) -> Spectra:
    return Spectra(spectrum.abs()[None], spectrum.angle()[None])


def as_complex(spectra: Spectra) -> Tensor:
    return torch.view_as_complex(spectra.complex)


def sums(x: Tensor) -> tuple[float, float]:
    """Return the sum and the sum of absolute values."""
    return float(x.sum()), float(x.abs().sum())


def absolute_sum(spectrum: Tensor) -> float:
    return float(torch.view_as_real(spectrum).abs().sum())


def assert_waveform(enhanced: Tensor, expected: Sequence[float], samples: dict[int, float]) -> None:
    wav = inverse_conv_stft(enhanced)
    assert sums(wav) == pytest.approx(expected, abs=1e-6)
    assert float(wav.sum()) == pytest.approx(expected[0], abs=1e-8)
    assert [float(wav[index]) for index in samples] == pytest.approx([*samples.values()], abs=1e-9)


def test_values_of_the_authors_code(recorded_input: Tensor) -> None:
    assert recorded_input.shape == (BINS, 163)
    assert absolute_sum(recorded_input) == pytest.approx(23_833.397973, abs=1e-6)
    network = filled_network()
    expected = {
        "encoder.0.act": ((32, 128, 163), 94_538.826184, 157_420.578468),
        "encoder.2.act": ((128, 32, 163), 251_861.514554, 414_773.834813),
        "encoder.5.act": ((256, 4, 163), 226_858.673477, 370_935.328304),
        "bottleneck": ((256, 4, 163), -2_653.965360, 63_472.750315),
        # before the first frame is dropped
        "decoder.0.act": ((256, 8, 164), 351_531.937536, 594_530.342415),
        "decoder.2.act": ((128, 32, 164), 1_377_176.500770, 2_161_842.132201),
        "decoder.5.act": ((2, 256, 164), -4_812.397244, 30_622.991430),
    }
    maps: dict[str, Tensor] = {}
    for name in expected:

        def keep(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...], name: str = name) -> None:
            maps[name] = output if isinstance(output, Tensor) else output[0]

        network.get_submodule(name).register_forward_hook(keep)
    noisy = as_spectra(recorded_input)
    with torch.inference_mode():
        enhanced = as_complex(network(noisy))[0]
    for name, (shape, *values) in expected.items():
        assert maps[name].shape == (1, *shape), name
        assert sums(maps[name]) == pytest.approx(values, abs=1e-6), name

    real, imaginary = functional.pad(maps["decoder.5.act"][..., 1:], (0, 0, 1, 0)).unbind(dim=1)
    masked = {kind: as_complex(apply_mask(kind, noisy, real, imaginary))[0] for kind in ("E", "C", "R")}
    assert torch.equal(masked["E"], enhanced)
    spectra = [absolute_sum(each) for each in masked.values()]
    assert spectra == pytest.approx([19_635.644463, 34_949.547027, 22_494.216581], abs=1e-6)
    samples = {1000: -0.023501077, 8000: 0.074605190, 15_000: -0.065001730}
    assert_waveform(masked["E"], (-4.31718489, 1035.016864), samples)
    assert_waveform(masked["C"], (-7.68264986, 2037.441027), {1000: -0.087058158, 8000: 0.185505853})
    assert_waveform(masked["R"], (-0.94696010, 1065.673592), {1000: 0.012586585, 8000: -0.045340688})


def test_values_of_the_authors_code_with_a_real_lstm(recorded_input: Tensor) -> None:
    with torch.inference_mode():
        enhanced = as_complex(filled_network("real")(as_spectra(recorded_input)))[0]
    assert_waveform(enhanced, (2.79799416, 1468.824294), {1000: 0.112095620, 8000: -0.080195113})


def random_network(lstm: Kind = "complex", look_ahead: int = 6) -> DCCRN:
    """Return a network for few bins with random norms and slopes too, which start alike."""
    torch.manual_seed(0)
    network = make_dccrn(DccrnConfig("dccrn", lstm, "E", look_ahead), FEW_BINS).double().eval()
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):
                assert part.running_mean is not None and part.running_var is not None
                for values, low, high in (
                    *((part.weight, 0.5, 1.5), (part.bias, -0.5, 0.5)),
                    *((part.running_mean, -0.5, 0.5), (part.running_var, 0.5, 1.5)),
                ):
                    values.uniform_(low, high)
            elif isinstance(part, nn.PReLU):
                part.weight.uniform_(0.1, 0.9)
            elif isinstance(part, nn.Conv2d | nn.ConvTranspose2d) and part.bias is not None:
                part.bias.uniform_(-0.5, 0.5)
    return network


# Frames


@pytest.mark.parametrize("lstm", ["complex", "real"])
@pytest.mark.parametrize("look_ahead", [0, 2, 6])
def test_look_ahead(lstm: Kind, look_ahead: int) -> None:
    network, noisy = random_network(lstm, look_ahead=look_ahead), random_spectra(1, 14, FEW_BINS)
    changed = noisy._replace(mag=noisy.mag.clone())
    changed.mag[..., 9] += 1
    with torch.inference_mode():
        difference = (network(noisy).complex - network(changed).complex).abs().amax(dim=(0, 1, 3))
    first = 9 - look_ahead
    assert difference[:first].eq(0).all() and difference[first:].gt(1e-9).all()


@pytest.mark.parametrize("last", [False, True])
def test_causal_decoder_layer_is_one_frame_later(last: bool) -> None:
    torch.manual_seed(0)
    ahead, causal = (DecoderLayer(8, 6, looks_ahead, last).double().eval() for looks_ahead in (True, False))
    causal.load_state_dict(ahead.state_dict())
    x, past = torch.randn(2, 8, 4, 5, dtype=torch.float64), torch.randn(2, 8, 4, 1, dtype=torch.float64)
    with torch.inference_mode():
        memory = Memory((past,))
        early, late = ahead(torch.cat([past, x], dim=3), Memory()), causal(x, memory)
    assert early.shape == (2, 6, 8, 6) and late.shape == (2, 6, 8, 5)
    assert torch.allclose(late, early[..., :-1], rtol=0, atol=1e-12)
    (kept,) = memory.end()
    assert torch.equal(kept, x[..., -1:])


@pytest.mark.parametrize("looks_ahead", [True, False])
def test_statistics_of_the_decoder_norm(looks_ahead: bool) -> None:
    """With look-ahead they include the frame that is dropped; without, those of the frames that are returned only."""
    torch.manual_seed(0)
    layer = DecoderLayer(8, 6, looks_ahead, last=False).double()
    x, past = torch.randn(2, 8, 4, 5, dtype=torch.float64), torch.zeros(2, 8, 4, 1, dtype=torch.float64)
    convolved = complex_conv(layer.conv, x if looks_ahead else torch.cat([past, x], dim=3))
    assert convolved.shape[3] == (6 if looks_ahead else 5)
    layer.train()(x, Memory())
    assert isinstance(layer.norm, nn.BatchNorm2d) and layer.norm.running_mean is not None
    assert torch.allclose(layer.norm.running_mean, 0.1 * convolved.mean(dim=(0, 2, 3)), rtol=0, atol=1e-12)


# Streaming


@pytest.mark.parametrize("lstm", ["complex", "real"])
@pytest.mark.parametrize("sizes", [[1] * 8, [3, 1, 4]])
def test_streaming_equals_whole_signal(lstm: Kind, sizes: list[int]) -> None:
    assert_stream_equals_whole(random_network(lstm, look_ahead=0), random_spectra(2, 8, FEW_BINS), sizes)


def test_networks_with_look_ahead_cannot_stream() -> None:
    config = load_config(ROOT / "configs/dccrn.json")
    network = build(config)
    assert not isinstance(network, StreamingNetwork)
    for refused in (lambda: Stream(network, config), lambda: export(network, config, stream=True)):
        assert "later frames" in error_line(refused, start="DCCRN cannot stream: ")
