"""Lite-RTSE: sizes of the unofficial implementation, a plain transcription, streaming."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import pytest
import torch
from torch import Tensor

from config import LiteRtseConfig
from models.lite_rtse import LiteRTSE
from tests.models.spectra import (
    assert_stream_equals_whole,
    random_spectra,
)

BINS = 257
FEW_BINS = 12
VARIANTS = ("repeated", "single")

# Weights of the unofficial implementation; each has a bias of its first size.
LSTM_WEIGHTS = [(1028, 257), (1028, 257)]
LINEAR_WEIGHTS = [(257, 257), (257, 771), *[(257, 257)] * 3]
SCALE_WEIGHTS = [(32, 1, 1, 1), (32, 1, 3, 3), (32, 32, 1, 1), (32, 1, 1, 1)]
SCALE_WEIGHTS += [(32, 32, 1, 1), (32, 1, 3, 3), (32, 32, 1, 1), (32, 32, 1, 1)]
ORDER_WEIGHTS = [(128, 32, 1, 1), (8, 4, 1, 1), (16, 8, 1, 1), (32, 16, 1, 1), (64, 32, 1, 1), (1, 64, 1, 1)]
GATE_WEIGHTS = {
    "repeated": [(124, 1, 7, 7), (120, 1, 7, 7), (112, 1, 7, 7), (96, 1, 7, 7)],
    "single": [(124, 1, 7, 7)],
}


MultiOrder = Literal["repeated", "single"]


def random_network(
    variant: MultiOrder = "repeated", bins: int = FEW_BINS, dtype: torch.dtype = torch.float64
) -> LiteRTSE:
    torch.manual_seed(0)
    return LiteRTSE(LiteRtseConfig("lite_rtse", variant), bins).to(dtype).eval()


@pytest.mark.parametrize(("variant", "tensors", "total"), [("repeated", 54, 1_559_245), ("single", 48, 1_542_845)])
def test_tensor_shapes_of_the_unofficial_implementation(variant: MultiOrder, tensors: int, total: int) -> None:
    weights = [*LINEAR_WEIGHTS, *SCALE_WEIGHTS, *ORDER_WEIGHTS, *GATE_WEIGHTS[variant]]
    expected = [*weights, *((weight[0],) for weight in weights), *2 * [*LSTM_WEIGHTS, (1028,), (1028,)]]
    network = LiteRTSE(LiteRtseConfig("lite_rtse", variant), BINS)
    assert Counter(tuple(tensor.shape) for tensor in network.state_dict().values()) == Counter(expected)
    assert len(expected) == tensors
    assert sum(weight.numel() for weight in network.parameters()) == total


class PlainLiteRTSE:
    """Transcription of the network from its description, for one complex signal."""

    def __init__(self, network: LiteRTSE, repeated: bool) -> None:
        self.weights = network.state_dict()
        self.repeated = repeated

    def __call__(self, spectrum: Tensor) -> Tensor:
        """Complex `[T, F]` → complex `[T, F]`."""
        y, theta = spectrum.abs(), spectrum.angle()
        mask = torch.sigmoid(self.linear("mask", self.lstm("mask_lstm", y)))
        y_1 = y * mask
        x = self.multi_scale("scale_1", y[None])
        x = self.multi_scale("scale_2", x)
        y_2 = self.multi_order(x)[0]
        z = self.lstm("fused_lstm", self.linear("fuse", torch.cat([y, y_1, y_2], dim=1)))
        r_mag, r_re, r_im = (self.linear(head, z) for head in ("magnitude", "real", "imaginary"))
        r_abs = torch.hypot(r_re, r_im)
        s_mag = y_1 + r_mag * (y - y_1)
        cosine = torch.cos(theta) * r_re / r_abs - torch.sin(theta) * r_im / r_abs
        sine = torch.sin(theta) * r_re / r_abs + torch.cos(theta) * r_im / r_abs
        return torch.complex(s_mag * cosine, s_mag * sine)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def lstm(self, name: str, x: Tensor) -> Tensor:
        w_x, w_h, b_x, b_h = (
            self.weights[f"{name}.{key}_l0"] for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        hidden = cell = torch.zeros(x.shape[1], dtype=x.dtype)
        outputs = []
        for frame in x:
            admit, forget, new, output = (w_x @ frame + b_x + w_h @ hidden + b_h).chunk(4)
            cell = torch.sigmoid(forget) * cell + torch.sigmoid(admit) * torch.tanh(new)
            hidden = torch.sigmoid(output) * torch.tanh(cell)
            outputs.append(hidden)
        return torch.stack(outputs)

    def pointwise(self, name: str, x: Tensor) -> Tensor:
        """`[C_in, T, F]` → `[C, T, F]`."""
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return torch.einsum("oi,itf->otf", weight[:, :, 0, 0], x) + bias[:, None, None]

    def depthwise(self, name: str, x: Tensor) -> Tensor:
        """Convolve input frames t − size + 1 … t, with bins padded on both sides."""
        weight, bias = self.weights[f"{name}.conv.weight"], self.weights[f"{name}.conv.bias"]
        channels, frames, bins = x.shape
        size = weight.shape[-1]
        padded = torch.zeros(channels, frames + size - 1, bins + size - 1, dtype=x.dtype)
        padded[:, size - 1 :, size // 2 : size // 2 + bins] = x
        out = bias[:, None, None].repeat(1, frames, bins)
        for t in range(frames):
            for i in range(size):
                for j in range(size):
                    out[:, t] += weight[:, 0, i, j, None] * padded[:, t + i, j : j + bins]
        return out

    def multi_scale(self, name: str, x: Tensor) -> Tensor:
        main = self.pointwise(f"{name}.mix", self.depthwise(f"{name}.depthwise", self.pointwise(f"{name}.widen", x)))
        return main * self.pointwise(f"{name}.shortcut", x)

    def multi_order(self, x: Tensor) -> Tensor:
        x = self.pointwise("orders.widen", x)
        d, p = x[:124], x[124:]
        if not self.repeated:
            d = self.depthwise("orders.depthwise.0", d)
        for i, w in enumerate((4, 8, 16, 32)):
            if self.repeated:
                d = self.depthwise(f"orders.depthwise.{i}", d)
            d, gate = d[:-w], d[-w:]
            p = self.pointwise(f"orders.doubling.{i}", p * gate)
        return self.pointwise("orders.squeeze", d * p)


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_plain_transcription(variant: MultiOrder) -> None:
    network = random_network(variant)
    # Make the branch of products as large as the others, and half of the magnitudes negative.
    network.orders.squeeze.weight.data *= 100
    network.magnitude.bias.data[::2] -= 3
    noisy = random_spectra(2, 10, FEW_BINS, level=3)
    plain = PlainLiteRTSE(network, variant == "repeated")
    with torch.inference_mode():
        enhanced = network(noisy)
        rows = torch.view_as_complex(noisy.complex).transpose(1, 2)
        expected = torch.stack([plain(row) for row in rows]).transpose(1, 2)
    network.orders.squeeze.weight.data.zero_()
    with torch.inference_mode():
        without_products = torch.view_as_complex(network(noisy).complex)
    assert (torch.view_as_complex(enhanced.complex) - expected).abs().max() < 1e-9
    assert (expected - without_products).abs().max() > 0.01
    assert enhanced.mag.min() >= 0


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("sizes", [[1] * 12, [3, 1, 8]])
def test_streaming_equals_whole_signal(variant: MultiOrder, sizes: list[int]) -> None:
    assert_stream_equals_whole(random_network(variant), random_spectra(2, 12, FEW_BINS, level=3), sizes)
