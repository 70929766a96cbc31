"""IMSE transcribed plainly with all parts and names of the authors' release, to compare `models.imse` with.

Nothing is fused, shared or left out, so that the released weights load with `strict=True` and each line can be
compared with the paper.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

HEAD_WIDTH = 8
STAGE_NAMES = (
    "encoder_level1",
    "encoder_level2",
    "latent",
    "decoder_level2",
    "decoder_level1",
    "mag_refinement",
    "pha_refinement",
)


def normalised(conv: nn.Conv2d) -> nn.Module:
    return nn.Sequential(conv, nn.InstanceNorm2d(conv.out_channels, affine=True), nn.PReLU(conv.out_channels))


class DenseBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dense_block = nn.ModuleList(
            normalised(nn.Conv2d(channels * (i + 1), channels, 3, dilation=(2**i, 1), padding=(2**i, 1)))
            for i in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        skip = x
        for layer in self.dense_block:
            x = layer(skip)
            skip = torch.cat([x, skip], dim=1)
        return x


class DenseEncoder(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dense_conv_1 = normalised(nn.Conv2d(2, channels, 1))
        self.dense_block = DenseBlock(channels)
        self.dense_conv_2 = normalised(nn.Conv2d(channels, channels, (1, 3), stride=(1, 2), padding=(0, 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.dense_conv_2(self.dense_block(self.dense_conv_1(x)))


class LearnableSigmoid(nn.Module):
    def __init__(self, bins: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.ones(bins, 1))

    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * torch.sigmoid(self.slope * x)


def _upsampler(channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, 4 * channels, 1, bias=False),
        nn.PixelShuffle(2),
        nn.Conv2d(channels, channels, (1, 3), stride=(2, 1), padding=(0, 1), groups=channels, bias=False),
    ]


class MaskDecoder(nn.Module):
    def __init__(self, channels: int, bins: int) -> None:
        super().__init__()
        self.dense_block = DenseBlock(channels)
        self.mask_conv = nn.Sequential(
            *_upsampler(channels),
            nn.Conv2d(channels, 1, 1),
            nn.InstanceNorm2d(1, affine=True),
            nn.PReLU(1),
            nn.Conv2d(1, 1, 1),
        )
        self.lsigmoid = LearnableSigmoid(bins)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mask_conv(self.dense_block(x)).squeeze(1).transpose(1, 2)
        return self.lsigmoid(x)


class PhaseDecoder(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dense_block = DenseBlock(channels)
        self.phase_conv = nn.Sequential(
            *_upsampler(channels), nn.InstanceNorm2d(channels, affine=True), nn.PReLU(channels)
        )
        self.phase_conv_r = nn.Conv2d(channels, 1, 1)
        self.phase_conv_i = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.phase_conv(self.dense_block(x))
        return torch.atan2(self.phase_conv_i(x), self.phase_conv_r(x)).squeeze(1).transpose(1, 2)


class IDConv(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        group = channels // 8
        self.split = [channels - 3 * group, group, group, group]
        self.pwconv = nn.Conv2d(channels, channels, 1, bias=False)
        self.dwconv_hw = nn.Conv2d(group, group, 3, padding=1, groups=group)
        self.dwconv_w = nn.Conv2d(group, group, (1, 11), padding=(0, 5), groups=group)
        self.dwconv_h = nn.Conv2d(group, group, (11, 1), padding=(5, 0), groups=group)

    def forward(self, x: Tensor) -> Tensor:
        same, square, band_f, band_t = torch.split(self.pwconv(x), self.split, dim=1)
        return torch.cat([same, self.dwconv_hw(square), self.dwconv_w(band_f), self.dwconv_h(band_t)], dim=1)


class BiasFreeLayerNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.ParameterDict({"weight": nn.Parameter(torch.ones(channels))})

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, frames, bins = x.shape
        tokens = x.flatten(2).transpose(1, 2)  # [B, N, C]
        variance = tokens.var(dim=-1, keepdim=True, unbiased=False)
        tokens = tokens / torch.sqrt(variance + 1e-5) * self.body["weight"]
        return tokens.transpose(1, 2).reshape(batch, channels, frames, bins)


class FeedForward(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = int(2.66 * channels)
        self.project_in = nn.Conv2d(channels, 2 * hidden, 1, bias=False)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=False)
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(functional.gelu(a) * b)


class RoPE(nn.Module):
    angle: Tensor

    def __init__(self) -> None:
        super().__init__()
        speeds = 1.0 / 10000 ** torch.linspace(0, 1, HEAD_WIDTH // 4)
        self.register_buffer("angle", speeds.repeat_interleave(2))

    def forward(self, frames: int, bins: int) -> tuple[Tensor, Tensor]:
        """sin and cos, `[T·F, d]`."""
        device = self.angle.device
        places = torch.cartesian_prod(torch.arange(frames, device=device), torch.arange(bins, device=device))
        angles = places.repeat_interleave(HEAD_WIDTH // 2, dim=1) * self.angle.repeat(2)
        return angles.sin(), angles.cos()


def rotate_pairs(x: Tensor) -> Tensor:
    """(a, b) → (−b, a) for each pair of neighbours in the last axis."""
    return torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)


class MALA(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = channels // HEAD_WIDTH
        self.qkvo = nn.Conv2d(channels, 4 * channels, 1)
        self.lepe = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        batch, channels, frames, bins = x.shape
        positions = frames * bins
        scale = HEAD_WIDTH**-0.5
        q, k, v, o = self.qkvo(x).chunk(4, dim=1)
        local = self.lepe(v)

        def heads(y: Tensor) -> Tensor:
            return y.reshape(batch, self.heads, HEAD_WIDTH, positions).transpose(2, 3)  # [B, h, N, d]

        q, k, v = heads(q), heads(k), heads(v)
        q, k = functional.elu(q) + 1, functional.elu(k) + 1
        z = q @ k.mean(dim=2, keepdim=True).transpose(2, 3) * scale  # [B, h, N, 1]
        q = q * cos + rotate_pairs(q) * sin
        k = k * cos + rotate_pairs(k) * sin
        kv = k.transpose(2, 3) @ v * (scale / positions)  # [B, h, d, d]
        beta = 1 + 1 / (z + 1e-6)
        out = q @ kv * beta - z * v.mean(dim=2, keepdim=True)
        out = out.transpose(2, 3).reshape(batch, channels, frames, bins)
        return self.proj((out + local) * o)


class TransformerLayer(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = BiasFreeLayerNorm(channels)
        self.rope = RoPE()
        self.mala = MALA(channels)
        self.norm2 = BiasFreeLayerNorm(channels)
        self.ffn = FeedForward(channels)

    def forward(self, x: Tensor) -> Tensor:
        sin, cos = self.rope(x.shape[2], x.shape[3])
        x = x + self.mala(self.norm1(x), sin, cos)
        return x + self.ffn(self.norm2(x))


class Fusion(nn.Module):
    """Selective-kernel fusion of the paths; with one path its softmax is over one entry."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(channels // 8, 4)
        self.conv_du = nn.Sequential(nn.Conv2d(channels, squeezed, 1, bias=False), nn.PReLU())
        self.fcs = nn.ModuleList([nn.Conv2d(squeezed, channels, 1, bias=False)])

    def forward(self, paths: list[Tensor]) -> Tensor:
        stacked = torch.stack(paths, dim=1)  # [B, paths, C, T, F]
        descriptor = self.conv_du(stacked.sum(dim=1).mean(dim=(2, 3), keepdim=True))
        weights = torch.stack([fc(descriptor) for fc in self.fcs], dim=1).softmax(dim=1)
        return (stacked * weights).sum(dim=1)


