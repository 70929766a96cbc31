"""The comparison with other packages: the same files for all, in time with the clean ones, and scored as everywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tools.benchmark.peers as benchmark
from cli import UserError
from config import Config
from data.audio import read_audio
from metrics.score import METRICS, score_signals
from models import build
from models.checkpoint import save_checkpoint
from tests.fixtures.commands import run_module, run_script
from tests.fixtures.recordings import RATE, save
from tests.fixtures.signals import speech_like, with_noise
from tools.benchmark.peers import systems_of, with_checkpoint, with_noisereduce, with_rnnoise


def test_the_command_compares_what_is_there(tmp_path: Path, small_checkpoint: Path) -> None:
    for number in range(3):
        clean = speech_like(2, seed=number)
        save(tmp_path / f"clean/{number}.wav", clean, subtype="FLOAT")
        save(tmp_path / f"noisy/{number}.wav", with_noise(clean, 5), subtype="FLOAT")
    (tmp_path / "small.safetensors").write_bytes(small_checkpoint.read_bytes())
    folders = ("--clean_wav_dir", "clean", "--noisy_wav_dir", "noisy")
    options = ("--checkpoint_file", "small.safetensors", "--files", 2, "--threads", 1, "--json", "figures.json")
    done = run_module("tools.benchmark.peers", *folders, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    figures = json.loads(last)
    assert figures == json.loads((tmp_path / "figures.json").read_text())
    first, *_, last = figures
    assert (first, last) == ("noisy", "small")
    for name in ("noisereduce", "noisereduce, steady", "RNNoise"):
        assert (name in figures) != (f"{name}: left out" in done.stderr)
    assert len(table) == 1 + len(figures)
    # The first and the last file, through 16 bits.
    by_hand = [
        score_signals(clean, np.rint(with_noise(clean, 5) * 2**15) / 2**15, "published")[0]
        for clean in (speech_like(2, seed=0), speech_like(2, seed=2))
    ]
    for metric in METRICS:
        expected = np.mean([scores[metric] for scores in by_hand])
        assert figures["noisy"][metric] == pytest.approx(expected, abs=2e-3), metric
    assert figures["small"]["real_time_factor"] > 0
    assert figures["noisy"]["scored"] == 2


def test_what_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(benchmark.importlib, "import_module", missing)
    assert list(systems_of([], 1)) == ["noisy"]
    assert capsys.readouterr().err.splitlines() == [
        "noisereduce: left out (No module named 'noisereduce')",
        "noisereduce, steady: left out (No module named 'noisereduce')",
        "RNNoise: left out (No module named 'pyrnnoise.rnnoise')",
    ]


@pytest.mark.parametrize("samples", [16_000, 15_999, 161, 1])
def test_rnnoise_is_in_time(samples: int) -> None:
    pytest.importorskip("pyrnnoise.rnnoise")
    clean = speech_like(3).astype(np.float32)[:samples]
    enhanced = with_rnnoise()(clean)
    assert enhanced.shape == clean.shape
    if samples >= 15_999:
        lags = range(-100, 101)
        products = [float(np.dot(enhanced[200:-200], clean[200 + lag : len(clean) - 200 + lag])) for lag in lags]
        assert abs(lags[int(np.argmax(products))]) <= 1


def test_noisereduce_keeps_the_length() -> None:
    pytest.importorskip("noisereduce")
    noisy = with_noise(speech_like(1.3), 5).astype(np.float32)
    for stationary in (False, True):
        assert with_noisereduce(stationary)(noisy).shape == noisy.shape


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_a_checkpoint_enhances_as_inference_does(tmp_path: Path, small_checkpoint: Path) -> None:
    noisy = with_noise(speech_like(2), 5).astype(np.float32)
    save(tmp_path / "noisy.wav", noisy, subtype="FLOAT")
    options = ("--output_dir", "out", "--checkpoint_file", small_checkpoint, "--device", "cpu", "--num_threads", 1)
    done = run_script("inference.py", "--input_noisy_wavs_dir", "noisy.wav", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    # To the last bit, in which the ways to compute differ.
    assert np.array_equal(with_checkpoint(small_checkpoint, 1)(noisy), read_audio(tmp_path / "out/noisy.wav")[0][:, 0])


def test_a_checkpoint_for_another_rate(tmp_path: Path, small_config: Config) -> None:
    config = replace(small_config, data=replace(small_config.data, sampling_rate=8000))
    save_checkpoint(tmp_path / "other.safetensors", build(config), config)
    with pytest.raises(UserError, match=r"other\.safetensors: made for 8000 Hz; only those for 16000 Hz"):
        with_checkpoint(tmp_path / "other.safetensors", 1)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--files", "0"], 2, "--threads, --files: must be 1 or more"),
        (["--clean_wav_dir", "nowhere"], 2, "nowhere"),
        (["--noisy_wav_dir", "other"], 2, "other: no file has a twin in clean"),
        (["--checkpoint_file", "clean/0.wav"], 2, "clean/0.wav"),
    ],
)
def test_a_wrong_command_line_gets_one_line(tmp_path: Path, options: list[str], code: int, words: str) -> None:
    for name in ("clean", "noisy"):
        save(tmp_path / name / "0.wav", speech_like(0.5), RATE)
    save(tmp_path / "other/1.wav", speech_like(0.5), RATE)
    command = ("--clean_wav_dir", "clean", "--noisy_wav_dir", "noisy", *options)
    done = run_module("tools.benchmark.peers", *command, cwd=tmp_path)
    assert done.returncode == code
    lines = [line for line in done.stderr.splitlines() if "left out" not in line]
    assert len(lines) == 1
    assert words in lines[0]
