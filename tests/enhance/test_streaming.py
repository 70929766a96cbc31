"""Streams equal the whole signal in one pass, whatever the pieces, and give each sample as soon as possible."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cli import UserError
from config import Config, StftConfig, load_config
from enhance.enhancer import Enhancer
from enhance.streaming import MOST_FRAMES, Stream
from models import build
from models.stft import Spectra
from tests.fixtures.commands import ROOT
from tests.fixtures.signals import speech_like, with_noise

NOISY = with_noise(speech_like(2), 5).astype(np.float32)

STFTS = {
    "default": StftConfig(512, 256, 512, 1.0, "sqrt_hann"),
    "short window": StftConfig(512, 128, 384, 0.5, "hann"),
    "odd window": StftConfig(64, 10, 33, 0.3, "hamming"),
    "odd hop": StftConfig(62, 15, 62, 1.0, "hann"),
}


class Echo(nn.Module):
    """Returns its input; records the number of frames of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def stream(self, noisy: Spectra, state: int | None) -> tuple[Spectra, int]:
        assert (state or 0) == sum(self.calls)
        self.calls.append(noisy.mag.shape[-1])
        return noisy, sum(self.calls)


@pytest.fixture(scope="module")
def live_config() -> Config:
    return load_config(ROOT / "configs" / "lite_rtse.json")


