"""The benchmark command: each subcommand on tiny inputs; numbers that do not depend on the machine are asserted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from config import Config, load_config
from metrics.score import METRICS, score_signals
from models import build
from models.checkpoint import DEFAULT_CHECKPOINT
from tests.fixtures.commands import call_main
from tests.fixtures.networks import save_random
from tests.fixtures.one_process import stay_in_one_process
from tests.fixtures.recordings import save
from tests.fixtures.signals import speech_like, with_noise
from tools.benchmark import __main__ as benchmark
from tools.benchmark import inference, live, scoring
from tools.benchmark.__main__ import CONFIGS, as_table
from tools.benchmark.inference import count_macs, make_networks
from tools.benchmark.live import count_dropouts

Measure = Callable[..., list[dict[str, Any]]]
PAIRS = ("--clean_wav_dir", "clean", "--noisy_wav_dir", "noisy")


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measure:
    """Run the command in `tmp_path`, in this process; return the rows of its JSON."""

    monkeypatch.setattr(inference, "call_in_new_process", lambda function, *args: function(*args))
    stay_in_one_process(monkeypatch)

    def run(*arguments: object) -> list[dict[str, Any]]:
        done = call_main(benchmark.main, *arguments, "--json", "rows.json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
        assert done.stdout == as_table(rows) + "\n"
        return rows

    return run


@pytest.fixture
def small(tmp_path: Path, small_config: Config) -> Path:
    """Configuration of a narrow IMSE with few bins and segments of 25 frames, which the plain network pads to 28."""
    stft = replace(small_config.stft, n_fft=126, win_size=126, hop_size=63)
    config = replace(small_config, stft=stft, data=replace(small_config.data, segment_size=1512))
    path = tmp_path / "small.json"
    path.write_text(json.dumps(config.to_dict()))
    return path


def write_pairs(folder: Path, count: int) -> None:
    for number in range(count):
        clean = speech_like(1, seed=number)
        save(folder / f"clean/{number}.wav", clean, subtype="FLOAT")
        save(folder / f"noisy/{number}.wav", with_noise(clean, 5), subtype="FLOAT")


def test_network(measure: Measure, small: Path) -> None:
    rows = measure("network", "--config", small, "--forms", "plain", "eager", "bf16", "--rounds", 1, "--num_threads", 1)
    assert [(row["network"], row["form"]) for row in rows] == [("imse", form) for form in ("plain", "eager", "bf16")]
    plain, eager, bf16 = rows
    assert eager["parameters"] == sum(each.numel() for each in build(load_config(small)).parameters())
    assert eager["parameters"] < plain["parameters"] and "parameters" not in bf16
    assert (plain["difference"], plain["speed-up"]) == (0, 1)
    assert eager["difference"] < 1e-4 < bf16["difference"] < 0.5
    for row in rows:
        assert row["RTF"] == pytest.approx(row["ms"] / (1512 / 16))


@pytest.mark.slow  # the export takes a minute
def test_network_with_onnxruntime(measure: Measure, small: Path) -> None:
    pytest.importorskip("onnxruntime")
    rows = measure("network", "--config", small, "--forms", "eager", "onnxruntime", "--rounds", 1, "--num_threads", 1)
    assert rows[1]["difference"] < 1e-3


@pytest.mark.parametrize(
    ("name", "form", "samples", "published"),
    [
        ("imse", "plain", 30_700, 4.54e9),
        ("imse", "eager", 30_700, 5.09e9),  # as in docs/PERFORMANCE.md
        ("muse", "plain", 30_700, 9.98e9),
        ("lite_rtse", "eager", 62 * 256, 0.642e9),  # 63 frames
        ("cnunet", "eager", 162 * 100, 7.576e9),  # 163 frames
        ("dccrn", "eager", 162 * 100, 8.69e9),  # and 0.067e9 for the STFT as a convolution
        ("dpcrn", "eager", 62 * 256, 0.406e9),
        ("dpcrn_ac", "eager", 62 * 256, 0.303e9),
        ("dpcrn_cf", "eager", 62 * 256, 0.307e9),
        ("mpsenet", "eager", 32_000, 2 * 43.8e9),
    ],
)
@pytest.mark.slow
def test_macs(name: str, form: str, samples: int, published: float) -> None:
    config = load_config(CONFIGS / f"{name}.json", [f"data.segment_size={samples}"])
    macs = count_macs(make_networks(config)[form], config)
    seconds = samples / 16_000 if name == "imse" else 1
    assert macs / seconds == pytest.approx(published, rel=0.02)


@pytest.mark.slow
def test_train(measure: Measure, small: Path) -> None:
    config = load_config(small, ["data.segment_size=4221"])  # PESQ needs a quarter of a second
    small.write_text(json.dumps(config.to_dict()))
    rows = measure("train", "--config", small, "--batch_sizes", 1, "--steps", 1, "--num_threads", 1, "--bf16")
    forms = ["plain", "plain, pool kept", "ours", "ours, lag 1", "ours, no labels", "ours, bf16"]
    assert [row["form"] for row in rows] == forms
    assert rows[0]["speed-up"] == 1
    for row in rows:
        assert row["loss difference"] < (0.3 if "bf16" in row["form"] else 1e-4)
        assert row["audio s/s"] * row["ms per step"] / 1e3 == pytest.approx(4221 / 16_000)
        assert row["GPU peak MB"] is None


def test_train_without_a_plain_loop(measure: Measure, tmp_path: Path) -> None:
    config = load_config(CONFIGS / "lite_rtse.json", ["data.segment_size=2000"])
    (tmp_path / "lite.json").write_text(json.dumps(config.to_dict()))
    (row,) = measure("train", "--config", "lite.json", "--batch_sizes", 1, "--steps", 1, "--num_threads", 1)
    assert (row["form"], row["speed-up"]) == ("ours", 1)


def test_stream(measure: Measure) -> None:
    median, percentile = measure("stream", "--config", CONFIGS / "dpcrn_live.json", "--hops", 5)
    assert (median["hop ms"], median["latency ms"]) == (16, 32)
    assert median["RTF"] == pytest.approx(median["ms"] / 16)
    assert 0 < median["ms"] <= percentile["ms"]


def test_live(measure: Measure, lite_checkpoint: Path) -> None:
    """Half of the samples of a hop wait for more than 1.5 hops, the first one for two."""
    options = ("--checkpoint_file", lite_checkpoint, "--backend", "torch", "--seconds", 2, "--buffer", 10**6)
    (row,) = measure("live", *options)
    assert (row["checkpoint"], row["backend"], row["samples"], row["latency ms"]) == ("lite", "torch", 32_000, 32)
    assert 23.9 < row["median ms"] <= row["99 % ms"] <= row["max ms"]
    assert row["99 % ms"] > 31.5 and row["max ms"] > 31.9
    assert (row["buffer ms"], row["drop-outs"]) == (10**6, 0)
    assert row["RTF"] > 0


def test_live_includes_the_time_to_compute(
    measure: Measure, tmp_path: Path, lite_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here `inference.py` returns its input and once takes 0.3 s, beyond the silence of 8512 samples."""
    (tmp_path / "inference.py").write_text(
        "import time\n"
        "source, target = open(0, 'rb'), open(1, 'wb', 0)\n"
        "for number in range(200):\n"
        "    time.sleep(0.3 if number == 100 else 0)\n"
        "    target.write(source.read(320))\n"
    )
    monkeypatch.setattr(live, "ROOT", tmp_path)
    (row,) = measure("live", "--checkpoint_file", lite_checkpoint, "--seconds", 1)
    assert row["samples"] == 16_000
    assert 0 < row["median ms"] <= row["99 % ms"] <= row["max ms"]
    assert row["max ms"] > 300


