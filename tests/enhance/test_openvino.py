"""Networks compiled by OpenVINO equal PyTorch's, whole and live; the cache of compiled networks."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cli import UserError
from config import Config
from enhance import openvino_runtime
from enhance.enhancer import Enhancer
from enhance.graphs import GraphNetwork
from enhance.openvino_runtime import cache_dir, with_openvino
from enhance.runtimes import convert, fast_enhancer
from enhance.streaming import Stream, StreamingNetwork
from metrics.si_sdr import si_sdr
from models.stft import Spectra
from tests.fixtures.commands import ROOT, error_line, run_python
from tests.fixtures.networks import assert_same_spectra, noise, one_pass, random_network
from tests.fixtures.signals import speech_like, with_noise

pytest.importorskip("openvino")

NOISY = with_noise(speech_like(1.5), 5).astype(np.float32)
LIVE = ("dccrn", "dpcrn", "dpcrn_cf", "imse_live")
SLOW_STREAMS = tuple(pytest.param(name, marks=pytest.mark.slow) for name in LIVE)
SLOW = (*(pytest.param(name, marks=pytest.mark.slow) for name in ("muse", "cnunet", "mpsenet")), *SLOW_STREAMS)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "imse"


@pytest.mark.parametrize("frames", [None, 41])
@pytest.mark.parametrize("name", ["imse", "lite_rtse", "dpcrn_ac", *SLOW])
def test_results_equal_pytorch(name: str, frames: int | None) -> None:
    network, config = random_network(name)
    compiled = with_openvino(network, config, threads=1, frames=frames)
    for batch, count in ((1, 1), (2, 18), (1, 41), (2, 41)):
        if frames in (None, count):
            noisy = noise(config, batch, count)
            with torch.inference_mode():
                expected, enhanced = network(noisy), compiled(noisy)
            assert_same_spectra(enhanced, expected, 1e-3)


LIVE_WHOLE = pytest.param("imse_live", "whole", marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "protocol"), [("imse", "overlap"), ("imse", "whole"), ("lite_rtse", "whole"), LIVE_WHOLE]
)
def test_signals_equal_pytorch(name: str, protocol: str) -> None:
    network, config = random_network(name)
    enhancer = fast_enhancer(network, config, protocol=protocol, backend="openvino", threads=1)
    assert isinstance(enhancer.network, GraphNetwork)
    long = np.tile(NOISY, 1 if name == "imse" else 2)  # streaming networks take it in several pieces
    for noisy in (NOISY[:9_000], long):
        levelled = config.data.normalize_level
        expected = (
            Enhancer(network, config).enhance_signal(noisy, protocol) if levelled else one_pass(network, config, noisy)
        )
        assert si_sdr(expected.astype(np.float64), enhancer.enhance_signal(noisy, protocol).astype(np.float64)) > 60


@pytest.mark.parametrize("name", ["lite_rtse", "dpcrn_ac", *SLOW_STREAMS])
def test_stream_equals_one_pass(name: str) -> None:
    network, config = random_network(name)
    compiled = with_openvino(network, config, threads=1, frames=config.model.block_frames, stream=True)
    assert isinstance(compiled, StreamingNetwork)
    expected = one_pass(network, config, NOISY)
    for pieces in (256, 1000):
        stream = Stream(compiled, config)
        starts = range(0, len(NOISY), pieces)
        enhanced = [stream.process(NOISY[start : start + pieces]) for start in starts]
        np.testing.assert_allclose(np.concatenate([*enhanced, stream.flush()]), expected, rtol=0, atol=1e-5)


def test_deleted_networks_leave_signals_alone() -> None:
    """In a process of its own, which would crash."""
    code = """if True:
        import signal
        from enhance.openvino_runtime import with_openvino
        from tests.fixtures.networks import random_network
        network, config = random_network("lite_rtse")
        graphs = [with_openvino(network, config, threads=1, frames=frames) for frames in (8, 9)]
        while graphs:
            del graphs[0]
        signal.signal(signal.SIGINT, lambda *_: print("handled"))
        signal.raise_signal(signal.SIGINT)
    """
    done = run_python("-c", code, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_compiled_networks_are_kept(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network, config = random_network("lite_rtse")
    noisy = noise(config, 1, 5)
    first = with_openvino(network, config, threads=1)(noisy)
    (entry,) = cache.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(openvino_runtime, "_convert", lambda *_: pytest.fail("compiled again"))
        again = with_openvino(network, config, threads=1)(noisy)
    assert torch.equal(first.mag, again.mag)

    content = entry.read_bytes()
    for damaged in (b"", content[:40] + bytes(8) + content[48:]):
        entry.write_bytes(damaged)
        torch.testing.assert_close(with_openvino(network, config, threads=1)(noisy).mag, first.mag)
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith(f"{entry}: damaged")
        assert len(entry.read_bytes()) > 0.9 * len(content)

    with torch.no_grad():
        network.get_parameter("mask.bias").add_(0.5)
    other = with_openvino(network, config, threads=1)(noisy)
    assert (other.mag - first.mag).abs().max() > 0.01
    assert len(list(cache.iterdir())) == 2


def test_oldest_entries_are_removed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_runtime, "ENTRIES_KEPT", 1)
    network, config = random_network("lite_rtse")
    entries = []
    for threads in (1, 2):
        with_openvino(network, config, threads)
        entries.append({path.name for path in cache.iterdir()})
    assert len(entries[0]) == len(entries[1]) == 1
    assert entries[0] != entries[1]


def test_unwritable_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cache_dir() == tmp_path / "file" / "imse"
    network, config = random_network("lite_rtse")
    assert with_openvino(network, config, threads=1)(noise(config, 1, 3)).mag.any()
    assert capsys.readouterr().err == ""


class Unconvertible(nn.Module):
    """Uses an operator that OpenVINO lacks."""

    def forward(self, noisy: Spectra) -> Spectra:
        return Spectra(torch.special.bessel_j0(noisy.mag), noisy.pha)


class FixedGain(nn.Module):
    """Reads a number from its input, which tracing turns into a constant."""

    def forward(self, noisy: Spectra) -> Spectra:
        return Spectra(noisy.mag * float(noisy.mag.max()), noisy.pha)


@pytest.mark.parametrize(("network", "reason"), [(Unconvertible(), "bessel"), (FixedGain(), "differ")])
@pytest.mark.usefixtures("cache")
def test_networks_that_cannot_be_compiled(network: nn.Module, reason: str, small_config: Config) -> None:
    message = error_line(lambda: with_openvino(network.eval(), small_config, threads=1))
    assert type(network).__name__ in message and reason in message


def test_auto_falls_back_to_pytorch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    network, config = random_network("lite_rtse")
    assert isinstance(convert(network, config, "auto", threads=1, frames=20), GraphNetwork)
    assert capsys.readouterr().err == ""
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert convert(network, config, "auto", threads=1, frames=20) is network
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "pip install openvino" in lines[0]
    assert "PyTorch" in lines[0]
    with pytest.raises(UserError, match="pip install openvino"):
        convert(network, config, "openvino", threads=1, frames=20)
