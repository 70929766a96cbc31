"""IMSE live: running sums, attention and convolutions by plain loops, causality, and streams."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from config import ImseConfig, ImseLiveConfig, load_config
from models.imse import IMSE
from models.imse_live import CausalConv2d, CausalMALA, ImseLive, RunningMemory, RunningNorm, causal_imse
from models.stft import Spectra
from tests.fixtures.commands import ROOT
from tests.models.spectra import random_spectra, wrapped

BINS = 32
SMALL = ImseLiveConfig("imse_live", 8, 2.0, memory_frames=20.0)


def small(lookahead: int = 0) -> ImseLive:
    torch.manual_seed(0)
    return ImseLive(replace(SMALL, lookahead=lookahead), BINS).double().eval()


def spectra(frames: int) -> Spectra:
    torch.manual_seed(1)
    return Spectra(torch.rand(2, BINS, frames).double(), math.pi * (2 * torch.rand(2, BINS, frames).double() - 1))


def assert_same(enhanced: Spectra, expected: Spectra, atol: float) -> None:
    assert enhanced.mag.shape == expected.mag.shape
    torch.testing.assert_close(enhanced.mag, expected.mag, rtol=0, atol=atol)
    assert wrapped(enhanced.pha - expected.pha).max() < 100 * atol
    assert expected.mag.max() > 0.01


def test_size() -> None:
    config = load_config(ROOT / "configs/imse_live.json")
    network = ImseLive(ImseLiveConfig("imse_live", 16, 2.0), 256)
    assert isinstance(config.model, ImseLiveConfig)
    assert sum(each.numel() for each in network.parameters()) == 386_803
    with torch.inference_mode():
        _, state = network.stream(random_spectra(1, 4, dtype=torch.float32), None)
    assert sum(each.numel() for each in state) == 612_836


@pytest.mark.parametrize("blocks", [1, 6])
def test_attention_equals_the_sum_over_all_earlier_positions(blocks: int) -> None:
    """Positions have their absolute time here; the network rotates by differences."""
    torch.manual_seed(0)
    frames, bins, channels, constant = 2, 3, 16, 4.0
    memory = RunningMemory(constant)
    mala = CausalMALA(channels, frames, bins, memory).double()
    x = torch.randn(1, channels, blocks * frames, bins).double()
    memory.begin(None)
    memory.count_blocks(torch.ones(1, blocks, 1).bool(), x.dtype)
    with torch.inference_mode():
        output = mala(x)
        q, k = (functional.elu(part(x)) + 1 for part in (mala.query, mala.key))
        value = mala.value(x)
        attended = torch.zeros_like(value)
        for head in range(0, channels, 8):
            for t in range(blocks * frames):
                for f in range(bins):
                    attended[0, head : head + 8, t, f] = attend(q, k, value, head, t, f, frames, constant)
        expected = mala.project((attended + mala.lepe(value)) * mala.output_gate(x))
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-7)  # the angles are in float32


def attend(q: Tensor, k: Tensor, v: Tensor, head: int, t: int, f: int, frames: int, constant: float) -> Tensor:
    """Return MALA of one position of a head over all positions up to the end of its block."""
    part = slice(head, head + 8)
    weight_sum, mean_k, mean_v = 0.0, torch.zeros(8).double(), torch.zeros(8).double()
    numerator = torch.zeros(8).double()
    for s in range((t // frames + 1) * frames):
        weight = math.exp(-(t // frames - s // frames) / constant)
        for g in range(k.shape[3]):
            key, value = k[0, part, s, g], v[0, part, s, g]
            numerator += weight * (rotate(q[0, part, t, f], t, f) @ rotate(key, s, g)) / math.sqrt(8) * value
            mean_k, mean_v, weight_sum = mean_k + weight * key, mean_v + weight * value, weight_sum + weight
    z = q[0, part, t, f] @ mean_k / weight_sum / math.sqrt(8)
    return (1 + 1 / (z + 1e-6)) * numerator / weight_sum - z * mean_v / weight_sum


def rotate(x: Tensor, t: int, f: int) -> Tensor:
    """Turn pairs of a head's channels: the first two by the time index, the last two by the frequency index."""
    turned = x.clone()
    for pair, (position, speed) in enumerate(((t, 1.0), (t, 1e-4), (f, 1.0), (f, 1e-4))):
        a, b = x[2 * pair], x[2 * pair + 1]
        cos, sin = math.cos(position * speed), math.sin(position * speed)
        turned[2 * pair], turned[2 * pair + 1] = a * cos - b * sin, a * sin + b * cos
    return turned


