"""Streams against the whole signal in one pass, whatever the pieces; when samples come out, worked out by hand."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cli import UserError
from config import Config, StftConfig, load_config
from enhance.enhancer import Enhancer, LevelMeter
from enhance.streaming import MOST_FRAMES, Stream
from models import build
from models.lite_rtse import LiteRTSE
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
    """Gives back what it gets, and writes down how many frames that was."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def initial_state(self, batch: int) -> int:
        assert batch == 1
        return 0

    def stream(self, noisy: Spectra, state: int) -> tuple[Spectra, int]:
        assert state == sum(self.calls)
        self.calls.append(noisy.mag.shape[-1])
        return noisy, sum(self.calls)

    def forward(self, noisy: Spectra) -> Spectra:
        return noisy


@pytest.fixture(scope="module")
def live_config() -> Config:
    return load_config(ROOT / "configs" / "lite_rtse.json")


def random_network(config: Config, stft: str = "default") -> tuple[LiteRTSE, Config]:
    config = replace(config, stft=STFTS[stft])
    torch.manual_seed(0)
    network = build(config).eval()
    assert isinstance(network, LiteRTSE)
    return network, config


def in_one_pass(network: nn.Module, config: Config, signal: np.ndarray) -> np.ndarray:
    blocks = [signal[:, None]]
    enhanced = Enhancer(network, config).enhance(blocks, LevelMeter().measure(blocks), "whole")
    return np.concatenate(list(enhanced))[:, 0]


def in_pieces(stream: Stream, signal: np.ndarray, seed: int, hop: int = 256) -> np.ndarray:
    """The enhanced signal, from pieces of random sizes, some of them empty and some long."""
    random = np.random.default_rng(seed)
    enhanced: list[np.ndarray] = []
    while len(signal):
        size = int(random.choice([0, 1, hop - 1, hop, hop + 1, int(random.integers(3 * hop)), 20 * hop]))
        enhanced.append(stream.process(signal[:size]))
        signal = signal[size:]
    return np.concatenate([*enhanced, stream.flush()])


@pytest.mark.parametrize("stft", STFTS)
def test_pieces_of_any_size_give_what_the_whole_gives(live_config: Config, stft: str) -> None:
    network, config = random_network(live_config, stft)
    settings = config.stft
    half, hop, reach = settings.n_fft // 2, settings.hop_size, settings.win_size // 2
    around = {length + k for length in (reach, half, settings.win_size, 7 * hop, 30 * hop) for k in (-1, 0, 1, 2)}
    stream = Stream(network, config)
    signal = expected = NOISY
    for length in sorted({1, 2, 3} | around):
        signal = NOISY[3000 : 3000 + length]
        expected = in_one_pass(network, config, signal)
        enhanced = in_pieces(stream, signal, length, hop)
        assert enhanced.dtype == np.float32
        assert enhanced.shape == signal.shape
        np.testing.assert_allclose(enhanced, expected, rtol=2e-6, atol=2e-6, err_msg=str(length))
    assert np.abs(expected).max() > 0.005
    assert np.abs(expected - signal).max() > 0.005


@pytest.mark.parametrize("stft", STFTS)
def test_an_unchanged_spectrum_gives_back_the_signal(live_config: Config, stft: str) -> None:
    for length in (1, 33, 500, 5000):
        echo = in_pieces(Stream(Echo(), replace(live_config, stft=STFTS[stft])), NOISY[:length], length)
        # The last sample may lie under the window's edge.
        np.testing.assert_allclose(echo, NOISY[:length], rtol=0, atol=1e-3)
        np.testing.assert_allclose(echo[:-20], NOISY[:length][:-20], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("stft", "heard", "given"),
    [
        # Frame i is of samples 256 i - 256 … 256 i + 255. When it has come, those before frame i + 1, 256 i, are done.
        ("default", [0, 256, 257, 511, 512, 767, 768, 1000, 1024], [0, 0, 0, 0, 256, 256, 512, 512, 768]),
        # 128 i - 192 … 128 i + 191, before the next frame 128 i - 64.
        ("short window", [193, 319, 320, 447, 448, 575, 576], [0, 0, 64, 64, 192, 192, 320]),
        # 10 i - 17 … 10 i + 15, before the next frame 10 i - 7.
        ("odd window", [17, 18, 25, 26, 35, 36, 46], [0, 0, 0, 3, 3, 13, 23]),
    ],
)
def test_when_samples_come_out(live_config: Config, stft: str, heard: list[int], given: list[int]) -> None:
    for count, expected in zip(heard, given, strict=True):
        stream = Stream(Echo(), replace(live_config, stft=STFTS[stft]))
        assert len(stream.process(NOISY[:count])) == expected
        assert len(stream.flush()) == count - expected