def test_live_ends_early(tmp_path: Path, lite_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inference.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(live, "ROOT", tmp_path)
    done = call_main(benchmark.main, "live", "--checkpoint_file", lite_checkpoint, "--seconds", 1)
    assert (done.returncode, done.stdout) == (2, "")
    assert "lite.safetensors" in done.stderr and "exit code 3" in done.stderr


@pytest.mark.parametrize(("buffer", "expected"), [(0.1, 2), (0.3, 1), (1.0, 0)])
def test_dropouts(buffer: float, expected: int) -> None:
    """With 0.1 s: due at 0.3, 0.5 (late, restarts at 0.7), 0.9 and 1.1 (late)."""
    arrival = np.repeat([0.0, 0.25, 0.6, 0.85, 1.5], 2)
    assert count_dropouts(arrival, 10, buffer) == expected


def test_lengths(measure: Measure) -> None:
    options = ("--config", CONFIGS / "lite_rtse.json", "--lengths", 3, 1, "--protocols", "whole")
    rows = measure("lengths", *options, "--num_threads", 1)
    assert [(row["form"], row["protocol"], row["length s"]) for row in rows] == [
        ("eager", "whole", length) for length in (1, 3)
    ]
    for row in rows:
        assert row["RTF"] == pytest.approx(row["s"] / row["length s"])
        assert 100 < row["peak MB"] < 20_000
    stopped = measure("lengths", *options, "--limit", 1e-9)
    assert [row["length s"] for row in stopped] == [1]


@pytest.mark.slow
def test_new_process_has_its_own_peak_memory() -> None:
    assert 0 < inference.call_in_new_process(inference.peak_memory) < 5000


def test_peers(measure: Measure, tmp_path: Path, lite_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named '{name}'")

    write_pairs(tmp_path, 3)
    monkeypatch.setattr(scoring.importlib, "import_module", missing)
    first, last = measure("peers", *PAIRS, "--files", 2, "--checkpoint_file", lite_checkpoint, "--num_threads", 1)
    assert (first["system"], first["files"], last["system"]) == ("noisy", 2, "lite")
    # The first and the last file, quantised to 16 bits.
    scores = [
        score_signals(clean, np.rint(with_noise(clean, 5) * 2**15) / 2**15, "published")[0]
        for clean in (speech_like(1, seed=0), speech_like(1, seed=2))
    ]
    for metric in METRICS:
        assert first[metric] == pytest.approx(np.mean([each[metric] for each in scores]), abs=2e-3), metric


def test_rnnoise_has_no_delay() -> None:
    pytest.importorskip("pyrnnoise.rnnoise")
    clean = speech_like(1).astype(np.float32)[:15_999]
    enhanced = scoring.make_rnnoise()(clean)
    assert enhanced.shape == clean.shape
    lags = range(-100, 101)
    products = [float(np.dot(enhanced[200:-200], clean[200 + lag : len(clean) - 200 + lag])) for lag in lags]
    assert abs(lags[int(np.argmax(products))]) <= 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "command"),
        ("train --device nonsense", "--device nonsense"),
        ("train --config other_rate.json", "data.sampling_rate"),
        ("network --config nothing.json", "nothing.json"),
        (f"stream --config {CONFIGS / 'imse.json'}", "stream"),
        (f"live --checkpoint_file {DEFAULT_CHECKPOINT}", "stream"),
        ("peers --clean_wav_dir clean --noisy_wav_dir noisy --checkpoint_file clean/0.wav", "clean/0.wav"),
        ("peers --clean_wav_dir nowhere --noisy_wav_dir noisy", "nowhere"),
        ("peers --clean_wav_dir clean --noisy_wav_dir noisy --checkpoint_file eight.safetensors", "8000 Hz"),
    ],
)
def test_wrong_command_line(tmp_path: Path, small_config: Config, arguments: str, words: str) -> None:
    for name in ("clean/0", "noisy/0"):
        save(tmp_path / f"{name}.wav", speech_like(0.5))
    eight = replace(small_config, data=replace(small_config.data, sampling_rate=8000))
    (tmp_path / "other_rate.json").write_text(json.dumps(eight.to_dict()))
    if "eight" in arguments:
        save_random(tmp_path / "eight.safetensors", eight)
    done = call_main(benchmark.main, *arguments.split(), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = [line for line in done.stderr.splitlines() if "left out" not in line]
    assert words in line