class Smooth(nn.Module):
    """A cheap network with a state: smooths magnitudes over frames, in float64 so that rounding does not matter."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def stream(self, noisy: Spectra, state: Tensor | None) -> tuple[Spectra, Tensor]:
        state, frames = torch.zeros(len(noisy.mag), 1) if state is None else state, list[Tensor]()
        for frame in noisy.mag.unbind(2):
            state = state + self.rate * (frame - state)
            frames.append(state)
        return noisy._replace(mag=torch.stack(frames, dim=2)), state

    def forward(self, noisy: Spectra) -> Spectra:
        return self.stream(noisy, None)[0]


def lite_rtse(config: Config) -> nn.Module:
    torch.manual_seed(0)
    return build(config).eval()


@torch.inference_mode()
def in_one_pass(network: nn.Module, config: Config, signal: np.ndarray) -> np.ndarray:
    wav = torch.from_numpy(signal).to(next(network.parameters()))
    return Enhancer(network, config).to(wav.dtype).enhance_batch(wav[None])[0].numpy()


def in_pieces(stream: Stream, signal: np.ndarray, seed: int = 0, hop: int = 256) -> np.ndarray:
    """Stream pieces of random sizes, some of them empty and some long."""
    random = np.random.default_rng(seed)
    enhanced: list[np.ndarray] = []
    while len(signal):
        size = int(random.choice([0, 1, hop - 1, hop, hop + 1, int(random.integers(3 * hop)), 20 * hop]))
        enhanced.append(stream.process(signal[:size]))
        signal = signal[size:]
    return np.concatenate([*enhanced, stream.flush()])


@pytest.mark.parametrize("name", STFTS)
def test_pieces_of_any_size_give_what_one_pass_gives(live_config: Config, name: str) -> None:
    stft = STFTS[name]
    config = replace(live_config, stft=stft)
    network = Smooth()
    stream = Stream(network, config)
    edges = stft.win_size // 2, stft.n_fft // 2, stft.win_size, 7 * stft.hop_size, 30 * stft.hop_size
    signal = expected = NOISY
    for length in sorted({1, 2, 3} | {edge + k for edge in edges for k in (-1, 0, 1, 2)}):
        signal = NOISY[3000 : 3000 + length]
        expected = in_one_pass(network, config, signal)
        enhanced = in_pieces(stream, signal, length, stft.hop_size)
        assert enhanced.shape == signal.shape
        np.testing.assert_allclose(enhanced, expected, rtol=0, atol=1e-9, err_msg=str(length))
    assert np.abs(expected).max() > 0.005
    assert np.abs(expected - signal).max() > 0.005


@pytest.mark.parametrize(
    ("name", "received", "ready"),
    [
        # Frame i holds samples 256 i - 256 … 256 i + 255. With it, the samples before frame i + 1, 256 i, are complete.
        ("default", [0, 256, 257, 511, 512, 767, 768, 1000, 1024], [0, 0, 0, 0, 256, 256, 512, 512, 768]),
        # 128 i - 192 … 128 i + 191; the next frame begins at 128 i - 64.
        ("short window", [193, 319, 320, 447, 448, 575, 576], [0, 0, 64, 64, 192, 192, 320]),
        # 10 i - 17 … 10 i + 15; the next frame begins at 10 i - 7.
        ("odd window", [17, 18, 25, 26, 35, 36, 46], [0, 0, 0, 3, 3, 13, 23]),
    ],
)
def test_samples_come_out_as_soon_as_complete(
    live_config: Config, name: str, received: list[int], ready: list[int]
) -> None:
    for count, expected in zip(received, ready, strict=True):
        stream = Stream(Echo(), replace(live_config, stft=STFTS[name]))
        assert len(stream.process(NOISY[:count])) == expected
        assert len(stream.flush()) == count - expected


def test_latency(live_config: Config) -> None:
    stream, samples = Stream(Echo(), replace(live_config, stft=STFTS["odd window"])), 33
    assert stream.sampling_rate == 16_000
    assert stream.latency == samples / 16_000
    given = 0
    waiting: list[int] = []
    for count in range(1, 2000):
        given += len(stream.process(NOISY[count - 1 : count]))
        waiting.append(count - given)
    assert max(waiting) == samples - 1  # the next sample lets one go


def test_frames_share_a_pass(live_config: Config) -> None:
    network = Echo()
    stream = Stream(network, live_config)
    for hops in (2, 1, 10, 0):
        stream.process(NOISY[: 256 * hops])
    assert network.calls == [2, 1, 10]
    stream.process(np.zeros(256 * (2 * MOST_FRAMES + 5), np.float32))
    assert network.calls[3:] == [MOST_FRAMES, MOST_FRAMES, 5]
    stream.flush()
    assert network.calls[6:] == [1]  # the frame centred on the end


def test_memory_does_not_grow(live_config: Config) -> None:
    stream = Stream(lite_rtse(live_config), live_config)
    sizes: list[int] = []
    for _ in range(3):
        for _ in range(20):
            stream.process(NOISY[:256])
        sizes.append(len(pickle.dumps(stream)))
    assert sizes[2] - sizes[1] < 100


def test_the_input_is_neither_changed_nor_kept(live_config: Config) -> None:
    stream = Stream(lite_rtse(live_config), live_config)
    expected = np.concatenate([stream.process(NOISY[:900]), stream.flush()])
    buffer = NOISY[:300].copy()
    enhanced: list[np.ndarray] = []
    for start in (0, 300, 600):
        buffer[:] = NOISY[start : start + 300]
        enhanced.append(stream.process(buffer))
        assert np.array_equal(buffer, NOISY[start : start + 300])
        buffer[:] = np.nan
    np.testing.assert_allclose(np.concatenate([*enhanced, stream.flush()]), expected, rtol=0, atol=1e-5)


def test_nan_and_infinity_are_refused(live_config: Config) -> None:
    stream = Stream(Echo(), live_config)
    stream.process(NOISY[:600])
    for value in (np.nan, np.inf, 1e20):
        with pytest.raises(UserError, match="NaN, infinite"):
            stream.process(np.array([0, value], np.float32))
    for samples in (np.zeros(5, np.int16), np.zeros((1, 5)), np.zeros((5, 1)), torch.zeros(5), [0.0]):
        with pytest.raises(ValueError, match="expected an array of floats"):
            stream.process(samples)  # pyright: ignore[reportArgumentType]
    assert len(stream.flush()) == 600 - 256  # as if they had not come


def test_networks_that_cannot_stream(live_config: Config, small_config: Config) -> None:
    with pytest.raises(UserError, match="IMSE cannot stream"):
        Stream(build(small_config), small_config)
    with pytest.raises(UserError, match=r"data\.normalize_level"):
        Stream(Echo(), replace(live_config, data=replace(live_config.data, normalize_level=True)))