@pytest.mark.parametrize(("stft", "samples"), [("default", 512), ("short window", 384), ("odd window", 33)])
def test_no_sample_waits_longer_than_the_latency(live_config: Config, stft: str, samples: int) -> None:
    stream = Stream(Echo(), replace(live_config, stft=STFTS[stft]))
    assert stream.sampling_rate == 16_000
    assert stream.latency == samples / 16_000
    given = 0
    waiting: list[int] = []
    for count in range(1, 2000):
        given += len(stream.process(NOISY[count - 1 : count]))
        waiting.append(count - given)
    assert max(waiting) == samples - 1  # with one more it goes


def test_all_frames_that_are_there_go_through_the_network_at_once(live_config: Config) -> None:
    network = Echo()
    stream = Stream(network, live_config)
    for hops in (2, 1, 10, 0):
        stream.process(NOISY[: 256 * hops])
    # With 2 hops there are frames 0 and 1, with each hop one more.
    assert network.calls == [2, 1, 10]
    stream.process(np.zeros(256 * (2 * MOST_FRAMES + 5), np.float32))
    assert network.calls == [2, 1, 10, MOST_FRAMES, MOST_FRAMES, 5]
    stream.flush()
    # The frame that is centred on the end.
    assert network.calls[6:] == [1]


def test_memory_does_not_grow(live_config: Config) -> None:
    network, config = random_network(live_config)
    stream = Stream(network, config)
    sizes: list[int] = []
    for _ in range(3):
        for _ in range(20):
            stream.process(NOISY[:256])
        sizes.append(len(pickle.dumps(stream)))
    assert sizes[0] < 20_000_000
    assert sizes[2] - sizes[1] < 100


def test_after_the_end_a_new_signal_begins(live_config: Config) -> None:
    stream = Stream(*random_network(live_config))
    first = np.concatenate([stream.process(NOISY[:3001]), stream.flush()])
    assert stream.flush().shape == (0,)
    assert np.array_equal(np.concatenate([stream.process(NOISY[:3001]), stream.flush()]), first)


def test_later_samples_change_nothing_before_the_first_frame_that_hears_them(live_config: Config) -> None:
    network, config = random_network(live_config)
    changed = NOISY.copy()
    changed[5000:] += 0.1
    # Frame i hears samples 256 i - 256 … 256 i + 255, so the first that hears sample 5000 is number 19.
    begin = 256 * 19 - 256
    for enhance in (
        lambda signal: in_one_pass(network, config, signal),
        lambda signal: in_pieces(Stream(network, config), signal, seed=3),
    ):
        before, after = enhance(NOISY), enhance(changed)
        assert np.array_equal(before[:begin], after[:begin])
        assert np.abs(before[begin : begin + 256] - after[begin : begin + 256]).max() > 1e-4


def test_the_input_is_neither_changed_nor_kept(live_config: Config) -> None:
    stream = Stream(*random_network(live_config))
    expected = np.concatenate([stream.process(NOISY[:900]), stream.flush()])
    buffer = NOISY[:300].copy()
    enhanced: list[np.ndarray] = []
    for start in (0, 300, 600):
        buffer[:] = NOISY[start : start + 300]
        enhanced.append(stream.process(buffer))
        assert np.array_equal(buffer, NOISY[start : start + 300])
        buffer[:] = np.nan
    np.testing.assert_allclose(np.concatenate([*enhanced, stream.flush()]), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_refused(live_config: Config, value: float) -> None:
    stream = Stream(Echo(), live_config)
    stream.process(NOISY[:600])
    with pytest.raises(UserError, match="the samples hold NaN or infinite values; give zeros"):
        stream.process(np.array([0, value], np.float32))
    # They are as if they had not come.
    assert len(stream.flush()) == 600 - 256


class Whole(nn.Identity):
    """A network that does not know of streams."""


def refused(network: nn.Module, config: Config) -> str:
    with pytest.raises(UserError) as caught:
        Stream(network, config)
    return str(caught.value)


def test_what_cannot_stream_is_refused(live_config: Config, small_config: Config) -> None:
    words = "cannot stream: it needs the whole signal; give a causal network"
    assert refused(Whole(), live_config).startswith(f"Whole {words}")
    assert refused(build(small_config), small_config).startswith(f"IMSE {words}")
    levelled = replace(live_config, data=replace(live_config.data, normalize_level=True))
    assert refused(Echo(), levelled).startswith("data.normalize_level needs the whole signal; give a network")


class Doubled(Echo):
    """Loud."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def stream(self, noisy: Spectra, state: Any) -> tuple[Spectra, Any]:
        assert noisy.mag.dtype == torch.float64
        return Spectra(self.gain * noisy.mag, noisy.pha), state


def test_the_network_decides_on_the_precision(live_config: Config) -> None:
    stream = Stream(Doubled(), live_config)
    enhanced = np.concatenate([stream.process(NOISY[:2560]), stream.flush()])
    np.testing.assert_allclose(enhanced[:-5], 2 * NOISY[:2555].astype(np.float64), rtol=0, atol=1e-12)
