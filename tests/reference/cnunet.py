"""CNUNet transcribed plainly from its description, on the weights of `models.cnunet`.

Functions of a mapping of weights and maps `[B, C, F, T]`. Real and imaginary parts are separate maps; `s` is indexed
from 1 as in the paper. Nothing is shared or fused.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

Weights = Mapping[str, Tensor]

DEPTHS = {1: 6, 2: 5, 3: 4, 4: 4, 5: 4, 6: 3}  # encoder stage → N


def under(weights: Weights, prefix: str) -> Weights:
    return {name[len(prefix) + 1 :]: weight for name, weight in weights.items() if name.startswith(f"{prefix}.")}


def pointwise(w: Weights, x: Tensor) -> Tensor:
    return torch.einsum("oi,bift->boft", w["weight"][:, :, 0, 0], x) + w["bias"][:, None, None]


def causal_conv(w: Weights, x: Tensor, stride: int = 1, dilation: int = 1, groups: int = 1) -> Tensor:
    padded = functional.pad(x, (dilation, 0, dilation, dilation))
    return functional.conv2d(padded, w["weight"], w["bias"], (stride, 1), 0, dilation, groups)


def layer_norm(w: Weights, x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    for b, row in enumerate(x):
        out[b] = (row - row.mean()) / (row.var(correction=0) + 1e-8).sqrt()
    return out * w["weight"][:, None, None] + w["bias"][:, None, None]


def prelu(slope: Tensor, x: Tensor) -> Tensor:
    return torch.where(x > 0, x, slope * x)


def sub_pixel(x: Tensor) -> Tensor:
    batch, channels, bins, frames = x.shape
    out = x.new_empty(batch, channels // 2, 2 * bins, frames)
    for c in range(channels // 2):
        for f in range(bins):
            for s in range(2):
                out[:, c, 2 * f + s] = x[:, 2 * c + s, f]
    return out


def inconv(w: Weights, x: Tensor) -> Tensor:
    return prelu(w["2.weight"], layer_norm(under(w, "1"), pointwise(under(w, "0"), x)))


def conv(w: Weights, x: Tensor) -> Tensor:
    return prelu(w["2.weight"], layer_norm(under(w, "1"), causal_conv(under(w, "0"), x, stride=2)))


def spconv(w: Weights, x: Tensor) -> Tensor:
    return prelu(w["3.weight"], layer_norm(under(w, "2"), sub_pixel(causal_conv(under(w, "0"), x))))


def cspconv(w: Weights, re: Tensor, im: Tensor) -> tuple[Tensor, Tensor]:
    half = len(w["conv.bias"]) // 2
    w_r = {name: w[f"conv.{name}"][:half] for name in ("weight", "bias")}
    w_i = {name: w[f"conv.{name}"][half:] for name in ("weight", "bias")}
    out_re = sub_pixel(causal_conv(w_r, re) - causal_conv(w_i, im))
    out_im = sub_pixel(causal_conv(w_i, re) + causal_conv(w_r, im))
    quarter = half // 2
    norm_re = {name: w[f"norm.{name}"][:quarter] for name in ("weight", "bias")}
    norm_im = {name: w[f"norm.{name}"][quarter:] for name in ("weight", "bias")}
    return prelu(w["slopes"][0], layer_norm(norm_re, out_re)), prelu(w["slopes"][1], layer_norm(norm_im, out_im))


def ddb(w: Weights, x: Tensor) -> Tensor:
    x0 = prelu(w["narrow.1.weight"], causal_conv(under(w, "narrow.0"), x))
    half = x0.shape[1]
    outputs: list[Tensor] = []  # y_0, y_1, ...
    for i in range(7):
        inputs = [*outputs[::-1], x0]
        real, imaginary = ([y.chunk(2, dim=1)[part] for y in inputs] for part in (0, 1))
        layer = under(w, f"layers.{i}")
        y = causal_conv(under(layer, "0"), torch.cat(real + imaginary, dim=1), dilation=2**i, groups=half)
        outputs.append(prelu(layer["3.weight"], layer_norm(under(layer, "2"), pointwise(under(layer, "1"), y))))
    return prelu(w["widen.1.weight"], causal_conv(under(w, "widen.0"), outputs[6]))


def gate(w: Weights, x: Tensor) -> Tensor:
    return pointwise(under(w, "2"), pointwise(under(w, "0"), x).relu()).sigmoid()


def ctfa(w: Weights, x: Tensor) -> Tensor:
    recent = torch.zeros_like(x)
    for t in range(x.shape[3]):
        recent[..., t] = x[..., max(0, t - 31) : t + 1].sum(dim=3) / 32
    return x * gate(under(w, "time_gate"), x.mean(dim=2)[:, :, None]) * gate(under(w, "frequency_gate"), recent)


Part = dict[int, Tensor]  # s_1 … s_{N+1} of one part


def cmsfe(w: Weights, x: Tensor, depth: int) -> tuple[Tensor, Part, Part]:
    x = inconv(under(w, "in_conv"), x)
    o: dict[int, Tensor] = {0: x}
    for k in range(1, depth + 1):
        o[k] = conv(under(w, f"down.{k - 1}"), o[k - 1])
    re: Part = {}
    im: Part = {}
    re[depth + 1], im[depth + 1] = ddb(under(w, "bottleneck"), o[depth]).chunk(2, dim=1)
    for k in range(depth, 0, -1):
        first, second = o[k].chunk(2, dim=1)
        joined = torch.cat([re[k + 1], first], dim=1), torch.cat([im[k + 1], second], dim=1)
        re[k], im[k] = cspconv(under(w, f"up.{depth - k}"), *joined)
    out = [re[1], im[1]]
    if depth == 6:
        out = [ctfa(under(w, "attention.real"), re[1]), ctfa(under(w, "attention.imaginary"), im[1])]
    return torch.cat(out, dim=1) + x, re, im


def msfe(w: Weights, x: Tensor, s: Part, depth: int) -> Tensor:
    x = inconv(under(w, "in_conv"), x)
    o: dict[int, Tensor] = {0: x}
    for k in range(1, depth + 1):
        merged = pointwise(under(w, f"down.{k - 1}.0"), torch.cat([o[k - 1], s[k]], dim=1))
        o[k] = conv(under(w, f"down.{k - 1}.1"), merged)
    y = ddb(under(w, "bottleneck"), o[depth])
    for k in range(depth, 0, -1):
        merged = pointwise(under(w, f"up.{depth - k}.0"), torch.cat([y, o[k], s[k + 1]], dim=1))
        y = spconv(under(w, f"up.{depth - k}.1"), merged)
    return (ctfa(under(w, "attention"), y) if depth == 6 else y) + x


def down_sampler(w: Weights, x: Tensor) -> Tensor:
    """Each half of the channels through a convolution of its own."""
    half = len(w["bias"]) // 2
    return torch.cat(
        [
            functional.conv2d(part, w["weight"][rows], w["bias"][rows], stride=(2, 1), padding=(1, 0))
            for part, rows in zip(x.chunk(2, dim=1), (slice(half), slice(half, None)), strict=True)
        ],
        dim=1,
    )


def up_sampler(w: Weights, x: Tensor) -> Tensor:
    half = len(w["bias"]) // 2
    return torch.cat(
        [
            functional.conv_transpose2d(
                part, w["weight"][rows], w["bias"][rows], stride=(2, 1), padding=(1, 0), output_padding=(1, 0)
            )
            for part, rows in zip(x.chunk(2, dim=1), (slice(half), slice(half, None)), strict=True)
        ],
        dim=1,
    )


def cnunet(w: Weights, spectrum: Tensor, released: bool) -> Tensor:
    """Complex spectra `[B, 257, T]` → the same shape."""
    x = inconv(under(w, "in_conv"), torch.stack([spectrum.real, spectrum.imag], dim=1)[:, :, 1:])
    encoded: dict[int, Tensor] = {}
    re_s: dict[int, Part] = {}
    im_s: dict[int, Part] = {}
    for i, depth in DEPTHS.items():
        encoded[i], re_s[i], im_s[i] = cmsfe(under(w, f"stages.{i - 1}"), x, depth)
        x = down_sampler(under(w, f"down_samplers.{i - 1}"), encoded[i])
    re, im = ddb(under(w, "bottleneck"), x).chunk(2, dim=1)
    for i in range(1, 7):
        stage = 7 - i  # of the encoder, at the resolution of decoder stage i
        to_re, to_im = dict(re_s[stage]), dict(im_s[stage])
        if released and i in (3, 4):
            to_im[4] = re_s[stage][4]
        if released and i == 5:
            to_re[4] = im_s[stage][4]
        first, second = encoded[stage].chunk(2, dim=1)
        real, imaginary = under(w, "real_decoder"), under(w, "imaginary_decoder")
        re = torch.cat([up_sampler(under(real, f"up_samplers.{i - 1}"), re), first], dim=1)
        im = torch.cat([up_sampler(under(imaginary, f"up_samplers.{i - 1}"), im), second], dim=1)
        re = msfe(under(real, f"stages.{i - 1}"), re, to_re, DEPTHS[stage])
        im = msfe(under(imaginary, f"stages.{i - 1}"), im, to_im, DEPTHS[stage])
    y = pointwise(under(w, "out_conv"), torch.cat([re, im], dim=1))
    return functional.pad(torch.complex(y[:, 0], y[:, 1]), (0, 0, 1, 0))
