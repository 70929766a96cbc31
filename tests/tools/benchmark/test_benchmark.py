"""The benchmark command: each subcommand on tiny inputs; numbers that do not depend on the machine are asserted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from config import Config, load_config
from metrics.score import METRICS, score_signals
from models import build
from models.checkpoint import save_checkpoint
from models.stft import Spectra
from tests.fixtures.commands import ROOT, call_main, run_module
from tests.fixtures.recordings import save
from tests.fixtures.signals import speech_like, with_noise
from tests.reference.imse import ReferenceIMSE
from tools.benchmark import __main__ as benchmark
from tools.benchmark import common, peers, train
from tools.benchmark.common import ALL_CONFIGS, CONFIGS, Plain, as_table, make_networks
from tools.benchmark.network import count_macs

Measure = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measure:
    """Run the command in `tmp_path`, in this process; return the rows of its JSON."""
    monkeypatch.setattr("tools.benchmark.network.call_in_new_process", lambda function, *args: function(*args))
    monkeypatch.setattr("tools.benchmark.lengths.call_in_new_process", lambda function, *args: function(*args))

    def run(*arguments: object) -> list[dict[str, Any]]:
        done = call_main(benchmark.main, *arguments, "--json", "rows.json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
        assert done.stdout == as_table(rows) + "\n"
        return rows

    return run


@pytest.fixture
def small_file(tmp_path: Path, small_config: Config) -> Path:
    """Configuration of a narrow IMSE with short segments."""
    config = replace(small_config, data=replace(small_config.data, segment_size=4300))
    path = tmp_path / "small.json"
    path.write_text(json.dumps(config.to_dict()))
    return path


def write_pairs(folder: Path, count: int) -> None:
    for number in range(count):
        clean = speech_like(2, seed=number)
        save(folder / f"clean/{number}.wav", clean, subtype="FLOAT")
        save(folder / f"noisy/{number}.wav", with_noise(clean, 5), subtype="FLOAT")


def test_network(measure: Measure, small_file: Path, tmp_path: Path) -> None:
    lite = load_config(CONFIGS / "lite_rtse.json", ["data.segment_size=8000"])
    (tmp_path / "lite.json").write_text(json.dumps(lite.to_dict()))
    rows = measure("network", "--config", small_file, "lite.json", "--rounds", 1, "--threads", 1)
    assert [(row["network"], row["form"]) for row in rows] == [
        ("imse", "plain"), ("imse", "eager"), ("lite_rtse", "eager")
    ]  # fmt: skip
    plain, eager, streaming = rows
    assert eager["parameters"] == sum(each.numel() for each in build(load_config(small_file)).parameters())
    assert eager["parameters"] < plain["parameters"]
    assert streaming["parameters"] == 1_559_245
    assert (plain["difference"], plain["speed-up"]) == (0, 1)
    assert eager["difference"] < 1e-4
    for row in rows:
        length = (0.5 if row is streaming else 4300 / 16_000) * 1e3
        assert row["RTF"] == pytest.approx(row["ms"] / length)


def test_network_bf16_form(measure: Measure, small_file: Path) -> None:
    rows = measure("network", "--config", small_file, "--forms", "eager", "bf16", "--rounds", 1, "--threads", 1)
    assert [row["form"] for row in rows] == ["eager", "bf16"]
    assert 0 < rows[1]["difference"] < 0.5
    assert "parameters" not in rows[1]


@pytest.mark.slow  # the export takes a minute
def test_network_onnxruntime_form(measure: Measure, small_file: Path) -> None:
    pytest.importorskip("onnxruntime")
    rows = measure("network", "--config", small_file, "--forms", "eager", "onnxruntime", "--rounds", 1, "--threads", 1)
    assert rows[1]["difference"] < 1e-3


def test_macs_of_imse(config: Config) -> None:
    """The release's MACs, as published, against ours, derived from them by hand."""
    networks = make_networks(config)
    released = count_macs(networks["plain"], config)
    assert released / (30_700 / 16_000) == pytest.approx(4.54e9, rel=0.02)
    # Ours leaves out the unread half of two 1×1 convolutions and the fusions (a squeeze to 4, 4 and 6 channels and
    # back), and computes MALA's products for all heads at once.
    expected = released - 2 * (2 * 16 * 16) * 308 * 128
    for width, stages, positions, squeezed in ((16, 4, 308 * 128, 4), (32, 2, 154 * 64, 4), (48, 1, 77 * 32, 6)):
        expected -= stages * 2 * width * squeezed
        per_head, all_heads = (1 + 8 + 8) * width, 5 * width * width
        expected += 4 * stages * (positions * (all_heads - per_head) + 2 * width**3)
    assert count_macs(networks["eager"], config) == expected