def test_norm_equals_its_recursion() -> None:
    torch.manual_seed(0)
    constant = 3.0
    memory = RunningMemory(constant)
    norm = RunningNorm(2, memory).double()
    x = 5 + torch.randn(1, 2, 12, 3).double()
    memory.begin(None)
    memory.count_blocks(torch.ones(1, 3, 1).bool(), x.dtype)
    with torch.inference_mode():
        output = norm(x)
    count, total, squares = 0.0, torch.zeros(2).double(), torch.zeros(2).double()
    for start in range(0, 12, 4):
        block = x[0, :, start : start + 4]
        decay = math.exp(-1 / constant)
        count, total = decay * count + 1, decay * total + block.mean(dim=(1, 2))
        centred = block - (total / count)[:, None, None]
        squares = decay * squares + centred.square().mean(dim=(1, 2))
        expected = centred / (squares / count + 1e-5).sqrt()[:, None, None]
        torch.testing.assert_close(output[0, :, start : start + 4], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("size", "dilation"), [((3, 3), 1), ((3, 3), 4), ((11, 1), 1), ((5, 5), 1)])
def test_convolution_is_the_causal_half(size: tuple[int, int], dilation: int) -> None:
    """With weights for later frames of 0, it is the centred convolution."""
    torch.manual_seed(0)
    half = size[0] // 2
    centred = nn.Conv2d(8, 8, size, padding=(dilation * half, size[1] // 2), dilation=(dilation, 1), groups=8).double()
    memory = RunningMemory(1.0)
    causal = CausalConv2d(centred, memory).double()
    with torch.inference_mode():
        centred.weight[:, :, half + 1 :] = 0
        causal.weight.copy_(centred.weight[:, :, : half + 1])
        causal.get_parameter("bias").copy_(centred.get_parameter("bias"))
        x = torch.randn(1, 8, 24, 7).double()
        memory.begin(None)
        torch.testing.assert_close(causal(x), centred(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("lookahead", [0, 8])
def test_pieces_equal_one_pass(lookahead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network, noisy = small(lookahead), spectra(52)
    noisy.mag[0, :, 8:20], noisy.mag[1, :, :8], noisy.mag[1, :, 32:44] = 0, 0, 0  # silent blocks
    with torch.inference_mode():
        expected = network(noisy)
        state, pieces = None, []
        sizes = [4, 12, 4, 16, 16, *[lookahead] * (lookahead > 0)]
        padded = (functional.pad(part, (0, lookahead)).split(sizes, dim=2) for part in noisy)
        for mag, pha in zip(*padded, strict=True):
            piece, state = network.stream(Spectra(mag, pha), state)
            pieces.append(piece)
        joined = Spectra(*(torch.cat(parts, dim=2)[:, :, lookahead:] for parts in zip(*pieces, strict=True)))
        assert_same(joined, expected, 1e-12)
        monkeypatch.setattr("models.imse_live.PIECE", 8)
        assert_same(network(noisy), expected, 1e-12)


@pytest.mark.parametrize("lookahead", [0, 4])
def test_later_frames_change_nothing(lookahead: int) -> None:
    network, noisy = small(lookahead), spectra(40)
    changed = Spectra(noisy.mag.clone(), noisy.pha.clone())
    changed.mag[:, :, 24:], changed.pha[:, :, 24:] = 1, 0
    with torch.inference_mode():
        before, after = network(noisy), network(changed)
    for part, same in zip(before, after, strict=True):
        assert torch.equal(part[:, :, : 24 - lookahead], same[:, :, : 24 - lookahead])
        assert not torch.equal(part[:, :, 24 - lookahead], same[:, :, 24 - lookahead])


def test_level_does_not_matter() -> None:
    network, noisy = small(), spectra(16)
    with torch.inference_mode():
        expected, louder = network(noisy), network(Spectra(30 * noisy.mag, noisy.pha))
        assert_same(Spectra(louder.mag / 30, louder.pha), expected, 1e-3)
        silent = network(Spectra(torch.zeros_like(noisy.mag), torch.zeros_like(noisy.pha)))
    assert silent.mag.abs().max() == 0 and silent.pha.isfinite().all()


@pytest.mark.parametrize("before", [0, 24])
def test_silence_of_any_length_leaves_the_same_state(before: int) -> None:
    network, noisy = small(), spectra(24 + before)
    after: list[tuple[Tensor, ...]] = []
    with torch.inference_mode():
        for silence in (280, 560):  # longer than the convolutions see
            padded = (functional.pad(part[:, :, before:], (silence, 0)) for part in noisy)
            padded = Spectra(*(torch.cat([a[:, :, :before], b], dim=2) for a, b in zip(noisy, padded, strict=True)))
            enhanced, state = network.stream(padded, None)
            after.append((*(part[:, :, -24:] for part in enhanced), *state))
    for short, long in zip(*after, strict=True):
        torch.testing.assert_close(long, short, rtol=0, atol=1e-9)
    # Where there was speech, it goes on as if the silence had not been, but for the frames that convolutions see.
    if before:
        with torch.inference_mode():
            kept, _ = network.stream(noisy, None)
        assert (after[0][0] - kept.mag[:, :, before:]).abs().mean() < 0.2 * kept.mag.mean()


def test_a_stream_forgets() -> None:
    """After 30 time constants a stream is where a stream is that began in between."""
    torch.manual_seed(0)
    network = ImseLive(replace(SMALL, memory_frames=8.0), BINS).double().eval()
    noisy = spectra(500)
    with torch.inference_mode():
        whole = network(noisy)
        late = network(Spectra(*(part[:, :, 200:] for part in noisy)))
    assert_same(Spectra(*(part[:, :, 240:] for part in late)), Spectra(*(part[:, :, 440:] for part in whole)), 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("memory_frames", "piece"),
    [
        (240.0, 512),  # blocks computed at once
        (8.0, 4),  # block by block, as live
    ],
)
def test_ten_hours(memory_frames: float, piece: int) -> None:
    """In float32, after 40 time constants, the state is at a fixed point, whatever it was before.

    The noise repeats after each piece, and a stream knows its past only by the state. So once a piece leaves the state
    as it is, state and output after ten hours are those after two minutes. Beside a fresh stream runs one whose state
    is 100 times as great as after loud noise. Ten pieces apart, and in both streams, states and outputs differ by less
    than 1e-3 of the greatest value in their layer. Rounding errors are 3e-5; in float64, what is left of the other
    state is 1e-5 after 40 time constants and 1e-10 after 60. Layers forget one after another.
    """
    torch.manual_seed(0)
    network = ImseLive(replace(SMALL, memory_frames=memory_frames), 8).eval()
    noise = Spectra(*(part.repeat(2, 1, 1) for part in random_spectra(1, piece, bins=8, dtype=torch.float32)))
    seen: list[tuple[Tensor, ...]] = []
    with torch.inference_mode():
        _, loud = network.stream(Spectra(100 * noise.mag, noise.pha), None)
        state = tuple(torch.stack([0 * each[0], 100 * each[1]]) for each in loud)
        for _ in range(math.ceil(40 * memory_frames / piece) + 10):
            output, state = network.stream(noise, state)
            seen.append((output.complex, *state))
    for earlier, late in zip(seen[-11], seen[-1], strict=True):
        scale = late[0].abs().max()
        for other in (earlier[0], earlier[1], late[1]):
            torch.testing.assert_close(other / scale, late[0] / scale, rtol=0, atol=1e-3)
    assert seen[-1][0].abs().max() > 0.01


def test_weights_of_imse_do_the_same_to_a_stationary_input() -> None:
    """Constant maps differ only in convolutions that see the edges, norms (of one value: 0) and attention."""
    torch.manual_seed(0)
    network = IMSE(ImseConfig("imse", 8, 2.0), BINS).eval()
    causal = causal_imse(network, SMALL, BINS)
    ours = dict(causal.named_modules())
    convolutions = [(name, part) for name, part in network.named_modules() if isinstance(part, nn.Conv2d)]
    assert sum(isinstance(ours[name], CausalConv2d) for name, _ in convolutions) > 100
    for name, conv in convolutions:
        if isinstance(mine := ours[name], CausalConv2d):
            x = torch.randn(1, conv.in_channels, 1, 9).expand(-1, -1, 40, -1)
            mine.past = None
            with torch.inference_mode():
                torch.testing.assert_close(mine(x)[:, :, -1], conv(x)[:, :, 20], rtol=0, atol=1e-6)
    same = {name for name, part in network.named_parameters() if torch.equal(part, causal.get_parameter(name))}
    assert {"phase_decoder.real.weight", "unet.bottleneck.blocks.3.attention.value.weight"} <= same


def test_look_ahead_has_no_effect_before_training() -> None:
    """Once the zeros before the signals are forgotten."""
    torch.manual_seed(0)
    imse = IMSE(ImseConfig("imse", 8, 2.0), BINS).double().eval()
    noisy = spectra(400)
    config = replace(SMALL, memory_frames=8.0)
    with torch.inference_mode():
        without = causal_imse(imse, config, BINS).double()
        ahead = causal_imse(without, replace(config, lookahead=8), BINS).double()
        expected, enhanced = (Spectra(*(part[:, :, 340:] for part in each(noisy))) for each in (without, ahead))
    assert_same(enhanced, expected, 1e-6)