class TransformerStage(nn.Module):
    def __init__(self, channels: int, layer: Callable[[int], nn.Module]) -> None:
        super().__init__()
        layers = nn.Sequential(*(layer(channels) for _ in range(4)))
        self.mhca_blks = nn.ModuleList([nn.ModuleDict({"transformer_layers": layers})])
        self.aggregate = Fusion(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.aggregate([self.get_submodule("mhca_blks.0.transformer_layers")(x)])


def sampler(in_channels: int, out_channels: int, shuffle: nn.Module) -> nn.Module:
    body = nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        shuffle,
    )
    return nn.Sequential(OrderedDict(body=body))


class TransformerUNet(nn.Module):
    """`embed` and `layer` make the parts of a stage, given its width."""

    def __init__(
        self,
        channels: int,
        embed: Callable[[int], nn.Module] = IDConv,
        layer: Callable[[int], nn.Module] = TransformerLayer,
    ) -> None:
        super().__init__()
        c1, c2, c3 = channels, 2 * channels, 3 * channels
        for name, width in zip(STAGE_NAMES, (c1, c2, c3, c2, c1, c1, c1), strict=True):
            path = nn.ModuleDict({"patch_conv": embed(width)})
            self.add_module(self.embed_name(name), nn.ModuleDict({"patch_embeds": nn.ModuleList([path])}))
            self.add_module(name, TransformerStage(width, layer))
        self.down1_2 = sampler(c1, c2 // 4, nn.PixelUnshuffle(2))
        self.down2_3 = sampler(c2, c3 // 4, nn.PixelUnshuffle(2))
        self.up3_2 = sampler(c3, c2 * 4, nn.PixelShuffle(2))
        self.up2_1 = sampler(c2, c1 * 4, nn.PixelShuffle(2))
        self.reduce_chan_level2 = nn.Sequential(nn.Conv2d(2 * c2, c2, 1, bias=False))
        self.reduce_chan_level1 = nn.Sequential(nn.Conv2d(2 * c1, c1, 1, bias=False))
        self.mag_output = nn.Sequential(nn.Conv2d(c1, c1, 3, padding=1, bias=False))
        self.pha_output = nn.Sequential(nn.Conv2d(c1, c1, 3, padding=1, bias=False))

    @staticmethod
    def embed_name(stage: str) -> str:
        if stage.endswith("refinement"):
            return f"{stage[:3]}_patch_embed_refinement"
        return f"patch_embed_{stage}"

    def stage(self, name: str, x: Tensor) -> Tensor:
        embed = self.get_submodule(f"{self.embed_name(name)}.patch_embeds.0.patch_conv")
        return self.get_submodule(name)(embed(x)) + x

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        e1 = self.stage("encoder_level1", x)
        e2 = self.stage("encoder_level2", self.down1_2(e1))
        m = self.stage("latent", self.down2_3(e2))
        d2 = self.reduce_chan_level2(torch.cat([self.up3_2(m), e2], dim=1))
        d2 = self.stage("decoder_level2", d2)
        d1 = self.reduce_chan_level1(torch.cat([self.up2_1(d2), e1], dim=1))
        d1 = self.stage("decoder_level1", d1)
        mag = self.mag_output(self.stage("mag_refinement", d1)) + x
        pha = self.pha_output(self.stage("pha_refinement", d1)) + x
        return mag, pha


class ReferenceIMSE(nn.Module):
    """`(mag, pha)` `[B, F, T]` → enhanced `(mag, pha)`; T divisible by 4."""

    def __init__(self, channels: int = 16, bins: int = 256) -> None:
        super().__init__()
        self.dense_encoder = DenseEncoder(channels)
        self.TCFTransformer = TransformerUNet(channels)
        self.mask_decoder = MaskDecoder(channels, bins)
        self.phase_decoder = PhaseDecoder(channels)

    def forward(self, mag: Tensor, pha: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.stack([mag, pha], dim=1).transpose(2, 3)  # [B, 2, T, F]
        for_mag, for_pha = self.TCFTransformer(self.dense_encoder(x))
        return mag * self.mask_decoder(for_mag), self.phase_decoder(for_pha)


def plain_enhance(network: ReferenceIMSE, wav: Tensor) -> Tensor:
    """Enhance one normalised segment `[N]` along the signal path of the paper, without the phase floor."""
    window = torch.hann_window(510)
    spectrum = torch.stft(wav, 510, 100, 510, window, center=True, pad_mode="reflect", return_complex=True)
    mag, pha = network(spectrum.abs()[None] ** 0.3, spectrum.angle()[None])
    mag = mag ** (1 / 0.3)
    enhanced = torch.complex(mag * torch.cos(pha), mag * torch.sin(pha))
    return torch.istft(enhanced, 510, 100, 510, window, center=True)[0]


def plain_paper_protocol(network: ReferenceIMSE, noisy: Tensor) -> Tensor:
    """Enhance an utterance `[N]`, normalised, segment by segment, and joined as in the release."""
    segment = 30_700
    factor = math.sqrt(len(noisy) / float((noisy.double() ** 2).sum()))
    wav = noisy * factor
    if len(wav) < segment:
        padded = functional.pad(wav, (0, segment - len(wav)))
        out = functional.pad(plain_enhance(network, padded), (0, segment))[: len(wav)]
    else:
        count, rest = divmod(len(wav), segment)
        pieces = [plain_enhance(network, wav[i * segment : (i + 1) * segment]) for i in range(count)]
        if rest:
            pieces[-1] = pieces[-1][:rest]
            pieces.append(plain_enhance(network, wav[-segment:]))
        out = torch.cat(pieces)
    return out / factor