@pytest.mark.parametrize(
    ("name", "form", "samples", "published"),
    [
        ("muse", "plain", 30_700, 9.98e9),
        ("lite_rtse", "eager", 62 * 256, 0.642e9),  # 63 frames
        ("cnunet", "eager", 162 * 100, 7.576e9),  # 163 frames
    ],
)
def test_macs_of_the_other_networks(name: str, form: str, samples: int, published: float) -> None:
    config = load_config(CONFIGS / f"{name}.json", [f"data.segment_size={samples}"])
    assert count_macs(make_networks(config)[form], config) == pytest.approx(published, rel=0.02)


def test_all_networks_by_default() -> None:
    assert [load_config(path).model.name for path in ALL_CONFIGS] == ["imse", "muse", "lite_rtse", "cnunet"]


@pytest.mark.parametrize("frames", [1, 4, 7])
def test_plain_network_pads_to_four_frames(frames: int) -> None:
    class Double(nn.Module):
        def forward(self, mag: torch.Tensor, pha: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            assert mag.shape[-1] % 4 == 0
            return 2 * mag, pha

    noisy = Spectra(torch.rand(1, 5, frames), torch.rand(1, 5, frames))
    enhanced = Plain(Double())(noisy)
    assert torch.equal(enhanced.mag, 2 * noisy.mag)
    assert torch.equal(enhanced.pha, noisy.pha)


def test_train(measure: Measure, small_file: Path) -> None:
    rows = measure("train", "--config", small_file, "--batch_sizes", 1, "--steps", 1, "--threads", 1)
    forms = ["plain", "plain, pool kept", "ours", "ours, lag 1", "ours, no labels"]
    assert [row["form"] for row in rows] == forms
    assert rows[0]["speed-up"] == 1
    for row in rows:
        # The plain STFT has no defined phase for bins that are rounding errors.
        assert row["loss difference"] < 1e-2
        assert row["audio s/s"] * row["ms per step"] / 1e3 == pytest.approx(4300 / 16_000)
        assert row["GPU peak MB"] is None


def test_train_without_a_plain_loop(measure: Measure, tmp_path: Path) -> None:
    config = load_config(CONFIGS / "lite_rtse.json", ["data.segment_size=4000"])
    (tmp_path / "lite.json").write_text(json.dumps(config.to_dict()))
    (row,) = measure("train", "--config", "lite.json", "--batch_sizes", 1, "--steps", 1, "--threads", 1)
    assert (row["form"], row["speed-up"]) == ("ours", 1)


def test_training_variants(small_config: Config) -> None:
    configured = replace(small_config, train=replace(small_config.train, bf16=True, compile=True, metric_lag=1))
    forms = train.variants(configured, compiled=True, bf16=True)
    settings = {name: (form.train.metric_lag, form.train.bf16, form.train.compile) for name, form in forms.items()}
    assert settings == {
        "ours": (0, False, False),
        "ours, lag 1": (1, False, False),
        "ours, bf16": (1, True, False),
        "ours, compiled": (1, False, True),
        "ours, bf16, compiled": (1, True, True),
        "ours, no labels": (0, False, False),
    }
    assert [name for name, form in forms.items() if form.loss.metric == 0] == ["ours, no labels"]


def test_stream(measure: Measure) -> None:
    median, percentile = measure("stream", "--hops", 5)
    assert (median["hop ms"], median["latency ms"]) == (16, 32)
    assert median["RTF"] == pytest.approx(median["ms"] / 16)
    assert 0 < median["ms"] <= percentile["ms"]


def test_lengths(measure: Measure, small_file: Path) -> None:
    options = ("--lengths", 3, 1, "--protocols", "overlap", "whole", "--threads", 1)
    rows = measure("lengths", "--config", small_file, *options)
    assert [(row["form"], row["protocol"], row["length s"]) for row in rows] == [
        (form, protocol, length)
        for form, protocol in (("plain", "whole"), ("eager", "overlap"), ("eager", "whole"))
        for length in (1, 3)
    ]
    for row in rows:
        assert row["RTF"] == pytest.approx(row["s"] / row["length s"])
        assert 100 < row["peak MB"] < 20_000


def test_lengths_stop_at_the_limit(measure: Measure, small_file: Path) -> None:
    options = ("--forms", "eager", "--protocols", "overlap", "--threads", 1, "--limit", 1e-9)
    rows = measure("lengths", "--config", small_file, "--lengths", 1, 2, *options)
    assert [row["length s"] for row in rows] == [1]


def test_new_process_has_its_own_peak_memory() -> None:
    assert 0 < common.call_in_new_process(common.peak_memory) < 5000


def test_folder(measure: Measure, tmp_path: Path) -> None:
    for number in range(2):
        save(tmp_path / f"noisy/{number}.wav", with_noise(speech_like(0.3), 5))
    torch.manual_seed(0)
    torch.save({"generator": ReferenceIMSE().state_dict()}, tmp_path / "published")
    rows = measure("folder", "--input_noisy_wavs_dir", "noisy", "--checkpoint_file", "published", "--threads", 1)
    assert [(row["form"], row["files"]) for row in rows] == [("plain", 2), ("ours", 2)]
    assert rows[0]["s"] / rows[1]["s"] == pytest.approx(rows[1]["speed-up"])


def test_metrics(measure: Measure, tmp_path: Path) -> None:
    write_pairs(tmp_path, 1)
    rows = measure("metrics", "--clean_wav_dir", "clean", "--noisy_wav_dir", "noisy", "--jobs", 2)
    assert [row["form"] for row in rows] == ["plain loops", "one process", "2 processes", "PESQ alone, one process"]
    assert rows[0]["speed-up"] == 1


def test_peers(measure: Measure, tmp_path: Path, small_checkpoint: Path) -> None:
    write_pairs(tmp_path, 3)
    folders = ("--clean_wav_dir", "clean", "--noisy_wav_dir", "noisy", "--files", 2)
    rows = measure("peers", *folders, "--checkpoint_file", small_checkpoint, "--threads", 1)
    first, *_, last = rows
    assert (first["system"], first["files"]) == ("noisy", 2)
    assert last["system"] == "small"
    # The first and the last file, quantised to 16 bits.
    scores = [
        score_signals(clean, np.rint(with_noise(clean, 5) * 2**15) / 2**15, "published")[0]
        for clean in (speech_like(2, seed=0), speech_like(2, seed=2))
    ]
    for metric in METRICS:
        assert first[metric] == pytest.approx(np.mean([each[metric] for each in scores]), abs=2e-3), metric


def test_peers_that_are_not_installed_are_left_out(
    tmp_path: Path, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named '{name}'")

    write_pairs(tmp_path, 1)
    monkeypatch.setattr(peers.importlib, "import_module", missing)
    monkeypatch.setattr(peers, "score_pairs", lambda *_: [])
    options = ("--clean_wav_dir", "clean", "--noisy_wav_dir", "noisy", "--checkpoint_file", small_checkpoint)
    done = call_main(benchmark.main, "peers", *options, cwd=tmp_path)
    assert done.returncode == 0
    assert [line.split(":")[0] for line in done.stderr.splitlines() if "left out" in line] == [
        "noisereduce", "noisereduce, stationary", "RNNoise"
    ]  # fmt: skip
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == ["noisy", "small"]


@pytest.mark.parametrize("samples", [16_000, 15_999, 161, 1])
def test_rnnoise_has_no_delay(samples: int) -> None:
    pytest.importorskip("pyrnnoise.rnnoise")
    clean = speech_like(3).astype(np.float32)[:samples]
    enhanced = peers.make_rnnoise()(clean)
    assert enhanced.shape == clean.shape
    if samples >= 15_999:
        lags = range(-100, 101)
        products = [float(np.dot(enhanced[200:-200], clean[200 + lag : len(clean) - 200 + lag])) for lag in lags]
        assert abs(lags[int(np.argmax(products))]) <= 1


def test_noisereduce_keeps_the_length() -> None:
    pytest.importorskip("noisereduce")
    noisy = with_noise(speech_like(1.3), 5).astype(np.float32)
    for stationary in (False, True):
        assert peers.make_noisereduce(stationary)(noisy).shape == noisy.shape


def test_table_aligns_text_left_and_numbers_right() -> None:
    rows = [{"form": "a", "ms": 12.34567, "files": 3}, {"form": "long", "ms": None, "MB": 7}]
    assert as_table(rows).splitlines() == [
        "form     ms  files  MB",
        "a     12.35      3   -",
        "long      -      -   7",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "command"),
        (["trian"], "trian"),
        (["train", "--rounds", "3"], "--rounds"),
        (["train", "--batch_sizes", "2", "0"], "--batch_sizes"),
        (["train", "--device", "nonsense"], "--device nonsense"),
        (["train", "--config", "other_rate.json"], "data.sampling_rate"),
        (["network", "--config", "nothing.json"], "nothing.json"),
        (["network", "--forms", "fast"], "--forms"),
        (["stream", "--config", str(CONFIGS / "imse.json")], "stream"),
        (["lengths", "--threads", "0"], "--threads"),
        (["lengths", "--lengths", "nan"], "--lengths"),
        (["folder", "--input_noisy_wavs_dir", "noisy", "--checkpoint_file", "clean/0.wav"], "clean/0.wav"),
        (["peers", "--clean_wav_dir", "nowhere", "--noisy_wav_dir", "noisy"], "nowhere"),
        (["peers", "--clean_wav_dir", "clean", "--noisy_wav_dir", "other"], "other"),
        (["peers", "--clean_wav_dir", "clean", "--noisy_wav_dir", "noisy", "--checkpoint_file", "eight"], "8000 Hz"),
        (["metrics", "--clean_wav_dir", "clean", "--noisy_wav_dir", "noisy", "--files", "0"], "--files"),
    ],
)
def test_wrong_command_line(tmp_path: Path, small_config: Config, arguments: list[str], words: str) -> None:
    for name in ("clean/0", "noisy/0", "other/1"):
        save(tmp_path / f"{name}.wav", speech_like(0.5))
    eight = replace(small_config, data=replace(small_config.data, sampling_rate=8000))
    (tmp_path / "other_rate.json").write_text(json.dumps(eight.to_dict()))
    if "eight" in arguments:
        save_checkpoint(tmp_path / "eight.safetensors", build(eight), eight)
        (tmp_path / "eight.safetensors").rename(tmp_path / "eight")
    done = call_main(benchmark.main, *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = [line for line in done.stderr.splitlines() if "left out" not in line]
    assert words in line


def test_command_in_a_process() -> None:
    done = run_module("tools.benchmark", "stream", "--hops", 2, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith("lite_rtse")
